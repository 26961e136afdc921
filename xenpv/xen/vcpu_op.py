"""vcpu_op: what a domain's kernel asks of Xen for one of its own vcpus (public/vcpu.h).

do_vcpu_op, arch/x86/domain.c; common_vcpu_op, common/domain.c. A vcpu that is not there is
ENOENT before anything else is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from errno import EBUSY, EEXIST, EFAULT, EINVAL, ENOENT, ENOSYS, ENXIO
from typing import TYPE_CHECKING, Any, Final

from xenpv.abi._kernel import lib
from xenpv.abi.sched import SHUTDOWN, VCPUOP
from xenpv.errors import HypercallError
from xenpv.xen.arena import PAGE_SIZE
from xenpv.xen.clock import s_time
from xenpv.xen.loop import NS_PER_MS
from xenpv.xen.vcpu import RunstateInfo, Vcpu

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain

PERIOD_MIN_NS: Final = NS_PER_MS
PERIOD_END_NS: Final = 1 << 62  # STIME_DELTA_MAX
ALL_ONES: Final = (1 << 64) - 1
GUEST_ADDRESS_BITS: Final = 48

VMASST_CMDS: Final = (lib.VMASST_CMD_enable, lib.VMASST_CMD_disable)

# By errno, why a place for an area is refused (map_guest_area, common/domain.c).
_REFUSED: Final = {
    EINVAL: "no page of the domain's own RAM",
    EBUSY: "vcpu_info is registered, and once only",
    ENXIO: "crosses a page, or is not aligned",
}


class VcpuOp:
    """vcpu_op of `domain`: a method for each VCPUOP, which raises HypercallError.

    `current` is the vcpu that the call comes from. `call` takes an op by its number.
    """

    __slots__ = ("domain", "info_places", "runstate_update_flag")

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.runstate_update_flag = False  # VMASST_TYPE_runstate_update_flag
        # Machine frame and offset of each vcpu_info that is not in shared_info, for lookers-on.
        self.info_places: dict[int, tuple[int, int]] = {}

    def call(self, op: int, vcpu: int, **arguments: Any) -> RunstateInfo | int | None:
        """__HYPERVISOR_vcpu_op: ENOENT for the vcpu, then ENOSYS for the op."""
        method = OPERATIONS.get(op)
        if method is None:
            asked = {"op": op, "vcpu": vcpu}
            self._vcpu(vcpu, f"vcpu_op {op}", asked)
            raise HypercallError(
                ENOSYS, "no such operation", operation=f"vcpu_op {op}", arguments=asked
            )
        result: RunstateInfo | int | None = getattr(self, method)(vcpu, **arguments)
        return result

    def _vcpu(self, vcpu: int, operation: str, arguments: Mapping[str, object]) -> Vcpu:
        found = self.domain.vcpu
        if 0 <= vcpu < len(found):
            return found[vcpu]
        raise HypercallError(
            ENOENT,
            f"domain {self.domain.domid} has {len(found)}",
            operation=operation,
            arguments=arguments,
        )

    def _kernel(self, result: int, operation: str, arguments: Mapping[str, object]) -> int:
        if result < 0 and -result in _REFUSED:
            reason = _REFUSED[-result]
            raise HypercallError(-result, reason, operation=operation, arguments=arguments)
        return self.domain.check(result)

    # up and down

    def initialise(self, vcpu: int) -> None:
        """VCPUOP_initialise: EEXIST the second time. The context it takes is not modelled."""
        arguments = {"vcpu": vcpu}
        found = self._vcpu(vcpu, "VCPUOP_initialise", arguments)
        if found.initialised:
            raise HypercallError(
                EEXIST, "it has a context", operation="VCPUOP_initialise", arguments=arguments
            )
        found.initialised = True

    def up(self, vcpu: int) -> None:
        """VCPUOP_up: EINVAL before VCPUOP_initialise."""
        arguments = {"vcpu": vcpu}
        found = self._vcpu(vcpu, "VCPUOP_up", arguments)
        if not found.initialised:
            raise HypercallError(
                EINVAL, "it has no context yet", operation="VCPUOP_up", arguments=arguments
            )
        found.start()

    def down(self, vcpu: int) -> None:
        """VCPUOP_down: when no other is up, the domain powers off instead."""
        found = self._vcpu(vcpu, "VCPUOP_down", {"vcpu": vcpu})
        if all(other.down for other in self.domain.vcpu if other is not found):
            self.domain.shutdown(SHUTDOWN.poweroff)
        else:
            found.stop()

    def is_up(self, vcpu: int) -> int:
        """VCPUOP_is_up: 1 or 0."""
        return int(not self._vcpu(vcpu, "VCPUOP_is_up", {"vcpu": vcpu}).down)

    def send_nmi(self, vcpu: int) -> None:
        """VCPUOP_send_nmi: pending, once; the model's kernels take none."""
        self._vcpu(vcpu, "VCPUOP_send_nmi", {"vcpu": vcpu}).nmi_pending = True

    def get_physid(self, vcpu: int) -> int:
        """VCPUOP_get_physid: EINVAL but for a pinned vcpu of the hardware domain; none is."""
        arguments = {"vcpu": vcpu}
        self._vcpu(vcpu, "VCPUOP_get_physid", arguments)
        raise HypercallError(
            EINVAL, "not pinned", operation="VCPUOP_get_physid", arguments=arguments
        )

    # runstate

    def get_runstate_info(self, vcpu: int) -> RunstateInfo:
        """VCPUOP_get_runstate_info."""
        return self._vcpu(vcpu, "VCPUOP_get_runstate_info", {"vcpu": vcpu}).runstate()

    def register_runstate_memory_area(self, vcpu: int, address: int) -> None:
        """VCPUOP_register_runstate_memory_area by guest address; 0 unregisters.

        A guest's addresses are its physical ones here. EFAULT if it can be none; a page that
        is not there is no error, it is not written.
        """
        self._guest_area("VCPUOP_register_runstate_memory_area", vcpu, address, is_time=0)

    def register_runstate_phys_area(self, vcpu: int, address: int) -> None:
        """VCPUOP_register_runstate_phys_area; all ones unregisters. EINVAL, ENXIO."""
        self._phys_area("VCPUOP_register_runstate_phys_area", vcpu, address, is_time=0)

    # timers

    def set_periodic_timer(self, vcpu: int, period_ns: int) -> None:
        """VCPUOP_set_periodic_timer: EINVAL below 1 ms, and from 2^62 ns on."""
        arguments = {"vcpu": vcpu, "period_ns": period_ns}
        operation = "VCPUOP_set_periodic_timer"
        found = self._vcpu(vcpu, operation, arguments)
        if not PERIOD_MIN_NS <= period_ns < PERIOD_END_NS:
            raise HypercallError(
                EINVAL, "not from 1 ms to 2^62 ns", operation=operation, arguments=arguments
            )
        found.set_periodic(period_ns)

    def stop_periodic_timer(self, vcpu: int) -> None:
        """VCPUOP_stop_periodic_timer."""
        self._vcpu(vcpu, "VCPUOP_stop_periodic_timer", {"vcpu": vcpu}).set_periodic(0)

    def set_singleshot_timer(
        self, vcpu: int, timeout_abs_ns: int, flags: int = 0, *, current: int = 0
    ) -> None:
        """VCPUOP_set_singleshot_timer of `current` itself, else EINVAL. Past: fires at once.

        `flags` are ignored. A deadline from 2^63 on is a past one (s_time_t is signed).
        """
        arguments = {"vcpu": vcpu, "timeout_abs_ns": timeout_abs_ns, "flags": flags}
        found = self._own(vcpu, "VCPUOP_set_singleshot_timer", arguments, current)
        found.set_singleshot(s_time(timeout_abs_ns))

    def stop_singleshot_timer(self, vcpu: int, *, current: int = 0) -> None:
        """VCPUOP_stop_singleshot_timer of `current` itself, else EINVAL."""
        arguments = {"vcpu": vcpu}
        self._own(vcpu, "VCPUOP_stop_singleshot_timer", arguments, current).stop_singleshot()

    def _own(
        self, vcpu: int, operation: str, arguments: Mapping[str, object], current: int
    ) -> Vcpu:
        found = self._vcpu(vcpu, operation, arguments)
        if vcpu != current:
            raise HypercallError(
                EINVAL, f"called on vcpu {current}", operation=operation, arguments=arguments
            )
        return found

    # places in the guest's memory

    def register_vcpu_info(self, vcpu: int, gfn: int, offset: int) -> None:
        """VCPUOP_register_vcpu_info: contents move, then every event counts as pending.

        EINVAL (offset outside a page), EBUSY (registered), ENXIO (crosses the page, or not
        aligned to 8; to 4 in a 32-bit domain), EINVAL (no RAM there). EACCES is Xen's for
        pages of a type that the guest may not write, of which this model has none.
        """
        operation = "VCPUOP_register_vcpu_info"
        arguments = {"vcpu": vcpu, "gfn": gfn, "offset": offset}
        found = self._vcpu(vcpu, operation, arguments)
        domain = self.domain
        if offset >= PAGE_SIZE:
            raise HypercallError(
                EINVAL, "the offset is outside the page", operation=operation, arguments=arguments
            )
        done = lib.vcpu_info_register(domain.kernel, vcpu, gfn, offset)
        kick = self._kernel(done, operation, arguments)
        self.info_places[vcpu] = int(lib.p2m_lookup(domain.kernel, gfn, 0)), offset
        found.publish_time(force=True)
        if kick:
            domain.upcalls[vcpu].wake()

    def register_vcpu_time_memory_area(self, vcpu: int, address: int) -> None:
        """VCPUOP_register_vcpu_time_memory_area, as the runstate's by guest address."""
        self._guest_area("VCPUOP_register_vcpu_time_memory_area", vcpu, address, is_time=1)

    def register_vcpu_time_phys_area(self, vcpu: int, address: int) -> None:
        """VCPUOP_register_vcpu_time_phys_area; all ones unregisters. EINVAL, ENXIO."""
        self._phys_area("VCPUOP_register_vcpu_time_phys_area", vcpu, address, is_time=1)

    def _guest_area(self, operation: str, vcpu: int, address: int, *, is_time: int) -> None:
        arguments = {"vcpu": vcpu, "address": address}
        found = self._vcpu(vcpu, operation, arguments)
        if address >> GUEST_ADDRESS_BITS:
            raise HypercallError(
                EFAULT, "no guest address", operation=operation, arguments=arguments
            )
        place = address or ALL_ONES
        self.domain.check(lib.vcpu_guest_area(self.domain.kernel, vcpu, is_time, place))
        if is_time:
            found.publish_time(force=True)
        else:
            found.watch_runstate()

    def _phys_area(self, operation: str, vcpu: int, address: int, *, is_time: int) -> None:
        arguments = {"vcpu": vcpu, "address": address}
        found = self._vcpu(vcpu, operation, arguments)
        done = lib.vcpu_area_register(self.domain.kernel, vcpu, is_time, address)
        self._kernel(done, operation, arguments)
        if is_time:
            found.populate_time_area()
        else:
            found.watch_runstate()

    def vm_assist(self, cmd: int, kind: int) -> None:
        """__HYPERVISOR_vm_assist of an HVM domain: only runstate_update_flag (5) is valid.

        EINVAL for another type, ENOSYS for another command.
        """
        arguments = {"cmd": cmd, "type": kind}
        if kind != lib.VMASST_TYPE_runstate_update_flag:
            raise HypercallError(
                EINVAL, "no assist of an HVM domain", operation="vm_assist", arguments=arguments
            )
        if cmd not in VMASST_CMDS:
            raise HypercallError(
                ENOSYS, "neither enable nor disable", operation="vm_assist", arguments=arguments
            )
        self.runstate_update_flag = cmd == lib.VMASST_CMD_enable


OPERATIONS: Final[dict[int, str]] = {
    VCPUOP.initialise: "initialise",
    VCPUOP.up: "up",
    VCPUOP.down: "down",
    VCPUOP.is_up: "is_up",
    VCPUOP.get_runstate_info: "get_runstate_info",
    VCPUOP.register_runstate_memory_area: "register_runstate_memory_area",
    VCPUOP.set_periodic_timer: "set_periodic_timer",
    VCPUOP.stop_periodic_timer: "stop_periodic_timer",
    VCPUOP.set_singleshot_timer: "set_singleshot_timer",
    VCPUOP.stop_singleshot_timer: "stop_singleshot_timer",
    VCPUOP.register_vcpu_info: "register_vcpu_info",
    VCPUOP.send_nmi: "send_nmi",
    VCPUOP.get_physid: "get_physid",
    VCPUOP.register_vcpu_time_memory_area: "register_vcpu_time_memory_area",
    VCPUOP.register_runstate_phys_area: "register_runstate_phys_area",
    VCPUOP.register_vcpu_time_phys_area: "register_vcpu_time_phys_area",
}
