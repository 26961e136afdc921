"""SCHEDOP_poll as a named state, and who is interrupted when upcall_pending rises."""

from __future__ import annotations

import attrs
import pytest

from tests.xen.conftest import domain
from tests.xen.evtchn_world import enable_fifo
from xenpv.abi._kernel import lib
from xenpv.abi.sched import RUNSTATE
from xenpv.errors import HypercallError, LocalProtocolError
from xenpv.xen.domain import Domain
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Task

GSI = 28
INTX = 1 << 56 | 3 << 11
VECTOR = 2 << 56 | 0xF3


@attrs.define(eq=False)
class Polling:
    dom0: Domain
    guest: Domain
    ports: list[int]
    far: list[int]
    wake: Task
    woken: list[int]  # virtual times

    def run(self) -> list[int]:
        self.guest.loop.run()
        return self.woken


@pytest.fixture(params=[False, True], ids=["2-level", "fifo"])
def polling(hypervisor: Hypervisor, dom0: Domain, request: pytest.FixtureRequest) -> Polling:
    guest = domain(hypervisor, vcpus=2)
    if request.param:
        enable_fifo(guest)
    ports = [guest.evtchn.alloc_unbound(0) for _ in range(3)]
    far = [dom0.evtchn.bind_interdomain(guest.domid, port) for port in ports]
    for port in ports:
        lib.evtchn_mask(guest.kernel, port)
    woken: list[int] = []
    wake = guest.task("woken", lambda: woken.append(guest.loop.now))
    guest.loop.run()
    return Polling(dom0, guest, ports, far, wake, woken)


def test_a_pending_port_comes_back_at_once(polling: Polling) -> None:
    polling.dom0.evtchn.send(polling.far[1])
    assert polling.guest.evtchn.sched_poll(polling.ports, wake=polling.wake)
    assert polling.run() == []


def test_a_pending_port_before_a_bad_one_hides_it(polling: Polling) -> None:
    polling.dom0.evtchn.send(polling.far[0])
    assert polling.guest.evtchn.sched_poll([polling.ports[0], 9999], wake=polling.wake)


def test_a_deliverable_upcall_comes_back_at_once(polling: Polling) -> None:
    lib.evtchn_guest_unmask(polling.guest.kernel, polling.ports[2])
    polling.dom0.evtchn.send(polling.far[2])
    assert polling.guest.evtchn.sched_poll([polling.ports[0]], wake=polling.wake)
    assert not polling.guest.evtchn.sched_poll([polling.ports[0]], wake=polling.wake, vcpu=1)


def test_a_masked_port_wakes(polling: Polling) -> None:
    assert not polling.guest.evtchn.sched_poll([polling.ports[0]], wake=polling.wake)
    assert polling.run() == []
    polling.dom0.evtchn.send(polling.far[0])
    assert len(polling.run()) == 1
    assert not polling.guest.evtchn.pollers.asleep


def test_with_one_port_no_other_wakes(polling: Polling) -> None:
    assert not polling.guest.evtchn.sched_poll([polling.ports[0]], wake=polling.wake)
    polling.dom0.evtchn.send(polling.far[1])
    assert polling.run() == []
    polling.dom0.evtchn.send(polling.far[0])
    assert len(polling.run()) == 1


def test_with_two_ports_any_wakes(polling: Polling) -> None:
    assert not polling.guest.evtchn.sched_poll(polling.ports[:2], wake=polling.wake)
    polling.dom0.evtchn.send(polling.far[2])
    assert len(polling.run()) == 1


def test_a_port_that_is_pending_already_does_not_wake(polling: Polling) -> None:
    polling.dom0.evtchn.send(polling.far[1])
    assert not polling.guest.evtchn.sched_poll([polling.ports[0]] * 2, wake=polling.wake)
    polling.dom0.evtchn.send(polling.far[1])
    assert polling.run() == []


def test_an_upcall_of_the_vcpu_wakes_it_and_no_other(polling: Polling) -> None:
    guest = polling.guest
    other: list[int] = []
    wake = guest.task("other", lambda: other.append(1))
    guest.evtchn.bind_vcpu(polling.ports[2], 1)
    assert not guest.evtchn.sched_poll([polling.ports[0]], wake=polling.wake)
    assert not guest.evtchn.sched_poll([polling.ports[1]], wake=wake, vcpu=1)
    lib.evtchn_guest_unmask(guest.kernel, polling.ports[2])
    polling.dom0.evtchn.send(polling.far[2])
    assert polling.run() == []
    assert other == [1]


