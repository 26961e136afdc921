"""How QEMU and mirage read a tx ring: each row is what Linux would have done otherwise."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.back.netfront import (
    CSUM_BLANK,
    ERROR,
    EXTRA,
    GSO,
    MORE,
    OKAY,
    Net,
    extra,
    frame,
    gso,
    serve_by,
    slot,
)
from tests.back.test_nettx import tcp
from xenpv.back.txrules import MIRAGE_TX, QEMU_TX, TxRules
from xenpv.host.network import Frame
from xenpv.host.offload import blank_checksum, finish_checksum, sum_from_scratch
from xenpv.host.packet import (
    ETHERTYPE_IPV4,
    TCP,
    ethernet_frame,
    ipv4_packet,
    ipv6_packet,
    udp_datagram,
)
from xenpv.testing.checkers import check_all
from xenpv.testing.raw_world import world_raw

BAD_REF = 4000
HERE, THERE = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
HERE6, THERE6 = bytes(15) + b"\1", bytes(15) + b"\2"
MACS = (bytes.fromhex("00163e0000ee"), bytes.fromhex("00163e000001"))


def served(rules: TxRules) -> Iterator[Net]:
    with world_raw(seed=3) as world:
        net = Net(world)
        serve_by(net, rules, 0xFFFFFFFC)
        yield net
        check_all(world.platform, quiescent=not net.back.disabled, hostile=(1,))


@pytest.fixture
def qemu() -> Iterator[Net]:
    yield from served(QEMU_TX)


@pytest.fixture
def mirage() -> Iterator[Net]:
    yield from served(MIRAGE_TX)


@pytest.mark.parametrize("size", [14, 60, 1514, 4096])
def test_qemu_takes_a_frame_in_one_slot(qemu: Net, size: int) -> None:
    data = frame(size)
    assert qemu.send([slot(qemu.page(data), 0, 0, 5, size)]) == [(5, OKAY)]
    assert qemu.sink.data == [data]


@pytest.mark.parametrize(
    ("offset", "flags", "size"),
    [(0, MORE, 60), (0, EXTRA, 60), (0, 0, 13), (0, 0, 0), (4090, 0, 60), (0, 0, 4097)],
)
def test_qemu_answers_one_error_for_what_it_does_not_take(
    qemu: Net, offset: int, flags: int, size: int
) -> None:
    good = frame(70)
    bad = slot(qemu.page(frame(60)), offset, flags, 3, size)
    assert qemu.send([bad, slot(qemu.page(good), 0, 0, 4, 70)]) == [(3, ERROR), (4, OKAY)]
    assert qemu.sink.data == [good]
    assert not qemu.back.disabled


def test_qemu_answers_an_error_for_a_page_that_it_cannot_map(qemu: Net) -> None:
    assert qemu.send([slot(BAD_REF, 0, 0, 3, 60)]) == [(3, ERROR)]


def test_qemu_takes_the_second_slot_of_a_chain_for_a_frame_of_its_own(qemu: Net) -> None:
    """What a Windows frontend does there: headers in a slot, payload in the next."""
    data = frame(1000)
    assert qemu.send(qemu.chain(data, [54, 946])) == [(100, ERROR), (101, OKAY)]
    # Its first bytes are no addresses of anybody: it went to the bridge all the same.
    assert qemu.back.counters.tx_packets == 1
    assert qemu.back.counters.tx_bytes == 946


def test_qemu_reads_an_extra_as_a_frame_and_says_null_to_nobody(qemu: Net) -> None:
    head = slot(qemu.page(tcp(3000)), 0, EXTRA | CSUM_BLANK, 1, 3000)
    answers = qemu.send([head, extra(GSO, gso(1460, 1))])
    assert answers == [(1, ERROR), (0, ERROR)]  # of its body the bytes of an id are 0


def test_qemu_finishes_a_blank_sum(qemu: Net) -> None:
    whole = tcp(500)
    blank = blank_checksum(Frame(whole)).data
    qemu.send([slot(qemu.page(blank), 0, CSUM_BLANK, 1, 500)])
    (got,) = qemu.sink.frames
    assert got.data == sum_from_scratch(finish_checksum(Frame(blank, csum_blank=True)).data)
    assert (got.csum_blank, got.data_validated) == (False, False)


@pytest.mark.parametrize(
    "data",
    [
        frame(90),
        ethernet_frame(*MACS, 0x86DD, ipv6_packet(HERE6, THERE6, TCP, bytes(40))),
        tcp(54)[:44],
    ],
)
def test_qemu_sums_nothing_but_ipv4(data: bytes) -> None:
    assert sum_from_scratch(data) == data


def test_qemu_sums_whatever_stood_there() -> None:
    good = ethernet_frame(
        *MACS,
        ETHERTYPE_IPV4,
        ipv4_packet(HERE, THERE, 17, udp_datagram(HERE, THERE, 1, 2, b"x" * 9)),
    )
    spoilt = bytearray(good)
    spoilt[24:26] = b"\xaa\xaa"  # of the IP header
    spoilt[40:42] = b"\x55\x55"  # of UDP
    assert sum_from_scratch(bytes(spoilt)) == good


@pytest.mark.parametrize("rules", [QEMU_TX, MIRAGE_TX])
def test_an_absurd_index_shuts_the_vif_of_every_backend(rules: TxRules) -> None:
    for net in served(rules):
        net.world.vif.tx.req_prod = 0xFFFFFFFC + 257 & 0xFFFFFFFF
        net.world.vif.notify()
        net.world.run()
        assert net.back.disabled


@pytest.mark.parametrize("rules", [QEMU_TX, MIRAGE_TX])
def test_only_linux_obeys_the_rate(rules: TxRules) -> None:
    for net in served(rules):
        net.world.guest.xs.write(f"{net.world.vif.backend_path}/rate", "1,50000")
        net.world.run()
        start = net.world.platform.loop.now
        assert net.send([slot(net.page(frame(60)), 0, 0, 1, 60)]) == [(1, OKAY)]
        assert net.world.platform.loop.now == start


@pytest.mark.parametrize("slots", [1, 2, 18, 19, 40])
def test_mirage_takes_a_chain_of_any_length(mirage: Net, slots: int) -> None:
    data = frame(60 * slots)
    assert mirage.send(mirage.chain(data, [60] * slots)) == [(100 + n, OKAY) for n in range(slots)]
    assert mirage.sink.data == [data]


def test_mirage_does_not_look_at_checksum_flags(mirage: Net) -> None:
    data = tcp(500)
    mirage.send([slot(mirage.page(data), 0, CSUM_BLANK, 1, 500)])
    (got,) = mirage.sink.frames
    assert (got.data, got.csum_blank) == (data, False)


def test_mirage_reads_an_extra_as_a_request(mirage: Net) -> None:
    """A GSO extra's type is at a request's offset: TCPV4 is an offset of 1, and no bytes."""
    data = tcp(3000)
    chain = [slot(mirage.page(data), 0, EXTRA | CSUM_BLANK, 1, 3000), extra(GSO, gso(1460, 1))]
    assert mirage.send(chain) == [(1, OKAY), (0, OKAY)]
    assert mirage.sink.frames[0].gso_type == 0
    assert mirage.back.counters.tx_packets == 2  # the second is empty, and no frame to the bridge


def test_mirage_never_answers_a_slot_whose_offset_is_no_place(mirage: Net) -> None:
    good = frame(70)
    chain = [slot(mirage.page(), 4097, 0, 1, 60), slot(mirage.page(good), 0, 0, 2, 70)]
    assert mirage.send(chain) == [(2, OKAY)]
    assert mirage.world.vif.tx.ring.in_flight == 1


def test_mirage_is_wedged_by_a_ring_of_such_slots_and_does_not_spin(mirage: Net) -> None:
    assert mirage.send([slot(0, 4097, 0, n, 60) for n in range(256)]) == []
    mirage.world.vif.notify()
    mirage.world.run()
    assert mirage.world.vif.tx.ring.in_flight == 256
    mirage.world.vif.tx.req_prod = 0xFFFFFFFC + 257 & 0xFFFFFFFF  # there is no room for it
    mirage.world.vif.notify()
    mirage.world.run()
    assert mirage.back.disabled


def test_mirage_answers_errors_for_a_chain_cut_by_the_end_of_a_poll(mirage: Net) -> None:
    chain = mirage.chain(frame(180), [60, 60, 60])
    assert mirage.send(chain[:2]) == [(100, ERROR), (101, ERROR)]
    assert mirage.send(chain[2:]) == [(102, OKAY)]  # a frame of its own, then
    assert mirage.back.counters.tx_bytes == 60


def test_mirage_answers_errors_for_sizes_that_do_not_add_up(mirage: Net) -> None:
    chain = [slot(mirage.page(), 0, MORE, 1, 100), slot(mirage.page(), 0, 0, 2, 101)]
    assert mirage.send(chain) == [(1, ERROR), (2, ERROR)]
    assert mirage.back.counters.tx_dropped == 1


def test_mirage_has_no_least_size(mirage: Net) -> None:
    assert mirage.send([slot(mirage.page(), 0, 0, 1, 5)]) == [(1, OKAY)]
    assert mirage.sink.data == []  # the bridge refuses it


@pytest.mark.parametrize(
    ("broken", "statuses"),
    [(0, (ERROR, ERROR, ERROR)), (1, (OKAY, ERROR, ERROR)), (2, (OKAY, OKAY, ERROR))],
)
@pytest.mark.parametrize("how", ["reference", "page"])
def test_mirage_gives_a_chain_up_where_it_cannot_read_a_page(
    mirage: Net, broken: int, statuses: tuple[int, ...], how: str
) -> None:
    chain = mirage.chain(frame(180), [60, 60, 60])
    total = 180 if not broken else 60
    flags = MORE if broken < 2 else 0
    ref, offset = (BAD_REF, 0) if how == "reference" else (mirage.page(), 4090)
    chain[broken] = slot(ref, offset, flags, 100 + broken, total)
    assert mirage.send(chain) == [(100 + n, status) for n, status in enumerate(statuses)]
    assert (mirage.sink.data, mirage.back.disabled) == ([], False)
