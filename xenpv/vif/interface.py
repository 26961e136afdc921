"""The VIF interface, version 10: all that a driver above XenVif may know of it.

Method names are the interface's own. Statuses other than success are exceptions here:
LocalProtocolError where the driver answers STATUS_UNSUCCESSFUL or INVALID_PARAMETER.
"""

from __future__ import annotations

from collections.abc import Sequence

from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.errors import LocalProtocolError
from xenpv.vif.callbacks import Callbacks, Completion, PacketType, TransmitterStatus
from xenpv.vif.frontend import Frontend
from xenpv.vif.mac import FilterLevel, MacState
from xenpv.vif.packet import (
    NO_HASH,
    Checksum,
    HashAlgorithm,
    HashType,
    Offload,
    PacketHash,
    PacketInfo,
    ReceiverPacket,
    TransmitterPacket,
)
from xenpv.vif.statistics import Statistic

__all__ = [
    "NO_HASH",
    "NTSTATUS",
    "Callbacks",
    "Checksum",
    "Completion",
    "FilterLevel",
    "HashAlgorithm",
    "HashType",
    "MacState",
    "NtStatusError",
    "Offload",
    "PacketHash",
    "PacketInfo",
    "PacketType",
    "ReceiverPacket",
    "Statistic",
    "TransmitterPacket",
    "TransmitterStatus",
    "VifInterface",
]


class VifInterface:
    """One interface; `number` is that of its device."""

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend

    @property
    def number(self) -> int:
        return self._frontend.number

    def enable(self, callbacks: Callbacks) -> None:
        """Frames may flow. A second call is no error.

        HypercallError: the rx ring cannot be filled (STATUS_INSUFFICIENT_RESOURCES).
        """
        self._frontend.enable(callbacks)

    def disable(self) -> None:
        """No frame comes up any more; packets on the ring still come back."""
        self._frontend.disable()

    def query_statistic(self, index: int) -> int:
        return self._frontend.statistics.query(index)

    def query_ring_count(self) -> int:
        return len(self._frontend.queues)

    def receiver_query_ring_size(self) -> int:
        """Slots of one rx ring."""
        return self._ring_size()

    def transmitter_query_ring_size(self) -> int:
        """Slots of one tx ring."""
        return self._ring_size()

    def _ring_size(self) -> int:
        queues = self._frontend.queues
        if not queues or queues[0].transmitter is None:
            raise LocalProtocolError(f"{self._frontend.path} is not connected")
        return queues[0].transmitter.ring.size

    def transmitter_queue_packet(self, frame: bytes, cookie: int) -> None:
        """Send one frame; `cookie` comes back in its completion."""
        self._frontend.send((frame,), (cookie,))

    def transmitter_queue_packets(self, frames: Sequence[bytes], cookies: Sequence[int]) -> None:
        """Send frames in order, each with its cookie."""
        self._frontend.send(frames, cookies)

    def mac_query_state(self) -> MacState:
        return self._frontend.mac_state()

    def mac_query_maximum_frame_size(self) -> int:
        """Bytes of the longest frame, its header and a tag included."""
        return self._frontend.mac.maximum_frame_size

    def mac_query_permanent_address(self) -> bytes:
        return self._frontend.mac.permanent

    def mac_query_current_address(self) -> bytes:
        return self._frontend.mac.current

    def mac_query_multicast_addresses(self) -> list[bytes]:
        return list(self._frontend.mac.multicast)

    def mac_set_multicast_addresses(self, addresses: Sequence[bytes]) -> None:
        self._frontend.set_multicast(addresses)

    def mac_set_filter_level(self, kind: PacketType, level: FilterLevel) -> None:
        self._frontend.mac.levels[kind] = level

    def mac_query_filter_level(self, kind: PacketType) -> FilterLevel:
        return self._frontend.mac.levels[kind]
