"""Advisories about event channels, as scenarios: what a fixed Xen does (spec/xen-core 5)."""

from __future__ import annotations

import pytest

from tests.xen.conftest import domain
from tests.xen.evtchn_world import ARRAY_PFN, CONTROL_PFN, NO_RAM, enable_fifo, make, snapshot
from xenpv.abi._kernel import lib
from xenpv.abi.evtchn import EVTCHNSTAT, VIRQ
from xenpv.errors import HypercallError
from xenpv.xen.domain import Domain
from xenpv.xen.hypervisor import Hypervisor

PENDING, MASKED, LINKED = 1 << 31, 1 << 30, 1 << 29


def test_xsa_107_an_event_for_a_vcpu_without_control_block_is_dropped(
    hypervisor: Hypervisor, dom0: Domain
) -> None:
    guest = domain(hypervisor, vcpus=2)
    guest.evtchn.init_control(CONTROL_PFN, 0, 0)
    guest.evtchn.expand_array(ARRAY_PFN)
    ipi = guest.evtchn.bind_ipi(1)
    guest.evtchn.send(ipi)
    assert lib.fifo_read_word(guest.kernel, ipi) == PENDING
    assert lib.evtchn_upcall_pending(guest.kernel, 1) == 0
    del dom0


def test_xsa_188_a_failed_init_control_leaves_nothing_behind(hypervisor: Hypervisor) -> None:
    w = make(hypervisor, fifo=False)
    before = snapshot(w)
    for gfn, offset in ((NO_RAM, 0), (CONTROL_PFN, 4028), (CONTROL_PFN, 4096)):
        with pytest.raises(HypercallError, match="EINVAL"):
            w.guest.evtchn.init_control(gfn, offset, 1)
    assert snapshot(w) == before
    with pytest.raises(HypercallError, match="EOPNOTSUPP"):
        w.guest.evtchn.expand_array(ARRAY_PFN)
    enable_fifo(w.guest)
    frame = int(lib.p2m_lookup(w.guest.kernel, CONTROL_PFN, 0))
    with pytest.raises(HypercallError, match="EINVAL"):
        w.guest.evtchn.init_control(CONTROL_PFN, 512, 1)  # it has one
    assert lib.frame_refs(hypervisor.machine, frame) == 3
    assert w.guest.evtchn.fifo


def test_xsa_221_poll_of_a_port_that_is_not_there(hypervisor: Hypervisor) -> None:
    w = make(hypervisor, fifo=True)
    for port in (64, 4096, 131_072, 0xFFFFFFFF):
        with pytest.raises(HypercallError, match="EINVAL"):
            w.guest.evtchn.sched_poll([port], wake=w.guest.tasks[0])
    assert not w.guest.evtchn.pollers.asleep


@pytest.mark.parametrize("last", [62, 63, 64, 65, 127, 128])
def test_xsa_317_running_out_of_ports_is_an_error_and_no_more(
    hypervisor: Hypervisor, dom0: Domain, last: int
) -> None:
    guest = domain(hypervisor, max_event_channels=last)
    assert [guest.evtchn.alloc_unbound(0) for _ in range(last)] == list(range(1, last + 1))
    remote = dom0.evtchn.alloc_unbound(guest.domid)
    for call in (
        lambda: guest.evtchn.alloc_unbound(0),
        lambda: guest.evtchn.bind_interdomain(0, remote),
        lambda: guest.evtchn.bind_virq(VIRQ.TIMER),
        lambda: guest.evtchn.bind_ipi(0),
        lambda: guest.evtchn.bind_pirq(0),
        lambda: guest.evtchn.alloc_xen_port(0, print),
    ):
        with pytest.raises(HypercallError, match="ENOSPC"):
            call()
    assert len(guest.evtchn.ports) == last // 64 * 64 + 64
    assert dom0.evtchn.status(remote).status is EVTCHNSTAT.unbound
    guest.evtchn.close(last)
    assert guest.evtchn.bind_virq(VIRQ.TIMER) == last


def test_xsa_338_a_valid_port_stays_valid(hypervisor: Hypervisor, dom0: Domain) -> None:
    guest = domain(hypervisor, max_event_channels=10_000)
    enable_fifo(guest, pages=10)
    while guest.evtchn.alloc_unbound(0) < 5000:
        pass
    far = dom0.evtchn.bind_interdomain(guest.domid, 5000)
    guest.evtchn.reset()
    assert guest.evtchn.limit == 4096
    assert guest.evtchn.status(5000).status is EVTCHNSTAT.closed
    guest.evtchn.unmask(5000)
    with pytest.raises(HypercallError, match="EINVAL"):
        guest.evtchn.close(5000)
    dom0.evtchn.send(far)  # unbound: silently nothing
    assert guest.evtchn.alloc_unbound(0) == 1
    enable_fifo(guest, pages=10)
    assert guest.evtchn.status(5000).status is EVTCHNSTAT.closed


