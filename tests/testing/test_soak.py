"""The soak: it runs, tells what it finds, and sees what stays behind."""

from __future__ import annotations

import io
import os

import pytest

from xenpv.testing import soak
from xenpv.testing.overlay import Target, targets


def target(run) -> dict[str, Target]:
    return {"own": Target("own", run, lambda data: [data], lambda data: [data.hex()])}


def test_equal_seeds_give_equal_examples() -> None:
    one, other = (soak.Soak(targets(), seed, io.StringIO()).texts() for seed in (5, 5))
    assert [next(one) for _ in range(50)] == [next(other) for _ in range(50)]
    third = soak.Soak(targets(), 6, io.StringIO()).texts()
    assert [next(third) for _ in range(50)] != [next(other) for _ in range(50)]


def test_what_is_raised_is_told_with_the_bytes() -> None:
    def run(data: bytes) -> None:
        if data[0] == 7:
            raise KeyError("seven")

    out = io.StringIO()
    made = soak.Soak(target(run), 0, out)
    made.run(1000)
    assert made.done == 1000
    assert made.failures
    assert all(
        one.startswith("own: KeyError: 'seven'\n  bytes.fromhex('07") for one in made.failures
    )
    assert out.getvalue().startswith(made.failures[0])


def test_it_gives_up_when_everything_fails() -> None:
    def run(_data: bytes) -> None:
        raise ValueError

    made = soak.Soak(target(run), 0, io.StringIO())
    made.run(5000)
    assert made.done == soak.PASS
    assert len(made.failures) == soak.PASS


@pytest.mark.parametrize("what", ["objects", "files"])
def test_what_stays_behind_is_seen(what, monkeypatch) -> None:
    monkeypatch.setattr(soak, "PASS", 50)
    kept: list[object] = []
    opened: list[int] = []

    def run(_data: bytes) -> None:
        if what == "objects":
            kept.extend([] for _ in range(200))
        else:
            opened.append(os.open("/dev/null", os.O_RDONLY))

    made = soak.Soak(target(run), 0, io.StringIO())
    try:
        made.run(50 * 3 * soak.WARM_UP)
    finally:
        for one in opened:
            os.close(one)
    assert any(f"{what}: " in one for one in made.failures)


def test_the_command_ends_well_over_our_own_ends(capsys) -> None:
    assert soak.main(["--examples", "30", "--seed", "3", "--target", "store"]) == 0
    assert "30 examples" in capsys.readouterr().out


def test_an_unknown_target_is_bad_input(capsys) -> None:
    with pytest.raises(SystemExit) as raised:
        soak.main(["--target", "disk"])
    assert raised.value.code == 2
    assert "targets are blk-backend" in capsys.readouterr().err


@pytest.mark.soak
def test_hostile_overlays_in_two_processes() -> None:
    assert soak.main(["--examples", "1000000", "--jobs", "2", "--seed", "2026"]) == 0
