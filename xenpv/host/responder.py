"""A built-in host on a bridge, so that a guest has somebody to talk to.

It owns one IPv4 and one IPv6 link-local address and answers ARP requests, neighbour
solicitations, pings over both and UDP echo (port 7, RFC 862). It has no offloads: it judges
every frame as a station on the wire would, after the checksums are finished. What it does not
understand is counted and forgotten.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import attrs

from xenpv.errors import PeerProtocolError
from xenpv.host.network import Bridge, Frame, Wakeup
from xenpv.host.offload import finish_checksum
from xenpv.host.packet import (
    ALL_NODES,
    ALL_NODES_MAC,
    ARP_REQUEST,
    BROADCAST,
    ECHO6_REPLY,
    ECHO6_REQUEST,
    ECHO_REPLY,
    ECHO_REQUEST,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    ICMP,
    ICMPV6,
    NEIGHBOUR_ADVERTISEMENT,
    NEIGHBOUR_SOLICITATION,
    UDP,
    UNSPECIFIED6,
    Headers,
    arp_reply,
    ethernet_frame,
    icmp_message,
    icmpv6_message,
    internet_checksum,
    ip_addresses,
    ipv4_packet,
    ipv6_packet,
    link_local,
    multicast_mac,
    parse_arp,
    parse_headers,
    pseudo_header,
    solicited_node,
    udp_datagram,
)

PENDING_MAX = 1024  # replies waiting for the next poll
REQUESTS_KEPT = 256
UDP_ECHO_PORT = 7

# Flags of a neighbour advertisement (RFC 4861 4.4)
_SOLICITED = 0x40
_OVERRIDE = 0x20


class Outcome(Enum):
    """What became of a frame that the bridge gave to the responder."""

    ARP = "ARP request answered"
    NEIGHBOUR = "neighbour solicitation answered"
    ECHO = "ICMP echo answered"
    ECHO6 = "ICMPv6 echo answered"
    UDP_ECHO = "UDP echo answered"
    OTHER_STATION = "ignored: for another Ethernet address"
    OTHER_ADDRESS = "ignored: for or from an address that is not ours to answer"
    UNSUPPORTED = "ignored: a protocol that the responder does not speak"
    MALFORMED = "ignored: lengths or fields that make no sense"
    CHECKSUM = "ignored: wrong checksum"
    TOO_LONG = "ignored: longer than the MTU"
    OVERFLOW = "answer dropped: too many wait for the next poll"


class Answer(NamedTuple):
    outcome: Outcome
    reply: bytes = b""


@attrs.frozen(kw_only=True)
class Request:
    """An answered request; `source` is an IPv4 (4 bytes) or IPv6 (16 bytes) address."""

    outcome: Outcome
    source_mac: bytes
    source: bytes
    length: int  # of the frame, in bytes


def _counters() -> dict[Outcome, int]:
    return dict.fromkeys(Outcome, 0)


@attrs.define(eq=False)
class Responder:
    """A station with `mac` (6 bytes) and `ipv4` (4 bytes, in a net of `prefix_length` bits).

    `receive` only composes replies; `poll` sends them. `wakeup` is woken whenever replies wait,
    and may be set after construction.
    """

    name: str
    bridge: Bridge
    mac: bytes
    ipv4: bytes
    prefix_length: int = 24
    mtu: int = attrs.field(default=1500, kw_only=True)  # longest IP packet, in bytes
    wakeup: Wakeup | None = attrs.field(default=None, kw_only=True)
    ipv6: bytes = attrs.field(init=False)
    pending: list[Frame] = attrs.field(factory=list, init=False)
    requests: deque[Request] = attrs.field(init=False)
    counters: dict[Outcome, int] = attrs.field(factory=_counters, init=False)

    def __attrs_post_init__(self) -> None:
        self.ipv6 = link_local(self.mac)
        self.requests = deque(maxlen=REQUESTS_KEPT)

    def receive(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            outcome, reply = self._answer(frame)
            if reply and len(self.pending) >= PENDING_MAX:
                outcome = Outcome.OVERFLOW
            elif reply:
                self.pending.append(Frame(reply))
                self.requests.append(_request(outcome, frame.data))
            self.counters[outcome] += 1
        if self.pending and self.wakeup is not None:
            self.wakeup.wake()

    def poll(self, now_ns: int) -> None:
        """Send the replies that wait."""
        if self.pending:
            replies, self.pending = self.pending, []
            self.bridge.transmit(self, replies, now_ns)

    def _answer(self, frame: Frame) -> Answer:
        station = frame.data[:6]
        if station != self.mac and not self._is_our_group(station):
            return Answer(Outcome.OTHER_STATION)
        if frame.gso_type:
            return Answer(Outcome.UNSUPPORTED)  # TCP
        if len(frame.data) > self.mtu + 14:
            return Answer(Outcome.TOO_LONG)
        try:
            data = finish_checksum(frame).data
        except PeerProtocolError:
            return Answer(Outcome.MALFORMED)
        ethertype = data[12:14]
        if ethertype == b"\x08\x06":
            return self._answer_arp(data)
        if ethertype not in (b"\x08\x00", b"\x86\xdd"):
            return Answer(Outcome.UNSUPPORTED)
        headers = parse_headers(data)
        if headers is None:
            return Answer(Outcome.MALFORMED)
        if headers.version == 4:
            return self._answer_ipv4(data, headers)
        return self._answer_ipv6(data, headers)

    def _is_our_group(self, station: bytes) -> bool:
        return station in (BROADCAST, ALL_NODES_MAC, multicast_mac(solicited_node(self.ipv6)))

    def _answer_arp(self, data: bytes) -> Answer:
        arp = parse_arp(data)
        if arp is None or _is_group(arp.sender_mac):
            return Answer(Outcome.MALFORMED)
        if arp.operation != ARP_REQUEST:
            return Answer(Outcome.UNSUPPORTED)
        # A sender of 0.0.0.0 probes for duplicates and is answered (RFC 5227 2.1.1).
        if arp.target_ip != self.ipv4 or arp.sender_ip == self.ipv4:
            return Answer(Outcome.OTHER_ADDRESS)
        return Answer(Outcome.ARP, arp_reply(self.mac, self.ipv4, arp.sender_mac, arp.sender_ip))

    def _answer_ipv4(self, data: bytes, headers: Headers) -> Answer:
        if internet_checksum(data[headers.network : headers.transport]):
            return Answer(Outcome.CHECKSUM)
        source, destination = ip_addresses(data, headers)
        if destination != self.ipv4 or not self._is_host(source):
            return Answer(Outcome.OTHER_ADDRESS)
        if headers.fragment:
            return Answer(Outcome.UNSUPPORTED)
        message = data[headers.transport : headers.end]
        if headers.protocol == ICMP:
            outcome, answer = _answer_icmp(message)
        elif headers.protocol == UDP:
            outcome, answer = _answer_udp(source, destination, message)
        else:
            return Answer(Outcome.UNSUPPORTED)
        if not answer:
            return Answer(outcome)
        packet = ipv4_packet(self.ipv4, source, headers.protocol, answer)
        return Answer(outcome, ethernet_frame(data[6:12], self.mac, ETHERTYPE_IPV4, packet))

    def _is_host(self, source: bytes) -> bool:
        """Whether one host may have this source address (RFC 1122 3.2.1.3)."""
        host_bits = (1 << (32 - self.prefix_length)) - 1
        address = int.from_bytes(source, "big")
        directed_broadcast = int.from_bytes(self.ipv4, "big") | host_bits
        return (
            source != self.ipv4
            and 0 < source[0] < 224
            and source[0] != 127
            and (self.prefix_length >= 31 or address != directed_broadcast)
        )

    def _answer_ipv6(self, data: bytes, headers: Headers) -> Answer:
        source, destination = ip_addresses(data, headers)
        if source[0] == 0xFF or source == self.ipv6:
            return Answer(Outcome.OTHER_ADDRESS)
        if destination not in (self.ipv6, ALL_NODES, solicited_node(self.ipv6)):
            return Answer(Outcome.OTHER_ADDRESS)
        if headers.fragment:
            return Answer(Outcome.UNSUPPORTED)
        if headers.protocol == ICMPV6:
            return self._answer_icmpv6(data, headers, source, destination)
        if headers.protocol != UDP:
            return Answer(Outcome.UNSUPPORTED)
        if destination != self.ipv6 or source == UNSPECIFIED6:
            return Answer(Outcome.OTHER_ADDRESS)
        datagram = data[headers.transport : headers.end]
        outcome, answer = _answer_udp(source, destination, datagram)
        if not answer:
            return Answer(outcome)
        packet = ipv6_packet(self.ipv6, source, UDP, answer)
        return Answer(outcome, ethernet_frame(data[6:12], self.mac, ETHERTYPE_IPV6, packet))

    def _answer_icmpv6(
        self, data: bytes, headers: Headers, source: bytes, destination: bytes
    ) -> Answer:
        message = data[headers.transport : headers.end]
        if len(message) < 8:
            return Answer(Outcome.MALFORMED)
        covered = pseudo_header(source, destination, ICMPV6, len(message)) + message
        if internet_checksum(covered):
            return Answer(Outcome.CHECKSUM)
        if message[0] == NEIGHBOUR_SOLICITATION:
            hop_limit = data[headers.network + 7]
            return self._advertise(data[6:12], source, destination, hop_limit, message)
        if message[0] != ECHO6_REQUEST or message[1] != 0:
            return Answer(Outcome.UNSUPPORTED)
        if source == UNSPECIFIED6:
            return Answer(Outcome.OTHER_ADDRESS)
        reply = icmpv6_message(self.ipv6, source, ECHO6_REPLY, message[4:])
        packet = ipv6_packet(self.ipv6, source, ICMPV6, reply)
        return Answer(Outcome.ECHO6, ethernet_frame(data[6:12], self.mac, ETHERTYPE_IPV6, packet))

    def _advertise(
        self, station: bytes, source: bytes, destination: bytes, hop_limit: int, message: bytes
    ) -> Answer:
        """Answer a neighbour solicitation that passes the checks of RFC 4861 7.1.1."""
        probe = source == UNSPECIFIED6
        link_layer = _source_link_layer(message[24:]) if len(message) >= 24 else None
        if hop_limit != 255 or message[1] != 0 or link_layer is None:
            return Answer(Outcome.MALFORMED)
        if probe and (link_layer or destination != solicited_node(self.ipv6)):
            return Answer(Outcome.MALFORMED)
        if message[8:24] != self.ipv6:
            return Answer(Outcome.OTHER_ADDRESS)
        station, target = (ALL_NODES_MAC, ALL_NODES) if probe else (link_layer or station, source)
        flags = _OVERRIDE if probe else _SOLICITED | _OVERRIDE
        body = bytes([flags, 0, 0, 0]) + self.ipv6 + b"\x02\x01" + self.mac
        reply = icmpv6_message(self.ipv6, target, NEIGHBOUR_ADVERTISEMENT, body)
        packet = ipv6_packet(self.ipv6, target, ICMPV6, reply, hop_limit=255)
        return Answer(Outcome.NEIGHBOUR, ethernet_frame(station, self.mac, ETHERTYPE_IPV6, packet))


def _answer_icmp(message: bytes) -> Answer:
    if len(message) < 8:
        return Answer(Outcome.MALFORMED)
    if internet_checksum(message):
        return Answer(Outcome.CHECKSUM)
    if message[0] != ECHO_REQUEST or message[1] != 0:
        return Answer(Outcome.UNSUPPORTED)
    ident = int.from_bytes(message[4:6], "big")
    sequence = int.from_bytes(message[6:8], "big")
    return Answer(Outcome.ECHO, icmp_message(ECHO_REPLY, ident, sequence, message[8:]))


def _answer_udp(source: bytes, destination: bytes, datagram: bytes) -> Answer:
    length = int.from_bytes(datagram[4:6], "big")
    if not 8 <= length <= len(datagram):
        return Answer(Outcome.MALFORMED)
    datagram = datagram[:length]
    source_port = int.from_bytes(datagram[:2], "big")
    # Only over IPv4 may the sender leave the checksum out.
    unsummed = datagram[6:8] == b"\0\0"
    if unsummed and len(source) == 16:
        return Answer(Outcome.CHECKSUM)
    if not unsummed and internet_checksum(
        pseudo_header(source, destination, UDP, length) + datagram
    ):
        return Answer(Outcome.CHECKSUM)
    if int.from_bytes(datagram[2:4], "big") != UDP_ECHO_PORT:
        return Answer(Outcome.UNSUPPORTED)
    # Two echo services would talk to each other for ever (CVE-1999-0103).
    if source_port in (0, UDP_ECHO_PORT):
        return Answer(Outcome.UNSUPPORTED)
    reply = udp_datagram(destination, source, UDP_ECHO_PORT, source_port, datagram[8:])
    return Answer(Outcome.UDP_ECHO, reply)


def _source_link_layer(options: bytes) -> bytes | None:
    """The address in a source link-layer option, empty without one; None if malformed."""
    found = b""
    while options:
        size = options[1] * 8 if len(options) > 1 else 0
        if size == 0 or size > len(options):
            return None
        if options[0] == 1:
            found = options[2:8]
        options = options[size:]
    return None if found and _is_group(found) else found


def _is_group(mac: bytes) -> bool:
    return mac[0] & 1 == 1


def _request(outcome: Outcome, data: bytes) -> Request:
    if outcome is Outcome.ARP:
        source = data[28:32]
    elif data[12:14] == b"\x08\x00":
        source = data[26:30]
    else:
        source = data[22:38]
    return Request(outcome=outcome, source_mac=data[6:12], source=source, length=len(data))
