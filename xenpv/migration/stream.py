"""The stream that a domain travels in, to a file or to another host: a chain of records.

Every record has a header of 16 bytes, all little-endian:

    u32 type, u32 length of the body, u32 CRC-32 of the header, u32 CRC-32 of the body

then the body, and zero bytes up to a multiple of 8. The header's CRC is over type, length and
the record's number in the stream (u32, from 0), so that a record that was lost, repeated or
moved shows. The body's CRC is over the padding too. A type with bit 31 set is OPTIONAL: a reader
that does not know it passes it over; any other unknown type ends the reading. The last record is
END. Types and shapes are those of Xen's libxc stream (docs/specs/libxc-migration-stream.pandoc)
where it has them; what it has no need of is from 0x100 on.
"""

from __future__ import annotations

import enum
import json
import zlib
from collections.abc import Callable
from struct import Struct
from typing import Any, Final

import attrs

from xenpv.host.libxl import ToolstackError

ALIGNMENT: Final = 8
OPTIONAL: Final = 1 << 31

HEADER: Final = Struct("<IIII")
CHECKED: Final = Struct("<III")  # type, length, number: what the header's CRC is over

PAGE_SIZE: Final = 4096
BATCH_PAGES: Final = 1024  # MAX_BATCH_SIZE of libxc
CHUNK_BYTES: Final = 1 << 20  # of a disk's contents, in one record
JSON_BYTES_MAX: Final = 1 << 26
RECORDS_MAX: Final = 1 << 32


class RecordType(enum.IntEnum):
    """What the body is: REC_TYPE_* of libxc below 0x100."""

    END = 0x0
    PAGE_DATA = 0x1
    STATIC_DATA_END = 0x11  # what does not change while the domain runs is before it
    CONFIG = 0x100  # JSON: the domain's configuration
    DOMAIN_CONTEXT = 0x101  # JSON: what Xen keeps of the domain beside its memory
    GUEST_CONTEXT = 0x102  # JSON: the kernel's and the drivers' objects
    DISK = 0x103  # JSON: a disk whose contents follow
    DISK_DATA = 0x104  # u64 offset, then bytes; those left out are zero


JSON_TYPES: Final = frozenset(
    {
        RecordType.CONFIG,
        RecordType.DOMAIN_CONTEXT,
        RecordType.GUEST_CONTEXT,
        RecordType.DISK,
    }
)
# Longest body, in bytes, by type; a longer one is refused before it is read.
LENGTH_MAX: Final[dict[int, int]] = {
    RecordType.END: 0,
    RecordType.PAGE_DATA: 8 + BATCH_PAGES * (8 + PAGE_SIZE),
    RecordType.STATIC_DATA_END: 0,
    RecordType.DISK_DATA: 8 + CHUNK_BYTES,
    **dict.fromkeys(JSON_TYPES, JSON_BYTES_MAX),
}
OPTIONAL_BYTES_MAX: Final = JSON_BYTES_MAX


class StreamError(ToolstackError):
    """The stream is not what it has to be; the message says at which record and byte.

    `truncated`: it is right as far as it goes.
    """

    def __init__(self, message: str, *, truncated: bool = False) -> None:
        super().__init__(message)
        self.truncated = truncated


def type_name(number: int) -> str:
    """ "PAGE_DATA", or "type 0x1234"."""
    try:
        return RecordType(number).name
    except ValueError:
        return f"type {number:#x}"


@attrs.frozen
class Record:
    """A record as it was read. `offset` is that of its header, in bytes, `number` its place."""

    type: int
    body: bytes = attrs.field(repr=False)
    number: int = 0
    offset: int = 0

    @property
    def place(self) -> str:
        """For messages."""
        return f"record {self.number} ({type_name(self.type)}) at byte {self.offset}"

    def json(self) -> Any:
        """What a JSON body says. StreamError if it is no JSON."""
        try:
            return json.loads(self.body.decode(), parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise StreamError(f"{self.place}: expected JSON: {error}") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _header_crc(kind: int, length: int, number: int) -> int:
    return zlib.crc32(CHECKED.pack(kind, length, number))


class Writer:
    """Writes records to `sink`, one call of it for each. `written` counts bytes."""

    def __init__(self, sink: Callable[[bytes], object]) -> None:
        self.sink = sink
        self.number = 0
        self.written = 0

    def write(self, kind: int, body: bytes | bytearray | memoryview = b"") -> None:
        """One record. The body is not longer than LENGTH_MAX has it: that is the caller's."""
        length = len(body)
        assert length <= LENGTH_MAX.get(kind, OPTIONAL_BYTES_MAX), type_name(kind)
        padding = bytes(-length % ALIGNMENT)
        head = HEADER.pack(
            kind,
            length,
            _header_crc(kind, length, self.number),
            zlib.crc32(padding, zlib.crc32(body)),
        )
        self.number += 1
        self.written += len(head) + length + len(padding)
        self.sink(b"".join((head, body, padding)))

    def write_json(self, kind: RecordType, value: object) -> None:
        """Equal values give equal bytes. ToolstackError for one that is too long to save."""
        text = json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False)
        body = text.encode()
        if len(body) > JSON_BYTES_MAX:
            size = f"{len(body)} bytes of {kind.name}"
            raise ToolstackError(f"{size}: a record holds at most {JSON_BYTES_MAX}")
        self.write(kind, body)

    def end(self) -> None:
        self.write(RecordType.END)


