"""Bytes as operations: the first byte of each says which, the next ones are its arguments.

Any bytes are a text of a language: the first byte wraps at the number of operations, and
arguments that are missing at the end are 0. An argument is a byte and means little when it is
0, so that a text shrinks by leaving out operations and by putting zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import attrs

from xenpv.errors import LocalProtocolError

T = TypeVar("T")

# What fields of requests are set to: around every limit that the headers know.
VALUES: Final = (
    0, 1, 2, 7, 8, 9, 10, 11, 12, 13, 31, 32, 33, 127, 128, 129, 255, 256, 257, 511, 512, 513,
    0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000,
    0xFFFFFFF8, 0xFFFFFFFF, 1 << 32, (1 << 55) - 1, 1 << 55, 1 << 63, (1 << 64) - 8, (1 << 64) - 1,
)  # fmt: skip
# How far from where it should be an index is set, as u32. `ring` stands for the ring's size.
STEPS: Final = (1, 2, -1, 0, 3, -2, 1 << 31, (1 << 31) - 1, -(1 << 31) + 1, 1 << 16, 100, -100)
# Texts of store values, for keys that are numbers and for those that are not.
TEXTS: Final = (
    "", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "-1", "+1", " 1", "1 ", "0x1", "01",
    "255", "32767", "65536", "2147483647", "2147483648", "4294967295", "4294967296",
    "18446744073709551615", "18446744073709551616", "9" * 300, "one", "1e3", "1.5", "\u0660",
    "x86_64-abi", "x86_32-abi", "x86_65-abi", "connected", "/local/domain/0", "..", "a/b", "\0",
    "\n", "1\n", "1\x002",
)  # fmt: skip
# Of a `state` key: of 1 to 8 those that drivers write most, and what is none.
STATES: Final = (
    "5", "6", "1", "4", "3", "2", "5", "6", "1", "4", "3", "7", "8", "4", "0", "9", "", "1x",
)  # fmt: skip


def pick(choices: Sequence[T], byte: int) -> T:
    """One of them for any byte."""
    return choices[byte % len(choices)]


@attrs.frozen(eq=False)
class Operation:
    """`act` is given the subject and the arguments, a byte for each name of `takes`.

    `weight`: how many first bytes mean it, beside the other operations'.
    """

    name: str
    takes: tuple[str, ...]
    act: Callable[[Any, bytes], None]
    weight: int = 1


class Language:
    """Operations over one kind of subject."""

    def __init__(self, *operations: Operation) -> None:
        self._table = tuple(one for one in operations for _ in range(one.weight))
        self._of = {one.name: self._table.index(one) for one in operations}

    def read(self, data: bytes) -> Iterator[tuple[Operation, bytes]]:
        """Each operation with its arguments."""
        table, at = self._table, 0
        while at < len(data):
            operation = table[data[at] % len(table)]
            end = at + 1 + len(operation.takes)
            yield operation, data[at + 1 : end].ljust(end - at - 1, b"\0")
            at = end

    def split(self, data: bytes) -> list[bytes]:
        """The bytes of each operation; joined they are `data`."""
        pieces, at = [], 0
        for operation, _ in self.read(data):
            end = at + 1 + len(operation.takes)
            pieces.append(data[at:end])
            at = end
        return pieces

    def words(self, data: bytes) -> list[str]:
        """Each operation in words: its name, and its arguments where they are not 0."""
        told = []
        for operation, values in self.read(data):
            pairs = zip(operation.takes, values, strict=True)
            told.append(" ".join([operation.name, *(f"{n}={v}" for n, v in pairs if v)]))
        return told

    def text(self, name: str, **values: int) -> bytes:
        """An operation as bytes: what tests and corpora write down. LocalProtocolError if it does
        not take that.
        """
        index = self._of[name]
        takes = self._table[index].takes
        unknown = sorted(set(values) - set(takes))
        if unknown:
            raise LocalProtocolError(f"{name} takes {takes}, not {unknown}")
        return bytes([index, *(values.get(one, 0) for one in takes)])
