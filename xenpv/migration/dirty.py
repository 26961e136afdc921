"""Log-dirty by comparison: which pages of a running domain another host does not have.

Xen finds them by write faults. Here a digest of each page that was sent is kept, and a page is
dirty when it has another one now (abi/kernel/dirty.c). What was never sent counts as sent with
zeros, since a new domain's pages read zero.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

from xenpv.abi._kernel import ffi, lib
from xenpv.migration.stream import BATCH_PAGES

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain


class DirtyLog:
    """The log of one domain. Nothing of it is in the domain: it costs its guest nothing."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        handle = lib.dirty_log_new(domain.kernel)
        if handle == ffi.NULL:
            raise MemoryError("no memory for a dirty log")
        self._handle: Any = ffi.gc(handle, lib.dirty_log_free)

    def dirty(self) -> array[int]:
        """The pfns that are not what was sent, ascending (typecode "I"). It takes no time."""
        pfns = array("I")
        room = array("I", bytes(4 * BATCH_PAGES))
        out = ffi.from_buffer("uint32_t[]", room)
        first = 0
        while count := self._check(lib.dirty_log_read(self._handle, first, out, BATCH_PAGES)):
            pfns += room[:count]
            first = pfns[-1] + 1
        return pfns

    def sent(self, pfns: array[int]) -> None:
        """These are sent as they are now: to be called where they are read, before anybody runs.

        HypercallError(ENOENT) if one is no RAM.
        """
        self._check(
            lib.dirty_log_sent(self._handle, ffi.from_buffer("uint32_t[]", pfns), len(pfns))
        )

    def _check(self, result: int) -> int:
        if result < 0:
            self.domain.fail(result, "dirty log")
        return int(result)
