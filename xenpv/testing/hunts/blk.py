"""Scenarios of disks: what blkback refuses and what it promises, and what XenVbd believes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import attrs

from xenpv.abi.blkif import BLKIF_OP, BLKIF_RSP
from xenpv.abi.xenbus import XenbusState as State
from xenpv.errors import GrantError
from xenpv.host.faultyimage import FaultyImage
from xenpv.host.image import Image, MemoryImage
from xenpv.host.writecache import WriteCache
from xenpv.platform import Disk, Vif
from xenpv.testing.blk_layout import SEGMENT, Layout, Segment
from xenpv.testing.blk_world import world_blk
from xenpv.testing.checks.grants import check_closed
from xenpv.testing.explorer import Explorer
from xenpv.testing.hunts.rings import fail, raw_worlds
from xenpv.testing.raw_world import RawWorld
from xenpv.testing.run import Scenario
from xenpv.vbd.srb import SrbStatus
from xenpv.xen.domain import PAGE_SIZE
from xenpv.xen.loop import NS_PER_S, Task

READ: Final = int(BLKIF_OP.READ)
WRITE: Final = int(BLKIF_OP.WRITE)
FLUSH: Final = int(BLKIF_OP.FLUSH_DISKCACHE)
OKAY: Final = int(BLKIF_RSP.OKAY)
ERROR: Final = int(BLKIF_RSP.ERROR)
EOPNOTSUPP: Final = int(BLKIF_RSP.EOPNOTSUPP)

LAYOUT: Final = Layout("")
SECTORS: Final = 512  # of the disks here
SECTOR: Final = 512
HANDLE: Final = 1
LATENCY_NS: Final = 1_000_000
WRITES: Final = 4
INDIRECT_MAX: Final = 256  # feature-max-indirect-segments
TABLE_PAGES: Final = 4
LAST_SECTOR: Final = (1 << 64) - 1
PATTERN: Final = bytes(range(1, 256)) + b"\xff"
DISK: Final = PATTERN * (SECTORS * SECTOR // len(PATTERN))


@attrs.frozen
class Pages:
    """References of a guest: to a page of data, and to a table of one-sector segments in that and
    in others, since a page can be mapped 128 times at once.
    """

    data: int
    table: int

    @classmethod
    def of(cls, world: RawWorld, mark: bytes = b"\x5a") -> Pages:
        """The data is `mark` over and over, the table full."""
        guest = world.guest
        data, table = guest.page(TABLE_PAGES), guest.page()
        refs = [guest.grant(data + at) for at in range(TABLE_PAGES)]
        guest.domain.write(data, 0, mark * PAGE_SIZE)
        segments = b"".join([SEGMENT.pack(ref, 0, 0) for ref in refs])
        guest.domain.write(table, 0, segments * (PAGE_SIZE // len(segments)))
        return cls(refs[0], guest.grant(table))


# A slot with that id, that asks what a row of a table says.
Build = Callable[[Pages, int], bytes]
Row = tuple[str, Build, int]  # what is wrong, the request, its status


def _direct(operation: int, sector: int, *bounds: tuple[int, int], count: int = -1) -> Build:
    def build(pages: Pages, rid: int) -> bytes:
        segments: Sequence[Segment] = [(pages.data, *one) for one in bounds]
        slot = LAYOUT.direct(operation, HANDLE, rid, sector, segments)
        return slot if count < 0 else slot[:1] + bytes([count]) + slot[2:]

    return build


def _indirect(operation: int, sector: int, count: int) -> Build:
    def build(pages: Pages, rid: int) -> bytes:
        return LAYOUT.indirect(operation, HANDLE, rid, sector, count, [pages.table] * 8)

    return build


def _discard(sector: int, count: int) -> Build:
    def build(_pages: Pages, rid: int) -> bytes:
        return LAYOUT.discard(HANDLE, rid, sector, count)

    return build


WHOLE: Final = (0, 7)
REFUSED: Final[tuple[Row, ...]] = (
    ("12 segments", _direct(READ, 0, *[WHOLE] * 11, count=12), ERROR),
    ("255 segments", _direct(WRITE, 0, *[WHOLE] * 11, count=255), ERROR),
    ("a segment that ends before it begins", _direct(READ, 0, (5, 2)), ERROR),
    ("the second of two ends before it begins", _direct(WRITE, 0, WHOLE, (7, 0)), ERROR),
    ("a segment beyond its page", _direct(READ, 0, (0, 8)), ERROR),
    ("no segment", _direct(READ, 0), ERROR),
    ("a read beyond the end", _direct(READ, SECTORS - 4, WHOLE), ERROR),
    ("a write beyond the end", _direct(WRITE, SECTORS, (0, 0)), ERROR),
    ("sectors that wrap 64 bits", _direct(WRITE, LAST_SECTOR - 3, WHOLE), ERROR),
    ("bytes that wrap 64 bits", _direct(READ, 1 << 55, WHOLE), ERROR),
    ("an indirect write beyond the end", _indirect(WRITE, SECTORS, 1), ERROR),
    ("more indirect segments than offered", _indirect(READ, 0, INDIRECT_MAX + 1), ERROR),
    ("more indirect segments than fit", _indirect(WRITE, 0, 0xFFFF), ERROR),
    ("no indirect segment", _indirect(READ, 0, 0), ERROR),
    ("an indirect flush", _indirect(FLUSH, 0, 1), ERROR),
    ("a discard beyond the end", _discard(SECTORS - 1, 2), ERROR),
    ("a discard that wraps 64 bits", _discard(LAST_SECTOR, 2), ERROR),
    ("an operation that there is not", _direct(77, 0, WHOLE), EOPNOTSUPP),
    ("nothing", _direct(READ, SECTORS - 8, WHOLE), OKAY),
    ("nothing, indirect", _indirect(READ, 0, INDIRECT_MAX), OKAY),
)
READONLY: Final[tuple[Row, ...]] = (
    ("a write", _direct(WRITE, 0, WHOLE), ERROR),
    ("an indirect write", _indirect(WRITE, 0, 1), ERROR),
    ("a discard", _discard(0, 8), ERROR),
    ("nothing", _direct(READ, 0, WHOLE), OKAY),
)


@attrs.define(eq=False)
class Asker:
    """A block frontend that sends rows of a table at once; `answers` are statuses by id."""

    world: RawWorld
    rows: tuple[Row, ...]
    answers: dict[int, int] = attrs.field(factory=dict)
    twice: list[int] = attrs.field(factory=list)

    def start(self) -> None:
        """Make its task due; nothing is sent yet."""
        self.world.vbd.on_event = self.complete
        self.world.guest.domain.task("asker", self.send).wake()

    def send(self) -> None:
        pages, vbd = Pages.of(self.world), self.world.vbd
        slots = [build(pages, rid) for rid, (_, build, _) in enumerate(self.rows)]
        if vbd.sring.push(b"".join(slots), len(slots)):
            vbd.notify()

    def complete(self) -> None:
        for raw in self.world.vbd.sring.take():
            ((rid, _, status),) = LAYOUT.responses(raw)
            if rid in self.answers:
                self.twice.append(rid)
            self.answers[rid] = status

    def check(self) -> None:
        """Every request was answered once, and as it should be."""
        assert not self.twice, f"request {self.twice[0]} is answered twice"
        for rid, (what, _, status) in enumerate(self.rows):
            found = self.answers.get(rid)
            assert found == status, f"{what}: answered {found}, expected {status}"


def _ask(x: Explorer, rows: tuple[Row, ...], make: Callable[[], MemoryImage]) -> None:
    """In both ways of blkback; none of `rows` changes the disk."""
    askers = [Asker(world, rows) for world in raw_worlds(x, make=make)]
    for asker in askers:
        asker.start()
    x.run()
    for asker in askers:
        asker.check()
        image = asker.world.image.buffer
        assert image is not None
        assert image == DISK, "the disk was changed by a request that is refused"


def blk_refused(x: Explorer) -> None:
    """blkback refuses what is not well formed or not on the disk, and does nothing of it."""
    _ask(x, REFUSED, lambda: MemoryImage(bytearray(DISK)))


class Unguarded(MemoryImage):
    """Not to be written, and it leaves that to its backend."""

    def write_from(self, buffer: memoryview, offset: int) -> None:
        self.buffer[offset : offset + buffer.nbytes] = buffer


def blk_readonly(x: Explorer) -> None:
    """A disk in mode r is not written by any request."""
    _ask(x, READONLY, lambda: Unguarded(bytearray(DISK), writable=False))


def blk_x86_32(x: Explorer) -> None:
    """A frontend whose layout is x86_32's writes and reads back, in both ways of blkback."""
    data = PATTERN * (PAGE_SIZE // len(PATTERN))
    worlds = []
    for persistent in (False, True):
        world = world_blk(protocol="x86_32-abi", persistent=persistent)
        x.adopt(world.platform)
        worlds.append(world)
    x.begin()
    for sent in (BLKIF_OP.WRITE, BLKIF_OP.READ):
        wanted = [(world, world.disk.submit(sent, 8, 8, data)) for world in worlds]
        x.run()
        for world, requests in wanted:
            assert not world.disk.broken, world.disk.broken
            for one in requests:
                assert one.status == OKAY, f"{sent.name}: answered {one.status}"
                assert sent is BLKIF_OP.WRITE or one.data == data, "other data came back"


@attrs.define(eq=False)
class Flusher:
    """Writes a page, flushes once that is answered, and again; `lost` is what it found not
    durable when a flush was answered.
    """

    world: RawWorld
    cache: WriteCache
    cycles: int = 2
    sent: int = 0
    lost: list[str] = attrs.field(factory=list)
    pages: Pages = attrs.field(init=False)
    task: Task = attrs.field(init=False)

    def start(self) -> None:
        """Make its task due; nothing is sent yet."""
        self.pages = Pages.of(self.world)
        self.world.vbd.on_event = self.complete
        self.task = self.world.guest.domain.task("flusher", self.send)
        self.task.wake()

    def send(self) -> None:
        build = _direct(FLUSH, 0) if self.sent % 2 else _direct(WRITE, 8 * self.sent, WHOLE)
        vbd = self.world.vbd
        if vbd.sring.push(build(self.pages, self.sent), 1):
            vbd.notify()

    def complete(self) -> None:
        for raw in self.world.vbd.sring.take():
            ((rid, _, status),) = LAYOUT.responses(raw)
            if rid % 2 and (status or self.cache.pending):
                self.lost.append(
                    f"flush {rid} is answered {status}, {len(self.cache.pending)} writes are not "
                    "durable"
                )
            self.sent += 1
            if self.sent < 2 * self.cycles:
                self.task.wake()


def blk_durable(x: Explorer) -> None:
    """What was written before a flush is durable when that is answered."""
    worlds = raw_worlds(x, make=lambda: WriteCache(MemoryImage(bytearray(DISK))))
    flushers = []
    for world in worlds:
        assert isinstance(world.image, WriteCache)
        flushers.append(Flusher(world, world.image))
        flushers[-1].start()
    x.run()
    for one in flushers:
        assert not one.lost, one.lost[0]
        assert one.sent == 2 * one.cycles, f"{one.sent} requests were answered"


BAD: Final = 64  # the sector where reads come short
SHORT: Final[tuple[Row, ...]] = (
    ("nothing", _direct(READ, 0, WHOLE), OKAY),
    ("a read that comes short", _direct(READ, BAD, WHOLE), ERROR),
    ("an indirect read that comes short", _indirect(READ, BAD, 4), ERROR),
    ("nothing behind it", _direct(READ, BAD + 8, WHOLE), OKAY),
)


def blk_short(x: Explorer) -> None:
    """A read for which the image has fewer bytes is an error, and of that request alone."""

    def make() -> Image:
        image = FaultyImage(MemoryImage(bytearray(DISK)))
        image.fail("read", start=BAD * SECTOR, end=(BAD + 8) * SECTOR, done=SECTOR)
        return image

    askers = [Asker(world, SHORT) for world in raw_worlds(x, make=make)]
    for asker in askers:
        asker.start()
    x.run()
    for asker in askers:
        asker.check()


def blk_evicted(x: Explorer) -> None:
    """Persistent grants that nobody used for a minute are unmapped, and none is left at the
    close.
    """
    worlds = raw_worlds(x, make=lambda: MemoryImage(bytearray(DISK)))
    world = worlds[1]
    asker = Asker(world, READONLY[-1:])
    asker.start()
    x.run()
    asker.check()
    world.platform.advance(61 * NS_PER_S)
    for one in worlds:
        for state in (State.CLOSING, State.CLOSED):
            for front in (one.vbd, one.vif):
                front.state = state
            x.run()
    for one in worlds:
        fail([line for line in check_closed(one.platform, one.guest.domain) if " maps " in line])


# XenVbd

ANSWERS: Final = ("well", "EOPNOTSUPP", "ERROR", "an id of nobody", "one id twice")


def disk_answers(x: Explorer) -> None:
    """XenVbd completes an SRB with success once it is answered OKAY, and believes nothing more of
    a backend that answers what nobody asked.
    """
    world = x.world_back()
    world.vbd.hold = True
    x.begin()
    how = x.decide(f"answer {ANSWERS}", len(ANSWERS))
    disk = world.disk
    pending = [disk.start_read(0, 8), disk.start_write(8, bytes(PAGE_SIZE)), disk.start_read(16, 1)]
    x.run()
    requests = world.vbd.sring.take()
    assert len(requests) == len(pending)
    rids = [int.from_bytes(raw[8:16], "little") for raw in requests]
    assert len(dict.fromkeys(rids)) == len(rids), f"ids {rids} are in flight at once"
    status = (OKAY, EOPNOTSUPP, ERROR, OKAY, OKAY)[how]
    if how == ANSWERS.index("an id of nobody"):
        world.vbd.respond(0x7FFF_FFFF, READ, OKAY)
        rids.pop()
    elif how == ANSWERS.index("one id twice"):
        rids[1] = rids[0]
    for rid, raw in zip(rids, requests, strict=False):
        world.vbd.respond(rid, raw[0], status)
    x.run()
    found = [one.srb_status is SrbStatus.SUCCESS for one in pending]
    expected = {0: [True] * 3, 4: [True, False, False]}.get(how, [False] * 3)
    assert found == expected, f"answered {ANSWERS[how]}: success {found}, expected {expected}"


def disk_kept(x: Explorer) -> None:
    """A backend answers a READ and keeps its page mapped: the reference is not used again."""
    world = x.world_back()
    world.vbd.hold = True
    x.begin()
    world.disk.start_read(0, 8)
    x.run()
    (raw,) = world.vbd.sring.take()
    world.vbd.map(world.vbd.segments(raw)[0][0])
    world.vbd.answer(raw, OKAY)
    world.disk.start_read(8, 8)
    x.run()


def disk_writes(x: Explorer) -> None:
    """A backend cannot write what it is only to read."""
    world = x.world_back()
    world.vbd.hold = True
    x.begin()
    world.disk.start_write(0, bytes(2 * PAGE_SIZE))
    world.disk.start_write(32, bytes(SECTOR))
    x.run()
    for raw in world.vbd.sring.take():
        for ref, _, _ in world.vbd.segments(raw):
            try:
                pfn = world.vbd.map(ref)
            except GrantError:
                continue
            world.vbd.unmap(pfn)
            raise AssertionError(f"reference {ref} of a WRITE can be written by the backend")
        world.vbd.answer(raw, OKAY)
    x.run()


def devices_closed(x: Explorer) -> None:
    """Disk and interface of a guest are taken away: nothing stays granted or mapped."""
    xen = x.platform()
    guest = xen.create(
        name="guest", memory_mib=16, disks=[Disk(MemoryImage(bytearray(1 << 16)))], vifs=[Vif()]
    ).start()
    x.begin()
    pending = guest.disks[0].start_write(8, bytes(PAGE_SIZE))
    guest.nets[0].send(b"\xff" * 6 + guest.nets[0].mac + b"\x88\xb5" + bytes(50))
    x.run()
    assert pending.srb_status is SrbStatus.SUCCESS
    guest.detach(guest.nets[0])
    guest.detach(guest.disks[0])
    x.run()
    fail(check_closed(xen, guest.created.domain))


def disk_resumed(x: Explorer) -> None:
    """A guest is suspended while commands of its disk are under way, and believes to be in another
    domain when it goes on: each command ends, if only with an error that the class driver retries.
    """
    xen = x.platform()
    image = MemoryImage(bytearray(1 << 16))
    disk = Disk(image, latency_ns=LATENCY_NS)
    guest = xen.create(name="guest", memory_mib=16, disks=[disk]).start()
    x.begin()
    started = [guest.disks[0].start_write(8 + at, bytes([at + 1]) * SECTOR) for at in range(WRITES)]
    guest.suspend()
    guest.resume(fast=False)
    xen.advance(1)
    x.check()
    assert SrbStatus.PENDING not in [one.srb_status for one in started]


SCENARIOS: Final[tuple[Scenario, ...]] = (
    blk_refused,
    blk_readonly,
    blk_x86_32,
    blk_durable,
    blk_short,
    blk_evicted,
    disk_answers,
    disk_kept,
    disk_writes,
    disk_resumed,
    devices_closed,
)
