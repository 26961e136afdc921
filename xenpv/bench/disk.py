"""Blocks of a guest's programs, by SRBs through XenVbd and blkback to files in the page cache.

A program keeps some SRBs on their way over its own pages; when all of them are complete, the
next go. Beside it is plain pread(2) or pwrite(2) of the same blocks of the same file, one call
each, or the ring alone in C, whose disk is memory. All of it in CPU time of this thread.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from time import thread_time_ns
from typing import Final, Self

from xenpv.bench.limit import PAGE_SIZE, Limit
from xenpv.errors import LocalProtocolError
from xenpv.platform import Disk, Platform
from xenpv.vbd.commands import READ_10, WRITE_10
from xenpv.vbd.srb import Srb, SrbStatus
from xenpv.vbd.target import Target

# (of the subject, of the limit beside it), in the bench's unit
Pair = tuple[float, float | None]

SECTOR: Final = 512
SMALL: Final = 4096
LARGE: Final = 1 << 20
FILE_BYTES: Final = 32 << 20  # as much as the cache of a large processor
SHARE_BYTES: Final = 512 << 10  # of each file, where there are many
SMALL_BATCH: Final = 32
LARGE_BATCH: Final = 4
SAMPLE_SMALL: Final = 2048
SAMPLE_LARGE: Final = 32
LIMIT_SEGMENTS: Final = 11
LIMIT_BATCH: Final = 32
LIMIT_ROUNDS: Final = 64
DISKS_MAX = QUEUES_MAX = 100  # tests lower them
NS_PER_S: Final = 1e9


class Load:
    """A program that keeps `batch` SRBs of `size` bytes each on their way to one target.

    They go over the disk in turn, round and round, SRB k on queue k. `errors` counts those that
    did not succeed.
    """

    def __init__(self, target: Target, size: int, batch: int, *, writes: bool = False) -> None:
        self.target = target
        self.size = size
        self.batch = batch
        self.done = 0
        self.errors = 0
        self._left = self._flying = 0
        pages = -(-size // PAGE_SIZE)
        self.pfns = [target.domain.pages.alloc(pages) for _ in range(batch)]
        for pfn in self.pfns:
            target.domain.write(pfn, 0, bytes([0x5A]) * size)
        self._opcode = WRITE_10 if writes else READ_10
        step = size // target.sector_size
        self._lbas = cycle(range(0, target.sectors - step + 1, step))
        self._tail = b"\0" + step.to_bytes(2, "big") + b"\0"

    def start(self, rounds: int) -> None:
        self._left = rounds
        self._send()

    @property
    def is_done(self) -> bool:
        return not self._left and not self._flying

    def _send(self) -> None:
        self._left -= 1
        self._flying = self.batch
        head = bytes((self._opcode, 0))
        target, size, tail, lbas = self.target, self.size, self._tail, self._lbas
        self._srbs = [
            Srb(
                cdb=head + next(lbas).to_bytes(4, "big") + tail,
                data=[(pfn, 0, size)],
                target_id=target.target_id,
                queue_tag=tag,
                on_complete=self,
            )
            for tag, pfn in enumerate(self.pfns)
        ]
        for srb in self._srbs:
            target.submit(srb)

    def wake(self) -> None:
        """One of them is complete."""
        self._flying -= 1
        if self._flying:
            return
        self.done += self.batch
        self.errors += sum(srb.srb_status is not SrbStatus.SUCCESS for srb in self._srbs)
        if self._left:
            self._send()


class Disks:
    """A guest with so many disks, a file and a load on each."""

    def __init__(
        self,
        size: int,
        batch: int,
        *,
        disks: int = 1,
        queues: int = 1,
        writes: bool = False,
        file_bytes: int = FILE_BYTES,
        personality: str = "windows",
    ) -> None:
        self._stack = ExitStack()
        room = Path(self._stack.enter_context(TemporaryDirectory(prefix="xenpv-bench-")))
        self.paths = [room / f"disk{number}.img" for number in range(disks)]
        for number, path in enumerate(self.paths):
            path.write_bytes(bytes([number & 0xFF | 1]) * file_bytes)
        platform = self._stack.enter_context(Platform(dom0_vcpus=queues))
        self.platform = platform
        limits = platform.xenstored.limits  # of a domain: 100 disks need more than xenstored gives
        limits.nodes = limits.watches = 0
        guest = platform.create(
            name="bench",
            vcpus=queues,
            disks=[Disk(path) for path in self.paths],
            personality=personality,
        ).start()
        self.loads = [Load(disk.target, size, batch, writes=writes) for disk in guest.disks]
        self.requests = disks * batch
        self.run(2)  # every page is touched, and granted once

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, rounds: int) -> float:
        """Nanoseconds per SRB, over so many batches of each disk."""
        before = sum(load.done for load in self.loads)
        start = thread_time_ns()
        for load in self.loads:
            load.start(rounds)
        self.platform.run()
        took = thread_time_ns() - start
        done = sum(load.done for load in self.loads) - before
        errors = sum(load.errors for load in self.loads)
        if done != rounds * self.requests or errors:
            raise LocalProtocolError(
                f"{done} of {rounds * self.requests} SRBs completed, {errors} with an error"
            )
        return took / done

    def sample(self, requests: int) -> float:
        """As `run`, over about so many SRBs."""
        return self.run(max(1, requests // self.requests))


class Plain:
    """The same blocks of a file by one system call each, of `size` bytes."""

    def __init__(self, path: Path, size: int, *, writes: bool = False) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._size = size
        self._data = bytes([0x5A]) * size if writes else b""
        self._offsets = cycle(range(0, os.fstat(self._fd).st_size - size + 1, size))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def sample(self, calls: int) -> float:
        """Nanoseconds per call."""
        fd, size, data, offsets = self._fd, self._size, self._data, self._offsets
        start = thread_time_ns()
        if data:
            for _ in range(calls):
                os.pwrite(fd, data, next(offsets))
        else:
            for _ in range(calls):
                os.pread(fd, size, next(offsets))
        return (thread_time_ns() - start) / calls


def plain(
    size: int, batch: int, calls: int, *, writes: bool = False
) -> Generator[Pair, None, None]:
    """Nanoseconds: an SRB of so many bytes, one system call for them."""
    with (
        Disks(size, batch, writes=writes) as disks,
        Plain(disks.paths[0], size, writes=writes) as file,
    ):
        file.sample(calls)
        while True:
            alone = file.sample(calls)
            yield disks.sample(calls), alone


def rate(size: int, batch: int, calls: int) -> Generator[Pair, None, None]:
    """10^3 SRBs per second: through the stack to a file, requests of as many bytes in C."""
    for subject, limit in _beside_c(size, batch, calls):
        yield NS_PER_S / subject / 1e3, NS_PER_S / limit / 1e3


def bandwidth(size: int, batch: int, calls: int) -> Generator[Pair, None, None]:
    """10^6 bytes per second: through the stack to a file, over the ring in C."""
    for subject, limit in _beside_c(size, batch, calls):
        yield size / subject * 1e3, size / limit * 1e3


def _beside_c(size: int, batch: int, calls: int) -> Generator[tuple[float, float], None, None]:
    """Nanoseconds of an SRB, and of as many bytes in requests of up to 11 segments in C."""
    segments = min(size // PAGE_SIZE, LIMIT_SEGMENTS)
    limit = Limit()
    with Disks(size, batch) as disks:
        while True:
            bound = limit.blk(segments=segments, batch=LIMIT_BATCH, rounds=LIMIT_ROUNDS)
            per_byte = bound.ns_per_request / (segments * PAGE_SIZE)
            yield disks.sample(calls), size * per_byte


def wider(*, disks: int = 1, queues: int = 1) -> Generator[Pair, None, None]:
    """Nanoseconds of a small SRB: with so many disks or queues, with one disk and queue.

    Each disk and each queue has a batch of its own. The driver is Linux', which takes a queue
    for each vcpu.
    """
    disks, queues = min(disks, DISKS_MAX), min(queues, QUEUES_MAX)
    with (
        Disks(SMALL, SMALL_BATCH, file_bytes=SHARE_BYTES, personality="linux") as one,
        Disks(
            SMALL,
            SMALL_BATCH * queues,
            disks=disks,
            queues=queues,
            file_bytes=SHARE_BYTES,
            personality="linux",
        ) as many,
    ):
        while True:
            alone = one.sample(SAMPLE_SMALL)
            yield many.sample(SAMPLE_SMALL), alone


def direct(size: int, batch: int, calls: int) -> Generator[Pair, None, None]:
    """10^6 bytes per second: by indirect requests, by those of 11 segments."""
    with Disks(size, batch) as wide, Disks(size, batch) as narrow:
        for load in narrow.loads:
            load.target.backend.indirect_segments = 0
        while True:
            limit = size / narrow.sample(calls) * 1e3
            yield size / wide.sample(calls) * 1e3, limit
