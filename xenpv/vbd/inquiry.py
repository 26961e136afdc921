"""INQUIRY data and vital product data pages, byte for byte (win-xenvbd target.c)."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Final

from xenpv.vbd.backend import Backend
from xenpv.vbd.quirks import B0_BYTES, READ_ONLY_CD

# Version 4 (SPC-2), response format 2, 32 more bytes, CmdQue; XENSRC, PVDISK, 2.0.
STANDARD: Final = bytes.fromhex("0402200000 02") + b"XENSRC  " + b"PVDISK          " + b"2.0 "
REMOVABLE: Final = 0x80
CD_ROM: Final = 0x05  # peripheral device type

SUPPORTED_PAGES: Final = bytes((0x00, 0x80, 0x83, 0xB0, 0xB1))
BLOCK_LIMITS_LENGTH: Final = 0x3C
UGAVALID: Final = 1 << 31
U32_MAX: Final = (1 << 32) - 1


def standard(backend: Backend, quirks: AbstractSet[str]) -> bytes:
    """36 bytes. A read-only disk stays a disk; MODE SENSE tells that it is protected."""
    kind = CD_ROM if backend.is_readonly and READ_ONLY_CD in quirks else 0
    return bytes((kind, REMOVABLE if backend.is_removable_medium else 0)) + STANDARD


def vital_product_data(
    backend: Backend, target_id: int, code: int, quirks: AbstractSet[str]
) -> bytes | None:
    """The page of that code, whole; None if there is no such page."""
    override = backend.pages.get(code)
    if override is not None:
        return override
    if code == 0x00:
        return _page(code, SUPPORTED_PAGES)
    if code == 0x80:
        return _page(code, b"%04u" % target_id)
    if code == 0x83:
        # ASCII, by T10 vendor identification.
        identifier = b"XENSRC  %08u" % target_id
        return _page(code, bytes((2, 1, 0, len(identifier))) + identifier)
    if code == 0xB0:
        return _page(code, _block_limits(backend, quirks))
    if code == 0xB1:
        return _page(code, b"\0\x01".ljust(BLOCK_LIMITS_LENGTH, b"\0"))  # does not rotate
    return None


def _page(code: int, content: bytes) -> bytes:
    return bytes((0, code, 0, len(content))) + content


def _block_limits(backend: Backend, quirks: AbstractSet[str]) -> bytes:
    """The unmap granularity and its alignment, in logical sectors as SBC has them."""
    unit = 1 if B0_BYTES in quirks else backend.sector_size
    granularity = min(backend.discard_granularity // unit, U32_MAX)
    alignment = min(backend.discard_alignment // unit, UGAVALID - 1)
    if granularity:
        alignment |= UGAVALID
    head = bytes(24) + granularity.to_bytes(4, "big") + alignment.to_bytes(4, "big")
    return head.ljust(BLOCK_LIMITS_LENGTH, b"\0")
