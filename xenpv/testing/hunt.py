"""A hunt: a source of examples that looks for one kind of failure, one example a step.

The kit has several kinds of them, alike from outside: schedules of a scenario, numbered cases,
bytes of an overlay. A hunt is deterministic: equal seeds give equal examples and findings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import attrs

from xenpv.testing import zoo
from xenpv.testing.run import Run, Scenario, run_schedule
from xenpv.testing.schedule import mixed
from xenpv.testing.shrink import shrink

if TYPE_CHECKING:
    from xenpv.testing.cases.suite import Case, Factory

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


# One example a step: None if nothing was found. It ends when there are no more examples.
Search = Iterator[Found | None]


class Hunt(Protocol):
    """What the kit runs. `name` begins with the kind: `scenario:`, `case:`, `overlay:`."""

    @property
    def name(self) -> str:
        """Stable: replay files and tables have it."""

    def search(self, seed: int) -> Search:
        """Examples of a seed, run as the iterator is asked for them."""


@attrs.frozen
class ScenarioHunt:
    """A scenario under the default schedule, every single step, then random ones."""

    scenario: Scenario

    @property
    def name(self) -> str:
        return f"scenario:{getattr(self.scenario, '__name__', repr(self.scenario))}"

    def search(self, seed: int) -> Search:
        """Endless."""
        schedules = mixed(seed, SINGLES_MAX)
        schedule = next(schedules)
        examples = 0
        while True:
            run = run_schedule(self.scenario, schedule)
            examples += 1
            yield self._found(run, seed, examples) if run.failed else None
            schedule = schedules.send(run.points)

    def _found(self, run: Run, seed: int, examples: int) -> Found:
        from xenpv.testing.replay import Replay

        smallest, shrinking = shrink(run, lambda one: run_schedule(self.scenario, one))
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
