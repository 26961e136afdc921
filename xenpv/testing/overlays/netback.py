"""netback under a hostile frontend: what every slot is answered, and what reaches the bridge.

The frontend sends packets of any shape with a field changed, posts pages for what comes, writes
slots, indices, grant entries, keys and states, and connects again. Whenever the backend has run,
both rings, the bridge and the guest's pages are compared with a second opinion (netjudge).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from xenpv.abi._kernel import lib
from xenpv.abi.layout import packer
from xenpv.abi.xenbus import XenbusState as State
from xenpv.host.network import Direction, Frame
from xenpv.testing.checkers import CheckFailed, check_all
from xenpv.testing.overlay import Target
from xenpv.testing.overlays.blkjudge import Grant
from xenpv.testing.overlays.language import STATES, STEPS, TEXTS, VALUES, Language, Operation, pick
from xenpv.testing.overlays.netjudge import (
    EXTRA_INFO,
    EXTRA_MORE,
    MORE_DATA,
    TX,
    Response,
    TxJudge,
)
from xenpv.testing.raw_world import MAC, RawWorld, world_raw
from xenpv.testing.sring import RawSring
from xenpv.view.rings import u32
from xenpv.xen.domain import PAGE_SIZE

DATA_PAGES: Final = 4  # sent from; those behind them are posted for what comes
RX_PAGES: Final = 3
RX: Final = packer("netif_rx_request")
RX_ANSWER: Final = packer("netif_rx_response")
TX_ANSWER: Final = packer("netif_tx_response")
GSO: Final = packer("netif_extra_info", "u.gso")
SIZES: Final = (60, 1514, 100, 1000, 4096, 14, 3000, 60, 13, 0, 8192, 65535, 200, 4097, 1, 600)
OFFSETS: Final = (0, 64, 4095, 4096, 4097, 2000, 0, 0xFFFF)
COUNTS: Final = (1, 1, 1, 2, 2, 3, 1, 4, 2, 1, 3, 1, 18, 19, 20, 22)  # slots of a packet
FLAGS: Final = (0, 0, 0, 1, 2, 3, 0, 0, 0, 0, 0, 4, 8, 16, 12, 0xFFFF)
EXTRAS: Final = (1, 2, 3, 4, 1, 4, 2, 3, 1, 4, 0, 5, 255, 1, 2, 4)
WORDS: Final = ("req_prod", "req_event", "rsp_prod", "rsp_event")
BASES: Final = (0, 0xFFFFFFFF, 0xFFFFFFF0, 0x7FFFFFFE, 0xFFFFFF00, 1, 255, 0x80000000)
ENTRIES: Final = (1, 5, 0, 2, 3, 1 | 8, 1 | 24, 5 | 8)  # GTF_*
KEYS: Final = (
    "tx-ring-ref", "rx-ring-ref", "event-channel", "event-channel-tx", "event-channel-rx",
    "multi-queue-num-queues", "queue-0/tx-ring-ref", "request-rx-copy", "feature-sg",
    "feature-rx-notify", "request-multicast-control", "ctrl-ring-ref", "event-channel-ctrl",
    "feature-no-csum-offload", "xdp-headroom", "feature-gso-tcpv4",
)  # fmt: skip
# What an honest frontend of the kit does not write, so that it goes before the next one.
FOREIGN: Final = tuple(
    key
    for key in KEYS
    if key not in ("tx-ring-ref", "rx-ring-ref", "event-channel", "request-rx-copy")
)
VBD_RINGS: Final = 1


class Wire:
    """Sees what the vif sends into the bridge, and sends frames to it, as a port of it."""

    name = "station"

    def __init__(self, port_name: str) -> None:
        self.port_name = port_name
        self.sent: list[Frame] = []

    def capture(self, port_name: str, direction: Direction, frame: Frame, _now_ns: int) -> None:
        """A frame that crosses a port."""
        if port_name == self.port_name and direction is Direction.IN:
            self.sent.append(frame)

    def lost(self, port_name: str, count: int) -> None:
        """Not asked for."""

    def receive(self, frames: Sequence[Frame]) -> None:
        """What leaves the bridge here was seen when it came in."""


class NetBackOverlay:
    """One example. `known`: the second opinion still holds."""

    def __init__(self) -> None:
        self.world: RawWorld = world_raw()
        guest = self.world.guest
        count = DATA_PAGES + RX_PAGES
        first = guest.page(count)
        self.pfns = range(first, first + count)
        self.refs = [guest.grant(pfn) for pfn in self.pfns]
        self.pages = {pfn: bytearray(PAGE_SIZE) for pfn in self.pfns}
        for at, pfn in enumerate(self.pfns[:DATA_PAGES]):
            self._write(pfn, 0, b"\xff" * 6 + MAC + bytes([at + 1]) * (PAGE_SIZE - 12))
        self.judge = TxJudge(
            pages=self.pages,
            grants={ref: Grant(1, 0, pfn) for ref, pfn in zip(self.refs, self.pfns, strict=True)},
        )
        self.others = {ref: Grant(1, 0, -1) for ref in self.world.vbd.refs}
        self.wire = Wire(f"vif{guest.domid}.0")
        bridge = self.world.bridge
        bridge.taps.append(self.wire)
        bridge.attach(self.wire)
        self.vanished = False
        self.number = 0
        self.connected(0)

    def connected(self, base: int) -> None:
        """Fresh rings whose indices begin at `base`."""
        vif, judge = self.world.vif, self.judge
        self.tx: RawSring = vif.tx
        self.rx: RawSring = vif.rx
        self.tx_prod = self.tx_cons = self.rx_prod = self.rx_cons = base
        self.taken: deque[tuple[int, int]] = deque()  # rx (id, reference) that netback has read
        self.backlog: deque[bytes] = deque()
        self.known = True
        self.knocked = False
        judge.opaque = (-1, self.tx.pfn, self.rx.pfn)
        judge.grants.update(self.others)
        judge.grants.update((ref, Grant(1, 0, -1)) for ref in (vif.tx_ref, vif.rx_ref))
        judge.wild = judge.fatal = False
        judge.groups.clear()

    def _write(self, pfn: int, offset: int, data: bytes) -> None:
        self.world.guest.domain.write(pfn, offset, data)
        self.pages[pfn][offset : offset + len(data)] = data

    # operations

    def send(self, args: bytes) -> None:
        """A packet of one to four slots, or more, with at most one field changed."""
        shape, size, where, flags, field, value = args
        slots = self._packet(shape, pick(SIZES, size), where, pick(FLAGS, flags))
        field &= 0x3F  # one in thirteen of single slots
        if 0 < field <= 5 * len(slots):
            at, name = divmod(field - 1, 5)
            fields = list(TX.unpack(slots[at]))
            fields[name] = pick(VALUES, value) % (1 << (32 if name == 0 else 16))
            slots[at] = TX.pack(*fields)
        if u32(self.tx_prod + len(slots) - self.tx_cons) > self.tx.size:
            return
        for slot in slots:
            self.tx.write_slot(self.tx_prod, slot)
            self.tx_prod = u32(self.tx_prod + 1)
        self.tx.req_prod = self.tx_prod

    def _packet(self, shape: int, size: int, where: int, flags: int) -> list[bytes]:
        """As a driver makes it: `shape` has the number of slots, and whether extras come."""
        count = pick(COUNTS, shape)
        extras = self._extras(shape >> 5 & 3, where) if shape & 0x50 == 0x50 else []
        piece = min(size // count, PAGE_SIZE - 64)
        sizes = [min(size, PAGE_SIZE) if count == 1 else size, *[piece] * (count - 1)]
        slots = []
        for at, own in enumerate(sizes):
            self.number = self.number + 1 & 0xFFFF
            more = MORE_DATA if at < count - 1 else 0
            chained = EXTRA_INFO if extras and not at else 0
            offset = pick(OFFSETS, where >> 4) if shape & 0xA0 == 0xA0 else 0
            ref = self.refs[(where + at) % DATA_PAGES]
            own_flags = flags if not at else 0
            slots.append(TX.pack(ref, offset, own_flags | more | chained, self.number, own))
        return slots[:1] + extras + slots[1:]

    def _extras(self, more: int, where: int) -> list[bytes]:
        """One to four of them, 12 bytes each as their slots are."""
        found = []
        for at in range(more + 1):
            kind = pick(EXTRAS, where + at)
            flags = EXTRA_MORE if at < more else 0
            body = GSO.pack(kind, flags, 1448 if where & 0x40 else 0, 1 + (where >> 7), 0, 0)
            found.append(body.ljust(TX.size, b"\0"))
        return found

    def post(self, args: bytes) -> None:
        """Slots for what comes."""
        count, where, value = args
        for at in range(1 + count % 5):
            if u32(self.rx_prod - self.rx_cons) >= self.rx.size:
                return
            self.number = self.number + 1 & 0xFFFF
            ref = self.refs[DATA_PAGES + (where + at) % RX_PAGES]
            if value >= 0xE0:
                ref = pick(VALUES, value) & 0xFFFFFFFF
            self.rx.write_slot(self.rx_prod, RX.pack(self.number, 0, ref))
            self.rx_prod = u32(self.rx_prod + 1)
        self.rx.req_prod = self.rx_prod

    def arrive(self, args: bytes) -> None:
        """A frame from the bridge for the guest, of one slot."""
        size, count = args
        self.settle(knock=False)
        frames = []
        for at in range(1 + count % 3):
            data = MAC + bytes((2, 0, 0, 0, 0, 1)) + bytes([size + at & 0xFF]) * (46 + 5 * size)
            frames.append(Frame(data[:1514]))
        vif = self.world.vif.backend
        if self.wire.port_name in self.world.bridge.ports and vif is not None:
            self.backlog += [frame.data for frame in frames]
            self.world.bridge.transmit(self.wire, frames, self.world.platform.loop.now)
            self.settle(knock=False)

    def slot(self, args: bytes) -> None:
        """Bytes over a slot near a producer."""
        back, offset, *data = args
        ring, prod = (self.rx, self.rx_prod) if back & 0x80 else (self.tx, self.tx_prod)
        room = ring.entry_size - len(data)
        ring.write_slot(u32(prod - back % 8), bytes(data), offset % (room + 1))

    def index(self, args: bytes) -> None:
        """A word of a header: away from where it should be, or a ring away."""
        word, step, which = args
        name = pick(WORDS, word)
        ring, prod, cons = (self.tx, self.tx_prod, self.tx_cons)
        if which & 2:
            ring, prod, cons = (self.rx, self.rx_prod, self.rx_cons)
        base = {"req_prod": prod, "rsp_event": u32(cons + 1)}.get(name, cons)
        distance = ring.size + pick((0, 1, -1), step) if which & 1 else pick(STEPS, step)
        setattr(ring, name, base + distance)

    def write(self, args: bytes) -> None:
        """Bytes of a page."""
        page, offset, value = args
        at = min(offset << 4, PAGE_SIZE - 64)
        self._write(pick(self.pfns, page), at, bytes([value]) * 64)

    def grant(self, args: bytes) -> None:
        """An entry of the table, written as it stands: flags, domain, frame."""
        which, flags, other = args
        at = which % len(self.refs)
        pfn, domid = self.pfns[at], 0
        if other & 1:
            pfn = pick((*self.pfns, 0xFFFFF, self.tx.pfn), other >> 1)
        elif other & 2:
            domid = pick((1, 0x7FF0, 0xFFFF), other >> 2)
        entry = Grant(pick(ENTRIES, flags), domid, pfn)
        self.world.guest.set_grant(self.refs[at], flags=entry.flags, domid=domid, pfn=pfn)
        known = -1 if pfn in (self.tx.pfn, self.rx.pfn) else pfn
        self.judge.grants[self.refs[at]] = Grant(entry.flags, domid, known)

    def notify(self, _args: bytes) -> None:
        """An event without a look at whether the backend wants one."""
        self._knock()

    def _knock(self) -> None:
        if self.world.vif.port:
            self.world.vif.notify()
            self.knocked = True

    def run(self, args: bytes) -> None:
        """Let the backend work, with an event before that unless told not to."""
        self.settle(knock=not args[0] & 1)

    def key(self, args: bytes) -> None:
        """A key of the frontend's directory."""
        name = pick(KEYS, args[0])
        self.world.vif.write_key(name, pick(TEXTS, args[1]).replace("\0", ""))
        if name == "request-multicast-control":
            self.known = False  # netback watches it, and its filter is not followed here

    def state(self, args: bytes) -> None:
        """The frontend's state, any text. One that is no state may end the device."""
        text = pick(STATES, args[0])
        self.world.vif.write_key("state", text)
        self.vanished |= text not in tuple("12345678")
        self.known = False

    def connect(self, args: bytes) -> None:
        """Close and connect again, with indices that begin anywhere."""
        base, how = args
        if how & 1:
            self.world.vif.announce()  # a new start without a close
            self.known = False
            return
        self.reconnect(pick(BASES, base))

    def advance(self, args: bytes) -> None:
        """Time passes: what waits too long is dropped."""
        self.settle(knock=False)
        self.world.platform.advance(args[0] / 4)

    # what must hold

    def settle(self, *, knock: bool, pages: bool = False) -> None:
        """Run, and compare with what should have come of it."""
        if knock:
            self._knock()
        world = self.world
        if not self.known or self.judge.fatal:
            world.run()
            return
        knocked, self.knocked = self.knocked, False
        before = world.vif.events
        events = (self.tx.rsp_event, self.rx.rsp_event)
        self.judge.frames.clear()
        tx = self._expected_tx() if knocked else []
        rx = self._expected_rx() if knocked or self.backlog else []
        rests = [self.tx.slot(u32(self.tx_cons + at)) for at in range(len(tx))]
        self.wire.sent.clear()
        world.run()
        if self.judge.wild:
            self.known = False
            return
        found = [*self._compare_tx(tx, rests), *self._compare_frames(), *self._compare_rx(rx)]
        if pages or tx or rx:
            found += self._compare_pages()
        asked = _asked(events[0], self.tx_cons, len(tx)) or _asked(events[1], self.rx_cons, len(rx))
        if (world.vif.events > before) != asked:
            found.append(f"rsp_event {events}: {len(tx)} and {len(rx)} answers: events are {asked}")
        if found:
            raise CheckFailed(found)
        self.tx_cons = u32(self.tx_cons + len(tx))
        self.rx_cons = u32(self.rx_cons + len(rx))

    def _expected_tx(self) -> list[Response]:
        ring, judge = self.tx, self.judge
        waiting = u32(ring.req_prod - self.tx_cons)
        if waiting > ring.size:
            judge.fatal = True
            return []
        return judge.answers([ring.slot(u32(self.tx_cons + at)) for at in range(waiting)])

    def _expected_rx(self) -> list[tuple[int, int]]:
        """(id, status) of the answers that are due: a slot for each frame that waits."""
        if self.judge.fatal:
            return []  # the vif was lost before its frames' turn
        ring = self.rx
        if self.backlog and u32(ring.req_prod - self.rx_cons) < len(self.taken):
            self.judge.wild = True  # slots were posted and taken back: netback may have them or not
            return []
        while self.backlog and len(self.taken) < len(self.backlog):
            waiting = u32(ring.req_prod - self.rx_cons)
            if waiting > ring.size:
                self.judge.fatal = True
                return []
            fresh = waiting - len(self.taken)
            if fresh <= 0:
                break
            first = u32(self.rx_cons + len(self.taken))
            slots = [ring.slot(u32(first + at)) for at in range(fresh)]
            self.taken += [(number, ref) for number, _, ref in map(RX.unpack, slots)]
        due = []
        while self.backlog and self.taken:
            number, ref = self.taken.popleft()
            data = self.backlog.popleft()
            due.append((number, len(data) if self._place(ref, data) else -1))
        self.backlog.clear()  # run() goes on until what waits has expired
        return due

    def _place(self, ref: int, data: bytes) -> bool:
        """A frame in a page; False if that may not be written."""
        grant = self.judge.grants.get(ref)
        if grant is None or not grant.allows(writable=True):
            return False
        page = self.pages.get(grant.pfn)
        if page is None:
            self.judge.wild |= grant.pfn in self.judge.opaque
            return False
        page[: len(data)] = data
        return True

    def _compare_tx(self, expected: list[Response], rests: list[bytes]) -> list[str]:
        ring, found = self.tx, []
        new = u32(self.tx_cons + len(expected))
        if expected and ring.rsp_prod != new:
            found.append(f"tx rsp_prod is {ring.rsp_prod:#x}, expected {new:#x}")
        for at, ((number, status), rest) in enumerate(zip(expected, rests, strict=True)):
            entry = ring.slot(u32(self.tx_cons + at))
            got = TX_ANSWER.unpack(entry[: TX_ANSWER.size])
            if got[1] != status or (number is not None and got[0] != number):
                found.append(f"tx response {at} is {got}, expected {(number, status)}")
            left = entry[TX_ANSWER.size :]
            if left != rest[TX_ANSWER.size :] and any(left):
                found.append(f"behind tx response {at}: {left.hex()}")
        return found

    def _compare_frames(self) -> list[str]:
        """What the bridge saw, in order: all that is sure, and of those with offloads some."""
        sent, due = self.wire.sent, self.judge.frames
        plain = [bytes(one.data) for one in sent if not (one.csum_blank or one.gso_type)]
        sure = [one.data for one in due if one.sure]
        found = []
        if plain != sure:
            found.append(f"frames of {[*map(len, plain)]} bytes, expected {[*map(len, sure)]}")
        rest = iter([len(one.data) for one in due if not one.sure])
        if not all(len(one.data) in rest for one in sent if one.csum_blank or one.gso_type):
            found.append("a frame with offloads that nobody sent")
        return found

    def _compare_rx(self, expected: list[tuple[int, int]]) -> list[str]:
        ring, found = self.rx, []
        new = u32(self.rx_cons + len(expected))
        if expected and ring.rsp_prod != new:
            found.append(f"rx rsp_prod is {ring.rsp_prod:#x}, expected {new:#x}")
        for at, (number, status) in enumerate(expected):
            got = RX_ANSWER.unpack(ring.slot(u32(self.rx_cons + at)))
            if got[:3] != (number, 0, 0) or (got[3] != status if status > 0 else got[3] >= 0):
                found.append(f"rx response {at} is {got}, expected {(number, 0, 0, status)}")
        return found

    def _compare_pages(self) -> list[str]:
        domain, found = self.world.guest.domain, []
        for at, (pfn, page) in enumerate(self.pages.items()):
            if domain.read(pfn, 0, PAGE_SIZE) != page:
                found.append(f"page {at} is not as it should be")
        return found

    def close(self) -> None:
        """Closed, whatever came before: the backend has nothing of the interface's any more."""
        world = self.world
        world.vif.state = State.CLOSED
        world.run()
        pinned = lib.grant_pinned_refs(world.guest.domain.kernel)
        if pinned > VBD_RINGS:
            raise CheckFailed([f"closed, with {pinned - VBD_RINGS} pages of the guest in use"])
        if self.wire.port_name in world.bridge.ports:
            raise CheckFailed(["closed, and still a port of the bridge"])

    def reconnect(self, base: int) -> None:
        """As an honest frontend that starts again."""
        self.settle(knock=False)
        self.close()
        if self.vanished:
            return
        world, vif = self.world, self.world.vif
        for key in FOREIGN:
            if vif.read_key(key) is not None:
                vif.remove_key(key)
        vif.state = State.INITIALISING
        world.run()
        for ref in (vif.tx_ref, vif.rx_ref):
            vif.guest.revoke(ref)
            del self.judge.grants[ref]
        vif.attach()
        for ring in (vif.tx, vif.rx):
            ring.req_prod = ring.rsp_prod = base
            ring.req_event = ring.rsp_event = base + 1
        vif.announce()
        world.run()
        vif.finish()
        domain = world.guest.domain
        for pfn, page in self.pages.items():
            page[:] = domain.read(pfn, 0, PAGE_SIZE)
        self.connected(base)
        self.settle(knock=False)

    def end(self) -> None:
        """What is left is answered, an honest frontend can connect, and all is given back."""
        self.settle(knock=True, pages=True)
        check_all(self.world.platform, hostile={self.world.guest.domid})
        if not self.known or self.judge.fatal:
            self.reconnect(0)
            if not self.vanished:
                self.send(bytes(6))
                self.post(bytes(3))
                self.settle(knock=True)
                self.arrive(bytes(2))
        self.close()


