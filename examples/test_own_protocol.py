# ruff: noqa: INP001, ANN001, ANN201 - a test of a user, in no package
"""The ends of own_protocol.py in pytest: every case, other schedules, and its planted bug.

pytest examples/test_own_protocol.py
"""

from __future__ import annotations

import pytest
from own_protocol import BACKEND, FRONTEND, EchoBackend, Sleepy, asleep, shouting

from xenpv.testing import explore
from xenpv.testing.ringkit import find_bugs


@pytest.mark.parametrize("case", [*BACKEND.cases, *FRONTEND.cases], ids=str)
def test_a_case(case):
    result = case.run(seed=7)
    assert result.error is None, result.reason


def test_texts_come_back_whatever_the_schedule():
    explore(shouting, seed=7, examples=100).check()


def test_the_sleepy_backend_loses_a_wake_up():
    result = explore(asleep, examples=100)
    assert "lost wake-up: d0 sleeps with" in str(result.failure)
    assert len(result.steps) == 1


@pytest.mark.parametrize(("end", "bugs"), [(EchoBackend, False), (Sleepy, True)])
def test_a_hunt(end, bugs):
    findings, _examples = find_bugs(BACKEND, end, seconds=1)
    assert bool(findings) == bugs
