"""A hostile guest on the tx ring: any bytes, changed at any moment, and what must hold.

Whatever it does a packet is delivered, or its slots are answered ERROR, or it is dropped, or
the vif is broken; nothing raises, nothing grows, and after a close nothing of the guest's is
held.
"""

from __future__ import annotations

from struct import pack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.back.netfront import Net, extra, frame, serve_by, slot
from tests.back.test_nettx import tcp
from tests.back.test_txpages import SlowPort
from xenpv.abi.xenbus import XenbusState
from xenpv.back.netback import MULTICAST_MAX
from xenpv.back.nettx import TxQueue
from xenpv.back.txrules import LINUX_TX, LINUX_ZEROCOPY_TX, MIRAGE_TX, QEMU_TX, Server, TxRules
from xenpv.testing.adversary import Adversary, Load
from xenpv.testing.checkers import check_all
from xenpv.testing.raw_world import world_raw

RULES = [LINUX_TX, LINUX_ZEROCOPY_TX, TxRules(zerocopy=True, shuffled=True), QEMU_TX, MIRAGE_TX]
GUEST = 1
REFS = 4
MS = 1_000_000
PIN_OF_THE_DISK = 1
START = 0xFFFFFF80
HEADERS = tcp(4096, total=60)  # fits into every packet that has them

# gref, offset, flags, id, size: often what could be, else anything.
U16 = st.integers(0, 0xFFFF)
SIZES = st.sampled_from([0, 13, 14, 54, 60, 127, 128, 129, 1514, 4095, 4096, 4097, 65535]) | U16
REQUEST = st.builds(
    lambda ref, offset, flags, number, size: (ref, offset, flags, number, size),
    st.integers(0, REFS),
    st.sampled_from([0, 0, 0, 2, 4000, 4095, 4096, 0xFFFF]) | U16,
    st.integers(0, 15) | U16,
    st.integers(0, 300) | U16,
    SIZES,
)
EXTRA = st.builds(
    lambda kind, more, body: extra(kind, body, more=more),
    st.integers(0, 6) | st.integers(0, 255),
    st.booleans(),
    st.binary(min_size=6, max_size=6) | st.sampled_from([pack("<HBBH", 1460, 1, 0, 0)]),
)
# A packet that is right: bytes of each slot, and its extras (kind, body).
GOOD = st.tuples(
    st.lists(st.sampled_from([60, 100, 128, 1000, 4000]), min_size=1, max_size=4)
    | st.sampled_from([[14] + [60] * n for n in (1, 16, 17, 18, 19, 20, 21)]),
    st.sampled_from(
        [
            [],
            [],
            [(1, pack("<HBBH", 700, 1, 0, 0))],
            [(1, pack("<HBBH", 700, 1, 0, 0)), (4, b"\1\1abcd")],
            [(2, b"\1\0\x5e\0\0\1")],
            [(3, b"\1\0\x5e\0\0\1")],
        ]
    ),
)
# What is put over a packet: at which byte of its slots, and what; or nothing.
SPOILT = st.none() | st.none() | st.none() | st.tuples(st.integers(0, 60), st.integers(0, 255))
ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "packet": st.tuples(GOOD, SPOILT),
    "all": st.none(),
    "let go": st.integers(0, 5),
    "request": REQUEST,
    "raw": EXTRA | st.binary(min_size=12, max_size=12),
    "push": st.integers(1, 40),
    "index": st.integers(0, 0xFFFFFFFF) | st.integers(250, 260),
    "grant": st.tuples(st.integers(0, REFS), st.integers(0, 7)),
    "page": st.tuples(st.integers(0, REFS - 1), st.binary(max_size=64)),
    "header": st.binary(min_size=16, max_size=16),
    "notify": st.none(),
    "time": st.sampled_from([0, MS, 60 * MS]),
    "rate": st.sampled_from(["500,1000", "0,0", "1,0", "x", "70000,50000"]),
}
# Most steps are harmless: who errs at once gets no further.
STEPS = [*["packet"] * 10, *["all"] * 8, *["let go"] * 4, *list(ARGUMENTS)[3:]]
STEP = st.sampled_from(STEPS).flatmap(lambda name: st.tuples(st.just(name), ARGUMENTS[name]))
FEW = st.sampled_from([*["packet"] * 6, *["all"] * 4, "request", "raw"])
ERRING = FEW.flatmap(lambda name: st.tuples(st.just(name), ARGUMENTS[name]))


