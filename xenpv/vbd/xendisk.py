"""XenDisk: the filter between disk.sys and a disk of XenVbd (win-xenvbd, xendisk/pdo.c).

It answers for the port driver what that cannot know: that files may be trimmed, and how large
a physical sector is; a trim becomes UNMAP.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from xenpv.bus.ntstatus import NTSTATUS
from xenpv.vbd import unmap
from xenpv.vbd.quirks import TRIM_TRUNCATES

if TYPE_CHECKING:
    from xenpv.vbd.disk import Disk

PARAMETERS: Final = "Services\\XENDISK\\Parameters"
INTERCEPT_TRIM: Final = "InterceptTrim"

# DEVICE_TRIM_DESCRIPTOR: version and size are its length in bytes, TrimEnabled, padding.
TRIM: Final = struct.Struct("<II?3x")
# STORAGE_ACCESS_ALIGNMENT_DESCRIPTOR: version, size, bytes of and offset in a cache line, of a
# logical and of a physical sector, offset of the first sector in a physical one.
ALIGNMENT: Final = struct.Struct("<7I")


class StoragePropertyId(enum.IntEnum):
    """STORAGE_PROPERTY_ID, those that the filter knows (ntddstor.h)."""

    ACCESS_ALIGNMENT = 6  # StorageAccessAlignmentProperty
    DEVICE_TRIM = 8  # StorageDeviceTrimProperty


class StorageQueryType(enum.IntEnum):
    """STORAGE_QUERY_TYPE."""

    STANDARD = 0
    EXISTS = 1


DSM_ACTION_TRIM: Final = 1  # DeviceDsmAction_Trim

# The port driver below knows neither: what is passed on to it comes back so.
FORWARDED: Final = NTSTATUS.NOT_SUPPORTED


class XenDisk:
    """The filter over one disk."""

    __slots__ = ("_disk",)

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    @property
    def intercepts_trim(self) -> bool:
        """By the registry, on unless InterceptTrim is 0; off, both trim calls are passed on."""
        registry = self._disk.target.bus.registry
        return registry.dword(PARAMETERS, INTERCEPT_TRIM, 1) != 0

    def query_property(
        self,
        property_id: int,
        query_type: int = StorageQueryType.STANDARD,
        room: int = ALIGNMENT.size,
    ) -> tuple[NTSTATUS, bytes]:
        """IOCTL_STORAGE_QUERY_PROPERTY into a buffer of `room` bytes."""
        if property_id == StoragePropertyId.DEVICE_TRIM and self.intercepts_trim:
            size = TRIM.size
        elif property_id == StoragePropertyId.ACCESS_ALIGNMENT:
            size = ALIGNMENT.size
        else:
            return FORWARDED, b""
        if query_type != StorageQueryType.STANDARD:
            return NTSTATUS.SUCCESS, b""
        if room < size:
            return NTSTATUS.BUFFER_OVERFLOW, b""
        if property_id == StoragePropertyId.DEVICE_TRIM:
            # Whatever the backend can do.
            return NTSTATUS.SUCCESS, TRIM.pack(size, size, True)
        disk = self._disk
        sectors = (disk.sector_size, disk.physical_sector_size)
        return NTSTATUS.SUCCESS, ALIGNMENT.pack(size, size, 0, 0, *sectors, 0)

    def manage_data_set_attributes(
        self, action: int, ranges: Sequence[tuple[int, int]]
    ) -> NTSTATUS:
        """IOCTL_STORAGE_MANAGE_DATA_SET_ATTRIBUTES; each range is an offset and a length in
        bytes. Raises DiskError as the disk does.
        """
        if action != DSM_ACTION_TRIM or not self.intercepts_trim:
            return FORWARDED
        for some in self._lists(ranges):
            self._disk.unmap(some)
        return NTSTATUS.SUCCESS

    def _lists(self, ranges: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
        """Descriptors of one UNMAP each; sectors are rounded down."""
        size = self._disk.target.sector_size
        found = [(offset // size, length // size) for offset, length in ranges]
        if TRIM_TRUNCATES in self._disk.target.quirks:
            pieces = [(lba, count & unmap.COUNT_MAX) for lba, count in found]
        else:
            pieces = [
                (start, min(lba + count - start, unmap.COUNT_MAX))
                for lba, count in found
                for start in range(lba, lba + count, unmap.COUNT_MAX)
            ]
        most = unmap.DESCRIPTORS_MAX
        return [pieces[at : at + most] for at in range(0, len(pieces), most)]
