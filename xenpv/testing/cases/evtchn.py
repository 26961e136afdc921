"""Cases of event channels in the 2-level ABI: hypercalls, shared_info, advisories. The FIFO ABI
and what a guest's own drivers make of events are in evtchnfifo.
"""

from __future__ import annotations

from typing import Any

from xenpv.abi._kernel import lib
from xenpv.testing.cases.claims import expect
from xenpv.testing.cases.machinescene import (
    EVENT_CHANNEL_OP,
    NOBODY,
    SHARED_INFO_PFN,
    MachineScene,
)
from xenpv.testing.cases.suite import Suite

SUITE = Suite("evtchn", "EVT-", MachineScene)

HEADER = "public/event_channel.h"
CODE = "xen/common/event_channel.c"
TWO_LEVEL = "xen/common/event_2l.c"
CLOSED, UNBOUND, INTERDOMAIN, PIRQ, VIRQ, IPI = range(6)
TIMER, DEBUG, DOM_EXC, ARGO = 0, 1, 3, 11
BAD_PORTS = (0, 64, 4095, 4096, 131_071, 131_072, 0x7FFFFFFF, 0xFFFFFFFF)
BAD_ADDRESS = 0xDEAD_0000_0000


@SUITE.case(
    "EVT-001",
    "the lowest free port is given out, and its status says what it is",
    source=f"{CODE}, evtchn_allocate_port, evtchn_status",
    expected="1, 2, 3...; a closed one again first",
    hostile=False,
)
def _lowest(s: MachineScene) -> None:
    guest = s.guest
    made = [guest.alloc_unbound(0), guest.bind_virq(TIMER), guest.bind_ipi(1)]
    expect(made, [1, 2, 3], "ports")
    expect([guest.status(port) for port in (1, 2, 3, 4)], [UNBOUND, VIRQ, IPI, CLOSED], "status")
    expect(guest.close(2), 0, "close")
    expect([guest.alloc_unbound(0), guest.alloc_unbound(0)], [2, 4], "ports after a close")


@SUITE.case(
    "EVT-002",
    "binding joins two ports, and makes the binder's pending",
    source=f"{CODE}, evtchn_bind_interdomain",
    expected="both name each other; the local one is pending at once",
    hostile=False,
)
def _bind(s: MachineScene) -> None:
    near = s.guest.alloc_unbound(0)
    s.dom0.unmask_all()
    far = s.dom0.bind_interdomain(s.guest.domid, int(near))
    expect((s.guest.status(1), s.dom0.status(1)), (INTERDOMAIN, INTERDOMAIN), "status")
    expect(s.guest.peer(1), (0, far), "the guest's peer")
    expect(s.dom0.peer(1), (s.guest.domid, near), "dom0's peer")
    expect((s.dom0.pending(1), s.guest.pending(1)), (True, False), "pending")
    expect(s.dom0.upcall(), True, "dom0's upcall")


@SUITE.case(
    "EVT-003",
    "an event sets the bit, the selector and the upcall; a second one before it is taken, nothing",
    source=f"{TWO_LEVEL}, evtchn_2l_set_pending",
    expected="no new upcall while the bit stands",
    hostile=False,
)
def _pending(s: MachineScene) -> None:
    near, far = s.pair()
    s.guest.unmask_all()
    expect(s.dom0.send(far), 0, "send")
    found = (s.guest.pending(near), s.guest.selector(), s.guest.upcall())
    expect(found, (True, 1, True), "bit, selector and upcall")
    s.guest.take()
    expect(s.dom0.send(far), 0, "send again")
    expect((s.guest.selector(), s.guest.upcall()), (0, False), "while the bit stands")
    s.guest.take(near)
    s.dom0.send(far)
    expect((s.guest.selector(), s.guest.upcall()), (1, True), "once it was taken")


