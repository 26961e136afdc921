"""Rings beside the C limit: a frontend's policy in Python against the real backends.

Everything a device has is in the round trip: grants that the backend copies through, event
channels, upcalls, the seeded loop, a trace. The frontend builds each request and calls a
completion for each response; its pages are granted once, as a driver with persistent
buffers has them. Limit and subject run in turns in this process, since the machine may
change its speed at any time: only their ratio means something. Both count CPU time, so that
a busy machine does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import chain, cycle, islice, repeat
from mmap import mmap
from struct import Struct
from time import thread_time_ns
from typing import Any, Final

from xenpv.abi.blkif import BLKIF_OP, BLKIF_RSP
from xenpv.abi.layout import offsetof, packer, struct_format
from xenpv.abi.netif import NETIF_RSP
from xenpv.bench.limit import Limit, Text
from xenpv.bus.ring import FrontRing
from xenpv.errors import LocalProtocolError
from xenpv.host.image import MemoryImage
from xenpv.host.network import Frame
from xenpv.vbd import blkif

# (of the subject, of the limit beside it), in the bench's unit
Pair = tuple[float, float | None]

PAGES: Final = 32  # as limit.c: requests share them in turn, so that they stay in the cache
DISK_SECTORS: Final = 1024
SECTORS_PER_PAGE: Final = 8
FRAME_BYTES: Final = 1514
READ: Final = int(BLKIF_OP.READ)
OKAY: Final = int(BLKIF_RSP.OKAY)
SENT: Final = int(NETIF_RSP.OKAY)

# A request as what is the same in all of them, id, sector_number, and its segments.
ID_AT: Final = offsetof("blkif_request", "id")
SEGMENTS_AT: Final = offsetof("blkif_request", "seg")
REQUEST: Final = f"{ID_AT}sQQ{blkif.REQUEST_SIZE - SEGMENTS_AT}s"
assert Struct(f"<{REQUEST}").size == blkif.REQUEST_SIZE
assert offsetof("blkif_request", "sector_number") == ID_AT + 8 == SEGMENTS_AT - 8
# id, status; the operation is the one that was asked for.
RESPONSE: Final = Struct(struct_format("blkif_response").replace("B", "x"))
# A tx slot as where its page lies, id and size.
TX_ID_AT: Final = offsetof("netif_tx_request", "id")
TX_REQUEST: Final = f"{TX_ID_AT}sHH"
assert Struct(f"<{TX_REQUEST}").size == packer("netif_tx_request").size
assert offsetof("netif_tx_request", "size") == TX_ID_AT + 2
TX_RESPONSE: Final = packer("netif_tx_response")

# Each sample lasts some milliseconds, long enough for the clock, short enough that limit
# and subject see the machine at one speed.
SAMPLE_REQUESTS: Final = 4096


class Pump:
    """A frontend that keeps a batch on the ring: each answered batch sends the next.

    What it asks for, `plan`, is its user's: told in advance and repeated for ever. It builds
    each request and keeps a completion for each in `shadow`, by the request's id, as the
    Linux frontends do. Subclasses build requests and name the response's layout. `errors`
    counts answers that were not the expected one.
    """

    response: Struct
    plan: Iterator[tuple[Any, ...]]

    def __init__(self, raw: Any, ring: FrontRing, batch: int) -> None:
        self.raw = raw
        self.ring = ring
        self.batch = batch
        self.answered = 0
        self.errors = 0
        self._left = self._in_flight = 0
        self.shadow: list[Callable[[int], None]] = [_idle] * batch
        guest = raw.guest
        self.pages = [guest.page() for _ in range(PAGES)]
        self.refs = [guest.grant(pfn) for pfn in self.pages]
        for pfn in self.pages:
            raw.domain.write(pfn, 0, bytes([0xA5]) * 4096)
        # A driver opens its channel with its handler; a raw end counts events in between.
        raw._channel.callback = self.poll
        self._send = raw.domain.evtchn.send
        self._port = raw.port

    def requests(self) -> bytes:
        """The next batch, packed, each request with its completion in `shadow`."""
        raise NotImplementedError

    def submit(self) -> None:
        self._left -= 1
        self._in_flight = self.batch
        if self.ring.push(self.requests(), self.batch):
            self._send(self._port)

    def poll(self) -> None:
        """The event: complete what is answered; a whole batch answered sends the next."""
        ring, shadow, unpack = self.ring, self.shadow, self.response.iter_unpack
        idle = _idle
        more = True
        while more:
            count, responses, more = ring.reap()
            for rid, status in unpack(responses):
                shadow[rid](status)
                shadow[rid] = idle
            self.answered += count
            self._in_flight -= count
        if self._left and not self._in_flight:
            self.submit()

    def complete(self, status: int) -> None:
        """A completion: what a driver would finish its SRB or its packet with."""
        if status:
            self.errors += 1

    def run(self, rounds: int) -> float:
        """Nanoseconds per request over that many batches."""
        self._left = rounds
        before = self.answered
        start = thread_time_ns()
        self.submit()
        self.raw.platform.run()
        took = thread_time_ns() - start
        done = self.answered - before
        if done != rounds * self.batch or self.errors:
            raise LocalProtocolError(
                f"{done} of {rounds * self.batch} requests answered, {self.errors} with an error"
            )
        return took / done


def _idle(_status: int) -> None:
    raise LocalProtocolError("a response to no request")


class BlkPump(Pump):
    """Reads of `segments` whole pages each, in turn over the disk."""

    response = RESPONSE

    def __init__(self, raw: Any, segments: int, batch: int) -> None:
        super().__init__(raw, raw.sring.ring, batch)
        wire = [(ref, 0, SECTORS_PER_PAGE - 1) for ref in self.refs] * 2
        # The segments of a request that begins at each of the pages: encoded once, as the
        # pages are granted once. A slot's id stays its own, and so does its head.
        whole = [
            blkif.request(segments).pack(READ, segments, 0, 0, 0, *chain(*wire[at : at + segments]))
            for at in range(PAGES)
        ]
        tails = [request[SEGMENTS_AT:] for request in whole]
        self._pack = Struct("<" + REQUEST * batch).pack
        head = whole[0][:ID_AT]
        self._fields = [field for rid in range(batch) for field in (head, rid, 0, b"")]
        step = segments * SECTORS_PER_PAGE
        sectors = range(0, DISK_SECTORS - step + 1, step)
        pages = range(0, PAGES * segments, segments)
        self.plan = zip(cycle(sectors), cycle([tails[at % PAGES] for at in pages]), strict=True)

    def requests(self) -> bytes:
        shadow, complete = self.shadow, self.complete
        fields = self._fields
        at = 2
        for rid, (sector, segments) in enumerate(islice(self.plan, self.batch)):
            fields[at] = sector
            fields[at + 1] = segments
            shadow[rid] = complete
            at += 4
        return self._pack(*fields)


class NetPump(Pump):
    """Frames of FRAME_BYTES to an address that nobody on the bridge has."""

    response = TX_RESPONSE

    def __init__(self, raw: Any, batch: int) -> None:
        super().__init__(raw, raw.tx.ring, batch)
        frame = bytes.fromhex("00163e00ffff 00163e000001 88b5").ljust(FRAME_BYTES, b"\xa5")
        for pfn in self.pages:
            raw.domain.write(pfn, 0, frame)
        self._pack = Struct("<" + TX_REQUEST * batch).pack
        self._fields = [field for rid in range(batch) for field in (b"", rid, 0)]
        pack = packer("netif_tx_request").pack
        heads = [pack(ref, 0, 0, 0, 0)[:TX_ID_AT] for ref in self.refs]
        self.plan = zip(cycle(heads), repeat(FRAME_BYTES), strict=True)

    def requests(self) -> bytes:
        shadow, complete = self.shadow, self.complete
        fields = self._fields
        at = 0
        for rid, (head, size) in enumerate(islice(self.plan, self.batch)):
            fields[at] = head
            fields[at + 2] = size
            shadow[rid] = complete
            at += 3
        return self._pack(*fields)


class Drain:
    """In the bridge's place: takes frames as limit.c's backend does, and forwards none."""

    def __init__(self) -> None:
        self.frames = 0

    def transmit(self, _port: object, frames: Sequence[Frame], _now_ns: int) -> None:
        self.frames += len(frames)

    def detach(self, _port: object) -> None:
        """Netback lets go of its bridge."""


def blk(segments: int, batch: int) -> Generator[Pair, None, None]:
    """ns per request: subject, limit."""
    from xenpv.testing.raw_world import world_raw

    rounds = max(1, SAMPLE_REQUESTS // batch // segments)
    limit = Limit()
    # Its disk begins at a page, as that of the limit does: a copy is a tenth slower otherwise.
    with world_raw(image=MemoryImage(mmap(-1, DISK_SECTORS * 512))) as world:
        pump = BlkPump(world.vbd, segments, batch)
        pump.run(rounds)
        while True:
            bound = limit.blk(segments=segments, batch=batch, rounds=4 * rounds)
            yield pump.run(rounds), bound.ns_per_request


def blk_bandwidth(segments: int, batch: int) -> Generator[Pair, None, None]:
    """10^9 bytes of data per second: subject, limit."""
    data = segments * SECTORS_PER_PAGE * 512
    for subject, limit in blk(segments, batch):
        assert limit is not None
        yield data / subject, data / limit


def net(batch: int) -> Generator[Pair, None, None]:
    """ns per frame: subject, limit."""
    from xenpv.testing.raw_world import world_raw

    rounds = max(1, SAMPLE_REQUESTS // batch)
    limit = Limit()
    with world_raw() as world:
        drain = Drain()
        device = world.platform.backends.device("vif", world.guest.domain.domid, 0)
        assert device is not None
        vif: Any = device.driver
        vif._bridge = drain
        pump = NetPump(world.vif, batch)
        pump.run(rounds)
        while True:
            bound = limit.net(size=FRAME_BYTES, batch=batch, rounds=4 * rounds)
            yield pump.run(rounds), bound.ns_per_request


def hook(batch: int) -> Generator[Pair, None, None]:
    """ns per request of the C limit: through the access seam with no hook set, without the seam."""
    rounds = 8 * SAMPLE_REQUESTS // batch
    limit = Limit()
    while True:
        bare = limit.blk(segments=1, batch=batch, rounds=rounds, text=Text.OWN)
        seam = limit.blk(segments=1, batch=batch, rounds=rounds, text=Text.HOOKED)
        yield seam.ns_per_request, bare.ns_per_request


def hook_log(batch: int) -> Generator[Pair, None, None]:
    """ns per request of `blk`: with the access log on, without."""
    from xenpv.testing.access import AccessLog
    from xenpv.testing.raw_world import world_raw

    rounds = max(1, SAMPLE_REQUESTS // batch)
    with world_raw(image=MemoryImage(bytearray(DISK_SECTORS * 512))) as world:
        pump = BlkPump(world.vbd, 1, batch)
        pump.run(rounds)
        while True:
            bare = pump.run(rounds)
            log = AccessLog(world.platform)
            log.open()
            yield pump.run(rounds), bare
            log.drop()
