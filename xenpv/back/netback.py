"""netback, profile linux: a guest's vif on a bridge (drivers/net/xen-netback).

The states are a table of paths: every intermediate state is written, and what a step does
hangs on the state entered or left. A guest that breaks the protocol loses its vif (disabled,
carrier off) while the device stays where it is, so that it can still be closed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import attrs

from xenpv.abi.xenbus import XenbusState as State
from xenpv.back import netrx, nettx
from xenpv.back.netctrl import ControlRing
from xenpv.back.nethash import NONE as NO_HASH
from xenpv.back.nethash import NetHash
from xenpv.back.netrx import RxQueue
from xenpv.back.nettx import TxQueue
from xenpv.back.ring import BackRing
from xenpv.back.xenbus import Device, number_of
from xenpv.errors import GrantError, HypercallError, PeerProtocolError, StoreError
from xenpv.host.network import GSO_NONE, GSO_TCPV4, GSO_TCPV6, Bridge, Frame
from xenpv.host.offload import finish_checksum, segment
from xenpv.host.packet import BROADCAST, ETHERTYPE_IPV6, mac_bytes
from xenpv.xen.domain import Domain

UNKNOWN, INITIALISING, INIT_WAIT, CONNECTED, CLOSING, CLOSED = (
    State.UNKNOWN,
    State.INITIALISING,
    State.INIT_WAIT,
    State.CONNECTED,
    State.CLOSING,
    State.CLOSED,
)
# What a state of the frontend asks of the backend. Others ask nothing.
TARGET: Final = {
    INITIALISING: INIT_WAIT,
    CONNECTED: CONNECTED,
    CLOSING: CLOSING,
    CLOSED: CLOSED,
    UNKNOWN: CLOSED,
}
# (from, to): the states to pass through.
PATHS: Final = {
    (INITIALISING, INIT_WAIT): (INIT_WAIT,),
    (INITIALISING, CONNECTED): (INIT_WAIT, CONNECTED),
    (INITIALISING, CLOSING): (INIT_WAIT, CLOSING),
    (INITIALISING, CLOSED): (CLOSED,),
    (INIT_WAIT, CONNECTED): (CONNECTED,),
    (INIT_WAIT, CLOSING): (CLOSING,),
    (INIT_WAIT, CLOSED): (CLOSING, CLOSED),
    (CONNECTED, INIT_WAIT): (CLOSING, CLOSED, INIT_WAIT),
    (CONNECTED, CLOSING): (CLOSING,),
    (CONNECTED, CLOSED): (CLOSING, CLOSED),
    (CLOSING, INIT_WAIT): (CLOSED, INIT_WAIT),
    (CLOSING, CONNECTED): (CLOSED, INIT_WAIT, CONNECTED),
    (CLOSING, CLOSED): (CLOSED,),
    (CLOSED, INIT_WAIT): (INIT_WAIT,),
    (CLOSED, CONNECTED): (INIT_WAIT, CONNECTED),
    (CLOSED, CLOSING): (CLOSING,),
}

FEATURES: Final = {
    "feature-sg": "1",
    "feature-gso-tcpv4": "1",
    "feature-gso-tcpv6": "1",
    "feature-ipv6-csum-offload": "1",
    "feature-rx-copy": "1",
    "feature-rx-flip": "0",
    "feature-multicast-control": "1",
}
QUEUES_MAX: Final = 8
MULTICAST_MAX: Final = 64  # XEN_NETBK_MCAST_MAX
MTU_DEFAULT: Final = 1500
MTU_MAX: Final = 65517
HEADER_ALLOWANCE: Final = 18  # Ethernet and one tag
GSO_MAX: Final = 65535


class Network(Protocol):
    """Where a backend finds the bridges of its host."""

    def bridge(self, name: str) -> Bridge:
        """The bridge of that name, made if there is none."""


class Counters:
    """Seen from the guest: `tx` is what it sent."""

    __slots__ = ("rx_bytes", "rx_dropped", "rx_packets", "tx_bytes", "tx_dropped", "tx_packets")

    def __init__(
        self,
    ) -> None:
        self.tx_packets = 0
        self.tx_bytes = 0
        self.tx_dropped = 0
        self.rx_packets = 0
        self.rx_bytes = 0
        self.rx_dropped = 0


@attrs.frozen(kw_only=True)
class Offer:
    """What the frontend said that it takes (the flags after request-rx-copy)."""

    sg: bool = True
    gso_types: tuple[int, ...] = ()
    csum: bool = True
    ipv6_csum: bool = False
    rx_notify: bool = False
    multicast_control: bool = False


@attrs.frozen(kw_only=True)
class QueueKeys:
    """Rings and ports of one queue, as the frontend wrote them; ports are equal if combined."""

    tx_ring_ref: int
    rx_ring_ref: int
    tx_port: int
    rx_port: int


class NetQueue:
    """One queue of a connected vif: its mapped rings, bound ports and the tasks behind them."""

    def __init__(self, vif: Netback, index: int) -> None:
        self._vif = vif
        self.name = f"{vif.name}-q{index}"
        self.tx: TxQueue | None = None
        self.rx: RxQueue | None = None
        domain = vif.domain
        self._tx_task = domain.task(f"{self.name}-tx", self.poll_tx)
        self._rx_task = domain.task(f"{self.name}-rx", self.poll_rx)
        self._both_task = domain.task(self.name, self._poll_both)
        self._ports: list[int] = []
        self._maps: list[tuple[int, int]] = []  # pfn, handle

    def connect(self, keys: QueueKeys, *, rx_notify: bool) -> None:
        """PeerProtocolError or HypercallError: what was done is undone by `release`."""
        tx_ring = self._ring(keys.tx_ring_ref, nettx.REQUEST.size, nettx.RESPONSE_SIZE)
        rx_ring = self._ring(keys.rx_ring_ref, netrx.REQUEST.size, netrx.RESPONSE.size)
        split = keys.tx_port != keys.rx_port
        tx_port = self._bind(keys.tx_port)
        rx_port = self._bind(keys.rx_port) if split else tx_port
        dispatcher = self._vif.device.dispatcher
        dispatcher.bind_task(tx_port, self._tx_task if split else self._both_task)
        if split:
            dispatcher.bind_task(rx_port, self._rx_task)
        self.tx = TxQueue(self._vif, tx_ring, tx_port)
        self.rx = RxQueue(self._vif, rx_ring, rx_port, self._rx_task, notified=rx_notify)
        self._tx_task.wake()

    def _ring(self, ref: int, req_size: int, rsp_size: int) -> BackRing:
        domain = self._vif.domain
        pfn = domain.holes.alloc()
        try:
            handle = domain.gnttab.map(self._vif.frontend_domid, ref, pfn)
        except GrantError as error:
            domain.holes.free(pfn)
            raise PeerProtocolError(f"mapping ring-ref {ref}: {error}") from error
        self._maps.append((pfn, handle))
        return BackRing(domain, [pfn], req_size=req_size, rsp_size=rsp_size)

    def _bind(self, port: int) -> int:
        local = self._vif.domain.evtchn.bind_interdomain(self._vif.frontend_domid, port)
        self._ports.append(local)
        return local

    def poll_tx(self) -> None:
        """Serve the tx ring; again later if the guest goes on."""
        if self.tx is not None and self._guarded(self.tx.poll):
            self._tx_task.wake()

    def poll_rx(self) -> None:
        if self.rx is not None:
            self._guarded(self.rx.poll)

    def _poll_both(self) -> None:
        self.poll_tx()
        self.poll_rx()

    def _guarded(self, poll: Callable[[], object]) -> object:
        """Run one end of the queue; a guest that breaks the protocol loses its vif."""
        if self._vif.disabled:
            return None
        try:
            return poll()
        except (PeerProtocolError, HypercallError) as error:
            self._vif.fatal(f"{self.name}: {error}")
            return None

    def release(self) -> None:
        """Unbind, unmap; a second call does nothing."""
        domain = self._vif.domain
        if self.rx is not None:
            self.rx.release()
        self.tx = self.rx = None
        for port in self._ports:
            self._vif.device.dispatcher.unbind_port(port)
            domain.evtchn.close(port)
        self._ports.clear()
        for pfn, handle in self._maps:
            domain.gnttab.unmap(handle, pfn)
            domain.holes.free(pfn)
        self._maps.clear()
        for task in (self._tx_task, self._rx_task, self._both_task):
            domain.forget(task)


class Netback:
    """One vif: a driver to the bus, a port to its bridge.

    `state` is the logical state; Connected is written once the hotplug script is done.
    `disabled`: the guest broke the protocol, nothing is sent or received any more.
    """

    def __init__(self, device: Device, network: Network) -> None:
        self.device = device
        self.domain: Domain = device.domain
        self.frontend_domid = device.frontend_domid
        self.name = device.name
        self.state = State.INITIALISING
        self.disabled = False
        self.carrier = False
        self.counters = Counters()
        self.queues: list[NetQueue] = []
        self.control: ControlRing | None = None
        self.hash = NetHash()
        self.offer = Offer()
        self.mtu = MTU_DEFAULT
        self.multicast: list[bytes] = []
        self._network = network
        self._bridge: Bridge | None = None
        self._removed = False

    # the bus

    def probe(self) -> None:
        """Features, then what the frontend's state asks for."""
        device = self.device
        try:
            device.store.transaction(self._write_features)
            device.write("feature-split-event-channels", "1")
            device.write("multi-queue-max-queues", str(self._queues_max()))
            device.write("feature-ctrl-ring", "1")
        except StoreError as error:
            self._removed = True
            device.fatal(f"writing features: {error}")
            return
        for key, valid in (("script", None), ("mac", mac_bytes)):
            text = device.get(key)
            try:
                if text is None:
                    raise ValueError  # noqa: TRY301 - absent is as bad as malformed
                if valid is not None:
                    valid(text)
            except ValueError:
                self._removed = True
                device.unready(f"reading {key}", key)
                return

    def _write_features(self, tx_id: int) -> None:
        self.device.write_all(FEATURES, tx_id)

    def _queues_max(self) -> int:
        return min(QUEUES_MAX, self.domain.vcpus)

    def frontend_changed(self, state: State) -> None:
        """Walk to what the frontend's state asks for."""
        target = TARGET.get(state)
        if target is None or self._removed:
            return
        for step in PATHS.get((self.state, target), ()):
            self._enter(step)
        if target is CLOSED and (state is UNKNOWN or not self.device.online):
            self._unregister()
            self.device.wants = () if state is UNKNOWN else ("online",)

    def _enter(self, state: State) -> None:
        if self.state is CONNECTED:
            self._disconnect()
        if state is CONNECTED:
            try:
                self._connect()
            except (PeerProtocolError, HypercallError):
                self._disconnect()
                self.state = CLOSING  # where the bus takes a failed device
                raise
        self.state = state
        if state is not CONNECTED or self._hotplugged():
            self.device.switch_state(state)

    def _hotplugged(self) -> bool:
        return self.device.get("hotplug-status") == "connected"

    def hotplug_changed(self) -> None:
        """The script is done: say that we are connected, if we are."""
        if self.state is CONNECTED and self._hotplugged():
            self.device.switch_state(CONNECTED)

    def remove(self) -> None:
        """The directory is gone."""
        self._unregister()

    def abandon(self) -> None:
        """The backend's own domain is dead, and with it all but its place on the bridge."""
        self._removed = True
        self._carrier_off()

    def _unregister(self) -> None:
        """device_unregister: nothing more is done for this device."""
        if self._removed:
            return
        self._removed = True
        self._disconnect()
        self.device.store.remove(f"{self.device.path}/hotplug-status")

    # connect

    def _connect(self) -> None:
        device = self.device
        count = device.frontend_number("multi-queue-num-queues", 1)
        maximum = self._queues_max()
        if not 1 <= count <= maximum:
            raise PeerProtocolError(f"{count} queues, 1 to {maximum} are offered")
        self.offer = self._read_offer()
        longest = MTU_MAX if self.offer.sg else MTU_DEFAULT
        self.mtu = min(device.number("mtu", MTU_DEFAULT), longest)
        self.disabled = False
        self.device.broken = ""
        self._connect_control()
        for index in range(count):
            prefix = f"queue-{index}/" if count > 1 else ""
            keys = self._read_keys(prefix)
            queue = NetQueue(self, index)
            self.queues.append(queue)
            queue.connect(keys, rx_notify=self.offer.rx_notify)
        bridge = self._network.bridge(device.get("bridge") or "xenbr0")
        bridge.attach(self)
        self._bridge = bridge
        self.carrier = True

    def _connect_control(self) -> None:
        """A frontend without `ctrl-ring-ref` has no control ring."""
        self.hash = NetHash()
        ref = self._key("ctrl-ring-ref")
        if ref is not None:
            self.control = ControlRing(self)
            self.control.connect(ref, self._wanted("event-channel-ctrl"))

    def _read_offer(self) -> Offer:
        number = self.device.frontend_number
        if not number("request-rx-copy", 0):
            return Offer()  # Linux reads no flag after it
        gso = (("feature-gso-tcpv4", GSO_TCPV4), ("feature-gso-tcpv6", GSO_TCPV6))
        return Offer(
            rx_notify=bool(number("feature-rx-notify", 0)),
            sg=bool(number("feature-sg", 0)),
            gso_types=tuple(kind for key, kind in gso if number(key, 0)),
            csum=not number("feature-no-csum-offload", 0),
            ipv6_csum=bool(number("feature-ipv6-csum-offload", 0)),
            multicast_control=bool(number("request-multicast-control", 0)),
        )

    def _read_keys(self, prefix: str) -> QueueKeys:
        tx_port = self._key(prefix + "event-channel-tx")
        rx_port = self._key(prefix + "event-channel-rx")
        if tx_port is None or rx_port is None:
            tx_port = rx_port = self._wanted(prefix + "event-channel")
        return QueueKeys(
            tx_ring_ref=self._wanted(prefix + "tx-ring-ref"),
            rx_ring_ref=self._wanted(prefix + "rx-ring-ref"),
            tx_port=tx_port,
            rx_port=rx_port,
        )

    def _key(self, key: str) -> int | None:
        value = number_of(self.device.frontend_get(key), -1)
        return value if 0 <= value < 1 << 32 else None

    def _wanted(self, key: str) -> int:
        value = self._key(key)
        if value is None:
            raise PeerProtocolError(f"reading {self.device.frontend}/{key}")
        return value

    def _disconnect(self) -> None:
        self._carrier_off()
        for queue in self.queues:
            queue.release()
        self.queues.clear()
        if self.control is not None:
            self.control.release()
            self.control = None
        self.multicast.clear()

    def _carrier_off(self) -> None:
        self.carrier = False
        if self._bridge is not None:
            self._bridge.detach(self)
            self._bridge = None

    def fatal(self, why: str) -> None:
        """xenvif_fatal_tx_err: disabled, carrier off; only a new connection helps."""
        if self.disabled:
            return
        self.disabled = True
        self.device.broken = self.device.broken or why
        self.domain.trace.note(self.domain.domid, f"{self.name}: disabled: {why}")
        self._carrier_off()

    def granter(self) -> Domain:
        """The guest, whose pages are granted. PeerProtocolError if it is gone."""
        granter = self.domain.find(self.frontend_domid)
        if granter is None:
            raise PeerProtocolError(f"domain {self.frontend_domid} is gone")
        return granter

    # frames

    def transmit(self, frames: Sequence[Frame]) -> None:
        """From the guest to the bridge."""
        if self._bridge is not None:
            self._bridge.transmit(self, frames, self.domain.loop.now)

    def receive(self, frames: Sequence[Frame]) -> None:
        """From the bridge to the guest: finished as the guest needs it, and queued."""
        longest = self.mtu + HEADER_ALLOWANCE
        plain = [
            frame
            for frame in frames
            if not frame.csum_blank and not frame.gso_type and len(frame.data) <= longest
        ]
        if len(plain) != len(frames):
            plain = [part for frame in frames for part in self._fit(frame, longest)]
        if self.offer.multicast_control:
            plain = [frame for frame in plain if self._wants(frame.data)]
        if self.hash.algorithm != NO_HASH:
            plain = [attrs.evolve(frame, hash=self.hash.of(frame.data)) for frame in plain]
        if len(self.queues) == 1:
            rx = self.queues[0].rx
            assert rx is not None
            rx.queue(plain)
        else:
            self._spread(plain)

    def _spread(self, frames: Sequence[Frame]) -> None:
        """One flow keeps to one queue."""
        count = len(self.queues)
        if not count:
            return
        if self.hash.algorithm == NO_HASH:
            chosen = [self.hash.queue(frame.data, count) for frame in frames]
        else:
            chosen = [self.hash.queue_of(frame.hash, count) for frame in frames]
        for index, queue in enumerate(self.queues):
            mine = [frame for frame, at in zip(frames, chosen, strict=True) if at == index]
            if mine and queue.rx is not None:
                queue.rx.queue(mine)

    def _fit(self, frame: Frame, longest: int) -> list[Frame]:
        """What the guest gets for a frame: done in software what it does not take."""
        try:
            parts = [frame] if frame.gso_type in self.offer.gso_types else segment(frame)
            parts = [part if self._sums(part) else finish_checksum(part) for part in parts]
        except PeerProtocolError:
            parts = []
        fitting = [
            part
            for part in parts
            if len(part.data) <= (longest if part.gso_type == GSO_NONE else GSO_MAX)
        ]
        if len(fitting) < max(1, len(parts)):
            self.counters.rx_dropped += 1
        return fitting

    def _sums(self, frame: Frame) -> bool:
        """Whether the guest takes this frame's checksum as it is."""
        if not frame.csum_blank:
            return True
        ipv6 = frame.data[12:14] == ETHERTYPE_IPV6.to_bytes(2, "big")
        return self.offer.ipv6_csum if ipv6 else self.offer.csum

    def _wants(self, data: bytes) -> bool:
        return not data[0] & 1 or data[:6] == BROADCAST or data[:6] in self.multicast

    def multicast_add(self, address: bytes) -> bool:
        """False when the list is full; a duplicate is stored once more."""
        if len(self.multicast) >= MULTICAST_MAX:
            return False
        self.multicast.append(address)
        return True

    def multicast_remove(self, address: bytes) -> None:
        """Remove the first that matches."""
        if address in self.multicast:
            self.multicast.remove(address)


class NetbackFactory:
    """Makes the driver of each vif; `network` says where its bridge is."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def __call__(self, device: Device) -> Netback:
        return Netback(device, self._network)
