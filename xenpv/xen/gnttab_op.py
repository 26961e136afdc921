"""grant_table_op: the operations on the ABI's structures, one after another.

Each operation writes its status into its structure and raises nothing but what the access
hook raised; a hypercall's errno is for the batch as a whole. `GrantTable` has the same with
arguments and exceptions. Order of checks: xen/common/grant_table.c.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EFAULT, EINVAL, ENOSYS, EOPNOTSUPP, EPERM, ESRCH
from typing import TYPE_CHECKING, Any, Final

from xenpv.abi._kernel import ffi, lib
from xenpv.abi.gnttab import GNTMAP, GNTST, GNTTABOP
from xenpv.errors import HypercallError
from xenpv.xen.maptrack import Mapping

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain
    from xenpv.xen.gnttab import GrantTable

COUNT_END: Final = 1 << 31
# Pins drop after the TLB flush that ends so many unmaps (GNTTAB_UNMAP_BATCH_SIZE).
UNMAP_BATCH: Final = 32
SHUTDOWN_crash: Final[int] = lib.SHUTDOWN_crash

_HALVES: Final = int(GNTMAP.device_map | GNTMAP.host_map)
_HOST: Final = int(GNTMAP.host_map)
_READONLY: Final = int(GNTMAP.readonly)
_NOT_TRANSLATED: Final = int(GNTMAP.device_map | GNTMAP.application_map | GNTMAP.contains_pte)
_CRASH: Final = 1  # of grant_map: MAP_CRASH
_NOWHERE: Final = 0xFFFF_FFFF_FFFF_FFFF  # the gfn of a frame that lies in no physmap


def map_grant_ref(table: GrantTable, op: Any, vcpu: int = 0) -> None:
    """`struct gnttab_map_grant_ref`: status, and handle and dev_bus_addr if it is okay."""
    op.status = _map(table, op, vcpu)


def _map(table: GrantTable, op: Any, vcpu: int) -> int:
    flags = op.flags
    mapper = table.domain
    if not flags & _HALVES:
        return GNTST.bad_gntref
    # A PV guest's page table entries are not modelled: it may not name one either.
    if flags & (_NOT_TRANSLATED if mapper.translated else GNTMAP.contains_pte):
        return GNTST.general_error
    granter = mapper.find(op.dom) if op.dom != mapper.DOMID_SELF else None
    if granter is None:
        return GNTST.bad_domain
    handle = table.track.take(vcpu)
    if handle is None:
        return GNTST.no_space
    status = lib.grant_map(mapper.kernel, granter.kernel, ffi.addressof(op))
    if status:
        table.track.give_back(handle)
        if status == _CRASH:
            mapper.shutdown(SHUTDOWN_crash)
            return GNTST.general_error
        mapper.fail_unless_gntst(status)
        return int(status)
    table.maptrack[handle] = Mapping(
        granter, op.ref, flags & (_HALVES | _READONLY), op.host_addr >> 12, vcpu
    )
    op.handle = handle
    return GNTST.okay


def unmap_grant_refs(table: GrantTable, ops: Any, count: int) -> None:
    """`struct gnttab_unmap_grant_ref[]`: the statuses."""
    _unmap_all(table, ops, count, lambda op: (op.host_addr, op.dev_bus_addr, 0))


def unmap_and_replace(table: GrantTable, ops: Any, count: int) -> None:
    """`struct gnttab_unmap_and_replace[]`: the statuses; with a new_addr general_error."""
    _unmap_all(table, ops, count, lambda op: (op.host_addr, 0, op.new_addr))


def _unmap_all(
    table: GrantTable, ops: Any, count: int, addresses: Callable[[Any], tuple[int, int, int]]
) -> None:
    for start in range(0, count, UNMAP_BATCH):
        done: list[tuple[Mapping, int]] = []
        try:
            for index in range(start, min(start + UNMAP_BATCH, count)):
                op = ops[index]
                op.status = _unmap(table, op.handle, *addresses(op), done)
        finally:
            _unpin(table.domain, done)


def _unmap(
    table: GrantTable,
    handle: int,
    host_addr: int,
    dev_bus_addr: int,
    new_addr: int,
    unmapped: list[tuple[Mapping, int]],
) -> int:
    mapping = table.maptrack.get(handle)
    if mapping is None:
        return GNTST.bad_handle
    done = ffi.new("uint32_t *")
    status = lib.grant_unmap(
        table.domain.kernel, mapping.granter.kernel, mapping.ref, mapping.flags,
        host_addr, dev_bus_addr, new_addr, done,
    )  # fmt: skip
    if status:
        table.domain.fail_unless_gntst(status)
        return int(status)
    if done[0] & _HOST and host_addr >> 12 != mapping.pfn:
        _exchange(table, mapping, host_addr >> 12)
    mapping.flags &= ~(done[0] & _HALVES)
    if not mapping.flags & _HALVES:
        del table.maptrack[handle]
        table.track.give_back(handle)
    unmapped.append((mapping, done[0]))
    return GNTST.okay


def _exchange(table: GrantTable, mapping: Mapping, pfn: int) -> None:
    """Xen looks only at the frame there: another handle's mapping went instead of this one's."""
    for other in table.maptrack.values():
        if other.flags & _HOST and other.pfn == pfn:
            other.pfn, mapping.pfn = mapping.pfn, pfn
            return


def _unpin(mapper: Domain, unmapped: list[tuple[Mapping, int]]) -> None:
    result = 0
    for mapping, done in unmapped:
        if done:
            failed = lib.grant_unpin(mapper.kernel, mapping.granter.kernel, mapping.ref, done)
            result = result or failed
            mapping.granter.unpinned()
    mapper.check(result)


def release_maps(table: GrantTable) -> None:
    """At the mapper's death (gnttab_release_mappings), by handle."""
    kernel = table.domain.kernel
    for handle, mapping in sorted(table.maptrack.items()):
        if mapping.flags & _HOST:
            lib.domain_unmap(kernel, mapping.pfn)
        del table.maptrack[handle]
        table.track.give_back(handle)
        _unpin(table.domain, [(mapping, mapping.flags)])


