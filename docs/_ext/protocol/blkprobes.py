"""What block backends make of each request, found out by sending it to each of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final

from xenpv.back.blkprofile import PROFILES as SERVED
from xenpv.back.blkrules import PROMISES, Refusal
from xenpv.testing.cases.blkpeer import (
    BARRIER,
    DISCARD,
    FLUSH,
    INDIRECT,
    READ,
    WHOLE,
    WRITE,
    BlkPeer,
)
from xenpv.testing.cases.blkscene import SECTORS, Blkback, BlkBackScene

from .table import Table

PROFILES: Final = tuple(SERVED)
STATUS: Final = {-2: "EOPNOTSUPP", -1: "ERROR", 0: "OKAY"}
BAD_REF: Final = 4000

Slot = Callable[[BlkPeer], bytes]


def _rw(
    operation: int, sector: int = 0, *bounds: tuple[int, int], count: int | None = None
) -> Slot:
    """With a segment for each pair of first and last sector."""

    def slot(peer: BlkPeer) -> bytes:
        segments = [(peer.granted()[1], *one) for one in bounds]
        return peer.rw(operation, sector, segments, nr_segments=count)

    return slot


def _bad(operation: int) -> Slot:
    return lambda peer: peer.rw(operation, 0, [(BAD_REF, *WHOLE)])


def _readonly_ref(peer: BlkPeer) -> bytes:
    return peer.rw(READ, 0, [(peer.granted(readonly=True)[1], *WHOLE)])


def _indirect(operation: int, count: int | None = None, pages: int = 12) -> Slot:
    def slot(peer: BlkPeer) -> bytes:
        ref = peer.granted()[1]
        segments = [(ref, *WHOLE)] * pages
        return peer.indirect(operation, 0, segments, count=count)

    return slot


def _indirect_bad_table(peer: BlkPeer) -> bytes:
    return peer.indirect(READ, 0, [(peer.granted()[1], *WHOLE)] * 12, refs=[BAD_REF])


# situation, the request, whether the disk is read-only
ROWS: Final[tuple[tuple[str, Slot, bool], ...]] = (
    ("READ of a page", _rw(READ, 0, WHOLE), False),
    ("WRITE of a page", _rw(WRITE, 0, WHOLE), False),
    ("an operation of 7", _rw(7, 0, WHOLE), False),
    ("READ without segments", _rw(READ), False),
    ("WRITE without segments", _rw(WRITE), False),
    ("WRITE_BARRIER without segments", _rw(BARRIER), False),
    ("FLUSH_DISKCACHE without segments", _rw(FLUSH), False),
    ("FLUSH_DISKCACHE with data", _rw(FLUSH, 0, WHOLE), False),
    ("READ of 12 segments", _rw(READ, 0, *[WHOLE] * 11, count=12), False),
    ("a segment that ends before it begins", _rw(READ, 0, (3, 2)), False),
    ("a segment beyond its page", _rw(READ, 0, (0, 8)), False),
    ("READ up to the end", _rw(READ, SECTORS - 8, WHOLE), False),
    ("READ beyond the end", _rw(READ, SECTORS - 7, WHOLE), False),
    ("a sector number near 2^64", _rw(READ, (1 << 64) - 1, (0, 0)), False),
    ("READ into a page that was granted for reading", _readonly_ref, False),
    ("READ of a reference that nobody granted", _bad(READ), False),
    ("WRITE to a read-only disk", _rw(WRITE, 0, WHOLE), True),
    ("FLUSH_DISKCACHE on a read-only disk", _rw(FLUSH), True),
    ("DISCARD", lambda peer: peer.discard(0, 8), False),
    ("DISCARD beyond the end", lambda peer: peer.discard(SECTORS - 4, 8), False),
    ("DISCARD on a read-only disk", lambda peer: peer.discard(0, 8), True),
    ("INDIRECT READ of 12 segments", _indirect(READ), False),
    ("INDIRECT of a DISCARD", _indirect(DISCARD), False),
    ("INDIRECT without segments", _indirect(READ, 0), False),
    ("INDIRECT of 257 segments", _indirect(READ, 257), False),
    ("INDIRECT whose table nobody granted", _indirect_bad_table, False),
    ("INDIRECT of an INDIRECT", _indirect(INDIRECT), False),
)


def outcome(profile: str, slot: Slot, *, readonly: bool) -> str:
    """The status of one request on a fresh connection."""
    scene = BlkBackScene(Blkback(profile), 1)
    try:
        peer = scene.connected(readonly=readonly)
        answers = peer.send(slot(peer))
        return STATUS[answers[0].status] if answers else "no answer"
    finally:
        scene.close()


@cache
def table() -> Table:
    rows = [
        (situation, *(outcome(one, slot, readonly=readonly) for one in PROFILES))
        for situation, slot, readonly in ROWS
    ]
    return Table(("request", *PROFILES), tuple(rows))


# the rules themselves, in each backend's order


def _names(checks: tuple[Refusal, ...]) -> str:
    return "; ".join(f"{at}. {one.why}" for at, one in enumerate(checks, 1))


def rules() -> Table:
    """What each backend looks at, in its order (blkrules)."""
    rows = []
    for name, profile in SERVED.items():
        rule = profile.rules
        rows += [
            (name, "an operation that it does not know", "EOPNOTSUPP" if rule.unknown == -2 else "ERROR"),
            (name, "before an indirect table is fetched", _names(rule.first)),
            (name, "then", _names(rule.then)),
            (name, "of a DISCARD", _names(rule.discard) if DISCARD in rule.operations else "unknown"),
            (name, "segments of an indirect request", str(rule.indirect_max or "unknown")),
            (name, "how it reaches pages", rule.access.value),
            (name, "an INDIRECT is answered as", "its inner operation" if rule.echoes_inner else "6"),
        ]  # fmt: skip
    return Table(("backend", "what", "how"), tuple(row for row in rows if row[2]))


def promises() -> Table:
    """The key that says that an operation may be sent."""
    names = {BARRIER: "WRITE_BARRIER", FLUSH: "FLUSH_DISKCACHE"}
    rows = [(f"BLKIF_OP_{names[op]}", f"`{key}`") for op, key in PROMISES.items()]
    rows += [("BLKIF_OP_DISCARD", "`feature-discard`"),
             ("BLKIF_OP_INDIRECT", "`feature-max-indirect-segments`")]  # fmt: skip
    return Table(("operation", "key that must say it"), tuple(rows))
