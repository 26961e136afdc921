"""Live migration that fails at any step and any message: who runs then, and that nothing leaks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.migration.hosts import Hosts, hosts, verify
from tests.migration.load import TRUSTED, Load
from xenpv import Guest
from xenpv.host.libxl import LIBXL, ToolstackError
from xenpv.migration.channel import Channel, Fault, Harm
from xenpv.migration.handover import ReceiveStep, SendStep
from xenpv.migration.migrate import Migration, MigrationFailed

# What the error says by whom the guest is run: by the source; by the destination, while the
# source's is suspended under its other name; by nobody, the source's being suspended so.
HERE, THERE, NOBODY = "here", "there", "nobody"
BY_HAND = {
    HERE: "",
    THERE: "error.source.destroy()",
    NOBODY: "error.source.rename('web'); error.source.resume()",
}


def by_hand(error: MigrationFailed) -> None:
    """What a person does who reads the error."""
    exec(error.by_hand, {"error": error})  # noqa: S102 - that it is Python is what is said of it


ROUNDS = ("round 1", "round 2", "round 3", "round 4", "round 5")


class Case:
    """Two hosts, an idle or a loaded guest, and a migration with faults."""

    def __init__(self, two: Hosts, *, loaded: bool) -> None:
        self.two = two
        self.load = Load(two.guest, memory=True) if loaded else None
        self.frames = 0
        if loaded:
            two.here.advance(0.005)

    def migrate(
        self,
        channel: Channel | None = None,
        on_step: Callable[[SendStep | ReceiveStep], object] | None = None,
    ) -> Migration:
        return Migration(
            self.two.guest,
            self.two.there,
            bandwidth=20_000_000,
            trusted=TRUSTED,
            channel=channel,
            on_step=on_step,
        )

    def settle(self, migration: Migration, runs: str) -> None:
        """Run it; it fails; who runs is as said; what is said to be done by hand works."""
        two = self.two
        with pytest.raises(MigrationFailed) as caught:
            migration.run()
        error = caught.value
        running = {HERE: [two.guest], THERE: [error.destination], NOBODY: []}[runs]
        assert two.running == running
        two.here.advance(120 if self.load is None else 0.02)
        assert two.running == running, "one went on by itself"
        assert error.by_hand == BY_HAND[runs]
        if error.by_hand:
            assert str(error).endswith(f"call {error.by_hand}")
            assert (two.guest.name, two.guest.domid) == ("web--migratedaway", 1)
            assert two.guest.created.domain.shutdown_code == 2
            by_hand(error)
        survivor = error.destination if runs == THERE else error.source
        assert survivor is not None
        assert two.running == [survivor]
        self.check(survivor)

    def check(self, survivor: Guest) -> None:
        two, load = self.two, self.load
        assert survivor.name == "web"
        assert survivor.unconnected == []
        if load is not None:
            if survivor is not two.guest:
                load = survivor.counterpart(load)
            before = load.ticks
            survivor.platform.advance(0.01)
            assert load.ticks >= before + 9
            load.stop()
            survivor.platform.run()
            load.check(two.image, (two.here, two.there))
            load.net.sender = None
            load.domain.forget(load.task)
        verify(survivor, two.image)
        two.check_no_leak(survivor)


# by step: who runs when it fails
STEPS: dict[SendStep | ReceiveStep, str] = {
    SendStep.BANNER: HERE,
    SendStep.HEADER: HERE,
    SendStep.LOG_DIRTY: HERE,
    SendStep.PRECOPY: HERE,
    SendStep.SUSPEND: HERE,
    SendStep.LAST_COPY: HERE,
    SendStep.CONTEXT: HERE,
    SendStep.READY: HERE,
    SendStep.RENAME: HERE,
    SendStep.GO: NOBODY,
    SendStep.REPORT: THERE,
    SendStep.STATUS: THERE,
    SendStep.DESTROY: THERE,
    ReceiveStep.BANNER: HERE,
    ReceiveStep.HEADER: HERE,
    ReceiveStep.CREATE: HERE,
    ReceiveStep.STREAM: HERE,
    ReceiveStep.REBUILD: HERE,
    ReceiveStep.READY: HERE,
    ReceiveStep.GO: HERE,
    ReceiveStep.RENAME: HERE,
    ReceiveStep.UNPAUSE: HERE,
    ReceiveStep.REPORT: THERE,
    ReceiveStep.STATUS: THERE,
}


def name_of(value: object) -> str:
    return (
        f"{type(value).__name__}.{value.name}" if isinstance(value, SendStep | ReceiveStep) else ""
    )  # type: ignore[attr-defined]  # of both enums


@pytest.mark.parametrize("loaded", [False, True], ids=["idle", "loaded"])
@pytest.mark.parametrize("step", STEPS, ids=name_of)
def test_a_step_fails(step: SendStep | ReceiveStep, loaded: bool) -> None:
    with hosts() as two:
        case = Case(two, loaded=loaded)

        def fail(now: SendStep | ReceiveStep) -> None:
            if now is step:
                raise ToolstackError(f"{step.name} is made to fail")

        case.settle(case.migrate(on_step=fail), STEPS[step])


def test_every_step_is_in_the_table() -> None:
    after_failures = {SendStep.GO_BACK, SendStep.RENAME_BACK, SendStep.RESUME}
    done = {SendStep.DONE, ReceiveStep.DONE}
    assert {*STEPS} == {*SendStep, *ReceiveStep} - after_failures - done


def test_the_table_of_the_page_is_this_one() -> None:
    text = (Path(__file__).parents[2] / "docs/reference/lifecycle.md").read_text(encoding="utf-8")
    ends = {"source": SendStep, "destination": ReceiveStep}
    who = {"source": HERE, "destination": THERE, "nobody": NOBODY}
    rows = re.findall(r"^\| ([A-Z_]+) \| (source|destination) \| (\w+) \|$", text, re.MULTILINE)
    assert {ends[end][name]: who[runs] for name, end, runs in rows} == STEPS
    assert len(rows) == len(STEPS)
    for runs in (THERE, NOBODY):
        assert f"`{BY_HAND[runs].replace('web', 'NAME')}`" in text


# by message: who runs when it does not arrive, arrives in part, or with a byte changed
MESSAGES: dict[str, tuple[str, str, str]] = {
    # to the destination
    "configuration": (HERE, HERE, HERE),
    "end of static data": (HERE, HERE, HERE),
    "round 1: domain": (HERE, HERE, HERE),
    "round 1": (HERE, HERE, HERE),
    "round 2: domain": (HERE, HERE, HERE),
    "round 3": (HERE, HERE, HERE),
    "round 5": (HERE, HERE, HERE),
    "last copy: domain": (HERE, HERE, HERE),
    "last copy": (HERE, HERE, HERE),
    "guest context": (HERE, HERE, HERE),
    "end": (HERE, HERE, HERE),
    "go": (NOBODY, NOBODY, HERE),
    # to the source
    "banner": (HERE, HERE, HERE),
    "ready": (HERE, HERE, HERE),
    "report": (THERE, THERE, THERE),
    "status": (THERE, THERE, THERE),
}
TO_SOURCE = ("banner", "ready", "report", "status")
ONLY_LOADED = ("round 2: domain", "round 3", "round 5")
IDLE_ORDER = [
    "configuration", "end of static data", "round 1: domain", "round 1", "last copy: domain",
    "last copy", "guest context", "end", "go",
]  # fmt: skip
LOADED_ORDER = [
    *IDLE_ORDER[:2],
    *(name for one in ROUNDS for name in (f"{one}: domain", one)),
    *IDLE_ORDER[4:],
]
HARMS = (Harm.CUT, Harm.TRUNCATE, Harm.CORRUPT)


def test_the_messages_are_these() -> None:
    for loaded, order in ((False, IDLE_ORDER), (True, LOADED_ORDER)):
        with hosts() as two:
            migration = Case(two, loaded=loaded).migrate()
            migration.run()
            sent = [name for name, _ in migration.channel.to_destination.messages]
            assert sent == order
            back = [name for name, _ in migration.channel.to_source.messages]
            assert back == list(TO_SOURCE)
            assert {*MESSAGES} <= {*LOADED_ORDER, *TO_SOURCE}


def faulty(two: Hosts, message: str, loaded: bool, fault: Callable[[int], Fault]) -> Channel:
    if message in TO_SOURCE:
        return Channel(two.here.loop, to_source=[fault(TO_SOURCE.index(message))])
    order = LOADED_ORDER if loaded else IDLE_ORDER
    return Channel(two.here.loop, to_destination=[fault(order.index(message))])


def cases() -> list[tuple[str, bool]]:
    return [
        (name, loaded)
        for name in MESSAGES
        for loaded in (False, True)
        if loaded or name not in ONLY_LOADED
    ]


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize(("message", "loaded"), cases())
def test_a_message_is_harmed(message: str, loaded: bool, harm: Harm) -> None:
    with hosts() as two:
        case = Case(two, loaded=loaded)
        channel = faulty(two, message, loaded, lambda index: Fault(index, harm))
        case.settle(case.migrate(channel), MESSAGES[message][HARMS.index(harm)])


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("message", ["configuration", "round 1", "go", "ready", "report"])
def test_a_message_is_harmed_at_its_first_bytes(message: str, at: int) -> None:
    for harm, runs in zip(HARMS[1:], MESSAGES[message][1:], strict=True):
        with hosts() as two:
            case = Case(two, loaded=False)
            channel = faulty(two, message, False, lambda index, h=harm: Fault(index, h, at))
            case.settle(case.migrate(channel), runs)


@pytest.mark.parametrize(("message", "loaded"), cases())
def test_a_message_that_is_late_is_waited_for(message: str, loaded: bool) -> None:
    with hosts() as two:
        case = Case(two, loaded=loaded)
        channel = faulty(
            two, message, loaded, lambda index: Fault(index, Harm.DELAY, delay_ns=90_000_000)
        )
        moved = case.migrate(channel).run()
        assert two.running == [moved]
        case.check(moved)


# the destination cannot unpause it, and then one of its last messages is harmed as well
LAST_WORDS = {
    "report": (NOBODY, NOBODY, NOBODY),
    "status": (NOBODY, NOBODY, HERE),
    "go, back": (NOBODY, NOBODY, NOBODY),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("message", LAST_WORDS)
def test_the_destination_fails_and_cannot_say_so(message: str, harm: Harm) -> None:
    with hosts() as two:
        case = Case(two, loaded=False)

        def fail(now: SendStep | ReceiveStep) -> None:
            if now is ReceiveStep.UNPAUSE:
                raise ToolstackError("it is made to fail")

        at = 2 + list(LAST_WORDS).index(message)
        channel = Channel(two.here.loop, to_source=[Fault(at, harm)])
        runs = LAST_WORDS[message][HARMS.index(harm)]
        case.settle(case.migrate(channel, fail), runs)


def test_a_status_that_lies_does_not_cost_the_only_copy() -> None:
    with hosts() as two:
        case = Case(two, loaded=False)

        def fail(now: SendStep | ReceiveStep) -> None:
            if now is ReceiveStep.UNPAUSE:
                raise ToolstackError("it is made to fail", LIBXL.FAIL)  # status 3

        migration = case.migrate(on_step=fail)
        pipe = migration.channel.to_source
        write = pipe.write
        pipe.write = lambda name, data: write(name, b"\0" if name == "status" else data)  # type: ignore[method-assign]  # the byte is changed to 0 on its way
        case.settle(migration, NOBODY)


def test_its_names_are_taken_back_though_renaming_back_fails() -> None:
    with hosts() as two:

        def fail(now: SendStep | ReceiveStep) -> None:
            if now in (ReceiveStep.UNPAUSE, SendStep.RENAME_BACK):
                raise ToolstackError("it is made to fail")

        with pytest.raises(MigrationFailed, match="could not unpause it: status 3"):
            Case(two, loaded=False).migrate(on_step=fail).run()
        assert two.running == [two.guest]
        assert two.guest.name == "web--migratedaway"  # xl resumes it all the same


def test_a_resume_that_fails_is_left_to_a_person() -> None:
    with hosts() as two:

        def fail(now: SendStep | ReceiveStep) -> None:
            if now in (SendStep.READY, SendStep.RESUME):
                raise ToolstackError("it is made to fail")

        with pytest.raises(MigrationFailed) as caught:
            Case(two, loaded=False).migrate(on_step=fail).run()
        assert two.running == []
        assert caught.value.by_hand == "error.source.resume()"
        by_hand(caught.value)
        assert two.running == [two.guest]
        verify(two.guest, two.image)
