"""An image past xenpv, by the host's plain file I/O: what the guest's view is compared with."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs

from xenpv.errors import ConfigError
from xenpv.host.diskspec import DiskFormat, DiskSpec
from xenpv.host.image import Image, ImageError, ImageProvider, RawImage
from xenpv.host.nbd import printable
from xenpv.host.qemunbd import FORMATS, PACKAGE, NbdImage

CHUNK_BYTES: Final = 1 << 20

# (what is being done, bytes done, bytes in all)
Progress = Callable[[str, int, int], None]


class HostFile:
    """The file behind a disk's target. Offsets and lengths are bytes."""

    def __init__(self, target: str) -> None:
        image = ImageProvider().open(target, writable=False)
        assert isinstance(image, RawImage)
        self.path = Path(image.path)
        self.size_bytes = image.size_bytes
        image.close()

    def read(self, offset: int, length: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def write(self, offset: int, data: bytes) -> None:
        """On stable storage when it returns."""
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def sha256(self, progress: Progress) -> str:
        """Over all of it, as hexadecimal digits."""
        digest = hashlib.sha256()
        done = 0
        with self.path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                done += len(chunk)
                progress(f"hashing {self.path}", done, self.size_bytes)
        return digest.hexdigest()


class MemoryFile:
    """An image that is no file, as a save file can have one: by the image's own methods."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.size_bytes = image.size_bytes

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        self.image.read_into(memoryview(data), offset)
        return bytes(data)

    def write(self, offset: int, data: bytes) -> None:
        self.image.write_from(memoryview(data), offset)

    def sha256(self, progress: Progress) -> str:
        """Over all of it, as hexadecimal digits."""
        digest = hashlib.sha256()
        for offset in range(0, self.size_bytes, CHUNK_BYTES):
            length = min(CHUNK_BYTES, self.size_bytes - offset)
            digest.update(self.read(offset, length))
            progress("hashing a disk in memory", offset + length, self.size_bytes)
        return digest.hexdigest()


class FormatFile:
    """An image in a format of QEMU's: by qemu-img, which looks past the locks of who has it open.

    What is flushed is in its file, metadata and all, so a second reader sees it there.
    """

    def __init__(self, target: str, kind: str) -> None:
        self.path = Path(target)
        self.kind = kind
        program = shutil.which("qemu-img")
        if program is None:
            raise ConfigError(f"disk image {target}: qemu-img is not there: {PACKAGE}")
        self._program = program
        with self._open(writable=False) as image:
            self.size_bytes = image.size_bytes

    @contextmanager
    def _open(self, *, writable: bool) -> Iterator[NbdImage]:
        image = NbdImage(str(self.path), self.kind, writable)
        try:
            yield image
        finally:
            image.close()

    def read(self, offset: int, length: int) -> bytes:
        """Whole sectors; the image may be in use."""
        with tempfile.TemporaryDirectory(prefix="xenpv-") as folder:
            out = Path(folder) / "raw"
            words = (self._program, "dd", "-U", "-f", FORMATS[self.kind], "-O", "raw", "bs=512")
            place = (f"skip={offset // 512}", f"count={(offset + length) // 512}")
            files = (f"if={Path.cwd() / self.path}", f"of={out}")
            done = subprocess.run(  # noqa: S603 - no shell sees it
                [*words, *place, *files], capture_output=True, check=False
            )
            if done.returncode:
                raise ImageError(f"read of {self.path}: {printable(done.stderr)}")
            return out.read_bytes()

    def write(self, offset: int, data: bytes) -> None:
        """Nobody else has it any more."""
        with self._open(writable=True) as image:
            image.write_from(memoryview(data), offset)
            image.flush()

    def sha256(self, progress: Progress) -> str:
        """Over all of the disk, as hexadecimal digits; nobody may be writing to it."""
        digest = hashlib.sha256()
        with self._open(writable=False) as image:
            for offset in range(0, self.size_bytes, CHUNK_BYTES):
                part = bytearray(min(CHUNK_BYTES, self.size_bytes - offset))
                image.read_into(memoryview(part), offset)
                digest.update(part)
                progress(f"hashing {self.path}", offset + len(part), self.size_bytes)
        return digest.hexdigest()


Backing = HostFile | MemoryFile | FormatFile


def backing(disk: DiskSpec) -> Backing:
    """What a disk's target names on this host. Raises ConfigError."""
    if disk.format is DiskFormat.RAW:
        return HostFile(disk.target)
    return FormatFile(disk.target, disk.format.value)


@attrs.frozen
class Borrowed:
    """A piece of an image that a test writes to and that is to be put back."""

    file: Backing
    offset: int
    original: bytes

    @property
    def restored(self) -> bool:
        return self.file.read(self.offset, len(self.original)) == self.original

    def restore(self) -> None:
        if not self.restored:
            self.file.write(self.offset, self.original)
