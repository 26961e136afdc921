"""The power goes at any step: what was acknowledged before the last completed flush is there."""

from __future__ import annotations

import random
from collections.abc import Callable

import attrs
import pytest

from tests.flows.crash import SECTORS, Cutter, Drive, Ledger, Sent, content
from xenpv import Disk, Platform
from xenpv.abi.blkif import BLKIF_OP
from xenpv.back.blkprofile import Settings, profile
from xenpv.testing.blk_world import world_blk

MS = 1_000_000
WRITES = 36


@attrs.frozen
class Op:
    """`count` 0: a flush."""

    first: int
    count: int
    barrier: bool = False
    gap: int = 0  # steps before it is sent


def program(seed: int, *, barriers: bool = False) -> list[Op]:
    """Overlapping writes of 1 to 20 sectors, among them a flush or a barrier now and then."""
    chance = random.Random(seed)
    ops = []
    for _ in range(WRITES):
        count = chance.choice([1, 1, 2, 8, 9, 20])
        first = chance.randrange(SECTORS - count + 1)
        gap = chance.choice([0, 0, 0, 1, 3, 12])
        ops.append(Op(first, count, barriers and chance.random() < 0.25, gap))
        if chance.random() < 0.2:
            ops.append(Op(0, 0, barriers, gap=chance.choice([0, 2, 30])))
    return [*ops, Op(0, 0, barriers, gap=200)]


class Feeder:
    """Sends a program, each when its gap is over, and hears what has ended."""

    def __init__(
        self, ledger: Ledger, ops: list[Op], send: Callable[[Op, Sent], Callable[[], bool]]
    ) -> None:
        self.ledger = ledger
        self.ops = ops
        self.send = send
        self.open: list[tuple[Sent, Callable[[], bool]]] = []
        self.wait = 0

    def __call__(self) -> None:
        for one, is_done in list(self.open):
            if is_done():
                self.ledger.end(one)
                self.open.remove((one, is_done))
        self.wait -= 1
        while self.ops and self.wait <= 0:
            op = self.ops.pop(0)
            one = self.ledger.begin(op.first, op.count, barrier=op.barrier)
            self.open.append((one, self.send(op, one)))
            if self.ops:
                self.wait = self.ops[0].gap

    def finish(self, xen: Platform) -> None:
        """Until everything is sent and has ended; gaps pass where nothing runs, too."""
        while self.ops or self.open:
            xen.run()
            self.wait = 0
            before = len(self.ops), len(self.open)
            self.ledger.now += 1
            self()
            if (len(self.ops), len(self.open)) == before:
                xen.advance(0.001)
        xen.run()


def cut(
    xen: Platform,
    cache: Drive,
    ops: list[Op],
    send: Callable[[Op, Sent], Callable[[], bool]],
    seed: int,
    subsets: int = 80,
) -> Cutter:
    """Run the program with the power going at each step."""
    ledger = Ledger()
    cutter = Cutter(cache, ledger, seed, subsets)
    feeder = cutter.feed = Feeder(ledger, ops, send)
    xen.loop.scheduler = cutter
    try:
        feeder.finish(xen)
        cutter.look()
    finally:
        xen.loop.scheduler = None
    assert cache.pending == [], "the last flush left nothing in the cache"
    found = cache.power_off()
    assert not ledger.wrong(found)
    return cutter


@pytest.mark.parametrize("latency_ns", [0, MS])
@pytest.mark.parametrize(
    ("personality", "blkback"),
    [("windows", "linux"), ("linux", "linux"), ("windows", "qemu"), ("linux", "tapdisk")],
)
@pytest.mark.parametrize("seed", range(3))
def test_what_a_guest_flushed_survives(
    personality: str, blkback: str, latency_ns: int, seed: int
) -> None:
    cache = Drive()
    with Platform(seed=seed, dom0_vcpus=2, blkback=blkback) as xen:
        disk = Disk(cache, latency_ns=latency_ns)
        guest = xen.create(name="g", vcpus=2, disks=[disk], personality=personality).start()
        on = guest.disks[0]

        def send(op: Op, one: Sent) -> Callable[[], bool]:
            if not op.count:
                pending = on.start_flush()
            else:
                pending = on.start_write(op.first, content(one.version, op.count))
            return lambda: pending.is_complete

        cutter = cut(xen, cache, program(seed), send, seed)
    assert cutter.random_cuts >= 1000
    assert cutter.unflushed_max >= 20


@pytest.mark.parametrize("latency_ns", [0, MS])
@pytest.mark.parametrize("blkback", ["linux", "tapdisk"])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_before_a_barrier_survives(
    blkback: str, latency_ns: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Barriers with data and without: at each, what came before it is on the medium first."""
    settings = Settings(profile(blkback), profile(blkback).units, latency_ns)
    monkeypatch.setattr(Platform, "blkback_of", lambda *_: settings)
    cache = Drive()
    with world_blk(seed, image=cache, blkback=blkback) as world:

        def send(op: Op, one: Sent) -> Callable[[], bool]:
            kind = BLKIF_OP.WRITE_BARRIER if op.barrier else BLKIF_OP.WRITE
            requests = world.disk.submit(kind, op.first, op.count, content(one.version, op.count))
            return lambda: all(request.status is not None for request in requests)

        ops = program(seed, barriers=True)
        cutter = cut(world.platform, cache, ops, send, seed)
    assert cutter.random_cuts >= 1000
