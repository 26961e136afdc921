"""No wake-up is lost on a disk's ring, however both ends interleave in the middle of a handler."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from xenpv.bus.ring import FrontRing
from xenpv.testing import explore, scenarios, zoo

EXAMPLES = 80
SHAPES: dict[str, dict[str, Any]] = {
    "in batches": {},
    "one by one": {"profile": "qemu"},
    "by a disk that takes its time": {"latency_ns": 1000},
    "by mirage": {"profile": "mirage"},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_srb_ends_once_however_the_ends_of_the_ring_interleave(shape: str) -> None:
    scenario = partial(scenarios.disk_traffic, **SHAPES[shape])
    explore(scenario, seed=3, examples=EXAMPLES).check()


# Of a disk that takes its time all is on the ring before the first I/O ends, which wakes blkback.
AWAKE = "by a disk that takes its time"


@pytest.mark.parametrize("defect", ["ring-back-no-final-check", "ring-event-late"])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != AWAKE])
def test_it_finds_a_blkback_that_sleeps_too_early(shape: str, defect: str) -> None:
    with zoo.defect(defect):
        found = explore(partial(scenarios.disk_traffic, **SHAPES[shape]), examples=400)
    assert found.run is not None
    assert "lost wake-up: d0 sleeps" in found.run.failure_text
    assert len(found.run.taken) <= 6


def test_it_finds_a_xenvbd_that_sleeps_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    reap = FrontRing.reap

    def asleep(ring: FrontRing, most: int = 0) -> tuple[int, memoryview, bool]:
        return *reap(ring, most)[:2], False

    monkeypatch.setattr(FrontRing, "reap", asleep)
    # Two answers have to meet in the middle of one look: not every seed gets there.
    seeds = (1, 0, 2)
    found = (explore(scenarios.disk_traffic, seed=seed, examples=300).run for seed in seeds)
    run = next((run for run in found if run is not None), None)
    assert run is not None
    assert "lost wake-up: d1 sleeps" in run.failure_text
