"""XENBUS itself: what it takes on its way up, in which order; classes, names, driver keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import attrs
import pytest

from tests.world import World, make
from xenpv.abi.xs import XS
from xenpv.bus import classes
from xenpv.bus.console import ConsoleInterface
from xenpv.bus.devicetree import Irp
from xenpv.bus.evtchn import ChannelType
from xenpv.bus.interface import Interface
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.pdo import BUS_INTERFACE_STANDARD, BusInterface, Pdo
from xenpv.bus.pnpstate import PnpState
from xenpv.bus.registry import Registry
from xenpv.bus.store import StoreInterface
from xenpv.bus.xenbus import XenBus
from xenpv.errors import LocalProtocolError

HOME = "/local/domain/1"
OURS = "Xen_Project XENBUS 9.1.0.0 "


@pytest.fixture
def world() -> Iterator[World]:
    made = make()
    for path in ("device", "drivers"):
        made.write(f"{HOME}/{path}", "")
    made.chmod(f"{HOME}/drivers", "n1")
    for key in ("shutdown", "feature-suspend"):
        made.write(f"{HOME}/control/{key}", "")
        made.chmod(f"{HOME}/control/{key}", "n1")
    yield made
    made.hypervisor.close()


class Stub(Interface):
    """An interface that says when it is started and stopped."""

    OPERATIONS: ClassVar = {1: ()}

    def __init__(self, name: str, log: list[str]) -> None:
        self.NAME = name  # type: ignore[misc]  # one class for all of them
        self.log = log

    def _start(self) -> None:
        self.log.append(f"+{self.NAME}")

    def _stop(self) -> None:
        self.log.append(f"-{self.NAME}")


class Debug(Stub):
    """DEBUG: its callbacks are of no interest here."""

    def register(self, prefix: str, *_: object) -> object:
        return prefix

    def deregister(self, handle: object) -> None: ...


class Suspend(Stub):
    """SUSPEND without a domain that sleeps: `trigger` runs the callbacks."""

    def __init__(self, log: list[str]) -> None:
        super().__init__("suspend", log)
        self.callbacks: list[tuple[int, Callable[[], object], str]] = []
        self.triggered = 0

    def register(
        self, phase: int, callback: Callable[[], object], owner: str = ""
    ) -> tuple[int, Callable[[], object], str]:
        self.callbacks.append((phase, callback, owner))
        self.log.append(f"+{('early', 'late')[phase - 1]} {owner}")
        return self.callbacks[-1]

    def deregister(self, handle: tuple[int, Callable[[], object], str]) -> None:
        self.callbacks.remove(handle)
        self.log.append(f"-{('early', 'late')[handle[0] - 1]} {handle[2]}")

    def trigger(self) -> None:
        self.triggered += 1

    def resume(self) -> None:
        for phase in (1, 2):
            for which, callback, _ in list(self.callbacks):
                if which == phase:
                    callback()


class Balloon(Stub):
    is_active = False

    def get_size(self) -> int:
        return 0


@attrs.define(eq=False)
class Sink:
    """What the guest writes, removes and watches, and what VIRQs it binds."""

    log: list[str]

    def store_op(
        self, conn_domid: int, op: int, _tx_id: int, payload: bytes, error: bytes | None
    ) -> None:
        path, _, value = payload.rstrip(b"\0").partition(b"\0")
        text = path.decode()
        failed = f" {error.decode()}" if error is not None else ""
        if conn_domid and op == XS.WRITE:
            self.log.append(f"{text}={value.decode()}{failed}")
        elif conn_domid and op == XS.RM:
            self.log.append(f"rm {text}{failed}")
        elif conn_domid and op in (XS.WATCH, XS.UNWATCH):
            self.log.append(f"{'+' if op == XS.WATCH else '-'}watch {text}")


def bus(world: World, log: list[str], **options: object) -> XenBus:
    """With stubs for the interfaces that it has not made itself, and their starts in the log."""
    on = XenBus(world.guest, {}, **options)  # type: ignore[arg-type]  # registry, personality
    on.range_set = Stub("range_set", log)  # type: ignore[attr-defined]  # stands for RANGE_SET
    on.debug = Debug("debug", log)  # type: ignore[assignment]  # stands for DEBUG
    on.suspend = Suspend(log)  # type: ignore[attr-defined]  # stands for SUSPEND
    on.balloon = Balloon("balloon", log)  # type: ignore[attr-defined]  # stands for BALLOON
    open_virq, close = on.evtchn.open_virq, on.evtchn.close

    def opened(virq: int, callback: Callable[[], object], *, vcpu: int = 0) -> object:
        log.append(f"+virq {virq}")
        return open_virq(virq, callback, vcpu=vcpu)

    def closed(channel: object) -> None:
        if channel.type is ChannelType.VIRQ:  # type: ignore[attr-defined]  # a Channel
            log.append("-virq")
        close(channel)  # type: ignore[arg-type]  # passed through

    on.evtchn.open_virq = opened  # type: ignore[assignment,method-assign]  # a recorder
    on.evtchn.close = closed  # type: ignore[method-assign]  # a recorder
    world.server.trace = Sink(log)
    return on


INNER_UP = [
    f"drivers/0={OURS}",
    "+virq 1",
    "+watch device",
    "+watch control/shutdown",
    "control/feature-suspend=1",
    "control/feature-balloon=1 EACCES",  # libxl does not make that key
]
INNER_DOWN = [
    "rm control/feature-balloon EACCES",
    "rm control/feature-suspend",
    "-watch control/shutdown",
    "-watch device",
    "-virq",
    "rm drivers/0",
]
UP = ["+debug", "+suspend", "+range_set", "+balloon", *INNER_UP, "+late XENBUS"]
DOWN = ["-late XENBUS", *INNER_DOWN, "-balloon", "-range_set", "-suspend", "-debug"]


def test_d3_to_d0_and_back_are_the_same_steps(world: World) -> None:
    log: list[str] = []
    on = bus(world, log)
    on.power.up()
    assert log == UP
    log.clear()
    on.power.down()
    # A key of `control` that the guest owns may be removed by it nevertheless.
    assert log == DOWN


def test_a_migration_does_the_inner_steps_again(world: World) -> None:
    log: list[str] = []
    on = bus(world, log)
    on.start()
    log.clear()
    on.suspend.resume()  # type: ignore[attr-defined]  # the stub
    # The removed key cannot be made again under libxl's read-only `control`.
    again = [*INNER_UP[:4], "control/feature-suspend=1 EACCES", INNER_UP[5]]
    assert log == [*INNER_DOWN, *again]


def test_a_step_that_fails_at_a_resume_does_not_take_the_others_along(world: World) -> None:
    log: list[str] = []
    on = bus(world, log)
    on.start()
    (channel,) = [one for one in on.evtchn.channels() if one.type.name == "VIRQ"]
    on.evtchn.close(channel)
    world.guest.evtchn.bind_virq(1, 0)  # as where the old channel is bound still
    log.clear()
    on.suspend.resume()  # type: ignore[attr-defined]  # the stub
    assert "EEXIST" in on.problem
    again = [one for one in log if one[0] == "+" or "=" in one]
    assert again == [INNER_UP[0], "+virq 1", "+watch device", "+watch control/shutdown",
                     "control/feature-suspend=1 EACCES", INNER_UP[5]]  # fmt: skip


@pytest.mark.parametrize("broken", ["device", "control/shutdown", "virq"])
def test_what_cannot_be_taken_is_given_back(
    world: World, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    on = bus(world, log)
    if broken == "virq":
        world.guest.evtchn.bind_virq(1, 0)  # somebody has it: EEXIST
    add = StoreInterface.watch_add

    def refuse(self: StoreInterface, path: str, *rest: object) -> object:
        return add(self, "x" * 5000 if path == broken else path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(StoreInterface, "watch_add", refuse)
    status = on.start()
    assert status in (NTSTATUS.INVALID_PARAMETER, NTSTATUS.OBJECTID_EXISTS, NTSTATUS.UNSUCCESSFUL)
    assert (on.state, on.power.is_d0) == (PnpState.ADDED, False)
    assert on.problem
    assert sorted(one[1:] for one in log if one[:1] == "+" and "watch" not in one) == sorted(
        one[1:] if "virq" not in one else "virq 1"
        for one in log
        if one[:1] == "-" and "watch" not in one
    ) + (["virq 1"] if broken == "virq" else [])
    assert on.store.watches() == []
    assert world.client.call(XS.DIRECTORY, f"{HOME}/drivers".encode() + b"\0") == b""
    monkeypatch.undo()
    if broken != "virq":
        assert on.start() is NTSTATUS.SUCCESS


@pytest.mark.parametrize(("value", "left", "triggers"), [
    ("suspend", "", 1), ("poweroff", "poweroff", 0), ("s3", "s3", 0), ("Suspend", "Suspend", 0),
    ("suspend ", "suspend ", 0), ("", "", 0),
])  # fmt: skip
def test_suspend_is_acknowledged_and_nothing_else(
    world: World, value: str, left: str, triggers: int
) -> None:
    on = bus(world, [])
    on.start()
    world.write(f"{HOME}/control/shutdown", value)
    world.loop.run()
    assert world.read(f"{HOME}/control/shutdown") == left
    assert on.suspend.triggered == triggers  # type: ignore[attr-defined]  # the stub


def test_a_suspend_waits_for_the_balloon(world: World) -> None:
    on = bus(world, [])
    on.start()
    on.balloon.is_active = True  # type: ignore[attr-defined]  # the stub
    world.write(f"{HOME}/control/shutdown", "suspend")
    world.loop.run()
    assert world.read(f"{HOME}/control/shutdown") == "suspend"
    on.balloon.is_active = False  # type: ignore[attr-defined]  # the stub
    on.power.look_for_suspend()
    world.loop.run()
    assert world.read(f"{HOME}/control/shutdown") == ""
    assert on.suspend.triggered == 1  # type: ignore[attr-defined]  # the stub


def test_a_linux_guest_advertises_nothing_here(world: World) -> None:
    log: list[str] = []
    on = bus(world, log, personality="linux")
    on.power.up()
    assert [one for one in log if "=" in one or "watch" in one] == ["+watch device"]
    on.power.down()


@pytest.mark.parametrize("holder", ["suspend", "balloon"])
def test_hibernating_with_something_held_is_a_bugcheck(world: World, holder: str) -> None:
    on = bus(world, [])
    on.start()
    world.loop.run()
    with pytest.raises(LocalProtocolError, match="S4 is entered with"):
        on.hibernate()
    assert on.sleep() is NTSTATUS.SUCCESS
    on.hibernate()
    getattr(on, holder).acquire()
    with pytest.raises(LocalProtocolError, match=f"S4 is entered with {holder} held"):
        on.hibernate()
    assert on.wake() is NTSTATUS.SUCCESS
    assert on.is_running


@pytest.mark.parametrize("irp", [Irp.STOP_DEVICE, Irp.REMOVE_DEVICE])
def test_what_was_stopped_in_its_sleep_does_not_wake(world: World, irp: Irp) -> None:
    on = bus(world, [])
    on.start()
    world.loop.run()
    on.sleep()
    on.request(irp)
    on.wake()
    assert (on.power.is_d0, on.store.watches()) == (False, [])


class Leaky(Stub):
    def leftovers(self) -> list[str]:
        return ["a channel"]


def test_what_is_left_open_is_an_error_at_a_stop_and_none_at_power_off(world: World) -> None:
    log: list[str] = []
    on = bus(world, log)
    on.range_set = Leaky("range_set", log)  # type: ignore[attr-defined]  # stands for RANGE_SET
    on.start()
    with pytest.raises(LocalProtocolError, match="range_set is released with a channel"):
        on.request(Irp.STOP_DEVICE)
    assert log[-4:] == ["-balloon", "-range_set", "-suspend", "-debug"]
    on.start()
    on.power_off(0)
    world.loop.run()
    assert log[-4:] == ["-balloon", "-range_set", "-suspend", "-debug"]
    assert world.guest.shutdown_code == 0


# driver keys

ENTRIES = [
    # what is there, where ours goes, what is left when it is cleared
    ({}, "0", {}),
    ({"0": "x", "1": "x"}, "2", {"0": "x", "1": "x"}),
    ({"1": "x"}, "0", {"1": "x"}),
    ({"0": "Xen_Project XENVIF 9.1.0.0 "}, "1", {"0": "Xen_Project XENVIF 9.1.0.0 "}),
    ({"0": "Xen_Project xenbus 8.2.0.0 (DEBUG)", "1": "x"}, "2", {"1": "x"}),
    ({"0": "Xen_Project_Plus XENBUS 1 "}, "1", {}),
    ({"0": "Xen XENBUS 9.1.0.0 "}, "1", {"0": "Xen XENBUS 9.1.0.0 "}),
    ({"0": "Xen_Project", "1": "", "2": "Xen_Project  XENBUS"}, "3",
     {"0": "Xen_Project", "1": "", "2": "Xen_Project  XENBUS"}),
    ({str(n): "x" for n in range(255)}, "255", {str(n): "x" for n in range(255)}),
    ({str(n): "x" for n in range(256)}, None, {str(n): "x" for n in range(256)}),
]  # fmt: skip


@pytest.mark.parametrize(("there", "ours", "left"), ENTRIES)
def test_driver_keys(
    world: World, there: dict[str, str], ours: str | None, left: dict[str, str]
) -> None:
    for name, value in there.items():
        world.write(f"{HOME}/drivers/{name}", value)
    on = XenBus(world.guest, {})
    assert on.claim_driver_key("XENBUS") == (None if ours is None else f"drivers/{ours}")
    if ours is not None:
        assert world.read(f"{HOME}/drivers/{ours}") == OURS
    on.clear_driver_key("XENBUS")
    names = world.client.call(XS.DIRECTORY, f"{HOME}/drivers".encode() + b"\0").split(b"\0")[:-1]
    assert {name.decode(): world.read(f"{HOME}/drivers/{name.decode()}") for name in names} == left


def test_an_entry_that_may_not_be_read_is_not_skipped(world: World) -> None:
    world.write(f"{HOME}/drivers/0", "x")
    world.chmod(f"{HOME}/drivers/0", "n0")
    assert XenBus(world.guest, {}).claim_driver_key("XENBUS") is None
    names = world.client.call(XS.DIRECTORY, f"{HOME}/drivers".encode() + b"\0")
    assert names == b"0\0"


def test_a_directory_that_may_not_be_written_is_left_alone(world: World) -> None:
    world.chmod(f"{HOME}/drivers", "n0", "r1")
    on = XenBus(world.guest, {})
    assert on.claim_driver_key("XENBUS") is None
    assert on.start() is NTSTATUS.SUCCESS


# classes

CLASSES = [
    # in `device`, supported, synthetic (None: no such value), the classes that get a PDO
    ((), ("VIF", "IFACE", "CONS"), ("IFACE", "CONS"), ["IFACE", "CONS"]),
    (("vif",), ("VIF",), (), ["VIF"]),
    (("vif", "vbd"), ("VBD",), (), ["VBD"]),
    (("v",), ("VIF", "VBD"), (), []),  # the driver's test would call it VIF
    (("vifx", "vi"), ("VIF",), (), []),
    (("vif", "ViF", "VIF"), ("VIF",), (), ["VIF"]),
    (("suspend", "vkbd"), ("VIF", "VKBD"), (), ["VKBD"]),
    (("vif",), ("vif",), (), []),  # the names of `device` are upper-cased, those here are not
    ((), ("IFACE", "iface"), ("iface",), ["iface"]),
    (("iface",), ("IFACE",), ("IFACE",), ["IFACE"]),
    ((), ("VIF",), ("IFACE",), []),
    (("vif",), None, ("IFACE",), []),
    (("vif",), ("VIF", "IFACE"), None, ["VIF"]),
]


@pytest.mark.parametrize(("names", "supported", "synthetic", "wanted"), CLASSES)
def test_classes(
    world: World,
    names: tuple[str, ...],
    supported: tuple[str, ...] | None,
    synthetic: tuple[str, ...] | None,
    wanted: list[str],
) -> None:
    registry = Registry()
    registry.create(classes.PARAMETERS)
    for name, value in (("SupportedClasses", supported), ("SyntheticClasses", synthetic)):
        if value is not None:
            registry.set(classes.PARAMETERS, name, value)
    for name in names:
        world.write(f"{HOME}/device/{name}/0/state", "1")
    on = XenBus(world.guest, {}, registry=registry)
    on.start()
    world.loop.run()
    assert list(on.pdos) == wanted


def test_enumerate_0_finds_nothing(world: World) -> None:
    registry = Registry({classes.PARAMETERS: {"Enumerate": 0}})
    world.write(f"{HOME}/device/vif/0/state", "1")
    on = XenBus(world.guest, {}, registry=registry)
    on.start()
    world.loop.run()
    assert on.pdos == {}
    assert on.query_relations() == []


def test_a_directory_that_may_not_be_read_has_no_classes(world: World) -> None:
    world.write(f"{HOME}/device/vif/0/state", "1")
    world.chmod(f"{HOME}/device", "n0")
    on = XenBus(world.guest, {})
    on.start()
    world.loop.run()
    assert list(on.pdos) == ["IFACE", "CONS"]
    world.chmod(f"{HOME}/device", "n0", "r1")
    assert [pdo.name for pdo in on.query_relations()] == ["IFACE", "CONS", "VIF"]


# names

IDS = [
    "XENBUS\\VEN_XP0001&DEV_VIF&REV_0900000C",
    "XENBUS\\VEN_XP0001&DEV_VIF&REV_0900000B",
    "XENBUS\\VEN_XP0001&DEV_VIF&REV_0900000A",
    "XENBUS\\VEN_XP0001&DEV_VIF&REV_09000009",
    "XENBUS\\VEN_XP0001&DEV_VIF&REV_09000008",
    "XENCLASS",
]


def test_the_names_of_a_child(world: World) -> None:
    pdo = Pdo(XenBus(world.guest, {}), "VIF")
    assert pdo.device_id == "XENBUS\\VEN_XP&DEV_VIF"
    assert pdo.instance_id == "_"
    assert pdo.hardware_ids == pdo.compatible_ids == IDS
    assert (pdo.description, pdo.location) == ("XP0001 XENBUS VIF", "VIF")


def test_the_vendor_device_gives_its_children_its_number(world: World) -> None:
    on = XenBus(world.guest, {}, device_id=0xC000)
    assert on.name == "XPC000 XENBUS"
    assert Pdo(on, "VBD").hardware_ids[0] == "XENBUS\\VEN_XPC000&DEV_VBD&REV_0900000C"
    assert Pdo(on, "VBD").device_id == "XENBUS\\VEN_XP&DEV_VBD"


@pytest.mark.parametrize(("values", "removable", "ejectable"), [
    ({}, True, True), ({"AllowPdoRemove": 0}, False, True), ({"AllowPdoEject": 0}, True, False),
    ({"AllowPdoRemove": "no"}, True, True), ({"AllowPdoEject": 7}, True, True),
])  # fmt: skip
def test_capabilities(
    world: World, values: dict[str, int | str], removable: bool, ejectable: bool
) -> None:
    registry = Registry({f"{classes.PARAMETERS}\\VIF": values})
    found = Pdo(XenBus(world.guest, {}, registry=registry), "VIF").capabilities()
    assert (found.removable, found.surprise_removal_ok) == (removable, removable)
    assert found.eject_supported is ejectable
    assert (found.unique_id, found.silent_install) == (True, True)
    assert (found.address, found.ui_number) == (0xFFFFFFFF, 0xFFFFFFFF)
    assert found.device_state == {0: "D0", 3: "D3", 4: "D3", 5: "D3"}


def test_capabilities_have_one_version(world: World) -> None:
    with pytest.raises(NtStatusError, match="INVALID_PARAMETER"):
        Pdo(XenBus(world.guest, {}), "VIF").capabilities(2)


class Emulated(Stub):
    GUID = "959027A1-FCCE-4E78-BCF4-637384F499C5"
    OPERATIONS: ClassVar = {1: (), 2: ()}


QUERIES = [
    (BUS_INTERFACE_STANDARD, 1, None, "BusInterface"),
    (BUS_INTERFACE_STANDARD.lower(), 1, 64, "BusInterface"),
    (BUS_INTERFACE_STANDARD, 1, 63, "BUFFER_TOO_SMALL"),
    (BUS_INTERFACE_STANDARD, 2, 64, "NOT_SUPPORTED"),
    (Emulated.GUID, 2, None, "InterfaceVersion"),
    (Emulated.GUID, 2, 8, "BUFFER_OVERFLOW"),
    (Emulated.GUID, 3, None, "NOT_SUPPORTED"),
    ("D92AA810-BECB-4BD5-A3DA-BD03C135A297", 1, None, "NOT_SUPPORTED"),  # BALLOON
    ("00000000-0000-0000-0000-000000000000", 1, None, "NOT_SUPPORTED"),
]


@pytest.mark.parametrize(("guid", "version", "size", "answer"), QUERIES)
def test_what_a_child_may_ask_for(
    world: World, guid: str, version: int, size: int | None, answer: str
) -> None:
    on = XenBus(world.guest, {})
    on.below = (Emulated("emulated", []),)
    pdo = Pdo(on, "VIF")
    if answer.isupper():
        with pytest.raises(NtStatusError, match=answer):
            pdo.query_interface(guid, version, size)
    else:
        found = pdo.query_interface(guid, version, size)
        assert type(found).__name__ == answer
        if isinstance(found, BusInterface):
            assert found.translate_bus_address(0xABC000) == 0xABC000


def test_the_console_is_optional(world: World) -> None:
    assert isinstance(XenBus(world.guest, {}).console, ConsoleInterface)
