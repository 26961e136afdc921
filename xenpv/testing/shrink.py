"""From a failing run to one of which no step can be dropped.

First steps: halves, quarters, down to single ones, until no single step can go. Then each
argument is made as small as it can be. What a run did not take of a schedule is dropped with
it. Deterministic: the same failure shrinks to the same schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs

from xenpv.testing.run import Run
from xenpv.testing.schedule import Schedule, Step

RUNS_MAX: Final = 2_000

# Runs a schedule.
Attempt = Callable[[Schedule], Run]


def shrink(failing: Run, attempt: Attempt) -> tuple[Run, int]:
    """The smallest run found that fails as `failing` does, and how many runs that took."""
    shrinker = _Shrinker(failing, attempt)
    shrinker.drop_steps()
    shrinker.lower_arguments()
    shrinker.drop_steps()
    return shrinker.best, shrinker.runs


class _Shrinker:
    def __init__(self, failing: Run, attempt: Attempt) -> None:
        self.failing = failing
        self.best = failing
        self.runs = 0
        self._attempt = attempt

    @property
    def _steps(self) -> tuple[Step, ...]:
        return self.best.taken.steps

    def _try(self, steps: tuple[Step, ...]) -> bool:
        """Whether these fail too, and are fewer or smaller: then they are the best."""
        if self.runs >= RUNS_MAX:
            return False
        self.runs += 1
        run = self._attempt(Schedule(steps))
        if not run.fails_as(self.failing) or _weight(run) >= _weight(self.best):
            return False
        self.best = run
        return True

    def drop_steps(self) -> None:
        size = len(self._steps)
        while size:
            start = 0
            while start < len(self._steps):
                steps = self._steps
                if not self._try(steps[:start] + steps[start + size :]):
                    start += size
            # At single steps, once more as long as something went: a later one may have
            # been needed for an earlier one only.
            size = min(size // 2, len(self._steps))
        before = -1
        while before != len(self._steps):
            before = len(self._steps)
            for at in range(before - 1, -1, -1):
                steps = self._steps
                if at < len(steps):
                    self._try(steps[:at] + steps[at + 1 :])

    def lower_arguments(self) -> None:
        at = 0
        while at < len(self._steps):
            step = self._steps[at]
            for smaller in sorted({0, 1, step.argument // 2, step.argument - 1}):
                if 0 <= smaller < step.argument and self._lower(at, smaller):
                    break
            else:
                at += 1

    def _lower(self, at: int, argument: int) -> bool:
        steps = self._steps
        changed = attrs.evolve(steps[at], argument=argument)
        return self._try((*steps[:at], changed, *steps[at + 1 :]))


def _weight(run: Run) -> tuple[int, int, int]:
    """Fewer steps first, then smaller arguments, then earlier decisions."""
    steps = run.taken.steps
    return len(steps), sum(step.argument for step in steps), sum(step.at for step in steps)
