"""The I/O ports by which PV drivers ask for emulated devices to go.

docs/misc/hvm-emulated-unplug.pandoc and hvm/pvdrivers.h of Xen.
"""

from __future__ import annotations

from enum import IntFlag
from typing import Final

PORT: Final = 0x10  # read 16: magic; write 16: mask; write 32: build number
PORT_LOG: Final = 0x12  # read 8: version; write 16: product number; write 8: a byte of log text
PORTS: Final = 16  # that the platform device takes, from PORT on

MAGIC: Final = 0x49D2
MAGIC_BLACKLISTED: Final = 0xD249


class Unplug(IntFlag):
    """Bits of the mask. ALL_DISKS overrides AUX_DISKS; CD-ROM drives stay in any case."""

    ALL_DISKS = 1 << 0  # IDE and SCSI
    ALL_NICS = 1 << 1
    AUX_DISKS = 1 << 2  # IDE but the primary master
    NVME_DISKS = 1 << 3


# Names in `/mh/driver-blacklist/<name>/<build>`, PVDRIVERS_PRODUCT_LIST.
PRODUCTS: Final = {
    1: "xensource-windows",
    2: "gplpv-windows",
    3: "linux",
    4: "xenserver-windows-v7.0+",
    5: "xenserver-windows-v7.2+",
    0xFFFF: "experimental",
}
