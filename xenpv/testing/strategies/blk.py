"""Requests of blkif, well-formed or not, and what frontends and backends say of themselves."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from xenpv.abi.blkif import BLKIF_OP
from xenpv.testing.blk_layout import SEGMENTS_MAX, Layout, Segment

SECTORS_PER_PAGE = 8
DIRECT = (BLKIF_OP.READ, BLKIF_OP.WRITE, BLKIF_OP.FLUSH_DISKCACHE, BLKIF_OP.WRITE_BARRIER)


@attrs.frozen(kw_only=True)
class BlkRequest:
    """One request; sectors count 512 bytes. Of DISCARD `count` sectors, of others `segments`
    (reference, first and last sector of a page).
    """

    operation: BLKIF_OP
    id: int
    sector: int
    segments: tuple[Segment, ...] = ()
    count: int = 0
    handle: int = 0

    def emit(self, suffix: str = "") -> bytes:
        """A whole slot of x86_64's layout, or with "_x86_32" of the other."""
        layout = Layout(suffix)
        if self.operation is BLKIF_OP.DISCARD:
            return layout.discard(self.handle, self.id, self.sector, self.count)
        return layout.direct(self.operation, self.handle, self.id, self.sector, self.segments)


def blk_requests(
    refs: Sequence[int], *, sectors: int = 128, hostile: bool = False
) -> SearchStrategy[BlkRequest]:
    """Requests whose data lies in the pages of `refs`, within a disk of `sectors`.

    `hostile`: segments that end before they begin or beyond their page, sectors beyond the
    disk, references that nobody gave.
    """
    last = st.integers(0, SECTORS_PER_PAGE - 1)
    pieces = st.tuples(st.sampled_from(list(refs)), last, last).map(
        lambda one: (one[0], min(one[1:]), max(one[1:]))
    )
    where = st.integers(0, max(0, sectors - SECTORS_PER_PAGE * SEGMENTS_MAX))
    if hostile:
        any_ref = st.sampled_from(list(refs)) | st.integers(0, 0xFFFFFFFF)
        pieces = st.tuples(any_ref, st.integers(0, 255), st.integers(0, 255))
        where = st.integers(0, sectors + 8) | st.integers(0, (1 << 64) - 1)
    some = st.lists(pieces, min_size=1, max_size=SEGMENTS_MAX).map(tuple)
    ids = st.integers(0, (1 << 64) - 1)
    moves = st.builds(
        BlkRequest, operation=st.sampled_from(DIRECT[:2]), id=ids, sector=where, segments=some
    )
    flushes = st.builds(
        BlkRequest, operation=st.sampled_from(DIRECT[2:]), id=ids, sector=st.just(0)
    )
    discards = st.builds(
        BlkRequest,
        operation=st.just(BLKIF_OP.DISCARD),
        id=ids,
        sector=where,
        count=st.integers(0, SECTORS_PER_PAGE),
    )
    return moves | flushes | discards


def blk_features() -> SearchStrategy[dict[str, str]]:
    """A backend's keys: the raw backend's `features` and `keys` take them."""
    flag = st.sampled_from(["0", "1"])
    return st.fixed_dictionaries(
        {},
        optional={
            "feature-flush-cache": flag,
            "feature-barrier": flag,
            "feature-discard": flag,
            "feature-persistent": flag,
            "feature-max-indirect-segments": st.sampled_from(["0", "1", "12", "32", "256", "4096"]),
            "max-ring-page-order": st.sampled_from(["0", "1", "2", "4", "5"]),
            "multi-queue-max-queues": st.sampled_from(["0", "1", "2", "8"]),
        },
    )
