"""Real file systems, written through SCSI: what their own programs make of the image afterwards.

The difference between an empty file system and a populated one is written by a guest, in any
order; then the checker of that file system finds nothing, and the files are those that went in.
"""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import attrs
import pytest

from tests.peers import need
from xenpv import Disk, Platform

pytestmark = pytest.mark.peers

MIB = 1 << 20
SIZE = 16 * MIB
UUID = "01234567-89ab-cdef-0123-456789abcdef"
ENVIRONMENT = {
    **os.environ,
    "SOURCE_DATE_EPOCH": "1700000000",
    "MTOOLS_SKIP_CHECK": "1",
    "LC_ALL": "C",
}


def tool(*command: object) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def populate(folder: Path) -> dict[str, bytes]:
    """Files of many sizes, in folders, by name."""
    chance = random.Random(5)
    files = {"empty": b"", "byte": b"x", "large.bin": chance.randbytes(3 * MIB + 17)}
    files |= {f"dir/{n}": chance.randbytes(n * 97) for n in range(60)}
    files |= {"dir/deep/er/still": b"deep" * 5000}
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return files


@attrs.frozen
class Ext4:
    """Its blocks are 4 KiB, so it can stand on either sector."""

    def make(self, image: Path, source: Path | None) -> None:
        need("mkfs.ext4", "e2fsprogs")
        image.write_bytes(b"")
        os.truncate(image, SIZE)
        options = ("-E", f"lazy_itable_init=0,lazy_journal_init=0,hash_seed={UUID}", "-U", UUID)
        populated = () if source is None else ("-d", source)
        tool("mkfs.ext4", "-q", "-F", "-b", "4096", *options, *populated, image)

    def check(self, image: Path, files: dict[str, bytes], folder: Path) -> None:
        assert "clean" not in tool("e2fsck", "-fn", image)  # with -f it looks, whatever is said
        tool("debugfs", "-R", f"rdump / {folder}", image)
        for name, data in files.items():
            assert (folder / name).read_bytes() == data, name


@attrs.frozen
class Vfat:
    def make(self, image: Path, source: Path | None) -> None:
        need("mkfs.vfat", "dosfstools")
        need("mcopy", "mtools")
        image.write_bytes(b"")
        os.truncate(image, SIZE)
        tool("mkfs.vfat", "-F", "16", "-i", "c0ffee00", "--invariant", image)
        if source is not None:
            tool("mcopy", "-s", "-i", image, *sorted(source.iterdir()), "::")

    def check(self, image: Path, files: dict[str, bytes], folder: Path) -> None:
        tool("fsck.vfat", "-n", image)
        tool("mcopy", "-s", "-n", "-i", image, "::*", folder)
        for name, data in files.items():
            assert (folder / name).read_bytes() == data, name


def difference(old: bytes, new: bytes, block: int) -> list[tuple[int, bytes]]:
    """(offset, bytes) of each run of blocks that differ."""
    runs: list[tuple[int, bytearray]] = []
    for at in range(0, len(new), block):
        piece = new[at : at + block]
        if piece == old[at : at + block]:
            continue
        if runs and runs[-1][0] + len(runs[-1][1]) == at:
            runs[-1][1].extend(piece)
        else:
            runs.append((at, bytearray(piece)))
    return [(at, bytes(data)) for at, data in runs]


