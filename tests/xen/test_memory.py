from __future__ import annotations

import gc
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.xen.conftest import NR_FRAMES, domain
from xenpv.abi._kernel import ffi, lib
from xenpv.errors import HypercallError, LocalProtocolError
from xenpv.xen import arena as arenas
from xenpv.xen.domain import PAGE_SIZE, RAM_FIRST_PFN, Domain
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop
from xenpv.xen.memory import PagePool


def test_fresh_pages_read_zero_and_keep_what_is_written(guest: Domain) -> None:
    pfn = guest.pages.alloc(2)
    assert guest.read(pfn, 0, 2 * PAGE_SIZE) == bytes(2 * PAGE_SIZE)
    guest.write(pfn, PAGE_SIZE - 3, b"across")
    assert guest.read(pfn, PAGE_SIZE - 3, 6) == b"across"
    assert guest.read(pfn + 1, 0, 3) == b"oss"


def test_a_frame_is_taken_at_the_first_touch_only(hypervisor: Hypervisor, guest: Domain) -> None:
    before = lib.machine_used_frames(hypervisor.machine)
    pfn = guest.pages.alloc(100)
    assert lib.machine_used_frames(hypervisor.machine) == before
    guest.read(pfn, 0, 1)
    assert lib.machine_used_frames(hypervisor.machine) == before + 1


def test_no_page_is_efault(guest: Domain) -> None:
    with pytest.raises(HypercallError, match=r"^EFAULT: read of 1 bytes at pfn 0x5+"):
        guest.read(0x5, 0, 1)
    with pytest.raises(HypercallError, match="EFAULT"):
        guest.write(RAM_FIRST_PFN + 255, PAGE_SIZE - 1, b"ab")


def test_populate_gives_a_short_count_at_max_pages(guest: Domain) -> None:
    assert lib.domain_populate(guest.kernel, 0x4000, 1000) == 512 - 256
    assert lib.domain_populate(guest.kernel, 0x5000, 1) == 0


def test_decrease_reservation_scrubs_and_stops_at_a_hole(
    hypervisor: Hypervisor, guest: Domain
) -> None:
    pfn = guest.pages.alloc(4) + 1
    guest.write(pfn, 0, b"secret")
    frame = lib.p2m_lookup(guest.kernel, pfn, 0)
    free = lib.machine_free_pages(hypervisor.machine)
    assert guest.memory.decrease_reservation(guest.DOMID_SELF, [pfn, pfn + 1]) == 2
    assert lib.machine_free_pages(hypervisor.machine) == free + 2
    assert guest.memory.decrease_reservation(guest.DOMID_SELF, [pfn - 1, pfn, pfn + 1]) == 1
    with pytest.raises(HypercallError, match="EFAULT"):
        guest.read(pfn, 0, 1)
    at = frame * PAGE_SIZE
    assert hypervisor.arena.views[at : at + PAGE_SIZE] == bytes(PAGE_SIZE)
    assert lib.frame_refs(hypervisor.machine, frame) == 0


def test_a_held_page_outlives_decrease_reservation(hypervisor: Hypervisor, guest: Domain) -> None:
    pfn = guest.pages.alloc()
    guest.write(pfn, 0, b"vcpu_info")
    frame = lib.p2m_lookup(guest.kernel, pfn, 0)
    free = lib.machine_free_pages(hypervisor.machine)
    pages = lib.domain_tot_pages(guest.kernel)
    page = lib.page_hold(guest.kernel, pfn)
    assert guest.memory.decrease_reservation(guest.DOMID_SELF, [pfn]) == 1
    assert bytes(ffi.buffer(page, 9)) == b"vcpu_info"
    assert lib.machine_free_pages(hypervisor.machine) == free
    assert lib.domain_tot_pages(guest.kernel) == pages
    lib.page_drop(guest.kernel, page)
    assert lib.frame_refs(hypervisor.machine, frame) == 0
    assert lib.machine_free_pages(hypervisor.machine) == free + 1
    assert lib.domain_tot_pages(guest.kernel) == pages - 1
    assert lib.page_hold(guest.kernel, pfn) == ffi.NULL
    assert lib.page_hold(guest.kernel, 0xFFFFFFFF) == ffi.NULL


def test_a_mapped_page_counts_until_its_last_map_goes(
    hypervisor: Hypervisor, dom0: Domain, guest: Domain
) -> None:
    pfn = guest.pages.alloc()
    assert lib.grant_entry_set(guest.kernel, 9, 0, pfn, 1) == 0
    here = dom0.holes.alloc()
    handle = dom0.gnttab.map(guest.domid, 9, here)
    dom0.write(here, 0, b"in flight")
    free = lib.machine_free_pages(hypervisor.machine)
    assert guest.memory.decrease_reservation(guest.DOMID_SELF, [pfn]) == 1
    assert dom0.read(here, 0, 9) == b"in flight"
    assert lib.machine_free_pages(hypervisor.machine) == free
    dom0.gnttab.unmap(handle, here)
    assert lib.machine_free_pages(hypervisor.machine) == free + 1


def test_a_dead_domain_keeps_only_the_frames_that_others_hold(
    hypervisor: Hypervisor, dom0: Domain, guest: Domain
) -> None:
    pfn = guest.pages.alloc(2)
    guest.write(pfn, 0, b"kept")
    guest.write(pfn + 1, 0, b"freed")
    assert lib.grant_entry_set(guest.kernel, 9, 0, pfn, 1) == 0
    here = dom0.holes.alloc()
    handle = dom0.gnttab.map(guest.domid, 9, here)
    free = lib.machine_free_pages(hypervisor.machine)
    hypervisor.destroy_domain(guest)
    assert lib.domain_shared_frames(guest.kernel) == 1
    assert lib.machine_free_pages(hypervisor.machine) == free + 256 - 1
    assert dom0.read(here, 0, 4) == b"kept"
    dom0.gnttab.unmap(handle, here)
    assert lib.domain_shared_frames(guest.kernel) == 0
    assert hypervisor.dead == []


