"""Pages and references: given, taken back, held back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.world import World, make
from xenpv.abi._kernel import lib
from xenpv.bus.gnttab import GnttabInterface
from xenpv.errors import GrantError, HypercallError
from xenpv.vif.granter import Granter


@pytest.fixture
def world() -> Iterator[World]:
    made = make()
    yield made
    made.hypervisor.close()


def mapped(world: World, ref: int) -> bool:
    pfn = world.dom0.holes.alloc()
    try:
        handle = world.dom0.gnttab.map(1, ref, pfn, readonly=True)
    except GrantError:
        return False
    world.dom0.gnttab.unmap(handle, pfn)
    return True


def test_a_page_is_out_of_reach_until_it_is_permitted(world: World) -> None:
    granter = Granter(GnttabInterface(world.guest), 0, readonly=True)
    (page,) = granter.add(1)
    assert not mapped(world, granter.refs[page])
    granter.permit([page])
    assert mapped(world, granter.refs[page])
    assert granter.revoke([page]) == []
    assert not mapped(world, granter.refs[page])


def test_pages_are_numbered_from_the_first(world: World) -> None:
    granter = Granter(GnttabInterface(world.guest), 0, readonly=True, first=1)
    assert list(granter.add(3)) == [1, 2, 3]
    assert list(granter.add(2)) == [4, 5]


def test_a_page_in_use_is_named_and_then_quarantined(world: World) -> None:
    gnttab = GnttabInterface(world.guest)
    granter = Granter(gnttab, 0, readonly=False)
    granter.permit(granter.add(3))
    ref, held = granter.refs[1], granter.pfns[1]
    pfn = world.dom0.holes.alloc()
    handle = world.dom0.gnttab.map(1, granter.refs[1], pfn)
    assert granter.revoke([0, 1, 2]) == [1]
    granter.release()
    assert granter.quarantined == [(ref, held)]
    assert gnttab.permitted == 1
    assert held not in [world.guest.pages.alloc() for _ in range(2)]
    world.dom0.gnttab.unmap(handle, pfn)


def test_a_used_page_is_cleaned_before_it_is_granted(world: World) -> None:
    gnttab = GnttabInterface(world.guest)
    pages = world.guest.pages
    dirty = pages.alloc()
    world.guest.write(dirty, 0, b"secret" * 100)
    pages.free(dirty)
    granter = Granter(gnttab, 0, readonly=True)
    granter.add(1)
    assert granter.pfns == [dirty]
    assert world.guest.read(dirty, 0, 4096) == bytes(4096)


def test_when_references_run_out_what_there_was_is_added(world: World) -> None:
    world.guest.gnttab.max_frames = 1
    gnttab = GnttabInterface(world.guest)
    granter = Granter(gnttab, 0, readonly=True)
    assert list(granter.add(1000)) == list(range(480))
    assert not mapped(world, granter.refs[479])
    with pytest.raises(HypercallError, match="ENOSPC"):
        granter.add(1)
    assert len(granter.pfns) == len(granter.refs) == gnttab.permitted == 480
    granter.release()
    assert gnttab.permitted == 0


def test_permission_ends_at_the_first_entry_that_is_refused(world: World) -> None:
    granter = Granter(GnttabInterface(world.guest), 0, readonly=True)
    granter.add(3)
    granter.pfns[1] = 1 << 32
    with pytest.raises(HypercallError, match="ERANGE"):
        granter.permit([0, 1, 2])
    assert [mapped(world, ref) for ref in granter.refs] == [True, False, False]


def test_only_pages_that_somebody_touched_are_zeroed(world: World) -> None:
    granter = Granter(GnttabInterface(world.guest), 0, readonly=True)
    used = world.guest.pages.alloc_pages(3)
    world.guest.write(used[1], 0, b"secret")
    for pfn in used:
        world.guest.pages.free(pfn)
    granter.add(3)
    assert sorted(granter.pfns) == sorted(used)
    frames = [lib.p2m_lookup(world.guest.kernel, pfn, 0) >= 0 for pfn in used]
    assert frames == [False, True, False]
    assert world.guest.read(used[1], 0, 6) == bytes(6)
