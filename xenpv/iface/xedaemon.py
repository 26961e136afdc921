"""xe-daemon: what a guest tells its toolstack about itself (xe-guest-utilities, the Go daemon).

It runs where the toolstack gave the domain a `unique-domain-id`: XAPI's does, libxl does not.
Requests to shut down are the kernel's business, not its.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from xenpv.errors import LocalProtocolError, StoreError
from xenpv.iface.systemclock import SystemClock, moment_of
from xenpv.xen.loop import NS_PER_S, Task, Timer

if TYPE_CHECKING:
    from xenpv.bus.xenbus import XenBus
    from xenpv.iface.operatingsystem import Addresses, OperatingSystem

INTERVAL_S: Final = 60
JUMP_DELAY_NS: Final = NS_PER_S
FREEZE_TIMEOUT_MS: Final = 300_000
CYCLES_PER_FLUSH: Final = 2
KIB_PER_PAGE: Final = 4
UNIQUE_DOMAIN_ID: Final = "unique-domain-id"
SRIOV: Final = "xenserver/device/net-sriov-vf"
SRIOV_ATTR: Final = "xenserver/attr/net-sriov-vf"
VERSION: Final = {"Major": "8", "Minor": "4", "Micro": "0", "Build": "1"}
DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun",
                 "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")  # fmt: skip


def timestamp(filetime: int) -> str:
    """Go's `Mon Jan _2 15:04:05 2006`, in UTC."""
    moment = moment_of(filetime)
    day, month = DAYS[moment.weekday()], MONTHS[moment.month - 1]
    return f"{day} {month} {moment.day:2} {moment:%H:%M:%S} {moment.year}"


class StoreCache:
    """Writes what changed, and removes in time what is not reported any more."""

    def __init__(self, bus: XenBus) -> None:
        self.bus = bus
        self.values: dict[str, str] = {}
        self._failures: dict[str, str] = {}  # by key, what was logged last
        self._fresh: dict[str, None] = {}

    def write(self, key: str, value: str) -> None:
        """A failure is logged, and tried again the next time: a quota can be full for a while."""
        self._fresh[key] = None
        if self.values.get(key) == value:
            return
        try:
            self.bus.store.write(key, value)
        except (StoreError, LocalProtocolError) as error:
            if self._failures.get(key) != str(error):
                self._failures[key] = str(error)
                self.bus.log(f"xe-daemon: {key}: {error}\n")
        else:
            self.values[key] = value
            self._failures.pop(key, None)

    def flush(self) -> None:
        """Remove what was written once, and not again since the last flush."""
        for key in [key for key in self.values if key not in self._fresh]:
            try:
                self.bus.store.discard(key)
            except StoreError as error:
                self.bus.log(f"xe-daemon: {key}: {error}\n")
            else:
                del self.values[key]
        self._fresh.clear()

    def clear(self) -> None:
        """Another store: everything is written anew."""
        self.values.clear()
        self._fresh.clear()


