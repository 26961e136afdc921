"""Rx responses to packets: which pieces of memory make one, and what came along with it.

A packet is a first response, its extras in the slots behind it, and more responses. Extras
overwrite the id of their slot, so a slot's number says which page is meant. What a backend
may not do breaks the interface of a Windows guest; Linux' netfront drops the packet instead,
takes the id for nothing and refuses what has too many slots.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final, NamedTuple

import attrs

from xenpv.abi._kernel import ffi, lib
from xenpv.abi.layout import packer
from xenpv.errors import PeerProtocolError
from xenpv.vif.packet import NO_HASH, HashAlgorithm, HashType, PacketHash
from xenpv.vif.parse import ETHERNET

PAGE_SIZE: Final = 4096

net_single: Final = lib.net_single

RESPONSE: Final = packer("netif_rx_response")
EXTRA: Final = packer("netif_extra_info")
EXTRA_GSO: Final = packer("netif_extra_info", "u.gso")
EXTRA_HASH: Final = packer("netif_extra_info", "u.hash")

DATA_VALIDATED: Final[int] = lib.NETRXF_data_validated
CSUM_BLANK: Final[int] = lib.NETRXF_csum_blank
MORE_DATA: Final[int] = lib.NETRXF_more_data
EXTRA_INFO: Final[int] = lib.NETRXF_extra_info
GSO_PREFIX: Final[int] = lib.NETRXF_gso_prefix
SUMS: Final = DATA_VALIDATED | CSUM_BLANK
EXTRA_FLAG_MORE: Final[int] = lib.XEN_NETIF_EXTRA_FLAG_MORE
TYPE_GSO: Final[int] = lib.XEN_NETIF_EXTRA_TYPE_GSO
TYPE_HASH: Final[int] = lib.XEN_NETIF_EXTRA_TYPE_HASH
TYPE_MAX: Final[int] = lib.XEN_NETIF_EXTRA_TYPE_MAX  # XDP's number: it is one where negotiated
TOEPLITZ: Final[int] = lib.XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ
SLOTS_MIN: Final[int] = lib.XEN_NETIF_NR_SLOTS_MIN
COPY_THRESHOLD: Final = 256  # netfront's RX_COPY_THRESHOLD: such a first slot keeps no page


class Loss(enum.Enum):
    """Why a packet that the backend sent is not handed up."""

    BACKEND = "a response carries an error, or cannot be"
    OFFLOAD = "it needs an offload that was not offered"
    SHORT = "it is no frame"


class Extras(NamedTuple):
    """What extras said of one packet; `mss` is 0 where none said GSO."""

    gso_type: int = 0
    mss: int = 0
    hash: PacketHash = NO_HASH


NO_EXTRAS: Final = Extras()


@attrs.define(eq=False)
class Batch:
    """Packets of one look at the ring, back to back in `data`; each ends where `ends` says.

    `flags` has NETRXF_data_validated and csum_blank of each packet's first response; `extras`
    those that came with any, by position.
    """

    ends: list[int]
    flags: list[int]
    extras: dict[int, Extras]
    losses: list[Loss]
    data: bytearray = attrs.field(factory=bytearray)


@attrs.frozen(kw_only=True)
class Rules:
    """How a guest's driver takes what a backend may not do."""

    breaks: bool  # break the interface, else lose the packet
    ids: bool  # a response carries its slot's number
    slots_max: int  # data slots of a packet


RULES: Final = {
    "windows": Rules(breaks=True, ids=True, slots_max=256),
    "linux": Rules(breaks=False, ids=False, slots_max=SLOTS_MIN),
}


class Assembler:
    """Packets of one ring; `gso_types` are those offered to the backend.

    `headroom`: bytes that XDP leaves free in front of the data of every slot, negotiated.
    """

    __slots__ = ("_gso_types", "_headroom", "_rules")

    def __init__(self, *, rules: Rules, gso_types: Sequence[int], headroom: int = 0) -> None:
        self._rules = rules
        self._gso_types = tuple(gso_types)
        self._headroom = headroom

    def packets(self, raw: bytes, first: int, pfns: Sequence[int]) -> tuple[Sequence[int], Batch]:
        """Pieces of memory for gather and what they make, from responses to slot `first` on.

        `pfns` has the page of each slot. PeerProtocolError: the backend cannot be believed.
        """
        count = len(raw) // RESPONSE.size
        if not self._headroom:
            # One slot each, most likely: then there is nothing else to look at.
            pieces, end, flag = bytearray(12 * count), bytearray(4 * count), bytearray(4 * count)
            single = net_single(
                raw, count, first, pfns, len(pfns), ffi.from_buffer(pieces),
                ffi.from_buffer(end), ffi.from_buffer(flag),
            )  # fmt: skip
            if single == count:
                ends, flags = (memoryview(one).cast("I").tolist() for one in (end, flag))
                return ffi.from_buffer("uint32_t[]", pieces), Batch(ends, flags, {}, [])
        return self._follow(raw, count, first, pfns)

    def _follow(
        self, raw: bytes, count: int, first: int, pfns: Sequence[int]
    ) -> tuple[list[int], Batch]:
        """Packet by packet."""
        pieces: list[int] = []
        batch = Batch([], [], {}, [])
        index = at = 0
        while index < count:
            chain = Chain(self._rules, self._gso_types, self._headroom)
            index = chain.follow(raw, index, first, pfns)
            if chain.loss is not None:
                batch.losses.append(chain.loss)
                continue
            if chain.extras:
                batch.extras[len(batch.ends)] = chain.told()
            pieces += chain.pieces
            at += chain.total
            batch.ends.append(at)
            batch.flags.append(chain.flags & SUMS)
        return pieces, batch


