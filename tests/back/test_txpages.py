"""Packets that are mapped: which bytes are copied, and when each slot is answered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import unpack

import attrs
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
    PEER_MAC,
    Net,
    extra,
    frame,
    gso,
    serve_by,
    slot,
)
from xenpv import Vif
from xenpv.abi.gnttab import GNTMAP
from xenpv.abi.xenbus import XenbusState
from xenpv.back.netback import Netback
from xenpv.back.nettx import TxQueue
from xenpv.back.txpages import copied_bytes
from xenpv.back.txrules import LINUX_ZEROCOPY_TX, TxRules
from xenpv.host.network import Frame
from xenpv.testing.checkers import check_all
from xenpv.testing.raw_world import RawWorld, world_raw

BAD_REF = 4000


@attrs.define(eq=False)
class SlowPort:
    """A port that keeps what it is given until it is told to let go."""

    name: str = "slow"
    frames: list[Frame] = attrs.field(factory=list)

    def receive(self, frames: Sequence[Frame]) -> None:
        for one in frames:
            if one.lease is not None:
                one.lease.hold()
        self.frames.extend(frames)

    def let_go(self, net: Net, *indexes: int) -> list[tuple[int, int]]:
        """Of these frames, in that order: the responses that come of it."""
        self.drop(net, *indexes)
        return responses(net)

    def drop(self, net: Net, *indexes: int) -> None:
        for index in indexes:
            lease = self.frames[index].lease
            assert lease is not None
            lease.drop()
        net.world.run()


def responses(net: Net) -> list[tuple[int, int]]:
    return [unpack("<Hh", raw) for raw in net.world.vif.tx.take()]


@pytest.fixture
def net() -> Iterator[Net]:
    with world_raw(seed=3) as world:
        net = Net(world)
        serve_by(net, LINUX_ZEROCOPY_TX, 0xFFFFFFF8)
        yield net
        check_all(world.platform)


@pytest.fixture
def slow(net: Net) -> SlowPort:
    port = SlowPort()
    net.world.bridge.attach(port)
    return port


def held(net: Net) -> int:
    tx = net.back.queues[0].tx
    assert isinstance(tx, TxQueue)
    assert tx.pages is not None
    return tx.pages.held


@pytest.mark.parametrize(
    ("total", "first", "later", "copied"),
    [
        (60, 60, 0, 60),
        (128, 128, 0, 128),
        (1514, 1514, 0, 128),
        (1514, 54, 1, 128),  # across slots
        (4000, 2000, 16, 128),
        (4000, 2000, 17, 2000),  # a frag for each later slot: none is left for the first
        (4000, 2000, 18, 2000),
        (4000, 100, 18, 128),
        (100, 14, 18, 100),
    ],
)
def test_the_first_128_bytes_are_copied_and_with_17_later_slots_the_first_fragment(
    total: int, first: int, later: int, copied: int
) -> None:
    assert copied_bytes(total, first, later) == copied


@pytest.mark.parametrize("size", [60, 127, 128, 129, 1514, 4096])
def test_a_frame_in_one_slot_arrives_whole(net: Net, size: int) -> None:
    data = frame(size)
    assert net.send([slot(net.page(data), 0, 0, 5, size)]) == [(5, OKAY)]
    assert net.sink.data == [data]
    assert held(net) == 0


@pytest.mark.parametrize("slots", [1, 2, 3, 17, 18, 19])
@pytest.mark.parametrize("size", [60, 300])
def test_a_chain_arrives_whole(net: Net, slots: int, size: int) -> None:
    data = frame(size * slots)
    answers = net.send(net.chain(data, [size] * slots))
    assert sorted(answers) == [(100 + n, OKAY) for n in range(slots)]
    assert net.sink.data == [data]
    assert held(net) == 0


def test_copied_slots_are_answered_before_mapped_ones_even_inside_a_packet(net: Net) -> None:
    first, second = frame(1514), frame(1000)
    chain = []
    for number, data in enumerate((first, second)):
        chain += [
            slot(net.page(data[:54]), 0, MORE, 10 * number, len(data)),
            slot(net.page(data[54:]), 0, 0, 10 * number + 1, len(data) - 54),
        ]
    assert net.send(chain) == [(0, OKAY), (10, OKAY), (1, OKAY), (11, OKAY)]
    assert net.sink.data == [first, second]


def test_a_mapped_slot_is_answered_when_the_packet_is_released(net: Net, slow: SlowPort) -> None:
    data = frame(1514)
    head, payload = net.page(data[:54]), net.page(data[54:])
    chain = [slot(head, 0, MORE, 1, 1514), slot(payload, 0, 0, 2, 1460)]
    assert net.send(chain) == [(1, OKAY)]
    assert net.sink.data == [data]  # others have it already
    assert (held(net), net.world.guest.domain.gnttab.pinned()) == (1, 3 + 1)
    assert net.world.guest.revoke(head)
    assert not net.world.guest.revoke(payload)
    assert slow.let_go(net, 0) == [(2, OKAY)]
    assert net.world.guest.revoke(payload)


def test_a_page_is_mapped_read_only(net: Net, slow: SlowPort) -> None:
    net.send([slot(net.page(frame(1514)), 0, 0, 1, 1514)])
    writable = net.world.guest.domain.gnttab.pinned()
    assert writable == 4
    mappings = net.back.domain.gnttab.maptrack.values()
    assert sum(bool(one.flags & GNTMAP.readonly) for one in mappings) == 1
    slow.let_go(net, 0)


def test_packets_are_answered_as_they_are_released(net: Net, slow: SlowPort) -> None:
    frames = [frame(200 + n) for n in range(4)]
    chain = [slot(net.page(one), 0, 0, n, len(one)) for n, one in enumerate(frames)]
    assert net.send(chain) == []
    assert slow.let_go(net, 2) == [(2, OKAY)]
    assert slow.let_go(net, 3, 0) == [(3, OKAY), (0, OKAY)]
    assert slow.let_go(net, 1) == [(1, OKAY)]


def test_a_packet_is_released_by_its_last_holder(net: Net, slow: SlowPort) -> None:
    other = SlowPort("slower")
    net.world.bridge.attach(other)
    assert net.send([slot(net.page(frame(200)), 0, 0, 1, 200)]) == []
    assert slow.let_go(net, 0) == []
    assert other.let_go(net, 0) == [(1, OKAY)]


def test_extras_are_answered_behind_their_slot_whenever_that_is(net: Net, slow: SlowPort) -> None:
    from tests.back.test_nettx import tcp

    data = tcp(3000)
    chain = [
        slot(net.page(data[:1000]), 0, MORE | EXTRA | CSUM_BLANK, 1, 3000),
        extra(GSO, gso(1460, 1), more=True),
        extra(HASH, bytes((1, 1)) + b"\1\2\3\4"),
        slot(net.page(data[1000:]), 0, 0, 2, 2000),
    ]
    assert net.send(chain) == []
    assert slow.let_go(net, 0) == [(1, OKAY), (0, NULL), (0, NULL), (2, OKAY)]
    (got,) = slow.frames
    assert (got.data, got.gso_size, got.hash) == (data, 1460, (1, 0x04030201))


def test_extras_of_a_copied_slot_do_not_wait(net: Net, slow: SlowPort) -> None:
    from tests.back.test_nettx import tcp

    data = tcp(3000)
    chain = [
        slot(net.page(data[:60]), 0, MORE | EXTRA | CSUM_BLANK, 1, 3000),
        extra(GSO, gso(1460, 1)),
        slot(net.page(data[60:]), 0, 0, 2, 2940),
    ]
    assert net.send(chain) == [(1, OKAY), (0, NULL)]
    assert slow.let_go(net, 0) == [(2, OKAY)]


def test_an_empty_slot_is_answered_at_once_and_never_mapped(net: Net, slow: SlowPort) -> None:
    data = frame(300)
    chain = [
        slot(net.page(data[:200]), 0, MORE, 1, 300),
        slot(BAD_REF, 4096, MORE, 2, 0),
        slot(net.page(data[200:]), 0, 0, 3, 100),
    ]
    assert net.send(chain) == [(2, OKAY)]
    assert held(net) == 2
    assert slow.let_go(net, 0) == [(1, OKAY), (3, OKAY)]
    assert net.sink.data == [data]


@pytest.mark.parametrize(
    ("bad", "answers"),
    [
        # Its copy fails with its map; the others are whole, and let go at once.
        ((0,), [(1, ERROR), (2, OKAY), (3, OKAY)]),
        ((1,), [(2, ERROR), (1, OKAY), (3, OKAY)]),
        ((2,), [(3, ERROR), (1, OKAY), (2, OKAY)]),
        ((1, 2), [(2, ERROR), (3, ERROR), (1, OKAY)]),
    ],
)
def test_a_slot_that_cannot_be_mapped_is_an_error_and_loses_the_packet(
    net: Net, slow: SlowPort, bad: tuple[int, ...], answers: list[tuple[int, int]]
) -> None:
    refs = [BAD_REF if index in bad else net.page(frame(200)) for index in range(3)]
    good = frame(90)
    chain = [
        slot(refs[0], 0, MORE, 1, 600),
        slot(refs[1], 0, MORE, 2, 200),
        slot(refs[2], 0, 0, 3, 200),
        slot(net.page(good), 0, 0, 4, 90),
    ]
    assert net.send(chain) == [*answers, (4, OKAY)]
    assert net.sink.data == [good]
    assert (held(net), net.back.counters.tx_dropped) == (0, 1)
    assert [one.data for one in slow.frames] == [good]


def test_a_header_of_a_slot_that_is_mapped_too_fails_it_even_if_the_map_works(net: Net) -> None:
    """Only a grant that changed between the two can do so; the copy's word counts."""
    ref = net.page(frame(200))
    tx = net.back.queues[0].tx
    assert isinstance(tx, TxQueue)
    assert tx.pages is not None
    copy = tx.pages._ring.copy

    def failing(ops: list[int], count: int, size: int) -> tuple[bytes, list[int]]:
        data, _ = copy(ops, count, size)
        return data, [0]

    tx.pages._ring.copy = failing  # type: ignore[method-assign]  # a grant that came and went
    assert net.send([slot(ref, 0, 0, 1, 200)]) == [(1, ERROR)]
    tx.pages._ring.copy = copy  # type: ignore[method-assign]  # as it was
    assert net.sink.data == []


