"""Where a frame's headers lie (win-xenvif parse.c).

Frames are whatever the guest or its backend made of them: a header that does not fit into
the frame, or into HEADERS_MAX, is not one.
"""

from __future__ import annotations

from typing import Final

from xenpv.vif.callbacks import CHECKSUM_SHIFT, Traits
from xenpv.vif.packet import NO_HEADER, Checksum, Header, PacketInfo

ETHERNET: Final = 14
TAG: Final = 4
HEADERS_MAX: Final = 512  # what XenVif's header buffer takes
LENGTH_MAX: Final = 1500  # up to here the type field is a length, and LLC follows

IPV4: Final = b"\x08\x00"
IPV6: Final = b"\x86\xdd"
VLAN: Final = b"\x81\x00"

TCP: Final = 6
UDP: Final = 17
FRAGMENT: Final = 44
AUTHENTICATION: Final = 51
OPTIONS: Final = (0, 43, 60)  # hop-by-hop, routing, destination
EXTENSIONS_MAX: Final = 100

LLC: Final = 3
SNAP: Final = 8
IPV4_HEADER: Final = 20
IPV6_HEADER: Final = 40
TCP_HEADER: Final = 20
UDP_HEADER: Final = 8

NOTHING: Final = PacketInfo()

# Of packets whose sums nobody looked at.
_TAGGED: Final = int(Traits.TAGGED)
_LLC_SNAP: Final = int(Traits.LLC_SNAP)
_IPV6_TRAITS: Final = int(Traits.IPV6)
_IPV4_TRAITS: Final = int(Traits.IPV4) | Checksum.IP_NOT_VALIDATED << CHECKSUM_SHIFT
_TCP_TRAITS: Final = int(Traits.TCP) | Checksum.TCP_NOT_VALIDATED << CHECKSUM_SHIFT
_UDP_TRAITS: Final = int(Traits.UDP) | Checksum.UDP_NOT_VALIDATED << CHECKSUM_SHIFT

# The length of all headers and the packet's Traits in one number: see `headers_of`.
LENGTH_BITS: Final = 10
LENGTH_MASK: Final = (1 << LENGTH_BITS) - 1
_UDP4: Final = 42 | (_IPV4_TRAITS | _UDP_TRAITS) << LENGTH_BITS
_TCP4: Final = 54 | (_IPV4_TRAITS | _TCP_TRAITS) << LENGTH_BITS


def headers_of(frame: bytes) -> int:
    """Bytes of all headers, and above LENGTH_BITS the packet's Traits; 0 if there are none.

    One number, since it is asked for every frame that is sent.
    """
    # Plain UDP and TCP over IPv4 are most of what there is: the same answer, sooner.
    if (
        len(frame) >= 54
        and frame[12:15] == b"\x08\x00\x45"
        and not (frame[20] & 0x3F or frame[21])
        and (frame[16] << 8 | frame[17]) <= len(frame) - ETHERNET
    ):
        protocol = frame[23]
        if protocol == UDP:
            return _UDP4
        if protocol == TCP and frame[46] >> 4 == 5:
            return _TCP4
    info, _ = parse(frame)
    return info.length | traits_of(frame, info) << LENGTH_BITS


def header_length(frame: bytes) -> int:
    """Bytes of Ethernet, LLC, IP and TCP or UDP headers; 0 if not even the first is there."""
    return headers_of(frame) & LENGTH_MASK


def traits_of(frame: bytes | bytearray, info: PacketInfo) -> int:
    """What statistics count of a packet with these headers, no sum of which was looked at."""
    traits = 0
    if info.ethernet.length > ETHERNET:
        traits |= _TAGGED
    if info.llc.length:
        traits |= _LLC_SNAP
    if info.ip.length:
        traits |= _IPV4_TRAITS if frame[info.ip.offset] >> 4 == 4 else _IPV6_TRAITS
    if info.tcp.length:
        traits |= _TCP_TRAITS
    if info.udp.length:
        traits |= _UDP_TRAITS
    return traits


def parse(frame: bytes) -> tuple[PacketInfo, bool]:
    """The headers that are there, and whether each that was announced is one.

    A packet that is sent goes out with the headers that were found; one that arrives is
    dropped unless all were. Transport headers of fragments are not looked for.
    """
    size = len(frame)
    if size < ETHERNET:
        return NOTHING, False
    at = ETHERNET
    kind = frame[12:14]
    if kind == VLAN:
        at += TAG
        if size < at:
            return NOTHING, False
        kind = frame[16:18]
    ethernet = Header(0, at)
    if kind == IPV4:
        return _ipv4(frame, ethernet)
    if kind == IPV6:
        return _ipv6(frame, ethernet)
    if int.from_bytes(kind, "big") <= LENGTH_MAX:
        return _llc(frame, ethernet)
    return PacketInfo(at, ethernet=ethernet), True


