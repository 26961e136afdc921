"""Where commands write: stdout that may be closed or full, and files and folders to be made."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

from xenpv.errors import ConfigError


def flush() -> None:
    """Everything printed so far; a process that was started without a stdout has none."""
    if sys.stdout is not None:
        sys.stdout.flush()


class Watched:
    """A stdout that remembers why it took nothing more: printing is often not looked at."""

    def __init__(self, stream: TextIO) -> None:
        self.failure: OSError | None = None
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self.failure = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def drop(self) -> None:
        """Nothing may be flushed into it at the interpreter's end."""
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, self._stream.fileno())
        os.close(devnull)


@contextmanager
def watched() -> Iterator[Watched | None]:
    """sys.stdout is one of these meanwhile; None: there is no stdout."""
    before = sys.stdout
    if before is None:
        yield None
        return
    out = Watched(before)
    sys.stdout = cast("TextIO", out)
    try:
        yield out
    finally:
        sys.stdout = before


def check_folder(path: Path) -> None:
    """Whether files can be made in it, or it can be made. ConfigError, before anything is done.

    Nothing is made here: a command that finds nothing leaves nothing.
    """
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        what = "exists and is no directory" if there == path else f"{there} is no directory"
        raise ConfigError(f"cannot write replay files: {what}", file=str(path))
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write replay files: {there} may not be written", file=str(path))


def check_no_pipe(*paths: str | Path) -> None:
    """ConfigError for a named pipe, which would be waited for. A shell's <(...) is none."""
    for path in map(Path, paths):
        try:
            is_pipe = stat.S_ISFIFO(path.stat().st_mode)
        except OSError:
            continue  # whoever reads it says so
        if is_pipe and os.path.lexists(os.path.realpath(path)):
            raise ConfigError("is a named pipe: expected a file", file=str(path))
