"""Whatever a slot may say, the batch path and the server say the same of it; and the server of
each backend what that backend says.

One list of slots, each with what Linux answers; both of Linux' paths and every ABI take it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.back.blkscene import MS, LoggedImage, Scene, content, scene, serve
from tests.vbd.rawfront import (
    BARRIER,
    DISCARD,
    EOPNOTSUPP,
    ERROR,
    FLUSH,
    INDIRECT,
    OKAY,
    READ,
    READONLY,
    WRITE,
    RawFront,
    make,
)
from tests.world import World
from tests.world import make as make_world

SECTORS = 1024
LAST = 2**64 - 1
DATA = (READ, WRITE, BARRIER, FLUSH)
PROTOCOLS = ["x86_64-abi", "x86_32-abi", "arm-abi"]


@attrs.define(eq=False)
class Cell:
    """A frontend, what serves its ring, and references of every kind."""

    front: RawFront
    refs: dict[str, int]
    pins: int

    @property
    def good(self) -> int:
        return self.refs["good"]


def cell(world: World, path: str, protocol: str = "x86_64-abi", mode: str = "w") -> Cell:
    """`path`: "batch" for BlkRing, else the name of the server's profile."""
    front = make(world, LoggedImage(content()), mode=mode).connect(protocol=protocol)
    if path != "batch":
        serve(front, path)
    pfn = front.page(b"d" * 4096)
    revoked = front.grant(pfn)
    assert front.revoke(revoked) == 0
    refs = {
        "good": front.grant(pfn),
        "other": front.grant(pfn),
        "zero": 0,
        "revoked": revoked,
        "foreign": front.grant(pfn, domid=7),
        "readonly": front.grant(pfn, READONLY),
        "beyond": 0xFFFFFFFF,
        "unused": 500,
    }
    return Cell(front, refs, world.guest.gnttab.pinned())


BOTH = pytest.mark.parametrize("path", ["batch", "linux"])
ABIS = pytest.mark.parametrize("protocol", PROTOCOLS)


def answered(one: Cell, slot: bytes) -> int:
    """The status of the one answer; nothing stays pinned."""
    status = one.front.status(slot)
    assert one.front.world.guest.gnttab.pinned() == one.pins
    return status


@BOTH
@ABIS
def test_every_operation(world: World, path: str, protocol: str) -> None:
    one = cell(world, path, protocol)
    told = {READ: OKAY, WRITE: OKAY, BARRIER: OKAY, FLUSH: OKAY, DISCARD: OKAY, INDIRECT: ERROR}
    for operation in range(256):
        if operation == DISCARD:
            slot = one.front.discard(0, 1)
        else:
            slot = one.front.request(operation, 0, [(one.good, 0, 7)])
        assert answered(one, slot) == told.get(operation, EOPNOTSUPP), operation


@BOTH
@pytest.mark.parametrize("operation", DATA)
@pytest.mark.parametrize("nr", [0, 1, 11, 12, 255])
def test_every_number_of_segments(world: World, path: str, operation: int, nr: int) -> None:
    one = cell(world, path)
    slot = one.front.request(operation, 0, [(one.good, 0, 0)] * min(nr, 11), nr=nr)
    okay = 1 <= nr <= 11 or (nr == 0 and operation in (BARRIER, FLUSH))
    assert answered(one, slot) == (OKAY if okay else ERROR)


@BOTH
@pytest.mark.parametrize("inner", [0, 1, 2, 3, 5, 6, 255])
@pytest.mark.parametrize("nr", [0, 1, 256, 257, 512, 513, 4096, 4097, 65535])
def test_every_number_of_indirect_segments(world: World, path: str, inner: int, nr: int) -> None:
    one = cell(world, path)
    # A page can be mapped 255 times by one reference.
    segments = [(one.refs["other" if n % 2 else "good"], 0, 0) for n in range(min(nr, 4096))]
    okay = inner in (READ, WRITE) and 1 <= nr <= 256
    assert answered(one, one.front.indirect(inner, 0, segments, nr=nr)) == (OKAY if okay else ERROR)


