"""Who may use XENIFACE: the security descriptors of its device and of its WMI classes.

win-xeniface xeniface.inf and driver.c. Only what these descriptors say is read: entries that
allow everything (GA) to a well-known group.
"""

from __future__ import annotations

import enum
from typing import Final

from xenpv.bus.ntstatus import NTSTATUS, NtStatusError


class Principal(enum.Enum):
    """Who calls, by its alias in an SDDL string."""

    SYSTEM = "SY"
    ADMINISTRATORS = "BA"
    USERS = "BU"


DEVICE_SDDL: Final = "D:P(A;;GA;;;SY)(A;;GA;;;BA)"
WMI_SDDL: Final = "O:BAG:BAD:(A;;GA;;;BA)(A;;GA;;;SY)"
# The event classes have none of their own: Windows lets everybody receive them.
EVENT_SDDL: Final = "D:(A;;GA;;;WD)"

EVERYONE: Final = "WD"
ALLOW_ALL: Final = "(A;;GA;;;"


def allows(sddl: str, principal: Principal) -> bool:
    """Whether an entry of the discretionary list grants everything to `principal`."""
    return any(f"{ALLOW_ALL}{sid})" in sddl for sid in (principal.value, EVERYONE))


def check(sddl: str, principal: Principal, what: str) -> None:
    """Raises NtStatusError ACCESS_DENIED."""
    if not allows(sddl, principal):
        reason = f"{principal.name} is not in {sddl}"
        raise NtStatusError(NTSTATUS.ACCESS_DENIED, reason, operation=what)
