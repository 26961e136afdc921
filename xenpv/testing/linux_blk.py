"""A second disk frontend: what Linux' xen-blkfront does, at its smallest.

No close before the first connect, every page bounced, and nothing in common with xenpv.vbd: it
stands on the parts of a raw guest, so that a misreading of io/blkif.h on one side shows.

    with world_blk(queues=2, order=1) as world:
        world.disk.write(8, data)
        assert world.disk.read(8, len(data)) == data

Keys, their order and the checks of responses are blkfront's (drivers/block/xen-blkfront.c). Every
number that it sends or reads counts 512 bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Final

import attrs

from xenpv.abi.blkif import BLKIF_OP, BLKIF_RSP
from xenpv.abi.xenbus import XenbusState as State
from xenpv.back.xenbus import state_of
from xenpv.bus.evtchn import Channel
from xenpv.bus.ring import FrontRing
from xenpv.errors import HypercallError, LocalProtocolError, PeerProtocolError, XenpvError
from xenpv.host.xs import XsHandle
from xenpv.host.xswatch import XsWatches
from xenpv.testing.blk_layout import GREFS, SEGMENTS_MAX, Layout, Segment, tables
from xenpv.testing.raw_front import BACKEND_DOMID, RawGuest
from xenpv.xen.domain import PAGE_SIZE

SECTOR: Final = 512
SECTORS_PER_PAGE: Final = PAGE_SIZE // SECTOR
INDIRECT_MAX: Final = 32  # xen_blkif_max_segments
ORDER_MAX: Final = 4
# `protocol` and whether its layout is that of x86_32; "": the key is left out.
LAYOUTS: Final = {
    "x86_64-abi": False,
    "arm-abi": False,
    "native": False,
    "x86_32-abi": True,
    "": True,
}

Page = tuple[int, int]  # pfn, and its reference or -1


class BlkError(XenpvError):
    """A request ended with another status than OKAY."""


@attrs.define(eq=False)
class Request:
    """One request: `data` is what a READ brought, `status` the response's once there is one."""

    operation: BLKIF_OP
    sector: int
    nr_sectors: int
    data: bytes = b""
    status: int | None = None
    pages: list[Page] = attrs.Factory(list)
    tables: list[Page] = attrs.Factory(list)


@attrs.define(eq=False)
class Queue:
    """struct blkfront_ring_info: one ring. `shadow` are requests in flight by their id."""

    ring: FrontRing
    channel: Channel
    refs: list[int]
    shadow: dict[int, Request] = attrs.Factory(dict)
    waiting: deque[Request] = attrs.Factory(deque)
    kept: deque[Page] = attrs.Factory(deque)  # persistent first, those without a reference last


