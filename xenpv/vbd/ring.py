"""One queue of a XenVbd target: SRBs in, requests on the ring, completions (win-xenvbd ring.c).

An SRB waits in `queue` until the ring has room, is then prepared (granted, split, encoded)
into requests, and these are submitted. What the backend writes is copied out once; an
answer that cannot be one raises PeerProtocolError inside, and breaks the target.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from xenpv.bus.evtchn import Channel
from xenpv.bus.ring import FrontRing
from xenpv.errors import HypercallError, PeerProtocolError
from xenpv.vbd import blkif
from xenpv.vbd.bounce import Bounce, BouncePages, Retired, bounce_of
from xenpv.vbd.preparer import Preparer
from xenpv.vbd.quirks import EOPNOTSUPP_SUCCESS, SCSISTATUS_40
from xenpv.vbd.request import DISCARD, EOPNOTSUPP, OKAY, READ, Part, Request
from xenpv.vbd.srb import ScsiStatus, SrbStatus
from xenpv.vbd.watchdog import Watchdog

if TYPE_CHECKING:
    from xenpv.vbd.frontend import Frontend

SUCCESS: Final = SrbStatus.SUCCESS


class Ring:
    """A queue of `frontend`. Everything it holds of the hypervisor exists between `connect`
    and `disconnect`; SRBs that wait in `queue` survive both.
    """

    def __init__(self, frontend: Frontend, index: int) -> None:
        self.frontend = frontend
        self.index = index
        self.front: FrontRing | None = None
        self.channel: Channel | None = None
        self.bounce: Bounce = BouncePages(frontend.granter)
        self.preparer: Preparer | None = None  # once both ends are connected
        self.watchdog: Watchdog | None = None
        self.grefs: list[int] = []
        self.enabled = False
        self.queue: deque[Part] = deque()
        self.prepared: deque[Request] = deque()
        self.submitted: dict[int, Request] = {}
        # What is left of requests given up at a reset or suspend: their answers may still come,
        # once each.
        self.abandoned: dict[int, Retired] = {}
        self.shadow: list[int] = []  # free ids, where a request has a place in a shadow ring
        self.batch = 0  # responses that one pass takes at most
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
            self.frontend.domain,
            pfns,
            req_size=blkif.REQUEST_SIZE,
            rsp_size=blkif.RESPONSE_SIZE,
            kind=blkif.RING,
        )
        size = self.front.size
        if self.frontend.personality.has_shadow:
            self.shadow, self.batch = list(range(size - 1, -1, -1)), size
        else:
            self.batch = size // 4 + 1
        if self.frontend.personality.has_watchdog:
            self.watchdog = Watchdog(self)

    @property
    def port(self) -> int:
        assert self.channel is not None
        return self.channel.port

    def enable(self) -> None:
        """Let requests out, those that waited first."""
        assert self.channel is not None
        frontend = self.frontend
        if self.preparer is None:
            self.bounce = bounce_of(frontend.granter, frontend.backend.persistent, frontend.trusted)
            self.preparer = Preparer(frontend, self.bounce)
        self.enabled = True
        if frontend.bus.evtchn.unmask(self.channel) or self.queue:
            self.task.wake()

    def disable(self) -> None:
        """Nothing new goes out; answers still come in."""
        self.enabled = False

    def abandon(self) -> None:
        """Everything submitted or prepared ends as ERROR; SRBs in the queue wait on."""
        for request, _clean in self._withdrawn():
            request.srb.part_done(SrbStatus.ABORTED)

    def take_back(self) -> list[Part]:
        """Everything submitted or prepared, to be done again, oldest first (blkif_recover).

        What the backend still maps a page of ends as ERROR.
        """
        parts = []
        for request, clean in self._withdrawn():
            if clean:
                parts.append(request.part())
            else:
                request.srb.part_done(SrbStatus.ABORTED)
        return parts

    def _withdrawn(self) -> list[tuple[Request, bool]]:
        """Requests that are none any more, oldest first, and whether each one's grants ended."""
        submitted, self.submitted = self.submitted, {}
        prepared, self.prepared = self.prepared, deque()
        withdrawn = []
        for rid, request in submitted.items():
            retired = self.abandoned[rid] = Retired()
            withdrawn.append((request, request.release(self.bounce, retired)))
        withdrawn += [(request, request.release(self.bounce)) for request in prepared]
        return withdrawn

    def fail_queue(self) -> None:
        """What waits will not run: the target is broken, or goes."""
        queue, self.queue = self.queue, deque()
        for part in queue:
            part.srb.part_done(SrbStatus.ABORTED)

    def disconnect(self) -> None:
        """Give port, grants and pages back; idempotent."""
        self.enabled = False
        self.abandon()
        for retired in self.abandoned.values():
            self.bounce.end(retired)
        self.abandoned.clear()
        self.bounce.close()
        watchdog, self.watchdog = self.watchdog, None
        if watchdog is not None:
            watchdog.forget()
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
            more = self._complete(front)
            if self.enabled and (self.prepared or self.queue):
                self._submit(front)
        except (PeerProtocolError, HypercallError) as error:
            self.frontend.fail(str(error))
            return
        if more:
            self.task.wake()
        if self.is_idle:
            self.frontend.ring_idle()

    def _submit(self, front: FrontRing) -> None:
        preparer, prepared, queue = self.preparer, self.prepared, self.queue
        assert preparer is not None
        free = front.free
        slots: list[bytes] = []
        while len(slots) < free:
            if not prepared:
                if not queue:
                    break
                prepared.extend(preparer.prepare(queue.popleft()))
                continue
            request = prepared.popleft()
            if self.shadow:
                request.place(self.shadow.pop())
            self.submitted[request.id] = request
            slots.append(request.slot)
        if slots and front.push(b"".join(slots), len(slots)):
            assert self.channel is not None
            self.frontend.bus.evtchn.send(self.channel)

    # answers

    def _complete(self, front: FrontRing) -> bool:
        """Those of one pass; whether there are more."""
        count, responses, more = front.reap(self.batch)
        if not count:
            return more
        submitted, has_shadow = self.submitted, self.frontend.personality.has_shadow
        for rid, operation, status in blkif.RESPONSE.iter_unpack(responses):
            request = submitted.pop(rid, None)
            if request is None:
                self._late(rid)
            elif has_shadow and operation != request.operation:
                submitted[rid] = request
                raise PeerProtocolError(
                    f"an answer to operation {operation}: request {rid:#x} is {request.operation}"
                )
            else:
                self._finish(request, status)
            if has_shadow:
                self.shadow.append(rid)
        return more

    def _late(self, rid: int) -> None:
        """The answer to a request that was given up, or to none."""
        retired = self.abandoned.pop(rid, None)
        if retired is None:
            raise PeerProtocolError(f"an answer to request {rid:#x}, which is not in flight")
        self.bounce.end(retired)

    def _finish(self, request: Request, status: int) -> None:
        if status == EOPNOTSUPP and self._is_redone(request):
            return
        outcome = self._outcome(request, status)
        clean = request.release(self.bounce)
        request.srb.part_done(outcome)
        if not clean:
            raise PeerProtocolError(f"request {request.id:#x} is answered but its pages are mapped")

    def _is_redone(self, request: Request) -> bool:
        """Its backend does not know it: whether it is done in another way, or need not be."""
        preparer, quirks = self.preparer, self.frontend.target.quirks
        assert preparer is not None
        has_data = request.segments is not None
        if EOPNOTSUPP_SUCCESS in quirks:
            # The driver looks at what an indirect request does, which is nothing to forget.
            if not has_data:
                preparer.forget(request)
            return False
        preparer.forget(request)
        if request.operation == DISCARD or (has_data and not request.indirect):
            return False
        if not has_data and SCSISTATUS_40 in quirks and not self._flushes:
            request.srb.success_status = ScsiStatus.TASK_ABORTED
        self.prepared.extendleft(reversed(preparer.again(request)))
        return True

    @property
    def _flushes(self) -> bool:
        backend = self.frontend.backend
        return backend.flush_cache or backend.barrier

    def _outcome(self, request: Request, status: int) -> SrbStatus:
        """Unlike in the driver, what is not supported is a success only where that is harmless."""
        if status == OKAY:
            return self._okay(request)
        srb, quirks = request.srb, self.frontend.target.quirks
        if status != EOPNOTSUPP or not (
            request.operation == DISCARD or EOPNOTSUPP_SUCCESS in quirks
        ):
            return SrbStatus.ERROR
        if SCSISTATUS_40 in quirks:
            srb.success_status = ScsiStatus.TASK_ABORTED
        if EOPNOTSUPP_SUCCESS in quirks and srb.outcome is SrbStatus.ERROR:
            srb.outcome = SUCCESS
        return SUCCESS

    def _okay(self, request: Request) -> SrbStatus:
        if request.operation == READ:
            assert request.segments is not None
            try:
                request.segments.copy_out(self.bounce)
            except HypercallError:
                return SrbStatus.ERROR  # the SRB names pages that the guest does not have
        return SUCCESS
