"""What happened, in order: a digest over all of it and a tail to read.

A record is one u64: machine in bits 63-60, event in 59-56, domid in 55-40, and 40 bits of
operands that EVENTS says how to split; a TIMER is followed by a second word, the new virtual
time. Machines that share a loop share its trace; the first is number 0. Equal seeds give equal
digests across processes, hash seeds and versions of Python; the digest is what `xenpv run`
prints and what replays compare.
"""

from __future__ import annotations

import enum
import sys
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

import attrs

if TYPE_CHECKING:
    from hashlib import blake2b

CHUNK_WORDS: Final = 4096
NOTES_MAX: Final = 10_000

MACHINE_SHIFT: Final = 60
MACHINES_MAX: Final = 16
EVENT_SHIFT: Final = 56
DOMID_SHIFT: Final = 40
OPERAND_MASK: Final = (1 << DOMID_SHIFT) - 1

# Typecode of a u64. "L" where it is one: three times as fast from a list as "Q".
U64: Final = "L" if array("L").itemsize == 8 else "Q"


class Event(enum.IntEnum):
    DELIVER = 1
    DRAW = 2
    SEND = 3
    TIMER = 4
    PUBLISH = 5
    GRANT = 6
    STORE = 7
    DOMAIN = 8
    NOTE = 9
    OUTSIDE = 10


# event: (bits of its second operand, how it reads)
EVENTS: Final[dict[int, tuple[int, str]]] = {
    Event.DELIVER: (0, "runs task {a}"),
    Event.DRAW: (20, "choice {b} of {a}"),
    Event.SEND: (0, "sends on port {a}"),
    Event.TIMER: (0, "timer of task {a}"),
    Event.PUBLISH: (16, "publishes {b} slots of the ring at pfn {a:#x}"),
    Event.GRANT: (32, "grant operation {a} on ref {b}"),
    Event.STORE: (32, "store request type {a}, crc {b:08x}"),
    Event.DOMAIN: (8, "domain event {a} ({b})"),
    Event.NOTE: (0, "note, crc {a:08x}"),
    Event.OUTSIDE: (32, "input {a} from outside, crc {b:08x}"),
}


def mark(event: int, domid: int, a: int = 0) -> int:
    """A record whose second operand is 0: hot paths OR it in and append the record."""
    operand = a << EVENTS[event][0] & OPERAND_MASK
    return event << EVENT_SHIFT | domid << DOMID_SHIFT | operand


@attrs.frozen
class Note:
    """A rare event in words: a device changed state, a domain was created."""

    time_ns: int
    domid: int
    text: str
    machine: int = 0


_STORE: Final = mark(Event.STORE, 0)
_TIMER_FOR_DELIVER: Final = Event.TIMER - Event.DELIVER << EVENT_SHIFT


