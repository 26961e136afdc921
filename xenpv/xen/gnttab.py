"""Grant tables, version 1: what GNTTABOP_* does, seen from the domain that calls.

An entry's checks, its pins and the copies are the kernel's; maptrack handles, limits and
the fate of a dead granter are here (xen/common/grant_table.c).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

import attrs

from xenpv.abi._kernel import ffi, lib
from xenpv.abi.gnttab import GNTST
from xenpv.errors import GrantError

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain

GRANT_FRAMES_MAX: Final = 64
MAPTRACK_FRAMES_MAX: Final = 1024
HANDLES_PER_FRAME: Final = 256
ENTRIES_PER_FRAME: Final = 512
RESERVED_ENTRIES: Final = 8
GNTTAB_RESERVED_CONSOLE: Final[int] = lib.GNTTAB_RESERVED_CONSOLE
GNTTAB_RESERVED_XENSTORE: Final[int] = lib.GNTTAB_RESERVED_XENSTORE

GTF_permit_access: Final[int] = lib.GTF_permit_access
GTF_readonly: Final[int] = lib.GTF_readonly


@attrs.frozen
class Mapping:
    """One maptrack entry: where a foreign entry is mapped in the caller's physmap."""

    handle: int
    granter: Domain
    ref: int
    readonly: bool
    pfn: int


class GrantTable:
    """The grant table of `domain`, and what that domain has mapped of others.

    Raises GrantError with the GNTST_ status of the operation.
    """

    def __init__(self, domain: Domain, *, max_frames: int, max_maptrack_frames: int) -> None:
        self.domain = domain
        self.max_frames = max_frames
        self.max_handles = max_maptrack_frames * HANDLES_PER_FRAME - domain.max_vcpus
        self.maptrack: dict[int, Mapping] = {}
        self._fresh_handle = 0
        self._freed_handles: deque[int] = deque()
        domain.check(lib.grant_table_grow(domain.kernel, 1))

    @property
    def nr_frames(self) -> int:
        return int(lib.grant_table_frames(self.domain.kernel))

    def grow(self, nr_frames: int) -> None:
        """More frames, up to max_frames; raises HypercallError(EINVAL) beyond."""
        self.domain.check(lib.grant_table_grow(self.domain.kernel, nr_frames))

    def query_size(self) -> tuple[int, int]:
        """GNTTABOP_query_size: frames in use, and the maximum."""
        return self.nr_frames, self.max_frames

    def _granter(self, domid: int) -> Domain:
        granter = self.domain.find(domid)
        if granter is None:
            raise GrantError(GNTST.bad_domain, f"no domain {domid}")
        return granter

    def _handle(self) -> int:
        if self._fresh_handle < self.max_handles:
            self._fresh_handle += 1
            return self._fresh_handle - 1
        # Freed handles join the tail, so a stale one is noticed for as long as possible.
        if self._freed_handles:
            return self._freed_handles.popleft()
        raise GrantError(GNTST.no_device_space, "maptrack is full")

    def map(self, domid: int, ref: int, pfn: int, *, readonly: bool = False) -> int:
        """GNTTABOP_map_grant_ref of one entry of `domid` at `pfn`; its handle."""
        granter = self._granter(domid)
        handle = self._handle()
        kernel = self.domain.kernel
        status = lib.grant_map(kernel, granter.kernel, ref, readonly, pfn)
        if status:
            self._freed_handles.append(handle)
            self.domain.fail_unless_gntst(status)
            raise GrantError(status, f"ref {ref} of domain {domid}")
        self.maptrack[handle] = Mapping(
            handle=handle, granter=granter, ref=ref, readonly=readonly, pfn=pfn
        )
        return handle

    def unmap(self, handle: int, pfn: int) -> None:
        """GNTTABOP_unmap_grant_ref: `pfn` must be where the handle was mapped."""
        mapping = self.maptrack.get(handle)
        if mapping is None:
            raise GrantError(GNTST.bad_handle, f"handle {handle}")
        if mapping.pfn != pfn:
            raise GrantError(GNTST.general_error, f"handle {handle} is not mapped at {pfn:#x}")
        granter = mapping.granter
        status = lib.grant_unmap(
            self.domain.kernel, granter.kernel, mapping.ref, mapping.readonly, pfn
        )
        if status:
            self.domain.fail_unless_gntst(status)
            raise GrantError(status, f"handle {handle} at {pfn:#x}")
        del self.maptrack[handle]
        self._freed_handles.append(handle)
        granter.unpinned()

    def copy(self, operations: Any) -> int:
        """GNTTABOP_copy of a cffi `struct gnttab_copy[]`, statuses in place.

        Returns how many did not end in GNTST_okay.
        """
        failed = 0
        for index in range(len(operations)):
            operation = operations[index]
            sides = []
            for side, flag in ((operation.source, 1), (operation.dest, 2)):
                own = side.domid in (self.domain.DOMID_SELF, self.domain.domid)
                if not operation.flags & flag and side.domid != self.domain.DOMID_SELF:
                    operation.status = GNTST.permission_denied
                    break
                found = self.domain if own else self.domain.find(side.domid)
                if found is None:
                    operation.status = GNTST.bad_domain
                    break
                sides.append(found)
            if len(sides) == 2:
                one = ffi.addressof(operation)
                lib.grant_copy(self.domain.kernel, sides[0].kernel, sides[1].kernel, one, 1)
            elif not operation.len:
                operation.status = 0
            failed += operation.status != 0
        return failed

    def release_maps(self) -> None:
        """At the mapper's death: everything it mapped is unmapped."""
        for mapping in list(self.maptrack.values()):
            self.unmap(mapping.handle, mapping.pfn)

    def pinned(self) -> int:
        """Own entries that somebody has mapped now."""
        return int(lib.grant_pinned_refs(self.domain.kernel))
