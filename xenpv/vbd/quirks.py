"""What XenVbd and XenCrsh get wrong, by name: off unless Parameters.quirks has it.

Each entry says what happens with it and, after "else", what happens without. Reads beyond a
buffer, divisions by zero and stray pointers of the originals have no name: they stay mended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from xenpv.errors import LocalProtocolError

EOPNOTSUPP_SUCCESS: Final = "eopnotsupp-success"
SCSISTATUS_40: Final = "scsistatus-40-on-success"
B0_BYTES: Final = "b0-bytes"
MODE_PAGE_LENGTH: Final = "mode-page-length"
READ_ONLY_CD: Final = "read-only-cd"
REPORT_LUNS_255: Final = "report-luns-255"
READ6_ZERO: Final = "read6-zero"
ZERO_LENGTH_HANG: Final = "zero-length-hang"
UNMAP_UNCHECKED: Final = "unmap-unchecked"
TRIM_TRUNCATES: Final = "trim-truncates"
CRASH_RANGE: Final = "crash-range"
CRASH_STATUS: Final = "crash-status"
CRASH_STALE_FEATURES: Final = "crash-stale-features"
CRASH_READ_ONLY: Final = "crash-read-only"
CRASH_LOST_SRB: Final = "crash-lost-srb"
CRASH_RESET_STATUS: Final = "crash-reset-status"
CRASH_REPORT_LUNS: Final = "crash-report-luns"

QUIRKS: Final[Mapping[str, str]] = {
    EOPNOTSUPP_SUCCESS: (
        "an answer EOPNOTSUPP ends any request as SUCCESS, over an ERROR too; else READ and "
        "WRITE fail, indirect requests are split, a flush becomes a barrier"
    ),
    SCSISTATUS_40: (
        "a success that no answer OKAY made (EOPNOTSUPP, a drained FLUSH or SHUTDOWN) has SCSI "
        "status 40; else 00"
    ),
    B0_BYTES: "VPD page B0 has the unmap granularity and alignment in bytes; else in sectors",
    MODE_PAGE_LENGTH: "mode pages say that 12 bytes follow; else 10, which is how many do",
    READ_ONLY_CD: "a read-only disk's INQUIRY says CD-ROM; else disk",
    REPORT_LUNS_255: "REPORT LUNS names LUN 255; else 0",
    READ6_ZERO: "READ(6) and WRITE(6) of 0 sectors move none; else 256",
    ZERO_LENGTH_HANG: (
        "a READ or WRITE of 0 sectors, or an UNMAP without descriptors, never completes; else "
        "SUCCESS"
    ),
    UNMAP_UNCHECKED: (
        "UNMAP sends every range to the backend, beyond the end and of no length too; else the "
        "first fails it whole, the second is left out"
    ),
    TRIM_TRUNCATES: (
        "a trim of 2^32 sectors or more loses the higher bits of its length; else it becomes "
        "several descriptors"
    ),
    CRASH_RANGE: "the crash driver does not reach the last sector; else it does",
    CRASH_STATUS: "the crash driver takes every answer for OKAY; else an error is one",
    CRASH_STALE_FEATURES: (
        "the crash driver flushes as the backend's keys of the connection before said; else as "
        "those of its own do"
    ),
    CRASH_READ_ONLY: (
        "the crash driver sends writes to a read-only disk, and MODE SENSE does not tell of it; "
        "else they fail at once"
    ),
    CRASH_LOST_SRB: (
        "an SRB for which the crash driver found no page or grant twice never completes; else it "
        "waits on"
    ),
    CRASH_RESET_STATUS: (
        "the crash driver ends RESET_DEVICE as INVALID_REQUEST, although it resets; else SUCCESS"
    ),
    CRASH_REPORT_LUNS: (
        "the crash driver's REPORT LUNS has LUNs 0 and 128, and a transfer length without the "
        "header; else LUN 0 alone"
    ),
}


def check(names: Iterable[str]) -> frozenset[str]:
    """The names as a set. LocalProtocolError: one is not in QUIRKS, which are listed."""
    wanted = list(names)
    unknown = [name for name in wanted if name not in QUIRKS]
    if unknown:
        raise LocalProtocolError(
            f"no quirk {', '.join(map(repr, unknown))}: expected some of {', '.join(QUIRKS)}"
        )
    return frozenset(wanted)
