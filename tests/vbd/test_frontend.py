"""XenVbd's handshake and keys, and what becomes of its requests when the backend is hostile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vbd.conftest import SECTORS, Scene, content, scene
from xenpv import Disk, MemoryImage, Platform
from xenpv.abi.xenbus import XenbusState as S
from xenpv.abi.xs import XS
from xenpv.bus.handshake import Goal
from xenpv.vbd.frontend import FrontendState
from xenpv.vbd.personality import PERSONALITIES
from xenpv.vbd.srb import Srb, SrbStatus
from xenpv.xen.trace import Note

READ_8 = bytes.fromhex("28 00 00000000 00 0008 00")


@pytest.fixture(params=["windows", "linux"])
def either(request: pytest.FixtureRequest) -> Iterator[Scene]:
    made = scene(request.param)
    yield made
    made.xen.close()


def states(notes: list[Note], who: str) -> list[str]:
    return [note.text.split(": ")[1] for note in notes if note.text.startswith(who)]


def test_windows_closes_before_it_connects(s: Scene) -> None:
    notes = s.xen.loop.trace.notes
    front = ["closing", "closed", "initialising", "initialised", "connected"]
    assert states(notes, "device/vbd/51712:") == front
    back = ["init_wait", "closing", "closed", "init_wait", "connected"]
    assert states(notes, "vbd1.51712:") == back


def test_linux_connects_at_once() -> None:
    s = scene("linux")
    with s.xen:
        notes = s.xen.loop.trace.notes
        assert states(notes, "device/vbd/51712:") == ["initialised", "connected"]
        assert states(notes, "vbd1.51712:") == ["init_wait", "connected"]


@pytest.mark.parametrize("personality", ["windows", "linux"])
@pytest.mark.parametrize("goal", list(Goal))
@pytest.mark.parametrize("state", list(S))
def test_every_goal_knows_every_backend_state(personality: str, goal: Goal, state: S) -> None:
    """A backend in any state is answered or waited for; nothing is left to chance."""
    table = PERSONALITIES[personality].table
    assert (
        goal not in table
        or state in table[goal]
        or state
        not in (
            S.INIT_WAIT,
            S.CONNECTED,
            S.CLOSING,
            S.CLOSED,
        )
    )


def test_the_keys_are_written_in_order_in_one_transaction() -> None:
    written: list[tuple[int, str]] = []

    class Sink:
        def store_op(
            self, conn_domid: int, op: int, tx_id: int, payload: bytes, error: bytes | None
        ) -> None:
            path = payload.split(b"\0")[0].decode()
            if conn_domid == 1 and op == XS.WRITE and path.startswith("device/vbd/51712/"):
                assert error is None
                written.append((tx_id, path.removeprefix("device/vbd/51712/")))

    with Platform(seed=7) as xen:
        xen.xenstored.trace = Sink()
        xen.create(name="g", disks=[Disk(MemoryImage(content()))]).start()
    keys = [key for tx_id, key in written if tx_id]
    assert keys == [
        "event-channel",
        "ring-ref0",
        "ring-ref1",
        "multi-queue-num-queues",
        "ring-page-order",
        "protocol",
        "target-id",
        "feature-surprise-remove",
        "feature-online-resize",
        "feature-large-sector-size",
    ]
    assert len({tx_id for tx_id, _ in written if tx_id}) == 1
    assert [key for tx_id, key in written if not tx_id] == ["state"] * 5


def test_closing_gives_back_every_grant_port_and_watch(either: Scene) -> None:
    s = either
    bus = s.guest.bus
    assert bus is not None
    s.guest.disks[0].read(0, SECTORS)
    s.adapter.stop()
    s.xen.run()
    assert s.adapter.stopped
    assert bus.gnttab.permitted == 0
    assert len(bus.evtchn.channels()) == 2  # store and console
    assert not [watch for watch in bus.store.watches() if "vbd" in watch.path]
    assert s.back.queues == []


def test_requests_in_flight_at_a_stop_are_completed_once(either: Scene) -> None:
    s = either
    srbs = [s.srb(READ_8, 4096) for _ in range(5)]
    for srb in srbs:
        s.target.submit(srb)
    s.adapter.stop()
    s.xen.run()
    assert all(srb.is_complete for srb in srbs)


def in_flight(s: Scene, count: int = 1) -> list[Srb]:
    """SRBs that the backend has seen nothing of yet, and will not."""
    s.freeze()
    srbs = [s.srb(READ_8, 4096) for _ in range(count)]
    for srb in srbs:
        s.target.submit(srb)
    s.xen.run()
    assert not any(srb.is_complete for srb in srbs)
    return srbs


def response(rid: bytes, status: int = 0) -> bytes:
    return rid + b"\0\0" + status.to_bytes(2, "little", signed=True) + bytes(4)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(0, SrbStatus.SUCCESS), (-1, SrbStatus.ERROR), (-2, SrbStatus.ERROR), (7, SrbStatus.ERROR)],
)
def test_the_status_of_a_response_decides(s: Scene, status: int, outcome: SrbStatus) -> None:
    (srb,) = in_flight(s)
    s.answer([response(s.request_id(), status)])
    assert srb.srb_status is outcome
    assert not s.target.broken


@pytest.mark.parametrize("rid", [b"\xff" * 8, b"\x99" * 8, (1 << 40).to_bytes(8, "little")])
def test_an_unknown_id_breaks_the_ring_and_fails_what_is_in_flight(s: Scene, rid: bytes) -> None:
    srbs = in_flight(s, 3)
    assert rid not in [s.request_id(index) for index in range(3)]
    s.answer([response(rid)])
    assert s.target.broken
    assert [srb.srb_status for srb in srbs] == [SrbStatus.ERROR] * 3


def test_an_id_answered_twice_breaks_the_ring(s: Scene) -> None:
    first, second = in_flight(s, 2)
    rid = s.request_id()
    s.answer([response(rid), response(rid)])
    assert s.target.broken
    assert {first.srb_status, second.srb_status} == {SrbStatus.SUCCESS, SrbStatus.ERROR}


@pytest.mark.parametrize("prod", [33 * 4, 0x80000000, 0xFFFFFFFF])
def test_a_producer_past_what_is_in_flight_breaks_the_ring(s: Scene, prod: int) -> None:
    srbs = in_flight(s, 2)
    s.answer([], prod=prod)
    assert s.target.broken
    assert [srb.srb_status for srb in srbs] == [SrbStatus.ERROR] * 2
    late = s.send(READ_8, 4096)
    assert late.srb_status in (SrbStatus.ERROR, SrbStatus.BUSY)


def test_a_page_that_the_backend_still_maps_is_kept_from_use(s: Scene) -> None:
    """XSA-396: the request ends, its page and reference do not come back."""
    bus = s.guest.bus
    assert bus is not None
    permitted = bus.gnttab.permitted
    (srb,) = in_flight(s)
    page = s.back.queues[0].ring.ring.pfns[0]
    ref = int.from_bytes(s.xen.dom0.read(page, 64 + 24, 4), "little")
    here = s.xen.dom0.holes.alloc()
    handle = s.xen.dom0.gnttab.map(s.guest.domid, ref, here)
    s.answer([response(s.request_id())])
    assert srb.srb_status is SrbStatus.SUCCESS or s.target.broken
    assert bus.gnttab.permitted > permitted or s.target.broken
    s.xen.dom0.gnttab.unmap(handle, here)


@given(
    slots=st.lists(st.binary(min_size=16, max_size=16), max_size=6),
    prod=st.none() | st.integers(0, 0xFFFFFFFF),
    keys=st.dictionaries(
        st.sampled_from(["state", "sectors", "info", "sector-size", "online", "removable"]),
        st.text("0123456789-x", max_size=12),
        max_size=3,
    ),
)
def test_any_backend_ends_every_request_once_and_raises_nothing(
    slots: list[bytes], prod: int | None, keys: dict[str, str]
) -> None:
    s = scene()
    with s.xen:
        srbs = in_flight(s, 3)
        back = f"/local/domain/0/backend/vbd/{s.guest.domid}/51712"
        for key, value in keys.items():
            s.xen.toolstack.xs.write(f"{back}/{key}", value)
        s.answer(slots, prod)
        s.xen.toolstack.xs.rm(back)
        s.xen.run()
        s.adapter.stop()
        s.xen.run()
        s.xen.advance(300)
        done = [srb.is_complete for srb in srbs]
        assert all(done) or s.target.state is not FrontendState.CLOSED


def test_a_vanishing_frontend_directory_takes_the_disk_along(either: Scene) -> None:
    s = either
    s.xen.toolstack.xs.rm(f"/local/domain/{s.guest.domid}/device/vbd/51712")
    s.xen.run()
    srb = s.srb(READ_8, 4096)
    assert s.guest.disks == []
    del srb


def test_a_resize_is_seen_without_an_attention(s: Scene) -> None:
    back = f"/local/domain/0/backend/vbd/{s.guest.domid}/51712"
    s.xen.toolstack.xs.write(f"{back}/sectors", "1024")
    s.xen.run()
    disk = s.guest.disks[0]
    assert disk.capacity == 1024
    assert s.send(bytes.fromhex("28 00 00000400 00 0001 00"), 512).srb_status is SrbStatus.ERROR


def test_a_cdrom_is_left_to_the_emulated_controller() -> None:
    from xenpv.host.config import parse

    config = parse('name="g"\nmemory=64\ndisk=[",hdc:cdrom,r"]\n')
    with Platform() as xen:
        guest = xen.create_from(config).start()
        assert guest.disks == []
