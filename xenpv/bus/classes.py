"""Which classes of devices XENBUS makes a PDO for (win-xenbus fdo.c, FdoScan).

Those that have a directory below `device`, and the synthetic ones, if the registry names them
as supported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from xenpv.bus import inf
from xenpv.bus.registry import Registry

PARAMETERS: Final = inf.XENBUS_PARAMETERS


def install(registry: Registry) -> None:
    """The values of the INF, in a registry where the driver was never installed."""
    if registry.find(PARAMETERS) is None:
        for name, value in inf.INF[PARAMETERS].items():
            registry.set(PARAMETERS, name, value)


def is_enumerating(registry: Registry) -> bool:
    """The value Enumerate: whether children are looked for at all."""
    return registry.dword(PARAMETERS, "Enumerate", 1) != 0


def wanted(registry: Registry, names: Sequence[str]) -> list[str]:
    """Classes to have a PDO each, in the order of their finding; `names` are those in `device`.

    A name in `device` is upper-cased, a synthetic one is not; both are compared whole with
    SupportedClasses. (The driver compares as many characters as the name has, so that a
    directory `v` is a VIF.) Without the value nothing is supported.
    """
    supported = registry.strings(PARAMETERS, "SupportedClasses") or ()
    synthetic = registry.strings(PARAMETERS, "SyntheticClasses") or ()
    found = dict.fromkeys([name.upper() for name in names] + list(synthetic))
    return [name for name in found if name in supported]


def allows(registry: Registry, name: str, what: str) -> bool:
    """`AllowPdoRemove` or `AllowPdoEject` of a class: on where nothing is said."""
    return registry.dword(f"{PARAMETERS}\\{name}", what, 1) != 0
