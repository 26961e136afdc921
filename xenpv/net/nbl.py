"""NET_BUFFER_LIST: frames between XenNet and the protocol above it, with their offloads (ndis.h).

Bit numbers are those of NDIS' structures of information beside a list.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final, Protocol

import attrs

from xenpv.net.ndis import NdisStatus
from xenpv.vif.interface import NO_HASH, PacketHash


class ChecksumRequest(enum.IntFlag):
    """NDIS_TCP_IP_CHECKSUM_NET_BUFFER_LIST_INFO.Transmit: sums that are to be written below.

    Those of TCP and UDP count only with IS_IPV4 or IS_IPV6, that of the header with IS_IPV4.
    """

    IS_IPV4 = 1 << 0
    IS_IPV6 = 1 << 1
    TCP = 1 << 2
    UDP = 1 << 3
    IP_HEADER = 1 << 4


class ChecksumResult(enum.IntFlag):
    """NDIS_TCP_IP_CHECKSUM_NET_BUFFER_LIST_INFO.Receive: sums that were looked at below."""

    TCP_FAILED = 1 << 0
    UDP_FAILED = 1 << 1
    IP_FAILED = 1 << 2
    TCP_SUCCEEDED = 1 << 3
    UDP_SUCCEEDED = 1 << 4
    IP_SUCCEEDED = 1 << 5


class ReceiveFlags(enum.IntFlag):
    """NDIS_RECEIVE_FLAGS_* of the indication that a list came with."""

    DISPATCH_LEVEL = 1 << 0
    RESOURCES = 1 << 1  # the list is the protocol's during the indication only


# As a plain number, for what looks at every list.
RESOURCES: Final = int(ReceiveFlags.RESOURCES)


@attrs.define(eq=False)
class NetBufferList:
    """Frames that share their offloads; `buffers` are its NET_BUFFERs, an Ethernet frame each.

    Going down: `checksum` is of ChecksumRequest; `mss` is that of NDIS' LSO version 2, in bytes
    of a segment's payload, and `is_ipv6` its IPVersion; `priority` other than 0 makes an 802.1Q
    tag of it; a `hash` by Toeplitz goes with the frames. `status` is PENDING until the list is
    completed.

    Coming up: one frame; `checksum` is of ChecksumResult; `mss` is that of a large packet that
    was not split; `priority` is of a tag that was taken out of the frame.
    """

    buffers: tuple[bytes, ...]
    checksum: int = 0
    mss: int = 0
    is_ipv6: bool = False
    priority: int = 0  # 802.1p, 0 to 7
    hash: PacketHash = NO_HASH
    flags: int = 0  # ReceiveFlags
    status: NdisStatus = NdisStatus.SUCCESS
    cookie: int = 0  # the interface's of what came up
    pending: int = 0  # frames below that are not back; 1 while it is lent to the protocol


class ListReceiver(Protocol):
    """A protocol that takes lists."""

    def receive_lists(self, lists: Sequence[NetBufferList]) -> None:
        """Lists that arrived, in order. Runs inside a handler of the guest: it may send.

        Each is lent until `Adapter.return_lists` gets it, but for one with RESOURCES.
        """


class ListSender(Protocol):
    """A protocol that wants its lists back (NDIS' SendNetBufferListsComplete)."""

    def sent_lists(self, lists: Sequence[NetBufferList]) -> None:
        """Lists that are complete: `status` says how. Each that was sent comes once.

        Runs inside a handler of the guest, or inside `send_lists` for what failed at once.
        """
