"""A domain's memory through PAGE_DATA records."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpv.abi._kernel import lib
from xenpv.migration.pages import load_pages, runs_of, touched, write_pages
from xenpv.migration.stream import Reader, Record, RecordType, StreamError, Writer
from xenpv.xen.domain import RAM_FIRST_PFN, Domain
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop

FIRST = RAM_FIRST_PFN  # 0x100
NR = 3000


@pytest.fixture
def hypervisor() -> Iterator[Hypervisor]:
    made = Hypervisor(Loop(seed=1), nr_frames=1 << 15)
    yield made
    made.close()


def make(hypervisor: Hypervisor, nr_pages: int = NR) -> Domain:
    domain = hypervisor.create_domain(vcpus=1, max_pages=NR + 8)
    domain.populate(nr_pages)
    return domain


def stream_of(domain: Domain) -> tuple[list[Record], int]:
    out = bytearray()
    nr_data = write_pages(Writer(out.extend), domain, touched(domain))
    return Reader().feed(out), nr_data


def page_data(*runs: tuple[int, int], data: bytes = b"", count: int | None = None) -> Record:
    head = struct.pack("<II", len(runs) if count is None else count, 0)
    return Record(1, head + b"".join(struct.pack("<II", *run) for run in runs) + data, 5, 88)


def test_untouched_pages_are_not_written(hypervisor: Hypervisor) -> None:
    domain = make(hypervisor)
    assert touched(domain) == array("I")
    for pfn in (FIRST + 700, FIRST, FIRST + 511, FIRST + 512):
        domain.write(pfn, 4000, b"x")
    domain.read(FIRST + 9, 0, 1)
    assert list(touched(domain)) == [FIRST, FIRST + 9, FIRST + 511, FIRST + 512, FIRST + 700]
    assert not lib.p2m_touched(domain.kernel, 0xFFFF_FFFF, [0], 1)


def test_the_bytes_of_a_record(hypervisor: Hypervisor) -> None:
    domain = make(hypervisor)
    domain.write(FIRST + 1, 0, b"a" * 4096 + b"b" * 4096)
    domain.read(FIRST + 3, 0, 1)
    domain.write(FIRST + 7, 4095, b"c")
    (record,), nr_data = stream_of(domain)
    assert nr_data == 3
    assert record.type == RecordType.PAGE_DATA
    assert record.body == (
        struct.pack("<IIIIIIII", 3, 0, 0x101, 2, 0x103, 0x8000_0001, 0x107, 1)
        + b"a" * 4096 + b"b" * 4096 + bytes(4095) + b"c"
    )  # fmt: skip


def test_1025_pages_take_two_records(hypervisor: Hypervisor) -> None:
    domain = make(hypervisor)
    for pfn in range(FIRST, FIRST + 1025):
        domain.write(pfn, 0, b"x")
    records, nr_data = stream_of(domain)
    assert nr_data == 1025
    assert [len(record.body) for record in records] == [16 + 1024 * 4096, 16 + 4096]


@given(
    pages=st.dictionaries(
        st.integers(0, NR - 1), st.sampled_from([b"\0", b"x", b"yz"]), max_size=20
    )
)
def test_a_copy_has_what_the_original_has(pages: dict[int, bytes]) -> None:
    hypervisor = Hypervisor(Loop(seed=1), nr_frames=1 << 15)
    origin, copy = make(hypervisor), make(hypervisor, 0)
    for page, data in pages.items():
        origin.write(FIRST + page, 4096 - len(data), data)
    copy.populate(1)
    copy.write(FIRST, 0, b"stale")
    if 0 not in pages:
        origin.read(FIRST, 0, 1)
    records, nr_data = stream_of(origin)
    assert nr_data == sum(data != b"\0" for data in pages.values())
    assert sum(load_pages(copy, record) for record in records) == len(pages.keys() | {0})
    for page in pages.keys() | {0}:
        data = pages.get(page, b"")
        assert copy.read(FIRST + page, 0, 4096) == bytes(4096 - len(data)) + data
    hypervisor.close()


WRONG = [
    (page_data(count=0), "expected 1 to 1024 runs"),
    (page_data((FIRST, 1), count=2, data=b""), "expected 1 to 1024 runs and their list"),
    (page_data(count=0xFFFF_FFFF), "expected 1 to 1024 runs"),
    (Record(1, b"\0" * 7, 5, 88), "expected a count of runs"),
    (Record(1, struct.pack("<IIII", 1, 1, FIRST, 1 | 1 << 31), 5, 88), "expected 1 to 1024 runs"),
    (page_data((FIRST, 0)), "a run of 0 pages at pfn 0x100 is none"),
    (page_data((FIRST, 1 << 31)), "a run of 0 pages"),
    (page_data((FIRST, 1025 | 1 << 31)), "a run of 1025 pages"),
    (page_data((FIRST, 1000 | 1 << 31), (FIRST, 25 | 1 << 31)), "a run of 25 pages"),
    (page_data((0xFFF_FFFF, 2 | 1 << 31)), "a run of 2 pages at pfn 0xfffffff"),
    (page_data((0xFFFF_FFFF, 1 | 1 << 31)), "a run of 1 pages at pfn 0xffffffff"),
    (page_data((FIRST, 1), data=bytes(4095)), "expected 4112 bytes, it has 4111"),
    (page_data((FIRST, 1), data=bytes(4097)), "expected 4112 bytes, it has 4113"),
    (page_data((FIRST, 1 | 1 << 31), data=b"x"), "expected 16 bytes, it has 17"),
]


@pytest.mark.parametrize(("record", "text"), WRONG)
def test_a_malformed_record_is_refused(record: Record, text: str) -> None:
    with pytest.raises(StreamError, match=f"record 5 \\(PAGE_DATA\\) at byte 88: {text}"):
        runs_of(record)


def test_pages_are_for_ram_and_for_what_there_is_room(hypervisor: Hypervisor) -> None:
    domain = make(hypervisor, 100)
    shared_info = domain._shared_info
    domain.check(lib.domain_add_xen_frame(domain.kernel, 0x80, shared_info))
    before = domain.read(0x80, 0, 4096)
    with pytest.raises(StreamError, match="pfn 0x80 of the domain is no RAM"):
        load_pages(domain, page_data((0x7F, 2), data=b"x" * 8192))
    assert domain.read(0x80, 0, 4096) == before
    for at in range(2):
        assert load_pages(domain, page_data((0x1000 + 1024 * at, 1024 | 1 << 31))) == 1024
    with pytest.raises(StreamError, match="no memory for 1024 pages at pfn 0x3000"):
        load_pages(domain, page_data((0x3000, 1024 | 1 << 31)))
