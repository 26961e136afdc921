"""`--trace FILE` of `xenpv run` and `xenpv replay`."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.view.traceformat import check, check_axis
from xenpv import cli
from xenpv.guest import Guest
from xenpv.testing import explore, scenarios, zoo
from xenpv.view import perfetto

CONFIG = """\
name = "web"
memory = 64
disk = [ "disk.img,raw,xvda,w" ]
vif = [ "bridge=outer,mac=00:16:3e:00:00:01" ]
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("disk.img").write_bytes(bytes(256 << 10))
    Path("web.cfg").write_text(CONFIG)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        status = cli.main(list(arguments))
    except SystemExit as end:
        status = int(str(end.code))
    out, err = capsys.readouterr()
    return status, out, err


def trace(path: str = "t.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(path).read_text(encoding="ascii"))
    return found


def test_a_run_and_its_trace(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "run", "web.cfg", "--json", "--seed", "5")
    assert status == 0
    digest = json.loads(out)["digest"]
    status, out, _ = run(capsys, "run", "web.cfg", "--json", "--seed", "5", "--trace", "t.json")
    assert status == 0
    assert json.loads(out)["digest"] == digest
    document = trace()
    check(document)
    check_axis(document["traceEvents"])
    assert document["otherData"] == {"seed": 5, "digest": digest}
    names = [
        record["args"]["name"]
        for record in document["traceEvents"]
        if record.get("name") in ("process_name", "thread_name")
    ]
    for name in (
        "d0 Domain-0",
        "d1 web",
        "bridge outer",
        "blkif vbd/51712 q0",
        "netif_tx vif/0 q0",
        "d1 netif_rx vif/0 q0",
    ):
        assert name in names


def test_a_page_and_a_trace_of_one_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "run", "web.cfg", "--html", "run.html", "--trace", "t.json")
    assert (status, err) == (0, "")
    assert "<html" in Path("run.html").read_text()
    check(trace())


def test_the_same_seed_gives_the_same_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "run", "web.cfg", "--trace", "t.json")
    first = Path("t.json").read_bytes()
    command = [sys.executable, "-m", "xenpv", "run", "web.cfg", "--trace", "t.json"]
    environment = {**os.environ, "PYTHONHASHSEED": "5"}
    subprocess.run(command, check=True, capture_output=True, env=environment, timeout=60)
    assert Path("t.json").read_bytes() == first


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--trace", "no/such/place"], "no/such/place: cannot write the trace: No such file or"),
        (["--trace", "."], ".: cannot write the trace: Is a directory"),
        (["--trace", "web.cfg"], "web.cfg: the trace would overwrite it"),
        (["--trace", "disk.img"], "disk.img: the trace would overwrite it"),
        (["--trace", "link"], "link: the trace would overwrite it"),
        (["--trace", "x", "--pcap", "./x"], "x: the trace and another output would write it"),
        (["--trace", "x", "--save", "x"], "x: the trace and another output would write it"),
        (["--trace", "x", "--html", "x"], "x: the trace and another output would write it"),
        (["--trace"], "xenpv run: argument --trace: expected one argument; see xenpv run --help"),
    ],
)
def test_a_trace_that_cannot_be_written_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    Path("link").symlink_to("disk.img")
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    status, out, err = run(capsys, "run", "web.cfg", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(line)
    assert err.count("\n") == 1
    assert before == {path.name: path.read_bytes() for path in here.iterdir()}


def test_a_full_disk_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object, **_about: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(perfetto, "write", full)
    status, out, err = run(capsys, "run", "web.cfg", "--trace", "t.json")
    assert (status, out) == (2, "")
    assert err == "t.json: cannot write the trace: No space left on device\n"
    assert Path("disk.img").read_bytes() == bytes(256 << 10)


def test_a_run_that_is_interrupted_leaves_what_it_did(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_guest: Guest) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Guest, "shutdown", interrupt)
    status, _, err = run(capsys, "run", "web.cfg", "--trace", "t.json")
    assert (status, err) == (130, "interrupted\n")
    document = trace()
    check(document)
    assert any(record["ph"] == "f" for record in document["traceEvents"])


