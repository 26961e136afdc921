"""`xenpv hunt`: the kit against a driver of one's own, for as long as one likes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from xenpv.cli import output
from xenpv.cli.arguments import Commands, number, seconds
from xenpv.cli.progress import watch
from xenpv.errors import ConfigError, LocalProtocolError

if TYPE_CHECKING:
    from xenpv.testing.hunt import Found, Hunt

DESCRIPTION: Final = """\
Look for bugs in a driver of your own: put it in the place of xenpv's, play every numbered case of
its suite and of its side of xenbus, then explore it under an honest peer and under a hostile one
whose memory changes at any moment. DRIVER is module:Class, file.py:Class or file.c (with
compiler flags: "file.c -DFLAG"); without one, xenpv's own is looked at. An end of a protocol of
your own is named by its suite, file.py:NAME. Exit status 1 if something is found.
"""
EPILOG: Final = """\
examples:
  xenpv hunt blk-backend my_backend.py:Backend
  xenpv hunt blk-backend my_backend.c
  xenpv hunt net-frontend drivers.net:Frontend --seconds 600 --replays found
  xenpv hunt own_protocol.py:BACKEND own_protocol.py:Backend
  xenpv hunt blk-backend my_backend.py:Backend --without BLKB-031 --json
"""
SECONDS: Final = 60.0
SUITES: Final = ("blk-backend", "blk-frontend", "net-backend", "net-frontend")


def add_to(commands: Commands) -> None:
    """The command's options, for `cli.parser`."""
    hunt = commands.add_parser(
        "hunt",
        help="look for bugs in a driver of your own",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    hunt.add_argument(
        "suite", type=_end, metavar="END", help=f"one of {', '.join(SUITES)}, or file.py:NAME"
    )
    hunt.add_argument(
        "driver", nargs="?", default="", metavar="DRIVER",
        help="module:Class, file.py:Class or file.c",
    )  # fmt: skip
    hunt.add_argument("--json", action="store_true", help="print one JSON document instead")
    hunt.add_argument("--seed", type=number, default=0, metavar="N", help="of every example (0)")
    hunt.add_argument(
        "--seconds", type=seconds, default=SECONDS, metavar="S", help=f"of CPU ({SECONDS:g})"
    )
    hunt.add_argument(
        "--without", action="append", default=[], metavar="ID",
        help="a case that your driver need not pass; may be repeated",
    )  # fmt: skip
    hunt.add_argument(
        "--replays", type=Path, default=Path(".xenpv"), metavar="DIR",
        help="where replay files go (.xenpv)",
    )  # fmt: skip


def _end(text: str) -> str:
    """One of SUITES, or the name of a suite of one's own."""
    if text not in SUITES and ":" not in text:
        raise argparse.ArgumentTypeError(
            f"invalid choice: {text!r} (choose from {', '.join(SUITES)}, or file.py:NAME)"
        )
    return text


def _hunts(options: argparse.Namespace) -> list[Hunt]:
    """What there is against the end. ConfigError: unknown end, driver or case."""
    from xenpv.testing import kit, named
    from xenpv.testing.hunt import CaseHunt

    factory = named.find_driver(options.driver) if options.driver else None
    if ":" in options.suite:
        from xenpv.testing.ringkit import hunting

        found = hunting.hunts_of(named.find_suite(options.suite), factory)
    else:
        found = kit.hunts_of(options.suite, factory)
    played = [one for one in found if isinstance(one, CaseHunt)]
    known = [case.id for one in played for case in one.cases]
    unknown = [one for one in options.without if one not in known]
    if unknown:
        raise ConfigError(f"{options.suite} has no case {unknown[0]}: `xenpv cases --list`")
    return found


def run(options: argparse.Namespace) -> int:
    """The command; its exit status. ConfigError."""
    from xenpv.testing.kit import find_in

    hunts = _hunts(options)
    output.check_folder(options.replays)
    with watch() as progress:
        findings, examples = find_in(
            hunts,
            seed=options.seed,
            seconds=options.seconds,
            without=options.without,
            progress=lambda done, name: progress(f"{name}: {done} examples", 0, 0),
        )
    told = [(one, _saved(one, options.replays)) for one in findings]
    if options.json:
        print(json.dumps(_as_json(options, told, examples), indent=1))
    else:
        print(*_as_text(options, told, examples), sep="\n")
    return 1 if findings else 0


def _saved(found: Found, directory: Path) -> str:
    """The replay file; empty where a driver cannot be found again by name."""
    try:
        return str(found.save(directory))
    except LocalProtocolError:
        return ""
    except OSError as error:
        raise ConfigError(
            f"cannot write replay files: {error.strerror}", file=str(directory)
        ) from None


def _as_text(
    options: argparse.Namespace, told: list[tuple[Found, str]], examples: int
) -> list[str]:
    lines: list[str] = []
    for found, path in told:
        lines.append(f"{found.hunt}: {found.failure}")
        lines += [f"  {number}. {step}" for number, step in enumerate(found.steps, 1)]
        if path:
            lines.append(f"  again: xenpv replay {path}")
    what = options.driver or "xenpv's own"
    result = f"{len(told)} failures" if told else "nothing found"
    return [*lines, f"{options.suite}, {what}: {result} in {examples} examples"]


def _as_json(
    options: argparse.Namespace, told: list[tuple[Found, str]], examples: int
) -> dict[str, Any]:
    """These keys stay."""
    return {
        "end": options.suite,
        "driver": options.driver,
        "examples": examples,
        "found": [
            {
                "by": found.hunt,
                "failure": found.failure,
                "steps": list(found.steps),
                "replay": path,
            }
            for found, path in told
        ],
    }
