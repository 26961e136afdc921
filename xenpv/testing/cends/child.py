"""A driver in a process of its own, which may crash, hang or be killed.

What it did until then is known.

It shares the machine's memory, maps there what it is given, and asks for all else through a
socket. Its process waits for each answer, so whatever an exploration does to a driver in this
process happens to it alike: preemption, changed memory, access logs. What it may not survive
is a failure of the driver, with the newest line that it reached.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import subprocess
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from xenpv.abi._kernel import lib
from xenpv.testing.cends.answers import NAMES
from xenpv.testing.cends.lines import Lines
from xenpv.testing.cends.wire import (
    ENDING,
    MESSAGE,
    RESULT_ABORT,
    Blocks,
    Call,
    Entry,
    Failure,
    constants,
    ffi,
)
from xenpv.testing.ends import blame

if TYPE_CHECKING:
    from xenpv.testing.cends.driver import CDriver
    from xenpv.testing.ends.blame import Place

PAGE_SIZE: Final = 4096
MESSAGE_MAX: Final = 1 << 25  # bytes: more than a call may hand over
PATIENCE: Final = 2  # times the CPU time of a call is how long its process may sleep
LOOKS: Final = 50  # of that long, at one that runs
START_S: Final = 30.0
DIED: Final = constants("xenpv_failure_kind", "FAILED_")["SIGNAL"]
HEADER: Final = ffi.sizeof("struct xenpv_header")


class LostError(Exception):
    """Nothing more will come from the process; what happened to it."""


class Program:
    """A driver as an executable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = Lines(path)

    def start(self, driver: CDriver) -> ChildRuntime:
        """A process for one end."""
        return ChildRuntime(self, driver)


def _stop(process: subprocess.Popen[bytes], peer: socket.socket, status: mmap.mmap) -> None:
    process.kill()
    process.wait()
    peer.close()
    status.close()


