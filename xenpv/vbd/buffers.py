"""Memory of a guest that its disk's commands use, kept from command to command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpv.errors import HypercallError, LocalProtocolError
from xenpv.vbd.storport import CONFIGURATION
from xenpv.xen.domain import PAGE_SIZE

if TYPE_CHECKING:
    from xenpv.vbd.target import Target

TRANSFER_MAX: Final = CONFIGURATION.maximum_transfer_length
KEPT_MAX: Final = 4  # of TRANSFER_MAX: 16 MiB of the guest's memory


class Buffer:
    """Adjacent pages of the guest; `pages` of them from `pfn`."""

    __slots__ = ("pages", "pfn")

    def __init__(self, pfn: int, pages: int) -> None:
        self.pfn = pfn
        self.pages = pages


class Buffers:
    """Of one target. What its backend still holds a page of is not used again before it is back.

    `idle` are kept for what comes, the smallest first; `held` had a page at the backend when
    their command ended.
    """

    __slots__ = ("_gone", "_target", "held", "idle")

    def __init__(self, target: Target) -> None:
        self._target = target
        self.idle: list[Buffer] = []
        self.held: list[Buffer] = []
        self._gone = False  # nothing is kept any more

    def get(self, nr_bytes: int, *, optional: bool = False) -> Buffer | None:
        """Room for up to `nr_bytes` of at most TRANSFER_MAX; None if there is none and it is
        optional, else LocalProtocolError.

        A guest without that much memory in one piece gets less room.
        """
        if self.held:
            held, self.held = self.held, []
            for buffer in held:
                self.put(buffer)
        # Powers of two, so that the pool of pages does not fill with runs of every length.
        pages = 1 << (-(-min(nr_bytes, TRANSFER_MAX) // PAGE_SIZE) - 1).bit_length()
        idle = self.idle
        if idle and idle[-1].pages >= pages:
            return idle.pop()
        while pages:
            try:
                return Buffer(self._target.domain.pages.alloc(pages), pages)
            except HypercallError:
                if idle:
                    return idle.pop()
                if optional:
                    return None
                pages //= 2
        raise LocalProtocolError("the guest has no page left for a transfer")

    def put(self, buffer: Buffer) -> None:
        """Its command ended."""
        granter = self._target.frontend.granter
        if granter.holds(buffer.pfn, buffer.pages) and not self._gone:
            self.held.append(buffer)
        elif self._gone:
            granter.adopt(buffer.pfn, buffer.pages)
        elif len(self.idle) < KEPT_MAX and (not self.idle or buffer.pages >= self.idle[-1].pages):
            self.idle.append(buffer)
        else:
            self._target.domain.pages.free(buffer.pfn, buffer.pages)

    def release(self) -> None:
        """The device is gone: no memory is kept."""
        self._gone = True
        kept = [*self.idle, *self.held]
        self.idle, self.held = [], []
        for buffer in kept:
            self.put(buffer)
