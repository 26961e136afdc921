"""The machine's time: a TSC over the loop's virtual clock, its scale, and the wall clock.

xen/common/time.c and xen/arch/x86/time.c. System time is the loop's: nanoseconds since the
machine was made. The TSC counts kilohertz of it and never drifts, so what a calibration
gives is a fresh stamp. No clock of the host is read: the wall clock starts at EPOCH.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xenpv.abi._kernel import lib
from xenpv.xen.loop import NS_PER_S, Loop, Task, Timer

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain

TSC_KHZ: Final = 1_000_000  # 1 GHz: a tick is a nanosecond, and the scale is exact
EPOCH: Final = 1_767_225_600  # 2026-01-01 00:00:00 UTC, in seconds since 1970
CALIBRATION_NS: Final = NS_PER_S  # EPOCH of arch/x86/time.c: every vcpu's stamp is that old at most
TSC_STABLE: Final[int] = lib.XEN_PVCLOCK_TSC_STABLE_BIT

S_TIME_BITS: Final = 64


def s_time(value: int) -> int:
    """A u64 as Xen's signed s_time_t has it."""
    value &= (1 << S_TIME_BITS) - 1
    return value - (1 << S_TIME_BITS) if value >> (S_TIME_BITS - 1) else value


def time_scale(khz: int) -> tuple[int, int]:
    """(tsc_to_system_mul, tsc_shift) for a TSC of `khz`: set_time_scale, arch/x86/time.c.

    ns = (ticks shifted left by shift, right if negative) x mul >> 32. mul is a fraction of
    2^32 and at least half of it, so the error is below 2 ^ -31 of the ticks.
    """
    rate = khz * 1000
    shift = 0
    while rate > 2 * NS_PER_S:
        rate >>= 1
        shift -= 1
    while rate <= NS_PER_S:
        rate <<= 1
        shift += 1
    return (NS_PER_S << 32) // rate, shift


class Softirq(Task):
    """What a timer of Xen's own does: at the timer's time, before any vcpu runs.

    No task of the domain: pausing it does not hold this.
    """

    __slots__ = ()

    def wake(self) -> None:
        if not self.held:
            self.run()


def xen_timer(domain: Domain, name: str, run: Callable[[], object], period_ns: int = 0) -> Timer:
    """A timer of Xen's for a domain; with a period it does not keep Loop.run from ending."""
    task = Softirq(domain.loop, domain.domid, name, run, domain.machine)
    return Timer(domain.loop, task, period_ns)


def retire_timer(timer: Timer) -> None:
    """Its domain is dying: it never fires again, and holds on to nothing."""
    timer.cancel()
    timer.task.retire()
    timer.task.run = _nothing


def _nothing() -> None:
    """What a retired timer would do."""


class Clock:
    """What every domain of one machine reads its time from.

    `wc_sec` and `wc_nsec` are the wall clock at system time 0, UTC since 1970.
    """

    __slots__ = ("khz", "loop", "mul", "shift", "wc_nsec", "wc_sec")

    def __init__(self, loop: Loop, khz: int = TSC_KHZ) -> None:
        self.loop = loop
        self.khz = khz
        self.mul, self.shift = time_scale(khz)
        self.wc_sec = EPOCH
        self.wc_nsec = 0

    def tsc(self, system_time: int) -> int:
        """The TSC at `system_time` ns."""
        return system_time * self.khz // 1_000_000

    def rdtsc(self) -> int:
        """The TSC now: what the instruction gives, on every vcpu."""
        return self.tsc(self.loop.now)

    def stamp(self) -> tuple[int, int]:
        """(TSC, system time in ns) of the last calibration."""
        now = self.loop.now
        system_time = now - now % CALIBRATION_NS
        return self.tsc(system_time), system_time

    def settime(self, secs: int, nsecs: int, system_time: int) -> None:
        """do_settime: it was secs + nsecs when system time was `system_time` ns.

        Negative results wrap as Xen's u64 does. Domains are told by Hypervisor.settime64.
        """
        total = (secs * NS_PER_S + nsecs - system_time) & ((1 << 64) - 1)
        self.wc_sec, self.wc_nsec = divmod(total, NS_PER_S)
