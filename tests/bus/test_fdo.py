"""XENBUS itself: what it takes on its way up, in which order; classes, names, driver keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import attrs
import pytest

from tests.world import World, make
from xenpv.abi.hvm import HVM_PARAM
from xenpv.abi.xs import XS
from xenpv.bus import classes
from xenpv.bus.console import ConsoleInterface
from xenpv.bus.devicetree import Irp
from xenpv.bus.evtchn import ChannelType
from xenpv.bus.interface import Interface
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.pdo import BUS_INTERFACE_STANDARD, BusInterface, Pdo
from xenpv.bus.pnpstate import PnpState
from xenpv.bus.power import HELD
from xenpv.bus.registry import Registry
from xenpv.bus.store import StoreInterface
from xenpv.bus.suspend import SuspendPhase
from xenpv.bus.xenbus import XenBus
from xenpv.errors import LocalProtocolError
from xenpv.xen.loop import NS_PER_MS, NS_PER_S

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
    # Somebody listens at the console: a port that nobody bound does not outlive a reset.
    port = made.guest.hvm_param(HVM_PARAM.CONSOLE_EVTCHN)
    made.dom0.evtchn.bind_interdomain(1, port)
    yield made
    made.hypervisor.close()


def resume(world: World, result: int = 0) -> None:
    """The domain slept; the toolstack resumes it with that result of the hypercall."""
    assert world.guest.shutdown_code == 2
    world.guest.suspend_result = result
    world.guest.resume()
    world.loop.run()


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
    """Its interfaces as they are taken and given back by it, and its VIRQs, in the log."""
    on = XenBus(world.guest, {}, **options)  # type: ignore[arg-type]  # registry, personality
    recorder = Recorder(log)
    for name in HELD:
        one = on.interface(name)
        if one is not None:
            for sign, method in (("+", "acquire"), ("-", "release")):
                recorder.wrap(one, method, f"{sign}{name}")
    recorder.wrap(on.suspend, "register", "+late XENBUS")
    recorder.wrap(on.suspend, "deregister", "-late XENBUS")
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


@attrs.define(eq=False)
class Recorder:
    """Says what is called from outside; what the called ones call is their own."""

    log: list[str]
    depth: int = 0

    def wrap(self, of: object, name: str, text: str) -> None:
        method = getattr(of, name)

        def recorded(*args: object, **kwargs: object) -> object:
            if not self.depth:
                self.log.append(text)
            self.depth += 1
            try:
                return method(*args, **kwargs)
            finally:
                self.depth -= 1

        setattr(of, name, recorded)


INNER_UP = [
    f"drivers/0={OURS}",
    "+virq 1",
    "+watch device",
    "+watch control/shutdown",
    "control/feature-suspend=1",
    "+watch memory/target",
    "control/feature-balloon=1 EACCES",  # libxl does not make that key
]
INNER_DOWN = [
    "-watch memory/target",
    "rm control/feature-balloon EACCES",
    "rm control/feature-suspend",
    "-watch control/shutdown",
    "-watch device",
    "-virq",
    "rm drivers/0",
]
HELD_UP = ["+debug", "+suspend", "+range_set", "+evtchn", "+store", "+console", "+balloon"]
HELD_DOWN = ["-balloon", "-console", "-store", "-evtchn", "-range_set", "-suspend", "-debug"]
UP = [*HELD_UP, *INNER_UP, "+late XENBUS"]
DOWN = ["-late XENBUS", *INNER_DOWN, *HELD_DOWN]


def test_d3_to_d0_and_back_are_the_same_steps(world: World) -> None:
    log: list[str] = []
    on = bus(world, log)
    on.power.up()
    assert log == UP
    log.clear()
    on.power.down()
    # A key of `control` that the guest owns may be removed by it nevertheless.
    assert log == DOWN


# Late in a new domain: xenstored knows of no watch that could be removed.
# A key that is removed cannot be made again under libxl's read-only `control`.
AGAIN_DOWN = [
    one for one in INNER_DOWN if "-watch" not in one and one != "rm control/feature-suspend"
]


def test_a_migration_does_the_inner_steps_again(world: World) -> None:
    log: list[str] = []
    on = bus(world, log)
    on.start()
    world.loop.run()
    log.clear()
    world.write(f"{HOME}/control/shutdown", "suspend")
    world.loop.run()
    assert log == ["control/shutdown="]
    resume(world)
    assert log == ["control/shutdown=", *AGAIN_DOWN, *INNER_UP]
    assert (on.problem, on.suspend.get_count()) == ("", 1)


def test_a_cancelled_suspend_does_nothing_again(world: World) -> None:
    log: list[str] = []
    on = bus(world, log)
    on.start()
    for _ in range(2):  # the second shows that the mutex was given back
        world.write(f"{HOME}/control/shutdown", "suspend")
        log.clear()
        world.loop.run()
        resume(world, result=1)
        assert log == ["control/shutdown="]
    assert on.suspend.get_count() == 0


def test_a_step_that_fails_at_a_resume_does_not_take_the_others_along(world: World) -> None:
    log: list[str] = []
    on = bus(world, log)
    # Before XENBUS' own late callback another has taken the VIRQ.
    on.suspend.register(SuspendPhase.LATE, lambda: world.guest.evtchn.bind_virq(1, 0))
    on.start()
    world.loop.run()
    on.suspend.trigger()
    log.clear()
    resume(world)
    assert "EEXIST" in on.problem
    assert log == [*AGAIN_DOWN, *INNER_UP]


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


@pytest.mark.parametrize(("value", "left", "sleeps"), [
    ("suspend", "", True), ("poweroff", "poweroff", False), ("s3", "s3", False),
    ("Suspend", "Suspend", False), ("suspend ", "suspend ", False), ("", "", False),
])  # fmt: skip
def test_suspend_is_acknowledged_and_nothing_else(
    world: World, value: str, left: str, sleeps: bool
) -> None:
    on = bus(world, [])
    on.start()
    world.write(f"{HOME}/control/shutdown", value)
    world.loop.run()
    assert world.read(f"{HOME}/control/shutdown") == left
    assert world.guest.shutdown_code == (2 if sleeps else None)
    assert on.suspend.mutex.owner == ("suspend" if sleeps else "")


def test_a_suspend_waits_for_the_balloon(world: World) -> None:
    on = bus(world, [])
    assert on.balloon is not None
    on.start()
    world.loop.run()
    # It finds pages so slowly that an adjustment takes its time.
    on.balloon.mm.ns_per_page = 10 * NS_PER_MS
    for key, value in (("static-max", "4096"), ("target", "3996")):
        world.write(f"{HOME}/memory/{key}", value)
    world.loop.advance(NS_PER_MS)
    assert on.balloon.is_active
    world.write(f"{HOME}/control/shutdown", "suspend")
    world.loop.advance(NS_PER_MS)
    assert world.read(f"{HOME}/control/shutdown") == "suspend"
    world.loop.advance(2 * NS_PER_S)
    assert (on.balloon.size, on.balloon.is_active) == (25, False)
    assert world.read(f"{HOME}/control/shutdown") == ""
    assert world.guest.shutdown_code == 2


def test_a_linux_guest_advertises_nothing_here(world: World) -> None:
    log: list[str] = []
    on = bus(world, log, personality="linux")
    on.power.up()
    assert [one for one in log if "=" in one or "watch" in one] == [
        "+watch device", "+watch memory/target",
    ]  # fmt: skip
    on.power.down()


HOLDERS = ["suspend", "shared_info", "evtchn", "store", "console", "gnttab", "balloon"]


@pytest.mark.parametrize("holder", HOLDERS)
def test_hibernating_with_something_held_is_an_error(world: World, holder: str) -> None:
    on = bus(world, [])
    on.start()
    world.loop.run()
    getattr(on, holder).acquire()
    with pytest.raises(LocalProtocolError, match=f"S4 is entered with .*{holder}.* held"):
        on.sleep(s4=True)
    assert not world.guest.is_shutdown
    assert (on.is_asleep, on.is_hibernated) == (True, False)
    world.loop.run()
    assert on.wake() is NTSTATUS.SUCCESS
    assert on.is_running


def test_hibernating_in_a_handler_with_something_held_is_a_bugcheck(world: World) -> None:
    on = bus(world, [])
    on.start()
    world.loop.run()
    on.store.acquire()
    world.guest.task("falls asleep", lambda: on.sleep(s4=True)).wake()
    world.loop.run()
    assert world.guest.shutdown_code == 3
    assert (
        on.crash.parameters[0]
        == "S4 is entered with suspend, shared_info, evtchn, store, gnttab held"
    )


def test_a_system_that_hibernates_powers_off(world: World) -> None:
    on = bus(world, [])
    on.start()
    world.loop.run()
    assert on.sleep(s4=True) is NTSTATUS.SUCCESS
    assert (on.is_asleep, on.is_hibernated, on.power.is_d0) == (True, True, False)
    assert world.guest.shutdown_code == 0


def test_only_a_system_that_is_awake_goes_to_sleep(world: World) -> None:
    on = bus(world, [])
    on.start()
    world.loop.run()
    on.sleep()
    assert on.sleep(s4=True) is NTSTATUS.SUCCESS
    assert (on.is_hibernated, world.guest.is_shutdown) == (False, False)


@pytest.mark.parametrize("irp", [Irp.STOP_DEVICE, Irp.REMOVE_DEVICE])
def test_what_was_stopped_in_its_sleep_does_not_wake(world: World, irp: Irp) -> None:
    on = bus(world, [])
    on.start()
    world.loop.run()
    on.sleep()
    on.request(irp)
    on.wake()
    assert (on.power.is_d0, on.store.watches()) == (False, [])


def test_what_is_left_open_is_an_error_at_a_stop_and_none_at_power_off(world: World) -> None:
    log: list[str] = []
    on = bus(world, log)
    on.start()
    on.store.watch_add("data", world.guest.task("leaks", list))
    with pytest.raises(LocalProtocolError, match="STORE is released with a watch of data"):
        on.request(Irp.STOP_DEVICE)
    assert [one for one in log if one in HELD_DOWN] == HELD_DOWN
    assert not any(on.interface(name).references for name in HELD)
    on.start()
    log.clear()
    on.store.watch_add("data", world.guest.task("leaks", list))
    on.power_off(0)
    world.loop.run()
    assert [one for one in log if one in HELD_DOWN] == HELD_DOWN
    assert world.guest.shutdown_code == 0


@pytest.mark.parametrize("way", ["request", "sleep", "hibernate"])
def test_what_is_left_open_in_a_handler_is_a_bugcheck(world: World, way: str) -> None:
    on = bus(world, [])
    on.start()
    world.loop.run()
    on.store.watch_add("data", world.guest.task("leaks", list))
    ways: dict[str, Callable[[], object]] = {
        "request": lambda: on.request(Irp.STOP_DEVICE),
        "sleep": on.sleep,
        "hibernate": lambda: on.sleep(s4=True),
    }
    world.guest.task("stops", ways[way]).wake()
    world.loop.run()
    assert (world.guest.shutdown_code, on.crash.code) == (3, 0xDEAD)
    assert on.crash.parameters[0] == "STORE is released with a watch of data"
    assert not on.is_hibernated


class Slow:
    """A driver that never comes to rest, and has a watch."""

    stopped = False

    def __init__(self, bus: XenBus) -> None:
        self.bus = bus

    def start(self) -> None:
        self.bus.store.watch_add("data", self.bus.domain.task("slow", list))

    def stop(self) -> None: ...


def test_a_driver_that_is_given_up_after_60_s_left_its_things_open(world: World) -> None:
    world.write(f"{HOME}/device/vif/0/state", "1")
    on = XenBus(world.guest, {"VIF": Slow})
    on.start()
    world.loop.run()
    assert on.request(Irp.STOP_DEVICE) is NTSTATUS.PENDING
    world.loop.advance(59 * NS_PER_S)
    assert not world.guest.is_shutdown
    world.loop.advance(2 * NS_PER_S)
    assert world.guest.shutdown_code == 3
    assert on.crash.parameters[0] == "STORE is released with a watch of data"


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


class Emulated(Interface):
    """EMULATED, without a device behind it."""

    NAME = "EMULATED"
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
    on.below = (Emulated(),)
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
