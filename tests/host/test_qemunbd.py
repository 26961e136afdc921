"""Images of QEMU's formats, served by the real qemu-nbd."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.peers import need
from xenpv.errors import ConfigError
from xenpv.host import qemunbd
from xenpv.host.image import ImageBusyError, ImageError, ImageProvider, RawImage, Sectors
from xenpv.host.nbd import Command, CommandError, NbdClient
from xenpv.host.qemunbd import FORMATS, NbdImage

MIB = 1 << 20

pytestmark = pytest.mark.peers


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go too, so that a test sees what stays behind."""
    need("qemu-nbd", "qemu-utils")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path


def made(path: Path, kind: str = "qcow2", size: int = MIB) -> str:
    need("qemu-img", "qemu-utils")
    command = ["qemu-img", "create", "-q", "-f", FORMATS[kind], str(path), str(size)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return str(path)


@pytest.fixture
def path(folder: Path) -> str:
    return made(folder / "disk.qcow2")


def filled(byte: int, size: int = 512) -> memoryview:
    return memoryview(bytes([byte]) * size)


def read(image: NbdImage, offset: int, size: int) -> bytes:
    out = bytearray(size)
    image.read_into(memoryview(out), offset)
    return bytes(out)


def runs(pid: int) -> bool:
    """Whether there is such a process, and no corpse of one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pid_of(image: NbdImage) -> int:
    assert image._process is not None
    return image._process.pid


def test_what_is_written_is_in_the_image(path: str, folder: Path) -> None:
    image = NbdImage(path, "qcow2", True)
    pid = pid_of(image)
    assert (image.size_bytes, image.sector_size, image.physical_sector_size) == (MIB, 512, 512)
    assert image.buffer is None and image.writable
    image.write_from(filled(0xAA, 1024), MIB - 1024)
    image.flush()
    assert read(image, MIB - 1536, 1536) == bytes(512) + b"\xaa" * 1024
    assert list((folder / "tmp").iterdir()) == []  # no socket, from the beginning
    image.close()
    image.close()
    assert not runs(pid)
    raw = folder / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", path, str(raw)], check=True)
    assert raw.read_bytes() == bytes(MIB - 1024) + b"\xaa" * 1024


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_every_format_reads_as_its_raw_source(folder: Path, kind: str) -> None:
    raw = folder / "raw"
    # A size that VHD's cylinders have exactly.
    content = bytes(range(256)) * (17 * 4 * 512 * 60 // 256)
    raw.write_bytes(content)
    file = str(folder / "disk")
    command = ["qemu-img", "convert", "-q", "-f", "raw", "-O", FORMATS[kind], str(raw), file]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip(f"this qemu-img writes no {kind}")
    image = NbdImage(file, kind, False)
    size = image.size_bytes
    assert read(image, 0, size)[: len(content)] == content
    assert size >= len(content)
    image.close()


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [(True, True, False), (True, False, False), (False, True, False), (False, False, True)],
)
def test_a_writer_is_alone_and_readers_share(
    path: str, first: bool, second: bool, both: bool
) -> None:
    holder = NbdImage(path, "qcow2", first)
    if both:
        NbdImage(path, "qcow2", second).close()
    else:
        with pytest.raises(ImageBusyError, match="is in use"):
            NbdImage(path, "qcow2", second)
        with pytest.raises(ImageBusyError, match="is in use"):
            RawImage(path, second)
    assert read(holder, 0, 512) == bytes(512)
    holder.close()
    NbdImage(path, "qcow2", second).close()


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_qemu_s_own_locks_are_told_from_other_errors(path: str, first: bool, second: bool) -> None:
    """Another qemu-nbd, which does not flock, has it."""
    holder = NbdImage(path, "qcow2", first)
    fcntl.flock(holder._descriptor, fcntl.LOCK_UN)
    if first or second:
        with pytest.raises(ImageBusyError, match="is in use"):
            NbdImage(path, "qcow2", second)
    else:
        NbdImage(path, "qcow2", second).close()
    holder.close()


@pytest.mark.parametrize(("writable", "held"), [(True, True), (False, True), (False, False)])
def test_a_raw_image_is_locked_against_qemu_nbd(folder: Path, writable: bool, held: bool) -> None:
    """exit 1, and the lock that it did not get: QEMU's tools see ours."""
    path = folder / "raw"
    path.write_bytes(bytes(MIB))
    image = RawImage(str(path), writable)
    access = [] if held else ["-r"]
    command = ["qemu-nbd", "-k", str(folder / "s"), "-f", "raw", *access, str(path)]
    other = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        if held:
            _, said = other.communicate(timeout=20)
            assert other.returncode == 1
            assert 'Failed to get "write" lock' in said
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                other.wait(0.2)
    finally:
        other.kill()
        other.communicate()
        image.close()


def test_a_missing_qemu_nbd_is_told_with_its_package(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(
        ConfigError, match=r"qemu-nbd is not there.*qcow2.*apt-get install qemu-utils"
    ) as caught:
        NbdImage(path, "qcow2", False)
    assert path in str(caught.value)


BAD_FILES: list[tuple[str, Callable[[Path], object], str]] = [
    ("none", lambda p: p.unlink(), "does not exist"),
    ("empty", lambda p: p.write_bytes(b""), "cannot be opened as qcow2: .*not in qcow2 format"),
    (
        "raw",
        lambda p: p.write_bytes(bytes(MIB)),
        "cannot be opened as qcow2: .*not in qcow2 format",
    ),
    ("cut", lambda p: os.truncate(p, 100), "cannot be opened as qcow2: "),
    ("a folder", lambda p: (p.unlink(), p.mkdir()), "cannot be opened|neither a file"),
    ("a FIFO", lambda p: (p.unlink(), os.mkfifo(p)), "neither a file nor a block device"),
    ("of 0 bytes", lambda p: made(p, size=0), "a disk of 0 bytes"),
]


@pytest.mark.parametrize(
    ("make", "message"), [row[1:] for row in BAD_FILES], ids=[row[0] for row in BAD_FILES]
)
@pytest.mark.parametrize("writable", [False, True])
def test_what_is_no_image_is_refused_by_name(
    path: str, folder: Path, make: Callable[[Path], object], message: str, writable: bool
) -> None:
    make(Path(path))
    with pytest.raises(ConfigError, match=message) as caught:
        NbdImage(path, "qcow2", writable)
    assert path in str(caught.value)
    assert list((folder / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    "name", ["nbd:disk", "-disk", "a,b=c", "json:{}", "line\nfeed", "$(touch x)"]
)
def test_a_name_is_nothing_but_a_name(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    made(folder / "disk")
    (folder / "disk").rename(name)
    image = NbdImage(name, "qcow2", True)
    assert image.size_bytes == MIB
    assert image.is_at(str(folder / name))
    image.close()


def test_sectors_are_the_host_s_choice(path: str, folder: Path) -> None:
    image = NbdImage(path, "qcow2", True, Sectors.of(4096))
    assert (image.sector_size, image.physical_sector_size) == (4096, 4096)
    image.close()
    odd = made(folder / "odd", size=MIB + 512)
    NbdImage(odd, "qcow2", True).close()
    with pytest.raises(ConfigError, match="1049088 bytes: expected a multiple of 4096"):
        NbdImage(odd, "qcow2", True, Sectors.of(4096))


def test_a_read_only_image_is_neither_written_nor_discarded(path: str) -> None:
    before = Path(path).read_bytes()
    image = NbdImage(path, "qcow2", False)
    with pytest.raises(ImageError, match="read-only"):
        image.write_from(filled(1), 0)
    with pytest.raises(ImageError, match="read-only"):
        image.discard(0, 512)
    image.flush()
    image.close()
    assert Path(path).read_bytes() == before


def test_what_is_discarded_reads_zero_within_a_cluster_too(path: str) -> None:
    image = NbdImage(path, "qcow2", True)
    image.write_from(filled(7, 1 << 17), 0)
    assert image.discard(512, 512)
    assert read(image, 0, 1536) == b"\7" * 512 + bytes(512) + b"\7" * 512
    image.flush()
    allocated = Path(path).stat().st_blocks
    assert image.discard(1 << 16, 1 << 16)
    assert read(image, 1 << 16, 1 << 16) == bytes(1 << 16)
    image.flush()
    assert Path(path).stat().st_blocks < allocated
    image.close()


@pytest.mark.parametrize("call", [
    lambda image: image.read_into(memoryview(bytearray(1024)), MIB - 512),
    lambda image: image.write_from(filled(1, 1024), MIB - 512),
    lambda image: image.discard(MIB - 512, 1024),
], ids=["read", "write", "discard"])  # fmt: skip
def test_beyond_the_end_nothing_is_asked(path: str, call: Callable[[NbdImage], object]) -> None:
    image = NbdImage(path, "qcow2", True)
    with pytest.raises(ImageError, match="the disk ends before"):
        call(image)
    assert read(image, MIB - 512, 512) == bytes(512)
    image.close()


def test_a_process_that_dies_is_an_error_of_every_io(path: str) -> None:
    image = NbdImage(path, "qcow2", True)
    os.kill(pid_of(image), signal.SIGKILL)
    for call in (
        lambda: read(image, 0, 512),
        lambda: image.write_from(filled(1), 0),
        image.flush,
        lambda: image.discard(0, 512),
    ):
        with pytest.raises(ImageError, match="it ended the connection|the connection is gone"):
            call()
    image.close()
    with pytest.raises(ImageError, match="is closed"):
        read(image, 0, 512)


def full(_client: NbdClient) -> None:
    raise CommandError(Command.FLUSH, 28)


def test_a_failed_flush_fails_for_ever(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = NbdImage(path, "qcow2", True)
    with monkeypatch.context() as patch:
        patch.setattr(NbdClient, "flush", full)
        with pytest.raises(ImageError, match="ENOSPC"):
            image.flush()
    with pytest.raises(ImageError, match="ENOSPC"):
        image.flush()
    image.close()


@pytest.mark.parametrize(
    "end",
    ["sys.exit(0)", "raise RuntimeError", "os.kill(0, signal.SIGINT)", "os.kill(os.getpid(), 9)"],
)
def test_it_ends_with_us_however_that_is(path: str, folder: Path, end: str) -> None:
    """What was flushed is there, no process and no socket is, and the lock is free."""
    script = f"""
        import os, signal, sys
        from xenpv.host.qemunbd import NbdImage
        image = NbdImage({path!r}, "qcow2", True)
        image.write_from(memoryview(b"w" * 512), 1024)
        image.flush()
        print(image._process.pid, flush=True)
        {end}
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        env={**os.environ, "TMPDIR": str(folder / "tmp")},
        start_new_session=True, capture_output=True, text=True, check=False,
    )  # fmt: skip
    pid = int(done.stdout)
    for _ in range(200):
        if not runs(pid):
            break
        subprocess.run(["sleep", "0.05"], check=True)
    assert not runs(pid)
    assert list((folder / "tmp").iterdir()) == []
    image = NbdImage(path, "qcow2", True)
    assert read(image, 1024, 512) == b"w" * 512
    image.close()


def test_ctrl_c_reaches_us_alone(path: str) -> None:
    """What a terminal sends goes to every process of the group, and we have not finished."""
    script = f"""
        import os, signal
        from xenpv.host.qemunbd import NbdImage
        image = NbdImage({path!r}, "qcow2", True)
        try:
            os.kill(0, signal.SIGINT)
            signal.pause()
        except KeyboardInterrupt:
            image.write_from(memoryview(b"w" * 512), 1024)
            image.flush()
            image.close()
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], start_new_session=True, check=True
    )
    image = NbdImage(path, "qcow2", True)
    assert read(image, 1024, 512) == b"w" * 512
    image.close()


def test_who_flocks_the_image_has_it(path: str) -> None:
    with Path(path).open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        NbdImage(path, "qcow2", False).close()
        with pytest.raises(ImageBusyError, match="is in use"):
            NbdImage(path, "qcow2", True)
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ImageBusyError, match="is in use"):
            NbdImage(path, "qcow2", False)


SERVER = """#!{python}
import os, socket, struct, sys, time
listener = socket.socket(fileno=3)
assert (os.environ["LISTEN_FDS"], int(os.environ["LISTEN_PID"])) == ("1", os.getpid())
connection, _ = listener.accept()
def say(size=1 << 20, flags=0x65):
    connection.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
    connection.recv(28, socket.MSG_WAITALL)  # flags, and GO with one kind of information
    body = struct.pack(">HQH", 0, size, flags)
    for kind, data in ((3, body), (1, b"")):
        connection.sendall(struct.pack(">QIII", 0x0003E889045565A9, 7, kind, len(data)) + data)
{does}
"""


@pytest.fixture
def instead(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a program in the place of qemu-nbd."""

    def put(does: str) -> None:
        program = folder / "qemu-nbd"
        program.write_text(SERVER.format(python=sys.executable, does=textwrap.dedent(does)))
        program.chmod(0o755)
        monkeypatch.setattr(shutil, "which", lambda _name: str(program))

    return put


BAD_SERVERS = [
    ("has last words", "sys.exit('qemu-nbd: it is\\n broken')", "cannot be opened as qcow2: it is broken"),
    ("talks HTTP", "connection.sendall(b'HTTP/1.1 200 OK\\r\\n' * 9)", "cannot be opened as qcow2: its greeting is"),
    ("says nothing", "time.sleep(60)", "cannot be opened as qcow2: it does not answer"),
    ("is read-only", "say(flags=0x67); connection.recv(1000)", "is served read-only"),
    ("does not flush", "say(flags=0x61); connection.recv(1000)", "its server cannot flush"),
    ("has no sector", "say(size=0); connection.recv(1000)", "a disk of 0 bytes"),
    ("has half a sector", "say(size=1280); connection.recv(1000)", "a disk of 1280 bytes: expected a multiple of 512"),
    ("has no size", "say(size=1 << 63); connection.recv(1000)", "an export of 9223372036854775808 bytes"),
    ("floods stderr", "os.write(2, b'x' * 100000); sys.exit(1)", "cannot be opened as qcow2: x{200}$"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("does", "message"), [row[1:] for row in BAD_SERVERS], ids=[row[0] for row in BAD_SERVERS]
)
def test_a_server_that_is_none_is_refused(
    path: str,
    instead: Callable[[str], None],
    does: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(qemunbd, "START_TIMEOUT_S", 1)
    instead(does)
    with pytest.raises(ConfigError, match=message):
        NbdImage(path, "qcow2", True)
    with Path(path).open("rb") as file:  # nothing holds it any more
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_server_that_does_not_end_is_ended(
    path: str, instead: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemunbd, "END_TIMEOUT_S", 0.2)
    instead("say()\ntime.sleep(60)")
    image = NbdImage(path, "qcow2", True)
    pid = pid_of(image)
    assert runs(pid)
    image.close()
    assert not runs(pid)


def test_ctrl_c_at_the_start_ends_it(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that never was one would keep it waiting for another."""
    ended: list[int] = []
    terminate = subprocess.Popen.terminate

    def note(process: subprocess.Popen[bytes]) -> None:
        ended.append(process.pid)
        terminate(process)

    def interrupt(_client: NbdClient, _name: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "terminate", note)
    monkeypatch.setattr(NbdClient, "_handshake", interrupt)
    monkeypatch.setattr(qemunbd, "END_TIMEOUT_S", 5)
    with pytest.raises(KeyboardInterrupt):
        NbdImage(path, "qcow2", True)
    (pid,) = ended
    assert not runs(pid)
    with Path(path).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_server_without_write_zeroes_does_not_discard(
    path: str, instead: Callable[[str], None]
) -> None:
    instead("say(flags=0x25)\nconnection.recv(1000)")
    image = NbdImage(path, "qcow2", True)
    assert image.discard(0, 512) is False
    image.close()


# the provider


@pytest.mark.parametrize("kind", ["qcow", "qcow2", "vhd", "vmdk"])
def test_params_name_the_format_and_the_path(folder: Path, kind: str) -> None:
    path = made(folder / "disk", kind)
    images = ImageProvider()
    image = images.open(f"{kind}:{path}", True)
    assert isinstance(image, NbdImage)
    with pytest.raises(ImageBusyError):
        images.check(f"{kind}:{path}", False)
    images.release(image)
    images.check(f"{kind}:{path}", True)


def test_a_provider_that_closes_ends_what_it_opened(path: str) -> None:
    images = ImageProvider()
    image = images.open(f"qcow2:{path}", True)
    assert isinstance(image, NbdImage)
    pid = pid_of(image)
    images.close()
    assert not runs(pid)
    images.close()


def test_an_image_is_lent_to_another_host(path: str) -> None:
    here, there = ImageProvider(), ImageProvider()
    params = f"qcow2:{path}"
    image = here.open(params, True)
    here.lend(params, there)
    assert there.open(params, True) is image
    here.release(image)
    assert isinstance(image, NbdImage)
    assert read(image, 0, 512) == bytes(512)
    there.release(image)
    with pytest.raises(ImageError, match="is closed"):
        read(image, 0, 512)
