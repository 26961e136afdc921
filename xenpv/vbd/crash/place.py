r"""Where a Windows system keeps its crash dump and its hibernation file, in its registry.

CrashDumpEnabled and HibernateEnabled are Windows' own; which target and sector is xenpv's, for
there is no file system here that would say it.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.vbd.usage import UsageType

if TYPE_CHECKING:
    from xenpv.bus.registry import Registry

TARGET: Final = "XenpvTarget"
SECTOR: Final = "XenpvSector"


class Kind(enum.Enum):
    """The key, the value that switches it on, and how the disk's driver hears of it."""

    DUMP = ("Control\\CrashControl", "CrashDumpEnabled", UsageType.DUMP)
    HIBERNATION = ("Control\\Power", "HibernateEnabled", UsageType.HIBERNATION)

    @property
    def usage(self) -> UsageType:
        return self.value[2]


@attrs.frozen
class Place:
    """A disk by its TargetId, and the sector at which the file begins."""

    target_id: int
    lba: int = 0


def read(registry: Registry, kind: Kind) -> Place | None:
    """None: there is no such file."""
    path, enabled, _usage = kind.value
    if registry.get(path, enabled) != 1:
        return None
    target, sector = registry.get(path, TARGET), registry.get(path, SECTOR)
    if not isinstance(target, int) or not isinstance(sector, int):
        return None  # Windows' own settings, without xenpv's
    return Place(target, sector)


def write(registry: Registry, kind: Kind, place: Place | None) -> None:
    """For this boot's driver and the next ones'."""
    path, enabled, _usage = kind.value
    registry.set(path, enabled, int(place is not None))
    if place is not None:
        registry.set(path, TARGET, place.target_id)
        registry.set(path, SECTOR, place.lba)


def usages(registry: Registry, target_id: int) -> list[UsageType]:
    """What the system keeps on a target that it finds."""
    places = ((kind, read(registry, kind)) for kind in Kind)
    return [kind.usage for kind, at in places if at is not None and at.target_id == target_id]
