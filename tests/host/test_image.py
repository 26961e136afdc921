from __future__ import annotations

import errno
import fcntl
import mmap
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.peers import need
from xenpv.errors import ConfigError, LocalProtocolError
from xenpv.host.image import (
    FORMATS,
    ImageError,
    ImageProvider,
    ImageUnsupportedError,
    MemoryImage,
    RawImage,
    Sectors,
    split,
)
from xenpv.host.imageio import ImageShortError

SIZE = 64 * 512


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "disk.img"
    file.write_bytes(bytes(n // 512 for n in range(SIZE)))
    return file


def test_a_file_is_read_and_written_where_asked(path: Path) -> None:
    image = RawImage(str(path), writable=True)
    assert (image.size_bytes, image.sector_size, image.physical_sector_size) == (SIZE, 512, 512)
    assert image.buffer is None
    out = bytearray(1024)
    image.read_into(memoryview(out), 5 * 512)
    assert out == b"\x05" * 512 + b"\x06" * 512
    image.write_from(memoryview(b"\xaa" * 512), 63 * 512)
    image.flush()
    image.close()
    image.close()
    assert path.read_bytes()[62 * 512 :] == b"\x3e" * 512 + b"\xaa" * 512


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.unlink(), "does not exist"),
        (lambda p: p.write_bytes(b""), "is empty"),
        (lambda p: p.write_bytes(bytes(513)), r"513 bytes, which is no multiple of 512"),
        (lambda p: (p.unlink(), p.mkdir()), "cannot be opened|neither a file"),
        (lambda p: (p.unlink(), os.mkfifo(p)), "neither a file nor a block device"),
        (lambda p: (p.unlink(), p.symlink_to("/dev/null")), "neither a file nor a block device"),
    ],
)
@pytest.mark.parametrize("writable", [False, True])
def test_what_is_no_disk_is_refused_by_name(
    path: Path, make: object, message: str, writable: bool
) -> None:
    assert callable(make)
    make(path)
    with pytest.raises(ConfigError, match=message) as caught:
        RawImage(str(path), writable)
    assert str(path) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(path: Path) -> None:
    path.chmod(0)
    with pytest.raises(ConfigError, match="may not be read"):
        RawImage(str(path), writable=False)


def test_refusal_of_permission_says_what_to_do(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigError, match="may not be written: chmod it, or give the disk access"):
        RawImage(str(path), writable=True)
    with pytest.raises(ConfigError, match="may not be read: chmod it"):
        RawImage(str(path), writable=False)


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [(True, True, False), (True, False, False), (False, True, False), (False, False, True)],
)
def test_a_writer_is_alone_and_readers_share(
    path: Path, first: bool, second: bool, both: bool
) -> None:
    holder = RawImage(str(path), first)
    if both:
        RawImage(str(path), second).close()
    else:
        with pytest.raises(ConfigError, match="is in use"):
            RawImage(str(path), second)
    holder.close()
    RawImage(str(path), second).close()


@pytest.mark.parametrize(
    ("byte", "writable"), [(201, True), (203, False), (101, False), (101, True)]
)
def test_locks_of_qemu_are_respected(path: Path, byte: int, writable: bool) -> None:
    """The bytes as QEMU's tools lock them, from another open file description."""
    from xenpv.host.imagelock import FLOCK

    with path.open("r+b") as other:
        lock = FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
        fcntl.fcntl(other, fcntl.F_OFD_SETLK, lock)
        if byte == 203:
            RawImage(str(path), writable).close()
        else:
            with pytest.raises(ConfigError, match="is in use"):
                RawImage(str(path), writable)


@pytest.mark.peers
def test_qemu_io_does_not_open_an_image_that_is_being_written(path: Path) -> None:
    qemu_io = need("qemu-io", "qemu-utils")
    command = [qemu_io, "-f", "raw", "-c", "write 0 512", str(path)]
    image = RawImage(str(path), writable=True)
    held = subprocess.run(command, capture_output=True, text=True, check=False)
    image.close()
    free = subprocess.run(command, capture_output=True, text=True, check=False)
    assert held.returncode == 1
    assert "lock" in held.stderr
    assert free.returncode == 0


