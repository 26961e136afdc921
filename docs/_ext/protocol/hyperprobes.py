"""What hypercalls on event channels and grants answer, found out by making them.

Each row is made on a fresh machine of three domains: dom0, an unprivileged guest of two vcpus and
a third. What the table says is what came back: 0 or more, an errno, or a GNTST_* status.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final

from xenpv.abi._kernel import lib
from xenpv.abi.evtchn import EVTCHNOP
from xenpv.abi.gnttab import GNTST, GNTTABOP
from xenpv.abi.xen_errno import XEN_ERRNO
from xenpv.testing.cases import grantscene as g
from xenpv.testing.cases.grantscene import GrantScene
from xenpv.testing.cases.machinescene import EVENT_CHANNEL_OP, NOBODY, MachineScene
from xenpv.xen.hypercall import EVENT_CHANNEL_OPS, GRANT_TABLE_OPS

from .table import Table

Event = Callable[[MachineScene], "int | str"]
Grant = Callable[[GrantScene], "int | str"]
TIMER, DOM_EXC = 0, 3


def _fifo(s: MachineScene) -> None:
    s.guest.init_control(s.guest.page(0), 0, 0)
    s.guest.expand_array(s.guest.page(1))


def _after(step: Callable[[MachineScene], object], then: Event) -> Event:
    def run(s: MachineScene) -> int | str:
        step(s)
        return then(s)

    return run


# operation, situation, what is done
EVENTS: Final[tuple[tuple[EVTCHNOP, str, Event], ...]] = (
    (EVTCHNOP.alloc_unbound, "for a peer that is not there", lambda s: s.guest.alloc_unbound(NOBODY)),
    (EVTCHNOP.alloc_unbound, "of a domain that is not there",
     lambda s: s.guest.alloc_unbound(0, NOBODY)),
    (EVTCHNOP.alloc_unbound, "of another's domain", lambda s: s.guest.alloc_unbound(0, s.other.domid)),
    (EVTCHNOP.bind_interdomain, "to a port that waits for this domain",
     lambda s: s.dom0.bind_interdomain(s.guest.domid, int(s.guest.alloc_unbound(0)))),
    (EVTCHNOP.bind_interdomain, "to a port that waits for another",
     lambda s: s.other.bind_interdomain(s.guest.domid, int(s.guest.alloc_unbound(0)))),
    (EVTCHNOP.bind_interdomain, "to one that is bound already",
     lambda s: s.dom0.bind_interdomain(s.guest.domid, s.pair()[0])),
    (EVTCHNOP.bind_interdomain, "of a domain that is not there",
     lambda s: s.guest.bind_interdomain(NOBODY, 1)),
    (EVTCHNOP.bind_virq, "VIRQ_TIMER on its vcpu 1", lambda s: s.guest.bind_virq(TIMER, 1)),
    (EVTCHNOP.bind_virq, "the same once more",
     _after(lambda s: s.guest.bind_virq(TIMER, 1), lambda s: s.guest.bind_virq(TIMER, 1))),
    (EVTCHNOP.bind_virq, "a global one on vcpu 1", lambda s: s.dom0.bind_virq(DOM_EXC, 1)),
    (EVTCHNOP.bind_virq, "a global one of dom0's, by a guest", lambda s: s.guest.bind_virq(DOM_EXC)),
    (EVTCHNOP.bind_virq, "number 24", lambda s: s.guest.bind_virq(24)),
    (EVTCHNOP.bind_virq, "on a vcpu that is not there", lambda s: s.guest.bind_virq(TIMER, 9)),
    (EVTCHNOP.bind_ipi, "on a vcpu that is not there", lambda s: s.guest.bind_ipi(9)),
    (EVTCHNOP.close, "a port that is not open", lambda s: s.guest.close(5)),
    (EVTCHNOP.close, "an interdomain port", lambda s: s.guest.close(s.pair()[0])),
    (EVTCHNOP.send, "on an unbound port", lambda s: s.guest.send(int(s.guest.alloc_unbound(0)))),
    (EVTCHNOP.send, "on a VIRQ's", lambda s: s.guest.send(int(s.guest.bind_virq(TIMER)))),
    (EVTCHNOP.send, "on a port that is not open", lambda s: s.guest.send(5)),
    (EVTCHNOP.status, "of a closed port", lambda s: s.guest.status(5)),
    (EVTCHNOP.status, "of a port beyond all", lambda s: s.guest.status(4096)),
    (EVTCHNOP.status, "of another's port", lambda s: s.guest.status(1, s.other.domid)),
    (EVTCHNOP.status, "of a domain that is not there", lambda s: s.guest.status(1, NOBODY)),
    (EVTCHNOP.bind_vcpu, "an interdomain port to vcpu 1", lambda s: s.guest.bind_vcpu(s.pair()[0], 1)),
    (EVTCHNOP.bind_vcpu, "to a vcpu that is not there", lambda s: s.guest.bind_vcpu(s.pair()[0], 9)),
    (EVTCHNOP.bind_vcpu, "an IPI", lambda s: s.guest.bind_vcpu(int(s.guest.bind_ipi(0)), 1)),
    (EVTCHNOP.unmask, "a port that is not open", lambda s: s.guest.unmask(5)),
    (EVTCHNOP.unmask, "a port beyond all", lambda s: s.guest.unmask(4096)),
    (EVTCHNOP.reset, "of one's own", lambda s: s.guest.reset()),
    (EVTCHNOP.reset, "of another's domain", lambda s: s.guest.reset(s.other.domid)),
    (EVTCHNOP.init_control, "at offset 0 of an own page",
     lambda s: s.guest.init_control(s.guest.page(0), 0, 0)),
    (EVTCHNOP.init_control, "the same vcpu again",
     _after(_fifo, lambda s: s.guest.init_control(s.guest.page(2), 0, 0))),
    (EVTCHNOP.init_control, "at an offset that is no multiple of 8",
     lambda s: s.guest.init_control(s.guest.page(0), 4, 0)),
    (EVTCHNOP.init_control, "at offset 4032, where it crosses the page",
     lambda s: s.guest.init_control(s.guest.page(0), 4032, 0)),
    (EVTCHNOP.init_control, "on a vcpu that is not there",
     lambda s: s.guest.init_control(s.guest.page(0), 0, 9)),
    (EVTCHNOP.expand_array, "in the 2-level layout", lambda s: s.guest.expand_array(s.guest.page(0))),
    (EVTCHNOP.expand_array, "where no memory is", _after(_fifo, lambda s: s.guest.expand_array(1 << 30))),
    (EVTCHNOP.set_priority, "in the 2-level layout", lambda s: s.guest.set_priority(s.pair()[0], 0)),
    (EVTCHNOP.set_priority, "16 of an open port",
     _after(_fifo, lambda s: s.guest.set_priority(s.pair()[0], 16))),
    (EVTCHNOP.set_priority, "0 of an open port",
     _after(_fifo, lambda s: s.guest.set_priority(s.pair()[0], 0))),
)  # fmt: skip


def event_text(op: EVTCHNOP, result: int | str) -> str:
    """A port where it gave one; else 0, or the errno."""
    if isinstance(result, int) and result > 0 and op is EVTCHNOP.init_control:
        return f"0; link_bits {result}"
    if isinstance(result, int) and op is EVTCHNOP.status:
        return "0; status EVTCHNSTAT_closed" if not result else f"0; status {result}"
    if isinstance(result, int) and result > 0:
        return "0; a port"
    return str(result)


def _event(op: EVTCHNOP, run: Event) -> str:
    scene = MachineScene(None, 1)
    try:
        return event_text(op, run(scene))
    finally:
        scene.close()


@cache
def events() -> Table:
    rows = [(f"`EVTCHNOP_{op.name}`", text, _event(op, run)) for op, text, run in EVENTS]
    return Table(("operation", "situation", "result"), tuple(rows))


def event_ops() -> Table:
    """Number, name, struct of the argument, from the table by which hypercalls are dispatched."""
    rows = [
        (str(int(op)), f"`EVTCHNOP_{op.name}`", f"`{EVENT_CHANNEL_OPS[op][0]}`",
         "yes" if EVENT_CHANNEL_OPS[op][2] else "")
        for op in sorted(EVTCHNOP) if op in EVENT_CHANNEL_OPS
    ]  # fmt: skip
    return Table(("number", "operation", "argument", "copied back"), tuple(rows))


# grants


def _granted(then: Grant, version: int = 1) -> Grant:
    """With the guest's entries 8 (may be written) and 9 (read only) for dom0."""

    def run(s: GrantScene) -> int | str:
        s.granter(version)
        return then(s)

    return run


