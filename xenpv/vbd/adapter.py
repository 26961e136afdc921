"""The XENVBD function device: one SCSI adapter per guest, a target per disk (fdo.c, adapter.c).

Which disks there are is found by the scan; what the PnP manager does with a disk is done in a task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from xenpv.bus.debug import DebugCallback
from xenpv.bus.suspend import SuspendCallback
from xenpv.bus.unplug import UnplugType
from xenpv.errors import StoreError
from xenpv.vbd.crash import place
from xenpv.vbd.disk import Disk
from xenpv.vbd.parameters import Parameters
from xenpv.vbd.personality import PERSONALITIES, WINDOWS
from xenpv.vbd.scan import Scan
from xenpv.vbd.srb import Srb, SrbFunction, SrbStatus
from xenpv.vbd.target import BusReset, Target
from xenpv.xen.domain import Domain
from xenpv.xen.loop import Task

if TYPE_CHECKING:
    from xenpv.bus.xenbus import XenBus

HOTPLUG: Final = "feature/hotplug/vbd"


class Vbd:
    """The adapter. `targets` by TargetId; a disk is also found by its device number."""

    def __init__(self, bus: XenBus) -> None:
        self.bus = bus
        self.personality = PERSONALITIES[bus.personality]
        self.parameters: Parameters = Parameters.read(bus.registry)
        self.targets: dict[int, Target] = {}
        self.started = False
        self.scan = Scan(self)
        self._by_devid: dict[int, Target] = {}
        self._disks: dict[int, Disk] = {}
        self._asked_unplug = False
        self._changed: list[Target] = []  # that the PnP manager has to look at
        self._debug: DebugCallback | None = None
        self._callbacks: list[SuspendCallback] | None = None
        self._pnp_task: Task = bus.domain.task("xenvbd pnp", self._manage)

    @property
    def domain(self) -> Domain:
        return self.bus.domain

    # power

    def start(self) -> None:
        """To D0: announce the driver, then look for disks, now and at every change.

        Raises StoreError if the directory cannot be watched.
        """
        self.started = True
        if self._debug is None:
            self._debug = self.bus.debug.register("xenvbd|FRONTEND", self._print, "XENVBD")
        self._enter()
        for target in self.targets.values():
            target.pnp.rise()
        self._callbacks = self.bus.acquire_suspend("XENVBD", None, self._resumed)
        self._ask_unplug(make=True)

    def _ask_unplug(self, *, make: bool) -> None:
        """Once: emulated disks shall be gone from the next boot on, or not any more."""
        if self._asked_unplug is not make and (make or not self.bus.powers_down):
            self._asked_unplug = make
            self.bus.request_unplug(UnplugType.DISKS, make=make)

    def _enter(self) -> None:
        if self.personality is WINDOWS:
            self.bus.claim_driver_key("XENVBD")
            try:
                self.bus.store.write(HOTPLUG, "1")
            except StoreError as error:
                self.bus.log(f"xenvbd: {HOTPLUG}: {error}\n")
        self.scan.start()

    def _leave(self) -> None:
        self.scan.stop()
        if self.personality is WINDOWS:
            try:
                self.bus.store.discard(HOTPLUG)
            except StoreError as error:
                self.bus.log(f"xenvbd: {HOTPLUG}: {error}\n")
            self.bus.clear_driver_key("XENVBD")

    def stop(self) -> None:
        """To D3: begins closing every target; `stopped` says when that is done."""
        if self.started:
            self.bus.release_suspend(self._callbacks)
            self._callbacks = None
        self.started = False
        self._ask_unplug(make=False)
        self._leave()
        for target in list(self.targets.values()):
            target.pnp.rest()
        self._silence()

    def remove(self) -> None:
        """REMOVE_DEVICE: what was stopped will not be started again."""
        for target in list(self.targets.values()):
            self.delete(target)
        self.scan.forget()
        self.domain.forget(self._pnp_task)

    def _silence(self) -> None:
        """No dump any more, once there is nothing to tell."""
        if self.stopped and self._debug is not None:
            self.bus.debug.deregister(self._debug)
            self._debug = None

    def _print(self, crashing: bool) -> None:
        from xenpv.bus.dump import print_lines
        from xenpv.vbd.dump import target_lines

        for target in self.targets.values():
            print_lines(self.bus, target_lines(target, crashing))

    def _resumed(self) -> None:
        """Late, after a migration: keys and watches anew, then every disk."""
        self._leave()
        try:
            self._enter()
        except StoreError as error:
            self.bus.log(f"xenvbd: resume: {error}\n")
        for target in list(self.targets.values()):
            target.frontend.resume()
        self.scan.moved()

    @property
    def stopped(self) -> bool:
        return not self.started and all(target.is_closed for target in self.targets.values())

    # targets

    def target(self, devid: int) -> Target | None:
        """The target of a device number."""
        return self._by_devid.get(devid)

    def connected(self, devid: int) -> bool:
        target = self.target(devid)
        return target is not None and target.frontend.is_enabled

    @property
    def emulated(self) -> list[int]:
        """Devices that leave their image to an emulated disk until the next boot."""
        return self.scan.emulated

    def disks(self) -> list[Disk]:
        """What applications see: present targets in the order of their TargetId."""
        return [
            self._disks.setdefault(number, Disk(target))
            for number, target in sorted(self.targets.items())
            if not target.missing
        ]

    def create(self, devid: int, number: int) -> None:
        """A directory has become a disk; it connects, and the PnP manager is told."""
        target = self.targets[number] = self._by_devid[devid] = Target(
            adapter=self,
            bus=self.bus,
            personality=self.personality,
            devid=devid,
            target_id=number,
        )
        for usage in place.usages(self.bus.registry, number):
            target.frontend.usage.notify(usage, True)
        target.start()
        self.bus_changed(target)

    def bus_changed(self, target: Target) -> None:
        """StorPort's BusChangeDetected, or IoRequestDeviceEject: the PnP manager looks at it."""
        if target not in self._changed:
            self._changed.append(target)
        self._pnp_task.wake()

    def _manage(self) -> None:
        changed, self._changed = self._changed, []
        for target in changed:
            target.pnp.manage()

    def target_closed(self, target: Target) -> None:
        """A target came to rest."""
        target.pnp.poll()
        self.scan.closed(target)
        self._silence()

    def delete(self, target: Target) -> None:
        """Nothing of it stays; its number is free."""
        if self.targets.get(target.target_id) is target:
            del self.targets[target.target_id]
            del self._by_devid[target.devid]
            disk = self._disks.pop(target.target_id, None)
            if disk is not None:
                disk.release()
            target.frontend.remove()
            self.scan.deleted(target)

    # SRBs

    def submit(self, srb: Srb) -> None:
        """StorPort's BuildIo and StartIo: the SRB finds its target, or ends here."""
        target = self.targets.get(srb.target_id)
        if srb.function == SrbFunction.RESET_BUS:
            BusReset(srb, list(self.targets.values()))
        elif target is not None:
            target.submit(srb)
        else:
            srb.complete(_WITHOUT_TARGET.get(srb.function, SrbStatus.INVALID_REQUEST))


# What ends differently than INVALID_REQUEST when the target is not there.
_WITHOUT_TARGET: Final[Mapping[int, SrbStatus]] = {
    SrbFunction.EXECUTE_SCSI: SrbStatus.NO_DEVICE,
    SrbFunction.SHUTDOWN: SrbStatus.NO_DEVICE,
    SrbFunction.FLUSH: SrbStatus.NO_DEVICE,
    SrbFunction.RESET_DEVICE: SrbStatus.NO_DEVICE,
    SrbFunction.ABORT_COMMAND: SrbStatus.ABORT_FAILED,
    SrbFunction.PNP: SrbStatus.SUCCESS,
}
