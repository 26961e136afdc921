"""The composition root: a whole platform in one object, and the only file that sees both ends.

    with Platform(seed=7) as xen:
        guest = xen.create(name="web", disks=[Disk("disk.img")], vifs=[Vif(bridge="xenbr0")])
        guest.start()

Methods here are called from outside the loop; they let it run until what they promise is so.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, cast

import attrs

from xenpv.back.blkback import BlkbackFactory
from xenpv.back.console import Console, ConsoleDaemon
from xenpv.back.netback import NetbackFactory
from xenpv.back.store import BackStore
from xenpv.back.xenbus import BackendBus, DriverFactory
from xenpv.errors import LocalProtocolError
from xenpv.host import vdev
from xenpv.host.image import Image, ImageProvider
from xenpv.host.network import Bridge
from xenpv.host.packet import mac_bytes
from xenpv.host.toolstack import Created, Toolstack, ToolstackError
from xenpv.store.ring import StoreDaemon
from xenpv.store.server import Xenstored
from xenpv.xen.hypervisor import FRAMES_DEFAULT, Hypervisor
from xenpv.xen.loop import Chooser, Loop
from xenpv.xen.upcall import Dispatcher

if TYPE_CHECKING:
    from xenpv.bus.xenbus import ClassDriver, ClassDriverFactory, XenBus
    from xenpv.host.domainconfig import DomainConfig
    from xenpv.host.responder import Responder
    from xenpv.iface.device import XenIface
    from xenpv.iface.security import Principal
    from xenpv.iface.wmi_classes import WmiNamespace
    from xenpv.iface.xencontrol import XenControl
    from xenpv.net.adapter import Adapter
    from xenpv.vbd.adapter import Vbd
    from xenpv.vbd.disk import Disk as GuestDisk
    from xenpv.vif.adapter import Vif as XenVif

DOM0_PAGES: Final = 16_384


@cache
def drivers() -> dict[str, ClassDriverFactory]:
    """The class drivers of a guest, imported when the first one boots.

    They are a quarter of what there is to import, and raw ends need none of them.
    """
    from xenpv.iface.agent import Agent
    from xenpv.iface.device import XenIface
    from xenpv.net.adapter import Adapter
    from xenpv.vbd.adapter import Vbd
    from xenpv.vif.adapter import Vif as XenVif

    def xeniface(bus: XenBus) -> ClassDriver:
        """XENIFACE with its agent above it; Linux' kernel is its own agent, and has no XENIFACE."""
        agent = Agent(bus)
        return XenIface(bus, agent) if bus.personality == "windows" else agent

    def xennet(bus: XenBus) -> XenVif[Adapter]:
        """XenVif with XenNet above it."""
        return XenVif(bus, Adapter)

    return {"VBD": Vbd, "VIF": xennet, "IFACE": xeniface}


@attrs.frozen
class Disk:
    """A disk to give a guest: a raw image file, or an Image object of the caller's.

    `vdev` None: the next free xvd name. Raises nothing here; `create` checks it.
    """

    image: str | Path | Image
    vdev: str | None = None
    readonly: bool = attrs.field(default=False, kw_only=True)


@attrs.frozen
class Vif:
    """A network interface to give a guest. `mac` None: one of Xen's, from the seed."""

    bridge: str = "xenbr0"
    mac: str | None = attrs.field(default=None, kw_only=True)
    mtu: int | None = attrs.field(default=None, kw_only=True)
    rate: tuple[int, int] | None = attrs.field(default=None, kw_only=True)


class Network:
    """The bridges of the host, made when they are first named."""

    def __init__(self) -> None:
        self.bridges: dict[str, Bridge] = {}

    def bridge(self, name: str) -> Bridge:
        found = self.bridges.get(name)
        if found is None:
            found = self.bridges[name] = Bridge(name)
        return found


class Scripts:
    """The host's hotplug scripts: what they check, without a shell."""

    def __init__(self, images: ImageProvider, network: Network) -> None:
        self.images = images
        self.network = network

    def block(self, params: str, *, writable: bool) -> str:
        self.images.check(params, writable)
        return params

    def vif_bridge(self, bridge: str) -> None:
        self.network.bridge(bridge)


