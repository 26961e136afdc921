"""What the crash driver answers to commands that move no sectors (xencrsh pdo.c).

A dump stack asks little. A reply is cut to the buffer, and to the CDB's allocation length
where the original looks at that; what it does not know stays INVALID_REQUEST.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import attrs

from xenpv.vbd.crash.backend import STANDARD, CrashBackend
from xenpv.vbd.quirks import (
    CRASH_READ_ONLY,
    CRASH_REPORT_LUNS,
    MODE_PAGE_LENGTH,
    READ6_ZERO,
)
from xenpv.vbd.srb import Srb, SrbStatus
from xenpv.xen.domain import Domain

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
READS: Final = (0x08, 0x28, 0x88, 0xA8)
WRITES: Final = (0x0A, 0x2A, 0x8A, 0xAA)
SYNCHRONIZE_CACHE: Final = (0x35, 0x91)
# TEST UNIT READY, START STOP UNIT, PREVENT ALLOW MEDIUM REMOVAL, RESERVE, RELEASE, VERIFY.
NOTHING: Final = (0x00, 0x1B, 0x1E, 0x16, 0x56, 0x17, 0x57, 0x2F, 0x8F)

U32_MAX: Final = (1 << 32) - 1
U64_MAX: Final = (1 << 64) - 1
INQUIRY_STANDARD: Final = (
    bytes.fromhex("0000040220000002") + b"XENSRC  " + b"PVDISK          " + b"2.0 "
)
CDB_SIZE: Final = 6  # of MODE SENSE: what the original takes for the least buffer
WRITE_PROTECTED: Final = 0x80
CACHING: Final = 0x08
CACHING_SIZE: Final = 20  # MODE_CACHING_PAGE with the fields of SCSI-3
INFORMATIONAL_EXCEPTIONS: Final = 0x1C
INFORMATIONAL_EXCEPTIONS_SIZE: Final = 12
DEXCPT: Final = 0x08
ALL_PAGES: Final = 0x3F
PAGE_HEADER: Final = 2  # of a mode page: code and length
LUNS_MAX: Final = 128  # XENVBD_MAX_TARGETS, which the original takes for a LUN


@attrs.frozen
class Asked:
    """One command: whose it is and what it may have as a reply."""

    domain: Domain
    backend: CrashBackend
    srb: Srb
    quirks: frozenset[str]


def opcode(cdb: bytes) -> int | None:
    """The operation; None where the CDB's length is not that of its class."""
    first, last = LENGTHS.get(len(cdb), (1, 0))
    return cdb[0] if cdb and first <= cdb[0] <= last else None


def address(cdb: bytes, quirks: frozenset[str]) -> tuple[int, int]:
    """LBA and count of sectors; 0 is 256 in a 6-byte CDB only (SBC)."""
    if len(cdb) == 6:
        count = cdb[4] if READ6_ZERO in quirks else cdb[4] or 256
        return int.from_bytes(cdb[1:4], "big") & 0x1FFFFF, count
    lba, count_at = FIELDS[len(cdb)]
    return int.from_bytes(cdb[lba], "big"), int.from_bytes(cdb[count_at], "big")


def execute(asked: Asked) -> None:
    """Complete the SRB, at once."""
    operation = opcode(asked.srb.cdb)
    answer = None if operation is None else ANSWERS.get(operation)
    if operation in NOTHING:
        asked.srb.complete(SrbStatus.SUCCESS)
    elif answer is None:
        asked.srb.complete(SrbStatus.INVALID_REQUEST)
    else:
        answer(asked)


def _reply(asked: Asked, data: bytes) -> None:
    srb = asked.srb
    srb.write_data(asked.domain, data[: srb.data_transfer_length])
    srb.complete(SrbStatus.SUCCESS)


