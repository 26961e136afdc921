"""The one target of the crash driver: SRBs in four queues, polled (xencrsh pdo.c).

The dump stack submits an SRB and calls `interrupt` until it is complete; each call completes
what was answered, prepares what is fresh, submits what is prepared, and ends what waits for
all of that to be over.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from xenpv.abi.hvm import HVMMEM
from xenpv.errors import HypercallError, LocalProtocolError, PeerProtocolError
from xenpv.vbd import blkif
from xenpv.vbd.crash import scsi
from xenpv.vbd.crash.backend import CrashBackend
from xenpv.vbd.crash.gnttab import References
from xenpv.vbd.crash.heap import Heap
from xenpv.vbd.crash.request import (
    BOUNCE_PAGES,
    BREAKS_MAX,
    EOPNOTSUPP,
    FLUSH_DISKCACHE,
    OKAY,
    READ,
    REQUESTS_MAX,
    SEGMENTS_MAX,
    TRANSFER_MAX,
    WRITE,
    WRITE_BARRIER,
    Request,
    Segment,
    segments,
)
from xenpv.vbd.crash.ring import Ring
from xenpv.vbd.quirks import (
    CRASH_LOST_SRB,
    CRASH_RANGE,
    CRASH_READ_ONLY,
    CRASH_RESET_STATUS,
    CRASH_STATUS,
)
from xenpv.vbd.srb import ScsiStatus, Srb, SrbFunction, SrbStatus
from xenpv.xen.domain import Domain
from xenpv.xen.loop import NS_PER_S

ANSWER_MAX_NS: Final = 60 * NS_PER_S  # the original waits for ever

DRAINS: Final = (SrbFunction.FLUSH, SrbFunction.SHUTDOWN)
RESETS: Final = (SrbFunction.RESET_DEVICE, SrbFunction.RESET_BUS)


class CrashTarget:
    """`ring` is None until the driver is connected, `broken` why nothing is sent any more."""

    def __init__(
        self,
        domain: Domain,
        heap: Heap,
        references: References,
        backend: CrashBackend,
        quirks: frozenset[str],
    ) -> None:
        self.domain = domain
        self.heap = heap
        self.references = references
        self.backend = backend
        self.quirks = quirks
        self.ring: Ring | None = None
        self.broken = ""
        self.fresh: deque[Srb] = deque()
        self.prepared: deque[list[Request]] = deque()
        self.shutdown: deque[Srb] = deque()  # those that wait for the others to be over
        self._bounce = [heap.allocate(1) for _ in range(BOUNCE_PAGES)]
        self._zero_page = heap.allocate(1)
        self._deadline = 0  # of what is submitted

    @property
    def in_flight(self) -> int:
        """Requests that the backend has not answered."""
        return 0 if self.ring is None else len(self.ring.submitted)

    # SRBs

    def submit(self, srb: Srb) -> None:
        """BuildIo and StartIo; TargetId is not looked at. LocalProtocolError: more bytes or
        breaks than the adapter told the dump stack it takes.
        """
        if srb.data_transfer_length > TRANSFER_MAX or len(srb.data) > BREAKS_MAX + 1:
            raise LocalProtocolError(
                f"an SRB of {srb.data_transfer_length} bytes in {len(srb.data)} pieces: at most "
                f"{TRANSFER_MAX} in {BREAKS_MAX + 1} fit"
            )
        if srb.function == SrbFunction.ABORT_COMMAND:
            srb.complete(SrbStatus.ABORT_FAILED)
        elif srb.function == SrbFunction.EXECUTE_SCSI:
            self._execute(srb)
        elif srb.function in DRAINS:
            self.shutdown.append(srb)
            self._kick()
        elif srb.function in RESETS:
            self._reset(srb)
        else:
            srb.complete(SrbStatus.INVALID_REQUEST)

    def _execute(self, srb: Srb) -> None:
        operation = scsi.opcode(srb.cdb)
        if srb.path_id:
            srb.complete(SrbStatus.INVALID_PATH_ID)
        elif srb.lun:
            srb.complete(SrbStatus.INVALID_LUN)
        elif operation in scsi.READS or operation in scsi.WRITES:
            self._read_write(srb, writes=operation in scsi.WRITES)
        elif operation in scsi.SYNCHRONIZE_CACHE:
            self._synchronize_cache(srb)
        else:
            scsi.execute(scsi.Asked(self.domain, self.backend, srb, self.quirks))

    @property
    def is_connected(self) -> bool:
        return self.ring is not None and not self.broken

    def _is_protected(self, srb: Srb) -> bool:
        """A write to a read-only disk, which ends here."""
        protected = self.backend.is_readonly and CRASH_READ_ONLY not in self.quirks
        if protected:
            srb.complete(SrbStatus.ERROR, ScsiStatus.TASK_ABORTED)
        return protected

    def _read_write(self, srb: Srb, *, writes: bool) -> None:
        backend = self.backend
        lba, count = scsi.address(srb.cdb, self.quirks)
        end = backend.capacity - (CRASH_RANGE in self.quirks)
        nr_bytes = count * backend.sector_size
        if (
            not self.is_connected
            or lba >= backend.capacity
            or lba + count > end
            or nr_bytes > srb.data_transfer_length
        ):
            srb.complete(SrbStatus.INVALID_REQUEST, ScsiStatus.TASK_ABORTED)
        elif writes and self._is_protected(srb):
            return
        elif not count:
            srb.complete(SrbStatus.SUCCESS)
        else:
            srb.data_transfer_length = nr_bytes
            self.fresh.append(srb)
            self._prepare_fresh()
            self._submit_prepared()

    def _synchronize_cache(self, srb: Srb) -> None:
        if not self.is_connected:
            srb.complete(SrbStatus.INVALID_REQUEST, ScsiStatus.TASK_ABORTED)
            return
        if self._is_protected(srb):
            return
        lba, _count = scsi.address(srb.cdb, self.quirks)
        operation = self._flush_operation()
        if operation is None:
            srb.complete(SrbStatus.SUCCESS, ScsiStatus.GOOD)
            return
        srb.outstanding = 1
        self.prepared.append([Request(srb, operation, self._wire_sector(lba))])
        self._submit_prepared()

    def _flush_operation(self) -> int | None:
        """What a flush is now: a barrier is preferred."""
        if self.backend.barrier:
            return WRITE_BARRIER
        return FLUSH_DISKCACHE if self.backend.flush_cache else None

    def _wire_sector(self, lba: int) -> int:
        size = self.backend.sector_size
        return (lba * size // self.backend.units.request_unit(size)) & 0xFFFF_FFFF_FFFF_FFFF

    def _reset(self, srb: Srb) -> None:
        """What is fresh ends here; the SRB when the rest is answered."""
        fresh, self.fresh = self.fresh, deque()
        for one in fresh:
            one.complete(SrbStatus.ABORTED, ScsiStatus.TASK_ABORTED)
        self.shutdown.append(srb)
        self._kick()

    def _kick(self) -> None:
        if self.ring is not None and not self.broken:
            self.ring.kick()
        self._complete_shutdown()

    # the interrupt routine, which is polled

    def interrupt(self) -> None:
        """One look. What the backend does wrong breaks the target: every SRB ends as ERROR."""
        if self.ring is None or self.broken:
            self._complete_shutdown()
            return
        try:
            for request, status in self.ring.take():
                self._complete(request, status)
        except PeerProtocolError as error:
            self._break(str(error))
        if self.in_flight and self.domain.loop.now >= self._deadline and not self.broken:
            self._break(f"no answer for {ANSWER_MAX_NS // NS_PER_S} s")
        if not self.broken:
            self._prepare_fresh(again=True)
            self._submit_prepared()
        self._complete_shutdown()

    def _complete(self, request: Request, status: int) -> None:
        srb = request.srb
        kept = status == OKAY and request.operation == READ
        released = self._release(request, copy_out=kept)
        self._deadline = self.domain.loop.now + ANSWER_MAX_NS
        outcome = self._outcome(request, status)
        if outcome is None:
            self.prepared.append([request])
            return
        srb.part_done(outcome)
        if not released:
            self._break("the backend holds on to a page of a request that it answered")

    def _outcome(self, request: Request, status: int) -> SrbStatus | None:
        """None: it is sent again, as something else."""
        if status == OKAY or CRASH_STATUS in self.quirks:
            return SrbStatus.SUCCESS
        if status != EOPNOTSUPP or request.operation in (READ, WRITE):
            return SrbStatus.ERROR
        if request.operation == WRITE_BARRIER:
            self.backend.barrier = False
        else:
            self.backend.flush_cache = False
        other = self._flush_operation()
        if other is None:
            return SrbStatus.SUCCESS
        request.operation = other
        return None

    def _release(self, request: Request, *, copy_out: bool) -> bool:
        """Access ends; False: not of every page."""
        clean = True
        for one in request.segments:
            if copy_out:
                self._copy_out(one)
            if not self.references.revoke(one.gref):
                clean = False
            elif one.pieces:
                self._bounce.append(one.pfn)
        request.segments = []
        return clean

    def _prepare_fresh(self, *, again: bool = False) -> None:
        """What does not fit now waits at the head of the queue for the next look."""
        while self.fresh:
            srb = self.fresh.popleft()
            if not self._prepare(srb) and not srb.is_complete:
                if not (again and CRASH_LOST_SRB in self.quirks):
                    self.fresh.appendleft(srb)
                return

    def _prepare(self, srb: Srb) -> bool:
        """Build its requests. False: not now, there is no page or reference left; an SRB that
        will never fit ends as ERROR.
        """
        backend = self.backend
        lba, _count = scsi.address(srb.cdb, self.quirks)
        writes = scsi.opcode(srb.cdb) in scsi.WRITES
        made = segments(srb.data, srb.data_transfer_length, backend.sector_size)
        bounced = sum(bool(one.pieces) for one in made)
        if len(made) > SEGMENTS_MAX or bounced > BOUNCE_PAGES:
            srb.complete(SrbStatus.ERROR, ScsiStatus.TASK_ABORTED)
            return False
        if bounced > len(self._bounce) or len(made) > len(self.references.free):
            if not self.in_flight and not self.prepared:
                srb.complete(SrbStatus.ERROR, ScsiStatus.TASK_ABORTED)
            return False
        requests: list[Request] = []
        at = lba * backend.sector_size
        unit = backend.units.request_unit(backend.sector_size)
        for first in range(0, len(made), blkif.SEGMENTS_MAX):
            part = made[first : first + blkif.SEGMENTS_MAX]
            requests.append(Request(srb, WRITE if writes else READ, at // unit, part))
            at += sum(one.length for one in part)
        assert len(requests) <= REQUESTS_MAX
        for one in made:
            self._grant(one, writes=writes)
        srb.outstanding = len(requests)
        self.prepared.append(requests)
        return True

    def _grant(self, one: Segment, *, writes: bool) -> None:
        assert self.ring is not None
        if one.pieces:
            one.pfn = self._bounce.pop()
            if writes:
                self._copy_in(one)
        page = one.pfn
        if writes and not one.pieces and not self._is_ram(page):
            page = self._zero_page
        one.gref = self.references.permit(self.ring.backend_domid, page, readonly=writes)

    def _copy_in(self, one: Segment) -> None:
        """Into a bounce page; what is no memory is zeros."""
        read, is_ram = self.domain.read, self._is_ram
        data = [read(*piece) if is_ram(piece[0]) else bytes(piece[2]) for piece in one.pieces]
        self.domain.write(one.pfn, 0, b"".join(data))

    def _copy_out(self, one: Segment) -> None:
        """Out of a bounce page, where that is one."""
        at = 0
        for pfn, offset, length in one.pieces:
            if self._is_ram(pfn):
                self.domain.write(pfn, offset, self.domain.read(one.pfn, at, length))
            at += length

    def _is_ram(self, pfn: int) -> bool:
        """Whether there is memory: what a balloon took, or a hole has, is none."""
        hvm, me = self.domain.hvm, self.domain.DOMID_SELF
        try:
            return hvm.get_mem_type(me, pfn) == HVMMEM.ram_rw
        except HypercallError:
            return False

    def _submit_prepared(self) -> None:
        ring = self.ring
        while self.prepared and ring is not None and not self.broken:
            if not ring.has_room(len(self.prepared[0])):
                return
            if not ring.submitted:
                self._deadline = self.domain.loop.now + ANSWER_MAX_NS
            ring.push(self.prepared.popleft(), self.backend.units, self.backend.sector_size)

    def _complete_shutdown(self) -> None:
        if not self.shutdown or self.fresh or self.prepared or self.in_flight:
            return
        done, self.shutdown = self.shutdown, deque()
        for srb in done:
            kept = srb.function == SrbFunction.RESET_DEVICE and CRASH_RESET_STATUS in self.quirks
            srb.complete(SrbStatus.INVALID_REQUEST if kept else SrbStatus.SUCCESS)

    def _break(self, why: str) -> None:
        """The pages of what is in flight are the backend's for good: they are not given back."""
        self.broken = why
        lost: list[Srb] = []
        if self.ring is not None:
            lost += [one.srb for one in self.ring.submitted.values()]
            self.ring.submitted.clear()
        lost += [one.srb for requests in self.prepared for one in requests]
        lost += self.fresh
        self.prepared.clear()
        self.fresh.clear()
        for srb in lost:
            if not srb.is_complete:
                srb.complete(SrbStatus.ERROR, ScsiStatus.TASK_ABORTED)
