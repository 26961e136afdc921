"""What a disk's user may have sent again, when, and how often."""

from __future__ import annotations

import pytest

from tests.vbd.conftest import SECTORS, Scene, content
from xenpv import Disk, MemoryImage, Platform
from xenpv.host.image import ImageError
from xenpv.vbd.disk import DiskError
from xenpv.vbd.parameters import Parameters
from xenpv.vbd.retry import may_pass
from xenpv.vbd.sense import Sense
from xenpv.vbd.srb import Srb, SrbFunction, SrbStatus

SECOND = 1_000_000_000
PASSES = [
    (SrbStatus.ERROR, True),
    (SrbStatus.BUSY, True),
    (SrbStatus.ABORTED, True),
    (SrbStatus.TIMEOUT, True),
    (SrbStatus.BUS_RESET, True),
    (SrbStatus.REQUEST_FLUSHED, True),
    (SrbStatus.SUCCESS, False),
    (SrbStatus.PENDING, False),
    (SrbStatus.INVALID_REQUEST, False),
    (SrbStatus.INVALID_PATH_ID, False),
    (SrbStatus.INVALID_LUN, False),
    (SrbStatus.INVALID_TARGET_ID, False),
    (SrbStatus.NO_DEVICE, False),
    (SrbStatus.ABORT_FAILED, False),
    (SrbStatus.DATA_OVERRUN, False),
]


@pytest.mark.parametrize(("status", "passes"), PASSES)
def test_which_statuses_may_pass(status: SrbStatus, passes: bool) -> None:
    assert may_pass(Srb(srb_status=status)) is passes


def test_every_status_has_a_row() -> None:
    assert {status for status, _passes in PASSES} == set(SrbStatus)


@pytest.mark.parametrize("sense", Sense)
def test_which_sense_may_pass(sense: Sense) -> None:
    srb = Srb()
    srb.check_condition(sense)
    assert may_pass(srb) is (sense.value.key not in (0x5, 0x7))


class Flaky(MemoryImage):
    """Not in memory as far as blkback sees; the next `bad` accesses fail."""

    data: memoryview
    buffer = property(lambda _self: None, lambda self, view: setattr(self, "data", view))
    bad = 0
    accesses = 0

    def _access(self) -> None:
        self.accesses += 1
        if self.bad:
            self.bad -= 1
            raise ImageError("EIO")

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self._access()
        buffer[:] = self.data[offset : offset + buffer.nbytes]

    def write_from(self, buffer: memoryview, offset: int) -> None:
        self._access()
        self.data[offset : offset + buffer.nbytes] = buffer

    def flush(self) -> None:
        self._access()


def flaky(*, vbd: Parameters | None = None) -> tuple[Platform, Flaky]:
    xen = Platform(seed=2)
    image = Flaky(content())
    xen.create(name="g", disks=[Disk(image)], vbd=vbd).start()
    return xen, image


@pytest.mark.parametrize(("retries", "bad", "fails"), [(0, 1, True), (1, 1, False), (3, 3, False),
                                                       (3, 4, True), (8, 8, False)])  # fmt: skip
@pytest.mark.parametrize("what", ["read", "write", "flush", "command"])
def test_a_command_is_sent_so_often_and_no_more(
    retries: int, bad: int, fails: bool, what: str
) -> None:
    xen, image = flaky()
    with xen:
        disk = xen.guests[0].disks[0]
        disk.retries = retries
        image.bad, image.accesses = bad, 0
        began = xen.loop.now
        calls = {
            "read": lambda: disk.read(5, 8),
            "write": lambda: disk.write(5, b"w" * 4096),
            "flush": disk.flush,
            "command": lambda: disk.command(bytes.fromhex("28 00 00000005 00 0008 00"), 4096),
        }
        if fails:
            with pytest.raises(DiskError, match="SRB status ERROR, SCSI status TASK_ABORTED"):
                calls[what]()
        else:
            reply = calls[what]()
            if what in ("read", "command"):
                assert reply == bytes(content()[5 * 512 : 13 * 512])
            elif what == "write":
                assert bytes(image.data[5 * 512 : 13 * 512]) == b"w" * 4096
        assert image.accesses == (retries + 1 if fails else bad + 1)
        waited = xen.loop.now - began
        assert (image.accesses - 1) * SECOND <= waited < image.accesses * SECOND


