"""Exploration: run a scenario under many schedules, shrink what fails, write it down.

    result = explore(scenario, seed=7, examples=500)
    result.check()      # raises ExplorationFailed: the schedule, in words, and how to repeat it

Deterministic: equal arguments give equal runs, failures and shrunk schedules.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import attrs

from xenpv.errors import XenpvError
from xenpv.testing import reports, zoo
from xenpv.testing.named import name_of
from xenpv.testing.replay import Replay
from xenpv.testing.run import Run, Scenario, located, run_schedule
from xenpv.testing.schedule import Strategy, mixed
from xenpv.testing.shrink import shrink
from xenpv.testing.witness import witness

EXAMPLES: Final = 500


class ExplorationFailed(XenpvError, AssertionError):  # noqa: N818 - it says what happened
    """A schedule makes the scenario fail; `result` is the exploration's."""

    def __init__(self, result: Result) -> None:
        self.result = result
        super().__init__("\n".join(result.lines()))


@attrs.frozen(eq=False)
class Result:
    """What an exploration found.

    `examples` were run until the first failure or the end, `shrinking` more to shrink it.
    `run` is the shrunk failing run, None if none failed. `defects` were on (testing.zoo).
    `path` is the replay file, None unless a directory was given.
    """

    scenario: str
    seed: int
    examples: int
    shrinking: int = 0
    run: Run | None = None
    defects: tuple[str, ...] = ()
    path: Path | None = None

    @property
    def failed(self) -> bool:
        return self.run is not None

    @property
    def failure(self) -> Exception | None:
        """What the scenario raised under the shrunk schedule."""
        return None if self.run is None else self.run.failure

    @property
    def steps(self) -> tuple[str, ...]:
        """The shrunk schedule, each step in words."""
        return () if self.run is None else self.run.words

    def lines(self) -> list[str]:
        """For people: the failure, its steps, and how to repeat it."""
        run = self.run
        if run is None:
            return [f"{self.scenario}: nothing found in {self.examples} examples, seed {self.seed}"]
        shrunk = f"shrunk to {len(run.taken)} steps in {self.shrinking} runs"
        found = f"found at example {self.examples} with seed {self.seed}"
        lines = [
            f"{self.scenario} fails: {run.failure_text}",
            f"{found}, {shrunk}, digest {run.digest}",
        ]
        if self.defects:
            lines.append(f"with the defect {', '.join(self.defects)}")
        lines += reports.steps(run)
        if self.path is not None:
            lines.append(f"again: xenpv replay {self.path}")
        return lines

    def section(self, _directory: Path) -> list[str]:
        """For pytest: the schedule, the replay file if there is one, and what happened."""
        assert self.run is not None, "only failures are reported"
        return [*self.lines(), *reports.shown(self.run, self.path)]

    def check(self) -> None:
        """Raises ExplorationFailed if something was found."""
        if self.run is not None:
            raise ExplorationFailed(self) from self.run.failure


def explore(
    scenario: Scenario,
    *,
    seed: int = 0,
    examples: int = EXAMPLES,
    strategy: Strategy | None = None,
    directory: str | Path | None = None,
) -> Result:
    """Run `scenario` under at most `examples` schedules, and shrink the first that fails.

    `strategy` None: the default run, then up to half of the examples with every single step
    in order, then random ones of `seed`. With a `directory`, a replay file of the failure,
    and beside it its trace and store, are written there (made if it is not there).
    Raises LocalProtocolError if a file is to be written of a scenario that cannot be imported.
    """
    name = name_of(scenario, must_import=directory is not None)
    schedules = mixed(seed, examples // 2) if strategy is None else strategy
    defects = zoo.active()
    schedule = next(schedules, None)
    done = 0
    while schedule is not None and done < examples:
        run = run_schedule(scenario, schedule)
        done += 1
        if run.failed:
            smallest, shrinking = shrink(run, lambda one: run_schedule(scenario, one))
            smallest = located(scenario, smallest)
            found = Result(name, seed, done, shrinking, smallest, defects)
            reports.remember(found)
            if directory is not None:
                replay = Replay.of(scenario, smallest, seed=seed, defects=defects)
                watched = attrs.evolve(smallest, packets=_packets(scenario, smallest))
                found = attrs.evolve(found, path=replay.save(Path(directory), watched))
                reports.remember(found)
            return found
        try:
            schedule = schedules.send(run.points)
        except StopIteration:
            break
    return Result(name, seed, done, defects=defects)


def _packets(scenario: Scenario, run: Run) -> bytes:
    """What crosses the bridges in the same run once more."""
    with witness() as seen:
        run_schedule(scenario, run.taken)
    return seen.packets
