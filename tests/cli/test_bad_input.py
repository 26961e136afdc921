"""Bad input of every command: (exit status, one line), nothing written, no traceback.

A line says what was expected and where; status 2 is bad input, 1 something that did not hold.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from xenpv import cli
from xenpv.abi.__main__ import main as abi_main

GOOD = """\
name = "good"
memory = 64
disk = [ "disk.img,raw,xvda,w" ]
vif = [ "bridge=xenbr0,mac=00:16:3e:00:00:01" ]
"""
DEEP = "[" * 100_000


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A good configuration with its image, and one of everything that is bad."""
    monkeypatch.chdir(tmp_path)
    Path("disk.img").write_bytes(bytes(range(256)) * 16)
    Path("good.cfg").write_text(GOOD)
    Path("folder").mkdir()
    Path("empty").touch()
    Path("binary").write_bytes(bytes(range(256)) * 20)
    Path("deep").write_text(DEEP)
    Path("page.bin").write_bytes(bytes(4096))
    Path("raises.py").write_text("raise RuntimeError('no')\nBackend = print\n")
    Path("leaves.py").write_text("import sys\nsys.exit(0)\n")
    Path("syntax.py").write_text("class Backend(:\n")
    Path("bad.c").write_text("int main( {\n")
    with Path("huge").open("wb") as file:
        file.truncate(1 << 33)
    os.mkfifo("fifo")
    stale = socket.socket(socket.AF_UNIX)
    stale.bind("stale")
    stale.close()
    return tmp_path


def outcome(capsys, main, *arguments):
    """(exit status, stdout, stderr), run in this process."""
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err


