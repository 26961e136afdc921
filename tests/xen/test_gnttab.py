from __future__ import annotations

from typing import Any

import pytest

from tests.xen.conftest import domain
from tests.xen.grants import copies
from xenpv.abi._kernel import ffi, lib
from xenpv.abi.gnttab import GNTST
from xenpv.errors import GrantError, HypercallError
from xenpv.xen.domain import PAGE_SIZE, Domain
from xenpv.xen.gnttab import CopySide
from xenpv.xen.hypervisor import Hypervisor

PERMIT = 1
READONLY = 4
READING = 8
WRITING = 0x10


@pytest.fixture
def page(guest: Domain) -> int:
    pfn = guest.pages.alloc()
    guest.write(pfn, 0, bytes(range(256)) * 16)
    return pfn


def grant(guest: Domain, ref: int, pfn: int, flags: int = PERMIT, domid: int = 0) -> int:
    assert lib.grant_entry_set(guest.kernel, ref, domid, pfn, flags) == 0
    return ref


def flags(guest: Domain, ref: int) -> int:
    return int(lib.grant_entry_flags(guest.kernel, ref))


def status_of(call: Any, *arguments: Any, **named: Any) -> int:
    with pytest.raises(GrantError) as caught:
        call(*arguments, **named)
    return caught.value.status


def test_a_mapped_page_is_the_granters_page(dom0: Domain, guest: Domain, page: int) -> None:
    grant(guest, 8, page)
    here = dom0.holes.alloc()
    handle = dom0.gnttab.map(guest.domid, 8, here)
    assert dom0.read(here, 0, 3) == bytes((0, 1, 2))
    dom0.write(here, 0, b"dom0")
    assert guest.read(page, 0, 4) == b"dom0"
    dom0.gnttab.unmap(handle, here)
    with pytest.raises(HypercallError, match="EFAULT"):
        dom0.read(here, 0, 1)


def test_reading_and_writing_follow_the_pins(dom0: Domain, guest: Domain, page: int) -> None:
    grant(guest, 8, page)
    seen = [flags(guest, 8)]
    places = [dom0.holes.alloc() for _ in range(3)]
    handles = []
    for place, readonly in zip(places, (True, False, False), strict=True):
        handles.append(dom0.gnttab.map(guest.domid, 8, place, readonly=readonly))
        seen.append(flags(guest, 8))
    for handle, place in zip(handles[::-1], places[::-1], strict=True):
        dom0.gnttab.unmap(handle, place)
        seen.append(flags(guest, 8))
    r, w = PERMIT | READING, PERMIT | READING | WRITING
    assert seen == [PERMIT, r, w, w, w, r, PERMIT]


@pytest.mark.parametrize(
    ("entry_flags", "domid", "readonly", "status"),
    [
        (0, 0, False, GNTST.general_error),
        (2, 0, False, GNTST.general_error),
        (PERMIT, 5, False, GNTST.general_error),
        (PERMIT | READONLY, 0, False, GNTST.general_error),
        (PERMIT | 0x100, 0, True, GNTST.general_error),
    ],
)
def test_an_entry_that_does_not_permit_is_general_error(
    dom0: Domain, guest: Domain, page: int,
    entry_flags: int, domid: int, readonly: bool, status: int,
) -> None:  # fmt: skip
    grant(guest, 8, page, entry_flags, domid)
    here = dom0.holes.alloc()
    assert status_of(dom0.gnttab.map, guest.domid, 8, here, readonly=readonly) == status
    assert flags(guest, 8) == entry_flags
    assert dom0.gnttab.maptrack == {}


def test_other_refusals_have_their_status(dom0: Domain, guest: Domain) -> None:
    here = dom0.holes.alloc()
    map_ = dom0.gnttab.map
    assert status_of(map_, 99, 8, here) == GNTST.bad_domain
    assert status_of(map_, guest.domid, 512, here) == GNTST.bad_gntref
    grant(guest, 8, 0xFFFFF)
    assert status_of(map_, guest.domid, 8, here) == GNTST.bad_page
    assert flags(guest, 8) == PERMIT
    assert status_of(dom0.gnttab.unmap, 0, here) == GNTST.bad_handle


