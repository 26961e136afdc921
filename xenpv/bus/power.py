"""What XENBUS holds in D0, in the order of its taking (fdo.c, FdoD3ToD0 and __FdoD3ToD0).

The way back, the way out of a failure and what is done again after a migration are read from
the same table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xenpv.bus.interface import Interface
from xenpv.bus.ntstatus import NtStatusError
from xenpv.bus.store import Watch
from xenpv.bus.suspend import SuspendCallback, SuspendPhase
from xenpv.bus.watchdog import timeout
from xenpv.errors import HypercallError, LocalProtocolError, StoreError
from xenpv.xen.loop import Task

if TYPE_CHECKING:
    from xenpv.bus.xenbus import XenBus

SHUTDOWN_KEY: Final = "control/shutdown"
SUSPEND_FEATURE: Final = "control/feature-suspend"
OWNER: Final = "suspend"  # of the mutex with the balloon

# The interfaces that it acquires, in that order.
HELD: Final = ("debug", "suspend", "range_set", "evtchn", "store", "console", "balloon")
# What has to be released by everybody before the system hibernates.
RELEASED_IN_S4: Final = (
    "suspend", "shared_info", "evtchn", "store", "console", "gnttab", "balloon",
)  # fmt: skip


class Power:
    """The function device's part of a power transition. Linux' kernel takes the device alone."""

    def __init__(self, bus: XenBus) -> None:
        self.bus = bus
        self.is_d0 = False
        self._windows = bus.is_windows
        self._shutdown_task: Task = bus.domain.task("xenbus suspend", self._shutdown_requested)
        self._device_watch: Watch | None = None
        self._shutdown_watch: Watch | None = None
        self._resumed_task: Task = bus.domain.task("xenbus resumed", self._resumed)
        self._suspend_late: SuspendCallback | None = None

    def up(self) -> None:
        """D3 to D0. Raises what stopped it; then it is in D3 and holds nothing."""
        self._climb(STEPS)
        self.is_d0 = True

    def down(self) -> None:
        """D0 to D3, in the reverse order. LocalProtocolError, a bugcheck, for what was left
        open in an interface that nobody holds any more; all are released then.
        """
        self.is_d0 = False
        for _, down in reversed(STEPS):
            down(self)

    def resume(self) -> None:
        """The late callback after a migration: the tree is new, and so are ports and watches.

        The driver removes the key of the feature here too. Where `control` is the toolstack's,
        as in libxl's trees, it cannot make it again, and the guest is not migrated a second time.
        """
        for _, down in reversed(INNER):
            if down is not Power._withdraw_suspend:
                down(self)
        self.bus.problem = ""
        for up, _ in INNER:
            try:
                up(self)
            except (StoreError, HypercallError) as error:
                # The driver asserts here, and runs on without the rest of it.
                self.bus.problem = str(error)
                self.bus.log(f"xenbus: resume: {error}\n")

    def _climb(self, steps: Steps) -> None:
        done: list[Step] = []
        try:
            for up, down in steps:
                up(self)
                done.append(down)
        except BaseException:
            for down in reversed(done):
                down(self)
            raise

    # the steps

    def _acquire(self) -> None:
        taken: list[Interface] = []
        try:
            for name in HELD:
                one = self.bus.interface(name)
                if one is not None and self._take(one, optional=name == "console"):
                    taken.append(one)
        except BaseException:
            for one in reversed(taken):
                one.release()
            raise

    @staticmethod
    def _take(one: Interface, *, optional: bool) -> bool:
        """Whether there is one reference more."""
        try:
            one.acquire()
        except (HypercallError, NtStatusError):
            if not optional:
                raise
            return False
        return True

    def _release(self) -> None:
        left: list[LocalProtocolError] = []
        for one in map(self.bus.interface, reversed(HELD)):
            try:
                if one is not None and one.references:
                    one.release()
            except LocalProtocolError as error:
                left.append(error)
        if left:
            raise left[0]

    def _claim(self) -> None:
        if self._windows:
            self.bus.claim_driver_key("XENBUS")

    def _clear(self) -> None:
        if self._windows:
            self.bus.clear_driver_key("XENBUS")

    def _listen(self) -> None:
        """The log goes to the console too, and the dump has its sections."""
        if self.bus.console.references:
            self.bus.logs.add_console(self.bus.console)
        self.bus.dump.start()

    def _silence(self) -> None:
        self.bus.dump.stop()
        self.bus.logs.remove_console()

    def _open_virqs(self) -> None:
        self.bus.debug_virq.start()
        self.bus.watchdog.start(timeout(self.bus.options.watchdog_seconds))

    def _close_virqs(self) -> None:
        self.bus.watchdog.stop()
        self.bus.debug_virq.stop()

    def _watch_device(self) -> None:
        children = self.bus.children
        self._device_watch = self.bus.store.watch_add("device", children.task, children.concerns)

    def _unwatch_device(self) -> None:
        self._unwatch(self._device_watch)
        self._device_watch = None

    def _watch_shutdown(self) -> None:
        if self._windows:
            self._shutdown_watch = self.bus.store.watch_add(SHUTDOWN_KEY, self._shutdown_task)

    def _unwatch_shutdown(self) -> None:
        self._unwatch(self._shutdown_watch)
        self._shutdown_watch = None

    def _unwatch(self, watch: Watch | None) -> None:
        if watch is None:
            return
        try:
            self.bus.store.watch_remove(watch)
        except StoreError as error:
            self.bus.log(f"xenbus: {error}\n")

    def _advertise(self, key: str) -> None:
        """libxl makes `control` read-only: a key that it did not provide cannot be made."""
        try:
            self.bus.store.write(key, "1")
        except StoreError as error:
            self.bus.log(f"xenbus: {key}: {error.name}\n")

    def _advertise_suspend(self) -> None:
        if self._windows:
            self._advertise(SUSPEND_FEATURE)

    def _withdraw_suspend(self) -> None:
        if self._windows:
            try:
                self.bus.store.discard(SUSPEND_FEATURE)
            except StoreError as error:
                self.bus.log(f"xenbus: {SUSPEND_FEATURE}: {error.name}\n")

    def _start_balloon(self) -> None:
        """The first time the bus' start waits until it is idle: the scan does."""
        thread = self.bus.balloon_thread
        if thread is not None:
            thread.start(None if self.is_d0 else self.bus.children.task)

    def _stop_balloon(self) -> None:
        if self.bus.balloon_thread is not None:
            self.bus.balloon_thread.stop()

    def _register_late(self) -> None:
        register = self.bus.suspend.register
        self._suspend_late = register(SuspendPhase.LATE, self.resume, owner="XENBUS")

    def _deregister_late(self) -> None:
        handle, self._suspend_late = self._suspend_late, None
        if handle is not None:
            self.bus.suspend.deregister(handle)

    # the suspend thread

    def _shutdown_requested(self) -> None:
        """`suspend` is acknowledged and done unless the balloon is at work; the rest is not ours.

        A request that has to wait is left where it is: the mutex has this look again.
        """
        bus = self.bus
        if not bus.is_running or bus.store.get(SHUTDOWN_KEY) != "suspend":
            return
        if not bus.suspend.mutex.try_acquire(OWNER, self._shutdown_task):
            return
        try:
            bus.store.write(SHUTDOWN_KEY, "")
        except StoreError as error:
            bus.log(f"xenbus: {SHUTDOWN_KEY}: {error.name}\n")
        bus.suspend.trigger(self._resumed_task)

    def _resumed(self) -> None:
        self.bus.suspend.mutex.release(OWNER)


Step = Callable[[Power], None]
Steps = tuple[tuple[Step, Step], ...]

# (up, down). INNER is what is done again after a migration.
INNER: Final[Steps] = (
    (Power._claim, Power._clear),
    (Power._open_virqs, Power._close_virqs),
    (Power._watch_device, Power._unwatch_device),
    (Power._watch_shutdown, Power._unwatch_shutdown),
    (Power._advertise_suspend, Power._withdraw_suspend),
    (Power._start_balloon, Power._stop_balloon),
)
STEPS: Final[Steps] = (
    (Power._acquire, Power._release),
    (Power._listen, Power._silence),
    *INNER,
    (Power._register_late, Power._deregister_late),
)
