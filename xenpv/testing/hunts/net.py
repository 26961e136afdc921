"""Scenarios of the network: what a guest sends and gets, and what it must not get away with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.host.network import GSO_TCPV4, Frame
from xenpv.host.offload import blank_checksum
from xenpv.host.packet import TCP, ethernet_frame, ipv4_packet, udp_datagram
from xenpv.testing.explorer import Explorer
from xenpv.testing.hunts.netwire import (
    ERROR,
    NO_REF,
    OKAY,
    STATION,
    Control,
    Got,
    Packet,
    Piece,
    Station,
    Wire,
    extra,
    frame,
    gso_extra,
    wired,
)
from xenpv.testing.hunts.steps import Steps
from xenpv.testing.raw_world import MAC
from xenpv.xen.domain import PAGE_SIZE

CSUM_BLANK: Final[int] = lib.NETTXF_csum_blank
DATA_VALIDATED: Final[int] = lib.NETTXF_data_validated
RX_CSUM_BLANK: Final[int] = lib.NETRXF_csum_blank
RX_DATA_VALIDATED: Final[int] = lib.NETRXF_data_validated
RX_EXTRA_INFO: Final[int] = lib.NETRXF_extra_info
RX_MORE_DATA: Final[int] = lib.NETRXF_more_data
HERE, THERE = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
UDP: Final = 17
MSS: Final = 1000
U32: Final = 0xFFFFFFFF


def tcp(destination: bytes, source: bytes, size: int) -> bytes:
    """Headers of 54 bytes, `size` of payload, the pseudo-header's sum in the sum's field."""
    segment = bytes.fromhex("11112222000000010000000250180400") + bytes(4)
    segment += bytes(at * 7 & 0xFF for at in range(size))
    whole = ethernet_frame(destination, source, 0x0800, ipv4_packet(HERE, THERE, TCP, segment))
    return blank_checksum(Frame(whole)).data


def udp(destination: bytes, source: bytes, size: int) -> bytes:
    """A datagram with its sum, `size` bytes of payload."""
    datagram = udp_datagram(HERE, THERE, 7, 7, bytes(at & 0xFF for at in range(size)))
    return ethernet_frame(destination, source, 0x0800, ipv4_packet(HERE, THERE, UDP, datagram))


# What a guest may send


def _cut(data: bytes, *sizes: int) -> list[Piece]:
    """So many bytes in each slot, the rest in the last."""
    pieces, at = [], 0
    for size in sizes:
        pieces.append(Piece(data[at : at + size]))
        at += size
    return [*pieces, Piece(data[at:])]


def _shapes(wire: Wire) -> list[tuple[bytes, Packet]]:
    """Packets of every shape that netback takes."""
    large = tcp(STATION, MAC, 2500)
    return [
        (frame(60), wire.packet(Piece(frame(60)))),
        (frame(1514, 2), wire.packet(Piece(frame(1514, 2), offset=PAGE_SIZE - 1514))),
        (frame(900, 3), wire.packet(*_cut(frame(900, 3), 14))),
        (frame(1300, 4), wire.packet(*_cut(frame(1300, 4), 100, 0, 600))),
        (
            large,
            wire.packet(
                *_cut(large, 54, 2000),
                flags=CSUM_BLANK | DATA_VALIDATED,
                extras=[gso_extra(MSS)],
            ),
        ),
        (frame(1000, 5), wire.packet(*_cut(frame(1000, 5), *[50] * 17))),
    ]


def net_shapes(x: Explorer) -> None:
    """A guest sends packets of one slot and of many, with extras and with empty slots: each is
    on the bridge once, in order and unchanged, and every slot is answered.
    """
    world = wired(x)
    station, wire = Station(world), Wire(world.vif)
    shapes = _shapes(wire)
    steps = Steps([partial(wire.send, packet) for _, packet in shapes])
    steps.start(world.guest.domain.task, "net sender")
    x.run()
    assert station.data == [data for data, _ in shapes], "what was sent is not what came"
    large = station.received[4]
    assert (large.gso_type, large.gso_size, large.csum_blank) == (GSO_TCPV4, MSS, True)
    wanted = [one for _, packet in shapes for one in packet.answered(OKAY)]
    assert wire.answers == wanted, f"answers {wire.answers}, expected {wanted}"


def net_mapped(x: Explorer) -> None:
    """The same to a netback that maps what it does not copy: an empty slot is neither mapped nor
    copied, so that its reference may be any number (XSA-448).
    """
    world = wired(x, netback="linux-zerocopy")
    station, wire = Station(world), Wire(world.vif)
    data = [frame(900, 3), frame(1300, 4)]
    empty = Piece(b"", ref=NO_REF)
    packets = [
        wire.packet(*_cut(data[0], 300)),
        wire.packet(Piece(data[1][:200]), empty, Piece(data[1][200:]), empty),
    ]
    steps = Steps([partial(wire.send, packet) for packet in packets])
    steps.start(world.guest.domain.task, "net sender")
    x.run()
    assert station.data == data, "what was sent is not what came"
    wanted = [one for packet in packets for one in packet.answered(OKAY)]
    assert sorted(wire.answers) == sorted(wanted)


# What a guest must not send


@attrs.frozen
class Refused:
    """A packet that no guest may send. `status`: of every slot's answer; None: the vif is lost."""

    name: str
    build: Callable[[Wire], Packet]
    status: int | None = None


