"""What frontends get wrong about ids: what a response is matched with. XenVbd's and XenVif's."""

from __future__ import annotations

from typing import Any, Final
from weakref import WeakKeyDictionary

from xenpv.abi.netif import NETIF_RSP
from xenpv.testing.zoo.defect import Defect
from xenpv.testing.zoo.passes import instead
from xenpv.vbd.preparer import Preparer
from xenpv.vbd.ring import Ring
from xenpv.vbd.srb import SrbStatus
from xenpv.vif.txslots import IDS, SlotTable

NULL: Final = int(NETIF_RSP.NULL)
TX_RESPONSE: Final = 4  # bytes: id, status


def _same_id(_original: Any, preparer: Any) -> int:
    """XenVbd counts its requests."""
    preparer._last_id = preparer._last_id or 1
    return int(preparer._last_id)


def _not_taken(table: Any) -> None:
    """The id that was used last is on the stack of free ones again."""
    if table.nr_free + table.in_flight < IDS - 1:
        table.nr_free += 1


def _sends(original: Any, slots: Any, *arguments: Any) -> Any:
    taken, stopped = original(slots, *arguments)
    if taken:
        _not_taken(slots.table)
    return taken, stopped


def _chains(original: Any, slots: Any, *arguments: Any) -> None:
    original(slots, *arguments)
    _not_taken(slots.table)


def _looks_up(_original: Any, ring: Any, rid: int) -> None:
    """The table is indexed by whatever the backend says."""
    raise IndexError(f"request {rid:#x} of {sorted(ring.submitted)}")


def _responses(raw: memoryview, count: int) -> list[tuple[int, int]]:
    words = [raw[at * TX_RESPONSE : (at + 1) * TX_RESPONSE] for at in range(count)]
    return [
        (int.from_bytes(one[:2], "little"), int.from_bytes(one[2:], "little", signed=True))
        for one in words
    ]


def _answers_any(original: Any, slots: Any, raw: memoryview, count: int) -> Any:
    for number, status in _responses(raw, count):
        if status != NULL:
            assert slots.table.owner[number] is not None
    return original(slots, raw, count)


_finished: WeakKeyDictionary[Any, dict[int, Any]] = WeakKeyDictionary()


def _finishes(original: Any, ring: Any, request: Any, status: int) -> None:
    _finished.setdefault(ring, {})[request.id] = request
    original(ring, request, status)


def _finishes_again(original: Any, ring: Any, rid: int) -> None:
    request = _finished.get(ring, {}).get(rid)
    if request is None or rid in ring.abandoned:
        original(ring, rid)
    else:
        request.srb.part_done(SrbStatus.SUCCESS)


def _answers_twice(original: Any, slots: Any, raw: memoryview, count: int) -> Any:
    """An answer to a slot that was answered already counts, and changes nothing."""
    left, again, seen = bytearray(), 0, set()
    for at, (number, status) in enumerate(_responses(raw, count)):
        known = status == NULL or number >= IDS
        if not known and (number in seen or not slots.table.owner[number]):
            again += 1
            continue
        if not known:
            seen.add(number)
        left += raw[at * TX_RESPONSE : (at + 1) * TX_RESPONSE]
    answers = original(slots, memoryview(left), len(left) // TX_RESPONSE)
    answers.answered += again
    return answers


DEFECTS: Final[tuple[Defect, ...]] = (
    Defect(
        id="id-reuse",
        end="frontend",
        mutation="takes an id that is still in flight",
        hunt="scenario:ids_in_flight",
        changes=(
            (Preparer, "_id", instead(_same_id)),
            (SlotTable, "send", instead(_sends)),
            (SlotTable, "chain", instead(_chains)),
        ),
    ),
    Defect(
        id="id-unchecked",
        end="frontend",
        mutation="indexes its table with the response's id",
        hunt="scenario:disk_answers",
        changes=(
            (Ring, "_late", instead(_looks_up)),
            (SlotTable, "answer", instead(_answers_any)),
        ),
    ),
    Defect(
        id="id-completed-twice",
        end="frontend",
        mutation="accepts a second response for one id",
        hunt="scenario:disk_answers",
        changes=(
            (Ring, "_finish", instead(_finishes)),
            (Ring, "_late", instead(_finishes_again)),
            (SlotTable, "answer", instead(_answers_twice)),
        ),
    ),
)
