"""What each backend refuses of a request, why, and in which order it looks."""

from __future__ import annotations

import struct

import pytest

from tests.vbd.rawfront import BARRIER, DISCARD, EOPNOTSUPP, ERROR, FLUSH, INDIRECT, READ, WRITE
from xenpv.back.blkif import X86_32, X86_64
from xenpv.back.blkrules import (
    ALIGNMENT,
    BOUNDS,
    COUNT,
    INNER,
    LINUX_RULES,
    MIRAGE_RULES,
    QEMU_RULES,
    RANGE,
    READONLY,
    TAPDISK_RULES,
    BlkRules,
    Geometry,
    Refusal,
    Request,
    parse,
    refusal,
)

LINUX, QEMU, TAPDISK, MIRAGE = LINUX_RULES, QEMU_RULES, TAPDISK_RULES, MIRAGE_RULES
LAST = 2**64 - 1

PAGE = [(0, 7)]


def disk(
    *, sector: int = 512, request: int = 512, segment: int = 512, aligned: bool = True,
    readonly: bool = False,
) -> Geometry:  # fmt: skip
    """Of 1024 sectors of 512 bytes."""
    return Geometry(
        size=1024 * 512, sector=sector, request_unit=request, segment_unit=segment,
        aligned=aligned, readonly=readonly,
    )  # fmt: skip


def request(
    operation: int, sector: int, bounds: list[tuple[int, int]], *, nr: int | None = None,
    inner: int | None = None, nr_sectors: int = 0,
) -> Request:  # fmt: skip
    return Request(
        operation=operation,
        inner=operation if inner is None else inner,
        rid=1,
        sector=sector,
        nr_segments=len(bounds) if nr is None else nr,
        segments=[(9, first, last) for first, last in bounds],
        nr_sectors=nr_sectors,
    )


def judged(rules: BlkRules, one: Request, where: Geometry) -> Refusal | None:
    where.place(one)
    if one.operation == DISCARD:
        return refusal(rules, rules.discard, one, where)
    return refusal(rules, (*rules.first, *rules.then), one, where)


DISK, RO = disk(), disk(readonly=True)
BIG = disk(sector=4096)  # spec2024: all numbers are 512, and aligned
LOOSE = disk(sector=4096, aligned=False)  # linux
OLD = disk(sector=4096, request=4096, segment=4096)  # ss2019
BSD = disk(sector=4096, request=4096)  # sector_number counts logical sectors, segments 512


