"""Places in a guest's physmap without a page of its own: where frames of others go.

win-xenbus fdo.c FdoAllocateHole. With UseMemoryHole (Services\\XENBUS\\Parameters, 1 unless
said otherwise) a hole is RAM whose page went back to Xen, so each one lowers the reservation
by a page; with 0 it is carved from the BAR of the platform device.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import ENOMEM

from xenpv.errors import HypercallError, LocalProtocolError
from xenpv.xen.domain import Domain


def _fail(reason: str) -> None:
    raise LocalProtocolError(reason)


class Holes:
    """Holes of `domain`. `bugcheck` is what happens if RAM does not come back."""

    def __init__(
        self, domain: Domain, *, ram: bool = True, bugcheck: Callable[[str], None] = _fail
    ) -> None:
        self.domain = domain
        self.ram = ram
        self.bugcheck = bugcheck
        self.pages = 0  # in holes of RAM: what the reservation is lower by

    def alloc(self, count: int = 1) -> int:
        """First pfn of `count` adjacent places. HypercallError(ENOMEM) if there is no room."""
        domain = self.domain
        if not self.ram:
            return domain.holes.alloc(count)
        pfn = domain.pages.alloc(count)
        pfns = list(range(pfn, pfn + count))
        done = domain.memory.decrease_reservation(domain.DOMID_SELF, pfns)
        if done < count:
            # Something is there that is not RAM: what went comes back.
            back = domain.memory.populate_physmap(domain.DOMID_SELF, pfns[:done])
            if back == done:
                domain.pages.free(pfn, count)
            raise HypercallError(
                ENOMEM,
                f"{done} of {count} pages went",
                operation="XENMEM_decrease_reservation",
                arguments={"gpfn": pfn},
            )
        self.pages += count
        return pfn

    def free(self, pfn: int, count: int = 1) -> None:
        """Nothing is mapped there any more."""
        domain = self.domain
        if not self.ram:
            domain.holes.free(pfn, count)
            return
        pfns = list(range(pfn, pfn + count))
        done = domain.memory.populate_physmap(domain.DOMID_SELF, pfns)
        self.pages -= done
        if done < count:
            self.bugcheck(f"{done} of {count} pages at {pfn:#x} came back from a hole")
            return
        domain.pages.free(pfn, count)