@SUITE.case(
    "EVT-004",
    "a masked port is pending and silent; unmask tells what came",
    source=f"{TWO_LEVEL}, evtchn_2l_unmask",
    expected="no upcall at the event, one at EVTCHNOP_unmask, none if nothing is pending",
    hostile=False,
)
def _masked(s: MachineScene) -> None:
    near, far = s.pair()
    s.guest.unmask_all()
    s.guest.set_mask(near, True)
    s.dom0.send(far)
    expect((s.guest.pending(near), s.guest.upcall()), (True, False), "while masked")
    expect(s.guest.unmask(near), 0, "unmask")
    expect((s.guest.selector(), s.guest.upcall()), (1, True), "after unmask")
    s.guest.take(near)
    s.guest.set_mask(near, True)
    s.guest.unmask(near)
    expect((s.guest.selector(), s.guest.upcall()), (0, False), "unmask of what is not pending")


@SUITE.case(
    "EVT-005",
    "ports that are none",
    source=f"XSA-221, XSA-317; {HEADER}",
    expected="EINVAL from every operation; free ones are closed, and nothing changes",
)
def _no_port(s: MachineScene) -> None:
    guest = s.guest
    s.pair()
    for port in BAD_PORTS:
        expect(guest.send(port), "EINVAL", f"send of port {port:#x}")
        expect(guest.close(port), "EINVAL", f"close of port {port:#x}")
        expect(guest.bind_vcpu(port, 0), "EINVAL", f"bind_vcpu of port {port:#x}")
        expect(guest.poll([port]), "EINVAL", f"poll of port {port:#x}")
        if port >= 64:
            expect(guest.status(port), "EINVAL", f"status of port {port:#x}")
            expect(guest.unmask(port), "EINVAL", f"unmask of port {port:#x}")
    expect(guest.status(2), CLOSED, "status of a free port")
    expect(guest.status(1), INTERDOMAIN, "status of the one that is bound")


@SUITE.case(
    "EVT-006",
    "sending where nobody listens",
    source=f"{CODE}, evtchn_send",
    expected="0 on an unbound port; EINVAL on what is free, a VIRQ or a PIRQ",
)
def _nobody(s: MachineScene) -> None:
    unbound = s.guest.alloc_unbound(0)
    expect(s.guest.send(int(unbound)), 0, "send on an unbound port")
    expect(s.guest.send(int(s.guest.bind_virq(TIMER))), "EINVAL", "send on a VIRQ")
    expect(s.guest.send(9), "EINVAL", "send on a free port")
    ipi = int(s.guest.bind_ipi(0))
    s.guest.unmask_all()
    expect(s.guest.send(ipi), 0, "send on an IPI")
    expect((s.guest.pending(ipi), s.guest.upcall()), (True, True), "the IPI")


@SUITE.case(
    "EVT-007",
    "one end closes: the other is unbound, hears nothing and can be bound again",
    source=f"{CODE}, evtchn_close",
    expected="UNBOUND for the domain that closed; the event that was pending is gone",
)
def _closed(s: MachineScene) -> None:
    near, far = s.pair()
    s.guest.send(near)
    expect(s.dom0.pending(far), True, "pending before the close")
    expect(s.dom0.close(far), 0, "close")
    expect((s.dom0.status(far), s.guest.status(near)), (CLOSED, UNBOUND), "status")
    expect((s.dom0.pending(far), s.guest.pending(near)), (False, False), "pending")
    expect(s.guest.send(near), 0, "send of the other end")
    expect(s.other.bind_interdomain(s.guest.domid, near), "EINVAL", "bind of somebody else")
    expect(s.dom0.bind_interdomain(s.guest.domid, near), far, "bind again")


@SUITE.case(
    "EVT-008",
    "a port that is kept for somebody else, bound already, or was never there",
    source=f"{CODE}, evtchn_bind_interdomain",
    expected="EINVAL, ESRCH for no domain; neither end changes",
)
def _not_yours(s: MachineScene) -> None:
    near, _ = s.pair()
    for_dom0 = int(s.guest.alloc_unbound(0))
    guest = s.guest.domid
    for remote, port, error in (
        (guest, for_dom0, "EINVAL"), (guest, near, "EINVAL"), (guest, 0, "EINVAL"),
        (guest, 50, "EINVAL"), (guest, 0xFFFFFFFF, "EINVAL"), (NOBODY, 1, "ESRCH"),
    ):  # fmt: skip
        expect(s.other.bind_interdomain(remote, port), error, f"bind of d{remote} port {port:#x}")
    expect(s.other.alloc_unbound(0), 1, "the next free port of who was refused")
    expect((s.guest.status(near), s.guest.status(for_dom0)), (INTERDOMAIN, UNBOUND), "status")


