"""The C limit: one block or network ring with both ends in C, timed inside (limit.c).

Its rings are moved by the macros of Xen's own io/ring.h if libxen-dev was installed when
xenpv was (limit_xen.c), else by our text of the same; RING_H says which.
"""

from __future__ import annotations

import enum
from typing import Final

import attrs

from xenpv.bench._limit import ffi, lib
from xenpv.errors import LocalProtocolError

PAGE_SIZE: Final = 4096
RING_H: Final = bool(lib.limit_has_ring_h())


class Text(enum.IntEnum):
    """Which C moves the rings. Without io/ring.h, XEN runs what OWN does."""

    OWN = lib.LIMIT_OWN
    HOOKED = lib.LIMIT_HOOKED  # through the access seam, its hook unset; the block ring only
    XEN = lib.LIMIT_XEN


@attrs.frozen(kw_only=True)
class Round:
    """One run: `ns` in all, and what went over the ring meanwhile; data in bytes."""

    ns: float
    requests: int
    responses: int
    refused: int
    data: int
    req_events: int
    rsp_events: int

    @property
    def ns_per_request(self) -> float:
        return self.ns / self.requests

    @property
    def gb_per_s(self) -> float:
        """Data alone, in 10^9 bytes."""
        return self.data / self.ns


class Limit:
    """Both rings, their pages and a disk, all hot; every run goes on where the last ended."""

    def __init__(self) -> None:
        pointer = lib.limit_new()
        if pointer == ffi.NULL:
            raise MemoryError("no memory for the rings of the C limit")
        self._limit = ffi.gc(pointer, lib.limit_free)
        self._result = ffi.new("struct limit_result *")

    def blk(self, *, segments: int, batch: int, rounds: int, text: Text = Text.XEN) -> Round:
        """Reads of `segments` pages of 4 KiB each.

        LocalProtocolError for more segments or requests than a request or ring holds.
        """
        done = lib.limit_blk(self._limit, segments, batch, rounds, text, self._result)
        return self._round(done, f"{segments} segments, {batch} requests")

    def net(self, *, size: int, batch: int, rounds: int, text: Text = Text.XEN) -> Round:
        """Frames of `size` bytes, 14 to 2,048. LocalProtocolError as for `blk`."""
        done = lib.limit_net(self._limit, size, batch, rounds, text, self._result)
        return self._round(done, f"frames of {size} bytes, {batch} requests")

    def ring(self, *, net: bool) -> bytes:
        """All bytes of a ring's page as the runs so far left them."""
        page = bytearray(PAGE_SIZE)
        lib.limit_ring(self._limit, net, ffi.from_buffer(page))
        return bytes(page)

    def revoke(self, page: int) -> None:
        """Take the grant of one of the pages back, so that requests with it are refused."""
        if lib.limit_revoke(self._limit, page):
            raise LocalProtocolError(f"no page {page}")

    def _round(self, done: int, what: str) -> Round:
        if done:
            raise LocalProtocolError(f"{what}: no ring takes that")
        result = self._result
        return Round(
            ns=result.ns,
            requests=result.requests,
            responses=result.responses,
            refused=result.refused,
            data=result.bytes,
            req_events=result.req_events,
            rsp_events=result.rsp_events,
        )
