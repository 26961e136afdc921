"""A progress line on stderr, for what takes longer than a second on a terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Final, Self

SHOWN_AFTER_SECONDS: Final = 1.0
SHOWN_EVERY_SECONDS: Final = 0.1
WIDTH: Final = 78


class Quiet:
    """Where nobody watches."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def __call__(self, what: str, done: int, total: int) -> None:
        pass


class Terminal(Quiet):
    """With rich, where it is installed, else a line that is written over."""

    def __init__(self) -> None:
        self._begin = self._last = time.monotonic()
        self._bar: Any = None
        self._written = False

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._begin < SHOWN_AFTER_SECONDS or now - self._last < SHOWN_EVERY_SECONDS:
            return
        self._last = now
        if not self._written:
            self._written = True
            self._bar = _rich_bar()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=what, completed=done, total=total)
            return
        line = f"{what}: {done * 100 // max(total, 1)} %"
        sys.stderr.write(f"\r{line[:WIDTH]:{WIDTH}}")
        sys.stderr.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._written:
            sys.stderr.write(f"\r{'':{WIDTH}}\r")
            sys.stderr.flush()


def _rich_bar() -> Any:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
    except ImportError:
        return None
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        console=Console(stderr=True),
        transient=True,
    )
    bar.add_task("")
    bar.start()
    return bar


def watch() -> Quiet:
    """For stderr as it is."""
    return Terminal() if sys.stderr.isatty() else Quiet()
