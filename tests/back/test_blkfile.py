"""Data straight between a file and granted pages, and segments of indirect requests: as copied."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.back.test_blkback import Bounced, disk_bytes
from tests.back.test_blkring import BAD, PAGES, SECTORS, Model, content, plug
from tests.back.test_blkring import Request as Direct
from tests.vbd.rawfront import ERROR, INDIRECT, OKAY, READ, WRITE, RawFront
from tests.world import World
from tests.world import make as make_world
from xenpv.abi._kernel import lib
from xenpv.host.image import Image, MemoryImage, RawImage

SEGMENT = st.builds(
    lambda page, bounds: (page, *bounds),
    st.sampled_from([0, 1, 2, 3] * 8 + [PAGES]),
    st.one_of(st.just((0, 0)), st.just((7, 7)), st.sampled_from([(0, 1), (6, 7), (2, 8), (4, 3)])),
)
DIRECT = st.builds(
    Direct,
    st.sampled_from([READ, WRITE]),
    st.integers(0, SECTORS),
    st.lists(SEGMENT, max_size=3),
)


@attrs.frozen
class Indirect:
    inner: int
    sector: int
    segments: list[tuple[int, int, int]]
    nr: int | None
    table: int | None  # a reference instead of the table's own


WIDE = st.builds(
    Indirect,
    st.sampled_from([READ, READ, WRITE, WRITE, 2, 6, 255]),
    st.one_of(st.integers(0, SECTORS), st.sampled_from([2**55, 2**64 - 1, 2**64 - 20])),
    st.lists(SEGMENT, max_size=30),
    st.one_of(st.none(), st.none(), st.none(), st.sampled_from([0, 257, 4096, 65535])),
    st.one_of(st.none(), st.none(), st.none(), st.just(BAD)),
)


class ModelOfBoth(Model):
    """An indirect request does what a direct one of as many segments would do."""

    def serve_wide(self, wide: Indirect) -> int:
        nr = len(wide.segments) if wide.nr is None else wide.nr
        if wide.inner > WRITE or not 0 < nr <= 256 or wide.table is not None:
            return ERROR
        # In pieces of what Model takes: only if none of them errs does any byte move.
        pieces = []
        sector = wide.sector
        for at in range(0, nr, 11):
            segments = wide.segments[at : at + 11]
            pieces.append(Direct(wide.inner, sector, segments))
            sector += sum(max(0, last - first + 1) for _page, first, last in segments)
        trial = ModelOfBoth(
            bytearray(self.disk), [bytearray(one) for one in self.pages], self.readonly, self.unit
        )
        if any(trial.serve(one) for one in pieces):
            return ERROR
        return max(self.serve(one) for one in pieces)


def image_of(kind: str, room: str, unit: int, *, writable: bool, times: int = 1) -> Image:
    if kind != "file":
        image = (Bounced if kind == "bounced" else MemoryImage)(content() * times)
        image.sector_size = 512 * unit
        return image
    path = Path(room) / "disk.img"
    path.write_bytes(content() * times)
    file = RawImage(str(path), writable)
    file.sector_size = 512 * unit
    return file


def bytes_of(image: Image) -> bytes:
    if isinstance(image, RawImage):
        return Path(image.path).read_bytes()
    assert isinstance(image, MemoryImage)
    return bytes(disk_bytes(image))


@settings(max_examples=120, deadline=None)
@given(
    batches=st.lists(
        st.lists(st.one_of(DIRECT, WIDE), min_size=1, max_size=8), min_size=1, max_size=3
    ),
    readonly=st.booleans(),
    unit=st.sampled_from([1, 1, 1, 2]),
    kind=st.sampled_from(["memory", "bounced", "file", "file"]),
    is_32=st.booleans(),
)
def test_requests_of_both_kinds_do_the_same_to_every_kind_of_image(
    batches: list[list[Direct | Indirect]], readonly: bool, unit: int, kind: str, is_32: bool
) -> None:
    world = make_world()
    with TemporaryDirectory(prefix="xenpv-test-") as room:
        image = image_of(kind, room, unit, writable=not readonly)
        front, pfns = plug(world, image, "r" if readonly else "w", is_32=is_32)
        refs = [*(front.grant(pfn) for pfn in pfns), BAD]
        pages = [bytearray(world.guest.read(pfn, 0, 4096)) for pfn in pfns]
        model = ModelOfBoth(content(), pages, readonly, unit)
        for batch in batches:
            slots = [encode(front, one, rid, refs) for rid, one in enumerate(batch)]
            answers = front.send(*slots)
            assert answers == [
                (rid, one.inner, model.serve_wide(one))
                if isinstance(one, Indirect)
                else (rid, one.operation, model.serve(one))
                for rid, one in enumerate(batch)
            ]
        assert bytes_of(image) == model.disk
        assert [world.guest.read(pfn, 0, 4096) for pfn in pfns] == model.pages
        assert all(front.revoke(ref) == 0 for ref in refs[:-1])
        world.hypervisor.close()


def encode(front: RawFront, one: Direct | Indirect, rid: int, refs: list[int]) -> bytes:
    segments = [(refs[page], first, last) for page, first, last in one.segments]
    if isinstance(one, Direct):
        return front.request(one.operation, one.sector, segments, rid=rid)
    table = None if one.table is None else [one.table]
    return front.indirect(one.inner, one.sector, segments, rid=rid, nr=one.nr, table=table)


@pytest.fixture
def file(tmp_path: Path) -> RawImage:
    path = tmp_path / "disk.img"
    path.write_bytes(content())
    return RawImage(str(path), writable=True)


def statuses(answers: list[tuple[int, int, int]]) -> list[int]:
    return [status for _rid, _operation, status in answers]


def test_only_what_lies_behind_the_end_of_a_file_that_became_shorter_fails(
    world: World, file: RawImage
) -> None:
    """Neighbours are one I/O; whose part of it is missing is found out."""
    front, pfns = plug(world, file, "w", is_32=False)
    refs = [front.grant(pfn) for pfn in pfns]
    os.truncate(file.path, 12 * 512)
    slots = [front.request(READ, 8 * n, [(refs[n], 0, 7)], rid=n) for n in range(3)]
    assert statuses(front.send(*slots)) == [OKAY, ERROR, ERROR]
    assert world.guest.read(pfns[0], 0, 4096) == content()[:4096]
    assert statuses(front.send(front.request(READ, 8, [(refs[1], 0, 3)]))) == [OKAY]
    assert world.guest.read(pfns[1], 0, 2048) == content()[4096:6144]
    wide = front.indirect(READ, 0, [(refs[2], 0, 7), (refs[3], 0, 7)])
    assert statuses(front.send(wide)) == [ERROR]
    # Not even the part that is there.
    assert world.guest.read(pfns[2], 0, 4096) == b"\xa2" * 4096
    assert all(front.revoke(ref) == 0 for ref in refs)


def test_an_error_of_the_host_is_that_of_its_request_alone(
    world: World, file: RawImage, tmp_path: Path
) -> None:
    """A write that the file refuses: its descriptor is swapped for one that only reads."""
    front, pfns = plug(world, file, "w", is_32=False)
    ref = front.grant(pfns[0])
    reader = os.open(file.path, os.O_RDONLY)
    os.dup2(reader, file.fileno())
    os.close(reader)
    write = front.request(WRITE, 0, [(ref, 0, 7)], rid=1)
    read = front.request(READ, 8, [(ref, 0, 7)], rid=2)
    assert statuses(front.send(write, read, write)) == [ERROR, OKAY, ERROR]
    assert Path(file.path).read_bytes() == content()
    file.close()
    assert file.fileno() == -1
    assert statuses(front.send(read)) == [ERROR]


def test_a_segment_of_a_file_that_has_no_page_moves_nothing(world: World, file: RawImage) -> None:
    front, pfns = plug(world, file, "w", is_32=False)
    refs = [front.grant(pfn) for pfn in pfns]
    before = world.guest.read(pfns[0], 0, 4096)
    read = front.request(READ, 0, [(refs[0], 0, 7), (BAD, 0, 7)], rid=1)
    write = front.request(WRITE, 0, [(refs[0], 0, 7), (BAD, 0, 7)], rid=2)
    good = front.request(READ, 16, [(refs[1], 0, 7)], rid=3)
    assert statuses(front.send(read, good, write)) == [ERROR, OKAY, ERROR]
    assert world.guest.read(pfns[0], 0, 4096) == before
    assert Path(file.path).read_bytes() == content()
    assert world.guest.read(pfns[1], 0, 4096) == content()[16 * 512 : 24 * 512]


@pytest.mark.parametrize("operation", [READ, WRITE])
def test_who_watches_accesses_sees_those_of_a_files_data(
    world: World, file: RawImage, operation: int
) -> None:
    """A system call is no access that the hook hears of: the data is copied, as with others."""
    front, pfns = plug(world, file, "w", is_32=False)
    refs = [front.grant(pfn) for pfn in pfns[:2]]
    frames = [lib.p2m_lookup(world.guest.kernel, pfn, 0) for pfn in pfns[:2]]
    seen = []

    def hook(actor: int, kind: int, frame: int, offset: int, size: int) -> None:
        if actor == 0 and frame in frames:
            seen.append((frames.index(frame), kind & 3, offset, size))

    segments = [(refs[0], 0, 7), (refs[1], 2, 3)]
    slot = front.indirect(operation, 8, segments)
    world.hypervisor.set_hook(hook)
    answers = front.send(slot)
    world.hypervisor.set_hook(None)
    assert statuses(answers) == [OKAY]
    kind = 1 if operation == READ else 0
    assert seen == [(0, kind, 0, 4096), (1, kind, 1024, 1024)]
    data = world.guest.read(pfns[0], 0, 4096) + world.guest.read(pfns[1], 1024, 1024)
    assert Path(file.path).read_bytes()[8 * 512 : 18 * 512] == data


@pytest.mark.parametrize("kind", ["memory", "bounced", "file"])
@pytest.mark.parametrize("operation", [READ, WRITE])
def test_256_segments_of_few_pages_are_pinned_together(
    world: World, tmp_path: Path, operation: int, kind: str
) -> None:
    """Two references that stand in each other's way are pinned 128 times each, as Xen allows."""
    image = image_of(kind, str(tmp_path), 1, writable=True, times=4)
    front, pfns = plug(world, image, "w", is_32=False)
    first = front.grant(pfns[0])
    other = first + 128
    lib.grant_entry_set(world.guest.kernel, other, 0, pfns[1], 1)
    for named in ([first, other] * 128, [first] * 256):
        segments = [(ref, n % 8, n % 8) for n, ref in enumerate(named)]
        fits = front.indirect(operation, 0, segments)
        beyond = front.indirect(operation, 1, segments)
        assert statuses(front.send(fits, beyond)) == [OKAY, ERROR]
    assert front.revoke(first) == 0
    assert front.revoke(other) == 0


def test_the_table_of_a_request_is_that_of_no_other(world: World, file: RawImage) -> None:
    """Direct and indirect requests of one pass, in turn, each with its own segments."""
    front, pfns = plug(world, file, "w", is_32=False)
    refs = [front.grant(pfn) for pfn in pfns]
    slots = [
        front.indirect(READ, 0, [(refs[0], 0, 7)] * 2, rid=0),
        front.request(READ, 16, [(refs[1], 0, 7)], rid=1),
        front.indirect(READ, 24, [(refs[2], 0, 7)], rid=2),
        front.request(READ, 32, [(refs[3], 0, 7)], rid=3),
    ]
    assert front.send(*slots) == [(rid, READ, OKAY) for rid in range(4)]
    assert INDIRECT not in [operation for _rid, operation, _status in front.answers()]
    for page, sector in enumerate((8, 16, 24, 32)):
        expected = b"".join(struct.pack("<I", at) * 128 for at in range(sector, sector + 8))
        assert world.guest.read(pfns[page], 0, 4096) == expected
