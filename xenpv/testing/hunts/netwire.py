"""Both sides of a vif by hand: a frontend that says what it will, a station on the bridge.

What scenarios of the network are made of. Whatever is wrong on the wire (half a packet, an
answer to nobody) is raised where it is seen, as AssertionError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.abi.layout import packer
from xenpv.host.image import MemoryImage
from xenpv.host.network import Frame
from xenpv.platform import Platform
from xenpv.testing.explorer import Explorer
from xenpv.testing.raw_front import RawNetFront
from xenpv.testing.raw_world import MAC, RawWorld
from xenpv.testing.sring import RawSring
from xenpv.xen.domain import PAGE_SIZE

TX_REQUEST: Final = packer("netif_tx_request")
TX_RESPONSE: Final = packer("netif_tx_response")
RX_REQUEST: Final = packer("netif_rx_request")
RX_RESPONSE: Final = packer("netif_rx_response")
EXTRA: Final = packer("netif_extra_info")
EXTRA_GSO: Final = packer("netif_extra_info", "u.gso")

CONTROL_REQUEST: Final = packer("xen_netif_ctrl_request")
CONTROL_RESPONSE: Final = packer("xen_netif_ctrl_response")

OKAY: Final[int] = lib.NETIF_RSP_OKAY
ERROR: Final[int] = lib.NETIF_RSP_ERROR
NULL: Final[int] = lib.NETIF_RSP_NULL
MORE_DATA: Final[int] = lib.NETTXF_more_data
EXTRA_INFO: Final[int] = lib.NETTXF_extra_info
EXTRA_MORE: Final[int] = lib.XEN_NETIF_EXTRA_FLAG_MORE
RX_MORE_DATA: Final[int] = lib.NETRXF_more_data
RX_EXTRA_INFO: Final[int] = lib.NETRXF_extra_info

STATION: Final = bytes.fromhex("00163e0000fe")
NO_REF: Final = 1000  # a reference that nobody grants
ETHERTYPE: Final = b"\x88\xb5"  # for experiments

# id of the slot, None of one that held an extra; status
Answer = tuple[int | None, int]


def frame(size: int, seed: int = 1) -> bytes:
    """From the guest to the station: `size` bytes, no two pieces of them alike."""
    head = STATION + MAC + ETHERTYPE
    return (head + bytes((seed + at * at + (at >> 8)) & 0xFF for at in range(size)))[:size]


@attrs.frozen
class Piece:
    """A data slot: its bytes, where they begin in their page, and what else may be said of it.

    `size` None: as many as there are. `ref` None: that of a page which is granted for it.
    """

    data: bytes
    offset: int = 0
    size: int | None = None
    ref: int | None = None


@attrs.frozen
class Packet:
    """Slots as they go onto a ring; `ids` has None where one is an extra."""

    slots: tuple[bytes, ...]
    ids: tuple[int | None, ...]

    def answered(self, status: int) -> list[Answer]:
        """One answer for each slot: that status, and NULL for extras."""
        return [(None, NULL) if one is None else (one, status) for one in self.ids]


def gso_extra(size: int, kind: int = 1, flags: int = 0) -> bytes:
    return EXTRA_GSO.pack(lib.XEN_NETIF_EXTRA_TYPE_GSO, flags, size, kind, 0, 0)


def extra(kind: int, body: bytes = b"", flags: int = 0) -> bytes:
    return EXTRA.pack(kind, flags, body.ljust(6, b"\0"))


@attrs.frozen
class Got:
    """A packet that the guest received: what its first slot said, its extras, its bytes.

    `statuses` are those of its data slots.
    """

    flags: int
    data: bytes
    statuses: tuple[int, ...]
    extras: tuple[bytes, ...] = ()


class Wire:
    """One queue's rings of a raw frontend, from connect on: `answers` and `got` as they come."""

    def __init__(self, front: RawNetFront, tx: RawSring | None = None) -> None:
        self.front = front
        self.guest = front.guest
        self.tx = front.tx if tx is None else tx
        self.answers: list[Answer] = []
        self.got: list[Got] = []
        self.notify = front.notify
        self._next = 0
        self._posted = 0
        self._scraps: list[int] = []  # slots beyond the producer
        self._pages: list[int] = []  # rx, by id
        if tx is None:
            front.on_event = self.collect

    # out

    def packet(
        self,
        *pieces: Piece,
        flags: int = 0,
        extras: Sequence[bytes] = (),
        total: int | None = None,
    ) -> Packet:
        """The slots of a packet; `total` None: what its pieces have together."""
        if total is None:
            total = sum([len(one.data) for one in pieces])
        slots: list[bytes] = []
        ids: list[int | None] = []
        for index, piece in enumerate(pieces):
            ref = self._granted(piece.data, piece.offset) if piece.ref is None else piece.ref
            size = len(piece.data) if piece.size is None else piece.size
            said = (flags if not index else 0) | (MORE_DATA if index < len(pieces) - 1 else 0)
            said |= EXTRA_INFO if extras and not index else 0
            size = total if not index else size
            slots.append(TX_REQUEST.pack(ref, piece.offset, said, self._next & 0xFF, size))
            ids.append(self._next & 0xFF)
            self._next += 1
            if not index:
                slots += [one.ljust(TX_REQUEST.size, b"\0") for one in extras]
                ids += [None] * len(extras)
        return Packet(tuple(slots), tuple(ids))

    def _granted(self, data: bytes, offset: int) -> int:
        pfn = self.guest.page()
        room = PAGE_SIZE - offset
        self.guest.domain.write(pfn, offset, data[:room])
        return self.guest.grant(pfn, readonly=True)

    def send(self, packet: Packet) -> None:
        """Publish it whole, and notify if that is asked for."""
        if self.tx.push(b"".join(packet.slots), len(packet.slots)):
            self.notify()

    def scrap(self, ahead: int, slot: bytes) -> None:
        """Write a slot so many after the producer, which does not move."""
        index = self.tx.ring.req_prod + ahead
        self._scraps.append(index)
        self.tx.write_slot(index, slot)

    def tidy(self) -> None:
        """Nothing is left in such slots."""
        scraps, self._scraps = self._scraps, []
        for index in scraps:
            self.tx.write_slot(index, bytes(self.tx.entry_size))

    # in

    def post(self, count: int) -> None:
        """That many whole pages for what comes; their ids go on from the last."""
        packed = []
        for _ in range(count):
            pfn = self.guest.page()
            self._pages.append(pfn)
            packed.append(RX_REQUEST.pack(self._posted, 0, self.guest.grant(pfn)))
            self._posted += 1
        if self.front.rx.push(b"".join(packed), count):
            self.notify()

    def collect(self) -> None:
        """What is there now."""
        for raw in self.tx.take():
            number, status = TX_RESPONSE.unpack(raw)
            self.answers.append((None, status) if status == NULL else (number, status))
        if self.tx is self.front.tx:
            slots = self.front.rx.take()
            while slots:
                self.got.append(self._packet(slots))

    def _packet(self, slots: list[bytes]) -> Got:
        """Take one packet off the slots; all of it must be there (io/netif.h)."""
        first = slots.pop(0)
        chain = [RX_RESPONSE.unpack(first)]
        extras: list[bytes] = []
        more = chain[0][2] & RX_EXTRA_INFO
        while more:
            assert slots, "half a packet is on the rx ring: an extra is missing"
            extras.append(slots.pop(0))
            more = extras[-1][1] & EXTRA_MORE
        while chain[-1][2] & RX_MORE_DATA:
            assert slots, "half a packet is on the rx ring: data is missing"
            chain.append(RX_RESPONSE.unpack(slots.pop(0)))
        data = [
            self.guest.domain.read(self._pages[number], offset, status)
            for number, offset, _flags, status in chain
            if status > 0
        ]
        statuses = tuple(one[3] for one in chain)
        return Got(chain[0][2], b"".join(data), statuses, tuple(extras))


