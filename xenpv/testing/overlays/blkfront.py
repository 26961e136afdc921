"""XenVbd (or the Linux-like personality) under a hostile block backend.

A program of the guest reads, writes, flushes and unmaps; the backend serves requests in any
order, answers what it likes, writes responses and indices as bytes, keeps grants mapped, changes
keys and states, and lets time pass. Every sector has bytes of its own, which reads must bring and
writes must carry, so that no order of transfers matters. As long as the backend did nothing
wrong all must end well; whatever it did, every command ends once, and nothing stays granted once
the backend is closed.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Final

import attrs

from xenpv.errors import GrantError, HypercallError, LocalProtocolError, PeerProtocolError
from xenpv.testing.back_world import BackWorld, world_back
from xenpv.testing.checkers import CheckFailed, check_all
from xenpv.testing.overlay import Target
from xenpv.testing.overlays.blkjudge import DISCARD, FLUSH, READ, WRITE
from xenpv.testing.overlays.frontend import FrontOverlay, operations
from xenpv.testing.overlays.language import VALUES, Language, Operation, pick
from xenpv.testing.raw_back import BLK_REQUEST, RawBlkBack
from xenpv.testing.sring import RawBackSring
from xenpv.vbd.disk import DiskError
from xenpv.vbd.pending import Pending
from xenpv.vbd.srb import SrbStatus

SECTORS: Final = 2048  # what the raw backend says
SECTOR: Final = 512
OPERATIONS: Final = (READ, WRITE, FLUSH, DISCARD)
SIZES: Final = (8, 1, 16, 88, 89, 3, 256, 100)  # sectors of a transfer
STATUSES: Final = (-1, -2, 1, -3, 127, -32768, 0x100, 0)
PENDING_MAX: Final = 24
KEYS: Final = (
    "sectors", "sector-size", "physical-sector-size", "info", "feature-flush-cache",
    "feature-barrier", "feature-discard", "feature-max-indirect-segments", "feature-persistent",
    "max-ring-page-order", "multi-queue-max-queues", "online", "mode", "discard-granularity",
    "error",
)  # fmt: skip


@cache
def content(sector: int) -> bytes:
    """What a sector holds, whoever wrote it."""
    return (sector & 0xFFFFFFFF).to_bytes(4, "big") * (SECTOR // 4)


@attrs.define(eq=False)
class Taken:
    """A request off the ring, to be answered; `served`: its data was moved."""

    raw: bytes
    rid: int
    operation: int
    served: bool = False


class BlkFrontOverlay(FrontOverlay):
    """One example. `honest`: the backend has done nothing yet that an honest one would not."""

    kind = "vbd"
    keys = KEYS

    def __init__(self, personality: str) -> None:
        self.world: BackWorld = world_back(personality=personality, kinds=("vbd",))
        super().__init__(self.world)
        self.taken: list[Taken] = []
        # Commands with their operation, sector and count; 0 of them where there is no data.
        self.pending: list[tuple[Pending, int, int, int]] = []
        self.refused: list[tuple[int, int]] = []  # operation and sector of requests that failed
        self.back.hold = True
        self.disk = self.world.disk

    @property
    def back(self) -> RawBlkBack:
        return self.world.vbd

    def rings(self) -> tuple[RawBackSring, ...]:
        return (self.back.sring,) if self.back.connected else ()

    # the guest's program

    def command(self, args: bytes) -> None:
        """A read, write, flush or unmap of the guest."""
        what, size, where = args
        if sum(not one.is_complete for one, _, _, _ in self.pending) >= PENDING_MAX:
            return
        disk, count = self.disk, pick(SIZES, size)
        sector = (where << 3) % (SECTORS - count)
        operation = pick(OPERATIONS, what)
        with suppress(DiskError, LocalProtocolError):
            if disk.target.sector_size != SECTOR:
                return
            if operation == READ:
                pending = disk.start_read(sector, count)
            elif operation == WRITE:
                data = b"".join([content(sector + at) for at in range(count)])
                pending = disk.start_write(sector, data)
            elif operation == FLUSH:
                pending = disk.start_flush()
            else:
                pending = disk.start_unmap([(sector, count)])
            size = count if operation in (READ, WRITE) else 0
            self.pending.append((pending, operation, sector, size))

    # the backend

    def take(self) -> None:
        """What is on the ring, each request once."""
        if not self.back.connected:
            self.taken.clear()
            return
        try:
            found = self.back.sring.take()
        except (PeerProtocolError, HypercallError):
            if self.honest:
                raise
            return
        for raw in found:
            operation, _, _, rid = BLK_REQUEST.unpack(raw)[:4]
            if self.honest and any(one.rid == rid for one in self.taken):
                raise CheckFailed([f"id {rid:#x} is in flight, and taken again"])
            self.taken.append(Taken(raw, rid, operation))

    def serve(self, args: bytes) -> None:
        """Answer some requests as an honest disk does, from either end."""
        count, order = args
        self.take()
        for _ in range(min(len(self.taken), 1 + count % 32)):
            one = self.taken.pop(0 if order & 1 else -1)
            try:
                self._move(one)
            except (GrantError, HypercallError):
                if self.honest:
                    raise
            self._respond(one.rid, one.operation, 0)

    def _move(self, one: Taken) -> None:
        """The data of a READ or a WRITE."""
        if one.operation not in (READ, WRITE):
            return
        sector = BLK_REQUEST.unpack(one.raw)[4]
        for ref, first, last in self.back.segments(one.raw):
            if not first <= last < 8:
                if self.honest:
                    raise CheckFailed([f"a segment from {first} to {last}"])
                return  # bytes of ours lie over the slot
            count = last - first + 1
            data = b"".join([content(sector + at) for at in range(count)])
            if one.operation == READ:
                self.back.fill(ref, data, first * SECTOR)
            else:
                got = self.back.read(ref, first * SECTOR, count * SECTOR)
                if self.honest and got != data:
                    raise CheckFailed([f"a write at sector {sector} carries other bytes"])
                self._readonly(ref)
            sector += count

    def _readonly(self, ref: int) -> None:
        """What a write carries is granted to be read only."""
        if not self.honest:
            return
        try:
            pfn = self.back.map(ref)
        except GrantError:
            return
        self.back.unmap(pfn)
        raise CheckFailed([f"reference {ref} of a write may be written"])

    def _respond(self, rid: int, operation: int, status: int) -> None:
        with suppress(HypercallError):
            self.back.respond(rid, operation, status)

    def answer(self, args: bytes) -> None:
        """A response with a status, an id or an operation of its own, once or twice."""
        which, status, change, value = args
        self.take()
        if not self.taken:
            return
        self.honest = False
        one = self.taken.pop(which % len(self.taken))
        rid = one.rid
        if not change & 3 and pick(STATUSES, status):
            self.refused.append((one.operation, BLK_REQUEST.unpack(one.raw)[4]))
        if change & 1:
            rid = pick(VALUES, value)
        for _ in range(2 if change & 2 else 1):
            self._respond(rid, value if change & 4 else one.operation, pick(STATUSES, status))

    def respond(self, args: bytes) -> None:
        """A whole response as bytes, published."""
        self.honest = False
        if self.back.connected:
            sring = self.back.sring
            sring.write_slot(sring.rsp_prod, args[:8] + bytes((args[8], 0, args[9], args[10])))
            sring.rsp_prod = sring.rsp_prod + 1

    def hold(self, args: bytes) -> None:
        """Keep a page of a request mapped, whatever becomes of the request; or let go of one."""
        if args[0] & 1 and self.held:
            with suppress(LocalProtocolError):  # gone with the rings
                self.back.unmap(self.held.pop())
            return
        self.take()
        if self.taken and self.back.connected:
            segments = self.back.segments(self.taken[-1].raw)
            for ref, _, _ in segments[:1]:
                with suppress(GrantError):
                    self.held.append(self.back.map(ref, readonly=True))
                    self.honest = False
                    self.kept = True

    # what must hold

    def end(self) -> None:
        """Honest: all is well. Else: all is over once the backend closes, and gives back."""
        if self.honest:
            self._finish()
        self.world.run()
        check_all(self.platform, hostile=(0,))
        self.close()
        left = [one for one, _, _, _ in self.pending if not one.is_complete]
        if left:
            raise CheckFailed([f"{len(left)} commands never end, first {left[0]!r}"])
        if not self.kept:
            self._refusals()
        self.returned()

    def _refusals(self) -> None:
        """A command of which a request failed did not succeed, where it must be that one's."""
        for operation, at in self.refused:
            whose = [
                one
                for one, kind, sector, count in self.pending
                if kind == operation and sector <= at < sector + count
            ]
            if len(whose) == 1 and whose[0].srb_status is SrbStatus.SUCCESS:
                raise CheckFailed([f"{whose[0]!r}, but its request at sector {at} failed"])

    def _finish(self) -> None:
        for _ in range(64):
            self.run(bytes(1))
            if all(one.is_complete for one, _, _, _ in self.pending):
                break
            self.serve(bytes((31, 1)))
        for one, operation, sector, count in self.pending:
            if one.srb_status is not SrbStatus.SUCCESS:
                raise CheckFailed([f"{one!r}, and the backend did nothing wrong"])
            if operation == READ and one.result() != b"".join(
                [content(sector + at) for at in range(count)]
            ):
                raise CheckFailed([f"{one!r} brought other bytes"])


LANGUAGE: Final = Language(
    Operation("command", ("what", "size", "where"), BlkFrontOverlay.command, 8),
    Operation("serve", ("count", "order"), BlkFrontOverlay.serve, 5),
    *operations(),
    Operation("answer", ("which", "status", "change", "value"), BlkFrontOverlay.answer, 2),
    Operation("respond", tuple(f"b{at}" for at in range(11)), BlkFrontOverlay.respond),
    Operation("hold", ("free",), BlkFrontOverlay.hold),
)


def run(data: bytes) -> None:
    """One example. Raises CheckFailed, or what escaped."""
    FrontOverlay.play(BlkFrontOverlay, LANGUAGE, data)


TARGET: Final = Target("blk-frontend", run, LANGUAGE.split, LANGUAGE.words)
