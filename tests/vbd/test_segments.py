"""How an SRB's buffer becomes granted segments, looked at as the backend sees them."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.world import World, make
from xenpv.bus.gnttab import GnttabInterface
from xenpv.errors import HypercallError
from xenpv.vbd.bounce import BouncePages
from xenpv.vbd.granter import BOUNCE_RESERVE, Granter
from xenpv.vbd.segments import Segments, build
from xenpv.vbd.srb import Srb


@attrs.define(eq=False)
class Desk:
    world: World
    gnttab: GnttabInterface
    granter: Granter
    bounce: BouncePages

    def build(
        self, data: list[tuple[int, int, int]], size: int = 512, *, readonly: bool = True
    ) -> Segments:
        srb = Srb(data=data)
        return build(self.bounce, srb, 0, srb.data_transfer_length, size, readonly)

    def shape(self, segments: Segments) -> list[tuple[int, int, int]]:
        """(pfn, first, last) of each; a bounce page is pfn 0."""
        return [
            (0 if index in segments.bounces else pfn, first, last)
            for index, (pfn, first, last) in enumerate(
                zip(segments.pfns, segments.wire[1::3], segments.wire[2::3], strict=True)
            )
        ]

    def bytes(self, segments: Segments) -> bytes:
        """What a backend reads by those references: each is followed to its page."""
        out = b""
        wire = segments.wire
        for ref, first, last in zip(wire[::3], wire[1::3], wire[2::3], strict=True):
            pfn, _ = self.gnttab.query_reference(ref)
            out += self.world.guest.read(pfn, first * 512, (last - first + 1) * 512)
        return out


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    world = make()
    gnttab = world.gnttab()
    granter = Granter(world.guest, gnttab)
    yield Desk(world, gnttab, granter, BouncePages(granter))
    world.hypervisor.close()


P = 0x140  # pages 0x140 and up are the tests' own
ALL = (0, 7)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([(P, 0, 4096)], [(P, *ALL)]),
        ([(P, 0, 8192)], [(P, *ALL), (P + 1, *ALL)]),
        ([(P, 4096, 4096)], [(P + 1, *ALL)]),
        ([(P, 0, 512)], [(P, 0, 0)]),
        ([(P, 3584, 512)], [(P, 7, 7)]),
        ([(P, 1024, 1536)], [(P, 2, 4)]),
        ([(P, 3584, 1024)], [(P, 7, 7), (P + 1, 0, 0)]),
        ([(P, 512, 8192)], [(P, 1, 7), (P + 1, *ALL), (P + 2, 0, 0)]),
        # An aligned fragment ends its segment, although the page goes on.
        ([(P, 0, 512), (P + 5, 0, 512)], [(P, 0, 0), (P + 5, 0, 0)]),
        # Anything else is gathered into bounce pages.
        ([(P, 100, 512)], [(0, 0, 0)]),
        ([(P, 100, 4096)], [(0, *ALL)]),
        ([(P, 100, 8192)], [(0, *ALL), (0, *ALL)]),
        ([(P, 0, 100), (P + 3, 0, 412)], [(0, 0, 0)]),
        ([(P, 0, 100), (P + 3, 0, 300), (P + 4, 8, 112)], [(0, 0, 0)]),
        ([(P, 0, 512), (P + 3, 1, 512)], [(P, 0, 0), (0, 0, 0)]),
        # A bounce page takes what follows, up to 4096 bytes; then the fragments are looked
        # at again.
        ([(P, 3, 4093), (P + 3, 0, 3), (P + 4, 0, 4096)], [(0, *ALL), (P + 4, *ALL)]),
    ],
)
def test_fragments_become_segments(
    desk: Desk, data: list[tuple[int, int, int]], expected: list[tuple[int, int, int]]
) -> None:
    segments = desk.build(data)
    assert desk.shape(segments) == expected
    assert segments.sectors() * 512 == sum(length for _pfn, _offset, length in data)
    assert segments.release(desk.bounce)
    assert desk.granter.granted == 0


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([(P, 0, 4096)], [(P, *ALL)]),
        ([(P, 512, 4096)], [(0, *ALL)]),
        ([(P, 0, 2048), (P + 1, 2048, 2048)], [(0, *ALL)]),
    ],
)
def test_a_sector_of_4_kib_is_granted_whole_or_bounced(
    desk: Desk, data: list[tuple[int, int, int]], expected: list[tuple[int, int, int]]
) -> None:
    segments = desk.build(data, 4096)
    assert desk.shape(segments) == expected
    segments.release(desk.bounce)


ELEMENTS = st.lists(
    st.tuples(st.integers(P, P + 32), st.integers(0, 8191), st.integers(1, 9000)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=200, deadline=None)
@given(elements=ELEMENTS, size=st.sampled_from([512, 1024, 4096]), aligned=st.booleans())
def test_the_backend_sees_the_buffers_bytes_in_order(
    desk: Desk, elements: list[tuple[int, int, int]], size: int, aligned: bool
) -> None:
    guest = desk.world.guest
    for pfn in range(P, P + 40):
        guest.write(pfn, 0, bytes((pfn + at // 512 * 37 + at) & 0xFF for at in range(4096)))
    if aligned:
        elements = [(pfn, at // size * size, -(-n // size) * size) for pfn, at, n in elements]
    total = sum(length for _pfn, _offset, length in elements)
    rest = -total % size
    elements.append((P, 0, rest)) if rest else None
    pieces = [(pfn + offset // 4096, offset % 4096, n) for pfn, offset, n in elements]
    expected = guest.gather([word for piece in pieces for word in piece], total + rest)
    segments = desk.build(elements, size)
    assert desk.bytes(segments) == expected
    for first, last in zip(segments.wire[1::3], segments.wire[2::3], strict=True):
        assert 0 <= first <= last <= 7
        assert first * 512 % size == 0
        assert (last - first + 1) * 512 % size == 0
    if aligned:
        assert not segments.bounces
    assert segments.release(desk.bounce)
    assert desk.granter.granted == 0


def test_what_is_read_into_a_bounce_page_lands_where_it_belongs(desk: Desk) -> None:
    guest = desk.world.guest
    for pfn in (P, P + 1, P + 7):
        guest.write(pfn, 0, b"\xee" * 4096)
    segments = desk.build([(P, 4000, 200), (P + 7, 5, 312)], readonly=False)
    (page,) = segments.pfns
    assert guest.read(page, 0, 4096) == bytes(4096)  # a backend sees nothing of the guest
    guest.write(page, 0, bytes(range(256)) * 2)
    segments.copy_out(desk.bounce)
    data = bytes(range(256)) * 2
    assert guest.read(P, 3990, 300) == b"\xee" * 10 + data[:200] + b"\xee" * 90
    assert guest.read(P + 7, 0, 400) == b"\xee" * 5 + data[200:] + b"\xee" * 83
    segments.release(desk.bounce)


def test_a_bounce_page_shows_its_data_and_nothing_more(desk: Desk) -> None:
    guest = desk.world.guest
    guest.write(P, 0, b"\x11" * 4096)
    for _ in range(2):  # the second time the page was used before
        segments = desk.build([(P, 1, 1024)])
        assert guest.read(segments.pfns[0], 0, 4096) == b"\x11" * 1024 + bytes(3072)
        segments.release(desk.bounce)
        guest.write(segments.pfns[0], 0, b"\x99" * 4096)


@pytest.mark.parametrize("readonly", [True, False])
@pytest.mark.parametrize("offset", [0, 1])
def test_the_direction_decides_what_the_backend_may_do(
    desk: Desk, readonly: bool, offset: int
) -> None:
    segments = desk.build([(P, offset, 4096)], readonly=readonly)
    assert [desk.gnttab.query_reference(ref)[1] for ref in segments.wire[::3]] == [readonly]
    segments.release(desk.bounce)


@pytest.mark.parametrize("data", [[(P, 0, 64 * 4096)], [(P, 1, 64 * 4096)]])
def test_nothing_stays_granted_when_references_run_out(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, data: list[tuple[int, int, int]]
) -> None:
    gnttab = desk.gnttab

    def full() -> None:
        raise HypercallError(28)

    monkeypatch.setattr(gnttab, "_free", gnttab._free[-20:])
    monkeypatch.setattr(gnttab, "_expand", full)
    before = gnttab.permitted
    with pytest.raises(HypercallError):
        desk.build(data)
    assert gnttab.permitted == before
    assert desk.granter.granted == 0
    # The twenty that there are suffice for twenty.
    segments = desk.build([(P, 0, 20 * 4096)])
    assert len(segments.refs) == 20
    assert segments.release(desk.bounce)


def test_a_page_that_is_still_mapped_is_quarantined_until_it_is_not(desk: Desk) -> None:
    world, granter = desk.world, desk.granter
    segments = desk.build([(P, 0, 4096), (P + 1, 1, 512)])
    pages, refs = list(segments.pfns), segments.wire[::3]
    handles = []
    for ref in refs:
        pfn = world.dom0.holes.alloc()
        handles.append((world.dom0.gnttab.map(1, ref, pfn, readonly=True), pfn))
    assert not segments.release(desk.bounce)
    assert granter.holds(P, 1)
    assert granter.holds(P - 1, 2)
    assert not granter.holds(P + 1, 3)
    assert granter.granted == 2
    for handle, pfn in handles:
        world.dom0.gnttab.unmap(handle, pfn)
    granter.retry()
    assert granter.granted == 0
    assert not granter.holds(P, 1)
    assert granter.page() == pages[1]
    granter.put_page(pages[1])


def test_no_more_bounce_pages_are_kept_than_the_reserve(desk: Desk) -> None:
    granter = Granter(desk.world.guest, desk.gnttab)
    pages = [granter.page() for _ in range(BOUNCE_RESERVE + 5)]
    for pfn in pages:
        granter.put_page(pfn)
    fresh = desk.world.guest.pages.alloc()
    assert fresh == pages[-1]  # beyond the reserve they went back
    assert granter.page() == pages[BOUNCE_RESERVE - 1]
    granter.put_page(pages[BOUNCE_RESERVE - 1])
    desk.world.guest.pages.free(fresh)
    granter.release()
