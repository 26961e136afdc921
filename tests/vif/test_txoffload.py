"""What a driver above leaves to XenVif, as it reaches the ring and the wire."""

from __future__ import annotations

from struct import unpack_from

import pytest
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
