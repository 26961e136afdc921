"""The wait before an interface closes: what is on its tx rings may still be sent.

XenVif's Disable (transmitter.c): up to 100 rounds of 1 ms, a notification and a poll in each,
while the backend is Connected or Closing; what is unanswered then comes back as dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpv.abi.xenbus import XenbusState as State
from xenpv.xen.loop import NS_PER_MS

if TYPE_CHECKING:
    from xenpv.vif.frontend import Frontend
    from xenpv.xen.loop import Timer

ROUNDS: Final = 100
ROUND_NS: Final = NS_PER_MS
SERVES: Final = (State.CONNECTED, State.CLOSING)


class Drain:
    """Of `frontend`, which is told by `drained`, at once where nothing is in flight."""

    __slots__ = ("_frontend", "_rounds", "_timer")

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend
        self._rounds = 0
        self._timer: Timer | None = None  # made with the first wait

    def start(self) -> None:
        self._rounds = 0
        self._round()

    def _round(self) -> None:
        frontend = self._frontend
        busy = [queue for queue in frontend.queues if queue.in_flight and not queue.stopped]
        serves = busy and frontend.handshake.backend_state() in SERVES
        if not serves or self._rounds == ROUNDS:
            frontend.drained()
            return
        self._rounds += 1
        for queue in busy:
            queue.kick()
        if self._timer is None:
            domain = frontend.bus.domain
            self._timer = domain.timer(domain.task(f"{frontend.path} drain", self._round))
        self._timer.arm(ROUND_NS)

    def stop(self) -> None:
        """Something else happens to the rings now."""
        if self._timer is not None:
            self._timer.cancel()

    def forget(self) -> None:
        """The frontend is gone."""
        timer, self._timer = self._timer, None
        if timer is not None:
            self._frontend.bus.domain.forget_timer(timer)
