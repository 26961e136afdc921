"""No wake-up is lost on a vif's rings, however both ends interleave in the middle of a handler."""

from __future__ import annotations

import pytest

from xenpv.bus.ring import FrontRing
from xenpv.testing import explore, scenarios, zoo

EXAMPLES = 120


@pytest.mark.parametrize("seed", range(3))
def test_every_frame_arrives_once_however_the_ends_of_the_rings_interleave(seed: int) -> None:
    explore(scenarios.net_traffic, seed=seed, examples=EXAMPLES).check()


@pytest.mark.parametrize("defect", ["ring-back-no-final-check", "ring-event-late"])
def test_it_finds_a_netback_that_sleeps_too_early(defect: str) -> None:
    with zoo.defect(defect):
        found = explore(scenarios.net_traffic, examples=400)
    assert found.run is not None
    assert "netif_tx" in found.run.failure_text
    assert "lost wake-up: d0 sleeps" in found.run.failure_text
    assert len(found.run.taken) <= 4


def test_it_finds_a_xenvif_that_sleeps_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    def asleep(_ring: FrontRing) -> bool:
        return False

    monkeypatch.setattr(FrontRing, "final_check", asleep)
    found = explore(scenarios.net_traffic, examples=400)
    assert found.run is not None
    assert "lost wake-up" in found.run.failure_text
