"""XENFILT: what it hides and for how long, what EMULATED says, whom the precedence forces."""

from __future__ import annotations

import attrs
import pytest

from tests.world import World
from xenpv.bus import inf
from xenpv.bus.devicetree import DeviceNode, DeviceObject, DeviceTree, Inf, NodeState
from xenpv.bus.interface import query_interface
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.registry import Registry
from xenpv.bus.xenfilt import (
    Activation,
    EmulatedDevice,
    EmulatedDisk,
    EmulatedInterface,
    FilterState,
    Xenfilt,
    has_filters,
    ide_index,
    install_filters,
    remove_filters,
)

ACTIVE = "PCI\\VEN_5853&DEV_0001&SUBSYS_00015853&REV_01"
OTHER = "PCI\\VEN_10EC&DEV_8139&SUBSYS_11001AF4&REV_20"
NEUTRAL, FORCED, DENIED = (
    Activation.NEUTRAL,
    Activation.FORCE_ACTIVATED,
    Activation.FORCE_DEACTIVATED,
)


class Lines:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def dbg_print(self, text: str) -> None:
        self.lines.append(text)

    def printf(self, level: int, text: str) -> None:
        assert level
        self.lines.append(text)


class Unplug:
    """Counts; `then` is what happens to the hardware."""

    def __init__(self) -> None:
        self.log = Lines()
        self.calls = 0
        self.then = lambda: None

    def devices(self) -> None:
        self.calls += 1
        self.then()


@attrs.define(eq=False)
class Bus(DeviceObject):
    reports: list[DeviceNode] = attrs.field(factory=list)
    asked: int = 0

    def bus_relations(self, node: DeviceNode, below: list[DeviceNode]) -> list[DeviceNode]:
        del node, below
        self.asked += 1
        return list(self.reports)


def device(device_id: str = OTHER, instance: str = "18", *compatible: str) -> DeviceNode:
    short = device_id.partition("&SUBSYS")[0]
    return DeviceNode(
        device_id, instance, (device_id,), compatible or (short,), location="real place"
    )


@attrs.define(eq=False)
class Rig:
    """Buses PCIn and IDEn below a root, filtered as their names say; no drivers above them."""

    world: World
    tree: DeviceTree
    xenfilt: Xenfilt
    unplug: Unplug
    buses: dict[str, Bus]

    def node(self, name: str) -> DeviceNode:
        found = self.tree.find(f"BUS\\{name}")
        assert found is not None
        return found

    def children(self, name: str) -> list[DeviceNode]:
        return self.node(name).children

    def enumerate(self, name: str) -> None:
        self.tree.invalidate(self.node(name))
        self.world.loop.run()

    @property
    def emulated(self) -> list[object]:
        return self.xenfilt.emulated.objects


@pytest.fixture
def make(world: World):
    def made(
        reports: dict[str, list[DeviceNode]],
        *,
        active: dict[str, str] | None = None,
        precedence: dict[str, int] | None = None,
        safe_mode: bool = False,
    ) -> Rig:
        registry = Registry()
        for name in reports:
            registry.set(inf.XENFILT_PARAMETERS, f"BUS\\{name}", name[:3])
        for name, value in (
            {"ActiveDeviceID": ACTIVE, "ActiveInstanceID": "10"} if active is None else active
        ).items():
            registry.set(inf.XENFILT_PARAMETERS, name, value)
        for name, value in (precedence or {}).items():
            registry.set(inf.PRECEDENCE, name, value)
        registry.set(f"Control\\Class\\{inf.SYSTEM_CLASS}", "UpperFilters", ("XENFILT",))
        tree, unplug = DeviceTree(world.guest, registry), Unplug()
        xenfilt = Xenfilt(registry, unplug, safe_mode=safe_mode)
        tree.install_filter("XENFILT", xenfilt.add_device)
        buses = {name: Bus(nodes) for name, nodes in reports.items()}
        for name, bus in buses.items():
            tree.install(
                Inf("bus", (f"BUS\\{name}",), lambda tree, node, bus=bus: bus, inf.SYSTEM_CLASS)
            )
        tree.root.stack.append(
            Bus([DeviceNode(f"BUS\\{name}", "0", (f"BUS\\{name}",)) for name in reports])
        )
        return Rig(world, tree, xenfilt, unplug, buses)

    return made


