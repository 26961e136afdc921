"""What a domain had is gone when it is: frames, ports, handles, kernel and Python objects."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from errno import EFAULT

from xenpv.abi._kernel import lib
from xenpv.host.image import MemoryImage
from xenpv.platform import Disk, Platform, Vif
from xenpv.xen.domain import Domain
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import NS_PER_S, STALE_TIMERS_MAX, Loop

NR_DOMAINS = 1_000
NR_PLATFORMS = 500
HOLE = 0x100000


def live_objects() -> Counter[str]:
    """How many objects of ours, and of cffi's, the collector knows."""
    gc.collect()
    return Counter(type(one).__qualname__ for one in gc.get_objects() if _ours(type(one)))


def _ours(kind: type) -> bool:
    module = kind.__module__  # a descriptor in classes of other packages that hide it
    return isinstance(module, str) and (module.startswith("xenpv") or module == "_cffi_backend")


class Life:
    """dom0 and what it shares with each domain of a machine, one after the other."""

    def __init__(self) -> None:
        self.hypervisor = Hypervisor(Loop(seed=3), nr_frames=1 << 14)
        self.dom0 = self.hypervisor.create_domain(0, max_pages=1024)
        self.dom0.populate(64)
        self.dom0.unpause()
        self.dom0.write(0x100, 0, b"dom0's")
        self.refs: list[weakref.ref[object]] = []

    def one(self, number: int) -> None:
        dom0 = self.dom0
        guest = self.hypervisor.create_domain(vcpus=2, max_pages=64)
        guest.populate(32)
        guest.unpause()
        self.refs += (weakref.ref(guest), weakref.ref(guest.evtchn), weakref.ref(guest.gnttab))
        handle = self.share(guest)
        ring = guest.ring([0x102], 112, 16)
        lib.ring_init(ring)
        timer = guest.timer(guest.task("late", guest.evtchn.bound))
        timer.arm(1000 * NS_PER_S)
        guest.timer(guest.upcalls[0], NS_PER_S).arm(NS_PER_S)
        guest.start_vcpus()
        guest.vcpu_op.register_vcpu_info(1, 0x103, 64)
        guest.vcpu_op.register_runstate_phys_area(1, 0x103 << 12)
        guest.vcpu_op.register_vcpu_time_phys_area(0, 0x104 << 12)
        guest.vcpu_op.set_periodic_timer(1, NS_PER_S)
        guest.sched.set_timer_op(1000 * NS_PER_S)
        guest.sched.watchdog(0, 1000)
        guest.sched.block(0)
        guest.hvm.set_param(guest.domid, 2, number)
        if number % 2:
            guest.suspend(guest.upcalls[1])
        else:
            guest.upcalls[1].wake()
        dom0.domctl.destroydomain(guest.domid)
        dom0.gnttab.unmap(handle, HOLE)
        for port in range(1, 4):
            dom0.evtchn.close(port)

    def share(self, guest: Domain) -> int:
        """Ports of both makes, and a page mapped each way; the handle of dom0's map."""
        dom0 = self.dom0
        guest.write(0x101, 0, b"a guest's")
        for granter, domid, pfn in ((guest, 0, 0x101), (dom0, guest.domid, 0x100)):
            granter.check(lib.grant_entry_set(granter.kernel, 8, domid, pfn, 1))
        guest.gnttab.map(0, 8, HOLE)
        guest.evtchn.bind_interdomain(0, dom0.evtchn.alloc_unbound(guest.domid))
        dom0.evtchn.bind_interdomain(guest.domid, guest.evtchn.alloc_unbound(0))
        guest.evtchn.alloc_unbound(0)
        guest.evtchn.bind_virq(0, 1)
        guest.evtchn.bind_ipi(0)
        dom0.evtchn.alloc_unbound(guest.domid)
        guest.evtchn.send(1)
        return dom0.gnttab.map(guest.domid, 8, HOLE)


def test_1000_domains_leave_nothing_behind() -> None:
    life = Life()
    for number in range(10):
        life.one(number)
    objects = live_objects()
    machine = life.hypervisor.machine
    used, free = lib.machine_used_frames(machine), lib.machine_free_pages(machine)
    life.refs.clear()
    for number in range(NR_DOMAINS):
        life.one(number)
    assert list(life.hypervisor.domains) == [0]
    assert lib.machine_used_frames(machine) == used
    assert lib.machine_free_pages(machine) == free
    assert life.dom0.evtchn.bound() == 0
    assert life.dom0.gnttab.maptrack == {}
    assert life.dom0.gnttab.pinned() == 0
    assert [task for task in life.hypervisor.loop.ready if task.domid] == []
    gc.collect()
    assert [ref for ref in life.refs if ref() is not None] == []
    life.refs.clear()
    # Timers that were cancelled may wait in the loop's queue, but not for ever more.
    grown = live_objects() - objects
    assert grown.pop("Timer", 0) <= 2 * STALE_TIMERS_MAX
    for kind in ("Task", "Upcall", "Softirq"):
        assert grown.pop(kind, 0) <= 2 * STALE_TIMERS_MAX
    assert not grown, grown
    assert life.hypervisor.close()


def test_a_dead_domain_is_freed_with_the_machine_that_still_maps_it() -> None:
    life = Life()
    guest = life.hypervisor.create_domain(vcpus=2, max_pages=64)
    guest.populate(32)
    life.share(guest)
    kept = weakref.ref(guest)
    life.dom0.domctl.destroydomain(guest.domid)
    assert life.hypervisor.dead == [guest]
    assert life.hypervisor.close()
    del guest
    gc.collect()
    assert kept() is None


def test_a_ring_keeps_the_domain_that_it_points_to() -> None:
    life = Life()
    guest = life.hypervisor.create_domain(max_pages=64)
    guest.populate(32)
    ring = guest.ring([0x102], 112, 16)
    kept = weakref.ref(guest)
    life.dom0.domctl.destroydomain(guest.domid)
    assert life.hypervisor.close()
    del guest, life
    gc.collect()
    assert kept() is not None
    assert lib.front_push(ring, bytes(112), 1, 112) == -EFAULT
    del ring
    gc.collect()
    assert kept() is None


def test_500_platforms_leave_nothing_behind() -> None:
    def platform(seed: int) -> weakref.ref[Platform]:
        with Platform(seed=seed) as xen:
            guest = xen.create(
                name="g", disks=[Disk(MemoryImage(bytes(1 << 16)))], vifs=[Vif()], memory_mib=16
            )
            guest.start()
            return weakref.ref(xen)

    for seed in range(3):
        platform(seed)
    objects = live_objects()
    refs = [platform(seed) for seed in range(NR_PLATFORMS)]
    gc.collect()
    assert [ref for ref in refs if ref() is not None] == []
    del refs
    grown = live_objects() - objects
    assert not grown, grown