class Station:
    """A responder's process on the host: polls when frames came."""

    def __init__(self, platform: Platform, responder: Responder) -> None:
        self.platform = platform
        self.responder = responder
        self.task = platform.dom0.task(f"responder {responder.name}", self.run)
        responder.wakeup = self.task

    def run(self) -> None:
        self.responder.poll(self.platform.loop.now)


class Guest:
    """One guest: its configuration, and while it runs its kernel's bus and devices."""

    def __init__(self, platform: Platform, created: Created, *, fifo: bool | None = None) -> None:
        self.platform = platform
        self.created = created
        self.fifo = fifo
        self.bus: XenBus | None = None
        self._arm()

    def _arm(self) -> None:
        domain = self.created.domain
        boot = domain.task("boot", self._boot)
        boot.wake()  # the domain is paused: this runs when it is unpaused

    def _boot(self) -> None:
        from xenpv.bus.xenbus import XenBus

        personality = self.created.config.personality.value
        self.bus = XenBus(self.created.domain, drivers(), personality=personality, fifo=self.fifo)
        self.bus.start()

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

        Raises ToolstackError if a device did not connect; `devices()` says which.
        """
        self.platform.toolstack.unpause(self.created)
        self.platform.run()
        lost = [f"{kind} {devid}" for kind, devid, up in self._connections() if not up]
        if lost:
            raise ToolstackError(f"guest {self.name!r}: not connected: {', '.join(lost)}")
        return self

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

    @property
    def console(self) -> Console | None:
        """What it printed on its PV console, also after its end."""
        daemon = self.platform.console_daemon
        return daemon.consoles.get(self.domid) or daemon.finished.get(self.domid)

    def shutdown(self) -> int:
        """Ask by control/shutdown, wait, destroy; the reason code the domain gave.

        Raises ToolstackError if it is not acknowledged within 60 s of virtual time; the
        guest is left as it is then.
        """
        return self._down("poweroff")

    def reboot(self) -> Guest:
        """Ask for a reboot; then, as on_reboot="restart" does, a new domain is started."""
        self._down("reboot")
        self.created = self.platform.toolstack.create(self.created.config)
        self.bus = None
        self._arm()
        return self.start()

    def _down(self, request: str) -> int:
        toolstack = self.platform.toolstack
        toolstack.request(self.created, request)
        reason = toolstack.wait_shutdown(self.created)
        toolstack.destroy(self.created)
        return reason

    def destroy(self) -> None:
        """Pull the plug."""
        self.platform.toolstack.destroy(self.created)


class Platform:
    """Hypervisor, xenstored, dom0 with its backends, and a toolstack.

    `seed` decides every choice; equal seeds give equal traces. `chooser` replaces the
    seeded picks. `nr_frames` is the machine's memory in 4 KiB frames (sparse).
    """

    def __init__(
        self, *, seed: int = 0, chooser: Chooser | None = None, nr_frames: int = FRAMES_DEFAULT
    ) -> None:
        self.seed = seed
        self.loop = Loop(seed=seed, chooser=chooser)
        self.hypervisor = Hypervisor(self.loop, nr_frames=nr_frames)
        self.dom0 = self.hypervisor.create_domain(0, vcpus=1, max_pages=DOM0_PAGES)
        self.dom0.populate(DOM0_PAGES)
        self.dom0.unpause()
        self.dispatcher = Dispatcher(self.dom0)
        self.xenstored = Xenstored(clock=self.loop.system_time)
        self.store_daemon = StoreDaemon(self.dom0, self.dispatcher, self.xenstored)
        self.images = ImageProvider()
        self.network = Network()
        drivers: dict[str, DriverFactory] = {
            "vbd": BlkbackFactory(self.images),
            "vif": NetbackFactory(self.network),
        }
        kernel = BackStore(self.dom0, self.xenstored.connect_local("kernel"), "kernel")
        self.backends = BackendBus(self.dom0, kernel, self.dispatcher, drivers)
        consoles = BackStore(self.dom0, self.xenstored.connect_local("xenconsoled"), "xenconsoled")
        self.console_daemon = ConsoleDaemon(self.dom0, consoles, self.dispatcher)
        scripts = Scripts(self.images, self.network)
        self.toolstack = Toolstack(
            self.dom0, self.xenstored.connect_local("toolstack"), scripts, seed
        )
        self.guests: list[Guest] = []
        self.stations: list[Station] = []
        self._images_made = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Destroy every domain and release files and memory. Nothing works after it."""
        if self.hypervisor.closed:
            return
        self.backends.close()
        self.console_daemon.store.close()
        self.hypervisor.close()
        self.xenstored.close()

    def create(
        self,
        *,
        name: str,
        memory_mib: int = 64,
        vcpus: int = 1,
        disks: Sequence[Disk] = (),
        vifs: Sequence[Vif] = (),
        personality: str = "windows",
        fifo: bool | None = None,
    ) -> Guest:
        """A guest, created and paused. Raises ConfigError, ToolstackError.

        `fifo`: its kernel asks for FIFO event channels, or does not; None leaves it to XenBus'
        UseEvtchnFifoAbi, which is on, and to the 2-level ABI in Linux.
        """
        # As the drivers: when the first guest is made.
        from xenpv.host.diskspec import DiskSpec
        from xenpv.host.domainconfig import DomainConfig, Personality
        from xenpv.host.vifspec import VifSpec

        taken = [disk.vdev for disk in disks]
        names = (vdev.name(202 << 8 | index << 4) for index in range(16))
        free = (one for one in names if one not in taken)
        config = DomainConfig(
            name=name,
            memory_mib=memory_mib,
            vcpus=vcpus,
            personality=Personality(personality),
            disks=tuple(
                DiskSpec(
                    target=self._target(disk.image),
                    vdev=disk.vdev or next(free),
                    readwrite=not disk.readonly,
                )
                for disk in disks
            ),
            vifs=tuple(
                VifSpec(
                    bridge=nic.bridge,
                    mac=None if nic.mac is None else mac_bytes(nic.mac),
                    mtu=nic.mtu,
                    rate=nic.rate,
                )
                for nic in vifs
            ),
        )
        return self.create_from(config, fifo=fifo)

    def _target(self, image: str | Path | Image) -> str:
        if isinstance(image, str | Path):
            return str(image)
        self._images_made += 1
        name = f"image:{self._images_made}"
        self.images.register(name, image)
        return name

    def create_from(self, config: DomainConfig, *, fifo: bool | None = None) -> Guest:
        """A guest from a configuration, created and paused. Raises ToolstackError."""
        if self.hypervisor.closed:
            raise LocalProtocolError("this platform is closed")
        guest = Guest(self, self.toolstack.create(config), fifo=fifo)
        self.guests.append(guest)
        return guest

    def bridge(self, name: str) -> Bridge:
        """The host's bridge of that name, made at its first mention."""
        return self.network.bridge(name)

    def respond(
        self, bridge: str, *, mac: str = "00:16:3e:ff:ff:fe", ipv4: str = "192.0.2.1"
    ) -> Responder:
        """Put a host that answers ARP, ping and UDP echo on a bridge."""
        from xenpv.host.packet import ipv4_bytes
        from xenpv.host.responder import Responder

        on = self.bridge(bridge)
        responder = Responder(f"{bridge}-host", on, mac_bytes(mac), ipv4_bytes(ipv4))
        on.attach(responder)
        self.stations.append(Station(self, responder))
        return responder

    def run(self) -> int:
        """Let everything happen that is due, until only periodic timers remain; tasks run."""
        return self.loop.run()

    def advance(self, seconds: float) -> int:
        """Let virtual time pass; tasks run."""
        return self.loop.advance(round(seconds * 1e9))

    @property
    def digest(self) -> str:
        """Of everything that happened so far: equal seeds, equal digests."""
        return self.loop.trace.hexdigest()
