"""The store sessions behind XenStoreSession: ids, names, one transaction, watches.

win-xeniface wmi.c, XenStoreSession. A session belongs to nobody: it is there until somebody
ends it or the driver stops.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.bus.ntstatus import NTSTATUS, NtStatusError

if TYPE_CHECKING:
    from xenpv.iface.store import IfaceStore, StoreTransaction, StoreWatch
    from xenpv.xen.domain import Domain
    from xenpv.xen.loop import Task

SESSIONS_MAX: Final = 65_536  # the driver counts them in 16 bits and never gets there
WATCHES_MAX: Final = 63  # MAXIMUM_WAIT_OBJECTS - 1, of one session


@attrs.define(eq=False)
class SessionWatch:
    """A watch of a session. `handle` is None while it is not registered."""

    path: str
    handle: StoreWatch | None = None
    signalled: bool = False

    def concerns(self, _path: bytes) -> bool:
        """An event of xenstored; which node it names is not kept."""
        self.signalled = True
        return True


@attrs.define(eq=False)
class Session:
    """One session. `watches` are newest first."""

    id: int
    name: str
    number: int
    instance: str
    suspended: bool
    transaction: StoreTransaction | None = None
    watches: list[SessionWatch] = attrs.field(factory=list)
    worker: Worker | None = None


class Worker:
    """The thread of one session that waits for its watches; made with the first of them."""

    def __init__(self, sessions: Sessions, session: Session) -> None:
        self.sessions = sessions
        self.session = session
        self.task: Task = sessions.domain.task(f"wmi session {session.id}", self.run)

    def run(self) -> None:
        """Fire what was signalled. What a suspend made void is registered again instead.

        Its first event, which xenstored sends at once, is what the client then sees.
        """
        sessions, session = self.sessions, self.session
        for watch in list(session.watches):
            if session.suspended or watch.handle is None:
                watch.signalled = False
            elif watch.handle.count != sessions.suspend_count():
                sessions.unregister(watch)
                sessions.register(session, watch)
            elif watch.signalled:
                watch.signalled = False
                sessions.fire(watch.path)


class Sessions:
    """All sessions of one device; `fire(path)` tells of a watch that fired."""

    def __init__(
        self,
        domain: Domain,
        store: IfaceStore,
        base: str,
        suspend_count: Callable[[], int],
        fire: Callable[[str], None],
    ) -> None:
        self.domain = domain
        self.store = store
        self.base = base
        self.suspend_count = suspend_count
        self.fire = fire
        self._by_id: dict[int, Session] = {}  # oldest first
        self._by_instance: dict[str, Session] = {}
        # For each Id string: the numbers that were given back, and the first never given.
        self._numbers: dict[str, tuple[list[int], int]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def newest_first(self) -> list[Session]:
        """Suspended ones too."""
        return list(reversed(self._by_id.values()))

    def find(self, instance: str) -> Session:
        """Raises NtStatusError WMI_INSTANCE_NOT_FOUND, for a suspended one too."""
        session = self._by_instance.get(instance)
        if session is None or session.suspended:
            reason = f"{instance!r} is {'unknown' if session is None else 'suspended'}"
            raise NtStatusError(NTSTATUS.WMI_INSTANCE_NOT_FOUND, reason)
        return session

    def add(self, name: str, *, suspended: bool) -> Session:
        """A new session. Raises NtStatusError INSUFFICIENT_RESOURCES when all ids are taken."""
        if len(self._by_id) >= SESSIONS_MAX:
            reason = f"{SESSIONS_MAX} sessions"
            raise NtStatusError(NTSTATUS.INSUFFICIENT_RESOURCES, reason)
        number = self._take_number(name)
        instance = f"{self.base}\\Session_{name}_{number}"
        session = Session(self._next_id(), name, number, instance, suspended)
        self._by_id[session.id] = self._by_instance[instance] = session
        return session

    def _next_id(self) -> int:
        """One above the newest, past those that are taken. The driver takes a suspended
        session's for free: two sessions have one id then."""
        if not self._by_id:
            return 0
        number = (next(reversed(self._by_id)) + 1) % SESSIONS_MAX
        while number in self._by_id:
            number = (number + 1) % SESSIONS_MAX
        return number

    def _take_number(self, name: str) -> int:
        free, fresh = self._numbers.get(name, ([], 0))
        if free:
            return heapq.heappop(free)
        self._numbers[name] = free, fresh + 1
        return fresh

    def end(self, session: Session) -> None:
        """Its watches and its transaction go with it."""
        self._quiet(session)
        del self._by_id[session.id]
        del self._by_instance[session.instance]
        free, fresh = self._numbers[session.name]
        heapq.heappush(free, session.number)
        if len(free) == fresh:
            del self._numbers[session.name]
        session.watches.clear()
        if session.worker is not None:
            self.domain.forget(session.worker.task)
            session.worker = None

    def end_all(self) -> None:
        for session in self.newest_first():
            self.end(session)

    def suspend_all(self) -> None:
        """To D3: nothing of them stays in xenstored."""
        for session in self.newest_first():
            self._quiet(session)
            session.suspended = True

    def resume_all(self) -> None:
        """In D0 again: their watches are registered again, and each fires."""
        for session in self.newest_first():
            session.suspended = False
            for watch in session.watches:
                self.register(session, watch)

    def _quiet(self, session: Session) -> None:
        for watch in session.watches:
            self.unregister(watch)
        transaction, session.transaction = session.transaction, None
        if transaction is not None:
            try:
                self.store.transaction_end(transaction, commit=False)
            except NtStatusError:
                return  # it is gone whatever the store says: the driver looks at nothing here

    # watches

    def add_watch(self, session: Session, path: str) -> None:
        """INSUFFICIENT_RESOURCES for the 64th, and for whatever the store says to it."""
        if len(session.watches) >= WATCHES_MAX:
            reason = f"{WATCHES_MAX} watches of a session"
            raise NtStatusError(NTSTATUS.INSUFFICIENT_RESOURCES, reason)
        watch = SessionWatch(path)
        refused = self.register(session, watch)
        if refused is not None:
            raise NtStatusError(NTSTATUS.INSUFFICIENT_RESOURCES, str(refused))
        session.watches.insert(0, watch)

    def remove_watch(self, session: Session, path: str) -> None:
        """The newest of that very path; nothing happens if there is none."""
        watch = next((one for one in session.watches if one.path == path), None)
        if watch is not None:
            session.watches.remove(watch)
            self.unregister(watch)

    def register(self, session: Session, watch: SessionWatch) -> NtStatusError | None:
        """What the store said against it; the watch is silent then."""
        if session.worker is None:
            session.worker = Worker(self, session)
        watch.signalled = False
        try:
            watch.handle = self.store.watch_add(watch.path, session.worker.task, watch.concerns)
        except NtStatusError as error:
            return error
        return None

    def unregister(self, watch: SessionWatch) -> None:
        handle, watch.handle = watch.handle, None
        if handle is not None:
            try:
                self.store.watch_remove(handle)
            except NtStatusError:
                return  # xenstored knows it no more; the driver looks at nothing here