class Trace:
    """Records of one loop. Nothing here influences the model.

    `words` are the records since the last flush; the list stays the same object, so a hot
    path may keep its `append`. The loop flushes.
    """

    __slots__ = ("_digest", "_flushed", "_previous", "clock", "notes", "words")

    # Who keeps more than this does, and is shown each platform of the loop (xenpv.view.tape).
    recorder: Any = None

    def __init__(self, words: list[int] | None = None) -> None:
        self._digest: blake2b | None = None
        self._flushed = 0
        self._previous = array(U64)
        self.words: list[int] = [] if words is None else words
        self.clock = 0  # the loop's virtual time, here so that reading it costs no call
        self.notes: list[Note] = []

    def record(self, event: int, domid: int, a: int, b: int = 0) -> None:
        bits = EVENTS[event][0]
        operand = (a << bits | b & ((1 << bits) - 1)) & OPERAND_MASK
        self.words.append(event << EVENT_SHIFT | domid << DOMID_SHIFT | operand)

    def mark(self, event: int, domid: int, a: int = 0) -> int:
        """As `mark`, of this machine."""
        return mark(event, domid, a)

    def timer(self, delivery: int, now: int) -> None:
        """Time jumped to `now` for a timer of the task with that record."""
        self.clock = now
        self.words.extend((delivery + _TIMER_FOR_DELIVER, now))

    def note(self, domid: int, text: str) -> None:
        if len(self.notes) < NOTES_MAX:
            self.notes.append(Note(self.clock, domid, text))
        self.record(Event.NOTE, domid, crc32(text.encode()))

    def store_op(
        self, domid: int, op: int, tx_id: int, payload: bytes, error: bytes | None
    ) -> None:
        """One request that xenstored answered (store.server's seam)."""
        crc = crc32(payload, tx_id)
        if error is not None:
            crc = crc32(error, crc)
        self.words.append(_STORE | domid << DOMID_SHIFT | (op & 0xFF) << 32 | crc)

    def of_machine(self, machine: int) -> Trace:
        """What a machine that is not the loop's first writes to."""
        return MachineTrace(self, machine)

    def flush(self) -> None:
        """Hash what is in `words`; called between tasks, when they are many."""
        chunk = array(U64, self.words)
        self._hash().update(_little_endian(chunk))
        self._flushed += len(chunk)
        self._previous = chunk
        self.words.clear()

    def _hash(self) -> blake2b:
        if self._digest is None:
            from hashlib import blake2b

            self._digest = blake2b(digest_size=16)
        return self._digest

    def hexdigest(self) -> str:
        """32 hex digits over every record so far."""
        digest = self._hash().copy()
        digest.update(_little_endian(array(U64, self.words)))
        return digest.hexdigest()

    def tail(self, count: int = 20) -> tuple[str, ...]:
        """The last records, oldest first, one line each."""
        return tuple(_lines([*self._previous, *self.words])[-count:])


class MachineTrace(Trace):
    """The trace of a loop as its second machine writes it, or a later one: marked records."""

    __slots__ = ("_bits", "machine", "whole")

    def __init__(self, whole: Trace, machine: int) -> None:
        self.whole = whole
        self.machine = machine
        self._bits = machine << MACHINE_SHIFT
        self.words = whole.words
        self.notes = whole.notes

    @property
    def clock(self) -> int:  # type: ignore[override]  # the loop writes that of the whole
        return self.whole.clock

    def mark(self, event: int, domid: int, a: int = 0) -> int:
        return self._bits | mark(event, domid, a)

    def record(self, event: int, domid: int, a: int, b: int = 0) -> None:
        bits = EVENTS[event][0]
        operand = (a << bits | b & ((1 << bits) - 1)) & OPERAND_MASK
        self.words.append(self._bits | event << EVENT_SHIFT | domid << DOMID_SHIFT | operand)

    def note(self, domid: int, text: str) -> None:
        if len(self.notes) < NOTES_MAX:
            self.notes.append(Note(self.clock, domid, text, self.machine))
        self.record(Event.NOTE, domid, crc32(text.encode()))

    def store_op(
        self, domid: int, op: int, tx_id: int, payload: bytes, error: bytes | None
    ) -> None:
        crc = crc32(payload, tx_id)
        if error is not None:
            crc = crc32(error, crc)
        self.words.append(self._bits | _STORE | domid << DOMID_SHIFT | (op & 0xFF) << 32 | crc)

    def flush(self) -> None:
        self.whole.flush()

    def hexdigest(self) -> str:
        return self.whole.hexdigest()

    def tail(self, count: int = 20) -> tuple[str, ...]:
        return self.whole.tail(count)


def of_machine(trace: Trace, machine: int) -> Trace:
    """What a machine writes to: the trace itself, unless it is not the loop's first."""
    return trace.of_machine(machine) if machine else trace


def _lines(words: Sequence[int]) -> list[str]:
    lines = []
    at = 0
    while at < len(words):
        word = words[at]
        event = word >> EVENT_SHIFT & 0xF
        machine = word >> MACHINE_SHIFT
        bits, text = EVENTS[event]
        operand = word & OPERAND_MASK
        line = text.format(a=operand >> bits, b=operand & ((1 << bits) - 1))
        at += 1
        if event == Event.TIMER:
            line += f" at {words[at] / 1e9:.9f} s"
            at += 1
        where = f"m{machine} " if machine else ""
        lines.append(f"{where}d{word >> DOMID_SHIFT & 0xFFFF} {line}")
    return lines


def _little_endian(words: array[int]) -> bytes:
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()
