"""What the user gave, checked: nothing is written anywhere before all of it is known to be good."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import attrs

from xenpv.errors import ConfigError
from xenpv.host import diskbackend
from xenpv.host.config import load_all
from xenpv.host.diskspec import DiskFormat, DiskSpec, DiskSpecification
from xenpv.host.domainconfig import DomainConfig, Personality, check_together
from xenpv.host.hotplug import DOM0_NAMES
from xenpv.host.image import ImageProvider
from xenpv.host.position import Position
from xenpv.migration.restore import Saved, read
from xenpv.migration.savefile import SaveFile
from xenpv.platform import DOM0_PAGES
from xenpv.xen.hypervisor import FRAMES_DEFAULT

PAGES_PER_MIB: Final = 256
# A domain's special pages and tables, more or less.
OVERHEAD_MIB: Final = 1


@attrs.frozen
class Source:
    """Where a guest comes from: its configuration, and what was saved of it if anything was."""

    config: DomainConfig
    saved: Saved | None = None


def load(paths: Iterable[str | Path], saves: Iterable[str | Path] = ()) -> tuple[Source, ...]:
    """The domains of these xl.cfg files, then of these save files. Raises ConfigError.

    Their images are there and free.
    """
    saved = [read(path) for path in saves]
    configs = (*load_all(paths), *(_placed(one.file) for one in saved))
    check_together(configs)
    for index, config in enumerate(configs):
        _check_text(config)
        for disk in config.disks:
            _check_disk(disk)
        _check_backends(config, [one.name for one in configs[:index] if _is_driver(one)])
    _check_memory(configs)
    configs = tuple(_with_media(config) for config in configs)
    _check_images(configs, [target for one in saved for target in one.disks.images])
    alone: list[Saved | None] = [None] * (len(configs) - len(saved))
    return tuple(map(Source, configs, [*alone, *saved]))


def _placed(file: SaveFile) -> DomainConfig:
    """Its configuration, all of which stands in that file."""
    place = Position(file.path)
    config = file.config
    return attrs.evolve(
        config,
        disks=tuple(attrs.evolve(one, position=place) for one in config.disks),
        vifs=tuple(attrs.evolve(one, position=place) for one in config.vifs),
        positions=dict.fromkeys(("", "name", "uuid"), place),
    )


def check_save(path: Path, sources: Sequence[Source]) -> None:
    """Whether the guests can be saved there: a file for one, a directory for several.

    ConfigError if not, or if that would overwrite what the run reads.
    """
    if path.is_dir():
        for source in sources:
            if "/" in source.config.name:
                wrong = f"the name {source.config.name!r} is none for a file in a directory"
                raise ConfigError(f"cannot save there: {wrong}", file=str(path))
    elif len(sources) > 1:
        wrong = f"to save {len(sources)} guests: expected a directory that is there"
        raise ConfigError(wrong, file=str(path))
    elif not path.parent.is_dir():
        raise ConfigError("cannot save there: there is no such directory", file=str(path))
    _check_place(path)
    inputs = [Path(source.config.positions[""].file) for source in sources if source.saved is None]
    for source in sources:
        inputs += [Path(disk.target) for disk in source.config.disks]
        target = save_path(path, source.config)
        if target.exists() and not target.is_file():
            # Its name would be taken by the file, a device's too.
            raise ConfigError("cannot save there: it exists and is no file", file=str(target))
        if target.exists() and any(one.exists() and target.samefile(one) for one in inputs):
            raise ConfigError("the save file would overwrite it", file=str(target))


def _check_place(path: Path) -> None:
    """Whether a file can be made there, and take its name."""
    folder = path if path.is_dir() else path.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot save there: {folder} may not be written", file=str(path))


def save_path(path: Path, config: DomainConfig) -> Path:
    """The file of one guest: itself, or NAME.save in a directory."""
    return path / f"{config.name}.save" if path.is_dir() else path


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
    if disk.specification is not DiskSpecification.XEN:
        wrong = "is virtio, only specification=xen is served"
        raise disk.position.error(f"disk {disk.vdev} {wrong}")
    diskbackend.chosen(disk)


def _check_backends(config: DomainConfig, drivers: Sequence[str]) -> None:
    """Those that serve its devices are dom0 and `drivers`, the driver domains before it."""
    devices = [
        *((f"disk {disk.vdev}", disk.backend, disk.position) for disk in config.disks),
        *(("vif", vif.backend, vif.position) for vif in config.vifs),
    ]
    for what, backend, position in devices:
        if backend not in (*DOM0_NAMES, *drivers):
            raise position.error(
                f"{what} has the backend {backend}: expected dom0, or the name of a guest before "
                'this one with driver_domain=1 and xenpv_personality="linux"'
            )


def _is_driver(config: DomainConfig) -> bool:
    return config.driver_domain and config.personality is Personality.LINUX


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


def _check_images(configs: Sequence[DomainConfig], inside: Sequence[str]) -> None:
    """Open all at once, each with the lock that its disk will take; not those `inside` a file."""
    images = ImageProvider()
    with ExitStack() as opened:
        for config in configs:
            for disk in config.disks:
                if disk.target in inside:
                    continue
                try:
                    image = images.open(_params(disk), disk.readwrite)
                except ConfigError as error:
                    raise disk.position.error(error.message) from None
                opened.callback(image.close)


def _params(disk: DiskSpec) -> str:
    """What an ImageProvider opens for it, whoever its backend will be."""
    raw = disk.format is DiskFormat.RAW
    return f"raw:{disk.target}" if raw else f"{disk.format.value}:{disk.target}"


def interfaces(sources: Sequence[Source]) -> list[tuple[str, int]]:
    """Each guest's network interfaces: its name, their devids."""
    return [
        (source.config.name, index if vif.devid is None else vif.devid)
        for source in sources
        for index, vif in enumerate(source.config.vifs)
    ]
