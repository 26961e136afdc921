"""A frontend's walk towards a goal, one backend state at a time (spec: XenbusState).

A driver gives a table: for each goal, what to do at each state of the backend. The walk
watches the backend and acts once at each state it sees; a wait is a row of the table, never
a loop. Windows' drivers close before they connect; what goals follow each other is the
driver's list.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from xenpv.abi.xenbus import XenbusState
from xenpv.bus.store import StoreInterface, Watch
from xenpv.errors import StoreError
from xenpv.xen.domain import Domain
from xenpv.xen.loop import NS_PER_S, Task, Timer


class Goal(enum.Enum):
    PREPARE = "prepare"  # backend at InitWait: its features can be read
    CONNECT = "connect"  # both ends Connected
    CLOSE = "close"  # backend at Closed


class Do(enum.Enum):
    """What a table may say besides a state to write."""

    WAIT = "wait"
    DONE = "done"
    FAIL = "fail"
    REOPEN = "reopen"  # state 1 if the backend is online, else as OFFLINE
    OFFLINE = "offline"  # ask to be ejected, and stop


Step = Do | XenbusState
# UNKNOWN stands for a backend that is absent or whose state is no number.
Table = Mapping[Goal, Mapping[XenbusState, Step]]

REPEAT_NS: Final = 120 * NS_PER_S


class FrontendDriver(Protocol):
    """What a walk tells its driver. None of these may raise on what the backend wrote."""

    def before(self, goal: Goal) -> None:
        """A goal begins: write what must be in the store before the backend looks."""

    def reached(self, goal: Goal) -> None:
        """A goal is reached; the next one begins after this returns."""

    def failed(self, goal: Goal, state: XenbusState) -> None:
        """The walk stopped at a backend state from which the goal cannot be reached."""

    def offline(self) -> None:
        """The backend is gone for good: ask for ejection."""


def parse_state(text: str | None) -> XenbusState:
    """Decimal, as the drivers parse it; anything else is UNKNOWN, never an error."""
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 4:
        return XenbusState.UNKNOWN
    value = int(text)
    return XenbusState(value) if value <= XenbusState.RECONFIGURED else XenbusState.UNKNOWN


def parse_flag(text: str | None) -> bool:
    """Base 2 as the Windows drivers read `online`: leading 0s and 1s, non-zero is true."""
    if text is None:
        return False
    for character in text:
        if character == "1":
            return True
        if character != "0":
            return False
    return False


class Handshake:
    """One frontend: `path` is its directory (device/vif/0), `goals` what is still ahead."""

    __slots__ = (
        "_task",
        "_timer",
        "_watch",
        "acted",
        "backend",
        "backend_domid",
        "domain",
        "driver",
        "ejects",
        "goals",
        "path",
        "repeats",
        "state",
        "store",
        "table",
    )
    _task: Task

    def __init__(
        self,
        domain: Domain,
        store: StoreInterface,
        path: str,
        table: Table,
        driver: FrontendDriver,
        *,
        repeats: bool = False,
        ejects: bool = False,
    ) -> None:
        self.domain = domain
        self.store = store
        self.path = path
        self.table = table
        self.driver = driver
        self.repeats = repeats
        self.ejects = ejects
        self.state: XenbusState = XenbusState.UNKNOWN
        self.backend: str | None = None
        self.backend_domid = 0
        self.goals: list[Goal] = []
        self.acted: XenbusState | None = None
        self._timer: Timer | None = None
        self._watch: Watch | None = None
        self._task = self.domain.task(f"{self.path} handshake", self._changed)
        if self.repeats:
            repeat = self.domain.task(f"{self.path} handshake repeats", self._repeat)
            self._timer = self.domain.timer(repeat, REPEAT_NS)

    def start(self, goals: Sequence[Goal]) -> None:
        """Walk to each goal in turn; what was left of an earlier walk is dropped."""
        self._find_backend()
        self.goals = list(goals)
        if self._timer is not None:
            self._timer.arm(REPEAT_NS)
        self._begin(None)

    def _find_backend(self) -> None:
        backend = self.store.get(f"{self.path}/backend")
        domid = self.store.get(f"{self.path}/backend-id")
        self.backend_domid = int(domid) if domid is not None and domid.isdecimal() else 0
        if backend == self.backend and self._watch is not None:
            return
        self._unwatch()
        self.backend = backend
        if backend:
            self._watch = self.store.watch_add(f"{backend}/state", self._task)

    def _begin(self, seen: XenbusState | None) -> None:
        """The next goal; `seen` is the backend's state if it was read a moment ago."""
        if not self.goals:
            if self._timer is not None:
                self._timer.cancel()
            return
        self.acted = None
        self.driver.before(self.goals[0])
        if seen is None:
            self._changed()
        else:
            self._meet(seen)

    def backend_state(self) -> XenbusState:
        if not self.backend:
            return XenbusState.UNKNOWN
        return parse_state(self.store.get(f"{self.backend}/state"))

    def switch_state(self, state: XenbusState) -> None:
        """Write our own `state`.

        In a directory that was taken away it cannot be written: its parent is the toolstack's.
        """
        self.state = state
        try:
            self.store.write(f"{self.path}/state", str(int(state)))
        except StoreError as error:
            if error.name not in ("ENOENT", "EACCES"):
                raise
        self.domain.trace.note(self.domain.domid, f"{self.path}: {state.name.lower()}")

    def _changed(self) -> None:
        if not self.goals:
            return
        self._meet(self.backend_state())

    def _meet(self, state: XenbusState) -> None:
        if not self.goals or state is self.acted:
            return
        self.acted = state
        goal = self.goals[0]
        self._act(goal, state, self.table[goal].get(state, Do.WAIT))

    def _act(self, goal: Goal, state: XenbusState, step: Step) -> None:
        if isinstance(step, XenbusState):
            self.switch_state(step)
            if self.ejects and step is XenbusState.CLOSED and self._is_offline():
                self._stop(goal, state, offline=True)
        elif step is Do.DONE:
            del self.goals[0]
            if goal is Goal.CLOSE and not self.goals:
                self._unwatch()  # a closed frontend listens to nobody; `start` watches anew
            self.driver.reached(goal)
            self._begin(state)
        elif step is Do.REOPEN and not self._is_offline():
            self.switch_state(XenbusState.INITIALISING)
        elif step is not Do.WAIT:
            self._stop(goal, state, offline=step is not Do.FAIL)

    def _is_offline(self) -> bool:
        return not self.backend or not parse_flag(self.store.get(f"{self.backend}/online"))

    def _stop(self, goal: Goal, state: XenbusState, *, offline: bool) -> None:
        self.goals.clear()
        if self._timer is not None:
            self._timer.cancel()
        self.driver.failed(goal, state)
        if offline:
            self.driver.offline()

    def _repeat(self) -> None:
        self.acted = None
        self._changed()

    def _unwatch(self) -> None:
        if self._watch is not None:
            self.store.watch_remove(self._watch)
            self._watch = None

    def stop(self) -> None:
        """Forget watch, timer and task; the frontend is gone."""
        self.goals.clear()
        self._unwatch()
        if self._timer is not None:
            self._timer.cancel()
            self.domain.forget(self._timer.task)
        self.domain.forget(self._task)
