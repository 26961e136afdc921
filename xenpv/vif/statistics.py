"""Counters of one interface: XENVIF_VIF_STATISTIC's fifty.

A packet that was sent or handed up counts by its destination, by its headers and by what was
found out of its checksums; one that was not counts as dropped, and as an error of one end.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Final

from xenpv.abi._kernel import lib
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.vif.callbacks import CHECKSUM_SHIFT, Completion, PacketType, TransmitterStatus
from xenpv.vif.packet import ReceiverPacket


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
    TRANSMITTER_TAGGED_PACKETS = 18
    TRANSMITTER_LLC_SNAP_PACKETS = 19
    TRANSMITTER_IPV4_PACKETS = 20
    TRANSMITTER_IPV6_PACKETS = 21
    TRANSMITTER_TCP_PACKETS = 22
    TRANSMITTER_UDP_PACKETS = 23
    TRANSMITTER_GSO_PACKETS = 24
    TRANSMITTER_IPV4_CHECKSUM_SUCCEEDED = 25
    TRANSMITTER_IPV4_CHECKSUM_FAILED = 26
    TRANSMITTER_IPV4_CHECKSUM_NOT_VALIDATED = 27
    TRANSMITTER_TCP_CHECKSUM_SUCCEEDED = 28
    TRANSMITTER_TCP_CHECKSUM_FAILED = 29
    TRANSMITTER_TCP_CHECKSUM_NOT_VALIDATED = 30
    TRANSMITTER_UDP_CHECKSUM_SUCCEEDED = 31
    TRANSMITTER_UDP_CHECKSUM_FAILED = 32
    TRANSMITTER_UDP_CHECKSUM_NOT_VALIDATED = 33
    RECEIVER_TAGGED_PACKETS = 34
    RECEIVER_LLC_SNAP_PACKETS = 35
    RECEIVER_IPV4_PACKETS = 36
    RECEIVER_IPV6_PACKETS = 37
    RECEIVER_TCP_PACKETS = 38
    RECEIVER_UDP_PACKETS = 39
    RECEIVER_GSO_PACKETS = 40
    RECEIVER_IPV4_CHECKSUM_SUCCEEDED = 41
    RECEIVER_IPV4_CHECKSUM_FAILED = 42
    RECEIVER_IPV4_CHECKSUM_NOT_VALIDATED = 43
    RECEIVER_TCP_CHECKSUM_SUCCEEDED = 44
    RECEIVER_TCP_CHECKSUM_FAILED = 45
    RECEIVER_TCP_CHECKSUM_NOT_VALIDATED = 46
    RECEIVER_UDP_CHECKSUM_SUCCEEDED = 47
    RECEIVER_UDP_CHECKSUM_FAILED = 48
    RECEIVER_UDP_CHECKSUM_NOT_VALIDATED = 49


OK: Final = TransmitterStatus.OK
UNICAST: Final = PacketType.UNICAST
MULTICAST: Final[int] = lib.NET_MULTICAST
BROADCAST: Final[int] = lib.NET_BROADCAST
GROUP: Final = MULTICAST | BROADCAST
UNICAST_PACKETS: Final = int(Statistic.RECEIVER_UNICAST_PACKETS)
MULTICAST_PACKETS: Final = int(Statistic.RECEIVER_MULTICAST_PACKETS)
BROADCAST_PACKETS: Final = int(Statistic.RECEIVER_BROADCAST_PACKETS)
_TRANSMITTER: Final = {
    PacketType.UNICAST: Statistic.TRANSMITTER_UNICAST_PACKETS,
    PacketType.MULTICAST: Statistic.TRANSMITTER_MULTICAST_PACKETS,
    PacketType.BROADCAST: Statistic.TRANSMITTER_BROADCAST_PACKETS,
}
# Bits of Traits, and above them those of Checksum, in the order of the counters.
_TRAIT_BITS: Final = (*range(7), *range(CHECKSUM_SHIFT, CHECKSUM_SHIFT + 9))
TRAITS: Final = sum(1 << bit for bit in _TRAIT_BITS)


@cache
def _counters(first: Statistic, traits: int) -> tuple[int, ...]:
    """Counters of a packet with these traits; they stand from `first` on."""
    return tuple(first + step for step, bit in enumerate(_TRAIT_BITS) if traits >> bit & 1)


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

    def _add_traits(self, first: Statistic, kinds: Counter[int]) -> None:
        """Count what packets carry: `kinds` has how many there are with the same traits."""
        values = self.values
        for one, count in kinds.items():
            for index in _counters(first, one & TRAITS):
                values[index] += count

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
        kinds = Counter([one[5] for one in completions if one[1] == OK])
        self._add_traits(Statistic.TRANSMITTER_TAGGED_PACKETS, kinds)

    def received(self, facts: Sequence[int], packets: Sequence[ReceiverPacket]) -> None:
        """Packets that are handed up, with the bits of NET_* of each."""
        values = self.values
        kinds = Counter(facts)
        octets = sum([len(packet.data) for packet in packets])
        unicast = len(packets)
        if any(one & GROUP for one in kinds):
            for one, packet in zip(facts, packets, strict=True):
                if one & GROUP:
                    at = BROADCAST_PACKETS if one & BROADCAST else MULTICAST_PACKETS
                    values[at] += 1
                    values[at + 1] += len(packet.data)
                    unicast -= 1
                    octets -= len(packet.data)
        values[UNICAST_PACKETS] += unicast
        values[UNICAST_PACKETS + 1] += octets
        self._add_traits(Statistic.RECEIVER_TAGGED_PACKETS, kinds)
