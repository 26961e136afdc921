"""What a new domain is made of: trees and permissions, memory, channels, console.

libxl_create.c, libxl_dom.c, libxl_console.c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xenpv.abi import unplug
from xenpv.abi._kernel import lib
from xenpv.host.libxl import Created, LibxlCtx
from xenpv.xen.domain import CONSOLE_PFN, PAGE_SIZE, XENSTORE_PFN
from xenpv.xen.gnttab import GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE, GTF_permit_access
from xenpv.xen.loop import NS_PER_S

if TYPE_CHECKING:
    from xenpv.host.domainconfig import DomainConfig

PAGES_PER_MIB: Final = 256

CONSOLE_TIMEOUT_NS: Final = 10 * NS_PER_S  # LIBXL_INIT_TIMEOUT
DM_VERSION: Final = "qemu_xen"

PLATFORM_FEATURES: Final = (
    "platform-feature-multiprocessor-suspend",
    "platform-feature-xs_reset_watches",
)
GUEST_RO: Final = ("cpu", "memory", "device", "control")
GUEST_RO_HVM: Final = ("hvmloader",)
GUEST_RW: Final = (
    "control/shutdown",
    "control/feature-poweroff",
    "control/feature-reboot",
    "control/feature-suspend",
    "control/sysrq",
    "data",
    "drivers",
    "feature",
    "attr",
    "error",
)
GUEST_RW_HVM: Final = ("control/feature-s3", "control/feature-s4")
GUEST_RW_DRIVER_DOMAIN: Final = ("libxl", "device-model")
SUSPEND_EVTCHN: Final = "device/suspend/event-channel"
PLATFORM_FLAGS: Final = ("acpi", "acpi_s3", "acpi_s4", "acpi_laptop_slate")


def writable_nodes(config: DomainConfig) -> tuple[str, ...]:
    """Below its home, what a new domain owns: it writes, and nobody but dom0 reads."""
    nodes: tuple[str, ...] = GUEST_RW
    if config.is_hvm:
        nodes += GUEST_RW_HVM
    # xend's guests made event-channel themselves, so all of `device` is theirs.
    nodes += ("device",) if config.xend_suspend_evtchn_compat else (SUSPEND_EVTCHN,)
    if config.driver_domain:
        nodes += GUEST_RW_DRIVER_DOMAIN
    return nodes


class Creation:
    """The steps between XEN_DOMCTL_createdomain and the first device."""

    def __init__(self, ctx: LibxlCtx) -> None:
        self.ctx = ctx

    def write_tree(self, made: Created, t: int) -> None:
        """libxl__domain_make: `~`, /vm/UUID and /libxl/N, whatever was there before."""
        config, domid, uuid = made.config, made.domid, made.uuid
        home, vm, libxl = f"/local/domain/{domid}", f"/vm/{uuid}", f"/libxl/{domid}"
        xs = self.ctx.xs
        readable, writable = ["n0", f"r{domid}"], [f"n{domid}"]
        # What dom0 makes below a node has that node's permissions.
        for path, permissions in ((home, readable), (vm, readable), (libxl, ["n0"])):
            xs.rm(path, t)
            xs.write(path, "", t)
            xs.set_permissions(path, permissions, t)
        names = {"vm": vm, "name": config.name}
        nodes = (*GUEST_RO, *GUEST_RO_HVM) if config.is_hvm else GUEST_RO
        xs.write_all(home, names | dict.fromkeys(nodes, ""), t)
        for name in writable_nodes(config):
            xs.write(f"{home}/{name}", "", t)
            xs.set_permissions(f"{home}/{name}", writable, t)
        xs.write_all(f"{home}/control", dict.fromkeys(PLATFORM_FEATURES, "1"), t)
        xs.write_all(vm, {"name": config.name, "uuid": uuid}, t)
        kind = {"device": "", "type": config.type.value, "dm-version": DM_VERSION}
        xs.write_all(libxl, kind, t)

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
        """libxl__build_post: what only exists once memory and ports do."""
        config = made.config
        values = {
            "memory/static-max": str(config.maxmem_mib * 1024),
            "memory/target": str(config.target_kib),
            "memory/videoram": str(config.videoram_kib),
            "domid": str(made.domid),
            "store/port": str(store_port),
            "store/ring-ref": str(XENSTORE_PFN),
        }
        for cpu in range(config.maxvcpus):
            values[f"cpu/{cpu}/availability"] = "online" if cpu < config.vcpus else "offline"
        if config.is_hvm:
            values |= {f"platform/{key}": str(int(getattr(config, key))) for key in PLATFORM_FLAGS}
            values["platform/device-model"] = DM_VERSION
        self.ctx.xs.write_all(f"/local/domain/{made.domid}", values, t)
        self.ctx.xs.write_all(f"/vm/{made.uuid}", self._vm_values(config), t)

    def _vm_values(self, config: DomainConfig) -> dict[str, str]:
        """Notes that nobody reads again, but for the start time."""
        values = {"start_time": self._start_time()}
        if config.is_hvm:
            values |= {"image/ostype": "hvm", "rtc/timeoffset": ""}
        elif config.is_pv:
            image = {"kernel": config.kernel, "ramdisk": config.ramdisk, "cmdline": config.cmdline}
            values |= {f"image/{key}": text for key, text in image.items() if text is not None}
            values["image/ostype"] = "linux"
        return values

    def _start_time(self) -> str:
        """The host's wall clock: seconds since 1970, and two digits of hundredths."""
        clock = self.ctx.control.clock
        total_ns = clock.wc_sec * NS_PER_S + clock.wc_nsec + self.ctx.loop.now
        return f"{total_ns // NS_PER_S}.{total_ns % NS_PER_S // 10_000_000:02d}"

    def set_time_offset(self, made: Created) -> None:
        """Of the domain's wall clock. The host's zone is UTC here, so localtime adds nothing."""
        if made.config.rtc_timeoffset:
            self.ctx.control.domctl.settimeoffset(made.domid, made.config.rtc_timeoffset)

    def add_console(self, made: Created) -> None:
        """Console 0 has no state: the daemon connects when it sees the domain."""
        domid, backend_domid = made.domid, self._daemon_domid("xenconsoled")
        front = f"/local/domain/{domid}/console"
        back = f"/local/domain/{backend_domid}/backend/console/{domid}/0"
        xs = self.ctx.xs
        ours = {"frontend-id": str(domid), "online": "1", "state": "1", "protocol": "vt100"}
        theirs = {
            "backend": back,
            "limit": "1048576",
            "type": "xenconsoled",
            "output": "pty",
            "tty": "",
            "port": str(made.domain.hvm_param(lib.HVM_PARAM_CONSOLE_EVTCHN)),
            "ring-ref": str(CONSOLE_PFN),
        }

        def write(t: int) -> None:
            for path, values, permissions in (
                (front, theirs, [f"n{backend_domid}", f"r{domid}"]),
                (back, {"frontend": front, **ours}, [f"n{backend_domid}", f"r{domid}"]),
                (
                    f"/libxl/{domid}/device/console/0",
                    {"frontend": front, "backend": back, **ours},
                    ["n0"],
                ),
            ):
                xs.rm(path, t)
                xs.write(path, "", t)
                xs.set_permissions(path, permissions, t)
                xs.write_all(path, values, t)
            xs.write(f"{front}/backend-id", str(backend_domid), t)
            xs.set_permissions(f"{front}/backend-id", [f"n{domid}", f"r{backend_domid}"], t)

        xs.transaction(write)

    def wait_console(self, made: Created) -> None:
        """The last step: a domain whose console nobody serves is not created."""
        path = f"/local/domain/{made.domid}/console/tty"
        self.ctx.wait(lambda: bool(self.ctx.xs.read(path)), CONSOLE_TIMEOUT_NS, path)
