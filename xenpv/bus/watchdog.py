"""XenBus' watchdog: if one of the guest's processors stands still, Xen ends it with reason 4.

win-xenbus fdo.c (FdoVirqTimer). Each processor has a VIRQ_TIMER; whichever ticks last in a round
pats. A processor that stopped is for ever the one with the fewest ticks, so nobody pats.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from xenpv.abi.evtchn import VIRQ
from xenpv.bus.evtchn import EvtchnInterface
from xenpv.bus.virq import Virq
from xenpv.errors import HypercallError, LocalProtocolError
from xenpv.xen.domain import Domain
from xenpv.xen.loop import NS_PER_S

TIMEOUT_MIN_S: Final = 10


def timeout(seconds: int) -> int:
    """Seconds that XEN:WATCHDOG asks for: 0 is off, and at least 10."""
    return max(seconds, TIMEOUT_MIN_S) if seconds else 0


class Watchdog:
    """The watchdog of one guest. `id` is Xen's number of it, 0 while it is not set."""

    def __init__(self, domain: Domain, evtchn: EvtchnInterface) -> None:
        self.domain = domain
        self.timeout_s = 0
        self.id = 0
        self.pats = 0
        self.timers: list[Virq] = []
        self._evtchn = evtchn

    def start(self, timeout_s: int) -> None:
        """To D0: a timer of half the time on each processor that can have one, then set it.

        0 seconds, or no timer at all: there is no watchdog.
        """
        self.timeout_s = timeout_s
        if not timeout_s:
            return
        for vcpu in range(self.domain.processors):
            self._open(vcpu, timeout_s // 2)
        if self.timers:
            try:
                self.id = self.domain.sched.watchdog(0, timeout_s)
            except HypercallError:
                self.stop()  # both of Xen's are taken

    def _open(self, vcpu: int, period_s: int) -> None:
        """One processor's timer; one that cannot be opened, or heard of, is left out."""
        if not self._evtchn.has_upcall(vcpu):
            return
        try:
            channel = self._evtchn.open_virq(VIRQ.TIMER, partial(self._tick, vcpu), vcpu=vcpu)
        except (HypercallError, LocalProtocolError):
            return
        self.timers.append(Virq("TIMER", vcpu, channel))
        self._evtchn.unmask(channel, force=True)
        self.domain.vcpu_op.set_periodic_timer(vcpu, period_s * NS_PER_S)

    def _tick(self, vcpu: int) -> None:
        mine = next((timer for timer in self.timers if timer.vcpu == vcpu), None)
        if mine is None:
            return
        before = mine.counted()
        if self.id and all(before < one.count for one in self.timers if one is not mine):
            self.pats += 1
            self.domain.sched.watchdog(self.id, self.timeout_s)

    def stop(self) -> None:
        """To D3: the timers stop, Xen's is freed."""
        for timer in self.timers:
            self.domain.vcpu_op.stop_periodic_timer(timer.vcpu)
            self._evtchn.close(timer.channel)
        self.timers.clear()
        watchdog, self.id = self.id, 0
        if watchdog:
            try:
                self.domain.sched.watchdog(watchdog, 0)
            except HypercallError:
                return  # it was another domain's: this one was migrated since
