"""Packets of ARP, IPv4, IPv6, ICMP and UDP, as far as a guest's own responder speaks them.

Written apart from what the host's stations use, so that a misreading on one side shows.
Addresses are bytes: 6 for Ethernet, 4 for IPv4, 16 for IPv6. `read_` functions take anything
and answer None for what does not hold together.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final, NamedTuple

from xenpv.abi._kernel import ffi, lib

ETHERTYPE_ARP: Final = b"\x08\x06"
ETHERTYPE_IPV4: Final = b"\x08\x00"
ETHERTYPE_IPV6: Final = b"\x86\xdd"

ICMP: Final = 1
UDP: Final = 17
ICMPV6: Final = 58

HEADER_IPV4: Final = Struct(">BBHHHBBH4s4s")  # RFC 791 3.1
HEADER_IPV6: Final = Struct(">IHBB16s16s")  # RFC 8200 3
HEADER_UDP: Final = Struct(">HHHH")  # RFC 768
ARP: Final = Struct(">HHBBH6s4s6s4s")  # RFC 826
ARP_KIND: Final = (1, 0x0800, 6, 4)  # Ethernet and IPv4, with the lengths of their addresses
ARP_REQUEST: Final = 1
ARP_REPLY: Final = 2

TTL: Final = 64
DONT_FRAGMENT: Final = 0x4000
FRAGMENT_BITS: Final = 0x3FFF  # more fragments, and the offset

LINK_LOCAL: Final = b"\xfe\x80" + bytes(6)
SOLICITED_NODE: Final = bytes.fromhex("ff0200000000000000000001ff")  # RFC 4291 2.7.1
ALL_NODES: Final = b"\xff\x02" + bytes(13) + b"\x01"


class Packet(NamedTuple):
    """An IP packet without options or extension headers; `hops` is its TTL or hop limit."""

    source: bytes
    destination: bytes
    protocol: int
    hops: int
    payload: bytes


def checksum(*parts: bytes) -> int:
    """RFC 1071 over all parts together, each but the last of an even length; 0 over data that
    hold their own right sum.
    """
    data = b"".join(parts)
    return int(lib.checksum_internet(ffi.from_buffer(data), len(data), 0)) ^ 0xFFFF


def pseudo(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    """What a sum of UDP or ICMPv6 covers beside the message (RFC 768, RFC 8200 8.1)."""
    width = 2 if len(source) == 4 else 4
    if width == 2:
        return source + destination + protocol.to_bytes(2, "big") + length.to_bytes(2, "big")
    return source + destination + length.to_bytes(4, "big") + protocol.to_bytes(4, "big")


def read_ipv4(data: bytes) -> Packet | None:
    """Of a whole frame. A fragment, options or a wrong header sum: None."""
    if len(data) < 34:
        return None
    kind, _, length, _, fragment, hops, protocol, _, source, destination = HEADER_IPV4.unpack_from(
        data, 14
    )
    end = 14 + length
    if kind != 0x45 or length < 20 or end > len(data) or fragment & FRAGMENT_BITS:
        return None
    if checksum(data[14:34]):
        return None
    return Packet(source, destination, protocol, hops, data[34:end])


def read_ipv6(data: bytes) -> Packet | None:
    """Of a whole frame. Extension headers are not walked: they are the protocol."""
    if len(data) < 54:
        return None
    flow, length, protocol, hops, source, destination = HEADER_IPV6.unpack_from(data, 14)
    if flow >> 28 != 6 or 54 + length > len(data):
        return None
    return Packet(source, destination, protocol, hops, data[54 : 54 + length])


def ipv4(source: bytes, destination: bytes, protocol: int, payload: bytes) -> bytes:
    """A packet that is not to be fragmented."""
    fields = (0x45, 0, 20 + len(payload), 0, DONT_FRAGMENT, TTL, protocol)
    bare = HEADER_IPV4.pack(*fields, 0, source, destination)
    return HEADER_IPV4.pack(*fields, checksum(bare), source, destination) + payload


def ipv6(
    source: bytes, destination: bytes, protocol: int, payload: bytes, *, hops: int = TTL
) -> bytes:
    header = HEADER_IPV6.pack(6 << 28, len(payload), protocol, hops, source, destination)
    return header + payload


def icmp(kind: int, rest: bytes, *, over: bytes = b"") -> bytes:
    """A message of code 0; `rest` follows its checksum, `over` is ICMPv6's pseudo-header."""
    total = checksum(over, bytes((kind, 0, 0, 0)), rest)
    return bytes((kind, 0)) + total.to_bytes(2, "big") + rest


def udp(source: bytes, destination: bytes, ports: Sequence[int], payload: bytes) -> bytes:
    """A datagram; `ports`: source, destination. A sum of 0 is written as 0xFFFF."""
    length = 8 + len(payload)
    over = pseudo(source, destination, UDP, length)
    total = checksum(over, HEADER_UDP.pack(*ports, length, 0), payload)
    return HEADER_UDP.pack(*ports, length, total or 0xFFFF) + payload


def link_local(mac: bytes) -> bytes:
    """A station's own address by modified EUI-64 (RFC 4291 appendix A)."""
    return LINK_LOCAL + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]


def solicited_node(address: bytes) -> bytes:
    """The group that a neighbour solicitation for `address` goes to."""
    return SOLICITED_NODE + address[13:]


def group_mac(address: bytes) -> bytes:
    """The Ethernet address of an IPv6 group (RFC 2464 7)."""
    return b"\x33\x33" + address[12:]


def is_station(address: bytes) -> bool:
    """Whether one host may be the source of that address (RFC 1122 3.2.1.3, RFC 4291 2.7)."""
    if len(address) == 4:
        return 0 < address[0] < 224 and address[0] != 127
    return address[0] != 0xFF and any(address)
