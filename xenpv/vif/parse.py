"""Where a frame's headers end (win-xenvif parse.c).

Frames are whatever the guest or its backend made of them: a header that does not fit into
the frame, or into HEADERS_MAX, is not one.
"""

from __future__ import annotations

from typing import Final

ETHERNET: Final = 14
TAG: Final = 4
HEADERS_MAX: Final = 512  # what XenVif's header buffer takes
LENGTH_MAX: Final = 1500  # up to here the type field is a length, and LLC follows

IPV4: Final = b"\x08\x00"
IPV6: Final = b"\x86\xdd"
VLAN: Final = b"\x81\x00"
SNAP: Final = b"\xaa\xaa\x03"

TCP: Final = 6
UDP: Final = 17
FRAGMENT: Final = 44
AUTHENTICATION: Final = 51
OPTIONS: Final = (0, 43, 60)  # hop-by-hop, routing, destination
EXTENSIONS_MAX: Final = 100


def header_length(frame: bytes) -> int:
    """Bytes of Ethernet, LLC, IP and TCP or UDP headers; 0 if not even the first is there."""
    if len(frame) >= 42 and frame[12:15] == b"\x08\x00\x45" and frame[23] == UDP:
        return 34 if frame[20] & 0x3F or frame[21] else 42
    size = len(frame)
    if size < ETHERNET:
        return 0
    at = ETHERNET
    kind = frame[12:14]
    if kind == VLAN and size >= ETHERNET + TAG:
        at += TAG
        kind = frame[16:18]
    if kind == IPV4:
        return _ipv4(frame, at)
    if kind == IPV6:
        return _ipv6(frame, at)
    if int.from_bytes(kind, "big") <= LENGTH_MAX:
        return _llc(frame, at)
    return at


def _fits(frame: bytes, end: int, otherwise: int) -> int:
    return end if end <= len(frame) and end <= HEADERS_MAX else otherwise


def _llc(frame: bytes, at: int) -> int:
    return _fits(frame, at + (8 if frame[at : at + 3] == SNAP else 3), at)


def _ipv4(frame: bytes, at: int) -> int:
    if len(frame) < at + 20 or frame[at] >> 4 != 4 or frame[at] & 15 < 5:
        return at
    end = _fits(frame, at + (frame[at] & 15) * 4, at)
    if end == at or frame[at + 6] & 0x3F or frame[at + 7]:
        return end  # a fragment: what follows need not be a transport header
    return _transport(frame, end, frame[at + 9])


def _ipv6(frame: bytes, at: int) -> int:
    end = _fits(frame, at + 40, at)
    if end == at or frame[at] >> 4 != 6:
        return at
    kind = frame[at + 6]
    for _ in range(EXTENSIONS_MAX):
        if kind in OPTIONS or kind == AUTHENTICATION:
            if len(frame) < end + 2:
                return end
            units = (frame[end + 1] + 2) * 4 if kind == AUTHENTICATION else frame[end + 1] * 8 + 8
            step = _fits(frame, end + units, end)
            if step == end:
                return end
            kind, end = frame[end], step
        elif kind == FRAGMENT:
            return _fits(frame, end + 8, end)
        else:
            break
    return _transport(frame, end, kind)


def _transport(frame: bytes, at: int, protocol: int) -> int:
    if protocol == UDP:
        return _fits(frame, at + 8, at)
    if protocol != TCP or len(frame) < at + 20:
        return at
    length = (frame[at + 12] >> 4) * 4
    return _fits(frame, at + length, at) if length >= 20 else at
