"""The defect zoo: known mistakes of real drivers, put back into ours one at a time.

    with zoo.defect("ring-back-no-final-check"):
        assert explore(scenario).failed

Off unless a `with` says otherwise, restored whatever happens in it: there is no other way to
turn one on. Each is one small mutation, applied to the driver's class from outside, so that
the drivers' code knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import attrs

from xenpv.abi.layout import offsetof
from xenpv.back import blkring
from xenpv.back.ring import BackRing
from xenpv.bus.ring import FrontRing
from xenpv.errors import LocalProtocolError
from xenpv.testing.rings import FIRST_SLOT, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, u32
from xenpv.xen.domain import PAGE_SIZE

if TYPE_CHECKING:
    from xenpv.testing.run import Scenario

# (where, name of the attribute, what takes its place given what was there)
Mutation = tuple[Any, str, Callable[[Any], Any]]


@attrs.frozen
class Defect:
    """One entry. `end` has the mistake, `mutation` says it, `scenario` finds it: one of
    testing.scenarios, or of those in lifecycle_zoo the steps of a life cycle.
    """

    id: str
    end: str
    mutation: str
    scenario: str
    changes: tuple[Mutation, ...]

    def find_scenario(self) -> Scenario:
        """The scenario that shows it."""
        from xenpv.testing import scenarios

        found: Scenario = getattr(scenarios, self.scenario)
        return found


_active: list[str] = []


def active() -> tuple[str, ...]:
    """The defects that are on now, in the order in which they were turned on."""
    return tuple(_active)


@contextmanager
def defect(name: str) -> Iterator[Defect]:
    """Turn one on while the context lasts. LocalProtocolError: unknown, or on already."""
    from xenpv.testing import lifecycle_zoo

    found = DEFECTS.get(name) or lifecycle_zoo.DEFECTS.get(name)
    if found is None:
        raise LocalProtocolError(f"no defect is called {name!r}: expected {', '.join(DEFECTS)}")
    if name in _active:
        raise LocalProtocolError(f"the defect {name} is on already")
    saved: list[tuple[Any, str, Any]] = []
    _active.append(name)
    try:
        for where, attribute, change in found.changes:
            # vars() and not getattr: what is put back must be what the class itself has.
            before = vars(where)[attribute]
            saved.append((where, attribute, before))
            setattr(where, attribute, change(before))
        yield found
    finally:
        for where, attribute, before in reversed(saved):
            setattr(where, attribute, before)
        _active.remove(name)


# mutations


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


# The ring that blkback serves now: blk_copy is given its pass, not the ring.
_served: list[Any] = []


def _remembers_ring(original: Any) -> Any:
    def service(ring: Any, vbd: Any) -> bool:
        _served.append(ring)
        try:
            more: bool = original(ring, vbd)
        finally:
            _served.pop()
        return more

    return service


def _fetch_again(ring: Any, first: int, end: int, field: int) -> None:
    """The byte at offset `field` of requests [first, end) of the pass, from the shared slots.

    No response of the pass is out yet: its first request is at rsp_prod.
    """
    for index in range(first, end):
        slot = u32(ring.rsp_prod + index) % ring.size
        page, offset = divmod(FIRST_SLOT + slot * ring.req_size + field, PAGE_SIZE)
        ring.raw[index * ring.req_size + field] = ring.domain.read(ring.pfns[page], offset, 1)[0]


def _fetches_nr_segments_again(original: Any) -> Any:
    """Checked as it was copied, used as it is in the slot by then."""
    nr_segments = offsetof("blkif_request", "nr_segments")

    def blk_copy(blk_pass: Any, first: int, end: int, *rest: Any) -> Any:
        if _served:
            _fetch_again(_served[-1].ring, first, end, nr_segments)
        return original(blk_pass, first, end, *rest)

    return blk_copy


_ALL: Final = (
    Defect(
        id="ring-back-no-final-check",
        end="backend",
        mutation="after draining, sleeps without setting req_event and looking again",
        scenario="blk_requests",
        changes=((BackRing, "final_check", _sleeps_without_looking),),
    ),
    Defect(
        id="ring-event-late",
        end="both",
        mutation="looks for work, then sets the event index, and does not look again",
        scenario="blk_requests",
        changes=(
            (BackRing, "final_check", _event_late(REQ_PROD, REQ_EVENT, "req_cons")),
            (FrontRing, "final_check", _event_late(RSP_PROD, RSP_EVENT, "rsp_cons")),
        ),
    ),
    Defect(
        id="blk-double-fetch-nr-segments",
        end="blkback",
        mutation="nr_segments read twice",
        scenario="blk_requests",
        changes=(
            (blkring.BlkRing, "service", _remembers_ring),
            (blkring, "blk_copy", _fetches_nr_segments_again),
        ),
    ),
)

DEFECTS: Final[dict[str, Defect]] = {one.id: one for one in _ALL}
