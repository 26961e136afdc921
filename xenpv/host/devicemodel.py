"""The device model of an HVM domain: its emulated devices, and the Xen platform device's ports.

QEMU hw/i386/xen/xen_platform.c and hw/xen/xen_pvdevice.c; the blacklist is as in Xen's own
QEMU. It is a process of the toolstack's domain, so it stands beside the toolstack and reads
the store as that does; the domain reaches it by its I/O ports alone.
"""

from __future__ import annotations

from collections import deque
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Final, Protocol

import attrs

from xenpv.abi.pci import CLASS_ETHERNET, CLASS_NVME, CLASS_SCSI, VENDOR_XEN, IdeDrive, PciFunction
from xenpv.abi.unplug import MAGIC, MAGIC_BLACKLISTED, PORT, PORT_LOG, PRODUCTS, Unplug
from xenpv.errors import StoreError
from xenpv.host.hardware import FIRST_DEVFN, IDE_CONTROLLER, PLATFORM_IDS, Hardware, default

if TYPE_CHECKING:
    from xenpv.host.domainconfig import DomainConfig
    from xenpv.host.xs import XsHandle

VERSION: Final = 1  # of the protocol; 0 knows no products and builds
BLACKLIST: Final = "/mh/driver-blacklist"

LINE_MAX: Final = 4095  # log_buffer: a longer line is broken there
LINES_MAX: Final = 16384  # the oldest go first
# A token for each byte: BUCKET_MAX_SIZE, BUCKET_FILL_RATE a second.
BUCKET_BYTES: Final = 128 << 10
FILL_BYTES_PER_S: Final = 256
NS_PER_S: Final = 1_000_000_000

# The bit by which devices of a class go; a class as its upper 16 bits.
UNPLUGGED_BY: Final = {
    CLASS_SCSI >> 8: Unplug.ALL_DISKS,
    CLASS_ETHERNET >> 8: Unplug.ALL_NICS,
    CLASS_NVME >> 8: Unplug.NVME_DISKS,
}


class Clock(Protocol):
    @property
    def now(self) -> int:
        """Nanoseconds."""


@attrs.define(eq=False)
class GuestLog:
    """Text that a guest writes byte by byte. Bytes beyond the rate are dropped and counted.

    QEMU makes the guest wait instead, which is the same log later.
    """

    clock: Clock
    lines: deque[str] = attrs.field(factory=lambda: deque(maxlen=LINES_MAX))
    dropped: int = 0
    _begun: bytearray = attrs.field(factory=bytearray)
    _tokens: int = BUCKET_BYTES
    _filled_at: int = 0

    def write(self, data: bytes) -> None:
        """A line is complete at its newline, or when the buffer is full."""
        self._fill()
        if data.find(b"\n") == len(data) - 1 < min(self._tokens, LINE_MAX) and not self._begun:
            self._tokens -= len(data)
            self.lines.append(data[:-1].decode("latin-1"))
            return
        taken = data[: self._tokens]
        self._tokens -= len(taken)
        self.dropped += len(data) - len(taken)
        *whole, begun = taken.split(b"\n")
        for line in whole:
            self._add(line)
            self.lines.append(self._begun.decode("latin-1"))
            self._begun.clear()
        self._add(begun)

    def _add(self, text: bytes) -> None:
        self._begun += text
        while len(self._begun) >= LINE_MAX:
            self.lines.append(self._begun[:LINE_MAX].decode("latin-1"))
            del self._begun[:LINE_MAX]

    def _fill(self) -> None:
        gained = (self.clock.now - self._filled_at) * FILL_BYTES_PER_S // NS_PER_S
        if gained:
            self._tokens = min(BUCKET_BYTES, self._tokens + gained)
            self._filled_at += gained * NS_PER_S // FILL_BYTES_PER_S


