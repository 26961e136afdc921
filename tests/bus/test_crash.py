"""Bug checks: what is latched, what the log says, what a spoilt guest still gets out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.world import World, make
from xenpv.bus.bugcodes import BugCode, Parameter, describe
from xenpv.bus.console import ConsoleInterface
from xenpv.bus.crash import Crash
from xenpv.bus.debug import DebugInterface
from xenpv.bus.evtchn import EvtchnInterface
from xenpv.bus.log import Log
from xenpv.bus.registry import Registry
from xenpv.xen.domain import CONSOLE_PFN

POWEROFF, REBOOT, SUSPEND, CRASH, WATCHDOG, SOFT_RESET = range(6)
ALL_LEVELS = ("TRACE", "INFO", "WARNING", "ERROR", "CRITICAL")


@pytest.fixture
def world() -> Iterator[World]:
    made = make()
    yield made
    made.hypervisor.close()


def crash_of(world: World, personality: str = "windows", registry: Registry | None = None) -> Crash:
    log = Log(world.guest, registry or Registry(), personality=personality)
    return Crash(world.guest, log, DebugInterface(log))


# The codes by number, name and what the log says of four parameters (Microsoft's reference)

CODES: list[tuple[int, tuple[Parameter, ...], list[str]]] = [
    (0x0A, (0x10, 2, 0, 0xFFFFF80000001000), [
        "IRQL_NOT_LESS_OR_EQUAL: 0000000000000010 0000000000000002 0000000000000000 FFFFF80000001000",
        "MEMORY REFERENCED: 0000000000000010", "             IRQL: 02",
        "           ACCESS: 00000000 (read)", "          ADDRESS: FFFFF80000001000"]),
    (0xD1, (0x10, 0xFF, 1, "xenvif + 1234"), [
        "DRIVER_IRQL_NOT_LESS_OR_EQUAL: 0000000000000010 00000000000000FF 0000000000000001 xenvif + 1234",
        "MEMORY REFERENCED: 0000000000000010", "             IRQL: FF",
        "           ACCESS: 00000001 (write)", "          ADDRESS: xenvif + 1234"]),
    (0xD1, (0, 0, 8, 0), [
        "DRIVER_IRQL_NOT_LESS_OR_EQUAL: 0000000000000000 0000000000000000 0000000000000008 0000000000000000",
        "MEMORY REFERENCED: 0000000000000000", "             IRQL: 00",
        "           ACCESS: 00000008 (execute)", "          ADDRESS: 0000000000000000"]),
    (0x1E, (0xC0000005, 0x1000, 0, 0), [
        "KMODE_EXCEPTION_NOT_HANDLED: 00000000C0000005 0000000000001000 0000000000000000 0000000000000000",
        "C0000005 AT 0000000000001000"]),
    (0x8E, (0xC0000005, "xenbus + 20", 0, 0), [
        "KERNEL_MODE_EXCEPTION_NOT_HANDLED: 00000000C0000005 xenbus + 20 0000000000000000 0000000000000000",
        "C0000005 AT xenbus + 20"]),
    (0x1000008E, (1, 2, 3, 4), [
        "KERNEL_MODE_EXCEPTION_NOT_HANDLED_M: 0000000000000001 0000000000000002 0000000000000003 0000000000000004",
        "00000001 AT 0000000000000002"]),
    (0x7E, (0xC0000005, 0x1000, 0x20, 0x30), [
        "SYSTEM_THREAD_EXCEPTION_NOT_HANDLED: 00000000C0000005 0000000000001000 0000000000000020 0000000000000030",
        "C0000005 AT 0000000000001000", "EXCEPTION: 0000000000000020", "CONTEXT: 0000000000000030"]),
    (0x1000007E, (1, 2, 3, 4), [
        "SYSTEM_THREAD_EXCEPTION_NOT_HANDLED_M: 0000000000000001 0000000000000002 0000000000000003 0000000000000004",
        "00000001 AT 0000000000000002", "EXCEPTION: 0000000000000003", "CONTEXT: 0000000000000004"]),
    (0x3B, (0xC0000005, 0x1000, 0x30, 0), [
        "SYSTEM_SERVICE_EXCEPTION: 00000000C0000005 0000000000001000 0000000000000030 0000000000000000",
        "C0000005 AT 0000000000001000", "CONTEXT: 0000000000000030"]),
    (0x50, (0x8000, 2, 0x1000, 0), [
        "PAGE_FAULT_IN_NONPAGED_AREA: 0000000000008000 0000000000000002 0000000000001000 0000000000000000",
        "MEMORY REFERENCED: 0000000000008000", "           ACCESS: 00000002 (write)",
        "          ADDRESS: 0000000000001000", "             TYPE: 00000000"]),
    (0x7B, ("\\ArcName\\multi(0)disk(0)rdisk(0)partition(1)", 0, 0, 0), [
        "INACCESSIBLE_BOOT_DEVICE: \\ArcName\\multi(0)disk(0)rdisk(0)partition(1) 0000000000000000 0000000000000000 0000000000000000",
        "BOOT DEVICE: \\ArcName\\multi(0)disk(0)rdisk(0)partition(1)"]),
    (0x9F, (1, 0x77, 0, 0), [
        "DRIVER_POWER_STATE_FAILURE: 0000000000000001 0000000000000077 0000000000000000 0000000000000000",
        "CODE: 00000001 (a device object with outstanding power IRPs is being freed)",
        "OUTSTANDING IRP (Device Object 0000000000000077)"]),
    (0x9F, (3, 0x77, 0x88, 0x99), [
        "DRIVER_POWER_STATE_FAILURE: 0000000000000003 0000000000000077 0000000000000088 0000000000000099",
        "CODE: 00000003 (a device object blocks an IRP for too long)",
        "OUTSTANDING IRP 0000000000000099 (Device Object 0000000000000077)"]),
    (0x9F, (4, 300, 0x88, 0), [
        "DRIVER_POWER_STATE_FAILURE: 0000000000000004 000000000000012C 0000000000000088 0000000000000000",
        "CODE: 00000004 (a power transition waits for the PnP subsystem)",
        "TIMEOUT: 0000012C seconds", "THREAD: 0000000000000088"]),
    (0x9F, (9, 0, 0, 0), [
        "DRIVER_POWER_STATE_FAILURE: 0000000000000009 0000000000000000 0000000000000000 0000000000000000",
        "CODE: 00000009"]),
    (0xEF, ("csrss.exe", 0, 0, 0), [
        "CRITICAL_PROCESS_DIED: csrss.exe 0000000000000000 0000000000000000 0000000000000000",
        "DIED: 00000000 (process)", "OBJECT: csrss.exe"]),
    (0xF4, (3, 0x55, "lsass.exe", "it ended"), [
        "CRITICAL_OBJECT_TERMINATION: 0000000000000003 0000000000000055 lsass.exe it ended",
        "TYPE: 00000003 (process)", "OBJECT: 0000000000000055", "NAME: lsass.exe", "REASON: it ended"]),
    (0x133, (0, 0x501, 0x500, 0), [
        "DPC_WATCHDOG_VIOLATION: 0000000000000000 0000000000000501 0000000000000500 0000000000000000",
        "TYPE: 00000000 (one DPC or ISR exceeded its time)", "TICKS: 00000501 OF 00000500"]),
    (0x133, (1, 0x1E00, 0, 0), [
        "DPC_WATCHDOG_VIOLATION: 0000000000000001 0000000000001E00 0000000000000000 0000000000000000",
        "TYPE: 00000001 (too long at DISPATCH_LEVEL or above)", "PERIOD: 00001E00"]),
    (0xDEAD, ("OUTSTANDING EVENT CHANNELS", "evtchn.c", 1234, 0), [
        "ASSERTION_FAILURE: OUTSTANDING EVENT CHANNELS evtchn.c 00000000000004D2 0000000000000000",
        "FILE: evtchn.c LINE: 1234", "TEXT: OUTSTANDING EVENT CHANNELS"]),
    (0xE2, (0, 0, 0, 0), [
        "MANUALLY_INITIATED_CRASH: 0000000000000000 0000000000000000 0000000000000000 0000000000000000"]),
    (0x80, (0x4F4454, 0, 0, 0), [
        "NMI_HARDWARE_FAILURE: 00000000004F4454 0000000000000000 0000000000000000 0000000000000000"]),
    (0xC2, (7, 0, 0, 0), [
        "000000C2: 0000000000000007 0000000000000000 0000000000000000 0000000000000000"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "parameters", "lines"), CODES, ids=[f"{row[0]:#x} {str(row[1])[:24]}" for row in CODES]
)
def test_a_code_and_its_parameters_in_the_log(
    code: int, parameters: tuple[Parameter, ...], lines: list[str]
) -> None:
    p1, p2, p3, p4 = parameters
    assert list(describe(code, p1, p2, p3, p4)) == lines


def test_every_named_code_is_in_the_table() -> None:
    assert {int(code) for code in BugCode} <= {row[0] for row in CODES}


# Who latched first wins: what comes before and after the crash, the code that Xen reports

LATCHING: list[tuple[str, Callable[[World, Crash], object], int, bool]] = [
    ("a crash", lambda w, c: c.bugcheck(0xE2), CRASH, True),
    (
        "poweroff latched before",
        lambda w, c: (w.guest.sched.shutdown_code(POWEROFF), c.bugcheck(0xE2)),
        POWEROFF,
        True,
    ),
    (
        "crash latched before",
        lambda w, c: (w.guest.sched.shutdown_code(CRASH), c.bugcheck(0xE2)),
        CRASH,
        True,
    ),
    (
        "the watchdog's latched before",
        lambda w, c: (w.guest.sched.shutdown_code(WATCHDOG), c.bugcheck(0xE2)),
        WATCHDOG,
        True,
    ),
    ("reboot after", lambda w, c: (c.bugcheck(0xE2), w.guest.sched.shutdown(REBOOT)), CRASH, True),
    (
        "poweroff latched after",
        lambda w, c: (c.bugcheck(0xE2), w.guest.sched.shutdown_code(POWEROFF)),
        CRASH,
        True,
    ),
    ("a second crash", lambda w, c: (c.bugcheck(0xE2), c.bugcheck(0x0A)), CRASH, True),
    (
        "it was going down already",
        lambda w, c: (w.guest.sched.shutdown(SOFT_RESET), c.bugcheck(0xE2)),
        SOFT_RESET,
        True,
    ),
    ("latched alone stops nothing", lambda w, c: w.guest.sched.shutdown_code(CRASH), CRASH, False),
]


@pytest.mark.parametrize(
    ("act", "code", "down"), [row[1:] for row in LATCHING], ids=[row[0] for row in LATCHING]
)
def test_the_first_code_wins(
    world: World, act: Callable[[World, Crash], object], code: int, down: bool
) -> None:
    act(world, crash_of(world))
    assert (world.guest.shutdown_code, world.guest.is_shutdown) == (code, down)


def test_the_reason_is_latched_before_anything_is_said(world: World) -> None:
    crash = crash_of(world)
    seen: list[tuple[int | None, bool]] = []
    crash.debug.register(
        "x", lambda crashing: seen.append((world.guest.shutdown_code, world.guest.is_shutdown))
    )
    crash.bugcheck(0xE2)
    assert seen == [(CRASH, False)]


def test_the_log_line_is_critical_and_on_xen_s_console(world: World) -> None:
    crash = crash_of(world)
    crash.bugcheck(0xC2, 1, 2, 3, 4)
    assert world.hypervisor.console.of(1) == (
        "xen|BUGCHECK: ====>\n"
        "xen|BUGCHECK: 000000C2: 0000000000000001 0000000000000002 0000000000000003 0000000000000004\n"
        "xen|BUGCHECK: <====\n"
    )
    assert (crash.crashed, crash.code, crash.parameters) == (True, 0xC2, (1, 2, 3, 4))


def test_only_the_first_bug_check_is_logged(world: World) -> None:
    crash = crash_of(world)
    crash.bugcheck(0xE2)
    before = world.hypervisor.console.of(1)
    crash.bugcheck(0x0A)
    assert world.hypervisor.console.of(1) == before
    assert crash.code == 0xE2


def test_debug_callbacks_run_with_crashing_set(world: World) -> None:
    registry = Registry({"Services\\XEN\\Parameters": {"XenLogLevel": ALL_LEVELS}})
    crash = crash_of(world, registry=registry)
    crash.debug.register("mine", lambda crashing: crash.debug.printf(f"crashing={crashing}"))
    crash.bugcheck(0xE2)
    assert world.hypervisor.console.of(1).endswith("xen|BUGCHECK: <====\nmine: crashing=True\n")


def test_a_bug_check_inside_a_debug_callback_ends_the_guest_all_the_same(world: World) -> None:
    crash = crash_of(world)
    crash.debug.register("bad", lambda crashing: crash.bug("cannot be", "ring.c", 7))
    crash.debug.trigger()
    assert world.guest.is_shutdown
    assert "xen|BUGCHECK: FILE: ring.c LINE: 7\n" in world.hypervisor.console.of(1)


def test_a_callback_that_fails_does_not_keep_the_guest_alive(world: World) -> None:
    crash = crash_of(world)
    crash.debug.register("bad", lambda crashing: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        crash.bugcheck(0xE2)
    assert (world.guest.is_shutdown, world.guest.shutdown_code) == (True, CRASH)


def test_an_impossible_state_is_a_bug_check_and_no_exception(world: World) -> None:
    crash = crash_of(world)
    crash.bug("OUTSTANDING CALLBACKS", "debug.c", 99)
    assert (crash.code, world.guest.shutdown_code) == (0xDEAD, CRASH)
    assert "xen|BUGCHECK: TEXT: OUTSTANDING CALLBACKS\n" in world.hypervisor.console.of(1)


@pytest.mark.parametrize("at", [3072, 3076, 3080, 3084])
def test_a_spoilt_console_ring_does_not_keep_the_crash_from_xen(world: World, at: int) -> None:
    registry = Registry({"Services\\XENBUS\\Parameters": {"ConsoleLogLevel": ("CRITICAL",)}})
    crash = crash_of(world, registry=registry)
    console = ConsoleInterface(world.guest, EvtchnInterface(world.guest), world.gnttab())
    console.acquire()
    crash.log.add_console(console)  # before Xen's disposition or after, both get every line
    world.guest.store32(CONSOLE_PFN, at, 0x7FFFFFFF)
    crash.bugcheck(0xE2)
    assert world.hypervisor.console.of(1).count("xen|BUGCHECK") == 3
    assert (world.guest.is_shutdown, world.guest.shutdown_code) == (True, CRASH)


def test_nothing_of_a_crashed_guest_runs_again(world: World) -> None:
    ran: list[str] = []
    crash = crash_of(world)

    def handler() -> None:
        crash.bugcheck(0xE2)
        other.wake()
        ran.append("the handler that crashed ends")

    other = world.guest.task("other", lambda: ran.append("other"))
    world.guest.task("handler", handler).wake()
    world.loop.run()
    assert ran == ["the handler that crashed ends"]


def test_a_linux_guest_panics_on_its_console(world: World) -> None:
    crash = crash_of(world, "linux")
    console = ConsoleInterface(world.guest, EvtchnInterface(world.guest), world.gnttab())
    console.acquire()
    crash.log.add_console(console)
    crash.bug("no way out", "manage.c", 3)
    text = world.guest.read(CONSOLE_PFN, 1024, 300).rstrip(b"\0").decode()
    assert text.startswith("Kernel panic - not syncing: ASSERTION_FAILURE: no way out manage.c ")
    assert "BUGCHECK" not in text
    assert (world.guest.is_shutdown, world.guest.shutdown_code) == (True, CRASH)
