"""The frontend's half of a shared ring (FRONT_RING_* of public/io/ring.h).

The kernel copies slots and moves indices; nothing here reads a slot in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import ENOSPC
from typing import Any, Final

from xenpv.abi._kernel import ffi, lib
from xenpv.errors import LocalProtocolError
from xenpv.xen.domain import Domain
from xenpv.xen.trace import Event, mark

# Looked up once: each is called for every batch.
front_push: Final = lib.front_push
front_reap: Final = lib.front_reap

MORE: Final = 1 << 16  # of front_reap


class FrontRing:
    """Requests out, responses in, over pages of `domain` that the backend maps.

    `size` slots of `entry_size` bytes; requests and responses are `req_size` and
    `rsp_size` bytes of a slot. PeerProtocolError: the backend's producer index is more
    than what is in flight ahead of what was consumed.
    """

    def __init__(
        self, domain: Domain, pfns: Sequence[int], *, req_size: int, rsp_size: int
    ) -> None:
        self.domain = domain
        self.pfns = tuple(pfns)
        self.req_size = req_size
        self.rsp_size = rsp_size
        self._publication = mark(Event.PUBLISH, domain.domid, self.pfns[0])
        self._record = domain.trace.words.append
        self._handle: Any = domain.ring(pfns, max(req_size, rsp_size), rsp_size)
        self.size: int = lib.ring_size(self._handle)
        self._responses = bytearray(self.size * rsp_size)
        self._out = ffi.from_buffer(self._responses)
        self._view = memoryview(self._responses)
        domain.check(lib.ring_init(self._handle))

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

    def reap(self) -> tuple[int, memoryview, bool]:
        """`take` and `final_check` in one: their number, their bytes, whether there are more."""
        count = front_reap(self._handle, self._out, self.size)
        if count < 0:
            self.domain.fail(count, "ring responses")
        more = count >= MORE
        if more:
            count -= MORE
        return count, self._view[: count * self.rsp_size], more

    def seek(self, index: int) -> None:
        """Start a fresh ring at another index (both ends must); for tests of the wrap."""
        lib.ring_seek(self._handle, index, index)
