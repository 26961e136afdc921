"""The access log of the kernel: what is kept, and what counts as fetched twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.xen.conftest import domain
from xenpv.abi._kernel import ffi, lib
from xenpv.xen.domain import Domain
from xenpv.xen.hypervisor import Hypervisor

R, W = lib.ACCESS_READ, lib.ACCESS_WRITE


@pytest.fixture
def guest(hypervisor: Hypervisor) -> Iterator[Domain]:
    domain(hypervisor, 0)
    made = domain(hypervisor)
    made.load32(made.pages.start, 0)  # its frame is there
    assert lib.machine_log(hypervisor.machine, 16) == 0
    yield made
    lib.machine_unlog(hypervisor.machine)


def entries(hypervisor: Hypervisor) -> list[tuple[int, int, int, int, int]]:
    raw = ffi.new("struct access_entry[]", 64)
    count = lib.log_entries(hypervisor.machine, raw, 64)
    return [(one.delivery, one.actor, one.kind, one.offset, one.size) for one in raw[0:count]]


def doubles(hypervisor: Hypervisor) -> list[tuple[int, int, int, int]]:
    raw = ffi.new("struct double_fetch[]", 64)
    count = lib.log_double_fetches(hypervisor.machine, raw, 64)
    # Xen looks at a grant entry as often as it likes.
    own = [one for one in raw[0:count] if lib.frame_owner(hypervisor.machine, one.frame) == 1]
    return [(one.actor, one.offset, one.size, one.count) for one in own]


def test_accesses_are_kept_in_order_with_their_delivery(
    hypervisor: Hypervisor, guest: Domain
) -> None:
    pfn = guest.pages.start
    guest.store32(pfn, 16, 5)
    lib.log_delivery(hypervisor.machine, 1)
    guest.read(pfn, 100, 3)
    assert entries(hypervisor) == [(0, 1, W, 16, 4), (1, 1, R, 100, 3)]
    assert lib.log_total(hypervisor.machine) == 2


def test_the_newest_entries_take_the_place_of_the_oldest(
    hypervisor: Hypervisor, guest: Domain
) -> None:
    for at in range(40):
        guest.store32(guest.pages.start, 4 * at, at)
    assert [offset for *_, offset, _ in entries(hypervisor)] == [4 * at for at in range(24, 40)]
    assert lib.log_total(hypervisor.machine) == 40


# (reads, writes and new deliveries, what is fetched twice as (offset, size, count))
CASES = {
    "once": ([(R, 0, 4)], []),
    "twice": ([(R, 0, 4), (R, 0, 4)], [(0, 4, 1)]),
    "three times": ([(R, 0, 4)] * 3, [(0, 4, 2)]),
    "an overlap": ([(R, 0, 8), (R, 6, 8)], [(6, 2, 1)]),
    "neighbours": ([(R, 0, 8), (R, 8, 8)], []),
    "across a word of the bitmap": ([(R, 60, 8), (R, 56, 16)], [(60, 8, 1)]),
    "a whole page": ([(R, 0, 4096), (R, 0, 4096)], [(0, 4096, 1)]),
    "the last byte": ([(R, 4095, 1), (R, 4095, 1)], [(4095, 1, 1)]),
    "an own write between": ([(R, 0, 4), (W, 0, 4), (R, 0, 4)], []),
    "an own write of a part": ([(R, 0, 4), (W, 0, 2), (R, 0, 4)], [(2, 2, 1)]),
    "a write first": ([(W, 0, 4), (R, 0, 4)], []),
    "another delivery between": ([(R, 0, 4), "deliver", (R, 0, 4)], []),
    "twice in the second delivery": ([(R, 0, 4), "deliver", *[(R, 0, 4)] * 2], [(0, 4, 1)]),
}


@pytest.mark.parametrize(("steps", "found"), CASES.values(), ids=list(CASES))
def test_what_is_fetched_twice(hypervisor: Hypervisor, guest: Domain, steps, found) -> None:
    pfn = guest.pages.start
    for step in steps:
        if step == "deliver":
            lib.log_delivery(hypervisor.machine, 1)
            continue
        kind, offset, size = step
        if kind == R:
            guest.read(pfn, offset, size)
        else:
            guest.write(pfn, offset, bytes(size))
    assert doubles(hypervisor) == [(1, *one) for one in found]


def test_two_domains_read_the_same_byte_once_each(hypervisor: Hypervisor, guest: Domain) -> None:
    dom0 = hypervisor.domains[0]
    lib.grant_entry_set(guest.kernel, 8, 0, guest.pages.start, lib.GTF_permit_access)
    pfn = dom0.holes.alloc()
    dom0.gnttab.map(1, 8, pfn)
    guest.load32(guest.pages.start, 0)
    dom0.load32(pfn, 0)
    assert doubles(hypervisor) == []
    dom0.load32(pfn, 0)
    assert doubles(hypervisor) == [(0, 0, 4, 1)]


def test_the_log_goes_before_the_hook_and_both_are_called(
    hypervisor: Hypervisor, guest: Domain
) -> None:
    seen: list[int] = []
    hypervisor.set_hook(lambda *_: seen.append(lib.log_total(hypervisor.machine)))
    guest.store32(guest.pages.start, 0, 1)
    guest.store32(guest.pages.start, 0, 1)
    hypervisor.set_hook(None)
    guest.store32(guest.pages.start, 0, 1)
    assert seen == [1, 2]
    assert lib.log_total(hypervisor.machine) == 3


def test_a_hook_that_was_there_is_there_again_after_the_log(
    hypervisor: Hypervisor, guest: Domain
) -> None:
    lib.machine_unlog(hypervisor.machine)
    seen: list[int] = []
    hypervisor.set_hook(lambda *access: seen.append(access[3]))
    lib.machine_log(hypervisor.machine, 16)
    guest.store32(guest.pages.start, 4, 1)
    lib.machine_unlog(hypervisor.machine)
    guest.store32(guest.pages.start, 8, 1)
    hypervisor.set_hook(None)
    assert seen == [4, 8]


@pytest.mark.parametrize(
    ("capacity", "error"), [(0, -22), (3, -22), (1 << 25, -22), (16, -17)], ids=str
)
def test_a_log_that_cannot_be(hypervisor: Hypervisor, guest: Domain, capacity, error) -> None:
    if error != -17:
        lib.machine_unlog(hypervisor.machine)
    assert lib.machine_log(hypervisor.machine, capacity) == error


def test_more_places_than_are_kept_are_counted_no_further(
    hypervisor: Hypervisor, guest: Domain
) -> None:
    for at in range(300):
        guest.read(guest.pages.start, 8 * at, 4)
        guest.read(guest.pages.start, 8 * at, 4)
    raw = ffi.new("struct double_fetch[]", 512)
    assert lib.log_double_fetches(hypervisor.machine, raw, 512) == 256
