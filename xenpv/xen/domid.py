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
        self._taken = bytearray(first_reserved)
        self._last = 0

    def alloc(self, domid: int) -> int:
        """`domid` itself; for a reserved number, the next free one. DOMID_INVALID if taken.

        The search goes up from the last number it gave, wraps to 1 and never gives 0. Any
        reserved number asks for it, not only DOMID_ANY.
        """
        if 0 <= domid < self.first_reserved:
            if self._taken[domid]:
                return DOMID_INVALID
        else:
            domid = self._taken.find(0, self._last + 1)
            if domid < 0:
                domid = self._taken.find(0, 1)
            if domid < 0:
                return DOMID_INVALID
            self._last = domid
        self._taken[domid] = 1
        return domid

    def free(self, domid: int) -> None:
        self._taken[domid] = 0
