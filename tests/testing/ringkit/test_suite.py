"""Suites of one's own from the command line, and replays of what they find."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples import own_protocol as own
from tests.testing.ringkit import planted
from tests.testing.ringkit.test_planted import find
from xenpv import cli
from xenpv.errors import ConfigError, LocalProtocolError
from xenpv.testing import load_replay, named
from xenpv.testing.cases import CasesFailed, Outcome
from xenpv.testing.ringkit import RingSuite

ROOT = Path(__file__).parents[3]
FILE = "examples/own_protocol.py"


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_cases_of_a_suite_in_a_file(capsys):
    assert cli.main(["cases", "--suite", f"{FILE}:BACKEND", "--list"]) == 0
    listed = capsys.readouterr().out
    assert "ECHOB-101  a text past its page" in listed
    assert "ECHOB-901  req_prod more than a ring ahead" in listed
    assert cli.main(["cases", "--suite", f"{FILE}:FRONTEND", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {one["result"] for one in rows} == {"pass"}
    assert [one["id"] for one in rows][:2] == ["ECHOF-101", "ECHOF-102"]


def test_a_case_that_fails_says_how_to_play_it_again(capsys):
    mine = ["cases", "ECHOB-905", "--suite", f"{FILE}:BACKEND"]
    assert cli.main(mine) == 0
    capsys.readouterr()
    driver = "tests/testing/ringkit/planted.py:Leaky"
    assert cli.main([*mine, "--driver", driver]) == 1
    assert "again: xenpv cases ECHOB-905 --suite examples/own_protocol.py:BACKEND" in (
        capsys.readouterr().err
    )
    assert cli.main(["cases", "--suite", f"{FILE}:BACKEND", "--explain", "ECHOB-905"]) == 0
    assert "XSA-216" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("suite", "why"),
    [
        ("nowhere.py:BACKEND", "nowhere.py: no such file"),
        (f"{FILE}:NOTHING", "no such RingSuite to import"),
        (f"{FILE}:ECHO", "no such RingSuite to import"),
        ("no_such_module:BACKEND", "no such RingSuite to import"),
    ],
)
def test_a_suite_that_is_none_is_bad_input(suite, why, capsys):
    with pytest.raises(ConfigError, match=why):
        named.find_suite(suite)
    assert cli.main(["cases", "--suite", suite]) == 2
    assert cli.main(["hunt", suite]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2
    assert all(why in one for one in lines)


def test_a_hunt_of_a_suite_finds_the_bug_and_its_replay_does(tmp_path, capsys):
    arguments = ["hunt", f"{FILE}:BACKEND", f"{FILE}:Sleepy", "--seconds", "1.5"]
    assert cli.main([*arguments, "--replays", str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["found"]
    assert "lost wake-up" in found[0]["failure"]
    assert found[0]["by"] == "scenario:vecho-backend:backend_requests"
    replay = load_replay(found[0]["replay"])
    assert "lost wake-up" in replay.run().failure_text
    assert replay.run().digest == replay.digest


@pytest.mark.parametrize(
    ("end", "asked"),
    [
        (planted.Trusting, "overlay:vecho-backend"),
        (planted.Leaky, "case:ECHOB-905"),
        (planted.Sleepy, "scenario:both_ends"),
    ],
    ids=["overlay", "case", "scenario"],
)
def test_what_is_found_is_replayed_from_its_file(end, asked, tmp_path):
    found = find(own.BACKEND, end, asked)
    path = found.save(tmp_path)
    replay = load_replay(path)
    again = replay.run()
    assert again.failed
    assert again.digest == replay.digest
    assert replay.dumps() == path.read_text()


def test_equal_seeds_give_equal_findings():
    one, other = (find(own.BACKEND, planted.Trusting, "overlay:vecho-backend") for _ in range(2))
    assert (one.steps, one.failure, one.examples) == (other.steps, other.failure, other.examples)


def test_a_suite_that_no_module_has_is_played_and_not_replayed(tmp_path):
    suite = RingSuite(own.ECHO, "backend", planted.Leaky, prefix="X-", traffic=own.TRAFFIC)
    with pytest.raises(CasesFailed, match="vecho_response") as failed:
        suite.check()
    results = [one for one in failed.value.results if one.outcome is Outcome.FAIL]
    # Where the peer keeps the protocol, the law of what is beside a response is asked as well.
    assert [one.case.id for one in results] == ["X-903", "X-904", "X-905", "X-946"]
    result = results[2]
    with pytest.raises(LocalProtocolError, match="vecho-backend cannot be replayed"):
        result.save(tmp_path)


def test_a_suite_without_traffic_has_the_cases_that_need_none():
    suite = RingSuite(own.ECHO, "backend", own.EchoBackend, prefix="Y-")
    assert [one.id for one in suite.cases][:2] == ["Y-901", "Y-910"]
    suite.check()
    assert not RingSuite(own.ECHO, "backend", own.EchoBackend, prefix="Z-", generic=False).cases


SCRIPT = """
from examples import own_protocol as own
from xenpv.testing import explore
from xenpv.testing.ringkit import hunts_of
result = explore(own.asleep, examples=40)
print(result.run.digest, result.steps)
overlay = [one for one in hunts_of(own.BACKEND) if one.name.startswith("overlay")][0]
print([one for one, _ in zip(overlay.search(3), range(5))])
print([one.run(seed=4).outcome.value for one in own.BACKEND.cases])
"""


def test_runs_are_the_same_in_every_process():
    told = []
    for hashseed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hashseed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True
        )
        told.append(done.stdout)
    assert told[0] == told[1]
    assert "preempt d0 vecho1.0 port" in told[0]
