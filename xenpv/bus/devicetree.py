"""The PnP manager of a Windows guest: its tree of devices and the requests it sends to them.

A bus reports its children; each gets the driver that its ids name, and is started. A driver
has a `DeviceObject` on the stack of the device: the bus' own at the bottom, then bus filters,
the function driver, upper filters of the device's class. Requests go up or down that stack.

    tree = DeviceTree(domain, registry)
    tree.install(Inf(service="XENVIF", ids=(r"XENBUS\\VEN_XP0001&DEV_VIF",), add_device=add))
    tree.invalidate(tree.root)      # a task of the loop asks the bus for its children
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Final

import attrs

from xenpv.bus.interface import InterfaceVersion
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.registry import Registry
from xenpv.errors import LocalProtocolError
from xenpv.xen.domain import Domain
from xenpv.xen.loop import Task

ROOT_ID: Final = "HTREE\\ROOT"
CLASSES: Final = "Control\\Class\\"
LEVELS_MAX: Final = 64  # that one run of the enumeration goes down
CHILDREN_MAX: Final = 4096  # of one bus; those beyond are not seen


class Irp(enum.IntEnum):
    """Minor functions of IRP_MJ_PNP (wdm.h, IRP_MN_)."""

    START_DEVICE = 0x00
    QUERY_REMOVE_DEVICE = 0x01
    REMOVE_DEVICE = 0x02
    CANCEL_REMOVE_DEVICE = 0x03
    STOP_DEVICE = 0x04
    QUERY_STOP_DEVICE = 0x05
    CANCEL_STOP_DEVICE = 0x06
    EJECT = 0x11
    SURPRISE_REMOVAL = 0x17


class NodeState(enum.Enum):
    """PNP_DEVNODE_STATE, what of it lasts."""

    INITIALIZED = "initialized"  # reported, without a driver on its stack
    ADDED = "added"  # AddDevice succeeded
    STARTING = "starting"  # START_DEVICE is pending
    STARTED = "started"
    QUERY_STOPPED = "query stopped"
    STOPPED = "stopped"
    QUERY_REMOVED = "query removed"
    SURPRISE_REMOVED = "surprise removed"
    DELETED = "deleted"  # in no tree any more


class Problem(enum.IntEnum):
    """Why a device does not work: CM_PROB_ of cfg.h, the "Code 28" of the device manager."""

    NONE = 0
    FAILED_START = 10
    NEED_RESTART = 14
    DISABLED = 22
    FAILED_INSTALL = 28  # no driver has one of its ids
    FAILED_ADD = 31
    DRIVER_FAILED_LOAD = 39
    HELD_FOR_EJECT = 47
    DRIVER_BLOCKED = 48


# Who is asked first: the bus, or who stands on top.
BOTTOM_UP: Final = (Irp.START_DEVICE, Irp.CANCEL_STOP_DEVICE, Irp.CANCEL_REMOVE_DEVICE)
# These may not fail: every driver of the stack gets them, whatever others answer.
TO_ALL: Final = (
    Irp.REMOVE_DEVICE, Irp.SURPRISE_REMOVAL, Irp.CANCEL_STOP_DEVICE, Irp.CANCEL_REMOVE_DEVICE,
)  # fmt: skip
RUNNING: Final = (NodeState.STARTED, NodeState.QUERY_STOPPED, NodeState.STOPPED,
                  NodeState.QUERY_REMOVED)  # fmt: skip


class DeviceObject:
    """What one driver has on a device's stack; a driver overrides what concerns it."""

    def pnp(self, node: DeviceNode, irp: Irp) -> NTSTATUS:
        """A request. START_DEVICE may answer PENDING: `DeviceTree.complete` ends it."""
        del node, irp
        return NTSTATUS.SUCCESS

    def bus_relations(self, node: DeviceNode, below: list[DeviceNode]) -> list[DeviceNode]:
        """QUERY_DEVICE_RELATIONS: the children, given those that the stack below reports.

        The same device is the same node each time; one that is left out is missing.
        """
        del node
        return below

    def query_interface(
        self, node: DeviceNode, guid: str, version: int, size: int | None
    ) -> InterfaceVersion | None:
        """QUERY_INTERFACE; None: whoever is below shall answer. NtStatusError refuses."""
        del node, guid, version, size
        return None


