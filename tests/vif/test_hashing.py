"""XenVif's own flow hash, against a step-by-step reading of its definition."""

from __future__ import annotations

import pytest

from tests.vif.rawback import frame
from tests.vif.txscene import udp4, wire
from xenpv.vif.hashing import choose, flow_hash
from xenpv.vif.packet import PacketHash, TransmitterPacket

MACS = bytes(12)
IP = bytes.fromhex("4500 0054 0001 0000 4011 0000 01020304 05060708")


def packet(protocol: int = 17, flags: int = 0, *, tag: bytes = b"") -> bytes:
    ip = bytearray(IP)
    ip[9], ip[6] = protocol, flags
    return MACS + tag + b"\x08\x00" + bytes(ip) + bytes.fromhex("0a0b0c0d") + bytes(60)


def fold(key: bytes) -> int:
    value = 0
    for byte in key:
        value = (value * 16 + byte) % 2**32
        high = value & 0x000FFF00
        if high:
            value ^= high >> 8
            value ^= high
    return value


def test_udp_counts_addresses_and_ports() -> None:
    assert flow_hash(packet()) == fold(bytes.fromhex("01020304 05060708 0a0b0c0d"))


def test_a_fragment_and_other_protocols_count_by_address_alone() -> None:
    expected = fold(bytes.fromhex("01020304 05060708"))
    assert flow_hash(packet(flags=0x20)) == expected
    assert flow_hash(packet(protocol=1)) == expected


def test_a_tag_changes_nothing() -> None:
    assert flow_hash(packet(tag=bytes.fromhex("81000064"))) == flow_hash(packet())


def test_ipv6_counts_its_long_addresses() -> None:
    addresses = bytes(range(32))
    data = (
        MACS
        + b"\x86\xdd"
        + bytes.fromhex("60000000 0020 1140")
        + addresses
        + b"\1\2\3\4"
        + bytes(30)
    )
    assert flow_hash(data) == fold(addresses + b"\1\2\3\4")


def test_what_is_not_ip_or_is_cut_has_no_hash() -> None:
    assert flow_hash(frame(60)) == 0
    for size in range(14, 34):
        assert flow_hash(packet()[:size]) == 0


TOEPLITZ, UNSPECIFIED = 2, 1
MAPPING = (3, 1, 0, 2, 2)
CHOICES = {
    "its own of bytes": (packet(), fold(bytes.fromhex("0102030405060708 0a0b0c0d")) % 4),
    "its own where none is given": (
        TransmitterPacket(packet(), hash=PacketHash(0, 0, 7)),
        fold(bytes.fromhex("0102030405060708 0a0b0c0d")) % 4,
    ),
    "unspecified, modulo the queues": (
        TransmitterPacket(packet(), hash=PacketHash(UNSPECIFIED, 0, 7)), 3
    ),
    "Toeplitz, through the mapping": (
        TransmitterPacket(packet(), hash=PacketHash(TOEPLITZ, 2, 0xFFFFFFFF)), 3
    ),
    "not IP": (frame(60), 0),
}  # fmt: skip


@pytest.mark.parametrize(("one", "queue"), CHOICES.values(), ids=CHOICES)
def test_the_queue_that_a_packet_takes(one: bytes | TransmitterPacket, queue: int) -> None:
    assert choose([one], 4, MAPPING) == [queue]


def test_toeplitz_without_a_mapping_takes_the_first_queue() -> None:
    told = TransmitterPacket(packet(), hash=PacketHash(TOEPLITZ, 2, 3))
    assert choose([told], 4, ()) == [0]
    assert choose([told], 2, (3, 3, 3, 3)) == [1]  # of more queues than there are now


def test_packets_of_one_flow_stay_in_order_on_one_ring() -> None:
    with wire(vcpus=4) as w:
        assert len(w.frontend.queues) == 4
        flows = [udp4(40 + at)[:37] + bytes((at % 8,)) + udp4(40 + at)[38:] for at in range(64)]
        w.send(*flows)
        arrived = [one.data for one in w.sink.frames]
        assert sorted(arrived) == sorted(flows)
        for flow in range(8):
            mine = [data for data in arrived if data[37] == flow]
            assert [len(data) for data in mine] == sorted(len(data) for data in mine)
        used = [queue.transmitter.posted for queue in w.frontend.queues if queue.transmitter]
        assert sum(map(bool, used)) > 1


def test_hashed_packets_are_spread_by_their_hash() -> None:
    with wire(vcpus=4) as w:
        told = [PacketHash(UNSPECIFIED, 0, value) for value in range(4)]
        w.send(*[TransmitterPacket(udp4(100), hash=one) for one in told])
        posted = [queue.transmitter.posted for queue in w.frontend.queues if queue.transmitter]
        assert posted == [2, 2, 2, 2]
