"""Shutdown codes and watchdogs."""

from __future__ import annotations

import pytest

from tests.xen.conftest import domain
from xenpv.abi._kernel import ffi, lib
from xenpv.errors import HypercallError
from xenpv.xen.domain import Domain
from xenpv.xen.hypervisor import Hypervisor

S = 1_000_000_000


@pytest.mark.parametrize(
    ("calls", "latched"),
    [
        ([("shutdown", 0)], 0),
        ([("shutdown", 2)], 2),
        ([("shutdown", 0x101)], 1),  # the low 8 bits
        ([("shutdown", 0xFFFFFFFF)], 255),
        ([("shutdown_code", 3), ("shutdown", 1)], 3),
        ([("shutdown_code", 3), ("shutdown_code", 4), ("shutdown", 0)], 3),
        ([("shutdown_code", 0x304), ("shutdown", 0)], 4),
        ([("shutdown", 1), ("shutdown", 3)], 1),
        ([("shutdown", 1), ("shutdown_code", 3)], 1),
    ],
)
def test_the_first_code_latches(guest: Domain, calls: list[tuple[str, int]], latched: int) -> None:
    for op, reason in calls:
        getattr(guest.sched, op)(reason)
    assert guest.shutdown_code == latched
    assert guest.is_shutdown


def test_shutdown_code_stops_nothing(guest: Domain) -> None:
    guest.sched.shutdown_code(3)
    assert guest.shutdown_code == 3
    assert not guest.is_shutdown
    assert guest.vcpu[0].state == 0


def test_yield_is_nothing(guest: Domain) -> None:
    guest.sched.yield_()
    assert guest.vcpu[0].state == 0


def test_a_watchdog_that_is_not_patted_shuts_the_domain_down(guest: Domain) -> None:
    assert guest.sched.watchdog(0, 30) == 1
    guest.loop.advance(30 * S - 1)
    assert not guest.is_shutdown
    guest.loop.advance(1)
    assert guest.shutdown_code == 4
    assert guest.is_shutdown
    assert guest.loop.now == 30 * S


def test_a_pat_puts_it_off_and_freeing_ends_it(guest: Domain) -> None:
    sched = guest.sched
    assert sched.watchdog(0, 10) == 1
    assert sched.watchdog(0, 20) == 2
    for _ in range(4):
        guest.loop.advance(9 * S)
        assert sched.watchdog(1, 10) == 0
        assert sched.watchdog(2, 25) == 0
    assert sched.watchdog(1, 0) == 0
    assert sched.watchdog(0, 60) == 1  # the lowest free one
    guest.loop.advance(25 * S - 1)
    assert not guest.is_shutdown
    guest.loop.advance(1)
    assert guest.shutdown_code == 4


def test_a_new_watchdog_without_a_timeout_fires_at_once(guest: Domain) -> None:
    assert guest.sched.watchdog(0, 0) == 1
    assert guest.shutdown_code == 4
    with pytest.raises(HypercallError, match="EINVAL"):
        guest.sched.watchdog(2, 5)
    assert guest.sched.watchdog(1, 5) == 0  # it fired, and is still in use


def test_a_watchdog_does_not_keep_the_loop_running(guest: Domain) -> None:
    guest.sched.watchdog(0, 30)
    guest.loop.run()
    assert guest.loop.now == 0
    assert not guest.is_shutdown


def test_a_watchdog_runs_on_while_its_domain_is_paused(guest: Domain) -> None:
    guest.sched.watchdog(0, 10)
    guest.pause()
    guest.loop.advance(10 * S)
    assert guest.shutdown_code == 4


def test_a_watchdog_leaves_a_domain_alone_that_is_down_already(guest: Domain) -> None:
    guest.sched.watchdog(0, 10)
    guest.sched.shutdown(0)
    guest.loop.advance(20 * S)
    assert guest.shutdown_code == 0


def test_a_patted_watchdog_of_xenbus_never_fires(guest: Domain) -> None:
    """XEN:WATCHDOG=10: VIRQ_TIMER each 5 s, each pats (win-xenbus fdo.c)."""
    number = guest.sched.watchdog(0, 10)
    guest.evtchn.bind_virq(0)
    pats = 0
    found = ffi.new("uint32_t[]", 8)

    def upcall() -> None:
        nonlocal pats
        pats += 1
        assert lib.evtchn_scan(guest.kernel, 0, found, 8, 1) == 1
        guest.sched.watchdog(number, 10)

    guest.set_upcall(0, upcall)
    guest.loop.advance(6 * S)
    guest.vcpu_op.set_periodic_timer(0, 5 * S)
    guest.loop.advance(12 * S)
    assert pats == 3  # one period has passed since the last tick: it began with one
    assert not guest.is_shutdown


def test_a_guest_that_is_down_has_no_watchdog_of_another(hypervisor: Hypervisor) -> None:
    one, two = domain(hypervisor), domain(hypervisor)
    assert one.sched.watchdog(0, 5) == 1
    assert two.sched.watchdog(0, 6) == 1
    hypervisor.destroy_domain(one)
    hypervisor.loop.advance(6 * S)
    assert one.shutdown_code is None
    assert two.shutdown_code == 4


def test_a_kernel_that_crashed_goes_on_in_one_task(guest: Domain) -> None:
    ran: list[str] = []
    old = guest.task("old", lambda: ran.append("old"))
    timer = guest.timer(guest.task("timed", lambda: ran.append("timed")))
    timer.arm(5)
    old.wake()
    crash = guest.quiesce("crash", lambda: ran.append("crash"))
    new = guest.task("new", lambda: ran.append("new"))
    crash_timer = guest.timer(crash)
    crash_timer.arm(7)
    for task in (old, new, crash):
        task.wake()
    guest.loop.run()
    assert ran == ["crash", "crash"]
    assert not guest.is_shutting_down
    assert not timer.armed
    # A crash within it: the later one goes on alone.
    again = guest.quiesce("again", lambda: ran.append("again"))
    for task in (old, new, crash, again):
        task.wake()
    guest.loop.run()
    assert ran == ["crash", "crash", "again"]
    guest.pause()
    again.wake()
    guest.unpause()
    guest.loop.run()
    assert ran == ["crash", "crash", "again", "again"]


def test_a_kernel_that_crashed_delivers_nothing(guest: Domain) -> None:
    guest.set_deliver(lambda _port: True)
    assert guest.deliver(1)
    guest.quiesce("crash", guest.loop.system_time)
    assert not guest.deliver(1)
