"""What guests did to block backends, by the advisory that tells of it.

Each against Linux' batch path and against the server of every backend.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import attrs
import pytest

from tests.back.blkscene import MS, LoggedImage, content, sectors_of, serve
from tests.vbd.rawfront import (
    BARRIER,
    DISCARD,
    ERROR,
    FLUSH,
    OKAY,
    READ,
    READONLY,
    WRITE,
    RawFront,
    make,
)
from tests.world import World
from xenpv.abi._kernel import lib
from xenpv.host.image import MemoryImage

PATHS = ["batch", "linux", "persistent", "qemu", "tapdisk", "mirage"]
ALL = pytest.mark.parametrize("path", PATHS)
MAPPING = pytest.mark.parametrize("path", ["linux", "persistent", "mirage"])
BAD = 4000


@attrs.define(eq=False)
class Attacked:
    front: RawFront
    image: LoggedImage
    world: World
    path: str
    mappings: int
    pins: int
    holes: int

    def balanced(self) -> bool:
        """Nothing is mapped for requests; after the connection went nothing is kept either."""
        if self.path != "batch":
            self.front.driver.queues[0].ring.abandon()
        holes = self.world.dom0.holes.free_pages
        return self.pinned() == 0 and self.maps() == 0 and holes == self.holes

    def pinned(self) -> int:
        return self.world.guest.gnttab.pinned() - self.pins

    def maps(self) -> int:
        return len(self.world.dom0.gnttab.maptrack) - self.mappings


def attack(
    world: World, path: str, *, mode: str = "w", latency_ns: int = 0, protocol: str = "x86_64-abi"
) -> Attacked:
    image = LoggedImage(content())
    front = make(world, image, mode=mode).connect(protocol=protocol)
    if path != "batch":
        profile = "linux" if path == "persistent" else path
        serve(front, profile, latency_ns=latency_ns, persistent=path == "persistent")
    mappings = len(world.dom0.gnttab.maptrack)
    pins, holes = world.guest.gnttab.pinned(), world.dom0.holes.free_pages
    return Attacked(front, image, world, path, mappings, pins, holes)


def frame(world: World, pfn: int) -> int:
    return int(lib.p2m_lookup(world.guest.kernel, pfn, 0))


Access = tuple[int, int, int, int]  # kind (0: a load), frame, offset, size


def watched(one: Attacked, send: Callable[[], object]) -> list[Access]:
    """What dom0 touches of the guest's while `send` runs."""
    seen: list[Access] = []

    def hook(actor: int, kind: int, number: int, offset: int, size: int) -> None:
        if actor == 0:
            seen.append((kind & 3, number, offset, size))

    one.world.hypervisor.set_hook(hook)
    try:
        send()
    finally:
        one.world.hypervisor.set_hook(None)
    return seen


@ALL
@pytest.mark.parametrize("protocol", ["x86_64-abi", "x86_32-abi"])
def test_xsa_155_no_byte_of_a_slot_is_read_twice(world: World, path: str, protocol: str) -> None:
    one = attack(world, path, protocol=protocol)
    front = one.front
    refs = [front.grant(front.page()) for _ in range(3)]
    slots = [
        front.request(READ, 0, [(ref, 0, 7) for ref in refs]),
        front.request(WRITE, 0, [(refs[0], 0, 7)]),
        front.request(FLUSH),
        front.discard(0, 8),
        front.request(BARRIER, 0, [(refs[0], 0, 7)]),
        front.request(READ, 5000, [(refs[0], 0, 7)]),
        front.request(77),
    ]
    assert front.ring is not None
    ring = frame(world, front.ring.pfns[0])
    seen = watched(one, lambda: len(front.send(*slots)) == 7 or pytest.fail("not all answered"))
    size = 108 if front.is_32 else 112
    read = [offset for kind, number, offset, _ in seen if (kind, number) == (0, ring)]
    assert [at for at in read if at >= 64] == [64 + n * size for n in range(7)]


