"""What guests did to netback's transmit side, by the advisory that tells of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.back.netfront import (
    CSUM_BLANK,
    ERROR,
    EXTRA,
    GSO,
    HASH,
    MORE,
    NULL,
    OKAY,
    Net,
    extra,
    frame,
    gso,
    reconnect_at,
    serve_by,
    slot,
)
from tests.back.test_nettx import pins_of_rings, tcp
from tests.back.test_txpages import SlowPort, held
from xenpv import Vif
from xenpv.abi.xenbus import XenbusState
from xenpv.back.txrules import LINUX_TX, LINUX_ZEROCOPY_TX, TxRules
from xenpv.testing.access import AccessLog
from xenpv.testing.checkers import check_all
from xenpv.testing.raw_world import world_raw

BAD_REF = 4000
BOTH = pytest.mark.parametrize("rules", [LINUX_TX, LINUX_ZEROCOPY_TX], ids=["copied", "mapped"])


def served(rules: TxRules, seed: int = 3) -> Iterator[Net]:
    with world_raw(seed=seed) as world:
        net = Net(world)
        serve_by(net, rules, 0xFFFFFFF0)
        yield net
        check_all(world.platform, hostile=(1,), quiescent=not net.back.disabled)


@pytest.fixture
def net() -> Iterator[Net]:
    yield from served(LINUX_TX)


@BOTH
@pytest.mark.parametrize("ahead", [257, 0x7FFFFFFF, 0xFFFFFFFF])
def test_xsa_39_a_ring_of_garbage_is_no_endless_loop(rules: TxRules, ahead: int) -> None:
    for net in served(rules):
        net.world.vif.tx.req_prod = 0xFFFFFFF0 + ahead & 0xFFFFFFFF
        net.world.vif.notify()
        assert net.world.run() < 100
        assert net.back.disabled


@BOTH
def test_xsa_39_extras_that_go_all_around_the_ring_end_with_it(rules: TxRules) -> None:
    for net in served(rules):
        head = slot(net.page(frame(60)), 0, EXTRA, 1, 60)
        assert net.send([head] + [extra(HASH, more=True)] * 255) == []
        assert net.back.disabled
        assert net.world.guest.domain.gnttab.pinned() == pins_of_rings(net)


@BOTH
def test_xsa_39_a_refused_packet_leaves_no_page_pinned(rules: TxRules) -> None:
    for net in served(rules):
        chain = net.chain(frame(60 * 21), [60] * 21)
        assert net.send(chain) == [(100 + n, ERROR) for n in range(21)]
        assert net.world.guest.domain.gnttab.pinned() == pins_of_rings(net)


@BOTH
def test_xsa_90_a_vif_that_was_shut_can_be_closed_and_connected_again(rules: TxRules) -> None:
    for net in served(rules):
        assert net.send([slot(net.page(), 4090, 0, 1, 60)]) == []
        assert net.back.disabled
        reconnect_at(net, 5)
        assert not net.back.disabled
        good = frame(60)
        assert net.send([slot(net.page(good), 0, 0, 1, 60)]) == [(1, OKAY)]
        assert net.sink.data == [good]


@BOTH
def test_xsa_155_no_byte_of_a_slot_is_read_twice(rules: TxRules) -> None:
    for net in served(rules):
        data = tcp(3000)
        chain = [
            slot(net.page(data[:60]), 0, MORE | EXTRA | CSUM_BLANK, 1, 3000),
            extra(GSO, gso(1460, 1), more=True),
            extra(HASH, bytes((1, 1, 2, 3, 4, 5))),
            slot(net.page(data[60:]), 0, 0, 2, 2940),
            slot(net.page(frame(60)), 0, 0, 3, 60),
        ]
        with AccessLog(net.world.platform) as log:
            assert len(net.send(chain)) == 5
        assert [str(one) for one in log.double_fetches() if one.actor == 0 and one.in_slot] == []


def test_xsa_155_what_is_written_into_a_slot_after_it_was_taken_changes_nothing(net: Net) -> None:
    """At the first look into the guest's page its slot already says something else."""
    ring, data = net.world.vif.tx, frame(200)
    hypervisor = net.world.platform.hypervisor
    guest = net.world.guest
    pfn = guest.page()
    guest.domain.write(pfn, 0, data)
    ref = guest.grant(pfn, readonly=True)
    target = slot(ref, 0, 0, 1, 200)
    changed: list[int] = []

    def hook(actor: int, kind: int, _frame: int, _offset: int, size: int) -> None:
        if actor == 0 and not kind & 3 and size == 200 and not changed:
            changed.append(size)
            ring.write_slot(0xFFFFFFF0, slot(BAD_REF, 4095, MORE, 9, 4000))

    ring.write_slot(0xFFFFFFF0, target)
    ring.req_prod = 0xFFFFFFF1
    hypervisor.set_hook(hook)
    net.world.vif.notify()
    net.world.run()
    hypervisor.set_hook(None)
    assert changed
    assert (net.sink.data, net.back.disabled) == ([data], False)
    assert ring.slot(0xFFFFFFF0)[:4] == b"\1\0\0\0"


def test_xsa_332_events_without_work_are_one_poll_each_at_most(net: Net) -> None:
    world = net.world
    for _ in range(1000):
        world.vif.notify()
    assert world.platform.loop.advance(0) <= 4
    good = frame(60)
    assert net.send([slot(net.page(good), 0, 0, 1, 60)]) == [(1, OKAY)]