def setup_table(table: GrantTable, op: Any) -> None:
    """`struct gnttab_setup_table`: grow to nr_frames; where they lie goes to frame_list."""
    status, owner = grow_table(table, op.dom, op.nr_frames)
    if owner is not None and not status:
        frames = [lib.grant_table_frame(owner.kernel, i) for i in range(op.nr_frames)]
        status = _list_frames(table.domain, owner, frames, op.frame_list)
    op.status = status


def grow_table(table: GrantTable, domid: int, nr_frames: int) -> tuple[int, Domain | None]:
    """What setup_table does before it lists the frames: the status, and whose table it is."""
    status, owner = _named(table, domid)
    if owner is None or nr_frames <= owner.gnttab.nr_frames:
        return status, owner
    failed = _errno(table.domain, lib.grant_table_grow(owner.kernel, nr_frames))
    return (GNTST.general_error if failed else status), owner


def get_status_frames(table: GrantTable, op: Any) -> None:
    """`struct gnttab_get_status_frames`: where they lie goes to frame_list."""
    status, owner = _named(table, op.dom)
    if owner is not None:
        kernel = owner.kernel
        if op.nr_frames > lib.grant_table_status_frames(kernel):
            status = GNTST.general_error
        else:
            frames = [lib.grant_table_status_frame(kernel, i) for i in range(op.nr_frames)]
            status = _list_frames(table.domain, owner, frames, op.frame_list)
    op.status = status


def _named(table: GrantTable, domid: int) -> tuple[int, Domain | None]:
    """A domain whose table the caller may look at: itself, or one that it controls."""
    owner = table.domain.find(domid)
    if owner is None:
        return GNTST.bad_domain, None
    if owner is not table.domain and not table.domain.controls(owner):
        return GNTST.permission_denied, None
    return GNTST.okay, owner


def _errno(domain: Domain, result: int) -> int:
    """Of a kernel call: 0 or a positive errno."""
    domain.fail_unless_gntst(result)
    return -min(result, 0)


def _list_frames(caller: Domain, owner: Domain, frames: list[int], address: int) -> int:
    gfns = b""
    for frame in frames:
        gfn = lib.grant_frame_gfn(owner.kernel, frame)
        gfns += (gfn if gfn >= 0 else _NOWHERE).to_bytes(8, "little")
    try:
        if gfns:
            caller.write(address >> 12, address & 0xFFF, gfns)
    except HypercallError:
        return GNTST.bad_virt_addr
    return GNTST.okay


