"""Log sinks: who gets which level, how long a line is, what is forwarded of DbgPrint."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.world import World, make
from xenpv.bus.console import ConsoleInterface
from xenpv.bus.evtchn import EvtchnInterface
from xenpv.bus.log import Log, LogLevel, levels_of, parse_levels
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.registry import Registry
from xenpv.bus.xenbus import XenBus
from xenpv.errors import LocalProtocolError
from xenpv.xen.domain import CONSOLE_PFN

XEN = "Services\\XEN\\Parameters"
XENBUS = "Services\\XENBUS\\Parameters"
TRACE, INFO, WARNING, ERROR, CRITICAL = 4, 8, 2, 1, 1 << 31


@pytest.fixture
def world() -> Iterator[World]:
    made = make()
    yield made
    made.hypervisor.close()


def test_levels_have_the_bits_of_dbgprint() -> None:
    assert {level.name: int(level) for level in LogLevel} == {
        "ERROR": 1, "WARNING": 2, "TRACE": 4, "INFO": 8, "CRITICAL": 0x8000_0000
    }  # fmt: skip


LEVELS = [
    (
        "all, in any case",
        ("trace", "Info", "WARNING", "error", "CritiCal"),
        TRACE | INFO | WARNING | ERROR | CRITICAL,
    ),
    ("twice", ("ERROR", "error"), ERROR),
    ("none", (), 0),
    ("unknown words are passed over", ("DEBUG", "INFO", "", "INFO "), INFO),
]


@pytest.mark.parametrize(
    ("names", "mask"), [row[1:] for row in LEVELS], ids=[row[0] for row in LEVELS]
)
def test_names_of_levels(names: tuple[str, ...], mask: int) -> None:
    assert parse_levels(names) == mask


PLACES = [
    ("xen", XEN, "XenLogLevel", CRITICAL),
    ("qemu", XEN, "QemuLogLevel", INFO | WARNING | ERROR | CRITICAL),
    ("console", XENBUS, "ConsoleLogLevel", 0),
]


@pytest.mark.parametrize(
    ("place", "path", "name", "default"), PLACES, ids=[row[0] for row in PLACES]
)
def test_a_place_s_levels_are_the_registry_s_or_the_default(
    place: str, path: str, name: str, default: int
) -> None:
    assert levels_of(Registry(), place) == default
    assert levels_of(Registry({path: {name: 3}}), place) == default  # of a wrong type
    assert levels_of(Registry({path: {name: ("warning",)}}), place) == WARNING
    assert levels_of(Registry({path: {name: ()}}), place) == 0


# level, whether it comes to Xen, QEMU and the PV console with the registry's defaults
DEFAULTS = [
    (TRACE, "none"),
    (INFO, "qemu"),
    (WARNING, "qemu"),
    (ERROR, "qemu"),
    (CRITICAL, "xen qemu"),
]


@pytest.mark.parametrize(("level", "places"), DEFAULTS)
def test_where_a_level_goes_by_default(world: World, level: int, places: str) -> None:
    qemu: list[bytes] = []
    log = Log(world.guest, Registry(), qemu=qemu.append)
    console = opened(world)
    log.add_console(console)
    log.printf(LogLevel(level), "xen|A: line\n")
    assert qemu == ([b"xen|A: line\n"] if "qemu" in places else [])
    assert world.hypervisor.console.of(1) == ("xen|A: line\n" if "xen" in places.split() else "")
    assert world.guest.load32(CONSOLE_PFN, 3084) == 0


def opened(world: World) -> ConsoleInterface:
    console = ConsoleInterface(world.guest, EvtchnInterface(world.guest), world.gnttab())
    console.acquire()
    return console


def test_the_pv_console_gets_crlf_while_it_is_added(world: World) -> None:
    log = Log(world.guest, Registry({XENBUS: {"ConsoleLogLevel": ("INFO",)}}))
    console = opened(world)
    log.add_console(console)
    log.add_console(console)  # a second D0 without a D3 between adds nothing
    log.printf(LogLevel.INFO, "one\n")
    log.remove_console()
    log.remove_console()
    log.printf(LogLevel.INFO, "two\n")
    assert world.guest.read(CONSOLE_PFN, 1024, 8) == b"one\r\n\0\0\0"


def test_a_linux_guest_s_lines_are_on_its_console_and_nowhere_else(world: World) -> None:
    qemu: list[bytes] = []
    log = Log(world.guest, Registry(), personality="linux", qemu=qemu.append)
    log.add_console(opened(world))
    log.printf(LogLevel.CRITICAL, "c\n")
    log.printf(LogLevel.TRACE, "t\n")
    log.dbg_print("no xen\n")
    assert (qemu, world.hypervisor.console.of(1)) == ([], "")
    assert world.guest.read(CONSOLE_PFN, 1024, 13) == b"c\r\nno xen\r\n\0\0"


LENGTHS = [
    ("255 and LF", "x" * 255 + "\n", b"x" * 255 + b"\n"),
    ("256 and LF: the LF stays", "x" * 256 + "\n", b"x" * 255 + b"\n"),
    ("300 and LF", "x" * 300 + "\n", b"x" * 255 + b"\n"),
    ("256 without LF", "x" * 256, b"x" * 256),
    ("257 without LF", "x" * 257, b"x" * 256),
    ("bytes count, not characters", "ü" * 200, "ü".encode() * 128),
    ("nothing", "", b""),
]


@pytest.mark.parametrize(
    ("text", "data"), [row[1:] for row in LENGTHS], ids=[row[0] for row in LENGTHS]
)
def test_a_line_has_at_most_256_characters(world: World, text: str, data: bytes) -> None:
    got: list[bytes] = []
    Log(world.guest, Registry(), qemu=got.append).printf(LogLevel.INFO, text)
    assert got == [data]


# DbgPrint text, level, what reaches a place with all levels
DBG_PRINT = [
    ("xen", "xenvif|FrontendConnect: fail1\n", ERROR, True),
    ("xen by itself", "xen", INFO, True),
    ("another driver's", "storport: reset\n", ERROR, False),
    ("case counts", "XEN|BUGCHECK\n", ERROR, False),
    ("a space before", " xen\n", ERROR, False),
    ("empty", "", INFO, False),
]


@pytest.mark.parametrize(
    ("text", "level", "forwarded"),
    [row[1:] for row in DBG_PRINT],
    ids=[row[0] for row in DBG_PRINT],
)
def test_of_dbgprint_only_what_starts_with_xen_is_forwarded(
    world: World, text: str, level: int, forwarded: bool
) -> None:
    got: list[bytes] = []
    Log(world.guest, Registry(), qemu=got.append).dbg_print(text, LogLevel(level))
    assert got == ([text.encode()] if forwarded else [])


@pytest.mark.parametrize(
    ("options", "forwarded"),
    [("", True), ("XEN:DBG_PRINT=ON", True), ("XEN:DBG_PRINT=OFF", False), ("XEN:DBG_PRINT=no", True),
     ("XEN:DBG_PRINT=ON XEN:DBG_PRINT=OFF", True), ("xen:dbg_print=OFF", True)],
)  # fmt: skip
def test_the_start_option_dbg_print(world: World, options: str, forwarded: bool) -> None:
    registry = Registry(
        {"Control": {"SystemStartOptions": options}, XEN: {"XenLogLevel": ("INFO",)}}
    )
    bus = XenBus(world.guest, {}, registry=registry)
    bus.logs.dbg_print("xen a\n")
    bus.log("xen b\n")
    assert world.hypervisor.console.of(1) == ("xen a\n" if forwarded else "") + "xen b\n"


def test_there_are_8_dispositions_and_a_mask_is_needed(world: World) -> None:
    log = Log(world.guest, Registry())
    assert len(log.dispositions) == 1  # Xen's
    made = [log.add_disposition(LogLevel.INFO, print) for _ in range(7)]
    with pytest.raises(NtStatusError) as caught:
        log.add_disposition(LogLevel.INFO, print)
    assert caught.value.status is NTSTATUS.UNSUCCESSFUL
    log.remove_disposition(made[3])
    with pytest.raises(LocalProtocolError, match="not installed"):
        log.remove_disposition(made[3])
    with pytest.raises(NtStatusError) as caught:
        log.add_disposition(LogLevel(0), print)
    assert caught.value.status is NTSTATUS.INVALID_PARAMETER
    log.add_disposition(LogLevel.INFO, print)


def test_an_empty_value_takes_a_place_away(world: World) -> None:
    log = Log(world.guest, Registry({XEN: {"XenLogLevel": (), "QemuLogLevel": ()}}), qemu=print)
    assert log.dispositions == []


def test_text_that_comes_while_the_log_is_busy_waits_in_32_slots(world: World) -> None:
    """A sink that itself calls DbgPrint, as a port driver with a trace of its own may."""
    got: list[bytes] = []

    def sink(data: bytes) -> None:
        got.append(data)
        if data == b"xen first\n":
            for number in range(40):
                log.dbg_print(f"xen {number}\n")

    log = Log(world.guest, Registry(), qemu=sink)
    log.printf(LogLevel.INFO, "xen first\n")
    assert got == [b"xen first\n", *(b"xen %d\n" % number for number in range(32))]
    assert log.dropped == 8


@given(st.lists(st.tuples(st.sampled_from(list(LogLevel)), st.integers(0, 15))))
def test_every_line_reaches_exactly_the_masks_that_have_its_level(
    lines: list[tuple[LogLevel, int]],
) -> None:
    world = make()
    masks = [LogLevel(bits | (bits & 1) << 31) for bits in (1, 2, 4, 8, 9, 15)]
    got: list[list[str]] = [[] for _ in masks]
    log = Log(world.guest, Registry({XEN: {"XenLogLevel": ()}}))
    for mask, into in zip(masks, got, strict=True):
        log.add_disposition(mask, lambda data, into=into: into.append(data.decode()))
    for level, number in lines:
        log.printf(level, str(number))
    for mask, into in zip(masks, got, strict=True):
        assert into == [str(number) for level, number in lines if int(level) & int(mask)]
    world.hypervisor.close()
