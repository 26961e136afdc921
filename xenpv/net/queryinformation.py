"""AdapterQueryInformation: one row for each OID that is answered, and what a buffer gets.

Requests for statistics come the same way. Values are little-endian, in NDIS' own layouts.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from struct import Struct
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.net import packetfilter, statistics
from xenpv.net.attributes import MAC_OPTIONS, MULTICAST_LIST_MAX
from xenpv.net.link import CONNECTED, DISCONNECTED
from xenpv.net.ndis import HEADER, OBJECT_TYPE_DEFAULT, U32, U32_MAX, U64, NdisStatus
from xenpv.net.oid import SUPPORTED_LIST, Oid, OidAnswer
from xenpv.net.rss import KEY_MAX, RECEIVE_HASH
from xenpv.vif.interface import Statistic

if TYPE_CHECKING:
    from xenpv.net.context import AdapterContext

VENDOR_ID: Final = 0x5853
MAXIMUM_SEND_PACKETS: Final = 16

# NDIS_INTERRUPT_MODERATION_PARAMETERS: header, flags, and 1 for NotSupported.
INTERRUPT_MODERATION: Final = Struct("<BBHII").pack(OBJECT_TYPE_DEFAULT, 1, 12, 0, 1)
PM_CAPABILITIES_SIZE: Final = 60
PM_CAPABILITIES: Final = HEADER.pack(OBJECT_TYPE_DEFAULT, 2, PM_CAPABILITIES_SIZE).ljust(
    PM_CAPABILITIES_SIZE, b"\0"
)

OK: Final = NdisStatus.SUCCESS
TOO_SHORT: Final = NdisStatus.BUFFER_TOO_SHORT


class Fit(enum.Enum):
    """What becomes of a value that is longer than the buffer."""

    WORDS = "whole words of 4 bytes are copied"
    U64 = "4 to 7 bytes get the low word, and that is no failure"
    BYTES = "what fits is copied"
    WHOLE = "nothing is copied"
    LIST = "nothing is copied, and the length is invalid"


def fitted(fit: Fit, value: bytes, length: int) -> OidAnswer:
    """The answer of a query whose buffer has `length` bytes."""
    needed = len(value)
    if length >= needed:
        return OidAnswer(status=OK, data=value, bytes_needed=needed)
    status, part = TOO_SHORT, b""
    if fit is Fit.BYTES:
        part = value[:length]
    elif fit in (Fit.WORDS, Fit.U64):
        part = value[: length & ~3]
        status = OK if fit is Fit.U64 and length >= U32.size else TOO_SHORT
    elif fit is Fit.LIST:
        status = NdisStatus.INVALID_LENGTH
    return OidAnswer(status=status, data=part, bytes_needed=needed)


@attrs.frozen
class Query:
    """One row: how a value is fitted, and the value as bytes."""

    fit: Fit
    value: Callable[[AdapterContext], bytes]


def _u32(value: Callable[[AdapterContext], int]) -> Query:
    return Query(Fit.WORDS, lambda context: U32.pack(value(context) & U32_MAX))


def _constant(value: int) -> Query:
    data = U32.pack(value)
    return Query(Fit.WORDS, lambda _: data)


def _counter(index: Statistic) -> Query:
    return _u32(lambda context: context.vif.query_statistic(index))


def _packets(unicast: Statistic) -> Query:
    """Frames of all three kinds, in 64 bits; XenNet cuts each of the three to 32."""
    return Query(Fit.U64, lambda context: U64.pack(sum(statistics.by_kind(context.vif, unicast))))


def _errors(backend: Statistic) -> Query:
    return _u32(lambda context: statistics.errors(context.vif, backend))


def _buffer_space(context: AdapterContext) -> int:
    return context.vif.transmitter_query_ring_size() * context.maximum_frame_size


def _driver_version(context: AdapterContext) -> int:
    major, minor, *_ = context.vif.stack.version
    return major << 16 | minor


def _vendor_description(context: AdapterContext) -> bytes:
    return context.vif.stack.vendor.encode() + b"\0"


def _media_connect_status(context: AdapterContext) -> int:
    return CONNECTED if context.vif.mac_query_state().link_up else DISCONNECTED


_FRAME_SIZE: Final = _u32(lambda context: context.maximum_frame_size)
_BUFFER_SPACE: Final = _u32(_buffer_space)
_ZERO: Final = _constant(0)

QUERIES: Final[Mapping[int, Query]] = {
    Oid.GEN_SUPPORTED_LIST: Query(Fit.BYTES, lambda _: SUPPORTED_LIST),
    Oid.GEN_HARDWARE_STATUS: _ZERO,  # ready
    Oid.GEN_MEDIA_SUPPORTED: _ZERO,  # NdisMedium802_3
    Oid.GEN_MEDIA_IN_USE: _ZERO,
    Oid.GEN_MAXIMUM_LOOKAHEAD: _FRAME_SIZE,
    Oid.GEN_TRANSMIT_BLOCK_SIZE: _FRAME_SIZE,
    Oid.GEN_RECEIVE_BLOCK_SIZE: _FRAME_SIZE,
    Oid.GEN_MAXIMUM_FRAME_SIZE: _u32(lambda context: context.mtu),
    Oid.GEN_MAXIMUM_TOTAL_SIZE: _u32(lambda context: context.mtu + 14),
    Oid.GEN_TRANSMIT_BUFFER_SPACE: _BUFFER_SPACE,
    Oid.GEN_RECEIVE_BUFFER_SPACE: _BUFFER_SPACE,
    Oid.GEN_VENDOR_ID: _constant(VENDOR_ID),
    Oid.GEN_VENDOR_DESCRIPTION: Query(Fit.BYTES, _vendor_description),
    Oid.GEN_CURRENT_PACKET_FILTER: _u32(lambda context: packetfilter.read(context.vif)),
    Oid.GEN_CURRENT_LOOKAHEAD: _u32(lambda context: context.lookahead),
    Oid.GEN_DRIVER_VERSION: _u32(lambda context: context.version),
    Oid.GEN_VENDOR_DRIVER_VERSION: _u32(_driver_version),
    Oid.GEN_MAC_OPTIONS: _constant(MAC_OPTIONS),
    Oid.GEN_MEDIA_CONNECT_STATUS: _u32(_media_connect_status),
    Oid.GEN_MAXIMUM_SEND_PACKETS: _constant(MAXIMUM_SEND_PACKETS),
    Oid.GEN_XMIT_OK: _packets(Statistic.TRANSMITTER_UNICAST_PACKETS),
    Oid.GEN_RCV_OK: _packets(Statistic.RECEIVER_UNICAST_PACKETS),
    Oid.GEN_XMIT_ERROR: _errors(Statistic.TRANSMITTER_BACKEND_ERRORS),
    Oid.GEN_RCV_ERROR: _errors(Statistic.RECEIVER_BACKEND_ERRORS),
    Oid.GEN_DIRECTED_BYTES_XMIT: _counter(Statistic.TRANSMITTER_UNICAST_OCTETS),
    Oid.GEN_DIRECTED_FRAMES_XMIT: _counter(Statistic.TRANSMITTER_UNICAST_PACKETS),
    Oid.GEN_MULTICAST_BYTES_XMIT: _counter(Statistic.TRANSMITTER_MULTICAST_OCTETS),
    Oid.GEN_MULTICAST_FRAMES_XMIT: _counter(Statistic.TRANSMITTER_MULTICAST_PACKETS),
    Oid.GEN_BROADCAST_BYTES_XMIT: _counter(Statistic.TRANSMITTER_BROADCAST_OCTETS),
    Oid.GEN_BROADCAST_FRAMES_XMIT: _counter(Statistic.TRANSMITTER_BROADCAST_PACKETS),
    Oid.GEN_DIRECTED_BYTES_RCV: _counter(Statistic.RECEIVER_UNICAST_OCTETS),
    Oid.GEN_DIRECTED_FRAMES_RCV: _counter(Statistic.RECEIVER_UNICAST_PACKETS),
    Oid.GEN_MULTICAST_BYTES_RCV: _counter(Statistic.RECEIVER_MULTICAST_OCTETS),
    Oid.GEN_MULTICAST_FRAMES_RCV: _counter(Statistic.RECEIVER_MULTICAST_PACKETS),
    Oid.GEN_BROADCAST_BYTES_RCV: _counter(Statistic.RECEIVER_BROADCAST_OCTETS),
    Oid.GEN_BROADCAST_FRAMES_RCV: _counter(Statistic.RECEIVER_BROADCAST_PACKETS),
    Oid.GEN_RCV_NO_BUFFER: _ZERO,
    Oid.GEN_RCV_CRC_ERROR: _ZERO,
    Oid.GEN_TRANSMIT_QUEUE_LENGTH: _ZERO,
    Oid.ETHERNET_RCV_ERROR_ALIGNMENT: _ZERO,
    Oid.ETHERNET_XMIT_ONE_COLLISION: _ZERO,
    Oid.ETHERNET_XMIT_MORE_COLLISIONS: _ZERO,
    Oid.GEN_STATISTICS: Query(Fit.WHOLE, lambda context: statistics.emit(context.vif)),
    Oid.GEN_INTERRUPT_MODERATION: Query(Fit.WHOLE, lambda _: INTERRUPT_MODERATION),
    Oid.ETHERNET_PERMANENT_ADDRESS: Query(
        Fit.BYTES, lambda context: context.vif.mac_query_permanent_address()
    ),
    Oid.ETHERNET_CURRENT_ADDRESS: Query(
        Fit.BYTES, lambda context: context.vif.mac_query_current_address()
    ),
    Oid.ETHERNET_MULTICAST_LIST: Query(
        Fit.LIST, lambda context: b"".join(context.vif.mac_query_multicast_addresses())
    ),
    Oid.ETHERNET_MAXIMUM_LIST_SIZE: _constant(MULTICAST_LIST_MAX),
    Oid.PM_CURRENT_CAPABILITIES: Query(Fit.BYTES, lambda _: PM_CAPABILITIES),
}

# Refused without a warning in the driver's log: what NDIS answers itself, or asks of everybody.
SILENT: Final = (
    Oid.IP4_OFFLOAD_STATS,
    Oid.IP6_OFFLOAD_STATS,
    Oid.GEN_SUPPORTED_GUIDS,
    Oid.GEN_MAC_ADDRESS,
    Oid.GEN_MAX_LINK_SPEED,
    Oid.GEN_INIT_TIME_MS,
    Oid.GEN_RESET_COUNTS,
    Oid.GEN_MEDIA_SENSE_COUNTS,
)


def query_information(context: AdapterContext, number: int, length: int) -> OidAnswer:
    """Answer a query whose buffer has `length` bytes."""
    if number == Oid.PNP_QUERY_POWER:
        return OidAnswer(status=OK, bytes_needed=U32.size)
    if number == Oid.GEN_RECEIVE_HASH:
        return _receive_hash(context, length)
    query = QUERIES.get(number)
    if query is not None:
        return fitted(query.fit, query.value(context), length)
    if number not in SILENT:
        context.vif.stack.warn(f"UNSUPPORTED OID {number:08x}")
    return OidAnswer(status=NdisStatus.NOT_SUPPORTED)


def _receive_hash(context: AdapterContext, length: int) -> OidAnswer:
    """The buffer must have room for the longest key, whatever is written."""
    value = context.rss.query_receive_hash()
    if length < RECEIVE_HASH.size + KEY_MAX:
        return OidAnswer(status=TOO_SHORT, bytes_needed=len(value))
    return OidAnswer(status=OK, data=value, bytes_needed=len(value))