@BOTH
@pytest.mark.parametrize("operation", [*DATA, INDIRECT])
def test_every_pair_of_first_and_last(world: World, path: str, operation: int) -> None:
    one = cell(world, path)
    for first in (0, 1, 6, 7, 8, 255):
        for last in (0, 1, 6, 7, 8, 255):
            segments = [(one.good, 0, 0), (one.good, first, last)]
            if operation == INDIRECT:
                slot = one.front.indirect(READ, 0, segments)
            else:
                slot = one.front.request(operation, 0, segments)
            expected = OKAY if first <= last <= 7 else ERROR
            assert answered(one, slot) == expected, (first, last)


@BOTH
@ABIS
@pytest.mark.parametrize("operation", [*DATA, DISCARD, INDIRECT])
def test_every_place_around_the_end(world: World, path: str, protocol: str, operation: int) -> None:
    one = cell(world, path, protocol)
    for sector, count in [
        (0, 8), (SECTORS - 8, 8), (SECTORS - 7, 8), (SECTORS - 1, 1), (SECTORS - 1, 2),
        (SECTORS, 1), (SECTORS + 1, 1), (LAST, 1), (LAST, 2), (LAST - 7, 8), (2**55, 1),
        (2**63, 1), (2**32, 1), (2**32 - 8, 8), (2**55 - 8, 8),
    ]:  # fmt: skip
        segments = [(one.good, 0, count - 1)]
        make_slot: dict[int, Callable[[], bytes]] = {
            DISCARD: lambda s=sector, c=count: one.front.discard(s, c),  # type: ignore[misc] # bound now
            INDIRECT: lambda s=sector, g=segments: one.front.indirect(READ, s, g),  # type: ignore[misc] # bound now
        }
        plain = lambda s=sector, g=segments: one.front.request(operation, s, g)  # noqa: E731 - as above
        slot = make_slot.get(operation, plain)()
        expected = OKAY if sector + count <= SECTORS else ERROR
        assert answered(one, slot) == expected, (sector, count)


@BOTH
@pytest.mark.parametrize("operation", [*DATA, INDIRECT])
@pytest.mark.parametrize(
    "ref", ["good", "zero", "revoked", "foreign", "readonly", "beyond", "unused"]
)
@pytest.mark.parametrize("place", [0, 1])
def test_every_reference(world: World, path: str, operation: int, ref: str, place: int) -> None:
    one = cell(world, path)
    if ref == "zero":  # the console's is granted to dom0 in a world that has one
        assert one.front.revoke(0) >= 0
    segments = [(one.good, 0, 7), (one.good, 0, 7)]
    segments[place] = (one.refs[ref], 0, 7)
    reads = operation in (READ, INDIRECT)
    if operation == INDIRECT:
        slot = one.front.indirect(READ, 0, segments)
    else:
        slot = one.front.request(operation, 0, segments)
    okay = ref == "good" or (ref == "readonly" and not reads)
    assert answered(one, slot) == (OKAY if okay else ERROR)


@BOTH
@pytest.mark.parametrize("ref", ["revoked", "foreign", "readonly", "beyond", "unused"])
def test_every_reference_of_an_indirect_table(world: World, path: str, ref: str) -> None:
    one = cell(world, path)
    world.guest.write(one.front.page(), 0, bytes(8))
    slot = one.front.indirect(READ, 0, [], nr=1, table=[one.refs[ref]])
    assert answered(one, slot) == ERROR  # of the readonly one: its first reference is 0x64646464


