"""What block drivers get wrong: blkback in both its ways, and XenVbd where it is told.

A request that should be refused is done as far as it can be: what is beyond the disk wraps, what
is too much is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final
from weakref import WeakKeyDictionary

import attrs

from xenpv.back import blkif, blkkeys, blkring, blkserver
from xenpv.back.blkdata import BlkData
from xenpv.back.blkqueue import Kind
from xenpv.back.blkrules import (
    COUNT,
    DISCARD,
    FLUSH_DISKCACHE,
    INDIRECT,
    OKAY,
    READ,
    READONLY,
    SECTOR,
    WRITE,
    Geometry,
    Refusal,
    Request,
    parse,
)
from xenpv.back.persistent import PersistentGrants
from xenpv.host.imageio import ImageShortError
from xenpv.testing.zoo.defect import Defect
from xenpv.testing.zoo.passes import (
    columns,
    instead,
    is_direct,
    read_slot,
    remembers,
    segments_at,
    segments_of,
)
from xenpv.vbd.request import EOPNOTSUPP
from xenpv.vbd.ring import Ring
from xenpv.vbd.srb import SrbStatus
from xenpv.view.rings import u32

SEGMENTS_MAX: Final = blkif.SEGMENTS_MAX
SEGMENT: Final = blkif.SEGMENT

_blk: list[Any] = []
_serves: Final = (blkring.BlkRing, "service", remembers(_blk))


# read again from the shared slot: checked as it was copied, used as it is in the slot by then

Span = tuple[int, int]  # offset in the slot, and how many bytes
Spans = Callable[[Any, int], Iterable[Span]]  # of a BlkRing's request, by its number in the pass


def _operation(_ring: Any, _index: int) -> list[Span]:
    return [(0, 1)]


def _nr_segments(_ring: Any, _index: int) -> list[Span]:
    return [(1, 1)]


def _sectors(ring: Any, index: int) -> list[Span]:
    """first_sect and last_sect of each segment."""
    start = segments_at(ring, index) - index * ring.abi.request_size
    return [(start + at * SEGMENT.size + 4, 2) for at in range(len(segments_of(ring, index)))]


def _fetched_again(spans: Spans) -> Any:
    """Before blk_copy moves the data. No response of the pass is out: it begins at rsp_prod."""

    def blk_copy(original: Any, blk_pass: Any, first: int, end: int, *rest: Any) -> Any:
        ring = _blk[-1]
        size, raw = ring.abi.request_size, ring.ring.raw
        for index in range(first, end):
            if blk_pass.listed == index + 1:
                continue  # what an indirect request does lies elsewhere
            for offset, length in spans(ring, index):
                slot = u32(ring.ring.rsp_prod + index)
                at = index * size + offset
                raw[at : at + length] = read_slot(ring.ring, slot, length, offset)
        return original(blk_pass, first, end, *rest)

    return instead(blk_copy)


@attrs.define(eq=False)
class _Place:
    """Where a request of a BlkServer came from: enough of a BlkRing for the spans of one."""

    ring: Any  # whose `raw` is that request's alone
    abi: Any
    shared: Any
    index: int


@attrs.define(eq=False)
class _Raw:
    raw: bytearray


_places: WeakKeyDictionary[Request, _Place] = WeakKeyDictionary()


def _takes_note(original: Any, server: Any) -> None:
    ring, abi = server.ring, server.abi
    first, known = ring.req_cons, len(server._waiting)
    original(server)
    for number, request in enumerate(list(server._waiting)[known:]):
        raw = bytearray(ring.raw[number * abi.request_size : (number + 1) * abi.request_size])
        _places[request] = _Place(_Raw(raw), abi, ring, u32(first + number))


def _opened_again(spans: Spans) -> Any:
    """Before BlkServer maps the pages of what it has judged."""

    def open_pages(original: Any, data: Any, requests: list[Request]) -> Any:
        for request in requests:
            place = _places[request]
            if request.operation == INDIRECT:
                continue
            raw = place.ring.raw
            for offset, length in spans(place, 0):
                raw[offset : offset + length] = read_slot(place.shared, place.index, length, offset)
            again = parse(place.abi, bytes(raw))
            request.operation, request.inner = again.operation, again.inner
            request.nr_segments, request.segments = again.nr_segments, again.segments
        return original(data, requests)

    return instead(open_pages)


def _double_fetch(field: str, what: str, spans: Spans) -> Defect:
    return Defect(
        id=f"blk-double-fetch-{field}",
        end="blkback",
        mutation=f"{what} read twice",
        hunt="scenario:blk_requests",
        changes=(
            _serves,
            (blkring, "blk_copy", _fetched_again(spans)),
            (blkserver.BlkServer, "_take", instead(_takes_note)),
            (BlkData, "open", _opened_again(spans)),
        ),
    )


# not refused


def _edits(edit: Callable[[Any, int], object]) -> Any:
    """blk_take, with each direct request changed in private memory before it is judged."""

    def blk_take(original: Any, blk_pass: Any) -> int:
        taken: int = original(blk_pass)
        if taken <= 0:
            return taken
        ring, count = _blk[-1], taken & 0xFFFF
        for index in range(count):
            if is_direct(ring, index):
                edit(ring, index)
        return columns(ring, count)

    return instead(blk_take)


def _unchecked(check: Refusal, of: Callable[[Request], bool]) -> Any:
    """BlkServer does not look for `check` where `of` says so."""

    def refusal(original: Any, rules: Any, checks: Any, request: Request, disk: Any) -> Any:
        left = [one for one in checks if one is not check or not of(request)]
        return original(rules, left, request, disk)

    return instead(refusal)


def _first_eleven(ring: Any, index: int) -> None:
    at = index * ring.abi.request_size + 1
    ring.ring.raw[at] = min(ring.ring.raw[at], SEGMENTS_MAX)


def _is_too_long(request: Request) -> bool:
    return request.operation != INDIRECT and request.nr_segments > SEGMENTS_MAX


def _either_way(ring: Any, index: int) -> None:
    """A segment that ends before it begins is what lies in between."""
    for at, (ref, first, last) in enumerate(segments_of(ring, index)):
        if first > last:
            where = segments_at(ring, index) + at * SEGMENT.size
            SEGMENT.pack_into(ring.ring.raw, where, ref, last, first)


def _places_either_way(original: Any, disk: Geometry, request: Request) -> None:
    request.segments = tuple(
        (ref, min(first, last), max(first, last)) for ref, first, last in request.segments
    )
    original(disk, request)


def _wrapped(start: int, count: int, size: int) -> int:
    """Where `count` from `start` on are on a disk that goes on at its beginning."""
    start %= size
    return start if start + count <= size else 0


def _on_disk(ring: Any, index: int) -> None:
    """The sector number of a request that goes beyond the end of the disk."""
    count = sum([last - first + 1 for _, first, last in segments_of(ring, index)])
    at = segments_at(ring, index) - 8
    raw, size = ring.ring.raw, _disks[-1].sectors
    sector = int.from_bytes(raw[at : at + 8], "little")
    if sector + count > size:
        raw[at : at + 8] = _wrapped(sector, count, size).to_bytes(8, "little")


_disks: list[Any] = []


def _serves_disk(original: Any, ring: Any, vbd: Any) -> Any:
    _disks.append(vbd)
    try:
        return original(ring, vbd)
    finally:
        _disks.pop()


def _indirect_on_disk(original: Any, blk_pass: Any, index: int, sectors: int, *rest: Any) -> Any:
    ring = _blk[-1]
    at = index * ring.abi.request_size + segments_at(ring, 0) - 8
    sector = int.from_bytes(ring.ring.raw[at : at + 8], "little")
    if sector >= sectors:
        ring.ring.raw[at : at + 8] = (sector % sectors).to_bytes(8, "little")
    return original(blk_pass, index, sectors, *rest)


def _discards_on_disk(original: Any) -> Any:
    def discard_one(vbd: Any, sector: int, count: int) -> Any:
        if sector + count > vbd.sectors >= count:
            sector = _wrapped(sector, count, vbd.sectors)
        return original.__func__(vbd, sector, count)

    return staticmethod(discard_one)


def _places_on_disk(original: Any, disk: Geometry, request: Request) -> None:
    original(disk, request)
    if request.offset + request.length > disk.size:
        request.offset = _wrapped(request.offset, request.length, disk.size) // SECTOR * SECTOR


# a disk that is only to be read


def _discards_anyway(original: Any) -> Any:
    def discard_one(vbd: Any, sector: int, count: int) -> Any:
        if vbd.readonly:
            vbd = attrs.evolve(vbd, readonly=False, discard=True)
        return original.__func__(vbd, sector, count)

    return staticmethod(discard_one)


def _indirect_writes(original: Any, blk_pass: Any, index: int, sectors: int, _readonly: bool,
                     alignment: int) -> Any:  # fmt: skip
    return original(blk_pass, index, sectors, False, alignment)


def _serves_discards(original: Any, server: Any, vbd: Any) -> Any:
    return original(server, attrs.evolve(vbd, discard=vbd.discard or vbd.readonly))


# indirect requests


def _first_advertised(original: Any, blk_pass: Any, index: int, *rest: Any) -> Any:
    """What is more than was advertised is left out, not refused."""
    raw = _blk[-1].ring.raw
    at = index * _blk[-1].abi.request_size + 2
    count = min(int.from_bytes(raw[at : at + 2], "little"), blkring.INDIRECT_SEGMENTS_MAX)
    raw[at : at + 2] = count.to_bytes(2, "little")
    return original(blk_pass, index, *rest)


def _is_indirect_overrun(request: Request) -> bool:
    return request.operation == INDIRECT and request.nr_segments > 0


# durability

_owed: list[Any] = []  # images that are not flushed yet


def _flushes_next_time(original: Any, served: Any, vbd: Any) -> Any:
    """A pass begins with the flushes of the one before."""
    owed = _owed[:]
    _owed.clear()
    for image in owed:
        image.flush()
    return original(served, vbd)


def _flush_owed(_ring: Any, vbd: Any, _first: int, _end: int) -> None:
    _owed.append(vbd.image)


def _operations(original: Any) -> Any:
    return {**original, FLUSH_DISKCACHE: _flush_owed}


def _performs(original: Any) -> Any:
    flush = original[Kind.FLUSH]

    def perform(server: Any, io: Any) -> Any:
        if io.requests[0].operation != FLUSH_DISKCACHE or io.length:
            return flush(server, io)
        _owed.append(server._disk.image)
        return OKAY

    return {**original, Kind.FLUSH: perform}


# a short read


def _transfers_what_there_is(original: Any, ring: Any, move: Any, extent: Any) -> None:
    def moved(buffer: memoryview, offset: int) -> None:
        try:
            move(buffer, offset)
        except ImageShortError:
            return

    original(ring, moved, extent)


def _reads_what_there_is(original: Any) -> Any:
    read = original[Kind.READ]

    def perform(server: Any, io: Any) -> Any:
        try:
            return read(server, io)
        except ImageShortError:
            buffer = server.bounce.view[: io.length]
            return OKAY if server.data.store(io.requests, server._geometry, buffer) else -1

    return {**original, Kind.READ: perform}


def _purge_forgets(original: Any, kept: Any, now: int) -> list[Any]:
    """persistent.purge: its pages are nobody's, and stay mapped."""
    original(kept, now)
    return []


