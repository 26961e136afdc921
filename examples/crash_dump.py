# ruff: noqa: INP001 - a script, in no package
"""A guest that crashes with I/O in flight, and what a debugger finds in its dump.

python examples/crash_dump.py

The guest keeps its dump on a disk of its own. Its kernel stops while the other disk is written
to; from then on only the crash driver runs, which takes the disk from the driver that died and
writes all of memory to it. The reader here knows no more than the layout of a dump's header.
"""

from __future__ import annotations

import struct

from xenpv import Disk, MemoryImage, Platform

SECTOR = 512
HEADER = 8192
PAGE = 4096
FIRST = 64  # of the dump on its disk


def pages(dump: memoryview) -> dict[int, bytes]:
    """Every page of a complete memory dump by its page frame number."""
    assert bytes(dump[:8]) == b"PAGEDU64"
    (runs,) = struct.unpack_from("<I", dump, 0x88)
    found: dict[int, bytes] = {}
    at = HEADER
    for run in range(runs):
        base, count = struct.unpack_from("<QQ", dump, 0x98 + 16 * run)
        for pfn in range(base, base + count):
            found[pfn] = bytes(dump[at : at + PAGE])
            at += PAGE
    return found


def main() -> None:
    data, dumps = MemoryImage(bytearray(1 << 20)), MemoryImage(bytearray(20 << 20))
    with Platform(seed=1) as xen:
        guest = xen.create(name="web", memory_mib=16, disks=[Disk(data), Disk(dumps)]).start()
        guest.set_crash_dump(guest.disks[1], lba=FIRST)
        guest.disks[0].start_write(0, b"the last that it did".ljust(64 * SECTOR))
        reason = guest.crash(0xD1, 0x10, 2)
        stack = guest.crash_dump
        assert stack is not None
        print(f"reason {reason}, dump {stack.stage.value}")
    dump = memoryview(dumps.buffer)[FIRST * SECTOR :]
    code, first, second = struct.unpack_from("<I4xQQ", dump, 0x38)
    print(f"bug check {code:#x} ({first:#x}, {second:#x})")
    found = pages(dump)
    hits = [pfn for pfn, page in found.items() if page.startswith(b"the last that it did")]
    print(f"{len(found)} pages, and what it wrote is in page {hits[0]:#x}")


if __name__ == "__main__":
    main()
