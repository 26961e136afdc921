"""Schedules for explored runs, without a run that says which decisions there are."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from xenpv.testing.schedule import STEP_BYTES, Schedule

STEPS_MAX = 8


def schedules(*, steps: int = STEPS_MAX) -> SearchStrategy[Schedule]:
    """Schedules of at most so many steps for `run_schedule`; they shrink to fewer and earlier."""
    return st.binary(max_size=steps * STEP_BYTES).map(Schedule.from_bytes)
