"""The second frontend: netfront's keys, its traffic, and what it does about bad backends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.back.netfront import GUEST_MAC, PEER_MAC, Sink, frame
from tests.back.test_netrx import tcp, udp
from xenpv.abi.xenbus import XenbusState as State
from xenpv.errors import LocalProtocolError
from xenpv.host.network import GSO_TCPV4, Frame
from xenpv.host.offload import blank_checksum, finish_checksum
from xenpv.testing.linux_net import NetWorld, Received, world_net

PROFILES = ["linux", "qemu", "mirage"]


@pytest.fixture
def world() -> Iterator[NetWorld]:
    with world_net(seed=2) as made:
        yield made


def sink_of(world: NetWorld) -> Sink:
    sink = Sink()
    world.bridge.attach(sink)
    return sink


def deliver(world: NetWorld, sink: Sink, *frames: Frame) -> None:
    world.bridge.transmit(sink, list(frames), world.platform.loop.now)
    world.run()


def inbound(size: int) -> bytes:
    return frame(size, source=PEER_MAC, destination=GUEST_MAC)


def test_its_keys_are_netfronts_and_in_its_order(world: NetWorld) -> None:
    names = world.guest.xs.directory(world.net.path)
    ours = [name for name in names if name not in
            ("backend", "backend-id", "handle", "mac", "mtu", "state", "trusted")]  # fmt: skip
    assert {name: world.vif.read_key(name) for name in ours if not name.endswith(("ref", "x"))} == {
        "xdp-headroom": "0",
        "multi-queue-num-queues": "1",
        "request-rx-copy": "1",
        "feature-rx-notify": "1",
        "feature-sg": "1",
        "feature-gso-tcpv4": "1",
        "feature-gso-tcpv6": "1",
        "feature-ipv6-csum-offload": "1",
    }
    assert set(ours) - {"tx-ring-ref", "rx-ring-ref", "event-channel-tx", "event-channel-rx"} == {
        *(name for name in ours if not name.endswith(("ref", "x")))
    }


def test_a_backend_without_those_keys_gets_flat_ones() -> None:
    with world_net(netback="qemu") as world:
        names = world.guest.xs.directory(world.net.path)
    assert "event-channel" in names
    assert not {"event-channel-tx", "multi-queue-num-queues", "xdp-headroom"} & set(names)


def test_it_connects_without_a_close_first(world: NetWorld) -> None:
    notes = [note.text for note in world.platform.loop.trace.notes]
    assert [text for text in notes if text.startswith("vif1.0: ")] == [
        "vif1.0: init_wait",
        "vif1.0: connected",
    ]


@pytest.mark.parametrize("netback", PROFILES)
@pytest.mark.parametrize("size", [60, 1514])
def test_frames_go_both_ways(netback: str, size: int) -> None:
    with world_net(netback=netback) as world:
        sink = sink_of(world)
        for _ in range(300):  # more than a ring
            world.net.send(frame(size))
        world.run()
        assert sink.data == [frame(size)] * 300
        assert world.net.completed == [0] * 300
        deliver(world, sink, *[Frame(inbound(size))] * 300)
        assert world.net.received == [Received(inbound(size))] * 300
        assert not world.net.broken


@pytest.mark.parametrize("netback", ["linux", "mirage"])
def test_a_large_packet_goes_in_several_slots(netback: str) -> None:
    with world_net(netback=netback) as world:
        sink = sink_of(world)
        world.guest.xs.write(f"{world.vif.backend_path}/mtu", "9000")
        world.net.send(frame(9014))
        world.run()
        assert sink.data == [frame(9014)]
        assert world.net.completed == [0] * 3


def test_offloads_go_both_ways(world: NetWorld) -> None:
    sink = sink_of(world)
    blank = blank_checksum(Frame(tcp(20_000), gso_type=GSO_TCPV4, gso_size=1460))
    # The sender's address is what the bridge learns.
    data = PEER_MAC + GUEST_MAC + blank.data[12:]
    world.net.send(data, csum_blank=True, gso=(GSO_TCPV4, 1460))
    world.run()
    ((sent, kind, size, is_blank),) = [
        (one.data, one.gso_type, one.gso_size, one.csum_blank) for one in sink.frames
    ]
    assert (sent, kind, size, is_blank) == (data, GSO_TCPV4, 1460, True)
    deliver(world, sink, blank, blank_checksum(Frame(udp(200))))
    assert world.net.received == [
        Received(blank.data, csum_blank=True, data_validated=True, gso=(GSO_TCPV4, 1460)),
        Received(blank_checksum(Frame(udp(200))).data, csum_blank=True, data_validated=True),
    ]


def test_qemu_gives_it_finished_ones(world: NetWorld) -> None:
    with world_net(netback="qemu") as other:
        sink = sink_of(other)
        deliver(other, sink, blank_checksum(Frame(udp(200))))
        assert other.net.received == [Received(finish_checksum(Frame(udp(200))).data)]


def test_qemu_refuses_its_chains() -> None:
    with world_net(netback="qemu") as world:
        sink = sink_of(world)
        world.net.send(frame(6000))
        world.net.send(frame(60))
        world.run()
        # Of a frame of two slots the second is a frame of its own there, of any bytes.
        assert world.net.completed[0] == -1
        assert frame(60) in sink.data


@pytest.mark.parametrize("netback", PROFILES)
def test_it_closes_with_nothing_left(netback: str) -> None:
    with world_net(netback=netback) as world:
        sink = sink_of(world)
        for _ in range(5):
            world.net.send(frame(60))
        world.run()
        assert len(sink.data) == 5
        guest = world.guest
        world.net.close()
        world.run()
        assert world.net.state is State.CLOSED
        assert guest.gnttab.permitted == 0
        assert guest.domain.evtchn.bound() == 0
        with pytest.raises(LocalProtocolError):
            world.net.send(frame(60))


@pytest.mark.parametrize("netback", ["linux", "qemu"])
def test_it_opens_again(netback: str) -> None:
    with world_net(netback=netback) as world:
        sink = sink_of(world)
        for _ in range(3):
            world.net.close()
            world.run()
            world.net.reopen()
            world.run()
            assert world.vif.backend_state is State.CONNECTED
            world.net.send(frame(60))
            deliver(world, sink, Frame(inbound(60)))
        assert len(sink.data) == 3
        assert len(world.net.received) == 3


def test_a_response_that_it_did_not_ask_for_breaks_it(world: NetWorld) -> None:
    world.guest.domain.store32(world.net.tx.pfns[0], 8, 1000)
    world.net._tx_event()
    assert world.net.broken
    with pytest.raises(LocalProtocolError):
        world.net.send(frame(60))