def test_unmap_wants_the_place_and_works_once(dom0: Domain, guest: Domain, page: int) -> None:
    grant(guest, 8, page)
    here = dom0.holes.alloc()
    handle = dom0.gnttab.map(guest.domid, 8, here)
    assert status_of(dom0.gnttab.unmap, handle, here + 1) == GNTST.general_error
    dom0.gnttab.unmap(handle, here)
    assert status_of(dom0.gnttab.unmap, handle, here) == GNTST.bad_handle


def test_pin_counter_stops_at_128(dom0: Domain, guest: Domain, page: int) -> None:
    grant(guest, 8, page)
    for _ in range(128):
        dom0.gnttab.map(guest.domid, 8, dom0.holes.alloc(), readonly=True)
    full = status_of(dom0.gnttab.map, guest.domid, 8, dom0.holes.alloc(), readonly=True)
    assert full == GNTST.general_error
    dom0.gnttab.map(guest.domid, 8, dom0.holes.alloc())
    assert guest.gnttab.pinned() == 1
    assert lib.grant_pins(guest.kernel, 8) == 128 << 8 | 1


def test_a_pinned_entry_is_closed_to_another_domain(
    hypervisor: Hypervisor, dom0: Domain, guest: Domain, page: int
) -> None:
    grant(guest, 8, page)
    dom0.gnttab.map(guest.domid, 8, dom0.holes.alloc())
    other = domain(hypervisor)
    grant(guest, 8, page, PERMIT | READING | WRITING, other.domid)
    assert status_of(other.gnttab.map, guest.domid, 8, 0x100000) == GNTST.general_error


def test_handles_are_reused_late(dom0: Domain, guest: Domain, page: int) -> None:
    grant(guest, 8, page)
    here = dom0.holes.alloc()
    given = []
    for _ in range(4):
        given.append(dom0.gnttab.map(guest.domid, 8, here))
        dom0.gnttab.unmap(given[-1], here)
    assert given == [0, 1, 2, 3]


def test_revoke_waits_for_the_last_map(dom0: Domain, guest: Domain, page: int) -> None:
    grant(guest, 8, page)
    here = dom0.holes.alloc()
    handle = dom0.gnttab.map(guest.domid, 8, here, readonly=True)
    assert lib.grant_entry_revoke(guest.kernel, 8) == -16
    assert flags(guest, 8) == PERMIT | READING
    dom0.gnttab.unmap(handle, here)
    assert lib.grant_entry_revoke(guest.kernel, 8) == 0
    assert flags(guest, 8) == 0


SELF = Domain.DOMID_SELF


def test_copy_moves_bytes_between_own_page_and_grant(
    dom0: Domain, guest: Domain, page: int
) -> None:
    grant(guest, 8, page)
    mine = dom0.pages.alloc()
    there = copies(((8, guest.domid, 16, True), (mine, SELF, 100, False), 32))
    assert dom0.gnttab.copy(there) == 0
    assert dom0.read(mine, 100, 32) == bytes(range(16, 48))
    dom0.write(mine, 0, b"back")
    back = copies(((mine, SELF, 0, False), (8, guest.domid, 4092, True), 4))
    assert dom0.gnttab.copy(back) == 0
    assert guest.read(page, 4092, 4) == b"back"
    assert flags(guest, 8) == PERMIT


@pytest.mark.parametrize(
    ("source", "dest", "size", "status"),
    [
        ((8, 1, 0, True), (0x100, SELF, 4000, False), 97, GNTST.bad_copy_arg),
        ((8, 1, 4096, True), (0x100, SELF, 0, False), 1, GNTST.bad_copy_arg),
        ((8, 1, 0, True), (0x100, 1, 0, False), 1, GNTST.permission_denied),
        ((8, 99, 0, True), (0x100, SELF, 0, False), 1, GNTST.bad_domain),
        ((9999, 1, 0, True), (0x100, SELF, 0, False), 1, GNTST.bad_gntref),
        ((9, 1, 0, True), (0x100, SELF, 0, False), 1, GNTST.general_error),
        ((8, 1, 0, True), (0x5, SELF, 0, False), 1, GNTST.bad_page),
        ((0x100, SELF, 0, False), (10, 1, 0, True), 1, GNTST.general_error),
        ((8, 1, 5000, True), (0x5, SELF, 5000, False), 0, GNTST.okay),
    ],
)
def test_copy_statuses(
    dom0: Domain, guest: Domain, page: int,
    source: tuple[int, int, int, bool], dest: tuple[int, int, int, bool], size: int, status: int,
) -> None:  # fmt: skip
    grant(guest, 8, page)
    grant(guest, 10, page, PERMIT | READONLY)
    operations = copies((source, dest, size))
    assert dom0.gnttab.copy(operations) == (status != 0)
    assert operations[0].status == status
    assert guest.gnttab.pinned() == 0
    assert flags(guest, 8) == PERMIT


