"""The handshakes of the crash driver with a backend, as tables (xencrsh frontend.c).

It polls: what it does about a state it does once, then it looks every 100 ms until there is
another one. The original looks for ever.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from xenpv.abi.xenbus import XenbusState as State
from xenpv.vbd.crash.failure import CrashError
from xenpv.vbd.crash.store import CrashStore
from xenpv.xen.loop import NS_PER_MS, NS_PER_S

POLL_NS: Final = 100 * NS_PER_MS
LOOKS_MAX: Final = 300  # 30 s of a walk; a domain that is paused meanwhile does not look
NUMBERS: Final = {str(int(state)): state for state in State}


class Goal(enum.Enum):
    CLOSE = "close"  # the backend at Closed, from wherever it is
    PREPARE = "prepare"  # at InitWait
    CONNECT = "connect"  # at Connected


class Do(enum.Enum):
    WAIT = "wait"
    DONE = "done"
    FAIL = "fail"


Rows = Mapping[State, Do | State]
# By goal and what was written last on the way: what to do at a state of the backend. A state to
# write, or Do; the second of the pair is for the states that the row does not name.
TABLE: Final[Mapping[tuple[Goal, State | None], tuple[Rows, Do | State]]] = {
    (Goal.CLOSE, None): (
        {State.INITIALISING: Do.WAIT, State.CLOSING: State.CLOSED, State.CLOSED: Do.DONE},
        State.CLOSING,
    ),
    (Goal.CLOSE, State.CLOSING): (
        {State.CLOSING: State.CLOSED, State.CLOSED: Do.DONE},
        State.CLOSING,
    ),
    (Goal.CLOSE, State.CLOSED): ({State.CLOSED: Do.DONE}, State.CLOSED),
    (Goal.PREPARE, None): (
        {State.CLOSED: Do.WAIT, State.INITIALISING: Do.WAIT, State.INIT_WAIT: Do.DONE},
        Do.FAIL,
    ),
    (Goal.CONNECT, None): (
        {
            State.INITIALISING: Do.WAIT,
            State.INIT_WAIT: Do.WAIT,
            State.INITIALISED: Do.WAIT,
            State.CONNECTED: Do.DONE,
        },
        Do.FAIL,
    ),
}


def state_of(text: str) -> State:
    """strtoul in base 10 of the first digits; what is no state is RECONFIGURED, no digits 0."""
    if text in NUMBERS:
        return NUMBERS[text]
    digits = ""
    for character in text.lstrip(" \t\n\v\f\r"):
        if character not in "0123456789":
            break
        digits += character
    if not digits:
        return State.UNKNOWN
    return NUMBERS.get(digits.lstrip("0") or "0", State.RECONFIGURED)


class Walk:
    """One frontend on its way to `goal`; `path` is its directory, `backend` the other's."""

    def __init__(self, goal: Goal, path: str, backend: str) -> None:
        self.goal = goal
        self.path = path
        self.backend = backend
        self.seen = State.UNKNOWN  # what was acted on last: 0 is waited out first of all
        self.wrote: State | None = None
        self.looks = 0

    def look(self, store: CrashStore) -> bool:
        """One look at the backend; True: the goal is reached, False: look again later.

        CrashError: it cannot be reached from there, or it took too long. StoreError: the state
        cannot be written.
        """
        text = store.read(f"{self.backend}/state")
        if text is None:
            raise CrashError(f"{self.path}: the backend's state cannot be read")
        seen = state_of(text)
        if seen is self.seen:
            self._count()
            return False
        rows, otherwise = TABLE[self.goal, self.wrote]
        step = rows.get(seen, otherwise)
        if isinstance(step, State):
            store.write(f"{self.path}/state", str(int(step)))
            self.wrote = step
        self.seen = seen
        if step is Do.FAIL:
            raise CrashError(
                f"{self.path}: cannot {self.goal.value}, the backend is at {seen.name.lower()}"
            )
        if step is not Do.DONE:
            self._count()
        return step is Do.DONE

    def _count(self) -> None:
        self.looks += 1
        if self.looks > LOOKS_MAX:
            raise CrashError(
                f"{self.path}: cannot {self.goal.value}, the backend stays at "
                f"{self.seen.name.lower()} for {LOOKS_MAX * POLL_NS // NS_PER_S} s"
            )
