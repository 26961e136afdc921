"""Frames on their way to a guest: slots, order, flags, backlog and expiry."""

from __future__ import annotations

from collections.abc import Iterator
from struct import unpack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.back.netfront import (
    EXTRA,
    GUEST_MAC,
    MORE,
    PEER_MAC,
    RX_BLANK,
    RX_VALIDATED,
    Net,
    frame,
    reconnect_at,
    slot,
)
from xenpv.abi.xenbus import XenbusState
from xenpv.host.network import GSO_TCPV4, Frame
from xenpv.host.offload import blank_checksum, finish_checksum
from xenpv.host.packet import internet_checksum, pseudo_header
from xenpv.testing.raw_world import world_raw

GENERAL_ERROR, BAD_GNTREF = -1, -3


@pytest.fixture
def net() -> Iterator[Net]:
    with world_raw(seed=3) as world:
        yield Net(world)


def inbound(size: int) -> bytes:
    return frame(size, source=PEER_MAC, destination=GUEST_MAC)


def udp(size: int) -> bytes:
    """A UDP datagram over IPv4 in a frame of `size` bytes, its checksum right."""
    ip_size = size - 14
    ip = bytearray.fromhex("4500") + ip_size.to_bytes(2, "big")
    ip += bytes.fromhex("00010000401100000a0000020a000001")
    ip[10:12] = internet_checksum(bytes(ip)).to_bytes(2, "big")
    head = bytes.fromhex("11112222") + (ip_size - 20).to_bytes(2, "big") + b"\0\0"
    packet = bytes(ip) + (head + bytes(range(200)) * 8)[: ip_size - 20]
    data = GUEST_MAC + PEER_MAC + b"\x08\x00" + packet
    total = internet_checksum(
        pseudo_header(packet[12:16], packet[16:20], 17, ip_size - 20) + packet[20:]
    )
    return data[:40] + total.to_bytes(2, "big") + data[42:]


def tcp(payload: int) -> bytes:
    """A TCP segment over IPv4 of `payload` bytes; its checksum is right."""
    ip = bytearray.fromhex("4500") + (40 + payload).to_bytes(2, "big")
    ip += bytes.fromhex("00010000400600000a0000020a000001")
    ip[10:12] = internet_checksum(bytes(ip)).to_bytes(2, "big")
    segment = bytes.fromhex("11112222000000010000000250180400") + bytes(4)
    segment += bytes(at & 0xFF for at in range(payload))
    total = internet_checksum(
        pseudo_header(bytes(ip[12:16]), bytes(ip[16:20]), 6, len(segment)) + segment
    )
    segment = segment[:16] + total.to_bytes(2, "big") + segment[18:]
    return GUEST_MAC + PEER_MAC + b"\x08\x00" + bytes(ip) + segment


@pytest.mark.parametrize("size", [*range(60, 1519, 81), 1514, 1518])
def test_a_frame_takes_one_slot_and_is_byte_exact(net: Net, size: int) -> None:
    (pfn,) = net.post(1)
    net.deliver(Frame(inbound(size)))
    assert net.received() == [(0, 0, 0, size)]
    assert net.world.guest.domain.read(pfn, 0, size) == inbound(size)


def test_responses_keep_the_order_and_slots_of_the_requests(net: Net) -> None:
    pfns = net.post(5)
    net.deliver(*(Frame(inbound(60 + n)) for n in range(5)))
    assert net.received() == [(n, 0, 0, 60 + n) for n in range(5)]
    for n, pfn in enumerate(pfns):
        assert net.world.guest.domain.read(pfn, 0, 60 + n) == inbound(60 + n)


def test_an_event_comes_when_the_guest_asked_for_it(net: Net) -> None:
    net.post(1)
    before = net.world.vif.events
    net.deliver(Frame(inbound(60)))
    assert net.world.vif.events == before + 1


def jumbo(net: Net, mtu: int) -> None:
    """Connect again with another MTU at the backend."""
    net.world.guest.xs.write(f"{net.world.vif.backend_path}/mtu", str(mtu))
    reconnect_at(net, 0)


