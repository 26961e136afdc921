"""Which response answers which request: requests in flight on one taped ring.

blkif and xen_netif_ctrl requests are answered by their `id`, in any order, and so are those of
netif_tx. A slot of netif_tx with an extra has no id: after the response to its packet's first
slot comes one NETIF_RSP_NULL for each (netback's make_tx_response). A response of netif_rx, and of
a ring whose requests have no id, answers the request that was in its slot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

import attrs

from xenpv.abi.netif import NETIF_RSP, NETTXF
from xenpv.view import words
from xenpv.view.rings import KINDS, UNKNOWN
from xenpv.view.tape import Publication, TapedRing

U32: Final = 0xFFFF_FFFF
MORE: Final = 1  # XEN_NETIF_EXTRA_FLAG_MORE, in byte 1 of an extra


@attrs.define(eq=False)
class Flight:
    """A request. `index` is free-running; `number` counts all of a tape's, from 1 on.

    `answered`: the moment of its response, -1 if there was none yet. `taken`: the backend was
    seen to have it.
    """

    number: int
    ring: TapedRing
    index: int
    moment: int
    name: str
    args: dict[str, words.Value]
    extras: list[Flight] = attrs.field(factory=list)
    taken: bool = False
    answered: int = -1

    @property
    def slot(self) -> int:
        return self.index % self.ring.size


class Flights:
    """The requests of one ring. `open` are those without a response, by index, oldest first.

    `unknown` counts responses that answer nothing, `overwritten` requests whose slot got another
    one while they were open.
    """

    def __init__(self, ring: TapedRing) -> None:
        self.ring = ring
        kind = KINDS.get(ring.kind, UNKNOWN)
        by_id = bool(kind.request_id and kind.response_id) and not kind.wait
        self._ids = (kind.request_id, kind.response_id) if by_id else None
        self._named: dict[int, deque[Flight]] = {}
        self._slots: dict[int, Flight] = {}
        self._extras_of: Flight | None = None  # the next slot is one more of it
        self._nulls: deque[Flight] = deque()  # extras whose packet was answered
        self.open: dict[int, Flight] = {}
        self.unknown = 0
        self.overwritten = 0

    def requests(self, publication: Publication, number: int) -> Iterator[tuple[Flight, bool]]:
        """Those that a publication put into flight, numbered from `number` on; True before it: one
        that it overwrote and that is not in flight any more.
        """
        for at, data in enumerate(publication.slots):
            index = publication.first + at & U32
            flight = self._request(index, data, publication.moment, number + at)
            old = self._slots.get(flight.slot)
            if old is not None:
                self._drop(old)
                self.overwritten += 1
                yield old, True
            self._slots[flight.slot] = self.open[index] = flight
            yield flight, False

    def _request(self, index: int, data: bytes, moment: int, number: int) -> Flight:
        ring = self.ring
        packet = self._extras_of
        if packet is not None:
            flight = Flight(number, ring, index, moment, "netif_extra_info", words.extra_info(data))
            packet.extras.append(flight)
            self._extras_of = packet if data[1] & MORE else None
            return flight
        args = words.request(ring.kind, ring.request, data)
        flight = Flight(number, ring, index, moment, _name(ring, args), args)
        if self._ids is not None:
            known = words.values(ring.request, data)
            self._named.setdefault(known[self._ids[0]], deque()).append(flight)
            if ring.kind == "netif_tx" and known["flags"] & NETTXF.extra_info:
                self._extras_of = flight
        return flight

    def responses(
        self, publication: Publication
    ) -> Iterator[tuple[Flight | None, dict[str, words.Value]]]:
        """Each response decoded, with the request that it answers."""
        for at, data in enumerate(publication.slots):
            args = words.response(self.ring.response, data)
            flight = self._answered(publication.first + at & U32, data)
            if flight is None:
                self.unknown += 1
            else:
                flight.answered = publication.moment
                self._drop(flight)
            yield flight, args

    def _answered(self, index: int, data: bytes) -> Flight | None:
        if self._ids is None:
            return self.open.get(index)
        found = words.values(self.ring.response, data)
        is_tx = self.ring.kind == "netif_tx"
        if is_tx and self._nulls and words.signed(found["status"]) == NETIF_RSP.NULL:
            return self._nulls.popleft()
        waiting = self._named.get(found[self._ids[1]])
        if not waiting:
            return None
        self._nulls = deque(waiting[0].extras)
        return waiting[0]

    def _drop(self, flight: Flight) -> None:
        """It is not in flight any more."""
        self.open.pop(flight.index, None)
        if self._slots.get(flight.slot) is flight:
            del self._slots[flight.slot]
        key = None if self._ids is None else flight.args.get(self._ids[0])
        if isinstance(key, int) and flight in self._named.get(key, ()):
            waiting = self._named[key]
            waiting.remove(flight)
            if not waiting:
                del self._named[key]


def _name(ring: TapedRing, args: dict[str, words.Value]) -> str:
    """What a request is for: its operation or type, else the struct's name."""
    verb = args.get("operation", args.get("type"))
    if isinstance(verb, str):
        return verb
    return ring.request or "request" if verb is None else f"{ring.request} {verb}"
