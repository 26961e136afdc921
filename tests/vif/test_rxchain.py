"""Rx responses of every legal and illegal shape: extras, slots, errors, in both guests."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import TCP

from tests.vif.rawback import Scene, frame, rx, scene
from tests.vif.rxscene import (
    BLANK,
    EXTRA,
    MORE,
    TCPV6,
    V4,
    VALIDATED,
    deliver,
    ether,
    gso,
    hash_extra,
    payload,
    upper_scene,
)
from xenpv.vif.packet import HashAlgorithm, Offload, PacketHash
from xenpv.vif.receivehash import HashSettings
from xenpv.vif.rxpacket import RULES, Assembler
from xenpv.vif.statistics import Statistic

GSO_PREFIX = 16
LARGE = ether(V4 / TCP() / payload(3000))


def with_more(extras: tuple[bytes, ...]) -> list[bytes]:
    """Chained: all but the last say that another follows."""
    last = len(extras) - 1
    return [one[:1] + bytes((index < last,)) + one[2:] for index, one in enumerate(extras)]


def query(s: Scene, name: str) -> int:
    return s.pdo.frontend.statistics.query(Statistic["RECEIVER_" + name])


def in_order(s: Scene) -> None:
    """Every slot was posted again, with the page that belongs to it."""
    ring = s.pdo.frontend.queues[0].receiver
    assert ring is not None
    s.back.take_posted()
    assert len(s.back.posted) == 256
    assert [ref for _, ref in s.back.posted] == [ring.granter.refs[n] for n, _ in s.back.posted]
    assert ring.posted == ring.answered + 256


MCAST = b"\x02\0" + bytes(6)
SETS = {
    "all of them": (gso(1000), hash_extra(1, 77), MCAST),
    "the later of two hashes": (hash_extra(1, 76), gso(1000), hash_extra(1, 77)),
    "a hash without GSO": (hash_extra(1, 77), MCAST),
}


@pytest.mark.parametrize("personality", ["windows", "linux"])
@pytest.mark.parametrize("extras", SETS.values(), ids=SETS)
def test_extras_count_in_any_order(extras: tuple[bytes, ...], personality: str) -> None:
    with upper_scene(int(Offload.IPV4_LARGE_PACKET), personality=personality) as (s, upper):
        s.pdo.frontend.receive_hash.settings = HashSettings(
            algorithm=HashAlgorithm.TOEPLITZ, types=1 << 2
        )
        is_large = gso(1000) in extras
        data = LARGE if is_large else LARGE[:0] + ether(V4 / TCP() / payload(100))
        for order in permutations(extras):
            upper.got.clear()
            deliver(s, data, flags=VALIDATED | BLANK, extras=with_more(order))
            (one,) = upper.got
            assert one.mss == (1000 if is_large else 0)
            if order.index(extras[-1]) > order.index(extras[0]) or extras[0][0] != 4:
                assert one.hash == PacketHash(2, 2, 77)
        in_order(s)


SLOTS = {
    "one byte a slot at first": [1] * 14 + [200],
    "headers over three slots": [20, 20, 20, 200],
    "empty slots": [0, 60, 0, 0, 40, 0],
    "a slot for each two bytes": [2] * 90,
    "pages": [4096, 4096, 500],
}  # fmt: skip


@pytest.mark.parametrize("sizes", SLOTS.values(), ids=SLOTS)
@pytest.mark.parametrize("offset", [0, 2, 3000])
def test_buffers_may_be_short_and_lie_anywhere(sizes: list[int], offset: int) -> None:
    if offset + max(sizes) > 4096:
        sizes = [min(size, 4096 - offset) for size in sizes]
    data = frame(sum(sizes))
    with upper_scene(mtu=9000) as (s, upper):
        deliver(s, data, sizes=sizes, offset=offset)
        assert [one.data for one in upper.got] == [data]
        in_order(s)


def test_a_packet_may_take_every_slot_of_the_ring() -> None:
    with upper_scene() as (s, upper):
        deliver(s, frame(1500), sizes=[6] * 250)
        deliver(s, frame(1500), sizes=[5] * 50 + [6] * 200 + [50])
        assert [one.data for one in upper.got] == [frame(1500)] * 2
        in_order(s)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("status", [-1, -2, -32768])
@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_an_error_on_any_slot_fails_the_packet(count: int, status: int, personality: str) -> None:
    with upper_scene(personality=personality) as (s, upper):
        for bad in range(count):
            s.back.take_posted()
            taken, s.back.posted = s.back.posted[: count + 1], s.back.posted[count + 1 :]
            responses = [
                rx(number, status if index == bad else 100, flags=MORE if index + 1 < count else 0)
                for index, (number, _) in enumerate(taken[:count])
            ]
            good = frame(60 + bad)
            s.back.fill(taken[-1][1], good)
            s.back.answer_rx(*responses, rx(taken[-1][0], len(good)))
            s.run()
            assert query(s, "BACKEND_ERRORS") == bad + 1
            assert query(s, "PACKETS_DROPPED") == 0
        assert [len(one.data) for one in upper.got] == [60 + bad for bad in range(count)]
        in_order(s)


def test_an_error_in_a_packet_with_extras_skips_them() -> None:
    with upper_scene() as (s, upper):
        s.back.take_posted()
        taken, s.back.posted = s.back.posted[:4], s.back.posted[4:]
        s.back.fill(taken[3][1], frame(70))
        s.back.answer_rx(
            rx(taken[0][0], -1, flags=EXTRA), *with_more((gso(9), hash_extra(1, 1))), rx(3, 70)
        )
        s.run()
        assert [one.data for one in upper.got] == [frame(70)]
        assert query(s, "BACKEND_ERRORS") == 1


OFFLOADS = {
    "a GSO prefix": (GSO_PREFIX, []),
    "GSO of type 0": (VALIDATED | BLANK, [gso(1000, 0)]),
    "GSO of type 3": (VALIDATED | BLANK, [gso(1000, 3)]),
}


@pytest.mark.parametrize(("flags", "extras"), OFFLOADS.values(), ids=OFFLOADS)
def test_what_was_not_offered_is_a_frontend_error(flags: int, extras: list[bytes]) -> None:
    with upper_scene() as (s, upper):
        deliver(s, LARGE[:1000], flags=flags, extras=extras)
        assert upper.got == []
        assert (query(s, "FRONTEND_ERRORS"), query(s, "PACKETS_DROPPED")) == (1, 1)


def test_the_type_of_gso_does_not_decide_over_the_headers() -> None:
    with upper_scene() as (s, upper):
        deliver(s, LARGE, flags=VALIDATED | BLANK, extras=[gso(1000, TCPV6)])
        assert len(upper.got) == 3


# Linux


@pytest.mark.parametrize(
    ("count", "first", "passes"),
    [(18, 257, True), (19, 257, False), (19, 256, True), (20, 256, False), (19, 60, True)],
)
def test_netfront_takes_18_slots_and_one_more_behind_a_small_first(
    count: int, first: int, passes: bool
) -> None:
    sizes = [first] + [50] * (count - 1)
    with upper_scene(personality="linux") as (s, upper):
        deliver(s, frame(sum(sizes)), sizes=sizes)
        deliver(s, frame(60))
        assert [len(one.data) for one in upper.got] == [sum(sizes)] * passes + [60]
        assert query(s, "BACKEND_ERRORS") == (not passes)
        in_order(s)


# Each answers the slots from n on; all of them are lost, and the next packet is not.
LOST_BY_NETFRONT: dict[str, Callable[[int], list[bytes]]] = {
    "bytes beyond the page": lambda n: [rx(n, 100, offset=3997)],
    "an offset beyond the page": lambda n: [rx(n, 1, offset=0xFFFF)],
    "more data that is not there": lambda n: [rx(n, 100, flags=MORE)],
    "extras that are not there": lambda n: [rx(n, 100, flags=EXTRA)],
    "a chain of extras that ends early": lambda n: [rx(n, 100, flags=EXTRA), hash_extra(1, 1, more=True)],
    "an extra of type 0": lambda n: [rx(n, 100, flags=EXTRA), bytes(8)],
    "XDP, which was not negotiated": lambda n: [rx(n, 100, flags=EXTRA), pack("<BBHI", 5, 0, 256, 0)],
    "an extra of type 255": lambda n: [rx(n, 100, flags=EXTRA), b"\xff" + bytes(7)],
    "a bad slot in the middle": lambda n: [rx(n, 100, flags=MORE), rx(n + 1, 4096, offset=1, flags=MORE), rx(n + 2, 5)],
}  # fmt: skip


@pytest.mark.parametrize("build", LOST_BY_NETFRONT.values(), ids=LOST_BY_NETFRONT)
def test_netfront_loses_what_cannot_be_and_posts_the_page_again(
    build: Callable[[int], list[bytes]],
) -> None:
    with upper_scene(personality="linux") as (s, upper):
        s.back.take_posted()
        number = s.back.posted[0][0]
        responses = build(number)
        del s.back.posted[: len(responses)]
        s.back.answer_rx(*responses)
        s.run()
        deliver(s, frame(77))
        assert [one.data for one in upper.got] == [frame(77)]
        assert s.broken == ""
        assert query(s, "BACKEND_ERRORS") == 1
        in_order(s)


def test_netfront_does_not_look_at_ids() -> None:
    with upper_scene(personality="linux") as (s, upper):
        s.back.take_posted()
        taken, s.back.posted = s.back.posted[:2], s.back.posted[2:]
        for (_, ref), size in zip(taken, (60, 61), strict=True):
            s.back.fill(ref, frame(size))
        s.back.answer_rx(rx(0xFFFF, 60), rx(0, 61))
        s.run()
        assert [one.data for one in upper.got] == [frame(60), frame(61)]


@pytest.mark.parametrize("index", [257, 0xFFFFFFFF])
def test_a_producer_beyond_what_is_posted_breaks_netfront_too(index: int) -> None:
    with scene("linux") as s:
        s.back.take_posted()
        s.back.store(s.back.rx, 8, index)
        s.back.notify()
        s.run()
        assert s.broken


# XDP


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_a_negotiated_headroom_is_in_front_of_every_slot_and_its_extra_is_known(
    personality: str,
) -> None:
    data = frame(300)
    with upper_scene(personality=personality) as (s, upper):
        ring = s.pdo.frontend.queues[0].receiver
        assert ring is not None
        rules = RULES[personality]
        ring.assembler = Assembler(rules=rules, gso_types=(), headroom=256)
        room = b"\xee" * 256
        deliver(
            s, room + data[:100] + room + data[100:], sizes=[356, 456],
            extras=[pack("<BBHI", 5, 0, 256, 0)],
        )  # fmt: skip
        deliver(s, room + frame(60))
        assert [one.data for one in upper.got] == [data, frame(60)]
        assert s.broken == ""


# anything


@settings(max_examples=100, deadline=None)
@given(
    personality=st.sampled_from(["windows", "linux"]),
    options=st.integers(0, 0x3FF),
    raw=st.lists(
        st.one_of(
            st.tuples(
                st.sampled_from([0, 0, 0, 3, 0xFFFF]),
                st.sampled_from([0, 0, 1, VALIDATED | BLANK, MORE, EXTRA, MORE | EXTRA | 3, 0xFFFF]),
                st.sampled_from([54, 60, 100, 1514, 0, 13, -1, -32768, 4096, 32767]),
            ),
            st.sampled_from([gso(1), gso(500), gso(0), gso(9, 7), hash_extra(1, 5), hash_extra(9, 5, more=True), bytes(8), b"\x05" * 8]),
        ),
        max_size=40,
    ),
    seeds=st.lists(st.binary(max_size=80), min_size=1, max_size=4),
)  # fmt: skip
def test_no_response_raises_and_the_outcome_is_defined(
    personality: str,
    options: int,
    raw: list[tuple[int, int, int] | bytes],
    seeds: list[bytes],
) -> None:
    """Delivered, an error, dropped or broken; and everything is given back at the end."""
    heads = [ether(V4 / TCP())[:54], LARGE[:4096], *(LARGE[:14] + seed for seed in seeds)]
    with upper_scene(options, personality=personality) as (s, upper):
        s.back.take_posted()
        responses = []
        for index, one in enumerate(raw):
            number, ref = s.back.posted[index]
            s.back.fill(ref, heads[index % len(heads)][:4096])
            if isinstance(one, bytes):
                responses.append(one)
            else:
                offset, flags, status = one
                responses.append(rx(number, status, offset=offset, flags=flags))
        if responses:
            s.back.answer_rx(*responses)
        s.run()
        counted = query(s, "BACKEND_ERRORS") + query(s, "PACKETS_DROPPED")
        assert len(upper.got) + counted or not raw or s.broken
        assert personality == "windows" or not s.broken
        pdo = s.pdo
        assert not pdo.frontend.receiver.lent
        assert s.guest.shutdown() == 0
        assert pdo.frontend.quarantined == []
