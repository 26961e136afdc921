"""The host cannot do an I/O: the guest sees a failed SRB, and nothing else is lost."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers import need
from xenpv import Disk, Guest, MemoryImage, Platform, RawImage
from xenpv.host.faultyimage import FaultyImage
from xenpv.host.qemunbd import NbdImage
from xenpv.vbd.disk import Disk as GuestDisk
from xenpv.vbd.disk import DiskError
from xenpv.vbd.srb import SrbStatus

MS = 1_000_000
SECTORS = 2048
KINDS = [("windows", 0), ("windows", MS), ("linux", 0), ("linux", MS)]


def pattern(sectors: int, salt: int = 0) -> bytes:
    return b"".join((n + salt).to_bytes(2, "little") * 256 for n in range(sectors))


class Scene:
    """A guest whose disk's image fails where it is told to."""

    def __init__(self, xen: Platform, personality: str, latency_ns: int) -> None:
        self.memory = MemoryImage(bytearray(pattern(SECTORS)))
        self.faulty = FaultyImage(self.memory)
        disk = Disk(self.faulty, latency_ns=latency_ns)
        self.xen = xen
        self.guest: Guest = xen.create(name="g", disks=[disk], personality=personality).start()
        self.disk: GuestDisk = self.guest.disks[0]
        self.model = bytearray(self.memory.buffer)

    def check(self) -> None:
        """The image is as what succeeded made it, and the disk goes on."""
        assert self.memory.buffer == self.model
        self.faulty.faults.clear()
        assert self.disk.read(0, SECTORS) == self.model
        self.disk.write(SECTORS - 1, b"\x01" * 512)
        self.disk.flush()
        assert self.memory.buffer[-512:] == b"\x01" * 512


@pytest.fixture(params=KINDS, ids=str)
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with Platform(seed=5) as xen:
        yield Scene(xen, *request.param)


@pytest.mark.parametrize("count", [1, 8, 88, 600], ids="{} sectors".format)
@pytest.mark.parametrize("done", [0, 512], ids=["EIO", "short"])
def test_a_read_that_fails_is_a_failed_srb(scene: Scene, count: int, done: int) -> None:
    scene.faulty.fail("read", start=100 * 512, end=101 * 512, done=done)
    with pytest.raises(DiskError) as caught:
        scene.disk.read(100, count)
    assert caught.value.srb_status is SrbStatus.ERROR
    assert scene.disk.read(0, 100) == scene.model[: 100 * 512]
    assert scene.disk.read(101, count) == scene.model[101 * 512 :][: count * 512]
    scene.check()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("count", [1, 8, 88])
def test_a_write_that_fails_is_a_failed_srb(scene: Scene, count: int, number: int) -> None:
    scene.faulty.fail("write", number, start=100 * 512, end=101 * 512)
    with pytest.raises(DiskError) as caught:
        scene.disk.write(100, pattern(count, 7))
    assert caught.value.srb_status is SrbStatus.ERROR
    scene.disk.write(0, pattern(100, 9))
    scene.model[: 100 * 512] = pattern(100, 9)
    scene.check()


def test_every_sector_of_a_failed_write_is_old_or_new(scene: Scene) -> None:
    """600 sectors are several requests, of which one fails in its midst."""
    new = pattern(600, 11)
    scene.faulty.fail("write", errno.ENOSPC, start=300 * 512, end=301 * 512, done=1024)
    with pytest.raises(DiskError):
        scene.disk.write(100, new)
    kept = 0
    for n in range(SECTORS):
        here = bytes(scene.memory.buffer[n * 512 : n * 512 + 512])
        old = bytes(scene.model[n * 512 : n * 512 + 512])
        if here != old:
            assert here == new[(n - 100) * 512 :][:512]
            kept += 1
    assert 0 < kept < 600
    scene.model[:] = scene.memory.buffer
    scene.check()


