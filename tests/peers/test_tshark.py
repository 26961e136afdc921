"""What the capture writes, as Wireshark's dissectors read it."""

from __future__ import annotations

import subprocess

import attrs
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from tests.peers import need
from xenpv.host import packet
from xenpv.host.network import GSO_TCPV4, GSO_TCPV6, Bridge, Frame
from xenpv.host.offload import blank_checksum
from xenpv.host.pcapng import PcapngCapture, PcapngWriter
from xenpv.host.responder import Responder

pytestmark = pytest.mark.peers

GUEST_MAC = packet.mac_bytes("00:16:3e:00:00:01")
HOST_MAC = packet.mac_bytes("00:16:3e:00:00:fe")
GUEST = packet.ipv4_bytes("192.0.2.1")
HOST = packet.ipv4_bytes("192.0.2.254")
GUEST6 = packet.link_local(GUEST_MAC)
HOST6 = packet.link_local(HOST_MAC)

ETHER = Ether(dst="00:16:3e:00:00:fe", src="00:16:3e:00:00:01")
V4 = IP(src="192.0.2.1", dst="192.0.2.254", flags="DF")
V6 = IPv6(src="fe80::216:3eff:fe00:1", dst="fe80::216:3eff:fe00:fe")

CHECKS = [
    option
    for protocol in ("ip", "tcp", "udp")
    for option in ("-o", f"{protocol}.check_checksum:TRUE")
]
GOOD = "1"  # of the *.checksum.status fields; 0 is bad, 2 not verified


@attrs.define(eq=False)
class Guest:
    name: str = "vif1.0"

    def receive(self, frames):
        pass


def udp(network):
    return Frame(bytes(ETHER / network / UDP(sport=40000, dport=7) / b"hello"))


def tcp(network, gso_type):
    data = bytes(ETHER / network / TCP(sport=40000, dport=50000, flags="PA") / bytes(4000))
    return blank_checksum(Frame(data, gso_type=gso_type, gso_size=1448))


@pytest.fixture(scope="module")
def capture_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tshark") / "xenbr0.pcapng"
    with path.open("wb") as file:
        capture = PcapngCapture(PcapngWriter(file))
        capture.describe("vif1.0", description="web", mac=GUEST_MAC, speed=10**11)
        bridge, guest = Bridge("xenbr0", taps=[capture]), Guest()
        responder = Responder("responder", bridge, HOST_MAC, HOST)
        bridge.attach(guest)
        bridge.attach(responder)
        ends = (GUEST_MAC, HOST_MAC, GUEST, HOST)
        ends6 = (GUEST_MAC, HOST_MAC, GUEST6, HOST6)
        sends = [
            Frame(packet.arp_request(GUEST_MAC, GUEST, HOST)),
            Frame(packet.icmp_echo_request(*ends, 1, 1, bytes(1472))),
            Frame(packet.neighbour_solicitation(GUEST_MAC, GUEST6, HOST6)),
            Frame(packet.neighbour_solicitation(GUEST_MAC, packet.UNSPECIFIED6, HOST6)),
            Frame(packet.icmpv6_echo_request(*ends6, 1, 1, b"odd")),
            udp(V4),
            blank_checksum(udp(V6)),
            tcp(V4, GSO_TCPV4),
            tcp(V6, GSO_TCPV6),
        ]
        for number, frame in enumerate(sends):
            now_ns = 1_000_000_000 + number * 1000
            bridge.transmit(guest, [frame], now_ns)
            responder.poll(now_ns + 1)
    return path


def dissect(path, display_filter, *fields):
    """The fields' values of each packet that passes the filter."""
    tshark = need("tshark", "tshark")
    command = [tshark, "-n", "-r", str(path), *CHECKS, "-T", "fields"]
    for field in fields:
        command += ["-e", field]
    done = subprocess.run(
        [*command, "-Y", display_filter], capture_output=True, text=True, check=True, timeout=60
    )
    return [tuple(line.split("\t")) for line in done.stdout.splitlines()]


def test_tshark_finds_nothing_malformed_and_no_bad_checksum(capture_file):
    bad = " || ".join(
        f"{protocol}.checksum.status == 0" for protocol in ("ip", "tcp", "udp", "icmp", "icmpv6")
    )
    severe = "_ws.malformed || _ws.expert.severity >= 0x600000"  # warnings and errors
    assert dissect(capture_file, f"{bad} || {severe}", "frame.number", "_ws.expert.message") == []
    assert len(dissect(capture_file, "frame", "frame.number")) == 20


def test_tshark_verifies_every_checksum(capture_file):
    for protocol, packets in (("icmp", 2), ("icmpv6", 6), ("udp", 4), ("tcp", 6)):
        field = f"{protocol}.checksum.status"
        assert dissect(capture_file, protocol, field) == [(GOOD,)] * packets
    headers = dissect(capture_file, "ip", "ip.checksum.status")
    assert headers == [(GOOD,)] * 7


def test_tshark_sees_each_answer_as_the_answer_to_its_request(capture_file):
    assert dissect(capture_file, "arp", "arp.opcode") == [("1",), ("2",)]
    replies = dissect(capture_file, "icmp.resp_to", "icmp.type", "frame.len")
    assert replies == [("0", "1514")]
    assert len(dissect(capture_file, "icmpv6.resp_to", "frame.number")) == 1
    advertised = dissect(
        capture_file,
        "icmpv6.type == 136",
        "icmpv6.nd.na.flag.s",
        "icmpv6.nd.na.flag.o",
        "icmpv6.opt.linkaddr",
    )
    assert advertised == [("1", "1", "00:16:3e:00:00:fe"), ("0", "1", "00:16:3e:00:00:fe")]


def test_tshark_follows_the_segments_of_a_gso_packet(capture_file):
    for version in ("ip", "ipv6"):
        segments = dissect(
            capture_file,
            f"tcp && {version}",
            "tcp.seq_raw",
            "tcp.len",
            "tcp.flags",
            "frame.comment",
        )
        assert segments == [
            ("0", "1448", "0x0010", "GSO: 3 segments of 1448 bytes"),
            ("1448", "1448", "0x0010", ""),
            ("2896", "1104", "0x0018", ""),
        ]


def test_tshark_reads_interface_time_and_direction(capture_file):
    fields = (
        "frame.interface_name",
        "frame.interface_description",
        "frame.time_epoch",
        "frame.packet_flags_direction",
    )
    assert dissect(capture_file, "arp", *fields) == [
        ("vif1.0", "web", "1.000000000", "0x00000001"),
        ("responder", "", "1.000000001", "0x00000001"),
    ]
