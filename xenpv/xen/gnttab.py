"""The grant table of a domain, and what that domain has mapped of others.

An entry's checks, its pins and the copies are the kernel's (abi/kernel/grant_*.c), handles
are those of `maptrack`. Batches of the ABI's structures go through `hypercall`; the methods
beside it do one operation each and raise what its status stands for.
"""

from __future__ import annotations

from errno import (
    EAGAIN,
    EBUSY,
    EFAULT,
    EINVAL,
    ENOENT,
    ENOMEM,
    ENOSYS,
    EOPNOTSUPP,
    EPERM,
    ERANGE,
    ESRCH,
)  # fmt: skip
from typing import TYPE_CHECKING, Any, Final

import attrs

from xenpv.abi._kernel import ffi, lib
from xenpv.abi.gnttab import GNTMAP, GNTST, GNTTABOP
from xenpv.errors import GrantError, HypercallError
from xenpv.xen import gnttab_op
from xenpv.xen.maptrack import HANDLES_PER_FRAME, Mapping, Maptrack

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain

__all__ = ["HANDLES_PER_FRAME", "CopySide", "GrantTable", "Mapping"]

GRANT_FRAMES_MAX: Final = 64
MAPTRACK_FRAMES_MAX: Final = 1024
ENTRIES_PER_FRAME: Final = 512  # of version 1; version 2 has half as many
RESERVED_ENTRIES: Final = 8
GRANT_FRAMES_PER_STATUS_FRAME: Final = 8
STATUS_FRAME: Final = 1 << 31  # XENMAPIDX_grant_table_status
DOMID_SELF: Final = 0x7FF0
XENMAPSPACE_grant_table: Final[int] = lib.XENMAPSPACE_grant_table
GNTTAB_RESERVED_CONSOLE: Final[int] = lib.GNTTAB_RESERVED_CONSOLE
GNTTAB_RESERVED_XENSTORE: Final[int] = lib.GNTTAB_RESERVED_XENSTORE

GTF_permit_access: Final[int] = lib.GTF_permit_access
GTF_readonly: Final[int] = lib.GTF_readonly

# Why an operation of this module fails with a status, in the words of the rule.
_REASONS: Final = {
    GNTST.bad_domain: "no such domain",
    GNTST.bad_gntref: "the reference is beyond the table, or neither half is to be mapped",
    GNTST.bad_handle: "nothing is mapped by this handle",
    GNTST.bad_virt_addr: "the frame list cannot be written",
    GNTST.bad_dev_addr: "the device address is not that of the mapping",
    GNTST.permission_denied: "not permitted to this domain",
    GNTST.bad_page: "no RAM of the named domain is there",
    GNTST.bad_copy_arg: "the copy crosses the end of a page",
    GNTST.eagain: "an entry is in use",
    GNTST.no_space: "maptrack is full",
}
_GENERAL: Final = {
    GNTTABOP.map_grant_ref: "the entry does not permit this, or the place cannot take it",
    GNTTABOP.unmap_grant_ref: "no mapping of that page is there",
    GNTTABOP.unmap_and_replace: "no mapping of that page is there, or a new address is given",
    GNTTABOP.setup_table: "more frames than the table may have, or no memory",
    GNTTABOP.get_status_frames: "more frames than there are",
    GNTTABOP.transfer: "the page cannot be taken, or the entry does not accept it",
    GNTTABOP.copy: "an entry does not permit this, or not these bytes",
}
# Why a hypercall fails as a whole.
_FAILURES: Final = {
    EINVAL: "a count of 2^31 and more, or not 1 where it must be",
    EFAULT: "the array is shorter than the count",
    ENOENT: "no such vcpu calls",
    ENOSYS: "no such operation, or version 2 is switched off",
    EOPNOTSUPP: "transfers are switched off",
    ESRCH: "no such domain",
    EPERM: "no privilege over the domain",
    EBUSY: "an entry is pinned, or a status frame mapped",
    EAGAIN: "an operation on an entry is under way",
    ERANGE: "version 1 cannot say what a reserved entry says",
    ENOMEM: "no memory for the frames",
}
_REFUSALS: Final[dict[tuple[int, int], str]] = {
    (GNTTABOP.set_version, EINVAL): "versions are 1 and 2"
}


