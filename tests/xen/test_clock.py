"""Timers at the exact virtual nanosecond; the wall clock; the scale of the TSC."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.xen.conftest import domain, map_shared_info
from xenpv.abi._kernel import ffi, lib
from xenpv.errors import HypercallError
from xenpv.xen.clock import EPOCH, time_scale
from xenpv.xen.domain import Domain
from xenpv.xen.hypervisor import Hypervisor

MS = 1_000_000
S = 1_000_000_000
NOW = 10 * S + 7
ALL = (1 << 64) - 1
VIRQ_TIMER = 0


class Ticks:
    """The virtual times at which a guest's vcpus took VIRQ_TIMER."""

    def __init__(self, hypervisor: Hypervisor, vcpus: int = 1) -> None:
        domain(hypervisor, 0)
        self.guest = domain(hypervisor, vcpus=vcpus)
        self.loop = hypervisor.loop
        self.loop.advance(NOW)
        self.at: list[tuple[int, int]] = []
        self._found = ffi.new("uint32_t[]", 8)
        for vcpu in range(vcpus):
            self.guest.evtchn.bind_virq(VIRQ_TIMER, vcpu)
            self.guest.set_upcall(vcpu, self._upcall(vcpu))

    def _upcall(self, vcpu: int) -> Callable[[], None]:
        def run() -> None:
            assert lib.evtchn_scan(self.guest.kernel, vcpu, self._found, 8, 1) == 1
            self.at.append((vcpu, self.loop.now - NOW))

        return run


@pytest.fixture
def ticks(hypervisor: Hypervisor) -> Ticks:
    return Ticks(hypervisor)


@pytest.mark.parametrize(
    ("timeout", "fires"),
    [
        (0, []),
        (1, [0]),  # long past
        (NOW - 1, [0]),
        (NOW, [0]),
        (NOW + 1, [1]),
        (NOW + 123_456_789, [123_456_789]),
        (NOW + (1 << 50) - 1, [(1 << 50) - 1]),
        (NOW + (1 << 50), [100 * MS]),  # offset >> 50 is not 0: "Linux workaround"
        ((1 << 63) - 1, [100 * MS]),
        (-1, [100 * MS]),
        (-(1 << 63), [100 * MS]),
    ],
)
def test_set_timer_op(ticks: Ticks, timeout: int, fires: list[int]) -> None:
    ticks.guest.sched.set_timer_op(timeout)
    ticks.loop.run()
    assert ticks.at == [(0, at) for at in fires]


@pytest.mark.parametrize(
    ("timeout", "fires"),
    [
        (0, [0]),
        (NOW - 1, [0]),
        (NOW, [0]),
        (NOW + 1, [1]),
        (NOW + (1 << 55), [1 << 55]),  # no limit here
        (1 << 63, [0]),  # negative as s_time_t
        (ALL, [0]),
    ],
)
@pytest.mark.parametrize("flags", [0, 1])
def test_set_singleshot_timer(ticks: Ticks, timeout: int, flags: int, fires: list[int]) -> None:
    ticks.guest.vcpu_op.set_singleshot_timer(0, timeout, flags)
    ticks.loop.run()
    assert ticks.at == [(0, at) for at in fires]


def test_a_singleshot_is_one_timer_whoever_sets_it(ticks: Ticks) -> None:
    op, sched = ticks.guest.vcpu_op, ticks.guest.sched
    op.set_singleshot_timer(0, NOW + 5 * MS)
    sched.set_timer_op(NOW + 2 * MS)  # re-armed, earlier
    op.set_singleshot_timer(0, NOW + 3 * MS)  # and later again
    ticks.loop.run()
    assert ticks.at == [(0, 3 * MS)]
    sched.set_timer_op(NOW + S)
    op.stop_singleshot_timer(0)
    ticks.loop.run()
    op.set_singleshot_timer(0, NOW + 2 * S)
    sched.set_timer_op(0)
    ticks.loop.run()
    assert ticks.at == [(0, 3 * MS)]
    sched.set_timer_op(NOW + S)
    op.set_singleshot_timer(0, 5)  # a past one replaces it
    ticks.loop.run()
    assert ticks.at == [(0, 3 * MS), (0, 3 * MS)]


def test_each_vcpu_has_timers_of_its_own(hypervisor: Hypervisor) -> None:
    ticks = Ticks(hypervisor, vcpus=3)
    op = ticks.guest.vcpu_op
    for vcpu, after in ((0, 3), (1, 2), (2, 5)):
        op.set_singleshot_timer(vcpu, NOW + after, current=vcpu)
    ticks.loop.run()
    assert ticks.at == [(1, 2), (0, 3), (2, 5)]


