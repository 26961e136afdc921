"""The VIF interface as drivers of others ask for it: versions 8, 9 and 10, in the header's names.

vif_interface.h. Operations are CamelCase, as there; an answer is what the C function returns or
stores, a failure an NtStatusError. A packet's MDL is its bytes. Our own XenNet uses VifInterface.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

import attrs

from xenpv.bus.interface import Interface
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.vif.callbacks import Completion, TransmitterStatus
from xenpv.vif.interface import VifInterface
from xenpv.vif.packet import (
    NO_HASH,
    HashAlgorithm,
    PacketHash,
    PacketInfo,
    ReceiverPacket,
    TransmitterPacket,
)

OPERATIONS: Final = (
    "Enable", "Disable", "QueryStatistic", "QueryRingCount", "UpdateHashMapping",
    "ReceiverReturnPacket", "ReceiverSetOffloadOptions", "ReceiverSetBackfillSize",
    "ReceiverQueryRingSize", "ReceiverSetHashAlgorithm", "ReceiverQueryHashCapabilities",
    "ReceiverUpdateHashParameters", "TransmitterQueuePacket", "TransmitterQueryOffloadOptions",
    "TransmitterQueryLargePacketSize", "TransmitterQueryRingSize", "MacQueryState",
    "MacQueryMaximumFrameSize", "MacQueryPermanentAddress", "MacQueryCurrentAddress",
    "MacQueryMulticastAddresses", "MacSetMulticastAddresses", "MacSetFilterLevel",
    "MacQueryFilterLevel",
)  # fmt: skip
MORE_MAX: Final = 1024  # packets of one run after which versions 8 and 9 pause by themselves
CONNECTED: Final = 1  # NET_IF_MEDIA_CONNECT_STATE
DISCONNECTED: Final = 2
DUPLEX_UNKNOWN: Final = 0  # NET_IF_MEDIA_DUPLEX_STATE
DUPLEX_FULL: Final = 2


class CallbackType(enum.IntEnum):
    """XENVIF_VIF_CALLBACK_TYPE."""

    TRANSMITTER_RETURN_PACKET = 0
    RECEIVER_QUEUE_PACKET = 1
    MAC_STATE_CHANGE = 2


@attrs.frozen(kw_only=True)
class PacketCompletionInfo:
    """XENVIF_TRANSMITTER_PACKET_COMPLETION_INFO: lengths in bytes; but for the status all 0
    unless that is OK.
    """

    type: int
    status: int
    packet_length: int
    payload_length: int


@attrs.frozen(kw_only=True)
class TransmitterReturnPacket:
    """Parameters of TRANSMITTER_RETURN_PACKET, from version 9 on."""

    cookie: object
    completion: PacketCompletionInfo


@attrs.define(kw_only=True)
class ReceiverQueuePacket:
    """Parameters of RECEIVER_QUEUE_PACKET, from version 9 on.

    `more`: another packet of this run follows. `pause` is the callee's to set, in version 10.
    """

    index: int
    mdl: bytes
    offset: int
    length: int
    flags: int
    maximum_segment_size: int
    tag_control_information: int
    info: PacketInfo | None
    hash: PacketHash
    more: bool
    cookie: int
    pause: bool = False

    @property
    def fields(self) -> tuple[object, ...]:
        """In the order of version 8's arguments."""
        return (
            self.index, self.mdl, self.offset, self.length, self.flags, self.maximum_segment_size,
            self.tag_control_information, self.info, self.hash, self.more, self.cookie,
        )  # fmt: skip


class MulticastOverflowError(NtStatusError):
    """BUFFER_OVERFLOW: there is no room for `count` addresses."""

    def __init__(self, count: int) -> None:
        self.count = count
        reason = f"{count} addresses"
        operation = "VIF MacQueryMulticastAddresses"
        super().__init__(NTSTATUS.BUFFER_OVERFLOW, reason, operation=operation)


class Subscriber:
    """Calls a driver's callback as its version of the interface has it."""

    def __init__(self, version: int, callback: Callable[..., object], argument: object) -> None:
        self._version = version
        self._callback = callback
        self._argument = argument
        self.cookies: dict[int, object] = {}  # of packets below, by the number they went with
        self._number = 0

    def take(self, cookie: object) -> int:
        """The number by which a packet goes down."""
        self._number += 1
        self.cookies[self._number] = cookie
        return self._number

    def transmitter_return_packets(self, completions: Sequence[Completion]) -> None:
        for number, status, kind, length, payload, _traits in completions:
            ok = status == TransmitterStatus.OK
            info = PacketCompletionInfo(
                type=kind if ok else 0,
                status=status,
                packet_length=length if ok else 0,
                payload_length=payload if ok else 0,
            )
            cookie = self.cookies.pop(number)
            kind_of = CallbackType.TRANSMITTER_RETURN_PACKET
            if self._version == 8:
                self._callback(self._argument, kind_of, cookie, info)
            else:
                parameters = TransmitterReturnPacket(cookie=cookie, completion=info)
                self._callback(self._argument, kind_of, parameters)

    def receiver_queue_packets(self, index: int, packets: Sequence[ReceiverPacket]) -> bool:
        """One call for each. Versions 8 and 9 cannot ask for a pause: a long run is one."""
        pause = False
        last = len(packets) - 1
        for at, packet in enumerate(packets):
            full = self._version < 10 and at % MORE_MAX == MORE_MAX - 1
            pause |= self._queue(index, packet, more=at < last and not full) or full
        return pause

    def _queue(self, index: int, packet: ReceiverPacket, *, more: bool) -> bool:
        parameters = ReceiverQueuePacket(
            index=index,
            mdl=packet.data,
            offset=0,
            length=len(packet.data),
            flags=packet.flags,
            maximum_segment_size=packet.mss,
            tag_control_information=packet.tci,
            info=packet.info,
            hash=packet.hash,
            more=more,
            cookie=packet.cookie,
        )
        kind = CallbackType.RECEIVER_QUEUE_PACKET
        if self._version == 8:
            self._callback(self._argument, kind, *parameters.fields)
        else:
            self._callback(self._argument, kind, parameters)
        return self._version >= 10 and parameters.pause

    def mac_state_change(self) -> None:
        kind = CallbackType.MAC_STATE_CHANGE
        arguments = () if self._version == 8 else (None,)
        self._callback(self._argument, kind, *arguments)


