"""Which page lies behind which slot of an rx ring, and what is said of it.

A full ring posts each page in the same slot again and again. One for which there were too few
pages posts a page where its next request happens to be.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from struct import Struct
from typing import Final

from xenpv.abi.layout import packer
from xenpv.vif.granter import PAGE_SIZE, Granter

REQUEST: Final = packer("netif_rx_request")


@cache
def _requests(count: int) -> Struct:
    """That many requests, packed in one go: id, pad and reference of each."""
    return Struct("<" + REQUEST.format.lstrip("<") * count)


class Slots:
    """Of a ring of `size` slots; what is asked of them in order may wrap around its end."""

    __slots__ = ("_clear", "_granter", "_numbers", "_requests", "pfns", "size")

    def __init__(self, granter: Granter, size: int) -> None:
        self._granter = granter
        self.size = size
        self.pfns: list[int] = [0] * size
        self._numbers: list[int] | None = [0] * size  # the granter's; None: a slot's is its own
        self._requests: bytes | bytearray = bytearray(REQUEST.size * size)
        self._clear = [0, 0, PAGE_SIZE] * size  # pfn, 0, 4096 of each: pieces for scatter

    def fill(self) -> None:
        """A page for every slot, of the same number."""
        granter, size = self._granter, self.size
        self._numbers = None
        self.pfns = granter.pfns[:size]
        self._clear[::3] = self.pfns
        words = [0] * (3 * size)
        words[::3] = range(size)
        words[2::3] = granter.refs[:size]
        self._requests = _requests(size).pack(*words)

    def place(self, slots: Iterable[int], numbers: Sequence[int]) -> None:
        """Put pages into slots that are not posted."""
        if self._numbers is None:
            return  # each is there already
        requests = self._requests
        assert isinstance(requests, bytearray)
        pfns, refs = self._granter.pfns, self._granter.refs
        for slot, number in zip(slots, numbers, strict=True):
            self._numbers[slot] = number
            self.pfns[slot] = self._clear[3 * slot] = pfns[number]
            requests[REQUEST.size * slot : REQUEST.size * (slot + 1)] = REQUEST.pack(
                slot, 0, refs[number]
            )

    def run(self, first: int, count: int) -> list[int]:
        """`count` slots from `first` on."""
        return [*range(first, self.size), *range(first)][:count]

    def numbers(self, slots: list[int]) -> list[int]:
        """The granter's numbers of the pages in these slots."""
        numbers = self._numbers
        return slots if numbers is None else [numbers[slot] for slot in slots]

    def requests(self, first: int, count: int) -> bytes:
        """Requests of `count` slots from `first` on, packed."""
        width, end = REQUEST.size, first + count
        chunk = self._requests[first * width : end * width]
        if end > self.size:
            chunk += self._requests[: (end - self.size) * width]
        return bytes(chunk)

    def pieces(self, first: int, count: int) -> list[int]:
        """Their whole pages, for scatter."""
        end = first + count
        return self._clear[3 * first : 3 * end] + self._clear[: max(0, 3 * (end - self.size))]
