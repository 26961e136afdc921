"""Run a scenario once under a schedule, and keep what is told of the run."""

from __future__ import annotations

from collections.abc import Callable
from traceback import extract_tb
from typing import Final

import attrs

from xenpv.errors import XenpvError
from xenpv.testing.access import DoubleFetch
from xenpv.testing.ends.watchdog import Stuck
from xenpv.testing.explorer import Explorer
from xenpv.testing.schedule import Point, Schedule

Scenario = Callable[[Explorer], None]

# The runs that failed in this process, newest last: what a report of a failed test shows.
REPORTED_MAX: Final = 3


class DoesNotReturn(XenpvError):  # noqa: N818 - it says what happened
    """The wall clock over an example ran out: where, in words."""


@attrs.frozen(eq=False)
class Run:
    """What one run did.

    `taken` are the steps of the schedule that did something, `words` each of them in words;
    `points` the decisions it met. `failure` is what the scenario raised, None if it passed;
    `tail`, `tables` and `store` (last events, ring entries, store nodes as lines) are kept of
    failed runs only. `packets` is a pcapng file of what crossed the bridges, if somebody looked.
    """

    taken: Schedule
    words: tuple[str, ...]
    points: list[Point]
    digest: str
    failure: Exception | None = None
    tail: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    store: tuple[str, ...] = ()
    packets: bytes = b""
    fetched: tuple[DoubleFetch, ...] = ()

    @property
    def failed(self) -> bool:
        return self.failure is not None

    @property
    def failure_text(self) -> str:
        """`CheckFailed: ...`, and where an assertion without words stands."""
        error = self.failure
        if error is None:
            return ""
        text = str(error)
        if not text and error.__traceback__ is not None:
            last = extract_tb(error.__traceback__)[-1]
            text = f"{last.name}: {last.line}"
        return f"{type(error).__name__}: {text}".rstrip(": ")

    def fails_as(self, other: Run) -> bool:
        """Whether both failed with the same kind of exception, at the same law if it is one."""
        if self.failure is None or other.failure is None:
            return False
        return type(self.failure) is type(other.failure)


def _failure(error: BaseException) -> Exception | None:
    """What a scenario raised, if it is a failure of it. Neither pytest nor Hypothesis is
    imported here: whoever raised such has it.
    """
    kind = type(error)
    # pytest's outcomes say that they are of builtins, and are no Exceptions.
    if kind.__name__ == "Failed" and not isinstance(error, Exception):
        failed = AssertionError(str(error))
        failed.__cause__ = error
        return failed
    if isinstance(error, Stuck):
        return DoesNotReturn(str(error))
    if kind.__module__ == "hypothesis.errors" or not isinstance(error, Exception):
        return None
    return error


def run_schedule(
    scenario: Scenario,
    schedule: Schedule = Schedule(),  # noqa: B008 - frozen
    *,
    sites: bool = False,
) -> Run:
    """Run `scenario` once. What it raises is the run's failure, `pytest.fail` included; what
    says something else than that (KeyboardInterrupt, `pytest.skip`, Hypothesis' own) is raised.
    `sites`: keep which lines fetch what, for the report of a double fetch.
    """
    explorer = Explorer(schedule, sites=sites)
    failure: Exception | None = None
    try:
        try:
            scenario(explorer)
        except BaseException as error:
            failure = _failure(error)
            if failure is None:
                raise
        explorer.stop()
        tail: tuple[str, ...] = ()
        tables: tuple[str, ...] = ()
        store: tuple[str, ...] = ()
        if failure is not None:
            tail, tables = tuple(explorer.tail()), tuple(explorer.tables())
            store = tuple(explorer.stores())
        return Run(
            taken=Schedule(tuple(explorer.taken)),
            words=tuple(explorer.words),
            points=explorer.points,
            digest=explorer.digest(),
            failure=failure,
            tail=tail,
            tables=tables,
            store=store,
            fetched=tuple(explorer.fetched),
        )
    finally:
        explorer.close()


def located(scenario: Scenario, run: Run) -> Run:
    """A failed run; if something was fetched twice, once more, to tell the lines that did."""
    if not run.fetched:
        return run
    again = run_schedule(scenario, run.taken, sites=True)
    return again if again.fails_as(run) else run