def test_a_periodic_timer_fires_at_once_and_then_each_period(ticks: Ticks) -> None:
    """The last tick counts as one at system time 0: ten seconds, so a period, have passed."""
    ticks.guest.vcpu_op.set_periodic_timer(0, 10 * MS)
    ticks.loop.run()  # ends: only periodic timers remain
    assert ticks.at == [(0, 0)]
    ticks.loop.advance(35 * MS)
    assert ticks.at == [(0, n * 10 * MS) for n in range(4)]
    ticks.at.clear()
    # 5 ms after a tick: the next of a 20 ms period is 15 ms away, of a 1 ms period at once.
    ticks.guest.vcpu_op.set_periodic_timer(0, 20 * MS)
    ticks.loop.advance(20 * MS)
    assert ticks.at == [(0, 50 * MS)]
    ticks.guest.vcpu_op.set_periodic_timer(0, MS)
    ticks.loop.advance(MS)
    assert ticks.at == [(0, 50 * MS), (0, 55 * MS), (0, 56 * MS)]
    ticks.guest.vcpu_op.stop_periodic_timer(0)
    ticks.loop.advance(S)
    assert len(ticks.at) == 3


def test_a_period_that_has_not_passed_since_boot_does_not_fire_at_once(ticks: Ticks) -> None:
    ticks.guest.vcpu_op.set_periodic_timer(0, 11 * S)
    ticks.loop.advance(11 * S)
    assert ticks.at == [(0, 11 * S - NOW)]


def test_a_pause_holds_the_periodic_timer_which_then_catches_up_with_one_tick(
    ticks: Ticks,
) -> None:
    guest = ticks.guest
    guest.vcpu_op.set_periodic_timer(0, 10 * MS)
    ticks.loop.advance(5 * MS)
    guest.pause()
    ticks.loop.advance(100 * MS)
    assert ticks.at == [(0, 0)]
    guest.unpause()
    ticks.loop.advance(10 * MS)
    assert ticks.at == [(0, 0), (0, 105 * MS), (0, 115 * MS)]


def test_a_blocked_vcpu_has_no_ticks_and_a_running_one_makes_up_for_one(ticks: Ticks) -> None:
    guest = ticks.guest
    guest.vcpu_op.set_periodic_timer(0, 10 * MS)
    ticks.loop.run()
    guest.sched.block(0)
    ticks.loop.advance(45 * MS)
    assert ticks.at == [(0, 0)]
    guest.sched.set_timer_op(NOW + 50 * MS)  # any event wakes it
    ticks.loop.run()
    ticks.loop.advance(10 * MS)
    assert ticks.at == [(0, 0), (0, 50 * MS), (0, 60 * MS)]


def test_a_singleshot_of_a_paused_domain_fires_and_is_taken_when_it_goes_on(ticks: Ticks) -> None:
    guest = ticks.guest
    guest.sched.set_timer_op(NOW + MS)
    guest.pause()
    ticks.loop.run()
    assert ticks.loop.now == NOW + MS
    assert not ticks.at
    ticks.loop.advance(4 * MS)
    guest.unpause()
    ticks.loop.run()
    assert ticks.at == [(0, 5 * MS)]


def test_timers_of_a_suspended_domain_are_taken_after_its_resume(
    ticks: Ticks, hypervisor: Hypervisor
) -> None:
    guest = ticks.guest
    guest.sched.set_timer_op(NOW + MS)
    guest.vcpu_op.set_periodic_timer(0, 11 * S)  # due at 11 s
    guest.sched.shutdown(2)
    ticks.loop.advance(3 * S)
    assert guest.vcpu[0].state == 3
    assert not ticks.at
    hypervisor.domains[0].domctl.resumedomain(guest.domid)
    assert guest.vcpu[0].state == 0
    ticks.loop.run()
    assert ticks.at == [(0, 3 * S)]  # one upcall for both


def test_a_timer_of_a_vcpu_without_the_virq_goes_nowhere(hypervisor: Hypervisor) -> None:
    guest = domain(hypervisor, 0)
    guest.sched.set_timer_op(MS)
    guest.vcpu_op.set_periodic_timer(0, MS)
    assert guest.loop.run() == 0
    assert guest.loop.now == MS


def test_a_destroyed_domain_leaves_no_timer(ticks: Ticks, hypervisor: Hypervisor) -> None:
    guest = ticks.guest
    guest.sched.set_timer_op(NOW + S)
    guest.vcpu_op.set_periodic_timer(0, 10 * MS)
    guest.sched.watchdog(0, 1)
    hypervisor.destroy_domain(guest)
    ticks.loop.advance(5 * S)
    assert ticks.at == []
    assert not ticks.loop._timers
    assert guest.shutdown_code is None


