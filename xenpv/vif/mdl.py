"""A received packet as XenVif lays it out: a chain of buffers, headers first (receiver.c).

The headers are copied to a page of their own, the payload stays where the backend wrote it.
Of LLC packets the payload follows the headers as far as the page goes (some of NDIS' tests
want that), and of all where AlwaysPullup says so.
"""

from __future__ import annotations

import attrs

from xenpv.vif.packet import PacketInfo, ReceiverPacket
from xenpv.vif.parameters import ReceiverParameters
from xenpv.vif.parse import parse
from xenpv.xen.domain import PAGE_SIZE


@attrs.frozen(kw_only=True)
class Mdl:
    """`buffers` joined are the packet, behind `offset` bytes of the first (IpAlignOffset)."""

    offset: int
    buffers: tuple[bytes, ...]
    info: PacketInfo


def mdl(packet: ReceiverPacket, parameters: ReceiverParameters) -> Mdl:
    """Of a packet that was handed up."""
    data = packet.data
    info, _ = parse(data)
    offset = parameters.ip_align_offset
    first = info.length
    if info.llc.length or parameters.always_pullup:
        first = max(first, min(len(data), PAGE_SIZE - offset))
    payload = range(first, len(data), PAGE_SIZE)
    buffers = [bytes(offset) + data[:first], *(data[at : at + PAGE_SIZE] for at in payload)]
    return Mdl(offset=offset, buffers=tuple(buffers), info=info)
