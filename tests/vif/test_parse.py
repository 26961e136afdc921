"""Where headers end: literal frames, cut at every byte, and any bytes at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpv.vif.packet import NO_HEADER, Header, PacketInfo
from xenpv.vif.parse import HEADERS_MAX, LENGTH_BITS, header_length, headers_of, parse, traits_of

MACS = bytes(12)
IPV4 = "4500 0054 0001 0000 4000 0000 0a000001 0a000002"


def ether(kind: str, rest: str, pad: int = 200) -> bytes:
    return MACS + bytes.fromhex(kind) + bytes.fromhex(rest) + bytes(pad)


def ipv4(protocol: int, payload: str = "", *, header: str = IPV4) -> bytes:
    packet = bytearray.fromhex(header)
    packet[9] = protocol
    return MACS + b"\x08\x00" + bytes(packet) + bytes.fromhex(payload) + bytes(100)


def ipv6(following: int, rest: str) -> bytes:
    head = bytes.fromhex("60000000 0064") + bytes((following, 64)) + bytes(32)
    return MACS + b"\x86\xdd" + head + bytes.fromhex(rest) + bytes(100)


FRAMES = {
    "ARP": (ether("0806", "0001 0800 0604 0001"), 14),
    "an unknown type": (ether("88b5", ""), 14),
    "LLC": (ether("0064", "4242 03"), 17),
    "SNAP": (ether("0064", "aaaa03 000000 0800"), 22),
    "a tag": (ether("8100", "0064 88b5"), 18),
    "ICMP": (ipv4(1), 34),
    "UDP": (ipv4(17), 42),
    "TCP": (ipv4(6, "11112222 00000000 00000000 5000"), 54),
    "TCP with options": (ipv4(6, "11112222 00000000 00000000 f000"), 94),
    "TCP with an offset that is none": (ipv4(6, "11112222 00000000 00000000 4000"), 34),
    "IPv4 options": (ipv4(17, header="46" + IPV4[2:] + "01010101"), 46),
    "a first fragment": (ipv4(17, header=IPV4.replace("0001 0000", "0001 2000")), 34),
    "a later fragment": (ipv4(17, header=IPV4.replace("0001 0000", "0001 0001")), 34),
    "IPv4 that is not": (ipv4(17, header="65" + IPV4[2:]), 14),
    "an IPv4 header too short": (ipv4(17, header="44" + IPV4[2:]), 14),
    "tagged UDP": (ether("8100", "0064 0800" + IPV4.replace("4000 0000", "4011 0000")), 46),
    "IPv6 UDP": (ipv6(17, ""), 62),
    "IPv6 TCP": (ipv6(6, "11112222 00000000 00000000 5000"), 74),
    "IPv6 hop-by-hop, UDP": (ipv6(0, "1100 000000000000"), 70),
    "IPv6 AH, UDP": (ipv6(51, "1101 0000 00000000 00000000"), 74),
    "an IPv6 fragment": (ipv6(44, "1100 0001 00000000"), 62),
}


@pytest.mark.parametrize(("frame", "end"), FRAMES.values(), ids=FRAMES)
def test_headers_end_where_the_protocols_say(frame: bytes, end: int) -> None:
    assert header_length(frame) == end


@pytest.mark.parametrize("frame", [frame for frame, _ in FRAMES.values()], ids=FRAMES)
def test_a_frame_cut_anywhere_has_its_headers_inside(frame: bytes) -> None:
    least = 18 if frame[12:14] == b"\x81\x00" else 14
    for size in range(len(frame)):
        assert header_length(frame[:size]) <= size
        assert (header_length(frame[:size]) == 0) == (size < 14 or 14 <= size < least)


def test_a_chain_of_extension_headers_stops_at_the_buffer() -> None:
    frame = ipv6(0, "00ff" + "00" * 2046)
    assert header_length(frame) == 14
    assert not parse(frame)[1]


@given(
    st.binary(max_size=700), st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x81\x00", b"\x00\x40"])
)
def test_any_bytes_have_headers_of_a_possible_length(raw: bytes, kind: bytes) -> None:
    frame = raw[:12] + kind + raw[12:]
    length = header_length(frame)
    assert length <= min(len(frame), HEADERS_MAX)
    assert length == 0 or length >= 14
    info, _ = parse(frame)
    parts = [part.length for part in info[2:]]
    assert info.length == length == sum(parts)
    assert headers_of(frame) >> LENGTH_BITS == traits_of(frame, info)


E = Header(0, 14)
WHERE = {
    "LLC": (PacketInfo(17, False, E, llc=Header(14, 3)), True),
    "SNAP": (PacketInfo(22, False, E, llc=Header(14, 8)), True),
    "TCP with options": (
        PacketInfo(94, False, E, ip=Header(14, 20), tcp=Header(34, 20), tcp_options=Header(54, 40)), True
    ),
    "TCP with an offset that is none": (PacketInfo(34, False, E, ip=Header(14, 20)), False),
    "IPv4 options": (
        PacketInfo(46, False, E, ip=Header(14, 20), ip_options=Header(34, 4), udp=Header(38, 8)), True
    ),
    "a later fragment": (PacketInfo(34, True, E, ip=Header(14, 20)), True),
    "IPv4 that is not": (PacketInfo(14, False, E), False),
    "tagged UDP": (PacketInfo(46, False, Header(0, 18), ip=Header(18, 20), udp=Header(38, 8)), True),
    "IPv6 hop-by-hop, UDP": (
        PacketInfo(70, False, E, ip=Header(14, 40), ip_options=Header(54, 8), udp=Header(62, 8)), True
    ),
    "an IPv6 fragment": (
        PacketInfo(62, True, E, ip=Header(14, 40), ip_options=Header(54, 8)), True
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "told"), WHERE.items(), ids=WHERE)
def test_each_header_is_found_where_it_lies(name: str, told: tuple[PacketInfo, bool]) -> None:
    assert parse(FRAMES[name][0]) == told


def test_an_ip_length_beyond_the_frame_is_no_ip() -> None:
    frame = ipv4(17)
    assert parse(frame[:98])[0].ip
    assert parse(frame[:97]) == (PacketInfo(14, False, E), False)
    six = ipv6(17, "")
    assert parse(six[: 54 + 100])[0].udp
    assert parse(six[: 54 + 99]) == (PacketInfo(14, False, E), False)


def test_an_atomic_fragment_is_a_whole_packet() -> None:
    info, whole = parse(ipv6(44, "1100 0000 00000000"))
    assert whole
    assert not info.is_fragment
    assert info.udp == Header(62, 8)


@pytest.mark.parametrize(("count", "found"), [(57, True), (58, False), (100, False)])
def test_extension_headers_must_fit_the_header_buffer(count: int, found: bool) -> None:
    frame = ipv6(0, "0000 000000000000" * (count - 1) + "3b00 000000000000")
    packet = frame[:18] + (8 * count).to_bytes(2, "big") + frame[20:]
    assert parse(packet)[0].ip == (Header(14, 40) if found else NO_HEADER)
