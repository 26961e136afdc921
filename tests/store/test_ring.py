"""xenstored's end of the ring page, with a guest that writes what it likes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.world import World, make
from xenpv.abi._kernel import ffi, lib
from xenpv.abi.layout import offsetof
from xenpv.abi.xs import XS
from xenpv.errors import HypercallError, StoreError
from xenpv.store.ring import REQ, RSP
from xenpv.xen.domain import XENSTORE_PFN

PAGE = "xenstore_domain_interface"


@pytest.fixture
def world() -> Iterator[World]:
    made = make()
    yield made
    made.hypervisor.close()


def field(world: World, name: str, value: int | None = None) -> int:
    at = offsetof(PAGE, name)
    if value is not None:
        world.guest.store32(XENSTORE_PFN, at, value)
    return world.guest.load32(XENSTORE_PFN, at)


def send(world: World, data: bytes) -> None:
    raw = ffi.from_buffer(data)
    count = lib.stream_put(world.guest.kernel, XENSTORE_PFN, *REQ, raw, len(data))
    assert count == len(data)
    world.guest.evtchn.send(2)
    world.loop.run()


def receive(world: World) -> bytes:
    out = bytearray(1024)
    count = lib.stream_get(world.guest.kernel, XENSTORE_PFN, *RSP, ffi.from_buffer(out), 1024)
    assert count >= 0
    return bytes(out[:count])


def message(kind: int, payload: bytes, req_id: int = 7, tx_id: int = 0) -> bytes:
    head = b"".join(n.to_bytes(4, "little") for n in (kind, req_id, tx_id, len(payload)))
    return head + payload


def test_introduce_zeroes_the_indices_and_publishes_features(world: World) -> None:
    names = ("req_cons", "req_prod", "rsp_cons", "rsp_prod", "connection", "error")
    assert [field(world, name) for name in names] == [0] * 6
    assert field(world, "server_features") == 14


def test_a_reply_echoes_ids(world: World) -> None:
    send(world, message(XS.READ, b"data\0", req_id=0x1234))
    assert receive(world) == message(XS.READ, b"", req_id=0x1234)
    send(world, message(XS.READ, b"nothing\0", req_id=9, tx_id=0))
    assert receive(world) == message(XS.ERROR, b"ENOENT\0", req_id=9)


def test_a_request_may_come_in_pieces_and_many_in_one(world: World) -> None:
    whole = message(XS.WRITE, b"data/a\x001") + message(XS.READ, b"data/a\0", req_id=8)
    for at in range(0, len(whole), 5):
        send(world, whole[at : at + 5])
    expected = message(XS.WRITE, b"OK\0") + message(XS.READ, b"1", req_id=8)
    assert receive(world) == expected
    send(world, whole)
    assert receive(world) == expected


def test_an_oversized_request_freezes_the_ring_with_protocol_error(world: World) -> None:
    send(world, message(XS.READ, b"data\0")[:12] + (4097).to_bytes(4, "little"))
    assert field(world, "error") == 3
    send(world, message(XS.READ, b"data\0"))
    assert receive(world) == b""
    # It stays introduced, and others are served.
    assert world.client.call(XS.IS_DOMAIN_INTRODUCED, b"1\0") == b"T\0"


@pytest.mark.parametrize("prod", [1025, 0x80000000, 0xFFFFFFFF])
def test_a_bad_index_freezes_the_ring_with_index_error(world: World, prod: int) -> None:
    field(world, "req_prod", prod)
    world.guest.evtchn.send(2)
    world.loop.run()
    assert field(world, "error") == 2


def test_a_guest_that_does_not_read_is_left_waiting_and_loses_nothing(world: World) -> None:
    world.write("/local/domain/1/data/big", "v" * 900)
    world.chmod("/local/domain/1/data/big", "n1")
    request = message(XS.READ, b"data/big\0")
    for _ in range(20):
        send(world, request)
    got = b""
    while chunk := receive(world):
        got += chunk
        world.guest.evtchn.send(2)
        world.loop.run()
    assert got == message(XS.READ, b"v" * 900) * 20


def test_events_of_other_clients_reach_the_ring(world: World) -> None:
    send(world, message(XS.WATCH, b"data\0tok\0"))
    assert receive(world) == message(XS.WATCH, b"OK\0") + message(
        XS.WATCH_EVENT, b"data\0tok\0", req_id=0
    )
    world.write("/local/domain/1/data/x", "1")
    world.loop.run()
    assert receive(world) == message(XS.WATCH_EVENT, b"data/x\0tok\0", req_id=0)


def test_a_repeated_introduce_resets_the_ring_without_an_event(world: World) -> None:
    send(world, message(XS.WATCH, b"data\0tok\0"))
    receive(world)
    watcher = world.server.connect_local("watcher")
    watcher.call(XS.WATCH, b"@introduceDomain\0t\0")
    watcher.events.clear()
    world.dom0.evtchn.close(world.daemon.rings[1].port)
    world.daemon.dispatcher.unbind_port(world.daemon.rings[1].port)
    world.daemon.rings[1].port = 0
    world.client.call(XS.INTRODUCE, b"1\0%d\0002\0" % XENSTORE_PFN)
    assert not watcher.events
    assert [field(world, name) for name in ("req_prod", "rsp_prod")] == [0, 0]
    world.write("/local/domain/1/data/x", "1")
    world.loop.run()
    assert receive(world) == b""
    send(world, message(XS.READ, b"data/x\0"))
    assert receive(world) == message(XS.READ, b"1")


def test_death_closes_the_ring_and_fires_release(world: World) -> None:
    watcher = world.server.connect_local("watcher")
    watcher.call(XS.WATCH, b"@releaseDomain\0t\0")
    watcher.events.clear()
    world.guest.shutdown(0)
    world.loop.run()
    assert [path for path, _ in watcher.events] == [b"@releaseDomain"]
    watcher.events.clear()
    world.hypervisor.destroy_domain(world.guest)
    world.loop.run()
    assert [path for path, _ in watcher.events] == [b"@releaseDomain"]
    assert world.daemon.rings == {}
    assert world.hypervisor.dead == []
    assert world.client.call(XS.IS_DOMAIN_INTRODUCED, b"1\0") == b"F\0"


def test_a_dead_domain_that_is_mapped_is_released_at_its_death_and_not_again(world: World) -> None:
    dom0, guest = world.dom0, world.guest
    guest.check(lib.grant_entry_set(guest.kernel, 9, 0, 0x100, 1))
    handle = dom0.gnttab.map(1, 9, 0x1F0000)
    watcher = world.server.connect_local("watcher")
    watcher.call(XS.WATCH, b"@releaseDomain\0t\0")
    watcher.events.clear()
    dom0.domctl.destroydomain(1)
    world.loop.run()
    assert [path for path, _ in watcher.events] == [b"@releaseDomain"]
    assert world.daemon.rings == {}
    assert dom0.find(1) is guest  # dead, and still there
    with pytest.raises(StoreError, match="EINVAL"):
        world.client.call(XS.INTRODUCE, b"1\0%d\0002\0" % XENSTORE_PFN)
    watcher.events.clear()
    dom0.gnttab.unmap(handle, 0x1F0000)
    world.loop.run()
    assert dom0.find(1) is None
    assert not watcher.events


def test_xenstored_asks_xen_whose_state_changed(world: World) -> None:
    asked: list[int] = []
    world.server.domain_shutdown = asked.append
    other = world.hypervisor.create_domain(vcpus=1, max_pages=64)
    world.guest.shutdown(1)
    other.shutdown(1)  # xenstored knows of none such
    world.loop.run()
    assert asked == [1]
    with pytest.raises(HypercallError) as caught:
        world.dom0.domctl.get_domain_state()
    assert caught.value.name == "ENOENT"
    other.resume()
    other.shutdown(1)
    world.loop.run()
    assert asked == [1]  # a change is told once


@given(st.lists(st.binary(max_size=600), max_size=8), st.binary(max_size=64))
def test_any_bytes_from_a_guest_hurt_nobody_else(pieces: list[bytes], indices: bytes) -> None:
    world = make()
    try:
        for piece in pieces:
            raw = ffi.from_buffer(piece)
            lib.stream_put(world.guest.kernel, XENSTORE_PFN, *REQ, raw, len(piece))
            world.guest.evtchn.send(2)
            world.loop.run()
            receive_any(world)
        world.guest.write(XENSTORE_PFN, 2048, indices)
        world.guest.evtchn.send(2)
        world.loop.run()
        assert field(world, "error") in (0, 1, 2, 3) or len(indices) > 24
        world.write("/other", "fine")
        assert world.read("/other") == "fine"
    finally:
        world.hypervisor.close()


def receive_any(world: World) -> None:
    out = bytearray(1024)
    lib.stream_get(world.guest.kernel, XENSTORE_PFN, *RSP, ffi.from_buffer(out), 1024)
