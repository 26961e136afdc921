"""What ballooning and suspending take before they begin: one at a time, and nobody waits for it."""

from __future__ import annotations

from xenpv.xen.loop import Task


class Exclusion:
    """A mutex that is only tried. Who comes late is woken when it is free again."""

    def __init__(self) -> None:
        self.holder: Task | None = None
        self._losers: list[Task] = []

    def try_acquire(self, task: Task) -> bool:
        """False: another has it, and `task` is woken when that one lets go."""
        if self.holder is None:
            self.holder = task
            return True
        if task is not self.holder and task not in self._losers:
            self._losers.append(task)
        return self.holder is task

    def release(self, task: Task) -> None:
        """Nothing happens if `task` has it not."""
        if self.holder is not task:
            return
        self.holder = None
        losers, self._losers = self._losers, []
        for loser in losers:
            loser.wake()