def _mixes(original: Any) -> Any:
    return {**original, "x86_32-abi": blkif.X86_64}


def _not_supported_is_done(original: Any, ring: Any, request: Any, status: int) -> Any:
    if status == EOPNOTSUPP and request.operation in (READ, WRITE):
        return SrbStatus.SUCCESS
    return original(ring, request, status)


DEFECTS: Final = (
    _double_fetch("operation", "operation", _operation),
    _double_fetch("nr-segments", "nr_segments", _nr_segments),
    _double_fetch("sectors", "first_sect/last_sect", _sectors),
    Defect(
        id="blk-nr-segments-unchecked",
        end="blkback",
        mutation="more than 11 accepted",
        hunt="scenario:blk_refused",
        changes=(
            _serves,
            (blkring, "blk_take", _edits(_first_eleven)),
            (blkserver, "refusal", _unchecked(COUNT, _is_too_long)),
        ),
    ),
    Defect(
        id="blk-first-after-last",
        end="blkback",
        mutation="first_sect > last_sect not refused",
        hunt="scenario:blk_refused",
        changes=(
            _serves,
            (blkring, "blk_take", _edits(_either_way)),
            (Geometry, "place", instead(_places_either_way)),
        ),
    ),
    Defect(
        id="blk-range-unchecked",
        end="blkback",
        mutation="sector + count beyond the end, or wrapping 64 bits, not refused",
        hunt="scenario:blk_refused",
        changes=(
            _serves,
            (blkring.BlkRing, "service", instead(_serves_disk)),
            (blkring, "blk_take", _edits(_on_disk)),
            (blkring, "blk_indirect", instead(_indirect_on_disk)),
            (blkring.BlkRing, "_discard_one", _discards_on_disk),
            (Geometry, "place", instead(_places_on_disk)),
        ),
    ),
    Defect(
        id="blk-readonly-bypass",
        end="blkback",
        mutation="DISCARD and indirect WRITE allowed on mode r",
        hunt="scenario:blk_readonly",
        changes=(
            (blkring.BlkRing, "_discard_one", _discards_anyway),
            (blkring, "blk_indirect", instead(_indirect_writes)),
            (blkserver.BlkServer, "service", instead(_serves_discards)),
            (
                blkserver,
                "refusal",
                _unchecked(READONLY, lambda one: one.operation in (DISCARD, INDIRECT)),
            ),
        ),
    ),
    Defect(
        id="blk-indirect-overrun",
        end="blkback",
        mutation="indirect nr_segments above the advertised maximum accepted",
        hunt="scenario:blk_refused",
        changes=(
            _serves,
            (blkring, "blk_indirect", instead(_first_advertised)),
            (blkserver, "refusal", _unchecked(COUNT, _is_indirect_overrun)),
        ),
    ),
    Defect(
        id="blk-abi-mixed",
        end="blkback",
        mutation="x86_32 frontend read with the x86_64 layout",
        hunt="scenario:blk_x86_32",
        changes=((blkkeys, "PROTOCOLS", _mixes),),
    ),
    Defect(
        id="blk-eopnotsupp-success",
        end="XenVbd",
        mutation="EOPNOTSUPP on READ/WRITE completes the SRB with success",
        hunt="scenario:disk_answers",
        changes=((Ring, "_outcome", instead(_not_supported_is_done)),),
    ),
    Defect(
        id="blk-flush-early",
        end="blkback",
        mutation="FLUSH answered before earlier writes are durable",
        hunt="scenario:blk_durable",
        changes=(
            (blkring, "_OPERATIONS", _operations),
            (blkring.BlkRing, "service", instead(_flushes_next_time)),
            (blkserver, "_PERFORM", _performs),
            (blkserver.BlkServer, "service", instead(_flushes_next_time)),
        ),
    ),
    Defect(
        id="blk-persistent-leak",
        end="blkback",
        mutation="eviction from the persistent cache forgets to unmap",
        hunt="scenario:blk_evicted",
        changes=((PersistentGrants, "purge", instead(_purge_forgets)),),
    ),
    Defect(
        id="blk-short-read-okay",
        end="blkback",
        mutation="a short read of the image is answered OKAY",
        hunt="scenario:blk_short",
        changes=(
            (blkring.BlkRing, "_transfer", instead(_transfers_what_there_is)),
            (blkserver, "_PERFORM", _reads_what_there_is),
        ),
    ),
)
