"""Sense data, byte for byte, and in words."""

from __future__ import annotations

import pytest

from xenpv.vbd.sense import Sense, describe
from xenpv.vbd.srb import ScsiStatus, Srb, SrbStatus

BYTES = [
    # what is said, key, additional code, qualifier
    (Sense.INVALID_OPCODE, 0x5, 0x20, 0x00),
    (Sense.INVALID_FIELD_IN_CDB, 0x5, 0x24, 0x00),
    (Sense.LBA_OUT_OF_RANGE, 0x5, 0x21, 0x00),
    (Sense.LUN_NOT_SUPPORTED, 0x5, 0x25, 0x00),
    (Sense.PARAMETER_LIST_LENGTH, 0x5, 0x1A, 0x00),
    (Sense.INVALID_FIELD_IN_PARAMETERS, 0x5, 0x26, 0x00),
    (Sense.WRITE_PROTECTED, 0x7, 0x27, 0x00),
    (Sense.READ_ERROR, 0x3, 0x11, 0x00),
    (Sense.WRITE_ERROR, 0x3, 0x0C, 0x00),
    (Sense.CAPACITY_CHANGED, 0x6, 0x2A, 0x09),
    (Sense.RESET, 0x6, 0x29, 0x00),
    (Sense.NOT_READY, 0x2, 0x04, 0x00),
    (Sense.NO_SENSE, 0x0, 0x00, 0x00),
]


@pytest.mark.parametrize(("sense", "key", "asc", "ascq"), BYTES, ids=lambda one: str(one))
def test_fixed_format(sense: Sense, key: int, asc: int, ascq: int) -> None:
    assert sense.data == bytes.fromhex(
        f"70 00 {key:02x} 00000000 0a 00000000 {asc:02x} {ascq:02x} 00000000"
    )


def test_every_sense_has_a_row() -> None:
    assert {row[0] for row in BYTES} == set(Sense)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("70000300000000 0a 00000000 1100", "MEDIUM ERROR: unrecovered read error (3/11/00)"),
        ("70000600000000 0a 00000000 2a09", "UNIT ATTENTION: capacity data has changed (6/2A/09)"),
        ("700005", "ILLEGAL REQUEST (5/00/00)"),
        ("70000e00000000 0a 00000000 1d00", "sense key E (E/1D/00)"),
        ("", "NO SENSE: no additional sense information (0/00/00)"),
    ],
)
def test_words(data: str, text: str) -> None:
    assert describe(bytes.fromhex(data)) == text


@pytest.mark.parametrize(
    ("length", "info", "raw"),
    [
        (18, "7000070000000 00a00000000270000000000", 0x84),
        (255, "7000070000000 00a00000000270000000000", 0x84),
        (14, "70000700000000 0a 00000000 2700", 0x84),
        (3, "700007", 0x84),
        (0, "", 0x04),
        (-1, "", 0x04),
    ],
)
def test_a_check_condition_fills_what_there_is_room_for(length: int, info: str, raw: int) -> None:
    srb = Srb(sense_info_length=length)
    srb.check_condition(Sense.WRITE_PROTECTED)
    assert srb.sense_info == bytes.fromhex(info.replace(" ", ""))
    assert (srb.srb_status, srb.scsi_status) == (SrbStatus.ERROR, ScsiStatus.CHECK_CONDITION)
    assert srb.raw_status == raw


OK, ERROR, ABORTED = SrbStatus.SUCCESS, SrbStatus.ERROR, SrbStatus.ABORTED
BUSY = SrbStatus.BUSY
ENDS = [
    # how its parts end; SRB status, SCSI status; raw and SCSI status with sense data
    ([OK], 0x01, 0x00, 0x01, 0x00),
    ([OK, OK], 0x01, 0x00, 0x01, 0x00),
    ([ERROR], 0x04, 0x40, 0x84, 0x02),
    ([ERROR, OK], 0x04, 0x40, 0x84, 0x02),
    ([OK, ERROR, OK], 0x04, 0x40, 0x84, 0x02),
    ([BUSY], 0x05, 0x40, 0x05, 0x40),
    ([OK, BUSY], 0x05, 0x40, 0x05, 0x40),
    ([BUSY, ERROR], 0x04, 0x40, 0x84, 0x02),
    ([ERROR, BUSY], 0x04, 0x40, 0x84, 0x02),
    ([ABORTED], 0x04, 0x40, 0x04, 0x40),
    ([OK, ABORTED], 0x04, 0x40, 0x04, 0x40),
    ([ERROR, ABORTED], 0x04, 0x40, 0x84, 0x02),
]


@pytest.mark.parametrize(("parts", "srb_status", "scsi_status", "raw", "checked"), ENDS)
def test_how_an_srb_of_parts_ends(
    parts: list[SrbStatus], srb_status: int, scsi_status: int, raw: int, checked: int
) -> None:
    srb = Srb(outstanding=len(parts))
    sensing = Srb(outstanding=len(parts), on_error=Sense.READ_ERROR)
    for part in parts:
        assert not srb.is_complete
        srb.part_done(part)
        sensing.part_done(part)
    assert (srb.raw_status, srb.scsi_status, srb.sense_info) == (srb_status, scsi_status, b"")
    assert (sensing.raw_status, sensing.scsi_status) == (raw, checked)
