"""Data: whatever the shape of the buffer, the guest sees the image and the image the guest."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vbd.conftest import SECTORS, Scene, content, scene
from xenpv.vbd.srb import SrbStatus

PAGE = 4096


class Op(NamedTuple):
    lba: int
    count: int
    write: bool


OPS = st.builds(Op, st.integers(0, SECTORS - 1), st.integers(1, 200), st.booleans()).filter(
    lambda op: op.lba + op.count <= SECTORS
)


@given(st.lists(OPS, max_size=12), st.sampled_from(["windows", "linux"]))
def test_reads_and_writes_equal_a_bytearray(ops: list[Op], personality: str) -> None:
    s = scene(personality)
    with s.xen:
        disk = s.guest.disks[0]
        model = content()
        for number, op in enumerate(ops):
            span = slice(op.lba * 512, (op.lba + op.count) * 512)
            if op.write:
                data = bytes((number + n) % 253 for n in range(op.count * 512))
                disk.write(op.lba, data)
                model[span] = data
            else:
                assert disk.read(op.lba, op.count) == model[span]
        disk.flush()
        assert bytes(s.image.buffer) == model


@st.composite
def scatter_lists(draw: st.DrawFn) -> list[tuple[int, int]]:
    """(offset in a page, length) of pieces that sum to whole sectors."""
    pieces = draw(
        st.lists(st.tuples(st.integers(0, PAGE - 1), st.integers(1, 9000)), min_size=1, max_size=8)
    )
    excess = sum(length for _, length in pieces) % 512
    if excess:
        pieces.append((draw(st.integers(0, PAGE - 1)), 512 - excess))
    return pieces


@given(scatter_lists(), st.integers(0, 1000), st.booleans())
def test_any_scatter_list_moves_the_right_bytes(
    pieces: list[tuple[int, int]], lba: int, write: bool
) -> None:
    s = scene()
    with s.xen:
        domain, bus = s.domain, s.guest.bus
        assert bus is not None
        size = sum(length for _, length in pieces)
        data = [
            (domain.pages.alloc((offset + length + PAGE - 1) // PAGE), offset, length)
            for offset, length in pieces
        ]
        before = bus.gnttab.permitted
        count = size // 512
        operation = "8a" if write else "88"
        srb = s.srb(bytes.fromhex(f"{operation} 00 {lba:016x} {count:08x} 00 00"), pages=data)
        sent = bytes(n % 249 for n in range(size))
        if write:
            srb_pieces = [word for piece in data for word in piece]
            domain.scatter(srb_pieces, sent)
        expected = bytes(s.image.buffer[lba * 512 : lba * 512 + size])
        s.target.submit(srb)
        s.xen.run()
        assert srb.srb_status is SrbStatus.SUCCESS
        if write:
            assert bytes(s.image.buffer[lba * 512 : lba * 512 + size]) == sent
            assert bytes(s.image.buffer[: lba * 512]) == bytes(content()[: lba * 512])
        else:
            assert srb.read_data(domain) == expected
        assert bus.gnttab.permitted == before


def parts(s: Scene, size: int, shift: int = 0) -> int:
    """Requests that a read of `size` bytes becomes."""
    s.freeze()
    ring = s.back.queues[0].ring.ring
    before = s.xen.dom0.load32(ring.pfns[0], 0)
    pages = s.domain.pages.alloc(size // PAGE + 1)
    srb = s.srb(
        bytes.fromhex(f"28 00 00000000 00 {size // 512:04x} 00"), pages=[(pages, shift, size)]
    )
    s.target.submit(srb)
    s.xen.run()
    return s.xen.dom0.load32(ring.pfns[0], 0) - before


@pytest.mark.parametrize(
    ("size", "requests"), [(512, 1), (11 * PAGE, 1), (12 * PAGE, 1), (4 << 20, 4)]
)
def test_a_transfer_is_split_at_the_indirect_limit(size: int, requests: int) -> None:
    """256 segments a request: a page-aligned 4 MiB is four of them."""
    s = scene(sectors=8192)
    with s.xen:
        assert parts(s, size) == requests


def test_without_indirect_requests_eleven_segments_are_the_limit() -> None:
    """1,024 pages by 11 are 94 requests; the ring of two pages takes 64 at a time."""
    s = scene(sectors=8192)
    with s.xen:
        s.target.backend.indirect_segments = 0
        assert parts(s, 40 * PAGE) == 4
    s = scene(sectors=8192)
    with s.xen:
        s.target.backend.indirect_segments = 0
        assert parts(s, 4 << 20) == 64


def test_a_buffer_off_the_sector_grid_is_bounced(s: Scene) -> None:
    assert parts(s, 8 * PAGE, shift=100) == 1
    assert s.guest.bus is not None


def test_data_pages_of_a_write_are_granted_read_only(s: Scene) -> None:
    s.freeze()
    srb = s.srb(bytes.fromhex("2a 00 00000000 00 0008 00"), PAGE)
    s.target.submit(srb)
    s.xen.run()
    page = s.back.queues[0].ring.ring.pfns[0]
    ref = int.from_bytes(s.xen.dom0.read(page, 64 + 24, 4), "little")
    assert s.guest.bus is not None
    pfn = s.guest.bus.gnttab.frame_pfns[ref // 512]
    assert s.domain.load32(pfn, ref % 512 * 8) & 0xFFFF == 1 | 4


def test_many_requests_fill_the_ring_and_all_end(s: Scene) -> None:
    srbs = [s.srb(bytes.fromhex(f"28 00 {n:08x} 00 0001 00"), 512) for n in range(300)]
    for srb in srbs:
        s.target.submit(srb)
    s.xen.run()
    assert [s.reply(srb) for srb in srbs] == [
        bytes(s.image.buffer[n * 512 : n * 512 + 512]) for n in range(300)
    ]
