"""XenBus' BALLOON interface: pages of the guest that Xen has back (win-xenbus balloon.c).

An adjustment goes in chunks of 8192 pages, each a whole step: the pages are taken from the
guest's memory manager and given to Xen, or the other way. What is ballooned is kept as a
range set of pfns, so the guest gets the lowest back first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Final

from xenpv.bus.interface import Interface
from xenpv.bus.mm import Mm
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.range_set import RangeSet, RangeSetInterface
from xenpv.bus.store import StoreInterface
from xenpv.errors import StoreError
from xenpv.xen.domain import Domain
from xenpv.xen.loop import NS_PER_MS

CHUNK_PAGES: Final = 8192
MIN_PAGES_PER_S: Final = 1000
INFLATION_KEY: Final = "FIST/balloon/inflation"
DEFLATION_KEY: Final = "FIST/balloon/deflation"
U64_MAX: Final = (1 << 64) - 1


def strtoull(text: str, base: int) -> int:
    """C's: blanks, a sign, digits as far as they go; 0 without any, 2^64 - 1 at most.

    A minus negates within 64 bits, as C has it.
    """
    text = text.lstrip(" \t\n\v\f\r")
    negative = text.startswith("-")
    value = 0
    for digit in text[1:] if text[:1] in ("+", "-") else text:
        if not "0" <= digit < chr(ord("0") + base):
            break
        value = value * base + int(digit)
        if value > U64_MAX:
            return U64_MAX
    return -value & U64_MAX if negative else value


class BalloonInterface(Interface):
    """BALLOON of one guest. `size` counts the pages in it; `mm` is where they come from."""

    NAME = "BALLOON"
    GUID = "D92AA810-BECB-4BD5-A3DA-BD03C135A297"
    OPERATIONS: ClassVar[Mapping[int, Sequence[str]]] = {1: ("adjust", "get_size")}

    def __init__(self, domain: Domain, store: StoreInterface, range_set: RangeSetInterface) -> None:
        self.domain = domain
        self.mm = Mm(domain)
        self.size = 0
        self.target = 0  # pages, of the latest adjustment
        self.is_active = False  # as its thread says: no suspend now
        self.took_ns = 0  # virtual time that the last chunk took, which its caller lets pass
        self._store = store
        self._range_set = range_set
        self._pfns: RangeSet | None = None
        self._fresh = False  # of an adjustment under way: its first chunk's checks are to come
        self._inflation_fault = self._deflation_fault = False

    def _start(self) -> None:
        self._range_set.acquire()
        if self._pfns is None:
            self._pfns = self._range_set.create("balloon")

    def _stop(self) -> None:
        if self._pfns is not None and not self.size:
            self._range_set.destroy(self._pfns)
            self._pfns = None
        self._range_set.release()

    def leftovers(self) -> list[str]:
        return [f"a balloon of {self.size} pages"] if self.size else []

    def get_size(self) -> int:
        """Pages in the balloon."""
        return self.size

    def adjust(self, pages: int) -> None:
        """Make the balloon that large. What was done before a failure stays done.

        UNSUCCESSFUL by a fault key, NO_MEMORY while the guest is low on memory, RETRY where
        pages came slowly, or fewer than asked.
        """
        self.begin(pages)
        status = self.step()
        while status is None:
            status = self.step()
        if status is not NTSTATUS.SUCCESS:
            reason = f"at {self.size} pages of {pages}"
            raise NtStatusError(status, reason, operation="BALLOON adjust")

    def begin(self, pages: int) -> None:
        """Start an adjustment, of which each `step` is a chunk. Reads the fault keys."""
        self.target = max(0, pages)
        self._fresh = True
        self._inflation_fault = self._fault(INFLATION_KEY)
        self._deflation_fault = self._fault(DEFLATION_KEY)

    def step(self) -> NTSTATUS | None:
        """One chunk; None while more are to come, else how the adjustment ended."""
        fresh, self._fresh = self._fresh, False
        self.took_ns = 0
        if self.target > self.size:
            if self._inflation_fault:
                return NTSTATUS.UNSUCCESSFUL
            if fresh and self.mm.low_memory:
                return NTSTATUS.NO_MEMORY
            return self._ended(self._inflate(min(self.target - self.size, CHUNK_PAGES)))
        if self.target < self.size:
            if self._deflation_fault:
                return NTSTATUS.UNSUCCESSFUL
            return self._ended(self._deflate(min(self.size - self.target, CHUNK_PAGES)))
        return NTSTATUS.SUCCESS

    def _ended(self, going: bool) -> NTSTATUS | None:
        if not going:
            return NTSTATUS.RETRY
        return NTSTATUS.SUCCESS if self.size == self.target else None

    def _fault(self, key: str) -> bool:
        try:
            return strtoull(self._store.read(key), 2) != 0
        except StoreError:
            return False

    def _inflate(self, count: int) -> bool:
        """False: it came short or slowly, and the adjustment stops."""
        assert self._pfns is not None
        put, get = self._range_set.put, self._range_set.get
        pfns = self.mm.allocate(count)
        self.took_ns = len(pfns) * self.mm.ns_per_page
        going = len(pfns) == count and not self._slow(count)
        if not pfns:
            return False
        for start, length in _runs(pfns):
            put(self._pfns, start, length)
        memory = self.domain.memory
        released = memory.decrease_reservation(self.domain.DOMID_SELF, pfns)
        if released < len(pfns):
            left = pfns[released:]
            for start, length in _runs(left):
                get(self._pfns, start, length)
            self.mm.free(left)
        self.size += released
        return going and released > 0

    def _slow(self, count: int) -> bool:
        """Whether the chunk took too long to allocate; the driver's clock ticks in ms."""
        ms = max(1, self.took_ns // NS_PER_MS)
        return count * 1000 // ms < MIN_PAGES_PER_S

    def _deflate(self, count: int) -> bool:
        """False: Xen gave fewer pages than asked, and the adjustment stops."""
        assert self._pfns is not None
        pfns: list[int] = []
        while len(pfns) < count:
            first, last = self._pfns.ranges()[0]
            length = min(last - first + 1, count - len(pfns))
            self._range_set.get(self._pfns, first, length)
            pfns += range(first, first + length)
        memory = self.domain.memory
        populated = memory.populate_physmap(self.domain.DOMID_SELF, list(pfns))
        for start, length in _runs(pfns[populated:]):
            self._range_set.put(self._pfns, start, length)
        self.mm.free(pfns[:populated])
        self.size -= populated
        return populated == count


def _runs(pfns: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of the runs of adjacent pfns, which ascend."""
    at = 0
    while at < len(pfns):
        stop = at + 1
        while stop < len(pfns) and pfns[stop] == pfns[stop - 1] + 1:
            stop += 1
        yield pfns[at], stop - at
        at = stop
