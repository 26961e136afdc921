"""What pages that a frontend has posted show of what was in them before (XSA-403)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from xenpv.abi._kernel import lib
from xenpv.abi.xenbus import XenbusState
from xenpv.platform import Platform
from xenpv.view.rings import REQ_PROD, RSP_PROD, KnownRing, peek, rings, u32
from xenpv.xen.domain import PAGE_SIZE, Domain
from xenpv.xen.gnttab import ENTRIES_PER_FRAME

ENTRY_SIZE: Final = 8  # version 1: flags, domid, frame
GREF: Final = slice(4, 8)  # of a netif_rx_request
ZEROS: Final = bytes(PAGE_SIZE)


def check_posted(platform: Platform, *, hostile: Collection[int] = ()) -> list[str]:
    """A page that waits for a packet is zero: its backend reads nothing of an earlier one.

    Of rings of netif_rx whose ends are both drivers, and of tables of version 1, while every
    interface of the domain is Connected: the ring of another is what nobody goes by.
    """
    findings: list[str] = []
    asleep = [
        device.frontend_domid
        for device in platform.backends.devices.values()
        if device.kind == "vif" and (device.broken or device.state is not XenbusState.CONNECTED)
    ]
    for ring in rings(platform.hypervisor):
        front, back = ring.front, ring.back
        if ring.kind.name != "netif_rx" or front is None or back is None:
            continue
        if ring.domid in asleep:
            continue
        if front.by_hand or back.by_hand or front.domain.gnttab.version != 1:
            continue
        if not {front.domain.domid, back.domain.domid} & set(hostile):
            findings += _posted(platform, ring, front.domain)
    return findings


def _posted(platform: Platform, ring: KnownRing, front: Domain) -> list[str]:
    first, end = ring.word(RSP_PROD), ring.word(REQ_PROD)
    if u32(end - first) > ring.size:
        return []
    for index in range(u32(end - first)):
        ref = int.from_bytes(ring.slot(u32(first + index))[GREF], "little")
        frame = _frame(platform, front, ref)
        if frame is None:
            continue
        page = peek(platform.hypervisor, frame, 0, PAGE_SIZE)
        if page != ZEROS:
            at = next(at for at, byte in enumerate(page) if byte)
            what = f"the page of reference {ref}, which waits for a packet,"
            return [f"{ring.name}: {what} shows {page[at]:#04x} at byte {at}"]
    return []


def _frame(platform: Platform, front: Domain, ref: int) -> int | None:
    """The machine frame that an entry grants; None where it grants none."""
    table, entry = divmod(ref, ENTRIES_PER_FRAME)
    if table >= front.gnttab.nr_frames:
        return None
    frame = int(lib.grant_table_frame(front.kernel, table))
    raw = peek(platform.hypervisor, frame, entry * ENTRY_SIZE, ENTRY_SIZE)
    if not raw[0] & lib.GTF_type_mask:
        return None
    granted = int(lib.p2m_lookup(front.kernel, int.from_bytes(raw[4:], "little"), 0))
    return granted if granted >= 0 else None
