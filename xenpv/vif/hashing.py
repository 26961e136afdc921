"""XenVif's own choice of a tx queue, where nobody above gave it a hash."""

from __future__ import annotations

from xenpv.vif.parse import (
    ETHERNET,
    IPV4,
    IPV6,
    TAG,
    TCP,
    UDP,
    VLAN,
)


def flow_hash(frame: bytes) -> int:
    """A u32 over addresses and, of an unfragmented TCP or UDP packet, ports; 0 if it is not IP.

    Extension headers of IPv6 are not walked: such a packet counts by its addresses.
    """
    at = ETHERNET
    kind = frame[12:14]
    if kind == VLAN:
        at += TAG
        kind = frame[16:18]
    if kind == IPV4 and len(frame) >= at + 20:
        ports = at + (frame[at] & 15) * 4
        whole = not (frame[at + 6] & 0x3F or frame[at + 7])
        key = frame[at + 12 : at + 20]
        protocol = frame[at + 9] if whole else 0
    elif kind == IPV6 and len(frame) >= at + 40:
        ports = at + 40
        key = frame[at + 8 : at + 40]
        protocol = frame[at + 6]
    else:
        return 0
    if protocol in (TCP, UDP):
        key += frame[ports : ports + 4]
    value = 0
    for byte in key:
        value = (value << 4) + byte & 0xFFFFFFFF
        overflow = value & 0x000FFF00
        if overflow:
            value ^= overflow >> 8
            value ^= overflow
    return value
