"""XENBUS in a tree of devices: its children are nodes, and the tree's requests reach them."""

from __future__ import annotations

import attrs
import pytest

from tests.bus.test_pnpstate import DEVICE, Driver, vif
from tests.bus.test_pnpstate import world as world  # noqa: PLC0414 - a fixture
from tests.world import World
from xenpv.bus.devicetree import DeviceNode, DeviceObject, DeviceTree, Inf, Irp, Problem
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.pnpstate import PnpState
from xenpv.bus.registry import Registry
from xenpv.bus.stack import BusStack, attach
from xenpv.bus.xenbus import XenBus

PLATFORM = "PCI\\VEN_5853&DEV_0001&SUBSYS_00015853&REV_01"


@attrs.define(eq=False)
class Root(DeviceObject):
    """A PCI bus with the platform device on it."""

    platform: DeviceNode

    def bus_relations(self, node: DeviceNode, below: list[DeviceNode]) -> list[DeviceNode]:
        del node
        return [*below, self.platform]


def boot(world: World, *, slow: bool = False) -> tuple[DeviceTree, XenBus]:
    on = XenBus(world.guest, {"VIF": lambda bus: Driver(bus, slow)})
    tree = DeviceTree(world.guest, Registry())

    def add(tree: DeviceTree, node: DeviceNode) -> BusStack:
        return attach(on, tree, node)

    tree.install(Inf("XENBUS", (PLATFORM,), add))
    tree.root.stack.append(Root(DeviceNode(PLATFORM, "3&0", hardware_ids=(PLATFORM,),
                                           stack=[DeviceObject()])))  # fmt: skip
    tree.invalidate(tree.root)
    world.loop.run()
    return tree, on


def test_the_children_are_nodes_below_the_platform_device(world: World) -> None:
    tree, on = boot(world)
    assert tree.lines() == [
        "HTREE\\ROOT\\0 PnpManager started",
        f"  {PLATFORM}\\3&0 XENBUS started",
        "    XENBUS\\VEN_XP&DEV_VIF\\_ XENVIF started",
        "    XENBUS\\VEN_XP&DEV_IFACE\\_ - initialized code 28 FAILED_INSTALL",
        "    XENBUS\\VEN_XP&DEV_CONS\\_ - initialized code 28 FAILED_INSTALL",
    ]
    assert (on.state, vif(on).state) == (PnpState.STARTED, PnpState.STARTED)
    node = tree.find("XENBUS\\VEN_XP0001&DEV_VIF&REV_09000008")
    assert node is not None
    assert (node.description, node.location) == ("XP0001 XENBUS VIF", "VIF")


def test_a_directory_that_goes_takes_its_node_along_and_one_that_comes_brings_one(
    world: World,
) -> None:
    tree, on = boot(world)
    world.client.call(13, f"{DEVICE}/vif".encode() + b"\0")
    world.loop.run()
    assert tree.find("XENBUS\\VEN_XP&DEV_VIF\\_") is None
    world.write(f"{DEVICE}/vif/0/mac", "x")
    world.loop.run()
    assert vif(on).state is PnpState.STARTED


@pytest.mark.parametrize(("surprise", "at_once"), [(True, True), (False, False)])
def test_a_missing_child_is_destroyed_at_once_only_after_a_surprise(
    world: World, surprise: bool, at_once: bool
) -> None:
    _, on = boot(world)
    device = vif(on)
    device.missing = "device disappeared"
    if surprise:
        device.request(Irp.SURPRISE_REMOVAL)
    device.request(Irp.REMOVE_DEVICE)
    assert device.state is PnpState.DELETED
    assert ("VIF" not in on.pdos) is at_once
    world.loop.run()
    assert vif(on) is not device


@pytest.mark.parametrize("slow", [False, True])
def test_an_ejected_child_is_found_again_by_the_scan(world: World, slow: bool) -> None:
    tree, on = boot(world, slow=slow)
    node, first = tree.find("XENBUS\\VEN_XP&DEV_VIF\\_"), vif(on)
    assert node is not None
    driver = first.driver
    assert isinstance(driver, Driver)
    assert tree.eject(node) is (NTSTATUS.PENDING if slow else NTSTATUS.SUCCESS)
    driver.stopped = True
    world.loop.run()
    assert first.state is PnpState.DELETED
    assert vif(on) is not first
    assert vif(on).state is PnpState.STARTED


def test_a_disabled_child_stays_without_its_driver(world: World) -> None:
    tree, on = boot(world)
    node = tree.find("XENBUS\\VEN_XP&DEV_VIF\\_")
    assert node is not None
    tree.remove(node)
    world.loop.run()
    assert (node.problem, vif(on).state, vif(on).driver) == (
        Problem.DISABLED, PnpState.ENUMERATED, None,
    )  # fmt: skip
    tree.start(node)
    assert vif(on).state is PnpState.STARTED


def test_the_platform_device_that_is_removed_ends_all_of_it(world: World) -> None:
    tree, on = boot(world)
    platform = tree.find(PLATFORM)
    assert platform is not None
    assert tree.remove(platform) is NTSTATUS.SUCCESS
    world.loop.run()
    assert (on.state, on.pdos, on.store.watches()) == (PnpState.DELETED, {}, [])


def test_an_interface_is_asked_for_through_the_stack(world: World) -> None:
    tree, _ = boot(world)
    node = tree.find("XENBUS\\VEN_XP&DEV_VIF\\_")
    assert node is not None
    with pytest.raises(NtStatusError, match="NOT_SUPPORTED"):
        tree.query_interface(node, "00000000-0000-0000-0000-000000000000", 1)


def test_a_start_that_fails_is_code_10(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Driver, "start", _refuse)
    tree, on = boot(world)
    node = tree.find("XENBUS\\VEN_XP&DEV_VIF\\_")
    assert node is not None
    assert (node.problem, node.status) == (Problem.FAILED_START, NTSTATUS.QUOTA_EXCEEDED)
    assert (vif(on).state, vif(on).is_d0) == (PnpState.ENUMERATED, False)
    assert vif(on).request(Irp.QUERY_STOP_DEVICE) is NTSTATUS.SUCCESS


def _refuse(self: Driver) -> None:
    raise NtStatusError(NTSTATUS.QUOTA_EXCEEDED, "no watch is free")
