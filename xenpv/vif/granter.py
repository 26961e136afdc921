"""Pages that the backend may reach, one use at a time (win-xenvif granter.c).

A page and its grant reference stay together while the queue lives; access is given when a
request names them and taken back with its response, so a backend that comes late finds
nothing. What cannot be taken back is quarantined: neither page nor reference is used again
(XSA-396).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from xenpv.abi._kernel import lib
from xenpv.bus.gnttab import GnttabInterface

PAGE_SIZE: Final = 4096
_ZERO_PAGE: Final = bytes(PAGE_SIZE)


class Granter:
    """Pages numbered from `first` up, for domain `domid`; read-only to it if so said.

    `pfns` and `refs` are indexed by that number. A page is clean when it is added, so the
    backend sees nothing that was not meant for it (XSA-403).
    """

    def __init__(
        self, gnttab: GnttabInterface, domid: int, *, readonly: bool, first: int = 0
    ) -> None:
        self._gnttab = gnttab
        self._domid = domid
        self._readonly = readonly
        self._first = first
        self._flags: int = lib.GTF_permit_access | (lib.GTF_readonly if readonly else 0)
        self.pfns = [-1] * first
        self.refs = [-1] * first
        self.quarantined: list[tuple[int, int]] = []  # ref, pfn

    @property
    def held(self) -> int:
        """References that it has, whether they give access now or not."""
        return len(self.refs) - self._first

    def add(self, count: int) -> range:
        """Get up to `count` more pages, access not given yet; their numbers.

        Fewer when memory or references run out; HypercallError when not one is left.
        """
        start = len(self.pfns)
        if count <= 0:
            return range(start, start)
        domain = self._gnttab.domain
        pfns = domain.pages.alloc_pages(count)
        refs: list[int] = []
        try:
            refs = self._gnttab.reserve(len(pfns))
        finally:
            while len(pfns) > len(refs):
                domain.pages.free(pfns.pop())
        # Xen scrubbed what nobody has touched since; such a page has no frame yet.
        kernel, got = domain.kernel, len(pfns)
        at = domain.check(lib.p2m_next_touched(kernel, pfns, 0, got))
        while at < got:
            domain.write(pfns[at], 0, _ZERO_PAGE)
            at = domain.check(lib.p2m_next_touched(kernel, pfns, at + 1, got))
        self.pfns += pfns
        self.refs += refs
        return range(start, len(self.pfns))

    def permit(self, numbers: Sequence[int]) -> None:
        """Give access to these pages."""
        domain = self._gnttab.domain
        refs = [self.refs[number] for number in numbers]
        pfns = [self.pfns[number] for number in numbers]
        domain.check(
            lib.grant_entries_set(domain.kernel, refs, pfns, len(refs), self._domid, self._flags)
        )

    def revoke(self, numbers: Sequence[int]) -> list[int]:
        """Take access back; the numbers of those that the backend holds on to."""
        domain = self._gnttab.domain
        refs = [self.refs[number] for number in numbers]
        done = domain.check(lib.grant_entries_revoke(domain.kernel, refs, len(refs)))
        busy = []
        while done < len(refs):
            busy.append(numbers[done])
            rest = refs[done + 1 :]
            done += 1 + domain.check(lib.grant_entries_revoke(domain.kernel, rest, len(rest)))
        return busy

    def release(self) -> None:
        """Give every page and reference back, but for those still in use."""
        gnttab = self._gnttab
        for pfn, ref in zip(self.pfns[self._first :], self.refs[self._first :], strict=True):
            if gnttab.revoke_foreign_access(ref):
                gnttab.domain.pages.free(pfn)
            else:
                self.quarantined.append((ref, pfn))
        del self.pfns[self._first :]
        del self.refs[self._first :]