def test_a_polling_vcpu_is_blocked(polling: Polling) -> None:
    guest = polling.guest
    loop, (first, second) = guest.loop, guest.vcpu
    assert not guest.evtchn.sched_poll([polling.ports[0]], loop.now + 3_000, wake=polling.wake)
    start = loop.now
    assert (first.runstate().state, first.runstate().state_entry_time) == (RUNSTATE.blocked, start)
    assert second.runstate().state is RUNSTATE.running
    polling.run()
    assert loop.now == start + 3_000
    assert first.runstate().state is RUNSTATE.running
    assert first.runstate().time[RUNSTATE.blocked] == 3_000
    assert not guest.evtchn.sched_poll([polling.ports[0]], wake=polling.wake)
    polling.dom0.evtchn.send(polling.far[0])
    assert first.runstate().state is RUNSTATE.running


def test_a_domain_that_dies_polling_blocks_no_more(
    hypervisor: Hypervisor, polling: Polling
) -> None:
    guest = polling.guest
    guest.evtchn.sched_poll(polling.ports, 1 << 40, wake=polling.wake)
    hypervisor.destroy_domain(guest)
    assert guest.vcpu[0].runstate().state is RUNSTATE.offline
    assert not guest.evtchn.pollers.asleep


def test_nobody_polls_on_a_vcpu_that_is_not_there(polling: Polling) -> None:
    with pytest.raises(HypercallError) as caught:
        polling.guest.evtchn.sched_poll([], wake=polling.wake, vcpu=2)
    assert (caught.value.name, caught.value.operation) == ("ENOENT", "SCHEDOP_poll")


def test_the_timeout_wakes_at_its_time(polling: Polling) -> None:
    assert not polling.guest.evtchn.sched_poll(polling.ports, 5_000_000, wake=polling.wake)
    assert polling.run() == [5_000_000]
    assert not polling.guest.evtchn.sched_poll(polling.ports, 5_000_001, wake=polling.wake)
    polling.dom0.evtchn.send(polling.far[0])
    assert polling.run() == [5_000_000, 5_000_000]  # the timer went with the poll


def test_a_timeout_in_the_past_wakes_at_once(polling: Polling) -> None:
    polling.guest.loop.advance(1000)
    assert not polling.guest.evtchn.sched_poll(polling.ports, 1, wake=polling.wake)
    assert polling.run() == [1000]


def test_a_vcpu_sleeps_once(polling: Polling) -> None:
    polling.guest.evtchn.sched_poll(polling.ports, wake=polling.wake)
    with pytest.raises(LocalProtocolError, match="^vcpu 0 sleeps in SCHEDOP_poll already$"):
        polling.guest.evtchn.sched_poll(polling.ports, wake=polling.wake)


def test_a_paused_domain_wakes_when_it_goes_on(polling: Polling) -> None:
    polling.guest.evtchn.sched_poll(polling.ports, wake=polling.wake)
    polling.guest.pause()
    polling.dom0.evtchn.send(polling.far[0])
    assert polling.run() == []
    polling.guest.unpause()
    assert len(polling.run()) == 1


@pytest.mark.parametrize(
    ("via", "vectors", "interrupted"),
    [
        (None, (), [0, 1]),  # nothing chosen: wherever the kernel set an upcall
        (None, (1,), [1]),
        (None, (0, 1), [0, 1]),
        (GSI, (), [0]),
        (INTX, (), [0]),
        (GSI, (1,), [0, 1]),
        (VECTOR, (), [0, 1]),
        (0, (), []),
        (0, (0,), [0]),
    ],
)
def test_who_is_interrupted(
    hypervisor: Hypervisor, via: int | None, vectors: tuple[int, ...], interrupted: list[int]
) -> None:
    guest = domain(hypervisor, vcpus=2)
    ran: list[int] = []
    for vcpu in (0, 1):
        guest.set_upcall(vcpu, lambda vcpu=vcpu: ran.append(vcpu))
    ports = [guest.evtchn.bind_ipi(vcpu) for vcpu in (0, 1)]
    if via is not None:
        guest.hvm.set_param(0x7FF0, 0, via)
    for vcpu in vectors:
        guest.hvm.set_evtchn_upcall_vector(vcpu, 0x30)
    guest.loop.run()
    assert sorted(ran) == list(vectors)  # Xen injects a vector as soon as it is set
    ran.clear()
    for port in ports:
        guest.evtchn.send(port)
    guest.loop.run()
    assert sorted(ran) == interrupted
    assert [lib.evtchn_upcall_pending(guest.kernel, vcpu) for vcpu in (0, 1)] == [1, 1]


def test_a_line_is_raised_for_what_is_pending_when_it_is_set(hypervisor: Hypervisor) -> None:
    guest = domain(hypervisor)
    ran: list[int] = []
    guest.set_upcall(0, lambda: ran.append(0))
    guest.hvm.set_param(0x7FF0, 0, 0)
    guest.evtchn.send(guest.evtchn.bind_ipi(0))
    guest.loop.run()
    assert ran == []
    guest.hvm.set_param(0x7FF0, 0, GSI)
    guest.loop.run()
    assert ran == [0]
