"""The suspend codes of XENIFACE, 0x830 to 0x832 (win-xeniface ioctl_suspend.c)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.iface.ioctl import FileObject, Irp

if TYPE_CHECKING:
    from xenpv.iface.device import XenIface
    from xenpv.iface.process import Event

COUNT: Final = struct.Struct("<I")
HANDLE: Final = struct.Struct("<Q")


@attrs.frozen(eq=False)
class SuspendContext:
    """An event of a file that is set after each resume in a new domain."""

    context: int
    file: FileObject
    event: Event


class IoctlSuspend:
    """The suspend events of one device's files, in the order of their registration."""

    def __init__(self, device: XenIface) -> None:
        self.device = device
        self.events: list[SuspendContext] = []

    def handlers(self) -> dict[int, Callable[[Irp], bytes | None]]:
        return {0x830: self.get_count, 0x831: self.register, 0x832: self.deregister}

    def get_count(self, _irp: Irp) -> bytes:
        return COUNT.pack(self.device.suspend_count())

    def register(self, irp: Irp) -> bytes:
        (event,) = HANDLE.unpack(irp.buffer)
        context = SuspendContext(self.device.new_context(), irp.file, irp.process.event(event))
        self.events.append(context)
        return HANDLE.pack(context.context)

    def deregister(self, irp: Irp) -> bytes:
        (number,) = HANDLE.unpack(irp.buffer)
        for context in self.events:
            if context.context == number and context.file is irp.file:
                self.events.remove(context)
                return b""
        raise NtStatusError(NTSTATUS.NOT_FOUND, f"no suspend event {number:#x} of this file")

    def fire(self) -> None:
        """SuspendEventFire: they stay registered."""
        for context in self.events:
            context.event.set()

    def cleanup(self, file: FileObject | None) -> None:
        """Forget those of a file, or all."""
        self.events = [one for one in self.events if file not in (None, one.file)]