def test_a_file_that_ends_early_is_an_error(path: Path) -> None:
    image = RawImage(str(path), writable=False)
    os.truncate(path, 10 * 512 + 100)
    out = bytearray(512)
    image.read_into(memoryview(out), 9 * 512)
    with pytest.raises(ImageShortError, match="the file ends there"):
        image.read_into(memoryview(out), 10 * 512)
    image.close()


def test_short_transfers_go_on_where_they_stopped(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = RawImage(str(path), writable=True)
    preadv, pwritev = os.preadv, os.pwritev
    monkeypatch.setattr(os, "preadv", lambda fd, parts, at: preadv(fd, [parts[0][:100]], at))
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, at: pwritev(fd, [parts[0][:100]], at))
    out = bytearray(1024)
    image.read_into(memoryview(out), 512)
    assert out == b"\x01" * 512 + b"\x02" * 512
    image.write_from(memoryview(b"\x77" * 1000), 24)
    image.close()
    assert path.read_bytes()[:1536] == bytes(24) + b"\x77" * 1000 + b"\x02" * 512


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_errors_of_the_host_are_image_errors(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_args: object) -> int:
        raise OSError(number, os.strerror(number))

    image = RawImage(str(path), writable=True)
    monkeypatch.setattr(os, "preadv", fail)
    monkeypatch.setattr(os, "pwritev", fail)
    with pytest.raises(ImageError, match=os.strerror(number)):
        image.read_into(memoryview(bytearray(512)), 0)
    with pytest.raises(ImageError, match=os.strerror(number)):
        image.write_from(memoryview(bytes(512)), 0)
    image.close()