def test_only_the_srb_that_failed_goes_again() -> None:
    with Platform(seed=2) as xen:
        image = Flaky(bytearray(12 << 20))
        disk = xen.create(name="g", disks=[Disk(image)]).start().disks[0]
        disk.retries = 1
        read = disk.start_read(0, (12 << 20) // 512)
        image.bad = 1
        xen.run()
        assert read.result() == bytes(12 << 20)
        assert len(read.srbs) == read.completions == 3
        assert [piece.tries for piece in read.pieces].count(1) == 1


def test_what_a_reset_gave_up_is_done_a_second_later(s: Scene) -> None:
    disk = s.guest.disks[0]
    disk.retries = 1
    s.freeze()
    write = disk.start_write(7, b"r" * 512)
    s.xen.run()
    disk.target.submit(Srb(function=SrbFunction.RESET_DEVICE))
    s.xen.run()
    assert write.srb_status is SrbStatus.PENDING
    for queue in s.back.queues:
        queue.task.release()
    s.xen.run()
    assert write.result() == b""
    assert bytes(s.image.buffer[7 * 512 : 8 * 512]) == b"r" * 512
    assert disk.read(7, 1) == b"r" * 512


def test_a_transfer_above_a_transfers_length_is_whole_with_retries_too() -> None:
    with Platform(seed=2) as xen:
        image = Flaky(content(20000))
        disk = xen.create(name="g", disks=[Disk(image)]).start().disks[0]
        disk.retries = 2
        image.bad = 2
        assert disk.read(3, 19000) == bytes(content(20000)[3 * 512 : 19003 * 512])
        image.bad = 2
        disk.write(0, bytes(9 << 20))
        assert bytes(image.data[: 9 << 20]) == bytes(9 << 20)


def test_a_unit_attention_passes_and_a_wrong_sector_does_not() -> None:
    xen, image = flaky(vbd=Parameters(sense_data=True))
    with xen:
        disk = xen.guests[0].disks[0]
        disk.retries = 3
        disk.reset()
        assert disk.capacity == SECTORS
        began = xen.loop.now
        with pytest.raises(DiskError, match="ILLEGAL REQUEST"):
            disk.read(1 << 20, 1)
        assert xen.loop.now == began
        image.bad = 2
        assert disk.read(0, 1) == bytes(content()[:512])


def test_what_waits_for_its_next_try_ends_with_its_disk(s: Scene) -> None:
    disk = s.guest.disks[0]
    disk.retries = 5
    s.freeze()
    read = disk.start_read(0, 1)
    s.xen.run()
    s.target.frontend.fail("in a test")
    assert read.srb_status is SrbStatus.PENDING
    s.target.vanish()
    s.xen.run()
    assert read.srb_status is SrbStatus.NO_DEVICE
    free = s.domain.pages.free_pages
    s.guest.detach("vbd", 51712, mode="forced")
    assert s.domain.pages.free_pages >= free
    assert not any("retry" in task.name for task in s.domain.tasks)


def test_a_buffer_that_the_backend_still_holds_is_not_sent_again(s: Scene) -> None:
    disk, frontend = s.guest.disks[0], s.target.frontend
    disk.retries = 3
    s.freeze()
    read = disk.start_read(0, 8)
    s.xen.run()
    segments = next(iter(frontend.rings[0].submitted.values())).segments
    assert segments is not None
    hole = s.xen.dom0.holes.alloc()
    s.xen.dom0.gnttab.map(s.guest.domid, segments.wire[0], hole)
    frontend.resume()
    s.xen.run()
    assert read.srb_status is SrbStatus.ERROR


def test_with_retries_a_migration_with_requests_in_flight_loses_nothing(s: Scene) -> None:
    """The first host's backend is stuck; what is on its ring goes again on the other host."""
    with Platform(seed=4, loop=s.xen.loop) as there:
        disk = s.guest.disks[0]
        disk.retries = 2
        s.freeze()
        writes = [disk.start_write(8 * n, bytes([n + 1]) * 4096) for n in range(100)]
        reads = [disk.start_read(8 * n, 8) for n in range(100, 200)]
        s.xen.run()
        moved = s.guest.migrate(there)
        s.xen.run()
        for n, write in enumerate(writes):
            ended = moved.counterpart(write)
            assert (ended.result(), ended.completions) == (b"", 1)
            assert bytes(s.image.buffer[4096 * n : 4096 * (n + 1)]) == bytes([n + 1]) * 4096
        for n, read in enumerate(reads, 100):
            ended = moved.counterpart(read)
            assert ended.result() == bytes(content()[4096 * n : 4096 * (n + 1)])
            assert ended.completions == 1
        assert {
            piece.tries for one in (*writes, *reads) for piece in moved.counterpart(one).pieces
        } == {0, 1}


def test_what_waits_for_its_next_try_is_saved_with_its_guest(s: Scene) -> None:
    with Platform(seed=4, loop=s.xen.loop) as there:
        disk = s.guest.disks[0]
        disk.retries = 1
        s.freeze()
        write = disk.start_write(0, b"w" * 512)
        s.xen.run()
        s.target.submit(Srb(function=SrbFunction.RESET_DEVICE))
        s.xen.advance(0.2)
        assert write.pieces[0].tries == 1
        moved = s.guest.migrate(there)
        s.xen.run()
        assert moved.counterpart(write).result() == b""
        assert bytes(s.image.buffer[:512]) == b"w" * 512


def test_what_fails_later_does_not_put_off_what_failed_before() -> None:
    xen, image = flaky()
    with xen:
        disk = xen.guests[0].disks[0]
        disk.retries = 1
        reads = []
        for seconds in (0.5, 0.6):
            image.bad = 1
            reads.append(disk.start_read(0, 1))
            xen.advance(seconds)
        assert [read.srb_status for read in reads] == [SrbStatus.SUCCESS] * 2