def test_a_packet_that_is_lost_later_lets_its_slots_go(net: Net, slow: SlowPort) -> None:
    """A blank sum that is neither TCP's nor UDP's."""
    assert net.send([slot(net.page(frame(300)), 0, CSUM_BLANK, 1, 300)]) == [(1, OKAY)]
    assert (slow.frames, held(net)) == ([], 0)


def test_a_packet_that_the_bridge_drops_lets_its_slots_go(net: Net, slow: SlowPort) -> None:
    to_itself = frame(300, destination=bytes.fromhex("0180c2000003"))
    assert net.send([slot(net.page(to_itself), 0, 0, 1, 300)]) == [(1, OKAY)]
    assert slow.frames == []


def test_a_ring_full_of_held_slots_waits_and_goes_on(net: Net, slow: SlowPort) -> None:
    refs = [net.page(frame(200)) for _ in range(4)]  # an entry can be pinned 128 times
    assert net.send([slot(refs[n % 4], 0, 0, n, 200) for n in range(256)]) == []
    assert held(net) == 256
    assert slow.let_go(net, *range(100)) == [(n, OKAY) for n in range(100)]
    assert net.send([slot(refs[n % 4], 0, 0, n, 200) for n in range(100)]) == []
    assert len(slow.let_go(net, *range(100, 356))) == 256
    assert net.world.vif.tx.ring.in_flight == 0


