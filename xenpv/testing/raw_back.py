"""Raw backends: the backend's side of a device in a test's hands, under our real frontends.

    with world_back(seed=7) as world:
        world.vbd.hold = True                       # answer nothing by itself
        srb = world.submit(...)                     # what the guest does
        (request,) = world.vbd.sring.take()
        world.vbd.sring.rsp_prod = 1000             # what no backend would do
        world.vbd.notify()
        world.run()

A raw backend maps the rings and binds the port when the frontend is ready, and writes the
keys and states that an honest one would, unless told otherwise. What survives it must be the
frontend: fail the request, or its device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from xenpv.abi._kernel import lib
from xenpv.abi.blkif import BLKIF_OP
from xenpv.abi.layout import packer
from xenpv.abi.netif import NETIF_RSP
from xenpv.abi.xenbus import XenbusState as State
from xenpv.back.xenbus import Device
from xenpv.errors import GrantError, LocalProtocolError
from xenpv.testing.sring import RawBackSring
from xenpv.xen.domain import PAGE_SIZE, Domain
from xenpv.xen.loop import Task

# What an honest backend writes when its frontend goes to a state; absent: nothing.
BLK_ANSWERS: Final[dict[State, State]] = {
    State.INITIALISING: State.INIT_WAIT,
    State.INITIALISED: State.CONNECTED,
    State.CONNECTED: State.CONNECTED,
    State.CLOSING: State.CLOSING,
    State.CLOSED: State.CLOSED,
    State.UNKNOWN: State.CLOSED,
}
NET_ANSWERS: Final[dict[State, State]] = {
    State.INITIALISING: State.INIT_WAIT,
    State.CONNECTED: State.CONNECTED,
    State.CLOSING: State.CLOSING,
    State.CLOSED: State.CLOSED,
    State.UNKNOWN: State.CLOSED,
}


class RawBack:
    """The driver of one device, as the backend's bus makes it; `domain` is the backend's.

    `answers` say which state it writes for each of the frontend's, `features` which keys it
    writes when it is probed, `keys` which when it connects: change any of them before that
    (through the world's factory) or at any moment after. `states` are those that the frontend
    showed. `events` counts deliveries, `on_event` is called at each. `connected` tells
    whether the rings are mapped. With `maps_late` it maps them only when told by `attach`.
    """

    ready: tuple[State, ...] = ()

    def __init__(
        self,
        device: Device,
        *,
        answers: Mapping[State, State],
        features: Mapping[str, str],
        keys: Mapping[str, str],
    ) -> None:
        self.device = device
        self.domain: Domain = device.domain
        self.answers = dict(answers)
        self.features = dict(features)
        self.keys = dict(keys)
        self.states: list[State] = []
        self.maps_late = False
        self.events = 0
        self.on_event: Callable[[], object] | None = None
        self.port = 0
        self._tasks: list[Task] = []
        self._ports: list[int] = []
        self._maps: dict[int, int] = {}  # pfn: handle

    # the bus' side

    def probe(self) -> None:
        """Features, then the state that answers a frontend at Initialising."""
        for key, value in self.features.items():
            self.device.write(key, value)
        answer = self.answers.get(State.INITIALISING)
        if answer is not None:
            self.device.switch_state(answer)

    def frontend_changed(self, state: State) -> None:
        """Attach or detach as an honest one would, then write the answer."""
        self.states.append(state)
        if state in self.ready and not self.connected and not self.maps_late:
            self.attach()
        if state in (State.CLOSED, State.UNKNOWN):
            self.detach()
        answer = self.answers.get(state)
        if answer is not None:
            self.device.switch_state(answer)

    def hotplug_changed(self) -> None:
        """The script is done; a raw backend has nothing to open."""

    def remove(self) -> None:
        """The directory is gone."""
        self.detach()

    # rings and events

    @property
    def connected(self) -> bool:
        return bool(self._ports)

    def attach(self) -> None:
        """Map what the frontend's keys name, bind its port, write `keys`.

        PeerProtocolError, GrantError, HypercallError for keys that lead nowhere.
        """
        raise NotImplementedError

    def bind(self, port: int) -> int:
        """Bind a port of the frontend; events on it count. The local port."""
        local = self.domain.evtchn.bind_interdomain(self.device.frontend_domid, port)
        self._tasks.append(
            self.device.dispatcher.bind(local, f"raw {self.device.name}", self.event)
        )
        self._ports.append(local)
        self.port = self._ports[0]
        return local

    def event(self) -> None:
        """A delivery."""
        self.events += 1
        if self.on_event is not None:
            self.on_event()

    def notify(self) -> None:
        """EVTCHNOP_send on every bound port, whether or not a ring asked for it."""
        for port in self._ports:
            self.domain.evtchn.send(port)

    def detach(self) -> None:
        """Unmap everything, close the ports; a second call does nothing."""
        for port in self._ports:
            self.device.dispatcher.unbind(port)
            self.domain.evtchn.close(port)
        self._ports.clear()
        self._tasks.clear()
        for pfn in list(self._maps):
            self.unmap(pfn)

    # the frontend's pages

    def map(self, ref: int, *, readonly: bool = False) -> int:
        """Map a reference of the frontend: the pfn here. GrantError."""
        pfn = self.domain.holes.alloc()
        try:
            handle = self.domain.gnttab.map(self.device.frontend_domid, ref, pfn, readonly=readonly)
        except GrantError:
            self.domain.holes.free(pfn)
            raise
        self._maps[pfn] = handle
        return pfn

    def unmap(self, pfn: int) -> None:
        """Undo a `map`. LocalProtocolError if nothing of it is there."""
        handle = self._maps.pop(pfn, None)
        if handle is None:
            raise LocalProtocolError(f"nothing is mapped at pfn {pfn:#x}")
        self.domain.gnttab.unmap(handle, pfn)
        self.domain.holes.free(pfn)

    @property
    def mapped(self) -> int:
        """Pages of the frontend that are mapped now."""
        return len(self._maps)

    def read(self, ref: int, offset: int = 0, size: int = PAGE_SIZE) -> bytes:
        """Bytes of a granted page, mapped read-only for a moment. GrantError."""
        pfn = self.map(ref, readonly=True)
        try:
            return self.domain.read(pfn, offset, size)
        finally:
            self.unmap(pfn)

    def fill(self, ref: int, data: bytes, offset: int = 0) -> None:
        """Write into a granted page, mapped for a moment. GrantError."""
        pfn = self.map(ref)
        try:
            self.domain.write(pfn, offset, data)
        finally:
            self.unmap(pfn)

    # store

    def write_key(self, key: str, value: str) -> None:
        """A key of the backend's directory; any text."""
        self.device.write(key, value)

    def frontend_key(self, key: str) -> str | None:
        return self.device.frontend_get(key)

    @property
    def state(self) -> State:
        return self.device.state

    @state.setter
    def state(self, state: State) -> None:
        """Write a state, whatever came before; the frontend hears of it when the loop runs."""
        self.device.switch_state(state)

    def _ring(self, refs: list[int], req: str, rsp: str) -> RawBackSring:
        pfns = tuple(self.map(ref) for ref in refs)
        return RawBackSring(self.domain, pfns, req=req, rsp=rsp)


BLK_FEATURES: Final = {"max-ring-page-order": "0", "multi-queue-max-queues": "1"}
BLK_KEYS: Final = {"sectors": "2048", "sector-size": "512", "info": "0", "feature-flush-cache": "1"}
BLK_REQUEST: Final = packer("blkif_request")
BLK_RESPONSE: Final = packer("blkif_response")


class RawBlkBack(RawBack):
    """A block backend of one ring, x86_64 ABI: `sring` stands while it is connected.

    Requests are `blkif_request` (112 bytes), responses `blkif_response` (16). While `hold` is
    False it is the barest honest disk: each request is answered OKAY as it comes, data left
    as it is. Set `hold` to answer by hand.
    """

    ready = (State.INITIALISED, State.CONNECTED)

    def __init__(self, device: Device) -> None:
        super().__init__(device, answers=BLK_ANSWERS, features=BLK_FEATURES, keys=BLK_KEYS)
        self.hold = False
        self.sring: RawBackSring

    def attach(self) -> None:
        device = self.device
        order = device.frontend_number("ring-page-order", -1)
        names = [f"ring-ref{at}" for at in range(1 << order)] if order >= 0 else ["ring-ref"]
        refs = [device.frontend_number(name, 0) for name in names]
        self.sring = self._ring(refs, "blkif_request", "blkif_response")
        self.bind(device.frontend_number("event-channel", 0))
        for key, value in self.keys.items():
            device.write(key, value)

    def event(self) -> None:
        super().event()
        if not self.hold and self.connected:
            for raw in self.sring.take():
                self.answer(raw, 0)

    def answer(self, request: bytes, status: int) -> None:
        """Publish the response to a request that was taken; an event if the frontend asks."""
        operation, _, _, rid = BLK_REQUEST.unpack(request)[:4]
        self.respond(rid, operation, status)

    def respond(self, rid: int, operation: int, status: int) -> None:
        """Any response, published. HypercallError(ENOSPC) for more than were taken."""
        if self.sring.push(BLK_RESPONSE.pack(rid, operation, status), 1):
            self.notify()

    def segments(self, request: bytes) -> list[tuple[int, int, int]]:
        """(reference, first sector, last sector) of a direct request that was taken."""
        fields = BLK_REQUEST.unpack(request)
        count = min(fields[1], 11)
        flat = fields[5:]
        return [(flat[3 * at], flat[3 * at + 1], flat[3 * at + 2]) for at in range(count)]

    def is_write(self, request: bytes) -> bool:
        return request[0] == BLKIF_OP.WRITE


NET_FEATURES: Final = {"feature-sg": "1", "feature-rx-copy": "1"}
EXTRA_INFO: Final[int] = lib.NETTXF_extra_info
MORE_DATA: Final[int] = lib.NETTXF_more_data
EXTRA_MORE: Final[int] = lib.XEN_NETIF_EXTRA_FLAG_MORE
OKAY: Final = int(NETIF_RSP.OKAY)
NULL: Final = int(NETIF_RSP.NULL)
TX_REQUEST: Final = packer("netif_tx_request")
TX_RESPONSE: Final = packer("netif_tx_response")
RX_REQUEST: Final = packer("netif_rx_request")
RX_RESPONSE: Final = packer("netif_rx_response")


class RawNetBack(RawBack):
    """A network backend of one queue; `tx` and `rx` are its rings while it is connected.

    While `hold` is False it answers each tx slot (OKAY, or NULL for an extra) and puts what
    was sent into `frames`. `posted` are the (id, reference) of rx slots taken.
    """

    ready = (State.CONNECTED,)

    def __init__(self, device: Device) -> None:
        super().__init__(device, answers=NET_ANSWERS, features=NET_FEATURES, keys={})
        self.hold = False
        self.frames: list[bytes] = []
        self.posted: list[tuple[int, int]] = []
        self.tx: RawBackSring
        self.rx: RawBackSring

    def attach(self) -> None:
        device = self.device
        home = "queue-0/" if device.frontend_number("multi-queue-num-queues", 1) > 1 else ""

        def number(key: str) -> int:
            return device.frontend_number(home + key, 0)

        self.tx = self._ring([number("tx-ring-ref")], "netif_tx_request", "netif_tx_response")
        self.rx = self._ring([number("rx-ring-ref")], "netif_rx_request", "netif_rx_response")
        shared = number("event-channel")
        names = ["event-channel"] if shared else ["event-channel-tx", "event-channel-rx"]
        for name in names:
            self.bind(number(name))
        for key, value in self.keys.items():
            device.write(key, value)

    def detach(self) -> None:
        super().detach()
        self.posted.clear()

    def event(self) -> None:
        super().event()
        if not self.hold and self.connected:
            slots = deque(self.tx.take())
            while slots:
                self.receive(slots)

    def receive(self, slots: deque[bytes]) -> None:
        """Take one frame off `slots` (all of it must be there), keep it and answer its slots."""
        first = slots.popleft()
        chain = [TX_REQUEST.unpack(first)]
        more = chain[0][2] & EXTRA_INFO
        extras = 0
        while more:
            more = slots.popleft()[1] & EXTRA_MORE
            extras += 1
        while chain[-1][2] & MORE_DATA:
            chain.append(TX_REQUEST.unpack(slots.popleft()))
        # The first slot's size is the whole frame's (io/netif.h).
        rest = sum(size for _, _, _, _, size in chain[1:])
        sizes = [chain[0][4] - rest, *(size for _, _, _, _, size in chain[1:])]
        pieces = zip(chain, sizes, strict=True)
        self.frames.append(b"".join(self.read(one[0], one[1], size) for one, size in pieces))
        answers = [(chain[0][3], OKAY), *[(0, NULL)] * extras]
        for rid, status in [*answers, *((one[3], OKAY) for one in chain[1:])]:
            self.answer_tx(rid, status)

    def answer_tx(self, rid: int, status: int) -> None:
        """Publish a tx response; an event if the frontend asks."""
        if self.tx.push(TX_RESPONSE.pack(rid, status), 1):
            self.notify()

    def take_posted(self) -> None:
        """Take the rx slots that the guest has posted since."""
        for raw in self.rx.take():
            rid, _, ref = RX_REQUEST.unpack(raw)
            self.posted.append((rid, ref))

    def answer_rx(self, rid: int, status: int, *, offset: int = 0, flags: int = 0) -> None:
        """Publish an rx response: `status` is a size in bytes, or a negative error."""
        if self.rx.push(RX_RESPONSE.pack(rid, offset, flags, status), 1):
            self.notify()

    def send(self, frame: bytes) -> None:
        """What an honest backend does with a frame of up to a page. LocalProtocolError if the
        guest has posted no page for it.
        """
        self.take_posted()
        if not self.posted:
            raise LocalProtocolError("the guest has posted no page")
        rid, ref = self.posted.pop(0)
        self.fill(ref, frame)
        self.answer_rx(rid, len(frame))
