from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpv.errors import Livelock, LocalProtocolError
from xenpv.xen.loop import Loop, ScheduleChooser, SeededChooser, Task, Timer
from xenpv.xen.trace import Event


def tasks(loop: Loop, names: str) -> tuple[list[str], dict[str, Task]]:
    ran: list[str] = []

    def runner(name: str) -> Task:
        return Task(loop, 0, name, lambda: ran.append(name))

    return ran, {name: runner(name) for name in names}


def test_a_task_woken_often_runs_once() -> None:
    loop = Loop()
    ran, made = tasks(loop, "a")
    for _ in range(3):
        made["a"].wake()
    assert loop.run() == 1
    assert ran == ["a"]


def test_one_seed_gives_one_order_and_seeds_differ() -> None:
    def order(seed: int) -> str:
        loop = Loop(seed=seed)
        ran, made = tasks(loop, "abcdefgh")
        for task in made.values():
            task.wake()
        loop.run()
        return "".join(ran)

    assert order(3) == order(3)
    assert len({order(seed) for seed in range(20)}) > 15


@given(st.binary(max_size=40))
def test_a_schedule_picks_and_then_takes_the_first(schedule: bytes) -> None:
    loop = Loop(chooser=ScheduleChooser(schedule))
    ran, made = tasks(loop, "abcd")
    for task in made.values():
        task.wake()
    loop.run()
    left = list("abcd")
    expected = []
    for byte in (*schedule, 0, 0, 0, 0):
        if left:
            expected.append(left.pop(byte % len(left) if len(left) > 1 else 0))
    assert ran == expected


def test_a_held_task_is_due_when_released() -> None:
    loop = Loop()
    ran, made = tasks(loop, "ab")
    made["a"].wake()
    made["a"].hold()
    made["b"].hold()
    made["b"].wake()
    assert loop.run() == 0
    made["a"].release()
    made["b"].release()
    loop.run()
    assert sorted(ran) == ["a", "b"]


@pytest.mark.parametrize("steps", ["wh", "hw", "whwr", "hhwr", "hwhr"])
def test_a_held_task_waits_for_as_many_releases_as_holds(steps: str) -> None:
    loop = Loop()
    ran, made = tasks(loop, "a")
    task = made["a"]
    actions = {"w": task.wake, "h": task.hold, "r": task.release}
    held = 0
    for step in steps:
        actions[step]()
        held += {"w": 0, "h": 1, "r": -1}[step]
        assert task.queued == (not held)
    assert loop.run() == (not held)
    for _ in range(held):
        assert not task.queued
        task.release()
    loop.run()
    assert ran == ["a"]
    assert (task.idle, task.queued, task.due) == (True, False, False)


def test_a_task_that_holds_itself_runs_again_when_released() -> None:
    loop = Loop()
    ran = 0

    def hold() -> None:
        nonlocal ran
        ran += 1
        task.hold()
        task.wake()

    task = Task(loop, 0, "self", hold)
    task.wake()
    assert loop.run() == 1
    task.release()
    assert loop.run() == 1
    assert ran == 2


def test_a_retired_task_never_runs() -> None:
    loop = Loop()
    ran, made = tasks(loop, "ab")
    made["a"].wake()
    made["a"].retire()
    made["b"].retire()
    for task in made.values():
        task.wake()
        task.release()
    assert loop.run() == 0
    assert ran == []


@pytest.mark.parametrize("count", [1, 2, 8, 9, 300])
def test_the_seeded_pick_is_that_of_its_chooser(count: int) -> None:
    """The loop spells it out: the same tasks and the same records as by `choose`."""

    class Called(SeededChooser):
        pass

    trails = []
    for chooser in (SeededChooser(5), Called(5)):
        loop = Loop(chooser=chooser)
        ran: list[int] = []
        for number in range(count):
            Task(loop, 0, "t", lambda number=number, ran=ran: ran.append(number)).wake()
        assert loop.run() == count
        trails.append((ran, list(loop.trace.words), loop.trace.hexdigest()))
    assert trails[0] == trails[1]
    words = trails[0][1]
    assert len(words) == 2 * count - 1
    draws = [word for word in words if word >> 56 == Event.DRAW]
    assert [word >> 20 & 0xFFFFF for word in draws] == list(range(count, 1, -1))


@pytest.mark.parametrize("limit", [1, 255, 256, 257, 600])
def test_livelock_comes_after_exactly_the_limit(limit: int) -> None:
    loop = Loop()
    ran = 0

    def again() -> None:
        nonlocal ran
        ran += 1
        if ran < 601:
            task.wake()

    task = Task(loop, 3, "again", again)
    task.wake()
    with pytest.raises(Livelock, match=f"^{limit} tasks ran"):
        loop.run(limit=limit)
    assert ran == limit
    assert loop.run(limit=601) == 601 - limit


