"""Shared rings under a test's hand: every word of the header, every byte of every entry.

Pages are read and written through the domain's accessors, which the access hook sees.
"""

from __future__ import annotations

from xenpv.abi.layout import sizeof
from xenpv.back.ring import BackRing
from xenpv.bus.ring import FrontRing
from xenpv.errors import LocalProtocolError
from xenpv.view.rings import (
    FIRST_SLOT,
    REQ_EVENT,
    REQ_PROD,
    RSP_EVENT,
    RSP_PROD,
    by_hand,
    kind_with,
)
from xenpv.xen.domain import PAGE_SIZE, Domain


class RawPages:
    """The shared bytes of a ring, in pages `pfns` of `domain`, whichever end that is.

    Setting an index writes the shared word and nothing else: what an end's own calls go by
    is its private index.
    """

    def __init__(self, domain: Domain, pfns: tuple[int, ...], entry_size: int, size: int) -> None:
        self.domain = domain
        self.pfns = pfns
        self.entry_size = entry_size
        self.size = size

    @property
    def req_prod(self) -> int:
        return self.domain.load32(self.pfns[0], REQ_PROD)

    @req_prod.setter
    def req_prod(self, index: int) -> None:
        self.domain.store32(self.pfns[0], REQ_PROD, index & 0xFFFFFFFF)

    @property
    def req_event(self) -> int:
        return self.domain.load32(self.pfns[0], REQ_EVENT)

    @req_event.setter
    def req_event(self, index: int) -> None:
        self.domain.store32(self.pfns[0], REQ_EVENT, index & 0xFFFFFFFF)

    @property
    def rsp_prod(self) -> int:
        return self.domain.load32(self.pfns[0], RSP_PROD)

    @rsp_prod.setter
    def rsp_prod(self, index: int) -> None:
        self.domain.store32(self.pfns[0], RSP_PROD, index & 0xFFFFFFFF)

    @property
    def rsp_event(self) -> int:
        return self.domain.load32(self.pfns[0], RSP_EVENT)

    @rsp_event.setter
    def rsp_event(self, index: int) -> None:
        self.domain.store32(self.pfns[0], RSP_EVENT, index & 0xFFFFFFFF)

    def slot(self, index: int) -> bytes:
        """All bytes of the entry that `index` (free-running) falls on."""
        return b"".join(
            self.domain.read(pfn, offset, size)
            for pfn, offset, size in self._pieces(index, 0, self.entry_size)
        )

    def write_slot(self, index: int, data: bytes, offset: int = 0) -> None:
        """Overwrite bytes of an entry, from `offset` on; LocalProtocolError past its end."""
        if not 0 <= offset <= self.entry_size - len(data):
            raise LocalProtocolError(
                f"{len(data)} bytes at {offset}, an entry has {self.entry_size}"
            )
        done = 0
        for pfn, at, size in self._pieces(index, offset, len(data)):
            self.domain.write(pfn, at, data[done : done + size])
            done += size

    def _pieces(self, index: int, offset: int, size: int) -> list[tuple[int, int, int]]:
        """(pfn, offset, size) of bytes of an entry: two where it crosses a page."""
        start = FIRST_SLOT + index % self.size * self.entry_size + offset
        page, at = divmod(start, PAGE_SIZE)
        head = min(size, PAGE_SIZE - at)
        pieces = [(self.pfns[page], at, head)]
        if head < size:
            pieces.append((self.pfns[page + 1], 0, size - head))
        return pieces


class RawSring(RawPages):
    """The frontend's side, in pages of its own.

    What `push` and `take` go by is `ring`, whose private indices stay where they were when an
    index is set (`ring.seek` moves them).
    """

    def __init__(self, domain: Domain, pfn: int, pages: int, *, req: str, rsp: str) -> None:
        """A ring of structs `req` and `rsp` over `pages` adjacent pages, initialised."""
        pfns = tuple(range(pfn, pfn + pages))
        self.pfn = pfn
        sizes = sizeof(req), sizeof(rsp)
        self.ring = FrontRing(
            domain, pfns, req_size=sizes[0], rsp_size=sizes[1], kind=kind_with(req)
        )
        by_hand(self.ring.handle)
        super().__init__(domain, pfns, max(sizes), self.ring.size)

    def push(self, requests: bytes, count: int) -> bool:
        """Publish `count` packed requests in the next slots; True: the backend wants a notice.

        LocalProtocolError when they do not fit; write slots and `req_prod` for what must not.
        """
        return self.ring.push(requests, count)

    def take(self) -> list[bytes]:
        """The responses that are there now; asks for an event at the next one.

        PeerProtocolError: the backend's index is ahead of the requests in flight.
        """
        ring = self.ring
        taken: list[bytes] = []
        while True:
            count, packed = ring.take()
            size = ring.rsp_size
            taken += [bytes(packed[at * size : (at + 1) * size]) for at in range(count)]
            if not ring.final_check():
                return taken


class RawBackSring(RawPages):
    """The backend's side, over pages of the frontend that are mapped at `pfns`.

    What `push` and `take` go by is `ring`: an honest backend's half, with its private indices.
    """

    def __init__(self, domain: Domain, pfns: tuple[int, ...], *, req: str, rsp: str) -> None:
        """PeerProtocolError: the indices in the page cannot be a ring's."""
        sizes = sizeof(req), sizeof(rsp)
        self.ring = BackRing(
            domain, pfns, req_size=sizes[0], rsp_size=sizes[1], kind=kind_with(req)
        )
        by_hand(self.ring.handle)
        super().__init__(domain, pfns, max(sizes), self.ring.size)

    def take(self, *, ask: bool = True) -> list[bytes]:
        """The requests that are there now; with `ask`, an event comes at the next one.

        PeerProtocolError: the frontend's index runs past the ring.
        """
        ring = self.ring
        taken: list[bytes] = []
        while True:
            count, packed = ring.take()
            size = ring.req_size
            taken += [bytes(packed[at * size : (at + 1) * size]) for at in range(count)]
            if not ask or not ring.final_check():
                return taken

    def push(self, responses: bytes, count: int) -> bool:
        """Publish `count` packed responses; True: the frontend wants a notice.

        HypercallError(ENOSPC) for more than were taken; write slots and `rsp_prod` for that.
        """
        return self.ring.push(responses, count)
