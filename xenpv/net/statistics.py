"""Counters as an adapter tells them: sums of the interface's, and NDIS_STATISTICS_INFO."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.net.ndis import OBJECT_TYPE_DEFAULT
from xenpv.vif.interface import Statistic

if TYPE_CHECKING:
    from xenpv.vif.interface import VifInterface

# NDIS_STATISTICS_INFO: header, flags, then in 64 bits ifInDiscards, ifInErrors, ifHCIn
# {Octets, UcastPkts, MulticastPkts, BroadcastPkts}, ifHCOut the same, ifOutErrors,
# ifOutDiscards, ifHCIn{Ucast, Multicast, Broadcast}Octets, ifHCOut the same.
STATISTICS: Final = Struct("<BBHI18Q")
VALID: Final = 0x3F87FF  # NDIS_STATISTICS_FLAGS_VALID_* of what is there

KINDS: Final = (0, 2, 4)  # unicast, multicast, broadcast: their counters lie two apart


@attrs.frozen(kw_only=True)
class AdapterStatistics:
    """Frames and their bytes since the interface was made; `sent` are those answered well."""

    sent_frames: int
    sent_bytes: int
    sent_dropped: int
    sent_errors: int
    received_frames: int
    received_bytes: int
    received_dropped: int
    received_errors: int


def by_kind(vif: VifInterface, unicast: Statistic) -> list[int]:
    """A counter for unicast, multicast and broadcast."""
    return [vif.query_statistic(unicast + step) for step in KINDS]


def errors(vif: VifInterface, backend: Statistic) -> int:
    """Backend and frontend errors, which stand side by side."""
    return vif.query_statistic(backend) + vif.query_statistic(backend + 1)


def read(vif: VifInterface) -> AdapterStatistics:
    """All of an interface's."""
    return AdapterStatistics(
        sent_frames=sum(by_kind(vif, Statistic.TRANSMITTER_UNICAST_PACKETS)),
        sent_bytes=sum(by_kind(vif, Statistic.TRANSMITTER_UNICAST_OCTETS)),
        sent_dropped=vif.query_statistic(Statistic.TRANSMITTER_PACKETS_DROPPED),
        sent_errors=errors(vif, Statistic.TRANSMITTER_BACKEND_ERRORS),
        received_frames=sum(by_kind(vif, Statistic.RECEIVER_UNICAST_PACKETS)),
        received_bytes=sum(by_kind(vif, Statistic.RECEIVER_UNICAST_OCTETS)),
        received_dropped=vif.query_statistic(Statistic.RECEIVER_PACKETS_DROPPED),
        received_errors=errors(vif, Statistic.RECEIVER_BACKEND_ERRORS),
    )


def emit(vif: VifInterface) -> bytes:
    """NDIS_STATISTICS_INFO, 152 bytes."""
    in_packets = by_kind(vif, Statistic.RECEIVER_UNICAST_PACKETS)
    in_octets = by_kind(vif, Statistic.RECEIVER_UNICAST_OCTETS)
    out_packets = by_kind(vif, Statistic.TRANSMITTER_UNICAST_PACKETS)
    out_octets = by_kind(vif, Statistic.TRANSMITTER_UNICAST_OCTETS)
    return STATISTICS.pack(
        OBJECT_TYPE_DEFAULT,
        1,
        STATISTICS.size,
        VALID,
        vif.query_statistic(Statistic.RECEIVER_PACKETS_DROPPED),
        errors(vif, Statistic.RECEIVER_BACKEND_ERRORS),
        sum(in_octets),
        *in_packets,
        sum(out_octets),
        *out_packets,
        errors(vif, Statistic.TRANSMITTER_BACKEND_ERRORS),
        0,
        *in_octets,
        *out_octets,
    )
