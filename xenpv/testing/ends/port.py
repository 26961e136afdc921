"""A network backend under test on its bridge."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xenpv.host.network import Bridge, Frame
from xenpv.xen.domain import Domain


class EndPort:
    """The port of one interface. What leaves the bridge by it comes to the driver in a task."""

    places = False  # a capture shows a frame as it leaves, not when it is in the guest's slots

    def __init__(
        self, domain: Domain, bridge: Bridge, name: str, receive: Callable[[list[Frame]], object]
    ) -> None:
        self._domain = domain
        self._bridge = bridge
        self._name = name
        self._receive = receive
        self._waiting: list[Frame] = []
        self._task = domain.task(f"{name} port", self._hand_over)

    @property
    def name(self) -> str:
        return self._name

    def transmit(self, frames: Sequence[Frame | bytes]) -> None:
        """What the guest sent enters the bridge; plain bytes have no offloads."""
        whole = [Frame(one) if isinstance(one, bytes) else one for one in frames]
        self._bridge.transmit(self, whole, self._domain.loop.now)

    def receive(self, frames: Sequence[Frame]) -> None:
        """The bridge's call."""
        self._waiting += frames
        self._task.wake()

    def _hand_over(self) -> None:
        frames, self._waiting = self._waiting, []
        self._receive(frames)

    def attach(self) -> None:
        self._bridge.attach(self)

    def detach(self) -> None:
        self._bridge.detach(self)
        self._domain.forget(self._task)
