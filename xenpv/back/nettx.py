"""What a guest transmits: slots of the tx ring become frames (Linux netback.c, xenvif_tx_*).

Slots are copied out once, judged in netback's order, and their bytes fetched in one batched
grant copy. A guest that errs in one packet gets an error response; one that breaks the
protocol raises PeerProtocolError and loses its vif, and what it asked is never answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

import attrs

from xenpv.abi._kernel import ffi, lib
from xenpv.abi.layout import packer, struct_format
from xenpv.back.ring import BackRing
from xenpv.errors import PeerProtocolError
from xenpv.host.network import Frame, FrameBatch
from xenpv.host.offload import blank_checksum
from xenpv.host.packet import TCP, UDP, parse_headers
from xenpv.xen.domain import PAGE_SIZE

if TYPE_CHECKING:
    from xenpv.back.netback import Netback

REQUEST: Final = packer("netif_tx_request")
RESPONSE_SIZE: Final = packer("netif_tx_response").size
EXTRA: Final = packer("netif_extra_info")
EXTRA_GSO: Final = packer("netif_extra_info", "u.gso")
EXTRA_HASH: Final = packer("netif_extra_info", "u.hash")

CSUM_BLANK: Final[int] = lib.NETTXF_csum_blank
DATA_VALIDATED: Final[int] = lib.NETTXF_data_validated
MORE_DATA: Final[int] = lib.NETTXF_more_data
EXTRA_INFO: Final[int] = lib.NETTXF_extra_info
CHAINED: Final = MORE_DATA | EXTRA_INFO
SUMS: Final = CSUM_BLANK | DATA_VALIDATED
EXTRA_FLAG_MORE: Final[int] = lib.XEN_NETIF_EXTRA_FLAG_MORE
EXTRA_TYPE_MAX: Final[int] = lib.XEN_NETIF_EXTRA_TYPE_MAX
TYPE_GSO: Final[int] = lib.XEN_NETIF_EXTRA_TYPE_GSO
TYPE_MCAST_ADD: Final[int] = lib.XEN_NETIF_EXTRA_TYPE_MCAST_ADD
TYPE_MCAST_DEL: Final[int] = lib.XEN_NETIF_EXTRA_TYPE_MCAST_DEL
TYPE_HASH: Final[int] = lib.XEN_NETIF_EXTRA_TYPE_HASH
GSO_TYPES: Final = (lib.XEN_NETIF_GSO_TYPE_TCPV4, lib.XEN_NETIF_GSO_TYPE_TCPV6)
OKAY: Final[int] = lib.NETIF_RSP_OKAY
ERROR: Final[int] = lib.NETIF_RSP_ERROR
NULL: Final[int] = lib.NETIF_RSP_NULL

# flags, smallest, furthest, bytes: columns of a group (abi/kernel/net.c)
GROUP: Final = packer("net_group")

# Looked up once: each is called in every pass.
net_take: Final = lib.net_take
net_copy: Final = lib.net_copy
net_answer: Final = lib.net_answer
allocate: Final = ffi.new_allocator(should_clear_after_alloc=False)

BATCH: Final = 64  # packets (TX_BATCH_SIZE)
LATER_SLOTS_MAX: Final[int] = lib.XEN_NETIF_NR_SLOTS_MIN  # beyond it a packet is dropped
LATER_SLOTS_FATAL: Final = 20  # FATAL_SKB_SLOTS_DEFAULT: beyond it the guest is malicious
ETHERNET: Final = 14


@cache
def responses_packer(count: int) -> Struct:
    """`count` tx responses from ids and statuses in one flat list."""
    return Struct("<" + struct_format("netif_tx_response")[1:] * count)


@attrs.frozen(kw_only=True)
class Extras:
    """What the extras of a packet say."""

    count: int
    gso_type: int = 0
    gso_size: int = 0
    hash: tuple[int, int] | None = None


# Where its bytes begin, how many they are, flags, data slots, extras.
Packet = tuple[int, int, int, int, Extras | None]


class Batch:
    """Packets that are copied and answered together."""

    __slots__ = ("ended", "ops", "packets", "plain", "refused", "responses", "size")

    def __init__(self) -> None:
        self.ops: list[int] = []  # of grant_copy_local: ref, offset | size << 16, local offset
        self.responses: list[int] = []  # id, status
        self.packets: list[Packet] = []
        self.refused: list[int] = []  # id, status: slots that are answered without a copy
        self.size = 0
        self.plain = True  # no packet has offloads or extras
        self.ended = False


class TxQueue:
    """The tx ring of one queue of `vif`, from connect to disconnect."""

    def __init__(self, vif: Netback, ring: BackRing, port: int) -> None:
        self._vif = vif
        self._ring = ring
        self._port = port
        self._local = bytearray(BATCH * 2048)
        self._status = bytearray(BATCH * (LATER_SLOTS_FATAL + 1))
        self._verdicts = bytearray(ring.size)
        groups = bytearray(GROUP.size * -(-ring.size // BATCH))
        self._groups = memoryview(groups)
        bound = {
            "ring": ring.handle,
            "requests": ring.raw_pointer,
            "verdicts": ffi.from_buffer("int8_t[]", self._verdicts),
            "groups": ffi.from_buffer("struct net_group[]", groups),
            "group": BATCH,
        }
        self._bound = bound  # the struct alone keeps none of it alive
        self._pass = ffi.new("struct net_pass *", bound)

    def poll(self) -> bool:
        """Everything that is on the ring now; True if there is more by the end."""
        count = net_take(self._pass)
        if count < 0:
            self._ring.domain.fail(count, "ring requests")
        if count and not self._whole(count):
            raw = memoryview(self._ring.raw)[: count * REQUEST.size]
            slots = list(REQUEST.iter_unpack(raw))
            index = 0
            while index < count:
                index = self._batch(slots, raw, index)
        return self._ring.final_check()

    def _whole(self, count: int) -> bool:
        """Serve slots that are all whole packets without offloads, in groups; False if not."""
        groups = list(GROUP.iter_unpack(self._groups[: -(-count // BATCH) * GROUP.size]))
        for flags, smallest, furthest, _size in groups:
            if flags or smallest < ETHERNET or furthest > PAGE_SIZE:
                return False
        for at, (_flags, _smallest, _furthest, size) in enumerate(groups):
            first = at * BATCH
            self._group(first, min(BATCH, count - first), size)
        return True

    def _group(self, first: int, count: int, size: int) -> None:
        """Copy, answer and pass on `count` slots of `size` bytes in all."""
        vif, ring = self._vif, self._ring
        # Of its own, since the frames go on; where each ends stands before them.
        buffer = allocate("uint8_t[]", 4 * count + size)
        data = memoryview(ffi.buffer(buffer))
        failed = net_copy(
            self._pass, vif.granter().kernel, first, count,
            ffi.cast("uint32_t *", buffer), buffer + 4 * count, size,
        )  # fmt: skip
        if failed < 0:
            vif.domain.fail(failed, "copy")
        frames: Sequence[Frame] = FrameBatch(data[4 * count :], data[: 4 * count].cast("I"))
        if failed:
            verdicts = self._verdicts[first : first + count]
            frames = [frame for frame, bad in zip(frames, verdicts, strict=True) if not bad]
            size = sum([len(frame.data) for frame in frames])
            vif.counters.tx_dropped += failed
        notify = net_answer(self._pass, first, count)
        if notify < 0:
            vif.domain.fail(notify, "ring responses")
        ring.published(count)
        if notify:
            vif.domain.evtchn.send(self._port)
        self._pass_on(frames, size)

    def _batch(self, slots: list[tuple[int, ...]], raw: memoryview, index: int) -> int:
        """Up to BATCH packets from slot `index` on; the index after them."""
        batch = Batch()
        ops, responses, packets = batch.ops, batch.responses, batch.packets
        last = len(slots) - 1
        room = BATCH
        at = 0
        try:
            while room and index <= last and not batch.ended:
                room -= 1
                ref, offset, flags, number, size = slots[index]
                if not flags and size >= ETHERNET and offset + size <= PAGE_SIZE:
                    ops += (ref, offset | size << 16, at)
                    responses += (number, OKAY)
                    packets.append((at, size, 0, 1, None))
                    at += size
                    index += 1
                    continue
                if flags == MORE_DATA and index < last:
                    # What most drivers send: headers, then payload.
                    ref2, offset2, flags2, number2, size2 = slots[index + 1]
                    head = size - size2
                    if (
                        not flags2 & MORE_DATA
                        and head >= ETHERNET
                        and offset + head <= PAGE_SIZE
                        and offset2 + size2 <= PAGE_SIZE
                    ):
                        ops += (
                            ref,
                            offset | head << 16,
                            at,
                            ref2,
                            offset2 | size2 << 16,
                            at + head,
                        )
                        responses += (number, OKAY, number2, OKAY)
                        packets.append((at, size, 0, 2, None))
                        at += size
                        index += 2
                        continue
                batch.size = at
                index = self._chain(batch, slots, raw, index)
                at = batch.size
        finally:
            # What came before a fatal slot is still sent and answered.
            batch.size = at
            self._finish(batch)
        return index

    def _chain(
        self, batch: Batch, slots: list[tuple[int, ...]], raw: memoryview, index: int
    ) -> int:
        """One packet of any shape from slot `index` on; the index after it."""
        ref, offset, flags, number, total = slots[index]
        extras: dict[int, int] = {}  # type: where in raw
        after = index + 1
        if flags & EXTRA_INFO:
            after = _read_extras(raw, after, len(slots), extras)
        nr_extras = after - index - 1
        if TYPE_MCAST_ADD in extras or TYPE_MCAST_DEL in extras:
            # Data and more_data of such a request mean nothing: the next slot is a new packet.
            _answer(batch.refused, [number], nr_extras, self._multicast(raw, extras))
            return after
        later, rest, drop = (
            _later_slots(slots, after, total) if flags & MORE_DATA else ([], total, False)
        )
        after += len(later)
        ids = [number, *(slot[3] for slot in later)]
        if drop or rest < ETHERNET:
            _answer(batch.refused, ids, nr_extras, ERROR)
            batch.ended = True
            return after
        if offset + rest > PAGE_SIZE:
            raise PeerProtocolError(f"tx {number}: {rest} bytes at {offset} in a page")
        told = None
        if extras:
            gso_type, gso_size = _gso(raw, extras)
            told = Extras(
                count=nr_extras, gso_type=gso_type, gso_size=gso_size, hash=_hash(raw, extras)
            )
        batch.plain = batch.plain and told is None and not flags & SUMS
        batch.packets.append((batch.size, total, flags, len(ids), told))
        for slot_ref, slot_offset, size in (
            (ref, offset, rest),
            *((slot[0], slot[1], slot[4]) for slot in later),
        ):
            batch.ops += (slot_ref, slot_offset | size << 16, batch.size)
            batch.size += size
        _answer(batch.responses, ids, nr_extras, OKAY)
        return after

    def _multicast(self, raw: memoryview, extras: dict[int, int]) -> int:
        """Add to or remove from the list of groups; an addition goes before a removal."""
        if TYPE_MCAST_ADD in extras:
            _, _, body = EXTRA.unpack_from(raw, extras[TYPE_MCAST_ADD])
            return OKAY if self._vif.multicast_add(body) else ERROR
        _, _, body = EXTRA.unpack_from(raw, extras[TYPE_MCAST_DEL])
        self._vif.multicast_remove(body)
        return OKAY

    def _finish(self, batch: Batch) -> None:
        """Copy, answer, and pass the frames on."""
        frames: list[Frame] = []
        if batch.ops:
            data, failed = self._copy(batch.ops, len(batch.ops) // 3, batch.size)
            whole = _mark_failed(batch, failed) if failed else batch.packets
            if batch.plain:
                frames = [Frame(data[at : at + size]) for at, size, _, _, _ in whole]
            else:
                told = [_offloads(data[at : at + size], flags, extras)
                        for at, size, flags, _, extras in whole]  # fmt: skip
                frames = [frame for frame in told if frame is not None]
            self._vif.counters.tx_dropped += len(batch.packets) - len(frames)
        responses = batch.responses + batch.refused
        count = len(responses) // 2
        if count:
            self._answer_and_pass(responses_packer(count).pack(*responses), count, frames)

    def _copy(self, ops: Any, count: int, size: int) -> tuple[bytes, list[int]]:
        """The bytes that `count` operations fetch, and the numbers of those that failed."""
        domain = self._vif.domain
        granter = self._vif.granter()
        if len(self._local) < size:
            self._local = bytearray(size)
        local, status = self._local, self._status
        failed = lib.grant_copy_local(
            domain.kernel, granter.kernel, 0, ops, count, ffi.from_buffer(local), size,
            ffi.from_buffer("int8_t[]", status),
        )  # fmt: skip
        if failed < 0:
            domain.check(failed)
        data = bytes(memoryview(local)[:size])
        return data, [number for number in range(count) if status[number]] if failed else []

    def _answer_and_pass(
        self, responses: bytes | bytearray, count: int, frames: list[Frame]
    ) -> None:
        if self._ring.push(responses, count):
            self._vif.domain.evtchn.send(self._port)
        self._pass_on(frames, sum([len(frame.data) for frame in frames]))

    def _pass_on(self, frames: Sequence[Frame], size: int) -> None:
        """To the bridge; `size` bytes in all."""
        if frames:
            vif = self._vif
            vif.counters.tx_packets += len(frames)
            vif.counters.tx_bytes += size
            vif.transmit(frames)


def _read_extras(raw: memoryview, index: int, count: int, extras: dict[int, int]) -> int:
    """Note where each type of extra lies; the index after them. Of two alike the last counts."""
    flags = EXTRA_FLAG_MORE
    while flags & EXTRA_FLAG_MORE:
        if index >= count:
            raise PeerProtocolError("tx extra info beyond the producer")
        at = index * REQUEST.size
        kind, flags, _ = EXTRA.unpack_from(raw, at)
        if not 0 < kind < EXTRA_TYPE_MAX:
            raise PeerProtocolError(f"tx extra of type {kind}")
        extras[kind] = at
        index += 1
    return index


def _later_slots(
    slots: list[tuple[int, ...]], index: int, total: int
) -> tuple[list[tuple[int, ...]], int, bool]:
    """Slots after the first, the first's own bytes, and whether the packet is to be dropped."""
    later: list[tuple[int, ...]] = []
    rest = total
    drop = False
    more = MORE_DATA
    while more:
        if index >= len(slots):
            raise PeerProtocolError("tx data beyond the producer")
        if len(later) >= LATER_SLOTS_FATAL:
            raise PeerProtocolError(f"a tx packet of more than {LATER_SLOTS_FATAL + 1} slots")
        slot = slots[index]
        _, offset, more, _, size = slot
        drop = drop or len(later) >= LATER_SLOTS_MAX or size > rest
        rest -= size
        if offset + size > PAGE_SIZE:
            raise PeerProtocolError(f"tx {slot[3]}: {size} bytes at {offset} in a page")
        later.append(slot)
        more &= MORE_DATA
        index += 1
    return later, rest, drop


