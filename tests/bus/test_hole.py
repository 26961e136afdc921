"""Holes: RAM that went back to Xen, or room beside RAM; and the guest's pool of pages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.world import World
from xenpv.abi._kernel import lib
from xenpv.bus.gnttab import GnttabInterface
from xenpv.bus.hole import Holes
from xenpv.bus.mm import Mm
from xenpv.errors import HypercallError, LocalProtocolError
from xenpv.xen.memory import PagePool


def test_a_hole_of_ram_lowers_the_reservation_and_comes_back(world: World) -> None:
    guest = world.guest
    before, free = guest.tot_pages, guest.pages.free_pages
    holes = Holes(guest)
    pfn = holes.alloc(3)
    assert [lib.p2m_type(guest.kernel, page) for page in range(pfn, pfn + 3)] == [lib.P2M_NONE] * 3
    assert (guest.tot_pages, guest.pages.free_pages, holes.pages) == (before - 3, free - 3, 3)
    holes.free(pfn, 3)
    assert (guest.tot_pages, guest.pages.free_pages, holes.pages) == (before, free, 0)
    guest.write(pfn, 0, b"RAM again")


def test_a_hole_in_the_bar_costs_no_page(world: World) -> None:
    guest = world.guest
    before, free = guest.tot_pages, guest.pages.free_pages
    holes = Holes(guest, ram=False)
    pfn = holes.alloc(2)
    assert lib.p2m_type(guest.kernel, pfn) == lib.P2M_NONE
    assert (guest.tot_pages, guest.pages.free_pages) == (before, free)
    holes.free(pfn, 2)
    assert holes.alloc(2) == pfn


def test_no_hole_without_a_free_page(world: World) -> None:
    holes = Holes(world.guest)
    world.guest.pages.alloc_pages(5000)
    before = world.guest.tot_pages
    with pytest.raises(HypercallError, match="^ENOMEM"):
        holes.alloc()
    assert world.guest.tot_pages == before


def test_what_lies_where_ram_should_be_stays_and_the_rest_comes_back(world: World) -> None:
    guest = world.guest
    theirs = world.dom0.pages.alloc()
    lib.grant_entry_set(world.dom0.kernel, 8, 1, theirs, 1)
    pfn = guest.pages.alloc(3)
    guest.pages.free(pfn, 3)
    guest.gnttab.map(0, 8, pfn + 1)
    before, free = guest.tot_pages, guest.pages.free_pages
    holes = Holes(guest)
    with pytest.raises(HypercallError, match="^ENOMEM.*1 of 3 pages went"):
        holes.alloc(3)
    assert (guest.tot_pages, guest.pages.free_pages, holes.pages) == (before, free, 0)
    assert lib.p2m_type(guest.kernel, pfn) == lib.P2M_RAM


def test_a_page_that_does_not_come_back_is_a_bugcheck(world: World) -> None:
    told: list[str] = []
    holes = Holes(world.guest, bugcheck=told.append)
    pfn = holes.alloc(2)
    world.guest.set_max_pages(world.guest.tot_pages + 1)
    holes.free(pfn, 2)
    assert told == [f"1 of 2 pages at {pfn:#x} came back from a hole"]
    strict = Holes(world.guest)
    strict.pages = 1
    with pytest.raises(LocalProtocolError, match="0 of 1 pages"):
        strict.free(pfn + 1)


def test_every_grant_frame_and_foreign_page_is_a_hole(world: World) -> None:
    guest = world.guest
    before = guest.tot_pages
    gnttab = GnttabInterface(guest)
    assert guest.tot_pages == before - 1
    gnttab.reserve(2 * 512)
    assert guest.tot_pages == before - 3
    theirs = [world.dom0.pages.alloc() for _ in range(4)]
    for ref, pfn in enumerate(theirs, 8):
        lib.grant_entry_set(world.dom0.kernel, ref, 1, pfn, 1)
    gnttab.acquire()
    address = gnttab.map_foreign_pages(0, 4, [8, 9, 10, 11], False)
    assert guest.tot_pages == before - 7
    gnttab.unmap_foreign_pages(address)
    assert guest.tot_pages == before - 3


def test_low_memory_is_a_128th_of_ram_and_64_mib_at_most(world: World) -> None:
    mm = Mm(world.guest)
    assert mm.low_memory_pages == 8  # of 1024
    world.guest.pages.alloc_pages(1024 - 8)
    assert not mm.low_memory
    world.guest.pages.alloc()
    assert mm.low_memory
    world.guest.pages = PagePool(0, 16 << 18)
    assert Mm(world.guest).low_memory_pages == 16_384


POOL_STEPS = st.lists(
    st.tuples(st.sampled_from(["alloc", "pages", "take", "free", "give"]), st.integers(1, 80)),
    max_size=60,
)


@given(POOL_STEPS)
def test_a_pool_gives_every_page_to_one(steps: list[tuple[str, int]]) -> None:
    pool = PagePool(10, 60)
    pool.add(100, 20)
    everything = set(range(10, 60)) | set(range(100, 120))
    runs: list[list[int]] = []
    taken: list[list[int]] = []
    for step, count in steps:
        held = {page for run in (*runs, *taken) for page in run}
        got: list[int] = []
        if step in ("alloc", "pages"):
            try:
                if step == "alloc":
                    first = pool.alloc(count)
                    got = list(range(first, first + count))
                else:
                    got = pool.alloc_pages(count)
            except HypercallError:
                free = everything - held
                needed = count if step == "alloc" else 1
                assert not any(free.issuperset(range(n, n + needed)) for n in free)
            runs += [got] if step == "alloc" else [[page] for page in got]
        elif step == "take":
            got = pool.take(count)
            assert got == sorted(got)
            assert len(got) == min(count, len(everything - held))
            taken.append(got)
        elif step == "free" and runs:
            run = runs.pop(count % len(runs))
            if run:
                pool.free(run[0], len(run))
        elif step == "give" and taken:
            pool.give(taken.pop(count % len(taken)))
        assert held.isdisjoint(got)
        assert everything.issuperset(got)
        out: Any = [page for run in (*runs, *taken) for page in run]
        assert len(set(out)) == len(out)
        assert pool.free_pages == 70 - len(out)
    for run in runs:
        if run:
            pool.free(run[0], len(run))
    for pages in taken:
        pool.give(pages)
    # All of it is free again: one run of each region can be had.
    assert {pool.alloc(50), pool.alloc(20)} == {10, 100}


def test_a_balloon_takes_the_highest_pages_and_runs_can_still_be_had() -> None:
    pool = PagePool(10, 60)
    low = pool.alloc(4)
    assert pool.take(40) == list(range(20, 60))
    assert pool.alloc(6) == 14
    pool.give(list(range(20, 30)))
    assert pool.end == 30
    assert pool.alloc(10) == 20
    pool.free(low, 4)
    assert pool.take(100) == [10, 11, 12, 13]


def test_a_balloon_takes_what_is_fresh_again_once_neighbours_are_merged() -> None:
    pool = PagePool(10, 60)
    pool.free(pool.alloc(3), 3)
    assert pool.take(48) == list(range(12, 60))