@SUITE.case(
    "EVT-009",
    "virtual interrupts: once each, of their vcpu or of the machine's handler",
    source=f"{CODE}, evtchn_bind_virq",
    expected="EEXIST, ENOENT, EINVAL, EBUSY",
)
def _virqs(s: MachineScene) -> None:
    guest = s.guest
    expect((guest.bind_virq(TIMER, 0), guest.bind_virq(TIMER, 1)), (1, 2), "TIMER of each vcpu")
    expect(guest.bind_virq(TIMER, 0), "EEXIST", "TIMER again")
    expect(guest.bind_virq(TIMER, 2), "ENOENT", "TIMER of a vcpu that is none")
    expect(guest.bind_virq(ARGO, 1), "EINVAL", "a domain's VIRQ on vcpu 1")
    expect(guest.bind_virq(24, 0), "EINVAL", "VIRQ 24")
    expect(guest.bind_virq(0xFFFFFFFF, 0), "EINVAL", "VIRQ 0xffffffff")
    expect(guest.bind_virq(DOM_EXC), "EBUSY", "a VIRQ of the machine")
    expect(guest.alloc_unbound(0), 3, "the next free port")


@SUITE.case(
    "EVT-010",
    "a guest that fails to bind DOM_EXC takes it from nobody",
    source="XSA-496",
    expected="EBUSY, EEXIST of the handler itself; a death is still told",
)
def _dom_exc(s: MachineScene) -> None:
    port = int(s.dom0.bind_virq(DOM_EXC))
    s.dom0.unmask_all()
    expect(s.guest.bind_virq(DOM_EXC), "EBUSY", "bind of a guest")
    expect(s.dom0.bind_virq(DOM_EXC), "EEXIST", "bind of dom0 again")
    s.destroy(s.other)
    expect((s.dom0.pending(port), s.dom0.upcall()), (True, True), "dom0 at a death")


@SUITE.case(
    "EVT-011",
    "an event goes to the vcpu that its port is bound to",
    source=f"{CODE}, evtchn_bind_vcpu",
    expected="that vcpu's selector and upcall; EINVAL for IPIs and vcpus' VIRQs, ENOENT",
)
def _vcpus(s: MachineScene) -> None:
    near, far = s.pair()
    guest = s.guest
    guest.unmask_all()
    expect(guest.bind_vcpu(near, 1), 0, "bind_vcpu")
    s.dom0.send(far)
    expect((guest.upcall(0), guest.upcall(1)), (False, True), "upcalls")
    expect((guest.selector(0), guest.selector(1)), (0, 1), "selectors")
    expect(guest.bind_vcpu(near, 2), "ENOENT", "bind_vcpu to a vcpu that is none")
    expect(guest.bind_vcpu(int(guest.bind_ipi(0)), 1), "EINVAL", "bind_vcpu of an IPI")
    expect(guest.bind_vcpu(int(guest.bind_virq(TIMER)), 1), "EINVAL", "bind_vcpu of a vcpu's VIRQ")
    expect(guest.bind_vcpu(int(guest.bind_virq(ARGO)), 1), 0, "bind_vcpu of a domain's VIRQ")


@SUITE.case(
    "EVT-012",
    "no port is left",
    source="XSA-317",
    expected="ENOSPC of every kind of binding; what the peer offered stays; one closed is one free",
)
def _exhausted(s: MachineScene) -> None:
    guest = s.domain(max_event_channels=65)
    expect([guest.alloc_unbound(0) for _ in range(65)], list(range(1, 66)), "ports")
    offered = int(s.dom0.alloc_unbound(guest.domid))
    for name, done in (
        ("alloc_unbound", guest.alloc_unbound(0)),
        ("bind_interdomain", guest.bind_interdomain(0, offered)),
        ("bind_virq", guest.bind_virq(TIMER)),
        ("bind_ipi", guest.bind_ipi(0)),
    ):
        expect(done, "ENOSPC", f"{name} without a free port")
    expect(s.dom0.status(offered), UNBOUND, "what the peer offers")
    expect(guest.close(33), 0, "close")
    expect(guest.bind_interdomain(0, offered), 33, "bind_interdomain afterwards")


