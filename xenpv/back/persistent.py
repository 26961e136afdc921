"""Grants that blkback keeps mapped from one request to the next.

The red-black tree of drivers/block/xen-blkback: persistent_gnts of a ring. A frontend that
agreed to it (feature-persistent) bounces its data through pages whose grants it never ends.
"""

from __future__ import annotations

from typing import Final

import attrs

GRANTS_MAX: Final = 1056  # max_persistent_grants: 32 requests of 33 pages, for one ring
LRU_PERCENT_CLEAN: Final = 5
LRU_INTERVAL_NS: Final = 100_000_000
UNUSED_TIMEOUT_NS: Final = 60_000_000_000  # persistent_grant_unused_seconds


@attrs.define(eq=False)
class Page:
    """A granted page, mapped. `kept`: its mapping outlives the request; `active`: one uses it."""

    ref: int
    pfn: int
    handle: int
    kept: bool = False
    active: bool = False
    last_used: int = 0  # virtual nanoseconds


class PersistentGrants:
    """The kept pages of one ring by their references; mapping and unmapping is its owner's."""

    def __init__(self, most: int = GRANTS_MAX) -> None:
        self.most = most
        self._pages: dict[int, Page] = {}
        self._overflow = False

    def __len__(self) -> int:
        return len(self._pages)

    def __contains__(self, ref: int) -> bool:
        return ref in self._pages

    @property
    def in_use(self) -> int:
        return sum([page.active for page in self._pages.values()])

    def get(self, ref: int) -> Page | None:
        """The page of a reference, in use from now on. None: it is not kept, or another request
        uses it; then it has to be mapped once more.
        """
        page = self._pages.get(ref)
        if page is None or page.active:
            return None
        page.active = True
        return page

    def add(self, page: Page) -> bool:
        """Keep a page that was mapped for a request; False: it goes when that is done."""
        if len(self._pages) >= self.most:
            self._overflow = True
            return False
        if page.ref in self._pages:
            return False
        page.kept = page.active = True
        self._pages[page.ref] = page
        return True

    def put(self, page: Page, now: int) -> None:
        """Its request is done."""
        page.active = False
        page.last_used = now

    def purge(self, now: int) -> list[Page]:
        """What is to be unmapped at this tick: all that was not used for a minute, and 5 % in
        the order of their references where there was no room.
        """
        count = len(self._pages)
        wanted = 0
        if count >= self.most and self._overflow:
            wanted = min(count, count - self.most + self.most // 100 * LRU_PERCENT_CLEAN)
        idle = [self._pages[ref] for ref in sorted(self._pages) if not self._pages[ref].active]
        gone = [page for page in idle if now - page.last_used >= UNUSED_TIMEOUT_NS]
        recent = [page for page in idle if now - page.last_used < UNUSED_TIMEOUT_NS]
        gone += recent[: max(0, wanted - len(gone))]
        for page in gone:
            del self._pages[page.ref]
        if gone:
            self._overflow = False
        return gone

    def clear(self) -> list[Page]:
        """All of them: the ring goes."""
        pages = list(self._pages.values())
        self._pages.clear()
        return pages
