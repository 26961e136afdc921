"""The layouts of io/blkif.h as blkback reads them, by the frontend's `protocol`."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.abi.layout import packer, sizeof, struct_format

SEGMENTS_MAX: Final[int] = lib.BLKIF_MAX_SEGMENTS_PER_REQUEST
SEGMENT: Final = struct.Struct(struct_format("blkif_request_segment"))


def _head(name: str) -> struct.Struct:
    """operation, nr_segments, handle, id, sector_number; the segments are skipped."""
    segments = SEGMENT.format.removeprefix("<") * SEGMENTS_MAX
    whole = struct_format(name)
    assert whole.endswith(segments)
    return struct.Struct(f"{whole.removesuffix(segments)}{SEGMENT.size * SEGMENTS_MAX}x")


@attrs.frozen
class Abi:
    """One layout. `indirect` reads operation, indirect_op, nr_segments, id, sector_number,
    handle, then eight references; `discard` operation, flag, handle, id, sector_number,
    nr_sectors. Sizes in bytes.
    """

    is_x86_32: bool
    head: struct.Struct
    response: struct.Struct  # id, operation, status
    indirect: struct.Struct
    discard: struct.Struct
    request_size: int
    response_size: int
    ring: str  # its name: blkif_x86_32 for 32-bit guests


def _abi(suffix: str) -> Abi:
    return Abi(
        is_x86_32=bool(suffix),
        head=_head(f"blkif_request{suffix}"),
        response=packer(f"blkif_response{suffix}"),
        indirect=packer(f"blkif_request_indirect{suffix}"),
        discard=packer(f"blkif_request_discard{suffix}"),
        request_size=sizeof(f"blkif_request{suffix}"),
        response_size=sizeof(f"blkif_response{suffix}"),
        ring=f"blkif{suffix}",
    )


X86_64: Final = _abi("")
X86_32: Final = _abi("_x86_32")

# XEN_IO_PROTO_ABI_*; arm aligns a u64 to 8 bytes as x86-64 does.
PROTOCOLS: Final[Mapping[str, Abi]] = {
    "x86_64-abi": X86_64,
    "x86_32-abi": X86_32,
    "arm-abi": X86_64,
    "native": X86_64,  # mirage's
}
