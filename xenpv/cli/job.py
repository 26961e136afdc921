"""The main job, `xenpv run`: boot the guests of some configurations and check every device.

What the guests see of their disks is compared with what the host's own file I/O sees. A
disk's scratch area is put back when the run ends, however it ends, short of the process
being killed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import attrs

from xenpv.abi.sched import SHUTDOWN
from xenpv.abi.xenbus import XenbusState
from xenpv.cli import html
from xenpv.cli.capture import CaptureOption, Captures
from xenpv.cli.disk import DiskCheck
from xenpv.cli.hostfile import Backing, MemoryFile, Progress, backing
from xenpv.cli.inputs import Source, save_path
from xenpv.cli.report import BridgeFound, DiskFound, GuestFound, RunFound, VifFound
from xenpv.cli.taps import Outside, Service, say
from xenpv.cli.tracefile import TraceFile
from xenpv.cli.vif import VifCheck, losses
from xenpv.errors import Livelock, XenpvError
from xenpv.guest import Guest
from xenpv.host.device import Device
from xenpv.host.hotplug import DOM0_NAMES
from xenpv.host.network import Bridge
from xenpv.host.responder import Responder
from xenpv.host.vlan import parse_vlans
from xenpv.migration.restore import Saved, restore
from xenpv.platform import Platform
from xenpv.view.tape import Tape

# The host on each bridge, and the net of the guests' addresses: 10.0.0.2 and up.
HOST_IPV4: Final = bytes((10, 0, 0, 1))
GUESTS_PER_BYTE: Final = 250
QUEUES: Final = "multi-queue-num-queues"
# Locally administered, so not one that Xen makes up.
HOST_MAC: Final = 0x0200_0000_0001


@attrs.frozen(kw_only=True)
class Options:
    """`write`: also write to the disks that may be written. `save`: into which file or directory
    the guests are saved at the end, instead of being shut down. `outside`: what is served.
    `trace`: the file of a recording."""

    seed: int = 0
    write: bool = True
    pcap: Sequence[CaptureOption] = ()
    html: Path | None = None
    save: Path | None = None
    dom0_vcpus: int = 1
    outside: Outside = attrs.field(factory=Outside)
    trace: Path | None = None


class Job:
    """One run over configurations that `inputs.load` has checked."""

    def __init__(self, sources: Sequence[Source], options: Options, progress: Progress) -> None:
        self.sources = sources
        self.configs = [source.config for source in sources]
        self.options = options
        self.progress = progress
        self.found = RunFound(seed=options.seed)
        self.files: dict[str, Backing] = {}
        self.sha256: dict[str, str] = {}
        # By the backend's domid, the bridge and the VLAN of frames without a tag.
        self.stations: dict[tuple[int, str, str], Responder] = {}
        self.guests: list[tuple[Guest, GuestFound]] = []
        self._addresses = 0
        self._disk_check: DiskCheck | None = None
        self._captures = Captures(options.pcap)
        self._trace = TraceFile(options.trace)
        looked_at = options.html is not None or options.trace is not None
        self.tape = Tape() if looked_at else None
        self._service = Service(options.outside, options.seed, say)

    def run(self) -> RunFound:
        """Raises ConfigError, before anything is written, if the capture or trace cannot be."""
        begin = time.perf_counter()
        for source in self.sources:
            inside = {} if source.saved is None else source.saved.disks.images
            for disk in source.config.disks:
                if disk.target not in self.files and disk.target not in inside:
                    self.files[disk.target] = backing(disk)
        with ExitStack() as stack:
            inputs = [file.path for file in self.files.values() if not isinstance(file, MemoryFile)]
            inputs += [Path(config.positions[""].file) for config in self.configs]
            self._service.open(stack, inputs)
            others = [option.path for option in self.options.pcap]
            others += [] if self.options.save is None else [self.options.save]
            stack.enter_context(html.opened(self.options.html, [*inputs, *others]))
            self._captures.open(stack, inputs)
            self._trace.open(stack, inputs)
            for target, file in self.files.items():
                self.sha256[target] = file.sha256(self.progress)
            # After the platform is closed, when nothing of it can write any more.
            stack.callback(self._give_back)
            self.found.seed = self._service.seed
            platform = stack.enter_context(
                Platform(
                    seed=self._service.seed,
                    dom0_vcpus=self.options.dom0_vcpus,
                    tape=self.tape,
                )
            )
            # Also of a run that is interrupted.
            stack.callback(self._write_trace, platform)
            self._service.join(platform)
            try:
                self._go(platform)
            except Livelock as error:
                self.found.failures.append(str(error))
            self._conclude(platform)
        self._check_files()
        self.found.seconds = time.perf_counter() - begin
        return self.found

    def _write_trace(self, platform: Platform) -> None:
        if self.tape is not None:
            self._trace.write([self.tape], seed=platform.seed, digest=platform.digest)

    def _go(self, platform: Platform) -> None:
        for config in self.configs:
            for vif in config.vifs:
                if vif.backend in DOM0_NAMES:
                    self._settle(platform, 0, platform.bridge(vif.bridge), vif.vlan)
        for source in self.sources:
            for vif in source.config.vifs:
                for guest, _ in self.guests:
                    if vif.backend == guest.name:
                        self._settle(platform, guest.domid, guest.bridge(vif.bridge), vif.vlan)
            self._boot(platform, source)
        for guest, found in self.guests:
            for device, here in zip(guest.created.devices, found.devices, strict=True):
                if here.connected and not here.idle:
                    self._exercise(platform, guest, device, here)
        self._list(platform)
        if self.options.outside.serves:
            self._serve(platform)
        for guest, found in self._outgoing():
            if self.options.save is None:
                self._shut_down(platform, guest, found)
            else:
                self._save(guest, found, save_path(self.options.save, found.config))

    def _serve(self, platform: Platform) -> None:
        """Let the outside in. The host on a bridge leaves it to the one behind the TAP."""
        for place, station in list(self.stations.items()):
            if self._named(*place[:2]) in self._service.bridges:
                del self.stations[place]
                station.bridge.detach(station)
        before = self._losses(platform)
        try:
            self._service.serve(platform, lambda where: self._bridge(platform, where), self._guest)
        finally:
            self.found.taps = self._service.found
            for found, lost in self._losses(platform).items():
                then = before.get(found, {})
                found.lost = {why: count - then.get(why, 0) for why, count in lost.items()}

    def _losses(self, platform: Platform) -> dict[VifFound, dict[str, int]]:
        """Of every interface, so far."""
        lost = {}
        for guest, here in self.guests:
            for device, found in zip(guest.created.devices, here.devices, strict=True):
                if isinstance(found, VifFound):
                    bridge = self._bridge(platform, self._named(device.backend_domid, found.bridge))
                    port = bridge.ports.get(found.name)
                    adapter = next((one for one in guest.nets if one.number == found.id), None)
                    lost[found] = losses(adapter, None if port is None else port.port)
        return lost

    def _named(self, domid: int, bridge: str) -> str:
        """What that domain's bridge is called: as it is in dom0, else `GUEST:NAME`."""
        driver = next((guest.name for guest, _ in self.guests if guest.domid == domid), "")
        return f"{driver}:{bridge}" if domid else bridge

    def _bridge(self, platform: Platform, where: str) -> Bridge:
        """The bridge `NAME`, or `GUEST:NAME` of a driver domain."""
        driver, _, name = where.rpartition(":")
        guest = self._guest(driver)
        return platform.bridge(name) if guest is None else guest.bridge(name)

    def _guest(self, name: str) -> Guest | None:
        return next((guest for guest, _ in self.guests if guest.name == name), None)

    def _outgoing(self) -> list[tuple[Guest, GuestFound]]:
        """Whom others are served by goes after these."""
        served = [pair for pair in self.guests if not pair[1].config.driver_domain]
        return served + [pair for pair in self.guests[::-1] if pair[1].config.driver_domain]

    def _list(self, platform: Platform) -> None:
        """What xl says while they run."""
        self.found.xl_list = platform.list(long=True)
        self.found.vm_list = platform.vm_list()
        for guest, found in self.guests:
            found.block_list = guest.block_list()
            found.network_list = guest.network_list()

    def _settle(
        self,
        platform: Platform,
        domid: int,
        bridge: Bridge,
        vlan: str,
    ) -> None:
        """A bridge of that domain with a host on it, whose address is nobody else's.

        In each VLAN that frames without a tag belong to there is one.
        """
        place = (domid, bridge.name, native_vlan(vlan))
        if place in self.stations:
            return
        macs = [vif.mac for config in self.configs for vif in config.vifs]
        mac = HOST_MAC
        while mac.to_bytes(6, "big") in macs:
            mac += 1
        text = mac.to_bytes(6, "big").hex(":")
        ipv4 = ".".join(map(str, HOST_IPV4))
        station = platform.respond(bridge, mac=text, ipv4=ipv4, vlan=place[2])
        mtus = [vif.mtu or 0 for config in self.configs for vif in config.vifs]
        station.mtu = max(station.mtu, *mtus)
        captured = any(where[:2] == place[:2] for where in self.stations)
        self.stations[place] = station
        if not captured:
            self._captures.add_bridge(bridge)

    def _boot(self, platform: Platform, source: Source) -> None:
        saved = source.saved
        found = GuestFound(config=source.config, restored="" if saved is None else saved.file.path)
        self.found.guests.append(found)
        try:
            if saved is None:
                guest = platform.create_from(source.config)
            else:
                guest = self._restore(platform, saved)
        except XenpvError as error:
            found.failures.append(f"not created: {error}")
            return
        self.guests.append((guest, found))
        found.domid = guest.domid
        found.devices = [_found(device) for device in guest.created.devices]
        for device in guest.created.devices:
            if device.kind == "vif":
                home = self._named(device.backend_domid, device.back["bridge"])
                self._captures.add_interface(guest, device, self._bridge(platform, home))
        try:
            guest.start()
        except Livelock:
            raise
        except XenpvError as error:
            found.failures.append(str(error))
        for device, here in zip(guest.created.devices, found.devices, strict=True):
            here.state = _state(platform, device.frontend_path)
            here.backend_state = _state(platform, device.backend_path)
            if isinstance(here, VifFound) and here.connected:
                text = platform.toolstack.xs.read(f"{device.frontend_path}/{QUEUES}") or "1"
                here.queues = int(text) if re.fullmatch("[0-9]{1,5}", text) else 0

    def _restore(self, platform: Platform, saved: Saved) -> Guest:
        """Paused. Disks that were inside the file are compared with what was there."""
        guest = restore(platform, saved, paused=True)
        for disk in guest.created.config.disks:
            image = platform.images.registered(disk.target)
            if image is not None:
                file = self.files[disk.target] = MemoryFile(image)
                self.sha256[disk.target] = file.sha256(self.progress)
        return guest

    def _exercise(
        self, platform: Platform, guest: Guest, device: Device, found: DiskFound | VifFound
    ) -> None:
        seed = f"{self.options.seed} {guest.name} {found.name}"
        if isinstance(found, DiskFound):
            disk = next(disk for disk in guest.disks if disk.devid == device.devid)
            target = _target(device)
            check = DiskCheck(disk, self.files[target], self.sha256[target], found, self.progress)
            self._disk_check = check
            check.run(write=self.options.write, seed=seed.encode())
            if check.borrowed is None:
                self._disk_check = None
        else:
            adapter = next(one for one in guest.nets if one.number == device.devid)
            told = device.back.get("vlan", "")
            vlan = native_vlan(told)
            if told and not vlan:
                found.failures.append(f"vlan {told} takes tagged frames alone: nothing was sent")
                return
            station = self.stations[device.backend_domid, found.bridge, vlan]
            VifCheck(platform, adapter, station, self._address(), found).run(seed)

    def _address(self) -> bytes:
        """The next guest's IPv4 address: 10.0.0.2 to 10.0.0.251, 10.0.1.2 and so on."""
        high, low = divmod(self._addresses, GUESTS_PER_BYTE)
        self._addresses += 1
        return bytes((10, high >> 8 & 0xFF, high & 0xFF, low + 2))

    def _shut_down(self, platform: Platform, guest: Guest, found: GuestFound) -> None:
        try:
            reason = guest.shutdown()
        except Livelock:
            raise
        except XenpvError as error:
            found.failures.append(str(error))
            guest.destroy()
            return
        known = {int(one): one.name for one in SHUTDOWN}
        found.shutdown = known.get(reason, str(reason))
        if reason != SHUTDOWN.poweroff:
            found.failures.append(f"asked to power off, it went down for: {found.shutdown}")
        if any(domain.domid == guest.domid for domain in platform.hypervisor.dead):
            found.failures.append("its memory is still mapped by a backend")

    @staticmethod
    def _save(guest: Guest, found: GuestFound, path: Path) -> None:
        try:
            guest.save(path)
        except Livelock:
            raise
        except XenpvError as error:
            found.failures.append(f"not saved: {error}")
            guest.destroy()
            return
        found.saved = str(path)
        found.shutdown = SHUTDOWN.suspend.name

    def _conclude(self, platform: Platform) -> None:
        found = self.found
        for guest, here in self.guests:
            here.console = "" if guest.console is None else guest.console.text
        bridges = dict(platform.network.bridges)
        for guest, _ in self.guests:
            if guest.created.config.driver_domain:
                for name, bridge in guest.driver_domain.network.bridges.items():
                    bridges[f"{guest.name}:{name}"] = bridge
        for name, bridge in bridges.items():
            found.bridges.append(
                BridgeFound(
                    name=name,
                    ports=len(bridge.ports),
                    forwarded=bridge.forwarded,
                    flooded=bridge.flooded,
                    dropped=bridge.dropped,
                )
            )
        found.digest = platform.digest
        found.failures += self._service.conclude(found.digest)
        found.timeline = list(platform.loop.trace.notes)
        found.virtual_ns = platform.loop.now

    def _give_back(self) -> None:
        """Put back what the run borrowed of a disk when it was cut short."""
        check, self._disk_check = self._disk_check, None
        if check is not None and check.borrowed is not None:
            check.borrowed.restore()

    def _check_files(self) -> None:
        """Every image is as it was before."""
        for target, found in self._disks():
            if not found.readonly and self.options.write:
                sha256 = self.files[target].sha256(self.progress)
                if sha256 != self.sha256[target]:
                    found.failures.append(f"the file was changed: its sha256 is now {sha256}")

    def _disks(self) -> Iterator[tuple[str, DiskFound]]:
        for guest in self.found.guests:
            for device in guest.devices:
                if isinstance(device, DiskFound):
                    yield device.image, device


