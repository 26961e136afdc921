"""A small IP host inside a guest: who pings the guest, or sends to its echo port, is answered.

It is a protocol bound to an adapter. It answers ARP requests, neighbour solicitations, ICMP and
ICMPv6 echo requests and UDP echo (port 7, RFC 862). TCP is not spoken: a real stack can stand
behind a TAP. Whatever it does not understand is counted and forgotten; it believes no length,
no sum and no address of what arrives.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import attrs

from xenpv.errors import LocalProtocolError
from xenpv.net import inet

if TYPE_CHECKING:
    from xenpv.net.adapter import Adapter
    from xenpv.net.ndis import NdisVersion
    from xenpv.vif.interface import VifInterface

ECHO_REPLY, ECHO_REQUEST = 0, 8  # RFC 792
ECHO6_REQUEST, ECHO6_REPLY = 128, 129  # RFC 4443 4
SOLICITATION, ADVERTISEMENT = 135, 136  # RFC 4861 4
SOLICITED, OVERRIDE = 0x40, 0x20  # flags of an advertisement
SOURCE_LINK_ADDRESS, TARGET_LINK_ADDRESS = 1, 2  # options
HOPS_ON_LINK: Final = 255  # no router forwarded it
ECHO_PORT: Final = 7
BROADCAST: Final = b"\xff" * 6
HEADER: Final = 14


class Outcome(enum.Enum):
    """What became of a frame."""

    ARP = "ARP request answered"
    NEIGHBOUR = "neighbour solicitation answered"
    ECHO = "ICMP echo answered"
    ECHO6 = "ICMPv6 echo answered"
    UDP_ECHO = "UDP echo answered"
    NOT_OURS = "for or from an address that is not ours to answer"
    UNSUPPORTED = "a protocol or a form that is not spoken here"
    MALFORMED = "lengths, fields or sums that do not hold together"
    UNSENT = "answered, but the adapter could not take the answer"


class Configured(Protocol):
    """What a system's interface is configured with, as text."""

    @property
    def ipv4(self) -> Sequence[str]: ...
    @property
    def ipv6(self) -> Sequence[str]: ...