class Chain:
    """One packet of any shape, as far as it was followed."""

    __slots__ = (
        "_gso_types", "_headroom", "_rules", "extras", "flags", "loss", "pieces", "total",
    )  # fmt: skip

    def __init__(self, rules: Rules, gso_types: tuple[int, ...], headroom: int) -> None:
        self._rules = rules
        self._gso_types = gso_types
        self._headroom = headroom
        self.pieces: list[int] = []
        self.total = 0
        self.flags = 0  # of the first response, and what the others add
        self.loss: Loss | None = None
        self.extras: dict[int, bytes] = {}  # by type; of two alike the later

    def _wrong(self, why: str) -> None:
        if self._rules.breaks:
            raise PeerProtocolError(why)
        self.loss = Loss.BACKEND

    def follow(self, raw: bytes, index: int, first: int, pfns: Sequence[int]) -> int:
        """Read from response `index` on; the index after the packet."""
        width = RESPONSE.size
        size = len(pfns)
        slots = 0
        slots_max = self._rules.slots_max
        more = MORE_DATA
        while more:
            if index * width >= len(raw):
                self._wrong("an rx packet has more data than there are responses")
                break
            number, offset, flags, status = RESPONSE.unpack_from(raw, index * width)
            slot = (first + index) % size
            if number != slot and self._rules.ids:
                self._wrong(f"rx slot {slot} answered with id {number}")
            self._data(slot, pfns[slot], offset, status)
            index += 1
            if not slots:
                self.flags = flags
                slots_max += status <= COPY_THRESHOLD
                if flags & EXTRA_INFO:  # extras follow the first slot only
                    index = self._extras(raw, index)
            self.flags |= flags & GSO_PREFIX
            slots += 1
            more = flags & MORE_DATA
        if slots > slots_max:
            self._wrong(f"an rx packet of {slots} slots")
        self._judge()
        return index

    def _data(self, slot: int, pfn: int, offset: int, status: int) -> None:
        """What one response says of its page."""
        if status < 0:
            self.loss = Loss.BACKEND
        elif offset + status > PAGE_SIZE or status < self._headroom:
            self._wrong(f"rx slot {slot}: {status} bytes at {offset} in a page")
        else:
            size = status - self._headroom
            self.pieces += (pfn, offset + self._headroom, size)
            self.total += size

    def _extras(self, raw: bytes, index: int) -> int:
        """Keep the extras that start at `index`; the index after them."""
        width = RESPONSE.size
        types = TYPE_MAX + 1 if self._headroom else TYPE_MAX
        flags = EXTRA_FLAG_MORE
        while flags & EXTRA_FLAG_MORE:
            extra = raw[index * width : (index + 1) * width]
            if not extra:
                self._wrong("an rx packet has more extras than there are responses")
                break
            kind, flags, _ = EXTRA.unpack(extra)
            if 0 < kind < types:
                self.extras[kind] = extra
            else:
                self._wrong(f"rx extra of type {kind}")
            index += 1
        return index

    def _judge(self) -> None:
        if self.loss is not None:
            return
        if self.total < ETHERNET:
            self.loss = Loss.SHORT
        elif self.flags & GSO_PREFIX:
            self.loss = Loss.OFFLOAD
        elif TYPE_GSO in self.extras:
            kind = EXTRA_GSO.unpack(self.extras[TYPE_GSO])[3]
            if kind not in self._gso_types:
                self.loss = Loss.OFFLOAD

    def told(self) -> Extras:
        """What its extras say."""
        gso_type = mss = 0
        if TYPE_GSO in self.extras:
            _, _, mss, gso_type, _, _ = EXTRA_GSO.unpack(self.extras[TYPE_GSO])
        return Extras(gso_type, mss, _hash(self.extras.get(TYPE_HASH)))


def _hash(extra: bytes | None) -> PacketHash:
    """The extra has the number of a bit of XEN_NETIF_CTRL_HASH_TYPE_*, one less than HashType."""
    if extra is None:
        return NO_HASH
    _, _, bit, algorithm, value = EXTRA_HASH.unpack(extra)
    if algorithm != TOEPLITZ or bit + 1 not in HASH_TYPES:
        return NO_HASH
    return PacketHash(HashAlgorithm.TOEPLITZ, bit + 1, int.from_bytes(value, "little"))


HASH_TYPES: Final = tuple(kind.value for kind in HashType if kind is not HashType.NONE)
