"""What a ring is asked to do, and what lies in a slot of it (win-xenvbd ring.c, XENVBD_REQUEST)."""

from __future__ import annotations

from typing import Final

import attrs

from xenpv.abi.blkif import BLKIF_OP, BLKIF_RSP
from xenpv.vbd.blkif import ID_AT
from xenpv.vbd.bounce import Bounce, Retired
from xenpv.vbd.segments import Segments
from xenpv.vbd.srb import Srb

READ: Final = int(BLKIF_OP.READ)
WRITE: Final = int(BLKIF_OP.WRITE)
WRITE_BARRIER: Final = int(BLKIF_OP.WRITE_BARRIER)
FLUSH_DISKCACHE: Final = int(BLKIF_OP.FLUSH_DISKCACHE)
DISCARD: Final = int(BLKIF_OP.DISCARD)
INDIRECT: Final = int(BLKIF_OP.INDIRECT)
OKAY: Final = int(BLKIF_RSP.OKAY)
EOPNOTSUPP: Final = int(BLKIF_RSP.EOPNOTSUPP)

SECTOR_SHIFT: Final = 9  # sectors of parts and requests are of 512 bytes, whatever the wire counts


@attrs.define(eq=False)
class Part:
    """What one SRB asks of one range: sectors of 512 bytes.

    `offset`: where its data begins in the SRB's buffer, in bytes. A flush has neither data nor
    `nr_sectors`.
    """

    srb: Srb
    operation: int
    sector: int = 0
    nr_sectors: int = 0
    offset: int = 0

    def after(self, nr_sectors: int) -> Part:
        """What is left without its first sectors."""
        return Part(
            self.srb,
            self.operation,
            self.sector + nr_sectors,
            self.nr_sectors - nr_sectors,
            self.offset + (nr_sectors << SECTOR_SHIFT),
        )


@attrs.define(eq=False)
class Request:
    """One slot's worth, prepared: `operation` is what it does, also where the slot is indirect."""

    srb: Srb
    operation: int
    id: int
    slot: bytes
    sector: int = 0
    nr_sectors: int = 0
    offset: int = 0
    segments: Segments | None = None
    indirect: list[tuple[int, int]] = attrs.Factory(list)  # (ref, pfn) of the segment pages

    def place(self, index: int) -> None:
        """Its id is a place in the ring's shadow from now on."""
        self.id = index
        slot = self.slot
        self.slot = slot[:ID_AT] + index.to_bytes(8, "little") + slot[ID_AT + 8 :]

    def release(self, bounce: Bounce, retired: Retired | None = None) -> bool:
        """Take its grants back; False if the backend still maps a page that it should not."""
        clean = True
        for ref, pfn in self.indirect:
            clean = bounce.put(ref, pfn, retired) and clean
        self.indirect.clear()
        segments, self.segments = self.segments, None
        if segments is not None:
            clean = segments.release(bounce, retired) and clean
        return clean

    def part(self) -> Part:
        """The same again, for another ring or backend."""
        return Part(self.srb, self.operation, self.sector, self.nr_sectors, self.offset)
