"""What a guest's XenVif says of checksums, tags and hashes; scapy computes what is right."""

from __future__ import annotations

from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from tests.vif.rawback import GUEST_MAC, PEER_MAC, frame, rx
from tests.vif.rxscene import (
    ALL_SUMS,
    BLANK,
    V4,
    V6,
    VALIDATED,
    blank,
    deliver,
    ether,
    hash_extra,
    payload,
    sums_right,
    upper_scene,
)
from xenpv.abi._kernel import ffi, lib
from xenpv.vif.packet import NO_HASH, Checksum, HashAlgorithm, Offload, PacketHash
from xenpv.vif.parse import parse, traits_of
from xenpv.vif.receivehash import HashSettings
from xenpv.vif.statistics import Statistic

C = Checksum
DATA = payload(100)


def broken(data: bytes, at: int) -> bytes:
    """With one byte of a checksum changed."""
    return data[:at] + bytes((data[at] ^ 0x55,)) + data[at + 1 :]


V4_TCP = ether(V4 / TCP() / DATA)
V4_UDP = ether(V4 / UDP() / DATA)
V6_TCP = ether(V6 / TCP() / DATA)
V6_UDP = ether(V6 / UDP() / DATA)
V4_UDP_NONE = V4_UDP[:40] + b"\0\0" + V4_UDP[42:]
V6_UDP_NONE = V6_UDP[:60] + b"\0\0" + V6_UDP[62:]
IP_OK, IP_BAD, IP_NOT = C.IP_SUCCEEDED, C.IP_FAILED, C.IP_NOT_VALIDATED
TCP_OK, TCP_BAD, TCP_NOT = C.TCP_SUCCEEDED, C.TCP_FAILED, C.TCP_NOT_VALIDATED
UDP_OK, UDP_BAD, UDP_NOT = C.UDP_SUCCEEDED, C.UDP_FAILED, C.UDP_NOT_VALIDATED

