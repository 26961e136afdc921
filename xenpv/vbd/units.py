"""What a frontend takes a sector to be: blkif changed its mind twice (public/io/blkif.h).

`sectors`, the numbers in requests and first_sect/last_sect of segments count 512 bytes or the
disk's logical sectors. On a disk of 512 bytes all of these are one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

SECTOR: Final = 512


@attrs.frozen(kw_only=True)
class SectorUnits:
    """Each field says whether that number counts logical sectors; else it counts 512 bytes.

    `disk`: the key `sectors`. `request`: sector_number and a discard's nr_sectors. `segment`:
    first_sect and last_sect. `large_feature`: feature-large-sector-size is written.
    """

    name: str
    disk: bool = False
    request: bool = False
    segment: bool = False
    large_feature: bool = False

    def disk_unit(self, sector_size: int) -> int:
        """Bytes that one of `sectors` counts."""
        return sector_size if self.disk else SECTOR

    def request_unit(self, sector_size: int) -> int:
        """Bytes that one of sector_number counts."""
        return sector_size if self.request else SECTOR

    def segment_unit(self, sector_size: int) -> int:
        """Bytes that one of first_sect counts."""
        return sector_size if self.segment else SECTOR


SPEC2024: Final = SectorUnits(name="spec2024")  # Xen 221f2748e8
# Xen 67e1c050e3, and XenVbd to this day.
SS2019: Final = SectorUnits(
    name="ss2019", disk=True, request=True, segment=True, large_feature=True
)
LINUX: Final = SectorUnits(name="linux")
FREEBSD: Final = SectorUnits(name="freebsd", disk=True, request=True)
MINIOS: Final = SectorUnits(name="minios", disk=True)
UNITS: Final[Mapping[str, SectorUnits]] = {
    one.name: one for one in (SPEC2024, SS2019, LINUX, FREEBSD, MINIOS)
}
