"""What a driver above leaves to XenVif, as it reaches the ring and the wire."""

from __future__ import annotations

from struct import unpack_from

import pytest
from attrs import evolve
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tests.vif.rawback import scene
from tests.vif.txscene import (
    BLANK,
    DROPPED_STATUS,
    EXTRA,
    HEADER4,
    LINUX_FEATURES,
    LSO4,
    LSO6,
    MORE,
    OK_STATUS,
    TAG,
    TCP4,
    TCP6,
    UDP4,
    UDP6,
    answer_chain,
    keep,
    send,
    tcp4,
    tcp6,
    udp4,
    udp6,
    wire,
    without_sums,
)
from xenpv.host.offload import to_wire
from xenpv.vif.packet import HashAlgorithm, HashType, PacketHash, TransmitterPacket

IP_SUM, TCP4_SUM, UDP4_SUM, TCP6_SUM, UDP6_SUM = 24, 50, 40, 70, 60

# frame, its right sums junked; what is asked; where the blank sum lies
SUMS = {
    "TCP over IPv4": (tcp4(1000), TCP4 | HEADER4, TCP4_SUM, True),
    "UDP over IPv4": (udp4(1000), UDP4 | HEADER4, UDP4_SUM, True),
    "UDP of odd length": (udp4(999), UDP4 | HEADER4, UDP4_SUM, True),
    "TCP over IPv6": (tcp6(1000), TCP6, TCP6_SUM, False),
    "UDP over IPv6": (udp6(1000), UDP6, UDP6_SUM, False),
}


def pseudo_sum(frame: bytes) -> int:
    """By scapy's parse and the words of RFC 9293 3.1 and RFC 8200 8.1."""
    packet = Ether(frame)
    layer: Packet = packet[IP] if IP in packet else packet[IPv6]
    kind = TCP if TCP in packet else UDP
    addresses = frame[26:34] if IP in packet else frame[22:54]
    length = len(bytes(packet[kind]))
    words = [int.from_bytes(addresses[at : at + 2], "big") for at in range(0, len(addresses), 2)]
    total = sum(words) + length + (layer.proto if IP in packet else layer.nh)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.mark.parametrize(("frame", "offload", "at", "v4"), SUMS.values(), ids=SUMS)
def test_a_blank_sum_holds_that_of_the_pseudo_header(
    frame: bytes, offload: int, at: int, v4: bool
) -> None:
    with scene(features=LINUX_FEATURES) as s:
        keeper = keep(s.pdo.frontend)
        junk = without_sums(frame, at, *([IP_SUM] if v4 else []))
        send(s, TransmitterPacket(junk, offload=offload))
        slots = s.back.sent()
        assert slots[0][2] == BLANK | MORE
        assert [slot[2] for slot in slots[1:]] == [0]
        head = s.back.payload(slots[0][0], 0, slots[0][4] - slots[1][4])
        assert unpack_from(">H", head, at)[0] == pseudo_sum(frame)
        if v4:
            assert head[IP_SUM : IP_SUM + 2] == frame[IP_SUM : IP_SUM + 2]
        answer_chain(s, slots)
        assert keeper.done[0][0] == OK_STATUS


@pytest.mark.parametrize(("frame", "offload", "at", "v4"), SUMS.values(), ids=SUMS)
def test_a_sum_is_right_on_the_wire(frame: bytes, offload: int, at: int, v4: bool) -> None:
    with wire() as w:
        junk = without_sums(frame, at, *([IP_SUM] if v4 else []))
        w.send(TransmitterPacket(junk, offload=offload))
        (got,) = w.sink.frames
        assert got.csum_blank
        assert to_wire(got) == [frame]


def test_a_large_packet_has_a_gso_extra_behind_its_first_request() -> None:
    with scene(features=LINUX_FEATURES) as s:
        keeper = keep(s.pdo.frontend)
        send(s, TransmitterPacket(tcp4(20000), offload=LSO4, mss=1460))
        slots = s.back.sent()
        assert [slot[2] for slot in slots[:1]] == [BLANK | MORE | EXTRA]
        # type 1, flags 0, size 1460, GSO type 1
        assert slots[1] == (1 | 1460 << 16, 1, 0, 0, 0)
        assert [slot[4] for slot in slots[2:]] == [4096] * 4 + [20000 - 4 * 4096]
        assert slots[0][4] == 20054
        answer_chain(s, slots)
        status, kind, length, size, traits = keeper.done[0]
        assert (status, kind, length, size) == (OK_STATUS, 1, 20054, 20000)
        assert traits & 1 << 6
        assert not s.broken


@pytest.mark.parametrize(
    ("frame", "offload", "kind"), [(tcp4(30000), LSO4, 1), (tcp6(30000), LSO6, 2)]
)
def test_a_large_packet_reaches_the_wire_whole(frame: bytes, offload: int, kind: int) -> None:
    with wire() as w:
        w.send(TransmitterPacket(frame, offload=offload, mss=1440))
        (got,) = w.sink.frames
        assert (got.gso_type, got.gso_size, got.csum_blank) == (kind, 1440, True)
        assert got.data[54 + 20 :] == frame[54 + 20 :]
        assert w.keeper.done[0][0] == OK_STATUS


