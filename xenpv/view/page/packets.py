"""An Ethernet frame in a few words: `ARP who has 10.0.0.1? tell 10.0.0.2`.

Frames are hostile: whatever does not parse is said to be so, and nothing here raises.
"""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import Final

from xenpv.host.packet import (
    ARP_REPLY,
    ARP_REQUEST,
    ECHO6_REPLY,
    ECHO6_REQUEST,
    ECHO_REPLY,
    ECHO_REQUEST,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    ETHERTYPE_VLAN,
    ICMP,
    ICMPV6,
    NEIGHBOUR_ADVERTISEMENT,
    NEIGHBOUR_SOLICITATION,
    TCP,
    UDP,
    Headers,
    parse_arp,
    parse_headers,
)

_ECHO: Final = {
    (ICMP, ECHO_REQUEST): "ICMP echo request",
    (ICMP, ECHO_REPLY): "ICMP echo reply",
    (ICMPV6, ECHO6_REQUEST): "ICMPv6 echo request",
    (ICMPV6, ECHO6_REPLY): "ICMPv6 echo reply",
}
_NEIGHBOUR: Final = {
    NEIGHBOUR_SOLICITATION: "ICMPv6 neighbour solicitation: who has",
    NEIGHBOUR_ADVERTISEMENT: "ICMPv6 neighbour advertisement of",
}
# RFC 9293 3.1, from bit 0.
_TCP_FLAGS: Final = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
_NAMES: Final = {ETHERTYPE_ARP: "ARP", ETHERTYPE_IPV4: "IPv4", ETHERTYPE_IPV6: "IPv6"}


def summary(frame: bytes) -> str:
    """One line about a frame; lengths in bytes."""
    if len(frame) < 14:
        return f"runt of {len(frame)} bytes"
    kind = _u16(frame, 12)
    tag = ""
    if kind == ETHERTYPE_VLAN and len(frame) >= 18:
        tag = f"VLAN {_u16(frame, 14) & 0xFFF} "
        kind = _u16(frame, 16)
        frame = frame[:12] + frame[16:]
    return tag + _of_kind(frame, kind)


def _of_kind(frame: bytes, kind: int) -> str:
    if kind == ETHERTYPE_ARP:
        return _arp(frame)
    if kind not in _NAMES:
        if kind < 0x600:
            return f"802.3, {kind} bytes"
        return f"ethertype 0x{kind:04x}, {len(frame) - 14} bytes"
    headers = parse_headers(frame)
    if headers is None:
        return f"{_NAMES[kind]}, malformed"
    return _ip(frame, headers)


def _arp(frame: bytes) -> str:
    arp = parse_arp(frame)
    if arp is None:
        return "ARP, malformed"
    sender, target = _address(arp.sender_ip), _address(arp.target_ip)
    if arp.operation == ARP_REQUEST:
        return f"ARP who has {target}? tell {sender}"
    if arp.operation == ARP_REPLY:
        return f"ARP {sender} is at {arp.sender_mac.hex(':')}"
    return f"ARP operation {arp.operation}"


def _ip(frame: bytes, headers: Headers) -> str:
    first, width = (12, 4) if headers.version == 4 else (8, 16)
    at = headers.network + first
    source, target = _address(frame[at : at + width]), _address(frame[at + width : at + 2 * width])
    body = frame[headers.transport : headers.end]
    if headers.fragment:
        return f"IPv{headers.version} fragment {source} > {target}, {len(body)} bytes"
    if headers.protocol == TCP and len(body) >= 20:
        return _tcp(body, source, target)
    if headers.protocol == UDP and len(body) >= 8:
        ports = f"{source}:{_u16(body, 0)} > {target}:{_u16(body, 2)}"
        return f"UDP {ports}, {len(body) - 8} bytes"
    if headers.protocol in (ICMP, ICMPV6) and len(body) >= 8:
        return _icmp(body, headers.protocol, f"{source} > {target}")
    return (
        f"IPv{headers.version} protocol {headers.protocol} {source} > {target}, {len(body)} bytes"
    )


def _tcp(body: bytes, source: str, target: str) -> str:
    flags = "+".join(name for bit, name in enumerate(_TCP_FLAGS) if body[13] >> bit & 1) or "none"
    length = max(len(body) - (body[12] >> 4) * 4, 0)
    ports = f"{source}:{_u16(body, 0)} > {target}:{_u16(body, 2)}"
    return f"TCP {ports} {flags} seq {int.from_bytes(body[4:8], 'big')}, {length} bytes"


def _icmp(body: bytes, protocol: int, ends: str) -> str:
    echo = _ECHO.get((protocol, body[0]))
    if echo is not None:
        return f"{echo} {ends}, id {_u16(body, 4)} seq {_u16(body, 6)}, {len(body) - 8} bytes"
    if protocol == ICMPV6 and body[0] in _NEIGHBOUR and len(body) >= 24:
        return f"{_NEIGHBOUR[body[0]]} {_address(body[8:24])}, {ends}"
    name = "ICMP" if protocol == ICMP else "ICMPv6"
    return f"{name} type {body[0]} code {body[1]} {ends}"


def _u16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")


def _address(data: bytes) -> str:
    return ".".join(map(str, data)) if len(data) == 4 else str(IPv6Address(data))
