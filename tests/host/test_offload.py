from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import ARP, Dot1Q, Ether

from xenpv.errors import PeerProtocolError
from xenpv.host.network import GSO_NONE, GSO_TCPV4, GSO_TCPV6, Frame
from xenpv.host.offload import blank_checksum, finish_checksum, segment, to_wire

ETHER = Ether(dst="00:16:3e:00:00:02", src="00:16:3e:00:00:01")
V4 = IP(src="192.0.2.1", dst="192.0.2.2", id=0xFFFE, flags="DF")
V6 = IPv6(src="fe80::1", dst="fe80::2")
SEEDED = {4: GSO_TCPV4, 6: GSO_TCPV6}


def scapy_finished(data: bytes) -> bytes:
    """The same packet with every length and checksum computed by scapy."""
    frame = Ether(data)
    for layer, fields in ((IP, ("len", "chksum")), (IPv6, ("plen",)), (TCP, ("chksum",))):
        if layer in frame:
            for field in fields:
                delattr(frame[layer], field)
    return bytes(frame)


@pytest.mark.parametrize(
    "packet",
    [
        ETHER / V4 / TCP(sport=1, dport=2) / b"odd",
        ETHER / V4 / UDP(sport=1, dport=2) / b"even",
        ETHER / V6 / TCP(sport=1, dport=2, options=[("Timestamp", (1, 2))]),
        ETHER / V6 / IPv6ExtHdrDestOpt() / UDP(sport=1, dport=2) / b"extension",
        ETHER / Dot1Q(vlan=9) / V4 / TCP() / b"tagged",
    ],
    ids=lambda packet: packet.summary(),
)
def test_blank_then_finished_checksum_is_scapys(packet):
    data = bytes(packet)
    blank = blank_checksum(Frame(data))
    assert blank.csum_blank
    assert blank.data_validated
    assert blank.data != data
    assert finish_checksum(blank) == Frame(data, data_validated=True)


def test_blank_checksum_holds_the_folded_sum_of_the_pseudo_header():
    # 192.0.2.1 -> 192.0.2.2, UDP, 10 bytes: c000+0201+c000+0202+0011+000a = 1841e -> 841f
    blank = blank_checksum(Frame(bytes(ETHER / V4 / UDP(sport=1, dport=2) / b"ab")))
    assert blank.data[40:42] == bytes.fromhex("841f")


def test_ethernet_padding_stays_and_is_not_summed():
    data = bytes(ETHER / V4 / TCP() / b"x")
    blank = blank_checksum(Frame(data + b"\xff" * 5))
    assert finish_checksum(blank).data == data + b"\xff" * 5


def test_a_wrong_pseudo_header_sum_shows_as_a_wrong_checksum():
    data = bytes(ETHER / V4 / TCP() / b"x")
    zeroed = data[:50] + b"\0\0" + data[52:]
    assert finish_checksum(Frame(zeroed, csum_blank=True)).data != data


def test_udp_checksum_zero_is_written_as_ffff():
    data = bytes(ETHER / V4 / UDP(sport=1, dport=2) / b"\0\0")
    payload = data[40:42]  # its own checksum as payload makes the sum 0xFFFF
    blank = blank_checksum(Frame(bytes(ETHER / V4 / UDP(sport=1, dport=2) / payload)))
    assert finish_checksum(blank).data[40:42] == b"\xff\xff"


def test_frames_without_offloads_pass_as_they_are():
    frame = Frame(b"anything at all")
    assert finish_checksum(frame) is frame
    assert segment(frame) == [frame]
    assert to_wire(frame) == [frame.data]


@pytest.mark.parametrize(
    "data",
    [
        bytes(ETHER / ARP(psrc="192.0.2.1", hwsrc="00:16:3e:00:00:01")),
        bytes(ETHER / V4 / b"not UDP"),
        bytes(ETHER / IP(src="192.0.2.1", dst="192.0.2.2", proto=17, flags="MF") / bytes(40)),
        bytes(ETHER / IP(src="192.0.2.1", dst="192.0.2.2", proto=17) / bytes(7)),
        bytes(ETHER / IP(src="192.0.2.1", dst="192.0.2.2", proto=6) / bytes(19)),
        b"",
    ],
)
def test_blank_checksum_of_no_whole_tcp_or_udp_packet_is_the_peers_fault(data):
    with pytest.raises(PeerProtocolError):
        finish_checksum(Frame(data, csum_blank=True))


@pytest.mark.parametrize(
    ("data", "gso_type", "gso_size"),
    [
        (bytes(ETHER / V4 / TCP() / bytes(99)), GSO_TCPV6, 10),
        (bytes(ETHER / V6 / TCP() / bytes(99)), GSO_TCPV4, 10),
        (bytes(ETHER / V4 / UDP() / bytes(99)), GSO_TCPV4, 10),
        (bytes(ETHER / V4 / TCP() / bytes(99)), 3, 10),
        (bytes(ETHER / V4 / TCP() / bytes(99)), GSO_TCPV4, 0),
        (bytes(ETHER / V4 / TCP(dataofs=4) / bytes(99)), GSO_TCPV4, 10),
        (bytes(ETHER / V4 / TCP(dataofs=15) / bytes(39)), GSO_TCPV4, 10),
    ],
)
def test_gso_that_does_not_fit_the_packet_is_the_peers_fault(data, gso_type, gso_size):
    with pytest.raises(PeerProtocolError):
        segment(Frame(data, csum_blank=True, gso_type=gso_type, gso_size=gso_size))


