"""Serving guests over the shared ring page (xen-core 1.9), and xenstored as a process of dom0.

The page is mapped through grant reference 1 of the guest, the port bound by INTRODUCE. The
protocol is `store.connection`; here are only bytes, indices and events.
"""

from __future__ import annotations

from errno import ENOENT
from functools import partial
from typing import Final

from xenpv.abi._kernel import ffi, lib
from xenpv.abi.layout import offsetof
from xenpv.errors import GrantError, HypercallError, PeerProtocolError, StoreError
from xenpv.store.connection import Connection
from xenpv.store.expiry import expire
from xenpv.store.server import Xenstored
from xenpv.store.wire import HEADER
from xenpv.xen.domain import Domain
from xenpv.xen.evtchn import VIRQ_DOM_EXC
from xenpv.xen.gnttab import GNTTAB_RESERVED_XENSTORE
from xenpv.xen.loop import NS_PER_S, Task, Timer
from xenpv.xen.upcall import Dispatcher

PAGE: Final = "xenstore_domain_interface"
RING_SIZE: Final[int] = lib.XENSTORE_RING_SIZE
REQ: Final = (
    offsetof(PAGE, "req"),
    RING_SIZE,
    offsetof(PAGE, "req_cons"),
    offsetof(PAGE, "req_prod"),
)
RSP: Final = (
    offsetof(PAGE, "rsp"),
    RING_SIZE,
    offsetof(PAGE, "rsp_cons"),
    offsetof(PAGE, "rsp_prod"),
)
SERVER_FEATURES: Final = offsetof(PAGE, "server_features")
CONNECTION: Final = offsetof(PAGE, "connection")
ERROR: Final = offsetof(PAGE, "error")
EVTCHN_PORT: Final = offsetof("xenstore_domain_interface_v2026", "evtchn_port")

HEADER_SIZE: Final = HEADER.size
unpack: Final = HEADER.unpack_from


