"""A disk in memory. Offsets and lengths are bytes."""

from __future__ import annotations

import mmap
from typing import Final

from xenpv.errors import ConfigError
from xenpv.host.imageio import SECTOR, ImageError, ImageShortError

DISCARD_CHUNK: Final = 1 << 20  # bytes


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

    def resize(self, size_bytes: int) -> None:
        """Another size: in memory of its own from now on, with zeros behind what there was.

        ConfigError if it is 0 or no multiple of the sector.
        """
        if size_bytes <= 0 or size_bytes % self.sector_size:
            raise ConfigError(
                f"an image of {size_bytes} bytes: expected a multiple of {self.sector_size} above 0"
            )
        if size_bytes == self.size_bytes:
            return
        kept = min(size_bytes, self.size_bytes)
        view = memoryview(bytearray(size_bytes))
        view[:kept] = self.buffer[:kept]
        self.buffer = view
        self.size_bytes = size_bytes

    def read_into(self, buffer: memoryview, offset: int) -> None:
        end = offset + buffer.nbytes
        if end > self.size_bytes:
            raise ImageShortError(
                f"read of {buffer.nbytes} bytes at {offset}: the disk ends before"
            )
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
