"""An rx ring for which there are too few pages: XenVif gives up, netfront posts what it has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
import pytest

from tests.vif.rawback import Scene, frame, rx, scene
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.errors import HypercallError
from xenpv.vif.frontend import FrontendState
from xenpv.vif.rxring import ReceiverRing


@attrs.define(eq=False)
class Short:
    """A ring of its own beside the interface's, with `hold` references held back from it."""

    s: Scene
    ring: ReceiverRing
    hold: list[int]

    def spare(self, count: int) -> None:
        """Let that many references go."""
        gnttab = self.s.pdo.frontend.bus.gnttab
        for _ in range(count):
            assert gnttab.revoke_foreign_access(self.hold.pop())

    @property
    def in_flight(self) -> int:
        return self.ring.posted - self.ring.answered

    def deliver(self, *frames: bytes) -> list[bytes]:
        """Into the next slots that are posted; what the ring makes of it."""
        s = self.s
        s.back.take_posted()
        responses = []
        for data in frames:
            number, ref = s.back.posted.pop(0)
            s.back.fill(ref, data)
            responses.append(rx(number, len(data)))
        assert s.back.rx is not None
        s.back.rx.push(b"".join(responses), len(responses))
        batch, _ = self.ring.receive()
        assert batch is not None
        starts: Sequence[int] = (0, *batch.ends)
        return [bytes(batch.data[at:end]) for at, end in zip(starts, batch.ends, strict=False)]


def short(s: Scene, spare: int) -> Short:
    bus = s.pdo.frontend.bus
    ring = ReceiverRing(bus, 0, "short", gso_types=())
    hold: list[int] = []
    bus.domain.gnttab.max_frames = 2
    try:
        while True:
            hold += bus.gnttab.reserve(1)
    except HypercallError:
        pass
    s.back.rx = s.back._ring(ring.ref, 8, 8)
    s.back.posted.clear()
    made = Short(s, ring, hold)
    made.spare(spare)
    return made


@pytest.fixture
def s() -> Iterator[Scene]:
    with scene("linux") as one:
        yield one


def test_xenvif_posts_nothing_where_it_cannot_post_all() -> None:
    with scene("windows") as s:
        one = short(s, 255)
        with pytest.raises(HypercallError, match="ENOSPC"):
            one.ring.fill()
        assert one.in_flight == 0


def test_enable_fails_where_the_slots_cannot_all_be_posted() -> None:
    with scene("windows") as s:
        frontend = s.pdo.frontend
        callbacks = frontend.callbacks
        assert callbacks is not None
        frontend.disable()
        one = short(s, 255)
        queue = frontend.queues[0]
        whole, queue.receiver = queue.receiver, one.ring
        with pytest.raises(NtStatusError) as raised:
            frontend.enable(callbacks)
        assert raised.value.status is NTSTATUS.INSUFFICIENT_RESOURCES
        assert frontend.state is FrontendState.CONNECTED
        one.spare(1)
        frontend.enable(callbacks)
        assert one.in_flight == 256
        frontend.disable()
        queue.receiver = whole
        one.ring.release()


@pytest.mark.parametrize("spare", [1, 18, 19, 100, 255])
def test_netfront_posts_what_it_has_and_goes_on_with_it(s: Scene, spare: int) -> None:
    one = short(s, spare)
    one.ring.fill()
    assert one.in_flight == spare
    frames = [frame(60 + n) for n in range(600)]
    got: list[bytes] = []
    for at in range(0, 600, spare):
        got += one.deliver(*frames[at : at + spare])
        assert one.in_flight == spare
    assert got == frames
    one.ring.release()


@pytest.mark.parametrize(("spare", "later"), [(0, 100), (18, 100), (19, None)])
def test_below_19_slots_netfront_tries_again_after_100_ms(
    s: Scene, spare: int, later: int | None
) -> None:
    one = short(s, spare)
    one.ring.fill()
    one.spare(50)
    s.xen.advance(0.099)
    assert one.in_flight == spare
    s.xen.advance(0.001)
    assert one.in_flight == (spare + 50 if later else spare)
    one.ring.release()


def test_the_ring_fills_up_while_it_is_polled(s: Scene) -> None:
    one = short(s, 30)
    one.ring.fill()
    one.spare(40)
    assert one.deliver(frame(60)) == [frame(60)]
    assert one.in_flight == 70
    one.spare(186)
    for n in range(300):
        assert one.deliver(frame(61 + n)) == [frame(61 + n)]
    assert one.in_flight == 256
    one.ring.release()


def test_a_ring_that_is_stopped_posts_nothing_any_more(s: Scene) -> None:
    one = short(s, 0)
    one.ring.fill()
    one.spare(50)
    one.ring.stop()
    s.xen.advance(1)
    assert one.in_flight == 0
    one.ring.release()
