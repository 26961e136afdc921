"""XenBus' SUSPEND interface: a guest that goes to sleep, and what it does when it wakes.

win-xenbus suspend.c and sync.c. The hypercall returns 0 in a domain that is new, or that was
resumed without being told: then everything that lay with the old one is made again, in
callbacks. It returns 1 where the suspend was cancelled: nothing is lost, no callback runs.

Callbacks take no argument. They run in the order of their registration: EARLY ones with
interrupts off, LATE ones with interrupts on, and no other code of the guest before the last
of them is through. What else the driver's CPUs would do then waits here too.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import ClassVar

import attrs

from xenpv.bus.interface import Interface
from xenpv.errors import LocalProtocolError
from xenpv.xen.domain import Domain
from xenpv.xen.loop import Task


class SuspendPhase(enum.IntEnum):
    """XENBUS_SUSPEND_CALLBACK_TYPE."""

    EARLY = 1
    LATE = 2


@attrs.define(eq=False)
class SuspendCallback:
    """A registered callback: the handle of `register`. `owner` names who did, for dumps."""

    phase: SuspendPhase
    function: Callable[[], object]
    owner: str


class BalloonSuspendMutex:
    """Ballooning and suspending exclude each other (fdo.c BalloonSuspendMutex).

    Nobody waits: who does not get it goes back to sleep, and is woken when it is free.
    """

    def __init__(self) -> None:
        self.owner = ""
        self._losers: list[Task] = []

    def try_acquire(self, owner: str, again: Task) -> bool:
        """False if another has it: `again` is woken at its release. `owner` is a name."""
        if self.owner:
            if again not in self._losers:
                self._losers.append(again)
            return False
        self.owner = owner
        return True

    def release(self, owner: str) -> None:
        """Raises LocalProtocolError unless `owner` has it."""
        if self.owner != owner:
            raise LocalProtocolError(f"{owner} releases what {self.owner or 'nobody'} holds")
        self.owner = ""
        losers, self._losers = self._losers, []
        for task in losers:
            task.wake()


class SuspendInterface(Interface):
    """SUSPEND of one guest. `count` is how often it woke in a new domain (u32).

    The driver counts once for each CPU; this one once.
    """

    NAME = "SUSPEND"
    GUID = "0554F2AF-B510-4C71-AC03-1C503E394238"
    OPERATIONS: ClassVar = {1: ("register", "deregister", "trigger", "get_count")}

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.mutex = BalloonSuspendMutex()
        self.count = 0
        # What each CPU does before the callbacks (vcpu_info), and then CPU 0 (unplug).
        self.on_every_cpu: Callable[[int], object] | None = None
        self.unplug: Callable[[], object] | None = None
        self._callbacks: list[SuspendCallback] = []
        self._task: Task | None = None  # made with the first suspend
        self._captured: list[Task] = []
        self._wake: Task | None = None
        self._suspended = False

    def register(
        self, phase: int, callback: Callable[[], object], owner: str = ""
    ) -> SuspendCallback:
        """A handle. One that is registered in a callback waits for the next suspend."""
        if phase not in list(SuspendPhase):
            raise LocalProtocolError(f"SUSPEND has no phase {phase}")
        handle = SuspendCallback(SuspendPhase(phase), callback, owner)
        self._callbacks.append(handle)
        return handle

    def deregister(self, handle: SuspendCallback) -> None:
        """It is not called any more, neither in the suspend under way."""
        if handle not in self._callbacks:
            raise LocalProtocolError(f"SUSPEND: the callback of {handle.owner} is not registered")
        self._callbacks.remove(handle)

    def get_count(self) -> int:
        return self.count

    def callbacks(self, phase: SuspendPhase) -> list[SuspendCallback]:
        """In the order in which they run; for dumps."""
        return [handle for handle in self._callbacks if handle.phase is phase]

    def trigger(self, wake: Task | None = None) -> None:
        """SCHEDOP_shutdown(suspend), with every CPU captured; it always succeeds.

        The domain is suspended when this returns, so the caller's handler should end with
        it. After the resume, cancelled or not, and after the callbacks `wake` is woken.
        """
        if self._suspended:
            raise LocalProtocolError(f"domain {self.domain.domid} is suspended already")
        if self._task is None:
            self._task = self.domain.task("suspend", self._resumed)
        self._suspended = True
        self._wake = wake
        self._captured = [task for task in self.domain.tasks if task is not self._task]
        for task in self._captured:
            task.hold()
        self.domain.suspend(self._task)

    def _resumed(self) -> None:
        """The hypercall returned, on CPU 0, with interrupts off."""
        try:
            if self.domain.suspend_result == 0:
                self._begin_anew()
        finally:
            self._suspended = False
            captured, self._captured = self._captured, []
            for task in captured:
                task.release()
            wake, self._wake = self._wake, None
            if wake is not None:
                wake.wake()

    def _begin_anew(self) -> None:
        self.count = (self.count + 1) & 0xFFFFFFFF
        if self.on_every_cpu is not None:
            for vcpu in range(self.domain.processors):
                self.on_every_cpu(vcpu)
        if self.unplug is not None:
            self.unplug()
        for phase in SuspendPhase:
            for handle in self.callbacks(phase):
                if handle in self._callbacks:
                    handle.function()

    def leftovers(self) -> list[str]:
        return [
            f"the {handle.phase.name} callback of {handle.owner or 'nobody'}"
            for handle in self._callbacks
        ]

    def _stop(self) -> None:
        self._callbacks.clear()
        self.count = 0
        if self._task is not None:
            self.domain.forget(self._task)
            self._task = None
