"""The frontend's ring against a backend in a test's hands."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vbd.rawback import (
    BARRIER,
    DISCARD,
    EOPNOTSUPP,
    ERROR,
    FLUSH,
    INDIRECT,
    OKAY,
    READ,
    SYNC10,
    WRITE,
    Scene,
    read10,
    scene,
    write10,
)
from xenpv.vbd.frontend import FrontendState
from xenpv.vbd.srb import ScsiStatus, Srb, SrbFunction, SrbStatus

PENDING, SUCCESS = SrbStatus.PENDING, SrbStatus.SUCCESS
FAILED = (SrbStatus.ERROR, ScsiStatus.TASK_ABORTED)


@pytest.fixture
def on() -> Iterator[Scene]:
    with scene() as made:
        yield made


@pytest.fixture
def wide() -> Iterator[Scene]:
    with scene(early={"feature-max-indirect-segments": "256"}) as made:
        yield made


def status(srb: Srb) -> tuple[SrbStatus, ScsiStatus]:
    return srb.srb_status, srb.scsi_status


def settled(on: Scene) -> None:
    """Nothing of a request is left: no grants but the ring's, no ids."""
    ring = on.frontend.rings[0]
    assert ring.is_idle
    assert on.frontend.granter.granted == len(ring.grefs)


# requests


def test_a_read_is_a_slot_with_a_writable_grant(on: Scene) -> None:
    pfn = on.page(b"\xee" * 4096)
    srb = on.submit(read10(100, 3), [(pfn, 1024, 1536)])
    (slot,) = on.back.taken()
    assert (slot.operation, slot.nr, slot.sector) == (READ, 1, 100)
    ((ref, first, last),) = slot.segments
    assert (first, last) == (2, 4)
    on.back.fill(ref, b"\x42" * 1536, 1024)
    assert srb.srb_status is PENDING
    on.back.answer((slot.id, OKAY))
    assert status(srb) == (SUCCESS, ScsiStatus.GOOD)
    assert srb.data_transfer_length == 1536
    assert on.domain.read(pfn, 1000, 24) == b"\xee" * 24
    assert on.domain.read(pfn, 1024, 1536) == b"\x42" * 1536
    settled(on)


def test_the_handle_of_a_slot_is_the_low_half_of_the_devid(on: Scene) -> None:
    on.submit(SYNC10)
    raw = on.domain.read(on.frontend.rings[0].front.pfns[0], 64, 112)  # type: ignore[union-attr]  # it is connected
    assert struct.unpack_from("<BBH", raw) == (FLUSH, 0, 51712)


def test_a_write_grants_its_pages_read_only(on: Scene) -> None:
    pfn = on.page(b"data" * 1024)
    srb = on.submit(write10(8, 8), [(pfn, 0, 4096)])
    (slot,) = on.back.taken()
    assert (slot.operation, slot.sector) == (WRITE, 8)
    ref = slot.segments[0][0]
    assert on.back.read(ref) == b"data" * 1024
    with pytest.raises(Exception, match="GNTST"):
        on.back.fill(ref, b"stain")
    on.back.answer((slot.id, OKAY))
    assert srb.srb_status is SUCCESS
    settled(on)


