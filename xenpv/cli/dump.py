"""`xenpv dump`: ring pages, grant tables, event channels and store rings, decoded."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xenpv.cli.arguments import Commands
from xenpv.errors import ConfigError, LocalProtocolError

if TYPE_CHECKING:
    from xenpv.view.dump.source import Place, Selection
    from xenpv.view.dump.table import Dumps

DESCRIPTION: Final = """\
Print rings, grant tables, event channels and store rings with their indices, what is unconsumed
and what is in flight. WHERE is a file of raw pages (as gdb, xenctx or /dev/mem give them: say
what they are with --as), a core of a domain (xl dump-core), a saved guest (xenpv run --save), or
the socket of a run (xenpv run --dump-socket), which is looked at between two of its tasks and
is not changed by that. Exit status 1 if something is WRONG: indices that cannot be a ring's, or
a page that is mapped and not granted.
"""
EPILOG: Final = """\
examples:
  xenpv dump page.bin --as blkif            one ring page; the order of a larger ring is the file's size
  xenpv dump table.bin --as grant_v1 --all  every entry in use of a grant table
  xenpv dump web.core --list                what is found in a core
  xenpv dump web.core --pfn 0x107,0x108 --as blkif
                                            a ring of two pages of it
  xenpv dump web.save --ring vbd/51712      the rings of one disk of a saved guest
  xenpv dump /tmp/dump --json               everything of a run that goes on
"""  # noqa: E501 - as a terminal shows it
PFN_END: Final = 1 << 52
DOMID_END: Final = 0x7FF0


def add_to(commands: Commands) -> None:
    """The command's options, for `cli.parser`."""
    dump = commands.add_parser(
        "dump",
        help="decode a ring, a grant table, event channels or a store ring",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    dump.add_argument("where", type=Path, metavar="WHERE", help="a file, or the socket of a run")
    dump.add_argument(
        "--as", type=_kind, dest="kind", metavar="KIND",
        help="what raw pages, or those of --pfn, are: blkif, netif_tx, xenstore, grant_v1, "
        "shared_info and others, which a wrong one lists; or file.py:NAME of a RingProtocol",
    )  # fmt: skip
    dump.add_argument("--list", action="store_true", help="print what there is, decode nothing")
    dump.add_argument(
        "--ring", action="append", default=[], metavar="NAME",
        help="only what is called so: a device (vbd/51712), a domain (d1), a kind (blkif); "
        "may be repeated",
    )  # fmt: skip
    dump.add_argument(
        "--pfn", type=_place, action="append", default=[], metavar="[DOMID:]PFN[,PFN...]",
        help="only these pages, in this order, read as --as says; may be repeated",
    )  # fmt: skip
    dump.add_argument("--all", action="store_true", help="print every row of long tables")
    dump.add_argument("--json", action="store_true", help="print one JSON document instead")


def _kind(text: str) -> str:
    from xenpv.view.dump.kinds import KINDS

    if ":" in text:
        from xenpv.testing.named import find_protocol

        try:
            return find_protocol(text).name
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    if text not in KINDS:
        raise argparse.ArgumentTypeError(f"no kind {text!r}: expected one of {', '.join(KINDS)}")
    return text


def _place(text: str) -> Place:
    from xenpv.view.dump.source import Place

    domid, colon, pages = text.rpartition(":")
    pfns = tuple(_number(one, PFN_END) for one in pages.split(","))
    number = _number(domid, DOMID_END) if colon else None
    if None in pfns or (colon and number is None):
        raise argparse.ArgumentTypeError(f"expected page numbers, as 0x107,0x108, not {text!r}")
    return Place(pfns=tuple(one for one in pfns if one is not None), domid=number)


def _number(text: str, end: int) -> int | None:
    try:
        found = int(text, 0) if len(text) <= 20 and text.isascii() else -1
    except ValueError:
        return None
    return found if 0 <= found < end else None


def run(options: argparse.Namespace) -> int:
    """The command; its exit status. ConfigError."""
    from xenpv.view.dump.source import Selection
    from xenpv.view.dump.table import ROWS_ALL, ROWS_MAX

    wanted = Selection(
        kind=options.kind or "",
        names=tuple(options.ring),
        places=tuple(options.pfn),
        most=ROWS_ALL if options.all else ROWS_MAX,
    )
    form = "json" if options.json else "text"
    if options.list:
        form = "list-json" if options.json else "list"
    if options.where.is_socket():
        from xenpv.view.dump.socket import ask

        answer = ask(options.where, wanted, form=form)
        print(answer.text, end="")
        return int(answer.wrong)
    found = _found(options.where, wanted)
    print(found.written(form))
    return 1 if found.wrong and not options.list else 0


def _found(path: Path, wanted: Selection) -> Dumps:
    from xenpv.view.dump import source

    try:
        return source.dumps(path, wanted)
    except LocalProtocolError as error:
        raise ConfigError(str(error), file=str(path)) from None
