"""The Toeplitz hash of receive-side scaling, on Microsoft's flows: computed here, not copied."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

from xenpv.abi._kernel import lib

from .table import Table

# "Verifying the RSS Hash Calculation": its key and its flows.
KEY: Final = bytes.fromhex(
    "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
)
FLOWS: Final = (
    ("66.9.149.187", 2794, "161.142.100.80", 1766),
    ("199.92.111.2", 14230, "65.69.140.83", 4739),
    ("24.19.198.95", 12898, "12.22.207.184", 38024),
    ("38.27.205.30", 48228, "209.142.163.6", 2217),
    ("153.39.163.191", 44251, "202.188.127.2", 1303),
    ("3ffe:2501:200:1fff::7", 2794, "3ffe:2501:200:3::1", 1766),
    ("3ffe:501:8::260:97ff:fe40:efab", 14230, "ff02::1", 4739),
    ("3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251, "fe80::200:f8ff:fe21:67cf", 38024),
)


def toeplitz(data: bytes) -> int:
    return int(lib.toeplitz(KEY, len(KEY), data, len(data)))


def table() -> Table:
    rows = []
    for source, sport, destination, dport in FLOWS:
        addresses = ip_address(source).packed + ip_address(destination).packed
        ports = sport.to_bytes(2, "big") + dport.to_bytes(2, "big")
        rows.append((
            f"`{source}` port {sport}", f"`{destination}` port {dport}",
            f"`{toeplitz(addresses):08x}`", f"`{toeplitz(addresses + ports):08x}`",
        ))  # fmt: skip
    return Table(("source", "destination", "of addresses", "of addresses and ports"), tuple(rows))
