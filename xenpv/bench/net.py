"""Frames of a guest's programs, through XenNet, XenVif, netback and the bridge, and back.

A program sends a batch; a station on the bridge answers each frame with one as long; when the
whole batch is back, the next one goes. Both ends count CPU time of this thread. The limit beside
it is that of ring-net, twice: a frame goes over a ring each way.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack
from time import thread_time_ns
from typing import Final, Self

from xenpv.bench.limit import Limit
from xenpv.errors import LocalProtocolError
from xenpv.guest import Guest
from xenpv.host.network import GSO_NONE, GSO_TCPV4, Bridge, Frame
from xenpv.host.packet import ETHERTYPE_IPV4, TCP, ethernet_frame, ipv4_packet
from xenpv.net.adapter import Adapter
from xenpv.net.nbl import ChecksumRequest, NetBufferList
from xenpv.net.offload import ENCAPSULATION, IEEE_802_3
from xenpv.net.oid import Oid
from xenpv.platform import Platform, Vif

# (of the subject, of the limit beside it), in the bench's unit
Pair = tuple[float, float | None]

STREAM_BYTES: Final = 1514
SMALL_BYTES: Final = 64
GSO_BYTES: Final = 65_000  # about the largest that XenVif takes
MSS: Final = 1460
BATCH: Final = 128  # half of an rx ring
GSO_BATCH: Final = 8
SAMPLE_FRAMES: Final = 2048
SAMPLE_LARGE: Final = 128
LIMIT_BATCH: Final = 256
NS_PER_S: Final = 1e9

STATION_MAC: Final = bytes.fromhex("00163e00ffff")
GUESTS_MAX = 100  # tests lower it
FLOWS: Final = 64  # of a batch: enough that every queue has some
HEADERS: Final = 54  # Ethernet, IPv4, TCP


def segment(source: bytes, destination: bytes, flow: int, size: int) -> bytes:
    """A TCP frame of `size` bytes; its checksum is left blank."""
    ports = (1024 + flow).to_bytes(2, "big") + b"\x00\x50"
    tcp = ports + bytes(8) + b"\x50\x10\xff\xff" + bytes(4)
    body = tcp + b"\xa5" * (size - HEADERS)
    packet = ipv4_packet(b"\x0a\x00\x00\x01", b"\x0a\x00\x00\x02", TCP, body)
    return ethernet_frame(destination, source, ETHERTYPE_IPV4, packet)


class Station:
    """Answers every frame with one that was made before, later, as a port must."""

    def __init__(self, platform: Platform, bridge: Bridge, name: str = "station") -> None:
        self.name = name
        self.frames = 0
        self.answers: dict[bytes, list[Frame]] = {}  # by address, a batch for each
        self._due: list[tuple[bytes, int]] = []
        self._bridge = bridge
        self._loop = platform.loop
        self._task = platform.dom0.task(name, self._answer)
        bridge.attach(self)

    def receive(self, frames: Sequence[Frame]) -> None:
        """Frames of one sender."""
        self.frames += len(frames)
        self._due.append((frames[0].data[6:12], len(frames)))
        self._task.wake()

    def _answer(self) -> None:
        due, self._due = self._due, []
        for mac, count in due:
            self._bridge.transmit(self, self.answers[mac][:count], self._loop.now)


class Idle:
    """A port that says nothing."""

    def __init__(self, bridge: Bridge, name: str) -> None:
        self.name = name
        bridge.attach(self)

    def receive(self, frames: Sequence[Frame]) -> None:
        """A flood, before everybody is known."""


class Load:
    """A program of one guest that keeps `batch` frames on their way; large ones with `mss`."""

    def __init__(self, guest: Guest, station: Station, size: int, batch: int, mss: int = 0) -> None:
        self.nic: Adapter = guest.nets[0]
        self.batch = batch
        self._payload = batch * (size - HEADERS)  # bytes
        self._back = 0
        self._left = 0
        mac = self.nic.mac
        flows = [at % FLOWS for at in range(batch)]
        self._frames = [segment(mac, STATION_MAC, flow, size) for flow in flows]
        self._mss = mss
        kind = GSO_TCPV4 if mss else GSO_NONE
        answers = [segment(STATION_MAC, mac, flow, size) for flow in flows]
        station.answers[mac] = [
            Frame(one, csum_blank=bool(mss), gso_type=kind, gso_size=mss) for one in answers
        ]
        if mss:
            on = ENCAPSULATION.pack(*(1, IEEE_802_3, 14) * 2)
            self.nic.set(Oid.OFFLOAD_ENCAPSULATION, on)
        self.nic.receiver = self

    def start(self, rounds: int) -> None:
        self._left = rounds
        self._send()

    def _send(self) -> None:
        self._left -= 1
        self._back = 0
        if not self._mss:
            self.nic.send_many(self._frames)
            return
        sums = ChecksumRequest.IS_IPV4 | ChecksumRequest.TCP
        self.nic.send_lists(
            [NetBufferList(buffers=(one,), checksum=sums, mss=self._mss) for one in self._frames]
        )

    def receive(self, frames: Sequence[bytes]) -> None:
        """What came back; a large packet comes in parts, each with its headers."""
        self._back += sum(map(len, frames)) - HEADERS * len(frames)
        if self._back == self._payload and self._left:
            self._send()


class Net:
    """A platform with so many guests on one bridge, each with a load, and `ports` that are idle."""

    def __init__(
        self,
        size: int,
        batch: int = BATCH,
        *,
        mss: int = 0,
        guests: int = 1,
        queues: int = 1,
        ports: int = 0,
    ) -> None:
        self._stack = ExitStack()
        platform = self._stack.enter_context(Platform(dom0_vcpus=queues))
        self.platform = platform
        bridge = platform.bridge("xenbr0")
        self.station = Station(platform, bridge)
        for number in range(ports):
            Idle(bridge, f"idle{number}")
        made = [
            platform.create(name=f"net{number}", memory_mib=32, vcpus=queues, vifs=[Vif()]).start()
            for number in range(guests)
        ]
        self.loads = [Load(guest, self.station, size, batch, mss) for guest in made]
        self.frames = guests * batch
        self.run(1)  # both ends are known to the bridge, and the pages are touched

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, rounds: int) -> float:
        """Nanoseconds per frame, there and back, over so many batches of each guest."""
        before = self.station.frames
        start = thread_time_ns()
        for load in self.loads:
            load.start(rounds)
        self.platform.run()
        took = thread_time_ns() - start
        done = self.station.frames - before
        if done != rounds * self.frames or any(load._left for load in self.loads):
            raise LocalProtocolError(f"{done} of {rounds * self.frames} frames went and came back")
        return took / done

    def sample(self, frames: int = SAMPLE_FRAMES) -> float:
        """As `run`, over about so many frames."""
        return self.run(max(1, frames // self.frames))


def _limit_ns(limit: Limit, size: int) -> float:
    """Nanoseconds that a frame takes over two rings in C."""
    rounds = max(1, 4 * SAMPLE_FRAMES // LIMIT_BATCH)
    return 2 * limit.net(size=size, batch=LIMIT_BATCH, rounds=rounds).ns_per_request


def frames(size: int) -> Generator[Pair, None, None]:
    """10^3 frames per second: subject, limit."""
    limit = Limit()
    with Net(size) as net:
        while True:
            bound = _limit_ns(limit, size)
            yield NS_PER_S / net.sample() / 1e3, NS_PER_S / bound / 1e3


def bandwidth(size: int, batch: int = BATCH, mss: int = 0) -> Generator[Pair, None, None]:
    """10^6 bytes per second each way: subject, limit. C sends what is large in whole frames."""
    limit = Limit()
    wire, count = (STREAM_BYTES, SAMPLE_LARGE) if mss else (size, SAMPLE_FRAMES)
    with Net(size, batch, mss=mss) as net:
        while True:
            bound = _limit_ns(limit, wire)
            yield size / net.sample(count) * 1e3, wire / bound * 1e3


def wider(*, guests: int = 1, queues: int = 1, ports: int = 0) -> Generator[Pair, None, None]:
    """ns per small frame: with so many guests, queues or idle ports; with one guest and queue.

    Each queue has a batch of its own.
    """
    with (
        Net(SMALL_BYTES) as one,
        Net(
            SMALL_BYTES, BATCH * queues, guests=min(guests, GUESTS_MAX), queues=queues, ports=ports
        ) as many,
    ):
        while True:
            alone = one.sample()
            yield many.sample(), alone
