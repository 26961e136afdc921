"""A domain's life: pause, shutdown in steps, suspend and resume, death in order."""

from __future__ import annotations

from typing import Any

import pytest

from tests.xen.conftest import domain as make_domain
from xenpv.abi._kernel import lib
from xenpv.abi.evtchn import EVTCHNSTAT
from xenpv.errors import HypercallError
from xenpv.xen.domain import Domain
from xenpv.xen.evtchn import VIRQ_DOM_EXC
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import NS_PER_S, Task

HOLE = 0x100000
POWEROFF, REBOOT, SUSPEND, CRASH = 0, 1, 2, 3


class Runs:
    """How often a task ran."""

    def __init__(self, domain: Domain, name: str = "work") -> None:
        self.count = 0
        self.task: Task = domain.task(name, self.run)

    def run(self) -> None:
        self.count += 1


class DomExc:
    """dom0's port for VIRQ_DOM_EXC: how often it was raised since the last look."""

    def __init__(self, dom0: Domain) -> None:
        self.dom0 = dom0
        self.port = dom0.evtchn.bind_virq(VIRQ_DOM_EXC)

    def take(self) -> bool:
        return bool(lib.evtchn_take_pending(self.dom0.kernel, self.port))


@pytest.fixture
def dom_exc(dom0: Domain) -> DomExc:
    return DomExc(dom0)


def hold(dom0: Domain, guest: Domain, pfn: int = HOLE) -> int:
    guest.write(0x100, 0, b"held")
    guest.check(lib.grant_entry_set(guest.kernel, 8, dom0.domid, 0x100, 1))
    return dom0.gnttab.map(guest.domid, 8, pfn)


# pause


def test_nothing_runs_until_the_last_unpause(hypervisor: Hypervisor, guest: Domain) -> None:
    runs = Runs(guest)
    guest.pause()
    guest.pause()
    late = Runs(guest)
    runs.task.wake()
    late.task.wake()
    guest.unpause()
    hypervisor.loop.run()
    assert (runs.count, late.count) == (0, 0)
    guest.unpause()
    hypervisor.loop.run()
    assert (runs.count, late.count) == (1, 1)


# shutdown


def test_a_shutdown_stops_everything_and_tells_dom0(
    hypervisor: Hypervisor, guest: Domain, dom_exc: DomExc
) -> None:
    runs = Runs(guest)
    guest.shutdown(REBOOT)
    assert dom_exc.take()
    runs.task.wake()
    late = Runs(guest)
    late.task.wake()
    hypervisor.loop.run()
    assert (runs.count, late.count) == (0, 0)
    assert guest.shutdown_code == REBOOT
    guest.shutdown(CRASH)
    assert not dom_exc.take()
    assert guest.shutdown_code == REBOOT


def test_a_latched_code_is_what_a_shutdown_gives(guest: Domain) -> None:
    guest.latch_shutdown_code(CRASH)
    guest.latch_shutdown_code(POWEROFF)
    assert not guest.is_shutdown
    guest.shutdown(POWEROFF)
    assert guest.shutdown_code == CRASH


def test_a_shutdown_is_in_progress_while_a_vcpu_defers_it(
    hypervisor: Hypervisor, dom_exc: DomExc
) -> None:
    guest = make_domain(hypervisor, vcpus=2)
    assert guest.start_shutdown_deferral(0)
    assert guest.start_shutdown_deferral(1)
    guest.shutdown(POWEROFF)
    assert (guest.is_shutting_down, guest.is_shutdown, dom_exc.take()) == (True, False, False)
    assert not guest.start_shutdown_deferral(1)
    guest.end_shutdown_deferral(1)
    assert not guest.is_shutdown
    guest.end_shutdown_deferral(0)
    assert guest.is_shutdown
    assert dom_exc.take()


