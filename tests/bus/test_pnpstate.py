"""Every PnP request at every state of XENBUS' devices: status and next state, as literals."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.world import World, make
from xenpv.bus.devicetree import Irp
from xenpv.bus.ntstatus import NTSTATUS
from xenpv.bus.pdo import Pdo
from xenpv.bus.pnpstate import PnpState
from xenpv.bus.xenbus import XenBus

DEVICE = "/local/domain/1/device"


@attrs.define(eq=False)
class Driver:
    """Counts; `slow`: it comes to rest only when told."""

    bus: XenBus
    slow: bool = False
    starts: int = 0
    stopped: bool = True

    def start(self) -> None:
        self.starts += 1
        self.stopped = False

    def stop(self) -> None:
        self.stopped = not self.slow

    def remove(self) -> None:
        assert self.stopped


@pytest.fixture
def world() -> Iterator[World]:
    made = installed()
    yield made
    made.hypervisor.close()


def installed() -> World:
    made = make()
    for path in ("device", "drivers"):
        made.write(f"/local/domain/1/{path}", "")
    made.chmod("/local/domain/1/drivers", "n1")
    made.write(f"{DEVICE}/vif/0/mac", "x")
    return made


def bus(world: World, *, slow: bool = False) -> XenBus:
    made = XenBus(world.guest, {"VIF": lambda bus: Driver(bus, slow)})
    made.start()
    world.loop.run()
    return made


def vif(on: XenBus) -> Pdo:
    return on.pdos["VIF"]


# How a device comes to a state; each begins as STARTED.
TO = {
    "enumerated": (Irp.REMOVE_DEVICE,),
    "started": (),
    "stop pending": (Irp.QUERY_STOP_DEVICE,),
    "stopped": (Irp.QUERY_STOP_DEVICE, Irp.STOP_DEVICE),
    "remove pending": (Irp.QUERY_REMOVE_DEVICE,),
    "surprise remove pending": (Irp.SURPRISE_REMOVAL,),
    "deleted": (Irp.EJECT,),
}
IRPS = [
    Irp.START_DEVICE, Irp.QUERY_STOP_DEVICE, Irp.CANCEL_STOP_DEVICE, Irp.STOP_DEVICE,
    Irp.QUERY_REMOVE_DEVICE, Irp.CANCEL_REMOVE_DEVICE, Irp.SURPRISE_REMOVAL, Irp.REMOVE_DEVICE,
    Irp.EJECT,
]  # fmt: skip
NO = "NO_SUCH_DEVICE"
PDO = {
    # state: START, QUERY_STOP, CANCEL_STOP, STOP, QUERY_REMOVE, CANCEL_REMOVE, SURPRISE, REMOVE, EJECT
    "enumerated": ("started", "stop pending", "enumerated", "stopped", "remove pending",
                   "enumerated", "surprise remove pending", "enumerated", "deleted"),
    "started": ("started", "stop pending", "started", "stopped", "remove pending", "started",
                "surprise remove pending", "enumerated", "deleted"),
    "stop pending": ("started", "stop pending", "started", "stopped", "remove pending",
                     "stop pending", "surprise remove pending", "enumerated", "deleted"),
    "stopped": ("started", "stop pending", "stopped", "stopped", "remove pending", "stopped",
                "surprise remove pending", "enumerated", "deleted"),
    "remove pending": ("started", "stop pending", "remove pending", "stopped", "remove pending",
                       "started", "surprise remove pending", "enumerated", "deleted"),
    "surprise remove pending": ("started", "stop pending", "surprise remove pending", "stopped",
                                "remove pending", "surprise remove pending",
                                "surprise remove pending", "enumerated", "deleted"),
    "deleted": (NO, NO, NO, NO, NO, NO, "deleted", "deleted", NO),
}  # fmt: skip
FDO = {
    "started": ("started", "stop pending", "started", "stopped", "remove pending", "started",
                "surprise remove pending", "deleted", "NOT_SUPPORTED"),
    "stop pending": ("started", "stop pending", "started", "stopped", "remove pending",
                     "stop pending", "surprise remove pending", "deleted", "NOT_SUPPORTED"),
    "stopped": ("started", "stop pending", "stopped", "stopped", "remove pending", "stopped",
                "surprise remove pending", "deleted", "NOT_SUPPORTED"),
    "remove pending": ("started", "stop pending", "remove pending", "stopped", "remove pending",
                       "started", "surprise remove pending", "deleted", "NOT_SUPPORTED"),
    "surprise remove pending": ("started", "stop pending", "surprise remove pending", "stopped",
                                "remove pending", "surprise remove pending",
                                "surprise remove pending", "deleted", "NOT_SUPPORTED"),
    "deleted": (NO, NO, NO, NO, NO, NO, "deleted", "deleted", NO),
}  # fmt: skip
ROWS = [
    (which, state, irp, answer)
    for which, table in (("pdo", PDO), ("fdo", FDO))
    for state, row in table.items()
    for irp, answer in zip(IRPS, row, strict=True)
]


@pytest.mark.parametrize(
    ("which", "state", "irp", "answer"), ROWS,
    ids=[f"{which} {state} {irp.name}" for which, state, irp, _ in ROWS],
)  # fmt: skip
def test_every_request_at_every_state(
    world: World, which: str, state: str, irp: Irp, answer: str
) -> None:
    on = bus(world)
    device = vif(on) if which == "pdo" else on
    steps = TO[state]
    if which == "fdo" and state == "deleted":
        steps = (Irp.REMOVE_DEVICE,)
    for step in steps:
        assert device.request(step) is NTSTATUS.SUCCESS
    assert device.state.value == state
    status = device.request(irp)
    if answer.isupper():
        assert (status.name, device.state.value) == (answer, state)
    else:
        assert (status, device.state.value) == (NTSTATUS.SUCCESS, answer)


def test_a_fresh_bus_is_added_and_a_fresh_child_is_present(world: World) -> None:
    on = XenBus(world.guest, {})
    assert on.state is PnpState.ADDED
    assert Pdo(on, "VIF").state is PnpState.PRESENT
    assert on.request(Irp.CANCEL_REMOVE_DEVICE) is NTSTATUS.SUCCESS
    assert on.state is PnpState.ADDED


def test_queries_within_queries_are_cancelled_from_the_inside(world: World) -> None:
    device = vif(bus(world))
    seen = []
    for irp in (Irp.QUERY_STOP_DEVICE, Irp.QUERY_REMOVE_DEVICE, Irp.QUERY_REMOVE_DEVICE,
                Irp.CANCEL_REMOVE_DEVICE, Irp.CANCEL_STOP_DEVICE):  # fmt: skip
        device.request(irp)
        seen.append(device.state.value)
    assert seen == ["stop pending", "remove pending", "remove pending", "stop pending", "started"]


def test_a_missing_child_is_deleted_by_its_removal(world: World) -> None:
    on = bus(world)
    device = vif(on)
    world.client.call(13, f"{DEVICE}/vif".encode() + b"\0")
    world.loop.run()
    assert device.state is PnpState.DELETED
    assert device.missing == "device disappeared"
    assert "VIF" not in on.pdos


def test_a_child_that_nobody_reported_goes_without_a_request(world: World) -> None:
    on = bus(world)
    fresh = on.pdos["VBD"] = Pdo(on, "VBD")
    on.children.scan()
    assert "VBD" not in on.pdos
    assert fresh.state is PnpState.DELETED


def test_an_ejected_child_comes_back_while_its_directory_is_there(world: World) -> None:
    on = bus(world)
    device = vif(on)
    assert device.request(Irp.EJECT) is NTSTATUS.SUCCESS
    assert (device.state, device.missing) == (PnpState.DELETED, "device ejected")
    world.loop.run()
    assert vif(on) is not device
    assert vif(on).state is PnpState.STARTED


def test_a_removal_waits_for_a_driver_that_closes(world: World) -> None:
    on = bus(world, slow=True)
    device = vif(on)
    driver = device.driver
    assert isinstance(driver, Driver)
    assert device.request(Irp.REMOVE_DEVICE) is NTSTATUS.PENDING
    assert device.request(Irp.START_DEVICE) is NTSTATUS.DEVICE_NOT_READY
    world.loop.advance(10**9)
    assert device.state is PnpState.STARTED
    driver.stopped = True
    world.loop.advance(10**9)
    assert device.state is PnpState.ENUMERATED
    assert device.driver is None


def test_a_child_disappears_once(world: World) -> None:
    on = bus(world, slow=True)
    world.client.call(13, f"{DEVICE}/vif".encode() + b"\0")
    world.loop.advance(10**9)
    assert vif(on).pending is Irp.REMOVE_DEVICE
    lines: list[str] = []
    on.log = lines.append  # type: ignore[method-assign]  # a recorder
    on.children.scan()
    assert lines == []


def test_a_bus_that_stops_takes_its_children_along_and_back(world: World) -> None:
    on = bus(world)
    device = vif(on)
    driver = device.driver
    assert isinstance(driver, Driver)
    assert on.request(Irp.STOP_DEVICE) is NTSTATUS.SUCCESS
    assert (on.power.is_d0, device.state, driver.stopped) == (False, PnpState.STOPPED, True)
    assert on.request(Irp.START_DEVICE) is NTSTATUS.SUCCESS
    assert (on.power.is_d0, device.state, driver.starts) == (True, PnpState.STARTED, 2)


def test_a_bus_that_is_pulled_out_misses_its_children(world: World) -> None:
    on = bus(world)
    on.request(Irp.SURPRISE_REMOVAL)
    assert {pdo.missing for pdo in on.pdos.values()} == {"bus surprise removed"}
    device = vif(on)
    assert on.request(Irp.REMOVE_DEVICE) is NTSTATUS.SUCCESS
    assert (on.pdos, device.state) == ({}, PnpState.DELETED)


class Balloon:
    size = 3
    is_active = False

    def get_size(self) -> int:
        return self.size


@pytest.mark.parametrize("irp", [Irp.QUERY_STOP_DEVICE, Irp.QUERY_REMOVE_DEVICE])
def test_a_bus_with_a_balloon_is_not_let_go(world: World, irp: Irp) -> None:
    on = bus(world)
    on.balloon = Balloon()  # type: ignore[attr-defined]  # stands for BALLOON
    assert on.request(irp) is NTSTATUS.UNSUCCESSFUL
    assert on.state is PnpState.STARTED
    on.balloon.size = 0  # type: ignore[attr-defined]  # stands for BALLOON
    assert on.request(irp) is NTSTATUS.SUCCESS


INTERFACES = attrgetter("debug", "suspend", "range_set", "evtchn", "store", "console", "gnttab")
DEVICES = st.sampled_from(["fdo", "VIF", "IFACE", "CONS", "VBD"])
STEP = st.tuples(DEVICES, st.sampled_from(IRPS)) | st.sampled_from(
    ["run", "rest", "vbd", "no vif", "vif", "relations", "sleep", "wake"]
)


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(STEP, max_size=30), slow=st.booleans())
def test_requests_in_any_order_end_in_a_state_and_leak_nothing(
    steps: list[tuple[str, Irp] | str], slow: bool
) -> None:
    world = installed()
    try:
        drivers: list[Driver] = []

        def make_driver(on: XenBus) -> Driver:
            drivers.append(Driver(on, slow))
            return drivers[-1]

        on = XenBus(world.guest, {"VIF": make_driver, "VBD": make_driver, "IFACE": make_driver})
        on.start()
        known: list[Pdo] = []
        for step in steps:
            known += [pdo for pdo in on.pdos.values() if pdo not in known]
            if isinstance(step, str):
                act(world, on, drivers, step)
                continue
            name, irp = step
            device = on if name == "fdo" else on.pdos.get(name)
            if device is None:
                continue
            before, state = device.state, device.request(irp)
            assert isinstance(state, NTSTATUS)
            assert before is not PnpState.DELETED or device.state is PnpState.DELETED
        for _ in range(2):  # those that the first run starts are to be quick, too
            for driver in drivers:
                driver.slow, driver.stopped = False, True
            world.loop.run()
        on.request(Irp.REMOVE_DEVICE)
        world.loop.run()
        assert on.state is PnpState.DELETED
        assert not on.pdos
        assert {pdo.state for pdo in known} <= {PnpState.DELETED}
        assert all(driver.stopped for driver in drivers)
        assert on.store.watches() == []
        assert on.evtchn.channels() == []
        assert [one.references for one in INTERFACES(on)] == [0] * 7
        assert world.client.call(1, b"/local/domain/1/drivers\0") == b""
    finally:
        world.hypervisor.close()


def act(world: World, on: XenBus, drivers: list[Driver], step: str) -> None:
    match step:
        case "run":
            world.loop.advance(10**7)
        case "rest":
            for driver in drivers:
                driver.stopped = True
        case "vbd" | "vif":
            world.write(f"{DEVICE}/{step}/0/state", "1")
        case "no vif":
            world.client.call(13, f"{DEVICE}/vif".encode() + b"\0")
        case "relations":
            on.query_relations()
        case "sleep":
            on.sleep()
        case "wake":
            on.wake()
