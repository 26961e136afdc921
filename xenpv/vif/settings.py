r"""Settings of an emulated card, carried over to the PV interface in its place (settings.c).

Windows keeps an interface's settings by the GUID and the LUID of its card, so that a static
address would be lost with the card. What they were is kept below Settings\<number>, and copied
when the interface comes up for the first time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpv.bus.netio import InterfaceRow, guid, luid
from xenpv.vif.identity import SERVICE
from xenpv.vif.stack import configuration_key

if TYPE_CHECKING:
    from xenpv.bus.registry import Registry

SETTINGS: Final = f"{SERVICE}\\Settings"
GUID: Final = "NetCfgInstanceId"
LUID: Final = "NetLuid"
HAS_SETTINGS: Final = "HasSettings"
LUID_INDEX: Final = 0x100  # of interface 0; emulated cards have lower ones

# What Windows has by GUID: the key that has a key for each interface, and what precedes its name.
INTERFACES: Final = (
    ("Services\\NetBT\\Parameters\\Interfaces", "Tcpip_"),
    ("Services\\Tcpip\\Parameters\\Interfaces", ""),
    ("Services\\Tcpip6\\Parameters\\Interfaces", ""),
)
# What NSI has by LUID: values whose names begin with it.
NSI: Final = (
    "Control\\Nsi\\{eb004a00-9b1a-11d4-9123-0050047759bc}\\10",  # IPv4
    "Control\\Nsi\\{eb004a01-9b1a-11d4-9123-0050047759bc}\\10",  # IPv6
)


def luid_name(value: int) -> str:
    """A LUID as the names of NSI's values begin: its bytes as they lie in memory, in hex."""
    return value.to_bytes(8, "little").hex().upper()


def save(registry: Registry, number: int, row: InterfaceRow) -> None:
    """Whose settings interface `number` is to have."""
    key = f"{SETTINGS}\\{number}"
    registry.set(key, GUID, row.guid)
    registry.set(key, LUID, row.luid)


def restore(registry: Registry, number: int) -> None:
    """Copy what was saved to interface `number`, once in the life of its installation."""
    own = configuration_key(number)
    if registry.dword(own, HAS_SETTINGS, 0):
        return
    key = f"{SETTINGS}\\{number}"
    old_guid, old_luid = registry.string(key, GUID), registry.dword(key, LUID, -1)
    if old_guid is None or old_luid < 0:
        return
    new_guid = registry.string(own, GUID)
    if new_guid is None:
        new_guid = guid(f"XENVIF\\{number}")
        registry.set(own, GUID, new_guid)
    for path, prefix in INTERFACES:
        values = registry.values(f"{path}\\{prefix}{old_guid}")
        for name, value in values.items():
            registry.set(f"{path}\\{prefix}{new_guid}", name, value)
    old, new = luid_name(old_luid), luid_name(luid(LUID_INDEX + number))
    for path in NSI:
        for name, value in registry.values(path).items():
            if name.upper().startswith(old):
                registry.set(path, new + name[len(old) :], value)
    registry.set(own, HAS_SETTINGS, 1)
