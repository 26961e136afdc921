"""The filter over a disk: what it answers for the port driver, and how a trim becomes UNMAP."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.vbd.rawback import Scene, scene
from xenpv import Disk, MemoryImage, Platform
from xenpv.bus.ntstatus import NTSTATUS
from xenpv.errors import LocalProtocolError
from xenpv.vbd.disk import DiskError
from xenpv.vbd.parameters import Parameters
from xenpv.vbd.xendisk import DSM_ACTION_TRIM, PARAMETERS, XenDisk

TRIM, ALIGNMENT, OTHER = 8, 6, 0
STANDARD, EXISTS = 0, 1
SUCCESS, OVERFLOW = NTSTATUS.SUCCESS, NTSTATUS.BUFFER_OVERFLOW
FORWARDED = NTSTATUS.NOT_SUPPORTED
SAYS_TRIM = bytes.fromhex("0c000000 0c000000 01 000000")
SECTORS = struct.pack("<7I", 28, 28, 0, 0, 512, 4096, 0)
BIG = {"sectors": str(1 << 40), "feature-discard": "1", "discard-granularity": "4096"}


@contextmanager
def filtered(
    intercept: int | None = None, quirks: tuple[str, ...] = (), keys: dict[str, str] | None = None
) -> Iterator[tuple[Scene, XenDisk]]:
    with scene(keys=keys or BIG, vbd=Parameters(quirks=quirks)) as on:
        if intercept is not None:
            on.guest.registry.set(PARAMETERS, "InterceptTrim", intercept)
        yield on, on.adapter.disks()[0].filter


PROPERTIES = [
    # InterceptTrim, property, query, room, status, reply
    (None, TRIM, STANDARD, 12, SUCCESS, SAYS_TRIM),
    (1, TRIM, STANDARD, 64, SUCCESS, SAYS_TRIM),
    (None, TRIM, STANDARD, 11, OVERFLOW, b""),
    (None, TRIM, EXISTS, 0, SUCCESS, b""),
    (0, TRIM, STANDARD, 64, FORWARDED, b""),
    (0, TRIM, EXISTS, 64, FORWARDED, b""),
    (None, ALIGNMENT, STANDARD, 28, SUCCESS, SECTORS),
    (0, ALIGNMENT, STANDARD, 64, SUCCESS, SECTORS),
    (None, ALIGNMENT, STANDARD, 27, OVERFLOW, b""),
    (None, ALIGNMENT, EXISTS, 0, SUCCESS, b""),
    (None, OTHER, STANDARD, 64, FORWARDED, b""),
    (None, 7, EXISTS, 64, FORWARDED, b""),
]


@pytest.mark.parametrize(
    ("intercept", "property_id", "query", "room", "status", "reply"), PROPERTIES
)
def test_properties(
    intercept: int | None, property_id: int, query: int, room: int, status: NTSTATUS, reply: bytes
) -> None:
    with filtered(intercept, keys={"physical-sector-size": "4096"}) as (_on, xendisk):
        assert xendisk.query_property(property_id, query, room) == (status, reply)


def test_trim_is_said_to_be_there_whatever_the_backend_can() -> None:
    with filtered(keys={"feature-discard": "0"}) as (_on, xendisk):
        assert xendisk.query_property(TRIM) == (SUCCESS, SAYS_TRIM)
        assert xendisk.manage_data_set_attributes(DSM_ACTION_TRIM, [(0, 4096)]) is SUCCESS


class Recorder:
    """A disk that only notes what is unmapped."""

    def __init__(self, on: Scene) -> None:
        self.target = on.target
        self.lists: list[list[tuple[int, int]]] = []

    def unmap(self, ranges: list[tuple[int, int]]) -> None:
        self.lists.append(ranges)


RANGES = [
    # ranges in bytes, and (lba, count) of each UNMAP without the quirk and with it
    ([(4096, 8192)], [[(8, 16)]], [[(8, 16)]]),
    ([(0, 512), (1024, 1536)], [[(0, 1), (2, 3)]], [[(0, 1), (2, 3)]]),
    ([(5120, 8191)], [[(10, 15)]], [[(10, 15)]]),
    ([(1023, 513)], [[(1, 1)]], [[(1, 1)]]),
    ([(0, 511)], [], [[(0, 0)]]),  # rounded down to nothing
    ([(0, 1 << 41)], [[(0, 2**32 - 1), (2**32 - 1, 1)]], [[(0, 0)]]),
    ([(512, (1 << 41) + 512)], [[(1, 2**32 - 1), (2**32, 2)]], [[(1, 1)]]),
]


@pytest.mark.parametrize(("ranges", "without", "with_it"), RANGES)
def test_a_trim_is_one_unmap_in_sectors(
    ranges: list[tuple[int, int]],
    without: list[list[tuple[int, int]]],
    with_it: list[list[tuple[int, int]]],
) -> None:
    for quirks, expected in (((), without), (("trim-truncates",), with_it)):
        with filtered(quirks=quirks) as (on, _xendisk):
            disk = Recorder(on)
            xendisk = XenDisk(disk)  # type: ignore[arg-type]  # as much of one as it uses
            assert xendisk.manage_data_set_attributes(DSM_ACTION_TRIM, ranges) is SUCCESS
            assert disk.lists == expected


def test_more_ranges_than_one_unmap_has_room_for_are_several() -> None:
    for quirks in ((), ("trim-truncates",)):
        with filtered(quirks=quirks) as (on, _xendisk):
            disk = Recorder(on)
            xendisk = XenDisk(disk)  # type: ignore[arg-type]  # as much of one as it uses
            ranges = [(n << 12, 4096) for n in range(5000)]
            assert xendisk.manage_data_set_attributes(DSM_ACTION_TRIM, ranges) is SUCCESS
            assert [len(some) for some in disk.lists] == [4095, 905]


@pytest.mark.parametrize(("intercept", "action"), [(0, DSM_ACTION_TRIM), (None, 2), (None, 99)])
def test_what_is_not_its_own_is_passed_on(intercept: int | None, action: int) -> None:
    with filtered(intercept) as (on, xendisk):
        assert xendisk.manage_data_set_attributes(action, [(0, 4096)]) is FORWARDED
        assert on.back.taken() == []


def test_a_disk_is_trimmed_and_its_image_has_a_hole() -> None:
    image = MemoryImage(bytearray(b"\x5a" * (1 << 20)))
    with Platform(seed=1) as xen:
        guest = xen.create(name="g", disks=[Disk(image)]).start()
        disk = guest.disks[0]
        assert disk.trim(8, 16)
        disk.unmap([(100, 4), (200, 0), (300, 1)])
        expected = bytearray(b"\x5a" * (1 << 20))
        for lba, count in ((8, 16), (100, 4), (300, 1)):
            expected[lba * 512 : (lba + count) * 512] = bytes(count * 512)
        assert bytes(image.buffer) == bytes(expected)
        guest.registry.set(PARAMETERS, "InterceptTrim", 0)
        assert not disk.trim(0, 8)
        assert bytes(image.buffer) == bytes(expected)


def test_ranges_that_no_unmap_can_say_are_the_callers_fault() -> None:
    with filtered() as (on, _xendisk):
        disk = on.adapter.disks()[0]
        for lba, count in ((-1, 1), (1 << 64, 1), (0, -1), (0, 1 << 32)):
            with pytest.raises(LocalProtocolError, match=f"unmap of {count} sectors at {lba}"):
                disk.unmap([(lba, count)])
        with pytest.raises(LocalProtocolError, match="4096 ranges: at most 4095"):
            disk.unmap([(0, 1)] * 4096)
        with pytest.raises(DiskError, match="unmap: SRB status ERROR"):
            disk.unmap([(1 << 40, 1)])


def test_a_trim_that_fails_says_so() -> None:
    with filtered(keys=BIG | {"info": "4"}) as (on, _xendisk):
        disk = on.adapter.disks()[0]
        with pytest.raises(DiskError, match="unmap: SRB status ERROR, SCSI status GOOD"):
            disk.trim(0, 8)
