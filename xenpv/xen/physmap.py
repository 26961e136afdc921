"""A domain's reservation and physmap: memory_op, seen from the domain that calls.

Every method is one sub-operation of public/memory.h, its target's domid first where Xen has
it. Checks and their order are those of xen/common/memory.c; what the tables then hold is the
kernel's (memory.c, p2m.c). A pfn has 28 bits here; Xen's INVALID_GFN is all ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import (
    EACCES,
    EFAULT,
    EINVAL,
    EIO,
    ENOSYS,
    EOPNOTSUPP,
    EOVERFLOW,
    EPERM,
    ESRCH,
)
from typing import TYPE_CHECKING, Final, NoReturn

from xenpv.abi._kernel import ffi, lib
from xenpv.abi.sched import SHUTDOWN
from xenpv.errors import HypercallError, LocalProtocolError

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain

DOMID_SELF: Final = 0x7FF0
INVALID_GFN: Final = (1 << 64) - 1

# CONFIG_DOMU_MAX_ORDER, CONFIG_CTLDOM_MAX_ORDER; dom0 is control and hardware domain (12).
DOMU_MAX_ORDER: Final = 9
CTLDOM_MAX_ORDER: Final = 18
# nr_extents goes into the upper bits of a continued call's 32-bit command.
NR_EXTENTS_MAX: Final = 0xFFFFFFFF >> 6
MAX_NUMNODES: Final = 64
PAGE_SHIFT: Final = 12

XENMEMF_populate_on_demand: Final[int] = lib.XENMEMF_populate_on_demand
XENMEMF_exact_node_request: Final[int] = lib.XENMEMF_exact_node_request
XENMEMF_vnode: Final[int] = lib.XENMEMF_vnode

XENMAPSPACE_shared_info: Final[int] = lib.XENMAPSPACE_shared_info
XENMAPSPACE_grant_table: Final[int] = lib.XENMAPSPACE_grant_table
XENMAPSPACE_gmfn: Final[int] = lib.XENMAPSPACE_gmfn
XENMAPSPACE_gmfn_range: Final[int] = lib.XENMAPSPACE_gmfn_range
XENMAPSPACE_gmfn_foreign: Final[int] = lib.XENMAPSPACE_gmfn_foreign
XENMAPSPACE_dev_mmio: Final[int] = lib.XENMAPSPACE_dev_mmio
XENMAPIDX_grant_table_status: Final[int] = lib.XENMAPIDX_grant_table_status

XENMEM_resource_grant_table: Final[int] = lib.XENMEM_resource_grant_table
XENMEM_resource_grant_table_id_shared: Final[int] = lib.XENMEM_resource_grant_table_id_shared
XENMEM_resource_grant_table_id_status: Final[int] = lib.XENMEM_resource_grant_table_id_status
# acquire_resource works in strides of so many frames; see there for the errno.
RESOURCE_STRIDE: Final = 32


class Physmap:
    """The memory_op hypercalls of `domain`.

    The three reservation operations return how many extents were done and never fail; all
    others raise HypercallError.
    """

    def __init__(self, domain: Domain) -> None:
        self.domain = domain

    # what a toolstack and a death do with the operations

    def map_foreign(self, domid: int, gfn: int) -> int:
        """The pfn, one of `holes`, at which domain `domid`'s page `gfn` now is.

        It holds a reference: the page outlives its owner until `unmap_foreign`. Raises as
        an entry of add_to_physmap_batch fails: ESRCH, EPERM, EINVAL, ENOMEM.
        """
        pfn = self.domain.holes.alloc()
        operation, space = "XENMEM_add_to_physmap_batch", XENMAPSPACE_gmfn_foreign
        try:
            (error,) = self.add_to_physmap_batch(
                DOMID_SELF, space, [gfn], [pfn], foreign_domid=domid
            )
            if error:
                asked = {"foreign_domid": domid, "idx": gfn, "gpfn": pfn}
                _fail(operation, -error, "no RAM there, or not permitted", **asked)
        except BaseException:
            self.domain.holes.free(pfn)
            raise
        return pfn

    def unmap_foreign(self, pfn: int) -> None:
        """Drop what `map_foreign` gave."""
        self.remove_from_physmap(DOMID_SELF, pfn)
        self.domain.holes.free(pfn)

    def relinquish(self) -> None:
        """At its death: its own references on memory go, also those on other domains' pages."""
        lib.domain_relinquish(self.domain.kernel)
        self.domain.unmapped()

    # the reservation

    def increase_reservation(
        self,
        domid: int,
        nr_extents: int,
        *,
        order: int = 0,
        mem_flags: int = 0,
        mfns: list[int] | None = None,
    ) -> int:
        """XENMEM_increase_reservation: pages of the target's that are at no pfn; extents done.

        Where the target is not translated, `mfns` gets each extent's first frame; only the
        first, its other frames need not be adjacent to it.
        """
        target = self._reservation(domid, nr_extents, order, mem_flags)
        if target is None:
            return 0
        tell = mfns is not None and not target.translated
        out = ffi.new("uint64_t[]", nr_extents) if tell else ffi.NULL
        done = int(target.check(lib.memory_increase(target.kernel, nr_extents, order, out)))
        if mfns is not None and tell:
            mfns[:done] = ffi.unpack(out, done)
        return done

    def decrease_reservation(
        self, domid: int, gpfns: Sequence[int], *, order: int = 0, mem_flags: int = 0
    ) -> int:
        """XENMEM_decrease_reservation of extents of 2^order pages; how many were done.

        It stops at a pfn without a page or with a grant or foreign page; pages before that
        one in the same extent are gone. A page of Xen's is only unhooked.
        """
        target = self._reservation(domid, len(gpfns), order, mem_flags)
        if target is None:
            return 0
        extents = ffi.new("uint64_t[]", gpfns)
        return int(target.check(lib.memory_decrease(target.kernel, extents, len(gpfns), order)))

    def populate_physmap(
        self, domid: int, gpfns: list[int], *, order: int = 0, mem_flags: int = 0
    ) -> int:
        """XENMEM_populate_physmap of extents of 2^order pages; how many were done.

        RAM that is there is unhooked, not freed; a grant or foreign page there crashes the
        target. Populate-on-demand, which no domain may ask for itself, is a plain populate:
        memory here is taken at the first touch anyway. Where the target is not translated,
        `gpfns` is overwritten with each extent's first frame.
        """
        on_demand = bool(mem_flags & XENMEMF_populate_on_demand)
        target = self._reservation(domid, len(gpfns), order, mem_flags, on_demand=on_demand)
        if target is None:
            return 0
        why = ffi.new("int *")
        extents = ffi.new("uint64_t[]", gpfns)
        done = int(
            target.check(lib.memory_populate(target.kernel, extents, len(gpfns), order, why))
        )
        if why[0] == -EPERM:
            target.shutdown(SHUTDOWN.crash)
        if not target.translated:
            frames = [target.check(lib.p2m_lookup(target.kernel, pfn, 1)) for pfn in gpfns[:done]]
            gpfns[:done] = frames
        return done

    def _reservation(
        self, domid: int, nr_extents: int, order: int, mem_flags: int, *, on_demand: bool = False
    ) -> Domain | None:
        """The target, or None where Xen says that no extent was done."""
        caller = self.domain
        target = caller.find(domid)
        limit = CTLDOM_MAX_ORDER if caller.is_control or on_demand else DOMU_MAX_ORDER
        if (
            target is None
            or not 0 < nr_extents <= NR_EXTENTS_MAX
            or not 0 <= order <= limit
            or not (target is caller or caller.controls(target))
            or (on_demand and target is caller)
            or not _mem_flags_okay(mem_flags, privileged=caller.is_control)
        ):
            return None
        return target

    def current_reservation(self, domid: int = DOMID_SELF) -> int:
        """XENMEM_current_reservation: pages promised or still held by somebody; ESRCH, EPERM."""
        return int(lib.domain_tot_pages(self._stat("XENMEM_current_reservation", domid).kernel))

    def maximum_reservation(self, domid: int = DOMID_SELF) -> int:
        """XENMEM_maximum_reservation: max_pages; ESRCH, EPERM."""
        return int(lib.domain_max_pages(self._stat("XENMEM_maximum_reservation", domid).kernel))

    def maximum_gpfn(self, domid: int = DOMID_SELF) -> int:
        """XENMEM_maximum_gpfn: the highest pfn that ever held something; ESRCH, EPERM."""
        return int(lib.domain_max_gpfn(self._stat("XENMEM_maximum_gpfn", domid).kernel))

    def _stat(self, operation: str, domid: int) -> Domain:
        target = self.domain.find(domid)
        if target is None:
            _fail(operation, ESRCH, "no such domain", domid=domid)
        self._permit(operation, target, {"domid": domid})
        return target

    def claim_pages(self, domid: int, nr_pages: int, *, order: int = 0, mem_flags: int = 0) -> None:
        """XENMEM_claim_pages: set memory aside until the target has `nr_pages`; 0 gives it up.

        EINVAL: order or flags, no such domain (SELF is none), a claim stands already,
        not above its tot_pages, above its max_pages. EPERM; ENOMEM.
        """
        asked = {"domid": domid, "nr_extents": nr_pages, "order": order, "mem_flags": mem_flags}
        operation = "XENMEM_claim_pages"
        if order or mem_flags:
            _fail(operation, EINVAL, "order and flags must be 0", **asked)
        target = None if domid == DOMID_SELF else self.domain.find(domid)
        if target is None:
            _fail(operation, EINVAL, "no such domain", **asked)
        if not self.domain.is_control:
            _fail(operation, EPERM, "only the control domain claims", **asked)
        if target.dying:
            _fail(operation, EINVAL, "the domain is dying", **asked)
        error = _errno(target, lib.domain_claim(target.kernel, nr_pages))
        if error:
            _fail(operation, error, "the claim is refused", **asked)

    # the physmap

    def add_to_physmap(self, domid: int, space: int, idx: int, gpfn: int, *, size: int = 0) -> None:
        """XENMEM_add_to_physmap of one page, or of `size` for XENMAPSPACE_gmfn_range.

        In this order: space 4 ENOSYS, ESRCH, EACCES if the target is not translated, EPERM,
        EINVAL for INVALID_GFN; then what _add says. A range that fails keeps what was moved.
        """
        operation = "XENMEM_add_to_physmap"
        asked = {"domid": domid, "space": space, "idx": idx, "gpfn": gpfn, "size": size}
        if space == XENMAPSPACE_gmfn_foreign:
            _fail(operation, ENOSYS, "foreign pages are for the batch", **asked)
        target = self._translated(operation, domid, space, asked)
        if gpfn == INVALID_GFN:
            _fail(operation, EINVAL, "INVALID_GFN", **asked)
        if space != XENMAPSPACE_gmfn_range:
            error = self._add(target, space, idx, gpfn, None)
        else:
            if idx + size > INVALID_GFN or gpfn + size > INVALID_GFN:
                _fail(operation, EOVERFLOW, "the range wraps", **asked)
            error = _move_range(target, idx, gpfn, size)
        self.domain.unmapped()
        if error:
            _fail(operation, error, "the page cannot be there", **asked)

    def add_to_physmap_batch(
        self,
        domid: int,
        space: int,
        idxs: Sequence[int],
        gpfns: Sequence[int],
        *,
        foreign_domid: int = 0,
    ) -> list[int]:
        """XENMEM_add_to_physmap_batch: `errs`, 0 or a negative errno for each entry.

        The call as a whole: gmfn_range EOPNOTSUPP, ESRCH, EACCES, EPERM. An INVALID_GFN ends
        it with EINVAL; entries before that one are done, `arguments["errs"]` tells how.
        """
        operation = "XENMEM_add_to_physmap_batch"
        if len(idxs) != len(gpfns) or len(idxs) > 0xFFFF:
            raise LocalProtocolError(f"a batch of {len(idxs)} indices and {len(gpfns)} pfns")
        asked = {"domid": domid, "space": space, "size": len(idxs), "foreign_domid": foreign_domid}
        if space == XENMAPSPACE_gmfn_range:
            _fail(operation, EOPNOTSUPP, "no ranges in a batch", **asked)
        target = self._translated(operation, domid, space, asked)
        errs: list[int] = []
        for idx, gpfn in zip(idxs, gpfns, strict=True):
            if gpfn == INVALID_GFN:
                self.domain.unmapped()
                _fail(operation, EINVAL, f"entry {len(errs)}: INVALID_GFN", **asked, errs=errs)
            errs.append(-self._add(target, space, idx, gpfn, foreign_domid))
        self.domain.unmapped()
        return errs

    def remove_from_physmap(self, domid: int, gpfn: int) -> None:
        """XENMEM_remove_from_physmap: unhook, not free: RAM stays in the target's tot_pages.

        ESRCH, EACCES if the target is not translated, EPERM, ENOENT.
        """
        operation = "XENMEM_remove_from_physmap"
        asked = {"domid": domid, "gpfn": gpfn}
        target = self._translated(operation, domid, XENMAPSPACE_gmfn, asked)
        error = _errno(target, lib.physmap_remove(target.kernel, gpfn))
        if error:
            _fail(operation, error, "no page there", **asked)
        self.domain.unmapped()

    def _translated(self, operation: str, domid: int, space: int, asked: dict[str, int]) -> Domain:
        """xatp_permission_check; dev_mmio is the hardware domain's for itself (and Arm's)."""
        target = self.domain.find(domid)
        if target is None:
            _fail(operation, ESRCH, "no such domain", **asked)
        if not target.translated:
            _fail(operation, EACCES, "a PV domain has no physmap", **asked)
        if space == XENMAPSPACE_dev_mmio and not (target.is_control and target is self.domain):
            _fail(operation, EACCES, "MMIO is the hardware domain's", **asked)
        self._permit(operation, target, asked)
        return target

    def _add(
        self, target: Domain, space: int, idx: int, gpfn: int, foreign_domid: int | None
    ) -> int:
        """xenmem_add_to_physmap_one: 0 or an errno.

        EINVAL: no such frame, space or pfn. gmfn: EACCES unless RAM. foreign: ESRCH, EPERM for
        its own and for those it does not control, EINVAL without RAM there. At the
        pfn RAM is freed and a page of Xen's unhooked, a grant or foreign page is ENXIO.
        """
        kernel = target.kernel
        if space == XENMAPSPACE_gmfn:
            return _errno(target, lib.physmap_move(kernel, idx, gpfn))
        if space == XENMAPSPACE_gmfn_foreign and foreign_domid is not None:
            owner = self.domain.find(foreign_domid)
            if owner is None:
                return ESRCH
            if owner is target or not target.controls(owner):
                return EPERM
            return _errno(target, lib.physmap_add_foreign(kernel, gpfn, owner.kernel, idx))
        frame = -EINVAL
        if space == XENMAPSPACE_shared_info and idx == 0:
            frame = lib.domain_shared_info_frame(kernel)
        elif space == XENMAPSPACE_grant_table:
            frame = _grant_frame(target, idx)
        if frame < 0:
            return EINVAL
        return _errno(target, lib.domain_add_xen_frame(kernel, gpfn, frame))

    # resources

    def acquire_resource(
        self,
        domid: int,
        type_: int,
        id_: int,
        *,
        frame: int = 0,
        nr_frames: int = 0,
        gpfns: list[int] | None = None,
        pad: int = 0,
    ) -> int:
        """XENMEM_acquire_resource: another domain's grant table at `gpfns` of the caller.

        Without a list and with nr_frames 0: how many frames the resource has at most (for
        the status frames also in version 1). Else nr_frames, of which the list has one pfn
        each; a caller that is not translated finds the frames there. In this order: EINVAL
        (pad, frame beyond 32 bits), ESRCH (SELF too), EPERM for its own, EPERM, EINVAL
        (type, id, no list, nothing asked), EFAULT (a list that ends early), EINVAL (a frame
        beyond the maximum, status in version 1). A grant or foreign page at a pfn crashes
        the caller: EPERM. At another than the first of each 32 frames every failure is EIO;
        what was mapped before stays.
        """
        operation = "XENMEM_acquire_resource"
        asked = {
            "domid": domid, "type": type_, "id": id_, "frame": frame, "nr_frames": nr_frames,
            "pad": pad,
        }  # fmt: skip
        if pad or frame >> 32 or (frame + nr_frames) >> 32:
            _fail(operation, EINVAL, "pad or frame", **asked)
        target = None if domid == DOMID_SELF else self.domain.find(domid)
        if target is None:
            _fail(operation, ESRCH, "no such domain", **asked)
        if target is self.domain:
            _fail(operation, EPERM, "a domain's own resources are not acquired", **asked)
        if not self.domain.controls(target):
            _fail(operation, EPERM, "no privilege over the domain", **asked)
        maximum = _resource_max(target, type_, id_)
        if not maximum:
            _fail(operation, EINVAL, "no such resource", **asked)
        if gpfns is None and not nr_frames:
            return maximum
        if gpfns is None or not 0 < nr_frames <= NR_EXTENTS_MAX:
            _fail(operation, EINVAL, "the list", **asked)
        if len(gpfns) < nr_frames:
            _fail(operation, EFAULT, "the list is shorter", **asked)
        for start in range(0, nr_frames, RESOURCE_STRIDE):
            stop = min(start + RESOURCE_STRIDE, nr_frames)
            frames = _resource(target, id_, frame + start, stop - start)
            if frames is None:
                _fail(operation, EINVAL, "no such frame", **asked)
            self._acquire(frames, gpfns, start, operation, asked)
        return nr_frames

    def _acquire(
        self, frames: list[int], gpfns: list[int], start: int, operation: str, asked: dict[str, int]
    ) -> None:
        if not self.domain.translated:
            gpfns[start : start + len(frames)] = frames
            return
        for index, frame in enumerate(frames):
            kernel = self.domain.kernel
            error = _errno(self.domain, lib.physmap_acquire(kernel, gpfns[start + index], frame))
            if error == EPERM:
                self.domain.shutdown(SHUTDOWN.crash)
            if error:
                _fail(operation, EIO if index else error, f"entry {start + index}", **asked)

    def _permit(self, operation: str, target: Domain, asked: dict[str, int]) -> None:
        """XSM_TARGET: oneself, or privileged over the target."""
        if target is not self.domain and not self.domain.controls(target):
            _fail(operation, EPERM, "no privilege over the domain", **asked)


