"""Which emulated devices the guest's drivers ask to be gone, and how they say it.

win-xenbus src/xen/unplug.c and src/xenbus/unplug.c; the ports are in abi.unplug. A driver of
PV devices asks for the next boot by counting up a value of the registry; xen.sys reads and
deletes the values when it loads, and whoever is in charge (xenfilt at boot, the resume) has
the devices unplugged.
"""

from __future__ import annotations

import enum
from typing import ClassVar, Final

from xenpv.abi import unplug as ports
from xenpv.bus import inf
from xenpv.bus.interface import Interface
from xenpv.bus.log import Log, LogLevel
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.registry import Registry
from xenpv.xen.domain import Domain

PRODUCT: Final = 0xFFFF  # experimental
DWORD_MAX: Final = 0xFFFF_FFFF
LONG_MAX: Final = 0x7FFF_FFFF

_U = ports.Unplug


class UnplugType(enum.IntEnum):
    """XENBUS_UNPLUG_DEVICE_TYPE of unplug_interface.h. The name is that of the value."""

    NICS = 1
    DISKS = 2


# In the order of the writes: mask, mask with BOOT_EMULATED, what a key of Enum\XENBUS contains.
TYPES: Final = {
    UnplugType.DISKS: (_U.ALL_DISKS | _U.NVME_DISKS, _U.AUX_DISKS, "VBD"),
    UnplugType.NICS: (_U.ALL_NICS, _U.ALL_NICS, "VIF"),
}


def take_request(registry: Registry, kind: UnplugType) -> bool:
    """Whether this boot unplugs devices of a type; the value that asked for it is deleted.

    ForceUnplug comes first. Else the drivers' value counts, if a device of theirs was ever
    enumerated: without its PV successor an emulated device stays.
    """
    forced = _dword(registry, inf.FORCE_UNPLUG, kind)
    asked = _dword(registry, inf.UNPLUG, kind)
    if forced is not None or asked is not None:
        registry.delete_value(inf.UNPLUG, kind.name)
    if forced or not asked:
        return bool(forced)
    needle = TYPES[kind][2]
    return any(needle in name for name in registry.subkeys(inf.ENUM_XENBUS) or ())


def _dword(registry: Registry, path: str, kind: UnplugType) -> int | None:
    """A REG_DWORD; None where there is none, or a value of another type."""
    value = registry.get(path, kind.name)
    return value if isinstance(value, int) and value <= DWORD_MAX else None


class Unplug:
    """xen.sys' part. `requests` are this boot's, by type; `blacklisted` and `supported` what
    the ports last said. A wrong magic is logged, and the masks are written all the same.
    """

    def __init__(
        self,
        domain: Domain,
        registry: Registry,
        log: Log,
        *,
        build: inf.Build = inf.BUILD,
        boot_emulated: bool = False,
    ) -> None:
        self.domain = domain
        self.registry = registry
        self.log = log
        self.build = build
        self.boot_emulated = boot_emulated
        self.blacklisted = False
        self.supported = True
        self.requests = {kind: take_request(registry, kind) for kind in TYPES}

    def devices(self) -> None:
        """UnplugDevices: at boot by xenfilt, after a resume, and on the way from S4 to S3.

        On CPU 0, before anybody else does anything; it does not fail.
        """
        self._preamble()
        for kind, (mask, emulated, _needle) in TYPES.items():
            if not self.requests[kind]:
                continue
            wanted = emulated if self.boot_emulated else mask
            self.domain.io_write(ports.PORT, 2, wanted)
            aux = "AUX " if wanted is _U.AUX_DISKS else ""
            self.log.printf(LogLevel.WARNING, f"xen|UNPLUG: {aux}{kind.name}\n")

    def _preamble(self) -> None:
        domain = self.domain
        magic = domain.io_read(ports.PORT, 2)
        self.supported = magic in (ports.MAGIC, ports.MAGIC_BLACKLISTED)
        if magic == ports.MAGIC and domain.io_read(ports.PORT_LOG, 1):
            domain.io_write(ports.PORT_LOG, 2, PRODUCT)
            domain.io_write(ports.PORT, 4, self.build.number)
            magic = domain.io_read(ports.PORT, 2)
        self.blacklisted = self.blacklisted or magic == ports.MAGIC_BLACKLISTED
        if not self.supported:
            text = f"xen|UNPLUG: PRE-AMBLE: no protocol, magic {magic:#06x}\n"
            self.log.printf(LogLevel.ERROR, text)
            return
        blacklisted = "BLACKLISTED" if self.blacklisted else "NOT BLACKLISTED"
        self.log.printf(LogLevel.WARNING, f"xen|UNPLUG: PRE-AMBLE (DRIVERS {blacklisted})\n")

    def increment(self, kind: UnplugType) -> int:
        """One more driver asks; the count, which wraps at 32 bits. From nothing it is 1."""
        count = (_dword(self.registry, inf.UNPLUG, kind) or 0) + 1 & DWORD_MAX
        self.registry.set(inf.UNPLUG, kind.name, count)
        return count

    def decrement(self, kind: UnplugType) -> int:
        """One asks no more. NtStatusError OBJECT_NAME_NOT_FOUND without a value,
        INVALID_PARAMETER at 0 or where the count is negative as a LONG.
        """
        value = _dword(self.registry, inf.UNPLUG, kind)
        operation = f"UnplugDecrementValue {kind.name}"
        if value is None:
            raise NtStatusError(NTSTATUS.OBJECT_NAME_NOT_FOUND, operation=operation)
        if not 0 < value <= LONG_MAX:
            raise NtStatusError(NTSTATUS.INVALID_PARAMETER, f"at {value}", operation=operation)
        self.registry.set(inf.UNPLUG, kind.name, value - 1)
        return value - 1


