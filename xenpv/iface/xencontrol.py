"""xencontrol, the library over XENIFACE's IOCTLs: one process's calls, failing as Win32Error.

win-xeniface xencontrol.c; `call` has its names. It has no calls for suspend events and for the
time, this one does.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.errors import LocalProtocolError, XenpvError
from xenpv.iface import ioctl, ioctl_evtchn, ioctl_gnttab, ioctl_store
from xenpv.iface.ioctl import CODES, Irp, device_io_control, open_device

if TYPE_CHECKING:
    from xenpv.iface.device import XenIface
    from xenpv.iface.process import Event, Process

ERROR_IO_PENDING: Final = 997
ERROR_MR_MID_NOT_FOUND: Final = 317  # what RtlNtStatusToDosError has for the rest
LEVEL_ERROR: Final = 1
LEVEL_INFO: Final = 3
LEVEL_TRACE: Final = 5

# RtlNtStatusToDosError, for what XENIFACE answers.
WIN32: Final[Mapping[NTSTATUS, int]] = {
    NTSTATUS.SUCCESS: 0,
    NTSTATUS.NOT_IMPLEMENTED: 1,
    NTSTATUS.INVALID_DEVICE_REQUEST: 1,
    NTSTATUS.OBJECT_NAME_NOT_FOUND: 2,
    NTSTATUS.OBJECT_PATH_NOT_FOUND: 3,
    NTSTATUS.ACCESS_DENIED: 5,
    NTSTATUS.FILE_IS_A_DIRECTORY: 5,
    NTSTATUS.INVALID_HANDLE: 6,
    NTSTATUS.OBJECT_TYPE_MISMATCH: 6,
    NTSTATUS.NO_MEMORY: 8,
    NTSTATUS.MEDIA_WRITE_PROTECTED: 19,
    NTSTATUS.DEVICE_NOT_READY: 21,
    NTSTATUS.UNSUCCESSFUL: 31,
    NTSTATUS.NOT_SUPPORTED: 50,
    NTSTATUS.INVALID_PARAMETER: 87,
    NTSTATUS.BUFFER_TOO_SMALL: 122,
    NTSTATUS.DIRECTORY_NOT_EMPTY: 145,
    NTSTATUS.PIPE_BUSY: 231,
    NTSTATUS.BUFFER_OVERFLOW: 234,
    NTSTATUS.PIPE_CONNECTED: 535,
    NTSTATUS.CANCELLED: 995,
    NTSTATUS.PENDING: ERROR_IO_PENDING,
    NTSTATUS.ACCESS_VIOLATION: 998,
    NTSTATUS.NOT_FOUND: 1168,
    NTSTATUS.RETRY: 1237,
    NTSTATUS.INSUFFICIENT_RESOURCES: 1450,
    NTSTATUS.INVALID_BUFFER_SIZE: 1784,
    NTSTATUS.QUOTA_EXCEEDED: 1816,
}

# The names of xencontrol.h, and this module's.
FUNCTIONS: Final[Mapping[str, str]] = {
    "XcClose": "close",
    "XcRegisterLogger": "register_logger",
    "XcSetLogLevel": "set_log_level",
    "XcEvtchnOpenUnbound": "evtchn_open_unbound",
    "XcEvtchnBindInterdomain": "evtchn_bind_interdomain",
    "XcEvtchnClose": "evtchn_close",
    "XcEvtchnNotify": "evtchn_notify",
    "XcEvtchnUnmask": "evtchn_unmask",
    "XcGnttabPermitForeignAccess": "gnttab_permit_foreign_access",
    "XcGnttabPermitForeignAccess2": "gnttab_permit_foreign_access2",
    "XcGnttabRevokeForeignAccess": "gnttab_revoke_foreign_access",
    "XcGnttabMapForeignPages": "gnttab_map_foreign_pages",
    "XcGnttabUnmapForeignPages": "gnttab_unmap_foreign_pages",
    "XcStoreRead": "store_read",
    "XcStoreWrite": "store_write",
    "XcStoreDirectory": "store_directory",
    "XcStoreRemove": "store_remove",
    "XcStoreSetPermissions": "store_set_permissions",
    "XcStoreAddWatch": "store_add_watch",
    "XcStoreRemoveWatch": "store_remove_watch",
}


class Win32Error(XenpvError):
    """A call failed; `code` is GetLastError(), `status` the driver's where it gave one."""

    def __init__(self, status: NTSTATUS, reason: str = "") -> None:
        self.status = status
        self.code = WIN32.get(status, ERROR_MR_MID_NOT_FOUND)
        super().__init__(f"error {self.code} ({status.name}){': ' if reason else ''}{reason}")


