"""The bus: a PDO per class, and the way down."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest

from tests.world import World, make
from xenpv.bus.xenbus import XenBus
from xenpv.xen.loop import NS_PER_S


@attrs.define(eq=False)
class Driver:
    bus: XenBus
    log: list[str] = attrs.field(factory=list)
    stopped: bool = False
    stubborn: bool = False

    def start(self) -> None:
        self.log.append("start")

    def stop(self) -> None:
        self.log.append("stop")
        self.stopped = not self.stubborn

    def remove(self) -> None:
        self.log.append("remove")


@pytest.fixture
def world() -> Iterator[World]:
    made = make()
    for path in ("device", "drivers"):
        made.write(f"/local/domain/1/{path}", "")
    made.chmod("/local/domain/1/drivers", "n1")
    yield made
    made.hypervisor.close()


def start(world: World, *, stubborn: bool = False) -> tuple[XenBus, dict[str, Driver]]:
    made: dict[str, Driver] = {}

    def factory(name: str):
        def create(bus: XenBus) -> Driver:
            made[name] = Driver(bus, stubborn=stubborn)
            return made[name]

        return create

    bus = XenBus(world.guest, {"VIF": factory("VIF"), "IFACE": factory("IFACE")})
    bus.start()
    world.loop.run()
    return bus, made


def test_a_synthetic_class_needs_no_directory(world: World) -> None:
    bus, made = start(world)
    assert list(bus.pdos) == ["IFACE", "CONS"]
    assert made["IFACE"].log == ["start"]


def test_a_class_directory_makes_one_pdo_and_its_going_stops_it(world: World) -> None:
    bus, made = start(world)
    world.write("/local/domain/1/device/vif/0/mac", "x")
    world.write("/local/domain/1/device/vif/1/mac", "x")
    world.write("/local/domain/1/device/vkbd/0/x", "x")
    world.loop.run()
    assert list(bus.pdos) == ["IFACE", "CONS", "VIF", "VKBD"]
    assert made["VIF"].log == ["start"]
    world.client.call(13, b"/local/domain/1/device/vif\0")
    world.loop.run()
    assert list(bus.pdos) == ["IFACE", "CONS", "VKBD"]
    assert made["VIF"].log == ["start", "stop", "remove"]
    world.write("/local/domain/1/device/vif/0/mac", "x")
    world.loop.run()
    assert list(bus.pdos) == ["IFACE", "CONS", "VKBD", "VIF"]
    assert made["VIF"].log == ["start"]


def test_what_happens_inside_a_known_class_is_no_reason_to_scan(world: World) -> None:
    bus, _ = start(world)
    world.write("/local/domain/1/device/vif/0/mac", "x")
    world.loop.run()
    before = bus.store.requests
    world.write("/local/domain/1/device/vif/0/mac", "y")
    world.write("/local/domain/1/device/vif/1/mac", "y")
    world.loop.run()
    assert bus.store.requests == before
    world.write("/local/domain/1/device/vkbd/0/x", "x")
    world.loop.run()
    assert bus.store.requests == before + 1


def test_power_goes_when_every_driver_stopped(world: World) -> None:
    bus, made = start(world)
    bus.power_off(1)
    bus.power_off(0)
    world.loop.run()
    assert made["IFACE"].log == ["start", "stop"]
    assert world.guest.shutdown_code == 1
    assert world.loop.now < NS_PER_S


def test_power_goes_after_60_s_without_a_driver_that_will_not_stop(world: World) -> None:
    bus, _ = start(world, stubborn=True)
    bus.power_off(0)
    world.loop.run()
    assert world.guest.is_shutdown
    assert 59 * NS_PER_S < world.loop.now < 61 * NS_PER_S


def test_driver_keys_take_the_first_that_is_free(world: World) -> None:
    world.write("/local/domain/1/drivers/0", "taken")
    bus, _ = start(world)
    assert world.read("/local/domain/1/drivers/1") == "Xen_Project XENBUS 9.1.0.0 "
    assert bus.claim_driver_key("XENVIF") == "drivers/2"
    bus.clear_driver_key("XENVIF")
    assert bus.claim_driver_key("XENVBD") == "drivers/2"


def test_a_full_drivers_directory_writes_nothing(world: World) -> None:
    for index in range(256):
        world.write(f"/local/domain/1/drivers/{index}", "taken")
    bus, _ = start(world)
    assert bus.claim_driver_key("XENVIF") is None
