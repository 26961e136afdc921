"""One queue's rx ring (win-xenvif receiver.c): a page for every slot, and whose it is.

The backend may write a page until it answers the slot. Responses come in the order of the
requests, so a slot's number says which page it is about.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from typing import Final

from xenpv.abi.layout import packer
from xenpv.bus.ring import FrontRing
from xenpv.bus.xenbus import XenBus
from xenpv.errors import PeerProtocolError
from xenpv.vif.granter import PAGE_SIZE, Granter
from xenpv.vif.poller import Poller
from xenpv.vif.rxpacket import RESPONSE, RULES, Assembler, Batch

REQUEST: Final = packer("netif_rx_request")
_ZEROS: Final = bytes(256 * PAGE_SIZE)


@cache
def _requests(count: int) -> struct.Struct:
    """That many requests, packed in one go: id, pad and reference of each."""
    return struct.Struct("<" + REQUEST.format.lstrip("<") * count)


class ReceiverRing:
    """One queue's rx ring from connect to release.

    PeerProtocolError from `receive`: the backend cannot be believed any more.
    """

    def __init__(
        self, bus: XenBus, domid: int, *, gso_types: Sequence[int], headroom: int = 0
    ) -> None:
        self._bus = bus
        self._page = Granter(bus.gnttab, domid, readonly=False)
        self._page.permit(self._page.add(1))
        self.ring = FrontRing(
            bus.domain, self._page.pfns, req_size=REQUEST.size, rsp_size=RESPONSE.size
        )
        self.granter = Granter(bus.gnttab, domid, readonly=False)
        self.assembler = Assembler(
            rules=RULES[bus.personality],
            gso_types=gso_types,
            headroom=headroom,
        )
        self.poller: Poller | None = None
        self._requests = b""
        self._clear: list[int] = []  # pfn, 0, 4096 of each slot: pieces for scatter
        self.posted = 0
        self.answered = 0

    @property
    def ref(self) -> int:
        """The reference of the ring's page."""
        return self._page.refs[0]

    @property
    def filled(self) -> bool:
        return bool(self._requests)

    def fill(self) -> None:
        """Post every slot. HypercallError: not enough memory or references, nothing is posted."""
        size = self.ring.size
        while len(self.granter.pfns) < size:
            self.granter.add(size - len(self.granter.pfns))
        first = self.ring.req_prod % size
        self._clear = [0, 0, PAGE_SIZE] * size
        self._clear[::3] = self.granter.pfns[:size]
        words = [0] * (3 * size)
        words[::3] = range(size)
        words[2::3] = self.granter.refs[:size]
        self._requests = _requests(size).pack(*words)
        slots = [*range(first, size), *range(first)]
        self.granter.permit(slots)
        self._push(slots[0], size)

    def _push(self, slot: int, count: int) -> None:
        """Post `count` slots from `slot` on."""
        requests = self._requests
        width = REQUEST.size
        end = slot + count
        chunk = requests[slot * width : end * width]
        if end > self.ring.size:
            chunk += requests[: (end - self.ring.size) * width]
        self.posted += count
        if self.ring.push(chunk, count) and self.poller is not None:
            self.poller.send()

    def receive(self) -> tuple[Batch | None, bool]:
        """Packets of the responses that are there, and whether more came meanwhile.

        Their slots are posted again. If none came, an event will tell of the next.
        """
        count, responses, more = self.ring.reap()
        if not count:
            return None, more
        size = self.ring.size
        first = (self.ring.rsp_cons - count) % size
        self.answered += count
        slots = [*range(first, size), *range(first)][:count]
        # Access ends before the bytes are looked at: the backend cannot change them then.
        busy = self.granter.revoke(slots)
        if busy:
            raise PeerProtocolError(f"rx slot {busy[0]} was answered, yet its grant is in use")
        pieces, batch = self.assembler.packets(bytes(responses), first, self.granter.pfns)
        if batch.ends:
            batch.data = self._bus.domain.collect(pieces, batch.ends[-1])
        self._wipe(first, count)
        self.granter.permit(slots)
        self._push(first, count)
        return batch, more

    def _wipe(self, first: int, count: int) -> None:
        """The backend sees nothing of an earlier packet (XSA-403)."""
        clear = self._clear
        end = first + count
        pieces = clear[3 * first : 3 * end] + clear[: max(0, 3 * (end - self.ring.size))]
        zeros = _ZEROS if count == 256 else memoryview(_ZEROS)[: count * PAGE_SIZE]
        self._bus.domain.scatter(pieces, zeros)

    def release(self) -> list[tuple[int, int]]:
        """Give pages and references back; (ref, pfn) of those that the backend still maps."""
        self._requests = b""
        self.granter.release()
        self._page.release()
        return self.granter.quarantined + self._page.quarantined
