"""What a disk may hold after its power went: every write of a guest, by what was promised of it.

Not a test module. A sector holds the version of the write that wrote it last; 0: none did. A
version is allowed in a sector unless a durable write replaced it: one that was acknowledged before
a flush that has completed since (or came before a barrier that has), where the version's own
write was acknowledged before that one began.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from struct import Struct

import attrs

from tests.flows.stepping import in_order, waited_for
from xenpv.host.image import MemoryImage
from xenpv.host.writecache import WriteCache
from xenpv.xen.loop import Loop, Task

SECTORS = 48
SECTOR = 512
HEAD = Struct("<Q504x")


def content(version: int, count: int) -> bytes:
    return version.to_bytes(8, "little") * (SECTOR // 8) * count


@attrs.define(eq=False)
class Sent:
    """A write, a flush (no sectors) or a barrier. Times are steps of the loop."""

    version: int
    first: int
    count: int
    begun: int
    barrier: bool = False
    ended: int | None = None
    covers: list[Sent] = attrs.Factory(list)  # what it makes durable when it ends

    @property
    def sectors(self) -> range:
        return range(self.first, self.first + self.count)


class Ledger:
    """Everything that was sent, and what it allows the medium to hold."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.durable: list[Sent] = []
        self.now = 0
        self.changes = 0  # of what is allowed
        self._allowed: dict[int, list[set[int]]] = {}  # by barrier; 0: at all

    def begin(self, first: int = 0, count: int = 0, *, barrier: bool = False) -> Sent:
        one = Sent(len(self.sent) + 1, first, count, self.now, barrier)
        if barrier:  # the ring is drained before it
            one.covers = [old for old in self.sent if old.count]
        elif not count:
            one.covers = [old for old in self.sent if old.count and old.ended is not None]
        self.sent.append(one)
        self._changed()
        return one

    def end(self, one: Sent) -> None:
        one.ended = self.now
        self.durable += one.covers
        self._changed()

    def _changed(self) -> None:
        self.changes += 1
        self._allowed.clear()

    def allowed(self, barrier: Sent | None = None) -> list[set[int]]:
        """By sector: the versions that may be found there, with the data of a barrier or at all."""
        version, durable = (barrier.version, barrier.covers) if barrier else (0, self.durable)
        if version not in self._allowed:
            self._allowed[version] = [self._of(sector, durable) for sector in range(SECTORS)]
        return self._allowed[version]

    def _of(self, sector: int, durable: list[Sent]) -> set[int]:
        here = [one for one in self.sent if sector in one.sectors]
        last = [one for one in durable if sector in one.sectors]
        if not last:
            return {0, *(one.version for one in here)}
        return {
            one.version
            for one in here
            if not any(
                one.ended is not None and one.ended <= kept.begun
                for kept in last
                if kept is not one
            )
        }

    def wrong(self, disk: MemoryImage) -> str:
        """What a disk holds that it may not; "" if it is as promised."""
        found = [version for (version,) in HEAD.iter_unpack(disk.buffer)]
        for sector, (version, allowed) in enumerate(zip(found, self.allowed(), strict=True)):
            if version not in allowed:
                return f"sector {sector} holds {version}, allowed is {sorted(allowed)}"
        return self._wrong_order(found)

    def _wrong_order(self, found: list[int]) -> str:
        """Where the data of a barrier is, everything before it is."""
        for barrier in self.sent:
            if not barrier.barrier or barrier.version not in found:
                continue
            for sector, (version, allowed) in enumerate(
                zip(found, self.allowed(barrier), strict=True)
            ):
                if version not in allowed:
                    return (
                        f"barrier {barrier.version} is there, and sector {sector} holds {version}"
                    )
        return ""


class Drive(WriteCache):
    """A drive that loses its power within a step too: `cut` is called after each write."""

    cut: Callable[[], None] | None = None

    def __init__(self) -> None:
        super().__init__(MemoryImage(bytearray(SECTORS * SECTOR)), tear_bytes=SECTOR)

    def write_from(self, buffer: memoryview, offset: int) -> None:
        super().write_from(buffer, offset)
        if self.cut is not None:
            self.cut()


class Cutter:
    """A scheduler in the loop's own order that looks at the drive before each step that changes it.

    Each write that is not flushed alone is dropped and kept, all are, none is, and `subsets` of
    them are by `seed`. `feed` is told of each step before.
    """

    def __init__(self, cache: Drive, ledger: Ledger, seed: int, subsets: int) -> None:
        self.cache = cache
        self.ledger = ledger
        self.chance = random.Random(seed)
        self.subsets = subsets
        self._seen: tuple[int, int, int] = (-1, -1, -1)
        self.cuts = 0
        self.random_cuts = 0
        self.unflushed_max = 0
        self.feed = lambda: None
        cache.cut = self.cut

    def _keeps(self, count: int) -> Iterator[list[int]]:
        every = range(count)
        yield []
        yield list(every)
        for one in every:
            yield [one]
            yield [other for other in every if other != one]
        for _ in range(self.subsets if count > 1 else 0):
            kept = [one for one in every if self.chance.random() < 0.5]
            self.random_cuts += 1
            yield kept

    def look(self) -> None:
        self.ledger.now += 1
        self.feed()
        self.cut()

    def cut(self) -> None:
        ledger = self.ledger
        count = len(self.cache.pending)
        seen = (count, self.cache.flushes, ledger.changes)
        if seen == self._seen:
            return  # the same cuts, of the same disk
        self._seen = seen
        self.unflushed_max = max(self.unflushed_max, count)
        for keep in self._keeps(count):
            self.cuts += 1
            wrong = ledger.wrong(self.cache.power_off(keep))
            assert not wrong, f"step {ledger.now}, kept {keep} of {count}: {wrong}"

    def drain(self, loop: Loop, limit: int) -> int:
        return in_order(loop, limit, self.look)

    def pump(self, loop: Loop, task: Task) -> bool:
        return waited_for(loop, task)
