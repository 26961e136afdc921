"""The backend's half of a shared ring (BACK_RING_* of public/io/ring.h).

Requests are copied out once, in a batch; whatever the frontend does to the page afterwards
changes nothing that was checked (XSA-155).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from xenpv.abi._kernel import ffi, lib
from xenpv.xen.domain import Domain
from xenpv.xen.trace import Event

back_final_check: Final = lib.back_final_check  # looked up once: every pass ends with it


class BackRing:
    """Requests in, responses out, over a frontend's pages mapped at `pfns` of `domain`.

    `take` raises PeerProtocolError when req_prod runs more than a ring ahead of the
    responses: break the device then. HypercallError(EFAULT): a page is no longer mapped. `kind`
    is what the ring is called by who looks at it (view/rings.py).
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
        self.req_size = req_size
        self.rsp_size = rsp_size
        self.kind = kind
        # The trace's record of a publication; the number of slots is OR'ed in.
        self.publication = domain.trace.mark(Event.PUBLISH, domain.domid, self.pfns[0])
        self._record = domain.trace.words.append
        self._handle: Any = domain.ring(pfns, max(req_size, rsp_size), rsp_size, kind)
        self.size: int = lib.ring_size(self._handle)
        # The last requests taken: `handle`, `raw` and `raw_pointer` serve the kernel's
        # batch functions, which read them in private memory.
        self.raw = bytearray(self.size * req_size)
        self.raw_pointer = ffi.from_buffer(self.raw)
        self._view = memoryview(self.raw)
        # BACK_RING_ATTACH: never reset indices that the frontend owns.
        result = lib.ring_resume(self._handle)
        if result < 0:
            domain.fail(result, "ring attach")

    @property
    def handle(self) -> Any:
        """The kernel's ring, for its batch functions."""
        return self._handle

    @property
    def in_flight(self) -> int:
        """Requests taken and not yet answered."""
        return int(lib.back_inflight(self._handle))

    @property
    def rsp_prod(self) -> int:
        return int(lib.ring_prod_pvt(self._handle))

    @property
    def req_cons(self) -> int:
        return int(lib.ring_cons(self._handle))

    def take(self, most: int | None = None) -> tuple[int, memoryview]:
        """Requests that are there, at most `most`: their number and their bytes, packed.

        The bytes are private, and valid until the next call.
        """
        limit = self.size if most is None or most > self.size else most
        count = lib.back_take(self._handle, self.raw_pointer, limit, self.req_size)
        if count < 0:
            self.domain.fail(count, "ring requests")
        return count, self._view[: count * self.req_size]

    def untake(self, count: int) -> None:
        """The last `count` requests taken were not looked at: they are on the ring as before."""
        cons = (self.req_cons - count) & 0xFFFFFFFF
        lib.ring_seek(self._handle, self.rsp_prod, cons)

    def push(self, responses: bytes | bytearray, count: int) -> bool:
        """Publish `count` packed responses, in slot order; True: notify the frontend."""
        notify = lib.back_push(self._handle, ffi.from_buffer(responses), count)
        if notify < 0:
            self.domain.fail(notify, "ring responses")
        self.published(count)
        return bool(notify)

    def published(self, count: int) -> None:
        """Trace a publication that a batch function made."""
        self._record(self.publication | count)

    def final_check(self) -> bool:
        """RING_FINAL_CHECK_FOR_REQUESTS: True if there is more; else an event will come."""
        more: int = back_final_check(self._handle)
        if more < 0:
            self.domain.fail(more, "ring final check")
        return more == 1
