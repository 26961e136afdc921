"""Commands that reach the medium: what is refused at once, and what goes to the rings.

win-xenvbd target.c, TargetReadWrite, TargetSyncCache and TargetUnmap; the order of their checks
is that of the refusals here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpv.vbd import unmap
from xenpv.vbd.quirks import UNMAP_UNCHECKED, ZERO_LENGTH_HANG
from xenpv.vbd.request import DISCARD, FLUSH_DISKCACHE, READ, Part
from xenpv.vbd.sense import Sense
from xenpv.vbd.srb import Srb, SrbStatus

if TYPE_CHECKING:
    from xenpv.vbd.target import Target

SECTOR: Final = 512  # of parts
U64_MAX: Final = (1 << 64) - 1


def transfer(target: Target, srb: Srb, operation: int, lba: int, count: int) -> None:
    """READ or WRITE of `count` logical sectors."""
    backend = target.backend
    size = backend.sector_size
    nr_bytes = count * size
    capacity = backend.capacity
    if (
        not target.frontend.is_enabled
        or (operation != READ and backend.is_readonly)
        or lba >= capacity
        or lba + count > capacity
        or nr_bytes > srb.data_transfer_length
    ):
        target.refuse(srb, _fault(target, operation != READ, lba, count))
    elif not count:
        _nothing_to_do(target, srb)
    else:
        srb.data_transfer_length = nr_bytes
        unit = size // SECTOR
        error = Sense.READ_ERROR if operation == READ else Sense.WRITE_ERROR
        target.queue_parts(srb, [Part(srb, operation, lba * unit, count * unit)], error)


def flush(target: Target, srb: Srb, lba: int, count: int) -> None:
    """SYNCHRONIZE CACHE: whatever it names, all of the disk. Where there is no cache there is
    nothing to do.
    """
    backend = target.backend
    beyond = lba >= backend.capacity or lba + count > backend.capacity
    if not target.frontend.is_enabled or backend.is_readonly:
        target.refuse(srb, _fault(target, True, lba, count))
    elif beyond and target.attentions is not None:
        srb.check_condition(Sense.LBA_OUT_OF_RANGE)
    elif not (backend.flush_cache or backend.barrier):
        srb.complete(SrbStatus.SUCCESS)
    else:
        part = Part(srb, FLUSH_DISKCACHE, lba * (backend.sector_size // SECTOR))
        target.queue_parts(srb, [part], Sense.WRITE_ERROR)


def discard(target: Target, srb: Srb, length: int) -> None:
    """UNMAP with a parameter list of `length` bytes, as the CDB has it.

    The driver goes by the list's own header; what the buffer lacks is not read. Without the
    feature it is a hint that nobody takes.
    """
    backend = target.backend
    if not target.frontend.is_enabled or backend.is_readonly:
        target.refuse(srb, _fault(target, True, 0, 0))
        return
    if not backend.discard:
        srb.complete(SrbStatus.SUCCESS)
        return
    data = srb.read_data(target.domain)
    fault = _list_fault(target, data, length)
    parts = []
    if fault is None:
        unit = backend.sector_size // SECTOR
        unchecked = UNMAP_UNCHECKED in target.quirks
        end = U64_MAX // unit if unchecked else backend.capacity
        for lba, count in unmap.parse(data):
            if lba + count > end:
                fault = Sense.LBA_OUT_OF_RANGE
            elif count or unchecked:
                parts.append(Part(srb, DISCARD, lba * unit, count * unit))
    if fault is not None:
        target.refuse(srb, fault)
    elif parts:
        target.queue_parts(srb, parts, Sense.WRITE_ERROR)
    else:
        _nothing_to_do(target, srb)


def _fault(target: Target, writes: bool, lba: int, count: int) -> Sense:
    """What is wrong with a command that is refused, in the order in which it is looked at."""
    if not target.frontend.is_enabled:
        return Sense.NOT_READY
    if writes and target.backend.is_readonly:
        return Sense.WRITE_PROTECTED
    if lba >= target.sectors or lba + count > target.sectors:
        return Sense.LBA_OUT_OF_RANGE
    return Sense.INVALID_FIELD_IN_CDB


def _list_fault(target: Target, data: bytes, length: int) -> Sense | None:
    """Of a parameter list; the driver looks only whether it has a header."""
    if len(data) < unmap.HEADER.size:
        return Sense.PARAMETER_LIST_LENGTH
    if target.attentions is None:
        return None
    if not unmap.HEADER.size <= length <= len(data):
        return Sense.PARAMETER_LIST_LENGTH
    return Sense.INVALID_FIELD_IN_PARAMETERS if unmap.promises_more(data[:length]) else None


def _nothing_to_do(target: Target, srb: Srb) -> None:
    """The driver queues what is of no length, and never completes it."""
    if ZERO_LENGTH_HANG not in target.quirks:
        srb.complete(SrbStatus.SUCCESS)
