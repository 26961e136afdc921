"""Frames out: the tx ring of each queue (win-xenvif transmitter.c).

A packet is a chain of slots: its headers in a page of their own, then the payload page by
page, each granted read-only until its response; extra infos follow the first. A packet goes
back to the driver above exactly once: with its last response, or when the queue is aborted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

from xenpv.abi._kernel import lib
from xenpv.abi.layout import packer
from xenpv.bus.ring import FrontRing
from xenpv.bus.xenbus import XenBus
from xenpv.errors import HypercallError, PeerProtocolError
from xenpv.vif.callbacks import Completion, PacketType, TransmitterStatus, packet_type
from xenpv.vif.granter import Granter
from xenpv.vif.packet import TransmitterPacket
from xenpv.vif.parse import ETHERNET, LENGTH_BITS
from xenpv.vif.poller import Poller
from xenpv.vif.txlayout import SHAPES, slots_of
from xenpv.vif.txpacket import Prepared, Rules, multicast_extra, prepare
from xenpv.vif.txslots import Form, SlotTable

REQUEST_SIZE: Final = packer("netif_tx_request").size
RESPONSE_SIZE: Final = packer("netif_tx_response").size

UNICAST: Final = PacketType.UNICAST
OWN: Final = 0  # in the place of a PacketType: the driver's own, nobody hears of it
NO_HEADERS: Final[int] = lib.FRONT_HEADERS

PUSH_SLOTS: Final = 64  # XenVif pushes when so many are posted
PAGES_STEP: Final = 64  # pages granted at a time, while the queue grows
WAITING_MAX: Final = 65536  # packets behind a full ring; more are dropped
CONTROLS_MAX: Final = 256  # multicast requests in flight: one a slot is more than there can be
PLAIN: Final = {bytes}

Waiting = tuple[bytes | TransmitterPacket, int]


class TransmitterRing:
    """One queue's tx ring from connect to release.

    PeerProtocolError from `post` and `poll`: the backend cannot be believed any more.
    """

    def __init__(self, bus: XenBus, domid: int, *, rules: Rules, returns: Returns) -> None:
        self._bus = bus
        self._shape = shape = SHAPES[bus.personality]
        self._rules = rules
        self._returns = returns
        self._page = Granter(bus.gnttab, domid, readonly=False)
        self._page.permit(self._page.add(1))
        self.ring = FrontRing(
            bus.domain,
            self._page.pfns,
            req_size=REQUEST_SIZE,
            rsp_size=RESPONSE_SIZE,
            kind="netif_tx",
        )
        self.granter = Granter(bus.gnttab, domid, readonly=True, first=shape.first_id)
        form = Form(
            pad_to=shape.pad_to,
            reserve=shape.reserve,
            headers=shape.headers,
            linear=rules.linear,
        )
        self.slots = SlotTable(self.ring, domid, form)
        self.poller: Poller | None = None
        self.waiting: deque[Waiting] = deque()
        # What goes before all that waits: announcements, then multicast requests.
        self.announcements: deque[bytes] = deque()
        self.controls: deque[tuple[bytes, bool]] = deque()
        self.refused: list[bytes] = []  # groups that the backend did not add
        self._ready: Prepared | None = None  # the first that waits, if it was looked at
        self._controlling: dict[int, tuple[bytes, bool]] = {}  # by id
        first = shape.first_id + self.ring.size
        self._control_ids = list(range(first + CONTROLS_MAX - 1, first - 1, -1))
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
        waiting = self.waiting
        longest = self._rules.longest
        if set(map(type, frames)) == PLAIN:
            sizes = list(map(len, frames))
            fit = min(sizes) >= ETHERNET and max(sizes) <= longest
            if fit and len(waiting) + len(sizes) <= WAITING_MAX:
                waiting.extend(zip(frames, cookies, strict=True))
                return
        refused = []
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
        slots = self.slots
        notify = False
        dropped: list[Completion] = []
        goes_on = True
        while goes_on and (self.waiting or self.announcements or self.controls):
            self._grow()
            if self.announcements or self.controls:
                goes_on = self._post_own()
            elif type(self.waiting[0][0]) is bytes and not self._rules.validate:
                goes_on = self._post_plain(dropped)
            else:
                goes_on = self._post_packet(dropped)
            if slots.pending >= PUSH_SLOTS:
                notify |= self._publish()
        if slots.pending:
            notify |= self._publish()
        if notify and self.poller is not None:
            self.poller.send()
        if dropped:
            # Last: whoever hears of it may send again.
            self._returns(dropped)

    def _publish(self) -> bool:
        self.posted += self.slots.pending
        return self.slots.publish()

    def _post_own(self) -> bool:
        """Slots of what goes first; False: some of it has no room yet, and the rest must wait."""
        while self.announcements:
            ready = prepare(TransmitterPacket(self.announcements[0]), self._rules)
            if ready is not None and not self._lay_out(ready, (), 0, OWN):
                return False
            self.announcements.popleft()
        while self.controls:
            if self.slots.room < 2 or not self._control_ids:
                return False
            address, add = self.controls.popleft()
            number = self._control_ids.pop()
            self._controlling[number] = (address, add)
            self.slots.own(number, multicast_extra(address, add=add))
        return True

    def _post_plain(self, dropped: list[Completion]) -> bool:
        """Slots of frames without offloads, up to PUSH_SLOTS; False: the next has no room yet."""
        waiting = self.waiting
        run: list[Waiting] = list(islice(waiting, PUSH_SLOTS))
        frames, cookies = zip(*run, strict=True)
        if set(map(type, frames)) != PLAIN:
            count = next(at for at, one in enumerate(frames) if type(one) is not bytes)
            frames, cookies = frames[:count], cookies[:count]
        taken, stopped = self.slots.send(frames, cookies, PUSH_SLOTS)
        for _ in range(taken):
            waiting.popleft()
        if stopped == NO_HEADERS:
            # Headers that are not what they say: those that are go out all the same.
            return self._post_packet(dropped)
        return not stopped

    def _post_packet(self, dropped: list[Completion]) -> bool:
        """Slots of the first that waits; False: it has no room yet."""
        packet, cookie = self.waiting[0]
        if not isinstance(packet, TransmitterPacket):
            packet = TransmitterPacket(packet)
        ready = self._ready or prepare(packet, self._rules)
        if ready is not None:
            inserted = len(ready.data) - len(packet.data)
            kind = UNICAST if not ready.data[0] & 1 else packet_type(ready.data)
            layout = () if inserted and not self._shape.headers else packet.layout
            if not self._lay_out(ready, layout, cookie, kind, inserted):
                self._ready = ready
                return False
        else:
            dropped.append(_dropped(cookie))
        self.waiting.popleft()
        self._ready = None
        return True

    def _lay_out(
        self,
        ready: Prepared,
        layout: tuple[tuple[int, int], ...],
        cookie: int,
        kind: int,
        inserted: int = 0,
    ) -> bool:
        """Put a packet into slots, if there are enough."""
        data, shape, slots = ready.data, self._shape, self.slots
        length, head = len(data), ready.head
        if length < shape.pad_to:
            data = data.ljust(shape.pad_to, b"\0")
            layout = ()  # what is padded is copied
            if head == length:
                head = len(data)
        if self._rules.linear:
            pieces = [(0, len(data))]
        else:
            layout = () if self._rules.always_copy else layout
            first = head if shape.headers else 0
            pieces = slots_of(layout, inserted, first, len(data), shape.first_min)
        room = slots.room
        needs = len(pieces) + len(ready.extras) // REQUEST_SIZE
        if room <= shape.reserve or needs > room or len(pieces) > slots.free:
            return False
        code = ready.head | ready.traits << LENGTH_BITS
        slots.chain(data, pieces, ready.flags, ready.extras, (cookie, kind, length, code))
        return True

    def _grow(self) -> None:
        """More pages if there are any, up to one for each slot."""
        slots = self.slots
        if slots.free >= PUSH_SLOTS or slots.free >= slots.room:
            return
        granter = self.granter
        have = len(granter.pfns) - self._shape.first_id
        try:
            fresh = granter.add(min(PAGES_STEP, self.ring.size - have))
        except HypercallError:
            return  # packets wait for the pages that there are
        slots.add(fresh, granter.pfns, granter.refs)

    # up

    def poll(self) -> None:
        """Take responses, return packets that are complete, post what waits."""
        while True:
            count, responses = self.ring.take()
            if count:
                self._answer(responses, count)
            if self.waiting or self.announcements or self.controls:
                self.post()
            if not self.ring.final_check():
                return

    def _answer(self, responses: memoryview, count: int) -> None:
        answers = self.slots.answer(responses, count)
        self.answered += answers.answered
        for number, status in answers.own:
            address, add = self._controlling.pop(number)
            self._control_ids.append(number)
            if status and add:
                self.refused.append(address)
        if answers.complete:
            self._returns(answers.complete)
        if answers.wrong or answers.busy:
            raise PeerProtocolError(answers.wrong or answers.busy)

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
        return self.slots.in_flight

    def abort(self, status: TransmitterStatus) -> None:
        """Return every packet; slots that the backend never answered stay owned by it.

        XenVif writes the responses itself here, DROPPED for a slot and NULL for an extra; they
        are only counted, so that posted = answered + faked at the end.
        """
        self.drop_waiting()
        self.faked += self.in_flight + self.slots.nulls
        self._controlling.clear()
        returned = self.slots.abort(status)
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
