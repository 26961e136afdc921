"""What a packet carries across the VIF interface, beside its bytes (win-xenvif vif_interface.h).

Bit numbers and values are the header's. A plain `bytes` going down is a packet without any of it.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

import attrs


class Offload(enum.IntFlag):
    """XENVIF_VIF_OFFLOAD_OPTIONS: what the driver above leaves to this one."""

    TAG_MANIPULATION = 1 << 0
    IPV4_LARGE_PACKET = 1 << 1
    IPV4_HEADER_CHECKSUM = 1 << 2
    IPV4_TCP_CHECKSUM = 1 << 3
    IPV4_UDP_CHECKSUM = 1 << 4
    IPV6_LARGE_PACKET = 1 << 5
    IPV6_TCP_CHECKSUM = 1 << 6
    IPV6_UDP_CHECKSUM = 1 << 7
    NEED_CHECKSUM_VALUE = 1 << 8  # receive only: write the sum, do not only vouch for it
    NEED_LARGE_PACKET_SPLIT = 1 << 9  # receive only


class Checksum(enum.IntFlag):
    """XENVIF_PACKET_CHECKSUM_FLAGS of a received packet."""

    IP_SUCCEEDED = 1 << 0
    IP_FAILED = 1 << 1
    IP_NOT_VALIDATED = 1 << 2
    TCP_SUCCEEDED = 1 << 3
    TCP_FAILED = 1 << 4
    TCP_NOT_VALIDATED = 1 << 5
    UDP_SUCCEEDED = 1 << 6
    UDP_FAILED = 1 << 7
    UDP_NOT_VALIDATED = 1 << 8


class HashAlgorithm(enum.IntEnum):
    """XENVIF_PACKET_HASH_ALGORITHM; netif.h has no UNSPECIFIED and its TOEPLITZ is 1."""

    NONE = 0
    UNSPECIFIED = 1
    TOEPLITZ = 2


class HashType(enum.IntEnum):
    """XENVIF_PACKET_HASH_TYPE; a mask of them is made of 1 << type."""

    NONE = 0
    IPV4 = 1
    IPV4_TCP = 2
    IPV6 = 3
    IPV6_TCP = 4


class PacketHash(NamedTuple):
    """XENVIF_PACKET_HASH: `value` is a u32 in the order of the CPU."""

    algorithm: int = HashAlgorithm.NONE
    type: int = HashType.NONE
    value: int = 0


NO_HASH: Final = PacketHash()


class Header(NamedTuple):
    """XENVIF_PACKET_HEADER: bytes from the packet's start; length 0: there is none."""

    offset: int = 0
    length: int = 0


NO_HEADER: Final = Header()


class PacketInfo(NamedTuple):
    """XENVIF_PACKET_INFO: `length` is that of all headers, in bytes."""

    length: int = 0
    is_fragment: bool = False
    ethernet: Header = NO_HEADER
    llc: Header = NO_HEADER
    ip: Header = NO_HEADER
    ip_options: Header = NO_HEADER
    tcp: Header = NO_HEADER
    tcp_options: Header = NO_HEADER
    udp: Header = NO_HEADER


@attrs.define(eq=False)
class TransmitterPacket:
    """What TransmitterQueuePacket gets. `offload` may only name what the interface offers.

    `mss` is the payload of a segment in bytes, 0 unless a large packet's bit is set; `tci` the
    802.1Q tag control information to insert if TAG_MANIPULATION is set. A sum to be done below
    may hold anything in its field.

    `layout` is how the bytes lie in the guest's memory, as a chain of MDLs says it: (offset in
    its first page, bytes) of each run. Without it they begin with a page.
    """

    data: bytes
    offload: int = 0  # Offload
    mss: int = 0
    tci: int = 0
    hash: PacketHash = NO_HASH
    layout: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.data)


@attrs.define(eq=False)
class ReceiverPacket:
    """What RECEIVER_QUEUE_PACKET hands up; `cookie` names it to receiver_return_packets.

    `flags` are Checksum's; `mss` is 0 but for a large packet that was not split; `tci` is 0
    unless a tag was taken out of `data`.
    """

    data: bytes
    flags: int = 0
    mss: int = 0
    tci: int = 0
    hash: PacketHash = NO_HASH
    cookie: int = 0

    @property
    def info(self) -> PacketInfo:
        """Where its headers lie, found when it is asked for."""
        from xenpv.vif.parse import parse  # which needs PacketInfo

        return parse(self.data)[0]

    def __len__(self) -> int:
        return len(self.data)
