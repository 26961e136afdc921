"""Pages: what is granted or mapped is somebody's."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from xenpv.abi._kernel import lib
from xenpv.abi.gnttab import GNTMAP
from xenpv.view.rings import peek
from xenpv.xen.domain import PAGE_SIZE, Domain
from xenpv.xen.memory import PagePool

if TYPE_CHECKING:
    from xenpv.platform import Platform

GTF_type_mask: Final[int] = lib.GTF_type_mask
GTF_permit_access: Final[int] = lib.GTF_permit_access
ENTRY_V1: Final = 8  # bytes
TYPES: Final = bytes(value & GTF_type_mask for value in range(256))
ACCESS: Final = re.compile(re.escape(bytes([GTF_permit_access])))


class FreePages:
    """The pfns of a pool that nobody has, to be asked about many."""

    def __init__(self, pool: PagePool) -> None:
        self._runs = sorted((run.start, run.stop) for run in pool.free_runs() if run)
        self._starts = [start for start, _ in self._runs]

    def has(self, pfn: int) -> bool:
        at = bisect_right(self._starts, pfn) - 1
        return at >= 0 and pfn < self._runs[at][1]


def check_pages(platform: Platform, *, hostile: Collection[int] = ()) -> list[str]:
    """No guest grants a page that it has given back to its allocator, and no domain has given
    back the place at which it has a page of another's mapped: who gets it next would share it.
    Dom0 grants nothing itself; what tests grant there is theirs.
    """
    findings = []
    for domain in platform.hypervisor.domains.values():
        if domain.dead or domain.dying or domain.domid in hostile:
            continue
        free = FreePages(domain.pages)
        findings += [
            f"d{domain.domid} ref {ref}: grants page {pfn:#x}, which is free"
            for ref, pfn in (_granted(platform, domain) if domain.domid else ())
            if free.has(pfn)
        ]
        holes = FreePages(domain.holes) if domain.gnttab.maptrack else None
        for mapping in domain.gnttab.maptrack.values() if holes is not None else ():
            if mapping.flags & GNTMAP.host_map and holes is not None and holes.has(mapping.pfn):
                what = f"ref {mapping.ref} of d{mapping.granter.domid}"
                findings.append(
                    f"d{domain.domid}: {what} is mapped at {mapping.pfn:#x}, a free pfn"
                )
    return findings


def _granted(platform: Platform, domain: Domain) -> list[tuple[int, int]]:
    """(reference, pfn) of each entry of version 1 that gives access."""
    table = domain.gnttab
    if table.version != 1:
        return []
    found = []
    for index in range(table.nr_frames):
        frame = int(lib.grant_table_frame(domain.kernel, index))
        page = peek(platform.hypervisor, frame, 0, PAGE_SIZE)
        if page.count(0) == PAGE_SIZE:
            continue
        kinds = page[::ENTRY_V1].translate(TYPES)  # of the low bytes of the flags
        pfns = memoryview(page).cast("I")[1::2]
        first = index * len(kinds)
        found += [(first + (at := one.start()), pfns[at]) for one in ACCESS.finditer(kinds)]
    return found
