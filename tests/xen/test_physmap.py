"""What the reservation and the physmap cost, who keeps a dead domain, and Xen's test-resource."""

from __future__ import annotations

import struct

import pytest

from tests.xen.conftest import domain
from xenpv.abi._kernel import lib
from xenpv.errors import GrantError, HypercallError, LocalProtocolError
from xenpv.xen.domain import RAM_FIRST_PFN, Domain
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.physmap import DOMID_SELF, XENMAPSPACE_gmfn_foreign

LEAF = 512


def test_ten_thousand_balloon_rounds_leave_tables_and_frames_as_they_were(
    hypervisor: Hypervisor, guest: Domain
) -> None:
    """No step walks more than a leaf's entry, and leaves and frames do not grow in number."""
    memory = guest.memory
    seen = set()
    for step in range(10_000):
        first = RAM_FIRST_PFN + step * 7 % 250
        chunk = list(range(first, first + 6))
        assert memory.decrease_reservation(DOMID_SELF, chunk) == 6
        assert memory.populate_physmap(DOMID_SELF, chunk[::-1]) == 6
        guest.write(first, 0, b"touched")
        seen.add((lib.p2m_tables(guest.kernel), memory.current_reservation()))
    assert seen == {(1, 256)}
    assert lib.machine_high_water(hypervisor.machine) < 300


def test_every_other_page_ballooned_out_and_in_again(guest: Domain) -> None:
    """What made an extent per page before: 128 holes, ten times over."""
    for _ in range(10):
        odd = list(range(RAM_FIRST_PFN + 1, RAM_FIRST_PFN + 256, 2))
        assert guest.memory.decrease_reservation(DOMID_SELF, odd) == 128
        assert guest.memory.populate_physmap(DOMID_SELF, odd) == 128
    assert lib.p2m_tables(guest.kernel) == 1


def test_untouched_memory_takes_no_table_of_its_own(hypervisor: Hypervisor, dom0: Domain) -> None:
    big = domain(hypervisor, max_pages=40_000)
    assert (
        big.memory.populate_physmap(DOMID_SELF, [0x10000 + i * LEAF for i in range(64)], order=9)
        == 64
    )
    used = lib.machine_used_frames(hypervisor.machine)
    assert big.read(0x10000 + 5 * LEAF + 3, 0, 4) == bytes(4)
    assert lib.machine_used_frames(hypervisor.machine) == used + 1
    assert lib.p2m_tables(big.kernel) == 65
    assert big.memory.current_reservation() == 256 + 64 * LEAF


def test_a_table_is_freed_with_its_last_entry(guest: Domain) -> None:
    """A guest that walks its one page through the whole space keeps one table for it."""
    before = lib.p2m_tables(guest.kernel)
    for leaf in range(1000, 9000):
        assert guest.memory.populate_physmap(DOMID_SELF, [leaf * LEAF]) == 1
        assert lib.p2m_tables(guest.kernel) == before + 1
        assert guest.memory.decrease_reservation(DOMID_SELF, [leaf * LEAF]) == 1
    assert lib.p2m_tables(guest.kernel) == before


def test_pages_spread_over_the_space_end_at_the_limit_of_tables(
    hypervisor: Hypervisor, dom0: Domain
) -> None:
    """8 KiB of tables per MiB and a minimum, as xl sizes the paging pool that Xen takes them from."""
    guest = domain(hypervisor, max_pages=12_800)
    spread = [leaf * LEAF for leaf in range(10, 6000)]
    limit = 4096 + 12_800 // 128
    assert guest.memory.populate_physmap(DOMID_SELF, spread) == limit - 1
    assert lib.p2m_tables(guest.kernel) == limit
    pages = guest.memory.current_reservation()
    with pytest.raises(HypercallError, match="ENOMEM"):
        guest.memory.add_to_physmap(DOMID_SELF, 0, 0, 7000 * LEAF)
    assert guest.memory.populate_physmap(DOMID_SELF, [spread[0] + 1]) == 1
    assert guest.memory.current_reservation() == pages + 1


