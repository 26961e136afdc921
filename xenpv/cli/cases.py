"""`xenpv cases`: list, explain and play the numbered cases of the test kit."""

from __future__ import annotations

import argparse
import json
import socket
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from xenpv.cli import output
from xenpv.errors import ConfigError, LocalProtocolError

if TYPE_CHECKING:
    from xenpv.testing.cases import Case, CaseResult
    from xenpv.testing.cases.suite import Factory

EXAMPLES: Final = """\
examples:
  xenpv cases                               play every case against xenpv's own ends
  xenpv cases --list                        their numbers and titles
  xenpv cases --suite blk-backend --json    one suite, answered in JSON
  xenpv cases --explain STORE-022           where a case comes from, and what it expects
  xenpv cases GNT-004 EVT-011               these two
  xenpv cases --suite net-backend --driver mine.py:Backend
                                            a driver of your own
  xenpv cases --suite own.py:BACKEND        the suite of a protocol of your own
  xenpv cases --suite store --socket /run/xenstored/socket
                                            the store cases against any xenstored
"""
DESCRIPTION: Final = """\
Numbered cases of what an end must do, most of them beside a peer that breaks the protocol.
Each names the header, driver file or advisory (XSA) that asks for it. Without options all are
played against xenpv's own ends; tests play them against yours (xenpv.testing.check_...).
Exit status 1 if one fails, 2 if an id or a suite is unknown.
"""
WIDTH: Final = 100
CONNECT_S: Final = 10.0
ENDS: Final = ("blk-backend", "blk-frontend", "net-backend", "net-frontend")


def add_to(commands: Any, seed: Callable[[str], int]) -> None:
    """The subcommand and its options; `seed` reads the text of one."""
    cases = commands.add_parser(
        "cases",
        help="list, explain and play the numbered cases",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cases.add_argument("ids", nargs="*", metavar="ID", help="which cases; all without any")
    cases.add_argument(
        "--suite",
        action="append",
        default=[],
        metavar="S",
        help="the cases of this suite, or of one of your own: file.py:NAME; may be repeated",
    )
    what = cases.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="print ids and titles, play nothing")
    what.add_argument("--explain", metavar="ID", help="print all about one case, play nothing")
    cases.add_argument("--json", action="store_true", help="print one JSON document instead")
    cases.add_argument("--seed", type=seed, default=0, metavar="N", help="of every choice (0)")
    cases.add_argument(
        "--driver",
        metavar="DRIVER",
        help="play them against a driver of your own, module:Class, file.py:Class or file.c; "
        "for the suites of one end",
    )
    cases.add_argument(
        "--socket",
        type=Path,
        metavar="PATH",
        help="play the suite store against the xenstored of this Unix socket",
    )


def run(options: argparse.Namespace) -> int:
    """Do what was asked; the exit status. ConfigError for an unknown id or suite."""
    if options.explain is not None:
        own = [one for name in options.suite if ":" in name for one in _own(name)]
        _explain(_known([options.explain], own)[0], json_wanted=options.json)
        return 0
    chosen = _chosen(options)
    if options.list:
        _list(chosen, json_wanted=options.json)
        return 0
    factory = _driver(options, chosen)
    results = [one.run(factory, seed=options.seed) for one in chosen]
    _show(results, json_wanted=options.json)
    return int(any(one.outcome == "fail" for one in results))


def _chosen(options: argparse.Namespace) -> list[Case]:
    """In the order of the suites; the ids that were named, or all of the suites' cases."""
    from xenpv.testing import cases

    own = {name: _own(name) for name in options.suite if ":" in name}
    for name in options.suite:
        if name not in cases.SUITES and name not in own:
            raise ConfigError(f"no suite is called {name}: expected {', '.join(cases.SUITES)}")
    wanted = options.suite or (["store"] if options.socket is not None else list(cases.SUITES))
    if options.socket is not None and wanted != ["store"]:
        raise ConfigError("--socket is for the suite store alone")
    named = _known(options.ids, [case for suite in own.values() for case in suite])
    for one in named:
        if not one.of.is_own and one.suite not in wanted:
            raise ConfigError(f"{one.id} is of the suite {one.suite}, not {', '.join(wanted)}")
    known = [one for name in cases.SUITES if name in wanted for one in cases.cases(name)]
    return named or [*known, *(case for suite in own.values() for case in suite)]


