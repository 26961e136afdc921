"""One client of xenstored: requests in, replies and events out, and no I/O.

A connection serves three kinds of client: code in this process (`call`, `events`), a socket
and a ring page (`feed`, `take_output`). Replies keep the order of their requests; events
precede the reply of the request that caused them, but a watch's first event follows the
reply of its WATCH.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

from xenpv.abi._kernel import lib
from xenpv.errors import StoreError
from xenpv.store.eventqueue import EventQueue
from xenpv.store.expiry import Backlog
from xenpv.store.path import SPECIAL
from xenpv.store.request import SURE, is_absent, write_tree
from xenpv.store.watch import drop_watches
from xenpv.store.wire import HEADER, PAYLOAD_MAX, error_payload

if TYPE_CHECKING:
    from xenpv.store.domain import Domain
    from xenpv.store.server import Handler, Xenstored
    from xenpv.store.transaction import Transaction
    from xenpv.store.watch import Watch

ERROR_PROTO: Final[int] = lib.XENSTORE_ERROR_PROTO
XS_ERROR: Final = lib.XS_ERROR
XS_READ: Final = lib.XS_READ
XS_WRITE: Final = lib.XS_WRITE
XS_WATCH_EVENT: Final = lib.XS_WATCH_EVENT
WRITES: Final = (lib.XS_WRITE, lib.XS_MKDIR, lib.XS_RM, lib.XS_SET_PERMS)
# Requests after which a domain may hold more than before.
COUNTED: Final = (*WRITES, lib.XS_WATCH, lib.XS_TRANSACTION_START, lib.XS_TRANSACTION_END)
HEADER_SIZE: Final = HEADER.size
SHORT_REPLY: Final = 16  # a reply up to here passes the memory quota (DEFAULT_BUFFER_SIZE)

_unpack = HEADER.unpack_from
_pack = HEADER.pack


class Wakeup(Protocol):
    """Whoever is told that there is something to do: a task of the loop."""

    def wake(self) -> None: ...


class Request:
    """One request of an unprivileged ring: outstanding until its reply and events are out."""

    __slots__ = ("domain", "left")

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.left = 1


# A message to send: its bytes, its payload if a second one like it would be dropped, and
# the request that it belongs to.
Message = tuple[bytes, bytes | None, Request | None]


class Connection:
    """The server's side of one client.

    `local` clients find events in `events`, others in their output. `on_event` is woken when
    a queue that was empty gets an event, or when a ring may be read again. `put`, where the
    transport has one, takes bytes at once and says how many it took: a reply that nothing
    waits before goes there and not into the output. `fatal` is the XENSTORE_ERROR_ value of a
    connection that is served no more: a transport closes its socket or freezes its ring.
    `waiting` is what a ring's transport noted of the output that it could not send.
    `home_prefix` is what relative paths are relative to.
    """

    __slots__ = (
        "_answering",
        "_held",
        "_request",
        "_taken",
        "_unsent",
        "age",
        "closed",
        "domain",
        "event_first",
        "events",
        "fatal",
        "first_event",
        "handlers",
        "home_prefix",
        "local",
        "name",
        "next_transaction",
        "on_event",
        "output",
        "partial",
        "privileged",
        "put",
        "server",
        "stalled",
        "transactions",
        "waiting",
        "watches",
    )

    def __init__(
        self,
        server: Xenstored,
        age: int,
        name: str,
        domain: Domain,
        home_prefix: bytes,
        *,
        local: bool,
    ) -> None:
        self.server = server
        self.age = age
        self.name = name
        self.domain = domain
        self.home_prefix = home_prefix
        self.privileged = domain is server.owner
        self.local = local
        self.event_first = server.profile.event_first
        self.on_event: Wakeup | None = None
        self.put: Callable[[bytes], int] | None = None
        self.fatal: int | None = None
        self.closed = False
        self.events = EventQueue()
        self.handlers: Mapping[int, tuple[Handler, bool]] = {}  # what it may ask: server.OPEN
        self.watches: dict[tuple[bytes, bytes], Watch] = {}
        self.transactions: dict[int, Transaction] = {}
        self.next_transaction = 1
        self.first_event: tuple[bytes, bytes] | None = None
        self.stalled = False
        self._answering = False
        self._held: list[tuple[bytes, bytes]] | None = None  # own events, until the reply is out
        self.partial = b""
        self.output: deque[Message] = deque()
        self._taken = 0
        self.waiting = Backlog()
        self._unsent: dict[bytes, None] = {}
        self._request: Request | None = None  # one that nothing refers to, for the next

    @property
    def domid(self) -> int:
        return self.domain.domid

    def call(self, op: int, payload: bytes, tx_id: int = 0) -> bytes:
        """One request, answered at once: the payload of its reply.

        Raises StoreError with the name that an ERROR would carry.
        """
        server = self.server
        trace = server.trace
        tx = None
        try:
            entry = self.handlers.get(op)
            if entry is None:
                _refuse(server, op)
            handler, takes_tx = entry
            if tx_id and takes_tx:
                tx = self.transactions.get(tx_id)
                if tx is None:
                    _unknown_transaction(server, tx_id)
            reply = handler(server, self, tx, payload)
            if len(reply) > PAYLOAD_MAX and not (self.privileged and server.profile.long_replies):
                _too_long(reply)
            if tx is not None and not tx.plain:
                tx.note(op, payload, reply)
        except StoreError as refusal:
            if tx is not None and not tx.plain:
                tx.note(op, payload, refusal.name)
            refusal.name = server.profile.renamed.get(refusal.name, refusal.name)
            if trace is not None:
                trace.store_op(self.domain.domid, op, tx_id, payload, refusal.name.encode())
            raise
        if trace is not None:
            trace.store_op(self.domain.domid, op, tx_id, payload, None)
        if self.first_event is not None and not self._answering:
            self._send_first_event()
        return reply

    # The same for what clients in this process ask most, without a message and a handler.

    def read(self, path: bytes, tx_id: int = 0) -> bytes | None:
        """What a `call` of READ replies; None where it says ENOENT."""
        if self.privileged and not tx_id:
            server = self.server
            trace = server.trace
            node = server.nodes.get(path)
            if node is not None:
                value = node.value
                if len(value) <= PAYLOAD_MAX:
                    if trace is not None:
                        trace.store_op(self.domain.domid, XS_READ, 0, path + b"\0", None)
                    return value
            elif is_absent(server.nodes, path):
                if trace is not None:
                    trace.store_op(self.domain.domid, XS_READ, 0, path + b"\0", b"ENOENT")
                return None
        try:
            return self.call(XS_READ, path + b"\0", tx_id)
        except StoreError as error:
            if error.name != "ENOENT":
                raise
            return None

    def write(self, path: bytes, value: bytes, tx_id: int = 0) -> None:
        """What a `call` of WRITE does."""
        payload = b"%b\0%b" % (path, value)
        server = self.server
        if (
            self.privileged
            and not tx_id
            and path[:1] == b"/"
            and (len(value) < SURE or not server.profile.value_max)
            and write_tree(server.tree, path, value)
        ):
            if server.trace is not None:
                server.trace.store_op(self.domain.domid, XS_WRITE, 0, payload, None)
        else:
            self.call(XS_WRITE, payload, tx_id)

    def write_all(self, path: bytes, values: Mapping[str, str], tx_id: int) -> None:
        """What a `call` of WRITE for each `path/key` does, in order.

        StoreError says which of them was refused.
        """
        view = self.transactions.get(tx_id) if tx_id else self.server.tree
        if not self.privileged or self.server.profile.path_max:
            view = None
        pairs = [(path + b"/" + key.encode(), text.encode()) for key, text in values.items()]
        at = 0
        while at < len(pairs):
            done = 0 if view is None else view.plant_all(path, pairs[at:])
            self._trace_writes(pairs[at : at + done], tx_id)
            at += done
            if at < len(pairs):
                self._write_one(*pairs[at], tx_id)
                at += 1

    def _write_one(self, path: bytes, value: bytes, tx_id: int) -> None:
        try:
            self.write(path, value, tx_id)
        except StoreError as error:
            name = path.decode()
            raise StoreError(error.name, error.reason, operation="WRITE", path=name) from error

    def _trace_writes(self, pairs: Sequence[tuple[bytes, bytes]], tx_id: int) -> None:
        trace = self.server.trace
        if trace is not None:
            domid, store_op = self.domain.domid, trace.store_op
            for pair in pairs:
                store_op(domid, XS_WRITE, tx_id, b"\0".join(pair), None)

    # bytes in

    def feed(self, data: bytes) -> None:
        """Bytes from the client, split anywhere. Sets `fatal` on a request that is too long.

        The replies to those before it stay in the output: whether they still go out is the
        transport's matter, as it is when xenstored reads one request at a time.

        While `wants_input` is false requests wait here, to be answered by `take_output`. A
        transport does not read then, and looks again when it is woken.
        """
        if self.fatal is not None or self.closed:
            return
        if self.partial:
            data = self.partial + data
            self.partial = b""
        self.stalled = False
        at = 0
        end = len(data)
        domain = self.domain
        limits = domain.limits
        measured = not self.privileged
        while end - at >= HEADER_SIZE:
            if measured and (
                0 < limits.outstanding <= domain.outstanding
                or 0 < limits.memory <= domain.memory
                or domain.credit < 0
            ):
                domain.stalled = self.stalled = True
                break
            op, req_id, tx_id, length = _unpack(data, at)
            if length > PAYLOAD_MAX:
                if not self.server.profile.clamps_length:
                    self.fatal = ERROR_PROTO
                    self.finish()
                    return
                length = PAYLOAD_MAX
            stop = at + HEADER_SIZE + length
            if stop > end:
                break
            self.answer(op, req_id, tx_id, data[at + HEADER_SIZE : stop])
            at = stop
        self.partial = data[at:] if at else data

    def serve(self, data: bytes) -> bytes:
        """`feed` for a socket: the answer, if it is all that there is to send.

        Of one whole request, while nothing waits in either direction, which is how most
        clients ask. Otherwise empty, and what is to be sent is in the output.
        """
        size = len(data)
        if self.partial or self.output or size < HEADER_SIZE or not self.privileged:
            self.feed(data)
            return b""
        op, req_id, tx_id, length = _unpack(data)
        entry = self.handlers.get(op)
        server = self.server
        if (
            length + HEADER_SIZE != size
            or length > PAYLOAD_MAX
            or entry is None
            or self.closed
            or server.trace is not None
        ):
            self.feed(data)
            return b""
        handler, takes_tx = entry
        tx = None
        self._answering = True
        if not self.event_first:
            self._held = []
        try:  # `call`, spelt out
            if tx_id and takes_tx:
                tx = self.transactions.get(tx_id)
                if tx is None:
                    _unknown_transaction(server, tx_id)
            payload = data[HEADER_SIZE:]
            reply = handler(server, self, tx, payload)
            if len(reply) > PAYLOAD_MAX and not server.profile.long_replies:
                _too_long(reply)
            if tx is not None and not tx.plain:
                tx.note(op, payload, reply)
        except StoreError as refusal:
            if tx is not None and not tx.plain:
                tx.note(op, payload, refusal.name)
            op = XS_ERROR
            reply = error_payload(server.profile.renamed.get(refusal.name, refusal.name))
        finally:
            self._answering = False
        message = _pack(op, req_id, tx_id, len(reply)) + reply
        if self.output or self._held or self.first_event is not None:
            self.output.append((message, None, None))
            self._answering = True  # whoever serves looks for output: no wake
            self._send_held()
            self._answering = False
            return b""
        self._held = None
        return message

    def unsent(self, message: bytes, done: int) -> None:
        """The socket took only `done` bytes of what `serve` gave."""
        self.output.appendleft((message, None, None))
        self._taken = done

    @property
    def wants_input(self) -> bool:
        """May the transport read? Not while the domain owes too much (quotas).

        Whoever is told no is woken when it may.
        """
        if self.fatal is not None or self.closed:
            return False
        if self.privileged:
            return True
        domain = self.domain
        limits = domain.limits
        domain.stalled = (
            0 < limits.outstanding <= domain.outstanding
            or 0 < limits.memory <= domain.memory
            or (domain.credit < 0 and self.server.credit.blocked_ns(domain) > 0)
        )
        return not domain.stalled

    @property
    def blocked_ns(self) -> int:
        """How long the write rate limit forbids to read more; 0 if it does not."""
        return 0 if self.privileged else self.server.credit.blocked_ns(self.domain)

    def answer(self, op: int, req_id: int, tx_id: int, payload: bytes) -> None:
        """One whole request, where `wants_input` and nothing of an earlier one waits."""
        self._answering = True
        if not self.event_first:
            self._held = []
        try:
            self._answer(op, req_id, tx_id, payload)
            self._send_held()
        finally:
            self._answering = False
            self._held = None
            self.server.request = None

    def _answer(self, op: int, req_id: int, tx_id: int, payload: bytes) -> None:
        server = self.server
        domain = self.domain
        request = None
        if not self.privileged:
            request = self._request or Request(domain)
            self._request = None
            server.request = request
        generation = server.tree.generation
        try:
            reply = self.call(op, payload, tx_id)
        except StoreError as refusal:
            op = XS_ERROR
            reply = error_payload(refusal.name)
        server.request = None
        if request is not None and op in COUNTED:
            domain.note_maxima()
            if not tx_id and op in WRITES and server.credit.transactions:
                # Each node that was written has moved the generation on by one.
                server.credit.debit(domain, server.tree.generation - generation)
        size = len(reply)
        if size > SHORT_REPLY and request is not None:
            limit = domain.limits.memory
            if 0 < limit <= domain.memory + size + HEADER_SIZE:
                op = XS_ERROR
                reply = error_payload("ENOMEM")
                size = len(reply)
        message = _pack(op, req_id, tx_id, size) + reply
        taken = 0
        if self.put is not None and not self.output:
            taken = self.put(message)
            if taken == len(message):
                if request is None or request.left == 1:
                    self._request = request
                else:  # other connections have events of it to send
                    request.left -= 1
                    domain.outstanding += 1
                return
            self._taken = taken
        if request is not None:
            domain.memory += len(message)
            domain.outstanding += 1
        self.output.append((message, None, request))

    # bytes and events out

    def send_event(self, path: bytes, token: bytes) -> None:
        """Queues a watch event, unless it is too long (XSA-324) or waits there already."""
        size = len(path) + len(token) + 2
        if size > PAYLOAD_MAX:
            return
        if self.local:
            on_event = self.on_event
            if self.events.push((path, token)) and on_event is not None:
                on_event.wake()
            return
        if self._held is not None:
            self._held.append((path, token))
            return
        payload = b"\0".join((path, token, b""))
        key = None
        if path[0] != SPECIAL and self.server.profile.coalesces:
            if payload in self._unsent:
                return
            key = payload
        if not self.privileged:
            domain = self.domain
            memory = domain.memory + size + HEADER_SIZE
            if 0 < domain.limits.memory <= memory:
                return
            domain.memory = memory
        if key is not None:
            self._unsent[key] = None
        # A watch's first event belongs to no request: it follows the reply.
        request = self.server.request
        if request is not None:
            request.left += 1
        output = self.output
        # First to wait, or first behind those of which it is noted since when they do.
        first = len(output) == self.waiting.noted
        output.append((_pack(XS_WATCH_EVENT, 0, 0, size) + payload, key, request))
        if first and not self._answering:
            self.wake()

    def _send_held(self) -> None:
        """The events that follow a reply: the caller's own, or a watch's first."""
        held, self._held = self._held, None
        for path, token in held or ():
            self.send_event(path, token)
        if self.first_event is not None:
            self._send_first_event()

    def answer_last(self) -> None:
        """The rest of this request's events precede its reply, whatever the profile."""
        self._held = None

    def _send_first_event(self) -> None:
        assert self.first_event is not None
        path, token = self.first_event
        self.first_event = None
        self.send_event(path, token)

    def wake(self) -> None:
        if self.on_event is not None:
            self.on_event.wake()

    @property
    def wants_output(self) -> bool:
        return bool(self.output) or (self.stalled and self.wants_input)

    @property
    def backlog(self) -> int:
        """Messages that wait for the client to read."""
        return len(self.output)

    def take_output(self, limit: int) -> bytes:
        """At most `limit` bytes for the client, which count as sent from now on."""
        data = self.peek_output(limit)
        self.sent(len(data))
        return data

    def peek_output(self, limit: int) -> bytes:
        """The same bytes, for a transport that learns only later how many it could send.

        `sent` says how many; until then events that they hold can still swallow others.
        """
        if self.stalled and self.wants_input:
            self.feed(b"")
        output = self.output
        if not output:
            return b""
        head = output[0][0]
        taken = self._taken
        if len(output) == 1 or len(head) - taken >= limit:
            return head[taken : taken + limit] if taken or len(head) > limit else head
        chunks = [head[taken:]]
        room = limit - len(chunks[0])
        for data, _, _ in islice(output, 1, None):
            chunks.append(data[:room])
            room -= len(chunks[-1])
            if not room:
                break
        return b"".join(chunks)

    def sent(self, count: int) -> None:
        """`count` bytes of the output are on their way."""
        output = self.output
        count += self._taken
        released = 0
        before = len(output)
        while output:
            data, key, request = output[0]
            size = len(data)
            if count < size:
                break
            count -= size
            released += size
            del output[0]
            if key is not None:
                del self._unsent[key]
            if request is not None:
                request.left -= 1
                if not request.left:
                    request.domain.answered()
        self._taken = count
        if self.waiting.noted:
            self.waiting.left(before - len(output))
        if not self.privileged:
            self.domain.release(released)

    @property
    def is_partly_sent(self) -> bool:
        """Has the client got some bytes of the first message that waits?"""
        return self._taken > 0

    def dropped(self, messages: Sequence[Message]) -> None:
        """Messages of the output, none of them begun, will not be sent: let go of all they hold."""
        for _, key, request in messages:
            if key is not None:
                del self._unsent[key]
            if request is not None:
                request.left -= 1
                if not request.left:
                    request.domain.answered()
        if not self.privileged:
            self.domain.release(sum(len(data) for data, _, _ in messages))

    # the end, or a new beginning

    def finish(self) -> None:
        """Nothing more is read: drops watches, transactions and what was not answered.

        What waits to be sent stays.
        """
        drop_watches(self.server, self)
        self.drop_transactions()
        self.partial = b""
        self.stalled = False
        self.first_event = None

    def reset(self) -> None:
        """`finish`, and what waits to be sent is dropped too; `fatal` stays."""
        self.finish()
        self.sent(sum(len(data) for data, _, _ in self.output) - self._taken)
        self.events.clear()

    def freeze(self, error: int) -> None:
        """Serves the client no more: `error` is XENSTORE_ERROR_, for the ring page."""
        self.fatal = error
        self.reset()

    def drop_transactions(self) -> None:
        for tx in list(self.transactions.values()):
            self.close_transaction(tx)

    def close_transaction(self, tx: Transaction) -> None:
        del self.transactions[tx.id]
        self.server.credit.transactions -= 1
        if not tx.plain or not self.privileged:
            tx.settle()
        if not self.privileged:
            self.domain.transactions -= 1

    def __repr__(self) -> str:
        return f"<Connection {self.name}>"


def _refuse(server: Xenstored, op: int) -> NoReturn:
    if op in server.handlers:
        raise StoreError("EACCES", f"type {op} is for the privileged domain")
    raise StoreError("ENOSYS", f"type {op}")


def _unknown_transaction(server: Xenstored, tx_id: int) -> NoReturn:
    raise StoreError(server.profile.unknown_transaction, f"transaction {tx_id}")


def _too_long(reply: bytes) -> NoReturn:
    raise StoreError("E2BIG", f"reply of {len(reply)} bytes")
