"""Every goal at every state of the backend: what XenVif and XenVbd write, and how it ends.

The literals are win-xenvif's and win-xenvbd's, driver against directory: nobody answers, the
backend's `state` is what the test writes. The drivers' own reaction to an outcome is left out
here; what becomes of a whole device is below the tables.
"""

from __future__ import annotations

import attrs
import pytest

from tests.bus.handshake_scene import Scene, scene
from xenpv.abi.xs import XS
from xenpv.bus.handshake import FrontendDriver, Goal, Seen
from xenpv.xen.loop import NS_PER_S

GARBAGE = "x"
STATES = ("absent", "", GARBAGE, "0", "1", "2", "3", "4", "5", "6", "7", "8", "9")


@attrs.define(eq=False)
class Recorder:
    """Stands between a walk and its driver: the driver prepares, and hears of nothing."""

    driver: FrontendDriver
    log: list[str] = attrs.field(factory=list)
    preparing: bool = False

    def before(self, goal: Goal) -> None:
        self.preparing = True
        self.driver.before(goal)
        self.preparing = False

    def reached(self, _goal: Goal) -> None:
        self.log.append("done")

    def failed(self, _goal: Goal, _seen: Seen) -> None:
        self.log.append("fail")

    def offline(self) -> None:
        self.log.append("offline")

    # the store's trace

    def store_op(
        self, conn_domid: int, op: int, _tx_id: int, payload: bytes, _error: bytes | None
    ) -> None:
        path, _, value = payload.partition(b"\0")
        if conn_domid and op == XS.WRITE and path.endswith(b"/state") and not self.preparing:
            self.log.append(value.decode())


def walk(on: Scene, goal: Goal, *states: str) -> tuple[str, str]:
    """Walk to `goal` while the backend goes through the states: what was done about the last
    one, and what 120 s later, when nothing had changed.
    """
    handshake = on.handshake
    recorder = Recorder(handshake.driver)
    handshake.driver = recorder
    on.put("state", states[0])
    on.xen.xenstored.trace = recorder
    handshake.start([goal])
    on.xen.run()
    for state in states[1:]:
        recorder.log.clear()
        on.put("state", state)
        on.xen.run()
    at_once = " ".join(recorder.log) or "wait"
    recorder.log.clear()
    on.xen.loop.advance(120 * NS_PER_S)
    return at_once, " ".join(recorder.log) or "-"


PREPARE, CONNECT, CLOSE = Goal.PREPARE, Goal.CONNECT, Goal.CLOSE
OFF = "offline fail"

# (goal, the states before, {state: (what is done at once, what after 120 s)})
XENVIF = [
    (PREPARE, (), {
        "absent": (OFF, "-"), "": ("wait", OFF), GARBAGE: ("wait", OFF), "0": ("wait", OFF),
        "1": ("wait", "-"), "2": ("done", "-"), "3": ("wait", "-"), "4": ("5", "5"),
        "5": ("6", "6"), "6": ("1", "1"), "7": ("wait", "-"), "8": ("wait", "-"),
        "9": ("wait", "-"),
    }),
    (PREPARE, ("1",), {
        "absent": (OFF, "-"), "": (OFF, "-"), GARBAGE: (OFF, "-"), "0": (OFF, "-"),
        "1": ("wait", "-"), "2": ("done", "-"), "3": ("wait", "-"), "4": ("5", "5"),
        "5": ("6", "6"), "6": ("1", "1"), "7": ("wait", "-"), "8": ("wait", "-"),
        "9": ("wait", "-"),
    }),
    (CONNECT, (), {
        "absent": (OFF, "-"), "": ("wait", OFF), GARBAGE: ("wait", OFF), "0": ("wait", OFF),
        "1": ("wait", "-"), "2": ("4", "4"), "3": ("4", "4"), "4": ("done", "-"),
        "5": ("6", "6"), "6": ("wait", "-"), "7": ("wait", "-"), "8": ("wait", "-"),
        "9": ("wait", "-"),
    }),
    (CONNECT, ("2",), {
        "absent": (OFF, "-"), "": (OFF, "-"), GARBAGE: (OFF, "-"), "0": (OFF, "-"),
        "1": ("wait", "-"), "2": ("wait", "4"), "3": ("4", "4"), "4": ("done", "-"),
        "5": ("6", "6"), "6": ("wait", "-"), "7": ("wait", "-"), "8": ("wait", "-"),
        "9": ("wait", "-"),
    }),
    (CLOSE, (), {
        "absent": ("offline done", "-"), "": ("wait", "offline done"),
        GARBAGE: ("wait", "offline done"), "0": ("wait", "offline done"), "1": ("wait", "-"),
        "2": ("5", "5"), "3": ("wait", "-"), "4": ("5", "5"), "5": ("6", "6"), "6": ("done", "-"),
        "7": ("wait", "-"), "8": ("wait", "-"), "9": ("wait", "-"),
    }),
    (CLOSE, ("4",), {
        "absent": ("offline done", "-"), "": ("offline done", "-"), GARBAGE: ("offline done", "-"),
        "0": ("offline done", "-"), "1": ("wait", "-"), "2": ("5", "5"), "3": ("wait", "-"),
        "4": ("wait", "5"), "5": ("6", "6"), "6": ("done", "-"), "7": ("wait", "-"),
        "8": ("wait", "-"), "9": ("wait", "-"),
    }),
]  # fmt: skip
# Without a clock: what is not done at once is not done.
XENVBD = [
    (PREPARE, (), {
        "absent": "fail", "": "wait", GARBAGE: "wait", "0": "wait", "1": "wait", "2": "done",
        "3": "fail", "4": "fail", "5": "fail", "6": "wait", "7": "fail", "8": "fail", "9": "fail",
    }),
    (PREPARE, ("1",), {
        "absent": "fail", "": "fail", GARBAGE: "fail", "0": "fail", "1": "wait", "2": "done",
        "3": "fail", "4": "fail", "5": "fail", "6": "wait", "7": "fail", "8": "fail", "9": "fail",
    }),
    (CONNECT, (), {
        "absent": "fail", "": "wait", GARBAGE: "wait", "0": "wait", "1": "wait", "2": "wait",
        "3": "wait", "4": "done", "5": "fail", "6": "fail", "7": "fail", "8": "fail", "9": "fail",
    }),
    (CONNECT, ("2",), {
        "absent": "fail", "": "fail", GARBAGE: "fail", "0": "fail", "1": "wait", "2": "wait",
        "3": "wait", "4": "done", "5": "fail", "6": "fail", "7": "fail", "8": "fail", "9": "fail",
    }),
    (CLOSE, (), {
        "absent": "fail", "": "wait", GARBAGE: "wait", "0": "wait", "1": "wait", "2": "5",
        "3": "5", "4": "5", "5": "6", "6": "done", "7": "5", "8": "5", "9": "5",
    }),
    (CLOSE, ("1",), {
        "absent": "fail", "": "5", GARBAGE: "5", "0": "5", "1": "wait", "2": "5", "3": "5",
        "4": "5", "5": "6", "6": "done", "7": "5", "8": "5", "9": "5",
    }),
    (CLOSE, ("4",), {
        "absent": "fail", "": "5", GARBAGE: "5", "0": "5", "1": "5", "2": "5", "3": "5",
        "4": "wait", "5": "6", "6": "done", "7": "5", "8": "5", "9": "5",
    }),
    (CLOSE, ("4", "5"), {
        "absent": "fail", "": "6", GARBAGE: "6", "0": "6", "1": "6", "2": "6", "3": "6",
        "4": "6", "5": "wait", "6": "done", "7": "6", "8": "6", "9": "6",
    }),
]  # fmt: skip
ROWS = [
    ("vif", goal, (*before, state), done)
    for goal, before, row in XENVIF
    for state, done in row.items()
] + [
    ("vbd", goal, (*before, state), (done, "-"))
    for goal, before, row in XENVBD
    for state, done in row.items()
]


