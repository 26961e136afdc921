"""What a block backend makes of honest requests: which bytes move, and what is answered."""

from __future__ import annotations

from xenpv.testing.cases.blkpeer import (
    BARRIER,
    FLUSH,
    OKAY,
    READ,
    SECTOR,
    WHOLE,
    WRITE,
)
from xenpv.testing.cases.blkscene import MARK, SECTORS, SUITE, BlkBackScene, content, marked
from xenpv.testing.cases.claims import expect, expect_one, holds
from xenpv.testing.cases.suite import Skip
from xenpv.xen.domain import PAGE_SIZE

__all__ = ["SUITE"]

IDLE_NS = 70_000_000_000  # of virtual time: longer than a grant is kept for nothing


@SUITE.case(
    "BLKB-020",
    "a READ of part of a page touches no other byte of it",
    source="io/blkif.h, first_sect and last_sect",
    expected="sectors first_sect to last_sect of the page are the disk's, all others as before",
    hostile=False,
)
def partial_read(scene: BlkBackScene) -> None:
    peer = scene.front()
    for first, last in ((0, 0), (7, 7), (2, 5), (0, 6), (1, 7)):
        pfn, ref = peer.granted(MARK * PAGE_SIZE)
        count = last - first + 1
        expect(peer.status(peer.rw(READ, 100, [(ref, first, last)])), OKAY, "status")
        expected = bytearray(MARK * PAGE_SIZE)
        expected[first * SECTOR : (last + 1) * SECTOR] = content(100, count)
        expect(peer.read_page(pfn), bytes(expected), f"the page after sectors {first} to {last}")


@SUITE.case(
    "BLKB-021",
    "a WRITE of part of a page changes no other sector of the disk",
    source="io/blkif.h, first_sect and last_sect",
    expected="that many sectors of the disk are the page's, their neighbours as before",
    hostile=False,
)
def partial_write(scene: BlkBackScene) -> None:
    peer = scene.front()
    for first, last in ((0, 0), (7, 7), (2, 5)):
        sector = 40 + first * 16
        data = b"".join(marked(n, SECTOR) for n in range(8))
        _, ref = peer.granted(data, readonly=True)
        expect(peer.status(peer.rw(WRITE, sector, [(ref, first, last)])), OKAY, "status")
        count = last - first + 1
        expected = content(sector - 1, 1) + data[first * SECTOR : (last + 1) * SECTOR]
        expected += content(sector + count, 1)
        expect(peer.read(sector - 1, count + 2), expected, f"the disk after {first} to {last}")


@SUITE.case(
    "BLKB-022",
    "eleven segments, each as long as it likes",
    source="io/blkif.h, BLKIF_MAX_SEGMENTS_PER_REQUEST",
    expected="the sectors lie in the order of the segments, whatever their lengths and pages",
    hostile=False,
)
def eleven_segments(scene: BlkBackScene) -> None:
    peer = scene.front()
    shapes = [(at % 8, min(7, at % 8 + at % 3)) for at in range(11)]
    pages = [peer.granted(MARK * PAGE_SIZE) for _ in range(11)][::-1]
    segments = [(ref, *shape) for (_, ref), shape in zip(pages, shapes, strict=True)]
    expect(peer.status(peer.rw(READ, 200, segments)), OKAY, "status of the READ")
    at = 200
    for (pfn, _), (first, last) in zip(pages, shapes, strict=True):
        count = last - first + 1
        found = peer.read_page(pfn, first * SECTOR, count * SECTOR)
        expect(found, content(at, count), f"the segment at sector {at}")
        at += count
    expect(peer.status(peer.rw(WRITE, 300, segments)), OKAY, "status of the WRITE")
    count = at - 200
    found = b"".join(peer.read(300 + n, 1) for n in range(count))
    expect(found, content(200, count), "the disk after the WRITE")


@SUITE.case(
    "BLKB-023",
    "ids are the frontend's own affair",
    source="io/blkif.h, id: private guest value, echoed in the response",
    expected="any 64 bits come back, equal ones as often as they were sent",
    hostile=False,
)
def ids(scene: BlkBackScene) -> None:
    peer = scene.front()
    _, ref = peer.granted()
    wanted = [0, (1 << 64) - 1, 1 << 63, 7, 7, 7, 0xFFFFFFFF]
    slots = [peer.rw(READ, 0, [(ref, 0, 0)], rid=rid) for rid in wanted]
    expect(sorted(one.rid for one in peer.send(*slots)), sorted(wanted), "ids of the responses")


