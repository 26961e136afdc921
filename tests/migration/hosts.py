"""Two hosts on one loop with a guest on the first, and what must hold of them afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from xenpv import Disk, Guest, MemoryImage, Platform, Vif
from xenpv.testing import check_all, leaks, take_census
from xenpv.testing.census import Census

IMAGE_BYTES = 256 * 1024
BLOCK = 4096
DATA = bytes(n * 131 & 0xFF for n in range(BLOCK))


@attrs.define(eq=False)
class Hosts:
    """`before` are the censuses of both with the guest connected on the first."""

    here: Platform
    there: Platform
    guest: Guest
    image: MemoryImage
    before: tuple[Census, Census]

    @property
    def running(self) -> list[Guest]:
        """Guests whose vcpus run, on either host."""
        return [one for xen in (self.here, self.there) for one in xen.guests if one.running]

    def check_no_leak(self, survivor: Guest) -> None:
        """The survivor's host holds what it held with the guest, the other one nothing of it."""
        has_it = survivor.platform
        other = self.there if has_it is self.here else self.here
        whole, empty = self.before
        name = survivor.name
        findings = leaks(whole.renamed("web", name).of(name), take_census(has_it).of(name))
        findings += [f"other host: {one}" for one in leaks(empty, take_census(other), lost=False)]
        assert not findings, "\n".join(findings)
        assert list(other.hypervisor.domains) == [0]
        for xen in (self.here, self.there):
            check_all(xen)


@contextmanager
def hosts(
    personality: str = "windows", *, seed: int = 3, image: MemoryImage | None = None, **config: int
) -> Iterator[Hosts]:
    image = MemoryImage(bytearray(IMAGE_BYTES)) if image is None else image
    with Platform(seed=seed) as here, Platform(seed=seed, loop=here.loop) as there:
        # Directories of the store that stay when the first guest is gone are no leak.
        there.create(name="first", disks=[Disk(MemoryImage(bytes(512)))], vifs=[Vif()]).destroy()
        there.guests.clear()
        guest = here.create(
            name="web",
            disks=[Disk(image)],
            vifs=[Vif(mac="00:16:3e:00:00:07")],
            personality=personality,
            **config,
        ).start()
        guest.disks[0].write(8, DATA)
        yield Hosts(here, there, guest, image, (take_census(here), take_census(there)))


def verify(guest: Guest, image: MemoryImage) -> None:
    """Its disk is what its image is, reads and writes, and frames go both ways."""
    xen = guest.platform
    disk = guest.disks[0]
    assert disk.read(8, 8) == DATA
    assert disk.read(0, 512) == bytes(image.buffer[: 512 * 512])
    disk.write(100, DATA[::-1])
    disk.flush()
    assert bytes(image.buffer[100 * 512 : 100 * 512 + BLOCK]) == DATA[::-1]
    net, bridge = guest.nets[0], xen.bridge("xenbr0")
    before = bridge.frames[-1] if bridge.frames else None
    frame = b"\xff" * 6 + net.mac + b"\x88\xb5" + xen.loop.now.to_bytes(8, "big") + bytes(42)
    net.send(frame)
    xen.run()
    assert bridge.frames[-1] == frame != before