class DeviceModel:
    """One domain's. `version` is the protocol's.

    `product`, `build`: what the drivers said of themselves. `unplugged`: every mask written.
    """

    def __init__(
        self, config: DomainConfig, xs: XsHandle, clock: Clock, *, version: int = VERSION
    ) -> None:
        self.config = config
        self.version = version
        self.product: int | None = None
        self.build: int | None = None
        self.blacklisted = False
        self.unplugged: list[Unplug] = []
        self.log = GuestLog(clock)
        self._xs = xs
        self._functions: list[PciFunction] | None = None
        self._drives: list[IdeDrive] = []

    @cached_property
    def hardware(self) -> tuple[Hardware, ...]:
        """What it emulates at power-on: as the configuration says, or by libxl's rules."""
        return default(self.config) if self.config.hardware is None else self.config.hardware

    @property
    def platform_device(self) -> tuple[int, int] | None:
        """Device number and devfn of the one that has the unplug ports; None: there are none."""
        if self.config.hardware is None:
            return PLATFORM_IDS[0], FIRST_DEVFN
        for one in self._power_on():
            if one.vendor_id == VENDOR_XEN and one.device_id in PLATFORM_IDS:
                return one.device_id, one.devfn
        return None

    # buses

    def functions(self) -> list[PciFunction]:
        """PCI bus 0 as it is now: the IDE controller, then what is left of the list."""
        if self._functions is None:
            self._functions = self._power_on()
            self._drives = [one for one in self.hardware if isinstance(one, IdeDrive)]
        return self._functions

    def drives(self) -> list[IdeDrive]:
        """The drives on the IDE channels as they are now."""
        self.functions()
        return self._drives

    def _power_on(self) -> list[PciFunction]:
        """What PCI bus 0 has then, each in a slot of its own."""
        listed = [one for one in self.hardware if isinstance(one, PciFunction)]
        slots = range(FIRST_DEVFN, FIRST_DEVFN + 8 * len(listed), 8)
        placed = zip(listed, slots, strict=True)
        return [IDE_CONTROLLER, *(_place(one, devfn) for one, devfn in placed)]

    def unplug(self, mask: Unplug) -> None:
        """Take away what the mask names; what was passed through and CD-ROM drives stay."""
        self.unplugged.append(mask)
        self._functions = [one for one in self.functions() if not _goes(one, mask)]
        first = 0 if mask & Unplug.ALL_DISKS else 1 if mask & Unplug.AUX_DISKS else None
        if first is not None:
            self._drives = [one for one in self._drives if one.is_cdrom or one.index < first]

    # ports

    def io_read(self, port: int, size: int) -> int:
        """The magic, the version; all ones for what has no meaning."""
        if (port, size) == (PORT, 2):
            return MAGIC_BLACKLISTED if self.blacklisted else MAGIC
        if (port, size) == (PORT_LOG, 1):
            return self.version
        return -1

    def io_write(self, port: int, size: int, value: int) -> None:
        """The mask, the product, the build, a byte of the log; anything else is lost."""
        if (port, size) == (PORT, 2):
            self.unplug(Unplug(value & 0xF))
        elif (port, size) == (PORT_LOG, 1):
            self.log.write(bytes((value,)))
        elif (port, size) == (PORT_LOG, 2) and self.version:
            self.product = value
        elif (port, size) == (PORT, 4) and self.version:
            self.build = value
            self._look_up()

    def io_write_string(self, port: int, data: bytes) -> None:
        """Log text at once."""
        if port == PORT_LOG:
            self.log.write(data)

    def _look_up(self) -> None:
        """Drivers are blacklisted by a node for their product and build; it stays so."""
        name = PRODUCTS.get(self.product or 0)
        if name is None:
            return
        try:
            found = self._xs.read(f"{BLACKLIST}/{name}/{self.build}")
        except StoreError:
            return  # such as EINVAL: the names of products 4 and 5 are no paths
        self.blacklisted = self.blacklisted or found is not None


def _place(function: PciFunction, devfn: int) -> PciFunction:
    """A card with an address is one guest's: it is not remembered."""
    if function.mac:
        return attrs.evolve(function, devfn=devfn)
    return _placed(function, devfn)


@lru_cache(256)
def _placed(function: PciFunction, devfn: int) -> PciFunction:
    return attrs.evolve(function, devfn=devfn)


def _goes(function: PciFunction, mask: Unplug) -> bool:
    bit = UNPLUGGED_BY.get(function.class_code >> 8)
    return bit is not None and bool(mask & bit) and not function.passed_through
