"""Announcements: how the switches learn where an address went when its guest was moved.

Each address of the interface, three times, "to make sure switches take note" (vif.c): an ARP
request for itself (RFC 5227 3), or an unsolicited neighbour advertisement to all nodes
(RFC 4861 7.2.6), with the Override flag and the target's link-layer address.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from xenpv.abi._kernel import ffi, lib
from xenpv.vif.callbacks import BROADCAST

TIMES: Final = 3

ARP: Final = b"\x08\x06"
ARP_REQUEST: Final = bytes.fromhex("0001 0800 06 04 0001")  # Ethernet, IPv4, their lengths
IPV6: Final = b"\x86\xdd"
ICMPV6: Final = 58
HOP_LIMIT: Final = 255  # a router would have counted it down
ALL_NODES: Final = bytes.fromhex("ff02 0000 0000 0000 0000 0000 0000 0001")
ALL_NODES_MAC: Final = bytes.fromhex("3333 0000 0001")
NEIGHBOUR_ADVERTISEMENT: Final = 136
OVERRIDE: Final = 0x20
TARGET_LINK_ADDRESS: Final = bytes((2, 1))  # the option's type, and its length in 8 bytes


def gratuitous_arp(mac: bytes, address: bytes) -> bytes:
    """42 bytes: sender and target are `address`, the target's MAC address is broadcast's."""
    return BROADCAST + mac + ARP + ARP_REQUEST + mac + address + BROADCAST + address


def neighbour_advertisement(mac: bytes, address: bytes) -> bytes:
    """86 bytes, from `address` to all nodes of the link."""
    body = bytes((OVERRIDE, 0, 0, 0)) + address + TARGET_LINK_ADDRESS + mac
    length = 4 + len(body)
    pseudo = address + ALL_NODES + length.to_bytes(4, "big") + ICMPV6.to_bytes(4, "big")
    head = bytes((NEIGHBOUR_ADVERTISEMENT, 0))
    covered = pseudo + head + bytes(2) + body
    total = int(lib.checksum_internet(ffi.from_buffer(covered), len(covered), 0)) ^ 0xFFFF
    header = (6 << 28).to_bytes(4, "big") + length.to_bytes(2, "big") + bytes((ICMPV6, HOP_LIMIT))
    packet = header + address + ALL_NODES + head + total.to_bytes(2, "big") + body
    return ALL_NODES_MAC + mac + IPV6 + packet


def announcements(mac: bytes, addresses: Sequence[bytes]) -> list[bytes]:
    """Frames, in their order; an address has 4 or 16 bytes."""
    once = [
        gratuitous_arp(mac, one) if len(one) == 4 else neighbour_advertisement(mac, one)
        for one in addresses
    ]
    return once * TIMES
