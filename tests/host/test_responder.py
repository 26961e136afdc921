from __future__ import annotations

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from xenpv.host import packet
from xenpv.host.network import Bridge, Frame
from xenpv.host.offload import blank_checksum
from xenpv.host.responder import PENDING_MAX, REQUESTS_KEPT, Outcome, Request, Responder

GUEST_MAC = "00:16:3e:00:00:01"
HOST_MAC = "00:16:3e:00:00:fe"
GUEST = "192.0.2.1"
HOST = "192.0.2.254"
GUEST6 = "fe80::216:3eff:fe00:1"
HOST6 = "fe80::216:3eff:fe00:fe"

ETHER = Ether(dst=HOST_MAC, src=GUEST_MAC)
V4 = IP(src=GUEST, dst=HOST)
V6 = IPv6(src=GUEST6, dst=HOST6)
NS_ETHER = Ether(dst="33:33:ff:00:00:fe", src=GUEST_MAC)
NS_V6 = IPv6(src=GUEST6, dst="ff02::1:ff00:fe", hlim=255)
NS = ICMPv6ND_NS(tgt=HOST6)
SOURCE_OPTION = ICMPv6NDOptSrcLLAddr(lladdr=GUEST_MAC)


@attrs.define(eq=False)
class Guest:
    name: str = "vif1.0"
    frames: list[Frame] = attrs.Factory(list)

    def receive(self, frames):
        self.frames += frames


@attrs.define(eq=False)
class Task:
    woken: int = 0

    def wake(self):
        self.woken += 1


@attrs.define
class Net:
    bridge: Bridge
    guest: Guest
    responder: Responder
    task: Task

    def send(self, *frames):
        """Hand frames to the bridge, run the responder, return what came back."""
        self.bridge.transmit(
            self.guest,
            [Frame(bytes(frame)) if isinstance(frame, Packet) else frame for frame in frames],
            0,
        )
        self.responder.poll(0)
        replies, self.guest.frames = self.guest.frames, []
        return [Ether(reply.data) for reply in replies]

    def outcomes(self):
        return {what: count for what, count in self.responder.counters.items() if count}


def build() -> Net:
    bridge, guest, task = Bridge("xenbr0"), Guest(), Task()
    responder = Responder(
        "responder",
        bridge,
        packet.mac_bytes(HOST_MAC),
        packet.ipv4_bytes(HOST),
        wakeup=task,
    )
    bridge.attach(guest)
    bridge.attach(responder)
    return Net(bridge, guest, responder, task)


@pytest.fixture
def net():
    return build()


def arp(**fields):
    return Ether(dst="ff:ff:ff:ff:ff:ff", src=GUEST_MAC) / ARP(
        **{"op": 1, "hwsrc": GUEST_MAC, "psrc": GUEST, "pdst": HOST, **fields}
    )


PROBE = "0.0.0.0"  # noqa: S104 - no socket: the sender of an ARP probe


@pytest.mark.parametrize("asker", [GUEST, PROBE, "10.9.9.9"])
def test_arp_request_for_its_address_is_answered(net, asker):
    (reply,) = net.send(arp(psrc=asker))
    assert bytes(reply) == bytes(
        Ether(dst=GUEST_MAC, src=HOST_MAC)
        / ARP(op=2, hwsrc=HOST_MAC, psrc=HOST, hwdst=GUEST_MAC, pdst=asker)
    )
    assert net.outcomes() == {Outcome.ARP: 1}


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({"pdst": "192.0.2.253"}, Outcome.OTHER_ADDRESS),
        ({"psrc": HOST}, Outcome.OTHER_ADDRESS),
        ({"op": 2}, Outcome.UNSUPPORTED),
        ({"hwtype": 6}, Outcome.MALFORMED),
        ({"ptype": 0x86DD}, Outcome.MALFORMED),
        ({"hwsrc": "ff:ff:ff:ff:ff:ff"}, Outcome.MALFORMED),
    ],
)
def test_other_arp_packets_are_ignored(net, fields, outcome):
    assert net.send(arp(**fields)) == []
    assert net.outcomes() == {outcome: 1}