class Station:
    """A port of a world's bridge, in dom0's hands; `received` are the frames that came."""

    def __init__(self, world: RawWorld) -> None:
        self.name = "station"
        self.bridge = world.bridge
        self.received: list[Frame] = []
        self._loop = world.platform.loop
        self.bridge.attach(self)

    def receive(self, frames: Sequence[Frame]) -> None:
        """Of the bridge."""
        self.received += frames

    def send(self, frames: Sequence[Frame]) -> None:
        """Onto the bridge; call it in a handler of dom0."""
        self.bridge.transmit(self, frames, self._loop.now)

    @property
    def data(self) -> list[bytes]:
        return [one.data for one in self.received]


def wired(
    x: Explorer, *, netback: str = "linux", connect: bool = True, queues: int = 0, **parameters: Any
) -> RawWorld:
    """As x.world_raw, with that netback. With `queues` it offers so many, as its module
    parameter max_queues and a dom0 of as many vcpus make it do.
    """
    if queues:
        parameters["dom0_vcpus"] = queues
    platform = x.adopt(Platform(netback=netback, **parameters))
    if queues:
        platform.netback = attrs.evolve(platform.netback, queues_max=queues)
    world = RawWorld(platform, MemoryImage(bytearray(512)), "xenbr0")
    if connect:
        world.connect()
    return world


