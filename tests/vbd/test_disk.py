"""A disk as an application sees it, over the real backend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vbd.rawback import scene
from xenpv.errors import LocalProtocolError
from xenpv.host.image import ImageError, MemoryImage
from xenpv.platform import Disk, Guest, Platform
from xenpv.vbd.disk import DiskError
from xenpv.vbd.srb import SrbFunction, SrbStatus

SECTORS = 8192 + 4096 + 3  # more than one transfer, and not a whole number of pages


def pattern(sectors: int, salt: int = 0) -> bytearray:
    return bytearray(
        b"".join(
            (n * 2654435761 + salt & 0xFFFFFFFF).to_bytes(4, "little") * 128 for n in range(sectors)
        )
    )


@pytest.fixture(params=["windows", "linux"])
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    with Platform(seed=5) as xen:
        yield xen.create(
            name="disk",
            disks=[Disk(MemoryImage(pattern(SECTORS)))],
            personality=request.param,
        ).start()


def test_the_disk_says_what_it_is(guest: Guest) -> None:
    disk = guest.disks[0]
    assert (disk.capacity, disk.sector_size, disk.devid) == (SECTORS, 512, 51712)
    assert disk.inquiry()[8:32] == b"XENSRC  PVDISK          "
    assert disk.inquiry(0x83)[8:] == b"XENSRC  00000000"


@pytest.mark.parametrize(
    ("lba", "count"),
    [(0, 1), (0, 8), (3, 5), (SECTORS - 1, 1), (0, 8192), (1, 8193), (0, SECTORS), (7, 0)],
)
def test_what_is_read_is_what_is_in_the_image(guest: Guest, lba: int, count: int) -> None:
    assert guest.disks[0].read(lba, count) == bytes(
        pattern(SECTORS)[lba * 512 : (lba + count) * 512]
    )


def test_reading_into_a_buffer_fills_all_of_it(guest: Guest) -> None:
    out = bytearray(5 * 512)
    guest.disks[0].read_into(9, out)
    assert out == pattern(SECTORS)[9 * 512 : 14 * 512]
    view = memoryview(bytearray(4096))
    guest.disks[0].read_into(0, view[512:1536])
    assert bytes(view[512:1536]) == bytes(pattern(SECTORS)[:1024])
    assert bytes(view[1536:]) == bytes(2560)


@pytest.mark.parametrize(("lba", "count"), [(0, 1), (5, 3), (SECTORS - 9, 9), (2, 8200)])
def test_what_is_written_is_read_back_and_nothing_else_changed(
    guest: Guest, lba: int, count: int
) -> None:
    model = pattern(SECTORS)
    data = bytes(pattern(count, salt=99))
    model[lba * 512 : (lba + count) * 512] = data
    disk = guest.disks[0]
    disk.write(lba, data)
    disk.flush()
    assert disk.read(lba, count) == data
    assert disk.read(0, SECTORS) == bytes(model)


@pytest.mark.parametrize(("lba", "count"), [(SECTORS, 1), (SECTORS - 1, 2), (2**33, 1), (2**63, 8)])
def test_beyond_the_end_is_an_error_that_says_where(guest: Guest, lba: int, count: int) -> None:
    with pytest.raises(DiskError, match=f"read at sector {lba}: SRB status ERROR") as caught:
        guest.disks[0].read(lba, count)
    assert caught.value.srb_status is SrbStatus.ERROR
    with pytest.raises(DiskError, match=f"write at sector {lba}: SRB status ERROR"):
        guest.disks[0].write(lba, bytes(count * 512))
    assert guest.disks[0].read(0, 1) == bytes(pattern(1))


def test_ranges_that_no_disk_has_are_the_callers_fault(guest: Guest) -> None:
    disk = guest.disks[0]
    with pytest.raises(LocalProtocolError, match="-1 sectors"):
        disk.read(0, -1)
    with pytest.raises(LocalProtocolError, match="sector -1"):
        disk.read(-1, 1)
    with pytest.raises(LocalProtocolError, match="100 bytes at sector 0"):
        disk.write(0, bytes(100))
    with pytest.raises(LocalProtocolError):
        disk.read(2**64, 1)


def test_a_read_only_disk_is_read_and_not_written() -> None:
    image = MemoryImage(pattern(64), writable=False)
    with Platform() as xen:
        guest = xen.create(name="ro", disks=[Disk(image, readonly=True)]).start()
        disk = guest.disks[0]
        assert disk.read(0, 64) == bytes(pattern(64))
        with pytest.raises(DiskError, match="write at sector 0: SRB status ERROR"):
            disk.write(0, bytes(512))
        assert bytes(image.buffer) == bytes(pattern(64))


class Bad(MemoryImage):
    """Not in memory as far as blkback sees; sector 20 cannot be read, nothing is flushed."""

    data: memoryview
    buffer = property(lambda _self: None, lambda self, view: setattr(self, "data", view))

    def read_into(self, buffer: memoryview, offset: int) -> None:
        if offset <= 20 * 512 < offset + buffer.nbytes:
            raise ImageError("EIO")
        buffer[:] = self.data[offset : offset + buffer.nbytes]

    def write_from(self, buffer: memoryview, offset: int) -> None:
        del buffer, offset
        raise ImageError("ENOSPC")

    def flush(self) -> None:
        raise ImageError("EIO")


def test_what_the_host_cannot_do_fails_in_the_guest() -> None:
    with Platform() as xen:
        disk = xen.create(name="bad", disks=[Disk(Bad(pattern(64)))]).start().disks[0]
        assert disk.read(0, 20) == bytes(pattern(20))
        with pytest.raises(DiskError, match="SRB status ERROR, SCSI status TASK_ABORTED"):
            disk.read(0, 21)
        with pytest.raises(DiskError):
            disk.write(0, bytes(512))
        with pytest.raises(DiskError, match="command 0x35"):
            disk.flush()
        assert disk.read(21, 43) == bytes(pattern(64)[21 * 512 :])


def test_a_backend_that_never_answers_is_said_and_its_pages_are_not_reused() -> None:
    with scene() as on:
        disk = on.adapter.disks()[0]
        with pytest.raises(LocalProtocolError, match="nothing is left to run, and 1 of 1"):
            disk.read(0, 8)
        (slot,) = on.back.taken()
        on.back.fill(slot.segments[0][0], b"\x77" * 4096)
        with pytest.raises(LocalProtocolError, match="nothing is left"):
            disk.read(8, 8)
        (other,) = on.back.taken()
        assert other.segments[0][0] != slot.segments[0][0]


def test_a_disk_that_went_is_no_device(guest: Guest) -> None:
    disk = guest.disks[0]
    disk.target.missing = True
    with pytest.raises(DiskError, match="NO_DEVICE"):
        disk.read(0, 1)


def test_a_guest_with_little_memory_reads_in_smaller_pieces() -> None:
    with Platform() as xen:
        image = MemoryImage(pattern(SECTORS))
        guest = xen.create(name="tiny", memory_mib=9, disks=[Disk(image)]).start()
        guest.created.domain.pages.alloc(2000)  # of 2304, used by something else
        assert guest.disks[0].read(0, SECTORS) == bytes(pattern(SECTORS))
        guest.disks[0].write(0, bytes(6 << 20))
        assert bytes(image.buffer[: 6 << 20]) == bytes(6 << 20)


def test_transfers_give_their_memory_and_grants_back(guest: Guest) -> None:
    disk, bus = guest.disks[0], guest.bus
    assert bus is not None
    disk.read(0, SECTORS)
    permitted, pages = bus.gnttab.permitted, guest.created.domain.pages._next
    for count in (1, 9, 100, 8192, SECTORS):
        disk.write(0, disk.read(0, count))
        disk.flush()
    assert bus.gnttab.permitted == permitted
    assert guest.created.domain.pages._next - pages <= 1  # the page that replies land in


def test_any_cdb_may_be_sent(guest: Guest) -> None:
    disk = guest.disks[0]
    assert disk.command(bytes(6)) == b""
    assert disk.command(bytes([0xA0]).ljust(12, b"\0"), 16) == bytes.fromhex("00000008" + "00" * 12)
    with pytest.raises(DiskError, match="command 0xff: SRB status INVALID_REQUEST"):
        disk.command(bytes([0xFF]) * 16)


def test_a_call_from_inside_the_loop_is_refused(guest: Guest) -> None:
    domain, disk = guest.created.domain, guest.disks[0]

    def handler() -> None:
        with pytest.raises(LocalProtocolError, match="inside a handler"):
            disk.read(0, 1)

    domain.task("application", handler).wake()
    guest.platform.run()


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["read", "write", "flush", "reset", "stop"]),
        st.integers(0, 299),
        st.integers(1, 300),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=50, deadline=None)
@given(
    operations=OPERATIONS,
    seed=st.integers(0, 2**32),
    personality=st.sampled_from(["windows", "linux"]),
    sector_size=st.sampled_from([512, 4096]),
)
def test_the_disk_always_equals_its_model(
    operations: list[tuple[str, int, int]], seed: int, personality: str, sector_size: int
) -> None:
    size = 300 * sector_size
    model = bytearray(pattern(size // 512))
    image = MemoryImage(bytearray(model), sector_size=sector_size)
    with Platform(seed=seed) as xen:
        guest = xen.create(name="model", disks=[Disk(image)], personality=personality).start()
        disk = guest.disks[0]
        for number, (what, lba, count) in enumerate(operations):
            count = min(count, 300 - lba)
            start, end = lba * sector_size, (lba + count) * sector_size
            if what == "read":
                assert disk.read(lba, count) == bytes(model[start:end])
            elif what == "write":
                data = bytes(pattern((end - start) // 512, salt=number))
                model[start:end] = data
                disk.write(lba, data)
            elif what == "flush":
                disk.flush()
            elif what == "reset":
                from xenpv.vbd.srb import Srb

                disk.target.submit(Srb(function=SrbFunction.RESET_DEVICE))
            else:
                disk.target.stop()
                xen.run()
                disk.target.start()
            xen.run()
        assert bytes(image.buffer) == bytes(model)


def test_a_file_reads_back_whole_and_is_changed_where_written(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(2000))
    with Platform() as xen:
        disk = xen.create(name="file", disks=[Disk(path)]).start().disks[0]
        assert disk.read(0, 2000) == bytes(pattern(2000))
        disk.write(1999, b"\xa5" * 512)
        disk.flush()
    assert path.read_bytes() == bytes(pattern(1999)) + b"\xa5" * 512
