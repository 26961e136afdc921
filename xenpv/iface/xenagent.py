"""xenagent, the Windows service above XENIFACE (win-xeniface, src/xenagent).

It waits for control/shutdown, for a resume, for the slate mode, and at most 30 minutes; then it
looks at everything, so that a watch that was lost is made up for.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.abi.sched import SHUTDOWN
from xenpv.bus.suspend import SuspendCallback, SuspendPhase
from xenpv.errors import StoreError
from xenpv.iface import shutdown
from xenpv.iface.feature import advertise, unwatch
from xenpv.iface.shutdown import REQUESTS, Act
from xenpv.iface.slate import SlateMode
from xenpv.iface.timesync import TimeSync, boot_clock
from xenpv.xen.loop import NS_PER_MS, Task, Timer

if TYPE_CHECKING:
    from xenpv.bus.store import Watch
    from xenpv.bus.xenbus import XenBus
    from xenpv.iface.operatingsystem import OperatingSystem

TIMEOUT_NS: Final = 1_800_000 * NS_PER_MS
EVENTS_MAX: Final = 1000  # of the log; the oldest go first


class EventId(enum.IntEnum):
    """EVENT_XENUSER_ of messages.mc. WMI and STARTED are never logged."""

    POWEROFF = 1
    REBOOT = 2
    S4 = 3
    S3 = 4
    WMI = 5
    STARTED = 6
    UNSUSPENDED = 7
    UNEXPECTED = 8
    MODE_SWITCH = 9


@attrs.frozen
class Logged:
    """A line of the event log; `time` is a FILETIME by the guest's clock."""

    time: int
    event: EventId
    text: str = ""


LOGGED_AS: Final = {
    Act.POWEROFF: EventId.POWEROFF,
    Act.REBOOT: EventId.REBOOT,
    Act.SLEEP: EventId.S3,
    Act.HIBERNATE: EventId.S4,
}


class XenAgent:
    """The service. `log` is what it wrote to the event log."""

    def __init__(self, bus: XenBus, system: OperatingSystem) -> None:
        self.bus = bus
        self.system = system
        self.requests = REQUESTS["windows"]
        self.log: list[Logged] = []
        self.running = False
        self.ended = False  # a forced shutdown was begun: the service loop is over
        self.clock = boot_clock(bus.domain, system.time_zone, bus.shared_info)
        self.time = TimeSync(self.clock, bus.shared_info, bus.registry)
        self.slate = SlateMode(bus, system, self._mode_switch)
        self._count = 0
        self._watch: Watch | None = None
        self._suspend: SuspendCallback | None = None
        self._task: Task = bus.domain.task("xenagent shutdown", self.check_shutdown)
        self._resumed: Task = bus.domain.task("xenagent suspend", self._suspended)
        timeout = bus.domain.task("xenagent timeout", self._timed_out)
        self._timer: Timer = bus.domain.timer(timeout, TIMEOUT_NS)

    def start(self) -> None:
        """The device arrived."""
        self.running = True
        # The driver's event is set in its late callback; the service wakes some time after.
        register = self.bus.suspend.register
        self._suspend = register(SuspendPhase.LATE, self._resumed.wake, "xenagent")
        # SUSPEND counts from 0 again after D3; the service, which keeps its number, goes deaf.
        self._count = self.bus.suspend.get_count()
        self._listen()
        self.time.sync(forced=False)
        self._timer.arm(TIMEOUT_NS)

    def stop(self) -> None:
        """The service stops, or the device goes."""
        if not self.running:
            return
        self.running = False
        self._timer.cancel()
        self._deafen()
        if self._suspend is not None:
            self.bus.suspend.deregister(self._suspend)
            self._suspend = None

    def _listen(self) -> None:
        try:
            self._watch = self.bus.store.watch_add(shutdown.KEY, self._task)
        except StoreError as error:
            # It looks every half hour all the same.
            self._record(EventId.UNEXPECTED, f"{shutdown.KEY}: {error.name}")
        advertise(self.bus, "agent", self.requests.features, "1")
        self.slate.start()

    def _deafen(self) -> None:
        advertise(self.bus, "agent", self.requests.features, "")
        self.slate.stop()
        watch, self._watch = self._watch, None
        if watch is not None:
            unwatch(self.bus, "agent", watch)

    # what the loop wakes up for

    def check_shutdown(self) -> None:
        """Take what is in control/shutdown, if it is understood, and do it."""
        if not self.running or self.ended:
            return
        try:
            taken = shutdown.take(self.bus.store, self.requests)
        except StoreError as error:
            self._record(EventId.UNEXPECTED, f"{shutdown.KEY}: {error.name}")
            return
        if taken is None:
            return
        value, act = taken
        self.bus.log(f"agent: {value}\n")
        self.bus.domain.trace.note(self.bus.domain.domid, f"agent: {value} acknowledged")
        self._record(LOGGED_AS[act], value)
        self._act(act)

    def _act(self, act: Act) -> None:
        if act in (Act.SLEEP, Act.HIBERNATE):
            self.bus.sleep(s4=act is Act.HIBERNATE)
        else:
            self.ended = True
            self.bus.power_off(SHUTDOWN.reboot if act is Act.REBOOT else SHUTDOWN.poweroff)

    def _suspended(self) -> None:
        if not self.running or self.ended:
            return
        self.time.sync(forced=True)
        self._check_suspend()

    def _check_suspend(self) -> None:
        count = self.bus.suspend.get_count()
        if count == self._count:
            return
        self._record(EventId.UNSUSPENDED)
        self._deafen()
        self._listen()
        self._count = count

    def _timed_out(self) -> None:
        if not self.running or self.ended:
            return
        self.time.sync(forced=False)
        self._check_suspend()
        self.check_shutdown()

    def _mode_switch(self, text: str) -> None:
        self._record(EventId.MODE_SWITCH, text)

    def _record(self, event: EventId, text: str = "") -> None:
        self.log.append(Logged(self.clock.now(), event, text))
        del self.log[:-EVENTS_MAX]
