"""What a soft reset leaves of a domain: its number, its memory, its place in the machine.

domain_soft_reset of xen/common/domain.c and its x86 part. A kernel that was started by kexec
in a domain's memory finds Xen as a new domain does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpv.abi._kernel import lib
from xenpv.xen.hvm import Hvm
from xenpv.xen.ioport import IoPorts
from xenpv.xen.life import no_upcall
from xenpv.xen.memory import HOLE_END_PFN, HOLE_FIRST_PFN, PagePool
from xenpv.xen.vcpu_op import VcpuOp

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain

P2M_NONE: Final[int] = lib.P2M_NONE
P2M_RAM: Final[int] = lib.P2M_RAM


def soft_reset(domain: Domain) -> None:
    """XEN_DOMCTL_soft_reset of a paused domain. HypercallError(EBUSY): others map its grants.

    Memory keeps its contents. What the old kernel gave back, and where it had put pages of Xen,
    is RAM again: the new one knows nothing of that.
    """
    _stop(domain)
    domain.evtchn.reset()
    domain.evtchn.pollers.asleep.clear()
    domain.evtchn.callbacks.via = None
    domain.evtchn.callbacks.vectors.clear()
    domain.global_virqs.forget(domain)
    lib.vcpu_unregister_all(domain.kernel)
    for handle, mapping in list(domain.gnttab.maptrack.items()):
        domain.gnttab.unmap(handle, mapping.pfn)
    _clear_grants(domain)
    domain.hvm = Hvm(domain)
    domain.ioport = IoPorts(domain)
    domain.vcpu_op = VcpuOp(domain)
    domain.holes = PagePool(HOLE_FIRST_PFN, HOLE_END_PFN)
    _repair_ram(domain)
    domain.make_vcpus()
    domain.trace.note(domain.domid, "soft reset")


def _stop(domain: Domain) -> None:
    """Tasks and timers of the old kernel, and that it is down."""
    for vcpu in domain.vcpu:
        vcpu.destroy()
    domain.sched.destroy()
    for timer in domain.timers:
        timer.cancel()
    for task in domain.tasks:
        task.retire()
        task.run = no_upcall
    for gone in (domain.timers, domain.tasks, domain.vcpu, domain.upcalls):
        gone.clear()
    domain.forget_shutdown()


def _clear_grants(domain: Domain) -> None:
    """A change of version clears the table, but for the reserved entries."""
    version = domain.gnttab.version
    for other in (2, 1) if version == 1 else (1,):
        domain.check(lib.grant_table_set_version(domain.kernel, other))


def _repair_ram(domain: Domain) -> None:
    for pfns in domain.take_over(domain.pages.size):
        missing = [pfn for pfn in pfns if lib.p2m_type(domain.kernel, pfn) != P2M_RAM]
        for pfn in missing:
            if lib.p2m_type(domain.kernel, pfn) != P2M_NONE:
                lib.physmap_remove(domain.kernel, pfn)
        domain.memory.populate_physmap(domain.DOMID_SELF, missing)
