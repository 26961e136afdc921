"""A ring served request by request: what BlkRing, which works in batches, does not do.

Every profile's rules, every unit, persistent grants, and I/Os that take time. A request is
taken off the ring once, judged, waits behind a barrier or for the back-off after an error,
has its pages mapped or copied, is handed to the block layer, and is answered once: with its
pages given back before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from xenpv.abi._kernel import ffi, lib
from xenpv.back.blkif import SEGMENT, Abi
from xenpv.back.blkpages import BlkPages
from xenpv.back.blkprofile import Settings
from xenpv.back.blkqueue import BlockQueue, Io, Kind
from xenpv.back.blkring import BOUNCE_BYTES, Bounce, Vbd
from xenpv.back.blkrules import (
    DISCARD,
    EOPNOTSUPP,
    ERROR,
    FLUSH_DISKCACHE,
    OKAY,
    READ,
    WRITE,
    WRITE_BARRIER,
    Access,
    Geometry,
    Refusal,
    Request,
    Segment,
    parse,
    refusal,
)
from xenpv.back.persistent import Page, PersistentGrants
from xenpv.back.ring import BackRing
from xenpv.errors import HypercallError
from xenpv.host.image import ImageError
from xenpv.xen.domain import PAGE_SIZE, Domain
from xenpv.xen.loop import Task, Timer


class BlkServer:
    """Requests of one ring against one disk. `service` is one pass.

    As BlkRing's: PeerProtocolError where the frontend's producer index is out of bounds,
    HypercallError where a ring page is no longer mapped; break the device on either.
    `task` is what calls `service`: it is woken when there is something to answer, or a
    request need not wait any more. It must be set before the first pass.
    """

    task: Task

    def __init__(
        self,
        ring: BackRing,
        port: int,
        abi: Abi,
        granter: Domain,
        bounce: Bounce,
        settings: Settings,
        *,
        name: str = "blkback",
        persistent: bool = False,
    ) -> None:
        self.ring = ring
        self.domain: Domain = ring.domain
        self.port = port
        self.abi = abi
        self.granter = granter
        self.bounce = bounce
        self.settings = settings
        self.rules = rules = settings.profile.rules
        kept = PersistentGrants() if persistent and settings.profile.persistent else None
        self.pages = BlkPages(
            ring.domain, granter.domid, name, batch=rules.map_batch, persistent=kept
        )
        self.queue = BlockQueue(ring.domain, self, name, settings.latency_ns, ordered=rules.ordered)
        self._waiting: deque[Request] = deque()  # taken, and not begun
        self._begun: dict[Request, list[Page]] = {}
        self._done: list[tuple[Request, int]] = []  # not yet told
        self._resume_at = 0  # virtual ns: the end of the back-off
        self._alarm: Timer | None = None
        self._in_pass = False
        self._gone = False
        self._vbd: Vbd | None = None
        self.lost: list[str] = []  # feature keys to write 0 to: the image cannot do that

    @property
    def in_flight(self) -> int:
        """Requests taken and not yet answered; none once it was abandoned."""
        return 0 if self._gone else self.ring.in_flight

    @property
    def persistent(self) -> PersistentGrants | None:
        return self.pages.persistent

    def service(self, vbd: Vbd) -> bool:
        """Take and begin what can be begun, answer what is done; True: there are more."""
        self._vbd = vbd
        self._in_pass = True
        try:
            if not self._waiting and not self._rests:
                self._take()
            self._begin_waiting()
        finally:
            self._in_pass = False
        self._answer()
        if self._waiting or self._rests or self.ring.in_flight >= self.ring.size:
            return False  # the task is woken when that ends
        return self.ring.final_check()

    def _take(self) -> None:
        """As many as there are slots for: one for each of a ring's entries."""
        size = self.abi.request_size
        count, raw = self.ring.take(self.ring.size - self.ring.in_flight)
        self._waiting += [
            parse(self.abi, raw[at : at + size]) for at in range(0, count * size, size)
        ]

    # what a request may do

    @property
    def _rests(self) -> bool:
        return self._resume_at > self.domain.loop.now

    def _rest(self) -> None:
        """Back off a bit."""
        self._resume_at = self.domain.loop.now + self.rules.backoff_ns
        if self._alarm is None:
            self._alarm = self.domain.timer(self.task)
        self._alarm.arm(self.rules.backoff_ns)

    def _begin_waiting(self) -> None:
        waiting, batched = self._waiting, self.rules.batched
        while waiting and not self._rests:
            disk = Geometry.of(self._disk, self.settings.units)
            if self._drains(waiting[0], disk):
                return
            group = list(waiting) if batched else [waiting[0]]
            for _ in group:
                waiting.popleft()
            self._begin(group, disk)

    def _drains(self, request: Request, disk: Geometry) -> bool:
        """Whether it is a barrier before which something of this ring is not done yet."""
        rules = self.rules
        return (
            request.operation == WRITE_BARRIER
            and bool(self._begun)
            and WRITE_BARRIER in rules.operations
            and not refusal(rules, (*rules.first, *rules.then), request, disk)
        )

    @property
    def _disk(self) -> Vbd:
        assert self._vbd is not None, "requests are begun in a pass"
        return self._vbd

    def _begin(self, group: list[Request], disk: Geometry) -> None:
        """Judge them, map their pages, and submit their I/Os; what fails is answered."""
        rules = self.rules
        known: list[Request] = []
        for request in group:
            if request.operation not in rules.operations:
                self._done.append((request, rules.unknown))
            elif request.operation == DISCARD:
                self._begin_discard(request, disk)
            elif self._passes(request, rules.first, disk):
                known.append(request)
        known = self._fetch_tables(known)
        known = [request for request in known if self._passes(request, rules.then, disk)]
        if rules.access is Access.MAP:
            known = self._map(known)
        self._submit(known, disk)

    def _passes(self, request: Request, checks: Sequence[Refusal], disk: Geometry) -> bool:
        if refusal(self.rules, checks, request, disk) is None:
            return True
        self._refuse(request)
        return False

    def _refuse(self, request: Request) -> None:
        self._done.append((request, ERROR))
        if self.rules.backoff_ns:
            self._rest()

    def _begin_discard(self, request: Request, disk: Geometry) -> None:
        rules = self.rules
        status = OKAY
        if refusal(rules, rules.discard, request, disk):
            status = ERROR
        elif not (self._disk.discard or rules.hints):
            status = EOPNOTSUPP
        elif not rules.hints and refusal(rules, (Refusal.ALIGNMENT,), request, disk):
            status = ERROR
        if status:
            self._done.append((request, status))
            return
        self._begun[request] = []
        self._start(Kind.DISCARD, [request], disk)

    # pages

    def _fetch_tables(self, requests: list[Request]) -> list[Request]:
        """Read segment tables, each once, out of pages that are unmapped again; those that
        have all their segments.
        """
        wanted = [(ref, True) for request in requests for ref in request.table]
        if not wanted:
            return requests
        pages = deque(self.pages.map(wanted))
        found: list[Request] = []
        for request in requests:
            own = [pages.popleft() for _ in request.table]
            mapped = [page for page in own if page is not None]
            try:
                if len(mapped) == len(own):
                    request.segments = self._read_table(request, mapped) or request.segments
            finally:
                self.pages.unmap(mapped)
            if len(mapped) == len(own):
                found.append(request)
            else:
                self._refuse(request)
        return found

    def _read_table(self, request: Request, pages: list[Page]) -> Sequence[Segment]:
        size = request.nr_segments * SEGMENT.size if request.table else 0
        pieces: list[int] = []
        for at, page in enumerate(pages):
            pieces += (page.pfn, 0, min(PAGE_SIZE, size - at * PAGE_SIZE))
        return tuple(SEGMENT.iter_unpack(self.domain.collect(pieces, size)))

    def _map(self, requests: list[Request]) -> list[Request]:
        """All or none of each request's pages."""
        wanted = [
            (ref, request.inner != READ) for request in requests for ref, _, _ in request.segments
        ]
        pages = deque(self.pages.map(wanted))
        found: list[Request] = []
        for request in requests:
            own = [pages.popleft() for _ in request.segments]
            mapped = [page for page in own if page is not None]
            if len(mapped) == len(own):
                self._begun[request] = mapped
                found.append(request)
            else:
                self.pages.unmap(mapped)
                self._refuse(request)
        return found

    def _pieces(self, requests: Sequence[Request], disk: Geometry) -> list[int]:
        """Where their bytes lie: pfn, offset, size of each segment."""
        unit = disk.segment_unit
        pieces: list[int] = []
        for request in requests:
            for page, (_, first, last) in zip(self._begun[request], request.segments, strict=True):
                pieces += (page.pfn, first * unit, (last - first + 1) * unit)
        return pieces

    def _copy(self, to_guest: bool, request: Request, disk: Geometry, local: Any) -> bool:
        """GNTTABOP_copy between a request's pages and `local`; False: one failed."""
        unit = disk.segment_unit
        ops: list[int] = []
        at = 0
        for ref, first, last in request.segments:
            size = (last - first + 1) * unit
            ops += (ref, first * unit | size << 16, at)
            at += size
        count = len(request.segments)
        failed = lib.grant_copy_local(
            self.domain.kernel, self.granter.kernel, to_guest, ops, count,
            ffi.from_buffer(local), at, ffi.new("int8_t[]", count),
        )  # fmt: skip
        if failed < 0:
            self.domain.fail(failed, "copy")
        return not failed

    # I/Os

    def _submit(self, requests: list[Request], disk: Geometry) -> None:
        for group in self._neighbours(requests, disk):
            kind = _KINDS[group[0].inner]
            data = None
            if self.rules.access is Access.COPY:
                self._begun[group[0]] = []
                if group[0].inner != READ:
                    data = bytearray(disk.length(group[0]))
                    if not self._copy(False, group[0], disk, data):
                        del self._begun[group[0]]
                        self._refuse(group[0])
                        continue
            self._start(kind, group, disk, data)

    def _neighbours(self, requests: list[Request], disk: Geometry) -> list[list[Request]]:
        """Requests that are one I/O: of a batch those that go on where the one before ends."""
        groups: list[list[Request]] = []
        end = size = 0
        for request in requests:
            offset, length = disk.offset(request), disk.length(request)
            size += length
            if (
                self.rules.batched
                and groups
                and groups[-1][0].inner == request.inner
                and offset == end
                and size <= BOUNCE_BYTES
            ):
                groups[-1].append(request)
            else:
                groups.append([request])
                size = length
            end = offset + length
        return groups

    def _start(
        self, kind: Kind, requests: list[Request], disk: Geometry, data: bytearray | None = None
    ) -> None:
        length = sum([disk.length(request) for request in requests])
        offset = disk.offset(requests[0])
        self.queue.submit(Io(kind=kind, offset=offset, length=length, requests=requests, data=data))

    def perform(self, io: Io) -> None:
        """An I/O's end has come."""
        try:
            status = _PERFORM[io.kind](self, io)
        except (ImageError, HypercallError):
            status = ERROR
        if status is not None:
            self._finish(io.requests, status)

    def _read(self, io: Io) -> int:
        disk = Geometry.of(self._disk, self.settings.units)
        buffer = self.bounce.view[: io.length]
        if io.length:
            self._disk.image.read_into(buffer, io.offset)
        if self.rules.access is Access.COPY:
            return OKAY if self._copy(True, io.requests[0], disk, buffer) else ERROR
        self.domain.scatter(self._pieces(io.requests, disk), buffer)
        return OKAY

    def _write(self, io: Io) -> int:
        data = io.data
        if data is None:
            disk = Geometry.of(self._disk, self.settings.units)
            data = self.domain.collect(self._pieces(io.requests, disk), io.length)
        if io.length:
            self._disk.image.write_from(memoryview(data), io.offset)
        return OKAY

    def _flush(self, io: Io) -> int | None:
        """A flush, then the data if there is any (REQ_PREFLUSH on a write)."""
        self._disk.image.flush()
        if not io.length:
            return OKAY
        io.kind = Kind.WRITE
        self.queue.submit(io)
        return None

    def _discard(self, io: Io) -> int:
        vbd, rules = self._disk, self.rules
        if not vbd.discard:
            return OKAY
        chunk = rules.discard_chunk or io.length
        at = 0
        while True:
            size = min(chunk, io.length - at)
            if not vbd.image.discard(io.offset + at, size) and not rules.hints:
                return EOPNOTSUPP
            at += size
            if at >= io.length:
                return OKAY

    # ends

    def _finish(self, requests: Sequence[Request], status: int) -> None:
        for request in requests:
            self.pages.unmap(self._begun.pop(request))
            self._done.append((request, status))
        if not (self._in_pass or self._gone):
            self.task.wake()

    def _answer(self) -> None:
        done, self._done = self._done, []
        if not done:
            return
        pack, inner = self.abi.response.pack, self.rules.echoes_inner
        packed = b"".join(
            [pack(one.rid, one.inner if inner else one.operation, status) for one, status in done]
        )
        if self.ring.push(packed, len(done)):
            self.domain.evtchn.send(self.port)

    def abandon(self) -> None:
        """The connection goes: what the disk was told to do it does, nothing is answered, and
        nothing stays mapped. A second call does nothing.
        """
        self._gone = True
        self._waiting.clear()
        self.queue.drain()
        for pages in self._begun.values():
            self.pages.unmap(pages)
        self._begun.clear()
        self._done.clear()
        self.pages.release()
        if self._alarm is not None:
            self._alarm.cancel()


_KINDS: Final = {
    READ: Kind.READ,
    WRITE: Kind.WRITE,
    WRITE_BARRIER: Kind.FLUSH,
    FLUSH_DISKCACHE: Kind.FLUSH,
}
_PERFORM: Final[dict[Kind, Callable[[BlkServer, Io], int | None]]] = {
    Kind.READ: BlkServer._read,
    Kind.WRITE: BlkServer._write,
    Kind.FLUSH: BlkServer._flush,
    Kind.DISCARD: BlkServer._discard,
}
