"""Command descriptor blocks: what each opcode does to a target (win-xenvbd target.c).

A reply's length is the driver's own, whatever the CDB allocates; the buffer is zeroed
first. An SRB is SUCCESS, ERROR or INVALID_REQUEST, without sense data; where the disk gives
them, each refusal is a CHECK CONDITION that names its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from xenpv.vbd import inquiry, medium
from xenpv.vbd.modesense import mode_sense
from xenpv.vbd.quirks import READ6_ZERO, REPORT_LUNS_255
from xenpv.vbd.request import READ, WRITE
from xenpv.vbd.sense import Sense
from xenpv.vbd.srb import Srb, SrbStatus
from xenpv.vbd.storport import QUEUE_DEPTH

if TYPE_CHECKING:
    from xenpv.vbd.target import Target

# CDB length: the opcodes that have it, first to last.
LENGTHS: Final[Mapping[int, tuple[int, int]]] = {
    6: (0x00, 0x1E),
    10: (0x23, 0x5F),
    12: (0xA0, 0xE7),
    16: (0x80, 0x9F),
}
# CDB length: where the LBA and the count of a transfer lie, big-endian.
FIELDS: Final[Mapping[int, tuple[slice, slice]]] = {
    10: (slice(2, 6), slice(7, 9)),
    12: (slice(2, 6), slice(6, 10)),
    16: (slice(2, 10), slice(10, 14)),
}

U32_MAX: Final = (1 << 32) - 1
U64_MAX: Final = (1 << 64) - 1

REQUEST_SENSE: Final = 0x03
INQUIRY: Final = 0x12
REPORT_LUNS: Final = 0xA0
REQUEST_SENSE_SIZE: Final = 18
LUN_LIST: Final = b"\0\0\0\x08\0\0\0\0"  # one LUN follows
# A unit attention is not told to these (SAM-5 5.14).
UNATTENDED: Final = (REQUEST_SENSE, INQUIRY, REPORT_LUNS)


def execute(target: Target, srb: Srb) -> None:
    """Answer at once, or queue it on the target's rings."""
    cdb = srb.cdb
    if target.attentions and cdb and cdb[0] not in UNATTENDED:
        srb.check_condition(target.attentions.pop(0))
        return
    first, last = LENGTHS.get(len(cdb), (1, 0))
    operation = OPERATIONS.get(cdb[0]) if cdb and first <= cdb[0] <= last else None
    if operation is None:
        target.refuse(srb, Sense.INVALID_OPCODE, SrbStatus.INVALID_REQUEST)
    else:
        operation(target, srb)


def address(cdb: bytes, *, zero_is_256: bool = True) -> tuple[int, int]:
    """LBA and count of sectors; a count of 0 is 256 in a 6-byte CDB only (SBC)."""
    if len(cdb) == 6:
        count = cdb[4] or (256 if zero_is_256 else 0)
        return int.from_bytes(cdb[1:4], "big") & 0x1FFFFF, count
    lba, count_at = FIELDS[len(cdb)]
    return int.from_bytes(cdb[lba], "big"), int.from_bytes(cdb[count_at], "big")


def _reply(target: Target, srb: Srb, data: bytes | None) -> None:
    """SUCCESS with `data`; ERROR without, or where the buffer is too small for it."""
    if data is None or len(data) > srb.data_transfer_length:
        target.refuse(srb, Sense.INVALID_FIELD_IN_CDB)
    else:
        srb.write_data(target.domain, data)
        srb.complete(SrbStatus.SUCCESS)


def _nothing(_target: Target, srb: Srb) -> None:
    srb.complete(SrbStatus.SUCCESS)


def _read(target: Target, srb: Srb) -> None:
    medium.transfer(target, srb, READ, *_extent(target, srb.cdb))


def _write(target: Target, srb: Srb) -> None:
    medium.transfer(target, srb, WRITE, *_extent(target, srb.cdb))