@pytest.mark.parametrize(
    ("rules", "one", "where", "expected"),
    [
        # Linux: dispatch_rw_block_io
        (LINUX, request(READ, 0, PAGE), DISK, None),
        (LINUX, request(READ, 1016, PAGE), DISK, None),
        (LINUX, request(READ, 1017, PAGE), DISK, RANGE),
        (LINUX, request(READ, 1024, [(0, 0)]), DISK, RANGE),
        (LINUX, request(READ, LAST, [(0, 0)]), DISK, RANGE),
        (LINUX, request(READ, 2**55, [(0, 0)]), DISK, RANGE),  # 2^64 bytes
        (LINUX, request(READ, 2**64 - 8, PAGE), DISK, RANGE),
        (LINUX, request(READ, 0, []), DISK, COUNT),
        (LINUX, request(WRITE, 0, []), DISK, COUNT),
        (LINUX, request(FLUSH, 0, []), DISK, None),
        (LINUX, request(FLUSH, LAST, []), DISK, None),  # without data a place means nothing
        (LINUX, request(BARRIER, 0, []), DISK, None),
        (LINUX, request(READ, 0, [(0, 0)] * 11), DISK, None),
        (LINUX, request(READ, 0, [(0, 0)] * 11, nr=12), DISK, COUNT),
        (LINUX, request(FLUSH, 0, [(0, 0)] * 11, nr=255), DISK, COUNT),
        (LINUX, request(READ, 0, [(7, 7)]), DISK, None),
        (LINUX, request(READ, 0, [(0, 8)]), DISK, BOUNDS),
        (LINUX, request(READ, 0, [(8, 8)]), DISK, BOUNDS),
        (LINUX, request(READ, 0, [(0, 255)]), DISK, BOUNDS),
        (LINUX, request(READ, 0, [(255, 0)]), DISK, BOUNDS),
        (LINUX, request(READ, 0, [(3, 2)]), DISK, BOUNDS),
        (LINUX, request(READ, 0, [(0, 7), (3, 2)]), DISK, BOUNDS),
        (LINUX, request(READ, 0, PAGE), RO, None),
        (LINUX, request(WRITE, 0, PAGE), RO, READONLY),
        (LINUX, request(FLUSH, 0, []), RO, READONLY),
        (LINUX, request(BARRIER, 0, []), RO, READONLY),
        (LINUX, request(WRITE, 2000, [(3, 2)]), RO, BOUNDS),
        (LINUX, request(WRITE, 2000, PAGE), RO, READONLY),
        (LINUX, request(READ, 2001, PAGE), BIG, RANGE),
        (LINUX, request(READ, 1, PAGE), BIG, ALIGNMENT),
        (LINUX, request(READ, 8, [(0, 6)]), BIG, ALIGNMENT),
        (LINUX, request(READ, 8, [(0, 3), (4, 7)]), BIG, ALIGNMENT),  # each, not their sum
        (LINUX, request(READ, 8, PAGE), BIG, None),
        (LINUX, request(FLUSH, 1, []), BIG, None),
        (LINUX, request(READ, 1, PAGE), LOOSE, ALIGNMENT),
        (LINUX, request(READ, 8, [(0, 6)]), LOOSE, ALIGNMENT),
        # Indirect
        (LINUX, request(INDIRECT, 0, PAGE, inner=READ), DISK, None),
        (LINUX, request(INDIRECT, 0, PAGE, inner=WRITE), RO, READONLY),
        (LINUX, request(INDIRECT, 0, PAGE, inner=BARRIER), DISK, INNER),
        (LINUX, request(INDIRECT, 0, PAGE, inner=FLUSH), DISK, INNER),
        (LINUX, request(INDIRECT, 0, PAGE, inner=DISCARD), DISK, INNER),
        (LINUX, request(INDIRECT, 0, PAGE, inner=INDIRECT), DISK, INNER),
        (LINUX, request(INDIRECT, 0, [], inner=BARRIER, nr=0), DISK, INNER),
        (LINUX, request(INDIRECT, 0, [], inner=READ), DISK, COUNT),
        (LINUX, request(INDIRECT, 0, [(0, 0)] * 256, inner=READ), DISK, None),
        (LINUX, request(INDIRECT, 0, [], inner=READ, nr=257), DISK, COUNT),
        (LINUX, request(INDIRECT, 0, [], inner=READ, nr=512), DISK, COUNT),
        (LINUX, request(INDIRECT, 0, [], inner=READ, nr=65535), DISK, COUNT),
        (LINUX, request(INDIRECT, 0, [(0, 8)], inner=READ), DISK, BOUNDS),
        (LINUX, request(INDIRECT, 1023, [(0, 0)] * 2, inner=READ), DISK, RANGE),
        (LINUX, request(INDIRECT, 8, [(0, 6)], inner=READ), BIG, ALIGNMENT),
        # Discard: as a write of so many sectors
        (LINUX, request(DISCARD, 0, [], nr_sectors=1024), DISK, None),
        (LINUX, request(DISCARD, 0, [], nr_sectors=1025), DISK, RANGE),
        (LINUX, request(DISCARD, 1, [], nr_sectors=LAST), DISK, RANGE),
        (LINUX, request(DISCARD, LAST, [], nr_sectors=0), DISK, None),
        (LINUX, request(DISCARD, 0, [], nr_sectors=8), RO, READONLY),
        # Units
        (LINUX, request(READ, 8, [(1, 7)]), OLD, BOUNDS),
        (LINUX, request(READ, 127, [(0, 0)]), OLD, None),
        (LINUX, request(READ, 128, [(0, 0)]), OLD, RANGE),
        (LINUX, request(READ, 127, PAGE), BSD, None),
        (LINUX, request(READ, 127, [(0, 6)]), BSD, ALIGNMENT),
        (LINUX, request(READ, 128, PAGE), BSD, RANGE),
        (LINUX, request(DISCARD, 0, [], nr_sectors=128), OLD, None),
        (LINUX, request(DISCARD, 0, [], nr_sectors=129), OLD, RANGE),
        # QEMU: xen_block_parse_request
        (QEMU, request(READ, 0, PAGE), DISK, None),
        (QEMU, request(READ, 0, []), DISK, None),
        (QEMU, request(WRITE, 0, []), DISK, None),
        (QEMU, request(READ, 1024, []), DISK, None),
        (QEMU, request(READ, 1025, []), DISK, RANGE),
        (QEMU, request(WRITE, 2000, [(3, 2)], nr=12), RO, READONLY),
        (QEMU, request(WRITE, 2000, [(3, 2)] * 11, nr=12), DISK, COUNT),
        (QEMU, request(WRITE, 2000, [(3, 2)]), DISK, BOUNDS),
        (QEMU, request(READ, 2001, PAGE), BIG, ALIGNMENT),
        (QEMU, request(READ, 8, [(1, 7)]), BIG, ALIGNMENT),
        (QEMU, request(READ, 1, []), BIG, ALIGNMENT),
        (QEMU, request(READ, 1017, PAGE), DISK, RANGE),
        (QEMU, request(FLUSH, 1017, PAGE), DISK, RANGE),
        (QEMU, request(FLUSH, 0, PAGE), RO, READONLY),
        # tapdisk
        (TAPDISK, request(READ, 0, PAGE), DISK, None),
        (TAPDISK, request(READ, 0, []), DISK, COUNT),
        (TAPDISK, request(WRITE, 0, []), DISK, COUNT),
        (TAPDISK, request(BARRIER, 0, []), DISK, None),
        (TAPDISK, request(BARRIER, 0, [(0, 0)] * 11, nr=12), DISK, COUNT),
        (TAPDISK, request(READ, 0, [(3, 2)]), DISK, BOUNDS),
        (TAPDISK, request(READ, 0, [(0, 8)]), DISK, BOUNDS),
        (TAPDISK, request(WRITE, 0, PAGE), RO, READONLY),
        (TAPDISK, request(READ, 1017, PAGE), DISK, RANGE),
        # mirage
        (MIRAGE, request(READ, 0, PAGE), DISK, None),
        (MIRAGE, request(READ, 0, []), DISK, COUNT),
        (MIRAGE, request(READ, 0, [(3, 2)]), DISK, BOUNDS),
        (MIRAGE, request(INDIRECT, 0, [(0, 0)] * 256, inner=READ), DISK, None),
        (MIRAGE, request(INDIRECT, 0, [], inner=READ, nr=257), DISK, COUNT),
        (MIRAGE, request(WRITE, 0, PAGE), RO, READONLY),
        (MIRAGE, request(READ, 1017, PAGE), DISK, RANGE),
    ],
)  # fmt: skip
def test_a_request_is_refused_for_the_first_thing_that_is_wrong(
    rules: BlkRules, one: Request, where: Geometry, expected: Refusal | None
) -> None:
    assert judged(rules, one, where) is expected


