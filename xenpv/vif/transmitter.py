"""Frames out: the tx ring of each queue (win-xenvif transmitter.c).

A packet is a chain of slots: its headers in a page of their own, then the payload page by
page, each granted read-only until its response. A packet goes back to the driver above
exactly once: with its last response, or when the queue is aborted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from struct import Struct
from typing import Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.abi.layout import packer, struct_format
from xenpv.bus.ring import FrontRing
from xenpv.bus.xenbus import XenBus
from xenpv.errors import HypercallError, PeerProtocolError
from xenpv.vif.callbacks import Completion, PacketType, TransmitterStatus, packet_type
from xenpv.vif.granter import PAGE_SIZE, Granter
from xenpv.vif.parse import ETHERNET, header_length
from xenpv.vif.poller import Poller

REQUEST_SIZE: Final = packer("netif_tx_request").size
RESPONSE: Final = packer("netif_tx_response")

MORE_DATA: Final[int] = lib.NETTXF_more_data
assert lib.NETIF_RSP_OKAY == 0
DROPPED: Final[int] = lib.NETIF_RSP_DROPPED
NULL: Final[int] = lib.NETIF_RSP_NULL

OK: Final = TransmitterStatus.OK
UNICAST: Final = PacketType.UNICAST

PUSH_SLOTS: Final = 64  # XenVif pushes when so many are posted
PAGES_STEP: Final = 64  # pages granted at a time, while the queue grows
WAITING_MAX: Final = 65536  # packets behind a full ring; more are dropped
PACKET_MAX: Final[int] = lib.XEN_NETIF_MAX_TX_SIZE


@cache
def requests_packer(count: int) -> Struct:
    """`count` tx requests from their fields in one flat list."""
    return Struct("<" + struct_format("netif_tx_request")[1:] * count)


@attrs.frozen(kw_only=True)
class Shape:
    """How a guest's driver lays a packet out in slots."""

    first_id: int
    pad_to: int  # shorter frames get zeros up to here
    header: Callable[[bytes], int] | None  # bytes of the first slot; None: a whole page


SHAPES: Final = {
    "windows": Shape(first_id=1, pad_to=60, header=header_length),
    "linux": Shape(first_id=0, pad_to=0, header=None),
}


# A packet whose slots are on the ring: slots without a response, TransmitterStatus, cookie,
# PacketType, bytes of the frame. A list, because one is made for every frame.
Packet = list[int]


