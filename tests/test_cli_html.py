"""`xenpv run --html`: the page of a run, and what it says where there can be none."""

from __future__ import annotations

import builtins
import json
import re
import sys
from pathlib import Path

import pytest

from xenpv import cli
from xenpv.cli import html
from xenpv.errors import XenpvError

CONFIG = """\
name = "good"
memory = 64
disk = [ "disk.img,raw,xvda,w" ]
vif = [ "bridge=xenbr0,mac=00:16:3e:00:00:01" ]
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("disk.img").write_bytes(bytes(range(256)) * 16)
    Path("good.cfg").write_text(CONFIG)
    return tmp_path


def outcome(capsys, *arguments):
    """(exit status, stdout, stderr) of the command."""
    try:
        status = cli.main(arguments)
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


def test_a_run_leaves_the_page_of_its_tape_and_of_its_report(here, capsys):
    status, out, err = outcome(
        capsys, "run", "good.cfg", "--seed", "5", "--html", "run.html", "--json"
    )
    document = json.loads(out)
    assert (status, err) == (0, "")
    text = Path("run.html").read_text(encoding="utf-8")
    assert document["digest"] in text
    assert "<h1>xenpv run: good</h1>" in text
    assert ">xenpv run good.cfg --seed 5</pre>" in text
    tape = json.loads(re.search('id="tape">(.*?)</script>', text, re.DOTALL)[1])
    assert [name for *_, name, _, _ in (row[:5] for row in tape["domains"])] != []
    assert [row[3] for row in tape["rings"]].count("blkif") == 1
    assert tape["lost"] == 0


def test_recording_a_page_changes_no_digest(here, capsys):
    _, plain, _ = outcome(capsys, "run", "good.cfg", "--json")
    _, taped, _ = outcome(capsys, "run", "good.cfg", "--json", "--html", "run.html")
    assert json.loads(plain) == json.loads(taped)


def test_equal_runs_leave_equal_pages(here, capsys):
    for name in ("a.html", "b.html"):
        outcome(capsys, "run", "good.cfg", "--html", name)
    assert Path("a.html").read_bytes() == Path("b.html").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "repeated"),
    [
        (["good.cfg"], "xenpv run good.cfg --seed 0"),
        (["./good.cfg", "--no-write", "--dom0-vcpus", "2"], "xenpv run ./good.cfg --seed 0 --no-write --dom0-vcpus 2"),
        (["good.cfg", "--save", "s p.save"], "xenpv run good.cfg --seed 0 --save &#39;s p.save&#39;"),
        (["good.cfg", "--json"], "xenpv run good.cfg --seed 0"),
    ],
    ids=["plain", "options that matter", "quoted", "output"],
)  # fmt: skip
def test_the_page_says_how_to_repeat_its_run(here, capsys, arguments, repeated):
    assert outcome(capsys, "run", *arguments, "--html", "run.html")[0] == 0
    assert f">{repeated}</pre>" in Path("run.html").read_text(encoding="utf-8")


def test_a_run_for_some_time_cannot_be_repeated_without_its_journal(here, capsys):
    assert outcome(capsys, "run", "good.cfg", "--for", "0.01", "--html", "run.html")[0] == 0
    assert "with --journal it is" in Path("run.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "repeated"),
    [
        (["--tap", "xenbr0=tap0", "--journal", "a.journal"], "xenpv run good.cfg --replay a.journal"),
        (["--replay", "a.journal", "--no-write"], "xenpv run good.cfg --replay a.journal --no-write"),
        (["--guest-tap", "good.0=tap0"], ""),
        (["--restore", "a.save"], "xenpv run good.cfg --restore a.save --seed 3"),
    ],
)  # fmt: skip
def test_what_came_from_outside_is_repeated_from_its_journal(arguments, repeated):
    assert html.repeat(cli.parser().parse_args(["run", "good.cfg", *arguments]), 3) == repeated


def test_without_jinja2_one_line_says_what_to_install(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    status, out, err = outcome(capsys, "run", "good.cfg", "--html", "run.html")
    assert (status, out) == (2, "")
    assert err == "--html needs Jinja2: pip install 'xenpv[report]'\n"
    assert not Path("run.html").exists()


def test_a_run_without_a_page_needs_no_jinja2(here, capsys, monkeypatch):
    real = builtins.__import__

    def refusing(name, *rest):
        assert name.partition(".")[0] not in ("jinja2", "markupsafe")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refusing)
    assert outcome(capsys, "run", "good.cfg", "--json")[0] == 0


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no/such/run.html", "no/such/run.html: cannot write the page: No such file or directory"),
        (".", ".: cannot write the page: Is a directory"),
        ("good.cfg", "good.cfg: the page would overwrite it"),
        ("disk.img", "disk.img: the page would overwrite it"),
        ("link.img", "link.img: the page would overwrite it"),
        ("./all.pcapng", "all.pcapng: the page would overwrite it"),
        ("a.trace", "a.trace: the trace and another output would write it"),
        ("a.save", "a.save: the page would overwrite it"),
    ],
)  # fmt: skip
def test_a_page_that_cannot_be_written_stops_the_run_before_it_begins(here, capsys, path, said):
    before = {name: Path(name).read_bytes() for name in ("good.cfg", "disk.img")}
    Path("link.img").symlink_to("disk.img")
    others = ["--pcap", "all.pcapng", "--trace", "a.trace", "--save", "a.save"]
    status, out, err = outcome(capsys, "run", "good.cfg", *others, "--html", path)
    assert (status, out, err) == (2, "", f"{said}\n")
    assert {name: Path(name).read_bytes() for name in before} == before
    assert not Path("all.pcapng").exists()


def test_a_run_that_ends_early_leaves_an_old_page_alone_and_no_empty_one(here, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("xenpv.cli.job.Job._go", interrupted)
    assert outcome(capsys, "run", "good.cfg", "--html", "new.html")[0] == 130
    assert not Path("new.html").exists()
    Path("old.html").write_text("old")
    assert outcome(capsys, "run", "good.cfg", "--html", "old.html")[0] == 130
    assert Path("old.html").read_text() == "old"


def test_a_run_that_fails_has_its_page_too(here, capsys, monkeypatch):
    def broken(*_):
        raise XenpvError("it broke")

    monkeypatch.setattr("xenpv.guest.Guest.start", broken)
    status, *_ = outcome(capsys, "run", "good.cfg", "--html", "run.html")
    assert status == 1
    assert "it broke" in Path("run.html").read_text(encoding="utf-8")
