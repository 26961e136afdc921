"""The bytes of a message: header, strings in a payload, error names (io/xs_wire.h)."""

from __future__ import annotations

import re
import struct
from typing import Final

from xenpv.abi._kernel import lib
from xenpv.abi.layout import packer
from xenpv.errors import StoreError

# type, req_id, tx_id, and the length of the payload, at most PAYLOAD_MAX
HEADER: Final[struct.Struct] = packer("xsd_sockmsg")
PAYLOAD_MAX: Final[int] = lib.XENSTORE_PAYLOAD_MAX

OK: Final = b"OK\0"

# xsd_errors of io/xs_wire.h: what an ERROR can name. Anything else is sent as EINVAL.
ERRORS: Final[dict[str, bytes]] = {
    name: name.encode() + b"\0"
    for name in (
        "EINVAL",
        "EACCES",
        "EEXIST",
        "EISDIR",
        "ENOENT",
        "ENOMEM",
        "ENOSPC",
        "EIO",
        "ENOTEMPTY",
        "ENOSYS",
        "EROFS",
        "EBUSY",
        "EAGAIN",
        "EISCONN",
        "E2BIG",
        "EPERM",
        "EQUOTA",  # oxenstored's; libxenstore reads it as EINVAL
    )
}

_LONG_MAX: Final = (1 << 63) - 1
_INTEGER: Final = re.compile(rb"[ \t\n\v\f\r]*([+-]?\d+)")


def error_payload(name: str) -> bytes:
    return ERRORS.get(name) or ERRORS["EINVAL"]


def strings(payload: bytes) -> list[bytes]:
    """The NUL-terminated strings of a payload; bytes after the last NUL are ignored."""
    return payload.split(b"\0")[:-1]


def one_string(payload: bytes) -> bytes:
    """The payload's only string: one NUL, at the end. Raises StoreError EINVAL."""
    if payload.find(b"\0") != len(payload) - 1 or not payload:
        raise StoreError("EINVAL", "not one NUL-terminated string")
    return payload[:-1]


def atoi(text: bytes) -> int:
    """As glibc's atoi reads it: blanks, a sign, digits; a clamped long cut to 32 bits."""
    number = _INTEGER.match(text)
    if number is None:
        return 0
    value = max(-_LONG_MAX - 1, min(int(number[1]), _LONG_MAX))
    return ((value & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
