"""virtio_net_hdr beside Frame, both ways, with what neither may say."""

from __future__ import annotations

import struct

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Dot1Q, Ether

from xenpv.errors import PeerProtocolError
from xenpv.host import vnet
from xenpv.host.network import GSO_NONE, GSO_TCPV4, GSO_TCPV6, Frame
from xenpv.host.offload import blank_checksum, finish_checksum, to_wire

ETHER = Ether(dst="00:16:3e:00:00:02", src="00:16:3e:00:00:01")
V4 = IP(src="192.0.2.1", dst="192.0.2.2")
V6 = IPv6(src="2001:db8::1", dst="2001:db8::2")
T, U = TCP(sport=1, dport=2, flags="A"), UDP(sport=1, dport=2)

TCP4 = bytes(ETHER / V4 / T / b"hello")
TCP6 = bytes(ETHER / V6 / T / b"hello")
UDP4 = bytes(ETHER / V4 / U / b"hello")
UDP6 = bytes(ETHER / V6 / U / b"hello")
TAGGED = bytes(ETHER / Dot1Q(vlan=5) / V4 / T / b"hello")
OPTIONS = bytes(ETHER / IP(src="192.0.2.1", dst="192.0.2.2", options=b"\1" * 8) / T / b"hello")
EXTENDED = bytes(ETHER / V6 / IPv6ExtHdrHopByHop() / U / b"hello")
PING = bytes(ETHER / V4 / ICMP() / b"hello")
LARGE4 = bytes(ETHER / V4 / T / bytes(4000))
LARGE6 = bytes(ETHER / V6 / T / bytes(4000))


def header(flags=0, kind=0, length=0, size=0, start=0, offset=0):
    return struct.pack("=BBHHHH", flags, kind, length, size, start, offset)


def blanked(data, **fields):
    return blank_checksum(Frame(data, **fields)).data


# header from the kernel, frame, what it is to us (csum_blank, data_validated, gso_type, gso_size)
PARSED = {
    "nothing": (header(), TCP4, (False, False, 0, 0)),
    "data valid": (header(2), TCP4, (False, True, 0, 0)),
    "tcp4 sum": (header(1, start=34, offset=16), TCP4, (True, True, 0, 0)),
    "udp4 sum": (header(1, start=34, offset=6), UDP4, (True, True, 0, 0)),
    "tcp6 sum": (header(1, start=54, offset=16), TCP6, (True, True, 0, 0)),
    "udp6 sum": (header(1, start=54, offset=6), UDP6, (True, True, 0, 0)),
    "tagged": (header(1, start=38, offset=16), TAGGED, (True, True, 0, 0)),
    "options": (header(1, start=42, offset=16), OPTIONS, (True, True, 0, 0)),
    "extension header": (header(1, start=62, offset=6), EXTENDED, (True, True, 0, 0)),
    "tso4": (header(1, 1, 54, 1448, 34, 16), LARGE4, (True, True, 1, 1448)),
    "tso4, no hdr_len": (header(1, 1, 0, 1448, 34, 16), LARGE4, (True, True, 1, 1448)),
    "tso4 with ecn": (header(1, 0x81, 54, 1448, 34, 16), LARGE4, (True, True, 1, 1448)),
    "tso6": (header(1, 4, 74, 1428, 54, 16), LARGE6, (True, True, 2, 1428)),
}


@pytest.mark.parametrize("row", PARSED.values(), ids=PARSED)
def test_a_frame_of_the_kernel_says_what_its_header_said(row):
    head, data, expected = row
    frame = vnet.parse(head + data)
    assert frame.data == data
    assert (frame.csum_blank, frame.data_validated, frame.gso_type, frame.gso_size) == expected


REFUSED = {
    "no header": (b"\0" * 9, "9 bytes: expected a header of 10"),
    "no frame": (header() + bytes(13), "a frame of 13 bytes"),
    "too long": (header() + bytes(65550), "a frame of 65550 bytes"),
    "sum behind the end": (header(1, start=50, offset=16) + TCP4, "checksum at 50\\+16"),
    "sum half behind": (header(1, start=42, offset=16) + TCP4, "checksum at 42\\+16 of 59"),
    "sum far behind": (header(1, start=65535, offset=65535) + TCP4, "checksum at 65535\\+65535"),
    "ufo": (header(1, 3, 42, 1448, 34, 6) + UDP4, "gso_type 0x3"),
    "uso": (header(1, 5, 42, 1448, 34, 6) + UDP4, "gso_type 0x5"),
    "ecn alone": (header(1, 0x82, 54, 1448, 34, 16) + LARGE4, "gso_type 0x82"),
    "large without sum": (header(0, 1, 54, 1448) + LARGE4, "not to be done"),
    "large, size 0": (header(1, 1, 54, 0, 34, 16) + LARGE4, "gso_size 0"),
    "large udp": (header(1, 1, 54, 1448, 34, 6) + UDP4, "gso_size 1448 of protocol 17"),
    "tso6 of ipv4": (header(1, 4, 54, 1448, 34, 16) + LARGE4, "does not fit"),
    "large, inner sum": (header(1, 1, 54, 1448, 44, 16) + LARGE4, "does not fit"),
}


