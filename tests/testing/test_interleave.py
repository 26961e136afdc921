"""Where a handler may be stopped, and what may run then: DESIGN 3 and 4."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis.errors import UnsatisfiedAssumption

from xenpv.abi._kernel import lib
from xenpv.errors import Livelock
from xenpv.testing import Action, Explorer, Run, Schedule, Step, run_schedule
from xenpv.testing.schedule import Point
from xenpv.xen.domain import Domain


class Two:
    """Domains a and b with a task each, which notes its domain's letter before each access."""

    def __init__(self, x: Explorer, accesses: int = 2) -> None:
        self.platform = x.platform()
        self.accesses = accesses
        self.log: list[str] = []
        self.a, self.b = (self._domain() for _ in "ab")
        self.platform.run()

    def _domain(self) -> Domain:
        domain = self.platform.dom0.domctl.create_domain(vcpus=1, max_pages=64)
        domain.populate(16)
        domain.unpause()
        return domain

    def touch(self, domain: Domain, letter: str) -> Callable[[], None]:
        def run() -> None:
            for number in range(1, self.accesses + 1):
                domain.load32(domain.pages.start, 0)
                self.log.append(f"{letter}{number}")

        return run

    def start(self) -> None:
        for domain, letter in ((self.a, "a"), (self.b, "b")):
            domain.task(letter, self.touch(domain, letter)).wake()


def orders(*steps: Step) -> tuple[str, Run]:
    seen: list[str] = []

    def scenario(x: Explorer) -> None:
        two = Two(x)
        two.start()
        x.run()
        seen.extend(two.log)

    run = run_schedule(scenario, Schedule(steps))
    assert run.failure is None, run.failure_text
    return " ".join(seen), run


