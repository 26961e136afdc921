"""The suites "xenbus-backend" and "xenbus-frontend": our ends hold every case."""

from __future__ import annotations

import pytest

from xenpv.errors import LocalProtocolError
from xenpv.testing.cases import Outcome, cases
from xenpv.testing.cases.busscene import BusEnd

SUITES = ("xenbus-backend", "xenbus-frontend")
CASES = [one for name in SUITES for one in cases(name)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_our_ends_hold_each_case(case) -> None:
    result = case.run()
    assert (result.outcome, result.reason) == (Outcome.PASS, "")


@pytest.mark.parametrize("factory", [object, BusEnd("vtpm", object)])
def test_an_end_of_another_kind_is_refused(factory) -> None:
    result = CASES[0].run(factory)
    assert result.outcome is Outcome.FAIL
    assert isinstance(result.error, LocalProtocolError)
