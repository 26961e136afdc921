"""A disk that gets another size while it is in use, by profile."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.back.blkprofiles import heard, scene, watcher
from tests.vbd.rawfront import ERROR, OKAY, READ
from xenpv import Disk, MemoryImage, Platform
from xenpv.back.blkserver import BlkServer
from xenpv.errors import ConfigError, LocalProtocolError
from xenpv.host.image import Image, RawImage

KIB = 1024

# profile, what is written for a frontend that is connected, and whether both have one watch event
# of one commit; None: it is not told.
TOLD = [
    ("linux", ["sectors", "state"]),
    ("qemu", ["sectors", "state"]),
    ("tapdisk", []),
    ("mirage", []),
]


@pytest.mark.parametrize(("profile", "written"), TOLD)
@pytest.mark.parametrize("size", [256 * KIB, 1024 * KIB])
def test_what_is_written_of_a_new_size(profile: str, written: list[str], size: int) -> None:
    image = MemoryImage(bytearray(512 * KIB))
    with scene(profile, image=image) as front:
        front.connect()
        xs = watcher(front)
        image.resize(size)
        front.driver.resized()
        assert heard(xs) == written
        front.world.loop.run()
        assert front.key("sectors") == str(size // 512 if written else KIB)
        assert front.state == 4
        ref = front.grant(front.page())
        # The last sector of the new size and the first beyond it.
        last = size // 512 - 1
        known = OKAY if written or size < 512 * KIB else ERROR
        assert front.status(front.request(READ, last, [(ref, 0, 0)])) == known
        assert front.status(front.request(READ, last + 1, [(ref, 0, 0)])) == ERROR


@pytest.mark.parametrize(("profile", "transactions"), [("linux", 1), ("qemu", 0)])
def test_linux_tells_in_one_transaction_and_qemu_in_two_writes(
    profile: str, transactions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = MemoryImage(bytearray(512 * KIB))
    with scene(profile, image=image) as front:
        front.connect()
        store, counted = front.device.store, []
        original = type(store).transaction
        monkeypatch.setattr(
            type(store), "transaction",
            lambda self, body: (counted.append(1), original(self, body))[1],
        )  # fmt: skip
        image.resize(1024 * KIB)
        front.driver.resized()
        assert len(counted) == transactions


def test_a_size_that_did_not_change_is_not_told() -> None:
    with scene("linux") as front:
        front.connect()
        xs = watcher(front)
        front.driver.resized()
        assert heard(xs) == []


@pytest.mark.parametrize("profile", ["linux", "qemu"])
def test_a_size_that_changed_before_the_connection(profile: str) -> None:
    image = MemoryImage(bytearray(512 * KIB))
    with scene(profile, image=image) as front:
        xs = watcher(front)
        image.resize(1024 * KIB)
        front.driver.resized()
        # Linux' thread does not run yet; QEMU tells at any time.
        assert heard(xs) == ([] if profile == "linux" else ["sectors", "state"])
        assert front.state == 2
        front.connect()
        assert front.key("sectors") == "2048"


@pytest.mark.parametrize(("units", "sectors"), [("linux", "2048"), ("ss2019", "256")])
def test_a_new_size_is_told_in_the_units_of_the_disk(units: str, sectors: str) -> None:
    image = MemoryImage(bytearray(512 * KIB), sector_size=4096)
    with scene("qemu", image=image, units=units) as front:
        front.connect(feature_large_sector_size=1)
        image.resize(1024 * KIB)
        front.driver.resized()
        assert front.key("sectors") == sectors


def test_requests_in_flight_outlive_a_new_size() -> None:
    image = MemoryImage(bytearray(512 * KIB))
    with scene("linux", image=image, latency_ns=1_000_000) as front:
        front.connect()
        assert isinstance(front.driver.queues[0].ring, BlkServer)
        assert front.ring is not None
        refs = [front.grant(front.page()) for _ in range(2)]
        slots = [
            front.request(READ, at, [(ref, 0, 7)], rid=at)
            for at, ref in zip((0, 1016), refs, strict=True)
        ]
        front.ring.push(b"".join(slots), 2)
        front.world.guest.evtchn.send(front.port)
        front.world.loop.advance(0)
        image.resize(256 * KIB)
        front.driver.resized()
        front.world.loop.run()
        answers = {rid: status for rid, _op, status in front.answers()}
        assert answers == {0: OKAY, 1016: ERROR}


# the user's call


def image_of(kind: str, folder: Path) -> Image | Path:
    if kind == "memory":
        return MemoryImage(bytes(1 << 20))
    path = folder / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.mark.parametrize("profile", ["linux", "qemu"])
@pytest.mark.parametrize("kind", ["memory", "file"])
@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_a_guest_sees_a_new_size_and_uses_it(
    profile: str, kind: str, personality: str, tmp_path: Path
) -> None:
    with Platform(seed=7) as xen:
        disk = Disk(image_of(kind, tmp_path), profile=profile)
        guest = xen.create(name="g", disks=[disk], personality=personality).start()
        (mine,) = guest.disks
        mine.write(2047, b"e" * 512)
        xen.resize_disk(guest, "xvda", 2 << 20)
        assert mine.capacity == 4096
        mine.write(4095, b"z" * 512)
        assert mine.read(2047, 1) == b"e" * 512
        assert mine.read(4095, 1) == b"z" * 512
        assert mine.read(2048, 1) == bytes(512)
        xen.resize_disk(guest, "xvda", 1 << 20)
        assert mine.capacity == 2048
        assert mine.read(2047, 1) == b"e" * 512
        if kind == "file":
            assert (tmp_path / "disk.img").stat().st_size == 1 << 20


def test_every_disk_of_an_image_is_told() -> None:
    with Platform() as xen:
        shared = MemoryImage(bytes(1 << 20))
        disks = [Disk(shared, readonly=True)]
        guests = [xen.create(name=name, disks=disks).start() for name in ("a", "b")]
        xen.resize_disk(guests[0], "xvda", 2 << 20)
        assert [guest.disks[0].capacity for guest in guests] == [4096, 4096]


def test_a_disk_of_a_driver_domain_is_resized_there() -> None:
    with Platform() as xen:
        xen.create(name="dd", personality="linux", driver_domain=True).start()
        disk = Disk(MemoryImage(bytes(1 << 20)), backend="dd")
        guest = xen.create(name="g", disks=[disk]).start()
        xen.resize_disk(guest, "xvda", 2 << 20)
        assert guest.disks[0].capacity == 4096


class Fixed:
    """An image whose size is its owner's."""

    size_bytes = 1 << 20
    sector_size = physical_sector_size = 512
    writable = False
    buffer = None

    def read_into(self, buffer: memoryview, offset: int) -> None:
        del offset
        buffer[:] = bytes(len(buffer))

    def write_from(self, buffer: memoryview, offset: int) -> None:
        """Not writable."""

    def flush(self) -> None:
        """Nothing to flush."""

    def discard(self, offset: int, length: int) -> bool:
        del offset, length
        return False

    def close(self) -> None:
        """Nothing to close."""


def test_what_cannot_be_resized_says_so(tmp_path: Path) -> None:
    with Platform() as xen:
        path = image_of("file", tmp_path)
        disks = [Disk(path), Disk(Fixed(), readonly=True)]
        guest = xen.create(name="g", disks=disks).start()
        for size in (0, -512, 1000, 1 << 20 | 1):
            with pytest.raises(ConfigError, match="512"):
                xen.resize_disk(guest, "xvda", size)
        with pytest.raises(LocalProtocolError, match="no image that can be resized"):
            xen.resize_disk(guest, "xvdb", 1 << 21)
        with pytest.raises(LocalProtocolError, match="no disk 'xvdz'"):
            xen.resize_disk(guest, "xvdz", 1 << 21)
        assert guest.disks[0].capacity == 2048


def test_a_file_that_is_read_only_keeps_its_size(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    image = RawImage(str(path), writable=False)
    with pytest.raises(ConfigError, match="cannot be resized"):
        image.resize(8192)
    assert image.size_bytes == 4096
    image.close()
