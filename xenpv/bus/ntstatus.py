"""NTSTATUS: what the interfaces of the Windows drivers answer, and what it is made from.

ntstatus.h for the values; win-xenbus store.c and gnttab.c for the maps of errors to them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from errno import (
    EACCES,
    EAGAIN,
    EBUSY,
    EEXIST,
    EINVAL,
    EIO,
    EISCONN,
    EISDIR,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENOSYS,
    ENOTEMPTY,
    EPERM,
    EROFS,
)
from typing import Final

from xenpv.errors import GrantError, HypercallError, StoreError, XenpvError


class NTSTATUS(enum.IntEnum):
    """STATUS_ names without their prefix."""

    SUCCESS = 0
    TIMEOUT = 0x0000_0102  # counts as success
    PENDING = 0x0000_0103
    OBJECT_NAME_EXISTS = 0x4000_0000
    BUFFER_OVERFLOW = 0x8000_0005  # a warning, which NT_SUCCESS takes for a failure
    UNSUCCESSFUL = 0xC000_0001
    NOT_IMPLEMENTED = 0xC000_0002
    ACCESS_VIOLATION = 0xC000_0005
    INVALID_HANDLE = 0xC000_0008
    INVALID_PARAMETER = 0xC000_000D
    NO_SUCH_DEVICE = 0xC000_000E
    INVALID_DEVICE_REQUEST = 0xC000_0010
    NO_MEMORY = 0xC000_0017
    ACCESS_DENIED = 0xC000_0022
    BUFFER_TOO_SMALL = 0xC000_0023
    OBJECT_TYPE_MISMATCH = 0xC000_0024
    OBJECT_NAME_NOT_FOUND = 0xC000_0034
    OBJECT_PATH_NOT_FOUND = 0xC000_003A
    QUOTA_EXCEEDED = 0xC000_0044
    DELETE_PENDING = 0xC000_0056
    INSUFFICIENT_RESOURCES = 0xC000_009A
    MEDIA_WRITE_PROTECTED = 0xC000_00A2
    DEVICE_NOT_READY = 0xC000_00A3
    PIPE_BUSY = 0xC000_00AE
    PIPE_CONNECTED = 0xC000_00B2
    FILE_IS_A_DIRECTORY = 0xC000_00BA
    NOT_SUPPORTED = 0xC000_00BB
    UNEXPECTED_IO_ERROR = 0xC000_00E9
    DIRECTORY_NOT_EMPTY = 0xC000_0101
    CANCELLED = 0xC000_0120
    INVALID_DEVICE_STATE = 0xC000_0184
    INVALID_BUFFER_SIZE = 0xC000_0206
    TRANSACTION_TIMED_OUT = 0xC000_0210
    NOT_FOUND = 0xC000_0225
    OBJECTID_EXISTS = 0xC000_022B
    RETRY = 0xC000_022D
    WMI_INSTANCE_NOT_FOUND = 0xC000_0296
    WMI_ITEMID_NOT_FOUND = 0xC000_0297
    PNP_REBOOT_REQUIRED = 0xC000_02D2
    INCOMPATIBLE_DRIVER_BLOCKED = 0xC000_0424
    REQUEST_OUT_OF_SEQUENCE = 0xC000_042A

    @property
    def is_success(self) -> bool:
        """NT_SUCCESS: success and informational values, not warnings."""
        return self < 0x8000_0000


class NtStatusError(XenpvError):
    """An operation of a Windows driver's interface failed; `status` is what it returned.

    `operation` is its name in the driver ("STORE Read"), `reason` why, where that is known.
    """

    def __init__(self, status: NTSTATUS, reason: str = "", *, operation: str = "") -> None:
        self.status = status
        self.operation = operation
        self.reason = reason
        super().__init__(": ".join(part for part in (status.name, operation, reason) if part))


FROM_ERRNO: Final[Mapping[int, NTSTATUS]] = {
    EINVAL: NTSTATUS.INVALID_PARAMETER,
    EACCES: NTSTATUS.ACCESS_DENIED,
    EPERM: NTSTATUS.ACCESS_DENIED,
    EEXIST: NTSTATUS.OBJECTID_EXISTS,
    EISDIR: NTSTATUS.FILE_IS_A_DIRECTORY,
    ENOENT: NTSTATUS.OBJECT_NAME_NOT_FOUND,
    ENOMEM: NTSTATUS.NO_MEMORY,
    ENOSPC: NTSTATUS.INSUFFICIENT_RESOURCES,
    EIO: NTSTATUS.UNEXPECTED_IO_ERROR,
    ENOTEMPTY: NTSTATUS.DIRECTORY_NOT_EMPTY,
    ENOSYS: NTSTATUS.NOT_IMPLEMENTED,
    EROFS: NTSTATUS.MEDIA_WRITE_PROTECTED,
    EBUSY: NTSTATUS.PIPE_BUSY,
    EAGAIN: NTSTATUS.RETRY,
    EISCONN: NTSTATUS.PIPE_CONNECTED,
}

# On the wire an error of the store is a name; EPERM is none that its driver knows.
FROM_STORE: Final[Mapping[str, NTSTATUS]] = {
    "EINVAL": NTSTATUS.INVALID_PARAMETER,
    "EACCES": NTSTATUS.ACCESS_DENIED,
    "EEXIST": NTSTATUS.OBJECTID_EXISTS,
    "EISDIR": NTSTATUS.FILE_IS_A_DIRECTORY,
    "ENOENT": NTSTATUS.OBJECT_NAME_NOT_FOUND,
    "ENOMEM": NTSTATUS.NO_MEMORY,
    "ENOSPC": NTSTATUS.INSUFFICIENT_RESOURCES,
    "EIO": NTSTATUS.UNEXPECTED_IO_ERROR,
    "ENOTEMPTY": NTSTATUS.DIRECTORY_NOT_EMPTY,
    "ENOSYS": NTSTATUS.NOT_IMPLEMENTED,
    "EROFS": NTSTATUS.MEDIA_WRITE_PROTECTED,
    "EBUSY": NTSTATUS.PIPE_BUSY,
    "EAGAIN": NTSTATUS.RETRY,
    "EISCONN": NTSTATUS.PIPE_CONNECTED,
    "EQUOTA": NTSTATUS.QUOTA_EXCEEDED,
}

# Every other GNTST_ is UNSUCCESSFUL.
FROM_GNTST: Final[Mapping[int, NTSTATUS]] = {
    0: NTSTATUS.SUCCESS,
    -4: NTSTATUS.INVALID_HANDLE,
    -8: NTSTATUS.ACCESS_DENIED,
    -12: NTSTATUS.RETRY,
}


def status_of(error: XenpvError) -> NTSTATUS:
    """What a driver returns for a failure of the hypervisor or of xenstored."""
    if isinstance(error, NtStatusError):
        return error.status
    if isinstance(error, HypercallError):
        return FROM_ERRNO.get(error.errno, NTSTATUS.UNSUCCESSFUL)
    if isinstance(error, GrantError):
        return FROM_GNTST.get(error.status, NTSTATUS.UNSUCCESSFUL)
    if isinstance(error, StoreError):
        return FROM_STORE.get(error.name, NTSTATUS.UNSUCCESSFUL)
    return NTSTATUS.UNSUCCESSFUL