@pytest.mark.parametrize("size", [0, 1, 56, 1472])
def test_icmp_echo_is_answered_with_the_same_payload(net, size):
    payload = bytes(range(256)) * 6
    (reply,) = net.send(ETHER / V4 / ICMP(type=8, id=9, seq=65535) / payload[:size])
    assert bytes(reply) == bytes(
        Ether(dst=GUEST_MAC, src=HOST_MAC)
        / IP(src=HOST, dst=GUEST, id=0, flags="DF", ttl=64)
        / ICMP(type=0, id=9, seq=65535)
        / payload[:size]
    )
    assert net.outcomes() == {Outcome.ECHO: 1}


def test_the_projects_own_ping_is_answered_and_read_back(net):
    guest_mac, host_mac = packet.mac_bytes(GUEST_MAC), packet.mac_bytes(HOST_MAC)
    guest_ip, host_ip = packet.ipv4_bytes(GUEST), packet.ipv4_bytes(HOST)
    (answer,) = net.send(Frame(packet.arp_request(guest_mac, guest_ip, host_ip)))
    arp_answer = packet.parse_arp(bytes(answer))
    assert arp_answer is not None
    assert arp_answer.sender_mac == host_mac
    ping = packet.icmp_echo_request(guest_mac, host_mac, guest_ip, host_ip, 5, 6, b"data")
    (answer,) = net.send(Frame(ping))
    reply = packet.parse_echo_reply(bytes(answer))
    assert reply is not None
    assert (reply.source_ip, reply.ident, reply.sequence) == (host_ip, 5, 6)
    assert reply.payload == b"data"


def test_icmp_echo_with_ip_options_and_ethernet_padding_is_answered_without(net):
    request = ETHER / IP(src=GUEST, dst=HOST, options=[IPOption(b"\x01" * 4)]) / ICMP() / b"x"
    (reply,) = net.send(Frame(bytes(request) + bytes(14)))
    assert reply[IP].ihl == 5
    assert reply[ICMP].payload.load == b"x"


@pytest.mark.parametrize(
    ("request_", "outcome"),
    [
        (ETHER / V4 / ICMP(chksum=1), Outcome.CHECKSUM),
        (ETHER / IP(src=GUEST, dst=HOST, chksum=1) / ICMP(), Outcome.CHECKSUM),
        (ETHER / V4 / ICMP(type=13), Outcome.UNSUPPORTED),
        (ETHER / V4 / ICMP(code=1), Outcome.UNSUPPORTED),
        (ETHER / IP(src=GUEST, dst=HOST, proto=1) / b"\x08\x00\xf7\xff\x00\x00", Outcome.MALFORMED),
        (ETHER / IP(src=GUEST, dst=HOST, flags="MF") / ICMP(), Outcome.UNSUPPORTED),
        (ETHER / IP(src=GUEST, dst=HOST, frag=3) / ICMP(), Outcome.UNSUPPORTED),
        (ETHER / IP(src=GUEST, dst="192.0.2.255") / ICMP(), Outcome.OTHER_ADDRESS),
        (ETHER / IP(src="192.0.2.255", dst=HOST) / ICMP(), Outcome.OTHER_ADDRESS),
        (ETHER / IP(src=PROBE, dst=HOST) / ICMP(), Outcome.OTHER_ADDRESS),
        (ETHER / IP(src="224.0.0.1", dst=HOST) / ICMP(), Outcome.OTHER_ADDRESS),
        (ETHER / IP(src="127.0.0.1", dst=HOST) / ICMP(), Outcome.OTHER_ADDRESS),
        (ETHER / IP(src=HOST, dst=HOST) / ICMP(), Outcome.OTHER_ADDRESS),
        (ETHER / V4 / TCP(), Outcome.UNSUPPORTED),
        (ETHER / IP(src=GUEST, dst=HOST, len=2000) / ICMP(), Outcome.MALFORMED),
        (ETHER / V4 / ICMP() / bytes(1473), Outcome.TOO_LONG),
        (ETHER / Dot1Q(vlan=1) / V4 / ICMP(), Outcome.UNSUPPORTED),
        (Ether(dst="00:16:3e:00:00:77", src=GUEST_MAC) / V4 / ICMP(), Outcome.OTHER_STATION),
        (Ether(dst="01:00:5e:00:00:01", src=GUEST_MAC) / V4 / ICMP(), Outcome.OTHER_STATION),
    ],
    ids=lambda value: value.name if isinstance(value, Outcome) else value.summary(),
)
def test_icmp_that_is_not_ours_to_answer_is_counted_and_ignored(net, request_, outcome):
    assert net.send(request_) == []
    assert net.outcomes() == {outcome: 1}


