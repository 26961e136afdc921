"""Addresses, packet filter and link of one interface (win-xenvif mac.c)."""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from typing import Final

import attrs

from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.errors import LocalProtocolError
from xenpv.vif.callbacks import PacketType

MTU_DEFAULT: Final = 1500
MTU_MIN: Final = 60
MTU: Final = re.compile(r"[ \t\n\v\f\r]*\+?([0-9]{1,9})(?![0-9])", re.ASCII)  # strtol, base 10
ADDRESS: Final = re.compile(r"(?:[0-9A-Fa-f]{2}[:-]?){6}(?![:-]?[0-9A-Fa-f]{2})")
HEADER_ALLOWANCE: Final = 18  # Ethernet and one tag


class FilterLevel(enum.IntEnum):
    """XENVIF_MAC_FILTER_LEVEL. The header's comments say the opposite; the code does this."""

    NONE = 0
    MATCHING = 1
    ALL = 2


@attrs.frozen(kw_only=True)
class MacState:
    """What mac_query_state answers: `speed` in bit/s, 0 while the link is down.

    The duplex mode is full, or unknown while the toolstack has the cable unplugged.
    """

    link_up: bool
    speed: int
    full_duplex: bool = True


def parse_mtu(text: str | None) -> int:
    """Bytes, or MTU_DEFAULT. LocalProtocolError (STATUS_INVALID_PARAMETER) for fewer than
    MTU_MIN, and for text that does not begin with a number.
    """
    if text is None:
        return MTU_DEFAULT
    found = MTU.match(text)
    mtu = int(found[1]) if found else 0
    if mtu < MTU_MIN:
        raise LocalProtocolError(f"mtu {text!r} is below {MTU_MIN}")
    return mtu


def parse_address(text: str | None) -> bytes | None:
    """Six pairs of hex digits, each with `:`, `-` or nothing behind it; None for more or fewer.

    What follows, and is no pair, is not looked at.
    """
    found = ADDRESS.match(text or "")
    if found is None:
        return None
    return bytes.fromhex(found[0].replace(":", "").replace("-", ""))


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
    filters_below: bool = False  # the backend sends only what was asked for

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
        return self.filters_below or frame[:6] in self.multicast


def _invalid(reason: str) -> NtStatusError:
    return NtStatusError(NTSTATUS.INVALID_PARAMETER, reason, operation="VIF Mac")
