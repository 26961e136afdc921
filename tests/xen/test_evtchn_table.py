"""EVTCHNOP_* by situation: the errno or result that Xen gives (spec/xen-core 2.1, 7.2).

Every row runs in both ABIs unless it says which. One that fails must change nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.xen.conftest import domain
from tests.xen.evtchn_world import (
    ARRAY_PFN,
    BEYOND,
    CONTROL_PFN,
    NO_RAM,
    Ports,
    enable_fifo,
    make,
    snapshot,
)
from xenpv.abi._kernel import lib
from xenpv.abi.evtchn import EVTCHNSTAT, VIRQ
from xenpv.errors import HypercallError
from xenpv.xen.domain import Domain
from xenpv.xen.evtchn_port import PortStatus
from xenpv.xen.hypervisor import Hypervisor

SELF = 0x7FF0
Row = tuple[str, str, Callable[[Ports], object], object, str]


def fill(one: Domain, limit: int) -> None:
    """Bring a domain to its last port."""
    one.evtchn.max_port = limit
    while one.evtchn.bound() < limit:
        one.evtchn.alloc_unbound(0)


def full(call: Callable[[Ports], object]) -> Callable[[Ports], object]:
    def row(w: Ports) -> object:
        fill(w.guest, 20)
        return call(w)

    return row


def dying(call: Callable[[Ports], object]) -> Callable[[Ports], object]:
    def row(w: Ports) -> object:
        w.guest.dying = True
        try:
            return call(w)
        finally:
            w.guest.dying = False

    return row


def after(
    first: Callable[[Ports], object], call: Callable[[Ports], object]
) -> Callable[[Ports], object]:
    """A row whose failing call comes after another one; the snapshot is taken between them."""

    def row(w: Ports) -> object:
        return call(w)

    row.first = first  # type: ignore[attr-defined]
    return row


def handler_is_other(w: Ports) -> None:
    w.dom0.domctl.set_virq_handler(2, VIRQ.CONSOLE)


def pages(w: Ports, count: int) -> None:
    """`count` array pages in all, the same frame again and again, as Xen lets a guest do."""
    while lib.fifo_read_word(w.guest.kernel, count * 1024 - 1) < 0:
        w.guest.evtchn.expand_array(ARRAY_PFN)


def status(kind: EVTCHNSTAT, vcpu: int = 0, **fields: int) -> PortStatus:
    return PortStatus(status=kind, vcpu=vcpu, **fields)


OPERATIONS = {
    "sched_poll": "SCHEDOP_poll",
    "set_virq_handler": "XEN_DOMCTL_set_virq_handler",
    "set_vector": "HVMOP_set_evtchn_upcall_vector",
}


def device_model(w: Ports) -> None:
    w.dom0.domctl.set_target(2, 1)


BOTH, TWO, FIFO = "both", "2-level", "fifo"

ROWS: list[Row] = [
    # alloc_unbound
    ("alloc_unbound", "for dom0", lambda w: w.guest.evtchn.alloc_unbound(0), 8, BOTH),
    ("alloc_unbound", "for a domain that does not exist", lambda w: w.guest.evtchn.alloc_unbound(999), 8, BOTH),
    ("alloc_unbound", "for a reserved domid", lambda w: w.guest.evtchn.alloc_unbound(0x7FF2), 8, BOTH),
    ("alloc_unbound", "for itself", lambda w: w.guest.evtchn.alloc_unbound(SELF), 8, BOTH),
    ("alloc_unbound", "dom is the caller's number", lambda w: w.guest.evtchn.alloc_unbound(0, dom=1), 8, BOTH),
    ("alloc_unbound", "in a guest by dom0", lambda w: w.dom0.evtchn.alloc_unbound(0, dom=1), 8, BOTH),
    ("alloc_unbound", "in a domain that does not exist", lambda w: w.guest.evtchn.alloc_unbound(0, dom=77), "ESRCH", BOTH),
    ("alloc_unbound", "in a domain that does not exist, by dom0", lambda w: w.dom0.evtchn.alloc_unbound(0, dom=77), "ESRCH", BOTH),
    ("alloc_unbound", "in dom0 by a guest", lambda w: w.guest.evtchn.alloc_unbound(0, dom=0), "EPERM", BOTH),
    ("alloc_unbound", "in another guest by a guest", lambda w: w.other.evtchn.alloc_unbound(0, dom=1), "EPERM", BOTH),
    ("alloc_unbound", "no port left", full(lambda w: w.guest.evtchn.alloc_unbound(0)), "ENOSPC", BOTH),
    ("alloc_unbound", "no port left comes before EPERM", full(lambda w: w.other.evtchn.alloc_unbound(0, dom=1)), "ENOSPC", BOTH),
    ("alloc_unbound", "dying", dying(lambda w: w.guest.evtchn.alloc_unbound(0)), "EINVAL", BOTH),
    ("alloc_unbound", "dying comes before EPERM", dying(lambda w: w.other.evtchn.alloc_unbound(0, dom=1)), "EINVAL", BOTH),
    ("alloc_unbound", "in a guest by its device model", after(device_model, lambda w: w.other.evtchn.alloc_unbound(SELF, dom=1)), 8, BOTH),
    ("alloc_unbound", "in its device model by a guest", after(device_model, lambda w: w.guest.evtchn.alloc_unbound(SELF, dom=2)), "EPERM", BOTH),
    # bind_interdomain
    ("bind_interdomain", "an unbound port", lambda w: w.dom0.evtchn.bind_interdomain(1, w.unbound), 3, BOTH),
    ("bind_interdomain", "no such domain", lambda w: w.guest.evtchn.bind_interdomain(77, 1), "ESRCH", BOTH),
    ("bind_interdomain", "no local port left", full(lambda w: w.guest.evtchn.bind_interdomain(0, 1)), "ENOSPC", BOTH),
    ("bind_interdomain", "no local port left comes before a bad remote port", full(lambda w: w.guest.evtchn.bind_interdomain(0, 9999)), "ENOSPC", BOTH),
    ("bind_interdomain", "dying", dying(lambda w: w.guest.evtchn.bind_interdomain(0, 1)), "EINVAL", BOTH),
    ("bind_interdomain", "remote port 0", lambda w: w.dom0.evtchn.bind_interdomain(1, 0), "EINVAL", BOTH),
    ("bind_interdomain", "remote port free", lambda w: w.dom0.evtchn.bind_interdomain(1, w.free), "EINVAL", BOTH),
    ("bind_interdomain", "remote port beyond the valid ones", lambda w: w.dom0.evtchn.bind_interdomain(1, BEYOND), "EINVAL", BOTH),
    ("bind_interdomain", "remote port huge", lambda w: w.dom0.evtchn.bind_interdomain(1, 0xFFFFFFFF), "EINVAL", BOTH),
    ("bind_interdomain", "remote port interdomain already", lambda w: w.dom0.evtchn.bind_interdomain(1, w.inter), "EINVAL", BOTH),
    ("bind_interdomain", "remote port an IPI", lambda w: w.dom0.evtchn.bind_interdomain(1, w.ipi), "EINVAL", BOTH),
    ("bind_interdomain", "remote port a VIRQ", lambda w: w.dom0.evtchn.bind_interdomain(1, w.timer), "EINVAL", BOTH),
    ("bind_interdomain", "unbound for somebody else", lambda w: w.other.evtchn.bind_interdomain(1, w.unbound), "EINVAL", BOTH),
    ("bind_interdomain", "own port that is not for itself", lambda w: w.guest.evtchn.bind_interdomain(SELF, w.unbound), "EINVAL", BOTH),
    ("bind_interdomain", "loopback", lambda w: w.guest.evtchn.bind_interdomain(SELF, w.guest.evtchn.alloc_unbound(SELF)), 9, BOTH),
    ("bind_interdomain", "Xen's port, for who it is for", lambda w: w.other.evtchn.bind_interdomain(1, w.guest.evtchn.alloc_xen_port(2, print)), 1, BOTH),
    # bind_virq
    ("bind_virq", "V on vcpu 0", lambda w: w.guest.evtchn.bind_virq(VIRQ.TIMER, 0), 8, BOTH),
    ("bind_virq", "V DEBUG on vcpu 1", lambda w: w.guest.evtchn.bind_virq(VIRQ.DEBUG, 1), 8, BOTH),
    ("bind_virq", "V XENPMU", lambda w: w.guest.evtchn.bind_virq(VIRQ.XENPMU, 1), 8, BOTH),
    ("bind_virq", "G by the hardware domain", lambda w: w.dom0.evtchn.bind_virq(VIRQ.DOM_EXC), 3, BOTH),
    ("bind_virq", "G ARCH_7 by the hardware domain", lambda w: w.dom0.evtchn.bind_virq(23), 3, BOTH),
    ("bind_virq", "number 24", lambda w: w.guest.evtchn.bind_virq(24), "EINVAL", BOTH),
    ("bind_virq", "number 2^32 - 1", lambda w: w.guest.evtchn.bind_virq(0xFFFFFFFF), "EINVAL", BOTH),
    ("bind_virq", "negative number", lambda w: w.guest.evtchn.bind_virq(-1), "EINVAL", BOTH),
    ("bind_virq", "G on vcpu 1", lambda w: w.dom0.evtchn.bind_virq(VIRQ.DOM_EXC, 1), "EINVAL", BOTH),
    ("bind_virq", "D on vcpu 1", lambda w: w.guest.evtchn.bind_virq(VIRQ.ARGO, 1), "EINVAL", BOTH),
    ("bind_virq", "number 5 counts as G: vcpu 1", lambda w: w.dom0.evtchn.bind_virq(5, 1), "EINVAL", BOTH),
    ("bind_virq", "G on a vcpu that is not there is EINVAL first", lambda w: w.guest.evtchn.bind_virq(VIRQ.CONSOLE, 9), "EINVAL", BOTH),
    ("bind_virq", "V on a vcpu that is not there", lambda w: w.guest.evtchn.bind_virq(VIRQ.TIMER, 2), "ENOENT", BOTH),
    ("bind_virq", "V on a vcpu far beyond", lambda w: w.guest.evtchn.bind_virq(VIRQ.TIMER, 0xFFFFFFFF), "ENOENT", BOTH),
    ("bind_virq", "G of another domain", lambda w: w.guest.evtchn.bind_virq(VIRQ.CONSOLE), "EBUSY", BOTH),
    ("bind_virq", "number 5 counts as G", lambda w: w.guest.evtchn.bind_virq(5), "EBUSY", BOTH),
    ("bind_virq", "number 14 counts as G", lambda w: w.guest.evtchn.bind_virq(14), "EBUSY", BOTH),
    ("bind_virq", "number 15 counts as G", lambda w: w.guest.evtchn.bind_virq(15), "EBUSY", BOTH),
    ("bind_virq", "G after a domctl gave it away", after(handler_is_other, lambda w: w.dom0.evtchn.bind_virq(VIRQ.CONSOLE)), "EBUSY", BOTH),
    ("bind_virq", "V bound on that vcpu", lambda w: w.guest.evtchn.bind_virq(VIRQ.TIMER, 1), "EEXIST", BOTH),
    ("bind_virq", "D bound", lambda w: w.guest.evtchn.bind_virq(VIRQ.ARGO), "EEXIST", BOTH),
    ("bind_virq", "bound comes before no port left", full(lambda w: w.guest.evtchn.bind_virq(VIRQ.ARGO)), "EEXIST", BOTH),
    ("bind_virq", "no port left", full(lambda w: w.guest.evtchn.bind_virq(VIRQ.DEBUG)), "ENOSPC", BOTH),
    ("bind_virq", "dying", dying(lambda w: w.guest.evtchn.bind_virq(VIRQ.DEBUG)), "EINVAL", BOTH),
    # set_virq_handler
    ("set_virq_handler", "V", lambda w: w.dom0.domctl.set_virq_handler(2, VIRQ.TIMER), "EINVAL", TWO),
    ("set_virq_handler", "D", lambda w: w.dom0.domctl.set_virq_handler(2, VIRQ.ARGO), "EINVAL", TWO),
    ("set_virq_handler", "number 24", lambda w: w.dom0.domctl.set_virq_handler(2, 24), "EINVAL", TWO),
    ("set_virq_handler", "a dying domain", dying(lambda w: w.dom0.domctl.set_virq_handler(1, VIRQ.CONSOLE)), "EINVAL", TWO),
    ("set_virq_handler", "bound by the present handler", after(lambda w: w.dom0.evtchn.bind_virq(VIRQ.CONSOLE), lambda w: w.dom0.domctl.set_virq_handler(2, VIRQ.CONSOLE)), "EBUSY", TWO),
    ("set_virq_handler", "the handler it has", lambda w: w.dom0.domctl.set_virq_handler(0, VIRQ.CONSOLE), None, TWO),
    # bind_pirq
    ("bind_pirq", "in range", lambda w: w.guest.evtchn.bind_pirq(6), 8, BOTH),
    ("bind_pirq", "the last", lambda w: w.guest.evtchn.bind_pirq(255), 8, BOTH),
    ("bind_pirq", "beyond the domain's number", lambda w: w.guest.evtchn.bind_pirq(256), "EINVAL", BOTH),
    ("bind_pirq", "negative", lambda w: w.guest.evtchn.bind_pirq(-1), "EINVAL", BOTH),
    ("bind_pirq", "not the domain's", after(lambda w: setattr(w.guest.evtchn, "permitted_pirqs", frozenset([7])), lambda w: w.guest.evtchn.bind_pirq(6)), "EPERM", BOTH),
    ("bind_pirq", "out of range comes before EPERM", after(lambda w: setattr(w.guest.evtchn, "permitted_pirqs", frozenset()), lambda w: w.guest.evtchn.bind_pirq(300)), "EINVAL", BOTH),
    ("bind_pirq", "bound", lambda w: w.guest.evtchn.bind_pirq(5), "EEXIST", BOTH),
    ("bind_pirq", "no port left", full(lambda w: w.guest.evtchn.bind_pirq(6)), "ENOSPC", BOTH),
    # bind_ipi
    ("bind_ipi", "vcpu 1", lambda w: w.guest.evtchn.bind_ipi(1), 8, BOTH),
    ("bind_ipi", "no such vcpu", lambda w: w.guest.evtchn.bind_ipi(2), "ENOENT", BOTH),
    ("bind_ipi", "no such vcpu comes before no port left", full(lambda w: w.guest.evtchn.bind_ipi(2)), "ENOENT", BOTH),
    ("bind_ipi", "no port left", full(lambda w: w.guest.evtchn.bind_ipi(0)), "ENOSPC", BOTH),
    # close
    ("close", "unbound", lambda w: w.guest.evtchn.close(w.unbound), None, BOTH),
    ("close", "interdomain", lambda w: w.guest.evtchn.close(w.inter), None, BOTH),
    ("close", "the far end", lambda w: w.dom0.evtchn.close(w.far), None, BOTH),
    ("close", "VIRQ", lambda w: w.guest.evtchn.close(w.timer), None, BOTH),
    ("close", "IPI", lambda w: w.guest.evtchn.close(w.ipi), None, BOTH),
    ("close", "PIRQ", lambda w: w.guest.evtchn.close(w.pirq), None, BOTH),
    ("close", "the peer of Xen's port", lambda w: w.dom0.evtchn.close(w.xen_far), None, BOTH),
    ("close", "free", lambda w: w.guest.evtchn.close(w.free), "EINVAL", BOTH),
    ("close", "port 0 is reserved", lambda w: w.guest.evtchn.close(0), "EINVAL", BOTH),
    ("close", "beyond the valid ports", lambda w: w.guest.evtchn.close(BEYOND), "EINVAL", BOTH),
    ("close", "negative", lambda w: w.guest.evtchn.close(-1), "EINVAL", BOTH),
    ("close", "Xen's own", lambda w: w.guest.evtchn.close(w.xen), "EINVAL", BOTH),
    ("close", "twice", after(lambda w: w.guest.evtchn.close(w.ipi), lambda w: w.guest.evtchn.close(w.ipi)), "EINVAL", BOTH),
    # send
    ("send", "interdomain", lambda w: w.guest.evtchn.send(w.inter), None, BOTH),
    ("send", "IPI", lambda w: w.guest.evtchn.send(w.ipi), None, BOTH),
    ("send", "unbound succeeds silently", lambda w: w.guest.evtchn.send(w.unbound), None, BOTH),
    ("send", "to a port that Xen listens on", lambda w: w.dom0.evtchn.send(w.xen_far), None, BOTH),
    ("send", "free", lambda w: w.guest.evtchn.send(w.free), "EINVAL", BOTH),
    ("send", "port 0 is reserved", lambda w: w.guest.evtchn.send(0), "EINVAL", BOTH),
    ("send", "beyond the valid ports", lambda w: w.guest.evtchn.send(BEYOND), "EINVAL", BOTH),
    ("send", "huge", lambda w: w.guest.evtchn.send(0xFFFFFFFF), "EINVAL", BOTH),
    ("send", "negative", lambda w: w.guest.evtchn.send(-2), "EINVAL", BOTH),
    ("send", "VIRQ", lambda w: w.guest.evtchn.send(w.timer), "EINVAL", BOTH),
    ("send", "PIRQ", lambda w: w.guest.evtchn.send(w.pirq), "EINVAL", BOTH),
    ("send", "Xen's own", lambda w: w.guest.evtchn.send(w.xen), "EINVAL", BOTH),
    ("send", "closed", after(lambda w: w.guest.evtchn.close(w.inter), lambda w: w.guest.evtchn.send(w.inter)), "EINVAL", BOTH),
    # status
    ("status", "free", lambda w: w.guest.evtchn.status(w.free), status(EVTCHNSTAT.closed), BOTH),
    ("status", "port 0", lambda w: w.guest.evtchn.status(0), status(EVTCHNSTAT.closed), BOTH),
    ("status", "unbound", lambda w: w.guest.evtchn.status(w.unbound), status(EVTCHNSTAT.unbound), BOTH),
    ("status", "unbound for another", lambda w: w.guest.evtchn.status(w.guest.evtchn.alloc_unbound(9)), status(EVTCHNSTAT.unbound, remote_domid=9), BOTH),
    ("status", "interdomain", lambda w: w.dom0.evtchn.status(w.far), status(EVTCHNSTAT.interdomain, remote_domid=1, remote_port=2), BOTH),
    ("status", "VIRQ", lambda w: w.guest.evtchn.status(w.timer), status(EVTCHNSTAT.virq, 1, virq=0), BOTH),
    ("status", "VIRQ D", lambda w: w.guest.evtchn.status(w.argo), status(EVTCHNSTAT.virq, virq=11), BOTH),
    ("status", "PIRQ", lambda w: w.guest.evtchn.status(w.pirq), status(EVTCHNSTAT.pirq, pirq=5), BOTH),
    ("status", "IPI", lambda w: w.guest.evtchn.status(w.ipi), status(EVTCHNSTAT.ipi, 1), BOTH),
    ("status", "of a guest by dom0", lambda w: w.dom0.evtchn.status(w.ipi, 1), status(EVTCHNSTAT.ipi, 1), BOTH),
    ("status", "Xen's own tells its peer", lambda w: w.guest.evtchn.status(w.xen), status(EVTCHNSTAT.interdomain, remote_port=2), BOTH),
    ("status", "no such domain", lambda w: w.guest.evtchn.status(1, 77), "ESRCH", BOTH),
    ("status", "beyond the valid ports", lambda w: w.guest.evtchn.status(BEYOND), "EINVAL", BOTH),
    ("status", "beyond comes before EPERM", lambda w: w.guest.evtchn.status(BEYOND, 0), "EINVAL", BOTH),
    ("status", "of dom0 by a guest", lambda w: w.guest.evtchn.status(1, 0), "EPERM", BOTH),
    ("status", "of a guest by its device model", after(device_model, lambda w: w.other.evtchn.status(w.ipi, 1)), status(EVTCHNSTAT.ipi, 1), BOTH),
    # bind_vcpu
    ("bind_vcpu", "interdomain", lambda w: w.guest.evtchn.bind_vcpu(w.inter, 1), None, BOTH),
    ("bind_vcpu", "unbound", lambda w: w.guest.evtchn.bind_vcpu(w.unbound, 1), None, BOTH),
    ("bind_vcpu", "VIRQ D", lambda w: w.guest.evtchn.bind_vcpu(w.argo, 1), None, BOTH),
    ("bind_vcpu", "PIRQ", lambda w: w.guest.evtchn.bind_vcpu(w.pirq, 1), None, BOTH),
    ("bind_vcpu", "no such vcpu", lambda w: w.guest.evtchn.bind_vcpu(w.inter, 2), "ENOENT", BOTH),
    ("bind_vcpu", "no such vcpu comes before a bad port", lambda w: w.guest.evtchn.bind_vcpu(BEYOND, 2), "ENOENT", BOTH),
    ("bind_vcpu", "IPI", lambda w: w.guest.evtchn.bind_vcpu(w.ipi, 0), "EINVAL", BOTH),
    ("bind_vcpu", "VIRQ V", lambda w: w.guest.evtchn.bind_vcpu(w.timer, 0), "EINVAL", BOTH),
    ("bind_vcpu", "free", lambda w: w.guest.evtchn.bind_vcpu(w.free, 1), "EINVAL", BOTH),
    ("bind_vcpu", "port 0", lambda w: w.guest.evtchn.bind_vcpu(0, 1), "EINVAL", BOTH),
    ("bind_vcpu", "beyond the valid ports", lambda w: w.guest.evtchn.bind_vcpu(BEYOND, 1), "EINVAL", BOTH),
    ("bind_vcpu", "Xen's own", lambda w: w.guest.evtchn.bind_vcpu(w.xen, 1), "EINVAL", BOTH),
    # unmask
    ("unmask", "bound", lambda w: w.guest.evtchn.unmask(w.inter), None, BOTH),
    ("unmask", "free does nothing", lambda w: w.guest.evtchn.unmask(w.free), None, BOTH),
    ("unmask", "port 0 does nothing", lambda w: w.guest.evtchn.unmask(0), None, BOTH),
    ("unmask", "Xen's own does nothing", lambda w: w.guest.evtchn.unmask(w.xen), None, BOTH),
    ("unmask", "beyond the valid ports", lambda w: w.guest.evtchn.unmask(BEYOND), "EINVAL", BOTH),
    # reset
    ("reset", "own", lambda w: w.guest.evtchn.reset(), None, BOTH),
    ("reset", "own by number", lambda w: w.guest.evtchn.reset(1), None, BOTH),
    ("reset", "no such domain", lambda w: w.guest.evtchn.reset(77), "ESRCH", BOTH),
    ("reset", "another's by a guest", lambda w: w.other.evtchn.reset(1), "EPERM", BOTH),
    ("reset", "dom0 by a guest", lambda w: w.guest.evtchn.reset(0), "EPERM", BOTH),
    ("reset", "a guest that runs", lambda w: w.dom0.evtchn.reset(1), "EINVAL", BOTH),
    ("reset", "a guest that the toolstack paused", after(lambda w: w.guest.pause(), lambda w: w.dom0.evtchn.reset(1)), None, BOTH),
    ("reset", "one in progress", after(lambda w: setattr(w.guest.evtchn, "_resetting", True), lambda w: w.guest.evtchn.reset()), "EBUSY", BOTH),
    ("reset", "a guest that runs, by its device model", after(device_model, lambda w: w.other.evtchn.reset(1)), "EINVAL", BOTH),
    # init_control
    ("init_control", "first", lambda w: w.guest.evtchn.init_control(CONTROL_PFN, 0, 0), 17, TWO),
    ("init_control", "first for vcpu 1", lambda w: w.guest.evtchn.init_control(CONTROL_PFN, 8, 1), 17, TWO),
    ("init_control", "the last offset", lambda w: w.guest.evtchn.init_control(CONTROL_PFN, 4024, 0), 17, TWO),
    ("init_control", "no such vcpu", lambda w: w.guest.evtchn.init_control(CONTROL_PFN, 0, 2), "ENOENT", BOTH),
    ("init_control", "no such vcpu comes before a bad offset", lambda w: w.guest.evtchn.init_control(CONTROL_PFN, 5000, 2), "ENOENT", BOTH),
    ("init_control", "crosses the page", lambda w: w.guest.evtchn.init_control(CONTROL_PFN, 4032, 0), "EINVAL", BOTH),
    ("init_control", "offset huge", lambda w: w.guest.evtchn.init_control(CONTROL_PFN, 0xFFFFFFF8, 0), "EINVAL", BOTH),
    ("init_control", "not 8-aligned", lambda w: w.guest.evtchn.init_control(CONTROL_PFN, 4, 0), "EINVAL", BOTH),
    ("init_control", "the vcpu has one", lambda w: w.guest.evtchn.init_control(CONTROL_PFN, 0, 0), "EINVAL", FIFO),
    ("init_control", "no RAM there", lambda w: w.guest.evtchn.init_control(NO_RAM, 0, 0), "EINVAL", TWO),
    ("init_control", "gfn beyond any", lambda w: w.guest.evtchn.init_control(1 << 60, 0, 0), "EINVAL", TWO),
    # expand_array
    ("expand_array", "2-level", lambda w: w.guest.evtchn.expand_array(ARRAY_PFN), "EOPNOTSUPP", TWO),
    ("expand_array", "2-level comes before a bad gfn", lambda w: w.guest.evtchn.expand_array(NO_RAM), "EOPNOTSUPP", TWO),
    ("expand_array", "second page", lambda w: w.guest.evtchn.expand_array(ARRAY_PFN + 1), None, FIFO),
    ("expand_array", "no RAM there", lambda w: w.guest.evtchn.expand_array(NO_RAM), "EINVAL", FIFO),
    ("expand_array", "gfn beyond any", lambda w: w.guest.evtchn.expand_array(1 << 60), "EINVAL", FIFO),
    ("expand_array", "the 128th page", after(lambda w: pages(w, 127), lambda w: w.guest.evtchn.expand_array(ARRAY_PFN)), None, FIFO),
    ("expand_array", "after 128 pages", after(lambda w: pages(w, 128), lambda w: w.guest.evtchn.expand_array(ARRAY_PFN)), "ENOSPC", FIFO),
    ("expand_array", "128 pages come before a bad gfn", after(lambda w: pages(w, 128), lambda w: w.guest.evtchn.expand_array(NO_RAM)), "ENOSPC", FIFO),
    # set_priority
    ("set_priority", "highest", lambda w: w.guest.evtchn.set_priority(w.inter, 0), None, FIFO),
    ("set_priority", "lowest", lambda w: w.guest.evtchn.set_priority(w.inter, 15), None, FIFO),
    ("set_priority", "2-level", lambda w: w.guest.evtchn.set_priority(w.inter, 3), "ENOSYS", TWO),
    ("set_priority", "2-level comes before a free port", lambda w: w.guest.evtchn.set_priority(w.free, 99), "ENOSYS", TWO),
    ("set_priority", "beyond the valid ports comes before 2-level", lambda w: w.guest.evtchn.set_priority(BEYOND, 3), "EINVAL", BOTH),
    ("set_priority", "free", lambda w: w.guest.evtchn.set_priority(w.free, 3), "EACCES", FIFO),
    ("set_priority", "port 0", lambda w: w.guest.evtchn.set_priority(0, 3), "EACCES", FIFO),
    ("set_priority", "Xen's own", lambda w: w.guest.evtchn.set_priority(w.xen, 3), "EACCES", FIFO),
    ("set_priority", "free comes before a bad priority", lambda w: w.guest.evtchn.set_priority(w.free, 99), "EACCES", FIFO),
    ("set_priority", "16", lambda w: w.guest.evtchn.set_priority(w.inter, 16), "EINVAL", FIFO),
    # SCHEDOP_poll
    ("sched_poll", "129 ports", lambda w: w.guest.evtchn.sched_poll([1] * 129, wake=w.guest.tasks[0]), "EINVAL", BOTH),
    ("sched_poll", "free port", lambda w: w.guest.evtchn.sched_poll([w.free], wake=w.guest.tasks[0]), "EINVAL", BOTH),
    ("sched_poll", "beyond the valid ports", lambda w: w.guest.evtchn.sched_poll([w.inter, BEYOND], wake=w.guest.tasks[0]), "EINVAL", BOTH),
    ("sched_poll", "Xen's own", lambda w: w.guest.evtchn.sched_poll([w.xen], wake=w.guest.tasks[0]), "EINVAL", BOTH),
    ("sched_poll", "port 0", lambda w: w.guest.evtchn.sched_poll([0], wake=w.guest.tasks[0]), "EINVAL", BOTH),
    ("sched_poll", "128 idle ports sleep", lambda w: w.guest.evtchn.sched_poll([w.inter] * 128, wake=w.guest.tasks[0]), False, BOTH),
    ("sched_poll", "no port sleeps", lambda w: w.guest.evtchn.sched_poll([], wake=w.guest.tasks[0]), False, BOTH),
    ("set_virq_handler", "no such domain", lambda w: w.dom0.domctl.set_virq_handler(77, VIRQ.CONSOLE), "ESRCH", TWO),
    ("set_virq_handler", "by a guest", lambda w: w.guest.domctl.set_virq_handler(1, VIRQ.CONSOLE), "EPERM", TWO),
    # HVMOP_set_evtchn_upcall_vector
    ("set_vector", "15 is no vector for devices", lambda w: w.guest.hvm.set_evtchn_upcall_vector(0, 15), "EINVAL", TWO),
    ("set_vector", "256", lambda w: w.guest.hvm.set_evtchn_upcall_vector(0, 256), "EINVAL", TWO),
    ("set_vector", "no such vcpu", lambda w: w.guest.hvm.set_evtchn_upcall_vector(2, 32), "ENOENT", TWO),
    ("set_vector", "16", lambda w: w.guest.hvm.set_evtchn_upcall_vector(1, 16), None, TWO),
]  # fmt: skip

CASES = [
    pytest.param(row, abi == FIFO, id=f"{row[0]}: {row[1]} ({abi})")
    for row in ROWS
    for abi in (TWO, FIFO)
    if row[4] in (BOTH, abi)
]


def test_the_table_is_as_long_as_it_should_be() -> None:
    assert len(ROWS) >= 110
    assert len({(op, situation) for op, situation, *_ in ROWS}) == len(ROWS)


@pytest.mark.parametrize(("row", "fifo"), CASES)
def test_evtchnop(hypervisor: Hypervisor, row: Row, fifo: bool) -> None:
    operation, _, call, expected, _ = row
    w = make(hypervisor, fifo=fifo)
    getattr(call, "first", lambda w: None)(w)
    if not isinstance(expected, str):
        assert call(w) == expected
        return
    if "full" in call.__qualname__:
        fill(w.guest, 20)
    before = snapshot(w)
    with pytest.raises(HypercallError) as caught:
        call(w)
    assert caught.value.name == expected
    assert caught.value.operation == OPERATIONS.get(operation, f"EVTCHNOP_{operation}")
    assert caught.value.arguments
    assert snapshot(w) == before


def test_a_global_virq_goes_to_its_handler_and_follows_bind_vcpu(hypervisor: Hypervisor) -> None:
    w = make(hypervisor, fifo=False)
    assert not hypervisor.global_virqs.send(VIRQ.CONSOLE)
    w.dom0.domctl.set_virq_handler(1, VIRQ.CONSOLE)
    port = w.guest.evtchn.bind_virq(VIRQ.CONSOLE)
    w.guest.evtchn.bind_vcpu(port, 1)
    assert hypervisor.global_virqs.send(VIRQ.CONSOLE)
    assert lib.evtchn_upcall_pending(w.guest.kernel, 0) == 0
    assert lib.evtchn_upcall_pending(w.guest.kernel, 1) == 1
    assert w.take(w.guest) == [port]
    w.guest.evtchn.close(port)
    assert not hypervisor.global_virqs.send(VIRQ.CONSOLE)


def test_a_per_vcpu_virq_goes_to_the_vcpu_it_was_bound_on(hypervisor: Hypervisor) -> None:
    w = make(hypervisor, fifo=False)
    assert w.guest.evtchn.raise_virq(VIRQ.TIMER, 1)
    assert not w.guest.evtchn.raise_virq(VIRQ.TIMER, 0)
    assert lib.evtchn_upcall_pending(w.guest.kernel, 1) == 1
    assert w.take(w.guest) == [w.timer]


def test_a_dead_handlers_virq_goes_back_to_the_hardware_domain(hypervisor: Hypervisor) -> None:
    w = make(hypervisor, fifo=False)
    w.dom0.domctl.set_virq_handler(2, VIRQ.CONSOLE)
    hypervisor.destroy_domain(w.other)
    assert w.dom0.evtchn.bind_virq(VIRQ.CONSOLE)


@pytest.mark.parametrize("fifo", [False, True])
def test_an_xen_owned_port_survives_a_reset(hypervisor: Hypervisor, fifo: bool) -> None:
    w = make(hypervisor, fifo=fifo)
    w.guest.evtchn.reset()
    assert not w.guest.evtchn.fifo
    assert w.guest.evtchn.bound() == 1
    w.dom0.evtchn.send(w.xen_far)
    assert w.heard == [w.xen]
    assert w.dom0.evtchn.status(w.far).status is EVTCHNSTAT.unbound
    w.guest.evtchn.notify_from_xen(w.xen)
    assert w.take(w.dom0) == [w.xen_far]
    w.guest.evtchn.free_xen_port(w.xen)
    assert w.dom0.evtchn.status(w.xen_far).status is EVTCHNSTAT.unbound


@pytest.mark.parametrize(
    ("is_32bit", "fifo", "max_port", "limit"),
    [(False, False, 200_000, 4096), (True, False, 200_000, 1024), (False, False, 1023, 1024),
     (False, True, 200_000, 131_072), (True, True, 200_000, 131_072), (False, True, 5000, 5001),
     (True, False, 10, 11)],
)  # fmt: skip
def test_limits(
    hypervisor: Hypervisor, is_32bit: bool, fifo: bool, max_port: int, limit: int
) -> None:
    one = domain(hypervisor, is_32bit=is_32bit, max_event_channels=max_port)
    if fifo:
        enable_fifo(one, pages=128)
    count = 0
    for count in range(1, limit):
        assert one.evtchn.alloc_unbound(0) == count
    with pytest.raises(HypercallError, match="ENOSPC"):
        one.evtchn.alloc_unbound(0)
    assert count == one.evtchn.bound()
    assert one.evtchn.limit == limit
    one.evtchn.close(count // 2)
    assert one.evtchn.alloc_unbound(0) == count // 2
