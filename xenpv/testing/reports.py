"""What is told of a failed run: to the pytest plugin, to `xenpv replay`, to people."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from xenpv.testing.exploration import Result
    from xenpv.testing.run import Run

REMEMBERED_MAX: Final = 3
TABLE_LINES_MAX: Final = 40

# The newest failures of this process: the plugin's failure section shows them.
_failed: deque[Result] = deque(maxlen=REMEMBERED_MAX)


def remember(result: Result) -> None:
    """A failure was found; a second call with the same run takes the place of the first."""
    if _failed and _failed[-1].run is result.run:
        _failed.pop()
    _failed.append(result)


def forget() -> None:
    """A new test begins."""
    _failed.clear()


def failures() -> list[Result]:
    """The newest failures, oldest first."""
    return list(_failed)


def steps(run: Run) -> list[str]:
    """The schedule, a step a line."""
    if not run.words:
        return ["no step is needed: the default schedule fails"]
    return [
        f"  {number}. at decision {step.at}: {words}"
        for number, (step, words) in enumerate(zip(run.taken.steps, run.words, strict=True), 1)
    ]


def section(result: Result) -> list[str]:
    """All of a failure: schedule, last events, ring entries, paths."""
    run = result.run
    assert run is not None, "only failures are reported"
    lines = [*result.lines(), "last events:", *(f"  {line}" for line in run.tail)]
    lines += ["rings:", *(f"  {line}" for line in run.tables[:TABLE_LINES_MAX])]
    if len(run.tables) > TABLE_LINES_MAX:
        lines.append(f"  and {len(run.tables) - TABLE_LINES_MAX} lines more")
    if result.path is not None:
        for suffix in (".trace", ".store"):
            lines.append(f"{suffix[1:]}: {result.path.with_suffix(suffix)}")
    return lines
