"""What a network card does for a frame that was sent with offloads, done in software.

A blank checksum is summed up from the sum that its field holds, as a card or Linux'
skb_checksum_help does it: a sender that put no pseudo-header sum there gets a wrong checksum
on the wire, and its tests see that. Segmentation follows Linux' tcp_gso_segment. Frames come
from guests: a frame that cannot be finished raises PeerProtocolError.
"""

from __future__ import annotations

import struct

import attrs

from xenpv.errors import PeerProtocolError
from xenpv.host.network import GSO_NONE, GSO_TCPV4, GSO_TCPV6, Frame
from xenpv.host.packet import (
    TCP,
    UDP,
    Headers,
    internet_checksum,
    ip_addresses,
    ones_sum,
    parse_headers,
    pseudo_header,
)

_CHECKSUM_OFFSET = {TCP: 16, UDP: 6}  # from the transport header
_HEADER_MIN = {TCP: 20, UDP: 8}
_IP_VERSION = {GSO_TCPV4: 4, GSO_TCPV6: 6}

_CWR = 0x80
_PSH = 0x08
_FIN = 0x01


def to_wire(frame: Frame) -> list[bytes]:
    """The finished Ethernet frames that a receiver without offloads gets for `frame`."""
    if not frame.csum_blank and not frame.gso_type:
        return [frame.data]
    return [finish_checksum(part).data for part in segment(frame)]


def finish_checksum(frame: Frame) -> Frame:
    """Write the full TCP or UDP checksum into a frame with a blank one; others pass as is.

    Raises PeerProtocolError if the frame is not an unfragmented TCP or UDP packet.
    """
    if not frame.csum_blank:
        return frame
    data = frame.data
    headers = _transport(data)
    checksum = internet_checksum(data[headers.transport : headers.end])
    if headers.protocol == UDP and checksum == 0:
        checksum = 0xFFFF  # 0 would say that there is no checksum (RFC 768)
    return attrs.evolve(
        frame,
        data=_with_checksum(data, headers, checksum),
        csum_blank=False,
        data_validated=True,
    )


def blank_checksum(frame: Frame) -> Frame:
    """Replace the TCP or UDP checksum by the pseudo-header's sum, to be finished later.

    Linux netback does this to a GSO packet that came with a full checksum (the counter
    rx_gso_checksum_fixup). Raises PeerProtocolError as finish_checksum does.
    """
    data = frame.data
    headers = _transport(data)
    seed = ones_sum(_pseudo_header(data, headers, headers.end - headers.transport))
    return attrs.evolve(
        frame,
        data=_with_checksum(data, headers, seed),
        csum_blank=True,
        data_validated=True,
    )


def sum_from_scratch(data: bytes) -> bytes:
    """An IPv4 frame with the sums that it ought to have, whatever stood there; others as they are.

    QEMU's net_checksum_calculate: the header's sum, and that of a whole TCP or UDP packet.
    """
    headers = parse_headers(data)
    if headers is None or headers.version != 4:
        return data
    network, at = headers.network, headers.network + 10
    blank = data[network:at] + bytes(2) + data[at + 2 : headers.transport]
    data = data[:at] + internet_checksum(blank).to_bytes(2, "big") + data[at + 2 :]
    try:
        return finish_checksum(blank_checksum(Frame(data))).data
    except PeerProtocolError:
        return data


def segment(frame: Frame) -> list[Frame]:
    """Cut a GSO packet into segments of `gso_size` payload bytes; others pass as they are.

    The segments have blank checksums, so that a receiver with checksum offload costs no
    summing; IPv4 headers are finished. Ethernet padding is cut off. Raises PeerProtocolError
    if the frame is no TCP packet of the IP version that it claims, or `gso_size` is 0.
    """
    if not frame.gso_type:
        return [frame]
    data = frame.data
    headers = _transport(data)
    if headers.protocol != TCP or _IP_VERSION.get(frame.gso_type) != headers.version:
        raise PeerProtocolError(f"GSO type {frame.gso_type} does not fit the packet")
    if frame.gso_size <= 0:
        raise PeerProtocolError(f"GSO size {frame.gso_size}")
    payload_start = headers.transport + (data[headers.transport + 12] >> 4) * 4
    if not headers.transport + 20 <= payload_start <= headers.end:
        raise PeerProtocolError("TCP header length outside the packet")
    if not frame.csum_blank:
        frame = blank_checksum(frame)
    if headers.end - payload_start <= frame.gso_size:
        return [attrs.evolve(frame, gso_type=GSO_NONE, gso_size=0)]
    return [
        Frame(part, csum_blank=True, data_validated=True, hash=frame.hash, lease=frame.lease)
        for part in _cut(frame.data, headers, payload_start, frame.gso_size)
    ]


def _cut(data: bytes, headers: Headers, payload_start: int, size: int) -> list[bytes]:
    network, transport = headers.network, headers.transport
    (ident,) = struct.unpack_from(">H", data, network + 4)
    (sequence,) = struct.unpack_from(">I", data, transport + 4)
    (seed,) = struct.unpack_from(">H", data, transport + 16)
    flags = data[transport + 13]
    parts = []
    for index, start in enumerate(range(payload_start, headers.end, size)):
        stop = min(start + size, headers.end)
        head = bytearray(data[:payload_start])
        trimmed = (headers.end - payload_start) - (stop - start)  # bytes that others carry
        if headers.version == 4:
            head[network + 10 : network + 12] = b"\0\0"
            struct.pack_into(">H", head, network + 2, headers.end - network - trimmed)
            struct.pack_into(">H", head, network + 4, (ident + index) & 0xFFFF)
            checksum = internet_checksum(bytes(head[network:transport]))
            struct.pack_into(">H", head, network + 10, checksum)
        else:
            struct.pack_into(">H", head, network + 4, headers.end - network - 40 - trimmed)
        offset = start - payload_start
        struct.pack_into(">I", head, transport + 4, (sequence + offset) & 0xFFFFFFFF)
        # Congestion is signalled once; push and end belong behind the last byte.
        cleared = (_CWR if start > payload_start else 0) | (
            _PSH | _FIN if stop < headers.end else 0
        )
        head[transport + 13] = flags & ~cleared
        # The length is a word of the pseudo-header, so the sum shrinks as the packet does.
        struct.pack_into(">H", head, transport + 16, (seed - trimmed) % 0xFFFF)
        parts.append(bytes(head) + data[start:stop])
    return parts


def _transport(data: bytes) -> Headers:
    headers = parse_headers(data)
    if headers is None or headers.fragment or headers.protocol not in _HEADER_MIN:
        raise PeerProtocolError("offload asked for a frame that is no whole TCP or UDP packet")
    if headers.end - headers.transport < _HEADER_MIN[headers.protocol]:
        raise PeerProtocolError("offload asked for a packet shorter than its transport header")
    return headers


def _pseudo_header(data: bytes, headers: Headers, length: int) -> bytes:
    return pseudo_header(*ip_addresses(data, headers), headers.protocol, length)


def _with_checksum(data: bytes, headers: Headers, checksum: int) -> bytes:
    field = headers.transport + _CHECKSUM_OFFSET[headers.protocol]
    return data[:field] + checksum.to_bytes(2, "big") + data[field + 2 :]
