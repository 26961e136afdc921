"""XenVbd's granter: references for data pages, and bounce pages (win-xenvbd granter.c).

A reference that cannot be taken back, because the backend still maps it, is quarantined
together with its page: neither is used again until the backend lets go (XSA-396).
"""

from __future__ import annotations

from typing import Final

from xenpv.bus.gnttab import GnttabInterface
from xenpv.xen.domain import PAGE_SIZE, Domain

BOUNCE_RESERVE: Final = 32  # pages kept when they come back; more are taken on demand
ZEROS: Final = bytes(PAGE_SIZE)


class Granter:
    """Grants of one target to its backend's domain."""

    def __init__(self, domain: Domain, gnttab: GnttabInterface) -> None:
        self.domain = domain
        self.gnttab = gnttab
        self.backend_domid = 0
        self.granted = 0  # references out now, quarantined ones too
        self.quarantine: list[tuple[int, int, bool]] = []  # ref, pfn, whether the page is ours
        self._reserve: list[int] = []

    def permit(self, pfn: int, readonly: bool) -> int:
        """A reference to one page; raises HypercallError(ENOSPC)."""
        ref = self.gnttab.permit_foreign_access(self.backend_domid, pfn, readonly=readonly)
        self.granted += 1
        return ref

    def permit_run(self, pfn: int, count: int, readonly: bool) -> list[int]:
        """References to adjacent pages, all or none; raises HypercallError(ENOSPC)."""
        if count == 1:
            return [self.permit(pfn, readonly)]
        refs = self.gnttab.permit_run(self.backend_domid, pfn, count, readonly=readonly)
        self.granted += count
        return refs

    def revoke(
        self, ref: int, pfn: int, owned: bool = False, retired: list[int] | None = None
    ) -> bool:
        """As `end`; a reference that cannot go is quarantined, and its page."""
        if self.end(ref, retired):
            return True
        self.quarantine.append((ref, pfn, owned))
        return False

    def end(self, ref: int, retired: list[int] | None = None) -> bool:
        """Take a reference back; False while the backend maps its page.

        `retired`: where it goes, without access, if the ring still names it.
        """
        if retired is not None:
            if self.gnttab.end_foreign_access(ref):
                retired.append(ref)
                return True
        elif self.gnttab.revoke_foreign_access(ref):
            self.granted -= 1
            return True
        return False

    def revoke_all(self, refs: list[int], pfns: list[int]) -> bool:
        """As `revoke`, for pages of others; False if any is quarantined."""
        if len(refs) == 1:
            return self.revoke(refs[0], pfns[0])
        held = self.gnttab.revoke_run(refs)
        self.granted -= len(refs) - len(held)
        if held:
            self.quarantine += [
                (ref, pfn, False) for ref, pfn in zip(refs, pfns, strict=True) if ref in held
            ]
        return not held

    def free(self, retired: list[int]) -> None:
        """The backend cannot come to these references any more: they may be given out again."""
        for ref in retired:
            self.gnttab.revoke_foreign_access(ref)
        self.granted -= len(retired)

    def page(self) -> int:
        """A page of our own; what it held stays in it. Raises HypercallError(ENOMEM)."""
        return self._reserve.pop() if self._reserve else self.domain.pages.alloc()

    def put_page(self, pfn: int) -> None:
        if len(self._reserve) < BOUNCE_RESERVE:
            self._reserve.append(pfn)
        else:
            self.domain.pages.free(pfn)

    def fill(self, pfn: int, data: bytes, offset: int = 0) -> None:
        """Zeros but for `data`: a page that another domain sees shows nothing else (XSA-403)."""
        if offset:
            data = ZEROS[:offset] + data
        self.domain.write(pfn, 0, data + ZEROS[len(data) :])

    def retry(self) -> None:
        """Once the backend closed: what it let go of becomes usable again."""
        held, self.quarantine = self.quarantine, []
        for ref, pfn, owned in held:
            if self.revoke(ref, pfn, owned) and owned:
                self.put_page(pfn)

    def holds(self, pfn: int, count: int) -> bool:
        """Whether one of these pages is quarantined."""
        return any(pfn <= held < pfn + count for _ref, held, _owned in self.quarantine)

    def adopt(self, pfn: int, count: int) -> None:
        """Pages whose owner goes: free those that are not quarantined, the others later."""
        held = [page for _ref, page, _owned in self.quarantine if pfn <= page < pfn + count]
        self.quarantine = [
            (ref, page, owned or page in held) for ref, page, owned in self.quarantine
        ]
        for page in range(pfn, pfn + count):
            if page not in held:
                self.domain.pages.free(page)

    def release(self) -> None:
        """Give the reserve back; what the backend holds is GNTTAB's to wait for."""
        for pfn in self._reserve:
            self.domain.pages.free(pfn)
        self._reserve.clear()
        self.gnttab.defer([(ref, pfn) for ref, pfn, owned in self.quarantine if owned])
        self.quarantine = [one for one in self.quarantine if not one[2]]
