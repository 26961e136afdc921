"""A raw frontend whose requests are served one by one, by the rules that a test names."""

from __future__ import annotations

import struct

import attrs

from tests.vbd.rawfront import RawFront, make
from tests.world import World
from xenpv.abi._kernel import lib
from xenpv.back.blkprofile import LINUX, PROFILES, Settings
from xenpv.back.blkserver import BlkServer
from xenpv.back.blkunits import UNITS
from xenpv.host.image import ImageError, MemoryImage

SECTORS = 1024
MS = 1_000_000


def content(sectors: int = SECTORS) -> bytearray:
    """Each sector says its number, so that a misplaced one shows."""
    return bytearray(b"".join(struct.pack("<I", n) * 128 for n in range(sectors)))


def sectors_of(first: int, count: int) -> bytes:
    return b"".join(struct.pack("<I", n) * 128 for n in range(first, first + count))


class LoggedImage(MemoryImage):
    """Tells what is asked of it, and fails where it is told to."""

    data: memoryview
    buffer = property(lambda _self: None, lambda self, view: setattr(self, "data", view))

    def __init__(self, data: bytearray, *, sector_size: int = 512) -> None:
        super().__init__(data, sector_size=sector_size)
        self.log: list[tuple[str, int, int]] = []
        self.bad: set[int] = set()  # sectors of 512 bytes
        self.flush_error: ImageError | None = None
        self.discards = True

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self._access("read", offset, buffer.nbytes)
        buffer[:] = self.data[offset : offset + buffer.nbytes]

    def write_from(self, buffer: memoryview, offset: int) -> None:
        self._access("write", offset, buffer.nbytes)
        self.data[offset : offset + buffer.nbytes] = buffer

    def flush(self) -> None:
        self.log.append(("flush", 0, 0))
        if self.flush_error is not None:
            raise self.flush_error

    def discard(self, offset: int, length: int) -> bool:
        self._access("discard", offset, length)
        if self.discards:
            self.data[offset : offset + length] = bytes(length)
        return self.discards

    def _access(self, what: str, offset: int, length: int) -> None:
        self.log.append((what, offset, length))
        if any(offset <= bad * 512 < offset + length for bad in self.bad):
            raise ImageError("EIO")


@attrs.define(eq=False)
class Scene:
    """`front` and the server of its one ring."""

    front: RawFront
    server: BlkServer
    image: LoggedImage
    rings: tuple[int, int]  # pins and maps of what the scene began with

    @property
    def world(self) -> World:
        return self.front.world

    @property
    def now(self) -> int:
        return self.world.loop.now

    def pinned(self) -> int:
        """References of the guest that somebody has mapped, beyond those of its rings."""
        return self.world.guest.gnttab.pinned() - self.rings[0]

    def maps(self) -> int:
        """Pages that dom0 has mapped, beyond those of rings."""
        return len(self.world.dom0.gnttab.maptrack) - self.rings[1]

    def start(self, *slots: bytes) -> list[tuple[int, int, int]]:
        """Publish requests; answers of what is done without that time passes."""
        front = self.front
        assert front.ring is not None
        if front.ring.push(b"".join(slots), len(slots)):
            self.world.guest.evtchn.send(front.port)
        return self.wait(0)

    def wait(self, ns: int) -> list[tuple[int, int, int]]:
        self.world.loop.advance(ns)
        return self.front.answers()

    def page(self, data: bytes = b"", *, readonly: bool = False) -> tuple[int, int]:
        """pfn and reference of a page that dom0 may use."""
        pfn = self.front.page(data)
        return pfn, self.front.grant(pfn, 5 if readonly else 1)

    def read(self, pfn: int, offset: int = 0, size: int = 4096) -> bytes:
        return self.world.guest.read(pfn, offset, size)


def serve(
    front: RawFront,
    profile: str = "linux",
    *,
    units: str | None = None,
    latency_ns: int = 0,
    persistent: bool = False,
) -> BlkServer:
    """Put a server of that profile in the place of what serves the frontend's ring."""
    one = PROFILES[profile]
    settings = Settings(one, UNITS[units] if units else one.units, latency_ns)
    (queue,) = front.driver.queues
    old = queue.ring
    server = BlkServer(
        old.ring, old.port, old.abi, old.granter, old.bounce, settings,
        name="vbd", persistent=persistent,
    )  # fmt: skip
    server.task = queue.task
    queue.ring = server
    return server


def scene(
    world: World,
    profile: str = "linux",
    *,
    mode: str = "w",
    sector_size: int = 512,
    protocol: str = "x86_64-abi",
    order: int | None = None,
    units: str | None = None,
    latency_ns: int = 0,
    persistent: bool = False,
    data: bytearray | None = None,
    **back: str,
) -> Scene:
    image = LoggedImage(content() if data is None else data, sector_size=sector_size)
    front = make(world, image, mode=mode, **back).connect(protocol=protocol, order=order)
    server = serve(front, profile, units=units, latency_ns=latency_ns, persistent=persistent)
    rings = world.guest.gnttab.pinned(), len(world.dom0.gnttab.maptrack)
    return Scene(front, server, image, rings)


def grant_bits(world: World, ref: int) -> int:
    return int(lib.grant_entry_flags(world.guest.kernel, ref)) & 0x18


__all__ = ["LINUX", "MS", "LoggedImage", "Scene", "content", "grant_bits", "scene", "sectors_of"]