def test_neighbour_solicitation_is_answered(net):
    (reply,) = net.send(NS_ETHER / NS_V6 / NS / SOURCE_OPTION)
    assert bytes(reply) == bytes(
        Ether(dst=GUEST_MAC, src=HOST_MAC)
        / IPv6(src=HOST6, dst=GUEST6, hlim=255)
        / ICMPv6ND_NA(tgt=HOST6, R=0, S=1, O=1)
        / ICMPv6NDOptDstLLAddr(lladdr=HOST_MAC)
    )
    assert net.outcomes() == {Outcome.NEIGHBOUR: 1}


def test_unicast_solicitation_without_option_is_answered_to_the_frames_sender(net):
    (reply,) = net.send(ETHER / IPv6(src=GUEST6, dst=HOST6, hlim=255) / NS)
    assert reply.dst == GUEST_MAC
    assert ICMPv6ND_NA in reply


def test_solicitation_options_that_name_no_source_are_skipped(net):
    (reply,) = net.send(NS_ETHER / NS_V6 / NS / Raw(b"\x0e\x01nonce!") / SOURCE_OPTION)
    assert reply.dst == GUEST_MAC


def test_duplicate_address_probe_is_answered_to_all_nodes_unsolicited(net):
    (reply,) = net.send(NS_ETHER / IPv6(src="::", dst="ff02::1:ff00:fe", hlim=255) / NS)
    assert bytes(reply) == bytes(
        Ether(dst="33:33:00:00:00:01", src=HOST_MAC)
        / IPv6(src=HOST6, dst="ff02::1", hlim=255)
        / ICMPv6ND_NA(tgt=HOST6, R=0, S=0, O=1)
        / ICMPv6NDOptDstLLAddr(lladdr=HOST_MAC)
    )


ZERO_LENGTH_OPTION = Raw(b"\x01\x00" + bytes(6))
CUT_OPTION = Raw(b"\x01\x02" + bytes(6))


@pytest.mark.parametrize(
    ("request_", "outcome"),
    [
        (NS_ETHER / NS_V6 / ICMPv6ND_NS(tgt="fe80::99") / SOURCE_OPTION, Outcome.OTHER_ADDRESS),
        (NS_ETHER / NS_V6 / ICMPv6ND_NS(tgt=HOST6, cksum=1), Outcome.CHECKSUM),
        (NS_ETHER / NS_V6 / ICMPv6ND_NS(tgt=HOST6, code=1), Outcome.MALFORMED),
        (NS_ETHER / IPv6(src=GUEST6, dst=HOST6, hlim=254) / NS, Outcome.MALFORMED),
        (NS_ETHER / NS_V6 / NS / ZERO_LENGTH_OPTION, Outcome.MALFORMED),
        (NS_ETHER / NS_V6 / NS / CUT_OPTION, Outcome.MALFORMED),
        (
            NS_ETHER / IPv6(src="::", dst="ff02::1:ff00:fe", hlim=255) / NS / SOURCE_OPTION,
            Outcome.MALFORMED,
        ),
        (NS_ETHER / IPv6(src="::", dst=HOST6, hlim=255) / NS, Outcome.MALFORMED),
        (NS_ETHER / IPv6(src="ff02::1", dst=HOST6, hlim=255) / NS, Outcome.OTHER_ADDRESS),
        (ETHER / V6 / ICMPv6EchoRequest(cksum=1), Outcome.CHECKSUM),
        (ETHER / V6 / ICMPv6EchoRequest(code=1), Outcome.UNSUPPORTED),
        (ETHER / IPv6(src="::", dst=HOST6) / ICMPv6EchoRequest(), Outcome.OTHER_ADDRESS),
        (ETHER / IPv6(src=HOST6, dst=HOST6) / ICMPv6EchoRequest(), Outcome.OTHER_ADDRESS),
        (ETHER / IPv6(src=GUEST6, dst="fe80::99") / ICMPv6EchoRequest(), Outcome.OTHER_ADDRESS),
        (ETHER / V6 / TCP(), Outcome.UNSUPPORTED),
        (ETHER / V6 / IPv6ExtHdrFragment(nh=58, m=1) / ICMPv6EchoRequest(), Outcome.UNSUPPORTED),
        (ETHER / IPv6(src=GUEST6, dst=HOST6, nh=58) / Raw(bytes(7)), Outcome.MALFORMED),
    ],
    ids=lambda value: value.name if isinstance(value, Outcome) else value.summary(),
)
def test_icmpv6_that_is_not_ours_to_answer_is_counted_and_ignored(net, request_, outcome):
    assert net.send(request_) == []
    assert net.outcomes() == {outcome: 1}


