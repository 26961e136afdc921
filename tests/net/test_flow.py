"""Receive flow control: what is lent, when lists carry RESOURCES, when the interface pauses."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.net.test_adapter import frame, pair
from tests.net.test_lists import Lists
from xenpv.net.nbl import NetBufferList
from xenpv.platform import Platform, Vif
from xenpv.vif.interface import ReceiverPacket

LIMIT = 1024
RESOURCES = 2
VLAN = 5


@settings(max_examples=60, deadline=None)
@given(
    turns=st.lists(
        st.tuples(st.integers(0, 700), st.integers(0, 30), st.integers(0, 1400), st.booleans()),
        max_size=12,
    )
)
def test_lists_are_lent_up_to_1024_and_no_cookie_is_lost(
    turns: list[tuple[int, int, int, bool]],
) -> None:
    """Indications of a number of packets, some of them of a VLAN, then some lists go back."""
    with Platform(seed=1) as xen:
        nic = xen.create(name="g", vifs=[Vif()]).start().nets[0]
        nic.list_receiver = lists = Lists()
        lent = nic._vif._frontend.receiver.lent
        held: list[NetBufferList] = []
        cookie = 0
        for count, tagged, back, newest in turns:
            packets = [ReceiverPacket(bytes(60), cookie=cookie + n) for n in range(count)]
            packets += [
                ReceiverPacket(bytes(60), tci=VLAN, cookie=cookie + count + n)
                for n in range(tagged)
            ]
            cookie += count + tagged
            lent.update(dict.fromkeys(packet.cookie for packet in packets))
            paused = nic.receiver_queue_packets(0, packets)
            scarce = len(held) + count > LIMIT
            assert paused == scarce
            assert [nbl.flags & RESOURCES for nbl in lists.got] == [RESOURCES * scarce] * count
            assert [nbl.cookie for nbl in lists.got] == list(range(cookie)[-count - tagged :])[
                :count
            ]
            if not scarce:
                held += lists.got
            lists.got = []
            assert list(lent) == [nbl.cookie for nbl in held]
            cut = max(len(held) - back, 0) if newest else min(back, len(held))
            first, rest = held[:cut], held[cut:]
            returned, held = (rest, first) if newest else (first, rest)
            nic.return_lists(returned)
            assert list(lent) == [nbl.cookie for nbl in held]
        nic.return_lists(held)
        assert lent == {}


@attrs.define(eq=False)
class Slow:
    """A protocol that keeps every list, but those that it must let go."""

    frames: list[bytes] = attrs.field(factory=list)
    kept: list[NetBufferList] = attrs.field(factory=list)

    def receive_lists(self, lists: Sequence[NetBufferList]) -> None:
        self.frames += [nbl.buffers[0] for nbl in lists]
        self.kept += [nbl for nbl in lists if not nbl.flags & RESOURCES]


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    bursts=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 400)), max_size=14),
)
def test_a_slow_protocol_holds_no_more_than_it_may_and_gets_the_rest_in_order(
    seed: int, bursts: list[tuple[int, int]]
) -> None:
    with Platform(seed=seed) as xen:
        one, other = pair(xen)
        other.list_receiver = slow = Slow()
        sent = []
        for number, (burst, back) in enumerate(bursts):
            frames = [frame(one, other, 60 + n, number) for n in range(burst)]
            one.send_many(frames)
            sent += frames
            xen.run()
            assert len(slow.kept) <= LIMIT
            other.return_lists(slow.kept[:back])
            del slow.kept[:back]
            xen.run()
        other.return_lists(slow.kept)
        xen.run()
        # What the backend has no slots for while the interface pauses expires there.
        rest = iter(sent)
        assert all(data in rest for data in slow.frames)
        if len(sent) <= LIMIT:
            assert slow.frames == sent
        assert other._vif._frontend.receiver.lent == {}


def test_what_is_returned_ends_a_pause() -> None:
    with Platform(seed=1) as xen:
        one, other = pair(xen)
        other.list_receiver = slow = Slow()
        for turn in range(13):
            one.send_many([frame(one, other, 60, turn)] * 100)
            xen.run()
        assert len(slow.kept) == 1000 < len(slow.frames) < 1300
        other.return_lists(slow.kept)
        slow.kept.clear()
        xen.run()
        assert len(slow.frames) == 1300


@pytest.mark.parametrize(
    ("held", "count", "scarce"),
    [(0, 1024, False), (0, 1025, True), (1023, 1, False), (1023, 2, True), (1024, 1, True), (1024, 0, False)],
)  # fmt: skip
def test_the_1025th_list_is_one_too_many(held: int, count: int, scarce: bool) -> None:
    with Platform(seed=1) as xen:
        nic = xen.create(name="g", vifs=[Vif()]).start().nets[0]
        nic.list_receiver = lists = Lists()
        lent = nic._vif._frontend.receiver.lent
        for first, number in ((0, held), (held, count)):
            packets = [ReceiverPacket(bytes(60), cookie=first + n) for n in range(number)]
            lent.update(dict.fromkeys(packet.cookie for packet in packets))
            paused = nic.receiver_queue_packets(0, packets)
        assert paused == scarce
        assert [one.flags & RESOURCES for one in lists.got] == [0] * held + [
            RESOURCES * scarce
        ] * count