def test_table_grows_to_its_maximum(hypervisor: Hypervisor) -> None:
    small = domain(hypervisor, max_grant_frames=2)
    assert small.gnttab.query_size() == (1, 2)
    small.add_to_physmap_grant(1, 0x90)
    assert small.gnttab.query_size() == (2, 2)
    with pytest.raises(HypercallError, match="EINVAL"):
        small.add_to_physmap_grant(2, 0x91)
    small.write(0x90, 8, b"\1\0\0\0")
    assert lib.grant_entry_flags(small.kernel, 513) == 1


def test_a_dead_granter_stays_until_its_last_page_is_unmapped(
    hypervisor: Hypervisor, dom0: Domain, guest: Domain, page: int
) -> None:
    grant(guest, 8, page)
    here = dom0.holes.alloc()
    handle = dom0.gnttab.map(guest.domid, 8, here)
    free = lib.machine_free_pages(hypervisor.machine)
    hypervisor.destroy_domain(guest)
    assert dom0.find(guest.domid) is guest
    assert dom0.read(here, 0, 3) == bytes((0, 1, 2))
    with pytest.raises(HypercallError, match="EEXIST"):
        hypervisor.create_domain(guest.domid, vcpus=1, max_pages=1)
    dom0.gnttab.unmap(handle, here)
    assert hypervisor.dead == []
    assert lib.machine_free_pages(hypervisor.machine) > free
    hypervisor.create_domain(guest.domid, vcpus=1, max_pages=1)


def test_a_dead_mapper_releases_its_maps(hypervisor: Hypervisor, guest: Domain, page: int) -> None:
    mapper = domain(hypervisor)
    grant(guest, 8, page, domid=mapper.domid)
    mapper.gnttab.map(guest.domid, 8, 0x100000)
    assert guest.gnttab.pinned() == 1
    hypervisor.destroy_domain(mapper)
    assert guest.gnttab.pinned() == 0
    assert flags(guest, 8) == PERMIT
    assert guest.read(page, 0, 3) == bytes((0, 1, 2))


def test_local_copies_take_their_status_one_by_one(dom0: Domain, guest: Domain, page: int) -> None:
    grant(guest, 8, page)
    buffer = bytearray(300)
    operations = [8, 0 | 100 << 16, 0, 9, 0 | 100 << 16, 100, 8, 100 | 100 << 16, 200]
    status = ffi.new("int8_t[3]")
    failed = lib.grant_copy_local(
        dom0.kernel, guest.kernel, 0, operations, 3, ffi.from_buffer(buffer), 300, status
    )
    assert failed == 1
    assert list(status) == [0, GNTST.general_error, 0]
    assert buffer == bytes(range(100)) + bytes(100) + bytes(range(100, 200))
    beyond = [8, 0 | 100 << 16, 201]
    assert (
        lib.grant_copy_local(
            dom0.kernel, guest.kernel, 0, beyond, 1, ffi.from_buffer(buffer), 300, status
        )
        == -22
    )


def test_ring_handle_on_an_unmapped_grant_is_efault(dom0: Domain, guest: Domain, page: int) -> None:
    guest.write(page, 0, bytes(PAGE_SIZE))
    grant(guest, 8, page)
    here = dom0.holes.alloc()
    handle = dom0.gnttab.map(guest.domid, 8, here)
    ring = dom0.ring([here], 112, 16)
    assert lib.ring_init(ring) == 0
    dom0.gnttab.unmap(handle, here)
    assert lib.back_final_check(ring) == -14
    assert lib.ring_init(ring) == -14


# the granter's own rules


