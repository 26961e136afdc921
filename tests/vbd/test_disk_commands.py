"""Commands of a disk's user beyond reading and writing blocks."""

from __future__ import annotations

from base64 import b64encode

import pytest

from tests.vbd.conftest import SECTORS, Scene, content
from tests.vbd.rawback import scene as raw_scene
from xenpv import Disk, MemoryImage, Platform
from xenpv.errors import LocalProtocolError
from xenpv.vbd import commands
from xenpv.vbd.disk import DiskError
from xenpv.vbd.srb import Srb, SrbFunction, SrbStatus

CACHING, EXCEPTIONS = "08 0a 04" + "00" * 9, "1c 0a 08" + "00" * 9


def test_what_a_disk_says_of_itself(s: Scene) -> None:
    disk = s.guest.disks[0]
    assert (disk.capacity, disk.sector_size, disk.physical_sector_size) == (SECTORS, 512, 512)
    assert disk.mode_sense() == bytes.fromhex("1b 00 00 00" + CACHING + EXCEPTIONS)
    assert disk.mode_sense(8, descriptor=True) == bytes.fromhex("17 00 00 08" + "00" * 8 + CACHING)
    assert disk.mode_sense(0x1C, long=True) == bytes.fromhex("0012 00 00 0000 0000" + EXCEPTIONS)
    assert disk.mode_sense(5, descriptor=True, long=True) == bytes.fromhex(
        "000e 00 00 0000 0008" + "00" * 8
    )
    assert disk.report_luns() == [0]
    assert disk.request_sense() == b"\xf0" + bytes(17)
    disk.test_unit_ready()
    disk.shutdown()
    assert not disk.capabilities().removable


def test_a_physical_sector_of_a_disk() -> None:
    with raw_scene(keys={"physical-sector-size": "4096"}) as on:
        disk = on.adapter.disks()[0]
        assert (disk.sector_size, disk.physical_sector_size) == (512, 4096)


def test_a_disk_of_no_sectors_has_none() -> None:
    with raw_scene(keys={"sectors": "0"}) as on:
        assert on.adapter.disks()[0].capacity == 0


READ_10 = "28 00 00000005 00 {0:04x} 00"
WRITE_10 = "2a 00 00000005 00 {0:04x} 00"


@pytest.mark.parametrize("sectors", [1, 8, 9, 1000])
def test_any_cdb_takes_data_in_either_direction(s: Scene, sectors: int) -> None:
    disk = s.guest.disks[0]
    read = bytes.fromhex(READ_10.format(sectors))
    assert disk.command(read, sectors * 512) == bytes(content()[5 * 512 : (5 + sectors) * 512])
    # As much as the command moves, whatever room there is.
    assert disk.command(read, sectors * 512 + 100) == disk.read(5, sectors)
    data = bytes(range(256)) * 2 * sectors
    assert disk.command(bytes.fromhex(WRITE_10.format(sectors)), data=memoryview(data)) == b""
    assert disk.read(5, sectors) == data
    assert disk.read(4, 1) == bytes(content()[4 * 512 : 5 * 512])


def test_a_command_of_four_mebibytes() -> None:
    with Platform(seed=1) as xen:
        image = MemoryImage(bytearray(b"4" * (5 << 20)))
        disk = xen.create(name="g", disks=[Disk(image)]).start().disks[0]
        assert disk.command(bytes.fromhex("28 00 00000000 00 2000 00"), 4 << 20) == b"4" * (4 << 20)
        with pytest.raises(LocalProtocolError, match="4194305 bytes: at most 4194304"):
            disk.command(bytes(6), (4 << 20) + 1)
        with pytest.raises(LocalProtocolError, match="with -1 bytes"):
            disk.command(bytes(6), -1)
        with pytest.raises(LocalProtocolError, match="8 bytes in and 3 out"):
            disk.command(bytes(6), 8, data=b"abc")


