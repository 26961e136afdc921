"""Save files: what is in them is a guest again, and nothing else is taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from xenpv import Disk, Guest, MemoryImage, Platform, Vif

IMAGE = bytes(range(256)) * 256
KERNELS = [
    ("windows", True, 1),
    ("windows", False, 3),
    ("linux", False, 1),
    ("linux", True, 2),
]


def made(
    xen: Platform, personality: str = "windows", fifo: bool | None = None, vcpus: int = 1
) -> Guest:
    disk = Disk(MemoryImage(bytearray(IMAGE)))
    return xen.create(
        name="web", disks=[disk], vifs=[Vif()], personality=personality, fifo=fifo, vcpus=vcpus
    ).start()


def talks(xen: Platform, guest: Guest) -> None:
    """A frame of its own reaches the bridge, one from there reaches it."""
    bridge, adapter = xen.bridge("xenbr0"), guest.nets[0]
    before = len(bridge.frames)
    adapter.send(b"\xff" * 6 + adapter.mac + b"\x88\xb5" + bytes(50))
    xen.run()
    assert len(bridge.frames) == before + 1


@pytest.mark.parametrize(("personality", "fifo", "vcpus"), KERNELS)
def test_a_guest_goes_on_in_another_platform(
    tmp_path: Path, personality: str, fifo: bool, vcpus: int
) -> None:
    path = tmp_path / "web.save"
    with Platform(seed=3) as xen:
        guest = made(xen, personality, fifo, vcpus)
        guest.disks[0].write(8, b"\x5a" * 4096)
        uuid = guest.created.uuid
        guest.save(path)
        assert guest.created.domain.dead
        assert list(tmp_path.iterdir()) == [path]
    with Platform(seed=4) as xen:
        xen.create(name="other")
        guest = xen.restore(path)
        assert (guest.name, guest.domid, guest.created.uuid) == ("web", 2, uuid)
        assert guest.disks[0].read(0, 8) == IMAGE[:4096]
        assert guest.disks[0].read(8, 8) == b"\x5a" * 4096
        talks(xen, guest)
        guest.disks[0].write(16, b"\xa5" * 4096)
        assert guest.disks[0].read(16, 8) == b"\xa5" * 4096
        assert guest.shutdown() == 0
