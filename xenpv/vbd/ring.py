"""One queue of a XenVbd target: SRBs in, requests on the ring, completions (win-xenvbd ring.c).

An SRB waits in `queue` until the ring has room, is then prepared (granted, split, encoded)
into requests, and these are submitted. What the backend writes is copied out once; an
answer that cannot be one raises PeerProtocolError inside, and breaks the target.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.abi.blkif import BLKIF_OP, BLKIF_RSP
from xenpv.bus.evtchn import Channel
from xenpv.bus.ring import FrontRing
from xenpv.errors import HypercallError, PeerProtocolError
from xenpv.vbd import blkif
from xenpv.vbd import segments as sg
from xenpv.vbd.segments import Segments
from xenpv.vbd.srb import Srb, SrbStatus
from xenpv.xen.domain import PAGE_SIZE

if TYPE_CHECKING:
    from xenpv.vbd.frontend import Frontend
    from xenpv.vbd.granter import Granter

READ: Final = int(BLKIF_OP.READ)
WRITE: Final = int(BLKIF_OP.WRITE)
WRITE_BARRIER: Final = int(BLKIF_OP.WRITE_BARRIER)
FLUSH_DISKCACHE: Final = int(BLKIF_OP.FLUSH_DISKCACHE)
DISCARD: Final = int(BLKIF_OP.DISCARD)
INDIRECT: Final = int(BLKIF_OP.INDIRECT)
OKAY: Final = int(BLKIF_RSP.OKAY)
EOPNOTSUPP: Final = int(BLKIF_RSP.EOPNOTSUPP)

SECTOR_SHIFT: Final = 9  # sector numbers on the wire count 512 bytes
SEGMENTS_PER_PAGE: Final = PAGE_SIZE // blkif.SEGMENT_SIZE


@attrs.frozen
class Part:
    """What one SRB asks of one range: sectors of 512 bytes. A flush has none.

    `segments`: its pages, without access, where it was prepared for another backend before.
    """

    srb: Srb
    operation: int
    sector: int = 0
    nr_sectors: int = 0
    segments: Segments | None = None

    def end(self, granter: Granter, status: SrbStatus) -> None:
        """It will not run."""
        if self.segments is not None:
            self.segments.put_pages(granter)
        self.srb.part_done(status)


@attrs.define(eq=False)
class Request:
    """One slot's worth, prepared: `operation` is what it does, also where the slot is indirect."""

    srb: Srb
    operation: int
    id: int
    slot: bytes
    sector: int = 0
    nr_sectors: int = 0  # of a discard; others have segments
    segments: Segments | None = None
    indirect: list[tuple[int, int]] = attrs.Factory(list)  # (ref, pfn) of the segment pages