class StoreRing:
    """One guest's ring: page mapped at `pfn`, events on `port` of the store domain."""

    def __init__(self, daemon: StoreDaemon, domid: int, handle: int, pfn: int) -> None:
        self.daemon = daemon
        self.domain = daemon.domain
        self.unique_id = daemon.unique_id(domid)
        self.domid = domid
        self.handle = handle
        self.pfn = pfn
        self.port = 0
        self.frozen = 0  # XENSTORE_ERROR_* once the guest broke the ring
        self._chunk = bytearray(RING_SIZE)
        self._view = memoryview(self._chunk)
        kernel, pointer = self.domain.kernel, ffi.from_buffer(self._chunk)
        self._get = partial(lib.stream_get, kernel, pfn, *REQ, pointer, RING_SIZE)
        self._put_bytes = partial(lib.stream_put, kernel, pfn, *RSP)
        self._moved = False  # bytes went one way or the other: the guest has to hear of it
        features = daemon.server.profile.features
        self._reconnects = bool(features & lib.XENSTORE_SERVER_FEATURE_RECONNECTION)
        self._tells_errors = bool(features & lib.XENSTORE_SERVER_FEATURE_ERROR)
        self.task: Task = self.domain.task(f"xenstored d{domid}", self.service)
        self.connection: Connection

    def introduce(self, remote_port: int) -> None:
        """The first INTRODUCE. Raises HypercallError if the port cannot be bound.

        A port that the page names is preferred, where the implementation looks there.
        """
        if self.daemon.server.profile.page_port:
            remote_port = self.domain.load32(self.pfn, EVTCHN_PORT) or remote_port
        self._bind(remote_port)
        self._connect()
        self.domain.store32(self.pfn, SERVER_FEATURES, self.connection.domain.features)
        self._start()

    def introduce_again(self, remote_port: int) -> None:
        """INTRODUCE again: the port it names, the ring from its start, the same connection.

        Raises HypercallError if the port cannot be bound. The ring is reset then too, and
        nobody hears of what is in it.
        """
        self._unbind()
        try:
            self._bind(remote_port)
        finally:
            self._connect()
            self._start()

    def _bind(self, remote_port: int) -> None:
        self.port = self.domain.evtchn.bind_interdomain(self.domid, remote_port)
        self.daemon.dispatcher.bind_task(self.port, self.task)

    def _connect(self) -> None:
        """The connection, new or reset."""
        self.connection = self.daemon.server.introduce(self.domid, self.unique_id)
        self.connection.on_event = self.task
        self.connection.put = self._put

    def _unbind(self) -> None:
        if self.port:
            self.daemon.dispatcher.unbind_port(self.port)
            self.domain.evtchn.close(self.port)
            self.port = 0

    def _start(self) -> None:
        """Indices to zero; a reconnection that the guest asked for is done.

        The features are not published again, nor is an error taken back: a frozen connection
        is not revived (C xenstored).
        """
        self.frozen = self.connection.fatal or 0
        for offset in (*REQ[2:], *RSP[2:]):
            self.domain.store32(self.pfn, offset, 0)
        if self.domain.load32(self.pfn, CONNECTION) == lib.XENSTORE_RECONNECT:
            self.domain.store32(self.pfn, CONNECTION, lib.XENSTORE_CONNECTED)
            self._notify()

    def _notify(self) -> None:
        if self.port:
            self.domain.evtchn.send(self.port)

    def service(self) -> None:
        """Read what is there, answer, write what fits. More of either comes with an event.

        One event tells the guest of all that moved: it cannot run in between.
        """
        if self.frozen:
            return
        if self.daemon.is_late:
            self.daemon.expire()
        connection = self.connection
        self._moved = False
        try:
            if self._reconnects:
                self._reconnect()
            if connection.output or connection.stalled:
                self._write()
            count = RING_SIZE
            while count == RING_SIZE and connection.wants_input:
                count = self._read()
                if connection.output or connection.stalled:
                    self._write()
            domain = connection.domain
            if domain.credit < 0:
                self._sleep(connection.blocked_ns)
            elif domain.stalled:
                self._sleep(self.daemon.until_expiry_ns())
            if connection.output:
                self.daemon.note_backlog(connection)
            if self._moved and not self.frozen:
                self.domain.evtchn.send(self.port)
        except PeerProtocolError:
            self._freeze(lib.XENSTORE_ERROR_RINGIDX)
        except HypercallError:
            self._freeze(lib.XENSTORE_ERROR_COMM)

    def _sleep(self, ns: int) -> None:
        """The guest has written or caused too much: look at its ring again in `ns`, if not 0."""
        if ns:
            if self.task.alarm is None:
                self.task.alarm = self.domain.timer(self.task)
            self.task.alarm.arm(ns)

    def _reconnect(self) -> None:
        """A live guest asks for a fresh start: only an implementation that offers it listens.

        oxenstored fills both buffers with 0xff.
        """
        if self.domain.load32(self.pfn, CONNECTION) == lib.XENSTORE_RECONNECT:
            self.connection.reset()
            for base in (REQ[0], RSP[0]):
                self.domain.write(self.pfn, base, b"\xff" * RING_SIZE)
            self._start()

    def _read(self) -> int:
        count: int = self._get()
        if count < 0:
            self.domain.fail(count, f"store ring of domain {self.domid}")
        if not count:
            return 0
        self._moved = True
        connection = self.connection
        view = self._view
        if count >= HEADER_SIZE and not connection.partial:
            op, req_id, tx_id, length = unpack(view)
            if count == HEADER_SIZE + length:
                connection.answer(op, req_id, tx_id, bytes(view[HEADER_SIZE:count]))
                return count
        connection.feed(bytes(view[:count]))
        if connection.fatal is not None:
            self._freeze(connection.fatal)
            return 0
        return count

    def _put(self, data: bytes) -> int:
        """Bytes into the ring; how many there was room for."""
        count: int = self._put_bytes(data, len(data))
        if count < 0:
            self.domain.fail(count, f"store ring of domain {self.domid}")
        if count:
            self._moved = True
        return count

    def _write(self) -> None:
        """Output into the ring until there is none or it is full: the guest says when it read."""
        connection = self.connection
        while data := connection.peek_output(RING_SIZE):
            count = self._put(data)
            connection.sent(count)
            if count < len(data) or not connection.output:
                break
        if connection.fatal is not None:  # a request that waited is too long
            self._freeze(connection.fatal)

    def _freeze(self, error: int) -> None:
        """The guest broke the ring: say why, answer nothing more; it stays introduced."""
        self.frozen = error
        self.connection.freeze(error)
        if self._tells_errors:
            self.domain.store32(self.pfn, ERROR, error)
        try:
            self._notify()
        except HypercallError:
            return  # its port is gone too

    def close(self) -> None:
        """Port, task and page back; what INTRODUCE took, in reverse."""
        self._unbind()
        self.domain.forget(self.task)
        self.domain.gnttab.unmap(self.handle, self.pfn)
        self.domain.holes.free(self.pfn)


