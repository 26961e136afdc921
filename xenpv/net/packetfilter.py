"""Packet filter: NDIS' bits over the filter levels of the interface."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from xenpv.net.ndis import U32, NdisStatus
from xenpv.net.oid import OidError
from xenpv.vif.interface import FilterLevel, PacketType

if TYPE_CHECKING:
    from xenpv.vif.interface import VifInterface


class PacketFilter(enum.IntFlag):
    """NDIS_PACKET_TYPE_*, those that may be set."""

    DIRECTED = 0x01
    MULTICAST = 0x02
    ALL_MULTICAST = 0x04
    BROADCAST = 0x08
    PROMISCUOUS = 0x20


SUPPORTED_FILTERS: Final = 0x2F
DEFAULT_FILTER: Final = PacketFilter.DIRECTED | PacketFilter.ALL_MULTICAST | PacketFilter.BROADCAST

_NONE, _MATCHING, _ALL = FilterLevel.NONE, FilterLevel.MATCHING, FilterLevel.ALL


def read(vif: VifInterface) -> int:
    """Bits of PacketFilter for the levels that are set."""
    if vif.mac_query_filter_level(PacketType.UNICAST) is _ALL:
        return PacketFilter.PROMISCUOUS
    bits = 0
    if vif.mac_query_filter_level(PacketType.UNICAST) is _MATCHING:
        bits |= PacketFilter.DIRECTED
    multicast = vif.mac_query_filter_level(PacketType.MULTICAST)
    if multicast is not _NONE:
        bits |= PacketFilter.ALL_MULTICAST if multicast is _ALL else PacketFilter.MULTICAST
    if vif.mac_query_filter_level(PacketType.BROADCAST) is _ALL:
        bits |= PacketFilter.BROADCAST
    return bits


def write(vif: VifInterface, value: bytes) -> None:
    """Set the levels by 4 bytes. INVALID_PARAMETER for a bit that is not in PacketFilter."""
    (bits,) = U32.unpack(value)
    if bits & ~SUPPORTED_FILTERS:
        raise OidError(NdisStatus.INVALID_PARAMETER, f"packet filter {bits:#x}")
    unicast = _MATCHING if bits & PacketFilter.DIRECTED else _NONE
    multicast = _MATCHING if bits & PacketFilter.MULTICAST else _NONE
    if bits & PacketFilter.ALL_MULTICAST:
        multicast = _ALL
    broadcast = _ALL if bits & PacketFilter.BROADCAST else _NONE
    if bits & PacketFilter.PROMISCUOUS:
        unicast = multicast = broadcast = _ALL
    vif.mac_set_filter_level(PacketType.UNICAST, unicast)
    vif.mac_set_filter_level(PacketType.MULTICAST, multicast)
    vif.mac_set_filter_level(PacketType.BROADCAST, broadcast)
