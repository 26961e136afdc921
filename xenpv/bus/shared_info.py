"""The guest's reader of time: its vcpu's system time and the wall clock of shared_info.

win-xenbus shared_info.c GetTime; Linux pvclock.c. Xen may write at any moment: a version is
odd while it does, and a reader goes round until the version was even and stayed the same.
wc_sec_hi is read too, which XenBus does not: its clock ends in 2106.
"""

from __future__ import annotations

from typing import Final

import attrs

from xenpv.abi.layout import offsetof
from xenpv.errors import Livelock
from xenpv.xen.domain import Domain

SPINS_MAX: Final = 1000  # a hypervisor that writes for ever; a guest would spin for ever
NS_PER_S: Final = 1_000_000_000
VCPU_INFO_SIZE: Final = 64
U64: Final = (1 << 64) - 1
FILETIME_EPOCH_S: Final = 11_644_473_600  # from 1601 to 1970

TIME: Final = offsetof("vcpu_info", "time")
TSC_TIMESTAMP: Final = offsetof("vcpu_time_info", "tsc_timestamp")
SYSTEM_TIME: Final = offsetof("vcpu_time_info", "system_time")
TSC_TO_SYSTEM_MUL: Final = offsetof("vcpu_time_info", "tsc_to_system_mul")
TSC_SHIFT: Final = offsetof("vcpu_time_info", "tsc_shift")

# By is_32bit: wc_version, which wc_sec and wc_nsec follow, and wc_sec_hi, which has moved.
WC_VERSION: Final = {
    False: offsetof("shared_info", "wc_version"),
    True: offsetof("shared_info_x86_32", "wc_version"),
}
WC_SEC_HI: Final = {
    False: offsetof("shared_info", "wc_sec_hi"),
    True: offsetof("shared_info_x86_32", "arch") + offsetof("arch_shared_info_x86_32", "wc_sec_hi"),
}


@attrs.frozen
class TimeRecord:
    """struct vcpu_time_info as it was at one version; `system_time` in ns."""

    tsc_timestamp: int
    system_time: int
    tsc_to_system_mul: int
    tsc_shift: int

    def at(self, tsc: int) -> int:
        """System time in ns when the TSC reads `tsc`."""
        delta = (tsc - self.tsc_timestamp) & U64
        delta = delta << self.tsc_shift & U64 if self.tsc_shift >= 0 else delta >> -self.tsc_shift
        return self.system_time + (delta * self.tsc_to_system_mul >> 32)


class SharedInfo:
    """The shared_info page of `domain`, which its kernel has mapped at `pfn`."""

    def __init__(self, domain: Domain, pfn: int) -> None:
        self.domain = domain
        self.pfn = pfn
        self._vcpu_info: dict[int, tuple[int, int]] = {}

    def moved_vcpu_info(self, vcpu: int, pfn: int, offset: int) -> None:
        """That vcpu's vcpu_info is there since VCPUOP_register_vcpu_info."""
        self._vcpu_info[vcpu] = pfn, offset

    def _time_at(self, vcpu: int) -> tuple[int, int]:
        pfn, offset = self._vcpu_info.get(vcpu, (self.pfn, vcpu * VCPU_INFO_SIZE))
        return pfn, offset + TIME

    def _read_time(self, vcpu: int) -> TimeRecord:
        pfn, at = self._time_at(vcpu)
        read = self.domain.read
        return TimeRecord(
            tsc_timestamp=int.from_bytes(read(pfn, at + TSC_TIMESTAMP, 8), "little"),
            system_time=int.from_bytes(read(pfn, at + SYSTEM_TIME, 8), "little"),
            tsc_to_system_mul=self.domain.load32(pfn, at + TSC_TO_SYSTEM_MUL),
            tsc_shift=int.from_bytes(read(pfn, at + TSC_SHIFT, 1), "little", signed=True),
        )

    def _read_wallclock(self) -> int:
        load = self.domain.load32
        base = WC_VERSION[self.domain.is_32bit]
        sec = load(self.pfn, base + 4)
        nsec = load(self.pfn, base + 8)
        high = load(self.pfn, WC_SEC_HI[self.domain.is_32bit])
        return (high << 32 | sec) * NS_PER_S + nsec

    def _time_version(self, vcpu: int) -> int:
        return self.domain.load32(*self._time_at(vcpu))

    def _wallclock_version(self) -> int:
        return self.domain.load32(self.pfn, WC_VERSION[self.domain.is_32bit])

    def time_record(self, vcpu: int = 0) -> TimeRecord:
        """The record of a vcpu, whole. Raises Livelock after SPINS_MAX rounds."""
        for _ in range(SPINS_MAX):
            version = self._time_version(vcpu)
            if version % 2:
                continue
            record = self._read_time(vcpu)
            if self._time_version(vcpu) == version:
                return record
        raise self._spinning("vcpu_time_info")

    def system_time(self, vcpu: int = 0) -> int:
        """ns since the machine was made, by the TSC. Raises Livelock."""
        record = self.time_record(vcpu)
        return record.at(self.domain.rdtsc())

    def wallclock(self) -> int:
        """ns from 1970 to system time 0, the domain's offset in it. Raises Livelock."""
        for _ in range(SPINS_MAX):
            version = self._wallclock_version()
            if version % 2:
                continue
            wallclock = self._read_wallclock()
            if self._wallclock_version() == version:
                return wallclock
        raise self._spinning("the wall clock")

    def time(self) -> int:
        """ns since 1970 by vcpu 0, both records of one moment. Raises Livelock."""
        for _ in range(SPINS_MAX):
            versions = self._wallclock_version(), self._time_version(0)
            if versions[0] % 2 or versions[1] % 2:
                continue
            wallclock = self._read_wallclock()
            record = self._read_time(0)
            if versions == (self._wallclock_version(), self._time_version(0)):
                return wallclock + record.at(self.domain.rdtsc())
        raise self._spinning("the time")

    def _spinning(self, what: str) -> Livelock:
        loop = self.domain.loop
        return Livelock(
            f"{what} never stood still in {SPINS_MAX} rounds",
            seed=loop.seed,
            tail=loop.trace.tail(),
        )


def filetime(time_ns: int) -> int:
    """Windows' 100 ns units since 1601 from ns since 1970, truncated."""
    return (time_ns + FILETIME_EPOCH_S * NS_PER_S) // 100