def _answer(responses: list[int], ids: list[int], nr_extras: int, status: int) -> None:
    """Responses for a packet: its extras' come right after the first slot's."""
    responses += (ids[0], status)
    responses += (0, NULL) * nr_extras
    for number in ids[1:]:
        responses += (number, status)


def _mark_failed(batch: Batch, failed: list[int]) -> list[Packet]:
    """Turn the responses of failed copies into errors; the packets that are left."""
    whole = []
    op = response = 0
    for packet in batch.packets:
        slots, told = packet[3:]
        extras = 0 if told is None else told.count
        wrong = [number - op for number in failed if op <= number < op + slots]
        for slot in wrong:
            batch.responses[2 * (response + slot + (extras if slot else 0)) + 1] = ERROR
        if not wrong:
            whole.append(packet)
        op += slots
        response += slots + extras
    return whole


def _gso(raw: memoryview, extras: dict[int, int]) -> tuple[int, int]:
    """Type and segment size, both 0 without a GSO extra."""
    at = extras.get(TYPE_GSO)
    if at is None:
        return 0, 0
    _, _, size, kind, _, _ = EXTRA_GSO.unpack_from(raw, at)
    if not size:
        raise PeerProtocolError("GSO size is 0")
    if kind not in GSO_TYPES:
        raise PeerProtocolError(f"GSO type {kind}")
    return kind, size


def _hash(raw: memoryview, extras: dict[int, int]) -> tuple[int, int] | None:
    """Type and value of the HASH extra; its algorithm byte is not looked at."""
    at = extras.get(TYPE_HASH)
    if at is None:
        return None
    _, _, kind, _, value = EXTRA_HASH.unpack_from(raw, at)
    return kind, int.from_bytes(value, "little")


def _offloads(data: bytes, flags: int, extras: Extras | None) -> Frame | None:
    """The frame with what its sender said about it; None if that cannot be true."""
    told = Extras(count=0) if extras is None else extras
    frame = Frame(
        data,
        csum_blank=bool(flags & CSUM_BLANK),
        data_validated=bool(flags & SUMS),
        gso_type=told.gso_type,
        gso_size=told.gso_size,
        hash=told.hash,
    )
    if frame.gso_type and not frame.csum_blank:
        try:
            return blank_checksum(frame)  # the counter rx_gso_checksum_fixup
        except PeerProtocolError:
            return None
    if frame.csum_blank:
        headers = parse_headers(data)
        if headers is None or headers.fragment or headers.protocol not in (TCP, UDP):
            return None
    return frame