@pytest.mark.parametrize(
    ("cdb", "operation", "sector", "count"),
    [
        ("08 00 01 02 01 00", READ, 0x102, 1),
        ("08 e0 00 05 02 00", READ, 5, 2),
        ("0a 00 00 09 01 00", WRITE, 9, 1),
        ("08 00 00 00 00 00", READ, 0, 256),
        ("28 00 00000123 00 0007 00", READ, 0x123, 7),
        ("2a 00 00000123 00 0007 00", WRITE, 0x123, 7),
        ("a8 00 00000123 00000005 00 00", READ, 0x123, 5),
        ("aa 00 00000123 00000005 00 00", WRITE, 0x123, 5),
        ("88 00 0000000000000123 00000005 00 00", READ, 0x123, 5),
        ("8a 00 0000000000000123 00000005 00 00", WRITE, 0x123, 5),
    ],
)
def test_every_transfer_cdb(on: Scene, cdb: str, operation: int, sector: int, count: int) -> None:
    pfn = on.domain.pages.alloc(32)
    srb = on.submit(bytes.fromhex(cdb), [(pfn, 0, count * 512)])
    slots = on.back.taken()
    assert {slot.operation for slot in slots} == {operation}
    assert slots[0].sector == sector
    sizes = [sum(last - first + 1 for _r, first, last in slot.segments) for slot in slots]
    assert sum(sizes) == count
    on.back.answer(*[(slot.id, OKAY) for slot in slots])
    assert (srb.srb_status, srb.data_transfer_length) == (SUCCESS, count * 512)


@pytest.mark.parametrize(
    ("cdb", "size"),
    [
        (read10(1024, 1), 512),
        (read10(1023, 2), 1024),
        (read10(0, 8), 4095),  # the buffer is too small
        (read10(0, 8), 0),
        (read10(1024, 0), 0),
        (bytes.fromhex("88 00 ffffffffffffffff 00000001 00 00"), 512),
        (bytes.fromhex("88 00 0000000000000000 ffffffff 00 00"), 512),
    ],
)
def test_what_is_out_of_range_never_reaches_the_ring(on: Scene, cdb: bytes, size: int) -> None:
    srb = on.submit(cdb, [(on.page(), 0, size)] if size else [])
    assert status(srb) == (SrbStatus.ERROR, ScsiStatus.GOOD)
    assert on.back.taken() == []
    settled(on)


def test_a_transfer_of_nothing_succeeds_at_once(on: Scene) -> None:
    assert status(on.submit(read10(5, 0))) == (SUCCESS, ScsiStatus.GOOD)


def test_a_read_only_disk_is_not_written() -> None:
    with scene(keys={"info": "4"}) as on:
        srb = on.submit(write10(0, 1), [(on.page(), 0, 512)])
        assert status(srb) == (SrbStatus.ERROR, ScsiStatus.GOOD)
        assert on.back.taken() == []


def test_sectors_of_4_kib_are_512_bytes_on_the_wire() -> None:
    with scene(keys={"sector-size": "4096"}) as on:
        assert (on.target.sectors, on.target.sector_size) == (128, 4096)
        on.submit(read10(3, 2), [(on.domain.pages.alloc(2), 0, 8192)])
        (slot,) = on.back.taken()
        assert slot.sector == 24
        assert [segment[1:] for segment in slot.segments] == [(0, 7), (0, 7)]
        assert on.submit(read10(127, 2), [(on.page(), 0, 8192)]).srb_status is SrbStatus.ERROR


def test_a_transfer_larger_than_the_adapter_takes_is_the_callers_fault(on: Scene) -> None:
    from xenpv.errors import LocalProtocolError

    with pytest.raises(LocalProtocolError, match="4194304"):
        on.adapter.submit(Srb(cdb=read10(0, 1), data=[(0x100, 0, (4 << 20) + 512)]))


# splitting


def pages(slots: list) -> list[int]:  # type: ignore[type-arg]  # of Slot
    return [slot.nr for slot in slots]


def answer_all(on: Scene, code: int = OKAY) -> int:
    """Answer until the ring is quiet; how many requests there were."""
    done = 0
    while slots := on.back.taken():
        on.back.answer(*[(slot.id, code) for slot in slots])
        done += len(slots)
    return done


