"""What defects of rings and disks do by hand is what the kernel does, but for the mistake."""

from __future__ import annotations

import random

import pytest

from xenpv.back.blkring import BlkRing
from xenpv.testing import run_schedule, scenarios, zoo
from xenpv.testing.blk_layout import Layout
from xenpv.testing.hunts import rings
from xenpv.testing.zoo.passes import columns, remembers
from xenpv.testing.zoo.rings import DEFECTS as RINGS

# A peer that keeps to the protocol sees nothing of these, in the order in which all else runs.
UNSEEN = (
    "ring-event-late",
    "ring-prod-unbounded-back",
    "ring-prod-unbounded-front",
    "ring-prod-reread",
    "ring-reinit-at-attach",
    "ring-response-before-data",
    "id-unchecked",
    "id-completed-twice",
    "blk-nr-segments-unchecked",
    "blk-first-after-last",
    "blk-range-unchecked",
    "blk-readonly-bypass",
    "blk-indirect-overrun",
    "blk-abi-mixed",
    "blk-eopnotsupp-success",
    "blk-persistent-leak",
    "blk-short-read-okay",
    "grant-revoke-mapped",
    "grant-writable",
)


@pytest.mark.parametrize("name", UNSEEN)
def test_an_honest_peer_sees_nothing_of_it(name: str) -> None:
    with zoo.defect(name):
        for scenario in (rings.blk_reads, scenarios.disk_traffic):
            run = run_schedule(scenario)
            assert run.failure is None, run.failure_text


def requests(draw: random.Random) -> list[bytes]:
    """Direct, indirect and other slots, a third of them with something wrong."""
    layout, slots = Layout(""), []
    for rid in range(draw.randrange(1, 33)):
        operation = draw.choice((0, 0, 0, 1, 1, 2, 3, 5, 6, 77))
        sector = draw.choice((0, 8, 127, 1 << 33, (1 << 64) - 4))
        bounds = [draw.choice(((0, 7), (0, 0), (3, 5), (5, 3), (0, 8))) for _ in range(rid % 12)]
        slot = bytearray(layout.direct(operation, 1, rid, sector, [(9, *one) for one in bounds]))
        if not draw.randrange(6):
            slot[1] = draw.randrange(256)
        slots.append(bytes(slot))
    return slots


@pytest.mark.parametrize("seed", range(30))
def test_columns_are_those_of_the_kernel(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from xenpv.back import blkring
    from xenpv.testing import world_raw

    serving: list[BlkRing] = []
    seen: list[tuple[object, ...]] = []

    def taken(ring: BlkRing, count: int, result: int) -> tuple[object, ...]:
        runs = bytes(ring._runs[: (result >> 16) * blkring.RUN.size])
        return (
            result,
            list(ring._verdicts[:count]),
            list(ring._sectors[:count]),
            list(ring._offsets[:count]),
            runs,
        )

    take = blkring.blk_take

    def compare(blk_pass: object) -> int:
        result: int = take(blk_pass)
        ring, count = serving[-1], result & 0xFFFF
        if result > 0:
            seen.append(taken(ring, count, result))
            for at in range(count):
                ring._verdicts[at], ring._sectors[at], ring._offsets[at] = 9, 9, 9
            ring._runs[:] = bytes(len(ring._runs))
            seen.append(taken(ring, count, columns(ring, count)))
        return result

    monkeypatch.setattr(blkring, "blk_take", compare)
    monkeypatch.setattr(BlkRing, "service", remembers(serving)(BlkRing.service))  # type: ignore[arg-type]
    slots = requests(random.Random(seed))
    with world_raw() as world:
        world.vbd.sring.push(b"".join(slots), len(slots))
        world.vbd.notify()
        world.run()
        assert len(world.vbd.sring.take()) == len(slots)
    kernel, ours = seen
    assert ours == kernel


@pytest.mark.parametrize("name", [one.id for one in RINGS])
def test_an_end_in_a_test_s_hands_errs_in_nothing(name: str) -> None:
    from xenpv.testing import world_back, world_raw

    with world_raw() as world:
        front = world.vbd.sring.ring
        with zoo.defect(name):
            assert world.vbd.sring.push(bytes(112), 1)
            assert front.req_prod == 1
            world.vbd.sring.rsp_prod = 2  # by hand: more than is in flight
            with pytest.raises(Exception, match="ring responses"):
                front.take()
            world.vbd.sring.rsp_prod = 0
            assert front.take()[0] == 0
            assert not front.final_check()
            assert world.vbd.sring.rsp_event == 1
    with world_back() as back_world:
        back = back_world.vbd.sring.ring
        with zoo.defect(name):
            back_world.vbd.sring.req_prod = back.req_cons + 33
            with pytest.raises(Exception, match="ring requests"):
                back.take()
