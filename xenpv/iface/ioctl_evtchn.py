"""The event channel codes of XENIFACE, 0x810 to 0x814 (win-xeniface ioctl_evtchn.c)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.errors import HypercallError, LocalProtocolError
from xenpv.iface.ioctl import FileObject, Irp, bad_parameter

if TYPE_CHECKING:
    from xenpv.bus.evtchn import Channel
    from xenpv.iface.device import XenIface
    from xenpv.iface.process import Event
    from xenpv.xen.loop import Task

BIND_INTERDOMAIN_IN: Final = struct.Struct("<H2xIB7xQ")
BIND_UNBOUND_IN: Final = struct.Struct("<HB5xQ")
PORT: Final = struct.Struct("<I")


class EvtchnContext:
    """A channel of a file. An upcall queues a DPC, which sets the event and unmasks."""

    def __init__(self, device: XenIface, file: FileObject, event: Event) -> None:
        self.device = device
        self.file = file
        self.event = event
        self.port = 0
        self.channel: Channel | None = None
        self.dpc: Task = device.bus.domain.task("iface evtchn", self.run)

    def interrupt(self) -> None:
        self.dpc.wake()

    def run(self) -> None:
        self.event.set()
        if self.channel is not None:
            self.device.bus.evtchn.unmask(self.channel, force=True)


@attrs.frozen
class Remote:
    """Whom to bind to; `port` None: whoever of that domain comes."""

    domid: int
    port: int | None = None


class IoctlEvtchn:
    """The event channels of one device's files, oldest first."""

    def __init__(self, device: XenIface) -> None:
        self.device = device
        self.channels: list[EvtchnContext] = []

    def handlers(self) -> dict[int, Callable[[Irp], bytes | None]]:
        return {
            0x810: self.bind_interdomain,
            0x811: self.bind_unbound,
            0x812: self.close,
            0x813: self.notify,
            0x814: self.unmask,
        }

    def bind_interdomain(self, irp: Irp) -> bytes:
        domid, port, mask, event = BIND_INTERDOMAIN_IN.unpack(irp.buffer)
        return self._bind(irp, Remote(domid, port), event, masked=bool(mask))

    def bind_unbound(self, irp: Irp) -> bytes:
        domid, mask, event = BIND_UNBOUND_IN.unpack(irp.buffer)
        return self._bind(irp, Remote(domid), event, masked=bool(mask))

    def _bind(self, irp: Irp, remote: Remote, event: int, *, masked: bool) -> bytes:
        context = EvtchnContext(self.device, irp.file, irp.process.event(event))
        evtchn = self.device.bus.evtchn
        try:
            if remote.port is None:
                channel = evtchn.open_unbound(remote.domid, context.interrupt, mask=True)
            else:
                channel = evtchn.open_inter_domain(
                    remote.domid, remote.port, context.interrupt, mask=True
                )
        except (HypercallError, LocalProtocolError) as error:
            self.device.bus.domain.forget(context.dpc)
            raise NtStatusError(NTSTATUS.UNSUCCESSFUL, str(error)) from error
        context.channel, context.port = channel, channel.port
        self.channels.append(context)
        if not masked:
            evtchn.unmask(channel, force=True)
        return PORT.pack(context.port)

    def find(self, port: int, file: FileObject | None) -> EvtchnContext | None:
        """The oldest channel of that port; `file` None: of any file.

        One that a suspend closed comes last: its port may be another's by now, whom the driver
        does not find then.
        """
        found = [one for one in self.channels if one.port == port and file in (None, one.file)]
        alive = [one for one in found if one.channel is not None and one.channel.active]
        return next(iter(alive or found), None)

    def _mine(self, irp: Irp) -> EvtchnContext | None:
        (port,) = PORT.unpack(irp.buffer)
        return self.find(port, irp.file)

    def close(self, irp: Irp) -> bytes:
        context = self._mine(irp)
        if context is None:
            raise NtStatusError(NTSTATUS.NOT_FOUND, "no such port of this file")
        self.channels.remove(context)
        self._free(context)
        return b""

    def notify(self, irp: Irp) -> bytes:
        (port,) = PORT.unpack(irp.buffer)
        self.send(port, irp.file)
        return b""

    def send(self, port: int, file: FileObject | None) -> None:
        """EVTCHNOP_send, nothing where a suspend closed it. Raises NtStatusError NOT_FOUND."""
        context = self.find(port, file)
        if context is None or context.channel is None:
            raise NtStatusError(NTSTATUS.NOT_FOUND, f"no port {port}")
        self.device.bus.evtchn.send(context.channel)

    def unmask(self, irp: Irp) -> bytes:
        context = self._mine(irp)
        if context is None or context.channel is None:
            raise bad_parameter("no such port of this file")
        self.device.bus.evtchn.unmask(context.channel, force=True)
        return b""

    def cleanup(self, file: FileObject | None) -> None:
        """Free what a file has, or all: oldest first."""
        for context in [one for one in self.channels if file in (None, one.file)]:
            self.channels.remove(context)
            self._free(context)

    def _free(self, context: EvtchnContext) -> None:
        channel, context.channel = context.channel, None
        if channel is not None:
            self.device.bus.evtchn.close(channel)
        self.device.bus.domain.forget(context.dpc)
