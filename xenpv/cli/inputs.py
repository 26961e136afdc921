"""What the user gave, checked: nothing is written anywhere before all of it is known to be good."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import attrs

from xenpv.errors import ConfigError
from xenpv.host.config import load_all
from xenpv.host.diskspec import DiskFormat, DiskSpec, DiskSpecification
from xenpv.host.domainconfig import DomainConfig
from xenpv.host.image import ImageProvider
from xenpv.host.vifspec import VifSpec
from xenpv.platform import DOM0_PAGES
from xenpv.xen.hypervisor import FRAMES_DEFAULT

PAGES_PER_MIB: Final = 256
# A domain's special pages and tables, more or less.
OVERHEAD_MIB: Final = 1
DOM0_NAMES: Final = ("", "0", "Domain-0")


def load(paths: Iterable[str | Path]) -> tuple[DomainConfig, ...]:
    """The domains of these xl.cfg files, their images there and free. Raises ConfigError."""
    configs = load_all(paths)
    for config in configs:
        _check_text(config)
        for disk in config.disks:
            _check_disk(disk)
        for vif in config.vifs:
            _check_vif(vif)
    _check_memory(configs)
    configs = tuple(_with_media(config) for config in configs)
    _check_images(configs)
    return configs


def _check_text(config: DomainConfig) -> None:
    """The store's values and these names end up in reports: no control characters in them."""
    names = [
        (config.name, config.positions["name"]),
        *((disk.target, disk.position) for disk in config.disks),
        *((vif.bridge, vif.position) for vif in config.vifs),
    ]
    for text, position in names:
        if not text.isprintable():
            raise position.error(f"expected printable UTF-8, found {text!a}")


def _check_disk(disk: DiskSpec) -> None:
    wrong = ""
    if disk.format not in (DiskFormat.RAW, DiskFormat.EMPTY):
        wrong = f"is {disk.format.value}, only raw is served: qemu-img convert -O raw makes one"
    elif disk.specification is not DiskSpecification.XEN:
        wrong = "is virtio, only specification=xen is served"
    elif disk.backend not in DOM0_NAMES:
        wrong = f"has the backend {disk.backend}, only dom0 serves"
    if wrong:
        raise disk.position.error(f"disk {disk.vdev} {wrong}")


def _check_vif(vif: VifSpec) -> None:
    if vif.backend not in DOM0_NAMES:
        raise vif.position.error(f"vif has the backend {vif.backend}, only dom0 serves")


def _check_memory(configs: Sequence[DomainConfig]) -> None:
    machine, dom0 = FRAMES_DEFAULT // PAGES_PER_MIB, DOM0_PAGES // PAGES_PER_MIB
    room = machine - dom0
    for config in configs:
        room -= config.maxmem_mib + OVERHEAD_MIB
        if room < 0:
            raise config.error(
                f"memory of {config.maxmem_mib} MiB is more than what is left of the machine's "
                f"{machine} MiB, of which dom0 has {dom0}",
                "memory",
                "maxmem",
            )


def _with_media(config: DomainConfig) -> DomainConfig:
    """Without its empty CD-ROM drives, which are the device model's."""
    disks = [disk for disk in config.disks if disk.format is not DiskFormat.EMPTY]
    warnings = config.warnings + tuple(
        f"{disk.position}: {disk.vdev} is an empty drive, which is emulated: left out"
        for disk in config.disks
        if disk not in disks
    )
    return attrs.evolve(config, disks=disks, warnings=warnings)


def _check_images(configs: Sequence[DomainConfig]) -> None:
    """Open all at once, each with the lock that its disk will take."""
    images = ImageProvider()
    with ExitStack() as opened:
        for config in configs:
            for disk in config.disks:
                try:
                    image = images.open(disk.target, disk.readwrite)
                except ConfigError as error:
                    raise disk.position.error(error.message) from None
                opened.callback(image.close)
