"""Commands that a disk of the guest is given, as CDBs and their data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from xenpv.vbd import commands, unmap

if TYPE_CHECKING:
    from xenpv.vbd.disk import Disk
    from xenpv.vbd.pending import Pending


@attrs.frozen
class ScsiCommand:
    """`cdb` with a buffer of `reply_size` bytes, or with `data`; `name` is for people."""

    name: str
    cdb: bytes
    reply_size: int = 0
    data: bytes = b""

    def start(self, disk: Disk) -> Pending:
        """Submit it as an SRB of its own."""
        return disk.start_command(self.cdb, self.reply_size, data=self.data, what=self.name)


def srbs(
    *, sectors: int = 2048, sector_size: int = 512, count_max: int = 64, hostile: bool = False
) -> SearchStrategy[ScsiCommand]:
    """Reads, writes, unmaps and inquiries of a disk of `sectors`; `hostile`: any CDB too, and
    sectors beyond the end.
    """
    beyond = count_max if hostile else -count_max
    lba = st.integers(0, max(0, sectors + beyond))
    count = st.integers(1, count_max)
    reads = st.tuples(lba, count).map(
        lambda one: ScsiCommand(
            f"read {one}", commands.transfer(*one, writes=False), one[1] * sector_size
        )
    )
    writes = st.tuples(lba, count, st.integers(0, 255)).map(
        lambda one: ScsiCommand(
            f"write {one}",
            commands.transfer(one[0], one[1], writes=True),
            data=bytes([one[2]]) * (one[1] * sector_size),
        )
    )
    ranges = st.lists(st.tuples(lba, count), min_size=1, max_size=4)
    unmaps = ranges.map(
        lambda some: ScsiCommand(
            f"unmap {some}", unmap.cdb(len(unmap.build(some))), data=unmap.build(some)
        )
    )
    fixed = st.sampled_from(
        [
            ScsiCommand("test unit ready", commands.TEST_UNIT_READY),
            ScsiCommand("flush", commands.SYNCHRONIZE_CACHE),
            ScsiCommand("read capacity", commands.READ_CAPACITY_16, 32),
            ScsiCommand("report luns", commands.REPORT_LUNS, 16),
            ScsiCommand("inquiry", commands.inquiry(None), 255),
            ScsiCommand("request sense", commands.REQUEST_SENSE, 18),
        ]
    )
    if not hostile:
        return reads | writes | unmaps | fixed
    any_cdb = st.tuples(st.binary(min_size=1, max_size=16), st.integers(0, 512))
    bytes_of = any_cdb.map(lambda one: ScsiCommand(f"cdb {one[0].hex()}", *one))
    return reads | writes | unmaps | fixed | bytes_of
