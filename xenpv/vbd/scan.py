"""The scan of device/vbd: a directory that appears becomes a target, one that goes takes its own
with it (win-xenvbd adapter.c, AdapterScanThread and __AdapterEnumerate).

A watch wakes it. Unlike in the driver, a disk that failed is tried again when its backend comes
or its directory changes, and one that was exchanged while nobody looked is made anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpv.abi.xenbus import XenbusState as State
from xenpv.bus.awaited import Awaited
from xenpv.bus.handshake import parse_flag
from xenpv.bus.store import Watch
from xenpv.errors import StoreError
from xenpv.vbd.alias import MODULE, Refusal, refusal
from xenpv.vbd.target import Target
from xenpv.vbd.targetid import target_id
from xenpv.xen.loop import Task

if TYPE_CHECKING:
    from xenpv.vbd.adapter import Vbd

CLASS: Final = "device/vbd"
DEVID_DIGITS: Final = 10
# Keys of a frontend's directory whose change is a reason to try a failed disk again.
RETRIES: Final = (b"", b"backend", b"backend-id", b"device-type")
FRESH: Final = str(int(State.INITIALISING))  # what a toolstack writes into a new directory


class Scan:
    """Of one adapter. `refused`: directories that get no target, and why."""

    def __init__(self, adapter: Vbd) -> None:
        self.adapter = adapter
        self.bus = adapter.bus
        self.refused: dict[int, Refusal] = {}
        self.task: Task = adapter.bus.domain.task("xenvbd scan", self.run)
        self._awaited = Awaited(adapter.bus, self.task)
        self._again: list[int] = []  # devids of failed targets that changed since
        # Devids whose directories were made or taken away since the last scan; None: any.
        self._suspects: list[int] | None = []
        self._replaced: list[Target] = []  # they close, and make room
        self._renewed: list[int] = []  # devids of those that may fail with what was there before
        self._watch: Watch | None = None

    def start(self) -> None:
        """Look now and at every change. Raises StoreError if the directory cannot be watched."""
        self._watch = self.bus.store.watch_add(CLASS, self.task, self._concerns)

    def stop(self) -> None:
        """Hear of nothing any more."""
        watch, self._watch = self._watch, None
        if watch is not None:
            try:
                self.bus.store.watch_remove(watch)
            except StoreError as error:
                self.bus.log(f"xenvbd: {error}\n")
        self._awaited.keep(())

    def moved(self) -> None:
        """To another host, where the backends may be of those that failed here, or are about to."""
        for target in self.adapter.targets.values():
            self._may_fail(target)

    @property
    def emulated(self) -> list[int]:
        """Devices that leave their image to an emulated disk until the next boot."""
        return [devid for devid, why in self.refused.items() if why.stays_emulated]

    # what is news

    def _concerns(self, path: bytes) -> bool:
        """Not what happens inside the directory of a disk that is there and connects."""
        parts = path.split(b"/")
        if len(parts) < 3:
            self._suspects = None
            return True
        if not parts[2].isdigit() or len(parts[2]) > DEVID_DIGITS:
            return True
        devid = int(parts[2])
        if len(parts) == 3 and self._suspects is not None and devid not in self._suspects:
            self._suspects.append(devid)
        target = self.adapter.target(devid)
        if target is None or target.missing or len(parts) == 3:
            return True
        if parts[3] not in RETRIES or not (target.has_failed or target.has_no_backend):
            return False
        if devid not in self._again:
            self._again.append(devid)
        return True

    # a pass

    def run(self) -> None:
        """Targets for directories that appeared, Missing for those that went."""
        adapter = self.adapter
        if not adapter.started:
            return
        present = self._present()
        self._awaited.keep(present)
        self._renewed = [one for one in self._renewed if not adapter.connected(one)]
        self._again += [devid for devid in self._awaited.due() if devid not in self._again]
        suspects, self._suspects = self._suspects, []
        for target in list(adapter.targets.values()):
            if target.devid not in present:
                self._lose(target, "device disappeared")
                adapter.target_closed(target)
            elif suspects is None or target.devid in suspects:
                self._suspect(target)
        self.refused = {devid: why for devid, why in self.refused.items() if devid in present}
        for devid in present:
            known = adapter.target(devid)
            if known is not None and self._is_new(known):
                adapter.delete(known)
                known = None
            if known is None:
                self._create(devid)
        self._again.clear()

    def _present(self) -> list[int]:
        try:
            names = self.bus.store.directory(CLASS)
        except StoreError as error:
            if error.name != "ENOENT":
                self.bus.log(f"xenvbd: {CLASS}: {error}\n")
            names = []
        return [
            int(name)
            for name in names
            if name.isascii() and name.isdecimal() and len(name) <= DEVID_DIGITS
        ]

    def _lose(self, target: Target, why: str) -> None:
        self.bus.log(f"xenvbd: target {target.target_id}: {why}\n")
        target.pnp.disappeared(why)

    def _suspect(self, target: Target) -> None:
        """Its directory was made, or taken away and made again."""
        if self._is_replaced(target):
            self._replaced.append(target)
            self._lose(target, "another device is in its place")
        else:
            self._may_fail(target)

    def _may_fail(self, target: Target) -> None:
        """With what it saw of another backend; then it is tried again, once."""
        if target.has_failed:
            self._again.append(target.devid)
        elif not target.frontend.is_up and target.devid not in self._renewed:
            self._renewed.append(target.devid)

    def _is_replaced(self, target: Target) -> bool:
        """Whether a directory that the frontend wrote into was taken away and made again."""
        handshake = target.frontend.handshake
        if target.missing:
            return False
        wrote = handshake.state not in (State.UNKNOWN, State.INITIALISING)
        if wrote and self.get(target.devid, "state") == FRESH:
            return True
        backend = self.get(target.devid, "backend")
        return None not in (backend, handshake.backend) and backend != handshake.backend

    def _is_new(self, known: Target) -> bool:
        """Whether the directory of an ejected disk was taken away and made again, that of one
        that failed was changed, or the PnP manager let go of one that is still there.
        """
        if known.devid in self._again:
            return known.has_failed or known.has_no_backend
        if not known.missing or not known.is_closed or known in self._replaced:
            return False
        return self.get(known.devid, "state") == FRESH

    def get(self, devid: int, key: str) -> str | None:
        """Of its directory; None also for what may not be read."""
        try:
            return self.bus.store.get(f"{CLASS}/{devid}/{key}")
        except StoreError as error:
            self.bus.log(f"xenvbd: device {devid}: {error}\n")
            return None

    def _create(self, devid: int) -> None:
        if self.get(devid, "device-type") != "disk":
            return  # a cdrom stays with the emulated controller
        if parse_flag(self.get(devid, "ejected")):
            return
        why = refusal(self.bus, devid, self.adapter.targets)
        if why is not None:
            self._refuse(devid, why)
            return
        self.refused.pop(devid, None)
        number = target_id(devid)
        assert number is not None
        self.adapter.create(devid, number)

    def _refuse(self, devid: int, why: Refusal) -> None:
        if self.refused.get(devid) is why:
            return
        self.refused[devid] = why
        self.bus.log(f"xenvbd: device {devid} is ignored: {why.value}\n")
        if why.asks_reboot and self.bus.unplug is not None:
            self.bus.unplug.reboot(MODULE)

    def closed(self, target: Target) -> None:
        """A target came to rest; one whose directory is gone, or another's by now, is deleted."""
        if target in self._replaced:
            self._replaced.remove(target)
            self.adapter.delete(target)
            self.task.wake()
        elif target.missing and target.is_closed and self.get(target.devid, "state") is None:
            self.adapter.delete(target)
        elif target.has_failed and self.adapter.started:
            self._failed(target)

    def _failed(self, target: Target) -> None:
        devid = target.devid
        if devid in self._renewed:
            self._renewed.remove(devid)
            self._again.append(devid)
            self.task.wake()
        else:
            self._awaited.add(devid, target.frontend.handshake.backend)

    def deleted(self, target: Target) -> None:
        """Its number is free: a device that waited for it may be made."""
        if target.devid in self._renewed:
            self._renewed.remove(target.devid)
        if Refusal.TAKEN in self.refused.values():
            self.task.wake()

    def forget(self) -> None:
        """The adapter goes."""
        self.bus.domain.forget(self.task)
