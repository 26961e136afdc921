"""The checks of a transmitted packet, one by one and in their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.back.netfront import (
    CSUM_BLANK,
    DATA_VALIDATED,
    ERROR,
    EXTRA,
    GSO,
    GUEST_MAC,
    HASH,
    MCAST_ADD,
    MCAST_DEL,
    MORE,
    NULL,
    OKAY,
    PEER_MAC,
    Net,
    extra,
    frame,
    gso,
    reconnect_at,
    slot,
)
from xenpv.abi.xenbus import XenbusState
from xenpv.host.network import Frame
from xenpv.testing.raw_world import world_raw

BAD_REF = 4000


@pytest.fixture
def net() -> Iterator[Net]:
    with world_raw(seed=3) as world:
        yield Net(world)


def assert_alive(net: Net) -> None:
    """A good packet still gets through."""
    good = frame(99)
    before = len(net.sink.frames)
    assert net.send([slot(net.page(good), 0, 0, 77, 99)]) == [(77, OKAY)]
    assert net.sink.data[before:] == [good]


def assert_disabled(net: Net, slots: list[bytes], answered: int = 0) -> None:
    """The vif is off and the slots of the bad packet are never answered."""
    assert len(net.send(slots)) == answered
    assert net.back.disabled
    assert not net.back.carrier
    assert net.back.name not in net.world.bridge.ports
    assert net.world.vif.backend_state is XenbusState.CONNECTED
    assert net.world.vif.backend is not None
    assert net.world.vif.backend.broken
    assert net.send([slot(net.page(frame(99)), 0, 0, 77, 99)]) == []


@pytest.mark.parametrize("size", [*range(60, 200, 7), 1514, 1518, 4095, 4096])
def test_a_frame_in_one_slot_arrives_byte_for_byte(net: Net, size: int) -> None:
    data = frame(size)
    assert net.send([slot(net.page(data), 0, 0, 5, size)]) == [(5, OKAY)]
    assert net.sink.data == [data]


def test_a_frame_at_the_very_end_of_its_page(net: Net) -> None:
    data = frame(1514)
    assert net.send([slot(net.page(data, 4096 - 1514), 4096 - 1514, 0, 5, 1514)]) == [(5, OKAY)]
    assert net.sink.data == [data]


@pytest.mark.parametrize("slots", [1, 2, 3, 16, 17, 18, 19])
def test_a_packet_of_up_to_19_slots_is_taken(net: Net, slots: int) -> None:
    data = frame(60 * slots)
    assert net.send(net.chain(data, [60] * slots)) == [(100 + n, OKAY) for n in range(slots)]
    assert net.sink.data == [data]


@pytest.mark.parametrize("slots", [20, 21])
def test_a_packet_of_20_or_21_slots_is_dropped_and_the_ring_survives(net: Net, slots: int) -> None:
    data = frame(60 * slots)
    assert net.send(net.chain(data, [60] * slots)) == [(100 + n, ERROR) for n in range(slots)]
    assert net.sink.data == []
    assert_alive(net)


def test_a_packet_of_22_slots_disables_the_vif(net: Net) -> None:
    assert_disabled(net, net.chain(frame(60 * 22), [60] * 22))


def test_every_packet_of_a_batch_of_256_slots_arrives_in_order(net: Net) -> None:
    frames = [frame(60 + n) for n in range(256)]
    page = net.page
    slots = [slot(page(one), 0, 0, n, len(one)) for n, one in enumerate(frames[:100])]
    for n in range(100, 178):
        ref = page(frames[n])
        size = len(frames[n])
        slots += [slot(ref, 0, MORE, n, size), slot(ref, 42, 0, n + 200, size - 42)]
    assert len(slots) == 256
    assert [status for _, status in net.send(slots)] == [OKAY] * 256
    assert net.sink.data == frames[:178]


def test_more_requests_than_the_ring_holds_disable_the_vif(net: Net) -> None:
    net.world.vif.tx.req_prod = 257
    assert_disabled(net, [])


@pytest.mark.parametrize("kind", [0, 5, 6, 255])
def test_an_extra_of_no_type_disables_the_vif(net: Net, kind: int) -> None:
    assert_disabled(net, [slot(net.page(frame(60)), 0, EXTRA, 1, 60), extra(kind)])


def test_an_extra_past_the_producer_disables_the_vif(net: Net) -> None:
    assert_disabled(net, [slot(net.page(frame(60)), 0, EXTRA, 1, 60)])


def test_a_chain_of_extras_past_the_producer_disables_the_vif(net: Net) -> None:
    head = slot(net.page(frame(60)), 0, EXTRA, 1, 60)
    assert_disabled(net, [head, extra(HASH, more=True)])


def test_data_past_the_producer_disables_the_vif(net: Net) -> None:
    assert_disabled(net, [slot(net.page(frame(60)), 0, MORE, 1, 90)])


@pytest.mark.parametrize("slots", [2, 19, 20])
def test_a_later_slot_that_crosses_its_page_disables_the_vif(net: Net, slots: int) -> None:
    chain = net.chain(frame(60 * slots), [60] * slots)
    chain[-1] = slot(net.page(), 4096 - 59, 0, 9, 60)
    assert_disabled(net, chain)


@pytest.mark.parametrize("flags", [0, MORE])
def test_a_first_fragment_that_crosses_its_page_disables_the_vif(net: Net, flags: int) -> None:
    first = slot(net.page(), 4096 - 50, flags, 1, 80)
    later = [slot(net.page(), 0, 0, 2, 20)] if flags else []
    assert_disabled(net, [first, *later])


def test_a_first_fragment_of_13_bytes_is_an_error(net: Net) -> None:
    assert net.send(net.chain(frame(73), [13, 60])) == [(100, ERROR), (101, ERROR)]
    assert_alive(net)


def test_a_first_fragment_of_14_bytes_is_taken(net: Net) -> None:
    data = frame(74)
    assert net.send(net.chain(data, [14, 60])) == [(100, OKAY), (101, OKAY)]
    assert net.sink.data == [data]


@pytest.mark.parametrize("size", [0, 13])
def test_a_packet_shorter_than_its_header_is_an_error(net: Net, size: int) -> None:
    assert net.send([slot(BAD_REF, 0, 0, 3, size)]) == [(3, ERROR)]
    assert_alive(net)


def test_a_short_first_fragment_is_told_before_its_page_is_looked_at(net: Net) -> None:
    assert net.send([slot(BAD_REF, 4095, 0, 3, 13)]) == [(3, ERROR)]


def test_fragments_that_add_up_to_more_than_the_total_are_dropped(net: Net) -> None:
    chain = [
        slot(net.page(), 0, MORE, 1, 100),
        slot(net.page(), 0, MORE, 2, 60),
        slot(net.page(), 0, 0, 3, 60),
    ]
    assert net.send(chain) == [(1, ERROR), (2, ERROR), (3, ERROR)]
    assert_alive(net)


def test_a_total_that_wrapped_at_64_kib_is_dropped(net: Net) -> None:
    sizes = [4096] * 16
    chain = [slot(net.page(), 0, MORE, 0, (60 + sum(sizes)) & 0xFFFF)]
    chain += [slot(net.page(), 0, MORE, n + 1, size) for n, size in enumerate(sizes[:-1])]
    chain.append(slot(net.page(), 0, 0, 16, 4096))
    assert net.send(chain) == [(n, ERROR) for n in range(17)]
    assert_alive(net)


def test_an_error_ends_the_batch_and_what_follows_is_still_served(net: Net) -> None:
    first, last = frame(60), frame(61)
    answers = net.send(
        [
            slot(net.page(first), 0, 0, 1, 60),
            slot(BAD_REF, 0, 0, 2, 13),
            slot(net.page(last), 0, 0, 3, 61),
        ]
    )
    assert answers == [(2, ERROR), (1, OKAY), (3, OKAY)]  # while the batch is read; once copied
    assert net.sink.data == [first, last]


def test_packets_before_a_fatal_one_are_sent_and_answered(net: Net) -> None:
    good = frame(60)
    bad = [slot(net.page(good), 0, 0, 1, 60), slot(net.page(), 4090, 0, 2, 60)]
    assert_disabled(net, bad, answered=1)
    assert net.sink.data == [good]


def test_a_zero_length_fragment_is_answered_and_never_mapped(net: Net) -> None:
    data = frame(100)
    chain = [
        slot(net.page(data[:60]), 0, MORE, 1, 100),
        slot(BAD_REF, 0, MORE, 2, 0),
        slot(net.page(data[60:]), 0, 0, 3, 40),
    ]
    assert net.send(chain) == [(1, OKAY), (2, OKAY), (3, OKAY)]
    assert net.sink.data == [data]


def test_a_failed_copy_answers_its_own_slot_and_loses_the_packet(net: Net) -> None:
    data = frame(180)
    chain = net.chain(data, [60, 60, 60])
    chain[1] = slot(BAD_REF, 0, MORE, 101, 60)
    good = frame(70)
    answers = net.send([*chain, slot(net.page(good), 0, 0, 7, 70)])
    assert answers == [(100, OKAY), (101, ERROR), (102, OKAY), (7, OKAY)]
    assert net.sink.data == [good]


def test_a_failed_copy_among_plain_packets_loses_that_one(net: Net) -> None:
    frames = [frame(60 + n) for n in range(5)]
    slots = [slot(net.page(one), 0, 0, n, len(one)) for n, one in enumerate(frames)]
    slots[2] = slot(BAD_REF, 0, 0, 2, 62)
    assert net.send(slots) == [(0, OKAY), (1, OKAY), (2, ERROR), (3, OKAY), (4, OKAY)]
    assert net.sink.data == frames[:2] + frames[3:]
    assert net.back.counters.tx_dropped == 1


# Where in its page a frame lies, its size, and whether its reference is one.
WHOLE = st.tuples(st.integers(0, 4095), st.integers(14, 4096), st.integers(0, 9))


class Recorder:
    """In the bridge's place: every frame, whatever its addresses."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def transmit(self, _port: object, frames: Sequence[Frame], _now_ns: int) -> None:
        self.frames += [one.data for one in frames]

    def detach(self, _port: object) -> None: ...

    def take(self) -> list[bytes]:
        taken, self.frames = self.frames, []
        return taken


