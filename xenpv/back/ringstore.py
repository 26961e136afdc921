"""A backend domain's store client over a ring page (Linux' xenbus_comms.c and xenbus_xs.c).

A kernel has one ring page, its backends and its frontends ask over the same. What a message
takes on its way is a `Wire`: `RingPage` where nobody else reads the page, or one that shares
the page with the frontends' client. Numbers of requests tell the two clients' replies apart,
tokens of watches their events.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import Final, Protocol

from xenpv.abi._kernel import ffi, lib
from xenpv.abi.layout import offsetof, packer
from xenpv.errors import HypercallError, PeerProtocolError, StoreError
from xenpv.xen.domain import Domain
from xenpv.xen.loop import Task
from xenpv.xen.upcall import Dispatcher

HEADER: Final = packer("xsd_sockmsg")
PAGE: Final = "xenstore_domain_interface"
RING_SIZE: Final[int] = lib.XENSTORE_RING_SIZE
PAYLOAD_MAX: Final[int] = lib.XENSTORE_PAYLOAD_MAX
XS_READ: Final[int] = lib.XS_READ
XS_WATCH: Final[int] = lib.XS_WATCH
XS_UNWATCH: Final[int] = lib.XS_UNWATCH
XS_WRITE: Final[int] = lib.XS_WRITE
XS_WATCH_EVENT: Final[int] = lib.XS_WATCH_EVENT
XS_ERROR: Final[int] = lib.XS_ERROR

# Above what a client with 16-bit numbers gives its requests.
REQ_ID_FIRST: Final = 1 << 16
REQ_IDS: Final = (1 << 32) - REQ_ID_FIRST
PASSES_MAX: Final = 64  # over a ring that fills while it is read
ERRORS: Final = frozenset(errno.errorcode.values())
# What an unprivileged reader is told of a node that is not there: EACCES below a parent that
# it may not read, as below a guest's directory that went.
ABSENT: Final = ("ENOENT", "EACCES")


def _area(name: str, cons: str, prod: str) -> tuple[int, int, int, int]:
    return offsetof(PAGE, name), RING_SIZE, offsetof(PAGE, cons), offsetof(PAGE, prod)


REQ: Final = _area("req", "req_cons", "req_prod")
RSP: Final = _area("rsp", "rsp_cons", "rsp_prod")


class Taker(Protocol):
    """Who is given what xenstored says."""

    def take(self, kind: int, req_id: int, payload: bytes) -> bool:
        """One whole message; False if it is not this one's."""


class Wire(Protocol):
    """The way to xenstored and back. Both raise StoreError EIO when it is broken."""

    def send(self, message: bytes) -> None:
        """A whole message into the ring; xenstored runs while there is no room."""

    def wait(self) -> None:
        """Let xenstored run until it said something, which the taker has then."""


class RingPage:
    """The ring page `pfn` of `domain` and its `port`, read by nobody else.

    `broken` is why nothing is read any more: xenstored's indices or lengths cannot be.
    `dropped` counts messages that were nobody's.
    """

    def __init__(self, domain: Domain, dispatcher: Dispatcher, pfn: int, port: int) -> None:
        self.domain = domain
        self.pfn = pfn
        self.port = port
        self.broken = ""
        self.dropped = 0
        self.taker: Taker | None = None
        self._received = bytearray()
        self._chunk = bytearray(RING_SIZE)
        pointer = ffi.from_buffer(self._chunk)
        self._get = partial(lib.stream_get, domain.kernel, pfn, *RSP, pointer, RING_SIZE)
        self._put = partial(lib.stream_put, domain.kernel, pfn, *REQ)
        self._task = dispatcher.bind(port, "xenbus", self._event)
        self._task.wake()

    def _event(self) -> None:
        """The port's: what xenstored wrote must not stop the domain."""
        if not self.broken:
            try:
                self._pump()
            except (PeerProtocolError, HypercallError) as error:
                self.broken = str(error)

    def _pump(self) -> None:
        """Read until the ring is empty, and hand out the messages that are whole."""
        for done in range(PASSES_MAX):
            count = self._get()
            if count < 0:
                self.domain.fail(count, "xenstore ring")
            if not count:
                if done:
                    self.domain.evtchn.send(self.port)
                return
            self._received += self._chunk[:count]
            self._parse()
        self.domain.evtchn.send(self.port)
        self._task.wake()

    def _parse(self) -> None:
        received, at = self._received, 0
        while len(received) - at >= HEADER.size:
            kind, req_id, _tx_id, length = HEADER.unpack_from(received, at)
            if length > PAYLOAD_MAX:
                raise PeerProtocolError(f"a message of {length} bytes, at most {PAYLOAD_MAX}")
            start = at + HEADER.size
            if len(received) - start < length:
                break
            at = start + length
            if self.taker is None or not self.taker.take(kind, req_id, bytes(received[start:at])):
                self.dropped += 1
        del received[:at]

    def send(self, message: bytes) -> None:
        while True:
            self._check()
            count = self._put(message, len(message))
            try:
                if count < 0:
                    self.domain.fail(count, "xenstore ring")
                if count:
                    self.domain.evtchn.send(self.port)
            except (PeerProtocolError, HypercallError) as error:
                self.broken = str(error)
                continue
            if count == len(message):
                return
            message = message[count:]
            self.wait()

    def wait(self) -> None:
        self._check()
        try:
            answered = self.domain.evtchn.poll(self.port)
        except HypercallError as error:
            raise StoreError("EIO", f"the port of the ring: {error}") from error
        if not answered:
            raise StoreError("EIO", "xenstored does not answer")
        self._event()
        self._check()

    def _check(self) -> None:
        if self.broken:
            raise StoreError("EIO", f"the ring is broken: {self.broken}")


