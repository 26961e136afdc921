"""What a block backend answers when its own disk fails: honest requests, a bad host."""

from __future__ import annotations

import errno

from xenpv.host.faultyimage import FaultyImage
from xenpv.host.memoryimage import MemoryImage
from xenpv.testing.cases.blkclaims import REFUSED, lives
from xenpv.testing.cases.blkpeer import ERROR, FLUSH, OKAY, READ, SECTOR, WHOLE, WRITE, BlkPeer
from xenpv.testing.cases.blkscene import MARK, SECTORS, SUITE, BlkBackScene, content, marked
from xenpv.testing.cases.claims import expect, expect_one
from xenpv.xen.domain import PAGE_SIZE

__all__ = ["SUITE"]

BAD = 100  # a sector that cannot be read or written
BAD_AT = BAD * SECTOR


def faulty(scene: BlkBackScene) -> tuple[FaultyImage, BlkPeer]:
    """A disk that fails when the case says so, and a frontend that is connected to it."""
    image = FaultyImage(MemoryImage(bytearray(content(0, SECTORS))))
    return image, scene.connected(image=image)


@SUITE.case(
    "BLKB-050",
    "a sector that cannot be read",
    source="blkback.c, end_block_io_op: BLKIF_RSP_ERROR",
    expected="ERROR for the READs that touch it; READs of other sectors have their data",
    hostile=False,
)
def read_fails(scene: BlkBackScene) -> None:
    image, peer = faulty(scene)
    image.fail("read", start=BAD_AT, end=BAD_AT + SECTOR)
    pages = [peer.granted(MARK * PAGE_SIZE) for _ in range(4)]
    places = (0, BAD - 4, 200, BAD)
    slots = [peer.rw(READ, at, [(ref, *WHOLE)]) for at, (_, ref) in zip(places, pages, strict=True)]
    expect(peer.statuses(*slots), [OKAY, ERROR, OKAY, ERROR], "statuses")
    for sector, (pfn, _) in zip((0, 200), pages[::2], strict=True):
        expect(peer.read_page(pfn), content(sector, 8), f"data of the READ at {sector}")
    lives(peer)


@SUITE.case(
    "BLKB-051",
    "a read that ends early",
    source="read(2): fewer bytes than were asked for; QEMU and tapdisk: an error",
    expected="ERROR: a READ that is answered OKAY has all of its data",
    hostile=False,
)
def short_read(scene: BlkBackScene) -> None:
    image, peer = faulty(scene)
    image.fail("read", start=BAD_AT, end=BAD_AT + SECTOR, done=3 * SECTOR)
    _, ref = peer.granted(MARK * PAGE_SIZE)
    expect(peer.status(peer.rw(READ, BAD, [(ref, *WHOLE)])), ERROR, "status")
    image.faults.clear()
    expect(peer.read(BAD, 8), content(BAD, 8), "a READ once the disk is well again")


@SUITE.case(
    "BLKB-052",
    "a sector that cannot be written",
    source="blkback.c, end_block_io_op: BLKIF_RSP_ERROR; ENOSPC of a sparse image",
    expected="ERROR for the WRITEs that touch it; the others are on the disk",
    hostile=False,
)
def write_fails(scene: BlkBackScene) -> None:
    image, peer = faulty(scene)
    for error in (errno.EIO, errno.ENOSPC):
        image.fail("write", error, start=BAD_AT, end=BAD_AT + SECTOR)
        refs = [peer.granted(marked(at), readonly=True)[1] for at in range(3)]
        slots = [
            peer.rw(WRITE, at, [(ref, *WHOLE)]) for at, ref in zip((0, BAD, 200), refs, strict=True)
        ]
        expect(peer.statuses(*slots), [OKAY, ERROR, OKAY], "statuses")
        image.faults.clear()
    expect(peer.read(0, 8) + peer.read(200, 8), marked(0) + marked(2), "what was acknowledged")
    lives(peer)


@SUITE.case(
    "BLKB-053",
    "a flush that fails",
    source="fdatasync(2): the error must reach who asked; io/blkif.h",
    expected="ERROR, whether it has data or not; requests after it are served",
    requires=("feature-flush-cache",),
    hostile=False,
)
def flush_fails(scene: BlkBackScene) -> None:
    image, peer = faulty(scene)
    image.fail("flush")
    expect(peer.status(peer.rw(FLUSH, 0)), ERROR, "status")
    _, ref = peer.granted(marked(1), readonly=True)
    expect(peer.status(peer.rw(FLUSH, 0, [(ref, *WHOLE)])), ERROR, "status of a FLUSH with data")
    image.faults.clear()
    expect(peer.status(peer.rw(FLUSH, 0)), OKAY, "status once the disk is well again")
    lives(peer)


@SUITE.case(
    "BLKB-054",
    "a disk that cannot be flushed, as it turns out",
    source="blkback.c, end_block_io_op: EOPNOTSUPP, and the key becomes 0; QEMU: ERROR",
    expected="EOPNOTSUPP or ERROR each time, and the device lives",
    requires=("feature-flush-cache",),
    hostile=False,
)
def flush_unsupported(scene: BlkBackScene) -> None:
    image, peer = faulty(scene)
    image.fail("flush", errno.EOPNOTSUPP)
    for _ in range(2):
        expect_one(peer.status(peer.rw(FLUSH, 0)), REFUSED, "status of a FLUSH")
    lives(peer)


@SUITE.case(
    "BLKB-055",
    "a disk that cannot be told what is of no use, or fails then",
    source="blkback.c, dispatch_discard_io; QEMU: a hint that nobody has to follow",
    expected="EOPNOTSUPP, ERROR or OKAY, and every sector as before",
    requires=("feature-discard",),
    hostile=False,
)
def discard_fails(scene: BlkBackScene) -> None:
    image, peer = faulty(scene)
    for error in (errno.EOPNOTSUPP, errno.EIO):
        image.fail("discard", error)
        expect_one(peer.status(peer.discard(0, 8)), (*REFUSED, OKAY), "status")
        expect(peer.read(0, 8), content(0, 8), "the range")
        image.faults.clear()
    lives(peer)
