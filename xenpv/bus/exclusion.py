"""What ballooning and suspending take before they begin: one at a time, and nobody waits for it."""

from __future__ import annotations

from xenpv.errors import LocalProtocolError
from xenpv.xen.loop import Task


class Exclusion:
    """A mutex that is only tried. Who comes late is woken when it is free again."""

    def __init__(self) -> None:
        self.owner = ""
        self._losers: list[Task] = []

    def try_acquire(self, owner: str, again: Task) -> bool:
        """False: another has it, and `again` is woken when that one lets go."""
        if not self.owner:
            self.owner = owner
            return True
        if again not in self._losers:
            self._losers.append(again)
        return False

    def release(self, owner: str) -> None:
        """LocalProtocolError unless `owner` has it."""
        if self.owner != owner:
            raise LocalProtocolError(f"{owner} releases what {self.owner or 'nobody'} holds")
        self.owner = ""
        losers, self._losers = self._losers, []
        for loser in losers:
            loser.wake()
