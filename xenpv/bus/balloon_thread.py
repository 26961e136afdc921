"""XENBUS' balloon thread: makes the balloon what memory/target says (win-xenbus fdo.c FdoBalloon).

It is woken by a watch of the key. Between the chunks of a guest that finds pages slowly, and
before the next try of an adjustment that failed, it waits in a state that a timer ends.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from xenpv.bus.balloon import BalloonInterface, strtoull
from xenpv.bus.ntstatus import NTSTATUS
from xenpv.bus.store import StoreInterface, Watch
from xenpv.bus.suspend import BalloonSuspendMutex
from xenpv.errors import StoreError
from xenpv.xen.loop import NS_PER_S, Task, Timer

TARGET_KEY: Final = "memory/target"
ACTIVE_KEY: Final = "control/balloon-active"
FEATURE_KEY: Final = "control/feature-balloon"
KIB_PER_PAGE: Final = 4
OWNER: Final = "balloon"  # of the exclusion
RETRY_NS: Final = NS_PER_S
# How long the FDO's start waits until the thread is idle: then it warns, then it bugchecks.
START_WARNING_NS: Final = 10 * NS_PER_S
START_LIMIT_NS: Final = 1200 * NS_PER_S


class BalloonState(enum.Enum):
    """Where the thread is. In ADJUSTING and RETRYING it is active, and suspend has to wait."""

    STOPPED = "stopped"  # D3
    IDLE = "idle"  # until the target changes
    BLOCKED = "blocked"  # until the suspend is over
    ADJUSTING = "adjusting"  # between two chunks
    RETRYING = "retrying"  # until a second is over


ACTIVE: Final = (BalloonState.ADJUSTING, BalloonState.RETRYING)


class BalloonThread:
    """The thread of one guest. `log` takes a line, `bugcheck` the reason for one.

    `windows`: it tells of itself in `control`, as XENBUS does and Linux' balloon does not.
    """

    def __init__(
        self,
        balloon: BalloonInterface,
        store: StoreInterface,
        exclusion: BalloonSuspendMutex,
        *,
        log: Callable[[str], object],
        bugcheck: Callable[[str], object],
        windows: bool = True,
    ) -> None:
        self.balloon = balloon
        self.exclusion = exclusion
        self.state = BalloonState.STOPPED
        self.waiting = False  # until it was idle once after its start
        self.failures = 0  # adjustments that are to be tried again
        self._store = store
        self._log = log
        self._bugcheck = bugcheck
        self._windows = windows
        domain = balloon.domain
        self.task: Task = domain.task("balloon", self._run)
        self._timer: Timer | None = None  # to the end of a chunk
        self._retry: Timer | None = None
        self._wait_task: Task | None = None
        self._wait_timer: Timer | None = None
        self._warned = False
        self._watch: Watch | None = None
        self._ready: Task | None = None
        self._static_pages: int | None = None  # once read, for good
        self._status: NTSTATUS | None = None  # of the chunk that is being waited for
        self._again = False  # the target changed meanwhile

    @property
    def active(self) -> bool:
        return self.balloon.is_active

    def _enter(self, state: BalloonState) -> None:
        self.state = state
        self.balloon.is_active = state in ACTIVE

    def start(self, ready: Task | None = None) -> None:
        """To D0; raises StoreError if the watch is refused. Wakes `ready` once it is idle."""
        self._enter(BalloonState.IDLE)
        self.waiting = ready is not None
        self._ready = ready
        self._watch = self._store.watch_add(TARGET_KEY, self.task)
        if self._windows:
            self._write(FEATURE_KEY, "1")

    def stop(self) -> None:
        """To D3. An adjustment that is under way ends where it is."""
        if self.state is BalloonState.STOPPED:
            return
        self._rest()
        self._enter(BalloonState.STOPPED)
        if self._watch is not None:
            with suppress(StoreError):
                self._store.watch_remove(self._watch)
            self._watch = None
        if self._windows:
            with suppress(StoreError):
                self._store.remove(FEATURE_KEY)

    # states

    def _run(self) -> None:
        if self.state is BalloonState.ADJUSTING:
            if self._timer is not None and self._timer.armed:
                self._again = True
            else:
                self._after_chunk()
        elif self.state is not BalloonState.STOPPED:
            self._look()

    def _look(self) -> None:
        """What the target asks for, and the first chunk of it."""
        size = self._wanted()
        if size is None or size == self.balloon.size:
            # The driver, if this is a retry, would stay active, and block every suspend.
            self._rest()
            return
        if not self.active:
            if not self.exclusion.try_acquire(OWNER, self.task):
                self._enter(BalloonState.BLOCKED)
                self._idle()
                return
            if self._windows:
                self._write(ACTIVE_KEY, "1")
        self._enter(BalloonState.ADJUSTING)
        if self._retry is not None:
            self._retry.cancel()
        self.balloon.begin(size)
        self._chunk()

    def _chunk(self) -> None:
        """Chunks, until one takes its time."""
        while self.state is BalloonState.ADJUSTING:
            self._status = self.balloon.step()
            if self.balloon.took_ns:
                self._sleep(self.balloon.took_ns)
                return
            self._judge()

    def _after_chunk(self) -> None:
        self._judge()
        self._chunk()

    def _judge(self) -> None:
        """Go on, or retry, or rest: by how the last chunk ended."""
        if self._status is None:
            return
        if self._status is NTSTATUS.SUCCESS:
            self._rest()
            if self._again:
                self._again = False
                self.task.wake()
            return
        self.failures += 1
        self._again = False
        self._enter(BalloonState.RETRYING)
        if self._retry is None:
            # Periodic: a target that cannot be reached does not keep the loop from ending.
            self._retry = self.balloon.domain.timer(self.task, RETRY_NS)
        self._retry.arm(RETRY_NS)
        self._wait()

    def _rest(self) -> None:
        """Idle, and whoever could not suspend meanwhile may try again."""
        for timer in (self._timer, self._retry):
            if timer is not None:
                timer.cancel()
        if self.active:
            if self._windows:
                self._write(ACTIVE_KEY, "0")
            self.exclusion.release(OWNER)
        self._enter(BalloonState.IDLE)
        self._idle()

    def _sleep(self, ns: int) -> None:
        if self._timer is None:
            self._timer = self.balloon.domain.timer(self.task)
        self._timer.arm(ns)
        self._wait()

    def _wait(self) -> None:
        """The FDO's patience begins to run out."""
        if self.waiting and self._wait_timer is None:
            self._wait_task = self.balloon.domain.task("balloon wait", self._late)
            self._wait_timer = self.balloon.domain.timer(self._wait_task)
            self._wait_timer.arm(START_WARNING_NS)

    # the FDO's wait for it

    def _idle(self) -> None:
        if not self.waiting:
            return
        self.waiting = False
        if self._wait_timer is not None:
            self._wait_timer.cancel()
        if self._ready is not None:
            self._ready.wake()

    def _late(self) -> None:
        if not self.waiting or self._wait_timer is None:
            return
        if not self._warned:
            self._warned = True
            self._log("xenbus: waiting for balloon\n")
            self._wait_timer.arm(START_LIMIT_NS - START_WARNING_NS)
            return
        self._bugcheck("the balloon thread is not idle 1200 s after its start")

    # the store

    def _wanted(self) -> int | None:
        """Pages that should be in the balloon; None: there is nothing to go by."""
        if self._static_pages is None:
            static_max = self._read("memory/static-max") or 0
            videoram = self._read("memory/videoram") or 0 if static_max else 0
            if not static_max or static_max < videoram:
                return None
            self._static_pages = (static_max - videoram) // KIB_PER_PAGE
        target = self._read(TARGET_KEY)
        if target is None:
            return None
        return self._static_pages - min(target // KIB_PER_PAGE, self._static_pages)

    def _read(self, key: str) -> int | None:
        """A number of KiB; None where there is no value. What is no number is 0."""
        try:
            return strtoull(self._store.read(key), 10)
        except StoreError:
            return None

    def _write(self, key: str, value: str) -> None:
        """`control` may be read-only to the guest: then the key stays away."""
        with suppress(StoreError):
            self._store.write(key, value)
