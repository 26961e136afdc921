"""The backend side of xenbus: devices come and go with their directories."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.world import World, make
from xenpv.abi.xs import XS
from xenpv.back.xenbus import BackendBus, Device, State, number_of, state_of
from xenpv.errors import PeerProtocolError

FRONT = "/local/domain/1/device/test/0"
BACK = "/local/domain/0/backend/test/1/0"


@attrs.define(eq=False)
class Recorder:
    """A driver that writes down what it is told."""

    device: Device
    log: list[str]
    break_at: State | None = None

    def probe(self) -> None:
        self.log.append("probe")
        self.device.switch_state(State.INIT_WAIT)

    def frontend_changed(self, state: State) -> None:
        self.log.append(state.name)
        if state is self.break_at:
            raise PeerProtocolError("a bad ring reference")

    def hotplug_changed(self) -> None:
        self.log.append(f"hotplug {self.device.get('hotplug-status')}")

    def remove(self) -> None:
        self.log.append("remove")


def start(world: World, break_at: State | None = None) -> tuple[BackendBus, list[str]]:
    log: list[str] = []
    store = world.back_store()
    bus = BackendBus(
        world.dom0, store, world.dispatcher, {"test": lambda d: Recorder(d, log, break_at)}
    )
    return bus, log


def add(world: World) -> None:
    world.write(FRONT, "")
    world.chmod(FRONT, "n1", "r0")
    world.write(f"{FRONT}/state", "1")
    world.write(f"{BACK}/frontend", FRONT)
    world.write(f"{BACK}/online", "1")
    world.write(f"{BACK}/state", "1")
    world.loop.run()


def front(world: World, state: str) -> None:
    world.write(f"{FRONT}/state", state)
    world.loop.run()


def test_a_device_is_probed_once_and_told_every_frontend_state(world: World) -> None:
    bus, log = start(world)
    add(world)
    front(world, "3")
    front(world, "5")
    assert log == ["probe", "INITIALISING", "hotplug None", "INITIALISED", "CLOSING"] or log == [
        "probe",
        "hotplug None",
        "INITIALISING",
        "INITIALISED",
        "CLOSING",
    ]
    assert world.read(f"{BACK}/state") == "2"
    assert list(bus.devices) == [("test", 1, 0)]


def test_devices_that_were_there_before_are_found(world: World) -> None:
    add(world)
    bus, log = start(world)
    world.loop.run()
    assert list(bus.devices) == [("test", 1, 0)]
    assert log[0] == "probe"


@pytest.mark.parametrize("level", ["", "/0", "/1"])
def test_removing_any_level_removes_the_device_once(world: World, level: str) -> None:
    bus, log = start(world)
    add(world)
    path = {"": "/local/domain/0/backend/test", "/1": "/local/domain/0/backend/test/1"}.get(
        level, BACK
    )
    world.client.call(XS.RM, path.encode() + b"\0")
    world.loop.run()
    assert bus.devices == {}
    assert log.count("remove") == 1
    # A new device with the old name is a new device.
    add(world)
    assert log.count("probe") == 2


def test_a_frontend_that_breaks_the_protocol_breaks_its_device_alone(world: World) -> None:
    bus, log = start(world, break_at=State.INITIALISED)
    add(world)
    front(world, "3")
    device = bus.device("test", 1, 0)
    assert device is not None
    assert device.broken == "a bad ring reference"
    assert world.read(f"{BACK}/state") == "5"
    assert world.read(f"{BACK}/error") == "22 a bad ring reference"
    front(world, "6")
    assert log[-1] == "CLOSED"


def test_other_kinds_and_odd_names_are_left_alone(world: World) -> None:
    bus, log = start(world)
    world.write("/local/domain/0/backend/other/1/0/state", "1")
    world.write("/local/domain/0/backend/test/x/0/state", "1")
    world.write("/local/domain/0/backend/test/1/y/state", "1")
    world.write("/local/domain/0/backend/test/1", "")
    world.loop.run()
    assert bus.devices == {}
    assert log == []


@given(st.text(max_size=12).filter(lambda text: "\0" not in text))
def test_any_text_in_state_is_a_state(text: str) -> None:
    assert state_of(text) in State
    assert number_of(text, -1) >= -1


def test_numbers_are_leading_decimals() -> None:
    read = [number_of(text, 7) for text in ("12", "12x", "x", "", None, "-1", "00", "9" * 30)]
    assert read == [12, 12, 7, 7, 7, 7, 0, 7]


def test_state_writes_by_a_guest_in_a_storm_are_all_survived() -> None:
    world = make()
    bus, log = start(world)
    add(world)
    for number in range(200):
        world.write(f"{FRONT}/state", str(number % 11))
        if number % 7 == 0:
            world.loop.run()
    world.loop.run()
    assert list(bus.devices) == [("test", 1, 0)]
    assert log[-1] == state_of(str(199 % 11)).name
    world.hypervisor.close()
