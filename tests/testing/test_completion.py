"""One response for each request: what the law sees of traffic, and of what breaks it."""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack

import pytest

from xenpv.abi._kernel import lib
from xenpv.abi.blkif import BLKIF_OP
from xenpv.testing import RawWorld, explore, scenarios, world_raw
from xenpv.testing.checks.completion import Completions
from xenpv.testing.hunts import net
from xenpv.testing.hunts import rings as ring_hunts
from xenpv.view import rings
from xenpv.view.rings import FIRST_SLOT, RSP_PROD, poke

FLUSH = int(BLKIF_OP.FLUSH_DISKCACHE)


def flush(number: int) -> bytes:
    return pack("<BBH4xQ", FLUSH, 0, 0, number).ljust(112, b"\0")


@pytest.fixture
def world() -> Iterator[RawWorld]:
    with world_raw() as made:
        # The frontend is held to its ids as a driver is.
        rings._by_hand.clear()
        yield made


@pytest.fixture
def seen(world) -> Completions:
    made = Completions(world.platform)
    assert made.look() == []
    return made


def send(world: RawWorld, *numbers: int) -> None:
    if world.vbd.sring.push(b"".join(flush(one) for one in numbers), len(numbers)):
        world.vbd.notify()


def answer(world: RawWorld, *numbers: int) -> None:
    """Responses that nobody's driver wrote."""
    ring = rings.rings_of(world.platform)[0]
    first = ring.word(RSP_PROD)
    for at, number in enumerate(numbers):
        offset = FIRST_SLOT + (first + at) % ring.size * ring.entry_size
        poke(ring.hypervisor, ring.frames[0], offset, pack("<QBxh4x", number, FLUSH, 0))
    poke(ring.hypervisor, ring.frames[0], RSP_PROD, pack("<I", first + len(numbers)))


def test_requests_and_their_responses_cancel_in_any_order(world, seen) -> None:
    send(world, 5, 6, 7)
    assert seen.look() == []
    answer(world, 7, 5)
    assert seen.look() == []
    answer(world, 6)
    assert seen.look() == []
    send(world, 5)  # it may be used again
    assert seen.look() == []


def test_both_between_two_looks_are_nothing_to_tell(world, seen) -> None:
    for number in range(100):  # three times round the ring
        send(world, number)
        world.run()
        world.vbd.sring.take()
        assert seen.look() == []


@pytest.mark.parametrize(
    ("sent", "answered", "wrong"),
    [
        ((5,), (6,), 0x6),
        ((5, 6), (5, 5), 0x5),
        ((5,), (0xFFFFFFFFFFFFFFFF,), 0xFFFFFFFFFFFFFFFF),
    ],
)
def test_a_response_to_nothing_in_flight_is_told(world, seen, sent, answered, wrong) -> None:
    send(world, *sent)
    seen.look()
    answer(world, *answered)
    (line,) = seen.look()
    assert line.endswith(f"answers id {wrong:#x}, which is not in flight")
    assert line.startswith("blkif of d1 at pfn ")


def test_an_id_that_is_in_flight_is_not_used_again(world, seen) -> None:
    send(world, 5)
    assert seen.look() == []
    send(world, 6, 5)
    (line,) = seen.look()
    assert line.endswith("two requests in flight have id 0x5")


def test_a_ring_that_went_round_unseen_is_judged_again_once_it_is_idle(world, seen) -> None:
    for number in range(40):
        send(world, number)
        world.run()
        world.vbd.sring.take()
    send(world, 1)
    assert seen.look() == []  # what was answered meanwhile is overwritten
    world.run()
    assert seen.look() == []
    send(world, 2)
    seen.look()
    answer(world, 3)
    assert len(seen.look()) == 1


def test_a_hostile_end_is_not_judged(world, seen) -> None:
    send(world, 5)
    seen.look(hostile=[1])
    answer(world, 6)
    assert seen.look(hostile=[1]) == []


def test_a_null_for_no_extra_is_told(world, seen) -> None:
    world.vif.tx.push(pack("<IHHHH", 0, 0, 0, 9, 60), 1)
    assert seen.look() == []
    ring = next(one for one in rings.rings_of(world.platform) if one.kind.name == "netif_tx")
    poke(ring.hypervisor, ring.frames[0], FIRST_SLOT, pack("<Hh", 0, 1))
    poke(ring.hypervisor, ring.frames[0], RSP_PROD, pack("<I", 1))
    (line,) = seen.look()
    assert line.endswith("answers an extra, which is not in flight")


@pytest.mark.parametrize(
    "scenario",
    [
        scenarios.disk_traffic,
        scenarios.net_traffic,
        net.net_shapes,
        net.net_received,
        ring_hunts.rings_wrap,
    ],
    ids=lambda one: one.__name__,
)
def test_explored_traffic_is_looked_at_and_well(scenario, monkeypatch) -> None:
    passed: list[int] = []
    original = Completions._passed

    def counted(completions, ring, flight, requests, responses):
        was = flight.responses
        found = original(completions, ring, flight, requests, responses)
        passed.append((responses - was) % (1 << 32) if flight.sure else 0)
        return found

    monkeypatch.setattr(Completions, "_passed", counted)
    explore(scenario, examples=3).check()
    assert sum(passed) > 0


def test_a_response_in_its_slot_that_is_not_published_yet_is_taken_for_no_request(world, seen):
    """A frontend that is preempted after it has published, and a look from within the answer."""
    send(world, 5)
    looked = []

    def look(_actor: int, kind: int, _frame: int, offset: int, _size: int) -> None:
        if kind == lib.ACCESS_WRITE and offset == RSP_PROD:
            world.platform.hypervisor.set_hook(None)
            looked.append(seen.look())

    world.platform.hypervisor.set_hook(look)
    world.run()
    assert looked == [[]]
    assert seen.look() == []
