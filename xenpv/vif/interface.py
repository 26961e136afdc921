"""The VIF interface: all that a driver above XenVif may know of it.

Method names are the interface's own. A status other than success is an NtStatusError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.vif.callbacks import Callbacks, Completion, PacketType, TransmitterStatus
from xenpv.vif.features import LARGE_PACKET_MAX
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
from xenpv.vif.receivehash import HashListener, HashRequest
from xenpv.vif.stack import DeviceStack
from xenpv.vif.statistics import Statistic

RING_SIZE: Final = 256  # slots of a tx or rx ring of one page (io/netif.h)

__all__ = [
    "NO_HASH",
    "NTSTATUS",
    "Callbacks",
    "Checksum",
    "Completion",
    "DeviceStack",
    "FilterLevel",
    "HashAlgorithm",
    "HashListener",
    "HashRequest",
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
    """One interface; `number` is that of its device, `stack` what else is below the driver."""

    def __init__(self, frontend: Frontend, stack: DeviceStack) -> None:
        self._frontend = frontend
        self.stack = stack
        self.references = 0

    @property
    def number(self) -> int:
        return self._frontend.number

    def acquire(self) -> None:
        """One more reference."""
        self.references += 1

    def release(self) -> None:
        """One reference fewer. UNSUCCESSFUL where there is none, which the driver asserts."""
        if not self.references:
            raise NtStatusError(
                NTSTATUS.UNSUCCESSFUL, "it is not acquired", operation="VIF Release"
            )
        self.references -= 1

    def enable(self, callbacks: Callbacks) -> None:
        """Frames may flow. A second call is no error.

        INSUFFICIENT_RESOURCES: the rx ring cannot be filled; UNSUCCESSFUL: it is not connected.
        """
        self._frontend.enable(callbacks)

    def disable(self) -> None:
        """No frame comes up any more; packets on the ring still come back."""
        self._frontend.disable()

    def query_statistic(self, index: int) -> int:
        """INVALID_PARAMETER for an index that is no Statistic's."""
        return self._frontend.statistics.query(index)

    def query_ring_count(self) -> int:
        return len(self._frontend.queues)

    def update_hash_mapping(
        self, processors: Sequence[int], listener: HashListener | None = None
    ) -> HashRequest:
        """The CPU that each entry of the mapping leads to; its length is that of the mapping.

        INVALID_PARAMETER: more CPUs than queues, or more entries than 128.
        """
        return self._frontend.receive_hash.update_mapping(processors, listener)

    def await_hash(self, request: HashRequest) -> None:
        """Run the loop until a change ended, then NtStatusError if it failed.

        LocalProtocolError in a handler, which is told by its listener instead.
        """
        if request.status is NTSTATUS.PENDING:
            self._frontend.bus.domain.loop.run()
        request.check()

    def settle(self) -> None:
        """Run the loop until nothing more happens; nothing is done in a handler."""
        loop = self._frontend.bus.domain.loop
        if not loop.is_running:
            loop.run()

    # receiver

    def receiver_return_packets(self, cookies: Sequence[int]) -> None:
        """ReceiverReturnPacket, for packets that were handed up."""
        self._frontend.receiver_return_packets(cookies)

    def receiver_set_offload_options(self, options: int) -> None:
        """Offload's bits: what is to be done to packets before they are handed up."""
        self._frontend.receiver_set_offload_options(options)

    def receiver_set_backfill_size(self, size: int) -> None:
        """Bytes that the driver above wants in front of a packet."""
        self._frontend.receiver_options.backfill = size

    def receiver_query_ring_size(self) -> int:
        """Slots of one rx ring."""
        return RING_SIZE

    def receiver_set_hash_algorithm(
        self, algorithm: HashAlgorithm, listener: HashListener | None = None
    ) -> HashRequest:
        """NOT_SUPPORTED: TOEPLITZ without a control ring, with one queue, or disabled.

        This and the two other calls that change the hash answer while the backend is asked:
        `await_hash` waits outside the loop, `listener` is told inside. What fails at once raises.
        """
        return self._frontend.receive_hash.set_algorithm(algorithm, listener)

    def receiver_query_hash_capabilities(self) -> int:
        """A mask of 1 << HashType; NOT_SUPPORTED unless the algorithm is TOEPLITZ."""
        return self._frontend.receive_hash.query_capabilities()

    def receiver_update_hash_parameters(
        self, types: int, key: bytes, listener: HashListener | None = None
    ) -> HashRequest:
        """`types` is a mask of 1 << HashType, `key` has 40 bytes, else INVALID_PARAMETER."""
        return self._frontend.receive_hash.update_parameters(types, key, listener)

    # transmitter

    def transmitter_queue_packet(self, packet: bytes | TransmitterPacket, cookie: int) -> None:
        """Send one packet; `cookie` comes back in its completion."""
        self._frontend.send((packet,), (cookie,))

    def transmitter_queue_packets(
        self, packets: Sequence[bytes | TransmitterPacket], cookies: Sequence[int]
    ) -> None:
        """Send packets in order, each with its cookie. UNSUCCESSFUL: it is not enabled."""
        self._frontend.send(packets, cookies)

    def transmitter_query_offload_options(self) -> Offload:
        """What may be left to be done below."""
        return self._frontend.transmit_offload

    def transmitter_query_large_packet_size(self, version: int) -> int:
        """Bytes of the longest large packet over IP 4 or 6; 0 where none may be sent."""
        bits = {4: Offload.IPV4_LARGE_PACKET, 6: Offload.IPV6_LARGE_PACKET}
        offered = self._frontend.transmit_offload & bits.get(version, 0)
        return LARGE_PACKET_MAX if offered else 0

    def transmitter_query_ring_size(self) -> int:
        """Slots of one tx ring."""
        return RING_SIZE

    # MAC

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
        """INVALID_PARAMETER, and the list stays, for an address that is no group's."""
        self._frontend.set_multicast(addresses)

    def mac_set_filter_level(self, kind: PacketType, level: FilterLevel) -> None:
        """INVALID_PARAMETER for a type or a level that is none."""
        self._frontend.set_filter_level(kind, level)

    def mac_query_filter_level(self, kind: PacketType) -> FilterLevel:
        """INVALID_PARAMETER for a type that is none."""
        return self._frontend.mac.filter_level(kind)
