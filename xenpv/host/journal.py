"""What came into a run from outside, with virtual times: enough to do the run once more.

The model is a function of its inputs and its seed. Inputs that are no files (frames that a TAP
brought) enter through here: a recorded run writes each step of the clock and each batch that
came in, in order; a replay reads them and asks nobody outside.

A file is a line of MAGIC, a line of JSON (`Setup`), and records: u8 kind, u16 TAP, u32 length,
little-endian, and so many bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from io import RawIOBase
from typing import Any, BinaryIO, Final, NamedTuple

import attrs

from xenpv.errors import ConfigError

MAGIC: Final = b"xenpv journal 1\n"
SETUP_MAX: Final = 1 << 20  # bytes of the line
RECORD_MAX: Final = 64 << 20
TAPS_MAX: Final = 256

_RECORD: Final = struct.Struct("<BHI")
_TIME: Final = struct.Struct("<Q")
_FRAME: Final = struct.Struct("<I")
_STEP = 1
_ARRIVED = 2
_END = 3


@attrs.frozen
class JournalTap:
    """A TAP of the run: `where` is `BRIDGE` or `GUEST.N`; `headed`: its frames have a header."""

    where: str
    to_guest: bool
    name: str
    headed: bool


@attrs.frozen
class Setup:
    """What a replay must begin with, beside the configurations."""

    seed: int
    taps: tuple[JournalTap, ...]


class Step(NamedTuple):
    """Virtual time went on to `until_ns`."""

    until_ns: int


class Arrived(NamedTuple):
    """Frames that one read of a TAP gave, with their headers."""

    tap: int
    frames: tuple[bytes, ...]


class End(NamedTuple):
    """The digest of the whole run, 32 hex digits."""

    digest: str


Record = Step | Arrived | End


class JournalWriter:
    """Writes to `file`, unbuffered so that a killed run leaves all; it is the caller's to close.

    Raises ConfigError where the file takes no more; `name` is what that calls it.
    """

    def __init__(self, file: BinaryIO | RawIOBase, setup: Setup, name: str = "") -> None:
        self._file = file
        self._name = name
        document = {"seed": setup.seed, "taps": [attrs.asdict(tap) for tap in setup.taps]}
        self._write(MAGIC + json.dumps(document).encode() + b"\n")

    def step(self, until_ns: int) -> None:
        self._record(_STEP, 0, _TIME.pack(until_ns))

    def arrived(self, tap: int, frames: Sequence[bytes]) -> None:
        parts = [part for frame in frames for part in (_FRAME.pack(len(frame)), frame)]
        self._record(_ARRIVED, tap, b"".join(parts))

    def end(self, digest: str) -> None:
        self._record(_END, 0, digest.encode())

    def _record(self, kind: int, tap: int, payload: bytes) -> None:
        self._write(_RECORD.pack(kind, tap, len(payload)) + payload)

    def _write(self, data: bytes) -> None:
        try:
            if self._file.write(data) == len(data):
                return
            why = "only a part was written"
        except OSError as error:
            why = error.strerror or str(error)
        raise ConfigError(f"cannot write the journal: {why}", file=self._name)


class JournalReader:
    """Reads `file`; `name` is what errors call it. Raises ConfigError for what is no journal."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        if file.read(len(MAGIC)) != MAGIC:
            raise self._error("it is no journal of this version: expected 'xenpv journal 1'")
        line = file.readline(SETUP_MAX)
        try:
            self.setup = _setup(json.loads(line))
        except (ValueError, TypeError, KeyError, RecursionError):
            raise self._error("its second line does not say the seed and the TAPs") from None

    def records(self) -> Iterator[Record]:
        """In order. A journal that was cut short ends with its last whole record."""
        now = 0
        while True:
            head = self._file.read(_RECORD.size)
            if len(head) < _RECORD.size:
                return
            kind, tap, length = _RECORD.unpack(head)
            if length > RECORD_MAX:
                raise self._error(f"a record of {length} bytes, at most {RECORD_MAX} are possible")
            payload = self._file.read(length)
            if len(payload) < length:
                return
            record = self._parse(kind, tap, payload)
            if isinstance(record, Step):
                if record.until_ns < now:
                    raise self._error(f"time goes back from {now} to {record.until_ns} ns")
                now = record.until_ns
            yield record
            if isinstance(record, End):
                return

    def _parse(self, kind: int, tap: int, payload: bytes) -> Record:
        if kind == _STEP and len(payload) == _TIME.size:
            return Step(*_TIME.unpack(payload))
        if kind == _ARRIVED and tap < len(self.setup.taps):
            frames = _frames(payload)
            if frames is not None:
                return Arrived(tap, frames)
        if kind == _END and len(payload) == 32 and payload.isalnum():
            return End(payload.decode("ascii"))
        raise self._error(f"a record that makes no sense: kind {kind}, TAP {tap}")

    def _error(self, message: str) -> ConfigError:
        return ConfigError(message, file=self._name)


def _setup(document: Any) -> Setup:
    """Raises what a document of another shape raises: ValueError, TypeError, KeyError."""
    seed, taps = document["seed"], document["taps"]
    if not isinstance(seed, int) or not 0 <= seed < 1 << 64 or not isinstance(taps, list):
        raise TypeError
    if len(taps) > TAPS_MAX:
        raise ValueError
    found = tuple(JournalTap(**tap) for tap in taps)
    for tap in found:
        shown = isinstance(tap.where, str) and isinstance(tap.name, str)
        if not shown or not isinstance(tap.to_guest, bool) or not isinstance(tap.headed, bool):
            raise TypeError
    return Setup(seed, found)


def _frames(payload: bytes) -> tuple[bytes, ...] | None:
    """None where the lengths do not add up."""
    frames = []
    at = 0
    while at < len(payload):
        if at + _FRAME.size > len(payload):
            return None
        (length,) = _FRAME.unpack_from(payload, at)
        at += _FRAME.size
        if at + length > len(payload):
            return None
        frames.append(payload[at : at + length])
        at += length
    return tuple(frames)
