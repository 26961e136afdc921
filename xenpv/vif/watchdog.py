"""XenVif's watchdogs: every 30 s each ring is looked at for a peer, or an event, that went silent.

transmitter.c and receiver.c, WatchdogMain. A ring that stands still is dumped, polled, and its
backend is notified once more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpv.xen.loop import NS_PER_S

if TYPE_CHECKING:
    from xenpv.vif.frontend import Frontend
    from xenpv.vif.queue import Queue
    from xenpv.xen.loop import Timer

PERIOD_NS: Final = 30 * NS_PER_S


class Watchdog:
    """Of all rings of `frontend`. `barks` counts rings that it found standing still."""

    __slots__ = ("_frontend", "_samples", "_timer", "barks")

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend
        self._samples: dict[int, tuple[int, int, int]] = {}
        self._timer: Timer | None = None  # made with the first connection
        self.barks = 0

    def start(self) -> None:
        """The rings are connected."""
        self._samples = {}
        if self._timer is None:
            domain = self._frontend.bus.domain
            task = domain.task(f"{self._frontend.path} watchdog", self._look)
            task.alarm = self._timer = domain.timer(task, PERIOD_NS)
        self._timer.arm(PERIOD_NS)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def forget(self) -> None:
        """The frontend is gone."""
        timer, self._timer = self._timer, None
        if timer is not None:
            self._frontend.bus.domain.forget_timer(timer)

    def _look(self) -> None:
        for queue in self._frontend.queues:
            if not queue.stopped and self._stands_still(queue):
                self.barks += 1
                self._bark(queue)

    def _stands_still(self, queue: Queue) -> bool:
        """Since the last look nothing more was sent and some of what was queued is not completed,
        on the ring or before it; or the backend produced and nothing of it was consumed.
        """
        transmitter, receiver = queue.transmitter, queue.receiver
        if transmitter is None or receiver is None:
            return False
        produced = receiver.ring.indices().rsp_prod
        now = transmitter.posted, produced, receiver.ring.rsp_cons
        before = self._samples.get(queue.index)
        self._samples[queue.index] = now
        if before is None:
            return False
        sent = now[0] == before[0] and (transmitter.in_flight > 0 or bool(transmitter.waiting))
        received = now[1] != before[1] and now[2] == before[2] and now[1] != now[2]
        return sent or received

    def _bark(self, queue: Queue) -> None:
        from xenpv.vif.dump import queue_lines

        bus = self._frontend.bus
        bus.log(f"xenvif: {queue.name}: stands still\n")
        for line in queue_lines(queue, crashing=False):
            bus.log(f"xenvif: {line}\n")
        queue.kick()