class StoreDaemon:
    """xenstored running in `domain`: rings of introduced guests, VIRQ_DOM_EXC.

    It is the `domains` object that Xenstored asks about domains (DomainControl).
    """

    def __init__(self, domain: Domain, dispatcher: Dispatcher, server: Xenstored) -> None:
        self.domain = domain
        self.dispatcher = dispatcher
        self.server = server
        self.rings: dict[int, StoreRing] = {}
        self._expiry: Timer | None = None  # armed while some guest's events wait to be read
        server.domains = self
        server.trace = domain.trace
        port = domain.evtchn.bind_virq(VIRQ_DOM_EXC)
        dispatcher.bind(port, "xenstored DOM_EXC", self.poll_domains)

    def exists(self, domid: int) -> bool:
        found = self.domain.find(domid)
        return found is not None and not found.dead

    def unique_id(self, domid: int) -> int:
        found = self.domain.find(domid)
        return found.unique_id if found is not None else 0

    def map_ring(self, domid: int, gfn: int, port: int) -> None:  # noqa: ARG002 - grant 1 says where
        """INTRODUCE: map the guest's store page the first time, bind its port every time.

        A ring of an earlier domain with this domid goes first.
        """
        ring = self.rings.get(domid)
        if ring is not None and ring.unique_id != self.unique_id(domid):
            self.unmap_ring(domid)
            ring = None
        if ring is not None:
            ring.introduce_again(port)
            return
        pfn = self.domain.holes.alloc()
        try:
            handle = self.domain.gnttab.map(domid, GNTTAB_RESERVED_XENSTORE, pfn)
        except GrantError as error:
            self.domain.holes.free(pfn)
            raise StoreError("EINVAL", str(error)) from error
        ring = StoreRing(self, domid, handle, pfn)
        try:
            ring.introduce(port)
        except HypercallError:
            ring.close()
            raise
        self.rings[domid] = ring

    def unmap_ring(self, domid: int) -> None:
        """RELEASE, or the domain's death."""
        ring = self.rings.pop(domid, None)
        if ring is not None:
            ring.close()

    # events that guests leave unread

    def note_backlog(self, connection: Connection) -> None:
        """`connection` has output that its ring has no room for: its events wait from now on.

        The timer is one of those that Loop.run does not wait for: a guest that never reads
        would hold up everybody. Whoever is stalled by such events sleeps until they go.
        """
        timeout_s = self.server.event_timeout_s
        if not timeout_s:
            return
        timeout_ns = timeout_s * NS_PER_S
        backlog = connection.waiting
        backlog.note(len(connection.output), self.domain.loop.now + timeout_ns)
        if backlog.next_ns() is None:
            return  # all of it outlived its time, and waits for the guest alone
        expiry = self._expiry
        if expiry is None:
            task = self.domain.task("xenstored watch-event timeout", self.expire)
            expiry = self._expiry = self.domain.timer(task, timeout_ns)
        if not expiry.armed:
            expiry.arm(timeout_ns)

    def until_expiry_ns(self) -> int:
        """How long a stalled guest waits for others' unread events to go; 0: none wait.

        Those whose rings were not looked at since wait from now on.
        """
        for ring in self.rings.values():
            if ring.connection.output:
                self.note_backlog(ring.connection)
        return self.expiry_ns

    @property
    def expiry_ns(self) -> int:
        """How long until events expire; 0 if none wait."""
        expiry = self._expiry
        if expiry is None or not expiry.armed:
            return 0
        return max(1, expiry.deadline - self.domain.loop.now)

    @property
    def is_late(self) -> bool:
        """Have events expired that nobody has dropped yet?"""
        expiry = self._expiry
        return expiry is not None and expiry.armed and expiry.deadline <= self.domain.loop.now

    def expire(self) -> None:
        """Drop the events that waited too long; whoever waited for that goes on."""
        loop = self.domain.loop
        now = loop.now
        following = [expire(ring.connection, now) for ring in list(self.rings.values())]
        deadlines = [deadline for deadline in following if deadline is not None]
        expiry = self._expiry
        assert expiry is not None, "it is what calls this"
        expiry.cancel()
        if deadlines:
            expiry.arm(min(deadlines) - now)

    def poll_domains(self) -> None:
        """VIRQ_DOM_EXC: ask Xen whose state changed, and let the server say who died or went down.

        As xenstored's check_domains: a domain is dead when Xen has it no more, has it dead, or
        has another with its number.
        """
        from xenpv.xen.domctl import GETDOMSTATE

        while True:
            try:
                found = self.domain.domctl.get_domain_state()
            except HypercallError as error:
                if error.errno == ENOENT:
                    return
                raise
            known = self.server.known.get(found.domid)
            if known is None:
                continue
            another = known.unique_id and found.unique_id != known.unique_id
            if another or not found.state or found.state & GETDOMSTATE.dead:
                self.unmap_ring(found.domid)
                self.server.domain_died(found.domid)
            elif found.state & GETDOMSTATE.shutdown:
                self.server.domain_shutdown(found.domid)
