"""A hunt: a source of examples that looks for one kind of failure, one example a step.

The kit has several kinds of them, alike from outside: schedules of a scenario, numbered cases,
bytes of an overlay. A hunt is deterministic: equal seeds give equal examples and findings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import attrs

from xenpv.testing import zoo
from xenpv.testing.ends.watchdog import watchdog
from xenpv.testing.run import DoesNotReturn, Run, Scenario, located, run_schedule
from xenpv.testing.schedule import mixed
from xenpv.testing.shrink import shrink

if TYPE_CHECKING:
    from xenpv.testing.cases.suite import Case, Factory
    from xenpv.testing.lifecycle import LifecycleFailed, Step

EXAMPLE_SECONDS: Final = 10.0  # of wall time; one takes milliseconds
SINGLES_MAX: Final = 1_000  # schedules of one step of a scenario, before random ones


@attrs.frozen(eq=False)
class Found:
    """A failure, shrunk. `hunt` is the name of what found it, `seed` the hunt's.

    `steps` are what is left of the example, in words: none if the default run fails, or a case.
    `examples` were run by this hunt until then, `shrinking` more to shrink it. `save` writes a
    replay file into a directory.
    """

    hunt: str
    seed: int
    failure: str
    steps: tuple[str, ...]
    examples: int
    shrinking: int
    save: Callable[[Path], Path]
    run: Run | None = None


@contextmanager
def limited(seconds: float = EXAMPLE_SECONDS) -> Iterator[None]:
    """A wall clock over one example: Stuck is raised in code that does not return."""
    clock = watchdog()
    clock.enter(seconds)
    try:
        yield
    finally:
        clock.leave()


# One example a step: None if nothing was found. It ends when there are no more examples.
Search = Iterator[Found | None]


class Hunt(Protocol):
    """What the kit runs. `name` begins with the kind: `scenario:`, `cases:`, `overlay:`; `cost`
    says how many examples of others one of it is worth.
    """

    @property
    def name(self) -> str:
        """Stable: replay files and tables have it."""

    @property
    def cost(self) -> int:
        """1 for an example of a few milliseconds."""

    def search(self, seed: int) -> Search:
        """Examples of a seed, run as the iterator is asked for them."""


@attrs.frozen
class ScenarioHunt:
    """A scenario under the default schedule, every single step, then random ones."""

    scenario: Scenario

    cost = 1

    @property
    def name(self) -> str:
        return f"scenario:{getattr(self.scenario, '__name__', repr(self.scenario))}"

    def search(self, seed: int) -> Search:
        """Endless."""
        schedules = mixed(seed, SINGLES_MAX)
        schedule = next(schedules)
        examples = 0
        while True:
            with limited():
                run = run_schedule(self.scenario, schedule)
            examples += 1
            yield self._found(run, seed, examples) if run.failed else None
            schedule = schedules.send(run.points)

    def _found(self, run: Run, seed: int, examples: int) -> Found:
        from xenpv.testing.replay import Replay

        smallest, shrinking = run, 0
        if not isinstance(run.failure, DoesNotReturn):  # each attempt would take as long again
            smallest, shrinking = shrink(run, lambda one: run_schedule(self.scenario, one))
        smallest = located(self.scenario, smallest)
        defects = zoo.active()

        def save(directory: Path) -> Path:
            replay = Replay.of(self.scenario, smallest, seed=seed, defects=defects)
            return replay.save(directory, smallest)

        return Found(
            hunt=self.name,
            seed=seed,
            failure=smallest.failure_text,
            steps=smallest.words,
            examples=examples,
            shrinking=shrinking,
            save=save,
            run=smallest,
        )


@attrs.frozen
class CaseHunt:
    """Cases, one after the other, each once; `factory` makes the end under test, None ours."""

    cases: tuple[Case, ...]
    suite: str
    factory: Factory | None = None

    cost = 1

    @property
    def name(self) -> str:
        return f"cases:{self.suite}"

    def search(self, seed: int) -> Search:
        """As many examples as there are cases."""
        from xenpv.testing.cases.suite import Outcome

        for examples, case in enumerate(self.cases, 1):
            result = case.run(self.factory, seed=seed)
            if result.outcome is not Outcome.FAIL:
                yield None
                continue
            yield Found(
                hunt=f"case:{case.id}",
                seed=seed,
                failure=f"{case.id} {case.title}: {result.reason}",
                steps=(),
                examples=examples,
                shrinking=0,
                save=result.save,
            )


COMMANDS: Final = 12  # of a life cycle


def _kept(steps: Iterator[Step], taken: list[Step]) -> Iterator[Step]:
    for step in steps:
        taken.append(step)
        yield step


@attrs.frozen
class LifecycleHunt:
    """Random commands of a toolstack, with traffic: a short life cycle each example."""

    cost = 4
    name = "lifecycle"

    def search(self, seed: int) -> Search:
        """Endless."""
        from xenpv.testing.lifecycle import LifecycleFailed, draw_steps, run_steps

        for examples in count(1):
            number = (seed << 32) + examples
            taken: list[Step] = []
            try:
                run_steps(number, _kept(draw_steps(number), taken), COMMANDS)
            except LifecycleFailed as error:
                yield self._found(error, seed, examples)
            except Exception as error:  # noqa: BLE001 - what escapes is a finding as well
                escaped = LifecycleFailed(number, taken, [f"{type(error).__name__}: {error}"])
                yield self._found(escaped, seed, examples)
            else:
                yield None

    def _found(self, error: LifecycleFailed, seed: int, examples: int) -> Found:
        from xenpv.testing.lifecycle import shrink as shrink_steps

        smallest = shrink_steps(error)

        def save(directory: Path) -> Path:
            from xenpv.testing.replay import LifecycleReplay

            return LifecycleReplay.save_failed(smallest, directory)

        return Found(
            hunt=self.name,
            seed=seed,
            failure=f"{type(smallest).__name__}: {smallest}",
            steps=tuple(str(step) for step in smallest.steps),
            examples=examples,
            shrinking=0,
            save=save,
        )