class XeDaemon:
    """The daemon. `cycles` is how often it reported."""

    def __init__(
        self,
        bus: XenBus,
        system: OperatingSystem,
        clock: SystemClock,
        *,
        interval_s: int = INTERVAL_S,
        balloon: bool = True,
    ) -> None:
        self.bus = bus
        self.system = system
        self.clock = clock
        self.interval_ns = interval_s * NS_PER_S
        self.balloon = balloon
        self.cycles = 0
        self.running = False
        self.cache = StoreCache(bus)
        self._domain_id = ""
        self._task: Task = bus.domain.task("xe-daemon", self._cycle)
        self._timer: Timer = bus.domain.timer(self._task, self.interval_ns)
        early = bus.domain.task("xe-daemon clock jump", self._cycle)
        self._early: Timer = bus.domain.timer(early)

    def start(self) -> None:
        """Exits at once where there is no unique-domain-id."""
        found = self.bus.store.get(UNIQUE_DOMAIN_ID)
        if found is None:
            return
        self._domain_id = found
        self.running = True
        self.clock.jumped = self.clock_jumped
        self.system.freeze_timeout_ms = max(self.system.freeze_timeout_ms, FREEZE_TIMEOUT_MS)
        self._task.wake()
        self._timer.arm(self.interval_ns)

    def stop(self) -> None:
        """What it wrote stays: the toolstack sees what the guest said last."""
        self.running = False
        self.clock.jumped = None
        self._timer.cancel()
        self._early.cancel()

    def clock_jumped(self) -> None:
        """timerfd's cancel-on-set: the clock was set, so it looks a second later."""
        if self.running:
            self._early.arm(JUMP_DELAY_NS)

    def _cycle(self) -> None:
        if not self.running:
            return
        domain_id = self.bus.store.get(UNIQUE_DOMAIN_ID) or ""
        if domain_id != self._domain_id:
            self._domain_id = domain_id
            self.cache.clear()
            self.cycles = 0
        for key, value in self._report(self.cycles):
            self.cache.write(key, value)
        self.cycles += 1
        if self.cycles % CYCLES_PER_FLUSH == 0:
            self.cache.flush()
        # Last, and always another value: it is what the toolstack watches.
        try:
            self.bus.store.write("data/updated", timestamp(self.clock.now()))
        except StoreError as error:
            self.bus.log(f"xe-daemon: data/updated: {error}\n")

    def _report(self, cycle: int) -> Iterator[tuple[str, str]]:
        yield from self._versions()
        if cycle % CYCLES_PER_FLUSH == 0:
            yield from self._memory()
        yield from self._networks()
        yield from self._volumes()

    def _versions(self) -> Iterator[tuple[str, str]]:
        yield "attr/PVAddons/Installed", "1"
        for part, number in VERSION.items():
            yield f"attr/PVAddons/{part}Version", number
        system = self.system
        yield "data/os_name", system.name
        yield "data/os_distro", system.distro
        yield "data/os_majorver", system.major
        yield "data/os_minorver", system.minor
        yield "data/os_uname", system.uname
        yield "control/feature-balloon", str(int(self.balloon))

    def _memory(self) -> Iterator[tuple[str, str]]:
        total = self.bus.domain.tot_pages * KIB_PER_PAGE
        yield "data/meminfo_total", str(total)
        yield "data/meminfo_free", str(max(total - self.system.memory_used_kib, 0))

    def _networks(self) -> Iterator[tuple[str, str]]:
        """By the number of the device in the store, not by the interface's name."""
        for devid, addresses in self.system.addresses.items():
            yield from _addresses(f"attr/vif/{devid}", addresses)
        if not self.system.sriov:
            return
        try:
            functions = self.bus.store.directory(SRIOV)
        except StoreError:
            return
        for function in functions:
            mac = self.bus.store.get(f"{SRIOV}/{function}/mac") or ""
            found = self.system.sriov.get(mac.lower())
            if found is not None:
                yield from _addresses(f"{SRIOV_ATTR}/{function}", found)

    def _volumes(self) -> Iterator[tuple[str, str]]:
        for index, volume in enumerate(self.system.volumes):
            base = f"data/volumes/{index}"
            yield f"{base}/name", volume.name
            yield f"{base}/size", str(volume.size)
            yield f"{base}/free", str(volume.free)
            yield f"{base}/filesystem", volume.filesystem
            yield f"{base}/mount_points/0", volume.mount_point
            for number, extent in enumerate(volume.extents):
                yield f"{base}/extents/{number}", extent


def _addresses(base: str, addresses: Addresses) -> Iterator[tuple[str, str]]:
    for family, listed in (("ipv4", addresses.ipv4), ("ipv6", addresses.ipv6)):
        for index, address in enumerate(listed):
            yield f"{base}/{family}/{index}", address
