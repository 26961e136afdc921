"""The FIFO ABI: words and control blocks byte for byte, queues, and the pages behind them."""

from __future__ import annotations

import pytest

from tests.xen.conftest import domain
from tests.xen.evtchn_world import ARRAY_PFN, CONTROL_PFN, enable_fifo
from xenpv.abi._kernel import lib
from xenpv.bus.evtchn_fifo import ProcessorFifo
from xenpv.errors import HypercallError
from xenpv.xen.domain import Domain
from xenpv.xen.hypervisor import Hypervisor

PENDING, MASKED, LINKED, BUSY = 1 << 31, 1 << 30, 1 << 29, 1 << 28


@pytest.fixture
def fifo(hypervisor: Hypervisor, dom0: Domain) -> Domain:
    """A guest of two vcpus with ports 1 to 5 bound to dom0's."""
    guest = domain(hypervisor, vcpus=2, max_event_channels=200_000)
    enable_fifo(guest)
    for _ in range(5):
        dom0.evtchn.bind_interdomain(guest.domid, guest.evtchn.alloc_unbound(0))
    return guest


def word(guest: Domain, port: int) -> int:
    return guest.load32(ARRAY_PFN + port // 1024, port % 1024 * 4)


def ready(guest: Domain, vcpu: int = 0) -> int:
    return guest.load32(CONTROL_PFN, 72 * vcpu)


def head(guest: Domain, priority: int, vcpu: int = 0) -> int:
    return guest.load32(CONTROL_PFN, 72 * vcpu + 8 + 4 * priority)


def consume(guest: Domain, vcpu: int = 0) -> list[int]:
    due: list[int] = []

    def event(port: int) -> None:
        due.append(port)
        lib.evtchn_clear_pending(guest.kernel, port)

    ProcessorFifo(guest, vcpu, event).upcall()
    return due


def test_an_event_is_a_word_a_head_a_ready_bit_and_an_upcall(dom0: Domain, fifo: Domain) -> None:
    dom0.evtchn.send(2)
    assert word(fifo, 2) == PENDING | LINKED
    assert head(fifo, 7) == 2
    assert ready(fifo) == 1 << 7
    assert lib.evtchn_upcall_pending(fifo.kernel, 0) == 1
    dom0.evtchn.send(3)
    assert word(fifo, 2) == PENDING | LINKED | 3
    assert word(fifo, 3) == PENDING | LINKED
    assert head(fifo, 7) == 2
    assert consume(fifo) == [2, 3]
    assert (word(fifo, 2), word(fifo, 3), ready(fifo)) == (0, 0, 0)
    assert head(fifo, 7) == 2  # only Xen writes it, at the next event


def test_a_second_event_before_the_first_is_taken_changes_nothing(
    dom0: Domain, fifo: Domain
) -> None:
    dom0.evtchn.send(2)
    before = fifo.read(ARRAY_PFN, 0, 4096), fifo.read(CONTROL_PFN, 0, 4096)
    dom0.evtchn.send(2)
    assert (fifo.read(ARRAY_PFN, 0, 4096), fifo.read(CONTROL_PFN, 0, 4096)) == before


def test_queues_are_emptied_in_the_order_of_priority(dom0: Domain, fifo: Domain) -> None:
    for port, priority in ((1, 15), (2, 7), (3, 0), (4, 3)):
        fifo.evtchn.set_priority(port, priority)
    for port in (1, 2, 3, 4):
        dom0.evtchn.send(port)
    assert ready(fifo) == 1 << 15 | 1 << 7 | 1 << 0 | 1 << 3
    assert [head(fifo, priority) for priority in (15, 7, 0, 3)] == [1, 2, 3, 4]
    assert consume(fifo) == [3, 4, 2, 1]


def test_a_new_priority_affects_later_linking_only(dom0: Domain, fifo: Domain) -> None:
    dom0.evtchn.send(1)
    fifo.evtchn.set_priority(1, 0)
    assert (ready(fifo), head(fifo, 7), head(fifo, 0)) == (1 << 7, 1, 0)
    assert consume(fifo) == [1]
    dom0.evtchn.send(1)
    assert (ready(fifo), head(fifo, 0)) == (1 << 0, 1)


def test_a_new_vcpu_affects_later_linking_only(dom0: Domain, fifo: Domain) -> None:
    dom0.evtchn.send(1)
    fifo.evtchn.bind_vcpu(1, 1)
    assert (ready(fifo, 0), ready(fifo, 1)) == (1 << 7, 0)
    assert consume(fifo, 0) == [1]
    dom0.evtchn.send(1)
    assert (ready(fifo, 0), ready(fifo, 1), head(fifo, 7, 1)) == (0, 1 << 7, 1)
    assert consume(fifo, 1) == [1]


def test_a_tail_that_moved_to_another_queue_is_no_tail_of_the_old_one(
    dom0: Domain, fifo: Domain
) -> None:
    dom0.evtchn.send(1)
    assert consume(fifo) == [1]
    fifo.evtchn.set_priority(1, 3)
    fifo.evtchn.set_priority(3, 3)
    for port in (1, 2, 3):
        dom0.evtchn.send(port)
    assert [word(fifo, port) & 0x1FFFF for port in (1, 2, 3)] == [3, 0, 0]
    assert consume(fifo) == [1, 3, 2]


def test_binding_a_port_again_resets_its_priority(dom0: Domain, fifo: Domain) -> None:
    fifo.evtchn.set_priority(5, 2)
    fifo.evtchn.close(5)
    assert fifo.evtchn.alloc_unbound(0) == 5
    assert dom0.evtchn.bind_interdomain(fifo.domid, 5) == 6
    dom0.evtchn.send(6)
    assert ready(fifo) == 1 << 7


def test_a_masked_event_is_not_linked_until_it_is_unmasked(dom0: Domain, fifo: Domain) -> None:
    lib.evtchn_mask(fifo.kernel, 2)
    dom0.evtchn.send(2)
    assert word(fifo, 2) == PENDING | MASKED
    assert (ready(fifo), lib.evtchn_upcall_pending(fifo.kernel, 0)) == (0, 0)
    fifo.evtchn.unmask(2)
    assert word(fifo, 2) == PENDING | LINKED
    assert lib.evtchn_upcall_pending(fifo.kernel, 0) == 1
    assert consume(fifo) == [2]


def test_a_masked_event_on_a_queue_is_unlinked_and_stays_pending(
    dom0: Domain, fifo: Domain
) -> None:
    dom0.evtchn.send(2)
    lib.evtchn_mask(fifo.kernel, 2)
    assert consume(fifo) == []
    assert word(fifo, 2) == PENDING | MASKED
    assert lib.evtchn_guest_unmask(fifo.kernel, 2) == 1
    fifo.evtchn.unmask(2)
    assert consume(fifo) == [2]


def test_the_guest_may_not_unmask_a_busy_word(fifo: Domain) -> None:
    fifo.store32(ARRAY_PFN, 8, MASKED | BUSY)
    assert lib.evtchn_guest_unmask(fifo.kernel, 2) == -16
    assert word(fifo, 2) == MASKED | BUSY


def test_a_closed_port_that_is_linked_is_not_given_out(dom0: Domain, fifo: Domain) -> None:
    dom0.evtchn.send(2)
    fifo.evtchn.close(2)
    assert word(fifo, 2) == LINKED
    assert fifo.evtchn.status(2).status == 0
    assert fifo.evtchn.alloc_unbound(0) == 6
    assert consume(fifo) == []
    assert fifo.evtchn.alloc_unbound(0) == 2


def test_an_event_without_its_array_page_is_saved_and_raised_by_expand_array(
    hypervisor: Hypervisor, dom0: Domain
) -> None:
    guest = domain(hypervisor, vcpus=2)
    port = guest.evtchn.alloc_unbound(0)
    far = dom0.evtchn.bind_interdomain(guest.domid, port)
    enable_fifo(guest, pages=0)
    dom0.evtchn.send(far)
    assert guest.evtchn.fifo
    assert ready(guest) == 0
    guest.evtchn.expand_array(ARRAY_PFN)
    assert word(guest, port) == PENDING | LINKED
    assert consume(guest) == [port]


def test_pending_bits_of_the_2_level_abi_are_saved_at_the_switch(
    hypervisor: Hypervisor, dom0: Domain
) -> None:
    guest = domain(hypervisor, vcpus=2)
    ports = [guest.evtchn.alloc_unbound(0) for _ in range(3)]
    far = [dom0.evtchn.bind_interdomain(guest.domid, port) for port in ports]
    guest.evtchn.bind_vcpu(ports[2], 1)
    dom0.evtchn.send(far[0])
    dom0.evtchn.send(far[2])
    enable_fifo(guest)
    assert consume(guest, 0) == [ports[0]]
    assert consume(guest, 1) == [ports[2]]


def test_an_event_for_a_vcpu_without_control_block_is_dropped(
    hypervisor: Hypervisor, dom0: Domain
) -> None:
    guest = domain(hypervisor, vcpus=2)
    port = guest.evtchn.alloc_unbound(0)
    far = dom0.evtchn.bind_interdomain(guest.domid, port)
    guest.evtchn.bind_vcpu(port, 1)
    guest.evtchn.init_control(CONTROL_PFN, 0, 0)
    guest.evtchn.expand_array(ARRAY_PFN)
    dom0.evtchn.send(far)
    assert word(guest, port) == PENDING
    guest.evtchn.init_control(CONTROL_PFN, 72, 1)
    assert consume(guest, 1) == []
    dom0.evtchn.send(far)  # pending, but not linked: it is now
    assert consume(guest, 1) == [port]


def test_a_first_init_control_that_fails_leaves_the_2_level_abi(
    dom0: Domain, guest: Domain
) -> None:
    with pytest.raises(HypercallError, match="EINVAL"):
        guest.evtchn.init_control(0x9999, 0, 0)
    assert not guest.evtchn.fifo
    port = guest.evtchn.alloc_unbound(0)
    dom0.evtchn.send(dom0.evtchn.bind_interdomain(guest.domid, port))
    assert lib.evtchn_is_pending(guest.kernel, port) == 1


@pytest.mark.parametrize("port", [1023, 1024, 2047, 2048, 65_535, 131_071])
def test_words_of_far_ports_lie_in_their_page(
    hypervisor: Hypervisor, dom0: Domain, port: int
) -> None:
    guest = domain(hypervisor, vcpus=1, max_event_channels=200_000)
    enable_fifo(guest, pages=128)
    while guest.evtchn.alloc_unbound(0) < port:
        pass
    dom0.evtchn.send(dom0.evtchn.bind_interdomain(guest.domid, port))
    assert guest.load32(ARRAY_PFN + port // 1024, port % 1024 * 4) == PENDING | LINKED
    assert head(guest, 7) == port
    assert consume(guest) == [port]


def test_fifo_pages_outlive_decrease_reservation_and_go_with_the_abi(
    hypervisor: Hypervisor, dom0: Domain, fifo: Domain
) -> None:
    frames = [int(lib.p2m_lookup(fifo.kernel, pfn, 0)) for pfn in (CONTROL_PFN, ARRAY_PFN)]
    # one for the p2m, and one for each of the two blocks in it
    assert [lib.frame_refs(hypervisor.machine, frame) for frame in frames] == [3, 2]
    for pfn in (CONTROL_PFN, ARRAY_PFN):
        assert fifo.memory.decrease_reservation(fifo.DOMID_SELF, [pfn]) == 1
    assert [lib.frame_refs(hypervisor.machine, frame) for frame in frames] == [2, 1]
    dom0.evtchn.send(1)  # into pages that the guest cannot see any more
    fifo.evtchn.reset()
    assert [lib.frame_refs(hypervisor.machine, frame) for frame in frames] == [0, 0]


def test_death_lets_go_of_fifo_pages(hypervisor: Hypervisor, dom0: Domain, fifo: Domain) -> None:
    used = lib.machine_used_frames(hypervisor.machine)
    again = domain(hypervisor, vcpus=2)
    enable_fifo(again, pages=3)
    dom0.evtchn.bind_interdomain(again.domid, again.evtchn.alloc_unbound(0))
    hypervisor.destroy_domain(again)
    assert lib.machine_used_frames(hypervisor.machine) == used
    assert fifo.evtchn.fifo


def test_reset_goes_back_to_2_level_and_fifo_can_come_again(dom0: Domain, fifo: Domain) -> None:
    fifo.evtchn.reset()
    port = fifo.evtchn.alloc_unbound(0)
    far = dom0.evtchn.bind_interdomain(fifo.domid, port)
    dom0.evtchn.send(far)
    assert word(fifo, port) == 0
    assert lib.evtchn_take_pending(fifo.kernel, port) == 1
    enable_fifo(fifo)
    dom0.evtchn.send(far)
    assert consume(fifo) == [port]


def test_free_ports_are_found_without_a_search(hypervisor: Hypervisor, dom0: Domain) -> None:
    """Opening and closing at 100,000 bound ports asks the kernel no more than at ten."""
    guest = domain(hypervisor, max_event_channels=200_000)
    enable_fifo(guest, pages=128)
    while guest.evtchn.alloc_unbound(0) < 100_000:
        pass
    accesses = 0

    def count(*_: int) -> None:
        nonlocal accesses
        accesses += 1

    hypervisor.set_hook(count)
    for port in (5000, 40, 99_999):
        guest.evtchn.close(port)
    assert [guest.evtchn.alloc_unbound(0) for _ in range(4)] == [40, 5000, 99_999, 100_001]
    hypervisor.set_hook(None)
    assert accesses <= 12