def test_a_toeplitz_hash_travels_in_an_extra_behind_that_of_gso() -> None:
    told = PacketHash(HashAlgorithm.TOEPLITZ, HashType.IPV4_TCP, 0x51CCC178)
    with scene(features=LINUX_FEATURES) as s:
        keeper = keep(s.pdo.frontend)
        send(s, TransmitterPacket(tcp4(5000), offload=LSO4, mss=1460, hash=told))
        send(s, TransmitterPacket(tcp4(50), hash=told), first=1)
        slots = s.back.sent()
        assert slots[1] == (1 | 1 << 8 | 1460 << 16, 1, 0, 0, 0)  # more extras follow
        # type 4, flags 0, bit number 1, algorithm 1, value little-endian
        hashed = (4 | 1 << 16 | 1 << 24, 0xC178, 0x51CC, 0, 0)
        assert slots[2] == hashed
        assert slots[6] == hashed
        assert slots[5][2] == MORE | EXTRA
        answer_chain(s, slots)
        assert [keeper.done[cookie][0] for cookie in (0, 1)] == [OK_STATUS] * 2
        assert not s.broken


def test_a_segment_as_long_as_the_payload_is_no_large_packet() -> None:
    with scene(features=LINUX_FEATURES) as s:
        keep(s.pdo.frontend)
        send(s, TransmitterPacket(tcp4(1000), offload=LSO4, mss=1000))
        slots = s.back.sent()
        assert [slot[2] for slot in slots] == [BLANK | MORE, 0]


DROPS = {
    "a frame beyond the MTU": TransmitterPacket(udp4(1600)),
    "one that a segment makes ordinary": TransmitterPacket(tcp4(1600), offload=LSO4, mss=1600),
    "one that its tag makes too long": TransmitterPacket(udp4(1474), offload=1),
    "no frame at all": TransmitterPacket(b"123"),
    "a large packet without a segment size": TransmitterPacket(tcp4(3000), offload=LSO4),
    "a large packet that is no TCP": TransmitterPacket(udp4(3000), offload=LSO4, mss=1000),
    "a large packet of the other version": TransmitterPacket(tcp6(3000), offload=LSO4, mss=1000),
    "one longer than a length field says": TransmitterPacket(
        tcp4(65000) + bytes(1000), offload=LSO4, mss=1460
    ),
}


@pytest.mark.parametrize("packet", DROPS.values(), ids=DROPS)
def test_what_cannot_be_sent_is_dropped_and_never_on_the_ring(packet: TransmitterPacket) -> None:
    with scene(features=LINUX_FEATURES) as s:
        keeper = keep(s.pdo.frontend)
        send(s, packet, tcp4(10))
        assert len(s.back.sent()) == 2  # the other
        assert keeper.done == {0: (DROPPED_STATUS, 1, 0, 0, 0)}


def test_a_backend_without_gso_gets_no_large_packet() -> None:
    with scene() as s:
        keeper = keep(s.pdo.frontend)
        send(s, TransmitterPacket(tcp4(3000), offload=LSO4, mss=1460))
        assert s.back.sent() == []
        assert keeper.done[0][0] == DROPPED_STATUS


@pytest.mark.parametrize(
    ("frame", "offload", "at"), [(tcp6(700), TCP6, TCP6_SUM), (udp6(701), UDP6, UDP6_SUM)]
)
def test_a_sum_that_the_backend_does_not_do_is_done_here(
    frame: bytes, offload: int, at: int
) -> None:
    with scene() as s:
        keep(s.pdo.frontend)
        send(s, TransmitterPacket(without_sums(frame, at), offload=offload))
        slots = s.back.sent()
        assert slots[0][2] == MORE
        size = slots[0][4] - slots[1][4]
        assert s.back.payload(slots[0][0], 0, size) == frame[:size]


@pytest.mark.parametrize("tci", [0, 1, 0x2FFF, 0xFFFF])
def test_a_tag_is_put_in_front_of_the_type(tci: int) -> None:
    with wire() as w:
        frame = udp4(100)
        w.send(TransmitterPacket(frame, offload=TAG, tci=tci))
        (got,) = w.sink.frames
        assert got.data == frame[:12] + b"\x81\x00" + tci.to_bytes(2, "big") + frame[12:]
        status, _, length, size, traits = w.keeper.done[0]
        assert (status, length, size) == (OK_STATUS, len(frame) + 4, 100)
        assert traits & 1  # TAGGED


def test_behind_a_tag_a_sum_is_done_here() -> None:
    with wire() as w:
        frame = tcp4(100)
        w.send(TransmitterPacket(without_sums(frame, TCP4_SUM), offload=TAG | TCP4, tci=3))
        (got,) = w.sink.frames
        assert not got.csum_blank
        assert got.data[18:] == frame[14:]


