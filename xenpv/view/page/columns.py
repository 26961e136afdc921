"""Columns of numbers as text that a page can hold: LEB128 bytes in base64, strings once each.

A hundred thousand events as JSON objects are 20 MB and a second of parsing; as columns of
mostly small differences they are some hundred KB and one loop over bytes.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from typing import Any, Final

# What ends a script, opens a comment in one, or ends a line in old JavaScript.
_UNSAFE: Final = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"})
_ZEROS: Final = re.compile(rb"\0{3,}")


def varints(values: Iterable[int]) -> bytes:
    """Unsigned LEB128, one after the other. ValueError for a negative one."""
    out = bytearray()
    for value in values:
        if value < 0:
            raise ValueError(f"{value} is negative")
        left = value
        while left > 0x7F:
            out.append(left & 0x7F | 0x80)
            left >>= 7
        out.append(left)
    return bytes(out)


def zigzag(value: int) -> int:
    """Small numbers of either sign as small numbers: 0, -1, 1, -2 are 0, 1, 2, 3."""
    return value << 1 if value >= 0 else (-value << 1) - 1


def deltas(values: Iterable[int]) -> list[int]:
    """Each value's difference from the one before it, for `varints`."""
    found = []
    before = 0
    for value in values:
        found.append(zigzag(value - before))
        before = value
    return found


def column(values: Iterable[int]) -> str:
    """`varints` in base64."""
    return text(varints(values))


def text(data: bytes) -> str:
    """Base64."""
    return base64.b64encode(data).decode("ascii")


def sparse(data: bytes, before: bytes) -> bytes:
    """How `data` differs from `before`, of the same length: (bytes to skip, bytes that follow
    as their XOR)... until the end is reached.
    """
    size = len(data)
    xor = (int.from_bytes(data, "big") ^ int.from_bytes(before, "big")).to_bytes(size, "big")
    out = bytearray()
    at = 0
    while at < size:
        start = at
        while at < size and not xor[at]:
            at += 1
        out += varints((at - start,))
        if at == size:
            break
        gap = _ZEROS.search(xor, at)
        end = size if gap is None else gap.start()
        out += varints((end - at,)) + xor[at:end]
        at = end
    return bytes(out)


class Interned:
    """Strings or bytes by number, in order of first use. Number 0 stands for none."""

    def __init__(self) -> None:
        self._known: dict[Any, int] = {}

    def __call__(self, value: Any) -> int:
        return self._known.setdefault(value, len(self._known) + 1)

    @property
    def values(self) -> list[Any]:
        return list(self._known)


def printable(value: str | bytes) -> str:
    """What a reader may see of it: control characters, marks of direction and bytes that are
    no ASCII are written as escapes, so that no name looks like another.
    """
    if isinstance(value, bytes):
        value = value.decode("ascii", "backslashreplace")
    if value.isprintable():
        return value
    return "".join(char if char.isprintable() else _escape(char) for char in value)


def printable_lines(value: str) -> str:
    """`printable`, but for line feeds and tabs."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in value.split("\n"))


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{{{code:x}}}"


def script_json(document: Any) -> str:
    """JSON that may stand inside a script element of any page."""
    plain = json.dumps(document, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return plain.translate(_UNSAFE)
