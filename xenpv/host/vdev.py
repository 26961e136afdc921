"""Names and numbers of virtual disks (xen-vbd-interface(7)).

The number is what a disk's directory is called: `device/vbd/51712` is xvda.
"""

from __future__ import annotations

import re
from functools import lru_cache

from xenpv.host.position import NOWHERE, Position, shown

NUMBER_MAX = (1 << 31) - 1  # INT_MAX
DISKS_MAX = 1 << 20  # of xvd names
# XenVbd presents SCSI targets 0 to 254 on its one bus.
WINDOWS_TARGET_MAX = 254

_EXTENDED = 1 << 28
_XVD_MAJOR = 202
SCSI_MAJOR = 8
# The target number of a major's first disk; an IDE major has two disks of 64 minors.
_IDE_TARGETS = {3: 0, 22: 2, 33: 4, 34: 6, 56: 8, 57: 10, 88: 12, 89: 14}

_LETTERS = r"(xvd|hd|sd)([a-z]{1,5})(0|[1-9][0-9]{0,2})?\Z"
_NUMBERED = r"d(0|[1-9][0-9]{0,6})p(0|[1-9][0-9]{0,2})\Z"
_PLAIN = r"0[xX][0-9a-fA-F]{1,16}\Z|0[0-7]{0,22}\Z|[1-9][0-9]{0,19}\Z"


def number(name: str, position: Position = NOWHERE) -> int:
    """The device number of `xvda1`, `d0p1`, `hda`, `sda` or of a plain C number.

    An empty name is device 0, as in libxl. ConfigError: no such name.
    """
    found = _number(name)
    if found is None:
        raise position.error(
            f"invalid or unsupported virtual disk identifier '{shown(name)}': expected xvda, "
            "xvdb, ..., hda to hdd, sda to sdp, dNpN (each perhaps with a partition) or a number"
        )
    return found


@lru_cache(1024)
def _number(name: str) -> int | None:
    if re.match(_PLAIN, name):
        base = 16 if name[1:2] in {"x", "X"} else 8 if name.startswith("0") else 10
        plain = int(name, base)
        return plain if plain <= NUMBER_MAX else None
    if match := re.match(_NUMBERED, name):
        return _of_xvd(int(match[1]), int(match[2]))
    match = re.match(_LETTERS, name)
    if match is None:
        return 0 if name == "" else None
    kind, letters, digits = match.groups()
    if digits == "0":  # d0p0 is a name, xvda0 is not
        return None
    disk, part = _disk(letters), int(digits or 0)
    if kind == "xvd":
        return _of_xvd(disk, part)
    if kind == "sd":
        return SCSI_MAJOR << 8 | disk << 4 | part if disk <= 15 and part <= 15 else None
    major = 3 if disk < 2 else 22
    return major << 8 | (disk & 1) << 6 | part if disk <= 3 and part <= 63 else None


def xvd(disk: int) -> int:
    """The device number of a whole disk by its place: xvda is 0."""
    number = _of_xvd(disk, 0)
    if number is None:
        raise NOWHERE.error(f"disk {disk}: there are {DISKS_MAX} xvd names")
    return number


def _of_xvd(disk: int, part: int) -> int | None:
    if disk >= DISKS_MAX or part > 255:
        return None
    if disk <= 15 and part <= 15:
        return _XVD_MAJOR << 8 | disk << 4 | part
    return _EXTENDED | disk << 8 | part


def _disk(letters: str) -> int:
    # Bijective base 26: a..z are 0..25, aa is 26.
    disk = 0
    for letter in letters:
        disk = disk * 26 + ord(letter) - ord("a") + 1
    return disk - 1


def name(number: int) -> str:
    """The xvd name of a device number, 0 to 2^31 - 1.

    As libxl does it, from the minor alone (libxl_device.c libxl__devid_to_vdev): hdb, whose minor
    is 64, comes back as xvde.
    """
    if number & _EXTENDED:
        disk, part = divmod(number & ~_EXTENDED, 256)
    else:
        disk, part = divmod(number & 0xFF, 16)
    letters = ""
    disk += 1
    while disk:
        disk, digit = divmod(disk - 1, 26)
        letters = chr(ord("a") + digit) + letters
    return f"xvd{letters}{part or ''}"


def windows_target(number: int) -> int | None:
    """The SCSI target XenVbd makes of a device number; None: it presents no such disk.

    Partition bits are ignored, so hda, sda, xvda and xvda1 are all target 0 (XenVbd target.c).
    """
    if number >= 2 << 28:
        return None
    if number & _EXTENDED:
        target = (number & 0xFFFFF) >> 8
        return target if target <= WINDOWS_TARGET_MAX else None
    major = number >> 8
    if major in {_XVD_MAJOR, SCSI_MAJOR}:
        return (number & 0xF0) >> 4
    if major in _IDE_TARGETS:
        return _IDE_TARGETS[major] + ((number & 0xC0) >> 6)
    return None
