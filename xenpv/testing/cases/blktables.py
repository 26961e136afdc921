"""What a block backend reads of the frontend's: tables of segments, and memory that changes."""

from __future__ import annotations

import struct

from xenpv.testing.blk_layout import Segment
from xenpv.testing.cases.blkclaims import REFUSED, U64, bad_references, lives, refused, untouched
from xenpv.testing.cases.blkpeer import (
    BARRIER,
    DISCARD,
    FLUSH,
    INDIRECT,
    OKAY,
    READ,
    WHOLE,
    WRITE,
    Answer,
    BlkPeer,
)
from xenpv.testing.cases.blkscene import MARK, SECTORS, SUITE, BlkBackScene, content, marked
from xenpv.testing.cases.claims import expect, expect_one
from xenpv.testing.cases.toctou import changed_after_read
from xenpv.view.rings import FIRST_SLOT
from xenpv.xen.domain import PAGE_SIZE

__all__ = ["SUITE"]


@SUITE.case(
    "BLKB-120",
    "INDIRECT segment counts",
    source="io/blkif.h, feature-max-indirect-segments; XSA-155's neighbourhood",
    expected="0 and more than offered are ERROR; nothing is moved",
    requires=("feature-max-indirect-segments",),
)
def indirect_counts(scene: BlkBackScene) -> None:
    peer = scene.front()
    most = peer.number("feature-max-indirect-segments")
    pfn, ref = peer.granted(MARK * PAGE_SIZE)
    table = struct.pack("<IBBH", ref, 0, 0, 0) * 512
    refs = [peer.granted(table, readonly=True)[1]] * 8
    with untouched(peer):
        for count in (0, most + 1, 512, 513, 4096, 4097, 0xFFFF):
            if count and count <= most:
                continue
            for inner in (READ, WRITE):
                slot = peer.indirect(inner, 0, [], count=count, refs=refs)
                refused(peer, slot, f"{count} segments")
    expect(peer.read_page(pfn), MARK * PAGE_SIZE, "the page")
    lives(peer)


@SUITE.case(
    "BLKB-121",
    "an INDIRECT of what is neither READ nor WRITE",
    source="blkback.c: an indirect request does not read or write",
    expected="ERROR or EOPNOTSUPP; nothing is moved",
    requires=("feature-max-indirect-segments",),
)
def indirect_operations(scene: BlkBackScene) -> None:
    peer = scene.front()
    _, ref = peer.granted(marked(2))
    with untouched(peer):
        for inner in (BARRIER, FLUSH, 4, DISCARD, INDIRECT, 7, 255):
            slot = peer.indirect(inner, 0, [(ref, *WHOLE)])
            refused(peer, slot, f"an INDIRECT of {inner}", REFUSED)
    lives(peer)


@SUITE.case(
    "BLKB-122",
    "tables that cannot be read, or say what cannot be",
    source="blkback.c, xen_blkbk_parse_indirect; XSA-361",
    expected="ERROR; nothing is moved, nothing stays mapped",
    requires=("feature-max-indirect-segments",),
)
def indirect_tables(scene: BlkBackScene) -> None:
    peer = scene.front()
    pages = [peer.granted(MARK * PAGE_SIZE) for _ in range(12)]
    good: list[Segment] = [(ref, *WHOLE) for _, ref in pages]
    bad = bad_references(peer)
    with untouched(peer):
        for operation in (READ, WRITE):
            for why, ref in bad.items():
                slot = peer.indirect(operation, 0, good, refs=[ref])
                refused(peer, slot, f"a table whose reference is {why}")
                for place in (0, 11):
                    segments = [*good[:place], (ref, *WHOLE), *good[place + 1 :]]
                    refused(peer, peer.indirect(operation, 0, segments), f"{why} at {place}")
            for first, last in ((1, 0), (0, 8), (255, 255)):
                segments = [*good[:11], (good[11][0], first, last)]
                refused(peer, peer.indirect(operation, 0, segments), f"{first} to {last}")
            slot = peer.indirect(operation, SECTORS - 8, good)
            refused(peer, slot, "an INDIRECT beyond the end")
    lives(peer)


@SUITE.case(
    "BLKB-123",
    "a table that its own request writes over",
    source="XSA-155: the table is read once, and what was read is used",
    expected="the sectors go where the table said before",
    requires=("feature-max-indirect-segments",),
)
def table_is_target(scene: BlkBackScene) -> None:
    peer = scene.front()
    pages = [peer.granted(MARK * PAGE_SIZE) for _ in range(12)]
    pfn, ref = peer.granted()
    segments: list[Segment] = [(ref, *WHOLE), *((one, *WHOLE) for _, one in pages)]
    table = b"".join(struct.pack("<IBBH", *segment, 0) for segment in segments)
    peer.domain.write(pfn, 0, table)
    expect(peer.status(peer.indirect(READ, 0, segments, refs=[ref])), OKAY, "status")
    expect(peer.read_page(pfn), content(0, 8), "the page of the table")
    for at, (page, _) in enumerate(pages, 1):
        expect(peer.read_page(page), content(at * 8, 8), f"the page of segment {at}")


