from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import AH
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.utils import checksum as scapy_checksum

from xenpv.errors import LocalProtocolError
from xenpv.host import packet
from xenpv.host.packet import EchoReply, Headers, internet_checksum, parse_headers

MAC_A = packet.mac_bytes("00:16:3e:00:00:01")
MAC_B = packet.mac_bytes("00:16:3e:00:00:02")
IP_A = packet.ipv4_bytes("192.0.2.1")
IP_B = packet.ipv4_bytes("192.0.2.2")
# Every address is given: scapy would look missing ones up in the machine's network.
ETHER = Ether(dst="00:16:3e:00:00:02", src="00:16:3e:00:00:01")
ENDS = {"src": "192.0.2.1", "dst": "192.0.2.2"}
ENDS6 = {"src": "2001:db8::1", "dst": "2001:db8::2"}
IP6_A = bytes.fromhex("fe80000000000000 02163efffe000001")
IP6_B = bytes.fromhex("fe80000000000000 02163efffe000002")


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        ("0001 f203 f4f5 f6f7", 0x220D),  # RFC 1071 section 3: the sum is ddf2
        ("4500 0073 0000 4000 4011 0000 c0a8 0001 c0a8 00c7", 0xB861),  # a published IPv4 header
        ("", 0xFFFF),
        ("0000 0000", 0xFFFF),
        ("ffff", 0x0000),
        ("ffff ffff", 0x0000),
        ("8000 8000", 0xFFFE),  # the carry comes back in
        ("01", 0xFEFF),  # an odd byte is the high one
    ],
)
def test_internet_checksum_of_known_data(data, checksum):
    assert internet_checksum(bytes.fromhex(data)) == checksum


@given(st.binary(max_size=2000))
@example(bytes(1500))
@example(b"\xff" * 1501)
def test_internet_checksum_agrees_with_scapy(data):
    assert internet_checksum(data) == scapy_checksum(data)


@given(st.binary(max_size=300), st.integers(0, 150))
def test_data_with_their_checksum_sum_up_to_zero(data, at):
    at = min(at * 2, len(data) & ~1)
    blank = data[:at] + b"\0\0" + data[at:]
    assume(any(blank))  # all zero is the one sum that has no other form
    filled = data[:at] + internet_checksum(blank).to_bytes(2, "big") + data[at:]
    assert internet_checksum(filled) == 0


def test_addresses_are_read_from_text():
    assert packet.mac_bytes("FE:ff:ff:ff:ff:0a") == bytes.fromhex("feffffffff0a")
    assert packet.ipv4_bytes("10.0.255.1") == bytes([10, 0, 255, 1])


@pytest.mark.parametrize("text", ["", "00:16:3e:00:00", "00:16:3e:00:00:0g", "1:2:3:4:5:6:7:8"])
def test_mac_bytes_refuses_what_is_no_address(text):
    with pytest.raises(ValueError, match=r"hex|not a MAC"):
        packet.mac_bytes(text)


@pytest.mark.parametrize("text", ["", "10.0.0", "10.0.0.0.1", "10.0.0.256", "10.0.0.-1", "a.b.c.d"])
def test_ipv4_bytes_refuses_what_is_no_address(text):
    with pytest.raises(ValueError, match=r"IPv4|int|range"):
        packet.ipv4_bytes(text)


def test_ipv6_addresses_follow_from_the_mac():
    """The vectors of RFC 4291 2.7.1 and appendix A."""
    assert packet.link_local(bytes.fromhex("3456789abcde")) == bytes.fromhex(
        "fe80000000000000 365678fffe9abcde"
    )
    assert packet.link_local(MAC_A) == IP6_A
    address = bytes.fromhex("4037 0000 0000 0000 0001 0800 200e 8c6c")
    group = packet.solicited_node(address)
    assert group == bytes.fromhex("ff02 0000 0000 0000 0000 0001 ff0e 8c6c")
    assert packet.multicast_mac(group) == bytes.fromhex("3333ff0e8c6c")


def test_arp_frames_are_what_scapy_builds():
    request = Ether(dst="ff:ff:ff:ff:ff:ff", src="00:16:3e:00:00:01") / ARP(
        op=1, hwsrc="00:16:3e:00:00:01", psrc="192.0.2.1", pdst="192.0.2.2"
    )
    assert packet.arp_request(MAC_A, IP_A, IP_B) == bytes(request)
    reply = Ether(dst="00:16:3e:00:00:01", src="00:16:3e:00:00:02") / ARP(
        op=2,
        hwsrc="00:16:3e:00:00:02",
        psrc="192.0.2.2",
        hwdst="00:16:3e:00:00:01",
        pdst="192.0.2.1",
    )
    assert packet.arp_reply(MAC_B, IP_B, MAC_A, IP_A) == bytes(reply)
    assert packet.parse_arp(bytes(reply)) == packet.Arp(
        operation=2, sender_mac=MAC_B, sender_ip=IP_B, target_mac=MAC_A, target_ip=IP_A
    )