class Reader:
    """Gives the records of a stream that comes in pieces.

    `offset` is that of the next header, `number` that of the next record; `ended` once END was
    read. `start` is the offset at which the stream begins in what holds it.
    """

    def __init__(self, start: int = 0) -> None:
        self.offset = start
        self.number = 0
        self.ended = False
        self._pieces = bytearray()
        self._head: tuple[int, int, int] | None = None  # type, length, CRC of the body

    @property
    def _next(self) -> str:
        return f"record {self.number} at byte {self.offset}"

    def feed(self, data: bytes | memoryview) -> list[Record]:
        """The records that are whole now. StreamError at the first that is wrong.

        What comes after END is refused too.
        """
        self._pieces += data
        records: list[Record] = []
        at = 0
        while not self.ended and (found := self._take(at)) is not None:
            record, at = found
            records.append(record)
        del self._pieces[:at]
        if self.ended and self._pieces:
            more = f"{len(self._pieces)} bytes follow"
            raise StreamError(f"byte {self.offset}: expected nothing after END, but {more}")
        return records

    def _take(self, at: int) -> tuple[Record, int] | None:
        if self._head is None:
            if len(self._pieces) - at < HEADER.size:
                return None
            self._head = self._check_header(*HEADER.unpack_from(self._pieces, at))
        kind, length, crc = self._head
        stop = at + HEADER.size + length
        padded = stop + -length % ALIGNMENT
        if len(self._pieces) < padded:
            return None
        with memoryview(self._pieces) as view:
            if zlib.crc32(view[at + HEADER.size : padded]) != crc:
                wrong = "its checksum does not fit its body: the stream is corrupted"
                raise StreamError(f"record {self.number} ({type_name(kind)}) at byte "
                                  f"{self.offset}: {wrong}")  # fmt: skip
            body = bytes(view[at + HEADER.size : stop])
        record = Record(kind, body, self.number, self.offset)
        self._head = None
        self.number += 1
        self.offset += padded - at
        self.ended = kind == RecordType.END
        return record, padded

    def _check_header(self, kind: int, length: int, crc: int, body: int) -> tuple[int, int, int]:
        if crc != _header_crc(kind, length, self.number):
            wrong = "its header's checksum is wrong: the stream is corrupted or a record is missing"
            raise StreamError(f"{self._next}: {wrong}")
        if self.number == RECORDS_MAX - 1:
            raise StreamError(f"{self._next}: expected END within {RECORDS_MAX} records")
        most = LENGTH_MAX.get(kind)
        if most is None:
            if not kind & OPTIONAL:
                wrong = f"{type_name(kind)} is not known here: a newer version wrote it"
                raise StreamError(f"{self._next}: {wrong}")
            most = OPTIONAL_BYTES_MAX
        if length > most:
            wrong = f"{type_name(kind)} has at most {most} bytes, this one {length}"
            raise StreamError(f"{self._next}: {wrong}")
        return kind, length, body

    def finish(self) -> None:
        """No more will come. StreamError (truncated) unless END was read."""
        if not self.ended:
            has = self.offset + len(self._pieces)
            wrong = f"the stream ends at byte {has}, before END: it is truncated"
            raise StreamError(f"{self._next}: {wrong}", truncated=True)


__all__ = [
    "BATCH_PAGES",
    "CHUNK_BYTES",
    "PAGE_SIZE",
    "Reader",
    "Record",
    "RecordType",
    "StreamError",
    "Writer",
]
