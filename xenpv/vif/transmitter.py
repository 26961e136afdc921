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
OKAY: Final[int] = lib.NETIF_RSP_OKAY
DROPPED: Final[int] = lib.NETIF_RSP_DROPPED
NULL: Final[int] = lib.NETIF_RSP_NULL

PUSH_SLOTS: Final = 64  # XenVif pushes when so many are posted
PAGES_STEP: Final = 32  # pages granted at a time, while the queue grows
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
    ids: int
    pad_to: int  # shorter frames get zeros up to here
    header: Callable[[bytes], int] | None  # bytes of the first slot; None: a whole page


SHAPES: Final = {
    "windows": Shape(first_id=1, ids=0x3FF, pad_to=60, header=header_length),
    "linux": Shape(first_id=0, ids=256, pad_to=0, header=None),
}


class Packet:
    """A packet whose slots are on the ring."""

    __slots__ = ("cookie", "outstanding", "size", "status", "type")

    def __init__(self, cookie: int, kind: PacketType, size: int, outstanding: int) -> None:
        self.cookie = cookie
        self.type = kind
        self.size = size
        self.outstanding = outstanding  # slots without a response
        self.status = TransmitterStatus.OK

    def completion(self) -> Completion:
        return self.cookie, self.status, self.type, self.size


class TransmitterRing:
    """One queue's tx ring from connect to release. `linear`: the backend takes one slot a packet.

    PeerProtocolError from `post` and `poll`: the backend cannot be believed any more.
    """

    def __init__(
        self, bus: XenBus, domid: int, *, linear: bool, frame_max: int, returns: Returns
    ) -> None:
        self._bus = bus
        self._shape = SHAPES[bus.personality]
        self._linear = linear
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
        # By id: the packet that the slot belongs to. A slot is in flight if there is one.
        self._owner: list[Packet | None] = [None] * (self._shape.first_id + self._shape.ids)
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
                refused.append((cookie, TransmitterStatus.DROPPED, PacketType.UNICAST, 0))
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
        waiting, owner = self.waiting, self._owner
        pfns, refs = self.granter.pfns, self.granter.refs
        header, pad_to = self._shape.header, self._shape.pad_to
        slots: list[int] = []
        ids: list[int] = []
        pieces: list[int] = []
        parts: list[bytes] = []
        while waiting and len(ids) < PUSH_SLOTS:
            frame, cookie = waiting[0]
            length = len(frame)
            if length < pad_to:
                frame = frame.ljust(pad_to, b"\0")
            rest = size = len(frame)
            part = rest if self._linear or rest <= pad_to else 0
            if not part:
                part = min(rest, PAGE_SIZE) if header is None else header(frame)
            count = 1 + (rest - part + PAGE_SIZE - 1) // PAGE_SIZE
            if count > room - len(ids):
                break
            free = self._free_ids
            if len(free) < count and not self._grow(count - len(free)):
                break
            waiting.popleft()
            packet = Packet(cookie, packet_type(frame), length, count)
            parts.append(frame)
            while True:
                number = free.pop()
                owner[number] = packet
                ids.append(number)
                rest -= part
                slots += (refs[number], 0, MORE_DATA if rest else 0, number, size)
                pieces += (pfns[number], 0, part)
                if not rest:
                    break
                size = part = rest if rest < PAGE_SIZE else PAGE_SIZE
        return slots, ids, pieces, parts

    def _grow(self, count: int) -> bool:
        """At least `count` pages more, up to one for each slot; False if there are none."""
        have = len(self.granter.pfns) - self._shape.first_id
        try:
            fresh = self.granter.add(max(count, min(PAGES_STEP, self.ring.size - have)))
        except HypercallError:
            return False
        # The lowest is used first, so that a dump reads in order.
        self._free_ids[:0] = reversed(fresh)
        return True

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
        owner = self._owner
        done: list[int] = []
        complete: list[Completion] = []
        wrong = ""
        for number, status in RESPONSE.iter_unpack(responses):
            packet = owner[number] if number < len(owner) else None
            if packet is None or status == NULL:
                # No extras are sent, so that no NULL can answer one.
                wrong = f"tx response {number}, status {status}, answers no slot"
                break
            owner[number] = None
            done.append(number)
            if status != OKAY and packet.status is TransmitterStatus.OK:
                packet.status = _status(status)
            packet.outstanding -= 1
            if not packet.outstanding:
                complete.append(packet.completion())
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
            (cookie, TransmitterStatus.DROPPED, PacketType.UNICAST, 0)
            for _, cookie in self.waiting
        ]
        self.waiting.clear()
        if dropped:
            self._returns(dropped)

    def abort(self, status: TransmitterStatus) -> None:
        """Return every packet; slots that the backend never answered stay owned by it."""
        self.drop_waiting()
        seen = []
        for number, packet in enumerate(self._owner):
            if packet is None:
                continue
            self._owner[number] = None
            packet.outstanding -= 1
            if not packet.outstanding:
                seen.append((packet.cookie, status, packet.type, 0))
        if seen:
            self._returns(seen)

    def release(self) -> list[int]:
        """Give pages and references back; the pfns of those that the backend still maps."""
        self.abort(TransmitterStatus.DROPPED)
        self.granter.release()
        self._page.release()
        return self.granter.quarantined + self._page.quarantined


Returns = Callable[[Sequence[Completion]], None]


def _status(status: int) -> TransmitterStatus:
    return TransmitterStatus.DROPPED if status == DROPPED else TransmitterStatus.ERROR
