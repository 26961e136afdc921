"""The shared_info page as a guest uses it: XenBus' SHARED_INFO interface, the reader of time.

win-xenbus shared_info.c; Linux pvclock.c for the time. Xen may write at any moment: a version is
odd while it does, and a reader goes round until the version was even and stayed the same.
wc_sec_hi is read too, which XenBus does not: its clock ends in 2106.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.abi.layout import offsetof
from xenpv.bus.hole import Holes
from xenpv.bus.interface import Interface
from xenpv.bus.registry import Registry
from xenpv.bus.suspend import SuspendCallback, SuspendInterface, SuspendPhase
from xenpv.errors import Livelock, LocalProtocolError
from xenpv.xen.domain import Domain

SPINS_MAX: Final = 1000  # a hypervisor that writes for ever; a guest would spin for ever
NS_PER_S: Final = 1_000_000_000
VCPU_INFO_SIZE: Final = 64
NR_LEGACY_VCPUS: Final = 32  # that have their vcpu_info in the page
U32: Final = (1 << 32) - 1
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

# By is_32bit: where the pending and the mask words begin, and the bytes of either.
EVTCHN_BITS: Final = {
    False: (offsetof("shared_info", "evtchn_pending"), offsetof("shared_info", "evtchn_mask"), 512),
    True: (
        offsetof("shared_info_x86_32", "evtchn_pending"),
        offsetof("shared_info_x86_32", "evtchn_mask"),
        128,
    ),
}
SELECTOR: Final = {
    False: offsetof("vcpu_info", "evtchn_pending_sel"),
    True: offsetof("vcpu_info_x86_32", "evtchn_pending_sel"),
}
OR: Final[int] = lib.UPDATE_OR
AND: Final[int] = lib.UPDATE_AND
EXCHANGE: Final[int] = lib.UPDATE_EXCHANGE

TIME_ZONE: Final = "Control\\TimeZoneInformation"
UNIVERSAL: Final = "RealTimeIsUniversal"

_OPERATIONS: Final = (
    "upcall_pending",
    "evtchn_poll",
    "evtchn_ack",
    "evtchn_mask",
    "evtchn_unmask",
    "get_time",
)


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

    def __init__(
        self, domain: Domain, pfn: int, registered: dict[int, tuple[int, int]] | None = None
    ) -> None:
        self.domain = domain
        self.pfn = pfn
        self._vcpu_info = {} if registered is None else registered

    def moved_vcpu_info(self, vcpu: int, pfn: int, offset: int) -> None:
        """That vcpu's vcpu_info is there since VCPUOP_register_vcpu_info."""
        self._vcpu_info[vcpu] = pfn, offset

    def has_vcpu_info(self, vcpu: int) -> bool:
        """Vcpus from 32 on have none before they registered one."""
        return vcpu < NR_LEGACY_VCPUS or vcpu in self._vcpu_info

    def vcpu_info_at(self, vcpu: int) -> tuple[int, int]:
        """(pfn, offset) of that vcpu's vcpu_info."""
        return self._vcpu_info.get(vcpu, (self.pfn, vcpu * VCPU_INFO_SIZE))

    def _time_at(self, vcpu: int) -> tuple[int, int]:
        pfn, offset = self.vcpu_info_at(vcpu)
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