def test_requests_beyond_what_is_held_wait_for_a_slot_to_answer_in(
    net: Net, slow: SlowPort
) -> None:
    """Row 1 counts from what was consumed: 256 more are no offence, though none has room."""
    refs = [net.page(frame(200)) for _ in range(4)]
    ring = net.world.vif.tx
    assert net.send([slot(refs[n % 4], 0, 0, n, 200) for n in range(256)]) == []
    ring.req_prod = 0xFFFFFFF8 + 512 & 0xFFFFFFFF
    net.world.vif.notify()
    net.world.run()
    assert (held(net), net.back.disabled) == (256, False)
    slow.drop(net, 7)
    # Its response lies where the next request did: no frame, an error, and so on around the ring.
    assert (held(net), net.back.disabled) == (255, False)
    assert ring.rsp_prod == 0xFFFFFFF8 + 257 & 0xFFFFFFFF
    ring.req_prod = 0xFFFFFFF8 + 512 + 257 & 0xFFFFFFFF
    net.world.vif.notify()
    net.world.run()
    assert net.back.disabled
    slow.drop(net, *(n for n in range(256) if n != 7))
    assert held(net) == 0


def test_a_vif_that_is_shut_still_answers_what_it_held(net: Net, slow: SlowPort) -> None:
    assert net.send([slot(net.page(frame(300)), 0, 0, 1, 300)]) == []
    assert net.send([slot(net.page(), 4090, 0, 2, 60)]) == []
    assert net.back.disabled
    assert slow.let_go(net, 0) == [(1, OKAY)]


