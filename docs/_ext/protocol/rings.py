"""Shared rings (io/ring.h): a picture of their page and the number of slots by its order."""

from __future__ import annotations

from typing import Final

from xenpv.abi import layout
from xenpv.abi._kernel import ffi
from xenpv.xen.domain import PAGE_SIZE

from .structs import SUFFIX_32, ctype_of, has_32
from .svg import FONT_MIN, Box, Picture
from .table import Table
from .texts import UnknownError

# Names of __DEFINE_RING_TYPES: what stands before _sring, and the pages that a peer may grant.
RINGS: Final = {"netif_tx": 0, "netif_rx": 0, "xen_netif_ctrl": 0, "blkif": 4}
WORDS: Final = {
    "req_prod": "requests that the frontend put on the ring, so far",
    "req_event": "the backend wants to be told once req_prod passes this",
    "rsp_prod": "responses that the backend put on it, so far",
    "rsp_event": "the frontend wants to be told once rsp_prod passes this",
}


def check(name: str) -> None:
    if name not in RINGS:
        raise UnknownError("ring", name, RINGS)


def header_size(name: str) -> int:
    """Bytes before the first slot."""
    return layout.offsetof(f"{name}_sring", "ring")


def entry_size(name: str, suffix: str = "") -> int:
    return layout.sizeof(f"{name}_sring_entry{suffix}")


def slots(name: str, pages: int, suffix: str = "") -> int:
    """__RING_SIZE: what fits behind the header, rounded down to a power of two."""
    room = pages * PAGE_SIZE - header_size(name)
    return 1 << (room // entry_size(name, suffix)).bit_length() - 1


def sizes(name: str) -> Table:
    """Slots by page order, and what stays unused behind them."""
    check(name)
    rows = []
    for order in range(RINGS[name] + 1):
        pages = 1 << order
        for suffix in ("", SUFFIX_32) if has_32(f"{name}_sring_entry") else ("",):
            count = slots(name, pages, suffix)
            end = header_size(name) + count * entry_size(name, suffix)
            rows.append((
                str(order), str(pages), "32-bit x86" if suffix else "64-bit",
                str(entry_size(name, suffix)), str(count), str(pages * PAGE_SIZE - end),
            ))  # fmt: skip
    columns = ("page order", "pages", "guest", "bytes of a slot", "slots", "unused bytes")
    return Table(columns, tuple(rows))


def draw(name: str) -> Picture:
    """One page: the four words, the private bytes, padding, slots."""
    check(name)
    sring = f"{name}_sring"
    count, size = slots(name, 1), entry_size(name)
    assert count == ctype_of(sring).fields[-1][1].type.length
    start, row, left, width = header_size(name), 26, 44, 356
    picture = Picture(
        width, 9 * row + 12, f"The page of a {name} ring",
        f"Four 32-bit words, {start - 16} bytes of padding, then {count} slots of {size} bytes.",
    )  # fmt: skip
    y = 4.0
    for word in WORDS:
        _row(picture, Box(left, y, width - left - 4, row), layout.offsetof(sring, word), word)
        y += row
    private = layout.offsetof(sring, "pvt")
    _row(picture, Box(left, y, width - left - 4, row), private, f"{start - private} bytes unused",
         "pad")  # fmt: skip
    y += row
    for at, kind in ((0, ""), (1, ""), (None, "fold"), (count - 1, "")):
        box = Box(left, y, width - left - 4, row)
        if at is None:
            _row(picture, box, None, "…", kind)
        else:
            union = ffi.typeof(f"union {name}_sring_entry")
            members = " or ".join(f".{one}" for one, _ in union.fields)
            _row(picture, box, start + at * size, f"ring[{at}]{members}", "request")
        y += row
    return picture


def _row(picture: Picture, box: Box, offset: int | None, text: str, *kinds: str) -> None:
    picture.box(box, *(kind for kind in kinds if kind))
    if offset is not None:
        picture.text(
            box.x - 6, box.y + box.height / 2, str(offset), "dim", size=FONT_MIN, anchor="end"
        )
    picture.label(box, text, *(["dim"] if "pad" in kinds else []))


def words(name: str) -> Table:
    """The header's words."""
    check(name)
    sring = f"{name}_sring"
    rows = [
        (str(layout.offsetof(sring, word)), "4", f"`{word}`", meaning)
        for word, meaning in WORDS.items()
    ]
    return Table(("offset", "size", "field", "meaning"), tuple(rows))
