"""The suites "xenbus-backend" and "xenbus-frontend": our ends hold every case."""

from __future__ import annotations

import pytest

from examples import own_blk_backend, own_blk_frontend, own_net_backend, own_net_frontend
from xenpv.errors import LocalProtocolError
from xenpv.testing.cases import Outcome, cases, suite
from xenpv.testing.cases.busscene import BusEnd, FrontDevice

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


EXAMPLES = [
    ("xenbus-backend", "vbd", own_blk_backend.Backend),
    ("xenbus-backend", "vif", own_net_backend.Backend),
    ("xenbus-frontend", "vbd", own_blk_frontend.Frontend),
    ("xenbus-frontend", "vif", own_net_frontend.Frontend),
]


@pytest.mark.parametrize(("name", "kind", "factory"), EXAMPLES)
def test_the_examples_hold_every_case(name: str, kind: str, factory) -> None:
    results = suite(name).run(BusEnd(kind, factory))
    assert [(one.case.id, one.reason) for one in results if one.outcome is not Outcome.PASS] == []


@pytest.mark.parametrize("text", ["abc", "0", "9", ""])
def test_a_linux_interface_outlives_a_state_that_is_none(text: str) -> None:
    """netback_changed of Linux breaks at XenbusStateUnknown; a directory that goes is a close."""
    device = FrontDevice("vif", None, 0, "linux")
    device.boot()
    assert device.show(text) == "CONNECTED"
    assert len(device.world.guest.nets) == 1
    device.serves()
    device.back.detach()
    device.write("", None)
    assert device.world.guest.nets == []
    device.close()
