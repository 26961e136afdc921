"""One queue of an interface: a tx ring, an rx ring and the event channels behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xenpv.bus.xenbus import XenBus
from xenpv.errors import PeerProtocolError
from xenpv.vif.callbacks import Completion, TransmitterStatus
from xenpv.vif.features import Features
from xenpv.vif.packet import TransmitterPacket
from xenpv.vif.parameters import DEFAULTS, Parameters
from xenpv.vif.pending import Pending
from xenpv.vif.poller import Poller
from xenpv.vif.receiver import Receiver
from xenpv.vif.rxring import ReceiverRing
from xenpv.vif.transmitter import TransmitterRing, Waiting
from xenpv.vif.txpacket import Rules


class Queue:
    """Queue `index` towards domain `domid`. The callbacks may be called while it is connected.

    `broken` gets the reason when the backend broke the protocol; no poll follows then.
    `features` and `parameters` are what its rings go by.
    """

    __slots__ = (
        "broken",
        "bus",
        "domid",
        "features",
        "index",
        "is_paused",
        "name",
        "parameters",
        "pending",
        "pollers",
        "receiver",
        "returns",
        "running",
        "stopped",
        "transmitter",
        "upper",
    )

    def __init__(
        self,
        *,
        bus: XenBus,
        domid: int,
        index: int,
        name: str,
        returns: Callable[[Sequence[Completion]], None],
        upper: Receiver,
        broken: Callable[[str], None],
        features: Features,
        parameters: Parameters = DEFAULTS,
    ) -> None:
        self.bus = bus
        self.domid = domid
        self.index = index
        self.name = name
        self.returns = returns
        self.upper = upper
        self.broken = broken
        self.features = features
        self.parameters = parameters
        self.running = False  # enabled: frames flow
        self.stopped = False  # the backend broke the protocol
        self.is_paused = False  # the driver above wants packets back before it takes more
        self.pending = Pending()
        self.transmitter: TransmitterRing | None = None
        self.receiver: ReceiverRing | None = None
        self.pollers: list[Poller] = []

    def connect(self, frame_max: int) -> None:
        """Rings and channels. HypercallError: something ran out; release() takes back the rest."""
        features, parameters = self.features, self.parameters
        rules = Rules(
            frame_max=frame_max,
            linear=not features.sg,
            offered=features.transmit_offload(parameters),
            hashes=features.ctrl_ring,
            validate=parameters.transmitter.validate_checksums,
            always_copy=parameters.transmitter.always_copy,
        )
        self.receiver = ReceiverRing(
            self.bus, self.domid, self.name, gso_types=parameters.receiver.gso_types
        )
        self.transmitter = TransmitterRing(self.bus, self.domid, rules=rules, returns=self.returns)
        ways = (
            (("rx", self.poll_rx), ("tx", self.poll_tx))
            if self.features.split
            else (("", self.poll),)
        )
        for way, poll in ways:
            name = f"{self.name}-{way}" if way else self.name
            self.pollers.append(Poller(self.bus, self.domid, name, poll))
        self.receiver.poller = self.pollers[0]
        self.transmitter.poller = self.pollers[-1]

    def rx_keys(self) -> list[tuple[str, str]]:
        """Keys of the store below the queue's directory."""
        assert self.receiver is not None
        name = "event-channel" if len(self.pollers) == 1 else "event-channel-rx"
        return [("rx-ring-ref", str(self.receiver.ref)), (name, str(self.pollers[0].port))]

    def tx_keys(self) -> list[tuple[str, str]]:
        assert self.transmitter is not None
        keys = [("tx-ring-ref", str(self.transmitter.ref))]
        if len(self.pollers) == 2:
            keys.append(("event-channel-tx", str(self.pollers[1].port)))
        return keys

    def listen(self) -> None:
        """Both ends are connected: take events."""
        for poller in self.pollers:
            poller.unmask()

    def enable(self) -> None:
        """Post the rx slots and let frames flow; HypercallError if they cannot all be posted."""
        assert self.receiver is not None
        if not self.receiver.filled:
            self.receiver.fill()
        self.running = True
        self.is_paused = False
        for poller in self.pollers:
            poller.trigger()

    def disable(self) -> None:
        """No more frames; what was not posted yet comes back as dropped."""
        self.running = False
        self.upper.drop(self)
        if self.transmitter is not None:
            self.transmitter.drop_waiting()

    def send(self, frames: Sequence[bytes | TransmitterPacket], cookies: Sequence[int]) -> None:
        assert self.transmitter is not None
        self.transmitter.queue(frames, cookies)
        self.transmitter.post()

    def announce(self, frames: Sequence[bytes]) -> None:
        """Frames of the driver's own, which go before all that waits and come back to nobody."""
        if self.running and self.transmitter is not None:
            self.transmitter.announcements.extend(frames)
            self.transmitter.post()

    def control_multicast(self, changes: Sequence[tuple[bytes, bool]]) -> None:
        """Groups to add (True) to the backend's list, or to remove from it."""
        if self.running and self.transmitter is not None:
            self.transmitter.controls.extend(changes)
            self.transmitter.post()

    def poll(self) -> None:
        self.poll_rx()
        self.poll_tx()

    def poll_rx(self) -> None:
        self.upper.poll(self)

    def poll_tx(self) -> None:
        if self.transmitter is None or self.stopped:
            return
        try:
            self.transmitter.poll()
        except PeerProtocolError as error:
            self.broken(f"{self.name}: {error}")

    def stop(self) -> None:
        """Break off: every packet comes back as an error, nothing is polled any more."""
        self.running = False
        self.stopped = True
        self.upper.drop(self)
        if self.receiver is not None:
            self.receiver.stop()
        if self.transmitter is not None:
            self.transmitter.abort(TransmitterStatus.ERROR)

    @property
    def in_flight(self) -> int:
        """Slots of its tx ring that the backend has not answered."""
        return 0 if self.transmitter is None else self.transmitter.in_flight

    def kick(self) -> None:
        """Notify the backend and look for its answers."""
        for poller in self.pollers:
            poller.send()
            poller.trigger()

    def suspend(self) -> list[Waiting]:
        """After a suspend: what is on the ring comes back as dropped, what waits is returned.

        Pages and references stay until `release`, for the old backend may still be at the ring.
        """
        self.running = False
        self.stopped = True
        self.upper.drop(self)
        if self.receiver is not None:
            self.receiver.stop()
        for poller in self.pollers:
            poller.close()
        self.pollers.clear()
        if self.transmitter is None:
            return []
        waiting = self.transmitter.take_waiting()
        self.transmitter.abort(TransmitterStatus.DROPPED)
        return waiting

    def release(self) -> list[tuple[int, int]]:
        """After the close handshake; (ref, pfn) of what the backend still maps."""
        self.running = False
        for poller in self.pollers:
            poller.close()
        self.pollers.clear()
        held: list[tuple[int, int]] = []
        for ring in (self.transmitter, self.receiver):
            if ring is not None:
                held += ring.release()
        self.transmitter = self.receiver = None
        return held
