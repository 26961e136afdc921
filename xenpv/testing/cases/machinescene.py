"""A hypervisor under test: domains that make hypercalls by number and look at their own pages.

Nothing here knows how the model keeps its ports and grants: structures go through guest memory,
what happened is read in shared_info, in event words and in grant tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from xenpv.abi._kernel import ffi, lib
from xenpv.errors import HypercallError
from xenpv.testing.cases.claims import expect
from xenpv.testing.cases.suite import Factory, Skip
from xenpv.xen.domain import RAM_FIRST_PFN, Domain
from xenpv.xen.guest_access import GuestMemory
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop, Task

NR_FRAMES: Final = 1 << 13
NR_PAGES: Final = 256
SELF: Final = 0x7FF0
NOBODY: Final = 999  # a domid of no domain
# Below RAM, where nothing else is: pages that a case has Xen put there.
SHARED_INFO_PFN: Final = 0x80
GRANTS_PFN: Final = 0x90
STATUS_PFN: Final = 0xB0
# Above it: where a case maps what others grant.
HOLE_PFN: Final = 0x10_0000

MEMORY_OP, GRANT_TABLE_OP, SCHED_OP, EVENT_CHANNEL_OP = 12, 20, 29, 32
ADD_TO_PHYSMAP, REMOVE_FROM_PHYSMAP, DECREASE_RESERVATION = 7, 15, 1
SCHEDOP_POLL: Final = 3
SPACE_SHARED_INFO, SPACE_GRANT_TABLE = 0, 1
STATUS_FRAME: Final = 1 << 31  # of an index into the grant table: a status frame

Access = Callable[[int, int, int, int, int], None]


class Machine:
    """One domain: `arg` is where its structures are passed, `page(n)` pages that are its own."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.memory = GuestMemory(domain)
        self.arg = RAM_FIRST_PFN << 12
        self.list = RAM_FIRST_PFN + 1 << 12
        self.word = 4 if domain.is_32bit else 8
        self.add_to_physmap(SPACE_SHARED_INFO, 0, SHARED_INFO_PFN)
        self.sleeper: Task | None = None

    @property
    def domid(self) -> int:
        return self.domain.domid

    def page(self, number: int) -> int:
        """The pfn of one of its pages of RAM; 16 and up are the case's."""
        return RAM_FIRST_PFN + 16 + number

    # hypercalls

    def call(self, number: int, *arguments: int, **named: Any) -> int | str:
        """Its result, or the name of the errno."""
        done = self.domain.hypercall(number, *arguments, **named)
        return done if done >= 0 else HypercallError(-done).name

    def pass_structs(self, name: str, ops: Any) -> int:
        """Into its memory; the address."""
        self.memory.store(name, self.arg, ops)
        return self.arg

    def struct(self, name: str, **fields: Any) -> Any:
        """One, with `a__b` for a field of a field."""
        ops = ffi.new(f"struct {name}[1]")
        for path, value in fields.items():
            *outer, last = path.split("__")
            at = ops[0]
            for step in outer:
                at = getattr(at, step)
            setattr(at, last, value)
        return ops

    def event_op(self, cmd: int, name: str, *, out: str = "", **fields: Any) -> int | str:
        """EVTCHNOP_*: the field `out` of the answer, 0 without one, or the errno's name."""
        address = self.pass_structs(name, self.struct(name, **fields))
        done = self.call(EVENT_CHANNEL_OP, cmd, address)
        if done != 0 or not out:
            return done
        return int(getattr(self.memory.load(name, address)[0], out))

    def add_to_physmap(self, space: int, index: int, pfn: int) -> int | str:
        name = "xen_add_to_physmap"
        ops = self.struct(name, domid=SELF, space=space, idx=index, gpfn=pfn)
        return self.call(MEMORY_OP, ADD_TO_PHYSMAP, self.pass_structs(name, ops))

    def poll(self, ports: list[int], count: int | None = None) -> int | str:
        """SCHEDOP_poll without a timeout; "sleeps" if it would wait."""
        self.memory.write(self.list, b"".join(port.to_bytes(4, "little") for port in ports))
        if self.sleeper is None:
            self.sleeper = self.domain.task("case", _nothing)
        count = len(ports) if count is None else count
        ops = self.struct("sched_poll", ports=self.list, nr_ports=count, timeout=0)
        address = self.pass_structs("sched_poll", ops)
        return self.call(SCHED_OP, SCHEDOP_POLL, address, wake=self.sleeper)

    # event channels

    def alloc_unbound(self, remote: int, dom: int = SELF) -> int | str:
        return self.event_op(6, "evtchn_alloc_unbound", out="port", dom=dom, remote_dom=remote)

    def bind_interdomain(self, remote: int, port: int) -> int | str:
        return self.event_op(
            0, "evtchn_bind_interdomain", out="local_port", remote_dom=remote, remote_port=port
        )

    def bind_virq(self, virq: int, vcpu: int = 0) -> int | str:
        return self.event_op(1, "evtchn_bind_virq", out="port", virq=virq, vcpu=vcpu)

    def bind_ipi(self, vcpu: int) -> int | str:
        return self.event_op(7, "evtchn_bind_ipi", out="port", vcpu=vcpu)

    def close(self, port: int) -> int | str:
        return self.event_op(3, "evtchn_close", port=port)

    def send(self, port: int) -> int | str:
        return self.event_op(4, "evtchn_send", port=port)

    def bind_vcpu(self, port: int, vcpu: int) -> int | str:
        return self.event_op(8, "evtchn_bind_vcpu", port=port, vcpu=vcpu)

    def unmask(self, port: int) -> int | str:
        return self.event_op(9, "evtchn_unmask", port=port)

    def reset(self, dom: int = SELF) -> int | str:
        return self.event_op(10, "evtchn_reset", dom=dom)

    def init_control(self, pfn: int, offset: int, vcpu: int) -> int | str:
        """link_bits: 17."""
        name = "evtchn_init_control"
        return self.event_op(11, name, out="link_bits", control_gfn=pfn, offset=offset, vcpu=vcpu)

    def expand_array(self, pfn: int) -> int | str:
        return self.event_op(12, "evtchn_expand_array", array_gfn=pfn)

    def set_priority(self, port: int, priority: int) -> int | str:
        return self.event_op(13, "evtchn_set_priority", port=port, priority=priority)

    def status(self, port: int, dom: int = SELF) -> int | str:
        """EVTCHNSTAT_*."""
        return self.event_op(5, "evtchn_status", out="status", dom=dom, port=port)

    def peer(self, port: int) -> tuple[int, int]:
        """(domid, port) at the other end of an interdomain port, as its status says."""
        self.status(port)
        op = self.memory.load("evtchn_status", self.arg)[0]
        return int(op.u.interdomain.dom), int(op.u.interdomain.port)

    # shared_info of the 2-level ABI (public/xen.h, arch-x86)

    def _bit(self, base: int, port: int) -> bool:
        at = base + port // 8
        return bool(self.domain.read(SHARED_INFO_PFN, at, 1)[0] >> port % 8 & 1)

    def _set_bit(self, base: int, port: int, value: bool) -> None:
        at, mask = base + port // 8, 1 << port % 8
        old = self.domain.read(SHARED_INFO_PFN, at, 1)[0]
        self.domain.write(SHARED_INFO_PFN, at, bytes([old | mask if value else old & ~mask]))

    @property
    def _mask_base(self) -> int:
        return 0x880 if self.domain.is_32bit else 0xA00

    def pending(self, port: int) -> bool:
        return self._bit(0x800, port)

    def set_pending(self, port: int, value: bool) -> None:
        self._set_bit(0x800, port, value)

    def set_mask(self, port: int, value: bool) -> None:
        self._set_bit(self._mask_base, port, value)

    def selector(self, vcpu: int = 0) -> int:
        at = 64 * vcpu + self.word
        return int.from_bytes(self.domain.read(SHARED_INFO_PFN, at, self.word), "little")

    def upcall(self, vcpu: int = 0) -> bool:
        """vcpu_info.evtchn_upcall_pending."""
        return bool(self.domain.read(SHARED_INFO_PFN, 64 * vcpu, 1)[0])

    def take(self, *ports: int, vcpu: int = 0) -> None:
        """As a kernel that was interrupted: the upcall, its selector, these pending bits."""
        self.domain.write(SHARED_INFO_PFN, 64 * vcpu, b"\0")
        self.domain.write(SHARED_INFO_PFN, 64 * vcpu + self.word, bytes(self.word))
        for port in ports:
            self.set_pending(port, False)

    def unmask_all(self) -> None:
        self.domain.write(SHARED_INFO_PFN, self._mask_base, bytes(512 if self.word == 8 else 128))

    # grant tables

    def grant_op(self, cmd: int, name: str, ops: Any) -> Any:
        """GNTTABOP_*: the structures as they are afterwards, or the errno's name."""
        done = self.call(GRANT_TABLE_OP, cmd, self.pass_structs(name, ops), len(ops))
        return done if done != 0 else self.memory.load(name, self.arg, len(ops))


