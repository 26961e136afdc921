"""A reader of dumps that knows nothing of their writer, and guests that write them.

Not a test module. Offsets are those of DUMP_HEADER64 as public readers have them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from xenpv import Disk, Guest, MemoryImage, Platform
from xenpv.vbd.crash.driver import Mode
from xenpv.vbd.crash.stack import DumpStack, Stage
from xenpv.xen.domain import Domain

MEMORY_MIB = 9  # 8 MiB of it are video memory
PAGES = MEMORY_MIB * 256
FILE_SIZE = 8192 + PAGES * 4096


@attrs.frozen
class DumpReader:
    """A complete memory dump, or a hibernation file, read from bytes."""

    data: bytes

    def field(self, form: str, at: int) -> tuple[int, ...]:
        return struct.unpack_from("<" + form, self.data, at)

    @property
    def signature(self) -> bytes:
        return self.data[:8]

    @property
    def runs(self) -> list[tuple[int, int]]:
        (count,) = self.field("I", 0x88)
        assert count <= 42
        return [self.field("QQ", 0x98 + 16 * index) for index in range(count)]  # type: ignore[misc]

    def pages(self) -> dict[int, bytes]:
        """Every page by its pfn."""
        found: dict[int, bytes] = {}
        at = 8192
        for base, count in self.runs:
            for pfn in range(base, base + count):
                found[pfn] = self.data[at : at + 4096]
                assert len(found[pfn]) == 4096, f"the file ends before page {pfn:#x}"
                at += 4096
        assert (len(found),) == self.field("Q", 0x90)
        assert (at,) == self.field("Q", 0xFA0)
        return found


def memory(domain: Domain, pfns: object) -> dict[int, bytes]:
    """What the guest has at each pfn; zeros where there is no memory of its own."""
    hvm, me = domain.hvm, domain.DOMID_SELF
    return {
        pfn: domain.read(pfn, 0, 4096) if hvm.get_mem_type(me, pfn) == 0 else bytes(4096)
        for pfn in pfns  # type: ignore[attr-defined]
    }


def differing(stack: DumpStack, data: bytes) -> list[int]:
    """pfns whose page in the file is not the guest's, but for those of the crash driver."""
    pages = DumpReader(data).pages()
    now = memory(stack.domain, pages)
    return [pfn for pfn in pages if pages[pfn] != now[pfn] and pfn not in stack.image.pages]


@attrs.define(eq=False)
class Crashing:
    """A guest with one disk, and a dump stack that is loaded in it."""

    xen: Platform
    guest: Guest
    image: MemoryImage
    stack: DumpStack

    def crash(self, *parameters: int) -> int:
        return self.guest.crash(0xE2, *parameters)

    @property
    def data(self) -> bytes:
        """The file, from where it was to be."""
        start = self.stack.lba * 512
        return bytes(self.image.buffer[start : start + FILE_SIZE])

    def check(self) -> None:
        assert (self.stage, self.stack.failure) == (Stage.DONE, "")
        assert not differing(self.stack, self.data)

    @property
    def stage(self) -> Stage:
        return self.stack.stage


def load(guest: Guest, mode: Mode = Mode.DUMP, lba: int = 0, **named: object) -> DumpStack:
    """A stack in a guest that has its bus."""
    stack = DumpStack(guest.created.domain, mode, lba, **named)  # type: ignore[arg-type]
    assert guest.bus is not None
    if mode is Mode.DUMP:
        guest.bus.crash.dumper = stack
    return stack


@contextmanager
def made(
    mode: Mode = Mode.DUMP, lba: int = 0, dom0_vcpus: int = 1, **named: object
) -> Iterator[Crashing]:
    """A guest that has started, with one disk that is to have its dump."""
    with Platform(seed=5, dom0_vcpus=dom0_vcpus) as xen:
        image = MemoryImage(bytearray(12 << 20))
        guest = xen.create(name="web", memory_mib=MEMORY_MIB, disks=[Disk(image)], **named)  # type: ignore[arg-type]
        guest.start()
        assert guest.bus is not None
        guest.bus.store.write(f"data/scsi/target/0/{mode.value}", "1")
        yield Crashing(xen, guest, image, load(guest, mode, lba))
