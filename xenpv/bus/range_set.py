"""XenBus' RANGE_SET interface: sets of 64-bit integers, kept as ranges (win-xenbus range_set.c)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, NoReturn

from xenpv.bus.interface import Interface
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.errors import LocalProtocolError

LONGLONG_MIN: Final = -(1 << 63)
LONGLONG_MAX: Final = (1 << 63) - 1


class RangeSet:
    """A set, as `create` makes it. Range i is starts[i] to ends[i], both in it; they ascend.

    No two ranges touch. `cursor` is the index of the range last looked at, for dumps.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.cursor = 0
        self.alive = True

    def __repr__(self) -> str:
        return f"<RangeSet {self.name}>"

    def ranges(self) -> list[tuple[int, int]]:
        """(first, last) of each range, ascending."""
        return list(zip(self.starts, self.ends, strict=True))


class RangeSetInterface(Interface):
    """RANGE_SET of one guest."""

    NAME = "RANGE_SET"
    GUID = "EE7E78A2-6847-48C5-B123-BB012F0EABF4"
    OPERATIONS: ClassVar[Mapping[int, Sequence[str]]] = {
        1: ("create", "put", "pop", "get", "destroy")
    }

    def __init__(self) -> None:
        self.sets: list[RangeSet] = []

    def create(self, name: str) -> RangeSet:
        made = RangeSet(name)
        self.sets.append(made)
        return made

    def put(self, range_set: RangeSet, start: int, count: int) -> None:
        """Add `count` numbers from `start`; INVALID_PARAMETER for none.

        LocalProtocolError if one of them is in the set, or is no signed 64-bit number.
        """
        last = _last(range_set, start, count)
        starts, ends = range_set.starts, range_set.ends
        at = bisect_right(starts, start)  # of the first range above
        if (at and ends[at - 1] >= start) or (at < len(starts) and starts[at] <= last):
            _broken(range_set, f"{start} to {last} is put, some of it is there")
        below = bool(at) and ends[at - 1] == start - 1
        above = at < len(starts) and starts[at] == last + 1
        if below and above:
            ends[at - 1] = ends.pop(at)
            del starts[at]
        elif below:
            ends[at - 1] = last
        elif above:
            starts[at] = start
        else:
            starts.insert(at, start)
            ends.insert(at, last)
        range_set.cursor = at - 1 if below else at

    def pop(self, range_set: RangeSet, count: int) -> int:
        """Take `count` adjacent numbers out, the lowest there are; the first of them.

        INVALID_PARAMETER for none, INSUFFICIENT_RESOURCES without such a run.
        """
        _live(range_set)
        _counted(range_set, count)
        for at, (start, end) in enumerate(zip(range_set.starts, range_set.ends, strict=True)):
            if end - start + 1 >= count:
                self._cut(range_set, at, start, start + count - 1)
                return start
        raise NtStatusError(
            NTSTATUS.INSUFFICIENT_RESOURCES,
            f"{range_set.name}: no run of {count}",
            operation="RANGE_SET pop",
        )

    def get(self, range_set: RangeSet, start: int, count: int) -> None:
        """Take these numbers out, which may split a range; INVALID_PARAMETER for none.

        LocalProtocolError if one of them is not in the set.
        """
        last = _last(range_set, start, count)
        at = bisect_right(range_set.starts, start) - 1
        if at < 0 or range_set.ends[at] < last:
            _broken(range_set, f"{start} to {last} is got, not all of it is there")
        self._cut(range_set, at, start, last)

    def destroy(self, range_set: RangeSet) -> None:
        """LocalProtocolError unless it is empty; it stays then."""
        _live(range_set)
        if range_set.starts:
            _broken(range_set, f"it is destroyed with {len(range_set.starts)} ranges")
        range_set.alive = False
        self.sets.remove(range_set)

    def leftovers(self) -> list[str]:
        return [f"range set {one.name}" for one in self.sets]

    @staticmethod
    def _cut(range_set: RangeSet, at: int, start: int, last: int) -> None:
        """Take [start, last] out of range `at`, which has it."""
        starts, ends = range_set.starts, range_set.ends
        first, end = starts[at], ends[at]
        range_set.cursor = at
        if start == first and last == end:
            del starts[at], ends[at]
        elif start == first:
            starts[at] = last + 1
        else:
            ends[at] = start - 1
            if last < end:
                starts.insert(at + 1, last + 1)
                ends.insert(at + 1, end)


def _live(range_set: RangeSet) -> None:
    if not range_set.alive:
        _broken(range_set, "it is destroyed")


def _counted(range_set: RangeSet, count: int) -> None:
    if count < 1:
        reason = f"{range_set.name}: a count of {count}"
        raise NtStatusError(NTSTATUS.INVALID_PARAMETER, reason, operation="RANGE_SET")


def _last(range_set: RangeSet, start: int, count: int) -> int:
    """The last of `count` numbers from `start`."""
    _live(range_set)
    _counted(range_set, count)
    last = start + count - 1
    if not LONGLONG_MIN <= start <= last <= LONGLONG_MAX:
        _broken(range_set, f"{count} numbers from {start} are not of 64 bits")
    return last


def _broken(range_set: RangeSet, reason: str) -> NoReturn:
    """What the driver asserts."""
    raise LocalProtocolError(f"RANGE_SET {range_set.name}: {reason}")