@pytest.mark.parametrize("path", ["batch", "linux", "persistent", "mirage"])
def test_xsa_155_no_byte_of_a_segment_table_is_read_twice(world: World, path: str) -> None:
    one = attack(world, path)
    front = one.front
    segments = [(front.grant(front.page()), 0, 7) for _ in range(20)]
    page = front.page(b"".join(struct.pack("<IBB2x", *segment) for segment in segments))
    slot = front.indirect(READ, 0, [], nr=20, table=[front.grant(page)])
    seen = watched(one, lambda: front.status(slot) == OKAY or pytest.fail("refused"))
    table = frame(world, page)
    assert [entry for entry in seen if entry[1] == table] == [(0, table, 0, 160)]


@ALL
@pytest.mark.parametrize(
    "field",
    ["operation", "nr_segments", "sector_number", "gref", "last_sect"],
)
def test_xsa_155_what_is_written_into_a_slot_later_changes_nothing(
    world: World, path: str, field: str
) -> None:
    """At the first look at the grant table the slot says something else."""
    one = attack(world, path)
    front = one.front
    pfn = front.page()
    ref = front.grant(pfn)
    assert front.ring is not None
    ring = front.ring.pfns[0]
    offset, value = {
        "operation": (64, bytes((WRITE,))),
        "nr_segments": (65, b"\xff"),
        "sector_number": (64 + 16, b"\xff" * 8),
        "gref": (64 + 24, struct.pack("<I", BAD)),
        "last_sect": (64 + 29, b"\xff"),
    }[field]
    table = lib.grant_table_frame(world.guest.kernel, 0)
    changed: list[int] = []

    def hook(actor: int, _kind: int, number: int, _offset: int, _size: int) -> None:
        if actor == 0 and number == table and not changed:
            changed.append(1)
            world.guest.write(ring, offset, value)

    world.hypervisor.set_hook(hook)
    answers = front.send(front.request(READ, 8, [(ref, 0, 7)]))
    world.hypervisor.set_hook(None)
    assert changed
    assert answers == [(7, READ, OKAY)]
    assert world.guest.read(pfn, 0, 4096) == sectors_of(8, 8)
    assert one.image.log == [("read", 4096, 4096)]


@ALL
@pytest.mark.parametrize("protocol", ["x86_64-abi", "x86_32-abi"])
def test_xsa_216_a_response_shows_nothing_but_itself(
    world: World, path: str, protocol: str
) -> None:
    one = attack(world, path, protocol=protocol)
    front = one.front
    assert front.ring is not None
    size = 108 if front.is_32 else 112
    slot = bytearray(b"\xee" * size)
    slot[0] = 200
    front.send(bytes(slot))
    entry = world.guest.read(front.ring.pfns[0], 64, size)
    status = struct.pack("<h", -1 if path == "qemu" else -2)
    assert entry == b"\xee" * 8 + bytes((200, 0)) + status + bytes(size - 12)


@ALL
@pytest.mark.parametrize("latency_ns", [0, MS])
def test_xsa_229_adjacent_frames_are_not_an_adjacent_place_on_the_disk(
    world: World, path: str, latency_ns: int
) -> None:
    """Pages that follow each other in memory, for places that do not on the disk; and the other
    way round.
    """
    one = attack(world, path, latency_ns=latency_ns)
    front = one.front
    pfns = [front.page(bytes([n + 1]) * 4096) for n in range(4)]
    refs = [front.grant(pfn) for pfn in pfns]
    places = [64, 0, 8, 128]
    answers = front.send(
        *(front.request(WRITE, at, [(refs[n], 0, 7)], rid=n) for n, at in enumerate(places))
    )
    assert len(answers) == 4
    for n, at in enumerate(places):
        assert bytes(one.image.data[at * 512 : at * 512 + 4096]) == bytes([n + 1]) * 4096
    assert bytes(one.image.data[72 * 512 : 73 * 512]) == sectors_of(72, 1)


