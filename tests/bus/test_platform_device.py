"""Platform devices: who binds to them, what they are called, which of them is active."""

from __future__ import annotations

import pytest

from tests.world import World
from xenpv.abi.pci import IdeDrive, PciFunction
from xenpv.bus import inf, pci
from xenpv.bus.devicetree import DeviceNode, NodeState, Problem
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.platform_device import claim_active, ids, parse_device_id, vendor_key, vendor_of
from xenpv.bus.registry import Registry
from xenpv.bus.unplug import reboot_requests
from xenpv.bus.windows import Windows
from xenpv.bus.xenfilt import Activation
from xenpv.host import hardware

P1 = "PCI\\VEN_5853&DEV_0001&SUBSYS_00015853&REV_01"
P2 = "PCI\\VEN_5853&DEV_0002&SUBSYS_00025853&REV_01"
C0 = "PCI\\VEN_5853&DEV_C000&SUBSYS_C0005853&REV_01"
C0_KEY = "Enum\\PCI\\VEN_5853&DEV_C000&SUBSYS_C0005853&REV_01"
PARAMETERS = "Services\\XENFILT\\Parameters"
ACTIVE_VALUES = ("ActiveDeviceID", "ActiveInstanceID", "ActiveLocationInformation")
PLAIN, VENDOR = inf.Build(), inf.Build(vendor_device_id=0xC000)
NONE, NEUTRAL = None, Activation.NEUTRAL
FORCED, DENIED = Activation.FORCE_ACTIVATED, Activation.FORCE_DEACTIVATED


# the names

# DeviceID, build, number or refusal
NUMBERS = [
    (P1, PLAIN, 0x0001),
    (P2, PLAIN, 0x0002),
    (P1.lower(), PLAIN, 0x0001),
    ("PCI\\VEN_5853&DEV_0001", PLAIN, 0x0001),
    (C0, PLAIN, None),
    (C0, VENDOR, 0xC000),
    (P1, VENDOR, 0x0001),
    (C0.replace("C000", "C110"), VENDOR, None),
    (C0.replace("C000", "C200"), inf.Build(vendor_device_id=0xC200), 0xC200),
    ("PCI\\VEN_5853&DEV_0003&SUBSYS_00035853&REV_01", PLAIN, None),
    ("PCI\\VEN_8086&DEV_0001&SUBSYS_00015853&REV_01", PLAIN, None),
    ("PCI\\VEN_5853&DEV_00010", PLAIN, None),
    ("PCI\\VEN_5853", PLAIN, None),
    ("", PLAIN, None),
]  # fmt: skip


@pytest.mark.parametrize(("device_id", "build", "number"), NUMBERS)
def test_device_number(device_id: str, build: inf.Build, number: int | None) -> None:
    if number is not None:
        assert parse_device_id(device_id, build) == number
        return
    with pytest.raises(NtStatusError) as caught:
        parse_device_id(device_id, build)
    assert caught.value.status is NTSTATUS.NOT_SUPPORTED


@pytest.mark.parametrize(
    ("number", "vendor"),
    [(0xBFFF, None), (0xC000, "XenServer"), (0xC0FF, "XenServer"), (0xC100, "XenClient"), (0xC1FF, "XenClient"),
     (0xC200, "XCP-ng"), (0xC2FF, "XCP-ng"), (0xC300, None), (0x0001, None)],
)  # fmt: skip
def test_vendor_ranges(number: int, vendor: str | None) -> None:
    assert vendor_of(number) == vendor


def test_the_inf_binds_the_legacy_ids_and_the_builds_own() -> None:
    assert ids(PLAIN) == ("PCI\\VEN_5853&DEV_0001", "PCI\\VEN_5853&DEV_0002")
    assert ids(VENDOR) == (*ids(PLAIN), "PCI\\VEN_5853&DEV_C000")
    assert vendor_key(0xC000) == C0_KEY


# which one is active

