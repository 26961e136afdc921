"""The guest's memory manager, as a driver asks it for whole pages.

Windows' Mm: MmAllocatePagesForMdlEx and the LowMemoryCondition event. What the drivers of the
guest hold is gone from its pages; the rest is free, so a balloon takes from what they leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from xenpv.xen.domain import Domain

# LowMemoryCondition: 32 MiB for each 4 GiB of RAM, 64 MiB at most.
LOW_MEMORY_DIVISOR: Final = 128
LOW_MEMORY_PAGES_MAX: Final = 16_384


class Mm:
    """Free pages of `domain`.

    `ns_per_page` is how long, in virtual time, the manager needs to find one: 0 in an idle
    guest, much in one that has to write pages out first. `low_memory_pages`: with fewer free
    ones the event is set.
    """

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.ns_per_page = 0
        self.low_memory_pages = min(domain.pages.size // LOW_MEMORY_DIVISOR, LOW_MEMORY_PAGES_MAX)

    @property
    def free_pages(self) -> int:
        return self.domain.pages.free_pages

    @property
    def low_memory(self) -> bool:
        """Whether the event is set."""
        return self.free_pages < self.low_memory_pages

    def allocate(self, count: int) -> list[int]:
        """Up to `count` pages, their pfns ascending."""
        return self.domain.pages.take(count)

    def free(self, pfns: Sequence[int]) -> None:
        """`pfns` ascend, and have RAM again."""
        self.domain.pages.give(pfns)
