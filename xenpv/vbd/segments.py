"""From an SRB's scatter list to granted segments (win-xenvbd ring.c, PrepareSegment).

A fragment never crosses a page. One whose offset and length are whole sectors is granted
where it lies; anything else is gathered into a bounce page. Unlike the driver, a segment
ends where its fragment ends, and a bounce page may take more than two fragments.
"""

from __future__ import annotations

from array import array
from functools import cache
from typing import Final

import attrs

from xenpv.errors import HypercallError
from xenpv.vbd import blkif
from xenpv.vbd.bounce import Bounce, Retired
from xenpv.vbd.srb import Srb
from xenpv.xen.domain import PAGE_SIZE

SECTOR_SHIFT: Final = 9  # first and last count 512 bytes here, whatever they do on the wire
SECTOR: Final = 1 << SECTOR_SHIFT
SECTORS_PER_PAGE: Final = PAGE_SIZE >> SECTOR_SHIFT
LAST_AT: Final = 8  # bits: last_sect in the second word of a segment


@attrs.define(eq=False)
class Segments:
    """Granted segments, in order: `refs`, the `pfns` of their pages, and `bounds`: first and last
    sector of each, flat. No bounds: each is a whole page.

    `bounces` says which segments (by index) are bounce pages, and what they stand for:
    pfn, offset, length of each piece, flat. `unit`: how many sectors of 512 bytes one of
    first_sect and last_sect counts on the wire; first and last are whole units.
    """

    refs: list[int] = attrs.Factory(list)
    pfns: list[int] = attrs.Factory(list)
    bounds: list[int] = attrs.Factory(list)
    bounces: dict[int, list[int]] = attrs.Factory(dict)
    unit: int = 1

    @property
    def wire(self) -> list[int]:
        """gref, first, last of each, as the backend counts."""
        unit, bounds = self.unit, self.bounds
        wire = [0, 0, (SECTORS_PER_PAGE - 1) // unit] * len(self.refs)
        wire[::3] = self.refs
        if bounds:
            wire[1::3] = [first // unit for first in bounds[::2]]
            wire[2::3] = [last // unit for last in bounds[1::2]]
        return wire

    def table(self) -> bytes:
        """`wire` as the pages of an indirect request have it."""
        if self.bounds:
            return blkif.segments(len(self.refs)).pack(*self.wire)
        table = _whole(len(self.refs), (SECTORS_PER_PAGE - 1) // self.unit)[:]
        table[::2] = array("I", self.refs)
        return table.tobytes()

    def sectors(self) -> int:
        """Their length in sectors of 512 bytes."""
        bounds = self.bounds
        if not bounds:
            return SECTORS_PER_PAGE * len(self.refs)
        return sum(bounds[1::2]) - sum(bounds[::2]) + len(self.refs)

    def part(self, start: int, end: int) -> Segments:
        """Segments [start, end)."""
        bounces = {
            index - start: pieces for index, pieces in self.bounces.items() if start <= index < end
        }
        bounds = self.bounds[2 * start : 2 * end]
        return Segments(self.refs[start:end], self.pfns[start:end], bounds, bounces, self.unit)

    def release(self, bounce: Bounce, retired: Retired | None = None) -> bool:
        """End access and give bounce pages back; False if the backend maps a page it must not.

        `retired`: as of Bounce.put.
        """
        granter = bounce.granter
        if not self.bounces and retired is None:
            return granter.revoke_all(self.refs, self.pfns)
        refs = None if retired is None else retired.refs
        clean = True
        for index, (ref, pfn) in enumerate(zip(self.refs, self.pfns, strict=True)):
            if index in self.bounces:
                clean = bounce.put(ref, pfn, retired) and clean
            else:
                clean = granter.revoke(ref, pfn, False, refs) and clean
        return clean

    def copy_out(self, bounce: Bounce) -> None:
        """What the backend wrote into bounce pages, to where it belongs."""
        domain = bounce.granter.domain
        for index, pieces in self.bounces.items():
            offset = self.bounds[2 * index] << SECTOR_SHIFT
            domain.scatter(pieces, domain.read(self.pfns[index], offset, sum(pieces[2::3])))


@cache
def _whole(count: int, last: int) -> array[int]:
    """A table of segments from 0 to `last` each, without their references."""
    return array("I", [0, last << LAST_AT] * count)


def build(
    bounce: Bounce, srb: Srb, offset: int, nr_bytes: int, sector_size: int, readonly: bool
) -> Segments:
    """Grant `nr_bytes` of the SRB's buffer from `offset` on, which has at least as many.

    `readonly`: the backend only reads (a WRITE). Raises HypercallError if references or
    pages run out; nothing stays granted then.
    """
    pfn, start, length = srb.data[0]
    start += offset
    if not ((start | nr_bytes) % PAGE_SIZE or bounce.always) and length >= offset + nr_bytes:
        count = nr_bytes // PAGE_SIZE
        pfn += start // PAGE_SIZE
        refs = bounce.granter.permit_run(pfn, count, readonly)
        return Segments(refs, list(range(pfn, pfn + count)))
    segments = Segments()
    try:
        _walk(bounce, segments, _fragments(srb, offset, nr_bytes), sector_size, readonly)
    except HypercallError:
        segments.release(bounce)
        raise
    return segments


def _fragments(srb: Srb, skip: int, left: int) -> list[list[int]]:
    """[pfn, offset, length] of `left` bytes of the buffer after `skip`, none across a page."""
    fragments = []
    for first, start, length in srb.data:
        rest = min(length - skip, left)
        if rest <= 0:
            skip -= length
            continue
        pfn, offset = divmod(start + skip, PAGE_SIZE)
        pfn += first
        skip = 0
        left -= rest
        while rest:
            size = min(PAGE_SIZE - offset, rest)
            fragments.append([pfn, offset, size])
            rest -= size
            offset = 0
            pfn += 1
        if not left:
            break
    return fragments


def _walk(
    bounce: Bounce,
    segments: Segments,
    fragments: list[list[int]],
    sector_size: int,
    readonly: bool,
) -> None:
    at = 0
    while at < len(fragments):
        pfn, offset, length = fragments[at]
        if not (offset % sector_size or length % sector_size):
            if bounce.always:
                # In its own place: what is around it stays zero.
                _bounce(bounce, segments, [pfn, offset, length], offset, readonly)
            else:
                ref = bounce.granter.permit(pfn, readonly)
                last = (offset + length >> SECTOR_SHIFT) - 1
                segments.refs.append(ref)
                segments.bounds += (offset >> SECTOR_SHIFT, last)
                segments.pfns.append(pfn)
            at += 1
            continue
        pieces: list[int] = []
        room = PAGE_SIZE
        while at < len(fragments) and room:
            pfn, offset, length = fragments[at]
            size = min(length, room)
            pieces += (pfn, offset, size)
            room -= size
            if size == length:
                at += 1
            else:
                fragments[at] = [pfn, offset + size, length - size]
        _bounce(bounce, segments, pieces, 0, readonly)


def _bounce(
    bounce: Bounce, segments: Segments, pieces: list[int], offset: int, readonly: bool
) -> None:
    size = sum(pieces[2::3])
    data = bounce.granter.domain.gather(pieces, size) if readonly else b""
    ref, pfn = bounce.get(data, offset, readonly)
    segments.bounces[len(segments.pfns)] = pieces
    segments.refs.append(ref)
    segments.bounds += (offset >> SECTOR_SHIFT, (offset + size >> SECTOR_SHIFT) - 1)
    segments.pfns.append(pfn)
