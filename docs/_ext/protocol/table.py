"""Tables as data, and as nodes of a page: what the tests read is what the reader sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs
from docutils import nodes

WIDE: Final = 5  # columns; more are not squeezed into a narrow page, but scrolled


@attrs.frozen
class Table:
    """`rows` have a text per column; what stands between backticks is code."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __attrs_post_init__(self) -> None:
        for row in self.rows:
            assert len(row) == len(self.columns), (self.columns, row)

    def column(self, name: str) -> list[str]:
        at = self.columns.index(name)
        return [row[at] for row in self.rows]

    def without_empty(self) -> Table:
        """The same without columns in which nothing is said."""
        kept = [at for at in range(len(self.columns)) if any(row[at] for row in self.rows)]
        return Table(
            tuple(self.columns[at] for at in kept),
            tuple(tuple(row[at] for at in kept) for row in self.rows),
        )


def inline(text: str) -> list[nodes.Node]:
    """Text with `code` in it."""
    found: list[nodes.Node] = []
    for at, part in enumerate(text.split("`")):
        if part:
            found.append(nodes.literal(text=part) if at % 2 else nodes.Text(part))
    return found


def to_node(table: Table) -> nodes.Node:
    """A docutils table, in a box that scrolls where the page is narrow."""
    group = nodes.tgroup(cols=len(table.columns))
    for at, name in enumerate(table.columns):
        widest = max([len(name), *(len(row[at]) for row in table.rows)])
        group += nodes.colspec(colwidth=min(widest, 60))
    head = nodes.thead()
    head += _row(table.columns)
    body = nodes.tbody()
    for row in table.rows:
        body += _row(row)
    group += head
    group += body
    wide = ["wide"] if len(table.columns) > WIDE else []
    whole = nodes.table(classes=["protocol", *wide])
    whole += group
    return whole


def _row(cells: Sequence[str]) -> nodes.row:
    row = nodes.row()
    for cell in cells:
        entry = nodes.entry()
        paragraph = nodes.paragraph()
        paragraph += inline(cell)
        entry += paragraph
        row += entry
    return row
