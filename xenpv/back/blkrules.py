"""What block backends make of a request before they touch a page of it, in one table.

A row names what a backend looks at, in its order. A request that came through is one whose
sectors are on the disk, whose segments are in their pages, and that the disk may do.

Sources: dispatch_rw_block_io and dispatch_discard_io of drivers/block/xen-blkback,
xen_block_parse_request and xen_block_split_discard of hw/block/dataplane/xen-block.c,
drivers/td-req.c of blktap, mirage-block-xen's blkback.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.abi.blkif import BLKIF_OP, BLKIF_RSP
from xenpv.back.blkif import SEGMENT, SEGMENTS_MAX, Abi
from xenpv.xen.domain import PAGE_SIZE

if TYPE_CHECKING:
    from xenpv.back.blkring import Vbd
    from xenpv.back.blkunits import Units

READ: Final = int(BLKIF_OP.READ)
WRITE: Final = int(BLKIF_OP.WRITE)
WRITE_BARRIER: Final = int(BLKIF_OP.WRITE_BARRIER)
FLUSH_DISKCACHE: Final = int(BLKIF_OP.FLUSH_DISKCACHE)
DISCARD: Final = int(BLKIF_OP.DISCARD)
INDIRECT: Final = int(BLKIF_OP.INDIRECT)
OKAY: Final = int(BLKIF_RSP.OKAY)
ERROR: Final = int(BLKIF_RSP.ERROR)
EOPNOTSUPP: Final = int(BLKIF_RSP.EOPNOTSUPP)

SECTOR: Final = 512
INDIRECT_PAGES_MAX: Final = 8  # BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST
SEGMENTS_PER_PAGE: Final = PAGE_SIZE // SEGMENT.size
NS_PER_MS: Final = 1_000_000
BDRV_REQUEST_MAX_BYTES: Final = 0x7FFFFE00  # include/block/block.h

# The key that says an operation is there.
PROMISES: Final[Mapping[int, str]] = {
    FLUSH_DISKCACHE: "feature-flush-cache",
    WRITE_BARRIER: "feature-barrier",
}

# gref, first_sect, last_sect
Segment = tuple[int, int, int]


@attrs.define(kw_only=True, eq=False)
class Request:
    """A slot, read once: what is looked at later is this and nothing else (XSA-155).

    `inner` is what an indirect request is to do, of others `operation` itself. `segments` of
    an indirect one are there once its table was fetched from the pages of `table`. `offset` and
    `length` are bytes on the disk: Geometry.place sets them.
    """

    operation: int
    inner: int
    rid: int
    sector: int
    nr_segments: int
    segments: Sequence[Segment] = ()
    table: Sequence[int] = ()
    nr_sectors: int = 0  # to discard
    secure: bool = False
    offset: int = 0
    length: int = 0


def parse(abi: Abi, raw: bytes | memoryview) -> Request:
    """One slot in private memory."""
    operation = raw[0]
    if operation == INDIRECT:
        _, inner, count, rid, sector, _, *table = abi.indirect.unpack_from(raw)
        return Request(
            operation=operation, inner=inner, rid=rid, sector=sector,
            nr_segments=count, table=table[: -(-count // SEGMENTS_PER_PAGE)],
        )  # fmt: skip
    if operation == DISCARD:
        _, flag, _, rid, sector, nr_sectors = abi.discard.unpack_from(raw)
        return Request(
            operation=operation, inner=operation, rid=rid, sector=sector,
            nr_segments=0, nr_sectors=nr_sectors, secure=bool(flag & 1),
        )  # fmt: skip
    _, count, _, rid, sector = abi.head.unpack_from(raw)
    start = abi.head.size - SEGMENTS_MAX * SEGMENT.size
    end = start + min(count, SEGMENTS_MAX) * SEGMENT.size
    return Request(
        operation=operation, inner=operation, rid=rid, sector=sector,
        nr_segments=count, segments=tuple(SEGMENT.iter_unpack(raw[start:end])),
    )  # fmt: skip


@attrs.frozen
class Geometry:
    """A disk as requests address it, all in bytes."""

    size: int
    sector: int  # a logical one
    request_unit: int  # what sector_number and nr_sectors count
    segment_unit: int  # what first_sect and last_sect count
    aligned: bool  # segments begin at whole logical sectors
    readonly: bool

    @classmethod
    def of(cls, vbd: Vbd, units: Units) -> Geometry:
        sector = vbd.image.sector_size
        return cls(
            size=vbd.sectors * SECTOR,
            sector=sector,
            request_unit=sector if units.request else SECTOR,
            segment_unit=sector if units.segment else SECTOR,
            aligned=units.aligned,
            readonly=vbd.readonly,
        )

    def place(self, request: Request) -> None:
        """Work out its offset and length. They do not wrap at 64 bits: what would is beyond the
        end.
        """
        request.offset = request.sector * self.request_unit
        if request.operation == DISCARD:
            request.length = request.nr_sectors * self.request_unit
            return
        count = 0
        for _, first, last in request.segments:
            count += last - first + 1
        request.length = count * self.segment_unit


@attrs.frozen(eq=False)
class Refusal:
    """What can be wrong with a request, and how that is seen."""

    why: str
    errs: Callable[[BlkRules, Request, Geometry], bool]

    def __repr__(self) -> str:
        return f"<Refusal: {self.why}>"


def _inner(_rules: BlkRules, request: Request, _disk: Geometry) -> bool:
    return request.operation == INDIRECT and request.inner not in (READ, WRITE)


def _count(rules: BlkRules, request: Request, _disk: Geometry) -> bool:
    if not request.nr_segments:
        return request.operation not in rules.empty
    most = rules.indirect_max if request.operation == INDIRECT else SEGMENTS_MAX
    return request.nr_segments > most


def _bounds(_rules: BlkRules, request: Request, disk: Geometry) -> bool:
    unit = disk.segment_unit
    return any(first > last or (last + 1) * unit > PAGE_SIZE for _, first, last in request.segments)


def _readonly(_rules: BlkRules, request: Request, disk: Geometry) -> bool:
    return disk.readonly and request.inner != READ


def _range(rules: BlkRules, request: Request, disk: Geometry) -> bool:
    length = request.length
    return bool(length or rules.checks_empty) and request.offset + length > disk.size


def _alignment(rules: BlkRules, request: Request, disk: Geometry) -> bool:
    sector, unit = disk.sector, disk.segment_unit
    if sector == SECTOR or not (request.length or rules.checks_empty):
        return False
    if request.offset % sector:
        return True
    if request.operation == DISCARD:
        return request.length % sector != 0
    return any(
        (last - first + 1) * unit % sector or (disk.aligned and first * unit % sector)
        for _, first, last in request.segments
    )


INNER: Final = Refusal("an indirect request does not read or write", _inner)
COUNT: Final = Refusal("so many segments cannot be", _count)
BOUNDS: Final = Refusal("a segment ends before it begins, or beyond its page", _bounds)
READONLY: Final = Refusal("the disk is read-only", _readonly)
RANGE: Final = Refusal("beyond the end of the disk", _range)
ALIGNMENT: Final = Refusal("not a number of whole logical sectors", _alignment)


class Access(Enum):
    """How a backend comes to the bytes of granted pages."""

    MAP = "map"
    COPY = "copy"


@attrs.frozen(kw_only=True)
class BlkRules:
    """How one backend treats requests.

    `operations` it knows, all others are answered `unknown`. `first` is looked at before an
    indirect table is fetched, `then` after it; `discard` of a DISCARD. `empty`: operations
    that may be without segments, with `checks_empty` even those are to begin on the disk.
    `indirect_max`: segments of an indirect request. `access`, and `map_batch`: references in
    one hypercall, 0: all of a pass. `echoes_inner`: the response to an indirect request tells
    what it did. `backoff_ns`: how long a ring rests after an error (msleep(1)).
    `hints`: a discard that the image cannot do is done; `discard_chunk`: bytes that it is told
    of at once, 0: all. `retracts`: what the image turns out not to be able to do is answered
    EOPNOTSUPP, and the key that promised it is 0 from then on. `batched`: a pass is mapped,
    unmapped and answered as a whole; requests that lie side by side on the disk are one I/O.
    `ordered`: what overlaps is done in the order of the ring. `barrier_stops`: a barrier waits
    for what came before it with every backend, and here what comes after it waits for it too.
    """

    operations: tuple[int, ...]
    unknown: int = EOPNOTSUPP
    first: tuple[Refusal, ...] = (INNER, COUNT)
    then: tuple[Refusal, ...] = (BOUNDS, READONLY, RANGE, ALIGNMENT)
    discard: tuple[Refusal, ...] = (READONLY, RANGE)
    empty: tuple[int, ...] = ()
    checks_empty: bool = False
    indirect_max: int = 0
    access: Access = Access.MAP
    map_batch: int = 0
    echoes_inner: bool = True
    backoff_ns: int = 0
    hints: bool = False
    discard_chunk: int = 0
    retracts: bool = False
    batched: bool = False
    ordered: bool = False
    barrier_stops: bool = False


def refusal(
    rules: BlkRules, checks: Sequence[Refusal], request: Request, disk: Geometry
) -> Refusal | None:
    """The first of these checks that a request does not pass."""
    for check in checks:
        if check.errs(rules, request, disk):
            return check
    return None


LINUX_RULES: Final = BlkRules(
    operations=(READ, WRITE, WRITE_BARRIER, FLUSH_DISKCACHE, DISCARD, INDIRECT),
    empty=(WRITE_BARRIER, FLUSH_DISKCACHE),
    indirect_max=256,  # xen_blkif_max_segments
    map_batch=SEGMENTS_MAX,
    backoff_ns=NS_PER_MS,
    retracts=True,
)
QEMU_RULES: Final = BlkRules(
    operations=(READ, WRITE, FLUSH_DISKCACHE, DISCARD),
    unknown=ERROR,
    first=(),
    then=(READONLY, COUNT, BOUNDS, ALIGNMENT, RANGE),
    empty=(READ, WRITE, FLUSH_DISKCACHE),
    checks_empty=True,
    access=Access.COPY,
    echoes_inner=False,
    hints=True,
    discard_chunk=BDRV_REQUEST_MAX_BYTES,
)
# A segment beyond its page is looked for, which tapdisk does not do.
TAPDISK_RULES: Final = BlkRules(
    operations=(READ, WRITE, WRITE_BARRIER),
    empty=(WRITE_BARRIER,),
    access=Access.COPY,
    echoes_inner=False,
    barrier_stops=True,
)
# What mirage does not expect gets an answer, where mirage drops it or its worker dies.
MIRAGE_RULES: Final = BlkRules(
    operations=(READ, WRITE, INDIRECT),
    indirect_max=256,  # of one page
    batched=True,
    ordered=True,
)
