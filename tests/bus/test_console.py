"""CONSOLE v1 by its operations, the printer of log lines, and the daemon at the other end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.world import World, make
from xenpv.abi.hvm import HVM_PARAM
from xenpv.back.console import ConsoleDaemon
from xenpv.bus.console import ConsoleInterface, Wakeup
from xenpv.bus.evtchn import EvtchnInterface
from xenpv.bus.interface import query_interface
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.suspend import SuspendInterface, SuspendPhase
from xenpv.errors import LocalProtocolError
from xenpv.xen.domain import CONSOLE_PFN
from xenpv.xen.loop import Task

GUID = "04C4F738-034A-4268-BD20-A92AC90D4F82"
IN_CONS, IN_PROD, OUT_CONS, OUT_PROD = 3072, 3076, 3080, 3084

Ends = tuple[ConsoleInterface, ConsoleDaemon]


def opened(world: World) -> ConsoleInterface:
    console = ConsoleInterface(world.guest, EvtchnInterface(world.guest), world.gnttab())
    console.acquire()
    return console


@pytest.fixture
def ends(world: World) -> Ends:
    port = world.guest.hvm_param(HVM_PARAM.CONSOLE_EVTCHN)
    daemon = ConsoleDaemon(world.dom0, world.back_store(), world.dispatcher)
    world.write("/local/domain/1/console/port", str(port))
    world.loop.run()
    return opened(world), daemon


def port_of(console: ConsoleInterface) -> int:
    assert console.channel is not None
    return console.channel.port


# The printer


def test_lines_reach_the_daemon_with_crlf_on_the_page(world: World, ends: Ends) -> None:
    console, daemon = ends
    console.print("hello\n")
    assert world.guest.read(CONSOLE_PFN, 1024, 7) == b"hello\r\n"
    world.loop.run()
    assert daemon.consoles[1].text == "hello\n"
    assert world.read("/local/domain/1/console/tty") == "/dev/pts/1"


def test_more_than_the_ring_waits_for_room_and_arrives(world: World, ends: Ends) -> None:
    console, daemon = ends
    text = "".join(f"{number:07d}\n" for number in range(2000))
    console.print(text)
    world.loop.run()
    assert daemon.consoles[1].text == text
    assert console.dropped == 0


def test_of_too_much_the_oldest_is_dropped_and_counted(world: World) -> None:
    console = opened(world)
    console.print("x" * 2048)  # what the ring takes
    console.print("y" * 10 + "z" * 65536)
    assert console.dropped == 10


def test_a_bad_index_breaks_the_console_and_nothing_else(world: World, ends: Ends) -> None:
    console, daemon = ends
    world.guest.store32(CONSOLE_PFN, OUT_PROD, 0x10000)
    world.guest.evtchn.send(port_of(console))
    world.loop.run()
    assert daemon.consoles[1].broken
    world.write("/fine", "1")


def test_what_was_printed_survives_the_guest(world: World, ends: Ends) -> None:
    console, daemon = ends
    console.print("last words\n")
    world.hypervisor.destroy_domain(world.guest)
    world.loop.run()
    assert daemon.finished[1].text == "last words\n"
    assert world.hypervisor.dead == []
    assert world.dom0.gnttab.maptrack == {}


@pytest.mark.parametrize(
    "at", [IN_CONS, IN_PROD, OUT_CONS, OUT_PROD], ids=["in_cons", "in_prod", "out_cons", "out_prod"]
)
def test_indices_that_cannot_be_silence_the_console_and_nobody_else(
    world: World, ends: Ends, at: int
) -> None:
    console, _ = ends
    world.guest.store32(CONSOLE_PFN, at, 0x7FFFFFFF)
    console.print("lost\n")
    world.dom0.evtchn.send(world.guest.evtchn.ports[port_of(console)].remote_port)
    console.read()
    console.print("lost too\n")
    assert "runs past the ring" in console.broken
    assert (console.read(), console.write(b"x")) == (b"", 0)
    assert (console.can_read(), console.can_write()) == (False, False)


def test_a_page_that_is_gone_silences_the_console(world: World) -> None:
    console = opened(world)
    world.guest.memory.remove_from_physmap(world.guest.DOMID_SELF, CONSOLE_PFN)
    console.print("lost\n")
    assert "EFAULT" in console.broken


# CONSOLE v1: the page before, the operation, what it answers, the page's four indices after

BEFORE = {
    "empty": {},
    "3 bytes of input": {IN_PROD: 3},
    "input full": {IN_PROD: 1024},
    "no room": {OUT_PROD: 2048},
    "3 bytes of room": {OUT_PROD: 2045},
    "both wrapped": {IN_CONS: 0xFFFFFFFE, IN_PROD: 1, OUT_CONS: 0xFFFFF801, OUT_PROD: 0xFFFFFFFE},
    "input beyond": {IN_PROD: 1025},
    "output beyond": {OUT_PROD: 2049},
}
OPERATIONS = [
    ("empty", "can_read", (), False, (0, 0, 0, 0)),
    ("empty", "read", (10,), b"", (0, 0, 0, 0)),
    ("empty", "can_write", (), True, (0, 0, 0, 0)),
    ("empty", "write", (b"abc",), 3, (0, 0, 0, 3)),
    ("empty", "write", (b"",), 0, (0, 0, 0, 0)),
    ("empty", "write", (b"x" * 2049,), 2048, (0, 0, 0, 2048)),
    ("3 bytes of input", "can_read", (), True, (0, 3, 0, 0)),
    ("3 bytes of input", "read", (2,), b"\0\0", (2, 3, 0, 0)),
    ("3 bytes of input", "read", (10,), b"\0\0\0", (3, 3, 0, 0)),
    ("3 bytes of input", "read", (0,), b"", (0, 3, 0, 0)),
    ("input full", "can_read", (), True, (0, 1024, 0, 0)),
    ("input full", "read", (2000,), b"\0" * 1024, (1024, 1024, 0, 0)),
    ("no room", "can_write", (), False, (0, 0, 0, 2048)),
    ("no room", "write", (b"a",), 0, (0, 0, 0, 2048)),
    ("3 bytes of room", "can_write", (), True, (0, 0, 0, 2045)),
    ("3 bytes of room", "write", (b"abcd",), 3, (0, 0, 0, 2048)),
    ("both wrapped", "read", (10,), b"\0\0\0", (1, 1, 0xFFFFF801, 0xFFFFFFFE)),
    ("both wrapped", "write", (b"abcd",), 3, (0xFFFFFFFE, 1, 0xFFFFF801, 1)),
    ("input beyond", "can_read", (), False, (0, 1025, 0, 0)),
    ("input beyond", "read", (1,), b"", (0, 1025, 0, 0)),
    ("output beyond", "can_write", (), False, (0, 0, 0, 2049)),
    ("output beyond", "write", (b"a",), 0, (0, 0, 0, 2049)),
]


@pytest.mark.parametrize(
    ("before", "operation", "arguments", "answer", "after"),
    OPERATIONS,
    ids=[f"{row[0]}: {row[1]} {str(row[2])[:12]}" for row in OPERATIONS],
)
def test_an_operation_answers_and_moves(
    world: World,
    before: str,
    operation: str,
    arguments: tuple[object, ...],
    answer: object,
    after: tuple[int, ...],
) -> None:
    console = opened(world)
    version = query_interface([console], GUID, 1, 32 + 8 * 8)
    version.acquire()
    for at, value in BEFORE[before].items():
        world.guest.store32(CONSOLE_PFN, at, value)
    far = world.dom0.evtchn.bind_interdomain(1, port_of(console))
    world.loop.run()
    heard: list[int] = []
    world.dispatcher.bind(far, "daemon", lambda: heard.append(1))
    assert getattr(version, operation)(*arguments) == answer
    assert (
        tuple(world.guest.load32(CONSOLE_PFN, at) for at in (IN_CONS, IN_PROD, OUT_CONS, OUT_PROD))
        == after
    )
    world.loop.run()
    moved = operation in ("read", "write") and bool(answer)
    assert bool(heard) == moved  # the daemon is notified if anything moved, and only then


def test_a_short_structure_and_another_version_are_refused(world: World) -> None:
    console = opened(world)
    for version, size, status in (
        (1, 95, "BUFFER_OVERFLOW"),
        (2, 1000, "NOT_SUPPORTED"),
        (0, 1000, "NOT_SUPPORTED"),
    ):
        with pytest.raises(NtStatusError, match=status):
            query_interface([console], GUID, version, size)


def test_input_wakes_every_wakeup_and_is_read_by_who_wants(world: World, ends: Ends) -> None:
    console, daemon = ends
    got = bytearray()
    woken: list[str] = []

    def reader() -> None:
        woken.append("reader")
        while chunk := console.read(100):
            got.extend(chunk)

    one = console.wakeup_add(world.guest.task("reader", reader))
    two = console.wakeup_add(world.guest.task("other", lambda: woken.append("other")))
    daemon.consoles[1].type(b"login: root\r" * 200)
    world.loop.run()
    assert bytes(got) == b"login: root\r" * 200
    assert set(woken) == {"reader", "other"}
    console.wakeup_remove(two)
    woken.clear()
    daemon.consoles[1].type(b"x")
    world.loop.run()
    assert set(woken) == {"reader"}
    console.wakeup_remove(one)
    with pytest.raises(LocalProtocolError, match="there is no such wakeup"):
        console.wakeup_remove(one)


def test_wakeups_that_are_left_are_told_at_the_last_release(world: World) -> None:
    console = opened(world)
    console.wakeup_add(world.guest.task("xencons", lambda: None))
    with pytest.raises(
        LocalProtocolError, match="^CONSOLE is released with console wakeup of xencons$"
    ):
        console.release()
    assert (console.channel, console.wakeups) == (None, [])


# It is optional


def test_without_a_port_it_does_not_start(world: World) -> None:
    world.dom0.hvm.set_param(1, HVM_PARAM.CONSOLE_EVTCHN, 0)
    console = ConsoleInterface(world.guest, EvtchnInterface(world.guest), world.gnttab())
    with pytest.raises(NtStatusError) as caught:
        console.acquire()
    assert caught.value.status is NTSTATUS.UNSUCCESSFUL
    assert console.references == 0
    console.print("to nobody\n")
    assert (console.write(b"x"), console.read(), console.can_read(), console.can_write()) == (
        0,
        b"",
        False,
        False,
    )


# Suspend


def test_after_a_suspend_it_listens_on_the_new_port(world: World, ends: Ends) -> None:
    del ends
    suspend = SuspendInterface(world.guest)
    evtchn = EvtchnInterface(world.guest)
    console = ConsoleInterface(world.guest, evtchn, world.gnttab(), suspend)
    console.acquire()
    (late,) = suspend.callbacks(SuspendPhase.LATE)
    old = port_of(console)
    ran: list[int] = []
    console.wakeup_add(world.guest.task("xencons", lambda: ran.append(1)))
    fresh = world.guest.evtchn.alloc_unbound(0)
    world.dom0.hvm.set_param(1, HVM_PARAM.CONSOLE_EVTCHN, fresh)
    late.function()
    world.loop.run()
    assert (port_of(console), old != fresh) == (fresh, True)
    assert ran == [1]  # a poll follows
    console.print("again\n")
    far = world.dom0.evtchn.bind_interdomain(1, fresh)
    world.dom0.evtchn.send(far)
    world.loop.run()
    assert ran == [1, 1]
    console.wakeups.clear()
    console.release()
    assert (suspend.leftovers(), suspend.references) == ([], 0)


def test_a_new_domain_without_a_console_silences_it(world: World) -> None:
    console = opened(world)
    world.dom0.hvm.set_param(1, HVM_PARAM.CONSOLE_EVTCHN, 0)
    console.suspend_late()
    assert "there is no port" in console.broken
    console.print("lost\n")
    world.dom0.hvm.set_param(1, HVM_PARAM.CONSOLE_EVTCHN, 2)
    console.suspend_late()
    assert console.broken == ""


# Everything opened, used and closed in random order leaves nothing


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "remove", "write", "read", "acquire", "release"]),
            st.integers(0, 9),
        )
    )
)
def test_random_use_leaves_no_wakeup_and_no_port(steps: list[tuple[str, int]]) -> None:
    world = make()
    before = world.guest.evtchn.bound()
    evtchn = EvtchnInterface(world.guest)
    console = ConsoleInterface(world.guest, evtchn, world.gnttab())
    console.acquire()
    held: list[Wakeup] = []
    references = 1
    for step, number in steps:
        if step == "add":
            held.append(console.wakeup_add(Task(world.loop, 1, str(number), lambda: None)))
        elif step == "remove" and held:
            console.wakeup_remove(held.pop(number % len(held)))
        elif step == "write":
            console.write(b"x" * number)
        elif step == "read":
            console.read(number)
        elif step == "acquire":
            console.acquire()
            references += 1
        elif step == "release" and references > 1:
            console.release()
            references -= 1
    while held:
        console.wakeup_remove(held.pop())
    for _ in range(references):
        console.release()
    assert console.wakeups == []
    assert evtchn.channels() == []
    assert world.guest.evtchn.bound() == before
    world.hypervisor.close()
