"""How many slots a packet takes, whatever lies where in the guest's memory: no backend that
follows netif.h ever sees more than 18, or a first fragment without an Ethernet header.
"""

from __future__ import annotations

from itertools import product

import pytest
from attrs import evolve

from tests.vif.rawback import Scene, scene
from tests.vif.txscene import (
    BLANK,
    DROPPED_STATUS,
    ERROR_STATUS,
    EXTRA,
    LINUX_FEATURES,
    LSO4,
    MORE,
    NULL,
    OK_STATUS,
    OKAY,
    TCP4,
    answer_chain,
    keep,
    send,
    tcp4,
    udp4,
    wire,
)
from xenpv.host.offload import to_wire
from xenpv.vif.packet import HashAlgorithm, HashType, PacketHash, TransmitterPacket

NEAR_WRAP = 0xFFFFFFF0
RUN = 60  # bytes of payload that lie together, at the very end of a page
HASH = PacketHash(HashAlgorithm.TOEPLITZ, HashType.IPV4_TCP, 0x51CCC178)
EXTRAS = {"no extra": 0, "GSO": 1, "GSO and HASH": 2}

# Runs in memory: slots with a first run of 13 bytes, and of 14. XenVif gathers its headers
# (54 bytes) in a page of their own whatever the first run is; netfront bounces a short one.
WINDOWS = {1: (1, 1), 2: (2, 2), 18: (18, 18), 19: (2, 2), 20: (2, 2), 21: (2, 2), 22: (2, 2)}
LINUX = {1: (1, 1), 2: (1, 2), 18: (1, 18), 19: (1, 1), 20: (1, 1), 21: (1, 1), 22: (1, 1)}


def packet(personality: str, runs: int, extras: int, first: int) -> TransmitterPacket:
    """TCP whose bytes lie in `runs` runs, each in a page of its own."""
    headers = ((0, first), (4096 - 54 + first, 54 - first))  # two runs, side by side for Windows
    count = runs - 1 if personality == "windows" else runs - 2
    size = max(0, count) * RUN
    layout = (*headers, *[(4096 - RUN, RUN)] * count)
    if count < 0:
        layout = ((0, 54),)  # all in one run
    return TransmitterPacket(
        tcp4(size),
        offload=(LSO4 if extras else TCP4) if size else TCP4,
        mss=RUN // 2 if extras and size else 0,
        hash=HASH if extras == 2 else PacketHash(),
        layout=layout,
    )


def data_slots(s: Scene) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]], bytes]:
    """What is on the ring: data slots, extras, and the packet that they describe."""
    slots = s.back.sent()
    first, rest = slots[0], slots[1:]
    extras = []
    flags = first[2]
    while flags & (EXTRA if not extras else 1):
        extras.append(rest.pop(0))
        flags = extras[-1][0] >> 8
    sizes = [first[4] - sum(slot[4] for slot in rest), *(slot[4] for slot in rest)]
    data = [first, *rest]
    parts = [s.back.payload(slot[0], slot[1], size) for slot, size in zip(data, sizes, strict=True)]
    assert [slot[2] & MORE for slot in data] == [MORE] * (len(data) - 1) + [0]
    assert all(slot[2] & ~MORE == 0 for slot in rest)
    assert sizes[0] >= 14
    assert all(slot[1] + size <= 4096 for slot, size in zip(data, sizes, strict=True))
    return data, extras, b"".join(parts)


CASES = list(product(("windows", "linux"), WINDOWS, EXTRAS.values(), (13, 14)))


@pytest.mark.parametrize("start", [0, NEAR_WRAP])
def test_slots_for_every_number_of_fragments(start: int) -> None:
    with (
        scene("windows", LINUX_FEATURES, start=start) as windows,
        scene("linux", LINUX_FEATURES, start=start) as linux,
    ):
        scenes = {"windows": windows, "linux": linux}
        keepers = {name: keep(s.pdo.frontend) for name, s in scenes.items()}
        for cookie, (personality, runs, extras, first) in enumerate(CASES):
            s = scenes[personality]
            one = packet(personality, runs, extras, first)
            send(s, one, first=cookie)
            data, told, whole = data_slots(s)
            table = WINDOWS if personality == "windows" else LINUX
            case = (personality, runs, extras, first)
            assert len(data) == table[runs][first - 13], case
            # One run of nothing but headers has nothing to cut.
            gso = bool(extras and one.mss)
            hashed = extras == 2 and personality == "windows"  # netfront sends none
            assert len(told) == gso + hashed, case
            assert data[0][2] & 3 == BLANK
            size = len(one.data)
            assert whole[:50] + whole[52:size] == one.data[:50] + one.data[52:], case
            assert data[0][4] == (max(size, 60) if personality == "windows" else size)
            answer_chain(s, [data[0], *told, *data[1:]])
            assert keepers[personality].done[cookie][0] == OK_STATUS, case
        for s in scenes.values():
            ring = s.pdo.frontend.queues[0].transmitter
            assert ring is not None
            assert ring.posted == ring.answered
            assert not s.broken


