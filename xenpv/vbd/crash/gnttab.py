"""The grant references of the crash driver: 8 to 31, which XenBus leaves alone.

Frame 0 of the table is mapped once more, at a page of the image. Entries from 32 on are not
touched: what a backend still copies for the driver that died lands where it was to.
"""

from __future__ import annotations

from errno import EBUSY
from typing import Final

from xenpv.abi._kernel import lib
from xenpv.vbd.crash.failure import CrashError
from xenpv.xen.domain import Domain
from xenpv.xen.gnttab import GTF_permit_access, GTF_readonly

FIRST: Final = 8  # GNTTAB_NR_RESERVED_ENTRIES
LAST: Final = 31
COUNT: Final = LAST - FIRST + 1  # the ring, 22 segments of one SRB, and one


class References:
    """`free` are those that can be given out, the next at the end."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.free = list(range(LAST, FIRST - 1, -1))
        self.held: list[int] = []  # the backend had them mapped when they were taken back

    def attach(self, pfn: int) -> None:
        """XENMEM_add_to_physmap: frame 0 at `pfn`, gone from where it was. HypercallError."""
        if lib.grant_table_version(self.domain.kernel) != 1:
            raise CrashError("the grant table is of version 2")
        self.domain.add_to_physmap_grant(0, pfn)
        for ref in self.free:
            self.domain.check(lib.grant_entry_set(self.domain.kernel, ref, 0, 0, 0))

    def permit(self, domid: int, pfn: int, *, readonly: bool) -> int:
        """A reference by which `domid` may reach page `pfn`. CrashError: all are out."""
        if not self.free:
            raise CrashError(f"all {COUNT} grant references are out")
        ref = self.free[-1]
        flags = GTF_permit_access | GTF_readonly if readonly else GTF_permit_access
        self.domain.check(lib.grant_entry_set(self.domain.kernel, ref, domid, pfn, flags))
        return self.free.pop()

    def revoke(self, ref: int) -> bool:
        """Take one back. False: the peer has it mapped, and it is never given out again, nor
        may its page be (XSA-396).
        """
        done = lib.grant_entry_revoke(self.domain.kernel, ref)
        if done == -EBUSY:
            self.held.append(ref)
            return False
        self.domain.check(done)
        self.free.append(ref)
        return True
