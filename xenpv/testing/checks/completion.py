"""Exactly one response for each request: ids as they pass, from handler to handler.

The wire alone does not keep them: a response lies in the slot of an earlier request. So whoever
watches looks whenever an index has moved (`Completions.look`), before the ring has gone round.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.view.rings import REQ_PROD, RSP_PROD, KnownRing, rings, u32

if TYPE_CHECKING:
    from xenpv.platform import Platform

TX: Final = "netif_tx"
RX: Final = "netif_rx"
TX_EXTRA: Final[int] = lib.NETTXF_extra_info
RX_EXTRA: Final[int] = lib.NETRXF_extra_info
EXTRA_MORE: Final[int] = lib.XEN_NETIF_EXTRA_FLAG_MORE
NULL: Final[int] = lib.NETIF_RSP_NULL
EXTRA_FLAGS_AT: Final = 1  # struct netif_extra_info: type, flags


@attrs.define(eq=False)
class Flight:
    """What is in flight on one ring. `requests` and `responses` are the indices seen so far.

    `sure` is False from where a slot was used again before anybody looked, until nothing is in
    flight. `extras` of tx are slots without an id, which are answered with NULL; those of rx
    take the place of a response.
    """

    front: Any
    back: Any
    requests: int
    responses: int
    sure: bool
    ids: Counter[int] = attrs.field(factory=Counter)
    order: deque[int] = attrs.field(factory=deque)  # of rx, which is answered in order
    extras: int = 0
    sent_more: bool = False  # the next request is an extra
    came_more: bool = False  # the next response is one

    def forget(self, ring: KnownRing) -> None:
        """Begin anew: with what an rx ring has posted, which is answered in order; of others once
        nothing is in flight.
        """
        self.ids.clear()
        self.order.clear()
        self.extras, self.sent_more, self.came_more = 0, False, False
        posted = u32(self.requests - self.responses)
        self.sure = not posted or (ring.kind.name == RX and posted <= ring.size)
        for at in range(posted if self.sure else 0):
            _sent(ring, self, u32(self.responses + at))


class Completions:
    """The rings of one platform, and what is in flight on each."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self._flights: dict[int, Flight] = {}  # by the first frame

    def look(self, hostile: Collection[int] = ()) -> list[str]:
        """What is wrong in what happened since the last look. Rings with a `hostile` end, and
        those of which only one end is known, are not looked at.
        """
        findings: list[str] = []
        known: dict[int, Flight] = {}
        for ring in rings(self.platform.hypervisor):
            front, back = ring.front, ring.back
            if not ring.kind.request_id or front is None or back is None:
                continue
            if front.domain.domid in hostile or back.domain.domid in hostile:
                continue
            requests, responses = ring.word(REQ_PROD), ring.word(RSP_PROD)
            flight = self._flights.get(ring.frames[0])
            if flight is None or flight.front is not front.handle or flight.back is not back.handle:
                flight = Flight(front.handle, back.handle, requests, responses, sure=False)
                flight.forget(ring)
            else:
                findings += self._passed(ring, flight, requests, responses)
            known[ring.frames[0]] = flight
        self._flights = known
        return findings

    def _passed(self, ring: KnownRing, flight: Flight, requests: int, responses: int) -> list[str]:
        sent, came = u32(requests - flight.requests), u32(responses - flight.responses)
        # A request is there until a response is in its slot, a response until a later request is.
        # Of one that the backend has taken the slot may be written and not yet published.
        seen = (
            u32(requests - responses) <= ring.size
            and (not sent or not _is_taken(ring, flight.requests))
            and (not sent or u32(flight.requests - responses) <= ring.size)
            and (not came or u32(requests - flight.responses) <= ring.size)
        )
        first_sent, first_came = flight.requests, flight.responses
        flight.requests, flight.responses = requests, responses
        if not flight.sure or not seen:
            flight.forget(ring)
            return []
        for at in range(sent):
            _sent(ring, flight, u32(first_sent + at))
        findings: list[str] = []
        for at in range(came):
            findings += _came(ring, flight, u32(first_came + at))
        assert ring.front is not None, "both ends are known"
        if not ring.front.by_hand:
            twice = [number for number, count in flight.ids.items() if count > 1]
            findings += [f"{ring.name}: two requests in flight have id {one:#x}" for one in twice]
        if findings:
            flight.forget(ring)
        return findings


def _is_taken(ring: KnownRing, index: int) -> bool:
    """Whether a driver has consumed a request whose id lies elsewhere in its response."""
    assert ring.back is not None, "both ends are known"
    if ring.back.by_hand or ring.kind.name == RX:
        return False
    return u32(index - ring.back.cons) > ring.size


def _sent(ring: KnownRing, flight: Flight, index: int) -> None:
    if flight.sent_more:
        flight.extras += 1
        flight.sent_more = bool(ring.slot(index)[EXTRA_FLAGS_AT] & EXTRA_MORE)
        return
    request = ring.values(index, ring.kind.request)
    number = request[ring.kind.request_id]
    flight.ids[number] += 1
    if ring.kind.name == TX:
        flight.sent_more = bool(request["flags"] & TX_EXTRA)
    if ring.kind.name == RX:
        flight.order.append(number)


def _came(ring: KnownRing, flight: Flight, index: int) -> list[str]:
    assert ring.back is not None, "both ends are known"
    if flight.came_more:  # an extra, in the place of the oldest posted slot's response
        flight.came_more = bool(ring.slot(index)[EXTRA_FLAGS_AT] & EXTRA_MORE)
        if flight.order:
            flight.ids[flight.order.popleft()] -= 1
        return []
    response = ring.values(index, ring.kind.response)
    number = response[ring.kind.response_id]
    if ring.kind.name == TX and response["status"] == NULL:
        flight.extras -= 1
        wrong = flight.extras < 0
        number_text = "an extra"
    else:
        if ring.kind.name == RX:
            flight.came_more = bool(response["flags"] & RX_EXTRA)
            if number in flight.order:
                flight.order.remove(number)
        flight.ids[number] -= 1
        wrong = flight.ids[number] < 0
        number_text = f"id {number:#x}"
    if not wrong or ring.back.by_hand:
        return []
    return [f"{ring.name}: response {index:#x} answers {number_text}, which is not in flight"]
