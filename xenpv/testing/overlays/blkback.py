"""blkback under a hostile frontend: what each request is answered, moves and leaves alone.

The frontend writes well-formed requests with a field changed, slots and indices as bytes, grant
entries, keys and states; it connects again with another layout, more pages, or indices near
their end. Whenever the backend has run, the ring, the disk and the guest's pages are compared
with a second opinion (blkjudge). Once a state or a ring page is spoilt nothing is known but
that the backend lives, and takes the next honest frontend.
"""

from __future__ import annotations

from typing import Final

from xenpv.abi._kernel import lib
from xenpv.abi.xenbus import XenbusState as State
from xenpv.host.image import MemoryImage
from xenpv.testing.blk_layout import SEGMENT, SEGMENTS_MAX
from xenpv.testing.checkers import CheckFailed, check_all
from xenpv.testing.overlay import Target
from xenpv.testing.overlays.blkjudge import (
    BARRIER,
    DISCARD,
    FLUSH,
    INDIRECT,
    READ,
    SECTORS_PER_PAGE,
    WIRES,
    WRITE,
    Disk,
    Grant,
    Judge,
    Wire,
)
from xenpv.testing.overlays.language import STATES, STEPS, TEXTS, VALUES, Language, Operation, pick
from xenpv.testing.raw_world import IMAGE_BYTES, RawWorld, world_raw
from xenpv.testing.sring import RawSring
from xenpv.view.rings import fields, u32
from xenpv.xen.domain import PAGE_SIZE

DATA_PAGES: Final = 5
TABLE: Final = DATA_PAGES  # the page after them holds indirect segments
# What a request asks for; the first of them at 0.
WISHES: Final = (
    READ, WRITE, READ, WRITE, INDIRECT, WRITE, FLUSH, DISCARD, READ, BARRIER, INDIRECT, WRITE,
    READ, DISCARD, 4, 255,
)  # fmt: skip
COUNTS: Final = (1, 1, 2, 3, 5, 11, 0, 2)
INDIRECT_COUNTS: Final = (1, 12, 32, 2, 256, 11, 257, 0)
WORDS: Final = ("req_prod", "req_event", "rsp_prod", "rsp_event")
BASES: Final = (0, 0xFFFFFFFF, 0xFFFFFFF0, 0x7FFFFFFE, 0xFFFFFFE0, 1, 31, 0x80000000)
ENTRIES: Final = (1, 5, 0, 2, 3, 1 | 8, 1 | 24, 5 | 8)  # GTF_*
KEYS: Final = (
    "ring-ref", "event-channel", "protocol", "ring-page-order", "feature-persistent", "ring-ref0",
    "ring-ref1", "multi-queue-num-queues", "queue-0/ring-ref", "queue-0/event-channel",
    "feature-large-sector-size",
)  # fmt: skip
# Every grant that an honest connection leaves behind: the interface's two rings.
VIF_RINGS: Final = 2


