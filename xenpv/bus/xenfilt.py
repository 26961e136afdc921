"""XENFILT: a filter above the guest's buses, which hides their children until the unplug.

win-xenbus src/xenfilt. It stands above every device of the System and HDC classes that its
parameters name as a bus, and says what it has seen by the EMULATED interface.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from typing import ClassVar, Final

import attrs

from xenpv.bus import inf
from xenpv.bus.devicetree import DeviceNode, DeviceObject, DeviceTree, Irp, upper_ids
from xenpv.bus.interface import Interface, InterfaceVersion, query_interface
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.registry import Registry
from xenpv.bus.unplug import Unplug

NVME_IDS: Final = frozenset(("PCI\\VEN_8086&DEV_5845", "PCI\\VEN_1B36&DEV_0010"))
IDE_INSTANCE: Final = r"(\d+)\.(\d+)\.(\d+)\Z"


class FilterState(enum.Enum):
    """XENFILT_FILTER_STATE."""

    ENABLED = "enabled"
    PENDING = "pending"
    DISABLED = "disabled"


class BusType(enum.Enum):
    """XENFILT_EMULATED_OBJECT_TYPE: what the parameters call a bus."""

    PCI = "PCI"
    IDE = "IDE"


class Activation(enum.IntEnum):
    """XENFILT_EMULATED_ACTIVATION_STATUS: what the precedence made of a device."""

    NEUTRAL = 0
    FORCE_ACTIVATED = 1
    FORCE_DEACTIVATED = 2


@attrs.frozen
class EmulatedDevice:
    """A child of a PCI bus. Ids are those that the bus reported."""

    device_id: str
    instance_id: str
    activation: Activation = Activation.NEUTRAL
    is_nvme: bool = False


@attrs.frozen
class EmulatedDisk:
    """A child of an IDE channel."""

    index: int  # controller << 1 | target


def ide_index(instance_id: str) -> int:
    """Of "c.t.0". NtStatusError INVALID_PARAMETER: no such form, or c or t above 1;
    NOT_SUPPORTED: another LUN.
    """
    match = re.match(IDE_INSTANCE, instance_id, re.ASCII)
    if match is None or len(instance_id) > 16 or int(match[1]) > 1 or int(match[2]) > 1:
        reason = f"{instance_id!r}: expected controller.target.0"
        raise NtStatusError(NTSTATUS.INVALID_PARAMETER, reason, operation="EMULATED")
    if int(match[3]):
        raise NtStatusError(NTSTATUS.NOT_SUPPORTED, f"LUN {match[3]}", operation="EMULATED")
    return int(match[1]) << 1 | int(match[2])


class EmulatedInterface(Interface):
    """EMULATED v1-3. `objects` are in the order of their finding. It only counts references."""

    NAME = "EMULATED"
    GUID = "959027A1-FCCE-4E78-BCF4-637384F499C5"
    OPERATIONS: ClassVar = {
        1: ("is_device_present", "is_disk_present"),
        2: ("is_device_present", "is_disk_present"),
        3: ("is_device_present", "is_disk_present"),
    }
    ADAPTED: ClassVar = {
        (1, "is_disk_present"): "is_disk_present_v1",
        (3, "is_device_present"): "find_device",
    }

    def __init__(self) -> None:
        self.objects: list[EmulatedDevice | EmulatedDisk] = []

    def find_device(
        self, device_id: str | None, instance_id: str | None = None
    ) -> tuple[bool, Activation]:
        """Whether it is there, and how it was forced; ids in any case.

        Without `device_id`: the device that was forced active.
        """
        for one in self.objects:
            if not isinstance(one, EmulatedDevice):
                continue
            if device_id is None:
                same = one.activation is Activation.FORCE_ACTIVATED
            else:
                same = one.device_id.lower() == device_id.lower()
            wanted = one.instance_id if instance_id is None else instance_id
            if same and one.instance_id.lower() == wanted.lower():
                return True, one.activation
        return False, Activation.NEUTRAL

    def is_device_present(self, device_id: str | None, instance_id: str | None = None) -> bool:
        """Versions 1 and 2."""
        return self.find_device(device_id, instance_id)[0]

    def is_disk_present(self, index: int) -> bool:
        """Whether a disk is at that IDE index; any is where there is an emulated NVMe."""
        return any(
            one.is_nvme if isinstance(one, EmulatedDevice) else one.index == index
            for one in self.objects
        )

    def is_disk_present_v1(self, controller: int, target: int, lun: int) -> bool:
        """Callers gave the disk's number as the target, so that is what it takes it for."""
        del controller, lun
        return self.is_disk_present(target)