def _special(make: Callable[[g.Granter, GrantScene], object], then: Grant) -> Grant:
    """With an entry 10 of the second version."""

    def run(s: GrantScene) -> int | str:
        make(s.granter(2), s)
        return then(s)

    return run


def _twice(s: GrantScene) -> int | str:
    s.map(8)
    handle = s.handle
    s.unmap(handle)
    return s.unmap(handle)


def _in_use(s: GrantScene) -> int | str:
    granter = s.granter()
    s.map(8)
    return granter.set_version(2)


GRANTS: Final[tuple[tuple[GNTTABOP, str, Grant], ...]] = (
    (GNTTABOP.map_grant_ref, "for writing what may be written", _granted(lambda s: s.map(8))),
    (GNTTABOP.map_grant_ref, "for reading what may be read",
     _granted(lambda s: s.map(9, flags=g.MAP_HOST | g.MAP_READONLY))),
    (GNTTABOP.map_grant_ref, "for writing what may be read", _granted(lambda s: s.map(9))),
    (GNTTABOP.map_grant_ref, "neither host nor device", _granted(lambda s: s.map(8, flags=0))),
    (GNTTABOP.map_grant_ref, "for a device, by an HVM guest",
     _granted(lambda s: s.map(8, flags=g.MAP_DEVICE))),
    (GNTTABOP.map_grant_ref, "an entry that is not filled in", _granted(lambda s: s.map(20))),
    (GNTTABOP.map_grant_ref, "a reference beyond the table", _granted(lambda s: s.map(1 << 20))),
    (GNTTABOP.map_grant_ref, "of a domain that is not there",
     _granted(lambda s: s.map(8, dom=NOBODY))),
    (GNTTABOP.map_grant_ref, "granted to somebody else", _granted(lambda s: s.map(8, by=s.other))),
    (GNTTABOP.map_grant_ref, "a part of a page, version 2",
     _special(lambda t, s: t.sub_page(10, 0, s.page, 0, 64), lambda s: s.map(10))),
    (GNTTABOP.map_grant_ref, "a transitive one, version 2",
     _special(lambda t, s: t.transitive(10, 0, s.other.domid, 8), lambda s: s.map(10))),
    (GNTTABOP.unmap_grant_ref, "a handle that was not given", _granted(lambda s: s.unmap(99))),
    (GNTTABOP.unmap_grant_ref, "twice", _granted(_twice)),
    (GNTTABOP.copy, "from a reference to an own page", _granted(lambda s: s.copy(s.ref(8), s.own()))),
    (GNTTABOP.copy, "to a reference that may be read", _granted(lambda s: s.copy(s.own(), s.ref(9)))),
    (GNTTABOP.copy, "past the end of a page",
     _granted(lambda s: s.copy(s.ref(8, 4090), s.own(), 8))),
    (GNTTABOP.copy, "of 0 bytes", _granted(lambda s: s.copy(s.ref(8), s.own(), 0))),
    (GNTTABOP.copy, "a reference beyond the table",
     _granted(lambda s: s.copy(s.ref(1 << 20), s.own()))),
    (GNTTABOP.copy, "of a domain that is not there",
     _granted(lambda s: s.copy(s.ref(8, dom=NOBODY), s.own()))),
    (GNTTABOP.copy, "within a part of a page, version 2",
     _special(lambda t, s: t.sub_page(10, 0, s.page, 64, 64), lambda s: s.copy(s.ref(10, 64), s.own()))),
    (GNTTABOP.copy, "outside that part",
     _special(lambda t, s: t.sub_page(10, 0, s.page, 64, 64), lambda s: s.copy(s.ref(10, 0), s.own()))),
    (GNTTABOP.set_version, "3", lambda s: s.granter().set_version(3)),
    (GNTTABOP.set_version, "2", lambda s: s.granter().set_version(2)),
    (GNTTABOP.set_version, "2, while an entry is mapped", _in_use),
)  # fmt: skip


