"""Signals and outputs: what is left behind by a command that is ended, or that cannot print.

The commands run in processes of their own. Each is waited for by what it says or makes, so
nothing here depends on how fast the machine is.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xenpv import cli
from xenpv.cli import interrupt

GOOD = """\
name = "good"
memory = 64
disk = [ "disk.img,raw,xvda,w" ]
vif = [ "bridge=xenbr0,mac=00:16:3e:00:00:01" ]
"""
WAIT_S = 60


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("disk.img").write_bytes(bytes(range(256)) * 4096)
    Path("good.cfg").write_text(GOOD)
    return tmp_path


def fresh():
    """In the child: signals as a terminal's shell leaves them."""
    for number in interrupt.SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def start(*arguments, **settings):
    return subprocess.Popen(
        [sys.executable, "-m", "xenpv", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=fresh, **settings,  # noqa: PLW1509 - no threads are here
    )  # fmt: skip


def until(process, done, what):
    for _ in range(WAIT_S * 50):
        if done():
            return
        if process.poll() is not None:
            break
        time.sleep(0.02)
    process.kill()
    pytest.fail(f"{what} never came: {process.communicate()}")


def ended(process):
    out, err = process.communicate(timeout=WAIT_S)
    return process.returncode, out, err


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_serves_ends_or_is_interrupted_and_leaves_nothing(here, number):
    before = digest("disk.img")
    process = start("run", "good.cfg", "--for", "1000", "--dump-socket", "s")
    until(process, Path("s").exists, "the socket")
    line = process.stderr.readline()
    assert line == "serving for 1000 s\n"
    process.send_signal(number)
    status, out, err = ended(process)
    if number == signal.SIGHUP:  # no service ends by it: the run does
        assert (status, out, err) == (130, "", "interrupted\n")
    else:
        assert (status, err) == (0, "")
        assert "ok: 1 guest" in out
    assert not Path("s").exists()
    assert digest("disk.img") == before


def test_a_run_in_the_middle_of_a_disk_puts_it_back(here):
    """The scratch area is written when the signal comes, and more come while it is put back."""
    before = digest("disk.img")
    script = """
import os, signal, sys
from xenpv import cli
from xenpv.cli import interrupt
from xenpv.cli.hostfile import Borrowed
real = Borrowed.restore
def restore(self):
    for number in interrupt.SIGNALS:
        os.kill(os.getpid(), number)
    real(self)
    print("put back", file=sys.stderr)
Borrowed.restore = restore
from xenpv.vbd.disk import Disk
write = Disk.write
def interrupted(self, *arguments, **named):
    write(self, *arguments, **named)
    os.kill(os.getpid(), signal.SIGINT)
Disk.write = interrupted
sys.exit(cli.main(sys.argv[1:]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, "run", "good.cfg", "--dump-socket", "s"],
        capture_output=True, text=True, check=False, preexec_fn=fresh, timeout=WAIT_S,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "put back\ninterrupted\n"
    assert digest("disk.img") == before
    assert not Path("s").exists()


def interrupting(*_arguments, **_named):
    """What a command does when the signal comes, and it goes on to come."""
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        for number in interrupt.SIGNALS:
            os.kill(os.getpid(), number)


# command, and what of it is at work: a module and a name
COMMANDS = {
    "run": (("run", "good.cfg"), "xenpv.cli.job", "Job.run"),
    "hunt": (("hunt", "blk-backend"), "xenpv.testing.kit", "find_in"),
    "zoo": (("zoo", "net-page-cross"), "xenpv.testing.kit", "hunt_defect"),
    "bench": (("bench", "event"), "xenpv.bench.report", "measure"),
    "cases": (("cases", "BLKB-001"), "xenpv.testing.cases.suite", "Case.run"),
    "replay": (("replay", "some.replay"), "xenpv.testing.replay", "load_replay"),
    "dump": (("dump", "disk.img", "--as", "blkif"), "xenpv.view.dump.source", "first_bytes"),
}


@pytest.mark.parametrize(("command", "module", "name"), COMMANDS.values(), ids=COMMANDS)
def test_a_command_at_work_is_interrupted_in_one_line(
    here, monkeypatch, capsys, command, module, name
):
    importlib.import_module(module)
    where = sys.modules[module]
    *owner, name = name.split(".")
    monkeypatch.setattr(getattr(where, owner[0]) if owner else where, name, interrupting)
    before = [signal.signal(number, signal.SIG_DFL) for number in interrupt.SIGNALS]
    try:
        status = cli.main(command)
    finally:
        for number, handler in zip(interrupt.SIGNALS, before, strict=True):
            signal.signal(number, handler)
    err = capsys.readouterr().err
    assert status == 130
    # The bench says what it measures.
    assert err.splitlines()[command[0] == "bench" :] == ["interrupted"]


def in_group(leader):
    """Processes of a group that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group, *_ = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(group) == leader and state != "Z":
            found.append(path)
    return found


def test_workers_of_the_zoo_end_with_it(here):
    """A terminal sends its signal to the whole group; the workers are silent, and gone."""
    process = start(
        "zoo", "--off", "--examples", "100000000", "--jobs", "2",
        start_new_session=True,
    )  # fmt: skip
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def workers():
        """Processes of multiprocessing that run their own program by now."""
        listed = [Path("/proc", child) for child in children.read_text().split()]
        return [one for one in listed if b"spawn_main" in (one / "cmdline").read_bytes()]

    until(process, workers, "its worker")
    (worker,) = workers()
    status = (worker / "status").read_text().splitlines()
    (blocked,) = [int(line.split()[1], 16) for line in status if line.startswith("SigBlk")]
    assert blocked >> (signal.SIGINT - 1) & 1, "it would tell the terminal its traceback"
    os.killpg(process.pid, signal.SIGINT)
    status, _, err = ended(process)
    assert (status, err) == (130, "interrupted\n")
    for _ in range(WAIT_S * 50):
        if not in_group(process.pid):
            return
        time.sleep(0.02)
    pytest.fail("its workers go on")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_store_ends_well_by_a_signal(here, number):
    process = start("store", "--socket", "s", "--dump", "after.txt")
    until(process, Path("s").exists, "the socket")
    process.stderr.readline()  # it serves, and has its handlers
    process.send_signal(number)
    status, out, err = ended(process)
    assert (status, out) == (0, "")
    assert err.splitlines()[-1] == "0 clients, 0 of them sent away"
    assert not Path("s").exists()
    assert Path("after.txt").exists()


# What prints much or little, and where it can.
PRINTS = {
    "help": ("--help",),
    "help of a command": ("run", "--help"),
    "version": ("--version",),
    "cases": ("cases", "--list"),
    "cases as JSON": ("cases", "--list", "--json"),
    "zoo": ("zoo", "--list"),
    "dump": ("dump", "page.bin", "--as", "netif_rx", "--all", "--json"),
    "run": ("run", "good.cfg", "--json"),
}


def printed_to(monkeypatch, capsys, stream, *command):
    """(status, stderr) of a command whose stdout this is."""
    Path("page.bin").write_bytes(bytes(4096))
    with stream:
        monkeypatch.setattr(sys, "stdout", stream)
        try:
            status = cli.main(command)
        except SystemExit as stop:
            status = stop.code
        monkeypatch.undo()
    return status, capsys.readouterr().err


FULL = "xenpv: what was to be printed cannot be written: No space left on device\n"


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("command", PRINTS.values(), ids=PRINTS)
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys, command, buffered):
    monkeypatch.chdir(tmp_path)
    Path("disk.img").write_bytes(bytes(4096))
    Path("good.cfg").write_text(GOOD)
    full = io.TextIOWrapper(open("/dev/full", "wb"), write_through=not buffered)  # noqa: PTH123, SIM115 - as the interpreter makes it
    assert printed_to(monkeypatch, capsys, full, *command) == (2, FULL)


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("command", PRINTS.values(), ids=PRINTS)
def test_a_reader_that_is_gone_is_no_message(tmp_path, monkeypatch, capsys, command, buffered):
    monkeypatch.chdir(tmp_path)
    Path("disk.img").write_bytes(bytes(4096))
    Path("good.cfg").write_text(GOOD)
    read, write = os.pipe()
    os.close(read)
    closed = io.TextIOWrapper(os.fdopen(write, "wb"), write_through=not buffered)
    assert printed_to(monkeypatch, capsys, closed, *command) == (1, "")


