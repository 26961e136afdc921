"""What a new domain is made of: trees and permissions, memory, channels, console.

libxl_create.c, libxl_dom.c, libxl_console.c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from xenpv.abi import unplug
from xenpv.abi._kernel import lib
from xenpv.host.hotplug import DEVICE_TIMEOUT_NS
from xenpv.host.libxl import Created, LibxlCtx
from xenpv.xen.domain import CONSOLE_PFN, PAGE_SIZE, XENSTORE_PFN
from xenpv.xen.gnttab import GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE, GTF_permit_access

PAGES_PER_MIB: Final = 256

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


class Creation:
    """The steps between XEN_DOMCTL_createdomain and the first device."""

    def __init__(self, ctx: LibxlCtx) -> None:
        self.ctx = ctx

    def write_tree(self, made: Created, t: int) -> None:
        domid, uuid = made.domid, made.uuid
        home, vm, libxl = f"/local/domain/{domid}", f"/vm/{uuid}", f"/libxl/{domid}"
        readable, writable = ["n0", f"r{domid}"], [f"n{domid}"]
        write, permit = self.ctx.xs.write, self.ctx.xs.set_permissions
        hvm = made.config.is_hvm
        control = CONTROL_RW + CONTROL_RW_HVM if hvm else CONTROL_RW
        self.ctx.xs.rm(home, t)
        # What is made below a node has that node's permissions.
        for path, permissions in ((home, readable), (vm, readable), (libxl, ["n0"])):
            write(path, "", t)
            permit(path, permissions, t)
        self.ctx.xs.write_all(home, dict.fromkeys(GUEST_RO, ""), t)
        write(f"{libxl}/device", "", t)
        for name in (*GUEST_RW, *(f"control/{key}" for key in control)):
            write(f"{home}/{name}", "", t)
            permit(f"{home}/{name}", writable, t)
        name = made.config.name
        kind = made.config.type.value
        self.ctx.xs.write_all(home, {"vm": vm, "name": name}, t)
        self.ctx.xs.write_all(vm, {"name": name, "uuid": uuid}, t)
        self.ctx.xs.write_all(f"{home}/control", dict.fromkeys(PLATFORM_FEATURES, "1"), t)
        self.ctx.xs.write_all(libxl, {"type": kind, "dm-version": "qemu_xen"}, t)

    def build(self, made: Created, populate: Callable[[Created], None] | None) -> None:
        """Memory, special pages, store and console channels, then XS_INTRODUCE.

        `populate` replaces what fills memory; it owes every page, the special ones too.
        """
        domain = made.domain
        if populate is None:
            # Up to maxmem a guest populates on demand what its balloon does not take first; here
            # a page costs nothing until it is touched, so all of it is there.
            domain.populate(made.config.maxmem_mib * PAGES_PER_MIB)
            domain.populate_special()
        else:
            populate(made)
            # xc_clear_domain_page: what a store or console said to another domain is not here.
            for pfn in (CONSOLE_PFN, XENSTORE_PFN):
                domain.write(pfn, 0, bytes(PAGE_SIZE))
        xenstored, xenconsoled = self._daemon_domid("xenstored"), self._daemon_domid("xenconsoled")
        store_port = domain.evtchn.alloc_unbound(xenstored)
        console_port = domain.evtchn.alloc_unbound(xenconsoled)
        for index, value in (
            (lib.HVM_PARAM_STORE_PFN, XENSTORE_PFN),
            (lib.HVM_PARAM_STORE_EVTCHN, store_port),
            (lib.HVM_PARAM_CONSOLE_PFN, CONSOLE_PFN),
            (lib.HVM_PARAM_CONSOLE_EVTCHN, console_port),
        ):
            self.ctx.control.hvm.set_param(domain.domid, index, value)
        for ref, whom, pfn in (
            (GNTTAB_RESERVED_CONSOLE, xenconsoled, CONSOLE_PFN),
            (GNTTAB_RESERVED_XENSTORE, xenstored, XENSTORE_PFN),
        ):
            domain.check(lib.grant_entry_set(domain.kernel, ref, whom, pfn, GTF_permit_access))
        self.ctx.xs.transaction(lambda t: self._write_build(made, store_port, t))
        self.ctx.xs.introduce_domain(domain.domid, XENSTORE_PFN, store_port)

    def add_device_model(self, made: Created) -> None:
        """QEMU for the domain: it has the ports of the platform device, if there is one."""
        from xenpv.host.devicemodel import DeviceModel

        model = made.device_model = DeviceModel(made.config, self.ctx.xs, self.ctx.loop)
        made.domain.ioport.attach(model)
        if model.platform_device is not None:
            made.domain.ioport.claim(model, unplug.PORT, unplug.PORTS)

    def _daemon_domid(self, daemon: str) -> int:
        text = self.ctx.xs.read(f"/tool/{daemon}/domid")
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
        self.ctx.xs.write_all(home, values, t)
        self.ctx.xs.write(f"/vm/{made.uuid}/image/ostype", config.type.value, t)

    def add_console(self, made: Created) -> None:
        """Console 0 has no state: the daemon connects when it sees the domain."""
        domid = made.domid
        front, back = f"/local/domain/{domid}/console", f"/local/domain/0/backend/console/{domid}/0"

        def write(t: int) -> None:
            self.ctx.xs.write(back, "", t)
            self.ctx.xs.set_permissions(back, ["n0", f"r{domid}"], t)
            ours = {
                "frontend": front,
                "frontend-id": str(domid),
                "online": "1",
                "state": "1",
                "protocol": "vt100",
            }
            self.ctx.xs.write_all(back, ours, t)
            theirs = {
                "backend": back,
                "limit": "1048576",
                "type": "xenconsoled",
                "output": "pty",
                "tty": "",
                "port": str(made.domain.hvm_param(lib.HVM_PARAM_CONSOLE_EVTCHN)),
                "ring-ref": str(CONSOLE_PFN),
            }
            self.ctx.xs.write_all(front, theirs, t)
            self.ctx.xs.write(f"{front}/backend-id", "0", t)
            self.ctx.xs.set_permissions(f"{front}/backend-id", [f"n{domid}", "r0"], t)

        self.ctx.xs.transaction(write)
        self.ctx.wait(
            lambda: bool(self.ctx.xs.read(f"{front}/tty")), DEVICE_TIMEOUT_NS, f"{front}/tty"
        )
