"""Events that wait for a client in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from xenpv.store.path import SPECIAL


class EventQueue:
    """Events (path, token) that a local client has not taken yet, each of them once.

    Events of special names may repeat.
    """

    __slots__ = ("_queue", "_waiting")

    def __init__(self) -> None:
        self._queue: deque[tuple[bytes, bytes]] = deque()
        self._waiting: dict[tuple[bytes, bytes], None] = {}

    def push(self, event: tuple[bytes, bytes]) -> bool:
        """True: it is the only one."""
        waiting = self._waiting
        if event in waiting:
            return False
        if event[0][0] != SPECIAL:
            waiting[event] = None
        queue = self._queue
        queue.append(event)
        return len(queue) == 1

    def popleft(self) -> tuple[bytes, bytes]:
        event = self._queue.popleft()
        self._waiting.pop(event, None)
        return event

    def clear(self) -> None:
        self._queue.clear()
        self._waiting.clear()

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(self._queue)
