# ruff: noqa: INP001, ANN001, ANN201 - a test of a user, in no package
"""A property of a disk, over contents, places and schedules of events.

pytest examples/test_with_hypothesis.py --xenpv-seed 7
"""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xenpv import Disk, MemoryImage

SECTORS = 64


# A machine that is busy makes platforms slowly: that is no property of the disk.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32 - 1),
    writes=st.lists(st.tuples(st.integers(0, SECTORS - 1), st.integers(0, 255)), max_size=8),
)
def test_a_disk_is_what_was_last_written_to_each_sector(worlds, seed, writes):
    expected = bytearray(512 * SECTORS)
    with worlds(seed=seed, disks=[Disk(MemoryImage(bytes(expected)))]) as xen:
        disk = xen.guests[0].disks[0]
        for lba, value in writes:
            sector = bytes([value]) * 512
            disk.write(lba, sector)
            expected[512 * lba : 512 * lba + 512] = sector
        assert disk.read(0, SECTORS) == expected


def test_a_guest_says_who_it_is(xen, guest):
    assert guest.console is not None
    assert guest.console.text.startswith("xenbus: domain 1, windows personality")
    assert xen.seed >= 0
