"""Page frame numbers that a domain's kernel may use: a bump pointer and freed runs."""

from __future__ import annotations

from errno import ENOMEM
from typing import Final

from xenpv.errors import HypercallError

# Where a domain's kernel finds room: RAM from 1 MiB, then Xen's special pages of an HVM
# guest (X86_HVM_END_SPECIAL_REGION 0xff000), then holes for what is mapped from elsewhere.
RAM_FIRST_PFN: Final = 0x100
SPECIAL_FIRST_PFN: Final = 0xFEFF8
SPECIAL_NR_PAGES: Final = 8
XENSTORE_PFN: Final = SPECIAL_FIRST_PFN + 4
CONSOLE_PFN: Final = SPECIAL_FIRST_PFN + 7
HOLE_FIRST_PFN: Final = 0x100000
HOLE_END_PFN: Final = 0x200000


class PagePool:
    """Runs of pfns of [start, end); lowest fresh run first, freed runs by their length.

    Deterministic: equal calls give equal pfns.
    """

    __slots__ = ("_free", "_next", "end", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self._next = start
        self._free: dict[int, list[int]] = {}

    def alloc(self, count: int = 1) -> int:
        """First pfn of `count` adjacent ones; HypercallError(ENOMEM) when none are left."""
        freed = self._free.get(count)
        if freed:
            return freed.pop()
        if count > self.end - self._next:
            raise HypercallError(ENOMEM, f"no run of {count} pages below pfn {self.end:#x}")
        pfn = self._next
        self._next += count
        return pfn

    def alloc_pages(self, count: int) -> list[int]:
        """Up to `count` single pages, as that many calls of `alloc` would give them.

        HypercallError(ENOMEM) when there is not one.
        """
        freed = self._free.get(1, [])
        pages = freed[: -count - 1 : -1]
        del freed[-count:]
        fresh = min(count - len(pages), self.end - self._next)
        pages += range(self._next, self._next + fresh)
        self._next += fresh
        return pages or [self.alloc()]

    def free(self, pfn: int, count: int = 1) -> None:
        self._free.setdefault(count, []).append(pfn)
