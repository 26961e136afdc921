"""How a packet's bytes lie in pages that are granted, one slot each.

Pages of a packet are granted as they lie in the guest's memory; one that takes too many slots
is copied into whole pages first (XenVif's bounce, netfront's linearising).
"""

from __future__ import annotations

from typing import Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.vif.granter import PAGE_SIZE
from xenpv.vif.parse import ETHERNET

SLOTS_MAX: Final[int] = lib.XEN_NETIF_NR_SLOTS_MIN  # of data; extras come on top

Piece = tuple[int, int]  # offset in its page, bytes


@attrs.frozen(kw_only=True)
class Shape:
    """How a guest's driver lays a packet out in slots."""

    first_id: int
    pad_to: int  # shorter frames get zeros up to here
    reserve: int  # slots that stay free: with no more than these, nothing is posted
    first_min: int  # bytes of the first slot, or the packet is bounced
    headers: bool  # they have a slot of their own


SHAPES: Final = {
    "windows": Shape(first_id=1, pad_to=60, reserve=0, first_min=0, headers=True),
    # netfront stops when 256 - 18 - 1 slots are in flight.
    "linux": Shape(first_id=0, pad_to=0, reserve=SLOTS_MAX + 1, first_min=ETHERNET, headers=False),
}


def whole_pages(size: int) -> list[Piece]:
    """From the start of a page on."""
    pieces = [(0, PAGE_SIZE)] * (size // PAGE_SIZE)
    if size % PAGE_SIZE or not size:
        pieces.append((0, size % PAGE_SIZE))
    return pieces


def page_by_page(layout: tuple[Piece, ...], skip: int, size: int) -> list[Piece]:
    """`size` bytes behind the first `skip` of those that `layout` describes, cut at pages.

    What the layout does not describe begins with a page.
    """
    pieces: list[Piece] = []
    for start, length in layout:
        passed = min(skip, length)
        skip -= passed
        at, left = start + passed, min(length - passed, size)
        size -= left
        while left > 0:
            offset = at % PAGE_SIZE
            part = min(left, PAGE_SIZE - offset)
            pieces.append((offset, part))
            at += part
            left -= part
    if size > 0:
        pieces += whole_pages(size)
    return pieces


def slots_of(
    layout: tuple[Piece, ...], inserted: int, head: int, size: int, first_min: int
) -> list[Piece]:
    """A packet's slots, the first of them `head` bytes of headers unless `head` is 0.

    `inserted` of these are not in the layout: a tag that was put in.
    """
    first = [(0, head)] if head else []
    if head == size:
        return first
    if layout:
        rest = page_by_page(layout, max(0, head - inserted), size - head)
        whole = first + rest
        if len(whole) <= SLOTS_MAX and whole[0][1] >= first_min:
            return whole
    return first + whole_pages(size - head)