# the wall clock


def wallclock(guest: Domain) -> tuple[int, int, int]:
    load = guest.load32
    return load(0x80, 0xC00), load(0x80, 0xC0C) << 32 | load(0x80, 0xC04), load(0x80, 0xC08)


def test_the_wall_clock_begins_at_a_fixed_second(hypervisor: Hypervisor) -> None:
    guest = domain(hypervisor)
    map_shared_info(guest)
    assert wallclock(guest) == (2, EPOCH, 0)
    assert EPOCH == 1_767_225_600  # 2026-01-01T00:00:00Z
    hypervisor.loop.advance(S)
    guest.publish_wallclock()
    assert wallclock(guest) == (4, EPOCH, 0)  # it is UTC at system time 0


def test_settimeoffset_is_of_one_domain_and_signed(hypervisor: Hypervisor) -> None:
    guest, other = domain(hypervisor), domain(hypervisor)
    for one in (guest, other):
        map_shared_info(one)
    hypervisor.set_time_offset(guest, 3600)
    assert wallclock(guest) == (4, EPOCH + 3600, 0)
    hypervisor.set_time_offset(guest, -(EPOCH + 1))
    assert wallclock(guest) == (6, ALL, 0)  # u64, as Xen adds it
    assert wallclock(other) == (2, EPOCH, 0)


def test_settimeoffset_is_a_domctl(hypervisor: Hypervisor) -> None:
    dom0, guest = domain(hypervisor, 0), domain(hypervisor)
    map_shared_info(guest)
    dom0.domctl.settimeoffset(guest.domid, 7200)
    assert wallclock(guest) == (4, EPOCH + 7200, 0)
    for caller, domid, name in ((dom0, 77, "ESRCH"), (guest, guest.domid, "EPERM")):
        with pytest.raises(HypercallError, match=f"{name}: XEN_DOMCTL_settimeoffset"):
            caller.domctl.settimeoffset(domid, 1)
    assert wallclock(guest) == (4, EPOCH + 7200, 0)


def test_setting_the_host_clock_tells_every_domain(hypervisor: Hypervisor) -> None:
    guest, other = domain(hypervisor), domain(hypervisor)
    for one in (guest, other):
        map_shared_info(one)
    hypervisor.set_time_offset(other, -60)
    hypervisor.loop.advance(5 * S + 3)
    hypervisor.settime64(2_000_000_000, 1, hypervisor.loop.now)
    assert wallclock(guest) == (4, 1_999_999_994, 999_999_998)
    assert wallclock(other) == (6, 1_999_999_934, 999_999_998)
    late = domain(hypervisor)
    map_shared_info(late)
    assert wallclock(late) == (2, 1_999_999_994, 999_999_998)


@pytest.mark.parametrize(
    ("arguments", "reason"), [((1, 0, 0, 1), "mbz"), ((1, 1 << 32, 0), "u32"), ((1, -1, 0), "u32")]
)
def test_a_bad_settime64_changes_nothing(
    hypervisor: Hypervisor, arguments: tuple[int, ...], reason: str
) -> None:
    guest = domain(hypervisor)
    map_shared_info(guest)
    with pytest.raises(HypercallError, match=f"EINVAL.*XENPF_settime64.*{reason}"):
        hypervisor.settime64(*arguments)
    assert wallclock(guest) == (2, EPOCH, 0)
    assert (hypervisor.clock.wc_sec, hypervisor.clock.wc_nsec) == (EPOCH, 0)


# the TSC


@pytest.mark.parametrize(
    ("khz", "mul", "shift"),
    [
        (1_000_000, 0x80000000, 1),
        (1_000_001, 0xFFFFEF39, 0),  # above a GHz: no shift
        (2_000_000, 0x80000000, 0),
        (2_000_001, 0xFFFFF79C, -1),
        (2_400_000, 0xD5555555, -1),
        (3_000_000, 0xAAAAAAAA, -1),
        (4_500_000, 0xE38E38E3, -2),
        (500_000, 0x80000000, 2),
        (32, 0xF4240000, 15),
    ],
)
def test_the_scale_of_a_tsc(khz: int, mul: int, shift: int) -> None:
    assert time_scale(khz) == (mul, shift)


@given(st.integers(1, 16_000_000))
def test_a_scale_uses_all_of_its_32_bits(khz: int) -> None:
    mul, shift = time_scale(khz)
    assert 1 << 31 <= mul < 1 << 32
    assert -128 <= shift < 128
    per_second = khz * 1000 << shift if shift >= 0 else khz * 1000 >> -shift
    assert abs((per_second * mul >> 32) - S) <= 2
