"""Every frontend on every blkback: XenVbd and the kit's blkfront, four profiles, three layouts,
rings of 1 to 16 pages, 1 to 4 queues. Both connect, and what one end says the other one holds.
"""

from __future__ import annotations

import random
from itertools import product

import pytest

from xenpv import Disk, MemoryImage, Platform
from xenpv.abi.blkif import BLKIF_OP, BLKIF_RSP
from xenpv.back.blkback import Blkback
from xenpv.errors import LocalProtocolError
from xenpv.testing import check_all, world_blk
from xenpv.vbd.parameters import Parameters
from xenpv.vbd.units import UNITS

PROFILES = ["linux", "qemu", "tapdisk", "mirage"]
# What each lets a frontend have: order of the ring, and queues where dom0 has four vcpus.
ORDERS = {"linux": 4, "qemu": 4, "tapdisk": 3, "mirage": 0}
QUEUES = {"linux": 4, "qemu": 1, "tapdisk": 1, "mirage": 1}
# The three layouts, by the texts that the profile knows for them.
NATIVE = {"linux": "arm-abi", "qemu": "arm-abi", "tapdisk": "arm-abi", "mirage": "native"}
SIZES = [512, 3584, 4096, 4608, 45056, 45568, 131072, 300_032]
SLOTS = {0: 32, 1: 64, 2: 128, 3: 256, 4: 512}


