"""A domain's life after it was made: pause, shutdown in steps, suspend and resume, death.

xen/common/domain.c. Creation is Hypervisor's, who may ask for what is Domctl's and Sched's.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL, EOVERFLOW
from typing import TYPE_CHECKING, Final

from xenpv.abi.sched import SHUTDOWN
from xenpv.errors import HypercallError
from xenpv.xen.trace import Event

if TYPE_CHECKING:
    from xenpv.xen.evtchn import EventChannels
    from xenpv.xen.hypervisor import Hypervisor
    from xenpv.xen.loop import Task, Timer
    from xenpv.xen.sched import Sched
    from xenpv.xen.trace import Trace
    from xenpv.xen.vcpu import Vcpu

PAUSE_COUNT_MAX: Final = 255  # so that a toolstack cannot overflow Xen's own count


class Life:
    """What Domain has of its life. Timers stand still while it is shut down."""

    domid: int
    trace: Trace
    evtchn: EventChannels
    sched: Sched
    vcpu: list[Vcpu]
    _hypervisor: Hypervisor
    _deliver: Callable[[int], bool] | None
    task: Callable[[str, Callable[[], object]], Task]

    def __init__(self) -> None:
        self.dying = False
        self.dead = False
        self.pause_count = 0
        self.creation_finished = False
        self.shutdown_code: int | None = None
        self.is_shutting_down = False
        self.is_shutdown = False
        self.is_quiesced = False  # its kernel crashed, and one task of it goes on
        self.suspend_evtchn = 0  # XEN_DOMCTL_subscribe
        self.suspend_result = 0
        self.tasks: list[Task] = []
        self.timers: list[Timer] = []
        self._suspended: Task | None = None
        self._is_restored = False  # and did not run yet
        self._deferring: list[int] = []

    def reschedule(self) -> None:
        """What decides whether vcpus run has changed: pause count, shutdown, death."""
        for vcpu in self.vcpu:
            vcpu.reschedule()

    def pause(self) -> None:
        """XEN_DOMCTL_pausedomain; counts nest, EOVERFLOW above 255."""
        if self.pause_count == PAUSE_COUNT_MAX:
            raise self._refused(EOVERFLOW, f"paused {PAUSE_COUNT_MAX} times", "pausedomain")
        self.pause_count += 1
        if self.pause_count == 1:
            for task in self.tasks:
                task.hold()
            self.reschedule()

    def unpause(self) -> None:
        """XEN_DOMCTL_unpausedomain; EINVAL if it is not paused. The first ends creation."""
        if not self.pause_count:
            raise self._refused(EINVAL, "it is not paused", "unpausedomain")
        self.pause_count -= 1
        if not self.pause_count:
            self.creation_finished = True
            self.reschedule()
            for task in self.tasks:
                task.release()
            if self._is_restored:
                self._go_on()

    def latch_shutdown_code(self, reason: int) -> None:
        """SCHEDOP_shutdown_code: the low 8 bits, if no code is latched."""
        if self.shutdown_code is None:
            self.shutdown_code = reason & 0xFF

    def shutdown(self, reason: int) -> None:
        """SCHEDOP_shutdown: the first reason latches, every vcpu stops, then DOM_EXC.

        Timers stop too and go on at resume. It is complete when no vcpu defers it.
        """
        self.latch_shutdown_code(reason)
        if self.is_shutting_down:
            return
        self.is_shutting_down = True
        if self.shutdown_code == SHUTDOWN.crash:
            self._deferring.clear()
        for task in self.tasks:
            task.hold()
        for timer in self.timers:
            timer.freeze()
        self.reschedule()
        self._finish_shutdown()

    def _finish_shutdown(self) -> None:
        if self._deferring or self.is_shutdown:
            return
        self.is_shutdown = True
        code = self.shutdown_code
        assert code is not None
        self.trace.record(Event.DOMAIN, self.domid, 2, code)
        if code != SHUTDOWN.suspend or not self.suspend_evtchn:
            self._hypervisor.raise_dom_exc(self.domid)
            return
        self._hypervisor.note_change(self.domid)
        try:
            self.evtchn.send(self.suspend_evtchn)
        except HypercallError:
            return  # Xen does not look at it either: the toolstack waits in vain

    def start_shutdown_deferral(self, vcpu: int) -> bool:
        """A vcpu's I/O is at its device model: a shutdown waits for it. False if it came first."""
        if self.is_shutting_down:
            return False
        if vcpu not in self._deferring:
            self._deferring.append(vcpu)
        return True

    def end_shutdown_deferral(self, vcpu: int) -> None:
        """The vcpu's I/O is complete, and with it perhaps the shutdown."""
        if vcpu in self._deferring:
            self._deferring.remove(vcpu)
        if self.is_shutting_down:
            self._finish_shutdown()

    def quiesce(self, name: str, run: Callable[[], object]) -> Task:
        """Its kernel stops every processor but one, which goes on in a task of that name, with
        interrupts off: KeBugCheckEx, or the end of a hibernation.

        No other task or timer runs again, not even one that is made from now on, nor the task of
        an earlier such call. Xen knows nothing of it: the domain is running.
        """
        self.is_quiesced = False
        task = self.task(name, run)
        for other in self.tasks:
            if other is not task:
                other.hold()
        for timer in self.timers:
            timer.freeze()
        self.is_quiesced = True
        return task

    def crash(self, why: str) -> None:
        """domain_crash(): SHUTDOWN_crash, unless it is going down already."""
        if not self.is_shutting_down:
            self.trace.note(self.domid, f"domain crash: {why}")
        self.shutdown(SHUTDOWN.crash)

    def suspend(self, waiter: Task) -> None:
        """SCHEDOP_shutdown(suspend), a call that returns when the domain is resumed.

        `waiter` is woken then, and `suspend_result` is what the call returned: 0 after an
        uncooperative resume, 1 if the toolstack set the return register first (cancelled).
        In a domain restored from the image it is 0, at its first unpause: see `restored`.
        """
        self._suspended = waiter
        self.suspend_result = 0
        self.shutdown(SHUTDOWN.suspend)

    def resume(self) -> None:
        """XEN_DOMCTL_resumedomain: the code is forgotten, vcpus and timers go on."""
        self.shutdown_code = None
        if not self.is_shutting_down:
            return
        self.is_shutting_down = self.is_shutdown = False
        self.trace.record(Event.DOMAIN, self.domid, 4)
        self.reschedule()
        for task in self.tasks:
            task.release()
        self._go_on()

    def _go_on(self) -> None:
        """The call that suspended it returns."""
        self._is_restored = False
        for timer in self.timers:
            timer.thaw()
        waiter, self._suspended = self._suspended, None
        if waiter is not None:
            waiter.wake()

    @property
    def suspended(self) -> Task | None:
        """The waiter of `suspend`, while it waits."""
        return self._suspended

    def restored(self, waiter: Task | None) -> None:
        """What this paused domain goes on with was suspended elsewhere; `waiter` as in `suspend`.

        When it is first unpaused its timers start with what they had left, and the call
        returns 0.
        """
        self._suspended = waiter
        self.suspend_result = 0
        self._is_restored = True

    def forget_shutdown(self) -> None:
        """At a soft reset: it is down no more, and what ran in it is gone."""
        self.shutdown_code = None
        self.is_shutting_down = self.is_shutdown = self.is_quiesced = False
        self.suspend_evtchn = self.suspend_result = 0
        self._deferring.clear()
        self._suspended = None
        self._deliver = None

    def stop(self) -> None:
        """At its death: nothing of it runs again, and nothing that ran is held on to."""
        for vcpu in self.vcpu:
            vcpu.destroy()
        self.sched.destroy()
        for timer in self.timers:
            timer.cancel()
        for task in self.tasks:
            task.retire()
            task.run = no_upcall
        self.timers.clear()
        self.tasks.clear()
        self._suspended = None
        self._deliver = None

    def _refused(self, errno: int, reason: str, name: str, **arguments: int) -> HypercallError:
        operation = f"XEN_DOMCTL_{name}"
        given = {"domain": self.domid, **arguments}
        return HypercallError(errno, reason, operation=operation, arguments=given)


def no_upcall() -> None:
    """A vcpu without a kernel takes no upcall; its pending bits stay set."""
