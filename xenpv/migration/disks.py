"""The contents of disks that are no files: what was registered lives only in this process.

A DISK record, JSON {"target", "size", "sector_size", "writable"}, and DISK_DATA records of at
most 1 MiB, ascending; what is in none of them reads zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from xenpv.host.diskspec import DiskSpec
from xenpv.host.image import Image, MemoryImage
from xenpv.host.libxl import ToolstackError
from xenpv.migration.stream import CHUNK_BYTES, Record, RecordType, StreamError, Writer

if TYPE_CHECKING:
    from xenpv.host.image import ImageProvider

OFFSET: Final = Struct("<Q")
DISK_BYTES_MAX: Final = 1 << 32
ZERO_CHUNK: Final = bytes(CHUNK_BYTES)
SECTOR_SIZES: Final = (512, 1024, 2048, 4096)


def registered(images: ImageProvider, disks: Sequence[DiskSpec]) -> dict[str, Image]:
    """The images of `disks` that are known only here, by target: each of them once."""
    found: dict[str, Image] = {}
    for disk in disks:
        image = images.registered(disk.target)
        if image is not None:
            found[disk.target] = image
    return found


def write_disk(writer: Writer, target: str, image: Image) -> None:
    """ToolstackError for one that is too large, ImageError if it cannot be read."""
    size = image.size_bytes
    if size > DISK_BYTES_MAX:
        text = f"disk {target} has {size} bytes in memory: a file holds at most {DISK_BYTES_MAX}"
        raise ToolstackError(f"{text}; give the guest a file as its disk")
    described = {
        "target": target,
        "size": size,
        "sector_size": image.sector_size,
        "writable": image.writable,
    }
    writer.write_json(RecordType.DISK, described)
    for offset in range(0, size, CHUNK_BYTES):
        part = bytearray(min(CHUNK_BYTES, size - offset))
        image.read_into(memoryview(part), offset)
        if not ZERO_CHUNK.startswith(part):
            writer.write(RecordType.DISK_DATA, OFFSET.pack(offset) + part)


class Disks:
    """Disks as their records come: `images` by target."""

    def __init__(self, disks: Sequence[DiskSpec]) -> None:
        self._targets = [disk.target for disk in disks]
        self.images: dict[str, MemoryImage] = {}
        self._image: MemoryImage | None = None

    def begin(self, record: Record) -> None:
        """A DISK record. StreamError if it is none of the domain's, or was here before."""
        described: Any = record.json()
        if not isinstance(described, dict):
            raise StreamError(f"{record.place}: expected an object")
        target, size = described.get("target"), described.get("size")
        sector_size, writable = described.get("sector_size"), described.get("writable")
        if target not in self._targets or target in self.images:
            raise StreamError(f"{record.place}: expected a disk of the configuration, once")
        if sector_size not in SECTOR_SIZES or type(writable) is not bool:
            raise StreamError(f"{record.place}: expected sector_size and writable")
        if type(size) is not int or not 0 < size <= DISK_BYTES_MAX or size % sector_size:
            raise StreamError(f"{record.place}: {size!r} is no size of a disk")
        data = bytearray(size)
        self._image = MemoryImage(data, writable=writable, sector_size=sector_size)
        self.images[target] = self._image

    def fill(self, record: Record) -> None:
        """A DISK_DATA record. StreamError if it is not within the disk."""
        image = self._image
        assert image is not None  # the phases have it so
        if len(record.body) < OFFSET.size:
            raise StreamError(f"{record.place}: expected an offset")
        (offset,) = OFFSET.unpack_from(record.body)
        end = offset + len(record.body) - OFFSET.size
        if end > image.size_bytes:
            raise StreamError(f"{record.place}: ends at {end}, the disk at {image.size_bytes}")
        image.buffer[offset:end] = memoryview(record.body)[OFFSET.size :]