SEED = "a seed is a number from 0 to 2^64 - 1, not "
NUMBER = "expected a number, not "
IS_PIPE = "fifo: is a named pipe: expected a file"
NO_FILE = "No such file or directory"
NO_DIR = "Not a directory"
NONE_THERE = "no xenstored answers there: "
NO_FOLDER = "cannot write replay files: exists and is no directory"
# of every command that reads an option: command line, and the start of the line that answers it
ROWS = {
    # the command itself
    "nothing": ("", "xenpv: expected a command: run, "),
    "no such command": ("walk", "xenpv: argument COMMAND: invalid choice: 'walk' (choose from "),
    "help of no command": ("help walk", "xenpv: argument COMMAND: invalid choice: 'walk'"),
    "unknown option": ("--walk run", "xenpv: unrecognized arguments: --walk; see xenpv --help"),
    # run
    "run: nothing": ("run", "xenpv run: the following arguments are required: CONFIG"),
    "run: option": ("run good.cfg --nope", "xenpv: unrecognized arguments: --nope"),
    "run: seed": ("run good.cfg --seed -1x", "xenpv run: argument --seed: "),
    "run: seed, word": ("run good.cfg --seed x", f"xenpv run: argument --seed: {SEED}'x'"),
    "run: seed, too large": ("run good.cfg --seed 18446744073709551616", "xenpv run: argument --seed"),
    "run: vcpus": ("run good.cfg --dom0-vcpus 0", "xenpv run: argument --dom0-vcpus: expected 1 to 128"),
    "run: for": ("run good.cfg --for x", "xenpv run: argument --for: expected seconds, as 10"),
    "run: tap": ("run good.cfg --tap xenbr0", "xenpv run: argument --tap: expected BRIDGE=TAP"),
    "run: tap of no bridge": ("run good.cfg --tap br9=t0", "there is no bridge br9 for the TAP t0"),
    "run: guest tap": ("run good.cfg --guest-tap good=t0", "xenpv run: argument --guest-tap: expected a"),
    "run: missing": ("run no.cfg", f"no.cfg: cannot read the configuration: {NO_FILE}"),
    "run: folder": ("run folder", "folder: cannot read the configuration: Is a directory"),
    "run: below a file": ("run good.cfg/x", f"good.cfg/x: cannot read the configuration: {NO_DIR}"),
    "run: empty": ("run empty", "empty: the domain has no name: expected name ="),
    "run: binary": ("run binary", "binary:1:1: NUL byte: the file must be plain text"),
    "run: huge": ("run huge", "huge: a configuration may have 1048576 bytes"),
    "run: pipe": ("run fifo", IS_PIPE),
    "run: deep": ("run deep", "deep:1:1: "),
    "run: restore missing": ("run --restore no", f"no: cannot be read: {NO_FILE}"),
    "run: restore folder": ("run --restore folder", "folder: is a directory: expected a file that"),
    "run: restore below a file": ("run --restore empty/x", f"empty/x: cannot be read: {NO_DIR}"),
    "run: restore empty": ("run --restore empty", "empty: is empty: expected a file that was saved"),
    "run: restore binary": ("run --restore binary", "binary: byte 0: expected 'Saved domain in"),
    "run: restore huge": ("run --restore huge", "huge: byte 0: expected 'Saved domain in"),
    "run: restore pipe": ("run --restore fifo", IS_PIPE),
    "run: save below no folder": ("run good.cfg --save no/x", "no/x: cannot save there: there is no"),
    "run: save below a file": ("run good.cfg --save empty/x", "empty/x: cannot save there: there is no"),
    "run: save to a pipe": ("run good.cfg --save fifo", "fifo: cannot save there: it exists and is no file"),
    "run: save to a socket": ("run good.cfg --save stale", "stale: cannot save there: it exists and is no"),
    "run: save over its image": ("run good.cfg --save disk.img", "disk.img: the save file would overwrite"),
    "run: pcap below no folder": ("run good.cfg --pcap no/x", f"no/x: cannot write the capture: {NO_FILE}"),
    "run: pcap below a file": ("run good.cfg --pcap empty/x", f"empty/x: cannot write the capture: {NO_DIR}"),
    "run: pcap to a folder": ("run good.cfg --pcap folder", "folder: cannot write the capture: Is a"),
    "run: pcap of nobody": ("run good.cfg --pcap x.1=y", "--pcap x.1: no such interface; expected one of"),
    "run: journal alone": ("run good.cfg --journal x", "--journal records what comes in: expected --tap"),
    "run: replay missing": ("run good.cfg --replay no", f"no: cannot read it: {NO_FILE}"),
    "run: replay folder": ("run good.cfg --replay folder", "folder: cannot read it: Is a directory"),
    "run: replay empty": ("run good.cfg --replay empty", "empty: it is no journal of this version"),
    "run: replay binary": ("run good.cfg --replay binary", "binary: it is no journal of this version"),
    "run: replay pipe": ("run good.cfg --replay fifo", IS_PIPE),
    "run: replay beside a seed": ("run good.cfg --replay x --seed 1", "--replay has all from its journal"),
    "run: dump socket at a file": ("run good.cfg --dump-socket empty", "empty: exists and is no socket"),
    "run: dump socket below no folder": ("run good.cfg --dump-socket no/x", f"no/x: the dump socket cannot be made: {NO_FILE}"),
    "run: trace to a folder": ("run good.cfg --trace folder", "folder: cannot write the trace: Is a directory"),
    "run: trace below a file": ("run good.cfg --trace empty/x", f"empty/x: cannot write the trace: {NO_DIR}"),
    "run: trace over its image": ("run good.cfg --trace disk.img", "disk.img: the trace would overwrite it"),
    "run: trace and page": ("run good.cfg --trace x --html x", "x: the trace and another output would write it"),
    "run: page to a folder": ("run good.cfg --html folder", "folder: cannot write the page: Is a directory"),
    "run: page below a file": ("run good.cfg --html empty/x", f"empty/x: cannot write the page: {NO_DIR}"),
    "run: page over its image": ("run good.cfg --html disk.img", "disk.img: the page would overwrite it"),
    # cases
    "cases: option": ("cases --nope", "xenpv: unrecognized arguments: --nope"),
    "cases: id": ("cases NOPE-1", "no case is called 'NOPE-1': `xenpv cases --list`"),
    "cases: explain": ("cases --explain NOPE", "no case is called 'NOPE'"),
    "cases: suite": ("cases --suite nope", "no suite is called nope: expected blk-backend, "),
    "cases: id of another": ("cases GNT-004 --suite store", "GNT-004 is of the suite grant, not store"),
    "cases: seed": ("cases --seed x", f"xenpv cases: argument --seed: {SEED}'x'"),
    "cases: list and explain": ("cases --list --explain X", "xenpv cases: argument --explain: not allowed"),
    "cases: socket missing": ("cases --socket no", f"no: {NONE_THERE}{NO_FILE}"),
    "cases: socket folder": ("cases --socket folder", f"folder: {NONE_THERE}Connection refused"),
    "cases: socket file": ("cases --socket empty", f"empty: {NONE_THERE}Connection refused"),
    "cases: socket stale": ("cases --socket stale", f"stale: {NONE_THERE}Connection refused"),
    "cases: socket below a file": ("cases --socket empty/x", f"empty/x: {NONE_THERE}{NO_DIR}"),
    "cases: socket's path": (f"cases --socket {'x' * 200}", f"{'x' * 200}: {NONE_THERE}AF_UNIX path too long"),
    "cases: socket of another suite": ("cases --suite grant --socket no", "--socket is for the suite store"),
    "cases: driver shape": ("cases --suite blk-backend --driver x", "driver 'x': expected module:Class, "),
    "cases: driver of no suite": ("cases --driver raises.py:Backend", "--driver: "),
    "cases: driver missing": ("cases --suite blk-backend --driver no.py:B", "no.py: no such file"),
    "cases: driver raises": ("cases --suite blk-backend --driver raises.py:Backend", "driver 'raises:Backend': importing it: RuntimeError: no"),
    # hunt
    "hunt: nothing": ("hunt", "xenpv hunt: the following arguments are required: END"),
    "hunt: end": ("hunt nope", "xenpv hunt: argument END: invalid choice: 'nope' (choose from "),
    "hunt: option": ("hunt blk-backend --nope", "xenpv: unrecognized arguments: --nope"),
    "hunt: seconds": ("hunt blk-backend --seconds 0", "xenpv hunt: argument --seconds: expected seconds"),
    "hunt: seconds, nan": ("hunt blk-backend --seconds nan", "xenpv hunt: argument --seconds: expected"),
    "hunt: seed": ("hunt blk-backend --seed x", f"xenpv hunt: argument --seed: {NUMBER}'x'"),
    "hunt: without": ("hunt blk-backend --without NO", "blk-backend has no case NO: `xenpv cases --list`"),
    "hunt: driver missing": ("hunt blk-backend no.py:B", "no.py: no such file"),
    "hunt: driver folder": ("hunt blk-backend folder:B", "unknown driver 'folder:B': no such function"),
    "hunt: driver of no class": ("hunt blk-backend good.cfg:B", "unknown driver 'good.cfg:B': no such function to import"),
    "hunt: driver syntax": ("hunt blk-backend syntax.py:Backend", "driver 'syntax:Backend': importing it: SyntaxError"),
    "hunt: driver leaves": ("hunt blk-backend leaves.py:Backend", "driver 'leaves:Backend': importing it: SystemExit"),
    "hunt: source missing": ("hunt blk-backend no.c", "no.c: no such C source"),
    "hunt: replays at a file": ("hunt blk-backend --replays empty", f"empty: {NO_FOLDER}"),
    "hunt: replays below a file": ("hunt blk-backend --replays empty/x", "empty/x: cannot write replay files: empty is no directory"),
    # zoo
    "zoo: option": ("zoo --nope", "xenpv: unrecognized arguments: --nope"),
    "zoo: id": ("zoo nope", "no defect is called 'nope': `xenpv zoo --list` lists them"),
    "zoo: jobs": ("zoo --jobs 0", "xenpv zoo: argument --jobs: expected 1 to 256 processes, not '0'"),
    "zoo: seconds": ("zoo --seconds x", "xenpv zoo: argument --seconds: expected seconds, not 'x'"),
    "zoo: examples": ("zoo --examples x", f"xenpv zoo: argument --examples: {NUMBER}'x'"),
    "zoo: off and a name": ("zoo net-page-cross --off", "--off: no defect may be named beside it"),
    "zoo: replays at a file": ("zoo net-page-cross --replays empty", f"empty: {NO_FOLDER}"),
    # replay
    "replay: nothing": ("replay", "xenpv replay: the following arguments are required: FILE"),
    "replay: option": ("replay x --nope", "xenpv: unrecognized arguments: --nope"),
    "replay: missing": ("replay no", f"no: not a replay file: {NO_FILE}"),
    "replay: folder": ("replay folder", "folder: not a replay file: Is a directory"),
    "replay: below a file": ("replay empty/x", f"empty/x: not a replay file: {NO_DIR}"),
    "replay: empty": ("replay empty", "empty: not a replay file: not JSON"),
    "replay: binary": ("replay binary", "binary: not a replay file: not text"),
    "replay: huge": ("replay huge", "huge: not a replay file: it has more than "),
    "replay: deep": ("replay deep", "deep: not a replay file: "),
    "replay: pipe": ("replay fifo", IS_PIPE),
    "replay: trace over its file": ("replay binary --trace binary", "binary: "),
    "replay: target": ("replay binary --target no", "no target is called 'no': expected blk-backend, "),
    # store
    "store: nothing": ("store", "xenpv store: the following arguments are required: --socket"),
    "store: option": ("store --socket s --nope", "xenpv: unrecognized arguments: --nope"),
    "store: profile": ("store --socket s --profile x", "xenpv store: argument --profile: invalid choice: 'x'"),
    "store: domain": ("store --socket s --domain x", "xenpv store: argument --domain: a domid is a number"),
    "store: socket folder": ("store --socket folder", "folder: exists and is no socket"),
    "store: socket file": ("store --socket empty", "empty: exists and is no socket"),
    "store: socket below no folder": ("store --socket no/x", f"no/x: cannot be made: {NO_FILE}"),
    "store: socket below a file": ("store --socket empty/x", f"empty/x: cannot be made: {NO_DIR}"),
    "store: socket's path": (f"store --socket {'x' * 200}", f"{'x' * 200}: a socket's path has at most 107"),
    "store: load missing": ("store --socket s --load no", f"no: cannot be read: {NO_FILE}"),
    "store: load folder": ("store --socket s --load folder", "folder: cannot be read: Is a directory"),
    "store: load binary": ("store --socket s --load binary", "binary:1:1: expected: /path = "),
    "store: load huge": ("store --socket s --load huge", "huge: is too long; at most 268435456 bytes"),
    "store: load pipe": ("store --socket s --load fifo", IS_PIPE),
    "store: dump to a folder": ("store --socket s --dump folder", "folder: exists and is no file"),
    "store: dump to a pipe": ("store --socket s --dump fifo", "fifo: exists and is no file"),
    "store: dump below no folder": ("store --socket s --dump no/x", "no/x: its folder does not exist"),
    # bench
    "bench: name": ("bench nope", "no bench is called 'nope': expected world, "),
    "bench: option": ("bench --nope", "xenpv: unrecognized arguments: --nope"),
    # dump
    "dump: nothing": ("dump", "xenpv dump: the following arguments are required: WHERE"),
    "dump: option": ("dump page.bin --nope", "xenpv: unrecognized arguments: --nope"),
    "dump: no kind": ("dump page.bin", "page.bin: expected --as KIND, since these bytes are raw pages"),
    "dump: kind": ("dump page.bin --as x", "xenpv dump: argument --as: no kind 'x': expected one of blkif, "),
    "dump: pfn": ("dump page.bin --pfn x", "xenpv dump: argument --pfn: expected page numbers, as 0x107,0x108"),
    "dump: pfn of a page": ("dump page.bin --as blkif --pfn 1", "page.bin: is neither a core nor a saved guest: --pfn"),
    "dump: missing": ("dump no --as blkif", f"no: cannot be read: {NO_FILE}"),
    "dump: folder": ("dump folder", "folder: is a directory: expected a file or a dump socket"),
    "dump: below a file": ("dump empty/x", f"empty/x: cannot be read: {NO_DIR}"),
    "dump: empty": ("dump empty --as blkif", "empty: is empty: expected pages, a core or a saved guest"),
    "dump: odd": ("dump deep --as blkif", "deep: has 100000 bytes: expected whole pages of 4096"),
    "dump: huge": ("dump huge --as grant_v1", "huge: is too long: raw pages of 16777216 bytes at most"),
    "dump: pipe": ("dump fifo --as blkif", "fifo: is neither a file nor a socket"),
    "dump: stale socket": ("dump stale", "stale: nobody answers there: its run is over"),
}  # fmt: skip


