"""XenNet: the network adapter that a guest's programs see (win-xennet, an NDIS miniport).

It knows XenVif by its interface alone. What is queued here comes back through the completion
of its packet. Frames that arrive go to `list_receiver` with what was found out about them; where
there is none, their bytes are kept in `received` and given to `receiver`.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol, cast

import attrs

from xenpv.errors import LocalProtocolError
from xenpv.net import oid
from xenpv.net.nbl import ListReceiver, ListSender, NetBufferList, ReceiveFlags
from xenpv.net.receiver import Receiver as ListsIn
from xenpv.net.receiver import split_tagged
from xenpv.net.transmitter import Transmitter
from xenpv.vif.interface import (
    Completion,
    NtStatusError,
    ReceiverPacket,
    Statistic,
    VifInterface,
)

RECEIVED_MAX: Final = 4096  # frames kept; the oldest go first
ETHERNET_HEADER: Final = 14
LINK_SPEED: Final = 1_000_000_000  # bit/s: what the attributes claim at initialisation


class AdapterState(enum.Enum):
    """Where the adapter is in its life (NDIS miniport states)."""

    INITIALISED = "initialised"
    RUNNING = "running"
    PAUSED = "paused"
    HALTED = "halted"


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


@attrs.frozen(kw_only=True)
class Link:
    """A link indication (NDIS_STATUS_LINK_STATE): speeds in bit/s, both ways alike."""

    up: bool
    speed: int
    full_duplex: bool


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


class Adapter:
    """One adapter. `links` are its link indications, oldest first.

    `in_flight` counts frames given to `send` and `send_lists` whose completion is still to come.
    """

    def __init__(self, vif: VifInterface) -> None:
        self._vif = vif
        self.state = AdapterState.INITIALISED
        self.received: deque[bytes] = deque(maxlen=RECEIVED_MAX)
        self.receiver: Receiver | None = None
        self.sender: Sender | None = None
        self.list_receiver: ListReceiver | None = None
        self.list_sender: ListSender | None = None
        self.links: deque[Link] = deque(
            [Link(up=True, speed=LINK_SPEED, full_duplex=True)], maxlen=64
        )
        self.error = ""  # why it could not be enabled
        self.in_flight = 0
        self._cookie = 0
        self._lists_out = Transmitter(self._complete)
        self._lists_in = ListsIn()
        # What a protocol sets when it binds to the adapter.
        oid.set_packet_filter(vif, oid.U32.pack(oid.DEFAULT_FILTER))

    # life

    def restart(self) -> None:
        """Enable the interface, then indicate the link. `error` says why it failed."""
        if self.state is AdapterState.HALTED:
            raise LocalProtocolError("the adapter is halted")
        self.error = ""
        self.state = AdapterState.RUNNING
        try:
            self._vif.enable(self)
        except NtStatusError as error:
            self.error = str(error)
            self.state = AdapterState.PAUSED
        self.mac_state_change()

    def pause(self) -> None:
        """Disable the interface; frames already with the backend still complete."""
        if self.state is AdapterState.RUNNING:
            self.state = AdapterState.PAUSED
            self._vif.disable()
            self.mac_state_change()

    def halt(self) -> None:
        """The end of the adapter."""
        self.pause()
        self.state = AdapterState.HALTED

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
        return oid.mtu(self._vif)

    @property
    def link_up(self) -> bool:
        return self.state is AdapterState.RUNNING and self._vif.mac_query_state().link_up

    @property
    def statistics(self) -> AdapterStatistics:
        def total(first: Statistic) -> int:
            """Unicast, multicast and broadcast lie two apart."""
            return sum(self._vif.query_statistic(first + step) for step in (0, 2, 4))

        query = self._vif.query_statistic
        return AdapterStatistics(
            sent_frames=total(Statistic.TRANSMITTER_UNICAST_PACKETS),
            sent_bytes=total(Statistic.TRANSMITTER_UNICAST_OCTETS),
            sent_dropped=query(Statistic.TRANSMITTER_PACKETS_DROPPED),
            sent_errors=query(Statistic.TRANSMITTER_BACKEND_ERRORS)
            + query(Statistic.TRANSMITTER_FRONTEND_ERRORS),
            received_frames=total(Statistic.RECEIVER_UNICAST_PACKETS),
            received_bytes=total(Statistic.RECEIVER_UNICAST_OCTETS),
            received_dropped=query(Statistic.RECEIVER_PACKETS_DROPPED),
            received_errors=query(Statistic.RECEIVER_BACKEND_ERRORS)
            + query(Statistic.RECEIVER_FRONTEND_ERRORS),
        )

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
            self._vif.transmitter_queue_packets(cast("list[bytes]", packets), cookies)
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
        if not once or any(one.flags & ReceiveFlags.RESOURCES or not one.pending for one in lists):
            raise LocalProtocolError("a list that is not outstanding was returned")
        self._give_back(lists)

    def _give_back(self, lists: Sequence[NetBufferList]) -> None:
        for one in lists:
            one.pending = 0
        self._lists_in.returned += len(lists)
        self._vif.receiver_return_packets([one.cookie for one in lists])

    def query(self, number: int) -> bytes:
        """An OID's value, as bytes of NDIS' layout; OidError carries its NDIS status."""
        return oid.query(self._vif, number)

    def set(self, number: int, value: bytes) -> None:
        """Set an OID; OidError carries its NDIS status."""
        oid.set_value(self._vif, number, value)

    # what the interface says

    def transmitter_return_packets(self, completions: Sequence[Completion]) -> None:
        """Completions of packets that were queued."""
        self.in_flight -= len(completions)
        if self._lists_out.in_flight:
            completions = self._lists_out.returned(completions)
        if self.sender is not None and completions:
            self.sender.sent(completions)

    def receiver_queue_packets(self, _index: int, packets: Sequence[ReceiverPacket]) -> bool:
        """Packets that arrived on one queue, one indication; True above 1,024 outstanding."""
        packets, tagged = split_tagged(packets)
        if tagged:
            self._vif.receiver_return_packets([packet.cookie for packet in tagged])
        if self.list_receiver is not None:
            lists, scarce = self._lists_in.indicate(packets)
            self.list_receiver.receive_lists(lists)
            if scarce:
                self._give_back(lists)
            return scarce
        frames = [packet.data for packet in packets]
        self.received.extend(frames)
        if self.receiver is not None:
            self.receiver.receive(frames)
        self._vif.receiver_return_packets([packet.cookie for packet in packets])
        return False

    def mac_state_change(self) -> None:
        """Indicate the link where it changed."""
        state = self._vif.mac_query_state()
        link = Link(
            up=state.link_up and self.state is AdapterState.RUNNING,
            speed=state.speed,
            full_duplex=state.full_duplex,
        )
        if link != self.links[-1]:
            self.links.append(link)
