"""A frontend without a driver: it writes what a test tells it into the store and the ring.

The guest's own words (keys, slots, grants) are written raw; the only code of ours below it is
the ring's arithmetic, and `poke` goes around that too.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import attrs

from tests.world import World
from xenpv.abi._kernel import lib
from xenpv.back.blkback import Blkback, BlkbackFactory
from xenpv.back.blkprofile import Settings
from xenpv.back.xenbus import BackendBus, Device
from xenpv.bus.ring import FrontRing
from xenpv.host.image import Image, ImageProvider

DEVID = 51712
BACK = f"/local/domain/0/backend/vbd/1/{DEVID}"
FRONT = f"/local/domain/1/device/vbd/{DEVID}"

READ, WRITE, BARRIER, FLUSH, RESERVED, DISCARD, INDIRECT = range(7)
OKAY, ERROR, EOPNOTSUPP = 0, -1, -2

PERMIT, READONLY = 1, 4 | 1

# Formats of the wire, from the header's table of offsets and not from our declarations.
REQUEST_64, REQUEST_32 = "<BBH4xQQ", "<BBHQQ"
INDIRECT_64, INDIRECT_32 = "<BBH4xQQH2x8I4x", "<BBHQQH2x8I8x"
DISCARD_64, DISCARD_32 = "<BBH4xQQQ", "<BBHQQQ"
RESPONSE_64, RESPONSE_32 = "<QBxh4x", "<QBxh"

Segment = tuple[int, int, int]


@attrs.define(eq=False)
class RawFront:
    """One vbd of the world's guest; `connect` makes its ring."""

    world: World
    image: Image
    backends: BackendBus
    images: ImageProvider
    ring: FrontRing | None = None
    port: int = 0
    is_32: bool = False
    kind: str = "vbd"  # below backend/
    _refs: int = 64

    @property
    def device(self) -> Device:
        device = self.backends.device(self.kind, 1, DEVID)
        assert device is not None
        return device

    @property
    def driver(self) -> Blkback:
        driver = self.device.driver
        assert isinstance(driver, Blkback)
        return driver

    # store

    @property
    def back(self) -> str:
        return f"/local/domain/0/backend/{self.kind}/1/{DEVID}"

    def key(self, name: str) -> str:
        return self.world.read(f"{self.back}/{name}")

    @property
    def state(self) -> int:
        """The backend's, as the store has it."""
        return int(self.key("state"))

    def write(self, name: str, value: object) -> None:
        """One of the frontend's keys; the loop runs."""
        self.world.write(f"{FRONT}/{name}", str(value))
        self.world.loop.run()

    def hotplug(self) -> None:
        self.world.write(f"{self.back}/hotplug-status", "connected")
        self.world.loop.run()

    # memory

    def page(self, content: bytes = b"") -> int:
        pfn = self.world.guest.pages.alloc()
        self.world.guest.write(pfn, 0, content.ljust(4096, b"\0"))
        return pfn

    def grant(self, pfn: int, flags: int = PERMIT, domid: int = 0) -> int:
        """A fresh reference."""
        ref = self._refs
        self._refs += 1
        guest = self.world.guest
        guest.check(lib.grant_entry_set(guest.kernel, ref, domid, pfn, flags))
        return ref

    def revoke(self, ref: int) -> int:
        """What GTF_reading and writing allow; negative if the entry is in use."""
        return int(lib.grant_entry_revoke(self.world.guest.kernel, ref))

    # the ring

    def connect(
        self, *, protocol: str | None = "x86_64-abi", order: int | None = None, **keys: object
    ) -> RawFront:
        """Write the keys, then state 3; `keys` come last and may spoil earlier ones."""
        guest = self.world.guest
        self.is_32 = protocol in (None, "x86_32-abi")
        req_size, rsp_size = (108, 12) if self.is_32 else (112, 16)
        pfns = [self.page() for _ in range(1 << (order or 0))]
        self.ring = FrontRing(guest, pfns, req_size=req_size, rsp_size=rsp_size)
        self.port = guest.evtchn.alloc_unbound(0)
        values: dict[str, object] = {"event-channel": self.port}
        for index, pfn in enumerate(pfns):
            values["ring-ref" if order is None else f"ring-ref{index}"] = self.grant(pfn)
        if order is not None:
            values["ring-page-order"] = order
        if protocol is not None:
            values["protocol"] = protocol
        values |= {name.replace("_", "-"): value for name, value in keys.items()}
        for name, value in values.items():
            if value is not None:
                self.world.write(f"{FRONT}/{name}", str(value))
        self.write("state", 3)
        return self

    def request(
        self,
        operation: int,
        sector: int = 0,
        segments: Sequence[Segment] = (),
        *,
        rid: int = 7,
        nr: int | None = None,
    ) -> bytes:
        """A direct request's slot; `nr` lies about the number of segments."""
        count = len(segments) if nr is None else nr
        head = struct.pack(
            REQUEST_32 if self.is_32 else REQUEST_64, operation, count, 0, rid, sector
        )
        body = b"".join(struct.pack("<IBB2x", *segment) for segment in segments)
        return (head + body).ljust(108 if self.is_32 else 112, b"\0")

    def indirect(
        self,
        operation: int,
        sector: int,
        segments: Sequence[Segment],
        *,
        rid: int = 7,
        nr: int | None = None,
        table: Sequence[int] | None = None,
    ) -> bytes:
        """An indirect request's slot; its segment pages are made and granted read-only
        unless `table` gives references.
        """
        if table is None:
            body = b"".join(struct.pack("<IBB2x", *segment) for segment in segments)
            table = [
                self.grant(self.page(body[at : at + 4096]), READONLY)
                for at in range(0, max(1, len(body)), 4096)
            ]
        refs = [*table, *[0] * 8][:8]
        count = len(segments) if nr is None else nr
        layout = INDIRECT_32 if self.is_32 else INDIRECT_64
        slot = struct.pack(layout, INDIRECT, operation, count, rid, sector, 0, *refs)
        return slot.ljust(108 if self.is_32 else 112, b"\0")

    def discard(self, sector: int, count: int, *, flag: int = 0, rid: int = 7) -> bytes:
        layout = DISCARD_32 if self.is_32 else DISCARD_64
        slot = struct.pack(layout, DISCARD, flag, 0, rid, sector, count)
        return slot.ljust(108 if self.is_32 else 112, b"\0")

    def send(self, *slots: bytes) -> list[tuple[int, int, int]]:
        """Publish them together, notify, run; the answers as (id, operation, status)."""
        assert self.ring is not None
        if self.ring.push(b"".join(slots), len(slots)):
            self.world.guest.evtchn.send(self.port)
        self.world.loop.run()
        return self.answers()

    def answers(self) -> list[tuple[int, int, int]]:
        assert self.ring is not None
        count, packed = self.ring.take()
        layout = RESPONSE_32 if self.is_32 else RESPONSE_64
        answers = [tuple(fields) for fields in struct.iter_unpack(layout, packed)]
        assert len(answers) == count
        self.ring.final_check()
        return answers

    def status(self, slot: bytes) -> int:
        """Of the one answer to one request."""
        ((_rid, _operation, status),) = self.send(slot)
        return status

    def poke(self, offset: int, data: bytes) -> None:
        """Bytes of the ring's first page, as a hostile guest writes them; then an event."""
        assert self.ring is not None
        self.world.guest.write(self.ring.pfns[0], offset, data)
        self.world.guest.evtchn.send(self.port)
        self.world.loop.run()


def make(
    world: World,
    image: Image,
    *,
    mode: str = "w",
    plugged: bool = True,
    settings: Settings | None = None,
    **back: str,
) -> RawFront:
    """A vbd whose backend was probed, with its image open if `plugged`."""
    settings = settings or Settings()
    kind = settings.profile.directory
    images = ImageProvider()
    images.register("image", image)
    factory = BlkbackFactory(images, lambda *_device: settings)
    backends = BackendBus(world.dom0, world.back_store(), world.dispatcher, {kind: factory})
    front = RawFront(world, image, backends, images, kind=kind)
    world.write(f"{FRONT}/state", "1")
    keys = {
        "frontend": FRONT,
        "frontend-id": "1",
        "online": "1",
        "mode": mode,
        "params": "image",
        "device-type": "disk",
        "removable": "0",
    }
    for name, value in (keys | {k.replace("_", "-"): v for k, v in back.items()}).items():
        world.write(f"{front.back}/{name}", value)
    world.write(f"{front.back}/state", "1")
    world.loop.run()
    if plugged:
        front.hotplug()
    return front
