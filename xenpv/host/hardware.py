"""Devices that QEMU has for an HVM domain, as a list: what libxl asks for, or what a user wants.

libxl_dm.c for the defaults: IDE drives for the first four disks named hd or xvd, a SCSI
controller for those named sd, a network card for each vif, and the Xen platform device.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.abi.pci import (
    CLASS_ETHERNET,
    CLASS_IDE,
    CLASS_NVME,
    CLASS_OTHER,
    CLASS_SCSI,
    VENDOR_XEN,
    IdeDrive,
    PciFunction,
)
from xenpv.errors import LocalProtocolError
from xenpv.host import vdev
from xenpv.host.vifspec import NicType

if TYPE_CHECKING:
    from xenpv.host.domainconfig import DomainConfig

Hardware = PciFunction | IdeDrive

IDE_DRIVES: Final = 4  # two channels, two targets each
PLATFORM_IDS: Final = (0x0001, 0x0002)  # which have the unplug ports

# PIIX3's, which is there with or without drives.
IDE_CONTROLLER: Final = PciFunction(0x8086, 0x7010, CLASS_IDE, devfn=1 << 3 | 1)
FIRST_DEVFN: Final = 2 << 3  # of what is listed: the platform device stands first

_NICS: Final = {"rtl8139": (0x10EC, 0x8139), "e1000": (0x8086, 0x100E)}
_NVMES: Final = {"intel": (0x8086, 0x5845), "redhat": (0x1B36, 0x0010)}  # QEMU before 6.0, since
_QEMU: Final = (0x1AF4, 0x1100)  # subsystem of its devices


@cache
def platform_device(device_id: int = 0x0001) -> PciFunction:
    """xen-platform: 5853:0001, or 5853:0002 of some XenServer builds."""
    if device_id not in PLATFORM_IDS:
        raise LocalProtocolError(f"platform device {device_id:#06x}: expected 0x0001 or 0x0002")
    return _xen(device_id)


def vendor_device(device_id: int = 0xC000) -> PciFunction:
    """xen-pvdevice, by which an update service recognises a vendor's platform. It has no ports."""
    if not 0xC000 <= device_id <= 0xC2FF:
        raise LocalProtocolError(f"pvdevice {device_id:#06x}: expected 0xc000 to 0xc2ff")
    return _xen(device_id)


def _xen(device_id: int) -> PciFunction:
    return PciFunction(
        VENDOR_XEN,
        device_id,
        CLASS_OTHER,
        revision=1,
        subsystem_vendor_id=VENDOR_XEN,
        subsystem_id=device_id,
    )


def ide_disk(index: int) -> IdeDrive:
    """A disk; `index` is channel << 1 | target, 0 the primary master."""
    return _drive(index, is_cdrom=False)


def cdrom(index: int) -> IdeDrive:
    """A CD-ROM drive, which no unplug request takes away."""
    return _drive(index, is_cdrom=True)


def _drive(index: int, *, is_cdrom: bool) -> IdeDrive:
    if not 0 <= index < IDE_DRIVES:
        raise LocalProtocolError(f"IDE drive {index}: expected 0 to {IDE_DRIVES - 1}")
    return IdeDrive(index, is_cdrom)


def scsi_controller() -> PciFunction:
    """lsi53c895a, with whatever disks."""
    return PciFunction(0x1000, 0x0012, CLASS_SCSI)


def nvme(model: str = "redhat") -> PciFunction:
    """QEMU's controller with its one disk: "redhat" 1b36:0010, or the older "intel" 8086:5845."""
    return _qemu(_NVMES[model], CLASS_NVME, revision=2)


def nic(model: str = "rtl8139", mac: bytes = b"") -> PciFunction:
    """A network card: "rtl8139" or "e1000"; `mac` is its address of 6 bytes, if it matters."""
    return attrs.evolve(_nic(model), mac=mac) if mac else _nic(model)


@cache
def _nic(model: str) -> PciFunction:
    return _qemu(_NICS[model], CLASS_ETHERNET, revision=0x20)


def _qemu(ids: tuple[int, int], class_code: int, revision: int) -> PciFunction:
    return PciFunction(
        *ids,
        class_code,
        revision=revision,
        subsystem_vendor_id=_QEMU[0],
        subsystem_id=_QEMU[1],
    )


def default(config: DomainConfig) -> tuple[Hardware, ...]:
    """What libxl has QEMU emulate for a domain; nothing unless it is HVM."""
    if not config.is_hvm:
        return ()
    found: list[Hardware] = [platform_device()]
    taken: list[int] = []
    scsi = False
    for disk in config.disks:
        number = disk.number
        if number >> 8 == vdev.SCSI_MAJOR:
            scsi = True
            continue
        index = vdev.windows_target(number)
        if index is not None and index < IDE_DRIVES and index not in taken:
            taken.append(index)
            found.append(IdeDrive(index, disk.is_cdrom))
    if scsi:
        found.append(scsi_controller())
    found += [
        nic(vif.model if vif.model in _NICS else "rtl8139", vif.mac or b"")
        for vif in config.vifs
        if vif.type is not NicType.VIF
    ]
    return tuple(found)
