"""A drive with a volatile cache: what was written and not flushed is lost with the power, or not.

A drive may keep any of its cached writes, in any order, so a file system may rely on nothing but
flushes. What must survive it: everything that was acknowledged before a flush that completed.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from xenpv.host.imageio import Image
from xenpv.host.memoryimage import MemoryImage


@attrs.frozen
class Write:
    """Not yet on the medium. Of a discard: zeros."""

    offset: int
    data: bytes


class WriteCache:
    """`image` is the medium. `tear_bytes`: what is lost or kept is pieces of that size, as a drive
    promises no more than a sector at once; 0: whole writes.

    `pending` are the writes since the last flush, oldest first.
    """

    def __init__(self, image: Image, *, tear_bytes: int = 0) -> None:
        self.image = image
        self.tear_bytes = tear_bytes
        self.pending: list[Write] = []
        self.flushes = 0
        self.buffer: None = None  # what is copied past us would not be in the log
        self.sector_size: int = image.sector_size
        self.physical_sector_size: int = image.physical_sector_size
        self.writable: bool = image.writable

    @property
    def size_bytes(self) -> int:
        """That of the image, which may be resized."""
        return self.image.size_bytes

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self.image.read_into(buffer, offset)
        end = offset + buffer.nbytes
        for write in self.pending:
            first, last = max(offset, write.offset), min(end, write.offset + len(write.data))
            if first < last:
                piece = memoryview(write.data)[first - write.offset : last - write.offset]
                buffer[first - offset : last - offset] = piece

    def write_from(self, buffer: memoryview, offset: int) -> None:
        if not self.writable or offset + buffer.nbytes > self.size_bytes:
            self.image.write_from(buffer, offset)  # which says why not
            return
        step = self.tear_bytes or buffer.nbytes
        at = 0
        while at < buffer.nbytes:
            # Pieces lie as the drive's do, wherever the write begins.
            stop = min(buffer.nbytes, at + step - (offset + at) % step if self.tear_bytes else step)
            self.pending.append(Write(offset + at, bytes(buffer[at:stop])))
            at = stop

    def flush(self) -> None:
        """The cache goes to the medium, and that is flushed."""
        for write in self.pending:
            self.image.write_from(memoryview(write.data), write.offset)
        self.image.flush()
        self.pending.clear()
        self.flushes += 1

    def discard(self, offset: int, length: int) -> bool:
        self.write_from(memoryview(bytes(length)), offset)
        return True

    def power_off(self, keep: Iterable[int] = ()) -> MemoryImage:
        """The disk that would be left now, with those of `pending` that are in `keep`, by index,
        in that order. Nothing happens to this one.
        """
        left = bytearray(self.size_bytes)
        self.image.read_into(memoryview(left), 0)
        for index in keep:
            write = self.pending[index]
            left[write.offset : write.offset + len(write.data)] = write.data
        return MemoryImage(left, sector_size=self.sector_size)

    def close(self) -> None:
        """The power goes, without a flush."""
        self.pending.clear()
        self.image.close()
