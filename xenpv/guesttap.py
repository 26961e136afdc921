"""A TAP behind a guest's XenNet adapter: a protocol of the guest that is the host's kernel."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import TYPE_CHECKING, Final

from xenpv.errors import PeerProtocolError
from xenpv.framelists import frame_of, list_of
from xenpv.host.network import Frame
from xenpv.host.offload import finish_checksum, segment
from xenpv.host.packet import parse_headers
from xenpv.host.tap import Device, Tap, TapEnd
from xenpv.net.nbl import RESOURCES, NetBufferList
from xenpv.net.ndis import U32, NdisStatus
from xenpv.net.oid import Oid
from xenpv.net.packetfilter import DEFAULT_FILTER, PacketFilter
from xenpv.net.transmitter import offload_of
from xenpv.vif.interface import Offload

if TYPE_CHECKING:
    from xenpv.guest import Guest
    from xenpv.net.adapter import Adapter
    from xenpv.net.offload import OffloadConfiguration

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

    The guest may reboot or lose the adapter: the TAP is bound to the one that is there, and what
    comes from it while there is none is `unsent`. While the guest is paused the TAP waits.
    """

    def __init__(self, guest: Guest, number: int, device: Device) -> None:
        self.end = TapEnd(device)
        self.guest = guest
        self.number = number
        self.where = f"{guest.name}.{number}"
        self.unsent = 0
        self._adapter: Adapter | None = None
        self.renew()

    @property
    def busy(self) -> bool:
        if self._dead:
            return False
        full = self._adapter is not None and self._adapter.in_flight >= IN_FLIGHT_MAX
        return full or not self.guest.running

    @property
    def _dead(self) -> bool:
        return self.guest.created.domain.dying

    def renew(self) -> None:
        """Bind to the adapter of the moment."""
        found = next((one for one in self.guest.nets if one.number == self.number), None)
        if found is not self._adapter:
            self.detach()
            self._adapter = found
            if found is not None:
                self._configure(found)

    def _configure(self, adapter: Adapter) -> None:
        adapter.list_receiver = self
        adapter.list_sender = self
        adapter.set(Oid.GEN_CURRENT_PACKET_FILTER, U32.pack(FILTER))
        if not adapter.offload.transmit & ~Offload.TAG_MANIPULATION:
            # As Windows' TCP/IP does when it binds; Linux' stack has all that there is.
            adapter.set(Oid.OFFLOAD_ENCAPSULATION, ENCAPSULATION.pack(*ENCAPSULATED))
        if isinstance(self.end.device, Tap):
            self.end.device.set_mac(adapter.mac)

    # to the guest's adapter

    def arrived(self, frames: Sequence[Frame]) -> None:
        self.renew()
        if self._adapter is not None and self.guest.running:
            self._send(self._adapter, frames)
        else:
            self.unsent += len(frames)

    def _send(self, adapter: Adapter, frames: Sequence[Frame]) -> None:
        longest = adapter.mtu + HEADER + TAG
        on = adapter.offload
        lists: list[NetBufferList] = []
        for frame in frames:
            if frame.csum_blank:
                lists += self._lists(frame, on)
            elif len(frame.data) <= longest:
                lists.append(NetBufferList(buffers=(frame.data,)))
            else:
                self.unsent += 1
        adapter.send_lists(lists)

    def _lists(self, frame: Frame, on: OffloadConfiguration) -> list[NetBufferList]:
        """A frame whose sum is to be done, or that is to be cut: here, where it cannot be below."""
        whole = list_of(frame)
        if not offload_of(whole) & ~on.transmit and (
            not frame.gso_type or _payload(frame.data) <= _longest(on, whole)
        ):
            return [whole]
        try:
            parts = segment(frame)
            lists = [list_of(part) for part in parts]
            if any(offload_of(one) & ~on.transmit for one in lists):
                lists = [list_of(finish_checksum(part)) for part in parts]
        except PeerProtocolError:
            self.unsent += 1
            return []
        return lists

    def sent_lists(self, lists: Sequence[NetBufferList]) -> None:
        """What could not be sent is counted."""
        self.unsent += sum(one.status is not NdisStatus.SUCCESS for one in lists)

    # from it

    def receive_lists(self, lists: Sequence[NetBufferList]) -> None:
        """What the guest's adapter received."""
        self.end.give([frame_of(one) for one in lists])
        adapter = self._adapter
        lent = [one for one in lists if not one.flags & RESOURCES]
        if adapter is not None and lent:
            adapter.return_lists(lent)

    def detach(self) -> None:
        """Leave the adapter without a protocol for lists."""
        adapter, self._adapter = self._adapter, None
        if adapter is not None and adapter.list_receiver is self:
            adapter.list_receiver = adapter.list_sender = None
            if not self._dead:
                adapter.set(Oid.GEN_CURRENT_PACKET_FILTER, U32.pack(DEFAULT_FILTER))


def _longest(on: OffloadConfiguration, one: NetBufferList) -> int:
    """MaxOffLoadSize: bytes of TCP payload in a large packet."""
    return on.lso_ipv6_size if one.is_ipv6 else on.lso_ipv4_size


def _payload(data: bytes) -> int:
    """Bytes behind the TCP header of a large packet, whose headers were checked."""
    headers = parse_headers(data)
    assert headers is not None
    return headers.end - headers.transport - (data[headers.transport + 12] >> 4) * 4
