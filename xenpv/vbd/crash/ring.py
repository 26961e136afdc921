"""The crash driver's ring: one page, 32 entries, looked at and never waited on."""

from __future__ import annotations

from xenpv.bus.ring import FrontRing
from xenpv.errors import PeerProtocolError
from xenpv.vbd import blkif
from xenpv.vbd.crash.gnttab import References
from xenpv.vbd.crash.heap import Heap
from xenpv.vbd.crash.request import Request
from xenpv.vbd.units import SectorUnits
from xenpv.xen.domain import Domain


class Ring:
    """A ring that domain `backend_domid` maps; `handle` names the disk in requests."""

    def __init__(
        self,
        domain: Domain,
        heap: Heap,
        references: References,
        backend_domid: int,
        handle: int,
    ) -> None:
        """HypercallError, CrashError: no port, page or reference is left."""
        self.domain = domain
        self.references = references
        self.backend_domid = backend_domid
        self.handle = handle
        self.submitted: dict[int, Request] = {}
        self._last_id = 0
        self.pfn = heap.allocate(1)
        self.gref = references.permit(backend_domid, self.pfn, readonly=False)
        self.port = domain.evtchn.alloc_unbound(backend_domid)
        self._ring = FrontRing(
            domain,
            [self.pfn],
            req_size=blkif.REQUEST_SIZE,
            rsp_size=blkif.RESPONSE_SIZE,
            kind=blkif.RING,
        )

    def has_room(self, count: int) -> bool:
        """More free slots than requests, as the original asks for."""
        return self._ring.free > count

    def push(self, requests: list[Request], units: SectorUnits, sector_size: int) -> None:
        """Publish them; the backend hears of it if it asked to."""
        unit = units.segment_unit(sector_size)
        data = b""
        for request in requests:
            self._last_id += 1
            request.id = self._last_id
            self.submitted[request.id] = request
            wire: list[int] = []
            for one in request.segments:
                wire += (one.gref, one.offset // unit, (one.offset + one.length) // unit - 1)
            count = len(request.segments)
            data += blkif.request(count).pack(
                request.operation, count, self.handle, request.id, request.sector, *wire
            )
        if self._ring.push(data, len(requests)):
            self.domain.evtchn.send(self.port)

    def take(self) -> list[tuple[Request, int]]:
        """What was answered, with its status. PeerProtocolError: more than was asked, or an
        answer to what was not; the ring is good for nothing then.
        """
        done: list[tuple[Request, int]] = []
        try:
            more = True
            while more:
                _count, data, more = self._ring.reap()
                for number, _operation, status in blkif.RESPONSE.iter_unpack(data):
                    done.append((self._find(number), status))
        except PeerProtocolError:
            # They end with the others that are in flight.
            self.submitted.update((request.id, request) for request, _status in done)
            raise
        return done

    def _find(self, number: int) -> Request:
        request = self.submitted.pop(number, None)
        if request is None:
            raise PeerProtocolError(f"an answer to request {number}, which is none")
        return request

    def kick(self) -> None:
        self.domain.evtchn.send(self.port)
