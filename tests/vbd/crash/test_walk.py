"""The crash driver's handshakes: what it does at each state of the backend, and when it gives up."""

from __future__ import annotations

import pytest

from tests.vbd.crash.rawscene import crash_scene
from xenpv.abi.xenbus import XenbusState as State
from xenpv.vbd.crash.driver import Step
from xenpv.vbd.crash.failure import CrashError
from xenpv.vbd.crash.walk import Goal, Walk, state_of

S = 1_000_000_000


class Store:
    """A store of one node, the backend's state, that remembers what is written."""

    def __init__(self, state: str | None) -> None:
        self.state = state
        self.written: list[tuple[str, str]] = []

    def read(self, path: str) -> str | None:
        assert path == "/backend/state"
        return self.state

    def write(self, path: str, value: str) -> None:
        assert path == "device/vbd/1/state"
        self.written.append((path, value))


WAIT, DONE, FAIL = "wait", "done", "fail"
# goal, states that the backend shows one after the other: what is written or done at each
WALKS = [
    (Goal.CLOSE, "0", [WAIT]), (Goal.CLOSE, "1", [WAIT]), (Goal.CLOSE, "2", ["5"]),
    (Goal.CLOSE, "3", ["5"]), (Goal.CLOSE, "4", ["5"]), (Goal.CLOSE, "5", ["6"]),
    (Goal.CLOSE, "6", [DONE]), (Goal.CLOSE, "7", ["5"]), (Goal.CLOSE, "8", ["5"]),
    (Goal.CLOSE, "junk", [WAIT]), (Goal.CLOSE, "", [WAIT]), (Goal.CLOSE, "-1", [WAIT]),
    (Goal.CLOSE, "99", ["5"]), (Goal.CLOSE, " 6", [DONE]), (Goal.CLOSE, "06", [DONE]),
    (Goal.CLOSE, "1456", [*[WAIT], "5", "6", DONE]),
    (Goal.CLOSE, "4446", ["5", WAIT, WAIT, DONE]),
    (Goal.CLOSE, "4256", ["5", "5", "6", DONE]),
    (Goal.CLOSE, "41056", ["5", "5", "5", "6", DONE]),
    (Goal.CLOSE, "52426", ["6", "6", "6", "6", DONE]),
    (Goal.PREPARE, "0", [WAIT]), (Goal.PREPARE, "1", [WAIT]), (Goal.PREPARE, "2", [DONE]),
    (Goal.PREPARE, "3", [FAIL]), (Goal.PREPARE, "4", [FAIL]), (Goal.PREPARE, "5", [FAIL]),
    (Goal.PREPARE, "6", [WAIT]), (Goal.PREPARE, "7", [FAIL]), (Goal.PREPARE, "8", [FAIL]),
    (Goal.PREPARE, "612", [WAIT, WAIT, DONE]), (Goal.PREPARE, "10", [WAIT, FAIL]),
    (Goal.CONNECT, "0", [WAIT]), (Goal.CONNECT, "1", [WAIT]), (Goal.CONNECT, "2", [WAIT]),
    (Goal.CONNECT, "3", [WAIT]), (Goal.CONNECT, "4", [DONE]), (Goal.CONNECT, "5", [FAIL]),
    (Goal.CONNECT, "6", [FAIL]), (Goal.CONNECT, "7", [FAIL]), (Goal.CONNECT, "8", [FAIL]),
    (Goal.CONNECT, "234", [WAIT, WAIT, DONE]), (Goal.CONNECT, "20", [WAIT, FAIL]),
]  # fmt: skip


@pytest.mark.parametrize(("goal", "states", "steps"), WALKS)
def test_what_is_done_at_each_state(goal: Goal, states: str, steps: list[str]) -> None:
    shown = list(states) if states.isdigit() and len(states) == len(steps) else [states]
    walk = Walk(goal, "device/vbd/1", "/backend")
    store = Store(None)
    for state, step in zip(shown, steps, strict=True):
        store.state = state
        store.written.clear()
        if step == FAIL:
            with pytest.raises(CrashError, match=rf"cannot {goal.value}, the backend is at "):
                walk.look(store)  # type: ignore[arg-type]
            return
        assert walk.look(store) is (step == DONE)  # type: ignore[arg-type]
        assert [value for _path, value in store.written] == ([step] if step.isdigit() else [])


