"""The two halves of a protocol's ring for drivers under test: bytes of slots become messages.

Below them are the model's own halves (bus/ring.py, back/ring.py): slots are copied once, indices
are the kernel's, and the checkers know both ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xenpv.testing.ends import End
    from xenpv.testing.ringkit.protocol import RingProtocol


class FrontRing:
    """Requests out, responses in. `ring` is the model's half."""

    def __init__(self, protocol: RingProtocol, end: End, pfns: Sequence[int]) -> None:
        self.protocol = protocol
        kind = protocol.kind
        self.ring = end.front_ring(pfns, kind.request_size, kind.response_size, kind=kind.name)

    @property
    def size(self) -> int:
        """Slots."""
        return self.ring.size

    @property
    def free(self) -> int:
        """Slots that may be filled now."""
        return self.ring.free

    @property
    def in_flight(self) -> int:
        """Requests published and not yet answered."""
        return self.ring.in_flight

    def push(self, *requests: bytes) -> bool:
        """Publish packed requests; True: notify the backend. LocalProtocolError: no room."""
        return self.ring.push(b"".join(requests), len(requests))

    def take(self) -> list[SimpleNamespace]:
        """The responses that are there. PeerProtocolError: more than were asked for."""
        count, packed = self.ring.take()
        size = self.ring.rsp_size
        read = self.protocol.read_response
        return [read(packed[at * size : (at + 1) * size]) for at in range(count)]

    def final_check(self) -> bool:
        """RING_FINAL_CHECK_FOR_RESPONSES: True if there is more; else an event will come."""
        return self.ring.final_check()

    def responses(self) -> Iterator[SimpleNamespace]:
        """All of them, those that come meanwhile too; an event will come for the next."""
        while True:
            yield from self.take()
            if not self.final_check():
                return


class BackRing:
    """Requests in, responses out. `ring` is the model's half."""

    def __init__(self, protocol: RingProtocol, end: End, pfns: Sequence[int]) -> None:
        self.protocol = protocol
        kind = protocol.kind
        self.ring = end.back_ring(pfns, kind.request_size, kind.response_size, kind=kind.name)

    @property
    def size(self) -> int:
        """Slots."""
        return self.ring.size

    @property
    def in_flight(self) -> int:
        """Requests taken and not yet answered."""
        return self.ring.in_flight

    def take(self, most: int | None = None) -> list[SimpleNamespace]:
        """Requests that are there, at most `most`: each a copy. PeerProtocolError: more than a
        ring of them.
        """
        count, packed = self.ring.take(most)
        size = self.ring.req_size
        read = self.protocol.read_request
        return [read(packed[at * size : (at + 1) * size]) for at in range(count)]

    def push(self, *responses: bytes) -> bool:
        """Publish packed responses, in slot order; True: notify the frontend."""
        return self.ring.push(b"".join(responses), len(responses))

    def final_check(self) -> bool:
        """RING_FINAL_CHECK_FOR_REQUESTS: True if there is more; else an event will come."""
        return self.ring.final_check()

    def requests(self) -> Iterator[SimpleNamespace]:
        """All of them, those that come meanwhile too; an event will come for the next."""
        while True:
            yield from self.take()
            if not self.final_check():
                return
