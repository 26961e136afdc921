"""Commands that nobody waits for: their memory, their one end, and what is said of it."""

from __future__ import annotations

import pytest

from tests.vbd.conftest import Scene, content, scene
from xenpv.errors import LocalProtocolError
from xenpv.vbd.buffers import TRANSFER_MAX
from xenpv.vbd.disk import DiskError
from xenpv.vbd.srb import SrbStatus


def test_reads_writes_and_a_flush_are_under_way_together(s: Scene) -> None:
    disk = s.guest.disks[0]
    reads = [disk.start_read(8 * n, 8) for n in range(40)]  # more than the ring has slots
    write = disk.start_write(512, b"w" * 4096)
    flush = disk.start_flush()
    assert not any(one.is_complete for one in [*reads, write, flush])
    assert repr(reads[1]) == "<Pending read at sector 8: PENDING>"
    s.xen.run()
    assert [one.result() for one in reads] == [
        bytes(content()[4096 * n : 4096 * (n + 1)]) for n in range(40)
    ]
    assert (write.result(), flush.result()) == (b"", b"")
    assert bytes(s.image.buffer[512 * 512 : 520 * 512]) == b"w" * 4096
    assert all(one.completions == len(one.srbs) == 1 for one in [*reads, write, flush])


def test_what_is_written_is_what_it_was_at_the_start(s: Scene) -> None:
    data = bytearray(b"a" * 512)
    write = s.guest.disks[0].start_write(3, data)
    data[:] = b"b" * 512
    s.xen.run()
    write.result()
    assert bytes(s.image.buffer[3 * 512 : 4 * 512]) == b"a" * 512


def test_a_command_above_a_transfers_length_has_several_srbs() -> None:
    s = scene(sectors=2 * TRANSFER_MAX // 512 + 3)
    try:
        read = s.guest.disks[0].start_read(0, 2 * TRANSFER_MAX // 512 + 3)
        s.xen.run()
        assert len(read.srbs) == 3
        assert read.result() == bytes(content(2 * TRANSFER_MAX // 512 + 3))
    finally:
        s.xen.close()


ENDS = [
    # what is asked, SRB status, SCSI status
    ("beyond the end", SrbStatus.ERROR, 0x00),
    ("without a device", SrbStatus.NO_DEVICE, 0x00),
]


@pytest.mark.parametrize(("case", "srb_status", "scsi_status"), ENDS)
def test_what_the_port_refuses_at_once_is_complete_at_once(
    s: Scene, case: str, srb_status: SrbStatus, scsi_status: int
) -> None:
    disk = s.guest.disks[0]
    if case == "without a device":
        disk.target.missing = True
    read = disk.start_read(1 << 20, 1)
    assert (read.is_complete, read.srb_status) == (True, srb_status)
    with pytest.raises(DiskError) as raised:
        read.result()
    assert (raised.value.srb_status, raised.value.scsi_status) == (srb_status, scsi_status)


def test_a_result_before_its_time_is_the_callers_mistake(s: Scene) -> None:
    s.freeze()
    read = s.guest.disks[0].start_read(0, 1)
    s.xen.run()
    with pytest.raises(LocalProtocolError, match="read at sector 0 is not complete"):
        read.result()
    s.guest.destroy()
    with pytest.raises(LocalProtocolError, match="not complete"):
        read.result()


@pytest.mark.parametrize(("lba", "nr_bytes"), [(-1, 512), (0, 511), (1 << 64, 512)])
def test_a_range_that_no_disk_has_takes_no_memory(s: Scene, lba: int, nr_bytes: int) -> None:
    free = s.domain.pages.free_pages
    with pytest.raises(LocalProtocolError, match="expected whole sectors"):
        s.guest.disks[0].start_write(lba, bytes(nr_bytes))
    assert s.domain.pages.free_pages == free


def test_a_command_that_finds_no_memory_gives_all_of_it_back(s: Scene) -> None:
    disk, pages = s.guest.disks[0], s.domain.pages
    taken = []
    while pages.free_pages > 16:
        taken.append(pages.alloc())
    free, granted = pages.free_pages, disk.target.frontend.granter.granted
    with pytest.raises(LocalProtocolError, match="the guest has no memory for"):
        disk.start_write(0, bytes(17 * 4096))
    idle = sum(buffer.pages for buffer in disk.buffers.idle)
    assert pages.free_pages + idle == free
    assert disk.target.frontend.granter.granted == granted


def test_memory_is_used_again_and_none_is_lost(s: Scene) -> None:
    disk, pages = s.guest.disks[0], s.domain.pages
    for _ in range(3):
        s.xen.run()
        pending = [disk.start_read(0, 8) for _ in range(50)]
        s.xen.run()
        assert all(one.result() == bytes(content()[:4096]) for one in pending)
    free = pages.free_pages
    for _ in range(20):
        pending = [disk.start_read(0, 8) for _ in range(50)]
        s.xen.run()
    assert pages.free_pages == free


def test_pages_that_the_backend_holds_come_back_when_it_lets_go(s: Scene) -> None:
    disk, frontend = s.guest.disks[0], s.target.frontend
    s.freeze()
    read = disk.start_read(0, 8)
    s.xen.run()
    ref = next(iter(frontend.rings[0].submitted.values())).segments.wire[0]
    hole = s.xen.dom0.holes.alloc()
    handle = s.xen.dom0.gnttab.map(s.guest.domid, ref, hole)
    free = s.domain.pages.free_pages
    frontend.resume()
    assert read.srb_status is SrbStatus.ERROR
    assert len(disk.buffers.held) == 1
    assert s.domain.pages.free_pages <= free
    s.xen.dom0.gnttab.unmap(handle, hole)
    s.xen.run()
    assert disk.read(0, 8) == bytes(content()[:4096])
    assert disk.buffers.held == []
