"""Whether an interface may start beside the emulated cards of its guest (win-xenvif pdo.c).

While a card with its MAC address is up, or cards were not unplugged at this boot, it may not:
the system would have two ways to one network. The drivers ask for the unplug and for a reboot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpv.bus.netio import cards, interfaces
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.unplug import UnplugType
from xenpv.vif import settings

if TYPE_CHECKING:
    from xenpv.bus.xenbus import XenBus

MODULE: Final = "XENVIF"


def check_start(bus: XenBus, number: int, address: bytes) -> None:
    """START_DEVICE of interface `number`. NtStatusError: UNSUCCESSFUL in safe mode,
    PNP_REBOOT_REQUIRED, with everything asked for that makes the next boot another.
    """
    operation = f"{MODULE} StartDevice"
    if bus.options.safe_mode:
        raise NtStatusError(NTSTATUS.UNSUCCESSFUL, "safe mode", operation=operation)
    unplug = bus.unplug
    if unplug is None:
        return  # of a bus that stands in no machine with emulated devices
    reason = ""
    for row in interfaces(bus):
        if row.is_up and row.permanent_address == address:
            settings.save(bus.registry, number, row)
            reason = f"{row.alias} has its address"
            break
    # (The driver asks for a reboot also where no card is there, as after all of them went.)
    if not reason and not unplug.is_requested(UnplugType.NICS) and cards(bus):
        reason = "emulated cards were not unplugged at this boot"
    if reason:
        bus.request_unplug(UnplugType.NICS, make=True)
        unplug.reboot(MODULE)
        raise NtStatusError(NTSTATUS.PNP_REBOOT_REQUIRED, reason, operation=operation)
    settings.restore(bus.registry, number)