def _asked(event: int, old: int, count: int) -> bool:
    """Whether a frontend that wrote `event` is to be told of `count` answers after `old`."""
    new = u32(old + count)
    return u32(new - event) < u32(new - old)


A: Final = ("shape", "size", "where", "flags", "field", "value")
LANGUAGE: Final = Language(
    Operation("send", A, NetBackOverlay.send, 9),
    Operation("run", ("quiet",), NetBackOverlay.run, 4),
    Operation("post", ("count", "where", "value"), NetBackOverlay.post, 3),
    Operation("arrive", ("size", "count"), NetBackOverlay.arrive, 3),
    Operation("slot", ("back", "offset", "b0", "b1", "b2", "b3"), NetBackOverlay.slot, 2),
    Operation("index", ("word", "step", "which"), NetBackOverlay.index),
    Operation("write", ("page", "offset", "value"), NetBackOverlay.write),
    Operation("grant", ("which", "flags", "other"), NetBackOverlay.grant, 2),
    Operation("notify", (), NetBackOverlay.notify),
    Operation("key", ("name", "text"), NetBackOverlay.key),
    Operation("state", ("text",), NetBackOverlay.state),
    Operation("connect", ("base", "how"), NetBackOverlay.connect),
    Operation("advance", ("time",), NetBackOverlay.advance),
)


def run(data: bytes) -> None:
    """One example. Raises CheckFailed, or what escaped."""
    overlay = NetBackOverlay()
    try:
        for operation, args in LANGUAGE.read(data):
            operation.act(overlay, args)
        overlay.end()
    finally:
        overlay.world.close()


TARGET: Final = Target("net-backend", run, LANGUAGE.split, LANGUAGE.words)