def _fits(frame: bytes, end: int) -> bool:
    return end <= len(frame) and end <= HEADERS_MAX


def _llc(frame: bytes, ethernet: Header) -> tuple[PacketInfo, bool]:
    at = ethernet.length
    # The lowest bit of an access point's address says something else (group, response).
    snap = frame[at + 2 : at + 3] == b"\3" and frame[at] & 0xFE == frame[at + 1] & 0xFE == 0xAA
    length = SNAP if snap else LLC
    if not _fits(frame, at + length):
        return PacketInfo(at, ethernet=ethernet), False
    return PacketInfo(at + length, ethernet=ethernet, llc=Header(at, length)), True


def _ipv4(frame: bytes, ethernet: Header) -> tuple[PacketInfo, bool]:
    at = ethernet.length
    failed = PacketInfo(at, ethernet=ethernet), False
    if len(frame) < at + IPV4_HEADER or frame[at] >> 4 != 4:
        return failed
    total = frame[at + 2] << 8 | frame[at + 3]
    length = (frame[at] & 15) * 4
    end = at + length
    if total > len(frame) - at or length < IPV4_HEADER or not _fits(frame, end):
        return failed
    options = length - IPV4_HEADER
    fragment = bool(frame[at + 6] & 0x3F or frame[at + 7])
    info = PacketInfo(
        end,
        is_fragment=fragment,
        ethernet=ethernet,
        ip=Header(at, IPV4_HEADER),
        ip_options=Header(at + IPV4_HEADER, options) if options else NO_HEADER,
    )
    return (info, True) if fragment else _transport(frame, info, frame[at + 9])


def _ipv6(frame: bytes, ethernet: Header) -> tuple[PacketInfo, bool]:
    at = ethernet.length
    failed = PacketInfo(at, ethernet=ethernet), False
    end = at + IPV6_HEADER
    if not _fits(frame, end) or frame[at] >> 4 != 6:
        return failed
    if (frame[at + 4] << 8 | frame[at + 5]) > len(frame) - end:
        return failed
    walked = _extensions(frame, end, frame[at + 6])
    if walked is None:
        return failed
    end, protocol, fragment = walked
    options = end - at - IPV6_HEADER
    info = PacketInfo(
        end,
        is_fragment=fragment,
        ethernet=ethernet,
        ip=Header(at, IPV6_HEADER),
        ip_options=Header(at + IPV6_HEADER, options) if options else NO_HEADER,
    )
    return (info, True) if fragment else _transport(frame, info, protocol)


def _extensions(frame: bytes, end: int, protocol: int) -> tuple[int, int, bool] | None:
    """Where extension headers that begin at `end` end, what follows, and if it is a fragment.

    None: one does not fit, or there are EXTENSIONS_MAX. An atomic fragment is none (RFC 6946).
    """
    for _ in range(EXTENSIONS_MAX):
        if protocol in OPTIONS or protocol == AUTHENTICATION:
            if not _fits(frame, end + 2):
                return None
            units = frame[end + 1]
            step = (units + 2) * 4 if protocol == AUTHENTICATION else units * 8 + 8
            if protocol == AUTHENTICATION and step < 12:
                return None
        elif protocol == FRAGMENT:
            step = 8
        else:
            return end, protocol, False
        if not _fits(frame, end + step):
            return None
        following = frame[end]
        if protocol == FRAGMENT and (frame[end + 2] or frame[end + 3] & 0xF9):
            return end + step, following, True  # what follows need not be a header
        protocol = following
        end += step
    return None


def _transport(frame: bytes, info: PacketInfo, protocol: int) -> tuple[PacketInfo, bool]:
    at = info.length
    if protocol == UDP:
        if not _fits(frame, at + UDP_HEADER):
            return info, False
        udp = Header(at, UDP_HEADER)
        return PacketInfo(at + UDP_HEADER, *info[1:6], NO_HEADER, NO_HEADER, udp), True
    if protocol != TCP:
        return info, True
    if len(frame) < at + TCP_HEADER:
        return info, False
    length = (frame[at + 12] >> 4) * 4
    if length < TCP_HEADER or not _fits(frame, at + length):
        return info, False
    options = length - TCP_HEADER
    tcp = Header(at, TCP_HEADER)
    tcp_options = Header(at + TCP_HEADER, options) if options else NO_HEADER
    return PacketInfo(at + length, *info[1:6], tcp, tcp_options), True
