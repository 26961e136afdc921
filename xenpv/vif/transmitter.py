"""Frames out: the tx ring of each queue (win-xenvif transmitter.c).

A packet is a chain of slots: its headers in a page of their own, then the payload page by
page, each granted read-only until its response; extra infos follow the first. A packet goes
back to the driver above exactly once: with its last response, or when the queue is aborted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from struct import Struct
from typing import Final

from xenpv.abi._kernel import lib
from xenpv.abi.layout import packer, struct_format
from xenpv.bus.ring import FrontRing
from xenpv.bus.xenbus import XenBus
from xenpv.errors import HypercallError, PeerProtocolError
from xenpv.vif.callbacks import Completion, PacketType, TransmitterStatus, packet_type
from xenpv.vif.granter import PAGE_SIZE, Granter
from xenpv.vif.packet import TransmitterPacket
from xenpv.vif.parse import ETHERNET, LENGTH_BITS, LENGTH_MASK
from xenpv.vif.poller import Poller
from xenpv.vif.txlayout import SHAPES, slots_of
from xenpv.vif.txpacket import (
    Prepared,
    Rules,
    multicast_extra,
    prepare,
    validated_headers,
)

REQUEST_SIZE: Final = packer("netif_tx_request").size
FIELDS: Final = 5  # of a request
RESPONSE: Final = packer("netif_tx_response")

MORE_DATA: Final[int] = lib.NETTXF_more_data
EXTRA_INFO: Final[int] = lib.NETTXF_extra_info
OKAY: Final[int] = lib.NETIF_RSP_OKAY
DROPPED: Final[int] = lib.NETIF_RSP_DROPPED
ERROR: Final[int] = lib.NETIF_RSP_ERROR
NULL: Final[int] = lib.NETIF_RSP_NULL
assert OKAY == 0

OK: Final = TransmitterStatus.OK
UNICAST: Final = PacketType.UNICAST
STATUSES: Final = {DROPPED: TransmitterStatus.DROPPED, ERROR: TransmitterStatus.ERROR}

PUSH_SLOTS: Final = 64  # XenVif pushes when so many are posted
PAGES_STEP: Final = 64  # pages granted at a time, while the queue grows
WAITING_MAX: Final = 65536  # packets behind a full ring; more are dropped
CONTROLS_MAX: Final = 256  # multicast requests in flight: one a slot is more than there can be


@cache
def requests_packer(count: int) -> Struct:
    """`count` tx requests from their fields in one flat list."""
    return Struct("<" + struct_format("netif_tx_request")[1:] * count)


# A packet whose slots are on the ring: slots without a response, TransmitterStatus, cookie,
# PacketType, bytes of the frame, headers_of it. A list, because one is made for every frame.
# PacketType 0 is a packet of this driver's own: nobody hears of it.
Packet = list[int]
OWN: Final = 0

Waiting = tuple[bytes | TransmitterPacket, int]


class Batch:
    """Slots that are pushed together, and the bytes of their pages."""

    __slots__ = ("dropped", "ids", "parts", "pieces", "room", "slots")

    def __init__(self, room: int, dropped: list[Completion]) -> None:
        self.room = room  # slots of the ring
        self.dropped = dropped  # what turned out not to be sendable
        self.slots: list[int] = []  # fields of requests
        self.ids: list[int] = []  # whose pages are to be granted
        self.pieces: list[int] = []  # pfn, offset, bytes
        self.parts: list[bytes] = []


class TransmitterRing:
    """One queue's tx ring from connect to release.

    PeerProtocolError from `post` and `poll`: the backend cannot be believed any more.
    """

    def __init__(self, bus: XenBus, domid: int, *, rules: Rules, returns: Returns) -> None:
        self._bus = bus
        self._shape = SHAPES[bus.personality]
        self._rules = rules
        # How a plain packet's headers are found; None: they have no slot of their own.
        validated = rules.validate and self._shape.headers is not None
        self._headers = validated_headers if validated else self._shape.headers
        self._returns = returns
        self._page = Granter(bus.gnttab, domid, readonly=False)
        self._page.permit(self._page.add(1))
        self.ring = FrontRing(
            bus.domain, self._page.pfns, req_size=REQUEST_SIZE, rsp_size=RESPONSE.size
        )
        self.granter = Granter(bus.gnttab, domid, readonly=True, first=self._shape.first_id)
        self.poller: Poller | None = None
        self.waiting: deque[Waiting] = deque()
        # What goes before all that waits: announcements, then multicast requests.
        self.announcements: deque[bytes] = deque()
        self.controls: deque[tuple[bytes, bool]] = deque()
        self.refused: list[bytes] = []  # groups that the backend did not add
        self._ready: Prepared | None = None  # the first that waits, if it was looked at
        self._owner: dict[int, Packet] = {}  # by id of the slot, while it is in flight
        self._controlling: dict[int, tuple[bytes, bool]] = {}  # by id
        self._free_ids: list[int] = []
        first = self._shape.first_id + self.ring.size
        self._control_ids = list(range(first + CONTROLS_MAX - 1, first - 1, -1))
        self._nulls = 0  # extras in flight: each is answered NULL
        self.posted = 0  # slots, for the conservation law: posted = answered + in flight
        self.answered = 0
        self.faked = 0  # responses that did not come before the end

    @property
    def ref(self) -> int:
        """The reference of the ring's page."""
        return self._page.refs[0]

    # down

    def queue(self, frames: Sequence[bytes | TransmitterPacket], cookies: Sequence[int]) -> None:
        """Take packets to send; what cannot be sent comes back as DROPPED."""
        refused = []
        waiting = self.waiting
        longest = self._rules.longest
        for frame, cookie in zip(frames, cookies, strict=True):
            # What offloads make of a packet is seen when its turn comes.
            fits = type(frame) is not bytes or ETHERNET <= len(frame) <= longest
            if fits and len(waiting) < WAITING_MAX:
                waiting.append((frame, cookie))
            else:
                refused.append(_dropped(cookie))
        if refused:
            self._returns(refused)

    def post(self) -> None:
        """Move waiting packets to the ring while it has room."""
        room = self.ring.free
        notify = False
        dropped: list[Completion] = []
        while self.waiting or self.announcements or self.controls:
            batch = Batch(room, dropped)
            if self._build_own(batch):
                self._build(batch)
            count = len(batch.slots) // FIELDS
            if not count:
                break
            self._bus.domain.scatter(batch.pieces, b"".join(batch.parts))
            self.granter.permit(batch.ids)
            notify |= self.ring.push(requests_packer(count).pack(*batch.slots), count)
            self.posted += count
            room -= count
        if notify and self.poller is not None:
            self.poller.send()
        if dropped:
            # Last: whoever hears of it may send again.
            self._returns(dropped)

    def _build_own(self, batch: Batch) -> bool:
        """Slots of what goes first; False: some of it has no room yet, and the rest must wait."""
        while self.announcements:
            ready = prepare(TransmitterPacket(self.announcements[0]), self._rules)
            if ready is not None:
                self._grow(batch.room)
                if not self._lay_out(batch, ready, (), 0, OWN):
                    return False
            self.announcements.popleft()
        while self.controls:
            if batch.room < 2 or not self._control_ids:
                return False
            address, add = self.controls.popleft()
            number = self._control_ids.pop()
            self._controlling[number] = (address, add)
            batch.slots += (0, 0, EXTRA_INFO, number, 0, *multicast_extra(address, add=add))
            batch.room -= 2
            self._nulls += 1
        return True

    def _build(self, batch: Batch) -> None:  # noqa: PLR0915 - a call for each packet is too slow
        """Requests, ids, pieces of memory and their bytes for about PUSH_SLOTS slots."""
        waiting, owner, free = self.waiting, self._owner, self._free_ids
        pfns, refs = self.granter.pfns, self.granter.refs
        headers, linear, pad_to = self._headers, self._rules.linear, self._shape.pad_to
        slots, ids, pieces = batch.slots, batch.ids, batch.pieces
        room, reserve = batch.room, self._shape.reserve
        self._grow(room)
        while waiting and len(ids) < PUSH_SLOTS and room > reserve:
            frame, cookie = waiting[0]
            if type(frame) is not bytes:
                batch.room = room
                if not self._take_packet(batch):
                    break
                room = batch.room
                continue
            size = length = len(frame)
            if headers is None:
                code = 0
                head = size if size < PAGE_SIZE else PAGE_SIZE  # noqa: FURB136 - min() is slower
            else:
                code = headers(frame)
                head = code & LENGTH_MASK
                if not head:
                    waiting.popleft()
                    batch.dropped.append(_dropped(cookie))
                    continue
                if linear:
                    head = size
                if size < pad_to:
                    frame = frame.ljust(pad_to, b"\0")
                    size = pad_to
                    if head == length:
                        head = size
            rest = size - head
            count = 1 if not rest else 1 + (rest + PAGE_SIZE - 1) // PAGE_SIZE
            if count > room or count > len(free):
                break
            room -= count
            waiting.popleft()
            batch.parts.append(frame)
            kind = UNICAST if not frame[0] & 1 else packet_type(frame)
            packet: Packet = [count, OK, cookie, kind, length, code]
            number = free.pop()
            owner[number] = packet
            ids.append(number)
            slots += (refs[number], 0, MORE_DATA if rest else 0, number, size)
            pieces += (pfns[number], 0, head)
            while rest:
                part = rest if rest < PAGE_SIZE else PAGE_SIZE  # noqa: FURB136 - min() is slower
                rest -= part
                number = free.pop()
                owner[number] = packet
                ids.append(number)
                slots += (refs[number], 0, MORE_DATA if rest else 0, number, part)
                pieces += (pfns[number], 0, part)

    def _take_packet(self, batch: Batch) -> bool:
        """Slots of the first that waits, a packet with offloads; False: it has no room yet."""
        packet, cookie = self.waiting[0]
        assert isinstance(packet, TransmitterPacket)
        ready = self._ready or prepare(packet, self._rules)
        if ready is not None:
            inserted = len(ready.data) - len(packet.data)
            kind = UNICAST if not ready.data[0] & 1 else packet_type(ready.data)
            layout = () if inserted and self._headers is None else packet.layout
            if not self._lay_out(batch, ready, layout, cookie, kind, inserted):
                self._ready = ready
                return False
        else:
            batch.dropped.append(_dropped(cookie))
        self.waiting.popleft()
        self._ready = None
        return True

    def _lay_out(
        self,
        batch: Batch,
        ready: Prepared,
        layout: tuple[tuple[int, int], ...],
        cookie: int,
        kind: int,
        inserted: int = 0,
    ) -> bool:
        """Put a packet into slots, if there are enough."""
        data, free = ready.data, self._free_ids
        length, size, head = len(data), len(data), ready.head
        if size < self._shape.pad_to:
            data = data.ljust(self._shape.pad_to, b"\0")
            size = len(data)
            layout = ()  # what is padded is copied
            if head == length:
                head = size
        if self._rules.linear:
            pieces = [(0, size)]
        else:
            first = 0 if self._headers is None else head
            layout = () if self._rules.always_copy else layout
            pieces = slots_of(layout, inserted, first, size, self._shape.first_min)
        count = len(pieces)
        if count + len(ready.extras) > batch.room or count > len(free):
            return False
        batch.room -= count + len(ready.extras)
        self._nulls += len(ready.extras)
        packet: Packet = [count, OK, cookie, kind, length, ready.head | ready.traits << LENGTH_BITS]
        flags = ready.flags | (EXTRA_INFO if ready.extras else 0)
        told = size  # of the first request: the whole packet's
        for index, (offset, part) in enumerate(pieces, 1):
            number = free.pop()
            self._owner[number] = packet
            batch.ids.append(number)
            more = MORE_DATA if index < count else 0
            batch.slots += (self.granter.refs[number], offset, flags | more, number, told or part)
            batch.pieces += (self.granter.pfns[number], offset, part)
            if index == 1:
                for extra in ready.extras:
                    batch.slots += extra
            flags = told = 0
        batch.parts.append(data)
        return True

    def _grow(self, room: int) -> None:
        """More pages if there are any, up to one for each slot."""
        if len(self._free_ids) >= min(room, PUSH_SLOTS):
            return
        have = len(self.granter.pfns) - self._shape.first_id
        try:
            fresh = self.granter.add(min(PAGES_STEP, self.ring.size - have))
        except HypercallError:
            return  # packets wait for the pages that there are
        # The lowest is used first, so that a dump reads in order.
        self._free_ids[:0] = reversed(fresh)

    # up

    def poll(self) -> None:
        """Take responses, return packets that are complete, post what waits."""
        while True:
            count, responses = self.ring.take()
            if count:
                self._answer(responses)
            if self.waiting or self.announcements or self.controls:
                self.post()
            if not self.ring.final_check():
                return

    def _answer(self, responses: memoryview) -> None:
        take = self._owner.pop
        done: list[int] = []
        complete: list[Completion] = []
        wrong = ""
        for number, status in RESPONSE.iter_unpack(responses):
            if status == NULL:
                # Of its slot a backend writes the status alone: the id is whose it was before.
                if not self._nulls:
                    wrong = "more tx responses are NULL than there are extras"
                    break
                self._nulls -= 1
                self.answered += 1
                continue
            packet = take(number, None)
            if packet is None:
                wrong = self._controlled(number, status)
                if wrong:
                    break
                continue
            done.append(number)
            if status:
                if status not in STATUSES:
                    wrong = f"tx slot {number} answered with status {status}"
                    self._owner[number] = packet  # aborted with the others
                    done.pop()
                    break
                if packet[1] == OK:  # the first that is not OKAY wins
                    packet[1] = STATUSES[status]
            packet[0] -= 1
            if not packet[0]:
                _, outcome, cookie, kind, length, code = packet
                if kind != OWN:
                    payload = length - (code & LENGTH_MASK)
                    complete.append((cookie, outcome, kind, length, payload, code >> LENGTH_BITS))
        self.answered += len(done)
        busy = self.granter.revoke(done)
        done.reverse()
        self._free_ids += [number for number in done if number not in busy] if busy else done
        if complete:
            self._returns(complete)
        if wrong:
            raise PeerProtocolError(wrong)
        if busy:
            raise PeerProtocolError(f"tx slot {busy[0]} was answered, yet its grant is in use")

    def _controlled(self, number: int, status: int) -> str:
        """A multicast request was answered; why not, if it was none."""
        control = self._controlling.pop(number, None)
        if control is None:
            return f"tx response {number}, status {status}, answers no slot"
        self._control_ids.append(number)
        self.answered += 1
        address, add = control
        if status and add:
            self.refused.append(address)
        return ""

    # end

    def drop_waiting(self) -> None:
        """Return what was not posted."""
        dropped = [_dropped(cookie) for _, cookie in self.take_waiting()]
        if dropped:
            self._returns(dropped)

    def take_waiting(self) -> list[Waiting]:
        """What was not posted, with its cookies: another ring may send it."""
        waiting = list(self.waiting)
        self.waiting.clear()
        self.announcements.clear()
        self.controls.clear()
        self._ready = None
        return waiting

    @property
    def in_flight(self) -> int:
        """Slots that the backend has not answered, extras apart."""
        return len(self._owner) + len(self._controlling)

    def abort(self, status: TransmitterStatus) -> None:
        """Return every packet; slots that the backend never answered stay owned by it.

        XenVif writes the responses itself here, DROPPED for a slot and NULL for an extra; they
        are only counted, so that posted = answered + faked at the end.
        """
        self.drop_waiting()
        returned = []
        self.faked += self.in_flight + self._nulls
        self._nulls = 0
        self._controlling.clear()
        for packet in self._owner.values():
            packet[0] -= 1
            if not packet[0] and packet[3] != OWN:
                returned.append((packet[2], status, packet[3], 0, 0, 0))
        self._owner.clear()
        if returned:
            self._returns(returned)

    def release(self) -> list[tuple[int, int]]:
        """Give pages and references back; (ref, pfn) of those that the backend still maps."""
        self.abort(TransmitterStatus.DROPPED)
        self.granter.release()
        self._page.release()
        return self.granter.quarantined + self._page.quarantined


Returns = Callable[[Sequence[Completion]], None]


def _dropped(cookie: int) -> Completion:
    return (cookie, TransmitterStatus.DROPPED, UNICAST, 0, 0, 0)
