"""What hostile cases of a block backend claim of it, once and for all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from xenpv.testing.cases.blkpeer import EOPNOTSUPP, ERROR, BlkPeer
from xenpv.testing.cases.blkscene import content
from xenpv.testing.cases.claims import expect, expect_one

REFUSED = (ERROR, EOPNOTSUPP)
U64 = (1 << 64) - 1


def lives(peer: BlkPeer) -> None:
    """The device serves honest requests as if nothing had been."""
    expect(peer.read(496, 8), content(496, 8), "an honest READ afterwards")


@contextmanager
def untouched(peer: BlkPeer) -> Iterator[None]:
    """The first 32 KiB of the disk are afterwards as before, and no reference more is mapped."""
    before = [peer.read(at, 8) for at in range(0, 64, 8)]
    mapped = peer.mapped
    yield
    if not peer.persistent:
        expect(peer.mapped, mapped, "references that are mapped")
    for at, data in enumerate(before):
        expect(peer.read(at * 8, 8), data, f"the disk at sector {at * 8}")


def refused(peer: BlkPeer, slot: bytes, what: str, statuses: tuple[int, ...] = (ERROR,)) -> None:
    """It ends as one of these."""
    expect_one(peer.status(slot), statuses, f"status of {what}")


def bad_references(peer: BlkPeer) -> dict[str, int]:
    """By what is wrong with them."""
    guest = peer.guest
    _, revoked = peer.granted()
    guest.revoke(revoked)
    foreign = guest.grant(peer.page(), domid=guest.domid)
    return {
        "revoked": revoked,
        "of another domain": foreign,
        "reserved": 0,
        "free": 1000,
        "beyond the table": 0x7FFFFFFF,
        "-1": 0xFFFFFFFF,
    }
