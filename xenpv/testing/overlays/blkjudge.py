"""What a Linux blkback owes a frontend for each request: a second opinion, request by request.

Nothing of xenpv.back is in it. It stands on the slot's bytes, on what was granted and on copies
of the disk and of the guest's pages, which it changes as the backend should; whoever asks
compares afterwards. The order of judgement does not show: what errs is ERROR (spec: io/blkif.h,
drivers/block/xen-blkback/blkback.c).
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.abi.blkif import BLKIF_OP, BLKIF_RSP
from xenpv.abi.layout import offsetof, packer, sizeof
from xenpv.testing.blk_layout import SEGMENT, SEGMENTS_MAX
from xenpv.xen.domain import PAGE_SIZE

READ: Final = int(BLKIF_OP.READ)
WRITE: Final = int(BLKIF_OP.WRITE)
BARRIER: Final = int(BLKIF_OP.WRITE_BARRIER)
FLUSH: Final = int(BLKIF_OP.FLUSH_DISKCACHE)
DISCARD: Final = int(BLKIF_OP.DISCARD)
INDIRECT: Final = int(BLKIF_OP.INDIRECT)
OKAY: Final = int(BLKIF_RSP.OKAY)
ERROR: Final = int(BLKIF_RSP.ERROR)
EOPNOTSUPP: Final = int(BLKIF_RSP.EOPNOTSUPP)
SECTOR: Final = 512
SECTORS_PER_PAGE: Final = PAGE_SIZE // SECTOR
INDIRECT_MAX: Final = 256  # feature-max-indirect-segments as Linux advertises it
GTF_type_mask: Final[int] = lib.GTF_type_mask
GTF_permit_access: Final[int] = lib.GTF_permit_access
GTF_readonly: Final[int] = lib.GTF_readonly

Segment = tuple[int, int, int]


class Wire:
    """One layout of io/blkif.h: `suffix` "" or "_x86_32"."""

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix
        self.request = f"blkif_request{suffix}"
        self.response = f"blkif_response{suffix}"
        self.request_size = sizeof(self.request)
        self.response_size = sizeof(self.response)
        self.segments_at = offsetof(self.request, "seg")
        self.direct = packer(self.request)
        self.discard = packer(f"blkif_request_discard{suffix}")
        self.indirect = packer(f"blkif_request_indirect{suffix}")
        self.answer = packer(self.response)


WIRES: Final = (Wire(""), Wire("_x86_32"))


@attrs.define(eq=False)
class Disk:
    """What the frontend was told of the disk, and a copy of it."""

    data: bytearray
    readonly: bool
    sector_size: int

    @property
    def sectors(self) -> int:
        return len(self.data) // SECTOR

    @property
    def mask(self) -> int:
        return self.sector_size // SECTOR - 1


@attrs.frozen
class Grant:
    """An entry of the guest's table as it was written last."""

    flags: int
    domid: int
    pfn: int

    def allows(self, *, writable: bool) -> bool:
        return (
            self.flags & GTF_type_mask == GTF_permit_access
            and self.domid == 0
            and not (writable and self.flags & GTF_readonly)
        )


@attrs.define(eq=False)
class Judge:
    """`pages` are copies by their pfn, `grants` by reference. With `kept` (persistent grants)
    what was mapped once stays mapped. `opaque` are pages of which there is no copy (rings):
    `wild` is True once a request named one, and nothing is known from there on.
    """

    wire: Wire
    disk: Disk
    pages: dict[int, bytearray]
    grants: dict[int, Grant]
    opaque: Container[int] = ()
    kept: dict[int, int] | None = None
    wild: bool = False

    def answer(self, raw: bytes) -> tuple[int, int, int]:
        """Do what a slot asks for: id, operation and status of its response."""
        operation = raw[0]
        fields = self.wire.direct.unpack(raw)
        rid, sector = fields[3], fields[4]
        if operation in (READ, WRITE, BARRIER, FLUSH):
            return rid, operation, self._direct(operation, fields[1], sector, raw)
        if operation == DISCARD:
            return rid, operation, self._discard(*self.wire.discard.unpack_from(raw)[4:6])
        if operation == INDIRECT:
            return rid, raw[1], self._indirect(raw)
        return rid, operation, EOPNOTSUPP

    def _direct(self, operation: int, count: int, sector: int, raw: bytes) -> int:
        if count > SEGMENTS_MAX or not (count or operation in (FLUSH, BARRIER)):
            return ERROR
        start = self.wire.segments_at
        packed = raw[start : start + count * SEGMENT.size]
        return self._move(operation, sector, list(SEGMENT.iter_unpack(packed)))

    def _discard(self, sector: int, count: int) -> int:
        disk = self.disk
        if disk.readonly or (count and sector + count > disk.sectors):
            return ERROR
        if count and (sector | count) & disk.mask:
            return ERROR
        disk.data[sector * SECTOR : (sector + count) * SECTOR] = bytes(count * SECTOR)
        return OKAY

    def _indirect(self, raw: bytes) -> int:
        _, operation, count, _, sector, _, table = self.wire.indirect.unpack_from(raw)[:7]
        if operation not in (READ, WRITE) or not 0 < count <= INDIRECT_MAX:
            return ERROR
        pages = self._open([table], writable=False)
        if pages is None:
            return ERROR
        packed = pages[0][: count * SEGMENT.size]
        return self._move(operation, sector, list(SEGMENT.iter_unpack(packed)))

    def _move(self, operation: int, sector: int, segments: Sequence[Segment]) -> int:
        """READ, or a write of any kind; nothing moves unless all of it may."""
        disk, mask = self.disk, self.disk.mask
        total = 0
        for _, first, last in segments:
            if first > last or last >= SECTORS_PER_PAGE:
                return ERROR
            total += last - first + 1
        if (operation != READ and disk.readonly) or (total and sector + total > disk.sectors):
            return ERROR
        lengths = (last - first + 1 for _, first, last in segments)
        if total and (sector & mask or any(length & mask for length in lengths)):
            return ERROR
        pages = self._open([ref for ref, _, _ in segments], writable=operation == READ)
        if pages is None:
            return ERROR
        at = sector * SECTOR
        for page, (_, first, last) in zip(pages, segments, strict=True):
            start, end = first * SECTOR, (last + 1) * SECTOR
            if operation == READ:
                page[start:end] = disk.data[at : at + end - start]
            else:
                disk.data[at : at + end - start] = page[start:end]
            at += end - start
        return OKAY

    def _open(self, refs: Sequence[int], *, writable: bool) -> list[bytearray] | None:
        """The pages of these references; None if one of them may not be used."""
        found = [self._page(ref, writable=writable) for ref in refs]
        pages = [page for page in found if page is not None]
        return pages if len(pages) == len(refs) else None

    def _page(self, ref: int, *, writable: bool) -> bytearray | None:
        kept = self.kept
        pfn = None if kept is None else kept.get(ref)
        if pfn is None:
            grant = self.grants.get(ref)
            if grant is None or not grant.allows(writable=writable or kept is not None):
                return None
            pfn = grant.pfn
        page = self.pages.get(pfn)
        if page is None:
            if pfn not in self.opaque:
                return None
            self.wild = True
            page = bytearray(PAGE_SIZE)
        if kept is not None:
            kept[ref] = pfn
        return page
