"""memory_op as a hypercall: reservations and physmap requests out of guest memory.

Structures of public/memory.h; the operations are those of `Domain.memory` (xen/physmap.py).
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL, ENOSYS
from typing import Any, Final

from xenpv.abi._kernel import ffi, lib
from xenpv.errors import HypercallError
from xenpv.xen.guest_access import BATCH, Call


def _reservation(call: Call, cmd: int, arg: int) -> int:
    """increase, decrease, populate: extents done; whatever else is wrong is 0 of them."""
    try:
        op = call.memory.load("xen_memory_reservation", arg)[0]
    except HypercallError:
        return 0
    done = 0
    width = ffi.sizeof(call.memory.word)
    while done < op.nr_extents:
        count = min(BATCH, op.nr_extents - done)
        address = op.extent_start + done * width
        made = _extents(call, cmd, op, address, count)
        done += made
        if made < count:
            break
    return done


def _extents(call: Call, cmd: int, op: Any, address: int, count: int) -> int:
    memory = call.domain.memory
    given = {"order": op.extent_order, "mem_flags": op.mem_flags}
    if cmd == lib.XENMEM_increase_reservation:
        mfns: list[int] = [0] * count
        made = memory.increase_reservation(op.domid, count, mfns=mfns, **given)
        if op.extent_start and not call.domain.translated:
            call.memory.store_words(address, mfns[:made])
        return made
    try:
        gpfns = call.memory.words(address, count)
    except HypercallError:
        return 0 if count == 1 else _one_by_one(call, cmd, op, address, count)
    if cmd == lib.XENMEM_decrease_reservation:
        return memory.decrease_reservation(op.domid, gpfns, **given)
    before = list(gpfns)
    made = memory.populate_physmap(op.domid, gpfns, **given)
    if gpfns != before:
        call.memory.store_words(address, gpfns[:made])
    return made


def _one_by_one(call: Call, cmd: int, op: Any, address: int, count: int) -> int:
    """Extents of a list of which a part cannot be read: those before that."""
    width = ffi.sizeof(call.memory.word)
    for index in range(count):
        if not _extents(call, cmd, op, address + index * width, 1):
            return index
    return count


def _stat(call: Call, cmd: int, arg: int) -> int:
    domid = call.memory.load("xen_memory_domain", arg)[0].domid
    memory = call.domain.memory
    ask = {
        lib.XENMEM_current_reservation: memory.current_reservation,
        lib.XENMEM_maximum_reservation: memory.maximum_reservation,
        lib.XENMEM_maximum_gpfn: memory.maximum_gpfn,
    }
    return ask[cmd](domid)


def _add_to_physmap(call: Call, _cmd: int, arg: int) -> int:
    op = call.memory.load("xen_add_to_physmap", arg)[0]
    call.domain.memory.add_to_physmap(op.domid, op.space, op.idx, op.gpfn, size=op.size)
    return 0


def _add_to_physmap_batch(call: Call, _cmd: int, arg: int) -> int:
    op = call.memory.load("xen_add_to_physmap_batch", arg)[0]
    memory = call.memory
    idxs, gpfns = memory.words(op.idxs, op.size), memory.words(op.gpfns, op.size)
    try:
        errs = call.domain.memory.add_to_physmap_batch(
            op.domid, op.space, idxs, gpfns, foreign_domid=op.u.foreign_domid
        )
    except HypercallError as error:
        done = error.arguments.get("errs")
        if isinstance(done, list):
            memory.store_s32s(op.errs, done)
        raise
    memory.store_s32s(op.errs, errs)
    return 0


def _remove_from_physmap(call: Call, _cmd: int, arg: int) -> int:
    op = call.memory.load("xen_remove_from_physmap", arg)[0]
    call.domain.memory.remove_from_physmap(op.domid, op.gpfn)
    return 0


def _claim_pages(call: Call, _cmd: int, arg: int) -> int:
    op = call.memory.load("xen_memory_reservation", arg)[0]
    if op.extent_start:
        return -EINVAL
    call.domain.memory.claim_pages(
        op.domid, op.nr_extents, order=op.extent_order, mem_flags=op.mem_flags
    )
    return 0


def _acquire_resource(call: Call, _cmd: int, arg: int) -> int:
    ops = call.memory.load("xen_mem_acquire_resource", arg)
    op = ops[0]
    gpfns = None
    if op.frame_list and op.nr_frames <= BATCH:
        gpfns = call.memory.words(op.frame_list, op.nr_frames)
    found = call.domain.memory.acquire_resource(
        op.domid, op.type, op.id, frame=op.frame, nr_frames=op.nr_frames, gpfns=gpfns, pad=op.pad
    )
    if gpfns is None:
        op.nr_frames = found
        call.memory.store("xen_mem_acquire_resource", arg, ops)
    elif not call.domain.translated:
        call.memory.store_words(op.frame_list, gpfns)
    return 0


MEMORY_OPS: Final[dict[int, Callable[[Call, int, int], int]]] = {
    lib.XENMEM_increase_reservation: _reservation,
    lib.XENMEM_decrease_reservation: _reservation,
    lib.XENMEM_populate_physmap: _reservation,
    lib.XENMEM_current_reservation: _stat,
    lib.XENMEM_maximum_reservation: _stat,
    lib.XENMEM_maximum_gpfn: _stat,
    lib.XENMEM_add_to_physmap: _add_to_physmap,
    lib.XENMEM_add_to_physmap_batch: _add_to_physmap_batch,
    lib.XENMEM_remove_from_physmap: _remove_from_physmap,
    lib.XENMEM_claim_pages: _claim_pages,
    lib.XENMEM_acquire_resource: _acquire_resource,
}


def memory_op(call: Call, cmd: int, arg: int) -> int:
    """XENMEM_*."""
    found = MEMORY_OPS.get(cmd)
    return -ENOSYS if found is None else found(call, cmd, arg)
