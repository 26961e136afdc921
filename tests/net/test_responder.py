"""The host inside a guest, asked by scapy's packets, by the host's own station, and by garbage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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

from xenpv import Platform, Vif
from xenpv.errors import ConfigError, LocalProtocolError
from xenpv.host.network import Frame
from xenpv.host.packet import icmp_echo_request, ipv4_bytes, mac_bytes, parse_echo_reply
from xenpv.net.responder import Outcome, Responder, parse_addresses

MAC, PEER = "00:16:3e:00:00:01", "00:16:3e:00:00:fe"
OURS, THEIRS = "192.0.2.7", "192.0.2.1"
OURS6, THEIRS6, LOCAL6 = "2001:db8::7", "2001:db8::1", "fe80::216:3eff:fe00:1"

ETHER = Ether(dst=MAC, src=PEER)
V4 = IP(src=THEIRS, dst=OURS)
V6 = IPv6(src=THEIRS6, dst=OURS6)
NS_ETHER = Ether(dst="33:33:ff:00:00:07", src=PEER)
NS_V6 = IPv6(src=THEIRS6, dst="ff02::1:ff00:7", hlim=255)
NS = ICMPv6ND_NS(tgt=OURS6)
SOURCE = ICMPv6NDOptSrcLLAddr(lladdr=PEER)


@attrs.define(eq=False)
class Adapter:
    """What a responder sees of one."""

    mac: bytes = bytes.fromhex(MAC.replace(":", ""))
    mtu: int = 1500
    number: int = 0
    link_up: bool = True
    receiver: object = None
    sent: list[bytes] = attrs.Factory(list)

    def send_many(self, frames: Sequence[bytes]) -> None:
        if not self.link_up:
            raise LocalProtocolError("link down")
        self.sent += frames


def bound(**fields: object) -> Responder:
    adapter = Adapter(**fields)  # type: ignore[arg-type]
    return Responder.bind(adapter, f"{OURS}/24 {OURS6}/64")  # type: ignore[arg-type]


def ask(responder: Responder, *packets: Packet | bytes) -> list[Ether]:
    responder.receive([bytes(packet) for packet in packets])
    sent, responder.adapter.sent = responder.adapter.sent, []  # type: ignore[attr-defined]
    return [Ether(frame) for frame in sent]


def outcomes(responder: Responder) -> dict[Outcome, int]:
    return {what: count for what, count in responder.counters.items() if count}


def test_an_arp_request_is_answered() -> None:
    (reply,) = ask(bound(), Ether(dst="ff:ff:ff:ff:ff:ff", src=PEER) / ARP(
        op=1, hwsrc=PEER, psrc=THEIRS, pdst=OURS
    ))  # fmt: skip
    assert (reply.dst, reply.src) == (PEER, MAC)
    arp = reply[ARP]
    assert (arp.op, arp.hwsrc, arp.psrc, arp.hwdst, arp.pdst) == (2, MAC, OURS, PEER, THEIRS)


@pytest.mark.parametrize("size", [0, 1, 56, 1471, 1472])
def test_a_ping_comes_back_byte_for_byte(size: int) -> None:
    payload = bytes(n * 7 & 0xFF for n in range(size))
    asked = ETHER / V4 / ICMP(id=0x1234, seq=7) / Raw(payload)
    (reply,) = ask(bound(), asked)
    assert (reply[IP].src, reply[IP].dst) == (OURS, THEIRS)
    assert (reply[ICMP].type, reply[ICMP].id, reply[ICMP].seq) == (0, 0x1234, 7)
    assert bytes(reply[ICMP].payload) == payload
    again = reply.copy()
    del again[IP].chksum, again[ICMP].chksum  # scapy writes its own
    assert bytes(Ether(bytes(again))) == bytes(reply)


@pytest.mark.parametrize("destination", [OURS6, LOCAL6, "ff02::1"])
@pytest.mark.parametrize("size", [0, 1, 1452])
def test_a_ping_over_ipv6_comes_back(destination: str, size: int) -> None:
    ether = Ether(dst="33:33:00:00:00:01" if destination[0] == "f" and destination[1] == "f"
                  else MAC, src=PEER)  # fmt: skip
    echo = ICMPv6EchoRequest(id=9, seq=3, data=b"x" * size)
    (reply,) = ask(bound(), ether / IPv6(src=THEIRS6, dst=destination) / echo)
    answer = reply[ICMPv6EchoReply]
    assert (answer.id, answer.seq, answer.data) == (9, 3, b"x" * size)
    assert reply[IPv6].src == (LOCAL6 if destination == "ff02::1" else destination)
    total = answer.cksum
    del answer.cksum
    assert Ether(bytes(reply))[ICMPv6EchoReply].cksum == total


@pytest.mark.parametrize(("layers", "family"), [((V4,), IP), ((V6,), IPv6)], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("payload", [b"", b"\0", bytes(range(251))])
def test_a_datagram_to_the_echo_port_comes_back(layers, family, payload: bytes) -> None:  # type: ignore[no-untyped-def]
    (reply,) = ask(bound(), ETHER / layers[0] / UDP(sport=4000, dport=7) / Raw(payload))
    datagram = reply[UDP]
    assert (datagram.sport, datagram.dport) == (7, 4000)
    assert reply[family].src == layers[0].dst
    assert bytes(datagram.payload) == payload
    total = datagram.chksum
    del datagram.chksum
    assert Ether(bytes(reply))[UDP].chksum == total


def test_an_unsummed_datagram_counts_over_ipv4_alone() -> None:
    responder = bound()
    datagram = UDP(sport=4000, dport=7, chksum=0) / Raw(b"x")
    assert len(ask(responder, ETHER / V4 / datagram)) == 1
    assert not ask(responder, ETHER / V6 / datagram)
    assert outcomes(responder) == {Outcome.UDP_ECHO: 1, Outcome.MALFORMED: 1}


def test_a_sum_of_zero_is_sent_as_all_ones() -> None:
    """A word that is the sum over all else brings the whole to 0xFFFF, whose inverse is 0."""
    responder = bound()
    asked = ETHER / V4 / UDP(sport=4000, dport=7)
    total = ask(responder, asked / Raw(b"\0\0"))[0][UDP].chksum
    (reply,) = ask(responder, asked / Raw(total.to_bytes(2, "big")))
    assert reply[UDP].chksum == 0xFFFF


def test_a_neighbour_solicitation_is_answered() -> None:
    (reply,) = ask(bound(), NS_ETHER / NS_V6 / NS / SOURCE)
    advertisement = reply[ICMPv6ND_NA]
    assert (reply.dst, reply[IPv6].dst, reply[IPv6].hlim) == (PEER, THEIRS6, 255)
    assert (advertisement.R, advertisement.S, advertisement.O) == (0, 1, 1)
    assert advertisement.tgt == OURS6
    assert reply[ICMPv6NDOptDstLLAddr].lladdr == MAC
    assert reply[ICMPv6NDOptDstLLAddr].len == 1


def test_a_probe_for_a_duplicate_is_told_to_all_nodes() -> None:
    (reply,) = ask(bound(), NS_ETHER / IPv6(src="::", dst="ff02::1:ff00:7", hlim=255) / NS)
    assert (reply.dst, reply[IPv6].dst) == ("33:33:00:00:00:01", "ff02::1")
    assert (reply[ICMPv6ND_NA].S, reply[ICMPv6ND_NA].O) == (0, 1)


IGNORED = {
    "another station": (Ether(dst=PEER, src=PEER) / V4 / ICMP(), Outcome.NOT_OURS),
    "another group": (Ether(dst="33:33:00:00:00:02", src=PEER) / V6, Outcome.NOT_OURS),
    "another address": (ETHER / IP(src=THEIRS, dst="192.0.2.8") / ICMP(), Outcome.NOT_OURS),
    "arp for another": (
        ETHER / ARP(op=1, hwsrc=PEER, psrc=THEIRS, pdst="192.0.2.8"),
        Outcome.NOT_OURS,
    ),
    "arp from ourselves": (ETHER / ARP(op=1, hwsrc=PEER, psrc=OURS, pdst=OURS), Outcome.NOT_OURS),
    "arp reply": (ETHER / ARP(op=2, hwsrc=PEER, psrc=THEIRS, pdst=OURS), Outcome.UNSUPPORTED),
    "arp cut short": (bytes(ETHER / ARP(op=1, pdst=OURS))[:41], Outcome.MALFORMED),
    "arp of a group": (
        ETHER / ARP(op=1, hwsrc="01:00:00:00:00:01", psrc=THEIRS, pdst=OURS),
        Outcome.MALFORMED,
    ),
    "from a group": (Ether(dst=MAC, src="01:00:00:00:00:01") / V4 / ICMP(), Outcome.MALFORMED),
    "from loopback": (ETHER / IP(src="127.0.0.1", dst=OURS) / ICMP(), Outcome.NOT_OURS),
    "from ourselves": (ETHER / IP(src=OURS, dst=OURS) / ICMP(), Outcome.NOT_OURS),
    "from ourselves over ipv6": (
        ETHER / IPv6(src=OURS6, dst=OURS6) / ICMPv6EchoRequest(),
        Outcome.NOT_OURS,
    ),
    "ping to a group that is not all nodes": (
        ETHER / IPv6(src=THEIRS6, dst="ff02::2") / ICMPv6EchoRequest(),
        Outcome.NOT_OURS,
    ),
    "a fragment": (ETHER / IP(src=THEIRS, dst=OURS, flags="MF") / ICMP(), Outcome.MALFORMED),
    "a fragment of ipv6": (
        ETHER / V6 / IPv6ExtHdrFragment(m=1) / UDP(dport=7),
        Outcome.UNSUPPORTED,
    ),
    "ip options": (
        ETHER / IP(src=THEIRS, dst=OURS, options=[IPOption(b"\x01\x01\x01\x00")]) / ICMP(),
        Outcome.MALFORMED,
    ),
    "header sum": (ETHER / IP(src=THEIRS, dst=OURS, chksum=1) / ICMP(), Outcome.MALFORMED),
    "icmp sum": (ETHER / V4 / ICMP(chksum=1), Outcome.MALFORMED),
    "icmpv6 sum": (ETHER / V6 / ICMPv6EchoRequest(cksum=1), Outcome.MALFORMED),
    "icmp code": (ETHER / V4 / ICMP(code=1), Outcome.UNSUPPORTED),
    "echo reply": (ETHER / V4 / ICMP(type=0), Outcome.UNSUPPORTED),
    "udp sum": (ETHER / V4 / UDP(sport=9, dport=7, chksum=1), Outcome.MALFORMED),
    "udp length": (ETHER / V4 / UDP(sport=9, dport=7, len=7), Outcome.MALFORMED),
    "udp longer than its packet": (ETHER / V4 / UDP(sport=9, dport=7, len=99), Outcome.MALFORMED),
    "another port": (ETHER / V4 / UDP(sport=9, dport=9), Outcome.UNSUPPORTED),
    "another echo service": (ETHER / V4 / UDP(sport=7, dport=7), Outcome.UNSUPPORTED),
    "tcp": (ETHER / V4 / TCP(), Outcome.UNSUPPORTED),
    "tagged": (ETHER / Dot1Q(vlan=5) / V4 / ICMP(), Outcome.UNSUPPORTED),
    "ip longer than the frame": (ETHER / IP(src=THEIRS, dst=OURS, len=99), Outcome.MALFORMED),
    "ipv6 longer than the frame": (
        ETHER / IPv6(src=THEIRS6, dst=OURS6, plen=99, nh=58),
        Outcome.MALFORMED,
    ),
    "solicitation through a router": (
        NS_ETHER / IPv6(src=THEIRS6, dst="ff02::1:ff00:7", hlim=254) / NS / SOURCE,
        Outcome.MALFORMED,
    ),
    "solicitation for another": (
        NS_ETHER / NS_V6 / ICMPv6ND_NS(tgt="2001:db8::8") / SOURCE,
        Outcome.NOT_OURS,
    ),
    "probe with an address": (
        NS_ETHER / IPv6(src="::", dst="ff02::1:ff00:7", hlim=255) / NS / SOURCE,
        Outcome.MALFORMED,
    ),
    "option of length 0": (
        NS_ETHER / NS_V6 / NS / Raw(b"\x01\0\0\0\0\0\0\0"),
        Outcome.MALFORMED,
    ),
    "no frame": (b"\0" * 13, Outcome.MALFORMED),
}  # fmt: skip


@pytest.mark.parametrize(("packet", "outcome"), IGNORED.values(), ids=IGNORED)
def test_what_is_not_answered(packet: Packet | bytes, outcome: Outcome) -> None:
    responder = bound()
    assert not ask(responder, packet)
    assert outcomes(responder) == {outcome: 1}


def test_answers_that_the_adapter_cannot_take_are_counted() -> None:
    ping = ETHER / V4 / ICMP()
    down = bound(link_up=False)
    assert not ask(down, ping, ping)
    assert outcomes(down) == {Outcome.UNSENT: 2}
    narrow = bound(mtu=60)  # an advertisement has 72 bytes behind its header
    assert not ask(narrow, NS_ETHER / NS_V6 / NS)
    assert outcomes(narrow) == {Outcome.UNSENT: 1}


@settings(max_examples=400)
@given(st.lists(st.binary(max_size=200), max_size=4))
def test_garbage_is_counted_and_forgotten(frames: list[bytes]) -> None:
    responder = bound()
    ask(responder, *frames)
    assert sum(responder.counters.values()) == len(frames)


@settings(max_examples=400)
@given(st.data())
def test_a_changed_byte_is_never_answered_wrongly(data: st.DataObject) -> None:
    asked = bytes(ETHER / V4 / ICMP(id=1, seq=2) / Raw(b"payload"))
    at = data.draw(st.integers(14, len(asked) - 1))
    value = data.draw(st.integers(0, 255))
    changed = asked[:at] + bytes((value,)) + asked[at + 1 :]
    replies = ask(bound(), changed)
    # Every byte from the IP header on is summed, but that its type of service may mean the same.
    assert len(replies) == (changed == asked)


@contextmanager
def two_guests() -> Iterator[tuple[Platform, list]]:  # type: ignore[type-arg]
    with Platform(seed=3) as xen:
        guests = [
            xen.create(
                name=name, memory_mib=16, vifs=[Vif(mac=mac, ip=f"{ip}/24 {ip6}/64")]
            ).start()
            for name, mac, ip, ip6 in (("a", MAC, OURS, OURS6), ("b", PEER, THEIRS, THEIRS6))
        ]
        yield xen, guests


def test_ip_of_a_vif_makes_the_guest_answer_and_report() -> None:
    with two_guests() as (xen, (a, b)):
        b.nets[0].send(bytes(ETHER / V4 / ICMP(id=5, seq=1) / Raw(b"through the rings")))
        b.nets[0].send(bytes(NS_ETHER / NS_V6 / NS / SOURCE))
        xen.run()
        replies = [Ether(frame) for frame in b.nets[0].received]
        assert [frame.src for frame in replies] == [MAC, MAC]
        assert replies[0][Raw].load == b"through the rings"
        assert a.os.addresses[0].ipv4 == (OURS,)
        assert a.os.addresses[0].ipv6 == (OURS6,)


def test_the_hosts_own_station_and_the_guests_understand_each_other() -> None:
    with Platform(seed=3) as xen:
        guest = xen.create(name="a", memory_mib=16, vifs=[Vif(mac=MAC, ip=OURS)]).start()
        host = xen.respond("xenbr0", mac=PEER, ipv4=THEIRS)
        request = icmp_echo_request(
            mac_bytes(PEER), mac_bytes(MAC), ipv4_bytes(THEIRS), ipv4_bytes(OURS), 4, 2, b"abc"
        )
        xen.bridge("xenbr0").transmit(host, [Frame(request)], xen.loop.now)
        xen.run()
        reply = parse_echo_reply(xen.bridge("xenbr0").frames[-1])
        assert reply is not None
        assert (reply.ident, reply.sequence, reply.payload) == (4, 2, b"abc")
        assert guest.nets[0].receiver is not None


def test_a_vif_that_is_attached_later_has_its_addresses_too() -> None:
    with Platform(seed=3) as xen:
        guest = xen.create(name="a", memory_mib=16).start()
        devid = guest.attach(Vif(mac=MAC, ip=OURS))
        assert guest.os.addresses[devid].ipv4 == (OURS,)
        responder = guest.nets[0].receiver
        assert isinstance(responder, Responder)
        assert responder.ipv4 == (bytes((192, 0, 2, 7)),)


@pytest.mark.parametrize("text", ["192.0.2", "192.0.2.7/33", "web", "192.0.2.7,192.0.2.8"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        parse_addresses(text)
    with Platform() as xen, pytest.raises(ConfigError, match="bad vif ip"):
        xen.create(name="a", vifs=[Vif(ip=text)])
