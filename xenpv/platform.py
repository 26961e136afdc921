"""The composition root: a whole platform in one object, and the only file that sees both ends.

    with Platform(seed=7) as xen:
        guest = xen.create(name="web", disks=[Disk("disk.img")], vifs=[Vif(bridge="xenbr0")])
        guest.start()

Methods here are called from outside the loop; they let it run until what they promise is so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import attrs

from xenpv.back.console import ConsoleDaemon
from xenpv.back.store import BackStore
from xenpv.back.xenbus import BackendBus, DriverFactory
from xenpv.errors import LocalProtocolError
from xenpv.guest import Guest
from xenpv.host import vdev
from xenpv.host.device import stored
from xenpv.host.domid import Domid, checked
from xenpv.host.image import Image, ImageProvider, Sectors, split
from xenpv.host.imageio import SECTOR
from xenpv.host.libxl import LIBXL, ToolstackError
from xenpv.host.monitor import Monitor
from xenpv.host.network import Bridge, Network
from xenpv.host.scripts import Scripts
from xenpv.host.toolstack import Created, Toolstack
from xenpv.store.ring import StoreDaemon
from xenpv.store.server import Xenstored
from xenpv.xen.hypervisor import FRAMES_DEFAULT, Hypervisor
from xenpv.xen.loop import Chooser, Loop
from xenpv.xen.upcall import Dispatcher

if TYPE_CHECKING:
    from pathlib import Path

    from xenpv.back.blkprofile import Settings
    from xenpv.back.netprofile import Profile
    from xenpv.bus.registry import Registry
    from xenpv.host.diskspec import DiskSpec
    from xenpv.host.domainconfig import DomainConfig
    from xenpv.host.hardware import Hardware
    from xenpv.host.responder import Responder
    from xenpv.host.vifspec import VifSpec
    from xenpv.vbd.parameters import Parameters as VbdParameters
    from xenpv.view.tape import Tape

DOM0_PAGES: Final = 16_384
# create_dom0 of Xen sets no limit of its own: 4,096 by the 2-level ABI, five for each guest with
# a disk and an interface.
DOM0_PORT_MAX: Final = 0x7FFFFFFF


@attrs.frozen
class Disk:
    """A disk to give a guest: an image file, or an Image object of the caller's.

    `vdev` None: the next free xvd name. `backend`: the driver domain that serves it, by name
    or domid; its images are what `image` is looked up in. Raises nothing here; `create` does.
    `format`: of a file, raw, qcow2, qcow, qed or vhd; what is not raw qemu-nbd serves.
    `sector_size`, `physical_sector_size`: of a file, which has none of its own, in bytes; None:
    512, and as the logical one.
    `profile`: which blkback it has, linux, qemu, tapdisk or mirage; None: the platform's.
    `units`: what that takes a sector to be (xenpv.back.blkunits); None: the profile's.
    `latency_ns`: virtual time that each of its I/Os takes; 0: none.
    """

    image: str | Path | Image
    vdev: str | None = None
    readonly: bool = attrs.field(default=False, kw_only=True)
    backend: str | int | None = attrs.field(default=None, kw_only=True)
    profile: str | None = attrs.field(default=None, kw_only=True)
    units: str | None = attrs.field(default=None, kw_only=True)
    latency_ns: int = attrs.field(default=0, kw_only=True)
    format: str = attrs.field(default="raw", kw_only=True)
    sector_size: int | None = attrs.field(default=None, kw_only=True)
    physical_sector_size: int | None = attrs.field(default=None, kw_only=True)


@attrs.frozen
class Vif:
    """A network interface to give a guest. `mac` None: one of Xen's, from the seed.

    `backend`: the driver domain that serves it, by name or domid; `bridge` is one of its own.
    `ip`: addresses of the guest behind it, "192.0.2.7/24 2001:db8::7", at which a small responder
    in the guest answers ARP, neighbour solicitations, pings and UDP echo (xenpv.net.responder).
    `vlan`: its VLANs on the bridge, as in xl.cfg.
    `profile`: which netback it has, linux, qemu or mirage; None: the platform's.
    """

    bridge: str = "xenbr0"
    mac: str | None = attrs.field(default=None, kw_only=True)
    ip: str = attrs.field(default="", kw_only=True)
    vlan: str = attrs.field(default="", kw_only=True)
    mtu: int | None = attrs.field(default=None, kw_only=True)
    rate: tuple[int, int] | None = attrs.field(default=None, kw_only=True)
    backend: str | int | None = attrs.field(default=None, kw_only=True)
    profile: str | None = attrs.field(default=None, kw_only=True)


class Station:
    """A responder's process on the host: polls when frames came."""

    def __init__(self, platform: Platform, responder: Responder) -> None:
        self.platform = platform
        self.responder = responder
        self.task = platform.dom0.task(f"responder {responder.name}", self.run)
        responder.wakeup = self.task

    def run(self) -> None:
        self.responder.poll(self.platform.loop.now)