def test_without_indirect_a_transfer_is_split_at_11_segments(on: Scene) -> None:
    srb = on.submit(read10(0, 800), [(on.domain.pages.alloc(100), 0, 100 * 4096)])
    slots = on.back.taken()
    assert pages(slots) == [11] * 9 + [1]
    assert [slot.sector for slot in slots] == [n * 88 for n in range(10)]
    on.back.answer(*[(slot.id, OKAY) for slot in reversed(slots)])
    assert srb.srb_status is SUCCESS
    settled(on)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (8, [(READ, 1)]),
        (88, [(READ, 11)]),
        (89, [(INDIRECT, 12)]),
        (96, [(INDIRECT, 12)]),
        (800, [(INDIRECT, 100)]),
    ],
)
def test_more_than_11_segments_go_indirect(
    wide: Scene, count: int, expected: list[tuple[int, int]]
) -> None:
    pfn = wide.domain.pages.alloc(100)
    srb = wide.submit(read10(0, count), [(pfn, 0, count * 512)])
    slots = wide.back.taken()
    assert [(slot.operation, slot.nr) for slot in slots] == expected
    wide.back.answer(*[(slot.id, OKAY) for slot in slots])
    assert srb.srb_status is SUCCESS
    settled(wide)


@pytest.mark.parametrize(
    ("count", "offset", "expected"),
    [
        (88, 512, [(INDIRECT, 12)]),  # as many sectors as 11 pages have, in 12 segments
        (87, 512, [(READ, 11)]),
        (87, 1024, [(READ, 11), (READ, 1)]),
        (88, 0, [(READ, 11)]),
        (88 + 8, 512, [(INDIRECT, 13)]),
    ],
)
def test_with_fewer_sectors_than_11_pages_have_a_rest_goes_direct(
    wide: Scene, count: int, offset: int, expected: list[tuple[int, int]]
) -> None:
    pfn = wide.domain.pages.alloc(20)
    wide.submit(read10(0, count), [(pfn, offset, count * 512)])
    assert [(slot.operation, slot.nr) for slot in wide.back.taken()] == expected


def test_an_indirect_request_names_its_segments_in_read_only_pages(wide: Scene) -> None:
    pfn = wide.domain.pages.alloc(20)
    wide.submit(write10(16, 160), [(pfn, 0, 20 * 4096)])
    (slot,) = wide.back.taken()
    assert (slot.operation, slot.inner, slot.nr, slot.sector) == (INDIRECT, WRITE, 20, 16)
    table = wide.back.table(slot)
    for number, (ref, first, last) in enumerate(table):
        assert (first, last) == (0, 7)
        wide.domain.write(pfn + number, 0, bytes((number,)) * 4096)
        assert wide.back.read(ref) == bytes((number,)) * 4096
    assert wide.back.read(slot.grefs[0])[160:] == bytes(4096 - 160)
    with pytest.raises(Exception, match="GNTST"):
        wide.back.fill(slot.grefs[0], b"x")
    wide.back.answer((slot.id, OKAY))
    settled(wide)


def test_4_mib_are_four_requests_of_256_segments() -> None:
    keys = {"sectors": str(1 << 20)}
    with scene(early={"feature-max-indirect-segments": "256"}, keys=keys) as on:
        on.submit(read10(0, 8192), [(on.domain.pages.alloc(1024), 0, 4 << 20)])
        slots = on.back.taken()
        assert pages(slots) == [256] * 4
        assert [slot.sector for slot in slots] == [0, 2048, 4096, 6144]
        assert answer_all(on) == 0
        on.back.answer(*[(slot.id, OKAY) for slot in slots])
        settled(on)


