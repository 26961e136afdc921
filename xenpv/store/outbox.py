"""What a client is sent: replies, and events in the order and number that it may have them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from xenpv.abi._kernel import lib
from xenpv.store.eventqueue import EventQueue
from xenpv.store.expiry import Backlog
from xenpv.store.overflow import Overflow
from xenpv.store.path import SPECIAL
from xenpv.store.wire import HEADER, PAYLOAD_MAX

if TYPE_CHECKING:
    from xenpv.store.domain import Domain
    from xenpv.store.server import Xenstored
    from xenpv.store.watch import Watch

XS_WATCH_EVENT: Final[int] = lib.XS_WATCH_EVENT
HEADER_SIZE: Final = HEADER.size

_pack = HEADER.pack


class Wakeup(Protocol):
    """Whoever is told that there is something to do: a task of the loop."""

    def wake(self) -> None: ...


class Request:
    """One request of an unprivileged ring: outstanding until its reply and events are out."""

    __slots__ = ("domain", "left")

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.left = 1


# A message to send: its bytes, its payload if a second one like it would be dropped, and
# the request that it belongs to.
Message = tuple[bytes, bytes | None, Request | None]


class Outbox:
    """The output of one client, and what holds it back.

    `local` clients find events in `events`, others in their output. `on_event` is woken when
    a queue that was empty gets an event, or when a ring may be read again. `waiting` is what a
    ring's transport noted of the output that it could not send. `blocked` counts the events
    that others have no room for and that this one caused (store.overflow).
    """

    __slots__ = (
        "_answering",
        "_held",
        "_taken",
        "_unsent",
        "blocked",
        "domain",
        "events",
        "first_event",
        "local",
        "on_event",
        "output",
        "overflow",
        "privileged",
        "server",
        "waiting",
    )

    def __init__(self, server: Xenstored, domain: Domain, *, local: bool) -> None:
        self.server = server
        self.domain = domain
        self.privileged = domain is server.owner
        self.local = local
        self.on_event: Wakeup | None = None
        self.events = EventQueue()
        self.first_event: tuple[bytes, bytes] | None = None
        self._answering = False
        # Own events, until the reply is out.
        self._held: list[tuple[bytes, bytes, Watch | None]] | None = None
        self.blocked = 0
        events_max = 0 if self.privileged else server.profile.events_max
        self.overflow = Overflow(events_max) if events_max else None
        self.output: deque[Message] = deque()
        self._taken = 0
        self.waiting = Backlog()
        self._unsent: dict[bytes, None] = {}

    def send_event(self, path: bytes, token: bytes, watch: Watch | None = None) -> None:
        """Queues an event of `watch`, unless it is too long (XSA-324) or waits there already."""
        size = len(path) + len(token) + 2
        if size > PAYLOAD_MAX:
            return
        if self.local:
            on_event = self.on_event
            if self.events.push((path, token)) and on_event is not None:
                on_event.wake()
            return
        if self._held is not None:
            self._held.append((path, token, watch))
            return
        payload = b"\0".join((path, token, b""))
        if self.overflow is not None:
            self._send_bounded(_pack(XS_WATCH_EVENT, 0, 0, size) + payload, watch, self.overflow)
            return
        key = None
        if path[0] != SPECIAL and self.server.profile.coalesces:
            if payload in self._unsent:
                return
            key = payload
        if not self.privileged:
            domain = self.domain
            memory = domain.memory + size + HEADER_SIZE
            if 0 < domain.limits.memory <= memory:
                return
            domain.memory = memory
        if key is not None:
            self._unsent[key] = None
        # A watch's first event belongs to no request: it follows the reply.
        request = self.server.request
        if request is not None:
            request.left += 1
        output = self.output
        # First to wait, or first behind those of which it is noted since when they do.
        first = len(output) == self.waiting.noted
        output.append((_pack(XS_WATCH_EVENT, 0, 0, size) + payload, key, request))
        if first and not self._answering:
            self.wake()

    def _send_held(self) -> None:
        """The events that follow a reply: the caller's own, or a watch's first."""
        held, self._held = self._held, None
        for path, token, watch in held or ():
            self.send_event(path, token, watch)
        if self.first_event is not None:
            self._send_first_event()

    def _send_bounded(self, message: bytes, watch: Watch | None, overflow: Overflow) -> None:
        output = self.output
        if not overflow.later and overflow.sent < overflow.limit + self._begun_event:
            overflow.sent += 1
            output.append((message, None, None))
        elif not overflow.push(watch, message, self.server.cause):
            return
        self.domain.memory += len(message)
        if len(output) == 1 and not self._answering:
            self.wake()

    @property
    def _begun_event(self) -> bool:
        """Is the message that is partly sent an event? It has no place in the queue any more."""
        return self._taken > 0 and self.output[0][0][0] == XS_WATCH_EVENT

    def _refill(self, overflow: Overflow) -> None:
        """Output from what waits behind it, as far as there is room."""
        room = overflow.limit + self._begun_event
        while overflow.later and overflow.sent < room:
            overflow.sent += 1
            self.output.append((overflow.pop(), None, None))

    def unblock(self) -> None:
        """One event that this one caused has found room."""
        self.blocked -= 1
        if not self.blocked:
            self.domain.release(0)

    def answer_last(self) -> None:
        """The rest of this request's events precede its reply, whatever the profile."""
        self._held = None

    def _send_first_event(self) -> None:
        assert self.first_event is not None
        path, token = self.first_event
        self.first_event = None
        self.send_event(path, token)

    def wake(self) -> None:
        if self.on_event is not None:
            self.on_event.wake()

    @property
    def backlog(self) -> int:
        """Messages that wait for the client to read."""
        return len(self.output)

    def sent(self, count: int) -> None:
        """`count` bytes of the output are on their way."""
        output = self.output
        count += self._taken
        released = 0
        before = len(output)
        overflow = self.overflow
        while output:
            data, key, request = output[0]
            size = len(data)
            if count < size:
                break
            count -= size
            released += size
            if overflow is not None and data[0] == XS_WATCH_EVENT:
                overflow.sent -= 1
            del output[0]
            if key is not None:
                del self._unsent[key]
            if request is not None:
                request.left -= 1
                if not request.left:
                    request.domain.answered()
        self._taken = count
        if overflow is not None and overflow.later:
            self._refill(overflow)
        if self.waiting.noted:
            self.waiting.left(before - len(output))
        if not self.privileged:
            self.domain.release(released)

    @property
    def is_partly_sent(self) -> bool:
        """Has the client got some bytes of the first message that waits?"""
        return self._taken > 0

    def dropped(self, messages: Sequence[Message]) -> None:
        """Messages of the output, none of them begun, will not be sent: let go of all they hold."""
        for _, key, request in messages:
            if key is not None:
                del self._unsent[key]
            if request is not None:
                request.left -= 1
                if not request.left:
                    request.domain.answered()
        if not self.privileged:
            self.domain.release(sum(len(data) for data, _, _ in messages))