@attrs.define(eq=False)
class ChildFilter(DeviceObject):
    """XENFILT on top of a child of a filtered bus: whoever is above may ask for EMULATED."""

    emulated: EmulatedInterface
    record: EmulatedDevice | EmulatedDisk

    def query_interface(
        self, node: DeviceNode, guid: str, version: int, size: int | None
    ) -> InterfaceVersion | None:
        """EMULATED alone."""
        del node
        if guid.upper() != EmulatedInterface.GUID:
            return None
        return query_interface([self.emulated], guid, version, size)


@attrs.define(eq=False)
class BusFilter(DeviceObject):
    """XENFILT on top of a bus."""

    xenfilt: Xenfilt
    tree: DeviceTree
    kind: BusType
    has_enumerated: bool = False
    children: dict[DeviceNode, ChildFilter] = attrs.field(factory=dict)

    def pnp(self, node: DeviceNode, irp: Irp) -> NTSTATUS:
        """A bus that is removed has no children any more."""
        del node
        if irp is Irp.REMOVE_DEVICE:
            for child in list(self.children):
                self._detach(child)
            self.xenfilt.buses.remove(self)
        return NTSTATUS.SUCCESS

    def bus_relations(self, node: DeviceNode, below: list[DeviceNode]) -> list[DeviceNode]:
        """Note what is there; report it if nothing is to be hidden any more."""
        for gone in [one for one in self.children if one not in below]:
            self._detach(gone)
        fresh = [one for one in below if one not in self.children]
        activations = self.xenfilt.activations(fresh) if self.kind is BusType.PCI else {}
        for one in fresh:
            self._attach(one, activations.get(one, Activation.NEUTRAL))
        self.has_enumerated = self.has_enumerated or bool(below)
        pending = bool(below) and self.xenfilt.advance()
        if self.xenfilt.state is not FilterState.DISABLED:
            self.xenfilt.hide(node)
            if pending:
                for hidden in self.xenfilt.take_hidden():
                    self.tree.invalidate(hidden)
            return []
        return [one for one in below if one in self.children]

    def _attach(self, node: DeviceNode, activation: Activation) -> None:
        """A child that cannot be told of is not reported at all."""
        try:
            record = self.xenfilt.record(self.kind, node, activation)
        except NtStatusError as error:
            self.xenfilt.log.dbg_print(f"xenfilt|{node.path}: {error}\n")
            return
        made = self.children[node] = ChildFilter(self.xenfilt.emulated, record)
        self.xenfilt.emulated.objects.append(record)
        node.stack.append(made)

    def _detach(self, node: DeviceNode) -> None:
        self.xenfilt.emulated.objects.remove(self.children.pop(node).record)