@pytest.mark.parametrize("size", [0, 1, 56, 1472])
def test_icmp_echo_request_is_what_scapy_builds(size):
    payload = bytes(range(256)) * 6
    frame = packet.icmp_echo_request(MAC_A, MAC_B, IP_A, IP_B, 0x1234, 7, payload[:size])
    expected = (
        Ether(dst="00:16:3e:00:00:02", src="00:16:3e:00:00:01")
        / IP(src="192.0.2.1", dst="192.0.2.2", id=0, flags="DF", ttl=64)
        / ICMP(type=8, id=0x1234, seq=7)
        / payload[:size]
    )
    assert frame == bytes(expected)


def test_icmpv6_echo_request_is_what_scapy_builds():
    frame = packet.icmpv6_echo_request(MAC_A, MAC_B, IP6_A, IP6_B, 0x1234, 7, b"odd")
    expected = (
        Ether(dst="00:16:3e:00:00:02", src="00:16:3e:00:00:01")
        / IPv6(src="fe80::216:3eff:fe00:1", dst="fe80::216:3eff:fe00:2", hlim=64)
        / ICMPv6EchoRequest(id=0x1234, seq=7, data=b"odd")
    )
    assert frame == bytes(expected)


def test_neighbour_solicitation_is_what_scapy_builds():
    expected = (
        Ether(dst="33:33:ff:00:00:02", src="00:16:3e:00:00:01")
        / IPv6(src="fe80::216:3eff:fe00:1", dst="ff02::1:ff00:2", hlim=255)
        / ICMPv6ND_NS(tgt="fe80::216:3eff:fe00:2")
        / ICMPv6NDOptSrcLLAddr(lladdr="00:16:3e:00:00:01")
    )
    assert packet.neighbour_solicitation(MAC_A, IP6_A, IP6_B) == bytes(expected)


def test_duplicate_address_probe_names_no_link_layer_address():
    expected = (
        Ether(dst="33:33:ff:00:00:02", src="00:16:3e:00:00:01")
        / IPv6(src="::", dst="ff02::1:ff00:2", hlim=255)
        / ICMPv6ND_NS(tgt="fe80::216:3eff:fe00:2")
    )
    assert packet.neighbour_solicitation(MAC_A, packet.UNSPECIFIED6, IP6_B) == bytes(expected)


def test_udp_datagrams_are_what_scapy_builds():
    v4 = packet.udp_datagram(IP_A, IP_B, 4000, 7, b"hello")
    expected4 = IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=4000, dport=7) / b"hello"
    assert v4 == bytes(expected4)[20:]
    v6 = packet.udp_datagram(IP6_A, IP6_B, 4000, 7, b"hello")
    expected6 = (
        IPv6(src="fe80::216:3eff:fe00:1", dst="fe80::216:3eff:fe00:2")
        / UDP(sport=4000, dport=7)
        / b"hello"
    )
    assert v6 == bytes(expected6)[40:]


def test_udp_checksum_that_comes_out_as_zero_is_sent_as_ffff():
    plain = packet.udp_datagram(IP_A, IP_B, 4000, 7, b"\0\0")
    checksum = plain[6:8]
    # Payload equal to the checksum makes the sum 0xFFFF, hence the checksum 0.
    assert packet.udp_datagram(IP_A, IP_B, 4000, 7, checksum)[6:8] == b"\xff\xff"


def test_builders_refuse_what_no_length_field_can_say():
    with pytest.raises(LocalProtocolError, match="IPv4 packet of 65536 bytes"):
        packet.ipv4_packet(IP_A, IP_B, 17, bytes(65516))
    with pytest.raises(LocalProtocolError, match="IPv6 payload of 65536 bytes"):
        packet.ipv6_packet(IP6_A, IP6_B, 17, bytes(65536))
    with pytest.raises(LocalProtocolError, match="UDP datagram of 65536 bytes"):
        packet.udp_datagram(IP_A, IP_B, 1, 2, bytes(65528))


def echo_reply(**ip):
    return (
        Ether(dst="00:16:3e:00:00:01", src="00:16:3e:00:00:02")
        / IP(src="192.0.2.2", dst="192.0.2.1", **ip)
        / ICMP(type=0, id=0x1234, seq=7)
        / b"payload"
    )


def test_echo_reply_is_read_with_padding_cut_off():
    assert packet.parse_echo_reply(bytes(echo_reply()) + bytes(11)) == EchoReply(
        source_mac=MAC_B,
        destination_mac=MAC_A,
        source_ip=IP_B,
        destination_ip=IP_A,
        ident=0x1234,
        sequence=7,
        payload=b"payload",
    )


