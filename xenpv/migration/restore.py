"""`xl restore`: a guest out of a file, in a new domain.

The file is read twice: once to be sure that it is whole and right, before anything is made, and
once for the pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from xenpv.errors import (
    ConfigError,
    HypercallError,
    LocalProtocolError,
    StoreError,
    XenpvError,
)
from xenpv.guest import Guest
from xenpv.host.domid import Domid, checked
from xenpv.host.libxl import Created, ToolstackError
from xenpv.migration.context import populate_domain, rebuild
from xenpv.migration.disks import Disks
from xenpv.migration.pages import load_pages, runs_of
from xenpv.migration.savefile import SaveFile, open_file
from xenpv.migration.stream import RecordType, StreamError

if TYPE_CHECKING:
    from xenpv.host.domainconfig import DomainConfig
    from xenpv.host.image import Image
    from xenpv.platform import Platform


@attrs.frozen
class Saved:
    """A file that is whole: its head, and of its records what is not pages.

    `domain` and `guest` are JSON of the two contexts.
    """

    file: SaveFile
    domain: Any
    guest: Any
    disks: Disks


def restore(
    platform: Platform,
    saved: Saved,
    *,
    paused: bool = False,
    name: str | None = None,
    domid: Domid = None,
    images: Mapping[str, Image] | None = None,
    trusted: Sequence[str] = (),
) -> Guest:
    """What Platform.restore does of a file that was read."""
    if platform.hypervisor.closed:
        raise LocalProtocolError("this platform is closed")
    domid, file = checked(domid), saved.file
    with _images(platform, saved, images or {}) as had:
        config = attrs.evolve(had, name=name or had.name, uuid=_uuid(platform, had))

        def populate(made: Created) -> None:
            try:
                populate_domain(made.domain, saved.domain)
                _load(file, made)
            except ToolstackError as error:
                raise ToolstackError(f"{file.path}: {error}", error.code) from error

        made = platform.toolstack.create(config, domid=domid, populate=populate)
        guest = Guest(platform, made)
        try:
            rebuild(guest, saved.guest, trusted=trusted)
        except XenpvError as error:
            guest.destroy()
            raise file.error(str(error)) from error
    platform.guests.append(guest)
    return guest if paused else guest.start()


def read(path: str | Path) -> Saved:
    """Read all of a file. ConfigError where it is not what it has to be."""
    file = open_file(path)
    domain: Any = None
    guest: Any = None
    disks = Disks(file.config.disks)
    try:
        for record in file.records():
            match record.type:
                case RecordType.PAGE_DATA:
                    runs_of(record)
                case RecordType.DOMAIN_CONTEXT:
                    domain = record.json()
                case RecordType.GUEST_CONTEXT:
                    guest = record.json()
                case RecordType.DISK:
                    disks.begin(record)
                case RecordType.DISK_DATA:
                    disks.fill(record)
    except StreamError as error:
        raise file.error(str(error)) from None
    return Saved(file, domain, guest, disks)


def _load(file: SaveFile, made: Created) -> None:
    """The pages. ConfigError too if the file is not the one any more that was read before."""
    for record in file.records():
        if record.type == RecordType.PAGE_DATA:
            load_pages(made.domain, record)
        elif record.type == RecordType.GUEST_CONTEXT:
            return


def _uuid(platform: Platform, config: DomainConfig) -> str | None:
    """The saved one, unless a domain here has it: the original of a checkpoint, or its twin."""
    taken = [made.config.uuid for made in platform.toolstack.created.values()]
    return None if config.uuid in taken else config.uuid


@contextmanager
def _images(
    platform: Platform, saved: Saved, images: Mapping[str, Image]
) -> Iterator[DomainConfig]:
    """The configuration with its disks as they are here; what it registers goes if that fails."""
    file = saved.file
    vdevs = [disk.vdev for disk in file.config.disks]
    for vdev in images:
        if vdev not in vdevs:
            raise ToolstackError(f"{file.path}: has no disk {vdev}: expected {', '.join(vdevs)}")
    made: list[str] = []
    specs = []
    for disk in file.config.disks:
        image = images.get(disk.vdev, saved.disks.images.get(disk.target))
        target = disk.target
        if image is not None:
            known = platform.images.name_of(image) is not None
            target = platform.register_image(image)
            if not known:
                made.append(target)
        specs.append(attrs.evolve(disk, target=target))
    try:
        yield attrs.evolve(file.config, disks=tuple(specs))
    except ConfigError as error:
        _forget(platform, made)
        raise file.error(error.message) from None
    except (HypercallError, StoreError) as error:
        _forget(platform, made)
        raise ToolstackError(f"{file.path}: {error}") from error
    except BaseException:
        _forget(platform, made)
        raise


def _forget(platform: Platform, names: Sequence[str]) -> None:
    for name in names:
        platform.images.forget(name)
