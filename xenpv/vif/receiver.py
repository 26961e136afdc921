"""Frames in: the rx ring of each queue (win-xenvif receiver.c).

Every slot of the ring has a page that the backend may write until it answers the slot.
Responses come in the order of the requests, so a slot's number says which page it is about,
whatever id the backend wrote there.
"""

from __future__ import annotations

import enum
import struct
from functools import cache
from typing import Final

from xenpv.abi._kernel import lib
from xenpv.abi.layout import packer
from xenpv.bus.ring import FrontRing
from xenpv.bus.xenbus import XenBus
from xenpv.errors import PeerProtocolError
from xenpv.vif.granter import PAGE_SIZE, Granter
from xenpv.vif.parse import ETHERNET
from xenpv.vif.poller import Poller

REQUEST: Final = packer("netif_rx_request")
RESPONSE: Final = packer("netif_rx_response")
EXTRA: Final = packer("netif_extra_info")

DATA_VALIDATED: Final[int] = lib.NETRXF_data_validated
CSUM_BLANK: Final[int] = lib.NETRXF_csum_blank
MORE_DATA: Final[int] = lib.NETRXF_more_data
EXTRA_INFO: Final[int] = lib.NETRXF_extra_info
GSO_PREFIX: Final[int] = lib.NETRXF_gso_prefix
EXTRA_FLAG_MORE: Final[int] = lib.XEN_NETIF_EXTRA_FLAG_MORE
EXTRA_TYPE_GSO: Final[int] = lib.XEN_NETIF_EXTRA_TYPE_GSO
EXTRA_TYPE_MAX: Final[int] = lib.XEN_NETIF_EXTRA_TYPE_MAX

_ZEROS: Final = bytes(256 * PAGE_SIZE)


@cache
def _requests(count: int) -> struct.Struct:
    """That many requests, packed in one go: id, pad and reference of each."""
    return struct.Struct("<" + REQUEST.format.lstrip("<") * count)


class Loss(enum.Enum):
    """Why a packet that the backend sent is not handed up."""

    BACKEND = "a response carries an error"
    OFFLOAD = "it needs an offload that was not offered"
    SHORT = "it is no frame"


