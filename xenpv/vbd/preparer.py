"""From parts of SRBs to requests (win-xenvbd ring.c, PrepareReadWrite and its like).

A transfer is split at what one request may carry; sector numbers are counted as the frontend's
SectorUnits say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpv.errors import HypercallError
from xenpv.vbd import blkif
from xenpv.vbd import segments as sg
from xenpv.vbd.bounce import Bounce
from xenpv.vbd.request import (
    DISCARD,
    FLUSH_DISKCACHE,
    INDIRECT,
    SECTOR_SHIFT,
    WRITE,
    WRITE_BARRIER,
    Part,
    Request,
)
from xenpv.vbd.segments import Segments
from xenpv.vbd.srb import SrbStatus
from xenpv.xen.domain import PAGE_SIZE

if TYPE_CHECKING:
    from xenpv.vbd.frontend import Frontend

SEGMENTS_MAX: Final = blkif.SEGMENTS_MAX
assert not PAGE_SIZE % blkif.SEGMENT_SIZE
U64_MAX: Final = (1 << 64) - 1


class Preparer:
    """Of one ring of `frontend`, whose pages come from `bounce`.

    Ids of requests count up, so that no answer to one that was given up is taken for another's.
    """

    def __init__(self, frontend: Frontend, bounce: Bounce) -> None:
        self.frontend = frontend
        self.bounce = bounce
        self.units = frontend.parameters.units
        self._last_id = 0

    def prepare(self, part: Part) -> list[Request]:
        """Requests for it; none if it ended at once: nothing to flush, nothing to grant with."""
        if part.operation <= WRITE:
            return self._transfer(part)
        if part.operation == DISCARD:
            return self._discard(part)
        return self._flush(part)

    def forget(self, request: Request) -> None:
        """Its backend does not know such requests, whatever it said: none follow."""
        backend = self.frontend.backend
        if request.operation == FLUSH_DISKCACHE:
            backend.flush_cache = False
        elif request.operation == WRITE_BARRIER:
            backend.barrier = False
        elif request.operation == DISCARD:
            backend.discard = False
        elif request.indirect:
            backend.indirect_segments = 0

    def again(self, request: Request) -> list[Request]:
        """What to do in the stead of one that was forgotten; its SRB may end here, as SUCCESS."""
        return self._split(request) if request.indirect else self._flush(request.part())

    def _id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _ratio(self) -> int:
        """Sectors of 512 bytes to one of the disk."""
        return self.frontend.backend.sector_size >> SECTOR_SHIFT

    # what has no data

    def _discard(self, part: Part) -> list[Request]:
        unit = self._ratio() if self.units.request else 1
        if part.sector % unit or part.nr_sectors % unit:
            return _ended(part, SrbStatus.ERROR)
        sector, count = part.sector // unit, part.nr_sectors // unit
        rid = self._id()
        slot = blkif.DISCARD.pack(DISCARD, 0, self.frontend.handle, rid, sector, count)
        return [Request(part.srb, DISCARD, rid, slot, part.sector, part.nr_sectors)]

    def _flush(self, part: Part) -> list[Request]:
        """By what the backend still says it can; if it can nothing, there is no cache."""
        frontend = self.frontend
        backend = frontend.backend
        if backend.flush_cache:
            operation = FLUSH_DISKCACHE
        elif backend.barrier:
            operation = WRITE_BARRIER
        else:
            return _ended(part, SrbStatus.SUCCESS)
        # The CDB's LBA, which nobody checked: without segments it means nothing.
        sector = part.sector // (self._ratio() if self.units.request else 1) & U64_MAX
        rid = self._id()
        slot = blkif.request(0).pack(operation, 0, frontend.handle, rid, sector)
        return [Request(part.srb, operation, rid, slot, part.sector)]

    # transfers

    def _transfer(self, part: Part) -> list[Request]:
        frontend, units = self.frontend, self.units
        backend = frontend.backend
        nr_bytes = part.nr_sectors << SECTOR_SHIFT
        unit = 1
        if units.request or units.segment:
            ratio = self._ratio()
            if part.sector % ratio or part.nr_sectors % ratio:
                # It was whole sectors when it was queued: the backend says others since.
                return _ended(part, SrbStatus.ERROR)
            unit = ratio if units.segment else 1
        try:
            segments = sg.build(
                self.bounce,
                part.srb,
                part.offset,
                nr_bytes,
                backend.sector_size,
                part.operation == WRITE,
            )
        except HypercallError:
            return _ended(part, SrbStatus.BUSY)
        segments.unit = unit
        if len(segments.pfns) <= SEGMENTS_MAX:
            return [self._request(part, segments, part.nr_sectors)]
        requests, short = self._requests(part, segments)
        part.srb.outstanding += len(requests) + short - 1
        return _ended(part, SrbStatus.BUSY, requests) if short else requests

    def _requests(self, part: Part, segments: Segments) -> tuple[list[Request], bool]:
        """As many segments in each as the backend takes; whether the pages did not suffice."""
        most = min(self.frontend.backend.indirect_segments, self.frontend.personality.indirect_max)
        requests: list[Request] = []
        count = len(segments.pfns)
        start = 0
        rest = part
        while start < count:
            wide = most > SEGMENTS_MAX and rest.nr_sectors >= SEGMENTS_MAX * sg.SECTORS_PER_PAGE
            end = min(start + (most if wide else SEGMENTS_MAX), count)
            piece = segments if end - start == count else segments.part(start, end)
            nr_sectors = rest.nr_sectors if end == count else piece.sectors()
            try:
                requests.append(self._request(rest, piece, nr_sectors))
            except HypercallError:
                # Without a page for its table nothing of the rest can go out either.
                segments.part(start, count).release(self.bounce)
                return requests, True
            rest = rest.after(nr_sectors)
            start = end
        return requests, False

    def _split(self, request: Request) -> list[Request]:
        """An indirect request as direct ones; its data stays granted."""
        segments, request.segments = request.segments, None
        assert segments is not None
        request.release(self.bounce)
        again: list[Request] = []
        rest = request.part()
        for start in range(0, len(segments.pfns), SEGMENTS_MAX):
            piece = segments.part(start, start + SEGMENTS_MAX)
            nr_sectors = piece.sectors()
            again.append(self._request(rest, piece, nr_sectors))
            rest = rest.after(nr_sectors)
        request.srb.outstanding += len(again) - 1
        return again

    def _request(self, part: Part, segments: Segments, nr_sectors: int) -> Request:
        """The first `nr_sectors` of `part`, which those segments hold.

        HypercallError: it is an indirect one, and finds no pages; `segments` stay as they are.
        """
        rid = self._id()
        count = len(segments.pfns)
        srb, operation, handle = part.srb, part.operation, self.frontend.handle
        request = Request(srb, operation, rid, b"", part.sector, nr_sectors, part.offset, segments)
        sector = part.sector // self._ratio() if self.units.request else part.sector
        if count <= SEGMENTS_MAX:
            pack = blkif.request(count).pack
            request.slot = pack(operation, count, handle, rid, sector, *segments.wire)
            return request
        refs = self._tables(request, segments.table())
        request.slot = blkif.INDIRECT.pack(INDIRECT, operation, count, rid, sector, handle, *refs)
        return request

    def _tables(self, request: Request, table: bytes) -> list[int]:
        """Eight references to the pages that name an indirect request's segments."""
        bounce, tables = self.bounce, request.indirect
        try:
            for start in range(0, len(table), PAGE_SIZE):
                data = table[start : start + PAGE_SIZE]
                tables.append(bounce.get(data, 0, readonly=True))
        except HypercallError:
            request.segments = None
            request.release(bounce)
            raise
        refs = [ref for ref, _pfn in tables]
        return refs + [0] * (blkif.INDIRECT_PAGES_MAX - len(refs))


def _ended(part: Part, status: SrbStatus, requests: list[Request] | None = None) -> list[Request]:
    """One part of its SRB is done with that status; what goes out all the same."""
    part.srb.part_done(status)
    return [] if requests is None else requests
