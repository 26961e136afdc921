"""What a Linux frontend had on the ring when its guest moved: prepared anew, by the new backend's rules."""

from __future__ import annotations

import pytest

from tests.vbd.rawback import INDIRECT, OKAY, Scene, Slot, read10, scene, write10
from xenpv.vbd.bounce import PersistentGrants
from xenpv.vbd.frontend import FrontendState
from xenpv.vbd.parameters import Parameters
from xenpv.vbd.srb import Srb, SrbStatus

PAGES = 40
WIDE = {"feature-max-indirect-segments": "256"}
# Scatter lists of 40 pages: in one piece, two, and where nothing lies in whole sectors.
LAYOUTS = {
    "whole": [(0, 0, PAGES * 4096)],
    "pieces": [(0, 0, 13 * 4096 + 512), (20, 1024, 26 * 4096 + 3584)],
    "odd": [(0, 7, 17 * 4096 + 3), (20, 100, 22 * 4096 + 4093)],
}


def moved(on: Scene, **keys: str) -> None:
    """To a backend that says this; the old one answered nothing and mapped nothing."""
    for key, value in keys.items():
        on.back.device.write(key.replace("_", "-"), value)
    on.frontend.resume()
    on.xen.run()
    assert on.target.state is FrontendState.ENABLED


def data_of(on: Scene, pieces: list[tuple[int, int, int]]) -> bytes:
    return on.domain.gather(
        [word for pfn, offset, size in pieces for word in (pfn, offset, size)],
        sum(size for _pfn, _offset, size in pieces),
    )


def segments(on: Scene, slots: list[Slot]) -> list[tuple[int, int, int]]:
    return [
        one
        for slot in slots
        for one in (on.back.table(slot) if slot.operation == INDIRECT else slot.segments)
    ]


def everything(on: Scene) -> list[Slot]:
    """All READs that come, each answered once its data is there."""
    slots: list[Slot] = []
    while more := on.back.taken():
        slots += more
        at = slots[0].sector
        for slot in more:
            filled = slot.sector - at
            for ref, first, last in segments(on, [slot]):
                count = last - first + 1
                data = b"".join(bytes((filled + n & 0xFF,)) * 512 for n in range(count))
                on.back.fill(ref, data, first * 512)
                filled += count
        on.back.answer(*[(slot.id, OKAY) for slot in more])
    return slots


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("before", "after", "counts"),
    [
        ("256", "256", [32, 8]),
        ("256", "0", [11, 11, 10, 8]),
        ("256", "16", [16, 16, 8]),
        ("0", "256", [11, 11, 11, 7]),  # each part as it was
    ],
)
def test_a_read_is_split_by_the_new_limit(
    layout: str, before: str, after: str, counts: list[int]
) -> None:
    with scene("linux", early={"feature-max-indirect-segments": before}) as on:
        pfn = on.domain.pages.alloc(64)
        pieces = [(pfn + page, offset, size) for page, offset, size in LAYOUTS[layout]]
        srb = on.submit(read10(100, PAGES * 8), pieces)
        assert srb.srb_status is SrbStatus.PENDING
        moved(on, feature_max_indirect_segments=after)
        slots = everything(on)
        if layout != "pieces":
            assert [slot.nr for slot in slots] == counts
        assert srb.srb_status is SrbStatus.SUCCESS
        assert data_of(on, pieces) == b"".join(bytes((n & 0xFF,)) * 512 for n in range(PAGES * 8))
        assert on.frontend.granter.granted == len(on.frontend.rings[0].grefs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kept", [(False, False), (True, True), (True, False), (False, True)])
def test_a_write_brings_its_data_to_the_new_backend(layout: str, kept: tuple[bool, bool]) -> None:
    before, after = kept
    keys = {"feature-persistent": str(int(before))}
    with scene("linux", early=WIDE, keys=keys, vbd=Parameters(persistent=True)) as on:
        pfn = on.domain.pages.alloc(64)
        pieces = [(pfn + page, offset, size) for page, offset, size in LAYOUTS[layout]]
        data = b"".join(bytes((n & 0xFF, n >> 8)) * 256 for n in range(PAGES * 8))
        at = 0
        for page, offset, size in pieces:
            on.domain.write(page, offset, data[at : at + size])
            at += size
        srb = on.submit(write10(0, PAGES * 8), pieces)
        on.back.keys = dict(on.back.keys) | {"feature-persistent": str(int(after))}
        moved(on, feature_max_indirect_segments="0")
        assert isinstance(on.frontend.rings[0].bounce, PersistentGrants) is after
        seen = b""
        while slots := on.back.taken():
            for ref, first, last in segments(on, slots):
                seen += on.back.read(ref, first * 512, (last - first + 1) * 512)
            on.back.answer(*[(slot.id, OKAY) for slot in slots])
        assert seen == data
        assert srb.srb_status is SrbStatus.SUCCESS


def test_requests_keep_their_order_and_those_behind_them_follow() -> None:
    with scene("linux") as on:
        pfn = on.domain.pages.alloc(64)
        srbs = [Srb(cdb=read10(n, 1), data=[(pfn + n, 0, 512)]) for n in range(40)]
        for srb in srbs:
            on.adapter.submit(srb)
        on.xen.run()
        moved(on)
        assert [slot.sector for slot in everything(on)] == list(range(40))
        assert {srb.srb_status for srb in srbs} == {SrbStatus.SUCCESS}


def test_what_the_old_backend_holds_is_an_error_and_stays_granted() -> None:
    with scene("linux") as on:
        pfn = on.domain.pages.alloc(2)
        srbs = [on.submit(read10(n, 8), [(pfn + n, 0, 4096)]) for n in range(2)]
        first, _second = on.back.taken()
        on.back.keeps = True
        on.back.map(first.segments[0][0])
        on.frontend.resume()
        on.xen.run()
        assert srbs[0].srb_status is SrbStatus.ERROR
        assert srbs[1].srb_status is SrbStatus.PENDING
        assert on.frontend.granter.holds(pfn, 1)