class XenControl:
    """An open XENIFACE in one process. Each call raises Win32Error.

    Events are handles of `process`: `create_event`, then `event(handle)` to look at it.
    """

    def __init__(self, device: XenIface, process: Process) -> None:
        self.process = process
        self.log_level = LEVEL_INFO
        self._logger: Callable[[int, str], object] | None = None
        try:
            self.handle = open_device(device, process)
        except NtStatusError as error:
            raise Win32Error(error.status, error.reason) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.exit()

    def exit(self) -> None:
        """The process ends, and with it everything that it had."""
        self.process.exit()

    def create_event(self, *, auto_reset: bool = True) -> int:
        """CreateEvent: the handle of an event that is not set."""
        return self.process.create_event(auto_reset=auto_reset)

    def event(self, handle: int) -> Event:
        return self.process.event(handle)

    def call(self, name: str, *arguments: Any, **named: Any) -> tuple[int, Any]:
        """A function by its C name: the Win32 error, 0 for success, and the result."""
        try:
            return 0, getattr(self, FUNCTIONS[name])(*arguments, **named)
        except Win32Error as error:
            return error.code, None

    def close(self) -> None:
        """XcClose: watches, ports and suspend events go; grants and maps stay to the process."""
        try:
            self.process.close_handle(self.handle)
        except NtStatusError as error:
            raise Win32Error(error.status, error.reason) from error

    def register_logger(self, logger: Callable[[int, str], object] | None) -> None:
        """`logger(level, text)` is called for messages up to the level."""
        self._logger = logger

    def set_log_level(self, level: int) -> None:
        """From LEVEL_ERROR to LEVEL_TRACE; LEVEL_INFO at the start."""
        if not LEVEL_ERROR <= level <= LEVEL_TRACE:
            raise LocalProtocolError(f"log level {level} is not from 1 to 5")
        self.log_level = level

    def _log(self, level: int, text: str) -> None:
        if self._logger is not None and level <= self.log_level:
            self._logger(level, text)

    def _control(self, name: str, buffer: bytes = b"", out_size: int = 0, thread: int = 0) -> Irp:
        self._log(LEVEL_TRACE, name)
        irp = device_io_control(
            self.process, self.handle, CODES[name], buffer, out_size, thread=thread
        )
        if irp.status not in (NTSTATUS.SUCCESS, NTSTATUS.PENDING, NTSTATUS.BUFFER_OVERFLOW):
            self._log(LEVEL_ERROR, f"IOCTL_XENIFACE_{name} failed: {irp.status.name}")
            raise Win32Error(irp.status, name)
        return irp

    # event channels

    def evtchn_open_unbound(self, domain: int, event: int, mask: bool = False) -> int:
        """A port that `domain` may bind to; `mask`: no event before evtchn_unmask."""
        buffer = ioctl_evtchn.BIND_UNBOUND_IN.pack(domain, mask, event)
        return self._u32("EVTCHN_BIND_UNBOUND", buffer)

    def evtchn_bind_interdomain(
        self, domain: int, remote_port: int, event: int, mask: bool = False
    ) -> int:
        """A port bound to one of `domain`."""
        buffer = ioctl_evtchn.BIND_INTERDOMAIN_IN.pack(domain, remote_port, mask, event)
        return self._u32("EVTCHN_BIND_INTERDOMAIN", buffer)

    def _u32(self, name: str, buffer: bytes = b"") -> int:
        return int.from_bytes(self._control(name, buffer, 4).output, "little")

    def evtchn_close(self, port: int) -> None:
        self._control("EVTCHN_CLOSE", ioctl_evtchn.PORT.pack(port))

    def evtchn_notify(self, port: int) -> None:
        self._control("EVTCHN_NOTIFY", ioctl_evtchn.PORT.pack(port))

    def evtchn_unmask(self, port: int) -> None:
        self._control("EVTCHN_UNMASK", ioctl_evtchn.PORT.pack(port))

    # grants

    def gnttab_permit_foreign_access(
        self, domain: int, nr_pages: int, notify_offset: int = 0, notify_port: int = 0,
        flags: int = 0,
    ) -> tuple[int, list[int]]:  # fmt: skip
        """New pages for `domain`: their address in the process, and the references."""
        return self.gnttab_permit_foreign_access2(
            domain, 0, nr_pages, notify_offset, notify_port, flags
        )

    def gnttab_permit_foreign_access2(
        self, domain: int, address: int, nr_pages: int, notify_offset: int = 0,
        notify_port: int = 0, flags: int = 0, *, thread: int = 0,
    ) -> tuple[int, list[int]]:  # fmt: skip
        """The same for the process's own pages at `address`; 0: new ones."""
        buffer = ioctl_gnttab.PERMIT_IN.pack(
            domain, address, nr_pages, flags, notify_offset, notify_port
        )
        name = "GNTTAB_PERMIT_FOREIGN_ACCESS_V2"
        irp = self._control(name, buffer, 8 + 4 * nr_pages, thread)
        base, *refs = struct.unpack(f"<Q{nr_pages}I", irp.output)
        return base, refs

    def gnttab_revoke_foreign_access(self, address: int) -> None:
        self._control("GNTTAB_REVOKE_FOREIGN_ACCESS_V2", ioctl_gnttab.ADDRESS.pack(address))

    def gnttab_map_foreign_pages(
        self, domain: int, references: Sequence[int], notify_offset: int = 0,
        notify_port: int = 0, flags: int = 0, *, thread: int = 0,
    ) -> int:  # fmt: skip
        """The address of pages of `domain` in the process."""
        buffer = ioctl_gnttab.MAP_IN.pack(
            domain, len(references), flags, notify_offset, notify_port
        )
        buffer += b"".join(map(ioctl_gnttab.REFERENCE.pack, references))
        irp = self._control("GNTTAB_MAP_FOREIGN_PAGES_V2", buffer, 8, thread)
        return int.from_bytes(irp.output, "little")

    def gnttab_unmap_foreign_pages(self, address: int) -> None:
        self._control("GNTTAB_UNMAP_FOREIGN_PAGES_V2", ioctl_gnttab.ADDRESS.pack(address))

    # the store

    def store_read(self, path: str) -> str:
        return self._two_calls("STORE_READ", path)[:-1].decode()

    def store_directory(self, path: str) -> list[str]:
        """Names of the children; error 3 where there are none."""
        return self._two_calls("STORE_DIRECTORY", path)[:-2].decode().split("\0")

    def _two_calls(self, name: str, path: str) -> bytes:
        """First for the length, then for the value."""
        buffer = path.encode() + b"\0"
        size = self._control(name, buffer).information
        return self._control(name, buffer, size).output

    def store_write(self, path: str, value: str) -> None:
        self._control("STORE_WRITE", path.encode() + b"\0" + value.encode() + b"\0")

    def store_remove(self, path: str) -> None:
        self._control("STORE_REMOVE", path.encode() + b"\0")

    def store_set_permissions(self, path: str, entries: Sequence[tuple[int, int]]) -> None:
        """`entries`: (domid, READ 1 | WRITE 2) each; the first is of the owner."""
        with _Text(self.process, path) as (address, length):
            buffer = ioctl_store.SET_PERMISSIONS_IN.pack(address, length, len(entries))
            buffer += b"".join(ioctl_store.PERMISSION.pack(*entry) for entry in entries)
            self._control("STORE_SET_PERMISSIONS", buffer)

    def store_add_watch(self, path: str, event: int) -> int:
        """A handle; the event is set once now and after each change, until a suspend."""
        with _Text(self.process, path) as (address, length):
            buffer = ioctl_store.ADD_WATCH_IN.pack(address, length, event)
            return int.from_bytes(self._control("STORE_ADD_WATCH", buffer, 8).output, "little")

    def store_remove_watch(self, watch: int) -> None:
        self._control("STORE_REMOVE_WATCH", ioctl_store.CONTEXT.pack(watch))

    # what the library lacks

    def suspend_get_count(self) -> int:
        """To compare for inequality."""
        return self._u32("SUSPEND_GET_COUNT")

    def suspend_register(self, event: int) -> int:
        """A handle; the event is set after each resume in a new domain."""
        buffer = event.to_bytes(8, "little")
        return int.from_bytes(self._control("SUSPEND_REGISTER", buffer, 8).output, "little")

    def suspend_deregister(self, registration: int) -> None:
        self._control("SUSPEND_DEREGISTER", registration.to_bytes(8, "little"))

    def get_time(self) -> tuple[int, bool]:
        """100 ns since 1601, and whether that is local time."""
        irp = self._control("SHAREDINFO_GET_TIME", b"", ioctl.TIME_OUT.size)
        time, local = ioctl.TIME_OUT.unpack(irp.output)
        return time, bool(local)

    def log(self, text: str) -> None:
        """A line of the guest's log: at most 255 printable characters."""
        self._control("LOG", text.encode() + b"\0")


class _Text:
    """A string in the memory of a process, for as long as a call takes."""

    def __init__(self, process: Process, text: str) -> None:
        self.process = process
        self.data = text.encode() + b"\0"
        self.address = 0

    def __enter__(self) -> tuple[int, int]:
        self.address = self.process.alloc(len(self.data))
        self.process.write(self.address, self.data)
        return self.address, len(self.data)

    def __exit__(self, *_error: object) -> None:
        self.process.free(self.address)