@pytest.mark.parametrize("version", [1, 2])
def test_readonly_goes_freely_and_comes_only_without_writers(
    dom0: Domain, guest: Domain, page: int, version: int
) -> None:
    guest.gnttab.set_version(version)
    grant(guest, 8, page, PERMIT | READONLY)
    handle = dom0.gnttab.map(guest.domid, 8, 0x100000, readonly=True)
    assert lib.grant_entry_readonly(guest.kernel, 8, 0) == 0
    writer = dom0.gnttab.map(guest.domid, 8, 0x100001)
    assert lib.grant_entry_readonly(guest.kernel, 8, 1) == -16
    assert flags(guest, 8) & READONLY == 0
    dom0.gnttab.unmap(writer, 0x100001)
    assert lib.grant_entry_readonly(guest.kernel, 8, 1) == 0
    assert status_of(dom0.gnttab.map, guest.domid, 8, 0x100001) == GNTST.general_error
    dom0.gnttab.unmap(handle, 0x100000)
    assert lib.grant_entry_readonly(guest.kernel, 600000, 1) == -22


def test_version_2_revokes_new_uses_at_once_and_says_who_is_left(
    dom0: Domain, guest: Domain, page: int
) -> None:
    guest.gnttab.set_version(2)
    grant(guest, 8, page)
    handle = dom0.gnttab.map(guest.domid, 8, 0x100000, readonly=True)
    assert lib.grant_entry_revoke(guest.kernel, 8) == -16
    assert flags(guest, 8) == 0
    assert lib.grant_entry_status(guest.kernel, 8) == READING
    dom0.gnttab.unmap(handle, 0x100000)
    assert lib.grant_entry_revoke(guest.kernel, 8) == 0
    assert status_of(dom0.gnttab.map, guest.domid, 8, 0x100000) == GNTST.general_error


def test_a_sub_page_entry_lies_in_the_table_as_in_the_header(guest: Domain) -> None:
    guest.gnttab.set_version(2)
    assert lib.grant_entry_set_sub_page(guest.kernel, 9, 5, 1 << 33, 100, 50, PERMIT) == 0
    assert lib.grant_entry_set_transitive(guest.kernel, 10, 5, 7, 300, READONLY) == 0
    guest.add_to_physmap_grant(0, 0x90)
    sub_page = ffi.new("union grant_entry_v2 *", {"sub_page": ((0x101, 5), 100, 50, 1 << 33)})
    assert guest.read(0x90, 9 * 16, 16) == bytes(ffi.buffer(sub_page))
    transitive = ffi.new("union grant_entry_v2 *", {"transitive": ((3 | READONLY, 5), 7, 0, 300)})
    assert guest.read(0x90, 10 * 16, 12) == bytes(ffi.buffer(transitive))[:12]


def test_only_version_2_has_sub_pages_hops_and_wide_frames(guest: Domain) -> None:
    assert lib.grant_entry_set_sub_page(guest.kernel, 9, 5, 0x100, 100, 50, PERMIT) == -22
    assert lib.grant_entry_set_transitive(guest.kernel, 9, 5, 7, 300, 0) == -22
    assert lib.grant_entry_set(guest.kernel, 9, 5, 1 << 32, PERMIT) == -34
    assert flags(guest, 9) == 0


# versions and growth


def test_reserved_entries_outlive_the_version_and_others_do_not(
    dom0: Domain, guest: Domain, page: int
) -> None:
    grant(guest, 0, page)
    grant(guest, 7, page, PERMIT | READONLY)
    grant(guest, 8, page)
    handle = dom0.gnttab.map(guest.domid, 0, 0x100000)
    for version in (2, 1, 2):
        guest.gnttab.set_version(version)
        assert guest.gnttab.get_version() == version
        in_flags = READING | WRITING if version == 1 else 0
        assert flags(guest, 0) == PERMIT | in_flags
        assert lib.grant_entry_status(guest.kernel, 0) == READING | WRITING
        assert (flags(guest, 7), flags(guest, 8)) == (PERMIT | READONLY, 0)
    dom0.gnttab.unmap(handle, 0x100000)
    assert lib.grant_entry_status(guest.kernel, 0) == 0
    dom0.gnttab.map(guest.domid, 7, 0x100000, readonly=True)


def test_going_to_version_1_zeroes_reserved_entries_that_accept_a_transfer(guest: Domain) -> None:
    guest.gnttab.set_version(2)
    grant(guest, 3, 0x100, 2)
    guest.gnttab.set_version(1)
    guest.add_to_physmap_grant(0, 0x90)
    assert guest.read(0x90, 0, PAGE_SIZE) == bytes(PAGE_SIZE)


