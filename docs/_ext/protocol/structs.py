"""Structs of the headers as the C compiler laid them out: fields, variants of unions, tables.

Everything numeric is asked of xenpv.abi.layout, whose module is compiled; nothing is counted
here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs

from xenpv.abi import layout
from xenpv.abi._kernel import ffi, lib

from .table import Table
from .texts import UnknownError, fields

SUFFIX_32: Final = "_x86_32"
PADDING: Final = ("pad", "pad0", "pad1", "_pad", "__pad", "_rsvd", "__spacer", "pvt_pad")


@attrs.frozen
class Field:
    """`name` is dotted below members without a tag; sizes and offsets in bytes."""

    name: str
    offset: int
    size: int
    ctype: str
    count: int = 1  # elements of an array

    @property
    def last(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def is_padding(self) -> bool:
        return self.last in PADDING


@attrs.frozen
class Variant:
    """A struct with one member of each of its unions: `name` says which, "" without unions."""

    name: str
    fields: tuple[Field, ...]


def ctype_of(name: str) -> Any:
    """UnknownError: no header declares it."""
    try:
        return layout.ctype(name)
    except KeyError:
        raise UnknownError("struct", name) from None


@attrs.frozen
class _Union:
    at: str
    members: tuple[str, ...]


def _members(of: Any) -> dict[str, Any]:
    return dict(of.fields)


def _unions(of: Any, prefix: str) -> Iterator[_Union]:
    if of.kind == "union":
        yield _Union(prefix.rstrip("."), tuple(_members(of)))
    for name, field in _members(of).items():
        if field.type.kind in ("struct", "union"):
            yield from _unions(field.type, f"{prefix}{name}.")


def _walk(of: Any, offset: int, prefix: str, number: int) -> Iterator[Field]:
    names = list(_members(of))
    if of.kind == "union":
        names = [names[min(number, len(names) - 1)]]
    for name in names:
        field = _members(of)[name]
        at, kind = offset + field.offset, field.type
        if kind.kind in ("struct", "union"):
            yield from _walk(kind, at, f"{prefix}{name}.", number)
        elif kind.kind == "array":
            yield Field(prefix + name, at, ffi.sizeof(kind), kind.item.cname, kind.length)
        else:
            yield Field(prefix + name, at, ffi.sizeof(kind), kind.cname)


def variants(name: str) -> list[Variant]:
    """One per member of its widest union, else one. Members that only pad a union are left out."""
    of = ctype_of(name)
    unions = list(_unions(of, ""))
    if not unions:
        return [Variant("", tuple(_walk(of, 0, "", 0)))]
    widest = max(unions, key=lambda one: len(one.members))
    found = []
    for number, member in enumerate(widest.members):
        if member in PADDING and len(widest.members) > 1:
            continue
        at = f"{widest.at}.{member}" if widest.at else member
        found.append(Variant(at, tuple(_walk(of, 0, "", number))))
    return found


def every_field(name: str) -> list[tuple[str, Field]]:
    """Fields of all variants, each once: (variant it is of, or "" if of all, field)."""
    mine = variants(name)
    found: dict[tuple[str, int], tuple[str, Field]] = {}
    for variant in mine:
        for field in variant.fields:
            everywhere = all(field in other.fields for other in mine)
            found.setdefault(
                (field.name, field.offset), ("" if everywhere else variant.name, field)
            )
    return sorted(found.values(), key=lambda one: one[1].offset)


def has_32(name: str) -> bool:
    try:
        layout.ctype(name + SUFFIX_32)
    except KeyError:
        return False
    return True


def size_line(name: str) -> str:
    """`12 bytes`, and what a 32-bit guest has if that is another number."""
    size = layout.sizeof(name)
    if has_32(name):
        return f"{size} bytes; {layout.sizeof(name + SUFFIX_32)} for a 32-bit x86 guest"
    return f"{size} bytes"


def describe(name: str) -> Table:
    """Offset, offset of a 32-bit guest, size, type, field, meaning."""
    meanings = fields(name)
    narrow = {}
    if has_32(name):
        narrow = {field.name: field.offset for _, field in every_field(name + SUFFIX_32)}
    rows = []
    for _variant, field in every_field(name):
        meaning = _meaning(field, meanings)
        if meaning is None:
            raise UnknownError(f"meaning in struct.{name}", field.name, list(meanings))
        kind = f"{field.ctype}[{field.count}]" if field.count > 1 else field.ctype
        rows.append((
            str(field.offset), str(narrow.get(field.name, "")), str(field.size),
            f"`{kind}`", f"`{field.name}`", meaning,
        ))  # fmt: skip
    columns = ("offset", "32-bit", "size", "type", "field", "meaning")
    return Table(columns, tuple(rows)).without_empty()


def _meaning(field: Field, meanings: Mapping[str, str]) -> str | None:
    """Its own text, else that of a member around it."""
    name = field.name
    while name:
        if name in meanings:
            return meanings[name]
        name = name.rpartition(".")[0]
    return "padding" if field.is_padding else None


# constants


def constants(prefix: str, *, without: tuple[str, ...] = ()) -> list[tuple[str, int]]:
    """(name, value) of every constant with that prefix. UnknownError: there is none."""
    found = [
        (name, value)
        for name, value in layout.constants().items()
        if name.startswith(prefix) and not name.startswith(without)
    ]
    if not found:
        raise UnknownError("prefix of constants", prefix)
    return found


def value_of(name: str) -> int:
    """UnknownError: no header declares it."""
    if name not in layout.constants():
        raise UnknownError("constant", name)
    return int(getattr(lib, name))


def describe_constants(named: list[tuple[str, int]], texts: dict[str, str]) -> Table:
    rows = []
    for name, value in named:
        if name not in texts:
            raise UnknownError("text of constant", name)
        newer = layout.NEWER_THAN_4_17.get(name)
        rows.append((
            f"`{name}`", str(value), f"{value:#x}" if value > 9 else "",
            texts[name] + (f" (newer than Xen 4.17: {newer})" if newer else ""),
        ))  # fmt: skip
    return Table(("name", "value", "hex", "meaning"), tuple(rows)).without_empty()
