"""blkback against a frontend that writes raw keys and raw slots."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.vbd.rawfront import (
    BACK,
    BARRIER,
    DISCARD,
    EOPNOTSUPP,
    ERROR,
    FLUSH,
    FRONT,
    INDIRECT,
    OKAY,
    READ,
    READONLY,
    RESERVED,
    WRITE,
    RawFront,
    make,
)
from tests.world import World
from tests.world import make as make_world
from xenpv.abi._kernel import lib
from xenpv.back.blkback import Blkback
from xenpv.host.image import ImageError, MemoryImage, RawImage

SECTORS = 1024


def content(sectors: int = SECTORS) -> bytearray:
    """Each sector says its number, so that a misplaced one shows."""
    return bytearray(b"".join(struct.pack("<I", n) * 128 for n in range(sectors)))


def sector(number: int) -> bytes:
    return struct.pack("<I", number) * 128


class Bounced(MemoryImage):
    """An image that is not in memory, as far as blkback can see."""

    data: memoryview
    buffer = property(lambda _self: None, lambda self, view: setattr(self, "data", view))

    def __init__(self, data: bytearray) -> None:
        super().__init__(data)
        self.log: list[tuple[str, int, int]] = []
        self.bad: set[int] = set()
        self.flush_fails = False
        self.discards = True

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self._access("read", offset, buffer.nbytes)
        buffer[:] = self.data[offset : offset + buffer.nbytes]

    def write_from(self, buffer: memoryview, offset: int) -> None:
        self._access("write", offset, buffer.nbytes)
        self.data[offset : offset + buffer.nbytes] = buffer

    def flush(self) -> None:
        self.log.append(("flush", 0, 0))
        if self.flush_fails:
            raise ImageError("EIO")

    def discard(self, offset: int, length: int) -> bool:
        self.log.append(("discard", offset, length))
        return self.discards

    def _access(self, what: str, offset: int, length: int) -> None:
        self.log.append((what, offset, length))
        if any(offset <= bad * 512 < offset + length for bad in self.bad):
            raise ImageError("EIO")


@pytest.fixture(params=[MemoryImage, Bounced])
def image(request: pytest.FixtureRequest) -> MemoryImage:
    made: MemoryImage = request.param(content())
    return made


def disk_bytes(image: MemoryImage) -> bytes:
    return bytes(image.data if isinstance(image, Bounced) else image.buffer)


@pytest.fixture
def front(world: World, image: MemoryImage) -> RawFront:
    return make(world, image).connect()


@pytest.fixture
def bounced(world: World) -> Bounced:
    del world
    return Bounced(content())


# probe and connect


def test_probe_offers_what_linux_offers_and_waits(world: World) -> None:
    front = make(world, MemoryImage(content()), plugged=False)
    assert front.state == 2
    assert front.key("feature-max-indirect-segments") == "256"
    assert front.key("max-ring-page-order") == "4"
    assert front.key("multi-queue-max-queues") == "1"


@pytest.mark.parametrize(
    ("mode", "keys", "info"),
    [
        ("w", {}, "0"),
        ("r", {}, "4"),
        ("w", {"removable": "1"}, "2"),
        ("r", {"device_type": "cdrom", "removable": "1"}, "7"),
    ],
)
def test_connect_publishes_the_disk(
    world: World, mode: str, keys: dict[str, str], info: str
) -> None:
    front = make(world, MemoryImage(content()), mode=mode, **keys).connect()
    assert front.state == 4
    assert front.key("info") == info
    assert front.key("sectors") == "1024"
    assert front.key("sector-size") == "512"
    assert front.key("physical-sector-size") == "512"
    assert front.key("feature-flush-cache") == "1"
    assert front.key("feature-barrier") == "1"


@pytest.mark.parametrize(
    ("mode", "enable", "offered"), [("w", "1", True), ("w", "0", False), ("r", "1", False)]
)
def test_discard_is_offered_unless_the_toolstack_or_the_mode_forbids_it(
    world: World, mode: str, enable: str, offered: bool
) -> None:
    image = MemoryImage(content())
    front = make(world, image, mode=mode, discard_enable=enable).connect()
    names = front.device.store.directory(BACK)
    discard = {
        "feature-discard": "1",
        "discard-granularity": "512",
        "discard-alignment": "0",
        "discard-secure": "0",
    }
    present = {name: front.key(name) for name in discard if name in names}
    assert present == (discard if offered else {})


def test_a_device_connects_when_the_image_comes_after_the_frontend(world: World) -> None:
    front = make(world, MemoryImage(content()), plugged=False).connect()
    assert front.state == 2
    ref = front.grant(front.page())
    front.send(front.request(READ, 5, [(ref, 0, 0)]))
    front.hotplug()
    assert front.state == 4
    assert front.answers() == [(7, READ, OKAY)]


def test_an_image_that_cannot_be_opened_breaks_the_device(world: World) -> None:
    front = make(world, MemoryImage(content()), params="/nonexistent/disk.img")
    assert front.state == 5
    assert "does not exist" in front.key("error")
    assert "does not exist" in front.device.broken


PROTOCOLS = ["x86_64-abi", "x86_32-abi", "arm-abi", None]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("order", [None, 0, 1, 2, 3, 4])
def test_every_abi_and_ring_order_moves_data(
    world: World, image: MemoryImage, protocol: str | None, order: int | None
) -> None:
    front = make(world, image).connect(protocol=protocol, order=order)
    assert front.state == 4
    assert front.ring is not None
    assert front.ring.size == 32 << (order or 0)
    pfn = front.page(b"\xee" * 4096)
    ref = front.grant(pfn)
    assert front.send(front.request(READ, 40, [(ref, 2, 5)], rid=2**64 - 2)) == [
        (2**64 - 2, READ, OKAY)
    ]
    expected = b"\xee" * 1024 + b"".join(sector(40 + n) for n in range(4)) + b"\xee" * 1024
    assert world.guest.read(pfn, 0, 4096) == expected
    world.guest.write(pfn, 0, b"\x99" * 4096)
    assert front.send(front.request(WRITE, 100, [(ref, 7, 7)])) == [(7, WRITE, OKAY)]
    assert disk_bytes(image)[100 * 512 : 101 * 512] == b"\x99" * 512
    many = [front.request(READ, n, [(ref, 0, 0)], rid=n) for n in range(front.ring.size)]
    assert front.send(*many) == [(n, READ, OKAY) for n in range(front.ring.size)]


@pytest.mark.parametrize(
    "keys",
    [
        {"protocol": "mips-abi"},
        {"order": 0, "ring_page_order": 5},
        {"order": 0, "ring_page_order": -1},
        {"order": 0, "ring_page_order": "many"},
        {"order": 0, "ring_page_order": 1},  # ring-ref1 is missing
        {"multi_queue_num_queues": 0},
        {"multi_queue_num_queues": 2},
        {"ring_ref": 4711},  # not granted
        {"ring_ref": 2**32},
        {"ring_ref": ""},
        {"event_channel": 999},
        {"event_channel": ""},
        {"event_channel": -1},
    ],
    ids=str,
)
def test_keys_that_mean_nothing_break_the_device_and_hold_nothing(
    world: World, keys: dict[str, object]
) -> None:
    ports = world.dom0.evtchn.bound()
    maps = len(world.dom0.gnttab.maptrack)
    front = make(world, MemoryImage(content()))
    order = keys.pop("order", None)
    protocol = keys.pop("protocol", "x86_64-abi")
    front.connect(protocol=protocol, order=order, **keys)  # type: ignore[arg-type]  # from a table
    assert front.state == 5
    assert front.device.broken
    assert world.dom0.evtchn.bound() == ports
    assert len(world.dom0.gnttab.maptrack) == maps
    front.write("state", 6)
    assert front.state == 6
    front.write("state", 1)
    assert front.state == 2


@pytest.mark.parametrize("state", ["", "3x", "-1", "9", "99999", "Connected"])
def test_a_state_that_is_none_unregisters_the_device(world: World, state: str) -> None:
    front = make(world, MemoryImage(content())).connect()
    front.write("state", state)
    assert front.driver.vbd is None
    assert front.driver.queues == []
    front.write("state", 4)
    assert front.driver.queues == []


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([1], 2),
        ([2], 5),  # saw state 2 at frontend
        ([5], 5),
        ([6], 6),
        ([6, 1], 2),
        ([5, 6, 1], 2),
        ([3], 4),
        ([4], 4),
        ([3, 4], 4),
        ([3, 5], 5),
        ([3, 6], 6),
        ([3, 4, 5, 6], 6),
        ([3, 6, 1], 2),
        ([3, 6, 1, 3], 4),
        ([3, 6, 3], 4),
        ([3, 7], 5),
        ([8], 5),
        ([2, 6, 1, 3], 4),
        ([3, 5, 6, 1, 4], 4),
    ],
)
def test_the_backend_follows_its_frontend(world: World, states: list[int], expected: int) -> None:
    front = make(world, MemoryImage(content())).connect()
    front.write("state", 6)
    front.write("state", 1)
    for state in states:
        front.write("state", state)
        if state == 6:
            # The port closed with the connection; a driver brings a new one.
            world.guest.evtchn.close(front.port)
            front.port = world.guest.evtchn.alloc_unbound(0)
            world.write(f"{FRONT}/event-channel", str(front.port))
    assert front.state == expected


def test_closing_releases_ports_maps_and_pins(world: World, image: MemoryImage) -> None:
    ports = world.dom0.evtchn.bound()
    maps = len(world.dom0.gnttab.maptrack)
    pins = world.guest.gnttab.pinned()
    tasks = len(world.dom0.tasks)
    front = make(world, image).connect(order=2)
    probed = len(world.dom0.tasks)
    assert len(world.dom0.gnttab.maptrack) == maps + 4
    front.write("state", 5)
    front.write("state", 6)
    assert world.dom0.evtchn.bound() == ports
    assert len(world.dom0.gnttab.maptrack) == maps
    assert world.guest.gnttab.pinned() == pins
    assert len(world.dom0.tasks) == probed - 1 >= tasks


class Closing(MemoryImage):
    closed = 0

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("how", ["offline", "vanished", "removed"])
def test_the_image_is_given_back_when_the_disk_goes(
    world: World, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Closing(content())
    front = make(world, MemoryImage(content()), plugged=False)
    monkeypatch.setattr(front.images, "open", lambda _params, _writable: image)
    front.hotplug()
    front.connect()
    device = front.device
    if how == "offline":
        world.write(f"{BACK}/online", "0")
        front.write("state", 5)
        assert image.closed == 0
        front.write("state", 6)
    elif how == "vanished":
        front.device.store.write(f"{BACK}/state", "5")
        front.device.store.remove(FRONT)
        world.loop.run()
        assert front.state == 6
    else:
        front.device.store.remove(BACK)
        world.loop.run()
    assert image.closed == 1
    assert isinstance(device.driver, Blkback)
    assert device.driver.queues == []
    device.driver.remove()
    assert image.closed == 1


# validation


def direct(operation: int, **fields: int) -> Callable[[RawFront, int], bytes]:
    def build(front: RawFront, ref: int) -> bytes:
        values = {"nr": 1, "first": 0, "last": 7, "sector": 0} | fields
        segments = [(ref, values["first"], values["last"])] * min(11, values["nr"])
        return front.request(operation, values["sector"], segments, nr=values["nr"])

    return build


def indirect(operation: int, **fields: int) -> Callable[[RawFront, int], bytes]:
    def build(front: RawFront, ref: int) -> bytes:
        values = {"nr": 12, "first": 0, "last": 7, "sector": 0} | fields
        segments = [(ref, values["first"], values["last"])] * min(512, values["nr"])
        return front.indirect(operation, values["sector"], segments, nr=values["nr"])

    return build


def discard(at: int, count: int) -> Callable[[RawFront, int], bytes]:
    return lambda front, _ref: front.discard(at, count)


END = SECTORS
HUGE = 2**64 - 1

MATRIX = [
    ("read", direct(READ), OKAY, OKAY),
    ("read 11", direct(READ, nr=11), OKAY, OKAY),
    ("read none", direct(READ, nr=0), ERROR, ERROR),
    ("read 12", direct(READ, nr=12), ERROR, ERROR),
    ("read 255", direct(READ, nr=255), ERROR, ERROR),
    ("read reversed", direct(READ, first=3, last=2), ERROR, ERROR),
    ("read last 8", direct(READ, last=8), ERROR, ERROR),
    ("read last 255", direct(READ, first=255, last=255), ERROR, ERROR),
    ("read the last sector", direct(READ, last=0, sector=END - 1), OKAY, OKAY),
    ("read past the end", direct(READ, last=1, sector=END - 1), ERROR, ERROR),
    ("read at the end", direct(READ, last=0, sector=END), ERROR, ERROR),
    ("read wrapping", direct(READ, last=0, sector=HUGE), ERROR, ERROR),
    ("write", direct(WRITE), OKAY, ERROR),
    ("write none", direct(WRITE, nr=0), ERROR, ERROR),
    ("write past the end", direct(WRITE, sector=END - 7), ERROR, ERROR),
    ("write wrapping", direct(WRITE, sector=HUGE - 3), ERROR, ERROR),
    ("barrier", direct(BARRIER), OKAY, ERROR),
    ("barrier alone", direct(BARRIER, nr=0), OKAY, ERROR),
    ("barrier alone beyond the end", direct(BARRIER, nr=0, sector=HUGE), OKAY, ERROR),
    ("flush", direct(FLUSH, nr=0), OKAY, ERROR),
    ("flush with data", direct(FLUSH), OKAY, ERROR),
    ("flush with data past the end", direct(FLUSH, sector=END), ERROR, ERROR),
    ("flush with 12", direct(FLUSH, nr=12), ERROR, ERROR),
    ("reserved", direct(RESERVED), EOPNOTSUPP, EOPNOTSUPP),
    ("operation 7", direct(7), EOPNOTSUPP, EOPNOTSUPP),
    ("operation 255", direct(255, nr=255), EOPNOTSUPP, EOPNOTSUPP),
    ("discard", discard(0, 8), OKAY, ERROR),
    ("discard nothing", discard(HUGE, 0), OKAY, ERROR),
    ("discard the end", discard(END - 1, 1), OKAY, ERROR),
    ("discard past the end", discard(END - 1, 2), ERROR, ERROR),
    ("discard wrapping", discard(HUGE, 2), ERROR, ERROR),
    ("discard everything there is", discard(0, HUGE), ERROR, ERROR),
    ("indirect read", indirect(READ), OKAY, OKAY),
    ("indirect read 1", indirect(READ, nr=1), OKAY, OKAY),
    ("indirect read none", indirect(READ, nr=0), ERROR, ERROR),
    ("indirect read 256", indirect(READ, nr=256, last=0), OKAY, OKAY),
    ("indirect read 257", indirect(READ, nr=257, last=0), ERROR, ERROR),
    ("indirect read 512", indirect(READ, nr=512), ERROR, ERROR),
    ("indirect read 4097", indirect(READ, nr=4097), ERROR, ERROR),
    ("indirect read 65535", indirect(READ, nr=65535), ERROR, ERROR),
    ("indirect read reversed", indirect(READ, first=1, last=0), ERROR, ERROR),
    ("indirect read last 8", indirect(READ, last=8), ERROR, ERROR),
    ("indirect read past the end", indirect(READ, nr=12, sector=END - 95), ERROR, ERROR),
    ("indirect read wrapping", indirect(READ, sector=HUGE), ERROR, ERROR),
    ("indirect write", indirect(WRITE), OKAY, ERROR),
    ("indirect barrier", indirect(BARRIER), ERROR, ERROR),
    ("indirect flush", indirect(FLUSH), ERROR, ERROR),
    ("indirect discard", indirect(DISCARD), ERROR, ERROR),
    ("indirect indirect", indirect(INDIRECT), ERROR, ERROR),
    ("indirect 255", indirect(255), ERROR, ERROR),
]


@pytest.mark.parametrize("mode", ["w", "r"])
@pytest.mark.parametrize("protocol", ["x86_64-abi", "x86_32-abi"])
def test_every_request_of_the_matrix_gets_its_status(
    world: World, image: MemoryImage, mode: str, protocol: str
) -> None:
    front = make(world, image, mode=mode).connect(protocol=protocol)
    before = disk_bytes(image)
    ref = front.grant(front.page())
    for name, build, writable, readonly in MATRIX:
        expected = writable if mode == "w" else readonly
        assert front.status(build(front, ref)) == expected, name
    assert front.state == 4
    assert world.guest.gnttab.pinned() >= 1
    if mode == "r":
        assert disk_bytes(image) == before


@pytest.mark.parametrize("protocol", ["x86_64-abi", "x86_32-abi"])
def test_the_matrix_in_batches_gets_the_same_statuses(
    world: World, image: MemoryImage, protocol: str
) -> None:
    """Neighbours of other operations and of other fates change nothing."""
    front = make(world, image).connect(protocol=protocol, order=1)
    ref = front.grant(front.page())
    slots = []
    for rid, (_name, build, _writable, _readonly) in enumerate(MATRIX):
        slot = bytearray(build(front, ref))
        struct.pack_into("<Q", slot, 4 if front.is_32 else 8, rid)
        slots.append(bytes(slot))
    answers = front.send(*slots)
    assert [(rid, status) for rid, _operation, status in answers] == [
        (rid, writable) for rid, (_n, _b, writable, _r) in enumerate(MATRIX)
    ]


@pytest.mark.parametrize(
    ("operation", "flags", "domid", "expected"),
    [
        (READ, 1, 0, OKAY),
        (WRITE, 1, 0, OKAY),
        (READ, READONLY, 0, ERROR),
        (WRITE, READONLY, 0, OKAY),
        (READ, 1, 2, ERROR),
        (WRITE, 1, 2, ERROR),
        (READ, 0, 0, ERROR),
        (WRITE, 2, 0, ERROR),
    ],
)
def test_a_grant_decides_what_may_be_done(
    front: RawFront, operation: int, flags: int, domid: int, expected: int
) -> None:
    ref = front.grant(front.page(), flags, domid)
    segments = [(ref, 0, 7)]
    assert front.status(front.request(operation, 0, segments)) == expected
    assert front.status(front.indirect(operation, 0, segments)) == expected
    assert front.revoke(ref) == 0


@pytest.mark.parametrize("gref", [2, 63, 511, 512, 2**20, 2**32 - 1])
def test_a_reference_that_was_never_given_is_an_error(front: RawFront, gref: int) -> None:
    assert front.status(front.request(READ, 0, [(gref, 0, 0)])) == ERROR
    assert front.status(front.indirect(READ, 0, [(gref, 0, 0)])) == ERROR
    assert front.status(front.indirect(READ, 0, [(8, 0, 0)], table=[gref])) == ERROR
    assert front.state == 4


def test_a_grant_of_memory_that_is_not_there_is_an_error(front: RawFront) -> None:
    ref = front.grant(0x7FFFFF)
    assert front.status(front.request(READ, 0, [(ref, 0, 7)])) == ERROR


@pytest.mark.parametrize("wide", [False, True])
def test_a_write_of_which_one_page_fails_changes_nothing(
    front: RawFront, image: MemoryImage, wide: bool
) -> None:
    before = disk_bytes(image)
    ref = front.grant(front.page(b"\xff" * 4096))
    segments = [(ref, 0, 7)] * 2 + [(4711, 0, 7)]
    build = front.indirect if wide else front.request
    assert front.status(build(WRITE, 0, segments)) == ERROR
    assert disk_bytes(image) == before
    assert front.revoke(ref) == 0


def test_a_failed_neighbour_does_not_stop_a_merged_write(
    front: RawFront, image: MemoryImage
) -> None:
    ref = front.grant(front.page(b"\xff" * 4096))
    slots = [
        front.request(WRITE, 8 * n, [(4711 if n == 2 else ref, 0, 7)], rid=n) for n in range(5)
    ]
    assert [status for _i, _o, status in front.send(*slots)] == [OKAY, OKAY, ERROR, OKAY, OKAY]
    now, then = disk_bytes(image), bytes(content())
    assert now[: 16 * 512] == b"\xff" * 16 * 512
    assert now[16 * 512 : 24 * 512] == then[16 * 512 : 24 * 512]
    assert now[24 * 512 : 40 * 512] == b"\xff" * 16 * 512
    assert now[40 * 512 :] == then[40 * 512 :]


# what the image is asked


def test_neighbouring_requests_become_one_access(world: World, bounced: Bounced) -> None:
    front = make(world, bounced).connect()
    refs = [front.grant(front.page()) for _ in range(4)]
    slots = [front.request(READ, at, [(refs[n], 0, 7)]) for n, at in enumerate((8, 16, 40, 48))]
    front.send(*slots)
    assert bounced.log == [("read", 8 * 512, 8192), ("read", 40 * 512, 8192)]


def test_only_the_request_with_the_bad_sector_fails(world: World, bounced: Bounced) -> None:
    bounced.bad = {17}
    front = make(world, bounced).connect()
    ref = front.grant(front.page())
    slots = [front.request(READ, 8 * n, [(ref, 0, 7)], rid=n) for n in range(4)]
    assert [status for _i, _o, status in front.send(*slots)] == [OKAY, OKAY, ERROR, OKAY]
    assert front.status(front.indirect(READ, 10, [(ref, 0, 7)])) == ERROR
    slots = [front.request(WRITE, 8 * n, [(ref, 0, 7)], rid=n) for n in range(4)]
    assert [status for _i, _o, status in front.send(*slots)] == [OKAY, OKAY, ERROR, OKAY]
    assert front.status(front.indirect(WRITE, 10, [(ref, 0, 7)])) == ERROR


@pytest.mark.parametrize("operation", [FLUSH, BARRIER])
def test_a_flush_comes_before_its_data_and_after_what_was_written(
    world: World, bounced: Bounced, operation: int
) -> None:
    front = make(world, bounced).connect()
    ref = front.grant(front.page())
    front.send(
        front.request(WRITE, 0, [(ref, 0, 7)]),
        front.request(operation, 8, [(ref, 0, 0)]),
        front.request(operation),
        front.request(WRITE, 16, [(ref, 0, 7)]),
    )
    assert bounced.log == [
        ("write", 0, 4096),
        ("flush", 0, 0),
        ("write", 4096, 512),
        ("flush", 0, 0),
        ("write", 8192, 4096),
    ]


def test_a_flush_that_fails_is_an_error_and_its_data_is_not_written(
    world: World, bounced: Bounced
) -> None:
    bounced.flush_fails = True
    front = make(world, bounced).connect()
    ref = front.grant(front.page())
    assert front.status(front.request(FLUSH)) == ERROR
    assert front.status(front.request(FLUSH, 8, [(ref, 0, 0)])) == ERROR
    assert bounced.log == [("flush", 0, 0)] * 2


def test_discard_zeroes_what_it_names(world: World) -> None:
    image = MemoryImage(content())
    front = make(world, image).connect()
    assert front.send(front.discard(3, 2)) == [(7, DISCARD, OKAY)]
    assert bytes(image.buffer[:3072]) == bytes(content()[: 3 * 512]) + bytes(1024) + sector(5)


def test_a_discard_that_the_image_cannot_do_is_not_supported(
    world: World, bounced: Bounced
) -> None:
    bounced.discards = False
    front = make(world, bounced).connect()
    assert front.status(front.discard(0, 8)) == EOPNOTSUPP


def test_a_disk_of_4_kib_sectors_takes_only_whole_ones(world: World) -> None:
    image = MemoryImage(content(), sector_size=4096)
    front = make(world, image).connect()
    assert (front.key("sectors"), front.key("sector-size")) == ("1024", "4096")
    ref = front.grant(front.page())
    for at, first, last, expected in (
        (8, 0, 7, OKAY),
        (4, 0, 7, ERROR),
        (8, 0, 3, ERROR),
        (8, 4, 7, ERROR),
    ):
        segments = [(ref, first, last)]
        assert front.status(front.request(READ, at, segments)) == expected
        assert front.status(front.indirect(READ, at, segments)) == expected


# answers


def test_the_answer_to_an_indirect_request_names_the_inner_operation(front: RawFront) -> None:
    ref = front.grant(front.page())
    assert front.send(front.indirect(WRITE, 0, [(ref, 0, 7)], rid=9)) == [(9, WRITE, OKAY)]
    assert front.send(front.indirect(READ, 0, [(ref, 0, 7)], rid=9)) == [(9, READ, OKAY)]


@pytest.mark.parametrize(("protocol", "size"), [("x86_64-abi", 112), ("x86_32-abi", 108)])
def test_an_answer_leaves_nothing_else_in_its_slot(world: World, protocol: str, size: int) -> None:
    front = make(world, MemoryImage(content())).connect(protocol=protocol)
    assert front.ring is not None
    ref = front.grant(front.page())
    front.send(front.request(READ, 1, [(ref, 0, 7)] * 11, rid=0x1122334455667788))
    slot = world.guest.read(front.ring.pfns[0], 64, size)
    assert slot == bytes.fromhex("8877665544332211 00 00 0000").ljust(size, b"\0")


def test_no_event_is_sent_unless_the_frontend_asked(front: RawFront, world: World) -> None:
    assert front.ring is not None
    ref = front.grant(front.page())
    front.send(front.request(READ, 0, [(ref, 0, 0)]))
    lib.evtchn_clear_pending(world.guest.kernel, front.port)
    world.guest.store32(front.ring.pfns[0], 12, 100)  # rsp_event, far ahead
    front.ring.push(front.request(READ, 0, [(ref, 0, 0)]), 1)
    world.guest.evtchn.send(front.port)
    world.loop.run()
    assert lib.evtchn_is_pending(world.guest.kernel, front.port) == 0
    assert len(front.answers()) == 1


def test_a_slot_is_fetched_once(front: RawFront, world: World) -> None:
    assert front.ring is not None
    ref = front.grant(front.page())
    frame = lib.p2m_lookup(world.guest.kernel, front.ring.pfns[0], 0)
    reads: list[tuple[int, int]] = []

    def hook(actor: int, kind: int, at: int, offset: int, size: int) -> None:
        if actor == 0 and not kind & 0xF and at == frame and offset >= 64:
            reads.append((offset, size))

    world.hypervisor.set_hook(hook)
    front.send(*[front.request(READ, n, [(ref, 0, 7)] * 3) for n in range(3)])
    world.hypervisor.set_hook(None)
    assert reads == [(64, 112), (176, 112), (288, 112)]


def test_a_segment_table_is_fetched_once(front: RawFront, world: World) -> None:
    ref = front.grant(front.page())
    table = front.page(struct.pack("<IBB2x", ref, 0, 7) * 20)
    frame = lib.p2m_lookup(world.guest.kernel, table, 0)
    reads: list[tuple[int, int]] = []

    def hook(actor: int, kind: int, at: int, offset: int, size: int) -> None:
        if actor == 0 and not kind & 0xF and at == frame:
            reads.append((offset, size))

    world.hypervisor.set_hook(hook)
    slot = front.indirect(READ, 0, [(0, 0, 0)] * 20, table=[front.grant(table, READONLY)])
    assert front.status(slot) == OKAY
    world.hypervisor.set_hook(None)
    assert reads == [(0, 160)]


@pytest.mark.parametrize("start", [2**32 - 1, 2**32 - 5, 2**31 - 3])
def test_indices_wrap(world: World, image: MemoryImage, start: int) -> None:
    front = make(world, image)
    front.connect(event_channel="")  # the ring is there, the backend is not yet
    assert front.ring is not None
    ring, guest = front.ring, world.guest
    ring.seek(start)
    for offset, value in ((0, start), (4, start + 1), (8, start), (12, start + 1)):
        guest.store32(ring.pfns[0], offset, value & 0xFFFFFFFF)
    world.write(f"{FRONT}/event-channel", str(front.port))
    front.write("state", 6)
    front.write("state", 3)
    assert front.state == 4
    ref = front.grant(front.page())
    for turn in range(4):
        slots = [front.request(READ, n, [(ref, 0, 0)], rid=n + turn) for n in range(32)]
        assert front.send(*slots) == [(n + turn, READ, OKAY) for n in range(32)]


# hostile frontends


@pytest.mark.parametrize("ahead", [33, 34, 2**16, 2**31, 2**32 - 1])
def test_a_producer_that_runs_past_the_ring_breaks_the_device(
    front: RawFront, world: World, ahead: int
) -> None:
    assert front.ring is not None
    front.poke(0, struct.pack("<I", ahead))
    assert front.state == 4  # as in Linux: the ring is halted, and the device can be closed
    assert front.driver.halted
    assert "index" in front.device.broken
    front.poke(0, struct.pack("<I", 1))  # too late: the ring is not looked at again
    assert world.guest.load32(front.ring.pfns[0], 8) == 0
    front.write("state", 6)
    assert front.state == 6


def test_a_broken_device_works_again_after_a_reconnect(world: World) -> None:
    front = make(world, MemoryImage(content())).connect()
    front.poke(0, struct.pack("<I", 99))
    front.write("state", 6)
    front.write("state", 1)
    front.connect()
    assert front.state == 4
    ref = front.grant(front.page())
    assert front.status(front.request(READ, 0, [(ref, 0, 0)])) == OKAY


SLOT = st.one_of(
    st.binary(min_size=112, max_size=112),
    st.builds(
        lambda op, nr, rid, at, first, last: struct.pack("<BBH4xQQ", op, nr, 0, rid, at).ljust(
            112, bytes((64, 0, 0, 0, first, last, 0, 0))[:1]
        ),
        st.integers(0, 8),
        st.sampled_from([0, 1, 2, 11, 12, 255]),
        st.integers(0, 2**64 - 1),
        st.sampled_from([0, 1, SECTORS - 1, SECTORS, 2**63, 2**64 - 1]),
        st.integers(0, 8),
        st.integers(0, 8),
    ),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    slots=st.lists(SLOT, min_size=1, max_size=32),
    prod=st.one_of(st.none(), st.integers(0, 2**32 - 1)),
    is_32=st.booleans(),
)
def test_any_bytes_are_answered_or_break_the_device(
    slots: list[bytes], prod: int | None, is_32: bool
) -> None:
    world = make_world()
    image = Bounced(content())
    front = make(world, image).connect(protocol="x86_32-abi" if is_32 else "x86_64-abi")
    assert front.ring is not None
    for _ in range(4):
        front.grant(front.page())
    size = front.ring.req_size
    packed = b"".join(slot[:size] for slot in slots)
    world.guest.write(front.ring.pfns[0], 64, packed)
    published = len(slots) if prod is None else prod
    front.poke(0, struct.pack("<I", published))
    answered = world.guest.load32(front.ring.pfns[0], 8)
    if published > 32:
        assert front.driver.halted
        assert (front.state, answered) == (4, 0)
    else:
        assert (front.state, answered) == (4, published)
    pins = world.guest.gnttab.pinned()
    front.write("state", 6)
    assert world.guest.gnttab.pinned() == pins - 1
    assert front.driver.queues == []
    world.hypervisor.close()


KEY = st.sampled_from(
    ["state", "ring-ref", "ring-ref0", "ring-page-order", "event-channel", "protocol",
     "multi-queue-num-queues", "queue-0/ring-ref", "feature-persistent"]
)  # fmt: skip
VALUE = st.sampled_from(
    ["", "0", "1", "3", "4", "5", "6", "-1", "0x10", "18446744073709551616", "x86_32-abi",
     "64", "65", "99999999", "\x01", "4 "]
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(writes=st.lists(st.tuples(KEY, VALUE), min_size=1, max_size=12))
def test_any_keys_in_any_order_leave_a_backend_that_closes(
    writes: list[tuple[str, str]],
) -> None:
    world = make_world()
    ports, maps = world.dom0.evtchn.bound(), len(world.dom0.gnttab.maptrack)
    front = make(world, MemoryImage(content())).connect()
    for name, value in writes:
        front.write(name, value)
        assert front.state in (2, 4, 5, 6)
    front.device.store.remove(BACK)
    world.loop.run()
    assert world.dom0.evtchn.bound() == ports
    assert len(world.dom0.gnttab.maptrack) == maps
    world.hypervisor.close()


def test_a_storm_of_state_changes_leaks_nothing(world: World) -> None:
    ports, maps = world.dom0.evtchn.bound(), len(world.dom0.gnttab.maptrack)
    front = make(world, MemoryImage(content())).connect()
    for state in (4, 6, 1, 3, 4, 5, 3, 6, 5, 6, 1, 4, 6) * 5:
        world.write(f"{FRONT}/state", str(state))
    world.loop.run()
    front.write("state", 6)
    assert front.state == 6
    assert world.dom0.evtchn.bound() == ports
    assert len(world.dom0.gnttab.maptrack) == maps


# a real file


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "disk.img"
    file.write_bytes(content())
    yield file


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    transfers=st.lists(
        st.tuples(
            st.booleans(), st.integers(0, SECTORS - 88), st.integers(1, 11), st.integers(0, 7)
        ),
        min_size=1,
        max_size=32,
    )
)
def test_a_ring_of_requests_equals_the_file(
    path: Path, transfers: list[tuple[bool, int, int, int]]
) -> None:
    model = content()
    path.write_bytes(model)
    world = make_world()
    image = RawImage(str(path), writable=True)
    front = make(world, image).connect()
    slots, checks = [], []
    for writes, at, nr, last in transfers:
        pfns = [front.page(bytes((at + n & 0xFF,)) * 4096) for n in range(nr)]
        segments = [(front.grant(pfn), 0, last) for pfn in pfns]
        slots.append(front.request(WRITE if writes else READ, at, segments))
        size = (last + 1) * 512
        for n, pfn in enumerate(pfns):
            start = at * 512 + n * size
            if writes:
                model[start : start + size] = bytes((at + n & 0xFF,)) * size
            else:
                checks.append((pfn, size, bytes(model[start : start + size])))
    assert {status for _i, _o, status in front.send(*slots)} == {OKAY}
    for pfn, size, expected in checks:
        assert world.guest.read(pfn, 0, size) == expected
    assert path.read_bytes() == model
    image.close()
    world.hypervisor.close()


def test_a_file_that_shrank_is_an_error_and_not_zeros(world: World, path: Path) -> None:
    image = RawImage(str(path), writable=False)
    front = make(world, image, mode="r").connect()
    with path.open("r+b") as file:
        file.truncate(100 * 512)
    pfn = front.page(b"\xee" * 4096)
    ref = front.grant(pfn)
    assert front.status(front.request(READ, 99, [(ref, 0, 0)])) == OKAY
    assert front.status(front.request(READ, 99, [(ref, 0, 1)])) == ERROR
    assert world.guest.read(pfn, 512, 512) == b"\xee" * 512
    image.close()
