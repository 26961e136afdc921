"""Raw ends of a protocol: the guest's device directory, grants, ports and states in a test's hands.

As testing/raw_front.py and raw_back.py have them of disks and interfaces: what they put on the wire
is what their caller said.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final

from xenpv.abi.xenbus import XenbusState
from xenpv.back.ring import BackRing
from xenpv.back.xenbus import Device
from xenpv.bus.ring import FrontRing
from xenpv.errors import PeerProtocolError
from xenpv.testing.ends.guard import UNFIT
from xenpv.testing.raw_back import BLK_ANSWERS, RawBack
from xenpv.testing.raw_front import RawFront, RawGuest
from xenpv.testing.ringkit.protocol import KEY_ORDER, PAGES_MAX
from xenpv.testing.sring import RawBackSring, RawPages, RawSring
from xenpv.view.rings import by_hand
from xenpv.xen.domain import Domain

if TYPE_CHECKING:
    from xenpv.testing.ringkit.protocol import RingProtocol

READY: Final = (XenbusState.INITIALISED, XenbusState.CONNECTED)


class ProtocolSring(RawSring):
    """A frontend's side of a protocol's ring, over `pages` adjacent pages of its own."""

    def __init__(self, protocol: RingProtocol, domain: Domain, pfn: int, pages: int) -> None:
        kind = protocol.kind
        pfns = tuple(range(pfn, pfn + pages))
        self.pfn = pfn
        self.ring = FrontRing(
            domain,
            pfns,
            req_size=kind.request_size,
            rsp_size=kind.response_size,
            kind=kind.name,
        )
        by_hand(self.ring.handle)
        RawPages.__init__(self, domain, pfns, kind.entry_size, self.ring.size)


class ProtocolBackSring(RawBackSring):
    """A backend's side, over pages of the frontend that are mapped at `pfns`."""

    def __init__(self, protocol: RingProtocol, domain: Domain, pfns: tuple[int, ...]) -> None:
        """PeerProtocolError: the indices in the page cannot be a ring's."""
        kind = protocol.kind
        self.ring = BackRing(
            domain,
            pfns,
            req_size=kind.request_size,
            rsp_size=kind.response_size,
            kind=kind.name,
        )
        by_hand(self.ring.handle)
        RawPages.__init__(self, domain, pfns, kind.entry_size, self.ring.size)


class RawRingFront(RawFront):
    """A frontend of one ring of `1 << order` pages. `sring` stands from `attach` on.

    `extra_keys` are written with those of the ring before it connects.
    """

    def __init__(
        self, protocol: RingProtocol, guest: RawGuest, devid: int = 0, *, order: int = 0
    ) -> None:
        self.kind = protocol.device
        super().__init__(guest, devid)
        self.protocol = protocol
        self.order = order
        self.extra_keys: dict[str, str] = {}
        self.refs: list[int] = []
        self.sring: ProtocolSring

    def attach(self) -> None:
        super().attach()
        pages = 1 << self.order
        pfn = self.guest.page(pages)
        self.refs = [self.guest.grant(pfn + at) for at in range(pages)]
        self.sring = ProtocolSring(self.protocol, self.domain, pfn, pages)

    def keys(self) -> dict[str, str]:
        ref, port = self.protocol.ring_ref, self.protocol.event_channel
        keys = {ref: str(self.refs[0])}
        if self.order:
            keys = {f"{ref}{at}": str(one) for at, one in enumerate(self.refs)}
            keys[KEY_ORDER] = str(self.order)
        return {**keys, port: str(self.port), **self.extra_keys, "state": "3"}

    def finish(self) -> None:
        super().finish()
        self.state = XenbusState.CONNECTED

    def send(self, *requests: bytes) -> None:
        """Publish packed requests as an honest frontend does. LocalProtocolError: no room."""
        if self.sring.push(b"".join(requests), len(requests)):
            self.notify()

    def take(self) -> list[SimpleNamespace]:
        """The responses that are there now, their fields.

        PeerProtocolError: the backend's index is ahead of the requests in flight.
        """
        return [self.protocol.read_response(one) for one in self.sring.take()]

    def call(self, *requests: bytes) -> list[SimpleNamespace]:
        """Send, let everything happen, take."""
        self.send(*requests)
        self.platform.run()
        return self.take()


class RawRingBack(RawBack):
    """A backend of one ring: `sring` stands while it is connected.

    While `hold` is False each request is answered as it comes, by what `respond(request)` packs;
    None of it: left unanswered. `features` and `keys` are written as in RawBack.
    """

    ready = READY

    def __init__(self, protocol: RingProtocol, device: Device) -> None:
        super().__init__(device, answers=BLK_ANSWERS, features={}, keys={})
        self.protocol = protocol
        self.hold = False
        self.respond: Callable[[SimpleNamespace], bytes | None] | None = None
        self.taken: list[SimpleNamespace] = []  # every request that was taken
        self.sring: ProtocolBackSring

    def attach(self) -> None:
        device, protocol = self.device, self.protocol
        order = device.frontend_number(KEY_ORDER, 0)
        if 1 << min(order, PAGES_MAX) > PAGES_MAX:
            raise PeerProtocolError(f"{KEY_ORDER} {order}: more pages than {PAGES_MAX}")
        ref = protocol.ring_ref
        names = [f"{ref}{at}" for at in range(1 << order)] if order else [ref]
        pfns = tuple(self.map(device.frontend_number(name, 0)) for name in names)
        self.sring = ProtocolBackSring(protocol, self.domain, pfns)
        self.bind(device.frontend_number(protocol.event_channel, 0))
        for key, value in self.keys.items():
            device.write(key, value)

    def take(self) -> list[SimpleNamespace]:
        """The requests that are there now, their fields; an event comes at the next one.

        PeerProtocolError: the frontend's index runs past the ring.
        """
        found = [self.protocol.read_request(one) for one in self.sring.take()]
        self.taken += found
        return found

    def event(self) -> None:
        super().event()
        if not self.hold and self.connected and self.respond is not None:
            try:
                self._serve(self.respond)
            except UNFIT as error:  # the frontend is gone, or wrong
                self.device.fatal(str(error))

    def _serve(self, respond: Callable[[SimpleNamespace], bytes | None]) -> None:
        for request in self.take():
            answer = respond(request)
            if answer is not None:
                self.answer(answer)

    def answer(self, *responses: bytes) -> None:
        """Publish packed responses; an event if the frontend asks."""
        if self.sring.push(b"".join(responses), len(responses)):
            self.notify()
