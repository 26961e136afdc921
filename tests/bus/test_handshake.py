"""The walk itself, under a table of its own; the drivers' tables are tested with them."""

from __future__ import annotations

import attrs
import pytest

from tests.world import World
from xenpv.abi.xenbus import XenbusState as S
from xenpv.bus.handshake import (
    ABSENT,
    POLL_NS,
    REPEAT_NS,
    Do,
    Goal,
    Handshake,
    Seen,
    Table,
    parse_flag,
    parse_state,
)
from xenpv.bus.store import StoreInterface
from xenpv.errors import StoreError

FRONT = "/local/domain/1/device/test/0"
BACK = "/local/domain/0/backend/test/1/0"

TABLE: Table = {
    Goal.CLOSE: {
        S.INIT_WAIT: S.CLOSING,
        S.CLOSING: S.CLOSED,
        S.CLOSED: Do.DONE,
        ABSENT: Do.OFFLINE,
        S.UNKNOWN: Do.OFFLINE,
        S.RECONFIGURED: Do.FAIL,
    },
    (Goal.CLOSE, S.CLOSED): {S.INIT_WAIT: S.CLOSED},
    Goal.PREPARE: {S.CLOSED: Do.REOPEN, S.INIT_WAIT: Do.DONE},
    Goal.CONNECT: {S.INIT_WAIT: S.CONNECTED, S.CONNECTED: Do.DONE},
}


@attrs.define
class Driver:
    log: list[str] = attrs.field(factory=list)

    def before(self, goal: Goal) -> None:
        self.log.append(f"before {goal.value}")

    def reached(self, goal: Goal) -> None:
        self.log.append(f"reached {goal.value}")

    def failed(self, goal: Goal, seen: Seen) -> None:
        self.log.append(f"failed {goal.value} at {seen.name}")

    def offline(self) -> None:
        self.log.append("offline")


def start(
    world: World, state: str | None, goals: list[Goal], *, repeats: bool = False,
    ejects: bool = False,
) -> tuple[Handshake, Driver]:  # fmt: skip
    world.write(FRONT, "")
    world.chmod(FRONT, "n1", "r0")
    for key, value in {"backend": BACK, "backend-id": "0", "state": "1"}.items():
        world.write(f"{FRONT}/{key}", value)
    if state is not None:
        world.write(BACK, "")
        world.chmod(BACK, "n0", "r1")
        world.write(f"{BACK}/state", state)
        world.write(f"{BACK}/online", "1")
    _, store = world.bus_store()
    driver = Driver()
    walk = Handshake(
        domain=world.guest,
        store=store,
        path="device/test/0",
        table=TABLE,
        driver=driver,
        repeats=repeats,
        ejects=ejects,
    )
    walk.start(goals)
    world.loop.run()
    return walk, driver


def backend(world: World, state: S) -> str:
    world.write(f"{BACK}/state", str(int(state)))
    world.loop.run()
    return world.read(f"{FRONT}/state")


def test_each_backend_state_is_answered_by_the_table(world: World) -> None:
    _, driver = start(world, "2", [Goal.CLOSE, Goal.PREPARE, Goal.CONNECT])
    assert world.read(f"{FRONT}/state") == "5"
    assert backend(world, S.CLOSING) == "6"
    assert backend(world, S.CLOSED) == "1"
    assert backend(world, S.INIT_WAIT) == "4"
    assert backend(world, S.CONNECTED) == "4"
    assert driver.log == [
        "before close",
        "reached close",
        "before prepare",
        "reached prepare",
        "before connect",
        "reached connect",
    ]


def test_a_state_that_the_table_does_not_name_is_waited_out(world: World) -> None:
    _, driver = start(world, "3", [Goal.CONNECT])
    assert world.read(f"{FRONT}/state") == "1"
    assert backend(world, S.INIT_WAIT) == "4"
    assert driver.log == ["before connect"]


def test_failing_stops_the_walk(world: World) -> None:
    walk, driver = start(world, "8", [Goal.CLOSE, Goal.CONNECT])
    assert driver.log == ["before close", "failed close at RECONFIGURED"]
    assert backend(world, S.CLOSED) == "1"
    assert walk.goals == []


def test_an_absent_backend_is_offline(world: World) -> None:
    _, driver = start(world, None, [Goal.CLOSE])
    assert driver.log == ["before close", "offline", "reached close"]


GARBAGE = ["", "x", "0", "+", "\u0664", " -"]
NO_STATE = ["-1", "9", "99999999999999999999"]  # numbers, and in the table as RECONFIGURED


@pytest.mark.parametrize("text", GARBAGE)
def test_garbage_at_first_is_waited_out_for_120_s(world: World, text: str) -> None:
    _, driver = start(world, text, [Goal.CLOSE], repeats=True)
    world.loop.advance(REPEAT_NS - 1)
    assert driver.log == ["before close"]
    world.loop.advance(1)
    assert driver.log == ["before close", "offline", "reached close"]


@pytest.mark.parametrize("text", GARBAGE)
def test_garbage_later_is_acted_on_at_once(world: World, text: str) -> None:
    _, driver = start(world, "2", [Goal.CLOSE])
    world.write(f"{BACK}/state", text)
    world.loop.run()
    assert driver.log == ["before close", "offline", "reached close"]