def test_nothing_is_written_twice_at_one_state() -> None:
    walk, store = Walk(Goal.CLOSE, "device/vbd/1", "/backend"), Store("4")
    for _ in range(5):
        assert not walk.look(store)  # type: ignore[arg-type]
    assert len(store.written) == 1


@pytest.mark.parametrize(("goal", "state"), [(Goal.CLOSE, "4"), (Goal.PREPARE, "6"), (Goal.CONNECT, "3"), (Goal.CLOSE, "0")])  # fmt: skip
def test_a_walk_ends_after_300_looks(goal: Goal, state: str) -> None:
    walk, store = Walk(goal, "device/vbd/1", "/backend"), Store(state)
    for _ in range(300):
        assert not walk.look(store)  # type: ignore[arg-type]
    with pytest.raises(CrashError, match=r"stays at .* for 30 s"):
        walk.look(store)  # type: ignore[arg-type]


def test_a_backend_that_changes_for_ever_is_left_too() -> None:
    walk, store = Walk(Goal.CLOSE, "device/vbd/1", "/backend"), Store("2")
    for tenth in range(300):
        store.state = "42"[tenth % 2]
        assert not walk.look(store)  # type: ignore[arg-type]
    store.state = "4"
    with pytest.raises(CrashError, match="for 30 s"):
        walk.look(store)  # type: ignore[arg-type]


def test_a_state_that_cannot_be_read_is_the_end() -> None:
    with pytest.raises(CrashError, match="state cannot be read"):
        Walk(Goal.CLOSE, "device/vbd/1", "/backend").look(Store(None))  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "state"), [("4x", 4), ("0004", 4), ("9", 8), ("4" * 5000, 8), ("٤", 0), ("\t5", 5), ("+4", 0)])  # fmt: skip
def test_states_are_numbers_in_base_10(text: str, state: int) -> None:
    assert state_of(text) is State(state)


# the whole driver, its backend in each state that it can be found in


@pytest.mark.parametrize("state", list(State))
def test_a_backend_is_taken_over_from_any_state(state: State) -> None:
    with crash_scene() as scene:
        back = scene.back
        back.disconnect()
        back.device.switch_state(State.UNKNOWN)
        back.device.switch_state(state)
        back.states.clear()
        if state in (State.UNKNOWN, State.INITIALISING):
            # Nobody has probed it yet; it is soon.
            assert scene.walk(Step.CLOSE_ALL) is Step.CLOSE_ALL
            scene.xen.loop.advance(2 * S)
            back.device.switch_state(State.INIT_WAIT)
        scene.connect()
        closes = [] if state is State.CLOSED else [State.CLOSED]
        if state not in (State.CLOSING, State.CLOSED):
            closes.insert(0, State.CLOSING)
        assert back.states == [*closes, State.INITIALISING, State.INITIALISED, State.CONNECTED]


def test_a_backend_that_is_dead_ends_in_a_failure() -> None:
    with crash_scene(disks=2) as scene:
        scene.back.answers = dict.fromkeys(State, State.CONNECTED)
        before = scene.xen.loop.now
        assert scene.walk() is Step.FAILED
        assert scene.driver.failure == (
            "device/vbd/51712: cannot close, the backend stays at connected for 30 s"
        )
        assert len(scene.driver.skipped) == 1
        assert scene.backs[1].states[-2:] == [State.CLOSING, State.CLOSED]
        assert 60 * S <= scene.xen.loop.now - before < 62 * S


@pytest.mark.parametrize(
    ("at", "answer", "why"),
    [
        (State.INITIALISING, State.CONNECTED, "cannot prepare, the backend is at connected"),
        (State.INITIALISING, State.CLOSED, "cannot prepare, the backend stays at closed for 30 s"),
        (State.INITIALISED, State.CLOSING, "cannot connect, the backend is at closing"),
        (State.INITIALISED, State.INIT_WAIT, "cannot connect, the backend stays at init_wait for"),
    ],
)
def test_a_handshake_that_fails_is_closed_after(at: State, answer: State, why: str) -> None:
    with crash_scene() as scene:
        scene.back.answers[at] = answer
        assert scene.walk() is Step.FAILED
        assert why in scene.driver.failure
        assert scene.back.device.state is State.CLOSED
        assert scene.back.states[-1] is (State.CLOSED if answer is not State.CLOSED else at)
        assert not scene.driver.target.is_connected
