"""Which pages changed since they were sent, and that a copy kept by it is a copy."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpv.errors import HypercallError
from xenpv.migration.dirty import DirtyLog
from xenpv.migration.pages import load_pages, touched, write_pages
from xenpv.migration.stream import Reader, Writer
from xenpv.xen.domain import RAM_FIRST_PFN, Domain
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop
from xenpv.xen.physmap import DOMID_SELF

FIRST = RAM_FIRST_PFN
NR = 2000


@pytest.fixture
def hypervisor() -> Iterator[Hypervisor]:
    made = Hypervisor(Loop(seed=1), nr_frames=1 << 15)
    yield made
    made.close()


def make(hypervisor: Hypervisor) -> Domain:
    domain = hypervisor.create_domain(vcpus=1, max_pages=NR + 8)
    domain.populate(NR)
    return domain


# what a guest does to its page 5 (512 + 5 where the leaf should be another): is it dirty then?
SINCE = {
    "nothing": (lambda _d, _p: None, False),
    "a read": (lambda d, p: d.read(p, 0, 4096), False),
    "the same bytes": (lambda d, p: d.write(p, 0, b"first"), False),
    "a bit": (lambda d, p: d.write(p, 4095, b"\x01"), True),
    "there and back": (lambda d, p: (d.write(p, 0, b"other"), d.write(p, 0, b"first")), False),
    "zeros": (lambda d, p: d.write(p, 0, bytes(4096)), True),
    "taken by a balloon": (lambda d, p: d.memory.decrease_reservation(DOMID_SELF, [p]), False),
    "taken and given back": (
        lambda d, p: (
            d.memory.decrease_reservation(DOMID_SELF, [p]),
            d.memory.populate_physmap(DOMID_SELF, [p]),
        ),
        True,
    ),
}


@pytest.mark.parametrize("pfn", [FIRST + 5, FIRST + 512 + 5, FIRST + NR - 1])
@pytest.mark.parametrize("since", SINCE)
def test_what_makes_a_page_dirty(hypervisor: Hypervisor, since: str, pfn: int) -> None:
    domain = make(hypervisor)
    log = DirtyLog(domain)
    domain.write(pfn, 0, b"first")
    assert list(log.dirty()) == [pfn]
    log.sent(log.dirty())
    assert list(log.dirty()) == []
    act, is_dirty = SINCE[since]
    act(domain, pfn)
    assert list(log.dirty()) == ([pfn] if is_dirty else [])


def test_a_page_of_zeros_counts_as_sent(hypervisor: Hypervisor) -> None:
    domain = make(hypervisor)
    domain.read(FIRST, 0, 1)
    assert list(touched(domain)) == [FIRST]
    assert list(DirtyLog(domain).dirty()) == []


def test_a_page_that_changed_after_it_was_found_and_back_after_it_was_sent(
    hypervisor: Hypervisor,
) -> None:
    domain = make(hypervisor)
    log = DirtyLog(domain)
    domain.write(FIRST, 0, b"a")
    found = log.dirty()
    domain.write(FIRST, 0, b"b")
    log.sent(found)
    domain.write(FIRST, 0, b"a")
    assert list(log.dirty()) == [FIRST]


def test_no_ram_cannot_be_sent(hypervisor: Hypervisor) -> None:
    domain = make(hypervisor)
    for pfn in (FIRST + NR, (1 << 28) - 1):
        with pytest.raises(HypercallError):
            DirtyLog(domain).sent(array("I", [pfn]))


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["write", "zero", "take", "give", "read"]),
        st.integers(0, 40).map(lambda n: n * 50),
        st.integers(0, 4095),
        st.integers(0, 255),
    ),
    max_size=12,
)


def act(domain: Domain, kind: str, pfn: int, offset: int, value: int) -> None:
    memory = domain.memory
    with suppress(HypercallError):  # a page that a balloon has
        if kind == "write":
            domain.write(pfn, offset, bytes([value]))
        elif kind == "zero":
            domain.write(pfn, 0, bytes(4096))
        elif kind == "read":
            domain.read(pfn, 0, 1)
        elif kind == "take":
            memory.decrease_reservation(DOMID_SELF, [pfn])
        else:
            memory.populate_physmap(DOMID_SELF, [pfn])


@given(rounds=st.lists(OPERATIONS, min_size=1, max_size=4), change_while_sent=OPERATIONS)
def test_what_is_kept_by_the_log_is_a_copy(
    rounds: list[list[tuple[str, int, int, int]]],
    change_while_sent: list[tuple[str, int, int, int]],
) -> None:
    hypervisor = Hypervisor(Loop(seed=1), nr_frames=1 << 13)
    source, copy = make(hypervisor), make(hypervisor)
    log, out = DirtyLog(source), bytearray()
    writer, reader = Writer(out.extend), Reader()
    for number, operations in enumerate([*rounds, []]):
        for kind, pfn, offset, value in operations:
            act(source, kind, FIRST + pfn, offset, value)
        found = log.dirty()
        if number == 0:  # what was found is out of date before it is sent
            for kind, pfn, offset, value in change_while_sent:
                if kind in ("write", "zero"):
                    act(source, kind, FIRST + pfn, offset, value)
        write_pages(writer, source, found)
        log.sent(found)
        for record in reader.feed(bytes(out)):
            load_pages(copy, record)
        out.clear()
    for pfn in range(FIRST, FIRST + NR, 50):
        try:
            expected = source.read(pfn, 0, 4096)
        except HypercallError:
            continue
        assert copy.read(pfn, 0, 4096) == expected, hex(pfn)
    hypervisor.close()


def test_every_single_bit_of_a_page_shows(hypervisor: Hypervisor) -> None:
    domain = make(hypervisor)
    log = DirtyLog(domain)
    base = bytes(n * 37 & 0xFF for n in range(4096))
    domain.write(FIRST, 0, base)
    log.sent(log.dirty())
    for bit in range(0, 4096 * 8, 7):
        at = bit // 8
        domain.write(FIRST, at, bytes([base[at] ^ 1 << bit % 8]))
        assert len(log.dirty()) == 1, bit
        domain.write(FIRST, at, base[at : at + 1])
    assert len(log.dirty()) == 0


def test_64_mib_are_looked_at_in_a_fraction_of_a_second(hypervisor: Hypervisor) -> None:
    domain = hypervisor.create_domain(vcpus=1, max_pages=1 << 14)
    domain.populate(1 << 14)
    for pfn in range(FIRST, FIRST + (1 << 14)):
        domain.write(pfn, 0, b"x")
    log = DirtyLog(domain)
    log.sent(touched(domain))
    started = time.process_time()
    assert not log.dirty()
    assert time.process_time() - started < 0.5  # measured: 15 ms
