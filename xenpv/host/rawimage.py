"""A raw file or a block device as a disk. Offsets and lengths are bytes."""

from __future__ import annotations

import fcntl
import os
import struct
from errno import EINVAL, ENOSYS, EOPNOTSUPP
from typing import Final

from xenpv.errors import ConfigError
from xenpv.host.imageio import (
    SECTOR,
    ImageBusyError,
    ImageError,
    ImageShortError,
    ImageUnsupportedError,
    Sectors,
)
from xenpv.host.imagelock import check_mode, flock, lock_bytes, open_file

# <linux/fs.h>
BLKROGET: Final = 0x125E
BLKSSZGET: Final = 0x1268
BLKDISCARD: Final = 0x1277
BLKPBSZGET: Final = 0x127B
BLKGETSIZE64: Final = 0x80081272

# <linux/falloc.h>
FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2


class RawImage:
    """A raw file or a block device, open and locked.

    `sectors`: what a disk of it has, as `losetup --sector-size` gives it to a file; None: 512,
    or those of the device. A writer excludes everybody else, readers exclude writers: by flock,
    and by the bytes that QEMU's tools lock. Raises ConfigError if the file is missing, not
    readable (or writable), in use, empty, or not a multiple of the sector. `holders` counts the
    disks that it serves: each closes it, the last in earnest.
    """

    __slots__ = (
        "_descriptor",
        "_discards",
        "_flush_failed",
        "_is_device",
        "buffer",
        "holders",
        "path",
        "physical_sector_size",
        "sector_size",
        "size_bytes",
        "writable",
    )
    size_bytes: int

    def __init__(self, path: str, writable: bool, sectors: Sectors | None = None) -> None:
        self.path = path
        self.writable = writable
        self.sector_size: int = SECTOR
        self.physical_sector_size: int = SECTOR
        self.buffer: None = None
        self._is_device: bool = False
        self._flush_failed: str = ""
        self._discards: bool = True
        self.holders = 1
        self._descriptor: int = open_file(self.path, self.writable)
        try:
            # OFD locks do not see flock's and the other way round, so both are taken.
            flock(self._descriptor, self.path, self.writable)
            lock_bytes(self._descriptor, self.path, self.writable)
            self._look(sectors)
        except BaseException:
            self.close()
            raise

    def _look(self, sectors: Sectors | None) -> None:
        self._is_device = check_mode(self._descriptor, self.path)
        if self._is_device:
            self.sector_size = self._ioctl_number(BLKSSZGET, 4)
            self.physical_sector_size = self._ioctl_number(BLKPBSZGET, 4)
            if self.writable and self._ioctl_number(BLKROGET, 4):
                raise ImageBusyError(f"disk {self.path} is a read-only device: use access ro")
        if sectors is not None:
            least = Sectors(self.sector_size, self.physical_sector_size)
            self.sector_size, self.physical_sector_size = sectors.within(least, self.path)
        self.size_bytes = self._measure()
        if not self.size_bytes:
            raise ConfigError(f"disk image {self.path} is empty: a disk has at least one sector")
        if self.size_bytes % self.sector_size:
            raise ConfigError(
                f"disk image {self.path} has {self.size_bytes} bytes, which is no multiple of "
                f"{self.sector_size}: truncate -s %{self.sector_size} makes it one"
            )

    def _measure(self) -> int:
        if self._is_device:
            return self._ioctl_number(BLKGETSIZE64, 8)
        return os.fstat(self._descriptor).st_size

    def _ioctl_number(self, request: int, size: int) -> int:
        answer = fcntl.ioctl(self._descriptor, request, bytes(size))
        return int.from_bytes(answer, "little")

    def measure(self) -> int:
        """Look at the size again: whole sectors of it are the disk from now on. ImageError."""
        try:
            size = self._measure()
        except OSError as error:
            raise ImageError(f"size of {self.path}: {error}") from error
        self.size_bytes = size - size % self.sector_size
        return self.size_bytes

    def resize(self, size_bytes: int) -> None:
        """truncate(1), then `measure`; a device has the size that its host gave it.

        ConfigError: it is no multiple of the sector, or of a device another than that.
        """
        if size_bytes <= 0 or size_bytes % self.sector_size:
            raise ConfigError(
                f"{self.path} cannot have {size_bytes} bytes: a disk has whole sectors of "
                f"{self.sector_size}, one at least"
            )
        try:
            if not self._is_device and size_bytes != self._measure():
                os.ftruncate(self._descriptor, size_bytes)
            has = self._measure()
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be resized: {error}") from error
        if has != size_bytes:
            raise ConfigError(f"device {self.path} has {has} bytes: resize its volume first")
        self.measure()

    def read_into(self, buffer: memoryview, offset: int) -> None:
        while buffer:
            try:
                done = os.preadv(self._descriptor, [buffer], offset)
            except OSError as error:
                raise ImageError(f"read of {self.path} at {offset}: {error}") from error
            if not done:
                raise ImageShortError(f"read of {self.path} at {offset}: the file ends there")
            buffer = buffer[done:]
            offset += done

    def write_from(self, buffer: memoryview, offset: int) -> None:
        if not self.writable:
            raise ImageError(f"{self.path} is read-only")
        # A file would grow, and then be no whole sectors, or another disk's end.
        if offset + buffer.nbytes > self.size_bytes:
            raise ImageError(f"write to {self.path} at {offset}: the disk ends before")
        while buffer:
            try:
                done = os.pwritev(self._descriptor, [buffer], offset)
            except OSError as error:
                raise ImageError(f"write to {self.path} at {offset}: {error}") from error
            if not done:
                raise ImageError(f"write to {self.path} at {offset}: nothing was written")
            buffer = buffer[done:]
            offset += done

    def flush(self) -> None:
        # The kernel reports a lost write-back once; what was lost stays lost.
        if self._flush_failed:
            raise ImageError(self._flush_failed)
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            if error.errno in (EINVAL, EOPNOTSUPP):
                raise ImageUnsupportedError(f"flush of {self.path}: {error}") from error
            self._flush_failed = f"flush of {self.path}: {error}"
            raise ImageError(self._flush_failed) from error

    def discard(self, offset: int, length: int) -> bool:
        if not self.writable:
            raise ImageError(f"{self.path} is read-only")
        if offset + length > self.size_bytes:
            raise ImageError(f"discard in {self.path} at {offset}: the disk ends before")
        if not self._discards:
            return False
        if not length:
            return True
        try:
            if self._is_device:
                fcntl.ioctl(self._descriptor, BLKDISCARD, struct.pack("@QQ", offset, length))
            else:
                punch_hole(self._descriptor, offset, length)
        except OSError as error:
            if error.errno in (EOPNOTSUPP, ENOSYS):
                self._discards = False
                return False
            raise ImageError(f"discard in {self.path} at {offset}: {error}") from error
        return True

    def fileno(self) -> int:
        """Its descriptor, for who moves data without a copy; -1 once it is closed."""
        return self._descriptor

    def is_at(self, path: str) -> bool:
        """Whether it is open, and the file that this path names."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(path))  # noqa: PTH116 - pathlib is slow to import
        except OSError:
            return False

    def close(self) -> None:
        self.holders -= 1
        if self.holders <= 0 and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def punch_hole(descriptor: int, offset: int, length: int) -> None:
    """fallocate(2), which the os module has only without its mode."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.fallocate(
        ctypes.c_int(descriptor),
        ctypes.c_int(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE),
        ctypes.c_int64(offset),
        ctypes.c_int64(length),
    )
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
