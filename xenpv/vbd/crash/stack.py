"""The dump and the hibernation stack: who runs the crash driver, and what is written by it.

What crashdmp.sys is to Windows. It has one task of the guest, in which all goes on that still
does; between two looks the other domains run. Its SRBs go out one at a time.
"""

from __future__ import annotations

import contextlib
import enum
from typing import Final

from xenpv.abi.sched import SHUTDOWN
from xenpv.errors import HypercallError
from xenpv.vbd.crash.driver import CrashDriver, CrashImage, Mode
from xenpv.vbd.crash.failure import CrashError
from xenpv.vbd.crash.memoryfile import (
    DUMP_SIGNATURE,
    HEADER_SIZE,
    HIBER_SIGNATURE,
    MemoryFile,
    memory_runs,
    numbers,
)
from xenpv.vbd.crash.request import SEGMENTS_MAX
from xenpv.vbd.crash.store import ERRORS
from xenpv.vbd.crash.target import ANSWER_MAX_NS
from xenpv.vbd.srb import Srb, SrbStatus
from xenpv.vbd.units import SPEC2024, SectorUnits
from xenpv.xen.domain import PAGE_SIZE, Domain
from xenpv.xen.loop import NS_PER_MS, Task, Timer

WRITE_16: Final = 0x8A
SYNCHRONIZE_CACHE_16: Final = 0x91
POLL_MIN_NS: Final = 10_000  # between two calls of the interrupt routine; it doubles up to
POLL_MAX_NS: Final = 10 * NS_PER_MS
SRB_MAX_NS: Final = 2 * ANSWER_MAX_NS  # of one that the driver never completes
WATCHDOGS: Final = (1, 2)  # ids of SCHEDOP_watchdog


class Stage(enum.Enum):
    """How far it is."""

    LOADED = "loaded"
    STARTING = "starting the driver"
    WRITING = "writing"
    DONE = "done"
    FAILED = "failed"