def _inquiry(asked: Asked) -> None:
    cdb, pages = asked.srb.cdb, asked.backend.pages
    has_page, code = cdb[1] & 1, cdb[2]
    if not has_page:
        data = pages.get(STANDARD, INQUIRY_STANDARD) if not code else None
    elif code:
        data = pages.get(code, _VPD.get(code))
    else:
        codes = [*_VPD, *(one for one in sorted(pages) if one and one not in _VPD)]
        data = bytes((0, 0, 0, len(codes) + 1, 0, *codes))
    if data is None:
        asked.srb.complete(SrbStatus.INVALID_REQUEST)
    else:
        _reply(asked, data)


# Where the host dictates none: a serial number of one blank, and no identifier.
_VPD: Final[Mapping[int, bytes]] = {0x80: b"\0\x80\0\x01 ", 0x83: b"\0\x83\0\0"}


def _mode_sense(asked: Asked) -> None:
    srb, cdb = asked.srb, asked.srb.cdb
    if srb.data_transfer_length < CDB_SIZE:
        srb.data_transfer_length = 0
        srb.complete(SrbStatus.DATA_OVERRUN)
        return
    room = min(cdb[4], srb.data_transfer_length)
    descriptor = b"" if cdb[1] & 8 or room < 4 + 8 else bytes(8)
    data = descriptor
    for page in _mode_pages(cdb[2] & 0x3F, asked.quirks):
        if 4 + len(data) + len(page) <= room:
            data += page
    protected = asked.backend.is_readonly and CRASH_READ_ONLY not in asked.quirks
    head = bytes((3 + len(data), 0, WRITE_PROTECTED if protected else 0, len(descriptor)))
    _reply(asked, (head + data)[:room])


def _mode_pages(wanted: int, quirks: frozenset[str]) -> list[bytes]:
    over = 0 if MODE_PAGE_LENGTH in quirks else PAGE_HEADER
    pages = {
        CACHING: bytes((CACHING, CACHING_SIZE - over)).ljust(CACHING_SIZE, b"\0"),
        INFORMATIONAL_EXCEPTIONS: bytes(
            (INFORMATIONAL_EXCEPTIONS, INFORMATIONAL_EXCEPTIONS_SIZE - over, DEXCPT)
        ).ljust(INFORMATIONAL_EXCEPTIONS_SIZE, b"\0"),
    }
    return [page for code, page in pages.items() if wanted in (code, ALL_PAGES)]


def _request_sense(asked: Asked) -> None:
    _reply(asked, b"\xf0".ljust(18, b"\0"))


def _report_luns(asked: Asked) -> None:
    room = int.from_bytes(asked.srb.cdb[6:10], "big")
    if CRASH_REPORT_LUNS in asked.quirks:
        luns = bytes(8) + bytes((LUNS_MAX,)).ljust(8, b"\0")
        luns = luns[: max(0, room - 8) // 8 * 8]
        _reply(asked, (len(luns).to_bytes(4, "big") + bytes(4) + luns)[:room])
        srb = asked.srb  # the header is not counted
        srb.data_transfer_length = min(len(luns), srb.data_transfer_length)
        return
    _reply(asked, (b"\0\0\0\x08".ljust(8, b"\0") + bytes(8))[:room])


def _read_capacity_10(asked: Asked) -> None:
    count = asked.backend.capacity
    last = count - 1 if 0 < count <= U32_MAX else U32_MAX
    _reply(asked, last.to_bytes(4, "big") + asked.backend.sector_size.to_bytes(4, "big"))


def _read_capacity_16(asked: Asked) -> None:
    last = (asked.backend.capacity - 1) & U64_MAX
    _reply(asked, last.to_bytes(8, "big") + asked.backend.sector_size.to_bytes(4, "big"))


ANSWERS: Final[Mapping[int, Callable[[Asked], None]]] = {
    0x03: _request_sense,
    0x12: _inquiry,
    0x1A: _mode_sense,
    0x25: _read_capacity_10,
    0x9E: _read_capacity_16,
    0xA0: _report_luns,
}
