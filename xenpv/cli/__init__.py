"""The command `xenpv`. Exit status: 0 all well, 1 something checked did not hold, 2 bad input."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import xenpv
from xenpv.cli import interrupt, output
from xenpv.cli.arguments import Commands
from xenpv.cli.interrupt import interruptible
from xenpv.errors import ConfigError

if TYPE_CHECKING:
    from xenpv.cli.report import RunFound

OK: Final = 0
FAILED: Final = 1
BAD_INPUT: Final = 2
VCPUS_MAX: Final = 128

EXAMPLES: Final = """\
examples:
  xenpv run guest.cfg                       boot it, check its devices, print a report
  xenpv run examples/*.cfg --seed 7         several guests on one platform, another schedule
  xenpv run guest.cfg --no-write --json     leave the disks alone, answer in JSON
  xenpv run guest.cfg --pcap frames.pcapng  keep what crossed the bridges, for Wireshark
  xenpv run guest.cfg --html run.html       look at every event, ring and packet in a browser
  xenpv run guest.cfg --save guest.save     save it at the end, instead of shutting it down
  xenpv run --restore guest.save            go on with it, and check its devices
  xenpv run guest.cfg --tap xenbr0=tap0     and let the host's kernel talk to it until Ctrl-C
  xenpv cases --suite store                 play the numbered cases of xenstored
  xenpv replay failure.replay               run a recorded failure again
  xenpv hunt blk-backend mine.py:Backend    look for bugs in a driver of your own
  xenpv zoo --jobs 2                        does the kit find the defects that it should?
  xenpv store --socket /tmp/xs              serve xenstored to real clients
  xenpv dump page.bin --as blkif            what is in a ring page that somebody got
"""
REPLAY_EXAMPLES: Final = """\
examples:
  xenpv replay .xenpv/one.replay            run it again, and tell what happens
  xenpv replay crash-1 --target blk-backend what a fuzzer left for that target of fuzz_one
"""
BENCH_EXAMPLES: Final = """\
examples:
  xenpv bench                               everything; it takes some minutes
  xenpv bench world ring-blk --json         these two, for scripts
"""
RUN: Final = """\
Boot the guests of real xl.cfg files with real disk images and exercise every device: read
each disk whole through SCSI and compare it with the file, write a scratch area at its end
and restore it, ping a host on the bridge of each network interface, shut down. Guests of save
files are restored and checked in the same way. Paths of disks, in a configuration and in a
save file, are relative to the working directory.
"""


class Parser(argparse.ArgumentParser):
    """Bad arguments get one line, as other bad input does; options are written in full."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


class Version(argparse.Action):
    """Looked up only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
        print(f"xenpv {xenpv.__version__}")
        parser.exit(OK)


def parser() -> Parser:
    """What the command understands."""
    top = Parser(
        prog="xenpv",
        description="A Xen platform in one process: run guests of xl.cfg files, or measure it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action=Version, nargs=0, help="print the version and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    run = commands.add_parser(
        "run",
        help="boot guests, exercise every device, print a report",
        description=RUN,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("configs", nargs="*", metavar="CONFIG", help="an xl.cfg file of one guest")
    run.add_argument("--json", action="store_true", help="print one JSON document instead")
    run.add_argument("--seed", type=_seed, metavar="N", help="of every choice (0)")
    run.add_argument("--no-write", action="store_true", help="do not write to any disk")
    run.add_argument(
        "--save",
        type=Path,
        metavar="FILE",
        help="save the guest at the end; a directory for several, each as NAME.save",
    )
    run.add_argument(
        "--restore",
        action="append",
        default=[],
        metavar="FILE",
        help="a guest that was saved, instead of a CONFIG or beside it; may be repeated",
    )
    run.add_argument(
        "--dom0-vcpus",
        type=_vcpus,
        default=1,
        metavar="N",
        help="of the control domain, whose netback offers as many queues, up to 8 (1)",
    )
    from xenpv.cli import capture, html, taps, tracefile

    capture.add_to(run)
    html.add_to(run)
    tracefile.add_to(run)
    taps.add_to(run)
    _add_others(commands)
    from xenpv.cli import cases, dump, hunt, store, zoo

    hunt.add_to(commands)
    cases.add_to(commands, _seed)
    zoo.add_to(commands)
    store.add_to(commands)
    dump.add_to(commands)
    return top


def _add_others(commands: Commands) -> None:
    """The commands that have few options."""
    replay = commands.add_parser(
        "replay",
        help="run a recorded failure again",
        description="Run again what a replay file holds: a scenario under its schedule, a case,\n"
        "the bytes of an overlay, or the commands of a life cycle. Exit status 1 if it fails\n"
        "again, 0 if it passes.",
        epilog=REPLAY_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    replay.add_argument("file", type=Path, metavar="FILE", help="a .replay file")
    replay.add_argument(
        "--target",
        default="",
        metavar="NAME",
        help="FILE is what a fuzzer left: bytes of an overlay over this target of fuzz_one",
    )
    from xenpv.cli import tracefile

    tracefile.add_to(replay)
    replay.add_argument("--json", action="store_true", help="print one JSON document instead")
    bench = commands.add_parser(
        "bench",
        help="measure beside the limits",
        description="Measure, each figure beside a limit or a real program in the same run. Exit\n"
        "status 1 if a goal is not met.",
        epilog=BENCH_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench.add_argument("names", nargs="*", metavar="NAME", help="which; all without any")
    bench.add_argument("--json", action="store_true", help="print one JSON document instead")


def _seed(text: str) -> int:
    if not text.isdecimal() or len(text) > 20 or int(text) >= 1 << 64:
        raise argparse.ArgumentTypeError(f"a seed is a number from 0 to 2^64 - 1, not {text!r}")
    return int(text)


def _vcpus(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= VCPUS_MAX:
        raise argparse.ArgumentTypeError(f"expected 1 to {VCPUS_MAX} vcpus, not {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    try:
        with interruptible():
            return _main(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        _say("interrupted")
        return interrupt.STATUS


def _main(arguments: Sequence[str]) -> int:
    # A guest's name or a path may hold what the terminal's encoding does not.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    with output.watched() as out:
        try:
            try:
                return _command(arguments)
            finally:  # also of the parser, which may have printed, and then exits
                output.flush()
        except ConfigError as error:
            _say(str(error))
            return BAD_INPUT
        except (OSError, SystemExit) as error:
            failure = None if out is None else out.failure
            if out is None or failure is None:
                if isinstance(error, SystemExit):
                    raise
                where = "xenpv" if error.filename is None else str(error.filename)
                _say(f"{where}: {error.strerror or error}")
                return BAD_INPUT
            out.drop()
            if isinstance(failure, BrokenPipeError):
                return FAILED  # whoever read the report has seen enough
            _say(f"xenpv: what was to be printed cannot be written: {failure.strerror}")
            return BAD_INPUT


def _command(arguments: Sequence[str]) -> int:
    options = _parsed(arguments)
    return COMMANDS[options.command](options)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; `help` and `help COMMAND` are `--help` of either."""
    top = parser()
    words = list(arguments)
    if not words:
        top.error(f"expected a command: {', '.join(COMMANDS)}, or help")
    if words[0] == "help":
        words = [*words[1:2], "--help"]
    options = top.parse_args(words)
    if options.command == "run" and not options.configs and not options.restore:
        Parser(prog="xenpv run").error("the following arguments are required: CONFIG")
    return options


def _run(options: argparse.Namespace) -> int:
    from xenpv.cli import capture, html, inputs, taps, tracefile
    from xenpv.cli.job import Job, Options
    from xenpv.cli.progress import watch

    paths = [*options.configs, *options.restore]
    output.check_no_pipe(*paths, *([] if options.replay is None else [options.replay]))
    outside = taps.outside(options)
    sources = inputs.load(options.configs, options.restore)
    if options.save is not None:
        inputs.check_save(options.save, sources)
    taps.check(outside, sources)
    capture.check(options.pcap, inputs.interfaces(sources))
    others = [one.path for one in options.pcap]
    others += [one for one in (options.html, options.journal) if one is not None]
    if options.save is not None:
        others += [inputs.save_path(options.save, source.config) for source in sources]
    tracefile.check(options.trace, others)
    for source in sources:
        for warning in source.config.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    wanted = Options(
        seed=options.seed or 0,
        write=not options.no_write,
        pcap=options.pcap,
        html=options.html,
        save=options.save,
        dom0_vcpus=options.dom0_vcpus,
        outside=outside,
        trace=options.trace,
    )
    try:
        with watch() as progress:
            job = Job(sources, wanted, progress)
            found = job.run()
    except (ConfigError, OSError):
        raise
    except Exception as error:
        error.add_note(f"This is a bug in xenpv; --seed {wanted.seed} repeats it.")
        raise
    _print(found, as_json=options.json)
    if options.html is not None and job.tape is not None:
        html.write(options.html, job.tape, found, options)
    return OK if found.ok else FAILED


def _print(found: RunFound, *, as_json: bool) -> None:
    from xenpv.cli import report

    if as_json:
        print(json.dumps(report.as_json(found), indent=1))
    else:
        encoding = (getattr(sys.stdout, "encoding", "") or "").lower().replace("-", "")
        print(*report.as_text(found, unicode=encoding == "utf8"), sep="\n")


def _bench(options: argparse.Namespace) -> int:
    from xenpv.bench import main as bench

    return bench(options.names, options.json)


def _replay(options: argparse.Namespace) -> int:
    from xenpv.cli import replay

    output.check_no_pipe(options.file)
    done = replay.replay(options.file, options.target, options.trace)
    replay.show(done, json_wanted=options.json)
    return FAILED if done.run.failed else OK


def _store(options: argparse.Namespace) -> int:
    from xenpv.cli import store

    return store.run(options)


def _dump(options: argparse.Namespace) -> int:
    from xenpv.cli import dump

    return dump.run(options)


def _hunt(options: argparse.Namespace) -> int:
    from xenpv.cli import hunt

    return hunt.run(options)


def _zoo(options: argparse.Namespace) -> int:
    from xenpv.cli import zoo

    return zoo.run(options)


def _cases(options: argparse.Namespace) -> int:
    from xenpv.cli import cases

    return cases.run(options)


COMMANDS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {
    "run": _run,
    "bench": _bench,
    "cases": _cases,
    "replay": _replay,
    "store": _store,
    "dump": _dump,
    "hunt": _hunt,
    "zoo": _zoo,
}
