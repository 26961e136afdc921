"""Which SCSI target a device number is (win-xenvbd target.c, __ParseVbd)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

TARGETS_MAX: Final = 255
EXTENDED: Final = 1 << 28
RESERVED: Final = 2 << 28
# major: first target, and how many minors each disk has
MAJORS: Final[Mapping[int, tuple[int, int]]] = {
    202: (0, 4),  # xvd
    8: (0, 4),  # sd
    3: (0, 6),  # hda, hdb; the other IDE channels follow
    22: (2, 6),
    33: (4, 6),
    34: (6, 6),
    56: (8, 6),
    57: (10, 6),
    88: (12, 6),
    89: (14, 6),
}


def target_id(devid: int) -> int | None:
    """The SCSI target of a device number, partition bits ignored; None: not presented.

    Aliases share a target: hda, sda and xvda are all 0.
    """
    if not 0 <= devid < RESERVED:
        return None
    if devid & EXTENDED:
        target = (devid & 0xFFFFF) >> 8
        return target if target < TARGETS_MAX else None
    first_and_shift = MAJORS.get(devid >> 8)
    if first_and_shift is None:
        return None
    first, shift = first_and_shift
    return first + ((devid & 0xFF) >> shift)
