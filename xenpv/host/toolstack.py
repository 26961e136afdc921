"""The toolstack: domains out of configurations, and their way out (libxl_create.c, libxl_dom.c).

It runs outside the loop, as `xl` runs outside the kernel: each step writes to the store and
then lets the loop run until what it waits for is there, or virtual time is up.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Final, Protocol

import attrs

from xenpv.abi import unplug
from xenpv.abi._kernel import lib
from xenpv.errors import LocalProtocolError, StoreError, XenpvError
from xenpv.host import device as devices
from xenpv.host.device import CLOSED, CLOSING, INIT_WAIT, Device, mac_text
from xenpv.host.xs import XsHandle
from xenpv.store.connection import Connection
from xenpv.xen.domain import CONSOLE_PFN, SPECIAL_NR_PAGES, XENSTORE_PFN, Domain
from xenpv.xen.gnttab import GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE, GTF_permit_access
from xenpv.xen.loop import NS_PER_MS, NS_PER_S, Loop

if TYPE_CHECKING:
    from xenpv.host.devicemodel import DeviceModel
    from xenpv.host.domainconfig import DomainConfig

PAGES_PER_MIB: Final = 256
SLACK_PAGES: Final = 256  # LIBXL_MAXMEM_CONSTANT: 1 MiB above maxmem
DEVICE_TIMEOUT_NS: Final = 10 * NS_PER_S
HOTPLUG_TIMEOUT_NS: Final = 40 * NS_PER_S
SHUTDOWN_TIMEOUT_NS: Final = 60 * NS_PER_S
STEP_NS: Final = 100 * NS_PER_MS

CONTROL_RW: Final = (
    "shutdown",
    "feature-poweroff",
    "feature-reboot",
    "feature-suspend",
    "sysrq",
)
CONTROL_RW_HVM: Final = ("feature-s3", "feature-s4")
PLATFORM_FEATURES: Final = (
    "platform-feature-multiprocessor-suspend",
    "platform-feature-xs_reset_watches",
)
GUEST_RO: Final = ("cpu", "memory", "device", "control")
GUEST_RW: Final = (
    "device/suspend/event-channel",
    "data",
    "drivers",
    "feature",
    "attr",
    "error",
)


class ToolstackError(XenpvError):
    """A step of the toolstack failed: creation was undone, or a timeout ran out."""


class HotplugScripts(Protocol):
    """What /etc/xen/scripts do on the backend's host. Raises XenpvError to refuse."""

    def block(self, params: str, *, writable: bool) -> str:
        """Check that a disk can be served; its path as `physical-device-path`."""

    def vif_bridge(self, bridge: str) -> None:
        """Check that an interface can join a bridge."""


class Created:
    """A domain that exists: what the toolstack keeps about it."""

    __slots__ = ("config", "device_model", "devices", "domain")

    def __init__(self, config: DomainConfig, domain: Domain) -> None:
        self.config = config
        self.domain = domain
        self.devices: list[Device] = []
        self.device_model: DeviceModel | None = None  # of an HVM domain

    @property
    def uuid(self) -> str:
        assert self.config.uuid is not None
        return self.config.uuid

    @property
    def domid(self) -> int:
        return self.domain.domid