def _adapted(version: int, name: str) -> str:
    """The method for an operation: ReceiverQueryRingSize is receiver_query_ring_size."""
    method = "".join(f"_{one.lower()}" if one.isupper() else one for one in name)[1:]
    return f"{method}_v{version}" if name == "Enable" else method


class VifVersions(Interface):
    """VIF v8-10 of one interface. It only counts its references."""

    NAME = "VIF"
    GUID = "76F279CD-CA11-418B-92E8-C57F77DE0E2E"
    OPERATIONS: ClassVar[Mapping[int, Sequence[str]]] = dict.fromkeys((8, 9, 10), OPERATIONS)
    ADAPTED: ClassVar[Mapping[tuple[int, str], str]] = {
        (version, name): _adapted(version, name) for version in (8, 9, 10) for name in OPERATIONS
    }

    def __init__(self, vif: VifInterface) -> None:
        self._vif = vif
        self._subscriber: Subscriber | None = None

    def enable_v8(self, callback: Callable[..., object], argument: object = None) -> None:
        """`callback(argument, type, ...)`, with the packet's fields one by one."""
        self._enable(8, callback, argument)

    def enable_v9(self, callback: Callable[..., object], argument: object = None) -> None:
        """`callback(argument, type, parameters)`; None where there are none."""
        self._enable(9, callback, argument)

    def enable_v10(self, callback: Callable[..., object], argument: object = None) -> None:
        """As version 9; the callee may set `pause` of a packet."""
        self._enable(10, callback, argument)

    def _enable(self, version: int, callback: Callable[..., object], argument: object) -> None:
        if self._subscriber is None:
            self._subscriber = Subscriber(version, callback, argument)
        try:
            self._vif.enable(self._subscriber)
        except NtStatusError:
            self._subscriber = None
            raise

    def disable(self) -> None:
        """Packets that are below still come back, to the callback of Enable."""
        self._vif.disable()
        if self._subscriber is not None and not self._subscriber.cookies:
            self._subscriber = None

    def transmitter_queue_packet(
        self,
        mdl: bytes,
        offset: int,
        length: int,
        offload_options: int = 0,
        maximum_segment_size: int = 0,
        tag_control_information: int = 0,
        packet_hash: PacketHash = NO_HASH,
        more: bool = False,
        cookie: object = None,
    ) -> None:
        """UNSUCCESSFUL while it is disabled, INVALID_PARAMETER for what lies outside the MDL.

        `more` is a hint that another follows: what is queued here is sent in either case.
        """
        del more
        operation = "VIF TransmitterQueuePacket"
        if self._subscriber is None:
            raise NtStatusError(NTSTATUS.UNSUCCESSFUL, "it is disabled", operation=operation)
        if offset < 0 or length <= 0 or offset + length > len(mdl):
            reason = f"{length} bytes at {offset} of {len(mdl)}"
            raise NtStatusError(NTSTATUS.INVALID_PARAMETER, reason, operation=operation)
        packet = TransmitterPacket(
            data=bytes(mdl[offset : offset + length]),
            offload=offload_options,
            mss=maximum_segment_size,
            tci=tag_control_information,
            hash=packet_hash,
        )
        number = self._subscriber.take(cookie)
        try:
            self._vif.transmitter_queue_packet(packet, number)
        except NtStatusError:
            self._subscriber.cookies.pop(number, None)
            raise

    def update_hash_mapping(self, processors: Sequence[int]) -> None:
        """Waits for the backend, as the two below: LocalProtocolError in a handler."""
        self._vif.await_hash(self._vif.update_hash_mapping(processors))

    def receiver_set_hash_algorithm(self, algorithm: int) -> None:
        self._vif.await_hash(self._vif.receiver_set_hash_algorithm(HashAlgorithm(algorithm)))

    def receiver_update_hash_parameters(self, types: int, key: bytes) -> None:
        self._vif.await_hash(self._vif.receiver_update_hash_parameters(types, key))

    def receiver_return_packet(self, cookie: int) -> None:
        self._vif.receiver_return_packets((cookie,))

    def mac_query_state(self) -> tuple[int, int, int]:
        """Connect state, speed in bit/s, duplex state."""
        state = self._vif.mac_query_state()
        connected = CONNECTED if state.link_up else DISCONNECTED
        return connected, state.speed, DUPLEX_FULL if state.full_duplex else DUPLEX_UNKNOWN

    def mac_query_multicast_addresses(self, room: int | None = None) -> list[bytes]:
        """MulticastOverflowError if there are more than `room`; None has room for all."""
        addresses = self._vif.mac_query_multicast_addresses()
        if room is not None and len(addresses) > room:
            raise MulticastOverflowError(len(addresses))
        return addresses

    def __getattr__(self, name: str) -> Any:
        """What is the same in all versions."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._vif, name)
