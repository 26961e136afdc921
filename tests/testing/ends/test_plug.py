"""A user's backend under whole guests: Windows and Linux frontends, files, what it does wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.testing.ends.test_examples import FRAME, BlkBackend, NetBackend
from xenpv import Disk, LocalProtocolError, MemoryImage, Platform, ToolstackError, Vif
from xenpv.testing import UserEndError, check_all, plug_backend

SECTOR = 512


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_guests_read_and_write_by_the_users_backend(personality) -> None:
    image = MemoryImage(bytearray(1 << 20))
    with Platform(seed=1) as xen:
        plugged = plug_backend(xen, "vbd", BlkBackend)
        guest = xen.create(name="web", disks=[Disk(image)], personality=personality).start()
        data = bytes(range(256)) * 64
        guest.disks[0].write(3, data)
        assert guest.disks[0].read(3, len(data) // SECTOR) == data
        assert bytes(image.buffer[3 * SECTOR :][: len(data)]) == data
        assert [type(one) for one in plugged.drivers] == [BlkBackend]
        check_all(xen)
        guest.shutdown()
    assert plugged.drivers == [None]


def test_a_file_is_opened_for_the_users_backend_and_closed(tmp_path) -> None:
    path = Path(tmp_path / "disk.img")
    path.write_bytes(b"mine".ljust(1 << 16, b"\0"))
    with Platform(seed=1) as xen:
        plug_backend(xen, "vbd", BlkBackend)
        disk = Disk(path, readonly=True)
        guest = xen.create(name="web", disks=[disk]).start()
        assert guest.disks[0].read(0, 1)[:4] == b"mine"
        guest.shutdown()
        assert not any(xen.images._open.values())
    assert path.stat().st_size == 1 << 16


def test_a_disk_without_its_image_does_not_connect() -> None:
    with Platform(seed=1) as xen:
        plugged = plug_backend(xen, "vbd", BlkBackend)
        image = MemoryImage(bytes(SECTOR), writable=False)
        with pytest.raises(ToolstackError, match="to reach state 2"):
            xen.create(name="web", disks=[Disk(image)]).start()
        assert "read-only: give the disk access ro" in plugged.plugged[0].device.broken


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_frames_pass_the_users_network_backend(personality) -> None:
    with Platform(seed=1) as xen:
        plug_backend(xen, "vif", NetBackend)
        host = xen.respond("inner")
        guest = xen.create(name="web", vifs=[Vif(bridge="inner")], personality=personality).start()
        guest.nets[0].send(FRAME)
        xen.run()
        assert xen.bridge("inner").frames[-1] == FRAME
        assert host is not None
        check_all(xen)
        guest.shutdown()


class Wild(BlkBackend):
    def event(self) -> None:
        super().event()
        if self.ring.take()[0] == 0:
            self.end.write(0x4000, 0, b"somebody's")


def test_what_it_does_wrong_comes_out_of_the_call_that_ran_it() -> None:
    with Platform(seed=1) as xen:
        plug_backend(xen, "vbd", Wild)
        guest = xen.create(name="web", disks=[Disk(MemoryImage(bytes(1 << 16)))])
        with pytest.raises(UserEndError, match="is none of this end's") as caught:
            guest.start()
        assert caught.value.function == "event"


def test_only_backends_of_disks_and_interfaces_are_plugged() -> None:
    with Platform() as xen, pytest.raises(LocalProtocolError, match="expected one of vbd, vif"):
        plug_backend(xen, "console", BlkBackend)
