"""`xenpv run --save` and `--restore`: guests that go on in another process' platform."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from xenpv import Disk, MemoryImage, Platform, Vif, cli
from xenpv.cli import disk as disk_check

IMAGE = random.Random(1).randbytes((1 << 20) + 1536)
CONFIG = """\
name = "{name}"
memory = 64
{more}
disk = [ "{name}.img,raw,xvda,w" ]
vif = [ "bridge=xenbr0" ]
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Two guests, of both personalities."""
    monkeypatch.chdir(tmp_path)
    for name, more in (("web", ""), ("db", 'xenpv_personality = "linux"\nvcpus = 2')):
        Path(f"{name}.img").write_bytes(IMAGE)
        Path(f"{name}.cfg").write_text(CONFIG.format(name=name, more=more))
    return tmp_path


def run(capsys, *arguments):
    """(exit status, the JSON document) of `xenpv run`, in this process."""
    status = cli.main(["run", "--json", *arguments])
    out, err = capsys.readouterr()
    assert err == ""
    return status, json.loads(out)


@pytest.mark.parametrize("name", ["web", "db"])
def test_a_guest_is_saved_restored_and_saved_again(here, capsys, name):
    status, document = run(capsys, f"{name}.cfg", "--save", "it.save")
    assert status == 0
    (guest,) = document["guests"]
    assert (guest["saved"], guest["restored"], guest["shutdown"]) == ("it.save", "", "suspend")
    for _ in range(2):
        status, document = run(capsys, "--restore", "it.save", "--save", "it.save")
        assert status == 0, document
        (guest,) = document["guests"]
        assert (guest["saved"], guest["restored"]) == ("it.save", "it.save")
        assert [one["verified"] for one in guest["devices"]] == [True, True]
        assert guest["devices"][0]["sha256"] == hashlib.sha256(IMAGE).hexdigest()
        assert guest["devices"][0]["bytes_written"] == 1 << 20
        assert guest["devices"][1]["pings_answered"] == 72
    status, document = run(capsys, "--restore", "it.save")
    assert (status, document["guests"][0]["shutdown"]) == (0, "poweroff")
    assert Path(f"{name}.img").read_bytes() == IMAGE


def test_several_guests_go_into_a_directory(here, capsys):
    status, _, err = outcome(capsys, "run", "web.cfg", "db.cfg", "--save", "both.save")
    assert (status, err) == (2, "both.save: to save 2 guests: expected a directory that is there\n")
    Path("saves").mkdir()
    status, document = run(capsys, "web.cfg", "db.cfg", "--save", "saves")
    assert status == 0
    assert [one["saved"] for one in document["guests"]] == ["saves/web.save", "saves/db.save"]
    status, document = run(capsys, "--restore", "saves/web.save", "--restore", "saves/db.save")
    assert status == 0
    assert [one["name"] for one in document["guests"]] == ["web", "db"]
    status, document = run(capsys, "db.cfg", "--restore", "saves/web.save")
    assert (status, [one["name"] for one in document["guests"]]) == (0, ["db", "web"])
    assert sorted(path.name for path in here.iterdir()) == [
        "db.cfg",
        "db.img",
        "saves",
        "web.cfg",
        "web.img",
    ]


def outcome(capsys, *arguments):
    status = cli.main(arguments)
    out, err = capsys.readouterr()
    return status, out, err


def test_the_report_says_where_it_came_from_and_went(here, capsys):
    status, out, _ = outcome(capsys, "run", "web.cfg", "--save", "web.save")
    assert status == 0
    assert "   saved to web.save\n" in out
    status, out, _ = outcome(capsys, "run", "--restore", "web.save")
    assert status == 0
    assert "   restored from web.save\n   shut down: poweroff\n" in out


def test_one_save_file_gives_one_document_wherever_it_is_restored(here, capsys):
    run(capsys, "web.cfg", "--save", "web.save")

    def document(hash_seed):
        command = [sys.executable, "-m", "xenpv", "run", "--json", "--restore", "web.save"]
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        return subprocess.run(command, env=environment, capture_output=True, check=True).stdout

    assert document("1") == document("4711")


def test_a_disk_that_changed_meanwhile_is_read_as_it_is_now(here, capsys):
    run(capsys, "web.cfg", "--save", "web.save")
    Path("web.img").write_bytes(IMAGE[::-1])
    status, document = run(capsys, "--restore", "web.save")
    assert status == 0
    disk = document["guests"][0]["devices"][0]
    assert disk["sha256"] == hashlib.sha256(IMAGE[::-1]).hexdigest()


def test_a_restored_disk_that_reads_wrong_is_not_verified(here, capsys, monkeypatch):
    run(capsys, "web.cfg", "--save", "web.save")
    read = disk_check.Disk.read
    monkeypatch.setattr(disk_check.Disk, "read", lambda self, *where: read(self, *where)[::-1])
    status, document = run(capsys, "--restore", "web.save", "--no-write")
    assert (status, document["ok"]) == (1, False)
    assert not document["guests"][0]["devices"][0]["verified"]


def test_a_disk_inside_the_file_is_compared_with_what_is_there(here, capsys):
    with Platform(seed=1) as xen:
        image = MemoryImage(bytearray(IMAGE))
        guest = xen.create(name="inside", disks=[Disk(image)], vifs=[Vif()]).start()
        guest.save("inside.save")
    status, document = run(capsys, "--restore", "inside.save")
    assert status == 0, document
    disk = document["guests"][0]["devices"][0]
    assert disk["sha256"] == hashlib.sha256(IMAGE).hexdigest()
    assert disk["bytes_written"] == 1 << 20


BAD = [
    (["run", "--restore", "web.save"], "web.save: disk image web.img does not exist", lambda: Path("web.img").unlink()),
    (["run", "web.cfg", "--restore", "web.save"], "web.save: name web is that of another domain (web.cfg", lambda: None),
    (["run", "--restore", "web.save", "--restore", "web.save"], "web.save: name web is that of another domain (web.save)", lambda: None),
    (["run", "--restore", "web.save", "--save", "web.img"], "web.img: the save file would overwrite it", lambda: None),
    (["run", "--restore", "web.save"], "web.save: byte 100: truncated there", lambda: os.truncate("web.save", 100)),
    (["run", "--restore", "web.save"], "web.save: record ", lambda: os.truncate("web.save", 50_000)),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "line", "before"), BAD)
def test_what_cannot_be_restored_is_one_line(here, capsys, arguments, line, before):
    run(capsys, "web.cfg", "--save", "web.save")
    before()
    kept = {path: path.read_bytes() for path in here.iterdir()}
    status, out, err = outcome(capsys, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(line)
    assert kept == {path: path.read_bytes() for path in here.iterdir()}


def test_a_guest_that_cannot_be_saved_fails_the_run(here, capsys, monkeypatch):
    from xenpv.migration import save

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save, "write_pages", full)
    status, document = run(capsys, "web.cfg", "--save", "web.save")
    assert status == 1
    (failure,) = document["guests"][0]["failures"]
    assert failure.startswith("not saved: save of 'web' to web.save: ")
    assert failure.endswith("No space left on device")
    assert not Path("web.save").exists()
    assert Path("web.img").read_bytes() == IMAGE