def test_run_inside_a_handler_is_refused() -> None:
    loop = Loop()
    Task(loop, 0, "nested", loop.run).wake()
    with pytest.raises(LocalProtocolError, match=r"^run\(\) inside a handler"):
        loop.run()
    assert loop.run() == 0


def test_livelock_names_seed_and_tail() -> None:
    loop = Loop(seed=42)
    task = Task(loop, 3, "again", lambda: task.wake())
    task.wake()
    with pytest.raises(Livelock, match=r"^50 tasks ran and more are due \(seed 42\)") as caught:
        loop.run(limit=50)
    assert caught.value.seed == 42
    assert len(caught.value.tail) == 20
    assert caught.value.tail[-1].endswith("d3 runs task 0")


def test_time_jumps_to_one_shot_timers_and_stands_still_for_periodic_ones() -> None:
    loop = Loop()
    times: list[int] = []
    task = Task(loop, 0, "t", lambda: times.append(loop.now))
    periodic = Timer(loop, task, 1000)
    periodic.arm(1000)
    assert loop.run() == 0
    assert loop.now == 0
    once = Timer(loop, task)
    once.arm(2500)
    loop.run()
    assert times == [1000, 2000, 2500]
    loop.advance(1000)
    assert times == [1000, 2000, 2500, 3000]
    assert loop.now == 3500
    periodic.cancel()
    assert not periodic.armed
    loop.advance(10_000)
    assert len(times) == 4


def test_rearming_moves_a_timer_and_cancel_stops_it() -> None:
    loop = Loop()
    times: list[int] = []
    timer = Timer(loop, Task(loop, 0, "t", lambda: times.append(loop.now)))
    timer.arm(100)
    timer.arm(700)
    assert timer.armed
    loop.run()
    assert times == [700]
    timer.arm(5)
    timer.cancel()
    loop.run()
    assert loop.now == 700


def test_pump_runs_a_due_task_inline() -> None:
    loop = Loop()
    ran, made = tasks(loop, "ab")
    made["a"].wake()
    made["b"].wake()
    assert loop.pump(made["b"])
    assert ran == ["b"]
    assert not loop.pump(made["b"])
    loop.run()
    assert ran == ["b", "a"]


def test_digest_covers_every_record_and_nothing_else() -> None:
    def digest(count: int, last: int) -> str:
        loop = Loop()
        for number in range(count):
            loop.trace.record(1, 0, number)
        loop.trace.record(1, 0, last)
        return loop.trace.hexdigest()

    assert digest(5000, 1) == digest(5000, 1)
    assert digest(5000, 1) != digest(5000, 2)
    assert digest(5000, 1) != digest(5001, 1)


def test_digest_is_blake2b_of_its_little_endian_words() -> None:
    from hashlib import blake2b

    loop = Loop()
    loop.trace.record(3, 7, 11)
    loop.trace.record(5, 1, 70000, 2)
    loop.trace.timer(1 << 56 | 2 << 40 | 9, 1 << 40)
    words = (
        3 << 56 | 7 << 40 | 11,
        5 << 56 | 1 << 40 | 70000 << 16 | 2,
        4 << 56 | 2 << 40 | 9,
        1 << 40,
    )
    raw = b"".join(word.to_bytes(8, "little") for word in words)
    assert loop.trace.hexdigest() == blake2b(raw, digest_size=16).hexdigest()
    loop.trace.flush()
    assert loop.trace.hexdigest() == blake2b(raw, digest_size=16).hexdigest()


def test_tail_reads_across_a_flush() -> None:
    loop = Loop()
    loop.trace.record(3, 1, 1028)
    loop.trace.flush()
    loop.trace.timer(1 << 56 | 2 << 40 | 9, 1_500_000_000)
    loop.trace.record(2, 0, 5, 3)
    assert loop.trace.tail(3) == (
        "d1 sends on port 1028",
        "d2 timer of task 9 at 1.500000000 s",
        "d0 choice 3 of 5",
    )


def test_a_busy_loop_flushes_and_keeps_a_tail() -> None:
    loop = Loop()
    left = 10_000

    def again() -> None:
        nonlocal left
        left -= 1
        if left:
            task.wake()

    task = Task(loop, 3, "again", again)
    task.wake()
    loop.run()
    assert len(loop.trace.words) < 5000
    assert loop.trace.tail(1) == ("d3 runs task 0",)
    assert len(loop.trace.tail(50)) == 50