@pytest.mark.parametrize("start", [0, NEAR_WRAP])
@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_every_number_of_fragments_reaches_the_wire(personality: str, start: int) -> None:
    with wire(personality, start=start) as w:
        cases = [case for case in CASES if case[0] == personality]
        packets = [packet(*case) for case in cases]
        w.send(*packets)
        assert [w.keeper.done[cookie][0] for cookie in range(len(cases))] == [OK_STATUS] * len(
            cases
        )
        for one, got in zip(packets, w.sink.frames, strict=True):
            assert got.gso_size == one.mss
            if not one.mss:
                (frame,) = to_wire(got)
                assert frame[: len(one.data)] == one.data
            else:
                assert got.data[54:] == one.data[54:]
            assert bool(got.hash) == (one.hash is HASH and personality == "windows")
        ring = w.frontend.queues[0].transmitter
        assert ring is not None
        assert ring.posted == ring.answered
        assert not w.frontend.broken


@pytest.mark.parametrize("fragments", [1, 16, 17, 18, 40])
def test_the_largest_packet_of_all_takes_17_slots(fragments: int) -> None:
    with wire() as w:
        data = tcp4(65000)[:54] + bytes(65535 - 54)
        step = -(-65535 // fragments)
        layout = tuple((100, min(step, 65535 - at)) for at in range(0, 65535, step))
        w.send(TransmitterPacket(data, offload=LSO4, mss=1460, layout=layout))
        (got,) = w.sink.frames
        assert len(got.data) == 65535
        assert w.keeper.done[0][0] == OK_STATUS


def test_a_byte_more_is_dropped() -> None:
    with wire() as w:
        data = tcp4(65000)[:54] + bytes(65536 - 54)
        w.send(TransmitterPacket(data, offload=LSO4, mss=1460))
        assert w.keeper.done[0][0] == DROPPED_STATUS
        assert w.sink.frames == []


def test_payload_that_does_not_begin_with_a_page_is_granted_as_it_lies() -> None:
    with scene(features=LINUX_FEATURES) as s:
        keep(s.pdo.frontend)
        send(s, TransmitterPacket(tcp4(10000), offload=LSO4, mss=1460, layout=((3000, 10054),)))
        slots = s.back.sent()
        # 3,000 + 54 bytes into the first page; the headers are in one of their own.
        assert [slot[1] for slot in slots] == [0, 1, 3054, 0, 0, 0]
        assert [slot[4] for slot in slots[2:]] == [1042, 4096, 4096, 766]


def test_a_layout_that_says_too_little_is_made_up_for() -> None:
    with wire() as w:
        w.send(TransmitterPacket(udp4(1000), layout=((0, 100),)))
        assert [one.data for one in w.sink.frames] == [udp4(1000)]


@pytest.mark.parametrize(
    "layout",
    [
        ((0, 9999),),
        ((5000, 1042),),
        ((4095, 1), (4095, 1041)),
        ((0, 0), (0, 0)),
        ((0, -5), (7, 2000)),
    ],
)
def test_a_layout_that_is_wrong_harms_nobody(layout: tuple[tuple[int, int], ...]) -> None:
    for personality in ("windows", "linux"):
        with wire(personality) as w:
            w.send(TransmitterPacket(udp4(1000), layout=layout))
            assert [one.data for one in w.sink.frames] == [udp4(1000)]
            assert not w.frontend.broken


def test_always_copy_packs_payload_into_whole_pages() -> None:
    with scene(features=LINUX_FEATURES) as s:
        keep(s.pdo.frontend)
        ring = s.pdo.frontend.queues[0].transmitter
        assert ring is not None
        ring._rules = evolve(ring._rules, always_copy=True)
        send(s, TransmitterPacket(tcp4(1000), layout=((3500, 1054),)))
        assert [slot[1] for slot in s.back.sent()] == [0, 0]
        send(s, tcp4(1000), first=1)
        assert [slot[1] for slot in s.back.sent()] == [0, 0]


def test_netfront_stops_when_a_whole_packet_might_not_fit() -> None:
    with scene("linux", LINUX_FEATURES) as s:
        keeper = keep(s.pdo.frontend)
        send(s, *[udp4(18)] * 300)
        slots = s.back.sent()
        assert len(slots) == 256 - 18 - 1
        answer_chain(s, slots[:5])
        assert len(s.back.sent()) == 5
        assert len(keeper.done) == 5


def test_netfront_goes_on_to_fill_what_it_kept_free() -> None:
    with scene("linux", LINUX_FEATURES) as s:
        keep(s.pdo.frontend)
        send(s, *[udp4(18)] * 236)
        big = TransmitterPacket(
            tcp4(17 * 1000), offload=LSO4, mss=500, layout=((0, 1054), *[(0, 1000)] * 16)
        )
        send(s, big, big, first=236)
        assert len(s.back.sent()) == 236 + 17 + 1


def test_netfront_stops_for_packets_with_offloads_too() -> None:
    with scene("linux", LINUX_FEATURES) as s:
        keep(s.pdo.frontend)
        send(s, *[udp4(18)] * 237, TransmitterPacket(udp4(100)))
        slots = s.back.sent()
        assert len(slots) == 237
        answer_chain(s, slots[:1])
        assert len(s.back.sent()) == 1


def test_a_tag_does_not_move_payload_in_memory() -> None:
    with scene(features=LINUX_FEATURES) as s:
        keep(s.pdo.frontend)
        send(s, TransmitterPacket(udp4(1000), offload=1, tci=5, layout=((100, 1042),)))
        first, second = s.back.sent()
        assert first[1:3] + first[4:] == (0, MORE, 1046)
        assert second[1:3] + second[4:] == (142, 0, 1000)


def test_a_packet_that_was_dropped_while_it_waited_is_not_sent_in_place_of_another() -> None:
    with scene(features=LINUX_FEATURES) as s:
        keeper = keep(s.pdo.frontend)
        send(s, *[udp4(1000)] * 128)
        slots = s.back.sent()
        send(s, TransmitterPacket(tcp4(3000), offload=LSO4, mss=100), first=128)
        s.pdo.frontend.disable()
        assert keeper.done[128][0] == DROPPED_STATUS
        answer_chain(s, slots)
        s.pdo.frontend.enable(keeper)
        send(s, TransmitterPacket(udp4(77)), first=129)
        first, second = s.back.sent()
        assert (first[4], second[4]) == (42 + 77, 77)


def test_what_is_in_flight_at_the_end_is_dropped_with_its_extras() -> None:
    with scene(features=LINUX_FEATURES) as s:
        keeper = keep(s.pdo.frontend)
        send(s, *[packet("windows", 18, 2, 14)] * 20)
        ring = s.pdo.frontend.queues[0].transmitter
        assert ring is not None
        slots = s.back.sent()
        assert len(slots) == 240
        answer_chain(s, slots[:1])  # the first slot of the first packet
        s.pdo.eject()
        s.run()
        assert [keeper.done[cookie][0] for cookie in range(20)] == [DROPPED_STATUS] * 20
        assert (ring.answered, ring.faked) == (1, 239)
        assert ring.posted == 240


HOSTILE = {
    "a NULL too many": [(0, NULL)] * 3,
    "the slot of an extra by its neighbour's id": [(600, OKAY)],
    "an id between pages and requests": [(519, OKAY)],
    "an id beyond the table": [(520, OKAY)],
    "a status that is none": [(1, 7)],
    "the least of all": [(1, -0x8000)],
}


@pytest.mark.parametrize("responses", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_answer_to_a_packet_with_extras_breaks_the_interface(
    responses: list[tuple[int, int]],
) -> None:
    with scene(features=LINUX_FEATURES) as s:
        keeper = keep(s.pdo.frontend)
        send(s, packet("windows", 18, 2, 14))
        s.back.sent()
        s.back.answer_tx(*responses)
        s.run()
        assert s.broken
        assert keeper.done[0][0] == ERROR_STATUS
        ring = s.pdo.frontend.queues[0].transmitter
        assert ring is not None
        assert ring.posted == ring.answered + ring.faked


def test_a_first_page_that_is_answered_early_is_not_used_again_too_soon() -> None:
    with scene(features=LINUX_FEATURES) as s:
        keeper = keep(s.pdo.frontend)
        send(s, udp4(1000))
        first, second = s.back.sent()
        s.back.answer_tx((first[3], OKAY))
        s.run()
        send(s, udp4(1001), first=1)
        slots = s.back.sent()
        assert first[3] not in [slot[3] for slot in slots]
        s.back.answer_tx((second[3], OKAY), *((slot[3], OKAY) for slot in slots))
        s.run()
        assert [(keeper.done[at][0], keeper.done[at][2]) for at in (0, 1)] == [
            (OK_STATUS, 1042), (OK_STATUS, 1043)
        ]  # fmt: skip
        ring = s.pdo.frontend.queues[0].transmitter
        assert ring is not None
        assert ring.slots.free == ring.granter.held  # every page that it has
