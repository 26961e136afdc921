"""The file that `save` writes: a head, the configuration as JSON, then a stream of records.

All numbers are little-endian. The head is

    0   magic, 32 bytes; its line feed, NUL and carriage return do not survive a copy as text
    32  u32 0x01020304, by which the order of bytes is known
    36  u32 version of this format, 1
    40  u32 mandatory flags: 1 the JSON is there, 2 the stream is; a reader has to know each
    44  u32 optional flags: none yet; a reader passes over those that it does not know
    48  u32 length of the JSON in bytes
    52  u32 CRC-32 of bytes 32 to 51, the JSON and its padding
    56  the JSON: {"xenpv": version, "domid": number, "config": ...}, zeros up to a multiple of 8

and the stream (xenpv.migration.stream) follows at once, with records in the order of PHASES.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from io import BufferedReader
from pathlib import Path
from struct import Struct
from typing import Any, Final

import attrs

from xenpv.errors import ConfigError, XenpvError
from xenpv.host.domainconfig import DomainConfig
from xenpv.migration.config import config_from, config_json
from xenpv.migration.stream import ALIGNMENT, Reader, Record, RecordType, StreamError, type_name

MAGIC: Final = b"Saved domain in xenpv format\n\0\r\n"
XL_MAGIC: Final = b"Xen saved domain, xl format\n \0 \r"  # xl_cmdimpl.c savefileheader_magic
BYTE_ORDER: Final = 0x01020304
VERSION: Final = 1
JSON_FLAG: Final = 1
STREAM_FLAG: Final = 2
FLAGS: Final = JSON_FLAG | STREAM_FLAG

NUMBERS: Final = Struct("<IIIII")  # byte order, version, both flags, length
CRC: Final = Struct("<I")
NUMBERS_AT: Final = len(MAGIC)
CRC_AT: Final = NUMBERS_AT + NUMBERS.size
JSON_AT: Final = CRC_AT + CRC.size
JSON_BYTES_MAX: Final = 1 << 20
READ_BYTES: Final = 1 << 20

# What may come in which phase, and the phase after it; START begins, DONE is the end.
START, DONE = "start", "done"
PHASES: Final[dict[str, dict[int, str]]] = {
    START: {RecordType.STATIC_DATA_END: "domain"},
    "domain": {RecordType.DOMAIN_CONTEXT: "memory"},
    "memory": {RecordType.PAGE_DATA: "memory", RecordType.GUEST_CONTEXT: "disks"},
    "disks": {RecordType.DISK: "contents", RecordType.END: DONE},
    "contents": {
        RecordType.DISK_DATA: "contents",
        RecordType.DISK: "contents",
        RecordType.END: DONE,
    },
}


def this_version() -> str:
    """Of xenpv, for people: what a file needs is in its flags and its format's version."""
    try:
        return version("xenpv")
    except PackageNotFoundError:
        return ""


def write_head(sink: Callable[[bytes], object], config: DomainConfig, domid: int) -> None:
    """Everything before the stream, in one call of `sink`."""
    saved = {"xenpv": this_version(), "domid": domid, "config": config_json(config)}
    text = json.dumps(saved, separators=(",", ":"), sort_keys=True).encode()
    numbers = NUMBERS.pack(BYTE_ORDER, VERSION, FLAGS, 0, len(text))
    padded = text + bytes(-len(text) % ALIGNMENT)
    sink(MAGIC + numbers + CRC.pack(zlib.crc32(padded, zlib.crc32(numbers))) + padded)


@attrs.frozen
class SaveFile:
    """A save file whose head is in order. `stream_at` is where its stream begins, in bytes."""

    path: str
    config: DomainConfig
    domid: int
    version: str
    stream_at: int

    def records(self) -> Iterator[Record]:
        """The records in their order, each of them checked. ConfigError where that ends."""
        reader = Reader(self.stream_at)
        phase = START
        try:
            with _open(self.path) as file:
                file.seek(self.stream_at)
                while data := file.read(READ_BYTES):
                    for record in reader.feed(data):
                        phase = next_phase(phase, record)
                        yield record
            reader.finish()
        except OSError as error:
            raise self.error(f"byte {reader.offset}: cannot be read: {error.strerror}") from None
        except StreamError as error:
            raise self.error(str(error)) from None

    def error(self, message: str) -> ConfigError:
        return ConfigError(message, file=self.path)


