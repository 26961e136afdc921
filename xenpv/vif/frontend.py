"""One interface's way to its backend and back (win-xenvif frontend.c).

What is done at each state of the backend is in states.py.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final, Protocol

from xenpv.abi.xenbus import XenbusState as State
from xenpv.bus.handshake import Goal, Handshake, Seen, parse_flag, parse_state
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.store import Watch
from xenpv.bus.xenbus import XenBus
from xenpv.errors import HypercallError, LocalProtocolError, StoreError
from xenpv.vif.callbacks import Callbacks, Completion, PacketType, TransmitterStatus
from xenpv.vif.drain import Drain
from xenpv.vif.features import Features
from xenpv.vif.hashing import choose
from xenpv.vif.mac import MTU_DEFAULT, MTU_MIN, SPEED, Mac, MacState, address_text
from xenpv.vif.multicast import MulticastControl
from xenpv.vif.options import ReceiverOptions
from xenpv.vif.packet import Offload, TransmitterPacket
from xenpv.vif.parameters import DEFAULTS, GSO_TCPV4, GSO_TCPV6, Parameters
from xenpv.vif.queue import Queue
from xenpv.vif.receiver import Receiver
from xenpv.vif.states import GONE, START, TABLES, WATCHED
from xenpv.vif.statistics import Statistics

UNPLUG_FAILED: Final = "UNPLUG FAILED: device is still in use"

UNICAST: Final = PacketType.UNICAST
RETRIES_MAX: Final = 10


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
        self.hash_mapping: Sequence[int] = ()  # the queue of each value of a hash, modulo its size
        self.receiver = Receiver(self)
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
        self._unwatch()
        self.handshake.unwatch()
        self.handshake.is_offline = False
        for queue in self.queues:
            self._unsent += queue.suspend()
        self._stale += self.queues
        self.queues = []
        self.broken = ""
        self.state = FrontendState.UNKNOWN
        self._forget_attributes()
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
        self._forget_attributes()

    def _release_stale(self) -> None:
        """The backend closed: it has nothing mapped any more, unless it cheats."""
        stale, self._stale = self._stale, []
        for queue in stale:
            self.quarantined += queue.release()
        if self.quarantined:
            self.quarantined = self.bus.gnttab.retry(self.quarantined)

    def _drop_unsent(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent:
            dropped = [
                (cookie, TransmitterStatus.DROPPED, UNICAST, 0, 0, 0) for _, cookie in unsent
            ]
            self._return_packets(dropped)

    def _forget_attributes(self) -> None:
        if self._windows:
            self._discard(f"attr/vif/{self.number}")

    def _discard(self, path: str) -> None:
        try:
            self.bus.store.discard(path)
        except StoreError as error:
            self.bus.log(f"xenvif: {path}: {error}\n")

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
            if self._windows:
                self._advertise()
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
        state = parse_state(self._read_watched())
        if self._closing:
            if state in GONE and not self.handshake.goals:
                self._finish()
        elif self.state in UP and (state is State.CLOSING or state in GONE):
            self._owner.request_eject()

    # connect

    def _connect(self) -> None:
        """Rings, channels and keys, before the backend looks at them."""
        assert not self.queues
        self.error = ""
        self.mac.mtu = self._mtu()
        self.features = Features.read(self._backend_key, windows=self._windows)
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
        self._write(self._windows_keys() if self._windows else self._linux_keys())

    def _mtu(self) -> int:
        text = self.bus.store.get(f"{self.path}/mtu")
        if text is None:
            return MTU_DEFAULT
        mtu = int(text) if text.isdecimal() and len(text) < 10 else 0
        if mtu < MTU_MIN:
            raise LocalProtocolError(f"mtu {text!r} is below {MTU_MIN}")
        return mtu

    def _backend_key(self, key: str) -> str | None:
        return self.bus.store.get(f"{self.handshake.backend}/{key}")

    def _queue_count(self) -> int:
        most = min(self.bus.domain.processors, self.parameters.frontend_max_queues)
        return max(1, min(self.features.max_queues or 1, most))

    def _home(self, queue: Queue) -> str:
        return f"queue-{queue.index}/" if len(self.queues) > 1 else ""

    def _windows_keys(self) -> list[tuple[str, str | None]]:
        """In XenVif's order; None removes."""
        gso = self.parameters.receiver.gso_types
        keys: list[tuple[str, str | None]] = [
            ("request-rx-copy", "1"),
            ("feature-sg", "1"),
            ("feature-rx-notify", "1"),
            ("feature-gso-tcpv4-prefix", None),
            ("feature-gso-tcpv4", str(int(GSO_TCPV4 in gso))),
            ("feature-gso-tcpv6-prefix", None),
            ("feature-gso-tcpv6", str(int(GSO_TCPV6 in gso))),
            ("feature-no-csum-offload", "0"),
            ("feature-ipv6-csum-offload", "1"),
        ]
        for queue in self.queues:
            keys += [(self._home(queue) + key, value) for key, value in queue.rx_keys()]
        keys += self.multicast_control.keys()
        for queue in self.queues:
            keys += [(self._home(queue) + key, value) for key, value in queue.tx_keys()]
        keys.append(("multi-queue-num-queues", str(len(self.queues))))
        return keys

    def _linux_keys(self) -> list[tuple[str, str | None]]:
        """In netfront's order; a backend does sums over IPv4 unless it is told not to."""
        keys: list[tuple[str, str | None]] = []
        if self.features.max_queues is not None:
            keys.append(("multi-queue-num-queues", str(len(self.queues))))
        for queue in self.queues:
            rx, tx = queue.rx_keys(), queue.tx_keys()
            ordered = [tx[0], rx[0], *tx[1:], *rx[1:]]
            keys += [(self._home(queue) + key, value) for key, value in ordered]
        return [
            *keys,
            ("request-rx-copy", "1"),
            ("feature-rx-notify", "1"),
            ("feature-sg", "1"),
            ("feature-gso-tcpv4", "1"),
            ("feature-gso-tcpv6", "1"),
            ("feature-ipv6-csum-offload", "1"),
        ]

    def _write(self, keys: Sequence[tuple[str, str | None]]) -> None:
        store = self.bus.store
        for _ in range(RETRIES_MAX):
            transaction = store.transaction_start()
            try:
                for key, value in keys:
                    path = f"{self.path}/{key}"
                    if value is not None:
                        store.write(path, value, transaction)
                    elif store.get(path, transaction) is not None:
                        store.remove(path, transaction)
            except StoreError:
                store.transaction_end(transaction, commit=False)
                raise
            if store.transaction_end(transaction, commit=True):
                return
        raise StoreError("EAGAIN", f"{self.path}: no commit in {RETRIES_MAX} tries")

    def _advertise(self) -> None:
        """What tools of the host show of the interface."""
        base = f"attr/vif/{self.number}"
        name = "Ethernet" if not self.number else f"Ethernet {self.number + 1}"
        store = self.bus.store
        try:
            store.discard(f"{base}/mac")
            store.discard(f"{base}/name")
            store.write(f"{base}/name", name)
            for index, address in enumerate([self.mac.current, *self.mac.multicast]):
                store.write(f"{base}/mac/{index}", address_text(address))
        except StoreError as error:
            self.bus.log(f"xenvif: {base}: {error}\n")

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
        try:
            for queue in self.queues:
                queue.enable()
        except HypercallError as error:
            status = NTSTATUS.INSUFFICIENT_RESOURCES
            raise NtStatusError(status, str(error), operation="VIF Enable") from error
        self.state = FrontendState.ENABLED
        self.multicast_control.replace([], self.mac.multicast)
        callbacks.mac_state_change()
        unsent, self._unsent = self._unsent, []
        if unsent:
            self.send([frame for frame, _ in unsent], [cookie for _, cookie in unsent])

    def set_multicast(self, addresses: Sequence[bytes]) -> None:
        """Replace the list; NtStatusError for an address that is no group's."""
        old = self.mac.multicast
        self.mac.set_multicast(addresses)
        if self.state is FrontendState.ENABLED:
            self.multicast_control.replace(old, self.mac.multicast)
        if self._windows and self.state in UP:
            self._advertise()

    def set_filter_level(self, kind: int, level: int) -> None:
        """NtStatusError for a type or a level that is none."""
        self.mac.set_filter_level(kind, level)
        if kind == PacketType.MULTICAST:
            self.multicast_control.level_changed()

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
        for queue in self.queues:
            queue.disable()
        if self.callbacks is not None:
            self.callbacks.mac_state_change()

    def mac_state(self) -> MacState:
        up = self.state is FrontendState.ENABLED and not self.broken
        return MacState(link_up=up, speed=SPEED if up else 0)

    def send(self, frames: Sequence[bytes | TransmitterPacket], cookies: Sequence[int]) -> None:
        """Queue packets; NtStatusError UNSUCCESSFUL unless enabled."""
        if self.state is not FrontendState.ENABLED or self.broken:
            reason = f"{self.path}: {self.broken or self.state.value}"
            raise NtStatusError(NTSTATUS.UNSUCCESSFUL, reason, operation="VIF Transmitter")
        queues = self.queues
        if len(queues) == 1:
            queues[0].send(frames, cookies)
            return
        chosen = choose(frames, len(queues), self.hash_mapping)
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
        if self.callbacks is not None:
            self.callbacks.mac_state_change()

    def _return_packets(self, completions: Sequence[Completion]) -> None:
        self.statistics.completed(completions)
        if self.callbacks is not None:
            self.callbacks.transmitter_return_packets(completions)
