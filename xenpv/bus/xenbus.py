"""The XENBUS function device: interfaces, and a child device per class under `device`.

win-xenbus fdo.c, in the order of its D3 -> D0: interfaces, `drivers/N`, then a watch of
`device` whose scan creates one PDO per class. Instances (`device/vif/0`) are the class
driver's children, which scans its own directory.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final, Protocol

from xenpv.abi._kernel import lib
from xenpv.bus.console import ConsoleInterface
from xenpv.bus.evtchn import EvtchnInterface
from xenpv.bus.gnttab import GnttabInterface
from xenpv.bus.registry import Registry
from xenpv.bus.shared_info import SharedInfoInterface
from xenpv.bus.store import StoreInterface, Watch
from xenpv.bus.suspend import SuspendInterface
from xenpv.errors import StoreError
from xenpv.xen.domain import Domain
from xenpv.xen.gnttab import GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE
from xenpv.xen.loop import NS_PER_MS, Task, Timer

VENDOR: Final = "Xen_Project"
VERSION: Final = "9.1.0.0"
DRIVERS_MAX: Final = 256

# Parameters\SyntheticClasses: devices without a directory of their own.
SYNTHETIC_CLASSES: Final = ("IFACE",)

PARAMETERS: Final = "Services\\XENBUS\\Parameters"
PLATFORM_GSI: Final = 24  # INTA of device 2 of the bus (hvm_pci_intx_gsi): xen-platform of QEMU

POWER_OFF_POLL_NS: Final = 10 * NS_PER_MS
POWER_OFF_POLLS_MAX: Final = 6_000  # 60 s of virtual time, then power goes all the same


class ClassDriver(Protocol):
    """The driver of one class: XENVIF, XENVBD, XENIFACE."""

    def start(self) -> None:
        """To D0."""

    def stop(self) -> None:
        """To D3: begins closing every device; `stopped` says when that is done."""

    @property
    def stopped(self) -> bool: ...


class ClassDriverFactory(Protocol):
    def __call__(self, bus: XenBus) -> ClassDriver: ...


class PdoState(enum.Enum):
    """Where a child device is in its life (DEVICE_PNP_STATE, what of it is used)."""

    STARTED = "started"
    STOPPED = "stopped"
    DELETED = "deleted"


class Pdo:
    """The device of one class: XENBUS\\VEN_XP0001&DEV_VIF."""

    __slots__ = ("driver", "name", "state")

    def __init__(
        self, name: str, driver: ClassDriver, *, state: PdoState = PdoState.STARTED
    ) -> None:
        self.name = name
        self.driver = driver
        self.state = state


class XenBus:
    """What a guest's kernel brings up first. `drivers` are the classes it has drivers for.

    `personality` is "windows", or "linux" for a guest that connects without closing first
    and whose kernel answers control/shutdown itself. `fifo` asks for the FIFO event channel
    ABI; None leaves it to the registry (UseEvtchnFifoAbi), and to the 2-level one in Linux.
    """

    def __init__(
        self,
        domain: Domain,
        drivers: Mapping[str, ClassDriverFactory],
        *,
        personality: str = "windows",
        fifo: bool | None = None,
        registry: Registry | None = None,
    ) -> None:
        self.domain = domain
        self.drivers = drivers
        self.personality = personality
        self.registry = Registry() if registry is None else registry
        self.pdos: dict[str, Pdo] = {}
        # Made in this order, for each registers its callbacks of a suspend then.
        self.suspend = SuspendInterface(domain)
        self.shared_info = SharedInfoInterface(domain, suspend=self.suspend, registry=self.registry)
        self.evtchn = self._make_evtchn(fifo)
        self.gnttab = GnttabInterface(domain)
        # The page frames come from the reserved references, not from HVM params 1 and 17.
        pfn, _ = self.gnttab.query_reference(GNTTAB_RESERVED_XENSTORE)
        port = domain.hvm_param(lib.HVM_PARAM_STORE_EVTCHN)
        self.store = StoreInterface(
            domain, self.evtchn, pfn, port, suspend=self.suspend, watchdog=personality == "windows"
        )
        pfn, _ = self.gnttab.query_reference(GNTTAB_RESERVED_CONSOLE)
        port = domain.hvm_param(lib.HVM_PARAM_CONSOLE_EVTCHN)
        self.console = ConsoleInterface(domain, self.evtchn, pfn, port) if port else None
        self._scan_task: Task = domain.task("xenbus scan", self.scan)
        self._power_task: Task = domain.task("power off", self._power_off)
        self._power_timer: Timer = domain.timer(self._power_task)
        self._power_polls = 0
        self._reason = 0
        self._watch: Watch | None = None
        self._listed: list[str] = []  # names in `device` at the last scan
        self._driver_key: str | None = None

    def _make_evtchn(self, fifo: bool | None) -> EvtchnInterface:
        windows = self.personality == "windows"
        if fifo is None:
            fifo = windows and self.registry.dword(PARAMETERS, "UseEvtchnFifoAbi", 1) != 0
        return EvtchnInterface(
            self.domain,
            fifo=fifo,
            vectors=windows and self.registry.dword(PARAMETERS, "UseEvtchnUpcall", 1) != 0,
            gsi=PLATFORM_GSI if windows else 0,
            suspend=self.suspend,
            shared_info=self.shared_info,
        )

    def start(self) -> None:
        """D3 to D0."""
        # Windows started its processors before it loaded a driver.
        self.domain.start_vcpus()
        self.log(f"xenbus: domain {self.domain.domid}, {self.personality} personality\n")
        if self.personality == "windows":
            self._driver_key = self.claim_driver_key("XENBUS")
        self._watch = self.store.watch_add("device", self._scan_task, self._concerns_scan)

    def log(self, text: str) -> None:
        """A line on the PV console, if there is one."""
        if self.console is not None:
            self.console.print(text)

    def claim_driver_key(self, product: str) -> str | None:
        """Write `drivers/<first free of 0-255>`; None if all are taken or it may not be written."""
        try:
            taken = self.store.directory("drivers")
            free = next((n for n in range(DRIVERS_MAX) if str(n) not in taken), None)
            if free is None:
                return None
            key = f"drivers/{free}"
            # A release build has no attributes, and keeps the space before them.
            self.store.write(key, f"{VENDOR} {product} {VERSION} ")
        except StoreError:
            return None
        return key

    def release_driver_key(self, key: str | None) -> None:
        if key is not None:
            self.store.discard(key)

    def _concerns_scan(self, path: bytes) -> bool:
        """Not what happens inside a class that the last scan saw."""
        _device, _, below = path.partition(b"/")
        name, inside, _key = below.partition(b"/")
        return not inside or name.decode() not in self._listed

    def scan(self) -> None:
        """Create a PDO for each class that appeared, drop those whose directory went."""
        try:
            names = self.store.directory("device")
        except StoreError:
            names = []
        self._listed = names
        classes = [name.upper() for name in names]
        classes += [name for name in SYNTHETIC_CLASSES if name not in classes]
        for name in [name for name in self.pdos if name not in classes]:
            pdo = self.pdos.pop(name)
            pdo.driver.stop()
            pdo.state = PdoState.DELETED
        for name in classes:
            factory = self.drivers.get(name)
            if factory is not None and name not in self.pdos and not self._power_polls:
                self.pdos[name] = Pdo(name=name, driver=factory(self))
                self.pdos[name].driver.start()

    def power_off(self, reason: int) -> None:
        """Close every device, then SCHEDOP_shutdown(reason): how an operating system goes."""
        if self._power_polls:
            return
        self._power_polls = 1
        self._reason = reason
        for pdo in self.pdos.values():
            pdo.driver.stop()
            pdo.state = PdoState.STOPPED
        self._power_task.wake()

    def _power_off(self) -> None:
        waiting = [pdo.name for pdo in self.pdos.values() if not pdo.driver.stopped]
        self._power_polls += 1
        if waiting and self._power_polls < POWER_OFF_POLLS_MAX:
            self._power_timer.arm(POWER_OFF_POLL_NS)
            return
        if waiting:
            self.log(f"xenbus: power off without {', '.join(waiting)}\n")
        self.release_driver_key(self._driver_key)
        self.log("xenbus: down\n")
        self.domain.shutdown(self._reason)
