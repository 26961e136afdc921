"""Serving guests over the shared ring page (xen-core 1.9), and xenstored as a process of dom0.

The page is mapped through grant reference 1 of the guest, the port bound by INTRODUCE. The
protocol is `store.connection`; here are only bytes, indices and events.
"""

from __future__ import annotations

from typing import Final

from xenpv.abi._kernel import ffi, lib
from xenpv.abi.layout import offsetof
from xenpv.errors import GrantError, HypercallError, PeerProtocolError, StoreError
from xenpv.store.connection import Connection
from xenpv.store.server import Xenstored
from xenpv.xen.domain import Domain
from xenpv.xen.evtchn import VIRQ_DOM_EXC
from xenpv.xen.gnttab import GNTTAB_RESERVED_XENSTORE
from xenpv.xen.loop import Task
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

FEATURES_OFFERED: Final[int] = (
    lib.XENSTORE_SERVER_FEATURE_ERROR
    | lib.XENSTORE_SERVER_FEATURE_WATCHDEPTH
    | lib.XENSTORE_SERVER_FEATURE_DOMID_ANY
)
# Requests are left on the ring while this much is waiting to be read by the guest.
UNREAD_MAX: Final = 65536


class StoreRing:
    """One guest's ring: page mapped at `pfn`, events on `port` of the store domain."""

    def __init__(
        self, daemon: StoreDaemon, connection: Connection, domid: int, handle: int, pfn: int
    ) -> None:
        self.daemon = daemon
        self.domain = daemon.domain
        self.connection = connection
        self.domid = domid
        self.handle = handle
        self.pfn = pfn
        self.port = 0
        self.frozen = 0  # XENSTORE_ERROR_* once the guest broke the ring
        self._out = bytearray()
        self._chunk = bytearray(RING_SIZE)
        self._chunk_pointer = ffi.from_buffer(self._chunk)
        self.task: Task = self.domain.task(f"xenstored d{domid}", self.service)
        connection.on_event = self.task

    def bind(self, remote_port: int) -> None:
        """(Re)bind the guest's port and reset the ring, as INTRODUCE does each time."""
        if self.port:
            self.daemon.dispatcher.unbind_port(self.port)
            self.domain.evtchn.close(self.port)
            self.port = 0
        self.port = self.domain.evtchn.bind_interdomain(self.domid, remote_port)
        self.daemon.dispatcher.bind_task(self.port, self.task)
        self.reset()

    def reset(self) -> None:
        """Indices to zero, buffers dropped; a reconnection that the guest asked for is done."""
        self._out.clear()
        self.frozen = 0
        for offset in (*REQ[2:], *RSP[2:]):
            self.domain.store32(self.pfn, offset, 0)
        self.domain.store32(self.pfn, SERVER_FEATURES, FEATURES_OFFERED)
        self.domain.store32(self.pfn, ERROR, lib.XENSTORE_ERROR_NONE)
        if self.domain.load32(self.pfn, CONNECTION) == lib.XENSTORE_RECONNECT:
            self.domain.store32(self.pfn, CONNECTION, lib.XENSTORE_CONNECTED)
            self.domain.evtchn.send(self.port)

    def service(self) -> None:
        """Move bytes both ways until neither moves."""
        if self.frozen:
            return
        try:
            while self._write() + self._read():
                pass
        except PeerProtocolError:
            self._freeze(lib.XENSTORE_ERROR_RINGIDX)
        except HypercallError:
            self._freeze(lib.XENSTORE_ERROR_COMM)

    def _read(self) -> int:
        if len(self._out) > UNREAD_MAX:
            return 0
        kernel = self.domain.kernel
        count = lib.stream_get(kernel, self.pfn, *REQ, self._chunk_pointer, RING_SIZE)
        if count < 0:
            self.domain.fail(count, f"store ring of domain {self.domid}")
        if count:
            self.domain.evtchn.send(self.port)
            self.connection.feed(bytes(self._chunk[:count]))
            if self.connection.fatal is not None:
                self._freeze(lib.XENSTORE_ERROR_PROTO)
                return 0
        return int(count)

    def _write(self) -> int:
        out = self._out
        if self.connection.wants_output and len(out) <= UNREAD_MAX:
            out += self.connection.take_output(UNREAD_MAX)
        if not out:
            return 0
        kernel = self.domain.kernel
        data = bytes(out[:RING_SIZE])
        count = lib.stream_put(kernel, self.pfn, *RSP, ffi.from_buffer(data), len(data))
        if count < 0:
            self.domain.fail(count, f"store ring of domain {self.domid}")
        if count:
            del out[:count]
            self.domain.evtchn.send(self.port)
        return int(count)

    def _freeze(self, error: int) -> None:
        """The guest broke the ring: say why, answer nothing more; it stays introduced."""
        self.frozen = error
        self._out.clear()
        self.connection.reset()
        self.domain.store32(self.pfn, ERROR, error)
        try:
            self.domain.evtchn.send(self.port)
        except HypercallError:
            return  # its port is gone too

    def close(self) -> None:
        self.connection.on_event = None
        if self.port:
            self.daemon.dispatcher.unbind_port(self.port)
            try:
                self.domain.evtchn.close(self.port)
            except HypercallError:
                self.port = 0
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
        self._shut_down: list[tuple[int, int]] = []
        server.domains = self
        server.trace = domain.trace
        port = domain.evtchn.bind_virq(VIRQ_DOM_EXC)
        dispatcher.bind(port, "xenstored DOM_EXC", self.poll_domains)

    def exists(self, domid: int) -> bool:
        return self.domain.find(domid) is not None

    def unique_id(self, domid: int) -> int:
        found = self.domain.find(domid)
        return found.unique_id if found is not None else 0

    def map_ring(self, domid: int, gfn: int, port: int) -> None:  # noqa: ARG002 - grant 1 says where
        """First INTRODUCE: map the guest's store page, bind its port."""
        ring = self.rings.get(domid)
        if ring is not None:
            ring.bind(port)
            return
        pfn = self.domain.holes.alloc()
        try:
            handle = self.domain.gnttab.map(domid, GNTTAB_RESERVED_XENSTORE, pfn)
        except GrantError as error:
            self.domain.holes.free(pfn)
            raise StoreError("EINVAL", str(error)) from error
        connection = self.server.introduce(domid, self.unique_id(domid))
        ring = StoreRing(self, connection, domid, handle, pfn)
        self.rings[domid] = ring
        ring.bind(port)

    def unmap_ring(self, domid: int) -> None:
        """RELEASE, or the domain's death."""
        ring = self.rings.pop(domid, None)
        if ring is not None:
            ring.close()

    def poll_domains(self) -> None:
        """VIRQ_DOM_EXC: find who shut down or died, and let the server say so."""
        for domid in list(self.rings):
            found = self.domain.find(domid)
            if found is None:
                self.unmap_ring(domid)
                self.server.domain_died(domid)
            elif found.is_shutdown and (domid, found.unique_id) not in self._shut_down:
                self._shut_down.append((domid, found.unique_id))
                self.server.domain_shutdown(domid)
        self._shut_down = [key for key in self._shut_down if key[0] in self.rings]
