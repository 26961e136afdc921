"""What a guest transmits, as mirage-net-xen reads it (netif.ml, assemble.ml).

Chains are put together from what one poll finds. Extras are not known: extra_info is not
looked at, and an extra's slot is read as a request. Checksum flags mean nothing, so a blank
sum leaves as it came. Where a page cannot be read mirage leaves the rest of the chain without
an answer for ever; here it is answered ERROR.
"""

from __future__ import annotations

from xenpv.back.credit import Rate
from xenpv.back.txpacket import ERROR, MORE_DATA, OKAY, REQUEST, Slot
from xenpv.back.txring import TxRing
from xenpv.host.network import Frame
from xenpv.xen.domain import PAGE_SIZE


class MirageTx:
    """`ring` served chain by chain; nothing that a guest does breaks the vif but an absurd
    index.
    """

    def __init__(self, ring: TxRing) -> None:
        self._tx = ring

    def poll(self) -> bool:
        count, raw = self._tx.ring.take()
        responses: list[int] = []
        frames: list[Frame] = []
        chain: list[Slot] = []
        first = 0
        for index, slot in enumerate(REQUEST.iter_unpack(raw)):
            if slot[1] > PAGE_SIZE:
                continue  # it is not read at all, nor ever answered
            first = first if chain else index
            chain.append(slot)
            if not slot[2] & MORE_DATA:
                data = self._packet(chain, responses)
                chain = []
                if data is not None:
                    at = self._tx.slot(first, count)
                    frames.append(Frame(data, queue=self._tx.queue, slot=at))
        for slot in chain:  # cut off by the end of the poll
            responses += (slot[3], ERROR)
        self._tx.answer(responses)
        self._tx.pass_on(frames, sum([len(frame.data) for frame in frames]))
        return self._tx.ring.final_check()

    def _packet(self, chain: list[Slot], responses: list[int]) -> bytes | None:
        """Answer its slots; its bytes, if all could be read."""
        total = chain[0][4]
        sizes = [slot[4] for slot in chain]
        sizes[0] = total - sum(sizes[1:])
        ops: list[int] = []
        at = 0
        for (ref, offset, _, _, _), size in zip(chain, sizes, strict=True):
            if size < 0 or offset + size > PAGE_SIZE:
                break
            ops += (ref, offset | size << 16, at)
            at += size
        whole = len(ops) == 3 * len(chain)
        data, failed = self._tx.copy(ops, len(ops) // 3, at)
        read = failed[0] if failed else len(ops) // 3
        if sizes[0] < 0:
            read = 0
        for index, slot in enumerate(chain):
            responses += (slot[3], OKAY if index < read else ERROR)
        if whole and not failed:
            return data
        self._tx.vif.counters.tx_dropped += 1
        return None

    def set_rate(self, rate: Rate | None) -> None:
        """Mirage does not look at `rate`."""

    def release(self) -> None: ...
