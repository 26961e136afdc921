"""What the drivers' packages put into the registry, and what a build of them is called.

xenbus.inf and version.h of win-xenbus. `INF` is a machine where they were installed a moment
ago; `installed()` is one that has run them since, where PV devices come up at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final

import attrs

from xenpv.bus.registry import Registry, Value

SYSTEM_CLASS: Final = "{4d36e97d-e325-11ce-bfc1-08002be10318}"
HDC_CLASS: Final = "{4d36e96a-e325-11ce-bfc1-08002be10318}"
FILTERED_CLASSES: Final = (SYSTEM_CLASS, HDC_CLASS)
UPPER_FILTERS: Final = "UpperFilters"
FILTER: Final = "XENFILT"

XEN: Final = "Services\\XEN"
UNPLUG: Final = f"{XEN}\\Unplug"
FORCE_UNPLUG: Final = f"{XEN}\\ForceUnplug"
XENBUS_PARAMETERS: Final = "Services\\XENBUS\\Parameters"
XENFILT_PARAMETERS: Final = "Services\\XENFILT\\Parameters"
PRECEDENCE: Final = f"{XENFILT_PARAMETERS}\\Precedence"
ENUM_XENBUS: Final = "Enum\\XENBUS"

CURRENT_CONTROL_SET: Final = "SYSTEM\\CurrentControlSet\\"  # what every path here is below
REQUEST_KEY: Final = "Services\\xenbus_monitor\\Request"

# Key: its values. What is absent here has the default that the driver reads it with:
# Enumerate, UseMemoryHole, UseEvtchnFifoAbi, UseEvtchnUpcall 1, InterceptDmaAdapter 0,
# ConsoleLogLevel none, AllowPdoRemove and AllowPdoEject of a class 1, XenLogLevel CRITICAL,
# QemuLogLevel INFO and above, RegisterVcpuInfo 1 only with more than 32 CPUs, ForceUnplug none,
# RealTimeIsUniversal 0.
INF: Final[Mapping[str, Mapping[str, Value]]] = {
    XENBUS_PARAMETERS: {
        "SupportedClasses": ("VIF", "VBD", "VKBD", "IFACE", "CONS"),
        "SyntheticClasses": ("IFACE", "CONS"),
        "RequestKey": CURRENT_CONTROL_SET + REQUEST_KEY,
    },
    UNPLUG: {"DISKS": 0, "NICS": 0},
    XENFILT_PARAMETERS: {"*PNP0A03": "PCI", "Internal_IDE_Channel": "IDE"},
    f"Control\\Class\\{SYSTEM_CLASS}": {"Class": "System"},
    f"Control\\Class\\{HDC_CLASS}": {"Class": "hdc"},
    "Control": {"SystemStartOptions": ""},
}


# Devices of every HVM guest.
CHIPSET: Final = (
    "ACPI\\PNP0A03\\0",
    "PCI\\VEN_8086&DEV_7010&SUBSYS_00000000&REV_00\\09",
    "PCIIDE\\IDEChannel\\0",
    "PCIIDE\\IDEChannel\\1",
)


@attrs.frozen(kw_only=True)
class Build:
    """One build of the drivers: version.h. `vendor_device_id` None: no pvdevice is theirs.

    `clients` are drivers of another build, left by an update: their versions by service.
    """

    version: tuple[int, int, int, int] = (9, 1, 0, 0)
    vendor_prefix: str = "XP"
    vendor_device_id: int | None = None
    clients: Mapping[str, tuple[int, int, int, int]] = attrs.field(factory=dict)

    @property
    def number(self) -> int:
        """The build number of the unplug protocol: MAJOR << 16 | MINOR << 8 | MICRO."""
        major, minor, micro, _build = self.version
        return major << 16 | minor << 8 | micro

    def version_of(self, service: str) -> tuple[int, int, int, int]:
        return self.clients.get(service, self.version)


BUILD: Final = Build()


def precedence(build: Build = BUILD) -> dict[str, Value]:
    """The INF's optional section: values of the key Precedence, by compatible id."""
    found: dict[str, Value] = {"PCI\\VEN_5853&DEV_0001": 1, "PCI\\VEN_5853&DEV_0002": 2}
    vendor = build.vendor_device_id
    if vendor is not None:
        found[f"PCI\\VEN_5853&DEV_{vendor:04X}"] = vendor
    return found


@cache
def _installed(device_id: int, devfn: int) -> Registry:
    registry = Registry(INF)
    for name in FILTERED_CLASSES:
        registry.set(f"Control\\Class\\{name}", UPPER_FILTERS, (FILTER,))
    for kind in ("DISKS", "NICS"):
        registry.set(UNPLUG, kind, 1)
    # So that a guest's console tells what its drivers do.
    registry.set(XENBUS_PARAMETERS, "ConsoleLogLevel", ("INFO", "WARNING", "ERROR", "CRITICAL"))
    pci = f"PCI\\VEN_5853&DEV_{device_id:04X}&SUBSYS_{device_id:04X}5853&REV_01"
    active = {
        "ActiveDeviceID": pci,
        "ActiveInstanceID": f"{devfn:02X}",
        "ActiveLocationInformation": f"PCI bus 0, device {devfn >> 3}, function {devfn & 7}",
    }
    for name, value in active.items():
        registry.set(XENFILT_PARAMETERS, name, value)
    # What Windows saw at every boot.
    for name in ("VBD", "VIF", "IFACE", "CONS"):
        registry.create(f"{ENUM_XENBUS}\\VEN_XP&DEV_{name}\\_")
    for path in (*CHIPSET, f"{pci}\\{devfn:02X}"):
        registry.create(f"Enum\\{path}")
    return registry


def installed(device_id: int = 0x0001, devfn: int = 2 << 3) -> Registry:
    """A registry of a guest that ran its PV drivers before, on that platform device."""
    return _installed(device_id, devfn).copy()
