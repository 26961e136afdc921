"""Bad input and the command's own words: one clear line, exit status 2, nothing written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xenpv import cli

GOOD = """\
name = "good"
memory = 64
disk = [ "disk.img,raw,xvda,w" ]
vif = [ "bridge=xenbr0,mac=00:16:3e:00:00:01" ]
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory to run in, with a good configuration and its image."""
    monkeypatch.chdir(tmp_path)
    Path("disk.img").write_bytes(bytes(range(256)) * 16)
    Path("other.img").write_bytes(bytes(4096))
    Path("good.cfg").write_text(GOOD)
    Path("odd.img").write_bytes(bytes(1000))
    Path("empty.img").touch()
    return tmp_path


def outcome(capsys, *arguments):
    """(exit status, stdout, stderr) of the command, run in this process."""
    try:
        status = cli.main(arguments)
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err


# what the second configuration says after its name, and the line that answers it
CONFIGS = {
    "syntax": ("memory 64\n", "bad.cfg:2:8: expected '=' or '+=' after 'memory', found '64'"),
    "end": ("disk = [ 'a,raw,xvda',\n", "bad.cfg:3:1: expected a value or ']' in the list opened"),
    "unquoted": ("type = hvm\n", "bad.cfg:2:8: "),
    "python": ("memory = 32 + 32\n", "bad.cfg:2:13: "),
    "missing image": (
        'disk = [ "no.img,raw,xvda,w" ]\n',
        "bad.cfg:2:10: disk image no.img does not exist",
    ),
    "missing, read-only": (
        'disk = [ "no.img,raw,xvda,ro" ]\n',
        "bad.cfg:2:10: disk image no.img does not exist",
    ),
    "directory": (
        'disk = [ "/,raw,xvda,w" ]\n',
        "bad.cfg:2:10: disk image / cannot be opened: Is a directory",
    ),
    "device that is no disk": (
        'disk = [ "/dev/null,raw,xvda,w" ]\n',
        "bad.cfg:2:10: disk image /dev/null is neither a file nor a block device",
    ),
    "size": (
        'disk = [ "other.img,raw,xvda,w",\n  "odd.img,raw,xvdb,w" ]\n',
        "bad.cfg:3:3: disk image odd.img has 1000 bytes, which is no multiple of 512",
    ),
    "empty image": (
        'disk = [ "empty.img,raw,xvda,w" ]\n',
        "bad.cfg:2:10: disk image empty.img is empty",
    ),
    "format": (
        'disk = [ "other.img,qcow2,xvda,w" ]\n',
        "bad.cfg:2:10: disk image other.img cannot be opened as qcow2: ",
    ),
    "prefix with format": (
        'disk = [ "other.img,xvda,w" ]\n',
        "bad.cfg:2:10: config parsing error in disk specification: unknown value for format",
    ),
    "driver domain": (
        'disk = [ "vdev=xvda,backend=storage,target=other.img" ]\n',
        "bad.cfg:2:10: disk xvda has the backend storage",
    ),
    "virtio": (
        'disk = [ "vdev=xvda,specification=virtio,target=other.img" ]\n',
        "bad.cfg:2:10: disk xvda is virtio",
    ),
    "image of another guest": (
        'disk = [ "disk.img,raw,xvda,ro" ]\n',
        "bad.cfg:2:10: disk image disk.img is in use",
    ),
    "duplicate vdev": (
        'disk = [ "other.img,raw,xvda,w", "other.img,raw,xvda,w" ]\n',
        "bad.cfg:2:34: disk xvda is device 51712, which xvda (bad.cfg:2) is too",
    ),
    "duplicate mac": (
        'vif = [ "mac=00:16:3e:00:00:02", "mac=00:16:3e:00:00:02" ]\n',
        "bad.cfg:2:34: mac 00:16:3e:00:00:02 is that of an earlier vif (bad.cfg:2)",
    ),
    "mac of another guest": (
        'vif = [ "mac=00:16:3e:00:00:01" ]\n',
        "bad.cfg:2:9: mac 00:16:3e:00:00:01 is that of an earlier vif (good.cfg:4)",
    ),
    "bridge option": (
        'vif = [ "brigde=xenbr0" ]\n',
        "bad.cfg:2:9: unknown vif option 'brigde' in 'brigde=xenbr0'; known are",
    ),
    "empty bridge": ('vif = [ "bridge=" ]\n', "bad.cfg:2:9: empty vif bridge"),
    "vif in a driver domain": (
        'vif = [ "backend=net" ]\n',
        "bad.cfg:2:9: vif has the backend net: expected dom0, or the name of a guest before",
    ),
    "no memory": ("memory = 0\n", "bad.cfg:2:1: memory of 0: expected the domain's size in MiB"),
    "too much memory": (
        "memory = 100000\n",
        "bad.cfg:2:1: memory of 100000 MiB is more than what is left of the machine's 16384 MiB",
    ),
    "second name": ('name = "good"\n', "bad.cfg:2:1: name good is that of another domain"),
}


@pytest.mark.parametrize(("text", "line"), CONFIGS.values(), ids=CONFIGS)
def test_a_bad_configuration_is_one_line_and_nothing_is_written(here, capsys, text, line):
    Path("bad.cfg").write_text(f'name = "bad"\n{text}')
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in here.iterdir()}
    status, out, err = outcome(capsys, "run", "good.cfg", "bad.cfg")
    assert (status, out) == (2, "")
    assert err.startswith(line)
    assert err.count("\n") == 1 and err.endswith("\n")
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in here.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "xenpv: expected a command: run, "),
        (["run"], "xenpv run: the following arguments are required: CONFIG; see xenpv run --help"),
        (["walk"], "xenpv: argument COMMAND: invalid choice: 'walk'"),
        (["run", "good.cfg", "--seed", "x"], "xenpv run: argument --seed: a seed is a number from"),
        (["run", "good.cfg", "--seed=-1"], "xenpv run: argument --seed: a seed is a number from"),
        (["run", "good.cfg", "--no-wr"], "xenpv: unrecognized arguments: --no-wr"),
        (["run", "no.cfg"], "no.cfg: cannot read the configuration: No such file or directory"),
        (["run", "."], ".: cannot read the configuration: Is a directory"),
        (["run", "good.cfg", "good.cfg"], "good.cfg:1:1: name good is that of another domain"),
        (["run", "disk.img"], "disk.img:1:1: NUL byte: the file must be plain text"),
        (
            ["run", "good.cfg", "--pcap", "no/such/place"],
            "no/such/place: cannot write the capture: No such file or directory",
        ),
        (["run", "good.cfg", "--pcap", "disk.img"], "disk.img: the capture would overwrite it"),
        (
            ["run", "good.cfg", "--pcap", "nobody.0=x.pcapng"],
            "--pcap nobody.0: no such interface; expected one of ",
        ),
        (
            ["run", "good.cfg", "--pcap", "x.pcapng", "--pcap", "x.pcapng"],
            "x.pcapng: two captures would write it",
        ),
        (["run", "good.cfg", "--pcap", "good.cfg"], "good.cfg: the capture would overwrite it"),
        (["run", "--save", "x"], "xenpv run: the following arguments are required: CONFIG; see"),
        (["run", "--restore", "no"], "no: cannot be read: No such file or directory"),
        (["run", "--restore", "."], ".: is a directory: expected a file that was saved"),
        (["run", "--restore", "empty.img"], "empty.img: is empty: expected a file that was saved"),
        (["run", "--restore", "other.img"], "other.img: byte 0: expected 'Saved domain in xenpv"),
        (["run", "good.cfg", "--restore", "good.cfg"], "good.cfg: byte 0: expected 'Saved domain"),
        (["run", "good.cfg", "--save", "good.cfg"], "good.cfg: the save file would overwrite it"),
        (["run", "good.cfg", "--save", "disk.img"], "disk.img: the save file would overwrite it"),
        (
            ["run", "good.cfg", "--save", "no/such/place"],
            "no/such/place: cannot save there: there is no such directory",
        ),
    ],
)
def test_bad_arguments_are_one_line(here, capsys, arguments, line):
    before = {path: path.read_bytes() for path in here.iterdir()}
    status, out, err = outcome(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(line)
    assert err.count("\n") == 1
    assert before == {path: path.read_bytes() for path in here.iterdir()}


@pytest.mark.parametrize(
    ("access", "mode", "word"),
    [
        ("w", 0o000, "written"),
        ("w", 0o444, "written"),
        ("ro", 0o000, "read"),
        ("ro", 0o222, "read"),
    ],
)
def test_an_image_without_permission_is_bad_input(here, access, mode, word):
    Path("good.cfg").write_text(GOOD.replace("xvda,w", f"xvda,{access}"))
    Path("disk.img").chmod(mode)
    command = [sys.executable, "-m", "xenpv", "run", "good.cfg"]
    if os.geteuid() == 0:
        # A root that file modes apply to: without the capabilities that go past them.
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("root may read and write everything, and there is no setpriv")
        command[:0] = [setpriv, "--bounding-set=-dac_override,-dac_read_search"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"good.cfg:3:10: disk image disk.img may not be {word}: chmod")


def test_a_name_that_is_not_utf8_is_bad_input(here, capsys):
    Path("bad.cfg").write_bytes(b'name = "caf\xe9"\n')
    status, _, err = outcome(capsys, "run", "bad.cfg")
    assert (status, err) == (2, "bad.cfg:1:1: expected printable UTF-8, found 'caf\\udce9'\n")


def test_an_image_that_another_program_locks_is_bad_input(here, capsys):
    import fcntl

    with Path("disk.img").open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        status, _, err = outcome(capsys, "run", "good.cfg")
    assert status == 2
    assert err.startswith("good.cfg:3:10: disk image disk.img is in use: another process")


def test_warnings_go_to_stderr_and_the_run_goes_on(here, capsys):
    Path("good.cfg").write_text(GOOD + 'kernel = "/boot/vmlinuz"\ndisk += [ ",,hdc:cdrom" ]\n')
    status, out, err = outcome(capsys, "run", "good.cfg", "--json")
    assert status == 0
    assert [device["name"] for device in json.loads(out)["guests"][0]["devices"]] == [
        "xvda",
        "vif1.0",
    ]
    assert err.splitlines() == [
        "warning: good.cfg:5: booting comes later: kernel ignored",
        "warning: good.cfg:6: hdc is an empty drive, which is emulated: left out",
    ]


def test_help_names_the_commands_and_gives_examples(capsys):
    status, out, err = outcome(capsys, "--help")
    assert (status, err) == (0, "")
    assert "xenpv run guest.cfg" in out
    assert "{run,bench}" not in out
    for word in ("run", "bench", "--version"):
        assert word in out
    status, out, _ = outcome(capsys, "run", "--help")
    assert status == 0
    options = (
        "--json",
        "--seed N",
        "--pcap [GUEST.N=]FILE",
        "--no-write",
        "--save FILE",
        "--restore FILE",
    )
    for option in (*options, "CONFIG"):
        assert option in out


def test_version_is_a_line(capsys):
    status, out, _ = outcome(capsys, "--version")
    assert status == 0
    assert out.split()[0] == "xenpv"
    assert out.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error_message(here):
    # The report is larger than a pipe's buffer only with many guests; a closed pipe is enough.
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "xenpv", "run", "good.cfg"]
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"")


def test_the_report_is_ascii_where_the_terminal_is(here):
    Path("good.cfg").write_text(GOOD.replace('"good"', '"gré"'))
    command = [sys.executable, "-m", "xenpv", "run", "good.cfg"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    text = done.stdout.decode("ascii")
    assert "|- vbd 51712 xvda: Connected, verified" in text
    assert text.startswith("gr\\xe9 (domain 1")


def test_progress_is_shown_only_after_a_second_and_taken_away(monkeypatch, capsys):
    from xenpv.cli import progress

    now = iter([0.0, 0.5, 1.2, 1.25, 1.4])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(progress, "_rich_bar", lambda: None)
    with progress.Terminal() as bar:
        for done in (1, 2, 3, 4):
            bar("reading xvda", done, 4)
    written = capsys.readouterr().err.split("\r")
    assert [line.strip() for line in written] == [
        "",
        "reading xvda: 50 %",
        "reading xvda: 100 %",
        "",
        "",
    ]


def test_progress_uses_rich_where_it_is_there(monkeypatch):
    pytest.importorskip("rich")
    from xenpv.cli import progress

    monkeypatch.setattr(progress, "SHOWN_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(progress, "SHOWN_EVERY_SECONDS", 0.0)
    with progress.Terminal() as bar:
        bar("reading [xvda]", 1, 4)
        (task,) = bar._bar.tasks
        assert (task.description, task.completed, task.total) == ("reading [xvda]", 1, 4)


def test_without_a_terminal_there_is_no_progress(monkeypatch):
    from xenpv.cli import progress

    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert type(progress.watch()) is progress.Quiet


def test_bench_is_handed_its_arguments(monkeypatch):
    import xenpv.bench

    seen = []
    monkeypatch.setattr(
        xenpv.bench,
        "main",
        lambda names, as_json: seen.append((names, as_json)) or 1,
        raising=False,
    )
    assert cli.main(["bench", "world", "ring-blk", "--json"]) == 1
    assert seen == [(["world", "ring-blk"], True)]
