"""Rings and stores of a tape at any moment, found by bisection.

Each reads what the tape has when it is asked, so a tape that goes on is read on.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.view.slots import Slot, SlotState

if TYPE_CHECKING:
    from xenpv.view.tape import Publication, Tape

CHECKPOINT: Final = 512  # changes from one kept state of a store to the next
U32: Final = 0xFFFF_FFFF


@attrs.frozen
class StoreNode:
    """A node of the store: its bytes, and its permissions as `b1`, `r0`."""

    value: bytes
    perms: tuple[str, ...]


class _Side:
    """What one end of a ring published, by indices that never wrap.

    `firsts[i]` and `ends[i]` are of the publication `published[i]`, `runs[i]` the place of the
    first of those from which indices go on without a jump.
    """

    def __init__(self) -> None:
        self.moments: list[int] = []
        self.firsts: list[int] = []
        self.ends: list[int] = []
        self.runs: list[int] = []
        self.published: list[Publication] = []

    def add(self, publication: Publication) -> None:
        """The next; one without slots says nothing."""
        if not publication.slots:
            return
        # An index that jumped goes on at the next number that is it modulo 2^32.
        end = self.ends[-1] if self.ends else 0
        first = end + (publication.first - end & U32)
        goes_on = bool(self.ends) and first == end
        self.runs.append(self.runs[-1] if goes_on else len(self.ends))
        self.moments.append(publication.moment)
        self.firsts.append(first)
        self.ends.append(first + len(publication.slots))
        self.published.append(publication)

    def before(self, moment: int) -> int:
        """How many publications there were."""
        return bisect_right(self.moments, moment)

    def last(self, slot: int, size: int, count: int) -> tuple[int, Publication] | None:
        """The last index of `slot` in the first `count` publications, and whose it is."""
        while count:
            end, run = self.ends[count - 1], self.runs[count - 1]
            index = end - 1 - (end - 1 - slot) % size
            if index >= self.firsts[run]:
                return index, self.published[bisect_right(self.firsts, index, run, count) - 1]
            count = run
        return None


class RingHistory:
    """One ring of a tape."""

    def __init__(self, tape: Tape, ring: int) -> None:
        self._tape = tape
        self._ring = ring
        self._size = tape.rings[ring].size
        self._sides = (_Side(), _Side())
        self._cons: tuple[list[int], list[tuple[int, int]]] = ([], [])
        self._read = [0, 0]  # publications and consumptions of the tape

    def _catch_up(self) -> None:
        tape, read = self._tape, self._read
        moments, values = [], []
        for publication in tape.publications[read[0] :]:
            if publication.ring == self._ring:
                self._sides[publication.is_response].add(publication)
                moments.append(publication.moment)
                values.append((publication.req_cons, publication.rsp_cons))
        for taken in tape.consumptions[read[1] :]:
            if taken.ring == self._ring:
                moments.append(taken.moment)
                values.append((taken.req_cons, taken.rsp_cons))
        read[:] = len(tape.publications), len(tape.consumptions)
        order = sorted(range(len(moments)), key=moments.__getitem__)
        self._cons[0].extend([moments[at] for at in order])
        self._cons[1].extend([values[at] for at in order])

    def at(self, moment: int) -> list[SlotState]:
        """Every slot, in order."""
        self._catch_up()
        counts = [side.before(moment) for side in self._sides]
        at = bisect_right(self._cons[0], moment)
        cons = self._cons[1][at - 1] if at else (-1, -1)
        return [self._slot(slot, counts, cons) for slot in range(self._size)]

    def _slot(self, slot: int, counts: list[int], cons: tuple[int, int]) -> SlotState:
        requests, responses = self._sides
        request = requests.last(slot, self._size, counts[0])
        response = responses.last(slot, self._size, counts[1])
        if response is not None and (request is None or response[0] >= request[0]):
            index, publication = response
            taken = _taken(index, cons[1], self._size)
            state = Slot.ANSWERED if taken is False else Slot.DONE
        elif request is not None:
            index, publication = request
            taken = _taken(index, cons[0], self._size)
            state = Slot.UNCONSUMED if taken is False else Slot.IN_FLIGHT
        else:
            return SlotState(slot, Slot.EMPTY)
        wrapped = index & U32
        data = publication.slots[wrapped - publication.first & U32]
        return SlotState(slot, state, wrapped, data, publication.moment)


def _taken(index: int, cons: int, size: int) -> bool | None:
    """Whether a consumer that stands at `cons` has taken entry `index`; None: nobody knows."""
    if cons < 0:
        return None
    return (index - cons & U32) >= size


class StoreHistory:
    """The store of one machine of a tape, with a state kept each CHECKPOINT changes."""

    def __init__(self, tape: Tape, machine: int) -> None:
        self._tape = tape
        self._machine = machine
        self._kept: list[dict[str, StoreNode]] = [{}]

    def at(self, moment: int) -> dict[str, StoreNode]:
        """Every node by path, in the order of paths."""
        changes = self._tape.changes
        count = bisect_right(changes, moment, key=lambda change: change.moment)
        kept = self._kept
        while count >= len(kept) * CHECKPOINT:
            start = (len(kept) - 1) * CHECKPOINT
            state = dict(kept[-1])
            self._apply(state, start, start + CHECKPOINT)
            kept.append(state)
        start = count // CHECKPOINT
        state = dict(kept[start])
        self._apply(state, start * CHECKPOINT, count)
        return dict(sorted(state.items()))

    def _apply(self, state: dict[str, StoreNode], first: int, end: int) -> None:
        for change in self._tape.changes[first:end]:
            if change.machine != self._machine:
                continue
            if change.value is None:
                state.pop(change.path, None)
            else:
                state[change.path] = StoreNode(change.value, change.perms)
