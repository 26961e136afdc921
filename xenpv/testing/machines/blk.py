"""A disk: sectors written are sectors read, whatever lies between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import attrs
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from xenpv.abi.blkif import BLKIF_OP
from xenpv.host.image import MemoryImage
from xenpv.testing.blk_world import world_blk
from xenpv.testing.checkers import check_all
from xenpv.testing.linux_blk import Request
from xenpv.testing.world import World

SECTOR: Final = 512
SECTORS: Final = 64  # that rules use; any disk has them
COUNT_MAX: Final = 8
UNDER_WAY_MAX: Final = 16  # requests


class BlkDisk(Protocol):
    """What rules use of a disk; sectors of 512 bytes. A request runs when the world does."""

    def submit(
        self, operation: BLKIF_OP, sector: int = 0, nr_sectors: int = 0, data: bytes = b""
    ) -> list[Request]: ...

    def submit_flush(self) -> list[Request]: ...

    def answer(self, requests: Sequence[Request]) -> bytes: ...


class BlkWorld(World):
    """A world with a disk."""

    disk: BlkDisk


@attrs.frozen
class UnderWay:
    """A request that was started: the bytes that it has to give, and where it writes."""

    started: Any
    operation: BLKIF_OP
    sector: int
    count: int
    expected: bytes

    def meets(self, sector: int, count: int) -> bool:
        """Whether they have a sector in common."""
        return self.sector < sector + count and sector < self.sector + self.count


class BlkMachine(RuleBasedStateMachine):
    """`make` gives a world whose disk holds zeros at first; `model` is what it should hold.

    Rules start requests; `settle` runs the world and compares. Requests of the same sectors are
    not under way together if one of them writes: their order would be nobody's promise. A disk
    that is not asked by `submit` needs `start` and `answer` of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.world = self.make()
        self.model = bytearray(SECTORS * SECTOR)
        self.under_way: list[UnderWay] = []

    def make(self) -> BlkWorld:
        """The world under test, fresh: ours, with the kit's Linux frontend on blkback."""
        image = MemoryImage(bytearray(SECTORS * SECTOR))
        made: BlkWorld = world_blk(image=image)  # type: ignore[assignment]  # its disk has more
        return made

    def start(self, operation: BLKIF_OP, sector: int, count: int, data: bytes) -> Any:
        """Begin a READ or WRITE of `count` sectors, or a FLUSH_DISKCACHE. What it gives is for
        `answer`, after the world ran.
        """
        if operation is BLKIF_OP.FLUSH_DISKCACHE:
            return self.world.disk.submit_flush()
        return self.world.disk.submit(operation, sector, count, data)

    def answer(self, started: Any) -> bytes:
        """What was read; raises what the request failed with, or that it has no answer."""
        return self.world.disk.answer(started)

    @rule(sector=st.integers(0, SECTORS - COUNT_MAX), data=st.binary(min_size=1, max_size=8))
    def write(self, sector: int, data: bytes) -> None:
        """As many sectors as `data` has bytes, each full of one."""
        whole = b"".join([bytes([one]) * SECTOR for one in data])
        self._begin(BLKIF_OP.WRITE, sector, len(data), whole)
        self.model[sector * SECTOR : sector * SECTOR + len(whole)] = whole

    @rule(sector=st.integers(0, SECTORS - COUNT_MAX), count=st.integers(1, COUNT_MAX))
    def read(self, sector: int, count: int) -> None:
        self._begin(BLKIF_OP.READ, sector, count)

    @rule()
    def flush(self) -> None:
        self._begin(BLKIF_OP.FLUSH_DISKCACHE)

    @rule()
    def settle(self) -> None:
        """Run, and compare what came with what had to."""
        done, self.under_way = self.under_way, []
        if done:
            self.world.run()
        for one in done:
            got = self.answer(one.started)
            where = f"sectors {one.sector} to {one.sector + one.count}"
            assert got == one.expected, f"{where} are not as written"

    def _begin(
        self, operation: BLKIF_OP, sector: int = 0, count: int = 0, data: bytes = b""
    ) -> None:
        writes, under_way = operation is BLKIF_OP.WRITE, self.under_way
        if len(under_way) >= UNDER_WAY_MAX or any(
            one.meets(sector, count) and (writes or one.operation is BLKIF_OP.WRITE)
            for one in under_way
        ):
            self.settle()
        expected = b""
        if operation is BLKIF_OP.READ:
            expected = bytes(self.model[sector * SECTOR : (sector + count) * SECTOR])
        started = self.start(operation, sector, count, data)
        self.under_way.append(UnderWay(started, operation, sector, count, expected))

    def teardown(self) -> None:
        try:
            self.settle()
            self.world.run()
            check_all(self.world.platform)
        finally:
            self.world.close()