@BOTH
@pytest.mark.parametrize(
    ("operation", "status"),
    [(READ, OKAY), (WRITE, ERROR), (BARRIER, ERROR), (FLUSH, ERROR), (DISCARD, ERROR)],
)
def test_every_operation_on_a_read_only_disk(
    world: World, path: str, operation: int, status: int
) -> None:
    one = cell(world, path, mode="r")
    if operation == DISCARD:
        assert answered(one, one.front.discard(0, 8)) == status
    else:
        assert answered(one, one.front.request(operation, 0, [(one.good, 0, 7)])) == status
    if operation in (READ, WRITE):
        assert answered(one, one.front.indirect(operation, 0, [(one.good, 0, 7)])) == status


@BOTH
@pytest.mark.parametrize("behind", [0, 5])
@pytest.mark.parametrize("ahead", [1, 31, 32, 33, 2**31, 2**31 + 1, -1, -32, -33, -(2**31)])
def test_every_producer(world: World, path: str, ahead: int, behind: int) -> None:
    """`behind`: requests that were served before."""
    one = cell(world, path)
    good = one.front.request(FLUSH)
    for _ in range(behind):
        assert one.front.status(good) == OKAY
    one.front.poke(0, struct.pack("<I", (behind + ahead) & 0xFFFFFFFF))
    world.loop.advance(100 * MS)  # what is stale on the ring errs, and there is a back-off
    assert one.front.driver.halted == (not 0 <= ahead <= 32)
    assert one.front.ring is not None
    answers = world.guest.load32(one.front.ring.pfns[0], 8) - behind
    assert answers == (ahead if 0 <= ahead <= 32 else 0)
    assert world.guest.gnttab.pinned() == one.pins


@BOTH
@pytest.mark.parametrize("protocol", ["x86_64-abi", "x86_32-abi"])
def test_slots_of_the_other_layout_harm_nothing(world: World, path: str, protocol: str) -> None:
    one = cell(world, path, protocol)
    front = one.front
    size = 108 if front.is_32 else 112
    front.is_32 = not front.is_32
    slots = [
        front.request(READ, 0, [(one.good, 0, 7)] * 3, rid=1),
        front.request(WRITE, 8, [(one.good, 0, 7)] * 11, rid=2),
        front.indirect(READ, 0, [(one.good, 0, 7)], rid=3),
        front.discard(0, 8, rid=4),
    ]
    front.is_32 = not front.is_32
    for slot in slots:
        assert len(front.send(slot.ljust(size, b"\0")[:size])) == 1
        assert world.guest.gnttab.pinned() == one.pins


# random streams

SLOT = st.one_of(
    st.tuples(
        st.just("direct"),
        st.sampled_from([READ, WRITE, WRITE, BARRIER, FLUSH, 4, 7, 200]),
        st.sampled_from([0, 1, 7, 8, 504, 1016, 1017, 1023, 1024, LAST, LAST - 7, 2**55]),
        st.lists(
            st.tuples(
                st.sampled_from(["a", "b", "a", "b", "readonly", "revoked", "beyond"]),
                st.sampled_from([(0, 7), (0, 7), (0, 0), (3, 4), (7, 7), (2, 1), (0, 8), (8, 255)]),
            ),
            max_size=4,
        ),
        st.sampled_from([None, None, None, None, 0, 12, 255]),
    ),
    st.tuples(
        st.just("indirect"),
        st.sampled_from([READ, WRITE, BARRIER, INDIRECT]),
        st.sampled_from([0, 1, 8, 1000, 1016, LAST]),
        st.lists(
            st.tuples(
                st.sampled_from(["a", "b", "a", "b", "readonly", "revoked"]),
                st.sampled_from([(0, 7), (0, 7), (0, 0), (2, 1), (0, 8)]),
            ),
            max_size=14,
        ),
        st.sampled_from([None, None, None, 0, 257, 512, 4097, 65535]),
    ),
    st.tuples(
        st.just("discard"),
        st.just(DISCARD),
        st.sampled_from([0, 8, 1016, 1024, LAST]),
        st.sampled_from([0, 1, 8, 1024, LAST]),
        st.none(),
    ),
)
STREAM = st.lists(st.lists(SLOT, min_size=1, max_size=8), min_size=1, max_size=4)


