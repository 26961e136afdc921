"""Pictures of words of which bits mean something."""

from __future__ import annotations

from typing import Final

import attrs

from .structs import constants, describe_constants, value_of
from .svg import FONT_MIN, Box, Picture
from .table import Table
from .texts import UnknownError, sections

WIDTH: Final = 356
HEIGHT: Final = 30


@attrs.frozen
class Bits:
    """Bits `high` to `low` of a word; `label` "" for those that mean nothing."""

    high: int
    low: int
    label: str = ""


# prefix: width of the word, other constants of that prefix
FLAGS: Final = {
    "NETTXF_": (16, ()),
    "NETRXF_": (16, ()),
    "GTF_": (16, ("GTF_type_mask", "GTF_invalid", "GTF_permit", "GTF_accept", "GTF_transitive",
                  "GTF_transfer")),
    "GNTMAP_": (32, ("GNTMAP_guest",)),
    "GNTCOPY_": (16, ()),
    "XEN_NETIF_CTRL_HASH_TYPE_": (32, ()),
    "XENSTORE_SERVER_FEATURE_": (32, ()),
    "VDISK_": (32, ()),
}  # fmt: skip


def flags(prefix: str) -> tuple[Picture, Table]:
    """A picture with the mask of each flag below its bit, and their table. UnknownError: none."""
    if prefix not in FLAGS:
        raise UnknownError("flags", prefix, FLAGS)
    width, others = FLAGS[prefix]
    found = constants(prefix, without=tuple(others) or ("-",))
    known = {value.bit_length() - 1: name for name, value in found}
    assert all(value & (value - 1) == 0 for _, value in found), found
    top = max(known)
    parts = [Bits(bit, bit, f"{1 << bit:#x}") for bit in sorted(known, reverse=True)]
    holes = [Bits(width - 1, top + 1)] if top < width - 1 else []
    parts = [*holes, *_with_holes(parts)]
    rows = describe_constants(found, sections()["constant"]).rows
    bits = [str(value.bit_length() - 1) for _, value in found]
    table = Table(
        ("bit", "name", "mask", "meaning"),
        tuple(
            (bit, row[0], f"{value:#x}", row[-1])
            for bit, row, (_, value) in zip(bits, rows, found, strict=True)
        ),
    )
    said = ", ".join(f"bit {bit} {name}" for bit, name in sorted(known.items()))
    return draw(f"Flags {prefix}*", said, parts), table


def _with_holes(parts: list[Bits]) -> list[Bits]:
    found: list[Bits] = []
    for part in parts:
        if found and found[-1].low > part.high + 1:
            found.append(Bits(found[-1].low - 1, part.high + 1))
        found.append(part)
    if found[-1].low:
        found.append(Bits(found[-1].low - 1, 0))
    return found


def draw(title: str, said: str, parts: list[Bits]) -> Picture:
    """Boxes as wide as their text needs, not as the bits; the numbers stand above."""
    picture = Picture(WIDTH, HEIGHT + 26, title, said)
    weights = [max(2.2, len(part.label) + 1.4, len(_range(part)) + 1.0) for part in parts]
    room = WIDTH - 8
    x = 4.0
    for part, weight in zip(parts, weights, strict=True):
        box = Box(x, 20, room * weight / sum(weights), HEIGHT)
        picture.box(box, *([] if part.label else ["pad"]))
        picture.text(x + box.width / 2, 10, _range(part), "dim", size=FONT_MIN)
        if part.label:
            picture.label(box, part.label)
        x += box.width
    return picture


def _range(part: Bits) -> str:
    return str(part.high) if part.high == part.low else f"{part.high}:{part.low}"


def event_word() -> Picture:
    """Of the FIFO layout, from the constants that say where its bits are."""
    link = value_of("EVTCHN_FIFO_LINK_BITS")
    named = {name: value_of(f"EVTCHN_FIFO_{name}")
             for name in ("PENDING", "MASKED", "LINKED", "BUSY")}  # fmt: skip
    parts = [Bits(bit, bit, name) for name, bit in named.items()]
    parts += [Bits(min(named.values()) - 1, link), Bits(link - 1, 0, "LINK")]
    said = ", ".join(f"{part.label or 'unused'} {_range(part)}" for part in parts)
    return draw("An event word of the FIFO layout", said, parts)


def grant_handle_bits() -> Picture:
    """The two bits of a grant's type and what its other flags are."""
    mask = value_of("GTF_type_mask")
    parts = [Bits(15, mask.bit_length(), "flags of that type"), Bits(1, 0, "type")]
    return draw("flags of a grant entry", "bits 1:0 are the type", parts)


PICTURES: Final = {"event-word": event_word, "grant-flags": grant_handle_bits}


def picture(name: str) -> Picture:
    if name not in PICTURES:
        raise UnknownError("word", name, PICTURES)
    return PICTURES[name]()
