"""Which tx queue a packet takes (win-xenvif transmitter.c and FrontendGetQueue)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from xenpv.vif.packet import HashAlgorithm, TransmitterPacket
from xenpv.vif.parse import (
    ETHERNET,
    IPV4,
    IPV6,
    TAG,
    TCP,
    UDP,
    VLAN,
)

FLOWS_MAX: Final = 4096  # whose hashes are kept


def choose(
    packets: Sequence[bytes | TransmitterPacket], queues: int, mapping: Sequence[int]
) -> list[int]:
    """The queue of each packet, out of `queues`.

    A hash of Toeplitz's leads through `mapping`, to queue 0 while that is empty; one of
    unspecified origin is taken modulo the queues, and without any XenVif makes its own.
    """
    chosen = []
    size = len(mapping)
    for packet in packets:
        if not isinstance(packet, TransmitterPacket):
            chosen.append(flow_hash(packet) % queues)
            continue
        algorithm, _, value = packet.hash
        if algorithm == HashAlgorithm.TOEPLITZ:
            queue = mapping[value % size] if size else 0
        else:
            own = algorithm != HashAlgorithm.UNSPECIFIED
            queue = flow_hash(packet.data) if own else value
        chosen.append(queue % queues)
    return chosen


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
    return _fold(key)


@lru_cache(maxsize=FLOWS_MAX)
def _fold(key: bytes) -> int:
    """Of a flow's frames the hash is one and the same: it is looked up."""
    value = 0
    for byte in key:
        value = (value << 4) + byte & 0xFFFFFFFF
        overflow = value & 0x000FFF00
        if overflow:
            value ^= overflow >> 8
            value ^= overflow
    return value
