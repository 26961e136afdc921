"""Changes of the hypervisor and of a guest's event channels and grants that the suites "evtchn" and
"grant" notice. Not a test module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.testing.cases.planted import Change, always, answers, nothing, statuses, swallow
from xenpv.abi._kernel import lib
from xenpv.bus import evtchn_2l, evtchn_channels, gnttab
from xenpv.bus.gnttab import GnttabInterface
from xenpv.errors import HypercallError
from xenpv.xen import evtchn, gnttab_op, hypercall
from xenpv.xen.domain import Domain
from xenpv.xen.evtchn import EventChannels
from xenpv.xen.evtchn_port import PortState, PortTable
from xenpv.xen.guest_access import GuestMemory
from xenpv.xen.maptrack import Maptrack
from xenpv.xen.poll import Pollers
from xenpv.xen.virq import VirqClass

# event channels


def _busy_ports(_original: Any) -> Any:
    def lowest_free(table: Any) -> int:
        used = [one.number for one in table.list if one.handle is not None]
        return min(number for number in range(1, table._fresh + 1) if number not in used)

    return lowest_free


def _peer_keeps(original: Any) -> Any:
    """The other end of a port that was closed stays as it was."""

    def close(channels: Any, channel: Any) -> None:
        far = None
        if channel.state is PortState.INTERDOMAIN and channel.remote is not None:
            far = channel.remote.evtchn.ports[channel.remote_port]
            kept = (far.state, far.remote, far.remote_port)
        original(channels, channel)
        if far is not None:
            far.state, far.remote, far.remote_port = kept

    return close


def _anybody_binds(original: Any) -> Any:
    def bind(channels: Any, domid: int, port: int) -> int:
        remote = channels.domain.find(domid)
        if remote is not None:
            far = remote.evtchn._find(port)
            if far is not None and far.state is PortState.UNBOUND:
                far.remote_domid = channels.domain.domid
        return int(original(channels, domid, port))

    return bind


def _again(original: Any) -> Any:
    """XSA-343: a reset does not know of another."""

    def reset(channels: Any, dom: int) -> None:
        channels._resetting = False
        original(channels, dom)

    return reset


def _shrinks(original: Any) -> Any:
    """XSA-338: what is valid ends with the ABI."""

    def reset(channels: Any, dom: int) -> None:
        original(channels, dom)
        del channels.ports[4096:]

    return reset


def _zeros(original: Any) -> Any:
    """What cannot be read is zeros."""

    def read(memory: Any, address: int, size: int) -> bytes:
        try:
            return bytes(original(memory, address, size))
        except HypercallError:
            return bytes(size)

    return read


def _saves_nothing(_original: Any) -> Any:
    def expand(channels: Any, gfn: int) -> None:
        channels.domain.check(lib.fifo_expand_array(channels.domain.kernel, gfn))

    return expand


def _no_priority(original: Any) -> Any:
    def set_priority(channels: Any, port: int, _priority: int) -> None:
        original(channels, port, 7)

    return set_priority


def _before_send(act: Callable[[Any, int], None]) -> Any:
    """Before each event something is done at the far end: (its domain, port)."""

    def make(original: Any) -> Any:
        def send(channels: Any, port: int) -> None:
            near = channels.ports[port] if 0 <= port < len(channels.ports) else None
            if near is not None and near.remote is not None:
                act(near.remote, near.remote_port)
            original(channels, port)

        return send

    return make


def _acknowledges(domain: Any, port: int) -> None:
    lib.evtchn_clear_pending(domain.kernel, port)


def _refuses_twice(domain: Any, port: int) -> None:
    if lib.evtchn_is_pending(domain.kernel, port) == 1:
        raise HypercallError(22, "it is pending")


def _masks(domain: Any, port: int) -> None:
    lib.evtchn_mask(domain.kernel, port)


def _unmasks(domain: Any, port: int) -> None:
    lib.evtchn_guest_unmask(domain.kernel, port)


def _called_twice(original: Any) -> Any:
    def opened(bus: Any, domid: int, callback: Any, **how: Any) -> Any:
        def twice() -> None:
            callback()
            callback()

        return original(bus, domid, twice, **how)

    return opened


def _stranger(original: Any) -> Any:
    """A scan ends at a port that nobody opened."""

    def upcall(processor: Any) -> None:
        port = evtchn_2l.upcall_take(processor.handle)
        channel = processor._channels.get(port)
        if channel is not None:
            processor._drain(channel)

    del original
    return upcall


def _clears_after(original: Any) -> Any:
    def drain(bus: Any, channel: Any) -> None:
        original(bus, channel)
        if channel.active:
            lib.evtchn_clear_pending(bus.domain.kernel, channel.port)

    return drain


EVTCHN: list[tuple[str, list[Change], str]] = [
    ("linked ports are given out", [(PortTable, "lowest_free", _busy_ports)], "EVT-040"),
    ("a new channel is not pending", [(EventChannels, "_raise", nothing)], "EVT-002 EVT-010"),
    ("the peer of a closed port keeps it", [(EventChannels, "_close", _peer_keeps)], "EVT-017 EVT-020"),
    ("a closed port is an unbound one to all", [(EventChannels, "bind_interdomain", _anybody_binds)], "EVT-007 EVT-008"),
    ("send never fails", [(EventChannels, "send", swallow("EINVAL"))], "EVT-005 EVT-006"),
    ("close never fails", [(EventChannels, "close", swallow("EINVAL"))], "EVT-005 EVT-037"),
    ("unmask never fails", [(EventChannels, "unmask", swallow("EINVAL"))], "EVT-005"),
    ("bind_vcpu does nothing", [(EventChannels, "bind_vcpu", nothing)], "EVT-005 EVT-011"),
    ("one port more than there are", [(EventChannels, "limit", lambda old: property(lambda self: old.fget(self) + 1))], "EVT-012 EVT-014"),
    ("poll of any port", [(Pollers, "poll", swallow("EINVAL"))], "EVT-005 EVT-013"),
    ("resets do not know of each other", [(EventChannels, "_reset", _again)], "EVT-015"),
    ("a reset that was raced is done", [(EventChannels, "reset", swallow("EAGAIN"))], "EVT-038"),
    ("a reset shortens the ports", [(EventChannels, "_reset", _shrinks)], "EVT-037"),
    ("every domain controls every other", [(Domain, "controls", always(True))], "EVT-016"),
    ("the dead keep their ports", [(EventChannels, "close_all", nothing)], "EVT-030 EVT-041"),
    ("bad pointers read as zeros", [(GuestMemory, "read", _zeros)], "EVT-018"),
    ("unmask does nothing", [(EventChannels, "unmask", nothing)], "EVT-004 EVT-042"),
    ("an event acknowledges the one before", [(EventChannels, "send", _before_send(_acknowledges))], "EVT-003 EVT-021"),
    ("an event that stands is refused", [(EventChannels, "send", _before_send(_refuses_twice))], "EVT-019 EVT-039"),
    ("an event masks", [(EventChannels, "send", _before_send(_masks))], "EVT-014 EVT-019"),
    ("IPIs are vcpu 0's", [(EventChannels, "bind_ipi", lambda old: lambda channels, vcpu: old(channels, 0))], "EVT-032"),
    ("an event unmasks", [(EventChannels, "send", _before_send(_unmasks))], "EVT-004 EVT-021"),
    ("vcpus are not looked at", [(EventChannels, "_has_vcpu", always(True))], "EVT-009 EVT-011"),
    ("every VIRQ is the machine's", [(evtchn, "CLASS_OF", lambda old: dict.fromkeys(old, VirqClass.GLOBAL))], "EVT-001 EVT-009"),
    ("a callback ends with the bit cleared", [(evtchn_channels.EvtchnChannels, "_drain", _clears_after)], "EVT-055"),
    ("a guest's callbacks run twice", [(evtchn_channels.EvtchnChannels, "open_unbound", _called_twice)], "EVT-050 EVT-054"),
    ("a guest's scan ends at a stranger's port", [(evtchn_2l.Processor2L, "upcall", _stranger)], "EVT-051 EVT-054"),
    ("a guest's channels never mask themselves", [(evtchn_channels.EvtchnChannels, "open_unbound", lambda old: lambda bus, domid, run, *, mask=False: old(bus, domid, run))], "EVT-053"),
    ("every event has priority 7", [(EventChannels, "set_priority", _no_priority)], "EVT-031"),
    ("control blocks lie anywhere", [(EventChannels, "init_control", swallow("EINVAL"))], "EVT-033"),
    ("saved events are lost", [(EventChannels, "expand_array", _saves_nothing)], "EVT-034"),
    ("arrays without end", [(EventChannels, "expand_array", swallow("ENOSPC"))], "EVT-035"),
    ("expand_array in either ABI", [(EventChannels, "expand_array", swallow("EOPNOTSUPP"))], "EVT-033 EVT-036"),
    ("a guest hears of closed channels", [(evtchn_channels.EvtchnChannels, "close", nothing)], "EVT-052"),
    ("a guest's unmask tells nothing", [(evtchn_channels.EvtchnChannels, "unmask", always(False))], "EVT-050 EVT-051"),
]  # fmt: skip

# grants


def _positive(original: Any) -> Any:
    """XSA-316: +1 for what failed."""

    def status(table: Any, op: Any, vcpu: int) -> int:
        found = int(original(table, op, vcpu))
        return 1 if found == -1 else found

    return status


def _same_handle(original: Any) -> Any:
    """XSA-228: the last handle is given out again."""
    last: dict[int, Any] = {}

    def take(track: Any, vcpu: int) -> Any:
        if id(track) in last and len(track.entries) == 3:
            return last[id(track)]
        last[id(track)] = original(track, vcpu)
        return last[id(track)]

    return take


def _last_status(original: Any) -> Any:
    """XSA-318: statuses of the first operations are not written."""

    def copy(table: Any, ops: Any, count: int) -> Any:
        before = [ops[index].status for index in range(count)]
        done = original(table, ops, count)
        for index in range(count - 1):
            ops[index].status = before[index]
        return done

    return copy


def _one_more(original: Any) -> Any:
    def copy(table: Any, ops: Any, count: int) -> Any:
        for index in range(count):
            if 0 < ops[index].len < 4096 and ops[index].dest.offset + ops[index].len < 4096:
                ops[index].len += 1
        return original(table, ops, count)

    return copy


def _early(original: Any) -> Any:
    def copy(table: Any, ops: Any, count: int) -> Any:
        for index in range(count):
            ops[index].dest.offset = max(ops[index].dest.offset, 1) - 1
        return original(table, ops, count)

    return copy


def _not_transitive(original: Any) -> Any:
    def copy(table: Any, ops: Any, count: int) -> Any:
        table.allow_transitive = False
        return original(table, ops, count)

    return copy


def _status_okay(original: Any) -> Any:
    def operation(table: Any, op: Any) -> None:
        original(table, op)
        op.status = 0

    return operation


def _forgets_readonly(original: Any) -> Any:
    def permit(bus: Any, domid: int, pfn: int, *, readonly: bool = False) -> Any:
        del readonly
        return original(bus, domid, pfn, readonly=False)

    return permit


def _revokes_by_force(original: Any) -> Any:
    def revoke(bus: Any, ref: int) -> bool:
        original(bus, ref)
        lib.grant_entry_set(bus.domain.kernel, ref, 0, 0, 0)
        return True

    return revoke


def _forgets_handles(original: Any) -> Any:
    def unmap(table: Any, handle: int, *rest: Any) -> int:
        found = int(original(table, handle, *rest))
        return 0 if found == -4 else found

    return unmap


GRANT: list[tuple[str, list[Change], str]] = [
    ("unmap of any handle", [(gnttab_op, "_unmap", _forgets_handles)], "GNT-006 GNT-017"),
    ("unmap of any address", [(gnttab_op, "_unmap", answers(-1, 0))], "GNT-006"),
    ("pins are kept", [(gnttab_op, "_unpin", nothing)], "GNT-001 GNT-004"),
    ("a failed map is +1", [(gnttab_op, "_map", _positive)], "GNT-003 GNT-008"),
    ("bad references are general errors", [(gnttab_op, "_map", answers(-3, -1))], "GNT-003 GNT-007"),
    ("bad pages are general errors", [(gnttab_op, "_map", answers(-9, -1))], "GNT-002 GNT-020"),
    ("no space is a general error", [(gnttab_op, "_map", answers(-13, -1))], "GNT-010"),
    ("a handle is given out twice", [(Maptrack, "take", _same_handle)], "GNT-005"),
    ("the dead keep their maps", [(gnttab_op, "release_maps", nothing)], "GNT-010 GNT-018"),
    ("a dead granter is held for ever", [(Domain, "unpinned", nothing)], "GNT-005 GNT-017"),
    ("versions change under maps", [(gnttab_op, "_errno", answers(16, 0))], "GNT-011 GNT-012"),
    ("version switches are never late", [(gnttab_op, "_errno", answers(11, 0))], "GNT-038"),
    ("tables of others are one's own", [(Domain, "controls", always(True))], "GNT-016"),
    ("statuses of a batch are the last one's", [(gnttab_op, "copy", _last_status)], "GNT-033 GNT-039"),
    ("copies reach over a page's end", [(gnttab_op, "copy", statuses(lambda old: 0 if old == -10 else old))], "GNT-031"),
    ("copies of what was not granted", [(gnttab_op, "copy", statuses(lambda old: 0 if old == -1 else old))], "GNT-009 GNT-032"),
    ("a stranger's frame is a general error", [(gnttab_op, "copy", statuses(lambda old: -1 if old == -8 else old))], "GNT-032"),
    ("operations that are none succeed", [(hypercall.HYPERCALLS, 20, lambda old: (answers(-38, 0)(old[0]), old[1]))], "GNT-015"),
    ("any count of operations", [(hypercall.HYPERCALLS, 20, lambda old: (answers(-22, 0)(old[0]), old[1]))], "GNT-015"),
    ("bad pointers succeed", [(hypercall.HYPERCALLS, 20, lambda old: (swallow("EFAULT")(old[0]), old[1]))], "GNT-015"),
    ("status frames without end", [(gnttab_op._SINGLE, 9, _status_okay)], "GNT-013"),
    ("tables without end", [(gnttab_op._SINGLE, 2, _status_okay)], "GNT-016"),
    ("a swap never fails", [(gnttab_op._EACH, 11, _status_okay)], "GNT-014"),
    ("a swap does nothing", [(gnttab_op._EACH, 11, lambda _: lambda table, op: setattr(op, "status", 0))], "GNT-014"),
    ("a transfer never fails", [(gnttab_op._EACH, 4, _status_okay)], "GNT-019"),
    ("a byte too many is copied", [(gnttab_op, "copy", _one_more)], "GNT-034 GNT-039"),
    ("copies land a byte early", [(gnttab_op, "copy", _early)], "GNT-030 GNT-037"),
    ("no transitive grants", [(gnttab_op, "copy", _not_transitive)], "GNT-035 GNT-036"),
    ("a guest gives what it grants read-only", [(GnttabInterface, "permit_foreign_access", _forgets_readonly)], "GNT-051"),
    ("a guest revokes by force", [(GnttabInterface, "revoke_foreign_access", _revokes_by_force)], "GNT-050 GNT-053"),
    ("a guest uses Xen's references", [(gnttab, "RESERVED_REFS", lambda _: 8)], "GNT-052"),
]  # fmt: skip
