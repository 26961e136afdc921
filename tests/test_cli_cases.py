"""`xenpv cases`: what it prints, and its exit status."""

from __future__ import annotations

import json

import pytest

from xenpv import cli
from xenpv.testing import cases


def outcome(capsys, *arguments):
    """(exit status, stdout, stderr) of the command, run in this process."""
    try:
        status = cli.main(["cases", *arguments])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err


def test_named_cases_are_played(capsys) -> None:
    status, out, err = outcome(capsys, "STORE-001", "store-012")
    assert (status, err) == (0, "")
    assert [line.split()[:2] for line in out.splitlines()[:2]] == [
        ["pass", "STORE-001"], ["pass", "STORE-012"],
    ]  # fmt: skip
    assert out.endswith("2 cases: 0 failed, 0 skipped\n")


def test_json_of_a_run_has_the_four_keys(capsys) -> None:
    status, out, _ = outcome(capsys, "STORE-012", "--json")
    case = cases.case("STORE-012")
    assert status == 0
    assert json.loads(out) == [
        {"id": "STORE-012", "title": case.title, "source": case.source, "result": "pass"}
    ]


def test_one_that_fails_is_exit_status_1_and_says_why(capsys, monkeypatch) -> None:
    monkeypatch.setattr("xenpv.store.connection.PAYLOAD_MAX", 1 << 20)
    status, out, err = outcome(capsys, "STORE-006", "STORE-012", "--json", "--seed", "5")
    assert status == 1
    assert [row["result"] for row in json.loads(out)] == ["fail", "pass"]
    assert "DIRECTORY: got 'n" in err
    assert "again: xenpv cases STORE-006 --seed 5" in err


def test_the_list_has_every_case_once(capsys) -> None:
    status, out, _ = outcome(capsys, "--list")
    listed = [line.split()[0] for line in out.splitlines()[:-1]]
    assert status == 0
    assert listed == list(cases.all_cases())
    status, out, _ = outcome(capsys, "--list", "--json", "--suite", "store")
    assert [row["id"] for row in json.loads(out)] == [one.id for one in cases.cases("store")]


def test_explain_says_what_is_expected(capsys) -> None:
    case = cases.case("STORE-022")
    status, out, _ = outcome(capsys, "--explain", "store-022")
    assert status == 0
    for text in (case.title, case.source, case.expected, "xenpv cases STORE-022"):
        assert text in out
    _, out, _ = outcome(capsys, "--explain", "STORE-022", "--json")
    assert json.loads(out)["expected"] == case.expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["STORE-999"], "no case is called 'STORE-999': `xenpv cases --list` lists them"),
        (["--explain", "nothing"], "no case is called 'NOTHING'"),
        (["--suite", "floppy"], "no suite is called floppy: expected "),
        (["--suite", "store", "EVT-001"], "EVT-001 is of the suite evtchn, not store"),
        (["--suite", "evtchn", "--socket", "x"], "--socket is for the suite store alone"),
        (["--list", "--explain", "STORE-001"], "not allowed with argument"),
        (["--seed", "-1"], "a seed is a number from 0 to 2^64 - 1, not '-1'"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(capsys, arguments, said) -> None:
    status, out, err = outcome(capsys, *arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_a_socket_that_nobody_serves_is_bad_input(capsys, tmp_path) -> None:
    status, out, err = outcome(capsys, "STORE-001", "--socket", str(tmp_path / "none"))
    assert (status, out) == (2, "")
    assert "none: no xenstored answers there: No such file or directory" in err