def start(rig: Rig) -> Rig:
    rig.tree.invalidate(rig.tree.root)
    rig.world.loop.run()
    return rig


# the states


def test_children_appear_after_the_second_enumeration(make) -> None:
    rig = start(make({"PCI0": [device(ACTIVE, "10"), device()]}))
    assert rig.xenfilt.state is FilterState.DISABLED
    assert (rig.buses["PCI0"].asked, rig.unplug.calls) == (2, 1)
    assert [node.device_id for node in rig.children("PCI0")] == [ACTIVE, OTHER]


def test_what_is_unplugged_is_never_seen(make) -> None:
    gone = device()
    rig = make({"PCI0": [device(ACTIVE, "10"), gone]})
    rig.unplug.then = lambda: rig.buses["PCI0"].reports.remove(gone)
    start(rig)
    assert [node.device_id for node in rig.children("PCI0")] == [ACTIVE]
    assert rig.tree.registry.find(f"Enum\\{OTHER}") is None
    assert gone.state is NodeState.INITIALIZED
    assert rig.emulated == [EmulatedDevice(ACTIVE, "10")]


def test_every_bus_hides_until_every_bus_was_seen(make) -> None:
    rig = start(make({"PCI0": [device(ACTIVE, "10")], "IDE0": []}))
    assert rig.xenfilt.state is FilterState.ENABLED
    assert (rig.children("PCI0"), rig.unplug.calls) == ([], 0)
    rig.buses["IDE0"].reports.append(device("IDE\\Disk", "0.0.0"))
    rig.enumerate("IDE0")
    assert rig.xenfilt.state is FilterState.DISABLED
    assert (len(rig.children("PCI0")), len(rig.children("IDE0")), rig.unplug.calls) == (1, 1, 1)


def test_a_bus_without_children_does_not_count(make) -> None:
    rig = start(make({"PCI0": []}))
    assert (rig.xenfilt.state, rig.unplug.calls) == (FilterState.ENABLED, 0)
    assert rig.buses["PCI0"].asked == 1, "nobody spins on it"


def test_a_bus_that_comes_later_reports_at_once(make) -> None:
    rig = make({"PCI0": [device(ACTIVE, "10")]})
    start(rig)
    late = Bus([device("IDE\\Disk", "1.0.0")])
    rig.tree.registry.set(inf.XENFILT_PARAMETERS, "BUS\\IDE0", "IDE")
    rig.xenfilt._kinds["BUS\\IDE0"] = rig.xenfilt._kinds["BUS\\PCI0"].__class__.IDE
    rig.tree.install(Inf("bus", ("BUS\\IDE0",), lambda tree, node: late, inf.SYSTEM_CLASS))
    rig.tree.root.stack[-1].reports.append(DeviceNode("BUS\\IDE0", "0", ("BUS\\IDE0",)))
    start(rig)
    assert (late.asked, len(rig.children("IDE0"))) == (1, 1)
    assert rig.emulated[-1] == EmulatedDisk(2)


