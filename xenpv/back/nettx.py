"""What a guest transmits, as Linux netback reads it (netback.c, xenvif_tx_*).

Slots are copied out once, judged in netback's order, and their bytes fetched in one batched
grant copy. A guest that errs in one packet gets an error response; one that breaks the
protocol raises PeerProtocolError and loses its vif, and what it asked is never answered.

Responses come in netback's order too: refused packets and multicast requests first, since
they are answered while a batch is read; then what was copied; mapped slots when they are
released (txpages).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from xenpv.abi._kernel import ffi, lib
from xenpv.abi.layout import packer
from xenpv.back.credit import Credit, Rate
from xenpv.back.txpacket import (
    CHAINED,
    ERROR,
    ETHERNET,
    EXTRA,
    EXTRA_INFO,
    MORE_DATA,
    OKAY,
    REQUEST,
    SUMS,
    TYPE_MCAST_ADD,
    TYPE_MCAST_DEL,
    Extras,
    Slot,
    answer,
    later_slots,
    read_extras,
    told_by,
)
from xenpv.back.txpages import Chain, TxPages
from xenpv.back.txring import TxRing
from xenpv.back.txrules import TxRules
from xenpv.errors import PeerProtocolError
from xenpv.host.network import Frame, FrameBatch
from xenpv.xen.domain import PAGE_SIZE
from xenpv.xen.loop import Task

# flags, smallest, furthest, bytes: columns of a group (abi/kernel/net.c)
GROUP: Final = packer("net_group")

# Looked up once: each is called in every pass.
net_take: Final = lib.net_take
net_copy: Final = lib.net_copy
net_answer: Final = lib.net_answer
allocate: Final = ffi.new_allocator(should_clear_after_alloc=False)

BATCH: Final = 64  # packets (TX_BATCH_SIZE)
PAIRED: Final = MORE_DATA  # CHAINED of what most drivers send: headers, then payload

# Where its bytes begin, how many they are, flags, data slots, extras, number of its first slot.
Packet = tuple[int, int, int, int, Extras | None, int]


class Batch:
    """Packets that are copied and answered together."""

    __slots__ = ("chains", "ended", "ops", "packets", "plain", "refused", "responses", "size")

    def __init__(self) -> None:
        self.ops: list[int] = []  # of grant_copy_local: ref, offset | size << 16, local offset
        self.responses: list[int] = []  # id, status
        self.packets: list[Packet] = []
        self.chains: list[Chain] = []  # instead of the three above, where pages are mapped
        self.refused: list[int] = []  # id, status: slots that are answered without a copy
        self.size = 0
        self.plain = True  # no packet has offloads or extras
        self.ended = False


class TxQueue:
    """The tx ring of one queue, from connect to disconnect. `task` polls it."""

    def __init__(self, ring: TxRing, rules: TxRules, task: Task, name: str) -> None:
        self._tx = ring
        self._vif = ring.vif
        self._ring = ring.ring
        self._port = ring.port
        self._task = task
        self._name = name
        self._credit: Credit | None = None
        self._waits = False  # for credit
        self.pages = TxPages(ring, rules, task, name) if rules.zerocopy else None
        size = self._ring.size
        self._verdicts = bytearray(size)
        groups = bytearray(GROUP.size * -(-size // BATCH))
        self._groups = memoryview(groups)
        bound = {
            "ring": self._ring.handle,
            "requests": self._ring.raw_pointer,
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
            self._waits = False
            while index < count and not self._waits:
                index = self._batch(slots, raw, index)
            if self._waits:
                # They stay on the ring, the guest's to change, until the timer comes here.
                self._ring.untake(count - index)
                return False
        elif not count and self._tx.is_full:
            return False  # an answer comes first, and then a poll
        return self._ring.final_check()

    # the rate limit

    def set_rate(self, rate: Rate | None) -> None:
        """`rate` of the backend's directory, at connect and when it changes."""
        credit = self._credit
        if rate is not None and credit is not None:
            credit.change(rate)
        elif rate is not None:
            domain = self._vif.domain
            task = domain.task(f"{self._name}-credit", self._refill)
            self._credit = Credit(rate, domain.timer(task))
        else:
            self._forget_credit()
        self._task.wake()

    def _refill(self) -> None:
        """tx_credit_callback."""
        assert self._credit is not None
        self._credit.refill()
        self._task.wake()

    def _forget_credit(self) -> None:
        if self._credit is not None:
            self._vif.domain.forget(self._credit.task)
            self._credit = None

    def release(self) -> None:
        """The rings go."""
        self._forget_credit()
        if self.pages is not None:
            self.pages.release()

    # slots that are whole packets

    def _whole(self, count: int) -> bool:
        """Serve slots that are all whole packets without offloads, in groups; False if not."""
        if self.pages is not None:
            return False
        groups = list(GROUP.iter_unpack(self._groups[: -(-count // BATCH) * GROUP.size]))
        total = 0
        for flags, smallest, furthest, size in groups:
            if flags or smallest < ETHERNET or furthest > PAGE_SIZE:
                return False
            total += size
        credit = self._credit
        if credit is not None and not credit.covers(total):
            return False
        for at, (_flags, _smallest, _furthest, size) in enumerate(groups):
            first = at * BATCH
            self._group(first, min(BATCH, count - first), size, count)
        return True

    def _group(self, first: int, count: int, size: int, total: int) -> None:
        """Copy, answer and pass on `count` of `total` slots taken, of `size` bytes in all."""
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
        frames: Sequence[Frame] = FrameBatch(
            data[4 * count :], data[: 4 * count].cast("I"),
            queue=self._tx.queue, slot=self._tx.slot(first, total), slots=ring.size,
        )  # fmt: skip
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
        self._tx.pass_on(frames, size)

    # slots of any kind

    def _batch(self, slots: list[Slot], raw: memoryview, index: int) -> int:
        """Up to BATCH packets from slot `index` on; the index after them."""
        batch = Batch()
        ops, responses, packets = batch.ops, batch.responses, batch.packets
        credit = self._credit
        copied = self.pages is None
        last = len(slots) - 1
        room = BATCH
        at = 0
        try:
            while room and index <= last and not batch.ended:
                ref, offset, flags, number, size = slots[index]
                if credit is not None and not credit.spend(size):
                    self._waits = True
                    break
                room -= 1
                shape = flags & CHAINED
                if copied and not shape and size >= ETHERNET and offset + size <= PAGE_SIZE:
                    ops += (ref, offset | size << 16, at)
                    responses += (number, OKAY)
                    packets.append((at, size, flags, 1, None, index))
                    batch.plain &= not flags & SUMS
                    at += size
                    index += 1
                    continue
                if copied and shape == PAIRED and index < last:
                    ref2, offset2, flags2, number2, size2 = slots[index + 1]
                    head = size - size2
                    if (
                        not flags2 & MORE_DATA
                        and head >= ETHERNET
                        and offset + head <= PAGE_SIZE
                        and offset2 + size2 <= PAGE_SIZE
                    ):
                        ops += (ref, offset | head << 16, at)
                        ops += (ref2, offset2 | size2 << 16, at + head)
                        responses += (number, OKAY, number2, OKAY)
                        packets.append((at, size, flags, 2, None, index))
                        batch.plain &= not flags & SUMS
                        at += size
                        index += 2
                        continue
                batch.size = at
                index = self._chain(batch, slots, raw, index)
                at = batch.size
        finally:
            # What came before a fatal slot is still sent and answered.
            batch.size = at
            self._finish(batch, len(slots))
        return index

    def _chain(self, batch: Batch, slots: list[Slot], raw: memoryview, index: int) -> int:
        """One packet of any shape from slot `index` on; the index after it."""
        ref, offset, flags, number, total = slots[index]
        extras: dict[int, int] = {}  # type: where in raw
        after = index + 1
        if flags & EXTRA_INFO:
            after = read_extras(raw, after, len(slots), extras)
        nr_extras = after - index - 1
        if TYPE_MCAST_ADD in extras or TYPE_MCAST_DEL in extras:
            # Data and more_data of such a request mean nothing: the next slot is a new packet.
            answer(batch.refused, [number], nr_extras, self._multicast(raw, extras))
            return after
        later, rest, drop = (
            later_slots(slots, after, total) if flags & MORE_DATA else ([], total, False)
        )
        after += len(later)
        ids = [number, *(slot[3] for slot in later)]
        if drop or rest < ETHERNET:
            answer(batch.refused, ids, nr_extras, ERROR)
            batch.ended = True
            return after
        if offset + rest > PAGE_SIZE:
            raise PeerProtocolError(f"tx {number}: {rest} bytes at {offset} in a page")
        told = told_by(raw, extras, nr_extras)
        data_slots = [(ref, offset, flags, number, rest), *later]
        if self.pages is not None:
            batch.chains.append(
                Chain(slots=data_slots, total=total, flags=flags, nr_extras=nr_extras, told=told,
                      slot=self._tx.slot(index, len(slots)))
            )  # fmt: skip
            return after
        batch.plain = batch.plain and told is None and not flags & SUMS
        batch.packets.append((batch.size, total, flags, len(ids), told, index))
        for slot_ref, slot_offset, _, _, size in data_slots:
            batch.ops += (slot_ref, slot_offset | size << 16, batch.size)
            batch.size += size
        answer(batch.responses, ids, nr_extras, OKAY)
        return after

    def _multicast(self, raw: memoryview, extras: dict[int, int]) -> int:
        """Add to or remove from the list of groups; an addition goes before a removal."""
        if TYPE_MCAST_ADD in extras:
            _, _, body = EXTRA.unpack_from(raw, extras[TYPE_MCAST_ADD])
            return OKAY if self._vif.multicast_add(body) else ERROR
        _, _, body = EXTRA.unpack_from(raw, extras[TYPE_MCAST_DEL])
        self._vif.multicast_remove(body)
        return OKAY

    def _finish(self, batch: Batch, count: int) -> None:
        """Copy, answer, and pass the frames on: packets of the `count` slots taken last."""
        frames: list[Frame] = []
        responses = batch.responses
        if batch.chains:
            assert self.pages is not None
            responses, frames = self.pages.fetch(batch.chains)
        elif batch.ops:
            data, failed = self._tx.copy(batch.ops, len(batch.ops) // 3, batch.size)
            whole = _mark_failed(batch, failed) if failed else batch.packets
            queue, base, mask = self._tx.queue, self._tx.slot(0, count), self._ring.size - 1
            if batch.plain:
                frames = [Frame(data[at : at + size], False, False, 0, 0, None, queue,
                                base + index & mask)
                          for at, size, _, _, _, index in whole]  # fmt: skip
            else:
                make = self._tx.frame
                told = [make(data[at : at + size], flags, extras, base + index & mask)
                        for at, size, flags, _, extras, index in whole]  # fmt: skip
                frames = [frame for frame in told if frame is not None]
        self._vif.counters.tx_dropped += len(batch.packets) + len(batch.chains) - len(frames)
        self._tx.answer(batch.refused + responses)
        self._tx.pass_on(frames, sum([len(frame.data) for frame in frames]))
        for frame in frames if batch.chains else ():
            if frame.lease is not None:
                frame.lease.drop()


def _mark_failed(batch: Batch, failed: list[int]) -> list[Packet]:
    """Turn the responses of failed copies into errors; the packets that are left."""
    whole = []
    op = response = 0
    for packet in batch.packets:
        slots, told = packet[3:5]
        extras = 0 if told is None else told.count
        wrong = [number - op for number in failed if op <= number < op + slots]
        for slot in wrong:
            batch.responses[2 * (response + slot + (extras if slot else 0)) + 1] = ERROR
        if not wrong:
            whole.append(packet)
        op += slots
        response += slots + extras
    return whole