def write_through(disk: Disk, personality: str, old: bytes, new: bytes, block: int) -> None:
    """A guest makes `new` out of `old`, in pieces of any size and order, and reads it back."""
    chance = random.Random(11)
    pieces = []
    for at, data in difference(old, new, block):
        while data:
            length = block * chance.choice([1, 2, 7, 88, 300])
            pieces.append((at, data[:length]))
            at, data = at + length, data[length:]
    chance.shuffle(pieces)
    assert pieces, "the two are equal"
    with Platform(seed=3) as xen:
        guest = xen.create(name="g", vcpus=2, disks=[disk], personality=personality).start()
        on = guest.disks[0]
        assert on.sector_size == block
        assert on.capacity * block == SIZE
        flying = []
        for at, data in pieces:
            flying.append(on.start_write(at // block, data))
            if len(flying) == 8:
                xen.run()
                for pending in flying:
                    pending.result()
                flying.clear()
        xen.run()
        for pending in flying:
            pending.result()
        on.flush()
        assert on.read(0, on.capacity) == new


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    (tmp_path / "source").mkdir()
    return populate(tmp_path / "source")


SYSTEMS = [(Ext4(), 512), (Ext4(), 4096), (Vfat(), 512)]
system = pytest.mark.parametrize(("system", "block"), SYSTEMS, ids=["ext4", "ext4-4096", "vfat"])


@system
@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_a_file_system_that_a_guest_wrote_is_whole(
    tmp_path: Path, files: dict[str, bytes], system: Ext4 | Vfat, block: int, personality: str
) -> None:
    image, full = tmp_path / "image", tmp_path / "full"
    system.make(image, None)
    system.make(full, tmp_path / "source")
    disk = Disk(image, sector_size=block)
    write_through(disk, personality, image.read_bytes(), full.read_bytes(), block)
    assert image.read_bytes() == full.read_bytes()
    (tmp_path / "out").mkdir()
    system.check(image, files, tmp_path / "out")


@system
def test_a_file_system_in_qcow2_is_the_same(
    tmp_path: Path, files: dict[str, bytes], system: Ext4 | Vfat, block: int
) -> None:
    """Written through a guest into what qemu-img made, and judged by qemu-img."""
    need("qemu-img", "qemu-utils")
    need("qemu-nbd", "qemu-utils")
    empty, full, image = tmp_path / "empty", tmp_path / "full", tmp_path / "image.qcow2"
    system.make(empty, None)
    system.make(full, tmp_path / "source")
    tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", empty, image)
    disk = Disk(image, format="qcow2", sector_size=block)
    write_through(disk, "windows", empty.read_bytes(), full.read_bytes(), block)
    tool("qemu-img", "check", "-q", image)
    tool("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", image, full)
    raw, out = tmp_path / "raw", tmp_path / "out"
    tool("qemu-img", "convert", "-O", "raw", image, raw)
    out.mkdir()
    system.check(raw, files, out)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-c",),
        ("-o", "compat=0.10"),
        ("-o", "cluster_size=512"),
        ("-o", "extended_l2=on,cluster_size=64k"),
    ],
    ids=str,
)
def test_a_qcow2_reads_as_its_source(tmp_path: Path, options: tuple[str, ...]) -> None:
    need("qemu-img", "qemu-utils")
    chance = random.Random(2)
    source = b"".join(
        chance.choice([bytes(4096), chance.randbytes(4096), b"t" * 4096]) for _ in range(512)
    )
    raw, image = tmp_path / "raw", tmp_path / "image"
    raw.write_bytes(source)
    tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, raw, image)
    before = image.read_bytes()
    with Platform(seed=1) as xen:
        guest = xen.create(name="g", disks=[Disk(image, format="qcow2", readonly=True)]).start()
        assert guest.disks[0].read(0, guest.disks[0].capacity) == source
    assert image.read_bytes() == before


def test_a_snapshot_leaves_its_backing_file_alone(tmp_path: Path) -> None:
    need("qemu-img", "qemu-utils")
    base, top = tmp_path / "base", tmp_path / "top"
    base.write_bytes(b"b" * MIB)
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top)
    with Platform(seed=1) as xen:
        guest = xen.create(name="g", disks=[Disk(top, format="qcow2")]).start()
        guest.disks[0].write(8, b"t" * 512)
        guest.disks[0].flush()
        assert guest.disks[0].read(7, 3) == b"b" * 512 + b"t" * 512 + b"b" * 512
    assert base.read_bytes() == b"b" * MIB
    tool("qemu-img", "convert", "-O", "raw", top, tmp_path / "raw")
    assert (tmp_path / "raw").read_bytes() == b"b" * 4096 + b"t" * 512 + b"b" * (MIB - 4608)


@pytest.mark.parametrize("block", [512, 4096])
def test_a_block_device_is_a_disk(tmp_path: Path, files: dict[str, bytes], block: int) -> None:
    losetup = need("losetup", "mount")
    image, full, out = tmp_path / "image", tmp_path / "full", tmp_path / "out"
    Ext4().make(image, None)
    Ext4().make(full, tmp_path / "source")
    command = [losetup, "--show", "-f", "--sector-size", str(block), str(image)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop devices here: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        write_through(Disk(device), "windows", image.read_bytes(), full.read_bytes(), block)
    finally:
        subprocess.run([losetup, "-d", device], check=True)
    out.mkdir()
    Ext4().check(image, files, out)


def test_what_is_raw_is_never_looked_into(tmp_path: Path) -> None:
    """A guest can write the head of a qcow2 that names a file of the host as its backing."""
    need("qemu-img", "qemu-utils")
    secret, path = tmp_path / "secret", tmp_path / "disk.img"
    secret.write_bytes(b"secret".ljust(1 << 16, b"\0"))
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", path)
    head = path.read_bytes()
    path.write_bytes(bytes(MIB))
    with Platform(seed=1) as xen:
        guest = xen.create(name="g", disks=[Disk(path)]).start()
        guest.disks[0].write(0, head[: len(head) // 512 * 512])
        guest.reboot()
        assert guest.disks[0].capacity == MIB // 512
        assert guest.disks[0].read(0, 1)[:4] == b"QFI\xfb"
