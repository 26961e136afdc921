"""What numbers do not say: meanings of fields, constants and keys, from text/*.toml.

A text belongs to a name of the code; `of` raises Unknown for one that has none, which fails the
build, and a test finds texts whose name is gone.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "text"


class UnknownError(Exception):
    """A directive asks for what the code, or a text file, does not have."""

    def __init__(self, kind: str, name: str, known: object = ()) -> None:
        names = list(known) if isinstance(known, (list, tuple, dict)) else []
        expected = f": expected one of {', '.join(map(str, names))}" if names else ""
        super().__init__(f"unknown {kind} {name!r}{expected}")


@cache
def sections() -> dict[str, dict[str, Any]]:
    """All files as one: {section: {name: text or table}}."""
    whole: dict[str, dict[str, Any]] = {}
    for path in sorted(HERE.glob("*.toml")):
        for section, names in tomllib.loads(path.read_text(encoding="utf-8")).items():
            mine = whole.setdefault(section, {})
            for name, text in names.items():
                if name in mine:
                    raise ValueError(f"{path.name}: {section}.{name} is told twice")
                mine[name] = text
    return whole


def of(section: str, name: str) -> Any:
    """The text of that name. UnknownError: there is none."""
    found = sections().get(section, {}).get(name)
    if found is None:
        raise UnknownError(f"{section} text", name)
    return found


def fields(struct: str) -> Mapping[str, str]:
    """{field: meaning} of a struct; "_" is the struct itself."""
    found: Mapping[str, str] = of("struct", struct)
    return found
