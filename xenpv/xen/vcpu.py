"""One vcpu: whether it runs, how long it has, its timers, and what Xen writes for it.

xen/common/sched/core.c and arch/x86/time.c. There are as many processors as vcpus here, so
none waits for one: a vcpu that could run does, and `runnable` never lasts a nanosecond.
Xen's timers raise VIRQ_TIMER whatever the domain does. The periodic one, as in Xen, is
stopped while the vcpu does not run, and ticks once when it runs again if one was missed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.abi.sched import RUNSTATE
from xenpv.xen.clock import TSC_STABLE, retire_timer, xen_timer
from xenpv.xen.evtchn import VIRQ_TIMER
from xenpv.xen.loop import NS_PER_MS, Task, Timer

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain

# do_set_timer_op: so far ahead that a Linux of old had no timer pending at all.
TIMEOUT_FAR_NS: Final = 1 << 50
TIMEOUT_HUGE_NS: Final = 100 * NS_PER_MS

RUNNING: Final = RUNSTATE.running
BLOCKED: Final = RUNSTATE.blocked
OFFLINE: Final = RUNSTATE.offline


@attrs.frozen
class RunstateInfo:
    """struct vcpu_runstate_info: times in ns, `time` by RUNSTATE; their sum is its age."""

    state: RUNSTATE
    state_entry_time: int
    time: tuple[int, int, int, int]


class Upcall(Task):
    """The upcall of a vcpu. One that is woken while it is held unblocks its vcpu.

    A blocked vcpu holds its upcall, so that sending an event need not ask whether it is.
    """

    __slots__ = ("_due", "vcpu")

    vcpu: Vcpu | None  # None once its domain is dying: a timer may keep the task

    @property
    def due(self) -> bool:
        return self._due

    @due.setter
    def due(self, value: bool) -> None:
        self._due = value
        if value and self.vcpu is not None:
            self.vcpu.unblock()


class Vcpu:
    """A vcpu of `domain`. `upcall` is held while the vcpu is down.

    Vcpu 0 is made initialised and up, as libxenguest leaves it; a kernel starts the others.
    """

    __slots__ = ("_entry", "_last_tick_ns", "_periodic", "_runstate_area",
                 "_singleshot", "_times", "blocked", "domain", "down", "id", "initialised",
                 "nmi_pending", "period_ns", "polling", "state", "upcall")  # fmt: skip

    def __init__(self, domain: Domain, vcpu_id: int, upcall: Upcall) -> None:
        self.domain = domain
        self.id = vcpu_id
        self.upcall = upcall
        self.initialised = not vcpu_id
        self.down = bool(vcpu_id)
        self.blocked = False
        self.polling = False
        self.nmi_pending = False
        self.state = OFFLINE
        self.period_ns = 0
        self._entry = domain.loop.now
        self._times = [0, 0, 0, 0]
        self._runstate_area = False
        self._periodic: Timer | None = None
        self._singleshot: Timer | None = None
        self._last_tick_ns = 0
        upcall.vcpu = self
        if self.down:
            upcall.hold()

    # running or not

    def reschedule(self) -> None:
        """Run, or stop, as down, blocked, polling, pause and shutdown have it now."""
        domain = self.domain
        if self.blocked or self.polling:
            state = BLOCKED
        elif self.down or domain.pause_count or domain.is_shutting_down or domain.dying:
            state = OFFLINE
        else:
            state = RUNNING
        was = self.state
        if state is was:
            return
        now = domain.loop.now
        self._times[was] += now - self._entry
        self._entry = now
        self.state = state
        if self._runstate_area:
            self.publish_runstate()
        if state is RUNNING:
            self.publish_time(force=False)
            if self.period_ns:
                self._tick()
        elif was is RUNNING and self._periodic is not None:
            self._periodic.cancel()

    def start(self) -> None:
        """INIT and SIPI from another vcpu of an HVM domain, or VCPUOP_up."""
        self.initialised = True
        if self.down:
            self.down = False
            self.upcall.release()
            self.reschedule()

    def stop(self) -> None:
        """VCPUOP_down: events stay pending, the upcall waits."""
        if not self.down:
            self.down = True
            self.upcall.hold()
            self.reschedule()

    def block(self) -> bool:
        """Unmask upcalls and stop until the next; False if one is deliverable already."""
        domain = self.domain
        if domain.check(lib.vcpu_unmask_upcall(domain.kernel, self.id)):
            return False
        if self.upcall.queued:
            return False
        self.blocked = True
        self.reschedule()
        self.upcall.hold()
        return True

    def unblock(self) -> None:
        """vcpu_unblock: an event came."""
        if self.blocked:
            self.blocked = False
            self.reschedule()
            self.upcall.release()

    def poll(self, *, asleep: bool) -> None:
        """It falls asleep in SCHEDOP_poll, or wakes; its upcalls are not masked by that."""
        self.polling = asleep
        self.reschedule()

    def runstate(self) -> RunstateInfo:
        """vcpu_runstate_get: up to now."""
        times = list(self._times)
        times[self.state] += self.domain.loop.now - self._entry
        return RunstateInfo(
            state=self.state,
            state_entry_time=self._entry,
            time=(times[0], times[1], times[2], times[3]),
        )

    def destroy(self) -> None:
        """The domain is dying: its timers go, its time stands still in no state but offline."""
        self.period_ns = 0
        for timer in (self._periodic, self._singleshot):
            if timer is not None:
                retire_timer(timer)
        self.unblock()
        self.polling = False
        self.upcall.vcpu = None
        self._runstate_area = False
        self.reschedule()

    # what Xen writes into the guest

    def watch_runstate(self) -> None:
        """An area was registered: it is written now and at each change from now on."""
        self._runstate_area = True
        self.publish_runstate()

    def publish_runstate(self) -> None:
        """update_runstate_area: times up to state_entry_time, a guest adds what came since."""
        domain = self.domain
        flag = domain.vcpu_op.runstate_update_flag
        done = lib.vcpu_runstate_update(
            domain.kernel, self.id, self.state, self._entry, self._times, flag
        )
        domain.check(done)

    def publish_time(self, *, force: bool) -> bool:
        """update_vcpu_system_time; False if the page said so already and was not written."""
        domain = self.domain
        clock = domain.clock
        tsc, system_time = self._stamp()
        kernel, mul, shift = domain.kernel, clock.mul, clock.shift
        done = lib.vcpu_time_update(
            kernel, self.id, tsc, system_time, mul, shift, TSC_STABLE, force
        )
        return bool(domain.check(done))

    def _stamp(self) -> tuple[int, int]:
        """The machine's, in ticks of the domain's TSC (cache_tsc_offset of Xen), and ns."""
        tsc, system_time = self.domain.clock.stamp()
        return (tsc + self.domain.tsc_offset) & 0xFFFF_FFFF_FFFF_FFFF, system_time

    def populate_time_area(self) -> None:
        """A fresh time area gets its content, the record in vcpu_info is left alone."""
        domain = self.domain
        clock = domain.clock
        tsc, system_time = self._stamp()
        kernel, mul, shift = domain.kernel, clock.mul, clock.shift
        domain.check(
            lib.vcpu_time_populate(kernel, self.id, tsc, system_time, mul, shift, TSC_STABLE)
        )

    # timers

    def _timer_event(self) -> None:
        self.domain.evtchn.raise_virq(VIRQ_TIMER, self.id)

    def _tick(self) -> None:
        """vcpu_periodic_timer_work: one VIRQ for however many periods passed; then arm."""
        now = self.domain.loop.now
        if now >= self._last_tick_ns + self.period_ns:
            self._last_tick_ns = now
            self._timer_event()
        timer = self._periodic
        assert timer is not None
        timer.arm(self._last_tick_ns + self.period_ns - now)

    def set_periodic(self, period_ns: int) -> None:
        """Every `period_ns` of running; 0 stops. At once if a period passed since a tick."""
        timer = self._periodic
        if timer is not None:
            timer.cancel()
        self.period_ns = period_ns
        if not period_ns:
            return
        if timer is None:
            domain = self.domain
            timer = xen_timer(domain, f"periodic{self.id}", self._tick, period_ns)
            self._periodic = timer
        timer.period_ns = period_ns
        self._tick()

    @property
    def singleshot_armed(self) -> bool:
        return self._singleshot is not None and self._singleshot.armed

    def set_singleshot(self, deadline_ns: int) -> None:
        """VIRQ_TIMER at `deadline_ns` of system time; at once if that is not ahead."""
        domain = self.domain
        self.stop_singleshot()
        after = deadline_ns - domain.loop.now
        if after <= 0:
            self._timer_event()
            return
        if self._singleshot is None:
            name = f"singleshot{self.id}"
            self._singleshot = xen_timer(domain, name, self._timer_event)
        self._singleshot.arm(after)

    def stop_singleshot(self) -> None:
        if self._singleshot is not None:
            self._singleshot.cancel()

    def set_timer_op(self, timeout_ns: int) -> None:
        """__HYPERVISOR_set_timer_op, of the calling vcpu; `timeout_ns` is signed."""
        now = self.domain.loop.now
        if not timeout_ns:
            self.stop_singleshot()
        elif timeout_ns < 0 or timeout_ns - now >= TIMEOUT_FAR_NS:
            self.set_singleshot(now + TIMEOUT_HUGE_NS)
        else:
            self.set_singleshot(timeout_ns)
