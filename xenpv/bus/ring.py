"""The frontend's half of a shared ring (FRONT_RING_* of public/io/ring.h).

The kernel copies slots and moves indices; nothing here reads a slot in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import ENOSPC
from typing import Any, Final

import attrs

from xenpv.abi._kernel import ffi, lib
from xenpv.errors import LocalProtocolError
from xenpv.xen.domain import Domain
from xenpv.xen.trace import Event

# Looked up once: each is called for every batch.
front_push: Final = lib.front_push
front_reap: Final = lib.front_reap

MORE: Final = 1 << 16  # of front_reap

U32: Final = 0xFFFF_FFFF


@attrs.frozen
class RingIndices:
    """A ring as its frontend sees it at one moment; only the last three are its own word.

    Numbers of requests and responses are differences modulo 2^32, whatever the page says.
    """

    req_prod: int
    req_event: int
    rsp_prod: int
    rsp_event: int
    req_prod_pvt: int
    rsp_cons: int
    size: int

    @property
    def in_flight(self) -> int:
        """Requests published and not answered, as far as responses were taken."""
        return (self.req_prod_pvt - self.rsp_cons) & U32

    @property
    def responses(self) -> int:
        """Responses that the frontend has not taken."""
        return (self.rsp_prod - self.rsp_cons) & U32

    @property
    def unanswered(self) -> int:
        """Requests without a response in the ring."""
        return (self.req_prod_pvt - self.rsp_prod) & U32

    @property
    def not_taken(self) -> int | None:
        """Requests that a backend which sleeps has not taken; None: it does not ask for an event.

        With its last look (RING_FINAL_CHECK_FOR_REQUESTS) it sets req_event to the request
        after the last that it took.
        """
        behind = (self.req_prod_pvt + 1 - self.req_event) & U32
        return behind if behind <= self.unanswered else None

    @property
    def wrong(self) -> str:
        """Why these cannot be the indices of a ring, or nothing."""
        if self.req_prod != self.req_prod_pvt:
            return f"req_prod is not the {self.req_prod_pvt:08x} that was published"
        if self.responses > self.in_flight:
            return f"rsp_prod is ahead of the {self.in_flight} in flight"
        return ""


class FrontRing:
    """Requests out, responses in, over pages of `domain` that the backend maps.

    `size` slots of `entry_size` bytes; requests and responses are `req_size` and
    `rsp_size` bytes of a slot. PeerProtocolError: the backend's producer index is more
    than what is in flight ahead of what was consumed. `kind` is what the ring is called by who
    looks at it (view/rings.py).
    """

    def __init__(
        self,
        domain: Domain,
        pfns: Sequence[int],
        *,
        req_size: int,
        rsp_size: int,
        kind: str = "",
    ) -> None:
        self.domain = domain
        self.pfns = tuple(pfns)
        self.kind = kind
        self.req_size = req_size
        self.rsp_size = rsp_size
        self._attach()
        domain.check(lib.ring_init(self._handle))

    def _attach(self) -> None:
        """The kernel's handle, and room for a ring of responses."""
        domain = self.domain
        self._publication = domain.trace.mark(Event.PUBLISH, domain.domid, self.pfns[0])
        self._record = domain.trace.words.append
        size = max(self.req_size, self.rsp_size)
        handle = domain.ring(self.pfns, size, self.rsp_size, self.kind)
        self._handle: Any = handle
        self.size: int = lib.ring_size(handle)
        self._responses = bytearray(self.size * self.rsp_size)
        self._out = ffi.from_buffer(self._responses)
        self._view = memoryview(self._responses)

    def __getstate__(self) -> dict[str, Any]:
        """What is the frontend's own: the rest lies in the pages."""
        names = ("domain", "pfns", "req_size", "rsp_size", "kind")
        state = {name: getattr(self, name) for name in names}
        return {**state, "req_prod": self.req_prod, "rsp_cons": self.rsp_cons}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """HypercallError(EFAULT) if a page is not there."""
        req_prod, rsp_cons = state.pop("req_prod"), state.pop("rsp_cons")
        vars(self).update(state)
        self._attach()
        lib.ring_seek(self._handle, req_prod, rsp_cons)

    @property
    def handle(self) -> Any:
        """The kernel's ring."""
        return self._handle

    @property
    def free(self) -> int:
        """RING_FREE_REQUESTS: slots that may be filled now."""
        return int(lib.front_free(self._handle))

    @property
    def in_flight(self) -> int:
        """Requests published and not yet answered."""
        return int(lib.front_inflight(self._handle))

    @property
    def req_prod(self) -> int:
        return int(lib.ring_prod_pvt(self._handle))

    @property
    def rsp_cons(self) -> int:
        return int(lib.ring_cons(self._handle))

    def push(self, requests: bytes | bytearray, count: int) -> bool:
        """Publish `count` packed requests; True if the backend asked to be notified."""
        # cffi takes bytes as they are, in half the time.
        data = requests if type(requests) is bytes else ffi.from_buffer(requests)
        notify: int = front_push(self._handle, data, count, self.req_size)
        if notify < 0:
            if notify == -ENOSPC:
                raise LocalProtocolError(f"{count} requests, but {self.free} slots are free")
            self.domain.fail(notify, "ring push")
        self._record(self._publication | count)
        return notify == 1

    def published(self, count: int) -> None:
        """The kernel published that many requests of this ring by itself."""
        self._record(self._publication | count)

    def take(self) -> tuple[int, memoryview]:
        """All responses that are there: their number and their bytes, packed.

        The bytes are valid until the next call.
        """
        count = lib.front_take(self._handle, self._out, self.size)
        if count < 0:
            self.domain.fail(count, "ring responses")
        return count, self._view[: count * self.rsp_size]

    def final_check(self) -> bool:
        """RING_FINAL_CHECK_FOR_RESPONSES: True if there is more; else an event will come."""
        more = lib.front_final_check(self._handle)
        if more < 0:
            self.domain.fail(more, "ring final check")
        return bool(more)

    def reap(self, most: int = 0) -> tuple[int, memoryview, bool]:
        """`take` and `final_check` in one: their number, their bytes, whether there are more.

        `most`: how many are taken at most, if not all.
        """
        count = front_reap(self._handle, self._out, most or self.size)
        if count < 0:
            self.domain.fail(count, "ring responses")
        more = count >= MORE
        if more:
            count -= MORE
        return count, self._view[: count * self.rsp_size], more

    def indices(self) -> RingIndices:
        """All indices, each read once; for dumps, which believe none. HypercallError: no page."""
        load, pfn = self.domain.load32, self.pfns[0]
        return RingIndices(
            req_prod=load(pfn, 0),
            req_event=load(pfn, 4),
            rsp_prod=load(pfn, 8),
            rsp_event=load(pfn, 12),
            req_prod_pvt=self.req_prod,
            rsp_cons=self.rsp_cons,
            size=self.size,
        )

    def seek(self, index: int) -> None:
        """Start a fresh ring at another index (both ends must); for tests of the wrap."""
        lib.ring_seek(self._handle, index, index)
