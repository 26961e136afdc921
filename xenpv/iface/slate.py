"""control/laptop-slate-mode: a convertible laptop's hinge, moved by the toolstack.

Only where the firmware has the device (xl.cfg acpi_laptop_slate, PNP0C60 and the ConvertibleSlate
method). libxl creates neither node: a toolstack that wants this does, owned by the guest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xenpv.errors import StoreError
from xenpv.iface.feature import advertise, unwatch
from xenpv.xen.loop import NS_PER_S, Task, Timer

if TYPE_CHECKING:
    from xenpv.bus.store import Watch
    from xenpv.bus.xenbus import XenBus
    from xenpv.iface.operatingsystem import OperatingSystem

KEY: Final = "control/laptop-slate-mode"
FEATURE: Final = "feature-laptop-slate-mode"
DEVICE: Final = "platform/acpi_laptop_slate"
MODES: Final = {"laptop": False, "slate": True}  # by value: is it a slate
TOGGLE_NS: Final = NS_PER_S
TOGGLES_MAX: Final = 60  # the agent's loop has no end; a hinge that is stuck would keep it


class SlateMode:
    """The agent's part in it; `woken` is told of every look at the node, with its value."""

    def __init__(
        self, bus: XenBus, system: OperatingSystem, woken: Callable[[str], object]
    ) -> None:
        self.bus = bus
        self.system = system
        self.woken = woken
        self.wanted: bool | None = None
        self.toggles = 0
        self._watch: Watch | None = None
        self._task: Task | None = None
        self._timer: Timer | None = None

    def start(self) -> None:
        """Watch, if there is the device."""
        if self.bus.store.get(DEVICE) != "1":
            return
        if self._task is None or self._timer is None:
            self._task = self.bus.domain.task("xenagent slate", self._look)
            toggle = self.bus.domain.task("xenagent toggle", self._toggle)
            self._timer = self.bus.domain.timer(toggle)
        advertise(self.bus, "agent", [FEATURE], "1")
        self._watch = self.bus.store.watch_add(KEY, self._task)

    def stop(self) -> None:
        """The feature key is removed, and not emptied as the others."""
        watch, self._watch = self._watch, None
        if watch is None:
            return
        self.wanted = None
        if self._timer is not None:
            self._timer.cancel()
        unwatch(self.bus, "agent", watch)
        try:
            self.bus.store.discard(f"control/{FEATURE}")
        except StoreError as error:
            self.bus.log(f"agent: control/{FEATURE}: {error.name}\n")

    def _look(self) -> None:
        if self._watch is None:
            return
        value = self.bus.store.get(KEY) or ""
        self.woken(value)
        if not value:
            return
        try:
            self.bus.store.write(KEY, "")
        except StoreError as error:
            self.bus.log(f"agent: {KEY}: {error.name}\n")
        if value in MODES:
            self.wanted = MODES[value]
            self.toggles = 0
            self._toggle()

    def _toggle(self) -> None:
        """Move the hinge once a second until Windows says that it is where it should be."""
        if self.wanted is None or self._timer is None or self.system.is_slate is self.wanted:
            self.wanted = None
            return
        if self.toggles == TOGGLES_MAX:
            self.bus.log(f"agent: the hinge did not move in {TOGGLES_MAX} s\n")
            self.wanted = None
            return
        self.toggles += 1
        if not self.system.slate_stuck:
            self.system.is_slate = not self.system.is_slate
        self._timer.arm(TOGGLE_NS)
