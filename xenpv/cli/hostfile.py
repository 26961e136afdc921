"""An image past xenpv, by the host's plain file I/O: what the guest's view is compared with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs

from xenpv.host.image import Image, ImageProvider, RawImage

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


@attrs.frozen
class Borrowed:
    """A piece of an image that a test writes to and that is to be put back."""

    file: HostFile | MemoryFile
    offset: int
    original: bytes

    @property
    def restored(self) -> bool:
        return self.file.read(self.offset, len(self.original)) == self.original

    def restore(self) -> None:
        if not self.restored:
            self.file.write(self.offset, self.original)
