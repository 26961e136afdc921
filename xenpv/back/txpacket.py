"""Slots of a tx ring read as one packet: the rows of Linux netback that judge it by itself.

xenvif_get_extras, xenvif_count_requests, xenvif_set_skb_gso and checksum_setup of netback.c.
A guest that broke the protocol is a PeerProtocolError, and no slot of that packet is answered.
"""

from __future__ import annotations

from functools import cache
from struct import Struct
from typing import Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.abi.layout import packer, struct_format
from xenpv.errors import PeerProtocolError
from xenpv.host.network import Frame
from xenpv.host.offload import blank_checksum
from xenpv.host.packet import TCP, UDP, parse_headers
from xenpv.xen.domain import PAGE_SIZE

REQUEST: Final = packer("netif_tx_request")
RESPONSE_SIZE: Final = packer("netif_tx_response").size
EXTRA: Final = packer("netif_extra_info")
EXTRA_GSO: Final = packer("netif_extra_info", "u.gso")
EXTRA_HASH: Final = packer("netif_extra_info", "u.hash")

CSUM_BLANK: Final[int] = lib.NETTXF_csum_blank
DATA_VALIDATED: Final[int] = lib.NETTXF_data_validated
MORE_DATA: Final[int] = lib.NETTXF_more_data
EXTRA_INFO: Final[int] = lib.NETTXF_extra_info
CHAINED: Final = MORE_DATA | EXTRA_INFO
SUMS: Final = CSUM_BLANK | DATA_VALIDATED
EXTRA_FLAG_MORE: Final[int] = lib.XEN_NETIF_EXTRA_FLAG_MORE
EXTRA_TYPE_MAX: Final[int] = lib.XEN_NETIF_EXTRA_TYPE_MAX
TYPE_GSO: Final[int] = lib.XEN_NETIF_EXTRA_TYPE_GSO
TYPE_MCAST_ADD: Final[int] = lib.XEN_NETIF_EXTRA_TYPE_MCAST_ADD
TYPE_MCAST_DEL: Final[int] = lib.XEN_NETIF_EXTRA_TYPE_MCAST_DEL
TYPE_HASH: Final[int] = lib.XEN_NETIF_EXTRA_TYPE_HASH
GSO_TYPES: Final = (lib.XEN_NETIF_GSO_TYPE_TCPV4, lib.XEN_NETIF_GSO_TYPE_TCPV6)
HASH_TYPES: Final = 4  # bit numbers 0 to 3: XEN_NETIF_CTRL_HASH_TYPE_*
OKAY: Final[int] = lib.NETIF_RSP_OKAY
ERROR: Final[int] = lib.NETIF_RSP_ERROR
NULL: Final[int] = lib.NETIF_RSP_NULL

LATER_SLOTS_MAX: Final[int] = lib.XEN_NETIF_NR_SLOTS_MIN  # beyond it a packet is dropped
LATER_SLOTS_FATAL: Final = 20  # FATAL_SKB_SLOTS_DEFAULT: beyond it the guest is malicious
ETHERNET: Final = 14

# gref, offset, flags, id, size
Slot = tuple[int, ...]


@cache
def responses_packer(count: int) -> Struct:
    """`count` tx responses from ids and statuses in one flat list."""
    return Struct("<" + struct_format("netif_tx_response")[1:] * count)


@attrs.frozen(kw_only=True)
class Extras:
    """What the extras of a packet say."""

    count: int
    gso_type: int = 0
    gso_size: int = 0
    hash: tuple[int, int] | None = None


def read_extras(raw: memoryview, index: int, count: int, extras: dict[int, int]) -> int:
    """Note where each type of extra lies; the index after them. Of two alike the last counts."""
    flags = EXTRA_FLAG_MORE
    while flags & EXTRA_FLAG_MORE:
        if index >= count:
            raise PeerProtocolError("tx extra info beyond the producer")
        at = index * REQUEST.size
        kind, flags, _ = EXTRA.unpack_from(raw, at)
        if not 0 < kind < EXTRA_TYPE_MAX:
            raise PeerProtocolError(f"tx extra of type {kind}")
        extras[kind] = at
        index += 1
    return index


