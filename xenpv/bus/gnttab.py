"""XenBus' GNTTAB interface: references, and pages of other domains (win-xenbus gnttab.c).

Version 1 tables only, as the driver. References 0-31 are left alone: Xen reserves 8, the
driver the rest for its crash path.
"""

from __future__ import annotations

from errno import EBUSY, ENOSPC
from typing import Final

from xenpv.abi._kernel import lib
from xenpv.errors import HypercallError, LocalProtocolError
from xenpv.xen.domain import Domain
from xenpv.xen.gnttab import ENTRIES_PER_FRAME, GTF_permit_access, GTF_readonly

RESERVED_REFS: Final = 32


class GnttabInterface:
    """Grants of one guest; grows its table a frame at a time by XENMEM_add_to_physmap."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.frame_pfns: list[int] = []
        self._free: list[int] = []
        self._permitted = 0
        self._expand()

    def _expand(self) -> None:
        index = len(self.frame_pfns)
        if index >= self.domain.gnttab.max_frames:
            raise HypercallError(
                ENOSPC,
                f"all {index} grant frames are in use",
                operation="XENMEM_add_to_physmap",
                arguments={"space": "grant_table", "idx": index},
            )
        pfn = self.domain.holes.alloc()
        self.domain.add_to_physmap_grant(index, pfn)
        self.frame_pfns.append(pfn)
        first = max(index * ENTRIES_PER_FRAME, RESERVED_REFS)
        # Lowest first, so that a table in a dump reads from the top.
        self._free[:0] = range((index + 1) * ENTRIES_PER_FRAME - 1, first - 1, -1)

    def permit_foreign_access(self, domid: int, pfn: int, *, readonly: bool = False) -> int:
        """A reference by which `domid` may map or copy page `pfn`.

        Raises HypercallError ENOSPC when every reference is out, ERANGE for a pfn beyond the
        32 bits of a version 1 entry.
        """
        if not self._free:
            self._expand()
        ref = self._free.pop()
        flags = GTF_permit_access | GTF_readonly if readonly else GTF_permit_access
        done = lib.grant_entry_set(self.domain.kernel, ref, domid, pfn, flags)
        if done < 0:
            self._free.append(ref)
            self.domain.check(done)
        self._permitted += 1
        return ref

    def reserve(self, count: int) -> list[int]:
        """Up to `count` references that give no access yet: their owner writes the entries.

        They go back by `revoke_foreign_access`. HypercallError(ENOSPC) when there is not one.
        """
        refs: list[int] = []
        while len(refs) < count:
            if not self._free:
                try:
                    self._expand()
                except HypercallError:
                    if not refs:
                        raise
                    break
            free, want = self._free, count - len(refs)
            refs += free[: -want - 1 : -1]
            del free[-want:]
        self._permitted += len(refs)
        return refs

    def revoke_foreign_access(self, ref: int) -> bool:
        """Take a reference back; False while the peer still maps it.

        Then the reference stays the caller's, and so must the page (XSA-396). The driver tries
        100 times and takes the 101st failure for success: here a reference that is mapped is
        never given out again.
        """
        done = lib.grant_entry_revoke(self.domain.kernel, ref)
        if done < 0:
            if done == -EBUSY:
                return False
            self.domain.check(done)
        self._free.append(ref)
        self._permitted -= 1
        return True

    @property
    def permitted(self) -> int:
        """References out now: what a leak check counts."""
        return self._permitted

    def query_reference(self, ref: int) -> tuple[int, bool]:
        """pfn and read-only flag of an entry; how the store and console pages are found."""
        frame, offset = divmod(ref, ENTRIES_PER_FRAME)
        if frame >= len(self.frame_pfns):
            raise LocalProtocolError(f"reference {ref} is beyond the mapped grant frames")
        pfn = self.frame_pfns[frame]
        flags = self.domain.load32(pfn, offset * 8) & 0xFFFF
        return self.domain.load32(pfn, offset * 8 + 4), bool(flags & GTF_readonly)

    def map_foreign_page(self, domid: int, ref: int, *, readonly: bool = False) -> tuple[int, int]:
        """Map one page of another domain: its pfn here, and the handle. Raises GrantError."""
        pfn = self.domain.holes.alloc()
        try:
            handle = self.domain.gnttab.map(domid, ref, pfn, readonly=readonly)
        except Exception:
            self.domain.holes.free(pfn)
            raise
        return pfn, handle

    def unmap_foreign_page(self, pfn: int, handle: int) -> None:
        self.domain.gnttab.unmap(handle, pfn)
        self.domain.holes.free(pfn)