# what is read while it changes


CHANGES = {  # offset in the slot, what is there later
    "operation": (0, bytes((WRITE,))),
    "nr_segments": (1, b"\xff"),
    "id": (8, b"\x00" * 8),
    "sector_number": (16, struct.pack("<Q", U64)),
    "gref": (24, b"\xff" * 4),
    "first_sect": (28, b"\xff"),
    "last_sect": (29, b"\xff"),
}


@SUITE.case(
    "BLKB-130",
    "a request that changes once it was read",
    source="XSA-155: copy once, check the copy, use the copy",
    expected="what was read is done: OKAY, its own id, its own sectors",
)
def slot_changes(scene: BlkBackScene) -> None:
    peer = scene.front()
    ring = peer.rings[0]
    for field, (offset, data) in CHANGES.items():
        pfn, ref = peer.granted(MARK * PAGE_SIZE)
        slot = peer.rw(READ, 8, [(ref, *WHOLE)])
        at = FIRST_SLOT + ring.sent % ring.sring.size * ring.sring.entry_size
        with changed_after_read(peer.platform, peer.domain, ring.sring.pfn, at + offset, data):
            (answer,) = _only(peer, slot)
        expect((answer.rid, answer.status), (peer.id_of(slot), OKAY), f"response, {field} changed")
        expect(peer.read_page(pfn), content(8, 8), f"data, {field} changed")
    expect(peer.read(8, 8), content(8, 8), "the disk")


def _only(peer: BlkPeer, slot: bytes) -> list[Answer]:
    got = peer.send(slot)
    expect(len(got), 1, "number of responses")
    return got


@SUITE.case(
    "BLKB-131",
    "a table that changes once it was read",
    source="XSA-155: indirect pages are read once as well",
    expected="what was read is done",
    requires=("feature-max-indirect-segments",),
)
def table_changes(scene: BlkBackScene) -> None:
    peer = scene.front()
    for offset, data in ((0, b"\xff" * 4), (4, b"\xff"), (5, b"\xff"), (5, b"\0")):
        pages = [peer.granted(MARK * PAGE_SIZE) for _ in range(12)]
        segments: list[Segment] = [(ref, *WHOLE) for _, ref in pages]
        table = b"".join(struct.pack("<IBBH", *segment, 0) for segment in segments)
        pfn, ref = peer.granted(table, readonly=True)
        slot = peer.indirect(READ, 16, segments, refs=[ref])
        with changed_after_read(peer.platform, peer.domain, pfn, offset, data):
            expect(peer.status(slot), OKAY, "status")
        for at, (page, _) in enumerate(pages):
            expect(peer.read_page(page), content(16 + at * 8, 8), f"segment {at}")


@SUITE.case(
    "BLKB-132",
    "no byte of a slot or table is read twice",
    source="XSA-155",
    expected="between two deliveries the backend loads each byte once",
)
def double_fetches(scene: BlkBackScene) -> None:
    from xenpv.testing.access import AccessLog

    peer = scene.front()
    refs = [peer.granted()[1] for _ in range(11)]
    slots = [
        peer.rw(READ, 0, [(ref, 0, 0) for ref in refs]),
        peer.rw(WRITE, 0, [(refs[0], 0, 0)]),
        peer.rw(READ, SECTORS, [(refs[0], 0, 0)]),
        peer.rw(FLUSH, 0),
        peer.rw(BARRIER, 0),
        peer.discard(0, 8),
        peer.rw(77, 0),
        peer.rw(READ, 0, nr_segments=12),
    ]
    if peer.number("feature-max-indirect-segments") >= 12:
        slots.append(peer.indirect(READ, 0, [(ref, 0, 0) for ref in (*refs, refs[0])]))
    with AccessLog(scene.world.platform) as log:
        peer.statuses(*slots)
        found = [one for one in log.double_fetches() if one.actor != peer.guest.domid]
    expect([str(one) for one in found if one.domid == peer.guest.domid], [], "double fetches")


@SUITE.case(
    "BLKB-133",
    "a response tells nothing but id, operation and status",
    source="XSA-216 / CVE-2017-10911: padding of a response leaked a stack",
    expected="bytes 9 and 12 to 15 are zero or what the frontend had there",
)
def response_padding(scene: BlkBackScene) -> None:
    peer = scene.front()
    ring = peer.rings[0]
    _, ref = peer.granted()
    size = ring.sring.size
    for at in range(size * 2):
        slot = peer.rw(READ if at % 3 else 77, 0, [(ref, 0, 0)], rid=0x5A5A5A5A5A5A5A5A)
        peer.send(slot)
        found = ring.sring.slot(at)
        for place in (9, 12, 13, 14, 15):
            expect_one(found[place], (0, slot[place]), f"byte {place} of response {at}")
        expect_one(found[16:], (slot[16:], bytes(len(slot) - 16)), f"the rest of entry {at}")
