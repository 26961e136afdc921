"""`--trace FILE`: a recording of the run that Perfetto and chrome://tracing open."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from xenpv.errors import ConfigError

if TYPE_CHECKING:
    from xenpv.view.tape import Tape

HELP: Final = "record what happens, for ui.perfetto.dev or chrome://tracing"


def add_to(command: argparse.ArgumentParser) -> None:
    """The option, for `cli.parser`."""
    command.add_argument("--trace", type=Path, metavar="FILE", help=HELP)


def check(path: Path | None, others: Sequence[Path]) -> None:
    """ConfigError if the command writes something else to the same file."""
    if path is not None and path.resolve() in [one.resolve() for one in others]:
        raise ConfigError("the trace and another output would write it", file=str(path))


class TraceFile:
    """The file of one run, open from `open` until its stack ends. Without a path it is none."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._file: TextIO | None = None

    def open(self, stack: ExitStack, inputs: Sequence[Path]) -> None:
        """ConfigError, before anything is written, if it cannot be or is one of `inputs`."""
        path = self.path
        if path is None:
            return
        if path.exists() and any(path.samefile(one) for one in inputs):
            raise ConfigError("the trace would overwrite it", file=str(path))
        try:
            self._file = stack.enter_context(path.open("w", encoding="ascii"))
        except OSError as error:
            raise self._refused(error) from None

    def write(self, tapes: Sequence[Tape], **about: str | int) -> None:
        """What was recorded, and `about` the run. ConfigError if the file takes no more."""
        if self._file is None:
            return
        from xenpv.view import perfetto

        try:
            perfetto.write(tapes, self._file, **about)
            self._file.flush()
        except OSError as error:
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> ConfigError:
        return ConfigError(f"cannot write the trace: {error.strerror}", file=str(self.path))
