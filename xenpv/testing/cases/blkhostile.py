"""Requests that no frontend should send: each is answered once, and moves nothing it may not."""

from __future__ import annotations

import random

from xenpv.testing.blk_layout import Segment
from xenpv.testing.cases.blkclaims import REFUSED, U64, bad_references, lives, refused, untouched
from xenpv.testing.cases.blkpeer import (
    BARRIER,
    DISCARD,
    ERROR,
    FLUSH,
    INDIRECT,
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


@SUITE.case(
    "BLKB-101",
    "every operation there is, and is not",
    source="io/blkif.h, BLKIF_OP_*; blkback.c: unknown op; QEMU answers ERROR",
    expected="each of 0 to 255 is answered once; what does not exist as EOPNOTSUPP or ERROR",
)
def every_operation(scene: BlkBackScene) -> None:
    peer = scene.front()
    _, ref = peer.granted(readonly=True)
    known = (READ, WRITE, BARRIER, FLUSH, DISCARD, INDIRECT)
    with untouched(peer):
        for operation in range(256):
            if operation in known[1:]:
                continue
            status = peer.status(peer.rw(operation, 0, [(ref, 0, 0)]))
            expect_one(status, REFUSED, f"status of operation {operation}")


@SUITE.case(
    "BLKB-102",
    "more segments than a request has room for",
    source="io/blkif.h, BLKIF_MAX_SEGMENTS_PER_REQUEST: 11; spec zoo: nr_segments unchecked",
    expected="ERROR, and nothing is moved",
)
def too_many_segments(scene: BlkBackScene) -> None:
    peer = scene.front()
    pfn, ref = peer.granted(MARK * PAGE_SIZE)
    kinds = [READ, WRITE]
    kinds += [FLUSH] if peer.number("feature-flush-cache") else []
    kinds += [BARRIER] if peer.number("feature-barrier") else []
    with untouched(peer):
        for operation in kinds:
            for count in (12, 13, 128, 255):
                slot = peer.rw(operation, 0, [(ref, 0, 0)] * 11, nr_segments=count)
                refused(peer, slot, f"operation {operation} of {count} segments")
    expect(peer.read_page(pfn), MARK * PAGE_SIZE, "the page")
    lives(peer)


@SUITE.case(
    "BLKB-103",
    "a READ or WRITE without segments",
    source="blkback.c: nr_segments 0 only for a flush; QEMU does nothing and says OKAY",
    expected="ERROR, or OKAY for nothing",
)
def no_segments(scene: BlkBackScene) -> None:
    peer = scene.front()
    with untouched(peer):
        for operation in (READ, WRITE):
            refused(peer, peer.rw(operation, 0), f"operation {operation}", (ERROR, OKAY))
    lives(peer)


@SUITE.case(
    "BLKB-104",
    "segments that end before they begin, or beyond their page",
    source="io/blkif.h, first_sect and last_sect; blkback.c: last_sect >= 8 or < first_sect",
    expected="ERROR, wherever in the request it is; no byte of a page changes",
)
def segment_bounds(scene: BlkBackScene) -> None:
    peer = scene.front()
    pages = [peer.granted(MARK * PAGE_SIZE) for _ in range(3)]
    good = [(ref, *WHOLE) for _, ref in pages]
    with untouched(peer):
        for first, last in ((1, 0), (7, 0), (0, 8), (8, 8), (0, 255), (255, 0), (255, 255)):
            for place in range(3):
                segments: list[Segment] = list(good)
                segments[place] = (good[place][0], first, last)
                for operation in (READ, WRITE):
                    what = f"operation {operation}, segment {place} is {first} to {last}"
                    refused(peer, peer.rw(operation, 0, segments), what)
    for pfn, _ in pages:
        expect(peer.read_page(pfn), MARK * PAGE_SIZE, "a page of a refused request")
    lives(peer)


BEYOND = (
    SECTORS,
    SECTORS - 7,
    SECTORS + 1,
    1 << 31,
    (1 << 32) - 8,
    1 << 32,
    (1 << 55) - 8,
    1 << 55,
    (1 << 55) + 8,
    1 << 63,
    U64 - 7,
    U64,
)


@SUITE.case(
    "BLKB-105",
    "sectors beyond the end of the disk",
    source="blkback.c: sector + count wraps or > size; 2^55 sectors are 2^64 bytes",
    expected="ERROR for every sector and count, also where sums and shifts wrap",
)
def beyond_the_end(scene: BlkBackScene) -> None:
    peer = scene.front()
    pfn, ref = peer.granted(MARK * PAGE_SIZE)
    with untouched(peer):
        for sector in BEYOND:
            for operation in (READ, WRITE):
                slot = peer.rw(operation, sector, [(ref, *WHOLE)])
                refused(peer, slot, f"operation {operation} of 8 sectors at {sector:#x}")
    expect(peer.read_page(pfn), MARK * PAGE_SIZE, "the page of refused READs")
    last = peer.rw(WRITE, SECTORS - 8, [(ref, *WHOLE), (ref, 0, 0)])
    refused(peer, last, "a WRITE whose last segment is beyond the end")
    lives(peer)


@SUITE.case(
    "BLKB-106",
    "a FLUSH and a barrier whose data is beyond the end",
    source="blkback.c, dispatch_rw_block_io: the range is checked for each that has data",
    expected="ERROR",
)
def flush_beyond(scene: BlkBackScene) -> None:
    peer = scene.front()
    _, ref = peer.granted(readonly=True)
    with untouched(peer):
        for operation, key in ((FLUSH, "feature-flush-cache"), (BARRIER, "feature-barrier")):
            for sector in BEYOND if peer.number(key) else ():
                slot = peer.rw(operation, sector, [(ref, *WHOLE)])
                refused(peer, slot, f"operation {operation} at {sector:#x}")
    lives(peer)


@SUITE.case(
    "BLKB-107",
    "a DISCARD beyond the end",
    source="CVE-2013-2140: the same checks as for a WRITE",
    expected="ERROR, and no sector changes",
    requires=("feature-discard",),
)
def discard_beyond(scene: BlkBackScene) -> None:
    peer = scene.front()
    with untouched(peer):
        for sector, count in (
            (0, SECTORS + 1),
            (SECTORS - 8, 16),
            (SECTORS, 1),
            (0, U64),
            (8, U64 - 7),
            (8, U64 - 6),
            (1 << 55, 8),
            (0, 1 << 55),
            (U64, 2),
        ):
            refused(peer, peer.discard(sector, count), f"a DISCARD of {count:#x} at {sector:#x}")
    lives(peer)


@SUITE.case(
    "BLKB-108",
    "a read-only disk is not changed by any operation",
    source="CVE-2013-2140; XSA-142 and XSA-266: enforced where the image is",
    expected="WRITE, DISCARD, barrier, FLUSH with data and INDIRECT WRITE are refused",
)
def readonly_bypass(scene: BlkBackScene) -> None:
    peer = scene.connected(readonly=True)
    _, ref = peer.granted(marked(1), readonly=True)
    segments: list[Segment] = [(ref, *WHOLE)]
    with untouched(peer):
        refused(peer, peer.rw(WRITE, 0, segments), "a WRITE", REFUSED)
        refused(peer, peer.rw(BARRIER, 0, segments), "a barrier", REFUSED)
        refused(peer, peer.rw(FLUSH, 0, segments), "a FLUSH with data", REFUSED)
        refused(peer, peer.indirect(WRITE, 0, segments), "an INDIRECT WRITE", REFUSED)
        # QEMU and others: a hint that nobody has to follow.
        refused(peer, peer.discard(0, 8), "a DISCARD", (*REFUSED, OKAY))
        refused(peer, peer.rw(FLUSH, 0), "a FLUSH", (*REFUSED, OKAY))
    lives(peer)


@SUITE.case(
    "BLKB-109",
    "a DISCARD that was not offered",
    source="blkback.c, dispatch_discard_io: EOPNOTSUPP; QEMU: a hint",
    expected="answered once, and the disk as it was",
)
def discard_not_offered(scene: BlkBackScene) -> None:
    peer = scene.waiting()
    scene.world.guest.xs.write(f"{peer.backend_path}/discard-enable", "0")
    peer.connect()
    if peer.number("feature-discard"):
        return  # it was there when the backend looked
    with untouched(peer):
        refused(peer, peer.discard(0, 8), "a DISCARD", (*REFUSED, OKAY))
    lives(peer)


@SUITE.case(
    "BLKB-110",
    "flag bits of a DISCARD that nobody knows",
    source="io/blkif.h, BLKIF_DISCARD_SECURE; discard-secure 0",
    expected="answered once; neighbours of the range as before",
    requires=("feature-discard",),
)
def discard_flags(scene: BlkBackScene) -> None:
    peer = scene.front()
    for flag in (1, 2, 0x80, 0xFF):
        expect_one(
            peer.status(peer.discard(200, 8, flag=flag)), (OKAY, *REFUSED), f"flag {flag:#x}"
        )
        expect(peer.read(199, 1), content(199, 1), "the sector before")
        expect(peer.read(208, 1), content(208, 1), "the sector behind")


# references


@SUITE.case(
    "BLKB-111",
    "references that do not lead to a page",
    source="XSA-71: grants leaked on error paths; XSA-362: no assertion on what a peer can cause",
    expected="ERROR; no page changes, nothing of the disk does, and none stays mapped",
)
def references(scene: BlkBackScene) -> None:
    peer = scene.front()
    with untouched(peer):
        for why, ref in bad_references(peer).items():
            for operation in (READ, WRITE):
                refused(peer, peer.rw(operation, 0, [(ref, *WHOLE)]), f"a reference {why}")
    lives(peer)


@SUITE.case(
    "BLKB-112",
    "one bad reference among good ones",
    source="XSA-361, XSA-365: an earlier error is not forgotten, only what was mapped is unmapped",
    expected="ERROR wherever it stands; a WRITE changes nothing, no good one stays mapped",
)
def mixed_references(scene: BlkBackScene) -> None:
    peer = scene.front()
    good = [peer.granted(marked(at))[1] for at in range(11)]
    with untouched(peer):
        for why, bad in bad_references(peer).items():
            for place in (0, 5, 10):
                refs = [*good[:place], bad, *good[place + 1 :]]
                segments = [(ref, 0, 0) for ref in refs]
                for operation in (READ, WRITE):
                    refused(peer, peer.rw(operation, 0, segments), f"{why} at {place}")
    expect([peer.guest.revoke(ref) for ref in good], [True] * 11, "references that end")
    lives(peer)


@SUITE.case(
    "BLKB-113",
    "a READ into a page that is granted read-only",
    source="grant_table.h, GTF_readonly",
    expected="ERROR, and no byte of the page changes; a WRITE from it succeeds",
)
def read_into_readonly(scene: BlkBackScene) -> None:
    peer = scene.front()
    pfn, ref = peer.granted(MARK * PAGE_SIZE, readonly=True)
    refused(peer, peer.rw(READ, 0, [(ref, *WHOLE)]), "a READ")
    expect(peer.read_page(pfn), MARK * PAGE_SIZE, "the page")
    expect(peer.status(peer.rw(WRITE, 0, [(ref, *WHOLE)])), OKAY, "status of a WRITE from it")
    expect(peer.read(0, 8), MARK * PAGE_SIZE, "the disk")


@SUITE.case(
    "BLKB-114",
    "a READ into the ring's own page",
    source="the frontend's memory is its own to spoil",
    expected="whatever becomes of the ring, the backend survives and gives everything back",
)
def read_into_ring(scene: BlkBackScene) -> None:
    peer = scene.front()
    ring = peer.rings[0]
    for first, last in ((7, 7), (0, 7)):
        peer.publish(peer.rw(READ, 0, [(ring.refs[0], first, last)]))
        peer.kick()
        scene.world.run()
        for _ in range(3):
            peer.kick()
            scene.world.run()


@SUITE.case(
    "BLKB-134",
    "a READ that fails leaves nothing of the backend's in the page",
    source="XSA-403's neighbourhood: stale memory",
    expected="the page has the frontend's bytes or the disk's, and no others",
)
def failed_read(scene: BlkBackScene) -> None:
    peer = scene.front()
    peer.write(256, marked(7))
    good = [peer.granted(MARK * PAGE_SIZE) for _ in range(3)]
    bad = bad_references(peer)["revoked"]
    segments: list[Segment] = [(good[0][1], *WHOLE), (bad, *WHOLE), (good[1][1], *WHOLE)]
    refused(peer, peer.rw(READ, 0, segments), "a READ with a bad reference")
    for page, sector in ((good[0], 0), (good[1], 16)):
        found = peer.read_page(page[0])
        expect_one(found, (MARK * PAGE_SIZE, content(sector, 8)), "a page of the READ that failed")


@SUITE.case(
    "BLKB-135",
    "requests of random bytes",
    source="io/blkif.h: a slot is the frontend's to fill",
    expected="each is answered exactly once, and nothing stays mapped",
)
def random_slots(scene: BlkBackScene) -> None:
    peer = scene.front()
    before = peer.mapped
    chance = random.Random(155)
    size = peer.layout.request_size
    for _ in range(4):
        slots = []
        for at in range(32):
            slot = bytearray(chance.randbytes(size))
            slot[0] = at % 8
            slots.append(bytes(slot))
        expect(len(peer.statuses(*slots)), 32, "responses")
    expect(peer.mapped, before, "references that are mapped")
    holds(scene.world.run() >= 0, "the loop ends")


@SUITE.case(
    "BLKB-136",
    "requests that are no whole sectors of a 4,096-byte disk",
    source="io/blkif.h (2024): sector-size constrains sector_number and segments",
    expected="ERROR; nothing is moved",
)
def unaligned(scene: BlkBackScene) -> None:
    peer = scene.waiting(sector_size=4096)
    peer.connect()
    if not peer.is_connected or peer.number("sector-size") != 4096:
        raise Skip("it has no disks of 4,096-byte sectors")
    _, ref = peer.granted(marked(6))
    with untouched(peer):
        for operation in (READ, WRITE):
            for sector, last in ((1, 7), (7, 7), (8, 0), (8, 6)):
                slot = peer.rw(operation, sector, [(ref, 0, last)])
                refused(peer, slot, f"{last + 1} sectors at {sector}")
    expect(len(peer.read(0, 8)), 8 * SECTOR, "bytes of an honest READ")
