"""What is left of a domain's grants once its devices are closed."""

from __future__ import annotations

from typing import Final

from xenpv.abi._kernel import lib
from xenpv.platform import Platform
from xenpv.view.rings import peek
from xenpv.xen.domain import PAGE_SIZE, Domain

GTF_type_mask: Final[int] = lib.GTF_type_mask
RESERVED: Final = 8  # GNTTAB_NR_RESERVED_ENTRIES: the console's page and the store's, and others
ENTRY_V1: Final = 4  # in u16: flags, domid, frame
ENTRY_V2: Final = 8


def check_closed(platform: Platform, domain: Domain) -> list[str]:
    """All devices of `domain` are closed: it grants nothing, and nobody maps a page of it.

    For a moment at which nothing is runnable. What other drivers than those of devices grant
    counts too.
    """
    findings = []
    for mapper in platform.hypervisor.domains.values():
        refs = sorted(
            mapping.ref
            for mapping in mapper.gnttab.maptrack.values()
            if mapping.granter is domain and mapping.ref >= RESERVED
        )
        if refs:
            findings.append(
                f"d{mapper.domid} maps {len(refs)} pages of d{domain.domid} after the close: "
                f"references {refs[:8]}"
            )
    granted = _granted(platform, domain)
    if granted:
        findings.append(
            f"d{domain.domid} grants {len(granted)} pages after the close: references {granted[:8]}"
        )
    return findings


def _granted(platform: Platform, domain: Domain) -> list[int]:
    table = domain.gnttab
    step = ENTRY_V1 if table.version == 1 else ENTRY_V2
    found = []
    for index in range(table.nr_frames):
        frame = int(lib.grant_table_frame(domain.kernel, index))
        words = memoryview(peek(platform.hypervisor, frame, 0, PAGE_SIZE)).cast("H")[::step]
        first = index * len(words)
        found += [first + at for at, flags in enumerate(words.tolist()) if flags & GTF_type_mask]
    return [ref for ref in found if ref >= RESERVED]
