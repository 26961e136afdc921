"""Domain numbers: who has which (domid_alloc and domid_free of xen/common/domain.c)."""

from __future__ import annotations

from typing import Final

from xenpv.abi._kernel import lib

DOMID_FIRST_RESERVED: Final[int] = lib.DOMID_FIRST_RESERVED
DOMID_SELF: Final[int] = lib.DOMID_SELF
DOMID_INVALID: Final[int] = lib.DOMID_INVALID
DOMID_ANY: Final[int] = lib.DOMID_ANY


class DomidAllocator:
    """Numbers below `first_reserved`; tests take a small one, as Xen's own test-domid does."""

    def __init__(self, first_reserved: int = DOMID_FIRST_RESERVED) -> None:
        self.first_reserved = first_reserved
        self._taken: set[int] = set()
        self._last = 0

    def alloc(self, domid: int) -> int:
        """`domid` itself; for a reserved number, the next free one. DOMID_INVALID if taken.

        The search goes up from the last number it gave, wraps to 1 and never gives 0. Any
        reserved number asks for it, not only DOMID_ANY.
        """
        if not 0 <= domid < self.first_reserved:
            domid = self._next()
            if domid == DOMID_INVALID:
                return domid
            self._last = domid
        elif domid in self._taken:
            return DOMID_INVALID
        self._taken.add(domid)
        return domid

    def _next(self) -> int:
        for span in (range(self._last + 1, self.first_reserved), range(1, self.first_reserved)):
            for domid in span:
                if domid not in self._taken:
                    return domid
        return DOMID_INVALID

    def free(self, domid: int) -> None:
        self._taken.discard(domid)