def test_a_foreign_page_keeps_its_dead_owner(
    hypervisor: Hypervisor, dom0: Domain, guest: Domain
) -> None:
    guest.write(RAM_FIRST_PFN, 0, b"last words")
    free = lib.machine_free_pages(hypervisor.machine)
    here = dom0.memory.map_foreign(guest.domid, RAM_FIRST_PFN)
    hypervisor.destroy_domain(guest)
    assert hypervisor.dead == [guest]
    assert lib.domain_shared_frames(guest.kernel) == 1
    assert lib.machine_free_pages(hypervisor.machine) == free + 255
    assert dom0.read(here, 0, 10) == b"last words"
    with pytest.raises(HypercallError, match="EEXIST"):
        hypervisor.create_domain(guest.domid, vcpus=1, max_pages=1)
    dom0.memory.unmap_foreign(here)
    assert hypervisor.dead == []
    assert hypervisor.create_domain(guest.domid, vcpus=1, max_pages=1).domid == guest.domid


def test_a_resource_keeps_its_dead_owner_until_the_mapper_dies(
    hypervisor: Hypervisor, dom0: Domain, guest: Domain
) -> None:
    stub = domain(hypervisor)
    stub.target = guest
    assert stub.memory.acquire_resource(guest.domid, 1, 0, nr_frames=2, gpfns=[0x900, 0x901]) == 2
    hypervisor.destroy_domain(guest)
    assert hypervisor.dead == [guest]
    assert lib.domain_shared_frames(guest.kernel) == 2
    hypervisor.destroy_domain(stub)
    assert hypervisor.dead == []


def test_one_foreign_page_replaced_by_another_lets_its_owner_go(
    hypervisor: Hypervisor, dom0: Domain, guest: Domain
) -> None:
    """shared_info is a page of Xen's: another page may take its place."""
    guest.memory.add_to_physmap(DOMID_SELF, 0, 0, 0x900)
    here = dom0.memory.map_foreign(guest.domid, 0x900)
    other = domain(hypervisor)
    hypervisor.destroy_domain(guest)
    assert hypervisor.dead == [guest]
    space = XENMAPSPACE_gmfn_foreign
    assert dom0.memory.add_to_physmap_batch(
        DOMID_SELF, space, [RAM_FIRST_PFN], [here], foreign_domid=other.domid
    ) == [0]
    assert hypervisor.dead == []


@pytest.mark.parametrize(
    ("who", "gfn", "name"),
    [("guest", 0x50, "EINVAL"), ("dom0", RAM_FIRST_PFN, "EPERM"), ("nobody", 0x100, "ESRCH")],
)
def test_a_foreign_map_that_fails_gives_its_pfn_back(
    dom0: Domain, guest: Domain, who: str, gfn: int, name: str
) -> None:
    domid = {"guest": guest.domid, "dom0": 0, "nobody": 99}[who]
    with pytest.raises(HypercallError) as caught:
        dom0.memory.map_foreign(domid, gfn)
    assert caught.value.name == name
    assert caught.value.arguments["foreign_domid"] == domid
    assert dom0.holes.alloc() == dom0.holes.start


def test_a_batch_of_unequal_lists_is_the_callers_mistake(guest: Domain) -> None:
    with pytest.raises(LocalProtocolError, match="2 indices and 1 pfns"):
        guest.memory.add_to_physmap_batch(DOMID_SELF, 2, [1, 2], [3])


def test_a_dead_domain_gives_back_what_was_at_no_pfn(hypervisor: Hypervisor, dom0: Domain) -> None:
    free = lib.machine_free_pages(hypervisor.machine)
    used = lib.machine_used_frames(hypervisor.machine)
    guest = domain(hypervisor)
    guest.write(RAM_FIRST_PFN, 0, b"touched")
    guest.memory.remove_from_physmap(DOMID_SELF, RAM_FIRST_PFN)
    guest.memory.remove_from_physmap(DOMID_SELF, RAM_FIRST_PFN + 1)
    guest.memory.increase_reservation(DOMID_SELF, 5)
    assert guest.memory.populate_physmap(DOMID_SELF, [RAM_FIRST_PFN + 2]) == 1
    dom0.memory.claim_pages(guest.domid, 512)
    hypervisor.destroy_domain(guest)
    assert lib.machine_free_pages(hypervisor.machine) == free
    assert lib.machine_used_frames(hypervisor.machine) == used
    assert (
        domain(hypervisor, max_pages=1 << 20).memory.increase_reservation(DOMID_SELF, 1 << 16)
        == free - 256 - 2
    )


