"""Disks that are files, with what xenpv says of them: formats and sectors go where the guest goes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers import need
from xenpv import Disk, Guest, MemoryImage, Platform, RawImage, ToolstackError, Vif
from xenpv.errors import ConfigError, LocalProtocolError
from xenpv.host.diskspec import DiskFormat
from xenpv.host.image import ImageBusyError
from xenpv.host.qemunbd import NbdImage

SIZE = 1 << 20
SECTOR = 4096


class File:
    """An image of 1 MiB; `disk` is one of its with sectors of 4 KiB."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self.kind = kind
        if kind == "raw":
            path.write_bytes(bytes(SIZE))
        else:
            need("qemu-nbd", "qemu-utils")
            subprocess.run(["qemu-img", "create", "-q", "-f", kind, path, str(SIZE)], check=True)

    def disk(self, **more: str) -> Disk:
        return Disk(
            self.path, format=self.kind, sector_size=SECTOR, physical_sector_size=8192, **more
        )

    def is_held(self) -> bool:
        try:
            if self.kind == "raw":
                RawImage(str(self.path), True).close()
            else:
                NbdImage(str(self.path), self.kind, True).close()
        except ImageBusyError:
            return True
        return False

    def contents(self) -> bytes:
        raw = self.path.with_suffix(".raw")
        command = ["qemu-img", "convert", "-f", self.kind, "-O", "raw", str(self.path), str(raw)]
        if self.kind == "raw":
            return self.path.read_bytes()
        subprocess.run(command, check=True)
        return raw.read_bytes()