def test_a_guest_without_room_for_a_command(s: Scene) -> None:
    disk, pages = s.guest.disks[0], s.domain.pages
    while pages.free_pages > 4:
        pages.alloc()
    free = pages.free_pages
    with pytest.raises(LocalProtocolError, match="no 65536 bytes in one piece"):
        disk.command(bytes(6), 65536)
    assert pages.free_pages + sum(buffer.pages for buffer in disk.buffers.idle) == free
    assert disk.inquiry()[8:14] == b"XENSRC"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("command 0xff", "command 0xff: SRB status INVALID_REQUEST, SCSI status GOOD"),
        ("command none", "command of no length: SRB status INVALID_REQUEST, SCSI status GOOD"),
        ("read", "read at sector 99999: SRB status ERROR, SCSI status GOOD"),
        ("unmap", "unmap: SRB status ERROR, SCSI status GOOD"),
        ("inquiry", "command 0x12: SRB status ERROR, SCSI status GOOD"),
    ],
)
def test_an_error_names_the_command_and_the_status(s: Scene, call: str, text: str) -> None:
    disk = s.guest.disks[0]
    calls = {
        "command 0xff": lambda: disk.command(b"\xff" * 16),
        "command none": lambda: disk.command(b""),
        "read": lambda: disk.read(99999, 1),
        "unmap": lambda: disk.unmap([(99999, 1)]),
        "inquiry": lambda: disk.inquiry(0xB2),
    }
    with pytest.raises(DiskError) as caught:
        calls[call]()
    assert str(caught.value) == text
    assert caught.value.sense_info == b""


def test_a_flush_of_a_read_only_disk_fails(s: Scene) -> None:
    s.target.backend.info = 4
    with pytest.raises(DiskError, match="SRB status ERROR, SCSI status GOOD"):
        s.guest.disks[0].flush()


def test_the_next_read_capacity_has_the_new_size() -> None:
    with raw_scene() as on:
        disk = on.adapter.disks()[0]
        assert disk.capacity == 1024
        for sectors in (4096, 100):
            on.back.device.write("sectors", str(sectors))
            on.xen.run()
            assert disk.capacity == sectors
        with pytest.raises(DiskError, match="read at sector 100: SRB status ERROR"):
            disk.read(100, 1)


def test_a_reset_fails_what_is_not_answered_and_the_disk_goes_on(s: Scene) -> None:
    disk = s.guest.disks[0]
    s.freeze()
    read = disk.start_read(0, 1)
    s.xen.run()
    disk.reset()
    assert read.srb_status is SrbStatus.ERROR
    for queue in s.back.queues:
        queue.task.release()
    assert disk.read(0, 1) == bytes(content()[:512])


def test_commands_that_nobody_waits_for(s: Scene) -> None:
    disk = s.guest.disks[0]
    inquiry = disk.start_command(bytes.fromhex("12 00 00 00 ff 00"), 255)
    flush, unmap = disk.start_flush(), disk.start_unmap([(8, 8)])
    assert (inquiry.is_complete, flush.is_complete, unmap.is_complete) == (True, False, False)
    assert len(inquiry.result()) == 36
    assert repr(flush) == "<Pending flush: PENDING>"
    s.xen.run()
    assert (flush.result(), unmap.result()) == (b"", b"")
    assert bytes(s.image.buffer[8 * 512 : 16 * 512]) == bytes(4096)


def test_a_function_of_a_disk_that_went_is_said(s: Scene) -> None:
    disk = s.guest.disks[0]
    disk.target.missing = True
    with pytest.raises(DiskError, match="RESET_DEVICE: SRB status NO_DEVICE"):
        disk.reset()
    srb = Srb(function=SrbFunction.PNP)
    disk.target.submit(srb)
    assert srb.srb_status is SrbStatus.SUCCESS


def encoded(page: bytes) -> str:
    return b64encode(page).decode()


