"""A ring's passes against a model that judges and does each request by itself."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.back.test_blkback import Bounced, disk_bytes
from tests.vbd.rawfront import BARRIER, ERROR, FLUSH, OKAY, READ, WRITE, RawFront, make
from tests.world import World
from tests.world import make as make_world
from xenpv.abi._kernel import ffi, lib
from xenpv.abi.layout import packer
from xenpv.back.blkring import RUN
from xenpv.host.image import MemoryImage

SECTORS = 64
PAGES = 4  # granted; a segment may also name a reference that nobody gave
BAD = 4711

Segment = tuple[int, int, int]  # page, first, last


@attrs.frozen
class Request:
    operation: int
    sector: int
    segments: list[Segment]
    nr: int | None = None  # what nr_segments says instead


@attrs.define
class Model:
    """blkif's rules, request by request; nothing moves for one that is refused."""

    disk: bytearray
    pages: list[bytearray]
    readonly: bool
    unit: int  # sectors of 512 bytes in a logical one

    def serve(self, request: Request) -> int:
        nr = len(request.segments) if request.nr is None else request.nr
        if nr > 11:
            return ERROR
        segments = request.segments[:nr]
        if any(last > 7 or first > last for _, first, last in segments):
            return ERROR
        lengths = [last - first + 1 for _, first, last in segments]
        total = sum(lengths)
        if (request.operation and self.readonly) or (not total and request.operation <= WRITE):
            return ERROR
        if total and request.sector + total > SECTORS:
            return ERROR
        if total and any(length % self.unit for length in (request.sector, *lengths)):
            return ERROR
        if any(page >= PAGES for page, _, _ in segments):
            return ERROR
        at = request.sector * 512
        for (page, first, _last), length in zip(segments, lengths, strict=True):
            inside = slice(first * 512, (first + length) * 512)
            if request.operation == READ:
                self.pages[page][inside] = self.disk[at : at + length * 512]
            else:
                self.disk[at : at + length * 512] = self.pages[page][inside]
            at += length * 512
        return OKAY


SECTOR = st.one_of(
    st.integers(0, SECTORS - 1),
    st.sampled_from([SECTORS - 8, SECTORS, 2**32 - 8, 2**55, 2**63, 2**64 - 8, 2**64 - 1]),
)
# Mostly whole pages: those make runs in which no request errs.
BOUNDS = st.one_of(st.just((0, 7)), st.tuples(st.integers(0, 8), st.integers(0, 8)))
SEGMENT = st.builds(
    lambda page, bounds: (page, *bounds), st.sampled_from([0, 1, 2, 3, 0, 1, 2, 3, PAGES]), BOUNDS
)
REQUEST = st.builds(
    Request,
    st.sampled_from([READ, READ, READ, WRITE, WRITE, WRITE, BARRIER, FLUSH]),
    SECTOR,
    st.lists(SEGMENT, max_size=3),
    st.one_of(st.none(), st.none(), st.none(), st.sampled_from([0, 12, 255])),
)


def content() -> bytearray:
    return bytearray(b"".join(struct.pack("<I", n) * 128 for n in range(SECTORS)))


def plug(world: World, image: MemoryImage, mode: str, *, is_32: bool) -> tuple[RawFront, list[int]]:
    """A connected frontend, and the pfns of its pages, granted as 8 and on."""
    front = make(world, image, mode=mode).connect(protocol=f"x86_{32 if is_32 else 64}-abi")
    pfns = [front.page(bytes([0xA0 + n]) * 4096) for n in range(PAGES)]
    return front, pfns


