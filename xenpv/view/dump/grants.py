"""Grant tables from their bytes, version 1 and 2 (grant_table.h).

An entry is what the granter wrote. Whether somebody uses it stands beside it in version 1
(GTF_reading, GTF_writing, which Xen sets) and in the status frames of version 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.abi.layout import packer
from xenpv.view.dump.table import ROWS_MAX, Cell, Dump, limited

TYPE_MASK: Final[int] = lib.GTF_type_mask
TYPES: Final = {
    int(lib.GTF_permit_access): "permit_access",
    int(lib.GTF_accept_transfer): "accept_transfer",
    int(lib.GTF_transitive): "transitive",
}
PERMIT: Final[int] = lib.GTF_permit_access
TRANSFER: Final[int] = lib.GTF_accept_transfer
TRANSITIVE: Final[int] = lib.GTF_transitive
SUB_PAGE: Final[int] = lib.GTF_sub_page
READING: Final[int] = lib.GTF_reading
WRITING: Final[int] = lib.GTF_writing
# By the type: bits beside it. Of a transfer bits 2 and 3 mean something else.
ACCESS_FLAGS: Final = {
    int(lib.GTF_readonly): "readonly",
    READING: "reading",
    WRITING: "writing",
    int(lib.GTF_PWT): "PWT",
    int(lib.GTF_PCD): "PCD",
    int(lib.GTF_PAT): "PAT",
    SUB_PAGE: "sub_page",
}
TRANSFER_FLAGS: Final = {
    int(lib.GTF_transfer_committed): "transfer_committed",
    int(lib.GTF_transfer_completed): "transfer_completed",
}
RESERVED: Final = {
    int(lib.GNTTAB_RESERVED_CONSOLE): "console",
    int(lib.GNTTAB_RESERVED_XENSTORE): "xenstore",
}
PAGE_SIZE: Final = 4096
V1: Final = packer("grant_entry_v1")
FULL: Final = packer("grant_entry_v2", "full_page")
SUB: Final = packer("grant_entry_v2", "sub_page")
TRANS: Final = packer("grant_entry_v2", "transitive")
COLUMNS: Final = ("ref", "type", "flags", "domid", "frame", "detail", "what", "wrong")


@attrs.frozen(kw_only=True)
class Entry:
    """One entry in use. `frame` is the granter's gfn, `detail` what version 2 alone has."""

    ref: int
    kind: int
    flags: int
    domid: int
    frame: int | None
    detail: str = ""
    wrong: str = ""

    @property
    def named_flags(self) -> str:
        known = TRANSFER_FLAGS if self.kind == TRANSFER else ACCESS_FLAGS
        rest = self.flags & ~TYPE_MASK & ~sum(known)
        names = [name for bit, name in known.items() if self.flags & bit]
        return " ".join([*names, *([f"{rest:#x}"] if rest else [])])

    @property
    def in_use(self) -> bool:
        """Whether Xen says that somebody reads or writes it now."""
        return self.kind != TRANSFER and bool(self.flags & (READING | WRITING))


def entries_v1(data: bytes, first: int = 0) -> list[Entry]:
    """What is granted in whole frames of version 1; `first`: the reference of the first entry."""
    found = []
    whole = len(data) - len(data) % V1.size
    for at, (flags, domid, frame) in enumerate(V1.iter_unpack(data[:whole])):
        kind = flags & TYPE_MASK
        if not kind:
            continue
        wrong = "transitive, which version 1 has not" if kind == TRANSITIVE else ""
        found.append(
            Entry(ref=first + at, kind=kind, flags=flags, domid=domid, frame=frame, wrong=wrong)
        )
    return found


def entries_v2(data: bytes, first: int = 0, status: bytes = b"") -> list[Entry]:
    """As `entries_v1`, of version 2. `status`: the status frames, two bytes an entry."""
    found = []
    for at in range(len(data) // FULL.size):
        raw = data[at * FULL.size : (at + 1) * FULL.size]
        flags, domid = raw[0] | raw[1] << 8, raw[2] | raw[3] << 8
        kind = flags & TYPE_MASK
        if not kind:
            continue
        used = int.from_bytes(status[2 * at : 2 * at + 2], "little") & (READING | WRITING)
        entry = Entry(
            ref=first + at, kind=kind, flags=flags | used, domid=domid, frame=FULL.unpack(raw)[-1]
        )
        if kind == TRANSITIVE:
            _, _, trans_domid, _, gref, *_ = TRANS.unpack(raw)
            entry = attrs.evolve(entry, frame=None, detail=f"ref {gref} of d{trans_domid}")
        elif kind == PERMIT and flags & SUB_PAGE:
            *_, offset, length, frame = SUB.unpack(raw)
            beyond = "the bytes cross the page" if offset + length > PAGE_SIZE else ""
            detail = f"bytes {offset} to {offset + length - 1}" if length else "no bytes"
            entry = attrs.evolve(entry, frame=frame, detail=detail, wrong=beyond)
        found.append(entry)
    return found


Naming = Callable[[Entry], str]


def _reserved(entry: Entry) -> str:
    return RESERVED.get(entry.ref, "")


def table(
    found: list[Entry], kind: str, name: str, *, nr_entries: int, words: dict[str, Cell],
    what: Naming = _reserved, most: int = ROWS_MAX, wrong: tuple[str, ...] = (),
    has_status: bool = True,
) -> Dump:  # fmt: skip
    """Entries as a dump; `what` says of each what it is for, or by whom it is mapped."""
    rows: list[list[Cell]] = [
        [
            one.ref,
            TYPES[one.kind],
            one.named_flags,
            one.domid,
            one.frame,
            one.detail,
            what(one),
            one.wrong,
        ]
        for one in found
    ]
    in_use = sum(one.in_use for one in found)
    return Dump(
        kind=kind,
        name=name,
        words={**words, "entries": nr_entries},
        counts={"granted": len(found), "in_use": in_use if has_status else None},
        wrong=wrong,
        tables=limited("granted", COLUMNS, rows, most),
    )


def page_v1(data: bytes, name: str, *, most: int = ROWS_MAX) -> Dump:
    """Frames of version 1 as somebody got them, from the table's first on."""
    nr_entries = len(data) // V1.size
    return table(entries_v1(data), "grant_v1", name, nr_entries=nr_entries, words={}, most=most)


def page_v2(data: bytes, name: str, *, most: int = ROWS_MAX) -> Dump:
    """Frames of version 2, without the status frames: who uses an entry is not in them."""
    return table(
        entries_v2(data), "grant_v2", name, nr_entries=len(data) // FULL.size, words={},
        most=most, has_status=False,
    )  # fmt: skip


def page_status(data: bytes, name: str, *, most: int = ROWS_MAX) -> Dump:
    """Status frames of version 2: two bytes an entry, which Xen alone writes."""
    rows: list[list[Cell]] = []
    for ref in range(len(data) // 2):
        status = data[2 * ref] | data[2 * ref + 1] << 8
        if status:
            rest = status & ~(READING | WRITING)
            names = [ACCESS_FLAGS[bit] for bit in (READING, WRITING) if status & bit]
            wrong = f"{rest:#x} is no status" if rest else ""
            rows.append([ref, " ".join(names), wrong])
    return Dump(
        kind="grant_status",
        name=name,
        words={"entries": len(data) // 2},
        counts={"in_use": len(rows)},
        tables=limited("in use", ("ref", "status", "wrong"), rows, most),
    )
