"""Command descriptor blocks: what each opcode does to a target (win-xenvbd target.c).

A reply's length is the driver's own, whatever the CDB allocates; the buffer is zeroed
first. No CHECK CONDITION and no sense data: an SRB is SUCCESS, ERROR or INVALID_REQUEST.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from xenpv.vbd import inquiry
from xenpv.vbd.request import READ, WRITE
from xenpv.vbd.srb import Srb, SrbStatus

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

WRITE_PROTECTED: Final = 0x80  # of the mode parameter header
CACHING: Final = 0x08
INFORMATIONAL_EXCEPTIONS: Final = 0x1C
ALL_PAGES: Final = 0x3F
WCE: Final = 0x04
DEXCPT: Final = 0x08
MODE_PAGE_LENGTH: Final = 0x0A  # the driver says 0C, and then has 10 bytes

REQUEST_SENSE_SIZE: Final = 18
REPORT_LUNS_SIZE: Final = 16


def execute(target: Target, srb: Srb) -> None:
    """Answer at once, or queue it on the target's rings."""
    cdb = srb.cdb
    first, last = LENGTHS.get(len(cdb), (1, 0))
    operation = OPERATIONS.get(cdb[0]) if cdb and first <= cdb[0] <= last else None
    if operation is None:
        srb.complete(SrbStatus.INVALID_REQUEST)
    else:
        operation(target, srb)


def address(cdb: bytes) -> tuple[int, int]:
    """LBA and count of sectors; a count of 0 is 256 in a 6-byte CDB only (SBC)."""
    if len(cdb) == 6:
        return int.from_bytes(cdb[1:4], "big") & 0x1FFFFF, cdb[4] or 256
    lba, count = FIELDS[len(cdb)]
    return int.from_bytes(cdb[lba], "big"), int.from_bytes(cdb[count], "big")


def _reply(target: Target, srb: Srb, data: bytes | None) -> None:
    """SUCCESS with `data`; ERROR without, or where the buffer is too small for it."""
    if data is None or len(data) > srb.data_transfer_length:
        srb.complete(SrbStatus.ERROR)
    else:
        srb.write_data(target.domain, data)
        srb.complete(SrbStatus.SUCCESS)


def _nothing(_target: Target, srb: Srb) -> None:
    srb.complete(SrbStatus.SUCCESS)


def _read(target: Target, srb: Srb) -> None:
    target.transfer(srb, READ, *address(srb.cdb))


def _write(target: Target, srb: Srb) -> None:
    target.transfer(srb, WRITE, *address(srb.cdb))


def _synchronize_cache(target: Target, srb: Srb) -> None:
    target.flush(srb)


def _unmap(target: Target, srb: Srb) -> None:
    target.unmap(srb, int.from_bytes(srb.cdb[7:9], "big"))


def _inquiry(target: Target, srb: Srb) -> None:
    has_page, page = srb.cdb[1] & 1, srb.cdb[2]
    if has_page:
        data = inquiry.vital_product_data(target.backend, target.target_id, page)
    else:
        data = inquiry.standard(target.backend) if not page else None
    _reply(target, srb, data)


def _request_sense(target: Target, srb: Srb) -> None:
    _reply(target, srb, b"\xf0".ljust(REQUEST_SENSE_SIZE, b"\0"))


def _report_luns(target: Target, srb: Srb) -> None:
    # A list of 8 bytes: LUN 0.
    _reply(target, srb, b"\0\0\0\x08".ljust(REPORT_LUNS_SIZE, b"\0"))


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


def _mode_sense(target: Target, srb: Srb) -> None:
    cdb = srb.cdb
    is_long = len(cdb) == 10
    header = 8 if is_long else 4
    room = srb.data_transfer_length - header
    if room < 0:
        _reply(target, srb, None)
        return
    descriptor = b"" if cdb[1] & 8 or room < 8 else bytes(8)
    data = descriptor
    for page in _mode_pages(target, cdb[2] & 0x3F):
        if len(data) + len(page) <= room:
            data += page
    total = header + len(data)
    protected = WRITE_PROTECTED if target.backend.is_readonly else 0
    if is_long:
        head = (total - 2).to_bytes(2, "big") + bytes((0, protected, 0, 0))
        head += len(descriptor).to_bytes(2, "big")
    else:
        head = bytes((total - 1, 0, protected, len(descriptor)))
    _reply(target, srb, head + data)


def _mode_pages(target: Target, page: int) -> list[bytes]:
    contents = {
        CACHING: WCE if target.backend.flush_cache else 0,
        INFORMATIONAL_EXCEPTIONS: DEXCPT,
    }
    return [
        bytes((code, MODE_PAGE_LENGTH, byte)).ljust(2 + MODE_PAGE_LENGTH, b"\0")
        for code, byte in contents.items()
        if page in (code, ALL_PAGES)
    ]


OPERATIONS: Final[Mapping[int, Callable[[Target, Srb], None]]] = {
    0x00: _nothing,  # TEST UNIT READY
    0x03: _request_sense,
    0x08: _read,
    0x0A: _write,
    0x12: _inquiry,
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
    0xA0: _report_luns,
    0xA8: _read,
    0xAA: _write,
}
