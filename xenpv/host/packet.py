"""Frames of the protocols that the host's own stations speak: where the layers lie, what they
must add up to, and how to build them.

Addresses are bytes: 6 for Ethernet, 4 for IPv4, 16 for IPv6. A frame is Ethernet without FCS
and is not padded to 60 bytes, as on a vif. Parsers take anything and answer None for what is
not theirs; they never raise.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import attrs

from xenpv.errors import LocalProtocolError

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806
ETHERTYPE_VLAN = 0x8100
ETHERTYPE_IPV6 = 0x86DD

ICMP = 1
TCP = 6
UDP = 17
ICMPV6 = 58

ECHO_REPLY = 0
ECHO_REQUEST = 8
ECHO6_REQUEST = 128
ECHO6_REPLY = 129
NEIGHBOUR_SOLICITATION = 135
NEIGHBOUR_ADVERTISEMENT = 136

ARP_REQUEST = 1
ARP_REPLY = 2

BROADCAST = b"\xff" * 6
ALL_NODES = bytes.fromhex("ff02 0000 0000 0000 0000 0000 0000 0001")
ALL_NODES_MAC = bytes.fromhex("3333 0000 0001")
UNSPECIFIED6 = bytes(16)

_ARP = struct.Struct(">HHBBH6s4s6s4s")
_ARP_ETHERNET_IPV4 = (1, ETHERTYPE_IPV4, 6, 4)
_IPV4 = struct.Struct(">BBHHHBBH4s4s")
_DONT_FRAGMENT = 0x4000
_ICMP_ECHO = struct.Struct(">BBHHH")
_UDP = struct.Struct(">HHHH")
_SOLICITED_NODE = bytes.fromhex("ff02 0000 0000 0000 0000 0001 ff")

# IPv6 extension headers and how their second byte counts their length (RFC 8200, RFC 4302).
_EIGHT_BYTE_UNITS = (0, 43, 60)  # hop-by-hop, routing, destination options
_FRAGMENT = 44
_AUTHENTICATION = 51
_EXTENSIONS_MAX = 100


def mac_bytes(text: str) -> bytes:
    """`00:16:3e:12:34:56` as 6 bytes; raises ValueError."""
    mac = bytes.fromhex(text.replace(":", ""))
    if len(mac) != 6:
        raise ValueError(f"not a MAC address: {text!r}")
    return mac


def ipv4_bytes(text: str) -> bytes:
    """`192.0.2.1` as 4 bytes; raises ValueError."""
    address = bytes(int(part) for part in text.split("."))
    if len(address) != 4:
        raise ValueError(f"not an IPv4 address: {text!r}")
    return address


def link_local(mac: bytes) -> bytes:
    """The IPv6 link-local address of a station (modified EUI-64, RFC 4291 appendix A)."""
    head = bytes([mac[0] ^ 2]) + mac[1:3]
    return b"\xfe\x80" + bytes(6) + head + b"\xff\xfe" + mac[3:]


def solicited_node(address: bytes) -> bytes:
    """The multicast address that a neighbour solicitation for `address` goes to."""
    return _SOLICITED_NODE + address[13:]


def multicast_mac(address: bytes) -> bytes:
    """The Ethernet address of an IPv6 multicast address (RFC 2464 section 7)."""
    return b"\x33\x33" + address[12:]


def ones_sum(data: bytes) -> int:
    """Ones' complement sum of big-endian 16-bit words, an odd last byte padded with zero.

    65536 is 1 modulo 65535, so one division adds up all words. It answers 0 for a sum of
    0xFFFF, which folding never turns into 0: only data that are all zero sum up to 0.
    """
    value = int.from_bytes(data, "big")
    if len(data) & 1:
        value <<= 8
    return value % 0xFFFF or (0xFFFF if value else 0)


def internet_checksum(data: bytes) -> int:
    """RFC 1071 checksum, 16 bits; 0 over data that hold their own right checksum."""
    return ones_sum(data) ^ 0xFFFF


def pseudo_header(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    """What TCP, UDP and ICMPv6 sum besides their own bytes (RFC 9293 3.1, RFC 8200 8.1)."""
    if len(source) == 4:
        return source + destination + struct.pack(">HH", protocol, length)
    return source + destination + struct.pack(">II", length, protocol)


class Headers(NamedTuple):
    """Where the layers of an IP frame lie, in bytes from the frame's start."""

    version: int  # 4 or 6
    network: int  # the IP header
    transport: int  # behind the IP header with its options or extension headers
    end: int  # of the IP packet; what follows is Ethernet padding
    protocol: int  # of the transport header
    fragment: bool  # one of several fragments: the transport header may be missing


def parse_headers(data: bytes) -> Headers | None:
    """Find the layers of an IP frame, with at most one 802.1Q tag.

    None if it is no IP, if the IP header does not make sense, or if the IP length runs past
    the frame.
    """
    network = 14
    ethertype = data[12:14]
    if ethertype == b"\x81\x00":
        network = 18
        ethertype = data[16:18]
    if ethertype == b"\x08\x00":
        return _parse_ipv4(data, network)
    if ethertype == b"\x86\xdd":
        return _parse_ipv6(data, network)
    return None


