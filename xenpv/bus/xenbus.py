"""The XENBUS function device: interfaces, and a child device per class under `device`.

win-xenbus fdo.c. What it does on the way from D3 to D0 is in power.py, its children are in
children.py. Instances (`device/vif/0`) are the class driver's children, which scans its own
directory.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from xenpv.abi._kernel import lib
from xenpv.abi.sched import SHUTDOWN
from xenpv.bus import classes, driverkey, pnpstate, vcpuinfo
from xenpv.bus.balloon import BalloonInterface
from xenpv.bus.balloon_thread import BalloonThread
from xenpv.bus.cache import CacheInterface
from xenpv.bus.children import Children
from xenpv.bus.console import ConsoleInterface
from xenpv.bus.crash import Crash
from xenpv.bus.debug import DebugInterface
from xenpv.bus.devicetree import Irp
from xenpv.bus.dump import Dump
from xenpv.bus.evtchn import EvtchnInterface
from xenpv.bus.gnttab import GnttabInterface
from xenpv.bus.hole import Holes
from xenpv.bus.interface import Interface, InterfaceVersion, query_interface
from xenpv.bus.log import Log, LogLevel
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError, status_of
from xenpv.bus.pdo import ClassDriver, ClassDriverFactory, Pdo
from xenpv.bus.pnpstate import Life, PnpState
from xenpv.bus.power import RELEASED_IN_S4, Power
from xenpv.bus.range_set import RangeSetInterface
from xenpv.bus.registry import Registry
from xenpv.bus.shared_info import SharedInfoInterface
from xenpv.bus.stack import BusStack
from xenpv.bus.startoptions import StartOptions
from xenpv.bus.store import StoreInterface
from xenpv.bus.suspend import SuspendCallback, SuspendInterface, SuspendPhase
from xenpv.bus.unplug import UnplugInterface, UnplugType
from xenpv.bus.virq import DebugVirq
from xenpv.bus.watchdog import Watchdog
from xenpv.errors import HypercallError, LocalProtocolError, StoreError
from xenpv.xen.domain import Domain
from xenpv.xen.gnttab import GNTTAB_RESERVED_XENSTORE
from xenpv.xen.loop import NS_PER_MS, Task, Timer

__all__ = ["ClassDriver", "ClassDriverFactory", "Pdo", "XenBus"]

VENDOR_PREFIX: Final = "XP"
SETTLE_POLL_NS: Final = 10 * NS_PER_MS
SETTLE_POLLS_MAX: Final = 6_000  # 60 s of virtual time, then it goes on all the same

# What its children may ask for; BALLOON is its own.
EXPORTED: Final = (
    "suspend", "shared_info", "evtchn", "debug", "store", "range_set", "cache", "gnttab",
    "unplug", "console",
)  # fmt: skip
PARAMETERS: Final = "Services\\XENBUS\\Parameters"
QEMU_LOG_PORT: Final = 0x12
PLATFORM_GSI: Final = 24  # INTA of device 2 of the bus (hvm_pci_intx_gsi): xen-platform of QEMU
CALLBACK_VECTOR: Final = 2 << 56 | 0xF3  # Linux' HYPERVISOR_CALLBACK_VECTOR, on every vcpu


class Then(enum.Enum):
    """What follows when every child has come to rest."""

    STOP = Irp.STOP_DEVICE
    REMOVE = Irp.REMOVE_DEVICE
    SLEEP = "sleep"
    HIBERNATE = "hibernate"
    POWER_OFF = "power off"


class XenBus:
    """What a guest's kernel brings up first. `drivers` are the classes it has drivers for.

    `personality` is "windows", or "linux" for a guest that connects without closing first
    and whose kernel answers control/shutdown itself. `fifo` asks for the FIFO event channel
    ABI; None leaves it to the registry (UseEvtchnFifoAbi), and to the 2-level one in Linux.
    `registry` is the machine's; XENBUS is installed into it if it never was.
    `device_id` is the platform device's, which names the vendor: XP0001. `logs` is xen.sys',
    which logs before there is a bus.
    """

    def __init__(
        self,
        domain: Domain,
        drivers: Mapping[str, ClassDriverFactory],
        *,
        personality: str = "windows",
        fifo: bool | None = None,
        registry: Registry | None = None,
        device_id: int = 0x0001,
        logs: Log | None = None,
    ) -> None:
        self.domain = domain
        self.drivers = drivers
        self.registry = Registry() if registry is None else registry
        self.personality = personality
        self.options = StartOptions.of(self.registry)
        self.logs = self._make_logs() if logs is None else logs
        self.debug = DebugInterface(self.logs)
        self.crash = Crash(domain, self.logs, self.debug)
        self.bugcheck = self.crash.bugcheck
        classes.install(self.registry)
        self.vendor_prefix = VENDOR_PREFIX
        self.vendor_name = f"{VENDOR_PREFIX}{device_id:04X}"
        self.name = f"{self.vendor_name} XENBUS"
        self.life = Life(pnpstate.FDO, PnpState.ADDED)
        self.is_asleep = False
        self.is_hibernated = False
        self.problem = ""  # why it did not start
        self.stack: BusStack | None = None  # its place in a tree of devices, if there is one
        self.below: tuple[Interface, ...] = ()  # of the devices under this one: EMULATED
        self.unplug: UnplugInterface | None = None  # of Windows: xen.sys' requests
        self._make_interfaces(fifo)
        self.children = Children(self)
        self.power = Power(self)
        self._settle_task: Task = domain.task("xenbus settle", self._settle)
        self._settle_timer: Timer = domain.timer(self._settle_task)
        self._polls = 0
        self._then: Then | None = None
        self._reason = 0

    def _make_interfaces(self, fifo: bool | None) -> None:
        domain = self.domain
        hole_of_ram = bool(self.registry.dword(PARAMETERS, "UseMemoryHole", 1))
        self.holes = Holes(domain, ram=hole_of_ram, bugcheck=self._bug)
        # Made in this order, for each registers its callbacks of a suspend then.
        self.suspend = SuspendInterface(domain)
        self.shared_info = SharedInfoInterface(
            domain, suspend=self.suspend, registry=self.registry, holes=self.holes
        )
        self._register_vcpu_info()
        self.evtchn = self._make_evtchn(fifo)
        self.cache = CacheInterface(domain)
        self.range_set = RangeSetInterface()
        self.gnttab = GnttabInterface(
            domain, holes=self.holes, cache=self.cache, suspend=self.suspend
        )
        # The page frames come from the reserved references, not from HVM params 1 and 17.
        pfn, _ = self.gnttab.query_reference(GNTTAB_RESERVED_XENSTORE)
        port = domain.hvm_param(lib.HVM_PARAM_STORE_EVTCHN)
        self.store = StoreInterface(
            domain,
            self.evtchn,
            pfn,
            port,
            suspend=self.suspend,
            gnttab=self.gnttab,
            watchdog=self.is_windows,
        )
        self.console = ConsoleInterface(domain, self.evtchn, self.gnttab, suspend=self.suspend)
        self.dump = Dump(self)
        self.store.bark = self.dump.print_store
        self.debug_virq = DebugVirq(self.evtchn, self.debug)
        self.watchdog = Watchdog(domain, self.evtchn)
        self.balloon = self._make_balloon()
        self.balloon_thread = self._make_balloon_thread()

    def _register_vcpu_info(self) -> None:
        """Before the event channels, which ask for the upcalls of every vcpu."""
        if self.is_windows and vcpuinfo.wanted(self.registry, self.domain.processors):
            pages = vcpuinfo.VcpuInfoPages(self.domain, self.shared_info)
            pages.register_all()
            self.suspend.on_every_cpu = pages.register

    def _make_logs(self) -> Log:
        return Log(
            self.domain,
            self.registry,
            personality=self.personality,
            qemu=partial(self.domain.ioport.write_string, QEMU_LOG_PORT),
            dbg_print=self.options.dbg_print,
        )

    def _make_balloon(self) -> BalloonInterface | None:
        if not self.options.balloon:
            return None
        return BalloonInterface(self.domain, self.store, self.range_set)

    def _make_balloon_thread(self) -> BalloonThread | None:
        if self.balloon is None:
            return None
        return BalloonThread(
            self.balloon,
            self.store,
            self.suspend.mutex,
            log=self.log,
            bugcheck=self._bug,
            windows=self.is_windows,
        )

    def _make_evtchn(self, fifo: bool | None) -> EvtchnInterface:
        windows = self.personality == "windows"
        if fifo is None:
            fifo = windows and self.registry.dword(PARAMETERS, "UseEvtchnFifoAbi", 1) != 0
        return EvtchnInterface(
            self.domain,
            fifo=fifo,
            vectors=windows and self.registry.dword(PARAMETERS, "UseEvtchnUpcall", 1) != 0,
            via=PLATFORM_GSI if windows else CALLBACK_VECTOR,
            suspend=self.suspend,
            shared_info=self.shared_info,
        )

    @property
    def state(self) -> PnpState:
        return self.life.state

    @property
    def pdos(self) -> dict[str, Pdo]:
        """Its children by class."""
        return self.children.pdos

    @property
    def is_windows(self) -> bool:
        return self.personality == "windows"

    @property
    def is_running(self) -> bool:
        """Started, in D0, and not on its way down."""
        return self.power.is_d0 and self.state is PnpState.STARTED and self._then is None

    @property
    def powers_down(self) -> bool:
        """The system goes to sleep or off: its devices stay what they are."""
        return self._then in (Then.SLEEP, Then.HIBERNATE, Then.POWER_OFF)

    @property
    def falls_asleep(self) -> bool:
        """On its way to S3 or S4: what waits in its drivers waits on until it wakes."""
        return self._then in (Then.SLEEP, Then.HIBERNATE)

    # interfaces

    def interface(self, name: str) -> Interface | None:
        """One of its interfaces by its attribute, None where there is none."""
        found = getattr(self, name, None)
        return found if isinstance(found, Interface) else None

    def query_interface(self, guid: str, version: int, size: int | None = None) -> InterfaceVersion:
        """IRP_MN_QUERY_INTERFACE of a child: NtStatusError NOT_SUPPORTED, BUFFER_OVERFLOW.

        `size` is that of the caller's buffer, in bytes; None for one that is large enough.
        """
        exported = [one for one in map(self.interface, EXPORTED) if one is not None]
        return query_interface([*exported, *self.below], guid, version, size)

    def acquire_suspend(
        self, owner: str, early: Callable[[], object] | None, late: Callable[[], object]
    ) -> list[SuspendCallback]:
        """Take SUSPEND and register callbacks; what `release_suspend` wants back."""
        self.suspend.acquire()
        phases = [(SuspendPhase.EARLY, early), (SuspendPhase.LATE, late)]
        return [self.suspend.register(phase, one, owner=owner) for phase, one in phases if one]

    def release_suspend(self, handles: list[SuspendCallback] | None) -> None:
        if handles is None:
            return
        for handle in handles:
            self.suspend.deregister(handle)
        self.suspend.release()

    def _balloon_size(self) -> int:
        return 0 if self.balloon is None else self.balloon.get_size()

    def _bug(self, reason: str) -> None:
        """The kernel stops here; the toolstack sees a crash."""
        self.crash.bug(reason, "xenbus")

    # what the class drivers have of it

    def log(self, text: str, level: LogLevel = LogLevel.INFO) -> None:
        """A line of the drivers' log, at the places that want the level."""
        self.logs.printf(level, text)

    def claim_driver_key(self, product: str) -> str | None:
        """Write `drivers/<first free of 0-255>`; None if all are taken or it may not be written."""
        return driverkey.claim(self.store, product)

    def clear_driver_key(self, product: str, *, exact: bool = False) -> None:
        """Remove every entry of the product; see driverkey.clear."""
        driverkey.clear(self.store, product, exact=exact)

    def request_unplug(self, kind: UnplugType, *, make: bool) -> None:
        """A driver of PV devices wants their emulated like gone from the next boot on, or not.

        Nothing is withdrawn by a system that goes down.
        """
        if self.unplug is not None and (make or not self.powers_down):
            self.unplug.request(kind, make)

    # requests of the PnP manager

    def start(self) -> NTSTATUS:
        """A kernel comes up: START_DEVICE. The children follow by the scan."""
        # Windows started its processors before it loaded a driver.
        self.domain.start_vcpus()
        return self.request(Irp.START_DEVICE)

    def query_relations(self) -> list[Pdo]:
        """QUERY_DEVICE_RELATIONS (BusRelations): a scan pass, then the children that are there."""
        return self.children.query_relations()

    def request(self, irp: Irp) -> NTSTATUS:
        """Any other; see Pdo.request. QUERY_STOP and QUERY_REMOVE are UNSUCCESSFUL while the
        balloon holds pages.
        """
        if self.state is PnpState.DELETED or irp not in self.life.table:
            return pnpstate.refusal(self.life.table, self.state, irp)
        if self._then is not None:
            return NTSTATUS.DEVICE_NOT_READY
        if irp in (Irp.QUERY_STOP_DEVICE, Irp.QUERY_REMOVE_DEVICE) and self._balloon_size():
            return NTSTATUS.UNSUCCESSFUL
        if irp is Irp.START_DEVICE:
            return self._start()
        if irp is Irp.SURPRISE_REMOVAL:
            self.children.lose_all("bus surprise removed")
        if irp in pnpstate.POWERS_DOWN and self.power.is_d0:
            return self._rest(Then(irp))
        self._complete(irp)
        return NTSTATUS.SUCCESS

    def _start(self) -> NTSTATUS:
        if not self.power.is_d0:
            self.problem = ""
            try:
                self.power.up()
            except (StoreError, HypercallError, NtStatusError) as error:
                self.problem = str(error)
                self.log(f"xenbus: {error}\n")
                return status_of(error)
            self.log(f"xenbus: domain {self.domain.domid}, {self.personality} personality\n")
        self.is_asleep = False
        self.life.move(Irp.START_DEVICE)
        self.children.start_stopped()
        return NTSTATUS.SUCCESS

    def _down(self) -> None:
        if self.power.is_d0:
            self.log("xenbus: down\n")
            try:
                self.power.down()
            except LocalProtocolError as error:
                self._leaked(error)

    def _leaked(self, error: LocalProtocolError) -> None:
        """Somebody did not give back what is the bus': a caller hears of it, and a bugcheck is
        what follows where the guest itself runs.
        """
        if not self.domain.loop.is_running:
            raise error
        self._bug(str(error))

    def _complete(self, irp: Irp) -> None:
        if irp in pnpstate.POWERS_DOWN:
            self._down()
            self.is_asleep = False  # what stopped or was removed is not woken
        self.life.move(irp)
        if self.state is PnpState.DELETED:
            self.children.delete_all("bus removed")

    # coming to rest

    def _rest(self, then: Then) -> NTSTATUS:
        """Bring every child to rest, then do the rest of it: PENDING if that takes time."""
        self._then = then
        self._polls = 0
        self.children.rest(Irp.REMOVE_DEVICE if then is Then.REMOVE else Irp.STOP_DEVICE)
        if self.children.poll():
            self.settle()
            return NTSTATUS.PENDING
        self._rested()
        return NTSTATUS.SUCCESS

    def settle(self) -> None:
        """Look at drivers that close, until they have come to rest."""
        self._settle_task.wake()

    def _settle(self) -> None:
        waiting = self.children.poll()
        self._polls += 1
        if waiting and self._polls < SETTLE_POLLS_MAX:
            self._settle_timer.arm(SETTLE_POLL_NS)
            return
        self._polls = 0
        if waiting:
            what = "power off" if self._then is Then.POWER_OFF else "going on"
            self.log(f"xenbus: {what} without {', '.join(waiting)}\n")
            self.children.poll(give_up=True)
        if self._then is not None:
            self._rested()

    def _rested(self) -> None:
        then = self._then
        if then is Then.POWER_OFF:
            self._go_off()
            return
        self._then = None
        if then in (Then.SLEEP, Then.HIBERNATE):
            self._down()
            self.is_asleep = True
            if then is Then.HIBERNATE and not self.crash.crashed:
                self._hibernate()
        elif then is not None:
            self._complete(Irp(then.value))

    def _go_off(self) -> None:
        try:
            if self.power.is_d0:
                self.log("xenbus: down\n")
                self.power.down()
        except LocalProtocolError as error:
            # A system that goes off does not look at what its drivers left.
            self.domain.trace.note(self.domain.domid, f"xenbus: {error}")
        self.domain.shutdown(self._reason)

    def _hibernate(self) -> None:
        """At rest in D3: nobody may hold an interface now; then memory is on disk, and all off."""
        named = ((name, self.interface(name)) for name in RELEASED_IN_S4)
        held = [name for name, one in named if one is not None and one.references]
        if held:
            self._leaked(LocalProtocolError(f"S4 is entered with {', '.join(held)} held"))
            return
        self.is_hibernated = True
        stack, reason = self.crash.hibernation, SHUTDOWN.poweroff
        if stack is None or not stack.begin(0, (), reason):
            self.domain.shutdown(reason)

    # system power

    def sleep(self, *, s4: bool = False) -> NTSTATUS:
        """To S3, or S4: children and bus go to D3. PENDING while devices close.

        S4 is a domain that powers off then. An interface that somebody holds still is a
        bugcheck there, and a LocalProtocolError to a caller outside the loop.
        """
        if not self.is_running:
            return NTSTATUS.SUCCESS
        return self._rest(Then.HIBERNATE if s4 else Then.SLEEP)

    def wake(self) -> NTSTATUS:
        """Back to S0: the bus goes to D0, and its children after it.

        From S4 it was another domain's boot, which found the emulated devices plugged in again.
        """
        if self.is_hibernated:
            self.is_hibernated = False
            if self.unplug is not None:
                self.unplug.unplug.devices()
        return self._start() if self.is_asleep else NTSTATUS.SUCCESS

    def power_off(self, reason: int) -> None:
        """Close every device, then SCHEDOP_shutdown(reason): how an operating system goes."""
        if self._then is not Then.POWER_OFF:
            self._reason = reason
            self._then = Then.POWER_OFF
            self._polls = 0
            self.children.rest(Irp.STOP_DEVICE)
            self.settle()
