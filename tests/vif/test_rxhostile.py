"""A backend that writes while the guest reads: no slot is believed twice, nothing raises."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP

from tests.vif.rawback import frame
from tests.vif.rxscene import (
    BLANK,
    V4,
    VALIDATED,
    blank,
    deliver,
    ether,
    gso,
    hash_extra,
    payload,
    upper_scene,
)
from xenpv.abi._kernel import lib
from xenpv.testing.access import AccessLog

LARGE = blank(ether(V4 / TCP() / payload(6000)), IP, TCP)
EXTRAS = [gso(1000, more=True), hash_extra(1, 5)]


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_nothing_of_the_ring_or_of_its_pages_is_fetched_twice(personality: str) -> None:
    with upper_scene(personality=personality) as (s, upper):
        with AccessLog(s.xen) as log:
            deliver(s, LARGE, flags=VALIDATED | BLANK, extras=EXTRAS)
            s.back.send(*[frame(60 + n) for n in range(20)])
            s.run()
        assert len(upper.got) == 6 + 20
        assert log.double_fetches() == []


@settings(max_examples=40, deadline=None)
@given(
    personality=st.sampled_from(["windows", "linux"]),
    start=st.sampled_from([0, 0xFFFFFFF0, 0x7FFFFFF8]),
    writes=st.lists(
        st.tuples(
            st.integers(0, 12),  # accesses of the guest before it
            st.one_of(st.integers(0, 15), st.integers(64, 64 + 8 * 24)),
            st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 4, bytes(8)])),
        ),
        max_size=12,
    ),
)
def test_a_backend_that_rewrites_the_ring_under_the_guest_s_eyes(
    personality: str, start: int, writes: list[tuple[int, int, bytes]]
) -> None:
    """Each access of the guest to the ring's page may find other bytes than the last did."""
    with upper_scene(personality=personality, start=start) as (s, upper):
        ring = s.pdo.frontend.queues[0].receiver
        assert ring is not None
        guest, hypervisor = s.guest.created.domain, s.xen.hypervisor
        page = lib.p2m_lookup(guest.kernel, ring.ring.pfns[0], 0)
        arena = memoryview(hypervisor.arena.views)
        left = [writes[0][0] if writes else -1]
        todo = list(writes)

        def hook(actor: int, _kind: int, at: int, _offset: int, _size: int) -> None:
            if actor != guest.domid or at != page or not todo:
                return
            if left[0]:
                left[0] -= 1
                return
            _, offset, data = todo.pop(0)
            arena[page * 4096 + offset : page * 4096 + offset + len(data)] = data
            left[0] = todo[0][0] if todo else -1

        hypervisor.set_hook(hook)
        try:
            deliver(s, LARGE, flags=VALIDATED | BLANK, extras=EXTRAS)
            if not s.broken:
                s.back.posted.clear()
                s.back.notify()
                s.run()
        finally:
            hypervisor.set_hook(None)
            arena.release()
        assert ring.posted - ring.answered == 256 or s.broken
        assert len(upper.got) <= 6 + 256
        assert not s.pdo.frontend.receiver.lent
        pdo = s.pdo
        assert s.guest.shutdown() == 0
        assert pdo.frontend.quarantined == []
