"""A wall clock over code under test, which may loop for ever or wait for what never comes.

The model knows no wall clock; this stands outside it, and is armed only while code of a user
runs. In the main thread SIGALRM ends whatever is running, a wait in the system included. In
another thread an exception is set, which Python raises at its next line: a wait in the system
cannot be ended there, and is told on stderr.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, Final

from xenpv.testing.ends.blame import Place, caller

SECONDS: Final = 10.0
AGAIN_S: Final = 0.5  # for code that swallowed the exception
LEAST_S: Final = 1e-3


class Stuck(BaseException):
    """Raised inside code that does not return; no `except Exception` keeps it."""

    def __init__(self, place: Place | None = None) -> None:
        self.place = place
        super().__init__(f"{place} does not return")


class Alarm:
    """SIGALRM of the main thread, shared with whoever else has it: theirs goes on afterwards."""

    def __init__(self) -> None:
        self.depth = 0  # calls under way: handlers that were preempted stand beside one another
        self._handler: Any = None
        self._left = 0.0
        self._since = 0.0

    def enter(self, seconds: float) -> None:
        """Seconds count anew from each call."""
        if not self.depth:
            self._handler = signal.signal(signal.SIGALRM, self._expired)
            self._since = time.monotonic()
            self._left, _ = signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_S)
        else:
            signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_S)
        self.depth += 1

    def leave(self) -> None:
        self.depth -= 1
        if self.depth:
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._handler)
        self._handler = None
        if self._left:
            left = self._left - (time.monotonic() - self._since)
            signal.setitimer(signal.ITIMER_REAL, max(left, LEAST_S))

    def _expired(self, _signal: int, frame: FrameType | None) -> None:
        if self.depth and frame is not None:
            raise Stuck(caller(frame))


class Patrol:
    """One thread that looks after all others that run code under test, but for the main one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watched: dict[int, list[float]] = {}  # by thread: deadlines, and how often told
        self._thread: threading.Thread | None = None

    def enter(self, seconds: float) -> None:
        with self._changed:
            mine = self._watched.setdefault(threading.get_ident(), [])
            mine.append(time.monotonic() + seconds)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="xenpv watchdog", daemon=True
                )
                self._thread.start()
            self._changed.notify()

    def leave(self) -> None:
        with self._changed:
            mine = self._watched[threading.get_ident()]
            mine.pop()
            if not mine:
                del self._watched[threading.get_ident()]

    def _run(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                for thread, deadlines in self._watched.items():
                    if deadlines[-1] <= now:
                        deadlines[-1] = now + AGAIN_S
                        self._end(thread)
                due = [deadlines[-1] for deadlines in self._watched.values()]
                self._changed.wait(max(min(due) - now, LEAST_S) if due else None)

    @staticmethod
    def _end(thread: int) -> None:
        place = caller(sys._current_frames().get(thread))
        sys.stderr.write(f"xenpv: {place} does not return\n")
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Stuck))


_ALARM: Final = Alarm()
_PATROL: Final = Patrol()


def watchdog() -> Alarm | Patrol:
    """The one of the thread that asks: `enter(seconds)` before a call, `leave()` after it."""
    is_main = threading.current_thread() is threading.main_thread()
    return _ALARM if is_main and hasattr(signal, "setitimer") else _PATROL
