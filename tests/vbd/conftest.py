from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest

from xenpv import Disk, Guest, MemoryImage, Platform
from xenpv.back.blkback import Blkback
from xenpv.vbd.adapter import Vbd
from xenpv.vbd.srb import Srb
from xenpv.vbd.target import Target
from xenpv.xen.domain import Domain

SECTORS = 2048
RSP_PROD = 8


def content(sectors: int = SECTORS) -> bytearray:
    """Every sector differs from its neighbours."""
    return bytearray(b"".join(n.to_bytes(2, "little") * 256 for n in range(sectors)))


@attrs.define(eq=False)
class Scene:
    """A guest with one disk, and both ends of its ring at hand."""

    xen: Platform
    guest: Guest
    image: MemoryImage

    @property
    def domain(self) -> Domain:
        return self.guest.created.domain

    @property
    def target(self) -> Target:
        return self.guest.disks[0].target

    @property
    def adapter(self) -> Vbd:
        assert self.guest.bus is not None
        driver = self.guest.bus.pdos["VBD"].driver
        assert isinstance(driver, Vbd)
        return driver

    @property
    def back(self) -> Blkback:
        device = self.xen.backends.device("vbd", self.guest.domid, 51712)
        assert device is not None
        assert isinstance(device.driver, Blkback)
        return device.driver

    def srb(
        self, cdb: bytes, size: int = 0, pages: list[tuple[int, int, int]] | None = None
    ) -> Srb:
        """An SRB with a buffer of `size` bytes, or over the pieces given."""
        if pages is None:
            pages = [(self.domain.pages.alloc(-(-size // 4096)), 0, size)] if size else []
        return Srb(cdb=cdb, data=pages)

    def send(self, cdb: bytes, size: int = 0) -> Srb:
        srb = self.srb(cdb, size)
        self.target.submit(srb)
        self.xen.run()
        return srb

    def reply(self, srb: Srb) -> bytes:
        pfn, offset, _ = srb.data[0]
        return self.domain.read(pfn, offset, srb.data_transfer_length)

    def freeze(self) -> None:
        """The backend answers nothing more: its queues' threads are held."""
        for queue in self.back.queues:
            queue.task.hold()

    def answer(self, slots: list[bytes], prod: int | None = None) -> None:
        """Write responses into the ring as a backend could, and raise the event."""
        ring = self.back.queues[0].ring
        page = ring.ring.pfns[0]
        dom0 = self.xen.dom0
        start = dom0.load32(page, RSP_PROD)
        for number, slot in enumerate(slots):
            dom0.write(page, 64 + (start + number) % ring.ring.size * 112, slot)
        dom0.store32(page, RSP_PROD, start + len(slots) if prod is None else prod)
        dom0.evtchn.send(ring.port)
        self.xen.run()

    def request_id(self, index: int = 0) -> bytes:
        """The id of the request in a slot."""
        page = self.back.queues[0].ring.ring.pfns[0]
        return self.xen.dom0.read(page, 64 + index * 112 + 8, 8)


def scene(
    personality: str = "windows", *, readonly: bool = False, sectors: int = SECTORS, seed: int = 7
) -> Scene:
    xen = Platform(seed=seed)
    image = MemoryImage(content(sectors))
    disk = Disk(image, readonly=readonly)
    guest = xen.create(name="g", disks=[disk], personality=personality).start()
    return Scene(xen=xen, guest=guest, image=image)


@pytest.fixture
def s() -> Iterator[Scene]:
    made = scene()
    yield made
    made.xen.close()