@pytest.mark.parametrize(
    ("station", "address"), [(HOST_MAC, HOST6), ("33:33:00:00:00:01", "ff02::1")]
)
def test_icmpv6_echo_is_answered_from_its_own_address(net, station, address):
    request = (
        Ether(dst=station, src=GUEST_MAC)
        / IPv6(src=GUEST6, dst=address)
        / ICMPv6EchoRequest(id=3, seq=4, data=b"payload")
    )
    (reply,) = net.send(request)
    assert bytes(reply) == bytes(
        Ether(dst=GUEST_MAC, src=HOST_MAC)
        / IPv6(src=HOST6, dst=GUEST6, hlim=64)
        / ICMPv6EchoReply(id=3, seq=4, data=b"payload")
    )
    assert net.outcomes() == {Outcome.ECHO6: 1}


@pytest.mark.parametrize("network", [V4, V6], ids=["v4", "v6"])
def test_udp_echo_is_answered_on_port_7(net, network):
    (reply,) = net.send(ETHER / network / UDP(sport=4000, dport=7) / b"hello")
    udp = reply[UDP]
    assert (udp.sport, udp.dport, udp.payload.load) == (7, 4000, b"hello")
    rebuilt = reply.copy()
    del rebuilt[UDP].chksum
    assert bytes(rebuilt) == bytes(reply)
    assert net.outcomes() == {Outcome.UDP_ECHO: 1}


def test_udp_without_checksum_is_legal_over_ipv4_only(net):
    assert len(net.send(ETHER / V4 / UDP(sport=4000, dport=7, chksum=0) / b"x")) == 1
    assert net.send(ETHER / V6 / UDP(sport=4000, dport=7, chksum=0) / b"x") == []
    assert net.outcomes() == {Outcome.UDP_ECHO: 1, Outcome.CHECKSUM: 1}


@pytest.mark.parametrize(
    ("request_", "outcome"),
    [
        (ETHER / V4 / UDP(sport=4000, dport=7, chksum=1) / b"x", Outcome.CHECKSUM),
        (ETHER / V4 / UDP(sport=4000, dport=9) / b"x", Outcome.UNSUPPORTED),
        (ETHER / V4 / UDP(sport=7, dport=7) / b"x", Outcome.UNSUPPORTED),
        (ETHER / V4 / UDP(sport=4000, dport=7, len=7), Outcome.MALFORMED),
        (ETHER / V4 / UDP(sport=4000, dport=7, len=9), Outcome.MALFORMED),
        (ETHER / IPv6(src=GUEST6, dst="ff02::1") / UDP(dport=7), Outcome.OTHER_ADDRESS),
    ],
    ids=lambda value: value.name if isinstance(value, Outcome) else value.summary(),
)
def test_udp_that_is_not_ours_to_answer_is_counted_and_ignored(net, request_, outcome):
    assert net.send(request_) == []
    assert net.outcomes() == {outcome: 1}


def test_blank_checksum_is_finished_before_it_is_judged(net):
    whole = Frame(bytes(ETHER / V4 / UDP(sport=4000, dport=7) / b"hello"))
    assert len(net.send(blank_checksum(whole))) == 1
    no_seed = whole.data[:40] + b"\x12\x34" + whole.data[42:]
    assert net.send(Frame(no_seed, csum_blank=True, data_validated=True)) == []
    assert net.send(Frame(bytes(ETHER / V4 / ICMP()), csum_blank=True)) == []
    assert net.outcomes() == {Outcome.UDP_ECHO: 1, Outcome.CHECKSUM: 1, Outcome.MALFORMED: 1}


