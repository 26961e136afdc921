"""OID requests: what NDIS asks an adapter and sets in it (win-xennet adapter.c).

Two tables say which OIDs are answered; every other is NOT_SUPPORTED. Values are little-endian
bytes of NDIS' own layouts.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from struct import Struct
from typing import Final

from xenpv.errors import XenpvError
from xenpv.net.ndis import NdisStatus
from xenpv.vif.interface import FilterLevel, NtStatusError, PacketType, Statistic, VifInterface

U32: Final = Struct("<I")
U64: Final = Struct("<Q")


class OidError(XenpvError):
    """An OID request failed with `status`."""

    def __init__(self, status: NdisStatus, message: str) -> None:
        self.status = status
        super().__init__(f"{status.name}: {message}")


class Oid(enum.IntEnum):
    """The OIDs that are answered; ETHERNET_ is NDIS' OID_802_3_."""

    GEN_HARDWARE_STATUS = 0x10102
    GEN_MEDIA_SUPPORTED = 0x10103
    GEN_MEDIA_IN_USE = 0x10104
    GEN_MAXIMUM_FRAME_SIZE = 0x10106
    GEN_VENDOR_ID = 0x1010C
    GEN_CURRENT_PACKET_FILTER = 0x1010E
    GEN_MAXIMUM_TOTAL_SIZE = 0x10111
    GEN_MEDIA_CONNECT_STATUS = 0x10114
    GEN_XMIT_OK = 0x20101
    GEN_RCV_OK = 0x20102
    GEN_XMIT_ERROR = 0x20103
    GEN_RCV_ERROR = 0x20104
    ETHERNET_PERMANENT_ADDRESS = 0x1010101
    ETHERNET_CURRENT_ADDRESS = 0x1010102
    ETHERNET_MULTICAST_LIST = 0x1010103
    ETHERNET_MAXIMUM_LIST_SIZE = 0x1010104


class PacketFilter(enum.IntFlag):
    """NDIS_PACKET_TYPE_*, those that may be set."""

    DIRECTED = 0x01
    MULTICAST = 0x02
    ALL_MULTICAST = 0x04
    BROADCAST = 0x08
    PROMISCUOUS = 0x20


ALLOWED_FILTER: Final = 0x2F
DEFAULT_FILTER: Final = PacketFilter.DIRECTED | PacketFilter.ALL_MULTICAST | PacketFilter.BROADCAST
VENDOR_ID: Final = 0x5853
MULTICAST_LIST_MAX: Final = 32  # what is answered; longer lists are taken all the same
CONNECTED: Final = 1
DISCONNECTED: Final = 2
HEADER_ALLOWANCE: Final = 18  # of the longest frame: Ethernet and one tag


def mtu(vif: VifInterface) -> int:
    """Longest IP packet, in bytes."""
    return vif.mac_query_maximum_frame_size() - HEADER_ALLOWANCE


def _sum_packets(vif: VifInterface, unicast: Statistic) -> bytes:
    """Unicast, multicast and broadcast packets; their counters lie two apart."""
    return U64.pack(sum(vif.query_statistic(unicast + step) for step in (0, 2, 4)))


def _sum_errors(vif: VifInterface, backend: Statistic) -> bytes:
    """Backend and frontend errors, which stand side by side."""
    return U32.pack(vif.query_statistic(backend) + vif.query_statistic(backend + 1) & 0xFFFFFFFF)


def _packet_filter(vif: VifInterface) -> bytes:
    unicast = vif.mac_query_filter_level(PacketType.UNICAST)
    if unicast is FilterLevel.ALL:
        return U32.pack(PacketFilter.PROMISCUOUS)
    bits = PacketFilter(0)
    if unicast is FilterLevel.MATCHING:
        bits |= PacketFilter.DIRECTED
    multicast = vif.mac_query_filter_level(PacketType.MULTICAST)
    if multicast is not FilterLevel.NONE:
        all_of_them = multicast is FilterLevel.ALL
        bits |= PacketFilter.ALL_MULTICAST if all_of_them else PacketFilter.MULTICAST
    if vif.mac_query_filter_level(PacketType.BROADCAST) is not FilterLevel.NONE:
        bits |= PacketFilter.BROADCAST
    return U32.pack(bits)


def _media_connect_status(vif: VifInterface) -> bytes:
    return U32.pack(CONNECTED if vif.mac_query_state().link_up else DISCONNECTED)


