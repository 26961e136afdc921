"""What a guest's class driver gets for each SRB and CDB, in bytes."""

from __future__ import annotations

import pytest

from tests.vbd.conftest import SECTORS, Scene, scene
from xenpv.vbd.srb import ScsiStatus, Srb, SrbFunction, SrbStatus

OK, ERROR, INVALID = SrbStatus.SUCCESS, SrbStatus.ERROR, SrbStatus.INVALID_REQUEST
INQUIRY = "12 00 00 00 ff 00"


def cdb(text: str) -> bytes:
    return bytes.fromhex(text)


@pytest.mark.parametrize(
    ("function", "status"),
    [
        (SrbFunction.SHUTDOWN, OK),
        (SrbFunction.FLUSH, OK),
        (SrbFunction.ABORT_COMMAND, SrbStatus.ABORT_FAILED),
        (SrbFunction.RESET_BUS, OK),
        (SrbFunction.RESET_DEVICE, OK),
        (SrbFunction.PNP, OK),
        (SrbFunction.IO_CONTROL, INVALID),
        (SrbFunction.TERMINATE_IO, INVALID),
        (SrbFunction.WMI, INVALID),
        (SrbFunction.LOCK_QUEUE, INVALID),
        (SrbFunction.UNLOCK_QUEUE, INVALID),
        (SrbFunction.RESET_LOGICAL_UNIT, INVALID),
        (SrbFunction.POWER, INVALID),
        (SrbFunction.DUMP_POINTERS, INVALID),
    ],
)
def test_srb_functions(s: Scene, function: SrbFunction, status: SrbStatus) -> None:
    srb = Srb(function=function)
    s.adapter.submit(srb)
    s.xen.run()
    assert srb.srb_status is status
    assert s.guest.disks[0].read(0, 1) == bytes(s.image.buffer[:512])


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("00 00 00 00 00 00", OK),  # TEST UNIT READY
        ("1b 00 00 00 00 00", OK),  # START STOP UNIT
        ("1e 00 00 00 00 00", OK),  # PREVENT ALLOW MEDIUM REMOVAL
        ("16 00 00 00 00 00", OK),  # RESERVE
        ("17 00 00 00 00 00", OK),  # RELEASE
        ("2f 00 00 00 00 00 00 00 08 00", OK),  # VERIFY(10)
        ("8f 00 00 00 00 00 00 00 00 00 00 00 00 08 00 00", OK),  # VERIFY(16)
        ("af 00 00 00 00 00 00 00 00 08 00 00", INVALID),  # VERIFY(12)
        ("35 00 00 00 00 00 00 00 00 00", OK),  # SYNCHRONIZE CACHE(10)
        ("91 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00", OK),  # and (16)
        ("15 00 00 00 00 00", INVALID),  # MODE SELECT
        ("4d 00 00 00 00 00 00 00 00 00", INVALID),  # LOG SENSE
        ("04 00 00 00 00 00", INVALID),  # FORMAT UNIT
        ("41 00 00 00 00 00 00 00 01 00", INVALID),  # WRITE SAME
        ("28 00 00 00 00 00", INVALID),  # READ(10) in 6 bytes
        ("00 00 00 00 00 00 00 00 00 00", INVALID),  # TEST UNIT READY in 10
        ("", INVALID),
    ],
)
def test_commands_without_data(s: Scene, text: str, status: SrbStatus) -> None:
    assert s.send(cdb(text)).srb_status is status


@pytest.mark.parametrize(
    ("text", "size", "reply"),
    [
        (INQUIRY, 36, "0000 0402 2000 0002" + (b"XENSRC  PVDISK          2.0 ").hex()),
        ("12 01 00 00 ff 00", 255, "00 00 00 05 00 80 83 b0 b1"),
        ("12 01 80 00 ff 00", 255, "00 80 00 04" + b"0000".hex()),
        ("12 01 83 00 ff 00", 255, "00 83 00 14 02 01 00 10" + b"XENSRC  00000000".hex()),
        ("12 01 b1 00 ff 00", 255, "00 b1 00 3c 00 01" + "00" * 58),
        ("03 00 00 00 12 00", 18, "f0" + "00" * 17),
        ("a0 00 00 00 00 00 00 00 00 10 00 00", 16, "00000008" + "00" * 12),
        ("25 00 00 00 00 00 00 00 00 00", 8, "000007ff 00000200"),
        ("9e 10" + "00" * 14, 12, "00000000000007ff 00000200"),
        ("9e 10" + "00" * 14, 32, "00000000000007ff 00000200" + "00" * 20),
        ("1a 00 08 00 ff 00", 255, "17 00 00 08" + "00" * 8 + "08 0a 04" + "00" * 9),
        ("1a 08 08 00 ff 00", 255, "0f 00 00 00 08 0a 04" + "00" * 9),
        ("1a 08 3f 00 ff 00", 255, "1b 00 00 00 08 0a 04" + "00" * 9 + "1c 0a 08" + "00" * 9),
        ("1a 08 05 00 ff 00", 255, "03 00 00 00"),
        ("5a 08 08 00 00 00 00 00 ff 00", 255, "0012 0000 0000 0000 080a04" + "00" * 9),
    ],
)
def test_replies(s: Scene, text: str, size: int, reply: str) -> None:
    srb = s.send(cdb(text), size)
    assert srb.srb_status is OK
    assert s.reply(srb) == bytes.fromhex(reply)


