"""A backend domain's store client: in dom0 over a local connection of xenstored.

Paths are str here and bytes below. Watches wake tasks; their events queue in the
connection and are handed out by `BackStore.deliver`, which is a task of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from xenpv.abi._kernel import lib
from xenpv.errors import StoreError
from xenpv.store.connection import Connection
from xenpv.xen.domain import Domain

XS_DIRECTORY: Final[int] = lib.XS_DIRECTORY
XS_READ: Final[int] = lib.XS_READ
XS_WATCH: Final[int] = lib.XS_WATCH
XS_UNWATCH: Final[int] = lib.XS_UNWATCH
XS_TRANSACTION_START: Final[int] = lib.XS_TRANSACTION_START
XS_TRANSACTION_END: Final[int] = lib.XS_TRANSACTION_END
XS_MKDIR: Final[int] = lib.XS_MKDIR
XS_RM: Final[int] = lib.XS_RM
XS_SET_PERMS: Final[int] = lib.XS_SET_PERMS

RETRIES_MAX: Final = 1000


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
    """Requests raise StoreError with the name that xenstored answered."""

    def __init__(self, domain: Domain, connection: Connection, name: str) -> None:
        self.domain = domain
        self.connection = connection
        self._watches: dict[bytes, BackWatch] = {}
        self._tokens = 0
        self._task = domain.task(f"{name} watches", self.deliver)
        connection.on_event = self._task

    def read(self, path: str, tx_id: int = 0) -> str:
        value = self.connection.call(XS_READ, path.encode() + b"\0", tx_id)
        return value.decode("utf-8", "replace")

    def get(self, path: str, tx_id: int = 0) -> str | None:
        """A node's value; None if there is no such node."""
        value = self.connection.read(path.encode(), tx_id)
        return None if value is None else value.decode("utf-8", "replace")

    def exists(self, path: str) -> bool:
        return self.get(path) is not None

    def directory(self, path: str, tx_id: int = 0) -> list[str]:
        """Names of the children; none if there is no such node."""
        try:
            body = self.connection.call(XS_DIRECTORY, path.encode() + b"\0", tx_id)
        except StoreError as error:
            if error.name != "ENOENT":
                raise
            return []
        return [name.decode() for name in body.split(b"\0")[:-1]]

    def write(self, path: str, value: str, tx_id: int = 0) -> None:
        self.connection.write(path.encode(), value.encode(), tx_id)

    def write_all(self, path: str, values: Mapping[str, str], tx_id: int = 0) -> None:
        """What a `write` of each `path/key` does, one after the other."""
        self.connection.write_all(path.encode(), values, tx_id)

    def mkdir(self, path: str, tx_id: int = 0) -> None:
        self.connection.call(XS_MKDIR, path.encode() + b"\0", tx_id)

    def remove(self, path: str, tx_id: int = 0) -> None:
        """Remove a subtree; nothing happens if it is not there."""
        try:
            self.connection.call(XS_RM, path.encode() + b"\0", tx_id)
        except StoreError as error:
            if error.name != "ENOENT":
                raise

    def set_permissions(self, path: str, entries: Sequence[str], tx_id: int = 0) -> None:
        """Entries such as `n0`, `r5`; the first names the owner."""
        payload = "\0".join((path, *entries, "")).encode()
        self.connection.call(XS_SET_PERMS, payload, tx_id)

    def transaction(self, body: Callable[[int], object]) -> None:
        """Run `body(tx_id)` in a transaction, again after each EAGAIN."""
        for _ in range(RETRIES_MAX):
            tx_id = int(self.connection.call(XS_TRANSACTION_START, b"\0").rstrip(b"\0"))
            try:
                body(tx_id)
            except BaseException:
                self.connection.call(XS_TRANSACTION_END, b"F\0", tx_id)
                raise
            try:
                self.connection.call(XS_TRANSACTION_END, b"T\0", tx_id)
            except StoreError as error:
                if error.name != "EAGAIN":
                    raise
            else:
                return
        raise StoreError("EAGAIN", f"no commit in {RETRIES_MAX} tries")

    def watch(self, path: str, changed: Callable[[str], object]) -> BackWatch:
        """Call `changed` for every event at or below `path`, and once for the registration."""
        self._tokens += 1
        watch = BackWatch(path=path, token=b"B%d" % self._tokens, changed=changed)
        self._watches[watch.token] = watch
        self.connection.call(XS_WATCH, path.encode() + b"\0" + watch.token + b"\0")
        return watch

    def unwatch(self, watch: BackWatch) -> None:
        if watch.active:
            watch.active = False
            del self._watches[watch.token]
            self.connection.call(XS_UNWATCH, watch.path.encode() + b"\0" + watch.token + b"\0")

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
            if watch is not None:
                watch.changed(path.decode("utf-8", "replace"))
        if events:
            # Queued while handing out: the connection wakes only for a queue that was empty.
            self._task.wake()


def _nobody(_path: str) -> None:
    """What a watch calls that nothing is left of."""
