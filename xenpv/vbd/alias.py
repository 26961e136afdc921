"""Why a device gets no target, above all where an emulated disk is the same image.

win-xenvbd target.c TargetCreate, adapter.c AdapterIsTargetEmulated. With two drivers on one image
its file system is lost, so the disk stays emulated until the next boot has that unplugged.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from xenpv.bus.ntstatus import NtStatusError
from xenpv.bus.xenfilt import EmulatedInterface
from xenpv.vbd.targetid import target_id

if TYPE_CHECKING:
    from collections.abc import Container

    from xenpv.bus.xenbus import XenBus

MODULE: Final = "XENVBD"
EMULATED_VERSION: Final = 2
SCSI_MAJOR: Final = 8
SCSI_CONTROLLER: Final = (0x1000, 0x0012)  # lsi53c895a
IDE_TARGETS: Final = 4  # that may be emulated: two channels, two targets each


class Refusal(enum.Enum):
    """The text is the log's."""

    NO_TARGET = "no target number"
    TAKEN = "its target is taken"  # the driver asserts
    BOOT_EMULATED = "the system was told to keep its emulated disk"
    ALIASED = "its emulated disk is there, or may be"

    @property
    def asks_reboot(self) -> bool:
        """Another boot may find it otherwise."""
        return self in (Refusal.NO_TARGET, Refusal.ALIASED)

    @property
    def stays_emulated(self) -> bool:
        """The system has the disk all the same."""
        return self in (Refusal.BOOT_EMULATED, Refusal.ALIASED)


def refusal(bus: XenBus, devid: int, taken: Container[int]) -> Refusal | None:
    """None: it may be made. `taken`: targets that are there."""
    number = target_id(devid)
    if number is None:
        return Refusal.NO_TARGET
    if number in taken:
        return Refusal.TAKEN
    if bus.unplug is None:
        return None  # a bus that stands in no machine with emulated devices
    stays = bus.unplug.boot_emulated()
    if number == 0 and stays:
        return Refusal.BOOT_EMULATED
    if devid >> 8 == SCSI_MAJOR and _has_scsi(bus):
        return Refusal.BOOT_EMULATED if stays else Refusal.ALIASED
    return Refusal.ALIASED if _is_emulated(bus, number) else None


def _has_scsi(bus: XenBus) -> bool:
    """Whether QEMU's controller of the sd disks is there. EMULATED does not know what is on it,
    and the driver would have such a disk twice.
    """
    functions = bus.domain.ioport.functions()
    return any((one.vendor_id, one.device_id) == SCSI_CONTROLLER for one in functions)


def _is_emulated(bus: XenBus, number: int) -> bool:
    """Whom nobody can ask (xenfilt is not loaded) is taken for one that says yes."""
    if number >= IDE_TARGETS:
        return False
    try:
        emulated = bus.query_interface(EmulatedInterface.GUID, EMULATED_VERSION)
    except NtStatusError:
        return True
    emulated.acquire()
    try:
        return bool(emulated.is_disk_present(number))
    finally:
        emulated.release()