# Decision 0 is the choice between a and b, then an access each.
@pytest.mark.parametrize(
    ("steps", "order"),
    [
        ([], "a1 a2 b1 b2"),
        ([Step(0, Action.RUN, 1)], "b1 b2 a1 a2"),
        ([Step(2, Action.PREEMPT)], "a1 b1 b2 a2"),
        ([Step(1, Action.PREEMPT)], "b1 b2 a1 a2"),
        ([Step(2, Action.PREEMPT), Step(4, Action.PREEMPT)], "a1 b1 a2 b2"),
        ([Step(1, Action.PREEMPT), Step(3, Action.PREEMPT)], "b1 a1 a2 b2"),
        (
            [Step(1, Action.PREEMPT), Step(3, Action.PREEMPT), Step(4, Action.PREEMPT)],
            "b1 a1 b2 a2",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_any_order_of_two_handlers_is_a_schedule(steps, order) -> None:
    found, run = orders(*steps)
    assert found == order
    assert run.taken == Schedule(tuple(steps))
    assert len(run.words) == len(steps)


def test_steps_that_do_not_fit_do_nothing_and_are_not_taken() -> None:
    found, run = orders(
        Step(0, Action.PREEMPT),
        Step(1, Action.RUN, 1),
        Step(2, Action.POKE, 3),
        Step(900, Action.RUN),
    )
    assert found == "a1 a2 b1 b2"
    assert run.taken == Schedule()


def test_arguments_wrap_and_are_kept_as_they_wrapped() -> None:
    found, run = orders(Step(0, Action.RUN, 7), Step(2, Action.PREEMPT, 200))
    assert found == "b1 a1 a2 b2"
    assert run.taken.steps == (Step(0, Action.RUN, 1), Step(2, Action.PREEMPT, 0))


def test_points_tell_what_there_was_to_decide() -> None:
    _, run = orders()
    assert [(point.is_choice, point.runnable, point.pokes) for point in run.points] == [
        (True, 2, 0),
        (False, 1, 0),
        (False, 1, 0),
        (False, 0, 0),
        (False, 0, 0),
    ]
    places = [point.place for point in run.points]
    assert places[1] == places[2] != places[3] == places[4]


def test_words_say_who_was_stopped_where_and_what_ran() -> None:
    _, run = orders(Step(2, Action.PREEMPT), Step(4, Action.PREEMPT))
    first, second = run.words
    assert first.startswith("preempt d1 a before it reads a page of d1 (frame ")
    assert re.search(rf"\+0x0\) at \S*{Path(__file__).name}:\d+ in run, run d2 b$", first)
    assert second.endswith("resume d1 a")


def test_a_paused_domain_is_never_switched_to() -> None:
    seen: list[str] = []

    def scenario(x: Explorer) -> None:
        two = Two(x)

        def pause() -> None:
            two.b.pause()
            two.touch(two.a, "a")()
            two.b.unpause()

        two.a.task("a", pause).wake()
        two.b.task("b", two.touch(two.b, "b")).wake()
        x.run()
        seen.extend(two.log)

    for steps in ([Step(1, Action.PREEMPT)], [Step(0, Action.RUN, 1), Step(2, Action.PREEMPT)]):
        seen.clear()
        assert run_schedule(scenario, Schedule(steps)).failure is None
        letters = "".join(one[0] for one in seen)
        # b is stopped or waits from a's first access to its last.
        assert "aa" in letters


def test_nobody_is_stopped_under_a_lock_of_the_hypervisor() -> None:
    points: list[Point] = []

    def scenario(x: Explorer) -> None:
        two = Two(x)
        port = two.b.evtchn.alloc_unbound(two.a.domid)
        local = two.a.evtchn.bind_interdomain(two.b.domid, port)
        two.a.task("a", lambda: two.a.evtchn.send(local)).wake()
        two.b.task("b", two.touch(two.b, "b")).wake()
        x.run()
        points.extend(x.points)

    assert run_schedule(scenario).failure is None
    sends = [point for point in points if not point.is_choice and not point.runnable]
    assert len(sends) >= 2  # pending and selector bits: b could run, but does not


def test_one_handler_of_a_domain_at_a_time() -> None:
    seen: list[str] = []

    def scenario(x: Explorer) -> None:
        two = Two(x)
        two.a.task("a", two.touch(two.a, "a")).wake()
        two.a.task("c", two.touch(two.a, "c")).wake()
        two.b.task("b", two.touch(two.b, "b")).wake()
        x.run()
        seen.extend(two.log)

    for at in range(1, 8):
        for other in range(1, 8):
            seen.clear()
            steps = Schedule((Step(at, Action.PREEMPT), Step(other, Action.PREEMPT)))
            assert run_schedule(scenario, steps).failure is None
            own = [one for one in seen if one[0] in "ac"]
            assert own in (["a1", "a2", "c1", "c2"], ["c1", "c2", "a1", "a2"])


def test_an_inline_wait_finishes_what_its_peer_had_begun() -> None:
    """b's handler is stopped; a waits inline for a task of b: b's handler ends first."""
    seen: list[str] = []

    def scenario(x: Explorer) -> None:
        two = Two(x)
        server = two.b.task("server", lambda: two.log.append("served"))

        def ask() -> None:
            two.a.load32(two.a.pages.start, 0)
            server.wake()
            assert two.platform.loop.pump(server)
            two.log.append("answered")

        two.a.task("a", ask).wake()
        two.b.task("b", two.touch(two.b, "b")).wake()
        x.run()
        seen.extend(two.log)

    # b first, stopped between its accesses for a.
    steps = Schedule((Step(0, Action.RUN, 1), Step(2, Action.PREEMPT)))
    run = run_schedule(scenario, steps)
    assert run.failure is None, run.failure_text
    assert seen == ["b1", "b2", "served", "answered"]


def test_what_a_handler_raises_is_what_the_run_raises() -> None:
    unwound: list[str] = []

    def scenario(x: Explorer) -> None:
        two = Two(x)

        def stopped() -> None:
            try:
                two.a.load32(two.a.pages.start, 0)
            finally:
                unwound.append("a")

        def fail() -> None:
            raise KeyError("in b")

        two.a.task("a", stopped).wake()
        two.b.task("b", fail).wake()
        x.run()

    run = run_schedule(scenario, Schedule((Step(1, Action.PREEMPT),)))
    assert isinstance(run.failure, KeyError)
    assert unwound == ["a"]  # a's handler was stopped, and is not left behind


def test_what_is_no_exception_goes_through_and_leaves_nothing() -> None:
    class Stop(BaseException):
        """As Hypothesis' own."""

    platforms = []

    def scenario(x: Explorer) -> None:
        two = Two(x)
        platforms.append(two.platform)

        def stop() -> None:
            raise Stop

        two.a.task("a", two.touch(two.a, "a")).wake()
        two.b.task("b", stop).wake()
        x.run()

    with pytest.raises(Stop):
        run_schedule(scenario, Schedule((Step(2, Action.PREEMPT),)))
    assert platforms[0].hypervisor.closed


def reject() -> None:
    raise UnsatisfiedAssumption


@pytest.mark.parametrize(
    ("stop", "failure"),
    [
        (lambda: pytest.fail("so"), "AssertionError: so"),
        (lambda: pytest.skip("not now"), None),
        (reject, None),
        (lambda: sys.exit(3), None),
    ],
    ids=["fail", "skip", "reject", "exit"],
)
def test_what_says_something_else_than_failed_is_no_failure(stop, failure) -> None:
    def scenario(x: Explorer) -> None:
        x.platform().dom0.task("stops", stop).wake()
        x.run()

    if failure:
        assert run_schedule(scenario).failure_text == failure
        return
    with pytest.raises(BaseException) as caught:
        run_schedule(scenario)
    assert type(caught.value).__name__ in ("Skipped", "UnsatisfiedAssumption", "SystemExit")


def test_handlers_that_never_settle_are_a_livelock(monkeypatch) -> None:
    monkeypatch.setattr("xenpv.testing.explorer.HANDLERS_MAX", 50)

    def scenario(x: Explorer) -> None:
        two = Two(x)
        task = two.a.task("again", lambda: task.wake())
        task.wake()
        x.run()

    assert isinstance(run_schedule(scenario).failure, Livelock)


def test_a_handler_that_never_ends_is_a_livelock(monkeypatch) -> None:
    monkeypatch.setattr("xenpv.testing.explorer.ACCESSES_MAX", 50)

    def scenario(x: Explorer) -> None:
        two = Two(x, accesses=1000)
        two.start()
        x.run()

    failure = run_schedule(scenario).failure
    assert isinstance(failure, Livelock)
    assert "51 accesses" in str(failure)


def test_nothing_is_decided_before_the_run_begins() -> None:
    points: list[int] = []

    def scenario(x: Explorer) -> None:
        world = x.world_raw()
        world.vbd.notify()
        world.run()
        points.append(len(x.points))
        x.run()

    assert run_schedule(scenario).failure is None
    assert points == [0]


def test_what_a_killed_domain_had_begun_is_unwound() -> None:
    def scenario(x: Explorer) -> None:
        two = Two(x)
        two.a.task("a", two.touch(two.a, "a")).wake()
        two.b.task("b", lambda: two.a.pause()).wake()
        x.run()
        assert two.log == ["a1"]
        two.platform.dom0.domctl.destroy_domain(two.a)
        x.run()

    run = run_schedule(scenario, Schedule((Step(2, Action.PREEMPT),)))
    assert run.failure is None, run.failure_text


def test_without_greenlet_it_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['greenlet'] = None\n"
        "from xenpv.testing import world_raw, zoo\n"
        "from xenpv.errors import ConfigError\n"
        "from xenpv.testing import check_blk_backend, explore, fuzz_one, scenarios\n"
        "fuzz_one(b'xenpv')\n"
        "assert check_blk_backend(only=['BLKB-001'])\n"
        "try:\n    explore(scenarios.blk_requests)\n"
        "except ConfigError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "exploration needs greenlet: pip install 'xenpv[explore]'\n"


def test_a_handler_that_retired_its_own_task_is_resumed_and_ends() -> None:
    ended: list[str] = []

    def scenario(x: Explorer) -> None:
        two = Two(x)
        task = two.a.task("once", lambda: once())

        def once() -> None:
            two.a.forget(task)
            two.a.load32(two.a.pages.start, 0)
            ended.append("once")

        task.wake()
        two.b.task("b", two.touch(two.b, "b")).wake()
        x.run()

    for at in range(4):
        ended.clear()
        run = run_schedule(scenario, Schedule((Step(at, Action.PREEMPT),)))
        assert run.failure is None, run.failure_text
        assert ended == ["once"]


@pytest.mark.parametrize(("nth", "expected"), [(1, ["x", "a1", "a2"]), (2, ["a1", "x", "a2"])])
def test_an_intrusion_acts_once_before_that_access(nth: int, expected: list[str]) -> None:
    seen: list[list[str]] = []

    def scenario(x: Explorer) -> None:
        other = Two(x)  # the same domids and frames on another machine
        two = Two(x)
        page = two.a.pages.start
        frame = int(lib.p2m_lookup(two.a.kernel, page, 1))
        assert frame == int(lib.p2m_lookup(other.a.kernel, other.a.pages.start, 1))
        x.intrude(two.a, (frame, 0), lambda: two.log.append("x"), nth=nth)
        x.intrude(two.a, (frame, 0), lambda: two.log.append("never"), writes=True)
        for one in (other, two):
            one.a.task("a", one.touch(one.a, "a")).wake()
        x.run()
        seen.append(two.log)
        assert other.log == ["a1", "a2"]

    run = run_schedule(scenario)
    assert run.failure is None, run.failure_text
    assert seen == [expected]
