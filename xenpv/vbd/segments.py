"""From an SRB's scatter list to granted segments (win-xenvbd ring.c, PrepareSegment).

A fragment never crosses a page. One whose offset and length are whole sectors is granted
where it lies; anything else is gathered into a bounce page. Unlike the driver, a segment
ends where its fragment ends, and a bounce page may take more than two fragments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from xenpv.errors import HypercallError
from xenpv.vbd.granter import Granter
from xenpv.vbd.srb import Srb
from xenpv.xen.domain import PAGE_SIZE

WIRE_SHIFT: Final = 9  # first_sect and last_sect count 512 bytes, whatever the disk's sector
LAST_SECT: Final = (PAGE_SIZE >> WIRE_SHIFT) - 1


@attrs.define(eq=False)
class Segments:
    """Granted segments, in order. `wire` is gref, first, last of each; `pfns` their pages.

    `bounces` says which segments (by index) are bounce pages, and what they stand for:
    pfn, offset, length of each piece, flat.
    """

    wire: list[int] = attrs.Factory(list)
    pfns: list[int] = attrs.Factory(list)
    bounces: dict[int, list[int]] = attrs.Factory(dict)

    def sectors(self) -> int:
        """Their length in sectors of 512 bytes."""
        return sum(self.wire[2::3]) - sum(self.wire[1::3]) + len(self.pfns)

    def part(self, start: int, end: int) -> Segments:
        """Segments [start, end)."""
        bounces = {
            index - start: pieces for index, pieces in self.bounces.items() if start <= index < end
        }
        return Segments(self.wire[3 * start : 3 * end], self.pfns[start:end], bounces)

    def release(self, granter: Granter, retired: list[int] | None = None) -> bool:
        """End access and give bounce pages back; False if the backend still maps a page.

        `retired`: as of Granter.revoke.
        """
        if not self.bounces and retired is None:
            return granter.revoke_all(self.wire[::3], self.pfns)
        clean = True
        for index, (ref, pfn) in enumerate(zip(self.wire[::3], self.pfns, strict=True)):
            owned = index in self.bounces
            if not granter.revoke(ref, pfn, owned, retired):
                clean = False
            elif owned:
                granter.put_page(pfn)
        return clean

    def ungrant(self, granter: Granter, retired: list[int]) -> bool:
        """End access but keep the pages, for another backend; False if this one still maps one,
        and then all is given up as by `release`.
        """
        held = [
            index
            for index, (ref, pfn) in enumerate(zip(self.wire[::3], self.pfns, strict=True))
            if not granter.revoke(ref, pfn, index in self.bounces, retired)
        ]
        if held:
            self.put_pages(granter, held)
        return not held

    def grant(self, granter: Granter, *, readonly: bool) -> None:
        """Give access anew to pages that `ungrant` kept. HypercallError: all is given up."""
        refs: list[int] = []
        try:
            for pfn in self.pfns:
                refs.append(granter.permit(pfn, readonly))  # noqa: PERF401 - kept on failure
        except HypercallError:
            for ref, pfn in zip(refs, self.pfns, strict=False):
                granter.revoke(ref, pfn)
            self.put_pages(granter)
            raise
        self.wire[::3] = refs

    def put_pages(self, granter: Granter, held: Sequence[int] = ()) -> None:
        """Give back the bounce pages of segments without access, but for some by their index."""
        for index in self.bounces:
            if index not in held:
                granter.put_page(self.pfns[index])

    def copy_out(self, granter: Granter) -> None:
        """What the backend wrote into bounce pages, to where it belongs."""
        domain = granter.domain
        for index, pieces in self.bounces.items():
            domain.scatter(pieces, domain.read(self.pfns[index], 0, sum(pieces[2::3])))


def build(granter: Granter, srb: Srb, nr_bytes: int, sector_size: int, readonly: bool) -> Segments:
    """Grant the first `nr_bytes` of the SRB's buffer, which has at least as many.

    `readonly`: the backend only reads (a WRITE). Raises HypercallError if references or
    pages run out; nothing stays granted then.
    """
    pfn, offset, length = srb.data[0]
    if not offset % PAGE_SIZE and not nr_bytes % PAGE_SIZE and length >= nr_bytes:
        count = nr_bytes // PAGE_SIZE
        pfn += offset // PAGE_SIZE
        refs = granter.permit_run(pfn, count, readonly)
        wire = [word for ref in refs for word in (ref, 0, LAST_SECT)]
        return Segments(wire, list(range(pfn, pfn + count)))
    segments = Segments()
    try:
        _walk(granter, segments, _fragments(srb, nr_bytes), sector_size, readonly)
    except HypercallError:
        segments.release(granter)
        raise
    return segments


def _fragments(srb: Srb, nr_bytes: int) -> list[list[int]]:
    """[pfn, offset, length] of the buffer's first bytes, none across a page."""
    fragments = []
    for first, start, length in srb.data:
        pfn, offset = first + start // PAGE_SIZE, start % PAGE_SIZE
        rest = min(length, nr_bytes)
        nr_bytes -= rest
        while rest:
            size = min(PAGE_SIZE - offset, rest)
            fragments.append([pfn, offset, size])
            rest -= size
            offset = 0
            pfn += 1
    return fragments


def _walk(
    granter: Granter,
    segments: Segments,
    fragments: list[list[int]],
    sector_size: int,
    readonly: bool,
) -> None:
    at = 0
    while at < len(fragments):
        pfn, offset, length = fragments[at]
        if not (offset % sector_size or length % sector_size):
            ref = granter.permit(pfn, readonly)
            last = (offset + length >> WIRE_SHIFT) - 1
            segments.wire += (ref, offset >> WIRE_SHIFT, last)
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
        _bounce(granter, segments, pieces, PAGE_SIZE - room, readonly)


def _bounce(
    granter: Granter, segments: Segments, pieces: list[int], size: int, readonly: bool
) -> None:
    page = granter.page()
    data = granter.domain.gather(pieces, size) if readonly else b""
    granter.fill(page, data)
    try:
        ref = granter.permit(page, readonly)
    except HypercallError:
        granter.put_page(page)
        raise
    segments.bounces[len(segments.pfns)] = pieces
    segments.wire += (ref, 0, (size >> WIRE_SHIFT) - 1)
    segments.pfns.append(page)
