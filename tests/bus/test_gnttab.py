from __future__ import annotations

import pytest

from tests.world import World
from xenpv.abi._kernel import lib
from xenpv.bus.gnttab import RESERVED_REFS
from xenpv.errors import GrantError, HypercallError, LocalProtocolError


def test_references_start_above_the_reserved_ones_and_ascend(world: World) -> None:
    gnttab = world.gnttab()
    pfn = world.guest.pages.alloc()
    refs = [gnttab.permit_foreign_access(0, pfn) for _ in range(3)]
    assert refs == [RESERVED_REFS, RESERVED_REFS + 1, RESERVED_REFS + 2]
    assert gnttab.permitted == 3


def test_an_entry_lies_in_the_table_as_in_the_header(world: World) -> None:
    gnttab = world.gnttab()
    pfn = world.guest.pages.alloc()
    ref = gnttab.permit_foreign_access(5, pfn, readonly=True)
    raw = world.guest.read(gnttab.frame_pfns[0], ref * 8, 8)
    assert raw == b"\x05\0\x05\0" + pfn.to_bytes(4, "little")


def test_the_table_grows_a_frame_at_a_time_and_ends(world: World) -> None:
    gnttab = world.gnttab()
    pfn = world.guest.pages.alloc()
    most = 64 * 512 - RESERVED_REFS
    refs = [gnttab.permit_foreign_access(0, pfn) for _ in range(most)]
    assert len(gnttab.frame_pfns) == 64
    assert sorted(refs) == list(range(RESERVED_REFS, 64 * 512))
    with pytest.raises(HypercallError, match="^ENOSPC"):
        gnttab.permit_foreign_access(0, pfn)
    for ref in refs:
        assert gnttab.revoke_foreign_access(ref)
    assert gnttab.permitted == 0


def test_a_reference_in_use_is_not_taken_back(world: World) -> None:
    gnttab = world.gnttab()
    ref = gnttab.permit_foreign_access(0, world.guest.pages.alloc())
    here = world.dom0.holes.alloc()
    handle = world.dom0.gnttab.map(1, ref, here)
    assert not gnttab.revoke_foreign_access(ref)
    assert gnttab.permitted == 1
    world.dom0.gnttab.unmap(handle, here)
    assert gnttab.revoke_foreign_access(ref)
    with pytest.raises(GrantError):
        world.dom0.gnttab.map(1, ref, here)


def test_the_reserved_references_say_where_store_and_console_are(world: World) -> None:
    gnttab = world.gnttab()
    assert gnttab.query_reference(0) == (0xFEFFF, False)
    assert gnttab.query_reference(1) == (0xFEFFC, False)
    with pytest.raises(LocalProtocolError):
        gnttab.query_reference(512)


def test_foreign_pages_are_mapped_and_given_back(world: World) -> None:
    gnttab = world.gnttab()
    theirs = world.dom0.pages.alloc()
    world.dom0.write(theirs, 0, b"dom0's")
    lib.grant_entry_set(world.dom0.kernel, 8, 1, theirs, 1)
    pfn, handle = gnttab.map_foreign_page(0, 8)
    assert world.guest.read(pfn, 0, 6) == b"dom0's"
    gnttab.unmap_foreign_page(pfn, handle)
    assert world.dom0.gnttab.pinned() == 0
    with pytest.raises(GrantError):
        gnttab.map_foreign_page(0, 9)
    again, _ = gnttab.map_foreign_page(0, 8)
    assert again == pfn


def test_a_reference_that_could_not_be_revoked_is_not_given_out_again(world: World) -> None:
    gnttab = world.gnttab()
    pfn = world.guest.pages.alloc()
    ref = gnttab.permit_foreign_access(0, pfn)
    world.dom0.gnttab.map(1, ref, world.dom0.holes.alloc(), readonly=True)
    for _ in range(101):
        assert not gnttab.revoke_foreign_access(ref)
    left = 512 - RESERVED_REFS - 1
    assert ref not in [gnttab.permit_foreign_access(0, pfn) for _ in range(left)]
    assert len(gnttab.frame_pfns) == 1


