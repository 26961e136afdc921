"""The suites "evtchn" and "grant": the hypervisor holds every case, whatever the seed."""

from __future__ import annotations

import pytest

from xenpv.testing.cases import Outcome, cases


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("case", [*cases("evtchn"), *cases("grant")], ids=str)
def test_the_hypervisor_holds_each_case(case, seed: int) -> None:
    result = case.run(seed=seed)
    assert (result.outcome, result.reason) == (Outcome.PASS, "")


def test_another_hypervisor_is_not_asked() -> None:
    result = cases("grant")[0].run(object)
    assert (result.outcome, result.reason) == (
        Outcome.SKIP,
        "the hypervisor is always xenpv's",
    )


def test_the_suites_are_as_large_as_promised() -> None:
    names = ("store", "xenbus-backend", "xenbus-frontend", "evtchn", "grant")
    found = [one for name in names for one in cases(name)]
    assert len(found) >= 180
    assert sum(one.hostile for one in found) >= 120
