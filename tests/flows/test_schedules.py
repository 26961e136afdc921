"""Other schedules, other moments: everything connects, and nothing is left when it ends."""

from __future__ import annotations

import random

import pytest

from xenpv import Disk, Guest, Livelock, MemoryImage, Platform, Vif
from xenpv.xen.loop import Loop

SEEDS = range(12)
SOAK_SEEDS = range(12, 3000)
PERSONALITIES = ("windows", "linux")
TREES = (
    "/local/domain/1/device/vif/0",
    "/local/domain/1/device/vbd/51712",
    "/local/domain/0/backend/vif/1/0",
    "/local/domain/0/backend/vbd/1/51712",
    "/local/domain/1/device",
)


def create(xen: Platform, name: str, personality: str) -> Guest:
    image = MemoryImage(bytearray(range(256)) * 64)
    return xen.create(name=name, disks=[Disk(image)], vifs=[Vif()], personality=personality)


def nothing_left(xen: Platform) -> None:
    xen.run()
    assert xen.dom0.gnttab.maptrack == {}
    assert xen.backends.devices == {}
    assert list(xen.hypervisor.domains) == [0]
    assert xen.hypervisor.dead == []


def some_tasks(loop: Loop, most: int) -> None:
    try:
        loop.run(limit=most)
    except Livelock:
        return  # more is due: that is the point


def two_guests(seed: int) -> None:
    """Boot both at once, use what they have, end them in different ways."""
    with Platform(seed=seed) as xen:
        guests = [create(xen, f"g{n}", PERSONALITIES[(seed + n) % 2]) for n in range(2)]
        for guest in guests:
            xen.toolstack.unpause(guest.created)
        xen.run()
        one, two = guests
        for guest in guests:
            assert [up for _, _, up in guest._connections()] == [True, True]
            assert guest.disks[0].read(3, 5) == bytes(range(256)) * 10
        one.nets[0].send(b"\xff" * 6 + one.nets[0].mac + b"\x88\xb5" + bytes(50))
        xen.run()
        assert len(two.nets[0].received) == 1
        if seed % 2:
            one.shutdown()
        else:
            one.destroy()
        two.reboot().shutdown()
        nothing_left(xen)


def pulled_early(seed: int) -> None:
    """A guest that ends somewhere between its first task and its last."""
    chance = random.Random(seed)
    with Platform(seed=seed) as xen:
        guest = create(xen, "g", chance.choice(PERSONALITIES))
        xs = xen.toolstack.xs
        xen.toolstack.unpause(guest.created)
        some_tasks(xen.loop, chance.randrange(1, 160))
        if seed % 4 == 1:
            guest.shutdown()
        elif seed % 4 == 2:
            for path in chance.sample(TREES, 3):
                xs.rm(path)
                some_tasks(xen.loop, chance.randrange(1, 40))
        elif seed % 4 == 3:
            xs.write("/local/domain/0/backend/vif/1/0/online", "0")
            xs.write("/local/domain/0/backend/vif/1/0/state", "5")
            xen.run()
            xen.advance(200)
        guest.destroy()
        nothing_left(xen)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_guests_in_any_order(seed: int) -> None:
    two_guests(seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_guest_may_end_at_any_moment(seed: int) -> None:
    pulled_early(seed)


@pytest.mark.soak
def test_thousands_of_schedules() -> None:
    for seed in SOAK_SEEDS:
        two_guests(seed)
        pulled_early(seed)