def test_a_crash_waits_for_nobody(guest: Domain, dom_exc: DomExc) -> None:
    guest.start_shutdown_deferral(0)
    guest.crash("it wrote to a page that is not there")
    assert guest.is_shutdown
    assert guest.shutdown_code == CRASH
    assert dom_exc.take()
    (note,) = [note for note in guest.trace.notes if note.domid == guest.domid]
    assert note.text == "domain crash: it wrote to a page that is not there"
    guest.crash("again")
    assert len(guest.trace.notes) == 1


def test_timers_stop_with_their_domain_and_go_on_at_resume(
    hypervisor: Hypervisor, dom0: Domain, guest: Domain
) -> None:
    early, late, never = Runs(guest, "early"), Runs(guest, "late"), Runs(guest, "never")
    for runs, seconds in ((early, 1), (late, 10)):
        guest.timer(runs.task).arm(seconds * NS_PER_S)
    cancelled = guest.timer(never.task)
    cancelled.arm(NS_PER_S)
    cancelled.cancel()
    guest.shutdown(SUSPEND)
    hypervisor.loop.run()
    assert hypervisor.loop.now == 0  # none of them moves the clock
    hypervisor.loop.advance(3 * NS_PER_S)
    dom0.domctl.resumedomain(guest.domid)
    hypervisor.loop.advance(0)
    assert (early.count, late.count) == (1, 0)  # overdue: at once
    hypervisor.loop.run()
    assert (early.count, late.count, never.count) == (1, 1, 0)
    assert hypervisor.loop.now == 10 * NS_PER_S


# suspend and resume


@pytest.mark.parametrize(("patched", "result"), [(False, 0), (True, 1)])
def test_suspend_returns_at_resume(
    hypervisor: Hypervisor, dom0: Domain, guest: Domain, patched: bool, result: int
) -> None:
    results: list[int] = []
    waiter = guest.task("suspended", lambda: results.append(guest.suspend_result))
    guest.suspend(waiter)
    hypervisor.loop.run()
    assert results == []
    assert guest.shutdown_code == SUSPEND
    if patched:
        dom0.domctl.setvcpucontext(guest.domid, 0, rax=1)
    dom0.domctl.resumedomain(guest.domid)
    assert guest.shutdown_code is None
    hypervisor.loop.run()
    assert results == [result]
    guest.suspend(waiter)
    dom0.domctl.resumedomain(guest.domid)
    hypervisor.loop.run()
    assert results == [result, 0]


def test_another_vcpus_register_is_not_the_callers(hypervisor: Hypervisor, dom0: Domain) -> None:
    guest = make_domain(hypervisor, vcpus=2)
    guest.suspend(guest.task("suspended", lambda: None))
    dom0.domctl.setvcpucontext(guest.domid, 1, rax=1)
    assert guest.suspend_result == 0


def test_suspend_after_a_latched_code_is_that_shutdown(guest: Domain) -> None:
    guest.latch_shutdown_code(CRASH)
    guest.suspend(guest.task("suspended", lambda: None))
    assert guest.shutdown_code == CRASH


def test_a_paused_domain_goes_on_when_it_is_resumed_and_unpaused(
    hypervisor: Hypervisor, guest: Domain
) -> None:
    runs = Runs(guest)
    guest.pause()
    guest.suspend(runs.task)
    guest.resume()
    hypervisor.loop.run()
    assert runs.count == 0
    guest.unpause()
    hypervisor.loop.run()
    assert runs.count == 1


def test_a_subscribed_suspend_goes_to_the_port_and_not_to_dom_exc(
    dom0: Domain, guest: Domain, dom_exc: DomExc
) -> None:
    theirs = guest.evtchn.alloc_unbound(0)
    ours = dom0.evtchn.bind_interdomain(guest.domid, theirs)
    assert lib.evtchn_take_pending(dom0.kernel, ours)
    dom0.domctl.subscribe(guest.domid, theirs)
    guest.shutdown(SUSPEND)
    assert lib.evtchn_take_pending(dom0.kernel, ours)
    assert not dom_exc.take()
    guest.resume()
    guest.shutdown(POWEROFF)
    assert not lib.evtchn_take_pending(dom0.kernel, ours)
    assert dom_exc.take()