@SUITE.case(
    "BLKB-024",
    "a response names the operation of its request",
    source="io/blkif.h, blkif_response.operation: copied from request",
    expected="its own, of an INDIRECT that or what it did",
    hostile=False,
)
def operations_echoed(scene: BlkBackScene) -> None:
    peer = scene.front()
    _, ref = peer.granted()
    kinds = [READ, WRITE]
    kinds += [FLUSH] if peer.number("feature-flush-cache") else []
    kinds += [BARRIER] if peer.number("feature-barrier") else []
    for operation in kinds:
        segments = [(ref, 0, 0)] if operation <= WRITE else []
        (answer,) = peer.send(peer.rw(operation, 0, segments))
        expect((answer.operation, answer.status), (operation, OKAY), f"response to {operation}")
    if peer.number("feature-max-indirect-segments") >= 12:
        refs = [peer.granted()[1] for _ in range(12)]
        (answer,) = peer.send(peer.indirect(READ, 0, [(ref, 0, 0) for ref in refs]))
        expect_one(answer.operation, (READ, 6), "operation of the response to an INDIRECT")


@SUITE.case(
    "BLKB-025",
    "the ring goes round and round",
    source="io/ring.h, RING_IDX: free-running",
    expected="hundreds of requests in bursts of every size, each answered once with its data",
    hostile=False,
)
def goes_round(scene: BlkBackScene) -> None:
    peer = scene.front()
    size = peer.rings[0].sring.size
    pages = [peer.granted() for _ in range(size)]
    for burst in (1, 2, size - 1, size, 3, size, 31, 7, size):
        slots = [
            peer.rw(READ, at * 8, [(ref, *WHOLE)]) for at, (_, ref) in enumerate(pages[:burst])
        ]
        expect(peer.statuses(*slots), [OKAY] * burst, f"statuses of a burst of {burst}")
        for at, (pfn, _) in enumerate(pages[:burst]):
            expect(peer.read_page(pfn), content(at * 8, 8), f"data of request {at} of {burst}")
            peer.domain.write(pfn, 0, MARK * PAGE_SIZE)


@SUITE.case(
    "BLKB-026",
    "the last sector",
    source="io/blkif.h, sectors",
    expected="it is read and written as any other",
    hostile=False,
)
def last_sector(scene: BlkBackScene) -> None:
    peer = scene.front()
    expect(peer.read(SECTORS - 1, 1), content(SECTORS - 1, 1), "the last sector")
    expect(peer.read(SECTORS - 8, 8), content(SECTORS - 8, 8), "the last page")
    peer.write(SECTORS - 1, marked(5, SECTOR))
    expect(peer.read(SECTORS - 2, 2), content(SECTORS - 2, 1) + marked(5, SECTOR), "after a WRITE")


@SUITE.case(
    "BLKB-027",
    "segments in pages that lie side by side or in no order",
    source="XSA-229: merge by disk offset, never by where frames happen to lie",
    expected="each segment's bytes are in its own page, in one request and across requests",
    hostile=False,
)
def scattered(scene: BlkBackScene) -> None:
    peer = scene.front()
    first = peer.guest.page(6)
    refs = [peer.guest.grant(first + at) for at in range(6)]
    order = [4, 3, 5, 0, 1, 2]
    segments = [(refs[at], *WHOLE) for at in order]
    slots = [peer.rw(READ, 0, segments[:2])]
    slots += [peer.rw(READ, 16 + 8 * at, [segments[2 + at]]) for at in range(4)]
    expect(peer.statuses(*slots), [OKAY] * 5, "statuses of READs")
    for place, at in enumerate(order):
        expect(peer.read_page(first + at), content(place * 8, 8), f"page {at}")
    writes = [peer.rw(WRITE, 104 + 8 * at, [segments[at]]) for at in range(6)]
    expect(peer.statuses(*writes), [OKAY] * 6, "statuses of WRITEs")
    for at in range(6):
        expect(peer.read(104 + 8 * at, 8), content(at * 8, 8), f"page {at} on the disk")


@SUITE.case(
    "BLKB-028",
    "one page twice in a request",
    source="io/blkif.h, seg: nothing says that a reference comes once",
    expected="both halves are read, and written",
    hostile=False,
)
def page_twice(scene: BlkBackScene) -> None:
    peer = scene.front()
    pfn, ref = peer.granted()
    segments = [(ref, 4, 7), (ref, 0, 3)]
    expect(peer.status(peer.rw(READ, 64, segments)), OKAY, "status of a READ")
    expect(peer.read_page(pfn), content(68, 4) + content(64, 4), "the page")
    expect(peer.status(peer.rw(WRITE, 128, segments)), OKAY, "status of a WRITE")
    expect(peer.read(128, 8), content(64, 8), "the disk")