def _fail(operation: str, errno: int, reason: str, **asked: object) -> NoReturn:
    raise HypercallError(errno, reason, operation=operation, arguments=asked)


def _errno(domain: Domain, result: int) -> int:
    """What a kernel result stands for: 0 or a positive errno; raises what no errno tells."""
    if result <= lib.KERNEL_E_FORKED:
        domain.fail(result, "memory_op")
    return -int(result)


def _mem_flags_okay(mem_flags: int, *, privileged: bool) -> bool:
    """construct_memop_from_reservation: the address width and the NUMA node asked for."""
    address_bits = mem_flags & 0xFF
    node = (mem_flags >> 8) & 0xFF
    if 0 < address_bits <= PAGE_SHIFT:
        return False
    if not node or mem_flags & XENMEMF_vnode:
        return True
    if privileged:
        return node - 1 < MAX_NUMNODES
    return not mem_flags & XENMEMF_exact_node_request


def _move_range(target: Domain, idx: int, gpfn: int, size: int) -> int:
    """gmfn_range: 0, or the errno at which it stopped."""
    steps = range(size)
    if idx < gpfn < idx + size:
        steps = steps[::-1]  # so that no page is moved onto one that is still to be moved
    for step in steps:
        error = _errno(target, lib.physmap_move(target.kernel, idx + step, gpfn + step))
        if error:
            return error
    return 0


