"""The real C xenstored 4.17 without Xen: started over stub libraries, with clients for it.

Not a test module. The daemon serves its Unix socket and, since the stub maps files as ring
pages, domains too: `CXenstored.ring` is the guest's end of one.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.peers import need

HERE = Path(__file__).parent
HEADER = struct.Struct("<4I")
RING_SIZE = 1024
INDEX = struct.Struct("<I")
REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD = 2048, 2052, 2056, 2060
VIRQ_PORT = 1
PATIENCE_S = 10.0

Message = tuple[int, int, int, bytes]  # type, req_id, tx_id, payload


class Client:
    """Messages over some stream of bytes."""

    def __init__(self) -> None:
        self._buffer = b""

    def send(self, op: int, payload: bytes, *, tx_id: int = 0, req_id: int = 0) -> None:
        self.send_bytes(HEADER.pack(op, req_id, tx_id, len(payload)) + payload)

    def receive(self) -> Message:
        """The next message. TimeoutError if none comes."""
        while True:
            if len(self._buffer) >= HEADER.size:
                op, req_id, tx_id, length = HEADER.unpack_from(self._buffer)
                end = HEADER.size + length
                if len(self._buffer) >= end:
                    payload = self._buffer[HEADER.size : end]
                    self._buffer = self._buffer[end:]
                    return op, req_id, tx_id, payload
            self._buffer += self.receive_bytes()

    def send_bytes(self, data: bytes) -> None:
        raise NotImplementedError

    def receive_bytes(self) -> bytes:
        raise NotImplementedError


class SocketClient(Client):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(PATIENCE_S)
        self._socket.connect(os.fspath(path))

    def send_bytes(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive_bytes(self) -> bytes:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError("xenstored hung up")
        return data

    def close(self) -> None:
        self._socket.close()


class RingClient(Client):
    """A guest's end of its ring page; waits by polling, as the stub delivers no events."""

    def __init__(self, daemon: CXenstored, domid: int) -> None:
        super().__init__()
        self._daemon = daemon
        self._port = 100 + domid
        with (daemon.folder / f"ring-{domid}").open("r+b") as file:
            self.page = mmap.mmap(file.fileno(), 4096)

    def _index(self, offset: int) -> int:
        (value,) = INDEX.unpack_from(self.page, offset)
        return int(value)

    def _publish(self, offset: int, value: int) -> None:
        self.page[offset : offset + 4] = INDEX.pack(value & 0xFFFFFFFF)
        self._daemon.raise_event(self._port)

    def send_bytes(self, data: bytes) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while data:
            prod = self._index(REQ_PROD)
            room = RING_SIZE - (prod - self._index(REQ_CONS) & 0xFFFFFFFF)
            at = prod % RING_SIZE
            chunk = data[: min(room, RING_SIZE - at)]
            self.page[at : at + len(chunk)] = chunk
            self._publish(REQ_PROD, prod + len(chunk))
            data = data[len(chunk) :]
            if time.monotonic() > deadline:
                raise TimeoutError("xenstored does not read the ring")

    def receive_bytes(self) -> bytes:
        deadline = time.monotonic() + PATIENCE_S
        cons = self._index(RSP_CONS)
        while (prod := self._index(RSP_PROD)) == cons:
            if time.monotonic() > deadline:
                raise TimeoutError("nothing on the ring")
            os.sched_yield()
        at = cons % RING_SIZE
        data = self.page[RING_SIZE + at : RING_SIZE + min(at + prod - cons, RING_SIZE)]
        self._publish(RSP_CONS, cons + len(data))
        return data


class CXenstored:
    """One running daemon in a folder of its own."""

    def __init__(self, folder: Path, preload: str) -> None:
        self.folder = folder
        os.mkfifo(folder / "event")
        (folder / "xsd_port").write_text("3")
        (folder / "xsd_kva").write_bytes(bytes(4096))
        (folder / "domain-0").write_text("r")
        self.socket = folder / "socket"
        self._event = os.open(folder / "event", os.O_RDWR)
        self._clients: list[SocketClient] = []
        environment = {
            "XENSTORED_RUNDIR": os.fspath(folder),
            "XENSTORED_ROOTDIR": os.fspath(folder),
            "LD_PRELOAD": preload,
        }
        program = need("/usr/lib/xen-4.17/bin/xenstored", "xen-utils-4.17")
        # The preloaded library writes a byte when the socket listens; the end of the pipe
        # means that the daemon died before.
        ready, told = os.pipe()
        environment["XENSTORED_READY"] = str(told)
        self.process = subprocess.Popen(
            [program, "-N", "-F", os.fspath(folder / "pid")], env=environment, pass_fds=[told]
        )
        os.close(told)
        started = os.read(ready, 1)
        os.close(ready)
        if not started:
            raise RuntimeError("xenstored does not start")

    def client(self) -> SocketClient:
        client = SocketClient(self.socket)
        self._clients.append(client)
        return client

    def create_domain(self, domid: int) -> None:
        (self.folder / f"ring-{domid}").write_bytes(bytes(4096))
        (self.folder / f"domain-{domid}").write_text("r")

    def set_domain(self, domid: int, state: str) -> None:
        """'r' running, 's' shut down, 'd' dead, as Xen would report it; raises DOM_EXC."""
        (self.folder / f"domain-{domid}").write_text(state)
        self.raise_event(VIRQ_PORT)

    def raise_event(self, port: int) -> None:
        os.write(self._event, INDEX.pack(port))

    def stop(self) -> None:
        for client in self._clients:
            client.close()
        self.process.kill()
        self.process.wait()
        os.close(self._event)


def build(folder: Path) -> str:
    """The two preloaded libraries, compiled into `folder`; the value for LD_PRELOAD."""
    compiler = need("gcc", "gcc")
    need("/usr/include/xenctrl.h", "libxen-dev")
    libraries = []
    for name, script in (("xenstored_stub", "xenstored_stub.map"), ("xenstored_libc", None)):
        library = folder / f"{name}.so"
        command = [compiler, "-shared", "-fPIC", "-O1", "-w", "-o", os.fspath(library)]
        command.append(os.fspath(HERE / f"{name}.c"))
        if script is not None:
            command.append(f"-Wl,--version-script={HERE / script}")
        subprocess.run(command, check=True)
        libraries.append(os.fspath(library))
    return ":".join(libraries)


@contextmanager
def running(folder: Path) -> Iterator[CXenstored]:
    """A daemon started in `folder`, which is empty."""
    daemon = CXenstored(folder, build(folder))
    try:
        yield daemon
    finally:
        daemon.stop()