# packet, flags of its response, offload options, what is said of it
SAID: dict[str, tuple[bytes, int, int, int]] = {
    "IPv4, nothing offloaded": (V4_TCP, 0, 0, IP_NOT | TCP_NOT),
    "IPv6, nothing offloaded": (V6_UDP, 0, 0, UDP_NOT),
    "validated, nothing offloaded": (V4_TCP, VALIDATED, 0, IP_NOT | TCP_NOT),
    "blank, nothing offloaded": (blank(V4_UDP, IP, UDP), 3, 0, IP_NOT | UDP_NOT),
    "TCP over IPv4, right": (V4_TCP, 0, ALL_SUMS, IP_OK | TCP_OK),
    "TCP over IPv4, wrong": (broken(V4_TCP, 50), 0, ALL_SUMS, IP_OK | TCP_BAD),
    "TCP over IPv4, wrong header": (broken(V4_TCP, 24), 0, ALL_SUMS, IP_BAD | TCP_OK),
    "TCP over IPv6, right": (V6_TCP, 0, ALL_SUMS, TCP_OK),
    "TCP over IPv6, wrong": (broken(V6_TCP, 71), 0, ALL_SUMS, TCP_BAD),
    "UDP over IPv4, right": (V4_UDP, 0, ALL_SUMS, IP_OK | UDP_OK),
    "UDP over IPv4, wrong": (broken(V4_UDP, 41), 0, ALL_SUMS, IP_OK | UDP_BAD),
    "UDP over IPv4 without a sum": (V4_UDP_NONE, 0, ALL_SUMS, IP_OK | UDP_OK),
    "UDP over IPv6, right": (V6_UDP, 0, ALL_SUMS, UDP_OK),
    "UDP over IPv6 without a sum": (V6_UDP_NONE, 0, ALL_SUMS, UDP_BAD),
    "validated and wrong": (broken(V4_TCP, 50), VALIDATED, ALL_SUMS, IP_OK | TCP_OK),
    "validated over IPv6 and wrong": (broken(V6_UDP, 61), VALIDATED, ALL_SUMS, UDP_OK),
    "blank and validated": (blank(V4_TCP, IP, TCP), 3, ALL_SUMS, IP_OK | TCP_OK),
    "blank alone": (blank(V4_TCP, IP, TCP), BLANK, ALL_SUMS, IP_OK | TCP_BAD),
    "only the header offloaded": (V4_TCP, VALIDATED, Offload.IPV4_HEADER_CHECKSUM, IP_OK | TCP_NOT),
    "only TCP over IPv4 offloaded": (V4_TCP, 0, Offload.IPV4_TCP_CHECKSUM, IP_NOT | TCP_OK),
    "only UDP over IPv4 offloaded": (V4_TCP, 0, Offload.IPV4_UDP_CHECKSUM, IP_NOT | TCP_NOT),
    "only TCP over IPv6 offloaded": (V6_TCP, 0, Offload.IPV6_TCP_CHECKSUM, TCP_OK),
    "IPv4's options do not speak for IPv6": (V6_TCP, 0, Offload.IPV4_TCP_CHECKSUM, TCP_NOT),
    "a fragment": (ether(IP(dst="10.0.0.1", flags="MF") / UDP() / DATA), 0, ALL_SUMS, IP_OK),
    "a later fragment": (ether(IP(dst="10.0.0.1", frag=9, proto=6) / Raw(DATA)), 0, ALL_SUMS, IP_OK),
    "a fragment over IPv6": (ether(V6 / IPv6ExtHdrFragment(m=1) / UDP() / DATA), 0, ALL_SUMS, 0),
    "an atomic fragment over IPv6": (ether(V6 / IPv6ExtHdrFragment() / UDP() / DATA), 0, ALL_SUMS, UDP_OK),
    "neither TCP nor UDP": (ether(V4 / ICMP() / DATA), 0, ALL_SUMS, IP_OK),
    "no IP": (ether(ARP()), 0, ALL_SUMS, 0),
    "IPv4 with options": (ether(IP(dst="10.0.0.1", options=[IPOption_NOP()] * 8) / UDP() / DATA), 0, ALL_SUMS, IP_OK | UDP_OK),
    "a tag before it": (ether(V4 / TCP() / DATA, tci=5), 0, ALL_SUMS, IP_OK | TCP_OK),
    "padded to 60 bytes": (ether(V4 / UDP() / b"x").ljust(60, b"\xee"), 0, ALL_SUMS, IP_OK | UDP_OK),
    "UDP shorter than its packet": (ether(IP(src="10.0.0.2", dst="10.0.0.1", proto=17) / Raw(bytes(V4 / UDP() / payload(10))[20:] + b"\xee" * 90)), 0, ALL_SUMS, IP_OK | UDP_OK),
    "extension headers of IPv6": (ether(V6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting(segleft=0) / IPv6ExtHdrDestOpt() / TCP() / DATA), 0, ALL_SUMS, TCP_OK),
    "an authentication header": (ether(IPv6(src="fd00::2", dst="fd00::1", nh=51) / Raw(bytes((6, 4)) + bytes(22)) / bytes(V6 / TCP() / DATA)[40:]), 0, ALL_SUMS, TCP_OK),
}  # fmt: skip


@pytest.mark.parametrize(("data", "flags", "offload", "said"), SAID.values(), ids=SAID)
def test_what_is_said_of_checksums(data: bytes, flags: int, offload: int, said: int) -> None:
    with upper_scene(int(offload)) as (s, upper):
        deliver(s, data, flags=flags)
        assert [Checksum(packet.flags) for packet in upper.got] == [Checksum(said)]
        query = s.pdo.frontend.statistics.query
        names = [name for name in Statistic if name.name.startswith("RECEIVER_IPV4_CHECKSUM")]
        counted = [query(Statistic.RECEIVER_IPV4_CHECKSUM_SUCCEEDED + bit) for bit in range(9)]
        assert names[0] == Statistic.RECEIVER_IPV4_CHECKSUM_SUCCEEDED
        assert counted == [said >> bit & 1 for bit in range(9)]


# flags, offload options, CalculateChecksums: whether the full sum is in the packet
WRITTEN: dict[str, tuple[int, int, int, bool]] = {
    "blank, for CalculateChecksums": (3, 0, 1, True),
    "blank, for NeedChecksumValue": (3, Offload.NEED_CHECKSUM_VALUE, 0, True),
    "blank and offloaded, for CalculateChecksums": (3, ALL_SUMS, 1, True),
    "blank, and nobody asks": (3, 0, 0, False),
    "blank and offloaded, and nobody asks": (3, ALL_SUMS, 0, False),
    "blank without data_validated": (BLANK, Offload.NEED_CHECKSUM_VALUE, 1, False),
    "neither": (0, Offload.NEED_CHECKSUM_VALUE, 1, False),
}
BLANKS = {
    "TCP over IPv4": blank(V4_TCP, IP, TCP),
    "UDP over IPv4": blank(V4_UDP, IP, UDP),
    "TCP over IPv6": blank(V6_TCP, IPv6, TCP),
    "UDP over IPv6": blank(V6_UDP, IPv6, UDP),
}


