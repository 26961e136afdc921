"""xenstore as XENIFACE's two surfaces use it: XenBus' STORE with statuses and limits.

Every failure is an NtStatusError. Limits of win-xenbus store.c: INVALID_BUFFER_SIZE. What an
interface before a suspend gave is dead after it, here told by the suspend count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.bus.ntstatus import NTSTATUS, NtStatusError, status_of
from xenpv.errors import GrantError, HypercallError, StoreError

if TYPE_CHECKING:
    from xenpv.bus.store import Transaction, Watch
    from xenpv.bus.xenbus import XenBus
    from xenpv.xen.loop import Task

ABSOLUTE_PATH_MAX: Final = 3071  # bytes, without a NUL
RELATIVE_PATH_MAX: Final = 2047
VALUE_MAX: Final = 1023

# XENIFACE_STORE_PERMISSION_MASK: the letters of xenstore.
MASKS: Final = ("n", "r", "w", "b")


@contextmanager
def statuses(operation: str) -> Iterator[None]:
    """What XenBus raises becomes the status that the drivers return for it."""
    try:
        yield
    except (StoreError, HypercallError, GrantError) as error:
        raise NtStatusError(status_of(error), str(error), operation=operation) from error


def check_path(path: str) -> None:
    """Raises NtStatusError INVALID_BUFFER_SIZE."""
    size = len(path.encode())
    limit = ABSOLUTE_PATH_MAX if path.startswith("/") else RELATIVE_PATH_MAX
    if size > limit:
        reason = f"{size} bytes of path, {limit} fit"
        raise NtStatusError(NTSTATUS.INVALID_BUFFER_SIZE, reason)


@attrs.define(eq=False)
class StoreTransaction:
    """A transaction and the suspend count of its start."""

    handle: Transaction
    count: int


@attrs.define(eq=False)
class StoreWatch:
    """A watch and the suspend count of its registration."""

    handle: Watch
    count: int


class IfaceStore:
    """Requests of one guest's XENIFACE. Each raises NtStatusError."""

    def __init__(self, bus: XenBus, suspend_count: Callable[[], int]) -> None:
        self.bus = bus
        self._suspend_count = suspend_count

    def _live(self, transaction: StoreTransaction | None) -> Transaction | None:
        """The handle; UNSUCCESSFUL for what a suspend made void."""
        if transaction is None:
            return None
        if transaction.count != self._suspend_count():
            reason = "the transaction was open across a suspend"
            raise NtStatusError(NTSTATUS.UNSUCCESSFUL, reason)
        return transaction.handle

    def read(self, path: str, transaction: StoreTransaction | None = None) -> str:
        check_path(path)
        with statuses("STORE Read"):
            return self.bus.store.read(path, self._live(transaction))

    def directory(self, path: str, transaction: StoreTransaction | None = None) -> list[str]:
        """Names of the children. OBJECT_PATH_NOT_FOUND when there are none, as STORE answers."""
        check_path(path)
        with statuses("STORE Directory"):
            names = self.bus.store.directory(path, self._live(transaction))
        if not names:
            raise NtStatusError(NTSTATUS.OBJECT_PATH_NOT_FOUND, f"{path!r} has no children")
        return names

    def write(self, path: str, value: str, transaction: StoreTransaction | None = None) -> None:
        check_path(path)
        size = len(value.encode())
        if size > VALUE_MAX:
            reason = f"{size} bytes of value, {VALUE_MAX} fit"
            raise NtStatusError(NTSTATUS.INVALID_BUFFER_SIZE, reason)
        with statuses("STORE Printf"):
            self.bus.store.write(path, value, self._live(transaction))

    def remove(self, path: str, transaction: StoreTransaction | None = None) -> None:
        check_path(path)
        with statuses("STORE Remove"):
            self.bus.store.remove(path, self._live(transaction))

    def set_permissions(self, path: str, entries: Sequence[tuple[int, int]]) -> None:
        """`entries` are (domid, mask); the first names the owner."""
        check_path(path)
        texts = [f"{MASKS[mask]}{domid}" for domid, mask in entries]
        with statuses("STORE PermissionsSet"):
            self.bus.store.set_permissions(path, texts)

    def transaction_start(self) -> StoreTransaction:
        with statuses("STORE TransactionStart"):
            return StoreTransaction(self.bus.store.transaction_start(), self._suspend_count())

    def transaction_end(self, transaction: StoreTransaction, *, commit: bool) -> None:
        """RETRY on a conflict, and for one that was open across a suspend."""
        with statuses("STORE TransactionEnd"):
            ended = self.bus.store.transaction_end(transaction.handle, commit=commit)
        if not ended:
            raise NtStatusError(NTSTATUS.RETRY, "a conflict, or a suspend since its start")

    def watch_add(
        self, path: str, task: Task, concerns: Callable[[bytes], bool] | None = None
    ) -> StoreWatch:
        """Wakes `task` once now and after every change, until a suspend."""
        check_path(path)
        count = self._suspend_count()
        with statuses("STORE WatchAdd"):
            return StoreWatch(self.bus.store.watch_add(path, task, concerns), count)

    def watch_remove(self, watch: StoreWatch) -> None:
        """It succeeds without a request for one that was there across a suspend."""
        with statuses("STORE WatchRemove"):
            self.bus.store.watch_remove(watch.handle)