@pytest.mark.parametrize("failing", range(6))
@pytest.mark.parametrize("operation", ["read", "write"])
def test_of_neighbours_only_the_one_whose_error_it_is_fails(
    scene: Scene, operation: str, failing: int
) -> None:
    """Six commands side by side, which one I/O of the host could do."""
    at = failing * 8 * 512
    scene.faulty.fail(operation, start=at, end=at + 1)
    disk = scene.disk
    flying = []
    for n in range(6):
        if operation == "read":
            flying.append(disk.start_read(n * 8, 8))
        else:
            flying.append(disk.start_write(n * 8, pattern(8, 100 + n)))
            if n != failing:
                scene.model[n * 4096 : n * 4096 + 4096] = pattern(8, 100 + n)
    scene.xen.run()
    statuses = [pending.srb_status is SrbStatus.SUCCESS for pending in flying]
    assert statuses == [n != failing for n in range(6)]
    scene.check()


def test_a_flush_that_fails_is_told(scene: Scene) -> None:
    scene.disk.write(3, b"\x33" * 512)
    scene.faulty.fail("flush", times=1)
    with pytest.raises(DiskError) as caught:
        scene.disk.flush()
    assert caught.value.srb_status is SrbStatus.ERROR
    scene.disk.flush()
    scene.model[3 * 512 : 4 * 512] = b"\x33" * 512
    scene.check()


def test_a_discard_that_fails_is_a_failed_srb(scene: Scene) -> None:
    scene.faulty.fail("discard", start=64 * 512, end=65 * 512)
    with pytest.raises(DiskError):
        scene.disk.unmap([(0, 8), (64, 8), (128, 8)])
    for first in (0, 128):  # its descriptors are requests of their own
        scene.model[first * 512 : first * 512 + 4096] = bytes(4096)
    scene.check()


def test_a_discard_that_the_host_lacks_is_no_error_and_not_asked_for_again(scene: Scene) -> None:
    fault = scene.faulty.fail("discard", errno.EOPNOTSUPP)
    for _ in range(3):
        scene.disk.unmap([(0, 8)])
    assert fault.fired == 1
    scene.check()


# real files


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "disk.img"
    file.write_bytes(pattern(SECTORS))
    return str(file)


@pytest.mark.parametrize("latency_ns", [0, MS])
def test_a_file_that_is_cut_under_its_guest_fails_where_it_ends(path: str, latency_ns: int) -> None:
    with Platform(seed=1) as xen:
        guest = xen.create(name="g", disks=[Disk(path, latency_ns=latency_ns)]).start()
        os.truncate(path, 1000 * 512)
        disk = guest.disks[0]
        assert disk.read(0, 1000) == pattern(1000)
        with pytest.raises(DiskError):
            disk.read(990, 20)
        with pytest.raises(DiskError):
            disk.read(SECTORS - 1, 1)
        disk.write(999, b"\x05" * 512)
        disk.flush()
    assert Path(path).read_bytes()[999 * 512 :] == b"\x05" * 512