class TransmitterRing:
    """One queue's tx ring from connect to release. `linear`: the backend takes one slot a packet.

    PeerProtocolError from `post` and `poll`: the backend cannot be believed any more.
    """

    def __init__(
        self, bus: XenBus, domid: int, *, linear: bool, frame_max: int, returns: Returns
    ) -> None:
        self._bus = bus
        self._shape = SHAPES[bus.personality]
        self._header = None if linear else self._shape.header
        self._frame_max = min(frame_max, PAGE_SIZE if linear else PACKET_MAX)
        self._returns = returns
        self._page = Granter(bus.gnttab, domid, readonly=False)
        self._page.permit(self._page.add(1))
        self.ring = FrontRing(
            bus.domain, self._page.pfns, req_size=REQUEST_SIZE, rsp_size=RESPONSE.size
        )
        self.granter = Granter(bus.gnttab, domid, readonly=True, first=self._shape.first_id)
        self.poller: Poller | None = None
        self.waiting: deque[tuple[bytes, int]] = deque()
        self._owner: dict[int, Packet] = {}  # by id of the slot, while it is in flight
        self._free_ids: list[int] = []
        self.posted = 0  # slots, for the conservation law: posted = answered + in flight
        self.answered = 0

    @property
    def ref(self) -> int:
        """The reference of the ring's page."""
        return self._page.refs[0]

    # down

    def queue(self, frames: Sequence[bytes], cookies: Sequence[int]) -> None:
        """Take packets to send; what cannot be sent comes back as DROPPED at once."""
        refused = []
        waiting = self.waiting
        longest = self._frame_max
        for frame, cookie in zip(frames, cookies, strict=True):
            if ETHERNET <= len(frame) <= longest and len(waiting) < WAITING_MAX:
                waiting.append((frame, cookie))
            else:
                refused.append((cookie, TransmitterStatus.DROPPED, UNICAST, 0, 0, 0))
        if refused:
            self._returns(refused)

    def post(self) -> None:
        """Move waiting packets to the ring while it has room."""
        room = self.ring.free
        notify = False
        while self.waiting:
            slots, ids, pieces, parts = self._build(room)
            if not ids:
                break
            self._bus.domain.scatter(pieces, b"".join(parts))
            self.granter.permit(ids)
            count = len(ids)
            notify |= self.ring.push(requests_packer(count).pack(*slots), count)
            self.posted += count
            room -= count
        if notify and self.poller is not None:
            self.poller.send()

    def _build(self, room: int) -> tuple[list[int], list[int], list[int], list[bytes]]:
        """Requests, ids, pieces of memory and their bytes for about PUSH_SLOTS slots."""
        waiting, owner, free = self.waiting, self._owner, self._free_ids
        pfns, refs = self.granter.pfns, self.granter.refs
        header, pad_to = self._header, self._shape.pad_to
        slots: list[int] = []
        ids: list[int] = []
        pieces: list[int] = []
        parts: list[bytes] = []
        if len(free) < min(room, PUSH_SLOTS):
            self._grow()
        room = min(room, len(free))
        while waiting and len(ids) < PUSH_SLOTS:
            frame, cookie = waiting[0]
            size = length = len(frame)
            if size <= pad_to:
                frame = frame.ljust(pad_to, b"\0")
                head = size = pad_to
            elif header is not None:
                head = header(frame)
            else:
                head = size if size < PAGE_SIZE else PAGE_SIZE  # noqa: FURB136 - min() is slower
            rest = size - head
            count = 1 if not rest else 1 + (rest + PAGE_SIZE - 1) // PAGE_SIZE
            if count > room:
                break
            room -= count
            waiting.popleft()
            parts.append(frame)
            kind = UNICAST if not frame[0] & 1 else packet_type(frame)
            packet: Packet = [count, OK, cookie, kind, length]
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
        return slots, ids, pieces, parts

    def _grow(self) -> None:
        """More pages if there are any, up to one for each slot."""
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
            if self.waiting:
                self.post()
            if not self.ring.final_check():
                return

    def _answer(self, responses: memoryview) -> None:
        take = self._owner.pop
        done: list[int] = []
        complete: list[Completion] = []
        wrong = ""
        for number, status in RESPONSE.iter_unpack(responses):
            packet = take(number, None)
            if packet is None or status == NULL:
                # No extras are sent, so that no NULL can answer one.
                if packet is not None:
                    self._owner[number] = packet
                wrong = f"tx response {number}, status {status}, answers no slot"
                break
            done.append(number)
            if status and packet[1] == OK:  # not OKAY, and the first such
                packet[1] = _status(status)
            packet[0] -= 1
            if not packet[0]:
                complete.append((packet[2], packet[1], packet[3], packet[4], 0, 0))
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

    # end

    def drop_waiting(self) -> None:
        """Return what was not posted."""
        dropped = [
            (cookie, TransmitterStatus.DROPPED, UNICAST, 0, 0, 0) for _, cookie in self.waiting
        ]
        self.waiting.clear()
        if dropped:
            self._returns(dropped)

    def take_waiting(self) -> list[tuple[bytes, int]]:
        """What was not posted, with its cookies: another ring may send it."""
        waiting = list(self.waiting)
        self.waiting.clear()
        return waiting

    @property
    def in_flight(self) -> int:
        """Slots that the backend has not answered."""
        return len(self._owner)

    def abort(self, status: TransmitterStatus) -> None:
        """Return every packet; slots that the backend never answered stay owned by it."""
        self.drop_waiting()
        returned = []
        for packet in self._owner.values():
            packet[0] -= 1
            if not packet[0]:
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


def _status(status: int) -> TransmitterStatus:
    return TransmitterStatus.DROPPED if status == DROPPED else TransmitterStatus.ERROR
