"""What a guest gets for a frame: done in software what its frontend does not take.

Frames come from other guests and from the host; one that cannot be finished is lost.
"""

from __future__ import annotations

from typing import Final

from xenpv.back.netkeys import Offer
from xenpv.errors import PeerProtocolError
from xenpv.host.network import GSO_NONE, Frame
from xenpv.host.offload import finish_checksum, segment
from xenpv.host.packet import ETHERTYPE_IPV6

GSO_MAX: Final = 65_535  # bytes of a frame that goes as a whole
IPV6: Final = ETHERTYPE_IPV6.to_bytes(2, "big")
VLAN: Final = b"\x81\x00"


def fit(frame: Frame, offer: Offer, longest: int) -> tuple[list[Frame], int]:
    """The frames that go out, none over `longest` bytes but large packets; how many are lost."""
    try:
        parts = [frame] if frame.gso_type in offer.gso_types else segment(frame)
        parts = [part if takes_sum(part, offer) else finish_checksum(part) for part in parts]
    except PeerProtocolError:
        return [], 1
    fitting = [
        part
        for part in parts
        if len(part.data) <= (longest if part.gso_type == GSO_NONE else GSO_MAX)
    ]
    return fitting, len(parts) - len(fitting)


def takes_sum(frame: Frame, offer: Offer) -> bool:
    """Whether the guest takes this frame's checksum as it is."""
    if not frame.csum_blank:
        return True
    data = frame.data
    kind = data[16:18] if data[12:14] == VLAN else data[12:14]
    return offer.ipv6_csum if kind == IPV6 else offer.csum
