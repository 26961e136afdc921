"""AdapterSetInformation: one row for each OID that may be set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.net import packetfilter
from xenpv.net.ndis import U32, NdisStatus, NdisVersion
from xenpv.net.offload import ENCAPSULATION, PARAMETERS
from xenpv.net.oid import Oid, OidAnswer, OidError
from xenpv.net.rss import RECEIVE_HASH
from xenpv.vif.interface import NtStatusError

if TYPE_CHECKING:
    from xenpv.net.context import AdapterContext

ADDRESS: Final = 6  # bytes of an Ethernet address
RECEIVE_SCALE_SIZE: Final = 44  # NDIS_RECEIVE_SCALE_PARAMETERS, revision 3
RECEIVE_SCALE_SIZE_6_30: Final = 40  # revision 2


def _constant(size: int) -> Callable[[AdapterContext], int]:
    return lambda _: size


def _scale_size(context: AdapterContext) -> int:
    is_old = context.version is NdisVersion.V6_30
    return RECEIVE_SCALE_SIZE_6_30 if is_old else RECEIVE_SCALE_SIZE


@attrs.frozen
class Change:
    """One row. `needed` is BytesNeeded; a shorter value is an INVALID_LENGTH if `is_least`.

    `apply` returns BytesRead; it may raise OidError.
    """

    needed: Callable[[AdapterContext], int]
    apply: Callable[[AdapterContext, bytes], int]
    is_least: bool = False


def _packet_filter(context: AdapterContext, value: bytes) -> int:
    """A value of another length than 4 bytes is taken and changes nothing."""
    if len(value) != U32.size:
        return 0
    packetfilter.write(context.vif, value)
    return U32.size


def _lookahead(context: AdapterContext, value: bytes) -> int:
    """A value of another length than 4 bytes stands for the longest frame."""
    if len(value) != U32.size:
        context.lookahead = context.maximum_frame_size
        return 0
    (context.lookahead,) = U32.unpack(value)
    return U32.size


def _multicast_list(context: AdapterContext, value: bytes) -> int:
    """Addresses of 6 bytes, one behind the other."""
    if len(value) % ADDRESS:
        message = f"{len(value)} bytes of multicast addresses"
        raise OidError(NdisStatus.INVALID_LENGTH, message)
    addresses = [value[at : at + ADDRESS] for at in range(0, len(value), ADDRESS)]
    try:
        context.vif.mac_set_multicast_addresses(addresses)
    except NtStatusError as error:
        raise OidError(NdisStatus.INVALID_DATA, str(error)) from error
    return len(value)


def _encapsulation(context: AdapterContext, value: bytes) -> int:
    context.offload.set_encapsulation(context.vif, context.properties, value)
    context.offload_changed()
    return ENCAPSULATION.size


def _parameters(context: AdapterContext, value: bytes) -> int:
    context.offload.set_parameters(context.vif, value)
    context.offload_changed()
    return PARAMETERS.size


def _receive_scale(context: AdapterContext, value: bytes) -> int:
    context.rss.set_receive_scale_parameters(context.vif, context.properties, value)
    return _scale_size(context)


def _receive_hash(context: AdapterContext, value: bytes) -> int:
    context.rss.set_receive_hash(context.vif, value)
    return RECEIVE_HASH.size


def _power(_context: AdapterContext, _value: bytes) -> int:
    return 0


CHANGES: Final[Mapping[int, Change]] = {
    Oid.GEN_CURRENT_PACKET_FILTER: Change(_constant(U32.size), _packet_filter),
    Oid.GEN_CURRENT_LOOKAHEAD: Change(_constant(U32.size), _lookahead),
    Oid.ETHERNET_MULTICAST_LIST: Change(_constant(ADDRESS), _multicast_list),
    Oid.OFFLOAD_ENCAPSULATION: Change(_constant(ENCAPSULATION.size), _encapsulation, True),
    Oid.TCP_OFFLOAD_PARAMETERS: Change(_constant(PARAMETERS.size), _parameters, True),
    Oid.GEN_RECEIVE_SCALE_PARAMETERS: Change(_scale_size, _receive_scale, True),
    Oid.GEN_RECEIVE_HASH: Change(_constant(RECEIVE_HASH.size), _receive_hash, True),
    Oid.PNP_SET_POWER: Change(_constant(U32.size), _power),
}

# What may wait for the backend where the loop runs; `rss.status` says how it ended.
PENDED: Final = (Oid.GEN_RECEIVE_SCALE_PARAMETERS, Oid.GEN_RECEIVE_HASH)

# Refused without a warning in the driver's log.
SILENT: Final = (
    Oid.GEN_INTERRUPT_MODERATION,
    Oid.GEN_MACHINE_NAME,
    Oid.GEN_NETWORK_LAYER_ADDRESSES,
)


def set_information(context: AdapterContext, number: int, value: bytes) -> OidAnswer:
    """Carry out a set. BytesRead is told where it succeeds."""
    try:
        return apply(context, number, value)
    except OidError as error:
        change = CHANGES.get(number)
        needed = 0 if change is None else change.needed(context)
        return OidAnswer(status=error.status, bytes_needed=needed)


def apply(context: AdapterContext, number: int, value: bytes) -> OidAnswer:
    """Carry out a set; raises OidError with the status NDIS would get."""
    change = CHANGES.get(number)
    if change is None:
        if number not in SILENT:
            context.vif.stack.warn(f"UNSUPPORTED OID {number:08x}")
        raise OidError(NdisStatus.NOT_SUPPORTED, f"set of OID {number:#x}")
    needed = change.needed(context)
    if change.is_least and len(value) < needed:
        raise OidError(NdisStatus.INVALID_LENGTH, f"{len(value)} bytes of {needed}")
    read = change.apply(context, value)
    if number in PENDED and context.rss.status is NdisStatus.PENDING:
        return OidAnswer(status=NdisStatus.PENDING, bytes_needed=needed)
    return OidAnswer(status=NdisStatus.SUCCESS, bytes_needed=needed, bytes_read=read)