class UnplugInterface(Interface):
    """UNPLUG v1-3. It only counts its references: nothing of it can be left over."""

    NAME = "UNPLUG"
    GUID = "73DB6517-3D06-4937-989F-199B7501E229"
    OPERATIONS: ClassVar = {
        1: ("request",),
        2: ("request", "is_requested"),
        3: ("request", "is_requested", "boot_emulated", "reboot"),
    }

    def __init__(self, unplug: Unplug) -> None:
        self.unplug = unplug

    def request(self, kind: UnplugType, make: bool) -> None:
        """Make or revoke a request for the next boot; what goes wrong is only logged."""
        try:
            count = self.unplug.increment(kind) if make else self.unplug.decrement(kind)
        except NtStatusError as error:
            self.unplug.log.dbg_print(f"xenbus|UNPLUG: {error}\n")
            return
        self.unplug.log.dbg_print(f"xen|UNPLUG: {kind.name} {count}\n")

    def is_requested(self, kind: UnplugType) -> bool:
        """This boot's request flag, also where nothing was unplugged."""
        return self.unplug.requests[kind]

    def boot_emulated(self) -> bool:
        """The start option XEN:BOOT_EMULATED."""
        return self.unplug.boot_emulated

    def reboot(self, module: str) -> None:
        """Ask for a reboot in the name of a driver: see request_reboot."""
        request_reboot(self.unplug.registry, module)


def _request_key(registry: Registry) -> str | None:
    path = registry.string(inf.XENBUS_PARAMETERS, "RequestKey")
    if path is None:
        return None
    head, tail = path[: len(inf.CURRENT_CONTROL_SET)], path[len(inf.CURRENT_CONTROL_SET) :]
    return tail if head.lower() == inf.CURRENT_CONTROL_SET.lower() else None


def request_reboot(registry: Registry, module: str) -> None:
    """`<RequestKey>\\<module>` Reboot = 1, for the monitor service; volatile.

    Without RequestKey nothing happens.
    """
    key = _request_key(registry)
    if key is not None and module and "\\" not in module:
        registry.create(f"{key}\\{module}", volatile=True)
        registry.set(f"{key}\\{module}", "Reboot", 1)


def reboot_requests(registry: Registry) -> list[str]:
    """Drivers that want a reboot, in the order of their asking: what the monitor service sees.

    It prompts its user once, in the name of the first.
    """
    key = _request_key(registry)
    if key is None:
        return []
    names = registry.subkeys(key) or ()
    return [name for name in names if registry.dword(f"{key}\\{name}", "Reboot", 0)]
