"""The watchdog: what the start option asks for, who pats, what one stalled vcpu leads to."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import pytest

from tests.world import World, make
from xenpv.abi.evtchn import VIRQ
from xenpv.bus.debug import DebugInterface
from xenpv.bus.evtchn import EvtchnInterface
from xenpv.bus.log import Log
from xenpv.bus.registry import Registry
from xenpv.bus.startoptions import StartOptions
from xenpv.bus.virq import DebugVirq
from xenpv.bus.watchdog import Watchdog, timeout
from xenpv.errors import HypercallError
from xenpv.xen.domain import Domain
from xenpv.xen.loop import NS_PER_S

WATCHDOG = 4

# SystemStartOptions, seconds
OPTIONS = [
    ("no value", None, 0),
    ("nothing", "", 0),
    ("other options", "NOEXECUTE=OPTIN XEN:BALLOON=OFF", 0),
    ("0 is off", "XEN:WATCHDOG=0", 0),
    ("1 is 10", "XEN:WATCHDOG=1", 10),
    ("9 is 10", "XEN:WATCHDOG=9", 10),
    ("10", "XEN:WATCHDOG=10", 10),
    ("11", "XEN:WATCHDOG=11", 11),
    ("among others", "FASTDETECT XEN:WATCHDOG=30 NOEXECUTE=OPTIN", 30),
    ("the first counts", "XEN:WATCHDOG=20 XEN:WATCHDOG=30", 20),
    ("hexadecimal", "XEN:WATCHDOG=0x20", 32),
    ("octal", "XEN:WATCHDOG=020", 16),
    ("up to what is no digit", "XEN:WATCHDOG=15s", 15),
    ("no number", "XEN:WATCHDOG=soon", 0),
    ("case counts", "xen:watchdog=30", 0),
    ("without a value", "XEN:WATCHDOG=", 0),
    ("negative, as strtoul has it", "XEN:WATCHDOG=-30", 0xFFFFFFE2),
    ("too large for a u32", "XEN:WATCHDOG=99999999999", 0xFFFFFFFF),
]


@pytest.mark.parametrize(
    ("options", "seconds"), [row[1:] for row in OPTIONS], ids=[row[0] for row in OPTIONS]
)
def test_the_start_option(options: str | None, seconds: int) -> None:
    values = {} if options is None else {"Control": {"SystemStartOptions": options}}
    assert timeout(StartOptions.of(Registry(values)).watchdog_seconds) == seconds


@pytest.fixture
def world() -> Iterator[World]:
    made = make()
    yield made
    made.hypervisor.close()


def guest_of(world: World, vcpus: int) -> tuple[Domain, EvtchnInterface]:
    guest = world.hypervisor.create_domain(vcpus=vcpus, max_pages=512)
    guest.start_vcpus()
    guest.populate(256)
    guest.unpause()
    return guest, EvtchnInterface(guest, vectors=True)


def started(world: World, vcpus: int, timeout_s: int) -> tuple[Domain, Watchdog]:
    guest, evtchn = guest_of(world, vcpus)
    watchdog = Watchdog(guest, evtchn)
    watchdog.start(timeout_s)
    return guest, watchdog


def test_a_processor_that_takes_no_upcalls_is_not_waited_for(world: World) -> None:
    guest = world.hypervisor.create_domain(vcpus=2, max_pages=512)
    guest.start_vcpus()
    guest.populate(256)
    guest.unpause()
    # Without vectors the line is vcpu 0's alone.
    watchdog = Watchdog(guest, EvtchnInterface(guest, via=24))
    watchdog.start(10)
    assert [timer.vcpu for timer in watchdog.timers] == [0]
    world.loop.advance(60 * NS_PER_S)
    assert not guest.is_shutdown


@pytest.mark.parametrize("vcpus", [1, 2, 4])
def test_processors_that_tick_keep_the_guest_alive(world: World, vcpus: int) -> None:
    guest, watchdog = started(world, vcpus, 10)
    world.loop.advance(100 * NS_PER_S)
    assert not guest.is_shutdown
    # A tick every 5 s on each, and one pat a round, the first of them at 5 s or at once.
    assert [timer.count for timer in watchdog.timers] == [watchdog.timers[0].count] * vcpus
    assert 19 <= watchdog.timers[0].count <= 21
    assert watchdog.pats == watchdog.timers[0].count


@pytest.mark.parametrize(("vcpus", "stalled"), [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
def test_one_stalled_processor_ends_the_guest_with_reason_4(
    world: World, vcpus: int, stalled: int
) -> None:
    guest, watchdog = started(world, vcpus, 10)
    world.loop.advance(21 * NS_PER_S)
    assert not guest.is_shutdown
    pats = watchdog.pats
    guest.upcalls[stalled].hold()  # it spins with interrupts off
    world.loop.advance(9 * NS_PER_S)
    assert watchdog.pats <= pats + 1
    world.loop.advance(10 * NS_PER_S)
    assert (guest.is_shutdown, guest.shutdown_code) == (True, WATCHDOG)


def test_a_stall_shorter_than_the_time_is_survived(world: World) -> None:
    guest, _watchdog = started(world, 2, 20)
    world.loop.advance(41 * NS_PER_S)
    guest.upcalls[1].hold()
    world.loop.advance(8 * NS_PER_S)
    guest.upcalls[1].release()
    world.loop.advance(60 * NS_PER_S)
    assert not guest.is_shutdown


def test_with_one_processor_a_stall_ends_it_too(world: World) -> None:
    guest, _ = started(world, 1, 10)
    guest.upcalls[0].hold()
    world.loop.advance(11 * NS_PER_S)
    assert guest.shutdown_code == WATCHDOG


# Counts before a tick of vcpu 0, whether it pats: below every other's
PATS = [
    ((0, 0), False), ((0, 1), True), ((1, 0), False), ((5, 6), True),
    ((0, 0, 0), False), ((0, 1, 0), False), ((0, 0, 1), False), ((0, 1, 1), True), ((1, 2, 1), False),
    ((0,), True), ((7,), True),
]  # fmt: skip


@pytest.mark.parametrize(("counts", "pats"), PATS, ids=[str(row[0]) for row in PATS])
def test_a_tick_pats_if_its_count_was_below_all_others(
    world: World, counts: tuple[int, ...], pats: bool
) -> None:
    _guest, watchdog = started(world, len(counts), 10)
    world.loop.run()
    for timer, count in zip(watchdog.timers, counts, strict=True):
        timer.count = count
    before = watchdog.pats
    watchdog._tick(0)
    assert watchdog.pats - before == pats
    assert [timer.count for timer in watchdog.timers] == [counts[0] + 1, *counts[1:]]


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_one_pat_a_round_in_whatever_order_they_tick(world: World, order: tuple[int, ...]) -> None:
    _guest, watchdog = started(world, 3, 10)
    world.loop.run()
    before = watchdog.pats
    for _ in range(4):
        for vcpu in order:
            watchdog._tick(vcpu)
    assert watchdog.pats == before + 4


def test_off_opens_nothing(world: World) -> None:
    guest, watchdog = started(world, 2, 0)
    assert (watchdog.timers, watchdog.id, guest.sched.watchdogs) == ([], 0, [])
    watchdog.stop()


def test_at_d3_timers_and_watchdog_are_gone(world: World) -> None:
    guest, watchdog = started(world, 2, 10)
    assert guest.evtchn.virq_port(VIRQ.TIMER, 1)
    assert watchdog.id == 1
    watchdog.stop()
    assert (watchdog.timers, watchdog.id) == ([], 0)
    world.loop.run()  # ports are closed by a DPC
    assert [guest.evtchn.virq_port(VIRQ.TIMER, vcpu) for vcpu in range(2)] == [0, 0]
    assert [vcpu.period_ns for vcpu in guest.vcpu] == [0, 0]
    assert not any(one.in_use for one in guest.sched.watchdogs)
    world.loop.advance(100 * NS_PER_S)
    assert not guest.is_shutdown
    watchdog.start(10)
    assert watchdog.id == 1


def test_a_timer_that_cannot_be_opened_is_left_out(world: World) -> None:
    guest, evtchn = guest_of(world, 3)
    guest.evtchn.bind_virq(VIRQ.TIMER, 1)  # the operating system's own
    watchdog = Watchdog(guest, evtchn)
    watchdog.start(10)
    assert [timer.vcpu for timer in watchdog.timers] == [0, 2]
    world.loop.advance(60 * NS_PER_S)
    assert not guest.is_shutdown


def test_without_any_timer_no_watchdog_is_set(world: World) -> None:
    guest, evtchn = guest_of(world, 1)
    guest.evtchn.bind_virq(VIRQ.TIMER, 0)
    watchdog = Watchdog(guest, evtchn)
    watchdog.start(10)
    assert (watchdog.timers, watchdog.id) == ([], 0)


def test_when_both_of_xen_s_are_taken_the_timers_go_again(world: World) -> None:
    guest, evtchn = guest_of(world, 1)
    for _ in range(2):
        guest.sched.watchdog(0, 1000)
    watchdog = Watchdog(guest, evtchn)
    watchdog.start(10)
    assert (watchdog.timers, watchdog.id, evtchn.channels()) == ([], 0, [])


def test_a_watchdog_of_another_life_is_nothing_to_stop(world: World) -> None:
    guest, watchdog = started(world, 1, 10)
    guest.sched.watchdog(watchdog.id, 0)
    watchdog.stop()
    assert watchdog.id == 0


def test_run_ends_although_the_timers_tick_for_ever(world: World) -> None:
    started(world, 2, 10)
    before = world.loop.now
    world.loop.run()
    assert world.loop.now == before


# VIRQ_DEBUG


def test_virq_debug_triggers_every_callback_and_is_counted(world: World) -> None:
    guest, evtchn = guest_of(world, 2)
    debug = DebugInterface(Log(guest, Registry()))
    debug.register("a", lambda crashing: debug.printf("x"))
    virq = DebugVirq(evtchn, debug)
    virq.start()
    for count in (1, 2):
        world.dom0.domctl.debug_keys("q")
        world.loop.run()
        assert virq.virq is not None
        assert (virq.virq.count, debug.triggers, debug.last) == (count, count, ["a: x"])
    virq.stop()
    world.loop.run()  # ports are closed by a DPC
    assert guest.evtchn.virq_port(VIRQ.DEBUG, 0) == 0
    world.dom0.domctl.debug_keys("q")
    world.loop.run()
    assert debug.triggers == 2
    virq.stop()


def test_virq_debug_that_is_taken_fails_the_start(world: World) -> None:
    guest, evtchn = guest_of(world, 1)
    guest.evtchn.bind_virq(VIRQ.DEBUG, 0)
    virq = DebugVirq(evtchn, DebugInterface(Log(guest, Registry())))
    with pytest.raises(HypercallError, match="EEXIST"):
        virq.start()
    assert virq.virq is None
