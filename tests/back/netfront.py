"""A raw network frontend in a test's hands: slots as fields, and a port that keeps frames."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import pack, unpack

import attrs

from xenpv.abi.xenbus import XenbusState
from xenpv.back.netback import Netback
from xenpv.back.txrules import TxRules
from xenpv.host.network import Frame
from xenpv.testing.raw_world import RawWorld

CSUM_BLANK, DATA_VALIDATED, MORE, EXTRA = 1, 2, 4, 8
RX_VALIDATED, RX_BLANK = 1, 2
ERROR, OKAY, NULL = -1, 0, 1
GSO, MCAST_ADD, MCAST_DEL, HASH = 1, 2, 3, 4
GUEST_MAC = bytes.fromhex("00163e000001")
PEER_MAC = bytes.fromhex("00163e0000ee")


def slot(gref: int, offset: int, flags: int, number: int, size: int) -> bytes:
    """A tx request, as its bytes lie on the ring."""
    return pack("<IHHHH", gref, offset, flags, number, size)


def extra(kind: int, body: bytes = b"", *, more: bool = False) -> bytes:
    """An extra in a slot of the tx ring."""
    return (bytes((kind, more)) + body).ljust(12, b"\0")


def gso(size: int, kind: int) -> bytes:
    return pack("<HBBH", size, kind, 0, 0)


def frame(size: int, *, source: bytes = GUEST_MAC, destination: bytes = PEER_MAC) -> bytes:
    """`size` bytes, each payload byte telling its place."""
    body = bytes(at * 7 + at // 251 & 0xFF for at in range(max(0, size - 14)))
    return (destination + source + b"\x88\xb5" + body)[:size]


@attrs.define(eq=False)
class Sink:
    """A station that says nothing."""

    name: str = "sink"
    frames: list[Frame] = attrs.field(factory=list)

    def receive(self, frames: Sequence[Frame]) -> None:
        self.frames.extend(frames)

    @property
    def data(self) -> list[bytes]:
        return [one.data for one in self.frames]


@attrs.define(eq=False)
class Net:
    """The interface of a raw world, with a station at the other end of its bridge."""

    world: RawWorld
    sink: Sink = attrs.field(factory=Sink)

    def __attrs_post_init__(self) -> None:
        self.world.bridge.attach(self.sink)

    @property
    def back(self) -> Netback:
        device = self.world.vif.backend
        assert device is not None
        assert isinstance(device.driver, Netback)
        return device.driver

    def page(self, data: bytes = b"", offset: int = 0, *, readonly: bool = True) -> int:
        """A reference to a fresh page with `data` at `offset`."""
        guest = self.world.guest
        pfn = guest.page()
        if data:
            guest.domain.write(pfn, offset, data)
        return guest.grant(pfn, readonly=readonly)

    def send(self, slots: Iterable[bytes]) -> list[tuple[int, int]]:
        """Publish slots and run: (id, status) of every response, in order."""
        packed = [one.ljust(12, b"\0") for one in slots]
        self.world.vif.tx.push(b"".join(packed), len(packed))
        self.world.vif.notify()
        self.world.run()
        return [unpack("<Hh", raw) for raw in self.world.vif.tx.take()]

    def chain(self, data: bytes, sizes: Sequence[int], *, flags: int = 0) -> list[bytes]:
        """Slots for `data` cut into `sizes`, ids 100 and on; no page crosses."""
        assert sum(sizes) == len(data)
        slots = []
        at = 0
        for index, size in enumerate(sizes):
            more = MORE if index < len(sizes) - 1 else 0
            first = flags if not index else 0
            total = len(data) if not index else size
            gref = self.page(data[at : at + size])
            slots.append(slot(gref, 0, more | first, 100 + index, total))
            at += size
        return slots

    def post(self, count: int) -> list[int]:
        """Post `count` rx slots and notify; the pfns behind them. Ids count from 0."""
        pfns, notify = self.post_silently(count)
        if notify:
            self.world.vif.notify()
        return pfns

    def post_silently(self, count: int) -> tuple[list[int], bool]:
        """Post `count` rx slots: their pfns, and whether the backend wants to know."""
        guest, ring = self.world.guest, self.world.vif.rx
        first = ring.ring.req_prod
        pfns = [guest.page() for _ in range(count)]
        requests = [
            pack("<HHI", (first + index) % 256, 0, guest.grant(pfn))
            for index, pfn in enumerate(pfns)
        ]
        return pfns, ring.push(b"".join(requests), count)

    def post_one_page(self, count: int) -> None:
        """Post `count` rx slots that all lead to one page, and notify."""
        guest, ring = self.world.guest, self.world.vif.rx
        ref = guest.grant(guest.page())
        first = ring.ring.req_prod
        slots = [pack("<HHI", (first + index) % 256, 0, ref) for index in range(count)]
        ring.push(b"".join(slots), count)
        self.world.vif.notify()

    def deliver(self, *frames: Frame) -> None:
        """Frames from the station at the other end."""
        self.world.bridge.transmit(self.sink, list(frames), self.world.platform.loop.now)
        self.world.run()

    def deliver_at_once(self, *frames: Frame) -> None:
        """The same while time stands still."""
        self.world.bridge.transmit(self.sink, list(frames), self.world.platform.loop.now)
        self.world.platform.loop.advance(0)

    def received(self) -> list[tuple[int, int, int, int]]:
        """(id, offset, flags, status) of every rx response."""
        return [unpack("<HHHh", raw) for raw in self.world.vif.rx.take()]


def reconnect_at(net: Net, index: int) -> None:
    """Close, and connect again with rings whose counters stand at `index`."""
    front = net.world.vif
    front.state = XenbusState.CLOSED
    net.world.run()
    front.state = XenbusState.INITIALISING
    net.world.run()
    front.attach()
    for ring in (front.tx, front.rx):
        ring.req_prod = ring.rsp_prod = index
        ring.req_event = ring.rsp_event = index + 1
        ring.ring.seek(index)
    front.announce()
    net.world.run()
    front.finish()


def serve_by(net: Net, rules: TxRules, index: int = 0) -> None:
    """Connect again to a backend that reads its tx ring by `rules`; counters from `index` on."""
    net.back.profile = attrs.evolve(net.back.profile, tx=rules)
    reconnect_at(net, index)
