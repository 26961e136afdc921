"""The time that what is on the rings gets to end, before a frontend closes or is reset.

win-xenvbd blockring.c, BlockRingDisable: up to 100 rounds of a millisecond while the backend is
Connected.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from xenpv.abi.xenbus import XenbusState as State
from xenpv.xen.loop import NS_PER_MS, Timer

if TYPE_CHECKING:
    from xenpv.vbd.frontend import Frontend

ROUNDS: Final = 100
ROUND_NS: Final = NS_PER_MS


class After(enum.Enum):
    """What follows when the rings are drained."""

    ENABLE = "enable"  # a reset
    CLOSE = "close"


class Drain:
    """Of one frontend. `after`: None while it does not drain."""

    __slots__ = ("_frontend", "_rounds", "_timer", "after")

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend
        self._rounds = 0
        self.after: After | None = None
        task = frontend.domain.task(f"{frontend.path} drain", self._round)
        self._timer: Timer = frontend.domain.timer(task)

    def begin(self, after: After) -> None:
        """The first round is at once."""
        self.after = after
        self._rounds = 0
        self._round()

    def cancel(self) -> None:
        self._timer.cancel()
        self.after = None

    def ring_idle(self) -> None:
        """A ring has nothing left to do: look now."""
        if self.after is not None:
            self._timer.task.wake()

    def _round(self) -> None:
        frontend, after = self._frontend, self.after
        if after is None:
            return
        busy = [ring for ring in frontend.rings if ring.in_flight]
        if busy and self._rounds < ROUNDS and self._backend_answers():
            self._rounds += 1
            for ring in busy:
                ring.kick()
                ring.task.wake()
            self._timer.arm(ROUND_NS)
            return
        self.cancel()
        frontend.drained(after)

    def _backend_answers(self) -> bool:
        frontend = self._frontend
        return not frontend.broken and frontend.handshake.backend_state() is State.CONNECTED

    def forget(self) -> None:
        """Its frontend goes."""
        self._frontend.domain.forget_timer(self._timer)
