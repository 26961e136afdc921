"""Packets of which only the headers are copied, the rest mapped until it is released.

xenvif_get_requests, xenvif_tx_check_gop, xenvif_zerocopy_callback and the dealloc thread of
Linux netback: slots that are wholly copied are answered at once, mapped ones by a task of
their own when nobody has the frame any more, so responses overtake one another even inside a
packet. What a frame says is read when it is mapped; a guest that writes to the page later
changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.back.txpacket import ERROR, NULL, OKAY, Extras, Slot
from xenpv.back.txring import TxRing
from xenpv.errors import GrantError, HypercallError, PeerProtocolError
from xenpv.host.network import Frame, Lease

if TYPE_CHECKING:
    from xenpv.back.txrules import TxRules
    from xenpv.xen.loop import Task

COPY_LEN: Final = 128  # XEN_NETBACK_TX_COPY_LEN (XSA-423)
COPY_FIRST_SLOTS: Final = 17  # later slots from which on the whole first fragment is copied


@attrs.frozen(kw_only=True)
class Chain:
    """A judged packet: its data slots with their own bytes, the first one's included."""

    slots: Sequence[Slot]
    total: int
    flags: int
    nr_extras: int
    told: Extras | None
    slot: int  # on the ring, of the first


@attrs.define(kw_only=True, eq=False)
class Mapped:
    """A slot; of one that is mapped, where its page lies."""

    number: int
    nr_extras: int  # whose responses follow its own
    status: int = OKAY
    pfn: int = 0
    handle: int = 0

    def answer(self, responses: list[int], status: int) -> None:
        responses += (self.number, status)
        responses += (0, NULL) * self.nr_extras


def copied_bytes(total: int, first: int, nr_later: int) -> int:
    """How many bytes of a packet, across its slots, are copied; `first` are of its first slot."""
    if nr_later >= COPY_FIRST_SLOTS:
        return max(min(total, COPY_LEN), first)
    return min(total, COPY_LEN)


def is_copied(amount: int, size: int) -> bool:
    """Whether nothing is left of a slot to be mapped; nor is of an empty one (XSA-448)."""
    return amount == size


class TxPages:
    """The mapped slots of one queue, by a number of their own."""

    def __init__(self, ring: TxRing, rules: TxRules, poll: Task, name: str) -> None:
        self._ring = ring
        self._domain = ring.vif.domain
        self._shuffled = rules.shuffled
        self._poll = poll
        self._task = self._domain.task(f"{name}-dealloc", self._dealloc)
        self._mapped: dict[int, Mapped] = {}
        self._due: list[int] = []
        self._next = 0

    @property
    def held(self) -> int:
        """Slots that are mapped now."""
        return len(self._mapped)

    def fetch(self, chains: Sequence[Chain]) -> tuple[list[int], list[Frame]]:
        """Copy and map: responses for the slots that are done with, and the frames that came
        through, each with a lease that is the caller's to drop.
        """
        plans = [self._plan(chain) for chain in chains]
        ops: list[int] = []
        at = 0
        for chain, plan in zip(chains, plans, strict=True):
            for (ref, offset, _, _, _), amount in zip(chain.slots, plan, strict=True):
                if amount:
                    ops += (ref, offset | amount << 16, at)
                    at += amount
        data, failed = self._ring.copy(ops, len(ops) // 3, at)
        responses: list[int] = []
        frames: list[Frame] = []
        op = at = 0
        for chain, plan in zip(chains, plans, strict=True):
            copied = sum(plan)
            indexes = [index for index, amount in enumerate(plan) if amount]
            wrong = [indexes[number - op] for number in failed if 0 <= number - op < len(indexes)]
            frame = self._assemble(chain, plan, data[at : at + copied], wrong, responses)
            at += copied
            op += len(indexes)
            if frame is not None:
                frames.append(frame)
        return responses, frames

    @staticmethod
    def _plan(chain: Chain) -> list[int]:
        """How much of each slot is copied."""
        left = copied_bytes(chain.total, chain.slots[0][4], len(chain.slots) - 1)
        plan = []
        for slot in chain.slots:
            plan.append(min(left, slot[4]))
            left -= plan[-1]
        return plan

    def _assemble(
        self, chain: Chain, plan: list[int], head: bytes, wrong: list[int], responses: list[int]
    ) -> Frame | None:
        """Map what was not copied. The frame, or None if a slot failed: all are answered then."""
        parts = [head]
        keys: list[int] = []
        lost = bool(wrong)
        for index, ((ref, offset, _, number, size), amount) in enumerate(
            zip(chain.slots, plan, strict=True)
        ):
            slot = Mapped(number=number, nr_extras=0 if index else chain.nr_extras)
            if is_copied(amount, size):
                slot.answer(responses, ERROR if index in wrong else OKAY)
            elif self._map(slot, ref):
                keys.append(self._next - 1)
                slot.status = ERROR if index in wrong else OKAY
                parts.append(self._domain.read(slot.pfn, offset + amount, size - amount))
            else:
                lost = True
                slot.answer(responses, ERROR)
        if not lost:
            return self._lend(chain, b"".join(parts), keys)
        for key in keys:
            slot = self._mapped.pop(key)
            self._unmap(slot)
            slot.answer(responses, slot.status)
        return None

    def _lend(self, chain: Chain, data: bytes, keys: list[int]) -> Frame | None:
        lease = Lease(self, keys)
        frame = self._ring.frame(data, chain.flags, chain.told, chain.slot)
        if frame is None:
            lease.drop()
        else:
            frame.lease = lease
        return frame

    def _map(self, slot: Mapped, ref: int) -> bool:
        slot.pfn = self._domain.holes.alloc()
        try:
            domid = self._ring.vif.frontend_domid
            slot.handle = self._domain.gnttab.map(domid, ref, slot.pfn, readonly=True)
        except GrantError:
            self._domain.holes.free(slot.pfn)
            return False
        self._mapped[self._next] = slot
        self._next += 1
        return True

    def _unmap(self, slot: Mapped) -> None:
        self._domain.gnttab.unmap(slot.handle, slot.pfn)
        self._domain.holes.free(slot.pfn)

    def returned(self, lease: Lease) -> None:
        """Nobody has that packet any more."""
        self._due += [number for number in lease.slots if number in self._mapped]
        if self._due:
            self._task.wake()

    def _dealloc(self) -> None:
        """Unmap and answer what is due, also of a vif that is disabled."""
        due, self._due = self._due, []
        choose = self._domain.loop.chooser.choose
        responses: list[int] = []
        while due:
            at = choose(len(due)) if self._shuffled and len(due) > 1 else 0
            slot = self._mapped.pop(due.pop(at))
            self._unmap(slot)
            slot.answer(responses, OKAY)
        try:
            self._ring.answer(responses)
        except (PeerProtocolError, HypercallError) as error:
            self._ring.vif.fatal(f"{self._task.name}: {error}")
            return
        self._poll.wake()  # the ring may have been full

    def release(self) -> None:
        """The rings go: so does what is mapped, answered or not."""
        for slot in self._mapped.values():
            self._unmap(slot)
        self._mapped.clear()
        self._due.clear()
        self._domain.forget(self._task)
