"""Blkif requests of one SRB, built in memory that is there already (xencrsh pdo.c).

At most two requests of eleven segments. A piece of a buffer that begins and ends with whole
sectors is granted where it lies; anything else goes through one of eight bounce pages.
"""

from __future__ import annotations

from typing import Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.vbd import blkif
from xenpv.vbd.srb import Srb
from xenpv.xen.domain import PAGE_SIZE

READ: Final[int] = lib.BLKIF_OP_READ
WRITE: Final[int] = lib.BLKIF_OP_WRITE
WRITE_BARRIER: Final[int] = lib.BLKIF_OP_WRITE_BARRIER
FLUSH_DISKCACHE: Final[int] = lib.BLKIF_OP_FLUSH_DISKCACHE
OKAY: Final[int] = lib.BLKIF_RSP_OKAY
EOPNOTSUPP: Final[int] = lib.BLKIF_RSP_EOPNOTSUPP

REQUESTS_MAX: Final = 2  # of one SRB
SEGMENTS_MAX: Final = REQUESTS_MAX * blkif.SEGMENTS_MAX
TRANSFER_MAX: Final = SEGMENTS_MAX * PAGE_SIZE  # 90,112 bytes
BREAKS_MAX: Final = SEGMENTS_MAX - 1  # NumberOfPhysicalBreaks
BOUNCE_PAGES: Final = 8

Piece = tuple[int, int, int]  # pfn, offset, length within one page


@attrs.define(eq=False)
class Segment:
    """`length` bytes from `offset` of page `pfn`, all multiples of the sector size.

    `pieces` are those of the buffer that a bounce page stands for; without any, it is the
    buffer's own page.
    """

    pfn: int
    offset: int
    length: int
    pieces: list[Piece] = attrs.Factory(list)
    gref: int = 0


@attrs.define(eq=False)
class Request:
    """One entry of the ring; `sector` counts 512 bytes or logical sectors, as the units say."""

    srb: Srb
    operation: int
    sector: int
    segments: list[Segment] = attrs.Factory(list)
    id: int = 0


def fragments(data: list[Piece], size: int) -> list[Piece]:
    """The first `size` bytes of a scatter list, none of them across a page."""
    found: list[Piece] = []
    for pfn, offset, length in data:
        at, end = pfn * PAGE_SIZE + offset, pfn * PAGE_SIZE + offset + min(length, size)
        size -= end - at
        while at < end:
            stop = min(end, (at // PAGE_SIZE + 1) * PAGE_SIZE)
            found.append((at // PAGE_SIZE, at % PAGE_SIZE, stop - at))
            at = stop
    return found


def segments(data: list[Piece], size: int, sector_size: int) -> list[Segment]:
    """How `size` bytes of a buffer are to be transferred; bounced ones have no page yet: pfn 0."""
    left = fragments(data, size)[::-1]
    made: list[Segment] = []
    while left:
        pfn, offset, length = left.pop()
        if not (offset | length) % sector_size:
            made.append(Segment(pfn, offset, length))
            continue
        # One page's worth, of as many fragments as that takes.
        pieces: list[Piece] = []
        room = PAGE_SIZE
        while True:
            now = min(room, length)
            pieces.append((pfn, offset, now))
            room -= now
            if now < length:
                left.append((pfn, offset + now, length - now))
            if not room or not left:
                break
            if not (PAGE_SIZE - room) % sector_size and _is_aligned(left[-1], sector_size):
                break
            pfn, offset, length = left.pop()
        made.append(Segment(0, 0, PAGE_SIZE - room, pieces))
    return made


def _is_aligned(piece: Piece, sector_size: int) -> bool:
    return not (piece[1] | piece[2]) % sector_size
