"""What happened, in order: a digest over all of it and a tail to read.

A record is four u64: virtual time in ns, event and domid, and two operands whose meaning
EVENTS gives. Equal seeds give equal digests across processes, hash seeds and versions of
Python; the digest is what `xenpv run` prints and what replays compare.
"""

from __future__ import annotations

import enum
import zlib
from array import array
from hashlib import blake2b
from typing import Final

import attrs

CHUNK_WORDS: Final = 4 * 1024
NOTES_MAX: Final = 10_000


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


# event: how its two operands read
EVENTS: Final[dict[int, str]] = {
    Event.DELIVER: "runs task {a}",
    Event.DRAW: "choice {b} of {a}",
    Event.SEND: "sends on port {a}",
    Event.TIMER: "timer of task {a}",
    Event.PUBLISH: "publishes {b} slots up to index {a}",
    Event.GRANT: "grant operation on ref {a}: {b}",
    Event.STORE: "store request type {a}, payload crc {b:08x}",
    Event.DOMAIN: "domain event {a} ({b})",
    Event.NOTE: "note, crc {a:08x}",
}


@attrs.frozen
class Note:
    """A rare event in words: a device changed state, a domain was created."""

    time_ns: int
    domid: int
    text: str


class Trace:
    """Records of one platform. Nothing here influences the model."""

    __slots__ = ("_digest", "_previous", "_words", "clock", "notes", "records")

    def __init__(self) -> None:
        self._digest = blake2b(digest_size=16)
        self._words = array("Q")
        self._previous = array("Q")
        self.clock = 0  # the loop's virtual time, kept here so that recording costs no call
        self.records = 0
        self.notes: list[Note] = []

    def record(self, event: int, domid: int, a: int, b: int = 0) -> None:
        words = self._words
        words.extend((self.clock, event << 16 | domid, a, b))
        if len(words) >= CHUNK_WORDS:
            self._flush()

    def note(self, domid: int, text: str) -> None:
        if len(self.notes) < NOTES_MAX:
            self.notes.append(Note(self.clock, domid, text))
        self.record(Event.NOTE, domid, zlib.crc32(text.encode()))

    def store_op(
        self, domid: int, op: int, tx_id: int, payload: bytes, error: bytes | None
    ) -> None:
        """One request that xenstored answered (store.server's seam)."""
        crc = zlib.crc32(payload, tx_id)
        self.record(Event.STORE, domid, op, zlib.crc32(error, crc) if error else crc)

    def _flush(self) -> None:
        self._digest.update(_little_endian(self._words))
        self.records += len(self._words) // 4
        self._previous = self._words
        self._words = array("Q")

    def hexdigest(self) -> str:
        """32 hex digits over every record so far."""
        digest = self._digest.copy()
        digest.update(_little_endian(self._words))
        return digest.hexdigest()

    def tail(self, count: int = 20) -> tuple[str, ...]:
        """The last records, oldest first, one line each."""
        words = self._previous + self._words
        start = max(0, len(words) - 4 * count)
        return tuple(_line(*words[at : at + 4]) for at in range(start, len(words), 4))


def _line(time_ns: int, head: int, a: int, b: int) -> str:
    text = EVENTS[head >> 16].format(a=a, b=b)
    return f"{time_ns / 1e9:.9f} d{head & 0xFFFF} {text}"


def _little_endian(words: array[int]) -> bytes:
    import sys

    if sys.byteorder == "big":
        words = words[:]
        words.byteswap()
    return words.tobytes()
