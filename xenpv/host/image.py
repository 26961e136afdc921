"""Disk images: what a block backend reads and writes.

A raw file or a block device, a buffer in memory, and the provider that turns the key
`params` of a backend directory into one of them. Offsets and lengths are bytes.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import struct
from errno import EACCES, EAGAIN, EINVAL, ENOENT, ENOSYS, EOPNOTSUPP, EPERM
from pathlib import Path
from typing import Final, Protocol

from xenpv.errors import ConfigError, LocalProtocolError, XenpvError

SECTOR: Final = 512

# <linux/fs.h>
BLKROGET: Final = 0x125E
BLKSSZGET: Final = 0x1268
BLKDISCARD: Final = 0x1277
BLKPBSZGET: Final = 0x127B
BLKGETSIZE64: Final = 0x80081272

# <linux/falloc.h>
FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2

# struct flock of a 64-bit Linux: type, whence, start, length, pid.
FLOCK: Final = struct.Struct("@hhqqi4x")
# QEMU's image locking: a byte for each permission in use, another for each not shared.
QEMU_USES: Final = 100
QEMU_SHARES_NOT: Final = 200
QEMU_READ: Final = 0
QEMU_WRITE: Final = 1
QEMU_RESIZE: Final = 3

DISCARD_CHUNK: Final = 1 << 20  # bytes

# params may carry a format or a block script's type before the path.
PREFIXES: Final = ("raw:", "aio:", "phy:", "file:")


class ImageError(XenpvError):
    """The host could not do an I/O on an image: a short read, EIO, ENOSPC, or it is read-only."""


class ImageBusyError(ConfigError):
    """Somebody else has it, or it may not be written: what a block script calls `busy`."""


class Image(Protocol):
    """What blkback needs of a disk. Every method but `close` raises ImageError.

    `buffer` is the disk itself where it lies in memory, for copies without a detour, and
    None elsewhere; who has it need not call `read_into` and `write_from`.
    """

    @property
    def size_bytes(self) -> int: ...

    @property
    def sector_size(self) -> int:
        """Logical: what offsets and lengths must be multiples of."""

    @property
    def physical_sector_size(self) -> int: ...

    @property
    def writable(self) -> bool: ...

    @property
    def buffer(self) -> memoryview | None: ...

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the whole buffer from `offset` on."""

    def write_from(self, buffer: memoryview, offset: int) -> None:
        """Write the whole buffer at `offset`."""

    def flush(self) -> None:
        """Everything written so far is on stable storage when this returns."""

    def discard(self, offset: int, length: int) -> bool:
        """The range is no longer of use, and reads zero; False if that is not supported."""

    def close(self) -> None:
        """Give it back; a second call does nothing."""


