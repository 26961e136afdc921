"""CDBs that a class driver sends, and what their replies say (SBC-3, SPC-4)."""

from __future__ import annotations

from typing import Final

from xenpv.errors import LocalProtocolError

TEST_UNIT_READY: Final = bytes(6)
REQUEST_SENSE: Final = bytes((0x03, 0, 0, 0, 18, 0))
SYNCHRONIZE_CACHE: Final = bytes((0x35,)).ljust(10, b"\0")
READ_CAPACITY_16: Final = bytes((0x9E, 0x10)).ljust(13, b"\0") + bytes((32, 0, 0))
REPORT_LUNS: Final = bytes((0xA0,)).ljust(9, b"\0") + bytes((16, 0, 0))
READ_10: Final = 0x28
WRITE_10: Final = 0x2A
READ_16: Final = 0x88
WRITE_16: Final = 0x8A

U16_MAX: Final = (1 << 16) - 1
U32_MAX: Final = (1 << 32) - 1
U64_MAX: Final = (1 << 64) - 1


def transfer(lba: int, count: int, *, writes: bool) -> bytes:
    """READ or WRITE, of 10 bytes where LBA and count fit, else of 16."""
    if lba <= U32_MAX and count <= U16_MAX:
        head = bytes((WRITE_10 if writes else READ_10, 0))
        return head + lba.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"
    if lba > U64_MAX:
        raise LocalProtocolError(f"sector {lba}")
    head = bytes((WRITE_16 if writes else READ_16, 0))
    return head + lba.to_bytes(8, "big") + count.to_bytes(4, "big") + b"\0\0"


def inquiry(page: int | None) -> bytes:
    return bytes((0x12, page is not None, page or 0, 0, 255, 0))


def mode_sense(page: int, *, descriptor: bool, long: bool) -> bytes:
    """MODE SENSE(10) if `long`, else (6)."""
    head = bytes((0x5A if long else 0x1A, 0 if descriptor else 8, page & 0x3F))
    return head + (bytes((0, 0, 0, 0, 0, 255, 0)) if long else bytes((0, 255, 0)))


def luns(reply: bytes) -> list[int]:
    """The LUNs of a REPORT LUNS reply: 64 bits each, as they stand there."""
    end = 8 + int.from_bytes(reply[:4], "big")
    return [int.from_bytes(reply[at : at + 8], "big") for at in range(8, end, 8)]
