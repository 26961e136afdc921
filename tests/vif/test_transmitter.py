"""Slots, grants and completions of what a guest sends, against a backend in our hands."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vif.rawback import GUEST_MAC, PEER_MAC, Scene, frame, scene
from xenpv.errors import GrantError, LocalProtocolError

MORE = 4
OKAY, DROPPED, ERROR, NULL = 0, -2, -1, 1
UDP = bytes.fromhex("0800 4500 0000 0001 0000 4011 0000 0a000001 0a000002 1111 2222 0000 0000")


def out(size: int) -> bytes:
    return frame(size, source=GUEST_MAC, destination=PEER_MAC)


def udp(size: int) -> bytes:
    return (PEER_MAC + GUEST_MAC + UDP).ljust(size, b"\x33")


SINGLE = out(14)  # no payload, so Windows too takes one slot for it


def ids(slots: list[tuple[int, int, int, int, int]]) -> list[int]:
    return [slot[3] for slot in slots]


def answer_all(s: Scene, status: int = OKAY) -> int:
    """Answer what is on the ring until nothing comes any more; the number of slots."""
    total = 0
    while slots := s.back.sent():
        total += len(slots)
        s.back.answer_tx(*((number, status) for number in ids(slots)))
        s.run()
    return total


def test_windows_sends_headers_in_a_slot_of_their_own() -> None:
    with scene() as s:
        data = udp(1514)
        s.nic.send(data)
        first, second = s.back.sent()
        assert first[1:3] + first[4:] == (0, MORE, 1514)
        assert second[1:3] + second[4:] == (0, 0, 1514 - 42)
        assert s.back.payload(first[0], 0, 42) == data[:42]
        assert s.back.payload(second[0], 0, 1472) == data[42:]


def test_linux_sends_a_frame_in_one_slot() -> None:
    with scene("linux") as s:
        data = udp(1514)
        s.nic.send(data)
        (slot,) = s.back.sent()
        assert slot[1:3] + slot[4:] == (0, 0, 1514)
        assert s.back.payload(slot[0], 0, 1514) == data


def test_a_backend_without_sg_gets_whole_frames_in_one_slot() -> None:
    with scene(features={}) as s:
        s.nic.send(udp(1514))
        (slot,) = s.back.sent()
        assert slot[4] == 1514


@pytest.mark.parametrize("size", [15, 42, 59])
def test_windows_pads_short_frames_with_zeros(size: int) -> None:
    with scene() as s:
        s.nic.send(out(size))
        first, second = s.back.sent()
        assert (first[2], first[4], second[2], second[4]) == (MORE, 60, 0, 46)
        assert s.back.payload(first[0], 0, 14) == out(size)[:14]
        assert s.back.payload(second[0], 0, 50) == out(size)[14:].ljust(50, b"\0")
        s.back.answer_tx((first[3], OKAY), (second[3], OKAY))
        s.run()
        assert s.nic.statistics.sent_bytes == size


def test_windows_pads_headers_without_payload_in_their_slot() -> None:
    with scene() as s:
        s.nic.send(SINGLE)
        (slot,) = s.back.sent()
        assert slot[1:3] + slot[4:] == (0, 0, 60)
        assert s.back.payload(slot[0], 0, 64) == SINGLE.ljust(64, b"\0")


def test_linux_pads_nothing() -> None:
    with scene("linux") as s:
        s.nic.send(out(42))
        (slot,) = s.back.sent()
        assert slot[4] == 42


def test_a_large_frame_is_cut_at_pages() -> None:
    with scene(mtu=9000) as s:
        data = udp(9014)
        s.nic.send(data)
        slots = s.back.sent()
        assert [slot[4] for slot in slots] == [9014, 4096, 4096, 9014 - 42 - 8192]
        assert [slot[2] for slot in slots] == [MORE, MORE, MORE, 0]
        sizes = [42, *(slot[4] for slot in slots[1:])]
        parts = [s.back.payload(slot[0], 0, size) for slot, size in zip(slots, sizes, strict=True)]
        assert b"".join(parts) == data


def test_windows_ids_begin_at_1_and_are_not_used_twice_at_a_time() -> None:
    with scene() as s:
        s.nic.send_many([udp(1514)] * 300)
        used = ids(s.back.sent())
        assert len(used) == 256
        assert len(set(used)) == 256
        assert min(used) == 1
        assert max(used) <= 0x3FF


def test_pages_are_read_only_to_the_backend() -> None:
    with scene() as s:
        s.nic.send(SINGLE)
        ((ref, *_),) = s.back.sent()
        with pytest.raises(GrantError):
            s.back.fill(ref, b"x")


def test_the_grant_ends_with_the_response() -> None:
    with scene() as s:
        s.nic.send(SINGLE)
        ((ref, _, _, number, _),) = s.back.sent()
        s.back.answer_tx((number, OKAY))
        s.run()
        with pytest.raises(GrantError):
            s.back.payload(ref, 0, 60)


def test_a_page_shows_nothing_of_memory_that_was_not_meant() -> None:
    with scene() as s:
        domain = s.guest.created.domain
        dirty = [domain.pages.alloc() for _ in range(64)]
        for pfn in dirty:
            domain.write(pfn, 0, b"secret" * 600)
        for pfn in dirty:
            domain.pages.free(pfn)
        s.nic.send(udp(1514))
        first, second = s.back.sent()
        assert s.back.payload(first[0], 42, 4096 - 42) == bytes(4096 - 42)
        assert s.back.payload(second[0], 1472, 4096 - 1472) == bytes(4096 - 1472)


def test_packets_complete_when_every_slot_is_answered() -> None:
    with scene() as s:
        s.nic.send(udp(1514))
        first, second = s.back.sent()
        s.back.answer_tx((second[3], OKAY))
        s.run()
        assert s.nic.in_flight == 1
        s.back.answer_tx((first[3], OKAY))
        s.run()
        assert s.nic.in_flight == 0
        assert s.nic.statistics.sent_frames == 1
        assert s.nic.statistics.sent_bytes == 1514


@pytest.mark.parametrize(
    ("statuses", "dropped", "errors"),
    [
        ((DROPPED, OKAY), 1, 0),
        ((OKAY, DROPPED), 1, 0),
        ((ERROR, DROPPED), 1, 1),
        ((DROPPED, ERROR), 1, 0),
    ],
)
def test_the_first_status_that_is_not_okay_wins(
    statuses: tuple[int, int], dropped: int, errors: int
) -> None:
    with scene() as s:
        s.nic.send(udp(1514))
        s.back.answer_tx(*zip(ids(s.back.sent()), statuses, strict=True))
        s.run()
        seen = s.nic.statistics
        assert (seen.sent_frames, seen.sent_dropped, seen.sent_errors) == (0, dropped, errors)
        assert s.nic.in_flight == 0


def test_responses_may_come_in_any_order() -> None:
    with scene() as s:
        s.nic.send_many([udp(600 + n) for n in range(50)])
        s.back.answer_tx(*((number, OKAY) for number in reversed(ids(s.back.sent()))))
        s.run()
        assert s.nic.in_flight == 0
        assert s.nic.statistics.sent_bytes == sum(600 + n for n in range(50))
        assert not s.broken


def test_what_does_not_fit_waits_and_is_sent_in_order() -> None:
    with scene("linux") as s:
        frames = [out(60 + n) for n in range(700)]
        s.nic.send_many(frames)
        got = []
        while slots := s.back.sent():
            got += [s.back.payload(ref, 0, size) for ref, _, _, _, size in slots]
            s.back.answer_tx(*((number, OKAY) for number in ids(slots)))
            s.run()
        assert got == frames
        assert s.nic.in_flight == 0


@pytest.mark.parametrize("start", [0xFFFFFFF0, 0x7FFFFFFA])
def test_indices_wrap(start: int) -> None:
    with scene(start=start) as s:
        transmitter = s.pdo.frontend.queues[0].transmitter
        assert transmitter is not None
        for _ in range(20):
            s.nic.send_many([udp(1000)] * 7)
            assert answer_all(s) == 14
        assert s.nic.statistics.sent_frames == 140
        assert transmitter.posted == transmitter.answered == 280


def test_a_queue_short_of_references_sends_with_what_it_has() -> None:
    with scene("linux", connect=False) as s:
        s.guest.created.domain.gnttab.max_frames = 1
        s.xen.toolstack.unpause(s.guest.created)
        s.run()
        assert s.nic.link_up
        assert s.guest.bus is not None
        left = 480 - s.guest.bus.gnttab.permitted
        assert 0 < left < 256
        s.nic.send_many([out(60)] * 400)
        assert len(s.back.sent()) == left
        s.back.answer_tx(*((number, OKAY) for number in range(left)))
        s.run()
        assert left + answer_all(s) == 400
        assert s.nic.statistics.sent_frames == 400


HOSTILE = {
    "an id that was never used": [(999, OKAY)],
    "an id beyond the table": [(0xFFFF, OKAY)],
    "id 0, which Windows does not use": [(0, OKAY)],
    "a NULL without an extra": [(1, NULL)],
    "a status that is none": [(1, 2)],
    "another": [(1, -3)],
}


@pytest.mark.parametrize("responses", HOSTILE.values(), ids=HOSTILE)
def test_a_response_to_nothing_breaks_the_interface(responses: list[tuple[int, int]]) -> None:
    with scene() as s:
        s.nic.send(SINGLE)
        s.back.sent()
        s.back.answer_tx(*responses)
        s.run()
        assert s.broken
        assert not s.nic.link_up
        assert s.nic.in_flight == 0
        assert s.nic.statistics.sent_errors == 1


def test_a_second_response_to_a_slot_breaks_the_interface() -> None:
    with scene() as s:
        s.nic.send_many([SINGLE, SINGLE])
        one, _ = ids(s.back.sent())
        s.back.answer_tx((one, OKAY), (one, OKAY))
        s.run()
        assert "answers no slot" in s.broken
        assert s.nic.in_flight == 0
        assert s.nic.statistics.sent_frames == 1


@pytest.mark.parametrize("ahead", [1, 2, 255, 256, 257, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_producer_beyond_what_is_in_flight_breaks_the_interface(ahead: int) -> None:
    with scene() as s:
        s.nic.send(SINGLE)
        s.back.sent()
        s.back.store(s.back.tx, 8, 1 + ahead)
        s.back.notify()
        s.run()
        assert bool(s.broken) == (ahead != 0xFFFFFFFF)  # that is 0: nothing new
        assert s.nic.in_flight == (0 if s.broken else 1)


def test_a_grant_that_is_still_in_use_breaks_the_interface_and_keeps_the_page() -> None:
    with scene() as s:
        s.nic.send(SINGLE)
        ((ref, _, _, number, _),) = s.back.sent()
        domain = s.back.device.domain
        pfn = domain.holes.alloc()
        handle = domain.gnttab.map(s.guest.domid, ref, pfn, readonly=True)
        s.back.answer_tx((number, OKAY))
        s.run()
        assert "in use" in s.broken
        assert s.nic.statistics.sent_frames == 1
        frontend = s.pdo.frontend
        s.pdo.eject()
        s.run()
        assert len(frontend.quarantined) == 1
        assert s.guest.bus is not None
        assert s.guest.bus.gnttab.permitted == 1
        domain.gnttab.unmap(handle, pfn)


def test_a_broken_interface_takes_nothing_and_still_closes() -> None:
    with scene() as s:
        s.nic.send_many([udp(1000)] * 400)
        s.back.sent()
        s.back.answer_tx((1000, OKAY))
        s.run()
        assert s.nic.in_flight == 0
        with pytest.raises(LocalProtocolError):
            s.nic.send(out(60))
        assert s.guest.shutdown() == 0


@settings(max_examples=80, deadline=None)
@given(
    script=st.lists(
        st.one_of(
            st.tuples(st.just("send"), st.integers(1, 40)),
            st.tuples(st.just("answer"), st.integers(0, 80)),
            st.tuples(st.just("junk"), st.integers(0, 0xFFFFFFFF)),
            st.tuples(st.just("producer"), st.integers(0, 0xFFFFFFFF)),
        ),
        max_size=14,
    ),
    personality=st.sampled_from(["windows", "linux"]),
)
def test_whatever_a_backend_does_every_packet_comes_back_once(
    script: list[tuple[str, int]], personality: str
) -> None:
    with scene(personality) as s:
        sent = 0
        owed: list[int] = []
        for what, value in script:
            if what == "send" and s.nic.link_up:
                s.nic.send_many([udp(60 + value * 30)] * value)
                sent += value
            elif what == "answer" and not s.broken:
                owed += ids(s.back.sent())
                now, owed = owed[:value], owed[value:]
                if now:
                    s.back.answer_tx(*((number, OKAY) for number in now))
            elif what == "junk" and s.back.tx is not None and s.back.tx.in_flight:
                s.back.answer_tx((value & 0xFFFF, (value >> 16) % 4 - 2))
            elif what == "producer":
                s.back.store(s.back.tx, 8, value)
                s.back.notify()
            s.run()
        nic = s.nic
        assert s.guest.shutdown() == 0
        seen = nic.statistics
        assert nic.in_flight == 0
        assert seen.sent_frames + seen.sent_dropped == sent