@attrs.define(eq=False)
class Responder:
    """The host behind `adapter` with these addresses; IPv6's link-local one comes by itself.

    `counters` says what became of every frame that arrived.
    """

    adapter: Adapter
    ipv4: tuple[bytes, ...] = ()
    ipv6: tuple[bytes, ...] = ()
    counters: dict[Outcome, int] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.ipv6 = (*self.ipv6, inet.link_local(self.adapter.mac))
        self.counters = dict.fromkeys(Outcome, 0)

    @classmethod
    def bind(cls, adapter: Adapter, addresses: str) -> Responder:
        """Bound to `adapter` with addresses as in a vif's `ip`: "192.0.2.7/24 2001:db8::7".

        ValueError for what is no address.
        """
        found = parse_addresses(addresses)
        bound = cls(
            adapter,
            tuple(one for one in found if len(one) == 4),
            tuple(one for one in found if len(one) == 16),
        )
        adapter.receiver = bound
        return bound

    def receive(self, frames: Sequence[bytes]) -> None:
        """Answer what is to be answered, in order and in one batch."""
        replies: list[bytes] = []
        outcomes: list[Outcome] = []
        longest = self.adapter.mtu + HEADER
        for frame in frames:
            outcome, reply = self._answer(frame)
            if len(reply) > longest:
                outcome = Outcome.UNSENT
            elif reply:
                replies.append(reply)
                outcomes.append(outcome)
                continue
            self.counters[outcome] += 1
        try:
            if replies:
                self.adapter.send_many(replies)
        except LocalProtocolError:  # the link went meanwhile
            outcomes = [Outcome.UNSENT] * len(outcomes)
        for outcome in outcomes:
            self.counters[outcome] += 1

    def _answer(self, frame: bytes) -> tuple[Outcome, bytes]:
        if len(frame) < HEADER or frame[6] & 1:
            return Outcome.MALFORMED, b""
        kind = frame[12:14]
        if frame[0] & 1:
            if not self._is_our_group(frame[:6]):
                return Outcome.NOT_OURS, b""
        elif frame[:6] != self.adapter.mac:
            return Outcome.NOT_OURS, b""
        if kind == inet.ETHERTYPE_IPV4:
            return self._answer_ipv4(frame)
        if kind == inet.ETHERTYPE_IPV6:
            return self._answer_ipv6(frame)
        if kind == inet.ETHERTYPE_ARP:
            return self._answer_arp(frame)
        return Outcome.UNSUPPORTED, b""

    def _is_our_group(self, address: bytes) -> bool:
        return address in (BROADCAST, inet.group_mac(inet.ALL_NODES)) or any(
            address == inet.group_mac(inet.solicited_node(one)) for one in self.ipv6
        )

    def _answer_arp(self, frame: bytes) -> tuple[Outcome, bytes]:
        if len(frame) < HEADER + inet.ARP.size:
            return Outcome.MALFORMED, b""
        *kind, operation, sender, sender_ip, _, target_ip = inet.ARP.unpack_from(frame, HEADER)
        if tuple(kind) != inet.ARP_KIND or sender[0] & 1:
            return Outcome.MALFORMED, b""
        if operation != inet.ARP_REQUEST:
            return Outcome.UNSUPPORTED, b""
        # 0.0.0.0 probes whether an address is in use, and has to hear of it (RFC 5227 2.1.1).
        if target_ip not in self.ipv4 or sender_ip in self.ipv4:
            return Outcome.NOT_OURS, b""
        mac = self.adapter.mac
        reply = inet.ARP.pack(
            *inet.ARP_KIND, inet.ARP_REPLY, mac, target_ip, sender, sender_ip
        )  # fmt: skip
        return Outcome.ARP, sender + mac + inet.ETHERTYPE_ARP + reply

    def _answer_ipv4(self, frame: bytes) -> tuple[Outcome, bytes]:
        packet = inet.read_ipv4(frame)
        if packet is None:
            return Outcome.MALFORMED, b""
        if packet.destination not in self.ipv4 or not self._may_send(packet.source):
            return Outcome.NOT_OURS, b""
        message = packet.payload
        if packet.protocol == inet.UDP:
            outcome, reply = _echo_datagram(packet)
        elif packet.protocol != inet.ICMP or message[:2] != bytes((ECHO_REQUEST, 0)):
            return Outcome.UNSUPPORTED, b""
        elif len(message) < 8 or inet.checksum(message):
            return Outcome.MALFORMED, b""
        else:
            outcome, reply = Outcome.ECHO, inet.icmp(ECHO_REPLY, message[4:])
        if not reply:
            return outcome, b""
        back = inet.ipv4(packet.destination, packet.source, packet.protocol, reply)
        return outcome, frame[6:12] + self.adapter.mac + inet.ETHERTYPE_IPV4 + back

    def _may_send(self, source: bytes) -> bool:
        return inet.is_station(source) and source not in self.ipv4 and source not in self.ipv6

    def _answer_ipv6(self, frame: bytes) -> tuple[Outcome, bytes]:
        packet = inet.read_ipv6(frame)
        if packet is None:
            return Outcome.MALFORMED, b""
        if packet.protocol == inet.ICMPV6:
            return self._answer_icmpv6(frame, packet)
        if packet.protocol != inet.UDP:
            return Outcome.UNSUPPORTED, b""
        if packet.destination not in self.ipv6 or not self._may_send(packet.source):
            return Outcome.NOT_OURS, b""
        outcome, reply = _echo_datagram(packet)
        if not reply:
            return outcome, b""
        return outcome, self._to(frame[6:12], packet.destination, packet.source, inet.UDP, reply)

    def _to(
        self,
        station: bytes,
        source: bytes,
        destination: bytes,
        protocol: int,
        payload: bytes,
        *,
        hops: int = inet.TTL,
    ) -> bytes:
        packet = inet.ipv6(source, destination, protocol, payload, hops=hops)
        return station + self.adapter.mac + inet.ETHERTYPE_IPV6 + packet

    def _answer_icmpv6(self, frame: bytes, packet: inet.Packet) -> tuple[Outcome, bytes]:
        message = packet.payload
        over = inet.pseudo(packet.source, packet.destination, inet.ICMPV6, len(message))
        if len(message) < 8 or inet.checksum(over, message):
            return Outcome.MALFORMED, b""
        if message[:2] == bytes((SOLICITATION, 0)):
            return self._advertise(frame, packet)
        if message[:2] != bytes((ECHO6_REQUEST, 0)):
            return Outcome.UNSUPPORTED, b""
        if not self._may_send(packet.source):
            return Outcome.NOT_OURS, b""
        if packet.destination in self.ipv6:
            source = packet.destination
        elif packet.destination == inet.ALL_NODES:
            source = self.ipv6[-1]
        else:
            return Outcome.NOT_OURS, b""
        over = inet.pseudo(source, packet.source, inet.ICMPV6, len(message))
        reply = inet.icmp(ECHO6_REPLY, message[4:], over=over)
        return Outcome.ECHO6, self._to(frame[6:12], source, packet.source, inet.ICMPV6, reply)

    def _advertise(self, frame: bytes, packet: inet.Packet) -> tuple[Outcome, bytes]:
        """Where a solicitation passes the checks of RFC 4861 7.1.1."""
        message = packet.payload
        target = message[8:24]
        link = _link_address(message[24:])
        probe = not any(packet.source)  # duplicate address detection (RFC 4862 5.4)
        if len(message) < 24 or packet.hops != HOPS_ON_LINK or link is None:
            return Outcome.MALFORMED, b""
        if probe and (link or packet.destination != inet.solicited_node(target)):
            return Outcome.MALFORMED, b""
        if target not in self.ipv6 or not (probe or self._may_send(packet.source)):
            return Outcome.NOT_OURS, b""
        if packet.destination not in (target, inet.solicited_node(target)):
            return Outcome.NOT_OURS, b""
        asks, station = packet.source, link or frame[6:12]
        flags = SOLICITED | OVERRIDE
        if probe:
            asks, station, flags = inet.ALL_NODES, inet.group_mac(inet.ALL_NODES), OVERRIDE
        option = bytes((TARGET_LINK_ADDRESS, 1)) + self.adapter.mac
        rest = bytes((flags, 0, 0, 0)) + target + option
        over = inet.pseudo(target, asks, inet.ICMPV6, 4 + len(rest))
        reply = inet.icmp(ADVERTISEMENT, rest, over=over)
        answer = self._to(station, target, asks, inet.ICMPV6, reply, hops=HOPS_ON_LINK)
        return Outcome.NEIGHBOUR, answer


