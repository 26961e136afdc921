"""Requests of a guest to xenstored over the shared ring page (win-xenbus store.c).

A request is written to the ring, the port is notified, and the guest spins: xenstored's
upcall, and nothing else, runs until the reply is there. Watch events that arrive meanwhile
wake the task of their watch; no callback runs inside a request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NoReturn, Protocol

from xenpv.abi._kernel import ffi, lib
from xenpv.abi.layout import offsetof, packer
from xenpv.abi.xs import XS
from xenpv.bus.channel import Channel
from xenpv.bus.evtchn import EvtchnInterface
from xenpv.errors import PeerProtocolError, StoreError
from xenpv.xen.domain import Domain
from xenpv.xen.loop import Task

HEADER: Final = packer("xsd_sockmsg")
HEADER_SIZE: Final = HEADER.size
pack: Final = HEADER.pack
unpack: Final = HEADER.unpack_from
PAGE: Final = "xenstore_domain_interface"
RING_SIZE: Final[int] = lib.XENSTORE_RING_SIZE
REQ: Final = (
    offsetof(PAGE, "req"),
    RING_SIZE,
    offsetof(PAGE, "req_cons"),
    offsetof(PAGE, "req_prod"),
)
RSP: Final = (
    offsetof(PAGE, "rsp"),
    RING_SIZE,
    offsetof(PAGE, "rsp_cons"),
    offsetof(PAGE, "rsp_prod"),
)
PAYLOAD_MAX: Final[int] = lib.XENSTORE_PAYLOAD_MAX
TRANSACTION_START: Final[int] = lib.XS_TRANSACTION_START
TRANSACTION_END: Final[int] = lib.XS_TRANSACTION_END
WATCH_EVENT: Final[int] = lib.XS_WATCH_EVENT
ERROR: Final[int] = lib.XS_ERROR
_TYPES: Final = frozenset(int(one) for one in XS)


class Watch:
    """A registered watch: its events wake `task`, which is not told what changed.

    Where `concerns` is given, only events of which it says so by their path. One that a
    suspend made expire is never woken by an event again.
    """

    __slots__ = ("concerns", "expired", "id", "path", "task", "token")

    def __init__(
        self,
        path: str,
        token: bytes,
        number: int,
        task: Task,
        concerns: Callable[[bytes], bool] | None = None,
    ) -> None:
        self.path = path
        self.token = token
        self.id = number
        self.task = task
        self.concerns = concerns
        self.expired = False


class Neighbour(Protocol):
    """Another client on the same page: a kernel's backends have one, and no page of their own.

    It sends whole messages by `send`, waits by `spin`, and numbers its requests above 16 bits.
    """

    def take(self, kind: int, req_id: int, payload: bytes) -> bool:
        """A message that is not STORE's; False if it is not this one's either."""


class StoreTransport:
    """The ring page `pfn` of `domain`, and its channel once that is open."""

    channel: Channel

    def __init__(self, domain: Domain, evtchn: EvtchnInterface, pfn: int) -> None:
        self.domain = domain
        self.pfn = pfn
        self.requests = 0
        self.broken = ""  # why nothing is read any more: xenstored's indices cannot be
        self.dropped = 0  # replies and events that matched nothing
        self.neighbour: Neighbour | None = None
        self._evtchn = evtchn
        self._received = bytearray()
        self._partial_at = 0  # rsp_cons behind the bytes in it
        self._attach()
        self._replies: list[tuple[int, bytes]] = []  # of the latest requests, in their order
        self._tokens: dict[bytes, Watch] = {}  # of the watches that events are for
        self._req_id = 0
        self._waiting_for = -1
        self._waiting_last = -1  # of several requests that were sent at once

    def _attach(self) -> None:
        """To the kernel's copies of byte streams, over the page."""
        kernel, pfn = self.domain.kernel, self.pfn
        self._chunk = bytearray(RING_SIZE)
        self._view = memoryview(self._chunk)
        # Bytes to the front of the chunk, and bytes and their number into the ring; how many.
        pointer = ffi.from_buffer(self._chunk)
        self._get = partial(lib.stream_get, kernel, pfn, *RSP, pointer, RING_SIZE)
        self._put = partial(lib.stream_put, kernel, pfn, *REQ)

    def __getstate__(self) -> dict[str, Any]:
        """Without what `_attach` makes."""
        state = vars(self).copy()
        for name in ("_chunk", "_view", "_get", "_put"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._attach()

    def _indices(self) -> tuple[int, int, int, int]:
        """req_prod, req_cons, rsp_prod, rsp_cons."""
        load, pfn = self.domain.load32, self.pfn
        return load(pfn, REQ[3]), load(pfn, REQ[2]), load(pfn, RSP[3]), load(pfn, RSP[2])

    def _event(self) -> None:
        """The channel's: what xenstored wrote must not stop the guest."""
        if self.broken:
            return
        try:
            self.pump()
        except PeerProtocolError as error:
            self.broken = str(error)

    def pump(self) -> None:
        """Read what is in the response ring: a reply is kept, watch events wake tasks."""
        count = self._get()
        received = self._received
        if count < 0:
            self.domain.fail(count, "xenstore ring")
        elif received or count == RING_SIZE:
            self._pump_on(count)
        elif count:
            # All there is: what is written after this look comes with an event of its own.
            self._evtchn.send(self.channel)
            done = self._parse(self._view, count)
            if done < count:
                received += self._view[done:count]
                self._partial_at = self._indices()[3]

    def _pump_on(self, count: int) -> None:
        """`count` bytes are in the chunk, behind others or before others."""
        received = self._received
        moved = False
        while count > 0:
            moved = True
            received += self._view[:count]
            count = self._get() if count == RING_SIZE else 0
        if count < 0:
            self.domain.fail(count, "xenstore ring")
        if moved:
            self._evtchn.send(self.channel)
            with memoryview(received) as view:
                done = self._parse(view, len(received))
            del received[:done]
            if received:
                self._partial_at = self._indices()[3]

    def _drop_partial(self) -> None:
        """After a resume: a message that began in another domain's ring has no end.

        The driver drops it in any case; in the same domain the end is still to come.
        """
        if self._received and self._indices()[3] != self._partial_at:
            self._received.clear()

    def _parse(self, received: memoryview, end: int) -> int:
        """Handle the whole messages in `end` bytes; the bytes that they take."""
        at = 0
        while end - at >= HEADER_SIZE:
            kind, req_id, _tx_id, length = unpack(received, at)
            if length > PAYLOAD_MAX:
                # A reply that cannot be: the driver would overrun, this one stops listening.
                self.dropped += 1
                return end
            start = at + HEADER_SIZE
            if end - start < length:
                break
            at = start + length
            if kind == WATCH_EVENT:
                self._fire(bytes(received[start:at]))
            elif req_id == self._waiting_for:
                last = req_id == self._waiting_last
                self._waiting_for = -1 if last else (req_id + 1) & 0xFFFF
                self._replies.append((kind, bytes(received[start:at])))
            else:
                self._pass_on(kind, req_id, bytes(received[start:at]))
        return at

    def _pass_on(self, kind: int, req_id: int, payload: bytes) -> None:
        if self.neighbour is None or not self.neighbour.take(kind, req_id, payload):
            self.dropped += 1

    def _fire(self, payload: bytes) -> None:
        """Wake the task of the watch that an event is for."""
        parts = payload.split(b"\0", 2)
        watch = self._tokens.get(parts[1]) if len(parts) == 3 else None
        if watch is None:
            self._pass_on(WATCH_EVENT, 0, payload)
        elif watch.concerns is None or watch.concerns(parts[0]):
            watch.task.wake()

    def send(self, message: bytes) -> None:
        """A whole message into the ring; xenstored runs while there is no room. StoreError EIO."""
        while True:
            size = len(message)
            count = self._put(message, size)
            if count < 0:
                self.domain.fail(count, "xenstore ring")
            if count:
                self._evtchn.send(self.channel)
            if count == size:
                return
            message = message[count:]
            self.spin()

    def spin(self) -> None:
        """Let xenstored run until it said something. StoreError EIO if it does not."""
        if not self._evtchn.poll(self.channel):
            raise StoreError("EIO", "xenstored does not answer")
        self.pump()

    def request(self, kind: int, payload: bytes, tx_id: int = 0) -> bytes:
        """One request and its reply's payload, of any type; raises StoreError."""
        size = len(payload)
        if size > PAYLOAD_MAX:
            self._refuse(kind, payload, "E2BIG", f"{size} bytes; a request has at most 4096")
        self._req_id = self._waiting_for = self._waiting_last = req_id = (self._req_id + 1) & 0xFFFF
        self.requests += 1
        replies = self._replies
        if replies:
            replies.clear()
        try:
            self.send(pack(kind, req_id, tx_id, size) + payload)
            while not replies:
                self.spin()
        except StoreError as error:
            self._refuse(kind, payload, error.name, error.reason)
        answer, body = replies.pop()
        if answer == ERROR:
            self._refuse(kind, payload, body.rstrip(b"\0").decode("ascii", "replace"))
        return body

    def request_many(
        self, requests: Sequence[tuple[int, bytes]], tx_id: int = 0
    ) -> list[bytes | StoreError]:
        """Types and payloads; the reply's payload of each, or what it was refused with, in order.

        As many at once as the ring has room for: one look at it for all, not one for each.
        xenstored answers a client's requests in their order. StoreError EIO: not at all.
        """
        answers: list[bytes | StoreError] = []
        at = 0
        while at < len(requests):
            message, count = b"", 0
            first = (self._req_id + 1) & 0xFFFF
            for kind, payload in requests[at:]:
                size = len(payload)
                if count and len(message) + HEADER_SIZE + size > RING_SIZE:
                    break
                if size > PAYLOAD_MAX:
                    self._refuse(kind, payload, "E2BIG", f"{size} bytes; at most 4096")
                self._req_id = (self._req_id + 1) & 0xFFFF
                message += pack(kind, self._req_id, tx_id, size) + payload
                count += 1
            self._waiting_for, self._waiting_last = first, self._req_id
            answers += self._exchange(message, requests[at : at + count])
            at += count
        return answers

    def _exchange(
        self, message: bytes, requests: Sequence[tuple[int, bytes]]
    ) -> list[bytes | StoreError]:
        """Send whole requests, whose ids are waited for, and take the replies to all of them."""
        self.requests += len(requests)
        replies = self._replies
        replies.clear()
        try:
            self.send(message)
            while len(replies) < len(requests):
                self.spin()
        except StoreError as error:
            self._refuse(*requests[len(replies)], error.name, error.reason)
        taken = list(zip(requests, replies, strict=True))
        replies.clear()
        return [
            self._refusal(*request, body.rstrip(b"\0").decode("ascii", "replace"))
            if answer == ERROR
            else body
            for request, (answer, body) in taken
        ]

    @classmethod
    def _refuse(cls, kind: int, payload: bytes, name: str, reason: str = "") -> NoReturn:
        raise cls._refusal(kind, payload, name, reason)

    @staticmethod
    def _refusal(kind: int, payload: bytes, name: str, reason: str = "") -> StoreError:
        first = payload.split(b"\0", 1)[0].decode("utf-8", "replace")
        operation = XS(kind).name if kind in _TYPES else f"type {kind}"
        if kind in (TRANSACTION_START, TRANSACTION_END):
            first = ""
        return StoreError(name, reason, operation=operation, path=first)
