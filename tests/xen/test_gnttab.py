from __future__ import annotations

from typing import Any

import pytest

from tests.xen.conftest import domain
from xenpv.abi._kernel import ffi, lib
from xenpv.abi.gnttab import GNTST
from xenpv.errors import GrantError, HypercallError
from xenpv.xen.domain import PAGE_SIZE, Domain
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


def copy(source: tuple[int, int, int, bool], dest: tuple[int, int, int, bool], size: int) -> Any:
    """One operation; each side is (ref or gmfn, domid, offset, is it a ref)."""
    operations = ffi.new("struct gnttab_copy[1]")
    one = operations[0]
    for side, (name, domid, offset, ref) in ((one.source, source), (one.dest, dest)):
        if ref:
            side.u.ref = name
        else:
            side.u.gmfn = name
        side.domid = domid
        side.offset = offset
    one.len = size
    one.flags = source[3] | dest[3] << 1
    one.status = 77
    return operations


SELF = Domain.DOMID_SELF


def test_copy_moves_bytes_between_own_page_and_grant(
    dom0: Domain, guest: Domain, page: int
) -> None:
    grant(guest, 8, page)
    mine = dom0.pages.alloc()
    there = copy((8, guest.domid, 16, True), (mine, SELF, 100, False), 32)
    assert dom0.gnttab.copy(there) == 0
    assert dom0.read(mine, 100, 32) == bytes(range(16, 48))
    dom0.write(mine, 0, b"back")
    back = copy((mine, SELF, 0, False), (8, guest.domid, 4092, True), 4)
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
    operations = copy(source, dest, size)
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
