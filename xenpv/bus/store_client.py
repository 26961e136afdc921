"""A guest's client of xenstored: transactions, watches, directories (win-xenbus store.c).

A suspend is the end of what xenstored knew of the guest. Transactions and watches expire: the
former answer nothing more and are done again, the latter are woken once and then silent, and
their owners add them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from xenpv.abi._kernel import lib
from xenpv.bus.evtchn import EvtchnInterface
from xenpv.bus.interface import Interface
from xenpv.bus.store_transport import (
    TRANSACTION_END,
    TRANSACTION_START,
    StoreTransport,
    Watch,
)
from xenpv.bus.storewatch import CallbackWatch
from xenpv.bus.suspend import SuspendCallback, SuspendInterface, SuspendPhase
from xenpv.errors import LocalProtocolError, StoreError
from xenpv.xen.domain import Domain
from xenpv.xen.loop import NS_PER_S, Task, Timer

TEXT_MAX: Final = 1023  # what the driver's Printf can hold
DIRECTORY: Final[int] = lib.XS_DIRECTORY
READ: Final[int] = lib.XS_READ
GET_PERMS: Final[int] = lib.XS_GET_PERMS
WATCH: Final[int] = lib.XS_WATCH
UNWATCH: Final[int] = lib.XS_UNWATCH
WRITE: Final[int] = lib.XS_WRITE
RM: Final[int] = lib.XS_RM
SET_PERMS: Final[int] = lib.XS_SET_PERMS
MKDIR: Final[int] = lib.XS_MKDIR
DIRECTORY_PART: Final[int] = lib.XS_DIRECTORY_PART
RESET_WATCHES: Final[int] = lib.XS_RESET_WATCHES
RESETS: Final = "control/platform-feature-xs_reset_watches"  # the toolstack's: xenstored can

TRIES_MAX: Final = 1000  # of a transaction that others keep in conflict
RESTARTS_MAX: Final = 100  # of reading a large directory that changes meanwhile
WATCHDOG_NS: Final = 15 * NS_PER_S
STORE_EVTCHN: Final[int] = lib.HVM_PARAM_STORE_EVTCHN
DIRECTORY_MAX: Final = 1 << 24  # bytes of names; dom0 can make a directory this large, barely

Result = TypeVar("Result")


class Transaction:
    """An open transaction; dead after its end, and of no use after a suspend."""

    __slots__ = ("active", "expired", "id")

    def __init__(self, number: int) -> None:
        self.id = number
        self.active = True
        self.expired = False


class StoreClient(StoreTransport, Interface):
    """What our own drivers call of STORE. Paths without a leading / are relative to its home.

    Every request raises StoreError with the name that xenstored answered, `EIO` when no
    answer comes, `ESTALE` in a transaction that expired in a suspend. It works from its
    making on, before the first reference. EVTCHN is acquired with it, and `gnttab`, as the
    driver finds the page through that; `watchdog` looks at the ring every 15 s of virtual time.
    """

    def __init__(
        self,
        domain: Domain,
        evtchn: EvtchnInterface,
        pfn: int,
        port: int,
        *,
        suspend: SuspendInterface | None = None,
        gnttab: Interface | None = None,
        watchdog: bool = False,
    ) -> None:
        StoreTransport.__init__(self, domain, evtchn, pfn)
        self.suspend = suspend
        self.gnttab = gnttab
        self.barks = 0  # of the watchdog
        self.bark: Callable[[], object] | None = None  # told of each: XENBUS dumps its STORE
        self._transactions: list[Transaction] = []
        self._watches: dict[int, Watch] = {}
        self._watch_id = 0
        self._handles: list[SuspendCallback] = []
        self._samples = (0, 0, 0, 0)
        self._watchdog: Timer | None = None
        self.has_watchdog = watchdog
        self._is_up = False
        self._port = port  # of the first start; later ones ask for the HVM parameter
        self._start()

    # its life

    def _start(self) -> None:
        if self._is_up:
            return
        if self.gnttab is not None:
            self.gnttab.acquire()
        self._evtchn.acquire()
        suspend = self.suspend
        if suspend is not None:
            suspend.acquire()
            early = suspend.register(SuspendPhase.EARLY, self._suspend_early, "XENBUS STORE")
            late = suspend.register(SuspendPhase.LATE, self._suspend_late, "XENBUS STORE")
            self._handles = [early, late]
        if self.has_watchdog:
            task = self.domain.task("store watchdog", self._look)
            task.alarm = self._watchdog = self.domain.timer(task, WATCHDOG_NS)
            self._samples = self._indices()
            self._watchdog.arm(WATCHDOG_NS)
        self._open(self._port or self.domain.hvm_param(STORE_EVTCHN))
        self._port = 0
        self._is_up = True

    def _open(self, port: int) -> None:
        self.channel = self._evtchn.open_fixed(port, self._event)
        self._evtchn.unmask(self.channel, force=True)

    def _stop(self) -> None:
        for watch in self.watches():
            self._forget(watch)
        self._transactions.clear()
        if self._watchdog is not None:
            self.domain.forget(self._watchdog.task)
            self._watchdog = None
        self.close()
        if self.suspend is not None:
            for handle in self._handles:
                self.suspend.deregister(handle)
            self.suspend.release()
        self._is_up = False
        try:
            if self.gnttab is not None:
                self.gnttab.release()
        finally:
            self._evtchn.release()

    def leftovers(self) -> list[str]:
        left = [f"transaction {one.id}" for one in self._transactions]
        return left + [f"a watch of {one.path}" for one in self._watches.values()]

    def _suspend_early(self) -> None:
        for transaction in self._transactions:
            transaction.active = False
            transaction.expired = True
        for watch in self._watches.values():
            watch.expired = True
        self._tokens.clear()

    def _suspend_late(self) -> None:
        """The page is where it was, with its indices; the port is another."""
        self._evtchn.close(self.channel)
        self._drop_partial()
        self.broken = ""
        self._open(self.domain.hvm_param(STORE_EVTCHN))
        self._event()
        self._reset()
        for watch in self._watches.values():
            watch.task.wake()

    def _reset(self) -> None:
        """In the same domain xenstored has the watches and transactions of before: away with
        them, or every resume takes more of the quota. A Linux guest does this when it boots,
        and adds its watches again under their old tokens; the Windows driver never does.
        """
        try:
            if self.get(RESETS) not in (None, "0"):
                self.request(RESET_WATCHES, b"\0")
        except StoreError as error:
            self.domain.trace.note(self.domain.domid, f"store: {error}")

    def _look(self) -> None:
        """The watchdog: a producer moved since the last look, and its consumer did not."""
        now, before = self._indices(), self._samples
        self._samples = now
        stuck = [
            name
            for name, at in (("requests", 0), ("responses", 2))
            if now[at] != before[at] and now[at + 1] == before[at + 1] and now[at] != now[at + 1]
        ]
        if stuck:
            self.barks += 1
            text = f"store: {' and '.join(stuck)} are not consumed: req {now[0]:#x}/{now[1]:#x}"
            self.domain.trace.note(self.domain.domid, f"{text}, rsp {now[2]:#x}/{now[3]:#x}")
            if self.bark is not None:
                self.bark()
            self._evtchn.send(self.channel)
            self._event()

    @staticmethod
    def _tx_id(transaction: Transaction | None) -> int:
        if transaction is None:
            return 0
        if transaction.expired:
            raise StoreError("ESTALE", "the transaction expired in a suspend")
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

    def get_many(self, paths: Sequence[str]) -> list[str | None]:
        """As `get`, of several nodes with one look at the ring."""
        requests = [(READ, path.encode() + b"\0") for path in paths]
        found: list[str | None] = []
        for answer in self.request_many(requests):
            if isinstance(answer, StoreError):
                if answer.name not in ("ENOENT", "EACCES"):
                    raise answer
                found.append(None)
            else:
                found.append(answer.split(b"\0", 1)[0].decode("utf-8", "replace"))
        return found

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

    def write_many(
        self, values: Sequence[tuple[str, str | None]], transaction: Transaction | None = None
    ) -> None:
        """As `write`, of several nodes in their order; None removes one, which need not be there.

        All are asked for; then the first refusal is raised.
        """
        tx_id = 0 if transaction is None else self._tx_id(transaction)
        requests = [
            (RM, path.encode() + b"\0")
            if value is None
            else (WRITE, path.encode() + b"\0" + value.encode())
            for path, value in values
        ]
        for (kind, _), answer in zip(requests, self.request_many(requests, tx_id), strict=True):
            if isinstance(answer, StoreError) and (kind == WRITE or answer.name != "ENOENT"):
                raise answer

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
        """Raises StoreError; EIO for an answer that is no number."""
        text = self.request(TRANSACTION_START, b"\0").rstrip(b"\0")
        if not text.isdigit() or int(text) >> 32:
            raise StoreError("EIO", f"{text!r} is no id", operation="TRANSACTION_START")
        transaction = Transaction(int(text))
        self._transactions.append(transaction)
        return transaction

    def transaction_end(self, transaction: Transaction, *, commit: bool) -> bool:
        """True if it was committed (or aborted as asked); False on EAGAIN: do it again.

        False too, and nothing is asked, after a suspend. The handle is free in these cases;
        on any other error it stays open.
        """
        if transaction.expired and transaction in self._transactions:
            self._transactions.remove(transaction)
            transaction.expired = False
            return False
        tx_id = self._tx_id(transaction)
        try:
            self.request(TRANSACTION_END, b"T\0" if commit else b"F\0", tx_id)
        except StoreError as error:
            if error.name != "EAGAIN":
                raise
            self._ended(transaction)
            return False
        self._ended(transaction)
        return True

    def _ended(self, transaction: Transaction) -> None:
        transaction.active = False
        self._transactions.remove(transaction)

    def transactions(self) -> list[Transaction]:
        """Those that were not ended, in the order of their start; for leak checks and dumps."""
        return list(self._transactions)

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
        """The handle stays if xenstored refuses. After a suspend nothing is asked."""
        if watch.expired and self._watches.get(watch.id) is watch:
            self._forget(watch)
            return
        self.request(UNWATCH, watch.path.encode() + b"\0" + watch.token + b"\0")
        self._forget(watch)

    def _forget(self, watch: Watch) -> None:
        del self._watches[watch.id]
        self._tokens.pop(watch.token, None)

    def watches(self) -> list[Watch]:
        """Registered watches in the order of their registration; for leak checks and dumps."""
        return list(self._watches.values())

    def close(self) -> None:
        """Drop the event channel's callback; the port stays the toolstack's."""
        self._evtchn.close(self.channel)