def gso(packet, size, *, blank=True):
    version = 4 if IP in packet else 6
    frame = Frame(bytes(packet), gso_type=SEEDED[version], gso_size=size)
    return blank_checksum(frame) if blank else frame


@pytest.mark.parametrize("blank", [True, False])
@pytest.mark.parametrize(
    "headers",
    [
        ETHER / V4,
        ETHER / IP(src="192.0.2.1", dst="192.0.2.2", options=b"\x01" * 4),
        ETHER / V6,
        ETHER / V6 / IPv6ExtHdrDestOpt(),
        ETHER / Dot1Q(vlan=9) / V4,
    ],
    ids=lambda packet: packet.summary(),
)
def test_segments_are_valid_packets_that_carry_the_payload_once(headers, blank):
    payload = bytes(range(251)) * 13
    tcp = TCP(sport=1, dport=2, seq=0xFFFFFF00, options=[("Timestamp", (1, 2))])
    frame = gso(headers / tcp / payload, 1000, blank=blank)
    parts = to_wire(frame)
    assert parts == [scapy_finished(part) for part in parts]
    assert [bytes(Ether(part)[TCP].payload) for part in parts] == [
        payload[:1000],
        payload[1000:2000],
        payload[2000:3000],
        payload[3000:],
    ]


def test_segments_count_up_ident_and_sequence_with_wrap():
    packet = ETHER / V4 / TCP(seq=0xFFFFFF00) / bytes(900)
    parts = [Ether(part) for part in to_wire(gso(packet, 300))]
    assert [part[IP].id for part in parts] == [0xFFFE, 0xFFFF, 0]
    assert [part[TCP].seq for part in parts] == [0xFFFFFF00, 0x2C, 0x158]


def test_cwr_stays_on_the_first_segment_and_push_and_fin_on_the_last():
    packet = ETHER / V4 / TCP(flags="FPAEC") / bytes(900)
    parts = [Ether(part) for part in to_wire(gso(packet, 300))]
    assert [str(part[TCP].flags) for part in parts] == ["AEC", "AE", "FPAE"]


def test_segments_keep_a_blank_checksum_and_the_hash():
    frame = gso(ETHER / V6 / TCP() / bytes(900), 300)
    frame.hash = (3, 0x12345678)
    for part in segment(frame):
        assert part.csum_blank
        assert part.data_validated
        assert part.gso_type == GSO_NONE
        assert part.hash == (3, 0x12345678)


@pytest.mark.parametrize("size", [900, 901, 65535])
def test_payload_of_one_segment_is_sent_without_gso(size):
    packet = ETHER / V4 / TCP(flags="PA") / bytes(900)
    frame = gso(packet, size)
    assert segment(frame) == [Frame(frame.data, csum_blank=True, data_validated=True)]
    assert to_wire(frame) == [bytes(packet)]


def test_a_packet_of_the_largest_size_is_cut():
    packet = ETHER / V4 / TCP() / bytes(65535 - 40)
    parts = to_wire(gso(packet, 1460))
    assert len(parts) == 45
    assert sum(len(Ether(part)[TCP].payload) for part in parts) == 65495


@given(
    payload=st.binary(min_size=1, max_size=600),
    size=st.integers(1, 700),
    padding=st.integers(0, 40),
    six=st.booleans(),
)
def test_segmentation_conserves_the_stream(payload, size, padding, six):
    packet = ETHER / (V6 if six else V4) / TCP(seq=77) / payload
    frame = gso(packet, size)
    frame.data += bytes(padding)
    parts = to_wire(frame)
    assert len(parts) == -(-len(payload) // size)
    assert b"".join(Ether(part)[TCP].payload.load for part in parts) == payload
    assert parts == [scapy_finished(part) for part in parts]


@given(
    data=st.binary(max_size=120),
    ethertype=st.sampled_from([b"\x08\x00\x45", b"\x86\xdd\x60", b"\x81\x00"]),
    gso_type=st.integers(0, 3),
    gso_size=st.integers(0, 65535),
    blank=st.booleans(),
)
def test_arbitrary_frames_are_finished_or_refused(data, ethertype, gso_type, gso_size, blank):
    frame = Frame(
        data[:12] + ethertype + data[12:], csum_blank=blank, gso_type=gso_type, gso_size=gso_size
    )
    try:
        parts = to_wire(frame)
    except PeerProtocolError:
        return
    assert 1 <= len(parts) <= len(frame.data)
