"""What a dump is made of, and how it is written: tables for people, one document for machines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import attrs

Cell = int | str | None

ROWS_MAX: Final = 16  # of a table, unless all are asked for
ROWS_ALL: Final = 1 << 16  # and then: no peer makes more
CELL_MAX: Final = 200  # characters
WIDTH: Final = 100
# Words and columns that are numbers of memory or of bits: in hexadecimal, in text alone.
HEX: Final = frozenset(
    {
        "req_prod", "req_event", "rsp_prod", "rsp_event", "req_prod_pvt", "rsp_cons",
        "rsp_prod_pvt", "req_cons", "index", "frame", "pfn", "pfns", "id", "pending_sel", "ready",
        "in_cons", "in_prod", "out_cons", "out_prod", "req_id", "tx_id", "word", "flags", "data",
    }
)  # fmt: skip


FORMS: Final = ("text", "json", "list", "list-json")


@attrs.frozen
class Table:
    """Rows of one kind. `more`: rows that were left out, since nobody asked for all."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    more: int = 0

    def as_json(self) -> dict[str, Any]:
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return {"title": self.title, "rows": rows, "more": self.more}


@attrs.frozen(kw_only=True)
class Dump:
    """One thing decoded: a ring, a grant table, the event channels or the store ring of a domain.

    `kind` is one of xenpv.view.dump.KINDS, or `ports`, `grants`. `words` are what stands in
    memory, `counts` what follows from them (None: the page does not say), `wrong` what cannot
    be right, `notes` what may be meant so.
    """

    kind: str
    name: str
    words: Mapping[str, Cell] = attrs.field(factory=dict)
    counts: Mapping[str, int | None] = attrs.field(factory=dict)
    wrong: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def as_json(self) -> dict[str, Any]:
        """For json.dumps; these keys stay."""
        return {
            "kind": self.kind,
            "name": self.name,
            "words": dict(self.words),
            "counts": dict(self.counts),
            "wrong": list(self.wrong),
            "notes": list(self.notes),
            "tables": [table.as_json() for table in self.tables],
        }

    def lines(self) -> list[str]:
        """For people."""
        lines = [f"{printable(self.name)} ({self.kind})"]
        lines += _pairs((name, shown(name, value)) for name, value in self.words.items())
        counted = ((name, "not said" if one is None else str(one)) for name, one in
                   self.counts.items())  # fmt: skip
        lines += _pairs((name.replace("_", " "), value) for name, value in counted)
        lines += [f"  WRONG: {one}" for one in self.wrong]
        lines += [f"  note: {one}" for one in self.notes]
        for table in self.tables:
            lines += _table(table)
        return lines


class Dumps(list[Dump]):
    """Several, in the order in which they were found."""

    def __str__(self) -> str:
        return as_text(self)

    def written(self, form: str) -> str:
        """As `text` or `json`, or what there is, as `list` or `list-json`."""
        if form == "json":
            return json.dumps([one.as_json() for one in self], indent=1)
        if form == "list-json":
            return json.dumps([{"kind": one.kind, "name": one.name} for one in self], indent=1)
        if form == "list":
            return "\n".join(f"{one.kind:20} {printable(one.name)}" for one in self)
        return as_text(self)

    @property
    def wrong(self) -> list[str]:
        """Everything that cannot be right, each with the name of what it is wrong in."""
        return [f"{one.name}: {wrong}" for one in self for wrong in one.wrong]


def as_text(dumps: Iterable[Dump]) -> str:
    """One after the other, with a line between."""
    return "\n\n".join(str(one) for one in dumps)


def limited(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], most: int = ROWS_MAX
) -> tuple[Table, ...]:
    """A table of the first `most` rows, or none without any."""
    if not rows:
        return ()
    kept = tuple(tuple(row) for row in rows[:most])
    return (Table(title, tuple(columns), kept, len(rows) - len(kept)),)


def printable(text: str) -> str:
    """On one line: what is not printable escaped, and no longer than a cell may be."""
    text = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text[: CELL_MAX + 1])
    return text if len(text) <= CELL_MAX else f"{text[: CELL_MAX - 3]}..."


def quoted(data: bytes, most: int = 80) -> str:
    """Bytes as text between quotes, escaped; the rest of long ones as a number."""
    text = "".join(
        chr(one) if 0x20 <= one < 0x7F and one not in b'\\"' else f"\\x{one:02x}"
        for one in data[:most]
    )
    text = text.replace("\\x00", "\\0").replace("\\x0a", "\\n").replace("\\x0d", "\\r")
    more = f" and {len(data) - most} more bytes" if len(data) > most else ""
    return f'"{text}"{more}'


def shown(name: str, value: Cell) -> str:
    """A value as text."""
    if value is None:
        return "-"
    if isinstance(value, int) and name in HEX:
        return f"{value:#x}"
    return printable(str(value))


def _pairs(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """`name value`, as many on a line as fit."""
    lines: list[str] = []
    line = ""
    for name, value in pairs:
        one = f"{name} {value}"
        if line and len(line) + len(one) > WIDTH:
            lines.append(line)
            line = ""
        line = f"{line}, {one}" if line else f"  {one}"
    return [*lines, line] if line else lines


def _table(table: Table) -> list[str]:
    cells = [
        [shown(name, value) for name, value in zip(table.columns, row, strict=True)]
        for row in table.rows
    ]
    # A column in which nothing stands tells nothing.
    kept = [
        at for at in range(len(table.columns)) if any(row[at] not in ("", "-") for row in cells)
    ]
    heads = [table.columns[at].replace("_", " ") for at in kept]
    texts = [heads, *([row[at] for at in kept] for row in cells)]
    widths = [max(len(row[at]) for row in texts) for at in range(len(kept))]
    right = [
        all(isinstance(row[at], int | None) for row in table.rows) and table.columns[at] not in HEX
        for at in kept
    ]
    lines = [f"  {table.title}:"]
    for row in texts:
        padded = [
            text.rjust(width) if is_right else text.ljust(width)
            for text, width, is_right in zip(row, widths, right, strict=True)
        ]
        lines.append(f"    {'  '.join(padded)}".rstrip())
    if table.more:
        lines.append(f"    and {table.more} more; --all prints them")
    return lines
