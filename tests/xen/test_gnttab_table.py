"""Every grant operation in every situation of spec/xen-core §3: the status or errno, and that
a failed operation changed nothing: pins, flags, maptrack, references, frames.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.xen.grants import (
    ACCEPT,
    APPLICATION,
    COPY,
    DEVICE,
    HOLE,
    HOST,
    MAP,
    PERMIT,
    PTE,
    QUERY,
    READING,
    READONLY,
    RO,
    SELF,
    SWAP,
    TRANSFER,
    UNMAP,
    Scene,
)  # fmt: skip
from xenpv.abi._kernel import ffi, lib
from xenpv.errors import HypercallError
from xenpv.xen.hypervisor import Hypervisor

Step = Callable[[Scene], Any]
AT = HOLE << 12
MINE = (0x104, SELF, 0, False)  # a page of dom0
V1, V2, BOTH = (1,), (2,), (1, 2)


def nothing(_: Scene) -> None: ...


def ref(number: int, dom: int = 1, offset: int = 0) -> tuple[int, int, int, bool]:
    return number, dom, offset, True


def own(pfn: int, dom: int = SELF, offset: int = 0) -> tuple[int, int, int, bool]:
    return pfn, dom, offset, False


def mapped(number: int = 8, flags: int = HOST, pfn: int = HOLE) -> Step:
    """dom0 maps it first."""

    def arrange(s: Scene) -> None:
        assert s.map(number, flags, addr=pfn << 12) == 0

    return arrange


def in_order(*steps: Step) -> Step:
    def arrange(s: Scene) -> None:
        for step in steps:
            step(s)

    return arrange


def pinned_by_other(s: Scene) -> None:
    assert s.map(12, by=s.other) == 0
    s.entry(12)  # its granter now means dom0, too late


def balloon_out(s: Scene) -> None:
    assert s.guest.memory.decrease_reservation(s.guest.DOMID_SELF, [s.page]) == 1


def granted_page_is_a_mapping(s: Scene) -> None:
    """The guest grants a page that it only has by a grant of the third domain."""
    s.entry(20, domid=1, owner=s.other)
    assert s.map(20, dom=2, addr=0x200 << 12, by=s.guest) == 0
    s.entry(8, frame=0x200)


def reading_of_another_frame(s: Scene) -> None:
    s.entry(8, PERMIT | READING if s.version == 1 else PERMIT, frame=0x103)


def dead_granter(s: Scene) -> None:
    """Its entry 8 stays pinned by dom0."""
    mapped()(s)
    s.hypervisor.destroy_domain(s.guest)
    s.domains.remove(s.guest)


def status_frame_elsewhere(s: Scene) -> None:
    resource = s.dom0.memory.acquire_resource
    assert resource(s.guest.domid, 1, 1, nr_frames=1, gpfns=[HOLE + 0x80]) == 1


def reserved(flags: int, domid: int = 0, frame: int = 0x102) -> Step:
    return lambda s: s.entry(0, flags, domid, frame)


MAPS = [
    (BOTH, "neither half is asked for", nothing, lambda s: s.map(flags=0), -3),
    (BOTH, "only readonly is asked for", nothing, lambda s: s.map(flags=RO), -3),
    (BOTH, "neither half, before the domain", nothing, lambda s: s.map(flags=0, dom=99), -3),
    (BOTH, "device half for an HVM caller", nothing, lambda s: s.map(flags=DEVICE), -1),
    (BOTH, "both halves for an HVM caller", nothing, lambda s: s.map(flags=DEVICE | HOST), -1),
    (BOTH, "application map for an HVM caller", nothing, lambda s: s.map(flags=HOST | APPLICATION), -1),
    (BOTH, "page table entry for an HVM caller", nothing, lambda s: s.map(flags=HOST | PTE), -1),
    (BOTH, "device half, before the domain", nothing, lambda s: s.map(flags=DEVICE, dom=99), -1),
    (BOTH, "no such domain", nothing, lambda s: s.map(dom=99), -2),
    (BOTH, "SELF is no name here", nothing, lambda s: s.map(dom=SELF), -2),
    (BOTH, "DOMID_XEN", nothing, lambda s: s.map(dom=0x7FF2), -2),
    (BOTH, "a domid of all ones", nothing, lambda s: s.map(dom=0xFFFF), -2),
    (BOTH, "oneself by number, not granted", nothing, lambda s: s.map(ref=8, dom=0), -1),
    (BOTH, "maptrack is full", Scene.fill_maptrack, lambda s: s.map(addr=0x200 << 12), -13),
    (BOTH, "maptrack is full, no such domain", Scene.fill_maptrack, lambda s: s.map(dom=99), -2),
    (BOTH, "maptrack is full, before the reference", Scene.fill_maptrack, lambda s: s.map(99999), -13),
    (V1, "first reference beyond the table", nothing, lambda s: s.map(512), -3),
    (V1, "last reference of the table", nothing, lambda s: s.map(511), -1),
    (V2, "first reference beyond the table", nothing, lambda s: s.map(256), -3),
    (V2, "last reference of the table", nothing, lambda s: s.map(255), -1),
    (BOTH, "a reference of all ones", nothing, lambda s: s.map(0xFFFFFFFF), -3),
    (BOTH, "invalid entry", nothing, lambda s: s.map(10), -1),
    (BOTH, "entry that accepts a transfer", nothing, lambda s: s.map(11), -1),
    (BOTH, "entry for another domain", nothing, lambda s: s.map(12), -1),
    (BOTH, "sub-page entry", nothing, lambda s: s.map(13, HOST | RO), -1),
    (BOTH, "transitive entry", nothing, lambda s: s.map(15, HOST | RO), -1),
    (BOTH, "write of a readonly entry", nothing, lambda s: s.map(9), -1),
    (BOTH, "read of a readonly entry", nothing, lambda s: s.map(9, HOST | RO), 0),
    (BOTH, "write of a writable entry", nothing, lambda s: s.map(), 0),
    (BOTH, "pinned by another domain", pinned_by_other, lambda s: s.map(12), -1),
    (BOTH, "129th reader", lambda s: s.maps(128, 8, HOST | RO), lambda s: s.map(flags=HOST | RO, addr=0x200 << 12), -1),
    (BOTH, "129th writer", lambda s: s.maps(128), lambda s: s.map(addr=0x200 << 12), -1),
    (BOTH, "first writer beside 128 readers", lambda s: s.maps(128, 8, HOST | RO), lambda s: s.map(addr=0x200 << 12), 0),
    (BOTH, "first reader beside 128 writers", lambda s: s.maps(128), lambda s: s.map(flags=HOST | RO, addr=0x200 << 12), 0),
    (BOTH, "first writer of a pinned entry, readonly by now", in_order(mapped(8, HOST | RO), lambda s: s.entry(8, PERMIT | READONLY)), lambda s: s.map(addr=AT + 4096), -1),
    (BOTH, "first writer of a pinned entry, invalid by now", in_order(mapped(8, HOST | RO), lambda s: s.entry(8, 0)), lambda s: s.map(addr=AT + 4096), 0),
    (BOTH, "same right on a pinned entry, readonly by now", in_order(mapped(), lambda s: s.entry(8, READONLY)), lambda s: s.map(addr=AT + 4096), 0),
    (BOTH, "no frame there", nothing, lambda s: s.map(14), -9),
    (BOTH, "frame beyond any physmap", nothing, lambda s: s.map(18), -9),
    (V2, "frame of more than 32 bits", nothing, lambda s: s.map(16), -9),
    (BOTH, "frame is ballooned out", balloon_out, lambda s: s.map(), -9),
    (BOTH, "frame is itself a mapping", granted_page_is_a_mapping, lambda s: s.map(), -9),
    (BOTH, "cache attributes for an HVM caller", nothing, lambda s: s.map(19), -1),
    (BOTH, "guest's own flag bits", nothing, lambda s: s.map(flags=HOST | 1 << 16), -1),
    (BOTH, "place beyond any physmap", nothing, lambda s: s.map(addr=1 << 52), -1),
    (BOTH, "place of ordinary RAM", nothing, lambda s: s.map(addr=0x106 << 12), 0),
    (BOTH, "low bits of the place", nothing, lambda s: s.map(addr=AT + 0x123), 0),
    (BOTH, "one's own grant", lambda s: s.entry(8, domid=1), lambda s: s.map(dom=1, by=s.guest), 0),
]  # fmt: skip

UNMAPS = [
    (BOTH, "handle never given", nothing, lambda s: s.unmap(0, AT), -4),
    (BOTH, "handle of all ones", nothing, lambda s: s.unmap(0xFFFFFFFF, AT), -4),
    (BOTH, "handle beyond maptrack's frames", mapped(), lambda s: s.unmap(1024 * 256, AT), -4),
    (BOTH, "handle of a map that failed", lambda s: s.map(10), lambda s: s.unmap(0, AT), -4),
    (BOTH, "handle given back", in_order(mapped(), lambda s: s.unmap(0, AT)), lambda s: s.unmap(0, AT), -4),
    (BOTH, "another domain's handle", mapped(), lambda s: s.unmap(0, AT, by=s.other), -4),
    (BOTH, "nothing at the place", mapped(), lambda s: s.unmap(0, AT + 4096), -1),
    (BOTH, "RAM at the place", mapped(), lambda s: s.unmap(0, 0x106 << 12), -1),
    (BOTH, "place beyond any physmap", mapped(), lambda s: s.unmap(0, 1 << 52), -1),
    (BOTH, "another frame's mapping at the place", in_order(lambda s: s.entry(21, frame=0x103), mapped(21, pfn=HOLE + 1), mapped()), lambda s: s.unmap(1, AT + 4096), -1),
    (BOTH, "both addresses zero", mapped(), lambda s: s.unmap(0), 0),
    (BOTH, "device address of a half not mapped", mapped(), lambda s: s.unmap(0, 0, 0x1000), 0),
    (BOTH, "the place it was mapped at", mapped(), lambda s: s.unmap(0, AT), 0),
    (BOTH, "wrong device address beside the right place", mapped(), lambda s: s.unmap(0, AT, 0x1000), 0),
    (BOTH, "replace: handle first", nothing, lambda s: s.replace(0, AT, AT), -4),
    (BOTH, "replace: new address for an HVM caller", mapped(), lambda s: s.replace(0, AT, AT + 4096), -1),
    (BOTH, "replace: nothing at the place", mapped(), lambda s: s.replace(0, AT + 4096), -1),
    (BOTH, "replace: no new address", mapped(), lambda s: s.replace(0, AT), 0),
    (BOTH, "replace: no address at all", mapped(), lambda s: s.replace(0), 0),
]  # fmt: skip

TABLES = [
    (BOTH, "setup: two at once", nothing, lambda s: s.setup(1, count=2), "EINVAL"),
    (BOTH, "setup: none", nothing, lambda s: s.setup(1, count=0), "EINVAL"),
    (BOTH, "setup: no such domain", nothing, lambda s: s.setup(1, 99), -2),
    (BOTH, "setup: another's table", nothing, lambda s: s.setup(1, 0, by=s.guest), -8),
    (BOTH, "setup: another's, beyond its maximum", nothing, lambda s: s.setup(99, 0, by=s.guest), -8),
    (BOTH, "setup: above the maximum", nothing, lambda s: s.setup(5, by=s.guest), -1),
    (BOTH, "setup: list at no page", nothing, lambda s: s.setup(1, address=0x90000 << 12, by=s.guest), -5),
    (BOTH, "setup: fewer than there are", nothing, lambda s: s.setup(0, by=s.guest), 0),
    (BOTH, "setup: up to the maximum", nothing, lambda s: s.setup(4, by=s.guest), 0),
    (BOTH, "setup: a guest's by dom0", nothing, lambda s: s.setup(2, 1), 0),
    (BOTH, "query: two at once", nothing, lambda s: s.query(count=2), "EINVAL"),
    (BOTH, "query: none", nothing, lambda s: s.query(count=0), "EINVAL"),
    (BOTH, "query: no such domain", nothing, lambda s: s.query(99), -2),
    (BOTH, "query: another's", nothing, lambda s: s.query(2, by=s.guest), -8),
    (BOTH, "query: a guest's by dom0", nothing, lambda s: s.query(1), 0),
    (BOTH, "status frames: two at once", nothing, lambda s: s.status_frames(0, count=2), "EINVAL"),
    (BOTH, "status frames: no such domain", nothing, lambda s: s.status_frames(0, 99), -2),
    (BOTH, "status frames: another's", nothing, lambda s: s.status_frames(9, 2, by=s.guest), -8),
    (V1, "status frames: version 1 has none", nothing, lambda s: s.status_frames(1, by=s.guest), -1),
    (V1, "status frames: none asked of version 1", nothing, lambda s: s.status_frames(0, by=s.guest), 0),
    (V2, "status frames: more than there are", nothing, lambda s: s.status_frames(2, by=s.guest), -1),
    (V2, "status frames: list at no page", nothing, lambda s: s.status_frames(1, address=0x90000 << 12, by=s.guest), -5),
    (V2, "status frames: those there are", nothing, lambda s: s.status_frames(1, by=s.guest), 0),
    (BOTH, "get_version: no such domain", nothing, lambda s: s.get_version(99), "ESRCH"),
    (BOTH, "get_version: another's", nothing, lambda s: s.get_version(2, by=s.guest), "EPERM"),
    (BOTH, "get_version: a guest's by dom0", nothing, lambda s: s.get_version(1), 0),
    (BOTH, "set_version: 0", nothing, lambda s: s.set_version(0), "EINVAL"),
    (BOTH, "set_version: 3", nothing, lambda s: s.set_version(3), "EINVAL"),
    (BOTH, "set_version: all ones", nothing, lambda s: s.set_version(0xFFFFFFFF), "EINVAL"),
    (V1, "set_version: 2 where 1 is the most", lambda s: setattr(s.guest.gnttab, "max_version", 1), lambda s: s.set_version(2), "ENOSYS"),
    (V1, "set_version: 3 where 1 is the most", lambda s: setattr(s.guest.gnttab, "max_version", 1), lambda s: s.set_version(3), "EINVAL"),
    (V1, "set_version: the same, pinned", mapped(), lambda s: s.set_version(1), 0),
    (V2, "set_version: the same, pinned", mapped(), lambda s: s.set_version(2), 0),
    (V1, "set_version: a reference is pinned", mapped(), lambda s: s.set_version(2), "EBUSY"),
    (V2, "set_version: a reference is pinned", mapped(), lambda s: s.set_version(1), "EBUSY"),
    (V2, "set_version: pinned, before what 1 cannot say", in_order(mapped(), reserved(PERMIT, frame=1 << 32)), lambda s: s.set_version(1), "EBUSY"),
    (V1, "set_version: a reserved reference is pinned", in_order(reserved(PERMIT), mapped(0)), lambda s: s.set_version(2), 0),
    (V2, "set_version: a reserved reference is pinned", in_order(reserved(PERMIT), mapped(0)), lambda s: s.set_version(1), 0),
    (V2, "set_version: reserved frame beyond 32 bits", reserved(PERMIT, frame=1 << 32), lambda s: s.set_version(1), "ERANGE"),
    (V2, "set_version: reserved entry is transitive", lambda s: s.transitive(7, 2, 20), lambda s: s.set_version(1), "ERANGE"),
    (V2, "set_version: invalid reserved entry of any frame", reserved(0, frame=1 << 40), lambda s: s.set_version(1), 0),
    (V2, "set_version: a status frame is mapped elsewhere", status_frame_elsewhere, lambda s: s.set_version(1), "EBUSY"),
    (BOTH, "swap: first beyond the table", nothing, lambda s: s.swap(9999, 8), -3),
    (BOTH, "swap: second beyond the table", nothing, lambda s: s.swap(8, 9999), -3),
    (BOTH, "swap: one reference, beyond the table", nothing, lambda s: s.swap(9999, 9999), -3),
    (V2, "swap: a reference that only version 1 has", nothing, lambda s: s.swap(8, 256), -3),
    (BOTH, "swap: first is pinned", mapped(), lambda s: s.swap(8, 9), -12),
    (BOTH, "swap: second is pinned", mapped(), lambda s: s.swap(9, 8), -12),
    (BOTH, "swap: one reference, pinned", mapped(), lambda s: s.swap(8, 8), 0),
    (BOTH, "swap: two free ones", nothing, lambda s: s.swap(8, 9), 0),
    (BOTH, "transfer: RAM of an HVM caller", nothing, lambda s: s.transfer(0x104), -1),
    (BOTH, "transfer: empty gfn", nothing, lambda s: s.transfer(HOLE), -9),
    (BOTH, "transfer: gfn beyond any physmap", nothing, lambda s: s.transfer(1 << 40), -9),
    (BOTH, "transfer: the page, before the domain", nothing, lambda s: s.transfer(0x104, 99), -1),
    (BOTH, "transfer: a mapping", mapped(), lambda s: s.transfer(HOLE), -1),
]  # fmt: skip

COPIES = [
    (BOTH, "nothing to copy, all else wrong", nothing, lambda s: s.copy(ref(9999, 99, 5000), own(0x90000, 1, 5000), 0), 0),
    (BOTH, "from a grant", nothing, lambda s: s.copy(ref(8), MINE), 0),
    (BOTH, "to a grant", nothing, lambda s: s.copy(MINE, ref(8)), 0),
    (BOTH, "from a readonly grant", nothing, lambda s: s.copy(ref(9), MINE), 0),
    (BOTH, "within one's own page", nothing, lambda s: s.copy(MINE, own(0x104, offset=4)), 0),
    (BOTH, "source frame of another, by number", nothing, lambda s: s.copy(own(0x102, 1), MINE), -8),
    (BOTH, "source frame of oneself, by number", nothing, lambda s: s.copy(own(0x104, 0), MINE), -8),
    (BOTH, "dest frame of another, by number", nothing, lambda s: s.copy(MINE, own(0x102, 1)), -8),
    (BOTH, "source frame of no domain", nothing, lambda s: s.copy(own(0x102, 99), MINE), -8),
    (BOTH, "source domain first", nothing, lambda s: s.copy(ref(8, 99), own(0x102, 1)), -2),
    (BOTH, "dest domain before the source entry", nothing, lambda s: s.copy(ref(10), own(0x102, 1)), -8),
    (BOTH, "no source domain", nothing, lambda s: s.copy(ref(8, 99), MINE), -2),
    (BOTH, "no dest domain", nothing, lambda s: s.copy(MINE, ref(8, 99)), -2),
    (BOTH, "no dest domain, before the source entry", nothing, lambda s: s.copy(ref(9999), ref(8, 99)), -2),
    (BOTH, "reserved domid", nothing, lambda s: s.copy(ref(8, 0x7FF1), MINE), -2),
    (BOTH, "SELF with a reference", lambda s: s.entry(8, domid=1), lambda s: s.copy(ref(8, SELF), MINE, by=s.guest), 0),
    (BOTH, "source reference beyond the table", nothing, lambda s: s.copy(ref(9999), MINE), -3),
    (BOTH, "dest reference beyond the table", nothing, lambda s: s.copy(MINE, ref(9999)), -3),
    (BOTH, "source entry, before the dest's", nothing, lambda s: s.copy(ref(9999), ref(10)), -3),
    (BOTH, "invalid source entry", nothing, lambda s: s.copy(ref(10), MINE), -1),
    (BOTH, "entry that accepts a transfer", nothing, lambda s: s.copy(ref(11), MINE), -1),
    (BOTH, "source entry for another domain", nothing, lambda s: s.copy(ref(12), MINE), -1),
    (BOTH, "dest entry is readonly", nothing, lambda s: s.copy(MINE, ref(9)), -1),
    (BOTH, "source of no frame", nothing, lambda s: s.copy(ref(14), MINE), -9),
    (BOTH, "dest of no frame", nothing, lambda s: s.copy(MINE, ref(14)), -9),
    (V2, "source frame of more than 32 bits", nothing, lambda s: s.copy(ref(16), MINE), -9),
    (BOTH, "source frame is ballooned out", balloon_out, lambda s: s.copy(ref(8), MINE), -9),
    (BOTH, "own source page is not there", nothing, lambda s: s.copy(own(0x90000), ref(8)), -9),
    (BOTH, "own dest page is not there", nothing, lambda s: s.copy(ref(8), own(0x90000)), -9),
    (BOTH, "own source page beyond any physmap", nothing, lambda s: s.copy(own(1 << 60), ref(8)), -9),
    (BOTH, "own dest page is a readonly mapping", mapped(9, HOST | RO), lambda s: s.copy(MINE, own(HOLE)), -9),
    (BOTH, "own source page is a mapping", mapped(), lambda s: s.copy(own(HOLE), MINE), 0),
    (BOTH, "the page's last byte", nothing, lambda s: s.copy(ref(8, offset=4095), MINE, 1), 0),
    (BOTH, "one byte past the source page", nothing, lambda s: s.copy(ref(8, offset=4095), MINE, 2), -10),
    (BOTH, "one byte past the dest page", nothing, lambda s: s.copy(MINE, ref(8, offset=4089), 8), -10),
    (BOTH, "offset beyond the page", nothing, lambda s: s.copy(ref(8, offset=4096), MINE, 1), -10),
    (BOTH, "a whole page", nothing, lambda s: s.copy(ref(8), MINE, 4096), 0),
    (BOTH, "size of all ones", nothing, lambda s: s.copy(ref(8), MINE, 0xFFFF), -10),
    (BOTH, "bad source entry, before the size", nothing, lambda s: s.copy(ref(10), MINE, 0xFFFF), -1),
    (BOTH, "bad dest page, before the size", nothing, lambda s: s.copy(ref(8), own(0x90000), 0xFFFF), -9),
    (BOTH, "pinned by another domain", pinned_by_other, lambda s: s.copy(ref(12), MINE), -1),
    (BOTH, "beside 128 readers", lambda s: s.maps(128, 8, HOST | RO), lambda s: s.copy(ref(8), MINE), -1),
    (BOTH, "writes beside 128 readers", lambda s: s.maps(128, 8, HOST | RO), lambda s: s.copy(MINE, ref(8)), 0),
    (BOTH, "same right on a pinned entry, invalid by now", in_order(mapped(), lambda s: s.entry(8, 0)), lambda s: s.copy(ref(8), MINE), 0),
    (BOTH, "first writer of a pinned entry, readonly by now", in_order(mapped(8, HOST | RO), lambda s: s.entry(8, PERMIT | READONLY)), lambda s: s.copy(MINE, ref(8)), -1),
    (BOTH, "first writer of a pinned entry, of another frame by now", in_order(mapped(8, HOST | RO), reading_of_another_frame), lambda s: s.copy(MINE, ref(8)), -1),
    (BOTH, "first writer of a pinned entry, as it was", mapped(8, HOST | RO), lambda s: s.copy(MINE, ref(8)), 0),
    (BOTH, "dead granter, pinned", dead_granter, lambda s: s.copy(ref(8), MINE), -2),
    (BOTH, "dead granter, not pinned", dead_granter, lambda s: s.copy(ref(9), MINE), -9),
    (V1, "sub_page means nothing in version 1", nothing, lambda s: s.copy(ref(13), MINE), 0),
    (V1, "transitive entry in version 1", nothing, lambda s: s.copy(ref(15), MINE), -1),
    (V2, "sub-page, its window", nothing, lambda s: s.copy(ref(13, offset=100), MINE, 50), 0),
    (V2, "sub-page, a byte before", nothing, lambda s: s.copy(ref(13, offset=99), MINE, 2), -1),
    (V2, "sub-page, a byte past", nothing, lambda s: s.copy(ref(13, offset=100), MINE, 51), -1),
    (V2, "sub-page, offsets count from the page", nothing, lambda s: s.copy(ref(13, offset=0), MINE, 1), -1),
    (V2, "sub-page as dest, a byte past", nothing, lambda s: s.copy(MINE, ref(13, offset=149), 2), -1),
    (V2, "sub-page, past the page first", nothing, lambda s: s.copy(ref(13, offset=4095), MINE, 2), -10),
    (V2, "sub-page of no bytes", lambda s: s.sub_page(13, 0, 0), lambda s: s.copy(ref(13), MINE, 1), -1),
    (V2, "sub-page window past its page", lambda s: s.sub_page(13, 4000, 0xFFFF), lambda s: s.copy(ref(13, offset=4000), MINE, 97), -10),
    (V2, "readonly sub-page as dest", lambda s: s.sub_page(13, 0, 64, PERMIT | READONLY), lambda s: s.copy(MINE, ref(13)), -1),
    (V2, "transitive, as source", nothing, lambda s: s.copy(ref(15), MINE), 0),
    (V2, "transitive, as dest", nothing, lambda s: s.copy(MINE, ref(15)), 0),
    (V2, "transitive, readonly link", lambda s: s.transitive(15, 2, 20, READONLY), lambda s: s.copy(MINE, ref(15)), -1),
    (V2, "transitive, readonly behind", lambda s: s.behind(20, PERMIT | READONLY), lambda s: s.copy(MINE, ref(15)), -1),
    (V2, "transitive, readonly behind, as source", lambda s: s.behind(20, PERMIT | READONLY), lambda s: s.copy(ref(15), MINE), 0),
    (V2, "transitive, not switched on", lambda s: setattr(s.dom0.gnttab, "allow_transitive", False), lambda s: s.copy(ref(15), MINE), -1),
    (V2, "transitive to itself", lambda s: s.transitive(15, 1, 8), lambda s: s.copy(ref(15), MINE), -1),
    (V2, "transitive to no domain", lambda s: s.transitive(15, 99, 8), lambda s: s.copy(ref(15), MINE), -1),
    (V2, "transitive to a reserved domid", lambda s: s.transitive(15, SELF, 8), lambda s: s.copy(ref(15), MINE), -1),
    (V2, "transitive, reference behind beyond its table", lambda s: s.transitive(15, 2, 9999), lambda s: s.copy(ref(15), MINE), -3),
    (V2, "transitive, behind for dom0 and not for the one between", lambda s: s.behind(20, domid=0), lambda s: s.copy(ref(15), MINE), -1),
    (V2, "transitive, behind is invalid", lambda s: s.behind(20, 0), lambda s: s.copy(ref(15), MINE), -1),
    (V2, "transitive, no frame behind", lambda s: s.behind(20, frame=0x90000), lambda s: s.copy(ref(15), MINE), -9),
    (V2, "transitive, for another domain", lambda s: lib.grant_entry_set_transitive(s.guest.kernel, 15, 2, 2, 20, 0), lambda s: s.copy(ref(15), MINE), -1),
    (V2, "transitive back to the caller", lambda s: (s.transitive(15, 0, 30), s.entry(30, domid=1, frame=0x103, owner=s.dom0)), lambda s: s.copy(ref(15), MINE), 0),
    (V2, "transitive, past the page", nothing, lambda s: s.copy(ref(15, offset=4095), MINE, 2), -10),
]  # fmt: skip

ROWS = [
    pytest.param(version, arrange, act, expected, id=f"{what} {name} (v{version})")
    for what, rows in (("map", MAPS), ("unmap", UNMAPS), ("", TABLES), ("copy", COPIES))
    for versions, name, arrange, act, expected in rows
    for version in versions
]


@pytest.mark.parametrize(("version", "arrange", "act", "expected"), ROWS)
def test_operation(
    hypervisor: Hypervisor, version: int, arrange: Step, act: Step, expected: Any
) -> None:
    scene = Scene(hypervisor, version, max_maptrack_frames=1)
    arrange(scene)
    before = scene.snapshot()
    assert act(scene) == expected
    if expected:
        assert scene.snapshot() == before


def test_the_table_of_rows_is_long_enough() -> None:
    assert len(ROWS) >= 250


COMMANDS = [
    (MAP, "map_grant_ref"), (UNMAP, "unmap_grant_ref"), (COPY, "copy"), (TRANSFER, "transfer"),
    (SWAP, "swap_grant_ref"), (QUERY, "query_size"),
]  # fmt: skip


@pytest.mark.parametrize(("cmd", "struct"), COMMANDS)
def test_a_batch_of_two_to_the_31_is_refused_as_a_whole(
    hypervisor: Hypervisor, cmd: int, struct: str
) -> None:
    scene = Scene(hypervisor)
    ops = ffi.new(f"struct gnttab_{struct}[1]")
    before = scene.snapshot()
    assert scene.call(cmd, ops, 1 << 31) == "EINVAL"
    assert scene.call(cmd, ops, (1 << 32) - 1) == "EINVAL"
    assert scene.call(cmd, ops, 2) == ("EINVAL" if cmd == QUERY else "EFAULT")
    assert ops[0].status == 77
    assert scene.snapshot() == before


@pytest.mark.parametrize(
    ("cmd", "count", "errno"),
    [(3, 1, "ENOSYS"), (12, 1, "ENOSYS"), (13, 1, "ENOSYS"), (99, 1, "ENOSYS"), (3, 1 << 31, "EINVAL")],
)  # fmt: skip
def test_dump_table_cache_flush_and_what_is_no_operation(
    hypervisor: Hypervisor, cmd: int, count: int, errno: str
) -> None:
    scene = Scene(hypervisor)
    before = scene.snapshot()
    assert scene.call(cmd, ffi.new("struct gnttab_swap_grant_ref[1]"), count) == errno
    assert scene.snapshot() == before


def test_transfers_that_are_switched_off(hypervisor: Hypervisor) -> None:
    scene = Scene(hypervisor)
    scene.dom0.gnttab.allow_transfer = False
    before = scene.snapshot()
    assert scene.call(TRANSFER, ffi.new("struct gnttab_transfer[1]")) == "EOPNOTSUPP"
    with pytest.raises(HypercallError) as caught:
        scene.dom0.gnttab.transfer(0x100, 1, 11)
    assert (caught.value.name, caught.value.operation) == ("EOPNOTSUPP", "GNTTABOP_transfer")
    assert scene.snapshot() == before


@pytest.mark.parametrize("version", BOTH)
def test_a_map_over_a_mapping_crashes_the_mapper(hypervisor: Hypervisor, version: int) -> None:
    scene = Scene(hypervisor, version)
    mapped()(scene)
    before = scene.snapshot()
    assert scene.map(9, HOST | RO) == -1
    after = scene.snapshot()
    assert after["domain 0"].pop("shutdown") == 3
    assert before["domain 0"].pop("shutdown") is None
    assert after == before


# PV: what a translated caller never reaches


class PV(Scene):
    """dom0 and the guest are PV: dom0 may map for devices and give pages away."""

    def __init__(self, hypervisor: Hypervisor, version: int) -> None:
        super().__init__(hypervisor, version, flags=0)
        lib.grant_table_pv(self.guest.kernel, 1)
        self.mfn = lib.p2m_lookup(self.dom0.kernel, 0x108, 0)
        self.theirs = lib.p2m_lookup(self.guest.kernel, 0x108, 0)
        self.other_mfn = lib.p2m_lookup(self.other.kernel, 0x108, 0)


KEPT, LOST, GIVEN = "kept", "lost", "given"
TRANSFERS = [
    ("mfn of another domain", nothing, lambda s: s.transfer(s.theirs), -9, KEPT),
    ("mfn beyond the machine", nothing, lambda s: s.transfer(1 << 40), -9, KEPT),
    ("page that somebody maps", lambda s: (s.entry(30, domid=1, frame=0x108, owner=s.dom0), s.map(30, dom=0, by=s.guest)), lambda s: s.transfer(s.mfn), -9, KEPT),
    ("no such domain", nothing, lambda s: s.transfer(s.mfn, 99), -2, LOST),
    ("SELF is no name here", nothing, lambda s: s.transfer(s.mfn, SELF), -2, LOST),
    ("domain of no headroom", lambda s: lib.domain_limits(s.guest.kernel, 256, 4), lambda s: s.transfer(s.mfn), -1, LOST),
    ("reference beyond the table", nothing, lambda s: s.transfer(s.mfn, ref=9999), -1, LOST),
    ("entry permits access", nothing, lambda s: s.transfer(s.mfn, ref=8), -1, LOST),
    ("entry is invalid", nothing, lambda s: s.transfer(s.mfn, ref=10), -1, LOST),
    ("entry has another flag", lambda s: s.entry(11, ACCEPT | READONLY), lambda s: s.transfer(s.mfn), -1, LOST),
    ("entry is for another domain", lambda s: s.entry(11, ACCEPT, 2), lambda s: s.transfer(s.mfn), -1, LOST),
    ("dead domain", dead_granter, lambda s: s.transfer(s.mfn), -1, LOST),
    ("entry that accepts", lambda s: s.entry(11, ACCEPT, frame=0x300), lambda s: s.transfer(s.mfn), 0, GIVEN),
]  # fmt: skip


@pytest.mark.parametrize("version", BOTH)
@pytest.mark.parametrize(
    ("arrange", "act", "expected", "fate"),
    [row[1:] for row in TRANSFERS],
    ids=[row[0] for row in TRANSFERS],
)
def test_pv_transfer(
    hypervisor: Hypervisor, version: int, arrange: Step, act: Step, expected: int, fate: str
) -> None:
    scene = PV(hypervisor, version)
    arrange(scene)
    pages = lib.domain_tot_pages(scene.dom0.kernel)
    theirs = lib.domain_tot_pages(scene.guest.kernel)
    before = scene.snapshot()
    assert act(scene) == expected
    after = scene.snapshot()
    if fate == KEPT:
        assert after == before
        return
    assert lib.domain_tot_pages(scene.dom0.kernel) == pages - 1
    assert lib.domain_tot_pages(scene.guest.kernel) == theirs + (fate == GIVEN)
    assert after["free"] == before["free"] + (fate == LOST)
    if fate == GIVEN:
        assert scene.guest.read(0x300, 0, 4) == bytes([1] * 4)
        assert lib.grant_entry_flags(scene.guest.kernel, 11) == ACCEPT | 4 | 8
        size, wide = (8, 4) if version == 1 else (16, 8)
        scene.guest.add_to_physmap_grant(0, 0x310)
        raw = scene.guest.read(0x310, 11 * size, size)
        assert int.from_bytes(raw[-wide:], "little") == scene.mfn


@pytest.mark.parametrize("version", BOTH)
def test_device_half_and_host_half_go_one_by_one(hypervisor: Hypervisor, version: int) -> None:
    scene = PV(hypervisor, version)
    assert scene.map(flags=DEVICE | HOST) == 0
    assert scene.bus == lib.p2m_lookup(scene.guest.kernel, scene.page, 0) << 12
    assert lib.grant_pins(scene.guest.kernel, 8) == 1 << 16 | 1
    before = scene.snapshot()
    assert scene.unmap(0, AT, scene.bus + 4096) == -6
    assert scene.unmap(0, AT + 4096, scene.bus + 4096) == -6
    assert scene.snapshot() == before
    assert scene.unmap(0, 0, scene.bus) == 0
    assert lib.grant_pins(scene.guest.kernel, 8) == 1
    assert list(scene.dom0.gnttab.maptrack) == [0]
    assert scene.unmap(0, AT, scene.bus) == 0
    assert lib.grant_pins(scene.guest.kernel, 8) == 0
    assert scene.dom0.gnttab.maptrack == {}
    assert scene.unmap(0, AT) == -4


@pytest.mark.parametrize("version", BOTH)
def test_each_of_the_four_counters_stops_at_128(hypervisor: Hypervisor, version: int) -> None:
    scene = PV(hypervisor, version)
    for flags in (DEVICE, DEVICE | RO, HOST, HOST | RO):
        first = HOLE if flags == HOST else 0x200
        scene.maps(128, 8, flags, first)
    assert lib.grant_pins(scene.guest.kernel, 8) == 0x80808080
    before = scene.snapshot()
    for flags in (DEVICE, DEVICE | RO, HOST, HOST | RO, DEVICE | HOST):
        assert scene.map(8, flags, addr=0x400 << 12) == -1
    assert scene.snapshot() == before
    assert lib.grant_entry_status(scene.guest.kernel, 8) == 0x18
