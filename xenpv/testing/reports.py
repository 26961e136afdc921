"""What is told of a failed run: to the pytest plugin, to `xenpv replay`, to people."""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from xenpv.view.rings import rings_of

if TYPE_CHECKING:
    from pathlib import Path

    from xenpv.platform import Platform
    from xenpv.testing.run import Run

REMEMBERED_MAX: Final = 3
TABLE_LINES_MAX: Final = 40
TAIL_LINES: Final = 20
_TASK: Final = re.compile(r"task (\d+)")


class Failure(Protocol):
    """What failed: a schedule of a scenario, a case, the bytes of an overlay."""

    def section(self, directory: Path) -> list[str]:
        """Lines for pytest's report; a replay file of it goes into `directory`."""


# The newest failures of this process: the plugin's failure section shows them.
_failed: deque[Failure] = deque(maxlen=REMEMBERED_MAX)


def remember(failure: Failure) -> None:
    """A failure was found; one that tells of the same run takes the place of the one before."""
    run = getattr(failure, "run", None)
    if _failed and run is not None and getattr(_failed[-1], "run", None) is run:
        _failed.pop()
    _failed.append(failure)


def forget() -> None:
    """A new test begins."""
    _failed.clear()


def failures() -> list[Failure]:
    """The newest failures, oldest first."""
    return list(_failed)


def steps(run: Run) -> list[str]:
    """The schedule, a step a line."""
    if not run.words:
        return ["no step is needed: the default schedule fails"]
    if not run.taken:  # what was run was no schedule
        return [f"  {number}. {words}" for number, words in enumerate(run.words, 1)]
    return [
        f"  {number}. at decision {step.at}: {words}"
        for number, (step, words) in enumerate(zip(run.taken.steps, run.words, strict=True), 1)
    ]


def artefacts(path: Path) -> list[str]:
    """What stands beside a replay file: `trace: found/blk_requests-12345678.trace`."""
    beside = [path.with_suffix(suffix) for suffix in (".trace", ".store", ".pcapng")]
    return [f"{one.suffix[1:]}: {one}" for one in beside if one.exists()]


def shown(run: Run, path: Path | None) -> list[str]:
    """What a failed run showed: last events, ring entries, and the files beside its replay's."""
    lines = ["last events:", *(f"  {line}" for line in run.tail)]
    lines += ["rings:", *(f"  {line}" for line in run.tables[:TABLE_LINES_MAX])]
    if len(run.tables) > TABLE_LINES_MAX:
        lines.append(f"  and {len(run.tables) - TABLE_LINES_MAX} lines more")
    if path is not None:
        lines += artefacts(path)
    return lines


# of a platform that is not closed


def tail(platform: Platform) -> list[str]:
    """The last events, oldest first, with tasks by their names."""
    names = {
        task.number: task.name
        for domain in platform.hypervisor.domains.values()
        for task in domain.tasks
    }

    def named(found: re.Match[str]) -> str:
        return names.get(int(found[1]), found[0])

    return [_TASK.sub(named, line) for line in platform.loop.trace.tail(TAIL_LINES)]


def tables(platform: Platform) -> list[str]:
    """Every ring, its entries decoded."""
    return [line for ring in rings_of(platform) for line in ring.table()]


def store(platform: Platform) -> list[str]:
    """Every node of the store, by path: `/local/domain/1/name = 'guest'`."""
    nodes = platform.xenstored.tree.nodes
    return [
        f"{path.decode(errors='backslashreplace')} = "
        f"{nodes[path].value.decode(errors='backslashreplace')!r}"
        for path in sorted(nodes)
    ]