def grant_text(op: GNTTABOP, result: int | str) -> str:
    """A status; 0 or an errno where the struct has none."""
    if op is GNTTABOP.set_version or isinstance(result, str):
        return str(result)
    return f"GNTST_{GNTST(result).name}"


def _grant(op: GNTTABOP, run: Grant) -> str:
    scene = GrantScene(None, 1)
    try:
        return grant_text(op, run(scene))
    finally:
        scene.close()


@cache
def grants() -> Table:
    rows = [(f"`GNTTABOP_{op.name}`", text, _grant(op, run)) for op, text, run in GRANTS]
    return Table(("operation", "situation", "result"), tuple(rows))


def errnos() -> Table:
    """Names and numbers of the errors that the tables here have."""
    seen = {row[2] for table in (events(), grants()) for row in table.rows}
    rows = [
        (f"`XEN_{one.name}`", str(int(one)))
        for one in sorted(XEN_ERRNO) if one.name in seen
    ]  # fmt: skip
    return Table(("error", "number"), tuple(rows))


def grant_ops() -> Table:
    """As `event_ops`."""
    rows = [
        (str(int(op)), f"`GNTTABOP_{op.name}`", f"`{GRANT_TABLE_OPS[op]}`" if op in GRANT_TABLE_OPS
         else "not modelled")
        for op in sorted(GNTTABOP)
    ]  # fmt: skip
    return Table(("number", "operation", "argument"), tuple(rows))


assert lib.__HYPERVISOR_event_channel_op == EVENT_CHANNEL_OP
