"""Addresses, packet filter and link of one interface (win-xenvif mac.c)."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final

import attrs

from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.vif.callbacks import PacketType

SPEED: Final = 100_000_000_000  # bit/s: the registry's MacSpeed of 100, in G
MTU_DEFAULT: Final = 1500
MTU_MIN: Final = 60
HEADER_ALLOWANCE: Final = 18  # Ethernet and one tag


class FilterLevel(enum.IntEnum):
    """XENVIF_MAC_FILTER_LEVEL. The header's comments say the opposite; the code does this."""

    NONE = 0
    MATCHING = 1
    ALL = 2


@attrs.frozen(kw_only=True)
class MacState:
    """What mac_query_state answers: `speed` in bit/s, 0 while the link is down."""

    link_up: bool
    speed: int
    full_duplex: bool = True


def parse_address(text: str | None) -> bytes | None:
    """Six pairs of hex digits with `:`, `-` or nothing between them; None for anything else."""
    digits = (text or "").replace(":", "").replace("-", "")
    if len(digits) != 12 or any(digit not in "0123456789abcdefABCDEF" for digit in digits):
        return None
    return bytes.fromhex(digits)


def address_text(address: bytes) -> str:
    return address.hex(":")


@attrs.define(eq=False)
class Mac:
    """`permanent` is the store's `mac`; `mtu` what an IP packet may have, in bytes."""

    permanent: bytes
    mtu: int = MTU_DEFAULT
    current: bytes = attrs.field(default=b"")
    multicast: list[bytes] = attrs.field(factory=list)
    levels: dict[PacketType, FilterLevel] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.current = self.current or self.permanent
        self.levels = dict.fromkeys(PacketType, FilterLevel.NONE)

    @property
    def maximum_frame_size(self) -> int:
        return self.mtu + HEADER_ALLOWANCE

    def set_multicast(self, addresses: Sequence[bytes]) -> None:
        """NtStatusError INVALID_PARAMETER for one that is no group's."""
        for address in addresses:
            if len(address) != 6 or not address[0] & 1:
                raise _invalid(f"{address.hex(':')} is no multicast address")
        self.multicast = list(addresses)

    def set_filter_level(self, kind: int, level: int) -> None:
        """NtStatusError INVALID_PARAMETER for a type or a level that is none."""
        if kind not in list(PacketType) or level not in list(FilterLevel):
            raise _invalid(f"filter level {level} of addresses of type {kind}")
        self.levels[PacketType(kind)] = FilterLevel(level)

    def filter_level(self, kind: int) -> FilterLevel:
        """NtStatusError INVALID_PARAMETER for a type that is none."""
        if kind not in list(PacketType):
            raise _invalid(f"addresses of type {kind}")
        return self.levels[PacketType(kind)]

    def passes_group(self, frame: bytes) -> bool:
        """Whether a frame to a multicast group is for this interface, at level MATCHING."""
        return frame[:6] in self.multicast


def _invalid(reason: str) -> NtStatusError:
    return NtStatusError(NTSTATUS.INVALID_PARAMETER, reason, operation="VIF Mac")