class ChildRuntime:
    """One end of a driver, and the process that it is in."""

    def __init__(self, program: Program, driver: CDriver) -> None:
        self._program = program
        self._driver = weakref.ref(driver)
        self._hypervisor = driver.domain._hypervisor
        self._seconds = PATIENCE * driver.limits.seconds
        self._pc = 0
        self._blocks = Blocks()
        self._failed: Failure | None = None
        self._peer, theirs = socket.socketpair()
        newest = os.memfd_create("xenpv-step")
        os.ftruncate(newest, PAGE_SIZE)
        given = (theirs.fileno(), self._hypervisor.arena.descriptor, newest)
        self._process = subprocess.Popen(  # noqa: S603 - what we built of the user's driver
            [str(program.path), *map(str, given)], pass_fds=given, stdin=subprocess.DEVNULL
        )
        self._newest = mmap.mmap(newest, PAGE_SIZE)
        os.close(newest)
        theirs.close()
        self._peer.settimeout(START_S)
        self._stop = weakref.finalize(self, _stop, self._process, self._peer, self._newest)
        self._base = self._begin(driver)

    def _begin(self, driver: CDriver) -> int:
        """Tell it who it is; where it is loaded."""
        new = ffi.new("struct xenpv_new *")
        end = driver.end
        new.domid, new.otherend_id = end.domid, end.peer_domid
        new.nodename, new.otherend = end.path.encode(), end.peer_path.encode()
        try:
            self._send("NEW", bytes(ffi.buffer(new)))
            _, body = self._receive()
        except LostError as lost:
            self._stop()
            self._failed = Failure(DIED, 0, f"does not start: {lost}")
            return 0
        self._peer.settimeout(self._seconds)
        return int.from_bytes(body[:8], "little")

    @property
    def alive(self) -> bool:
        return bool(self._stop.alive) or self._failed is not None

    def free(self) -> Blocks:
        """End the process; what was left on its heap. Again: nothing."""
        blocks, self._blocks = self._blocks, Blocks()
        self._failed = None
        self._stop()
        return blocks

    def here(self) -> Callable[[], Place]:
        """Where in the driver the call or the access under way is."""
        pc = self._pc
        return lambda: self.place(pc)

    def place(self, pc: int) -> Place:
        return self._program.lines.place(pc - self._base)

    def enter(self, entry: Entry) -> int | Failure:
        """What the driver's function returned, or why it ended: as of LocalRuntime."""
        if self._failed is not None:
            return self._failed
        raised: list[BaseException] = []
        try:
            done = self._converse(entry, raised)
        except LostError as lost:
            newest = int.from_bytes(self._newest[:8], "little")
            return Failure(DIED, newest, f"does not get further: {lost}")
        self._blocks = Blocks(done.blocks, done.block_size, done.block_pc)
        if done.ending == ENDING["ENDED_FAILED"]:
            return Failure.of(done.failure)
        if done.ending == ENDING["ENDED_ABORTED"]:
            if raised:
                raise raised[-1]
            self._hypervisor.raise_from_hook()
        return int(done.result)

    def _converse(self, entry: Entry, raised: list[BaseException]) -> Any:
        """Answer until it is done: struct xenpv_done."""
        raw = entry.raw()
        raw.watched = lib.machine_hooked(self._hypervisor.machine)
        self._send("ENTER", bytes(ffi.buffer(raw)) + (entry.data or b""))
        while True:
            kind, body = self._receive()
            if kind == MESSAGE["CALL"]:
                self._answer(*self._asked(body, raised))
            elif kind == MESSAGE["ACCESS"]:
                self._answer(self._touched(body), b"")
            elif kind == MESSAGE["DONE"]:
                return _struct("xenpv_done", body)
            else:
                raise LostError(f"its process says {kind}, which is no message")

    def _asked(self, body: bytes, raised: list[BaseException]) -> tuple[int, bytes]:
        call = _struct("xenpv_call", body)
        given = body[ffi.sizeof("struct xenpv_call") :]
        if call.op not in NAMES or call.in_size != len(given):
            raise LostError(f"its process asks for {call.op} with {len(given)} bytes")
        self._pc = int(call.pc)
        driver = self._driver()
        assert driver is not None
        try:
            return driver.answer(Call(call.op, tuple(call.args), given, call.out_size))
        except BaseException as error:  # noqa: BLE001 - kept, and raised when the driver has ended
            raised.append(error)
            return RESULT_ABORT, b""

    def _touched(self, body: bytes) -> int:
        access = _struct("xenpv_access", body)
        if access.frame >= self._hypervisor.arena.nr_frames or (
            access.offset + access.size > PAGE_SIZE
        ):
            raise LostError(f"its process touches frame {access.frame}+{access.offset:#x}")
        self._pc = int(access.pc)
        driver = self._driver()
        assert driver is not None
        return int(
            lib.machine_access(
                self._hypervisor.machine, driver.end.domid,
                access.kind, access.frame, access.offset, access.size,
            )
        )  # fmt: skip

    # the socket

    def _answer(self, result: int, data: bytes) -> None:
        self._send("ANSWER", result.to_bytes(8, "little", signed=True) + data)

    def _send(self, kind: str, body: bytes) -> None:
        header = ffi.new("struct xenpv_header *", {"kind": MESSAGE[kind], "size": len(body)})
        try:
            self._peer.sendall(bytes(ffi.buffer(header)) + body)
        except OSError:
            self._lose()

    def _receive(self) -> tuple[int, bytes]:
        header = _struct("xenpv_header", self._exactly(HEADER))
        if header.size > MESSAGE_MAX:
            raise LostError(f"its process sends {header.size} bytes at once")
        return header.kind, self._exactly(header.size)

    def _exactly(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            part = self._part(size - len(found))
            if not part:
                self._lose()
            found += part
        return bytes(found)

    def _part(self, size: int) -> bytes:
        """At least a byte, or none at its end. Its own watchdog ends what runs, however busy the
        machine is; one that neither runs nor speaks is lost.
        """
        for _ in range(LOOKS):
            runs = self._runs()
            try:
                return self._peer.recv(size)
            except TimeoutError:
                if not runs and not self._runs():
                    return self._last(size)
            except OSError:
                return b""
        raise LostError(f"no word of its process in {LOOKS * self._seconds:g} s")

    def _last(self, size: int) -> bytes:
        """It sleeps. Perhaps it waits for an answer to what came just now."""
        with suppress(OSError):
            return self._peer.recv(size, socket.MSG_DONTWAIT)
        raise LostError(f"no word of its process in {self._seconds:g} s")

    def _runs(self) -> bool:
        """Whether it is on a processor, or waits for one (proc_pid_stat(5))."""
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        except OSError:
            return False
        return stat.rpartition(") ")[2][:1] not in ("S", "T")

    def _lose(self) -> None:
        """The process is gone. Raises LostError."""
        try:
            code = self._process.wait(self._seconds)
        except subprocess.TimeoutExpired:
            raise LostError("its process hung up") from None
        if code < 0:
            raise LostError(f"its process was killed by {signal.Signals(-code).name}")
        raise LostError(f"its process ended with status {code}")


def _struct(name: str, body: bytes) -> Any:
    """A copy. LostError: there is less."""
    found = ffi.new(f"struct {name} *")
    size = ffi.sizeof(f"struct {name}")
    if len(body) < size:
        raise LostError(f"its process sends {len(body)} bytes, expected {size}")
    ffi.memmove(found, body, size)
    return found


def _site(frame: FrameType) -> Callable[[], Place]:
    runtime: ChildRuntime = frame.f_locals["self"]
    return runtime.here()


blame.FOREIGN[ChildRuntime.enter.__code__] = _site
