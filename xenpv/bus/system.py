"""XEN.SYS: the library that every driver of the stack is linked to, and its start of day.

win-xenbus src/xen/driver.c, hypercall.c, log.c. Its order: places to log to, hypercalls,
processors, then the requests to unplug.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from xenpv.abi.unplug import PORT_LOG
from xenpv.bus import inf
from xenpv.bus.log import Log, LogLevel
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.registry import Registry
from xenpv.bus.startoptions import StartOptions
from xenpv.bus.unplug import Unplug
from xenpv.xen.domain import Domain

LEAF_BASES: Final = (0x4000_0000, 0x4000_0100)
LEAVES_MIN: Final = 2  # after the first
SIGNATURE: Final = b"XenVMMXenVMM"
INTERFACE_VERSION: Final = 0x0004_0800  # __XEN_INTERFACE_VERSION__ that it was compiled for

# By vendor of the processor; there is no hypercall page since XSA-466.
INSTRUCTIONS: Final = {
    b"GenuineIntel": "VMCALL",
    b"CentaurHauls": "VMCALL",
    b"  Shanghai  ": "VMCALL",
    b"AuthenticAMD": "VMMCALL",
    b"HygonGenuine": "VMMCALL",
}

XENVER_VERSION: Final = 0
XENVER_EXTRAVERSION: Final = 1


class QemuLog:
    """The device model's log, by its port."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain

    def write(self, data: bytes) -> None:
        """A line, or a part of one."""
        self.domain.ioport.write_string(PORT_LOG, data)


def hypercall_instruction(domain: Domain) -> str:
    """HypercallInitialize: VMCALL or VMMCALL. NtStatusError NOT_SUPPORTED: this is not Xen, or
    a processor of a vendor that is not known.
    """
    _max, b, c, d = domain.cpuid(0)
    vendor = _text(b, d, c)
    for base in LEAF_BASES:
        last, b, c, d = domain.cpuid(base)
        if _text(b, c, d) == SIGNATURE and last >= base + LEAVES_MIN:
            if vendor in INSTRUCTIONS:
                return INSTRUCTIONS[vendor]
            raise NtStatusError(
                NTSTATUS.NOT_SUPPORTED, f"processors of {vendor.decode('latin-1')!r}"
            )
    raise NtStatusError(NTSTATUS.NOT_SUPPORTED, "no leaves of Xen's in CPUID")


@lru_cache(16)
def _text(*words: int) -> bytes:
    return b"".join(word.to_bytes(4, "little") for word in words)


class XenSystem:
    """xen.sys in one boot of a guest. NtStatusError NOT_SUPPORTED: it does not load."""

    def __init__(self, domain: Domain, registry: Registry, build: inf.Build = inf.BUILD) -> None:
        self.domain = domain
        self.registry = registry
        self.build = build
        self.options = StartOptions.of(registry)
        self.log = Log(
            domain, registry, qemu=QemuLog(domain).write, dbg_print=self.options.dbg_print
        )
        for warning in self.options.warnings:
            self.log.printf(LogLevel.WARNING, f"xen|{warning}\n")
        self.instruction = hypercall_instruction(domain)
        self.unplug = Unplug(
            domain, registry, self.log, build=build, boot_emulated=self.options.boot_emulated
        )

    def touch(self, service: str) -> None:
        """XenTouch: a driver says which build it is. NtStatusError INCOMPATIBLE_DRIVER_BLOCKED.

        That driver loads, and does nothing until the next boot finds what an update left.
        """
        version = self.build.version_of(service)
        if version != self.build.version:
            ours, theirs = (".".join(map(str, one)) for one in (self.build.version, version))
            self.log.printf(
                LogLevel.ERROR, f"xen|{service} {theirs} IS NOT COMPATIBLE WITH {ours}\n"
            )
            raise NtStatusError(
                NTSTATUS.INCOMPATIBLE_DRIVER_BLOCKED, f"{theirs}, not {ours}", operation=service
            )

    def announce(self) -> None:
        """The line about the Xen below it."""
        version = self.domain.xen_version(XENVER_VERSION)
        extra = self.domain.xen_version(XENVER_EXTRAVERSION)
        assert isinstance(version, int)
        assert isinstance(extra, bytes)
        text = extra.partition(b"\0")[0].decode("ascii", "replace")
        self.log.printf(
            LogLevel.INFO,
            f"xen|XEN: {version >> 16}.{version & 0xFFFF}{text} "
            f"(__XEN_INTERFACE_VERSION__ = {INTERFACE_VERSION:08x})\n",
        )