@SUITE.case(
    "BLKB-029",
    "an INDIRECT READ and WRITE of as many segments as are offered",
    source="io/blkif.h, BLKIF_OP_INDIRECT, feature-max-indirect-segments",
    expected="every segment's sectors are moved, at 1, 11, 12 and the most",
    requires=("feature-max-indirect-segments",),
    hostile=False,
)
def indirect(scene: BlkBackScene) -> None:
    peer = scene.front()
    most = min(peer.number("feature-max-indirect-segments"), 256)
    pages = [peer.granted() for _ in range(-(-most // 8))]
    for count in {1: 0, 11: 0, min(12, most): 0, most: 0}:
        places = [divmod(at, 8) for at in range(count)]
        segments = [(pages[page][1], at, at) for page, at in places]
        expect(peer.status(peer.indirect(READ, 64, segments)), OKAY, f"status of {count} segments")
        for page, at in places:
            found = peer.read_page(pages[page][0], at * SECTOR, SECTOR)
            expect(found, content(64 + page * 8 + at, 1), f"segment {page * 8 + at} of {count}")
    for at, (pfn, _) in enumerate(pages):
        peer.domain.write(pfn, 0, marked(at))
    segments = [(pages[at // 8][1], at % 8, at % 8) for at in range(most)]
    expect(peer.status(peer.indirect(WRITE, 128, segments)), OKAY, "status of an INDIRECT WRITE")
    for at in range(0, most, 8):
        found = peer.read(128 + at, min(8, most - at))
        expect(found, marked(at // 8)[: len(found)], f"the disk at {128 + at}")


@SUITE.case(
    "BLKB-030",
    "a FLUSH comes after what was acknowledged before it",
    source="io/blkif.h, BLKIF_OP_FLUSH_DISKCACHE",
    expected="when it is answered OKAY, earlier WRITEs are on the medium",
    requires=("feature-flush-cache",),
    hostile=False,
)
def flush(scene: BlkBackScene) -> None:
    from xenpv.host.memoryimage import MemoryImage
    from xenpv.host.writecache import WriteCache

    medium = MemoryImage(bytearray(SECTORS * SECTOR))
    peer = scene.connected(image=WriteCache(medium))
    for round_ in range(3):
        peer.write(round_ * 8, marked(round_))
        expect(peer.status(peer.rw(FLUSH, 0)), OKAY, "status of a FLUSH")
        at = round_ * PAGE_SIZE
        expect(bytes(medium.buffer[at : at + PAGE_SIZE]), marked(round_), "the medium")


@SUITE.case(
    "BLKB-031",
    "a FLUSH with data writes it",
    source="xen-blkback/blkback.c: a preflush, then the data; QEMU: flush, write",
    expected="OKAY, and the data is on the disk",
    requires=("feature-flush-cache",),
    hostile=False,
)
def flush_with_data(scene: BlkBackScene) -> None:
    peer = scene.front()
    _, ref = peer.granted(marked(9), readonly=True)
    expect(peer.status(peer.rw(FLUSH, 48, [(ref, *WHOLE)])), OKAY, "status")
    expect(peer.read(48, 8), marked(9), "the disk")


@SUITE.case(
    "BLKB-032",
    "a barrier, with data and without",
    source="io/blkif.h, BLKIF_OP_WRITE_BARRIER",
    expected="OKAY; its data is on the disk, and so is that of WRITEs before it",
    requires=("feature-barrier",),
    hostile=False,
)
def barrier(scene: BlkBackScene) -> None:
    peer = scene.front()
    refs = [peer.granted(marked(n), readonly=True)[1] for n in range(3)]
    slots = [
        peer.rw(WRITE, 0, [(refs[0], *WHOLE)]),
        peer.rw(WRITE, 8, [(refs[1], *WHOLE)]),
        peer.rw(BARRIER, 0, [(refs[2], *WHOLE)]),
        peer.rw(BARRIER, 0),
    ]
    expect(peer.statuses(*slots), [OKAY] * 4, "statuses")
    expect(peer.read(0, 8), marked(2), "what the barrier wrote over an earlier WRITE")
    expect(peer.read(8, 8), marked(1), "what was written before it")


@SUITE.case(
    "BLKB-033",
    "a DISCARD within the disk",
    source="io/blkif.h, BLKIF_OP_DISCARD",
    expected="OKAY; the range reads as before or as zeros, its neighbours as before",
    requires=("feature-discard",),
    hostile=False,
)
def discard(scene: BlkBackScene) -> None:
    peer = scene.front()
    expect(peer.status(peer.discard(80, 8)), OKAY, "status")
    expect_one(peer.read(80, 8), (content(80, 8), bytes(PAGE_SIZE)), "the range")
    expect(peer.read(79, 1) + peer.read(88, 1), content(79, 1) + content(88, 1), "its neighbours")
    expect(peer.status(peer.discard(0, SECTORS)), OKAY, "status of all sectors")


@SUITE.case(
    "BLKB-034",
    "a disk of 4,096-byte sectors",
    source="io/blkif.h (2024): sector numbers and segments count 512, aligned to sector-size",
    expected="sectors times 512 is the disk; aligned requests are served in units of 512",
    hostile=False,
)
def sectors_of_4096(scene: BlkBackScene) -> None:
    peer = scene.waiting(sector_size=4096)
    peer.connect()
    if not peer.is_connected or peer.number("sector-size") != 4096:
        raise Skip("it has no disks of 4,096-byte sectors")
    expect(peer.backend_key("sectors"), str(SECTORS), "sectors")
    expect(peer.read(8, 8), content(8, 8), "a READ of the second sector")
    peer.write(16, marked(4))
    expect(peer.read(16, 8), marked(4), "what was written")
    expect(peer.read(SECTORS - 8, 8), content(SECTORS - 8, 8), "the last sector")


@SUITE.case(
    "BLKB-035",
    "pages are the frontend's again when the response is there",
    source="xen-blkback/blkback.c: unmap before responding; io/blkif.h, feature-persistent",
    expected="without feature-persistent no reference stays mapped",
    hostile=False,
)
def unmapped_at_response(scene: BlkBackScene) -> None:
    peer = scene.front()
    before = peer.mapped
    for operation in (READ, WRITE):
        refs = [peer.granted()[1] for _ in range(11)]
        expect(peer.status(peer.rw(operation, 0, [(ref, 0, 0) for ref in refs])), OKAY, "status")
        expect(peer.mapped, before, "references that are mapped")
        expect([peer.guest.revoke(ref) for ref in refs], [True] * 11, "references that end")


@SUITE.case(
    "BLKB-036",
    "a frontend that keeps its grants",
    source="io/blkif.h, feature-persistent",
    expected="one reference serves any request; after the close nothing is mapped",
    requires=("feature-persistent",),
    hostile=False,
)
def persistent(scene: BlkBackScene) -> None:
    peer = scene.connected(persistent=True)
    pages = [peer.granted() for _ in range(12)]
    for round_ in range(3):
        for at, (pfn, ref) in enumerate(pages):
            sector = (round_ * 12 + at) * 8
            expect(peer.status(peer.rw(READ, sector, [(ref, *WHOLE)])), OKAY, "status of a READ")
            expect(peer.read_page(pfn), content(sector, 8), f"the page of reference {ref}")
            peer.domain.write(pfn, 0, marked(at))
            expect(peer.status(peer.rw(WRITE, sector, [(ref, *WHOLE)])), OKAY, "status of a WRITE")
    for at in range(12):
        found = peer.read((24 + at) * 8, 8)
        expect(found, marked(at), "what was written by a kept page")
    kept = peer.mapped
    holds(kept <= 1 + len(pages) + 12, f"{kept} references are mapped, more than were used")


@SUITE.case(
    "BLKB-037",
    "a kept reference that two requests use at once, or one twice",
    source="blkback.c: a persistent grant that is in use is mapped once more",
    expected="both are served; after the close nothing is mapped",
    requires=("feature-persistent",),
    hostile=False,
)
def persistent_twice(scene: BlkBackScene) -> None:
    peer = scene.connected(persistent=True)
    pfn, ref = peer.granted(marked(1))
    slots = [peer.rw(WRITE, at * 8, [(ref, *WHOLE)]) for at in range(4)]
    expect(peer.statuses(*slots), [OKAY] * 4, "statuses of four WRITEs from one page")
    for at in range(4):
        expect(peer.read(at * 8, 8), marked(1), f"the disk at {at * 8}")
    slot = peer.rw(READ, 64, [(ref, 4, 7), (ref, 0, 3)])
    expect(peer.status(slot), OKAY, "status of a READ into both halves")
    expect(peer.read_page(pfn), content(68, 4) + content(64, 4), "the page")


@SUITE.case(
    "BLKB-038",
    "kept grants that are not used for long",
    source="blkback.c, purge_persistent_gnt: unused for 60 s",
    expected="kept or given back; used again they serve; nothing is mapped after the close",
    requires=("feature-persistent",),
    hostile=False,
)
def persistent_idle(scene: BlkBackScene) -> None:
    peer = scene.connected(persistent=True)
    pages = [peer.granted(marked(at)) for at in range(6)]
    for round_ in range(2):
        for at, (pfn, ref) in enumerate(pages):
            sector = (round_ * 6 + at) * 8
            expect(peer.status(peer.rw(READ, sector, [(ref, *WHOLE)])), OKAY, "status of a READ")
            expect(peer.read_page(pfn), content(sector, 8), f"the page of reference {ref}")
        scene.world.platform.loop.advance(IDLE_NS)
    freed = [ref for _, ref in pages if peer.guest.revoke(ref)]
    holds(len(freed) + peer.mapped >= len(pages), "a reference is neither kept nor given back")
