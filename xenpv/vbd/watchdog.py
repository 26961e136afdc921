"""XenVbd's watchdog: every 30 s a ring is looked at for answers that nobody took (ring.c).

If the backend produced and nothing was consumed, the event was lost: the ring is dumped and
polled, and the backend is notified once more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpv.xen.loop import NS_PER_S

if TYPE_CHECKING:
    from xenpv.vbd.ring import Ring

PERIOD_NS: Final = 30 * NS_PER_S


class Watchdog:
    """Of one ring that is connected. `barks` counts how often it found answers left lying."""

    __slots__ = ("_before", "_ring", "_timer", "barks")

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._before = 0, 0  # rsp_prod and rsp_cons at the last look
        self.barks = 0
        domain = ring.frontend.domain
        task = domain.task(f"{ring.frontend.path} ring {ring.index} watchdog", self._look)
        task.alarm = self._timer = domain.timer(task, PERIOD_NS)
        self._timer.arm(PERIOD_NS)

    def forget(self) -> None:
        """The ring is disconnected."""
        self._ring.frontend.domain.forget_timer(self._timer)

    def _look(self) -> None:
        ring = self._ring
        if ring.front is None or ring.frontend.broken:
            return
        at = ring.front.indices()
        before, self._before = self._before, (at.rsp_prod, at.rsp_cons)
        if at.rsp_prod != before[0] and at.rsp_cons == before[1]:
            self.barks += 1
            self._bark()

    def _bark(self) -> None:
        from xenpv.vbd.dump import queue_lines

        ring = self._ring
        bus, path = ring.frontend.bus, ring.frontend.path
        for line in queue_lines(ring, crashing=False):
            bus.log(f"xenvbd: {path}: {line}\n")
        ring.kick()
        ring.task.wake()