def slots_of(front: RawFront, refs: dict[str, int], batch: list[tuple]) -> Iterator[bytes]:  # type: ignore[type-arg] # of SLOT
    for rid, (kind, operation, sector, rest, nr) in enumerate(batch):
        if kind == "discard":
            yield front.discard(sector, rest, rid=rid)
            continue
        segments = [(refs[name], first, last) for name, (first, last) in rest]
        if kind == "indirect":
            # Writable, as a backend that keeps grants maps them.
            page = front.page(b"".join(struct.pack("<IBB2x", *one) for one in segments))
            table = [front.grant(page)]
            count = len(segments) if nr is None else nr
            yield front.indirect(operation, sector, [], rid=rid, nr=count, table=table)
        else:
            yield front.request(operation, sector, segments, rid=rid, nr=nr)


def stream(
    path: str, batches: list[list[tuple]], sector_size: int, mode: str, is_32: bool,  # type: ignore[type-arg] # of SLOT
    latency_ns: int, persistent: bool,
) -> tuple[list[tuple[int, int, int]], bytes, list[bytes]]:  # fmt: skip
    """Answers, the disk, and the guest's pages, after every request was answered once."""
    world = make_world()
    image = LoggedImage(content(), sector_size=sector_size)
    front = make(world, image, mode=mode).connect(protocol="x86_32-abi" if is_32 else "x86_64-abi")
    if path != "batch":
        serve(front, path, latency_ns=latency_ns, persistent=persistent)
    pins, maps = world.guest.gnttab.pinned(), len(world.dom0.gnttab.maptrack)
    holes = world.dom0.holes.free_pages
    pfns = [front.page(bytes([0xA0 + n]) * 4096) for n in range(3)]
    refs = {"a": front.grant(pfns[0]), "b": front.grant(pfns[1])}
    refs["readonly"] = front.grant(pfns[2], READONLY)
    refs["revoked"], refs["beyond"] = 400, 2**31
    answers = []
    for batch in batches:
        got = front.send(*slots_of(front, refs, batch))
        assert sorted(rid for rid, _, _ in got) == list(range(len(batch)))
        answers += sorted(got) if latency_ns else got
    (queue,) = front.driver.queues
    if path != "batch":
        assert queue.ring.in_flight == 0
        queue.ring.abandon()
    assert (world.guest.gnttab.pinned(), len(world.dom0.gnttab.maptrack)) == (pins, maps)
    assert world.dom0.holes.free_pages == holes
    disk = bytes(image.data)
    pages = [world.guest.read(pfn, 0, 4096) for pfn in pfns]
    world.hypervisor.close()
    return answers, disk, pages


@settings(max_examples=150, deadline=None)
@given(
    batches=STREAM,
    sector_size=st.sampled_from([512, 512, 4096]),
    mode=st.sampled_from(["w", "w", "r"]),
    is_32=st.booleans(),
)
def test_both_paths_of_linux_do_the_same(
    batches: list[list[tuple]],
    sector_size: int,
    mode: str,
    is_32: bool,  # type: ignore[type-arg] # of SLOT
) -> None:
    batch = stream("batch", batches, sector_size, mode, is_32, 0, persistent=False)
    server = stream("linux", batches, sector_size, mode, is_32, 0, persistent=False)
    assert server == batch


@settings(max_examples=100, deadline=None)
@given(batches=STREAM, latency_ns=st.sampled_from([0, MS]))
def test_keeping_grants_changes_nothing_for_pages_that_may_be_written(
    batches: list[list[tuple]],
    latency_ns: int,  # type: ignore[type-arg] # of SLOT
) -> None:
    batches = [[one for one in batch if "readonly" not in str(one)] for batch in batches]
    for apart in (
        [batch for batch in batches if batch],
        [[one] for batch in batches for one in batch],
    ):
        if latency_ns and apart and len(apart[0]) > 1:
            continue  # what is under way together may end in any order
        plain = stream("linux", apart, 512, "w", False, latency_ns, persistent=False)
        assert stream("linux", apart, 512, "w", False, latency_ns, persistent=True) == plain