@pytest.mark.parametrize("text", NO_STATE)
def test_a_number_that_is_no_state_is_one_that_nobody_uses(world: World, text: str) -> None:
    _, driver = start(world, text, [Goal.CLOSE])
    assert driver.log == ["before close", "failed close at RECONFIGURED"]


@pytest.mark.parametrize("text", ["2x", " 2", "02", "+2", "\t2 "])
def test_a_state_is_read_as_strtol_reads(world: World, text: str) -> None:
    start(world, text, [Goal.CLOSE])
    assert world.read(f"{FRONT}/state") == "5"


def test_what_was_written_may_change_the_row(world: World) -> None:
    start(world, "5", [Goal.CLOSE])
    assert world.read(f"{FRONT}/state") == "6"
    world.write(f"{FRONT}/state", "x")
    assert backend(world, S.INIT_WAIT) == "6"


def test_a_walk_begun_in_a_callback_is_the_only_one(world: World) -> None:
    class Restless(Driver):
        walk: Handshake

        def reached(self, goal: Goal) -> None:
            super().reached(goal)
            if goal is Goal.PREPARE:
                self.walk.start([Goal.CLOSE])

    walk, _ = start(world, "2", [])
    walk.driver = driver = Restless()
    driver.walk = walk
    walk.start([Goal.PREPARE, Goal.CONNECT])
    assert driver.log == ["before prepare", "reached prepare", "before close"]
    assert world.read(f"{FRONT}/state") == "5"


@pytest.mark.parametrize(("repeats", "log"), [
    (True, ["before connect", "reached connect"]),
    (False, ["before connect"]),
])  # fmt: skip
def test_without_a_watch_a_walk_that_repeats_reads_every_second(
    world: World, repeats: bool, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: StoreInterface, *_: object) -> None:
        raise StoreError("EQUOTA")

    monkeypatch.setattr(StoreInterface, "watch_add", refuse)
    _, driver = start(world, "2", [Goal.CONNECT], repeats=repeats)
    world.write(f"{BACK}/state", "4")
    world.loop.advance(POLL_NS)
    assert driver.log == log


def test_a_backend_that_moved_is_found_at_the_next_prepare(world: World) -> None:
    _, driver = start(world, "5", [Goal.CLOSE, Goal.PREPARE])
    other = BACK.replace("/0/backend", "/7/backend")
    world.write(f"{other}/state", "2")
    world.chmod(f"{other}/state", "n0", "r1")
    world.write(f"{FRONT}/backend", other)
    backend(world, S.CLOSED)
    assert driver.log[-1] == "reached prepare"


@pytest.mark.parametrize("domid", ["", "x", "-1", "1" * 70, "\u0661", "7 "])
def test_a_backend_id_that_is_none_is_0(world: World, domid: str) -> None:
    walk, _ = start(world, "1", [])
    world.write(f"{FRONT}/backend-id", domid)
    walk.unwatch()
    walk.start([Goal.PREPARE])
    assert walk.backend_domid == 0


def test_closed_written_to_an_offline_backend_ends_a_walk_that_ejects(world: World) -> None:
    _, driver = start(world, "2", [Goal.CLOSE, Goal.PREPARE], ejects=True)
    world.write(f"{BACK}/online", "0")
    assert backend(world, S.CLOSING) == "6"
    assert driver.log[1:] == ["offline", "reached close", "before prepare"]


def test_reopening_wants_a_backend_that_is_online(world: World) -> None:
    walk, driver = start(world, "6", [Goal.PREPARE])
    assert world.read(f"{FRONT}/state") == "1"
    world.write(f"{BACK}/online", "0")
    walk.start([Goal.PREPARE])
    assert driver.log[-2:] == ["offline", "failed prepare at CLOSED"]
    assert walk.goals == []


def test_an_unchanged_state_is_acted_on_again_after_120_s(world: World) -> None:
    _, _ = start(world, "2", [Goal.CLOSE], repeats=True)
    assert world.read(f"{FRONT}/state") == "5"
    world.write(f"{FRONT}/state", "1")
    world.loop.advance(REPEAT_NS - 1)
    assert world.read(f"{FRONT}/state") == "1"
    world.loop.advance(1)
    assert world.read(f"{FRONT}/state") == "5"


def test_a_frontend_directory_that_is_gone_is_not_written_again(world: World) -> None:
    _, _ = start(world, "2", [Goal.CLOSE])
    world.client.call(13, FRONT.encode() + b"\0")
    world.write(f"{BACK}/state", "5")
    world.loop.run()
    assert world.client.call(1, b"/local/domain/1/device/test\0") == b""


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", True), ("0", False), ("01", True), ("1x", True), ("10", True), ("2", False),
     ("", False), (None, False), ("junk", False), ("0x1", False)],
)  # fmt: skip
def test_flags_are_read_in_base_two(text: str | None, value: bool) -> None:
    assert parse_flag(text) is value


def test_states_are_decimal() -> None:
    assert [parse_state(str(n)) for n in range(9)] == list(S)
    assert parse_state("04") is S.CONNECTED