def contents(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("queues", [1, 2, 3, 4])
@pytest.mark.parametrize("order", range(5))
@pytest.mark.parametrize("abi", ["x86_64-abi", "x86_32-abi", "native"])
@pytest.mark.parametrize("profile", PROFILES)
def test_blkfront(profile: str, abi: str, order: int, queues: int) -> None:
    protocol = NATIVE[profile] if abi == "native" else abi
    image = MemoryImage(bytearray(1 << 20))
    with world_blk(
        image=image, blkback=profile, protocol=protocol, order=order, queues=queues
    ) as w:
        disk = w.disk
        back = w.vbd.backend
        assert back is not None
        assert isinstance(back.driver, Blkback)
        assert back.driver.settings.profile.name == profile
        assert len(disk.queues) == min(queues, QUEUES[profile])
        assert {queue.ring.size for queue in disk.queues} == {SLOTS[min(order, ORDERS[profile])]}
        assert (disk.sectors, disk.sector_size, disk.info) == (2048, 512, 0)
        for number, size in enumerate(SIZES):
            data = contents(size, number)
            sector = number * 7
            disk.write(sector, data, queue=number)
            at = sector * 512
            assert bytes(image.buffer[at : at + size]) == data
            assert disk.read(sector, size, queue=number + 1) == data
        disk.flush()
        if "feature-discard" in disk.features:
            disk.discard(8, 16)
            assert not any(image.buffer[8 * 512 : 24 * 512])
        assert not disk.broken
        check_all(w.platform)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("abi", ["x86_64-abi", "x86_32-abi"])
def test_more_than_the_ring_holds_at_once(profile: str, abi: str) -> None:
    image = MemoryImage(bytearray(1 << 20))
    with world_blk(image=image, blkback=profile, protocol=abi, order=1, queues=2) as w:
        disk = w.disk
        blocks = [contents(4096, number) for number in range(200)]
        for number, block in enumerate(blocks):
            disk.submit(BLKIF_OP.WRITE, number * 8, 8, block, queue=number)
        w.run()
        assert bytes(image.buffer[: 200 * 4096]) == b"".join(blocks)
        reads = [disk.submit(BLKIF_OP.READ, n * 8, 8, queue=n)[0] for n in range(200)]
        w.run()
        assert [one.data for one in reads] == blocks
        assert not any(queue.shadow or queue.waiting for queue in disk.queues)


@pytest.mark.parametrize("profile", PROFILES)
def test_blkfront_closes_and_comes_again(profile: str) -> None:
    with world_blk(blkback=profile, order=2, queues=2) as w:
        disk = w.disk
        disk.write(0, b"first".ljust(512, b"."))
        for _ in range(2):
            disk.close()
            w.run()
            assert not disk.queues
            disk.reopen()
            w.run()
            assert disk.read(0, 512).startswith(b"first")
        check_all(w.platform)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_frontend_that_names_no_layout(profile: str) -> None:
    """x86_32's, on x86; mirage wants to be told."""
    if profile == "mirage":
        with pytest.raises(LocalProtocolError, match="protocol"):
            world_blk(blkback=profile, protocol="")
        return
    with world_blk(blkback=profile, protocol="") as w:
        w.disk.write(3, b"x" * 1024)
        assert w.disk.read(3, 1024) == b"x" * 1024


@pytest.mark.parametrize("profile", PROFILES)
def test_what_no_backend_does_is_refused(profile: str) -> None:
    """Beyond the end, and a write of a disk that is read-only."""
    with world_blk(blkback=profile) as w:
        (beyond,) = w.disk.submit(BLKIF_OP.READ, 2047, 2)
        w.run()
        assert beyond.status == BLKIF_RSP.ERROR
    image = MemoryImage(bytes(1 << 20), writable=False)
    with world_blk(image=image, blkback=profile) as w:
        # mirage's says 0, whatever its disk is.
        assert w.disk.info == (0 if profile == "mirage" else 4)
        (write,) = w.disk.submit(BLKIF_OP.WRITE, 0, 8, b"x" * 4096)
        w.run()
        assert write.status == BLKIF_RSP.ERROR
        assert not any(image.buffer)


@pytest.mark.parametrize("queues", [1, 2, 3, 4])
@pytest.mark.parametrize("order", range(5))
@pytest.mark.parametrize("profile", PROFILES)
def test_xenvbd(profile: str, order: int, queues: int) -> None:
    image = MemoryImage(bytearray(1 << 20))
    with Platform(seed=5, dom0_vcpus=4) as xen:
        guest = xen.create(
            name="web",
            vcpus=4,
            disks=[Disk(image, profile=profile)],
            vbd=Parameters(ring_page_order=order, queues=queues),
        ).start()
        (disk,) = guest.disks
        rings = disk.target.frontend.rings
        assert len(rings) == min(queues, QUEUES[profile])
        sizes = {ring.front.size for ring in rings if ring.front is not None}
        assert sizes == {SLOTS[min(order, ORDERS[profile])]}
        for number, size in enumerate(SIZES):
            data = contents(size, number)
            disk.write(number * 7, data)
            at = number * 7 * 512
            assert bytes(image.buffer[at : at + size]) == data
            assert disk.read(number * 7, size // 512) == data
        disk.flush()
        check_all(xen)
        guest.shutdown()


# (frontend's, backend's): sectors of 512 bytes that a 4Kn disk of 1 MiB has for the frontend;
# None: refused. What agrees is right; a pair that does not is the confusion of the field.
CAPACITY = {
    ("spec2024", "spec2024"): 256,
    ("spec2024", "linux"): 256,
    ("linux", "linux"): 256,
    ("linux", "spec2024"): 256,
    ("ss2019", "ss2019"): 256,
    ("ss2019", "spec2024"): 2048,
    ("ss2019", "linux"): 2048,
    ("spec2024", "ss2019"): None,
    ("linux", "ss2019"): None,
    ("freebsd", "freebsd"): 256,
    ("minios", "minios"): 256,
}


@pytest.mark.parametrize(("front", "back"), CAPACITY)
@pytest.mark.parametrize("profile", ["linux", "qemu"])
def test_sectors_of_4096_bytes(profile: str, front: str, back: str) -> None:
    image = MemoryImage(bytearray(1 << 20), sector_size=4096)
    capacity = CAPACITY[front, back]
    with Platform(seed=5) as xen:
        guest = xen.create(
            name="web",
            disks=[Disk(image, profile=profile, units=back)],
            vbd=Parameters(units=UNITS[front]),
        )
        if capacity is None:
            guest.unpause()
            xen.advance(5)
            assert not guest.disks or guest.disks[0].target.sectors == 0
            return
        guest.start()
        (disk,) = guest.disks
        assert (disk.sector_size, disk.capacity) == (4096, capacity)
        if capacity != 256:
            return
        for lba, count in ((0, 1), (1, 7), (200, 56), (255, 1)):
            data = contents(count * 4096, lba)
            disk.write(lba, data)
            assert bytes(image.buffer[lba * 4096 : (lba + count) * 4096]) == data
            assert disk.read(lba, count) == data


def test_the_table_has_every_pair_of_one_mind() -> None:
    assert {one for one in UNITS if (one, one) in CAPACITY} == set(UNITS)
    assert len(list(product(PROFILES, ORDERS))) == 16
