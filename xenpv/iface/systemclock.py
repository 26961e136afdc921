"""The clock of the operating system in a guest: set by an agent, driven by the TSC.

Times are FILETIMEs: 100 ns units since 1601, UTC unless they are called local. A suspend or a
migration does not tell it how long it took, which is why agents set it again.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import attrs

from xenpv.xen.domain import Domain

PER_SECOND: Final = 10_000_000
PER_MS: Final = 10_000
PER_MINUTE: Final = 60 * PER_SECOND
EPOCH: Final = datetime(1601, 1, 1, tzinfo=UTC)
# A datetime ends with the year 9999; what lies beyond is that year's last day to it.
LAST: Final = datetime(9999, 12, 31, tzinfo=UTC)
LAST_WEEK: Final = 5


def filetime_of(moment: datetime) -> int:
    """The FILETIME of a moment that knows its zone."""
    return (moment - EPOCH) // timedelta(microseconds=1) * 10


def moment_of(filetime: int) -> datetime:
    """UTC, truncated to the microsecond; years after 9999 count as its last day."""
    days, rest = divmod(filetime, 86_400 * PER_SECOND)
    if days > (LAST - EPOCH).days:
        return LAST
    return EPOCH + timedelta(days=days, microseconds=rest // 10)


@attrs.frozen(kw_only=True)
class Transition:
    """When daylight time begins or ends, as SYSTEMTIME of TIME_ZONE_INFORMATION says it.

    `week` 1 to 4 is the n-th `weekday` (0 Sunday) of the month, 5 its last; at `hour`, local.
    """

    month: int
    week: int
    weekday: int
    hour: int

    def of_year(self, year: int) -> datetime:
        """Local time, its zone written as UTC."""
        if self.week < LAST_WEEK:
            first = datetime(year, self.month, 1, self.hour, tzinfo=UTC)
            ahead = (self.weekday - (first.weekday() + 1)) % 7
            return first + timedelta(days=ahead + 7 * (self.week - 1))
        month = self.month % 12 + 1
        after = datetime(year + self.month // 12, month, 1, self.hour, tzinfo=UTC)
        back = (after.weekday() + 1 - self.weekday - 1) % 7 + 1
        return after - timedelta(days=back)


@attrs.frozen(kw_only=True)
class TimeZone:
    """UTC = local time + bias, in minutes; with a daylight bias from `begins` to `ends`."""

    bias: int = 0
    daylight_bias: int = -60
    begins: Transition | None = None
    ends: Transition | None = None

    def bias_at(self, filetime: int) -> int:
        """Minutes, at a moment of UTC."""
        if self.begins is None or self.ends is None:
            return self.bias
        moment = min(moment_of(filetime), LAST - timedelta(days=2))
        local = moment - timedelta(minutes=self.bias)
        begins = self.begins.of_year(local.year)
        # The end is told in daylight time.
        ends = self.ends.of_year(local.year) + timedelta(minutes=self.daylight_bias)
        inside = begins <= local < ends if begins < ends else not ends <= local < begins
        return self.bias + self.daylight_bias if inside else self.bias


class SystemClock:
    """What the operating system's programs read. `set_count` is how often it was set.

    `jumped` is called when it is (timerfd's cancel-on-set).
    """

    def __init__(self, domain: Domain, zone: TimeZone, now: int) -> None:
        self.domain = domain
        self.zone = zone
        self.set_count = 0
        self.jumped: Callable[[], object] | None = None
        self._base = now
        self._tsc = domain.rdtsc()

    def now(self) -> int:
        """GetSystemTimeAsFileTime: UTC."""
        ticks = self.domain.rdtsc() - self._tsc
        return self._base + ticks * PER_SECOND // (self.domain.clock.khz * 1000)

    def local_now(self) -> int:
        """UTC less the bias of now."""
        now = self.now()
        return now - self.zone.bias_at(now) * PER_MINUTE

    def set_system_time(self, utc: int) -> None:
        """SetSystemTime."""
        self._base = utc
        self._tsc = self.domain.rdtsc()
        self.set_count += 1
        if self.jumped is not None:
            self.jumped()

    def set_local_time(self, local: int) -> None:
        """SetLocalTime: by the bias that holds at the time the clock showed until now.

        So where it was on the other side of a change to daylight time, it is wrong by that,
        and right after the same call again.
        """
        self.set_system_time(local + self.zone.bias_at(self.now()) * PER_MINUTE)
