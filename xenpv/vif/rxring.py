"""One queue's rx ring (win-xenvif receiver.c): a page for every slot, and whose it is.

The backend may write a page until it answers the slot. Responses come in the order of the
requests, so a slot's number says which page it is about.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from xenpv.abi._kernel import lib
from xenpv.bus.ring import FrontRing
from xenpv.bus.xenbus import XenBus
from xenpv.errors import HypercallError, PeerProtocolError
from xenpv.vif.granter import PAGE_SIZE, Granter
from xenpv.vif.poller import Poller
from xenpv.vif.rxpacket import RESPONSE, RULES, Assembler, Batch
from xenpv.vif.rxslots import REQUEST, Slots
from xenpv.xen.loop import NS_PER_MS

if TYPE_CHECKING:
    from xenpv.xen.loop import Timer

_ZEROS: Final = bytes(256 * PAGE_SIZE)
_VIEW: Final = memoryview(_ZEROS)

# netfront tries again later where it has fewer slots posted than one packet may need.
SLOTS_LOW: Final[int] = lib.XEN_NETIF_NR_SLOTS_MIN + 1
REFILL_NS: Final = 100 * NS_PER_MS


class ReceiverRing:
    """One queue's rx ring from connect to release. `name` is the queue's.

    PeerProtocolError from `receive`: the backend cannot be believed any more.
    """

    def __init__(
        self,
        bus: XenBus,
        domid: int,
        name: str,
        *,
        gso_types: Sequence[int],
        headroom: int = 0,
    ) -> None:
        self._bus = bus
        self._name = name
        self._rules = RULES[bus.personality]
        self._page = Granter(bus.gnttab, domid, readonly=False)
        self._page.permit(self._page.add(1))
        self.ring = FrontRing(
            bus.domain,
            self._page.pfns,
            req_size=REQUEST.size,
            rsp_size=RESPONSE.size,
            kind="netif_rx",
        )
        self.granter = Granter(bus.gnttab, domid, readonly=False)
        self._slots = Slots(self.granter, self.ring.size)
        self.assembler = Assembler(rules=self._rules, gso_types=gso_types, headroom=headroom)
        self.poller: Poller | None = None
        self.filled = False
        self._timer: Timer | None = None  # made when pages run short
        self.posted = 0
        self.answered = 0

    @property
    def ref(self) -> int:
        """The reference of the ring's page."""
        return self._page.refs[0]

    def fill(self) -> None:
        """Post every slot. HypercallError: not enough memory or references, nothing is posted.

        netfront posts what it can get, and tries again later for the rest.
        """
        size = self.ring.size
        try:
            while len(self.granter.pfns) < size:
                self.granter.add(size - len(self.granter.pfns))
        except HypercallError:
            if self._rules.breaks:
                raise
        self.filled = True
        if len(self.granter.pfns) < size:
            self._post_new(range(len(self.granter.pfns)))
            return
        self._slots.fill()
        first = self.ring.req_prod % size
        self.granter.permit(self._slots.run(first, size))
        self._push(first, size)

    def _post_new(self, numbers: range) -> None:
        """Post pages that were not in any slot; soon again if they are few."""
        if numbers:
            first = self.ring.req_prod % self.ring.size
            self._slots.place(self._slots.run(first, len(numbers)), numbers)
            self.granter.permit(numbers)
            self._push(first, len(numbers))
        if len(self.granter.pfns) < SLOTS_LOW:
            if self._timer is None:
                domain = self._bus.domain
                task = domain.task(f"{self._name} refill", self._refill)
                self._timer = domain.timer(task, period_ns=REFILL_NS)
            self._timer.arm(REFILL_NS)
        elif self._timer is not None:
            self._timer.cancel()

    def _refill(self) -> None:
        """Get the pages that are missing, or some of them."""
        if not self.filled:
            return
        try:
            more = self.granter.add(self.ring.size - len(self.granter.pfns))
        except HypercallError:
            more = range(0)
        self._post_new(more)

    def _push(self, first: int, count: int) -> None:
        """Post `count` slots from `first` on."""
        self.posted += count
        requests = self._slots.requests(first, count)
        if self.ring.push(requests, count) and self.poller is not None:
            self.poller.send()

    def receive(self) -> tuple[Batch | None, bool]:
        """Packets of the responses that are there, and whether more came meanwhile.

        Their slots are posted again. If none came, an event will tell of the next.
        """
        count, responses, more = self.ring.reap()
        if not count:
            return None, more
        slots = self._slots
        first = (self.ring.rsp_cons - count) % self.ring.size
        self.answered += count
        numbers = slots.numbers(slots.run(first, count))
        # Access ends before the bytes are looked at: the backend cannot change them then.
        busy = self.granter.revoke(numbers)
        if busy:
            raise PeerProtocolError(f"rx page {busy[0]} was answered, yet its grant is in use")
        pieces, batch = self.assembler.packets(bytes(responses), first, slots.pfns)
        if batch.ends:
            batch.data = self._bus.domain.collect(pieces, batch.ends[-1])
        self._wipe(slots.pieces(first, count))
        self._post_again(numbers, batch)
        if len(self.granter.pfns) < self.ring.size:
            self._refill()
        return batch, more

    def _post_again(self, numbers: list[int], _batch: Batch) -> None:
        """The pages of the slots that were answered, whatever came in them."""
        first = self.ring.req_prod % self.ring.size
        self._slots.place(self._slots.run(first, len(numbers)), numbers)
        self.granter.permit(numbers)
        self._push(first, len(numbers))

    def _wipe(self, pieces: list[int]) -> None:
        """The backend sees nothing of an earlier packet (XSA-403)."""
        size = len(pieces) // 3 * PAGE_SIZE
        self._bus.domain.scatter(pieces, _ZEROS if size == len(_ZEROS) else _VIEW[:size])

    def stop(self) -> None:
        """Post nothing any more."""
        self.filled = False
        if self._timer is not None:
            self._timer.cancel()

    def release(self) -> list[tuple[int, int]]:
        """Give pages and references back; (ref, pfn) of those that the backend still maps."""
        self.stop()
        timer, self._timer = self._timer, None
        if timer is not None:
            self._bus.domain.forget_timer(timer)
        self.granter.release()
        self._page.release()
        return self.granter.quarantined + self._page.quarantined
