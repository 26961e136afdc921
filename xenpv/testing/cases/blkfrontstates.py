"""Backends whose words, pages, keys and states are not a backend's: a frontend outlives them."""

from __future__ import annotations

from xenpv.abi.xenbus import XenbusState as State
from xenpv.testing.cases.blkfronthostile import all_end, held
from xenpv.testing.cases.blkfrontscene import SUITE, BlkFrontScene
from xenpv.testing.cases.blkpeer import ERROR, OKAY, READ, SECTOR
from xenpv.testing.cases.blkscene import content, marked
from xenpv.testing.cases.claims import expect, holds

__all__ = ["SUITE"]

# shared words and events


@SUITE.case(
    "BLKF-120",
    "the backend writes req_prod",
    source="io/ring.h: req_prod_pvt is the frontend's own",
    expected="the next request is where it belongs, and req_prod is right again",
)
def request_producer(scene: BlkFrontScene) -> None:
    peer = scene.back()
    for garbage in (1000, 0xFFFFFFFF, 1 << 31):
        before = len(peer.requests)
        right_one = peer.sring.req_prod
        peer.sring.req_prod = garbage
        started = scene.app.start_read(8, 8)
        peer.hold = True
        scene.world.run()
        if started.done:  # it saw that, and gave up
            expect(started.okay, False, "whether the read succeeded")
            return
        expect(peer.sring.req_prod, right_one + 1, "req_prod")
        peer.hold = False
        peer.serve()
        expect(scene.ends(started, okay=True).data, content(8, 8), "a read")
        expect(len(peer.requests), before + 1, "requests that came")


@SUITE.case(
    "BLKF-121",
    "rsp_prod goes back",
    source="io/ring.h: rsp_cons is the frontend's own",
    expected="no request ends twice; at worst the device is given up",
)
def producer_back(scene: BlkFrontScene) -> None:
    peer = scene.back()
    scene.read(0, 8)
    scene.read(8, 8)
    peer.sring.rsp_prod = 1
    peer.notify()
    started = scene.app.start_read(16, 8)
    scene.world.run()
    all_end(scene, [started], [content(16, 8)])


@SUITE.case(
    "BLKF-122",
    "event indices of any value",
    source="io/ring.h: hints to the other end",
    expected="requests are answered as long as events are sent",
)
def event_indices(scene: BlkFrontScene) -> None:
    peer = scene.back()
    peer.hold = True
    for value in (0, 5, 1 << 31, 0xFFFFFFFF):
        peer.sring.req_event = peer.sring.rsp_event = value
        started = scene.app.start_read(0, 8)
        scene.world.run()
        for one in peer.take():
            peer.answer_to(one)
        peer.notify()
        expect(scene.ends(started, okay=True).data, content(0, 8), "a read")


@SUITE.case(
    "BLKF-123",
    "a storm of events",
    source="XSA-391 / CVE-2021-28711",
    expected="the world comes to rest; requests are answered during and after it",
)
def event_storm(scene: BlkFrontScene) -> None:
    peer = scene.back()
    for at in range(200):
        peer.notify()
        if at % 3 == 0:
            scene.world.run()
        if at % 40 == 0:
            expect(scene.read(0, 8), content(0, 8), "a read")
    scene.world.run()
    expect(scene.read(8, 8), content(8, 8), "a read after it")


@SUITE.case(
    "BLKF-124",
    "the backend keeps a page mapped that it has answered for",
    source="XSA-396 / CVE-2022-23036",
    expected="nothing that the guest does later shows in that page: it is not used again",
)
def stays_mapped(scene: BlkFrontScene) -> None:
    peer = scene.back()
    peer.hold = True
    started = scene.app.start_read(0, 8)
    scene.world.run()
    (taken,) = peer.take()
    pfn = peer.map(taken.segments[0][0])
    peer.answer_to(taken)
    scene.ends(started)
    before = peer.domain.read(pfn, 0, 4096)
    peer.hold = False
    for at in range(20):
        scene.ends(scene.app.start_write(64, marked(at) * (1 + at % 2)))
        expect(peer.domain.read(pfn, 0, 4096), before, "the page that is still mapped")
    peer.unmap(pfn)


