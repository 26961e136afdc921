"""What a block backend takes a sector to be (public/io/blkif.h, before and after 2024).

`sectors` in its directory, sector_number and nr_sectors of requests, and first_sect/last_sect
each count 512 bytes or logical sectors; a peer that counts otherwise sees another disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from xenpv.errors import LocalProtocolError


@attrs.frozen(kw_only=True)
class Units:
    """True: that number counts logical sectors, else 512 bytes.

    `wants_large`: on a disk of larger sectors a frontend without feature-large-sector-size is
    refused. `refuses_large`: one with it is. `aligned`: what is no whole logical sectors is an
    ERROR; else only sector_number and lengths are looked at, not where a segment begins.
    """

    name: str
    disk: bool = False
    request: bool = False
    segment: bool = False
    wants_large: bool = False
    refuses_large: bool = False
    aligned: bool = True


SPEC2024: Final = Units(name="spec2024")
SS2019: Final = Units(name="ss2019", disk=True, request=True, segment=True, wants_large=True)
LINUX: Final = Units(name="linux", aligned=False)
# QEMU since then: who would count in sectors is refused.
QEMU2024: Final = Units(name="qemu2024", refuses_large=True)
FREEBSD: Final = Units(name="freebsd", disk=True, request=True)
MINIOS: Final = Units(name="minios", disk=True)
UNITS: Final[Mapping[str, Units]] = {
    one.name: one for one in (SPEC2024, SS2019, LINUX, QEMU2024, FREEBSD, MINIOS)
}


def units(name: str) -> Units:
    """The row of that name. LocalProtocolError: there is none."""
    found = UNITS.get(name)
    if found is None:
        raise LocalProtocolError(f"sector units {name!r}: expected one of {', '.join(UNITS)}")
    return found