@pytest.mark.parametrize("translated", [True, False], ids=["pvh", "pv"])
def test_resource(hypervisor: Hypervisor, dom0: Domain, translated: bool) -> None:
    """tools/tests/resource/test-resource.c: a grant table of 40 frames, acquired and used."""
    guest = domain(hypervisor, max_grant_frames=40, flags=3 if translated else 0)
    memory = dom0.memory
    assert memory.acquire_resource(guest.domid, 1, 0) == 40
    table = dom0.holes.alloc(40)
    gpfns = list(range(table, table + 40))
    assert memory.acquire_resource(guest.domid, 1, 0, nr_frames=40, gpfns=gpfns) == 40
    assert guest.gnttab.nr_frames == 40
    for frame in range(40):
        pfn = RAM_FIRST_PFN + frame
        guest.write(pfn, 0, bytes([frame]))
        dom0.write(table + frame, 8 * frame, struct.pack("<HHI", 1, 0, pfn))
    refs = [512 * frame + frame for frame in range(40)]
    here = dom0.holes.alloc(40)
    handles = [dom0.gnttab.map(guest.domid, ref, here + i) for i, ref in enumerate(refs)]
    assert [dom0.read(here + i, 0, 1)[0] for i in range(40)] == list(range(40))
    for i, handle in enumerate(handles):
        dom0.gnttab.unmap(handle, here + i)
    with pytest.raises(HypercallError, match="EINVAL"):
        memory.acquire_resource(guest.domid, 1, 1, nr_frames=1, gpfns=[dom0.holes.alloc()])
    with pytest.raises(HypercallError, match="EINVAL"):
        memory.acquire_resource(guest.domid, 3, 0)


def test_a_pv_caller_gets_frames_instead_of_pages(hypervisor: Hypervisor, guest: Domain) -> None:
    caller = domain(hypervisor, flags=0)
    caller.target = guest
    frames = [0, 0]
    assert caller.memory.acquire_resource(guest.domid, 1, 0, nr_frames=2, gpfns=frames) == 2
    assert [lib.frame_owner(hypervisor.machine, frame) for frame in frames] == [0x7FF2, 0x7FF2]
    mfns: list[int] = []
    assert caller.memory.increase_reservation(DOMID_SELF, 2, order=1, mfns=mfns) == 2
    assert [lib.frame_owner(hypervisor.machine, frame) for frame in mfns] == [caller.domid] * 2
    gpfns = [0x900, 0x901]
    assert caller.memory.populate_physmap(DOMID_SELF, gpfns) == 2
    assert gpfns == [lib.p2m_lookup(caller.kernel, pfn, 0) for pfn in (0x900, 0x901)]


def test_status_frames_of_version_2_are_placed_and_acquired(dom0: Domain, guest: Domain) -> None:
    guest.gnttab.set_version(2)
    status = 1 << 31
    guest.memory.add_to_physmap(DOMID_SELF, 1, status, 0x900)
    guest.memory.add_to_physmap(DOMID_SELF, 1, status | 7, 0x901)  # grows to 64 grant frames
    assert guest.gnttab.nr_frames == 64
    with pytest.raises(HypercallError, match="EINVAL"):
        guest.memory.add_to_physmap(DOMID_SELF, 1, status | 8, 0x902)
    assert dom0.memory.acquire_resource(guest.domid, 1, 1) == 8
    assert dom0.memory.acquire_resource(guest.domid, 1, 1, frame=7, nr_frames=1, gpfns=[0x900]) == 1
    dom0.write(0x900, 0, b"status")
    assert guest.read(0x901, 0, 6) == b"status"
    with pytest.raises(HypercallError, match="EBUSY"):
        guest.gnttab.set_version(1)
    dom0.memory.remove_from_physmap(DOMID_SELF, 0x900)
    guest.gnttab.set_version(1)
    assert lib.p2m_type(guest.kernel, 0x901) == lib.P2M_NONE


def test_a_grant_taken_out_of_the_physmap_is_released_at_death(
    hypervisor: Hypervisor, dom0: Domain, guest: Domain
) -> None:
    """remove_from_physmap takes it; unmap_grant_ref then finds nothing there, death does."""
    stub = domain(hypervisor)
    assert lib.grant_entry_set(guest.kernel, 9, stub.domid, RAM_FIRST_PFN, 1) == 0
    handle = stub.gnttab.map(guest.domid, 9, 0x900)
    stub.memory.remove_from_physmap(DOMID_SELF, 0x900)
    with pytest.raises(GrantError, match="GNTST_general_error"):
        stub.gnttab.unmap(handle, 0x900)
    hypervisor.destroy_domain(stub)
    assert guest.gnttab.pinned() == 0
    hypervisor.destroy_domain(guest)
    assert hypervisor.dead == []