@SUITE.case(
    "EVT-013",
    "polling",
    source="XSA-221; public/sched.h, SCHEDOP_poll",
    expected="0 at once for a pending port; EINVAL for 129 ports and for one that is none",
)
def _poll(s: MachineScene) -> None:
    near, far = s.pair()
    s.guest.unmask_all()
    s.dom0.send(far)
    s.guest.take()
    expect(s.guest.poll([near]), 0, "poll of a pending port")
    expect(s.guest.poll([near, 4000]), 0, "poll that ends before the port that is none")
    expect(s.guest.poll([4000, near]), "EINVAL", "poll that meets it first")
    expect(s.guest.poll([near], 129), "EINVAL", "poll of 129 ports")
    expect(s.guest.poll([near], 0xFFFFFFFF), "EINVAL", "poll of very many")


@SUITE.case(
    "EVT-014",
    "a 32-bit guest has 1,023 ports and no more",
    source="XSA-342",
    expected="ENOSPC for the next, whatever the toolstack allowed; the last one works",
)
def _narrow(s: MachineScene) -> None:
    guest = s.domain(is_32bit=True, max_event_channels=100_000)
    expect([guest.alloc_unbound(0) for _ in range(1023)], list(range(1, 1024)), "ports")
    expect(guest.alloc_unbound(0), "ENOSPC", "port 1024")
    before = guest.domain.read(SHARED_INFO_PFN, 0x900, 0x700)
    far = int(s.dom0.bind_interdomain(guest.domid, 1023))
    guest.unmask_all()
    expect(s.dom0.send(far), 0, "send to port 1023")
    expect((guest.pending(1023), guest.selector()), (True, 1 << 31), "bit and selector")
    expect(guest.domain.read(SHARED_INFO_PFN, 0x900, 0x700), before, "shared_info beyond the masks")


@SUITE.case(
    "EVT-015",
    "reset closes everything, once at a time",
    source="XSA-343",
    expected="peers are unbound; a second reset meanwhile is EBUSY; ports are given out from 1",
)
def _reset(s: MachineScene) -> None:
    near, far = s.pair()
    s.guest.bind_virq(TIMER)
    errors: list[Any] = []

    def race(_actor: int, kind: int, _frame: int, _offset: int, _size: int) -> None:
        if kind & lib.ACCESS_ATOMIC and not errors:  # a pending bit is cleared
            errors.append("")
            errors[0] = s.guest.reset()

    with s.meanwhile(race):
        done = s.guest.reset()
    expect((errors, done), (["EBUSY"], 0), "a reset within a reset, and that one")
    expect((s.guest.status(near), s.dom0.status(far)), (CLOSED, UNBOUND), "status")
    expect(s.guest.alloc_unbound(0), 1, "the next port")


@SUITE.case(
    "EVT-016",
    "what a domain may not do to another",
    source=f"{CODE}, xsm_evtchn_*; public/event_channel.h",
    expected="EPERM, ESRCH for nobody; a domain that runs is not reset: EINVAL",
)
def _others(s: MachineScene) -> None:
    s.pair()
    victim, nobody = s.guest.domid, NOBODY
    expect(s.other.alloc_unbound(0, dom=victim), "EPERM", "alloc_unbound for another")
    expect(s.other.status(1, dom=victim), "EPERM", "status of another")
    expect(s.other.reset(victim), "EPERM", "reset of another")
    expect(s.other.alloc_unbound(0, dom=nobody), "ESRCH", "alloc_unbound for nobody")
    expect(s.other.status(1, dom=nobody), "ESRCH", "status of nobody")
    expect(s.other.reset(nobody), "ESRCH", "reset of nobody")
    expect(s.dom0.reset(victim), "EINVAL", "reset of one that runs")
    expect((s.guest.status(1), s.guest.status(2)), (INTERDOMAIN, CLOSED), "status of the guest")