def _raw(wire: Wire, *pieces: Piece, nr: int, extras: Sequence[bytes] = ()) -> Packet:
    """The first `nr` slots of a packet of more."""
    packet = wire.packet(*pieces, extras=extras)
    # What follows lies in the ring all the same, as of a guest that publishes too little.
    for at, slot in enumerate(packet.slots[nr:]):
        wire.scrap(nr + at, slot)
    return Packet(packet.slots[:nr], packet.ids[:nr])


REFUSED: Final = (
    Refused(
        "a fragment beyond its page",
        lambda wire: wire.packet(Piece(frame(200), offset=PAGE_SIZE - 100)),
    ),
    Refused(
        "a second fragment beyond its page",
        lambda wire: wire.packet(
            Piece(frame(60)), Piece(bytes(200), offset=PAGE_SIZE - 100), total=260
        ),
    ),
    Refused(
        "an extra beyond the producer",
        lambda wire: _raw(wire, Piece(frame(100)), extras=[extra(4)], nr=1),
    ),
    Refused(
        "data beyond the producer",
        lambda wire: _raw(wire, *_cut(frame(100), 60), nr=1),
    ),
    Refused(
        "a first fragment under 14 bytes",
        lambda wire: wire.packet(*_cut(frame(100), 13)),
        ERROR,
    ),
    Refused("a frame under 14 bytes", lambda wire: wire.packet(Piece(frame(13))), ERROR),
    Refused(
        "slots of more bytes than the packet",
        lambda wire: wire.packet(*_cut(frame(300), 100), total=150),
        ERROR,
    ),
    Refused(
        "slots of 64 KiB more than the packet",
        lambda wire: wire.packet(
            Piece(frame(60)), *[Piece(bytes(PAGE_SIZE))] * 16, Piece(b"", ref=NO_REF), total=60
        ),
        ERROR,
    ),
    Refused(
        "a packet of 20 slots", lambda wire: wire.packet(*_cut(frame(1000), *[50] * 19)), ERROR
    ),
    Refused("a packet of 22 slots", lambda wire: wire.packet(*_cut(frame(1000), *[45] * 21))),
    Refused("an extra of type 0", lambda wire: wire.packet(Piece(frame(100)), extras=[extra(0)])),
    Refused("an extra of type 5", lambda wire: wire.packet(Piece(frame(100)), extras=[extra(5)])),
    Refused(
        "a large packet of segments of 0 bytes",
        lambda wire: wire.packet(
            Piece(tcp(STATION, MAC, 300)), flags=CSUM_BLANK, extras=[gso_extra(0)]
        ),
    ),
    Refused(
        "a large packet of no known type",
        lambda wire: wire.packet(
            Piece(tcp(STATION, MAC, 300)), flags=CSUM_BLANK, extras=[gso_extra(MSS, 9)]
        ),
    ),
    Refused(
        "a page that is not granted", lambda wire: wire.packet(Piece(frame(100), ref=NO_REF)), ERROR
    ),
)


