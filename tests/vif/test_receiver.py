"""What a guest makes of rx responses, honest and hostile."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vif.rawback import GUEST_MAC, PEER_MAC, Scene, frame, rx, scene

BLANK, MORE, EXTRA = 2, 4, 8


def extra(kind: int, *, more: bool = False, body: bytes = b"") -> bytes:
    return (bytes((kind, more)) + body).ljust(8, b"\0")


def slots(s: Scene, count: int) -> list[tuple[int, int]]:
    """Take the first `count` posted slots: id and reference."""
    s.back.take_posted()
    taken, s.back.posted = s.back.posted[:count], s.back.posted[count:]
    return taken


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_every_slot_is_posted_with_its_number_as_id(personality: str) -> None:
    with scene(personality) as s:
        s.back.take_posted()
        assert [number for number, _ in s.back.posted] == list(range(256))
        assert len({ref for _, ref in s.back.posted}) == 256


@pytest.mark.parametrize("size", [14, *range(60, 1519, 97), 1514, 1518])
def test_a_frame_comes_up_byte_for_byte(size: int) -> None:
    with scene() as s:
        s.back.send(frame(size))
        s.run()
        assert list(s.nic.received) == [frame(size)]


def test_frames_keep_their_order_over_many_rounds_of_the_ring() -> None:
    with scene() as s:
        frames = [frame(60 + n % 1400) for n in range(1000)]
        for at in range(0, 1000, 100):
            s.back.send(*frames[at : at + 100])
            s.run()
        assert list(s.nic.received) == frames


@pytest.mark.parametrize("start", [0xFFFFFFF0, 0x7FFFFFF1])
def test_indices_wrap(start: int) -> None:
    with scene(start=start) as s:
        frames = [frame(60 + n) for n in range(600)]
        for at in range(0, 600, 200):
            s.back.send(*frames[at : at + 200])
            s.run()
        assert list(s.nic.received) == frames
        receiver = s.pdo.frontend.queues[0].receiver
        assert receiver is not None
        assert receiver.posted == 256 + 600
        assert receiver.answered == 600


def test_bytes_at_an_offset_of_the_page() -> None:
    with scene() as s:
        ((number, ref),) = slots(s, 1)
        s.back.fill(ref, frame(100), 3000)
        s.back.answer_rx(rx(number, 100, offset=3000))
        s.run()
        assert list(s.nic.received) == [frame(100)]


def test_a_packet_over_three_slots() -> None:
    with scene(mtu=9000) as s:
        data = frame(9014)
        taken = slots(s, 3)
        for at, (_, ref) in enumerate(taken):
            s.back.fill(ref, data[4096 * at : 4096 * at + 4096])
        sizes = (4096, 4096, 9014 - 8192)
        s.back.answer_rx(
            *(
                rx(number, size, flags=MORE if size == 4096 else 0)
                for (number, _), size in zip(taken, sizes, strict=True)
            )
        )
        s.run()
        assert list(s.nic.received) == [data]


def test_an_extra_that_says_a_hash_is_skipped_and_its_page_comes_back() -> None:
    with scene() as s:
        taken = slots(s, 2)
        s.back.fill(taken[0][1], frame(100))
        s.back.answer_rx(
            rx(taken[0][0], 100, flags=EXTRA), extra(4, body=bytes((1, 1, 9, 9, 9, 9)))
        )
        s.run()
        assert list(s.nic.received) == [frame(100)]
        s.back.take_posted()
        assert [number for number, _ in s.back.posted[-2:]] == [0, 1]


LOST = {
    "an error status": (lambda n: [rx(n, -1)], "received_errors"),
    "no whole header": (lambda n: [rx(n, 13)], "received_dropped"),
    "nothing at all": (lambda n: [rx(n, 0)], "received_dropped"),
}


@pytest.mark.parametrize(("build", "counter"), LOST.values(), ids=LOST)
def test_a_packet_that_is_lost_is_counted_and_the_ring_goes_on(
    build: Callable[[int], list[bytes]], counter: str
) -> None:
    with scene() as s:
        ((number, _),) = slots(s, 1)
        s.back.answer_rx(*build(number))
        s.run()
        assert not s.broken
        assert list(s.nic.received) == []
        assert getattr(s.nic.statistics, counter) == 1
        s.back.send(frame(60))
        s.run()
        assert list(s.nic.received) == [frame(60)]


BREAKING = {
    "bytes beyond the page": lambda n: [rx(n, 100, offset=3997)],
    "an offset beyond the page": lambda n: [rx(n, 1, offset=0xFFFF)],
    "another slot's id": lambda n: [rx(n + 1, 100)],
    "an id out of range": lambda n: [rx(0xFFFF, 100)],
    "more data that is not there": lambda n: [rx(n, 100, flags=MORE)],
    "extras that are not there": lambda n: [rx(n, 100, flags=EXTRA)],
    "a chain of extras that ends early": lambda n: [rx(n, 100, flags=EXTRA), extra(4, more=True)],
    "an extra of type 0": lambda n: [rx(n, 100, flags=EXTRA), extra(0)],
    "an extra of a type that was not negotiated": lambda n: [rx(n, 100, flags=EXTRA), extra(5)],
    "an extra of type 255": lambda n: [rx(n, 100, flags=EXTRA), extra(255)],
}


@pytest.mark.parametrize("build", BREAKING.values(), ids=BREAKING)
def test_what_cannot_be_breaks_the_interface(build: Callable[[int], list[bytes]]) -> None:
    with scene() as s:
        ((number, _),) = slots(s, 1)
        responses = build(number)
        slots(s, len(responses) - 1)
        s.nic.send_many([frame(60, source=GUEST_MAC, destination=PEER_MAC)] * 3)
        s.back.answer_rx(*responses)
        s.run()
        assert s.broken
        assert not s.nic.link_up
        assert [link.up for link in s.nic.links][-1] is False
        assert s.nic.in_flight == 0
        assert s.guest.shutdown() == 0


@pytest.mark.parametrize("index", [257, 300, 0x80000000, 0xFFFFFFFF])
def test_a_producer_beyond_what_is_posted_breaks_the_interface(index: int) -> None:
    with scene() as s:
        s.back.take_posted()
        s.back.store(s.back.rx, 8, index)
        s.back.notify()
        s.run()
        assert s.broken


def test_a_page_is_zeroed_before_it_is_posted_again() -> None:
    with scene() as s:
        slots(s, 1)
        receiver = s.pdo.frontend.queues[0].receiver
        assert receiver is not None
        s.back.fill(receiver.granter.refs[0], b"\xff" * 4096)
        s.back.answer_rx(rx(0, 60))
        s.run()
        assert s.guest.created.domain.read(receiver.granter.pfns[0], 0, 4096) == bytes(4096)


def test_a_page_that_is_still_mapped_when_it_is_answered_breaks_the_interface() -> None:
    with scene() as s:
        ((number, ref),) = slots(s, 1)
        domain = s.back.device.domain
        pfn = domain.holes.alloc()
        handle = domain.gnttab.map(s.guest.domid, ref, pfn)
        s.back.answer_rx(rx(number, 100))
        s.run()
        assert "in use" in s.broken
        frontend = s.pdo.frontend
        s.pdo.eject()
        s.run()
        assert len(frontend.quarantined) == 1
        domain.gnttab.unmap(handle, pfn)


def test_a_frame_longer_than_the_mtu_allows_is_dropped() -> None:
    with scene() as s:
        s.back.send(frame(1518), frame(1519))
        s.run()
        assert list(s.nic.received) == [frame(1518)]
        assert s.nic.statistics.received_dropped == 1


@settings(max_examples=120, deadline=None)
@given(
    raw=st.lists(
        st.tuples(
            st.integers(0, 3),  # how far off the id is, 0 for none mostly
            st.sampled_from([0, 0, 0, 1, 4000, 0xFFFF]),
            st.sampled_from([0, 0, 0, 1, MORE, EXTRA, MORE | EXTRA, BLANK, 0xFFFF]),
            st.sampled_from([60, 100, 1514, 0, -1, -32768, 4096, 32767]),
        ),
        max_size=30,
    ),
    producer=st.none() | st.integers(0, 0xFFFFFFFF),
)
def test_arbitrary_responses_never_raise_and_all_is_given_back(
    raw: list[tuple[int, int, int, int]], producer: int | None
) -> None:
    with scene() as s:
        s.back.take_posted()
        answers = [
            rx((number + (skew == 3)) % 256, status, offset=offset, flags=flags)
            for number, (skew, offset, flags, status) in enumerate(raw)
        ]
        if answers:
            s.back.answer_rx(*answers)
        s.run()
        if producer is not None:
            s.back.store(s.back.rx, 8, producer)
            s.back.notify()
            s.run()
        assert len(s.nic.received) <= len(raw)
        pdo = s.pdo
        assert s.guest.shutdown() == 0
        assert pdo.frontend.quarantined == []
