"""A guest that posts too few slots: what waits for it, how long, and when the carrier goes."""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack

import pytest

from tests.back.ctrlfront import control
from tests.back.netfront import GUEST_MAC, PEER_MAC, Net, frame, slot
from tests.back.netscene import connect, scene
from xenpv.back.netrx import RxQueue
from xenpv.host.network import Frame

S = 1_000_000_000
MS = 1_000_000


@pytest.fixture
def net() -> Iterator[Net]:
    with scene() as made:
        connect(made)
        yield made


def inbound(size: int = 60, number: int = 0) -> Frame:
    data = frame(size, source=PEER_MAC, destination=GUEST_MAC)
    return Frame(data[:26] + number.to_bytes(4, "big") + data[30:])


def arrive(net: Net, *frames: Frame) -> None:
    """Frames come, and time stands still."""
    net.world.bridge.transmit(net.sink, list(frames), net.world.platform.loop.now)
    net.world.platform.loop.advance(0)


def advance(net: Net, ns: int) -> None:
    net.world.platform.loop.advance(ns)


def rx_of(net: Net, index: int = 0) -> RxQueue:
    found = net.back.queues[index].rx
    assert found is not None
    return found


def starve(net: Net, seconds: int) -> None:
    """A frame each second, and no slot."""
    for _ in range(seconds):
        arrive(net, inbound())
        advance(net, S)


def test_a_new_connection_has_its_carrier_before_a_slot_is_posted(net: Net) -> None:
    assert net.back.carrier
    assert not rx_of(net).stalled


def test_after_60_seconds_without_slots_the_carrier_goes(net: Net) -> None:
    starve(net, 60)
    assert net.back.carrier
    starve(net, 1)
    assert not net.back.carrier
    assert rx_of(net).stalled
    assert net.back.name not in net.world.bridge.ports


def test_without_a_carrier_nothing_more_comes_to_wait(net: Net) -> None:
    starve(net, 61)
    waiting = rx_of(net).backlog_bytes
    assert waiting == 9 * 60
    starve(net, 5)
    assert rx_of(net).backlog_bytes < waiting


def test_slots_bring_the_carrier_back(net: Net) -> None:
    starve(net, 61)
    net.post(64)
    net.world.run()
    assert net.back.carrier
    assert net.back.name in net.world.bridge.ports
    net.received()
    arrive(net, inbound())
    assert len(net.received()) == 1


def test_it_is_ready_again_once_nothing_waits(net: Net) -> None:
    starve(net, 61)
    advance(net, 9 * S)  # the last frame came one second before
    assert net.back.carrier
    starve(net, 60)
    assert net.back.carrier
    starve(net, 1)
    assert not net.back.carrier


def test_an_idle_interface_is_never_stalled(net: Net) -> None:
    advance(net, 3600 * S)
    assert net.back.carrier


def test_a_guest_that_takes_one_frame_a_minute_is_not_stalled(net: Net) -> None:
    for _ in range(4):
        for _ in range(59):
            starve(net, 1)
            assert net.back.carrier
        net.post(1)
        advance(net, 0)
        assert len(net.received()) == 1


def test_without_rx_notify_nothing_stalls() -> None:
    with scene() as net:
        connect(net, feature_rx_notify="0")
        starve(net, 120)
        assert net.back.carrier
        assert rx_of(net).backlog_bytes == 0


@pytest.mark.parametrize(("notify", "expiry"), [("1", 10 * S), ("0", 30 * MS)])
def test_a_frame_waits_so_long_and_no_longer(notify: str, expiry: int) -> None:
    with scene() as net:
        connect(net, feature_rx_notify=notify)
        arrive(net, inbound())
        advance(net, expiry - 1)
        assert rx_of(net).backlog_bytes == 60
        advance(net, 1)
        assert rx_of(net).backlog_bytes == 0
        assert net.back.counters.rx_dropped == 1