@settings(max_examples=100, deadline=None)
@given(
    batches=st.lists(SLOT, min_size=1, max_size=12).map(lambda one: [[slot] for slot in one]),
    profile=st.sampled_from(["linux", "qemu", "tapdisk", "mirage"]),
    sector_size=st.sampled_from([512, 4096]),
    mode=st.sampled_from(["w", "r"]),
    is_32=st.booleans(),
)
def test_time_changes_nothing_of_what_one_request_after_another_does(
    batches: list[list[tuple]],
    profile: str,
    sector_size: int,
    mode: str,
    is_32: bool,  # type: ignore[type-arg] # of SLOT
) -> None:
    at_once = stream(profile, batches, sector_size, mode, is_32, 0, persistent=False)
    later = stream(profile, batches, sector_size, mode, is_32, MS, persistent=False)
    assert later == at_once


@settings(max_examples=120, deadline=None)
@given(
    batches=STREAM,
    profile=st.sampled_from(["linux", "linux", "qemu", "tapdisk", "mirage"]),
    mode=st.sampled_from(["w", "w", "r"]),
    latency_ns=st.sampled_from([0, MS]),
    persistent=st.booleans(),
)
def test_every_request_is_answered_once_and_every_page_given_back(
    batches: list[list[tuple]],
    profile: str,
    mode: str,
    latency_ns: int,
    persistent: bool,  # type: ignore[type-arg] # of SLOT
) -> None:
    stream(profile, batches, 512, mode, False, latency_ns, persistent)


@settings(max_examples=80, deadline=None)
@given(
    plan=st.lists(
        st.tuples(st.sampled_from([READ, WRITE]), st.integers(1, 8), st.integers(0, 7), st.booleans()),
        min_size=1, max_size=20,
    ),
    path=st.sampled_from(["batch", "linux", "qemu", "tapdisk", "mirage"]),
    latency_ns=st.sampled_from([0, MS]),
    persistent=st.booleans(),
    seed=st.integers(0, 5),
)  # fmt: skip
def test_what_is_under_way_together_lands_where_it_belongs(
    plan: list[tuple[int, int, int, bool]], path: str, latency_ns: int, persistent: bool, seed: int
) -> None:
    """Requests for places and pages of their own, side by side or apart, all at once."""
    world = make_world(seed)
    image = LoggedImage(content())
    front = make(world, image).connect()
    if path != "batch":
        serve(front, path, latency_ns=latency_ns, persistent=persistent)
    disk, expected, slots, pages = bytes(image.data), content(), [], []
    sector = 0
    for rid, (operation, count, first, apart) in enumerate(plan):
        first = min(first, 8 - count)
        sector += apart
        before = bytes([rid + 1]) * 4096
        pfn = front.page(before)
        slots.append(
            front.request(
                operation, sector, [(front.grant(pfn), first, first + count - 1)], rid=rid
            )
        )
        place = slice(sector * 512, (sector + count) * 512)
        inside = slice(first * 512, (first + count) * 512)
        page = bytearray(before)
        if operation == READ:
            page[inside] = disk[place]
        else:
            expected[place] = before[inside]
        pages.append((pfn, page))
        sector += count
    assert sorted(front.send(*slots)) == [(n, one[0], OKAY) for n, one in enumerate(plan)]
    assert bytes(image.data) == expected
    assert [world.guest.read(pfn, 0, 4096) for pfn, _ in pages] == [page for _, page in pages]
    world.hypervisor.close()


@pytest.mark.parametrize("profile", ["linux", "qemu", "tapdisk", "mirage"])
def test_every_operation_of_every_backend_is_answered(world: World, profile: str) -> None:
    one = scene(world, profile)
    for operation in range(256):
        assert len(one.front.send(one.front.request(operation, 0, [(4000, 0, 7)]))) == 1
    assert isinstance(one, Scene)
