"""Frames packed into the slots of an rx ring: data, flags and extras (Linux netback rx.c).

Every data slot but a frame's last is full, so that a frame takes as few as it can. Flags about
the sum and the extras stand in the first; the extras follow it in the order GSO, HASH, XDP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.abi.layout import packer
from xenpv.back.netprofile import Profile
from xenpv.host.network import Frame

RESPONSE: Final = packer("netif_rx_response")
EXTRA_GSO: Final = packer("netif_extra_info", "u.gso")
EXTRA_HASH: Final = packer("netif_extra_info", "u.hash")
EXTRA_XDP: Final = packer("netif_extra_info_v2026", "u.xdp")

DATA_VALIDATED: Final[int] = lib.NETRXF_data_validated
CSUM_BLANK: Final[int] = lib.NETRXF_csum_blank
MORE_DATA: Final[int] = lib.NETRXF_more_data
EXTRA_INFO: Final[int] = lib.NETRXF_extra_info
TYPE_GSO: Final[int] = lib.XEN_NETIF_EXTRA_TYPE_GSO
TYPE_HASH: Final[int] = lib.XEN_NETIF_EXTRA_TYPE_HASH
TYPE_XDP: Final[int] = lib.XEN_NETIF_EXTRA_TYPE_XDP
FLAG_MORE: Final[int] = lib.XEN_NETIF_EXTRA_FLAG_MORE
TOEPLITZ: Final[int] = lib.XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ


@attrs.frozen
class Packing:
    """Where a frame's bytes go in each page.

    `offset` is what a response says, `start` where the bytes begin, `room` how many there are.
    `headroom` counts in a response's status, though nothing is written there.
    """

    offset: int
    start: int
    room: int
    headroom: int
    sums: bool

    @classmethod
    def of(cls, profile: Profile, headroom: int) -> Packing:
        return cls(
            offset=profile.rx_offset,
            start=profile.rx_offset + headroom,
            room=profile.rx_bytes - headroom,
            headroom=headroom,
            sums=profile.rx_sums,
        )

    def slots(self, frame: Frame, extras: Sequence[bytes]) -> int:
        """How many a frame takes. Linux' estimate forgets the headroom and its extra, and so
        runs past what the guest has posted.
        """
        return (len(frame.data) + self.room - 1) // self.room + len(extras)

    def flags(self, frame: Frame) -> int:
        """Of a first response, about the sum. The bits are not those of tx."""
        if not self.sums:
            return 0
        if frame.csum_blank:
            return CSUM_BLANK | DATA_VALIDATED
        return DATA_VALIDATED if frame.data_validated else 0

    def extras(self, frame: Frame, *, hashed: bool) -> list[bytes]:
        """What goes into the slots behind the first."""
        found: list[bytes] = []
        if frame.gso_type:
            found.append(EXTRA_GSO.pack(TYPE_GSO, 0, frame.gso_size, frame.gso_type, 0, 0))
        if hashed and frame.hash is not None:
            kind, value = frame.hash
            found.append(EXTRA_HASH.pack(TYPE_HASH, 0, kind, TOEPLITZ, value.to_bytes(4, "little")))
        if self.headroom:
            found.append(EXTRA_XDP.pack(TYPE_XDP, 0, self.headroom, 0, 0))
        return [bytes((one[0], FLAG_MORE)) + one[2:] for one in found[:-1]] + found[-1:]

    def chain(
        self,
        frame: Frame,
        extras: Sequence[bytes],
        slots: Sequence[tuple[int, ...]],
        ops: list[int],
        responses: list[int],
        at: int,
    ) -> None:
        """Copies and responses of one frame; its bytes begin at `at` of what is copied."""
        flags = self.flags(frame) | (EXTRA_INFO if extras else 0)
        left = len(frame.data)
        for index, (number, _, ref) in enumerate(slots):
            if 0 < index <= len(extras):
                responses += RESPONSE.unpack(extras[index - 1])
                continue
            size = min(left, self.room)
            left -= size
            ops += (ref, self.start | size << 16, at)
            at += size
            more = MORE_DATA if left else 0
            responses += (number, self.offset, flags | more, self.headroom + size)
            flags = 0


def mark_failed(responses: list[int], statuses: Sequence[int]) -> None:
    """Put the status of each failed copy into its response; extras have no copy."""
    at = 0
    extras = False
    for status in statuses:
        while extras:  # an extra's flags are the high byte of what is an id elsewhere
            extras = bool(responses[at] >> 8 & FLAG_MORE)
            at += 4
        extras = bool(responses[at + 2] & EXTRA_INFO)
        if status:
            responses[at + 3] = status
        at += 4
