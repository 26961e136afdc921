"""What XENBUS holds in D0, in the order of its taking (fdo.c, FdoD3ToD0 and __FdoD3ToD0).

The way back, the way out of a failure and what is done again after a migration are read from
the same table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xenpv.abi._kernel import lib
from xenpv.bus.evtchn import Channel
from xenpv.bus.interface import Interface
from xenpv.bus.store import Watch
from xenpv.errors import HypercallError, LocalProtocolError, StoreError
from xenpv.xen.loop import Task

if TYPE_CHECKING:
    from xenpv.bus.xenbus import XenBus

SHUTDOWN_KEY: Final = "control/shutdown"
SUSPEND_FEATURE: Final = "control/feature-suspend"
BALLOON_FEATURE: Final = "control/feature-balloon"
VIRQ_DEBUG: Final[int] = lib.VIRQ_DEBUG
EARLY: Final = 1  # SuspendPhase
LATE: Final = 2

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
        self._virqs: list[Channel] = []
        self._suspend_late: object | None = None

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
        """The late callback after a migration: the tree is new, and so are ports and watches."""
        for _, down in reversed(INNER):
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
                if one is not None:
                    one.acquire()
                    taken.append(one)
        except BaseException:
            for one in reversed(taken):
                one.release()
            raise

    def _release(self) -> None:
        left: list[LocalProtocolError] = []
        for one in map(self.bus.interface, reversed(HELD)):
            try:
                if one is not None:
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

    def _open_virqs(self) -> None:
        if self._windows:
            evtchn = self.bus.evtchn
            channel = evtchn.open_virq(VIRQ_DEBUG, self._debug_interrupt)
            self._virqs.append(channel)
            evtchn.unmask(channel)

    def _close_virqs(self) -> None:
        for channel in self._virqs:
            self.bus.evtchn.close(channel)
        self._virqs.clear()

    def _debug_interrupt(self) -> None:
        """VIRQ_DEBUG, which `xl debug-keys q` raises: every debug callback runs."""
        debug = getattr(self.bus, "debug", None)
        if debug is not None:
            debug.trigger()

    def _watch_device(self) -> None:
        children = self.bus.children
        self._device_watch = self.bus.store.watch_add("device", children.task, children.concerns)

    def _unwatch_device(self) -> None:
        self._unwatch(self._device_watch)
        self._device_watch = None

    @property
    def _suspends(self) -> bool:
        return self._windows and getattr(self.bus, "suspend", None) is not None

    def _watch_shutdown(self) -> None:
        if self._suspends:
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
        if self._suspends:
            self._advertise(SUSPEND_FEATURE)

    def _withdraw_suspend(self) -> None:
        if self._suspends:
            self.bus.store.discard(SUSPEND_FEATURE)

    @property
    def _balloons(self) -> bool:
        return self._windows and getattr(self.bus, "balloon", None) is not None

    def _advertise_balloon(self) -> None:
        if self._balloons:
            self._advertise(BALLOON_FEATURE)

    def _withdraw_balloon(self) -> None:
        if self._balloons:
            self.bus.store.discard(BALLOON_FEATURE)

    def _register_late(self) -> None:
        suspend = getattr(self.bus, "suspend", None)
        if suspend is not None:
            self._suspend_late = suspend.register(LATE, self.resume, owner="XENBUS")

    def _deregister_late(self) -> None:
        suspend, handle = getattr(self.bus, "suspend", None), self._suspend_late
        if suspend is not None and handle is not None:
            suspend.deregister(handle)
        self._suspend_late = None

    # the suspend thread

    def _shutdown_requested(self) -> None:
        """`suspend` is acknowledged and done unless the balloon is at work; the rest is not ours.

        A request that has to wait is left where it is: `suspend_waits` looks again.
        """
        bus, suspend = self.bus, getattr(self.bus, "suspend", None)
        if suspend is None or not bus.is_running:
            return
        if bus.store.get(SHUTDOWN_KEY) != "suspend" or bus.is_ballooning:
            return
        try:
            bus.store.write(SHUTDOWN_KEY, "")
        except StoreError as error:
            bus.log(f"xenbus: {SHUTDOWN_KEY}: {error.name}\n")
        suspend.trigger()

    def look_for_suspend(self) -> None:
        """Ballooning ended: a request that was left may be met now."""
        self._shutdown_task.wake()


Step = Callable[[Power], None]
Steps = tuple[tuple[Step, Step], ...]

# (up, down). INNER is what is done again after a migration.
INNER: Final[Steps] = (
    (Power._claim, Power._clear),
    (Power._open_virqs, Power._close_virqs),
    (Power._watch_device, Power._unwatch_device),
    (Power._watch_shutdown, Power._unwatch_shutdown),
    (Power._advertise_suspend, Power._withdraw_suspend),
    (Power._advertise_balloon, Power._withdraw_balloon),
)
STEPS: Final[Steps] = (
    (Power._acquire, Power._release),
    *INNER,
    (Power._register_late, Power._deregister_late),
)