# What prints little has it in a buffer until the end.
@pytest.mark.parametrize(("unbuffered", "command"), [("", "--version"), ("1", "--help")])
def test_the_interpreter_is_silent_at_its_end_too(here, unbuffered, command):
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "xenpv", command],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, FULL)


def test_no_stdout_at_all_is_no_traceback(here):
    command = f"exec {sys.executable} -m xenpv zoo --list >&-"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_capture_on_a_full_disk_is_one_line_and_the_disk_is_put_back(here, capsys):
    before = digest("disk.img")
    status = cli.main(["run", "good.cfg", "--pcap", "/dev/full"])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err == "/dev/full: cannot write the capture: No space left on device\n"
    assert digest("disk.img") == before


def test_layouts_that_cannot_be_printed(here):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "xenpv.abi"], stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    line = (
        "python -m xenpv.abi: what was to be printed cannot be written: No space left on device\n"
    )
    assert (done.returncode, done.stderr) == (2, line)


def test_handlers_are_put_back(capsys):
    before = [signal.getsignal(number) for number in interrupt.SIGNALS]
    assert cli.main(["zoo", "--list"]) == 0
    assert [signal.getsignal(number) for number in interrupt.SIGNALS] == before


def test_what_the_caller_ignores_stays_ignored():
    with interrupt.interruptible():
        pass
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupt.interruptible():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


OPTIONS = {
    "--xenpv-seed=x": "--xenpv-seed: a seed is a number from 0 to 2^64 - 1, not 'x'",
    "--xenpv-seed=-1": "--xenpv-seed: a seed is a number from 0 to 2^64 - 1, not '-1'",
    "--xenpv-seed=18446744073709551616": "--xenpv-seed: a seed is a number from 0",
    "--xenpv-artefacts=file": "--xenpv-artefacts file: exists and is no directory",
}


@pytest.mark.parametrize(("option", "line"), OPTIONS.items(), ids=OPTIONS)
def test_options_of_the_plugin(pytester, option, line):
    pytester.makepyfile("def test_nothing(): pass")
    Path("file").touch()
    done = pytester.runpytest_inprocess(option)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert [one for one in done.errlines if line in one]
    assert not [one for one in done.errlines if "Traceback" in one or "INTERNALERROR" in one]


def test_ctrl_c_while_the_command_is_imported_is_one_line(monkeypatch, capsys):
    class Interrupts:
        """Somebody's Ctrl-C, at the first import of the command's own."""

        @staticmethod
        def find_spec(name, *_):
            if name == "xenpv.cli":
                raise KeyboardInterrupt

    from xenpv.__main__ import main

    monkeypatch.delitem(sys.modules, "xenpv.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupts, *sys.meta_path])
    assert main() == 130
    assert capsys.readouterr().err == "interrupted\n"
