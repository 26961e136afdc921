"""A TAP behind a guest's XenNet adapter: a protocol of the guest that is the host's kernel."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import TYPE_CHECKING, Final

from xenpv.errors import PeerProtocolError
from xenpv.framelists import frame_of, list_of
from xenpv.host.network import Frame
from xenpv.host.offload import finish_checksum, segment
from xenpv.host.tap import Device, Tap, TapEnd
from xenpv.net.nbl import NetBufferList, ReceiveFlags
from xenpv.net.ndis import U32, NdisStatus
from xenpv.net.oid import Oid, OidError
from xenpv.net.packetfilter import DEFAULT_FILTER, PacketFilter

if TYPE_CHECKING:
    from xenpv.guest import Guest
    from xenpv.net.adapter import Adapter

IN_FLIGHT_MAX: Final = 1024  # frames below the adapter before the TAP is left to wait
FILTER: Final = PacketFilter.PROMISCUOUS | PacketFilter.DIRECTED | PacketFilter.BROADCAST
HEADER: Final = 14
TAG: Final = 4

# NDIS_OFFLOAD_ENCAPSULATION: object header (type 0xA8, revision 1, size), then for IPv4 and IPv6
# whether it is on, NDIS_ENCAPSULATION_IEEE_802_3, and the bytes of that header.
ENCAPSULATION: Final = Struct("<BBHIIIIII")
ENCAPSULATED: Final = (0xA8, 1, 28, 1, 2, HEADER, 1, 2, HEADER)


class GuestTap:
    """The kernel behind `device` as what is bound to a guest's adapter.

    The guest may reboot or lose the adapter: the TAP is bound to the one that is there when
    frames come, and what comes while there is none is `unsent`.
    """

    def __init__(self, guest: Guest, number: int, device: Device) -> None:
        self.end = TapEnd(device)
        self.guest = guest
        self.number = number
        self.where = f"{guest.name}.{number}"
        self.unsent = 0
        self._adapter: Adapter | None = None
        self._software = False
        self._bind()

    @property
    def busy(self) -> bool:
        return self._adapter is not None and self._adapter.in_flight >= IN_FLIGHT_MAX

    def _bind(self) -> Adapter | None:
        """The adapter of the moment, bound to; None if there is none."""
        found = next((one for one in self.guest.nets if one.number == self.number), None)
        if found is not self._adapter:
            self.detach()
            self._adapter = found
            if found is not None:
                self._configure(found)
        return found

    def _configure(self, adapter: Adapter) -> None:
        adapter.list_receiver = self
        adapter.list_sender = self
        self._software = False
        adapter.set(Oid.GEN_CURRENT_PACKET_FILTER, U32.pack(FILTER))
        try:
            adapter.set(Oid.OFFLOAD_ENCAPSULATION, ENCAPSULATION.pack(*ENCAPSULATED))
        except OidError:
            self._software = True  # an adapter without offloads
        if isinstance(self.end.device, Tap):
            self.end.device.set_mac(adapter.mac)

    # to the guest's adapter

    def arrived(self, frames: Sequence[Frame]) -> None:
        adapter = self._bind()
        if adapter is None:
            self.unsent += len(frames)
            return
        self._send(adapter, frames)

    def _send(self, adapter: Adapter, frames: Sequence[Frame]) -> None:
        longest = adapter.mtu + HEADER + TAG
        if self._software:
            frames = [part for frame in frames for part in self._finished(frame)]
        fitting = [frame for frame in frames if frame.gso_type or len(frame.data) <= longest]
        self.unsent += len(frames) - len(fitting)
        lists = [list_of(frame) for frame in fitting]
        adapter.send_lists(lists)
        refused = [
            frame
            for frame, one in zip(fitting, lists, strict=True)
            if one.status is NdisStatus.FAILURE and (one.checksum or one.mss)
        ]
        if refused and not self._software:
            # It asked for what is not switched on: from now on it is done here.
            self.unsent -= len(refused)
            self._software = True
            self._send(adapter, refused)

    def _finished(self, frame: Frame) -> list[Frame]:
        try:
            return [finish_checksum(part) for part in segment(frame)]
        except PeerProtocolError:
            self.unsent += 1
            return []

    def sent_lists(self, lists: Sequence[NetBufferList]) -> None:
        """What could not be sent is counted."""
        self.unsent += sum(one.status is not NdisStatus.SUCCESS for one in lists)

    # from it

    def receive_lists(self, lists: Sequence[NetBufferList]) -> None:
        """What the guest's adapter received."""
        self.end.give([frame_of(one) for one in lists])
        adapter = self._adapter
        lent = [one for one in lists if not one.flags & ReceiveFlags.RESOURCES]
        if adapter is not None and lent:
            adapter.return_lists(lent)

    def detach(self) -> None:
        """Leave the adapter without a protocol for lists."""
        adapter, self._adapter = self._adapter, None
        if adapter is not None and adapter.list_receiver is self:
            adapter.list_receiver = adapter.list_sender = None
            adapter.set(Oid.GEN_CURRENT_PACKET_FILTER, U32.pack(DEFAULT_FILTER))
