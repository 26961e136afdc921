"""One client of xenstored: requests in, replies and events out, and no I/O.

A connection serves three kinds of client: code in this process (`call`, `events`), a socket
and a ring page (`feed`, `take_output`). Replies keep the order of their requests; events
precede the reply of the request that caused them, but a watch's first event follows the
reply of its WATCH.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final, NoReturn

from xenpv.abi._kernel import lib
from xenpv.errors import StoreError
from xenpv.store.outbox import Outbox, Request
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
WATCHING: Final = (lib.XS_WATCH, lib.XS_UNWATCH)
WRITES: Final = (lib.XS_WRITE, lib.XS_MKDIR, lib.XS_RM, lib.XS_SET_PERMS)
# Requests after which a domain may hold more than before.
COUNTED: Final = (*WRITES, lib.XS_WATCH, lib.XS_TRANSACTION_START, lib.XS_TRANSACTION_END)
HEADER_SIZE: Final = HEADER.size
SHORT_REPLY: Final = 16  # a reply up to here passes the memory quota (DEFAULT_BUFFER_SIZE)

_unpack = HEADER.unpack_from
_pack = HEADER.pack


class Connection(Outbox):
    """The server's side of one client.

    `put`, where the
    transport has one, takes bytes at once and says how many it took: a reply that nothing
    waits before goes there and not into the output. `fatal` is the XENSTORE_ERROR_ value of a
    connection that is served no more: a transport closes its socket or freezes its ring.
    `home_prefix` is what relative paths are relative to.
    """

    __slots__ = (
        "_request",
        "age",
        "closed",
        "event_first",
        "fatal",
        "handlers",
        "home_prefix",
        "name",
        "next_transaction",
        "partial",
        "put",
        "stalled",
        "transactions",
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
        super().__init__(server, domain, local=local)
        self.age = age
        self.name = name
        self.home_prefix = home_prefix
        self.event_first = server.profile.event_first
        self.put: Callable[[bytes], int] | None = None
        self.fatal: int | None = None
        self.closed = False
        self.handlers: Mapping[int, tuple[Handler, bool]] = {}  # what it may ask: server.OPEN
        self.watches: dict[tuple[bytes, bytes], Watch] = {}
        self.transactions: dict[int, Transaction] = {}
        self.next_transaction = 1
        self.stalled = False
        self.partial = b""
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
                if tx_id and server.profile.numbered:
                    tx = self._admit(tx_id)
                _refuse(server, op)
            handler, takes_tx = entry
            if tx_id and takes_tx:
                tx = self.transactions.get(tx_id)
                if tx is None:
                    _unknown_transaction(server, tx_id)
                if not tx.plain:
                    self._admit(tx_id)
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

    def _admit(self, tx_id: int) -> Transaction:
        """The transaction of a request that it may still have. Raises StoreError."""
        tx = self.transactions.get(tx_id)
        if tx is None:
            _unknown_transaction(self.server, tx_id)
        limit = self.server.profile.requests_max
        if limit and tx.requests >= limit and not self.privileged:
            raise StoreError("ENOSPC", f"{tx.requests} requests in transaction {tx_id}")
        return tx

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
                self.blocked
                or 0 < limits.outstanding <= domain.outstanding
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
        if tx_id and op in WATCHING and server.profile.numbered:
            tx_id = 0  # and its reply says so
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
            self.blocked > 0
            or 0 < limits.outstanding <= domain.outstanding
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
        if tx_id and op in WATCHING and self.server.profile.numbered:
            tx_id = 0  # and its reply says so
        self._answering = True
        server = self.server
        if not self.event_first:
            self._held = []
            server.cause = self
        try:
            self._answer(op, req_id, tx_id, payload)
            self._send_held()
        finally:
            self._answering = False
            self._held = None
            server.request = server.cause = None

    def _answer(self, op: int, req_id: int, tx_id: int, payload: bytes) -> None:
        server = self.server
        domain = self.domain
        request = None
        if not self.privileged:
            request = self._request or Request(domain)
            self._request = None
            if self.overflow is None:  # there events are counted for themselves
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

    # bytes out

    @property
    def wants_output(self) -> bool:
        return bool(self.output) or (self.stalled and self.wants_input)

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
        if self.overflow is not None:
            self.domain.release(self.overflow.clear())
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
