"""What `xenpv dump --as` knows: the kinds of pages, how large they are, who decodes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, Protocol

import attrs

from xenpv.errors import LocalProtocolError
from xenpv.view import rings
from xenpv.view.dump import bytering, grants, ports, ringpage
from xenpv.view.dump.slots import SLOTS, SlotKind, plain
from xenpv.view.dump.table import ROWS_MAX, Dump
from xenpv.view.rings import FIRST_SLOT

PAGE_SIZE: Final = 4096
RING_PAGES_MAX: Final = 256
GRANT_PAGES_MAX: Final = 4096
FIFO_PAGES_MAX: Final = 128


class Decode(Protocol):
    """Any bytes to a dump; raises nothing."""

    def __call__(self, data: bytes, name: str, *, most: int = ROWS_MAX) -> Dump: ...


@attrs.frozen
class Kind:
    """A kind of page. `pages`: at most so many; a ring's number is a power of two."""

    name: str
    what: str
    decode: Decode
    pages: int = 1
    is_ring: bool = False

    def check(self, size: int) -> str:
        """Why so many bytes cannot be pages of it, or nothing."""
        if not size:
            return "is empty: expected whole pages of 4096 bytes"
        if size % PAGE_SIZE:
            return f"has {size} bytes: expected whole pages of 4096"
        pages = size // PAGE_SIZE
        if pages > self.pages:
            most = "one page" if self.pages == 1 else f"at most {self.pages} pages"
            return f"has {pages} pages: {self.name} has {most} of 4096 bytes"
        if self.is_ring and pages & pages - 1:
            return f"has {pages} pages: expected 1, 2, 4 or another power of two of a ring"
        return ""


def _ring(kind: SlotKind) -> Decode:
    def decode(data: bytes, name: str, *, most: int = ROWS_MAX) -> Dump:
        return ringpage.decode(data, kind, name, most=most)

    return decode


WHAT: Final = {
    "blkif": "block device ring, entries of a 64-bit frontend",
    "blkif_x86_32": "the same of a 32-bit frontend",
    "netif_tx": "network ring, from the guest",
    "netif_rx": "network ring, to the guest",
    "xen_netif_ctrl": "network control ring",
}
KINDS: Final[Mapping[str, Kind]] = {
    one.name: one
    for one in (
        *(
            Kind(name, WHAT[name], _ring(slots), RING_PAGES_MAX, is_ring=True)
            for name, slots in SLOTS.items()
        ),
        Kind("xenstore", "store ring", bytering.store),
        Kind("console", "console ring", bytering.console),
        Kind("grant_v1", "grant table, version 1", grants.page_v1, GRANT_PAGES_MAX),
        Kind("grant_v2", "grant table, version 2", grants.page_v2, GRANT_PAGES_MAX),
        Kind("grant_status", "status frames of version 2", grants.page_status, GRANT_PAGES_MAX),
        Kind("shared_info", "event channels, 2-level, 64-bit", ports.shared_info),
        Kind(
            "shared_info_x86_32", "the same of a 32-bit guest",
            partial(ports.shared_info, width=ports.X86_32),
        ),
        Kind("evtchn_fifo", "event array, FIFO", ports.fifo_words, FIFO_PAGES_MAX),
        Kind("evtchn_fifo_control", "control block, FIFO", ports.fifo_control),
    )
}  # fmt: skip


def known(name: str) -> Kind | None:
    """A kind by its name: one of KINDS, or a ring of a protocol that somebody declared."""
    found = KINDS.get(name)
    declared = rings.KINDS.get(name)
    if found is not None or declared is None:
        return found
    slots = SlotKind(name, declared.entry_size, plain(declared.request), plain(declared.response))
    return Kind(name, f"ring of {declared.device}", _ring(slots), RING_PAGES_MAX, is_ring=True)


def dump_page(data: bytes, kind: str, name: str = "page", *, most: int = ROWS_MAX) -> Dump:
    """Pages as somebody got them: whole ones of 4096 bytes, of a kind of KINDS.

    LocalProtocolError: no such kind, or so many bytes cannot be one. The contents may be any.
    """
    found = known(kind)
    if found is None:
        raise LocalProtocolError(f"no pages are called {kind!r}: expected {', '.join(KINDS)}")
    wrong = found.check(len(data))
    if wrong:
        raise LocalProtocolError(f"{name} {wrong}")
    return found.decode(data, name, most=most)


def guess(data: bytes) -> str:
    """The kind that pages look like: a ring whose indices can be right, the store; or nothing."""
    best, most = "", 0
    for name, slots in SLOTS.items():
        if not KINDS[name].check(len(data)):
            score = _plausible(data, slots)
            if score > most:
                best, most = name, score
    return best


def _plausible(data: bytes, slots: SlotKind) -> int:
    """How many entries in use can be what they would be, 0 if one cannot be or none is in use."""
    size = ringpage.entries(len(data), slots.entry_size)
    indices = ringpage.Indices.of(data, size)
    fresh = not (indices.req_prod or indices.rsp_prod)
    if fresh or any(indices.wrong()) or any(data[FIRST_SLOT - 48 : FIRST_SLOT]):
        return 0
    entry = slots.entry_size
    for at in range(indices.unanswered):
        place = FIRST_SLOT + (indices.rsp_prod + at) % size * entry
        if not _LIKELY.get(slots.name, bool)(data[place : place + entry]):
            return 0
    found = ringpage.decode(data, slots, "", most=size)
    rows = [row for table in found.tables for row in table.rows]
    if any(row[-1] for row in rows):
        return 0
    # Of an idle ring the last response is left, which says little.
    place = FIRST_SLOT + (indices.rsp_prod - 1) % size * entry
    return len(rows) or int(not slots.response(data[place : place + entry]).wrong)


# What a header does not forbid, and no driver writes.
_LIKELY: Final[Mapping[str, Callable[[bytes], bool]]] = {
    "netif_tx": lambda raw: raw[6] < 16 and not raw[7] and any(raw[10:12]),  # flags, size
    "netif_rx": lambda raw: not any(raw[2:4]) and raw[1] == 0,  # pad, id
}
