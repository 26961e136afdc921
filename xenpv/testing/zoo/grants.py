"""What drivers get wrong about grants: what stays granted, mapped or writable."""

from __future__ import annotations

from typing import Any, Final

from xenpv.abi._kernel import lib
from xenpv.bus.gnttab import GnttabInterface
from xenpv.testing.zoo.defect import Defect
from xenpv.testing.zoo.passes import instead, remembers
from xenpv.vbd import segments
from xenpv.vbd.granter import Granter
from xenpv.vbd.ring import Ring
from xenpv.vif.granter import Granter as VifGranter
from xenpv.vif.rxring import ReceiverRing


def _clear(gnttab: Any, ref: int) -> None:
    gnttab.domain.check(lib.grant_entry_set(gnttab.domain.kernel, ref, 0, 0, 0))


def _recycles(original: Any, gnttab: Any, ref: int) -> bool:
    """The flags go whether or not GTF_reading or GTF_writing is set."""
    if not original(gnttab, ref):
        _clear(gnttab, ref)
        gnttab._free.append(ref)
        gnttab._permitted -= 1
    return True


def _recycles_all(original: Any, gnttab: Any, refs: list[int]) -> list[int]:
    for ref in original(gnttab, refs):
        _recycles(lambda _gnttab, _ref: False, gnttab, ref)
    return []


def _ends(original: Any, gnttab: Any, ref: int) -> bool:
    if not original(gnttab, ref):
        _clear(gnttab, ref)
    return True


def _takes_back(original: Any, granter: Any, numbers: Any) -> list[int]:
    for number in original(granter, numbers):
        _clear(granter._gnttab, granter.refs[number])
    return []


_closing: list[Any] = []


def _keeps_ring_page(original: Any, granter: Any, ref: int, *arguments: Any, **named: Any) -> bool:
    """XenVbd: the first page of a ring that goes is given back with its reference as it is."""
    if _closing and _closing[-1].grefs[:1] == [ref]:
        return True
    return bool(original(granter, ref, *arguments, **named))


def _forgets_ring_page(original: Any, ring: Any) -> Any:
    """XenVif: that of an rx ring."""
    ring._page.pfns.clear()
    ring._page.refs.clear()
    return original(ring)


_building: list[Any] = []


def _builds(original: Any, *arguments: Any) -> Any:
    _building.append(arguments)
    try:
        return original(*arguments)
    finally:
        _building.pop()


def _permits(original: Any, granter: Any, pfn: int, readonly: bool) -> Any:
    return original(granter, pfn, readonly and not _building)


def _permits_run(original: Any, granter: Any, pfn: int, count: int, readonly: bool) -> Any:
    return original(granter, pfn, count, readonly and not _building)


DEFECTS: Final[tuple[Defect, ...]] = (
    Defect(
        id="grant-revoke-mapped",
        end="bus",
        mutation="reference recycled although the peer still maps it",
        hunt="scenario:disk_kept",
        changes=(
            (GnttabInterface, "revoke_foreign_access", instead(_recycles)),
            (GnttabInterface, "revoke_run", instead(_recycles_all)),
            (GnttabInterface, "end_foreign_access", instead(_ends)),
            (VifGranter, "revoke", instead(_takes_back)),
        ),
    ),
    Defect(
        id="grant-leak-at-close",
        end="XenVif/XenVbd",
        mutation="one ring page stays granted after close",
        hunt="scenario:devices_closed",
        changes=(
            (Ring, "disconnect", remembers(_closing)),
            (Granter, "revoke", instead(_keeps_ring_page)),
            (ReceiverRing, "release", instead(_forgets_ring_page)),
        ),
    ),
    Defect(
        id="grant-writable",
        end="XenVbd",
        mutation="data pages of a WRITE granted writable",
        hunt="scenario:disk_writes",
        changes=(
            (segments, "build", instead(_builds)),
            (Granter, "permit", instead(_permits)),
            (Granter, "permit_run", instead(_permits_run)),
        ),
    ),
)