def native_vlan(text: str) -> str:
    """The VLAN of what a vif sends without a tag, as text; "" on a bridge where nobody says one.

    A vif that takes tagged frames alone can be connected and not be exercised.
    """
    if not text:
        return ""
    pvid = parse_vlans(text).pvid
    return "" if pvid is None else f"{pvid}p"


def _target(device: Device) -> str:
    """The path of a disk, without the format that backends but the kernel's have before it."""
    params = device.back["params"]
    return params if device.backend_kind == "vbd" else params.partition(":")[2]


def _found(device: Device) -> DiskFound | VifFound:
    back = device.back
    if device.kind == "vbd":
        idle = "" if back["device-type"] == "disk" else f"a {back['device-type']} is emulated"
        return DiskFound(
            kind=device.kind,
            id=device.devid,
            domid=device.domid,
            name=back["dev"],
            image=_target(device),
            readonly=back["mode"] == "r",
            idle=idle,
        )
    return VifFound(
        kind=device.kind,
        id=device.devid,
        domid=device.domid,
        name=back.get("vifname") or f"vif{device.domid}.{device.devid}",
        mac=back["mac"],
        bridge=back["bridge"],
    )


def _state(platform: Platform, path: str) -> XenbusState:
    """The XenbusState in the directory of one end; UNKNOWN for what is none."""
    text = platform.toolstack.xs.read(f"{path}/state") or ""
    known = [state for state in XenbusState if text == str(int(state))]
    return known[0] if known else XenbusState.UNKNOWN