OTHER_STORED = {
    "ActiveDeviceID": P2,
    "ActiveInstanceID": "28",
    "ActiveLocationInformation": "there",
}
SAME = {"ActiveDeviceID": P1, "ActiveInstanceID": "28", "ActiveLocationInformation": "there"}
CLAIMED = {"ActiveDeviceID": P1, "ActiveInstanceID": "10", "ActiveLocationInformation": "here"}
# activation, stored, build, was the vendor's device seen, active, stored afterwards
DECISIONS = [
    (FORCED, {}, PLAIN, False, True, CLAIMED),
    (FORCED, SAME, PLAIN, False, True, CLAIMED),
    (FORCED, OTHER_STORED, PLAIN, False, True, CLAIMED),
    (FORCED, {}, VENDOR, True, True, CLAIMED),
    (DENIED, {}, PLAIN, False, False, {}),
    (DENIED, SAME, PLAIN, False, False, SAME),
    (DENIED, OTHER_STORED, PLAIN, False, False, OTHER_STORED),
    (DENIED, {}, VENDOR, True, False, {}),
    (NEUTRAL, {}, PLAIN, False, True, CLAIMED),
    (NEUTRAL, SAME, PLAIN, False, True, SAME),
    (NEUTRAL, OTHER_STORED, PLAIN, False, False, OTHER_STORED),
    (NONE, {}, PLAIN, False, True, CLAIMED),
    (NONE, SAME, PLAIN, False, True, SAME),
    (NONE, OTHER_STORED, PLAIN, False, False, OTHER_STORED),
    # in another case; what is missing is filled in
    (NONE, {"ActiveDeviceID": P1.lower()}, PLAIN, False, True, CLAIMED | {"ActiveDeviceID": P1.lower()}),
    (NONE, {"ActiveDeviceID": P1, "ActiveInstanceID": "28"}, PLAIN, False, True, CLAIMED | {"ActiveInstanceID": "28"}),
    (NONE, {"ActiveDeviceID": P1, "ActiveLocationInformation": "there"}, PLAIN, False, True, CLAIMED | {"ActiveLocationInformation": "there"}),
    # a location without a device is nobody's
    (NONE, {"ActiveLocationInformation": "there"}, PLAIN, False, True, CLAIMED),
    # the full form counts
    (NONE, {"ActiveDeviceID": "PCI\\VEN_5853&DEV_0001"}, PLAIN, False, False, {"ActiveDeviceID": "PCI\\VEN_5853&DEV_0001"}),
    # a legacy device beside the vendor's
    (NONE, {}, VENDOR, True, False, {}),
    (NONE, {}, VENDOR, False, True, CLAIMED),
    (NONE, {}, PLAIN, True, True, CLAIMED),
    (NEUTRAL, {}, VENDOR, True, False, {}),
    (NEUTRAL, SAME, VENDOR, True, True, SAME),
]  # fmt: skip


@pytest.mark.parametrize(("activation", "stored", "build", "seen", "active", "after"), DECISIONS)
def test_active_device(activation, stored, build, seen: bool, active: bool, after) -> None:
    registry = Registry({PARAMETERS: stored})
    if seen:
        registry.create(C0_KEY)
    node = DeviceNode(P1, "10", location="here")
    assert claim_active(registry, node, activation, build) is active
    assert {
        name: registry.get(PARAMETERS, name)
        for name in ACTIVE_VALUES
        if registry.get(PARAMETERS, name)
    } == after


def test_the_vendors_device_claims_though_its_key_is_there() -> None:
    registry = Registry()
    registry.create(C0_KEY)
    assert claim_active(registry, DeviceNode(C0, "18"), None, VENDOR)


# in a machine


class Model:
    """A device model with these functions and drives, without ports."""

    def __init__(self, *functions: PciFunction, drives: tuple[IdeDrive, ...] = ()) -> None:
        self.listed = [one if one.devfn else place(one, 2 + n) for n, one in enumerate(functions)]
        self.ide = list(drives)

    def functions(self) -> list[PciFunction]:
        return self.listed

    def drives(self) -> list[IdeDrive]:
        return self.ide


def place(function: PciFunction, slot: int) -> PciFunction:
    import attrs

    return attrs.evolve(function, devfn=slot << 3)


LEGACY, SECOND, PVDEVICE = (
    hardware.platform_device(1),
    hardware.platform_device(2),
    hardware.vendor_device(),
)


def boot(
    world: World,
    *functions: PciFunction,
    registry: Registry | None = None,
    build: inf.Build | None = None,
) -> Windows:
    world.guest.ioport.attach(Model(hardware.IDE_CONTROLLER, *functions))
    windows = Windows(world.guest, {}, registry or Registry(inf.INF), build=build)
    windows.boot()
    world.loop.run()
    return windows


