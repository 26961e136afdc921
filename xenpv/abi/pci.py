"""What a guest finds when it looks for devices: PCI configuration space, drives of an IDE bus."""

from __future__ import annotations

from typing import Final

import attrs

VENDOR_XEN: Final = 0x5853

CLASS_SCSI: Final = 0x010000
CLASS_IDE: Final = 0x010180
CLASS_NVME: Final = 0x010802
CLASS_ETHERNET: Final = 0x020000
CLASS_OTHER: Final = 0xFF8000


@attrs.frozen
class PciFunction:
    """One function of a PCI device. `class_code` is 24 bits: class, subclass, interface.

    `devfn` is device << 3 | function on bus 0. `passed_through`: a device of the host, which
    the guest cannot tell from an emulated one. `mac` is a network card's address.
    """

    vendor_id: int
    device_id: int
    class_code: int
    revision: int = attrs.field(default=0, kw_only=True)
    subsystem_vendor_id: int = attrs.field(default=0, kw_only=True)
    subsystem_id: int = attrs.field(default=0, kw_only=True)
    devfn: int = attrs.field(default=0, kw_only=True)
    passed_through: bool = attrs.field(default=False, kw_only=True)
    mac: bytes = attrs.field(default=b"", kw_only=True, eq=False)  # no part of what it is


@attrs.frozen
class IdeDrive:
    """What answers IDENTIFY at `index`: channel << 1 | target, 0 to 3."""

    index: int
    is_cdrom: bool = False