class RawImage:
    """A raw file or a block device, open and locked.

    A writer excludes everybody else, readers exclude writers: by flock, and by the bytes
    that QEMU's tools lock. Raises ConfigError if the file is missing, not readable (or
    writable), in use, empty, or not a multiple of the sector. `holders` counts the disks that
    it serves: each closes it, the last in earnest.
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

    def __init__(self, path: str, writable: bool) -> None:
        self.path = path
        self.writable = writable
        self.sector_size: int = SECTOR
        self.physical_sector_size: int = SECTOR
        self.buffer: None = None
        self._descriptor: int = -1
        self._is_device: bool = False
        self._flush_failed: str = ""
        self._discards: bool = True
        self.holders = 1
        self._descriptor = _open(self.path, self.writable)
        try:
            self._lock()
            self._measure()
        except BaseException:
            self.close()
            raise

    def _measure(self) -> None:
        status = os.fstat(self._descriptor)
        if stat.S_ISBLK(status.st_mode):
            self._is_device = True
            self.size_bytes = self._ioctl_number(BLKGETSIZE64, 8)
            self.sector_size = self._ioctl_number(BLKSSZGET, 4)
            self.physical_sector_size = self._ioctl_number(BLKPBSZGET, 4)
            if self.writable and self._ioctl_number(BLKROGET, 4):
                raise ConfigError(f"disk {self.path} is a read-only device: use access ro")
        elif stat.S_ISREG(status.st_mode):
            self.size_bytes = status.st_size
        else:
            raise ConfigError(f"disk image {self.path} is neither a file nor a block device")
        if not self.size_bytes:
            raise ConfigError(f"disk image {self.path} is empty: a disk has at least one sector")
        if self.size_bytes % self.sector_size:
            raise ConfigError(
                f"disk image {self.path} has {self.size_bytes} bytes, which is no multiple of "
                f"{self.sector_size}: truncate -s %{self.sector_size} makes it one"
            )

    def _ioctl_number(self, request: int, size: int) -> int:
        answer = fcntl.ioctl(self._descriptor, request, bytes(size))
        return int.from_bytes(answer, "little")

    def _lock(self) -> None:
        try:
            kind = fcntl.LOCK_EX if self.writable else fcntl.LOCK_SH
            fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._in_use() from None
        # OFD locks do not see flock's and the other way round, so both are taken.
        held = [QEMU_USES + QEMU_READ, QEMU_SHARES_NOT + QEMU_WRITE]
        barred = [QEMU_USES + QEMU_WRITE, QEMU_SHARES_NOT + QEMU_READ]
        if self.writable:
            held += [QEMU_USES + QEMU_WRITE, QEMU_SHARES_NOT + QEMU_RESIZE]
            barred += [QEMU_USES + QEMU_RESIZE, QEMU_SHARES_NOT + QEMU_WRITE]
        try:
            for byte in held:
                request = FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
                fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, request)
            for byte in barred:
                request = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
                answer = fcntl.fcntl(self._descriptor, fcntl.F_OFD_GETLK, request)
                if FLOCK.unpack(answer)[0] != fcntl.F_UNLCK:
                    raise self._in_use()
        except OSError as error:
            if error.errno in (EAGAIN, EACCES):
                raise self._in_use() from None
            if error.errno not in (EINVAL, ENOSYS, EOPNOTSUPP):
                raise ConfigError(f"disk image {self.path} cannot be locked: {error}") from error

    def _in_use(self) -> ConfigError:
        wants = "write to it" if self.writable else "read a still image"
        return ImageBusyError(
            f"disk image {self.path} is in use: another process holds it, or another disk of a "
            f"guest, and this one wants to {wants}"
        )

    def read_into(self, buffer: memoryview, offset: int) -> None:
        while buffer:
            try:
                done = os.preadv(self._descriptor, [buffer], offset)
            except OSError as error:
                raise ImageError(f"read of {self.path} at {offset}: {error}") from error
            if not done:
                raise ImageError(f"read of {self.path} at {offset}: the file ends there")
            buffer = buffer[done:]
            offset += done

    def write_from(self, buffer: memoryview, offset: int) -> None:
        if not self.writable:
            raise ImageError(f"{self.path} is read-only")
        while buffer:
            try:
                done = os.pwritev(self._descriptor, [buffer], offset)
            except OSError as error:
                raise ImageError(f"write to {self.path} at {offset}: {error}") from error
            buffer = buffer[done:]
            offset += done

    def flush(self) -> None:
        # The kernel reports a lost write-back once; what was lost stays lost.
        if self._flush_failed:
            raise ImageError(self._flush_failed)
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            self._flush_failed = f"flush of {self.path}: {error}"
            raise ImageError(self._flush_failed) from error

    def discard(self, offset: int, length: int) -> bool:
        if not self.writable:
            raise ImageError(f"{self.path} is read-only")
        if not self._discards:
            return False
        if not length:
            return True
        try:
            if self._is_device:
                fcntl.ioctl(self._descriptor, BLKDISCARD, struct.pack("@QQ", offset, length))
            else:
                _punch_hole(self._descriptor, offset, length)
        except OSError as error:
            if error.errno in (EOPNOTSUPP, ENOSYS):
                self._discards = False
                return False
            raise ImageError(f"discard in {self.path} at {offset}: {error}") from error
        return True

    def is_at(self, path: str) -> bool:
        """Whether it is open, and the file that this path names."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), Path(path).stat())
        except OSError:
            return False

    def close(self) -> None:
        self.holders -= 1
        if self.holders <= 0 and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _open(path: str, writable: bool) -> int:
    # Not blocking on a FIFO: it is no image, and _measure says so.
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


def _punch_hole(descriptor: int, offset: int, length: int) -> None:
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