@pytest.mark.parametrize(("size", "slots"), [(4096, 1), (4097, 2), (8192, 2), (9014, 3), (9018, 3)])
def test_a_frame_beyond_a_page_takes_as_many_slots_as_it_needs(
    net: Net, size: int, slots: int
) -> None:
    jumbo(net, 9000)
    pfns = net.post(4)
    net.deliver(Frame(inbound(size)))
    answers = net.received()
    assert len(answers) == slots
    assert [answer[0] for answer in answers] == list(range(slots))
    assert [answer[2] for answer in answers] == [MORE] * (slots - 1) + [0]
    assert [answer[3] for answer in answers] == [4096] * (slots - 1) + [size - 4096 * (slots - 1)]
    read = net.world.guest.domain.read
    assert b"".join(
        read(pfn, 0, answer[3]) for pfn, answer in zip(pfns, answers, strict=False)
    ) == inbound(size)


def test_a_packet_is_never_visible_in_part(net: Net) -> None:
    jumbo(net, 9000)
    net.post(2)
    net.world.bridge.transmit(net.sink, [Frame(inbound(9000))], net.world.platform.loop.now)
    net.world.platform.loop.advance(1_000)
    assert net.received() == []
    net.post(1)
    net.world.run()
    assert [answer[3] for answer in net.received()] == [4096, 4096, 808]


@pytest.mark.parametrize(("size", "dropped"), [(1518, 0), (1519, 1)])
def test_a_frame_longer_than_the_mtu_allows_is_dropped(net: Net, size: int, dropped: int) -> None:
    net.post(1)
    net.deliver(Frame(inbound(size)))
    assert len(net.received()) == 1 - dropped
    assert net.back.counters.rx_dropped == dropped


def test_a_guest_without_sg_has_the_mtu_of_ethernet(net: Net) -> None:
    net.world.guest.xs.write(f"{net.world.vif.backend_path}/mtu", "9000")
    net.world.vif.write_key("feature-sg", "0")
    front = net.world.vif
    keys = front.keys
    front.keys = lambda: {**keys(), "feature-sg": "0"}  # type: ignore[method-assign]  # one key
    reconnect_at(net, 0)
    assert net.back.mtu == 1500


def test_flags_say_what_the_sender_said_about_the_sum(net: Net) -> None:
    net.post(3)
    data = udp(200)
    net.deliver(Frame(data), Frame(data, data_validated=True), blank_checksum(Frame(data)))
    assert [answer[2] for answer in net.received()] == [0, RX_VALIDATED, RX_BLANK | RX_VALIDATED]


def with_keys(net: Net, **changes: str) -> None:
    """Connect again with other keys; underscores are dashes."""
    front = net.world.vif
    keys = front.keys()
    named = {key.replace("_", "-"): value for key, value in changes.items()}
    front.keys = lambda: {  # type: ignore[method-assign]  # the refs change at each attach
        **keys,
        "tx-ring-ref": str(front.tx_ref),
        "rx-ring-ref": str(front.rx_ref),
        "event-channel": str(front.port),
        **named,
    }
    reconnect_at(net, 0)


def test_a_guest_that_takes_no_blank_sums_gets_finished_ones(net: Net) -> None:
    with_keys(net, feature_no_csum_offload="1")
    (pfn,) = net.post(1)
    data = udp(200)
    net.deliver(blank_checksum(Frame(data)))
    assert net.received() == [(0, 0, RX_VALIDATED, 200)]
    assert net.world.guest.domain.read(pfn, 0, 200) == data


def test_gso_goes_whole_with_an_extra_to_a_guest_that_takes_it(net: Net) -> None:
    data = tcp(6000)
    whole = blank_checksum(Frame(data, gso_type=GSO_TCPV4, gso_size=1460))
    pfns = net.post(4)
    net.deliver(whole)
    raw = net.world.vif.rx.take()
    assert unpack("<HHHh", raw[0]) == (0, 0, EXTRA | MORE | RX_BLANK | RX_VALIDATED, 4096)
    assert raw[1] == bytes((1, 0)) + (1460).to_bytes(2, "little") + bytes((1, 0, 0, 0))
    assert unpack("<HHHh", raw[2]) == (2, 0, 0, len(data) - 4096)
    read = net.world.guest.domain.read
    assert read(pfns[0], 0, 4096) + read(pfns[2], 0, len(data) - 4096) == whole.data
    assert read(pfns[1], 0, 4096) == bytes(4096)