def test_a_subscribed_port_that_is_closed_loses_the_event(
    dom0: Domain, guest: Domain, dom_exc: DomExc
) -> None:
    dom0.domctl.subscribe(guest.domid, 5)
    guest.shutdown(SUSPEND)
    assert guest.is_shutdown
    assert not dom_exc.take()


def test_a_domain_destroyed_in_its_suspend_never_returns(
    hypervisor: Hypervisor, dom0: Domain, guest: Domain
) -> None:
    runs = Runs(guest)
    guest.suspend(runs.task)
    dom0.domctl.destroydomain(guest.domid)
    guest.resume()
    hypervisor.loop.run()
    assert runs.count == 0


# death


def test_death_goes_in_order(
    monkeypatch: pytest.MonkeyPatch, dom0: Domain, guest: Domain, dom_exc: DomExc
) -> None:
    seen: list[tuple[Any, ...]] = []

    def spy(of: object, name: str) -> None:
        plain = getattr(of, name)

        def call(*arguments: object) -> object:
            seen.append((name, guest.dying, guest.dead, guest.tot_pages))
            return plain(*arguments)

        monkeypatch.setattr(of, name, call)

    spy(guest, "stop")
    spy(guest.gnttab, "release_maps")
    spy(guest.evtchn, "close_all")
    spy(guest._hypervisor, "raise_dom_exc")
    far = dom0.evtchn.bind_interdomain(guest.domid, guest.evtchn.alloc_unbound(0))
    dom0.domctl.destroydomain(guest.domid)
    assert seen == [
        ("stop", True, False, 256),
        ("release_maps", True, False, 256),
        ("close_all", True, False, 256),
        ("raise_dom_exc", True, True, 0),
        ("raise_dom_exc", True, True, 0),  # it vanished
    ]
    assert dom0.evtchn.status(far).status == EVTCHNSTAT.unbound
    assert dom_exc.take()


def test_a_death_that_is_interrupted_is_dying_and_goes_on(
    hypervisor: Hypervisor, dom0: Domain, guest: Domain
) -> None:
    port = dom0.evtchn.bind_interdomain(1, guest.evtchn.alloc_unbound(0))

    def refuse(*_access: int) -> None:
        raise Interrupted

    hypervisor.set_hook(refuse)
    with pytest.raises(Interrupted):
        dom0.domctl.destroydomain(1)
    hypervisor.set_hook(None)
    assert dom0.domctl.get_domain_state(1).state == 1 | 4
    assert not guest.dead
    with pytest.raises(HypercallError, match="EINVAL"):
        guest.evtchn.alloc_unbound(0)
    dom0.domctl.destroydomain(1)
    assert dom0.find(1) is None
    assert dom0.evtchn.status(port).status == EVTCHNSTAT.unbound


class Interrupted(Exception):  # noqa: N818 - no error: what a hook may raise at any time
    pass


def test_a_held_domain_is_dead_until_it_vanishes(
    hypervisor: Hypervisor, dom0: Domain, guest: Domain, dom_exc: DomExc
) -> None:
    handles = [hold(dom0, guest, HOLE + n) for n in range(2)]
    dom0.domctl.destroydomain(guest.domid)
    assert dom_exc.take()
    assert dom0.find(guest.domid) is guest
    assert hypervisor.dead == [guest]
    assert dom0.read(HOLE, 0, 4) == b"held"
    dom0.gnttab.unmap(handles[0], HOLE)
    assert dom0.find(guest.domid) is guest
    assert not dom_exc.take()
    dom0.gnttab.unmap(handles[1], HOLE + 1)
    assert dom0.find(guest.domid) is None
    assert dom_exc.take()
    assert hypervisor.dead == []


