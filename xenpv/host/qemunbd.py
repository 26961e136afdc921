"""An image in a format of QEMU's, served by qemu-nbd: a process of its own, over a Unix socket.

The process lives as long as our one connection: without --persistent it leaves with its last
client, however that ended. We make the socket, connect to it and remove its name before the
process starts, which takes it over by systemd's protocol (LISTEN_FDS): nobody else connects, no
file stays behind, and there is nothing to poll.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final

from xenpv.errors import ConfigError
from xenpv.host.imageio import SECTOR, ImageBusyError, ImageError, Sectors
from xenpv.host.imagelock import check_mode, flock, in_use, open_file
from xenpv.host.nbd import CommandError, Flag, NbdClient, NbdError, printable

PROGRAM: Final = "qemu-nbd"
PACKAGE: Final = "apt-get install qemu-utils (elsewhere the package is qemu-img)"
# Formats as xl names them, or QEMU, and QEMU's driver.
FORMATS: Final[Mapping[str, str]] = {
    "qcow": "qcow",
    "qcow2": "qcow2",
    "qed": "qed",
    "vhd": "vpc",
    "vhdx": "vhdx",
    "vmdk": "vmdk",
}
START_TIMEOUT_S: Final = 30
ANSWER_TIMEOUT_S: Final = 60
END_TIMEOUT_S: Final = 30  # it writes its metadata out
STDERR_MAX: Final = 4096
SOCKET_FOLDER_MAX: Final = 80
# The listener comes as descriptor 0 and goes on as 3, the first of LISTEN_FDS.
SHELL: Final = 'LISTEN_PID=$$ exec "$0" "$@" 3<&0 0</dev/null'
# What its stderr has where another has the image locked, or it may not be written.
BUSY: Final = ('Failed to get "', 'Failed to get shared "', "Failed to lock byte")


class NbdImage:
    """An image that qemu-nbd serves; as RawImage to its backend and its provider.

    `kind` is a key of FORMATS. Raises ConfigError if qemu-nbd is missing (with the package
    that has it), or if it cannot open the image; ImageBusyError if that is in use.
    """

    __slots__ = (
        "_client",
        "_descriptor",
        "_flush_failed",
        "_process",
        "_said",
        "buffer",
        "holders",
        "kind",
        "path",
        "physical_sector_size",
        "sector_size",
        "size_bytes",
        "writable",
    )
    _client: NbdClient | None
    _process: subprocess.Popen[bytes] | None

    def __init__(
        self, path: str, kind: str, writable: bool, sectors: Sectors | None = None
    ) -> None:
        self.path = path
        self.kind = kind
        self.writable = writable
        self.buffer: None = None
        self.holders = 1
        self._flush_failed = ""
        self._client = None
        self._process = None
        self._said: IO[bytes] | None = None
        program = shutil.which(PROGRAM)
        if program is None:
            raise ConfigError(
                f"disk image {path}: {PROGRAM} is not there, and it is what serves {kind} images: "
                f"{PACKAGE}, or convert the image to raw"
            )
        # QEMU takes its own locks, of the kind that flock does not see.
        self._descriptor = open_file(path, writable)
        try:
            check_mode(self._descriptor, path)
            flock(self._descriptor, path, writable)
            self._start(program)
            self._look(sectors)
        except BaseException:
            self.close()
            raise

    @property
    def client(self) -> NbdClient:
        """ImageError once it is closed."""
        if self._client is None:
            raise ImageError(f"{self.path} is closed")
        return self._client

    # the process

    def _start(self, program: str) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed with the image
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            ours = _connected(listener)
            self._client = NbdClient(ours, START_TIMEOUT_S)
            access = ("--discard=unmap", "--cache=writeback") if self.writable else ("--read-only",)
            # QEMU takes what stands before a colon for a protocol, but not behind a slash.
            path = str(Path.cwd() / self.path)
            words = (program, f"--format={FORMATS[self.kind]}", *access, path)
            self._process = subprocess.Popen(  # noqa: S603 - no word of it is the shell's
                ["/bin/sh", "-c", SHELL, *words],
                stdin=listener.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                env={**os.environ, "LISTEN_FDS": "1", "LC_ALL": "C"},
                # Ctrl-C is for us: what the guest wrote shall get to the image first.
                start_new_session=True,
            )
        try:
            self._client.negotiate()
        except NbdError as error:
            raise self._refused(str(error)) from None
        self._client.set_timeout(ANSWER_TIMEOUT_S)

    def _refused(self, why: str) -> ConfigError:
        """Why it did not start: by what it wrote, if that is anything."""
        process = self._process
        assert process is not None
        try:
            process.wait(1)  # it has ended the connection; its last words come before that
        except subprocess.TimeoutExpired:
            process.kill()
        said = self._last_words()
        if any(sign in said for sign in BUSY):
            return in_use(self.path, self.writable)
        said = said.removeprefix(f"{PROGRAM}: ") or why
        return ConfigError(f"disk image {self.path} cannot be opened as {self.kind}: {said}")

    def _last_words(self) -> str:
        assert self._said is not None
        self._said.seek(0)
        return printable(self._said.read(STDERR_MAX))

    def _look(self, sectors: Sectors | None) -> None:
        export = self.client.export
        if self.writable:
            if export.flags & Flag.READ_ONLY:
                raise ImageBusyError(f"disk image {self.path} is served read-only: use access ro")
            if not export.flags & Flag.SEND_FLUSH:
                raise ConfigError(f"disk image {self.path}: its server cannot flush")
        own = Sectors(max(SECTOR, export.block_min), max(SECTOR, export.block_min))
        sectors = own if sectors is None else sectors.within(own, self.path)
        self.sector_size, self.physical_sector_size = sectors
        self.size_bytes = export.size_bytes
        if not self.size_bytes or self.size_bytes % self.sector_size:
            raise ConfigError(
                f"disk image {self.path} is a disk of {self.size_bytes} bytes: expected a multiple "
                f"of {self.sector_size} above 0"
            )

    # the disk

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self._within("read", offset, buffer.nbytes)
        try:
            self.client.read_into(buffer, offset)
        except (NbdError, CommandError) as error:
            raise self._error("read", offset, error) from None

    def write_from(self, buffer: memoryview, offset: int) -> None:
        self._may_write("write", offset, buffer.nbytes)
        try:
            self.client.write_from(buffer, offset)
        except (NbdError, CommandError) as error:
            raise self._error("write", offset, error) from None

    def flush(self) -> None:
        # As a file's: what one flush lost, a later one does not bring back.
        if self._flush_failed:
            raise ImageError(self._flush_failed)
        if not self.writable:
            return
        try:
            self.client.flush()
        except (NbdError, CommandError) as error:
            self._flush_failed = f"flush of {self.path}: {error}"
            raise ImageError(self._flush_failed) from None

    def discard(self, offset: int, length: int) -> bool:
        """By WRITE_ZEROES, which may free what it can: TRIM is a hint, and leaves old data."""
        self._may_write("discard", offset, length)
        if not self.client.export.flags & Flag.SEND_WRITE_ZEROES:
            return False
        try:
            self.client.write_zeroes(offset, length)
        except CommandError as error:
            if error.name == "ENOTSUP":
                return False
            raise self._error("discard", offset, error) from None
        except NbdError as error:
            raise self._error("discard", offset, error) from None
        return True

    def _may_write(self, what: str, offset: int, length: int) -> None:
        if not self.writable:
            raise ImageError(f"{self.path} is read-only")
        self._within(what, offset, length)

    def _within(self, what: str, offset: int, length: int) -> None:
        if offset + length > self.size_bytes:
            raise ImageError(f"{what} of {length} bytes at {offset}: the disk ends before")

    def _error(self, what: str, offset: int, error: Exception) -> ImageError:
        return ImageError(f"{what} of {self.path} at {offset}: {error}")

    def is_at(self, path: str) -> bool:
        """Whether it is open, and of the file that this path names."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), Path(path).stat())
        except OSError:
            return False

    def close(self) -> None:
        """The last of the holders ends the process, once it has written everything out."""
        self.holders -= 1
        if self.holders > 0 or self._descriptor < 0:
            return
        try:
            self._end()
        finally:
            if self._said is not None:
                self._said.close()
            os.close(self._descriptor)
            self._descriptor = -1

    def _end(self) -> None:
        client, self._client = self._client, None
        process, self._process = self._process, None
        negotiated = client is not None and not client.failed
        if client is not None:
            client.disconnect()
        if process is None:
            return
        if not negotiated:
            process.terminate()  # a client that never was one keeps it waiting for another
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass  # what was flushed is safe, and nobody promised more
        finally:
            process.kill()
            process.wait()


def _connected(listener: socket.socket) -> socket.socket:
    """Our end of a connection to `listener`, which by then has no name any more."""
    folder = tempfile.mkdtemp(prefix="xenpv-nbd-", dir=_short(tempfile.gettempdir()))
    path = Path(folder) / "s"
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        listener.listen(1)
        ours.connect(str(path))
    except BaseException:
        ours.close()
        raise
    finally:
        path.unlink(missing_ok=True)
        Path(folder).rmdir()
    return ours


def _short(folder: str) -> str:
    """A Unix socket's name has 107 bytes."""
    return folder if len(os.fsencode(folder)) < SOCKET_FOLDER_MAX else "/tmp"  # noqa: S108 - of mkdtemp