@pytest.mark.parametrize("data", BLANKS.values(), ids=BLANKS)
@pytest.mark.parametrize(
    ("flags", "offload", "calculate", "is_written"), WRITTEN.values(), ids=WRITTEN
)
def test_the_full_sum_is_written_where_it_is_wanted(
    data: bytes, flags: int, offload: int, calculate: int, is_written: bool
) -> None:
    with upper_scene(int(offload), parameters={"calculate_checksums": calculate}) as (s, upper):
        deliver(s, data, flags=flags)
        (packet,) = upper.got
        if is_written:
            assert sums_right(packet.data)
            assert len(packet.data) == len(data)
        else:
            assert packet.data == data


def test_a_sum_of_0_is_written_as_ffff_into_udp() -> None:
    data = ether(V4 / UDP(sport=0, chksum=0))
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(26, 42, 2)) + 17 + 8
    # The port makes the sum of the whole packet 0xFFFF, so that its complement is 0.
    data = ether(V4 / UDP(sport=-total % 0xFFFF, chksum=0))
    with upper_scene() as (s, upper):
        deliver(s, blank(data, IP, UDP), flags=3)
        assert upper.got[0].data[40:42] == b"\xff\xff"


def test_a_validated_packet_gets_its_sum_written_though_it_is_not_blank() -> None:
    with upper_scene() as (s, upper):
        deliver(s, broken(V4_TCP, 50), flags=VALIDATED)
        assert upper.got[0].data == V4_TCP


# tag


def test_a_tag_is_taken_out_where_that_is_wanted() -> None:
    data = ether(V4 / TCP() / DATA, tci=0xA123)
    with upper_scene(int(Offload.TAG_MANIPULATION)) as (s, upper):
        deliver(s, data)
        assert [(one.data, one.tci) for one in upper.got] == [(V4_TCP, 0xA123)]
        assert s.pdo.frontend.statistics.query(Statistic.RECEIVER_TAGGED_PACKETS) == 0
    with upper_scene() as (s, upper):
        deliver(s, data)
        assert [(one.data, one.tci) for one in upper.got] == [(data, 0)]
        assert s.pdo.frontend.statistics.query(Statistic.RECEIVER_TAGGED_PACKETS) == 1


@pytest.mark.parametrize(("level", "group", "passes"), [(2, 9, True), (1, 9, False), (1, 1, True)])
def test_a_tag_changes_nothing_about_the_filter(level: int, group: int, passes: bool) -> None:
    data = bytes((1, 0, 0x5E, 0, 0, group)) + ether(V4 / TCP() / DATA, tci=5)[6:]
    with upper_scene(int(Offload.TAG_MANIPULATION)) as (s, upper):
        s.pdo.frontend.mac.multicast = [bytes((1, 0, 0x5E, 0, 0, 1))]
        s.pdo.frontend.mac.set_filter_level(2, level)
        deliver(s, data)
        assert [(one.data, one.tci) for one in upper.got] == [(data[:12] + data[16:], 5)] * passes


@pytest.mark.parametrize(("size", "passes"), [(1518, True), (1519, False)])
def test_the_longest_frame_is_measured_with_its_tag(size: int, passes: bool) -> None:
    data = (GUEST_MAC + PEER_MAC + b"\x81\0\0\1\x88\xb5").ljust(size, b"x")
    with upper_scene(int(Offload.TAG_MANIPULATION)) as (s, upper):
        deliver(s, data)
        assert len(upper.got) == passes


# hash

HASHES = {
    "its type is enabled": (2, 1 << 2, hash_extra(1, 0x12345678), PacketHash(2, 2, 0x12345678)),
    "another type is enabled": (2, 1 << 1, hash_extra(1, 0x12345678), NO_HASH),
    "the algorithm is not Toeplitz": (1, 0x1E, hash_extra(1, 0x12345678), NO_HASH),
    "no algorithm": (0, 0x1E, hash_extra(1, 0x12345678), NO_HASH),
    "the extra has no algorithm": (2, 0x1E, hash_extra(1, 9, algorithm=0), NO_HASH),
    "the highest type": (2, 0x1E, hash_extra(3, 0xFFFFFFFF), PacketHash(2, 4, 0xFFFFFFFF)),
    "a bit beyond the types": (2, 0xFFFFFFFF, hash_extra(4, 9), NO_HASH),
    "a bit far beyond": (2, 0xFFFFFFFF, hash_extra(255, 9), NO_HASH),
}  # fmt: skip


