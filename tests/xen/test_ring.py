"""The two halves of a shared ring and the byte streams, over one page seen from two domains."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.xen.conftest import NR_FRAMES, domain
from xenpv.abi._kernel import ffi, lib
from xenpv.abi.layout import offsetof
from xenpv.back.ring import BackRing
from xenpv.bus.ring import FrontRing
from xenpv.errors import HypercallError, LocalProtocolError, PeerProtocolError
from xenpv.xen.domain import Domain
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop

REQ, RSP = 112, 16
REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT = 0, 4, 8, 12


@attrs.define
class Pair:
    """A ring of `pages` pages: the guest's half, dom0's half, and the guest's first page."""

    guest: Domain
    dom0: Domain
    front: FrontRing
    back: BackRing
    pfn: int


def pair(hypervisor: Hypervisor, pages: int = 1, start: int = 0) -> Pair:
    dom0, guest = hypervisor.domains[0], hypervisor.domains[1]
    pfns = [guest.pages.alloc() for _ in range(pages)][::-1]
    for pfn in pfns[::-1]:
        guest.write(pfn, 0, bytes(4096))
    front = FrontRing(guest, pfns, req_size=REQ, rsp_size=RSP)
    if start:
        front.seek(start)
        guest.store32(pfns[0], REQ_PROD, start)
        guest.store32(pfns[0], RSP_PROD, start)
        guest.store32(pfns[0], REQ_EVENT, (start + 1) & 0xFFFFFFFF)
        guest.store32(pfns[0], RSP_EVENT, (start + 1) & 0xFFFFFFFF)
    mapped = []
    for pfn in pfns:
        ref = 8 + pfn % 256  # a pinned reference would go on naming its old frame
        lib.grant_entry_set(guest.kernel, ref, 0, pfn, 1)
        mapped.append(dom0.holes.alloc())
        dom0.gnttab.map(guest.domid, ref, mapped[-1])
    return Pair(guest, dom0, front, BackRing(dom0, mapped, req_size=REQ, rsp_size=RSP), pfns[0])


@pytest.fixture
def two(hypervisor: Hypervisor) -> Hypervisor:
    domain(hypervisor, 0)
    domain(hypervisor)
    return hypervisor


def requests(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(REQ, "little") for number in numbers)


def responses(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(RSP, "little") for number in numbers)


def test_initial_header_is_producers_zero_and_events_one(two: Hypervisor) -> None:
    ring = pair(two)
    words = [ring.guest.load32(ring.pfn, offset) for offset in range(0, 64, 4)]
    assert words == [0, 1, 0, 1] + [0] * 12


@pytest.mark.parametrize(("pages", "size"), [(1, 32), (2, 64), (4, 128), (8, 256), (16, 512)])
def test_ring_holds_a_power_of_two_of_entries(two: Hypervisor, pages: int, size: int) -> None:
    ring = pair(two, pages)
    assert (ring.front.size, ring.back.size) == (size, size)


def test_slots_lie_after_the_header_at_the_entry_size(two: Hypervisor) -> None:
    ring = pair(two)
    ring.front.push(requests(0xAA, 0xBB), 2)
    assert ring.guest.read(ring.pfn, 64, 1) == b"\xaa"
    assert ring.guest.read(ring.pfn, 64 + REQ, 1) == b"\xbb"


def test_a_slot_may_cross_two_pages_that_are_not_adjacent(two: Hypervisor) -> None:
    ring = pair(two, 2)
    numbers = [(1 << 890) + n for n in range(64)]
    ring.front.push(requests(*numbers), 64)
    count, raw = ring.back.take()
    assert count == 64
    assert bytes(raw) == requests(*numbers)
    ring.back.push(responses(*range(64)), 64)
    assert bytes(ring.front.take()[1]) == responses(*range(64))


def test_a_response_shows_nothing_of_the_request_or_the_backend(two: Hypervisor) -> None:
    ring = pair(two)
    ring.front.push(b"\xee" * REQ, 1)
    ring.back.take()
    ring.back.push(responses(1), 1)
    assert ring.guest.read(ring.pfn, 64, REQ) == responses(1) + bytes(REQ - RSP)


def test_pushing_more_than_is_free_is_the_callers_fault(two: Hypervisor) -> None:
    ring = pair(two)
    ring.front.push(requests(*range(30)), 30)
    with pytest.raises(LocalProtocolError, match="^3 requests, but 2 slots are free$"):
        ring.front.push(requests(1, 2, 3), 3)
    assert ring.front.req_prod == 30


