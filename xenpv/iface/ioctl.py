"""The IOCTL surface of XENIFACE: codes, sizes, files and the checks that come first.

win-xeniface include/xeniface_ioctls.h and ioctls.c, on x64. What each code does is in
ioctl_store, ioctl_evtchn, ioctl_gnttab and ioctl_suspend.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.iface.security import DEVICE_SDDL, check

if TYPE_CHECKING:
    from xenpv.iface.device import XenIface
    from xenpv.iface.process import Process

FILE_DEVICE_UNKNOWN: Final = 0x22
LOG_SIZE_MAX: Final = 256  # bytes with the NUL
TIME_OUT: Final = struct.Struct("<QB3x")  # XENIFACE_SHAREDINFO_GET_TIME_OUT


class Transfer(enum.IntEnum):
    """How the I/O manager hands buffers over."""

    BUFFERED = 0
    NEITHER = 3


class Access(enum.Flag):
    """What a handle was opened for."""

    NONE = 0
    READ = 1
    WRITE = 2
    READ_WRITE = 3


def ctl_code(function: int, transfer: Transfer = Transfer.BUFFERED) -> int:
    """CTL_CODE(FILE_DEVICE_UNKNOWN, function, transfer, FILE_ANY_ACCESS)."""
    return FILE_DEVICE_UNKNOWN << 16 | function << 2 | transfer


@attrs.frozen
class Ioctl:
    """One code. Sizes in bytes, None where the handler judges them itself."""

    function: int
    name: str
    in_size: int | None
    out_size: int | None
    transfer: Transfer = Transfer.BUFFERED
    legacy: bool = False

    @property
    def code(self) -> int:
        return ctl_code(self.function, self.transfer)


IOCTLS: Final = (
    Ioctl(0x800, "STORE_READ", None, None),
    Ioctl(0x801, "STORE_WRITE", None, 0),
    Ioctl(0x802, "STORE_DIRECTORY", None, None),
    Ioctl(0x803, "STORE_REMOVE", None, 0),
    Ioctl(0x804, "STORE_SET_PERMISSIONS", None, 0),
    Ioctl(0x805, "STORE_ADD_WATCH", 24, 8),
    Ioctl(0x806, "STORE_REMOVE_WATCH", 8, 0),
    Ioctl(0x810, "EVTCHN_BIND_INTERDOMAIN", 24, 4),
    Ioctl(0x811, "EVTCHN_BIND_UNBOUND", 16, 4),
    Ioctl(0x812, "EVTCHN_CLOSE", 4, 0),
    Ioctl(0x813, "EVTCHN_NOTIFY", 4, 0),
    Ioctl(0x814, "EVTCHN_UNMASK", 4, 0),
    Ioctl(0x820, "GNTTAB_PERMIT_FOREIGN_ACCESS", None, None, Transfer.NEITHER, legacy=True),
    Ioctl(0x821, "GNTTAB_REVOKE_FOREIGN_ACCESS", None, None, legacy=True),
    Ioctl(0x822, "GNTTAB_MAP_FOREIGN_PAGES", None, None, Transfer.NEITHER, legacy=True),
    Ioctl(0x823, "GNTTAB_UNMAP_FOREIGN_PAGES", None, None, legacy=True),
    Ioctl(0x824, "GNTTAB_PERMIT_FOREIGN_ACCESS_V2", 32, None, Transfer.NEITHER),
    Ioctl(0x825, "GNTTAB_REVOKE_FOREIGN_ACCESS_V2", 8, 0),
    Ioctl(0x826, "GNTTAB_MAP_FOREIGN_PAGES_V2", None, 8, Transfer.NEITHER),
    Ioctl(0x827, "GNTTAB_UNMAP_FOREIGN_PAGES_V2", 8, 0),
    Ioctl(0x830, "SUSPEND_GET_COUNT", 0, 4),
    Ioctl(0x831, "SUSPEND_REGISTER", 8, 8),
    Ioctl(0x832, "SUSPEND_DEREGISTER", 8, 0),
    Ioctl(0x840, "SHAREDINFO_GET_TIME", 0, 12),
    Ioctl(0x84F, "LOG", None, 0),
)
BY_CODE: Final[Mapping[int, Ioctl]] = {ioctl.code: ioctl for ioctl in IOCTLS}
CODES: Final[Mapping[str, int]] = {ioctl.name: ioctl.code for ioctl in IOCTLS}


class Irp:
    """A request, and its outcome. `information` is the I/O manager's count of bytes.

    A grant or a map stays PENDING for its life, with its output written already.
    """

    __slots__ = ("buffer", "cancelled", "file", "information", "out_size", "output", "process",
                 "status", "thread")  # fmt: skip

    def __init__(
        self, file: FileObject, process: Process, buffer: bytes, out_size: int, thread: int
    ) -> None:
        self.file = file
        self.process = process
        self.buffer = buffer
        self.out_size = out_size
        self.thread = thread
        self.status = NTSTATUS.PENDING
        self.output = b""
        self.information = 0
        self.cancelled: Callable[[Irp], object] | None = None

    def complete(self, status: NTSTATUS) -> None:
        if self in self.process.pending:
            self.process.pending.remove(self)
        self.cancelled = None
        self.status = status

    def cancel(self) -> None:
        """CancelIoEx: CANCELLED, after what a revoke or unmap does. Else nothing happens."""
        if self.cancelled is not None:
            self.cancelled(self)


class FileObject:
    """An opened device. What is bound through it goes when its last handle is closed."""

    def __init__(self, device: XenIface, access: Access) -> None:
        self.device = device
        self.access = access
        self.handles = 0

    def handle_opened(self) -> None:
        self.handles += 1

    def handle_closed(self) -> None:
        """IRP_MJ_CLEANUP after the last one."""
        self.handles -= 1
        if not self.handles:
            self.device.cleanup(self)


def open_device(device: XenIface, process: Process, access: Access = Access.READ_WRITE) -> int:
    """CreateFile: a handle. ACCESS_DENIED by the device's security; else also in D3."""
    check(DEVICE_SDDL, process.principal, "open XENIFACE")
    return process.insert(FileObject(device, access))