class Events:
    """Watch events (path, token) that nobody took yet, each of them once.

    A guest that writes its state over and over fills no memory of its backend (XSA-349).
    """

    __slots__ = ("_queue", "_waiting")

    def __init__(self) -> None:
        self._queue: deque[tuple[bytes, bytes]] = deque()
        self._waiting: dict[tuple[bytes, bytes], None] = {}

    def push(self, path: bytes, token: bytes) -> bool:
        """False if it waits already."""
        event = (path, token)
        if event in self._waiting:
            return False
        self._waiting[event] = None
        self._queue.append(event)
        return True

    def popleft(self) -> tuple[bytes, bytes]:
        event = self._queue.popleft()
        del self._waiting[event]
        return event

    def __len__(self) -> int:
        return len(self._queue)


class RingStore:
    """Requests of a backend domain, answered one after the other; what BackStore asks of it.

    Raises StoreError with the name that xenstored answered; EIO where there is no answer, or
    one that cannot be: another type, an error without a name.
    """

    def __init__(self, wire: Wire) -> None:
        self.events = Events()
        self.on_event: Task | None = None
        self.requests = 0
        self._wire = wire
        self._waiting_for = -1
        self._replies: list[tuple[int, bytes]] = []  # at most one
        self._tokens: dict[bytes, None] = {}  # of the watches that events are for

    def take(self, kind: int, req_id: int, payload: bytes) -> bool:
        """A message from the ring; False if it answers no request of this client's."""
        if kind == XS_WATCH_EVENT:
            return self._take_event(payload)
        if req_id != self._waiting_for:
            return False
        self._waiting_for = -1
        self._replies.append((kind, payload))
        return True

    def _take_event(self, payload: bytes) -> bool:
        parts = payload.split(b"\0")
        if len(parts) != 3 or parts[1] not in self._tokens:
            return False
        if self.events.push(parts[0], parts[1]) and self.on_event is not None:
            self.on_event.wake()
        return True

    def call(self, op: int, payload: bytes, tx_id: int = 0) -> bytes:
        """One request and its reply's payload."""
        if op != XS_WATCH:
            body = self._ask(op, payload, tx_id)
            if op == XS_UNWATCH:
                self._tokens.pop(payload.split(b"\0")[1], None)
            return body
        token = payload.split(b"\0")[1]
        self._tokens[token] = None  # the first event may precede the reply
        try:
            return self._ask(op, payload, tx_id)
        except StoreError:
            del self._tokens[token]
            raise

    def _ask(self, op: int, payload: bytes, tx_id: int) -> bytes:
        req_id = REQ_ID_FIRST + self.requests % REQ_IDS
        self.requests += 1
        self._waiting_for = req_id
        self._replies.clear()
        try:
            self._wire.send(HEADER.pack(op, req_id, tx_id, len(payload)) + payload)
            while not self._replies:
                self._wire.wait()
        finally:
            self._waiting_for = -1
        kind, body = self._replies.pop()
        if kind == XS_ERROR:
            name = body.rstrip(b"\0").decode("ascii", "replace")
            if name not in ERRORS:
                raise StoreError("EIO", "an error without a known name")
            raise StoreError(name)
        if kind != op:
            raise StoreError("EIO", f"a reply of type {kind}, not {op}")
        return body

    def read(self, path: bytes, tx_id: int = 0) -> bytes | None:
        """A node's value; None where there is none that this domain may read."""
        try:
            return self.call(XS_READ, path + b"\0", tx_id)
        except StoreError as error:
            if error.name not in ABSENT:
                raise
            return None

    def write(self, path: bytes, value: bytes, tx_id: int = 0) -> None:
        self.call(XS_WRITE, path + b"\0" + value, tx_id)

    def write_all(self, path: bytes, values: Mapping[str, str], tx_id: int) -> None:
        """A `write` of each `path/key`, in order. StoreError says which was refused."""
        for key, text in values.items():
            node = path + b"/" + key.encode()
            try:
                self.write(node, text.encode(), tx_id)
            except StoreError as error:
                name = node.decode()
                raise StoreError(error.name, error.reason, operation="WRITE", path=name) from error