@pytest.mark.parametrize(("offered", "used"), [("4096", 1024), ("600", 600), ("99999", 1024)])
def test_as_many_segments_as_the_backend_offers_and_the_format_holds(
    offered: str, used: int
) -> None:
    keys = {"sectors": str(1 << 20)}
    with scene(early={"feature-max-indirect-segments": offered}, keys=keys) as on:
        on.submit(read10(0, 8192), [(on.domain.pages.alloc(1024), 0, 4 << 20)])
        slot = on.back.taken()[0]
        assert slot.nr == used
        assert len(slot.grefs) == -(-used // 512)
        assert len(on.back.table(slot)) == used


def test_a_linux_guest_uses_32_segments() -> None:
    with scene("linux", early={"feature-max-indirect-segments": "256"}) as on:
        on.submit(read10(0, 800), [(on.domain.pages.alloc(100), 0, 100 * 4096)])
        assert pages(on.back.taken()) == [32, 32, 32, 4]


def test_a_full_ring_waits_for_answers(on: Scene) -> None:
    pfn = on.domain.pages.alloc(64)
    srbs = []
    for number in range(40):
        srbs.append(Srb(cdb=read10(number, 1), data=[(pfn + number, 0, 512)]))
        on.adapter.submit(srbs[-1])
    on.xen.run()
    first = on.back.taken()
    assert [slot.sector for slot in first] == list(range(32))
    on.back.answer((first[0].id, OKAY))
    (next_one,) = on.back.taken()
    assert next_one.sector == 32
    on.back.answer(*[(slot.id, OKAY) for slot in [*first[1:], next_one]])
    answer_all(on)
    assert {srb.srb_status for srb in srbs} == {SUCCESS}
    settled(on)


def test_ids_are_unique(on: Scene) -> None:
    seen = []
    for _ in range(100):
        on.submit(SYNC10)
        (slot,) = on.back.taken()
        seen.append(slot.id)
        on.back.answer((slot.id, OKAY))
    assert len(set(seen)) == 100


def test_queues_share_srbs_by_tag() -> None:
    early = {"multi-queue-max-queues": "4", "max-ring-page-order": "4"}
    with scene(early=early, vcpus=4) as on:
        assert len(on.back.rings) == 2  # the INF's
        assert [ring.size for ring in on.back.rings] == [64, 64]
        pfn = on.domain.pages.alloc(8)
        srbs = [on.submit(read10(tag, 1), [(pfn + tag, 0, 512)], queue_tag=tag) for tag in range(8)]
        taken = [on.back.taken(queue) for queue in range(2)]
        assert [[slot.sector for slot in slots] for slots in taken] == [[0, 2, 4, 6], [1, 3, 5, 7]]
        for queue, slots in enumerate(taken):
            on.back.answer(*[(slot.id, OKAY) for slot in slots], queue=queue)
        assert {srb.srb_status for srb in srbs} == {SUCCESS}


# statuses


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([OKAY, OKAY], (SUCCESS, ScsiStatus.GOOD)),
        ([OKAY, ERROR], FAILED),
        ([ERROR, OKAY], FAILED),
        ([EOPNOTSUPP, OKAY], FAILED),
        ([ERROR, EOPNOTSUPP], FAILED),
        ([1, OKAY], FAILED),
        ([-3, OKAY], FAILED),
        ([32767, OKAY], FAILED),
        ([-32768, OKAY], FAILED),
    ],
)
def test_one_bad_answer_fails_the_srb(
    on: Scene, codes: list[int], expected: tuple[SrbStatus, ScsiStatus]
) -> None:
    srb = on.submit(read10(0, 96), [(on.domain.pages.alloc(12), 0, 12 * 4096)])
    slots = on.back.taken()
    on.back.answer(*[(slot.id, code) for slot, code in zip(slots, codes, strict=True)])
    assert status(srb) == expected
    assert on.target.broken == ""
    settled(on)


def test_bytes_of_a_failed_read_do_not_leave_the_bounce_page(on: Scene) -> None:
    pfn = on.page(b"\xee" * 4096)
    srb = on.submit(read10(0, 1), [(pfn, 3, 512)])
    (slot,) = on.back.taken()
    on.back.fill(slot.segments[0][0], b"\x66" * 4096)
    on.back.answer((slot.id, ERROR))
    assert srb.srb_status is SrbStatus.ERROR
    assert on.domain.read(pfn, 0, 4096) == b"\xee" * 4096
    settled(on)


