"""The PnP manager: which driver a device gets, which requests it sees, and in which order."""

from __future__ import annotations

from typing import ClassVar

import attrs
import pytest

from tests.world import World
from xenpv.bus.devicetree import (
    DeviceNode,
    DeviceObject,
    DeviceTree,
    Inf,
    Irp,
    NodeState,
    Problem,
)
from xenpv.bus.interface import Interface, InterfaceVersion, query_interface
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.registry import Registry
from xenpv.errors import LocalProtocolError

CLASS = "{4d36e97d-e325-11ce-bfc1-08002be10318}"


@attrs.define(eq=False)
class Recorder(DeviceObject):
    """Records what it is asked, and answers as it is told to."""

    name: str
    log: list[str]
    answers: dict[Irp, NTSTATUS] = attrs.field(factory=dict)
    reports: list[DeviceNode] | None = None

    def pnp(self, node: DeviceNode, irp: Irp) -> NTSTATUS:
        self.log.append(f"{self.name} {node.instance_id} {irp.name}")
        return self.answers.get(irp, NTSTATUS.SUCCESS)

    def bus_relations(self, node: DeviceNode, below: list[DeviceNode]) -> list[DeviceNode]:
        del node
        return below if self.reports is None else list(self.reports)


@attrs.define(eq=False)
class Rig:
    """A bus at the root, a driver `fdo` for ids that begin with TEST, a filter of its class."""

    world: World
    tree: DeviceTree
    bus: Recorder
    fdo: Recorder
    log: list[str]

    def node(self, instance: str, device: str = "TEST\\A", *, ids: tuple[str, ...] = ()):
        stack = [Recorder("pdo", self.log)]
        return DeviceNode(device, instance, hardware_ids=ids or (device,), stack=stack)

    def report(self, *nodes: DeviceNode) -> None:
        self.bus.reports = list(nodes)
        self.tree.invalidate(self.tree.root)
        self.world.loop.run()


@pytest.fixture
def rig(world: World) -> Rig:
    log: list[str] = []
    tree = DeviceTree(world.guest, Registry())
    bus, fdo = Recorder("bus", log, reports=[]), Recorder("fdo", log)
    tree.root.stack.append(bus)
    tree.install(Inf("TESTDRV", ("test\\a", "test\\b"), lambda tree, node: fdo, CLASS))
    return Rig(world, tree, bus, fdo, log)


def filtered(rig: Rig) -> Recorder:
    found = Recorder("filter", rig.log)
    rig.tree.install_filter("FILT", lambda tree, node: found)
    rig.tree.registry.set(f"Control\\Class\\{CLASS}", "UpperFilters", ("filt",))
    return found


# situation, hardware ids, compatible ids, service
MATCHES = [
    ("the first hardware id", ("TEST\\A", "TEST\\B"), (), "one"),
    ("a later hardware id", ("TEST\\X", "TEST\\B"), (), "two"),
    ("hardware before compatible", ("TEST\\B",), ("TEST\\A",), "two"),
    ("a compatible id", ("TEST\\X",), ("TEST\\Y", "TEST\\A"), "one"),
    ("another case", ("test\\a",), (), "one"),
    ("no id of a driver's", ("TEST\\X",), ("TEST\\Y",), None),
    ("a prefix is no match", ("TEST\\A&REV_01",), (), None),
    ("no id at all", (), (), None),
]


