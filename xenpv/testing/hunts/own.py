"""Scenarios of an end of one's own: `factory` makes it, as for testing.ends.user_*.

Each pair is one that asks for good work, and one under a peer whose memory changes at any moment:
there the end may break its device, but no more than that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs

from xenpv.abi.layout import packer
from xenpv.errors import LocalProtocolError, PeerProtocolError
from xenpv.testing.ends import (
    user_blk_backend,
    user_blk_frontend,
    user_net_backend,
    user_net_frontend,
)
from xenpv.testing.explorer import Explorer
from xenpv.testing.raw_front import RawNetFront
from xenpv.testing.scenarios import REQUESTS, BlkClient
from xenpv.xen.loop import Task

TX_REQUEST: Final = packer("netif_tx_request")
TX_RESPONSE: Final = packer("netif_tx_response")
RX_REQUEST: Final = packer("netif_rx_request")
FRAMES: Final = 4
FRAME_BYTES: Final = 64
FOR_ALL: Final = b"\xff" * 6 + b"\x06" + bytes(5) + b"\x88\xb5" + bytes(46)
SECTORS: Final = 8

# A scenario that is told who makes the end under test.
EndScenario = Callable[[Explorer, Any], None]


def blk_backend_requests(x: Explorer, factory: Any) -> None:
    """Requests from a frontend that sends while earlier ones are worked on: each is answered
    once, and well.
    """
    world = user_blk_backend(factory)
    x.adopt(world.platform)
    client = BlkClient(world.vbd, REQUESTS)
    client.start()
    x.begin()
    world.run()
    x.check()
    assert sorted(client.answers) == [(rid, 0) for rid in range(REQUESTS)]


def blk_backend_attacked(x: Explorer, factory: Any) -> None:
    """The same from a frontend whose memory changes at any moment."""
    world = user_blk_backend(factory)
    x.adopt(world.platform)
    BlkClient(world.vbd, REQUESTS, spoilt=True).start()
    x.attack(world.platform.dom0)
    x.begin()
    world.run()
    x.check()


@attrs.define(eq=False)
class NetClient:
    """The barest network frontend: a frame each time its task runs, rx pages posted before."""

    front: RawNetFront
    spoilt: bool = False
    page: int = attrs.field(init=False)
    ref: int = attrs.field(init=False)
    sent: list[bytes] = attrs.field(factory=list)
    answers: list[tuple[int, int]] = attrs.field(factory=list)
    task: Task = attrs.field(init=False)

    def start(self) -> None:
        """Post the rx pages and make the task due."""
        guest = self.front.guest
        self.page = guest.page()
        self.ref = guest.grant(self.page, readonly=True)
        pages = guest.page(FRAMES)
        posted = [RX_REQUEST.pack(at, 0, guest.grant(pages + at)) for at in range(FRAMES)]
        self.front.rx.push(b"".join(posted), FRAMES)
        self.front.on_event = self.complete
        self.task = self.front.domain.task("app", self.send)
        self.task.wake()

    def send(self) -> None:
        number = len(self.sent)
        frame = b"\xff" * 6 + b"\x02" + bytes(5) + b"\x88\xb5" + bytes([number]) * 50
        self.sent.append(frame)
        self.front.domain.write(self.page, number * FRAME_BYTES, frame)
        request = TX_REQUEST.pack(self.ref, number * FRAME_BYTES, 0, number, len(frame))
        if self.front.tx.push(request, 1):
            self.front.notify()
        if len(self.sent) < FRAMES:
            self.task.wake()

    def complete(self) -> None:
        try:
            self.answers += [TX_RESPONSE.unpack(raw)[:2] for raw in self.front.tx.take()]
        except PeerProtocolError:
            if not self.spoilt:
                raise


def net_backend_frames(x: Explorer, factory: Any) -> None:
    """Frames from a frontend that sends while earlier ones are worked on: all are on the bridge,
    in order, and each is answered once.
    """
    world = user_net_backend(factory)
    x.adopt(world.platform)
    client = NetClient(world.vif)
    client.start()
    x.begin()
    world.run()
    x.check()
    assert client.answers == [(number, 0) for number in range(FRAMES)]
    assert list(world.bridge.frames) == client.sent


def net_backend_attacked(x: Explorer, factory: Any) -> None:
    """The same from a frontend whose memory changes at any moment."""
    world = user_net_backend(factory)
    x.adopt(world.platform)
    NetClient(world.vif, spoilt=True).start()
    x.attack(world.platform.dom0)
    x.begin()
    world.run()
    x.check()


def _transfers(world: Any) -> list[Any]:
    """Programs of a disk that ask while earlier requests are under way; what they started."""
    started: list[Any] = []

    def step() -> None:
        number = len(started) // 2
        started.append(world.app.start_write(number * SECTORS, bytes([number]) * 512 * SECTORS))
        started.append(world.app.start_read(number * SECTORS, SECTORS))
        if len(started) < 2 * REQUESTS:
            task.wake()

    task = world.domain.task("app", step)
    task.wake()
    return started


def blk_frontend_transfers(x: Explorer, factory: Any) -> None:
    """Programs write and read while earlier requests are under way: each ends once, and well."""
    world = user_blk_frontend(factory)
    x.adopt(world.platform)
    started = _transfers(world)
    x.begin()
    world.run()
    x.check()
    assert [one.okay for one in started] == [True] * 2 * REQUESTS


def blk_frontend_attacked(x: Explorer, factory: Any) -> None:
    """The same from a backend whose memory changes at any moment: each ends, however."""
    world = user_blk_frontend(factory)
    x.adopt(world.platform)
    x.attack(world.domain)
    _transfers(world)
    x.begin()
    world.run()
    x.check()


def _frames(world: Any, sent: list[bytes]) -> None:
    """Both sides send a frame each time their task runs."""
    peer = world.back

    def step() -> None:
        number = len(sent)
        sent.append(b"\xff" * 6 + b"\x02" + bytes(5) + b"\x88\xb5" + bytes([number]) * 50)
        try:
            world.app.send(sent[-1])
        except LocalProtocolError:
            return  # the link is down by now
        if number + 1 < FRAMES:
            task.wake()

    def answer() -> None:
        try:
            peer.send(FOR_ALL)
        except (LocalProtocolError, PeerProtocolError):
            return  # no page is posted, or what is posted makes no sense by now

    task = world.domain.task("app", step)
    task.wake()
    peer.domain.task("peer", answer).wake()


def net_frontend_frames(x: Explorer, factory: Any) -> None:
    """Programs send while earlier frames are under way: the backend gets all, in order; a frame
    comes up meanwhile.
    """
    world = user_net_frontend(factory)
    x.adopt(world.platform)
    sent: list[bytes] = []
    _frames(world, sent)
    x.begin()
    world.run()
    x.check()
    assert [one for one in world.vif.frames if one in sent] == sent
    assert FOR_ALL in world.app.received


def net_frontend_attacked(x: Explorer, factory: Any) -> None:
    """The same from a backend whose memory changes at any moment."""
    world = user_net_frontend(factory)
    x.adopt(world.platform)
    x.attack(world.domain)
    _frames(world, [])
    x.begin()
    world.run()
    x.check()


SCENARIOS: Final[dict[str, tuple[EndScenario, ...]]] = {
    "blk-backend": (blk_backend_requests, blk_backend_attacked),
    "blk-frontend": (blk_frontend_transfers, blk_frontend_attacked),
    "net-backend": (net_backend_frames, net_backend_attacked),
    "net-frontend": (net_frontend_frames, net_frontend_attacked),
}

# Those that cannot run without being told.
NEEDED: Final = tuple(one for scenarios in SCENARIOS.values() for one in scenarios)


@attrs.frozen
class OwnScenario:
    """One of SCENARIOS with its factory: what an exploration runs."""

    scenario: EndScenario
    factory: Any

    @property
    def __name__(self) -> str:
        return self.scenario.__name__

    def __call__(self, x: Explorer) -> None:
        told: Any = self.scenario  # an attribute that is called, not a method
        told(x, self.factory)
