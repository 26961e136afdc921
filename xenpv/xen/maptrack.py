"""Maptrack: the handles of what a domain has mapped (xen/common/grant_table.c).

Every vcpu has a free list of its own. It takes from the head, freed handles join the tail
of the list of the vcpu that mapped, so that a stale one is noticed for as long as possible.
The last handle of a list is never given out: it is the tail that the next one joins.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain

HANDLES_PER_FRAME: Final = 256


@attrs.define(eq=False)
class Mapping:
    """One live maptrack entry.

    `flags` are the GNTMAP_ bits of the halves that are still mapped, and GNTMAP_readonly;
    `pfn` is where the host half lies in the mapper's physmap; `vcpu` owns the handle.
    """

    granter: Domain
    ref: int
    flags: int
    pfn: int
    vcpu: int


class Maptrack:
    """Up to `max_frames` frames of 256 handles; `entries` are the live ones by handle."""

    def __init__(self, max_frames: int, vcpus: int) -> None:
        self.max_frames = max_frames
        self.nr_frames = 0
        self.entries: dict[int, Mapping] = {}
        self._free: list[deque[int]] = [deque() for _ in range(vcpus)]
        self._owner: dict[int, int] = {}  # of handles out: whose list they join again

    @property
    def free_handles(self) -> int:
        """Handles that lie in the lists now, the spare ones included."""
        return sum(map(len, self._free))

    def take(self, vcpu: int) -> int | None:
        """A handle for a map by `vcpu`, None when there is none (GNTST_no_space)."""
        mine = self._free[vcpu]
        if len(mine) > 1:
            handle = mine.popleft()
        elif self.nr_frames < self.max_frames:
            handle = self.nr_frames * HANDLES_PER_FRAME
            self.nr_frames += 1
            mine.extendleft(range(handle + HANDLES_PER_FRAME - 1, handle, -1))
        else:
            return self._steal(vcpu)
        self._owner[handle] = vcpu
        return handle

    def _steal(self, vcpu: int) -> int | None:
        """From another vcpu's list; a vcpu without a spare handle first gets that."""
        mine = self._free[vcpu]
        if not mine:
            spare = self._taken_from_another(vcpu)
            if spare is None:
                return None
            mine.append(spare)
        handle = self._taken_from_another(vcpu)
        if handle is not None:
            self._owner[handle] = vcpu
        return handle

    def _taken_from_another(self, vcpu: int) -> int | None:
        # Xen starts at a random vcpu; the next one serves as well and is the same each time.
        for step in range(1, len(self._free)):
            other = self._free[(vcpu + step) % len(self._free)]
            if len(other) > 1:
                return other.popleft()
        return None

    def give_back(self, handle: int) -> None:
        """A handle that no half is mapped by any more, or whose map failed."""
        self._free[self._owner.pop(handle)].append(handle)