def test_the_first_stalled_queue_takes_the_carrier_and_the_last_brings_it_back() -> None:
    with control(queues=2) as ctrl:
        net = ctrl.net
        back = net.back
        # Both rings run dry.
        fill = [inbound(60, number) for number in range(400)]
        by_queue: dict[int, list[Frame]] = {0: [], 1: []}
        for one in fill:
            by_queue[back.hash.queue(one.data, 2)].append(one)
        assert min(map(len, by_queue.values())) > 64
        for index in (0, 1):
            arrive(net, *by_queue[index][:64])
        for _ in range(60):
            arrive(net, by_queue[0][0])
            advance(net, S)
        assert back.carrier
        advance(net, 1)
        arrive(net, by_queue[0][0], by_queue[1][0])
        assert not back.carrier
        first, last = rx_of(net), rx_of(net, 1)
        assert (first.stalled, last.stalled) == (True, True)
        guest = net.world.guest
        slots = [pack("<HHI", at, 0, guest.grant(guest.page())) for at in range(16)]
        ctrl.rx[0].take()
        ctrl.rx[0].push(b"".join(slots), 16)
        advance(net, S)
        assert (first.stalled, last.stalled) == (False, True)
        assert not back.carrier
        advance(net, 10 * S)
        assert (first.stalled, last.stalled) == (False, False)
        assert back.carrier


# XSA-392: a guest that posts a slot now and then, too few for what waits.


def test_xsa_392_the_head_of_the_backlog_expires_though_slots_come(net: Net) -> None:
    net.world.guest.xs.write(f"{net.world.vif.backend_path}/mtu", "9000")
    with scene() as wide:
        wide.world.guest.xs.write(f"{wide.world.vif.backend_path}/mtu", "9000")
        connect(wide)
        arrive(wide, inbound(9000))
        for _ in range(2):  # of the three that it needs
            wide.post(1)
            advance(wide, 4 * S)
        assert rx_of(wide).backlog_bytes == 9000
        advance(wide, 2 * S)
        assert rx_of(wide).backlog_bytes == 0
        assert wide.received() == []


def test_xsa_392_slots_that_are_too_few_do_not_keep_the_carrier() -> None:
    with scene() as net:
        net.world.guest.xs.write(f"{net.world.vif.backend_path}/mtu", "9000")
        connect(net)
        net.post(2)
        for _ in range(61):
            arrive(net, inbound(9000))
            advance(net, S)
        assert not net.back.carrier


def test_xsa_392_the_backlog_is_bounded_and_the_queue_stops() -> None:
    with scene() as net:
        connect(net)
        rx = rx_of(net)
        arrive(net, *[inbound(1514)] * 400)
        assert rx.backlog_bytes == 347 * 1514  # the first sum of 524,288 or more
        assert rx.stopped
        assert net.back.counters.rx_dropped == 400 - 347
        arrive(net, inbound(60))
        assert net.back.counters.rx_dropped == 400 - 347 + 1
        net.post(2)
        advance(net, 0)
        assert not rx.stopped
        arrive(net, inbound(60))
        assert net.back.counters.rx_dropped == 400 - 347 + 1


def test_xsa_392_a_storm_of_frames_holds_no_more_than_that() -> None:
    with scene() as net:
        connect(net)
        for _ in range(100):
            arrive(net, *[inbound(1514)] * 300)
        assert rx_of(net).backlog_bytes < 524_288 + 1514


def test_what_waits_when_the_interface_closes_is_dropped(net: Net) -> None:
    back = net.back
    arrive(net, *[inbound()] * 5)
    net.world.vif.state = 6
    net.world.run()
    assert back.counters.rx_dropped == 5
    assert net.world.platform.dom0.timers == []


def test_the_guest_can_still_send_after_it_recovered(net: Net) -> None:
    starve(net, 61)
    net.post(64)
    net.world.run()
    data = frame(60)
    net.send([slot(net.page(data), 0, 0, 1, 60)])
    assert net.sink.data == [data]


@pytest.mark.parametrize("profile", ["qemu", "mirage"])
def test_others_wait_for_ever(profile: str) -> None:
    with scene(profile) as net:
        connect(net)
        arrive(net, inbound())
        advance(net, 3600 * S)
        net.post(1)
        net.world.run()
        assert len(net.received()) == 1
        assert net.back.carrier
