from __future__ import annotations

import pytest

from tests.world import World
from xenpv.abi.hvm import HVM_PARAM
from xenpv.back.console import ConsoleDaemon
from xenpv.bus.console import ConsoleInterface
from xenpv.bus.evtchn import EvtchnInterface
from xenpv.xen.domain import CONSOLE_PFN


@pytest.fixture
def ends(world: World) -> tuple[ConsoleInterface, ConsoleDaemon]:
    port = world.guest.hvm_param(HVM_PARAM.CONSOLE_EVTCHN)
    daemon = ConsoleDaemon(world.dom0, world.back_store(), world.dispatcher)
    world.write("/local/domain/1/console/port", str(port))
    world.loop.run()
    return ConsoleInterface(world.guest, EvtchnInterface(world.guest), CONSOLE_PFN, port), daemon


def test_lines_reach_the_daemon_with_crlf_on_the_page(
    world: World, ends: tuple[ConsoleInterface, ConsoleDaemon]
) -> None:
    console, daemon = ends
    console.print("hello\n")
    assert world.guest.read(CONSOLE_PFN, 1024, 7) == b"hello\r\n"
    world.loop.run()
    assert daemon.consoles[1].text == "hello\n"
    assert world.read("/local/domain/1/console/tty") == "/dev/pts/1"


def test_more_than_the_ring_waits_for_room_and_arrives(
    world: World, ends: tuple[ConsoleInterface, ConsoleDaemon]
) -> None:
    console, daemon = ends
    text = "".join(f"{number:07d}\n" for number in range(2000))
    console.print(text)
    world.loop.run()
    assert daemon.consoles[1].text == text
    assert console.dropped == 0


def test_write_takes_what_fits(world: World, ends: tuple[ConsoleInterface, ConsoleDaemon]) -> None:
    del world
    console, _ = ends
    assert console.write(b"x" * 5000) == 2048
    assert console.write(b"y") == 0


def test_input_reaches_the_guest(
    world: World, ends: tuple[ConsoleInterface, ConsoleDaemon]
) -> None:
    console, daemon = ends
    daemon.consoles[1].type(b"login: root\r" * 200)
    world.loop.run()
    assert bytes(console.received) == b"login: root\r" * 200


def test_a_bad_index_breaks_the_console_and_nothing_else(
    world: World, ends: tuple[ConsoleInterface, ConsoleDaemon]
) -> None:
    console, daemon = ends
    world.guest.store32(CONSOLE_PFN, 3084, 0x10000)
    world.guest.evtchn.send(console.channel.port)
    world.loop.run()
    assert daemon.consoles[1].broken
    world.write("/fine", "1")


def test_what_was_printed_survives_the_guest(
    world: World, ends: tuple[ConsoleInterface, ConsoleDaemon]
) -> None:
    console, daemon = ends
    console.print("last words\n")
    world.hypervisor.destroy_domain(world.guest)
    world.loop.run()
    assert daemon.finished[1].text == "last words\n"
    assert world.hypervisor.dead == []
    assert world.dom0.gnttab.maptrack == {}


@pytest.mark.parametrize(
    "at",
    [1024 + 2048 + 4 * n for n in range(4)],
    ids=["in_cons", "in_prod", "out_cons", "out_prod"],
)
def test_indices_that_cannot_be_silence_the_console_and_nobody_else(
    world: World, ends: tuple[ConsoleInterface, ConsoleDaemon], at: int
) -> None:
    console, _ = ends
    world.guest.store32(CONSOLE_PFN, at, 0x7FFFFFFF)
    console.print("lost\n")
    world.dom0.evtchn.send(world.guest.evtchn.ports[console.channel.port].remote_port)
    console._event()
    console.print("lost too\n")
    assert "runs past the ring" in console.broken
    assert console.received == b""
