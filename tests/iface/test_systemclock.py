"""The guest's clock, its time zones, and what sets it: published dates, and FILETIMEs by hand."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpv.bus.registry import Registry
from xenpv.iface.systemclock import (
    PER_MINUTE,
    PER_SECOND,
    SystemClock,
    TimeZone,
    Transition,
    filetime_of,
    moment_of,
)
from xenpv.iface.timesync import PARAMETERS, TimeSync, boot_clock
from xenpv.xen.domain import Domain
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop

BERLIN = TimeZone(
    bias=-60,
    begins=Transition(month=3, week=5, weekday=0, hour=2),
    ends=Transition(month=10, week=5, weekday=0, hour=3),
)
NEW_YORK = TimeZone(
    bias=300,
    begins=Transition(month=3, week=2, weekday=0, hour=2),
    ends=Transition(month=11, week=1, weekday=0, hour=2),
)
SYDNEY = TimeZone(
    bias=-600,
    begins=Transition(month=10, week=1, weekday=0, hour=2),
    ends=Transition(month=4, week=1, weekday=0, hour=3),
)
# Published changes of 2026, in UTC: the last moment before, and the bias before and after.
CHANGES = [
    (BERLIN, datetime(2026, 3, 29, 1, tzinfo=UTC), -60, -120),
    (BERLIN, datetime(2026, 10, 25, 1, tzinfo=UTC), -120, -60),
    (NEW_YORK, datetime(2026, 3, 8, 7, tzinfo=UTC), 300, 240),
    (NEW_YORK, datetime(2026, 11, 1, 6, tzinfo=UTC), 240, 300),
    (SYDNEY, datetime(2026, 4, 4, 16, tzinfo=UTC), -660, -600),
    (SYDNEY, datetime(2026, 10, 3, 16, tzinfo=UTC), -600, -660),
]
SUMMER = filetime_of(datetime(2026, 7, 1, 12, tzinfo=UTC))
WINTER = filetime_of(datetime(2026, 1, 15, 12, tzinfo=UTC))


@pytest.fixture
def domain() -> Iterator[Domain]:
    hypervisor = Hypervisor(Loop(), nr_frames=4096)
    yield hypervisor.create_domain(1, vcpus=1, max_pages=64)
    hypervisor.close()


@attrs.define
class Xen:
    """What Xen's clock says."""

    time: int
    local: bool

    def get_time(self) -> tuple[int, bool]:
        return self.time, self.local


def test_filetimes_of_known_moments() -> None:
    assert filetime_of(datetime(1970, 1, 1, tzinfo=UTC)) == 116_444_736_000_000_000
    assert filetime_of(datetime(1601, 1, 1, tzinfo=UTC)) == 0
    assert moment_of(116_444_736_000_000_019) == datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC)


@given(st.integers(0, (1 << 64) - 1))
def test_any_filetime_has_a_moment_and_a_bias(filetime: int) -> None:
    moment = moment_of(filetime)
    if moment.year < 9999:
        assert filetime_of(moment) == filetime - filetime % 10
    for zone in (BERLIN, NEW_YORK, SYDNEY):
        assert zone.bias_at(filetime) in (zone.bias, zone.bias - 60)


@pytest.mark.parametrize(("zone", "change", "before", "after"), CHANGES)
def test_daylight_time_changes_when_it_does(
    zone: TimeZone, change: datetime, before: int, after: int
) -> None:
    at = filetime_of(change)
    assert zone.bias_at(at - 1) == before
    assert zone.bias_at(at) == after


def test_the_clock_goes_on_with_the_tsc(domain: Domain) -> None:
    clock = SystemClock(domain, TimeZone(), WINTER)
    domain.loop.advance(1_500_000_000)
    assert clock.now() == WINTER + 15_000_000
    clock.set_system_time(SUMMER)
    domain.loop.advance(100)
    assert clock.now() == SUMMER + 1


@pytest.mark.parametrize("zone", [BERLIN, NEW_YORK, SYDNEY], ids=["Berlin", "New York", "Sydney"])
@pytest.mark.parametrize(("old", "new"), [(WINTER, SUMMER), (SUMMER, WINTER)])
def test_local_time_is_set_twice_because_once_is_wrong_across_daylight_time(
    domain: Domain, zone: TimeZone, old: int, new: int
) -> None:
    local = new - zone.bias_at(new) * PER_MINUTE
    once = SystemClock(domain, zone, old)
    once.set_local_time(local)
    assert abs(once.now() - new) == 3600 * PER_SECOND
    clock = SystemClock(domain, zone, old)
    assert TimeSync(clock, Xen(local, local=True), Registry()).sync(forced=True)
    assert clock.now() == new
    assert clock.local_now() == local
    assert clock.set_count == 2


def test_utc_is_set_once(domain: Domain) -> None:
    clock = SystemClock(domain, BERLIN, WINTER)
    assert TimeSync(clock, Xen(SUMMER, local=False), Registry()).sync(forced=True)
    assert (clock.now(), clock.set_count) == (SUMMER, 1)


@pytest.mark.parametrize("local", [False, True])
def test_the_same_millisecond_is_left_alone(domain: Domain, *, local: bool) -> None:
    clock = SystemClock(domain, TimeZone(), WINTER)
    assert not TimeSync(clock, Xen(WINTER + 9_999, local), Registry()).sync(forced=True)
    assert clock.set_count == 0
    assert TimeSync(clock, Xen(WINTER + 10_000, local), Registry()).sync(forced=True)


@pytest.mark.parametrize(
    ("mode", "forced", "set_"),
    [
        (None, False, True),
        (None, True, True),
        (1, False, True),
        (0, False, False),
        (0, True, True),
        (2, False, True),
        ("0", False, True),  # of another type, so it is missing
    ],
)
def test_time_sync_mode_turns_off_what_is_not_forced(
    domain: Domain, mode: int | str | None, *, forced: bool, set_: bool
) -> None:
    registry = Registry({} if mode is None else {PARAMETERS: {"timesyncmode": mode}})
    clock = SystemClock(domain, TimeZone(), WINTER)
    assert TimeSync(clock, Xen(SUMMER, local=False), registry).sync(forced=forced) is set_


def test_a_booting_system_takes_the_rtc_for_what_the_registry_says(domain: Domain) -> None:
    local = SUMMER - BERLIN.bias_at(SUMMER) * PER_MINUTE
    assert boot_clock(domain, BERLIN, Xen(SUMMER, local=False)).now() == SUMMER
    assert boot_clock(domain, BERLIN, Xen(local, local=True)).local_now() == local
