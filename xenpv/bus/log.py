"""The log of a guest's drivers and the places it goes to (win-xenbus src/xen/log.c).

Xen's console by port 0xE9, the device model's log by port 0x12, and the PV console while the
bus is in D0: each with the levels that the registry gives it.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import attrs

from xenpv.bus.console import ConsoleInterface
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.registry import Registry
from xenpv.errors import LocalProtocolError
from xenpv.xen.domain import Domain

LINE_MAX: Final = 256  # LOG_BUFFER_SIZE
DISPOSITIONS_MAX: Final = 8  # LOG_MAXIMUM_DISPOSITION
SLOTS_MAX: Final = 32  # of DbgPrint text that comes while the log is busy
DBG_PRINT_PREFIX: Final = "xen"  # what a free build forwards

XEN_PARAMETERS: Final = "Services\\XEN\\Parameters"
XENBUS_PARAMETERS: Final = "Services\\XENBUS\\Parameters"

Sink = Callable[[bytes], object]


class LogLevel(enum.IntFlag):
    """LOG_LEVEL of xen.h: bits by DPFLTR_*_LEVEL, and one that DbgPrint has not."""

    ERROR = 1 << 0
    WARNING = 1 << 1
    TRACE = 1 << 2
    INFO = 1 << 3
    CRITICAL = 1 << 31


CRITICAL: Final = LogLevel.CRITICAL
NONE: Final = LogLevel(0)
FROM_INFO: Final = LogLevel.INFO | LogLevel.WARNING | LogLevel.ERROR | LogLevel.CRITICAL
FROM_INFO_NAMES: Final = ("INFO", "WARNING", "ERROR", "CRITICAL")  # as a REG_MULTI_SZ

# Each place: the key and value that say its levels, and those without that value.
LEVELS: Final = {
    "xen": (XEN_PARAMETERS, "XenLogLevel", CRITICAL),
    "qemu": (XEN_PARAMETERS, "QemuLogLevel", FROM_INFO),
    "console": (XENBUS_PARAMETERS, "ConsoleLogLevel", NONE),
}


def parse_levels(names: Sequence[str]) -> LogLevel:
    """A mask from names, without case; one that is no level's is passed over."""
    levels = LogLevel.__members__
    mask = NONE
    for name in names:
        mask |= levels.get(name.upper(), NONE)
    return mask


def levels_of(registry: Registry, place: str) -> LogLevel:
    """The levels of "xen", "qemu" or "console"."""
    path, name, default = LEVELS[place]
    names = registry.strings(path, name)
    return default if names is None else parse_levels(names)


@attrs.define(eq=False)
class Disposition:
    """LOG_DISPOSITION: a place and the levels that go there."""

    mask: LogLevel
    sink: Sink


def cut(text: str) -> bytes:
    """At most LINE_MAX bytes; a line that is cut stays a line. (The driver loses its LF.)"""
    data = text.encode("utf-8", "replace")
    if len(data) <= LINE_MAX:
        return data
    return data[: LINE_MAX - 1] + b"\n" if data.endswith(b"\n") else data[:LINE_MAX]


class Log:
    """The log of one guest. A line reaches every disposition whose mask has its level.

    `qemu` takes bytes for port 0x12; None if the domain has no device model. Without
    `dbg_print` (start option XEN:DBG_PRINT=OFF) no DbgPrint text is forwarded; `dropped` counts
    those for which there was no slot. In a Linux guest, whose printk goes to hvc0, the
    PV console is the only place and has every level but TRACE.
    """

    def __init__(
        self,
        domain: Domain,
        registry: Registry,
        *,
        personality: str = "windows",
        qemu: Sink | None = None,
        dbg_print: bool = True,
    ) -> None:
        self.registry = registry
        self.forwards = dbg_print
        self.personality = personality
        self.dropped = 0
        self.dispositions: list[Disposition] = []
        self._busy = False
        self._slots: deque[tuple[LogLevel, str]] = deque()
        self._console: Disposition | None = None
        if personality == "windows":
            self._install("xen", domain.debugcons)
            if qemu is not None:
                self._install("qemu", qemu)

    def _install(self, place: str, sink: Sink) -> Disposition | None:
        mask = levels_of(self.registry, place)
        return self.add_disposition(mask, sink) if mask else None

    # dispositions

    def add_disposition(self, mask: LogLevel, sink: Sink) -> Disposition:
        """LogAddDisposition. NtStatusError INVALID_PARAMETER: no level; UNSUCCESSFUL: all 8 used.

        `sink` gets bytes, a line at a time or in parts, and may not raise.
        """
        if not mask:
            raise NtStatusError(NTSTATUS.INVALID_PARAMETER, "no level", operation="LOG")
        if len(self.dispositions) >= DISPOSITIONS_MAX:
            reason = f"{DISPOSITIONS_MAX} dispositions are in use"
            raise NtStatusError(NTSTATUS.UNSUCCESSFUL, reason, operation="LOG")
        made = Disposition(mask, sink)
        self.dispositions.append(made)
        return made

    def remove_disposition(self, disposition: Disposition) -> None:
        """LogRemoveDisposition."""
        if disposition not in self.dispositions:
            raise LocalProtocolError("this log disposition is not installed")
        self.dispositions.remove(disposition)

    def add_console(self, console: ConsoleInterface) -> None:
        """D0: the PV console too, LF as CRLF; nothing if its levels are none."""
        if self._console is not None:
            return
        if self.personality != "windows":
            self._console = self.add_disposition(FROM_INFO, console.print_bytes)
        else:
            self._console = self._install("console", console.print_bytes)

    def remove_console(self) -> None:
        """D3."""
        if self._console is not None:
            self.remove_disposition(self._console)
            self._console = None

    # text

    def printf(self, level: LogLevel, text: str) -> None:
        """LogPrintf: to every place that wants the level, cut to 256 bytes."""
        data = cut(text)
        busy, self._busy = self._busy, True
        for disposition in self.dispositions:
            if disposition.mask & level:
                disposition.sink(data)
        self._busy = busy
        if self._slots and not busy:
            self._flush()

    def dbg_print(self, text: str, level: LogLevel = LogLevel.INFO) -> None:
        """DbgPrint of anybody in the kernel; what does not start with `xen` goes nowhere here.

        While the log is busy the text waits in one of 32 slots, or is dropped.
        """
        if self.personality == "windows" and not text.startswith(DBG_PRINT_PREFIX):
            return
        if not self.forwards:
            return
        if not self._busy:
            self.printf(level, text)
        elif len(self._slots) < SLOTS_MAX:
            self._slots.append((level, text))
        else:
            self.dropped += 1

    def hold(self) -> None:
        """HIGH_LEVEL: DbgPrint text waits until `release`."""
        self._busy = True

    def release(self) -> None:
        """What waited is printed."""
        self._busy = False
        self._flush()

    def _flush(self) -> None:
        while self._slots and not self._busy:
            self.printf(*self._slots.popleft())