@pytest.mark.parametrize(
    ("_case", "hardware", "compatible", "service"),
    MATCHES,
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_driver_is_that_of_the_first_id_that_has_one(
    world: World, _case, hardware, compatible, service
) -> None:
    tree = DeviceTree(world.guest, Registry())
    for name, one in (("one", "TEST\\A"), ("two", "TEST\\B")):
        tree.install(Inf(name, (one,), lambda tree, node: None))
    node = DeviceNode("TEST\\Z", "0", hardware_ids=hardware, compatible_ids=compatible)
    found = tree.match(node)
    assert (None if found is None else found.service) == service


def test_a_new_child_is_added_started_and_known_to_the_registry(rig: Rig) -> None:
    node = rig.node("7")
    rig.report(node)
    assert (node.state, node.problem, node.service) == (NodeState.STARTED, Problem.NONE, "TESTDRV")
    assert (node.parent, rig.tree.root.children) == (rig.tree.root, [node])
    assert rig.log == ["pdo 7 START_DEVICE", "fdo 7 START_DEVICE"]
    assert rig.tree.registry.subkeys("Enum\\TEST\\A") == ["7"]
    assert rig.tree.lines() == ["HTREE\\ROOT\\0 PnpManager started", "  TEST\\A\\7 TESTDRV started"]


# irp, what sends it, order in which the stack sees it
ORDERS = [
    (Irp.START_DEVICE, ["pdo", "fdo", "filter"]),
    (Irp.CANCEL_STOP_DEVICE, ["pdo", "fdo", "filter"]),
    (Irp.CANCEL_REMOVE_DEVICE, ["pdo", "fdo", "filter"]),
    (Irp.QUERY_STOP_DEVICE, ["filter", "fdo", "pdo"]),
    (Irp.STOP_DEVICE, ["filter", "fdo", "pdo"]),
    (Irp.QUERY_REMOVE_DEVICE, ["filter", "fdo", "pdo"]),
    (Irp.REMOVE_DEVICE, ["filter", "fdo", "pdo"]),
    (Irp.SURPRISE_REMOVAL, ["filter", "fdo", "pdo"]),
    (Irp.EJECT, ["filter", "fdo", "pdo"]),
]


@pytest.mark.parametrize(
    ("irp", "order"), ORDERS, ids=lambda x: x.name if isinstance(x, Irp) else None
)
def test_requests_go_through_the_stack_from_the_end_that_acts_first(
    rig: Rig, irp: Irp, order: list[str]
) -> None:
    filtered(rig)
    node = rig.node("7")
    rig.report(node)
    rig.log.clear()
    assert rig.tree.request(node, irp) is NTSTATUS.SUCCESS
    assert rig.log == [f"{who} 7 {irp.name}" for who in order]


# irp, what fdo answers, answer, does the rest of the stack see it
REFUSALS = [
    (Irp.QUERY_STOP_DEVICE, NTSTATUS.UNSUCCESSFUL, NTSTATUS.UNSUCCESSFUL, False),
    (Irp.QUERY_REMOVE_DEVICE, NTSTATUS.ACCESS_DENIED, NTSTATUS.ACCESS_DENIED, False),
    (Irp.START_DEVICE, NTSTATUS.NO_MEMORY, NTSTATUS.NO_MEMORY, False),
    (Irp.START_DEVICE, NTSTATUS.PENDING, NTSTATUS.PENDING, True),
    (Irp.EJECT, NTSTATUS.UNSUCCESSFUL, NTSTATUS.UNSUCCESSFUL, False),
    (Irp.REMOVE_DEVICE, NTSTATUS.UNSUCCESSFUL, NTSTATUS.SUCCESS, True),
    (Irp.SURPRISE_REMOVAL, NTSTATUS.UNSUCCESSFUL, NTSTATUS.SUCCESS, True),
    (Irp.CANCEL_STOP_DEVICE, NTSTATUS.UNSUCCESSFUL, NTSTATUS.SUCCESS, True),
]


@pytest.mark.parametrize(("irp", "given", "answer", "goes_on"), REFUSALS)
def test_a_refusal_ends_a_request_that_may_be_refused(
    rig: Rig, irp: Irp, given, answer, goes_on
) -> None:
    filtered(rig)
    node = rig.node("7")
    rig.report(node)
    rig.log.clear()
    rig.fdo.answers[irp] = given
    assert rig.tree.request(node, irp) is answer
    assert len(rig.log) == (3 if goes_on else 2)


# situation, what fails, problem, what the stack saw
FAILURES = [
    ("pdo refuses to start", "pdo", NTSTATUS.UNSUCCESSFUL, Problem.FAILED_START,
     ["pdo 7 START_DEVICE", "fdo 7 REMOVE_DEVICE", "pdo 7 REMOVE_DEVICE"]),
    ("driver refuses to start", "fdo", NTSTATUS.NO_MEMORY, Problem.FAILED_START,
     ["pdo 7 START_DEVICE", "fdo 7 START_DEVICE", "fdo 7 REMOVE_DEVICE", "pdo 7 REMOVE_DEVICE"]),
    ("driver is of another version", "fdo", NTSTATUS.INCOMPATIBLE_DRIVER_BLOCKED, Problem.DRIVER_BLOCKED,
     ["pdo 7 START_DEVICE", "fdo 7 START_DEVICE", "fdo 7 REMOVE_DEVICE", "pdo 7 REMOVE_DEVICE"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("_case", "who", "status", "problem", "log"),
    FAILURES,
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_a_failed_start_leaves_the_device_without_driver(
    rig: Rig, _case, who, status, problem, log
) -> None:
    node = rig.node("7")
    culprit = rig.fdo if who == "fdo" else node.stack[0]
    culprit.answers[Irp.START_DEVICE] = status
    rig.report(node)
    assert (node.state, node.problem, node.status) == (NodeState.INITIALIZED, problem, status)
    assert (node.driver, len(node.stack)) == (None, 1)
    assert rig.log == log
    culprit.answers.clear()
    assert rig.tree.start(node) is NTSTATUS.SUCCESS
    assert (node.state, node.problem) == (NodeState.STARTED, Problem.NONE)


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (NTSTATUS.NOT_SUPPORTED, Problem.FAILED_ADD),
        (NTSTATUS.INCOMPATIBLE_DRIVER_BLOCKED, Problem.DRIVER_BLOCKED),
    ],
)
def test_a_driver_refuses_a_device_when_it_is_added(rig: Rig, status, problem) -> None:
    def refuse(tree: DeviceTree, node: DeviceNode) -> DeviceObject:
        raise NtStatusError(status)

    rig.tree.install(Inf("NO", ("TEST\\A",), refuse))
    node = rig.node("7")
    rig.report(node)
    assert (node.state, node.problem, node.status) == (NodeState.INITIALIZED, problem, status)
    assert rig.log == []


def test_a_device_without_driver_has_code_28(rig: Rig) -> None:
    node = rig.node("7", "OTHER\\X")
    rig.report(node)
    assert (node.state, node.problem.value) == (NodeState.INITIALIZED, 28)
    assert rig.tree.lines()[1] == "  OTHER\\X\\7 - initialized code 28 FAILED_INSTALL"


def test_a_pending_start_ends_when_the_driver_says_so(rig: Rig) -> None:
    node = rig.node("7")
    rig.fdo.answers[Irp.START_DEVICE] = NTSTATUS.PENDING
    rig.report(node)
    assert node.state is NodeState.STARTING
    assert rig.tree.start(node) is NTSTATUS.SUCCESS, "once is enough"
    assert rig.log.count("fdo 7 START_DEVICE") == 1
    assert rig.tree.complete(node, NTSTATUS.SUCCESS) is NTSTATUS.SUCCESS
    assert node.state is NodeState.STARTED
    assert rig.tree.complete(node, NTSTATUS.SUCCESS) is NTSTATUS.INVALID_DEVICE_STATE


def test_a_missing_child_is_surprised_and_then_removed_with_all_below_it(rig: Rig) -> None:
    parent, child = rig.node("7"), rig.node("8", "TEST\\C")
    below = Recorder("sub", rig.log)
    rig.tree.install(Inf("SUB", ("TEST\\C",), lambda tree, node: below))
    rig.fdo.reports = [child]
    rig.report(parent)
    assert [node.instance_id for node in rig.tree.walk()] == ["0", "7", "8"]
    rig.log.clear()
    rig.report()
    assert rig.log == [
        "sub 8 SURPRISE_REMOVAL", "pdo 8 SURPRISE_REMOVAL",
        "fdo 7 SURPRISE_REMOVAL", "pdo 7 SURPRISE_REMOVAL",
        "sub 8 REMOVE_DEVICE", "pdo 8 REMOVE_DEVICE",
        "fdo 7 REMOVE_DEVICE", "pdo 7 REMOVE_DEVICE",
    ]  # fmt: skip
    assert (parent.state, child.state) == (NodeState.DELETED, NodeState.DELETED)
    assert rig.tree.root.children == []
    assert rig.tree.start(parent) is NTSTATUS.NO_SUCH_DEVICE
    rig.report(parent)
    assert rig.tree.root.children == [], "a bus may not bring back a node that was deleted"
    rig.report(again := rig.node("7"))
    assert again.started


def test_a_missing_child_that_never_ran_is_only_removed(rig: Rig) -> None:
    rig.report(rig.node("7", "OTHER\\X"))
    rig.report()
    assert rig.log == ["pdo 7 REMOVE_DEVICE"]


def test_enumeration_again_disturbs_nobody_who_is_still_there(rig: Rig) -> None:
    first, second = rig.node("1"), rig.node("2")
    rig.report(first)
    rig.log.clear()
    rig.report(first, second)
    assert rig.log == ["pdo 2 START_DEVICE", "fdo 2 START_DEVICE"]


def test_stop_and_restart(rig: Rig) -> None:
    node = rig.node("7")
    rig.report(node)
    rig.log.clear()
    assert rig.tree.stop(node) is NTSTATUS.SUCCESS
    assert node.state is NodeState.STOPPED
    assert rig.tree.stop(node) is NTSTATUS.INVALID_DEVICE_STATE
    assert rig.tree.start(node) is NTSTATUS.SUCCESS
    assert rig.log == [
        "fdo 7 QUERY_STOP_DEVICE", "pdo 7 QUERY_STOP_DEVICE", "fdo 7 STOP_DEVICE", "pdo 7 STOP_DEVICE",
        "pdo 7 START_DEVICE", "fdo 7 START_DEVICE",
    ]  # fmt: skip


def test_a_refused_stop_is_cancelled(rig: Rig) -> None:
    node = rig.node("7")
    rig.report(node)
    rig.log.clear()
    rig.fdo.answers[Irp.QUERY_STOP_DEVICE] = NTSTATUS.UNSUCCESSFUL
    assert rig.tree.stop(node) is NTSTATUS.UNSUCCESSFUL
    assert node.started
    assert rig.log == [
        "fdo 7 QUERY_STOP_DEVICE",
        "pdo 7 CANCEL_STOP_DEVICE",
        "fdo 7 CANCEL_STOP_DEVICE",
    ]


def test_a_refused_removal_is_cancelled_for_all_who_were_asked(rig: Rig) -> None:
    parent, child = rig.node("7"), rig.node("8", "TEST\\C")
    below = Recorder("sub", rig.log)
    rig.tree.install(Inf("SUB", ("TEST\\C",), lambda tree, node: below))
    rig.fdo.reports = [child]
    rig.report(parent)
    rig.log.clear()
    rig.fdo.answers[Irp.QUERY_REMOVE_DEVICE] = NTSTATUS.UNSUCCESSFUL
    assert rig.tree.remove(parent) is NTSTATUS.UNSUCCESSFUL
    assert (parent.state, child.state) == (NodeState.STARTED, NodeState.STARTED)
    assert rig.log == [
        "sub 8 QUERY_REMOVE_DEVICE", "pdo 8 QUERY_REMOVE_DEVICE", "fdo 7 QUERY_REMOVE_DEVICE",
        "pdo 7 CANCEL_REMOVE_DEVICE", "fdo 7 CANCEL_REMOVE_DEVICE",
        "pdo 8 CANCEL_REMOVE_DEVICE", "sub 8 CANCEL_REMOVE_DEVICE",
    ]  # fmt: skip


def test_a_disabled_device_stays_in_the_tree_and_can_be_started(rig: Rig) -> None:
    node = rig.node("7")
    rig.report(node)
    rig.log.clear()
    assert rig.tree.remove(node) is NTSTATUS.SUCCESS
    assert (node.state, node.problem, node.driver) == (
        NodeState.INITIALIZED,
        Problem.DISABLED,
        None,
    )
    assert rig.log == [
        "fdo 7 QUERY_REMOVE_DEVICE", "pdo 7 QUERY_REMOVE_DEVICE", "fdo 7 REMOVE_DEVICE", "pdo 7 REMOVE_DEVICE",
    ]  # fmt: skip
    rig.report(node)
    assert node.problem is Problem.DISABLED
    assert rig.tree.start(node) is NTSTATUS.SUCCESS
    assert (node.started, node.problem) == (True, Problem.NONE)


def test_eject_is_for_the_bus_and_asks_it_again(rig: Rig) -> None:
    node = rig.node("7")
    rig.report(node)
    rig.log.clear()
    rig.bus.reports = []
    assert rig.tree.eject(node) is NTSTATUS.SUCCESS
    assert node.problem is Problem.HELD_FOR_EJECT
    assert rig.log[-1] == "pdo 7 EJECT"
    rig.world.loop.run()
    assert node.state is NodeState.DELETED


def test_the_root_cannot_be_removed(rig: Rig) -> None:
    with pytest.raises(LocalProtocolError, match=r"HTREE\\ROOT\\0"):
        rig.tree.remove(rig.tree.root)


def test_upper_filters_are_those_that_the_class_names_and_that_are_there(rig: Rig) -> None:
    filtered(rig)
    rig.tree.registry.set(f"Control\\Class\\{CLASS}", "UpperFilters", ("ghost", "filt"))
    rig.report(node := rig.node("7"))
    assert [one.name for one in node.stack] == ["pdo", "fdo", "filter"]


def test_a_filter_may_leave_a_device_alone(rig: Rig) -> None:
    filtered(rig)
    rig.tree.install_filter("FILT", lambda tree, node: None)
    rig.report(node := rig.node("7"))
    assert [one.name for one in node.stack] == ["pdo", "fdo"]


def test_a_filter_of_a_bus_sees_what_the_bus_reports(rig: Rig) -> None:
    class Hide(DeviceObject):
        def bus_relations(self, node: DeviceNode, below: list[DeviceNode]) -> list[DeviceNode]:
            del node
            return [one for one in below if one.instance_id != "2"]

    rig.tree.root.stack.append(Hide())
    rig.report(rig.node("1"), rig.node("2"))
    assert [node.instance_id for node in rig.tree.root.children] == ["1"]


def test_find_knows_paths_and_ids_in_any_case(rig: Rig) -> None:
    rig.report(node := rig.node("7", ids=("TEST\\A",)))
    for name in ("test\\a\\7", "TEST\\a"):
        assert rig.tree.find(name) is node
    assert rig.tree.find("TEST\\B") is None


class Nothing(Interface):
    NAME = "NOTHING"
    GUID = "00000000-0000-0000-0000-00000000000A"
    OPERATIONS: ClassVar = {1: ()}


def test_interfaces_are_asked_for_from_the_top_down(rig: Rig) -> None:
    class Has(DeviceObject):
        def query_interface(self, node, guid, version, size) -> InterfaceVersion:
            del node
            return query_interface([Nothing()], guid, version, size)

    rig.report(node := rig.node("7"))
    with pytest.raises(NtStatusError, match="NOT_SUPPORTED") as caught:
        rig.tree.query_interface(node, Nothing.GUID, 1)
    assert caught.value.status is NTSTATUS.NOT_SUPPORTED
    node.stack.insert(1, Has())
    assert rig.tree.query_interface(node, Nothing.GUID, 1).version == 1
    with pytest.raises(NtStatusError) as caught:
        rig.tree.query_interface(node, Nothing.GUID, 2)
    assert caught.value.status is NTSTATUS.NOT_SUPPORTED


def test_a_bus_may_ask_to_be_asked_again_while_it_is_asked(rig: Rig) -> None:
    class Twice(DeviceObject):
        asked = 0

        def bus_relations(self, node: DeviceNode, below: list[DeviceNode]) -> list[DeviceNode]:
            self.asked += 1
            if self.asked == 1:
                rig.tree.invalidate(node)
                return []
            return below

    rig.tree.root.stack.append(twice := Twice())
    rig.report(node := rig.node("1"))
    assert (twice.asked, node.started) == (2, True)
