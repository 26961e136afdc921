"""Frames for the network cases, and what is right about one: worked out with nothing of a driver's.

Packets have plain headers: Ethernet 14 bytes, IPv4 20 or IPv6 40, TCP 20 or UDP 8.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

import attrs

GUEST_MAC: Final = bytes.fromhex("00163e000001")
PEER_MAC: Final = bytes.fromhex("00163e0000ee")
BROADCAST: Final = b"\xff" * 6
GROUP: Final = bytes.fromhex("01005e000001")
EXPERIMENTAL: Final = b"\x88\xb5"  # the EtherType of frames that are no IP (IEEE 802)
IPV4: Final = b"\x08\x00"
IPV6: Final = b"\x86\xdd"
ETHERNET: Final = 14
TCP: Final = 6
UDP: Final = 17
WHOLE, PSEUDO, WRONG = "whole", "pseudo", "wrong"  # what a checksum field holds


def payload(size: int, mark: int = 0) -> bytes:
    """Bytes that each tell their place; different ones for another `mark`."""
    return bytes(at * 7 + at // 251 + mark * 13 & 0xFF for at in range(size))


def frame(
    size: int,
    *,
    source: bytes = GUEST_MAC,
    destination: bytes = PEER_MAC,
    mark: int = 0,
) -> bytes:
    """`size` bytes, no IP. `mark` stands in the first four bytes behind the header."""
    head = destination + source + EXPERIMENTAL + mark.to_bytes(4, "big")
    return (head + payload(max(0, size - len(head)), mark))[:size]


def mark_of(data: bytes) -> int:
    """The `mark` of a frame of `frame`."""
    return int.from_bytes(data[14:18], "big")


def ones_sum(data: bytes) -> int:
    """The ones' complement sum of big-endian words (RFC 1071), folded to 16 bits."""
    total = sum(int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
                for at in range(0, len(data), 2))  # fmt: skip
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@attrs.frozen
class Flow:
    """Addresses as text of bytes, and ports: what a receiver hashes."""

    source: bytes
    destination: bytes
    sport: int
    dport: int

    @property
    def version(self) -> int:
        return 4 if len(self.source) == 4 else 6


V4: Final = Flow(ip_address("192.0.2.1").packed, ip_address("198.51.100.2").packed, 1025, 80)
V6: Final = Flow(ip_address("2001:db8::1").packed, ip_address("2001:db8::2").packed, 1025, 80)


def packet(
    size: int,
    *,
    flow: Flow = V4,
    protocol: int = TCP,
    checksum: str = WHOLE,
    source: bytes = GUEST_MAC,
    destination: bytes = PEER_MAC,
    mark: int = 0,
) -> bytes:
    """An IP packet with `size` bytes of payload, its checksum as told."""
    body = payload(size, mark)
    ports = flow.sport.to_bytes(2, "big") + flow.dport.to_bytes(2, "big")
    if protocol == TCP:
        segment = ports + bytes(8) + b"\x50\x10\xff\xff" + bytes(4) + body
    else:
        segment = ports + (8 + size).to_bytes(2, "big") + bytes(2) + body
    field = 16 if protocol == TCP else 6
    value = ones_sum(_pseudo(flow, protocol, len(segment)))
    if checksum == WHOLE:
        value = ones_sum(value.to_bytes(2, "big") + segment) ^ 0xFFFF
    elif checksum == WRONG:
        value ^= 0x5A5A
    segment = segment[:field] + value.to_bytes(2, "big") + segment[field + 2 :]
    kind = IPV4 if flow.version == 4 else IPV6
    return destination + source + kind + _ip(flow, protocol, len(segment)) + segment


def _ip(flow: Flow, protocol: int, size: int) -> bytes:
    if flow.version == 6:
        head = b"\x60\0\0\0" + size.to_bytes(2, "big") + bytes([protocol, 64])
        return head + flow.source + flow.destination
    head = b"\x45\0" + (20 + size).to_bytes(2, "big") + b"\0\x07\x40\0" + bytes([64, protocol])
    rest = flow.source + flow.destination
    return head + (ones_sum(head + rest) ^ 0xFFFF).to_bytes(2, "big") + rest


def _pseudo(flow: Flow, protocol: int, size: int) -> bytes:
    if flow.version == 6:
        tail = size.to_bytes(4, "big") + bytes([0, 0, 0, protocol])
    else:
        tail = bytes([0, protocol]) + size.to_bytes(2, "big")
    return flow.source + flow.destination + tail


def headers_of(data: bytes) -> tuple[Flow, int, int] | None:
    """(flow, protocol, offset of the TCP or UDP header) of a packet of `packet`."""
    if data[12:14] == IPV4:
        at, protocol, where, size = 14 + 4 * (data[14] & 15), data[23], 26, 4
    elif data[12:14] == IPV6:
        at, protocol, where, size = 54, data[20], 22, 16
    else:
        return None
    ends = data[where : where + 2 * size]
    sport, dport = (int.from_bytes(data[at + n : at + n + 2], "big") for n in (0, 2))
    return Flow(ends[:size], ends[size:], sport, dport), protocol, at


def checksum_of(data: bytes) -> str:
    """WHOLE, PSEUDO or WRONG; of a frame that is no packet WHOLE."""
    found = headers_of(data)
    if found is None:
        return WHOLE
    flow, protocol, at = found
    segment = data[at:]
    pseudo = _pseudo(flow, protocol, len(segment))
    if ones_sum(pseudo + segment) == 0xFFFF:
        return WHOLE
    field = 16 if protocol == TCP else 6
    held = int.from_bytes(segment[field : field + 2], "big")
    return PSEUDO if held == ones_sum(pseudo) else WRONG


def body_of(data: bytes) -> bytes:
    """The payload of a TCP packet of `packet`, of a segment of one too."""
    found = headers_of(data)
    if found is None:
        return b""
    _, protocol, at = found
    return data[at + (4 * (data[at + 12] >> 4) if protocol == TCP else 8) :]


# The verification suite of Microsoft's RSS documents: key, flows, hash of the addresses alone,
# hash with the ports of TCP.
TOEPLITZ_KEY: Final = bytes.fromhex(
    "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
)
_SUITE: Final = (
    ("66.9.149.187", 2794, "161.142.100.80", 1766, 0x323E8FC2, 0x51CCC178),
    ("199.92.111.2", 14230, "65.69.140.83", 4739, 0xD718262A, 0xC626B0EA),
    ("24.19.198.95", 12898, "12.22.207.184", 38024, 0xD2D0A5DE, 0x5C2B394A),
    ("38.27.205.30", 48228, "209.142.163.6", 2217, 0x82989176, 0xAFC7327F),
    ("153.39.163.191", 44251, "202.188.127.2", 1303, 0x5D1809C5, 0x10E828A2),
    ("3ffe:2501:200:1fff::7", 2794, "3ffe:2501:200:3::1", 1766, 0x2CC18CD5, 0x40207D3D),
    ("3ffe:501:8::260:97ff:fe40:efab", 14230, "ff02::1", 4739, 0x0F0C461C, 0xDDE51BBF),
    ("3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251, "fe80::200:f8ff:fe21:67cf", 38024, 0x4B61E985,
     0x02D1FEEF),
)  # fmt: skip
TOEPLITZ: Final = tuple(
    (Flow(ip_address(source).packed, ip_address(destination).packed, sport, dport), plain, ports)
    for source, sport, destination, dport, plain, ports in _SUITE
)
