"""Laws about an end's own indices, the slots it leaves, and what is left at a close."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from xenpv.abi._kernel import lib
from xenpv.abi.xenbus import XenbusState as State
from xenpv.testing import (
    RawGuest,
    RawWorld,
    check_all,
    rings_of,
    run_schedule,
    scenarios,
    world_back,
    world_raw,
)
from xenpv.testing.checkers import CheckFailed
from xenpv.testing.checks.grants import check_closed
from xenpv.testing.checks.posted import check_posted
from xenpv.testing.checks.slots import check_indices, check_leftovers
from xenpv.testing.hunts.rings import read_request
from xenpv.view.rings import KnownRing, poke
from xenpv.vif.rxring import ReceiverRing


@pytest.fixture
def world() -> Iterator[RawWorld]:
    with world_raw() as found:
        yield found


def blk_ring(world: RawWorld) -> KnownRing:
    return next(one for one in rings_of(world.platform) if one.kind.name == "blkif")


def read(world: RawWorld, count: int = 1) -> None:
    """Requests that are answered."""
    guest = world.guest
    for rid in range(count):
        assert world.vbd.sring.push(read_request(rid, guest.grant(guest.page())), 1)
        world.vbd.notify()
        world.run()
        world.vbd.sring.take()


@pytest.mark.parametrize(
    ("rsp_prod", "req_cons", "found"),
    [
        (0, 32, ""),
        (0, 33, "has 0x21 requests in flight in a ring of 32"),
        (5, 4, "has 0xffffffff requests in flight in a ring of 32"),
        (0xFFFFFFFF, 31, ""),
    ],
)
def test_a_backend_has_no_more_in_flight_than_its_ring_holds(world, rsp_prod, req_cons, found):
    back = blk_ring(world).back
    assert back is not None
    lib.ring_seek(back.handle, rsp_prod, req_cons)
    lines = check_indices(world.platform)
    assert len(lines) == bool(found)
    assert all(found in line for line in lines)
    assert not check_indices(world.platform, hostile=[0])


def test_a_frontend_takes_no_more_responses_than_it_sent_requests():
    with world_back() as world:
        ring = next(one for one in rings_of(world.platform) if one.kind.name == "blkif")
        assert ring.front is not None
        assert not check_indices(world.platform)
        lib.ring_seek(ring.front.handle, 7, 8)
        (line,) = check_indices(world.platform)
        assert "d1 took 0x8 responses to 0x7 requests" in line


@pytest.mark.parametrize(
    ("at", "found"),
    [
        (0, ""),  # id
        (8, ""),  # operation
        (9, "blkif_response[0] shows 0x5a at byte 9, 1 bytes beside its fields"),
        (10, ""),  # status
        (12, "blkif_response[0] shows 0x5a at byte 12"),
        (111, "blkif_response[0] shows 0x5a at byte 111"),
    ],
)
def test_a_slot_that_was_answered_shows_nothing_beside_its_response(world, at, found):
    read(world)
    ring = blk_ring(world)
    assert not check_leftovers(world.platform)
    page, offset = ring.place(0)
    poke(world.platform.hypervisor, ring.frames[page], offset + at, b"\x5a")
    lines = check_leftovers(world.platform)
    assert len(lines) == bool(found)
    assert all(found in line for line in lines)
    assert not check_leftovers(world.platform, hostile=[0])
    if found:
        with pytest.raises(CheckFailed, match="beside its fields"):
            check_all(world.platform)


def test_slots_that_no_response_has_been_in_are_the_frontend_s(world):
    read(world)
    world.vbd.sring.write_slot(1, b"\xff" * 112)
    assert not check_leftovers(world.platform)
    read(world)
    assert not check_leftovers(world.platform)


def test_a_slot_is_looked_at_again_when_the_ring_went_round(world):
    read(world, 33)
    ring = blk_ring(world)
    page, offset = ring.place(31)
    poke(world.platform.hypervisor, ring.frames[page], offset + 50, b"\1")
    (line,) = check_leftovers(world.platform)
    assert "blkif_response[31] shows 0x01 at byte 50" in line


def close(world: RawWorld) -> None:
    for state in (State.CLOSING, State.CLOSED):
        for front in (world.vbd, world.vif):
            front.state = state
        world.run()


def test_a_close_leaves_nothing_mapped_but_what_the_frontend_keeps_granted(world):
    (mapped, granted) = check_closed(world.platform, world.guest.domain)
    assert "d0 maps 3 pages of d1 after the close: references " in mapped
    assert "d1 grants 3 pages after the close" in granted
    close(world)
    (granted,) = check_closed(world.platform, world.guest.domain)
    refs = [*world.vbd.refs, world.vif.tx_ref, world.vif.rx_ref]
    assert f"references {refs}" in granted
    for ref in refs:
        assert world.guest.revoke(ref)
    assert check_closed(world.platform, world.guest.domain) == []


def test_one_page_that_stays_mapped_is_told(world):
    close(world)
    ref = world.guest.grant(world.guest.page())
    dom0 = world.platform.dom0
    pfn = dom0.holes.alloc()
    dom0.gnttab.map(world.guest.domid, ref, pfn)
    lines = check_closed(world.platform, world.guest.domain)
    assert f"d0 maps 1 pages of d1 after the close: references [{ref}]" in lines


def test_what_is_mapped_of_others_is_not_told(world):
    close(world)
    for ref in (*world.vbd.refs, world.vif.tx_ref, world.vif.rx_ref):
        assert world.guest.revoke(ref)
    domain = world.platform.dom0.domctl.create_domain(vcpus=1, max_pages=320)
    domain.populate(256)
    other = RawGuest(world.platform, domain)
    dom0 = world.platform.dom0
    dom0.gnttab.map(other.domid, other.grant(other.page()), dom0.holes.alloc())
    assert check_closed(world.platform, world.guest.domain) == []
    assert len(check_closed(world.platform, other.domain)) == 2


def test_a_page_that_waits_for_a_packet_is_zero(monkeypatch):
    run = run_schedule(scenarios.net_traffic)
    assert run.failure is None, run.failure_text
    monkeypatch.setattr(ReceiverRing, "_wipe", lambda _ring, _pieces: None)
    run = run_schedule(scenarios.net_traffic)
    assert "which waits for a packet, shows 0x16 at byte 1" in run.failure_text


def test_a_page_of_an_end_in_a_test_s_hands_may_show_anything():
    with world_back() as world:
        world.vif.hold = True
        world.vif.take_posted()
        _, ref = world.vif.posted[0]
        world.vif.fill(ref, b"\x01" * 60)
        assert check_posted(world.platform) == []