def _parse_ipv4(data: bytes, network: int) -> Headers | None:
    if len(data) < network + 20 or data[network] >> 4 != 4:
        return None
    header = (data[network] & 15) * 4
    total = int.from_bytes(data[network + 2 : network + 4], "big")
    if header < 20 or total < header or network + total > len(data):
        return None
    offset_and_more = int.from_bytes(data[network + 6 : network + 8], "big") & 0x3FFF
    return Headers(
        version=4,
        network=network,
        transport=network + header,
        end=network + total,
        protocol=data[network + 9],
        fragment=offset_and_more != 0,
    )


def _parse_ipv6(data: bytes, network: int) -> Headers | None:
    if len(data) < network + 40 or data[network] >> 4 != 6:
        return None
    transport = network + 40
    end = transport + int.from_bytes(data[network + 4 : network + 6], "big")
    if end > len(data):
        return None
    protocol = data[network + 6]
    fragment = False
    for _ in range(_EXTENSIONS_MAX):
        if protocol in _EIGHT_BYTE_UNITS:
            unit, extra = 8, 1
        elif protocol == _AUTHENTICATION:
            unit, extra = 4, 2
        elif protocol == _FRAGMENT:
            unit, extra = 0, 0
        else:
            return Headers(6, network, transport, end, protocol, fragment)
        if transport + 8 > end:
            return None
        if protocol == _FRAGMENT:
            # An atomic fragment (offset 0, no more) is a whole packet: RFC 6946.
            fragment |= int.from_bytes(data[transport + 2 : transport + 4], "big") & 0xFFF9 != 0
        size = unit * (data[transport + 1] + extra) or 8
        protocol = data[transport]
        transport += size
        if transport > end:
            return None
        if fragment:
            return Headers(6, network, transport, end, protocol, fragment)
    return None


def ethernet_frame(destination: bytes, source: bytes, ethertype: int, payload: bytes) -> bytes:
    return destination + source + ethertype.to_bytes(2, "big") + payload


def ipv4_packet(
    source: bytes, destination: bytes, protocol: int, payload: bytes, *, ttl: int = 64
) -> bytes:
    """An unfragmented packet with DF set, hence identification 0 (RFC 6864)."""
    total = 20 + len(payload)
    if total > 0xFFFF:
        raise LocalProtocolError(f"IPv4 packet of {total} bytes, at most 65535")
    fields = (0x45, 0, total, 0, _DONT_FRAGMENT, ttl, protocol)
    header = _IPV4.pack(*fields, 0, source, destination)
    return _IPV4.pack(*fields, internet_checksum(header), source, destination) + payload


def ipv6_packet(
    source: bytes, destination: bytes, next_header: int, payload: bytes, *, hop_limit: int = 64
) -> bytes:
    if len(payload) > 0xFFFF:
        raise LocalProtocolError(f"IPv6 payload of {len(payload)} bytes, at most 65535")
    head = struct.pack(">IHBB", 6 << 28, len(payload), next_header, hop_limit)
    return head + source + destination + payload


def icmp_message(kind: int, ident: int, sequence: int, payload: bytes) -> bytes:
    """An ICMP echo request or reply (RFC 792)."""
    checksum = internet_checksum(_ICMP_ECHO.pack(kind, 0, 0, ident, sequence) + payload)
    return _ICMP_ECHO.pack(kind, 0, checksum, ident, sequence) + payload


def icmpv6_message(source: bytes, destination: bytes, kind: int, body: bytes) -> bytes:
    """An ICMPv6 message of code 0; `body` follows the checksum field (RFC 4443)."""
    message = bytes([kind, 0, 0, 0]) + body
    checksum = internet_checksum(pseudo_header(source, destination, ICMPV6, len(message)) + message)
    return message[:2] + checksum.to_bytes(2, "big") + body


def udp_datagram(
    source: bytes, destination: bytes, source_port: int, destination_port: int, payload: bytes
) -> bytes:
    """A datagram with its checksum, for IPv4 or IPv6 by the addresses' length."""
    length = _UDP.size + len(payload)
    if length > 0xFFFF:
        raise LocalProtocolError(f"UDP datagram of {length} bytes, at most 65535")
    datagram = _UDP.pack(source_port, destination_port, length, 0) + payload
    checksum = internet_checksum(pseudo_header(source, destination, UDP, length) + datagram)
    # 0 says "no checksum" (RFC 768), so a sum that comes out as 0 is sent as its other form.
    return datagram[:6] + (checksum or 0xFFFF).to_bytes(2, "big") + payload


def arp_request(source_mac: bytes, source_ip: bytes, target_ip: bytes) -> bytes:
    """A broadcast frame that asks who has `target_ip` (RFC 826)."""
    body = _ARP.pack(*_ARP_ETHERNET_IPV4, ARP_REQUEST, source_mac, source_ip, bytes(6), target_ip)
    return ethernet_frame(BROADCAST, source_mac, ETHERTYPE_ARP, body)