class BlkBackOverlay:
    """One example. `known`: the second opinion still holds; else why is not."""

    def __init__(self, variant: int) -> None:
        """`variant`: bit 0 a read-only disk, bit 1 one of 4 KiB sectors."""
        data = bytearray(IMAGE_BYTES)
        size = 4096 if variant & 2 else 512
        image = MemoryImage(data, writable=not variant & 1, sector_size=size)
        self.data = data
        self.world: RawWorld = world_raw(image=image)
        guest = self.world.guest
        first = guest.page(DATA_PAGES + 1)
        self.pfns = range(first, first + DATA_PAGES + 1)
        self.refs = [guest.grant(pfn) for pfn in self.pfns]
        vif = self.world.vif
        self.others = {ref: Grant(1, 0, -1) for ref in (vif.tx_ref, vif.rx_ref)}
        self.judge = Judge(
            wire=WIRES[0],
            disk=Disk(bytearray(data), bool(variant & 1), size),
            pages={pfn: bytearray(PAGE_SIZE) for pfn in self.pfns},
            grants={ref: Grant(1, 0, pfn) for ref, pfn in zip(self.refs, self.pfns, strict=True)},
        )
        self.spoilt: list[str] = []  # keys
        self.vanished = False
        self.sent = 0
        self.connected(0)

    def connected(self, base: int) -> None:
        """A fresh ring whose indices begin at `base`."""
        vbd, judge = self.world.vbd, self.judge
        self.ring: RawSring = vbd.sring
        self.prod = self.cons = base
        self.halted = False
        self.known = True
        self.knocked = False
        judge.opaque = (-1, *self.ring.pfns)
        judge.grants.update(self.others)
        judge.grants.update((ref, Grant(1, 0, -1)) for ref in vbd.refs)
        judge.wild = False

    def _look(self) -> None:
        """Copy the disk and the pages: what came of requests was not followed."""
        if not self.known or self.halted:
            judge, domain = self.judge, self.world.guest.domain
            judge.disk.data[:] = self.data
            for pfn, page in judge.pages.items():
                page[:] = domain.read(pfn, 0, PAGE_SIZE)

    # operations

    def request(self, args: bytes) -> None:
        """The next slot: a request of ours with at most one field changed, published."""
        wish, shape, where, sector, field, value = args
        ring, wire = self.ring, self.judge.wire
        if u32(self.prod - self.cons) >= ring.size:
            return
        operation = pick(WISHES, wish)
        name, packed = self._slot(operation, shape, where, self._sector(sector))
        slot = bytearray(packed.ljust(wire.request_size, b"\0"))
        changed = fields(name + wire.suffix)
        field &= 0x7F  # three in ten of those that have the most fields
        if 0 < field <= len(changed):
            _, at, size = changed[field - 1]
            slot[at : at + size] = (pick(VALUES, value) % (1 << 8 * size)).to_bytes(size, "little")
        ring.write_slot(self.prod, bytes(slot))
        self.prod = u32(self.prod + 1)
        ring.req_prod = self.prod

    def _slot(self, operation: int, shape: int, where: int, sector: int) -> tuple[str, bytes]:
        """The struct's name and its bytes."""
        wire, handle = self.judge.wire, self.world.vbd.devid & 0xFFFF
        self.sent += 1
        rid = self.sent
        if operation == DISCARD:
            count = pick((8, 1, 0, 64, 16), shape)
            return "blkif_request_discard", wire.discard.pack(5, 0, handle, rid, sector, count)
        if operation == INDIRECT:
            count = pick(INDIRECT_COUNTS, shape)
            self._fill_table(count, where)
            head = (INDIRECT, shape >> 3 & 1, count, rid, sector, handle)
            tail = () if not wire.suffix else (0,)
            packed = wire.indirect.pack(*head, self.refs[TABLE], *[0] * 7, *tail)
            return "blkif_request_indirect", packed
        empty = operation in (FLUSH, BARRIER) and not shape & 8
        count = 0 if empty else pick(COUNTS, shape)
        flat = [word for at in range(count) for word in self._segment(where, at)]
        flat += [0] * (3 * SEGMENTS_MAX - len(flat))
        return "blkif_request", wire.direct.pack(operation, count, handle, rid, sector, *flat)

    def _segment(self, where: int, at: int) -> tuple[int, int, int]:
        """Reference, first and last sector: whole pages, or parts that differ."""
        ref = self.refs[(where + at) % DATA_PAGES]
        if not where & 0x40:
            return ref, 0, SECTORS_PER_PAGE - 1
        first = (where + 3 * at) % SECTORS_PER_PAGE
        return ref, first, first + (where >> 3) % (SECTORS_PER_PAGE - first)

    def _fill_table(self, count: int, where: int) -> None:
        segments = [self._segment(where | (0x40 if count > 16 else 0), at) for at in range(count)]
        if count > 16:  # a sector each: the disk is no larger
            segments = [(ref, first, first) for ref, first, _ in segments]
        table = b"".join([SEGMENT.pack(*one) for one in segments])
        self._write_page(TABLE, 0, table)

    def _sector(self, byte: int) -> int:
        """Within the disk mostly, and around its end."""
        sectors = self.judge.disk.sectors
        if byte < 0xC0:
            return (byte << 3) % sectors
        return max(0, sectors - 8 + (byte & 15)) if byte < 0xE0 else pick(VALUES, byte)

    def slot(self, args: bytes) -> None:
        """Bytes over a slot near the producer, as a frontend may at any moment."""
        back, offset, *data = args
        ring = self.ring
        room = ring.entry_size - len(data)
        ring.write_slot(u32(self.prod - back % 4), bytes(data), offset % (room + 1))

    def index(self, args: bytes) -> None:
        """A word of the header: away from where it should be, or a ring away."""
        word, step, ring = args
        name = pick(WORDS, word)
        base = {"req_prod": self.prod, "rsp_event": u32(self.cons + 1)}.get(name, self.cons)
        distance = pick(STEPS, step)
        if ring & 1:
            distance = self.ring.size + pick((0, 1, -1), step)
        setattr(self.ring, name, base + distance)

    def write(self, args: bytes) -> None:
        """Bytes of a data page."""
        page, offset, value = args
        self._write_page(page % (DATA_PAGES + 1), offset << 4, bytes([value]) * 64)

    def _write_page(self, page: int, offset: int, data: bytes) -> None:
        pfn = self.pfns[page]
        data = data[: PAGE_SIZE - offset]
        self.world.guest.domain.write(pfn, offset, data)
        self.judge.pages[pfn][offset : offset + len(data)] = data

    def grant(self, args: bytes) -> None:
        """An entry of the table, written as it stands: flags, domain, frame."""
        which, flags, other = args
        at = which % (DATA_PAGES + 1)
        pfn = self.pfns[at]
        domid = 0
        if other & 1:
            pfn = pick((*self.pfns, 0xFFFFF, self.ring.pfn), other >> 1)
        elif other & 2:
            domid = pick((1, 0x7FF0, 0xFFFF), other >> 2)
        entry = Grant(pick(ENTRIES, flags), domid, pfn)
        ref = self.refs[at]
        self.world.guest.set_grant(ref, flags=entry.flags, domid=domid, pfn=pfn)
        self.judge.grants[ref] = Grant(entry.flags, domid, -1 if pfn == self.ring.pfn else pfn)

    def notify(self, _args: bytes) -> None:
        """An event without a look at whether the backend wants one."""
        self._knock()

    def _knock(self) -> None:
        if self.world.vbd.port:
            self.world.vbd.notify()
            self.knocked = True

    def run(self, args: bytes) -> None:
        """Let the backend work, with an event before that unless told not to."""
        if not args[0] & 1:
            self._knock()
        self.settle()

    def key(self, args: bytes) -> None:
        """A key of the frontend's directory; the backend reads it when it connects next."""
        name = pick(KEYS, args[0])
        self.spoilt.append(name)
        self.world.vbd.write_key(name, pick(TEXTS, args[1]).replace("\0", ""))

    def state(self, args: bytes) -> None:
        """The frontend's state, any text. One that is no state may end the device."""
        text = pick(STATES, args[0])
        self.world.vbd.write_key("state", text)
        self.vanished |= text not in tuple("12345678")
        self.known = False

    def connect(self, args: bytes) -> None:
        """Close and connect again: layout, pages, persistent grants, where the indices begin."""
        layout, order, persistent, base = args
        if layout & 2:
            self.world.vbd.announce()  # a new start without a close
            self.known = False
            return
        self.reconnect(layout & 1, order % 5, bool(persistent & 1), pick(BASES, base))

    def advance(self, args: bytes) -> None:
        """Time passes."""
        self.settle()
        if self.judge.kept is None:
            self.world.platform.advance(args[0] / 100)

    # what must hold

    def settle(self, *, pages: bool = False) -> None:
        """Run, and compare with what should have come of it; `pages` even if nothing should."""
        world, ring = self.world, self.ring
        if not self.known:
            world.run()
            return
        before = world.vbd.events
        event = ring.rsp_event
        expected = self._expected() if self.knocked and not self.halted else []
        self.knocked = False
        rests = [ring.slot(u32(self.cons + at)) for at in range(len(expected))]
        world.run()
        if self.judge.wild:
            self.known = False
            return
        self._compare(expected, rests, pages=pages or bool(expected))
        old, new = self.cons, u32(self.cons + len(expected))
        asked = u32(new - event) < u32(new - old)
        if (world.vbd.events > before) != asked:
            raise CheckFailed([f"rsp_event {event:#x}, {old:#x} to {new:#x}: events are {asked}"])
        self.cons = new

    def _expected(self) -> list[tuple[int, int, int]]:
        """The responses that are due; requests take effect on the copies."""
        ring, judge = self.ring, self.judge
        waiting = u32(ring.req_prod - self.cons)
        if waiting > ring.size:
            self.halted = True
            return []
        size = judge.wire.request_size
        slots = [ring.slot(u32(self.cons + at))[:size] for at in range(waiting)]
        return [judge.answer(raw) for raw in slots]

    def _compare(
        self, expected: list[tuple[int, int, int]], rests: list[bytes], *, pages: bool
    ) -> None:
        ring, judge = self.ring, self.judge
        found: list[str] = []
        new = u32(self.cons + len(expected))
        if expected and ring.rsp_prod != new:
            found.append(f"rsp_prod is {ring.rsp_prod:#x}, expected {new:#x}")
        size = judge.wire.response_size
        for at, (answer, rest) in enumerate(zip(expected, rests, strict=True)):
            entry = ring.slot(u32(self.cons + at))
            if entry[:size] != judge.wire.answer.pack(*answer):
                got = judge.wire.answer.unpack(entry[:size])
                found.append(f"response {got} of {entry[:size].hex()}, expected {answer}")
            if entry[size:] != rest[size:] and any(entry[size:]):
                found.append(f"behind the response to {answer[0]}: {entry[size:].hex()}")
        if self.data != judge.disk.data:
            found.append(f"the disk differs at {_first(self.data, judge.disk.data):#x}")
        domain = self.world.guest.domain
        for at, pfn in enumerate(self.pfns if pages else ()):
            page = domain.read(pfn, 0, PAGE_SIZE)
            if page != judge.pages[pfn]:
                found.append(f"page {at} differs at {_first(page, judge.pages[pfn]):#x}")
        if found:
            raise CheckFailed(found)

    def close(self) -> None:
        """Closed, whatever came before: the backend has nothing of the disk's any more."""
        world = self.world
        world.vbd.state = State.CLOSED
        world.run()
        pinned = lib.grant_pinned_refs(world.guest.domain.kernel)
        if pinned > VIF_RINGS:
            raise CheckFailed([f"closed, with {pinned - VIF_RINGS} pages of the guest in use"])

    def reconnect(self, layout: int, order: int, persistent: bool, base: int) -> None:
        """As an honest frontend that starts again."""
        self.settle()
        self.close()
        if self.vanished:
            return
        world, vbd, judge = self.world, self.world.vbd, self.judge
        stale = [f"ring-ref{at}" for at in range(len(vbd.refs))] if vbd.order else []
        for key in dict.fromkeys((*self.spoilt, *stale, "ring-page-order")):
            if vbd.read_key(key) is not None:
                vbd.remove_key(key)
        self.spoilt.clear()
        vbd.state = State.INITIALISING
        world.run()
        for ref in vbd.refs:
            vbd.guest.revoke(ref)
            del judge.grants[ref]
        wire = WIRES[layout]
        vbd.order = order
        vbd.attach()
        vbd.sring = _fresh(vbd.sring, wire, base)
        extra = {"protocol": "x86_32-abi" if layout else "x86_64-abi"}
        extra["feature-persistent"] = str(int(persistent))
        vbd.announce({**vbd.keys(), **extra})
        world.run()
        vbd.finish()
        judge.wire = wire
        judge.kept = {} if persistent else None
        self._look()
        self.connected(base)
        self.settle()

    def end(self) -> None:
        """What is left is answered, an honest frontend can connect, and all is given back."""
        self._knock()
        self.settle(pages=True)
        check_all(self.world.platform, hostile={self.world.guest.domid})
        if not self.known or self.halted:
            self.reconnect(0, 0, False, 0)
            if not self.vanished:
                self.request(bytes((1, 0, 0, 0, 0, 0)))
                self._knock()
                self.settle()
        self.close()


