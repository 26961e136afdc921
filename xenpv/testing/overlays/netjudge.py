"""What a Linux netback owes a frontend for its slots: a second opinion, packet by packet.

Nothing of xenpv.back is in it. The order of checks is netback.c's (xenvif_tx_build_gops and what
it calls); what is fatal costs the vif, and slots of that packet are never answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from typing import Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.abi.layout import packer
from xenpv.abi.netif import NETIF_RSP
from xenpv.testing.overlays.blkjudge import Grant
from xenpv.xen.domain import PAGE_SIZE

TX: Final = packer("netif_tx_request")
EXTRA: Final = packer("netif_extra_info")
GSO: Final = packer("netif_extra_info", "u.gso")
CSUM_BLANK: Final[int] = lib.NETTXF_csum_blank
MORE_DATA: Final[int] = lib.NETTXF_more_data
EXTRA_INFO: Final[int] = lib.NETTXF_extra_info
EXTRA_MORE: Final[int] = lib.XEN_NETIF_EXTRA_FLAG_MORE
TYPE_GSO: Final = 1
TYPE_MCAST_ADD: Final = 2
TYPE_MCAST_DEL: Final = 3
TYPES: Final = range(1, 5)
OKAY: Final = int(NETIF_RSP.OKAY)
ERROR: Final = int(NETIF_RSP.ERROR)
NULL: Final = int(NETIF_RSP.NULL)
ETHERNET: Final = 14  # bytes of a header, the least that a first fragment may have
BATCH: Final = 64  # packets
DROPPED_FROM: Final = 18  # slots after the first: a packet with more is dropped
FATAL_FROM: Final = 20  # and with more than these the frontend is malicious
GROUPS_MAX: Final = 64

Slot = tuple[int, int, int, int, int]  # gref, offset, flags, id, size
Response = tuple[int | None, int]  # id (None: any, an extra's), status


class FatalError(Exception):
    """The vif is lost."""


@attrs.define(eq=False)
class Sent:
    """A frame that has to reach the bridge; `sure` is False where its offloads decide."""

    data: bytes
    sure: bool


@attrs.define(eq=False)
class TxJudge:
    """`pages` are the guest's by pfn, `grants` its entries by reference; `opaque` pages are
    rings: `wild` once one of them was read. `fatal` once the vif is lost.
    """

    pages: dict[int, bytearray]
    grants: dict[int, Grant]
    opaque: Container[int] = ()
    groups: list[bytes] = attrs.Factory(list)
    wild: bool = False
    fatal: bool = False
    frames: list[Sent] = attrs.Factory(list)

    def answers(self, slots: list[bytes]) -> list[Response]:
        """Responses to what is on the ring now, in order; frames are put to `frames`."""
        waiting = deque(slots)
        found: list[Response] = []
        while waiting and not self.fatal:
            refused: list[Response] = []
            copied: list[Response] = []
            try:
                self._batch(waiting, refused, copied)
            except FatalError:
                self.fatal = True
            found += refused + copied
        return found

    def _batch(
        self, waiting: deque[bytes], refused: list[Response], copied: list[Response]
    ) -> None:
        for _ in range(BATCH):
            if not waiting:
                return
            first: Slot = TX.unpack(waiting.popleft())
            extras = self._extras(waiting) if first[2] & EXTRA_INFO else []
            kinds = {extra[0]: extra for extra in extras}
            nulls: list[Response] = [(None, NULL)] * len(extras)
            if TYPE_MCAST_ADD in kinds or TYPE_MCAST_DEL in kinds:
                refused += [(first[3], self._multicast(kinds)), *nulls]
                continue
            later, rest, drop = self._later(waiting, first)
            if drop or rest < ETHERNET:
                refused += [(first[3], ERROR), *nulls, *((one[3], ERROR) for one in later)]
                return
            if first[1] + rest > PAGE_SIZE:
                raise FatalError
            segmented = self._segmented(kinds)
            pieces = [(first[0], first[1], rest), *((one[0], one[1], one[4]) for one in later)]
            data = [self._read(*piece) for piece in pieces]
            status = [ERROR if one is None else OKAY for one in data]
            copied += [(first[3], status[0]), *nulls]
            copied += [(one[3], done) for one, done in zip(later, status[1:], strict=True)]
            if ERROR not in status:
                whole = b"".join([one for one in data if one is not None])
                self.frames.append(Sent(whole, not segmented and not first[2] & CSUM_BLANK))

    def _extras(self, waiting: deque[bytes]) -> list[bytes]:
        extras: list[bytes] = []
        more = True
        while more:
            if not waiting:
                raise FatalError
            extra = waiting.popleft()[: EXTRA.size]
            if extra[0] not in TYPES:
                raise FatalError
            extras.append(extra)
            more = bool(extra[1] & EXTRA_MORE)
        return extras

    def _multicast(self, kinds: dict[int, bytes]) -> int:
        if TYPE_MCAST_ADD in kinds:
            if len(self.groups) >= GROUPS_MAX:
                return ERROR
            self.groups.append(kinds[TYPE_MCAST_ADD][2:8])
            return OKAY
        group = kinds[TYPE_MCAST_DEL][2:8]
        if group in self.groups:
            self.groups.remove(group)
        return OKAY

    def _later(self, waiting: deque[bytes], first: Slot) -> tuple[list[Slot], int, bool]:
        """Slots after the first, what is left for the first, and whether to drop it."""
        later: list[Slot] = []
        rest, drop, more = first[4], False, first[2] & MORE_DATA
        while more:
            if not waiting or len(later) >= FATAL_FROM:
                raise FatalError
            slot: Slot = TX.unpack(waiting.popleft())
            drop |= len(later) >= DROPPED_FROM or slot[4] > rest
            rest -= slot[4]
            if slot[1] + slot[4] > PAGE_SIZE:
                raise FatalError
            later.append(slot)
            more = slot[2] & MORE_DATA
        return later, rest, drop

    def _segmented(self, kinds: dict[int, bytes]) -> bool:
        extra = kinds.get(TYPE_GSO)
        if extra is None:
            return False
        _, _, size, kind, _, _ = GSO.unpack(extra)
        if not size or kind not in (1, 2):
            raise FatalError
        return True

    def _read(self, ref: int, offset: int, size: int) -> bytes | None:
        """A fragment; None where it may not be read. An empty one is not even looked at."""
        if not size:
            return b""
        grant = self.grants.get(ref)
        if grant is None or not grant.allows(writable=False):
            return None
        page = self.pages.get(grant.pfn)
        if page is not None:
            return bytes(page[offset : offset + size])
        if grant.pfn not in self.opaque:
            return None
        self.wild = True
        return bytes(size)
