"""The buses of a Windows guest below its root: PCI bus 0, the IDE controller, its channels.

pci.sys, pciide.sys and atapi.sys, as far as what they report is concerned. Instance ids are
the buses' own (IRP_MN_QUERY_ID), without the prefix that Windows gives ids that are unique on
one bus only.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from xenpv.abi.pci import IdeDrive, PciFunction
from xenpv.bus.devicetree import DeviceNode, DeviceObject, DeviceTree, Inf, by_id
from xenpv.bus.inf import HDC_CLASS, SYSTEM_CLASS
from xenpv.xen.domain import Domain

IDS_MAX: Final = 256  # functions whose ids are remembered


class Enumerator(DeviceObject):
    """A bus driver that keeps one node for each device it has found."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.nodes: dict[object, DeviceNode] = {}


class Root(Enumerator):
    """The ACPI HAL: there is one PCI bus."""

    def bus_relations(self, node: DeviceNode, below: list[DeviceNode]) -> list[DeviceNode]:
        """The PCI bus, whatever the firmware says."""
        del node, below
        if "pci" not in self.nodes:
            self.nodes["pci"] = DeviceNode(
                "ACPI\\PNP0A03", "0", ("ACPI\\PNP0A03", "*PNP0A03"), (), "PCI Bus"
            )
        return [self.nodes["pci"]]


class PciBus(Enumerator):
    """Its children are what configuration cycles find now."""

    def bus_relations(self, node: DeviceNode, below: list[DeviceNode]) -> list[DeviceNode]:
        """A device that went and came back is another one."""
        del node, below
        found = self.domain.ioport.functions()
        self.nodes = {
            function: self.nodes.get(function) or _function(function) for function in found
        }
        return list(self.nodes.values())


class IdeController(Enumerator):
    """Its children are the channels that have drives at power-on or later.

    (pciide reports an empty channel too, as a device without children.)
    """

    def bus_relations(self, node: DeviceNode, below: list[DeviceNode]) -> list[DeviceNode]:
        """A channel that was found stays, whatever becomes of its drives."""
        del node, below
        for drive in self.domain.ioport.drives():
            number = drive.index >> 1
            if number not in self.nodes:
                self.nodes[number] = _channel(number)
        return list(self.nodes.values())


class IdeChannel(Enumerator):
    """Its children are the drives that identify themselves now."""

    def bus_relations(self, node: DeviceNode, below: list[DeviceNode]) -> list[DeviceNode]:
        """Drives whose index has this channel's number."""
        del below
        number = int(node.instance_id)
        found = [one for one in self.domain.ioport.drives() if one.index >> 1 == number]
        self.nodes = {drive: self.nodes.get(drive) or _drive(drive) for drive in found}
        return list(self.nodes.values())


def device_id(function: PciFunction) -> str:
    r"""PCI\VEN_5853&DEV_0001&SUBSYS_00015853&REV_01"""
    subsystem = f"{function.subsystem_id:04X}{function.subsystem_vendor_id:04X}"
    return f"{_short(function)}&SUBSYS_{subsystem}&REV_{function.revision:02X}"


def _short(function: PciFunction) -> str:
    return f"PCI\\VEN_{function.vendor_id:04X}&DEV_{function.device_id:04X}"


@lru_cache(IDS_MAX)
def _ids(function: PciFunction) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Hardware ids and compatible ids, from special to general."""
    full, short = device_id(function), _short(function)
    vendor = f"PCI\\VEN_{function.vendor_id:04X}"
    code = f"{function.class_code:06X}"
    hardware = full, full.partition("&REV_")[0], f"{short}&CC_{code}", f"{short}&CC_{code[:4]}"
    compatible = (
        f"{short}&REV_{function.revision:02X}", short, f"{vendor}&CC_{code}",
        f"{vendor}&CC_{code[:4]}", vendor, f"PCI\\CC_{code}", f"PCI\\CC_{code[:4]}",
    )  # fmt: skip
    return hardware, compatible


def _function(function: PciFunction) -> DeviceNode:
    hardware, compatible = _ids(function)
    return DeviceNode(
        hardware[0],
        f"{function.devfn:02X}",
        hardware,
        compatible,
        "PCI Device",
        f"PCI bus 0, device {function.devfn >> 3}, function {function.devfn & 7}",
    )


def _channel(number: int) -> DeviceNode:
    return DeviceNode(
        "PCIIDE\\IDEChannel",
        str(number),
        ("Intel-PIIX3", "Internal_IDE_Channel"),
        ("*PNP0600",),
        "IDE Channel",
        f"Channel {number}",
    )


def _drive(drive: IdeDrive) -> DeviceNode:
    channel, target = divmod(drive.index, 2)
    kind, name, generic = (
        ("CdRom", "QEMU_DVD-ROM", "GenCdRom") if drive.is_cdrom else
        ("Disk", "QEMU_HARDDISK", "GenDisk")
    )  # fmt: skip
    full = f"IDE\\{kind}{name:_<40}2.5+____"
    return DeviceNode(
        full,
        f"{channel}.{target}.0",
        (full, f"IDE\\{name:_<40}2.5+____", f"IDE\\{kind}{name:_<40}", generic),
        (),
        name.replace("_", " "),
        f"Channel {channel}, Target {target}, Lun 0",
    )


def _nothing(tree: DeviceTree, node: DeviceNode) -> None:
    """A driver of Windows' own that nothing here depends on."""
    del tree, node


def _pci_bus(tree: DeviceTree, node: DeviceNode) -> DeviceObject:
    del node
    return PciBus(tree.domain)


def _ide_controller(tree: DeviceTree, node: DeviceNode) -> DeviceObject:
    del node
    return IdeController(tree.domain)


def _ide_channel(tree: DeviceTree, node: DeviceNode) -> DeviceObject:
    del node
    return IdeChannel(tree.domain)


# Drivers that come with Windows.
IN_BOX: Final = by_id(
    Inf("pci", ("*PNP0A03",), _pci_bus, SYSTEM_CLASS),
    Inf("pciide", ("PCI\\CC_0101",), _ide_controller, HDC_CLASS),
    Inf("atapi", ("Internal_IDE_Channel",), _ide_channel, HDC_CLASS),
    Inf("disk", ("GenDisk",), _nothing),
    Inf("cdrom", ("GenCdRom",), _nothing),
    Inf("storscsi", ("PCI\\CC_0100",), _nothing),
    Inf("stornvme", ("PCI\\CC_010802",), _nothing),
    Inf("netadapter", ("PCI\\CC_0200",), _nothing),
)