@SUITE.case(
    "EVT-017",
    "a domain dies: its ports are closed as by itself",
    source=f"{CODE}, evtchn_destroy",
    expected="the peer's port is unbound, sending on it is 0, binding to it ESRCH",
)
def _death(s: MachineScene) -> None:
    _, far = s.pair()
    offered = s.guest.alloc_unbound(0)
    s.destroy(s.guest)
    expect((s.dom0.status(far), s.dom0.pending(far)), (UNBOUND, False), "dom0's port")
    expect(s.dom0.send(far), 0, "send")
    expect(s.dom0.bind_interdomain(s.guest.domid, int(offered)), "ESRCH", "bind to a dead domain")
    expect(s.dom0.close(far), 0, "close")


@SUITE.case(
    "EVT-018",
    "structures that cannot be read, and operations that are none",
    source=f"{CODE}, do_event_channel_op",
    expected="EFAULT, ENOSYS; no port was taken",
)
def _faults(s: MachineScene) -> None:
    for cmd in range(14):
        expect(s.guest.call(EVENT_CHANNEL_OP, cmd, BAD_ADDRESS), "EFAULT", f"operation {cmd}")
    for cmd in (14, 99, 0xFFFFFFFF):
        expect(s.guest.call(EVENT_CHANNEL_OP, cmd, s.guest.arg), "ENOSYS", f"operation {cmd:#x}")
    expect(s.guest.alloc_unbound(0), 1, "the next port")


@SUITE.case(
    "EVT-019",
    "a guest scribbles over its shared_info",
    source=f"{TWO_LEVEL}; the page is the guest's to write",
    expected="its own events are lost or not; nobody else's, and they come again when it mends it",
)
def _scribble(s: MachineScene) -> None:
    near, far = s.pair()
    bystander = int(s.other.alloc_unbound(0))
    beside = int(s.dom0.bind_interdomain(s.other.domid, bystander))
    s.other.unmask_all()
    for byte in (b"\xff", b"\xaa", b"\0"):
        s.guest.domain.write(SHARED_INFO_PFN, 0, byte * 0xC00)
        expect((s.dom0.send(far), s.dom0.send(beside)), (0, 0), "send to both")
        expect(s.other.pending(bystander), True, "the other domain's event")
        s.other.take(bystander)
    s.guest.domain.write(SHARED_INFO_PFN, 0, bytes(0xC00))
    s.dom0.send(far)
    expect((s.guest.pending(near), s.guest.upcall()), (True, True), "the guest's own, mended")


@SUITE.case(
    "EVT-020",
    "a loopback channel",
    source=f"{CODE}, double_evtchn_lock of one domain",
    expected="both ports are the caller's; each wakes the other; closing one unbinds the other",
)
def _loopback(s: MachineScene) -> None:
    guest = s.guest
    near = int(guest.alloc_unbound(guest.domid))
    far = int(guest.bind_interdomain(guest.domid, near))
    expect((guest.peer(near), guest.peer(far)), ((guest.domid, far), (guest.domid, near)), "peers")
    guest.unmask_all()
    guest.take(near, far)
    guest.send(near)
    expect((guest.pending(near), guest.pending(far)), (False, True), "pending")
    guest.close(far)
    expect(guest.status(near), UNBOUND, "status of the other end")


@SUITE.case(
    "EVT-021",
    "the upcall is written last",
    source=f"{TWO_LEVEL}, evtchn_2l_set_pending; XSA-358 of the other ABI",
    expected="pending bit, then selector, then evtchn_upcall_pending",
    hostile=False,
)
def _written(s: MachineScene) -> None:
    _, far = s.pair()
    s.guest.unmask_all()
    seen: list[tuple[int, int]] = []

    def note(_actor: int, kind: int, frame: int, offset: int, _size: int) -> None:
        if s.is_write(kind):
            seen.append((frame, offset))

    with s.meanwhile(note):
        s.dom0.send(far)
    shared_info = [frame for frame, offset in seen if offset == 0x800]
    written = [offset for frame, offset in seen if frame in shared_info]
    expect(written, [0x800, 8, 0], "offsets written")
