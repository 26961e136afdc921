"""NET_BUFFER_LISTs down and up: statuses, completions, what is lent."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import pytest

from tests.net.test_adapter import frame, pair
from xenpv.errors import LocalProtocolError
from xenpv.net.nbl import ChecksumRequest, NetBufferList
from xenpv.net.ndis import NdisStatus
from xenpv.platform import Platform

RESOURCES = 2


@attrs.define(eq=False)
class Lists:
    """A protocol of lists that keeps what it gets."""

    got: list[NetBufferList] = attrs.field(factory=list)
    done: list[NetBufferList] = attrs.field(factory=list)

    def receive_lists(self, lists: Sequence[NetBufferList]) -> None:
        self.got += lists

    def sent_lists(self, lists: Sequence[NetBufferList]) -> None:
        self.done += lists


def test_lists_arrive_in_order_and_are_completed_once() -> None:
    with Platform(seed=1) as xen:
        one, other = pair(xen)
        one.list_sender = ours = Lists()
        other.list_receiver = theirs = Lists()
        frames = [frame(one, other, 60 + n) for n in range(12)]
        sent = [NetBufferList(tuple(frames[at : at + 3])) for at in range(0, 12, 3)]
        numbers = one.send_lists(sent)
        assert [one.status for one in sent] == [NdisStatus.PENDING] * 4
        assert (numbers, one.in_flight) == (range(12), 12)
        xen.run()
        assert [each.buffers for each in theirs.got] == [(data,) for data in frames]
        assert sorted(map(id, ours.done)) == sorted(map(id, sent))
        assert [one.status for one in sent] == [NdisStatus.SUCCESS] * 4
        assert one.in_flight == 0
        assert list(other.received) == []


BEYOND = [
    {"checksum": ChecksumRequest.IS_IPV4 | ChecksumRequest.TCP},
    {"checksum": ChecksumRequest.IS_IPV4 | ChecksumRequest.IP_HEADER},
    {"checksum": ChecksumRequest.IS_IPV6 | ChecksumRequest.UDP},
    {"mss": 1460},
    {"mss": 1440, "is_ipv6": True},
    {"priority": 8},
    {"priority": -1},
    {"mss": 0x10000},
]


@pytest.mark.parametrize("beyond", BEYOND, ids=str)
def test_a_list_beyond_what_is_switched_on_fails_and_sends_nothing(beyond: dict[str, int]) -> None:
    with Platform(seed=1) as xen:
        one, other = pair(xen)
        one.list_sender = ours = Lists()
        bad = NetBufferList((frame(one, other, 60), frame(one, other, 61)), **beyond)
        good = NetBufferList((frame(one, other, 62),))
        assert one.send_lists([bad, good]) == range(1)
        assert (bad.status, good.status) == (NdisStatus.FAILURE, NdisStatus.PENDING)
        assert ours.done == [bad]
        xen.run()
        assert list(other.received) == [frame(one, other, 62)]
        assert ours.done == [bad, good]


@pytest.mark.parametrize("buffers", [(), (b"",)])
def test_a_list_without_data_is_not_accepted(buffers: tuple[bytes, ...]) -> None:
    with Platform(seed=1) as xen:
        one, _ = pair(xen)
        nbl = NetBufferList(buffers)
        assert one.send_lists([nbl]) == range(0)
        assert nbl.status is NdisStatus.NOT_ACCEPTED


def test_frames_behind_one_without_data_are_not_sent() -> None:
    with Platform(seed=1) as xen:
        one, other = pair(xen)
        nbl = NetBufferList((frame(one, other, 60), b"", frame(one, other, 61)))
        one.send_lists([nbl])
        xen.run()
        assert list(other.received) == [frame(one, other, 60)]
        assert (nbl.status, nbl.pending) == (NdisStatus.SUCCESS, 0)


def test_lists_are_not_accepted_while_the_link_is_down() -> None:
    with Platform(seed=1) as xen:
        one, other = pair(xen)
        one.pause()
        nbl = NetBufferList((frame(one, other, 60), frame(one, other, 61)))
        one.send_lists([nbl])
        assert (nbl.status, nbl.pending, one.in_flight) == (NdisStatus.NOT_ACCEPTED, 0, 0)


@pytest.mark.parametrize(
    ("sizes", "status"),
    [
        ((1519,), NdisStatus.NOT_ACCEPTED),
        ((13,), NdisStatus.NOT_ACCEPTED),
        ((1519, 60), NdisStatus.SUCCESS),
    ],
)
def test_a_list_has_the_status_of_the_frame_that_came_back_last(
    sizes: tuple[int, ...], status: NdisStatus
) -> None:
    with Platform(seed=1) as xen:
        one, other = pair(xen)
        nbl = NetBufferList(tuple(frame(one, other, size) for size in sizes))
        one.send_lists([nbl])
        xen.run()
        assert nbl.status is status


def test_a_list_that_is_below_cannot_be_sent_again() -> None:
    with Platform(seed=1) as xen:
        one, other = pair(xen)
        nbl = NetBufferList((frame(one, other, 60),))
        one.send_lists([nbl])
        with pytest.raises(LocalProtocolError, match="not complete"):
            one.send_lists([nbl])
        xen.run()
        one.send_lists([nbl])
        xen.run()
        assert list(other.received) == [frame(one, other, 60)] * 2


def test_above_1024_outstanding_lists_are_lent_for_the_indication_alone() -> None:
    with Platform(seed=1) as xen:
        one, other = pair(xen)
        other.list_receiver = theirs = Lists()
        frames = [frame(one, other, 60, n) for n in range(1100)]
        for at in range(0, 1100, 100):
            one.send_many(frames[at : at + 100])
            xen.run()
        assert [nbl.buffers[0] for nbl in theirs.got] == frames
        kept = [nbl for nbl in theirs.got if not nbl.flags & RESOURCES]
        assert 900 < len(kept) <= 1024
        assert theirs.got[: len(kept)] == kept
        other.return_lists(kept)
        theirs.got.clear()
        one.send_many(frames[:100])
        xen.run()
        assert [nbl.flags & RESOURCES for nbl in theirs.got] == [0] * 100


def test_a_list_goes_back_once_and_none_that_was_lent_for_its_indication() -> None:
    with Platform(seed=1) as xen:
        one, other = pair(xen)
        other.list_receiver = theirs = Lists()
        one.send_many([frame(one, other, 60)] * 2)
        xen.run()
        first, second = theirs.got
        with pytest.raises(LocalProtocolError, match="not outstanding"):
            other.return_lists([first, first])
        other.return_lists([first])
        with pytest.raises(LocalProtocolError, match="not outstanding"):
            other.return_lists([second, first])
        other.return_lists([second])
