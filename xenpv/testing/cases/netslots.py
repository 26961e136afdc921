"""Slots of the network rings as a case says them: every field as it goes onto the wire.

The layouts are io/netif.h's, as the compiler laid them out; the numbers are written once more
here, since what a case expects must not come from what it tests.
"""

from __future__ import annotations

from typing import Final

from xenpv.abi.layout import packer

TX_REQUEST: Final = packer("netif_tx_request")
TX_RESPONSE: Final = packer("netif_tx_response")
RX_REQUEST: Final = packer("netif_rx_request")
RX_RESPONSE: Final = packer("netif_rx_response")
CTRL_REQUEST: Final = packer("xen_netif_ctrl_request")
CTRL_RESPONSE: Final = packer("xen_netif_ctrl_response")

# NETTXF_*; NETRXF_* have the first two the other way round.
CSUM_BLANK, DATA_VALIDATED, MORE_DATA, EXTRA_INFO = 1, 2, 4, 8
RX_DATA_VALIDATED, RX_CSUM_BLANK = 1, 2
DROPPED, ERROR, OKAY, NULL = -2, -1, 0, 1  # NETIF_RSP_*
# XEN_NETIF_EXTRA_TYPE_*
GSO, MCAST_ADD, MCAST_DEL, HASH = 1, 2, 3, 4
XDP = 5  # where it was negotiated
TCPV4, TCPV6 = 1, 2  # XEN_NETIF_GSO_TYPE_*
# XEN_NETIF_CTRL_TYPE_*, and its statuses
(
    GET_HASH_FLAGS,
    SET_HASH_FLAGS,
    SET_HASH_KEY,
    GET_MAPPING_SIZE,
    SET_MAPPING_SIZE,
    SET_MAPPING,
    SET_ALGORITHM,
) = range(1, 8)
SUCCESS, NOT_SUPPORTED, INVALID_PARAMETER, BUFFER_OVERFLOW = range(4)
TOEPLITZ_ALGORITHM = 1
SLOTS_MAX: Final = 18  # XEN_NETIF_NR_SLOTS_MIN: what a backend must take in one packet


def tx(gref: int, offset: int, flags: int, number: int, size: int) -> bytes:
    """A tx request."""
    return TX_REQUEST.pack(gref, offset, flags, number, size)


def extra(kind: int, body: bytes = b"", *, more: bool = False) -> bytes:
    """An extra as it lies in a slot of the tx ring; an rx slot has its first 8 bytes."""
    return (bytes((kind, more)) + body).ljust(TX_REQUEST.size, b"\0")


def gso(size: int, kind: int = TCPV4) -> bytes:
    """Body of a GSO extra: MSS and type."""
    return size.to_bytes(2, "little") + bytes((kind, 0, 0, 0))


def rx(number: int, gref: int) -> bytes:
    """An rx request: an id and a page."""
    return RX_REQUEST.pack(number, 0, gref)


def rx_response(number: int, status: int, *, offset: int = 0, flags: int = 0) -> bytes:
    """An rx response: `status` bytes at `offset`, or an error."""
    return RX_RESPONSE.pack(number, offset, flags, status)