def test_a_gso_packet_is_ignored(net):
    frame = Frame(bytes(ETHER / V4 / TCP() / bytes(5000)), gso_type=1, gso_size=1460)
    assert net.send(frame) == []
    assert net.outcomes() == {Outcome.UNSUPPORTED: 1}


def test_replies_wait_for_poll_and_wake_the_task(net):
    net.bridge.transmit(net.guest, [Frame(bytes(arp()))], 0)
    assert net.guest.frames == []
    assert net.task.woken == 1
    net.responder.poll(0)
    assert len(net.guest.frames) == 1
    assert net.responder.pending == []


def test_the_task_is_not_woken_for_frames_without_an_answer(net):
    net.send(arp(pdst="192.0.2.99"))
    assert net.task.woken == 0


def test_waiting_replies_are_bounded(net):
    ping = Frame(bytes(ETHER / V4 / ICMP()))
    assert len(net.send(*[ping] * (PENDING_MAX + 5))) == PENDING_MAX
    assert net.outcomes() == {Outcome.ECHO: PENDING_MAX, Outcome.OVERFLOW: 5}
    assert len(net.responder.requests) == REQUESTS_KEPT


def test_the_latest_requests_are_kept_with_their_source(net):
    ping = ETHER / V4 / ICMP()
    ns = NS_ETHER / NS_V6 / NS / SOURCE_OPTION
    net.send(arp(), ping, ns)
    guest_mac = packet.mac_bytes(GUEST_MAC)
    guest_ip = packet.ipv4_bytes(GUEST)
    assert list(net.responder.requests) == [
        Request(outcome=Outcome.ARP, source_mac=guest_mac, source=guest_ip, length=42),
        Request(outcome=Outcome.ECHO, source_mac=guest_mac, source=guest_ip, length=42),
        Request(
            outcome=Outcome.NEIGHBOUR,
            source_mac=guest_mac,
            source=packet.link_local(guest_mac),
            length=86,
        ),
    ]


VALID = [
    bytes(frame)
    for frame in (
        arp(),
        ETHER / V4 / ICMP() / b"data",
        ETHER / V4 / UDP(sport=4000, dport=7) / b"data",
        ETHER / V6 / UDP(sport=4000, dport=7) / b"data",
        ETHER / V6 / ICMPv6EchoRequest(data=b"data"),
        NS_ETHER / NS_V6 / NS / SOURCE_OPTION,
    )
]
STATIONS = [bytes.fromhex(mac.replace(":", "")) for mac in (HOST_MAC, "ff:ff:ff:ff:ff:ff")]
ARBITRARY = st.builds(
    lambda station, ethertype, rest: station + bytes.fromhex("00163e000001") + ethertype + rest,
    st.sampled_from(STATIONS),
    st.sampled_from([b"\x08\x06", b"\x08\x00\x45", b"\x86\xdd\x60", b""]),
    st.binary(max_size=120),
)
MUTATED = st.builds(
    lambda frame, at, value, cut: (frame[:at] + value + frame[at + len(value) :])[:cut],
    st.sampled_from(VALID),
    st.integers(0, 80),
    st.binary(min_size=1, max_size=4),
    st.integers(0, 100),
)


@settings(max_examples=500)
@given(
    st.lists(
        st.builds(
            Frame,
            st.one_of(st.binary(max_size=100), ARBITRARY, MUTATED),
            csum_blank=st.booleans(),
            gso_type=st.sampled_from([0, 0, 0, 1, 7]),
        ),
        max_size=8,
    )
)
def test_arbitrary_frames_never_raise_and_each_has_one_outcome(frames):
    net = build()
    net.responder.receive(frames)
    counters = net.responder.counters
    assert sum(counters.values()) == len(frames)
    answered = sum(count for what, count in counters.items() if "answered" in what.value)
    assert len(net.responder.pending) == len(net.responder.requests) == answered
    net.responder.poll(0)
    assert net.responder.pending == []
