"""`xenpv zoo`: the kit with default settings against known defects, one at a time."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from xenpv.cli import output
from xenpv.cli.arguments import Commands, number, seconds
from xenpv.cli.interrupt import SIGNALS
from xenpv.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpv.testing.kit import DefectReport

DESCRIPTION: Final = """\
Put one known defect at a time into xenpv's own drivers and run the whole kit against it: every
conformance case, scenarios under schedules, hostile overlays, life cycles. The kit does not know
which defect is on. Without an ID: all of them. Exit status 1 if one is not found, or if something
is found with --off.
"""
EPILOG: Final = """\
examples:
  xenpv zoo                               every defect, up to 60 seconds of CPU each
  xenpv zoo --list                        their ids, and what is wrong in each
  xenpv zoo net-page-cross --replays DIR  one of them, and a file for xenpv replay
  xenpv zoo --seconds 15 --jobs 2 --json  for scripts
  xenpv zoo --off --examples 200000       all of them off: nothing may be found
"""
SECONDS: Final = 60.0
HEADER: Final = f"{'defect':32} {'found':5} {'seconds':>7} {'examples':>8} {'steps':>5}  by"


def add_to(commands: Commands) -> None:
    """The command's options, for `cli.parser`."""
    zoo = commands.add_parser(
        "zoo",
        help="run the kit against known defects, one at a time",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    zoo.add_argument("defects", nargs="*", metavar="ID", help="which; all without any")
    zoo.add_argument("--list", action="store_true", help="list them and end")
    zoo.add_argument("--off", action="store_true", help="none is on: nothing may be found")
    zoo.add_argument("--json", action="store_true", help="print one JSON document instead")
    zoo.add_argument("--seed", type=number, default=0, metavar="N", help="of every example (0)")
    zoo.add_argument(
        "--seconds", type=seconds, metavar="S",
        help=f"of CPU for each ({SECONDS:g}; with --off as long as the examples take)",
    )  # fmt: skip
    zoo.add_argument("--examples", type=number, metavar="N", help="for each, at most")
    zoo.add_argument(
        "--jobs", type=_jobs, default=1, metavar="N", help="defects at a time, a process each (1)"
    )
    zoo.add_argument(
        "--replays", type=Path, metavar="DIR", help="write a replay file of each finding there"
    )


def _jobs(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 256:
        raise argparse.ArgumentTypeError(f"expected 1 to 256 processes, not {text!r}")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """The command; its exit status. ConfigError: an unknown defect."""
    from xenpv.testing.zoo import all_defects

    known = all_defects()
    unknown = [one for one in options.defects if one not in known]
    if unknown:
        raise ConfigError(f"no defect is called {unknown[0]!r}: `xenpv zoo --list` lists them")
    if options.list:
        for one in known.values():
            print(f"{one.id:32} {one.end:10} {one.mutation}")
        return 0
    if options.off and options.defects:
        raise ConfigError("--off: no defect may be named beside it")
    if options.replays is not None:
        output.check_folder(options.replays)
    names = [""] if options.off else options.defects or list(known)
    seconds = options.seconds or (1e6 if options.examples and options.off else SECONDS)
    reports: list[DefectReport] = []
    if not options.json:
        print(HEADER)
    for report in _reports(options, names, seconds):
        reports.append(report)
        if not options.json:
            print(_line(report), flush=True)
    if options.json:
        print(json.dumps([_as_json(one) for one in reports], indent=1))
    elif not options.off:
        _print_sum(reports)
    good = all(one.found != options.off for one in reports)
    return 0 if good else 1


def _reports(
    options: argparse.Namespace, names: list[str], seconds: float
) -> Iterator[DefectReport]:
    """In the order of `names`."""
    from xenpv.testing.kit import hunt_defect

    hunt: Callable[[str], DefectReport] = partial(
        hunt_defect,
        seed=options.seed,
        seconds=seconds,
        examples=options.examples,
        directory=options.replays,
    )
    if options.jobs == 1:
        for name in names:
            with _told(name):
                yield hunt(name)
        return
    # An arena does not outlive a fork, so each worker begins by itself.
    context = get_context("spawn")
    workers = ProcessPoolExecutor(options.jobs, mp_context=context)
    try:
        with _deaf():
            reports = workers.map(hunt, names)
        yield from reports
    except BaseException:
        # A hunt can take a minute, and nobody waits for it any more.
        for process in list(workers._processes.values()):
            process.kill()
        raise
    finally:
        workers.shutdown(cancel_futures=True)


@contextmanager
def _deaf() -> Iterator[None]:
    """What is started here does not hear a terminal's Ctrl-C: whoever started it ends it, and
    is itself not interrupted while it does.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """On a terminal, which one is on: it can take a minute."""
    if not sys.stderr.isatty():
        yield
        return
    sys.stderr.write(f"\r{name or 'none'} ...")
    sys.stderr.flush()
    try:
        yield
    finally:
        sys.stderr.write("\r\x1b[K")


def _line(report: DefectReport) -> str:
    found = "yes" if report.found else "no"
    steps = str(len(report.steps)) if report.found else "-"
    counts = f"{report.seconds:7.1f} {report.examples:8}"
    line = f"{report.defect or '(none)':32} {found:5} {counts} {steps:>5}  {report.by}"
    return f"{line}\n    {report.replay}" if report.replay else line.rstrip()


def _print_sum(reports: list[DefectReport]) -> None:
    found = [one for one in reports if one.found]
    print(f"{len(found)} of {len(reports)} found", end="")
    if found:
        steps, longest = median(len(one.steps) for one in found), max(one.seconds for one in found)
        print(f", median {steps:g} steps, at most {longest:.1f} s", end="")
    print()


def _as_json(report: DefectReport) -> dict[str, Any]:
    """These keys stay."""
    return {
        "defect": report.defect,
        "found": report.found,
        "seconds": round(report.seconds, 3),
        "examples": report.examples,
        "steps": len(report.steps) if report.found else None,
        "by": report.by,
        "failure": report.failure,
        "schedule": list(report.steps),
        "replay": report.replay,
    }