def test_block_limits_are_in_logical_sectors(s: Scene) -> None:
    reply = s.reply(s.send(cdb("12 01 b0 00 ff 00"), 255))
    assert reply[:4] == bytes.fromhex("00 b0 00 3c")
    assert len(reply) == 64
    assert reply[28:36] == (1).to_bytes(4, "big") + (1 << 31).to_bytes(4, "big")
    assert reply[20:28] == bytes(8)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (INQUIRY, 35),
        ("12 00 80 00 ff 00", 255),  # a page without EVPD
        ("12 01 b2 00 ff 00", 255),
        ("12 01 00 00 ff 00", 8),
        ("25 00 00 00 00 01 00 00 00 00", 8),  # an LBA without PMI
        ("9e 10 00 00 00 00 00 00 00 01 00 00 00 00 00 00", 32),
        ("9e 10" + "00" * 14, 11),
        ("a0 00 00 00 00 00 00 00 00 10 00 00", 15),
        ("03 00 00 00 12 00", 17),
        ("1a 00 08 00 ff 00", 3),
    ],
)
def test_a_buffer_too_small_or_a_page_that_is_not_is_an_error(
    s: Scene, text: str, size: int
) -> None:
    assert s.send(cdb(text), size).srb_status is ERROR


def test_a_read_only_disk_is_a_protected_disk_and_no_cdrom() -> None:
    s = scene(readonly=True)
    with s.xen:
        assert s.reply(s.send(cdb(INQUIRY), 36))[0] == 0
        assert s.reply(s.send(cdb("1a 08 08 00 ff 00"), 255))[2] == 0x80
        assert s.send(cdb("2a 00 00 00 00 00 00 00 01 00"), 512).srb_status is ERROR
        assert s.send(cdb("28 00 00 00 00 00 00 00 01 00"), 512).srb_status is OK


@pytest.mark.parametrize(
    ("text", "sectors"),
    [
        ("08 00 00 05 02 00", 2),
        ("28 00 00 00 00 05 00 00 02 00", 2),
        ("a8 00 00 00 00 05 00 00 00 02 00 00", 2),
        ("88 00 00 00 00 00 00 00 00 05 00 00 00 02 00 00", 2),
        ("08 00 00 05 00 00", 256),
    ],
)
def test_every_length_of_read_reads_the_same_sectors(s: Scene, text: str, sectors: int) -> None:
    srb = s.send(cdb(text), sectors * 512)
    assert srb.srb_status is OK
    assert s.reply(srb) == bytes(s.image.buffer[5 * 512 : (5 + sectors) * 512])


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (f"28 00 {SECTORS:08x} 00 0001 00", ERROR),
        (f"28 00 {SECTORS - 1:08x} 00 0002 00", ERROR),
        (f"28 00 {SECTORS - 1:08x} 00 0001 00", OK),
        ("88 00 ffffffffffffffff 00000001 00 00", ERROR),
        ("28 00 00000000 00 0000 00", OK),  # nothing, at once
    ],
)
def test_transfers_stay_on_the_disk(s: Scene, text: str, status: SrbStatus) -> None:
    srb = s.send(cdb(text), 1024)
    assert srb.srb_status is status
    assert srb.scsi_status in (ScsiStatus.GOOD, ScsiStatus.TASK_ABORTED)


@pytest.mark.parametrize(
    ("path_id", "lun", "status"),
    [(1, 0, SrbStatus.INVALID_PATH_ID), (0, 1, SrbStatus.INVALID_LUN)],
)
def test_other_paths_and_luns_are_refused(
    s: Scene, path_id: int, lun: int, status: SrbStatus
) -> None:
    srb = Srb(cdb=cdb("00 00 00 00 00 00"), path_id=path_id, lun=lun)
    s.target.submit(srb)
    assert srb.srb_status is status