def device_io_control(
    process: Process, handle: int, code: int, buffer: bytes = b"", out_size: int = 0,
    *, thread: int = 0,
) -> Irp:  # fmt: skip
    """DeviceIoControl by one thread of a process, on a handle of it. Raises nothing.

    INVALID_HANDLE for a handle that is closed, OBJECT_TYPE_MISMATCH for one of another kind.
    """
    try:
        file = process.object(handle)
    except NtStatusError as error:
        return _refused(process, error.status)
    if not isinstance(file, FileObject):
        return _refused(process, NTSTATUS.OBJECT_TYPE_MISMATCH)
    irp = Irp(file, process, bytes(buffer), out_size, thread)
    try:
        _dispatch(irp, code)
    except NtStatusError as error:
        irp.complete(error.status)
    return irp


def _refused(process: Process, status: NTSTATUS) -> Irp:
    irp = Irp.__new__(Irp)
    irp.process, irp.status, irp.output, irp.information = process, status, b"", 0
    irp.cancelled = None
    return irp


def _dispatch(irp: Irp, code: int) -> None:
    device = irp.file.device
    if not device.interfaces_acquired:
        raise NtStatusError(NTSTATUS.DEVICE_NOT_READY, "XENIFACE is in D3")
    if irp.file.access != Access.READ_WRITE:
        raise NtStatusError(NTSTATUS.ACCESS_DENIED, "not opened for reading and writing")
    ioctl = BY_CODE.get(code)
    if ioctl is None:
        raise NtStatusError(NTSTATUS.INVALID_DEVICE_REQUEST, f"code {code:#x}")
    if ioctl.legacy:
        raise NtStatusError(NTSTATUS.NOT_SUPPORTED, f"{ioctl.name}: use its V2")
    if ioctl.in_size is not None and len(irp.buffer) != ioctl.in_size:
        raise bad_size(f"{ioctl.name}: {len(irp.buffer)} bytes in, not {ioctl.in_size}")
    if ioctl.out_size is not None and irp.out_size != ioctl.out_size:
        raise bad_size(f"{ioctl.name}: {irp.out_size} bytes out, not {ioctl.out_size}")
    output = device.handlers[ioctl.function](irp)
    if output is None:
        irp.process.pending.append(irp)
        return
    if irp.status is NTSTATUS.PENDING:
        irp.output, irp.information = output, len(output)
        irp.complete(NTSTATUS.SUCCESS)


def bad_size(reason: str) -> NtStatusError:
    return NtStatusError(NTSTATUS.INVALID_BUFFER_SIZE, reason)


def bad_parameter(reason: str) -> NtStatusError:
    return NtStatusError(NTSTATUS.INVALID_PARAMETER, reason)


def text_of(buffer: bytes, *, also: bytes = b"") -> str:
    """The string at the start of a buffer: printable ASCII, or one of `also`, up to a NUL.

    Raises NtStatusError INVALID_PARAMETER, also where there is no NUL.
    """
    text, nul, _ = buffer.partition(b"\0")
    if not nul:
        raise bad_parameter("no NUL ends the string")
    if any(not 0x20 <= byte < 0x7F and byte not in also for byte in text):
        raise bad_parameter("the string is not printable")
    return text.decode("ascii")


def get_time(irp: Irp) -> bytes:
    """0x840: FILETIME and whether it is local time."""
    time, local = irp.file.device.get_time()
    return TIME_OUT.pack(time, local)


def log(irp: Irp) -> bytes:
    """0x84F: a line of the guest's log."""
    if not 0 < len(irp.buffer) <= LOG_SIZE_MAX:
        raise bad_size(f"{len(irp.buffer)} bytes to log")
    text = text_of(irp.buffer, also=b"\r\n").rstrip("\r\n")
    irp.file.device.log(f"USER: {text}")
    return b""