class LinuxBlk:
    """blkfront of one device of a raw guest: connects as soon as the backend waits for it.

    `order`, `queues`, `persistent` and `indirect` bound what is used of what the backend offers;
    `protocol` is the key's text. `broken` says why the backend is believed no more.
    """

    def __init__(
        self,
        guest: RawGuest,
        devid: int,
        *,
        protocol: str = "x86_64-abi",
        order: int = 0,
        queues: int = 1,
        persistent: bool = True,
        indirect: int = INDIRECT_MAX,
    ) -> None:
        if protocol not in LAYOUTS:
            raise LocalProtocolError(f"protocol {protocol!r}: expected one of {list(LAYOUTS)}")
        self.guest = guest
        self.protocol = protocol
        self.path = f"/local/domain/{guest.domid}/device/vbd/{devid}"
        self.xs = XsHandle(guest.platform.xenstored.connect_local(f"blkfront d{guest.domid}"))
        self.backend = self.xs.read(f"{self.path}/backend") or ""
        self.handle = devid & 0xFFFF
        self.state = State.INITIALISING
        self.queues: list[Queue] = []
        self.broken = ""
        self.sectors = 0
        self.sector_size = SECTOR
        self.info = 0
        self.persistent = persistent
        self.indirect = indirect
        self.features: frozenset[str] = frozenset()
        self._wanted = (min(order, ORDER_MAX), queues)
        self.layout = Layout("_x86_32" if LAYOUTS[protocol] else "")
        self._watches = XsWatches(guest.domain, self.xs)
        self._token = self._watches.add(f"{self.backend}/state", self._backend_changed)

    # the backend's states: blkback_changed

    def _backend_changed(self) -> None:
        state = state_of(self.xs.read(f"{self.backend}/state"))
        if state is State.INIT_WAIT and self.state is State.INITIALISING:
            self._talk_to_blkback()
        elif state is State.CONNECTED and self.state is State.INITIALISED:
            self._connect()
        elif state is State.CONNECTED and self.state is State.CONNECTED:
            self.sectors = self._number("sectors")  # resized
        elif state is State.CLOSING and self.state in (
            State.INITIALISED,
            State.CONNECTED,
            State.CLOSING,
        ):
            self._switch(State.CLOSED)
        elif state in (State.CLOSED, State.UNKNOWN) and self.state in (
            State.CLOSING,
            State.CLOSED,
        ):
            self._release()

    def _switch(self, state: State) -> None:
        self.state = state
        self.xs.write(f"{self.path}/state", str(int(state)))

    def close(self) -> None:
        """blkfront_closing: Closing, and Closed when the backend has seen it."""
        self._switch(State.CLOSING)

    def reopen(self) -> None:
        """A new driver instance. LocalProtocolError: the old one still has its rings."""
        if self.queues:
            raise LocalProtocolError(f"{self.path}: not released yet")
        self.broken = ""
        self._switch(State.INITIALISING)

    def _number(self, key: str, default: int = 0) -> int:
        text = self.xs.read(f"{self.backend}/{key}")
        return int(text) if text is not None and text.isdecimal() else default

    def _talk_to_blkback(self) -> None:
        order, queues = self._wanted
        order = min(order, self._number("max-ring-page-order"))
        queues = max(1, min(queues, self._number("multi-queue-max-queues", 1)))
        self.queues = [self._queue(order) for _ in range(queues)]
        keys: dict[str, str] = {}
        if order:
            keys["ring-page-order"] = str(order)
        if self._number("multi-queue-max-queues", 1) > 1:
            keys["multi-queue-num-queues"] = str(queues)
        for index, queue in enumerate(self.queues):
            prefix = f"queue-{index}/" if queues > 1 else ""
            for page, ref in enumerate(queue.refs):
                keys[f"{prefix}ring-ref{page if order else ''}"] = str(ref)
            keys[f"{prefix}event-channel"] = str(queue.channel.port)
        if self.protocol:
            keys["protocol"] = self.protocol
        if self.persistent:
            keys["feature-persistent"] = "1"
        self.xs.transaction(lambda t: self.xs.write_all(self.path, keys, t))
        self._switch(State.INITIALISED)

    def _queue(self, order: int) -> Queue:
        guest = self.guest
        first = guest.page(1 << order)
        pfns = range(first, first + (1 << order))
        for pfn in pfns:
            guest.domain.write(pfn, 0, bytes(PAGE_SIZE))  # xenbus_setup_ring: XSA-403
        refs = [guest.grant(pfn) for pfn in pfns]
        layout = self.layout
        ring = FrontRing(
            guest.domain,
            pfns,
            req_size=layout.request_size,
            rsp_size=layout.response_size,
            kind=layout.ring,
        )
        channel = guest.evtchn.open_unbound(BACKEND_DOMID, lambda: None)
        queue = Queue(ring, channel, refs)
        channel.callback = partial(self._event, queue)
        guest.evtchn.unmask(channel, force=True)
        return queue

    def _connect(self) -> None:
        """blkfront_connect: what the disk is, and what its backend can do."""
        self.sectors, self.info = self._number("sectors"), self._number("info")
        self.sector_size = self._number("sector-size", SECTOR)
        names = ("feature-flush-cache", "feature-barrier", "feature-discard")
        self.features = frozenset(name for name in names if self._number(name))
        self.persistent = self.persistent and bool(self._number("feature-persistent"))
        most = min(self.indirect, self._number("feature-max-indirect-segments"))
        # As many as a direct request has are no reason for one.
        self.indirect = most if most > SEGMENTS_MAX else 0
        self._switch(State.CONNECTED)

    def _release(self) -> None:
        """The backend let go: pages, references and ports come back; requests end with ERROR."""
        guest = self.guest
        for queue in self.queues:
            guest.evtchn.close(queue.channel)
            queue.channel.callback = _nobody  # they know one another
            for request in [*queue.shadow.values(), *queue.waiting]:
                self._put(queue, request, mapped_is_wrong=False)
                request.status = int(BLKIF_RSP.ERROR)
            for pfn, ref in queue.kept:
                if ref >= 0:
                    guest.revoke(ref)
                guest.domain.pages.free(pfn)
            for pfn, ref in zip(queue.ring.pfns, queue.refs, strict=True):
                guest.revoke(ref)
                guest.domain.pages.free(pfn)
        self.queues = []
        if self.state is State.CLOSING:
            self._switch(State.CLOSED)

    # requests: blkif_queue_rq

    @property
    def segments_max(self) -> int:
        return max(SEGMENTS_MAX, self.indirect)

    def submit(
        self,
        operation: BLKIF_OP,
        sector: int = 0,
        nr_sectors: int = 0,
        data: bytes = b"",
        queue: int = 0,
    ) -> list[Request]:
        """READ, WRITE, flush, barrier or DISCARD of sectors of 512 bytes, in as many requests as
        it takes; they wait while the ring is full or pages are short.

        LocalProtocolError: the disk is not connected.
        """
        if self.state is not State.CONNECTED or self.broken:
            raise LocalProtocolError(f"{self.path}: {self.broken or self.state.name.lower()}")
        step = self.segments_max * SECTORS_PER_PAGE
        if operation is BLKIF_OP.DISCARD:
            step = max(nr_sectors, 1)
        requests = [
            Request(
                operation,
                sector + at,
                min(step, nr_sectors - at),
                data[at * SECTOR : (at + step) * SECTOR],
            )
            for at in range(0, max(nr_sectors, 1), step)
        ]
        on = self.queues[queue % len(self.queues)]
        on.waiting.extend(requests)
        self._transmit(on)
        return requests

    def read(self, sector: int, nr_bytes: int, queue: int = 0) -> bytes:
        """Runs the platform until it is there. BlkError: the backend refused it."""
        requests = self.submit(BLKIF_OP.READ, sector, nr_bytes // SECTOR, queue=queue)
        self.guest.platform.run()
        return self.answer(requests)

    def write(self, sector: int, data: bytes, queue: int = 0) -> None:
        self.wait(self.submit(BLKIF_OP.WRITE, sector, len(data) // SECTOR, data, queue))

    def flush(self, queue: int = 0) -> None:
        self.wait(self.submit_flush(queue))

    def submit_flush(self, queue: int = 0) -> list[Request]:
        """By what the backend offers, feature-flush-cache first; without either there is nothing
        to do.
        """
        if "feature-flush-cache" in self.features:
            return self.submit(BLKIF_OP.FLUSH_DISKCACHE, queue=queue)
        if "feature-barrier" in self.features:
            return self.submit(BLKIF_OP.WRITE_BARRIER, queue=queue)
        return []

    def discard(self, sector: int, nr_sectors: int, queue: int = 0) -> None:
        self.wait(self.submit(BLKIF_OP.DISCARD, sector, nr_sectors, queue=queue))

    def wait(self, requests: Sequence[Request]) -> None:
        """Runs the platform first. BlkError: the backend refused one, or did not answer."""
        self.guest.platform.run()
        self.answer(requests)

    def answer(self, requests: Sequence[Request]) -> bytes:
        """What they read, if every one of them ended well. BlkError: one did not, or not yet."""
        for request in requests:
            if request.status != BLKIF_RSP.OKAY:
                raise BlkError(
                    f"{request.operation.name} of {request.nr_sectors} at {request.sector}: "
                    f"{'no answer' if request.status is None else BLKIF_RSP(request.status).name}"
                )
        reads = [one.data for one in requests if one.operation is BLKIF_OP.READ]
        return b"".join(reads)

    def _transmit(self, queue: Queue) -> None:
        """What fits of what waits; one notice for all of it."""
        slots: list[bytes] = []
        while queue.waiting and len(slots) < queue.ring.free:
            request = queue.waiting[0]
            count = -(-request.nr_sectors // SECTORS_PER_PAGE)
            room = self.guest.domain.pages.free_pages + len(queue.kept)
            if request.operation <= BLKIF_OP.WRITE_BARRIER and room < count + GREFS:
                if not queue.shadow:
                    raise LocalProtocolError(f"{self.path}: no pages for {count} segments")
                break
            queue.waiting.popleft()
            number = next(i for i in range(queue.ring.size) if i not in queue.shadow)
            queue.shadow[number] = request
            slots.append(self._slot(queue, number, request))
        if slots and queue.ring.push(b"".join(slots), len(slots)):
            self.guest.domain.evtchn.send(queue.channel.port)

    def _slot(self, queue: Queue, number: int, request: Request) -> bytes:
        operation, sector, count = request.operation, request.sector, request.nr_sectors
        if operation is BLKIF_OP.DISCARD:
            return self.layout.discard(self.handle, number, sector, count)
        writes = operation is not BLKIF_OP.READ
        segments: list[Segment] = []
        for at in range(0, count, SECTORS_PER_PAGE):
            length = min(SECTORS_PER_PAGE, count - at)
            data = request.data[at * SECTOR : (at + length) * SECTOR] if writes else b""
            page = self._page(queue, data, readonly=writes)
            request.pages.append(page)
            segments.append((page[1], 0, length - 1))
        if len(segments) <= SEGMENTS_MAX:
            return self.layout.direct(operation, self.handle, number, sector, segments)
        for table in tables(segments):
            request.tables.append(self._page(queue, table, readonly=True))
        refs = [ref for _, ref in request.tables]
        return self.layout.indirect(operation, self.handle, number, sector, len(segments), refs)

    # pages: get_grant, blkif_completion

    def _page(self, queue: Queue, data: bytes, *, readonly: bool) -> Page:
        """A page of ours with `data` and zeros, granted; writable where it stays granted."""
        guest = self.guest
        pfn, ref = queue.kept.popleft() if queue.kept else (guest.page(), -1)
        guest.domain.write(pfn, 0, data.ljust(PAGE_SIZE, b"\0"))
        if ref < 0:
            ref = guest.grant(pfn, readonly=readonly and not self.persistent)
        return pfn, ref

    def _put(self, queue: Queue, request: Request, *, mapped_is_wrong: bool) -> None:
        """The pages of a request that is answered, or never will be."""
        for pfn, ref in [*request.pages, *request.tables]:
            if self.guest.revoke(ref):
                queue.kept.append((pfn, -1))
            elif self.persistent:
                queue.kept.appendleft((pfn, ref))
            elif mapped_is_wrong:
                raise PeerProtocolError(f"reference {ref} is answered for and still mapped")
        request.pages.clear()
        request.tables.clear()

    # responses: blkif_interrupt

    def _event(self, queue: Queue) -> None:
        if self.broken or queue not in self.queues:
            return
        try:
            while True:
                _, raw = queue.ring.take()
                for number, operation, status in self.layout.responses(bytes(raw)):
                    self._answered(queue, number, operation, status)
                if not queue.ring.final_check():
                    break
        except (PeerProtocolError, HypercallError) as error:
            self.broken = str(error)
            return
        self._transmit(queue)

    def _answered(self, queue: Queue, number: int, operation: int, status: int) -> None:
        request = queue.shadow.pop(number, None)
        if request is None:
            raise PeerProtocolError(f"response for id {number}, which is not in flight")
        # Of an indirect request a backend names either operation.
        names = (request.operation, BLKIF_OP.INDIRECT) if request.tables else (request.operation,)
        if operation not in names:
            raise PeerProtocolError(f"response for id {number} names operation {operation}")
        if request.operation is BLKIF_OP.READ and status == BLKIF_RSP.OKAY:
            left = request.nr_sectors * SECTOR
            read = self.guest.domain.read
            request.data = b"".join([read(pfn, 0, PAGE_SIZE) for pfn, _ in request.pages])[:left]
        self._put(queue, request, mapped_is_wrong=True)
        if status == BLKIF_RSP.EOPNOTSUPP:
            self._downgrade(request.operation)
        request.status = status

    def _downgrade(self, operation: BLKIF_OP) -> None:
        """What the backend cannot do after all is not asked for again."""
        gone = {
            BLKIF_OP.DISCARD: "feature-discard",
            BLKIF_OP.FLUSH_DISKCACHE: "feature-flush-cache",
            BLKIF_OP.WRITE_BARRIER: "feature-barrier",
        }.get(operation)
        self.features = frozenset(name for name in self.features if name != gone)


def _nobody() -> None:
    """What the channel of a queue that is gone calls."""
