"""`xenpv hunt`: the kit against a driver that somebody wrote, good ones and ones with a mistake."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from xenpv import cli

EXAMPLES = Path(__file__).parents[1] / "examples"
DRIVERS = {
    "blk-backend": "own_blk_backend.py:Backend",
    "blk-frontend": "own_blk_frontend.py:Frontend",
    "net-backend": "own_net_backend.py:Backend",
    "net-frontend": "own_net_frontend.py:Frontend",
}
# A mistake in each: the line that is put right, what stands there instead, what is told.
MISTAKES = {
    "blk-backend": (
        "            if not self.ring.final_check():\n                return\n",
        "            return\n",
        "lost wake-up: d0 sleeps with",
    ),
    "net-backend": (
        "if not self.tx.final_check()",
        "if True",
        "lost wake-up: d0 sleeps with",
    ),
    "net-frontend": (
        "            if not self.tx.final_check():\n                break\n",
        "            break\n",
        "lost wake-up: d1 sleeps with",
    ),
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.mark.parametrize("end", list(DRIVERS))
def test_nothing_is_found_in_the_examples(end, capsys) -> None:
    assert cli.main(["hunt", end, str(EXAMPLES / DRIVERS[end]), "--seconds", "1"]) == 0
    assert "nothing found in " in capsys.readouterr().out


@pytest.mark.parametrize("end", list(MISTAKES))
def test_a_mistake_is_found_told_and_replayed(end, tmp_path, capsys) -> None:
    file, _, name = DRIVERS[end].partition(":")
    good, bad, told = MISTAKES[end]
    source = (EXAMPLES / file).read_text(encoding="utf-8")
    assert good in source
    mine = f"mine_{file}"
    (tmp_path / mine).write_text(source.replace(good, bad))
    assert cli.main(["hunt", end, f"{mine}:{name}", "--seconds", "6", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert list(document) == ["end", "driver", "examples", "found"]
    explored = [one for one in document["found"] if told in one["failure"]]
    assert explored, [one["failure"] for one in document["found"]]
    assert cli.main(["replay", explored[0]["replay"], "--json"]) == 1
    again = json.loads(capsys.readouterr().out)
    assert again["failure"] == again["recorded_failure"]
    assert again["digest"] == again["recorded_digest"]


def test_a_driver_in_c_is_compiled_hunted_and_replayed(capsys) -> None:
    source = EXAMPLES / "c_backend" / "blkback.c"
    driver = f"{source} -DLOST_WAKEUP"
    assert cli.main(["hunt", "blk-backend", driver, "--seconds", "8", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    (found,) = [one for one in document["found"] if one["by"].startswith("scenario:")][:1]
    assert found["steps"]
    assert cli.main(["replay", found["replay"], "--json"]) == 1
    again = json.loads(capsys.readouterr().out)
    assert again["end"] == driver
    assert again["digest"] == again["recorded_digest"]


def test_a_case_of_xenbus_against_a_driver_replays(tmp_path, capsys) -> None:
    source = (EXAMPLES / "own_blk_backend.py").read_text(encoding="utf-8")
    good = "    def disconnect(self) -> None:\n"
    assert good in source
    (tmp_path / "keeps.py").write_text(source.replace(good, f"{good}        return\n"))
    assert cli.main(["hunt", "blk-backend", "keeps.py:Backend", "--seconds", "5", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    found = [one for one in document["found"] if one["by"].startswith("case:BUSB-")]
    assert found, [one["by"] for one in document["found"]]
    assert cli.main(["replay", found[0]["replay"], "--json"]) == 1
    again = json.loads(capsys.readouterr().out)
    assert again["device"] == "vbd"
    assert again["failure"] == again["recorded_failure"]


def test_cases_are_played_against_a_driver(capsys) -> None:
    driver = str(EXAMPLES / DRIVERS["blk-backend"])
    assert cli.main(["cases", "BLKB-001", "BLKB-002", "--driver", driver]) == 0
    assert "2 cases: 0 failed" in capsys.readouterr().out
    assert cli.main(["cases", "BLKB-001", "GNT-001", "--driver", driver]) == 2
    assert "--driver: GNT-001 is of the suite grant" in capsys.readouterr().err


def test_a_case_that_need_not_hold_is_left_out(tmp_path, capsys) -> None:
    (tmp_path / "none.py").write_text("def make(end, image):\n    raise RuntimeError('no')\n")
    assert cli.main(["hunt", "blk-backend", "none.py:make", "--seconds", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("case:BLKB-001: ")
    assert "none.py" in lines[0]
    arguments = ["hunt", "blk-backend", "none.py:make", "--seconds", "1", "--without", "BLKB-001"]
    assert cli.main(arguments) == 1
    assert not capsys.readouterr().out.startswith("case:BLKB-001: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["blk-middle"], "invalid choice: 'blk-middle'"),
        (
            ["blk-backend", "nothing"],
            "driver 'nothing': expected module:Class, file.py:Class or file.c",
        ),
        (["blk-backend", "nothing.py:Backend"], "nothing.py: no such file"),
        (["blk-backend", "no_such_module:B"], "unknown driver 'no_such_module:B'"),
        (["blk-backend", "--without", "BLKB-0"], "blk-backend has no case BLKB-0"),
        (["blk-backend", "--seconds", "-1"], "expected seconds, not '-1'"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys) -> None:
    try:
        status = cli.main(["hunt", *arguments])
    except SystemExit as exit_:
        status = exit_.code
    assert status == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