# situation, stored values, precedence, safe mode, unplugs
UNPLUGS = [
    ("the active device is there", {"ActiveDeviceID": ACTIVE, "ActiveInstanceID": "10"}, {}, False, 1),
    ("in another case", {"ActiveDeviceID": ACTIVE.lower(), "ActiveInstanceID": "10"}, {}, False, 1),
    ("at another place", {"ActiveDeviceID": ACTIVE, "ActiveInstanceID": "28"}, {}, False, 1),
    ("another device is active", {"ActiveDeviceID": "PCI\\VEN_5853&DEV_0002&SUBSYS_00025853&REV_01", "ActiveInstanceID": "10"}, {}, False, 0),
    ("nothing is stored", {}, {}, False, 0),
    ("nothing is stored, one is forced", {}, {"PCI\\VEN_5853&DEV_0001": 1}, False, 1),
    ("safe mode", {"ActiveDeviceID": ACTIVE, "ActiveInstanceID": "10"}, {}, True, 0),
    ("safe mode, forced", {}, {"PCI\\VEN_5853&DEV_0001": 1}, True, 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("_case", "active", "precedence", "safe_mode", "calls"),
    UNPLUGS,
    ids=[row[0] for row in UNPLUGS],
)
def test_unplug_needs_the_active_device_and_no_safe_mode(
    make, _case, active, precedence, safe_mode: bool, calls: int
) -> None:
    rig = start(
        make(
            {"PCI0": [device(ACTIVE, "10"), device()]},
            active=active,
            precedence=precedence,
            safe_mode=safe_mode,
        )
    )
    assert rig.unplug.calls == calls
    assert rig.xenfilt.state is FilterState.DISABLED, "children are reported in any case"
    assert len(rig.children("PCI0")) == 2


def test_unplug_happens_once(make) -> None:
    rig = start(make({"PCI0": [device(ACTIVE, "10")]}))
    rig.buses["PCI0"].reports.append(device())
    rig.enumerate("PCI0")
    rig.enumerate("PCI0")
    assert (rig.unplug.calls, len(rig.children("PCI0"))) == (1, 2)


# hardware ids, compatible ids, what the parameters say, is it filtered
BUSES = [
    (("BUS\\X",), (), {"BUS\\X": "PCI"}, True),
    (("bus\\x",), (), {"BUS\\X": "IDE"}, True),
    (("BUS\\Y",), ("BUS\\X",), {"BUS\\X": "PCI"}, True),
    (("BUS\\Y",), (), {"BUS\\X": "PCI"}, False),
    (("BUS\\X",), (), {"BUS\\X": "SCSI"}, False),
    (("BUS\\X",), (), {"BUS\\X": "pci"}, False),
    (("BUS\\X",), (), {"BUS\\X": 1}, False),
    (("BUS\\X",), (), {}, False),
    (("ACPI\\PNP0A03", "*PNP0A03"), (), inf.INF[inf.XENFILT_PARAMETERS], True),
    (("Intel-PIIX3", "Internal_IDE_Channel"), ("*PNP0600",), inf.INF[inf.XENFILT_PARAMETERS], True),
    (("PCI\\VEN_8086&DEV_7010",), ("PCI\\CC_0101",), inf.INF[inf.XENFILT_PARAMETERS], False),
]


@pytest.mark.parametrize(("hardware", "compatible", "parameters", "filtered"), BUSES)
def test_a_bus_is_what_the_parameters_name(
    world: World, hardware, compatible, parameters, filtered: bool
) -> None:
    registry = Registry({inf.XENFILT_PARAMETERS: parameters})
    node = DeviceNode("X", "0", hardware, compatible)
    made = Xenfilt(registry, Unplug()).add_device(DeviceTree(world.guest, registry), node)
    assert (made is not None) is filtered


def test_hardware_ids_say_what_a_bus_is_before_compatible_ids(world: World) -> None:
    registry = Registry({inf.XENFILT_PARAMETERS: {"A": "IDE", "B": "PCI"}})
    made = Xenfilt(registry, Unplug()).add_device(
        DeviceTree(world.guest, registry), DeviceNode("X", "0", ("B",), ("A",))
    )
    assert made.kind.value == "PCI"


# EMULATED

# instance id, index or status
INSTANCES = [
    ("0.0.0", 0), ("0.1.0", 1), ("1.0.0", 2), ("1.1.0", 3),
    ("0.0.1", NTSTATUS.NOT_SUPPORTED), ("1.1.7", NTSTATUS.NOT_SUPPORTED),
    ("2.0.0", NTSTATUS.INVALID_PARAMETER), ("0.2.0", NTSTATUS.INVALID_PARAMETER),
    ("2.0.1", NTSTATUS.INVALID_PARAMETER), ("0.0", NTSTATUS.INVALID_PARAMETER),
    ("1.0.0.0", NTSTATUS.INVALID_PARAMETER), ("", NTSTATUS.INVALID_PARAMETER),
    ("a.b.c", NTSTATUS.INVALID_PARAMETER), ("-1.0.0", NTSTATUS.INVALID_PARAMETER),
    ("0.0.0x", NTSTATUS.INVALID_PARAMETER), ("0.0.0\n", NTSTATUS.INVALID_PARAMETER),
    ("5&2770a7af&0&0.0.0", NTSTATUS.INVALID_PARAMETER), ("9" * 5000 + ".0.0", NTSTATUS.INVALID_PARAMETER),
    ("\u0661.0.0", NTSTATUS.INVALID_PARAMETER),
]  # fmt: skip


@pytest.mark.parametrize(("instance", "expected"), INSTANCES)
def test_ide_index(instance: str, expected) -> None:
    if not isinstance(expected, NTSTATUS):
        assert ide_index(instance) == expected
        return
    with pytest.raises(NtStatusError) as caught:
        ide_index(instance)
    assert caught.value.status is expected


def test_an_ide_child_with_another_id_is_not_reported(make) -> None:
    rig = start(
        make(
            {
                "PCI0": [device(ACTIVE, "10")],
                "IDE0": [
                    device("IDE\\Disk", "0.1.0"),
                    device("IDE\\Tape", "0.0.3"),
                    device("IDE\\Odd", "x"),
                ],
            }
        )
    )
    assert [node.device_id for node in rig.children("IDE0")] == ["IDE\\Disk"]
    assert EmulatedDisk(1) in rig.emulated
    assert len(rig.emulated) == 2


def emulated(*objects: EmulatedDevice | EmulatedDisk, version: int = 3):
    implementation = EmulatedInterface()
    implementation.objects = list(objects)
    made = query_interface([implementation], "959027a1-fcce-4e78-bcf4-637384f499c5", version)
    made.acquire()
    return made


NIC = EmulatedDevice("PCI\\A", "18")
# objects, device id, instance id, v3's answer
DEVICES = [
    ([], "PCI\\A", None, (False, NEUTRAL)),
    ([NIC], "PCI\\A", None, (True, NEUTRAL)),
    ([NIC], "pci\\a", "18", (True, NEUTRAL)),
    ([NIC], "PCI\\A", "19", (False, NEUTRAL)),
    ([EmulatedDevice("PCI\\A", "AB")], "PCI\\A", "ab", (True, NEUTRAL)),
    ([NIC], "PCI\\B", None, (False, NEUTRAL)),
    ([NIC], "PCI", None, (False, NEUTRAL)),
    ([NIC], None, None, (False, NEUTRAL)),
    ([NIC, EmulatedDevice("PCI\\B", "20", FORCED)], None, None, (True, FORCED)),
    ([NIC, EmulatedDevice("PCI\\B", "20", FORCED)], None, "18", (False, NEUTRAL)),
    ([EmulatedDevice("PCI\\B", "20", DENIED)], None, None, (False, NEUTRAL)),
    ([EmulatedDevice("PCI\\B", "20", DENIED)], "PCI\\B", None, (True, DENIED)),
    ([NIC, EmulatedDevice("PCI\\A", "20", FORCED)], "PCI\\A", "20", (True, FORCED)),
    ([EmulatedDisk(0)], "PCI\\A", None, (False, NEUTRAL)),
]  # fmt: skip


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize(("objects", "device_id", "instance_id", "answer"), DEVICES)
def test_is_device_present(version: int, objects, device_id, instance_id, answer) -> None:
    found = emulated(*objects, version=version).is_device_present(device_id, instance_id)
    assert found == (answer if version == 3 else answer[0])


NVME = EmulatedDevice("PCI\\NVME", "20", is_nvme=True)
# objects, index, answer
DISKS = [
    ([], 0, False),
    ([EmulatedDisk(0)], 0, True),
    ([EmulatedDisk(0)], 1, False),
    ([EmulatedDisk(3), EmulatedDisk(1)], 1, True),
    ([EmulatedDisk(0)], 2, False),
    ([NIC], 0, False),
    ([NVME], 0, True),
    ([NVME], 77, True),
    ([EmulatedDisk(0), NVME], 3, True),
]


@pytest.mark.parametrize(("objects", "index", "answer"), DISKS)
def test_is_disk_present(objects, index: int, answer: bool) -> None:
    assert emulated(*objects, version=2).is_disk_present(index) is answer
    assert emulated(*objects, version=3).is_disk_present(index) is answer
    assert emulated(*objects, version=1).is_disk_present(0, index, 0) is answer
    assert emulated(*objects, version=1).is_disk_present(1, index, 1) is answer, (
        "the target alone counts"
    )


@pytest.mark.parametrize(("version", "size"), [(1, 64), (2, 64), (3, 64)])
def test_versions(version: int, size: int) -> None:
    assert emulated(version=version).size == size
    with pytest.raises(NtStatusError) as caught:
        query_interface([EmulatedInterface()], EmulatedInterface.GUID, version, size - 1)
    assert caught.value.status is NTSTATUS.BUFFER_OVERFLOW


@pytest.mark.parametrize("version", [0, 4])
def test_unknown_versions(version: int) -> None:
    with pytest.raises(NtStatusError) as caught:
        query_interface([EmulatedInterface()], EmulatedInterface.GUID, version)
    assert caught.value.status is NTSTATUS.NOT_SUPPORTED


# compatible ids, is it an emulated NVMe
NVMES = [
    (("PCI\\VEN_8086&DEV_5845",), True),
    (("PCI\\VEN_1B36&DEV_0010&REV_02", "PCI\\VEN_1B36&DEV_0010", "PCI\\CC_0108"), True),
    (("pci\\ven_1b36&dev_0010",), True),
    (("PCI\\VEN_144D&DEV_A808", "PCI\\CC_010802", "PCI\\CC_0108"), False),
    (("PCI\\VEN_8086&DEV_5846",), False),
]


@pytest.mark.parametrize(("compatible", "is_nvme"), NVMES)
def test_only_qemus_nvme_counts_as_emulated(make, compatible, is_nvme: bool) -> None:
    rig = start(make({"PCI0": [device(ACTIVE, "10"), device("PCI\\NVME", "20", *compatible)]}))
    assert rig.xenfilt.emulated.is_disk_present(0) is is_nvme


def test_a_device_that_goes_leaves_the_list(make) -> None:
    nic = device()
    rig = start(make({"PCI0": [device(ACTIVE, "10"), nic]}))
    assert len(rig.emulated) == 2
    rig.buses["PCI0"].reports.remove(nic)
    rig.enumerate("PCI0")
    assert rig.emulated == [EmulatedDevice(ACTIVE, "10")]


def test_a_bus_that_goes_takes_its_list_along(make) -> None:
    rig = start(make({"PCI0": [device(ACTIVE, "10")], "IDE0": [device("IDE\\Disk", "0.0.0")]}))
    rig.tree.root.stack[-1].reports.pop()
    start(rig)
    assert rig.emulated == [EmulatedDevice(ACTIVE, "10")]
    assert len(rig.xenfilt.buses) == 1


def test_children_are_asked_for_emulated_by_their_drivers(make) -> None:
    rig = start(make({"PCI0": [device(ACTIVE, "10")]}))
    child = rig.children("PCI0")[0]
    made = rig.tree.query_interface(child, EmulatedInterface.GUID, 3)
    made.acquire()
    assert made.is_device_present(ACTIVE) == (True, NEUTRAL)
    with pytest.raises(NtStatusError) as caught:
        rig.tree.query_interface(rig.node("PCI0"), EmulatedInterface.GUID, 3)
    assert caught.value.status is NTSTATUS.NOT_SUPPORTED


# the stored instance

# situation, stored values, instance and location as reported, or None: not reported
SUBSTITUTES = [
    (
        "the same place",
        {"ActiveInstanceID": "10", "ActiveLocationInformation": "here"},
        ("10", "here"),
    ),
    (
        "another place",
        {"ActiveInstanceID": "28", "ActiveLocationInformation": "there"},
        ("28", "there"),
    ),
    ("no location", {"ActiveInstanceID": "28"}, ("28", "real place")),
    ("no instance", {"ActiveLocationInformation": "there"}, None),
]


@pytest.mark.parametrize(
    ("_case", "stored", "reported"), SUBSTITUTES, ids=[row[0] for row in SUBSTITUTES]
)
def test_the_active_device_is_where_it_was(make, _case, stored, reported) -> None:
    rig = start(
        make(
            {"PCI0": [device(ACTIVE.lower(), "10"), device()]},
            active={"ActiveDeviceID": ACTIVE, **stored},
        )
    )
    found = [
        (node.instance_id, node.location)
        for node in rig.children("PCI0")
        if node.device_id == ACTIVE.lower()
    ]
    assert found == ([] if reported is None else [reported])
    others = [node for node in rig.children("PCI0") if node.device_id == OTHER]
    assert [(node.instance_id, node.location) for node in others] == [("18", "real place")]


def test_a_forced_device_is_where_it_is(make) -> None:
    rig = start(
        make(
            {"PCI0": [device(ACTIVE, "10")]},
            active={"ActiveDeviceID": ACTIVE},
            precedence={"PCI\\VEN_5853&DEV_0001": 1},
        )
    )
    assert rig.children("PCI0")[0].instance_id == "10"


# the precedence

P1, P2, C0 = "PCI\\VEN_5853&DEV_0001", "PCI\\VEN_5853&DEV_0002", "PCI\\VEN_5853&DEV_C000"
# situation, precedence, compatible ids of the new children, what becomes of them
PRECEDENCES = [
    ("no key", None, [P1, C0], [NEUTRAL, NEUTRAL]),
    ("a key without values", {}, [P1, C0], [NEUTRAL, NEUTRAL]),
    ("none has a value", {P2: 2}, [P1, C0], [NEUTRAL, NEUTRAL]),
    ("one has a value", {P1: 1}, [P1, "PCI\\NIC"], [FORCED, DENIED]),
    ("the largest", {P1: 1, P2: 2, C0: 0xC000}, [P1, C0, "PCI\\NIC"], [DENIED, FORCED, DENIED]),
    ("the INF's", inf.precedence(inf.Build(vendor_device_id=0xC000)), [P2, P1], [FORCED, DENIED]),
    ("the INF's, without a vendor", inf.precedence(), [P1, C0], [FORCED, DENIED]),
    ("zero is none", {P1: 0}, [P1], [NEUTRAL]),
    ("zero beside another", {P1: 0, C0: 5}, [P1, C0], [DENIED, FORCED]),
    ("in another case", {P1.lower(): 1}, [P1], [FORCED]),
    ("equal: the first", {P1: 3, P2: 3}, [P2, P1], [FORCED, DENIED]),
    ("another type", {P1: "1"}, [P1], [NEUTRAL]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("_case", "precedence", "ids", "expected"), PRECEDENCES, ids=[row[0] for row in PRECEDENCES]
)
def test_precedence(_case, precedence, ids, expected) -> None:
    registry = Registry()
    if precedence is not None:
        registry.create(inf.PRECEDENCE)
        for name, value in precedence.items():
            registry.set(inf.PRECEDENCE, name, value)
    nodes = [DeviceNode("X", str(n), compatible_ids=(one,)) for n, one in enumerate(ids)]
    found = Xenfilt(registry, Unplug()).activations(nodes)
    assert [found.get(node, NEUTRAL) for node in nodes] == expected


def test_precedence_is_among_the_new_children_of_one_enumeration(make) -> None:
    first = device(ACTIVE, "10")
    rig = start(make({"PCI0": [first]}, active={}, precedence={P1: 1, C0: 0xC000}))
    rig.buses["PCI0"].reports.append(device("PCI\\VEN_5853&DEV_C000", "18"))
    rig.enumerate("PCI0")
    assert [one.activation for one in rig.emulated] == [FORCED, FORCED]


# UpperFilters

# before, after install, after remove
FILTERS = [
    (None, ("XENFILT",), None),
    (("other",), ("other", "XENFILT"), ("other",)),
    (("xenfilt",), ("xenfilt",), None),
    (("a", "XenFilt", "b"), ("a", "XenFilt", "b"), ("a", "b")),
]


@pytest.mark.parametrize(("before", "installed", "removed"), FILTERS)
def test_upper_filters(before, installed, removed) -> None:
    registry = Registry()
    keys = [f"Control\\Class\\{{4d36e9{one}-e325-11ce-bfc1-08002be10318}}" for one in ("7d", "6a")]
    for key in keys:
        if before is not None:
            registry.set(key, "UpperFilters", before)
    install_filters(registry)
    install_filters(registry)
    assert [registry.get(key, "UpperFilters") for key in keys] == [installed] * 2
    assert has_filters(registry)
    remove_filters(registry)
    remove_filters(registry)
    assert [registry.get(key, "UpperFilters") for key in keys] == [removed] * 2
    assert not has_filters(registry)
