"""A raw network backend of any shape: several queues, split events, a control ring.

It does nothing that its case did not ask for, but for the states that it answers: what is sent
stays on the ring until the case takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from xenpv.back.xenbus import Device
from xenpv.errors import GrantError
from xenpv.testing.cases.claims import holds
from xenpv.testing.cases.netslots import (
    CTRL_REQUEST,
    CTRL_RESPONSE,
    EXTRA_INFO,
    GET_HASH_FLAGS,
    GET_MAPPING_SIZE,
    MORE_DATA,
    NULL,
    OKAY,
    RX_REQUEST,
    SUCCESS,
    TX_REQUEST,
    TX_RESPONSE,
)
from xenpv.testing.raw_back import RawNetBack
from xenpv.testing.sring import RawBackSring

PAGE: Final = 4096
# What an honest backend says to a control request, by type; 0 to all others.
REPLIES: Final = {GET_HASH_FLAGS: 0xF, GET_MAPPING_SIZE: 128}


@attrs.frozen
class Request:
    """A tx request as it lay on the ring; `own` are its own bytes, of the first slot too."""

    gref: int
    offset: int
    flags: int
    number: int
    size: int
    own: int


@attrs.frozen
class Sent:
    """A packet that was taken off a tx ring: its data slots, and its extras as 12 bytes each."""

    slots: list[Request]
    extras: list[bytes]
    queue: int

    @property
    def size(self) -> int:
        return self.slots[0].size

    @property
    def answers(self) -> list[tuple[int, int]]:
        """OKAY for each slot, NULL behind the first for each extra."""
        first, *rest = [(one.number, OKAY) for one in self.slots]
        return [first, *[(0, NULL)] * len(self.extras), *rest]


@attrs.define(eq=False)
class BackQueue:
    """One queue as the backend has mapped it. `posted` are (id, reference) of rx slots taken."""

    tx: RawBackSring
    rx: RawBackSring
    ports: list[int]
    posted: list[tuple[int, int]] = attrs.field(factory=list)


class QueuedBack(RawNetBack):
    """`queues` stand while it is connected, and `ctrl` if the frontend has a control ring.

    `replies`: what it says to control requests, by type: (status, data); None: nothing at all.
    `asked` are the control requests that it saw.
    """

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self.hold = True
        self.queues: list[BackQueue] = []
        self.ctrl: RawBackSring | None = None
        self.ctrl_port = 0
        self.replies: Mapping[int, tuple[int, int]] | None = {}
        self.asked: list[tuple[int, ...]] = []
        self.seen: list[dict[str, str | None]] = []  # keys of the frontend at each connect

    def attach(self) -> None:
        device = self.device
        count = device.frontend_number("multi-queue-num-queues", 1)
        names = [f"queue-{at}/" for at in range(count)] if count > 1 else [""]
        self.queues = [self._queue(home) for home in names]
        self.tx, self.rx = self.queues[0].tx, self.queues[0].rx
        ref = device.frontend_number("ctrl-ring-ref", 0)
        if ref:
            self.ctrl = self._ring([ref], "xen_netif_ctrl_request", "xen_netif_ctrl_response")
            self.ctrl_port = self.bind(device.frontend_number("event-channel-ctrl", 0))
        for key, value in self.keys.items():
            device.write(key, value)

    def _queue(self, home: str) -> BackQueue:
        number = self.device.frontend_number
        tx = self._ring([number(f"{home}tx-ring-ref", 0)], "netif_tx_request", "netif_tx_response")
        rx = self._ring([number(f"{home}rx-ring-ref", 0)], "netif_rx_request", "netif_rx_response")
        shared = number(f"{home}event-channel", 0)
        names = ["event-channel"] if shared else ["event-channel-tx", "event-channel-rx"]
        return BackQueue(tx, rx, [self.bind(number(home + name, 0)) for name in names])

    def detach(self) -> None:
        super().detach()
        self.queues = []
        self.ctrl = None
        self.ctrl_port = 0

    def event(self) -> None:
        super().event()
        self.serve_control()

    # transmit

    def take(self, queue: int = 0) -> list[Sent]:
        """Packets of a tx ring since the last call. Wrong: half a packet."""
        slots = self.queues[queue].tx.take()
        found = []
        while slots:
            found.append(self._take(slots, queue))
        return found

    def _take(self, slots: list[bytes], queue: int) -> Sent:
        head = TX_REQUEST.unpack(slots.pop(0))
        extras = []
        more = bool(head[2] & EXTRA_INFO)
        while more:
            holds(slots, "an extra that is not there yet")
            extras.append(slots.pop(0))
            more = bool(extras[-1][1] & 1)
        later: list[tuple[int, ...]] = []
        more = bool(head[2] & MORE_DATA)
        while more:
            holds(slots, "a packet of which a slot is not there yet")
            later.append(TX_REQUEST.unpack(slots.pop(0)))
            more = bool(later[-1][2] & MORE_DATA)
        own = head[4] - sum(one[4] for one in later)
        first = Request(head[0], head[1], head[2], head[3], head[4], own)
        rest = [Request(one[0], one[1], one[2], one[3], one[4], one[4]) for one in later]
        return Sent([first, *rest], extras, queue)

    def bytes_of(self, sent: Sent) -> bytes:
        """What a packet carries. GrantError."""
        return b"".join(self.read(one.gref, one.offset, one.own) for one in sent.slots)

    def respond(self, *responses: tuple[int, int], queue: int = 0) -> None:
        """Publish tx responses (id, status), and notify as the frontend asks."""
        ring = self.queues[queue]
        packed = b"".join(TX_RESPONSE.pack(*one) for one in responses)
        if ring.tx.push(packed, len(responses)):
            self.domain.evtchn.send(ring.ports[0])

    # receive

    def take_slots(self, queue: int = 0) -> list[tuple[int, int]]:
        """All that is posted now and not answered: (id, reference) of each."""
        ring = self.queues[queue]
        for raw in ring.rx.take():
            number, _, gref = RX_REQUEST.unpack(raw)
            ring.posted.append((number, gref))
        return ring.posted

    def publish(self, *responses: bytes, queue: int = 0) -> None:
        """Publish rx responses as they are, and notify as the frontend asks."""
        ring = self.queues[queue]
        if ring.rx.push(b"".join(responses), len(responses)):
            self.domain.evtchn.send(ring.ports[-1])

    # control ring

    def serve_control(self) -> None:
        """Answer what was asked by `replies`."""
        if self.ctrl is None or self.replies is None:
            return
        for raw in self.ctrl.take():
            number, kind, *data = CTRL_REQUEST.unpack(raw)
            self.asked.append((number, kind, *data))
            status, value = self.replies.get(kind, (SUCCESS, REPLIES.get(kind, 0)))
            self.reply(number, kind, status, value)

    def reply(self, number: int, kind: int, status: int, data: int = 0) -> None:
        """Publish a control response, and notify."""
        assert self.ctrl is not None
        self.ctrl.push(CTRL_RESPONSE.pack(number, kind, status, data), 1)
        self.domain.evtchn.send(self.ctrl_port)

    # grants

    def is_granted(self, gref: int, *, readonly: bool = True) -> bool:
        """Whether a page can be mapped by that reference now."""
        try:
            pfn = self.map(gref, readonly=readonly)
        except GrantError:
            return False
        self.unmap(pfn)
        return True