class Control:
    """A vif with a control ring, connected; `statuses` are those of the answers, in their order."""

    SET_FLAGS: Final[int] = lib.XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS
    GET_FLAGS: Final[int] = lib.XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS
    SET_KEY: Final[int] = lib.XEN_NETIF_CTRL_TYPE_SET_HASH_KEY
    SET_SIZE: Final[int] = lib.XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE
    SET_MAPPING: Final[int] = lib.XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING
    SET_ALGORITHM: Final[int] = lib.XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM
    SUCCESS: Final[int] = lib.XEN_NETIF_CTRL_STATUS_SUCCESS
    NOT_SUPPORTED: Final[int] = lib.XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED
    INVALID: Final[int] = lib.XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER

    def __init__(self, world: RawWorld) -> None:
        """Of a world that is not connected yet."""
        self.guest = world.guest
        self.statuses: list[int] = []
        self._number = 0
        world.run()
        pfn = self.guest.page()
        self._ring = RawSring(
            self.guest.domain, pfn, 1, req="xen_netif_ctrl_request", rsp="xen_netif_ctrl_response"
        )
        self._channel = self.guest.evtchn.open_unbound(0, self._collect)
        self.guest.evtchn.unmask(self._channel, force=True)
        world.vif.attach()
        world.vif.announce(
            {
                "ctrl-ring-ref": str(self.guest.grant(pfn)),
                "event-channel-ctrl": str(self._channel.port),
            }
        )
        world.run()
        world.vif.finish()

    def table(self, entries: Sequence[int]) -> int:
        """A reference to a page that begins with these u32."""
        pfn = self.guest.page()
        self.guest.domain.write(pfn, 0, b"".join(one.to_bytes(4, "little") for one in entries))
        return self.guest.grant(pfn)

    def ask(self, kind: int, *data: int) -> None:
        """One request."""
        self._number += 1
        words = (*data, 0, 0, 0)[:3]
        if self._ring.push(CONTROL_REQUEST.pack(self._number, kind, *words), 1):
            self.guest.domain.evtchn.send(self._channel.port)

    def _collect(self) -> None:
        for raw in self._ring.take():
            number, _kind, status, _value = CONTROL_RESPONSE.unpack(raw)
            assert number == len(self.statuses) + 1, f"an answer to request {number}"
            self.statuses.append(status)
