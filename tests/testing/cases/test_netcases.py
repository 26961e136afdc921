"""The suite "net-backend": ours holds every case."""

from __future__ import annotations

import pytest

from xenpv.errors import LocalProtocolError
from xenpv.testing import check_net_backend
from xenpv.testing.cases import Outcome, cases

BACKEND = cases("net-backend")


@pytest.mark.parametrize("case", BACKEND, ids=str)
def test_our_backend_holds_each_case(case) -> None:
    result = case.run()
    assert (result.outcome, result.reason) == (Outcome.PASS, "")


@pytest.mark.parametrize("seed", [1, 2])
def test_other_seeds_change_nothing(seed) -> None:
    assert all(one.outcome is Outcome.PASS for one in check_net_backend(seed=seed))


def test_the_suite_is_as_large_as_promised() -> None:
    assert len(BACKEND) >= 45
    assert sum(case.hostile for case in BACKEND) >= 30


def test_an_unknown_id_is_a_local_protocol_error() -> None:
    with pytest.raises(LocalProtocolError, match="NETB-999"):
        check_net_backend(only=["NETB-999"])