def later_slots(slots: list[Slot], index: int, total: int) -> tuple[list[Slot], int, bool]:
    """Slots after the first, the first's own bytes, and whether the packet is to be dropped."""
    later: list[Slot] = []
    rest = total
    drop = False
    more = MORE_DATA
    while more:
        if index >= len(slots):
            raise PeerProtocolError("tx data beyond the producer")
        if len(later) >= LATER_SLOTS_FATAL:
            raise PeerProtocolError(f"a tx packet of more than {LATER_SLOTS_FATAL + 1} slots")
        slot = slots[index]
        _, offset, more, _, size = slot
        drop = drop or len(later) >= LATER_SLOTS_MAX or size > rest
        rest -= size
        if offset + size > PAGE_SIZE:
            raise PeerProtocolError(f"tx {slot[3]}: {size} bytes at {offset} in a page")
        later.append(slot)
        more &= MORE_DATA
        index += 1
    return later, rest, drop


def told_by(raw: memoryview, extras: dict[int, int], count: int) -> Extras | None:
    """What a packet's `count` extras say, if it has any."""
    if not extras:
        return None
    gso_type, gso_size = _gso(raw, extras)
    return Extras(count=count, gso_type=gso_type, gso_size=gso_size, hash=_hash(raw, extras))


def _gso(raw: memoryview, extras: dict[int, int]) -> tuple[int, int]:
    """Type and segment size, both 0 without a GSO extra."""
    at = extras.get(TYPE_GSO)
    if at is None:
        return 0, 0
    _, _, size, kind, _, _ = EXTRA_GSO.unpack_from(raw, at)
    if not size:
        raise PeerProtocolError("GSO size is 0")
    if kind not in GSO_TYPES:
        raise PeerProtocolError(f"GSO type {kind}")
    return kind, size


def _hash(raw: memoryview, extras: dict[int, int]) -> tuple[int, int] | None:
    """Type and value of the HASH extra; its algorithm byte is not looked at.

    A type that is none of the four makes it no hash (PKT_HASH_TYPE_NONE), and no error.
    """
    at = extras.get(TYPE_HASH)
    if at is None:
        return None
    _, _, kind, _, value = EXTRA_HASH.unpack_from(raw, at)
    return (kind, int.from_bytes(value, "little")) if kind < HASH_TYPES else None


def answer(responses: list[int], ids: list[int], nr_extras: int, status: int) -> None:
    """Responses for a packet: its extras' come right after the first slot's."""
    responses += (ids[0], status)
    responses += (0, NULL) * nr_extras
    for number in ids[1:]:
        responses += (number, status)


def offloads(data: bytes, flags: int, told: Extras | None) -> Frame | None:
    """The frame with what its sender said about it; None if that cannot be true.

    A GSO packet without a blank sum gets one: who calls counts rx_gso_checksum_fixup.
    """
    frame = Frame(data, bool(flags & CSUM_BLANK), bool(flags & SUMS))
    if told is not None:
        frame.gso_type = told.gso_type
        frame.gso_size = told.gso_size
        frame.hash = told.hash
    if not frame.csum_blank and not frame.gso_type:
        return frame
    headers = parse_headers(data)
    # A tag hides the protocol from skb_checksum_setup, which knows IPv4 and IPv6 only.
    if headers is None or headers.fragment or headers.network != ETHERNET:
        return None
    least = _TRANSPORT_MIN.get(headers.protocol)
    if least is None or headers.end - headers.transport < least:
        return None
    return frame if frame.csum_blank else blank_checksum(frame)


_TRANSPORT_MIN: Final = {TCP: 20, UDP: 8}  # bytes of header that a sum lies in