def test_status_frames_grow_with_the_table(hypervisor: Hypervisor) -> None:
    owner = domain(hypervisor, max_grant_frames=20)
    assert (owner.gnttab.nr_entries, owner.gnttab.nr_status_frames) == (512, 0)
    owner.gnttab.set_version(2)
    assert (owner.gnttab.nr_entries, owner.gnttab.nr_status_frames) == (256, 1)
    for nr, status in ((8, 1), (9, 2), (17, 3)):
        owner.gnttab.setup_table(nr)
        assert (owner.gnttab.nr_frames, owner.gnttab.nr_status_frames) == (nr, status)
    with pytest.raises(HypercallError, match="EINVAL"):
        owner.add_to_physmap_grant(1 << 31 | 3, 0x90)
    free = lib.machine_free_pages(hypervisor.machine)
    owner.gnttab.set_version(1)
    assert lib.machine_free_pages(hypervisor.machine) == free + 3
    assert owner.gnttab.nr_status_frames == 0


def test_placing_a_status_frame_grows_the_table(hypervisor: Hypervisor) -> None:
    owner = domain(hypervisor, max_grant_frames=20)
    owner.gnttab.set_version(2)
    owner.add_to_physmap_grant(1 << 31 | 1, 0x90)
    assert (owner.gnttab.nr_frames, owner.gnttab.nr_status_frames) == (16, 2)


def test_setup_table_tells_where_the_frames_are(guest: Domain) -> None:
    guest.add_to_physmap_grant(1, 0x91)
    op = ffi.new("struct gnttab_setup_table[1]", [(Domain.DOMID_SELF, 2, 7, 0x100 << 12 | 4088)])
    guest.gnttab.hypercall(2, op)
    assert op[0].status == 0
    nowhere = (1 << 64) - 1
    assert guest.read(0x100, 4088, 16) == nowhere.to_bytes(8, "little") + b"\x91" + bytes(7)


def test_no_memory_for_a_bigger_table_changes_nothing(dom0: Domain, guest: Domain) -> None:
    machine = guest._hypervisor.machine
    hog = domain(guest._hypervisor, max_pages=1 << 20)
    hog.populate(lib.machine_free_pages(machine) - 2)
    for version, error in ((1, GNTST.general_error), (2, GNTST.general_error)):
        free = lib.machine_free_pages(machine)
        assert status_of(guest.gnttab.setup_table, 5) == error
        assert (guest.gnttab.nr_frames, lib.machine_free_pages(machine)) == (1, free)
        if version == 1:
            guest.gnttab.set_version(2)


# death


@pytest.mark.parametrize("version", [1, 2])
def test_bits_are_cleared_when_the_mapper_dies(
    hypervisor: Hypervisor, guest: Domain, page: int, version: int
) -> None:
    guest.gnttab.set_version(version)
    mapper = domain(hypervisor)
    grant(guest, 8, page, domid=mapper.domid)
    mapper.gnttab.map(guest.domid, 8, 0x100000)
    mapper.gnttab.map(guest.domid, 8, 0x100001, readonly=True)
    frame = lib.p2m_lookup(guest.kernel, page, 0)
    assert lib.frame_refs(hypervisor.machine, frame) == 5
    hypervisor.destroy_domain(mapper)
    assert lib.grant_entry_status(guest.kernel, 8) == 0
    assert lib.grant_pins(guest.kernel, 8) == 0
    assert lib.frame_refs(hypervisor.machine, frame) == 1


def test_a_dead_mapper_frees_a_dead_granter(hypervisor: Hypervisor, guest: Domain) -> None:
    mapper = domain(hypervisor)
    grant(guest, 8, 0x100, domid=mapper.domid)
    mapper.gnttab.map(guest.domid, 8, 0x100000)
    hypervisor.destroy_domain(guest)
    assert hypervisor.dead == [guest]
    hypervisor.destroy_domain(mapper)
    assert hypervisor.dead == []


