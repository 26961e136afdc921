"""Schedules: what an explored run does otherwise than by default, and where schedules come from.

A run meets decisions, numbered from 0 in the order in which it meets them: at each choice
among several runnable handlers, and at each access of a handler to shared memory. A schedule
is sparse: it holds the few decisions that are not the default (the first in order runs, an
access just happens). The same schedule gives the same run, to the bit.
"""

from __future__ import annotations

import enum
import random
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple, Self

import attrs

from _xenpv_hypothesis import register

STEP_BYTES: Final = 4
PREEMPTIONS_MAX: Final = 4  # of one random schedule; most races need one or two


class Action(enum.StrEnum):
    """What a step does at its decision."""

    RUN = "run"  # at a choice: the argument-th of what is runnable
    PREEMPT = "preempt"  # before an access: the argument-th handler of another domain runs first
    POKE = "poke"  # before a load: the argument-th change of the loaded bytes


ACTIONS: Final = tuple(Action)


@attrs.frozen(order=True)
class Step:
    """At decision `at`, `action` with `argument`, which wraps at what there is to choose from.

    A step that does not fit its decision does nothing.
    """

    at: int
    action: Action
    argument: int = 0


class Point(NamedTuple):
    """A decision as a run met it: how many handlers could run, how many changes there were.

    At a choice `runnable` is at least 2 and counts all; at an access it counts what could
    preempt. `place` is alike for decisions that are alike: of an access, who does what to
    which frame.
    """

    is_choice: bool
    runnable: int
    pokes: int = 0
    place: tuple[int | str, ...] = ()

    def alternatives(self, at: int) -> list[Step]:
        """Every step that does something here."""
        if self.is_choice:
            return [Step(at, Action.RUN, index) for index in range(1, self.runnable)]
        return [Step(at, Action.PREEMPT, index) for index in range(self.runnable)] + [
            Step(at, Action.POKE, index) for index in range(self.pokes)
        ]


def _in_order(steps: Iterable[Step]) -> tuple[Step, ...]:
    """By decision; of two steps that do the same thing at one decision, the first."""
    found: dict[tuple[int, Action], Step] = {}
    for step in steps:
        found.setdefault((step.at, step.action), step)
    return tuple(sorted(found.values()))


@attrs.frozen
class Schedule:
    """Steps in the order of their decisions."""

    steps: tuple[Step, ...] = attrs.field(default=(), converter=_in_order)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Four bytes a step: decisions since the last one (u16), action, argument.

        For Hypothesis' `binary()` and for fuzzers: fewer and smaller bytes are fewer and
        earlier steps; a rest of less than four bytes is ignored.
        """
        steps = []
        at = 0
        for start in range(0, len(data) - STEP_BYTES + 1, STEP_BYTES):
            at += int.from_bytes(data[start : start + 2], "little")
            steps.append(Step(at, ACTIONS[data[start + 2] % len(ACTIONS)], data[start + 3]))
        return cls(tuple(steps))

    def __len__(self) -> int:
        return len(self.steps)


# A strategy yields schedules and is sent the points that each run met.
Strategy = Generator[Schedule, "list[Point]", None]


def _places(points: list[Point]) -> list[list[int]]:
    """The decisions at which something can be done, by their place, in order of appearance."""
    found: dict[tuple[int | str, ...], list[int]] = {}
    for at, point in enumerate(points):
        if point.runnable or point.pokes:
            found.setdefault(point.place, []).append(at)
    return list(found.values())


def one_step(points: list[Point]) -> Iterator[Step]:
    """Every single step: of each place its first decision, then of each its second, and so on.

    A driver that grants a hundred pages meets a hundred decisions that are alike; what else
    it does should not have to wait for them.
    """
    places = _places(points)
    for turn in range(max(map(len, places), default=0)):
        for decisions in places:
            if turn < len(decisions):
                yield from points[decisions[turn]].alternatives(decisions[turn])


def randomly(seed: int, *, steps_max: int = PREEMPTIONS_MAX) -> Strategy:
    """The default run, then without end: few steps at random decisions, as PCT does.

    Steps are drawn from what the default run met, so that most of them do something; first a
    place, then a decision there.
    """
    draw = random.Random(seed)
    points = yield Schedule()
    places = _places(points)
    while True:
        steps: dict[int, Step] = {}
        for _ in range(1 + int(draw.random() * steps_max) if places else 0):
            decisions = places[int(draw.random() * len(places))]
            at = decisions[int(draw.random() * len(decisions))]
            steps[at] = _draw(draw, points[at], at)
        yield Schedule(tuple(steps.values()))


def _draw(draw: random.Random, point: Point, at: int) -> Step:
    if point.is_choice:
        return Step(at, Action.RUN, 1 + int(draw.random() * (point.runnable - 1)))
    # Among changes and preemptions first, or the many changes of a slot would drown the other.
    if point.pokes and (not point.runnable or draw.random() < 0.5):
        return Step(at, Action.POKE, int(draw.random() * point.pokes))
    return Step(at, Action.PREEMPT, int(draw.random() * point.runnable))


def systematically(*, depth: int = 2) -> Strategy:
    """Every schedule of one step, then of two, up to `depth`, each extended behind its last."""
    points = yield Schedule()
    level: deque[tuple[Schedule, list[Point]]] = deque([(Schedule(), points)])
    for _ in range(depth):
        following: deque[tuple[Schedule, list[Point]]] = deque()
        while level:
            prefix, points = level.popleft()
            first = prefix.steps[-1].at + 1 if prefix.steps else 0
            for at in range(first, len(points)):
                for step in points[at].alternatives(at):
                    extended = Schedule((*prefix.steps, step))
                    met = yield extended
                    following.append((extended, met))
        level = following


def mixed(seed: int, singles: int) -> Strategy:
    """The default run, at most `singles` schedules of one step, then random ones."""
    points = yield Schedule()
    for step in islice(one_step(points), singles):
        yield Schedule((step,))
    random_ones = randomly(seed)
    next(random_ones)
    schedule = random_ones.send(points)
    while True:
        yield schedule
        schedule = next(random_ones)


if "hypothesis" in sys.modules:  # else it asks for them when it is imported
    register()
