"""Slots of a blkif ring as a frontend of the kit writes them: io/blkif.h in either layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from xenpv.abi._kernel import lib
from xenpv.abi.blkif import BLKIF_OP
from xenpv.abi.layout import packer, sizeof
from xenpv.xen.domain import PAGE_SIZE

SEGMENTS_MAX: Final[int] = lib.BLKIF_MAX_SEGMENTS_PER_REQUEST
GREFS: Final[int] = lib.BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST
SEGMENT: Final = packer("blkif_request_segment")
SEGMENTS_PER_PAGE: Final = PAGE_SIZE // SEGMENT.size

Segment = tuple[int, int, int]  # reference, first_sect, last_sect


def tables(segments: Sequence[Segment]) -> Iterator[bytes]:
    """The contents of an indirect request's pages, 512 segments in each."""
    for at in range(0, len(segments), SEGMENTS_PER_PAGE):
        yield b"".join([SEGMENT.pack(*one) for one in segments[at : at + SEGMENTS_PER_PAGE]])


class Layout:
    """`suffix` "" is x86_64's, "_x86_32" the other. Whole slots; sectors count 512 bytes."""

    def __init__(self, suffix: str) -> None:
        self.ring = f"blkif{suffix}"
        self.request_size = sizeof(f"blkif_request{suffix}")
        self.response_size = sizeof(f"blkif_response{suffix}")
        self._direct = packer(f"blkif_request{suffix}")
        self._discard = packer(f"blkif_request_discard{suffix}")
        self._indirect = packer(f"blkif_request_indirect{suffix}")
        self._response = packer(f"blkif_response{suffix}")
        # x86_32's indirect request ends with a field of padding.
        self._padding = (0,) if suffix else ()

    def direct(
        self, operation: int, handle: int, rid: int, sector: int, segments: Sequence[Segment]
    ) -> bytes:
        """READ, WRITE, WRITE_BARRIER or FLUSH_DISKCACHE of at most 11 segments."""
        flat = [word for segment in segments for word in segment]
        flat += [0] * (3 * SEGMENTS_MAX - len(flat))
        return self._direct.pack(operation, len(segments), handle, rid, sector, *flat)

    def discard(self, handle: int, rid: int, sector: int, count: int) -> bytes:
        slot = self._discard.pack(BLKIF_OP.DISCARD, 0, handle, rid, sector, count)
        return slot.ljust(self.request_size, b"\0")

    def indirect(
        self, operation: int, handle: int, rid: int, sector: int, count: int, refs: Sequence[int]
    ) -> bytes:
        """`count` segments that lie in the pages of `refs`."""
        grefs = [*refs, *[0] * (GREFS - len(refs))]
        head = (BLKIF_OP.INDIRECT, operation, count, rid, sector, handle)
        return self._indirect.pack(*head, *grefs, *self._padding).ljust(self.request_size, b"\0")

    def responses(self, raw: bytes) -> Iterator[tuple[int, ...]]:
        """id, operation, status of each."""
        return self._response.iter_unpack(raw)