SERIAL, DESCRIPTOR = b"\0\x80\0\x03ABC", b"\0\x83\0\x08\x01\x03\0\x04NAAx"
OWN_80, OWN_83 = b"\0\x80\0\x040000", b"\0\x83\0\x14\x02\x01\0\x10XENSRC  00000000"
IDS = [
    # text of 0x80 and of 0x83, and the pages
    (encoded(SERIAL), encoded(DESCRIPTOR), SERIAL, DESCRIPTOR),
    (encoded(SERIAL), None, SERIAL, OWN_83),
    (None, encoded(DESCRIPTOR), OWN_80, DESCRIPTOR),
    (None, None, OWN_80, OWN_83),
    ("", "====", OWN_80, OWN_83),
    (encoded(SERIAL)[:-1], encoded(DESCRIPTOR) + "=", OWN_80, OWN_83),
    (encoded(SERIAL) + "\n", " " + encoded(DESCRIPTOR), OWN_80, OWN_83),
    ("AIAA=BEF", "QQ==QQ==", OWN_80, OWN_83),
    ("AI*AA3==", "_-__", OWN_80, OWN_83),
    ("AAAA====", "AAA=AAA=", OWN_80, OWN_83),
    ("AAA==AAA", "\u00fc\u00fc\u00fc\u00fc", OWN_80, OWN_83),
    (encoded(b"x"), encoded(b"\0" * 255), b"x", b"\0" * 255),  # given as they are
]  # fmt: skip


@pytest.mark.parametrize(("serial", "descriptor", "page_80", "page_83"), IDS)
def test_ids_that_the_storage_manager_dictates(
    serial: str | None, descriptor: str | None, page_80: bytes, page_83: bytes
) -> None:
    keys = {"sm-data/scsi/0x12/0x80": serial, "sm-data/scsi/0x12/0x83": descriptor}
    with raw_scene(keys={key: text for key, text in keys.items() if text is not None}) as on:
        disk = on.adapter.disks()[0]
        assert disk.inquiry(0x80) == page_80
        assert disk.inquiry(0x83) == page_83
        assert disk.inquiry(0) == bytes.fromhex("00 00 00 05 00 80 83 b0 b1")
        short = bytes((0x12, 1, 0x83, 0, 255, 0))
        assert disk.command(short, len(page_83)) == page_83
        if len(page_83) > 1:
            with pytest.raises(DiskError, match="SRB status ERROR"):
                disk.command(short, len(page_83) - 1)


def test_the_target_number_is_in_the_pages() -> None:
    with Platform(seed=1) as xen:
        guest = xen.create(name="g", disks=[Disk(MemoryImage(bytes(512)), vdev="xvdz")]).start()
        disk = guest.disks[0]
        assert disk.target.target_id == 25
        assert disk.inquiry(0x80) == b"\0\x80\0\x040025"
        assert disk.inquiry(0x83)[8:] == b"XENSRC  00000025"


def test_a_disk_uses_all_of_its_queues() -> None:
    with raw_scene(early={"multi-queue-max-queues": "2"}, vcpus=2) as on:
        disk = on.adapter.disks()[0]
        for lba in range(6):
            disk.start_read(lba, 1)
        on.xen.run()
        assert [sorted(slot.sector for slot in on.back.taken(n)) for n in (0, 1)] == [
            [1, 3, 5],
            [0, 2, 4],
        ]


TRANSFERS = [
    (0, 1, "28 00 00000000 00 0001 00", "2a 00 00000000 00 0001 00"),
    (2**32 - 1, 65535, "28 00 ffffffff 00 ffff 00", "2a 00 ffffffff 00 ffff 00"),
    (2**32, 1, "88 00 0000000100000000 00000001 0000", "8a 00 0000000100000000 00000001 0000"),
    (0, 65536, "88 00 0000000000000000 00010000 0000", "8a 00 0000000000000000 00010000 0000"),
    (2**64 - 1, 1, "88 00 ffffffffffffffff 00000001 0000", "8a 00 ffffffffffffffff 00000001 0000"),
]


@pytest.mark.parametrize(("lba", "count", "read", "write"), TRANSFERS)
def test_the_cdb_of_a_transfer(lba: int, count: int, read: str, write: str) -> None:
    assert commands.transfer(lba, count, writes=False) == bytes.fromhex(read)
    assert commands.transfer(lba, count, writes=True) == bytes.fromhex(write)
