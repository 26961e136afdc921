"""What a number of sectors counts, on the wire and in the store, by what the frontend takes it for."""

from __future__ import annotations

import struct

import pytest

from tests.vbd.rawback import (
    DISCARD,
    EOPNOTSUPP,
    FLUSH,
    INDIRECT,
    OKAY,
    READ,
    WRITE,
    Scene,
    read10,
    scene,
    write10,
)
from xenpv import Disk, MemoryImage, Platform
from xenpv.vbd.parameters import Parameters
from xenpv.vbd.srb import Srb, SrbStatus
from xenpv.vbd.units import UNITS

# Per name: how many of `sectors` an 8-sector disk of 4 KiB has, what sector_number says of its
# sector 3, and last_sect of a whole page.
TABLE = [
    ("spec2024", 64, 24, 7),
    ("linux", 64, 24, 7),
    ("ss2019", 8, 3, 0),
    ("freebsd", 8, 3, 7),
    ("minios", 8, 24, 7),
]
FEATURES = {"feature-discard": "1", "feature-max-indirect-segments": "256"}


def unmap(on: Scene, lba: int, count: int) -> Srb:
    data = struct.pack(">HH4xQI4x", 22, 16, lba, count)
    return on.submit(bytes((0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0)), [(on.page(data), 0, 24)])


def test_every_row_is_here() -> None:
    assert sorted(name for name, *_rest in TABLE) == sorted(UNITS)


@pytest.mark.parametrize(("name", "sectors", "number", "last"), TABLE)
def test_a_disk_of_4_kib_sectors(name: str, sectors: int, number: int, last: int) -> None:
    keys = {"sector-size": "4096", "sectors": str(sectors), **FEATURES}
    with scene(keys=keys, vbd=Parameters(units=UNITS[name])) as on:
        assert (on.target.sectors, on.target.sector_size) == (8, 4096)
        pfn = on.domain.pages.alloc(5)
        on.submit(write10(3, 2), [(pfn, 0, 8192)])
        (slot,) = on.back.taken()
        assert (slot.operation, slot.sector) == (WRITE, number)
        assert [one[1:] for one in slot.segments] == [(0, last), (0, last)]
        on.submit(read10(3, 1), [(pfn, 512, 4096)])  # bounced
        (slot,) = on.back.taken()
        assert (slot.operation, slot.sector, slot.segments[0][1:]) == (READ, number, (0, last))
        unmap(on, 3, 2)
        (slot,) = on.back.taken()
        assert (slot.operation, slot.sector, slot.nr) == (DISCARD, number, 2 * number // 3)
        on.submit(struct.pack(">BBIBHB", 0x35, 0, 3, 0, 0, 0))
        (slot,) = on.back.taken()
        assert (slot.operation, slot.sector) == (FLUSH, number)
        beyond = on.submit(read10(7, 2), [(pfn, 0, 8192)])
        assert beyond.srb_status is SrbStatus.ERROR
        large = on.back.device.frontend_number("feature-large-sector-size", 0)
        assert large == (name == "ss2019")


@pytest.mark.parametrize(("name", "_sectors", "number", "last"), TABLE)
def test_pieces_of_a_transfer_follow_each_other(
    name: str, _sectors: int, number: int, last: int
) -> None:
    keys = {"sector-size": "4096", "sectors": str(4096)}
    with scene(early=FEATURES, keys=keys, vbd=Parameters(units=UNITS[name])) as on:
        unit = number // 3  # of sector_number to a sector
        pfn = on.domain.pages.alloc(300)
        on.submit(read10(2, 270), [(pfn, 0, 270 * 4096)])
        slots = on.back.taken()
        assert [(slot.operation, slot.nr, slot.sector) for slot in slots] == [
            (INDIRECT, 256, 2 * unit),
            (INDIRECT, 14, 258 * unit),
        ]
        assert {one[1:] for slot in slots for one in on.back.table(slot)} == {(0, last)}
        on.back.answer((slots[1].id, EOPNOTSUPP))
        again = on.back.taken()
        assert [(slot.nr, slot.sector) for slot in again] == [(11, 258 * unit), (3, 269 * unit)]
        assert {one[1:] for slot in again for one in slot.segments} == {(0, last)}


@pytest.mark.parametrize(("name", "_sectors", "_number", "_last"), TABLE)
def test_a_disk_of_512_bytes_is_the_same_to_all(
    name: str, _sectors: int, _number: int, _last: int
) -> None:
    with scene(vbd=Parameters(units=UNITS[name])) as on:
        assert on.target.sectors == 1024
        on.submit(read10(3, 3), [(on.page(), 1024, 1536)])
        (slot,) = on.back.taken()
        assert (slot.sector, slot.segments[0][1:]) == (3, (2, 4))


def test_sectors_that_grow_under_what_waits_are_no_whole_ones_any_more() -> None:
    with scene(vbd=Parameters(units=UNITS["ss2019"])) as on:
        on.frontend.rings[0].disable()
        srbs = [
            Srb(cdb=read10(9, 3), data=[(on.page(), 0, 1536)]),
            Srb(cdb=read10(16, 8), data=[(on.page(), 0, 4096)]),
        ]
        for srb in srbs:
            on.adapter.submit(srb)
        on.back.device.write("sector-size", "4096")
        on.xen.run()
        on.frontend.rings[0].enable()
        on.xen.run()
        assert srbs[0].srb_status is SrbStatus.ERROR
        (slot,) = on.back.taken()
        assert (slot.sector, slot.segments[0][1:]) == (2, (0, 0))
        on.back.answer((slot.id, OKAY))
        assert srbs[1].srb_status is SrbStatus.SUCCESS


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("name", [name for name, *_rest in TABLE])
def test_a_backend_of_the_same_units_holds_what_was_written(name: str, sector_size: int) -> None:
    with Platform(seed=5) as xen:
        content = bytearray(1 << 20)
        image = MemoryImage(content, sector_size=sector_size)
        guest = xen.create(
            name="g", disks=[Disk(image, units=name)], vbd=Parameters(units=UNITS[name])
        ).start()
        disk = guest.disks[0]
        assert (disk.capacity, disk.sector_size) == ((1 << 20) // sector_size, sector_size)
        data = b"".join(bytes((n & 0xFF,)) * 512 for n in range(480))
        disk.write(16, data)
        disk.flush()
        assert disk.read(16, len(data) // sector_size) == data
        at = 16 * sector_size
        assert content[at : at + len(data)] == data
        assert not any(content[:at] + content[at + len(data) :])