def _fresh(sring: RawSring, wire: Wire, base: int) -> RawSring:
    """The same pages as a ring of that layout, empty, with indices at `base`."""
    ring = RawSring(sring.domain, sring.pfn, len(sring.pfns), req=wire.request, rsp=wire.response)
    ring.req_prod = ring.rsp_prod = base
    ring.req_event = ring.rsp_event = base + 1
    return ring


def _first(one: bytes | bytearray, other: bytes | bytearray) -> int:
    """Where they differ first."""
    return next(at for at, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])


def _disk(_subject: BlkBackOverlay, _args: bytes) -> None:
    """It was read before the world was made."""


REQUEST: Final = ("wish", "shape", "where", "sector", "field", "value")
LANGUAGE: Final = Language(
    Operation("request", REQUEST, BlkBackOverlay.request, 10),
    Operation("run", ("quiet",), BlkBackOverlay.run, 4),
    Operation("slot", ("back", "offset", "b0", "b1", "b2", "b3"), BlkBackOverlay.slot, 2),
    Operation("index", ("word", "step", "ring"), BlkBackOverlay.index),
    Operation("write", ("page", "offset", "value"), BlkBackOverlay.write, 2),
    Operation("grant", ("which", "flags", "other"), BlkBackOverlay.grant, 2),
    Operation("notify", (), BlkBackOverlay.notify),
    Operation("key", ("name", "text"), BlkBackOverlay.key),
    Operation("state", ("text",), BlkBackOverlay.state),
    Operation("connect", ("layout", "order", "persistent", "base"), BlkBackOverlay.connect),
    Operation("advance", ("time",), BlkBackOverlay.advance),
    Operation("disk", ("variant",), _disk),
)  # fmt: skip


def run(data: bytes) -> None:
    """One example. Raises CheckFailed, or what escaped."""
    operations = list(LANGUAGE.read(data))
    variant = next((args[0] for one, args in operations if one.name == "disk"), 0)
    overlay = BlkBackOverlay(variant)
    try:
        for operation, args in operations:
            operation.act(overlay, args)
        overlay.end()
    finally:
        overlay.world.close()


TARGET: Final = Target("blk-backend", run, LANGUAGE.split, LANGUAGE.words)