def _grant_frame(target: Domain, index: int) -> int:
    """gnttab_map_frame: the frame, the table grown if need be; negative where there is none."""
    try:
        return target.gnttab.physmap_frame(index)
    except HypercallError:
        return -EINVAL  # short of memory to grow, too: the frame is then not there


def _resource_max(target: Domain, type_: int, id_: int) -> int:
    """resource_max_frames: a fixed property of the domain; 0 for what there is not."""
    if type_ != XENMEM_resource_grant_table:
        return 0
    if id_ == XENMEM_resource_grant_table_id_shared:
        return target.gnttab.max_frames
    if id_ == XENMEM_resource_grant_table_id_status:
        return -(-target.gnttab.max_frames // 8)
    return 0


def _resource(target: Domain, id_: int, first: int, count: int) -> list[int] | None:
    """gnttab_acquire_resource; None: no such frames, or status frames in version 1."""
    status = XENMAPIDX_grant_table_status if id_ == XENMEM_resource_grant_table_id_status else 0
    if status and target.gnttab.version != 2:
        return None
    if first + count > (_resource_max(target, XENMEM_resource_grant_table, id_)):
        return None
    # The last one first: the table grows once.
    if _grant_frame(target, status | (first + count - 1)) < 0:
        return None
    return [_grant_frame(target, status | (first + index)) for index in range(count)]