def _own(text: str) -> list[Case]:
    """The cases of a suite that a file has. ConfigError."""
    from xenpv.testing import named

    return sorted(named.find_suite(text).cases, key=lambda one: one.id)


def _known(ids: Sequence[str], own: Sequence[Case] = ()) -> list[Case]:
    from xenpv.testing import cases

    mine = {one.id: one for one in own}
    try:
        return [mine.get(one.upper()) or cases.case(one.upper()) for one in ids]
    except LocalProtocolError as error:
        raise ConfigError(str(error)) from error


def _driver(options: argparse.Namespace, chosen: Sequence[Case]) -> Factory | None:
    """Who makes the end under test; None: ours."""
    from xenpv.testing import named
    from xenpv.testing.cases.storescene import SocketEnd

    if options.socket is not None:
        _check_socket(options.socket)
        return SocketEnd(options.socket)
    if options.driver is None:
        return None
    others = [
        one
        for one in chosen
        if one.suite != chosen[0].suite or not (one.of.is_own or one.suite in ENDS)
    ]
    if others:
        raise ConfigError(
            f"--driver: {others[0].id} is of the suite {others[0].suite}; name one of "
            f"{', '.join(ENDS)} with --suite"
        )
    factory: Factory = named.find_driver(options.driver)
    return factory


def _check_socket(path: Path) -> None:
    """Whether somebody listens there. ConfigError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_S)
        try:
            probe.connect(str(path))
        except OSError as error:
            why = error.strerror or str(error)
            raise ConfigError(
                f"no xenstored answers there: {why}: expected the socket of one, as of "
                "`xenpv store --socket`",
                file=str(path),
            ) from None


def _list(chosen: Sequence[Case], *, json_wanted: bool) -> None:
    if json_wanted:
        rows = [
            {
                "id": one.id,
                "title": one.title,
                "source": one.source,
                "suite": one.suite,
                "requires": list(one.requires),
                "hostile": one.hostile,
            }
            for one in chosen
        ]
        print(json.dumps(rows, indent=1))
        return
    for one in chosen:
        print(f"{one.id}  {one.title}")
    hostile = sum(one.hostile for one in chosen)
    print(f"{len(chosen)} cases, in {hostile} of them the peer breaks the protocol")


def _explain(case: Case, *, json_wanted: bool) -> None:
    if json_wanted:
        found: dict[str, Any] = {
            "id": case.id,
            "title": case.title,
            "source": case.source,
            "suite": case.suite,
            "expected": case.expected,
            "requires": list(case.requires),
            "hostile": case.hostile,
        }
        print(json.dumps(found, indent=1))
        return
    rows = [
        ("suite", case.suite),
        ("source", case.source),
        ("expected", case.expected),
        ("requires", ", ".join(case.requires) or "nothing"),
        ("peer", "breaks the protocol" if case.hostile else "keeps the protocol"),
        ("play it", f"xenpv cases {case.id}{case.of.option}"),
    ]
    print(f"{case.id}  {case.title}")
    for name, text in rows:
        indent = " " * 12
        print(*textwrap.wrap(text, WIDTH, initial_indent=f"  {name:<10}", subsequent_indent=indent),
              sep="\n")  # fmt: skip


def _show(results: Sequence[CaseResult], *, json_wanted: bool) -> None:
    """Failures are told last, and with --json on stderr: stdout is the document alone."""
    failed = [one for one in results if one.outcome == "fail"]
    if json_wanted:
        rows = [
            {
                "id": one.case.id,
                "title": one.case.title,
                "source": one.case.source,
                "result": one.outcome.value,
            }
            for one in results
        ]
        print(json.dumps(rows, indent=1))
    else:
        for one in results:
            reason = f" ({one.reason})" if one.outcome == "skip" else ""
            print(f"{one.outcome.value}  {one.case.id}  {one.case.title}{reason}")
        skipped = sum(one.outcome == "skip" for one in results)
        print(f"{len(results)} cases: {len(failed)} failed, {skipped} skipped")
    output.flush()
    for one in failed:
        print(f"{one.case.id} {one.case.title} ({one.case.source})", file=sys.stderr)
        print(f"  {one.reason}", file=sys.stderr)
        own = one.case.of.option
        print(f"  again: xenpv cases {one.case.id}{own} --seed {one.seed}", file=sys.stderr)