def test_a_failed_flush_fails_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports a lost write once; a second flush would call it safe."""

    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    image = RawImage(str(path), writable=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(ImageError, match="Input/output error"):
            image.flush()
    with pytest.raises(ImageError, match="Input/output error"):
        image.flush()
    image.close()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_flush_that_the_file_has_not_is_another_error(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def lacks(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    image = RawImage(str(path), writable=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", lacks)
        with pytest.raises(ImageUnsupportedError):
            image.flush()
    image.flush()
    image.close()


def test_a_read_only_image_is_neither_written_nor_discarded(path: Path) -> None:
    before = path.read_bytes()
    image = RawImage(str(path), writable=False)
    with pytest.raises(ImageError, match="read-only"):
        image.write_from(memoryview(bytes(512)), 0)
    with pytest.raises(ImageError, match="read-only"):
        image.discard(0, 512)
    image.flush()
    image.close()
    assert path.read_bytes() == before


def test_discard_punches_a_hole(tmp_path: Path) -> None:
    path = tmp_path / "large.img"
    path.write_bytes(b"\xff" * (1 << 20))
    image = RawImage(str(path), writable=True)
    before = path.stat().st_blocks
    if not image.discard(4096, 512 * 1024):
        pytest.skip("this file system has no holes")
    assert image.discard(0, 0)
    image.close()
    assert path.stat().st_size == 1 << 20
    assert path.stat().st_blocks < before
    assert path.read_bytes() == b"\xff" * 4096 + bytes(1 << 19) + b"\xff" * ((1 << 19) - 4096)


def test_discard_that_the_file_system_lacks_is_not_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def refuse(_descriptor: int, offset: int, _length: int) -> None:
        calls.append(offset)
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("xenpv.host.rawimage.punch_hole", refuse)
    image = RawImage(str(path), writable=True)
    assert not image.discard(0, 512)
    assert not image.discard(512, 512)
    assert calls == [0]
    image.close()


def test_memory_is_used_in_place() -> None:
    data = bytearray(2048)
    image = MemoryImage(data)
    image.write_from(memoryview(b"\x05" * 512), 512)
    assert bytes(data) == bytes(512) + b"\x05" * 512 + bytes(1024)
    out = bytearray(1024)
    image.read_into(memoryview(out), 512)
    assert out == b"\x05" * 512 + bytes(512)
    assert image.buffer.obj is data
    assert image.discard(512, 512)
    assert data == bytes(2048)
    image.flush()
    assert image.flushes == 1


def test_memory_that_cannot_be_written_is_copied() -> None:
    data = b"\x07" * 1024
    image = MemoryImage(data)
    image.write_from(memoryview(bytes(512)), 0)
    assert data == b"\x07" * 1024
    assert bytes(image.buffer) == bytes(512) + b"\x07" * 512


def test_a_mapping_of_a_file_is_a_disk_too(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), SIZE) as memory:
        image = MemoryImage(memory)
        image.write_from(memoryview(b"\x99" * 512), 0)
        image.buffer.release()
    assert path.read_bytes()[:1024] == b"\x99" * 512 + b"\x01" * 512


@pytest.mark.parametrize(("size", "sector"), [(0, 512), (513, 512), (512, 4096)])
def test_memory_of_a_wrong_size_is_refused(size: int, sector: int) -> None:
    with pytest.raises(ConfigError, match=rf"{size} bytes: expected a multiple of {sector}"):
        MemoryImage(bytearray(size), sector_size=sector)


def test_memory_refuses_what_lies_beyond_its_end() -> None:
    image = MemoryImage(bytearray(1024))
    with pytest.raises(ImageError):
        image.read_into(memoryview(bytearray(1024)), 512)
    with pytest.raises(ImageError):
        image.write_from(memoryview(bytes(1024)), 512)
    with pytest.raises(ImageError):
        image.discard(0, 2048)


@pytest.mark.parametrize("prefix", ["", "raw:", "aio:", "phy:", "file:"])
def test_params_name_a_path(path: Path, prefix: str) -> None:
    images = ImageProvider()
    image = images.open(f"{prefix}{path}", writable=True)
    assert image.size_bytes == SIZE
    images.release(image)
    images.check(f"{prefix}{path}", writable=True)


def test_check_raises_what_open_would_and_keeps_nothing(path: Path) -> None:
    images = ImageProvider()
    images.check(str(path), writable=True)
    images.check(str(path), writable=True)
    with pytest.raises(ConfigError, match="does not exist"):
        images.check(f"{path}.not", writable=False)


def test_a_registered_image_stays_its_owners() -> None:
    class Counted(MemoryImage):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    images, image = ImageProvider(), Counted(bytearray(512))
    images.register("mine", image)
    assert images.open("mine", writable=True) is image
    images.release(image)
    images.check("mine", writable=True)
    assert image.closed == 0
    with pytest.raises(LocalProtocolError, match="'mine'"):
        images.register("mine", image)


def test_a_registered_image_may_not_be_written_against_its_will() -> None:
    images = ImageProvider()
    images.register("ro", MemoryImage(bytearray(512), writable=False))
    images.open("ro", writable=False)
    with pytest.raises(ConfigError, match="'ro' is read-only"):
        images.open("ro", writable=True)


def pair_with_file(tmp_path: Path) -> tuple[ImageProvider, ImageProvider, str]:
    path = tmp_path / "shared.img"
    path.write_bytes(bytes(4096))
    return ImageProvider(), ImageProvider(), str(path)


def test_two_hosts_have_a_file_open_only_by_a_loan(tmp_path: Path) -> None:
    here, there, path = pair_with_file(tmp_path)
    image = here.open(path, True)
    with pytest.raises(ConfigError, match="is in use"):
        there.check(path, True)
    here.lend(path, there)
    there.check(path, True)
    assert there.open(path, True) is image
    with pytest.raises(ConfigError, match="is in use"):
        there.check(path, True)  # a second disk there is still one too many
    with pytest.raises(ConfigError, match="is in use"):
        here.check(path, True)


@pytest.mark.parametrize("source_first", [True, False])
def test_a_lent_file_is_closed_when_neither_has_it(tmp_path: Path, source_first: bool) -> None:
    here, there, path = pair_with_file(tmp_path)
    ours = here.open(path, True)
    here.lend(f"raw:{path}", there)
    theirs = there.open(f"raw:{path}", True)
    order = [(here, ours), (there, theirs)][:: 1 if source_first else -1]
    order[0][0].release(order[0][1])
    theirs.write_from(memoryview(b"x" * 512), 0)  # still open
    with pytest.raises(ConfigError, match="is in use"):
        RawImage(path, True)
    order[1][0].release(order[1][1])
    RawImage(path, True).close()
    again = there.open(path, True)  # of its own: the loan is over
    assert again is not ours
    there.release(again)


def test_a_loan_is_of_the_file_not_of_its_name(tmp_path: Path) -> None:
    here, there, path = pair_with_file(tmp_path)
    ours = here.open(path, True)
    here.lend(path, there)
    Path(path).unlink()
    with pytest.raises(ConfigError, match="does not exist"):
        there.check(path, True)
    Path(path).write_bytes(bytes(512))
    other = there.open(path, True)
    assert other is not ours
    assert other.size_bytes == 512


def test_a_loan_for_reading_is_none_for_writing(tmp_path: Path) -> None:
    here, there, path = pair_with_file(tmp_path)
    here.open(path, False)
    here.lend(path, there)
    there.check(path, False)
    with pytest.raises(ConfigError, match="is in use"):
        there.check(path, True)


def test_a_registered_image_is_registered_there_too() -> None:
    here, there = ImageProvider(), ImageProvider()
    image = MemoryImage(bytes(512))
    here.register("image:1", image)
    here.lend("image:1", there)
    here.lend("image:1", there)
    assert there.open("image:1", True) is image
    elsewhere = ImageProvider()
    elsewhere.register("image:1", MemoryImage(bytes(512)))
    with pytest.raises(ConfigError, match="another image is registered as 'image:1' there"):
        here.lend("image:1", elsewhere)


# sectors that the host gives a file


@pytest.mark.parametrize(
    ("logical", "physical", "wrong"),
    [
        (256, 0, "a sector of 256 bytes: expected a power of two from 512"),
        (513, 0, "a sector of 513 bytes"),
        (0, 0, "a sector of 0 bytes"),
        (-512, 0, "a sector of -512 bytes"),
        (8192, 0, "a sector of 8192 bytes: expected at most 4096"),
        (512, 1000, "a sector of 1000 bytes"),
        (4096, 512, "a physical sector of 512 bytes: expected 4096 to 65536"),
        (512, 1 << 17, "a physical sector of 131072 bytes: expected 512 to 65536"),
    ],
)
def test_sectors_that_no_disk_has_are_refused(logical: int, physical: int, wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong):
        Sectors.of(logical, physical)


@pytest.mark.parametrize(
    ("logical", "physical", "has"),
    [
        (512, 0, (512, 512)),
        (512, 4096, (512, 4096)),
        (4096, 0, (4096, 4096)),
        (1024, 65536, (1024, 65536)),
    ],
)
def test_a_file_has_the_sectors_that_it_is_given(
    path: Path, logical: int, physical: int, has: tuple
) -> None:
    image = RawImage(str(path), True, Sectors.of(logical, physical))
    assert (image.sector_size, image.physical_sector_size) == has
    image.close()


def test_a_size_that_is_no_multiple_of_the_sector_asked_for_is_refused(path: Path) -> None:
    os.truncate(path, 4096 + 512)
    RawImage(str(path), True).close()
    with pytest.raises(
        ConfigError, match=r"4608 bytes, which is no multiple of 4096: truncate -s %4096"
    ):
        RawImage(str(path), True, Sectors.of(4096))


def test_a_provider_gives_files_their_sectors_by_path(path: Path) -> None:
    images = ImageProvider(lambda name: Sectors.of(4096) if name == str(path) else None)
    image = images.open(f"aio:{path}", True)
    assert image.sector_size == 4096
    images.release(image)


def test_a_file_that_grew_is_a_larger_disk_of_whole_sectors(path: Path) -> None:
    image = RawImage(str(path), True)
    with pytest.raises(ImageError, match="the disk ends before"):
        image.write_from(memoryview(bytes(512)), SIZE)
    os.truncate(path, SIZE + 1000)
    assert image.measure() == image.size_bytes == SIZE + 512
    image.write_from(memoryview(b"\x01" * 512), SIZE)
    with pytest.raises(ImageError, match="the disk ends before"):
        image.discard(SIZE, 1024)
    image.close()
    assert path.stat().st_size == SIZE + 1000


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ("/a/b", ("", "/a/b")), ("raw:/a", ("", "/a")), ("aio:/a", ("", "/a")), ("phy:/dev/sda", ("", "/dev/sda")),
        ("file:a", ("", "a")), ("qcow2:/a", ("qcow2", "/a")), ("qcow:a", ("qcow", "a")), ("vhd:/a:b", ("vhd", "/a:b")),
        ("vmdk:", ("vmdk", "")), ("raw:qcow2:/a", ("", "qcow2:/a")), ("QCOW2:/a", ("", "QCOW2:/a")), ("nbd:/a", ("", "nbd:/a")),
    ],
)  # fmt: skip
def test_params_are_a_format_and_a_path(params: str, expected: tuple[str, str]) -> None:
    assert split(params) == expected
    from xenpv.host import qemunbd

    assert sorted(qemunbd.FORMATS) == sorted(FORMATS)


def test_a_registered_image_may_be_told_as_raw() -> None:
    images, image = ImageProvider(), MemoryImage(bytearray(512))
    images.register("image:1", image)
    assert images.open("aio:image:1", True) is image
    assert images.is_registered("raw:image:1")
    assert not images.is_registered("qcow2:image:1")


# block devices: a loop device is one


@pytest.fixture
def loop(path: Path) -> Iterator[Callable[..., str]]:
    losetup = need("losetup", "mount")
    made: list[str] = []

    def attach(*options: str) -> str:
        command = [losetup, "--show", "-f", *options, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no loop devices here: {done.stderr.strip()}")
        made.append(done.stdout.strip())
        return made[-1]

    yield attach
    for device in made:
        subprocess.run([losetup, "-d", device], check=False)


@pytest.mark.peers
def test_a_block_device_has_its_own_size_and_sectors(path: Path, loop: Callable[..., str]) -> None:
    device = loop("--sector-size", "4096")
    image = RawImage(device, True)
    assert (image.size_bytes, image.sector_size, image.physical_sector_size) == (SIZE, 4096, 4096)
    image.write_from(memoryview(b"\xbb" * 4096), 4096)
    image.flush()
    assert path.read_bytes()[4096:8192] == b"\xbb" * 4096
    with pytest.raises(ConfigError, match="is in use"):
        RawImage(device, True)
    image.close()
    with pytest.raises(
        ConfigError, match="has sectors of 4096 bytes, which cannot be given as sectors of 512"
    ):
        RawImage(device, True, Sectors.of(512))
    assert RawImage(device, False, Sectors.of(4096, 8192)).physical_sector_size == 8192


@pytest.mark.peers
def test_a_block_device_forgets_what_is_discarded(path: Path, loop: Callable[..., str]) -> None:
    device = loop()
    image = RawImage(device, True)
    if not image.discard(4096, 4096):
        pytest.skip("this loop device does not discard")
    image.flush()
    image.close()
    assert path.read_bytes()[4096:8192] == bytes(4096)
    assert path.read_bytes()[8192:8704] == b"\x10" * 512


@pytest.mark.peers
def test_a_read_only_device_is_served_read_only(loop: Callable[..., str]) -> None:
    device = loop("--read-only")
    with pytest.raises(ConfigError, match="read-only device|may not be written"):
        RawImage(device, True)
    RawImage(device, False).close()


def test_a_read_of_memory_that_ends_before_is_a_short_one() -> None:
    with pytest.raises(ImageShortError, match="the disk ends before"):
        MemoryImage(bytearray(1024)).read_into(memoryview(bytearray(512)), 1024)