class Ring:
    """A queue of `frontend`. Everything it holds of the hypervisor exists between `connect`
    and `disconnect`; SRBs that wait in `queue` survive both.
    """

    def __init__(self, frontend: Frontend, index: int) -> None:
        self.frontend = frontend
        self.index = index
        self.front: FrontRing | None = None
        self.channel: Channel | None = None
        self.grefs: list[int] = []
        self.enabled = False
        self.queue: deque[Part] = deque()
        self.prepared: deque[Request] = deque()
        self.submitted: dict[int, Request] = {}
        # Requests given up at a reset or suspend: their answers may still come, once each. Until
        # then, or until the backend is closed, the ring names their references: were they given
        # out again, the backend would reach pages that are none of these requests'.
        self.abandoned: dict[int, list[int]] = {}
        self._last_id = 0
        self.task = frontend.domain.task(f"{frontend.path} ring {index}", self.poll)

    # life

    def connect(self, order: int) -> None:
        """Ring pages, their grants, and the port; HypercallError if one is not to be had."""
        granter = self.frontend.granter
        pfns: list[int] = []
        try:
            for _ in range(1 << order):
                pfns.append(granter.page())
                granter.fill(pfns[-1], b"")
            for pfn in pfns:
                self.grefs.append(granter.permit(pfn, readonly=False))
            evtchn = self.frontend.bus.evtchn
            self.channel = evtchn.open_unbound(granter.backend_domid, self.poll)
        except HypercallError:
            for ref, pfn in zip(self.grefs, pfns, strict=False):
                granter.revoke(ref, pfn)
            self.grefs.clear()
            for pfn in pfns:
                granter.put_page(pfn)
            raise
        self.front = FrontRing(
            self.frontend.domain, pfns, req_size=blkif.REQUEST_SIZE, rsp_size=blkif.RESPONSE_SIZE
        )

    @property
    def port(self) -> int:
        assert self.channel is not None
        return self.channel.port

    def enable(self) -> None:
        """Let requests out, those that waited first."""
        assert self.channel is not None
        self.enabled = True
        if self.frontend.bus.evtchn.unmask(self.channel) or self.queue:
            self.task.wake()

    def disable(self) -> None:
        """Nothing new goes out; answers still come in."""
        self.enabled = False

    def abandon(self) -> None:
        """Everything submitted or prepared ends as ERROR; SRBs in the queue wait on."""
        submitted, self.submitted = self.submitted, {}
        prepared, self.prepared = self.prepared, deque()
        for request in submitted.values():
            self._release(request, self.abandoned.setdefault(request.id, []))
            request.srb.part_done(SrbStatus.ERROR)
        for request in prepared:
            self._release(request)
            request.srb.part_done(SrbStatus.ERROR)

    def take_back(self) -> list[Part]:
        """Everything submitted or prepared, to be done again, oldest first (blkif_recover).

        What the backend still maps a page of ends as ERROR.
        """
        requests = [*self.submitted.values(), *self.prepared]
        self.submitted, self.prepared = {}, deque()
        parts = []
        for request in requests:
            retired = self.abandoned.setdefault(request.id, [])
            segments, request.segments = request.segments, None
            self._release(request, retired)  # the pages of an indirect one's table
            if segments is None:
                nr_sectors = request.nr_sectors
            elif segments.ungrant(self.frontend.granter, retired):
                nr_sectors = segments.sectors()
            else:
                request.srb.part_done(SrbStatus.ERROR)
                continue
            parts.append(Part(request.srb, request.operation, request.sector, nr_sectors, segments))
        return parts

    def fail_queue(self) -> None:
        """What waits will not run: the target is broken, or goes."""
        queue, self.queue = self.queue, deque()
        for part in queue:
            part.end(self.frontend.granter, SrbStatus.ERROR)

    def disconnect(self) -> None:
        """Give port, grants and pages back; idempotent."""
        self.enabled = False
        self.abandon()
        for retired in self.abandoned.values():
            self.frontend.granter.free(retired)
        self.abandoned.clear()
        if self.channel is not None:
            self.frontend.bus.evtchn.close(self.channel)
            self.channel = None
        if self.front is not None:
            granter = self.frontend.granter
            for ref, pfn in zip(self.grefs, self.front.pfns, strict=True):
                if granter.revoke(ref, pfn, owned=True):
                    granter.put_page(pfn)
            self.grefs.clear()
            self.front = None

    @property
    def in_flight(self) -> int:
        return len(self.submitted)

    @property
    def is_idle(self) -> bool:
        return not (self.queue or self.prepared or self.submitted)

    def kick(self) -> None:
        """Tell the backend again, in case it missed the first time."""
        if self.channel is not None:
            self.frontend.bus.evtchn.send(self.channel)

    # requests

    def submit(self, part: Part) -> None:
        """Queue one part of an SRB, counted in its `outstanding`; it goes out with others."""
        self.queue.append(part)
        self.task.wake()

    def poll(self) -> None:
        """The DPC, also run by an event: answers first, since they make room."""
        front = self.front
        if front is None or self.frontend.broken:
            return
        try:
            self._complete(front)
            if self.enabled and (self.prepared or self.queue):
                self._submit(front)
            more = front.final_check()
        except (PeerProtocolError, HypercallError) as error:
            self.frontend.fail(str(error))
            return
        if more:
            self.task.wake()
        if self.is_idle:
            self.frontend.ring_idle()

    def _submit(self, front: FrontRing) -> None:
        free = front.free
        slots: list[bytes] = []
        prepared = self.prepared
        while len(slots) < free:
            if not prepared:
                if not self.queue:
                    break
                self._prepare(self.queue.popleft())
                continue
            request = prepared.popleft()
            self.submitted[request.id] = request
            slots.append(request.slot)
        if slots and front.push(b"".join(slots), len(slots)):
            assert self.channel is not None
            self.frontend.bus.evtchn.send(self.channel)

    def _id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _prepare(self, part: Part) -> None:
        if part.operation <= WRITE:
            self._prepare_transfer(part)
        elif part.operation == DISCARD:
            rid = self._id()
            slot = blkif.DISCARD.pack(
                DISCARD, 0, self.frontend.handle, rid, part.sector, part.nr_sectors
            )
            self.prepared.append(
                Request(part.srb, DISCARD, rid, slot, part.sector, part.nr_sectors)
            )
        else:
            self._prepare_flush(part.srb)

    def _prepare_flush(self, srb: Srb) -> None:
        """By what the backend still says it can; if it can nothing, there is no cache."""
        backend = self.frontend.backend
        if backend.flush_cache:
            operation = FLUSH_DISKCACHE
        elif backend.barrier:
            operation = WRITE_BARRIER
        else:
            srb.part_done(SrbStatus.SUCCESS)
            return
        rid = self._id()
        slot = blkif.request(0).pack(operation, 0, self.frontend.handle, rid, 0)
        self.prepared.append(Request(srb, operation, rid, slot))

    def _prepare_transfer(self, part: Part) -> None:
        granter = self.frontend.granter
        backend = self.frontend.backend
        left = part.nr_sectors << SECTOR_SHIFT
        writes = part.operation == WRITE
        try:
            if part.segments is None:
                segments = sg.build(granter, part.srb, left, backend.sector_size, writes)
            else:
                segments = part.segments
                segments.grant(granter, readonly=writes)
        except HypercallError:
            part.srb.part_done(SrbStatus.BUSY)
            return
        most = min(backend.indirect_segments, self.frontend.personality.indirect_max)
        sector, start, count = part.sector, 0, len(segments.pfns)
        parts = 0
        while start < count:
            wide = most > blkif.SEGMENTS_MAX and left >= blkif.SEGMENTS_MAX * PAGE_SIZE
            end = min(start + (most if wide else blkif.SEGMENTS_MAX), count)
            piece = segments if end - start == count else segments.part(start, end)
            request = self._request(part.srb, part.operation, sector, piece)
            if request is None:
                # No page for the segment table: nothing of the rest can go out either.
                segments.part(end, count).release(granter)
                break
            self.prepared.append(request)
            parts += 1
            moved = piece.sectors()
            sector += moved
            left -= moved << SECTOR_SHIFT
            start = end
        short = start < count
        part.srb.outstanding += parts + short - 1
        if short:
            part.srb.part_done(SrbStatus.BUSY)

    def _request(self, srb: Srb, operation: int, sector: int, segments: Segments) -> Request | None:
        """Encode; None (and nothing granted) if an indirect one finds no pages."""
        rid = self._id()
        count = len(segments.pfns)
        handle = self.frontend.handle
        if count <= blkif.SEGMENTS_MAX:
            slot = blkif.request(count).pack(operation, count, handle, rid, sector, *segments.wire)
            return Request(srb, operation, rid, slot, sector, segments=segments)
        request = Request(srb, operation, rid, b"", sector, segments=segments)
        try:
            for start in range(0, count, SEGMENTS_PER_PAGE):
                wire = segments.wire[3 * start : 3 * (start + SEGMENTS_PER_PAGE)]
                request.indirect.append(self._segment_page(wire))
        except HypercallError:
            self._release(request)
            return None
        refs = [ref for ref, _pfn in request.indirect]
        refs += [0] * (blkif.INDIRECT_PAGES_MAX - len(refs))
        request.slot = blkif.INDIRECT.pack(INDIRECT, operation, count, rid, sector, handle, *refs)
        return request

    def _segment_page(self, wire: list[int]) -> tuple[int, int]:
        granter = self.frontend.granter
        pfn = granter.page()
        granter.fill(pfn, blkif.segments(len(wire) // 3).pack(*wire))
        try:
            return granter.permit(pfn, readonly=True), pfn
        except HypercallError:
            granter.put_page(pfn)
            raise

    # answers

    def _complete(self, front: FrontRing) -> None:
        count, responses = front.take()
        if not count:
            return
        submitted = self.submitted
        for rid, _operation, status in blkif.RESPONSE.iter_unpack(responses):
            request = submitted.pop(rid, None)
            if request is not None:
                self._finish(request, status)
            elif rid in self.abandoned:
                self.frontend.granter.free(self.abandoned.pop(rid))
            else:
                raise PeerProtocolError(f"an answer to request {rid:#x}, which is not in flight")

    def _finish(self, request: Request, status: int) -> None:
        if status == EOPNOTSUPP and self._is_redone(request):
            return
        if status == OKAY and request.operation == READ:
            assert request.segments is not None
            request.segments.copy_out(self.frontend.granter)
        clean = self._release(request)
        request.srb.part_done(self._outcome(request, status))
        if not clean:
            raise PeerProtocolError(f"request {request.id:#x} is answered but its pages are mapped")

    def _outcome(self, request: Request, status: int) -> SrbStatus:
        """Unlike in the driver, what is not supported is a success only where that is harmless."""
        if status == EOPNOTSUPP and request.operation == DISCARD:
            self.frontend.backend.discard = False
            return SrbStatus.SUCCESS
        return SrbStatus.SUCCESS if status == OKAY else SrbStatus.ERROR

    def _is_redone(self, request: Request) -> bool:
        """An operation that is not supported after all, in another way if there is one."""
        backend = self.frontend.backend
        if request.operation in (FLUSH_DISKCACHE, WRITE_BARRIER):
            if request.operation == FLUSH_DISKCACHE:
                backend.flush_cache = False
            else:
                backend.barrier = False
            self._prepare_flush(request.srb)
            return True
        if not request.indirect:
            return False
        backend.indirect_segments = 0
        self._split(request)
        return True

    def _split(self, request: Request) -> None:
        """An indirect request as direct ones; its data stays granted."""
        segments = request.segments
        assert segments is not None
        request.segments = None
        self._release(request)
        again: list[Request] = []
        sector = request.sector
        for start in range(0, len(segments.pfns), blkif.SEGMENTS_MAX):
            piece = segments.part(start, start + blkif.SEGMENTS_MAX)
            direct = self._request(request.srb, request.operation, sector, piece)
            assert direct is not None
            again.append(direct)
            sector += piece.sectors()
        request.srb.outstanding += len(again) - 1
        self.prepared.extendleft(reversed(again))

    def _release(self, request: Request, retired: list[int] | None = None) -> bool:
        """Take a request's grants back; False if the backend still maps a page of it."""
        granter = self.frontend.granter
        clean = True
        for ref, pfn in request.indirect:
            if granter.revoke(ref, pfn, True, retired):
                granter.put_page(pfn)
            else:
                clean = False
        request.indirect.clear()
        if request.segments is not None and not request.segments.release(granter, retired):
            clean = False
        request.segments = None
        return clean
