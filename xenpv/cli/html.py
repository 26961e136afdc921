"""`xenpv run --html`: one page of the run, for a browser."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xenpv.errors import ConfigError

if TYPE_CHECKING:
    from xenpv.cli.report import RunFound
    from xenpv.view.tape import Tape

HELP: Final = """\
write a page for a browser: the report, a timeline, and each ring, the store and the packets at
any moment. Needs the extra `report`
"""


def add_to(run: argparse.ArgumentParser) -> None:
    """The option, for `cli.parser`."""
    run.add_argument("--html", type=Path, metavar="FILE", help=HELP)


@contextmanager
def opened(path: Path | None, others: Sequence[Path]) -> Iterator[None]:
    """ConfigError, before anything is run, if the page cannot be made or is one of `others`.

    A file that was there is left alone until `write`; one made here is removed if nothing was
    written to it.
    """
    if path is None:
        yield
        return
    from xenpv.view.page import missing

    lack = missing()
    if lack:
        raise ConfigError(f"--html {lack}")
    if any(_is_same(path, other) for other in others):
        raise ConfigError("the page would overwrite it", file=str(path))
    is_new = not path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise ConfigError(f"cannot write the page: {error.strerror}", file=str(path)) from None
    try:
        yield
    finally:
        if is_new and path.is_file() and not path.stat().st_size:
            path.unlink()


def _is_same(path: Path, other: Path) -> bool:
    if path.exists() and other.exists():
        return path.samefile(other)
    return path.resolve() == other.resolve()


def write(path: Path, tape: Tape, found: RunFound, options: argparse.Namespace) -> None:
    """The page of a run. ConfigError if it cannot be written."""
    from xenpv.cli.report import as_json
    from xenpv.view import page

    names = ", ".join(guest.config.name for guest in found.guests)
    again = repeat(options, found.seed)
    try:
        page.write(tape, path, as_json(found), title=f"xenpv run: {names}", repeat=again)
    except OSError as error:
        raise ConfigError(f"cannot write the page: {error.strerror}", file=str(path)) from None


def repeat(options: argparse.Namespace, seed: int) -> str:
    """The command that gives the same digest; "" where TAPs brought in what nobody recorded."""
    said = [*options.configs]
    for file in options.restore:
        said += ["--restore", file]
    journal = options.replay or options.journal
    if journal is not None:
        said += ["--replay", str(journal)]
    elif options.tap or options.guest_tap or options.seconds is not None:
        return ""
    else:
        said += ["--seed", str(seed)]
    if options.no_write:
        said.append("--no-write")
    if options.dom0_vcpus != 1:
        said += ["--dom0-vcpus", str(options.dom0_vcpus)]
    if options.save is not None:
        said += ["--save", str(options.save)]
    return shlex.join(["xenpv", "run", *said])