@ALL
@pytest.mark.parametrize("ahead", [33, 0x7FFFFFFF, 0xFFFFFFFF])
def test_cve_2010_4247_a_producer_far_ahead_is_no_endless_loop(
    world: World, path: str, ahead: int
) -> None:
    one = attack(world, path)
    front = one.front
    assert front.ring is not None
    world.guest.write(front.ring.pfns[0], 0, struct.pack("<I", ahead))
    world.guest.evtchn.send(front.port)
    assert world.loop.run() < 20
    assert front.driver.halted
    assert front.answers() == []
    front.poke(0, struct.pack("<I", 1))
    assert front.answers() == []  # for good
    assert one.balanced()


@pytest.mark.parametrize("path", ["batch", "linux", "qemu"])
@pytest.mark.parametrize(
    ("mode", "sector", "count"),
    [("r", 0, 8), ("w", 1020, 8), ("w", 1024, 1), ("w", 2**64 - 1, 2), ("w", 1, 2**64 - 1)],
)
def test_cve_2013_2140_a_discard_is_held_to_the_disk_as_a_write_is(
    world: World, path: str, mode: str, sector: int, count: int
) -> None:
    one = attack(world, path, mode=mode)
    assert one.front.send(one.front.discard(sector, count)) == [(7, DISCARD, ERROR)]
    assert bytes(one.image.data) == content()
    assert [entry for entry in one.image.log if entry[0] == "discard"] == []


@ALL
@pytest.mark.parametrize("latency_ns", [0, MS])
def test_xsa_71_no_error_leaves_a_grant_in_use(world: World, path: str, latency_ns: int) -> None:
    one = attack(world, path, latency_ns=latency_ns)
    front = one.front
    one.image.bad |= {100, 200}
    good, readonly = front.grant(front.page()), front.grant(front.page(), READONLY)
    slots = [
        front.request(READ, 0, [(good, 0, 7), (BAD, 0, 7)]),
        front.request(READ, 0, [(good, 0, 7), (readonly, 0, 7)]),
        front.request(WRITE, 0, [(good, 0, 7), (good, 0, 8)]),
        front.request(WRITE, 5000, [(good, 0, 7)]),
        front.request(READ, 96, [(good, 0, 7)]),
        front.request(WRITE, 200, [(good, 0, 7)]),
        front.request(WRITE, 0, [(good, 0, 7)] * 11, nr=12),
        front.indirect(READ, 0, [(good, 0, 7), (BAD, 0, 7)]),
        front.indirect(READ, 0, [], nr=1, table=[BAD]),
        front.indirect(READ, 0, [(good, 0, 7)], nr=257),
    ]
    for slot in slots * 2:
        assert front.status(slot) != OKAY
    assert front.status(front.request(READ, 0, [(good, 0, 7)])) == OKAY
    assert one.pinned() <= (path == "persistent")
    assert one.balanced()
    assert front.revoke(good) == 0
    assert front.revoke(readonly) == 0


@ALL
def test_xsa_142_the_image_itself_refuses_what_a_backend_lets_through(
    world: World, path: str
) -> None:
    """Mode w over an image that is not writable: the block layer below has the last word."""
    image = MemoryImage(content(), writable=False)
    front = make(world, image, mode="r").connect()
    driver = front.driver
    assert driver.vbd is not None
    driver.vbd.readonly, driver.vbd.discard = False, True  # whatever the backend believes
    driver.vbd.memory = None  # not in place
    if path != "batch":
        serve(front, "linux" if path == "persistent" else path)
    ref = front.grant(front.page(b"x" * 4096))
    assert front.status(front.request(WRITE, 0, [(ref, 0, 7)])) == ERROR
    assert front.status(front.discard(0, 8)) != OKAY
    assert bytes(image.buffer) == content()


@MAPPING
@pytest.mark.parametrize(
    "bad", [[0], [10], [11], [0, 23], [11, 12, 13], list(range(11)), list(range(24))]
)
def test_xsa_361_only_what_was_mapped_is_unmapped(world: World, path: str, bad: list[int]) -> None:
    """Batches of which some references fail, alone and wholly."""
    one = attack(world, path)
    front = one.front
    pfn = front.page()
    refs = [front.grant(pfn) for _ in range(24)]
    segments = [(BAD if n in bad else ref, 0, 0) for n, ref in enumerate(refs)]
    page = front.page(b"".join(struct.pack("<IBB2x", *segment) for segment in segments))
    table = front.grant(page)  # writable: kept ones are mapped so
    assert front.status(front.indirect(READ, 0, [], nr=24, table=[table])) == ERROR
    assert one.image.log == []
    assert one.balanced()
    assert [front.revoke(ref) for ref in refs] == [0] * 24


