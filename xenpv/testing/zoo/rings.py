"""What drivers get wrong at a ring: indices, events, wake-ups, order, what stays in a slot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from xenpv.back.ring import BackRing
from xenpv.bus.ring import FrontRing
from xenpv.testing.rings import REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, u32
from xenpv.testing.zoo.defect import BOTH, Defect


def _sleeps_without_looking(_original: Any) -> Any:
    def final_check(_ring: Any) -> bool:
        return False

    return final_check


def _event_late(prod_at: int, event_at: int, cons: str) -> Callable[[Any], Any]:
    def change(_original: Any) -> Any:
        def final_check(ring: Any) -> bool:
            domain, page, consumed = ring.domain, ring.pfns[0], getattr(ring, cons)
            if domain.load32(page, prod_at) != consumed:
                return True
            domain.store32(page, event_at, u32(consumed + 1))
            return False

        return final_check

    return change


DEFECTS: Final = (
    Defect(
        id="ring-back-no-final-check",
        end="backend",
        mutation="after draining, sleeps without setting req_event and looking again",
        hunt="scenario:blk_requests",
        changes=((BackRing, "final_check", _sleeps_without_looking),),
    ),
    Defect(
        id="ring-event-late",
        end=BOTH,
        mutation="looks for work, then sets the event index, and does not look again",
        hunt="scenario:blk_requests",
        changes=(
            (BackRing, "final_check", _event_late(REQ_PROD, REQ_EVENT, "req_cons")),
            (FrontRing, "final_check", _event_late(RSP_PROD, RSP_EVENT, "rsp_cons")),
        ),
    ),
)
