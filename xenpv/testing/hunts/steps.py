"""Programs of a domain that scenarios run: one step in each run of a task."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from xenpv.xen.loop import Task


@attrs.define(eq=False)
class Steps:
    """Each step is a handler of its own, so that others run between two."""

    steps: list[Callable[[], object]]
    task: Task | None = None

    def start(self, make: Callable[[str, Callable[[], object]], Task], name: str) -> None:
        """`make` is Domain.task of whoever runs it."""
        self.task = make(name, self._step)
        self.task.wake()

    def _step(self) -> None:
        if not self.steps:
            return
        self.steps.pop(0)()
        if self.steps and self.task is not None:
            self.task.wake()
