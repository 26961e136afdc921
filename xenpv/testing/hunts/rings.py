"""Scenarios about the rings themselves, whatever they carry."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.abi.blkif import BLKIF_OP
from xenpv.abi.layout import packer
from xenpv.host.image import Image, MemoryImage
from xenpv.platform import Disk, Platform, Vif
from xenpv.testing.checkers import CheckFailed
from xenpv.testing.checks.slots import check_indices
from xenpv.testing.explorer import Explorer
from xenpv.testing.raw_front import RawBlkFront, RawFront
from xenpv.testing.raw_world import IMAGE_BYTES, MAC, RawWorld
from xenpv.testing.run import Scenario
from xenpv.testing.scenarios import DiskClient, NetClient
from xenpv.testing.sring import RawSring
from xenpv.vbd import blkif
from xenpv.vbd.srb import SrbStatus
from xenpv.view.rings import (
    HEADER,
    REQ_EVENT,
    REQ_PROD,
    RSP_EVENT,
    KnownRing,
    poke,
    rings_of,
    u32,
)
from xenpv.xen.domain import PAGE_SIZE

READ: Final = int(BLKIF_OP.READ)
FLUSH: Final = int(BLKIF_OP.FLUSH_DISKCACHE)
RESPONSE: Final = packer("blkif_response")
TX: Final = packer("netif_tx_request")
NETTXF_more_data: Final[int] = lib.NETTXF_more_data
LAST: Final = 7  # sector of a page
# The last index before the wrap: whoever sleeps there has asked for an event at 0.
LAST_INDEX: Final = 0xFFFFFFFF


def start_before_wrap(platform: Platform) -> None:
    """Every ring on which nothing is in flight goes on at the last index there is."""
    for ring in rings_of(platform):
        front, back = ring.front, ring.back
        if front is None or back is None or front.index != front.cons or back.index != front.index:
            continue
        for end in (front, back):
            lib.ring_seek(end.handle, LAST_INDEX, LAST_INDEX)
        for name, at in HEADER.items():
            value = u32(LAST_INDEX + name.endswith("_event"))
            poke(platform.hypervisor, ring.frames[0], at, value.to_bytes(4, "little"))


def rings_wrap(x: Explorer) -> None:
    """Indices wrap at 2^32 under a guest that uses its disk and its interface: nothing waits."""
    xen = x.platform()
    image = MemoryImage(bytearray(1 << 16))
    mac = bytes.fromhex("00163e000001")
    guest = xen.create(
        name="guest", memory_mib=16, disks=[Disk(image)], vifs=[Vif(mac=mac.hex(":"))]
    ).start()
    start_before_wrap(xen)
    disk, net = DiskClient(guest, 8), NetClient(guest, b"\xff" * 6)
    disk.start()
    net.start()
    x.begin()
    x.run()
    assert [one.srb_status for one in disk.busy] == [SrbStatus.SUCCESS] * len(disk.busy)
    assert list(xen.bridge("xenbr0").frames) == net.sent


def read_request(rid: int, ref: int, sector: int = 0, *, operation: int = READ) -> bytes:
    """A request for a page of data."""
    return blkif.request(1).pack(operation, 1, 0, rid, sector, ref, 0, LAST)


PERSISTENT: Final = {"feature-persistent": "1"}


def raw_worlds(
    x: Explorer,
    *,
    before: Callable[[RawWorld], object] | None = None,
    make: Callable[[], Image] | None = None,
) -> list[RawWorld]:
    """Two raw worlds: blkback serves the one's disk in batches, the other's request by request,
    as it does where grants are persistent. `before` is called when the rings are there and their
    backends have not seen them.
    """
    worlds = []
    for keys in ({}, PERSISTENT):
        platform = x.adopt(Platform())
        image = MemoryImage(bytearray(IMAGE_BYTES)) if make is None else make()
        world = RawWorld(platform, image, "xenbr0")
        platform.run()
        for front in (world.vbd, world.vif):
            front.attach()
        if before is not None:
            before(world)
        world.vbd.announce(keys)
        world.vif.announce()
        platform.run()
        for front in (world.vbd, world.vif):
            front.finish()
        platform.run()
        worlds.append(world)
    return worlds


def requests_beyond(x: Explorer) -> None:
    """A producer index more than a ring ahead is refused, and nothing of that ring is answered."""
    worlds = raw_worlds(x)
    ends: list[tuple[RawFront, RawSring]] = [(world.vbd, world.vbd.sring) for world in worlds]
    ends += [(world.vif, world.vif.tx) for world in worlds]
    for front, sring in ends:
        sring.req_prod = sring.size + 1
        front.notify()
    x.run()
    for front, sring in ends:
        answers = sring.rsp_prod
        assert not answers, f"{front.kind}: {answers} answers to requests that are none"
        assert front.backend is not None
        assert front.backend.broken, f"{front.kind}: an index beyond the ring was believed"


def responses_beyond(x: Explorer) -> None:
    """A producer index ahead of what is in flight is refused, and no response is believed."""
    world = x.world_back()
    world.vbd.hold = world.vif.hold = True
    x.each(lambda: fail(check_indices(world.platform)))
    x.begin()
    pending = world.disk.start_read(0, 8)
    world.net.send(b"\xff" * 6 + world.net.mac + b"\x88\xb5" + bytes(50))
    x.run()
    for sring in (world.vbd.sring, world.vif.tx):
        for raw in sring.take():
            rid = raw[8:16] if len(raw) > 12 else raw[8:10]
            sring.write_slot(sring.rsp_prod, rid + bytes(4))
        sring.rsp_prod += 1 + sring.size
    world.vbd.notify()
    world.vif.notify()
    x.run()
    assert pending.srb_status is not SrbStatus.SUCCESS


def fail(findings: list[str]) -> None:
    """Raises CheckFailed if there are any."""
    if findings:
        raise CheckFailed(findings)


def early_requests(x: Explorer) -> None:
    """What a frontend has on its rings before its backend connects is answered as all else is."""

    def push(world: RawWorld) -> None:
        guest = world.guest
        refs = [guest.grant(guest.page()) for _ in range(2)]
        world.vbd.sring.push(b"".join([read_request(rid, ref) for rid, ref in enumerate(refs)]), 2)
        frame = guest.page()
        guest.domain.write(frame, 0, b"\xff" * 12 + b"\x88\xb5" + bytes(46))
        world.vif.tx.push(TX.pack(guest.grant(frame, readonly=True), 0, 0, 7, 60), 1)

    worlds = raw_worlds(x, before=push)
    x.run()
    for world in worlds:
        answers = [RESPONSE.unpack(one) for one in world.vbd.sring.take()]
        found = [(rid, status) for rid, _, status in answers]
        assert found == [(0, 0), (1, 0)], f"of two early requests these are answered: {found}"
        sent = world.vif.tx.take()
        assert sent == [bytes([7, 0, 0, 0])], f"an early frame is answered {sent}"


def ring_at(platform: Platform, pfn: int) -> KnownRing:
    """The ring whose first page is that one of its frontend."""
    return next(one for one in rings_of(platform) if one.front and one.front.pfns[0] == pfn)


LOOKS: Final = 4  # times that a backend looks at an index, in one pass and a little


def req_prod_moves(x: Explorer) -> None:
    """A frontend moves req_prod beyond the ring between two looks of its backend: what was looked
    at is what is gone by.
    """
    worlds = raw_worlds(x)
    x.begin()
    nth = x.decide("req_prod moves before look", LOOKS)
    for world in worlds:
        guest, flush = world.guest, blkif.request(0).pack(FLUSH, 0, 1, 0, 0)
        frame = TX.pack(guest.grant(guest.page(), readonly=True), 0, 0, 7, 60)
        ends: tuple[tuple[RawFront, RawSring, bytes], ...] = (
            (world.vbd, world.vbd.sring, flush),
            (world.vif, world.vif.tx, frame),
        )
        for front, sring, slot in ends:
            ring = ring_at(world.platform, sring.pfn)
            if nth:
                move = partial(setattr, sring, "req_prod", 1 + 3 * sring.size)
                x.intrude(world.platform.dom0, (ring.frames[0], REQ_PROD), move, nth=nth)
            if sring.push(slot, 1):
                front.notify()
    x.run()


def request_in_window(x: Explorer) -> None:
    """A request is published just before the backend says where it wants an event: its last look
    finds it.
    """
    worlds = raw_worlds(x)
    x.begin()
    nth = x.decide("a request comes before req_event is stored", LOOKS)
    for world in worlds:
        ring = ring_at(world.platform, world.vbd.sring.pfn)
        push = partial(_push_flush, world.vbd)
        if nth:
            x.intrude(world.platform.dom0, (ring.frames[0], REQ_EVENT), push, writes=True, nth=nth)
        push()
    x.run()


def _push_flush(front: RawBlkFront) -> None:
    if front.sring.push(blkif.request(0).pack(FLUSH, 0, 1, 0, 0), 1):
        front.notify()


def response_in_window(x: Explorer) -> None:
    """A response is published just before the frontend says where it wants an event."""
    world = x.world_back()
    world.vbd.hold = world.vif.hold = True
    x.begin()
    nth = x.decide("a response comes before rsp_event is stored", LOOKS)
    pending = [world.disk.start_read(8 * at, 8) for at in range(2)]
    for _ in range(2):
        world.net.send(b"\xff" * 6 + world.net.mac + b"\x88\xb5" + bytes(50))
    x.run()
    requests, sent = world.vbd.sring.take(), world.vif.tx.take()
    numbers = [int.from_bytes(raw[8:10], "little") for raw in sent]
    answers: dict[str, list[Callable[[], object]]] = {
        "blkif": [partial(world.vbd.answer, raw, 0) for raw in requests],
        "netif_tx": [partial(world.vif.answer_tx, number, 0) for number in numbers],
    }
    for ring in rings_of(world.platform):
        answer = answers.get(ring.kind.name)
        if answer is None:
            continue
        if nth:
            place = ring.frames[0], RSP_EVENT
            x.intrude(world.guest.created.domain, place, answer.pop(), writes=True, nth=nth)
        for one in answer:
            one()
    x.run()
    done = [one.srb_status is SrbStatus.SUCCESS for one in pending]
    assert all(done) or nth > 1, f"of two reads that are answered these are complete: {done}"


def ids_in_flight(x: Explorer) -> None:
    """No two requests of a ring have one id while neither is answered."""
    world = x.world_back()
    world.vbd.hold = world.vif.hold = True
    x.begin()
    pending = [world.disk.start_read(8 * at, 8) for at in range(3)]
    for _ in range(3):
        world.net.send(b"\xff" * 6 + world.net.mac + b"\x88\xb5" + bytes(50))
    x.run()
    requests, sent = world.vbd.sring.take(), world.vif.tx.take()
    ids = {"vbd": [raw[8:16] for raw in requests], "vif": [raw[8:10] for raw in sent]}
    for device, found in ids.items():
        distinct = len(dict.fromkeys(found))
        assert distinct == len(found), f"{device}: {len(found)} requests, {distinct} ids"
    for raw in requests:
        world.vbd.answer(raw, 0)
    for raw in sent:
        world.vif.answer_tx(int.from_bytes(raw[8:10], "little"), 0)
    x.run()
    assert [one.srb_status for one in pending] == [SrbStatus.SUCCESS] * len(pending)


@attrs.define(eq=False)
class Reader:
    """A block frontend that looks into its pages as soon as it is told that they are read."""

    world: RawWorld
    wanted: bytes  # of every page of the disk
    requests: int = 4
    pages: list[int] = attrs.field(factory=list)
    wrong: list[str] = attrs.field(factory=list)
    answers: list[int] = attrs.field(factory=list)

    def start(self) -> None:
        """Make its task due; nothing is sent yet."""
        self.world.vbd.on_event = self.complete
        self.task = self.world.guest.domain.task("reader", self.send)
        self.task.wake()

    task: Any = None

    def send(self) -> None:
        guest, vbd, rid = self.world.guest, self.world.vbd, len(self.pages)
        self.pages.append(guest.page())
        if vbd.sring.push(read_request(rid, guest.grant(self.pages[-1])), 1):
            vbd.notify()
        if len(self.pages) < self.requests:
            self.task.wake()

    def complete(self) -> None:
        for raw in self.world.vbd.sring.take():
            rid, _, status = RESPONSE.unpack(raw)
            self.answers.append(rid)
            if status or self.world.guest.domain.read(self.pages[rid], 0, PAGE_SIZE) != self.wanted:
                self.wrong.append(f"request {rid} is answered {status} before its data is there")


def blk_reads(x: Explorer) -> None:
    """A page has its data when the response to its READ can be seen, in both ways of blkback."""
    page = bytes(range(256)) * 16
    readers = [
        Reader(world, page)
        for world in raw_worlds(x, make=lambda: MemoryImage(bytearray(page * 16)))
    ]
    for reader in readers:
        reader.start()
    x.run()
    for reader in readers:
        assert not reader.wrong, reader.wrong[0]
        assert sorted(reader.answers) == list(range(reader.requests))


@attrs.define(eq=False)
class Reuser:
    """A network frontend that wipes a page as soon as the slot that names it is answered.

    Frames of one slot and of two, in turn.
    """

    world: RawWorld
    frames: int = 4
    sent: list[bytes] = attrs.field(factory=list)
    pages: list[int] = attrs.field(factory=list)  # by id
    task: Any = None

    def start(self) -> None:
        """Make its task due; nothing is sent yet."""
        self.world.vif.on_event = self.complete
        self.task = self.world.guest.domain.task("reuser", self.send)
        self.task.wake()

    def send(self) -> None:
        vif, number = self.world.vif, len(self.sent)
        header = b"\xff" * 6 + MAC + b"\x88\xb5"
        pieces = [header + bytes([number + 1]) * 46, b"\x77" * 100]
        pieces = pieces[: 1 + number % 2]
        self.sent.append(b"".join(pieces))
        slots = []
        for at, piece in enumerate(pieces):
            more = NETTXF_more_data if at + 1 < len(pieces) else 0
            size = len(piece) if at else len(self.sent[-1])
            slots.append(TX.pack(self._page(piece), 0, more, len(self.pages) - 1, size))
        if vif.tx.push(b"".join(slots), len(slots)):
            vif.notify()
        if len(self.sent) < self.frames:
            self.task.wake()

    def _page(self, data: bytes) -> int:
        guest = self.world.guest
        self.pages.append(guest.page())
        guest.domain.write(self.pages[-1], 0, data)
        return guest.grant(self.pages[-1], readonly=True)

    def complete(self) -> None:
        for raw in self.world.vif.tx.take():
            self.world.guest.domain.write(self.pages[raw[0]], 0, bytes(PAGE_SIZE))


def net_reuses(x: Explorer) -> None:
    """A page is its frontend's again when its slot is answered: netback has all of it by then."""
    world = x.world_raw()
    reuser = Reuser(world)
    reuser.start()
    x.run()
    came = list(world.bridge.frames)
    assert came == reuser.sent, "a frame is not what its pages held before they were answered"


SCENARIOS: Final[tuple[Scenario, ...]] = (
    req_prod_moves,
    request_in_window,
    response_in_window,
    requests_beyond,
    responses_beyond,
    early_requests,
    rings_wrap,
    ids_in_flight,
    blk_reads,
    net_reuses,
)
