"""Every bench: what it measures, against what, and the goal that it holds.

A bench is a generator of pairs: a value, and the value of the limit measured right beside
it, or None where the goal is an absolute number. The caller takes as many as it wants and
closes it. What follows a colon names a variant, which its bench's name runs too.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Final

import attrs

from xenpv.bench import disk, event, fuzz, lifecycle, net, ring, store, world
from xenpv.bench.daemon import OXENSTORED, XENSTORED, Peer, missing
from xenpv.bench.limit import RING_H
from xenpv.errors import ConfigError

Pair = tuple[float, float | None]

# Per guest, of ten times as many: what grows with the square takes ten times as long.
LINEAR: Final = 1.5

C_RING: Final = "C with Xen's ring.h" if RING_H else "C with ring.h as we write it"


@attrs.frozen
class Bench:
    """One line of the table.

    `missing` names the packages without which the other side of the ratio cannot run.
    `goal` bounds the ratio of value to limit or, where `against` is None, the value itself:
    from above, or from below if `at_least`. None: nothing was promised.
    """

    measure: Callable[[], Generator[Pair, None, None]]
    unit: str
    against: str | None
    goal: float | None
    what: str
    at_least: bool = attrs.field(default=False, kw_only=True)
    repetitions: int = attrs.field(default=25, kw_only=True)
    missing: Callable[[], str | None] = attrs.field(default=lambda: None, kw_only=True)


def _beside(
    peer: Peer, script: store.Script, what: str, *, clients: int = 1, goal: float | None = None
) -> Bench:
    """`xenpv store` beside another xenstored; what a goal is not set for is for information."""
    return Bench(
        partial(store.beside, peer, script, clients), "k/s", peer.name, goal, what,
        at_least=True,
        missing=partial(missing, peer),
    )  # fmt: skip


def _scaled(operation: str, what: str) -> Bench:
    return Bench(
        partial(store.scale, operation), "us", "an empty store", 1.5,
        f"{what} in a store of 100,000 nodes and 10,000 watches",
        repetitions=15,
    )  # fmt: skip


def _linear(operation: lifecycle.Operation, what: str, *, few: bool = False) -> Bench:
    """A command of a toolstack, for each of many guests beside each of a tenth as many."""
    more, less = ("10", "a single one") if few else ("100", "each of 10")
    return Bench(
        partial(lifecycle.few if few else lifecycle.many, operation), "ms", less, LINEAR,
        f"each of {more} guests {what}",
        repetitions=9 if few else 5,
    )  # fmt: skip


def _machine(kind: str) -> Bench:
    """A state machine of the kit under Hypothesis."""
    return Bench(
        partial(fuzz.machine, kind), "of all", None, 0.15,
        f"what a {kind} machine's world and rules take beside Hypothesis",
        repetitions=5,
    )  # fmt: skip


def _wider(what: str, *, guests: int = 1, queues: int = 1, ports: int = 0) -> Bench:
    """The cost of a frame, which must not grow with what is beside it."""
    return Bench(
        partial(net.wider, guests=guests, queues=queues, ports=ports), "ns",
        "one guest with one queue", LINEAR,
        f"a frame of 64 bytes there and back with {what}",
        repetitions=9,
    )  # fmt: skip


def _broader(what: str, *, disks: int = 1, queues: int = 1) -> Bench:
    """The cost of a small SRB, which must not grow with what is beside it."""
    return Bench(
        partial(disk.wider, disks=disks, queues=queues), "ns", "one disk with one queue", LINEAR,
        f"a 4 KiB read with {what}",
        repetitions=9,
    )  # fmt: skip


BENCHES: Final[dict[str, Bench]] = {
    "world": Bench(
        world.world, "ms", None, 2.0,
        "a platform, a Windows guest's disk and interface Connected, freed",
        repetitions=100,
    ),
    "world-raw": Bench(
        world.world_raw, "ms", None, 0.6,
        "the same with raw frontends on the real backends",
        repetitions=200,
    ),
    "ring-blk": Bench(
        partial(ring.blk, 1, 32), "ns", C_RING, 6.5,
        "a 4 KiB read in a batch of 32",
    ),
    "ring-blk:1": Bench(
        partial(ring.blk, 1, 1), "ns", C_RING, 16.0,
        "a 4 KiB read alone",
    ),
    "ring-blk:11-segments": Bench(
        partial(ring.blk_bandwidth, 11, 32), "GB/s", C_RING, 0.6,
        "reads of 11 segments in a batch of 32",
        at_least=True,
    ),
    "ring-net": Bench(
        partial(ring.net, 256), "ns", C_RING, 13.0,
        "a frame of 1,514 bytes sent in a batch of 256",
    ),
    "net-stream": Bench(
        partial(net.frames, net.STREAM_BYTES), "k/s", C_RING, None,
        "frames of 1,514 bytes from XenNet to the bridge, and as many back",
        at_least=True,
    ),
    "net-stream:bytes": Bench(
        partial(net.bandwidth, net.STREAM_BYTES), "MB/s", C_RING, None,
        "the same in bytes each way",
        at_least=True,
    ),
    "net-small": Bench(
        partial(net.frames, net.SMALL_BYTES), "k/s", C_RING, None,
        "frames of 64 bytes there and back",
        at_least=True,
    ),
    "net-gso": Bench(
        partial(net.bandwidth, net.GSO_BYTES, net.GSO_BATCH, net.MSS), "MB/s",
        f"{C_RING}, frames of 1,514 bytes", None,
        "large TCP packets of 65,000 bytes there and back, each way",
        at_least=True,
    ),
    "net-queues": _wider("4 queues", queues=4),
    "net-queues:vifs-10": _wider("10 guests on the bridge", guests=10),
    "net-queues:vifs-100": _wider("100 guests on the bridge", guests=100),
    "net-queues:ports-10": _wider("10 more ports on the bridge", ports=10),
    "net-queues:ports-100": _wider("100 more ports on the bridge", ports=100),
    "disk-4k": Bench(
        partial(disk.rate, disk.SMALL, disk.SMALL_BATCH, disk.SAMPLE_SMALL), "k/s", C_RING, None,
        "reads of 4 KiB by SRBs, 32 at a time, from a file in the page cache",
        at_least=True,
    ),
    "disk-4k:bytes": Bench(
        partial(disk.bandwidth, disk.SMALL, disk.SMALL_BATCH, disk.SAMPLE_SMALL), "MB/s", C_RING,
        None,
        "the same in bytes",
        at_least=True,
    ),
    "disk-4k:pread": Bench(
        partial(disk.plain, disk.SMALL, disk.SMALL_BATCH, disk.SAMPLE_SMALL), "ns", "pread", None,
        "one of them",
    ),
    "disk-4k:pwrite": Bench(
        partial(disk.plain, disk.SMALL, disk.SMALL_BATCH, disk.SAMPLE_SMALL, writes=True), "ns",
        "pwrite", None,
        "a write of 4 KiB",
    ),
    "disk-1m": Bench(
        partial(disk.plain, disk.LARGE, disk.LARGE_BATCH, disk.SAMPLE_LARGE), "ns", "pread", 2.5,
        "a read of 1 MiB by an SRB, 4 at a time, from a file in the page cache",
    ),
    "disk-1m:pwrite": Bench(
        partial(disk.plain, disk.LARGE, disk.LARGE_BATCH, disk.SAMPLE_LARGE, writes=True), "ns",
        "pwrite", 2.5,
        "a write of 1 MiB",
    ),
    "disk-1m:rate": Bench(
        partial(disk.rate, disk.LARGE, disk.LARGE_BATCH, disk.SAMPLE_LARGE), "k/s",
        f"{C_RING}, 11 segments", None,
        "reads of 1 MiB",
        at_least=True,
    ),
    "disk-1m:bytes": Bench(
        partial(disk.bandwidth, disk.LARGE, disk.LARGE_BATCH, disk.SAMPLE_LARGE), "MB/s",
        f"{C_RING}, 11 segments", None,
        "the same in bytes",
        at_least=True,
    ),
    "disk-queues": _broader("4 queues", queues=4),
    "disk-queues:10": _broader("10 queues", queues=10),
    "disk-queues:100": _broader("100 queues", queues=100),
    "disk-queues:disks-10": _broader("10 disks", disks=10),
    "disk-queues:disks-100": _broader("100 disks", disks=100),
    "disk-indirect": Bench(
        partial(disk.direct, disk.LARGE, disk.LARGE_BATCH, disk.SAMPLE_LARGE), "MB/s",
        "requests of 11 segments", 1.0,
        "reads of 1 MiB by an indirect request each",
        at_least=True,
    ),
    "disk-indirect:4m": Bench(
        partial(disk.direct, 4 * disk.LARGE, 2, disk.SAMPLE_LARGE // 4), "MB/s",
        "requests of 11 segments", 1.0,
        "reads of 4 MiB by four of them each",
        at_least=True,
    ),
    "event": Bench(
        event.dispatch, "us", None, 0.4,
        "wake to handler through the seeded chooser",
    ),
    "event:bits": Bench(
        event.bits, "us", None, 1.0,
        "notify to handler through the guest's pending bits",
    ),
    "hook": Bench(
        partial(ring.hook, 32), "ns", "C without the seam", 1.05,
        "a 4 KiB request in C with the access hook unset",
    ),
    "hook:log": Bench(
        partial(ring.hook_log, 32), "ns", "no log", 1.5,
        "a 4 KiB read in a batch of 32, every access logged",
    ),
    "explore": Bench(
        world.explore, "ms", None, None,
        "an explored run of four block requests in a fresh world",
    ),
    "fuzz": Bench(
        fuzz.overlays, "1/s", None, 700.0,
        "hostile overlays over blkback and netback, each in a fresh raw world",
        at_least=True,
    ),
    "fuzz:blk-machine": _machine("blk"),
    "fuzz:net-machine": _machine("net"),
    "fuzz:store-machine": _machine("store"),
    "store-read": _beside(XENSTORED, store.READ, "READ over the socket", goal=1.25),
    "store-read:ox": _beside(OXENSTORED, store.READ, "the same"),
    "store-write": _beside(XENSTORED, store.WRITE, "WRITE over the socket", goal=1.25),
    "store-write:ox": _beside(OXENSTORED, store.WRITE, "the same"),
    "store-tx": _beside(
        XENSTORED, store.TRANSACTION, "a transaction: start, read, write, end", goal=1.5
    ),
    "store-tx:ox": _beside(OXENSTORED, store.TRANSACTION, "the same"),
    "store-clients": _beside(XENSTORED, store.READ, "READ of 20 clients", clients=20, goal=1.0),
    "store-clients:ox": _beside(OXENSTORED, store.READ, "the same", clients=20),
    "store-scale": _scaled("read", "READ"),
    "store-scale:write": _scaled("write", "WRITE"),
    "store-scale:list": _scaled("list", "DIRECTORY"),
    "store-scale:create": _scaled("create", "a node made and removed"),
    "store-scale:watch": _scaled("watch", "WATCH and UNWATCH"),
    "store-scale:tx": _scaled("tx", "a transaction"),
    "lifecycle": _linear(lifecycle.create, "created and started"),
    "lifecycle:10": _linear(lifecycle.create, "created and started", few=True),
    "lifecycle:suspend": _linear(lifecycle.suspend, "suspended and resumed"),
    "lifecycle:suspend-10": _linear(lifecycle.suspend, "suspended and resumed", few=True),
    "lifecycle:save": _linear(lifecycle.save, "saved and restored"),
    "lifecycle:save-10": _linear(lifecycle.save, "saved and restored", few=True),
    "lifecycle:migrate": _linear(lifecycle.migrate, "migrated"),
    "lifecycle:migrate-10": _linear(lifecycle.migrate, "migrated", few=True),
    "lifecycle:destroy": _linear(lifecycle.destroy, "destroyed"),
    "lifecycle:destroy-10": _linear(lifecycle.destroy, "destroyed", few=True),
    "import": Bench(
        world.import_xenpv, "ms", None, 60.0,
        "from xenpv import Platform in a fresh interpreter",
        repetitions=7,
    ),
}  # fmt: skip

# What a user may ask for.
NAMES: Final = tuple(name for name in BENCHES if ":" not in name)


def select(name: str) -> list[str]:
    """The benches that a name means: itself and its variants. ConfigError if it is none."""
    found = [one for one in BENCHES if one == name or one.startswith(f"{name}:")]
    if not found:
        raise ConfigError(f"no bench is called {name!r}: expected {', '.join(NAMES)}")
    return found
