"""Where events wait that a guest does not read, as oxenstored bounds them (XSA-326).

A connection's output holds so many events, then each of its watches as many again; whatever
comes after that blocks the guest that caused it, whose requests are not read until there is
room. Causes that cannot wait, which are clients of dom0, lose those events.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xenpv.store.connection import Connection
    from xenpv.store.watch import Watch


class Overflow:
    """The events of one connection beyond `limit` in its output.

    `sent` are those in the output. `later` follow, each with its watch; `waiting` says how
    many of them are of a watch, `held` who caused those beyond its limit, oldest first.
    """

    __slots__ = ("held", "later", "limit", "sent", "waiting")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.sent = 0
        self.later: deque[tuple[Watch | None, bytes]] = deque()
        self.waiting: dict[Watch | None, int] = {}
        self.held: dict[Watch | None, deque[Connection]] = {}

    def push(self, watch: Watch | None, message: bytes, cause: Connection | None) -> bool:
        """Keeps an event for later; False if there is no room and `cause` cannot wait."""
        waiting = self.waiting.get(watch, 0)
        if waiting >= self.limit:
            if cause is None or cause.privileged:
                return False
            self.held.setdefault(watch, deque()).append(cause)
            cause.blocked += 1
        self.waiting[watch] = waiting + 1
        self.later.append((watch, message))
        return True

    def pop(self) -> bytes:
        """The first that waits; who caused one that takes its place may go on."""
        watch, message = self.later.popleft()
        self.waiting[watch] -= 1
        if not self.waiting[watch]:
            del self.waiting[watch]
        held = self.held.get(watch)
        if held:
            cause = held.popleft()
            if not held:
                del self.held[watch]
            cause.unblock()
        return message

    def clear(self) -> int:
        """Drops all that waits, and lets everybody go on; its bytes."""
        size = sum(len(message) for _, message in self.later)
        self.later.clear()
        self.waiting.clear()
        held, self.held = self.held, {}
        for causes in held.values():
            for cause in causes:
                cause.unblock()
        return size
