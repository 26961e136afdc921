"""Pages of requests, mapped into the backend while those are under way (xen_blkbk_map)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from xenpv.abi._kernel import ffi
from xenpv.abi.gnttab import GNTMAP, GNTTABOP
from xenpv.back.persistent import LRU_INTERVAL_NS, Page, PersistentGrants
from xenpv.errors import HypercallError
from xenpv.xen.domain import Domain
from xenpv.xen.loop import Task, Timer

READONLY: Final = int(GNTMAP.host_map | GNTMAP.readonly)
WRITABLE: Final = int(GNTMAP.host_map)
NOT_DONE: Final = 1  # no GNTST: those are 0 and below

# a reference, and whether its page is only read
Wanted = tuple[int, bool]


class BlkPages:
    """Maps references of `granter_domid`, `batch` in one hypercall (0: all at once).

    `held` pages are mapped for requests now; the kept ones are those of `persistent`.
    """

    def __init__(
        self,
        domain: Domain,
        granter_domid: int,
        name: str,
        *,
        batch: int,
        persistent: PersistentGrants | None,
    ) -> None:
        self._domain = domain
        self._granter_domid = granter_domid
        self._name = name
        self._batch = batch
        self.persistent = persistent
        self._lru: Task | None = None
        self._tick: Timer | None = None
        self.held = 0

    def map(self, wanted: Sequence[Wanted]) -> list[Page | None]:
        """A page for each, None where that failed; what is there is the caller's to `unmap`."""
        pages: list[Page | None] = []
        size = self._batch or len(wanted)
        try:
            for start in range(0, len(wanted), size):
                pages += self._map_some(wanted[start : start + size])
        except BaseException:
            self.unmap([page for page in pages if page is not None])
            raise
        return pages

    def _map_some(self, wanted: Sequence[Wanted]) -> list[Page | None]:
        kept = self.persistent
        if kept is None:
            pages = self._map_batch(wanted)
        else:
            pages = self._map_kept(kept, [ref for ref, _ in wanted])
        self.held += sum([page is not None for page in pages])
        return pages

    def _map_kept(self, kept: PersistentGrants, refs: Sequence[int]) -> list[Page | None]:
        pages = [kept.get(ref) for ref in refs]
        missing = [at for at, page in enumerate(pages) if page is None]
        try:
            # Writable whatever it is for: the next request may want it for another end.
            mapped = self._map_batch([(refs[at], False) for at in missing])
        except BaseException:
            for page in pages:
                if page is not None:
                    kept.put(page, self._domain.loop.now)
            raise
        for at, page in zip(missing, mapped, strict=True):
            pages[at] = page
            if page is not None:
                kept.add(page)
        self._watch_lru()
        return pages

    def _map_batch(self, wanted: Sequence[Wanted]) -> list[Page | None]:
        """One GNTTABOP_map_grant_ref."""
        domain = self._domain
        if not wanted:
            return []
        refs = [ref for ref, _ in wanted]
        pfns: list[int] = []
        ops = ffi.new("struct gnttab_map_grant_ref[]", len(wanted))
        try:
            for op in ops:
                op.status = NOT_DONE
            for op, (ref, readonly) in zip(ops, wanted, strict=True):
                pfns.append(domain.holes.alloc())
                op.host_addr = pfns[-1] << 12
                op.flags = READONLY if readonly else WRITABLE
                op.ref = ref
                op.dom = self._granter_domid
            domain.gnttab.hypercall(GNTTABOP.map_grant_ref, ops)
        except BaseException as error:
            self._give_back([page for page in self._results(refs, pfns, ops) if page is not None])
            if isinstance(error, HypercallError):  # no place for so many
                return [None] * len(wanted)
            raise
        return self._results(refs, pfns, ops)

    def _results(self, refs: Sequence[int], pfns: Sequence[int], ops: Any) -> list[Page | None]:
        """What was mapped; the places of what was not are free again."""
        pages: list[Page | None] = []
        for op, ref, pfn in zip(ops, refs, pfns, strict=False):
            if op.status:
                self._domain.holes.free(pfn)
                pages.append(None)
            else:
                pages.append(Page(ref, pfn, op.handle))
        return pages

    def unmap(self, pages: Sequence[Page]) -> None:
        """Their request is done with them: kept ones stay."""
        self.held -= len(pages)
        for page in pages:
            if page.kept:
                assert self.persistent is not None
                self.persistent.put(page, self._domain.loop.now)
        self._give_back([page for page in pages if not page.kept])

    def _give_back(self, pages: Sequence[Page]) -> None:
        """One GNTTABOP_unmap_grant_ref."""
        if not pages:
            return
        ops = ffi.new("struct gnttab_unmap_grant_ref[]", len(pages))
        for op, page in zip(ops, pages, strict=True):
            op.host_addr = page.pfn << 12
            op.handle = page.handle
        self._domain.gnttab.hypercall(GNTTABOP.unmap_grant_ref, ops)
        for op, page in zip(ops, pages, strict=True):
            assert op.status == 0, f"unmapping reference {page.ref}: {op.status}"
            self._domain.holes.free(page.pfn)

    def _watch_lru(self) -> None:
        if self._tick is None:
            self._lru = self._domain.task(f"{self._name}-lru", self._purge)
            self._tick = self._domain.timer(self._lru, LRU_INTERVAL_NS)
        if not self._tick.armed and self.persistent:
            self._tick.arm(LRU_INTERVAL_NS)

    def _purge(self) -> None:
        """purge_persistent_gnt, every 100 ms while something is kept."""
        kept = self.persistent
        assert kept is not None
        self._give_back(kept.purge(self._domain.loop.now))
        if not kept and self._tick is not None:
            self._tick.cancel()

    def release(self) -> None:
        """The ring goes, and no request has a page: so does what is kept."""
        if self.persistent is not None:
            self._give_back(self.persistent.clear())
        if self._lru is not None:
            self._domain.forget(self._lru)
            self._lru = self._tick = None
