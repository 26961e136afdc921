"""Scenarios of what else a vif has to keep to: groups, a rate, stalls, offloads not offered."""

from __future__ import annotations

from functools import partial
from typing import Final

from xenpv.abi._kernel import lib
from xenpv.host.network import GSO_TCPV4, Frame
from xenpv.host.packet import TCP, internet_checksum, pseudo_header
from xenpv.testing.explorer import Explorer
from xenpv.testing.hunts.net import HERE, MSS, THERE, tcp, udp
from xenpv.testing.hunts.netwire import (
    ERROR,
    OKAY,
    STATION,
    Answer,
    Piece,
    Station,
    Wire,
    extra,
    frame,
    wired,
)
from xenpv.testing.hunts.steps import Steps
from xenpv.testing.raw_world import MAC, RawWorld
from xenpv.xen.loop import NS_PER_S

ADD: Final[int] = lib.XEN_NETIF_EXTRA_TYPE_MCAST_ADD
DEL: Final[int] = lib.XEN_NETIF_EXTRA_TYPE_MCAST_DEL
GROUPS_MAX: Final = 64


def _connect(world: RawWorld, **keys: str | None) -> Wire:
    """The interface with these keys of the frontend, `-` as `_`."""
    front = world.vif
    world.run()
    front.attach()
    front.announce({key.replace("_", "-"): value for key, value in keys.items()})
    world.run()
    front.finish()
    world.run()
    return Wire(front)


def _group(number: int) -> bytes:
    return bytes((0x33, 0x33, 0, 0, 0, number))


def net_multicast(x: Explorer) -> None:
    """A guest asks for more groups than a list has, and takes one back: it gets frames to those
    that are in the list, and to no others.
    """
    world = wired(x, connect=False)
    wire, station = _connect(world, request_multicast_control="1"), Station(world)
    asked = [(ADD, number) for number in range(GROUPS_MAX + 2)] + [(DEL, 3)]
    packets = [
        wire.packet(Piece(b"", ref=0), extras=[extra(kind, _group(number))])
        for kind, number in asked
    ]
    wire.post(8)
    world.run()
    steps = Steps([partial(wire.send, one) for one in packets])
    steps.start(world.guest.domain.task, "net control")
    x.run()
    wanted: list[Answer] = []
    for (_, number), packet in zip(asked, packets, strict=True):
        wanted += packet.answered(OKAY if number < GROUPS_MAX else ERROR)
    assert wire.answers == wanted, f"answers {wire.answers}"
    heard = [_group(1), _group(2), b"\xff" * 6, MAC]
    sent = [udp(one, STATION, 50) for one in (*heard, _group(3), _group(GROUPS_MAX))]
    Steps([lambda: station.send([Frame(one) for one in sent])]).start(
        world.platform.dom0.task, "station"
    )
    x.run()
    came = [one.data[:6] for one in wire.got]
    assert came == heard, f"frames to {[one.hex(':') for one in came]} came"


FRAME_BYTES: Final = 1000


def net_rate(x: Explorer) -> None:
    """A guest that may send two frames a window sends five: each comes, in its time."""
    world = wired(x, connect=False)
    world.guest.xs.write(f"{world.vif.backend_path}/rate", f"{2 * FRAME_BYTES},1000")
    wire, station = _connect(world), Station(world)
    data = [frame(FRAME_BYTES, number) for number in range(5)]
    packets = [wire.packet(Piece(one)) for one in data]
    steps = Steps([partial(wire.send, one) for one in packets])
    steps.start(world.guest.domain.task, "net sender")
    x.run()
    assert station.data == data, f"{len(station.data)} of {len(data)} frames came"
    assert wire.answers == [one for packet in packets for one in packet.answered(OKAY)]


STALL_S: Final = 61


def net_stall(x: Explorer) -> None:
    """A guest has no slots for so long that its carrier goes; when it has some, frames come."""
    world = wired(x)
    wire, station = Wire(world.vif), Station(world)
    data = udp(MAC, STATION, 100)
    say = partial(station.send, [Frame(data)])
    x.begin()
    # While it is watched the backlog is short of slots, and 60 s have gone since the last.
    for _ in range(2):
        world.platform.loop.advance(STALL_S * NS_PER_S)
        Steps([say]).start(world.platform.dom0.task, "station")
        x.run()
    Steps([partial(wire.post, 8)]).start(world.guest.domain.task, "net receiver")
    x.run()
    before = len(wire.got)
    Steps([say]).start(world.platform.dom0.task, "station")
    x.run()
    assert [one.data for one in wire.got[before:]] == [data], "nothing comes any more"


def _is_summed(data: bytes) -> bool:
    """Whether the sum of a TCP segment over IPv4 is right."""
    segment = data[34:]
    return internet_checksum(pseudo_header(HERE, THERE, TCP, len(segment)) + segment) == 0


def net_plain(x: Explorer) -> None:
    """A guest takes no offloads: what others sent with them comes finished, in frames that an
    interface without them can have sent.
    """
    world = wired(x, connect=False)
    wire = _connect(
        world,
        feature_sg="0",
        feature_gso_tcpv4="0",
        feature_gso_tcpv6="0",
        feature_no_csum_offload="1",
        feature_ipv6_csum_offload="0",
    )
    station = Station(world)
    wire.post(16)
    world.run()
    large, small = tcp(MAC, STATION, 3 * MSS), tcp(MAC, STATION, 300)
    sent = [
        Frame(small, csum_blank=True, data_validated=True),
        Frame(large, csum_blank=True, data_validated=True, gso_type=GSO_TCPV4, gso_size=MSS),
    ]
    Steps([partial(station.send, [one]) for one in sent]).start(world.platform.dom0.task, "station")
    x.run()
    found = [(len(one.data), one.flags & ~1, one.extras) for one in wire.got]
    assert found == [(len(small), 0, ()), *[(54 + MSS, 0, ())] * 3], f"what came: {found}"
    for got in wire.got:
        assert _is_summed(got.data), "the sum of a frame is not right"


SCENARIOS: Final = (net_multicast, net_rate, net_stall, net_plain)