def _extent(target: Target, cdb: bytes) -> tuple[int, int]:
    return address(cdb, zero_is_256=READ6_ZERO not in target.quirks)


def _synchronize_cache(target: Target, srb: Srb) -> None:
    medium.flush(target, srb, *address(srb.cdb))


def _unmap(target: Target, srb: Srb) -> None:
    medium.discard(target, srb, int.from_bytes(srb.cdb[7:9], "big"))


def _inquiry(target: Target, srb: Srb) -> None:
    target.queue.depth = QUEUE_DEPTH
    has_page, page = srb.cdb[1] & 1, srb.cdb[2]
    backend, quirks = target.backend, target.quirks
    if has_page:
        data = inquiry.vital_product_data(backend, target.target_id, page, quirks)
    else:
        data = inquiry.standard(backend, quirks) if not page else None
    _reply(target, srb, data)


def _mode_sense(target: Target, srb: Srb) -> None:
    room = srb.data_transfer_length
    _reply(target, srb, mode_sense(srb.cdb, room, target.backend, target.quirks))


def _request_sense(target: Target, srb: Srb) -> None:
    data = b"\xf0".ljust(REQUEST_SENSE_SIZE, b"\0")
    if target.attentions is not None and srb.data_transfer_length >= REQUEST_SENSE_SIZE:
        data = (target.attentions.pop(0) if target.attentions else Sense.NO_SENSE).data
    _reply(target, srb, data)


def _report_luns(target: Target, srb: Srb) -> None:
    lun = 255 if REPORT_LUNS_255 in target.quirks else 0
    _reply(target, srb, LUN_LIST + lun.to_bytes(8, "big"))


def _read_capacity_10(target: Target, srb: Srb) -> None:
    cdb = srb.cdb
    count = target.sectors
    if not cdb[8] & 1 and int.from_bytes(cdb[2:6], "big"):
        _reply(target, srb, None)
        return
    last = count - 1 if 0 < count <= U32_MAX else U32_MAX
    _reply(target, srb, last.to_bytes(4, "big") + target.sector_size.to_bytes(4, "big"))


def _read_capacity_16(target: Target, srb: Srb) -> None:
    cdb = srb.cdb
    if not cdb[14] & 1 and int.from_bytes(cdb[2:10], "big"):
        _reply(target, srb, None)
        return
    last = (target.sectors - 1) & U64_MAX
    data = last.to_bytes(8, "big") + target.sector_size.to_bytes(4, "big")
    if srb.data_transfer_length == 32:
        ratio = target.backend.physical_sector_size // target.sector_size
        data = (data + bytes((0, ratio.bit_length() - 1))).ljust(32, b"\0")
    _reply(target, srb, data)


OPERATIONS: Final[Mapping[int, Callable[[Target, Srb], None]]] = {
    0x00: _nothing,  # TEST UNIT READY
    REQUEST_SENSE: _request_sense,
    0x08: _read,
    0x0A: _write,
    INQUIRY: _inquiry,
    0x16: _nothing,  # RESERVE(6)
    0x17: _nothing,  # RELEASE(6)
    0x1A: _mode_sense,
    0x1B: _nothing,  # START STOP UNIT
    0x1E: _nothing,  # PREVENT ALLOW MEDIUM REMOVAL
    0x25: _read_capacity_10,
    0x28: _read,
    0x2A: _write,
    0x2F: _nothing,  # VERIFY(10)
    0x35: _synchronize_cache,
    0x42: _unmap,
    0x56: _nothing,  # RESERVE(10)
    0x57: _nothing,  # RELEASE(10)
    0x5A: _mode_sense,
    0x88: _read,
    0x8A: _write,
    0x8F: _nothing,  # VERIFY(16)
    0x91: _synchronize_cache,
    0x9E: _read_capacity_16,
    REPORT_LUNS: _report_luns,
    0xA8: _read,
    0xAA: _write,
}