def test_a_refused_indirect_request_is_sent_again_in_direct_ones(wide: Scene) -> None:
    pfn = wide.domain.pages.alloc(30)
    data = [(pfn, 0, 12 * 4096), (pfn + 12, 7, 13 * 4096)]  # the second half is bounced
    srb = wide.submit(read10(40, 200), data)
    (slot,) = wide.back.taken()
    assert (slot.operation, slot.nr) == (INDIRECT, 25)
    wide.back.answer((slot.id, EOPNOTSUPP))
    assert srb.srb_status is PENDING
    slots = wide.back.taken()
    assert [(one.operation, one.nr, one.sector) for one in slots] == [
        (READ, 11, 40),
        (READ, 11, 128),
        (READ, 3, 216),
    ]
    number = 0
    for one in slots:
        for ref, _first, _last in one.segments:
            wide.back.fill(ref, bytes((number,)) * 4096)
            number += 1
    wide.back.answer(*[(one.id, OKAY) for one in slots])
    assert srb.srb_status is SUCCESS
    expected = b"".join(bytes((n,)) * 4096 for n in range(25))
    assert wide.domain.read(pfn, 0, 12 * 4096) == expected[: 12 * 4096]
    assert wide.domain.read(pfn + 12, 7, 13 * 4096) == expected[12 * 4096 :]
    settled(wide)
    wide.submit(read10(0, 200), [(pfn, 0, 25 * 4096)])
    assert pages(wide.back.taken()) == [11, 11, 3]  # it does not ask again


# flush and discard


def test_a_flush_falls_back_to_a_barrier_and_then_to_nothing() -> None:
    with scene(keys={"feature-barrier": "1"}) as on:
        srb = on.submit(SYNC10)
        (slot,) = on.back.taken()
        assert (slot.operation, slot.nr) == (FLUSH, 0)
        on.back.answer((slot.id, EOPNOTSUPP))
        (slot,) = on.back.taken()
        assert (slot.operation, slot.nr) == (BARRIER, 0)
        on.back.answer((slot.id, EOPNOTSUPP))
        assert status(srb) == (SUCCESS, ScsiStatus.GOOD)
        assert on.submit(bytes([0x91]).ljust(16, b"\0")).srb_status is SUCCESS
        assert on.back.taken() == []


@pytest.mark.parametrize(
    ("keys", "operation"),
    [
        ({"feature-flush-cache": "1", "feature-barrier": "1"}, FLUSH),
        ({"feature-flush-cache": "0", "feature-barrier": "1"}, BARRIER),
    ],
)
def test_a_flush_uses_what_the_backend_has(keys: dict[str, str], operation: int) -> None:
    with scene(keys=keys) as on:
        srb = on.submit(SYNC10)
        (slot,) = on.back.taken()
        assert slot.operation == operation
        on.back.answer((slot.id, ERROR))
        assert status(srb) == FAILED


def unmap(*ranges: tuple[int, int]) -> bytes:
    body = b"".join(struct.pack(">QI4x", lba, count) for lba, count in ranges)
    return struct.pack(">HH4x", len(body) + 6, len(body)) + body


def unmap_cdb(length: int) -> bytes:
    return struct.pack(">BB5xHB", 0x42, 0, length, 0)


DISCARDS = {"feature-discard": "1", "discard-granularity": "4096"}


def test_unmap_is_a_discard_for_each_range() -> None:
    with scene(keys=DISCARDS) as on:
        data = unmap((8, 16), (100, 0), (1016, 8))
        srb = on.submit(unmap_cdb(len(data)), [(on.page(data), 0, len(data))])
        slots = on.back.taken()
        assert [(slot.operation, slot.sector, slot.nr) for slot in slots] == [
            (DISCARD, 8, 16),
            (DISCARD, 1016, 8),
        ]
        on.back.answer(*[(slot.id, OKAY) for slot in slots])
        assert status(srb) == (SUCCESS, ScsiStatus.GOOD)


