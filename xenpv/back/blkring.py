"""One ring of blkback: requests copied once, judged, done, answered.

The order of judgement is that of Linux (drivers/block/xen-blkback/blkback.c,
dispatch_rw_block_io and its neighbours). The kernel copies slots, checks segments, moves
data and writes responses, in batches; what a request may do is decided here: of a run of
one operation at once where no request of it errs, else of each by itself. A verdict is the
status byte that the request's response will carry.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Callable, Iterable, Iterator
from errno import EAGAIN
from typing import Any, Final

import attrs

from xenpv.abi._kernel import ffi, lib
from xenpv.abi.blkif import BLKIF_OP, BLKIF_RSP
from xenpv.abi.layout import packer
from xenpv.back.blkif import SEGMENT, SEGMENTS_MAX, Abi
from xenpv.back.blkrules import PROMISES
from xenpv.back.ring import BackRing
from xenpv.host.imageio import Image, ImageError, ImageUnsupportedError
from xenpv.host.rawimage import RawImage
from xenpv.xen.domain import PAGE_SIZE, Domain
from xenpv.xen.loop import Task

READ: Final = int(BLKIF_OP.READ)
WRITE: Final = int(BLKIF_OP.WRITE)
WRITE_BARRIER: Final = int(BLKIF_OP.WRITE_BARRIER)
FLUSH_DISKCACHE: Final = int(BLKIF_OP.FLUSH_DISKCACHE)
DISCARD: Final = int(BLKIF_OP.DISCARD)
INDIRECT: Final = int(BLKIF_OP.INDIRECT)
ERROR: Final = int(BLKIF_RSP.ERROR)
EOPNOTSUPP: Final = int(BLKIF_RSP.EOPNOTSUPP)

SECTOR_SHIFT: Final = 9  # of every sector number on the wire, whatever the disk's own sector
INDIRECT_SEGMENTS_MAX: Final = 256  # xen_blkif_max_segments: what is advertised

BOUNCE_BYTES: Final = 4 << 20
# Direct requests whose data fits into the bounce buffer together, whatever they ask for.
BOUNCE_REQUESTS: Final = BOUNCE_BYTES // (SEGMENTS_MAX * PAGE_SIZE)
assert INDIRECT_SEGMENTS_MAX * PAGE_SIZE <= BOUNCE_BYTES

# Looked up once: each is called in every pass.
blk_take: Final = lib.blk_take
blk_copy: Final = lib.blk_copy
blk_file: Final = lib.blk_file
blk_indirect: Final = lib.blk_indirect
blk_answer: Final = lib.blk_answer
REFUSED: Final[int] = lib.BLK_REFUSED

# first, end, operation, least, units, pad, top: columns of a run (abi/kernel/blk.c)
RUN: Final = packer("blk_run")

# [image offset, bounce offset, length in bytes, first request, end of requests]
Extent = list[int]


class Bounce:
    """Where data lies between an image and granted pages; one serves all rings of a host.

    Nothing stays in it from one pass to the next. Mapped at the first use.
    """

    def __init__(self) -> None:
        self._view: memoryview | None = None
        self._pointer: Any = None

    @property
    def view(self) -> memoryview:
        return self._map() if self._view is None else self._view

    @property
    def pointer(self) -> Any:
        if self._view is None:
            self._map()
        return self._pointer

    def _map(self) -> memoryview:
        # Both of the mapping itself: a memoryview and a cffi buffer of it in one cycle of
        # garbage crash the collector.
        memory = mmap.mmap(-1, BOUNCE_BYTES)
        self._view = memoryview(memory)
        self._pointer = ffi.from_buffer(memory)
        return self._view


@attrs.define(eq=False)
class Vbd:
    """The disk behind a device: struct xen_vbd. `sectors` are 512 bytes each."""

    image: Image
    readonly: bool
    sectors: int
    alignment: int  # sectors of 512 bytes in a logical one, less 1: a mask
    discard: bool
    buffer: memoryview | None  # the image, if that is in memory
    memory: Any  # where `buffer` lies; only that keeps it there
    file: RawImage | None  # the image, if that is a file and nothing stands in between

    @classmethod
    def of(cls, image: Image, *, readonly: bool, discard: bool) -> Vbd:
        buffer = image.buffer
        return cls(
            image=image,
            readonly=readonly,
            sectors=image.size_bytes >> SECTOR_SHIFT,
            alignment=(image.sector_size >> SECTOR_SHIFT) - 1,
            discard=discard and not readonly,
            buffer=buffer,
            memory=None if buffer is None else ffi.cast("uint8_t *", ffi.from_buffer(buffer)),
            # Of that class alone: another that is one too may do more in its read_into.
            file=image if type(image) is RawImage else None,
        )


class BlkRing:
    """Requests of one ring against one disk. `service` is one pass.

    PeerProtocolError: the frontend's producer index is out of bounds. HypercallError: a
    ring page is no longer mapped. Break the device on either. `granter` is the frontend's
    domain; once that is dead no reference of it is valid, and every copy fails. What is taken in
    a pass is answered in it: nothing is in flight between two.
    """

    in_flight: Final = 0
    task: Task
    lost: list[str]
    spurious = 0  # passes in a row that found nothing

    def __init__(
        self, ring: BackRing, port: int, abi: Abi, granter: Domain, bounce: Bounce
    ) -> None:
        self.ring = ring
        self.domain: Domain = ring.domain
        self.port = port
        self.abi = abi
        self.granter = granter
        self.bounce = bounce
        self.lost = []
        self._send = ring.domain.evtchn.send
        self._record = ring.domain.trace.words.append
        self._publication = ring.publication
        self._verdicts = array("b", bytes(ring.size))
        self._sectors = array("I", bytes(4 * ring.size))
        self._offsets = array("Q", bytes(8 * ring.size))  # in the image
        self._places = array("Q", bytes(8 * ring.size))  # in the bounce buffer
        self._offsets_at = ffi.from_buffer("uint64_t[]", self._offsets)
        self._places_at = ffi.from_buffer("uint64_t[]", self._places)
        self._table = bytearray(INDIRECT_SEGMENTS_MAX * SEGMENT.size)
        runs = bytearray(RUN.size * ring.size)
        self._runs = memoryview(runs)
        bound = {
            "ring": ring.handle,
            "granter": granter.kernel,
            "requests": ring.raw_pointer,
            "verdicts": ffi.from_buffer("int8_t[]", self._verdicts),
            "sectors": ffi.from_buffer("uint32_t[]", self._sectors),
            "offsets": self._offsets_at,
            "runs": ffi.from_buffer("struct blk_run[]", runs),
            "table": ffi.from_buffer(self._table),
            "table_size": INDIRECT_SEGMENTS_MAX,
            "is_x86_32": abi.is_x86_32,
        }
        self._bound = bound  # the struct alone keeps none of it alive
        self._pass = ffi.new("struct blk_pass *", bound)

    def service(self, vbd: Vbd) -> bool:
        """Take at most a ring of requests and answer them all; True: there are more."""
        taken = blk_take(self._pass)
        if taken <= 0:
            if taken < 0:
                self.domain.fail(taken, "ring requests")
            self.spurious += 1
            return self.ring.final_check()
        self.spurious = 0
        nr_runs = taken >> 16
        runs: Iterable[tuple[int, ...]] = (RUN.unpack_from(self._runs),)
        if nr_runs > 1:
            runs = RUN.iter_unpack(self._runs[: nr_runs * RUN.size])
        for first, end, operation, least, units, _pad, top in runs:
            if operation <= FLUSH_DISKCACHE and (
                top > vbd.sectors
                or not (least or operation > WRITE)
                or (operation and vbd.readonly)
                or units & vbd.alignment
            ):
                self._judge(vbd, first, end)
            _OPERATIONS.get(operation, BlkRing._refuse)(self, vbd, first, end)
        self._answer(taken & 0xFFFF)
        return self.ring.final_check()

    def stop(self) -> bool:
        """Nothing is in flight: see BlkServer's."""
        return True

    def abandon(self) -> None:
        """Nothing is to be done: see BlkServer's."""

    def _answer(self, count: int) -> None:
        """Publish the verdicts of a pass, and notify if the frontend asked for it."""
        notify = blk_answer(self._pass, count)
        if notify < 0:
            self.domain.fail(notify, "ring responses")
        self._record(self._publication | count)
        if notify:
            self._send(self.port)

    def _judge(self, vbd: Vbd, first: int, end: int) -> None:
        """Refuse what errs among the requests [first, end): one does at least."""
        verdicts, sectors, alignment = self._verdicts, self._sectors, vbd.alignment
        size = self.abi.request_size
        heads = self.abi.head.iter_unpack(memoryview(self.ring.raw)[first * size : end * size])
        for index, (operation, _nr, _handle, _id, sector) in enumerate(heads, first):
            total = sectors[index]
            if (
                verdicts[index]
                or (sector + total > vbd.sectors if total else operation <= WRITE)
                or (operation and vbd.readonly)
                or (alignment and total and self._is_unaligned(index, sector, alignment))
            ):
                verdicts[index] = ERROR

    def _is_unaligned(self, index: int, sector: int, mask: int) -> bool:
        """Whether sector_number or a segment's length is no whole logical sectors."""
        at = index * self.abi.request_size
        raw = self.ring.raw
        count = raw[at + 1]
        segments = at + self.abi.head.size - SEGMENTS_MAX * SEGMENT.size
        pieces = SEGMENT.iter_unpack(raw[segments : segments + count * SEGMENT.size])
        return bool(sector & mask) or any((last - first + 1) & mask for _, first, last in pieces)

    def _refuse(self, _vbd: Vbd, first: int, end: int) -> None:
        """An operation that does not exist."""
        for index in range(first, end):
            self._verdicts[index] = EOPNOTSUPP

    def _copy(self, first: int, end: int, places: Any, local: Any, size: int) -> None:
        """Data of the requests in [first, end) that are not refused; what fails is ERROR."""
        failed = blk_copy(self._pass, first, end, places, local, size)
        if failed < 0:
            self.domain.fail(failed, "copy")

    def _read(self, vbd: Vbd, first: int, end: int) -> None:
        image = vbd.image
        if vbd.memory is not None:
            # _copy, spelt out: a call less in most passes.
            failed = blk_copy(
                self._pass, first, end, self._offsets_at, vbd.memory, image.size_bytes
            )
            if failed < 0:
                self.domain.fail(failed, "copy")
            return
        if vbd.file is not None and self._file(vbd.file, first, end):
            return
        for start in range(first, end, BOUNCE_REQUESTS):
            stop = min(start + BOUNCE_REQUESTS, end)
            self._place(start, stop)
            for extent in self._extents(start, stop):
                self._transfer(image.read_into, extent)
            self._copy(start, stop, self._places_at, self.bounce.pointer, BOUNCE_BYTES)

    def _write(self, vbd: Vbd, first: int, end: int) -> None:
        image = vbd.image
        if vbd.memory is not None:
            self._copy(first, end, self._offsets_at, vbd.memory, image.size_bytes)
            return
        if vbd.file is not None and self._file(vbd.file, first, end):
            return
        for start in range(first, end, BOUNCE_REQUESTS):
            stop = min(start + BOUNCE_REQUESTS, end)
            self._place(start, stop)
            self._copy(start, stop, self._places_at, self.bounce.pointer, BOUNCE_BYTES)
            for extent in self._extents(start, stop):
                self._transfer(image.write_from, extent)

    def _file(self, file: RawImage, first: int, end: int) -> bool:
        """Between the pages and the file, without a copy; False: that cannot be, nothing moved."""
        failed = blk_file(self._pass, first, end, file.fileno(), file.size_bytes)
        if failed < 0:
            if failed == -EAGAIN:
                return False
            self.domain.fail(failed, "file")
        return True

    def _place(self, first: int, end: int) -> None:
        """Give each request that is not refused its room in the bounce buffer."""
        verdicts, sectors, places = self._verdicts, self._sectors, self._places
        at = 0
        for index in range(first, end):
            if not verdicts[index]:
                places[index] = at
                at += sectors[index] << SECTOR_SHIFT

    def _extents(self, first: int, end: int) -> Iterator[Extent]:
        """Ranges of the image, each as long as neighbours allow: merged by disk offset only,
        never by where the frontend's pages happen to lie (XSA-229).
        """
        extent: Extent | None = None
        for index in range(first, end):
            if self._verdicts[index]:
                continue
            offset, place = self._offsets[index], self._places[index]
            length = self._sectors[index] << SECTOR_SHIFT
            if extent and offset == extent[0] + extent[2] and place == extent[1] + extent[2]:
                extent[2] += length
                extent[4] = index + 1
            else:
                if extent:
                    yield extent
                extent = [offset, place, length, index, index + 1]
        if extent:
            yield extent

    def _transfer(self, move: Callable[[memoryview, int], None], extent: Extent) -> None:
        """One image I/O; if it fails, once more for each request alone, to see whose it is."""
        offset, place, length, first, end = extent
        try:
            move(self.bounce.view[place : place + length], offset)
        except ImageError:
            if end - first == 1:
                self._verdicts[first] = ERROR
                return
            for index in range(first, end):
                if not self._verdicts[index]:
                    length = self._sectors[index] << SECTOR_SHIFT
                    alone = [self._offsets[index], self._places[index], length, index, index + 1]
                    self._transfer(move, alone)

    def _flush(self, vbd: Vbd, first: int, end: int) -> None:
        """A flush, then the data if there is any (REQ_PREFLUSH on a write)."""
        for index in range(first, end):
            if self._verdicts[index]:
                continue
            try:
                vbd.image.flush()
            except ImageUnsupportedError:
                self._verdicts[index] = EOPNOTSUPP
                self.lost.append(PROMISES[self.ring.raw[index * self.abi.request_size]])
                continue
            except ImageError:
                self._verdicts[index] = ERROR
                continue
            if self._sectors[index]:
                self._write(vbd, index, index + 1)

    def _barrier(self, vbd: Vbd, first: int, end: int) -> None:
        # Whatever came before on this ring is done: a pass leaves nothing in flight.
        self._flush(vbd, first, end)

    def _discard(self, vbd: Vbd, first: int, end: int) -> None:
        for index in range(first, end):
            at = index * self.abi.request_size
            fields = self.abi.discard.unpack_from(self.ring.raw, at)
            self._verdicts[index] = self._discard_one(vbd, fields[4], fields[5])

    @staticmethod
    def _discard_one(vbd: Vbd, sector: int, count: int) -> int:
        if vbd.readonly or (count and sector + count > vbd.sectors):
            return ERROR
        if not vbd.discard:
            return EOPNOTSUPP
        if count and (sector | count) & vbd.alignment:
            return ERROR
        try:
            done = vbd.image.discard(sector << SECTOR_SHIFT, count << SECTOR_SHIFT)
        except ImageError:
            return ERROR
        return 0 if done else EOPNOTSUPP

    def _indirect(self, vbd: Vbd, first: int, end: int) -> None:
        for index in range(first, end):
            operation = blk_indirect(self._pass, index, vbd.sectors, vbd.readonly, vbd.alignment)
            if operation < 0:
                self.domain.fail(operation, "indirect segments")
            if operation != REFUSED:
                _OPERATIONS[operation](self, vbd, index, index + 1)


_OPERATIONS: Final[dict[int, Callable[[BlkRing, Vbd, int, int], None]]] = {
    READ: BlkRing._read,
    WRITE: BlkRing._write,
    WRITE_BARRIER: BlkRing._barrier,
    FLUSH_DISKCACHE: BlkRing._flush,
    DISCARD: BlkRing._discard,
    INDIRECT: BlkRing._indirect,
}
