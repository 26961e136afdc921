"""What XenVbd reads of its backend (win-xenvbd frontend.c, ReadFeatures and ReadDiskInfo).

A key that is missing leaves the value that was there; text that is no number is 0. Values of the
registry stand in for keys. The backend is not trusted: a disk of a size that cannot be is a
PeerProtocolError.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Container
from typing import Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.bus.store import StoreInterface
from xenpv.errors import PeerProtocolError, StoreError
from xenpv.vbd.parameters import DEFAULTS, Parameters
from xenpv.vbd.units import SECTOR
from xenpv.xen.domain import PAGE_SIZE

VDISK_CDROM: Final[int] = lib.VDISK_CDROM
VDISK_REMOVABLE: Final[int] = lib.VDISK_REMOVABLE
VDISK_READONLY: Final[int] = lib.VDISK_READONLY

U32_MAX: Final = (1 << 32) - 1
U64_MAX: Final = (1 << 64) - 1
# b64decode itself takes some texts with a padding that is too long.
BASE64: Final = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
NUMBER: Final = re.compile(r"[ \t\n\v\f\r]*([+-]?)([0-9]+)")
# 8 pages of segments; no backend may make the frontend build more.
INDIRECT_SEGMENTS_MAX: Final[int] = lib.BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST * PAGE_SIZE // 8
DISK_KEYS: Final = ("info", "sector-size", "physical-sector-size", "sectors")
# XenServer's storage manager: whole VPD pages in base64, by page code.
OVERRIDES: Final = {0x80: "sm-data/scsi/0x12/0x80", 0x83: "sm-data/scsi/0x12/0x83"}


def number(text: str, most: int = U32_MAX) -> int:
    """strtoul in base 10, of a ULONG or a ULONG64: blanks, a sign, digits; no digits are 0.

    More than `most` is that; a minus counts down from its end, as in C.
    """
    found = NUMBER.match(text)
    if found is None:
        return 0
    value = int(found[2][:40])
    if value > most:
        return most
    return -value & most if found[1] == "-" else value


def page(text: str) -> bytes | None:
    """A VPD page from its base64; None if the text is none."""
    return base64.b64decode(text) or None if BASE64.fullmatch(text) else None


@attrs.define(eq=False)
class Backend:
    """The backend's keys as read last, those of `parameters` instead where it has them.

    `sectors` count what `parameters.units` says, `capacity` logical sectors.
    """

    parameters: Parameters = DEFAULTS
    removable: bool = False
    indirect_segments: int = 0
    persistent: bool = False  # it keeps grants mapped, if the frontend does
    max_queues: int = 1
    max_ring_page_order: int = 0
    barrier: bool = False
    flush_cache: bool = False
    discard: bool = False
    discard_secure: bool = False
    discard_granularity: int = 0  # bytes, as discard_alignment
    discard_alignment: int = 0
    info: int = 0
    sectors: int = 0
    sector_size: int = SECTOR
    physical_sector_size: int = SECTOR
    pages: dict[int, bytes] = attrs.Factory(dict)  # VPD pages that the host dictates

    @property
    def is_readonly(self) -> bool:
        return bool(self.info & VDISK_READONLY)

    @property
    def is_removable_medium(self) -> bool:
        return bool(self.info & (VDISK_CDROM | VDISK_REMOVABLE))

    @property
    def capacity(self) -> int:
        """In logical sectors."""
        if self.parameters.units.disk:
            return self.sectors
        return self.sectors * SECTOR // self.sector_size

    def read_features(self, store: StoreInterface, path: str) -> None:
        """At InitWait, before rings are built.

        Another host's indirect requests may be known to this one or not: unlike in the driver,
        a key that is missing here stands for none.
        """
        names = store.directory(path)
        self.removable = self.persistent = False
        self.indirect_segments = 0
        self._read_early(store, path, names)
        queues = self._read(store, path, "multi-queue-max-queues", names, 1)
        self.max_queues = max(1, queues)
        self.max_ring_page_order = self._read(store, path, "max-ring-page-order", names, 0)

    def _read_early(self, store: StoreInterface, path: str, names: Container[str]) -> None:
        self.removable = self._flag(store, path, "removable", names, self.removable)
        key = "feature-max-indirect-segments"
        most = self._read(store, path, key, names, self.indirect_segments)
        self.indirect_segments = min(most, INDIRECT_SEGMENTS_MAX)
        if self.parameters.persistent:
            self.persistent = self._flag(store, path, "feature-persistent", names, self.persistent)

    def read_connected(self, store: StoreInterface, path: str) -> None:
        """Once the backend is Connected: everything it says then."""
        names = store.directory(path)
        self._read_early(store, path, names)
        self._read_disk(store, path, names)
        self.barrier = self._flag(store, path, "feature-barrier", names, self.barrier)
        self.flush_cache = self._flag(store, path, "feature-flush-cache", names, self.flush_cache)
        self._read_discard(store, path, names)
        if "sm-data" in names:
            self._read_overrides(store, path)

    def _read_discard(self, store: StoreInterface, path: str, names: Container[str]) -> None:
        """The toolstack may forbid what the backend can do."""
        self.discard = self._flag(
            store, path, "feature-discard", names, self.discard
        ) and self._flag(store, path, "discard-enable", names, True)
        if self.discard:
            self.discard_secure = self._flag(
                store, path, "discard-secure", names, self.discard_secure
            )
            self.discard_granularity = self._read(
                store, path, "discard-granularity", names, self.sector_size
            )
            self.discard_alignment = self._read(store, path, "discard-alignment", names, 0)

    def read_disk(self, store: StoreInterface, path: str) -> None:
        """Whenever the backend changed something: its size may be new."""
        self._read_disk(store, path, DISK_KEYS)

    def _read_disk(self, store: StoreInterface, path: str, names: Container[str]) -> None:
        info = _read(store, path, "info", names, self.info)
        sector_size = _read(store, path, "sector-size", names, self.sector_size)
        physical = _read(store, path, "physical-sector-size", names, self.physical_sector_size)
        sectors = _read(store, path, "sectors", names, self.sectors, U64_MAX)
        if not SECTOR <= sector_size <= PAGE_SIZE or sector_size & (sector_size - 1):
            raise PeerProtocolError(f"sector-size is {sector_size}: expected 512 to 4096")
        if sectors * self.parameters.units.disk_unit(sector_size) > U64_MAX:
            raise PeerProtocolError(f"sectors is {sectors}: no disk is that large")
        if physical < sector_size or physical & (physical - 1) or physical > sector_size << 15:
            physical = sector_size
        self.info, self.sectors = info, sectors
        self.sector_size, self.physical_sector_size = sector_size, physical

    def _read_overrides(self, store: StoreInterface, path: str) -> None:
        for code, key in OVERRIDES.items():
            try:
                text = store.get(f"{path}/{key}")
            except StoreError:
                continue
            found = None if text is None else page(text)
            if found is not None:
                self.pages[code] = found

    def forget_features(self) -> None:
        """At a disconnect; sizes, removable and indirect stay as they were."""
        self.barrier = self.flush_cache = self.discard = self.discard_secure = False
        self.discard_granularity = self.discard_alignment = 0
        self.pages.clear()

    def _read(
        self, store: StoreInterface, path: str, key: str, names: Container[str], default: int
    ) -> int:
        """A key that the registry may stand in for."""
        for name, value in self.parameters.overrides:
            if name == key:
                return value & U32_MAX
        return _read(store, path, key, names, default)

    def _flag(
        self, store: StoreInterface, path: str, key: str, names: Container[str], default: bool
    ) -> bool:
        return self._read(store, path, key, names, default) != 0


def _read(
    store: StoreInterface,
    path: str,
    key: str,
    names: Container[str],
    default: int,
    most: int = U32_MAX,
) -> int:
    if key not in names:
        return default
    try:
        text = store.get(f"{path}/{key}")
    except StoreError:
        return default
    return default if text is None else number(text, most)