class Xenfilt:
    """The driver. It has devices unplugged once, when every bus was seen and the active device
    is there; not in safe mode.
    """

    def __init__(self, registry: Registry, unplug: Unplug, *, safe_mode: bool = False) -> None:
        self.registry = registry
        self.unplug = unplug
        self.log = unplug.log
        self.safe_mode = safe_mode
        self.state = FilterState.ENABLED
        self.emulated = EmulatedInterface()
        self.buses: list[BusFilter] = []
        self._hidden: list[DeviceNode] = []  # buses that reported nothing
        values = registry.values(inf.XENFILT_PARAMETERS)
        self._kinds = {  # by id in upper case
            name.upper(): BusType[value]
            for name, value in values.items()
            if isinstance(value, str) and value in BusType.__members__
        }
        strings = {name.lower(): one for name, one in values.items() if isinstance(one, str)}
        self.active_device_id = strings.get("activedeviceid")
        self.active_instance_id = strings.get("activeinstanceid")
        self.active_location = strings.get("activelocationinformation")

    def add_device(self, tree: DeviceTree, node: DeviceNode) -> DeviceObject | None:
        """Filter a device whose ids the parameters call a bus; leave others alone."""
        for one in upper_ids(node.hardware_ids, node.compatible_ids):
            if one in self._kinds:
                made = BusFilter(self, tree, self._kinds[one])
                self.buses.append(made)
                return made
        return None

    def advance(self) -> bool:
        """A bus finished an enumeration in which it had children; True if that made it PENDING."""
        if self.state is FilterState.PENDING:
            self.state = FilterState.DISABLED
        elif self.state is FilterState.ENABLED and all(one.has_enumerated for one in self.buses):
            self.state = FilterState.PENDING
            present = self._is_active_present()
            self.log.dbg_print(f"xenfilt|ACTIVE DEVICE {'' if present else 'NOT '}PRESENT\n")
            if present and not self.safe_mode:
                self.unplug.devices()
            return True
        return False

    def hide(self, bus: DeviceNode) -> None:
        """A bus that reported nothing is asked again, once every bus was seen.

        (The driver has it asked again at once, for as long as it takes.)
        """
        if bus not in self._hidden:
            self._hidden.append(bus)

    def take_hidden(self) -> list[DeviceNode]:
        """The buses to be asked again."""
        hidden, self._hidden = self._hidden, []
        return hidden

    def _is_active_present(self) -> bool:
        if self.emulated.is_device_present(None):
            return True
        active = self.active_device_id
        return active is not None and self.emulated.is_device_present(active)

    def activations(self, fresh: Sequence[DeviceNode]) -> dict[DeviceNode, Activation]:
        """What the precedence says of devices that one enumeration found.

        The one of the largest value is forced to be active, all others not to be.
        """
        if self.registry.find(inf.PRECEDENCE) is None:
            return {}
        values = {node: self._precedence(node) for node in fresh}
        largest = max(values.values(), default=0)
        if not largest:
            return {}
        first = next(node for node, value in values.items() if value == largest)
        found = dict.fromkeys(values, Activation.FORCE_DEACTIVATED)
        found[first] = Activation.FORCE_ACTIVATED
        return found

    def _precedence(self, node: DeviceNode) -> int:
        dword = self.registry.dword
        values = [dword(inf.PRECEDENCE, one, 0) for one in node.compatible_ids]
        return next((value for value in values if value), 0)

    def record(
        self, kind: BusType, node: DeviceNode, activation: Activation
    ) -> EmulatedDevice | EmulatedDisk:
        """What EMULATED says of a child. NtStatusError: it shall not be reported.

        A neutral active device gets the instance id and location that were stored for it, so
        that Windows takes it for the one it knew wherever it is plugged in.
        """
        if kind is BusType.IDE:
            return EmulatedDisk(ide_index(node.instance_id))
        is_nvme = not NVME_IDS.isdisjoint(upper_ids((), node.compatible_ids))
        found = EmulatedDevice(node.device_id, node.instance_id, activation, is_nvme)
        active = self.active_device_id
        if activation is not Activation.NEUTRAL or active is None:
            return found
        if node.device_id.lower() == active.lower():
            if self.active_instance_id is None:
                raise NtStatusError(NTSTATUS.OBJECT_NAME_NOT_FOUND, "no ActiveInstanceID")
            node.instance_id = self.active_instance_id
            node.location = self.active_location or node.location
        return found


def has_filters(registry: Registry) -> bool:
    """Whether UpperFilters of a class name XENFILT."""
    return any(
        name.upper() == inf.FILTER
        for guid in inf.FILTERED_CLASSES
        for name in registry.strings(f"Control\\Class\\{guid}", inf.UPPER_FILTERS) or ()
    )


def install_filters(registry: Registry) -> None:
    """UpperFilters of the classes name XENFILT; other filters stay."""
    for guid in inf.FILTERED_CLASSES:
        key = f"Control\\Class\\{guid}"
        names = registry.strings(key, inf.UPPER_FILTERS) or ()
        if inf.FILTER not in [name.upper() for name in names]:
            registry.set(key, inf.UPPER_FILTERS, (*names, inf.FILTER))


def remove_filters(registry: Registry) -> None:
    """UpperFilters do not name XENFILT any more; a value without names goes."""
    for guid in inf.FILTERED_CLASSES:
        key = f"Control\\Class\\{guid}"
        names = registry.strings(key, inf.UPPER_FILTERS) or ()
        left = tuple(name for name in names if name.upper() != inf.FILTER)
        if left:
            registry.set(key, inf.UPPER_FILTERS, left)
        elif names:
            registry.delete_value(key, inf.UPPER_FILTERS)
