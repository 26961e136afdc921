"""What xl prints: list, vm-list, block-list, network-list (tools/xl/xl_list.c and its like).

The formats are C's, which Python's % understands. What a frontend wrote of itself is shown as it
is read there, so a guest can make it say anything; addresses are the toolstack's own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from xenpv.host.device import DeviceKey, stored
from xenpv.host.libxl import LibxlCtx
from xenpv.xen.domctl import DOMINF, DomainInfo

if TYPE_CHECKING:
    from xenpv.host.xs import XsHandle

DOMAIN_HEADER: Final = "Name                                        ID   Mem VCPUs\tState\tTime(s)"
DOMAIN_HEADER_VERBOSE: Final = "   UUID                            Reason-Code\tSecurity Label"
DOMAIN_ROW: Final = "%-40s %5d %5lu %5d     %c%c%c%c%c%c  %8.1f"
REASON_CODE: Final = " %8x"
NO_REASON: Final = " %8s"
LABEL: Final = " %16s"
VM_HEADER: Final = "UUID                                  ID    name"
VM_ROW: Final = "  %d    %-30s"
BLOCK_HEADER: Final = "%-5s %-3s %-6s %-5s %-6s %-8s %-30s"
BLOCK_NAMES: Final = ("Vdev", "BE", "handle", "state", "evt-ch", "ring-ref", "BE-path")
BLOCK_ROW: Final = "%-5d %-3d %-6d %-5d %-6d %-8d %-30s"
NETWORK_HEADER: Final = "%-3s %-2s %-17s %-6s %-5s %-6s %5s/%-5s %-30s"
NETWORK_NAMES: Final = (
    "Idx", "BE", "Mac Addr.", "handle", "state", "evt-ch", "tx-", "rx-ring-ref", "BE-path",
)  # fmt: skip
NETWORK_ROW: Final = "%-3d %-2d "
NETWORK_REST: Final = "%6d %5d %6d %5d/%-11d %-30s"

REASONS: Final = "-rscwS"  # by SHUTDOWN_*; any other is a question mark
UNKNOWN: Final = -1  # of a key that is not there
PAGES_PER_MIB: Final = 256
ULONG_MAX: Final = (1 << 64) - 1


def domains(ctx: LibxlCtx, *, verbose: bool = False) -> str:
    """`xl list`, or `xl list -v`: a line for each domain, also for one that is dying."""
    header = DOMAIN_HEADER + (DOMAIN_HEADER_VERBOSE if verbose else "")
    rows = (
        _domain_row(ctx.xs, info) + (_verbose(info) if verbose else "")
        for info in ctx.control.domctl.getdomaininfolist()
    )
    return _lines(header, rows)


def vms(ctx: LibxlCtx) -> str:
    """`xl vm-list`"""
    rows = (
        uuid_text(info.handle) + VM_ROW % (info.domain, _name(ctx.xs, info.domain))
        for info in ctx.control.domctl.getdomaininfolist()
    )
    return _lines(VM_HEADER, rows)


def blocks(ctx: LibxlCtx, domid: int) -> str:
    """`xl block-list`"""
    known = [key for key in stored(ctx.xs, domid) if key.kind == "vbd"]
    return _lines(BLOCK_HEADER % BLOCK_NAMES, (_block_row(ctx.xs, key) for key in known))


def networks(ctx: LibxlCtx, domid: int) -> str:
    """`xl network-list`"""
    known = [key for key in stored(ctx.xs, domid) if key.kind == "vif"]
    return _lines(NETWORK_HEADER % NETWORK_NAMES, (_network_row(ctx.xs, key) for key in known))


def _lines(header: str, rows: Iterator[str]) -> str:
    return "".join(f"{line}\n" for line in (header, *rows))


def uuid_text(handle: bytes) -> str:
    """LIBXL_UUID_FMT"""
    text = handle.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _name(xs: XsHandle, domid: int) -> str:
    """libxl_domid_to_name; what printf makes of none."""
    found = xs.read(f"/local/domain/{domid}/name")
    if found is None and domid == 0:
        return "Domain-0"  # xen-init-dom0 writes it
    return "(null)" if found is None else found


def _domain_row(xs: XsHandle, info: DomainInfo) -> str:
    flags = info.flags
    code = info.shutdown_code if flags & DOMINF.shutdown else 0
    # (float) cpu_time
    (nanoseconds,) = struct.unpack("f", struct.pack("f", info.cpu_time))
    return DOMAIN_ROW % (
        _name(xs, info.domain),
        info.domain,
        info.tot_pages // PAGES_PER_MIB,
        info.nr_online_vcpus,
        "r" if flags & DOMINF.running else "-",
        "b" if flags & DOMINF.blocked else "-",
        "p" if flags & DOMINF.paused else "-",
        "s" if flags & DOMINF.shutdown else "-",
        REASONS[code] if code < len(REASONS) else "?",
        "d" if flags & DOMINF.dying else "-",
        nanoseconds / 1e9,
    )


def _verbose(info: DomainInfo) -> str:
    """There is no Flask here, so no label."""
    shut = info.flags & DOMINF.shutdown
    reason = REASON_CODE % info.shutdown_code if shut else NO_REASON % "-"
    return f" {uuid_text(info.handle)}{reason}{LABEL % '-'}"


def _number(xs: XsHandle, path: str) -> int:
    """strtoul in base 10, kept in an int; -1 where there is no node."""
    text = xs.read(path)
    if text is None:
        return UNKNOWN
    text = text.lstrip(" \t\n\v\f\r")
    negative = text[:1] == "-"
    text = text[1:] if text[:1] in ("+", "-") else text
    end = 0
    while end < len(text) and text[end] in "0123456789":
        end += 1
    # A number of thousands of digits is ULONG_MAX as one of 24 is.
    value = min(int(text[:end].lstrip("0")[:24] or "0"), ULONG_MAX)
    value = -value if negative and value != ULONG_MAX else value
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


def _block_row(xs: XsHandle, key: DeviceKey) -> str:
    front = key.frontend_path
    return BLOCK_ROW % (
        key.devid,
        key.backend_domid,
        key.domid,
        _number(xs, f"{front}/state"),
        _number(xs, f"{front}/event-channel"),
        _number(xs, f"{front}/ring-ref"),
        key.backend_path,
    )


def _network_row(xs: XsHandle, key: DeviceKey) -> str:
    front = key.frontend_path
    mac = xs.read(f"{key.libxl_path}/mac") or "00:00:00:00:00:00"
    return (
        NETWORK_ROW % (key.devid, key.backend_domid)
        + mac
        + NETWORK_REST
        % (
            key.devid,
            _number(xs, f"{front}/state"),
            _number(xs, f"{front}/event-channel"),
            _number(xs, f"{front}/tx-ring-ref"),
            _number(xs, f"{front}/rx-ring-ref"),
            key.backend_path,
        )
    )