class MemoryImage:
    """A disk in memory: `data` is used in place if it can be written, else copied.

    Raises ConfigError if its length is 0 or no multiple of `sector_size`.
    """

    def __init__(
        self,
        data: bytearray | memoryview | mmap.mmap | bytes,
        *,
        writable: bool = True,
        sector_size: int = SECTOR,
    ) -> None:
        whole = memoryview(data)
        view = memoryview(bytearray(whole)) if whole.readonly else whole.cast("B")
        if not view.nbytes or view.nbytes % sector_size:
            raise ConfigError(
                f"an image of {view.nbytes} bytes: expected a multiple of {sector_size} above 0"
            )
        self.size_bytes = view.nbytes
        self.sector_size = sector_size
        self.physical_sector_size = sector_size
        self.writable = writable
        self.buffer: memoryview = view
        self.flushes = 0

    def read_into(self, buffer: memoryview, offset: int) -> None:
        end = offset + buffer.nbytes
        if end > self.size_bytes:
            raise ImageError(f"read of {buffer.nbytes} bytes at {offset}: the disk ends before")
        buffer[:] = self.buffer[offset:end]

    def write_from(self, buffer: memoryview, offset: int) -> None:
        end = offset + buffer.nbytes
        if not self.writable:
            raise ImageError("the image is read-only")
        if end > self.size_bytes:
            raise ImageError(f"write of {buffer.nbytes} bytes at {offset}: the disk ends before")
        self.buffer[offset:end] = buffer

    def flush(self) -> None:
        self.flushes += 1

    def discard(self, offset: int, length: int) -> bool:
        zeros = memoryview(bytes(min(length, DISCARD_CHUNK)))
        while length:
            chunk = min(length, DISCARD_CHUNK)
            self.write_from(zeros[:chunk], offset)
            offset += chunk
            length -= chunk
        return True

    def close(self) -> None:
        """Nothing to give back: the memory is its owner's."""


class Loan:
    """A file that another host has open, for the one disk here that takes it over."""

    __slots__ = ("image", "taken")

    def __init__(self, image: RawImage) -> None:
        self.image = image
        self.taken = False

    def serves(self, path: str, writable: bool) -> bool:
        return not self.taken and self.image.is_at(path) and self.image.writable >= writable


class ImageProvider:
    """Images by the `params` of a backend directory: names registered here, else paths."""

    def __init__(self) -> None:
        self._registered: dict[str, Image] = {}
        self._open: dict[str, list[RawImage]] = {}  # by path
        self._loans: dict[str, Loan] = {}

    def register(self, name: str, image: Image) -> None:
        """Serve `image` to disks whose params are `name`; LocalProtocolError if it is taken.

        It stays its owner's: disks that go and come again find it open.
        """
        if name in self._registered:
            raise LocalProtocolError(f"an image is registered as {name!r}")
        self._registered[name] = image

    def is_registered(self, params: str) -> bool:
        """Whether it is an image of this process, and no file."""
        return params in self._registered

    def name_of(self, image: Image) -> str | None:
        """What an image is registered as."""
        return next((name for name, one in self._registered.items() if one is image), None)

    def registered(self, name: str) -> Image | None:
        """What was registered under a name; None for a path."""
        return self._registered.get(name)

    def forget(self, name: str) -> None:
        """The end of a registration; who has the image open keeps it."""
        self._registered.pop(name, None)

    def open(self, params: str, writable: bool) -> Image:
        """The image of these params; raises ConfigError."""
        image = self._registered.get(params)
        if image is None:
            return self._open_file(_path(params), writable)
        if writable and not image.writable:
            raise ImageBusyError(f"image {params!r} is read-only: give the disk access ro")
        return image

    def _open_file(self, path: str, writable: bool) -> RawImage:
        loan = self._loans.get(path)
        if loan is not None and loan.serves(path, writable):
            loan.taken = True
            image = loan.image
            image.holders += 1
        else:
            image = RawImage(path, writable)
        self._open.setdefault(path, []).append(image)
        return image

    def release(self, image: Image) -> None:
        """A disk is gone: close what `open` opened for it."""
        if any(image is one for one in self._registered.values()):
            return
        if isinstance(image, RawImage):
            opened = self._open.get(image.path, [])
            if image in opened:
                opened.remove(image)
            if not opened:
                self._open.pop(image.path, None)
            loan = self._loans.get(image.path)
            if loan is not None and loan.image is image:
                loan.taken = False
        image.close()

    def lend(self, params: str, other: ImageProvider) -> None:
        """Let another host have the image too: a guest whose disk it is moves there.

        A registered one is registered there. A file that is open here for writing is not locked
        against one disk there; it is closed when neither has it any more. ConfigError if another
        image has that name there.
        """
        image = self._registered.get(params)
        if image is None:
            path = _path(params)
            for opened in self._open.get(path, ()):
                other._loans[path] = Loan(opened)
            return
        taken = other._registered.setdefault(params, image)
        if taken is not image:
            raise ConfigError(f"another image is registered as {params!r} there")

    def check(self, params: str, writable: bool) -> None:
        """Raise the ConfigError that `open` would raise now; nothing is written or kept."""
        self.release(self.open(params, writable))


def _path(params: str) -> str:
    for prefix in PREFIXES:
        if params.startswith(prefix):
            return params[len(prefix) :]
    return params
