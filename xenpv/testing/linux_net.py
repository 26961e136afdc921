"""A second network frontend: what Linux' netfront does, at its smallest.

One queue, no close before the first connect, and nothing in common with xenpv.vif: it stands on
the parts of a raw guest, so that a misreading of io/netif.h on one side shows.

    with world_net() as world:
        world.net.send(frame)
        world.run()
        assert world.bridge.frames[-1] == frame

Keys, their order and the checks of responses are netfront's (drivers/net/xen-netfront.c). What
it sends is copied into zeroed pages (trusted=0 does that there); what it receives is copied out
and the same page is posted again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.abi.layout import packer
from xenpv.abi.xenbus import XenbusState as State
from xenpv.back.xenbus import state_of
from xenpv.bus.evtchn import Channel
from xenpv.bus.ring import FrontRing
from xenpv.errors import HypercallError, LocalProtocolError, PeerProtocolError
from xenpv.host.image import MemoryImage
from xenpv.host.xs import XsHandle
from xenpv.host.xswatch import XsWatches
from xenpv.platform import Platform
from xenpv.testing.raw_front import BACKEND_DOMID, RawGuest
from xenpv.testing.raw_world import RawWorld
from xenpv.xen.domain import PAGE_SIZE
from xenpv.xen.loop import Chooser

TX_REQUEST: Final = packer("netif_tx_request")
TX_RESPONSE: Final = packer("netif_tx_response")
RX_REQUEST: Final = packer("netif_rx_request")
RX_RESPONSE: Final = packer("netif_rx_response")
EXTRA_GSO: Final = packer("netif_extra_info", "u.gso")

SLOTS_MAX: Final[int] = lib.XEN_NETIF_NR_SLOTS_MIN
SIZE_MAX: Final = 65_535  # XEN_NETIF_MAX_TX_SIZE
RX_TARGET: Final = 64  # NET_RX_SLOTS_MIN and a bit: pages posted
KEYS: Final = (
    "request-rx-copy",
    "feature-rx-notify",
    "feature-sg",
    "feature-gso-tcpv4",
    "feature-gso-tcpv6",
    "feature-ipv6-csum-offload",
)


@attrs.frozen
class Received:
    """A packet that came: `gso` is (type, MSS), both 0 without the extra."""

    data: bytes
    csum_blank: bool = False
    data_validated: bool = False
    gso: tuple[int, int] = (0, 0)


class LinuxNet:
    """netfront of one device of a raw guest: connects as soon as the backend waits for it.

    `received` are packets, `completed` the statuses of sent ones in the order of their answers.
    `broken` says why the backend is believed no more; nothing is sent or received then.
    """

    def __init__(self, guest: RawGuest, devid: int) -> None:
        self.guest = guest
        self.path = f"/local/domain/{guest.domid}/device/vif/{devid}"
        self.xs = XsHandle(guest.platform.xenstored.connect_local(f"netfront d{guest.domid}"))
        self.backend = self.xs.read(f"{self.path}/backend") or ""
        self.state = State.INITIALISING
        self.received: list[Received] = []
        self.completed: list[int] = []
        self.errors = 0  # packets from the backend that were none
        self.broken = ""
        self.split = False
        self._waiting: deque[tuple[bytes, list[tuple[int, ...]]]] = deque()
        self._channels: list[Channel] = []
        self._rings: list[int] = []  # their references
        self._tx_pages: dict[int, tuple[int, int]] = {}  # by id: pfn, reference
        self._rx_pages: list[tuple[int, int]] = []  # by slot
        self._chain: list[tuple[int, bytes]] = []  # flags and bytes of slots of one packet
        self._gso = (0, 0)
        self._extra = False  # the next slot is one
        self._bad = False  # the packet has an error
        self.tx: FrontRing
        self.rx: FrontRing
        self._watches = XsWatches(guest.domain, self.xs)
        self._token = self._watches.add(f"{self.backend}/state", self._backend_changed)

    # the backend's states: netback_changed

    def _backend_changed(self) -> None:
        state = state_of(self.xs.read(f"{self.backend}/state"))
        if state is State.INIT_WAIT and self.state is State.INITIALISING:
            self._connect()
        elif state is State.CLOSING and self.state in (State.CONNECTED, State.CLOSING):
            self._switch(State.CLOSED)
        elif state in (State.CLOSED, State.UNKNOWN) and self.state in (
            State.CLOSING,
            State.CLOSED,
        ):
            self._release()

    def _switch(self, state: State) -> None:
        self.state = state
        self.xs.write(f"{self.path}/state", str(int(state)))

    def close(self) -> None:
        """xennet_remove: Closing, and Closed when the backend has seen it."""
        self._switch(State.CLOSING)

    def reopen(self) -> None:
        """A new driver instance. LocalProtocolError: the old one still has its rings."""
        if self._rings:
            raise LocalProtocolError(f"{self.path}: not released yet")
        self.broken = ""
        self._switch(State.INITIALISING)

    # connect: talk_to_netback

    def _connect(self) -> None:
        offered = self._number("feature-rx-copy")
        if not offered:
            self.broken = "backend does not support copying receive path"
            return
        if self._number("feature-xdp-headroom"):
            self.xs.write(f"{self.path}/xdp-headroom", "0")
        self.split = bool(self._number("feature-split-event-channels"))
        multi_queue = self.xs.read(f"{self.backend}/multi-queue-max-queues") is not None
        self.tx = self._ring("netif_tx")
        self.rx = self._ring("netif_rx")
        for handler in (self._tx_event, self._rx_event) if self.split else (self._event,):
            channel = self.guest.evtchn.open_unbound(BACKEND_DOMID, handler)
            self.guest.evtchn.unmask(channel, force=True)
            self._channels.append(channel)
        ports = [str(channel.port) for channel in self._channels]
        names = ["event-channel-tx", "event-channel-rx"] if self.split else ["event-channel"]
        keys = {"multi-queue-num-queues": "1"} if multi_queue else {}
        keys |= {"tx-ring-ref": str(self._rings[0]), "rx-ring-ref": str(self._rings[1])}
        keys |= dict(zip(names, ports, strict=True)) | dict.fromkeys(KEYS, "1")
        self.xs.transaction(lambda t: self.xs.write_all(self.path, keys, t))
        self._switch(State.CONNECTED)
        self._post(RX_TARGET)

    def _number(self, key: str) -> int:
        text = self.xs.read(f"{self.backend}/{key}")
        return int(text) if text is not None and text.isdecimal() else 0

    def _ring(self, name: str) -> FrontRing:
        pfn = self.guest.page()
        self.guest.domain.write(pfn, 0, bytes(PAGE_SIZE))  # xenbus_setup_ring: XSA-403
        self._rings.append(self.guest.grant(pfn))
        sizes = packer(f"{name}_request").size, packer(f"{name}_response").size
        return FrontRing(self.guest.domain, (pfn,), req_size=sizes[0], rsp_size=sizes[1], kind=name)

    def _release(self) -> None:
        """The backend let go: pages, references and ports come back; packets are lost."""
        guest = self.guest
        for channel in self._channels:
            guest.evtchn.close(channel)
        for pfn, ref in [*self._tx_pages.values(), *self._rx_pages]:
            guest.revoke(ref)
            guest.domain.pages.free(pfn)
        for ref, ring in zip(self._rings, (self.tx, self.rx) if self._rings else (), strict=True):
            guest.revoke(ref)
            guest.domain.pages.free(ring.pfns[0])
        if self._rings:
            del self.tx, self.rx  # so that nobody takes them for rings of these pages
        self._channels.clear()
        self._rings.clear()
        self._tx_pages.clear()
        self._rx_pages.clear()
        self._chain.clear()
        self._waiting.clear()
        if self.state is State.CLOSING:
            self._switch(State.CLOSED)

    # transmit: xennet_start_xmit

    def send(
        self,
        data: bytes,
        *,
        csum_blank: bool = False,
        data_validated: bool = False,
        gso: tuple[int, int] = (0, 0),
    ) -> None:
        """One packet; `gso` is (type, MSS). It waits while the ring is full, or pages are short.

        LocalProtocolError: it is longer than 65,535 bytes, or the interface is not connected.
        """
        if self.state is not State.CONNECTED or self.broken:
            raise LocalProtocolError(f"{self.path}: {self.broken or self.state.name.lower()}")
        if len(data) > SIZE_MAX:
            raise LocalProtocolError(f"a packet of {len(data)} bytes, {SIZE_MAX} at most")
        flags = lib.NETTXF_csum_blank | lib.NETTXF_data_validated if csum_blank else 0
        flags |= lib.NETTXF_data_validated if data_validated else 0
        extras: list[tuple[int, ...]] = []
        if gso[0]:
            flags |= lib.NETTXF_extra_info
            extras.append((lib.XEN_NETIF_EXTRA_TYPE_GSO, 0, gso[1], gso[0], 0, 0))
        self._waiting.append((data, [(flags,), *extras]))
        self._transmit()

    def _transmit(self) -> None:
        """What fits of what waits; one notice for all of it."""
        notify = False
        while self._waiting:
            data, ((flags,), *extras) = self._waiting[0]
            pages = [data[at : at + PAGE_SIZE] for at in range(0, len(data), PAGE_SIZE)]
            if min(self.tx.free, self.guest.domain.pages.free_pages) < SLOTS_MAX + 1:
                break
            self._waiting.popleft()
            notify = self._push(pages, len(data), flags, extras) or notify
        if notify:
            self.guest.domain.evtchn.send(self._channels[0].port)

    def _push(
        self, pages: Sequence[bytes], total: int, flags: int, extras: Sequence[tuple[int, ...]]
    ) -> bool:
        """The slots of one packet: the first has the size of it all, and extras follow it."""
        guest = self.guest
        numbers = (number for number in range(self.tx.size) if number not in self._tx_pages)
        slots = []
        for index, page in enumerate(pages):
            pfn = guest.page()
            guest.domain.write(pfn, 0, page.ljust(PAGE_SIZE, b"\0"))
            ref = guest.grant(pfn, readonly=True)
            number = next(numbers)
            self._tx_pages[number] = pfn, ref
            more = lib.NETTXF_more_data if index < len(pages) - 1 else 0
            size = len(page) if index else total
            slots.append(TX_REQUEST.pack(ref, 0, (0 if index else flags) | more, number, size))
            if not index:
                slots += [EXTRA_GSO.pack(*one).ljust(TX_REQUEST.size, b"\0") for one in extras]
        return self.tx.push(b"".join(slots), len(slots))

    def _tx_event(self) -> None:
        """xennet_tx_buf_gc."""
        if self.broken or not self._rings:
            return
        try:
            while True:
                _, raw = self.tx.take()
                for number, status in TX_RESPONSE.iter_unpack(bytes(raw)):
                    self._completed(number, status)
                if not self.tx.final_check():
                    break
        except (PeerProtocolError, HypercallError) as error:
            self.broken = str(error)
            return
        self._transmit()

    def _completed(self, number: int, status: int) -> None:
        if status == lib.NETIF_RSP_NULL:
            return
        sent = self._tx_pages.pop(number, None)
        if sent is None:
            raise PeerProtocolError(f"tx response for id {number}, which is not in use")
        pfn, ref = sent
        if not self.guest.revoke(ref):
            raise PeerProtocolError(f"tx {number}: the grant is still in use by the backend")
        self.guest.domain.pages.free(pfn)
        self.completed.append(status)

    # receive: xennet_poll

    def _post(self, count: int) -> None:
        """Fresh pages for the next slots."""
        for _ in range(count):
            pfn = self.guest.page()
            self._rx_pages.append((pfn, self.guest.grant(pfn)))
        self._push_rx(range(count))

    def _push_rx(self, pages: Sequence[int]) -> None:
        """Post pages again, by their place in `_rx_pages`; an id is such a place."""
        packed = [RX_REQUEST.pack(at, 0, self._rx_pages[at][1]) for at in pages]
        if packed and self.rx.push(b"".join(packed), len(packed)):
            self.guest.domain.evtchn.send(self._channels[-1].port)

    def _rx_event(self) -> None:
        if self.broken or not self._rings:
            return
        try:
            while True:
                first = self.rx.rsp_cons
                count, raw = self.rx.take()
                slots = bytes(raw)
                used = [(first + at) % RX_TARGET for at in range(count)]
                for at, page in enumerate(used):
                    self._slot(slots[at * 8 : at * 8 + 8], page)
                self._push_rx(used)
                if not self.rx.final_check():
                    break
        except (PeerProtocolError, HypercallError) as error:
            self.broken = str(error)

    def _slot(self, raw: bytes, page: int) -> None:
        """One response. The slot says which page it is about: an extra has no id."""
        if self._extra:
            kind, flags, size, gso_type, _, _ = EXTRA_GSO.unpack(raw)
            self._extra = bool(flags & lib.XEN_NETIF_EXTRA_FLAG_MORE)
            if kind == lib.XEN_NETIF_EXTRA_TYPE_GSO and size:
                self._gso = gso_type, size
            else:
                self._bad = True
        else:
            number, offset, flags, status = RX_RESPONSE.unpack(raw)
            if number != page or status < 0 or offset + status > PAGE_SIZE:
                self._bad = True
                status = 0
            pfn, _ = self._rx_pages[page]
            self._chain.append((flags, self.guest.domain.read(pfn, offset % PAGE_SIZE, status)))
            # A first slot alone says whether extras follow.
            self._extra = bool(flags & lib.NETRXF_extra_info) and len(self._chain) == 1
        if not self._extra and not self._chain[-1][0] & lib.NETRXF_more_data:
            self._finish()

    def _finish(self) -> None:
        """The packet is whole."""
        flags = self._chain[0][0]
        data = b"".join([data for _, data in self._chain])
        if self._bad or len(self._chain) > SLOTS_MAX:
            self.errors += 1
        else:
            blank, validated = lib.NETRXF_csum_blank, lib.NETRXF_data_validated
            packet = Received(data, bool(flags & blank), bool(flags & validated), self._gso)
            self.received.append(packet)
        self._chain.clear()
        self._gso = (0, 0)
        self._bad = False

    def _event(self) -> None:
        self._tx_event()
        self._rx_event()


class NetWorld(RawWorld):
    """A raw world whose interface has this frontend: `net`. world_net's has no disk."""

    net: LinuxNet

    def connect(self) -> None:
        """LocalProtocolError if the backend refuses."""
        self.net = LinuxNet(self.guest, 0)
        self.platform.run()
        state = self.vif.backend_state
        if state is not State.CONNECTED:
            raise LocalProtocolError(f"{self.net.backend} is {state.name.lower()}")


def world_net(
    seed: int = 0,
    *,
    netback: str = "linux",
    bridge: str = "xenbr0",
    chooser: Chooser | None = None,
) -> NetWorld:
    """A platform, a raw guest and its interface, connected to that netback.

    Use it as a context manager, or `close` it.
    """
    platform = Platform(seed=seed, chooser=chooser, netback=netback)
    try:
        world = NetWorld(platform, MemoryImage(bytearray(512)), bridge, kinds=("vif",))
        world.connect()
    except BaseException:
        platform.close()
        raise
    return world
