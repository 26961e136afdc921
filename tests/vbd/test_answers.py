"""What a ring makes of answers: their order, their pace, their statuses, by the driver's table."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.vbd.rawback import (
    BARRIER,
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
from xenpv.vbd.parameters import Parameters
from xenpv.vbd.srb import ScsiStatus, Srb, SrbStatus

PENDING, SUCCESS, FAILED = SrbStatus.PENDING, SrbStatus.SUCCESS, SrbStatus.ERROR
GOOD, ABORTED = ScsiStatus.GOOD, ScsiStatus.TASK_ABORTED
WIDE = {"feature-max-indirect-segments": "256"}
DISCARDS = {"feature-discard": "1", "feature-barrier": "1"}


@pytest.fixture
def on() -> Iterator[Scene]:
    with scene() as made:
        yield made


def status(srb: Srb) -> tuple[SrbStatus, ScsiStatus]:
    return srb.srb_status, srb.scsi_status


def unmap(on: Scene, *ranges: tuple[int, int]) -> Srb:
    body = b"".join(struct.pack(">QI4x", lba, count) for lba, count in ranges)
    data = struct.pack(">HH4x", len(body) + 6, len(body)) + body
    cdb = struct.pack(">BB5xHB", 0x42, 0, len(data), 0)
    return on.submit(cdb, [(on.page(data), 0, len(data))])


def reads(on: Scene, count: int) -> list[Srb]:
    pfn = on.domain.pages.alloc(count)
    srbs = [Srb(cdb=read10(n, 1), data=[(pfn + n, 0, 512)]) for n in range(count)]
    for srb in srbs:
        on.adapter.submit(srb)
    on.xen.run()
    return srbs


# quirks: what the driver does, and what is done without

ES, S40 = "eopnotsupp-success", "scsistatus-40-on-success"


@pytest.mark.parametrize(
    ("quirks", "codes", "expected"),
    [
        ((), (EOPNOTSUPP, OKAY), (FAILED, ABORTED)),
        ((), (OKAY, EOPNOTSUPP), (FAILED, ABORTED)),
        ((), (ERROR, EOPNOTSUPP), (FAILED, ABORTED)),
        ((ES,), (EOPNOTSUPP, OKAY), (SUCCESS, GOOD)),
        ((ES,), (ERROR, EOPNOTSUPP), (SUCCESS, GOOD)),  # the last that is not OKAY wins
        ((ES,), (EOPNOTSUPP, ERROR), (FAILED, ABORTED)),
        ((ES,), (ERROR, OKAY), (FAILED, ABORTED)),
        ((ES, S40), (EOPNOTSUPP, OKAY), (SUCCESS, ABORTED)),
        ((ES, S40), (ERROR, EOPNOTSUPP), (SUCCESS, ABORTED)),
        ((ES, S40), (EOPNOTSUPP, ERROR), (FAILED, ABORTED)),
        ((ES, S40), (OKAY, OKAY), (SUCCESS, GOOD)),
        ((S40,), (OKAY, OKAY), (SUCCESS, GOOD)),
        ((S40,), (EOPNOTSUPP, OKAY), (FAILED, ABORTED)),
    ],
)
def test_a_transfer_that_is_not_supported(
    quirks: tuple[str, ...], codes: tuple[int, int], expected: tuple[SrbStatus, ScsiStatus]
) -> None:
    with scene(vbd=Parameters(quirks=quirks)) as on:
        srb = on.submit(read10(0, 96), [(on.domain.pages.alloc(12), 0, 12 * 4096)])
        slots = on.back.taken()
        for slot, code in zip(slots, codes, strict=True):
            on.back.answer((slot.id, code))
        assert status(srb) == expected
        assert on.target.broken == ""


@pytest.mark.parametrize(
    ("quirks", "expected"),
    [((), GOOD), ((S40,), ABORTED), ((ES,), GOOD), ((ES, S40), ABORTED)],
)
def test_a_discard_that_is_not_supported_succeeds(
    quirks: tuple[str, ...], expected: ScsiStatus
) -> None:
    with scene(keys=DISCARDS, vbd=Parameters(quirks=quirks)) as on:
        srb = unmap(on, (8, 8))
        on.back.answer((on.back.taken()[0].id, EOPNOTSUPP))
        assert status(srb) == (SUCCESS, expected)
        assert status(unmap(on, (8, 8))) == (SUCCESS, GOOD)  # answered at once
        assert on.back.taken() == []


@pytest.mark.parametrize(
    ("quirks", "codes", "operations", "expected"),
    [
        ((), (EOPNOTSUPP, OKAY), [FLUSH, BARRIER], (SUCCESS, GOOD)),
        ((), (EOPNOTSUPP, EOPNOTSUPP), [FLUSH, BARRIER], (SUCCESS, GOOD)),
        ((), (EOPNOTSUPP, ERROR), [FLUSH, BARRIER], (FAILED, ABORTED)),
        ((S40,), (EOPNOTSUPP, OKAY), [FLUSH, BARRIER], (SUCCESS, GOOD)),
        ((S40,), (EOPNOTSUPP, EOPNOTSUPP), [FLUSH, BARRIER], (SUCCESS, ABORTED)),
        ((ES,), (EOPNOTSUPP,), [FLUSH], (SUCCESS, GOOD)),
        ((ES, S40), (EOPNOTSUPP,), [FLUSH], (SUCCESS, ABORTED)),
    ],
)
def test_a_flush_that_is_not_supported(
    quirks: tuple[str, ...],
    codes: tuple[int, ...],
    operations: list[int],
    expected: tuple[SrbStatus, ScsiStatus],
) -> None:
    with scene(keys=DISCARDS, vbd=Parameters(quirks=quirks)) as on:
        srb = on.submit(SYNC10)
        asked = []
        for code in codes:
            (slot,) = on.back.taken()
            asked.append(slot.operation)
            on.back.answer((slot.id, code))
        assert asked == operations
        assert status(srb) == expected
        on.submit(SYNC10)
        assert [slot.operation for slot in on.back.taken()] == (
            [BARRIER] if codes[1:] != (EOPNOTSUPP,) else []
        )


def test_the_driver_takes_a_refused_indirect_request_for_done() -> None:
    with scene(early=WIDE, vbd=Parameters(quirks=(ES,))) as on:
        data = [(on.domain.pages.alloc(20), 0, 20 * 4096)]
        for _ in range(2):  # and asks again
            srb = on.submit(read10(0, 160), data)
            (slot,) = on.back.taken()
            assert slot.operation == INDIRECT
            on.back.answer((slot.id, EOPNOTSUPP))
            assert status(srb) == (SUCCESS, GOOD)
        assert on.back.taken() == []


# flush


@pytest.mark.parametrize(
    ("cdb", "keys", "sector"),
    [
        ("35 00 00000000 00 0000 00", {}, 0),
        ("35 00 00000123 00 0000 00", {}, 0x123),
        ("91 00 0000000000000203 00000001 00 00", {}, 0x203),
        ("91 00 ffffffffffffffff 00000000 00 00", {}, 2**64 - 1),
        ("35 00 00000010 00 0000 00", {"sector-size": "4096"}, 0x80),
        ("91 00 ffffffffffffffff 00000000 00 00", {"sector-size": "4096"}, 2**64 - 8),
    ],
)
def test_a_flush_names_the_address_of_its_cdb(cdb: str, keys: dict[str, str], sector: int) -> None:
    with scene(keys=keys) as on:
        on.submit(bytes.fromhex(cdb))
        (slot,) = on.back.taken()
        assert (slot.operation, slot.nr, slot.sector) == (FLUSH, 0, sector)


# pace


@pytest.mark.parametrize(
    ("personality", "order", "passes"),
    [("windows", 0, [9, 9, 9, 5]), ("windows", 1, [17, 17, 17, 13]), ("linux", 0, [32])],
)
def test_a_pass_takes_a_quarter_of_the_ring(
    personality: str, order: int, passes: list[int]
) -> None:
    with scene(personality, early={"max-ring-page-order": str(order)}) as on:
        size = 32 << order
        srbs = reads(on, size)
        ring, seen = on.frontend.rings[0], []
        poll = ring.poll

        def counted() -> None:
            before = len(ring.submitted)
            poll()
            seen.append(before - len(ring.submitted))

        ring.task.run = counted  # type: ignore[method-assign]
        slots = on.back.taken()
        packed = b"".join(struct.pack("<QBxh4x", slot.id, READ, OKAY) for slot in slots)
        on.back.rings[0].push(packed, len(slots))
        ring.task.wake()
        on.xen.run()
        assert [count for count in seen if count] == passes
        assert {srb.srb_status for srb in srbs} == {SUCCESS}


# a Linux frontend's shadow ring


def test_a_linux_guest_uses_the_places_of_its_shadow_ring_as_ids() -> None:
    with scene("linux") as on:
        reads(on, 40)
        slots = on.back.taken()
        assert [slot.id for slot in slots] == list(range(32))
        on.back.answer((7, OKAY), (3, OKAY))
        assert [slot.id for slot in on.back.taken()] == [3, 7]
        assert len(on.frontend.rings[0].shadow) == 0


@pytest.mark.parametrize(
    ("early", "count", "operation", "said", "accepted"),
    [
        ({}, 8, READ, READ, True),
        ({}, 8, READ, WRITE, False),
        ({}, 8, WRITE, WRITE, True),
        ({}, 8, WRITE, 255, False),
        (WIDE, 160, READ, READ, True),  # an indirect request's is the inner one
        (WIDE, 160, READ, INDIRECT, False),
        (WIDE, 160, WRITE, WRITE, True),
        (WIDE, 160, WRITE, READ, False),
    ],
)
@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_an_answer_names_the_operation_where_that_is_looked_at(
    personality: str, early: dict[str, str], count: int, operation: int, said: int, accepted: bool
) -> None:
    with scene(personality, early=early) as on:
        cdb = read10(0, count) if operation == READ else write10(0, count)
        srb = on.submit(cdb, [(on.domain.pages.alloc(20), 0, count * 512)])
        (slot,) = on.back.taken()
        on.back.operations[slot.id] = said
        on.back.answer((slot.id, OKAY))
        good = accepted or personality == "windows"
        assert srb.srb_status is (SUCCESS if good else FAILED)
        assert bool(on.target.broken) is not good
        if not good:
            assert f"request {slot.id:#x} is {operation}" in on.target.broken


def test_late_answers_give_places_of_the_shadow_ring_back() -> None:
    with scene("linux") as on:
        reads(on, 3)
        slots = on.back.taken()
        on.submit(b"", function=0x13)  # RESET_DEVICE
        assert len(on.frontend.rings[0].shadow) == 29
        on.back.answer(*[(slot.id, OKAY) for slot in slots])
        assert sorted(on.frontend.rings[0].shadow) == list(range(32))


def test_what_is_read_for_a_page_that_the_guest_gave_away_is_an_error(on: Scene) -> None:
    pfn = on.page()
    srb = on.submit(read10(0, 1), [(pfn, 3, 512)])
    (slot,) = on.back.taken()
    assert on.domain.memory.decrease_reservation(on.domain.DOMID_SELF, [pfn]) == 1
    on.back.answer((slot.id, OKAY))
    assert status(srb) == (FAILED, ABORTED)
    assert on.target.broken == ""
    assert srb.is_complete
    assert on.submit(SYNC10).srb_status is PENDING
