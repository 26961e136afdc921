"""What a toolstack does to guests."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from xenpv.testing.commands import COMMANDS
from xenpv.testing.lifecycle import Step


def lifecycle_steps(commands: Sequence[str] = ()) -> SearchStrategy[Step]:
    """Steps for `Lifecycle.do`: all commands, or of these."""
    names = st.sampled_from(list(commands or COMMANDS))
    return st.builds(Step, names, st.integers(0, 3), st.integers(0, 63))