@MAPPING
def test_xsa_365_a_batch_that_maps_does_not_make_up_for_one_that_did_not(
    world: World, path: str
) -> None:
    one = attack(world, path)
    front = one.front
    pfn = front.page()
    segments = [(BAD, 0, 0)] + [(front.grant(pfn), 0, 0) for _ in range(23)]
    table = front.grant(
        front.page(b"".join(struct.pack("<IBB2x", *segment) for segment in segments))
    )
    slot = front.indirect(WRITE, 0, [], nr=24, table=[table])
    assert front.status(slot) == ERROR
    assert front.status(slot) == ERROR  # persistent: those that were kept do not either
    assert one.image.log == []


@ALL
@pytest.mark.parametrize("latency_ns", [0, MS])
def test_xsa_350_a_connection_goes_twice_and_comes_again(
    world: World, path: str, latency_ns: int
) -> None:
    one = attack(world, path, latency_ns=latency_ns)
    front = one.front
    ref = front.grant(front.page())
    assert front.ring is not None
    front.ring.push(front.request(READ, 0, [(ref, 0, 7)]), 1)
    world.guest.evtchn.send(front.port)
    world.loop.advance(0)
    if path != "batch":
        server = front.driver.queues[0].ring
        server.abandon()
        server.abandon()
    front.write("state", 5)
    front.write("state", 6)
    world.loop.advance(100 * MS)
    front.write("state", 1)
    again = front.connect()
    fresh = again.grant(again.page())
    assert again.send(again.request(READ, 0, [(fresh, 0, 7)], rid=9)) == [(9, READ, OKAY)]


@ALL
def test_a_fault_in_the_middle_leaves_no_page_mapped(world: World, path: str) -> None:
    """The hook's exception: what a test of a user's throws into the backend's copy."""
    one = attack(world, path)
    front = one.front
    pfns = [front.page() for _ in range(3)]
    refs = [front.grant(pfn) for pfn in pfns]
    last = frame(world, pfns[2])

    def stop(_actor: int, _kind: int, number: int, _offset: int, size: int) -> None:
        if number == last and size == 4096:
            raise KeyError("third page")

    world.hypervisor.set_hook(stop)
    with pytest.raises(KeyError, match="third page"):
        front.send(front.request(READ, 0, [(ref, 0, 7) for ref in refs]))
    world.hypervisor.set_hook(None)
    assert one.balanced()


@MAPPING
@pytest.mark.parametrize("place", [0, 10, 11, 23])
@pytest.mark.parametrize("known", [False, True])
def test_a_fault_in_a_map_leaves_no_page_mapped(
    world: World, path: str, place: int, known: bool
) -> None:
    """In any batch; `known`: some of the pages were used before."""
    one = attack(world, path)
    front = one.front
    pfn = front.page()
    refs = [front.grant(pfn) for _ in range(24)]
    page = front.page(b"".join(struct.pack("<IBB2x", ref, 0, 0) for ref in refs))
    slot = front.indirect(READ, 0, [], nr=24, table=[front.grant(page)])
    if known:
        few = [(ref, 0, 0) for ref in refs[1:10]]
        assert front.status(front.request(READ, 0, few)) == OKAY
    table = lib.grant_table_frame(world.guest.kernel, 0)

    def stop(actor: int, _kind: int, number: int, offset: int, _size: int) -> None:
        if actor == 0 and number == table and offset == refs[place] * 8:
            raise KeyError("an entry")

    world.hypervisor.set_hook(stop)
    with pytest.raises(KeyError, match="an entry"):
        front.send(slot)
    world.hypervisor.set_hook(None)
    kept = front.driver.queues[0].ring.persistent
    assert kept is None or kept.in_use == 0
    assert one.balanced()