def test_an_unmap_list_is_not_read_past_the_buffer() -> None:
    with scene(keys=DISCARDS) as on:
        data = bytearray(unmap((8, 16)))
        data[2:4] = b"\xff\xf0"  # 4095 descriptors, it says
        pfn = on.page(bytes(data))
        on.submit(unmap_cdb(24), [(pfn, 0, 24)])
        assert len(on.back.taken()) == 1
        on.submit(unmap_cdb(65535), [(pfn, 0, 24)])
        assert len(on.back.taken()) == 1


@pytest.mark.parametrize(
    ("ranges", "keys", "expected"),
    [
        ([(1020, 5)], DISCARDS, SrbStatus.ERROR),
        ([(2**64 - 1, 2)], DISCARDS, SrbStatus.ERROR),
        ([(0, 8)], DISCARDS | {"info": "4"}, SrbStatus.ERROR),
        ([(0, 8)], {}, SUCCESS),
        ([], DISCARDS, SUCCESS),
    ],
)
def test_unmap_that_sends_nothing(
    ranges: list[tuple[int, int]], keys: dict[str, str], expected: SrbStatus
) -> None:
    with scene(keys=keys) as on:
        data = unmap(*ranges)
        srb = on.submit(unmap_cdb(len(data)), [(on.page(data), 0, len(data))])
        assert status(srb) == (expected, ScsiStatus.GOOD)
        assert on.back.taken() == []


def test_a_discard_that_is_not_supported_is_a_hint_not_taken() -> None:
    with scene(keys=DISCARDS) as on:
        data = unmap((8, 16))
        srb = on.submit(unmap_cdb(24), [(on.page(data), 0, 24)])
        (slot,) = on.back.taken()
        on.back.answer((slot.id, EOPNOTSUPP))
        assert status(srb) == (SUCCESS, ScsiStatus.GOOD)
        assert on.submit(unmap_cdb(24), [(on.page(data), 0, 24)]).srb_status is SUCCESS
        assert on.back.taken() == []


# resources