def test_domains_see_no_page_of_each_other(hypervisor: Hypervisor, guest: Domain) -> None:
    other = domain(hypervisor)
    guest.write(RAM_FIRST_PFN, 0, b"mine")
    assert other.read(RAM_FIRST_PFN, 0, 4) == bytes(4)


def test_every_frame_comes_back_when_a_domain_dies(hypervisor: Hypervisor, dom0: Domain) -> None:
    free = lib.machine_free_pages(hypervisor.machine)
    used = lib.machine_used_frames(hypervisor.machine)
    guest = domain(hypervisor)
    guest.write(guest.pages.alloc(8), 0, bytes(8 * PAGE_SIZE))
    guest.gnttab.grow(3)
    hypervisor.destroy_domain(guest)
    assert lib.machine_free_pages(hypervisor.machine) == free
    assert lib.machine_used_frames(hypervisor.machine) == used


def test_a_pooled_arena_is_clean_and_gives_the_same_frames(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(arenas, "_idle", [])  # others of this process may fill it
    first = Hypervisor(Loop(), nr_frames=NR_FRAMES)
    one = domain(first)
    one.write(RAM_FIRST_PFN, 0, b"left behind")
    frame = lib.p2m_lookup(one.kernel, RAM_FIRST_PFN, 0)
    arena = first.arena
    assert first.close()
    second = Hypervisor(Loop(), nr_frames=NR_FRAMES)
    assert second.arena is arena
    two = domain(second)
    assert two.read(RAM_FIRST_PFN, 0, 11) == bytes(11)
    assert lib.p2m_lookup(two.kernel, RAM_FIRST_PFN, 0) == frame
    second.close()


def test_an_arena_with_a_live_view_is_not_used_again() -> None:
    made = Hypervisor(Loop(), nr_frames=NR_FRAMES)
    view = domain(made).view(RAM_FIRST_PFN)[10:20]
    view[0] = 7
    arena = made.arena
    assert not made.close()
    again = Hypervisor(Loop(), nr_frames=NR_FRAMES)
    assert again.arena is not arena
    again.close()
    del view
    gc.collect()


def test_handles_of_a_dead_domain_answer_efault(hypervisor: Hypervisor, guest: Domain) -> None:
    ring = guest.ring([guest.pages.alloc()], 112, 16)
    hypervisor.destroy_domain(guest)
    assert lib.ring_init(ring) == -14
    with pytest.raises(HypercallError, match="EFAULT"):
        guest.read(RAM_FIRST_PFN, 0, 1)


def test_a_forked_child_is_told_instead_of_writing_into_its_parent(guest: Domain) -> None:
    guest.write(RAM_FIRST_PFN, 0, b"parent")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        try:
            guest.write(RAM_FIRST_PFN, 0, b"child!")
            answer = b"wrote"
        except LocalProtocolError as error:
            answer = str(error).encode()
        except BaseException as error:
            answer = repr(error).encode()
        os.write(writer, answer)
        os._exit(0)
    os.close(writer)
    answer = os.read(reader, 1000)
    os.close(reader)
    os.waitpid(child, 0)
    assert answer == b"this platform belongs to the parent process: make one after the fork"
    assert guest.read(RAM_FIRST_PFN, 0, 6) == b"parent"


def test_a_read_only_grant_is_a_read_only_view(dom0: Domain, guest: Domain) -> None:
    pfn = guest.pages.alloc()
    guest.write(pfn, 0, b"look")
    assert lib.grant_entry_set(guest.kernel, 9, 0, pfn, 1 | 4) == 0
    here = dom0.holes.alloc()
    handle = dom0.gnttab.map(guest.domid, 9, here, readonly=True)
    view = dom0.view(here)
    assert bytes(view[:4]) == b"look"
    with pytest.raises(TypeError, match="read-only"):
        view[0] = 1
    with pytest.raises(HypercallError, match="EFAULT"):
        dom0.write(here, 0, b"x")
    del view
    dom0.gnttab.unmap(handle, here)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 4)), max_size=60))
def test_page_pool_never_gives_a_page_twice(steps: list[tuple[bool, int]]) -> None:
    pool = PagePool(10, 100)
    out: dict[int, int] = {}
    for take, count in steps:
        if take:
            try:
                pfn = pool.alloc(count)
            except HypercallError as error:
                assert error.name == "ENOMEM"
                continue
            pages = set(range(pfn, pfn + count))
            assert all(pages.isdisjoint(range(p, p + n)) for p, n in out.items())
            assert min(pages) >= 10
            assert max(pages) < 100
            out[pfn] = count
        elif out:
            pfn, count = out.popitem()
            pool.free(pfn, count)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12)), max_size=30))
def test_pages_in_one_go_are_those_of_as_many_single_ones(steps: list[tuple[bool, int]]) -> None:
    pools = PagePool(10, 40), PagePool(10, 40)
    held: list[int] = []
    for take, count in steps:
        if not take:
            for pfn in [held.pop() for _ in range(min(count, len(held)))]:
                for pool in pools:
                    pool.free(pfn)
            continue
        singles: list[int] = []
        try:
            for _ in range(count):
                singles.append(pools[0].alloc())
        except HypercallError as error:
            assert error.name == "ENOMEM"
        if singles:
            assert pools[1].alloc_pages(count) == singles
        else:
            with pytest.raises(HypercallError, match="^ENOMEM"):
                pools[1].alloc_pages(count)
        held += singles
