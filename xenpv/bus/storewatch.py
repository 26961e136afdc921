"""Watches of a guest that call back with the path that changed.

XenBus' own watches only set an event. This is what a test or another client wants: the token
is managed here, the callback runs in a task of its own, never inside a request, and nothing
is called after the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from xenpv.bus.store_client import StoreClient
    from xenpv.bus.store_transport import Watch

EVENTS_MAX: Final = 4096  # that one watch queues; more are counted as dropped


class CallbackWatch:
    """`changed(path)` for each event at or below `path`, in order, and once for the start.

    The paths are as the event names them: relative for a relative watch. Every event that
    came through the ring is called for, also equal ones.
    """

    def __init__(self, store: StoreClient, path: str, changed: Callable[[str], object]) -> None:
        self.path = path
        self.active = True
        self._store = store
        self._changed = changed
        self._events: deque[str] = deque()
        self._task = store.domain.task(f"watch {path}", self._deliver)
        try:
            self.watch: Watch = store.watch_add(path, self._task, self._queue)
        except BaseException:
            self._stop()
            raise

    def _queue(self, path: bytes) -> bool:
        """An event came in; True wakes the task."""
        if len(self._events) >= EVENTS_MAX:
            self._store.dropped += 1
            return False
        self._events.append(path.decode("utf-8", "replace"))
        return True

    def _deliver(self) -> None:
        """What is queued now; what a callback causes comes with the task's next run."""
        for _ in range(len(self._events)):
            if not self.active:
                return
            self._changed(self._events.popleft())

    def _stop(self) -> None:
        self.active = False
        self._events.clear()
        self._task.retire()
        self._store.domain.forget(self._task)

    def unwatch(self) -> None:
        """No call after this one, whatever is under way. Raises StoreError if it is refused.

        A second time it does nothing.
        """
        if self.active:
            self._stop()
            self._store.watch_remove(self.watch)
