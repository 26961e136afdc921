"""Devices that come and go while their guest is there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from xenpv import Disk, Guest, MemoryImage, Platform, Vif

MIB = 1 << 20


@pytest.fixture
def xen() -> Iterator[Platform]:
    with Platform(seed=1) as platform:
        yield platform


def image() -> MemoryImage:
    return MemoryImage(bytearray(MIB))


def make(xen: Platform, personality: str = "windows") -> Guest:
    """Two disks and two interfaces, created and paused."""
    return xen.create(
        name="g",
        personality=personality,
        disks=[Disk(image()), Disk(image())],
        vifs=[Vif(), Vif()],
    )


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_what_is_plugged_in_works_and_goes(xen: Platform, personality: str) -> None:
    guest = make(xen, personality).start()
    assert (guest.attach(Disk(image())), guest.attach(Vif())) == (51744, 2)
    guest.disks[2].write(3, b"x" * 512)
    assert guest.disks[2].read(3, 1) == b"x" * 512
    frame = b"\xff" * 6 + guest.nets[2].mac + bytes(48)
    guest.nets[2].send(frame)
    xen.run()
    assert xen.bridge("xenbr0").frames[-1] == frame
    guest.detach(guest.disks[2])
    guest.detach(guest.nets[2])
    assert [disk.devid for disk in guest.disks] == [51712, 51728]
    assert [net.number for net in guest.nets] == [0, 1]
    assert xen.loop.now == 0  # nobody had to be waited for
