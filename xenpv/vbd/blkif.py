"""The layouts of io/blkif.h as XenVbd writes them: always x86_64-abi."""

from __future__ import annotations

import struct
from functools import cache
from typing import Final

from xenpv.abi._kernel import lib
from xenpv.abi.layout import offsetof, packer, sizeof, struct_format

PROTOCOL: Final = "x86_64-abi"
RING: Final = "blkif"  # DEFINE_RING_TYPES(blkif, ...)
SEGMENTS_MAX: Final[int] = lib.BLKIF_MAX_SEGMENTS_PER_REQUEST
INDIRECT_PAGES_MAX: Final[int] = lib.BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST

REQUEST_SIZE: Final = sizeof("blkif_request")
ID_AT: Final = offsetof("blkif_request", "id")  # 8 bytes, of every kind of request
RESPONSE_SIZE: Final = sizeof("blkif_response")
RESPONSE: Final = packer("blkif_response")  # id, operation, status
# operation, flag, handle, id, sector_number, nr_sectors
DISCARD: Final = struct.Struct(
    f"{struct_format('blkif_request_discard')}{REQUEST_SIZE - sizeof('blkif_request_discard')}x"
)
# operation, indirect_op, nr_segments, id, sector_number, handle, eight references
INDIRECT: Final = struct.Struct(
    f"{struct_format('blkif_request_indirect')}{REQUEST_SIZE - sizeof('blkif_request_indirect')}x"
)

_SEGMENT: Final = struct_format("blkif_request_segment").removeprefix("<")
_REQUEST: Final = struct_format("blkif_request")
SEGMENT_SIZE: Final = sizeof("blkif_request_segment")
assert _REQUEST.endswith(_SEGMENT * SEGMENTS_MAX)


@cache
def request(nr_segments: int) -> struct.Struct:
    """operation, nr_segments, handle, id, sector_number, then gref, first, last of each."""
    rest = SEGMENTS_MAX - nr_segments
    used = _REQUEST.removesuffix(_SEGMENT * rest) if rest else _REQUEST
    return struct.Struct(f"{used}{rest * SEGMENT_SIZE}x")


@cache
def segments(count: int) -> struct.Struct:
    """gref, first, last of each of `count` entries of an indirect page."""
    return struct.Struct("<" + _SEGMENT * count)
