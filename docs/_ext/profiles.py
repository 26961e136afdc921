"""Quirks, and what tells the profiles of a store or a backend apart, from their tables."""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

import attrs
from markdown import code, plain, table

from xenpv.host.domsuspend import Quirk
from xenpv.vbd.quirks import QUIRKS


def quirks() -> str:
    """XenVbd's and XenCrsh's, and libxl's."""
    rows = [[code(name), "`Parameters(quirks=...)`", plain(said)] for name, said in QUIRKS.items()]
    rows += [[code(one.value), "`DomSuspend.quirks`", told(comment(one))] for one in Quirk]
    return table(["quirk", "where it is named", "what happens with it; else without"], rows)


def comment(one: enum.Enum) -> str:
    """What stands above a member in the source."""
    source = inspect.getsource(type(one)).splitlines()
    at = next(
        number for number, line in enumerate(source) if line.strip().startswith(f"{one.name} =")
    )
    above: list[str] = []
    while at and source[at - 1].strip().startswith("#"):
        at -= 1
        above.insert(0, source[at].strip().lstrip("# "))
    return " ".join(above)


def of(module: str) -> str:
    """A row for each attribute that is a plain value, a column for each profile."""
    found = import_module(f"xenpv.{module}")
    all_of_them = list(found.PROFILES.values())
    rows = []
    for field in attrs.fields(found.Profile):
        cells = [shown(getattr(one, field.name)) for one in all_of_them]
        if field.name != "name" and None not in cells:
            rows.append([code(field.name), *(cell or "" for cell in cells)])
    paragraphs = inspect.getdoc(found.Profile).split("\n\n")[1:]
    said = "\n\n".join(told(" ".join(one.split())) for one in paragraphs)
    return f"{said}\n\n" + table(["", *(code(one.name) for one in all_of_them)], rows)


def told(text: str) -> str:
    """A docstring: `x` is code."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(part if part.startswith("`") else plain(part) for part in parts)


def shown(value: Any) -> str | None:
    """None: no plain value."""
    match value:
        case bool():
            return "yes" if value else "no"
        case enum.Enum():
            return plain(value.value if isinstance(value.value, str) else value.name)
        case int():
            return str(value)
        case str():
            return code(value) or "-"
        case Mapping():
            return of_pairs(value.items())
        case tuple() | frozenset():
            cells = [shown(one.decode() if isinstance(one, bytes) else one) for one in value]
            return None if None in cells else ", ".join(filter(None, cells)) or "-"
    return None


def of_pairs(pairs: Iterable[tuple[Any, Any]]) -> str | None:
    found = list(pairs)
    if any(not isinstance(key, str) or not isinstance(value, str | int) for key, value in found):
        return None
    return ", ".join(f"{code(key)} {value}" for key, value in found) or "-"
