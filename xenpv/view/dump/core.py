"""Cores of domains, as `xl dump-core` and this project's toolstack write them.

docs/misc/dump-core-format.txt: an ELF file whose section .xen_pages has the pages, and .xen_pfn
(of a translated domain) or .xen_p2m (of a PV one: pairs of pfn and gmfn) their numbers. Nothing
in it says where rings are. The store's and the console's pages of an HVM guest are where libxc
puts them, a PV guest's are in its start_info; other rings are found by their looks, and of one
of several pages only the first is.
"""

from __future__ import annotations

from pathlib import Path
from struct import Struct
from typing import BinaryIO, Final

import attrs

from xenpv.abi.layout import offsetof
from xenpv.errors import ConfigError
from xenpv.view.dump.memory import PAGE_SIZE, SPECIAL, Known, Memory, select
from xenpv.view.dump.source import Selection
from xenpv.view.dump.table import Dumps

MAGIC: Final = b"\x7fELF"
IDENT: Final = b"\x7fELF\x02\x01"  # 64 bits, little-endian
EHDR: Final = Struct("<16sHHIQQQIHHHHHH")
SHDR: Final = Struct("<IIQQQQIIQQ")
SECTIONS_MAX: Final = 256
NAMES_BYTES_MAX: Final = 1 << 16
PAGES_MAX: Final = 1 << 22  # 16 GiB
START_INFO: Final = b"xen-3.0-x86"
START_INFO_PAGES: Final = 4096  # how many of a PV guest's pages are looked at for it


@attrs.frozen
class Section:
    offset: int
    size: int


def dumps(path: Path, wanted: Selection) -> Dumps:
    """What is found in a core. ConfigError: it is none, or ends early."""
    sections = _sections(path)
    pages = sections.get(".xen_pages")
    if pages is None:
        raise ConfigError("is no core of a domain: it has no section .xen_pages", file=str(path))
    numbers, pairs = sections.get(".xen_pfn"), sections.get(".xen_p2m")
    if numbers is None and pairs is None:
        text = "is no core of a domain: neither .xen_pfn nor .xen_p2m is in it"
        raise ConfigError(text, file=str(path))
    step = 1 if numbers is not None else 2
    words = _words(path, numbers or pairs)
    count = min(len(words) // step, pages.size // PAGE_SIZE)
    places = {words[at * step]: pages.offset + at * PAGE_SIZE for at in range(count)}
    frames = {} if step == 1 else {words[at * 2 + 1]: words[at * 2] for at in range(count)}
    memory = Memory(path, places)
    return select(memory, lambda: _known(memory, frames), wanted)


def _known(memory: Memory, frames: dict[int, int]) -> list[Known]:
    known = [one for one in SPECIAL if one.pfns[0] in memory.places]
    if frames:
        known = _of_start_info(memory, frames)
    taken = [one.pfns[0] for one in known]
    for pfn, kind in memory.likely():
        if pfn not in taken:
            known.append(Known(f"looks like {kind} at pfn {pfn:#x}", kind, (pfn,)))
    return known


def _of_start_info(memory: Memory, frames: dict[int, int]) -> list[Known]:
    """The pages that a PV guest's start_info names by their machine frames."""
    for pfn in list(memory.places)[:START_INFO_PAGES]:
        data = memory.read((pfn,)) or b""
        if data.startswith(START_INFO):
            found = []
            for name, kind, field in (
                ("store ring", "xenstore", "store_mfn"),
                ("console", "console", "console"),
            ):
                at = offsetof("start_info", field)
                frame = int.from_bytes(data[at : at + 8], "little")
                if frame in frames:
                    found.append(Known(name, kind, (frames[frame],)))
            return found
    return []


def _sections(path: Path) -> dict[str, Section]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _read(file, size, path)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from None


def _read(file: BinaryIO, size: int, path: Path) -> dict[str, Section]:
    def error(text: str) -> ConfigError:
        return ConfigError(text, file=str(path))

    head = file.read(EHDR.size)
    if len(head) < EHDR.size:
        raise error(f"byte {len(head)}: truncated: an ELF header has {EHDR.size} bytes")
    if not head.startswith(IDENT):
        raise error("is an ELF file, and no core of a domain: expected 64 bits, little-endian")
    _, _, _, _, _, _, at, _, _, _, _, entry, count, names_at = EHDR.unpack(head)
    if entry != SHDR.size or not 0 < count <= SECTIONS_MAX or names_at >= count:
        raise error(f"is no core of a domain: {count} sections of {entry} bytes")
    file.seek(min(at, size))
    table = file.read(count * SHDR.size)
    if len(table) < count * SHDR.size:
        raise error(f"byte {size}: truncated in its table of sections")
    listed = [SHDR.unpack_from(table, number * SHDR.size) for number in range(count)]
    file.seek(min(listed[names_at][4], size))
    names = file.read(min(listed[names_at][5], NAMES_BYTES_MAX))
    found = {}
    for one in listed:
        name = names[one[0] :].partition(b"\0")[0].decode("ascii", "replace")
        offset, length = one[4], one[5]
        if name.startswith(".xen_") and (offset > size or offset + length > size):
            end = offset + length
            raise error(f"byte {size}: truncated in {name}: expected {end} bytes at least")
        found[name] = Section(offset, length)
    return found


def _words(path: Path, section: Section | None) -> tuple[int, ...]:
    assert section is not None
    count = section.size // 8
    if count > 2 * PAGES_MAX:
        raise ConfigError(f"has {count} pages: at most {PAGES_MAX} are read", file=str(path))
    try:
        with path.open("rb") as file:
            file.seek(section.offset)
            data = file.read(count * 8)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from None
    return Struct(f"<{len(data) // 8}Q").unpack(data[: len(data) // 8 * 8])