def station(
    addresses: Mapping[int, Configured], version: NdisVersion, vif: VifInterface
) -> Adapter:
    """A miniport for `vif`, with a responder bound where its number has addresses.

    `version` is the NDIS of the system that it runs in.
    """
    from xenpv.net.adapter import Adapter

    adapter = Adapter(vif, version=version)
    configured = addresses.get(adapter.number)
    if configured is not None:
        Responder.bind(adapter, " ".join((*configured.ipv4, *configured.ipv6)))
    return adapter


def rebind(adapters: Sequence[Adapter], number: int, text: str) -> None:
    """Other addresses for adapter `number`; what is bound there and no responder stays."""
    for adapter in adapters:
        if adapter.number == number and isinstance(adapter.receiver, Responder | None):
            adapter.receiver = None
            if text:
                Responder.bind(adapter, text)


def parse_addresses(text: str) -> list[bytes]:
    """Addresses with white space between them, each with a prefix length or without.

    ValueError names the one that is none. A network's prefix is checked and not kept: the
    responder answers along the way that the question came.
    """
    from ipaddress import ip_interface

    return [ip_interface(one).ip.packed for one in text.split()]


def _echo_datagram(packet: inet.Packet) -> tuple[Outcome, bytes]:
    datagram = packet.payload
    if len(datagram) < 8:
        return Outcome.MALFORMED, b""
    source, destination, length, total = inet.HEADER_UDP.unpack_from(datagram)
    if not 8 <= length <= len(datagram):
        return Outcome.MALFORMED, b""
    datagram = datagram[:length]
    over = inet.pseudo(packet.source, packet.destination, inet.UDP, length)
    # Over IPv4 alone a sum of 0 says that there is none (RFC 768, RFC 8200 8.1).
    unsummed = not total and len(packet.source) == 4
    if not unsummed and (not total or inet.checksum(over, datagram)):
        return Outcome.MALFORMED, b""
    # From port 7 another echo service would answer, for ever (CVE-1999-0103).
    if destination != ECHO_PORT or source in (0, ECHO_PORT):
        return Outcome.UNSUPPORTED, b""
    ports = (ECHO_PORT, source)
    return Outcome.UDP_ECHO, inet.udp(packet.destination, packet.source, ports, datagram[8:])


def _link_address(options: bytes) -> bytes | None:
    """That of a source link-layer option, empty without one; None if the options are malformed."""
    found = b""
    while options:
        size = 8 * options[1] if len(options) > 1 else 0
        if not size or size > len(options):
            return None
        if options[0] == SOURCE_LINK_ADDRESS:
            found = options[2:8]
        options = options[size:]
    return None if found and found[0] & 1 else found
