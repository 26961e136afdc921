"""What a block frontend does on an honest backend: keys, requests, grants, responses, the end."""

from __future__ import annotations

from itertools import pairwise

from xenpv.abi.xenbus import XenbusState as State
from xenpv.testing.cases.blkbackpeer import Taken
from xenpv.testing.cases.blkfrontscene import SUITE, BlkFrontScene
from xenpv.testing.cases.blkpeer import BARRIER, DISCARD, ERROR, FLUSH, OKAY, READ, SECTOR, WRITE
from xenpv.testing.cases.blkscene import SECTORS, content, marked
from xenpv.testing.cases.claims import expect, expect_one, holds
from xenpv.testing.cases.suite import Skip

__all__ = ["SUITE"]

PROTOCOLS = ("x86_64-abi", "x86_32-abi", "arm-abi", "native", None)


def covers(requests: list[Taken], sector: int, count: int) -> None:
    """They are of these sectors, each once."""
    spans = sorted((one.sector, one.sector + one.nr_sectors) for one in requests)
    expect(spans[0][0] if spans else None, sector, "the first sector asked for")
    expect(spans[-1][1], sector + count, "the end of what is asked for")
    for (_, end), (start, _) in pairwise(spans):
        expect(start, end, "where the next request begins")


# connections


@SUITE.case(
    "BLKF-001",
    "keys and ring of a frontend that connects",
    source="io/blkif.h, ring-ref, event-channel, protocol; io/ring.h, SHARED_RING_INIT",
    expected="a known protocol; ring pages granted writable; producers 0 and event indices 1",
    hostile=False,
)
def keys(scene: BlkFrontScene) -> None:
    peer = scene.back()
    expect_one(peer.frontend_key("protocol"), PROTOCOLS, "protocol")
    for ref in peer.ring_refs:
        expect(peer.grants(ref, readonly=False), True, "whether a ring page is granted writable")
    sring = peer.sring
    expect((sring.req_prod, sring.rsp_prod), (0, 0), "producers of a ring that was not used")
    expect(sring.rsp_event, 1, "rsp_event")


@SUITE.case(
    "BLKF-002",
    "an unplug",
    source="io/xenbus.h; libxl: online 0 and state Closing",
    expected="the frontend goes to Closed, and every reference of it ends",
    hostile=False,
)
def unplug(scene: BlkFrontScene) -> None:
    scene.back()
    expect(scene.read(0, 64), content(0, 64), "a read")
    scene.write(8, marked(1))


@SUITE.case(
    "BLKF-003",
    "an unplug while requests are under way",
    source="win-xenvbd, drain; blkfront_closing",
    expected="each ends once, at the latest when the backend is Closed",
    hostile=False,
)
def unplug_in_flight(scene: BlkFrontScene) -> None:
    peer = scene.back()
    peer.hold = True
    started = [scene.app.start_read(at * 8, 8) for at in range(4)]
    scene.world.run()
    taken = peer.take()
    peer.write_key("online", "0")
    peer.state = State.CLOSING
    scene.world.run()
    for one in taken[:2] if peer.connected else ():
        peer.answer_to(one)
    scene.world.run()
    if not all(one.done for one in started):
        peer.detach()
        peer.state = State.CLOSED
        scene.world.run()
    for one in started:
        scene.ends(one)


