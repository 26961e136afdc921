"""What Linux' own kernel does about requests of the toolstack (drivers/xen/manage.c)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.abi.sched import SHUTDOWN
from xenpv.bus.suspend import SuspendCallback, SuspendPhase
from xenpv.errors import StoreError
from xenpv.iface import shutdown
from xenpv.iface.feature import advertise, unwatch
from xenpv.iface.shutdown import REQUESTS, Act
from xenpv.xen.loop import NS_PER_MS, Task, Timer

if TYPE_CHECKING:
    from xenpv.bus.store import Transaction, Watch
    from xenpv.bus.xenbus import XenBus
    from xenpv.iface.operatingsystem import OperatingSystem
    from xenpv.iface.systemclock import SystemClock

SYSRQ: Final = "control/sysrq"
SYSRQS_MAX: Final = 1000  # that are remembered


@attrs.frozen
class SysrqKey:
    """A key of drivers/tty/sysrq.c: what the kernel prints, and how the domain ends by it."""

    message: str
    reason: SHUTDOWN | None = None


SYSRQ_KEYS: Final[Mapping[str, SysrqKey]] = {
    "b": SysrqKey("Resetting", SHUTDOWN.reboot),
    "c": SysrqKey("Trigger a crash", SHUTDOWN.crash),
    "e": SysrqKey("Terminate All Tasks"),
    "f": SysrqKey("Manual OOM execution"),
    "i": SysrqKey("Kill All Tasks"),
    "l": SysrqKey("Show backtrace of all active CPUs"),
    "m": SysrqKey("Show Memory"),
    "o": SysrqKey("Power Off", SHUTDOWN.poweroff),
    "p": SysrqKey("Show Regs"),
    "s": SysrqKey("Emergency Sync"),
    "t": SysrqKey("Show State"),
    "u": SysrqKey("Emergency Remount R/O"),
    "w": SysrqKey("Show Blocked State"),
}
HELP: Final = SysrqKey(f"HELP : {' '.join(SYSRQ_KEYS)}")


class Manage:
    """The shutdown and sysrq watches. While one request is carried out no other is looked at."""

    def __init__(self, bus: XenBus, system: OperatingSystem, clock: SystemClock) -> None:
        self.bus = bus
        self.system = system
        self.clock = clock
        self.requests = REQUESTS["linux"]
        self.shutting_down: Act | None = None
        self.sysrqs: list[str] = []  # keys that were pressed
        self._watches: list[Watch] = []
        self._suspend: SuspendCallback | None = None
        self._task: Task = bus.domain.task("manage", self._look)
        self._sysrq_task: Task = bus.domain.task("sysrq", self._look_sysrq)
        self._frozen: Timer | None = None
        self._thaw: Task | None = None

    def start(self) -> None:
        """setup_shutdown_watcher."""
        self._listen()
        self._suspend = self.bus.suspend.register(SuspendPhase.LATE, self._resumed, "manage")

    def stop(self) -> None:
        """The kernel goes down."""
        for watch in self._watches:
            unwatch(self.bus, "manage", watch)
        self._watches.clear()
        advertise(self.bus, "manage", self.requests.features, "")
        if self._suspend is not None:
            self.bus.suspend.deregister(self._suspend)
            self._suspend = None

    def _listen(self) -> None:
        self._watches = []
        for path, task in ((shutdown.KEY, self._task), (SYSRQ, self._sysrq_task)):
            try:
                self._watches.append(self.bus.store.watch_add(path, task))
            except StoreError as error:  # the quota of a guest that watches too much
                self.bus.log(f"manage: {path}: {error.name}\n")
        # Linux does this at boot only, and a restored guest has empty keys for ever.
        advertise(self.bus, "manage", self.requests.features, "1")

    def _resumed(self) -> None:
        """timekeeping_resume, then xs_resume registers every watch again, so each fires."""
        self.clock.set_system_time(self.bus.shared_info.get_time()[0])
        for watch in self._watches:
            unwatch(self.bus, "manage", watch)
        self._listen()

    def _look(self) -> None:
        if self.shutting_down is not None:
            return
        try:
            taken = shutdown.take(self.bus.store, self.requests)
        except StoreError as error:
            self.bus.log(f"manage: {shutdown.KEY}: {error.name}\n")
            return
        if taken is None:
            return
        value, act = taken
        self.shutting_down = act
        self.bus.log(f"manage: {value}\n")
        self.bus.domain.trace.note(self.bus.domain.domid, f"manage: {value} acknowledged")
        if act is Act.SUSPEND:
            self._freeze()
        else:
            self.bus.power_off(SHUTDOWN.reboot if act is Act.REBOOT else SHUTDOWN.poweroff)

    # suspend

    def _freeze(self) -> None:
        """Freeze the tasks first, which takes as long as it takes."""
        if self._frozen is None or self._thaw is None:
            frozen = self.bus.domain.task("tasks frozen", self._suspend_now)
            self._frozen = self.bus.domain.timer(frozen)
            self._thaw = self.bus.domain.task("tasks thaw", self._woken)
        within = min(self.system.freeze_ms, self.system.freeze_timeout_ms)
        self._frozen.arm(within * NS_PER_MS)

    def _suspend_now(self) -> None:
        if self.system.freeze_ms > self.system.freeze_timeout_ms:
            # The request was acknowledged: the toolstack waits for a suspend that never comes.
            self.bus.log("manage: do_suspend: freeze processes failed -16\n")
            self._woken()
            return
        self.bus.suspend.trigger(self._thaw)

    def _woken(self) -> None:
        self.shutting_down = None
        # A request that came meanwhile was not acknowledged, and its event is gone.
        self._task.wake()

    # sysrq

    def _look_sysrq(self) -> None:
        store = self.bus.store
        try:
            key = store.transaction(self._take_sysrq)
        except StoreError as error:
            self.bus.log(f"manage: {SYSRQ}: {error.name}\n")
            return
        if key:
            self.handle_sysrq(key)

    def _take_sysrq(self, transaction: Transaction) -> str:
        value = self.bus.store.get(SYSRQ, transaction)
        if not value:
            return ""
        self.bus.store.write(SYSRQ, "", transaction)
        return value[0]

    def handle_sysrq(self, key: str) -> None:
        """A pressed key; one that is unknown prints the help."""
        self.sysrqs.append(key)
        del self.sysrqs[:-SYSRQS_MAX]
        done = SYSRQ_KEYS.get(key, HELP)
        self.bus.log(f"sysrq: {done.message}\n")
        if done.reason is not None:
            # At once: no device is closed and nothing is written back.
            self.bus.domain.shutdown(done.reason)
