"""`xenpv store` beside the xenstored of others: the same client, the same core, in turns.

All servers are processes. A sample pins its server and this client to one core and counts
the CPU time of both for each operation: neither the wake-up of an idle core nor other
processes are theirs to answer for. A wake-up by `selectors` takes 1.2 us, where epoll by
hand, which the listener uses, takes 0.65.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import clock_gettime_ns, thread_time_ns
from typing import Final

import attrs

from xenpv.abi.layout import packer
from xenpv.abi.xs import XS
from xenpv.bench._limit import ffi, lib
from xenpv.bench.daemon import Daemon, OurServer, Peer, missing, our_server, running
from xenpv.errors import LocalProtocolError

Pair = tuple[float, float | None]

HEADER: Final = packer("xsd_sockmsg")
IN_TRANSACTION: Final = 0xFFFFFFFF  # client.c puts the id there that the last START got
SAMPLE_S: Final = 0.02
NODES: Final = 100_000
WATCHES: Final = 10_000
FANOUT: Final = 100
PIPELINED: Final = 500
KILO: Final = 1e6  # operations in a nanosecond, in thousands a second


@attrs.frozen
class Script:
    """What one operation sends: requests, and how many messages answer each."""

    requests: tuple[tuple[XS, bytes, int], ...]  # type, payload, tx_id
    answers: tuple[int, ...] = ()

    def encode(self) -> bytes:
        return b"".join(encode(*request) for request in self.requests)


def encode(op: XS, payload: bytes, tx_id: int = 0) -> bytes:
    return HEADER.pack(int(op), 0, tx_id, len(payload)) + payload


KEY: Final = b"/bench/key"
READ: Final = Script(((XS.READ, KEY + b"\0", 0),))
WRITE: Final = Script(((XS.WRITE, KEY + b"\0v", 0),))
TRANSACTION: Final = Script(
    (
        (XS.TRANSACTION_START, b"\0", 0),
        (XS.READ, KEY + b"\0", IN_TRANSACTION),
        (XS.WRITE, KEY + b"\0v", IN_TRANSACTION),
        (XS.TRANSACTION_END, b"T\0", IN_TRANSACTION),
    )
)
SCALED: Final[dict[str, Script]] = {
    "read": READ,
    "write": WRITE,
    "list": Script(((XS.DIRECTORY, b"/bench\0", 0),)),
    "create": Script(((XS.WRITE, b"/bench/new\0v", 0), (XS.RM, b"/bench/new\0", 0))),
    "watch": Script(((XS.WATCH, KEY + b"\0t\0", 0), (XS.UNWATCH, KEY + b"\0t\0", 0)), (2, 1)),
    "tx": TRANSACTION,
}


class Client:
    """Connections of this process to one server, played by client.c."""

    def __init__(self, server: Daemon | OurServer, count: int = 1) -> None:
        self._pid = server.pid
        # The CPU clock of another process, as clock_getcpuclockid makes it.
        self._clock = (~server.pid << 3) | 2
        self._cpu = max(os.sched_getaffinity(0))
        self.sockets = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(count)]
        for sock in self.sockets:
            sock.connect(os.fspath(server.socket))
        self._descriptors = [sock.fileno() for sock in self.sockets]
        os.sched_setaffinity(server.pid, {self._cpu})
        self.rounds: dict[Script, int] = {}
        self.play(WRITE, 1)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()

    def play(self, script: Script, rounds: int) -> int:
        """Nanoseconds of CPU time, of this thread and of the server."""
        text = script.encode()
        answers = script.answers or (1,) * len(script.requests)
        before = thread_time_ns() + clock_gettime_ns(self._clock)
        failed = lib.store_client_run(
            self._descriptors, len(self._descriptors), text, len(text),
            ffi.new("int[]", answers), rounds,
        )  # fmt: skip
        took = thread_time_ns() + clock_gettime_ns(self._clock) - before
        if failed:
            raise LocalProtocolError(f"the store's answer to {script}: {os.strerror(-failed)}")
        return took

    def rate(self, script: Script) -> float:
        """Thousands of operations in a second of CPU time, by a sample of SAMPLE_S."""
        with self._pinned():
            if script not in self.rounds:
                took = self.play(script, 100)
                self.rounds[script] = max(1, int(SAMPLE_S * 1e9 * 100 / took))
            rounds = self.rounds[script]
            return rounds * len(self._descriptors) / self.play(script, rounds) * KILO

    @contextmanager
    def _pinned(self) -> Iterator[None]:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self._cpu})
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)


def beside(peer: Peer, script: Script, clients: int = 1) -> Generator[Pair, None, None]:
    """Thousands of operations a second, of `xenpv store` and of `peer`.

    Without a limit where the peer cannot run (`daemon.missing`).
    """
    with ExitStack() as stack:
        ours = Client(stack.enter_context(our_server()), clients)
        stack.callback(ours.close)
        theirs = None
        if missing(peer) is None:
            theirs = Client(stack.enter_context(running(peer)), clients)
            stack.callback(theirs.close)
        while True:
            yield ours.rate(script), None if theirs is None else theirs.rate(script)


def scale(operation: str) -> Generator[tuple[float, float], None, None]:
    """Microseconds an operation, in a large store with watches, and in an empty one."""
    script = SCALED[operation]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xenpv-store-")))
        (folder / "nodes").write_text(large_store())
        loaded = our_server("--load", os.fspath(folder / "nodes"))
        large = Client(stack.enter_context(loaded))
        stack.callback(large.close)
        watch_elsewhere(large.sockets[0])
        empty = Client(stack.enter_context(our_server()))
        stack.callback(empty.close)
        while True:
            yield 1e3 / large.rate(script), 1e3 / empty.rate(script)


def large_store() -> str:
    """NODES nodes as a store file: one level of FANOUT, below each the rest."""
    lines = []
    for above in range(FANOUT):
        lines.append(f'/large/{above} = ""')
        lines += [f'/large/{above}/{below} = "value"' for below in range(NODES // FANOUT - 1)]
    return "\n".join(lines) + "\n"


def watch_elsewhere(sock: socket.socket) -> None:
    """Registers WATCHES watches below /large, and reads what answers them."""
    for first in range(0, WATCHES, PIPELINED):
        names = [b"/large/%d/%d" % divmod(one, FANOUT) for one in range(first, first + PIPELINED)]
        sock.sendall(b"".join(encode(XS.WATCH, name + b"\0t\0") for name in names))
        # An answer of OK, and the first event.
        expected = sum(2 * HEADER.size + len(b"OK\0") + len(name) + len(b"\0t\0") for name in names)
        while expected:
            expected -= len(sock.recv(expected))
