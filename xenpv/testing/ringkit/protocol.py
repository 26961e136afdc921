"""RingProtocol: what travels on a ring of io/ring.h, and how its two ends find each other.

    ECHO = RingProtocol.from_cdef(
        "echoif", TEXT, request="echo_request", response="echo_response", device="vecho"
    )
    ECHO.request(id=7, length=3)          # the bytes of one request
    ECHO.read_response(raw).status        # a field of a response

A slot is the union of both structs (DEFINE_RING_TYPES), a ring has as many as fit behind its
header, rounded down to a power of two (__RING_SIZE).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Self

import attrs

from xenpv.errors import LocalProtocolError
from xenpv.testing.ringkit.declaration import Declaration
from xenpv.view.rings import FIRST_SLOT, RingKind, declare
from xenpv.xen.domain import PAGE_SIZE

if TYPE_CHECKING:
    from xenpv.back.xenbus import Device
    from xenpv.testing.ends import End
    from xenpv.testing.raw_front import RawGuest
    from xenpv.testing.ringkit.rawends import RawRingBack, RawRingFront
    from xenpv.testing.ringkit.rings import BackRing, FrontRing

ENTRY_MAX: Final = 256  # bytes; back_push of kernel/ring.c, and more than any header of Xen's has
PAGES_MAX: Final = 16  # RING_MAX_PAGES of kernel/ring.c
KEY_ORDER: Final = "ring-page-order"


@attrs.frozen(eq=False, kw_only=True)
class RingProtocol:
    """A protocol over one ring and one event channel. Sizes are in bytes.

    `device` is its class in the store: device/<class>/<devid>, backend/<class>/.... `ring_ref`
    and `event_channel` are the keys in which a frontend says where its ring and port are; a ring
    of several pages has its references in ring_ref0, ring_ref1, ..., and `ring-page-order`.
    """

    name: str
    device: str
    declaration: Declaration
    kind: RingKind
    ring_ref: str
    event_channel: str
    _request: Any
    _response: Any

    @classmethod
    def from_cdef(
        cls,
        name: str,
        text: str,
        *,
        request: str,
        response: str,
        device: str,
        id: str = "id",  # noqa: A002 - the name of the field
        response_id: str | None = None,
        ring_ref: str = "ring-ref",
        event_channel: str = "event-channel",
        wait: bool = False,
    ) -> Self:
        """From the text of a header; `request` and `response` are structs in it.

        `id` is the field by which a response names its request, in both structs unless
        `response_id` says otherwise; "" if there is none. `wait`: requests are buffers for what
        may come, which lie on the ring unanswered. From here on rings of that name are decoded
        by these structs wherever xenpv shows one. LocalProtocolError: what is wrong with it.
        """
        declaration = Declaration(name, text)
        of_request, of_response = declaration.struct(request), declaration.struct(response)
        answers = id if response_id is None else response_id
        for struct, of, field in (
            (request, of_request, id),
            (response, of_response, answers),
        ):
            if field and field not in [one[0] for one in declaration.fields(of)]:
                raise LocalProtocolError(f"{name}: struct {struct} has no field {field}")
        kind = RingKind(
            name=name,
            device=device,
            request=request,
            response=response,
            request_size=declaration.size(of_request),
            response_size=declaration.size(of_response),
            request_id=id,
            response_id=answers if id else "",
            wait=wait,
            structs=tuple(
                (one, declaration.fields(of))
                for one, of in {request: of_request, response: of_response}.items()
            ),
        )
        if kind.entry_size > ENTRY_MAX:
            raise LocalProtocolError(
                f"{name}: slots of {kind.entry_size} bytes, at most {ENTRY_MAX} are supported"
            )
        return cls(
            name=name,
            device=device,
            declaration=declaration,
            kind=declare(kind),
            ring_ref=ring_ref,
            event_channel=event_channel,
            request=of_request,
            response=of_response,
        )

    def __repr__(self) -> str:
        return f"<RingProtocol {self.name}, slots of {self.entry_size} bytes>"

    @property
    def constants(self) -> SimpleNamespace:
        """What the text defines: `#define`s of integers and enumerators."""
        return self.declaration.constants

    @property
    def request_size(self) -> int:
        return self.kind.request_size

    @property
    def response_size(self) -> int:
        return self.kind.response_size

    @property
    def entry_size(self) -> int:
        """A slot: the union of both structs."""
        return self.kind.entry_size

    def ring_size(self, pages: int = 1) -> int:
        """Slots of a ring of that many pages."""
        fit = (pages * PAGE_SIZE - FIRST_SLOT) // self.entry_size
        return 1 << fit.bit_length() - 1

    # messages

    def request(self, **values: Any) -> bytes:
        """A request with these fields, all else zero; see Declaration.pack."""
        return self.declaration.pack(self._request, values)

    def response(self, **values: Any) -> bytes:
        """A response with these fields, all else zero."""
        return self.declaration.pack(self._response, values)

    def read_request(self, raw: bytes | memoryview) -> SimpleNamespace:
        """The fields of a request as plain values."""
        return self.declaration.read(self._request, raw)

    def read_response(self, raw: bytes | memoryview) -> SimpleNamespace:
        """The fields of a response as plain values."""
        return self.declaration.read(self._response, raw)

    def field(self, raw: bytes | memoryview, name: str, *, response: bool = False) -> int:
        """One scalar of a request, or of a response, unsigned: `id`, `seg[2].gref`. KeyError."""
        struct = self.kind.response if response else self.kind.request
        places = {one: (at, at + size) for one, at, size in dict(self.kind.structs)[struct]}
        first, end = places[name]
        return int.from_bytes(raw[first:end], "little")

    # ends

    def front_ring(self, end: End, pfns: Sequence[int]) -> FrontRing:
        """A frontend's half, initialised, over pages of its own. LocalProtocolError: too many."""
        from xenpv.testing.ringkit.rings import FrontRing

        return FrontRing(self, end, pfns)

    def back_ring(self, end: End, pfns: Sequence[int]) -> BackRing:
        """A backend's half over pages that it mapped. PeerProtocolError: no ring's indices."""
        from xenpv.testing.ringkit.rings import BackRing

        return BackRing(self, end, pfns)

    def raw_front(self, guest: RawGuest, devid: int = 0) -> RawRingFront:
        """A frontend in a test's hands."""
        from xenpv.testing.ringkit.rawends import RawRingFront

        return RawRingFront(self, guest, devid)

    def raw_back(self, device: Device) -> RawRingBack:
        """A backend in a test's hands."""
        from xenpv.testing.ringkit.rawends import RawRingBack

        return RawRingBack(self, device)
