"""`xenpv zoo`, and the replay files that it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xenpv import cli
from xenpv.testing import zoo

FOUND_AT_ONCE = "ring-back-no-final-check"


def test_one_defect_is_found_and_told(capsys) -> None:
    assert cli.main(["zoo", FOUND_AT_ONCE]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["defect", "found", "seconds", "examples", "steps", "by"]
    assert lines[1].split()[:2] == [FOUND_AT_ONCE, "yes"]
    assert lines[-1].startswith("1 of 1 found, median ")
    assert zoo.active() == ()


def test_one_that_is_not_found_is_a_failure(capsys) -> None:
    assert cli.main(["zoo", "xenvbd-loses-srbs-at-resume", "--examples", "1", "--json"]) == 1
    (row,) = json.loads(capsys.readouterr().out)
    assert list(row) == [
        "defect", "found", "seconds", "examples", "steps", "by", "failure", "schedule", "replay"
    ]  # fmt: skip
    assert (row["found"], row["examples"], row["steps"]) == (False, 1, None)


def test_processes_give_the_same_rows_in_the_same_order(capsys) -> None:
    names = [FOUND_AT_ONCE, "blk-double-fetch-nr-segments"]
    rows = []
    for jobs in ("1", "2"):
        assert cli.main(["zoo", *names, "--json", "--jobs", jobs]) == 0
        rows.append(json.loads(capsys.readouterr().out))
    for row in (*rows[0], *rows[1]):
        del row["seconds"]
    assert rows[0] == rows[1]
    assert [row["defect"] for row in rows[0]] == names


def test_nothing_is_found_when_all_are_off(capsys) -> None:
    assert cli.main(["zoo", "--off", "--examples", "60"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["(none)", "no"]


def test_list_names_each_with_its_mutation(capsys) -> None:
    assert cli.main(["zoo", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(zoo.all_defects())
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such"], "no defect is called 'no-such': `xenpv zoo --list` lists them"),
        (["--off", FOUND_AT_ONCE], "--off: no defect may be named beside it"),
        (["--seconds", "0"], "expected seconds, not '0'"),
        (["--seconds", "nan"], "expected seconds, not 'nan'"),
        (["--examples", "-1"], "argument --examples: expected"),
        (["--jobs", "0"], "expected 1 to 256 processes, not '0'"),
        (["--seed", "x"], "expected a number, not 'x'"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys) -> None:
    try:
        status = cli.main(["zoo", *arguments])
    except SystemExit as exit_:
        status = exit_.code
    assert status == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("name", [FOUND_AT_ONCE, "blkback-keeps-maps"])
def test_what_it_writes_replays_to_the_same_failure(name, tmp_path, capsys) -> None:
    assert cli.main(["zoo", name, "--replays", str(tmp_path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    path = Path(row["replay"])
    assert path.with_suffix(".trace").exists()
    assert path.with_suffix(".store").exists()
    assert cli.main(["replay", str(path), "--json"]) == 1
    again = json.loads(capsys.readouterr().out)
    assert again["reproduced"] is True
    assert again["digest"] == again["recorded_digest"]
    assert again["failure"] == again["recorded_failure"]
    assert again["defects"] == [name]
    assert len(again["steps"]) == row["steps"]
    assert again["trace"]