def arp_reply(source_mac: bytes, source_ip: bytes, target_mac: bytes, target_ip: bytes) -> bytes:
    """A frame to `target_mac` that says who has `source_ip`."""
    body = _ARP.pack(*_ARP_ETHERNET_IPV4, ARP_REPLY, source_mac, source_ip, target_mac, target_ip)
    return ethernet_frame(target_mac, source_mac, ETHERTYPE_ARP, body)


def icmp_echo_request(
    source_mac: bytes,
    destination_mac: bytes,
    source_ip: bytes,
    destination_ip: bytes,
    ident: int,
    sequence: int,
    payload: bytes,
) -> bytes:
    """A ping frame; a payload of mtu - 28 bytes fills the MTU."""
    message = icmp_message(ECHO_REQUEST, ident, sequence, payload)
    packet = ipv4_packet(source_ip, destination_ip, ICMP, message)
    return ethernet_frame(destination_mac, source_mac, ETHERTYPE_IPV4, packet)


def icmpv6_echo_request(
    source_mac: bytes,
    destination_mac: bytes,
    source_ip: bytes,
    destination_ip: bytes,
    ident: int,
    sequence: int,
    payload: bytes,
) -> bytes:
    """A ping frame; a payload of mtu - 48 bytes fills the MTU."""
    body = struct.pack(">HH", ident, sequence) + payload
    message = icmpv6_message(source_ip, destination_ip, ECHO6_REQUEST, body)
    packet = ipv6_packet(source_ip, destination_ip, ICMPV6, message)
    return ethernet_frame(destination_mac, source_mac, ETHERTYPE_IPV6, packet)


def neighbour_solicitation(source_mac: bytes, source_ip: bytes, target_ip: bytes) -> bytes:
    """A multicast frame that asks who has `target_ip` (RFC 4861 4.3).

    The unspecified address as source makes it a duplicate address probe, which must not name
    the sender's link-layer address.
    """
    destination = solicited_node(target_ip)
    option = b"" if source_ip == UNSPECIFIED6 else b"\x01\x01" + source_mac
    message = icmpv6_message(
        source_ip, destination, NEIGHBOUR_SOLICITATION, bytes(4) + target_ip + option
    )
    packet = ipv6_packet(source_ip, destination, ICMPV6, message, hop_limit=255)
    return ethernet_frame(multicast_mac(destination), source_mac, ETHERTYPE_IPV6, packet)


@attrs.frozen(kw_only=True)
class Arp:
    """The body of an ARP packet for IPv4 over Ethernet."""

    operation: int
    sender_mac: bytes
    sender_ip: bytes
    target_mac: bytes
    target_ip: bytes


def parse_arp(data: bytes) -> Arp | None:
    """Read an ARP frame; None if it is not ARP for IPv4 over Ethernet."""
    if len(data) < 14 + _ARP.size or data[12:14] != b"\x08\x06":
        return None
    *kind, operation, sender_mac, sender_ip, target_mac, target_ip = _ARP.unpack_from(data, 14)
    if tuple(kind) != _ARP_ETHERNET_IPV4:
        return None
    return Arp(
        operation=operation,
        sender_mac=sender_mac,
        sender_ip=sender_ip,
        target_mac=target_mac,
        target_ip=target_ip,
    )


@attrs.frozen(kw_only=True)
class EchoReply:
    """An answer to a ping, over IPv4 or IPv6."""

    source_mac: bytes
    destination_mac: bytes
    source_ip: bytes
    destination_ip: bytes
    ident: int
    sequence: int
    payload: bytes


def parse_echo_reply(data: bytes) -> EchoReply | None:
    """Read an echo reply; None if it is something else or if a checksum is wrong."""
    headers = parse_headers(data)
    if headers is None or headers.fragment or headers.end - headers.transport < _ICMP_ECHO.size:
        return None
    message = data[headers.transport : headers.end]
    source, destination = ip_addresses(data, headers)
    if headers.version == 4:
        expected = (ICMP, ECHO_REPLY)
        good = not internet_checksum(data[headers.network : headers.transport])
        covered = message
    else:
        expected = (ICMPV6, ECHO6_REPLY)
        good = True
        covered = pseudo_header(source, destination, ICMPV6, len(message)) + message
    kind, code, _, ident, sequence = _ICMP_ECHO.unpack_from(message)
    if (headers.protocol, kind) != expected or code or not good or internet_checksum(covered):
        return None
    return EchoReply(
        source_mac=data[6:12],
        destination_mac=data[:6],
        source_ip=source,
        destination_ip=destination,
        ident=ident,
        sequence=sequence,
        payload=message[_ICMP_ECHO.size :],
    )


def ip_addresses(data: bytes, headers: Headers) -> tuple[bytes, bytes]:
    """Source and destination address of a parsed frame."""
    network = headers.network
    if headers.version == 4:
        return data[network + 12 : network + 16], data[network + 16 : network + 20]
    return data[network + 8 : network + 24], data[network + 24 : network + 40]
