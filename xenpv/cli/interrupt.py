"""The first Ctrl-C or SIGTERM ends a command; those after it cannot disturb the clearing up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn

# A terminal that goes away ends a command as Ctrl-C does: borrowed sectors are put back.
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STATUS: Final = 128 + signal.SIGINT


def _interrupt(_number: int, _frame: object) -> NoReturn:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[None]:
    """KeyboardInterrupt at the first of SIGNALS, and none at those that follow.

    What the caller ignores, as under nohup, stays ignored. Signals are the main thread's.
    """
    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for one, handler in previous.items():
            # None: a handler that was not set from Python, which cannot be put back.
            signal.signal(one, signal.SIG_DFL if handler is None else handler)
