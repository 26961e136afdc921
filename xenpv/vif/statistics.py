"""Counters of one interface: the first eighteen of XENVIF_VIF_STATISTIC's fifty.

The others count what the checksum, tag and segmentation offloads did.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.vif.callbacks import Completion, PacketType, TransmitterStatus, packet_type


class Statistic(enum.IntEnum):
    """Indices of query_statistic; octets are bytes of whole frames."""

    TRANSMITTER_PACKETS_DROPPED = 0
    TRANSMITTER_BACKEND_ERRORS = 1
    TRANSMITTER_FRONTEND_ERRORS = 2
    TRANSMITTER_UNICAST_PACKETS = 3
    TRANSMITTER_UNICAST_OCTETS = 4
    TRANSMITTER_MULTICAST_PACKETS = 5
    TRANSMITTER_MULTICAST_OCTETS = 6
    TRANSMITTER_BROADCAST_PACKETS = 7
    TRANSMITTER_BROADCAST_OCTETS = 8
    RECEIVER_PACKETS_DROPPED = 9
    RECEIVER_BACKEND_ERRORS = 10
    RECEIVER_FRONTEND_ERRORS = 11
    RECEIVER_UNICAST_PACKETS = 12
    RECEIVER_UNICAST_OCTETS = 13
    RECEIVER_MULTICAST_PACKETS = 14
    RECEIVER_MULTICAST_OCTETS = 15
    RECEIVER_BROADCAST_PACKETS = 16
    RECEIVER_BROADCAST_OCTETS = 17


OK = TransmitterStatus.OK
UNICAST = PacketType.UNICAST
_TRANSMITTER = {
    PacketType.UNICAST: Statistic.TRANSMITTER_UNICAST_PACKETS,
    PacketType.MULTICAST: Statistic.TRANSMITTER_MULTICAST_PACKETS,
    PacketType.BROADCAST: Statistic.TRANSMITTER_BROADCAST_PACKETS,
}
_RECEIVER = {
    PacketType.UNICAST: Statistic.RECEIVER_UNICAST_PACKETS,
    PacketType.MULTICAST: Statistic.RECEIVER_MULTICAST_PACKETS,
    PacketType.BROADCAST: Statistic.RECEIVER_BROADCAST_PACKETS,
}


class Statistics:
    """64-bit counters that live as long as the interface, over reconnections too."""

    def __init__(self) -> None:
        self.values = [0] * len(Statistic)

    def query(self, index: int) -> int:
        """NtStatusError INVALID_PARAMETER for an index that is none."""
        if not 0 <= index < len(self.values):
            reason = f"statistic {index} of {len(self.values)}"
            raise NtStatusError(NTSTATUS.INVALID_PARAMETER, reason, operation="VIF QueryStatistic")
        return self.values[index]

    def add(self, index: Statistic, count: int = 1) -> None:
        self.values[index] += count

    def completed(self, completions: Sequence[Completion]) -> None:
        """Packets that went back to the driver above: only those sent count as packets."""
        values = self.values
        octets = sum([one[3] for one in completions])
        others = [one for one in completions if one[1] != OK or one[2] != UNICAST]
        for _, status, kind, size, _, _ in others:
            octets -= size
            if status != OK:
                values[Statistic.TRANSMITTER_PACKETS_DROPPED] += 1
                if status == TransmitterStatus.ERROR:
                    values[Statistic.TRANSMITTER_BACKEND_ERRORS] += 1
            else:
                at = _TRANSMITTER[PacketType(kind)]
                values[at] += 1
                values[at + 1] += size
        values[Statistic.TRANSMITTER_UNICAST_PACKETS] += len(completions) - len(others)
        values[Statistic.TRANSMITTER_UNICAST_OCTETS] += octets

    def received(self, frames: Sequence[bytes]) -> None:
        """Frames that are handed up."""
        values = self.values
        octets = sum(map(len, frames))
        groups = [frame for frame in frames if frame[0] & 1]
        for frame in groups:
            at = _RECEIVER[packet_type(frame)]
            values[at] += 1
            values[at + 1] += len(frame)
            octets -= len(frame)
        values[Statistic.RECEIVER_UNICAST_PACKETS] += len(frames) - len(groups)
        values[Statistic.RECEIVER_UNICAST_OCTETS] += octets
