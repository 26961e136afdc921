"""XENBUS' children: the scan that finds them and what the PnP manager is told (fdo.c, FdoScan).

The scan thread is a task that a watch of `device`, the bus' start and the end of a child wake.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpv.bus import classes
from xenpv.bus.devicetree import Irp
from xenpv.bus.pdo import Pdo
from xenpv.bus.pnpstate import PnpState
from xenpv.errors import StoreError
from xenpv.xen.loop import Task

if TYPE_CHECKING:
    from xenpv.bus.xenbus import XenBus


class Children:
    """`pdos` by class, also those that are missing and wait for their REMOVE_DEVICE."""

    def __init__(self, bus: XenBus) -> None:
        self.bus = bus
        self.pdos: dict[str, Pdo] = {}
        self.task: Task = bus.domain.task("xenbus scan", self.scan)
        self._listed: list[str] = []  # names in `device` at the last scan
        self._asked = False  # the PnP manager is asking: it need not be told to

    def concerns(self, path: bytes) -> bool:
        """Whether a change there may be news: not inside a class that the last scan saw."""
        _device, _, below = path.partition(b"/")
        name, inside, _key = below.partition(b"/")
        return not inside or name.decode("utf-8", "replace") not in self._listed

    def scan(self) -> None:
        """One pass: what `device` has against what there is.

        Not before the balloon was idle once: until then the bus' start is not over.
        """
        bus = self.bus
        if bus.balloon_thread is not None and bus.balloon_thread.waiting:
            return
        if not bus.is_running or not classes.is_enumerating(bus.registry):
            return
        try:
            self._listed = bus.store.directory("device")
        except StoreError:
            self._listed = []
        wanted = classes.wanted(bus.registry, self._listed)
        changed = self._lose(wanted)
        for name in wanted:
            if name not in self.pdos:
                self.pdos[name] = Pdo(bus, name)
                changed = True
        if changed:
            self.invalidate()

    def _lose(self, wanted: list[str]) -> bool:
        """Mark what is not wanted as missing; True if the PnP manager knows of any of it."""
        known = False
        for pdo in list(self.pdos.values()):
            if pdo.missing or pdo.name in wanted:
                continue
            self.bus.log(f"xenbus: {pdo.name}: device disappeared\n")
            if pdo.state is PnpState.PRESENT:
                pdo.delete("device disappeared")
                self.destroy(pdo)
            else:
                pdo.missing = "device disappeared"
                known = True
        return known

    def destroy(self, pdo: Pdo) -> None:
        """A deleted child is gone; the scan makes it again if its directory is there."""
        if self.pdos.get(pdo.name) is pdo:
            del self.pdos[pdo.name]
        self.task.wake()

    def query_relations(self) -> list[Pdo]:
        """QUERY_DEVICE_RELATIONS (BusRelations): a scan pass, then the children that are there."""
        self._asked = True
        try:
            self.scan()
        finally:
            self._asked = False
        return self._report()

    def _report(self) -> list[Pdo]:
        reported = []
        for pdo in list(self.pdos.values()):
            if pdo.state is PnpState.DELETED:
                self.destroy(pdo)
            elif not pdo.missing:
                reported.append(pdo)
                if pdo.state is PnpState.PRESENT:
                    pdo.life.enter(PnpState.ENUMERATED)
        return reported

    def invalidate(self) -> None:
        """IoInvalidateDeviceRelations: the PnP manager asks again and acts on the difference.

        Of a bus that stands in no tree it is done here: what is new and has a driver is
        started; what is not reported any more is removed, by surprise.
        """
        if self._asked:
            return
        if self.bus.stack is not None:
            self.bus.stack.invalidate()
            return
        fresh = [pdo for pdo in self.pdos.values() if pdo.state is PnpState.PRESENT]
        reported = self._report()
        for pdo in list(self.pdos.values()):
            if pdo not in reported and pdo.pending is None:
                pdo.request(Irp.SURPRISE_REMOVAL)
                pdo.request(Irp.REMOVE_DEVICE)
        for pdo in fresh:
            if pdo in reported and pdo.name in self.bus.drivers:
                pdo.request(Irp.START_DEVICE)

    def start_stopped(self) -> None:
        """The bus is in D0 again: so are those that were stopped with it."""
        for pdo in list(self.pdos.values()):
            if pdo.state is PnpState.STOPPED and pdo.name in self.bus.drivers:
                pdo.request(Irp.START_DEVICE)

    def lose_all(self, why: str) -> None:
        """The bus was pulled out."""
        for pdo in self.pdos.values():
            pdo.missing = pdo.missing or why

    def delete_all(self, why: str) -> None:
        """The bus is removed."""
        for pdo in list(self.pdos.values()):
            pdo.delete(why)
        self.pdos.clear()

    def rest(self, irp: Irp) -> None:
        """Ask every child to come to rest, by STOP_DEVICE or REMOVE_DEVICE."""
        for pdo in list(self.pdos.values()):
            pdo.request(irp)

    def poll(self, *, give_up: bool = False) -> list[str]:
        """Complete what can be; the names of those that wait still."""
        for pdo in list(self.pdos.values()):
            pdo.poll(give_up=give_up)
        return [pdo.name for pdo in self.pdos.values() if pdo.pending is not None]
