"""MODE SENSE data: header, an empty block descriptor, two pages (win-xenvbd target.c)."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Final

from xenpv.vbd.backend import Backend
from xenpv.vbd.quirks import MODE_PAGE_LENGTH

WRITE_PROTECTED: Final = 0x80  # of the device-specific parameter
DESCRIPTOR_SIZE: Final = 8
CACHING: Final = 0x08
INFORMATIONAL_EXCEPTIONS: Final = 0x1C
ALL_PAGES: Final = 0x3F
WCE: Final = 0x04
DEXCPT: Final = 0x08
PAGE_BYTES: Final = 10  # after a page's code and length
PAGE_BYTES_SAID: Final = 12  # by the driver, which counts those two as well


def mode_sense(cdb: bytes, room: int, backend: Backend, quirks: AbstractSet[str]) -> bytes | None:
    """What fits of it into `room` bytes; None: not even the header does."""
    is_long = len(cdb) == 10
    header = 8 if is_long else 4
    room -= header
    if room < 0:
        return None
    descriptor = b"" if cdb[1] & 8 or room < DESCRIPTOR_SIZE else bytes(DESCRIPTOR_SIZE)
    data = descriptor
    for page in _pages(cdb[2] & 0x3F, backend, quirks):
        if len(data) + len(page) <= room:
            data += page
    total = header + len(data)
    protected = WRITE_PROTECTED if backend.is_readonly else 0
    if is_long:
        head = (total - 2).to_bytes(2, "big") + bytes((0, protected, 0, 0))
        head += len(descriptor).to_bytes(2, "big")
    else:
        head = bytes((total - 1, 0, protected, len(descriptor)))
    return head + data


def _pages(page: int, backend: Backend, quirks: AbstractSet[str]) -> list[bytes]:
    contents = {
        CACHING: WCE if backend.flush_cache else 0,
        INFORMATIONAL_EXCEPTIONS: DEXCPT,
    }
    length = PAGE_BYTES_SAID if MODE_PAGE_LENGTH in quirks else PAGE_BYTES
    return [
        bytes((code, length, byte)).ljust(2 + PAGE_BYTES, b"\0")
        for code, byte in contents.items()
        if page in (code, ALL_PAGES)
    ]