@pytest.mark.parametrize("ahead", [33, 34, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_req_prod_past_the_ring_is_the_peers_fault(two: Hypervisor, ahead: int) -> None:
    ring = pair(two)
    ring.guest.store32(ring.pfn, REQ_PROD, ahead)
    with pytest.raises(PeerProtocolError, match="runs past the ring"):
        ring.back.take()
    assert ring.back.req_cons == 0


def test_req_prod_moving_back_is_the_peers_fault(two: Hypervisor) -> None:
    ring = pair(two)
    ring.front.push(requests(1, 2, 3), 3)
    ring.back.take()
    ring.guest.store32(ring.pfn, REQ_PROD, 1)
    with pytest.raises(PeerProtocolError):
        ring.back.take()


@pytest.mark.parametrize("answered", [3, 33, 0x80000000, 0xFFFFFFFF])
def test_rsp_prod_past_what_is_in_flight_is_the_peers_fault(two: Hypervisor, answered: int) -> None:
    ring = pair(two)
    ring.front.push(requests(1, 2), 2)
    ring.dom0.store32(ring.back.pfns[0], RSP_PROD, answered)
    with pytest.raises(PeerProtocolError):
        ring.front.take()


def test_a_backend_leaves_requests_on_the_ring_that_it_has_no_slot_to_answer(
    two: Hypervisor,
) -> None:
    ring = pair(two)
    ring.front.push(requests(*range(32)), 32)
    assert ring.back.take(5)[0] == 5
    assert ring.back.take()[0] == 27
    assert ring.back.take()[0] == 0
    assert ring.back.in_flight == 32


def test_attaching_to_a_used_ring_goes_on_where_responses_ended(two: Hypervisor) -> None:
    ring = pair(two)
    ring.front.push(requests(1, 2, 3), 3)
    ring.back.take()
    ring.back.push(responses(1, 2), 2)
    again = BackRing(ring.dom0, ring.back.pfns, req_size=REQ, rsp_size=RSP)
    assert again.rsp_prod == 2
    count, raw = again.take()
    assert (count, bytes(raw)) == (1, requests(3))
    ring.guest.store32(ring.pfn, REQ_PROD, 2 + 33)
    with pytest.raises(PeerProtocolError):
        BackRing(ring.dom0, ring.back.pfns, req_size=REQ, rsp_size=RSP)


def test_notify_only_when_the_event_index_is_crossed(two: Hypervisor) -> None:
    ring = pair(two)
    assert ring.front.push(requests(1), 1)
    assert not ring.front.push(requests(2), 1)
    ring.back.take()
    assert not ring.back.final_check()
    assert ring.front.push(requests(3), 1)
    assert ring.back.push(responses(1, 2), 2)
    assert ring.front.take()[0] == 2
    assert not ring.front.final_check()
    assert ring.guest.load32(ring.pfn, RSP_EVENT) == 3


def test_final_check_sees_what_came_after_the_last_look(two: Hypervisor) -> None:
    ring = pair(two)
    ring.front.push(requests(1), 1)
    assert ring.back.final_check()
    ring.back.take()
    assert not ring.back.final_check()
    assert ring.guest.load32(ring.pfn, REQ_EVENT) == 2


def test_reap_tells_of_a_response_that_came_after_its_last_look(two: Hypervisor) -> None:
    ring = pair(two)
    ring.front.push(requests(1, 2), 2)
    ring.back.take()
    ring.back.push(responses(1), 1)

    def late(_actor: int, kind: int, _frame: int, offset: int, _size: int) -> None:
        if kind == lib.ACCESS_WRITE and offset == RSP_EVENT:
            two.set_hook(None)
            ring.back.push(responses(2), 1)

    two.set_hook(late)
    count, raw, more = ring.front.reap()
    assert (count, bytes(raw), more) == (1, responses(1), True)
    count, raw, more = ring.front.reap()
    assert (count, bytes(raw), more) == (1, responses(2), False)


def test_reap_asks_for_no_event_while_there_is_more_at_once(two: Hypervisor) -> None:
    """RING_FINAL_CHECK leaves rsp_event alone when it finds work before it sets it."""
    ring = pair(two)
    ring.front.push(requests(1, 2), 2)
    ring.back.take()
    ring.back.push(responses(1), 1)
    looks = 0

    def late(_actor: int, kind: int, _frame: int, offset: int, _size: int) -> None:
        nonlocal looks
        looks += kind == lib.ACCESS_READ and offset == RSP_PROD
        if looks == 2:
            two.set_hook(None)
            ring.back.push(responses(2), 1)

    two.set_hook(late)
    assert ring.front.reap()[::2] == (1, True)
    assert ring.guest.load32(ring.pfn, RSP_EVENT) == 1


@pytest.mark.parametrize("answered", [1, 32, 33, 2**32 - 1])
def test_reap_refuses_more_than_is_in_flight(two: Hypervisor, answered: int) -> None:
    ring = pair(two)
    ring.guest.store32(ring.pfn, RSP_PROD, answered)
    with pytest.raises(PeerProtocolError, match="ring responses: the peer's index runs past"):
        ring.front.reap()
    assert ring.front.rsp_cons == 0
    assert ring.guest.load32(ring.pfn, RSP_EVENT) == 1


@given(
    start=st.sampled_from([0, 1, 0x7FFFFFF0, 0xFFFFFFE0, 0xFFFFFFF0, 0xFFFFFFFF]),
    steps=st.lists(st.tuples(st.sampled_from("ptrfg"), st.integers(0, 40)), max_size=60),
)
def test_nothing_is_lost_or_made_up_across_the_wrap(
    start: int, steps: list[tuple[str, int]]
) -> None:
    """posted = taken + on the ring, taken = answered + in flight, answers in order."""
    hypervisor = Hypervisor(Loop(), nr_frames=NR_FRAMES)
    try:
        domain(hypervisor, 0)
        domain(hypervisor)
        ring = pair(hypervisor, start=start)
        posted = taken = answered = received = 0
        for step, number in steps:
            if step == "p":
                count = min(number, ring.front.free)
                ring.front.push(requests(*range(posted, posted + count)), count)
                posted += count
            elif step == "t":
                count, raw = ring.back.take(number)
                assert bytes(raw) == requests(*range(taken, taken + count))
                taken += count
                assert count == min(number, posted - taken + count, 32)
            elif step == "r":
                count = min(number, ring.back.in_flight)
                ring.back.push(responses(*range(answered, answered + count)), count)
                answered += count
            else:
                if step == "f":
                    count, raw = ring.front.take()
                else:
                    count, raw, more = ring.front.reap()
                    assert not more
                    next_index = (start + received + count + 1) & 0xFFFFFFFF
                    assert ring.guest.load32(ring.pfn, RSP_EVENT) == next_index
                assert bytes(raw) == responses(*range(received, received + count))
                received += count
                assert received == answered
            assert ring.front.in_flight == posted - received
            assert ring.back.in_flight == taken - answered
            assert ring.front.req_prod == (start + posted) & 0xFFFFFFFF
    finally:
        hypervisor.close()


STREAM = (0, 1024, 2048, 2052)


def put(guest: Domain, pfn: int, data: bytes) -> int:
    return int(lib.stream_put(guest.kernel, pfn, *STREAM, ffi.from_buffer(data), len(data)))


def get(guest: Domain, pfn: int, most: int) -> bytes:
    out = bytearray(most)
    count = lib.stream_get(guest.kernel, pfn, *STREAM, ffi.from_buffer(out), most)
    assert count >= 0
    return bytes(out[:count])


def test_stream_constants_are_those_of_the_store_page() -> None:
    page = "xenstore_domain_interface"
    fields = ("req", "req_cons", "req_prod", "rsp", "rsp_cons", "rsp_prod")
    assert [offsetof(page, field) for field in fields] == [0, 2048, 2052, 1024, 2056, 2060]


@given(
    start=st.sampled_from([0, 1000, 0xFFFFFC00, 0xFFFFFFFF]),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 1500)), max_size=30),
)
def test_a_stream_gives_back_what_was_put(start: int, steps: list[tuple[bool, int]]) -> None:
    hypervisor = Hypervisor(Loop(), nr_frames=NR_FRAMES)
    try:
        guest = domain(hypervisor)
        pfn = guest.pages.alloc()
        guest.store32(pfn, 2048, start)
        guest.store32(pfn, 2052, start)
        sent = received = b""
        for writes, size in steps:
            if writes:
                data = bytes((len(sent) + n) % 251 for n in range(size))
                count = put(guest, pfn, data)
                assert count == min(size, 1024 - (len(sent) - len(received)))
                sent += data[:count]
            else:
                received += get(guest, pfn, size)
            assert sent.startswith(received)
            assert len(sent) - len(received) <= 1024
        received += get(guest, pfn, 1024)
        assert received == sent
    finally:
        hypervisor.close()


