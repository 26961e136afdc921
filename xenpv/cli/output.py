"""Where commands write: stdout that may be closed or full, and files and folders to be made."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from xenpv.errors import ConfigError


def flush() -> None:
    """Everything printed so far; a process that was started without a stdout has none."""
    if sys.stdout is not None:
        sys.stdout.flush()


def is_broken() -> str:
    """Why stdout takes nothing more, or nothing."""
    try:
        flush()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def drop() -> None:
    """Nothing may be flushed into a stdout that takes nothing, at the interpreter's end."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)


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
