"""A ring served request by request: what BlkRing, which works in batches, does not do.

Every profile's rules, every unit, persistent grants, and I/Os that take time. A request is
taken off the ring once, judged, waits behind a barrier or for the back-off after an error,
has its pages mapped or copied, is handed to the block layer, and is answered once: with its
pages given back before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import attrs

from xenpv.back.blkdata import BlkData
from xenpv.back.blkif import Abi
from xenpv.back.blkpages import BlkPages
from xenpv.back.blkprofile import Settings
from xenpv.back.blkqueue import BlockQueue, Io, Kind
from xenpv.back.blkring import BOUNCE_BYTES, Bounce, Vbd
from xenpv.back.blkrules import (
    ALIGNMENT,
    DISCARD,
    EOPNOTSUPP,
    ERROR,
    FLUSH_DISKCACHE,
    OKAY,
    PROMISES,
    READ,
    WRITE,
    WRITE_BARRIER,
    Access,
    Geometry,
    Refusal,
    Request,
    parse,
    refusal,
)
from xenpv.back.persistent import PersistentGrants
from xenpv.back.ring import BackRing
from xenpv.errors import HypercallError
from xenpv.host.imageio import ImageError, ImageUnsupportedError
from xenpv.xen.domain import Domain
from xenpv.xen.loop import Task, Timer


@attrs.define(eq=False)
class Batch:
    """Requests of a pass that are answered together: how many are left, and those that ended."""

    left: int
    done: list[tuple[Request, int]] = attrs.field(factory=list)


class BlkServer:
    """Requests of one ring against one disk. `service` is one pass.

    As BlkRing's: PeerProtocolError where the frontend's producer index is out of bounds,
    HypercallError where a ring page is no longer mapped; break the device on either.
    `task` is what calls `service`: it is woken when there is something to answer, or a
    request need not wait any more. It must be set before the first pass.
    """

    task: Task
    _geometry: Geometry  # of the last pass

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
        domain = ring.domain
        self.ring = ring
        self.domain: Domain = domain
        self.port = port
        self.abi = abi
        self.granter = granter
        self.bounce = bounce
        self.settings = settings
        self.rules = rules = settings.profile.rules
        self.persistent = PersistentGrants() if persistent and settings.profile.persistent else None
        pages = BlkPages(
            domain, granter.domid, name, batch=rules.map_batch, persistent=self.persistent
        )
        self.data = BlkData(domain, granter, rules.access, pages)
        self.queue = BlockQueue(domain, self, name, settings.latency_ns, ordered=rules.ordered)
        self._waiting: deque[Request] = deque()  # taken, and not begun
        self._begun: list[Request] = []  # their I/O is under way
        self._batches: dict[Request, Batch] = {}
        self._done: list[tuple[Request, int]] = []  # not yet told
        self._resume_at = 0  # virtual ns: the end of the back-off
        self._alarm: Timer | None = None
        self._in_pass = False
        self._stopped = self._gone = False
        self._vbd: Vbd | None = None
        self.spurious = 0  # passes in a row that found nothing
        self.lost: list[str] = []  # keys of PROMISES to write 0 to, and to forget here

    @property
    def in_flight(self) -> int:
        """Requests taken and not yet answered; none once it was abandoned."""
        return 0 if self._gone else self.ring.in_flight

    def service(self, vbd: Vbd) -> bool:
        """Take and begin what can be begun, answer what is done; True: there are more."""
        self._vbd = vbd
        self._geometry = Geometry.of(vbd, self.settings.units)
        self._in_pass = True
        try:
            if not (self._waiting or self._rests or self._stopped):
                self._take()
            idle = not (self._waiting or self._done or self._begun)
            self.spurious = self.spurious + 1 if idle else 0
            self._begin_waiting()
        finally:
            self._in_pass = False
        self._answer()
        if self._stopped or self._waiting or self._rests or self.ring.in_flight >= self.ring.size:
            return False  # the task is woken when that ends
        return self.ring.final_check()

    def _take(self) -> None:
        """As many as there are slots for: one for each of a ring's entries."""
        size = self.abi.request_size
        count, raw = self.ring.take(self.ring.size - self.ring.in_flight)
        starts = range(0, count * size, size)
        self._waiting += [parse(self.abi, raw[at : at + size]) for at in starts]

    # waiting

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
            if self._begun and self._must_wait(waiting[0]):
                return
            group = list(waiting) if batched else [waiting[0]]
            for _ in group:
                waiting.popleft()
            self._begin(group)

    def _must_wait(self, request: Request) -> bool:
        """For what was begun before it: a barrier does, and where the rules say so whatever
        comes after one.
        """
        rules, disk = self.rules, self._geometry
        if rules.barrier_stops and self._begun[-1].operation == WRITE_BARRIER:
            return True
        disk.place(request)
        return (
            request.operation == WRITE_BARRIER
            and WRITE_BARRIER in rules.operations
            and not refusal(rules, (*rules.first, *rules.then), request, disk)
        )

    @property
    def _disk(self) -> Vbd:
        assert self._vbd is not None, "requests are begun in a pass"
        return self._vbd

    # what a request may do

    def _begin(self, group: list[Request]) -> None:
        """Judge them, map their pages, and submit their I/Os; what fails is answered."""
        rules = self.rules
        known: list[Request] = []
        if rules.batched:
            self._batches |= dict.fromkeys(group, Batch(len(group)))
        for request in group:
            if request.operation not in rules.operations:
                self._end(request, rules.unknown)
            elif request.operation == DISCARD:
                self._begin_discard(request)
            else:
                known.append(request)
        known = self._keep(known, self._judge(known, rules.first))
        known = self._keep(known, self.data.fetch_tables(known))
        for request in known:
            self._geometry.place(request)
        known = self._keep(known, self._judge(known, rules.then))
        known = self._keep(known, self.data.open(known))
        self._submit(known)

    def _judge(self, requests: list[Request], checks: Sequence[Refusal]) -> list[bool]:
        rules, disk = self.rules, self._geometry
        return [refusal(rules, checks, request, disk) is None for request in requests]

    def _keep(self, requests: list[Request], passes: list[bool]) -> list[Request]:
        """Those that pass; the others are refused."""
        if False not in passes:
            return requests
        for request, passed in zip(requests, passes, strict=True):
            if not passed:
                self._refuse(request)
        return [request for request, passed in zip(requests, passes, strict=True) if passed]

    def _refuse(self, request: Request) -> None:
        self._end(request, ERROR)
        if self.rules.backoff_ns:
            self._rest()

    def _begin_discard(self, request: Request) -> None:
        rules, disk = self.rules, self._geometry
        disk.place(request)
        status = OKAY
        if refusal(rules, rules.discard, request, disk):
            status = ERROR
        elif not (self._disk.discard or rules.hints):
            status = EOPNOTSUPP
        elif not rules.hints and refusal(rules, (ALIGNMENT,), request, disk):
            status = ERROR
        if status:
            self._end(request, status)
        else:
            self._start(Kind.DISCARD, [request])

    # I/Os

    def _submit(self, requests: list[Request]) -> None:
        for group in self._neighbours(requests):
            data = None
            if self.rules.access is Access.COPY and group[0].inner != READ:
                data = self.data.load(group, self._geometry)
                if data is None:
                    self._keep(group, [False] * len(group))
                    continue
            self._start(_KINDS[group[0].inner], group, data)

    def _neighbours(self, requests: list[Request]) -> list[list[Request]]:
        """Requests that are one I/O: of a batch those that go on where the one before ends."""
        if not self.rules.batched:
            return [[request] for request in requests]
        groups: list[list[Request]] = []
        end = size = 0
        for request in requests:
            offset, length = request.offset, request.length
            size += length
            if (
                groups
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

    def _start(self, kind: Kind, requests: list[Request], data: bytearray | None = None) -> None:
        self._begun += requests
        length = sum([request.length for request in requests])
        offset = requests[0].offset
        self.queue.submit(Io(kind=kind, offset=offset, length=length, requests=requests, data=data))

    def perform(self, io: Io) -> None:
        """An I/O's end has come."""
        try:
            status = _PERFORM[io.kind](self, io)
        except ImageUnsupportedError:
            status = self._unsupported(io)
        except (ImageError, HypercallError):
            status = ERROR
        if status is not None:
            self._finish(io.requests, status)

    def _unsupported(self, io: Io) -> int:
        """The image cannot flush, as it turns out."""
        if not self.rules.retracts:
            return ERROR
        key = PROMISES.get(io.requests[0].operation)
        if key is not None:
            self.lost.append(key)
        return EOPNOTSUPP

    def _read(self, io: Io) -> int:
        if not io.length:
            return OKAY
        buffer = self.bounce.view[: io.length]
        self._disk.image.read_into(buffer, io.offset)
        return OKAY if self.data.store(io.requests, self._geometry, buffer) else ERROR

    def _write(self, io: Io) -> int:
        if not io.length:
            return OKAY
        data = io.data
        if data is None:
            data = self.data.load(io.requests, self._geometry)
        assert data is not None, "mapped pages are there"
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
            self._begun.remove(request)
            self._end(request, status)
        if self._done and not (self._in_pass or self._gone):
            self.task.wake()

    def _end(self, request: Request, status: int) -> None:
        """It can be answered, with its pages given back; one of a batch with the others."""
        batch = self._batches.pop(request, None)
        ended = [(request, status)]
        if batch is not None:
            batch.left -= 1
            batch.done += ended
            if batch.left:
                return
            ended = batch.done
        self.data.close([one for one, _ in ended])
        self._done += ended

    def _answer(self) -> None:
        done = self._done
        if not done:
            return
        pack, inner = self.abi.response.pack, self.rules.echoes_inner
        packed = b"".join(
            [pack(one.rid, one.inner if inner else one.operation, status) for one, status in done]
        )
        notify = self.ring.push(packed, len(done))
        done.clear()
        if notify:
            self.domain.evtchn.send(self.port)

    def stop(self) -> bool:
        """xenblkd ends: nothing is taken any more, and what was not begun is on the ring as
        before; what was begun is answered. True: nothing is in flight.
        """
        self._stopped = True
        self.ring.untake(len(self._waiting))
        self._waiting.clear()
        return not self.in_flight

    def abandon(self) -> None:
        """The connection goes: what the disk was told to do it does, nothing is answered, and
        nothing stays mapped. A second call does nothing.
        """
        self._stopped = self._gone = True
        self._waiting.clear()
        self.queue.end()
        self._begun.clear()
        self._batches.clear()
        self._done.clear()
        self.data.release()
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