@pytest.mark.parametrize("row", REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused(row):
    raw, words = row
    with pytest.raises(PeerProtocolError, match=words):
        vnet.parse(raw)


def test_a_sum_of_no_tcp_or_udp_is_finished_here():
    data = PING[:36] + b"\0\0" + PING[38:]
    frame = vnet.parse(header(1, start=34, offset=2) + data)
    assert frame == Frame(PING, data_validated=True)


def test_a_sum_that_comes_out_as_zero_is_written_as_its_other_form():
    data = bytes(12) + b"\x88\xb5" + b"\0\0" + b"\xff\xff"
    assert vnet.parse(header(1, start=14, offset=0) + data).data[14:] == b"\xff" * 4


def test_the_sum_of_an_inner_packet_is_finished_here():
    inner = bytes(ETHER / V4 / T / b"hello")
    vxlan = bytes(ETHER / V4 / UDP(sport=1, dport=4789, chksum=0) / (bytes(8) + blanked(inner)))
    frame = vnet.parse(header(1, start=50 + 34, offset=16) + vxlan)
    assert not frame.csum_blank
    assert frame.data[50:] == inner


# frame, header that the kernel gets
EMITTED = {
    "nothing": (Frame(TCP4), header()),
    "validated": (Frame(TCP4, data_validated=True), header(2)),
    "tcp4 sum": (Frame(blanked(TCP4), csum_blank=True), header(1, start=34, offset=16)),
    "udp6 sum": (Frame(blanked(UDP6), csum_blank=True), header(1, start=54, offset=6)),
    "tagged": (Frame(blanked(TAGGED), csum_blank=True), header(1, start=38, offset=16)),
    "tso4": (
        Frame(blanked(LARGE4), csum_blank=True, gso_type=GSO_TCPV4, gso_size=1448),
        header(1, 1, 54, 1448, 34, 16),
    ),
    "tso6": (
        Frame(blanked(LARGE6), csum_blank=True, gso_type=GSO_TCPV6, gso_size=1428),
        header(1, 4, 74, 1428, 54, 16),
    ),
}


@pytest.mark.parametrize("row", EMITTED.values(), ids=EMITTED)
def test_the_kernel_gets_what_the_frame_says(row):
    frame, expected = row
    assert vnet.emit(frame) == (expected, frame.data)


def test_a_large_packet_with_its_sum_written_gets_a_blank_one():
    head, data = vnet.emit(Frame(LARGE4, gso_type=GSO_TCPV4, gso_size=1448))
    assert (head, data) == (header(1, 1, 54, 1448, 34, 16), blanked(LARGE4))


UNFINISHED = {
    "sum of a ping": Frame(PING, csum_blank=True),
    "sum of what is no ip": Frame(bytes(60), csum_blank=True),
    "sum behind the packet": Frame(TCP4[:16] + b"\0\x1e" + TCP4[18:], csum_blank=True),
    "large ping": Frame(PING, csum_blank=True, gso_type=GSO_TCPV4, gso_size=100),
    "large udp": Frame(UDP4, csum_blank=True, gso_type=GSO_TCPV4, gso_size=100),
    "v6 of v4": Frame(LARGE4, csum_blank=True, gso_type=GSO_TCPV6, gso_size=100),
    "unknown kind": Frame(LARGE4, csum_blank=True, gso_type=7, gso_size=100),
    "size 0": Frame(LARGE4, csum_blank=True, gso_type=GSO_TCPV4),
    "size over u16": Frame(LARGE4, csum_blank=True, gso_type=GSO_TCPV4, gso_size=65536),
    "header outside": Frame(
        LARGE4[:46] + b"\x40" + LARGE4[47:], csum_blank=True, gso_type=GSO_TCPV4, gso_size=9
    ),
}


@pytest.mark.parametrize("frame", UNFINISHED.values(), ids=UNFINISHED)
def test_what_the_kernel_would_refuse_is_not_written(frame):
    with pytest.raises(PeerProtocolError):
        vnet.emit(frame)


@given(
    st.binary(max_size=120),
    st.sampled_from([b"", TCP4, UDP6, LARGE4, TAGGED]),
    st.binary(max_size=30),
)
def test_hostile_bytes_give_a_frame_or_one_error(head, data, tail):
    """A guest or a kernel may say anything: then what is parsed can be written and finished."""
    try:
        frame = vnet.parse(head[:10] + data + tail)
    except PeerProtocolError:
        return
    try:
        vnet.emit(frame)
        to_wire(frame)
    except PeerProtocolError:
        assert frame.csum_blank or frame.gso_type


@given(
    st.binary(max_size=80),
    st.booleans(),
    st.integers(0, 3),
    st.integers(0, 70000),
)
def test_hostile_frames_are_written_or_refused(data, blank, kind, size):
    for base in (data, TCP4[: len(data)] + data, LARGE6[: len(data)] + data):
        try:
            head, out = vnet.emit(Frame(base, csum_blank=blank, gso_type=kind, gso_size=size))
        except PeerProtocolError:
            continue
        flags, _, length, _, start, offset = struct.unpack("=BBHHHH", head)
        if flags & 1:
            assert start + offset + 2 <= len(out)
            assert length <= len(out)


@pytest.mark.parametrize("data", [TCP4, TCP6, UDP4, UDP6, TAGGED, OPTIONS, EXTENDED])
def test_there_and_back_the_sum_is_the_one_on_the_wire(data):
    frame = blank_checksum(Frame(data))
    head, out = vnet.emit(frame)
    back = vnet.parse(head + out)
    assert back == attrs.evolve(frame, gso_type=GSO_NONE)
    assert finish_checksum(back).data == data