@pytest.mark.parametrize(("algorithm", "types", "extra", "value"), HASHES.values(), ids=HASHES)
def test_a_hash_is_taken_if_it_was_asked_for(
    algorithm: int, types: int, extra: bytes, value: PacketHash
) -> None:
    with upper_scene() as (s, upper):
        s.pdo.frontend.receive_hash.settings = HashSettings(
            algorithm=HashAlgorithm(algorithm), types=types
        )
        deliver(s, V4_TCP, extras=[extra])
        assert [(one.data, one.hash) for one in upper.got] == [(V4_TCP, value)]


# what does not parse

IPV4_HEAD = GUEST_MAC + PEER_MAC + b"\x08\x00"
IPV6_HEAD = GUEST_MAC + PEER_MAC + b"\x86\xdd"


def changed(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


MALFORMED = {
    "a tag that is cut": GUEST_MAC + PEER_MAC + b"\x81\0\0\1\x08",
    "LLC that is cut": GUEST_MAC + PEER_MAC + b"\0\2\xaa\xaa",
    "SNAP that is cut": GUEST_MAC + PEER_MAC + b"\0\6\xaa\xaa\3\0\0\0",
    "IPv4 that is cut": IPV4_HEAD + b"\x45" + bytes(18),
    "IPv4 of version 5": changed(V4_TCP, 14, b"\x55"),
    "IPv4 with a header of 16 bytes": changed(V4_TCP, 14, b"\x44"),
    "IPv4 longer than the frame": changed(V4_TCP, 16, pack(">H", len(V4_TCP) - 13)),
    "IPv4 shorter than its header": changed(V4_TCP, 16, b"\0\x13"),
    "IPv4 of length 0": changed(V4_TCP, 16, b"\0\0"),
    "options that run out of the packet": changed(V4_UDP, 14, b"\x4f")[:70],
    "TCP behind the end of its packet": changed(V4_TCP, 16, b"\0\x27"),
    "TCP with a header of 16 bytes": changed(V4_TCP, 46, b"\x40"),
    "TCP options behind the end of its packet": changed(changed(V4_TCP, 16, b"\0\x28"), 46, b"\x60"),
    "UDP behind the end of its packet": changed(V4_UDP, 16, b"\0\x1b"),
    "IPv6 that is cut": IPV6_HEAD + b"\x60" + bytes(38),
    "IPv6 of version 4": changed(V6_TCP, 14, b"\x45"),
    "IPv6 longer than the frame": changed(V6_TCP, 18, pack(">H", len(V6_TCP) - 53)),
    "an extension header behind the end": changed(V6_TCP, 20, b"\0")[:60] + b"\xff\xff" + V6_TCP[62:],
    "an extension header longer than the packet": IPV6_HEAD + bytes.fromhex("600000000008003f") + bytes(32) + b"\x06\xff" + bytes(6),
    "a hundred extension headers": IPV6_HEAD + b"\x60\0\0\0" + pack(">H", 808) + b"\0\x3f" + bytes(32) + bytes(808),
    "UDP behind the end of an IPv6 packet": changed(V6_UDP, 18, b"\0\7"),
}  # fmt: skip


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("flags", [0, 3])
def test_a_packet_whose_headers_do_not_parse_is_a_frontend_error(data: bytes, flags: int) -> None:
    with upper_scene(int(ALL_SUMS)) as (s, upper):
        deliver(s, data, flags=flags)
        query = s.pdo.frontend.statistics.query
        assert upper.got == []
        assert query(Statistic.RECEIVER_FRONTEND_ERRORS) == 1
        assert query(Statistic.RECEIVER_PACKETS_DROPPED) == 1
        assert not s.broken


def test_ninety_nine_extension_headers_parse() -> None:
    chain = bytes(98 * 8) + b"\x11" + bytes(7) + bytes.fromhex("0001000200080000")
    data = IPV6_HEAD + b"\x60\0\0\0" + pack(">H", len(chain)) + b"\0\x3f" + bytes(32) + chain
    with upper_scene() as (s, upper):
        deliver(s, data)
        assert [one.flags for one in upper.got] == [C.UDP_NOT_VALIDATED]


@settings(max_examples=300, deadline=None)
@given(
    data=st.sampled_from(
        [*BLANKS.values(), *(row[0] for row in SAID.values()), *MALFORMED.values()]
    ),
    changes=st.lists(st.tuples(st.integers(12, 80), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 60),
)
def test_both_parsers_find_the_same_headers(
    data: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    """The kernel's, for what arrives, and parse.py's, for what is sent."""
    frame = bytearray(data[: len(data) - cut])
    for at, value in changes:
        if at < len(frame):
            frame[at] = value
    headers = ffi.new("struct net_headers *")
    parsed = lib.net_parse(ffi.from_buffer(frame), len(frame), headers)
    info, is_whole = parse(bytes(frame))
    if headers.length > 512 or info.length > 512:
        return  # more than the header buffer of what is sent
    if is_whole and not parsed:
        # What arrives may not end in its own headers either, by the length that IP says.
        ip = info.ip.offset
        v4 = frame[ip] >> 4 == 4
        size = frame[ip + 2 : ip + 4] if v4 else frame[ip + 4 : ip + 6]
        assert ip + int.from_bytes(size, "big") + (0 if v4 else 40) < info.length
    if parsed:
        assert is_whole
        assert headers.length == info.length
        assert (headers.ip, headers.tcp, headers.udp) == (
            info.ip.offset,
            info.tcp.offset,
            info.udp.offset,
        )
        assert headers.facts & 0x3F == traits_of(bytes(frame), info) & 0x3F
        assert bool(headers.facts & lib.NET_FRAGMENT) is info.is_fragment


def test_headers_longer_than_a_page_do_not_parse() -> None:
    chain = b"".join(bytes((0, 255)) + bytes(2046) for _ in range(2)) + b"\x3b\0" + bytes(6)
    data = IPV6_HEAD + b"\x60\0\0\0" + pack(">H", len(chain)) + b"\0\x3f" + bytes(32) + chain
    with upper_scene(mtu=9000) as (s, upper):
        deliver(s, data)
        assert upper.got == []
        assert s.pdo.frontend.statistics.query(Statistic.RECEIVER_FRONTEND_ERRORS) == 1


# statistics

COUNTED: dict[str, tuple[bytes, set[str]]] = {
    "TCP over IPv4": (V4_TCP, {"IPV4_PACKETS", "TCP_PACKETS", "IPV4_CHECKSUM_NOT_VALIDATED", "TCP_CHECKSUM_NOT_VALIDATED"}),
    "UDP over IPv6": (V6_UDP, {"IPV6_PACKETS", "UDP_PACKETS", "UDP_CHECKSUM_NOT_VALIDATED"}),
    "a tag": (ether(V6 / TCP(), tci=1), {"TAGGED_PACKETS", "IPV6_PACKETS", "TCP_PACKETS", "TCP_CHECKSUM_NOT_VALIDATED"}),
    "LLC": (GUEST_MAC + PEER_MAC + b"\0\x26\x42\x42\3" + bytes(35), {"LLC_SNAP_PACKETS"}),
    "SNAP": (GUEST_MAC + PEER_MAC + b"\5\xdc\xaa\xaa\3" + bytes(97), {"LLC_SNAP_PACKETS"}),
    "a type above 1500": (GUEST_MAC + PEER_MAC + b"\5\xdd" + bytes(97), set()),
    "ARP": (ether(ARP()), set()),
}  # fmt: skip


@pytest.mark.parametrize(("data", "counted"), COUNTED.values(), ids=COUNTED)
def test_a_packet_counts_by_what_it_carries(data: bytes, counted: set[str]) -> None:
    with upper_scene() as (s, upper):
        deliver(s, data)
        assert [one.data for one in upper.got] == [data]
        query = s.pdo.frontend.statistics.query
        moved = {
            name.name.removeprefix("RECEIVER_"): query(name) for name in Statistic if query(name)
        }
        assert moved == {"UNICAST_PACKETS": 1, "UNICAST_OCTETS": len(data)} | dict.fromkeys(
            counted, 1
        )


def test_indices_of_statistics_are_the_interface_s() -> None:
    assert len(Statistic) == 50
    firsts = {
        "TRANSMITTER_PACKETS_DROPPED": 0, "RECEIVER_PACKETS_DROPPED": 9, "RECEIVER_BACKEND_ERRORS": 10,
        "RECEIVER_BROADCAST_OCTETS": 17, "TRANSMITTER_TAGGED_PACKETS": 18, "TRANSMITTER_GSO_PACKETS": 24,
        "TRANSMITTER_IPV4_CHECKSUM_SUCCEEDED": 25, "TRANSMITTER_UDP_CHECKSUM_NOT_VALIDATED": 33,
        "RECEIVER_TAGGED_PACKETS": 34, "RECEIVER_LLC_SNAP_PACKETS": 35, "RECEIVER_TCP_PACKETS": 38,
        "RECEIVER_IPV4_CHECKSUM_SUCCEEDED": 41, "RECEIVER_TCP_CHECKSUM_FAILED": 45, "RECEIVER_UDP_CHECKSUM_NOT_VALIDATED": 49,
    }  # fmt: skip
    assert {name: Statistic[name].value for name in firsts} == firsts


@pytest.mark.parametrize("destination", [b"\xff" * 6, bytes.fromhex("333300000001")])
def test_groups_count_apart(destination: bytes) -> None:
    with upper_scene() as (s, _):
        s.pdo.frontend.mac.set_filter_level(2, 2)
        s.pdo.frontend.mac.set_filter_level(3, 1)
        s.back.send(frame(60, destination=destination), frame(70))
        s.run()
        query = s.pdo.frontend.statistics.query
        first = (
            Statistic.RECEIVER_BROADCAST_PACKETS
            if destination[0] == 255
            else Statistic.RECEIVER_MULTICAST_PACKETS
        )
        assert (query(first), query(first + 1)) == (1, 60)
        assert (
            query(Statistic.RECEIVER_UNICAST_PACKETS),
            query(Statistic.RECEIVER_UNICAST_OCTETS),
        ) == (1, 70)


# properties

ports = st.integers(0, 0xFFFF)


@st.composite
def packets(draw: st.DrawFn) -> tuple[Packet, type[Packet], type[Packet]]:
    """A TCP or UDP packet over IPv4 or IPv6 of any size; IP and transport layer of it."""
    network: Packet
    if draw(st.booleans()):
        network = IP(src=f"10.{draw(st.integers(0, 255))}.0.2", dst="10.0.0.1", id=draw(ports))
    else:
        network = IPv6(src="fd00::" + format(draw(ports), "x"), dst="fd00::1")
        for extension in draw(
            st.lists(st.sampled_from([IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt]), max_size=3)
        ):
            network /= extension()
    body = draw(st.binary(max_size=64)) * draw(st.integers(1, 20))
    if draw(st.booleans()):
        return (
            network / TCP(sport=draw(ports), seq=draw(st.integers(0, 0xFFFFFFFF))) / body,
            type(network),
            TCP,
        )
    return network / UDP(sport=draw(ports)) / body, type(network), UDP


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(packets(), st.integers(0, 3), st.booleans()), min_size=1, max_size=8))
def test_sums_are_those_of_scapy(
    several: list[tuple[tuple[Packet, type[Packet], type[Packet]], int, bool]],
) -> None:
    """Any mix of packets, blank or not, right or not, in one look at the ring."""
    with upper_scene(int(ALL_SUMS)) as (s, upper):
        s.back.take_posted()
        responses, right, expected = [], [], []
        for (packet, network, transport), flags, is_wrong in several:
            data = whole = ether(packet)
            if flags == 3:
                data = blank(whole, network, transport)
            elif is_wrong:
                at = (
                    len(whole)
                    - len(bytes(Ether(whole)[transport]))
                    + (16 if transport is TCP else 6)
                )
                data = broken(whole, at)
                if transport is UDP and network is IP and not data[at] | data[at + 1]:
                    data = whole
            number, ref = s.back.posted.pop(0)
            s.back.fill(ref, data)
            responses.append(rx(number, len(data), flags=flags))
            good = C.TCP_SUCCEEDED if transport is TCP else C.UDP_SUCCEEDED
            is_good = flags & VALIDATED or data == whole
            expected.append(good if is_good else good << 1)
            right.append(whole if flags & VALIDATED else data)
        s.back.answer_rx(*responses)
        s.run()
        assert [one.data for one in upper.got] == right
        assert [one.flags & ~7 for one in upper.got] == expected