def test_a_dead_domain_is_asked_about_but_does_nothing(
    hypervisor: Hypervisor, dom0: Domain, guest: Domain
) -> None:
    hold(dom0, guest)
    dom0.domctl.destroydomain(guest.domid)
    runs = Runs(guest)
    runs.task.wake()
    guest.upcalls[0].wake()
    hypervisor.loop.run()
    assert runs.count == 0
    for call in (
        lambda: guest.evtchn.alloc_unbound(0),
        lambda: guest.evtchn.bind_virq(0),
        lambda: dom0.evtchn.bind_interdomain(guest.domid, 1),
        lambda: guest.evtchn.send(1),
    ):
        with pytest.raises(HypercallError, match="EINVAL"):
            call()
    with pytest.raises(HypercallError, match="EFAULT"):
        guest.read(0x100, 0, 4)
    assert lib.domain_populate(guest.kernel, 0x100, 1) == 0


def test_a_target_stays_as_long_as_its_device_model(
    hypervisor: Hypervisor, dom0: Domain, guest: Domain, dom_exc: DomExc
) -> None:
    model = make_domain(hypervisor)
    free = lib.machine_free_pages(hypervisor.machine)
    dom0.domctl.set_target(model.domid, guest.domid)
    dom0.domctl.destroydomain(guest.domid)
    assert hypervisor.dead == [guest]
    assert lib.machine_free_pages(hypervisor.machine) > free  # its memory is not what is held
    with pytest.raises(HypercallError, match="EEXIST"):
        hypervisor.create_domain(guest.domid, max_pages=1)
    assert model.controls(guest)
    dom_exc.take()
    handle = hold(dom0, model)
    dom0.domctl.destroydomain(model.domid)
    assert hypervisor.dead == [guest, model]  # a device model counts until it vanishes
    dom_exc.take()
    dom0.gnttab.unmap(handle, HOLE)
    assert hypervisor.dead == []
    assert dom_exc.take()


def test_two_that_have_each_other_as_target_go_with_the_machine(
    hypervisor: Hypervisor, dom0: Domain, guest: Domain
) -> None:
    other = make_domain(hypervisor)
    dom0.domctl.set_target(other.domid, guest.domid)
    dom0.domctl.set_target(guest.domid, other.domid)
    for one in (guest, other):
        dom0.domctl.destroydomain(one.domid)
    assert hypervisor.dead == [guest, other]
    assert hypervisor.close()
    assert hypervisor.domains == {}


def test_a_refused_creation_gives_its_number_back(hypervisor: Hypervisor, dom0: Domain) -> None:
    with pytest.raises(HypercallError, match="EINVAL"):
        dom0.domctl.createdomain(5, max_vcpus=0)
    assert dom0.domctl.createdomain(5, max_vcpus=1).unique_id == 2
    with pytest.raises(HypercallError, match="ENOMEM"):
        _full(hypervisor).domains[0].domctl.createdomain(1, max_vcpus=1)


def _full(of: Hypervisor) -> Hypervisor:
    control = of.domains[0]
    control.set_max_pages(1 << 30)
    left = lib.machine_free_pages(of.machine) - 3
    assert lib.domain_populate(control.kernel, 0x200000, left) == left
    return of


def test_xsa_496_a_failed_bind_of_dom_exc_takes_nothing_from_its_handler(
    dom0: Domain, guest: Domain, dom_exc: DomExc
) -> None:
    with pytest.raises(HypercallError, match="EEXIST"):
        dom0.evtchn.bind_virq(VIRQ_DOM_EXC)
    guest.shutdown(POWEROFF)
    assert dom_exc.take()
    assert [dom0.domctl.get_domain_state().domid for _ in range(2)] == [0, 1]


def test_a_handler_that_binds_again_hears_of_everybody_again(
    dom0: Domain, guest: Domain, dom_exc: DomExc
) -> None:
    assert [dom0.domctl.get_domain_state().domid for _ in range(2)] == [0, 1]
    with pytest.raises(HypercallError, match="ENOENT"):
        dom0.domctl.get_domain_state()
    dom0.evtchn.close(dom_exc.port)
    with pytest.raises(HypercallError, match="EACCES"):
        dom0.domctl.get_domain_state()
    dom0.evtchn.bind_virq(VIRQ_DOM_EXC)
    assert [dom0.domctl.get_domain_state().domid for _ in range(2)] == [0, 1]