def test_xsa_342_a_32_bit_guest_has_no_port_above_1023(
    hypervisor: Hypervisor, dom0: Domain
) -> None:
    guest = domain(hypervisor, is_32bit=True, max_event_channels=100_000)
    for port in range(1, 1024):
        assert guest.evtchn.alloc_unbound(0) == port
    with pytest.raises(HypercallError, match="ENOSPC"):
        guest.evtchn.alloc_unbound(0)
    assert lib.evtchn_set_pending(guest.kernel, 1024, 0) == -22
    assert lib.evtchn_guest_unmask(guest.kernel, 1024) == -22
    dom0.evtchn.send(dom0.evtchn.bind_interdomain(guest.domid, 1023))
    assert lib.evtchn_take_pending(guest.kernel, 1023) == 1


def test_xsa_343_a_second_reset_meanwhile_is_refused(hypervisor: Hypervisor) -> None:
    w = make(hypervisor, fifo=True)
    errors: list[str] = []

    def race(*_: int) -> None:
        if not errors:
            with pytest.raises(HypercallError) as caught:
                w.guest.evtchn.reset()
            errors.append(caught.value.name)

    hypervisor.set_hook(race)
    w.guest.evtchn.reset()
    hypervisor.set_hook(None)
    assert errors == ["EBUSY"]
    assert not w.guest.evtchn.fifo
    w.guest.evtchn.reset()


def test_xsa_344_ports_bound_during_a_reset_keep_the_abi(hypervisor: Hypervisor) -> None:
    w = make(hypervisor, fifo=True)
    made: list[int] = []

    def race(_actor: int, kind: int, _frame: int, offset: int, _size: int) -> None:
        if kind & lib.ACCESS_ATOMIC and offset == 4 * w.ipi and not made:
            made.append(0)
            hypervisor.set_hook(None)
            made[0] = w.guest.evtchn.alloc_unbound(0)

    hypervisor.set_hook(race)
    with pytest.raises(HypercallError) as caught:
        w.guest.evtchn.reset()
    assert caught.value.name == "EAGAIN"
    assert made == [1]  # behind the reset's back
    assert w.guest.evtchn.fifo
    assert w.guest.evtchn.status(1).status is EVTCHNSTAT.unbound
    w.guest.evtchn.reset()
    assert not w.guest.evtchn.fifo


@pytest.mark.parametrize("advisory", [358, 359])
def test_xsa_358_359_what_is_written_before_what(hypervisor: Hypervisor, advisory: int) -> None:
    """358: the event is linked before the guest can be told. 359: the ABI is complete before
    the first event can use it."""
    w = make(hypervisor, fifo=advisory == 358)
    order: list[tuple[str, int]] = []
    pages = {
        int(lib.p2m_lookup(w.guest.kernel, pfn, 1)): name
        for pfn, name in ((CONTROL_PFN, "control"), (ARRAY_PFN, "array"))
    }

    def hook(_actor: int, kind: int, frame: int, offset: int, _size: int) -> None:
        if kind & 3 != lib.ACCESS_READ:
            order.append((pages.get(frame, "info"), offset))

    if advisory == 358:
        hypervisor.set_hook(hook)
        w.dom0.evtchn.send(w.far)
        hypervisor.set_hook(None)
        word = ("array", 4 * w.inter)
        # PENDING, LINKED, then head, then ready, then upcall_pending
        assert order == [word, word, ("control", 8 + 4 * 7), ("control", 0), ("info", 0)]
    else:
        w.dom0.evtchn.send(w.far)
        hypervisor.set_hook(hook)
        enable_fifo(w.guest, pages=0)
        assert order == []
        w.guest.evtchn.expand_array(ARRAY_PFN)
        hypervisor.set_hook(None)
        assert order[0] == ("array", 4 * w.inter)
        assert lib.fifo_read_word(w.guest.kernel, w.inter) == PENDING | LINKED


def test_xsa_496_a_failed_bind_of_dom_exc_does_not_unhook_its_handler(
    hypervisor: Hypervisor,
) -> None:
    w = make(hypervisor, fifo=False)
    port = w.dom0.evtchn.bind_virq(VIRQ.DOM_EXC)
    with pytest.raises(HypercallError, match="EBUSY"):
        w.guest.evtchn.bind_virq(VIRQ.DOM_EXC)
    with pytest.raises(HypercallError, match="EEXIST"):
        w.dom0.evtchn.bind_virq(VIRQ.DOM_EXC)
    assert hypervisor.global_virqs.send(VIRQ.DOM_EXC)
    assert w.take(w.dom0) == [port]


def test_xsa_505_expand_array_after_a_reset_finds_no_abi(hypervisor: Hypervisor) -> None:
    w = make(hypervisor, fifo=False)
    enable_fifo(w.guest, pages=0)
    w.dom0.evtchn.send(w.far)  # saved: there is no page yet
    control = int(lib.p2m_lookup(w.guest.kernel, CONTROL_PFN, 0))
    w.guest.evtchn.reset()
    with pytest.raises(HypercallError, match="EOPNOTSUPP"):
        w.guest.evtchn.expand_array(ARRAY_PFN)
    assert lib.frame_refs(hypervisor.machine, control) == 1
    enable_fifo(w.guest)
    # What was saved went with its port.
    assert lib.fifo_read_word(w.guest.kernel, w.inter) == 0
