"""BALLOON: adjustments by their situations, chunks, and pages that are neither lost nor made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.world import World, make
from xenpv.abi._kernel import lib
from xenpv.bus.balloon import BalloonInterface, strtoull
from xenpv.bus.hole import Holes
from xenpv.bus.interface import InterfaceVersion, query_interface
from xenpv.bus.ntstatus import NtStatusError
from xenpv.bus.range_set import RangeSetInterface
from xenpv.errors import HypercallError, LocalProtocolError, StoreError
from xenpv.xen.domain import Domain

GUID = "D92AA810-BECB-4BD5-A3DA-BD03C135A297"
OK = 0
UNSUCCESSFUL, NO_MEMORY, RETRY = 0xC000_0001, 0xC000_0017, 0xC000_022D
INFLATION, DEFLATION = "FIST/balloon/inflation", "FIST/balloon/deflation"
RAM = 20_000  # pages


class Keys(dict[str, str]):
    """A store that answers what it holds."""

    def read(self, path: str) -> str:
        if path not in self:
            raise StoreError("ENOENT", operation="READ", path=path)
        return self[path]


@attrs.define(eq=False)
class Scene:
    guest: Domain
    keys: Keys
    balloon: BalloonInterface
    ranges: RangeSetInterface
    version: InterfaceVersion
    chunks: list[int] = attrs.field(factory=list)

    @property
    def pages(self) -> tuple[int, int]:
        """What Xen counts, less the special pages; what is free in the guest."""
        return self.guest.tot_pages, self.guest.pages.free_pages


def scene(hypervisor: Any, pages: int = RAM) -> Scene:
    guest = hypervisor.create_domain(vcpus=1, max_pages=pages)
    guest.populate(pages)
    guest.unpause()
    keys, ranges = Keys(), RangeSetInterface()
    balloon = BalloonInterface(guest, keys, ranges)  # type: ignore[arg-type]  # all it asks is read
    version = query_interface([balloon], GUID, 1)
    version.acquire()
    made = Scene(guest, keys, balloon, ranges, version)
    decrease = guest.memory.decrease_reservation

    def counted(domid: int, gpfns: list[int]) -> int:
        made.chunks.append(len(gpfns))
        return decrease(domid, gpfns)

    guest.memory.decrease_reservation = counted
    return made


def status(call: Callable[[], Any]) -> int:
    try:
        call()
    except NtStatusError as error:
        return int(error.status)
    return OK


def _at(size: int) -> Callable[[Scene], None]:
    return lambda s: s.version.adjust(size)


def _keys(**values: str) -> Callable[[Scene], None]:
    return lambda s: s.keys.update({f"FIST/balloon/{key}": value for key, value in values.items()})


def _speed(ns: int) -> Callable[[Scene], None]:
    return lambda s: setattr(s.balloon.mm, "ns_per_page", ns)


def _free(pages: int) -> Callable[[Scene], None]:
    """Drivers leave the guest so many pages."""
    return lambda s: s.guest.pages.alloc(s.guest.pages.free_pages - pages)


def _releases(*counts: int) -> Callable[[Scene], None]:
    """Xen takes at most so many pages in the next calls."""

    def before(s: Scene) -> None:
        left = list(counts)
        decrease = s.guest.memory.decrease_reservation

        def limited(domid: int, gpfns: list[int]) -> int:
            most = left.pop(0) if left else len(gpfns)
            return decrease(domid, gpfns[:most]) if gpfns[:most] else 0

        s.guest.memory.decrease_reservation = limited

    return before


def _both(*steps: Callable[[Scene], None]) -> Callable[[Scene], None]:
    def before(s: Scene) -> None:
        for step in steps:
            step(s)

    return before


def _gives(pages: int) -> Callable[[Scene], None]:
    """Xen has so many pages for this domain."""
    return lambda s: s.guest.set_max_pages(s.guest.tot_pages + pages)


# name, before, the size asked for, the status, the size then
ROWS = [
    ("inflate", None, 100, OK, 100),
    ("inflate: one page", None, 1, OK, 1),
    ("inflate: over two chunks", None, 8193, OK, 8193),
    ("inflate: more than is free", None, RAM + 1, RETRY, RAM),
    ("inflate: all that is free", None, RAM, OK, RAM),
    ("inflate: drivers have most", _free(500), 501, RETRY, 500),
    ("inflate: the low memory event is set", _free(155), 1, NO_MEMORY, 0),
    ("inflate: it is just not set", _free(156), 1, OK, 1),
    ("inflate: it is set under way", _free(16_484), 16_434, OK, 16_434),
    ("inflate: 1000 pages a second", _speed(1_000_000), 9000, OK, 9000),
    ("inflate: 999 pages a second", _speed(1_001_000), 9000, RETRY, 8192),
    ("inflate: slowly, and then there", _speed(1_001_000), 8000, RETRY, 8000),
    ("inflate: a page in less than a ms", _speed(1_999_999), 1, OK, 1),
    ("inflate: a page in 2 ms", _speed(2_000_000), 1, RETRY, 1),
    ("inflate: Xen takes none", _releases(0), 100, RETRY, 0),
    ("inflate: Xen takes a part, then the rest", _releases(30), 100, OK, 100),
    ("inflate: Xen takes a part, then none", _releases(30, 0), 100, RETRY, 30),
    ("inflate: fault key", _keys(inflation="1"), 100, UNSUCCESSFUL, 0),
    ("inflate: fault key 0", _keys(inflation="0"), 100, OK, 100),
    ("inflate: fault key 10, base 2", _keys(inflation="10"), 100, UNSUCCESSFUL, 0),
    ("inflate: fault key 2, no digit of base 2", _keys(inflation="2"), 100, OK, 100),
    ("inflate: fault key 012", _keys(inflation="012"), 100, UNSUCCESSFUL, 0),
    ("inflate: fault key empty", _keys(inflation=""), 100, OK, 100),
    ("inflate: fault key -1", _keys(inflation="-1"), 100, UNSUCCESSFUL, 0),
    ("inflate: fault key garbage", _keys(inflation="yes"), 100, OK, 100),
    ("inflate: fault key of deflation", _keys(deflation="1"), 100, OK, 100),
    ("inflate: the fault key comes before low memory", _both(_free(1), _keys(inflation="1")), 100, UNSUCCESSFUL, 0),
    ("deflate", _at(100), 40, OK, 40),
    ("deflate: to nothing", _at(9000), 0, OK, 0),
    ("deflate: below nothing", _at(100), -5, OK, 0),
    ("deflate: Xen gives a part", _both(_at(100), _gives(25)), 0, RETRY, 75),
    ("deflate: Xen gives a part of the second chunk", _both(_at(9000), _gives(8200)), 0, RETRY, 800),
    ("deflate: Xen gives none", _both(_at(100), _gives(0)), 0, RETRY, 100),
    ("deflate: slowness is no matter", _both(_at(100), _speed(5_000_000)), 0, OK, 0),
    ("deflate: the low memory event is no matter", _both(_at(100), _free(1)), 0, OK, 0),
    ("deflate: fault key", _both(_at(100), _keys(deflation="1")), 0, UNSUCCESSFUL, 100),
    ("deflate: fault key of inflation", _both(_at(100), _keys(inflation="1")), 0, OK, 0),
    ("neither: fault keys", _both(_at(100), _keys(inflation="1", deflation="1")), 100, OK, 100),
    ("neither: low memory", _both(_at(100), _free(1)), 100, OK, 100),
]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "asked", "expected", "size"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_adjust(world: World, before: Any, asked: int, expected: int, size: int) -> None:
    s = scene(world.hypervisor)
    if before is not None:
        before(s)
    held = RAM - s.guest.pages.free_pages - s.version.get_size()
    assert status(lambda: s.version.adjust(asked)) == expected
    assert s.version.get_size() == size
    assert s.pages == (RAM - size, RAM - size - held)


def test_a_chunk_is_8192_pages(world: World) -> None:
    s = scene(world.hypervisor)
    s.version.adjust(20_000)
    assert s.chunks == [8192, 8192, 3616]


def test_the_lowest_pages_come_back_first(world: World) -> None:
    s = scene(world.hypervisor)
    s.version.adjust(1000)
    ((first, last),) = s.ranges.sets[0].ranges()
    s.version.adjust(900)
    assert s.ranges.sets[0].ranges() == [(first + 100, last)]
    kinds = [lib.p2m_type(s.guest.kernel, pfn) for pfn in (first + 99, first + 100)]
    assert kinds == [lib.P2M_RAM, lib.P2M_NONE]
    s.guest.write(first, 0, b"RAM")


def test_pages_that_xen_does_not_give_stay_in_the_balloon(world: World) -> None:
    s = scene(world.hypervisor)
    s.version.adjust(1000)
    ((first, last),) = s.ranges.sets[0].ranges()
    _gives(10)(s)
    assert status(lambda: s.version.adjust(0)) == RETRY
    assert s.ranges.sets[0].ranges() == [(first + 10, last)]


def test_a_balloon_at_the_last_release_is_told(world: World) -> None:
    s = scene(world.hypervisor)
    s.version.adjust(3)
    with pytest.raises(LocalProtocolError, match="a balloon of 3 pages|range set balloon"):
        s.version.release()
    with pytest.raises(LocalProtocolError, match="BALLOON adjust: it is not acquired"):
        s.version.adjust(0)


def test_the_last_release_of_an_empty_balloon_leaves_no_range_set(world: World) -> None:
    s = scene(world.hypervisor)
    s.version.adjust(3)
    s.version.adjust(0)
    s.version.release()
    assert s.ranges.sets == []
    assert s.ranges.references == 0


def test_the_structure_and_its_versions(world: World) -> None:
    s = scene(world.hypervisor)
    assert s.version.size == 64
    for version in (0, 2):
        with pytest.raises(NtStatusError, match="^NOT_SUPPORTED"):
            query_interface([s.balloon], GUID, version)


NUMBERS = [
    ("0", 10, 0), ("4096", 10, 4096), (" \t\n12", 10, 12), ("+7", 10, 7), ("-1", 10, (1 << 64) - 1),
    ("-0", 10, 0), ("12kB", 10, 12), ("0x10", 10, 0), ("", 10, 0), ("-", 10, 0), ("+-1", 10, 0),
    ("--1", 10, 0), ("1 2", 10, 1), ("18446744073709551615", 10, (1 << 64) - 1),
    ("18446744073709551616", 10, (1 << 64) - 1), ("9" * 40, 10, (1 << 64) - 1), ("٣", 10, 0),
    ("101", 2, 5), ("1021", 2, 2), ("2", 2, 0), ("0b1", 2, 0),
]  # fmt: skip


@pytest.mark.parametrize(("text", "base", "value"), NUMBERS)
def test_strtoull(text: str, base: int, value: int) -> None:
    assert strtoull(text, base) == value


class Conservation(RuleBasedStateMachine):
    """Every page is a driver's, in a hole, in the balloon, or free; Xen counts what is not out."""

    PAGES = 600

    def __init__(self) -> None:
        super().__init__()
        self.world = make()
        self.s = scene(self.world.hypervisor, self.PAGES)
        self.holes = Holes(self.s.guest)
        self.runs: list[tuple[int, int]] = []
        self.held: list[tuple[int, int]] = []  # holes
        self.limit = 0  # pages that Xen keeps from the guest

    def teardown(self) -> None:
        self.world.hypervisor.close()

    @rule(size=st.integers(0, 700))
    def adjust(self, size: int) -> None:
        before = self.s.balloon.size
        free = self.s.guest.pages.free_pages
        low = self.s.balloon.mm.low_memory
        room = self.s.guest.max_pages - self.s.guest.tot_pages
        answer = status(lambda: self.s.version.adjust(size))
        now = self.s.balloon.size
        if size > before and low:
            assert (answer, now) == (NO_MEMORY, before)
        elif size > before:
            assert now == min(size, before + free)
            assert answer == (OK if now == size else RETRY)
        else:
            assert now == max(size, before - max(0, room))
            assert answer == (OK if now == size else RETRY)

    @rule(count=st.integers(1, 60))
    def drivers_take(self, count: int) -> None:
        try:
            self.runs.append((self.s.guest.pages.alloc(count), count))
        except HypercallError:
            assert self.s.guest.pages.free_pages < self.PAGES

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def drivers_give(self, data: st.DataObject) -> None:
        pfn, count = self.runs.pop(data.draw(st.integers(0, len(self.runs) - 1)))
        self.s.guest.write(pfn, 0, b"used")
        self.s.guest.pages.free(pfn, count)

    @rule(count=st.integers(1, 5))
    def hole(self, count: int) -> None:
        try:
            self.held.append((self.holes.alloc(count), count))
        except HypercallError:
            assert self.s.guest.pages.free_pages < self.PAGES

    @precondition(lambda self: self.held and not self.limit)
    @rule()
    def no_hole(self) -> None:
        self.holes.free(*self.held.pop(0))

    @rule(limit=st.sampled_from([0, 0, 5, 50, 600]))
    def xen_limits(self, limit: int) -> None:
        self.limit = limit
        self.s.guest.set_max_pages(self.PAGES - limit)

    @rule(low=st.sampled_from([0, 4, 100]))
    def low_memory_means(self, low: int) -> None:
        self.s.balloon.mm.low_memory_pages = low

    @invariant()
    def no_page_is_lost_or_made(self) -> None:
        guest, size = self.s.guest, self.s.balloon.size
        holes = sum(count for _, count in self.held)
        driven = sum(count for _, count in self.runs)
        assert driven + holes + size + guest.pages.free_pages == self.PAGES
        assert guest.tot_pages == self.PAGES - size - holes
        out = [n for first, last in self.s.ranges.sets[0].ranges() for n in range(first, last + 1)]
        assert len(out) == size
        for pfn, count in self.runs:
            assert {lib.p2m_type(guest.kernel, n) for n in range(pfn, pfn + count)} == {lib.P2M_RAM}
        assert {lib.p2m_type(guest.kernel, n) for n in out} <= {lib.P2M_NONE}
        taken = [n for pfn, count in (*self.runs, *self.held) for n in range(pfn, pfn + count)]
        assert len({*taken, *out}) == len(taken) + size


Conservation.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestConservation = Conservation.TestCase
