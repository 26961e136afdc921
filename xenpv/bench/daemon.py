"""The xenstored of others as peers: started without Xen, over the stubs of `peers/`.

The C xenstored and oxenstored of Debian's xen-utils-4.17. The stubs are compiled when they
are needed, since most machines have neither them nor the headers.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs

from xenpv.errors import ConfigError

SOURCES: Final = Path(__file__).parent / "peers"
VIRQ_PORT: Final = 1
PORT: Final = struct.Struct("<I")


@attrs.frozen
class Peer:
    """One implementation: where Debian installs it, and how it is told where to live.

    In `arguments` and `config`, {folder} is the folder that the daemon runs in.
    """

    name: str
    program: str
    arguments: tuple[str, ...]
    config: str | None = None


XENSTORED: Final = Peer(
    "C xenstored", "/usr/lib/xen-4.17/bin/xenstored", ("-N", "-F", "{folder}/pid")
)
OXENSTORED: Final = Peer(
    "oxenstored",
    "/usr/lib/xen-4.17/bin/oxenstored",
    ("--no-fork", "--config-file", "{folder}/config"),
    "pid-file = {folder}/pid\n"
    "xenstored-kva = {folder}/xsd_kva\n"
    "xenstored-port = {folder}/xsd_port\n",
)
# What has to be there, and the Debian package that it is in.
COMPILER: Final = ("gcc", "gcc")
HEADER: Final = ("/usr/include/xenctrl.h", "libxen-dev")


def needs(peer: Peer) -> tuple[tuple[str, str], ...]:
    """(program or file, package) of all that `peer` takes to run."""
    return ((peer.program, "xen-utils-4.17"), COMPILER, HEADER)


def missing(peer: Peer) -> str | None:
    """The packages to install before `peer` can run, as a line; None if it can."""
    lacking = [
        package
        for wanted, package in needs(peer)
        if not (Path(wanted).exists() if wanted.startswith("/") else shutil.which(wanted))
    ]
    return f"apt-get install {' '.join(lacking)}" if lacking else None


def build(folder: Path, *, clock_speed: int | None = None) -> str:
    """Compile the stubs into `folder`; the value for LD_PRELOAD.

    `clock_speed` is how many times faster the daemon's monotonic clock shall run.
    """
    compiler = shutil.which(COMPILER[0])
    if compiler is None:
        raise ConfigError(f"there is no compiler: apt-get install {COMPILER[1]}")
    speed = [] if clock_speed is None else [f"-DCLOCK_SPEED={clock_speed}"]
    versions = f"-Wl,--version-script={SOURCES / 'stub.map'}"
    libraries = []
    for name, options in (("stub", [versions]), ("libc", speed)):
        libraries.append(os.fspath(folder / f"{name}.so"))
        command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-o", libraries[-1]]
        command += [os.fspath(SOURCES / f"{name}.c"), *options]
        subprocess.run(command, check=True)  # noqa: S603 - the compiler on our own sources
    return ":".join(libraries)


class Daemon:
    """One running daemon in a folder of its own, which holds what a host and Xen would.

    `socket` is its socket; domain 0 exists.
    """

    def __init__(self, peer: Peer, folder: Path, preload: str) -> None:
        self.folder = folder
        self.socket = folder / "socket"
        os.mkfifo(folder / "event")
        (folder / "xsd_port").write_text("3")
        (folder / "xsd_kva").write_bytes(bytes(4096))
        (folder / "domain-0").write_text("r")
        if peer.config is not None:
            (folder / "config").write_text(peer.config.format(folder=folder))
        self._event = os.open(folder / "event", os.O_RDWR)
        environment = {
            "XENSTORED_RUNDIR": os.fspath(folder),
            "XENSTORED_ROOTDIR": os.fspath(folder),
            "LD_PRELOAD": preload,
        }
        arguments = [argument.format(folder=folder) for argument in peer.arguments]
        # The preloaded library writes a byte when the socket listens; the end of the pipe
        # means that the daemon died before.
        ready, told = os.pipe()
        environment["XENSTORED_READY"] = str(told)
        self.process = subprocess.Popen(  # noqa: S603 - the peer's own program
            [peer.program, *arguments], env=environment, pass_fds=[told],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(told)
        started = os.read(ready, 1)
        os.close(ready)
        if not started:
            self.stop()
            raise ConfigError(f"{peer.name} does not start", file=peer.program)

    @property
    def pid(self) -> int:
        return self.process.pid

    def create_domain(self, domid: int) -> None:
        (self.folder / f"ring-{domid}").write_bytes(bytes(4096))
        (self.folder / f"domain-{domid}").write_text("r")

    def set_domain(self, domid: int, state: str) -> None:
        """'r' running, 's' shut down, 'd' dead, as Xen would report it; raises DOM_EXC."""
        (self.folder / f"domain-{domid}").write_text(state)
        self.raise_event(VIRQ_PORT)

    def raise_event(self, port: int) -> None:
        os.write(self._event, PORT.pack(port))

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._event)


@contextmanager
def running(peer: Peer, *, clock_speed: int | None = None) -> Iterator[Daemon]:
    """A daemon in a folder that goes with it."""
    with tempfile.TemporaryDirectory(prefix="xenpv-peer-") as name:
        folder = Path(name)
        daemon = Daemon(peer, folder, build(folder, clock_speed=clock_speed))
        try:
            yield daemon
        finally:
            daemon.stop()


class OurServer:
    """`xenpv store` as a process of its own, on `socket`."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.socket = folder / "ours"
        self.process = subprocess.Popen(  # noqa: S603 - this interpreter, our own command
            [sys.executable, "-m", "xenpv", "store", "--socket", os.fspath(self.socket), *options],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self.said: list[str] = []
        for line in self.process.stderr:
            self.said.append(line)
            if " serves " in line:
                return
        self.process.wait()
        raise ConfigError(f"xenpv store does not start: {''.join(self.said).strip()}")

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate()


@contextmanager
def our_server(*options: str) -> Iterator[OurServer]:
    with tempfile.TemporaryDirectory(prefix="xenpv-store-") as name:
        server = OurServer(Path(name), *options)
        try:
            yield server
        finally:
            server.stop()