@attrs.define(eq=False)
class DeviceNode:
    """One device. `stack` begins with its bus' object; `driver` is its function driver's.

    `status` is what a driver answered that led to the problem.
    """

    device_id: str
    instance_id: str
    hardware_ids: tuple[str, ...] = ()
    compatible_ids: tuple[str, ...] = ()
    description: str = ""
    location: str = ""
    stack: list[DeviceObject] = attrs.field(factory=list)
    parent: DeviceNode | None = None
    children: list[DeviceNode] = attrs.field(factory=list)
    driver: DeviceObject | None = None
    service: str = ""  # the driver's name
    state: NodeState = NodeState.INITIALIZED
    problem: Problem = Problem.NONE
    status: NTSTATUS = NTSTATUS.SUCCESS
    attached: int = 0  # of the stack, what the bus and its filters put there

    @property
    def path(self) -> str:
        r"""PCI\VEN_5853&DEV_0001&SUBSYS_00015853&REV_01\3&267A616A&0&10"""
        return f"{self.device_id}\\{self.instance_id}"

    @property
    def started(self) -> bool:
        return self.state is NodeState.STARTED

    def walk(self) -> Iterator[DeviceNode]:
        """Itself, then all below it, as they stand in the tree."""
        yield self
        for child in self.children:
            yield from child.walk()

    def __repr__(self) -> str:
        return f"<DeviceNode {self.path} {self.state.value}>"


@lru_cache(1024)
def upper_ids(hardware: tuple[str, ...], compatible: tuple[str, ...]) -> tuple[str, ...]:
    """Both kinds of ids in the order of their matching, in upper case: they have none."""
    return tuple(one.upper() for one in (*hardware, *compatible))


AddDevice = Callable[["DeviceTree", DeviceNode], DeviceObject | None]


@attrs.frozen
class Inf:
    """A driver package: the ids it is for, in any case, and the driver's AddDevice.

    `add_device` returns what the driver puts on the stack; NtStatusError refuses the device.
    `class_guid` is the device's setup class, whose UpperFilters are added too.
    """

    service: str
    ids: tuple[str, ...]
    add_device: AddDevice
    class_guid: str = ""


def by_id(*infs: Inf) -> dict[str, Inf]:
    """Packages by their ids, in upper case; a later one takes over what it shares."""
    return {one.upper(): inf for inf in infs for one in inf.ids}


