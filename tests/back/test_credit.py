"""The rate of a vif: what it lets through, when, and that it never drops."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.back.netfront import ERROR, OKAY, Net, frame, reconnect_at, slot
from xenpv.abi.xenbus import XenbusState
from xenpv.back.credit import Credit, Rate
from xenpv.host.network import Direction, Frame
from xenpv.testing.raw_world import world_raw
from xenpv.xen.loop import Loop, Task, Timer

MS = 1_000_000


@pytest.fixture
def net() -> Iterator[Net]:
    with world_raw(seed=3) as world:
        yield Net(world)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        (None, None),
        ("", None),
        ("1000", None),
        ("1000,", None),
        (",1000", None),
        ("1000, 50000", None),
        ("1000,50000x", None),
        ("-1,50000", None),
        ("0x10,50000", None),
        ("1000,50000,1", None),
        ("1000,50000", Rate(1000, 50 * MS)),
        ("0,50000", Rate(0, 50 * MS)),
        ("01000,0050999", Rate(1000, 50 * MS)),
        ("1250000,999", Rate(1_250_000, 0)),
        ("18446744073709551615,1000", Rate((1 << 64) - 1, MS)),
        ("18446744073709551616,1000", Rate(0, MS)),
    ],
)
def test_a_rate_is_two_decimal_numbers_in_whole_milliseconds(
    text: str | None, rate: object
) -> None:
    assert Rate.parse(text) == rate


def a_credit(loop: Loop, rate: Rate) -> Credit:
    fired: list[int] = []
    task = Task(loop, 0, "credit", lambda: fired.append(loop.now))
    return Credit(rate, Timer(loop, task))


# What is spent at which ms of virtual time; whether it passes; what remains; when the timer is.
STEPS = [
    (0, 400, True, 600, None),
    (1, 600, True, 0, None),
    (2, 1, False, 0, 50),  # the window from 0 on ends at 50
    (3, 1, False, 0, 50),  # while the timer runs nothing is looked at
]


def test_credit_is_spent_until_it_is_gone_and_a_timer_stands_at_the_next_window() -> None:
    loop = Loop()
    credit = a_credit(loop, Rate(1000, 50 * MS))
    for at, size, passes, remaining, timer in STEPS:
        loop.advance(at * MS - loop.now)
        assert credit.spend(size) is passes
        assert credit.remaining == remaining
        assert credit.is_waiting is (timer is not None)
        if timer is not None:
            assert credit._timer.deadline == timer * MS


def test_a_packet_within_the_credit_passes_while_another_waits() -> None:
    credit = a_credit(Loop(), Rate(1000, 50 * MS))
    assert not credit.spend(1001)
    assert credit.spend(1000)


def test_a_window_that_is_over_fills_up_at_once() -> None:
    loop = Loop()
    credit = a_credit(loop, Rate(1000, 50 * MS))
    assert credit.spend(900)
    loop.advance(50 * MS)
    assert credit.spend(1100)
    assert (credit.remaining, credit.is_waiting) == (0, False)


def test_credit_is_saved_up_to_a_burst() -> None:
    credit = a_credit(Loop(), Rate(100_000, 50 * MS))
    for _ in range(3):
        credit.refill()
    assert credit.remaining == 131_072
    credit = a_credit(Loop(), Rate(200_000, 50 * MS))
    credit.refill()
    assert credit.remaining == 200_000


def test_a_new_rate_ends_a_wait_and_cuts_what_was_saved() -> None:
    loop = Loop()
    credit = a_credit(loop, Rate(1000, 50 * MS))
    assert not credit.spend(2000)
    credit.change(Rate(5000, 50 * MS))
    assert credit._timer.deadline == 0
    saved = a_credit(loop, Rate(9000, 50 * MS))
    saved.change(Rate(400, 50 * MS))
    assert saved.remaining == 400


def limit(net: Net, rate: str) -> None:
    net.world.guest.xs.write(f"{net.world.vif.backend_path}/rate", rate)
    net.world.run()


class Watch:
    """On the bridge: when each frame of a guest came, in virtual ms."""

    def __init__(self) -> None:
        self.times: list[int] = []

    def capture(self, _port: str, direction: Direction, _frame: Frame, now_ns: int) -> None:
        if direction is Direction.IN:
            self.times.append(now_ns // MS)


def arrivals(net: Net, sizes: list[int]) -> list[int]:
    """After how many ms frames of these sizes arrive that are sent together."""
    start, watch = net.world.platform.loop.now // MS, Watch()
    net.world.bridge.taps.append(watch)
    slots = [slot(net.page(frame(size)), 0, 0, n, size) for n, size in enumerate(sizes)]
    answers = net.send(slots)
    assert [number for number, _ in answers] == list(range(len(sizes)))
    assert net.world.vif.tx.ring.in_flight == 0
    return [at - start for at in watch.times]


def test_packets_wait_for_their_window_and_none_is_dropped(net: Net) -> None:
    limit(net, "1000,50000")
    assert arrivals(net, [600, 400, 400, 600, 400]) == [0, 0, 50, 50, 100]
    assert net.back.counters.tx_dropped == 0


def test_a_packet_larger_than_the_rate_gets_through_when_enough_is_saved(net: Net) -> None:
    limit(net, "500,10000")
    assert arrivals(net, [1400]) == [20]


def test_without_a_window_credit_comes_at_once(net: Net) -> None:
    limit(net, "100,999")
    assert arrivals(net, [1400, 1400]) == [0, 0]


def test_what_waits_stays_on_the_ring_and_is_the_guests_to_change(net: Net) -> None:
    limit(net, "100,50000")
    ring = net.world.vif.tx
    good = frame(200)
    ring.write_slot(0, slot(net.page(good), 0, 0, 1, 60))
    ring.write_slot(1, slot(net.page(good), 0, 0, 2, 200))
    ring.req_prod = 2
    net.world.vif.notify()
    loop = net.world.platform.loop
    loop.advance(0)
    assert (ring.rsp_prod, len(net.sink.frames)) == (1, 1)
    ring.write_slot(1, slot(net.page(frame(99)), 0, 0, 2, 99))
    net.world.run()
    assert ring.rsp_prod == 2
    assert net.sink.data[1:] == [frame(99)]


def test_an_event_of_the_guest_does_not_open_the_window(net: Net) -> None:
    limit(net, "100,50000")
    ring = net.world.vif.tx
    ring.write_slot(0, slot(net.page(frame(200)), 0, 0, 1, 200))
    ring.req_prod = 1
    loop = net.world.platform.loop
    start = loop.now
    while not net.sink.frames:
        assert loop.now - start <= 100 * MS
        net.world.vif.notify()
        loop.advance(MS)
    assert loop.now - start >= 50 * MS


def test_a_rate_of_nothing_stops_the_vif_until_there_is_another(net: Net) -> None:
    limit(net, "0,50000")
    assert net.send([slot(net.page(frame(60)), 0, 0, 1, 60)]) == []
    limit(net, "100000,50000")
    assert net.sink.data == [frame(60)]


def test_a_malformed_rate_lifts_the_limit(net: Net) -> None:
    limit(net, "0,50000")
    assert net.send([slot(net.page(frame(60)), 0, 0, 1, 60)]) == []
    limit(net, "fast")
    assert net.sink.data == [frame(60)]


def test_a_rate_in_the_store_before_the_connection_counts_for_it() -> None:
    with world_raw(seed=1) as world:
        net = Net(world)
        limit(net, "300,50000")
        reconnect_at(net, 0xFFFFFFFE)
        assert arrivals(net, [200, 200, 200, 60]) == [0, 50, 50, 100]


def test_an_error_is_paid_for_too(net: Net) -> None:
    limit(net, "100,50000")
    short = slot(0, 0, 0, 1, 13)
    good = slot(net.page(frame(90)), 0, 0, 2, 90)
    loop = net.world.platform.loop
    start = loop.now
    assert net.send([short, good]) == [(1, ERROR), (2, OKAY)]
    assert loop.now - start == 50 * MS


def test_a_closed_vif_leaves_no_timer(net: Net) -> None:
    limit(net, "100,50000")
    ring = net.world.vif.tx
    ring.write_slot(0, slot(net.page(frame(200)), 0, 0, 1, 200))
    ring.req_prod = 1
    net.world.vif.notify()
    loop = net.world.platform.loop
    loop.advance(0)
    net.world.vif.state = XenbusState.CLOSED
    start = loop.now
    net.world.run()
    assert loop.now == start
