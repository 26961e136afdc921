"""Packets that are lent to the driver above: pauses, retries, and Disable that waits for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import pack

import attrs
import pytest
from scapy.layers.inet import TCP

from tests.vif.rawback import Scene, frame, scene
from tests.vif.rxscene import BLANK, V4, VALIDATED, deliver, ether, gso, payload, upper_scene
from xenpv.abi.xenbus import XenbusState as State
from xenpv.errors import LocalProtocolError
from xenpv.vif.callbacks import Completion
from xenpv.vif.frontend import FrontendState
from xenpv.vif.packet import ReceiverPacket


@attrs.define(eq=False)
class Upper:
    """A driver above XenVif that keeps what it gets; it asks for a pause from `limit` on."""

    limit: int = 1 << 30
    kept: list[ReceiverPacket] = attrs.field(factory=list)
    calls: list[tuple[int, int]] = attrs.field(factory=list)  # queue, packets
    returned: list[Completion] = attrs.field(factory=list)

    def transmitter_return_packets(self, completions: Sequence[Completion]) -> None:
        self.returned += completions

    def receiver_queue_packets(self, index: int, packets: Sequence[ReceiverPacket]) -> bool:
        self.calls.append((index, len(packets)))
        self.kept += packets
        return len(self.kept) >= self.limit

    def mac_state_change(self) -> None: ...

    @property
    def frames(self) -> list[bytes]:
        return [one.data for one in self.kept]

    def give(self, s: Scene, count: int) -> None:
        """Return the oldest."""
        back, self.kept = self.kept[:count], self.kept[count:]
        s.pdo.frontend.receiver_return_packets([one.cookie for one in back])
        s.run()


@pytest.fixture
def s() -> Iterator[Scene]:
    with scene() as one:
        yield one


def above(s: Scene, limit: int = 1 << 30) -> Upper:
    upper = Upper(limit)
    s.pdo.frontend.callbacks = upper
    return upper


FRAMES = [frame(60 + n) for n in range(400)]


def test_each_packet_has_a_cookie_of_its_own_and_is_lent_until_it_is_returned(s: Scene) -> None:
    upper = above(s)
    s.back.send(*FRAMES[:5])
    s.run()
    cookies = [one.cookie for one in upper.kept]
    assert len(set(cookies)) == 5
    assert list(s.pdo.frontend.receiver.lent) == cookies
    upper.give(s, 5)
    assert not s.pdo.frontend.receiver.lent


@pytest.mark.parametrize("cookies", [[99], [0, 0], [0, 99]])
def test_what_is_not_lent_cannot_be_returned(s: Scene, cookies: list[int]) -> None:
    upper = above(s)
    s.back.send(*FRAMES[:2])
    s.run()
    first = upper.kept[0].cookie
    with pytest.raises(LocalProtocolError, match="is not lent"):
        s.pdo.frontend.receiver_return_packets([first + one for one in cookies])


def test_a_pause_leaves_responses_on_the_ring_until_something_comes_back(s: Scene) -> None:
    upper = above(s, limit=100)
    s.back.send(*FRAMES[:100])
    s.run()
    for at in range(100, 200, 50):
        s.back.send(*FRAMES[at : at + 50])
        s.run()
    assert upper.frames == FRAMES[:100]
    s.back.take_posted()
    assert len(s.back.posted) == 256 - 100  # what was not polled is not posted again
    upper.give(s, 1)
    # The next look at the ring takes all that is there, and ends in a pause again.
    assert upper.frames == FRAMES[1:200]
    assert upper.calls == [(0, 100), (0, 100)]


def test_a_pause_does_not_stop_what_is_sent(s: Scene) -> None:
    upper = above(s, limit=1)
    s.back.send(FRAMES[0])
    s.run()
    s.pdo.frontend.send([frame(60)], [7])
    s.run()
    s.back.answer_tx(*[(number, 0) for _, _, _, number, _ in s.back.sent()])
    s.run()
    assert [one[:2] for one in upper.returned] == [(7, 2)]


def test_a_driver_that_returned_all_and_still_asks_for_a_pause_gets_what_comes(s: Scene) -> None:
    class Prompt(Upper):
        def receiver_queue_packets(self, index: int, packets: Sequence[ReceiverPacket]) -> bool:
            super().receiver_queue_packets(index, packets)
            s.pdo.frontend.receiver_return_packets([one.cookie for one in packets])
            return True

    upper = Prompt()
    s.pdo.frontend.callbacks = upper
    for at in range(0, 400, 100):
        s.back.send(*FRAMES[at : at + 100])
        s.run()
    assert upper.frames == FRAMES


def test_disable_waits_for_every_lent_packet_and_close_waits_with_it(s: Scene) -> None:
    upper = above(s)
    s.back.send(*FRAMES[:3])
    s.run()
    frontend = s.pdo.frontend
    s.pdo.eject()
    s.run()
    assert frontend.state is FrontendState.DISABLING
    assert s.back.states[-1] is State.CONNECTED
    upper.give(s, 2)
    assert frontend.state is FrontendState.DISABLING
    upper.give(s, 1)
    assert frontend.state is FrontendState.CLOSED
    assert s.back.states[-1] is State.CLOSED


def test_enable_while_disabling_is_put_off_until_the_last_packet_is_back(s: Scene) -> None:
    upper = above(s)
    frontend = s.pdo.frontend
    s.back.send(*FRAMES[:2])
    s.run()
    frontend.disable()
    frontend.enable(upper)
    assert frontend.state is FrontendState.DISABLING
    s.back.send(FRAMES[2])
    s.run()
    assert upper.frames == FRAMES[:2]
    upper.give(s, 2)
    assert frontend.state is FrontendState.ENABLED
    assert upper.frames == [FRAMES[2]]


def test_a_second_disable_takes_the_enable_back(s: Scene) -> None:
    upper = above(s)
    frontend = s.pdo.frontend
    s.back.send(FRAMES[0])
    s.run()
    frontend.disable()
    frontend.enable(upper)
    frontend.disable()
    upper.give(s, 1)
    assert frontend.state is FrontendState.CONNECTED


def test_nothing_is_waited_for_where_all_is_back(s: Scene) -> None:
    upper = above(s)
    s.back.send(FRAMES[0])
    s.run()
    upper.give(s, 1)
    s.pdo.frontend.disable()
    assert s.pdo.frontend.state is FrontendState.CONNECTED


def test_a_directory_that_vanishes_closes_when_the_last_packet_is_back(s: Scene) -> None:
    upper = above(s)
    s.back.send(FRAMES[0])
    s.run()
    frontend = s.pdo.frontend
    s.pdo.vanish()
    s.run()
    assert frontend.state is FrontendState.DISABLING
    upper.give(s, 1)
    s.back.disconnect()
    s.back.device.switch_state(State.CLOSED)
    s.run()
    assert frontend.state is FrontendState.CLOSED


@pytest.mark.parametrize("own", [True, False])
def test_versions_8_and_9_pause_by_themselves_after_1024_in_one_run(own: bool) -> None:
    """A large packet becomes 2,500 segments; another DPC goes on where one left off."""
    with upper_scene() as (s, upper):
        poller = s.pdo.frontend.queues[0].pollers[0]
        woken: list[int] = []
        trigger = poller.trigger

        def counted() -> None:
            woken.append(len(upper.calls))
            trigger()

        poller.trigger = counted  # type: ignore[method-assign] # a look at who calls it
        s.pdo.frontend.receiver.pauses_itself = own
        data = ether(V4 / TCP(flags="A") / payload(2500))
        deliver(s, data, flags=VALIDATED | BLANK, extras=[gso(1)])
        assert upper.calls == [1024, 1024, 452]
        assert woken == ([1, 2] if own else [])


def test_a_pause_stops_in_the_middle_of_a_large_packet() -> None:
    with upper_scene() as (s, _):
        upper = above(s, limit=1)
        data = ether(V4 / TCP(flags="A") / payload(2500))
        deliver(s, data, flags=VALIDATED | BLANK, extras=[gso(1)])
        assert len(upper.kept) == 1024
        assert s.nic.statistics.received_frames == 1024
        upper.give(s, 1)
        assert len(upper.kept) == 1023 + 1024
        s.pdo.frontend.disable()
        assert s.nic.statistics.received_frames == 2048
        assert s.nic.statistics.received_dropped == 452


def test_packets_that_are_lent_over_a_resume_can_still_be_returned(s: Scene) -> None:
    upper = above(s)
    s.back.send(*FRAMES[:3])
    s.run()
    s.guest.suspend()
    s.guest.resume(fast=False)
    frontend = s.pdo.frontend
    assert len(frontend.receiver.lent) == 3
    frontend.callbacks = upper
    s.back.send(FRAMES[3])
    s.run()
    upper.give(s, 4)
    assert not frontend.receiver.lent
    assert frontend.state is FrontendState.ENABLED


def test_a_suspend_while_disabling_ends_the_wait(s: Scene) -> None:
    upper = above(s)
    s.back.send(*FRAMES[:3])
    s.run()
    frontend = s.pdo.frontend
    frontend.disable()
    assert frontend.state is FrontendState.DISABLING
    s.guest.suspend()
    s.guest.resume(fast=False)
    assert frontend.state in (FrontendState.CONNECTED, FrontendState.ENABLED)
    upper.give(s, 3)
    assert frontend.state in (FrontendState.CONNECTED, FrontendState.ENABLED)


def test_a_pause_ends_with_the_connection(s: Scene) -> None:
    upper = above(s, limit=1)
    s.back.send(FRAMES[0])
    s.run()
    assert s.pdo.frontend.queues[0].is_paused
    s.guest.suspend()
    s.guest.resume(fast=False)
    s.pdo.frontend.callbacks = upper
    s.back.send(FRAMES[1])
    s.run()
    assert upper.frames == FRAMES[:2]


@pytest.mark.parametrize(("split", "polled"), [("1", False), ("0", True)])
def test_the_event_of_a_split_rx_channel_does_not_look_at_tx(split: str, polled: bool) -> None:
    features = {"feature-sg": "1", "feature-split-event-channels": split}
    with scene(features=features) as s:
        upper = above(s)
        frontend = s.pdo.frontend
        frontend.send([frame(60)], [7])
        s.run()
        back = s.back
        assert back.tx is not None
        answers = [pack("<Hh", number, 0) for _, _, _, number, _ in back.sent()]
        back.tx.push(b"".join(answers), len(answers))
        back.ports, every = back.ports[-1:], back.ports  # the last is that of rx
        back.send(FRAMES[0])
        s.run()
        assert upper.frames == FRAMES[:1]
        assert bool(upper.returned) is polled
        back.ports = every
        back.notify()
        s.run()
        assert len(upper.returned) == 1


def test_a_frontend_that_never_stops_being_told_goes_on_with_other_work(s: Scene) -> None:
    """The backend answers inside every call; the event is forced after 256 rounds."""
    back = s.back

    class Endless(Upper):
        def receiver_queue_packets(self, index: int, packets: Sequence[ReceiverPacket]) -> bool:
            super().receiver_queue_packets(index, packets)
            s.pdo.frontend.receiver_return_packets([one.cookie for one in packets])
            if len(self.calls) < 1000:
                back.send(FRAMES[0])
            return False

    upper = Endless()
    s.pdo.frontend.callbacks = upper
    back.send(FRAMES[0])
    s.run()
    assert len(upper.calls) == 1000
