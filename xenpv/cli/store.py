"""`xenpv store`: a xenstored for programs outside, until a signal ends it."""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import closing
from pathlib import Path
from typing import Final

from xenpv.cli import output
from xenpv.cli.arguments import Commands
from xenpv.errors import ConfigError
from xenpv.store import storefile
from xenpv.store.listener import Listener
from xenpv.store.profile import PROFILES, named
from xenpv.store.server import Xenstored

DESCRIPTION: Final = """\
Serve xenstored on a Unix socket, with mode 0600. Point libxenstore, the xenstore-* tools or
any other client at it with XENSTORED_PATH=PATH. SIGTERM, SIGHUP or Ctrl-C ends it and removes
the socket; SIGUSR1 writes the --dump file at once. The exit status is 1 if the --dump file
could not be written at the end, 2 if an option cannot be used.
"""
EPILOG: Final = """\
examples:
  xenpv store --socket /tmp/xs                      an empty store, of the C kind
  XENSTORED_PATH=/tmp/xs xenstore-ls -fp            what is in it
  xenpv store --socket /tmp/xs --load host.txt      with what `xenstore-ls -fp` printed on a host
  xenpv store --socket /tmp/xs --dump after.txt     and kept in a file when it ends
"""
DOMID_MAX: Final = 0x7FEF


def add_to(commands: Commands) -> None:
    """The command's options, for `cli.parser`."""
    store = commands.add_parser(
        "store",
        help="serve xenstored on a Unix socket for real clients",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    store.add_argument("--socket", type=Path, required=True, metavar="PATH", help="where to listen")
    store.add_argument(
        "--profile", choices=list(PROFILES), default="c",
        help="the C xenstored (c), oxenstored (ox), or any change ends a transaction (legacy)",
    )  # fmt: skip
    store.add_argument("--load", type=Path, metavar="FILE", help="nodes to start with")
    store.add_argument("--dump", type=Path, metavar="FILE", help="keep the nodes at the end")
    store.add_argument(
        "--domain", type=_domid, action="append", default=[], metavar="DOMID",
        help="a domain that exists, so that it may own nodes; may be repeated",
    )  # fmt: skip
    store.add_argument("--quiet", action="store_true", help="say nothing but errors")


def _domid(text: str) -> int:
    if not text.isdecimal() or int(text) > DOMID_MAX:
        raise argparse.ArgumentTypeError(f"a domid is a number from 0 to {DOMID_MAX}, not {text!r}")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Serve until a signal ends it; 0, or 1 if the nodes could not be kept.

    Raises ConfigError where it cannot begin, and then there is no socket.
    """
    if options.dump is not None:
        storefile.check_target(options.dump)
    domains = storefile.KnownDomains(tuple(options.domain))
    server = domains.serve(named(options.profile))
    server.administration.files = LogFiles()
    if options.load is not None:
        output.check_no_pipe(options.load)
        loaded = storefile.load(server, domains, options.load)
        _say(options, f"{loaded} nodes of {options.load}")
    with closing(Listener(server, options.socket)) as listener:
        asked = _Signals(listener)
        _say(options, f"xenstored serves {options.socket}; Ctrl-C ends it")
        while not asked.stop:
            listener.step()
            if asked.dump:
                asked.dump = False
                _dump(options, server)
    kept = _dump(options, server)
    _say(options, f"{listener.served} clients, {listener.dropped} of them sent away")
    return 0 if kept else 1


def _dump(options: argparse.Namespace, server: Xenstored) -> bool:
    """Were the nodes kept, if they shall be? A disk that is full does not end the store."""
    if options.dump is None:
        return True
    try:
        written = storefile.dump(server, options.dump)
    except ConfigError as error:
        print(error, file=sys.stderr, flush=True)
        return False
    _say(options, f"{written} nodes in {options.dump}")
    return True


class LogFiles:
    """Where CONTROL `logfile` and `memreport` write: files of this process' host."""

    def append(self, name: str, text: str) -> None:
        with Path(name).open("a", encoding="utf-8") as file:
            file.write(text)


class _Signals:
    """What signals asked for; a handler may run in the middle of a request, so it only notes."""

    def __init__(self, listener: Listener) -> None:
        self.stop = False
        self.dump = False
        self._listener = listener
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        if number == signal.SIGUSR1:
            self.dump = True
        else:
            self.stop = True
        self._listener.nudge()


def _say(options: argparse.Namespace, text: str) -> None:
    if not options.quiet:
        print(text, file=sys.stderr, flush=True)