def next_phase(phase: str, record: Record) -> str:
    """The phase after a record. StreamError where it cannot be in this one."""
    after = PHASES[phase].get(record.type)
    if after is None:
        expected = " or ".join(type_name(kind) for kind in PHASES[phase])
        raise StreamError(f"{record.place}: expected {expected}")
    return after


def _open(path: str) -> BufferedReader:
    return Path(path).open("rb")


def open_file(path: str | Path) -> SaveFile:
    """Read the head of a file. ConfigError says where it is not what it has to be."""
    name = str(path)
    try:
        if Path(path).is_dir():
            raise ConfigError("is a directory: expected a file that was saved", file=name)
        with _open(name) as file:
            head = file.read(JSON_AT)
            length = _check_numbers(head, name)
            rest = file.read(length + -length % ALIGNMENT)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=name) from None
    if len(rest) < length + -length % ALIGNMENT:
        raise _truncated(name, JSON_AT + len(rest), JSON_AT + length + -length % ALIGNMENT)
    (crc,) = CRC.unpack_from(head, CRC_AT)
    if zlib.crc32(rest, zlib.crc32(head[NUMBERS_AT:CRC_AT])) != crc:
        text = f"byte {CRC_AT}: the head's checksum does not fit: the file is corrupted"
        raise ConfigError(text, file=name)
    return _from_json(rest[:length], name, JSON_AT + len(rest))


def _check_numbers(head: bytes, name: str) -> int:
    """The length of the JSON."""

    def error(at: int, text: str) -> ConfigError:
        return ConfigError(f"byte {at}: {text}", file=name)

    start = head[: len(MAGIC)]
    if not head:
        raise ConfigError("is empty: expected a file that was saved", file=name)
    if start == XL_MAGIC:
        raise error(0, "this is one of Xen's own, of xl: expected a file that xenpv saved")
    if not MAGIC.startswith(start):
        if start.startswith(MAGIC[:28]):
            raise error(28, "its line ends were changed, as by a copy in text mode")
        raise error(0, f"expected {MAGIC[:28].decode()!r}: this is no saved domain, or corrupted")
    if len(head) < JSON_AT:
        raise _truncated(name, len(head), JSON_AT)
    order, file_version, mandatory, _, length = NUMBERS.unpack_from(head, NUMBERS_AT)
    if order != BYTE_ORDER:
        swapped = order == int.from_bytes(BYTE_ORDER.to_bytes(4, "little"), "big")
        what = "written in big-endian order" if swapped else f"byte order mark {order:#x}"
        raise error(32, f"{what}: expected little-endian, {BYTE_ORDER:#x}")
    if file_version != VERSION:
        newer = ": a newer xenpv wrote it" if file_version > VERSION else ""
        raise error(36, f"format {file_version}{newer}: expected {VERSION}")
    if mandatory & ~FLAGS:
        unknown = f"mandatory flags {mandatory & ~FLAGS:#x} are not known here"
        raise error(40, f"{unknown}: a newer xenpv wrote it, expected {FLAGS:#x}")
    if mandatory != FLAGS:
        raise error(40, f"mandatory flags {mandatory:#x}: expected {FLAGS:#x}")
    if length > JSON_BYTES_MAX:
        raise error(48, f"{length} bytes of configuration: expected at most {JSON_BYTES_MAX}")
    return int(length)


def _truncated(name: str, has: int, expected: int) -> ConfigError:
    return ConfigError(
        f"byte {has}: truncated there: expected {expected} bytes at least", file=name
    )


def _from_json(text: bytes, name: str, stream_at: int) -> SaveFile:
    try:
        saved: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"byte {JSON_AT}: expected JSON: {error}", file=name) from None
    if not isinstance(saved, dict):
        raise ConfigError(f"byte {JSON_AT}: expected an object", file=name)
    domid, by = saved.get("domid"), saved.get("xenpv")
    if type(domid) is not int or type(by) is not str:
        raise ConfigError(f"byte {JSON_AT}: expected domid and xenpv in the JSON", file=name)
    try:
        config = config_from(saved.get("config"))
    except ConfigError as error:
        raise ConfigError(f"byte {JSON_AT}: {error.message}", file=name) from None
    except XenpvError as error:
        raise ConfigError(f"byte {JSON_AT}: {error}", file=name) from None
    return SaveFile(name, config, domid, by, stream_at)