def test_no_references_is_busy_and_the_next_try_works(
    on: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xenpv.errors import HypercallError

    def none_left(*_args: object, **_kwargs: object) -> int:
        raise HypercallError(28, "all grant frames are in use")

    with monkeypatch.context() as patch:
        patch.setattr(on.frontend.granter.gnttab, "permit_foreign_access", none_left)
        srb = on.submit(read10(0, 8), [(on.page(), 0, 4096)])
        assert status(srb) == (SrbStatus.BUSY, ScsiStatus.TASK_ABORTED)
    settled(on)
    srb = on.submit(read10(0, 8), [(on.page(), 0, 4096)])
    answer_all(on)
    assert srb.srb_status is SUCCESS


def test_no_page_for_the_segment_table_is_busy(
    wide: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xenpv.errors import HypercallError

    def none_left() -> int:
        raise HypercallError(12)

    pfn = wide.domain.pages.alloc(100)
    granter = wide.frontend.granter
    granter.release()
    monkeypatch.setattr(granter, "page", none_left)
    srb = wide.submit(read10(0, 800), [(pfn, 0, 100 * 4096)])
    assert status(srb) == (SrbStatus.BUSY, ScsiStatus.TASK_ABORTED)
    assert wide.back.taken() == []
    settled(wide)


# hostile answers


def broken(on: Scene, *srbs: Srb) -> None:
    """The target is broken, every SRB ended, and the guest runs on."""
    assert on.target.broken
    assert {status(srb) for srb in srbs} == {FAILED}
    late = on.submit(read10(0, 1), [(on.page(), 0, 512)])
    assert status(late) == (SrbStatus.ERROR, ScsiStatus.GOOD)
    assert on.submit(b"", function=SrbFunction.FLUSH).srb_status is SrbStatus.BUSY
    assert on.submit(b"", function=SrbFunction.RESET_DEVICE).srb_status is SUCCESS
    on.back.notify()
    assert on.xen.run() >= 0


def two_reads(on: Scene) -> tuple[Srb, Srb, list]:  # type: ignore[type-arg]  # of Slot
    pfn = on.domain.pages.alloc(2)
    srbs = [on.submit(read10(n, 8), [(pfn + n, 0, 4096)]) for n in range(2)]
    return srbs[0], srbs[1], on.back.taken()


def test_an_answer_to_nothing_breaks_the_target(on: Scene) -> None:
    first, second, slots = two_reads(on)
    on.back.answer((slots[0].id + 77, OKAY))
    broken(on, first, second)


def test_a_second_answer_to_one_request_breaks_the_target(on: Scene) -> None:
    first, second, slots = two_reads(on)
    on.back.answer((slots[0].id, OKAY), (slots[0].id, OKAY))
    assert status(first) == (SUCCESS, ScsiStatus.GOOD)
    broken(on, second)


@pytest.mark.parametrize("produced", [3, 33, 2**31, 2**32 - 1])
def test_more_answers_than_requests_break_the_target(on: Scene, produced: int) -> None:
    first, second, _slots = two_reads(on)
    on.back.store(8, produced)
    on.back.notify()
    broken(on, first, second)


def test_a_page_that_stays_mapped_after_the_answer_is_not_used_again(on: Scene) -> None:
    pfn = on.page()
    srb = on.submit(read10(0, 8), [(pfn, 0, 4096)])
    (slot,) = on.back.taken()
    mapped = on.back.map(slot.segments[0][0])
    on.back.answer((slot.id, OKAY))
    assert srb.srb_status is SUCCESS
    assert on.target.broken
    assert on.frontend.granter.holds(pfn, 1)
    on.back.unmap(mapped)
    on.target.stop()
    on.xen.run()
    assert on.target.state is FrontendState.CLOSED
    assert on.frontend.granter.granted == 0


ANSWER = st.tuples(st.integers(0, 12), st.sampled_from([OKAY, ERROR, EOPNOTSUPP, 5, -9]))


@settings(max_examples=80, deadline=None)
@given(
    answers=st.lists(ANSWER, max_size=14),
    extra=st.integers(0, 2**32 - 1) | st.just(0),
    requests=st.integers(0, 10),
    noise=st.binary(max_size=64),
)
def test_any_answers_complete_srbs_once_or_break_the_target(
    answers: list[tuple[int, int]], extra: int, requests: int, noise: bytes
) -> None:
    with scene() as on:
        pfn = on.domain.pages.alloc(64)
        srbs = [
            Srb(cdb=read10(number, 1), data=[(pfn + number, 0, 512)]) for number in range(requests)
        ]
        for srb in srbs:
            on.adapter.submit(srb)
        on.xen.run()
        page, ids = on.back.rings[0].pfns[0], {slot.id: slot.sector for slot in on.back.taken()}
        for number, (rid, code) in enumerate(answers):
            answer = struct.pack("<QBxh4x", rid, 0, code) + noise
            on.back.domain.write(page, 64 + 112 * number, answer)
        produced = len(answers) + extra & 0xFFFFFFFF
        on.back.store(8, produced)
        on.back.notify()
        expected = [PENDING] * requests
        breaks = produced > requests
        # A slot that nobody answered still holds the request, whose bytes are no id.
        said = [*answers, *[(-1, OKAY)] * requests][:produced]
        for rid, code in [] if breaks else said:
            sector = ids.pop(rid, None)
            breaks = sector is None
            if sector is None:
                break
            expected[sector] = SUCCESS if code == OKAY else SrbStatus.ERROR
        if breaks:
            expected = [SrbStatus.ERROR if one is PENDING else one for one in expected]
        assert bool(on.target.broken) == breaks
        assert [srb.srb_status for srb in srbs] == expected
        on.target.stop()
        on.xen.run()
        assert all(srb.is_complete for srb in srbs)
        assert on.target.state is FrontendState.CLOSED
        assert on.frontend.granter.granted == 0


@pytest.mark.parametrize("start", [2**32 - 1, 2**32 - 20, 2**31 - 5])
def test_indices_wrap(start: int) -> None:
    with scene() as on:
        front, back = on.frontend.rings[0].front, on.back
        assert front is not None
        front.seek(start)
        for at, value in ((0, start), (4, start + 1), (8, start), (12, start + 1)):
            back.store(at, value)
        from xenpv.back.ring import BackRing

        back.rings[0] = BackRing(back.domain, back.rings[0].pfns, req_size=112, rsp_size=16)
        pfn = on.domain.pages.alloc(100)
        for _ in range(3):
            srb = on.submit(read10(0, 800), [(pfn, 0, 100 * 4096)])
            assert answer_all(on) == 10
            assert srb.srb_status is SUCCESS


# reset


def test_a_reset_waits_for_what_the_backend_still_does(on: Scene) -> None:
    first, second, slots = two_reads(on)
    reset = Srb(function=SrbFunction.RESET_DEVICE)
    on.adapter.submit(reset)
    late = Srb(cdb=read10(0, 1), data=[(on.page(), 0, 512)])
    on.adapter.submit(late)
    assert status(late) == (SrbStatus.ERROR, ScsiStatus.GOOD)  # not connected meanwhile
    assert on.target.state is FrontendState.CONNECTED
    on.back.rings[0].push(
        b"".join(struct.pack("<QBxh4x", slot.id, 0, OKAY) for slot in slots), len(slots)
    )
    on.xen.run()
    assert reset.srb_status is SUCCESS
    assert {first.srb_status, second.srb_status} == {SUCCESS}
    assert on.target.state is FrontendState.ENABLED
    settled(on)


def test_a_reset_gives_up_after_100_ms_and_late_answers_are_ignored(on: Scene) -> None:
    first, second, slots = two_reads(on)
    start = on.xen.loop.now
    reset = on.submit(b"", function=SrbFunction.RESET_DEVICE)
    assert on.xen.loop.now - start == 100_000_000
    assert reset.srb_status is SUCCESS
    assert {status(first), status(second)} == {FAILED}
    on.back.answer(*[(slot.id, OKAY) for slot in slots])
    assert on.target.broken == ""
    srb = on.submit(read10(0, 8), [(on.page(), 0, 4096)])
    answer_all(on)
    assert srb.srb_status is SUCCESS
    on.back.answer()
    settled(on)


def test_a_late_answer_counts_once(on: Scene) -> None:
    _first, _second, slots = two_reads(on)
    on.submit(b"", function=SrbFunction.RESET_DEVICE)
    on.back.answer((slots[0].id, OKAY), (slots[0].id, OKAY))
    assert "not in flight" in on.target.broken


def test_srbs_behind_a_full_ring_survive_a_reset(on: Scene) -> None:
    pfn = on.domain.pages.alloc(64)
    srbs = []
    for number in range(40):
        srbs.append(Srb(cdb=read10(number, 1), data=[(pfn + number, 0, 512)]))
        on.adapter.submit(srbs[-1])
    on.xen.run()
    old = on.back.taken()
    on.submit(b"", function=SrbFunction.RESET_DEVICE)
    assert [srb.srb_status for srb in srbs] == [SrbStatus.ERROR] * 32 + [PENDING] * 8
    on.back.answer(*[(slot.id, OKAY) for slot in old])
    answer_all(on)
    assert [srb.srb_status for srb in srbs[32:]] == [SUCCESS] * 8


@pytest.mark.parametrize("function", [SrbFunction.FLUSH, SrbFunction.SHUTDOWN])
def test_flush_and_shutdown_wait_for_the_ring(on: Scene, function: int) -> None:
    _first, _second, slots = two_reads(on)
    srb = on.submit(b"", function=function)
    on.back.answer((slots[0].id, OKAY))
    assert srb.srb_status is PENDING
    on.back.answer((slots[1].id, OKAY))
    assert status(srb) == (SUCCESS, ScsiStatus.GOOD)
