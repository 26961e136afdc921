"""What the crash driver reads of its backend (xencrsh frontend.c, pdo-inquiry.c)."""

from __future__ import annotations

import base64
import binascii
from typing import Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.errors import StoreError
from xenpv.vbd.crash.failure import CrashError
from xenpv.vbd.crash.store import LOST, CrashStore
from xenpv.vbd.units import SPEC2024, SectorUnits
from xenpv.xen.domain import PAGE_SIZE

SECTOR: Final = 512
VDISK_READONLY: Final[int] = lib.VDISK_READONLY
U64_MAX: Final = (1 << 64) - 1
DIGITS_MAX: Final = 20
PAGES: Final = "sm-data/scsi/0x12"
PAGES_MAX: Final = 255
STANDARD: Final = 0  # the code that the standard page is kept under; VPD page 0 is made


def number(text: str | None, default: int) -> int:
    """Leading decimal digits, at most 2^64 - 1; 0 without any, `default` without a text."""
    if text is None:
        return default
    end = 0
    while end < len(text) and text[end] in "0123456789":
        end += 1
    digits = text[:end].lstrip("0")
    return min(int(digits or "0"), U64_MAX) if len(digits) <= DIGITS_MAX else U64_MAX


def page_code(name: str) -> int | None:
    """The page that a node's name stands for: STANDARD, or its code; None: no page."""
    if name == "default":
        return STANDARD
    base, digits = (16, name[2:]) if name.startswith("0x") else (10, name)
    try:
        code = int(digits, base) if digits.isalnum() and len(digits) < 4 else 0
    except ValueError:
        return None
    return code if 0 < code < 256 else None


def decoded(text: str | None) -> bytes | None:
    """A page from its base64; None if it is none."""
    try:
        return base64.b64decode(text or "", validate=True) or None
    except (binascii.Error, ValueError):
        return None


@attrs.define(eq=False)
class CrashBackend:
    """`capacity` counts logical sectors. A feature counts only where its key is 1."""

    units: SectorUnits = SPEC2024
    barrier: bool = False
    flush_cache: bool = False
    info: int = 0
    sector_size: int = SECTOR
    capacity: int = 0
    pages: dict[int, bytes] = attrs.Factory(dict)

    @property
    def is_readonly(self) -> bool:
        return bool(self.info & VDISK_READONLY)

    def read_features(self, store: CrashStore, path: str) -> None:
        """How a flush is asked for."""
        self.barrier = number(store.read(f"{path}/feature-barrier"), 0) == 1
        self.flush_cache = number(store.read(f"{path}/feature-flush-cache"), 0) == 1

    def read_disk(self, store: CrashStore, path: str) -> None:
        """Once the backend is Connected. CrashError for a disk that cannot be."""
        self.info = number(store.read(f"{path}/info"), 0) & 0xFFFF_FFFF
        size = number(store.read(f"{path}/sector-size"), SECTOR)
        sectors = number(store.read(f"{path}/sectors"), 0)
        if not SECTOR <= size <= PAGE_SIZE or size & (size - 1):
            raise CrashError(f"sector-size is {size}: expected 512 to 4096")
        nr_bytes = sectors * self.units.disk_unit(size)
        if nr_bytes > U64_MAX:
            raise CrashError(f"sectors is {sectors}: no disk is that large")
        self.sector_size, self.capacity = size, nr_bytes // size

    def read_pages(self, store: CrashStore, path: str) -> None:
        """INQUIRY pages that the host dictates; a node that is no page is left out."""
        try:
            names = store.directory(f"{path}/{PAGES}")
        except StoreError as error:
            if error.name in LOST:
                raise
            return
        for name in names[:PAGES_MAX]:
            code = page_code(name)
            page = None if code is None else decoded(store.read(f"{path}/{PAGES}/{name}"))
            if code is not None and page is not None:
                self.pages[code] = page
