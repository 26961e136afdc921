"""The entries of rings as rows: what a request asks, what a response says, what cannot be.

Names are those of io/blkif.h and io/netif.h. Any bytes give a row: a number that no header
names stays a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum, IntFlag
from functools import cache
from typing import Any, Final

import attrs

from xenpv.abi._kernel import ffi, lib
from xenpv.abi.blkif import BLKIF_OP, BLKIF_RSP
from xenpv.abi.layout import ctype, sizeof
from xenpv.abi.netif import (
    NETIF_RSP,
    NETRXF,
    NETTXF,
    XEN_NETIF_CTRL_STATUS,
    XEN_NETIF_CTRL_TYPE,
    XEN_NETIF_EXTRA_TYPE,
    XEN_NETIF_GSO_TYPE,
)
from xenpv.view.dump.table import Cell
from xenpv.view.rings import fields

SEGMENTS_MAX: Final[int] = lib.BLKIF_MAX_SEGMENTS_PER_REQUEST
INDIRECT_PAGES_MAX: Final[int] = lib.BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST
SEGMENTS_PER_PAGE: Final = 512
SECTOR_MAX: Final = 7  # of a page
PAGE_SIZE: Final = 4096
EXTRA_MORE: Final[int] = lib.XEN_NETIF_EXTRA_FLAG_MORE

Values = dict[str, Cell]


@attrs.frozen
class Row:
    """One entry: its values by column, and why it cannot be right, or nothing."""

    values: Values
    wrong: str = ""
    extras: bool = False  # extra-info segments follow in the next entries


@cache
def _leaves(struct: str) -> tuple[tuple[str, int, int, bool], ...]:
    return tuple(_walk(ctype(struct), 0, ""))


def _walk(of: Any, offset: int, path: str) -> Iterator[tuple[str, int, int, bool]]:
    """(name, offset, bytes, signed) of each scalar that is in no union."""
    if of.kind == "struct":
        for name, field in of.fields:
            inner = f"{path}.{name}" if path else name
            yield from _walk(field.type, offset + field.offset, inner)
    elif of.kind == "array":
        for at in range(of.length):
            yield from _walk(of.item, offset + at * ffi.sizeof(of.item), f"{path}[{at}]")
    elif of.kind == "primitive":
        yield path, offset, ffi.sizeof(of), of.cname.startswith("int")


def values(struct: str, raw: bytes) -> dict[str, int]:
    """Each scalar of a struct, by its name."""
    return {
        name: int.from_bytes(raw[at : at + size], "little", signed=signed)
        for name, at, size, signed in _leaves(struct)
    }


def _name(kind: type[IntEnum], value: int) -> str:
    try:
        return kind(value).name
    except ValueError:
        return str(value)


def _flags(kind: type[IntFlag], value: int) -> str:
    known = [one for one in kind if value & one]
    rest = value & ~sum(int(one) for one in known)
    return " ".join([*(str(one.name) for one in known), *([f"{rest:#x}"] if rest else [])])


def _joined(*wrong: str) -> str:
    return "; ".join(one for one in wrong if one)


# blkif


def blk_request(raw: bytes, suffix: str = "") -> Row:
    found = values(f"blkif_request{suffix}", raw)
    operation = found["operation"]
    if operation == BLKIF_OP.DISCARD:
        return _discard(raw, suffix)
    if operation == BLKIF_OP.INDIRECT:
        return _indirect(raw, suffix)
    count = found["nr_segments"]
    segments, wrong = [], ""
    for at in range(min(count, SEGMENTS_MAX)):
        first, last = found[f"seg[{at}].first_sect"], found[f"seg[{at}].last_sect"]
        segments.append(f"{found[f'seg[{at}].gref']}[{first}-{last}]")
        if not wrong and not first <= last <= SECTOR_MAX:
            wrong = f"segment {at}: sectors {first}-{last} of a page's 0-{SECTOR_MAX}"
    if count > SEGMENTS_MAX:
        wrong = f"nr_segments {count}: at most {SEGMENTS_MAX}"
    elif not count and operation in (BLKIF_OP.READ, BLKIF_OP.WRITE):
        wrong = "nr_segments 0: nothing to read or write"
    try:
        BLKIF_OP(operation)
    except ValueError:
        wrong = _joined(f"operation {operation} is none", wrong)
    row: Values = {
        "operation": _name(BLKIF_OP, operation),
        "id": found["id"],
        "handle": found["handle"],
        "sector_number": found["sector_number"],
        "nr_segments": count,
        "segments": " ".join(segments),
    }
    return Row(row, wrong)


def _discard(raw: bytes, suffix: str) -> Row:
    found = values(f"blkif_request_discard{suffix}", raw)
    secure = " secure" if found["flag"] & lib.BLKIF_DISCARD_SECURE else ""
    row: Values = {
        "operation": "DISCARD",
        "id": found["id"],
        "handle": found["handle"],
        "sector_number": found["sector_number"],
        "nr_segments": None,
        "segments": f"{found['nr_sectors']} sectors{secure}",
    }
    return Row(row)


def _indirect(raw: bytes, suffix: str) -> Row:
    found = values(f"blkif_request_indirect{suffix}", raw)
    count = found["nr_segments"]
    pages = -(-count // SEGMENTS_PER_PAGE)
    grefs = [found[f"indirect_grefs[{at}]"] for at in range(min(pages, INDIRECT_PAGES_MAX))]
    wrong = ""
    if not 0 < count <= INDIRECT_PAGES_MAX * SEGMENTS_PER_PAGE:
        most = INDIRECT_PAGES_MAX * SEGMENTS_PER_PAGE
        wrong = f"nr_segments {count}: 1 to {most} in {INDIRECT_PAGES_MAX} pages"
    if found["indirect_op"] not in (BLKIF_OP.READ, BLKIF_OP.WRITE):
        wrong = _joined(f"indirect_op {found['indirect_op']}: READ or WRITE", wrong)
    row: Values = {
        "operation": f"INDIRECT {_name(BLKIF_OP, found['indirect_op'])}",
        "id": found["id"],
        "handle": found["handle"],
        "sector_number": found["sector_number"],
        "nr_segments": count,
        "segments": f"in {' '.join(map(str, grefs))}",
    }
    return Row(row, wrong)


def blk_response(raw: bytes, suffix: str = "") -> Row:
    found = values(f"blkif_response{suffix}", raw)
    status, operation = found["status"], found["operation"]
    row: Values = {
        "operation": _name(BLKIF_OP, operation),
        "id": found["id"],
        "status": _name(BLKIF_RSP, status),
    }
    wrong = "" if status in list(BLKIF_RSP) else f"status {status} is none"
    if operation not in list(BLKIF_OP):
        wrong = _joined(f"operation {operation} is none", wrong)
    return Row(row, wrong)


# netif


def tx_request(raw: bytes) -> Row:
    found = values("netif_tx_request", raw)
    flags, offset = found["flags"], found["offset"]
    row: Values = {
        "id": found["id"],
        "gref": found["gref"],
        "offset": offset,
        "size": found["size"],
        "flags": _flags(NETTXF, flags),
    }
    wrong = "" if offset < PAGE_SIZE else f"offset {offset} outside the page"
    return Row(row, wrong, bool(flags & NETTXF.extra_info))


def tx_response(raw: bytes) -> Row:
    found = values("netif_tx_response", raw)
    status = found["status"]
    wrong = "" if status in list(NETIF_RSP) else f"status {status} is none"
    return Row({"id": found["id"], "status": _name(NETIF_RSP, status)}, wrong)


def rx_request(raw: bytes) -> Row:
    found = values("netif_rx_request", raw)
    return Row({"id": found["id"], "gref": found["gref"]})


def rx_response(raw: bytes) -> Row:
    found = values("netif_rx_response", raw)
    status, offset, flags = found["status"], found["offset"], found["flags"]
    row: Values = {
        "id": found["id"],
        "offset": offset,
        "flags": _flags(NETRXF, flags),
        "status": str(status) if status >= 0 else _name(NETIF_RSP, status),
    }
    wrong = ""
    if status < 0 and status not in list(NETIF_RSP):
        wrong = f"status {status} is none"
    elif offset + max(status, 0) > PAGE_SIZE:
        wrong = f"offset {offset} and {status} bytes cross the page"
    return Row(row, wrong, bool(flags & NETRXF.extra_info))


def extra(raw: bytes) -> Row:
    """A netif_extra_info, which takes an entry of either direction."""
    kind, flags, rest = raw[0], raw[1], raw[2:8]
    said = f"extra {_name(XEN_NETIF_EXTRA_TYPE, kind)}"
    if kind == XEN_NETIF_EXTRA_TYPE.GSO:
        size = int.from_bytes(rest[:2], "little")
        said += f" {_name(XEN_NETIF_GSO_TYPE, rest[2])} size {size}"
    elif kind in (XEN_NETIF_EXTRA_TYPE.MCAST_ADD, XEN_NETIF_EXTRA_TYPE.MCAST_DEL):
        said += f" {rest.hex(':')}"
    elif kind == XEN_NETIF_EXTRA_TYPE.HASH:
        said += f" type {rest[0]} algorithm {rest[1]} value {rest[2:6].hex()}"
    wrong = "" if kind in list(XEN_NETIF_EXTRA_TYPE) and kind else f"extra type {kind} is none"
    return Row({"flags": said}, wrong, bool(flags & EXTRA_MORE))


def ctrl_request(raw: bytes) -> Row:
    found = values("xen_netif_ctrl_request", raw)
    kind = found["type"]
    data = " ".join(f"{found[f'data[{at}]']:#x}" for at in range(3))
    row: Values = {"id": found["id"], "type": _name(XEN_NETIF_CTRL_TYPE, kind), "data": data}
    wrong = "" if kind in list(XEN_NETIF_CTRL_TYPE) and kind else f"type {kind} is none"
    return Row(row, wrong)


def ctrl_response(raw: bytes) -> Row:
    found = values("xen_netif_ctrl_response", raw)
    row: Values = {
        "id": found["id"],
        "type": _name(XEN_NETIF_CTRL_TYPE, found["type"]),
        "status": _name(XEN_NETIF_CTRL_STATUS, found["status"]),
        "data": found["data"],
    }
    status = found["status"]
    return Row(row, "" if status in list(XEN_NETIF_CTRL_STATUS) else f"status {status} is none")


# any other


def plain(struct: str) -> Callable[[bytes], Row]:
    """Each scalar by its name that is not zero; all bytes where there is no such struct."""

    def row(raw: bytes) -> Row:
        known = fields(struct)
        if not known:
            return Row({"entry": raw.hex()})
        found = {name: int.from_bytes(raw[at : at + size], "little") for name, at, size in known}
        told = [f"{name} {value:#x}" for name, value in found.items() if value]
        return Row({"entry": ", ".join(told) or "all zero"})

    return row


@attrs.frozen
class SlotKind:
    """How the entries of a ring are read, and how large they are in bytes."""

    name: str
    entry_size: int
    request: Callable[[bytes], Row]
    response: Callable[[bytes], Row]
    request_columns: tuple[str, ...] = ("entry",)
    response_columns: tuple[str, ...] = ("entry",)
    extras: bool = False


_BLK_REQUEST: Final = ("operation", "id", "handle", "sector_number", "nr_segments", "segments")
_BLK_RESPONSE: Final = ("operation", "id", "status")


def _x86_32(decode: Callable[[bytes, str], Row]) -> Callable[[bytes], Row]:
    return lambda raw: decode(raw, "_x86_32")


def _size(name: str, suffix: str = "") -> int:
    return sizeof(f"{name}_sring_entry{suffix}")


SLOTS: Final[Mapping[str, SlotKind]] = {
    one.name: one
    for one in (
        SlotKind("blkif", _size("blkif"), blk_request, blk_response, _BLK_REQUEST, _BLK_RESPONSE),
        SlotKind(
            "blkif_x86_32", _size("blkif", "_x86_32"), _x86_32(blk_request), _x86_32(blk_response),
            _BLK_REQUEST, _BLK_RESPONSE,
        ),
        SlotKind(
            "netif_tx", _size("netif_tx"), tx_request, tx_response,
            ("id", "gref", "offset", "size", "flags"), ("id", "status"), extras=True,
        ),
        SlotKind(
            "netif_rx", _size("netif_rx"), rx_request, rx_response,
            ("id", "gref"), ("id", "offset", "flags", "status"), extras=True,
        ),
        SlotKind(
            "xen_netif_ctrl", _size("xen_netif_ctrl"), ctrl_request, ctrl_response,
            ("id", "type", "data"), ("id", "type", "status", "data"),
        ),
    )
}  # fmt: skip
