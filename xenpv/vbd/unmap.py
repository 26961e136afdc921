"""UNMAP parameter lists, as SBC-3 5.28 has them: made for a disk, and read by it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

HEADER: Final = struct.Struct(">HH4x")  # bytes after the first two, bytes of descriptors
DESCRIPTOR: Final = struct.Struct(">QI4x")  # LBA, count of sectors
COUNT_MAX: Final = (1 << 32) - 1
DESCRIPTORS_MAX: Final = ((1 << 16) - 1 - HEADER.size) // DESCRIPTOR.size


def build(ranges: Sequence[tuple[int, int]]) -> bytes:
    """A list of (lba, count), at most DESCRIPTORS_MAX of them."""
    body = b"".join([DESCRIPTOR.pack(lba, count) for lba, count in ranges])
    return HEADER.pack(HEADER.size - 2 + len(body), len(body)) + body


def cdb(length: int) -> bytes:
    """UNMAP with a parameter list of that many bytes."""
    return bytes((0x42, 0, 0, 0, 0, 0, 0)) + length.to_bytes(2, "big") + b"\0"


def parse(data: bytes) -> list[tuple[int, int]]:
    """(lba, count) of the descriptors that are there whole, whatever the header promises.

    `data` has at least HEADER.size bytes.
    """
    _length, described = HEADER.unpack_from(data)
    end = min(HEADER.size + described, len(data))
    whole = (end - HEADER.size) // DESCRIPTOR.size * DESCRIPTOR.size
    return list(DESCRIPTOR.iter_unpack(data[HEADER.size : HEADER.size + whole]))


def promises_more(data: bytes) -> bool:
    """Whether the header tells of descriptors that are not there."""
    described: int = HEADER.unpack_from(data)[1]
    return HEADER.size + described > len(data)
