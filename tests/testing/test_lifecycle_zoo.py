"""Each defect of a life cycle is found by a few commands, which find nothing when it is off."""

from __future__ import annotations

import pytest

from xenpv.testing import zoo
from xenpv.testing.lifecycle import LifecycleFailed, Step, run_steps
from xenpv.testing.zoo.lifecycle import DEFECTS

FOUND = {
    "blkback-keeps-maps": "dead domain with ",
    "xenbus-back-keeps-watches": "kernel: watch ",
    "libxl-leaves-copy": "store: node /libxl/~guest/device/vbd/",
    "xenvbd-grants-again-at-resume": "guest: grant to dom0: ",
    "xenvbd-loses-srbs-at-resume": "requests are unanswered",
}
SEEDS = range(6)


def findings(name: str) -> list[str]:
    steps = [
        Step.parse(text) for text in zoo.all_defects()[name].hunt.removeprefix("lifecycle:").split()
    ]
    found: list[str] = []
    for seed in SEEDS:
        try:
            run_steps(seed, steps)
        except LifecycleFailed as error:
            found += error.findings
    return found


def test_every_entry_is_in_this_table() -> None:
    assert set(FOUND) == {one.id for one in DEFECTS}


@pytest.mark.parametrize("name", list(FOUND))
def test_each_is_found_and_nothing_when_it_is_off(name: str) -> None:
    with zoo.defect(name):
        found = findings(name)
    assert any(FOUND[name] in line for line in found), found
    assert findings(name) == []