class SharedInfoInterface(Interface):
    """XenBus' SHARED_INFO interface, versions 2 to 4 (win-xenbus shared_info.c).

    The page goes into a hole of the physmap at the first reference, and again after a
    suspend; every port is masked then. The 2-level ABI of event channels is what it is for:
    under the FIFO ABI Xen does not look at these bits.
    """

    NAME = "SHARED_INFO"
    GUID = "7E73C34F-1640-4649-A8F3-263BC930A004"
    OPERATIONS: ClassVar[Mapping[int, Sequence[str]]] = {
        2: _OPERATIONS,
        3: _OPERATIONS,
        4: ("upcall_supported", *_OPERATIONS),
    }
    ADAPTED: ClassVar[Mapping[tuple[int, str], str]] = {(2, "get_time"): "get_time_v2"}

    def __init__(
        self,
        domain: Domain,
        *,
        suspend: SuspendInterface | None = None,
        registry: Registry | None = None,
        holes: Holes | None = None,
    ) -> None:
        self.domain = domain
        self.holes = Holes(domain, ram=False) if holes is None else holes
        self.suspend = suspend
        self.registry = registry
        self.page: SharedInfo | None = None
        self.registered: dict[int, tuple[int, int]] = {}  # vcpu_info by vcpu: pfn, offset
        self._early: SuspendCallback | None = None
        self._cursors = [0] * domain.processors
        self._width = 32 if domain.is_32bit else 64
        self._words = EVTCHN_BITS[domain.is_32bit]

    def _start(self) -> None:
        if self.suspend is not None:
            self.suspend.acquire()
            self._early = self.suspend.register(SuspendPhase.EARLY, self._map, "XENBUS SHARED_INFO")
        self.page = SharedInfo(self.domain, self.holes.alloc(), self.registered)
        self._map()

    def _stop(self) -> None:
        page = self._page()
        self.domain.memory.remove_from_physmap(self.domain.DOMID_SELF, page.pfn)
        self.holes.free(page.pfn)
        self.page = None
        if self.suspend is not None and self._early is not None:
            self.suspend.deregister(self._early)
            self.suspend.release()

    def _map(self) -> None:
        page = self._page()
        space: int = lib.XENMAPSPACE_shared_info
        self.domain.memory.add_to_physmap(self.domain.DOMID_SELF, space, 0, page.pfn)
        _pending, masks, size = self._words
        self.domain.write(page.pfn, masks, b"\xff" * size)

    def _page(self) -> SharedInfo:
        if self.page is None:
            raise LocalProtocolError("SHARED_INFO is not acquired")
        return self.page

    def moved_vcpu_info(self, vcpu: int, pfn: int, offset: int) -> None:
        """That vcpu's vcpu_info is there since VCPUOP_register_vcpu_info."""
        self.registered[vcpu] = pfn, offset

    def upcall_supported(self, cpu: int) -> bool:
        """Whether that CPU has a vcpu_info of its own: one of the first 32, or registered."""
        return 0 <= cpu < self.domain.processors and self._page().has_vcpu_info(cpu)

    def upcall_pending(self, cpu: int) -> bool:
        """Exchange upcall_pending with 0. False for a CPU without vcpu_info."""
        if not self.upcall_supported(cpu):
            return False
        pfn, offset = self._page().vcpu_info_at(cpu)
        before = self.domain.update32(pfn, offset, AND, ~0xFF & U32)
        return bool(before & 0xFF)

    def evtchn_poll(self, cpu: int, event: Callable[[int], bool | None]) -> bool:
        """Call `event` for each port that is pending and not masked; whether one said True.

        Words are looked at from where the last poll of this CPU ended, ports ascending. It
        acknowledges nothing, and takes the ports of other CPUs for its own.
        """
        if not self.upcall_supported(cpu):
            return False
        page = self._page()
        pfn, offset = page.vcpu_info_at(cpu)
        selector = self._take_word(pfn, offset + SELECTOR[self.domain.is_32bit])
        done = False
        at = self._cursors[cpu]
        while selector:
            if selector >> at & 1:
                selector &= ~(1 << at)
                for port in self._due(page.pfn, at):
                    done = bool(event(port)) or done
            at = (at + 1) % self._width
        self._cursors[cpu] = at
        return done

    def _take_word(self, pfn: int, offset: int) -> int:
        value = 0
        for part in range(self._width // 32):
            value |= self.domain.update32(pfn, offset + 4 * part, EXCHANGE, 0) << 32 * part
        return value

    def _due(self, pfn: int, word: int) -> list[int]:
        """Ports of one word that are pending and not masked."""
        pending, masks, _ = self._words
        ports = []
        for part in range(self._width // 32):
            at = 4 * (word * self._width // 32 + part)
            load = self.domain.load32
            bits = load(pfn, pending + at) & ~load(pfn, masks + at)
            ports += [8 * at + bit for bit in range(32) if bits >> bit & 1]
        return ports

    def _bit(self, port: int, base: int, how: int) -> bool:
        """Set or clear one bit; whether it was set."""
        if not 0 <= port < 8 * self._words[2]:
            raise LocalProtocolError(f"port {port} has no bit in shared_info")
        bit = 1 << port % 32
        value = bit if how == OR else ~bit & U32
        before = self.domain.update32(self._page().pfn, base + port // 32 * 4, how, value)
        return bool(before & bit)

    def evtchn_ack(self, port: int) -> None:
        """Clear the pending bit."""
        self._bit(port, self._words[0], AND)

    def evtchn_mask(self, port: int) -> None:
        self._bit(port, self._words[1], OR)

    def evtchn_unmask(self, port: int) -> bool:
        """Clear the mask bit; True: it is pending, and nobody will say so again."""
        self._bit(port, self._words[1], AND)
        pending = self.domain.load32(self._page().pfn, self._words[0] + port // 32 * 4)
        return bool(pending >> port % 32 & 1)

    def get_time(self) -> tuple[int, bool]:
        """The guest's clock, in 100 ns since 1601, and whether that is local time.

        It is unless RealTimeIsUniversal is set. Raises Livelock where Xen writes for ever.
        """
        registry = self.registry
        is_universal = registry is not None and registry.dword(TIME_ZONE, UNIVERSAL, 0) != 0
        return filetime(self._page().time()), not is_universal

    def get_time_v2(self) -> int:
        """Until version 2 without the flag."""
        return self.get_time()[0]
