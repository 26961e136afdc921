from __future__ import annotations

import json
import subprocess
import sys
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenpv.errors import LocalProtocolError
from xenpv.testing import (
    Action,
    ExplorationFailed,
    Explorer,
    Run,
    Schedule,
    Step,
    check_all,
    explore,
    run_schedule,
    scenarios,
    zoo,
)
from xenpv.testing.schedule import ACTIONS, Point, one_step, randomly, systematically

EVENT_LATE = "ring-event-late"


def found(**parameters) -> dict[str, object]:
    """An exploration that needs a preemption, as plain data."""
    with zoo.defect(EVENT_LATE):
        result = explore(scenarios.blk_requests, **parameters)
    assert result.run is not None
    return {
        "examples": result.examples,
        "shrinking": result.shrinking,
        "steps": [str(step) for step in result.run.taken.steps],
        "words": list(result.run.words),
        "digest": result.run.digest,
        "failure": result.run.failure_text,
    }


def test_the_same_seed_finds_the_same_also_in_another_process() -> None:
    here = found(seed=5)
    assert found(seed=5) == here
    script = (
        "import json; from tests.testing.test_exploration import found;"
        "print(json.dumps(found(seed=5)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONHASHSEED": "77", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == here


def test_a_schedule_gives_the_same_run_to_the_bit() -> None:
    schedule = Schedule(
        (Step(3, Action.RUN, 1), Step(30, Action.PREEMPT), Step(61, Action.PREEMPT))
    )
    one, two = (run_schedule(scenarios.blk_requests, schedule) for _ in "ab")
    assert (one.digest, one.taken, one.words, one.points) == (
        two.digest,
        two.taken,
        two.words,
        two.points,
    )
    assert one.digest != run_schedule(scenarios.blk_requests).digest
    # What was taken of it is all that matters.
    assert run_schedule(scenarios.blk_requests, one.taken).digest == one.digest


@pytest.mark.parametrize("seed", range(6))
def test_a_race_needs_its_preemption_and_shrinks_to_it(seed) -> None:
    with zoo.defect(EVENT_LATE):
        assert run_schedule(scenarios.blk_requests).failure is None  # by default it is not seen
        result = explore(scenarios.blk_requests, seed=seed, strategy=randomly(seed))
        assert result.run is not None
        steps = result.run.taken.steps
        assert 1 <= len(steps) <= 8
        for at in range(len(steps)):
            fewer = Schedule(steps[:at] + steps[at + 1 :])
            assert not run_schedule(scenarios.blk_requests, fewer).fails_as(result.run)
        assert run_schedule(scenarios.blk_requests, result.run.taken).digest == result.run.digest
    assert run_schedule(scenarios.blk_requests, result.run.taken).failure is None


def planted(needed: set[tuple[int, int]], calls: list[Schedule]):
    """A scenario that fails when all of these (decision, argument) preemptions are taken."""

    def attempt(schedule: Schedule) -> Run:
        calls.append(schedule)
        have = {(step.at, step.argument) for step in schedule.steps}
        failure = AssertionError() if needed <= have else None
        return Run(schedule, ("",) * len(schedule), [], "", failure)

    return attempt


@given(
    st.sets(st.tuples(st.integers(0, 60), st.integers(0, 5)), max_size=4),
    st.sets(st.tuples(st.integers(0, 60), st.integers(0, 5)), max_size=30),
)
@settings(max_examples=100, deadline=None)
def test_shrinking_leaves_exactly_what_is_needed(needed, more) -> None:
    from xenpv.testing.shrink import shrink

    if len({at for at, _ in needed}) < len(needed):
        return
    taken = {at for at, _ in needed}
    steps = [Step(at, Action.PREEMPT, argument) for at, argument in needed]
    steps += [Step(at, Action.PREEMPT, argument) for at, argument in more if at not in taken]
    calls: list[Schedule] = []
    attempt = planted(needed, calls)
    smallest, runs = shrink(attempt(Schedule(tuple(steps))), attempt)
    assert {(step.at, step.argument) for step in smallest.taken.steps} == needed
    assert runs == len(calls) - 1


def test_shrinking_lowers_arguments() -> None:
    from xenpv.testing.shrink import shrink

    def attempt(schedule: Schedule) -> Run:
        bad = any(step.argument >= 13 for step in schedule.steps)
        return Run(schedule, (), [], "", AssertionError() if bad else None)

    smallest, _ = shrink(attempt(Schedule((Step(9, Action.POKE, 250),))), attempt)
    assert smallest.taken.steps == (Step(9, Action.POKE, 13),)


def test_shrinking_keeps_the_kind_of_failure() -> None:
    from xenpv.testing.shrink import shrink

    def attempt(schedule: Schedule) -> Run:
        failure = {2: KeyError(), 1: ValueError()}.get(len(schedule))
        return Run(schedule, (), [], "", failure)

    steps = (Step(1, Action.RUN, 1), Step(2, Action.RUN, 1))
    smallest, _ = shrink(attempt(Schedule(steps)), attempt)
    assert isinstance(smallest.failure, KeyError)


# strategies


def met(strategy, points: list[Point], most: int) -> list[Schedule]:
    schedules = [next(strategy)]
    while len(schedules) < most:
        try:
            schedules.append(strategy.send(points))
        except StopIteration:
            break
    return schedules


POINTS = [Point(True, 3), Point(False, 0), Point(False, 1, 2)]


def test_systematic_search_is_every_step_then_every_pair() -> None:
    singles = [
        (Step(0, Action.RUN, 1),),
        (Step(0, Action.RUN, 2),),
        (Step(2, Action.PREEMPT, 0),),
        (Step(2, Action.POKE, 0),),
        (Step(2, Action.POKE, 1),),
    ]
    pairs = [(*one, *two) for one in singles[:2] for two in singles[2:]]
    schedules = met(systematically(), POINTS, 100)
    assert schedules == [Schedule(), *map(Schedule, singles), *map(Schedule, pairs)]


def test_single_steps_take_places_in_turn() -> None:
    many = [Point(False, 1, place=(1,)) for _ in range(100)]
    points = [*many, Point(False, 1, place=(2,)), Point(False, 1, place=(1,)), Point(True, 2)]
    steps = list(one_step(points))
    assert [step.at for step in steps[:4]] == [0, 100, 102, 1]
    assert sorted(step.at for step in steps) == list(range(103))


def test_random_schedules_are_sparse_fit_what_was_met_and_come_from_the_seed() -> None:
    one, two = (met(randomly(9), POINTS, 200) for _ in "ab")
    assert one == two
    assert one != met(randomly(10), POINTS, 200)
    assert one[0] == Schedule()
    alternatives = {step for at, point in enumerate(POINTS) for step in point.alternatives(at)}
    assert {step for schedule in one for step in schedule.steps} == alternatives
    assert max(map(len, one)) <= 4


@given(st.binary(max_size=40))
@settings(max_examples=200)
def test_any_bytes_are_a_schedule(data) -> None:
    schedule = Schedule.from_bytes(data)
    assert len(schedule) <= len(data) // 4
    assert list(schedule.steps) == sorted(schedule.steps)


def test_bytes_are_relative_decisions_actions_and_arguments() -> None:
    data = bytes([5, 0, 1, 9, 2, 1, 2, 255, 0, 0])
    assert Schedule.from_bytes(data) == Schedule(
        (Step(5, ACTIONS[1], 9), Step(5 + 258, ACTIONS[2], 255))
    )
    assert ACTIONS == (Action.RUN, Action.PREEMPT, Action.POKE)


@given(st.binary(max_size=24))
@settings(max_examples=60, deadline=None)
def test_scenarios_go_with_hypothesis(data) -> None:
    run = run_schedule(scenarios.blk_requests, Schedule.from_bytes(data))
    assert run.failure is None, run.failure_text


# the adversary


def test_an_attacked_load_gets_each_telling_value() -> None:
    from xenpv.testing.adversary import NR_VALUES, values

    assert values(5, 1) == (0, 1, 6, 4, 255, 127, 128)
    for old in (0, 1, 127, 128, 255, 5):
        assert 4 <= len(values(old, 1)) <= NR_VALUES
        assert old not in values(old, 1)
    assert values(0, 4) == (1, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000)


def attacked(x: Explorer) -> None:
    world = x.world_raw()
    scenarios.BlkClient(world.vbd, 1, spoilt=True).start()
    x.attack(world.platform.dom0)
    x.run()


def test_only_what_the_victim_loads_and_its_peer_can_write_is_changed() -> None:
    with_words: dict[str, int] = {}

    def note(schedule: Schedule) -> list[str]:
        return list(run_schedule(attacked, schedule).words)

    points = run_schedule(attacked).points
    for at, point in enumerate(points):
        for index in range(point.pokes):
            for word in note(Schedule((Step(at, Action.POKE, index),))):
                assert word.startswith("before d0 reads it, ")
                place = word.split(", ", 1)[1].split(" (")[0].split("+")[0]
                with_words[place] = with_words.get(place, 0) + 1
    assert set(with_words) >= {
        "blkif.req_prod",
        "blkif.rsp_event",
        "blkif_request[0].operation",
        "blkif_request[0].nr_segments",
        "blkif_request[0].sector_number",
        "blkif_request[0].seg[0].gref",
    }
    assert "blkif.req_event" not in with_words  # the victim's own word, which it only writes


def test_a_producer_index_that_runs_away_breaks_the_device_and_nothing_else() -> None:
    broken: list[str] = []

    def scenario(x: Explorer) -> None:
        world = x.world_raw()
        scenarios.BlkClient(world.vbd, 1, spoilt=True).start()
        x.attack(world.platform.dom0)
        x.run()
        assert world.vbd.backend is not None
        broken.append(world.vbd.backend.broken)

    points = run_schedule(scenario).points
    broken.clear()
    for at, point in enumerate(points):
        for index in range(point.pokes):
            assert run_schedule(scenario, Schedule((Step(at, Action.POKE, index),))).failure is None
    assert any("runs past the ring" in text for text in broken)


def test_our_frontends_survive_a_backend_that_changes_what_they_load() -> None:
    result = explore(scenarios.frontends_attacked, examples=120, strategy=randomly(3))
    result.check()
    assert result.examples == 120


# a scenario's own decisions and laws


def dropped_events(x: Explorer) -> None:
    """A frontend whose only notification may be lost, which nothing makes up for."""
    world = x.world_raw()
    client = scenarios.BlkClient(world.vbd, 1)
    notify = world.vbd.notify

    def sometimes() -> None:
        assert x.decide("never", 1) == 0
        if not x.decide("drop the event", 2):
            notify()

    world.vbd.notify = sometimes
    client.start()
    assert x.decide("before the run", 2) == 0
    x.run()
    assert len(client.answers) == 1


def test_a_scenarios_own_decisions_are_found_and_shrunk() -> None:
    result = explore(dropped_events, seed=2)
    assert result.failed
    assert result.steps == ("drop the event: 1 of 2",)
    assert not run_schedule(dropped_events).failed


def test_a_decision_among_none_is_refused() -> None:
    def scenario(x: Explorer) -> None:
        x.decide("nothing", 0)

    assert isinstance(run_schedule(scenario).failure, LocalProtocolError)


def test_a_law_that_breaks_for_a_moment_is_seen_after_the_handler_that_broke_it() -> None:
    log: list[str] = []

    def scenario(x: Explorer) -> None:
        xen = x.platform()
        xen.run()
        for name in ("breaks", "mends"):
            xen.dom0.task(name, partial(log.append, name)).wake()
        x.each(lambda: check_all(xen, quiescent=False))
        x.each(law)
        x.run()

    def law() -> None:
        assert log != ["breaks"]

    assert run_schedule(scenario).failed
    assert log == ["breaks"]


# results


def test_a_result_says_all_that_is_needed_to_repeat_it(tmp_path) -> None:
    with zoo.defect(EVENT_LATE):
        result = explore(scenarios.blk_requests, directory=tmp_path)
    assert result.path is not None
    with pytest.raises(ExplorationFailed) as caught:
        result.check()
    text = str(caught.value)
    for part in (
        "xenpv.testing.scenarios:blk_requests fails: CheckFailed: blkif of d1",
        "lost wake-up",
        "shrunk to 1 steps",
        "with the defect ring-event-late",
        "preempt d0 vbd1.51712-0 before it writes blkif.req_event",
        f"again: xenpv replay {result.path}",
    ):
        assert part in text
    assert caught.value.result is result
    assert isinstance(caught.value, AssertionError)


def test_nothing_found_is_no_failure() -> None:
    result = explore(scenarios.blk_requests, examples=5, seed=3)
    assert not result.failed
    result.check()
    assert result.lines() == [
        "xenpv.testing.scenarios:blk_requests: nothing found in 5 examples, seed 3"
    ]


def test_a_scenario_that_cannot_be_found_again_writes_no_file(tmp_path) -> None:
    def local(x: Explorer) -> None:
        raise AssertionError

    assert explore(local, examples=1).failed
    with pytest.raises(LocalProtocolError, match="cannot be replayed"):
        explore(local, examples=1, directory=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_real_drivers_survive_every_single_preemption() -> None:
    result = explore(scenarios.guest_devices, examples=60)
    result.check()
    assert result.examples == 60


@pytest.mark.soak
@pytest.mark.parametrize(
    "scenario",
    [
        scenarios.blk_requests,
        scenarios.blk_attacked,
        scenarios.guest_devices,
        scenarios.frontends_attacked,
    ],
)
def test_soak(scenario) -> None:
    for seed in range(5):
        explore(scenario, seed=seed, examples=4000).check()