@pytest.mark.parametrize(("cons", "prod"), [(0, 1025), (5, 4), (0, 0x80000000)])
def test_stream_indices_out_of_bounds_are_refused(guest: Domain, cons: int, prod: int) -> None:
    pfn = guest.pages.alloc()
    guest.store32(pfn, 2048, cons)
    guest.store32(pfn, 2052, prod)
    assert put(guest, pfn, b"x") == lib.KERNEL_E_OVERFLOW
    out = bytearray(10)
    taken = lib.stream_get(guest.kernel, pfn, *STREAM, ffi.from_buffer(out), 10)
    assert taken == lib.KERNEL_E_OVERFLOW


@pytest.mark.parametrize(
    "shape", [(0, 1000, 2048, 2052), (3584, 1024, 0, 4), (0, 1024, 4094, 0), (0, 0, 2048, 2052)]
)
def test_stream_shapes_that_leave_the_page_are_refused(
    guest: Domain, shape: tuple[int, int, int, int]
) -> None:
    pfn = guest.pages.alloc()
    assert lib.stream_put(guest.kernel, pfn, *shape, b"x", 1) == -14


def test_a_ring_needs_its_pages(guest: Domain) -> None:
    with pytest.raises(HypercallError, match="EFAULT"):
        guest.ring([0x5], 112, 16)
