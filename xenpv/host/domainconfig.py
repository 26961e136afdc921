"""A domain to create: libxl_domain_config as far as it is modelled, and what it must satisfy.

What libxl finds out only while it creates the domain is an error here at once: no memory, or
none beside the video memory, two devices of one number or address, a disk name that is none.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import attrs

from xenpv.abi.pci import IdeDrive
from xenpv.errors import ConfigError
from xenpv.host import vdev
from xenpv.host.diskspec import DiskFormat, DiskSpec
from xenpv.host.position import NOWHERE, Position, shown
from xenpv.host.vifspec import VifSpec

if TYPE_CHECKING:
    from xenpv.host.hardware import Hardware

MEMORY_MIB_MAX = 1 << 24  # 16 TiB, what x86 Xen can address


class DomainType(enum.Enum):
    """libxl_domain_type, in the order in which xl tries abbreviations."""

    HVM = "hvm"
    PV = "pv"
    PVH = "pvh"


class Action(enum.Enum):
    """libxl_action_on_shutdown: what the toolstack does when a domain has shut down."""

    DESTROY = "destroy"
    RESTART = "restart"
    RENAME_RESTART = "rename-restart"
    PRESERVE = "preserve"
    COREDUMP_DESTROY = "coredump-destroy"
    COREDUMP_RESTART = "coredump-restart"
    SOFT_RESET = "soft-reset"


class Personality(enum.Enum):
    """Whose drivers the guest runs; `xenpv_personality` in a configuration."""

    WINDOWS = "windows"
    LINUX = "linux"


# HVM_MAX_VCPUS (xen/hvm/hvm_info_table.h) and MAX_VIRT_CPUS of a PV domain.
_VCPUS_MAX = {DomainType.HVM: 128, DomainType.PV: 8192, DomainType.PVH: 128}


def _disks(disks: Iterable[DiskSpec]) -> tuple[DiskSpec, ...]:
    return tuple(disks)


def _numbered(vifs: Iterable[VifSpec]) -> tuple[VifSpec, ...]:
    return tuple(
        vif if vif.devid is not None else attrs.evolve(vif, devid=index)
        for index, vif in enumerate(vifs)
    )


@attrs.frozen(kw_only=True)
class DomainConfig:
    """One domain to create; checked when made, raising ConfigError.

    `uuid` None: a new one at each creation. `hardware` None: the emulated devices that libxl
    gives an HVM domain for its disks and vifs (host.hardware). The vifs have their devid.
    `positions` says where the keys stand, `warnings` are lines "FILE:LINE: ..." for the user.
    """

    name: str
    uuid: str | None = None
    type: DomainType = DomainType.HVM
    personality: Personality = Personality.WINDOWS
    memory_mib: int = 32
    maxmem_mib: int = attrs.field()
    videoram_kib: int = attrs.field()
    vcpus: int = 1
    maxvcpus: int = attrs.field()
    hardware: tuple[Hardware, ...] | None = None
    kernel: str | None = None  # these three only stand in the store: nothing boots from them yet
    ramdisk: str | None = None
    cmdline: str | None = None
    disks: tuple[DiskSpec, ...] = attrs.field(default=(), converter=_disks)
    vifs: tuple[VifSpec, ...] = attrs.field(default=(), converter=_numbered)
    on_poweroff: Action = Action.DESTROY
    on_reboot: Action = Action.RESTART
    on_crash: Action = Action.DESTROY
    on_watchdog: Action = Action.DESTROY
    on_soft_reset: Action = Action.SOFT_RESET
    localtime: bool = False
    rtc_timeoffset: int = 0  # seconds
    acpi: bool = True
    acpi_s3: bool = True
    acpi_s4: bool = True
    acpi_laptop_slate: bool = False
    driver_domain: bool = False
    nomigrate: bool = False
    xend_suspend_evtchn_compat: bool = False
    max_event_channels: int = 1023
    max_grant_frames: int = 64
    max_maptrack_frames: int = 1024
    max_grant_version: int = 2
    warnings: tuple[str, ...] = attrs.field(default=(), eq=False)
    positions: Mapping[str, Position] = attrs.field(factory=dict, eq=False, repr=False)

    @maxmem_mib.default
    def _maxmem_mib(self) -> int:
        return self.memory_mib

    @videoram_kib.default
    def _videoram_kib(self) -> int:
        return 8192 if self.type is DomainType.HVM else 0  # the cirrus card

    @maxvcpus.default
    def _maxvcpus(self) -> int:
        return self.vcpus

    def __attrs_post_init__(self) -> None:
        self._check_sizes()
        self._check_hardware()
        self._check_disks()
        self._check_vifs()

    @property
    def is_hvm(self) -> bool:
        return self.type is DomainType.HVM

    @property
    def is_pv(self) -> bool:
        return self.type is DomainType.PV

    @property
    def target_kib(self) -> int:
        """memory/target at creation; HVM with maxmem above memory: 1 MiB less."""
        slack = 1024 if self.is_hvm and self.maxmem_mib > self.memory_mib else 0
        return self.memory_mib * 1024 - self.videoram_kib - slack

    def error(self, message: str, *keys: str) -> ConfigError:
        """An error that stands where the first of `keys` that was given does."""
        places = [self.positions[key] for key in (*keys, "") if key in self.positions]
        return (places[0] if places else NOWHERE).error(message)

    def _check_sizes(self) -> None:
        memory, maxmem, vcpus = self.memory_mib, self.maxmem_mib, self.vcpus
        if not self.name:
            raise self.error('the domain has no name: expected name = "..."', "name")
        if memory <= 0:
            raise self.error(f"memory of {memory}: expected the domain's size in MiB", "memory")
        if maxmem > MEMORY_MIB_MAX:
            raise self.error(f"memory of {maxmem} MiB: at most 16 TiB", "maxmem", "memory")
        if memory > maxmem:
            raise self.error(
                f"memory of {memory} MiB is more than maxmem, {maxmem} MiB", "memory", "maxmem"
            )
        slack_kib = 1024 if self.type is DomainType.HVM and maxmem > memory else 0
        if memory * 1024 <= self.videoram_kib + slack_kib:
            raise self.error(
                f"memory of {memory} MiB leaves nothing beside {self.videoram_kib} KiB of video "
                "memory",
                "memory",
                "videoram",
            )
        if vcpus > self.maxvcpus:
            raise self.error(
                f"maxvcpus of {self.maxvcpus} is less than vcpus, {vcpus}", "maxvcpus", "vcpus"
            )
        if self.maxvcpus > _VCPUS_MAX[self.type]:
            raise self.error(
                f"{self.maxvcpus} vcpus: a {self.type.value} domain has at most "
                f"{_VCPUS_MAX[self.type]}",
                "maxvcpus",
                "vcpus",
            )

    def _check_hardware(self) -> None:
        if not self.hardware:
            return
        if not self.is_hvm:
            raise self.error(f"a {self.type.value} domain has no emulated devices", "type")
        drives = [one.index for one in self.hardware if isinstance(one, IdeDrive)]
        for index in drives:
            if drives.count(index) > 1:
                raise self.error(f"two IDE drives have the index {index}")

    def _check_disks(self) -> None:
        numbers: dict[int, DiskSpec] = {}
        targets: dict[int, DiskSpec] = {}
        for disk in self.disks:
            at, empty = disk.position, disk.format is DiskFormat.EMPTY
            if not disk.is_cdrom and (empty or not disk.target):
                raise at.error(f"disk {shown(disk.vdev)} has no target: only a cdrom may be empty")
            if empty and disk.target:
                raise at.error(f"disk {shown(disk.vdev)} has a target and the format empty")
            other = numbers.setdefault(disk.number, disk)
            if other is not disk:
                raise at.error(
                    f"disk {disk.vdev} is device {disk.number}, which {_there(other)} is too"
                )
            target = vdev.windows_target(disk.number)
            if target is None or self.personality is not Personality.WINDOWS:
                continue
            other = targets.setdefault(target, disk)
            if other is not disk:
                raise at.error(
                    f"disk {disk.vdev} is target {target} of the Windows driver, which "
                    f"{_there(other)} is too"
                )

    def _check_vifs(self) -> None:
        devids: dict[int, VifSpec] = {}
        macs: dict[bytes, VifSpec] = {}
        for vif in self.vifs:
            assert vif.devid is not None
            if devids.setdefault(vif.devid, vif) is not vif:
                raise vif.position.error(f"two vifs have the devid {vif.devid}")
            if vif.mac is not None:
                other = macs.setdefault(vif.mac, vif)
                if other is not vif:
                    raise vif.position.error(_same_mac(vif.mac, other.position))


def _there(disk: DiskSpec) -> str:
    return f"{disk.vdev} ({disk.position})" if disk.position != NOWHERE else disk.vdev


def _same_mac(mac: bytes, first: Position) -> str:
    place = f" ({first})" if first != NOWHERE else ""
    return f"mac {mac.hex(':')} is that of an earlier vif{place}"


def check_together(configs: Iterable[DomainConfig]) -> None:
    """ConfigError if two domains share a name, a uuid or a mac."""
    taken: dict[tuple[str, str], Position] = {}
    macs: dict[bytes, VifSpec] = {}
    for config in configs:
        for key, value in (("name", config.name), ("uuid", config.uuid)):
            if value is None:
                continue
            here = config.positions.get(key, NOWHERE)
            if (key, value) in taken:
                first = taken[key, value]
                place = f" ({first})" if first != NOWHERE else ""
                raise here.error(f"{key} {shown(value)} is that of another domain{place}")
            taken[key, value] = here
        for vif in config.vifs:
            if vif.mac is not None:
                other = macs.setdefault(vif.mac, vif)
                if other is not vif:
                    raise vif.position.error(_same_mac(vif.mac, other.position))