def test_where_a_segment_begins_matters_to_units_that_align() -> None:
    """Half a page from its middle on, of a disk with sectors of 2 KiB."""
    one = request(READ, 4, [(2, 5)])
    assert judged(LINUX, one, disk(sector=2048)) is ALIGNMENT
    assert judged(LINUX, one, disk(sector=2048, aligned=False)) is None


@pytest.mark.parametrize(
    ("rules", "known", "unknown"),
    [
        (LINUX, [READ, WRITE, BARRIER, FLUSH, DISCARD, INDIRECT], EOPNOTSUPP),
        (QEMU, [READ, WRITE, FLUSH, DISCARD], ERROR),
        (TAPDISK, [READ, WRITE, BARRIER], EOPNOTSUPP),
        (MIRAGE, [READ, WRITE, INDIRECT], EOPNOTSUPP),
    ],
)
def test_operations_of_each_backend(rules: BlkRules, known: list[int], unknown: int) -> None:
    assert [op for op in range(256) if op in rules.operations] == known
    assert rules.unknown == unknown


@pytest.mark.parametrize("is_32", [False, True])
def test_a_slot_is_read_by_its_layout(is_32: bool) -> None:
    """By the offsets of the header's table, not by our declarations."""
    abi = X86_32 if is_32 else X86_64
    rid, sector, segments, table = (4, 12, 20, 24) if is_32 else (8, 16, 24, 28)
    slot = bytearray(b"\xee" * (108 if is_32 else 112))
    slot[:2] = bytes((WRITE, 2))
    struct.pack_into("<Q", slot, rid, 2**63 + 5)
    struct.pack_into("<Q", slot, sector, 2**63 + 6)
    struct.pack_into("<IBB", slot, segments, 77, 1, 2)
    struct.pack_into("<IBB", slot, segments + 8, 78, 3, 4)
    one = parse(abi, bytes(slot))
    assert (one.operation, one.inner, one.rid, one.sector) == (1, 1, 2**63 + 5, 2**63 + 6)
    assert (one.nr_segments, list(one.segments)) == (2, [(77, 1, 2), (78, 3, 4)])
    slot[:4] = struct.pack("<BBH", INDIRECT, READ, 513)
    struct.pack_into("<8I", slot, table, *range(90, 98))
    one = parse(abi, bytes(slot))
    assert (one.operation, one.inner, one.rid, one.sector) == (6, 0, 2**63 + 5, 2**63 + 6)
    assert (one.nr_segments, list(one.table), one.segments) == (513, [90, 91], ())
    slot[:2] = bytes((DISCARD, 1))
    struct.pack_into("<Q", slot, sector + 8, 2**40)
    one = parse(abi, bytes(slot))
    assert (one.operation, one.rid, one.sector) == (5, 2**63 + 5, 2**63 + 6)
    assert (one.nr_sectors, one.secure, one.nr_segments) == (2**40, True, 0)


@pytest.mark.parametrize("nr", [0, 11, 12, 255])
def test_no_more_segments_are_read_than_there_is_room_for(nr: int) -> None:
    slot = bytes((READ, nr)) + bytes(110)
    one = parse(X86_64, slot)
    assert (one.nr_segments, len(one.segments)) == (nr, min(nr, 11))


@pytest.mark.parametrize("nr", [0, 1, 512, 513, 4096, 4097, 65535])
def test_no_more_pages_of_a_table_are_looked_at_than_a_request_names(nr: int) -> None:
    slot = struct.pack("<BBH", INDIRECT, READ, nr) + bytes(108)
    expected = {0: 0, 1: 1, 512: 1, 513: 2, 4096: 8, 4097: 8, 65535: 8}
    assert len(parse(X86_64, slot).table) == expected[nr]