class DeviceTree:
    """The devices of one guest. Only its own task enumerates, so no handler waits for another.

    `registry` gets an `Enum` key for every device that was ever seen. `drivers` are those that
    are installed from the beginning, as `by_id` has them.
    """

    def __init__(
        self, domain: Domain, registry: Registry, drivers: Mapping[str, Inf] | None = None
    ) -> None:
        self.domain = domain
        self.registry = registry
        self.root = DeviceNode(ROOT_ID, "0", state=NodeState.STARTED, service="PnpManager")
        self.filters: dict[str, AddDevice] = {}  # upper filters, by service in upper case
        self._drivers = dict(drivers or {})
        self._invalid: list[DeviceNode] = []
        self._task: Task = domain.task("pnp", self._enumerate_invalid)

    # drivers

    def install(self, inf: Inf) -> None:
        """A later package takes over the ids it shares with an earlier one."""
        self._drivers |= by_id(inf)

    def install_filter(self, service: str, add_device: AddDevice) -> None:
        """A filter that a class may name in its UpperFilters; it may answer None: not this."""
        self.filters[service.upper()] = add_device

    def match(self, node: DeviceNode) -> Inf | None:
        """The driver for the first of its hardware ids, then compatible ids, that has one."""
        drivers = self._drivers
        for one in upper_ids(node.hardware_ids, node.compatible_ids):
            if one in drivers:
                return drivers[one]
        return None

    # what is there

    def walk(self) -> Iterator[DeviceNode]:
        """Every device, parents before children."""
        return self.root.walk()

    def find(self, name: str) -> DeviceNode | None:
        """The first device with that path or one of those ids, in any case."""
        wanted = name.upper()
        for node in self.walk():
            ids = (node.path, node.device_id, *node.hardware_ids, *node.compatible_ids)
            if any(one.upper() == wanted for one in ids):
                return node
        return None

    def lines(self) -> list[str]:
        """A line for each device, indented by its depth."""
        return list(_lines(self.root, 0))

    # enumeration

    def invalidate(self, node: DeviceNode) -> None:
        """IoInvalidateDeviceRelations(BusRelations): ask the bus again, from a task."""
        if node not in self._invalid:
            self._invalid.append(node)
        self._task.wake()

    def _enumerate_invalid(self) -> None:
        """Down to the leaves: whoever a driver's own task asks has seen what stands deeper."""
        for _ in range(LEVELS_MAX):
            invalid, self._invalid = self._invalid, []
            if not invalid:
                return
            for node in invalid:
                self._enumerate(node)

    def _enumerate(self, node: DeviceNode) -> None:
        """Report, compare, remove what is missing, start what is new and what it reports."""
        if node.state is not NodeState.STARTED:
            return
        reported: list[DeviceNode] = []
        for one in node.stack:
            reported = one.bus_relations(node, reported)
        reported = reported[:CHILDREN_MAX]
        for child in [child for child in node.children if child not in reported]:
            self._disappear(child)
        for child in reported:
            if child not in node.children and child.state is not NodeState.DELETED:
                self._appear(node, child)

    def _appear(self, parent: DeviceNode, node: DeviceNode) -> None:
        node.parent = parent
        node.attached = len(node.stack)
        parent.children.append(node)
        self.registry.create(f"Enum\\{node.path}")
        self.start(node)

    # life of a device

    def start(self, node: DeviceNode) -> NTSTATUS:
        """Give it its driver, if it has none, and START_DEVICE. It stays without where that fails.

        Also for a device that was stopped, disabled or removed and is still there.
        """
        if node.state in (NodeState.STARTED, NodeState.STARTING):
            return NTSTATUS.SUCCESS
        if node.state in (NodeState.DELETED, NodeState.SURPRISE_REMOVED):
            return NTSTATUS.NO_SUCH_DEVICE
        node.problem, node.status = Problem.NONE, NTSTATUS.SUCCESS
        if node.state is NodeState.INITIALIZED and not self._add(node):
            return node.status
        node.state = NodeState.STARTING
        status = self.request(node, Irp.START_DEVICE)
        return status if status is NTSTATUS.PENDING else self.complete(node, status)

    def complete(self, node: DeviceNode, status: NTSTATUS) -> NTSTATUS:
        """START_DEVICE ended with `status`; whoever answered PENDING calls it later."""
        if node.state is not NodeState.STARTING:
            return NTSTATUS.INVALID_DEVICE_STATE
        if status.is_success:
            node.state = NodeState.STARTED
            self.invalidate(node)
        else:
            blocked = status is NTSTATUS.INCOMPATIBLE_DRIVER_BLOCKED
            self._fail(node, Problem.DRIVER_BLOCKED if blocked else Problem.FAILED_START, status)
        return status

    def _add(self, node: DeviceNode) -> bool:
        inf = self.match(node)
        if inf is None:
            node.problem, node.status = Problem.FAILED_INSTALL, NTSTATUS.NOT_FOUND
            return False
        node.service = inf.service
        try:
            self._attach(node, inf)
        except NtStatusError as error:
            self._detach(node)
            blocked = error.status is NTSTATUS.INCOMPATIBLE_DRIVER_BLOCKED
            node.problem = Problem.DRIVER_BLOCKED if blocked else Problem.FAILED_ADD
            node.status = error.status
            return False
        node.state = NodeState.ADDED
        return True

    def _attach(self, node: DeviceNode, inf: Inf) -> None:
        node.driver = inf.add_device(self, node)
        if node.driver is not None:
            node.stack.append(node.driver)
        if not inf.class_guid or not self.filters:
            return
        key = CLASSES + inf.class_guid
        for name in self.registry.strings(key, "UpperFilters") or ():
            add = self.filters.get(name.upper())
            found = None if add is None else add(self, node)
            if found is not None:
                node.stack.append(found)

    def _fail(self, node: DeviceNode, problem: Problem, status: NTSTATUS) -> None:
        self.request(node, Irp.REMOVE_DEVICE)
        self._detach(node)
        node.problem, node.status = problem, status

    def request(self, node: DeviceNode, irp: Irp) -> NTSTATUS:
        """Send a request through the stack: the first failure, PENDING, or SUCCESS.

        A failure ends it, except of what may not fail. It changes no state of the node:
        `start`, `stop`, `remove`, `eject` do.
        """
        answer = NTSTATUS.SUCCESS
        for one in list(node.stack) if irp in BOTTOM_UP else node.stack[::-1]:
            status = one.pnp(node, irp)
            if not status.is_success and irp not in TO_ALL:
                return status
            if status is NTSTATUS.PENDING:
                answer = status
        return answer

    def query_interface(
        self, node: DeviceNode, guid: str, version: int, size: int | None = None
    ) -> InterfaceVersion:
        """From the top of the stack down; NtStatusError NOT_SUPPORTED if nobody has it."""
        for one in reversed(node.stack):
            found = one.query_interface(node, guid, version, size)
            if found is not None:
                return found
        raise NtStatusError(NTSTATUS.NOT_SUPPORTED, f"{node.path} has no interface {guid}")

    def stop(self, node: DeviceNode) -> NTSTATUS:
        """QUERY_STOP, then STOP_DEVICE, or CANCEL_STOP where one refused: that one's status."""
        if node.state is not NodeState.STARTED:
            return NTSTATUS.INVALID_DEVICE_STATE
        node.state = NodeState.QUERY_STOPPED
        status = self.request(node, Irp.QUERY_STOP_DEVICE)
        if not status.is_success:
            self.request(node, Irp.CANCEL_STOP_DEVICE)
            node.state = NodeState.STARTED
            return status
        self.request(node, Irp.STOP_DEVICE)
        node.state = NodeState.STOPPED
        return NTSTATUS.SUCCESS

    def remove(self, node: DeviceNode, problem: Problem = Problem.DISABLED) -> NTSTATUS:
        """QUERY_REMOVE and REMOVE_DEVICE for it and all below, children first: "disable".

        A refusal leaves all as it was, by CANCEL_REMOVE, and is the answer. The device stays
        in the tree, without a driver, as long as its bus reports it.
        """
        self._must_have_bus(node)
        doomed = list(node.walk())[::-1]
        asked: list[tuple[DeviceNode, NodeState]] = []
        for one in doomed:
            if one.state not in RUNNING:
                continue
            asked.append((one, one.state))
            one.state = NodeState.QUERY_REMOVED
            status = self.request(one, Irp.QUERY_REMOVE_DEVICE)
            if not status.is_success:
                for back, state in reversed(asked):
                    self.request(back, Irp.CANCEL_REMOVE_DEVICE)
                    back.state = state
                return status
        for one in doomed:
            self._remove(one)
        node.state, node.problem = NodeState.INITIALIZED, problem
        return NTSTATUS.SUCCESS

    def eject(self, node: DeviceNode) -> NTSTATUS:
        """Remove it, then EJECT to its bus, which should not report it any more."""
        status = self.remove(node, Problem.HELD_FOR_EJECT)
        if not status.is_success:
            return status
        status = self.request(node, Irp.EJECT)
        assert node.parent is not None
        self.invalidate(node.parent)
        return status

    def _disappear(self, node: DeviceNode) -> None:
        """Its bus reports it no more: SURPRISE_REMOVAL to what ran, then REMOVE_DEVICE."""
        gone = list(node.walk())[::-1]
        for one in gone:
            if one.state in RUNNING or one.state is NodeState.STARTING:
                one.state = NodeState.SURPRISE_REMOVED
                self.request(one, Irp.SURPRISE_REMOVAL)
        for one in gone:
            self._remove(one)
        node.state = NodeState.DELETED
        if node.parent is not None:
            node.parent.children.remove(node)
            node.parent = None

    def _remove(self, node: DeviceNode) -> None:
        """REMOVE_DEVICE. Its children had theirs: they are in no tree any more."""
        self.request(node, Irp.REMOVE_DEVICE)
        self._detach(node)
        for child in node.children:
            child.state, child.parent = NodeState.DELETED, None
        node.children.clear()

    def _detach(self, node: DeviceNode) -> None:
        del node.stack[node.attached :]
        node.driver = None
        node.state = NodeState.INITIALIZED

    def _must_have_bus(self, node: DeviceNode) -> None:
        if node.parent is None:
            raise LocalProtocolError(f"{node.path} cannot be removed: it is no bus' device")


def _lines(node: DeviceNode, depth: int) -> Iterator[str]:
    parts = [node.path, node.service or "-", node.state.value]
    if node.problem:
        parts.append(f"code {node.problem.value} {node.problem.name}")
    yield "  " * depth + " ".join(parts)
    for child in node.children:
        yield from _lines(child, depth + 1)