@pytest.mark.parametrize("latency_ns", [0, MS])
def test_a_disk_whose_flush_failed_once_never_flushes_again(
    path: str, latency_ns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells of a lost write once: SUCCESS afterwards would be a lie."""

    def lost(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with Platform(seed=1) as xen:
        guest = xen.create(name="g", disks=[Disk(path, latency_ns=latency_ns)]).start()
        disk = guest.disks[0]
        disk.flush()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", lost)
            with pytest.raises(DiskError):
                disk.flush()
        with pytest.raises(DiskError):
            disk.flush()
        assert disk.read(0, SECTORS) == pattern(SECTORS)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid():
        pytest.skip("to mount a file system needs root")
    mounted = tmp_path / "small"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mounted)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True)


@pytest.mark.peers
@pytest.mark.parametrize("latency_ns", [0, MS])
def test_a_full_file_system_fails_writes_and_spares_what_is_there(
    small: Path, latency_ns: int
) -> None:
    """A sparse file that has no room to fill: ENOSPC comes from the kernel."""
    path = small / "disk.img"
    path.write_bytes(pattern(64))
    os.truncate(path, 4 << 20)
    (small / "ballast").write_bytes(bytes(512 << 10))
    with Platform(seed=1) as xen:
        guest = xen.create(name="g", disks=[Disk(path, latency_ns=latency_ns)]).start()
        disk = guest.disks[0]
        with pytest.raises(DiskError):
            disk.write(1024, pattern(2048, 3))
        assert disk.read(0, 64) == pattern(64)
        disk.write(8, b"\x08" * 512)  # has its block already
        disk.flush()
        (small / "ballast").unlink()
        disk.write(1024, pattern(512, 4))
        disk.flush()
        assert disk.read(1024, 512) == pattern(512, 4)
        disk.unmap([(1024, 512)])
        assert disk.read(1024, 512) == bytes(512 * 512)
    assert path.stat().st_size == 4 << 20
    assert path.read_bytes()[: 64 * 512] == pattern(8) + b"\x08" * 512 + pattern(55, 9)


@pytest.mark.peers
def test_a_full_file_system_leaves_a_qcow2_whole(small: Path) -> None:
    """Each write that was answered SUCCESS and flushed is there; qemu-img finds no fault."""
    need("qemu-nbd", "qemu-utils")
    path = small / "disk.qcow2"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", str(path), "8M"]
    subprocess.run(command, check=True)
    kept = {}
    with Platform(seed=1) as xen:
        disk = xen.create(name="g", disks=[Disk(path, format="qcow2")]).start().disks[0]
        failed = 0
        for n in range(64):
            try:
                disk.write(n * 256, pattern(128, n))
                disk.flush()
            except DiskError:
                failed += 1
            else:
                kept[n] = pattern(128, n)
        assert failed > 10
        assert len(kept) > 5
        for n, data in kept.items():
            assert disk.read(n * 256, 128) == data
    assert subprocess.run(["qemu-img", "check", "-q", str(path)], check=False).returncode in (0, 3)
    with Platform(seed=1) as xen:
        disk = xen.create(name="g", disks=[Disk(path, format="qcow2")]).start().disks[0]
        for n, data in kept.items():
            assert disk.read(n * 256, 128) == data


@pytest.mark.peers
@pytest.mark.parametrize("latency_ns", [0, MS])
def test_a_server_that_dies_fails_srbs_and_nothing_else(tmp_path: Path, latency_ns: int) -> None:
    need("qemu-nbd", "qemu-utils")
    path = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "1M"], check=True)
    other = MemoryImage(bytearray(pattern(64)))
    with Platform(seed=1) as xen:
        disks = [Disk(path, format="qcow2", latency_ns=latency_ns), Disk(other)]
        guest = xen.create(name="g", disks=disks).start()
        disk = guest.disks[0]
        disk.write(0, b"w" * 512)
        disk.flush()
        image = next(iter(xen.images._open.values()))[0]
        assert isinstance(image, NbdImage)
        assert image._process is not None
        os.kill(image._process.pid, signal.SIGKILL)
        for call in (lambda: disk.read(0, 1), lambda: disk.write(0, b"v" * 512), disk.flush):
            with pytest.raises(DiskError):
                call()
        assert guest.disks[1].read(0, 64) == pattern(64)
        guest.detach(disk)
        RawImage(str(path), True).close()
        devid = guest.attach(Disk(path, format="qcow2"))
        (again,) = [one for one in guest.disks if one.devid == devid]
        assert again.read(0, 1) == b"w" * 512


def test_a_platform_that_closes_ends_its_servers(tmp_path: Path) -> None:
    need("qemu-nbd", "qemu-utils")
    path = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "1M"], check=True)

    def fails() -> None:
        with Platform(seed=1) as xen:
            guest = xen.create(name="g", disks=[Disk(path, format="qcow2")]).start()
            guest.disks[0].write(0, b"w" * 512)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    image = NbdImage(str(path), "qcow2", True)  # nobody holds it
    image.close()