def net_refused(x: Explorer) -> None:
    """A guest sends what no guest may: it is answered with an error, or the vif is lost and
    nothing of it answered; nobody gets anything of it, and what is well goes on.
    """
    world = wired(x)
    station, wire = Station(world), Wire(world.vif)
    x.begin()
    # What costs the vif ends a run.
    rows = [one for one in REFUSED if one.status is not None or x.decide(f"send {one.name}", 2)]
    for number, row in enumerate(rows):
        _send(x, wire, row.build(wire))
        came, answers = station.data, list(wire.answers)
        station.received.clear()
        wire.answers.clear()
        assert not came, f"{row.name}: a frame of {len(came[0])} bytes came"
        good = wire.packet(Piece(frame(100, number)))
        if row.status is None:
            assert not answers, f"{row.name}: it was answered {answers}"
            _send(x, wire, good)
            assert not station.data, f"{row.name}: the vif goes on"
            return
        _send(x, wire, good)
        assert station.data == [frame(100, number)], f"{row.name}: a good frame did not come"
        wire.answers.clear()
        station.received.clear()


def _send(x: Explorer, wire: Wire, packet: Packet) -> None:
    """In a handler of the guest, and all that comes of it."""
    idle: list[Callable[[], object]] = [lambda: None] * 3  # the backend works meanwhile
    steps = Steps([lambda: wire.send(packet), *idle, wire.tidy])
    steps.start(wire.guest.domain.task, "net sender")
    x.run()


# What a guest gets


def _inbound() -> list[tuple[Frame, Got]]:
    """Frames of every kind that a bridge has for a guest that takes all offloads, and what
    comes of each.
    """
    datagram, blank = udp(MAC, STATION, 200), tcp(MAC, STATION, 300)
    large = tcp(MAC, STATION, 6000)
    summed = RX_CSUM_BLANK | RX_DATA_VALIDATED
    rest = len(large) - PAGE_SIZE
    return [
        (Frame(datagram), Got(0, datagram, (len(datagram),))),
        (
            Frame(datagram, data_validated=True),
            Got(RX_DATA_VALIDATED, datagram, (len(datagram),)),
        ),
        (
            Frame(large, csum_blank=True, data_validated=True, gso_type=GSO_TCPV4, gso_size=MSS),
            Got(summed | RX_EXTRA_INFO | RX_MORE_DATA, large, (PAGE_SIZE, rest), (gso_extra(MSS),)),
        ),
        (
            Frame(blank, csum_blank=True, data_validated=True),
            Got(summed, blank, (len(blank),)),
        ),
    ]


def net_received(x: Explorer) -> None:
    """Frames for a guest, with and without sums, large ones among them: each fills slots as
    io/netif.h says, and whenever the guest looks it sees whole packets.
    """
    world = wired(x)
    station, wire = Station(world), Wire(world.vif)
    wire.post(32)
    world.run()
    wanted = _inbound()
    steps = Steps([partial(station.send, [sent]) for sent, _ in wanted])
    steps.start(world.platform.dom0.task, "station")
    x.run()
    for (_, expected), got in zip(wanted, wire.got, strict=True):
        assert got.flags == expected.flags, f"flags {got.flags:#x}, expected {expected.flags:#x}"
        assert got == expected, "what came is not what was sent"


BACKLOG_MAX: Final = 524_288  # bytes that may wait for a guest: half its ring's pages
LARGE: Final = 60_000
PATIENCE_S: Final = 10  # that a frame waits for a slot
FULL: Final = 200  # slots