@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(st.lists(WHOLE, min_size=1, max_size=140), min_size=1, max_size=2),
    odd=st.sampled_from([None, None, "short", "chain"]),
)
def test_whole_packets_fare_alike_in_a_batch_of_their_own_and_among_others(
    batches: list[list[tuple[int, int, int]]], odd: str | None
) -> None:
    """By columns, or slot by slot once a slot among them is something else."""
    with world_raw(seed=3) as world:
        net = Net(world)
        page = bytes(at * 7 + at // 251 & 0xFF for at in range(4096))
        ref = net.page(page)
        bridge = Recorder()
        net.back._bridge = bridge
        dropped = 0
        for batch in batches:
            slots, answers, frames = [], [], []
            for number, (at, size, chance) in enumerate(batch):
                offset = min(at, 4096 - size)
                bad = chance == 0
                slots.append(slot(BAD_REF if bad else ref, offset, 0, number, size))
                answers.append((number, ERROR if bad else OKAY))
                if not bad:
                    frames.append(page[offset : offset + size])
                dropped += bad
            if odd == "short":
                slots.append(slot(ref, 0, 0, 900, 13))
                # Answered while its batch is read, so before what that batch copied.
                answers.insert(len(batch) // 64 * 64, (900, ERROR))
            elif odd == "chain":
                slots += [slot(ref, 0, MORE, 901, 100), slot(ref, 50, 0, 902, 50)]
                answers += [(901, OKAY), (902, OKAY)]
                frames.append(page[:50] + page[50:100])
            sent, before = net.back.counters.tx_bytes, net.back.counters.tx_packets
            assert net.send(slots) == answers
            assert net.back.counters.tx_packets - before == len(frames)
            assert net.back.counters.tx_bytes - sent == sum(map(len, frames))
            assert bridge.take() == frames
        assert net.back.counters.tx_dropped == dropped
        assert world.guest.domain.gnttab.pinned() == pins_of_rings(net)


def tcp(size: int, *, total: int | None = None) -> bytes:
    """An Ethernet frame with an IPv4 TCP segment; its checksum field is 0."""
    ip_bytes = (size if total is None else total) - 14
    ip = (
        bytes.fromhex("4500")
        + ip_bytes.to_bytes(2, "big")
        + bytes.fromhex("00010000400600000a0000010a000002")
    )
    header = bytes.fromhex("1111222200000001000000025010040000000000")
    return (PEER_MAC + GUEST_MAC + b"\x08\x00" + ip + header).ljust(size, b"\x5a")


def test_extras_are_answered_null_right_behind_the_first_slot(net: Net) -> None:
    data = tcp(3000)
    chain = [
        slot(net.page(data[:60]), 0, MORE | EXTRA | CSUM_BLANK | DATA_VALIDATED, 1, 3000),
        extra(GSO, gso(1460, 1), more=True),
        extra(HASH, bytes((1, 1)) + (0xA1B2C3D4).to_bytes(4, "little")),
        slot(net.page(data[60:]), 0, 0, 2, 2940),
    ]
    assert net.send(chain) == [(1, OKAY), (0, NULL), (0, NULL), (2, OKAY)]
    (got,) = net.sink.frames
    assert got.data == data
    assert (got.gso_type, got.gso_size) == (1, 1460)
    assert (got.csum_blank, got.data_validated) == (True, True)
    assert got.hash == (1, 0xA1B2C3D4)


def test_of_two_extras_alike_the_last_counts(net: Net) -> None:
    data = tcp(3000)
    chain = [
        slot(net.page(data), 0, EXTRA | CSUM_BLANK, 1, 3000),
        extra(GSO, gso(0, 9), more=True),
        extra(GSO, gso(700, 1)),
    ]
    assert net.send(chain) == [(1, OKAY), (0, NULL), (0, NULL)]
    assert net.sink.frames[0].gso_size == 700


@pytest.mark.parametrize(("size", "kind"), [(0, 1), (1460, 0), (1460, 3)])
def test_a_wrong_gso_extra_disables_the_vif(net: Net, size: int, kind: int) -> None:
    head = slot(net.page(tcp(3000)), 0, EXTRA | CSUM_BLANK, 1, 3000)
    assert_disabled(net, [head, extra(GSO, gso(size, kind))])


def test_gso_without_a_blank_sum_gets_one(net: Net) -> None:
    head = slot(net.page(tcp(3000)), 0, EXTRA, 1, 3000)
    assert net.send([head, extra(GSO, gso(1460, 1))]) == [(1, OKAY), (0, NULL)]
    (got,) = net.sink.frames
    assert got.csum_blank
    assert got.data[50:52] != b"\0\0"


def test_a_blank_sum_outside_tcp_and_udp_loses_the_packet(net: Net) -> None:
    assert net.send([slot(net.page(frame(90)), 0, CSUM_BLANK, 1, 90)]) == [(1, OKAY)]
    assert net.sink.data == []
    assert net.back.counters.tx_dropped == 1
    assert_alive(net)


def test_a_validated_sum_is_passed_on(net: Net) -> None:
    assert net.send([slot(net.page(frame(90)), 0, DATA_VALIDATED, 1, 90)]) == [(1, OKAY)]
    (got,) = net.sink.frames
    assert (got.csum_blank, got.data_validated) == (False, True)


def test_a_multicast_request_is_answered_and_its_data_ignored(net: Net) -> None:
    group = bytes.fromhex("01005e000001")
    good = frame(60)
    answers = net.send(
        [
            slot(BAD_REF, 0, EXTRA | MORE, 1, 0),
            extra(MCAST_ADD, group),
            slot(net.page(good), 0, 0, 2, 60),
        ]
    )
    assert sorted(answers) == [(0, NULL), (1, OKAY), (2, OKAY)]
    assert net.back.multicast == [group]
    assert net.sink.data == [good]


def test_the_65th_multicast_address_is_refused_and_removal_makes_room(net: Net) -> None:
    def ask(kind: int, number: int) -> list[tuple[int, int]]:
        address = bytes.fromhex("01005e0000") + bytes((number,))
        return net.send([slot(0, 0, EXTRA, 9, 0), extra(kind, address)])

    for number in range(64):
        assert ask(MCAST_ADD, number) == [(9, OKAY), (0, NULL)]
    assert ask(MCAST_ADD, 64) == [(9, ERROR), (0, NULL)]
    assert ask(MCAST_DEL, 3) == [(9, OKAY), (0, NULL)]
    assert ask(MCAST_DEL, 3) == [(9, OKAY), (0, NULL)]
    assert ask(MCAST_ADD, 64) == [(9, OKAY), (0, NULL)]


def test_an_addition_is_looked_at_before_a_removal(net: Net) -> None:
    group = bytes.fromhex("01005e000001")
    head = slot(0, 0, EXTRA, 9, 0)
    net.send([head, extra(MCAST_DEL, group, more=True), extra(MCAST_ADD, group)])
    assert net.back.multicast == [group]


def test_a_multicast_address_added_twice_is_held_twice_and_removed_once(net: Net) -> None:
    group = bytes.fromhex("01005e000001")
    head = slot(0, 0, EXTRA, 9, 0)
    for kind in (MCAST_ADD, MCAST_ADD, MCAST_DEL):
        net.send([head, extra(kind, group)])
    assert net.back.multicast == [group]


@pytest.mark.parametrize(
    ("kind", "algorithm", "hash_"),
    [(0, 1, (0, 7)), (3, 1, (3, 7)), (2, 0, (2, 7)), (1, 99, (1, 7)), (4, 1, None), (255, 1, None)],
)
def test_a_hash_extra_has_one_of_four_types_and_any_algorithm(
    net: Net, kind: int, algorithm: int, hash_: tuple[int, int] | None
) -> None:
    head = slot(net.page(frame(60)), 0, EXTRA, 1, 60)
    body = bytes((kind, algorithm)) + (7).to_bytes(4, "little")
    assert net.send([head, extra(HASH, body)]) == [(1, OKAY), (0, NULL)]
    assert net.sink.frames[0].hash == hash_


def test_gso_without_a_blank_sum_is_counted_even_if_it_is_lost(net: Net) -> None:
    told = extra(GSO, gso(1460, 1))
    blank, full, junk = (net.page(tcp(3000)), net.page(tcp(3000)), net.page(frame(3000)))
    net.send([slot(blank, 0, EXTRA | CSUM_BLANK, 1, 3000), told])
    net.send([slot(full, 0, EXTRA | DATA_VALIDATED, 1, 3000), told])
    net.send([slot(junk, 0, EXTRA, 1, 3000), told])
    assert net.back.counters.rx_gso_checksum_fixup == 2
    assert len(net.sink.frames) == 2


# Changes to a TCP frame of 100 bytes that carries a blank sum, and whether it is still whole.
TELLING: list[tuple[str, bytes, bool]] = [
    ("TCP", tcp(100), True),
    ("UDP", tcp(100)[:23] + b"\x11" + tcp(100)[24:], True),
    ("ICMP", tcp(100)[:23] + b"\x01" + tcp(100)[24:], False),
    ("a fragment", tcp(100)[:20] + b"\x20\x00" + tcp(100)[22:], False),
    ("a tag", tcp(100)[:12] + b"\x81\x00\x00\x05" + tcp(100)[12:], False),
    ("an IP length beyond the frame", tcp(100, total=101), False),
    ("19 bytes of TCP", tcp(100, total=53), False),
    ("ARP", tcp(100)[:12] + b"\x08\x06" + tcp(100)[14:], False),
]


@pytest.mark.parametrize(
    ("data", "whole"), [row[1:] for row in TELLING], ids=[r[0] for r in TELLING]
)
def test_a_blank_sum_must_have_its_place(net: Net, data: bytes, *, whole: bool) -> None:
    ref = net.page(data)
    assert net.send([slot(ref, 0, CSUM_BLANK, 1, len(data))]) == [(1, OKAY)]
    assert net.sink.data == [data] * whole
    # Without the flag nobody looks.
    assert net.send([slot(ref, 0, 0, 1, len(data))]) == [(1, OKAY)]
    assert net.sink.data[whole:] == [data]


@pytest.mark.parametrize("ahead", [1, 256, 257, 0x80000000])
def test_a_backend_attaches_where_the_responses_ended_unless_too_much_waits(
    net: Net, ahead: int
) -> None:
    front = net.world.vif
    front.state = XenbusState.CLOSED
    net.world.run()
    front.state = XenbusState.INITIALISING
    net.world.run()
    front.attach()
    start = 0xFFFFFF00
    good = slot(net.page(frame(60)), 0, 0, 1, 60)
    for index in range(256):
        front.tx.write_slot(index, good)
    front.tx.rsp_prod = start
    front.tx.req_prod = start + ahead & 0xFFFFFFFF
    front.announce()
    net.world.run()
    if ahead > 256:
        assert front.backend_state is XenbusState.CLOSING
        assert net.back.device.broken
        assert net.sink.frames == []
    else:
        assert front.backend_state is XenbusState.CONNECTED
        assert len(net.sink.frames) == ahead
        assert front.tx.rsp_prod == start + ahead & 0xFFFFFFFF


def test_frames_tell_their_queue_and_first_slot(net: Net) -> None:
    good = [slot(net.page(frame(60)), 0, 0, n, 60) for n in range(3)]
    net.send(good)
    chain = net.chain(frame(180), [60, 60, 60])
    net.send([*chain, good[0], slot(net.page(tcp(100)), 0, CSUM_BLANK, 4, 100)])
    assert [(one.queue, one.slot) for one in net.sink.frames] == [
        (0, 0), (0, 1), (0, 2), (0, 3), (0, 6), (0, 7),
    ]  # fmt: skip


def test_a_response_shows_nothing_of_an_earlier_slot(net: Net) -> None:
    net.send([slot(net.page(frame(60)), 0, 0, 0x1234, 60)])
    assert net.world.vif.tx.slot(0) == bytes.fromhex("34120000") + bytes(8)


@pytest.mark.parametrize("start", [0xFFFFFFF0, 0x7FFFFFF8, 255])
def test_indices_wrap(start: int) -> None:
    with world_raw(seed=1) as world:
        net = Net(world)
        reconnect_at(net, start)
        frames = [frame(60 + n) for n in range(40)]
        slots = [slot(net.page(one), 0, 0, n, len(one)) for n, one in enumerate(frames)]
        assert net.send(slots[:20]) == [(n, OKAY) for n in range(20)]
        assert net.send(slots[20:]) == [(n, OKAY) for n in range(20, 40)]
        assert net.sink.data == frames


def test_slots_are_conserved_over_many_rounds(net: Net) -> None:
    good = frame(70)
    ref = net.page(good)
    for number in range(600):
        kind = number % 3
        slots = [slot(ref, 0, 0, number % 1000, 70)]
        if kind == 1:
            slots = [slot(ref, 0, MORE, 1, 130), slot(ref, 0, 0, 2, 60)]
        elif kind == 2:
            slots = [slot(BAD_REF, 0, 0, 3, 70)]
        assert len(net.send(slots)) == len(slots)
    assert net.world.vif.tx.ring.in_flight == 0
    assert net.back.counters.tx_packets == 400
    assert net.back.counters.tx_dropped == 200


@settings(max_examples=150, deadline=None)
@given(raw=st.binary(max_size=12 * 40), lead=st.integers(0, 300), page=st.binary(max_size=64))
def test_arbitrary_slots_never_raise_and_leave_a_known_outcome(
    raw: bytes, lead: int, page: bytes
) -> None:
    with world_raw(seed=5) as world:
        net = Net(world)
        refs = [net.page(page.ljust(4096, b"\x11")) for _ in range(4)]
        count = min(256, len(raw) // 12)
        slots = [mend(raw[12 * n : 12 * n + 12], refs) for n in range(count)]
        ring = world.vif.tx
        for number, one in enumerate(slots):
            ring.write_slot(number, one)
        ring.req_prod = max(count, lead)
        world.vif.notify()
        world.run()
        published = ring.rsp_prod
        assert published <= max(lead, count)
        if not net.back.disabled:
            assert published == ring.req_prod
            statuses = [
                int.from_bytes(ring.slot(n)[2:4], "little", signed=True)
                for n in range(min(published, 256))
            ]
            assert all(status in (ERROR, OKAY, NULL) for status in statuses)
        counters = net.back.counters
        assert counters.tx_packets == len(net.sink.frames) + world.bridge.dropped
        assert world.guest.domain.gnttab.pinned() == pins_of_rings(net)


def mend(raw: bytes, refs: list[int]) -> bytes:
    """Arbitrary bytes, but often a reference that exists and sizes that could be."""
    if len(raw) == 12 and raw[3] & 1:
        size = int.from_bytes(raw[10:12], "little") & 0x3FF
        return slot(refs[raw[0] % 4], raw[4], raw[6] & 15, raw[8], size)
    return raw


def pins_of_rings(net: Net) -> int:
    """The store ring is not there in a raw world: two net rings and a block ring."""
    rings = 2 if net.back.queues else 0
    return rings + 1
