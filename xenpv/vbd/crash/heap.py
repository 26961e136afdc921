"""The static heap: a driver that runs in a crash has no pool to ask (xencrsh austere.c).

It is part of the image, which was loaded long before. Whole pages only: what the original
carves into smaller pieces are texts, which Python keeps elsewhere.
"""

from __future__ import annotations

from typing import Final

from xenpv.vbd.crash.failure import CrashError
from xenpv.xen.domain import PAGE_SIZE, Domain

PAGES: Final = 23  # AUSTERE_HEAP_PAGES; one less where the section is not page-aligned
PAGES_UNALIGNED: Final = 22
PAGES_MAX: Final = 8  # of one allocation: AUSTERE_MAX_ALLOC_SIZE


class Heap:
    """`pages` adjacent pages of `domain` from `pfn` on."""

    def __init__(self, domain: Domain, pfn: int, pages: int = PAGES) -> None:
        self.domain = domain
        self.pfn = pfn
        self.pages = pages
        self._used: dict[int, int] = {}  # first page of a block: how many

    @property
    def free_pages(self) -> int:
        return self.pages - sum(self._used.values())

    def allocate(self, nr_pages: int) -> int:
        """First pfn of zeroed adjacent pages, the lowest that fit. CrashError: there are none,
        or they are more than eight.
        """
        if not 0 < nr_pages <= PAGES_MAX:
            raise CrashError(f"the heap gives 1 to {PAGES_MAX} pages at once, not {nr_pages}")
        first = 0
        for start in sorted(self._used):
            if start - first >= nr_pages:
                break
            first = start + self._used[start]
        if first + nr_pages > self.pages:
            raise CrashError(f"the heap of {self.pages} pages has no {nr_pages} left in one piece")
        self._used[first] = nr_pages
        pfn = self.pfn + first
        self.domain.write(pfn, 0, bytes(nr_pages * PAGE_SIZE))
        return pfn

    def free(self, pfn: int) -> None:
        """What `allocate` gave."""
        del self._used[pfn - self.pfn]
