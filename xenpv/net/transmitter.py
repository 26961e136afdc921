"""Lists on their way down: what each asks for, its packets, its completion (XenNet transmitter.c).

A list may ask only for offloads that are switched on. Its frames go down in order and it is
complete when the last of them has come back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from xenpv.net.nbl import ChecksumRequest, NetBufferList
from xenpv.net.ndis import U32_MAX, NdisStatus
from xenpv.net.offload import OffloadState
from xenpv.vif.interface import (
    NO_HASH,
    Completion,
    HashAlgorithm,
    HashType,
    Offload,
    PacketHash,
    TransmitterPacket,
    TransmitterStatus,
)

PRIORITY_SHIFT: Final = 13  # of 802.1p in a tag control information

_IPV4: Final[Mapping[int, int]] = {
    ChecksumRequest.IP_HEADER: Offload.IPV4_HEADER_CHECKSUM,
    ChecksumRequest.TCP: Offload.IPV4_TCP_CHECKSUM,
    ChecksumRequest.UDP: Offload.IPV4_UDP_CHECKSUM,
}
_IPV6: Final[Mapping[int, int]] = {
    ChecksumRequest.TCP: Offload.IPV6_TCP_CHECKSUM,
    ChecksumRequest.UDP: Offload.IPV6_UDP_CHECKSUM,
}


def _offload_of_checksum(request: int) -> int:
    wanted = 0
    for family, table in ((ChecksumRequest.IS_IPV4, _IPV4), (ChecksumRequest.IS_IPV6, _IPV6)):
        if request & family:
            for bit, offload in table.items():
                wanted |= offload if request & bit else 0
    return int(wanted)


# Every value of the five bits: a list's offloads are looked up, not computed. Plain numbers, for
# what is done to them for each packet costs ten times as much with enum's.
_CHECKSUM_OFFLOAD: Final = tuple(_offload_of_checksum(bits) for bits in range(32))
_TAG: Final = int(Offload.TAG_MANIPULATION)
_LARGE: Final = (int(Offload.IPV4_LARGE_PACKET), int(Offload.IPV6_LARGE_PACKET))


def offload_of(one: NetBufferList) -> int:
    """Bits of Offload that a list asks for."""
    checksum = one.checksum
    wanted = _CHECKSUM_OFFLOAD[checksum if 0 <= checksum < 32 else checksum & 31]
    if one.priority:
        wanted |= _TAG
    if one.mss:
        wanted |= _LARGE[one.is_ipv6]
    return wanted


def packets_of(one: NetBufferList, offload: int) -> list[bytes | TransmitterPacket]:
    """The packets of a list's frames up to the first without data, where sending ends."""
    frames = list(one.buffers)
    if b"" in frames:
        del frames[frames.index(b"") :]
    hashed = one.hash if _is_toeplitz(one.hash) else NO_HASH
    if not offload and hashed is NO_HASH:
        return list(frames)
    tci = one.priority << PRIORITY_SHIFT
    return [
        TransmitterPacket(data=frame, offload=offload, mss=one.mss, tci=tci, hash=hashed)
        for frame in frames
    ]


def _is_toeplitz(value: PacketHash) -> bool:
    """Whether it says something: a u32 of a type that there is."""
    is_known = HashType.NONE < value.type <= HashType.IPV6_TCP
    return value.algorithm == HashAlgorithm.TOEPLITZ and is_known and 0 <= value.value <= U32_MAX


class Transmitter:
    """Lists that are with the interface. `offload.transmit`: what lists may ask for.

    `completed` gets the lists that are done.
    """

    def __init__(
        self, completed: Callable[[Sequence[NetBufferList]], None], offload: OffloadState
    ) -> None:
        self._offload = offload
        self._completed = completed
        self._lists: dict[int, NetBufferList] = {}  # by the cookies of their packets below

    @property
    def in_flight(self) -> int:
        """Frames of lists that are below."""
        return len(self._lists)

    def prepare(
        self, lists: Sequence[NetBufferList], first: int
    ) -> tuple[list[bytes | TransmitterPacket], range]:
        """Packets to queue and their cookies, from `first` on. What cannot be sent is done.

        A list that asks for more than is switched on sends nothing and gets FAILURE.
        """
        packets: list[bytes | TransmitterPacket] = []
        failed = []
        enabled = int(self._offload.transmit)
        for one in lists:
            wanted = offload_of(one)
            if wanted & ~enabled or not (0 <= one.priority < 8 and 0 <= one.mss < 1 << 16):
                one.status = NdisStatus.FAILURE
                failed.append(one)
                continue
            mine = packets_of(one, wanted)
            if not mine:
                one.status = NdisStatus.NOT_ACCEPTED
                failed.append(one)
                continue
            one.status = NdisStatus.PENDING
            one.pending = len(mine)
            for _ in mine:
                self._lists[first] = one
                first += 1
            packets += mine
        if failed:
            self._completed(failed)
        return packets, range(first - len(packets), first)

    def refuse(self, cookies: range) -> None:
        """The interface took none of these."""
        done = []
        for cookie in cookies:
            one = self._lists.pop(cookie)
            one.pending -= 1
            if not one.pending:
                one.status = NdisStatus.NOT_ACCEPTED
                done.append(one)
        self._completed(done)

    def returned(self, completions: Sequence[Completion]) -> list[Completion]:
        """Packets that came back; those of no list are returned.

        A list gets the status of the packet that comes back last, whatever others say.
        """
        others = []
        done = []
        take = self._lists.pop
        for completion in completions:
            one = take(completion[0], None)
            if one is None:
                others.append(completion)
                continue
            one.pending -= 1
            if not one.pending:
                accepted = completion[1] == TransmitterStatus.OK
                one.status = NdisStatus.SUCCESS if accepted else NdisStatus.NOT_ACCEPTED
                done.append(one)
        if done:
            self._completed(done)
        return others
