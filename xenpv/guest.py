"""One guest: its kernel's bus and devices, and what a toolstack does to it.

A guest is made by `Platform.create`. Methods here are called from outside the loop; they let
it run until what they promise is so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar, cast

from xenpv.dumping import Dumping
from xenpv.errors import LocalProtocolError
from xenpv.host.libxl import ToolstackError
from xenpv.serving import Serving

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from xenpv.back.console import Console
    from xenpv.bus.devicetree import DeviceTree
    from xenpv.bus.inf import Build
    from xenpv.bus.registry import Registry
    from xenpv.bus.windows import Windows
    from xenpv.bus.xenbus import ClassDriverFactory, XenBus
    from xenpv.host.device import Device
    from xenpv.host.devicemodel import DeviceModel
    from xenpv.host.monitor import Monitor
    from xenpv.host.toolstack import Created
    from xenpv.iface.device import XenIface
    from xenpv.iface.operatingsystem import OperatingSystem
    from xenpv.iface.security import Principal
    from xenpv.iface.wmi_classes import WmiNamespace
    from xenpv.iface.xencontrol import XenControl
    from xenpv.migration.counterparts import Counterparts
    from xenpv.net.adapter import Adapter
    from xenpv.platform import Disk as PlatformDisk
    from xenpv.platform import Platform
    from xenpv.platform import Vif as PlatformVif
    from xenpv.vbd.adapter import Vbd
    from xenpv.vbd.disk import Disk as GuestDisk
    from xenpv.vif.adapter import Vif as XenVif
    from xenpv.vif.interface import VifInterface

T = TypeVar("T")

MANUALLY_INITIATED_CRASH: Final = 0xE2

# How xl removes a device of a kind unless it is told.
DETACH_MODES: Final = {"vbd": "safe", "vif": "auto"}

# What differs from the drivers' defaults in a guest's registry: its log is on its console.
CONSOLE_LOG_LEVEL: Final = ("Services\\XENBUS\\Parameters", "ConsoleLogLevel")
LEVELS: Final = ("INFO", "WARNING", "ERROR", "CRITICAL")


def drivers(system: OperatingSystem | None = None) -> dict[str, ClassDriverFactory]:
    """The class drivers of a guest, imported when the first one boots.

    They are a quarter of what there is to import, and raw ends need none of them.
    """
    from functools import partial

    from xenpv.iface.agent import class_driver
    from xenpv.net.adapter import Adapter
    from xenpv.net.ndis import NdisVersion
    from xenpv.net.responder import station
    from xenpv.vbd.adapter import Vbd
    from xenpv.vif.adapter import Vif as XenVif

    # No closures: they are kept in the guest, which can be saved.
    miniport: Callable[[VifInterface], Adapter] = Adapter
    if system is not None:
        version = NdisVersion.of_system(system.uname if system.distro == "windows" else "")
        miniport = partial(station, system.addresses, version)
    addresses = {} if system is None else system.addresses
    return {
        "VBD": Vbd,
        "VIF": partial(XenVif, miniport=miniport, addresses=addresses),
        "IFACE": partial(class_driver, system=system),
    }


class Guest(Serving, Dumping):
    """One guest: its configuration, and while it runs its kernel's bus and devices."""

    def __init__(
        self,
        platform: Platform,
        created: Created,
        *,
        fifo: bool | None = None,
        registry: Registry | None = None,
        boots: bool = True,
    ) -> None:
        self.platform = platform
        self.created = created
        self.fifo = fifo
        self.build: Build | None = None  # of its drivers; the one of this package
        # Class drivers of the caller's by their class, for its next boot; VBD, VIF and IFACE
        # stand for those of this package.
        self.drivers: dict[str, ClassDriverFactory] = {}
        self.windows: Windows | None = None
        self.objects: list[object] = []  # of it, by their numbers, once it was saved or restored
        self.counterparts: Counterparts | None = None  # of a guest that was migrated
        self._registry = registry
        self._os: OperatingSystem | None = None
        self._bus: XenBus | None = None
        Serving.__init__(self)
        self.monitor: Monitor | None = None  # the xl that waits for its end
        if boots:
            self._arm()

    def _arm(self) -> None:
        domain = self.created.domain
        boot = domain.task("boot", self._boot)
        boot.wake()  # the domain is paused: this runs when it is unpaused

    def _boot(self) -> None:
        config, domain = self.created.config, self.created.domain
        for device in self.created.devices:
            self._configure(device)
        if self.registry.get(*CONSOLE_LOG_LEVEL) is None:
            self.registry.set(*CONSOLE_LOG_LEVEL, LEVELS)
        if config.is_hvm and config.personality.value == "windows":
            from xenpv.bus.windows import Windows

            classes = {**drivers(self.os), **self.drivers}
            windows = Windows(domain, classes, self.registry, build=self.build, fifo=self.fifo)
            self.windows = windows
            self.load_dumps(windows)
            windows.boot()
            return
        # Without a platform device the kernel has the bus from its first day.
        from xenpv.bus.xenbus import XenBus

        personality = config.personality.value
        classes = {**drivers(self.os), **self.drivers}
        serves = config.driver_domain and personality == "linux"
        if serves:
            classes["VIF"] = self.driver_domain.prepare(domain, self.platform.backends.store)
        self._bus = XenBus(
            domain,
            classes,
            personality=personality,
            fifo=self.fifo,
            registry=self.registry,
        )
        self._bus.start()
        if serves:
            self.driver_domain.boot(self._bus)

    def _configure(self, device: Device) -> None:
        """What `ip` of a vif says is what its system was configured with."""
        text = device.back.get("ip") if device.kind == "vif" else None
        if text and device.devid not in self.os.addresses:
            from xenpv.iface.operatingsystem import addresses_of

            self.os.addresses[device.devid] = addresses_of(text)

    def set_addresses(self, number: int, text: str) -> None:
        """Configure interface `number` with these IP addresses, as in a vif's `ip`, and no others.

        Its driver tells the host of them, and the guest's responder answers there.
        """
        from xenpv.iface.operatingsystem import addresses_of
        from xenpv.net.responder import rebind

        self.os.addresses[number] = addresses_of(text)
        if self._vif is not None:
            self._vif.addresses_changed(number)
            rebind(self.nets, number, text)

    @property
    def bus(self) -> XenBus | None:
        """XENBUS, once it was found."""
        return self._bus if self.windows is None else self.windows.bus

    @property
    def device_tree(self) -> DeviceTree | None:
        """The devices that Windows' PnP manager knows, while it runs."""
        return None if self.windows is None else self.windows.tree

    @property
    def registry(self) -> Registry:
        """Windows' registry, which outlives its reboots."""
        if self._registry is None:
            from xenpv.bus import inf

            device = None if self.device_model is None else self.device_model.platform_device
            self._registry = inf.installed(*device) if device else inf.installed()
        return self._registry

    @property
    def os(self) -> OperatingSystem:
        """What its agent reports and what a user inside would change; it outlives reboots."""
        if self._os is None:
            from xenpv.iface.operatingsystem import operating_system

            self._os = operating_system(self.created.config.personality.value)
        return self._os

    @property
    def device_model(self) -> DeviceModel | None:
        """QEMU's side of it: emulated devices, unplug ports, its log. None unless it is HVM."""
        return self.created.device_model

    @property
    def reboot_requests(self) -> list[str]:
        """Drivers that wait for a reboot: the monitor service prompts for the first."""
        from xenpv.bus.unplug import reboot_requests

        return reboot_requests(self.registry)

    @property
    def name(self) -> str:
        return self.created.config.name

    @property
    def domid(self) -> int:
        return self.created.domid

    @property
    def running(self) -> bool:
        domain = self.created.domain
        return not (domain.dying or domain.is_shutdown or domain.pause_count)

    def start(self) -> Guest:
        """Unpause and let the guest boot until nothing more happens; returns itself.

        Raises ToolstackError if a device did not connect; `devices()` says which. One that
        leaves its work to an emulated device is none: until a reboot (`reboot_requests`), or in
        safe mode.
        """
        self.platform.toolstack.unpause(self.created)
        self.platform.run()
        self._must_be_connected()
        return self

    def _must_be_connected(self) -> None:
        if self.created.domain.dead:
            raise ToolstackError(f"guest {self.name!r} went down while it started")
        lost = self.unconnected
        if lost:
            raise ToolstackError(f"guest {self.name!r}: not connected: {', '.join(lost)}")

    @property
    def unconnected(self) -> list[str]:
        """Its disks and interfaces that should be Connected now and are not: "vbd 51712"."""
        emulated = {
            "vbd": [] if self._vbd is None else self._vbd.emulated,
            "vif": [] if self._vif is None else self._vif.emulated,
        }
        lost = [(kind, devid) for kind, devid, up in self._connections() if not up]
        return [f"{kind} {devid}" for kind, devid in lost if devid not in emulated[kind]]

    def _connections(self) -> list[tuple[str, int, bool]]:
        vbd, vif = self._vbd, self._vif
        result: list[tuple[str, int, bool]] = []
        for device in self.created.devices:
            if device.kind == "vbd" and device.back["device-type"] == "disk":
                up = vbd is not None and vbd.connected(device.devid)
            elif device.kind == "vif":
                up = vif is not None and vif.connected(device.devid)
            else:
                continue
            result.append((device.kind, device.devid, up))
        return result

    def _driver(self, name: str) -> object:
        pdo = None if self.bus is None else self.bus.pdos.get(name)
        return None if pdo is None else pdo.driver

    @property
    def _vbd(self) -> Vbd | None:
        return cast("Vbd | None", self._driver("VBD"))

    @property
    def _vif(self) -> XenVif[Adapter] | None:
        return cast("XenVif[Adapter] | None", self._driver("VIF"))

    @property
    def disks(self) -> list[GuestDisk]:
        """The guest's disks, by TargetId."""
        return [] if self._vbd is None else self._vbd.disks()

    @property
    def nets(self) -> list[Adapter]:
        """The guest's network adapters, by device number."""
        return [] if self._vif is None else self._vif.adapters()

    @property
    def iface(self) -> XenIface:
        """Its XENIFACE device. LocalProtocolError where it has none: not booted, or Linux."""
        from xenpv.iface.device import XenIface

        driver = self._driver("IFACE")
        if not isinstance(driver, XenIface):
            raise LocalProtocolError(f"guest {self.name!r} has no XENIFACE")
        return driver

    @property
    def wmi(self) -> WmiNamespace:
        """XENIFACE's part of root\\wmi, as an administrator sees it."""
        from xenpv.iface.wmi_classes import WmiNamespace

        return WmiNamespace(self.iface)

    def xencontrol(self, principal: Principal | None = None) -> XenControl:
        """A new process of the guest with XENIFACE open, by default an administrator's.

        Raises Win32Error: 5 (access denied) for a principal that may not open it.
        """
        from xenpv.iface.security import Principal
        from xenpv.iface.xencontrol import XenControl

        process = self.iface.process("xencontrol", principal or Principal.ADMINISTRATORS)
        return XenControl(self.iface, process)

    def counterpart(self, old: T) -> T:
        """What an object of this guest from before its migration is now: a XenControl, a Disk.

        LocalProtocolError for a guest that was not migrated within this process, and for what is
        no object of a guest's drivers.
        """
        if self.counterparts is None:
            raise LocalProtocolError(f"guest {self.name!r} was not migrated")
        return self.counterparts.of(old)

    @property
    def console(self) -> Console | None:
        """What it printed on its PV console, also after its end."""
        daemon = self.platform.console_daemon
        return daemon.consoles.get(self.domid) or daemon.finished.get(self.domid)

    @property
    def xen_log(self) -> str:
        """What its drivers wrote to Xen's console (port 0xE9): of Windows' levels, CRITICAL."""
        return self.platform.hypervisor.console.of(self.domid)

    def debug_keys(self, keys: str = "q") -> str:
        """`xl debug-keys`: press keys on Xen's console; what Xen itself says to them.

        `q` raises VIRQ_DEBUG in every guest; each prints its dump to its log.
        """
        return self.platform.debug_keys(keys)

    def dump(self) -> str:
        """What its drivers know, by VIRQ_DEBUG: the lines of every DEBUG callback.

        A guest that does not take the interrupt is read as by a debugger, from outside; the
        first line says so. Not for handlers: the platform runs meanwhile.
        """
        bus = self.bus
        if bus is None:
            return f"guest {self.name!r} has not booted\n"
        before = bus.debug.triggers
        self.platform.debug_keys("q")
        if bus.debug.triggers != before:
            return bus.debug.text
        domain = self.created.domain
        if domain.dead:
            return f"guest {self.name!r} is dead\n"
        bus.debug.trigger()
        return f"guest {self.name!r} does not take VIRQ_DEBUG; from outside:\n{bus.debug.text}"

    def crash(self, code: int = MANUALLY_INITIATED_CRASH, *parameters: int | str) -> int:
        """Its kernel bug-checks, with up to four parameters; the reason code the domain gave.

        That is 3 unless another was latched before. What is left of the guest can be looked
        at until `destroy`. LocalProtocolError unless it has booted and runs.
        """
        bus = self.bus
        if bus is None or not self.running:
            raise LocalProtocolError(f"guest {self.name!r} does not run")
        domain = self.created.domain
        bus.crash.bugcheck(code, *parameters)
        self.platform.run()
        reason = domain.shutdown_code
        assert reason is not None
        return reason

    def shutdown(self) -> int:
        """Ask by control/shutdown, wait, destroy; the reason code the domain gave.

        Where a monitor waits, on_poweroff (or what else its reason calls for) is done instead.
        Raises ToolstackError: TIMEDOUT if it is not acknowledged within 60 s of virtual time,
        NOPARAVIRT without PV drivers; the guest is left as it is then, and so is the request.
        """
        return self._down("poweroff")

    def reboot(self) -> Guest:
        """Ask for a reboot; then, as on_reboot="restart" does, a new domain is started.

        It has the name, UUID and devices that the old one had at its end, and a new domid.
        Where a monitor waits, on_reboot is done instead. Raises ToolstackError as shutdown.
        """
        before = self.created
        self._down("reboot")
        if self.monitor is None:
            self.reborn(self.platform.toolstack.create(before.config), kept=None)
            return self.start()
        if self.created is not before:
            self._must_be_connected()
        return self

    def reborn(self, made: Created, *, kept: Created | None) -> None:
        """Its next boot is in `made`. `kept`: the domain before is still there, to be looked at.

        That one has a Guest of its own then, among the platform's guests.
        """
        if kept is not None:
            dead = Guest(self.platform, kept, fifo=self.fifo, registry=self._registry, boots=False)
            dead.windows, dead._bus, dead._os = self.windows, self._bus, self._os
            self.platform.guests.append(dead)
        self.created = made
        self.windows = self._bus = None
        self.registry.reboot()
        self._arm()

    # what xl does to a domain that is there

    def pause(self) -> None:
        """Stop its vcpus; pauses count. Raises ToolstackError where it is gone."""
        self.platform.toolstack.runtime.pause(self.created)

    def unpause(self) -> None:
        """Take back one pause, and run. Raises ToolstackError if it is not paused, or is gone."""
        self.platform.toolstack.runtime.unpause(self.created)
        self.platform.run()

    def set_memory(self, memory_mib: int) -> None:
        """`xl mem-set`, and until its balloon has come to rest.

        Raises ToolstackError: INVAL above maxmem or below the video memory, DOMAIN_NOTFOUND.
        """
        self.platform.toolstack.runtime.set_memory(self.created, memory_mib)
        self.platform.run()

    def set_vcpus(self, vcpus: int) -> None:
        """`xl vcpu-set`: how many should be online. Its kernel need not heed it.

        Raises ToolstackError: INVAL for none, FAIL above maxvcpus, DOMAIN_NOTFOUND.
        """
        self.platform.toolstack.runtime.set_vcpus(self.created, vcpus)
        self.platform.run()

    def sysrq(self, letter: str) -> None:
        """`xl sysrq`, of one character. Raises ToolstackError: INVAL, DOMAIN_NOTFOUND."""
        self.platform.toolstack.runtime.sysrq(self.created, letter)
        self.platform.run()

    def rename(self, name: str) -> None:
        """`xl rename`. Raises ToolstackError: INVAL where another domain has that name."""
        self.platform.toolstack.runtime.rename(self.created, name)

    def suspend(self) -> None:
        """`xl suspend`: until the domain is in shutdown(suspend), where it stays.

        Raises ToolstackError: GUEST_TIMEDOUT after 60 s of virtual time without an answer or
        without the end of it; the request is withdrawn then, and the guest runs on.
        """
        self.platform.toolstack.domsuspend.suspend(self.created)

    def resume(self, *, fast: bool = True) -> None:
        """`xl resume` of a suspended guest in its own domain, and until nothing more happens.

        Fast: its suspend is cancelled, and it goes on where it was. Slow: it believes to be in
        a new domain, and sets up all that it has anew. ToolstackError unless it is suspended
        (fast) or where it is gone.
        """
        if not fast:
            self.must_not_serve("slow resume")
        self.platform.toolstack.domsuspend.resume(self.created, fast=fast)
        self.platform.run()

    def save(
        self,
        path: str | Path,
        *,
        checkpoint: bool = False,
        pause: bool = False,
        trusted: Sequence[str] = (),
    ) -> None:
        """`xl save`: suspend it, write it into a file for `Platform.restore`, destroy it.

        `checkpoint` (-c): it is resumed instead, as after a suspend that was cancelled.
        `pause` (-p): resumed and left paused. `trusted`: modules of class drivers that are not
        xenpv's. ToolstackError if it did not suspend (as `suspend`), cannot be saved, or the file
        cannot be written: there is none then, and the guest runs on.
        """
        from xenpv.migration.save import save

        self.must_not_serve("save")
        save(self, path, checkpoint=checkpoint, pause=pause, trusted=trusted)

    def migrate(
        self,
        platform: Platform,
        *,
        name: str | None = None,
        bandwidth: int | None = None,
        trusted: Sequence[str] = (),
        share_images: bool = True,
    ) -> Guest:
        """`xl migrate`: the guest on another platform of this loop, where it runs on.

        It goes on here until little of its memory is still to be sent, at `bandwidth` bytes a
        second of virtual time (a gigabit). `name`: what it is called there. `trusted`: as for
        `restore`. `share_images`: the other host sees the storage of this one; without it, disks
        are what the same names and paths are there. Afterwards this object's domain is gone.

        Raises MigrationFailed, a ToolstackError, which says where the guest runs now; if
        `by_hand` is set, nowhere by itself: the message says what to call. LocalProtocolError
        for a platform that does not share this one's loop.
        """
        from xenpv.migration.handover import BANDWIDTH
        from xenpv.migration.migrate import Migration

        self.must_not_serve("migration")
        return Migration(
            self,
            platform,
            name=name,
            bandwidth=BANDWIDTH if bandwidth is None else bandwidth,
            trusted=tuple(trusted),
            share_images=share_images,
        ).run()

    def _down(self, request: str) -> int:
        toolstack, made = self.platform.toolstack, self.created
        toolstack.runtime.request(made, request)
        reason = toolstack.runtime.wait_shutdown(made)
        if self.monitor is None:
            toolstack.destroy(made)
        else:
            self.platform.run()
        return reason

    def attach(self, device: PlatformDisk | PlatformVif) -> int:
        """`xl block-attach`, `network-attach`: plug a device in; its devid.

        A disk without `vdev` gets the next free xvd name, a vif the last devid that is listed
        and one. Returns when the host's part is done and nothing more happens; a guest that is
        paused or has no drivers sees the device later. Raises ToolstackError (the nodes of a
        device that did not come up stay, to be detached) and ConfigError.
        """
        platform = self.platform
        platform.toolstack.attach(self.created, platform.spec(device, self.created))
        added = self.created.devices[-1]
        self._configure(added)
        platform.run()
        return added.devid

    def detach(
        self, device: str | GuestDisk | Adapter, devid: int | None = None, *, mode: str = ""
    ) -> None:
        """`xl block-detach`, `network-detach`: by "vbd" or "vif" and devid, or by one of
        `disks` and `nets`.

        `mode` is what becomes of a guest that does not let go within 10 s. "safe", of a disk
        unless told otherwise: ToolstackError, and all stays. "auto", of an interface: the
        device is taken away from it. "forced": that from the beginning; ToolstackError says
        that it did not let go, yet the device is gone.
        """
        from xenpv.host.hotplug import Mode
        from xenpv.vbd.disk import Disk

        if isinstance(device, str):
            kind = device
        elif isinstance(device, Disk):
            kind, devid = "vbd", device.devid
        else:
            kind, devid = "vif", device.number
        if kind not in DETACH_MODES or devid is None:
            raise LocalProtocolError(f"detach {kind!r} {devid}: expected vbd or vif, and a devid")
        mode = mode or DETACH_MODES[kind]
        if mode not in [one.value for one in Mode]:
            raise LocalProtocolError(f"mode {mode!r}: expected safe, auto or forced")
        try:
            self.platform.toolstack.hotplug.detach(self.created, kind, devid, Mode(mode))
        finally:
            self.platform.run()

    def block_list(self) -> str:
        """`xl block-list` of it; the header alone once it is gone."""
        from xenpv.host import listing

        return listing.blocks(self.platform.toolstack.ctx, self.domid)

    def network_list(self) -> str:
        """`xl network-list` of it; the header alone once it is gone."""
        from xenpv.host import listing

        return listing.networks(self.platform.toolstack.ctx, self.domid)

    def destroy(self) -> None:
        """Pull the plug."""
        self.platform.toolstack.destroy(self.created)
