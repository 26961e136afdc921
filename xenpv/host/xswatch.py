"""The toolstack's watches: what it has to see while it is there (libxl_event.c, ev_xswatch).

Most of what libxl waits for stays so once it is reached, and is looked at when the loop rests.
A state that the other side may leave again is seen by a watch alone.
"""

from __future__ import annotations

from collections.abc import Callable

from xenpv.host.xs import XsHandle
from xenpv.xen.domain import Domain


class XsWatches:
    """The watches of one handle; `changed()` runs in the loop and may not wait."""

    def __init__(self, control: Domain, xs: XsHandle) -> None:
        self.xs = xs
        self._watches: dict[str, tuple[str, Callable[[], object]]] = {}
        self._tokens = 0
        self._task = control.task("libxl watches", self._deliver)
        xs.connection.on_event = self._task

    def __len__(self) -> int:
        return len(self._watches)

    def add(self, path: str, changed: Callable[[], object]) -> str:
        """The token, for `remove`."""
        self._tokens += 1
        token = f"{self._tokens:x}"
        self._watches[token] = path, changed
        self.xs.watch(path, token)
        return token

    def remove(self, token: str) -> None:
        path, _changed = self._watches.pop(token)
        self.xs.unwatch(path, token)

    def _deliver(self) -> None:
        events = self.xs.connection.events
        for _ in range(len(events)):
            _path, token = events.popleft()
            found = self._watches.get(token.decode())
            if found is not None:
                found[1]()
        if events:
            self._task.wake()
