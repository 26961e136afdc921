"""Sums over a packet whose headers are known (win-xenvif checksum.c).

Numbers are big-endian words' sums, as they stand in their fields. Ones' complement has two
zeros; where a field's 0 means "no sum" (UDP, RFC 768), 0xFFFF is written.
"""

from __future__ import annotations

from typing import Final

from xenpv.abi._kernel import ffi, lib
from xenpv.vif.packet import PacketInfo
from xenpv.vif.parse import TCP, UDP

CHECKSUM_TCP: Final = 16  # where the field lies in its header
CHECKSUM_UDP: Final = 6
CHECKSUM_IPV4: Final = 10


def ones_sum(data: bytes | bytearray | memoryview, initial: int = 0) -> int:
    """The folded, not inverted sum of 16-bit words, an odd last byte padded with zero."""
    raw = data if type(data) is bytes else ffi.from_buffer(data)
    return int(lib.checksum_internet(raw, len(data), initial))


def ipv4_header_sum(packet: bytes | bytearray, info: PacketInfo) -> int:
    """The checksum of an IPv4 header with its options, whatever its field holds."""
    at = info.ip.offset
    end = at + info.ip.length + info.ip_options.length
    head = bytes(packet[at : at + CHECKSUM_IPV4]) + bytes(2) + packet[at + 12 : end]
    return ones_sum(head) ^ 0xFFFF


def transport_field(info: PacketInfo) -> int:
    """Where the sum of TCP or UDP lies; 0 if there is neither."""
    if info.tcp.length:
        return info.tcp.offset + CHECKSUM_TCP
    return info.udp.offset + CHECKSUM_UDP if info.udp.length else 0


def pseudo_header_sum(packet: bytes | bytearray, info: PacketInfo) -> int:
    """The folded, not inverted sum that a blank TCP or UDP checksum holds.

    Its length is the IP packet's without the IP header and its options.
    """
    at = info.ip.offset
    protocol = TCP if info.tcp.length else UDP
    if packet[at] >> 4 == 4:
        addresses = packet[at + 12 : at + 20]
        length = (packet[at + 2] << 8 | packet[at + 3]) - info.ip.length
    else:
        addresses = packet[at + 8 : at + 40]
        length = packet[at + 4] << 8 | packet[at + 5]
    return ones_sum(bytes(addresses), max(0, length - info.ip_options.length) + protocol)


def transport_sum(packet: bytes | bytearray, info: PacketInfo) -> int:
    """The whole TCP or UDP checksum, whatever its field holds; Ethernet padding is not summed."""
    at = info.ip.offset
    if packet[at] >> 4 == 4:
        end = at + (packet[at + 2] << 8 | packet[at + 3])
    else:
        end = at + info.ip.length + (packet[at + 4] << 8 | packet[at + 5])
    field = transport_field(info)
    start = info.tcp.offset if info.tcp.length else info.udp.offset
    view = memoryview(packet)
    total = ones_sum(view[start:field], pseudo_header_sum(packet, info))
    # Both parts begin at an even distance from the header's start.
    total = ones_sum(view[field + 2 : end], total) ^ 0xFFFF
    return total if total or info.tcp.length else 0xFFFF


def ipv4_header_good(packet: bytes, info: PacketInfo) -> bool:
    at = info.ip.offset
    return ones_sum(packet[at : at + info.ip.length + info.ip_options.length]) == 0xFFFF


def transport_good(packet: bytes, info: PacketInfo) -> bool:
    """Whether the field holds the whole sum; UDP over IPv4 may have none."""
    field = transport_field(info)
    held = packet[field] << 8 | packet[field + 1]
    if not held and info.udp.length and packet[info.ip.offset] >> 4 == 4:
        return True
    if info.tcp.length:
        return (held % 0xFFFF) == transport_sum(packet, info) % 0xFFFF
    return held == transport_sum(packet, info)
