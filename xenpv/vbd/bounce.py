"""Pages of the driver's own that a backend reads and writes (win-xenvbd granter.c, XENVBD_BOUNCE).

Data goes through one where it does not lie in whole sectors, where the backend is not trusted,
and always where grants are persistent; the segments of an indirect request lie in others.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

import attrs

from xenpv.errors import HypercallError
from xenpv.vbd.granter import Granter

NO_REF: Final = 0  # of a page without access; the driver's references begin at 32


@attrs.define(eq=False)
class Retired:
    """What a request that was given up leaves until its answer comes, or the backend is closed.

    `refs` have no access any more, but the ring still names them: were they given out again, the
    backend would reach pages that are none of that request's. `lent` are (ref, pfn) of
    persistent grants that it may still use.
    """

    refs: list[int] = attrs.Factory(list)
    lent: list[tuple[int, int]] = attrs.Factory(list)


class Bounce(Protocol):
    """Where a ring takes pages from, each with a reference to it.

    `always`: whether all data goes through such pages, and no other is granted.
    """

    granter: Granter
    always: bool

    def get(self, data: bytes, offset: int, readonly: bool) -> tuple[int, int]:
        """(ref, pfn) of a page with `data` at `offset`. Raises HypercallError: ENOSPC, ENOMEM."""

    def put(self, ref: int, pfn: int, retired: Retired | None = None) -> bool:
        """Take it back; False if the backend maps it although it must not.

        `retired`: its request is not answered, and takes note of what is not to be used yet.
        """

    def end(self, retired: Retired) -> None:
        """What a request left may be used again."""

    def close(self) -> None:
        """The connection is gone: nothing stays granted but what the backend still maps."""


class BouncePages:
    """Granted for one request, and zero but for its data (XSA-403)."""

    def __init__(self, granter: Granter, *, always: bool = False) -> None:
        self.granter = granter
        self.always = always

    def get(self, data: bytes, offset: int, readonly: bool) -> tuple[int, int]:
        granter = self.granter
        pfn = granter.page()
        granter.fill(pfn, data, offset)
        try:
            return granter.permit(pfn, readonly), pfn
        except HypercallError:
            granter.put_page(pfn)
            raise

    def put(self, ref: int, pfn: int, retired: Retired | None = None) -> bool:
        refs = None if retired is None else retired.refs
        if not self.granter.revoke(ref, pfn, True, refs):
            return False
        self.granter.put_page(pfn)
        return True

    def end(self, retired: Retired) -> None:
        self.granter.free(retired.refs)

    def close(self) -> None:
        """Each went back with its request."""


class PersistentGrants:
    """Kept from request to request, as those of Linux' blkfront (feature-persistent, io/blkif.h).

    The page taken next is the one put back last, which the backend has mapped most likely. One
    that it does not map when its request is answered loses its grant and goes to the end.
    """

    def __init__(self, granter: Granter) -> None:
        self.granter = granter
        self.always = True
        self.free: deque[tuple[int, int]] = deque()  # ref or NO_REF, pfn

    @property
    def kept(self) -> int:
        """Pages that no request has and the backend still maps, or did when they came back."""
        return sum(ref != NO_REF for ref, _pfn in self.free)

    def get(self, data: bytes, offset: int, readonly: bool) -> tuple[int, int]:
        """Always writable: the next request may be a READ. What a kept page holds beside `data`
        its backend has seen before.
        """
        del readonly
        granter = self.granter
        ref, pfn = self.free.popleft() if self.free else (NO_REF, granter.page())
        if ref:
            if data:
                granter.domain.write(pfn, offset, data)
            return ref, pfn
        granter.fill(pfn, data, offset)
        try:
            return granter.permit(pfn, readonly=False), pfn
        except HypercallError:
            self.free.append((NO_REF, pfn))
            raise

    def put(self, ref: int, pfn: int, retired: Retired | None = None) -> bool:
        if self.granter.end(ref, None if retired is None else retired.refs):
            self.free.append((NO_REF, pfn))
        elif retired is None:
            self.free.appendleft((ref, pfn))
        else:
            retired.lent.append((ref, pfn))
        return True

    def end(self, retired: Retired) -> None:
        self.granter.free(retired.refs)
        for ref, pfn in retired.lent:
            self.put(ref, pfn)

    def close(self) -> None:
        free, self.free = self.free, deque()
        for ref, pfn in free:
            if not ref or self.granter.revoke(ref, pfn, owned=True):
                self.granter.put_page(pfn)


def bounce_of(granter: Granter, persistent: bool, trusted: bool) -> Bounce:
    """What a connection has."""
    return PersistentGrants(granter) if persistent else BouncePages(granter, always=not trusted)
