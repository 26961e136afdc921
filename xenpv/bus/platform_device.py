"""XENBUS' function device on a platform device: what it is called, and which one is active.

win-xenbus src/xenbus/driver.c and fdo.c. A machine may have more than one such device (5853:0001
or 5853:0002, and a vendor's pvdevice); one is the active one, on which XENBUS comes up.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from xenpv.bus import inf
from xenpv.bus.devicetree import DeviceNode, DeviceObject, DeviceTree, Irp
from xenpv.bus.interface import InterfaceVersion
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.registry import Registry
from xenpv.bus.stack import BusStack, attach
from xenpv.bus.unplug import request_reboot
from xenpv.bus.xenfilt import (
    Activation,
    EmulatedInterface,
    install_filters,
    remove_filters,
)
from xenpv.errors import LocalProtocolError

if TYPE_CHECKING:
    from xenpv.bus.windows import Windows
    from xenpv.bus.xenbus import XenBus

SERVICE: Final = "XENBUS"
LEGACY_IDS: Final = (0x0001, 0x0002)
# Reserved for vendors' pvdevices (docs/man/xen-pci-device-reservations.7).
VENDOR_RANGES: Final = {
    "XenServer": (0xC000, 0xC0FF),
    "XenClient": (0xC100, 0xC1FF),
    "XCP-ng": (0xC200, 0xC2FF),
}
EMULATED_VERSION: Final = 3


def ids(build: inf.Build) -> tuple[str, ...]:
    """What the INF binds XENBUS to: the two legacy ids, and the vendor's if the build has one."""
    vendor = () if build.vendor_device_id is None else (build.vendor_device_id,)
    return tuple(f"PCI\\VEN_5853&DEV_{one:04X}" for one in (*LEGACY_IDS, *vendor))


def vendor_of(device_id: int) -> str | None:
    """Whose pvdevice that is."""
    for name, (first, last) in VENDOR_RANGES.items():
        if first <= device_id <= last:
            return name
    return None


def parse_device_id(full: str, build: inf.Build) -> int:
    """The device's number out of its DeviceID. NtStatusError NOT_SUPPORTED for one that is
    neither legacy nor the build's vendor's.
    """
    match = re.match(r"PCI\\VEN_5853&DEV_([0-9A-F]{4})(&|\Z)", full, re.IGNORECASE)
    number = -1 if match is None else int(match[1], 16)
    if number not in LEGACY_IDS and number != build.vendor_device_id:
        raise NtStatusError(NTSTATUS.NOT_SUPPORTED, f"{full} is no platform device")
    return number


def vendor_key(device_id: int) -> str:
    r"""Of the pvdevice: Enum\PCI\VEN_5853&DEV_C000&SUBSYS_C0005853&REV_01"""
    return f"Enum\\PCI\\VEN_5853&DEV_{device_id:04X}&SUBSYS_{device_id:04X}5853&REV_01"


def _store_active(registry: Registry, node: DeviceNode, *, missing_only: bool = False) -> None:
    for name, value in (
        ("ActiveDeviceID", node.device_id),
        ("ActiveInstanceID", node.instance_id),
        ("ActiveLocationInformation", node.location),
    ):
        if not missing_only or registry.string(inf.XENFILT_PARAMETERS, name) is None:
            registry.set(inf.XENFILT_PARAMETERS, name, value)


def clear_active(registry: Registry) -> None:
    """The active device is destroyed. Its location stays."""
    registry.delete_value(inf.XENFILT_PARAMETERS, "ActiveDeviceID")
    registry.delete_value(inf.XENFILT_PARAMETERS, "ActiveInstanceID")


def claim_active(
    registry: Registry, node: DeviceNode, activation: Activation | None, build: inf.Build
) -> bool:
    """Whether a device is the active one, writing that down. `activation` None: no xenfilt.

    What was forced is obeyed. Else the stored device is it; without one, the first that asks,
    but for a legacy device where the build's vendor device was seen before.
    """
    if activation is Activation.FORCE_ACTIVATED:
        _store_active(registry, node)
        return True
    if activation is Activation.FORCE_DEACTIVATED:
        return False
    stored = registry.string(inf.XENFILT_PARAMETERS, "ActiveDeviceID")
    if stored is not None:
        if stored.lower() != node.device_id.lower():
            return False
        _store_active(registry, node, missing_only=True)
        return True
    vendor = build.vendor_device_id
    is_legacy = parse_device_id(node.device_id, build) != vendor
    if vendor is not None and is_legacy and registry.find(vendor_key(vendor)) is not None:
        return False
    _store_active(registry, node)
    return True


class PlatformDevice(DeviceObject):
    """XENBUS' function device. `bus` is there while it is active and started.

    An inactive one starts too, has no children and leaves Xen alone. `emulated` is xenfilt's
    interface, None without it.
    """

    def __init__(self, windows: Windows, node: DeviceNode) -> None:
        registry, build = windows.registry, windows.build
        self.windows = windows
        self.device_id = parse_device_id(node.device_id, build)
        self.vendor_name = f"{build.vendor_prefix}{self.device_id:04X}"
        self.name = f"{self.vendor_name} {SERVICE}"
        node.description = self.name
        self.emulated = _emulated(windows.tree, node)
        self.activation = _activation(self.emulated, node)
        self.is_active = claim_active(registry, node, self.activation, build)
        self.bus: XenBus | None = None
        self._stack: BusStack | None = None  # of the active one, once it was started
        if not windows.platform_devices:
            install_filters(registry)
        windows.platform_devices.append(self)

    def pnp(self, node: DeviceNode, irp: Irp) -> NTSTATUS:
        """Only the active device does more than to say yes."""
        if irp is Irp.START_DEVICE and self.is_active and self._stack is None:
            self.bus = self.windows.make_bus(self)
            self._stack = attach(self.bus, self.windows.tree, node)
        status = NTSTATUS.SUCCESS if self._stack is None else self._stack.pnp(node, irp)
        if irp is Irp.REMOVE_DEVICE:
            self._destroy()
        return status

    def bus_relations(self, node: DeviceNode, below: list[DeviceNode]) -> list[DeviceNode]:
        """A device for each class, of the active one."""
        return below if self._stack is None else self._stack.bus_relations(node, below)

    def _destroy(self) -> None:
        registry = self.windows.registry
        if self.is_active:
            clear_active(registry)
        self.windows.platform_devices.remove(self)
        if not self.windows.platform_devices:
            remove_filters(registry)


def _emulated(tree: DeviceTree, node: DeviceNode) -> InterfaceVersion | None:
    try:
        return tree.query_interface(node, EmulatedInterface.GUID, EMULATED_VERSION)
    except NtStatusError:
        return None


def _activation(emulated: InterfaceVersion | None, node: DeviceNode) -> Activation | None:
    """What xenfilt says of a device, None without it. The driver bugchecks if that does not
    know the device.
    """
    if emulated is None:
        return None
    emulated.acquire()
    try:
        present, activation = emulated.is_device_present(node.device_id)
    finally:
        emulated.release()
    if not present:
        raise LocalProtocolError(f"xenfilt does not know {node.path}")
    return Activation(activation)


def add_device(windows: Windows, node: DeviceNode) -> PlatformDevice:
    """XENBUS' AddDevice. NtStatusError: not this device, or not with this xen.sys; then a
    reboot is asked for, and the filter will be there after it.
    """
    try:
        windows.system.touch(SERVICE)
    except NtStatusError:
        install_filters(windows.registry)
        request_reboot(windows.registry, SERVICE)
        raise
    return PlatformDevice(windows, node)