def test_the_tables_have_every_state() -> None:
    for _, _, row in (*XENVIF, *XENVBD):
        assert tuple(row) == STATES
    assert len(ROWS) == 13 * 14


@pytest.mark.parametrize(
    ("kind", "goal", "states", "done"),
    ROWS,
    ids=[f"{kind} {goal.value} at {' '.join(s or 'empty' for s in states)}"
         for kind, goal, states, _ in ROWS],
)  # fmt: skip
def test_each_goal_at_each_state(
    kind: str, goal: Goal, states: tuple[str, ...], done: tuple[str, str]
) -> None:
    with scene(kind) as on:
        assert walk(on, goal, *states) == done


# `online` is read where XenVif closes; base 2, and absent or no number is offline.
ONLINE = [
    (PREPARE, "6", "1", "1"), (PREPARE, "6", "01", "1"), (PREPARE, "6", "1x", "1"),
    (PREPARE, "6", "0", OFF), (PREPARE, "6", "", OFF), (PREPARE, "6", "2", OFF),
    (PREPARE, "6", "absent", OFF), (PREPARE, "6", "yes", OFF), (PREPARE, "6", "-1", "1"),
    (PREPARE, "5", "1", "6"), (PREPARE, "5", "0", f"6 {OFF}"), (PREPARE, "5", "absent", f"6 {OFF}"),
    (PREPARE, "4", "0", "5"), (PREPARE, "2", "0", "done"),
    (CONNECT, "5", "0", f"6 {OFF}"), (CONNECT, "2", "0", "4"), (CONNECT, "4", "0", "done"),
    (CLOSE, "5", "1", "6"), (CLOSE, "5", "0", "6 offline done"), (CLOSE, "6", "0", "done"),
    (CLOSE, "4", "0", "5"),
]  # fmt: skip


@pytest.mark.parametrize(("goal", "state", "online", "done"), ONLINE)
def test_xenvif_and_online(goal: Goal, state: str, online: str, done: str) -> None:
    with scene("vif", online=online) as on:
        assert walk(on, goal, state)[0] == done


@pytest.mark.parametrize("online", ["0", "absent", "x"])
@pytest.mark.parametrize(("goal", "state", "done"), [
    (PREPARE, "6", "wait"), (PREPARE, "2", "done"), (CLOSE, "5", "6"), (CONNECT, "4", "done"),
])  # fmt: skip
def test_xenvbd_does_not_look_at_online_on_its_way(
    goal: Goal, state: str, online: str, done: str
) -> None:
    with scene("vbd", online=online) as on:
        assert walk(on, goal, state)[0] == done
