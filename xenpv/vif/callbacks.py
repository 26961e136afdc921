"""What XenVif says to the driver above it: the callbacks of the VIF interface, version 10.

Packets come in batches here, one call for what the driver's DPC found at once.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final, Protocol

from xenpv.vif.packet import ReceiverPacket


class TransmitterStatus(enum.IntEnum):
    """XENVIF_TRANSMITTER_PACKET_STATUS: what became of a packet."""

    OK = 2
    DROPPED = 3
    ERROR = 4


class PacketType(enum.IntEnum):
    """ETHERNET_ADDRESS_TYPE of a packet's destination."""

    UNICAST = 1
    MULTICAST = 2
    BROADCAST = 3


# (cookie of the packet, TransmitterStatus, PacketType, length in bytes, of those the payload,
# Traits); all but the status count only where that is OK.
Completion = tuple[int, int, int, int, int, int]


class Traits(enum.IntFlag):
    """What statistics count of a packet; the bits of Checksum stand above, from CHECKSUM_SHIFT."""

    TAGGED = 1 << 0
    LLC_SNAP = 1 << 1
    IPV4 = 1 << 2
    IPV6 = 1 << 3
    TCP = 1 << 4
    UDP = 1 << 5
    GSO = 1 << 6


CHECKSUM_SHIFT: Final = 8


class Callbacks(Protocol):
    """The subscriber of one interface. Nothing here may raise."""

    def transmitter_return_packets(self, completions: Sequence[Completion]) -> None:
        """TRANSMITTER_RETURN_PACKET: each queued packet comes back exactly once."""

    def receiver_queue_packets(self, index: int, packets: Sequence[ReceiverPacket]) -> bool:
        """RECEIVER_QUEUE_PACKET: packets that arrived on queue `index`; they are lent.

        Each comes back by receiver_return_packets. True: pause, no more from this queue until
        some came back.
        """

    def mac_state_change(self) -> None:
        """MAC_STATE_CHANGE: ask mac_query_state for the new state."""


BROADCAST = b"\xff" * 6


def packet_type(frame: bytes) -> PacketType:
    """By the destination address; the group bit is the lowest of the first byte."""
    if not frame[0] & 1:
        return PacketType.UNICAST
    return PacketType.BROADCAST if frame[:6] == BROADCAST else PacketType.MULTICAST