def _nothing() -> None:
    """Of a vcpu that sleeps in SCHEDOP_poll."""


class MachineScene:
    """dom0, an unprivileged `guest` of two vcpus and an `other`; each is a Machine."""

    features: tuple[str, ...] = ()

    def __init__(self, factory: Factory | None, seed: int) -> None:
        if factory is not None:
            raise Skip("the hypervisor is always xenpv's")
        self.hypervisor = Hypervisor(Loop(seed=seed), nr_frames=NR_FRAMES)
        self._free = self._free_pages()
        self.dom0 = self.domain(0)
        self.guest = self.domain(vcpus=2)
        self.other = self.domain()

    def domain(self, domid: int | None = None, **parameters: Any) -> Machine:
        """A running domain with 1 MiB of memory."""
        settings = {"vcpus": 1, "max_pages": 2 * NR_PAGES, **parameters}
        made = self.hypervisor.create_domain(domid, **settings)
        made.populate(NR_PAGES)
        made.unpause()
        made.start_vcpus()
        return Machine(made)

    def pair(self) -> tuple[int, int]:
        """A channel between guest and dom0, idle and unmasked: (the guest's port, dom0's)."""
        near = self.guest.alloc_unbound(0)
        far = self.dom0.bind_interdomain(self.guest.domid, int(near))
        self.dom0.take(int(far))
        return int(near), int(far)

    def destroy(self, machine: Machine) -> int:
        """XEN_DOMCTL_destroydomain by dom0."""
        self.dom0.domain.domctl.destroydomain(machine.domid)
        return 0

    @contextmanager
    def meanwhile(self, hook: Access) -> Iterator[None]:
        """`hook` runs before each access to shared memory: (actor, kind, frame, offset, size)."""
        self.hypervisor.set_hook(hook)
        try:
            yield
        finally:
            self.hypervisor.set_hook(None)

    def is_write(self, kind: int) -> bool:
        """Of an access: it stores, or does both."""
        return kind & 3 != int(lib.ACCESS_READ)

    def _free_pages(self) -> int:
        return int(lib.machine_free_pages(self.hypervisor.machine))

    def finish(self) -> None:
        """Every domain dies, dom0 last: none stays, and no page of the machine. Wrong if not."""
        machine = self.hypervisor
        machine.loop.run()
        for domain in reversed(list(machine.domains.values())):
            machine.destroy_domain(domain)
        machine.loop.run()
        expect(list(machine.domains), [], "domains that stay when all are destroyed")
        expect(self._free_pages(), self._free, "free pages when all domains are gone")

    def close(self) -> None:
        self.hypervisor.close()
