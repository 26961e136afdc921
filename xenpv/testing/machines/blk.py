"""A disk: sectors written are sectors read, whatever lies between."""

from __future__ import annotations

from typing import Final, Protocol

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from xenpv.testing.blk_world import world_blk
from xenpv.testing.checkers import check_all
from xenpv.testing.world import World

SECTOR: Final = 512
SECTORS: Final = 64  # that rules use; any disk has them
COUNT_MAX: Final = 8


class BlkDisk(Protocol):
    """What rules use of a disk; sectors of 512 bytes."""

    def read(self, sector: int, nr_bytes: int) -> bytes: ...

    def write(self, sector: int, data: bytes) -> None: ...

    def flush(self) -> None: ...


class BlkWorld(World):
    """A world with a disk."""

    disk: BlkDisk


class BlkMachine(RuleBasedStateMachine):
    """`make` gives a world whose disk holds zeros at first; `model` is what it should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.world = self.make()
        self.model = bytearray(SECTORS * SECTOR)

    def make(self) -> BlkWorld:
        """The world under test, fresh: ours, with the kit's Linux frontend on blkback."""
        made: BlkWorld = world_blk()  # type: ignore[assignment]  # its disk has more than that
        return made

    @rule(sector=st.integers(0, SECTORS - COUNT_MAX), data=st.binary(min_size=1, max_size=8))
    def write(self, sector: int, data: bytes) -> None:
        """As many sectors as `data` has bytes, each full of one."""
        whole = b"".join([bytes([one]) * SECTOR for one in data])
        self.world.disk.write(sector, whole)
        self.model[sector * SECTOR : sector * SECTOR + len(whole)] = whole

    @rule(sector=st.integers(0, SECTORS - COUNT_MAX), count=st.integers(1, COUNT_MAX))
    def read(self, sector: int, count: int) -> None:
        got = self.world.disk.read(sector, count * SECTOR)
        expected = self.model[sector * SECTOR : (sector + count) * SECTOR]
        assert got == expected, f"sectors {sector} to {sector + count} are not as written"

    @rule()
    def flush(self) -> None:
        self.world.disk.flush()

    def teardown(self) -> None:
        try:
            self.world.run()
            check_all(self.world.platform)
        finally:
            self.world.close()
