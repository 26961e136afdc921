"""Core files of domains, as `xl dump-core` writes them (docs/misc/dump-core-format.txt).

An ELF file without program headers. Its section .note.Xen says that it is Xen's; .xen_pages has
the pages and .xen_pfn their pfns, in the same order. What was never touched reads zero and is
left out, and so are the registers: vcpus have none here.
"""

from __future__ import annotations

from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.abi._kernel import ffi, lib
from xenpv.errors import ConfigError
from xenpv.xen.domain import PAGE_SIZE

if TYPE_CHECKING:
    from xenpv.host.libxl import Created
    from xenpv.xen.domain import Domain

EHDR: Final = Struct("<16sHHIQQQIHHHHHH")
SHDR: Final = Struct("<IIQQQQIIQQ")
NHDR: Final = Struct("<III")
IDENT: Final = b"\x7fELF\x02\x01\x01"  # 64 bits, little-endian, version 1
ET_CORE: Final = 4
EM_X86_64: Final = 62
SHT_PROGBITS: Final = 1
SHT_STRTAB: Final = 3
SHT_NOTE: Final = 7

# XEN_ELFNOTE_DUMPCORE_* and xen_dumpcore_elfnote_* (xen/include/public/elfnote.h, xenctrl_dom.h)
NOTE_NONE: Final = 0x2000000
NOTE_HEADER: Final = 0x2000001
NOTE_FORMAT_VERSION: Final = 0x2000003
HEADER: Final = Struct("<QQQQ")  # magic, vcpus, pages, bytes of a page
MAGIC_PV: Final = 0xF00FEBED
MAGIC_HVM: Final = 0xF00FEBEE
FORMAT_VERSION: Final = Struct("<Q").pack(1)

BATCH_PAGES: Final = 1024


def _note(kind: int, body: bytes) -> bytes:
    return NHDR.pack(4, len(body), kind) + b"Xen\0" + body


def touched(domain: Domain) -> list[int]:
    """The pfns of its memory that a frame stands for, ascending."""
    pfns: list[int] = []
    out = ffi.new("uint32_t[]", BATCH_PAGES)
    first = 0
    while count := lib.p2m_touched(domain.kernel, first, out, BATCH_PAGES):
        pfns += list(out[0:count])
        first = pfns[-1] + 1
    return pfns


@attrs.frozen
class Section:
    """One of the file; `entry` is the bytes of an entry, or 0."""

    name: str
    kind: int
    body: bytes
    entry: int = 0


def core(domain: Domain, *, hvm: bool) -> bytes:
    """The core file of a domain whose memory is still there."""
    pfns = touched(domain)
    pages = b"".join(domain.read(pfn, 0, PAGE_SIZE) for pfn in pfns)
    header = HEADER.pack(MAGIC_HVM if hvm else MAGIC_PV, domain.vcpus, len(pfns), PAGE_SIZE)
    notes = _note(NOTE_NONE, b"") + _note(NOTE_HEADER, header)
    notes += _note(NOTE_FORMAT_VERSION, FORMAT_VERSION)
    numbers = Struct(f"<{len(pfns)}Q").pack(*pfns)
    return _elf(
        Section(".note.Xen", SHT_NOTE, notes),
        Section(".xen_pages", SHT_PROGBITS, pages, PAGE_SIZE),
        Section(".xen_pfn", SHT_PROGBITS, numbers, 8),
    )


def _elf(*sections: Section) -> bytes:
    names = "\0".join(("", ".shstrtab", *(one.name for one in sections), "")).encode()
    listed = (Section(".shstrtab", SHT_STRTAB, names), *sections)
    nr_headers = len(listed) + 1  # the first names nothing
    at = EHDR.size + nr_headers * SHDR.size
    headers = [bytes(SHDR.size)]
    bodies = []
    for one in listed:
        padding = -at % PAGE_SIZE if one.entry == PAGE_SIZE else -at % 8
        bodies += [bytes(padding), one.body]
        at += padding
        name, size = names.index(f"\0{one.name}\0".encode()) + 1, len(one.body)
        align = PAGE_SIZE if one.entry == PAGE_SIZE else 8
        headers.append(SHDR.pack(name, one.kind, 0, 0, at, size, 0, 0, align, one.entry))
        at += size
    ident = IDENT.ljust(16, b"\0")
    first = EHDR.pack(
        ident, ET_CORE, EM_X86_64, 1, 0, 0, EHDR.size, 0, EHDR.size, 0, 0, SHDR.size, nr_headers, 1
    )
    return b"".join((first, *headers, *bodies))


class CoreDumps:
    """Where core files go: `directory`/NAME, or `cores` by name while there is none."""

    def __init__(self) -> None:
        self.directory: Path | None = None
        self.cores: dict[str, bytes] = {}

    def dump(self, made: Created) -> str:
        """Where it is. An earlier one of that name is replaced. OSError; ConfigError: the name."""
        name = made.config.name
        if self.directory is not None and ("/" in name or name in (".", "..")):
            raise ConfigError(f"a domain named {name!r} cannot name its core file")
        data = core(made.domain, hvm=made.config.is_hvm)
        if self.directory is None:
            self.cores[name] = data
            return f"memory, as {name}"
        path = self.directory / name
        path.write_bytes(data)
        return str(path)
