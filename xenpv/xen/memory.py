"""Page frame numbers that a domain's kernel may use: a bump pointer and freed runs."""

from __future__ import annotations

from collections.abc import Sequence
from errno import ENOMEM
from typing import Any, Final

from xenpv.errors import HypercallError, LocalProtocolError

# Where a domain's kernel finds room: RAM from 1 MiB, then Xen's special pages of an HVM
# guest (X86_HVM_END_SPECIAL_REGION 0xff000), then holes for what is mapped from elsewhere,
# then RAM again if there is more.
RAM_FIRST_PFN: Final = 0x100
SPECIAL_FIRST_PFN: Final = 0xFEFF8
SPECIAL_NR_PAGES: Final = 8
XENSTORE_PFN: Final = SPECIAL_FIRST_PFN + 4
CONSOLE_PFN: Final = SPECIAL_FIRST_PFN + 7
HOLE_FIRST_PFN: Final = 0x100000
HOLE_END_PFN: Final = 0x200000
PFN_END: Final = 1 << 28  # what the p2m can hold


class PagePool:
    """Runs of pfns of [start, end); lowest fresh run first, freed runs by their length.

    Deterministic: equal calls give equal pfns. `end` falls while a balloon has the highest.
    """

    __slots__ = ("_free", "_next", "end", "size", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.size = end - start  # whoever has them
        self._next = start
        self._free: dict[int, list[int]] = {}

    def save(self) -> dict[str, Any]:
        """As plain data, for `restored`."""
        free = [[count, list(runs)] for count, runs in self._free.items() if runs]
        names = ("start", "end", "size", "next")
        return {**dict(zip(names, self._words(), strict=True)), "free": free}

    def _words(self) -> tuple[int, int, int, int]:
        return self.start, self.end, self.size, self._next

    @classmethod
    def restored(cls, data: object, name: str) -> PagePool:
        """From what `save` gave. LocalProtocolError, with `name`, if it is no such thing."""
        wrong = f"{name}: expected start, end, size, next and free runs by their length"
        if not isinstance(data, dict) or set(data) != {"start", "end", "size", "next", "free"}:
            raise LocalProtocolError(wrong)
        words = [data["start"], data["next"], data["end"], data["size"]]
        if any(type(word) is not int for word in words) or not isinstance(data["free"], list):
            raise LocalProtocolError(wrong)
        start, first, end, size = words
        if not 0 <= start <= first <= end < PFN_END or not 0 <= size < PFN_END:
            raise LocalProtocolError(wrong)
        pool = cls(start, end)
        pool.size, pool._next = size, first
        for entry in data["free"]:
            count, runs = entry if isinstance(entry, list) and len(entry) == 2 else (0, None)
            if type(count) is not int or count < 1 or not isinstance(runs, list):
                raise LocalProtocolError(wrong)
            if any(type(pfn) is not int or not 0 <= pfn < PFN_END for pfn in runs):
                raise LocalProtocolError(wrong)
            pool._free[count] = runs.copy()
        return pool

    def add(self, pfn: int, count: int) -> None:
        """A run elsewhere; it is used when nothing else is left."""
        self.size += count
        self.free(pfn, count)

    @property
    def free_pages(self) -> int:
        """Pages that nobody has."""
        return self.end - self._next + sum(n * len(runs) for n, runs in self._free.items())

    def free_runs(self) -> list[range]:
        """The pfns that nobody has, as runs in no order."""
        runs = [range(pfn, pfn + n) for n, pfns in self._free.items() for pfn in pfns]
        return [*runs, range(self._next, self.end)]

    def alloc(self, count: int = 1) -> int:
        """First pfn of `count` adjacent ones; HypercallError(ENOMEM) when none are left."""
        freed = self._free.get(count)
        if freed:
            return freed.pop()
        if count > self.end - self._next:
            return self._alloc_merged(count)
        pfn = self._next
        self._next += count
        return pfn

    def _alloc_merged(self, count: int) -> int:
        """From the shortest run that is long enough once freed neighbours are one run again."""
        self._merge()
        if count <= self.end - self._next:
            pfn = self._next
            self._next += count
            return pfn
        length = min((n for n in self._free if n >= count), default=None)
        if length is None:
            raise HypercallError(ENOMEM, f"no run of {count} pages below pfn {self.end:#x}")
        pfn = self._pop(length)
        if length > count:
            self.free(pfn + count, length - count)
        return pfn

    def _pop(self, length: int) -> int:
        runs = self._free[length]
        pfn = runs.pop()
        if not runs:
            del self._free[length]
        return pfn

    def _merge(self) -> None:
        """Freed runs that touch become one, and fresh again where they touch what is fresh."""
        runs = sorted((pfn, n) for n, pfns in self._free.items() for pfn in pfns)
        self._free = {}
        first = length = 0
        for pfn, count in runs:
            if length and pfn == first + length:
                length += count
                continue
            self._keep(first, length)
            first, length = pfn, count
        self._keep(first, length)
        for runs_of_one_length in self._free.values():
            runs_of_one_length.reverse()  # the lowest is popped first

    def _keep(self, pfn: int, count: int) -> None:
        if not count:
            return
        if pfn + count == self._next:
            self._next = pfn
        elif pfn == self.end:
            self.end += count
        else:
            self._free.setdefault(count, []).append(pfn)

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
        while len(pages) < count:
            try:
                pages.append(self._alloc_merged(1))
            except HypercallError:
                if not pages:
                    raise
                break
        return pages

    def free(self, pfn: int, count: int = 1) -> None:
        self._free.setdefault(count, []).append(pfn)

    def take(self, count: int) -> list[int]:
        """Up to `count` pages for a balloon, ascending: the highest fresh ones, then freed ones.

        It leaves what is fresh in one piece, so that runs can still be had.
        """
        pages = self._take_fresh(count)
        if len(pages) < count and self._free:
            self._merge()
            pages += self._take_fresh(count - len(pages))
        while len(pages) < count and self._free:
            length = min(self._free)
            pfn = self._pop(length)
            part = min(length, count - len(pages))
            pages += range(pfn + length - part, pfn + length)
            if part < length:
                self.free(pfn, length - part)
        return sorted(pages)

    def _take_fresh(self, count: int) -> list[int]:
        fresh = min(count, self.end - self._next)
        self.end -= fresh
        return list(range(self.end, self.end + fresh))

    def give(self, pages: Sequence[int]) -> None:
        """Back from a balloon; `pages` ascend."""
        at = 0
        while at < len(pages):
            stop = at + 1
            while stop < len(pages) and pages[stop] == pages[stop - 1] + 1:
                stop += 1
            if pages[at] == self.end:
                self.end += stop - at
            else:
                self.free(pages[at], stop - at)
            at = stop
