"""One domain as its own kernel sees it: memory, hypercalls, upcalls.

Guest drivers and dom0 drivers hold a `Domain` of their own and nothing else of the
hypervisor. What they share with the other end lies in frames, ports and the store.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from errno import EFAULT, EINVAL, ENOMEM, EOVERFLOW
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from xenpv.abi._kernel import ffi, lib
from xenpv.abi.sched import SHUTDOWN
from xenpv.errors import HypercallError, LocalProtocolError, PeerProtocolError
from xenpv.xen.clock import Clock
from xenpv.xen.domctl import CDF, CreateDomain, Domctl
from xenpv.xen.evtchn import EventChannels
from xenpv.xen.gnttab import GRANT_FRAMES_MAX, MAPTRACK_FRAMES_MAX, GrantTable
from xenpv.xen.hvm import Hvm
from xenpv.xen.loop import Loop, Task, Timer
from xenpv.xen.memory import PagePool
from xenpv.xen.physmap import DOMID_SELF, Physmap, XENMAPSPACE_grant_table
from xenpv.xen.sched import Sched
from xenpv.xen.trace import Event, Trace
from xenpv.xen.vcpu import Upcall, Vcpu
from xenpv.xen.vcpu_op import VcpuOp
from xenpv.xen.version import XenVersion, xen_version
from xenpv.xen.virq import GlobalVirqs

if TYPE_CHECKING:
    from xenpv.xen.hypervisor import Hypervisor

T = TypeVar("T", bound=Task)

PAGE_SIZE: Final = 4096

# Where a domain's kernel finds room: RAM from 1 MiB, then Xen's special pages of an HVM
# guest (X86_HVM_END_SPECIAL_REGION 0xff000), then holes for what is mapped from elsewhere.
RAM_FIRST_PFN: Final = 0x100
SPECIAL_FIRST_PFN: Final = 0xFEFF8
SPECIAL_NR_PAGES: Final = 8
XENSTORE_PFN: Final = SPECIAL_FIRST_PFN + 4
CONSOLE_PFN: Final = SPECIAL_FIRST_PFN + 7
HOLE_FIRST_PFN: Final = 0x100000
HOLE_END_PFN: Final = 0x200000

CDF_HVM: Final = int(CDF.hvm)
# What knows the domain in its turn, or the machine.
PARTS: Final = ("memory", "hvm", "vcpu_op", "sched", "evtchn", "gnttab", "vcpu", "upcalls",
                "global_virqs", "target", "_hypervisor")  # fmt: skip
PAUSE_COUNT_MAX: Final = 255  # so that a toolstack cannot overflow Xen's own count


class Domain:
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
        self.is_32bit = config.has_32bit_shinfo
        self.max_grant_version = config.max_grant_version
        self.loop: Loop = hypervisor.loop
        self.trace: Trace = hypervisor.loop.trace
        self.global_virqs: GlobalVirqs = hypervisor.global_virqs
        kernel = lib.domain_new(hypervisor.machine, domid, self.is_32bit)
        if kernel == ffi.NULL:
            raise MemoryError(f"no memory for domain {domid}")
        self.kernel: Any = ffi.gc(kernel, lib.domain_free)
        self.dying = False
        self.dead = False
        self.pause_count = 0
        self.creation_finished = False
        self.shutdown_code: int | None = None
        self.is_shutting_down = False
        self.is_shutdown = False
        self.suspend_evtchn = 0  # XEN_DOMCTL_subscribe
        self.suspend_result = 0
        self._suspended: Task | None = None
        self._deferring: list[int] = []
        self.target: Domain | None = None  # XEN_DOMCTL_set_target: it is that one's device model
        self.device_models = 0  # domains that have this one as their target
        self.max_pages = 0  # until XEN_DOMCTL_max_mem
        self.tasks: list[Task] = []
        self.timers: list[Timer] = []
        self.upcalls: list[Task] = []
        self._deliver: Callable[[int], bool] | None = None
        self.holes = PagePool(HOLE_FIRST_PFN, HOLE_END_PFN)
        self.pages = PagePool(RAM_FIRST_PFN, RAM_FIRST_PFN)
        self.memory = Physmap(self)
        self.hvm = Hvm(self)
        self.time_offset_seconds = 0
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
        # Every ring handle that lives, and what it is over: how the test kit finds the rings.
        self.rings: dict[weakref.ref[Any], tuple[tuple[int, ...], int, int]] = {}
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

    def populate(self, nr_pages: int) -> None:
        """RAM of `nr_pages` from RAM_FIRST_PFN, at creation; HypercallError(ENOMEM) if short."""
        done = self.check(lib.domain_populate(self.kernel, RAM_FIRST_PFN, nr_pages))
        if done != nr_pages:
            raise HypercallError(
                ENOMEM,
                f"{done} of {nr_pages} pages: the machine or max_pages has no more",
                operation="XENMEM_populate_physmap",
                arguments={"domid": self.domid, "nr_extents": nr_pages},
            )
        self.pages = PagePool(RAM_FIRST_PFN, RAM_FIRST_PFN + nr_pages)

    def populate_special(self) -> None:
        """The pages between a guest and its store, console and device model."""
        self.check(lib.domain_populate(self.kernel, SPECIAL_FIRST_PFN, SPECIAL_NR_PAGES))

    def read(self, pfn: int, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` of page `pfn` on, running on into following pages."""
        out = bytearray(size)
        done = lib.page_read(self.kernel, pfn, offset, ffi.from_buffer(out), size)
        if done < 0:
            self.fail(done, f"read of {size} bytes at pfn {pfn:#x}+{offset:#x}")
        return bytes(out)

    def write(self, pfn: int, offset: int, data: bytes | bytearray | memoryview) -> None:
        done = lib.page_write(self.kernel, pfn, offset, ffi.from_buffer(data), len(data))
        if done < 0:
            self.fail(done, f"write of {len(data)} bytes at pfn {pfn:#x}+{offset:#x}")

    def load32(self, pfn: int, offset: int) -> int:
        """One aligned u32, read once."""
        value = lib.page_load32(self.kernel, pfn, offset)
        if value < 0:
            self.fail(value, f"load at pfn {pfn:#x}+{offset:#x}")
        return int(value)

    def store32(self, pfn: int, offset: int, value: int) -> None:
        done = lib.page_store32(self.kernel, pfn, offset, value)
        if done < 0:
            self.fail(done, f"store at pfn {pfn:#x}+{offset:#x}")

    def view(self, pfn: int) -> memoryview:
        """The page itself; read-only if it is a read-only grant.

        Accesses through it bypass the hook. An arena with live views is not used again.
        """
        frame = self.check(lib.p2m_lookup(self.kernel, pfn, 1))
        start = frame * PAGE_SIZE
        page = memoryview(self._hypervisor.arena.views)[start : start + PAGE_SIZE]
        readonly = lib.p2m_type(self.kernel, pfn) == lib.P2M_GRANT_RO
        return page.toreadonly() if readonly else page

    def gather(self, pieces: Sequence[int], size: int) -> bytes:
        """The bytes of pieces, given flat as pfn, offset, size, pfn, offset, size, ..."""
        out = bytearray(size)
        count = len(pieces) // 3
        done = lib.page_gather(self.kernel, pieces, count, ffi.from_buffer(out), size)
        if done < 0:
            self.fail(done, f"gather of {count} pieces")
        return bytes(out)

    def scatter(self, pieces: Sequence[int], data: bytes | bytearray | memoryview) -> None:
        """`data` into pieces, given as for `gather`."""
        count = len(pieces) // 3
        done = lib.page_scatter(self.kernel, pieces, count, ffi.from_buffer(data), len(data))
        if done < 0:
            self.fail(done, f"scatter of {count} pieces")

    def ring(self, pfns: Sequence[int], entry_size: int, rsp_size: int) -> Any:
        """The kernel's handle on a ring in pages of this domain, in order.

        Freed with the last reference; HypercallError(EFAULT) if a page is not there.
        """
        handle = lib.ring_attach(self.kernel, list(pfns), len(pfns), entry_size, rsp_size)
        if handle == ffi.NULL:
            raise HypercallError(EFAULT, f"a ring of {entry_size}-byte entries at {list(pfns)}")
        # Not lib.ring_detach itself: the handle has a pointer to this domain and must keep it.
        handle = ffi.gc(handle, self._detach)
        self.rings[weakref.ref(handle, self.rings.pop)] = (tuple(pfns), entry_size, rsp_size)
        return handle

    def _detach(self, ring: Any) -> None:
        lib.ring_detach(ring)

    def add_to_physmap_grant(self, index: int, pfn: int) -> None:
        """XENMEM_add_to_physmap, space 1: grant table frame `index` at `pfn`; grows the table."""
        self.memory.add_to_physmap(DOMID_SELF, XENMAPSPACE_grant_table, index, pfn)

    # vcpus and time

    def start_vcpus(self) -> None:
        """Bring up every vcpu, as the kernel of an HVM domain does on vcpu 0: INIT and SIPI."""
        for vcpu in self.vcpu:
            vcpu.start()

    def reschedule(self) -> None:
        """What decides whether vcpus run has changed: pause count, shutdown, death."""
        for vcpu in self.vcpu:
            vcpu.reschedule()

    @property
    def clock(self) -> Clock:
        """The machine's clocks."""
        return self._hypervisor.clock

    def rdtsc(self) -> int:
        """The instruction: ticks of the machine's TSC."""
        return self.clock.rdtsc()

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
        task = kind(self.loop, self.domid, name, run)
        if self.dying:
            task.retire()
            return task
        if self.pause_count:
            task.hold()
        if self.is_shutting_down:
            task.hold()
        self.tasks.append(task)
        return task

    def timer(self, task: Task, period_ns: int = 0) -> Timer:
        timer = Timer(self.loop, task, period_ns)
        self.timers.append(timer)
        return timer

    def forget(self, task: Task) -> None:
        """A task that will not be woken again (its device is closed)."""
        if task in self.tasks:
            self.tasks.remove(task)
        if task.alarm is not None:
            task.alarm.cancel()
            self.timers.remove(task.alarm)
        task.retire()

    def set_upcall(self, vcpu: int, run: Callable[[], object]) -> None:
        """What runs when events are pending for `vcpu` (HVMOP_set_evtchn_upcall_vector).

        It runs while that vcpu is up: start_vcpus.
        """
        self.vcpu[vcpu].upcall.run = run

    def set_deliver(self, deliver: Callable[[int], bool]) -> None:
        """How a waiting peer makes this domain handle one port now; see EventChannels.poll."""
        self._deliver = deliver

    def deliver(self, port: int) -> bool:
        stopped = self.pause_count or self.is_shutting_down
        return self._deliver is not None and not stopped and self._deliver(port)

    # privilege

    @property
    def domctl(self) -> Domctl:
        """What only a control domain may call; each call is EPERM for every other."""
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
        self.vcpus = count
        for number in range(count):
            upcall = self.task(f"upcall{number}", _no_upcall, Upcall)
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

    def pause(self) -> None:
        """XEN_DOMCTL_pausedomain; counts nest, EOVERFLOW above 255."""
        if self.pause_count == PAUSE_COUNT_MAX:
            raise self._refused(EOVERFLOW, f"paused {PAUSE_COUNT_MAX} times", "pausedomain")
        self.pause_count += 1
        if self.pause_count == 1:
            for task in self.tasks:
                task.hold()
            self.reschedule()

    def unpause(self) -> None:
        """XEN_DOMCTL_unpausedomain; EINVAL if it is not paused. The first ends creation."""
        if not self.pause_count:
            raise self._refused(EINVAL, "it is not paused", "unpausedomain")
        self.pause_count -= 1
        if not self.pause_count:
            self.creation_finished = True
            self.reschedule()
            for task in self.tasks:
                task.release()

    def latch_shutdown_code(self, reason: int) -> None:
        """SCHEDOP_shutdown_code: the low 8 bits, if no code is latched."""
        if self.shutdown_code is None:
            self.shutdown_code = reason & 0xFF

    def shutdown(self, reason: int) -> None:
        """SCHEDOP_shutdown: the first reason latches, every vcpu stops, then DOM_EXC.

        Timers stop too and go on at resume. It is complete when no vcpu defers it.
        """
        self.latch_shutdown_code(reason)
        if self.is_shutting_down:
            return
        self.is_shutting_down = True
        if self.shutdown_code == SHUTDOWN.crash:
            self._deferring.clear()
        for task in self.tasks:
            task.hold()
        for timer in self.timers:
            timer.freeze()
        self.reschedule()
        self._finish_shutdown()

    def _finish_shutdown(self) -> None:
        if self._deferring or self.is_shutdown:
            return
        self.is_shutdown = True
        code = self.shutdown_code
        assert code is not None
        self.trace.record(Event.DOMAIN, self.domid, 2, code)
        if code != SHUTDOWN.suspend or not self.suspend_evtchn:
            self._hypervisor.raise_dom_exc(self.domid)
            return
        self._hypervisor.note_change(self.domid)
        try:
            self.evtchn.send(self.suspend_evtchn)
        except HypercallError:
            return  # Xen does not look at it either: the toolstack waits in vain

    def start_shutdown_deferral(self, vcpu: int) -> bool:
        """A vcpu's I/O is at its device model: a shutdown waits for it. False if it came first."""
        if self.is_shutting_down:
            return False
        if vcpu not in self._deferring:
            self._deferring.append(vcpu)
        return True

    def end_shutdown_deferral(self, vcpu: int) -> None:
        """The vcpu's I/O is complete, and with it perhaps the shutdown."""
        if vcpu in self._deferring:
            self._deferring.remove(vcpu)
        if self.is_shutting_down:
            self._finish_shutdown()

    def crash(self, why: str) -> None:
        """domain_crash(): SHUTDOWN_crash, unless it is going down already."""
        if not self.is_shutting_down:
            self.trace.note(self.domid, f"domain crash: {why}")
        self.shutdown(SHUTDOWN.crash)

    def suspend(self, waiter: Task) -> None:
        """SCHEDOP_shutdown(suspend), a call that returns when the domain is resumed.

        `waiter` is woken then, and `suspend_result` is what the call returned: 0 after an
        uncooperative resume, 1 if the toolstack set the return register first (cancelled).
        In a domain restored from the image it is 0, and whoever restores wakes the waiter.
        """
        self._suspended = waiter
        self.suspend_result = 0
        self.shutdown(SHUTDOWN.suspend)

    def resume(self) -> None:
        """XEN_DOMCTL_resumedomain: the code is forgotten, vcpus and timers go on."""
        self.shutdown_code = None
        if not self.is_shutting_down:
            return
        self.is_shutting_down = self.is_shutdown = False
        self.trace.record(Event.DOMAIN, self.domid, 4)
        self.reschedule()
        for task in self.tasks:
            task.release()
        for timer in self.timers:
            timer.thaw()
        waiter, self._suspended = self._suspended, None
        if waiter is not None:
            waiter.wake()

    def stop(self) -> None:
        """At its death: nothing of it runs again, and nothing that ran is held on to."""
        for vcpu in self.vcpu:
            vcpu.destroy()
        self.sched.destroy()
        for timer in self.timers:
            timer.cancel()
        for task in self.tasks:
            task.retire()
            task.run = _no_upcall
        self.timers.clear()
        self.tasks.clear()
        self._suspended = None
        self._deliver = None

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

    # failures

    def _refused(self, errno: int, reason: str, name: str, **arguments: int) -> HypercallError:
        operation = f"XEN_DOMCTL_{name}"
        given = {"domain": self.domid, **arguments}
        return HypercallError(errno, reason, operation=operation, arguments=given)

    def check(self, result: int) -> int:
        """A kernel result, or the exception that it stands for."""
        if result < 0:
            self.fail(result, "")
        return result

    def fail(self, result: int, what: str) -> None:
        """Raise what a negative kernel result stands for."""
        if result == lib.KERNEL_E_ABORTED:
            self._hypervisor.raise_from_hook()
        if result == lib.KERNEL_E_OVERFLOW:
            raise PeerProtocolError(f"{what}: the peer's index runs past the ring")
        if result == lib.KERNEL_E_FORKED:
            raise LocalProtocolError(
                "this platform belongs to the parent process: make one after the fork"
            )
        raise HypercallError(-result, what)

    def fail_unless_gntst(self, status: int) -> None:
        """Kernel codes beyond the GNTST_ range are no grant status: raise them."""
        if status <= lib.KERNEL_E_FORKED:
            self.fail(status, "grant operation")


def _no_upcall() -> None:
    """A vcpu without a kernel takes no upcall; its pending bits stay set."""