def listing(where):
    """What is there, with contents of what is small."""
    found = {}
    for path in sorted(where.rglob("*")):
        is_small = path.is_file() and path.stat().st_size < 1 << 20
        found[str(path)] = (path.lstat().st_mode, path.read_bytes() if is_small else b"")
    return {name: one for name, one in found.items() if "__pycache__" not in name}


@pytest.mark.parametrize(("command", "line"), ROWS.values(), ids=ROWS)
def test_bad_input_is_one_line_and_status_2(here, capsys, command, line):
    before = listing(here)
    status, out, err = outcome(capsys, cli.main, *command.split())
    assert (status, out) == (2, "")
    assert err.startswith(line)
    assert err.count("\n") == 1 and err.endswith("\n")
    assert listing(here) == before


ABI = {
    "option": ("--nope", "python -m xenpv.abi: unrecognized arguments: --nope; see python -m"),
    "argument": ("x", "python -m xenpv.abi: unrecognized arguments: x"),
}


@pytest.mark.parametrize(("command", "line"), ABI.values(), ids=ABI)
def test_bad_input_of_the_layout_table(capsys, command, line):
    status, out, err = outcome(capsys, abi_main, command)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(line)


def commands():
    """Each subcommand's parser by name."""
    (action,) = [one for one in cli.parser()._actions if one.dest == "command"]
    return action.choices


def test_every_command_is_in_the_table():
    named = {row.split()[0] for row, _ in ROWS.values() if row}
    assert set(commands()) <= named


@pytest.mark.parametrize("name", commands())
def test_every_option_has_a_help_and_every_command_an_example(name):
    parser = commands()[name]
    for action in parser._actions:
        assert action.help, f"{name}: {action.option_strings or action.dest} has no help"
    assert parser.epilog and f"  xenpv {name}" in parser.epilog


@pytest.mark.parametrize("words", [("help",), ("--help",), ("help", "run"), ("help", "dump")])
def test_help_says_what_to_do(capsys, words):
    status, out, err = outcome(capsys, cli.main, *words)
    assert (status, err) == (0, "")
    assert "examples:" in out
    for name in commands():
        assert len(words) > 1 or f"xenpv {name} " in out or f"    {name} " in out
