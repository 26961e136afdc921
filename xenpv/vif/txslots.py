"""Which packet each slot of a tx ring belongs to, from its post to its response.

The kernel fills slots and reads responses; ids, pages and packets in flight are in a table that
is ours, so that a guest can be saved. A completion is callbacks.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Any, Final

import attrs

from xenpv.abi._kernel import ffi, lib
from xenpv.bus.ring import FrontRing
from xenpv.vif.callbacks import Completion

IDS: Final[int] = lib.FRONT_IDS
TABLE: Final = "struct net_front_table"
COMPLETION: Final = Struct("<6q")
assert COMPLETION.size == ffi.sizeof("struct net_completion")
assert lib.FRONT_LENGTH_BITS == 10  # parse.py's LENGTH_BITS

GRANT: Final[int] = lib.GTF_permit_access | lib.GTF_readonly

WRONG: Final = {
    lib.FRONT_NULL: "more tx responses are NULL than there are extras",
    lib.FRONT_ID: "tx response {number}, status {status}, answers no slot",
    lib.FRONT_STATUS: "tx slot {number} answered with status {status}",
}

# Looked up once: each is called for every batch.
net_front_send: Final = lib.net_front_send
net_front_publish: Final = lib.net_front_publish
net_front_answer: Final = lib.net_front_answer


@attrs.frozen(kw_only=True)
class Form:
    """How frames without offloads are laid out. Lengths in bytes."""

    pad_to: int
    reserve: int  # slots that stay free
    headers: bool  # they have a slot of their own
    linear: bool  # a packet is one slot


class SlotTable:
    """The slots of `ring`, whose pages are granted to `domid`, read-only."""

    __slots__ = ("_bytes", "_completions", "_domid", "_form", "_front", "_out", "ring", "table")

    def __init__(self, ring: FrontRing, domid: int, form: Form) -> None:
        self.ring = ring
        self._domid = domid
        self._form = form
        self._bytes = bytearray(ffi.sizeof(TABLE))
        self._attach()

    def _attach(self) -> None:
        form = self._form
        self.table: Any = ffi.cast(f"{TABLE} *", ffi.from_buffer(self._bytes))
        self._front: Any = ffi.new(
            "struct net_front *",
            {
                "ring": self.ring.handle,
                "table": self.table,
                "domid": self._domid,
                "grant_flags": GRANT,
                "pad_to": form.pad_to,
                "reserve": form.reserve,
                "headers": form.headers,
                "linear": form.linear,
            },
        )
        self._completions = bytearray()
        self._out: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing is pending between two calls, and the rest is bound again."""
        return {name: getattr(self, name) for name in ("ring", "_domid", "_form", "_bytes")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self._attach()

    @property
    def in_flight(self) -> int:
        """Slots that the backend has not answered, extras apart."""
        return int(self.table.in_flight)

    @property
    def nulls(self) -> int:
        """Extras in flight: each is answered NULL."""
        return int(self.table.nulls)

    @property
    def free(self) -> int:
        """Pages that a slot may have."""
        return int(self.table.nr_free)

    @property
    def room(self) -> int:
        """Slots of the ring that may be filled."""
        return self.ring.free - int(self._front.pending)

    @property
    def pending(self) -> int:
        """Slots that are filled and not published."""
        return int(self._front.pending)

    def add(self, numbers: Sequence[int], pfns: Sequence[int], refs: Sequence[int]) -> None:
        """More pages, the lowest number of them to be used first, after those that are free."""
        table = self.table
        count = int(table.nr_free)
        free = [*reversed(numbers), *table.free[0:count]]
        table.free[0 : len(free)] = free
        table.nr_free = len(free)
        for number in numbers:
            table.pfns[number] = pfns[number]
            table.refs[number] = refs[number]

    def send(self, frames: Sequence[bytes], cookies: Sequence[int], most: int) -> tuple[int, int]:
        """Fill about `most` slots: frames taken, and why it stopped (FRONT_*) before the end."""
        data = b"".join(frames)
        front = self._front
        taken = net_front_send(
            front, data, len(data), list(map(len, frames)), cookies, len(frames), most
        )
        if taken < 0:
            self.ring.domain.fail(taken, "tx slots")
        return taken, front.stopped

    def chain(
        self,
        data: bytes,
        pieces: Sequence[tuple[int, int]],
        flags: int,
        extras: bytes,
        packet: tuple[int, int, int, int],
    ) -> None:
        """A packet's slots: offset and length of each piece in its page, extras as whole slots.

        `packet`: cookie, PacketType (0: nobody hears of it), length, headers_of.
        """
        cookie, kind, length, code = packet
        flat = [number for piece in pieces for number in piece]
        done = lib.net_front_chain(
            self._front, data, len(data), flat, len(pieces), flags, extras, len(extras) // 12,
            ffi.new("struct net_sent *", {"cookie": cookie, "kind": kind, "length": length,
                                          "code": code}),
        )  # fmt: skip
        if done < 0:
            self.ring.domain.fail(done, "tx slots")

    def own(self, number: int, extra: bytes) -> None:
        """A request without data, and the extra behind it."""
        done = lib.net_front_own(self._front, number, extra)
        if done < 0:
            self.ring.domain.fail(done, "tx slots")

    def publish(self) -> bool:
        """What is pending; True if the backend asked to be notified."""
        count = self._front.pending
        notify = net_front_publish(self._front)
        if notify < 0:
            self.ring.domain.fail(notify, "ring push")
        self.ring.published(count)
        return bool(notify)

    def answer(self, responses: memoryview, count: int) -> Answers:
        """Take responses, in the order of the ring."""
        front = self._front
        if self._out is None:
            self._completions = bytearray(COMPLETION.size * self.ring.size)
            self._out = ffi.from_buffer("struct net_completion[]", self._completions)
        answers = Answers()
        at = 0
        raw = ffi.from_buffer(responses)
        while at < count and not answers.wrong:
            looked = net_front_answer(front, raw + 4 * at, count - at, self._out)
            if looked < 0:
                self.ring.domain.fail(looked, "tx responses")
            at += looked
            done = front.done
            if done:
                view = memoryview(self._completions)[: done * COMPLETION.size]
                answers.complete += COMPLETION.iter_unpack(view)
            answers.answered += front.answered
            if front.own:
                own = front.own
                answers.own.append((own & 0xFFFF, (own >> 16 ^ 0x8000) - 0x8000))
            if front.busy >= 0 and not answers.busy:
                answers.busy = f"tx slot {front.busy} was answered, yet its grant is in use"
            if front.stopped:
                wrong = WRONG[front.stopped]
                answers.wrong = wrong.format(number=front.number, status=front.status)
        return answers

    def abort(self, status: int) -> list[Completion]:
        """Nothing is answered any more: completions of what is in flight."""
        out = ffi.new("struct net_completion[]", IDS)
        done = lib.net_front_abort(self._front, status, out)
        return list(COMPLETION.iter_unpack(ffi.buffer(out, done * COMPLETION.size)))


@attrs.define(eq=False)
class Answers:
    """What responses said. `wrong`, `busy`: why the backend cannot be believed any more."""

    complete: list[Completion] = attrs.field(factory=list)
    own: list[tuple[int, int]] = attrs.field(factory=list)  # id and status
    answered: int = 0  # slots
    wrong: str = ""
    busy: str = ""
