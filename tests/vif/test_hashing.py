"""XenVif's own flow hash, against a step-by-step reading of its definition."""

from __future__ import annotations

from tests.vif.rawback import frame
from xenpv.vif.hashing import flow_hash

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
