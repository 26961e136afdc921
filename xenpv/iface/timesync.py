"""The guest's clock set from Xen's: what xenagent does at its start, every 30 minutes, and
after every resume (win-xeniface xenagent, CXenAgent::SetXenTime).
"""

from __future__ import annotations

from typing import Final, Protocol

from xenpv.bus.registry import Registry
from xenpv.iface.systemclock import PER_MINUTE, PER_MS, SystemClock, TimeZone
from xenpv.xen.domain import Domain

PARAMETERS: Final = "Services\\xenagent\\Parameters"
TIME_SYNC_MODE: Final = "TimeSyncMode"  # 0: only when forced


class XenTime(Protocol):
    """SHARED_INFO GetTime."""

    def get_time(self) -> tuple[int, bool]:
        """A FILETIME, and whether it is local time (the inverse of RealTimeIsUniversal)."""


def boot_clock(domain: Domain, zone: TimeZone, source: XenTime) -> SystemClock:
    """The clock as the operating system sets it at boot: from the RTC, which shows the same."""
    time, local = source.get_time()
    if local:
        time += zone.bias_at(time) * PER_MINUTE
    return SystemClock(domain, zone, time)


class TimeSync:
    """Sets `clock` to what `source` says."""

    def __init__(self, clock: SystemClock, source: XenTime, registry: Registry) -> None:
        self.clock = clock
        self.source = source
        self.registry = registry

    def sync(self, *, forced: bool) -> bool:
        """True if the clock was set: not if it shows the same millisecond already.

        TimeSyncMode 0 in the registry turns off what is not forced.
        """
        if not forced and self.registry.dword(PARAMETERS, TIME_SYNC_MODE, 1) == 0:
            return False
        time, local = self.source.get_time()
        shown = self.clock.local_now() if local else self.clock.now()
        if shown // PER_MS == time // PER_MS:
            return False
        if local:
            # Twice: the first is by the daylight bias of the time that is wrong.
            self.clock.set_local_time(time)
            self.clock.set_local_time(time)
        else:
            self.clock.set_system_time(time)
        return True
