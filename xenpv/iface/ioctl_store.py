"""The store codes of XENIFACE, 0x800 to 0x806 (win-xeniface ioctl_store.c)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.iface.ioctl import FileObject, Irp, bad_parameter, bad_size, text_of

if TYPE_CHECKING:
    from xenpv.iface.device import XenIface
    from xenpv.iface.process import Event
    from xenpv.iface.store import StoreWatch
    from xenpv.xen.loop import Task

PATH_LENGTH_MAX: Final = 3072  # bytes with the NUL
PERMISSIONS_MAX: Final = 255
MASK_MAX: Final = 3  # READ 1, WRITE 2
SET_PERMISSIONS_IN: Final = struct.Struct("<QII")  # and the entries
PERMISSION: Final = struct.Struct("<H2xI")
ADD_WATCH_IN: Final = struct.Struct("<QI4xQ")
CONTEXT: Final = struct.Struct("<Q")


@attrs.define(eq=False)
class StoreContext:
    """A watch of a file: it sets the event of its owner."""

    context: int
    file: FileObject
    event: Event
    watch: StoreWatch | None = None
    task: Task | None = None

    def run(self) -> None:
        self.event.set()


class IoctlStore:
    """The store side of one device's IOCTLs, with the watches of all its files."""

    def __init__(self, device: XenIface) -> None:
        self.device = device
        self.watches: list[StoreContext] = []

    def handlers(self) -> dict[int, Callable[[Irp], bytes | None]]:
        return {
            0x800: self.read,
            0x801: self.write,
            0x802: self.directory,
            0x803: self.remove,
            0x804: self.set_permissions,
            0x805: self.add_watch,
            0x806: self.remove_watch,
        }

    def read(self, irp: Irp) -> bytes:
        value = self.device.store.read(_path(irp)).encode() + b"\0"
        return _sized(irp, value)

    def write(self, irp: Irp) -> bytes:
        path = _path(irp)
        value = text_of(irp.buffer[len(path) + 1 :])
        self.device.store.write(path, value)
        return b""

    def directory(self, irp: Irp) -> bytes:
        names = self.device.store.directory(_path(irp))
        return _sized(irp, b"".join(name.encode() + b"\0" for name in names) + b"\0")

    def remove(self, irp: Irp) -> bytes:
        self.device.store.remove(_path(irp))
        return b""

    def set_permissions(self, irp: Irp) -> bytes:
        head, entry = SET_PERMISSIONS_IN.size, PERMISSION.size
        if len(irp.buffer) < head + entry:
            raise bad_size(f"{len(irp.buffer)} bytes in")
        address, length, count = SET_PERMISSIONS_IN.unpack_from(irp.buffer)
        if len(irp.buffer) != head + entry * count:
            raise bad_size(f"{len(irp.buffer)} bytes in for {count} entries")
        _check_length(length)
        if count > PERMISSIONS_MAX:
            raise bad_parameter(f"{count} entries")
        entries = list(PERMISSION.iter_unpack(irp.buffer[head:]))
        for domid, mask in entries:
            if mask > MASK_MAX:
                raise bad_parameter(f"mask {mask:#x} for domain {domid}")
        self.device.store.set_permissions(_capture(irp, address, length), entries)
        return b""

    def add_watch(self, irp: Irp) -> bytes:
        address, length, event = ADD_WATCH_IN.unpack(irp.buffer)
        _check_length(length)
        path = _capture(irp, address, length)
        device = self.device
        context = StoreContext(device.new_context(), irp.file, irp.process.event(event))
        task = context.task = device.bus.domain.task(f"iface watch {path}", context.run)
        try:
            context.watch = device.store.watch_add(path, task)
        except NtStatusError:
            device.bus.domain.forget(task)
            raise
        self.watches.append(context)
        return CONTEXT.pack(context.context)

    def remove_watch(self, irp: Irp) -> bytes:
        (number,) = CONTEXT.unpack(irp.buffer)
        for context in self.watches:
            if context.context == number and context.file is irp.file:
                self.watches.remove(context)
                self._free(context)
                return b""
        raise NtStatusError(NTSTATUS.NOT_FOUND, f"no watch {number:#x} of this file")

    def cleanup(self, file: FileObject | None) -> None:
        """Free what a file has, or all: oldest first."""
        for context in [one for one in self.watches if file in (None, one.file)]:
            self.watches.remove(context)
            self._free(context)

    def _free(self, context: StoreContext) -> None:
        assert context.watch is not None
        assert context.task is not None
        self.device.bus.domain.forget(context.task)
        try:
            self.device.store.watch_remove(context.watch)
        except NtStatusError as error:
            # The driver asserts here; whoever closes a handle has nobody to tell.
            self.device.log(f"StoreFreeWatch: {error}")


def _path(irp: Irp) -> str:
    if not irp.buffer:
        raise bad_size("no path")
    return text_of(irp.buffer)


def _sized(irp: Irp, value: bytes) -> bytes:
    """The two-call protocol: first with no room, for the length, then with enough."""
    if not irp.out_size:
        irp.information = len(value)
        irp.complete(NTSTATUS.BUFFER_OVERFLOW)
        return b""
    if irp.out_size < len(value):
        raise bad_parameter(f"{len(value)} bytes do not fit into {irp.out_size}")
    return value


def _check_length(length: int) -> None:
    if not 0 < length <= PATH_LENGTH_MAX:
        raise bad_parameter(f"a path of {length} bytes")


def _capture(irp: Irp, address: int, length: int) -> str:
    """A path in the caller's memory: not checked, but cut at its length."""
    data = irp.process.read(address, length)[: length - 1]
    return data.split(b"\0", 1)[0].decode("utf-8", "replace")
