"""One domain as its own kernel sees it: hypercalls, tasks, upcalls, privilege.

Its pages are in xen.pages, its pause, shutdown and death in xen.life.

Guest drivers and dom0 drivers hold a `Domain` of their own and nothing else of the
hypervisor. What they share with the other end lies in frames, ports and the store.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL, ENOMEM
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from xenpv.abi._kernel import ffi, lib
from xenpv.errors import LocalProtocolError
from xenpv.xen.arena import PAGE_SIZE
from xenpv.xen.clock import Clock
from xenpv.xen.createdomain import CDF, CreateDomain
from xenpv.xen.evtchn import EventChannels
from xenpv.xen.gnttab import GRANT_FRAMES_MAX, MAPTRACK_FRAMES_MAX, GrantTable
from xenpv.xen.hvm import Hvm
from xenpv.xen.ioport import IoPorts
from xenpv.xen.life import Life, no_upcall
from xenpv.xen.loop import Loop, Task, Timer
from xenpv.xen.memory import (
    CONSOLE_PFN,
    HOLE_END_PFN,
    HOLE_FIRST_PFN,
    RAM_FIRST_PFN,
    SPECIAL_NR_PAGES,
    XENSTORE_PFN,
    PagePool,
)
from xenpv.xen.pages import Pages
from xenpv.xen.physmap import DOMID_SELF, Physmap, XENMAPSPACE_grant_table
from xenpv.xen.sched import Sched
from xenpv.xen.trace import Trace
from xenpv.xen.vcpu import Upcall, Vcpu
from xenpv.xen.vcpu_op import VcpuOp
from xenpv.xen.virq import GlobalVirqs

if TYPE_CHECKING:
    from xenpv.xen.domctl import Domctl
    from xenpv.xen.hypervisor import Hypervisor
    from xenpv.xen.version import XenVersion

__all__ = [
    "CONSOLE_PFN",
    "PAGE_SIZE",
    "RAM_FIRST_PFN",
    "SPECIAL_NR_PAGES",
    "XENSTORE_PFN",
    "Domain",
]

T = TypeVar("T", bound=Task)

CDF_HVM: Final = int(CDF.hvm)
# What knows the domain in its turn, or the machine.
PARTS: Final = ("memory", "hvm", "vcpu_op", "sched", "evtchn", "gnttab", "vcpu", "upcalls",
                "ioport", "global_virqs", "target", "_hypervisor")  # fmt: skip


class Domain(Pages, Life):
    """A domain: hypercalls raise HypercallError or GrantError as Xen would answer.

    `upcalls[vcpu]` are the tasks that the hypervisor wakes when a vcpu's upcall is due;
    the domain's kernel says what they run with `set_upcall`.
    """

    DOMID_SELF: Final = DOMID_SELF

    def __init__(
        self,
        hypervisor: Hypervisor,
        domid: int,
        unique_id: int,
        config: CreateDomain,
    ) -> None:
        self._hypervisor = hypervisor
        self.domid = domid
        self.unique_id = unique_id
        self.flags = config.flags
        self.is_hvm = bool(config.flags & CDF_HVM)
        self.translated = self.is_hvm  # paging_mode_translate; a PV domain has no physmap
        self.handle = config.handle
        self.max_vcpus = config.max_vcpus
        self.vcpus = 0  # until XEN_DOMCTL_max_vcpus
        self.processors = 0  # those that its kernel starts: set_processors
        self.is_32bit = config.has_32bit_shinfo
        self.max_grant_version = config.max_grant_version
        self.loop: Loop = hypervisor.loop
        self.machine = hypervisor.number
        self.trace: Trace = hypervisor.trace
        self.global_virqs: GlobalVirqs = hypervisor.global_virqs
        kernel = lib.domain_new(hypervisor.machine, domid, self.is_32bit)
        if kernel == ffi.NULL:
            raise MemoryError(f"no memory for domain {domid}")
        self.kernel: Any = ffi.gc(kernel, lib.domain_free)
        Life.__init__(self)
        self.target: Domain | None = None  # XEN_DOMCTL_set_target: it is that one's device model
        self.device_models = 0  # domains that have this one as their target
        self.max_pages = 0  # until XEN_DOMCTL_max_mem
        self.upcalls: list[Task] = []
        self._deliver: Callable[[int], bool] | None = None
        self.holes = PagePool(HOLE_FIRST_PFN, HOLE_END_PFN)
        self.pages = PagePool(RAM_FIRST_PFN, RAM_FIRST_PFN)
        self.memory = Physmap(self)
        self.hvm = Hvm(self)
        self.ioport = IoPorts(self)
        self.time_offset_seconds = 0
        self.tsc_offset = 0  # ticks, of its TSC from the machine's
        self.vcpu: list[Vcpu] = []
        self.vcpu_op = VcpuOp(self)
        self.sched = Sched(self)
        try:
            self._attach(config)
        except BaseException:
            lib.domain_release(self.kernel)
            raise

    def _attach(self, config: CreateDomain) -> None:
        """What takes memory of the machine, or tells of it: shared_info, the first grant frame."""
        self.rings = {}
        grants, maptrack = config.max_grant_frames, config.max_maptrack_frames
        if grants < 0:
            grants = GRANT_FRAMES_MAX
        if maptrack < 0:
            maptrack = MAPTRACK_FRAMES_MAX
        self.check(lib.domain_limits(self.kernel, 0, grants))
        self._shared_info = self.check(lib.domain_alloc_xen_frame(self.kernel))
        self.check(lib.evtchn_attach(self.kernel, self._shared_info, 0))
        self.publish_wallclock()
        self.evtchn = EventChannels(self, config.max_evtchn_port)
        self.gnttab = GrantTable(
            self,
            max_frames=grants,
            max_maptrack_frames=maptrack,
            max_version=config.max_grant_version,
        )

    def __repr__(self) -> str:
        return f"<Domain {self.domid}>"

    # memory

    def add_to_physmap_grant(self, index: int, pfn: int) -> None:
        """XENMEM_add_to_physmap, space 1: grant table frame `index` at `pfn`; grows the table."""
        self.memory.add_to_physmap(DOMID_SELF, XENMAPSPACE_grant_table, index, pfn)

    # vcpus and time

    def set_processors(self, count: int) -> None:
        """vcpu_online of hvm_info_table, a PV domain's cpu/I/availability: the first `count`.

        Its builder says so; without a word there are as many as vcpus.
        """
        self.processors = min(count, self.vcpus)

    def start_vcpus(self) -> None:
        """Bring up its processors, as the kernel of an HVM domain does on vcpu 0: INIT and SIPI."""
        for vcpu in self.vcpu[: self.processors]:
            vcpu.start()

    @property
    def clock(self) -> Clock:
        """The machine's clocks."""
        return self._hypervisor.clock

    def rdtsc(self) -> int:
        """The instruction: ticks of its TSC, which goes on where it was in a restored domain."""
        return (self.clock.rdtsc() + self.tsc_offset) & 0xFFFF_FFFF_FFFF_FFFF

    def publish_wallclock(self) -> None:
        """update_domain_wallclock_time: at creation, settimeoffset and settime64."""
        sec = (self.clock.wc_sec + self.time_offset_seconds) & 0xFFFF_FFFF_FFFF_FFFF
        self.check(lib.wallclock_update(self.kernel, sec, self.clock.wc_nsec))

    # tasks

    @overload
    def task(self, name: str, run: Callable[[], object]) -> Task: ...
    @overload
    def task(self, name: str, run: Callable[[], object], kind: type[T]) -> T: ...
    def task(self, name: str, run: Callable[[], object], kind: type[Task] = Task) -> Task:
        """Something of this domain that can be woken; it goes when the domain goes."""
        task = kind(self.loop, self.domid, name, run, self.machine)
        if self.dying:
            task.retire()
            return task
        if self.pause_count:
            task.hold()
        if self.is_shutting_down:
            task.hold()
        if self.is_quiesced:
            task.hold()
        self.tasks.append(task)
        return task

    def timer(self, task: Task, period_ns: int = 0) -> Timer:
        timer = Timer(self.loop, task, period_ns)
        self.timers.append(timer)
        return timer

    def forget(self, task: Task) -> None:
        """A task that will not be woken again (its device is closed), and its timers."""
        if task in self.tasks:
            self.tasks.remove(task)
        for timer in [one for one in self.timers if one.task is task]:
            timer.cancel()
            self.timers.remove(timer)
        task.retire()

    def forget_timer(self, timer: Timer) -> None:
        """A timer that will not be armed again, and the task that it wakes."""
        timer.cancel()
        if timer in self.timers:
            self.timers.remove(timer)
        self.forget(timer.task)

    def set_upcall(self, vcpu: int, run: Callable[[], object]) -> None:
        """What runs when events are pending for `vcpu` (HVMOP_set_evtchn_upcall_vector).

        It runs while that vcpu is up: start_vcpus.
        """
        self.vcpu[vcpu].upcall.run = run

    def set_deliver(self, deliver: Callable[[int], bool]) -> None:
        """How a waiting peer makes this domain handle one port now; see EventChannels.poll."""
        self._deliver = deliver

    @property
    def deliverer(self) -> Callable[[int], bool] | None:
        """What `set_deliver` was given."""
        return self._deliver

    def deliver(self, port: int) -> bool:
        stopped = self.pause_count or self.is_shutting_down or self.is_quiesced
        return self._deliver is not None and not stopped and self._deliver(port)

    def debugcons(self, data: bytes) -> None:
        """Bytes written to port 0xE9, one by one: Xen's console has them, line by line."""
        self._hypervisor.console.write(self.domid, data)

    # instructions that Xen or a device model answers

    @property
    def cpu_vendor(self) -> str:
        """Of the machine's processors: 12 characters of CPUID leaf 0."""
        return self._hypervisor.cpu_vendor

    def cpuid(self, leaf: int) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX, EDX; see xen.cpuid."""
        from xenpv.xen.cpuid import cpuid

        return cpuid(self, leaf)

    def io_read(self, port: int, size: int) -> int:
        """IN: a value of 1, 2 or 4 bytes; all ones where no device is. See xen.ioport."""
        return self.ioport.read(port, size)

    def io_write(self, port: int, size: int, value: int) -> None:
        """OUT: a value of 1, 2 or 4 bytes; lost where no device is."""
        self.ioport.write(port, size, value)

    # privilege

    @property
    def domctl(self) -> Domctl:
        """What only a control domain may call; each call is EPERM for every other."""
        from xenpv.xen.domctl import Domctl

        return Domctl(self._hypervisor, self)

    @property
    def xen(self) -> XenVersion:
        """The Xen below it."""
        return self._hypervisor.version

    @property
    def is_control(self) -> bool:
        """Whether it may do domctls and act on every domain; only domain 0 here."""
        return self.domid == 0

    def controls(self, other: Domain) -> bool:
        """Privileged over `other`: the control domain, or its device model (set_target).

        What a domain may do to itself is each operation's own rule (XSM of xen/include/xsm).
        """
        return self.is_control or other is self.target

    def find(self, domid: int) -> Domain | None:
        """The domain of that number, DOMID_SELF included; None if there is none.

        It may be dead: as long as something refers to it, its number names it.
        """
        return self if domid == self.DOMID_SELF else self._hypervisor.domains.get(domid)

    def hypercall(
        self, number: int, *arguments: int, vcpu: int = 0, wake: Task | None = None
    ) -> int:
        """A hypercall by its number, arguments in this domain's memory; see xen.hypercall."""
        from xenpv.xen.hypercall import hypercall

        return hypercall(self, number, *arguments, vcpu=vcpu, wake=wake)

    def xen_version(self, command: int, argument: int | None = None) -> int | bytes:
        """The hypercall; see version.xen_version."""
        from xenpv.xen.version import xen_version

        return xen_version(self, command, argument)

    def hvm_param(self, index: int) -> int:
        """HVMOP_get_param of its own."""
        return self.hvm.get_param(self.DOMID_SELF, index)

    # life (xen/common/domain.c)

    def set_vcpus(self, count: int) -> None:
        """XEN_DOMCTL_max_vcpus; EINVAL unless `count` is what createdomain was told; ENOMEM."""
        if count != self.max_vcpus:
            raise self._refused(EINVAL, f"created for {self.max_vcpus}", "max_vcpus", max=count)
        if self.vcpus:
            return  # they are there; Xen makes those that are missing
        attached = lib.vcpu_attach(self.kernel, count)
        if attached == -ENOMEM:
            raise self._refused(ENOMEM, "no memory for vcpu_info", "max_vcpus", max=count)
        self.check(attached)
        self.check(lib.evtchn_attach(self.kernel, self._shared_info, count))
        self.vcpus = self.processors = count
        self.make_vcpus()

    def make_vcpus(self) -> None:
        """As libxenguest leaves them: the first can run, the others wait for its kernel."""
        for number in range(self.vcpus):
            upcall = self.task(f"upcall{number}", no_upcall, Upcall)
            self.upcalls.append(upcall)
            self.vcpu.append(Vcpu(self, number, upcall))
        self.evtchn.callbacks_changed()

    def set_max_pages(self, count: int) -> None:
        """XEN_DOMCTL_max_mem, in pages."""
        self.check(lib.domain_set_max_pages(self.kernel, count))
        self.max_pages = count

    @property
    def tot_pages(self) -> int:
        """Pages it owns now."""
        return int(lib.domain_tot_pages(self.kernel))

    def close(self) -> None:
        """At the platform's end. Without parts it is no cycle: the last reference frees it."""
        self.rings.clear()
        for part in PARTS:
            delattr(self, part)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            """Only asked for what is not there."""
            if name in PARTS:
                raise LocalProtocolError("this platform is closed")
            raise AttributeError(name)

    def pinned(self) -> int:
        """Pages of this dead domain that others hold, by grant maps or foreign maps."""
        return int(lib.domain_shared_frames(self.kernel))

    def unpinned(self) -> None:
        """A page of this domain was unmapped elsewhere: if it is dead, perhaps the last."""
        if self.dead:
            self._hypervisor.vanish(self)

    def unmapped(self) -> None:
        """It let go of foreign pages: dead domains of which that was the last page vanish."""
        if lib.machine_take_drained(self._hypervisor.machine):
            for one in self._hypervisor.dead:
                one.unpinned()