TAGGED, LLC, IS4, IS6, IS_TCP, IS_UDP, GSO = (1 << bit for bit in range(7))
IP_OK, IP_BAD, IP_NOT, TCP_OK, TCP_BAD, TCP_NOT, UDP_OK, UDP_BAD, UDP_NOT = (
    256 << bit for bit in range(9)
)
TRAITS = {
    "UDP": (udp4(100), IS4 | IS_UDP | IP_NOT | UDP_NOT),
    "TCP over IPv6": (tcp6(100), IS6 | IS_TCP | TCP_NOT),
    "offloaded": (
        TransmitterPacket(tcp4(100), offload=TCP4 | HEADER4), IS4 | IS_TCP | IP_NOT | TCP_NOT
    ),
    "a large packet": (
        TransmitterPacket(tcp4(3000), offload=LSO4, mss=100), IS4 | IS_TCP | GSO | IP_NOT | TCP_NOT
    ),
    "no large packet any more": (
        TransmitterPacket(tcp4(100), offload=LSO4, mss=100), IS4 | IS_TCP | GSO | IP_NOT | TCP_NOT
    ),
    "ARP": (bytes(12) + b"\x08\x06" + bytes(46), 0),
    "LLC": (bytes(12) + b"\x00\x40" + bytes(46), LLC),
    "an IP length that lies": (udp4(100)[:100], 0),
}  # fmt: skip


@pytest.mark.parametrize(("one", "traits"), TRAITS.values(), ids=TRAITS)
def test_a_completion_tells_what_statistics_count(
    one: bytes | TransmitterPacket, traits: int
) -> None:
    with wire() as w:
        w.send(one)
        assert w.keeper.done[0][0] == OK_STATUS
        assert w.keeper.done[0][4] == traits


def bad(frame: bytes, at: int) -> bytes:
    return frame[:at] + bytes((frame[at] ^ 0x55,)) + frame[at + 1 :]


VALIDATED = {
    "right": (udp4(101), IS4 | IS_UDP | IP_OK | UDP_OK),
    "a wrong header sum": (bad(tcp4(100), IP_SUM), IS4 | IS_TCP | IP_BAD | TCP_OK),
    "a wrong TCP sum": (bad(tcp4(100), 99), IS4 | IS_TCP | IP_OK | TCP_BAD),
    "a wrong UDP sum": (bad(udp6(100), 99), IS6 | IS_UDP | UDP_BAD),
    "UDP without": (
        udp4(100)[:40] + bytes(2) + udp4(100)[42:], IS4 | IS_UDP | IP_OK | UDP_OK
    ),
    "offloaded": (
        TransmitterPacket(tcp4(100), offload=TCP4 | HEADER4), IS4 | IS_TCP | IP_NOT | TCP_NOT
    ),
}  # fmt: skip


@pytest.mark.parametrize(("one", "traits"), VALIDATED.values(), ids=VALIDATED)
def test_sums_are_looked_at_where_the_registry_wants_it(
    one: bytes | TransmitterPacket, traits: int
) -> None:
    with wire() as w:
        ring = w.frontend.queues[0].transmitter
        assert ring is not None
        ring._rules = evolve(ring._rules, validate=True)
        w.send(one)
        assert w.keeper.done[0][4] == traits


def test_a_frame_whose_headers_lie_goes_out_as_it_is() -> None:
    lying = [udp4(100)[:100], udp4(0)[:12] + b"\x08\x00" + b"\xff" * 60, tcp4(0)[:50]]
    with wire() as w:
        w.send(*lying)
        assert [one.data for one in w.sink.frames] == [one.ljust(60, b"\0") for one in lying]
        w.keeper.done.clear()
        w.send(bytes(12) + b"\x81\x00\x00")  # not even Ethernet
        assert w.keeper.done[0][0] == DROPPED_STATUS


def test_a_backend_without_sg_gets_one_slot_and_no_extras() -> None:
    told = PacketHash(HashAlgorithm.TOEPLITZ, HashType.IPV4_TCP, 5)
    with scene(features={"feature-gso-tcpv4": "1", "feature-ctrl-ring": "0"}, mtu=9000) as s:
        keeper = keep(s.pdo.frontend)
        frontend = s.pdo.frontend
        assert not frontend.transmit_offload & LSO4
        send(s, TransmitterPacket(tcp4(1000), offload=TCP4, hash=told, layout=((4000, 1054),)))
        (slot,) = s.back.sent()
        assert slot[1:3] + slot[4:] == (0, BLANK, 1054)
        send(s, tcp4(4096 - 54), tcp4(4097 - 54), TransmitterPacket(tcp4(4097 - 54)), first=1)
        assert [slot[4] for slot in s.back.sent()] == [4096]
        assert sorted(keeper.done) == [2, 3]


def test_packets_with_offloads_survive_a_suspend_as_they_were() -> None:
    with scene(features=LINUX_FEATURES) as s:
        keep(s.pdo.frontend)
        large = TransmitterPacket(tcp4(30000), offload=LSO4, mss=1460)
        send(s, *[large] * 60)
        ring = s.pdo.frontend.queues[0].transmitter
        assert ring is not None
        waiting = ring.take_waiting()
        assert waiting
        assert all(one is large for one, _ in waiting)
