"""What a defect of a ring does by hand where the drivers call the kernel: slots, indices, columns.

Everything shared goes through the domain's accessors, as the kernel's own accesses do, so that
the hook sees it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from xenpv.abi._kernel import lib
from xenpv.abi.blkif import BLKIF_OP
from xenpv.back.blkif import SEGMENT, SEGMENTS_MAX
from xenpv.back.blkring import ERROR, RUN, SECTOR_SHIFT
from xenpv.view.rings import FIRST_SLOT, is_by_hand, u32
from xenpv.xen.domain import PAGE_SIZE

SECTORS_PER_PAGE: Final = PAGE_SIZE >> SECTOR_SHIFT
BEYOND_U64: Final = (1 << 64) - 1

# What a method does once it is changed: it is given what was there before, and its arguments.
Method = Callable[..., Any]


def instead(method: Method) -> Callable[[Any], Any]:
    """A change: `method` is called with what was there before what the caller gave."""

    def change(original: Any) -> Any:
        def changed(*arguments: Any, **named: Any) -> Any:
            return method(original, *arguments, **named)

        return changed

    return change


def on_rings(method: Method) -> Callable[[Any], Any]:
    """As `instead`, of a ring's method; an end that a test has in its hands errs in nothing."""

    def careful(original: Any, ring: Any, *arguments: Any) -> Any:
        if is_by_hand(ring.handle):
            return original(ring, *arguments)
        return method(original, ring, *arguments)

    return instead(careful)


def remembers(stack: list[Any]) -> Callable[[Any], Any]:
    """Of a method: whose it is stands last in `stack` while it runs."""

    def method(original: Any, self: Any, *arguments: Any) -> Any:
        stack.append(self)
        try:
            return original(self, *arguments)
        finally:
            stack.pop()

    return instead(method)


def _entry_size(ring: Any) -> int:
    size: int = max(ring.req_size, ring.rsp_size)
    return size


def pieces(ring: Any, index: int, size: int, at: int = 0) -> list[tuple[int, int, int]]:
    """(pfn, offset, size) of bytes of an entry from `at` on: two where it crosses a page."""
    start = FIRST_SLOT + index % ring.size * _entry_size(ring) + at
    page, offset = divmod(start, PAGE_SIZE)
    head = min(size, PAGE_SIZE - offset)
    found = [(ring.pfns[page], offset, head)]
    if head < size:
        found.append((ring.pfns[page + 1], 0, size - head))
    return found


def read_slot(ring: Any, index: int, size: int, at: int = 0) -> bytes:
    """Bytes of an entry, as they are now."""
    return b"".join([ring.domain.read(*piece) for piece in pieces(ring, index, size, at)])


def write_slot(ring: Any, index: int, data: bytes) -> None:
    """The first bytes of an entry; the others stay what they are."""
    done = 0
    for pfn, offset, size in pieces(ring, index, len(data)):
        ring.domain.write(pfn, offset, data[done : done + size])
        done += size


def fetch(ring: Any, out: bytearray, first: int, count: int, size: int) -> None:
    """Copy `count` entries, `size` bytes of each, to private memory."""
    for number in range(count):
        out[number * size : (number + 1) * size] = read_slot(ring, u32(first + number), size)


def publish(ring: Any, prod_at: int, event_at: int, old: int, new: int, cons: int) -> bool:
    """Store a producer index; whether the peer asked for that. `cons` is the private consumer."""
    domain, page = ring.domain, ring.pfns[0]
    domain.store32(page, prod_at, new)
    lib.ring_seek(ring.handle, new, cons)
    return u32(new - domain.load32(page, event_at)) < u32(new - old)


def segments_at(ring: Any, index: int) -> int:
    """Where the segments of direct request `index` of a pass lie in its private bytes."""
    start: int = index * ring.abi.request_size
    return start + int(ring.abi.head.size) - SEGMENTS_MAX * SEGMENT.size


def segments_of(ring: Any, index: int) -> list[tuple[int, int, int]]:
    """Reference, first and last sector of each segment of direct request `index` of a pass."""
    raw = ring.ring.raw
    start = segments_at(ring, index)
    count = min(raw[index * ring.abi.request_size + 1], SEGMENTS_MAX)
    return list(SEGMENT.iter_unpack(raw[start : start + count * SEGMENT.size]))


def is_direct(ring: Any, index: int) -> bool:
    return bool(ring.ring.raw[index * ring.abi.request_size] <= BLKIF_OP.FLUSH_DISKCACHE)


def columns(ring: Any, count: int) -> int:
    """The columns of `count` requests of a BlkRing's pass, made again from its private bytes
    (blk_columns of the kernel): what blk_take gives.
    """
    size = ring.abi.request_size
    raw = ring.ring.raw
    runs: list[list[int]] = []
    heads = ring.abi.head.iter_unpack(memoryview(raw)[: count * size])
    for index, (operation, nr_segments, _handle, _id, sector) in enumerate(heads):
        sectors = units = 0
        verdict = 0
        if operation <= BLKIF_OP.FLUSH_DISKCACHE:
            verdict = ERROR if nr_segments > SEGMENTS_MAX else 0
            for _, first, last in segments_of(ring, index) if not verdict else ():
                if last >= SECTORS_PER_PAGE or first > last:
                    verdict = ERROR
                    break
                sectors += last - first + 1
                units |= last - first + 1
        ring._verdicts[index] = verdict
        ring._sectors[index] = sectors
        ring._offsets[index] = sector << SECTOR_SHIFT & BEYOND_U64
        if not runs or runs[-1][2] != operation:
            runs.append([index, index, operation, u32(-1), 0, 0, 0])
        run = runs[-1]
        run[1] = index + 1
        run[3] = min(run[3], sectors)
        if sectors:
            run[4] |= units | u32(sector)
            run[6] = max(run[6], min(sector + sectors, BEYOND_U64))
    for number, run in enumerate(runs):
        RUN.pack_into(ring._runs, number * RUN.size, *run)
    return count | len(runs) << 16
