"""The file that a dump or hibernation stack writes: a header, then every page of memory.

A dump is Windows' complete memory dump of a 64-bit system (DUMP_HEADER64 of wdmguid's kernel
debugger headers, signature PAGEDU64), with the fields that a reader needs: no registers and no
page tables, which this model has not. A hibernation file has the same layout under another
signature; Windows' own is compressed, and no two releases agree on it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import attrs

from xenpv.xen.domain import PAGE_SIZE, Domain

DUMP_SIGNATURE: Final = b"PAGEDU64"
HIBER_SIGNATURE: Final = b"HIBRPV64"
HEADER_SIZE: Final = 8192
IMAGE_FILE_MACHINE_AMD64: Final = 0x8664
DUMP_TYPE_FULL: Final = 1
MASK: Final = (1 << 64) - 1

# Offset and format of each field.
MACHINE_AND_CPUS: Final = (0x30, struct.Struct("<II"))
BUGCHECK: Final = (0x38, struct.Struct("<I"))
PARAMETERS: Final = (0x40, struct.Struct("<QQQQ"))
NUMBER_OF_RUNS: Final = (0x88, struct.Struct("<I"))
NUMBER_OF_PAGES: Final = (0x90, struct.Struct("<Q"))
RUNS: Final = (0x98, struct.Struct("<QQ"))
RUNS_MAX: Final = 42  # the descriptor's buffer has 700 bytes
DUMP_TYPE: Final = (0xF98, struct.Struct("<I"))
FILE_SIZE: Final = (0xFA0, struct.Struct("<Q"))


def memory_runs(domain: Domain) -> list[tuple[int, int]]:
    """The guest's memory map as its firmware told it: (first pfn, pages), ascending."""
    return [(run.start, len(run)) for run in domain.ram_runs(domain.pages.size) if len(run)]


@attrs.frozen
class MemoryFile:
    """`runs` of pfns follow the header in their order."""

    signature: bytes
    runs: tuple[tuple[int, int], ...]
    cpus: int
    code: int = 0
    parameters: tuple[int, ...] = (0, 0, 0, 0)

    @property
    def pages(self) -> int:
        return sum(count for _first, count in self.runs)

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return HEADER_SIZE + self.pages * PAGE_SIZE

    def header(self) -> bytes:
        """HEADER_SIZE bytes."""
        assert len(self.runs) <= RUNS_MAX
        data = bytearray(HEADER_SIZE)
        data[: len(self.signature)] = self.signature
        for (at, form), values in (
            (MACHINE_AND_CPUS, (IMAGE_FILE_MACHINE_AMD64, self.cpus)),
            (BUGCHECK, (self.code & 0xFFFF_FFFF,)),
            (PARAMETERS, [one & MASK for one in self.parameters]),
            (NUMBER_OF_RUNS, (len(self.runs),)),
            (NUMBER_OF_PAGES, (self.pages,)),
            (DUMP_TYPE, (DUMP_TYPE_FULL,)),
            (FILE_SIZE, (self.size,)),
        ):
            form.pack_into(data, at, *values)
        at, form = RUNS
        for index, run in enumerate(self.runs):
            form.pack_into(data, at + index * form.size, *run)
        return bytes(data)

    def pieces(self, most: int) -> list[tuple[int, int]]:
        """(pfn, pages) of at most `most` adjacent pages, in the order of the file."""
        return [
            (pfn, min(most, first + count - pfn))
            for first, count in self.runs
            for pfn in range(first, first + count, most)
        ]


def numbers(parameters: Sequence[int | str]) -> tuple[int, ...]:
    """Bug check parameters as they lie in a header; a text, which would be an address, is 0."""
    given = [one if isinstance(one, int) else 0 for one in parameters]
    return tuple([*given, 0, 0, 0, 0][:4])
