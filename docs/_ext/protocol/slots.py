"""Pictures of structs: rows of four bytes with offsets, as they lie in a slot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import attrs

from xenpv.abi import layout

from .structs import Field, Variant
from .svg import FONT_MIN, Box, Picture

ROW: Final = 4  # bytes
BYTE: Final = 76  # units
HEIGHT: Final = 30
LEFT: Final = 42  # the offsets
HEAD: Final = 22  # the byte numbers
FOLD: Final = 4  # an array or text of more rows is drawn as two


@attrs.frozen
class Piece:
    """A part of a field in one row, or whole rows of it."""

    field: Field | None  # None: a hole that the compiler left
    offset: int
    size: int

    @property
    def rows(self) -> int:
        return self.size // ROW if not self.offset % ROW and self.size >= ROW else 1

    @property
    def drawn(self) -> int:
        """Rows in the picture."""
        return min(self.rows, 2) if self.rows > FOLD else self.rows


def _cut(field: Field | None, offset: int, size: int) -> Iterator[Piece]:
    """At rows: what begins inside one, whole rows, what is left."""
    while size:
        inside = offset % ROW
        starts = inside or size < ROW
        part = min(ROW - inside, size) if starts else size - size % ROW
        yield Piece(field, offset, part)
        offset += part
        size -= part


def pieces(variant: Variant, size: int) -> list[Piece]:
    """All bytes of the struct, holes too."""
    found: list[Piece] = []
    end = 0
    for field in variant.fields:
        found += _cut(None, end, field.offset - end)
        found += _cut(field, field.offset, field.size)
        end = field.offset + field.size
    return found + list(_cut(None, end, size - end))


def name_of(piece: Piece, pieces: list[Piece]) -> str:
    """What stands in its box: the field, in its largest piece; an ellipsis in the others."""
    field = piece.field
    if field is None:
        return "-"
    mine = [one for one in pieces if one.field is field]
    if piece is not max(mine, key=lambda one: one.size):
        return "…"
    name = field.name if piece.size >= ROW else field.last
    return f"{name}[{field.count}]" if field.count > 1 else name


def draw(name: str, variant: Variant) -> Picture:
    """The struct with that member of its unions."""
    size = layout.sizeof(name)
    parts = pieces(variant, size)
    rows = sum(part.drawn for part in parts if not part.offset % ROW)
    width = LEFT + ROW * BYTE + 8
    said = ", ".join(f"{one.name} at {one.offset}, {one.size}" for one in variant.fields)
    title = f"struct {name}" + (f" with {variant.name}" if variant.name else "")
    picture = Picture(
        width, HEAD + rows * HEIGHT + 8, f"{title}, {size} bytes", f"Offsets and sizes: {said}."
    )
    for byte in range(ROW):
        picture.text(LEFT + (byte + 0.5) * BYTE, HEAD / 2, f"+{byte}", "dim", size=FONT_MIN)
    y = float(HEAD)
    for part in parts:
        inside = part.offset % ROW
        if not inside:
            picture.text(
                LEFT - 6, y + HEIGHT / 2, str(part.offset), "dim", size=FONT_MIN, anchor="end"
            )
        height = part.drawn * HEIGHT
        box = Box(LEFT + inside * BYTE, y, min(part.size, ROW) * BYTE, height)
        _fill(picture, box, part, name_of(part, parts))
        if (part.offset + part.size) % ROW == 0 or part is parts[-1]:
            y += height
    return picture


def _fill(picture: Picture, box: Box, part: Piece, name: str) -> None:
    kinds = []
    if part.field is None or part.field.is_padding:
        kinds.append("pad")
    if part.drawn < part.rows:
        kinds.append("fold")
    picture.box(box, *kinds)
    dim = ["dim"] if "pad" in kinds else []
    if part.drawn < part.rows:
        upper = Box(box.x, box.y, box.width, box.height / 2)
        lower = Box(box.x, box.y + box.height / 2, box.width, box.height / 2)
        picture.label(upper, name, *dim)
        picture.label(lower, f"{part.size} bytes, to {part.offset + part.size - 1}", "dim")
    else:
        picture.label(box, name, *dim)