def test_a_pfn_that_an_entry_cannot_say_costs_no_reference(world: World) -> None:
    gnttab = world.gnttab()
    with pytest.raises(HypercallError, match="^ERANGE"):
        gnttab.permit_foreign_access(0, 1 << 32)
    assert gnttab.permitted == 0
    assert gnttab.permit_foreign_access(0, world.guest.pages.alloc()) == RESERVED_REFS


def test_references_in_one_go_are_those_of_as_many_grants_and_end_with_the_table(
    world: World,
) -> None:
    gnttab = world.gnttab()
    pfn = world.guest.pages.alloc()
    refs = gnttab.reserve(600)
    assert refs == list(range(RESERVED_REFS, 512)) + list(range(512, 600 + RESERVED_REFS))
    assert gnttab.permitted == 600
    assert lib.grant_entry_flags(world.guest.kernel, refs[0]) == 0
    assert gnttab.permit_foreign_access(0, pfn) == 600 + RESERVED_REFS
    most = 64 * 512 - RESERVED_REFS - 601
    assert len(gnttab.reserve(most + 5)) == most
    with pytest.raises(HypercallError, match="^ENOSPC"):
        gnttab.reserve(1)
    assert gnttab.revoke_foreign_access(refs[0])
    assert gnttab.reserve(3) == [refs[0]]


@pytest.mark.parametrize("readonly", [True, False])
def test_a_run_of_pages_is_granted_as_page_after_page(world: World, readonly: bool) -> None:
    gnttab = world.gnttab()
    pfn = world.guest.pages.alloc(3)
    refs = gnttab.permit_run(5, pfn, 3, readonly=readonly)
    assert refs == [RESERVED_REFS, RESERVED_REFS + 1, RESERVED_REFS + 2]
    assert gnttab.permitted == 3
    raw = world.guest.read(gnttab.frame_pfns[0], refs[0] * 8, 24)
    head = (b"\x05" if readonly else b"\x01") + b"\0\x05\0"
    assert raw == b"".join(head + (pfn + n).to_bytes(4, "little") for n in range(3))
    assert gnttab.revoke_run(refs) == []
    assert gnttab.permitted == 0
    assert world.guest.read(gnttab.frame_pfns[0], refs[0] * 8, 2) == b"\0\0"


@pytest.mark.parametrize(
    ("pfn", "count", "name"), [(0, 64 * 512, "ENOSPC"), ((1 << 32) - 1, 2, "ERANGE")]
)
def test_a_run_is_granted_whole_or_not_at_all(
    world: World, pfn: int, count: int, name: str
) -> None:
    gnttab = world.gnttab()
    with pytest.raises(HypercallError, match=f"^{name}"):
        gnttab.permit_run(0, pfn, count)
    assert gnttab.permitted == 0
    first = world.guest.pages.alloc(5)
    refs = gnttab.permit_run(0, first, 5)
    assert [gnttab.query_reference(ref)[0] for ref in refs] == list(range(first, first + 5))


def test_of_a_run_what_is_in_use_stays_its_owners(world: World) -> None:
    gnttab = world.gnttab()
    refs = gnttab.permit_run(0, world.guest.pages.alloc(5), 5)
    mapped = []
    for ref in (refs[0], refs[3], refs[4]):
        here = world.dom0.holes.alloc()
        mapped.append((world.dom0.gnttab.map(1, ref, here), here))
    assert gnttab.revoke_run(refs) == [refs[0], refs[3], refs[4]]
    assert gnttab.permitted == 3
    again = gnttab.permit_run(0, world.guest.pages.alloc(4), 4)
    assert not set(again) & {refs[0], refs[3], refs[4]}
    for handle, here in mapped:
        world.dom0.gnttab.unmap(handle, here)
    assert gnttab.revoke_run([refs[0], refs[3], refs[4], *again]) == []
    assert gnttab.permitted == 0
