"""A backend domain's store client, whatever connection it asks over.

In dom0 that is a local connection of xenstored's, in a driver domain its ring page
(ringstore.py).

Paths are str here and bytes below. Watches wake tasks; their events queue in the
connection and are handed out by `BackStore.deliver`, which is a task of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from xenpv.abi._kernel import lib
from xenpv.abi.xs import XS
from xenpv.back.ringstore import ABSENT, RingStore
from xenpv.errors import StoreError
from xenpv.store.connection import Connection
from xenpv.xen.domain import Domain

XS_DIRECTORY: Final[int] = lib.XS_DIRECTORY
XS_READ: Final[int] = lib.XS_READ
XS_WATCH: Final[int] = lib.XS_WATCH
XS_UNWATCH: Final[int] = lib.XS_UNWATCH
XS_TRANSACTION_START: Final[int] = lib.XS_TRANSACTION_START
XS_TRANSACTION_END: Final[int] = lib.XS_TRANSACTION_END
XS_WRITE: Final[int] = lib.XS_WRITE
XS_MKDIR: Final[int] = lib.XS_MKDIR
XS_RM: Final[int] = lib.XS_RM
XS_SET_PERMS: Final[int] = lib.XS_SET_PERMS

XS_GET_PERMS: Final[int] = lib.XS_GET_PERMS
XS_DIRECTORY_PART: Final[int] = lib.XS_DIRECTORY_PART

PAYLOAD_MAX: Final[int] = lib.XENSTORE_PAYLOAD_MAX
SURE: Final = 1000  # characters, which even at four bytes each fit into a request

TRIES_MAX: Final = 1000  # of a transaction that others keep in conflict
PASSES_MAX: Final = 100  # over a large directory that changes meanwhile

T = TypeVar("T")


class BackWatch:
    """A watch of a backend: `changed(path)` gets the node that changed, as text."""

    __slots__ = ("active", "changed", "path", "token")

    def __init__(
        self,
        path: str,
        token: bytes,
        changed: Callable[[str], object],
    ) -> None:
        self.path = path
        self.token = token
        self.changed = changed
        self.active = True


class BackStore:
    """Requests raise StoreError with the name that xenstored answered, operation and path.

    E2BIG is also for a request of more than 4,096 bytes, which is not sent: xenstored would
    hang up (libxenstore's xs_talkv).
    """

    def __init__(self, domain: Domain, connection: Connection | RingStore, name: str) -> None:
        self.domain = domain
        self.connection = connection
        self._watches: dict[bytes, BackWatch] = {}
        self._tokens = 0
        self._task = domain.task(f"{name} watches", self.deliver)
        connection.on_event = self._task

    def _ask(self, op: int, path: str, payload: bytes, tx_id: int = 0) -> bytes:
        if len(payload) > PAYLOAD_MAX:
            reason = f"{len(payload)} bytes; a request has at most {PAYLOAD_MAX}"
            raise StoreError("E2BIG", reason, operation=XS(op).name, path=path)
        try:
            return self.connection.call(op, payload, tx_id)
        except StoreError as error:
            raise StoreError(error.name, error.reason, operation=XS(op).name, path=path) from error

    def read(self, path: str, tx_id: int = 0) -> str:
        value = self._ask(XS_READ, path, path.encode() + b"\0", tx_id)
        return value.decode("utf-8", "replace")

    def get(self, path: str, tx_id: int = 0) -> str | None:
        """A node's value; None if there is no such node."""
        try:
            value = self.connection.read(path.encode(), tx_id)
        except StoreError as error:
            raise StoreError(error.name, error.reason, operation="READ", path=path) from error
        return None if value is None else value.decode("utf-8", "replace")

    def exists(self, path: str) -> bool:
        return self.get(path) is not None

    def directory(self, path: str, tx_id: int = 0) -> list[str]:
        """Names of the children; none if there is no such node. A long list comes in parts."""
        try:
            body = self._ask(XS_DIRECTORY, path, path.encode() + b"\0", tx_id)
        except StoreError as error:
            if error.name in ABSENT:
                return []
            if error.name != "E2BIG":
                raise
            return self._long_directory(path, tx_id)
        return [name.decode("utf-8", "replace") for name in body.split(b"\0")[:-1]]

    def _long_directory(self, path: str, tx_id: int) -> list[str]:
        """By DIRECTORY_PART, from the first part again whenever the node changed between two."""
        for _ in range(PASSES_MAX):
            found, first, complete = b"", None, False
            while not complete:
                payload = f"{path}\0{len(found)}\0".encode()
                generation, _, names = self._ask(XS_DIRECTORY_PART, path, payload, tx_id).partition(
                    b"\0"
                )
                first = first or generation
                if generation != first:
                    break
                if not names:
                    raise StoreError("EIO", "an empty part", operation="DIRECTORY_PART", path=path)
                complete = names[-2:] in (b"\0", b"\0\0")
                found += names[:-1] if complete else names
            else:
                return found.decode("utf-8", "replace").split("\0")[:-1]
        raise StoreError("EAGAIN", "it keeps changing", operation="DIRECTORY_PART", path=path)

    def write(self, path: str, value: str, tx_id: int = 0) -> None:
        if len(path) + len(value) >= SURE:
            self._ask(XS_WRITE, path, b"%b\0%b" % (path.encode(), value.encode()), tx_id)
            return
        try:
            self.connection.write(path.encode(), value.encode(), tx_id)
        except StoreError as error:
            raise StoreError(error.name, error.reason, operation="WRITE", path=path) from error

    def write_all(self, path: str, values: Mapping[str, str], tx_id: int = 0) -> None:
        """What a `write` of each `path/key` does, one after the other.

        Those before one that fails are done.
        """
        if len(path) + sum(map(len, values)) + sum(map(len, values.values())) < SURE:
            self.connection.write_all(path.encode(), values, tx_id)
        else:
            for key, value in values.items():
                self.write(f"{path}/{key}", value, tx_id)

    def mkdir(self, path: str, tx_id: int = 0) -> None:
        self._ask(XS_MKDIR, path, path.encode() + b"\0", tx_id)

    def remove(self, path: str, tx_id: int = 0) -> None:
        """Remove a subtree; nothing happens if it is not there, or not this domain's."""
        try:
            self._ask(XS_RM, path, path.encode() + b"\0", tx_id)
        except StoreError as error:
            if error.name not in ABSENT:
                raise

    def get_permissions(self, path: str, tx_id: int = 0) -> list[str]:
        """Entries such as `n0`, `r5`; the first names the owner."""
        body = self._ask(XS_GET_PERMS, path, path.encode() + b"\0", tx_id)
        return body.decode("utf-8", "replace").split("\0")[:-1]

    def set_permissions(self, path: str, entries: Sequence[str], tx_id: int = 0) -> None:
        """Entries such as `n0`, `r5`; the first names the owner."""
        payload = "\0".join((path, *entries, "")).encode()
        self._ask(XS_SET_PERMS, path, payload, tx_id)

    # transactions

    def _start(self) -> int:
        text = self._ask(XS_TRANSACTION_START, "", b"\0").rstrip(b"\0")
        if not text.isdigit() or int(text) >> 32:
            raise StoreError("EIO", f"{text[:20]!r} is no id", operation="TRANSACTION_START")
        return int(text)

    def _end(self, tx_id: int, how: bytes) -> None:
        self._ask(XS_TRANSACTION_END, "", how + b"\0", tx_id)

    @contextmanager
    def begin(self) -> Iterator[int]:
        """`with store.begin() as tx_id`: one try, committed when the block ends.

        Somebody else's change raises StoreError EAGAIN, since a block cannot be run again:
        `transaction` does that. An exception of the block drops the transaction.
        """
        tx_id = self._start()
        try:
            yield tx_id
        except BaseException:
            self._end(tx_id, b"F")
            raise
        self._end(tx_id, b"T")

    def transaction(self, body: Callable[[int], T], *, tries: int = TRIES_MAX) -> T:
        """Run `body(tx_id)` in a transaction, again after each EAGAIN; what it returned last.

        Raises StoreError EAGAIN when none of `tries` could be committed.
        """
        for _ in range(tries):
            tx_id = self._start()
            try:
                result = body(tx_id)
            except BaseException:
                self._end(tx_id, b"F")
                raise
            try:
                self._end(tx_id, b"T")
            except StoreError as error:
                if error.name != "EAGAIN":
                    raise
            else:
                return result
        raise StoreError("EAGAIN", f"no commit in {tries} tries", operation="TRANSACTION_END")

    # watches

    def watch(self, path: str, changed: Callable[[str], object]) -> BackWatch:
        """Call `changed` for every event at or below `path`, and once for the registration."""
        self._tokens += 1
        watch = BackWatch(path=path, token=b"B%d" % self._tokens, changed=changed)
        self._ask(XS_WATCH, path, path.encode() + b"\0" + watch.token + b"\0")
        self._watches[watch.token] = watch
        return watch

    def unwatch(self, watch: BackWatch) -> None:
        """No call after this one: events that wait are dropped."""
        if watch.active:
            watch.active = False
            del self._watches[watch.token]
            payload = watch.path.encode() + b"\0" + watch.token + b"\0"
            self._ask(XS_UNWATCH, watch.path, payload)

    def close(self) -> None:
        """At the platform's end: nobody hears of anything any more."""
        for watch in self._watches.values():
            watch.changed = _nobody
        self._watches.clear()

    def deliver(self) -> None:
        """Hand out the events that are queued now."""
        events = self.connection.events
        take, watches = events.popleft, self._watches
        for _ in range(len(events)):
            path, token = take()
            watch = watches.get(token)
            if watch is None:
                continue
            try:
                watch.changed(path.decode("utf-8", "replace"))
            except StoreError as error:
                # Somebody took away what this is about, or xenstored says nothing more.
                self.domain.trace.note(self.domain.domid, f"{watch.path}: {error}")
        if events:
            # Queued while handing out: the connection wakes only for a queue that was empty.
            self._task.wake()


def _nobody(_path: str) -> None:
    """What a watch calls that nothing is left of."""