@pytest.fixture(params=["raw", "qcow2"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> File:
    return File(tmp_path / "disk.img", request.param)


@pytest.fixture
def xen() -> Iterator[Platform]:
    with Platform(seed=3) as platform:
        yield platform


def write(guest: Guest, turn: int) -> None:
    """A sector of its own for each turn; all before it are as they were."""
    (disk,) = guest.disks
    # QEMU's backend says nothing of physical sectors.
    is_raw = guest.created.config.disks[0].format is DiskFormat.RAW
    assert (disk.sector_size, disk.physical_sector_size) == (SECTOR, 8192 if is_raw else SECTOR)
    assert disk.capacity == SIZE // SECTOR
    disk.write(turn, bytes([turn + 1]) * SECTOR)
    assert disk.read(0, turn + 1) == b"".join(bytes([n + 1]) * SECTOR for n in range(turn + 1))


def check(file: File, turns: int) -> None:
    assert not file.is_held()
    expected = b"".join(bytes([n + 1]) * SECTOR for n in range(turns))
    assert file.contents() == expected.ljust(SIZE, b"\0")


@pytest.mark.peers
@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_a_reboot_finds_the_disk_again(xen: Platform, file: File, personality: str) -> None:
    guest = xen.create(name="g", disks=[file.disk()], personality=personality).start()
    for turn in range(3):
        write(guest, turn)
        assert file.is_held()
        guest.reboot()
    guest.destroy()
    check(file, 3)


@pytest.mark.peers
def test_a_guest_moves_with_its_disk(file: File) -> None:
    with Platform(seed=3) as here, Platform(seed=3, loop=here.loop) as there:
        guest = here.create(name="g", disks=[file.disk()], vifs=[Vif()]).start()
        for turn in range(4):
            write(guest, turn)
            guest = guest.migrate((there, here)[turn % 2])
            assert file.is_held()
        write(guest, 4)
        guest.destroy()
        check(file, 5)


@pytest.mark.peers
def test_a_saved_guest_finds_its_disk_as_it_was(xen: Platform, file: File, tmp_path: Path) -> None:
    guest = xen.create(name="g", disks=[file.disk()]).start()
    write(guest, 0)
    guest.save(tmp_path / "g.save")
    assert not file.is_held()
    with Platform(seed=4) as other:
        guest = other.restore(tmp_path / "g.save")
        write(guest, 1)
    check(file, 2)


@pytest.mark.peers
def test_a_driver_domain_serves_it(xen: Platform, file: File) -> None:
    xen.create(name="b", personality="linux", driver_domain=True).start()
    guest = xen.create(name="g", disks=[file.disk(backend="b")]).start()
    write(guest, 0)
    assert file.is_held()
    guest.reboot()
    write(guest, 1)
    guest.destroy()
    xen.run()
    check(file, 2)


@pytest.mark.peers
def test_a_driver_domain_that_dies_lets_it_go(xen: Platform, file: File) -> None:
    backend = xen.create(name="b", personality="linux", driver_domain=True).start()
    guest = xen.create(name="g", disks=[file.disk(backend="b")]).start()
    write(guest, 0)
    guest.disks[0].flush()
    backend.destroy()
    xen.run()
    check(file, 1)


@pytest.mark.peers
def test_it_is_plugged_and_pulled(xen: Platform, file: File) -> None:
    guest = xen.create(name="g").start()
    for turn in range(3):
        guest.attach(file.disk())
        write(guest, turn)
        guest.detach(guest.disks[0])
        assert not file.is_held()
    check(file, 3)


@pytest.mark.peers
def test_equal_seeds_give_equal_traces(file: File) -> None:
    digests = []
    for _ in range(2):
        with Platform(seed=9) as xen:
            write(xen.create(name="g", disks=[file.disk()]).start(), 0)
            digests.append(xen.digest)
    assert digests[0] == digests[1]


@pytest.mark.peers
def test_a_disk_in_use_is_refused_at_once_and_later_free(xen: Platform, file: File) -> None:
    first = xen.create(name="a", disks=[file.disk()]).start()
    with pytest.raises((ToolstackError, ConfigError), match="is in use"):
        xen.create(name="b", disks=[file.disk()])
    write(first, 0)
    first.destroy()
    write(xen.create(name="b", disks=[file.disk()]).start(), 1)


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_disk_that_is_not_there_is_refused_by_name(
    xen: Platform, tmp_path: Path, kind: str
) -> None:
    if kind != "raw":
        need("qemu-nbd", "qemu-utils")
    with pytest.raises((ToolstackError, ConfigError), match="none.img does not exist"):
        xen.create(name="g", disks=[Disk(tmp_path / "none.img", format=kind)])


def test_a_size_that_its_sectors_do_not_divide_is_refused(xen: Platform, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE + 512))
    with pytest.raises(
        (ToolstackError, ConfigError), match="1049088 bytes, which is no multiple of 4096"
    ):
        xen.create(name="g", disks=[Disk(path, sector_size=4096)])
    xen.create(name="g", disks=[Disk(path)]).start()


@pytest.mark.parametrize(
    ("disk", "wrong"),
    [
        (
            Disk("a", format="qcow3"),
            "disk format 'qcow3': expected one of raw, qcow, qcow2, vhd, qed",
        ),
        (Disk("a", format="empty"), "disk format 'empty'"),
        (Disk("a", sector_size=1000), "a sector of 1000 bytes: expected a power of two from 512"),
        (Disk("a", sector_size=8192), "a sector of 8192 bytes: expected at most 4096"),
        (Disk("a", physical_sector_size=256), "a sector of 256 bytes"),
        (Disk("a", sector_size=4096, physical_sector_size=512), "a physical sector of 512 bytes"),
        (Disk(MemoryImage(bytes(4096)), sector_size=4096), "sectors of an Image are its own"),
        (
            Disk(MemoryImage(bytes(4096)), format="qcow2"),
            "format and sectors of an Image are its own",
        ),
    ],
)
def test_what_no_disk_is_is_refused_before_anything_is_made(
    xen: Platform, disk: Disk, wrong: str
) -> None:
    with pytest.raises((LocalProtocolError, ConfigError), match=wrong):
        xen.create(name="g", disks=[disk])
    assert xen.guests == []


def test_physical_sectors_alone_are_those_of_512e(xen: Platform, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    disk = Disk(path, physical_sector_size=4096)
    (on,) = xen.create(name="g", disks=[disk]).start().disks
    assert (on.sector_size, on.physical_sector_size) == (512, 4096)
