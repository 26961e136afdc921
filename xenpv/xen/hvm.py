"""hvm_op (hypercall 34): parameters of an HVM guest and its vcpus' upcall vectors.

Who may set and read which parameter is hvm_allow_set_param's and hvm_allow_get_param's
business (xen/arch/x86/hvm/hvm.c), what a value may be hvm_set_param's.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EEXIST, EINVAL, ENOENT, ENOSYS, EPERM, ESRCH
from typing import TYPE_CHECKING, Final

from xenpv.abi._kernel import lib
from xenpv.abi.hvm import HVM_PARAM, HVMMEM
from xenpv.abi.sched import SHUTDOWN
from xenpv.errors import HypercallError
from xenpv.xen.memory import PFN_END

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain

HVM_NR_PARAMS: Final[int] = lib.HVM_NR_PARAMS
VECTOR_FIRST: Final = 0x10  # those below are exceptions of the processor
ALTP2M: Final = int(HVM_PARAM.ALTP2M)

GUEST_MAY_SET: Final = frozenset(
    {
        HVM_PARAM.CALLBACK_IRQ,
        HVM_PARAM.STORE_EVTCHN,
        HVM_PARAM.VM86_TSS,
        HVM_PARAM.CONSOLE_EVTCHN,
        HVM_PARAM.ACPI_IOPORTS_LOCATION,
        HVM_PARAM.VM_GENERATION_ID_ADDR,
        HVM_PARAM.X87_FIP_WIDTH,
        HVM_PARAM.VM86_TSS_SIZED,
    }
)
GUEST_MAY_GET: Final = GUEST_MAY_SET | {
    HVM_PARAM.STORE_PFN,
    HVM_PARAM.CONSOLE_PFN,
    HVM_PARAM.ALTP2M,
}
# PAE_ENABLED, DM_DOMAIN, the memory events, NESTEDHVM, BUFIOREQ_EVTCHN: gone for everyone.
DEPRECATED: Final = frozenset({4, 13, *range(20, 27), 30})
ONCE: Final = frozenset(
    {
        HVM_PARAM.IOREQ_PFN,
        HVM_PARAM.BUFIOREQ_PFN,
        HVM_PARAM.VIRIDIAN,
        HVM_PARAM.IOREQ_SERVER_PFN,
        HVM_PARAM.NR_IOREQ_SERVER_PAGES,
        HVM_PARAM.MCA_CAP,
    }
)

# Parameters whose value is looked at; any other value is EINVAL.
VALUES: Final[dict[int, Callable[[int], bool]]] = {
    HVM_PARAM.TIMER_MODE: lambda value: value <= lib.HVMPTM_one_missed_tick_pending,
    HVM_PARAM.ACPI_S_STATE: lambda value: value in (0, 3),
    HVM_PARAM.TRIPLE_FAULT_REASON: lambda value: value <= max(SHUTDOWN),
    HVM_PARAM.X87_FIP_WIDTH: lambda value: value in (0, 4, 8),
    HVM_PARAM.MCA_CAP: lambda value: value & ~lib.XEN_HVM_MCA_CAP_LMCE == 0,
}


class Hvm:
    """The parameters of `domain`; every method is a hypercall that this domain makes.

    What a vector or CALLBACK_IRQ does is in xen.callback.
    """

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.params = [0] * HVM_NR_PARAMS

    def set_param(self, domid: int, index: int, value: int) -> None:
        """HVMOP_set_param {domid, index, value}.

        In this order: EINVAL (index), ESRCH, EINVAL (not HVM, a parameter that is gone),
        EPERM, EEXIST (it may be set once only), EINVAL (value).
        """
        arguments = {"domid": domid, "index": index, "value": value}

        def fail(errno: int, reason: str) -> HypercallError:
            return HypercallError(errno, reason, operation="HVMOP_set_param", arguments=arguments)

        target = self._target(domid, index, fail)
        if target is self.domain and index not in GUEST_MAY_SET:
            raise fail(EPERM, "a guest may not set that of its own")
        params = target.hvm.params
        if index == ALTP2M:
            raise fail(EEXIST, "it is decided at creation")
        if index in ONCE and params[index] not in (0, value):
            raise fail(EEXIST, f"it is {params[index]:#x} already")
        valid = VALUES.get(index)
        if not 0 <= value < 1 << 64 or (valid is not None and not valid(value)):
            raise fail(EINVAL, "no such value")
        params[index] = value
        if index == HVM_PARAM.CALLBACK_IRQ:
            target.evtchn.callbacks.set_via(value)

    def get_param(self, domid: int, index: int) -> int:
        """HVMOP_get_param {domid, index}: the value. Errors as for set_param."""
        arguments = {"domid": domid, "index": index}

        def fail(errno: int, reason: str) -> HypercallError:
            return HypercallError(errno, reason, operation="HVMOP_get_param", arguments=arguments)

        target = self._target(domid, index, fail)
        if target is self.domain and index not in GUEST_MAY_GET:
            raise fail(EPERM, "a guest may not read that of its own")
        return target.hvm.params[index]

    def _target(self, domid: int, index: int, fail: Callable[[int, str], HypercallError]) -> Domain:
        """The domain that a parameter is of, after what both directions check."""
        if not 0 <= index < HVM_NR_PARAMS:
            raise fail(EINVAL, f"there are {HVM_NR_PARAMS} parameters")
        target = self.domain.find(domid)
        if target is None:
            raise fail(ESRCH, "no such domain")
        if not target.is_hvm:
            raise fail(EINVAL, "not an HVM guest")
        if target is not self.domain and not self.domain.controls(target):
            raise fail(EPERM, f"not for domain {self.domain.domid}")
        if index in DEPRECATED:
            raise fail(EINVAL, "the parameter is gone")
        return target

    def set_evtchn_upcall_vector(self, vcpu: int, vector: int) -> None:
        """HVMOP_set_evtchn_upcall_vector: EINVAL (not HVM, vector < 0x10), ENOENT (vcpu).

        The vector is injected once right away, pending or not.
        """
        arguments = {"vcpu": vcpu, "vector": vector}
        operation = "HVMOP_set_evtchn_upcall_vector"
        domain = self.domain
        if not domain.is_hvm:
            raise HypercallError(EINVAL, "not HVM", operation=operation, arguments=arguments)
        if not VECTOR_FIRST <= vector <= 0xFF:
            raise HypercallError(EINVAL, "no vector", operation=operation, arguments=arguments)
        if not 0 <= vcpu < domain.vcpus:
            raise HypercallError(ENOENT, "no vcpu", operation=operation, arguments=arguments)
        domain.evtchn.callbacks.set_vector(vcpu, vector)

    def get_mem_type(self, domid: int, pfn: int) -> int:
        """HVMOP_get_mem_type {domid, pfn}: a HVMMEM. ESRCH, EPERM, EINVAL (not HVM), as Xen.

        Nothing at all is mmio_dm: the device model is asked about it. So is what others granted,
        and in this model a page of Xen's own, which nobody can be granted here.
        """
        arguments = {"domid": domid, "pfn": pfn}
        operation = "HVMOP_get_mem_type"
        target = self.domain.find(domid)
        if target is None:
            raise HypercallError(ESRCH, "no such domain", operation=operation, arguments=arguments)
        if target is not self.domain and not self.domain.controls(target):
            raise HypercallError(EPERM, "not its own", operation=operation, arguments=arguments)
        if not target.is_hvm:
            raise HypercallError(EINVAL, "not HVM", operation=operation, arguments=arguments)
        known = 0 <= pfn < PFN_END and lib.p2m_type(target.kernel, pfn) == lib.P2M_RAM
        return HVMMEM.ram_rw if known else HVMMEM.mmio_dm

    def pagetable_dying(self, domid: int, gpa: int) -> None:
        """HVMOP_pagetable_dying {domid, gpa}: a hint for shadow paging; accepted, unused."""

    def hvm_op(self, operation: int, *arguments: int) -> int:
        """The hypercall by its numbers: what it returns, or the value that it writes.

        HypercallError(ENOSYS) for a number that no operation has here.
        """
        call = OPERATIONS.get(operation)
        if call is None:
            raise HypercallError(
                ENOSYS,
                "no such operation",
                operation=f"hvm_op {operation}",
                arguments={"op": operation},
            )
        return call(self, *arguments) or 0


OPERATIONS: Final[dict[int, Callable[..., int | None]]] = {
    lib.HVMOP_set_param: Hvm.set_param,
    lib.HVMOP_get_param: Hvm.get_param,
    lib.HVMOP_pagetable_dying: Hvm.pagetable_dying,
    lib.HVMOP_get_mem_type: Hvm.get_mem_type,
    lib.HVMOP_set_evtchn_upcall_vector: Hvm.set_evtchn_upcall_vector,
}
