"""Planted mistakes: each is seen by the cases that say so, and by no case once it is gone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.testing.cases.blkplants import PLANTS
from xenpv.testing.cases import Outcome, case


@pytest.fixture
def planted(monkeypatch) -> Iterator[pytest.MonkeyPatch]:
    with monkeypatch.context() as patch:
        yield patch


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_mistake_fails_its_cases(planted, name) -> None:
    plant, expected = PLANTS[name]
    plant(planted)
    results = [case(one).run() for one in expected]
    assert [one.outcome for one in results] == [Outcome.FAIL] * len(expected), results


def test_nothing_stays_planted() -> None:
    seen = sorted({one for _, expected in PLANTS.values() for one in expected})
    assert len(seen) >= 80
    assert [one for one in seen if case(one).run().outcome is not Outcome.PASS] == []
