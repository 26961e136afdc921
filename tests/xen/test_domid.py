"""test-domid of Xen (tools/tests/domid), rule by rule, with its 100 numbers."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EEXIST

import pytest

from xenpv.abi._kernel import lib
from xenpv.errors import HypercallError
from xenpv.xen.domain import Domain
from xenpv.xen.domid import DOMID_ANY, DOMID_INVALID, DOMID_SELF, DomidAllocator
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop

RESERVED = 100


@pytest.fixture
def domids() -> DomidAllocator:
    return DomidAllocator(RESERVED)


@pytest.fixture
def full(domids: DomidAllocator) -> DomidAllocator:
    for domid in range(1, RESERVED):
        assert domids.alloc(DOMID_INVALID) == domid
    return domids


def test_1_every_explicit_id_allocates(domids: DomidAllocator) -> None:
    assert [domids.alloc(domid) for domid in range(RESERVED)] == list(range(RESERVED))


def test_2_an_id_allocates_once(domids: DomidAllocator) -> None:
    assert domids.alloc(0) == 0
    assert domids.alloc(0) == DOMID_INVALID


def test_3_any_yields_1_and_up(domids: DomidAllocator) -> None:
    assert [domids.alloc(DOMID_ANY) for _ in range(RESERVED - 1)] == list(range(1, RESERVED))


def test_4_when_all_are_taken_there_is_none(full: DomidAllocator) -> None:
    assert [full.alloc(DOMID_ANY) for _ in range(RESERVED)] == [DOMID_INVALID] * RESERVED


def test_5_freed_ids_are_reused_from_the_low_end_after_the_wrap(full: DomidAllocator) -> None:
    for domid in (70, 1, 30):
        full.free(domid)
    assert [full.alloc(DOMID_ANY) for _ in range(4)] == [1, 30, 70, DOMID_INVALID]


def test_6_only_the_last_freed_id_is_there(full: DomidAllocator) -> None:
    full.free(RESERVED - 1)
    assert full.alloc(DOMID_ANY) == RESERVED - 1
    assert full.alloc(DOMID_ANY) == DOMID_INVALID


def test_7_a_reserved_id_is_none_of_its_own(full: DomidAllocator) -> None:
    assert full.alloc(RESERVED) == DOMID_INVALID
    full.free(5)
    assert full.alloc(RESERVED) == 5


def test_0_is_never_found_but_given_when_asked_for(full: DomidAllocator) -> None:
    assert full.alloc(DOMID_ANY) == DOMID_INVALID
    assert full.alloc(0) == 0


def test_an_explicit_id_does_not_move_the_search(domids: DomidAllocator) -> None:
    assert domids.alloc(50) == 50
    assert domids.alloc(DOMID_ANY) == 1
    domids.free(1)
    assert domids.alloc(DOMID_ANY) == 2


@pytest.fixture
def small() -> Iterator[Hypervisor]:
    """A machine with room for domains 0 to 7."""
    made = Hypervisor(Loop(seed=1), nr_frames=1 << 12, first_reserved=8)
    made.create_domain(0, vcpus=1, max_pages=64).unpause()
    yield made
    made.close()


def _create(hypervisor: Hypervisor, domid: int | None = None) -> Domain:
    return hypervisor.create_domain(domid, vcpus=1, max_pages=16)


def test_createdomain_follows_the_allocator(small: Hypervisor) -> None:
    assert [_create(small).domid for _ in range(7)] == [1, 2, 3, 4, 5, 6, 7]
    with pytest.raises(HypercallError) as caught:
        _create(small)
    assert caught.value.errno == EEXIST
    assert caught.value.operation == "XEN_DOMCTL_createdomain"
    for domid in (6, 2):
        small.destroy_domain(small.domains[domid])
    assert [_create(small, domid).domid for domid in (DOMID_SELF, None)] == [2, 6]


def test_a_dead_domain_that_is_mapped_keeps_its_number(small: Hypervisor) -> None:
    guests = [_create(small) for _ in range(7)]
    guests[3].populate(4)
    control = small.domains[0]
    guests[3].check(_grant(guests[3]))
    handle = control.gnttab.map(4, 8, 0x100000)
    small.destroy_domain(guests[3])
    with pytest.raises(HypercallError, match="EEXIST"):
        _create(small)
    control.gnttab.unmap(handle, 0x100000)
    assert _create(small).domid == 4


def _grant(domain: Domain) -> int:
    return int(lib.grant_entry_set(domain.kernel, 8, 0, 0x100, 1))
