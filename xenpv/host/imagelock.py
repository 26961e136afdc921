"""Who may have an image open beside whom: flock(2), and the bytes that QEMU's tools lock.

Neither kind of lock sees the other. A writer excludes everybody else, readers exclude writers.
QEMU (block/file-posix.c) read-locks a byte for each permission that it uses, and another for
each that it does not share.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from errno import EACCES, EAGAIN, EINVAL, ENOENT, ENOSYS, EOPNOTSUPP, EPERM
from typing import Final

from xenpv.errors import ConfigError
from xenpv.host.imageio import ImageBusyError

# struct flock of a 64-bit Linux: type, whence, start, length, pid.
FLOCK: Final = struct.Struct("@hhqqi4x")
QEMU_USES: Final = 100
QEMU_SHARES_NOT: Final = 200
QEMU_READ: Final = 0
QEMU_WRITE: Final = 1
QEMU_RESIZE: Final = 3


def open_file(path: str, writable: bool) -> int:
    """A descriptor of an image; ConfigError says what is in the way."""
    # Not blocking on a FIFO: it is no image, and whoever measures it says so.
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags)
    except OSError as error:
        if error.errno == ENOENT:
            raise ConfigError(
                f"disk image {path} does not exist: truncate -s 64M makes an empty one"
            ) from None
        if error.errno in (EACCES, EPERM):
            wanted = "written" if writable else "read"
            kind = ImageBusyError if writable else ConfigError
            raise kind(
                f"disk image {path} may not be {wanted}: "
                f"chmod it, or give the disk access {'ro' if writable else 'to its owner'}"
            ) from None
        raise ConfigError(f"disk image {path} cannot be opened: {error.strerror}") from error


def check_mode(descriptor: int, path: str) -> bool:
    """Whether it is a block device; ConfigError if it is no file either."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISBLK(mode):
        return True
    if not stat.S_ISREG(mode):
        raise ConfigError(f"disk image {path} is neither a file nor a block device")
    return False


def flock(descriptor: int, path: str, writable: bool) -> None:
    """ImageBusyError if another has it."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if writable else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise in_use(path, writable) from None
    except OSError as error:
        if error.errno not in (EINVAL, ENOSYS, EOPNOTSUPP):
            raise ConfigError(f"disk image {path} cannot be locked: {error}") from error


def lock_bytes(descriptor: int, path: str, writable: bool) -> None:
    """As QEMU would, by OFD locks. ImageBusyError if another has it."""
    held = [QEMU_USES + QEMU_READ, QEMU_SHARES_NOT + QEMU_WRITE]
    barred = [QEMU_USES + QEMU_WRITE, QEMU_SHARES_NOT + QEMU_READ]
    if writable:
        held += [QEMU_USES + QEMU_WRITE, QEMU_SHARES_NOT + QEMU_RESIZE]
        barred += [QEMU_USES + QEMU_RESIZE, QEMU_SHARES_NOT + QEMU_WRITE]
    try:
        for byte in held:
            request = FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
        for byte in barred:
            request = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
            answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, request)
            if FLOCK.unpack(answer)[0] != fcntl.F_UNLCK:
                raise in_use(path, writable)
    except OSError as error:
        if error.errno in (EAGAIN, EACCES):
            raise in_use(path, writable) from None
        if error.errno not in (EINVAL, ENOSYS, EOPNOTSUPP):
            raise ConfigError(f"disk image {path} cannot be locked: {error}") from error


def in_use(path: str, writable: bool) -> ImageBusyError:
    wants = "write to it" if writable else "read a still image"
    return ImageBusyError(
        f"disk image {path} is in use: another process holds it, or another disk of a "
        f"guest, and this one wants to {wants}"
    )