class Hostile:
    """A guest without a plan. Its slots are written from where its producer stands."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.slow = SlowPort()
        net.world.bridge.attach(self.slow)
        guest = net.world.guest
        self.pfns = [guest.page() for _ in range(REFS)]
        for pfn, data in zip(self.pfns, (HEADERS, HEADERS, frame(4096), b""), strict=True):
            guest.domain.write(pfn, 0, data)
        self.refs = [guest.grant(pfn, readonly=True) for pfn in self.pfns]
        self.refs.append(4000)  # of nothing
        self.prod = self.next = START
        self.published = 0

    def step(self, what: str, argument: Any) -> None:
        world = self.net.world
        ring = world.vif.tx
        if what == "request":
            ref, *rest = argument
            ring.write_slot(self.next, slot(self.refs[ref], *rest))
            self.next += 1
        elif what == "packet":
            (sizes, extras), spoilt = argument
            raw = bytearray(b"".join(self.packet(sizes, extras)))
            if spoilt is not None:
                raw[spoilt[0] % len(raw)] = spoilt[1]
            for at in range(0, len(raw), 12):
                ring.write_slot(self.next, bytes(raw[at : at + 12]))
                self.next += 1
        elif what == "all":
            self.prod = self.next
            self._publish(self.prod)
        elif what == "raw":
            ring.write_slot(self.next, argument)
            self.next += 1
        elif what == "push":
            self.prod = min(self.prod + argument, max(self.next, self.prod + 1))
            self._publish(self.prod)
        elif what == "index":
            self.prod = self.net.back.queues[0].tx._tx.ring.rsp_prod + argument  # type: ignore[union-attr]  # of each server
            self._publish(self.prod)
        elif what == "grant":
            index, flags = argument
            ref = self.refs[index] if index < REFS else self.refs[0]
            pfn = self.pfns[index % REFS]
            world.guest.set_grant(ref, flags=flags, pfn=pfn)
        elif what == "page":
            index, data = argument
            world.guest.domain.write(self.pfns[index], 12, data or b"\0")
        elif what == "header":
            world.guest.domain.write(ring.pfn, 0, argument)
        elif what == "notify":
            world.vif.notify()
        elif what == "time":
            world.platform.loop.advance(argument)
        elif what == "rate":
            world.guest.xs.write(f"{world.vif.backend_path}/rate", argument)
        elif self.slow.frames:
            self._drop(argument % len(self.slow.frames))

    def packet(self, sizes: list[int], extras: list[tuple[int, bytes]]) -> list[bytes]:
        last = len(sizes) - 1
        slots = [slot(self.refs[2], 0, 4 * (n < last), n, size) for n, size in enumerate(sizes)]
        flags = 4 * bool(last) | (8 | 1) * bool(extras)
        slots[0] = slot(self.refs[0], 0, flags, 0, sum(sizes))
        told = [
            extra(kind, body, more=at < len(extras) - 1) for at, (kind, body) in enumerate(extras)
        ]
        return [slots[0], *(one.ljust(12, b"\0") for one in told), *slots[1:]]

    def _publish(self, index: int) -> None:
        self.next = max(self.next, index)
        self.net.world.vif.tx.req_prod = index & 0xFFFFFFFF
        self.net.world.vif.notify()

    def _drop(self, index: int) -> None:
        lease = self.slow.frames.pop(index).lease
        if lease is not None:
            lease.drop()

    def leave(self) -> None:
        """Let everything go, and close."""
        world = self.net.world
        world.guest.xs.write(f"{world.vif.backend_path}/rate", "")
        world.platform.loop.advance(MS)
        while self.slow.frames:
            self._drop(0)
            world.platform.loop.advance(0)
        assert_bounded(self.net)
        tx = self.net.back.queues[0].tx
        if isinstance(tx, TxQueue) and tx.pages is not None:
            assert tx.pages.held == 0
        world.vif.state = XenbusState.CLOSED
        world.run()


def assert_bounded(net: Net) -> None:
    """What must hold at every moment."""
    back = net.back
    if not back.queues:
        return
    tx: Any = back.queues[0].tx
    ring = tx._tx.ring
    assert 0 <= ring.in_flight <= 256
    assert len(back.multicast) <= MULTICAST_MAX
    held = 0 if getattr(tx, "pages", None) is None else tx.pages.held
    assert held <= ring.in_flight
    # Two rings of this vif, one of the disk, and what is mapped of packets.
    assert net.world.guest.domain.gnttab.pinned() <= 2 + PIN_OF_THE_DISK + min(held, REFS)
    if back.profile.tx.server is not Server.MIRAGE and not held:
        assert ring.in_flight == 0 or back.disabled
    assert len(tx._tx._local) <= 64 * 65536
    assert back.disabled or back.carrier


def live(rules: TxRules, steps: list[tuple[str, Any]], mutations: list[tuple[int, int]]) -> None:
    with world_raw(seed=5) as world:
        net = Net(world)
        serve_by(net, rules, START)
        hostile = Hostile(net)
        before = len(net.sink.frames)
        hypervisor = world.platform.hypervisor
        adversary = Adversary(hypervisor)
        adversary.victims.append(0)
        planned = dict(mutations)
        loads = 0

        def hook(actor: int, kind: int, frame: int, offset: int, size: int) -> None:
            nonlocal loads
            load = Load(frame, offset, size)
            if kind or not adversary.count(actor, load):
                return
            loads += 1
            if loads in planned:
                adversary.change(load, planned[loads])

        hypervisor.set_hook(hook if mutations else None)
        for what, argument in steps:
            hostile.step(what, argument)
            world.platform.loop.advance(0)
            assert_bounded(net)
        hypervisor.set_hook(None)
        counters = net.back.counters
        delivered = len(net.sink.frames) - before
        assert counters.tx_packets == delivered + world.bridge.dropped + net_lost(net)
        hostile.leave()
        assert world.guest.domain.gnttab.pinned() == PIN_OF_THE_DISK
        assert net.back.device.state is not XenbusState.CONNECTED
        check_all(world.platform, hostile=(GUEST,))


def net_lost(net: Net) -> int:
    """Packets that were passed on when the vif had no bridge any more: none is."""
    return 0 if net.back.disabled or net.back.carrier else -1


IDS = ["copied", "mapped", "shuffled", "qemu", "mirage"]


@pytest.mark.parametrize("rules", RULES, ids=IDS)
@settings(max_examples=40, deadline=None)
@given(steps=st.lists(STEP, min_size=3, max_size=40))
def test_a_guest_that_writes_anything_between_any_two_steps(
    rules: TxRules, steps: list[tuple[str, Any]]
) -> None:
    live(rules, steps, [])


@pytest.mark.parametrize("rules", RULES, ids=IDS)
@settings(max_examples=25, deadline=None)
@given(
    packets=st.lists(st.tuples(GOOD, SPOILT), min_size=1, max_size=8),
    mutations=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 60)), min_size=1, max_size=6),
)
def test_a_guest_that_changes_memory_just_before_it_is_read(
    rules: TxRules, packets: list[Any], mutations: list[tuple[int, int]]
) -> None:
    steps: list[tuple[str, Any]] = [("packet", one) for one in packets]
    steps += [("all", None), ("let go", 0), ("packet", packets[0]), ("all", None)]
    live(rules, steps, mutations)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(ERRING, min_size=1, max_size=20),
    cuts=st.lists(st.integers(1, 20), max_size=6),
)
def test_copied_and_mapped_packets_fare_alike(
    steps: list[tuple[str, Any]], cuts: list[int]
) -> None:
    """The same frames, statuses and counters; only the order of answers differs."""
    outcomes = []
    for rules in (LINUX_TX, LINUX_ZEROCOPY_TX):
        with world_raw(seed=5) as world:
            net = Net(world)
            serve_by(net, rules, START)
            hostile = Hostile(net)
            world.bridge.detach(hostile.slow)
            for what, argument in (*steps, *(("push", cut) for cut in cuts), ("all", None)):
                hostile.step(what, argument)
                world.run()
            counters = net.back.counters
            ring = world.vif.tx
            answers = [ring.slot(START + n)[:4] for n in range(ring.rsp_prod - START & 0xFFFFFFFF)]
            outcomes.append(
                (
                    net.sink.frames,
                    sorted(answers),
                    net.back.disabled,
                    net.back.multicast,
                    (counters.tx_packets, counters.tx_bytes, counters.tx_dropped),
                )
            )
    assert outcomes[0] == outcomes[1]