class Toolstack:
    """libxl of one host, as a client of xenstored in the control domain."""

    def __init__(
        self, control: Domain, connection: Connection, scripts: HotplugScripts, seed: int
    ) -> None:
        self.control = control
        self.loop: Loop = control.loop
        self.xs = XsHandle(connection)
        self.scripts = scripts
        self.created: dict[int, Created] = {}
        self._seed = f"xenpv toolstack {seed}"

    # creation

    def create(self, config: DomainConfig) -> Created:
        """Everything up to the moment before unpause. Raises ToolstackError, undone."""
        if any(one.config.name == config.name for one in self.created.values()):
            raise LocalProtocolError(f"a domain named {config.name!r} exists")
        config = self._completed(config)
        domain = self.control.domctl.create_domain(
            vcpus=config.vcpus,
            max_pages=config.maxmem_mib * PAGES_PER_MIB + SLACK_PAGES + SPECIAL_NR_PAGES,
            max_grant_frames=config.max_grant_frames,
            max_maptrack_frames=config.max_maptrack_frames,
            max_event_channels=config.max_event_channels,
            max_grant_version=config.max_grant_version,
            handle=bytes.fromhex((config.uuid or "").replace("-", "")),
        )
        made = Created(config=config, domain=domain)
        self.created[domain.domid] = made
        try:
            self.xs.transaction(lambda t: self._write_tree(made, t))
            self._build(made)
            if config.is_hvm:
                self._add_device_model(made)
            for disk in made.config.disks:
                self._add_disk(made, devices.vbd(disk, domain.domid))
            self._add_console(made)
            for nic in made.config.vifs:
                hvm = config.is_hvm
                self._add_nic(made, devices.vif(nic, domain.domid, hvm=hvm))
        except XenpvError:
            self.destroy(made)
            raise
        return made

    def _completed(self, config: DomainConfig) -> DomainConfig:
        """The configuration with what creation makes up, as a restart has to find it again."""
        vifs = tuple(
            nic if nic.mac is not None else attrs.evolve(nic, mac=self._mac())
            for nic in config.vifs
        )
        return attrs.evolve(config, uuid=config.uuid or self._uuid(), vifs=vifs)

    @cached_property
    def _random(self) -> random.Random:
        return random.Random(self._seed)

    def _uuid(self) -> str:
        text = f"{self._random.getrandbits(128):032x}"
        return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))

    def _mac(self) -> bytes:
        """Xen's own prefix, then random: 00:16:3e:(r & 7f):r:r."""
        tail = self._random.getrandbits(24)
        return bytes((0x00, 0x16, 0x3E, tail >> 16 & 0x7F, tail >> 8 & 0xFF, tail & 0xFF))

    def _write_tree(self, made: Created, t: int) -> None:
        domid, uuid = made.domid, made.uuid
        home, vm, libxl = f"/local/domain/{domid}", f"/vm/{uuid}", f"/libxl/{domid}"
        readable, writable = ["n0", f"r{domid}"], [f"n{domid}"]
        write, permit = self.xs.write, self.xs.set_permissions
        hvm = made.config.is_hvm
        control = CONTROL_RW + CONTROL_RW_HVM if hvm else CONTROL_RW
        self.xs.rm(home, t)
        # What is made below a node has that node's permissions.
        for path, permissions in ((home, readable), (vm, readable), (libxl, ["n0"])):
            write(path, "", t)
            permit(path, permissions, t)
        self.xs.write_all(home, dict.fromkeys(GUEST_RO, ""), t)
        write(f"{libxl}/device", "", t)
        for name in (*GUEST_RW, *(f"control/{key}" for key in control)):
            write(f"{home}/{name}", "", t)
            permit(f"{home}/{name}", writable, t)
        name = made.config.name
        kind = made.config.type.value
        self.xs.write_all(home, {"vm": vm, "name": name}, t)
        self.xs.write_all(vm, {"name": name, "uuid": uuid}, t)
        self.xs.write_all(f"{home}/control", dict.fromkeys(PLATFORM_FEATURES, "1"), t)
        self.xs.write_all(libxl, {"type": kind, "dm-version": "qemu_xen"}, t)

    def _build(self, made: Created) -> None:
        """Memory, special pages, store and console channels, then XS_INTRODUCE."""
        config, domain = made.config, made.domain
        # Up to maxmem a guest populates on demand what its balloon does not take first; here a
        # page costs nothing until it is touched, so all of it is there.
        domain.populate(config.maxmem_mib * PAGES_PER_MIB)
        domain.populate_special()
        store_port = domain.evtchn.alloc_unbound(self._daemon_domid("xenstored"))
        console_port = domain.evtchn.alloc_unbound(self._daemon_domid("xenconsoled"))
        for index, value in (
            (lib.HVM_PARAM_STORE_PFN, XENSTORE_PFN),
            (lib.HVM_PARAM_STORE_EVTCHN, store_port),
            (lib.HVM_PARAM_CONSOLE_PFN, CONSOLE_PFN),
            (lib.HVM_PARAM_CONSOLE_EVTCHN, console_port),
        ):
            self.control.hvm.set_param(domain.domid, index, value)
        for ref, pfn in (
            (GNTTAB_RESERVED_CONSOLE, CONSOLE_PFN),
            (GNTTAB_RESERVED_XENSTORE, XENSTORE_PFN),
        ):
            domain.check(lib.grant_entry_set(domain.kernel, ref, 0, pfn, GTF_permit_access))
        self.xs.transaction(lambda t: self._write_build(made, store_port, t))
        self.xs.introduce_domain(domain.domid, XENSTORE_PFN, store_port)

    def _add_device_model(self, made: Created) -> None:
        """QEMU for the domain: it has the ports of the platform device, if there is one."""
        from xenpv.host.devicemodel import DeviceModel

        model = made.device_model = DeviceModel(made.config, self.xs, self.loop)
        made.domain.ioport.attach(model)
        if model.platform_device is not None:
            made.domain.ioport.claim(model, unplug.PORT, unplug.PORTS)

    def _daemon_domid(self, daemon: str) -> int:
        text = self.xs.read(f"/tool/{daemon}/domid")
        return int(text) if text is not None and text.isdecimal() else 0

    def _write_build(self, made: Created, store_port: int, t: int) -> None:
        config = made.config
        home = f"/local/domain/{made.domid}"
        target_kib = config.memory_mib * 1024 - config.videoram_kib
        if config.is_hvm and config.maxmem_mib > config.memory_mib:
            target_kib -= 1024
        values = {
            "memory/static-max": str(config.maxmem_mib * 1024),
            "memory/target": str(target_kib),
            "memory/videoram": str(config.videoram_kib),
            "domid": str(made.domid),
            "store/port": str(store_port),
            "store/ring-ref": str(XENSTORE_PFN),
        }
        for cpu in range(config.maxvcpus):
            values[f"cpu/{cpu}/availability"] = "online" if cpu < config.vcpus else "offline"
        if config.is_hvm:
            for key in ("acpi", "acpi_s3", "acpi_s4", "acpi_laptop_slate"):
                values[f"platform/{key}"] = str(int(getattr(config, key)))
        self.xs.write_all(home, values, t)
        self.xs.write(f"/vm/{made.uuid}/image/ostype", config.type.value, t)

    # devices

    def _add_disk(self, made: Created, disk: Device) -> None:
        self._add(made, disk)
        path = disk.backend_path
        if not disk.back["params"]:
            return  # a drive without a medium: there is nothing for a script to attach
        try:
            physical = self.scripts.block(disk.back["params"], writable=disk.back["mode"] == "w")
        except XenpvError as error:
            self._hotplug_failed(disk, str(error))
        self.xs.write(f"{path}/physical-device-path", physical)
        self.xs.write(f"{path}/hotplug-status", "connected")

    def _add_nic(self, made: Created, nic: Device) -> None:
        self._add(made, nic)
        try:
            self.scripts.vif_bridge(nic.back["bridge"])
        except XenpvError as error:
            self._hotplug_failed(nic, str(error))
        self.xs.write(f"{nic.backend_path}/hotplug-status", "connected")

    def _hotplug_failed(self, device: Device, why: str) -> None:
        self.xs.write(f"{device.backend_path}/hotplug-error", why)
        self.xs.write(f"{device.backend_path}/hotplug-status", "error")
        raise ToolstackError(f"{device.kind} {device.devid}: {why}")

    def _add(self, made: Created, device: Device) -> None:
        try:
            device.add(self.xs)
        except StoreError as error:
            if error.name != "EEXIST":
                raise
            raise ToolstackError(f"device already exists in xenstore: {error}") from error
        made.devices.append(device)
        if device.kind == "vif":
            self.control.trace.note(0, f"vif{made.domid}.{device.devid}: {device.back['mac']}")
        self._wait(
            lambda: self.xs.read(f"{device.backend_path}/state") == INIT_WAIT,
            DEVICE_TIMEOUT_NS,
            f"{device.backend_path} to reach state {INIT_WAIT}",
        )

    def _add_console(self, made: Created) -> None:
        """Console 0 has no state: the daemon connects when it sees the domain."""
        domid = made.domid
        front, back = f"/local/domain/{domid}/console", f"/local/domain/0/backend/console/{domid}/0"

        def write(t: int) -> None:
            self.xs.write(back, "", t)
            self.xs.set_permissions(back, ["n0", f"r{domid}"], t)
            ours = {
                "frontend": front,
                "frontend-id": str(domid),
                "online": "1",
                "state": "1",
                "protocol": "vt100",
            }
            self.xs.write_all(back, ours, t)
            theirs = {
                "backend": back,
                "limit": "1048576",
                "type": "xenconsoled",
                "output": "pty",
                "tty": "",
                "port": str(made.domain.hvm_param(lib.HVM_PARAM_CONSOLE_EVTCHN)),
                "ring-ref": str(CONSOLE_PFN),
            }
            self.xs.write_all(front, theirs, t)
            self.xs.write(f"{front}/backend-id", "0", t)
            self.xs.set_permissions(f"{front}/backend-id", [f"n{domid}", "r0"], t)

        self.xs.transaction(write)
        self._wait(lambda: bool(self.xs.read(f"{front}/tty")), DEVICE_TIMEOUT_NS, f"{front}/tty")

    # running domains

    def unpause(self, made: Created) -> None:
        made.domain.unpause()

    def request(self, made: Created, value: str) -> None:
        """Write control/shutdown and wait for its acknowledgement; ToolstackError after 60 s.

        The request is not withdrawn.
        """
        path = f"/local/domain/{made.domid}/control/shutdown"
        self.xs.write(path, value)
        self._wait(
            lambda: not self.xs.read(path),
            SHUTDOWN_TIMEOUT_NS,
            f"domain {made.domid} to acknowledge {value}",
        )

    def wait_shutdown(self, made: Created) -> int:
        """Until the domain stopped; its reason code."""
        domain = made.domain
        self._wait(
            lambda: domain.is_shutdown or domain.dying,
            2 * SHUTDOWN_TIMEOUT_NS,
            f"domain {made.domid} to shut down",
        )
        return 0 if domain.shutdown_code is None else domain.shutdown_code

    def destroy(self, made: Created) -> None:
        """Devices by force, the trees, then the domain. A second call does nothing."""
        if self.created.pop(made.domid, None) is None:
            return
        domid = made.domid
        if not made.domain.dying and not made.domain.pause_count:
            made.domain.pause()
        for device in reversed(made.devices):
            self._remove(device)
        for path in (f"/vm/{made.uuid}", f"/local/domain/{domid}", f"/libxl/{domid}"):
            self.xs.rm(path)
        self.xs.rm_empty_parents(
            f"/local/domain/0/backend/console/{domid}/0", "/local/domain/0/backend"
        )
        self.control.domctl.destroy_domain(made.domain)
        self.loop.run()

    def _remove(self, device: Device) -> None:
        """Forced: the frontend goes at once; the backend gets 10 s to reach Closed."""
        state = f"{device.backend_path}/state"

        def ask(t: int) -> None:
            if self.xs.read(state, t) is not None:
                self.xs.write(f"{device.backend_path}/online", "0", t)
                if self.xs.read(state, t) != CLOSED:
                    self.xs.write(state, CLOSING, t)
            self.xs.rm(device.frontend_path, t)

        self.xs.transaction(ask)
        try:
            self._wait(
                lambda: self.xs.read(state) in (None, CLOSED),
                DEVICE_TIMEOUT_NS,
                f"{device.backend_path} to close",
            )
        except ToolstackError as error:
            # libxl reports it and deletes everything all the same.
            self.control.trace.note(0, str(error))
        self.xs.rm_empty_parents(device.backend_path, "/local/domain/0/backend")
        self.xs.rm(device.libxl_path)

    def _wait(self, ready: Callable[[], bool], timeout_ns: int, what: str) -> None:
        self.loop.run()
        deadline = self.loop.now + timeout_ns
        while not ready():
            if self.loop.now >= deadline:
                raise ToolstackError(f"waited {timeout_ns // NS_PER_S} s for {what}")
            self.loop.advance(STEP_NS)


__all__ = ["Created", "HotplugScripts", "Toolstack", "ToolstackError", "mac_text"]
