"""netback: a guest's vif on a bridge (drivers/net/xen-netback, or what its profile says).

The states are a table of paths: every intermediate state is written, and what a step does
hangs on the state entered or left. A guest that breaks the protocol loses its vif (disabled,
carrier off) while the device stays where it is, so that it can still be closed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import attrs

from xenpv.abi.xenbus import XenbusState as State
from xenpv.back.credit import Rate
from xenpv.back.netctrl import ControlRing
from xenpv.back.netfit import fit
from xenpv.back.nethash import NONE as NO_HASH
from xenpv.back.nethash import NetHash
from xenpv.back.netkeys import (
    Offer,
    queue_home,
    read_control,
    read_count,
    read_headroom,
    read_offer,
    read_queue,
)
from xenpv.back.netprofile import (
    CLOSED,
    CLOSING,
    CONNECTED,
    INIT_WAIT,
    LINUX,
    RECONFIGURING,
    UNKNOWN,
    Profile,
)
from xenpv.back.netqueue import NetQueue
from xenpv.back.store import BackWatch
from xenpv.back.xenbus import Device
from xenpv.errors import HypercallError, PeerProtocolError, StoreError
from xenpv.host.network import Bridge, Frame
from xenpv.host.packet import BROADCAST, mac_bytes
from xenpv.host.vlan import PortVlans, parse_vlans
from xenpv.xen.domain import Domain

MULTICAST_MAX: Final = 64  # XEN_NETBK_MCAST_MAX
MTU_DEFAULT: Final = 1500
MTU_MAX: Final = 65517
HEADER_ALLOWANCE: Final = 18  # Ethernet and one tag


class Network(Protocol):
    """Where a backend finds the bridges of its host."""

    def bridge(self, name: str) -> Bridge:
        """The bridge of that name, made if there is none."""


class Counters:
    """Seen from the guest: `tx` is what it sent."""

    __slots__ = ("rx_bytes", "rx_dropped", "rx_gso_checksum_fixup", "rx_packets", "tx_bytes",
                 "tx_dropped", "tx_packets")  # fmt: skip

    def __init__(
        self,
    ) -> None:
        # Linux' name, seen from its side: GSO packets that came without a blank sum.
        self.rx_gso_checksum_fixup = 0
        self.tx_packets = 0
        self.tx_bytes = 0
        self.tx_dropped = 0
        self.rx_packets = 0
        self.rx_bytes = 0
        self.rx_dropped = 0


class Netback:
    """One vif: a driver to the bus, a port to its bridge.

    `state` is the logical state; Connected is written once the hotplug script is done.
    `disabled`: the guest broke the protocol, nothing is sent or received any more.
    `carrier`: it is a port of its bridge.
    """

    places = True  # as a RingPort

    def __init__(self, device: Device, network: Network, profile: Profile = LINUX) -> None:
        self.device = device
        self.profile = profile
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
        self.multicast_control = False
        self._network = network
        self._bridge: Bridge | None = None
        self._watch: BackWatch | None = None  # of request-multicast-control
        self._announced = False  # Connected was written since it was reached
        self._removed = False
        self._stalled_queues = 0
        self._longest = MTU_DEFAULT + HEADER_ALLOWANCE  # bytes of a frame for the guest

    # the bus

    def probe(self) -> None:
        """Features, then what the frontend's state asks for."""
        device, profile = self.device, self.profile
        try:
            device.store.transaction(self._write_features)
            for key, value in profile.announced.items():
                device.write(key, value)
            if profile.multi_queue:
                device.write("multi-queue-max-queues", str(self._queues_max()))
            if profile.control:
                device.write("feature-ctrl-ring", "1")
            if profile.front_mac:
                self._write_front_mac()
        except StoreError as error:
            self._removed = True
            device.fatal(f"writing features: {error}")
            return
        if not self._is_whole():
            return
        if not profile.waits_first:
            self._enter(INIT_WAIT)

    def _write_features(self, tx_id: int) -> None:
        self.device.write_all(self.profile.features, tx_id)
        if self.profile.waits_first is None:
            self.device.write("state", str(int(INIT_WAIT)), tx_id)
            self.device.state = INIT_WAIT

    def _write_front_mac(self) -> None:
        """As xen_netdev_realize; where it may not, it goes on without."""
        device = self.device
        try:
            device.store.write(f"{device.frontend}/mac", device.get("mac") or "")
        except StoreError as error:
            self.domain.trace.note(self.domain.domid, f"{self.name}: {error}")

    def _is_whole(self) -> bool:
        """The toolstack's keys; without one of them the device waits for it."""
        device = self.device
        if self.profile.script and device.get("script") is None:
            self._removed = True
            device.unready("reading script", "script")
            return False
        try:
            mac_bytes(device.get("mac") or "")
        except ValueError:
            self._removed = True
            device.unready("reading mac", "mac")
            return False
        return True

    def _queues_max(self) -> int:
        return min(self.profile.queues_max, self.domain.vcpus)

    def frontend_changed(self, state: State) -> None:
        """Walk to what the frontend's state asks for."""
        if self._removed:
            return
        try:
            self._follow(state)
        except (PeerProtocolError, HypercallError):
            self._disconnect()
            self.state = CLOSING  # where the bus takes a failed device
            raise
        if state is UNKNOWN or (state is CLOSED and not self.device.online):
            self._unregister()
            self.device.wants = () if state is UNKNOWN else ("online",)

    def _follow(self, state: State) -> None:
        profile = self.profile
        if state in profile.fatal_states:
            raise PeerProtocolError(f"saw state {int(state)} at frontend")
        if state is RECONFIGURING and profile.headroom:
            self._reconfigure()
        was_connected = self.state is CONNECTED
        for step in profile.walk.get((self.state, state), ()):
            self._enter(step)
        if profile.deletes and was_connected and self.state is CLOSED and self.device.online:
            self._unregister()
            self.device.store.remove(self.device.path)

    def _enter(self, state: State) -> None:
        if self.state is CONNECTED:
            self._disconnect()
        if state is CONNECTED:
            self._connect()
        self.state = state
        if state is not CONNECTED:
            self.device.switch_state(state)
        else:
            self._announced = False
            self.hotplug_changed()

    def hotplug_changed(self) -> None:
        """The script is done: say that we are connected, if we are."""
        if self.state is not CONNECTED or self._announced:
            return
        if not self.profile.hotplug or self.device.get("hotplug-status") == "connected":
            self._announced = True
            self.device.switch_state(CONNECTED)

    def _reconfigure(self) -> None:
        """The frontend wants other room before its packets, in whatever state it is."""
        self.offer = attrs.evolve(self.offer, headroom=read_headroom(self.device))
        for queue in self.queues:
            queue.reconfigure()
        self.device.switch_state(State.RECONFIGURED)

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
        self.device.script_said = self.device.get("hotplug-status") or ""
        self.device.store.remove(f"{self.device.path}/hotplug-status")

    # connect

    def _connect(self) -> None:
        device, profile = self.device, self.profile
        count = read_count(device, profile, self._queues_max())
        self.offer = read_offer(device, profile)
        longest = MTU_MAX if self.offer.sg else MTU_DEFAULT
        self.mtu = min(device.number("mtu", MTU_DEFAULT), longest)
        self._longest = self.mtu + HEADER_ALLOWANCE if profile.rx_chains else profile.rx_bytes
        self.disabled = False
        device.broken = ""
        if profile.multicast:
            self._multicast_changed()
            path = f"{device.frontend}/request-multicast-control"
            self._watch = device.store.watch(path, self._multicast_changed)
        if profile.control:
            self._connect_control()
        for index in range(count):
            keys = read_queue(device, profile, queue_home(index) if count > 1 else "")
            queue = NetQueue(self, index)
            self.queues.append(queue)
            queue.connect(keys)
        if profile.tx.rated:
            self._rate_changed()
            device.keys["rate"] = self._rate_changed
        self._stalled_queues = count
        for queue in self.queues:
            queue.start()

    def queue_ready(self) -> None:
        """A queue has the slots for what waits; the last of them brings the carrier up."""
        self._stalled_queues -= 1
        if not self._stalled_queues and not self.disabled:
            bridge = self._network.bridge(self.device.get("bridge") or "xenbr0")
            bridge.attach(self, vlans_of(self.device.get("vlan")))
            self._bridge = bridge
            self.carrier = True

    def queue_stalled(self) -> None:
        """The guest takes nothing any more: without a carrier nothing comes to wait."""
        self._stalled_queues += 1
        self.domain.trace.note(self.domain.domid, f"{self.name}: guest rx stalled")
        self._carrier_off()

    def _rate_changed(self) -> None:
        """xen_net_read_rate, of every queue by itself."""
        rate = Rate.parse(self.device.get("rate"))
        for queue in self.queues:
            if queue.tx is not None:
                queue.tx.set_rate(rate)

    def _connect_control(self) -> None:
        """A frontend without `ctrl-ring-ref` has no control ring."""
        self.hash = NetHash()
        keys = read_control(self.device)
        if keys is not None:
            self.control = ControlRing(self)
            self.control.connect(*keys)

    def _multicast_changed(self, _path: str = "") -> None:
        self.multicast_control = bool(self.device.frontend_number("request-multicast-control", 0))

    def _disconnect(self) -> None:
        self.device.keys.pop("rate", None)
        self._carrier_off()
        for queue in self.queues:
            queue.release()
        self.queues.clear()
        if self.control is not None:
            self.control.release()
            self.control = None
        self.multicast.clear()
        self._unwatch()

    def _unwatch(self) -> None:
        """Of a connection that ends."""
        watch, self._watch = self._watch, None
        if watch is not None:
            self.device.store.unwatch(watch)

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
        longest = self._longest
        plain = [
            frame
            for frame in frames
            if not frame.csum_blank and not frame.gso_type and len(frame.data) <= longest
        ]
        if len(plain) != len(frames):
            fitted = [fit(frame, self.offer, longest) for frame in frames]
            plain = [part for parts, _ in fitted for part in parts]
            self.lose(sum([lost for _, lost in fitted]))
        if self.multicast_control:
            wanted = [frame for frame in plain if self._wants(frame.data)]
            self.lose(len(plain) - len(wanted))
            plain = wanted
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

    def lose(self, count: int) -> None:
        """Frames for the guest that it does not get."""
        if count:
            self.counters.rx_dropped += count
            if self._bridge is not None:
                self._bridge.lost(self, count)

    @property
    def captured(self) -> bool:
        """Somebody wants to know where frames went."""
        return self._bridge is not None and bool(self._bridge.taps)

    def placed(self, frames: Sequence[Frame]) -> None:
        """Frames are in their slots, as `queue` and `slot` of each say."""
        if self._bridge is not None:
            self._bridge.placed(self, frames, self.domain.loop.now)

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


def vlans_of(text: str | None) -> PortVlans | None:
    """What the hotplug script makes of `vlan`; None: nothing was said, or nothing that it reads."""
    try:
        return parse_vlans(text) if text else None
    except ValueError:
        return None


class NetbackFactory:
    """Makes the driver of each vif; `network` says where its bridge is.

    `profile_of(frontend_domid, devid)` says which backend it is to be; None: Linux'.
    """

    def __init__(
        self,
        network: Network,
        profile_of: Callable[[int, int], Profile] | None = None,
    ) -> None:
        self._network = network
        self._profile_of = profile_of

    def __call__(self, device: Device) -> Netback:
        of = self._profile_of
        found = LINUX if of is None else of(device.frontend_domid, device.devid)
        return Netback(device, self._network, found)
