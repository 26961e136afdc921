"""The access hook: told before each shared access, may change memory, may end the call."""

from __future__ import annotations

import pytest

from tests.xen.conftest import domain
from tests.xen.test_ring import REQ, Pair, pair, requests
from xenpv.abi._kernel import lib
from xenpv.xen.hypervisor import Hypervisor

Access = tuple[int, int, int, int]  # actor, kind, offset, size


@pytest.fixture
def ring(hypervisor: Hypervisor) -> Pair:
    domain(hypervisor, 0)
    domain(hypervisor)
    return pair(hypervisor)


def frame_of(ring: Pair) -> int:
    return int(lib.p2m_lookup(ring.guest.kernel, ring.pfn, 0))


def test_a_backend_pass_shows_every_access_in_order(hypervisor: Hypervisor, ring: Pair) -> None:
    ring.front.push(requests(1, 2), 2)
    seen: list[Access] = []
    mine = frame_of(ring)

    def hook(actor: int, kind: int, frame: int, offset: int, size: int) -> None:
        assert frame == mine
        seen.append((actor, kind, offset, size))

    hypervisor.set_hook(hook)
    ring.back.take()
    ring.back.push(bytes(32), 2)
    ring.back.final_check()
    hypervisor.set_hook(None)
    read, write = lib.ACCESS_READ, lib.ACCESS_WRITE
    assert seen == [
        (0, read, 0, 4),  # req_prod, once
        (0, read, 64, REQ),  # each request, once
        (0, read, 64 + REQ, REQ),
        (0, write, 64, REQ),  # the responses
        (0, write, 64 + REQ, REQ),
        (0, write, 8, 4),  # rsp_prod after them
        (0, read, 12, 4),  # rsp_event after that
        (0, read, 0, 4),
        (0, write, 4, 4),  # req_event, then look again
        (0, read, 0, 4),
    ]


def test_the_hook_comes_before_the_access(hypervisor: Hypervisor, ring: Pair) -> None:
    ring.front.push(requests(1), 1)

    def race(_actor: int, _kind: int, _frame: int, offset: int, _size: int) -> None:
        if offset == 64:
            hypervisor.set_hook(None)
            ring.guest.write(ring.pfn, 64, b"\x99")

    hypervisor.set_hook(race)
    _, raw = ring.back.take()
    assert raw[0] == 0x99


def test_a_page_accessor_is_seen_too(hypervisor: Hypervisor, ring: Pair) -> None:
    seen: list[Access] = []
    hypervisor.set_hook(lambda *access: seen.append((access[0], access[1], *access[3:])))
    ring.guest.store32(ring.pfn, 16, 5)
    ring.guest.load32(ring.pfn, 16)
    ring.guest.write(ring.pfn, 100, b"abc")
    ring.guest.read(ring.pfn, 100, 3)
    hypervisor.set_hook(None)
    assert seen == [(1, 1, 16, 4), (1, 0, 16, 4), (1, 1, 100, 3), (1, 0, 100, 3)]


def test_hypervisor_accesses_are_marked(hypervisor: Hypervisor, ring: Pair) -> None:
    kinds: list[int] = []
    hypervisor.set_hook(lambda _a, kind, *_: kinds.append(kind))
    lib.evtchn_set_pending(ring.guest.kernel, 5, 0)
    hypervisor.set_hook(None)
    assert kinds
    assert all(kind & lib.ACCESS_HYPERVISOR for kind in kinds)


def test_what_the_hook_raises_comes_out_where_the_kernel_was_called(
    hypervisor: Hypervisor, ring: Pair
) -> None:
    ring.front.push(requests(1, 2, 3), 3)
    calls = 0

    def stop(*_: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyError("stop here")

    hypervisor.set_hook(stop)
    with pytest.raises(KeyError, match="stop here"):
        ring.back.take()
    assert calls == 2  # the call ended: no later access was begun
    hypervisor.set_hook(None)
    assert ring.back.req_cons == 0
    assert ring.back.take()[0] == 3


def test_an_aborted_push_publishes_nothing(hypervisor: Hypervisor, ring: Pair) -> None:
    def stop(_actor: int, _kind: int, _frame: int, offset: int, _size: int) -> None:
        if offset == 64 + REQ:
            raise KeyError("second slot")

    hypervisor.set_hook(stop)
    with pytest.raises(KeyError):
        ring.front.push(requests(1, 2), 2)
    hypervisor.set_hook(None)
    assert ring.front.req_prod == 0
    assert ring.guest.load32(ring.pfn, 0) == 0


def test_the_hook_may_run_the_other_end_in_between(hypervisor: Hypervisor, ring: Pair) -> None:
    """The race that FINAL_CHECK is for: work arrives after the event index was set."""
    pushed = False

    def peer(_actor: int, kind: int, _frame: int, offset: int, _size: int) -> None:
        nonlocal pushed
        if kind == lib.ACCESS_READ and offset == 0 and not pushed and armed:
            pushed = True
            assert ring.front.push(requests(7), 1)

    armed = False
    ring.back.take()

    def arm(_actor: int, kind: int, _frame: int, offset: int, _size: int) -> None:
        nonlocal armed
        peer(_actor, kind, _frame, offset, _size)
        if kind == lib.ACCESS_WRITE and offset == 4:
            armed = True

    hypervisor.set_hook(arm)
    more = ring.back.final_check()
    hypervisor.set_hook(None)
    assert pushed
    assert more
