"""XenNet: the network adapter that a guest's programs see (win-xennet, an NDIS miniport).

It knows XenVif by its interface alone. What is queued here comes back through the completion
of its packet. Frames that arrive go to `list_receiver` with what was found out about them; where
there is none, their bytes are kept in `received` and given to `receiver`.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

from xenpv.errors import LocalProtocolError
from xenpv.net import packetfilter, setinformation, statistics
from xenpv.net.attributes import LINK_SPEED, Attributes, attributes
from xenpv.net.context import AdapterContext
from xenpv.net.link import Indication, Link
from xenpv.net.nbl import RESOURCES, ListReceiver, ListSender, NetBufferList
from xenpv.net.ndis import U32, U32_MAX, NdisStatus, NdisVersion
from xenpv.net.offload import OffloadConfiguration
from xenpv.net.oid import OidAnswer, OidError, RequestType
from xenpv.net.properties import Properties
from xenpv.net.queryinformation import query_information
from xenpv.net.receiver import Receiver as ListsIn
from xenpv.net.receiver import split_tagged
from xenpv.net.statistics import AdapterStatistics
from xenpv.net.transmitter import Transmitter
from xenpv.vif.interface import Completion, NtStatusError, ReceiverPacket, VifInterface

__all__ = ["Adapter", "AdapterState", "AdapterStatistics", "Link", "Receiver", "Sender"]

RECEIVED_MAX: Final = 4096  # frames kept; the oldest go first
ETHERNET_HEADER: Final = 14
LINKS_MAX: Final = 64


class AdapterState(enum.Enum):
    """Where the adapter is in its life (NDIS miniport states)."""

    INITIALISED = "initialised"
    RUNNING = "running"
    PAUSED = "paused"
    SHUT_DOWN = "shut down"
    REMOVED = "removed"  # by surprise: it will be halted
    HALTED = "halted"


OVER: Final = (AdapterState.SHUT_DOWN, AdapterState.REMOVED, AdapterState.HALTED)


class Receiver(Protocol):
    """A protocol bound to the adapter."""

    def receive(self, frames: Sequence[bytes]) -> None:
        """Frames that arrived, in order. Runs inside a handler of the guest: it may send."""


class Sender(Protocol):
    """A protocol that wants its frames back (NDIS' SendNetBufferListsComplete)."""

    def sent(self, completions: Sequence[Completion]) -> None:
        """Frames whose numbers `send_many` returned, each exactly once. Runs inside a handler
        of the guest, or inside `send_many` for what is dropped at once.
        """


class Adapter:
    """One adapter. `links` are its link indications, oldest first.

    `in_flight` counts frames given to `send` and `send_lists` whose completion is still to come.
    """

    def __init__(
        self,
        vif: VifInterface,
        *,
        properties: Properties | None = None,
        version: NdisVersion = NdisVersion.V6_85,
    ) -> None:
        """InitializeEx. `properties` in place of the registry's; `version` is the system's NDIS."""
        if properties is None:
            properties = Properties.read(vif.stack, vif.number)
        self._vif = vif
        self._context = AdapterContext.initialize(vif, properties, version)
        self.state = AdapterState.INITIALISED
        self.received: deque[bytes] = deque(maxlen=RECEIVED_MAX)
        self.receiver: Receiver | None = None
        self.sender: Sender | None = None
        self.list_receiver: ListReceiver | None = None
        self.list_sender: ListSender | None = None
        self.links: deque[Link] = deque(
            [Link(up=True, speed=LINK_SPEED, full_duplex=True)], maxlen=LINKS_MAX
        )
        self.error = ""  # why it could not be enabled
        self.in_flight = 0
        self._is_enabled = False
        self._cookie = 0
        self._lists_out = Transmitter(self._complete, self._context.offload)
        self._lists_in = ListsIn()
        # What a protocol sets when it binds to the adapter.
        packetfilter.write(vif, U32.pack(packetfilter.DEFAULT_FILTER))

    # life

    def restart(self) -> NdisStatus:
        """Enable the interface, then indicate the link. FAILURE: `error` says why.

        LocalProtocolError: the adapter is at its end.
        """
        if self.state in OVER:
            raise LocalProtocolError(f"the adapter is {self.state.value}")
        self.error = ""
        self.state = AdapterState.RUNNING
        if not self._is_enabled:
            self._vif.stack.enable()
            self._is_enabled = True
        self._context.offload_withdrawn()
        try:
            self._vif.enable(self)
        except NtStatusError as error:
            self.error = str(error)
            self._rest(AdapterState.PAUSED)
        self.mac_state_change()
        return NdisStatus.FAILURE if self.error else NdisStatus.SUCCESS

    def pause(self) -> NdisStatus:
        """Disable the interface; frames already with the backend still complete."""
        if self.state is AdapterState.RUNNING:
            self._disable(AdapterState.PAUSED)
        return NdisStatus.SUCCESS

    def shutdown(self, *, bug_check: bool = False) -> None:
        """ShutdownEx: the system goes down. Nothing is touched if it does so by a bug check."""
        if self.state not in OVER and not bug_check:
            self._disable(AdapterState.SHUT_DOWN)

    def surprise_removed(self) -> None:
        """DevicePnPEventNotify, SurpriseRemoved: the device is gone already; halt follows."""
        if self.state not in OVER:
            self._disable(AdapterState.REMOVED)

    def halt(self) -> None:
        """The end of the adapter. A second call does nothing."""
        if self.state is AdapterState.HALTED:
            return
        if self.state is AdapterState.RUNNING:
            self._disable(AdapterState.PAUSED)
        self.state = AdapterState.HALTED
        self._vif.release()

    def _disable(self, state: AdapterState) -> None:
        was_running = self.state is AdapterState.RUNNING
        self.state = state
        if was_running:
            self._vif.disable()
            self._rest(state)
            self.mac_state_change()

    def _rest(self, state: AdapterState) -> None:
        self.state = state
        self._is_enabled = False
        self._vif.stack.disable()

    # what programs use

    @property
    def number(self) -> int:
        """Device number of its interface."""
        return self._vif.number

    @property
    def mac(self) -> bytes:
        """Current address, 6 bytes."""
        return self._vif.mac_query_current_address()

    @property
    def mtu(self) -> int:
        """Longest IP packet, in bytes."""
        return self._context.mtu

    @property
    def link_up(self) -> bool:
        return self.state is AdapterState.RUNNING and self._vif.mac_query_state().link_up

    @property
    def statistics(self) -> AdapterStatistics:
        return statistics.read(self._vif)

    @property
    def properties(self) -> Properties:
        """Its advanced properties, as they were when it was initialised."""
        return self._context.properties

    @property
    def offload(self) -> OffloadConfiguration:
        """The offloads that are switched on."""
        return self._context.configuration

    @property
    def attributes(self) -> Attributes:
        """What it tells NDIS of itself."""
        return attributes(self._context)

    @property
    def indications(self) -> deque[Indication]:
        """What NDIS was told, oldest first: a link state at every change that XenVif tells."""
        return self._context.indications

    def send(self, frame: bytes) -> int:
        """Send one Ethernet frame, without FCS; its number. See send_many."""
        return self.send_many((frame,))[0]

    def send_many(self, frames: Sequence[bytes]) -> range:
        """Send frames in order. They are with the backend when the platform has run.

        Their numbers, by which `sender` hears of each: OK, the backend has taken it; DROPPED,
        it was not sent, or was on the ring when the device was closed, and then the backend may
        have taken it all the same; ERROR, the backend refused it or cannot be believed.

        LocalProtocolError: the link is down, or a frame is shorter than its header or longer
        than the MTU allows; then none is sent.
        """
        if not self.link_up:
            raise LocalProtocolError(f"adapter {self.number} is {self.state.value}, link down")
        sizes = [len(frame) for frame in frames]
        longest = self._vif.mac_query_maximum_frame_size()
        if sizes and not ETHERNET_HEADER <= min(sizes) <= max(sizes) <= longest:
            raise LocalProtocolError(
                f"frames of {min(sizes)} to {max(sizes)} bytes: {ETHERNET_HEADER} to {longest} fit"
            )
        first = self._cookie
        self._cookie += len(frames)
        self.in_flight += len(frames)
        numbers = range(first, self._cookie)
        self._vif.transmitter_queue_packets(frames, numbers)
        return numbers

    def send_lists(self, lists: Sequence[NetBufferList]) -> range:
        """Send lists in order; the numbers of the frames that went down.

        A list's `status` is PENDING until `list_sender` hears of it, at once where nothing of it
        was sent: FAILURE, it asks for an offload that is not switched on; NOT_ACCEPTED, it has
        no data or the link is down. A list of frames below is SUCCESS if the backend took the
        last of them that came back, else NOT_ACCEPTED.

        LocalProtocolError: one of them is below already; then none is sent.
        """
        if any(one.pending for one in lists):
            raise LocalProtocolError("a list was sent that is not complete")
        packets, cookies = self._lists_out.prepare(lists, self._cookie)
        self._cookie = cookies.stop
        self.in_flight += len(cookies)
        if not packets:
            return cookies
        try:
            self._vif.transmitter_queue_packets(packets, cookies)
        except (LocalProtocolError, NtStatusError):
            self.in_flight -= len(cookies)
            self._lists_out.refuse(cookies)
        return cookies

    def _complete(self, lists: Sequence[NetBufferList]) -> None:
        if self.list_sender is not None:
            self.list_sender.sent_lists(lists)

    def return_lists(self, lists: Sequence[NetBufferList]) -> None:
        """Give lists back that `list_receiver` got, each once, but none with RESOURCES.

        LocalProtocolError: one of them is not outstanding; then none is returned.
        """
        once = len({id(one) for one in lists}) == len(lists)
        if not once or any(one.flags & RESOURCES or not one.pending for one in lists):
            raise LocalProtocolError("a list that is not outstanding was returned")
        self._give_back(lists)

    def _give_back(self, lists: Sequence[NetBufferList]) -> None:
        for one in lists:
            one.pending = 0
        self._lists_in.returned += len(lists)
        self._vif.receiver_return_packets([one.cookie for one in lists])

    def oid_request(
        self, kind: RequestType | int, number: int, value: bytes = b"", *, length: int = U32_MAX
    ) -> OidAnswer:
        """OidRequest: a query with `length` bytes of room, or a set of `value`."""
        if kind in (RequestType.QUERY_INFORMATION, RequestType.QUERY_STATISTICS):
            return query_information(self._context, number, length)
        if kind == RequestType.SET_INFORMATION:
            return setinformation.set_information(self._context, number, value)
        return OidAnswer(status=NdisStatus.NOT_SUPPORTED)

    def query(self, number: int) -> bytes:
        """An OID's value, as bytes of NDIS' layout; OidError carries its NDIS status."""
        answer = query_information(self._context, number, U32_MAX)
        if answer.status is not NdisStatus.SUCCESS:
            raise OidError(answer.status, f"query of OID {number:#x}")
        return answer.data

    def set(self, number: int, value: bytes) -> None:
        """Set an OID; OidError carries its NDIS status."""
        setinformation.apply(self._context, number, value)

    # what the interface says

    def transmitter_return_packets(self, completions: Sequence[Completion]) -> None:
        """Completions of packets that were queued."""
        self.in_flight -= len(completions)
        if self._lists_out.in_flight:
            completions = self._lists_out.returned(completions)
        if self.sender is not None and completions:
            self.sender.sent(completions)

    def receiver_queue_packets(self, _index: int, packets: Sequence[ReceiverPacket]) -> bool:
        """Packets that arrived on one queue; True above 1,024 outstanding."""
        packets, tagged = split_tagged(packets)
        if tagged:
            self._vif.receiver_return_packets([packet.cookie for packet in tagged])
        if self.list_receiver is not None:
            return self._indicate(self.list_receiver, packets)
        frames = [packet.data for packet in packets]
        self.received.extend(frames)
        if self.receiver is not None:
            self.receiver.receive(frames)
        self._vif.receiver_return_packets([packet.cookie for packet in packets])
        return False

    def _indicate(self, receiver: ListReceiver, packets: Sequence[ReceiverPacket]) -> bool:
        """Each list is an indication of its own; one with RESOURCES goes back behind it."""
        lists, scarce = self._lists_in.indicate(packets)
        for one in lists:
            receiver.receive_lists((one,))
            if scarce:
                self._give_back((one,))
        return scarce

    def mac_state_change(self) -> None:
        """Indicate the link; `links` has it where it changed."""
        link = self._context.link_changed()
        if link != self.links[-1]:
            self.links.append(link)