@settings(max_examples=120, deadline=None)
@given(
    batches=st.lists(st.lists(REQUEST, min_size=1, max_size=8), min_size=1, max_size=3),
    readonly=st.booleans(),
    unit=st.sampled_from([1, 1, 8]),
    bounced=st.booleans(),
    is_32=st.booleans(),
)
def test_a_batch_does_what_its_requests_would_do_one_by_one(
    batches: list[list[Request]], readonly: bool, unit: int, bounced: bool, is_32: bool
) -> None:
    world = make_world()
    image = (Bounced if bounced else MemoryImage)(content())
    image.sector_size = 512 * unit
    front, pfns = plug(world, image, "r" if readonly else "w", is_32=is_32)
    refs = [*(front.grant(pfn) for pfn in pfns), BAD]
    pages = [bytearray(world.guest.read(pfn, 0, 4096)) for pfn in pfns]
    model = Model(content(), pages, readonly, unit)
    for batch in batches:
        slots = [
            front.request(
                one.operation,
                one.sector,
                [(refs[page], first, last) for page, first, last in one.segments],
                rid=rid,
                nr=one.nr,
            )
            for rid, one in enumerate(batch)
        ]
        answers = front.send(*slots)
        expected = [(rid, one.operation, model.serve(one)) for rid, one in enumerate(batch)]
        assert answers == expected
    assert disk_bytes(image) == model.disk
    assert [world.guest.read(pfn, 0, 4096) for pfn in pfns] == model.pages
    assert all(front.revoke(ref) == 0 for ref in refs[:-1])
    world.hypervisor.close()


@pytest.mark.parametrize("operation", [READ, WRITE])
def test_one_page_in_every_segment_of_a_full_ring(world: World, operation: int) -> None:
    """352 uses of one reference in a pass, of which a page takes 128 pins at once."""
    front = make(world, MemoryImage(content())).connect()
    ref = front.grant(front.page())
    slots = [front.request(operation, 0, [(ref, 0, 3)] * 11, rid=rid) for rid in range(32)]
    assert front.send(*slots) == [(rid, operation, OKAY) for rid in range(32)]
    assert front.revoke(ref) == 0


def run(*, end: int, **columns: int) -> dict[str, int]:
    return {"first": 0, "units": 0, "pad": 0, "top": 0, **columns, "end": end}


