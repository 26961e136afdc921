"""XENBUS and its children on the stacks of a tree of devices.

The tree's PnP manager finds the bus' children by it, starts and removes them; what becomes of
a request is the devices' own (pdo.py, xenbus.py). A class' function driver is started by its
PDO, so what stands for it on the stack has nothing to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpv.bus.devicetree import DeviceNode, DeviceObject, DeviceTree, Inf, Irp
from xenpv.bus.interface import InterfaceVersion
from xenpv.bus.ntstatus import NTSTATUS

if TYPE_CHECKING:
    from xenpv.bus.pdo import Pdo
    from xenpv.bus.xenbus import XenBus


class ChildObject(DeviceObject):
    """The bottom of a child's stack."""

    def __init__(self, pdo: Pdo) -> None:
        self.pdo = pdo

    def pnp(self, node: DeviceNode, irp: Irp) -> NTSTATUS:
        del node
        return self.pdo.request(irp)

    def query_interface(
        self, node: DeviceNode, guid: str, version: int, size: int | None
    ) -> InterfaceVersion | None:
        """What the bus exports, and what is below it."""
        del node
        return self.pdo.bus.query_interface(guid, version, size)


class BusStack(DeviceObject):
    """The function driver of the platform device's node: it reports the PDOs as nodes.

    The drivers of the bus' classes are installed into the tree.
    """

    def __init__(self, bus: XenBus, tree: DeviceTree, node: DeviceNode) -> None:
        self.bus = bus
        self.tree = tree
        self.node = node
        self._nodes: dict[Pdo, DeviceNode] = {}
        for name in bus.drivers:
            ids = (f"XENBUS\\VEN_{bus.vendor_name}&DEV_{name}&REV_0900000C",)
            tree.install(Inf(f"XEN{name}", ids, _add_class_driver))

    def invalidate(self) -> None:
        """The bus has found or lost a child."""
        self.tree.invalidate(self.node)

    def pnp(self, node: DeviceNode, irp: Irp) -> NTSTATUS:
        del node
        return self.bus.request(irp)

    def bus_relations(self, node: DeviceNode, below: list[DeviceNode]) -> list[DeviceNode]:
        """A scan pass, then its children beside those that others report."""
        del node
        pdos = self.bus.query_relations()
        self._nodes = {pdo: self._nodes.get(pdo) or _node(pdo) for pdo in pdos}
        return [*below, *self._nodes.values()]


def _add_class_driver(tree: DeviceTree, node: DeviceNode) -> DeviceObject:
    """AddDevice: the class' PDO starts the driver itself."""
    del tree, node
    return DeviceObject()


def _node(pdo: Pdo) -> DeviceNode:
    ids = tuple(pdo.hardware_ids)
    return DeviceNode(
        pdo.device_id,
        pdo.instance_id,
        hardware_ids=ids,
        compatible_ids=ids,
        description=pdo.description,
        location=pdo.location,
        stack=[ChildObject(pdo)],
    )


def attach(bus: XenBus, tree: DeviceTree, node: DeviceNode) -> BusStack:
    """Put the bus on the platform device's stack, to be started by the tree."""
    bus.domain.start_vcpus()
    bus.stack = BusStack(bus, tree, node)
    return bus.stack
