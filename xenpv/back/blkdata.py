"""What requests carry, between the guest's pages and the backend: mapped, or copied by Xen."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from xenpv.abi._kernel import ffi, lib
from xenpv.back.blkif import SEGMENT
from xenpv.back.blkpages import BlkPages
from xenpv.back.blkrules import READ, Access, Geometry, Request
from xenpv.back.persistent import Page
from xenpv.xen.domain import PAGE_SIZE, Domain


class BlkData:
    """Of requests on one ring. `open` says whose pages are there, `close` gives them back; a
    backend that copies comes to them in `load` and `store` only.
    """

    def __init__(self, domain: Domain, granter: Domain, access: Access, pages: BlkPages) -> None:
        self._domain = domain
        self._granter = granter
        self._copies = access is Access.COPY
        self.pages = pages
        self._opened: dict[Request, list[Page]] = {}

    def fetch_tables(self, requests: Sequence[Request]) -> list[bool]:
        """Read the segments of indirect requests, each once, out of pages that are given back
        at once. False: a page of a table could not be mapped.
        """
        wanted = [(ref, True) for request in requests for ref in request.table]
        if not wanted:
            return [True] * len(requests)
        pages = deque(self.pages.map(wanted))
        found: list[bool] = []
        for request in requests:
            own = [pages.popleft() for _ in request.table]
            mapped = [page for page in own if page is not None]
            found.append(len(mapped) == len(own))
            try:
                if mapped and found[-1]:
                    self._read_table(request, mapped)
            finally:
                self.pages.unmap(mapped)
        return found

    def _read_table(self, request: Request, pages: list[Page]) -> None:
        size = request.nr_segments * SEGMENT.size
        pieces: list[int] = []
        for at, page in enumerate(pages):
            pieces += (page.pfn, 0, min(PAGE_SIZE, size - at * PAGE_SIZE))
        request.segments = tuple(SEGMENT.iter_unpack(self._domain.collect(pieces, size)))

    def open(self, requests: Sequence[Request]) -> list[bool]:
        """Map all pages of each request, or none: then it is False."""
        if self._copies:
            return [True] * len(requests)
        wanted = [
            (ref, request.inner != READ) for request in requests for ref, _, _ in request.segments
        ]
        pages = deque(self.pages.map(wanted) if wanted else ())
        opened: list[bool] = []
        for request in requests:
            own = [pages.popleft() for _ in request.segments]
            mapped = [page for page in own if page is not None]
            opened.append(len(mapped) == len(own))
            if opened[-1]:
                self._opened[request] = mapped
            else:
                self.pages.unmap(mapped)
        return opened

    def close(self, requests: Sequence[Request]) -> None:
        """They are done with their pages, if they had any."""
        pages: list[Page] = []
        for request in requests:
            pages += self._opened.pop(request, ())
        if pages:
            self.pages.unmap(pages)

    def release(self) -> None:
        """The ring goes."""
        self.close(list(self._opened))
        self.pages.release()

    def load(self, requests: Sequence[Request], disk: Geometry) -> bytearray | None:
        """What is to be written, of neighbours in one piece; None: a copy failed."""
        size = sum([request.length for request in requests])
        if not self._copies:
            return self._domain.collect(self._pieces(requests, disk), size)
        data = bytearray(size)
        return data if self._copy(False, requests, disk, data) else None

    def store(self, requests: Sequence[Request], disk: Geometry, data: memoryview) -> bool:
        """What was read, to the guest; False: a copy failed."""
        if self._copies:
            return self._copy(True, requests, disk, data)
        self._domain.scatter(self._pieces(requests, disk), data)
        return True

    def _pieces(self, requests: Sequence[Request], disk: Geometry) -> list[int]:
        unit = disk.segment_unit
        pieces: list[int] = []
        for request in requests:
            for page, (_, first, last) in zip(self._opened[request], request.segments, strict=True):
                pieces += (page.pfn, first * unit, (last - first + 1) * unit)
        return pieces

    def _copy(
        self, to_guest: bool, requests: Sequence[Request], disk: Geometry, local: Any
    ) -> bool:
        unit = disk.segment_unit
        ops: list[int] = []
        at = 0
        for request in requests:
            for ref, first, last in request.segments:
                size = (last - first + 1) * unit
                ops += (ref, first * unit | size << 16, at)
                at += size
        count = len(ops) // 3
        failed = lib.grant_copy_local(
            self._domain.kernel, self._granter.kernel, to_guest, ops, count,
            ffi.from_buffer(local), at, ffi.new("int8_t[]", count),
        )  # fmt: skip
        if failed < 0:
            self._domain.fail(failed, "copy")
        return not failed
