"""A suspended guest as plain data, and that data as a guest that runs in a new domain."""

from __future__ import annotations

import json

import pytest

from tests.migration import copy
from xenpv import Disk, Guest, Platform, Vif
from xenpv.host.image import MemoryImage

IMAGE = bytes(range(256)) * 256

# personality, fifo, vcpus
KERNELS = [
    ("windows", True, 1),
    ("windows", False, 1),
    ("windows", True, 4),
    ("windows", False, 3),
    ("linux", False, 1),
    ("linux", True, 2),
]


def made(xen: Platform, personality: str = "windows", fifo: bool = True, vcpus: int = 1) -> Guest:
    return xen.create(
        name="web",
        disks=[Disk(MemoryImage(bytearray(IMAGE)))],
        vifs=[Vif()],
        personality=personality,
        fifo=fifo,
        vcpus=vcpus,
    ).start()


def frames_flow(xen: Platform, guest: Guest) -> None:
    bridge = xen.bridge("xenbr0")
    before = len(bridge.frames)
    guest.nets[0].send(b"\xff" * 6 + guest.nets[0].mac + b"\x88\xb5" + bytes(50))
    xen.run()
    assert len(bridge.frames) > before


@pytest.mark.parametrize(("personality", "fifo", "vcpus"), KERNELS)
def test_a_guest_goes_on_in_a_new_domain(personality: str, fifo: bool, vcpus: int) -> None:
    with Platform(seed=3) as xen:
        guest = made(xen, personality, fifo, vcpus)
        guest.disks[0].write(8, b"\x5a" * 4096)
        domid = guest.domid
        new = copy.moved(xen, guest)
        assert new.domid != domid
        assert new.disks[0].read(0, 8) == IMAGE[:4096]
        assert new.disks[0].read(8, 8) == b"\x5a" * 4096
        frames_flow(xen, new)
        assert new.bus is not None
        assert new.bus.suspend.get_count() == 1
        assert new.bus.evtchn.is_fifo is fifo
        assert new.shutdown() == 0


@pytest.mark.parametrize(("personality", "fifo", "vcpus"), KERNELS)
def test_what_is_rebuilt_is_captured_the_same(personality: str, fifo: bool, vcpus: int) -> None:
    with Platform(seed=3) as xen:
        guest = made(xen, personality, fifo, vcpus)
        copy.suspend(xen, guest)
        saved = copy.save(guest)
        assert copy.text_of(guest) == saved[0]
        config = guest.created.config
        guest.destroy()
        new = copy.load(xen, config, saved)
        assert json.loads(copy.text_before_it_runs(new)) == json.loads(saved[0])