class Platform:
    """Hypervisor, xenstored, dom0 with its backends, and a toolstack.

    `seed` decides every choice; equal seeds give equal traces. `chooser` replaces the
    seeded picks. `nr_frames` is the machine's memory in 4 KiB frames (sparse). `loop`: that of
    another platform, for two machines between which guests migrate: they share its clock and
    its chooser, and `run` of either lets both go on. `trusted`: modules of class drivers that are
    not xenpv's, of which a guest that is saved or restored here may have objects. `netback`: the
    profile of vifs that name none, linux, qemu or mirage; another raises LocalProtocolError.
    `blkback`: that of disks that name none, linux, qemu, tapdisk or mirage.
    `dom0_vcpus`: as Xen's dom0_max_vcpus; netback offers that many queues, up to 8.
    `tape`: what records all that happens (xenpv.view.tape).
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        chooser: Chooser | None = None,
        nr_frames: int = FRAMES_DEFAULT,
        loop: Loop | None = None,
        trusted: Sequence[str] = (),
        netback: str = "linux",
        blkback: str = "linux",
        dom0_vcpus: int = 1,
        tape: Tape | None = None,
    ) -> None:
        self.seed = seed
        # `import xenpv` does not need the backends: a world does.
        from xenpv.back import blkprofile, netprofile
        from xenpv.back.blkback import BlkbackFactory
        from xenpv.back.netback import NetbackFactory

        self.netback = netprofile.profile(netback)
        self.blkback = blkprofile.profile(blkback)
        self.trusted = tuple(trusted)
        if loop is None:
            loop = Loop(seed=seed, chooser=chooser, trace=None if tape is None else tape.trace)
        elif tape is not None and loop.trace is not tape.trace:
            raise LocalProtocolError(
                "a tape records one loop: give it to the platform that makes it"
            )
        self.loop = loop
        self.hypervisor = Hypervisor(self.loop, nr_frames=nr_frames)
        self.dom0 = self.hypervisor.create_domain(
            0, vcpus=dom0_vcpus, max_pages=DOM0_PAGES, max_event_channels=DOM0_PORT_MAX
        )
        self.dom0.populate(DOM0_PAGES)
        self.dom0.unpause()
        self.dispatcher = Dispatcher(self.dom0)
        self.xenstored = Xenstored(clock=self.loop.system_time)
        self.store_daemon = StoreDaemon(self.dom0, self.dispatcher, self.xenstored)
        self.images = ImageProvider(self.sectors_of)
        self.network = Network()
        drivers: dict[str, DriverFactory] = {
            **BlkbackFactory(self.images, self.blkback_of).by_directory(),
            "vif": NetbackFactory(self.network, self.netback_of),
        }
        kernel = BackStore(self.dom0, self.xenstored.connect_local("kernel"), "kernel")
        self.backends = BackendBus(self.dom0, kernel, self.dispatcher, drivers)
        consoles = BackStore(self.dom0, self.xenstored.connect_local("xenconsoled"), "xenconsoled")
        self.console_daemon = ConsoleDaemon(self.dom0, consoles, self.dispatcher)
        scripts = Scripts(self.images, self.network)
        self.toolstack = Toolstack(
            self.dom0,
            self.xenstored.connect_local("toolstack"),
            scripts,
            seed,
            self.dispatcher,
            blkback=blkback,
        )
        self.guests: list[Guest] = []
        self.stations: list[Station] = []
        self._images_made = 0
        if loop.trace.recorder is not None:
            loop.trace.recorder.attach(self)

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
        if self.loop.trace.recorder is not None:
            self.loop.trace.recorder.closes(self)
        for guest in self.guests:
            guest.end_driver_domain()
        self.backends.close()
        self.images.close()
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
        hardware: Sequence[Hardware] | None = None,
        registry: Registry | None = None,
        domid: Domid = None,
        driver_domain: bool = False,
        monitor: bool = False,
        vbd: VbdParameters | None = None,
    ) -> Guest:
        """A guest, created and paused. Raises ConfigError, ToolstackError.

        `fifo`: its kernel asks for FIFO event channels, or does not; None leaves it to XenBus'
        UseEvtchnFifoAbi, which is on, and to the 2-level ABI in Linux.
        `hardware`: its emulated devices (xenpv.host.hardware), instead of those that libxl gives
        it for its disks and vifs. `registry`: Windows'; without one, that of a guest whose PV
        drivers ran before. `Registry(inf.INF)` is one where they were only just installed.
        `domid` None: the next free one; "RANDOM": any that is free. `driver_domain`: it may be
        named as the `backend` of others' devices; of the personality "linux" it serves them.
        `monitor`: somebody waits for its end, as `xl create` does unless it is told -e, and acts
        on it by on_poweroff, on_reboot, on_crash, on_watchdog and on_soft_reset.
        `vbd`: how its block driver behaves (xenpv.vbd.parameters), kept in its registry.
        """
        # As the drivers: when the first guest is made.
        from xenpv.host.domainconfig import DomainConfig, Personality

        taken = [disk.vdev for disk in disks]
        names = (vdev.name(vdev.xvd(index)) for index in range(vdev.DISKS_MAX))
        free = (one for one in names if one not in taken)
        config = DomainConfig(
            name=name,
            memory_mib=memory_mib,
            vcpus=vcpus,
            personality=Personality(personality),
            hardware=None if hardware is None else tuple(hardware),
            disks=tuple(self.disk_spec(disk, disk.vdev or next(free)) for disk in disks),
            vifs=tuple(self.vif_spec(nic) for nic in vifs),
            driver_domain=driver_domain,
        )
        guest = self.create_from(config, fifo=fifo, registry=registry, domid=domid, monitor=monitor)
        if vbd is not None:
            vbd.write(guest.registry)
        return guest

    def spec(self, device: Disk | Vif, made: Created) -> DiskSpec | VifSpec:
        """What the toolstack makes of a device for a domain that is there."""
        if isinstance(device, Vif):
            return self.vif_spec(device)
        return self.disk_spec(device, device.vdev or self._free_vdev(made))

    def _free_vdev(self, made: Created) -> str:
        """The first xvd name whose number, and in Windows whose target, no disk has."""
        listed = stored(self.toolstack.xs, made.domid)
        taken = [key.devid for key in listed if key.kind == "vbd"]
        taken += [one.number for one in made.config.disks]
        targets = [vdev.windows_target(one) for one in taken]
        index = 0
        while vdev.xvd(index) in taken or index in targets:
            index += 1
        return vdev.name(vdev.xvd(index))

    def disk_spec(self, disk: Disk, vdev: str) -> DiskSpec:
        """What the toolstack makes of a Disk."""
        from xenpv.host.diskspec import DiskFormat, DiskSpec

        formats = [one.value for one in DiskFormat if one is not DiskFormat.EMPTY]
        if disk.format not in formats:
            expected = ", ".join(formats)
            raise LocalProtocolError(f"disk format {disk.format!r}: expected one of {expected}")
        logical, physical = disk.sector_size or 0, disk.physical_sector_size or 0
        is_file = isinstance(disk.image, str | PathLike)
        if not is_file and (logical or physical or disk.format != "raw"):
            raise LocalProtocolError("format and sectors of an Image are its own: give a path")
        if logical or physical:
            logical, physical = Sectors.of(logical or SECTOR, physical)
        backend = _backend(disk.backend)
        target = self._target(disk.image, self._images_of(backend))
        if disk.profile is not None or disk.units is not None:
            from xenpv.back import blkprofile, blkunits

            blkprofile.profile(disk.profile or self.blkback.name)
            blkunits.units(disk.units or self.blkback.units.name)
        return DiskSpec(
            target=target,
            format=DiskFormat(disk.format),
            vdev=vdev,
            readwrite=not disk.readonly,
            sector_size=logical,
            physical_sector_size=physical,
            backend=backend,
            profile=disk.profile or "",
            units=disk.units or "",
            latency_ns=disk.latency_ns,
        )

    def vif_spec(self, nic: Vif) -> VifSpec:
        """What the toolstack makes of a Vif; `mac` None: it makes one up."""
        from xenpv.host.packet import mac_bytes
        from xenpv.host.vifspec import VifSpec, checked_ip, checked_vlan

        mac = None if nic.mac is None else mac_bytes(nic.mac)
        backend = _backend(nic.backend)
        if nic.profile is not None:
            from xenpv.back import netprofile

            netprofile.profile(nic.profile)
        return VifSpec(
            bridge=nic.bridge,
            mac=mac,
            mtu=nic.mtu,
            rate=nic.rate,
            backend=backend,
            ip=checked_ip(nic.ip),
            vlan=checked_vlan(nic.vlan),
            profile=nic.profile or "",
        )

    def blkback_of(self, directory: str, domid: int, devid: int) -> Settings:
        """What the backend of a domain's disk below backend/<directory> is to be."""
        from xenpv.back.blkprofile import PROFILES, Settings, profile_of
        from xenpv.back.blkunits import UNITS

        made = self.toolstack.created.get(domid)
        for disk in made.config.disks if made is not None else ():
            if disk.number == devid:
                profile = profile_of(directory, PROFILES.get(disk.profile, self.blkback))
                return Settings(profile, UNITS.get(disk.units, profile.units), disk.latency_ns)
        profile = profile_of(directory, self.blkback)
        return Settings(profile, profile.units)

    def sectors_of(self, path: str) -> Sectors | None:
        """What the sectors of a file are to be: as the first disk says that it is of."""
        for made in self.toolstack.created.values():
            for disk in made.config.disks:
                if disk.sector_size and split(disk.target)[1] == path:
                    return Sectors.of(disk.sector_size, disk.physical_sector_size)
        return None

    def netback_of(self, domid: int, devid: int) -> Profile:
        """Which netback an interface of a domain has."""
        from xenpv.back.netprofile import PROFILES

        made = self.toolstack.created.get(domid)
        for nic in made.config.vifs if made is not None else ():
            if nic.devid == devid:
                return PROFILES.get(nic.profile, self.netback)
        return self.netback

    def _images_of(self, backend: str) -> ImageProvider:
        """Where the backend of a disk finds its image: at home in that domain."""
        domid = self.toolstack.hotplug.resolve(backend)
        for guest in self.guests if domid else ():
            if guest.domid == domid and guest.created.config.driver_domain:
                return guest.images
        return self.images

    def _target(self, image: str | Path | Image, images: ImageProvider) -> str:
        if isinstance(image, str | PathLike):
            return str(image)
        return self.register_image(image, images)

    def register_image(self, image: Image, images: ImageProvider | None = None) -> str:
        """Let disks be served from an object of the caller's: what they have as their target.

        `images` are those of the backend's domain, dom0 unless told otherwise.
        """
        images = self.images if images is None else images
        name = images.name_of(image)
        if name is None:
            self._images_made += 1
            # A guest takes its images along to other machines of the loop.
            machine = f"m{self.hypervisor.number}:" if self.hypervisor.number else ""
            name = f"image:{machine}{self._images_made}"
            images.register(name, image)
        return name

    def create_from(
        self,
        config: DomainConfig,
        *,
        fifo: bool | None = None,
        registry: Registry | None = None,
        domid: Domid = None,
        monitor: bool = False,
    ) -> Guest:
        """A guest from a configuration, created and paused. Raises ConfigError, ToolstackError."""
        if self.hypervisor.closed:
            raise LocalProtocolError("this platform is closed")
        made = self.toolstack.create(config, domid=checked(domid))
        guest = Guest(self, made, fifo=fifo, registry=registry)
        self.guests.append(guest)
        if monitor:
            guest.monitor = self.toolstack.monitors.add(Monitor(self.toolstack, made, guest))
        return guest

    def restore(
        self,
        path: str | Path,
        *,
        paused: bool = False,
        name: str | None = None,
        domid: Domid = None,
        images: Mapping[str, Image] | None = None,
        trusted: Sequence[str] = (),
    ) -> Guest:
        """A guest that `Guest.save` wrote into a file, in a new domain; running unless `paused`.

        `name`: another than it had. `domid` None: a new one; "RANDOM", or a number. Disks that
        were files are opened by the paths that its configuration had; disks that were objects
        are new MemoryImages with the contents of the file, but for those in `images`, by vdev.
        `trusted`: modules of class drivers that are not xenpv's, whose objects it may have.

        Raises ConfigError for a file that is no save file, is truncated, corrupted, or of
        another version or program; ToolstackError for what else cannot be, such as a disk that
        is not there. Nothing is made then. As `Guest.start` it raises ToolstackError for a guest
        whose devices do not connect.
        """
        from xenpv.migration.restore import read, restore

        return restore(
            self,
            read(path),
            paused=paused,
            name=name,
            domid=domid,
            images=images,
            trusted=trusted,
        )

    @property
    def core_dumps(self) -> dict[str, bytes]:
        """Core files that no directory was given for, by the name of their domain."""
        return self.toolstack.dumps.cores

    @property
    def dump_directory(self) -> Path | None:
        """Where coredump-destroy and coredump-restart put theirs, each under its domain's name."""
        return self.toolstack.dumps.directory

    @dump_directory.setter
    def dump_directory(self, directory: str | Path | None) -> None:
        from pathlib import Path

        self.toolstack.dumps.directory = None if directory is None else Path(directory)

    def guest(self, name_or_domid: str | int) -> Guest:
        """The guest of a domain that is there. Raises ToolstackError(INVAL) where there is none."""
        for guest in self.guests:
            there = self.toolstack.created.get(guest.domid) is guest.created
            if there and name_or_domid in (guest.name, guest.domid, str(guest.domid)):
                return guest
        raise ToolstackError(f"{name_or_domid!r} is no domain's name or domid", LIBXL.INVAL)

    def bridge(self, name: str) -> Bridge:
        """The host's bridge of that name, made at its first mention."""
        return self.network.bridge(name)

    def respond(
        self,
        bridge: str | Bridge,
        *,
        mac: str = "00:16:3e:ff:ff:fe",
        ipv4: str = "192.0.2.1",
        vlan: str = "",
    ) -> Responder:
        """Put a host that answers ARP, ping and UDP echo on a bridge.

        By name one of dom0's; that of a driver domain is `guest.bridge(name)`. `vlan`: of its
        port, as a vif has it; then a bridge may have a host in each.
        """
        from xenpv.host.packet import ipv4_bytes, mac_bytes
        from xenpv.host.responder import Responder
        from xenpv.host.vlan import parse_vlans

        on = self.bridge(bridge) if isinstance(bridge, str) else bridge
        name = f"{on.name}-host.{vlan}" if vlan else f"{on.name}-host"
        responder = Responder(name, on, mac_bytes(mac), ipv4_bytes(ipv4))
        on.attach(responder, parse_vlans(vlan) if vlan else None)
        self.stations.append(Station(self, responder))
        return responder

    def resize_disk(self, guest: Guest, name: str, size_bytes: int) -> None:
        """Give the disk of that vdev name another size while it is in use; tasks run.

        What an administrator does on its backend's host: truncate and `losetup -c`, or the new
        size of a volume; of QEMU's disks `block_resize`. Linux' blkback looks at the size in each
        pass over its ring, here at once; tapdisk and mirage do not look. Every disk that the
        image serves there has the new size.

        Raises ConfigError for a size that it cannot have; LocalProtocolError where the guest has
        no such disk, or its image is one whose size is its owner's.
        """
        from xenpv.back.blkback import resize

        found = [one for one in guest.created.devices if one.back.get("dev") == name]
        bus = self._backends_of(found[0].backend_domid) if found else None
        device = bus and bus.device(found[0].backend_kind, guest.domid, found[0].devid)
        if not bus or not device:
            raise LocalProtocolError(f"guest {guest.name!r} has no disk {name!r} that is served")
        resize(bus, device, size_bytes)
        self.run()

    def _backends_of(self, domid: int) -> BackendBus | None:
        """The backend drivers of a domain: dom0's, or a driver domain's while it runs."""
        if not domid:
            return self.backends
        for guest in self.guests:
            if guest.domid == domid and guest.created.config.driver_domain:
                return guest.driver_domain.backends
        return None

    def run(self) -> int:
        """Let everything happen that is due, until only periodic timers remain; tasks run.

        Monitors act on what went down, and it goes on. Raises Livelock, see Monitors.run.
        """
        return self.toolstack.monitors.run()

    def list(self, long: bool = False) -> str:
        """`xl list`: every domain, with `long` as -v does."""
        from xenpv.host import listing

        return listing.domains(self.toolstack.ctx, verbose=long)

    def vm_list(self) -> str:
        """`xl vm-list`"""
        from xenpv.host import listing

        return listing.vms(self.toolstack.ctx)

    def debug_keys(self, keys: str) -> str:
        """`xl debug-keys`, then run; the lines that Xen itself printed meanwhile."""
        console = self.hypervisor.console
        before = console.written
        self.dom0.domctl.debug_keys(keys)
        self.run()
        return "".join(f"{line}\n" for line in console.since(before))

    def advance(self, seconds: float) -> int:
        """Let virtual time pass; tasks run."""
        return self.toolstack.monitors.advance(round(seconds * 1e9))

    @property
    def digest(self) -> str:
        """Of everything that happened so far: equal seeds, equal digests."""
        return self.loop.trace.hexdigest()


def _backend(named: str | int | None) -> str:
    """As a specification has it; "" is the control domain."""
    return "" if named is None else str(named)
