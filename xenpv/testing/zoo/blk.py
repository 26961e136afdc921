"""What block drivers get wrong: blkback, and XenVbd where it is told."""

from __future__ import annotations

from typing import Any, Final

from xenpv.abi.layout import offsetof
from xenpv.back import blkring
from xenpv.testing.rings import FIRST_SLOT, u32
from xenpv.testing.zoo.defect import Defect
from xenpv.xen.domain import PAGE_SIZE

# The ring that blkback serves now: blk_copy is given its pass, not the ring.
_served: list[Any] = []


def _remembers_ring(original: Any) -> Any:
    def service(ring: Any, vbd: Any) -> bool:
        _served.append(ring)
        try:
            more: bool = original(ring, vbd)
        finally:
            _served.pop()
        return more

    return service


def _fetch_again(ring: Any, first: int, end: int, field: int) -> None:
    """The byte at offset `field` of requests [first, end) of the pass, from the shared slots.

    No response of the pass is out yet: its first request is at rsp_prod.
    """
    for index in range(first, end):
        slot = u32(ring.rsp_prod + index) % ring.size
        page, offset = divmod(FIRST_SLOT + slot * ring.req_size + field, PAGE_SIZE)
        ring.raw[index * ring.req_size + field] = ring.domain.read(ring.pfns[page], offset, 1)[0]


def _fetches_nr_segments_again(original: Any) -> Any:
    """Checked as it was copied, used as it is in the slot by then."""
    nr_segments = offsetof("blkif_request", "nr_segments")

    def blk_copy(blk_pass: Any, first: int, end: int, *rest: Any) -> Any:
        if _served:
            _fetch_again(_served[-1].ring, first, end, nr_segments)
        return original(blk_pass, first, end, *rest)

    return blk_copy


DEFECTS: Final = (
    Defect(
        id="blk-double-fetch-nr-segments",
        end="blkback",
        mutation="nr_segments read twice",
        hunt="scenario:blk_requests",
        changes=(
            (blkring.BlkRing, "service", _remembers_ring),
            (blkring, "blk_copy", _fetches_nr_segments_again),
        ),
    ),
)