@SUITE.case(
    "BLKF-004",
    "rings of several pages, as large as is offered or smaller",
    source="io/blkif.h, max-ring-page-order and ring-page-order",
    expected="at most the order that is offered; every entry of the ring is used",
    requires=("pages",),
    hostile=False,
)
def page_orders(scene: BlkFrontScene) -> None:
    for order in (1, 2, 4):
        peer = scene.back({"max-ring-page-order": str(order)})
        size = peer.sring.size
        for round_ in range(2 * size // 32):
            started = [scene.app.start_read(at * 8, 8) for at in range(33)]
            for at, one in enumerate(started):
                data = scene.ends(one, okay=True).data
                expect(data, content(at * 8, 8), f"read {at} of round {round_}")


@SUITE.case(
    "BLKF-005",
    "queues, as many as are offered or fewer",
    source="io/blkif.h, multi-queue-max-queues and multi-queue-num-queues",
    expected="between one and what is offered, each with its ring and its port",
    hostile=False,
)
def queues(scene: BlkFrontScene) -> None:
    for offered in ("1", "2", "4", "100"):
        peer = scene.back({"multi-queue-max-queues": offered})
        expect(scene.read(16, 16), content(16, 16), f"a read, {offered} queues are offered")
        expect(len(peer.ring_refs), len(peer.srings), "pages of rings of one page each")


# requests


@SUITE.case(
    "BLKF-010",
    "a read of any length",
    source="io/blkif.h, BLKIF_MAX_SEGMENTS_PER_REQUEST",
    expected="READs that together are of those sectors, each once; the program has their data",
    hostile=False,
)
def reads(scene: BlkFrontScene) -> None:
    peer = scene.back()
    for sector, count in ((0, 1), (7, 1), (8, 8), (3, 9), (0, 88), (1, 88), (0, 89), (12, 300)):
        peer.requests.clear()
        expect(scene.read(sector, count), content(sector, count), f"{count} sectors at {sector}")
        expect({one.operation for one in peer.requests}, {READ}, "operations")
        covers(peer.requests, sector, count)


@SUITE.case(
    "BLKF-011",
    "a write of any length",
    source="io/blkif.h, BLKIF_OP_WRITE",
    expected="WRITEs that together are of those sectors, each once; the disk has the data",
    hostile=False,
)
def writes(scene: BlkFrontScene) -> None:
    peer = scene.back()
    for number, (sector, count) in enumerate(((0, 1), (7, 2), (8, 8), (100, 89), (200, 300))):
        peer.requests.clear()
        data = b"".join(marked(number + at, SECTOR) for at in range(count))
        scene.write(sector, data)
        expect({one.operation for one in peer.requests}, {WRITE}, "operations")
        covers(peer.requests, sector, count)
        found = bytes(peer.disk[sector * SECTOR : (sector + count) * SECTOR])
        expect(found, data, f"the disk, {count} sectors at {sector}")


@SUITE.case(
    "BLKF-012",
    "what is granted for a WRITE cannot be written by the backend",
    source="grant_table.h, GTF_readonly; spec zoo: grant-writable",
    expected="its pages are granted read-only, unless grants are kept (feature-persistent)",
    hostile=False,
)
def write_grants(scene: BlkFrontScene) -> None:
    peer = scene.back()
    peer.hold = True
    started = scene.app.start_write(0, b"".join(marked(at) for at in range(4)))
    scene.world.run()
    keeps = peer.frontend_key("feature-persistent") == "1"
    for one in peer.take():
        for ref in one.refs:
            expect(peer.grants(ref, readonly=True), True, "whether it may be read")
            expect(peer.grants(ref, readonly=False), keeps, "whether it may be written")
        peer.answer_to(one)
    scene.ends(started, okay=True)


@SUITE.case(
    "BLKF-013",
    "grants end with the response",
    source="win-xenvbd, granter; io/blkif.h, feature-persistent",
    expected="a reference leads to nothing once its request is answered, unless grants are kept",
    hostile=False,
)
def grants_end(scene: BlkFrontScene) -> None:
    peer = scene.back()
    scene.read(0, 64)
    scene.write(8, marked(2) * 4)
    if peer.frontend_key("feature-persistent") == "1":
        raise Skip("it keeps its grants")
    refs = sorted({ref for one in peer.requests for ref in one.refs})
    left = [ref for ref in refs if peer.grants(ref, readonly=True)]
    expect(left, [], "references of answered requests that still lead to a page")


@SUITE.case(
    "BLKF-014",
    "answers in another order than the requests",
    source="io/blkif.h, id: responses come in any order",
    expected="every read has its own data",
    hostile=False,
)
def out_of_order(scene: BlkFrontScene) -> None:
    peer = scene.back()
    peer.hold = True
    started = [scene.app.start_read(at * 16, 8) for at in range(12)]
    scene.world.run()
    for one in reversed(peer.take()):
        peer.answer_to(one)
        scene.world.run()
    for at, one in enumerate(started):
        expect(scene.ends(one, okay=True).data, content(at * 16, 8), f"read {at}")


@SUITE.case(
    "BLKF-015",
    "more requests than the ring has entries",
    source="io/ring.h, RING_FULL",
    expected="never more in flight than entries; the others follow as answers make room",
    hostile=False,
)
def full_ring(scene: BlkFrontScene) -> None:
    peer = scene.back()
    peer.hold = True
    size = peer.sring.size
    started = [scene.app.start_read(at % 60 * 8, 8) for at in range(size + 20)]
    scene.world.run()
    answered = 0
    while peer.in_flight or peer.take():
        holds(len(peer.in_flight) <= size, f"{len(peer.in_flight)} of {size} in flight")
        for one in list(peer.in_flight)[:7]:
            peer.answer_to(one)
            answered += 1
        scene.world.run()
        peer.take()
    expect(answered, size + 20, "requests that came")
    for at, one in enumerate(started):
        expect(scene.ends(one, okay=True).data, content(at % 60 * 8, 8), f"read {at}")


@SUITE.case(
    "BLKF-016",
    "INDIRECT requests, no larger than is offered",
    source="io/blkif.h, BLKIF_OP_INDIRECT, feature-max-indirect-segments",
    expected="at most as many segments as are offered; tables granted read-only; right data",
    requires=("indirect",),
    hostile=False,
)
def indirect(scene: BlkFrontScene) -> None:
    for offered in (12, 20, 256):
        peer = scene.back({"feature-max-indirect-segments": str(offered)})
        expect(scene.read(0, 400), content(0, 400), f"a read, {offered} segments are offered")
        data = b"".join(marked(at) for at in range(40))
        scene.write(64, data)
        expect(bytes(peer.disk[64 * SECTOR :][: len(data)]), data, "the disk after a write")
        peer.hold = True
        started = scene.app.start_read(0, 160)
        scene.world.run()
        for one in peer.take():
            for ref in one.tables:
                expect(peer.grants(ref, readonly=True), True, "whether a table may be read")
            peer.answer_to(one)
        scene.world.run()
        while peer.take():
            for one in list(peer.in_flight):
                peer.answer_to(one)
            scene.world.run()
        expect(scene.ends(started, okay=True).data, bytes(peer.disk[: 160 * SECTOR]), "a read")


@SUITE.case(
    "BLKF-017",
    "no INDIRECT where none is offered",
    source="io/blkif.h, feature-max-indirect-segments: absent or 0",
    expected="direct requests alone",
    hostile=False,
)
def no_indirect(scene: BlkFrontScene) -> None:
    for offered in (None, "0", "x", ""):
        offers = {} if offered is None else {"feature-max-indirect-segments": offered}
        peer = scene.back(offers)
        expect(scene.read(0, 300), content(0, 300), "a read")
        expect([one for one in peer.requests if one.indirect], [], "INDIRECT requests")


@SUITE.case(
    "BLKF-018",
    "a flush, by what the backend offers",
    source="io/blkif.h, feature-flush-cache and feature-barrier",
    expected="FLUSH_DISKCACHE, else a barrier, else no request; over when that is answered",
    hostile=False,
)
def flushes(scene: BlkFrontScene) -> None:
    for flush, barrier, wanted in (("1", "1", FLUSH), ("1", "0", FLUSH), ("0", "1", BARRIER)):
        peer = scene.back(keys={"feature-flush-cache": flush, "feature-barrier": barrier})
        scene.write(0, marked(1))
        peer.requests.clear()
        peer.hold = True
        started = scene.app.start_flush()
        scene.world.run()
        taken = peer.take()
        expect(started.done, False, "whether a flush is over before it is answered")
        expect([one.operation for one in taken], [wanted], "operations of a flush")
        peer.answer_to(taken[0])
        scene.ends(started, okay=True)
    peer = scene.back(keys={"feature-flush-cache": "0", "feature-barrier": "0"})
    scene.ends(scene.app.start_flush())
    expect(peer.requests, [], "requests of a flush that the backend does not know")


@SUITE.case(
    "BLKF-019",
    "a discard",
    source="io/blkif.h, BLKIF_OP_DISCARD, feature-discard",
    expected="DISCARDs of those sectors where it is offered; none where it is not",
    requires=("discard",),
    hostile=False,
)
def discards(scene: BlkFrontScene) -> None:
    peer = scene.back(keys={"feature-discard": "1"})
    scene.ends(scene.app.start_discard(16, 24), okay=True)
    expect({one.operation for one in peer.requests}, {DISCARD}, "operations")
    covers(peer.requests, 16, 24)
    for keys_ in ({"feature-discard": "0"}, {}):
        peer = scene.back(keys=keys_)
        scene.ends(scene.app.start_discard(16, 24))
        expect(peer.requests, [], "requests of a discard that the backend does not know")


@SUITE.case(
    "BLKF-020",
    "a read-only disk",
    source="io/blkif.h, VDISK_READONLY",
    expected="a program's write fails, and no WRITE goes out; reads go on",
    hostile=False,
)
def readonly(scene: BlkFrontScene) -> None:
    peer = scene.back(keys={"info": "4"})
    scene.ends(scene.app.start_write(0, marked(1)), okay=False)
    expect([one for one in peer.requests if one.operation != READ], [], "requests that write")
    expect(scene.read(0, 8), content(0, 8), "a read")


@SUITE.case(
    "BLKF-021",
    "sectors beyond the end of the disk",
    source="io/blkif.h, sectors",
    expected="the program's request fails, whether the frontend or the backend sees it",
    hostile=False,
)
def beyond_the_end(scene: BlkFrontScene) -> None:
    peer = scene.back()

    def serve() -> None:
        for one in peer.take():
            is_there = one.sector + one.nr_sectors <= SECTORS
            peer.answer_to(one, OKAY if is_there else ERROR)

    peer.on_event = serve
    for sector, count in ((SECTORS, 8), (SECTORS - 4, 8), (1 << 40, 1)):
        scene.ends(scene.app.start_read(sector, count), okay=False)
        scene.ends(scene.app.start_write(sector, bytes(count * SECTOR)), okay=False)
    expect(scene.read(SECTORS - 8, 8), content(SECTORS - 8, 8), "the last sectors")


@SUITE.case(
    "BLKF-022",
    "a disk of 4,096-byte sectors",
    source="io/blkif.h (2024): numbers count 512, aligned to sector-size",
    expected="sector numbers and segments are whole sectors of the disk",
    hostile=False,
)
def sectors_of_4096(scene: BlkFrontScene) -> None:
    peer = scene.boots(keys={"sector-size": "4096", "physical-sector-size": "4096"})
    if peer.frontend_key("state") != "4":
        raise Skip("it connects to no disk of 4,096-byte sectors")
    expect(scene.read(16, 48), content(16, 48), "a read")
    scene.write(8, marked(3) * 2)
    for one in peer.requests:
        expect(one.sector % 8, 0, "sector_number modulo 8")
        for _, first, last in one.segments:
            expect((first % 8, last % 8), (0, 7), "first and last sector of a segment")


@SUITE.case(
    "BLKF-023",
    "what is granted under `trusted` 0 shows nothing else of the guest",
    source="XSA-403 / CVE-2022-26365, CVE-2022-33742",
    expected="a granted page holds the request's bytes and zeros",
    hostile=False,
)
def untrusted(scene: BlkFrontScene) -> None:
    peer = scene.back(trusted=False)
    for _ in range(3):
        scene.write(0, marked(1) * 8)
        expect(scene.read(64, 64), content(64, 64), "a read")
        peer.hold = True
        started = [scene.app.start_write(3, marked(2, SECTOR)), scene.app.start_read(9, 1)]
        scene.world.run()
        for one in peer.take():
            for ref, first, last in one.segments:
                page = bytearray(peer.read(ref))
                if one.operation == WRITE:
                    page[first * SECTOR : (last + 1) * SECTOR] = bytes((last - first + 1) * SECTOR)
                expect(bytes(page), bytes(len(page)), "what else the granted page holds")
            peer.answer_to(one)
        for each in started:
            scene.ends(each, okay=True)
        peer.hold = False


# events


@SUITE.case(
    "BLKF-030",
    "a frontend that sleeps has asked for an event",
    source="io/ring.h, RING_FINAL_CHECK_FOR_RESPONSES",
    expected="rsp_event is ahead of rsp_prod by one at least, and by a ring at most",
    hostile=False,
)
def response_events(scene: BlkFrontScene) -> None:
    peer = scene.back()
    for count in (1, 8, 100, 300):
        scene.read(0, count)
        sring = peer.sring
        ahead = (sring.rsp_event - sring.rsp_prod) & 0xFFFFFFFF
        holds(0 < ahead <= sring.size, f"rsp_event is {ahead} ahead of rsp_prod")


@SUITE.case(
    "BLKF-031",
    "no event that the backend did not ask for",
    source="io/ring.h, RING_PUSH_REQUESTS_AND_CHECK_NOTIFY",
    expected="an event if req_event is within what was published, none if it is beyond",
    hostile=False,
)
def request_events(scene: BlkFrontScene) -> None:
    peer = scene.back()
    peer.hold = True
    for round_ in range(6):
        sring, asked = peer.sring, round_ % 2 == 0
        sring.req_event = sring.req_prod + (1 if asked else 100)
        before = peer.events
        started = scene.app.start_read(0, 8)
        scene.world.run()
        expect(peer.events - before, int(asked), "events")
        for one in peer.take():
            peer.answer_to(one)
        scene.ends(started, okay=True)


@SUITE.case(
    "BLKF-032",
    "answers that come while earlier ones are worked on",
    source="io/ring.h, RING_FINAL_CHECK_FOR_RESPONSES",
    expected="a program that asks again at each answer is never left waiting",
    hostile=False,
)
def ping_pong(scene: BlkFrontScene) -> None:
    peer = scene.back()
    peer.hold = True
    for round_ in range(40):
        started = [scene.app.start_read(at * 8, 8) for at in range(3)]
        scene.world.run()
        taken = peer.take()
        expect(len(taken), 3, "requests")
        for one in taken:
            peer.answer_to(one)  # one event each, if it is asked for
        for at, each in enumerate(started):
            expect(scene.ends(each, okay=True).data, content(at * 8, 8), f"read {at} of {round_}")