@SUITE.case(
    "BLKF-125",
    "a page is mapped when the request fails",
    source="XSA-396: on every path that ends a grant",
    expected="as for a request that succeeds",
)
def stays_mapped_on_error(scene: BlkFrontScene) -> None:
    peer = scene.back()
    peer.hold = True
    started = scene.app.start_write(0, marked(1))
    scene.world.run()
    (taken,) = peer.take()
    pfn = peer.map(taken.segments[0][0], readonly=True)
    peer.answer_to(taken, ERROR)
    scene.ends(started, okay=False)
    before = peer.domain.read(pfn, 0, 4096)
    peer.hold = False
    for at in range(20):
        scene.ends(scene.app.start_write(64, marked(at + 2) * (1 + at % 2)))
        expect(peer.domain.read(pfn, 0, 4096), before, "the page that is still mapped")
    peer.unmap(pfn)


# keys and states


@SUITE.case(
    "BLKF-130",
    "keys of a disk that cannot be",
    source="io/blkif.h, sectors, sector-size, info; spec: fuzz matrix",
    expected="no connection, or a disk whose requests keep to io/blkif.h; the guest survives",
)
def junk_disk(scene: BlkFrontScene) -> None:
    for key, text in (
        ("sectors", "0"),
        ("sectors", "x"),
        ("sectors", "-1"),
        ("sectors", "18446744073709551616"),
        ("sectors", "9" * 100),
        ("sector-size", "0"),
        ("sector-size", "1"),
        ("sector-size", "1024"),
        ("sector-size", "8192"),
        ("sector-size", "4294967296"),
        ("info", "4294967295"),
        ("physical-sector-size", "3"),
        ("discard-granularity", "0"),
    ):
        peer = scene.boots(keys={key: text})
        if peer.frontend_key("state") == "4":
            started = scene.app.start_read(0, 8)
            scene.world.run()
            scene.ends(started)
        scene.unplug()
    scene.hangs_up = False


@SUITE.case(
    "BLKF-131",
    "offers that cannot be",
    source="io/blkif.h, max-ring-page-order, multi-queue-max-queues; spec: 0 queues are one",
    expected="it connects with what it can have: one queue at least, at most sixteen pages",
)
def junk_offers(scene: BlkFrontScene) -> None:
    for key in ("max-ring-page-order", "multi-queue-max-queues", "feature-max-indirect-segments"):
        for text in ("x", "99", "65535", "9" * 50):
            peer = scene.back({key: text})
            holds(len(peer.ring_refs) <= 16 * len(peer.srings), "pages of a ring")
            expect(scene.read(0, 200), content(0, 200), f"a read, {key} is {text!r}")
    scene.back({"multi-queue-max-queues": "0"})
    expect(scene.read(0, 8), content(0, 8), "a read, 0 queues are offered")


@SUITE.case(
    "BLKF-132",
    "keys that change while it is connected",
    source="io/blkif.h: a size may change, all else is read once",
    expected="reads of sectors that are there go on",
)
def keys_change(scene: BlkFrontScene) -> None:
    peer = scene.back()
    for key, text in (
        ("feature-max-indirect-segments", "1"),
        ("max-ring-page-order", "9"),
        ("multi-queue-max-queues", "0"),
        ("feature-persistent", "1"),
        ("unknown", "x"),
        ("state", "4"),
    ):
        peer.write_key(key, text)
        scene.world.run()
        expect(scene.read(0, 8), content(0, 8), f"a read after {key} changed")


@SUITE.case(
    "BLKF-133",
    "a disk that shrinks below what is under way",
    source="io/blkif.h, sectors; xenbus state Connected again",
    expected="it survives; what is still there is read",
)
def shrinks(scene: BlkFrontScene) -> None:
    peer = scene.back()
    peer.hold = True
    started = scene.app.start_read(256, 8)
    scene.world.run()
    peer.write_key("sectors", "64")
    peer.write_key("state", "4")
    scene.world.run()
    for one in peer.take():
        peer.answer_to(one, ERROR)
    scene.ends(started, okay=False)
    peer.hold = False
    expect(scene.read(0, 8), content(0, 8), "a read")


