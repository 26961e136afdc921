"""What a guest transmits, as QEMU reads it (hw/net/xen_nic.c, net_tx_packets).

A slot is a frame. It was offered neither chains nor extras, so a slot that has more_data or
extra_info is an error by itself, and what follows it is read as the next frame: a Windows
frontend, whose headers have a slot of their own, gets next to nothing through.
"""

from __future__ import annotations

from xenpv.back.credit import Rate
from xenpv.back.txpacket import CHAINED, CSUM_BLANK, ERROR, ETHERNET, OKAY, REQUEST
from xenpv.back.txring import TxRing
from xenpv.host.network import Frame
from xenpv.host.offload import sum_from_scratch
from xenpv.xen.domain import PAGE_SIZE


class QemuTx:
    """`ring` served slot by slot; nothing that a guest does breaks the vif but an absurd index."""

    def __init__(self, ring: TxRing) -> None:
        self._tx = ring

    def poll(self) -> bool:
        count, raw = self._tx.ring.take()
        slots = list(REQUEST.iter_unpack(raw))
        good = [_is_frame(*slot) for slot in slots]
        ops: list[int] = []
        size = 0
        for (ref, offset, _, _, length), whole in zip(slots, good, strict=True):
            if whole:
                ops += (ref, offset | length << 16, size)
                size += length
        data, failed = self._tx.copy(ops, len(ops) // 3, size)
        responses: list[int] = []
        frames: list[Frame] = []
        op = at = 0
        for index, (_, _, flags, number, length) in enumerate(slots):
            whole = good[index]
            mapped = whole and op not in failed
            responses += (number, OKAY if mapped else ERROR)
            if mapped:
                frame = data[at : at + length]
                if flags & CSUM_BLANK:
                    frame = sum_from_scratch(frame)
                frames.append(Frame(frame, queue=self._tx.queue, slot=self._tx.slot(index, count)))
            if whole:
                op += 1
                at += length
        self._tx.answer(responses)
        self._tx.vif.counters.tx_dropped += count - len(frames)
        self._tx.pass_on(frames, sum([len(frame.data) for frame in frames]))
        return self._tx.ring.final_check()

    def set_rate(self, rate: Rate | None) -> None:
        """QEMU does not look at `rate`."""

    def release(self) -> None: ...


def _is_frame(_ref: int, offset: int, flags: int, _number: int, size: int) -> bool:
    return not flags & CHAINED and size >= ETHERNET and offset + size <= PAGE_SIZE