def test_a_closed_vif_holds_no_page_and_a_late_release_is_no_news(net: Net, slow: SlowPort) -> None:
    ref = net.page(frame(300))
    assert net.send([slot(ref, 0, 0, 1, 300)]) == []
    net.world.vif.state = XenbusState.CLOSED
    net.world.run()
    assert net.world.guest.revoke(ref)
    assert slow.let_go(net, 0) == []


def test_what_a_guest_writes_after_the_map_changes_nothing(net: Net, slow: SlowPort) -> None:
    data = frame(300)
    guest = net.world.guest
    pfn = guest.page()
    guest.domain.write(pfn, 0, data)
    net.send([slot(guest.grant(pfn, readonly=True), 0, 0, 1, 300)])
    guest.domain.write(pfn, 0, bytes(300))
    assert slow.frames[0].data == data
    slow.let_go(net, 0)


def order(seed: int, *, shuffled: bool) -> list[int]:
    with world_raw(seed=seed) as world:
        net = Net(world)
        serve_by(net, TxRules(zerocopy=True, shuffled=shuffled))
        ref = net.page(frame(200))
        return [number for number, _ in net.send([slot(ref, 0, 0, n, 200) for n in range(8)])]


def test_a_shuffling_backend_answers_in_an_order_of_its_seed() -> None:
    orders = [order(seed, shuffled=True) for seed in range(4)]
    assert all(sorted(one) == list(range(8)) for one in orders)
    assert len({tuple(one) for one in orders}) > 1
    assert orders == [order(seed, shuffled=True) for seed in range(4)]
    assert order(1, shuffled=False) == list(range(8))


@pytest.mark.parametrize("end", ["delivered", "expired", "closed"])
def test_another_vifs_backlog_holds_the_senders_pages(end: str) -> None:
    with world_raw(seed=5) as world:
        net = Net(world)
        sender = world.platform.create(name="a", vifs=[Vif(profile="linux-zerocopy")]).start()
        data = PEER_MAC + sender.nets[0].mac + b"\x88\xb5" + frame(1000)
        sender.nets[0].send(data)
        world.platform.advance(0.001)  # not the 10 s that a frame may wait
        device = world.platform.backends.device("vif", sender.domid, 0)
        assert device is not None
        assert isinstance(device.driver, Netback)
        tx = device.driver.queues[0].tx
        assert isinstance(tx, TxQueue)
        assert tx.pages is not None
        assert tx.pages.held == 1
        if end == "delivered":
            net.post(1)
        elif end == "closed":
            world.vif.state = XenbusState.CLOSED
            world.platform.advance(0.001)
        world.run()
        assert tx.pages.held == 0
        assert net.sink.data == [data]
        assert len(net.received()) == (end == "delivered")
        assert sender.nets[0].statistics.sent_frames == 1


@pytest.mark.parametrize("end", ["destroyed", "rebound"])
def test_pages_of_a_sender_that_is_no_more_are_let_go(end: str) -> None:
    with world_raw(seed=5) as world:
        xen = world.platform
        sender = xen.create(name="a", vifs=[Vif(profile="linux-zerocopy")]).start()
        sender.nets[0].send(PEER_MAC + sender.nets[0].mac + b"\x88\xb5" + frame(1000))
        xen.advance(0.001)
        domid = sender.domid
        assert mapped_read_only(world) == 1
        if end == "destroyed":
            sender.destroy()
            world.platform.advance(0.001)
            assert domid not in xen.hypervisor.domains
        else:
            xen.backends.rebind("vif", domid, 0)
        assert mapped_read_only(world) == 0
        world.run()  # the frame expires in the other vif's backlog
        check_all(xen)


def mapped_read_only(world: RawWorld) -> int:
    mappings = world.platform.dom0.gnttab.maptrack.values()
    return sum(bool(one.flags & GNTMAP.readonly) for one in mappings)
