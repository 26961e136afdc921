"""Planted mistakes: each is seen by the cases that say so, and by no case once it is gone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.testing.cases.blkplants import PLANTS, ZOO
from xenpv.testing import zoo
from xenpv.testing.cases import Outcome, case, cases


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


@pytest.mark.parametrize("name", ZOO)
def test_a_defect_of_the_zoo_fails_its_cases(name) -> None:
    with zoo.defect(name):
        results = [case(one).run() for one in ZOO[name]]
    assert [one.outcome for one in results] == [Outcome.FAIL] * len(results), results


def test_every_case_is_seen_to_fail() -> None:
    failing = {one for _, expected in PLANTS.values() for one in expected}
    failing |= {one for expected in ZOO.values() for one in expected}
    every = [*cases("blk-backend"), *cases("blk-frontend")]
    assert [one.id for one in every if one.id not in failing] == []