def found(windows: Windows, device_id: str) -> DeviceNode:
    node = windows.tree.find(device_id)
    assert node is not None
    return node


# devices, stored device, build, device that is active, states
MACHINES = [
    ("one legacy", (LEGACY,), None, PLAIN, P1, {P1: "started"}),
    ("the other legacy", (SECOND,), None, PLAIN, P2, {P2: "started"}),
    ("a stored one", (LEGACY,), P1, PLAIN, P1, {P1: "started"}),
    ("a stored one that is gone", (LEGACY,), P2, PLAIN, None, {P1: "started"}),
    ("a pvdevice without a driver for it", (LEGACY, PVDEVICE), None, PLAIN, P1, {P1: "started", C0: "initialized"}),
    ("a pvdevice alone", (PVDEVICE,), None, VENDOR, C0, {C0: "started"}),
    ("legacy first, then the vendor's", (LEGACY, PVDEVICE), None, VENDOR, P1, {P1: "started", C0: "started"}),
    ("the vendor's first", (PVDEVICE, LEGACY), None, VENDOR, C0, {P1: "started", C0: "started"}),
    ("none", (), None, PLAIN, None, {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("_case", "devices", "stored", "build", "active", "states"),
    MACHINES,
    ids=[row[0] for row in MACHINES],
)
def test_one_device_is_active(world: World, _case, devices, stored, build, active, states) -> None:
    registry = Registry(inf.INF)
    if stored:
        registry.set(PARAMETERS, "ActiveDeviceID", stored)
    windows = boot(world, *devices, registry=registry, build=build)
    assert {name: found(windows, name).state.value for name in states} == states
    assert [
        node.device_id for node in windows.tree.walk() if getattr(node.driver, "is_active", False)
    ] == ([active] if active else [])
    assert (windows.bus is not None) is (active is not None)
    for name in states:
        if name != active:
            assert found(windows, name).children == [], "an inactive device has no children"


def test_names(world: World) -> None:
    windows = boot(world, SECOND, build=inf.Build(vendor_prefix="XS"))
    node = found(windows, P2)
    assert node.description == "XS0002 XENBUS"
    assert (node.driver.vendor_name, node.service) == ("XS0002", "XENBUS")
    assert windows.bus is not None
    assert (windows.bus.vendor_name, windows.bus.name) == ("XS0002", "XS0002 XENBUS")
    assert windows.tree.find("XENBUS\\VEN_XS0002&DEV_IFACE&REV_0900000C") is not None


def test_a_pvdevice_without_its_driver_has_code_28(world: World) -> None:
    assert found(boot(world, LEGACY, PVDEVICE), C0).problem is Problem.FAILED_INSTALL


def test_precedence_wins_over_what_is_stored(world: World) -> None:
    registry = inf.installed()
    for name, value in inf.precedence(VENDOR).items():
        registry.set(inf.PRECEDENCE, name, value)
    windows = boot(world, LEGACY, PVDEVICE, registry=registry, build=VENDOR)
    assert [one.is_active for one in windows.platform_devices] == [False, True]
    assert registry.string(PARAMETERS, "ActiveDeviceID") == C0


def test_the_filters_come_with_the_first_and_go_with_the_last(world: World) -> None:
    windows = boot(world, LEGACY, SECOND)
    key = f"Control\\Class\\{inf.HDC_CLASS}"
    assert windows.registry.get(key, "UpperFilters") == ("XENFILT",)
    assert windows.xenfilt is None, "a filter that was not there at boot is not loaded"
    tree = windows.tree
    assert tree.remove(found(windows, P2)) is NTSTATUS.SUCCESS
    assert windows.registry.get(key, "UpperFilters") == ("XENFILT",)
    assert windows.registry.string(PARAMETERS, "ActiveDeviceID") == P1
    assert tree.remove(found(windows, P1)) is NTSTATUS.SUCCESS
    assert windows.registry.get(key, "UpperFilters") is None
    assert [windows.registry.get(PARAMETERS, name) for name in ACTIVE_VALUES] == [
        None, None, "PCI bus 0, device 3, function 0",
    ]  # fmt: skip
    assert windows.bus is None


def test_an_update_leaves_a_filter_that_does_nothing(world: World) -> None:
    build = inf.Build(clients={"XENFILT": (9, 0, 0, 0)})
    windows = boot(world, LEGACY, registry=inf.installed(devfn=3 << 3), build=build)
    assert windows.xenfilt is None
    assert windows.bus is not None, "XENBUS comes up without it"
    assert reboot_requests(windows.registry) == []


def test_an_update_leaves_a_bus_that_is_blocked_and_asks_for_a_reboot(world: World) -> None:
    build = inf.Build(clients={"XENBUS": (9, 0, 9, 1)})
    windows = boot(world, LEGACY, build=build)
    node = found(windows, P1)
    assert (node.state, node.problem, node.status) == (
        NodeState.INITIALIZED, Problem.DRIVER_BLOCKED, NTSTATUS.INCOMPATIBLE_DRIVER_BLOCKED,
    )  # fmt: skip
    assert reboot_requests(windows.registry) == ["XENBUS"]
    assert windows.registry.get(f"Control\\Class\\{inf.SYSTEM_CLASS}", "UpperFilters") == (
        "XENFILT",
    )


def test_without_xen_nothing_loads(world: World) -> None:
    world.hypervisor.cpu_vendor = "CyrixInstead"
    windows = boot(world, LEGACY, registry=inf.installed(devfn=3 << 3))
    assert windows.xenfilt is None
    node = found(windows, P1)
    assert (node.problem, node.status) == (Problem.FAILED_ADD, NTSTATUS.NOT_SUPPORTED)


# what the buses report

PCI_IDS = [
    (LEGACY, P1, ["PCI\\VEN_5853&DEV_0001&SUBSYS_00015853", "PCI\\VEN_5853&DEV_0001&CC_FF8000", "PCI\\VEN_5853&DEV_0001&CC_FF80"],
     ["PCI\\VEN_5853&DEV_0001&REV_01", "PCI\\VEN_5853&DEV_0001", "PCI\\VEN_5853&CC_FF8000", "PCI\\VEN_5853&CC_FF80", "PCI\\VEN_5853", "PCI\\CC_FF8000", "PCI\\CC_FF80"]),
    (hardware.nvme("intel"), "PCI\\VEN_8086&DEV_5845&SUBSYS_11001AF4&REV_02",
     ["PCI\\VEN_8086&DEV_5845&SUBSYS_11001AF4", "PCI\\VEN_8086&DEV_5845&CC_010802", "PCI\\VEN_8086&DEV_5845&CC_0108"],
     ["PCI\\VEN_8086&DEV_5845&REV_02", "PCI\\VEN_8086&DEV_5845", "PCI\\VEN_8086&CC_010802", "PCI\\VEN_8086&CC_0108", "PCI\\VEN_8086", "PCI\\CC_010802", "PCI\\CC_0108"]),
]  # fmt: skip


@pytest.mark.parametrize(("function", "device_id", "hardware_ids", "compatible_ids"), PCI_IDS)
def test_pci_ids(world: World, function, device_id, hardware_ids, compatible_ids) -> None:
    world.guest.ioport.attach(Model(function))
    (node,) = pci.PciBus(world.guest).bus_relations(DeviceNode("", ""), [])
    assert node.device_id == device_id
    assert node.hardware_ids == (device_id, *hardware_ids)
    assert node.compatible_ids == tuple(compatible_ids)
    assert (node.instance_id, node.location) == ("10", "PCI bus 0, device 2, function 0")


def test_drives_are_on_their_channels(world: World) -> None:
    drives = (IdeDrive(0), IdeDrive(3, is_cdrom=True))
    world.guest.ioport.attach(Model(hardware.IDE_CONTROLLER, drives=drives))
    windows = Windows(world.guest, {}, Registry(inf.INF))
    windows.boot()
    world.loop.run()
    channels = found(windows, "PCI\\CC_0101").children
    assert [(one.instance_id, [child.instance_id for child in one.children]) for one in channels] == [
        ("0", ["0.0.0"]), ("1", ["1.1.0"]),
    ]  # fmt: skip
    assert found(windows, "GenDisk").service == "disk"
    assert found(windows, "GenCdRom").service == "cdrom"
