"""The store as a driver under test asks it: its domain's connection, watches of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from xenpv.back.store import BackStore, BackWatch
from xenpv.testing.ends.held import Held

T = TypeVar("T")


class EndStore:
    """Requests raise StoreError with the name that xenstored answered.

    `tx_id` is that of a transaction, 0: none. A frontend's domain is not privileged; paths that
    do not begin with a slash are below its home, /local/domain/<domid>.
    """

    def __init__(
        self,
        store: BackStore,
        held: Held,
        guarded: Callable[[Callable[..., object]], Callable[..., object]],
    ) -> None:
        self._store = store
        self._held = held
        self._guarded = guarded

    def read(self, path: str, tx_id: int = 0) -> str | None:
        """A node's value; None if there is no such node."""
        return self._store.get(path, tx_id)

    def write(self, path: str, value: str, tx_id: int = 0) -> None:
        self._store.write(path, value, tx_id)

    def write_all(self, path: str, values: Mapping[str, str], tx_id: int = 0) -> None:
        """A `write` of each `path/key`, one after the other."""
        self._store.write_all(path, values, tx_id)

    def remove(self, path: str, tx_id: int = 0) -> None:
        """A subtree; nothing happens if it is not there."""
        self._store.remove(path, tx_id)

    def directory(self, path: str, tx_id: int = 0) -> list[str]:
        """Names of the children; none if there is no such node."""
        return self._store.directory(path, tx_id)

    def transaction(self, body: Callable[[int], T]) -> T:
        """Run `body(tx_id)` in a transaction, again after each EAGAIN; what it returned last."""
        return self._store.transaction(body)

    def watch(self, path: str, changed: Callable[[str], object]) -> BackWatch:
        """`changed(path)` at every event at or below `path`, and once for the registration."""
        watch = self._store.watch(path, self._guarded(changed))
        self._held.take("watch", id(watch), watch, f"a watch of {path}")
        return watch

    def unwatch(self, watch: BackWatch) -> None:
        """No call after this one."""
        self._held.drop("watch", id(watch))
        self._store.unwatch(watch)
