"""SUSPEND: what runs after a resume, in which order, and when nothing does (xenbus spec 2.4)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.world import World
from xenpv.bus.interface import InterfaceVersion, query_interface
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.suspend import SuspendInterface, SuspendPhase
from xenpv.errors import LocalProtocolError
from xenpv.xen.loop import SeededChooser

EARLY, LATE = SuspendPhase


@pytest.fixture
def suspend(world: World) -> SuspendInterface:
    made = SuspendInterface(world.guest)
    made.acquire()
    return made


def resume(world: World, result: int = 0) -> None:
    """As a toolstack: the call of vcpu 0 returns `result`, then resumedomain."""
    world.loop.run()
    ctl = world.dom0.domctl
    if result:
        ctl.setvcpucontext(1, 0, rax=result)
    ctl.resumedomain(1)
    world.loop.run()


def test_the_values_are_the_drivers() -> None:
    assert (EARLY, LATE) == (1, 2)
    assert SuspendInterface.GUID == "0554F2AF-B510-4C71-AC03-1C503E394238"
    assert list(SuspendInterface.OPERATIONS) == [1]


def test_early_then_late_each_in_the_order_of_registration(
    world: World, suspend: SuspendInterface
) -> None:
    ran: list[str] = []
    suspend.register(LATE, lambda: ran.append("late 1"))
    suspend.register(EARLY, lambda: ran.append("early 1"))
    suspend.register(LATE, lambda: ran.append("late 2"))
    suspend.register(EARLY, lambda: ran.append("early 2"))
    suspend.on_every_cpu = lambda vcpu: ran.append(f"cpu {vcpu}")
    suspend.unplug = lambda: ran.append("unplug")
    suspend.trigger()
    assert ran == []
    assert world.guest.is_shutdown
    assert world.guest.shutdown_code == 2
    resume(world)
    assert ran == ["cpu 0", "unplug", "early 1", "early 2", "late 1", "late 2"]
    assert suspend.get_count() == 1


RESULTS = [
    pytest.param(0, 1, id="a new domain"),
    pytest.param(1, 0, id="cancelled"),
    pytest.param(-1, 0, id="failed"),
    pytest.param((1 << 64) - 38, 0, id="failed, in a register"),
]


@pytest.mark.parametrize(("result", "count"), RESULTS)
def test_only_result_0_counts_and_calls_back(
    world: World, suspend: SuspendInterface, result: int, count: int
) -> None:
    ran: list[str] = []
    suspend.register(EARLY, lambda: ran.append("early"))
    suspend.register(LATE, lambda: ran.append("late"))
    suspend.on_every_cpu = lambda vcpu: ran.append(f"cpu {vcpu}")
    suspend.unplug = lambda: ran.append("unplug")
    woken: list[int] = []
    suspend.trigger(world.guest.task("waiter", lambda: woken.append(len(ran))))
    resume(world, result)
    assert ran == ["cpu 0", "unplug", "early", "late"] * count
    assert woken == [4 * count]
    assert suspend.get_count() == count
    suspend.trigger()
    resume(world)
    assert suspend.get_count() == count + 1


def test_the_count_is_one_for_each_resume_however_many_cpus(world: World) -> None:
    guest = world.hypervisor.create_domain(vcpus=4, max_pages=16)
    guest.unpause()
    guest.start_vcpus()
    suspend = SuspendInterface(guest)
    suspend.acquire()
    cpus: list[int] = []
    suspend.on_every_cpu = cpus.append
    for count in (1, 2):
        suspend.trigger()
        world.dom0.domctl.resumedomain(guest.domid)
        world.loop.run()
        assert suspend.get_count() == count
    assert cpus == [0, 1, 2, 3] * 2


@pytest.mark.parametrize("seed", range(8))
def test_nothing_else_of_the_guest_runs_before_the_last_callback(
    world: World, suspend: SuspendInterface, seed: int
) -> None:
    ran: list[str] = []
    world.loop.chooser = SeededChooser(seed)
    others = [world.guest.task(f"{at}", lambda: ran.append("other")) for at in range(4)]
    alarm = world.guest.timer(others[0])
    alarm.arm(5)
    suspend.register(EARLY, lambda: ran.append("early"))
    suspend.register(LATE, lambda: [task.wake() for task in others])
    suspend.register(LATE, lambda: ran.append("late"))
    for task in others[2:]:
        task.wake()
    suspend.trigger()
    world.loop.run()
    assert ran == []
    resume(world)
    assert ran[:2] == ["early", "late"]
    assert ran[2:] in (["other"] * 4, ["other"] * 5)


def test_a_callback_may_deregister_itself_and_others(
    world: World, suspend: SuspendInterface
) -> None:
    ran: list[str] = []

    def first() -> None:
        ran.append("first")
        suspend.deregister(handles[0])
        suspend.deregister(handles[1])
        suspend.register(EARLY, lambda: ran.append("new"))

    handles = [
        suspend.register(EARLY, first),
        suspend.register(EARLY, lambda: ran.append("second")),
        suspend.register(EARLY, lambda: ran.append("third")),
    ]
    for _ in range(2):
        suspend.trigger()
        resume(world)
    assert ran == ["first", "third", "third", "new"]


def test_a_callback_that_raises_leaves_the_guest_running(
    world: World, suspend: SuspendInterface
) -> None:
    ran: list[str] = []
    handle = suspend.register(EARLY, lambda: 1 // 0)
    task = world.guest.task("other", lambda: ran.append("other"))
    suspend.trigger()
    with pytest.raises(ZeroDivisionError):
        resume(world)
    suspend.deregister(handle)
    task.wake()
    world.loop.run()
    assert ran == ["other"]
    suspend.trigger()
    resume(world)
    assert suspend.get_count() == 2


def test_a_latched_crash_is_not_a_suspend(world: World, suspend: SuspendInterface) -> None:
    world.guest.latch_shutdown_code(3)
    suspend.trigger()
    world.loop.run()
    assert world.guest.shutdown_code == 3


def wrong_phase(suspend: SuspendInterface) -> None:
    suspend.register(3, lambda: None)


def deregister_twice(suspend: SuspendInterface) -> None:
    handle = suspend.register(EARLY, lambda: None, "XENVIF")
    suspend.deregister(handle)
    suspend.deregister(handle)


def trigger_twice(suspend: SuspendInterface) -> None:
    suspend.trigger()
    suspend.trigger()


def left(suspend: SuspendInterface) -> None:
    suspend.register(EARLY, lambda: None, "XENVIF")
    suspend.register(LATE, lambda: None)
    suspend.release()


def released_twice(suspend: SuspendInterface) -> None:
    suspend.release()
    suspend.release()


MISUSE: list[tuple[Callable[[SuspendInterface], None], str]] = [
    (wrong_phase, "SUSPEND has no phase 3"),
    (deregister_twice, "SUSPEND: the callback of XENVIF is not registered"),
    (trigger_twice, "domain 1 is suspended already"),
    (left, "SUSPEND is released with the EARLY callback of XENVIF, the LATE callback of nobody"),
    (released_twice, "SUSPEND is released more often than acquired"),
]


@pytest.mark.parametrize(("misuse", "said"), MISUSE, ids=lambda row: getattr(row, "__name__", ""))
def test_misuse_is_the_callers_fault(
    suspend: SuspendInterface, misuse: Callable[[SuspendInterface], None], said: str
) -> None:
    with pytest.raises(LocalProtocolError, match=f"^{said}$"):
        misuse(suspend)


def windows(suspend: SuspendInterface) -> InterfaceVersion:
    found = query_interface([suspend], SuspendInterface.GUID, 1)
    found.acquire()
    return found


def test_the_drivers_see_version_1_only(suspend: SuspendInterface) -> None:
    for version in (0, 2):
        with pytest.raises(NtStatusError) as caught:
            query_interface([suspend], SuspendInterface.GUID, version)
        assert caught.value.status is NTSTATUS.NOT_SUPPORTED
    assert windows(suspend).size == 32 + 8 * 6


def test_the_last_release_resets_the_count(world: World, suspend: SuspendInterface) -> None:
    view = windows(suspend)
    handle = view.register(EARLY, lambda: None)
    view.trigger()
    resume(world)
    assert view.get_count() == 1
    view.deregister(handle)
    view.release()
    with pytest.raises(LocalProtocolError, match="^SUSPEND get_count: it is not acquired$"):
        view.get_count()
    assert suspend.count == 1
    tasks = len(world.guest.tasks)
    suspend.release()
    assert len(world.guest.tasks) == tasks - 1
    again = windows(suspend)
    assert again.get_count() == 0


def test_the_mutex_wakes_who_did_not_get_it(world: World, suspend: SuspendInterface) -> None:
    ran: list[str] = []
    balloon = world.guest.task("balloon", lambda: ran.append("balloon"))
    mutex = suspend.mutex
    assert mutex.try_acquire("suspend", balloon)
    assert not mutex.try_acquire("balloon", balloon)
    assert not mutex.try_acquire("balloon", balloon)
    world.loop.run()
    assert ran == []
    with pytest.raises(LocalProtocolError, match="^balloon releases what suspend holds$"):
        mutex.release("balloon")
    mutex.release("suspend")
    world.loop.run()
    assert ran == ["balloon"]
    with pytest.raises(LocalProtocolError, match="^suspend releases what nobody holds$"):
        mutex.release("suspend")
    assert mutex.try_acquire("balloon", balloon)