@SUITE.case(
    "BLKF-134",
    "states in another order than a backend's",
    source="io/xenbus.h, XenbusState",
    expected="it survives, whether it connects or not, and goes when it is unplugged",
)
def odd_answers(scene: BlkFrontScene) -> None:
    answers: tuple[dict[State, State], ...] = (
        {State.INITIALISING: State.CONNECTED},
        {State.INITIALISING: State.CLOSING},
        {State.INITIALISING: State.RECONFIGURED},
        {State.INITIALISED: State.CLOSING},
        {State.INITIALISED: State.CLOSED},
        {State.INITIALISED: State.INIT_WAIT},
        {State.INITIALISED: State.RECONFIGURING},
        {State.CONNECTED: State.INIT_WAIT},
    )
    for one in answers:
        scene.boots(answers=one)
        scene.unplug()
    scene.hangs_up = False


@SUITE.case(
    "BLKF-135",
    "a backend whose state is no state",
    source="io/xenbus.h; xenbus_read_driver_state: anything else is Unknown",
    expected="it survives, and goes when it is unplugged",
)
def junk_state(scene: BlkFrontScene) -> None:
    for text in ("", "x", "-1", "9", "4294967300", "9" * 1000):
        peer = scene.back()
        peer.write_key("state", text)
        scene.world.run()
        started = scene.app.start_read(0, 8)
        scene.world.run()
        if started.okay:
            expect(started.data, content(0, 8), "a read")
        scene.unplug()
    scene.hangs_up = False


@SUITE.case(
    "BLKF-136",
    "unplugged with requests that are never answered",
    source="win-xenvbd, drain; XSA-396",
    expected="they end as failed, at the latest when the backend is Closed; all grants end",
)
def never_answered(scene: BlkFrontScene) -> None:
    peer, started, _ = held(scene, 5)
    peer.write_key("online", "0")
    peer.state = State.CLOSING
    scene.world.run()
    if not all(one.done for one in started):
        peer.detach()
        peer.state = State.CLOSED
        scene.world.run()
    for one in started:
        scene.ends(one, okay=False)


@SUITE.case(
    "BLKF-137",
    "the whole granted page is written for a READ of one sector",
    source="grant_table.h: a page is the least that can be granted",
    expected="the program has the sector that it asked for, and no other memory of it changes",
)
def writes_beside(scene: BlkFrontScene) -> None:
    peer = scene.back()
    peer.hold = True
    started = [scene.app.start_read(5, 1), scene.app.start_read(6, 1)]
    scene.world.run()
    for one in peer.take():
        peer.perform(one)
        ref, first, last = one.segments[0]
        peer.fill(ref, b"\xee" * first * SECTOR)
        rest = (7 - last) * SECTOR
        if rest:
            peer.fill(ref, b"\xee" * rest, (last + 1) * SECTOR)
        peer.publish(0, one.rid, READ, OKAY)
        peer.in_flight.remove(one)
    for sector, each in zip((5, 6), started, strict=True):
        expect(scene.ends(each, okay=True).data, content(sector, 1), f"sector {sector}")


@SUITE.case(
    "BLKF-138",
    "a flood of the backend's keys",
    source="XSA-349's mirror: a watch's events are taken together",
    expected="the world comes to rest, and reads succeed during and after it",
)
def key_flood(scene: BlkFrontScene) -> None:
    peer = scene.back()
    for at in range(200):
        peer.write_key("state", "4")
        peer.write_key("sectors", "512")
        peer.write_key(f"junk-{at % 7}", "x" * (at % 50))
        if at % 60 == 0:
            expect(scene.read(0, 8), content(0, 8), f"a read after {at} writes")
    scene.world.run()
    expect(scene.read(8, 8), content(8, 8), "a read after it")


@SUITE.case(
    "BLKF-139",
    "a disk that grows",
    source="io/blkif.h, sectors; xenbus state Connected again (xen_vbd_resize)",
    expected="what was there is read as before; what is new is read, or refused",
    hostile=False,
)
def grows(scene: BlkFrontScene) -> None:
    peer = scene.back()
    peer.disk += marked(5) * 8
    peer.keys["sectors"] = str(len(peer.disk) // SECTOR)
    peer.write_key("sectors", peer.keys["sectors"])
    peer.write_key("state", "4")
    scene.world.run()
    expect(scene.read(504, 8), content(504, 8), "the last sectors of before")
    started = scene.ends(scene.app.start_read(512, 8))
    if started.okay:
        expect(started.data, marked(5), "the first sectors that are new")
