"""Hypercalls as machine code makes them: a number, arguments in registers and in memory.

    port = domain.hypercall(32, 6, address)  # event_channel_op, EVTCHNOP_alloc_unbound

The result is what the register would hold: 0 or more, or a negative errno. Every operation is
that of `domain.evtchn`, `.gnttab`, `.memory`, `.sched`, `.vcpu_op`, `.hvm`; here are their
structures (public/*.h) and what is copied back when. domctl and sysctl, whose layouts change
with each release of Xen, are methods only.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL, ENOENT, ENOSYS
from typing import TYPE_CHECKING, Any, Final

from xenpv.abi._kernel import ffi, lib
from xenpv.abi.evtchn import EVTCHNOP, EVTCHNSTAT
from xenpv.abi.gnttab import GNTTABOP
from xenpv.abi.sched import SCHEDOP, VCPUOP
from xenpv.errors import HypercallError, LocalProtocolError
from xenpv.xen.guest_access import BATCH, Call
from xenpv.xen.hypercall_memory import memory_op

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain
    from xenpv.xen.evtchn import EventChannels
    from xenpv.xen.loop import Task

POLL_PORTS_MAX: Final = 128
U64: Final = (1 << 64) - 1


def hypercall(
    domain: Domain, number: int, *arguments: int, vcpu: int = 0, wake: Task | None = None
) -> int:
    """Hypercall `number` (__HYPERVISOR_*) of `domain` on `vcpu`: its result.

    `arguments` are those of the C prototype, pointers as guest physical addresses; a missing
    one is 0. `wake` is the task that SCHEDOP_poll wakes if it has to sleep; it returns 0 in
    either case, and is a LocalProtocolError without one.
    """
    operation = HYPERCALLS.get(number)
    if operation is None:
        return -ENOSYS
    call, nr_arguments = operation
    given = (*arguments, *(0,) * nr_arguments)[:nr_arguments]
    try:
        return call(Call(domain, vcpu, wake), *given)
    except HypercallError as error:
        return -error.errno


# event_channel_op


def _alloc_unbound(channels: EventChannels, op: Any) -> None:
    op.port = channels.alloc_unbound(op.remote_dom, dom=op.dom)


def _bind_interdomain(channels: EventChannels, op: Any) -> None:
    op.local_port = channels.bind_interdomain(op.remote_dom, op.remote_port)


def _bind_virq(channels: EventChannels, op: Any) -> None:
    op.port = channels.bind_virq(op.virq, op.vcpu)


def _bind_pirq(channels: EventChannels, op: Any) -> None:
    op.port = channels.bind_pirq(op.pirq, op.flags)


def _bind_ipi(channels: EventChannels, op: Any) -> None:
    op.port = channels.bind_ipi(op.vcpu)


def _status(channels: EventChannels, op: Any) -> None:
    found = channels.status(op.port, op.dom)
    op.status = found.status
    op.vcpu = found.vcpu
    if found.status == EVTCHNSTAT.unbound:
        op.u.unbound.dom = found.remote_domid
    elif found.status == EVTCHNSTAT.interdomain:
        op.u.interdomain.dom = found.remote_domid
        op.u.interdomain.port = found.remote_port
    elif found.status == EVTCHNSTAT.virq:
        op.u.virq = found.virq
    elif found.status == EVTCHNSTAT.pirq:
        op.u.pirq = found.pirq


def _init_control(channels: EventChannels, op: Any) -> None:
    op.link_bits = channels.init_control(op.control_gfn, op.offset, op.vcpu)


# cmd: (struct, what is done, is it copied back)
EVENT_CHANNEL_OPS: Final[dict[int, tuple[str, Callable[[EventChannels, Any], None], bool]]] = {
    EVTCHNOP.alloc_unbound: ("evtchn_alloc_unbound", _alloc_unbound, True),
    EVTCHNOP.bind_interdomain: ("evtchn_bind_interdomain", _bind_interdomain, True),
    EVTCHNOP.bind_virq: ("evtchn_bind_virq", _bind_virq, True),
    EVTCHNOP.bind_pirq: ("evtchn_bind_pirq", _bind_pirq, True),
    EVTCHNOP.bind_ipi: ("evtchn_bind_ipi", _bind_ipi, True),
    EVTCHNOP.close: ("evtchn_close", lambda c, op: c.close(op.port), False),
    EVTCHNOP.send: ("evtchn_send", lambda c, op: c.send(op.port), False),
    EVTCHNOP.status: ("evtchn_status", _status, True),
    EVTCHNOP.bind_vcpu: ("evtchn_bind_vcpu", lambda c, op: c.bind_vcpu(op.port, op.vcpu), False),
    EVTCHNOP.unmask: ("evtchn_unmask", lambda c, op: c.unmask(op.port), False),
    EVTCHNOP.reset: ("evtchn_reset", lambda c, op: c.reset(op.dom), False),
    EVTCHNOP.init_control: ("evtchn_init_control", _init_control, True),
    EVTCHNOP.expand_array: (
        "evtchn_expand_array", lambda c, op: c.expand_array(op.array_gfn), False,
    ),
    EVTCHNOP.set_priority: (
        "evtchn_set_priority", lambda c, op: c.set_priority(op.port, op.priority), False,
    ),
}  # fmt: skip


def event_channel_op(call: Call, cmd: int, arg: int) -> int:
    """EVTCHNOP_*: an argument that cannot be read is EFAULT before anything is checked."""
    found = EVENT_CHANNEL_OPS.get(cmd)
    if found is None:
        return -ENOSYS
    name, perform, is_output = found
    ops = call.memory.load(name, arg)
    perform(call.domain.evtchn, ops[0])
    if is_output:
        call.memory.store(name, arg, ops)
    return 0


# grant_table_op

GRANT_TABLE_OPS: Final[dict[int, str]] = {
    GNTTABOP.map_grant_ref: "gnttab_map_grant_ref",
    GNTTABOP.unmap_grant_ref: "gnttab_unmap_grant_ref",
    GNTTABOP.setup_table: "gnttab_setup_table",
    GNTTABOP.transfer: "gnttab_transfer",
    GNTTABOP.copy: "gnttab_copy",
    GNTTABOP.query_size: "gnttab_query_size",
    GNTTABOP.unmap_and_replace: "gnttab_unmap_and_replace",
    GNTTABOP.set_version: "gnttab_set_version",
    GNTTABOP.get_status_frames: "gnttab_get_status_frames",
    GNTTABOP.get_version: "gnttab_get_version",
    GNTTABOP.swap_grant_ref: "gnttab_swap_grant_ref",
}
# Not in batches: another count than 1 is EINVAL, and looked at first.
GRANT_TABLE_SINGLE: Final = (
    GNTTABOP.setup_table,
    GNTTABOP.query_size,
    GNTTABOP.get_status_frames,
)


def grant_table_op(call: Call, cmd: int, uop: int, count: int) -> int:
    """GNTTABOP_*: structures are read and written back in turns, each with its status."""
    count &= U64
    if count >> 31:
        return -EINVAL
    name = GRANT_TABLE_OPS.get(cmd)
    if name is None:
        return -ENOSYS
    if cmd in GRANT_TABLE_SINGLE and count != 1:
        return -EINVAL
    if cmd in (GNTTABOP.set_version, GNTTABOP.get_version):
        count = 1  # neither looks at it
    size = call.memory.sizeof(name)
    for start in range(0, count, BATCH):
        address = uop + start * size
        ops = call.memory.load(name, address, min(BATCH, count - start))
        try:
            call.domain.gnttab.hypercall(cmd, ops, vcpu=call.vcpu)
        finally:
            call.memory.store(name, address, ops)
    return 0


# sched_op, vcpu_op, time


def _poll(call: Call, arg: int) -> int:
    op = call.memory.load("sched_poll", arg)[0]
    if op.nr_ports > POLL_PORTS_MAX:
        return -EINVAL
    if call.wake is None:
        raise LocalProtocolError("SCHEDOP_poll may sleep: give hypercall() the task to wake")
    ports = call.memory.u32s(op.ports, op.nr_ports)
    call.domain.evtchn.sched_poll(ports, op.timeout, wake=call.wake, vcpu=call.vcpu)
    return 0


def _remote_shutdown(call: Call, arg: int) -> int:
    op = call.memory.load("sched_remote_shutdown", arg)[0]
    call.domain.sched.remote_shutdown(op.domain_id, op.reason)
    return 0


def _watchdog(call: Call, arg: int) -> int:
    op = call.memory.load("sched_watchdog", arg)[0]
    return call.domain.sched.watchdog(op.id, op.timeout)


def sched_op(call: Call, cmd: int, arg: int) -> int:
    """SCHEDOP_*. A handler runs on after shutdown, block and yield: it is to return soon."""
    sched = call.domain.sched
    if cmd == SCHEDOP.yield_:
        sched.yield_()
    elif cmd == SCHEDOP.block:
        sched.block(call.vcpu)
    elif cmd in (SCHEDOP.shutdown, SCHEDOP.shutdown_code):
        reason = call.memory.load("sched_shutdown", arg)[0].reason
        (sched.shutdown if cmd == SCHEDOP.shutdown else sched.shutdown_code)(reason)
    elif cmd in SCHED_OPS:
        return SCHED_OPS[cmd](call, arg)
    else:
        return -ENOSYS
    return 0


SCHED_OPS: Final[dict[int, Callable[[Call, int], int]]] = {
    SCHEDOP.poll: _poll,
    SCHEDOP.remote_shutdown: _remote_shutdown,
    SCHEDOP.watchdog: _watchdog,
}

# cmd: (struct that is read, its fields as arguments of VcpuOp)
VCPU_INPUTS: Final[dict[int, tuple[str, dict[str, str]]]] = {
    VCPUOP.set_periodic_timer: ("vcpu_set_periodic_timer", {"period_ns": "period_ns"}),
    VCPUOP.set_singleshot_timer: (
        "vcpu_set_singleshot_timer", {"timeout_abs_ns": "timeout_abs_ns", "flags": "flags"},
    ),
    VCPUOP.register_vcpu_info: ("vcpu_register_vcpu_info", {"gfn": "mfn", "offset": "offset"}),
    VCPUOP.register_runstate_memory_area: (
        "vcpu_register_runstate_memory_area", {"address": "addr.p"},
    ),
    VCPUOP.register_runstate_phys_area: (
        "vcpu_register_runstate_memory_area", {"address": "addr.p"},
    ),
    VCPUOP.register_vcpu_time_memory_area: (
        "vcpu_register_time_memory_area", {"address": "addr.p"},
    ),
    VCPUOP.register_vcpu_time_phys_area: (
        "vcpu_register_time_memory_area", {"address": "addr.p"},
    ),
}  # fmt: skip
SINGLESHOT: Final = (VCPUOP.set_singleshot_timer, VCPUOP.stop_singleshot_timer)


def vcpu_op(call: Call, cmd: int, vcpu: int, arg: int) -> int:
    """VCPUOP_*: a vcpu that is not there is ENOENT before anything else."""
    if not 0 <= vcpu < len(call.domain.vcpu):
        return -ENOENT
    arguments: dict[str, int] = {}
    if cmd in VCPU_INPUTS:
        name, fields = VCPU_INPUTS[cmd]
        op = call.memory.load(name, arg)[0]
        arguments = {given: _field(op, path) for given, path in fields.items()}
    if cmd in SINGLESHOT:
        arguments["current"] = call.vcpu
    found = call.domain.vcpu_op.call(cmd, vcpu, **arguments)
    if found is None or isinstance(found, int):
        return found or 0
    info = ffi.new("struct vcpu_runstate_info[1]")
    info[0].state = found.state
    info[0].state_entry_time = found.state_entry_time
    info[0].time = found.time
    call.memory.store("vcpu_runstate_info", arg, info)
    return 0


def _field(op: Any, path: str) -> int:
    for name in path.split("."):
        op = getattr(op, name)
    return int(op)


def set_timer_op(call: Call, timeout: int) -> int:
    """An absolute system time in nanoseconds, signed (s_time_t)."""
    signed = (timeout & U64 ^ 1 << 63) - (1 << 63)
    call.domain.sched.set_timer_op(signed, call.vcpu)
    return 0


def vm_assist(call: Call, cmd: int, kind: int) -> int:
    """VMASST_*."""
    call.domain.vcpu_op.vm_assist(cmd, kind)
    return 0


# xen_version, hvm_op

# struct xen_varbuf: a length, then as many bytes.
VARIABLE: Final = (
    lib.XENVER_build_id,
    lib.XENVER_extraversion2,
    lib.XENVER_capabilities2,
    lib.XENVER_changeset2,
    lib.XENVER_commandline2,
)
VARBUF_LEN: Final = 4


def version_op(call: Call, cmd: int, arg: int) -> int:
    """XENVER_*."""
    argument = None
    is_variable = cmd in VARIABLE
    if is_variable and arg:
        argument = int.from_bytes(call.memory.read(arg, VARBUF_LEN), "little")
    elif cmd == lib.XENVER_get_features:
        argument = call.memory.load("xen_feature_info", arg)[0].submap_idx
    elif cmd == lib.XENVER_pagesize and arg:
        argument = arg
    found = call.domain.xen_version(cmd, argument)
    if isinstance(found, int):
        return found
    call.memory.write(arg + VARBUF_LEN * is_variable, found)
    return len(found) if is_variable else 0


def hvm_op(call: Call, op: int, arg: int) -> int:
    """HVMOP_* of guests."""
    hvm = call.domain.hvm
    if op in (lib.HVMOP_set_param, lib.HVMOP_get_param):
        params = call.memory.load("xen_hvm_param", arg)
        one = params[0]
        if op == lib.HVMOP_set_param:
            hvm.set_param(one.domid, one.index, one.value)
        else:
            one.value = hvm.get_param(one.domid, one.index)
            call.memory.store("xen_hvm_param", arg, params)
    elif op == lib.HVMOP_set_evtchn_upcall_vector:
        vector = call.memory.load("xen_hvm_evtchn_upcall_vector", arg)[0]
        hvm.set_evtchn_upcall_vector(vector.vcpu, vector.vector)
    elif op == lib.HVMOP_pagetable_dying:
        dying = call.memory.load("xen_hvm_pagetable_dying", arg)[0]
        hvm.pagetable_dying(dying.domid, dying.gpa)
    else:
        return -ENOSYS
    return 0


# __HYPERVISOR_*: (what is done, how many arguments it takes)
HYPERCALLS: Final[dict[int, tuple[Callable[..., int], int]]] = {
    lib.__HYPERVISOR_memory_op: (memory_op, 2),
    lib.__HYPERVISOR_set_timer_op: (set_timer_op, 1),
    lib.__HYPERVISOR_xen_version: (version_op, 2),
    lib.__HYPERVISOR_grant_table_op: (grant_table_op, 3),
    lib.__HYPERVISOR_vm_assist: (vm_assist, 2),
    lib.__HYPERVISOR_vcpu_op: (vcpu_op, 3),
    lib.__HYPERVISOR_sched_op: (sched_op, 2),
    lib.__HYPERVISOR_event_channel_op: (event_channel_op, 2),
    lib.__HYPERVISOR_hvm_op: (hvm_op, 2),
}
