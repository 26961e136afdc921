"""Honest ends to build a driver on: the handshake, the ring and the port are theirs.

    class EchoBackend(RingBackend):
        protocol = ECHO

        def serve(self, request):
            return ECHO.response(id=request.id)

Nothing asks for these classes: a driver may do all of it itself with its End.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, ClassVar

from xenpv.abi.xenbus import XenbusState
from xenpv.errors import PeerProtocolError
from xenpv.testing.ends.handshake import ConnectingBackend, ConnectingFrontend
from xenpv.testing.ringkit.protocol import KEY_ORDER, PAGES_MAX

if TYPE_CHECKING:
    from xenpv.testing.ends import End
    from xenpv.testing.ringkit.protocol import RingProtocol
    from xenpv.testing.ringkit.rings import BackRing, FrontRing


class RingBackend(ConnectingBackend):
    """A backend of one ring. `serve` answers a request, now or later."""

    protocol: ClassVar[RingProtocol]

    def __init__(self, end: End) -> None:
        super().__init__(end)
        self.port = 0
        self.pfns: list[int] = []
        self.ring: BackRing

    def connect(self) -> None:
        """Map what the frontend's keys name, bind its port."""
        end, protocol = self.end, self.protocol
        order = end.peer_number(KEY_ORDER)
        if 1 << min(order, PAGES_MAX) > PAGES_MAX:
            raise PeerProtocolError(f"{KEY_ORDER} {order}: more pages than {PAGES_MAX}")
        ref = protocol.ring_ref
        for key in [f"{ref}{at}" for at in range(1 << order)] if order else [ref]:
            self.pfns.append(end.map(end.peer_number(key)))
        self.ring = protocol.back_ring(end, self.pfns)
        self.port = end.bind_port(end.peer_number(protocol.event_channel), self.event)

    def disconnect(self) -> None:
        """Undo it, or the part of it that was done."""
        port, pfns = self.port, self.pfns
        self.port, self.pfns = 0, []
        if port:
            self.end.close_port(port)
        for pfn in pfns:
            self.end.unmap(pfn)

    def event(self) -> None:
        """Serve what is on the ring until nothing is."""
        for request in self.ring.requests():
            response = self.serve(request)
            if response is not None:
                self.answer(response)

    def serve(self, request: SimpleNamespace) -> bytes | None:
        """The packed response; None: it is given to `answer` later."""
        raise NotImplementedError(f"{type(self).__name__} has no serve()")

    def answer(self, response: bytes) -> None:
        """Publish one, and tell the frontend if it asks."""
        if self.ring.push(response):
            self.end.notify(self.port)


class RingFrontend(ConnectingFrontend):
    """A frontend of one ring of `1 << order` pages. `answered` hears of each response."""

    protocol: ClassVar[RingProtocol]
    order: ClassVar[int] = 0

    def __init__(self, end: End) -> None:
        super().__init__(end)
        self.port = 0
        self.shared: list[tuple[int, int]] = []  # pfn and reference of each page
        self.ring: FrontRing

    def connect(self) -> None:
        """A ring of its own, a port, and the keys that name them."""
        end, protocol = self.end, self.protocol
        first = end.page(1 << self.order)
        for pfn in range(first, first + (1 << self.order)):
            self.shared.append((pfn, end.grant(pfn)))
        self.ring = protocol.front_ring(end, [pfn for pfn, _ in self.shared])
        self.port = end.open_port(self.event)
        ref = protocol.ring_ref
        keys = {ref: str(self.shared[0][1])}
        if self.order:
            keys = {f"{ref}{at}": str(one[1]) for at, one in enumerate(self.shared)}
            keys[KEY_ORDER] = str(self.order)
        end.write_keys({**keys, protocol.event_channel: str(self.port)})

    def disconnect(self) -> None:
        """Take the ring back; what the backend still has mapped is set aside."""
        port, shared = self.port, self.shared
        self.port, self.shared = 0, []
        if port:
            self.end.close_port(port)
        for pfn, ref in shared:
            self.end.unshare(pfn, ref)

    @property
    def can_send(self) -> bool:
        """Whether both ends are Connected and a slot is free."""
        return self.end.state is XenbusState.CONNECTED and bool(self.port) and self.ring.free > 0

    def send(self, request: bytes) -> None:
        """Publish one, and tell the backend if it asks. LocalProtocolError: no slot is free."""
        if self.ring.push(request):
            self.end.notify(self.port)

    def event(self) -> None:
        """Take what is on the ring until nothing is."""
        for response in self.ring.responses():
            self.answered(response)

    def answered(self, response: SimpleNamespace) -> None:
        """A response came; its fields are worth no trust."""
        raise NotImplementedError(f"{type(self).__name__} has no answered()")
