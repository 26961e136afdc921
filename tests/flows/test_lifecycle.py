"""Random commands of a toolstack on guests with traffic: what must hold after each, holds.

XENPV_LIFECYCLE_COMMANDS says how many in all; they are done in runs of their own seeds, which
the workers of a test run share.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from xenpv.testing.commands import COMMANDS
from xenpv.testing.lifecycle import (
    Lifecycle,
    LifecycleFailed,
    Step,
    draw_steps,
    run_lifecycle,
    run_steps,
)

IN_A_RUN = 50
RUNS = -(-int(os.environ.get("XENPV_LIFECYCLE_COMMANDS", "400")) // IN_A_RUN)


@pytest.mark.parametrize("seed", range(RUNS))
def test_what_a_toolstack_does_leaves_guests_and_hosts_as_they_should_be(seed: int) -> None:
    assert sum(run_lifecycle(seed, IN_A_RUN).values()) == IN_A_RUN


def test_every_command_is_done_in_the_runs_of_an_ordinary_test() -> None:
    drawn = [
        step.command
        for seed in range(8)
        for step, _ in zip(draw_steps(seed), range(60), strict=False)
    ]
    assert {name for name, command in COMMANDS.items() if command.weight} == set(drawn)


def test_equal_seeds_are_equal_runs() -> None:
    digests = []
    for _ in range(2):
        with Lifecycle(5) as life:
            for step, _ in zip(draw_steps(5), range(30), strict=False):
                life.do(step)
            digests.append(life.hosts[0].digest)
    assert digests[0] == digests[1]


def test_a_step_that_cannot_be_done_is_left_out() -> None:
    assert run_steps(1, [Step("destroy"), Step("create"), Step("unpause"), Step("destroy")]) == {
        "create": 1,
        "destroy": 1,
    }


def test_a_failure_is_shrunk_and_says_how_it_is_run_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from xenpv.back.xenbus import Device

    monkeypatch.setattr(Device, "unwatch", lambda _device: None)
    with pytest.raises(LifecycleFailed) as raised:
        run_lifecycle(3, 50)
    failed = raised.value
    assert failed.steps[0].command == "create"
    assert len(failed.steps) <= 8
    assert any("kernel: watch " in line for line in failed.findings)
    assert str(failed).endswith(
        f"python -m xenpv.testing.lifecycle 3 {' '.join(map(str, failed.steps))}"
    )
    monkeypatch.undo()
    assert run_steps(3, failed.steps)  # and with the mistake mended it passes


def test_a_list_of_steps_is_run_from_the_command_line() -> None:
    command = [
        sys.executable,
        "-m",
        "xenpv.testing.lifecycle",
        "3",
        "create:0:37",
        "pause",
        "reboot",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "2 of 3 steps done, nothing wrong\n")
    done = subprocess.run([*command, "dance"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "dance" in done.stderr
