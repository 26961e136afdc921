"""The header that a TAP with IFF_VNET_HDR puts before each frame: struct virtio_net_hdr.

It says of a frame what `Frame` says (Virtual I/O Device 1.2, 5.1.6; Linux
include/linux/virtio_net.h). The kernel writes in the CPU's byte order unless it is told
otherwise. What comes from outside is checked here, once.
"""

from __future__ import annotations

import struct
from typing import Final

from xenpv.errors import PeerProtocolError
from xenpv.host.network import (
    ETHERNET_HEADER,
    FRAME_MAX,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    Frame,
)
from xenpv.host.offload import blank_checksum
from xenpv.host.packet import TCP, UDP, internet_checksum, parse_headers

# flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
HEADER: Final = struct.Struct("=BBHHHH")
NOTHING: Final = bytes(HEADER.size)

NEEDS_CSUM: Final = 1
DATA_VALID: Final = 2

NONE: Final = 0
TCPV4: Final = 1
TCPV6: Final = 4
ECN: Final = 0x80  # the first segment has CWR; the TCP header says so too

_GSO_OF: Final = {NONE: GSO_NONE, TCPV4: GSO_TCPV4, TCPV6: GSO_TCPV6}
_TYPE_OF: Final = {GSO_TCPV4: TCPV4, GSO_TCPV6: TCPV6}
_VERSION_OF: Final = {GSO_TCPV4: 4, GSO_TCPV6: 6}
_CSUM_OFFSET: Final = {TCP: 16, UDP: 6}
_TCP_HEADER: Final = 20


def parse(raw: bytes) -> Frame:
    """The frame behind a header. PeerProtocolError: it is none, or asks for what we do not do.

    A sum that is wanted of anything but a plain TCP or UDP packet (of a tunnel's inner packet,
    say) is finished here: netif has no place for where it starts.
    """
    if len(raw) < HEADER.size:
        raise PeerProtocolError(f"{len(raw)} bytes: expected a header of {HEADER.size} first")
    flags, kind, _, size, start, offset = HEADER.unpack_from(raw)
    data = plain(raw[HEADER.size :]).data
    gso = _GSO_OF.get(kind & ~ECN)
    if gso is None:
        raise PeerProtocolError(f"gso_type {kind:#x}: expected TCPV4 (1) or TCPV6 (4)")
    if not flags & NEEDS_CSUM:
        if gso != GSO_NONE:
            raise PeerProtocolError("a large packet whose checksum is not to be done")
        return Frame(data, data_validated=bool(flags & DATA_VALID))
    if start + offset + 2 > len(data):
        raise PeerProtocolError(f"checksum at {start}+{offset} of {len(data)} bytes")
    headers = parse_headers(data)
    whole = (
        headers is not None
        and not headers.fragment
        and headers.transport == start
        and _CSUM_OFFSET.get(headers.protocol) == offset
    )
    if gso == GSO_NONE:
        if whole:
            return Frame(data, csum_blank=True, data_validated=True)
        return _summed(data, start, offset)
    assert headers is not None or not whole
    if not whole or headers is None or headers.version != _VERSION_OF[gso]:
        raise PeerProtocolError(f"gso_type {kind:#x} does not fit the packet")
    if headers.protocol != TCP or not size:
        raise PeerProtocolError(f"gso_size {size} of protocol {headers.protocol}")
    return Frame(data, csum_blank=True, data_validated=True, gso_type=gso, gso_size=size)


def plain(data: bytes) -> Frame:
    """A frame without a header. PeerProtocolError if it cannot be one."""
    if not ETHERNET_HEADER <= len(data) <= FRAME_MAX:
        raise PeerProtocolError(
            f"a frame of {len(data)} bytes: {ETHERNET_HEADER} to {FRAME_MAX} are possible"
        )
    return Frame(data)


def _summed(data: bytes, start: int, offset: int) -> Frame:
    """As skb_checksum_help: the sum of all from `start`, which the field's own seed is part of."""
    checksum = internet_checksum(data[start:]) or 0xFFFF
    at = start + offset
    return Frame(data[:at] + checksum.to_bytes(2, "big") + data[at + 2 :], data_validated=True)


def emit(frame: Frame) -> tuple[bytes, bytes]:
    """A header and the frame's bytes.

    PeerProtocolError: a frame that asks for offloads is no whole TCP or UDP packet, or a large
    one not of the kind that it says.
    """
    if not frame.csum_blank and not frame.gso_type:
        if not frame.data_validated:
            return NOTHING, frame.data
        return HEADER.pack(DATA_VALID, NONE, 0, 0, 0, 0), frame.data
    if not frame.csum_blank:
        frame = blank_checksum(frame)
    data = frame.data
    headers = parse_headers(data)
    offset = None if headers is None else _CSUM_OFFSET.get(headers.protocol)
    if headers is None or offset is None or headers.fragment:
        raise PeerProtocolError("offload asked for a frame that is no whole TCP or UDP packet")
    start = headers.transport
    if start + offset + 2 > headers.end:
        raise PeerProtocolError("offload asked for a packet shorter than its transport header")
    if not frame.gso_type:
        return HEADER.pack(NEEDS_CSUM, NONE, 0, 0, start, offset), data
    if headers.protocol != TCP or _VERSION_OF.get(frame.gso_type) != headers.version:
        raise PeerProtocolError(f"GSO type {frame.gso_type} does not fit the packet")
    length = start + _TCP_HEADER
    if length <= headers.end:
        length = start + (data[start + 12] >> 4) * 4
    if not start + _TCP_HEADER <= length <= headers.end or not 0 < frame.gso_size <= 0xFFFF:
        raise PeerProtocolError(f"GSO size {frame.gso_size}, headers of {length} bytes")
    kind = _TYPE_OF[frame.gso_type]
    return HEADER.pack(NEEDS_CSUM, kind, length, frame.gso_size, start, offset), data
