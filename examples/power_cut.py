# ruff: noqa: INP001 - a script, in no package
"""A small log on a disk that loses its power after every write: what is found is whole.

python examples/power_cut.py

It writes a record, flushes, then the sector that counts the records. Power goes after each, with
every subset of the writes since the last flush kept.
"""

from __future__ import annotations

from itertools import combinations

from xenpv import Disk, MemoryImage, Platform
from xenpv.host.writecache import WriteCache
from xenpv.vbd.disk import Disk as GuestDisk

SECTOR = 512


def record(number: int) -> bytes:
    return (b"record %d" % number).ljust(SECTOR, b".")


def append(disk: GuestDisk, number: int, *, careful: bool) -> None:
    disk.write(1 + number, record(number))
    if careful:
        disk.flush()  # the record is there before anybody counts it
    disk.write(0, bytes([number + 1]) * SECTOR)


def is_whole(data: bytes) -> bool:
    return all(data[(1 + at) * SECTOR :][:SECTOR] == record(at) for at in range(data[0]))


def torn(*, careful: bool) -> list[bool]:
    """Whether each disk that a loss of power may leave is not whole."""
    drive = WriteCache(MemoryImage(bytes(1 << 16)))
    found = []
    with Platform(seed=1) as xen:
        disk = xen.create(name="web", disks=[Disk(drive)]).start().disks[0]
        for number in range(4):
            append(disk, number, careful=careful)
            pending = range(len(drive.pending))
            for size in range(len(pending) + 1):
                left = (drive.power_off(keep) for keep in combinations(pending, size))
                found += [not is_whole(bytes(one.buffer)) for one in left]
    return found


def main() -> None:
    for careful in (True, False):
        found = torn(careful=careful)
        how = "with" if careful else "without"
        print(f"{how} the flush: {sum(found)} of {len(found)} disks are not whole")


if __name__ == "__main__":
    main()
