"""A domain's memory in PAGE_DATA records.

The body is u32 count of runs, u32 0, the runs, then the contents of those that have some, in
order. A run is u32 first pfn and u32 number of pages, bit 31 of which says that they are zero
and that no contents follow. A record has at most 1024 pages; all numbers are little-endian.

Only pages that a frame stands for are written: what was never touched reads zero.
"""

from __future__ import annotations

from array import array
from struct import Struct
from typing import TYPE_CHECKING, Final

from xenpv.abi._kernel import ffi, lib
from xenpv.migration.stream import BATCH_PAGES, PAGE_SIZE, Record, RecordType, StreamError, Writer

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain

HEAD: Final = Struct("<II")
RUN: Final = Struct("<II")
ZERO: Final = 1 << 31
ZERO_PAGE: Final = bytes(PAGE_SIZE)
PFN_END: Final = 1 << 28  # what the p2m can hold
P2M_NONE: Final[int] = lib.P2M_NONE
P2M_RAM: Final[int] = lib.P2M_RAM


def touched(domain: Domain) -> array[int]:
    """The pfns of `domain`'s RAM that has a frame, ascending (typecode "I")."""
    pfns = array("I")
    room = array("I", bytes(4 * BATCH_PAGES))
    out = ffi.from_buffer("uint32_t[]", room)
    first = 0
    while count := lib.p2m_touched(domain.kernel, first, out, BATCH_PAGES):
        pfns += room[:count]
        first = pfns[-1] + 1
    return pfns


def read_pages(domain: Domain, pfns: array[int]) -> bytearray:
    """The contents of pages, one after the other. HypercallError(EFAULT) if one is not there."""
    pieces = array("I", (0, 0, PAGE_SIZE)) * len(pfns)
    pieces[::3] = pfns
    size = len(pfns) * PAGE_SIZE
    out = bytearray(size)
    list_ = ffi.from_buffer("uint32_t[]", pieces)
    done = lib.page_gather(domain.kernel, list_, len(pfns), ffi.from_buffer(out), size)
    if done < 0:
        domain.fail(done, f"read of {len(pfns)} pages")
    return out


def write_pages(writer: Writer, domain: Domain, pfns: array[int]) -> int:
    """PAGE_DATA records of `pfns`, ascending: how many of them were not zero."""
    data_pages = 0
    for start in range(0, len(pfns), BATCH_PAGES):
        batch = pfns[start : start + BATCH_PAGES]
        contents = read_pages(domain, batch)
        body, nr_data = _body(batch, contents)
        writer.write(RecordType.PAGE_DATA, body)
        data_pages += nr_data
    return data_pages


def _body(pfns: array[int], contents: bytearray) -> tuple[bytes, int]:
    runs: list[list[int]] = []  # first pfn, pages, ZERO or 0, index of the first page
    nr_zero = 0
    for index, pfn in enumerate(pfns):
        kind = ZERO if contents.startswith(ZERO_PAGE, index * PAGE_SIZE) else 0
        nr_zero += kind == ZERO
        if runs and runs[-1][2] == kind and runs[-1][0] + runs[-1][1] == pfn:
            runs[-1][1] += 1
        else:
            runs.append([pfn, 1, kind, index])
    with memoryview(contents) as view:
        parts: list[bytes | memoryview] = [HEAD.pack(len(runs), 0)]
        parts += [RUN.pack(pfn, count | kind) for pfn, count, kind, _ in runs]
        if nr_zero:
            parts += [
                view[first * PAGE_SIZE : (first + count) * PAGE_SIZE]
                for _, count, kind, first in runs
                if not kind
            ]
        else:
            parts.append(view)
        body = b"".join(parts)
        parts.clear()
    return body, len(pfns) - nr_zero


def runs_of(record: Record) -> list[tuple[int, int, int]]:
    """The runs of a PAGE_DATA record: first pfn, pages, offset in its body or 0 where zero.

    StreamError if it is not as it has to be.
    """
    body = record.body
    if len(body) < HEAD.size:
        raise StreamError(f"{record.place}: expected a count of runs")
    nr_runs, reserved = HEAD.unpack_from(body)
    at = HEAD.size + nr_runs * RUN.size
    if reserved or not 0 < nr_runs <= BATCH_PAGES or at > len(body):
        raise StreamError(f"{record.place}: expected 1 to {BATCH_PAGES} runs and their list")
    runs = []
    total = 0
    for pfn, word in RUN.iter_unpack(body[HEAD.size : at]):
        count = word & ~ZERO
        total += count
        if not 0 < count <= BATCH_PAGES or total > BATCH_PAGES or pfn + count > PFN_END:
            wrong = f"a run of {count} pages at pfn {pfn:#x} is none"
            raise StreamError(f"{record.place}: {wrong}")
        runs.append((pfn, count, 0 if word & ZERO else at))
        at += 0 if word & ZERO else count * PAGE_SIZE
    if at != len(body):
        raise StreamError(f"{record.place}: expected {at} bytes, it has {len(body)}")
    return runs


def load_pages(domain: Domain, record: Record) -> int:
    """Put the pages of a PAGE_DATA record where they belong; how many they were.

    A pfn without a page gets one first. StreamError if the record is malformed, names what is
    no RAM, or there is no memory left.
    """
    total = 0
    body = ffi.from_buffer(record.body)
    for pfn, count, at in runs_of(record):
        _populate(domain, record, pfn, count)
        if at:
            done = lib.page_write(domain.kernel, pfn, 0, body + at, count * PAGE_SIZE)
            if done < 0:
                wrong = f"no memory for {count} pages at pfn {pfn:#x}"
                raise StreamError(f"{record.place}: {wrong}")
        else:
            _clear(domain, pfn, count)
        total += count
    return total


def _populate(domain: Domain, record: Record, pfn: int, count: int) -> None:
    kernel = domain.kernel
    stop = pfn + count
    while pfn < stop:
        run = lib.p2m_run(kernel, pfn, stop - pfn)
        kind = lib.p2m_type(kernel, pfn)
        if kind == P2M_NONE:
            if lib.domain_populate(kernel, pfn, run) != run:
                wrong = f"no memory for {run} pages at pfn {pfn:#x}"
                raise StreamError(f"{record.place}: {wrong}")
        elif kind != P2M_RAM:
            raise StreamError(f"{record.place}: pfn {pfn:#x} of the domain is no RAM")
        pfn += run


def _clear(domain: Domain, pfn: int, count: int) -> None:
    """Pages that read zero: only those that have a frame need to be written."""
    for one in range(pfn, pfn + count):
        if lib.p2m_lookup(domain.kernel, one, 0) >= 0:
            domain.write(one, 0, ZERO_PAGE)