@attrs.frozen(kw_only=True)
class CopySide:
    """One side of a copy: entry `ref` of `domid`, or page `gmfn` of one's own.

    `offset` counts bytes from the start of the page, also where a sub-page is granted.
    """

    offset: int = 0
    domid: int = DOMID_SELF
    ref: int | None = None
    gmfn: int | None = None

    def write(self, side: Any) -> None:
        side.domid = self.domid
        side.offset = self.offset
        if self.ref is not None:
            side.u.ref = self.ref
        else:
            side.u.gmfn = self.gmfn


class GrantTable:
    """Grant table operations of `domain`, as its kernel calls them.

    `maptrack` holds the live mappings by handle. Raises GrantError with the GNTST_ status of
    a failed operation, HypercallError where the hypercall itself fails. A number that its
    field of the ABI cannot hold is an OverflowError: no guest could have asked.
    """

    def __init__(
        self,
        domain: Domain,
        *,
        max_frames: int,
        max_maptrack_frames: int,
        max_version: int = 2,
        allow_transitive: bool = True,
        allow_transfer: bool = True,
    ) -> None:
        self.domain = domain
        self.max_frames = max_frames
        self.max_version = max_version
        self.allow_transitive = allow_transitive  # Xen's gnttab=transitive
        self.allow_transfer = allow_transfer  # gnttab=transfer
        self.track = Maptrack(max_maptrack_frames, domain.max_vcpus)
        self.maptrack = self.track.entries
        lib.grant_table_pv(domain.kernel, not domain.translated)
        domain.check(lib.grant_table_grow(domain.kernel, 1))

    # frames

    @property
    def nr_frames(self) -> int:
        return int(lib.grant_table_frames(self.domain.kernel))

    @property
    def nr_status_frames(self) -> int:
        return int(lib.grant_table_status_frames(self.domain.kernel))

    @property
    def version(self) -> int:
        return int(lib.grant_table_version(self.domain.kernel))

    @property
    def nr_entries(self) -> int:
        return int(lib.grant_table_entries(self.domain.kernel))

    def grow(self, nr_frames: int) -> None:
        """More frames, up to max_frames; raises HypercallError(EINVAL) beyond, or ENOMEM."""
        result = lib.grant_table_grow(self.domain.kernel, nr_frames)
        if result in (-EINVAL, -ENOMEM):
            reason = f"the maximum is {self.max_frames}" if result == -EINVAL else "no memory"
            arguments = {"nr_frames": nr_frames}
            operation = "GNTTABOP_setup_table"
            raise HypercallError(-result, reason, operation=operation, arguments=arguments)
        self.domain.check(result)

    def physmap_frame(self, index: int) -> int:
        """The machine frame that XENMEM_add_to_physmap's `idx` of space grant_table means.

        Bit 31: a status frame, in version 2. The table grows as far as that needs. Raises
        HypercallError EINVAL beyond the maximum, ENOMEM.
        """
        kernel = self.domain.kernel
        if self.version == 2 and index & STATUS_FRAME:
            number = index & ~STATUS_FRAME
            if number >= self.nr_status_frames:
                self.grow((number + 1) * GRANT_FRAMES_PER_STATUS_FRAME)
            return int(lib.grant_table_status_frame(kernel, number))
        if not 0 <= index < self.max_frames:
            reason = f"grant frame {index} of {self.max_frames}"
            arguments = {"space": XENMAPSPACE_grant_table, "idx": index}
            operation = "XENMEM_add_to_physmap"
            raise HypercallError(EINVAL, reason, operation=operation, arguments=arguments)
        if index >= self.nr_frames:
            self.grow(index + 1)
        return int(lib.grant_table_frame(kernel, index))

    # the hypercall

    def hypercall(self, cmd: int, ops: Any, count: int | None = None, *, vcpu: int = 0) -> None:
        """grant_table_op on a cffi array of the structure that `cmd` takes, results in place.

        Raises HypercallError EINVAL (a count of 2^31 and more, or not 1 where it must be),
        EFAULT (more than there are), ENOSYS, EOPNOTSUPP (transfer, when it is switched off);
        of set_version and get_version also their own. ENOENT: no such vcpu calls.
        """
        count = len(ops) if count is None else count
        error = self._vcpu(vcpu) or gnttab_op.grant_table_op(self, cmd, ops, count, vcpu)
        if error:
            known = [op.name for op in GNTTABOP if op == cmd]
            name = f"GNTTABOP_{known[0]}" if known else f"grant_table_op {cmd}"
            reason = _REFUSALS.get((cmd, error)) or _FAILURES[error]
            raise HypercallError(error, reason, operation=name, arguments={"count": count})

    def copy(self, operations: Any) -> int:
        """GNTTABOP_copy of a cffi `struct gnttab_copy[]`, statuses in place.

        Returns how many did not end in GNTST_okay.
        """
        return gnttab_op.copy(self, operations, len(operations))

    # one operation each

    def map(
        self, domid: int, ref: int, pfn: int, *,
        readonly: bool = False, device: bool = False, host: bool = True, vcpu: int = 0,
    ) -> int:  # fmt: skip
        """GNTTABOP_map_grant_ref of one entry of `domid` at `pfn`, by `vcpu`; its handle."""
        asked = {
            "domid": domid, "ref": ref, "pfn": pfn,
            "readonly": readonly, "device": device, "host": host,
        }  # fmt: skip
        self._done(GNTTABOP.map_grant_ref, self._vcpu(vcpu), **asked, vcpu=vcpu)
        ops = ffi.new("struct gnttab_map_grant_ref[1]")
        op = ops[0]
        op.host_addr = pfn << 12
        op.flags = GNTMAP.host_map * host | GNTMAP.device_map * device | GNTMAP.readonly * readonly
        op.ref = ref
        op.dom = domid
        gnttab_op.map_grant_ref(self, op, vcpu)
        self._okay(GNTTABOP.map_grant_ref, op.status, **asked)
        return int(op.handle)

    def unmap(self, handle: int, pfn: int, *, dev_bus_addr: int = 0) -> None:
        """GNTTABOP_unmap_grant_ref of what is mapped at `pfn`."""
        ops = ffi.new("struct gnttab_unmap_grant_ref[1]")
        op = ops[0]
        op.host_addr = pfn << 12
        op.dev_bus_addr = dev_bus_addr
        op.handle = handle
        gnttab_op.unmap_grant_refs(self, ops, 1)
        asked = {"handle": handle, "pfn": pfn, "dev_bus_addr": dev_bus_addr}
        self._okay(GNTTABOP.unmap_grant_ref, op.status, **asked)

    def unmap_and_replace(self, handle: int, pfn: int, new_pfn: int = 0) -> None:
        """GNTTABOP_unmap_and_replace: a translated guest has no use for a `new_pfn`."""
        ops = ffi.new("struct gnttab_unmap_and_replace[1]")
        op = ops[0]
        op.host_addr = pfn << 12
        op.new_addr = new_pfn << 12
        op.handle = handle
        gnttab_op.unmap_and_replace(self, ops, 1)
        self._okay(GNTTABOP.unmap_and_replace, op.status, handle=handle, pfn=pfn, new_pfn=new_pfn)

    def copy_bytes(self, source: CopySide, dest: CopySide, size: int) -> None:
        """GNTTABOP_copy of `size` bytes, at most to the end of either page."""
        ops = ffi.new("struct gnttab_copy[1]")
        op = ops[0]
        source.write(op.source)
        dest.write(op.dest)
        op.len = size
        op.flags = (source.ref is not None) | (dest.ref is not None) << 1
        self.copy(ops)
        self._okay(GNTTABOP.copy, op.status, source=source, dest=dest, size=size)

    def transfer(self, frame: int, domid: int, ref: int) -> None:
        """GNTTABOP_transfer of a page: an mfn of a PV guest, a gfn of another (which fails).

        HypercallError EOPNOTSUPP when transfers are switched off.
        """
        if not self.allow_transfer:
            self._done(GNTTABOP.transfer, EOPNOTSUPP, frame=frame, domid=domid, ref=ref)
        ops = ffi.new("struct gnttab_transfer[1]")
        op = ops[0]
        op.mfn = frame
        op.domid = domid
        op.ref = ref
        gnttab_op.transfer(self, op)
        self._okay(GNTTABOP.transfer, op.status, frame=frame, domid=domid, ref=ref)

    def swap(self, ref_a: int, ref_b: int) -> None:
        """GNTTABOP_swap_grant_ref of two own entries that nobody has pinned."""
        op = ffi.new("struct gnttab_swap_grant_ref *")
        op.ref_a = ref_a
        op.ref_b = ref_b
        gnttab_op.swap_grant_ref(self, op)
        self._okay(GNTTABOP.swap_grant_ref, op.status, ref_a=ref_a, ref_b=ref_b)

    def setup_table(self, nr_frames: int, domid: int = DOMID_SELF) -> None:
        """GNTTABOP_setup_table without a list: the table has `nr_frames` afterwards, or more.

        The list is for PV guests; a translated one finds frames where it put them.
        """
        status, _ = gnttab_op.grow_table(self, domid, nr_frames)
        self._okay(GNTTABOP.setup_table, status, domid=domid, nr_frames=nr_frames)

    def query_size(self, domid: int = DOMID_SELF) -> tuple[int, int]:
        """GNTTABOP_query_size: frames in use, and the maximum."""
        op = ffi.new("struct gnttab_query_size *")
        op.dom = domid
        gnttab_op.query_size(self, op)
        self._okay(GNTTABOP.query_size, op.status, domid=domid)
        return op.nr_frames, op.max_nr_frames

    def set_version(self, version: int) -> None:
        """GNTTABOP_set_version. HypercallError EINVAL, ENOSYS, EBUSY, EAGAIN, ERANGE, ENOMEM."""
        op = ffi.new("struct gnttab_set_version *")
        op.version = version
        self._done(GNTTABOP.set_version, gnttab_op.set_version(self, op), version=version)

    def get_version(self, domid: int = DOMID_SELF) -> int:
        """GNTTABOP_get_version. HypercallError ESRCH, EPERM."""
        op = ffi.new("struct gnttab_get_version *")
        op.dom = domid
        self._done(GNTTABOP.get_version, gnttab_op.get_version(self, op), domid=domid)
        return int(op.version)

    def _okay(self, operation: GNTTABOP, status: int, **arguments: object) -> None:
        if status:
            reason = _GENERAL[operation] if status == -1 else _REASONS[GNTST(status)]
            name = f"GNTTABOP_{operation.name}"
            raise GrantError(status, reason, operation=name, arguments=arguments)

    def _done(self, operation: GNTTABOP, error: int, **arguments: object) -> None:
        if error:
            reason = _REFUSALS.get((operation, error)) or _FAILURES[error]
            name = f"GNTTABOP_{operation.name}"
            raise HypercallError(error, reason, operation=name, arguments=arguments)

    def _vcpu(self, vcpu: int) -> int:
        return 0 if 0 <= vcpu < self.domain.max_vcpus else ENOENT

    # life

    def release_maps(self) -> None:
        """At the domain's death: everything it mapped is unmapped, and nothing of it anew."""
        lib.grant_table_dying(self.domain.kernel)
        gnttab_op.release_maps(self)

    def pinned(self) -> int:
        """Own entries that somebody has mapped now."""
        return int(lib.grant_pinned_refs(self.domain.kernel))