def test_gso_is_segmented_for_a_guest_that_does_not_take_it(net: Net) -> None:
    with_keys(net, feature_gso_tcpv4="0", feature_no_csum_offload="1")
    net.post(8)
    net.deliver(blank_checksum(Frame(tcp(4000), gso_type=GSO_TCPV4, gso_size=1460)))
    assert [answer[2:] for answer in net.received()] == [
        (RX_VALIDATED, 1514), (RX_VALIDATED, 1514), (RX_VALIDATED, 1134),
    ]  # fmt: skip


def test_a_frame_that_cannot_be_finished_is_dropped(net: Net) -> None:
    with_keys(net, feature_no_csum_offload="1")
    net.post(1)
    net.deliver(Frame(inbound(90), csum_blank=True))
    assert net.received() == []
    assert net.back.counters.rx_dropped == 1


def test_a_guest_that_did_not_ask_for_rx_copy_is_served_with_the_defaults(net: Net) -> None:
    with_keys(net, request_rx_copy="0", feature_sg="0", feature_gso_tcpv4="1")
    assert net.back.offer.sg
    assert net.back.offer.csum
    assert not net.back.offer.ipv6_csum
    assert net.back.offer.gso_types == ()


def test_a_failed_copy_puts_its_grant_status_into_the_response(net: Net) -> None:
    ring = net.world.vif.rx
    ring.push(
        bytes.fromhex("0000 0000 a00f0000")
        + bytes.fromhex("0100 0000")
        + net.page(readonly=True).to_bytes(4, "little"),
        2,
    )
    net.world.vif.notify()
    net.world.run()
    net.deliver(Frame(inbound(60)), Frame(inbound(60)))
    assert net.received() == [(0, 0, 0, BAD_GNTREF), (1, 0, 0, GENERAL_ERROR)]


def test_a_failed_copy_behind_an_extra_marks_its_own_slot(net: Net) -> None:
    pfns = net.post(2)
    assert len(pfns) == 2
    ring = net.world.vif.rx
    ring.push(bytes.fromhex("0200 0000 a00f0000"), 1)
    net.world.vif.notify()
    net.deliver(blank_checksum(Frame(tcp(6000), gso_type=GSO_TCPV4, gso_size=1460)))
    statuses = [unpack("<HHHh", raw)[3] for raw in ring.take()]
    assert statuses[0] == 4096
    assert statuses[2] == BAD_GNTREF


def test_multicast_the_guest_did_not_ask_for_is_filtered(net: Net) -> None:
    with_keys(net, request_multicast_control="1")
    net.post(3)
    group = bytes.fromhex("01005e000005")
    net.send([slot(0, 0, EXTRA, 9, 0), bytes((2, 0)) + group])
    wanted, other = (
        frame(60, source=PEER_MAC, destination=mac) for mac in (group, group[:5] + b"\x06")
    )
    broadcast = frame(60, source=PEER_MAC, destination=b"\xff" * 6)
    net.deliver(Frame(wanted), Frame(other), Frame(broadcast))
    assert [answer[0] for answer in net.received()] == [0, 1]


def test_the_backlog_is_bounded_in_bytes(net: Net) -> None:
    count = 600
    for _ in range(count):
        net.world.bridge.transmit(net.sink, [Frame(inbound(1514))], 0)
    (queue,) = net.back.queues
    assert queue.rx is not None
    assert 524_288 <= queue.rx.backlog_bytes < 524_288 + 1514
    assert net.back.counters.rx_dropped == count - queue.rx.backlog_bytes // 1514


def test_what_waits_for_slots_expires_after_ten_seconds(net: Net) -> None:
    started = net.world.platform.loop.now
    net.deliver(Frame(inbound(60)))  # no timer but the expiry's: the clock jumps to it
    assert net.world.platform.loop.now - started == 10_000_000_000
    assert net.back.counters.rx_dropped == 1
    net.post(1)
    net.world.run()
    assert net.received() == []


