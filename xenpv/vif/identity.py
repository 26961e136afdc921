r"""What Windows is told of an interface: its ids, its container, its addresses (win-xenvif pdo.c).

A container groups the devices that are one thing to a user, by a UUID made of the MAC address.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final
from uuid import UUID

from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.vif.mac import parse_address
from xenpv.vif.stack import configuration_key

if TYPE_CHECKING:
    from xenpv.bus.registry import Registry

COMPATIBLE: Final = "XENDEVICE"
# revision: the versions of VIF and UNPLUG that it promises (revision.h)
REVISIONS: Final[Mapping[int, tuple[int, int]]] = {
    0x09000001: (8, 1),
    0x09000002: (9, 1),
    0x09000003: (10, 1),
    0x09000004: (10, 2),
    0x09000005: (10, 3),
}
CONTAINER_NAME_SPACE: Final = UUID("2A597D5E-8864-4428-A110-F568F316D4E4")

SERVICE: Final = "Services\\XENVIF"
ADDRESSES: Final = f"{SERVICE}\\Addresses"  # volatile: a MAC address by device number


def device_id(vendor: str) -> str:
    r"""XENVIF\VEN_XP0001&DEV_NET"""
    return f"XENVIF\\VEN_{vendor}&DEV_NET"


def hardware_ids(vendor: str) -> list[str]:
    """Newest revision first; the compatible ids are the same."""
    revisions = [f"{device_id(vendor)}&REV_{one:08X}" for one in sorted(REVISIONS, reverse=True)]
    return [*revisions, COMPATIBLE]


def container_id(address: bytes) -> str:
    """The UUID of RFC 4122 4.3 over the MAC address, as Windows writes a GUID.

    The name space is hashed as it lies in memory, and the first 16 bytes of the SHA-1 are a GUID
    there: the first three fields are little-endian, other than in the RFC.
    """
    name = CONTAINER_NAME_SPACE.bytes_le + address
    found = bytearray(hashlib.sha1(name, usedforsecurity=False).digest()[:16])
    found[7] = found[7] & 0x0F | 5 << 4  # the version, in the upper half of Data3
    found[8] = found[8] & 0x3F | 0x80  # the variant
    return f"{{{str(UUID(bytes_le=bytes(found))).upper()}}}"


def remember_address(registry: Registry, number: int, text: str) -> None:
    """`Addresses` has the permanent address of each interface that there is, as it was read."""
    registry.create(SERVICE)  # which stays
    registry.create(ADDRESSES, volatile=True)
    registry.set(ADDRESSES, str(number), text)


def forget_address(registry: Registry, number: int) -> None:
    registry.delete_value(ADDRESSES, str(number))


def current_address(registry: Registry, number: int, permanent: bytes) -> bytes:
    """NetworkAddress of the driver's key, or the permanent one; also instead of a group's.

    NtStatusError INVALID_PARAMETER for text that is no address: the device does not start.
    """
    text = registry.string(configuration_key(number), "NetworkAddress")
    if text is None:
        return permanent
    address = parse_address(text)
    if address is None:
        reason = f"NetworkAddress {text!r} of interface {number}"
        raise NtStatusError(NTSTATUS.INVALID_PARAMETER, reason, operation="XENVIF StartDevice")
    return permanent if address[0] & 1 else address