def net_backlog(x: Explorer) -> None:
    """A guest posts no slots while frames come for it: what waits is bounded in bytes and in
    time (XSA-392).
    """
    world = wired(x)
    station, wire = Station(world), Wire(world.vif)
    whole = tcp(MAC, STATION, LARGE)
    large = Frame(whole, csum_blank=True, data_validated=True, gso_type=GSO_TCPV4, gso_size=MSS)
    receiver = Steps([lambda: wire.post(FULL)])
    flood = Steps(
        [
            *[lambda: station.send([large])] * 12,
            lambda: receiver.start(world.guest.domain.task, "net receiver"),
        ]
    )
    flood.start(world.platform.dom0.task, "station")
    x.run()
    came = sum([len(one.data) for one in wire.got])
    assert came <= BACKLOG_MAX + len(whole), f"{came} bytes waited for a guest without slots"
    assert wire.got, "nothing waited"
    # More than its last slots take; all that waits is gone when nothing happens any more.
    late = Steps([lambda: station.send([large] * 4)])
    late.start(world.platform.dom0.task, "station")
    x.run()
    before = len(wire.got)
    Steps([lambda: wire.post(FULL // 8)]).start(world.guest.domain.task, "net receiver")
    x.run()
    assert len(wire.got) == before, "a frame waited for its slots for ever"


# The control ring


@attrs.frozen
class Asked:
    """A request of the control ring, and the status that it must get."""

    name: str
    kind: int
    data: tuple[int, ...]
    status: int


def _asked(control: Control) -> list[Asked]:
    """Requests that change the mapping, and such as must not."""
    zeros, two = control.table([0] * 8), control.table([0, 2])
    return [
        Asked("algorithm", control.SET_ALGORITHM, (1,), control.SUCCESS),
        Asked("size 8", control.SET_SIZE, (8,), control.SUCCESS),
        Asked("the whole of it", control.SET_MAPPING, (zeros, 8, 0), control.SUCCESS),
        Asked("its end", control.SET_MAPPING, (zeros, 1, 7), control.SUCCESS),
        Asked("no entry", control.SET_MAPPING, (NO_REF, 0, 8), control.SUCCESS),
        Asked("beyond its end", control.SET_MAPPING, (zeros, 2, 7), control.INVALID),
        Asked("an end that wraps", control.SET_MAPPING, (zeros, 2, U32 - 1), control.INVALID),
        Asked("no such queue", control.SET_MAPPING, (two, 2, 0), control.INVALID),
        Asked("no such page", control.SET_MAPPING, (NO_REF, 2, 0), control.INVALID),
        Asked("more than a page", control.SET_MAPPING, (zeros, 1025, 0), control.INVALID),
        Asked("size 129", control.SET_SIZE, (129,), control.INVALID),
        Asked("key of 41 bytes", control.SET_KEY, (zeros, 41), control.INVALID),
        Asked("key of 40 bytes", control.SET_KEY, (zeros, 40), control.SUCCESS),
        Asked("unknown flag", control.SET_FLAGS, (16,), control.INVALID),
        Asked("all flags", control.SET_FLAGS, (15,), control.SUCCESS),
        Asked("flags", control.GET_FLAGS, (), control.SUCCESS),
        Asked("staging grants", 8, (0,), control.NOT_SUPPORTED),
        Asked("unknown algorithm", control.SET_ALGORITHM, (2,), control.INVALID),
    ]


def net_control(x: Explorer) -> None:
    """A guest configures the hash: what does not fit is refused and changes nothing (XSA-270);
    each request has one answer, and frames still come.
    """
    world = wired(x, connect=False)
    control = Control(world)
    station, wire = Station(world), Wire(world.vif)
    wire.post(8)
    world.run()
    asked = _asked(control)
    steps = Steps([partial(control.ask, row.kind, *row.data) for row in asked])
    steps.start(world.guest.domain.task, "net control")
    x.run()
    wrong = [
        f"{row.name}: status {status}, expected {row.status}"
        for row, status in zip(asked, control.statuses, strict=True)
        if status != row.status
    ]
    assert not wrong, "; ".join(wrong)
    sent = udp(MAC, STATION, 100)
    Steps([lambda: station.send([Frame(sent)])]).start(world.platform.dom0.task, "station")
    x.run()
    assert [one.data for one in wire.got] == [sent]


SCENARIOS: Final = (net_shapes, net_mapped, net_refused, net_received, net_backlog, net_control)
