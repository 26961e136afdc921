"""An interface: every frame arrives once, in order, as it was sent, each way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from xenpv.host.network import Direction, Frame
from xenpv.testing.checkers import check_all
from xenpv.testing.linux_net import NetWorld, world_net
from xenpv.testing.raw_world import MAC

BROADCAST: Final = b"\xff" * 6
PEER: Final = bytes.fromhex("00163e0000ee")
UNSEEN_MAX: Final = 16  # frames under way


class Station:
    """A port of the bridge: what left there, of frames from the guest."""

    name = "station"

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def receive(self, frames: Sequence[Frame]) -> None:
        """What leaves the bridge here."""
        self.frames += [bytes(one.data) for one in frames]

    def capture(self, port_name: str, direction: Direction, frame: Frame, now_ns: int) -> None:
        """Nothing is captured."""


class NetMachine(RuleBasedStateMachine):
    """`make` gives a world with a connected interface `net` and a `bridge`, as world_net's.

    `sent` and `expected` are frames that have to arrive at the station and at the guest.
    """

    def __init__(self) -> None:
        super().__init__()
        self.world = self.make()
        self.station = Station()
        self.world.bridge.attach(self.station)
        self.sent: list[bytes] = []
        self.expected: list[bytes] = []
        self.under_way = 0

    def make(self) -> NetWorld:
        """The world under test, fresh: ours, with the kit's Linux frontend on netback."""
        return world_net()

    @precondition(lambda self: self.under_way < UNSEEN_MAX)
    @rule(size=st.integers(60, 1514), fill=st.integers(0, 255))
    def send(self, size: int, fill: int) -> None:
        """A frame of the guest."""
        frame = (BROADCAST + MAC + b"\x88\xb5" + bytes([fill]) * 1500)[:size]
        self.world.net.send(frame)
        self.sent.append(frame)
        self.under_way += 1

    @precondition(lambda self: self.under_way < UNSEEN_MAX)
    @rule(size=st.integers(60, 1514), fill=st.integers(0, 255))
    def deliver(self, size: int, fill: int) -> None:
        """A frame for the guest."""
        frame = (MAC + PEER + b"\x88\xb5" + bytes([fill]) * 1500)[:size]
        now = self.world.platform.loop.now
        self.world.bridge.transmit(self.station, [Frame(frame)], now)
        self.expected.append(frame)
        self.under_way += 1

    @rule()
    def run(self) -> None:
        """Let everything happen that is due."""
        self.world.run()
        self.under_way = 0
        assert self.station.frames == self.sent, "frames of the guest are not as they were sent"
        got = [one.data for one in self.world.net.received]
        assert got == self.expected, "frames for the guest are not as they were sent"

    def teardown(self) -> None:
        try:
            self.run()
            check_all(self.world.platform)
        finally:
            self.world.close()
