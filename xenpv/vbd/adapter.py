"""The XENVBD function device: one SCSI adapter per guest, a target per disk (fdo.c).

It scans `device/vbd`: a directory that appears becomes a target and walks to ENABLED, one
that goes makes its target Missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from xenpv.bus.awaited import Awaited
from xenpv.bus.debug import DebugCallback
from xenpv.bus.store import Watch
from xenpv.bus.suspend import SuspendCallback
from xenpv.bus.unplug import UnplugType
from xenpv.errors import StoreError
from xenpv.vbd.disk import Disk
from xenpv.vbd.parameters import Parameters
from xenpv.vbd.personality import PERSONALITIES, WINDOWS
from xenpv.vbd.srb import Srb, SrbFunction, SrbStatus
from xenpv.vbd.target import BusReset, Target
from xenpv.xen.domain import Domain
from xenpv.xen.loop import Task

if TYPE_CHECKING:
    from xenpv.bus.xenbus import XenBus

TARGETS_MAX: Final = 255
# Keys of a frontend's directory whose change is a reason to try a failed disk again.
RETRIES: Final = (b"", b"backend", b"backend-id", b"device-type")

EXTENDED: Final = 1 << 28
RESERVED: Final = 2 << 28
# major: first target, and how many minors each disk has
MAJORS: Final[Mapping[int, tuple[int, int]]] = {
    202: (0, 4),  # xvd
    8: (0, 4),  # sd
    3: (0, 6),  # hda, hdb; the other IDE channels follow
    22: (2, 6),
    33: (4, 6),
    34: (6, 6),
    56: (8, 6),
    57: (10, 6),
    88: (12, 6),
    89: (14, 6),
}


def target_id(devid: int) -> int | None:
    """The SCSI target of a device number, partition bits ignored; None: not presented.

    Aliases share a target: hda, sda and xvda are all 0.
    """
    if not 0 <= devid < RESERVED:
        return None
    if devid & EXTENDED:
        target = (devid & 0xFFFFF) >> 8
        return target if target < TARGETS_MAX else None
    first_and_shift = MAJORS.get(devid >> 8)
    if first_and_shift is None:
        return None
    first, shift = first_and_shift
    return first + ((devid & 0xFF) >> shift)


class Vbd:
    """The adapter. `targets` by TargetId; a disk is also found by its device number."""

    def __init__(self, bus: XenBus) -> None:
        self.bus = bus
        self.personality = PERSONALITIES[bus.personality]
        self.parameters: Parameters = Parameters.read(bus.registry)
        self.targets: dict[int, Target] = {}
        self._disks: dict[int, Disk] = {}
        self._started = False
        self._asked_unplug = False
        self._again: list[int] = []  # devids of failed targets that changed since
        self._ejecting: list[Target] = []
        self._watch: Watch | None = None
        self._debug: DebugCallback | None = None
        self._callbacks: list[SuspendCallback] | None = None
        self._scan_task: Task = bus.domain.task("xenvbd scan", self.scan)
        self._eject_task: Task = bus.domain.task("xenvbd eject", self._eject)
        self._awaited = Awaited(bus, self._scan_task)

    @property
    def domain(self) -> Domain:
        return self.bus.domain

    # power

    def start(self) -> None:
        """To D0: announce the driver, then look for disks, now and at every change.

        Raises StoreError if the directory cannot be watched.
        """
        self._started = True
        if self._debug is None:
            self._debug = self.bus.debug.register("xenvbd|FRONTEND", self._print, "XENVBD")
        self._enter()
        for target in self.targets.values():
            target.start()
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
            self._announce()
        self._watch = self.bus.store.watch_add("device/vbd", self._scan_task, self._concerns_scan)

    def _announce(self) -> None:
        try:
            self.bus.store.write("feature/hotplug/vbd", "1")
        except StoreError as error:
            self.bus.log(f"xenvbd: feature/hotplug/vbd: {error}\n")

    def _leave(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            try:
                self.bus.store.watch_remove(watch)
            except StoreError as error:
                self.bus.log(f"xenvbd: {error}\n")
        if self.personality is WINDOWS:
            self.bus.clear_driver_key("XENVBD")

    def stop(self) -> None:
        """To D3: begins closing every target; `stopped` says when that is done."""
        if self._started:
            self.bus.release_suspend(self._callbacks)
            self._callbacks = None
        self._started = False
        self._ask_unplug(make=False)
        self._leave()
        self._awaited.keep(())
        for target in list(self.targets.values()):
            target.stop()
        self._silence()

    def remove(self) -> None:
        """REMOVE_DEVICE: what was stopped will not be started again."""
        for target in list(self.targets.values()):
            self._delete(target)
        for task in (self._scan_task, self._eject_task):
            self.domain.forget(task)

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
        self._awaited.keep(())
        try:
            self._enter()
        except StoreError as error:
            self.bus.log(f"xenvbd: resume: {error}\n")
        for target in list(self.targets.values()):
            target.frontend.resume()

    @property
    def stopped(self) -> bool:
        return not self._started and all(target.is_closed for target in self.targets.values())

    # targets

    def target(self, devid: int) -> Target | None:
        """The target of a device number."""
        for target in self.targets.values():
            if target.devid == devid:
                return target
        return None

    def connected(self, devid: int) -> bool:
        target = self.target(devid)
        return target is not None and target.frontend.is_enabled

    def disks(self) -> list[Disk]:
        """What applications see: present targets in the order of their TargetId."""
        return [
            self._disks.setdefault(number, Disk(target))
            for number, target in sorted(self.targets.items())
            if not target.missing
        ]

    def request_eject(self, target: Target) -> None:
        """The system is asked in a task of its own."""
        if target not in self._ejecting:
            self._ejecting.append(target)
        self._eject_task.wake()

    def _eject(self) -> None:
        ejecting, self._ejecting = self._ejecting, []
        for target in ejecting:
            target.query_eject()

    def _concerns_scan(self, path: bytes) -> bool:
        """Not what happens inside the directory of a disk that is there and connects."""
        parts = path.split(b"/")
        if len(parts) < 4 or not parts[2].isdigit() or len(parts[2]) > 10:
            return True
        target = self.target(int(parts[2]))
        if target is None or target.missing:
            return True
        if parts[3] not in RETRIES or not (target.has_failed or target.has_no_backend):
            return False
        if target.devid not in self._again:
            self._again.append(target.devid)
        return True

    def scan(self) -> None:
        """Targets for directories that appeared, Missing for those that went."""
        if not self._started:
            return
        try:
            names = self.bus.store.directory("device/vbd")
        except StoreError as error:
            if error.name != "ENOENT":
                self.bus.log(f"xenvbd: device/vbd: {error}\n")
            names = []
        present = [int(name) for name in names if name.isdecimal() and len(name) < 11]
        self._awaited.keep(present)
        self._again += self._awaited.due()
        for target in list(self.targets.values()):
            if target.devid not in present:
                self.bus.log(f"xenvbd: target {target.target_id}: device disappeared\n")
                target.vanish()
                self.target_closed(target)
        for devid in present:
            known = self.target(devid)
            if known is not None and self._is_new(known):
                self._delete(known)
                known = None
            if known is None:
                self._create(devid)
        self._again.clear()

    def _is_new(self, known: Target) -> bool:
        """Whether the directory of an ejected disk was taken away and made again, or that of
        one that failed was changed.
        """
        if known.devid in self._again:
            return known.has_failed or known.has_no_backend
        if not known.missing or not known.is_closed:
            return False
        return self._get(known.devid, "state") == "1"

    def _get(self, devid: int, key: str) -> str | None:
        """None also for what may not be read."""
        try:
            return self.bus.store.get(f"device/vbd/{devid}/{key}")
        except StoreError as error:
            self.bus.log(f"xenvbd: device {devid}: {error}\n")
            return None

    def _create(self, devid: int) -> None:
        if self._get(devid, "device-type") != "disk":
            return  # a cdrom stays with the emulated controller
        if self._get(devid, "ejected") not in (None, "0"):
            return
        number = target_id(devid)
        if number is None or number in self.targets:
            why = "no target number" if number is None else f"target {number} is taken"
            self.bus.log(f"xenvbd: device {devid} is ignored: {why}\n")
            return
        target = Target(
            adapter=self,
            bus=self.bus,
            personality=self.personality,
            devid=devid,
            target_id=number,
        )
        self.targets[number] = target
        target.start()

    def target_closed(self, target: Target) -> None:
        """A target came to rest; one whose directory is gone is deleted."""
        gone = target.missing and target.is_closed
        if gone and self._get(target.devid, "state") is None:
            self._delete(target)
        elif target.has_failed and self._started:
            self._awaited.add(target.devid, target.frontend.handshake.backend)
        self._silence()

    def _delete(self, target: Target) -> None:
        if self.targets.get(target.target_id) is target:
            del self.targets[target.target_id]
            disk = self._disks.pop(target.target_id, None)
            if disk is not None:
                disk.release()
            target.frontend.remove()

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
