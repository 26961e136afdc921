"""The adapter that programs see, over the whole path to another guest."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vif.rawback import rings_at
from xenpv.errors import LocalProtocolError
from xenpv.net.adapter import Adapter, AdapterState
from xenpv.platform import Platform, Vif


def frame(source: Adapter, destination: Adapter, size: int, salt: int = 0) -> bytes:
    body = bytes(at * 7 + at // 251 + salt & 0xFF for at in range(size))
    return (destination.mac + source.mac + b"\x88\xb5" + body)[:size]


def pair(xen: Platform, personality: str = "windows", mtu: int | None = None) -> list[Adapter]:
    """Two guests on one bridge."""
    guests = [xen.create(name=name, vifs=[Vif(mtu=mtu)], personality=personality) for name in "ab"]
    return [guest.start().nets[0] for guest in guests]


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_every_size_up_to_the_mtu_arrives_byte_for_byte(personality: str) -> None:
    with Platform(seed=1) as xen:
        one, other = pair(xen, personality)
        there = [frame(one, other, size) for size in range(60, 1519)]
        back = [frame(other, one, size, 9) for size in range(60, 1519)]
        # A burst that the receiver has no slots for is dropped, as the schedule will have it.
        for at in range(0, len(there), 200):
            one.send_many(there[at : at + 200])
            other.send_many(back[at : at + 200])
            xen.run()
        assert list(other.received) == there
        assert list(one.received) == back
        assert one.in_flight == other.in_flight == 0


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_jumbo_frames_arrive_byte_for_byte(personality: str) -> None:
    with Platform(seed=1) as xen:
        one, other = pair(xen, personality, mtu=9000)
        frames = [
            frame(one, other, size) for size in (60, 4095, 4096, 4097, 8192, 8193, 9014, 9018)
        ]
        one.send_many(frames)
        xen.run()
        assert list(other.received) == frames


def test_a_short_frame_of_windows_arrives_padded() -> None:
    with Platform(seed=1) as xen:
        one, other = pair(xen)
        one.send(frame(one, other, 20))
        xen.run()
        assert list(other.received) == [frame(one, other, 20).ljust(60, b"\0")]


@pytest.mark.parametrize("personality", ["windows", "linux"])
@pytest.mark.parametrize("start", [0xFFFFFFF0, 0x7FFFFFF0])
def test_ring_indices_wrap_at_both_ends(personality: str, start: int) -> None:
    with Platform(seed=1) as xen, rings_at(start):
        one, other = pair(xen, personality)
        for turn in range(6):
            frames = [frame(one, other, 60 + n, turn) for n in range(300)]
            one.send_many(frames)
            xen.run()
            assert list(other.received)[-300:] == frames
        assert one.statistics.sent_frames == 1800
        assert other.statistics.received_frames == 1800


def test_statistics_count_frames_and_bytes() -> None:
    with Platform(seed=1) as xen:
        one, other = pair(xen)
        one.send_many([frame(one, other, 100), b"\xff" * 6 + one.mac + b"\x88\xb5" + bytes(46)])
        xen.run()
        assert (one.statistics.sent_frames, one.statistics.sent_bytes) == (2, 160)
        assert (other.statistics.received_frames, other.statistics.received_bytes) == (2, 160)


def test_frames_for_others_are_not_received() -> None:
    with Platform(seed=1) as xen:
        one, other = pair(xen)
        one.send(bytes.fromhex("00163e7f7f7f") + one.mac + b"\x88\xb5" + bytes(46))
        xen.run()
        assert list(other.received) == []
        assert other.statistics.received_dropped == 1


@attrs.define(eq=False)
class Echo:
    """A protocol that sends back whatever it gets, swapped."""

    nic: Adapter
    seen: int = 0

    def receive(self, frames: Sequence[bytes]) -> None:
        self.seen += len(frames)
        self.nic.send_many([data[6:12] + data[:6] + data[12:] for data in frames])


def test_a_receiver_may_send_from_inside_its_callback() -> None:
    with Platform(seed=1) as xen:
        one, other = pair(xen)
        other.receiver = Echo(other)
        frames = [frame(one, other, 60 + n) for n in range(600)]
        one.send_many(frames)
        xen.run()
        assert list(one.received) == [frame(other, one, 60 + n) for n in range(600)]
        assert other.receiver.seen == 600


def test_the_link_is_indicated_where_it_changes() -> None:
    with Platform(seed=1) as xen:
        one, _ = pair(xen)
        one.pause()
        one.pause()
        one.restart()
        assert [link.up for link in one.links] == [True, True, False, True]
        assert [link.speed for link in one.links] == [10**9, 10**11, 0, 10**11]


def test_a_paused_adapter_refuses_and_a_restarted_one_sends() -> None:
    with Platform(seed=1) as xen:
        one, other = pair(xen)
        one.send(frame(one, other, 60))
        one.pause()
        assert not one.link_up
        with pytest.raises(LocalProtocolError, match="paused"):
            one.send(frame(one, other, 61))
        xen.run()
        one.restart()
        one.send(frame(one, other, 62))
        xen.run()
        assert list(other.received) == [frame(one, other, 60), frame(one, other, 62)]
        assert one.in_flight == 0


def test_a_paused_adapter_does_not_receive_and_goes_on_after() -> None:
    with Platform(seed=1) as xen:
        one, other = pair(xen)
        other.pause()
        one.send(frame(one, other, 60))
        xen.run()
        assert list(other.received) == []
        other.restart()
        xen.run()
        one.send(frame(one, other, 61))
        xen.run()
        assert frame(one, other, 61) in other.received


def test_a_halted_adapter_stays_halted() -> None:
    with Platform(seed=1) as xen:
        one, _ = pair(xen)
        one.halt()
        assert one.state is AdapterState.HALTED
        with pytest.raises(LocalProtocolError, match="halted"):
            one.restart()
        with pytest.raises(LocalProtocolError, match="halted"):
            one.send(bytes(60))


@pytest.mark.parametrize("size", [0, 13, 1519])
def test_a_frame_that_cannot_be_is_refused_and_none_is_sent(size: int) -> None:
    with Platform(seed=1) as xen:
        one, other = pair(xen)
        with pytest.raises(LocalProtocolError, match="14 to 1518 fit"):
            one.send_many([frame(one, other, 60), bytes(size)])
        xen.run()
        assert list(other.received) == []
        assert one.in_flight == 0


def test_what_is_kept_of_what_arrived_is_bounded() -> None:
    with Platform(seed=1) as xen:
        one, other = pair(xen)
        for _ in range(5):
            one.send_many([frame(one, other, 60)] * 1000)
            xen.run()
        assert len(other.received) == 4096


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    turns=st.lists(
        st.tuples(st.booleans(), st.lists(st.integers(60, 1518), max_size=300)), max_size=5
    ),
    personality=st.sampled_from(["windows", "linux"]),
)
def test_frames_arrive_once_and_in_order_under_any_schedule(
    seed: int, turns: list[tuple[bool, list[int]]], personality: str
) -> None:
    with Platform(seed=seed) as xen:
        ends = pair(xen, personality)
        sent: list[list[bytes]] = [[], []]
        for turn, (way, sizes) in enumerate(turns):
            frames = [frame(ends[way], ends[not way], size, turn) for size in sizes]
            ends[way].send_many(frames)
            sent[way] += frames
        xen.run()
        assert list(ends[0].received) == sent[1]
        assert list(ends[1].received) == sent[0]
        assert [end.in_flight for end in ends] == [0, 0]


class Sent:
    """A protocol that keeps what comes back, in order."""

    def __init__(self) -> None:
        self.completions: list[tuple[int, int]] = []

    def sent(self, completions: Sequence[tuple[int, ...]]) -> None:
        self.completions += [(number, status) for number, status, *_ in completions]


def test_each_frame_comes_back_once_by_its_number() -> None:
    with Platform(seed=3) as xen:
        one, other = pair(xen)
        one.sender = sent = Sent()
        first = one.send(frame(one, other, 100))
        rest = one.send_many([frame(one, other, 100)] * 300)
        assert (first, list(rest)) == (0, list(range(1, 301)))
        assert one.in_flight > 0
        xen.run()
        assert sorted(sent.completions) == [(number, 2) for number in range(301)]
        assert one.in_flight == 0