QUERIES: Final[Mapping[int, Callable[[VifInterface], bytes]]] = {
    Oid.GEN_HARDWARE_STATUS: lambda _: U32.pack(0),
    Oid.GEN_MEDIA_SUPPORTED: lambda _: U32.pack(0),
    Oid.GEN_MEDIA_IN_USE: lambda _: U32.pack(0),
    Oid.GEN_MAXIMUM_FRAME_SIZE: lambda vif: U32.pack(mtu(vif)),
    Oid.GEN_MAXIMUM_TOTAL_SIZE: lambda vif: U32.pack(mtu(vif) + 14),
    Oid.GEN_VENDOR_ID: lambda _: U32.pack(VENDOR_ID),
    Oid.GEN_CURRENT_PACKET_FILTER: _packet_filter,
    Oid.GEN_MEDIA_CONNECT_STATUS: _media_connect_status,
    Oid.GEN_XMIT_OK: lambda vif: _sum_packets(vif, Statistic.TRANSMITTER_UNICAST_PACKETS),
    Oid.GEN_RCV_OK: lambda vif: _sum_packets(vif, Statistic.RECEIVER_UNICAST_PACKETS),
    Oid.GEN_XMIT_ERROR: lambda vif: _sum_errors(vif, Statistic.TRANSMITTER_BACKEND_ERRORS),
    Oid.GEN_RCV_ERROR: lambda vif: _sum_errors(vif, Statistic.RECEIVER_BACKEND_ERRORS),
    Oid.ETHERNET_PERMANENT_ADDRESS: VifInterface.mac_query_permanent_address,
    Oid.ETHERNET_CURRENT_ADDRESS: VifInterface.mac_query_current_address,
    Oid.ETHERNET_MULTICAST_LIST: lambda vif: b"".join(vif.mac_query_multicast_addresses()),
    Oid.ETHERNET_MAXIMUM_LIST_SIZE: lambda _: U32.pack(MULTICAST_LIST_MAX),
}


def query(vif: VifInterface, oid: int) -> bytes:
    """The value of an OID; raises OidError(NOT_SUPPORTED)."""
    answer = QUERIES.get(oid)
    if answer is None:
        raise OidError(NdisStatus.NOT_SUPPORTED, f"query of OID {oid:#x}")
    return answer(vif)


def set_packet_filter(vif: VifInterface, value: bytes) -> None:
    """A value of another length than 4 bytes is taken and changes nothing."""
    if len(value) != U32.size:
        return
    (bits,) = U32.unpack(value)
    if bits & ~ALLOWED_FILTER:
        raise OidError(NdisStatus.INVALID_PARAMETER, f"packet filter {bits:#x}")
    none, matching, everything = FilterLevel.NONE, FilterLevel.MATCHING, FilterLevel.ALL
    unicast = matching if bits & PacketFilter.DIRECTED else none
    multicast = matching if bits & PacketFilter.MULTICAST else none
    if bits & PacketFilter.ALL_MULTICAST:
        multicast = everything
    broadcast = everything if bits & PacketFilter.BROADCAST else none
    if bits & PacketFilter.PROMISCUOUS:
        unicast = multicast = broadcast = everything
    vif.mac_set_filter_level(PacketType.UNICAST, unicast)
    vif.mac_set_filter_level(PacketType.MULTICAST, multicast)
    vif.mac_set_filter_level(PacketType.BROADCAST, broadcast)


def set_multicast_list(vif: VifInterface, value: bytes) -> None:
    """Addresses of 6 bytes, one behind the other."""
    if len(value) % 6:
        raise OidError(NdisStatus.INVALID_LENGTH, f"{len(value)} bytes of multicast addresses")
    addresses = [value[at : at + 6] for at in range(0, len(value), 6)]
    try:
        vif.mac_set_multicast_addresses(addresses)
    except NtStatusError as error:
        raise OidError(NdisStatus.INVALID_DATA, str(error)) from error


SETS: Final[Mapping[int, Callable[[VifInterface, bytes], None]]] = {
    Oid.GEN_CURRENT_PACKET_FILTER: set_packet_filter,
    Oid.ETHERNET_MULTICAST_LIST: set_multicast_list,
}


def set_value(vif: VifInterface, oid: int, value: bytes) -> None:
    """Set an OID; raises OidError with the status NDIS would get."""
    change = SETS.get(oid)
    if change is None:
        raise OidError(NdisStatus.NOT_SUPPORTED, f"set of OID {oid:#x}")
    change(vif, value)