def test_icmpv6_echo_reply_is_read():
    frame = (
        Ether(dst="00:16:3e:00:00:01", src="00:16:3e:00:00:02")
        / IPv6(src="fe80::216:3eff:fe00:2", dst="fe80::216:3eff:fe00:1")
        / ICMPv6EchoReply(id=0x1234, seq=7, data=b"payload")
    )
    assert packet.parse_echo_reply(bytes(frame)) == EchoReply(
        source_mac=MAC_B,
        destination_mac=MAC_A,
        source_ip=IP6_B,
        destination_ip=IP6_A,
        ident=0x1234,
        sequence=7,
        payload=b"payload",
    )


@pytest.mark.parametrize("at", range(14, 14 + 20 + 15))
def test_echo_reply_with_any_changed_byte_behind_ethernet_is_refused(at):
    frame = bytearray(bytes(echo_reply()))
    frame[at] ^= 0x10
    assert packet.parse_echo_reply(bytes(frame)) is None


def test_echo_request_and_fragment_are_no_echo_reply():
    request = packet.icmp_echo_request(MAC_A, MAC_B, IP_A, IP_B, 1, 1, b"")
    assert packet.parse_echo_reply(request) is None
    assert packet.parse_echo_reply(bytes(echo_reply(flags="MF"))) is None


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (ETHER / IP(**ENDS) / UDP() / b"abc", Headers(4, 14, 34, 45, 17, fragment=False)),
        (
            ETHER / Dot1Q(vlan=5) / IP(**ENDS, options=b"\x01" * 8) / UDP(),
            Headers(4, 18, 46, 54, 17, fragment=False),
        ),
        (ETHER / IP(**ENDS, frag=185) / b"abc", Headers(4, 14, 34, 37, 0, fragment=True)),
        (
            ETHER / IP(**ENDS, flags="MF", proto=17) / b"abc",
            Headers(4, 14, 34, 37, 17, fragment=True),
        ),
        (ETHER / IPv6(**ENDS6) / UDP(), Headers(6, 14, 54, 62, 17, fragment=False)),
        (
            ETHER / IPv6(**ENDS6) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / UDP(),
            Headers(6, 14, 70, 78, 17, fragment=False),
        ),
        (
            ETHER / IPv6(**ENDS6) / IPv6ExtHdrRouting(addresses=["2001:db8::1"]) / UDP(),
            Headers(6, 14, 78, 86, 17, fragment=False),
        ),
        (
            ETHER / IPv6(**ENDS6) / IPv6ExtHdrFragment(nh=17) / UDP(),
            Headers(6, 14, 62, 70, 17, fragment=False),
        ),
        (
            ETHER / IPv6(**ENDS6) / IPv6ExtHdrFragment(nh=17, m=1) / b"abc",
            Headers(6, 14, 62, 65, 17, fragment=True),
        ),
        (
            ETHER / IPv6(**ENDS6) / AH(nh=17, payloadlen=4, icv=bytes(12)) / UDP(),
            Headers(6, 14, 78, 86, 17, fragment=False),
        ),
    ],
    ids=lambda value: value.summary() if isinstance(value, Ether) else "",
)
def test_headers_are_found_where_scapy_put_them(frame, expected):
    assert parse_headers(bytes(frame)) == expected
    assert parse_headers(bytes(frame) + b"padding") == expected


@pytest.mark.parametrize(
    "data",
    [
        bytes(ETHER / ARP(psrc="192.0.2.1", hwsrc="00:16:3e:00:00:01")),
        bytes(ETHER / IP(**ENDS) / UDP())[:-1],  # IP length past the frame
        bytes(ETHER / IPv6(**ENDS6) / UDP())[:-1],
        bytes(ETHER / IP(**ENDS, ihl=4)),
        bytes(ETHER / IP(**ENDS, len=19)),
        bytes(ETHER / IP(**ENDS, version=5)),
        bytes(ETHER / IPv6(**ENDS6, version=5)),
        bytes(ETHER / IPv6(**ENDS6, nh=0)),  # an extension header past the end
        bytes(ETHER / IPv6(**ENDS6, nh=0) / (b"\0" * 8 * 101)),  # 101 extension headers
        bytes(ETHER / IPv6(**ENDS6, nh=0) / (b"\x11\x02" + bytes(14))),  # 24 bytes, 16 there
        bytes(Ether(dst="00:16:3e:00:00:02", src="00:16:3e:00:00:01", type=0x0800)),
        b"",
    ],
)
def test_headers_that_make_no_sense_are_refused(data):
    assert parse_headers(data) is None


@given(st.binary(max_size=200), st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x08\x06"]))
def test_parsers_never_raise_and_stay_inside_the_frame(data, ethertype):
    data = data[:12] + ethertype + data[12:]
    headers = parse_headers(data)
    if headers is not None:
        assert 14 <= headers.network < headers.transport <= headers.end <= len(data)
    packet.parse_arp(data)
    packet.parse_echo_reply(data)
