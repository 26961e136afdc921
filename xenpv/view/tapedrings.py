"""The rings of a taped machine: whose they are, and what each end has published on them."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.abi.layout import offsetof, sizeof
from xenpv.view.rings import (
    FIRST_SLOT,
    HEADER,
    KINDS,
    REQ_PROD,
    RSP_PROD,
    UNKNOWN,
    is_by_hand,
    peek,
    u32,
)
from xenpv.view.tape import Consumption, Publication, TapedRing
from xenpv.xen.domain import PAGE_SIZE

if TYPE_CHECKING:
    from xenpv.platform import Platform
    from xenpv.view.rings import RingKind
    from xenpv.view.tape import Tape
    from xenpv.xen.domain import Domain

DOM0: Final = 0
FRONT: Final = 0
BACK: Final = 1
PRODUCERS: Final = (REQ_PROD, RSP_PROD)
PFN_MASK: Final = (1 << 24) - 1  # of a PUBLISH record

# The keys of a frontend's directory that name a ring page, of one page or the first of several:
# below the device or below a queue of it.
RING_KEY: Final = re.compile(r"(device/[^/]+/[^/]+)/(?:queue-(\d{1,4})/)?(?:[a-z]+-)?ring-ref0?\Z")

Reference = weakref.ref[Any]  # without a callback: Domain.rings' own must die with that


class Live:
    """A ring that has an end's handle. `number` is -1 until something was published on it.

    By side, FRONT or BACK: `handles`, and `last`, the producer index of the last publication,
    None before it.
    """

    def __init__(self, kind: RingKind, frames: tuple[int, ...], entry_size: int, size: int) -> None:
        self.kind = kind
        self.frames = frames
        self.entry_size = entry_size
        self.size = size
        self.number = -1
        self.domid = 0
        self.back_domid = -1
        self.pfn = 0
        self.handles: list[Reference | None] = [None, None]
        self.last: list[int | None] = [None, None]
        self.cons = (-1, -1)

    def handle(self, side: int) -> Any:
        """The kernel's, None if that end has none or let go of it."""
        reference = self.handles[side]
        return None if reference is None else reference()

    @property
    def alive(self) -> bool:
        """Some end still has its handle: the pages are the ring's."""
        return self.handle(FRONT) is not None or self.handle(BACK) is not None

    def is_quiet(self, side: int) -> bool:
        """Whether that end may publish without a record in the trace: one without a handle, or
        one that a test drives.
        """
        if self.handles[side] is None:
            return self.alive
        handle = self.handle(side)
        return handle is not None and is_by_hand(handle)

    def consumers(self) -> tuple[int, int]:
        """req_cons and rsp_cons, private to the ends; as they were last of one that let go."""
        front, back = self.handle(FRONT), self.handle(BACK)
        return (
            self.cons[0] if back is None else int(lib.ring_cons(back)),
            self.cons[1] if front is None else int(lib.ring_cons(front)),
        )


@attrs.define(eq=False)
class _Places:
    """The rings that a domain's handles are on, by the pfn of their first page."""

    domain: Domain
    newest: Callable[[], Any]  # its last handle when this was made: another makes it stale
    rings: dict[int, tuple[Live, int]]


def _nobody() -> None:
    """What refers to no handle."""