@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        ([(READ, 8, [(0, 7)])], [run(end=1, operation=READ, least=8, units=8, top=16)]),
        ([(READ, 0, [(0, 7)]), (READ, 3, [(2, 2)])],
         [run(end=2, operation=READ, least=1, units=11, top=8)]),
        ([(READ, 2**64 - 8, [(0, 7)])],
         [run(end=1, operation=READ, least=8, units=0xFFFFFFF8, top=2**64 - 1)]),
        ([(WRITE, 2**64 - 1, [(0, 1)])],
         [run(end=1, operation=WRITE, least=2, units=0xFFFFFFFF, top=2**64 - 1)]),
        # Without a sector a sector_number means nothing.
        ([(FLUSH, 2**63, [])], [run(end=1, operation=FLUSH, least=0)]),
        ([(READ, 0, [(0, 8)]), (READ, 0, [(3, 2)]), (READ, 0, [])],
         [run(end=3, operation=READ, least=0)]),
        ([(READ, 0, [(0, 0)]), (WRITE, 1, [(0, 0)]), (READ, 2, [(0, 0)])],
         [run(end=1, operation=READ, least=1, units=1, top=1),
          run(end=2, operation=WRITE, least=1, units=1, top=2, first=1),
          run(end=3, operation=READ, least=1, units=3, top=3, first=2)]),
        # What is not data is not looked into.
        ([(77, 2**63, [(9, 0)] * 11)], [run(end=1, operation=77, least=0)]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_32", [False, True])
def test_columns_tell_what_a_run_holds(
    world: World,
    requests: Sequence[tuple[int, int, list[tuple[int, int]]]],
    expected: list[dict[str, int]],
    is_32: bool,
) -> None:
    front, _ = plug(world, MemoryImage(content()), "w", is_32=is_32)
    blkring = front.driver.queues[0].ring
    front.driver.halted = True  # the backend leaves the ring to us
    front.send(*(front.request(op, at, [(0, *one) for one in segs]) for op, at, segs in requests))
    taken = lib.blk_take(blkring._pass)
    assert (taken & 0xFFFF, taken >> 16) == (len(requests), len(expected))
    names = [name for name, _ in ffi.typeof("struct blk_run").fields]
    runs = RUN.iter_unpack(blkring._runs[: RUN.size * len(expected)])
    assert [dict(zip(names, fields, strict=True)) for fields in runs] == expected
    assert packer("blk_run") is RUN


def test_a_pass_takes_copies_answers_and_looks_again(world: World) -> None:
    """Every access of a backend's pass over two reads, in order."""
    front, pfns = plug(world, MemoryImage(content()), "w", is_32=False)
    refs = [front.grant(pfn) for pfn in pfns]
    front.driver.halted = True
    front.send(*(front.request(READ, 8 * n, [(refs[n], 0, 7)]) for n in range(2)))
    assert front.ring is not None
    frames = [lib.p2m_lookup(world.guest.kernel, pfn, 0) for pfn in (front.ring.pfns[0], *pfns)]
    table = lib.grant_table_frame(world.guest.kernel, 0)
    seen: list[tuple[str, int, int, int]] = []

    def hook(actor: int, kind: int, frame: int, offset: int, size: int) -> None:
        if actor == 0 and frame != table and frame in frames:
            name = ("ring", "page0", "page1", "page2", "page3")[frames.index(frame)]
            seen.append((name, kind & 3, offset, size))

    world.hypervisor.set_hook(hook)
    driver = front.driver
    assert driver.vbd is not None
    driver.queues[0].ring.service(driver.vbd)
    world.hypervisor.set_hook(None)
    assert seen == [
        ("ring", 0, 0, 4),  # req_prod, once
        ("ring", 0, 64, 112),  # each request, once
        ("ring", 0, 176, 112),
        ("page0", 1, 0, 4096),
        ("page1", 1, 0, 4096),
        ("ring", 1, 64, 112),  # the responses
        ("ring", 1, 176, 112),
        ("ring", 1, 8, 4),  # rsp_prod after them
        ("ring", 0, 12, 4),  # rsp_event after that
        ("ring", 0, 0, 4),
        ("ring", 1, 4, 4),  # req_event, then look again
        ("ring", 0, 0, 4),
    ]


def test_an_aborted_copy_gives_its_pins_back(world: World) -> None:
    front, pfns = plug(world, MemoryImage(content()), "w", is_32=False)
    refs = [front.grant(pfn) for pfn in pfns]
    last = lib.p2m_lookup(world.guest.kernel, pfns[2], 0)
    pinned = world.guest.gnttab.pinned()

    def stop(_actor: int, _kind: int, frame: int, _offset: int, size: int) -> None:
        if frame == last and size == 4096:
            raise KeyError("third page")

    world.hypervisor.set_hook(stop)
    with pytest.raises(KeyError, match="third page"):
        front.send(front.request(READ, 0, [(ref, 0, 7) for ref in refs]))
    world.hypervisor.set_hook(None)
    assert world.guest.gnttab.pinned() == pinned


@pytest.mark.parametrize("operation", [READ, WRITE])
def test_no_byte_moves_through_a_page_that_is_not_pinned(world: World, operation: int) -> None:
    """Nor after a request that had pinned it, for itself and for later ones, was refused."""
    front, pfns = plug(world, MemoryImage(content()), "w", is_32=False)
    refs = [front.grant(pfn) for pfn in pfns]
    # 128 apart: what finds a pinned page again looks at the low bits of its reference.
    lib.grant_entry_set(world.guest.kernel, refs[0] + 128, 0, pfns[3], 1)
    frames = {
        lib.p2m_lookup(world.guest.kernel, pfn, 0): ref
        for pfn, ref in zip(pfns, [*refs[:3], refs[0] + 128], strict=True)
    }
    moved: list[int] = []

    def hook(actor: int, _kind: int, frame: int, _offset: int, _size: int) -> None:
        if actor == 0 and frame in frames:
            ref = frames[frame]
            assert lib.grant_entry_flags(world.guest.kernel, ref) & 0x18, ref  # reading, writing
            moved.append(ref)

    def request(rid: int, *named: int) -> bytes:
        return front.request(operation, 0, [(ref, 0, 0) for ref in named], rid=rid)

    other = refs[0] + 128
    slots = [
        request(0, refs[0], refs[1], BAD),
        request(1, refs[0], refs[1], refs[0]),
        request(2, refs[2], BAD),
        request(3, refs[0], other, refs[0], other),
        request(4, refs[2], refs[2]),
    ]
    world.hypervisor.set_hook(hook)
    answers = front.send(*slots)
    world.hypervisor.set_hook(None)
    assert [status for _, _, status in answers] == [ERROR, OKAY, ERROR, OKAY, OKAY]
    assert moved == [
        *(refs[0], refs[1], refs[0]),
        *(refs[0], other, refs[0], other),
        *(refs[2], refs[2]),
    ]
    assert all(front.revoke(ref) == 0 for ref in (*refs, other))
