# ruff: noqa: INP001 - a script, in no package
"""Make the disk images that examples/*.cfg name: file systems with files in them.

    python examples/make_image.py [DIRECTORY]

ext4 where mkfs.ext4 is installed (Debian: e2fsprogs), else a FAT16 of our own making. Files
that are there already are left alone. Prints a line for each image made.
"""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

MIB = 1 << 20
SECTOR = 512

# name: (size in MiB, kind)
IMAGES = {
    "windows.img": (64, "ext4"),
    "web.img": (32, "ext4"),
    "db.img": (16, "ext4"),
    "log.img": (8, "blank"),
    "linux.img": (16, "ext4"),
    "shared.img": (16, "fat"),
}

# The smallest FAT that is 16 bits wide, and the first that is 32, in clusters (Microsoft's
# FAT specification 1.03, "FAT Type Determination").
FAT16_MIN, FAT16_MAX = 4085, 65524
ROOT_ENTRIES = 512
MEDIA_FIXED = 0xF8
ARCHIVE, VOLUME_ID = 0x20, 0x08
DATE = (2024 - 1980) << 9 | 1 << 5 | 1  # a fixed day, so that one input gives one image


def contents(seed: int, blob_bytes: int) -> dict[str, bytes]:
    """Files to put in an image, by 8.3 name: a text, an empty file and one that fills it."""
    return {
        "README.TXT": b"A disk of an xenpv example.\r\n" * 40,
        "EMPTY.DAT": b"",
        "BLOB.BIN": random.Random(seed).randbytes(blob_bytes),
    }


def fat16(size_bytes: int, files: Mapping[str, bytes]) -> bytes:
    """A FAT16 volume with `files` in its root directory.

    Raises ValueError for a size that FAT16 cannot have or that the files do not fit in.
    """
    sectors = size_bytes // SECTOR
    root_sectors = ROOT_ENTRIES * 32 // SECTOR
    for per_cluster in (1, 2, 4, 8, 16, 32, 64):
        # A little too many for the clusters: the FATs themselves take room.
        fat_sectors = -(-(sectors // per_cluster + 2) * 2 // SECTOR)
        data_start = 1 + 2 * fat_sectors + root_sectors
        clusters = (sectors - data_start) // per_cluster
        if FAT16_MIN <= clusters <= FAT16_MAX:
            break
    else:
        raise ValueError(f"a FAT16 of {size_bytes} bytes has too few clusters or too many")
    cluster_bytes = per_cluster * SECTOR
    fat = [0xFF00 | MEDIA_FIXED, 0xFFFF]
    root = [_entry(b"XENPV      ", VOLUME_ID, 0, 0)]
    data = b""
    for name, content in files.items():
        count = -(-len(content) // cluster_bytes)
        first = len(fat) if count else 0
        fat += [*range(first + 1, first + count), 0xFFFF] if count else []
        stem, _, extension = name.partition(".")
        root.append(_entry(f"{stem:8}{extension:3}".encode("ascii"), ARCHIVE, first, len(content)))
        data += content.ljust(count * cluster_bytes, b"\0")
    if len(fat) - 2 > clusters or len(root) > ROOT_ENTRIES:
        raise ValueError(f"the files do not fit in {size_bytes} bytes")
    table = struct.pack(f"<{len(fat)}H", *fat).ljust(fat_sectors * SECTOR, b"\0")
    volume = _boot_sector(sectors, per_cluster, fat_sectors) + table * 2
    volume += b"".join(root).ljust(root_sectors * SECTOR, b"\0") + data
    return volume.ljust(size_bytes, b"\0")


def _boot_sector(sectors: int, per_cluster: int, fat_sectors: int) -> bytes:
    small, large = (sectors, 0) if sectors < 1 << 16 else (0, sectors)
    block = struct.pack(
        "<3s8sHBHBHHBHHHII",
        b"\xeb\x3c\x90",
        b"XENPV1.0",
        SECTOR,
        per_cluster,
        1,  # reserved sectors: this one
        2,  # FATs
        ROOT_ENTRIES,
        small,
        MEDIA_FIXED,
        fat_sectors,
        63,  # geometry, of no use here
        255,
        0,
        large,
    )
    block += struct.pack("<BBBI11s8s", 0x80, 0, 0x29, 0x2024_0101, b"XENPV      ", b"FAT16   ")
    return block.ljust(SECTOR - 2, b"\0") + b"\x55\xaa"


def _entry(name: bytes, attribute: int, cluster: int, size: int) -> bytes:
    times = (0, 0, DATE, DATE, 0, 0, DATE)
    tenth, made_time, made, read, high, time, date = times
    return struct.pack(
        "<11sBBBHHHHHHHI",
        name, attribute, 0, tenth, made_time, made, read, high, time, date, cluster, size,
    )  # fmt: skip


def make_ext4(path: Path, size_mib: int, files: Mapping[str, bytes]) -> bool:
    """An ext4 made by mkfs.ext4; False, and nothing made, where that is not installed."""
    program = shutil.which("mkfs.ext4") or shutil.which("mkfs.ext4", path="/usr/sbin:/sbin")
    if program is None:
        return False
    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            (Path(name) / file).write_bytes(content)
        command = [program, "-q", "-F", "-L", "xenpv", "-d", name, str(path), f"{size_mib}M"]
        # It says on stdout that it creates a file, even with -q.
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own words
    return True


def make(path: Path, size_mib: int, kind: str) -> str:
    """One image, whole or not at all; what it became: "ext4", "fat" or "blank"."""
    unfinished = path.with_suffix(".tmp")
    files = contents(seed=size_mib, blob_bytes=size_mib * MIB // 4)
    if kind == "blank":
        with unfinished.open("wb") as file:
            file.truncate(size_mib * MIB)
    elif kind == "fat" or not make_ext4(unfinished, size_mib, files):
        unfinished.write_bytes(fat16(size_mib * MIB, files))
        kind = "fat"
    unfinished.replace(path)
    return kind


def main(arguments: list[str]) -> None:
    directory = Path(arguments[0] if arguments else "examples/images")
    directory.mkdir(parents=True, exist_ok=True)
    for name, (size_mib, kind) in IMAGES.items():
        path = directory / name
        if not path.exists():
            print(f"{path}: {size_mib} MiB, {make(path, size_mib, kind)}")


if __name__ == "__main__":
    main(sys.argv[1:])