class TapedRings:
    """What one machine's ends publish, for its tape."""

    def __init__(self, tape: Tape, platform: Platform) -> None:
        self.tape = tape
        self.hypervisor = platform.hypervisor
        self.store = platform.xenstored
        self._places: dict[int, _Places] = {}
        self._rings: dict[int, Live] = {}  # by their first frame
        self._quiet: dict[Live, None] = {}  # of which an end publishes without records
        self._busy: dict[Live, None] = {}  # where something was published and not taken

    # the trace's records

    def published(self, domid: int, pfn: int, count: int) -> None:
        """A PUBLISH record was heard."""
        found = self._at(domid).get(pfn)
        if found is None or not count:
            return
        live, side = found
        handle = live.handle(side)
        if handle is None:
            return
        self._poll(live, 1 - side)
        produced = int(lib.ring_prod_pvt(handle))
        last = self._start(live, side, u32(produced - count))
        if u32(produced - last) > live.size:
            last = u32(produced - count)
        self._publish(live, side, last, produced)

    def look(self, domid: int) -> None:
        """The domain sent an event: it may have published what no record tells of."""
        for one in (domid, DOM0):  # where a caller of the library may have attached one
            self._at(one)
        for live in list(self._quiet):
            if not live.alive:
                del self._quiet[live]
                continue
            is_front = live.domid == domid
            if is_front or live.back_domid in (-1, domid):
                self._poll(live, FRONT if is_front else BACK)

    def found(self, domid: int) -> None:
        """Something of the domain ran: which handles does it have now?"""
        self._at(domid)

    def sample(self, moment: int) -> None:
        """What the ends took, up to the end of what happened at that moment."""
        for live in list(self._busy):
            cons = live.consumers()
            if cons != live.cons:
                live.cons = cons
                self.tape.consumptions.append(Consumption(moment, live.number, *cons))
                self._note_busy(live)

    # publications

    def _poll(self, live: Live, side: int) -> None:
        """Look at the index of an end whose publications have no records."""
        if not live.is_quiet(side):
            return
        produced = self._word(live, PRODUCERS[side])
        last = self._start(live, side, produced)
        if produced != last:
            self._publish(live, side, last, produced)

    def _start(self, live: Live, side: int, known: int) -> int:
        """Where an end's next publication starts. Of requests the first: at the responses."""
        last = live.last[side]
        if last is not None:
            return last
        if side == FRONT:
            responses = self._word(live, RSP_PROD)
            if u32(known - responses) <= live.size:
                return responses
        return known

    def _publish(self, live: Live, side: int, first: int, produced: int) -> None:
        live.last[side] = produced
        if self.tape.full:
            return
        if live.number < 0:
            self._number(live)
        count = u32(produced - first)
        words = {name: self._word(live, at) for name, at in HEADER.items()}
        live.cons = live.consumers()
        self.tape.publications.append(
            Publication(
                moment=max(0, self.tape.moment),
                ring=live.number,
                is_response=side == BACK,
                first=first,
                slots=self._slots(live, first, count) if count <= live.size else (),
                req_cons=live.cons[0],
                rsp_cons=live.cons[1],
                **words,
            )
        )
        self._note_busy(live)

    def _note_busy(self, live: Live) -> None:
        """Whether its consumers are to be watched."""
        for side in (FRONT, BACK):
            last, cons = live.last[side], live.cons[side]
            waits = side == FRONT and live.kind.wait
            if last is not None and cons not in (-1, last) and not waits:
                self._busy[live] = None
                return
        self._busy.pop(live, None)

    def _word(self, live: Live, offset: int) -> int:
        return int.from_bytes(peek(self.hypervisor, live.frames[0], offset, 4), "little")

    def _slots(self, live: Live, first: int, count: int) -> tuple[bytes, ...]:
        size = live.entry_size
        head = min(count, live.size - first % live.size)  # up to the end of the pages
        raw = self._bytes(live, FIRST_SLOT + first % live.size * size, head * size)
        raw += self._bytes(live, FIRST_SLOT, (count - head) * size)
        return tuple([raw[at : at + size] for at in range(0, count * size, size)])

    def _bytes(self, live: Live, start: int, size: int) -> bytes:
        """Of the ring's pages, one after the other."""
        raw = b""
        while size:
            page, offset = divmod(start, PAGE_SIZE)
            piece = min(size, PAGE_SIZE - offset)
            raw += peek(self.hypervisor, live.frames[page], offset, piece)
            start += piece
            size -= piece
        return raw

    # whose ring it is

    def _at(self, domid: int) -> dict[int, tuple[Live, int]]:
        """The rings of a domain's handles, by pfn."""
        domain = self.hypervisor.domains.get(domid)
        if domain is None:
            return {}
        newest = next(reversed(domain.rings), None)
        handle = None if newest is None else newest()
        known = self._places.get(domid)
        if known is None or known.domain is not domain or known.newest() is not handle:
            marker = _nobody if handle is None else weakref.ref(handle)
            known = self._places[domid] = _Places(domain, marker, self._find(domain))
        return known.rings

    def _find(self, domain: Domain) -> dict[int, tuple[Live, int]]:
        """By its handles, oldest first: the newest on a page is the one that counts."""
        found: dict[int, tuple[Live, int]] = {}
        for named, (pfns, entry_size, _, name) in list(domain.rings.items()):
            handle = named()
            frames = tuple(int(lib.p2m_lookup(domain.kernel, pfn, 0)) for pfn in pfns)
            if handle is None or min(frames) < 0:
                continue
            kind = KINDS.get(name, UNKNOWN)
            kind = kind if kind.entry_size == entry_size else UNKNOWN
            ring = Live(kind, frames, entry_size, int(lib.ring_size(handle)))
            ring.domid = int(lib.frame_owner(self.hypervisor.machine, frames[0]))
            side = FRONT if ring.domid == domain.domid else BACK
            live = self._same(ring, side, handle)
            live.handles[side] = weakref.ref(handle)
            if live.kind is UNKNOWN:
                live.kind = kind
            if side == FRONT:
                live.pfn = pfns[0]
            else:
                live.back_domid = domain.domid
            if live.is_quiet(FRONT) or live.is_quiet(BACK):
                self._quiet[live] = None
            else:
                self._quiet.pop(live, None)
            found[pfns[0] & PFN_MASK] = live, side
        return found

    def _same(self, ring: Live, side: int, handle: Any) -> Live:
        """What is known of a ring, or itself: its frontend's new handle begins another one."""
        live = self._rings.get(ring.frames[0])
        if (
            live is None
            or (live.frames, live.domid) != (ring.frames, ring.domid)
            or (side == FRONT and live.handles[FRONT] and live.handle(FRONT) is not handle)
            or not live.alive
        ):
            live = self._rings[ring.frames[0]] = ring
        return live

    def _number(self, live: Live) -> None:
        """It is one of the tape's from now on."""
        tape = self.tape
        live.number = len(tape.rings)
        tape.rings.append(
            TapedRing(
                number=live.number,
                machine=self.hypervisor.number,
                domid=live.domid,
                back_domid=live.back_domid,
                kind=live.kind.name,
                device="",
                queue=0,
                size=live.size,
                entry_size=live.entry_size,
                request=live.kind.request,
                response=live.kind.response,
                first=max(0, tape.moment),
                pfn=live.pfn,
            )
        )
        base = f"/local/domain/{live.domid}/"
        below = f"{base}device/".encode()
        for path, node in self.store.nodes.items():
            if path.startswith(below) and b"ring-ref" in path:
                self.told(live.domid, path[len(base) :].decode(), node.value)

    def told(self, domid: int, key: str, value: bytes) -> None:
        """A frontend wrote which grant a ring's page has: `key` is below its home."""
        named = RING_KEY.match(key)
        domain = self.hypervisor.domains.get(domid)
        if named is None or domain is None or not value.isdigit() or len(value) > 10:
            return
        granted = self._granted(domain, int(value))
        live = None if granted is None else self._rings.get(granted[0])
        if granted is None or live is None or live.number < 0 or live.domid != domid:
            return
        device, queue = named.groups()
        rings = self.tape.rings
        ring = rings[live.number]
        back = granted[1] if ring.back_domid < 0 else ring.back_domid
        rings[live.number] = attrs.evolve(
            ring, device=device, queue=int(queue or 0), back_domid=back
        )

    def _granted(self, domain: Domain, ref: int) -> tuple[int, int] | None:
        """The machine frame that a grant entry gives, and to whom; past hook and log."""
        kernel = domain.kernel
        if not 0 <= ref < int(lib.grant_table_entries(kernel)):
            return None
        v2 = int(lib.grant_table_version(kernel)) == 2
        size, at, width = (16, FRAME_V2, 8) if v2 else (sizeof("grant_entry_v1"), FRAME_V1, 4)
        page, offset = divmod(ref * size, PAGE_SIZE)
        entry = peek(self.hypervisor, int(lib.grant_table_frame(kernel, page)), offset, size)
        gfn = int.from_bytes(entry[at : at + width], "little")
        frame = int(lib.p2m_lookup(kernel, gfn, 0))
        return None if frame < 0 else (frame, int.from_bytes(entry[2:4], "little"))


FRAME_V1: Final = offsetof("grant_entry_v1", "frame")
FRAME_V2: Final = 8  # union grant_entry_v2.full_page.frame
