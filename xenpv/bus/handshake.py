"""A frontend's walk towards a goal, one backend state at a time (spec: XenbusState).

A driver gives a table: for each goal, what to do at each state of the backend. The walk
watches the backend and acts once at each state it sees; a wait is a row of the table, never
a loop. Windows' drivers close before they connect; what goals follow each other is the
driver's list.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping, Sequence
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


class Absent(enum.Enum):
    """A backend whose `state` cannot be read, or that the frontend does not know."""

    ABSENT = "absent"


ABSENT: Final = Absent.ABSENT
Seen = XenbusState | Absent
Step = Do | XenbusState
Rows = Mapping[Seen, Step]
# What to do at each state of the backend on the way to a goal, and where it matters, once the
# frontend wrote a state on that way. UNKNOWN stands for a state that is 0 or no number: first
# of all it is waited out, since a walk begins as if it had seen 0.
Table = Mapping[Goal | tuple[Goal, XenbusState], Rows]

STATES: Final = {str(int(state)): state for state in XenbusState}
NUMBER: Final = re.compile(r"[ \t\n\v\f\r]*[+-]?[0-9]+")
FLAG: Final = re.compile(r"[ \t\n\v\f\r]*[+-]?[01]+")

REPEAT_NS: Final = 120 * NS_PER_S
POLL_NS: Final = NS_PER_S  # of a driver that waits without a watch


class FrontendDriver(Protocol):
    """What a walk tells its driver. None of these may raise on what the backend wrote."""

    def before(self, goal: Goal) -> None:
        """A goal begins: write what must be in the store before the backend looks."""

    def reached(self, goal: Goal) -> None:
        """A goal is reached; the next one begins after this returns."""

    def failed(self, goal: Goal, seen: Seen) -> None:
        """The walk stopped at a backend state from which the goal cannot be reached."""

    def offline(self) -> None:
        """The backend is gone for good: ask for ejection. CLOSE is reached then, others fail."""


def parse_state(text: str | None) -> XenbusState:
    """strtol in base 10: blanks, a sign, digits; no digits are 0, UNKNOWN.

    A number that is no state comes out as RECONFIGURED, which no driver has a use for either.
    """
    if text in STATES:
        return STATES[text]
    found = NUMBER.match(text or "")
    if found is None:
        return XenbusState.UNKNOWN
    value = int(found[0][:20])
    known = 0 <= value <= XenbusState.RECONFIGURED
    return XenbusState(value) if known else XenbusState.RECONFIGURED


def parse_flag(text: str | None) -> bool:
    """strtol in base 2, as the Windows drivers read `online`: anything but 0 is true."""
    found = FLAG.match(text or "")
    return found is not None and "1" in found[0]


class Handshake:
    """One frontend: `path` is its directory (device/vif/0), `goals` what is still ahead.

    `repeats`: a state that stays for 120 s is acted on again, as XenVif does. `ejects`: a
    frontend that closes while its backend is not online asks to be ejected. `beside`: the watch
    is on the backend's whole directory, and who is told of each event there, by its path.
    """

    __slots__ = (
        "_repeat_timer",
        "_since_ns",
        "_task",
        "_walk",
        "_watch",
        "backend",
        "backend_domid",
        "beside",
        "domain",
        "driver",
        "ejects",
        "goals",
        "is_offline",
        "path",
        "repeats",
        "seen",
        "state",
        "store",
        "strict",
        "table",
        "wrote",
    )

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
        beside: Callable[[bytes], object] | None = None,
    ) -> None:
        self.domain = domain
        self.store = store
        self.path = path
        self.table = table
        self.driver = driver
        self.repeats = repeats
        self.ejects = ejects
        self.beside = beside
        self.state: XenbusState = XenbusState.UNKNOWN
        self.backend: str | None = None
        self.backend_domid = 0
        self.goals: list[Goal] = []
        self.seen: Seen = XenbusState.UNKNOWN  # what the walk acted on last
        self.wrote: XenbusState | None = None  # on the way to this goal
        self.strict = False  # a state that cannot be written fails the goal, as in XenVbd
        self.is_offline = False  # until the next PREPARE: there is nobody to close with
        self._walk = 0  # its number: a callback may have begun another one
        self._since_ns = 0
        self._repeat_timer: Timer | None = None
        self._watch: Watch | None = None
        self._task: Task = self.domain.task(f"{self.path} handshake", self._changed)
        if self.repeats:
            repeat = self.domain.task(f"{self.path} handshake repeats", self._repeat)
            self._repeat_timer = self.domain.timer(repeat, REPEAT_NS)

    def start(self, goals: Sequence[Goal]) -> None:
        """Walk to each goal in turn; what was left of an earlier walk is dropped."""
        self._walk += 1
        self.goals = list(goals)
        self._find_backend()
        self._begin(None)
        self._wait()

    def _find_backend(self) -> None:
        try:
            backend = self.store.get(f"{self.path}/backend")
            if backend == self.backend and self._watch is not None:
                return
            domid = self.store.get(f"{self.path}/backend-id")
        except StoreError:
            backend = domid = None
        known = domid is not None and domid.isascii() and domid.isdecimal() and len(domid) < 6
        self.backend_domid = int(domid) if known and domid else 0
        self.unwatch()
        self.backend = backend
        if not backend:
            return
        try:
            if self.beside is None:
                self._watch = self.store.watch_add(f"{backend}/state", self._task)
            else:
                self._watch = self.store.watch_add(backend, self._task, self._concerns)
        except StoreError:
            # XenVif reads once a second then; the other drivers give up.
            self._watch = None

    def _concerns(self, path: bytes) -> bool:
        """Its state was written, or all of it came or went; the driver hears of the rest too."""
        if self.beside is not None:
            self.beside(path)
        return path.endswith(b"/state") or path == (self.backend or "").encode()

    def _begin(self, seen: Seen | None) -> None:
        """The next goal; `seen` is the backend's state if it was read a moment ago."""
        if not self.goals:
            return
        goal, walk = self.goals[0], self._walk
        self.seen, self.wrote = XenbusState.UNKNOWN, None
        if goal is Goal.PREPARE:
            self.is_offline = False
            seen = self._find_again(seen)
        self.driver.before(goal)
        if walk != self._walk:
            return
        if self.is_offline and goal is Goal.CLOSE:
            self._reach(goal, ABSENT)
            return
        self._meet(self.look() if seen is None else seen)

    def _find_again(self, seen: Seen | None) -> Seen | None:
        """In the midst of a walk the backend may be another than that which was closed."""
        if seen is None:
            return None
        before = self.backend
        self._find_backend()
        return seen if before == self.backend else None

    def _wait(self) -> None:
        """Something was done, or begun: nothing more happens until the backend moves."""
        timer = self._repeat_timer
        if timer is None:
            return
        if self.goals:
            self._since_ns = self.domain.loop.now
            timer.period_ns = REPEAT_NS if self._watch is not None else POLL_NS
            timer.arm(timer.period_ns)
        else:
            timer.cancel()

    def look(self) -> Seen:
        """The backend's state now."""
        if not self.backend or (self._watch is None and not self.repeats):
            return ABSENT
        try:
            text = self.store.get(f"{self.backend}/state")
        except StoreError:
            return ABSENT
        return ABSENT if text is None else parse_state(text)

    def backend_state(self) -> XenbusState:
        """As `look`; UNKNOWN where it is absent."""
        seen = self.look()
        return XenbusState.UNKNOWN if isinstance(seen, Absent) else seen

    def switch_state(self, state: XenbusState) -> bool:
        """Write our own `state`; False if it is refused.

        In a directory that was taken away it cannot be written: its parent is the toolstack's.
        """
        try:
            self.store.write(f"{self.path}/state", str(int(state)))
        except StoreError as error:
            self.domain.trace.note(self.domain.domid, f"{self.path}: {error}")
            return False
        self.state = state
        self.domain.trace.note(self.domain.domid, f"{self.path}: {state.name.lower()}")
        return True

    def _changed(self) -> None:
        if self.goals and self._meet(self.look()):
            self._wait()

    def _meet(self, seen: Seen) -> bool:
        """Act on it if it is new."""
        if not self.goals or seen is self.seen:
            return False
        self.seen = seen
        self._act(seen)
        return True

    def _act(self, seen: Seen) -> None:
        goal = self.goals[0]
        step = self.table[goal].get(seen, Do.WAIT)
        if self.wrote is not None:
            step = self.table.get((goal, self.wrote), {}).get(seen, step)
        if isinstance(step, XenbusState):
            self.wrote = step
            closes = self.ejects and step is XenbusState.CLOSED and not self._is_online()
            written = self.switch_state(step)
            if closes:
                self._go_offline(goal, seen)
            elif self.strict and not written:
                self._fail(goal, seen)
        elif step is Do.DONE:
            self._reach(goal, seen)
        elif step is Do.REOPEN and self._is_online():
            self.wrote = XenbusState.INITIALISING
            self.switch_state(self.wrote)
        elif step is Do.FAIL:
            self._fail(goal, seen)
        elif step is not Do.WAIT:
            self._go_offline(goal, seen)

    def _reach(self, goal: Goal, seen: Seen) -> None:
        walk = self._walk
        del self.goals[0]
        if goal is Goal.CLOSE and not self.goals:
            self.unwatch()  # a closed frontend listens to nobody; `start` watches anew
        self.driver.reached(goal)
        if walk == self._walk:
            self._begin(None if isinstance(seen, Absent) else seen)

    def _fail(self, goal: Goal, seen: Seen) -> None:
        walk = self._walk
        self.goals.clear()
        self.driver.failed(goal, seen)
        if walk == self._walk:
            self.unwatch()

    def _go_offline(self, goal: Goal, seen: Seen) -> None:
        walk = self._walk
        self.is_offline = True
        self.driver.offline()
        if walk != self._walk:
            return
        if goal is Goal.CLOSE:
            self._reach(goal, seen)
        else:
            self._fail(goal, seen)

    def _is_online(self) -> bool:
        if not self.backend:
            return False
        try:
            return parse_flag(self.store.get(f"{self.backend}/online"))
        except StoreError:
            return False

    def _repeat(self) -> None:
        """Nothing was heard for 120 s, or for a second without a watch."""
        if not self.goals:
            return
        seen = self.look()
        waited = self.domain.loop.now - self._since_ns >= REPEAT_NS
        if seen is self.seen and waited:
            self._act(seen)
            self._wait()
        elif self._meet(seen):
            self._wait()

    def unwatch(self) -> None:
        """Drop the watch of the backend's state."""
        watch, self._watch = self._watch, None
        if watch is not None:
            try:
                self.store.watch_remove(watch)
            except StoreError as error:
                self.domain.trace.note(self.domain.domid, f"{self.path}: {error}")

    def stop(self) -> None:
        """Forget watch, timer and task; the frontend is gone."""
        self._walk += 1
        self.goals.clear()
        self.unwatch()
        timer, self._repeat_timer = self._repeat_timer, None
        if timer is not None:
            self.domain.forget_timer(timer)
        self.domain.forget(self._task)
