"""Bug check codes, and what their four parameters mean (bugcodes.h; Microsoft's bug check
reference; win-xenbus src/xen/bug_check.c for what of them is printed).

A parameter is a number, or a str where Windows has a pointer to text or to a named thing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Final

Parameter = int | str
Decoder = Callable[[Parameter, Parameter, Parameter, Parameter], Iterator[str]]


class BugCode(IntEnum):
    """Those that are known by name."""

    IRQL_NOT_LESS_OR_EQUAL = 0x0A
    KMODE_EXCEPTION_NOT_HANDLED = 0x1E
    SYSTEM_SERVICE_EXCEPTION = 0x3B
    PAGE_FAULT_IN_NONPAGED_AREA = 0x50
    INACCESSIBLE_BOOT_DEVICE = 0x7B
    SYSTEM_THREAD_EXCEPTION_NOT_HANDLED = 0x7E
    NMI_HARDWARE_FAILURE = 0x80
    KERNEL_MODE_EXCEPTION_NOT_HANDLED = 0x8E
    DRIVER_POWER_STATE_FAILURE = 0x9F
    DRIVER_IRQL_NOT_LESS_OR_EQUAL = 0xD1
    MANUALLY_INITIATED_CRASH = 0xE2
    CRITICAL_PROCESS_DIED = 0xEF
    CRITICAL_OBJECT_TERMINATION = 0xF4
    DPC_WATCHDOG_VIOLATION = 0x133
    ASSERTION_FAILURE = 0xDEAD  # BUG() and BUG_ON() of the PV drivers
    SYSTEM_THREAD_EXCEPTION_NOT_HANDLED_M = 0x1000_007E
    KERNEL_MODE_EXCEPTION_NOT_HANDLED_M = 0x1000_008E


ACCESSES: Final = {0: "read", 1: "write", 2: "execute", 8: "execute"}
FAULTS: Final = {0: "read", 1: "write", 2: "write", 0x10: "execute"}
DEAD: Final = {0: "process", 1: "thread"}
OBJECTS: Final = {3: "process", 6: "thread"}
SPINNING: Final = {
    0: "one DPC or ISR exceeded its time",
    1: "too long at DISPATCH_LEVEL or above",
}
POWER: Final = {
    1: "a device object with outstanding power IRPs is being freed",
    2: "a device object completed the power IRP, but not PoStartNextPowerIrp",
    3: "a device object blocks an IRP for too long",
    4: "a power transition waits for the PnP subsystem",
    5: "a device fails to complete a directed power transition",
    0x500: "a device object completed the power IRP, but not PoStartNextPowerIrp",
}


def hexadecimal(value: Parameter, digits: int = 16) -> str:
    """`%p`, or the text that the pointer points to."""
    return value if isinstance(value, str) else f"{value:0{digits}X}"


def named(value: Parameter, names: dict[int, str], digits: int = 8) -> str:
    """A number, and its name where it has one."""
    name = names.get(value) if isinstance(value, int) else None
    text = hexadecimal(value, digits)
    return text if name is None else f"{text} ({name})"


def _irql(p1: Parameter, p2: Parameter, p3: Parameter, p4: Parameter) -> Iterator[str]:
    yield f"MEMORY REFERENCED: {hexadecimal(p1)}"
    yield f"             IRQL: {hexadecimal(p2, 2)}"
    yield f"           ACCESS: {named(p3, ACCESSES)}"
    yield f"          ADDRESS: {hexadecimal(p4)}"


def _page_fault(p1: Parameter, p2: Parameter, p3: Parameter, p4: Parameter) -> Iterator[str]:
    yield f"MEMORY REFERENCED: {hexadecimal(p1)}"
    yield f"           ACCESS: {named(p2, FAULTS)}"
    yield f"          ADDRESS: {hexadecimal(p3)}"
    yield f"             TYPE: {hexadecimal(p4, 8)}"


def _exception_at(p1: Parameter, p2: Parameter, _p3: Parameter, _p4: Parameter) -> Iterator[str]:
    yield f"{hexadecimal(p1, 8)} AT {hexadecimal(p2)}"


def _thread_exception(p1: Parameter, p2: Parameter, p3: Parameter, p4: Parameter) -> Iterator[str]:
    yield from _exception_at(p1, p2, p3, p4)
    yield f"EXCEPTION: {hexadecimal(p3)}"
    yield f"CONTEXT: {hexadecimal(p4)}"


def _service_exception(p1: Parameter, p2: Parameter, p3: Parameter, _: Parameter) -> Iterator[str]:
    yield f"{hexadecimal(p1, 8)} AT {hexadecimal(p2)}"
    yield f"CONTEXT: {hexadecimal(p3)}"


def _boot_device(p1: Parameter, _p2: Parameter, _p3: Parameter, _p4: Parameter) -> Iterator[str]:
    yield f"BOOT DEVICE: {hexadecimal(p1)}"


def _power_state(p1: Parameter, p2: Parameter, p3: Parameter, p4: Parameter) -> Iterator[str]:
    yield f"CODE: {named(p1, POWER)}"
    if p1 == 1:
        yield f"OUTSTANDING IRP (Device Object {hexadecimal(p2)})"
    elif p1 == 3:
        yield f"OUTSTANDING IRP {hexadecimal(p4)} (Device Object {hexadecimal(p2)})"
    elif p1 == 4:
        yield f"TIMEOUT: {hexadecimal(p2, 8)} seconds"
        yield f"THREAD: {hexadecimal(p3)}"


def _assertion(p1: Parameter, p2: Parameter, p3: Parameter, _p4: Parameter) -> Iterator[str]:
    yield f"FILE: {hexadecimal(p2)} LINE: {p3}"
    yield f"TEXT: {hexadecimal(p1)}"


def _process_died(p1: Parameter, p2: Parameter, _p3: Parameter, _p4: Parameter) -> Iterator[str]:
    yield f"DIED: {named(p2, DEAD)}"
    yield f"OBJECT: {hexadecimal(p1)}"


def _object_died(p1: Parameter, p2: Parameter, p3: Parameter, p4: Parameter) -> Iterator[str]:
    yield f"TYPE: {named(p1, OBJECTS)}"
    yield f"OBJECT: {hexadecimal(p2)}"
    yield f"NAME: {hexadecimal(p3)}"
    yield f"REASON: {hexadecimal(p4)}"


def _dpc_watchdog(p1: Parameter, p2: Parameter, p3: Parameter, _p4: Parameter) -> Iterator[str]:
    yield f"TYPE: {named(p1, SPINNING)}"
    if p1 == 0:
        yield f"TICKS: {hexadecimal(p2, 8)} OF {hexadecimal(p3, 8)}"
    else:
        yield f"PERIOD: {hexadecimal(p2, 8)}"


DECODERS: Final[dict[int, Decoder]] = {
    BugCode.IRQL_NOT_LESS_OR_EQUAL: _irql,
    BugCode.DRIVER_IRQL_NOT_LESS_OR_EQUAL: _irql,
    BugCode.PAGE_FAULT_IN_NONPAGED_AREA: _page_fault,
    BugCode.KMODE_EXCEPTION_NOT_HANDLED: _exception_at,
    BugCode.KERNEL_MODE_EXCEPTION_NOT_HANDLED: _exception_at,
    BugCode.KERNEL_MODE_EXCEPTION_NOT_HANDLED_M: _exception_at,
    BugCode.SYSTEM_THREAD_EXCEPTION_NOT_HANDLED: _thread_exception,
    BugCode.SYSTEM_THREAD_EXCEPTION_NOT_HANDLED_M: _thread_exception,
    BugCode.SYSTEM_SERVICE_EXCEPTION: _service_exception,
    BugCode.INACCESSIBLE_BOOT_DEVICE: _boot_device,
    BugCode.DRIVER_POWER_STATE_FAILURE: _power_state,
    BugCode.ASSERTION_FAILURE: _assertion,
    BugCode.CRITICAL_PROCESS_DIED: _process_died,
    BugCode.CRITICAL_OBJECT_TERMINATION: _object_died,
    BugCode.DPC_WATCHDOG_VIOLATION: _dpc_watchdog,
}
NAMES: Final = {code.value: code.name for code in BugCode}


def describe(
    code: int, p1: Parameter, p2: Parameter, p3: Parameter, p4: Parameter
) -> Iterator[str]:
    """`NAME-or-code: p1 p2 p3 p4`, then what the parameters say, a line each."""
    name = NAMES.get(code, f"{code:08X}")
    yield f"{name}: {' '.join(hexadecimal(one) for one in (p1, p2, p3, p4))}"
    decoder = DECODERS.get(code)
    if decoder is not None:
        yield from decoder(p1, p2, p3, p4)