def query_size(table: GrantTable, op: Any) -> None:
    """`struct gnttab_query_size`: nr_frames and max_nr_frames if the status is okay."""
    op.status, owner = _named(table, op.dom)
    if owner is not None:
        op.nr_frames = owner.gnttab.nr_frames
        op.max_nr_frames = owner.gnttab.max_frames


def set_version(table: GrantTable, op: Any) -> int:
    """`struct gnttab_set_version`: its errno; the structure gets the version in force."""
    version = op.version
    kernel = table.domain.kernel
    if version not in (1, 2):
        error = EINVAL
    elif version == 2 and table.max_version == 1:
        error = ENOSYS
    else:
        error = _errno(table.domain, lib.grant_table_set_version(kernel, version))
    op.version = lib.grant_table_version(kernel)
    return error


def get_version(table: GrantTable, op: Any) -> int:
    """`struct gnttab_get_version`: its errno."""
    owner = table.domain.find(op.dom)
    if owner is None:
        return ESRCH
    if owner is not table.domain and not table.domain.controls(owner):
        return EPERM
    op.version = lib.grant_table_version(owner.kernel)
    return 0


def transfer(table: GrantTable, op: Any) -> None:
    """`struct gnttab_transfer`: the status."""
    status = lib.grant_transfer(table.domain.kernel, ffi.addressof(op))
    table.domain.fail_unless_gntst(status)
    op.status = status


def swap_grant_ref(table: GrantTable, op: Any) -> None:
    """`struct gnttab_swap_grant_ref`: the status."""
    status = lib.grant_swap(table.domain.kernel, op.ref_a, op.ref_b)
    table.domain.fail_unless_gntst(status)
    op.status = status


_EACH: Final[dict[int, Callable[[GrantTable, Any], None]]] = {
    GNTTABOP.transfer: transfer,
    GNTTABOP.swap_grant_ref: swap_grant_ref,
}
_SINGLE: Final[dict[int, Callable[[GrantTable, Any], None]]] = {  # EINVAL for another count
    GNTTABOP.setup_table: setup_table,
    GNTTABOP.query_size: query_size,
    GNTTABOP.get_status_frames: get_status_frames,
}
_VERSION: Final[dict[int, Callable[[GrantTable, Any], int]]] = {  # the count is not looked at
    GNTTABOP.set_version: set_version,
    GNTTABOP.get_version: get_version,
}


def grant_table_op(table: GrantTable, cmd: int, ops: Any, count: int, vcpu: int = 0) -> int:
    """The hypercall's errno, 0 if every operation of `ops` got its status.

    `ops` is an array of the structure that `cmd` takes, in the caller's private memory.
    """
    if not 0 <= count < COUNT_END:
        return EINVAL
    if cmd in _SINGLE and count != 1:
        return EINVAL
    known = cmd in _EACH or cmd in _SINGLE or cmd in _VERSION or cmd in _BATCHES
    if not known:
        return ENOSYS  # dump_table; cache_flush, which only Arm has; what is no operation
    if ops is None or count > len(ops):
        return EFAULT
    if cmd == GNTTABOP.transfer and not table.allow_transfer:
        return EOPNOTSUPP
    if cmd in _VERSION:
        return _VERSION[cmd](table, ops[0])
    if cmd in _SINGLE:
        _SINGLE[cmd](table, ops[0])
    elif cmd in _EACH:
        for index in range(count):
            _EACH[cmd](table, ops[index])
    else:
        _BATCHES[cmd](table, ops, count, vcpu)
    return 0


def _map_all(table: GrantTable, ops: Any, count: int, vcpu: int) -> None:
    for index in range(count):
        map_grant_ref(table, ops[index], vcpu)


def copy(table: GrantTable, ops: Any, count: int) -> int:
    """`struct gnttab_copy[]`: how many statuses are not okay."""
    kernel = table.domain.kernel
    return table.domain.check(lib.grant_copy(kernel, ops, count, table.allow_transitive))


_BATCHES: Final[dict[int, Callable[[GrantTable, Any, int, int], object]]] = {
    GNTTABOP.map_grant_ref: _map_all,
    GNTTABOP.unmap_grant_ref: lambda table, ops, count, _: unmap_grant_refs(table, ops, count),
    GNTTABOP.unmap_and_replace: lambda table, ops, count, _: unmap_and_replace(table, ops, count),
    GNTTABOP.copy: lambda table, ops, count, _: copy(table, ops, count),
}
