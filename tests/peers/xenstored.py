"""The real xenstored and oxenstored 4.17 without Xen, with clients for them.

Not a test module. A daemon serves its Unix socket and, since the stub maps files as ring
pages, domains too: `RingClient` is the guest's end of one.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.peers import need
from xenpv.bench.daemon import Daemon, Peer, build, needs

HEADER = struct.Struct("<4I")
RING_SIZE = 1024
INDEX = struct.Struct("<I")
REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD = 2048, 2052, 2056, 2060
CLOCK_SPEED = 50  # so that the write rate limit does not slow tests down
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

    def __init__(self, daemon: Daemon, domid: int) -> None:
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


class Running(Daemon):
    """A real daemon, with clients of its socket that go when it stops."""

    def __init__(self, peer: Peer, folder: Path, preload: str) -> None:
        self._clients: list[SocketClient] = []
        super().__init__(peer, folder, preload)

    def client(self) -> SocketClient:
        client = SocketClient(self.socket)
        self._clients.append(client)
        return client

    def stop(self) -> None:
        for client in self._clients:
            client.close()
        super().stop()


@contextmanager
def running(peer: Peer, folder: Path) -> Iterator[Running]:
    """A daemon started in `folder`, which is empty."""
    for program, package in needs(peer):
        need(program, package)
    daemon = Running(peer, folder, build(folder, clock_speed=CLOCK_SPEED))
    try:
        yield daemon
    finally:
        daemon.stop()
