"""Guests on two hosts: whatever a toolstack does to them, their traffic and their census hold."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from xenpv.testing.commands import COMMANDS
from xenpv.testing.lifecycle import Lifecycle, Step


class LifecycleMachine(RuleBasedStateMachine):
    """Rules are commands of `testing.lifecycle`, which checks everything after each.

    `commands` may be fewer in a subclass.
    """

    commands: tuple[str, ...] = tuple(COMMANDS)

    def __init__(self) -> None:
        super().__init__()
        self.life = Lifecycle(0)

    @rule(which=st.integers(0, 63), pick=st.integers(0, 3), draw=st.integers(0, 63))
    def do(self, which: int, pick: int, draw: int) -> None:
        """One command, on one of the guests that it can be done to."""
        self.life.do(Step(self.commands[which % len(self.commands)], pick, draw))

    @rule()
    def create(self) -> None:
        """Another guest."""
        self.life.do(Step("create"))

    def teardown(self) -> None:
        self.life.__exit__()
