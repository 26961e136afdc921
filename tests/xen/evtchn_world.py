"""Three domains with a port in every state, in either ABI; what the event channel tests use."""

from __future__ import annotations

import attrs

from tests.xen.conftest import domain
from xenpv.abi._kernel import ffi, lib
from xenpv.abi.evtchn import VIRQ
from xenpv.xen.domain import Domain
from xenpv.xen.hypervisor import Hypervisor

CONTROL_PFN = 0x110  # RAM of the guests, used for FIFO pages
ARRAY_PFN = 0x120
NO_RAM = 0x8000
BEYOND = 64  # the first port that is not valid


def enable_fifo(guest: Domain, pages: int = 1) -> None:
    """Control blocks for all vcpus in one page, `pages` array pages with every port unmasked."""
    for vcpu in range(guest.vcpus):
        assert guest.evtchn.init_control(CONTROL_PFN, 72 * vcpu, vcpu) == 17
    for page in range(pages):
        guest.evtchn.expand_array(ARRAY_PFN + page)


@attrs.define(eq=False)
class Ports:
    """dom0, an unprivileged guest of two vcpus with a port of each kind, and a stranger."""

    hypervisor: Hypervisor
    dom0: Domain
    guest: Domain
    other: Domain
    fifo: bool
    heard: list[int] = attrs.Factory(list)  # what Xen's own consumer was told
    unbound: int = 0
    inter: int = 0
    far: int = 0  # dom0's end of inter
    timer: int = 0
    argo: int = 0
    ipi: int = 0
    pirq: int = 0
    xen: int = 0
    xen_far: int = 0  # dom0's end of the Xen-owned port
    free: int = 40

    def take(self, one: Domain) -> list[int]:
        """Every pending port, acknowledged; what links are left is not looked at."""
        due = [
            port
            for port in range(1, len(one.evtchn.ports))
            if lib.evtchn_is_pending(one.kernel, port) == 1
        ]
        for port in due:
            lib.evtchn_clear_pending(one.kernel, port)
        return due


def make(hypervisor: Hypervisor, *, fifo: bool) -> Ports:
    dom0 = domain(hypervisor, 0)
    guest = domain(hypervisor, vcpus=2)
    other = domain(hypervisor)
    if fifo:
        enable_fifo(guest)
    w = Ports(hypervisor, dom0, guest, other, fifo)
    w.unbound = guest.evtchn.alloc_unbound(0)
    w.inter = guest.evtchn.alloc_unbound(0)
    w.far = dom0.evtchn.bind_interdomain(guest.domid, w.inter)
    w.timer = guest.evtchn.bind_virq(VIRQ.TIMER, 1)
    w.argo = guest.evtchn.bind_virq(VIRQ.ARGO)
    w.ipi = guest.evtchn.bind_ipi(1)
    w.pirq = guest.evtchn.bind_pirq(5)
    w.xen = guest.evtchn.alloc_xen_port(0, w.heard.append)
    w.xen_far = dom0.evtchn.bind_interdomain(guest.domid, w.xen)
    ports = ffi.new("uint32_t[]", 64)
    lib.evtchn_scan(dom0.kernel, 0, ports, 64, 1)
    dom0.loop.run()
    return w


def snapshot(w: Ports) -> object:
    """Everything that an operation could have changed."""
    return (
        [
            (
                one.domid,
                one.evtchn.fifo,
                len(one.evtchn.ports),
                one.evtchn.bound(),
                [
                    (
                        one.evtchn.status(port),
                        lib.evtchn_is_pending(one.kernel, port),
                        lib.evtchn_is_masked(one.kernel, port),
                        lib.fifo_read_word(one.kernel, port),
                        lib.evtchn_get_priority(lib.evtchn_port(one.kernel, port)),
                        lib.evtchn_is_saved(lib.evtchn_port(one.kernel, port)),
                    )
                    for port in range(len(one.evtchn.ports))
                ],
                [lib.evtchn_upcall_pending(one.kernel, vcpu) for vcpu in range(one.vcpus)],
                [(port, route[2].number) for port, route in sorted(one.evtchn._routes.items())],
                sorted(one.evtchn._virqs.items()),
                sorted(one.evtchn._pirqs.items()),
                sorted(one.evtchn.pollers.asleep),
                sorted(one.evtchn.callbacks.vectors.items()),
                [task.queued or task.due for task in one.tasks],
                lib.domain_tot_pages(one.kernel),
                one.evtchn._table.lowest_free(),
            )
            for one in (w.dom0, w.guest, w.other)
        ],
        {virq: w.hypervisor.global_virqs.handler(virq) for virq in range(24)},
        lib.machine_used_frames(w.hypervisor.machine),
        list(w.heard),
    )
