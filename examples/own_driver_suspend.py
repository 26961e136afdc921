# ruff: noqa: INP001 - a script, in no package
"""A class driver of your own in a guest, and what it owes after a suspend.

python examples/own_driver_suspend.py

It grants dom0 a page with a number in it, listens on an event channel and watches a node of the
store. All three are void in a new domain: the late callback of SUSPEND makes them anew. After
a suspend that was cancelled no callback runs, and everything goes on.
"""

from __future__ import annotations

from xenpv import Guest, Platform
from xenpv.bus.evtchn import Channel
from xenpv.bus.store import Watch
from xenpv.bus.suspend import SuspendCallback
from xenpv.bus.xenbus import XenBus

CLASSES = "Services\\XENBUS\\Parameters"


class Beat:
    """The driver of class BEAT. Its fields are plain data: it can be saved and migrated."""

    def __init__(self, bus: XenBus) -> None:
        self.bus = bus
        self.beats = 0
        self.resumes = 0
        self.orders: list[str] = []
        self.pfn = 0
        self.ref = -1
        self.channel: Channel | None = None
        self.watch: Watch | None = None
        self.callbacks: list[SuspendCallback] | None = None
        self.task = bus.domain.task("beat", self.look)

    @property
    def stopped(self) -> bool:
        return self.callbacks is None

    def start(self) -> None:
        """To D0: at boot, and back from S3."""
        self.callbacks = self.bus.acquire_suspend("BEAT", None, self.resumed)
        self.pfn = self.bus.domain.pages.alloc()
        self.connect()

    def connect(self) -> None:
        """What a new domain has not: a reference, a port, a watch, and the keys that tell."""
        bus = self.bus
        self.ref = bus.gnttab.permit_foreign_access(0, self.pfn, readonly=True)
        self.channel = bus.evtchn.open_unbound(0, self.beat)
        bus.evtchn.unmask(self.channel, force=True)
        self.watch = bus.store.watch_add("data/order", self.task)
        bus.store.write("data/beat", f"{self.ref} {self.channel.port}")

    def disconnect(self) -> None:
        """As good in the domain that it was as in a new one: a watch that expired costs no
        request, a port that is lost no hypercall. A page that dom0 has mapped still is GNTTAB's
        to wait for; a new one takes its place.
        """
        bus = self.bus
        if self.watch is not None:
            bus.store.watch_remove(self.watch)
        if self.channel is not None:
            bus.evtchn.close(self.channel)
        if not bus.gnttab.revoke_foreign_access(self.ref):
            bus.gnttab.defer([(self.ref, self.pfn)])
            self.pfn = bus.domain.pages.alloc()

    def resumed(self) -> None:
        """Late, in a new domain or one that is resumed as if it were new. XENBUS' interfaces
        work again; other drivers may come after this one.
        """
        self.resumes += 1
        self.disconnect()
        self.connect()

    def stop(self) -> None:
        """To D3: for S3, a shutdown, a removal. Nothing may be left: the bus counts."""
        if self.stopped:
            return
        self.disconnect()
        self.bus.domain.pages.free(self.pfn)
        self.bus.release_suspend(self.callbacks)
        self.callbacks = None

    def remove(self) -> None:
        """REMOVE_DEVICE, after `stop`: nothing of it runs any more."""
        self.bus.domain.forget(self.task)

    def beat(self) -> None:
        """An event of dom0."""
        self.beats += 1
        self.bus.domain.write(self.pfn, 0, self.beats.to_bytes(4, "little"))

    def look(self) -> None:
        """The watch fired: at its registration too, so what is there may be old."""
        order = self.bus.store.get("data/order")
        if order and order not in self.orders:
            self.orders.append(order)


def driver(guest: Guest) -> Beat:
    assert guest.bus is not None
    found = guest.bus.pdos["BEAT"].driver
    assert isinstance(found, Beat)
    return found


def ask(xen: Platform, guest: Guest) -> int:
    """dom0's end: notify, then read the page; the number in it."""
    ref, port = map(
        int, (xen.toolstack.xs.read(f"/local/domain/{guest.domid}/data/beat") or "").split()
    )
    local = xen.dom0.evtchn.bind_interdomain(guest.domid, port)
    xen.dom0.evtchn.send(local)
    xen.run()
    xen.dom0.evtchn.close(local)
    hole = xen.dom0.holes.alloc()
    handle = xen.dom0.gnttab.map(guest.domid, ref, hole, readonly=True)
    number = xen.dom0.load32(hole, 0)
    xen.dom0.gnttab.unmap(handle, hole)
    xen.dom0.holes.free(hole)
    return number


def main() -> None:
    """Cancelled, new, asleep, rebooted: it answers after each."""
    with Platform(seed=1) as xen:
        guest = xen.create(name="own")
        guest.drivers["BEAT"] = Beat
        for name in ("SupportedClasses", "SyntheticClasses"):
            classes = guest.registry.strings(CLASSES, name) or ()
            guest.registry.set(CLASSES, name, (*classes, "BEAT"))
        guest.start()
        print("booted:", ask(xen, guest))
        guest.suspend()
        guest.resume()
        print("suspend cancelled:", ask(xen, guest), "- resumes", driver(guest).resumes)
        guest.suspend()
        guest.resume(fast=False)
        print("resumed as new:", ask(xen, guest), "- resumes", driver(guest).resumes)
        assert guest.bus is not None
        guest.bus.sleep()
        xen.run()
        guest.bus.wake()
        xen.run()
        print("asleep and back:", ask(xen, guest))
        xen.toolstack.xs.write(f"/local/domain/{guest.domid}/data/order", "more")
        xen.run()
        print("ordered:", *driver(guest).orders)
        guest.reboot()
        print("rebooted:", ask(xen, guest), "- a new driver, it counts from 0")
        guest.shutdown()


if __name__ == "__main__":
    main()
