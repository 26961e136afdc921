"""XenBus' STORE interface: xenstore requests over the shared ring page (win-xenbus store.c).

A request is written to the ring, the port is notified, and the guest spins: xenstored's
upcall, and nothing else, runs until the reply is there. Watch events that arrive meanwhile
wake the task of their watch; no callback runs inside a request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final, NoReturn, TypeVar

from xenpv.abi._kernel import ffi, lib
from xenpv.abi.layout import offsetof, packer
from xenpv.abi.xs import XS
from xenpv.bus.evtchn import Channel, EvtchnInterface
from xenpv.bus.storewatch import CallbackWatch
from xenpv.errors import LocalProtocolError, StoreError
from xenpv.xen.domain import Domain
from xenpv.xen.loop import Task

HEADER: Final = packer("xsd_sockmsg")
HEADER_SIZE: Final = HEADER.size
pack: Final = HEADER.pack
unpack: Final = HEADER.unpack_from
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
PAYLOAD_MAX: Final[int] = lib.XENSTORE_PAYLOAD_MAX
TEXT_MAX: Final = 1023  # what the driver's Printf can hold
DIRECTORY: Final[int] = lib.XS_DIRECTORY
READ: Final[int] = lib.XS_READ
GET_PERMS: Final[int] = lib.XS_GET_PERMS
WATCH: Final[int] = lib.XS_WATCH
UNWATCH: Final[int] = lib.XS_UNWATCH
TRANSACTION_START: Final[int] = lib.XS_TRANSACTION_START
TRANSACTION_END: Final[int] = lib.XS_TRANSACTION_END
WRITE: Final[int] = lib.XS_WRITE
RM: Final[int] = lib.XS_RM
SET_PERMS: Final[int] = lib.XS_SET_PERMS
WATCH_EVENT: Final[int] = lib.XS_WATCH_EVENT
ERROR: Final[int] = lib.XS_ERROR
MKDIR: Final[int] = lib.XS_MKDIR
DIRECTORY_PART: Final[int] = lib.XS_DIRECTORY_PART

TRIES_MAX: Final = 1000  # of a transaction that others keep in conflict
RESTARTS_MAX: Final = 100  # of reading a large directory that changes meanwhile
DIRECTORY_MAX: Final = 1 << 24  # bytes of names; dom0 can make a directory this large, barely

Result = TypeVar("Result")
_TYPES: Final = frozenset(int(one) for one in XS)


class Transaction:
    """An open transaction; dead after its end."""

    __slots__ = ("active", "id")

    def __init__(self, number: int) -> None:
        self.id = number
        self.active = True


class Watch:
    """A registered watch: its events wake `task`, which is not told what changed.

    Where `concerns` is given, only events of which it says so by their path.
    """

    __slots__ = ("concerns", "id", "path", "task", "token")

    def __init__(
        self,
        path: str,
        token: bytes,
        number: int,
        task: Task,
        concerns: Callable[[bytes], bool] | None = None,
    ) -> None:
        self.path = path
        self.token = token
        self.id = number
        self.task = task
        self.concerns = concerns


class StoreInterface:
    """The guest's only way to xenstore. Paths without a leading / are relative to its home.

    Every request raises StoreError with the name that xenstored answered, or `EIO` when no
    answer comes.
    """

    def __init__(self, domain: Domain, evtchn: EvtchnInterface, pfn: int, port: int) -> None:
        self.domain = domain
        self.pfn = pfn
        self.requests = 0
        self.dropped = 0  # replies and events that matched nothing
        self._evtchn = evtchn
        self._received = bytearray()
        self._chunk = bytearray(RING_SIZE)
        self._view = memoryview(self._chunk)
        # Bytes to the front of the chunk, and bytes and their number into the ring; how many.
        pointer = ffi.from_buffer(self._chunk)
        self._get = partial(lib.stream_get, domain.kernel, pfn, *RSP, pointer, RING_SIZE)
        self._put = partial(lib.stream_put, domain.kernel, pfn, *REQ)
        self._replies: list[tuple[int, bytes]] = []  # at most one: that of the latest request
        self._watches: dict[int, Watch] = {}
        self._tokens: dict[bytes, Watch] = {}
        self._req_id = 0
        self._watch_id = 0
        self._waiting_for = -1
        self.channel: Channel = evtchn.open_fixed(port, self.pump)
        evtchn.unmask(self.channel, force=True)

    # transport

    def pump(self) -> None:
        """Read what is in the response ring: a reply is kept, watch events wake tasks."""
        count = self._get()
        received = self._received
        if count < 0:
            self.domain.fail(count, "xenstore ring")
        elif received or count == RING_SIZE:
            self._pump_on(count)
        elif count:
            # All there is: what is written after this look comes with an event of its own.
            self._evtchn.send(self.channel)
            done = self._parse(self._view, count)
            if done < count:
                received += self._view[done:count]

    def _pump_on(self, count: int) -> None:
        """`count` bytes are in the chunk, behind others or before others."""
        received = self._received
        moved = False
        while count > 0:
            moved = True
            received += self._view[:count]
            count = self._get() if count == RING_SIZE else 0
        if count < 0:
            self.domain.fail(count, "xenstore ring")
        if moved:
            self._evtchn.send(self.channel)
            with memoryview(received) as view:
                done = self._parse(view, len(received))
            del received[:done]

    def _parse(self, received: memoryview, end: int) -> int:
        """Handle the whole messages in `end` bytes; the bytes that they take."""
        at = 0
        while end - at >= HEADER_SIZE:
            kind, req_id, _tx_id, length = unpack(received, at)
            if length > PAYLOAD_MAX:
                # A reply that cannot be: the driver would overrun, this one stops listening.
                self.dropped += 1
                return end
            start = at + HEADER_SIZE
            if end - start < length:
                break
            at = start + length
            if kind == WATCH_EVENT:
                self._fire(bytes(received[start:at]))
            elif req_id == self._waiting_for:
                self._waiting_for = -1
                self._replies.append((kind, bytes(received[start:at])))
            else:
                self.dropped += 1
        return at

    def _fire(self, payload: bytes) -> None:
        """Wake the task of the watch that an event is for."""
        parts = payload.split(b"\0", 2)
        watch = self._tokens.get(parts[1]) if len(parts) == 3 else None
        if watch is None:
            self.dropped += 1
        elif watch.concerns is None or watch.concerns(parts[0]):
            watch.task.wake()

    def _send(self, message: bytes) -> None:
        while True:
            size = len(message)
            count = self._put(message, size)
            if count < 0:
                self.domain.fail(count, "xenstore ring")
            if count:
                self._evtchn.send(self.channel)
            if count == size:
                return
            message = message[count:]
            self._spin()

    def _spin(self) -> None:
        """Let xenstored run until it said something."""
        if not self._evtchn.poll(self.channel):
            raise StoreError("EIO", "xenstored does not answer")
        self.pump()

    def request(self, kind: int, payload: bytes, tx_id: int = 0) -> bytes:
        """One request and its reply's payload, of any type; raises StoreError."""
        size = len(payload)
        if size > PAYLOAD_MAX:
            self._refuse(kind, payload, "E2BIG", f"{size} bytes; a request has at most 4096")
        self._req_id = self._waiting_for = req_id = (self._req_id + 1) & 0xFFFF
        self.requests += 1
        replies = self._replies
        if replies:
            replies.clear()
        try:
            self._send(pack(kind, req_id, tx_id, size) + payload)
            while not replies:
                self._spin()
        except StoreError as error:
            self._refuse(kind, payload, error.name, error.reason)
        answer, body = replies.pop()
        if answer == ERROR:
            self._refuse(kind, payload, body.rstrip(b"\0").decode("ascii", "replace"))
        return body

    @staticmethod
    def _refuse(kind: int, payload: bytes, name: str, reason: str = "") -> NoReturn:
        first = payload.split(b"\0", 1)[0].decode("utf-8", "replace")
        operation = XS(kind).name if kind in _TYPES else f"type {kind}"
        if kind in (TRANSACTION_START, TRANSACTION_END):
            first = ""
        raise StoreError(name, reason, operation=operation, path=first)

    @staticmethod
    def _tx_id(transaction: Transaction | None) -> int:
        if transaction is None:
            return 0
        if not transaction.active:
            raise LocalProtocolError("the transaction has ended")
        return transaction.id

    # what drivers call

    def read(self, path: str, transaction: Transaction | None = None) -> str:
        """A node's value, up to its first NUL."""
        tx_id = 0 if transaction is None else self._tx_id(transaction)
        body = self.request(READ, path.encode() + b"\0", tx_id)
        return body.split(b"\0", 1)[0].decode("utf-8", "replace")

    def get(self, path: str, transaction: Transaction | None = None) -> str | None:
        """A node's value, or None where it is missing or not readable."""
        try:
            return self.read(path, transaction)
        except StoreError as error:
            if error.name in ("ENOENT", "EACCES"):
                return None
            raise

    def exists(self, path: str, transaction: Transaction | None = None) -> bool:
        return self.get(path, transaction) is not None

    def directory(self, path: str, transaction: Transaction | None = None) -> list[str]:
        """Names of the children, in the store's order; a long list comes in parts."""
        tx_id = self._tx_id(transaction)
        try:
            body = self.request(DIRECTORY, path.encode() + b"\0", tx_id)
        except StoreError as error:
            if error.name != "E2BIG":
                raise
            body = self._directory_parts(path, tx_id)
        return [name.decode("utf-8", "replace") for name in body.split(b"\0")[:-1]]

    def _directory_parts(self, path: str, tx_id: int) -> bytes:
        """All names, each with a NUL, of one generation of the node."""
        for _ in range(RESTARTS_MAX):
            names = bytearray()
            generation = None
            while len(names) < DIRECTORY_MAX:
                request = b"%b\0%d\0" % (path.encode(), len(names))
                body = self.request(DIRECTORY_PART, request, tx_id)
                now, _, part = body.partition(b"\0")
                if generation not in (None, now):
                    break
                generation = now
                if not part:
                    raise StoreError("EIO", "an empty part", operation="DIRECTORY_PART", path=path)
                if part == b"\0" or part.endswith(b"\0\0"):
                    return bytes(names + part[:-1])
                names += part
        raise StoreError("E2BIG", "too long or changing", operation="DIRECTORY_PART", path=path)

    def mkdir(self, path: str, transaction: Transaction | None = None) -> None:
        """An empty node, with its parents; nothing happens if it is there."""
        self.request(MKDIR, path.encode() + b"\0", self._tx_id(transaction))

    def write(self, path: str, value: str, transaction: Transaction | None = None) -> None:
        """Printf: at most 1,023 bytes of text, stored without a NUL."""
        text = value.encode()
        if len(text) > TEXT_MAX:
            raise LocalProtocolError(f"{len(text)} bytes of text for {path}, {TEXT_MAX} fit")
        tx_id = 0 if transaction is None else self._tx_id(transaction)
        self.request(WRITE, path.encode() + b"\0" + text, tx_id)

    def remove(self, path: str, transaction: Transaction | None = None) -> None:
        self.request(RM, path.encode() + b"\0", self._tx_id(transaction))

    def discard(self, path: str) -> None:
        """Remove a node that need not be there."""
        try:
            self.remove(path)
        except StoreError as error:
            if error.name not in ("ENOENT", "EACCES"):
                raise

    def get_permissions(self, path: str, transaction: Transaction | None = None) -> list[str]:
        """Entries such as `n0`, `r5`; the first names the owner."""
        body = self.request(GET_PERMS, path.encode() + b"\0", self._tx_id(transaction))
        return [entry.decode() for entry in body.split(b"\0")[:-1]]

    def set_permissions(
        self, path: str, entries: Sequence[str], transaction: Transaction | None = None
    ) -> None:
        payload = b"".join(text.encode() + b"\0" for text in (path, *entries))
        self.request(SET_PERMS, payload, self._tx_id(transaction))

    def transaction_start(self) -> Transaction:
        return Transaction(int(self.request(TRANSACTION_START, b"\0").rstrip(b"\0")))

    def transaction_end(self, transaction: Transaction, *, commit: bool) -> bool:
        """True if it was committed (or aborted as asked); False on EAGAIN: do it again.

        The handle is free in both cases; on any other error it stays open.
        """
        tx_id = self._tx_id(transaction)
        try:
            self.request(TRANSACTION_END, b"T\0" if commit else b"F\0", tx_id)
        except StoreError as error:
            if error.name != "EAGAIN":
                raise
            transaction.active = False
            return False
        transaction.active = False
        return True

    def transaction(
        self, body: Callable[[Transaction], Result], *, tries: int = TRIES_MAX
    ) -> Result:
        """Run `body(transaction)` and commit, again from its start after each conflict.

        What `body` returned in the try that was committed. It may run many times, so it
        should change nothing but the store. An exception of it ends the transaction and goes
        to the caller. Raises StoreError EAGAIN after `tries` conflicts.
        """
        for _ in range(tries):
            transaction = self.transaction_start()
            result = self._run(body, transaction)
            if self.transaction_end(transaction, commit=True):
                return result
        raise StoreError("EAGAIN", f"no commit in {tries} tries", operation="TRANSACTION_END")

    def _run(self, body: Callable[[Transaction], Result], transaction: Transaction) -> Result:
        try:
            return body(transaction)
        except BaseException:
            self.transaction_end(transaction, commit=False)
            raise

    @contextmanager
    def begin(self) -> Iterator[Transaction]:
        """`with store.begin() as t`: one try, committed at the end of the block.

        A block cannot be run again, so a conflict raises StoreError EAGAIN; `transaction`
        is the form that retries. An exception of the block ends it without a commit.
        """
        transaction = self.transaction_start()
        try:
            yield transaction
        except BaseException:
            if transaction.active:
                self.transaction_end(transaction, commit=False)
            raise
        if transaction.active and not self.transaction_end(transaction, commit=True):
            raise StoreError("EAGAIN", "somebody changed it", operation="TRANSACTION_END")

    def watch(self, path: str, changed: Callable[[str], object]) -> CallbackWatch:
        """Call `changed` with the path of every event at or below `path`, and once now."""
        return CallbackWatch(self, path, changed)

    def watch_add(
        self, path: str, task: Task, concerns: Callable[[bytes], bool] | None = None
    ) -> Watch:
        """Wake `task` at every change at or below `path`, and once now.

        `concerns` is asked about the path of each event, as it is in the event. The driver
        never looks at it; a scan need not read a directory again that cannot have changed.
        """
        while True:
            self._watch_id = (self._watch_id + 1) & 0xFFFF
            if self._watch_id not in self._watches:
                break
        token = b"TOK|%016X|%04X" % (task.number, self._watch_id)
        watch = Watch(path, token, self._watch_id, task, concerns)
        self._watches[watch.id] = self._tokens[token] = watch
        try:
            self.request(WATCH, path.encode() + b"\0" + token + b"\0")
        except StoreError:
            self._forget(watch)
            raise
        return watch

    def watch_remove(self, watch: Watch) -> None:
        """The handle stays if xenstored refuses."""
        self.request(UNWATCH, watch.path.encode() + b"\0" + watch.token + b"\0")
        self._forget(watch)

    def _forget(self, watch: Watch) -> None:
        del self._watches[watch.id]
        del self._tokens[watch.token]

    def watches(self) -> list[Watch]:
        """Registered watches in the order of their registration; for leak checks and dumps."""
        return list(self._watches.values())

    def close(self) -> None:
        """Drop the event channel's callback; the port stays the toolstack's."""
        self._evtchn.close(self.channel)
