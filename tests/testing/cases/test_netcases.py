"""The suites "net-backend" and "net-frontend": ours hold every case."""

from __future__ import annotations

import pytest

from tests.testing.ends.test_examples import NetBackend, NetFrontend
from xenpv.errors import LocalProtocolError
from xenpv.testing import check_net_backend, check_net_frontend
from xenpv.testing.cases import Outcome, cases

SUITES = {"net-backend": check_net_backend, "net-frontend": check_net_frontend}
CASES = [case for name in SUITES for case in cases(name)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ours_holds_each_case(case) -> None:
    result = case.run()
    assert (result.outcome, result.reason) == (Outcome.PASS, "")


@pytest.mark.parametrize(
    ("name", "end", "least"),
    [("net-backend", NetBackend, 80), ("net-frontend", NetFrontend, 55)],
)
def test_a_driver_of_one_s_own_is_asked_what_it_offers(name, end, least) -> None:
    results = SUITES[name](end)
    assert sum(one.outcome is Outcome.PASS for one in results) >= least
    assert all(
        one.reason.startswith("it has no ") for one in results if one.outcome is Outcome.SKIP
    )


@pytest.mark.parametrize("name", list(SUITES))
def test_another_seed_changes_nothing(name) -> None:
    assert all(one.outcome is Outcome.PASS for one in SUITES[name](seed=1))


@pytest.mark.parametrize(
    ("name", "least", "hostile"), [("net-backend", 100, 50), ("net-frontend", 60, 30)]
)
def test_the_suites_are_as_large_as_promised(name, least, hostile) -> None:
    found = cases(name)
    assert len(found) >= least
    assert sum(case.hostile for case in found) >= hostile


@pytest.mark.parametrize("name", list(SUITES))
def test_an_unknown_id_is_a_local_protocol_error(name) -> None:
    with pytest.raises(LocalProtocolError, match="NET-999"):
        SUITES[name](only=["NET-999"])
