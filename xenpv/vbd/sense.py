"""Sense data of a disk that has any: an option, XenVbd itself never gives them (SPC-4 4.5).

With it a command that fails ends with CHECK CONDITION and 18 bytes of fixed format, and what
happened to the disk meanwhile is told once as a unit attention.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

import attrs

SENSE_SIZE: Final = 18
CURRENT_FIXED: Final = 0x70
ADDITIONAL_LENGTH: Final = 0x0A  # bytes after the eighth

KEYS: Final[Mapping[int, str]] = {
    0x0: "NO SENSE",
    0x1: "RECOVERED ERROR",
    0x2: "NOT READY",
    0x3: "MEDIUM ERROR",
    0x4: "HARDWARE ERROR",
    0x5: "ILLEGAL REQUEST",
    0x6: "UNIT ATTENTION",
    0x7: "DATA PROTECT",
    0xB: "ABORTED COMMAND",
}


@attrs.frozen
class Code:
    """Sense key, additional sense code and its qualifier, and what they say."""

    key: int
    asc: int
    ascq: int
    text: str


class Sense(enum.Enum):
    """What a disk says with CHECK CONDITION."""

    NO_SENSE = Code(0x0, 0x00, 0x00, "no additional sense information")
    NOT_READY = Code(0x2, 0x04, 0x00, "logical unit not ready")
    READ_ERROR = Code(0x3, 0x11, 0x00, "unrecovered read error")
    WRITE_ERROR = Code(0x3, 0x0C, 0x00, "write error")
    PARAMETER_LIST_LENGTH = Code(0x5, 0x1A, 0x00, "parameter list length error")
    INVALID_OPCODE = Code(0x5, 0x20, 0x00, "invalid command operation code")
    LBA_OUT_OF_RANGE = Code(0x5, 0x21, 0x00, "logical block address out of range")
    INVALID_FIELD_IN_CDB = Code(0x5, 0x24, 0x00, "invalid field in CDB")
    LUN_NOT_SUPPORTED = Code(0x5, 0x25, 0x00, "logical unit not supported")
    INVALID_FIELD_IN_PARAMETERS = Code(0x5, 0x26, 0x00, "invalid field in parameter list")
    RESET = Code(0x6, 0x29, 0x00, "power on, reset, or bus device reset occurred")
    CAPACITY_CHANGED = Code(0x6, 0x2A, 0x09, "capacity data has changed")
    WRITE_PROTECTED = Code(0x7, 0x27, 0x00, "write protected")

    @property
    def data(self) -> bytes:
        """18 bytes, fixed format, of the current command."""
        code = self.value
        head = bytes((CURRENT_FIXED, 0, code.key, 0, 0, 0, 0, ADDITIONAL_LENGTH))
        return head + bytes((0, 0, 0, 0, code.asc, code.ascq, 0, 0, 0, 0))


def describe(data: bytes) -> str:
    """Sense data in words; what was cut off counts as zeros."""
    whole = data.ljust(SENSE_SIZE, b"\0")
    key, asc, ascq = whole[2] & 0x0F, whole[12], whole[13]
    texts = [
        one.value.text
        for one in Sense
        if (one.value.key, one.value.asc, one.value.ascq) == (key, asc, ascq)
    ]
    numbers = f"{key:X}/{asc:02X}/{ascq:02X}"
    return ": ".join([KEYS.get(key, f"sense key {key:X}"), *texts]) + f" ({numbers})"


def attend(attentions: list[Sense], sense: Sense) -> None:
    """A unit attention more for the commands to come; each is told once, the oldest first."""
    if sense not in attentions:
        attentions.append(sense)