@BOTH
@pytest.mark.parametrize("flags", [0, 1, 2, 3, 4])
def test_xsa_361_a_reference_that_cannot_be_used_fails_its_packet_alone(
    rules: TxRules, flags: int
) -> None:
    """Invalid, writable, for a transfer, or transitive; read-only is what it should be."""
    for net in served(rules):
        data = frame(300)
        guest = net.world.guest
        pfn = guest.page()
        guest.domain.write(pfn, 0, data)
        ref = guest.grant(pfn, readonly=True)
        guest.set_grant(ref, flags=flags, pfn=pfn)
        good = frame(60)
        answers = net.send([slot(ref, 0, 0, 1, 300), slot(net.page(good), 0, 0, 2, 60)])
        usable = flags == 1  # GTF_permit_access
        assert sorted(answers) == [(1, OKAY if usable else ERROR), (2, OKAY)]
        assert sorted(net.sink.data, key=len) == [good] + [data] * usable
        assert not net.back.disabled


@BOTH
def test_xsa_367_a_reference_of_another_domain_is_an_error(rules: TxRules) -> None:
    for net in served(rules):
        guest = net.world.guest
        ref = guest.grant(guest.page(), domid=7)
        assert net.send([slot(ref, 0, 0, 1, 300)]) == [(1, ERROR)]


@BOTH
@pytest.mark.parametrize("seed", range(6))
def test_xsa_374_a_fatal_packet_races_with_the_close(rules: TxRules, seed: int) -> None:
    for net in served(rules, seed):
        net.world.vif.tx.push(slot(net.page(), 4090, 0, 1, 60), 1)
        net.world.vif.notify()
        net.world.vif.state = XenbusState.CLOSED
        net.world.run()
        assert net.world.vif.backend_state is XenbusState.CLOSED
        assert net.world.guest.domain.gnttab.pinned() == 1  # of the disk's ring


@BOTH
def test_xsa_423_headers_over_the_smallest_slots_are_read_whole(rules: TxRules) -> None:
    for net in served(rules):
        data = tcp(3000)
        sizes = [14, 1, 1, 1, 3, 10, 4, 20, 2946]
        head, *later = net.chain(data, sizes, flags=EXTRA | CSUM_BLANK)
        answers = net.send([head, extra(GSO, gso(1460, 1)), *later])
        assert sorted(answers) == [(0, NULL), *((100 + n, OKAY) for n in range(9))]
        (got,) = net.sink.frames
        assert (got.data, got.gso_size) == (data, 1460)


def test_xsa_424_a_packet_dropped_while_its_sender_is_served_is_let_go_later() -> None:
    """The other vif has no use for it, and says so in the middle of the sender's poll."""
    for net in served(LINUX_ZEROCOPY_TX):
        platform = net.world.platform
        other = platform.create(name="a", vifs=[Vif()]).start()
        data = frame(4000, destination=other.nets[0].mac)  # beyond its MTU
        assert net.send([slot(net.page(data), 0, 0, 1, 4000)]) == [(1, OKAY)]
        device = platform.backends.device("vif", other.domid, 0)
        assert device is not None
        assert device.driver.counters.rx_dropped == 1  # type: ignore[attr-defined]  # it is a Netback
        assert held(net) == 0


@BOTH
def test_xsa_432_the_most_slots_with_less_than_the_copied_bytes(rules: TxRules) -> None:
    for net in served(rules):
        sizes = [14] + [5] * 18  # 19 slots, 104 bytes
        data = frame(104)
        assert net.send(net.chain(data, sizes)) == [(100 + n, OKAY) for n in range(19)]
        assert net.sink.data == [data]


@BOTH
@pytest.mark.parametrize("empty", [1, 2, 3])
@pytest.mark.parametrize("first", [60, 200])
def test_xsa_448_an_empty_fragment_is_good_whatever_it_refers_to(
    rules: TxRules, empty: int, first: int
) -> None:
    for net in served(rules):
        slow = SlowPort()
        net.world.bridge.attach(slow)
        data = frame(first + 400)
        chain = [
            slot(net.page(data[:first]), 0, MORE, 0, first + 400),
            slot(net.page(data[first : first + 200]), 0, MORE, 10, 200),
            slot(net.page(data[first + 200 :]), 0, 0, 20, 200),
        ]
        chain.insert(empty, slot(BAD_REF, 4096, MORE * (empty < 3), 5, 0))
        if empty == 3:
            chain[2] = slot(net.page(data[first + 200 :]), 0, MORE, 20, 200)
        assert (5, OKAY) in net.send(chain)
        assert net.sink.data == [data]
        if rules.zerocopy:
            assert held(net) == (2 if first == 60 else 3)
            slow.let_go(net, 0)
        assert net.world.vif.tx.ring.in_flight == 0


def test_xsa_216_a_response_shows_nothing_of_the_backend(net: Net) -> None:
    net.send([slot(net.page(frame(60)), 0, 0, 0x1234, 60), slot(BAD_REF, 0, 0, 0x5678, 60)])
    assert net.world.vif.tx.slot(0xFFFFFFF0) == bytes.fromhex("34120000") + bytes(8)
    assert net.world.vif.tx.slot(0xFFFFFFF1) == bytes.fromhex("7856ffff") + bytes(8)