def test_nothing_new_is_mapped_of_a_dead_granter(
    hypervisor: Hypervisor, dom0: Domain, guest: Domain, page: int
) -> None:
    grant(guest, 8, page)
    grant(guest, 9, page)
    handle = dom0.gnttab.map(guest.domid, 8, 0x100000)
    hypervisor.destroy_domain(guest)
    for ref in (8, 9):
        with pytest.raises(GrantError):
            dom0.gnttab.map(guest.domid, ref, 0x100001)
    assert lib.grant_pins(guest.kernel, 8) == 1
    dom0.gnttab.unmap(handle, 0x100000)
    assert hypervisor.dead == []


def test_an_unmap_at_the_place_of_another_handle_of_the_page(
    hypervisor: Hypervisor, dom0: Domain, guest: Domain, page: int
) -> None:
    """Xen looks at the frame there and not at the handle's address."""
    grant(guest, 8, page)
    first = dom0.gnttab.map(guest.domid, 8, 0x100000)
    second = dom0.gnttab.map(guest.domid, 8, 0x100001)
    dom0.gnttab.unmap(first, 0x100001)
    assert dom0.read(0x100000, 0, 1) == b"\0"
    assert status_of(dom0.gnttab.unmap, second, 0x100001) == GNTST.general_error
    hypervisor.destroy_domain(guest)
    dom0.gnttab.release_maps()
    assert hypervisor.dead == []
    with pytest.raises(HypercallError, match="EFAULT"):
        dom0.read(0x100000, 0, 1)


def test_a_page_under_a_mapping_is_unhooked_and_not_freed(
    hypervisor: Hypervisor, dom0: Domain, guest: Domain, page: int
) -> None:
    mapper = domain(hypervisor)
    grant(guest, 8, page, domid=mapper.domid)
    mapper.write(0x100, 0, b"under it")
    pages = lib.domain_tot_pages(mapper.kernel)
    free = lib.machine_free_pages(hypervisor.machine)
    handle = mapper.gnttab.map(guest.domid, 8, 0x100)
    mapper.gnttab.map(guest.domid, 8, 0x180)  # a page that was never touched
    mapper.gnttab.unmap(handle, 0x100)
    with pytest.raises(HypercallError, match="EFAULT"):
        mapper.read(0x100, 0, 1)
    assert lib.domain_tot_pages(mapper.kernel) == pages
    assert lib.machine_free_pages(hypervisor.machine) == free
    hypervisor.destroy_domain(mapper)
    assert hypervisor.dead == []
    assert lib.machine_free_pages(hypervisor.machine) >= free + pages


# what a caller is told


def test_a_failed_operation_says_which_with_what_and_why(dom0: Domain, guest: Domain) -> None:
    table = dom0.gnttab
    calls = {
        "map_grant_ref": lambda: table.map(guest.domid, 8, 0x100000),
        "unmap_grant_ref": lambda: table.unmap(3, 0x100000),
        "unmap_and_replace": lambda: table.unmap_and_replace(3, 0x100000, 5),
        "setup_table": lambda: table.setup_table(65),
        "query_size": lambda: table.query_size(99),
        "transfer": lambda: table.transfer(0x100, guest.domid, 8),
        "copy": lambda: table.copy_bytes(CopySide(gmfn=0x100), CopySide(domid=1, ref=8), 8),
        "swap_grant_ref": lambda: table.swap(8, 9999),
    }
    for name, call in calls.items():
        with pytest.raises(GrantError) as caught:
            call()
        assert caught.value.operation == f"GNTTABOP_{name}"
        assert caught.value.arguments
        assert caught.value.reason
    for name, refused in {
        "set_version": lambda: table.set_version(3), "get_version": lambda: table.get_version(99)
    }.items():  # fmt: skip
        with pytest.raises(HypercallError) as hypercall:
            refused()
        assert hypercall.value.operation == f"GNTTABOP_{name}"
        assert hypercall.value.arguments
    text = str(caught.value)
    assert text.startswith("GNTST_bad_gntref: GNTTABOP_swap_grant_ref(ref_a=8, ref_b=9999): ")


def test_copy_bytes_moves_them(dom0: Domain, guest: Domain, page: int) -> None:
    grant(guest, 8, page)
    dom0.gnttab.copy_bytes(
        CopySide(domid=guest.domid, ref=8, offset=16), CopySide(gmfn=0x100, offset=4), 8
    )
    assert dom0.read(0x100, 4, 8) == bytes(range(16, 24))
