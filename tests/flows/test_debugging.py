"""A guest that hangs, or crashes, and what its developer gets to see: from dom0, by the dump."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import pytest

from xenpv.abi.xenbus import XenbusState as State
from xenpv.back.xenbus import Device
from xenpv.errors import LocalProtocolError
from xenpv.host.image import MemoryImage
from xenpv.platform import Disk, Guest, Platform, Vif
from xenpv.testing.back_world import world_back
from xenpv.testing.raw_back import RawBlkBack, RawNetBack

CRASH, WATCHDOG = 3, 4
BOUND = ("device/vbd/51712", "device/vif/0")


class Stalled(RawBlkBack):
    """A block backend that answers its first request, takes the second, and looks no more."""

    taken = 0

    def event(self) -> None:
        if self.taken < 2:
            for request in self.sring.take():
                self.taken += 1
                if self.taken == 1:
                    self.answer(request, 0)


class Deaf(RawNetBack):
    """A network backend that takes nothing."""

    def event(self) -> None: ...


class Mute(RawNetBack):
    """A network backend that takes everything and answers nothing."""

    def receive(self, slots: deque[bytes]) -> None:
        slots.clear()


class Parked(RawNetBack):
    """A network backend that offers to be connected, and does not hear that it should close."""

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self.answers = {State.INITIALISING: State.INIT_WAIT}


def lines(text: str, start: str) -> list[str]:
    """The rest of each line that starts so."""
    return [line.removeprefix(start) for line in text.splitlines() if line.startswith(start)]


@pytest.fixture
def xen() -> Iterator[Platform]:
    with Platform(seed=3) as made:
        yield made


def booted(
    xen: Platform, *, vcpus: int = 1, options: str = "", personality: str = "windows"
) -> Guest:
    guest = xen.create(
        name="web",
        vcpus=vcpus,
        disks=[Disk(MemoryImage(bytearray(1 << 20)))],
        vifs=[Vif()],
        personality=personality,
    )
    if options:
        guest.registry.set("Control", "SystemStartOptions", options)
    return guest.start()


# A backend that stops


def test_a_dump_says_that_a_network_backend_takes_nothing() -> None:
    with world_back(vif=Deaf) as world:
        for _ in range(3):
            world.net.send(b"\xff" * 6 + world.net.mac + b"\x88\xb5" + bytes(46))
        world.run()
        tx = lines(world.guest.dump(), "xenvif|FRONTEND: device/vif/0: queue 0 tx: ")
        assert tx[2:4] == [
            "rsp_cons = 00000000, 6 of 256 in flight",  # headers and payload of each
            "6 not taken by the backend, 0 taken and not answered; 0 responses not taken by us",
        ]


def test_a_dump_says_that_a_network_backend_answers_nothing() -> None:
    with world_back(vif=Mute) as world:
        for _ in range(3):
            world.net.send(b"\xff" * 6 + world.net.mac + b"\x88\xb5" + bytes(46))
            world.run()
        tx = lines(world.guest.dump(), "xenvif|FRONTEND: device/vif/0: queue 0 tx: ")
        assert (
            tx[3]
            == "0 not taken by the backend, 6 taken and not answered; 0 responses not taken by us"
        )


def test_a_dump_names_the_requests_that_a_disk_waits_for() -> None:
    with world_back(vbd=Stalled) as world:
        world.disk.read(0, 1)
        for _ in range(3):
            with pytest.raises(LocalProtocolError, match="nothing is left to run, and 1 of 1"):
                world.disk.read(0, 1)
        ring = lines(world.guest.dump(), "xenvbd|FRONTEND: device/vbd/51712: ring 0: ")
        assert ring[1:] == [
            "req_prod = 00000004 req_event = 00000003",
            "rsp_prod = 00000001 rsp_event = 00000002",
            "rsp_cons = 00000001, 3 of 32 in flight",
            "2 not taken by the backend, 1 taken and not answered; 0 responses not taken by us",
            "SRB parts waiting 0, prepared 0, submitted 3",
            "- request 0x2 READ",
            "- request 0x3 READ",
            "- request 0x4 READ",
        ]


def test_a_dump_names_what_a_frontend_waits_for() -> None:
    """A backend parked in InitWait: a guest that closes before it connects never gets on."""
    with world_back(connect=False, vif=Parked) as world:
        world.boot()
        vif = lines(world.guest.dump(), "xenvif|FRONTEND: device/vif/0: ")
        back = f"/local/domain/0/backend/vif/{world.guest.domid}/0"
        assert vif[:5] == [
            "PREPARED, no link",
            f"state = CLOSING(5); backend {back} last seen INIT_WAIT(2)",
            "goals = close, prepare, connect",
            "waits for the backend to be one of ABSENT, UNKNOWN, CONNECTED, CLOSING, CLOSED",
        ]


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_a_healthy_guest_s_dump_has_every_section_and_nobody_waits(
    xen: Platform, personality: str
) -> None:
    guest = booted(xen, personality=personality)
    guest.disks[0].read(0, 8)
    text = guest.dump()
    prefixes = [line.split(": ", 1)[0] for line in text.splitlines()]
    assert list(dict.fromkeys(prefixes)) == [
        "xenbus|SUSPEND", "xenbus|RANGE_SET", "xenbus|EVTCHN", "xenbus|SHARED_INFO", "xenbus|CACHE",
        "xenbus|GNTTAB", "xenbus|STORE", "xenbus|CONSOLE", "xenbus|FDO",
        "xenvbd|FRONTEND", "xenvif|FRONTEND",
    ]  # fmt: skip
    assert "BROKEN" not in text
    assert "WRONG" not in text
    for device in BOUND:
        assert f"FRONTEND: {device}: no goal: it waits for nothing\n" in text
    assert "ring 0: 0 not taken by the backend, 0 taken and not answered" in text
    # The dump goes to the console too, but not before it has looked there.
    (out,) = lines(text, "xenbus|CONSOLE: out_cons = ")
    assert out.endswith("(0 not taken)")


def test_a_dump_changes_nothing_that_it_tells(xen: Platform) -> None:
    """But for the count of VIRQ_DEBUG, and what the log wrote to the console."""
    guest = booted(xen)
    first, second = guest.dump(), guest.dump()
    differ = [
        one.split(": ")[0]
        for one, two in zip(first.splitlines(), second.splitlines(), strict=True)
        if one != two
    ]
    assert set(differ) <= {"xenbus|EVTCHN", "xenbus|CONSOLE", "xenbus|FDO"}


def test_equal_platforms_have_equal_dumps() -> None:
    dumps = []
    for _ in range(2):
        with Platform(seed=5) as xen:
            dumps.append(booted(xen).dump())
    assert dumps[0] == dumps[1]


# From dom0


def test_debug_keys_reach_every_guest_and_return_xen_s_own_words(xen: Platform) -> None:
    one = booted(xen)
    two = xen.create(name="two").start()
    said = one.debug_keys()
    assert said.startswith("'q' pressed -> dump domain (and guest debug) info\n")
    assert "Notifying guest 1:0 (virq 1, port 3)\n" in said
    for guest in (one, two):
        assert guest.bus is not None
        assert guest.bus.debug.triggers == 1
        assert guest.console is not None
        assert "xenbus|FDO: VIRQ DEBUG: CPU = 0 Count = 1\n" in guest.console.text


def test_the_log_level_decides_what_of_a_dump_is_on_xen_s_console(xen: Platform) -> None:
    guest = xen.create(name="web")
    guest.registry.set("Services\\XEN\\Parameters", "XenLogLevel", ("INFO",))
    guest.start()
    assert "xenbus|" not in guest.xen_log
    text = guest.dump()
    assert text in guest.xen_log


def test_a_guest_s_own_console_level_is_kept(xen: Platform) -> None:
    guest = xen.create(name="web")
    guest.registry.set("Services\\XENBUS\\Parameters", "ConsoleLogLevel", ("CRITICAL",))
    guest.start()
    assert guest.console is not None
    assert guest.console.text == ""
    guest.crash()
    assert guest.console.text == guest.xen_log


def test_a_guest_that_takes_no_interrupt_is_read_from_outside(xen: Platform) -> None:
    guest = booted(xen)
    guest.created.domain.upcalls[0].hold()
    first, rest = guest.dump().split("\n", 1)
    assert first == "guest 'web' does not take VIRQ_DEBUG; from outside:"
    assert "xenbus|EVTCHN: - (0003) BY bus.virq + DebugVirq._event ACTIVE PENDING\n" in rest
    assert "xenvif|FRONTEND: device/vif/0: ENABLED, link\n" in rest
    guest.created.domain.upcalls[0].release()
    assert guest.dump().startswith("xenbus|SUSPEND")


def test_before_the_boot_and_after_the_end_there_is_little_to_say(xen: Platform) -> None:
    guest = xen.create(name="web")
    assert guest.dump() == "guest 'web' has not booted\n"
    guest.start()
    guest.destroy()
    assert guest.dump() == "guest 'web' is dead\n"


# Crashes


def test_a_crash_is_reason_3_and_in_xen_s_log(xen: Platform) -> None:
    guest = booted(xen)
    assert guest.crash(0x7B, "\\Device\\Harddisk0") == CRASH
    assert guest.xen_log == (
        "xen|BUGCHECK: ====>\n"
        "xen|BUGCHECK: INACCESSIBLE_BOOT_DEVICE: \\Device\\Harddisk0"
        " 0000000000000000 0000000000000000 0000000000000000\n"
        "xen|BUGCHECK: BOOT DEVICE: \\Device\\Harddisk0\n"
        "xen|BUGCHECK: <====\n"
    )
    assert not guest.running
    with pytest.raises(LocalProtocolError, match="guest 'web' does not run"):
        guest.crash()
    assert guest.bus is not None
    assert any(line.startswith("xenvbd|FRONTEND") for line in guest.bus.debug.last)
    dump = guest.dump()
    assert dump.startswith("guest 'web' does not take VIRQ_DEBUG; from outside:\n")
    guest.destroy()


def test_in_a_crash_no_memory_that_others_see_is_touched(xen: Platform) -> None:
    guest = booted(xen)
    assert guest.bus is not None
    guest.bus.logs.remove_console()  # the log writes to it all the same
    touched: list[int] = []
    xen.hypervisor.set_hook(lambda _actor, _kind, frame, *_: touched.append(frame))
    guest.bus.debug.trigger_crashing()
    crashing = guest.bus.debug.text
    assert touched == []
    guest.bus.debug.trigger()
    xen.hypervisor.set_hook(None)
    assert touched
    for name in ("req_prod", "out_cons", "rsp_cons", "MASKED"):
        assert name not in crashing


def test_a_linux_guest_s_crash_is_a_panic(xen: Platform) -> None:
    guest = booted(xen, personality="linux")
    assert guest.crash() == CRASH
    assert guest.xen_log == ""
    assert guest.console is not None
    assert "Kernel panic - not syncing: MANUALLY_INITIATED_CRASH: " in guest.console.text


def test_a_latched_reason_wins_over_the_crash(xen: Platform) -> None:
    guest = booted(xen)
    guest.created.domain.sched.shutdown_code(0)
    assert guest.crash() == 0


# The watchdog


@pytest.mark.parametrize("stalled", [0, 1])
def test_a_stalled_vcpu_ends_a_guest_with_a_watchdog(xen: Platform, stalled: int) -> None:
    guest = booted(xen, vcpus=2, options="XEN:WATCHDOG=10")
    domain = guest.created.domain
    xen.advance(60)
    assert guest.running
    domain.upcalls[stalled].hold()
    xen.advance(25)
    assert domain.shutdown_code == WATCHDOG


def test_without_the_option_a_stalled_vcpu_hangs_for_ever(xen: Platform) -> None:
    guest = booted(xen, vcpus=2)
    guest.created.domain.upcalls[1].hold()
    xen.advance(3600)
    assert guest.running


def test_a_guest_with_a_watchdog_shuts_down_cleanly(xen: Platform) -> None:
    guest = booted(xen, vcpus=2, options="XEN:WATCHDOG=10")
    assert guest.shutdown() == 0