class DumpStack:
    """One of either, loaded while all is well; `lba` is the disk's sector where its file begins.

    `failure` is why there is no file. `file` is what was written, from then on.
    """

    def __init__(
        self,
        domain: Domain,
        mode: Mode,
        lba: int = 0,
        *,
        is_aligned: bool = True,
        units: SectorUnits = SPEC2024,
        quirks: frozenset[str] = frozenset(),
    ) -> None:
        """HypercallError(ENOMEM): the guest has no 25 pages for it."""
        self.domain = domain
        self.mode = mode
        self.lba = lba
        self.image = CrashImage.load(domain, is_aligned=is_aligned)
        self.driver = CrashDriver(domain, mode, self.image, units=units, quirks=quirks)
        self.stage = Stage.LOADED
        self.failure = ""
        self.file: MemoryFile | None = None
        self._reason = 0
        self._task: Task | None = None
        self._timer: Timer | None = None
        self._buffer = 0  # two pages, for the header
        self._pieces: list[tuple[int, int]] = []
        self._next = 0  # of the SRBs, in the order of _submit
        self._at = HEADER_SIZE  # where the next piece goes in the file
        self._srb = Srb()
        self._submitted_at = 0
        self._poll_ns = 0

    def unload(self) -> None:
        """Give the image's pages back; not once it has begun."""
        if self.stage is Stage.LOADED:
            self.domain.pages.free(self.image.pfn, len(self.image.pages))

    def begin(self, code: int, parameters: tuple[int | str, ...], reason: int) -> bool:
        """Everything else of the guest stops, and the file is written; then SCHEDOP_shutdown.

        False where that cannot be: it is going down already, or this is its second crash.
        """
        domain = self.domain
        if self.stage is not Stage.LOADED or domain.is_shutting_down or domain.dying:
            return False
        signature = DUMP_SIGNATURE if self.mode is Mode.DUMP else HIBER_SIGNATURE
        runs = tuple(memory_runs(domain))
        cpus = domain.processors
        self.file = MemoryFile(signature, runs, cpus, code, numbers(parameters))
        self._reason = reason
        self.stage = Stage.STARTING
        self._task = domain.quiesce("xencrsh", self._run)
        self._timer = domain.timer(self._task)
        for watchdog in WATCHDOGS:
            with contextlib.suppress(HypercallError):  # it is not set
                domain.sched.watchdog(watchdog, 0)
        self._task.wake()
        return True

    @property
    def is_over(self) -> bool:
        return self.stage in (Stage.DONE, Stage.FAILED)

    def _run(self) -> None:
        assert self._task is not None
        assert self._timer is not None
        wait = self._go_on()
        if self.driver.is_stopped:
            return
        if self.is_over:
            self._end()
        elif wait:
            self._timer.arm(wait)
        else:
            self._task.wake()

    def _go_on(self) -> int:
        """The ns until the next look; 0: when the others had a chance to run."""
        try:
            if self.stage is Stage.STARTING:
                wait = self.driver.poll()
                if wait is None and not self.driver.is_stopped:
                    self._started()
                return wait or 0
            return self._look()
        except ERRORS as error:
            self._fail(str(error))
        return 0

    def _fail(self, why: str) -> None:
        if self.driver.is_stopped:
            return
        self.stage = Stage.FAILED
        self.failure = why

    def _end(self) -> None:
        done = self.stage is Stage.DONE
        text = (
            f"{self.file.size} bytes at sector {self.lba}" if done and self.file else self.failure
        )
        self.driver.log(f"{self.mode.value} {self.stage.value}: {text}")
        # A system whose memory was not kept did not hibernate.
        lost = not done and self.mode is Mode.HIBER
        self._let_go()
        self.domain.shutdown(SHUTDOWN.crash if lost else self._reason)

    def abandon(self) -> None:
        """The system crashes meanwhile: another stack begins, and takes over from this one."""
        if self.stage in (Stage.STARTING, Stage.WRITING):
            self._fail("the system crashed")
            self.driver.is_stopped = True
            self._let_go()

    def _let_go(self) -> None:
        try:
            self.driver.store.detach()
        except HypercallError as error:
            self.driver.log(f"{self.mode.value}: {error}")

    # writing

    def _started(self) -> None:
        if self.driver.failure:
            raise CrashError(self.driver.failure)
        assert self.file is not None
        backend = self.driver.backend
        room = (backend.capacity - self.lba) * backend.sector_size
        if room < self.file.size:
            raise CrashError(
                f"the disk has {max(0, room)} bytes from sector {self.lba} on, the file "
                f"{self.file.size}"
            )
        self._buffer = self.driver.heap.allocate(HEADER_SIZE // PAGE_SIZE)
        self._pieces = self.file.pieces(SEGMENTS_MAX)
        self.stage = Stage.WRITING
        self._submit()

    def _submit(self) -> None:
        """The next SRB. What may lie there from another time is spoilt first; the header comes
        last, behind a flush, so that a file that has one is whole.
        """
        assert self.file is not None
        step, pages = self._next, len(self._pieces)
        if step == 0:
            self._write(0, self._buffer, HEADER_SIZE)
        elif step <= pages:
            pfn, count = self._pieces[step - 1]
            self._write(self._at, pfn, count * PAGE_SIZE)
            self._at += count * PAGE_SIZE
        elif step == pages + 2:
            self.domain.write(self._buffer, 0, self.file.header())
            self._write(0, self._buffer, HEADER_SIZE)
        else:
            self._srb = Srb(cdb=bytes((SYNCHRONIZE_CACHE_16,)).ljust(16, b"\0"))
        self._submitted_at = self.domain.loop.now
        self._poll_ns = 0
        self.driver.target.submit(self._srb)

    def _write(self, at: int, pfn: int, nr_bytes: int) -> None:
        size = self.driver.backend.sector_size
        lba, count = self.lba + at // size, nr_bytes // size
        cdb = bytes((WRITE_16, 0)) + lba.to_bytes(8, "big") + count.to_bytes(4, "big") + b"\0\0"
        self._srb = Srb(cdb=cdb, data=[(pfn, 0, nr_bytes)])

    def _look(self) -> int:
        self.driver.target.interrupt()
        while self._srb.is_complete:
            if self._srb.srb_status is not SrbStatus.SUCCESS:
                why = self.driver.target.broken or f"SRB status {self._srb.srb_status.name}"
                raise CrashError(f"{self._what}: {why}")
            self._next += 1
            if self._next == len(self._pieces) + 4:
                self.stage = Stage.DONE
                return 0
            self._submit()
        if self.domain.loop.now - self._submitted_at >= SRB_MAX_NS:
            raise CrashError(f"{self._what}: the SRB is lost")
        wait = self._poll_ns
        self._poll_ns = min(max(POLL_MIN_NS, 2 * wait), POLL_MAX_NS)
        return wait

    @property
    def _what(self) -> str:
        if self._srb.data:
            return f"write at sector {int.from_bytes(self._srb.cdb[2:10], 'big')}"
        return "flush"