def test_without_rx_notify_it_expires_after_30_ms(net: Net) -> None:
    with_keys(net, feature_rx_notify="0")
    started = net.world.platform.loop.now
    net.deliver(Frame(inbound(60)))
    assert net.world.platform.loop.now - started == 30_000_000


def test_slots_that_come_in_time_take_what_waits(net: Net) -> None:
    net.world.bridge.transmit(net.sink, [Frame(inbound(60))], net.world.platform.loop.now)
    net.world.platform.loop.advance(9_000_000_000)
    net.post(1)
    net.world.run()
    assert net.received() == [(0, 0, 0, 60)]


@pytest.mark.parametrize("start", [0xFFFFFFFE, 0x7FFFFFFF])
def test_rx_indices_wrap(net: Net, start: int) -> None:
    reconnect_at(net, start)
    net.post(6)
    net.deliver(*(Frame(inbound(60 + n)) for n in range(6)))
    assert [answer[3] for answer in net.received()] == [60 + n for n in range(6)]


def test_a_frame_to_a_disabled_vif_goes_nowhere(net: Net) -> None:
    net.world.vif.rx.req_prod = 300
    net.deliver(Frame(inbound(60)))
    assert net.back.disabled
    assert net.back.name not in net.world.bridge.ports
    assert net.world.vif.backend_state is XenbusState.CONNECTED
    net.deliver(Frame(inbound(60)))


@settings(max_examples=60, deadline=None)
@given(
    rounds=st.lists(
        st.tuples(st.integers(0, 8), st.lists(st.integers(14, 1518), max_size=6)), max_size=12
    )
)
def test_every_frame_is_delivered_once_and_in_order_or_dropped(
    rounds: list[tuple[int, list[int]]],
) -> None:
    with world_raw(seed=2) as world:
        net = Net(world)
        sent: list[int] = []
        got: list[int] = []
        posted = 0
        for slots, sizes in rounds:
            if slots:
                net.post(slots)
                posted += slots
            world.bridge.transmit(net.sink, [Frame(inbound(size)) for size in sizes], 0)
            world.platform.loop.advance(1)
            sent += sizes
            answers = net.received()
            got += [answer[3] for answer in answers]
        assert got == sent[: len(got)]
        assert len(got) == min(len(sent), posted)
        assert net.back.counters.rx_packets == len(got)
        assert world.vif.rx.ring.in_flight == posted - len(got)


def test_finish_is_what_blank_undoes() -> None:
    data = udp(200)
    assert finish_checksum(blank_checksum(Frame(data))).data == data


@settings(max_examples=80, deadline=None)
@given(
    raw=st.binary(max_size=8 * 24),
    producer=st.none() | st.integers(0, 0xFFFFFFFF),
    sizes=st.lists(st.integers(0, 9100), max_size=8),
    gso=st.booleans(),
)
def test_arbitrary_rx_requests_never_raise_and_answers_are_statuses(
    raw: bytes, producer: int | None, sizes: list[int], gso: bool
) -> None:
    with world_raw(seed=6) as world:
        net = Net(world)
        ring = world.vif.rx
        count = len(raw) // 8
        for number in range(count):
            ring.write_slot(number, raw[8 * number : 8 * number + 8])
        ring.req_prod = count if producer is None else producer
        world.vif.notify()
        world.run()
        net.deliver(
            *(Frame(inbound(size), gso_type=GSO_TCPV4 * gso, gso_size=1460 * gso) for size in sizes)
        )
        if producer is not None and producer > 256:
            wanted = [size for size in sizes if size >= 14 and (gso or size <= 1518)]
            assert net.back.disabled == bool(wanted)
        if not net.back.disabled:
            assert ring.rsp_prod <= ring.req_prod
        if not net.back.disabled and not gso:  # an extra has other fields
            for number in range(ring.rsp_prod % 256):
                _, offset, _, status = unpack("<HHHh", ring.slot(number))
                assert offset == 0
                assert status in (BAD_GNTREF, GENERAL_ERROR) or 0 <= status <= 4096
