"""What drivers get wrong at a ring: indices, events, wake-ups.

Each is on every ring of its end: those of blkback in both its ways (back/blkring.py in batches,
back/blkserver.py by request), of netback, of XenVbd and of XenVif. What goes wrong with the
bytes of slots and pages is in responses.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from xenpv.abi._kernel import lib
from xenpv.back import blkring, blkthread, netqueue, nettx
from xenpv.back.ring import BackRing
from xenpv.bus.ring import FrontRing
from xenpv.testing.zoo import responses
from xenpv.testing.zoo.defect import BOTH, Defect, Mutation
from xenpv.testing.zoo.passes import columns, fetch, instead, on_rings, remembers
from xenpv.view.rings import REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, u32
from xenpv.vif import txslots

# The BlkRing and the TxQueue that are in a pass: blk_take and net_take are given its struct alone.
_blk: list[Any] = []
_net: list[Any] = []
_REMEMBERED: Final[tuple[Mutation, ...]] = (
    (blkring.BlkRing, "service", remembers(_blk)),
    (nettx.TxQueue, "poll", remembers(_net)),
)


# the last look before sleep


def _sleeps(_original: Any, _ring: Any) -> bool:
    return False


def _reaps_by(look: Callable[[Any], bool]) -> Callable[[Any], Any]:
    """FrontRing.reap, which takes and looks again in one call."""

    def reap(_original: Any, ring: Any, most: int = 0) -> tuple[int, memoryview, bool]:
        count = lib.front_take(ring.handle, ring._out, most or ring.size)
        if count < 0:
            ring.domain.fail(count, "ring responses")
        more = 0 < most == count or look(ring)
        return count, ring._view[: count * ring.rsp_size], more

    return on_rings(reap)


def _event_late(prod_at: int, event_at: int, cons: str) -> Callable[[Any], bool]:
    def look(ring: Any) -> bool:
        domain, page, consumed = ring.domain, ring.pfns[0], getattr(ring, cons)
        if domain.load32(page, prod_at) != consumed:
            return True
        domain.store32(page, event_at, u32(consumed + 1))
        return False

    return look


_back_event_late: Final = _event_late(REQ_PROD, REQ_EVENT, "req_cons")
_front_event_late: Final = _event_late(RSP_PROD, RSP_EVENT, "rsp_cons")


# whether to notify


def _unmasked(ring: Any, event_at: int, old: int, new: int) -> bool:
    event: int = ring.domain.load32(ring.pfns[0], event_at)
    return new - event < new - old


def _back_push_unmasked(original: Any, ring: Any, packed: Any, count: int) -> bool:
    old = ring.rsp_prod
    original(ring, packed, count)
    return _unmasked(ring, RSP_EVENT, old, ring.rsp_prod)


def _front_push_unmasked(original: Any, ring: Any, packed: Any, count: int) -> bool:
    old = ring.req_prod
    original(ring, packed, count)
    return _unmasked(ring, REQ_EVENT, old, ring.req_prod)


def _front_publish_unmasked(original: Any, slots: Any) -> bool:
    old = slots.ring.req_prod
    original(slots)
    return _unmasked(slots.ring, REQ_EVENT, old, slots.ring.req_prod)


def _answer_unmasked(stack: list[Any], ring_of: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """blk_answer, net_answer: 1 where the frontend is to be notified."""

    def answer(original: Any, *arguments: Any) -> int:
        ring = ring_of(stack[-1])
        old = ring.rsp_prod
        done: int = original(*arguments)
        return done if done < 0 else _unmasked(ring, RSP_EVENT, old, ring.rsp_prod)

    return instead(answer)


def _blk_ring(ring: Any) -> Any:
    return ring.ring


def _net_ring(queue: Any) -> Any:
    return queue._ring


# how many there are


def _least(*counts: int) -> int:
    return min(counts)


def _requests_unbounded(ring: Any, most: int) -> int:
    """RING_REQUEST_PROD_OVERFLOW is not looked at."""
    count = u32(ring.domain.load32(ring.pfns[0], REQ_PROD) - ring.req_cons)
    count = _least(count, most, ring.size - ring.in_flight)
    fetch(ring, ring.raw, ring.req_cons, count, ring.req_size)
    lib.ring_seek(ring.handle, ring.rsp_prod, u32(ring.req_cons + count))
    return count


def _requests_reread(bounded_by: str) -> Callable[[Any, int], int]:
    """One value is checked against `bounded_by`, and the loop goes to another."""

    def take(ring: Any, most: int) -> int:
        domain, page, cons = ring.domain, ring.pfns[0], ring.req_cons
        prod = domain.load32(page, REQ_PROD)
        if u32(prod - getattr(ring, bounded_by)) > ring.size:
            domain.fail(lib.KERNEL_E_OVERFLOW, "ring requests")
        there = u32(domain.load32(page, REQ_PROD) - cons)
        count = _least(there, most, ring.size - ring.in_flight)
        fetch(ring, ring.raw, cons, count, ring.req_size)
        # The loop ends at the producer; more requests than a ring has lie over one another.
        taken = count if there <= ring.size else there
        lib.ring_seek(ring.handle, ring.rsp_prod, u32(cons + taken))
        return count

    return take


def _takes(take: Callable[[Any, int], int]) -> Callable[[Any], Any]:
    """BackRing.take by that."""

    def method(_original: Any, ring: Any, most: int | None = None) -> tuple[int, memoryview]:
        count = take(ring, ring.size if most is None else min(most, ring.size))
        return count, memoryview(ring.raw)[: count * ring.req_size]

    return on_rings(method)


def _blk_takes(take: Callable[[Any, int], int]) -> Callable[[Any], Any]:
    """blk_take by that."""

    def blk_take(_original: Any, blk_pass: Any) -> int:
        served = _blk[-1]
        count = take(served.ring, served.ring.size)
        blk_pass.listed = 0
        return columns(served, count) if count else 0

    return instead(blk_take)


def _net_takes(take: Callable[[Any, int], int]) -> Callable[[Any], Any]:
    """net_take by that; no group is of whole packets, so that each slot is looked at."""

    def net_take(_original: Any, _net_pass: Any) -> int:
        queue = _net[-1]
        count = take(queue._ring, queue._ring.size)
        for group in range(-(-count // nettx.BATCH)):
            nettx.GROUP.pack_into(queue._groups, group * nettx.GROUP.size, 1, 0, 0, 0)
        return count

    return instead(net_take)


def _every_take(
    take: Callable[[Any, int], int], tx: Callable[[Any, int], int]
) -> tuple[Mutation, ...]:
    return (
        (BackRing, "take", _takes(take)),
        (blkring, "blk_take", _blk_takes(take)),
        (nettx, "net_take", _net_takes(tx)),
    )


def _responses_unbounded(_original: Any, ring: Any, most: int = 0) -> tuple[int, memoryview]:
    """RING_RESPONSE_PROD_OVERFLOW is not looked at."""
    cons = ring.rsp_cons
    count = u32(ring.domain.load32(ring.pfns[0], RSP_PROD) - cons)
    count = min(count, most or ring.size)
    fetch(ring, ring._responses, cons, count, ring.rsp_size)
    lib.ring_seek(ring.handle, ring.req_prod, u32(cons + count))
    return count, ring._view[: count * ring.rsp_size]


def _reap_unbounded(_original: Any, ring: Any, most: int = 0) -> tuple[int, memoryview, bool]:
    count, responses = _responses_unbounded(None, ring, most)
    return count, responses, ring.final_check()


# connecting


def _attaches_anew(original: Any) -> Any:
    """SHARED_RING_INIT where BACK_RING_ATTACH belongs."""

    def make(domain: Any, pfns: Any, **parameters: Any) -> Any:
        words = {REQ_PROD: 0, REQ_EVENT: 1, RSP_PROD: 0, RSP_EVENT: 1}
        for at, value in words.items():
            domain.store32(pfns[0], at, value)
        return original(domain, pfns, **parameters)

    return make


DEFECTS: Final = (
    Defect(
        id="ring-back-no-final-check",
        end="backend",
        mutation="after draining, sleeps without setting req_event and looking again",
        hunt="scenario:blk_requests",
        changes=((BackRing, "final_check", on_rings(_sleeps)),),
    ),
    Defect(
        id="ring-front-no-final-check",
        end="frontend",
        mutation="after draining, sleeps without setting rsp_event and looking again",
        hunt="scenario:response_in_window",
        changes=(
            (FrontRing, "final_check", on_rings(_sleeps)),
            (FrontRing, "reap", _reaps_by(lambda _ring: False)),
        ),
    ),
    Defect(
        id="ring-event-late",
        end=BOTH,
        mutation="looks for work, then sets the event index, and does not look again",
        hunt="scenario:request_in_window",
        changes=(
            (BackRing, "final_check", on_rings(lambda _, ring: _back_event_late(ring))),
            (FrontRing, "final_check", on_rings(lambda _, ring: _front_event_late(ring))),
            (FrontRing, "reap", _reaps_by(_front_event_late)),
        ),
    ),
    Defect(
        id="ring-notify-unmasked",
        end=BOTH,
        mutation="notify test on unwrapped integers",
        hunt="scenario:rings_wrap",
        changes=(
            *_REMEMBERED,
            (BackRing, "push", on_rings(_back_push_unmasked)),
            (blkring, "blk_answer", _answer_unmasked(_blk, _blk_ring)),
            (nettx, "net_answer", _answer_unmasked(_net, _net_ring)),
            (FrontRing, "push", on_rings(_front_push_unmasked)),
            (txslots.SlotTable, "publish", instead(_front_publish_unmasked)),
        ),
    ),
    Defect(
        id="ring-prod-unbounded-back",
        end="backend",
        mutation="req_prod - req_cons > n not refused",
        hunt="scenario:requests_beyond",
        changes=(*_REMEMBERED, *_every_take(_requests_unbounded, _requests_unbounded)),
    ),
    Defect(
        id="ring-prod-unbounded-front",
        end="frontend",
        mutation="rsp_prod - rsp_cons > n not refused",
        hunt="scenario:responses_beyond",
        changes=(
            (FrontRing, "take", on_rings(_responses_unbounded)),
            (FrontRing, "reap", on_rings(_reap_unbounded)),
        ),
    ),
    Defect(
        id="ring-prod-reread",
        end="backend",
        mutation="producer index read once to check, again to loop",
        hunt="scenario:req_prod_moves",
        changes=(
            *_REMEMBERED,
            *_every_take(_requests_reread("rsp_prod"), _requests_reread("req_cons")),
        ),
    ),
    Defect(
        id="ring-reinit-at-attach",
        end="backend",
        mutation="resets the ring's indices when it connects",
        hunt="scenario:early_requests",
        changes=((blkthread, "BackRing", _attaches_anew), (netqueue, "BackRing", _attaches_anew)),
    ),
    *responses.DEFECTS,
)