# of replays


def test_a_replay_and_its_trace(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zoo.defect("ring-event-late"):
        recorded = explore(scenarios.blk_requests, seed=3, directory=here).path
    assert recorded is not None
    plain = run(capsys, "replay", str(recorded), "--json")
    traced = run(capsys, "replay", str(recorded), "--json", "--trace", "t.json")
    assert traced == plain
    assert traced[0] == 1
    document = trace()
    check(document)
    assert document["otherData"] == {"digest": json.loads(plain[1])["digest"]}
    # The wake-up that was lost: a request that nobody answered.
    ends = [record["args"] for record in document["traceEvents"] if record["ph"] == "e"]
    assert sum("unanswered" in args for args in ends if "moment" not in args) >= 1


@pytest.mark.parametrize("case", ["BLKB-005", "BLKF-101", "NETB-222", "NETB-427", "STORE-001"])
def test_a_case_of_several_loops_is_one_file(
    here: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    body = {"xenpv-replay": 1, "kind": "case", "case": case, "factory": "", "file": "", "seed": 4}
    body |= {"defects": [], "digest": "", "failure": ""}
    Path("case.replay").write_text(json.dumps(body))
    plain = run(capsys, "replay", "case.replay", "--json")
    assert plain[0] == 0, plain
    assert run(capsys, "replay", "case.replay", "--json", "--trace", "t.json") == plain
    check(trace())


def test_a_replay_is_not_overwritten_by_its_trace(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.replay").write_text("{}")
    status, _, err = run(capsys, "replay", "a.replay", "--trace", "a.replay")
    assert status == 2
    assert err.count("\n") == 1
    assert Path("a.replay").read_text() == "{}"


def test_what_the_guide_reads_in_the_trace_of_a_lost_wake_up(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/howto/read-a-trace.md: three questions, and what the trace answers."""
    example = Path(__file__).parents[2] / "examples" / "find_lost_wakeup.py"
    command = [sys.executable, str(example)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    (recorded,) = Path("found").glob("*.replay")
    assert run(capsys, "replay", str(recorded), "--trace", "wait.json")[0] == 1
    records = trace("wait.json")["traceEvents"]
    tids = {r["args"]["name"]: r["tid"] for r in records if r.get("name") == "thread_name"}
    front, back = (tids[name] for name in ("netif_tx vif/0 q0", "d1 netif_tx vif/0 q0"))
    waiting = [r for r in records if r["ph"] == "e" and "unanswered" in r["args"]]
    assert sum(r["name"] == "netif_tx_request" for r in waiting) == 2
    counters = [r["args"] for r in records if r["ph"] == "C" and r["name"] == "netif_tx vif/0 q0"]
    assert counters[-1]["requests not taken"] == 2
    published = [r for r in records if r["ph"] == "X" and r["tid"] == front]
    last = [r for r in published if r["name"] == "2 requests"][-1]
    assert (last["args"]["req_event"], last["args"]["req_prod"]) == (1, 6)
    sent = [r for r in records if r.get("cat") == "event" and r["ts"] > last["ts"]]
    assert [r["pid"] for r in sent if r["pid"] == last["pid"]] == []
    taken = [r["name"] for r in records if r["ph"] == "X" and r["tid"] == back]
    assert taken == ["takes 4 requests", *["1 response"] * 4]


def test_a_tape_ends_before_its_platform_is_torn_down(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {"xenpv-replay": 1, "kind": "case", "case": "BLKB-001", "factory": "", "file": ""}
    body |= {"seed": 4, "defects": [], "digest": "", "failure": ""}
    Path("case.replay").write_text(json.dumps(body))
    assert run(capsys, "replay", "case.replay", "--trace", "t.json")[0] == 0
    names = [record.get("name") for record in trace()["traceEvents"]]
    assert "created" in names
    assert "gone" not in names
