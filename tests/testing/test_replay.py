"""Replay files: what is written, what is read back, and what the command says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from xenpv import cli
from xenpv.errors import ConfigError
from xenpv.testing import Action, Replay, Schedule, Step, explore, load_replay, scenarios, zoo


def fails(x) -> None:
    """A scenario of a test file."""
    world = x.world_raw()
    x.run()
    assert world.vbd.backend is None, "as planted"


def passes(x) -> None:
    x.world_raw()
    x.run()


not_callable = 5


@pytest.fixture
def recorded(tmp_path) -> Path:
    with zoo.defect("ring-event-late"):
        result = explore(scenarios.blk_requests, seed=3, directory=tmp_path / "new" / "place")
    assert result.path is not None
    return result.path


def edited(path: Path, **changes) -> Path:
    document = json.loads(path.read_text()) | changes
    other = path.with_name("edited.replay")
    other.write_text(json.dumps(document))
    return other


def test_what_is_written_is_read_back(recorded) -> None:
    text = recorded.read_text()
    replay = load_replay(recorded)
    assert replay.dumps() == text
    assert Replay.loads(text) == replay
    assert list(json.loads(text)) == [
        "xenpv-replay", "kind", "scenario", "file", "seed", "steps", "defects", "digest", "failure"
    ]  # fmt: skip
    assert replay.scenario == "xenpv.testing.scenarios:blk_requests"
    assert replay.defects == ("ring-event-late",)
    assert replay.seed == 3
    assert [step.action for step in replay.schedule.steps] == [Action.PREEMPT]
    assert "lost wake-up" in replay.failure
    trace = recorded.with_suffix(".trace").read_text()
    assert "blkif of d1" in trace
    assert "publishes 1 slots" in trace
    assert "/local/domain/0/backend/vbd/1/51712/state = '4'" in (
        recorded.with_suffix(".store").read_text()
    )


def test_the_same_failure_is_written_once(tmp_path) -> None:
    for _ in range(2):
        with zoo.defect("ring-event-late"):
            explore(scenarios.blk_requests, directory=tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".replay", ".store", ".trace"]


def test_replay_reproduces_and_tells(recorded, capsys) -> None:
    assert cli.main(["replay", str(recorded)]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == "xenpv.testing.scenarios:blk_requests, seed 3"
    assert lines[1] == "with the defect ring-event-late"
    assert lines[2].startswith("  1. at decision ")
    assert "preempt d0 vbd1.51712-0 before it writes blkif.req_event" in lines[2]
    assert lines[3] == "last events:"
    assert "rings:" in lines
    assert any("blkif_request[" in line and "sector_number" in line for line in lines)
    assert lines[-1].startswith("fails: CheckFailed: blkif of d1")
    assert "recorded" not in out


def test_replay_in_json(recorded, capsys) -> None:
    assert cli.main(["replay", str(recorded), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert list(document) == [
        "file", "kind", "scenario", "seed", "defects", "reproduced", "failure", "recorded_failure",
        "digest", "recorded_digest", "steps", "trace",
    ]  # fmt: skip
    assert document["reproduced"] is True
    assert document["failure"] == document["recorded_failure"]
    assert document["digest"] == document["recorded_digest"]
    assert list(document["steps"][0]) == ["at", "action", "argument", "text"]
    assert document["trace"]


def test_without_the_defect_it_passes_and_says_that_something_differs(recorded, capsys) -> None:
    assert cli.main(["replay", str(edited(recorded, defects=[]))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "passes: nothing fails"
    assert any(line.startswith("digest ") and "recorded" in line for line in lines)


def test_steps_that_no_longer_fit_are_counted(recorded, capsys) -> None:
    steps = [*json.loads(recorded.read_text())["steps"], [99999, "run", 1]]
    assert cli.main(["replay", str(edited(recorded, steps=steps))]) == 1
    assert "1 of 2 recorded steps did nothing this time" in capsys.readouterr().out


def test_a_scenario_of_a_file_is_found_by_it(tmp_path, monkeypatch) -> None:
    (tmp_path / "mine.py").write_text(
        "def scenario(x):\n    x.world_raw()\n    x.run()\n    assert False, 'planted'\n"
        "if __name__ == '__main__':\n"
        "    from xenpv.testing import explore\n"
        "    print(explore(scenario, directory='found').path)\n"
    )
    done = subprocess.run(
        [sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    monkeypatch.chdir(tmp_path)
    replay = load_replay(done.stdout.strip())
    assert (replay.scenario, replay.file) == ("__main__:scenario", "mine.py")
    run = replay.run()
    assert run.failure_text == "AssertionError: planted"
    assert run.digest == replay.digest


def test_a_scenario_of_a_test_module_is_found(tmp_path) -> None:
    result = explore(fails, directory=tmp_path)
    assert result.path is not None
    assert "as planted" in load_replay(result.path).run().failure_text


GOOD = {
    "xenpv-replay": 1,
    "scenario": "tests.testing.test_replay:passes",
    "file": "",
    "seed": 0,
    "defects": [],
    "steps": [],
    "digest": "",
    "failure": "",
}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a replay file: not JSON: "),
        ("{", "not a replay file: not JSON: "),
        ("[" * 100_000, "not a replay file: not JSON: "),
        ("[]", "not a replay file: no xenpv-replay in it"),
        ("{}", "not a replay file: no xenpv-replay in it"),
        ({"xenpv-replay": 3}, "format 3 is newer than this xenpv, which reads up to 2"),
        ({"xenpv-replay": 2}, "kind is None: expected schedule, case, overlay, lifecycle"),
        (
            {"xenpv-replay": 2, "kind": []},
            "kind is []: expected schedule, case, overlay, lifecycle",
        ),
        ({"kind": "case"}, "no case in it"),
        ({"kind": "case", "case": "X-1", "factory": 1, "file": ""}, "factory is 1: expected text"),
        ({"kind": "overlay", "target": "x"}, "no data in it"),
        ({"kind": "overlay", "target": "x", "data": "0g"}, "data: expected hex digits"),
        ({"xenpv-replay": "1"}, "format '1' of a replay file is no number"),
        ({"xenpv-replay": 0}, "format 0 of a replay file is no number"),
        ({"xenpv-replay": True}, "format True of a replay file is no number"),
        ({"seed": None}, "seed is None: expected a number"),
        ({"seed": True}, "seed is True: expected a number"),
        ({"scenario": 5}, "scenario is 5: expected text"),
        ({"defects": "x"}, "defects is 'x': expected a list of names"),
        ({"defects": [1]}, "defects is [1]: expected a list of names"),
        ({"steps": {}}, "steps: expected a list of [decision, action, argument]"),
        ({"steps": [[1, "run"]]}, "step [1, 'run']: expected [decision, action, argument]"),
        ({"steps": [[1, "jump", 0]]}, "step [1, 'jump', 0]: expected [decision, action, argument]"),
        ({"steps": [[-1, "run", 0]]}, "step [-1, 'run', 0]: expected [decision, action, argument]"),
        (
            {"steps": [[True, "run", 0]]},
            "step [True, 'run', 0]: expected [decision, action, argument]",
        ),
        ({"steps": [[1, [], 0]]}, "step [1, [], 0]: expected [decision, action, argument]"),
        ({"scenario": "no.such:thing"}, "unknown scenario 'no.such:thing'"),
        ({"scenario": "tests.testing.test_replay:nothing"}, "unknown scenario"),
        ({"scenario": "tests.testing.test_replay:not_callable"}, "unknown scenario"),
        ({"scenario": ""}, "unknown scenario ''"),
        ({"file": "no/such.py", "scenario": "a:b"}, "unknown scenario 'a:b'"),
        ({"defects": ["no-such"]}, "unknown defect 'no-such'"),
    ],
)
def test_a_bad_file_is_one_line_and_status_2(tmp_path, capsys, text, message) -> None:
    path = tmp_path / "bad.replay"
    path.write_text(text if isinstance(text, str) else json.dumps({**GOOD, **text}))
    assert cli.main(["replay", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("key", [key for key in GOOD if key != "xenpv-replay"])
def test_a_key_that_is_missing_is_named(key) -> None:
    document = {name: value for name, value in GOOD.items() if name != key}
    with pytest.raises(ConfigError, match=f"no {key} in it"):
        Replay.loads(json.dumps(document))


def test_files_that_are_none(tmp_path, capsys) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "absent", tmp_path, tmp_path / "binary"):
        assert cli.main(["replay", str(path)]) == 2
        assert f"{path}: not a replay file: " in capsys.readouterr().err


def test_a_module_that_does_not_import_is_bad_input(tmp_path, capsys, monkeypatch) -> None:
    (tmp_path / "broken.py").write_text("raise OSError('no')\n")
    path = tmp_path / "x.replay"
    path.write_text(json.dumps({**GOOD, "scenario": "x:y", "file": str(tmp_path / "broken.py")}))
    assert cli.main(["replay", str(path)]) == 2
    assert "importing it: OSError: no" in capsys.readouterr().err


def test_a_scenario_that_passes_is_status_0(tmp_path, capsys) -> None:
    path = tmp_path / "x.replay"
    path.write_text(json.dumps(GOOD))
    assert cli.main(["replay", str(path)]) == 0
    assert capsys.readouterr().out.endswith("passes: nothing fails\n")


def test_schedules_of_replays_are_schedules() -> None:
    text = json.dumps({**GOOD, "steps": [[7, "poke", 3], [2, "run", 1]]})
    steps = (Step(2, Action.RUN, 1), Step(7, Action.POKE, 3))
    assert Replay.loads(text).schedule == Schedule(steps)


def test_a_fuzzers_file_is_told_operation_by_operation(tmp_path, capsys) -> None:
    file = tmp_path / "crash-1"
    file.write_bytes(bytes(range(40)))
    assert cli.main(["replay", str(file), "--target", "net-backend", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "overlay"
    assert (document["target"], document["data"]) == ("net-backend", bytes(range(40)).hex())
    assert document["steps"]
    assert document["trace"]
    with zoo.defect("net-extra-not-answered"):
        assert cli.main(["replay", str(file), "--target", "net-backend"]) in (0, 1)
    for arguments, message in (
        ([str(file), "--target", "no-such"], "no target is called 'no-such': expected "),
        ([str(tmp_path), "--target", "store"], "cannot read it: "),
        ([str(tmp_path / "none"), "--target", "store"], "cannot read it: "),
    ):
        assert cli.main(["replay", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_file_does_not_say_where_xenpv_is_installed() -> None:
    """Else its name, which is a sum over it, would be another on each machine."""
    from xenpv.testing import named, scenarios

    assert named.file_of(scenarios.blk_requests) == ""
    assert named.file_of(test_a_file_does_not_say_where_xenpv_is_installed) != ""
