"""Packets on their way up: a list each, lent to the protocol until it returns it (receiver.c)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from xenpv.net.nbl import RESOURCES, ChecksumResult, NetBufferList, ReceiveFlags
from xenpv.vif.interface import Checksum, ReceiverPacket

OUTSTANDING_MAX: Final = 1024  # IN_NDIS_MAX: above, lists are given with RESOURCES
VLAN_ID: Final = 0xFFF
PRIORITY_SHIFT: Final = 13
IPV6: Final = b"\x86\xdd"

_RESULT: Final[Mapping[int, int]] = {
    Checksum.IP_SUCCEEDED: ChecksumResult.IP_SUCCEEDED,
    Checksum.IP_FAILED: ChecksumResult.IP_FAILED,
    Checksum.TCP_SUCCEEDED: ChecksumResult.TCP_SUCCEEDED,
    Checksum.TCP_FAILED: ChecksumResult.TCP_FAILED,
    Checksum.UDP_SUCCEEDED: ChecksumResult.UDP_SUCCEEDED,
    Checksum.UDP_FAILED: ChecksumResult.UDP_FAILED,
}


def checksum_result(flags: int) -> int:
    """Bits of ChecksumResult for those of Checksum: what was not validated is left out."""
    return int(sum(result for bit, result in _RESULT.items() if flags & bit))


_RESULTS: Final = tuple(checksum_result(flags) for flags in range(1 << len(Checksum)))


def list_of(packet: ReceiverPacket, flags: int) -> NetBufferList:
    """The list that carries one packet."""
    return NetBufferList(
        buffers=(packet.data,),
        checksum=_RESULTS[packet.flags],
        mss=packet.mss,
        priority=packet.tci >> PRIORITY_SHIFT,
        hash=packet.hash,
        is_ipv6=packet.mss != 0 and packet.data[12:14] == IPV6,
        flags=flags,
        cookie=packet.cookie,
        pending=1,
    )


def split_tagged(
    packets: Sequence[ReceiverPacket],
) -> tuple[Sequence[ReceiverPacket], list[ReceiverPacket]]:
    """Packets for the protocol, and those of a VLAN, which are none of its."""
    tagged = [packet for packet in packets if packet.tci & VLAN_ID]
    if not tagged:
        return packets, tagged
    return [packet for packet in packets if not packet.tci & VLAN_ID], tagged


class Receiver:
    """Lists that the protocol holds. `indicated` and `returned` count them."""

    def __init__(self) -> None:
        self.indicated = 0
        self.returned = 0

    @property
    def outstanding(self) -> int:
        return self.indicated - self.returned

    def indicate(self, packets: Sequence[ReceiverPacket]) -> tuple[list[NetBufferList], bool]:
        """One indication, and whether it is beyond what may be outstanding.

        Then its lists carry RESOURCES: they go back as soon as the protocol has seen them.
        """
        self.indicated += len(packets)
        flags = int(ReceiveFlags.DISPATCH_LEVEL)
        scarce = self.outstanding > OUTSTANDING_MAX
        if scarce:
            flags |= RESOURCES
        return [list_of(packet, flags) for packet in packets], scarce