class ReceiverRing:
    """One queue's rx ring from connect to release.

    PeerProtocolError from `poll`: the backend cannot be believed any more.
    """

    def __init__(self, bus: XenBus, domid: int) -> None:
        self._bus = bus
        self._page = Granter(bus.gnttab, domid, readonly=False)
        self._page.permit(self._page.add(1))
        self.ring = FrontRing(
            bus.domain, self._page.pfns, req_size=REQUEST.size, rsp_size=RESPONSE.size
        )
        self.granter = Granter(bus.gnttab, domid, readonly=False)
        self.poller: Poller | None = None
        self._requests = b""
        self._clear: list[int] = []  # pfn, 0, 4096 of each slot: pieces for scatter
        self.posted = 0
        self.answered = 0
        self.losses: list[Loss] = []  # of packets that poll did not return

    @property
    def ref(self) -> int:
        """The reference of the ring's page."""
        return self._page.refs[0]

    @property
    def filled(self) -> bool:
        return bool(self._requests)

    def fill(self) -> None:
        """Post every slot. HypercallError: not enough memory or references, nothing is posted."""
        size = self.ring.size
        while len(self.granter.pfns) < size:
            self.granter.add(size - len(self.granter.pfns))
        first = self.ring.req_prod % size
        self._clear = [0, 0, PAGE_SIZE] * size
        self._clear[::3] = self.granter.pfns[:size]
        words = [0] * (3 * size)
        words[::3] = range(size)
        words[2::3] = self.granter.refs[:size]
        self._requests = _requests(size).pack(*words)
        slots = [*range(first, size), *range(first)]
        self.granter.permit(slots)
        self._push(slots[0], size)

    def _push(self, slot: int, count: int) -> None:
        """Post `count` slots from `slot` on."""
        requests = self._requests
        width = REQUEST.size
        end = slot + count
        chunk = requests[slot * width : end * width]
        if end > self.ring.size:
            chunk += requests[: (end - self.ring.size) * width]
        self.posted += count
        if self.ring.push(chunk, count) and self.poller is not None:
            self.poller.send()

    def poll(self) -> list[bytes]:
        """Frames of all responses that are there; their slots are posted again."""
        frames: list[bytes] = []
        while True:
            count, responses = self.ring.take()
            if count:
                self._receive(bytes(responses), count, frames)
            if not self.ring.final_check():
                return frames

    def _receive(self, raw: bytes, count: int, frames: list[bytes]) -> None:
        size = self.ring.size
        first = (self.ring.rsp_cons - count) % size
        self.answered += count
        slots = [*range(first, size), *range(first)][:count]
        # Access ends before the bytes are looked at: the backend cannot change them then.
        busy = self.granter.revoke(slots)
        if busy:
            raise PeerProtocolError(f"rx slot {busy[0]} was answered, yet its grant is in use")
        pieces, lengths = self._packets(raw, first)
        data = self._bus.domain.gather(pieces, sum(lengths))
        at = 0
        for length in lengths:
            frames.append(data[at : at + length])
            at += length
        self._wipe(first, count)
        self.granter.permit(slots)
        self._push(first, count)

    def _wipe(self, first: int, count: int) -> None:
        """The backend sees nothing of an earlier packet (XSA-403)."""
        clear = self._clear
        end = first + count
        pieces = clear[3 * first : 3 * end] + clear[: max(0, 3 * (end - self.ring.size))]
        zeros = _ZEROS if count == 256 else memoryview(_ZEROS)[: count * PAGE_SIZE]
        self._bus.domain.scatter(pieces, zeros)

    def _packets(self, raw: bytes, first: int) -> tuple[list[int], list[int]]:
        """Pieces of memory and the length of each whole packet, in order."""
        pfns = self.granter.pfns
        mask = self.ring.size - 1
        pieces: list[int] = []
        lengths: list[int] = []
        responses = list(RESPONSE.iter_unpack(raw))
        count = len(responses)
        index = 0
        while index < count:
            number, offset, flags, status = responses[index]
            slot = (first + index) & mask
            if (
                flags | DATA_VALIDATED == DATA_VALIDATED
                and number == slot
                and status >= ETHERNET
                and offset + status <= PAGE_SIZE
            ):
                pieces += (pfns[slot], offset, status)
                lengths.append(status)
                index += 1
            else:
                index = self._chain(raw, index, first, pieces, lengths)
        return pieces, lengths

    def _chain(
        self, raw: bytes, index: int, first: int, pieces: list[int], lengths: list[int]
    ) -> int:
        """One packet of any shape from response `index` on; the index after it."""
        mask = self.ring.size - 1
        start = len(pieces)
        total = seen = 0
        loss: Loss | None = None
        more = MORE_DATA
        while more:
            if index * RESPONSE.size >= len(raw):
                raise PeerProtocolError("an rx packet has more data than there are responses")
            number, offset, flags, status = RESPONSE.unpack_from(raw, index * RESPONSE.size)
            slot = (first + index) & mask
            if number != slot:
                raise PeerProtocolError(f"rx slot {slot} answered with id {number}")
            if status < 0:
                loss = Loss.BACKEND
            elif offset + status > PAGE_SIZE:
                raise PeerProtocolError(f"rx slot {slot}: {status} bytes at {offset} in a page")
            else:
                pieces += (self.granter.pfns[slot], offset, status)
                total += status
            index += 1
            if flags & EXTRA_INFO and not seen:
                index, segmented = self._extras(raw, index)
                if segmented:
                    loss = loss or Loss.OFFLOAD
            more = flags & MORE_DATA
            seen |= flags | EXTRA_INFO  # extras follow the first slot only
        if seen & (CSUM_BLANK | GSO_PREFIX):
            loss = loss or Loss.OFFLOAD
        if total < ETHERNET:
            loss = loss or Loss.SHORT
        if loss is None:
            lengths.append(total)
        else:
            del pieces[start:]
            self.losses.append(loss)
        return index

    def _extras(self, raw: bytes, index: int) -> tuple[int, bool]:
        """The index after the extras that start at `index`, and whether GSO is one of them."""
        segmented = False
        flags = EXTRA_FLAG_MORE
        while flags & EXTRA_FLAG_MORE:
            if index * RESPONSE.size >= len(raw):
                raise PeerProtocolError("an rx packet has more extras than there are responses")
            kind, flags, _ = EXTRA.unpack_from(raw, index * RESPONSE.size)
            if not 0 < kind < EXTRA_TYPE_MAX:
                raise PeerProtocolError(f"rx extra of type {kind}")
            segmented |= kind == EXTRA_TYPE_GSO
            index += 1
        return index, segmented

    def release(self) -> list[tuple[int, int]]:
        """Give pages and references back; (ref, pfn) of those that the backend still maps."""
        self._requests = b""
        self.granter.release()
        self._page.release()
        return self.granter.quarantined + self._page.quarantined
