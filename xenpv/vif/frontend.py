"""One interface's way to its backend and back (win-xenvif frontend.c).

What is done at each state of the backend is in states.py.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final, Protocol

from xenpv.abi.xenbus import XenbusState as State
from xenpv.bus.handshake import Goal, Handshake, Seen, parse_flag, parse_state
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError, status_of
from xenpv.bus.store import Watch
from xenpv.bus.xenbus import XenBus
from xenpv.errors import HypercallError, LocalProtocolError, StoreError
from xenpv.vif import features, keys
from xenpv.vif.advertisement import Advertisement
from xenpv.vif.announce import announcements
from xenpv.vif.callbacks import Callbacks, Completion, PacketType, TransmitterStatus
from xenpv.vif.drain import Drain
from xenpv.vif.features import Features
from xenpv.vif.hashing import choose
from xenpv.vif.link import Link
from xenpv.vif.mac import Mac, MacState, parse_mtu
from xenpv.vif.multicast import MulticastControl
from xenpv.vif.options import ReceiverOptions
from xenpv.vif.packet import Offload, TransmitterPacket
from xenpv.vif.parameters import DEFAULTS, Parameters
from xenpv.vif.queue import Queue
from xenpv.vif.receivehash import ReceiveHash
from xenpv.vif.receiver import Receiver
from xenpv.vif.states import GONE, START, TABLES, WATCHED
from xenpv.vif.statistics import Statistics
from xenpv.vif.watchdog import Watchdog

UNPLUG_FAILED: Final = "UNPLUG FAILED: device is still in use"

UNICAST: Final = PacketType.UNICAST
GBIT: Final = 10**9


class FrontendState(enum.Enum):
    """XENVIF_FRONTEND_STATE, and the wait inside Disable: packets are still lent."""

    UNKNOWN = "unknown"
    CLOSED = "closed"
    PREPARED = "prepared"
    CONNECTED = "connected"
    ENABLED = "enabled"
    DISABLING = "disabling"


UP: Final = (FrontendState.CONNECTED, FrontendState.ENABLED, FrontendState.DISABLING)


class Owner(Protocol):
    """The device that a frontend belongs to."""

    def connected(self) -> None:
        """Both ends are Connected: the interface may be enabled."""

    def addresses(self) -> list[bytes]:
        """IP addresses that the system gave the interface, of 4 or 16 bytes each."""

    def closed(self) -> None:
        """Everything is given back; nothing of the frontend runs any more."""

    def failed(self) -> None:
        """It did not connect, and has nothing open; `error` says why."""

    def request_eject(self) -> None:
        """The backend wants to be rid of the device, or is gone: the system is asked, later."""


class Frontend:
    """`path` is `device/vif/<number>`. `broken` says why the backend is believed no more.

    `features` are those of the backend at the last connect.
    """

    def __init__(
        self,
        bus: XenBus,
        number: int,
        address: bytes,
        owner: Owner,
        parameters: Parameters = DEFAULTS,
    ) -> None:
        self.bus = bus
        self.number = number
        self.path = f"device/vif/{number}"
        self.mac = Mac(permanent=address)
        self.statistics = Statistics()
        self.parameters = parameters
        self.features = Features()
        self.receiver_options = ReceiverOptions()
        self.multicast_control = MulticastControl(self)
        self.receiver = Receiver(self)
        self.receive_hash = ReceiveHash(self)
        self.state = FrontendState.UNKNOWN
        self.queues: list[Queue] = []
        self.broken = ""
        self.error = ""  # why it did not connect
        self.quarantined: list[tuple[int, int]] = []  # ref, pfn that a backend did not give back
        self.callbacks: Callbacks | None = None
        self._owner = owner
        self._closing = False
        self._vanished = False
        self._enable_again = False  # asked for while disabling
        self._stale: list[Queue] = []  # of before a suspend, until their backend let go of them
        # What a suspend found waiting, as it was given.
        self._unsent: list[tuple[bytes | TransmitterPacket, int]] = []
        self._drain = Drain(self)
        self.link = Link(bus, self.path, parameters.mac_speed * GBIT, self._link_changed)
        self.advertisement = Advertisement(bus, number)
        self.watchdog = Watchdog(self)
        self._announces = False  # a suspend interrupted it: tell where its addresses went
        self._watch: Watch | None = None
        self._watched = ""
        self._task = bus.domain.task(f"{self.path} backend", self._backend_changed)
        self._windows = bus.personality == "windows"
        self.handshake = Handshake(
            domain=bus.domain,
            store=bus.store,
            path=self.path,
            table=TABLES[bus.personality],
            driver=self,
            repeats=self._windows,
            ejects=self._windows,
        )

    # life

    def start(self) -> None:
        self.handshake.start(START[self.bus.personality])

    def close(self) -> None:
        """Begin to close; the owner hears when it is done."""
        if self._closing:
            return
        self._closing = True
        self.disable()
        self._disabled()

    def drained(self) -> None:
        """What was on the rings is answered, or will not be."""
        self.handshake.start([Goal.CLOSE])

    def vanish(self) -> None:
        """The device was taken out of the store: nothing is left to shake hands with."""
        self._closing = self._vanished = True
        self._drain.stop()
        self.handshake.goals.clear()
        self.disable()
        self._disabled()

    def _disabled(self) -> None:
        """One that closes goes on, once no packet is lent any more."""
        if self.state is FrontendState.DISABLING:
            return
        if self._vanished:
            if self.queues or self._stale:
                self._await_backend()
            else:
                self._finish()
        elif self.state is FrontendState.UNKNOWN or self.handshake.backend is None:
            self._finish()
        else:
            self._drain.start()

    def packets_returned(self) -> None:
        """The last packet that was lent is back."""
        if self.state is not FrontendState.DISABLING:
            return
        self.state = FrontendState.CONNECTED
        if self._closing:
            self._disabled()
        elif self._enable_again and self.callbacks is not None:
            try:
                self.enable(self.callbacks)
            except NtStatusError as error:
                self.bus.log(f"xenvif: {self.path}: {error}\n")

    def suspend(self) -> None:
        """Early, after a migration: the backend is another machine's, no walk may reach it."""
        self.handshake.is_offline = True

    def resume(self) -> None:
        """Late: everything was void before; to Connected on the new backend, all the way.

        One that was closing closes with the new backend.
        """
        self._drain.stop()
        self.watchdog.stop()
        self._unwatch()
        self.link.unwatch()
        self.handshake.unwatch()
        self.handshake.is_offline = False
        self.receive_hash.suspend()
        for queue in self.queues:
            self._unsent += queue.suspend()
        self._stale += self.queues
        self.queues = []
        self.broken = ""
        self._announces = self._announces or self.state is FrontendState.ENABLED
        self.state = FrontendState.UNKNOWN
        self.advertisement.withdraw()
        if self.callbacks is not None:
            self.callbacks.mac_state_change()
        if self._closing:
            self._drop_unsent()
            self.handshake.start([Goal.CLOSE])
        else:
            self.start()

    def _await_backend(self) -> None:
        """The rings are mapped until the backend is Closed, and cannot be taken back before."""
        self._watch_backend("state")
        self._task.wake()  # a watch that was there has told of it already

    def _finish(self) -> None:
        self.handshake.stop()
        self._drain.forget()
        self.watchdog.forget()
        self.link.forget()
        self._unwatch()
        self.bus.domain.forget(self._task)
        self._release()
        self._drop_unsent()
        self.bus.gnttab.defer(self.quarantined)
        self._owner.closed()

    def _release(self) -> None:
        self._stale += self.queues
        self.queues = []
        self._release_stale()
        self.state = FrontendState.CLOSED
        self.watchdog.stop()
        self.advertisement.withdraw()

    def _release_stale(self) -> None:
        """The backend closed: it has nothing mapped any more, unless it cheats."""
        stale, self._stale = self._stale, []
        for queue in stale:
            self.quarantined += queue.release()
        self.quarantined += self.receive_hash.release()
        if self.quarantined:
            self.quarantined = self.bus.gnttab.retry(self.quarantined)

    def _drop_unsent(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent:
            dropped = [
                (cookie, TransmitterStatus.DROPPED, UNICAST, 0, 0, 0) for _, cookie in unsent
            ]
            self._return_packets(dropped)

    def eject_failed(self) -> None:
        """Somebody uses the interface: the system did not let it go."""
        if not self._windows:
            return
        path = f"error/{self.path}/error"
        try:
            self.bus.store.write(path, UNPLUG_FAILED)
        except StoreError as error:
            self.bus.log(f"xenvif: {path}: {error}\n")

    # what the handshake says

    def before(self, goal: Goal) -> None:
        """A goal begins."""
        if goal is Goal.PREPARE and not self._windows:
            self.handshake.switch_state(State.INITIALISING)
        if goal is Goal.CLOSE and self._windows:
            self._unwatch()  # of `online`
        if goal is Goal.CONNECT:
            try:
                self._connect()
            except (HypercallError, StoreError, LocalProtocolError) as error:
                self.error = str(error)
                self.bus.log(f"xenvif: {self.path}: {error}\n")
                self._release()
                self.handshake.start([Goal.CLOSE])

    def reached(self, goal: Goal) -> None:
        """A goal is reached."""
        if goal is Goal.PREPARE:
            self._release_stale()
            self.error = ""
            self.state = FrontendState.PREPARED
            self._watch_backend(WATCHED[self.bus.personality])
        elif goal is Goal.CONNECT:
            self.state = FrontendState.CONNECTED
            for queue in self.queues:
                queue.listen()
            self.receive_hash.attach()
            if self._windows:
                self.watchdog.start()
                self.advertisement.connected(self.mac, self._owner.addresses())
            self._owner.connected()
        elif self._closing:
            self._close_rest()
        else:
            self._release()
            if not self.handshake.goals:
                self._fail()

    def failed(self, goal: Goal, seen: Seen) -> None:
        """The walk stopped."""
        if not self.error:
            self.error = f"backend {seen.name.lower()} on the way to {goal.value}"
        if self._closing:
            self._close_rest()
        elif goal is Goal.CONNECT:
            self.handshake.start([Goal.CLOSE])
        else:
            self._release()
            self._fail()

    def _fail(self) -> None:
        self._drop_unsent()
        self._owner.failed()

    def _close_rest(self) -> None:
        """The handshake is over; a backend that is not Closed may still have the rings."""
        if (self.queues or self._stale) and self.handshake.look() not in GONE:
            self._await_backend()
        else:
            self._finish()

    def offline(self) -> None:
        """The backend is gone for good."""
        self._owner.request_eject()

    def _watch_backend(self, key: str) -> None:
        path = f"{self.handshake.backend}/{key}"
        if path == self._watched:
            return
        self._unwatch()
        try:
            self._watch = self.bus.store.watch_add(path, self._task)
            self._watched = path
        except StoreError as error:
            self.bus.log(f"xenvif: {self.path}: {error}\n")

    def _unwatch(self) -> None:
        watch, self._watch, self._watched = self._watch, None, ""
        if watch is None:
            return
        try:
            self.bus.store.watch_remove(watch)
        except StoreError as error:
            self.bus.log(f"xenvif: {self.path}: {error}\n")

    def _read_watched(self) -> str | None:
        try:
            return self.bus.store.get(self._watched)
        except StoreError:
            return None

    def _backend_changed(self) -> None:
        if not self._watched:
            return  # an event from before the watch was removed
        if self._watched.endswith("/online"):
            if not self._closing and not parse_flag(self._read_watched()):
                self._owner.request_eject()
            return
        text = self._read_watched()
        state = parse_state(text)
        if self._closing:
            if state in GONE and not self.handshake.goals:
                self._finish()
        elif self.state in UP and (text is None or state in (State.CLOSING, State.CLOSED)):
            # netback_changed of Linux does nothing at a state that is none.
            self._owner.request_eject()

    # connect

    def _connect(self) -> None:
        """Rings, channels and keys, before the backend looks at them."""
        assert not self.queues
        self.error = ""
        backend, read = self.handshake.backend, self.bus.store.get_many
        paths = [f"{backend}/{key}" for key in features.KEYS]
        mtu, *offered = read([f"{self.path}/mtu", *paths])
        self.mac.mtu = parse_mtu(mtu)
        self.features = Features.parse(offered, windows=self._windows)
        self.mac.filters_below = self.multicast_control.is_used
        for index in range(self._queue_count()):
            queue = Queue(
                bus=self.bus,
                domid=self.handshake.backend_domid,
                index=index,
                name=f"vif{self.number}-q{index}",
                returns=self._return_packets,
                upper=self.receiver,
                broken=self.break_off,
                features=self.features,
                parameters=self.parameters,
            )
            self.queues.append(queue)
            queue.connect(self.mac.maximum_frame_size)
        if self.features.ctrl_ring:
            self.receive_hash.connect(self.handshake.backend_domid)
        if not self._windows and features.wants_headroom(read([f"{backend}/{features.XDP}"])[0]):
            # netfront says what it needs by itself, before all else.
            self.bus.store.write(f"{self.path}/xdp-headroom", "0")
        keys.write(self.bus.store, self.path, self._keys())

    def _queue_count(self) -> int:
        most = min(self.bus.domain.processors, self.parameters.frontend_max_queues)
        return max(1, min(self.features.max_queues or 1, most))

    def _keys(self) -> keys.Keys:
        if not self._windows:
            return keys.linux_keys(self.queues, self.features)
        multicast = self.multicast_control.keys()
        control = self.receive_hash.keys()
        return keys.windows_keys(self.queues, self.parameters, multicast=multicast, control=control)

    # enabled

    def enable(self, callbacks: Callbacks) -> None:
        """Let frames flow. NtStatusError: the rx slots cannot all be posted, or not connected.

        While packets from before are lent it is put off until the last is back.
        """
        self.callbacks = callbacks
        if self.state is FrontendState.DISABLING:
            self._enable_again = True
            return
        if self.state is FrontendState.ENABLED or self.broken:
            return
        if self.state is not FrontendState.CONNECTED:
            reason = f"{self.path} is {self.state.value}"
            raise NtStatusError(NTSTATUS.UNSUCCESSFUL, reason, operation="VIF Enable")
        self._enable_link()
        self.receive_hash.enable()
        try:
            for queue in self.queues:
                queue.enable()
        except HypercallError as error:
            self._disable_queues()
            status = NTSTATUS.INSUFFICIENT_RESOURCES
            raise NtStatusError(status, str(error), operation="VIF Enable") from error
        self.state = FrontendState.ENABLED
        self._announce()
        self.multicast_control.replace([], self.mac.multicast)
        callbacks.mac_state_change()
        unsent, self._unsent = self._unsent, []
        if unsent:
            self.send([frame for frame, _ in unsent], [cookie for _, cookie in unsent])

    def _enable_link(self) -> None:
        if not self._windows:
            return
        try:
            self.link.watch()
        except StoreError as error:
            raise NtStatusError(status_of(error), str(error), operation="VIF Enable") from error

    def _disable_queues(self) -> None:
        for queue in self.queues:
            queue.disable()
        self.link.unwatch()

    def _announce(self) -> None:
        """After a resume, before all that waits: where the addresses of the interface are now."""
        if self._announces:
            self._announces = False
            frames = announcements(self.mac.current, self._owner.addresses())
            self.queues[0].announce(frames)

    def hash_failed(self, status: NTSTATUS) -> None:
        """The backend did not take the hash's settings: Enable fails, only later than XenVif's."""
        self.error = f"the hash of what is received: {status.name}"
        self.bus.log(f"xenvif: {self.path}: {self.error}\n")
        self.disable()

    def set_multicast(self, addresses: Sequence[bytes]) -> None:
        """Replace the list; NtStatusError for an address that is no group's."""
        old = self.mac.multicast
        self.mac.set_multicast(addresses)
        if self.state is FrontendState.ENABLED:
            self.multicast_control.replace(old, self.mac.multicast)
        if self._windows and self.state in UP:
            self.advertisement.mac(self.mac)

    def set_filter_level(self, kind: int, level: int) -> None:
        """NtStatusError for a type or a level that is none."""
        self.mac.set_filter_level(kind, level)
        if kind == PacketType.MULTICAST:
            self.multicast_control.level_changed()

    def addresses_changed(self) -> None:
        """The system gave the interface other IP addresses."""
        if self._windows and self.state in UP:
            self.advertisement.addresses(self._owner.addresses())

    def _link_changed(self) -> None:
        if self.callbacks is not None and self.state is FrontendState.ENABLED:
            self.callbacks.mac_state_change()

    @property
    def transmit_offload(self) -> Offload:
        """What the driver above may leave to be done below."""
        return self.features.transmit_offload(self.parameters)

    def receiver_set_offload_options(self, options: int) -> None:
        """Take Offload's bits; large packets only where the registry allows them."""
        self.receiver.set_offload_options(options)

    def receiver_return_packets(self, cookies: Sequence[int]) -> None:
        """Packets that were handed up come back. LocalProtocolError for one that is not lent."""
        self.receiver.return_packets(cookies)

    def disable(self) -> None:
        self._drop_unsent()
        self._enable_again = False
        if self.state is not FrontendState.ENABLED:
            return
        lent = self.receiver.lent
        self.state = FrontendState.DISABLING if lent else FrontendState.CONNECTED
        self.multicast_control.replace(self.mac.multicast, [])
        self._disable_queues()
        if self.callbacks is not None:
            self.callbacks.mac_state_change()

    def mac_state(self) -> MacState:
        up = self.state is FrontendState.ENABLED and not self.broken and self.link.is_up
        return MacState(
            link_up=up,
            speed=self.link.speed if up else 0,
            full_duplex=not self.link.is_disconnected,
        )

    def send(self, frames: Sequence[bytes | TransmitterPacket], cookies: Sequence[int]) -> None:
        """Queue packets; NtStatusError UNSUCCESSFUL unless enabled."""
        if self.state is not FrontendState.ENABLED or self.broken:
            reason = f"{self.path}: {self.broken or self.state.value}"
            raise NtStatusError(NTSTATUS.UNSUCCESSFUL, reason, operation="VIF Transmitter")
        queues = self.queues
        if len(queues) == 1:
            queues[0].send(frames, cookies)
            return
        chosen = choose(frames, len(queues), self.receive_hash.settings.mapping)
        for queue in queues:
            mine = [index for index, number in enumerate(chosen) if number == queue.index]
            if mine:
                queue.send([frames[index] for index in mine], [cookies[index] for index in mine])

    def break_off(self, why: str) -> None:
        """The backend broke the protocol: link down, every packet returned, rings left alone."""
        if self.broken:
            return
        self.broken = why
        self.bus.domain.trace.note(self.bus.domain.domid, f"{self.path}: broken: {why}")
        self.bus.log(f"xenvif: {self.path}: broken: {why}\n")
        for queue in self.queues:
            queue.stop()
        self.receive_hash.detach()
        if self.callbacks is not None:
            self.callbacks.mac_state_change()

    def _return_packets(self, completions: Sequence[Completion]) -> None:
        self.statistics.completed(completions)
        if self.callbacks is not None:
            self.callbacks.transmitter_return_packets(completions)
