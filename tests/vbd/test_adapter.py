from __future__ import annotations

import pytest

from tests.vbd.rawback import scene
from xenpv.host import vdev
from xenpv.host.image import MemoryImage
from xenpv.platform import Disk, Platform
from xenpv.vbd.targetid import target_id


@pytest.mark.parametrize(
    ("devid", "target"),
    [
        (51712, 0),  # xvda
        (51713, 0),  # xvda1
        (51728, 1),  # xvdb
        (51952, 15),  # xvdp
        (2048, 0),  # sda
        (2064, 1),  # sdb
        (2289, 15),  # sdp1
        (768, 0),  # hda
        (832, 1),  # hdb
        (5632, 2),  # hdc
        (5696, 3),  # hdd
        (33 << 8, 4),
        (33 << 8 | 64, 5),
        (34 << 8, 6),
        (56 << 8, 8),
        (57 << 8, 10),
        (88 << 8, 12),
        (89 << 8, 14),
        (89 << 8 | 64, 15),
        (1 << 28 | 16 << 8, 16),  # xvdq
        (1 << 28 | 254 << 8 | 7, 254),
        (1 << 28 | 255 << 8, None),
        (1 << 28 | 4096 << 8, 0),
        (2 << 28, None),
        (1 << 31, None),
        (-1, None),
        (0, None),
        (7 << 8, None),
        (203 << 8, None),
    ],
)
def test_target_numbers(devid: int, target: int | None) -> None:
    assert target_id(devid) == target


def test_the_toolstack_knows_the_same_targets() -> None:
    """Two readings of one table, written apart."""
    numbers = [major << 8 | minor for major in range(256) for minor in (0, 1, 63, 64, 128, 255)]
    numbers += [1 << 28 | disk << 8 | part for disk in (0, 1, 17, 254, 255, 300) for part in (0, 9)]
    assert [target_id(one) for one in numbers] == [vdev.windows_target(one) for one in numbers]


def disks(*vdevs: str) -> list[Disk]:
    return [Disk(MemoryImage(bytearray([n]) * 4096), vdev=name) for n, name in enumerate(vdevs)]


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_disks_come_in_the_order_of_their_targets(personality: str) -> None:
    with Platform() as xen:
        guest = xen.create(
            name="many", disks=disks("xvdc", "xvda", "hdb", "d20p0"), personality=personality
        ).start()
        assert [disk.target.target_id for disk in guest.disks] == [0, 1, 2, 20]
        assert [disk.read(0, 1)[0] for disk in guest.disks] == [1, 2, 0, 3]
        assert [disk.inquiry(0x80)[4:] for disk in guest.disks] == [
            b"0000",
            b"0001",
            b"0002",
            b"0020",
        ]


def test_a_second_device_for_a_target_is_ignored_and_said() -> None:
    with scene(disks=2, start=False) as on:
        xs, home = on.xen.toolstack.xs, f"/local/domain/{on.guest.domid}/device/vbd"
        for key, value in {"device-type": "disk", "state": "1"}.items():
            xs.write(f"{home}/2048/{key}", value)  # sda beside xvda
        on.guest.start()
        assert [target.devid for target in on.adapter.targets.values()] == [51712, 51728]
        on.xen.run()
        assert on.guest.console is not None
        assert "device 2048 is ignored: its target is taken" in on.guest.console.text


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("51744", {"device-type": "cdrom"}),
        ("51744", {"device-type": ""}),
        ("51744", {}),
        ("51744", {"device-type": "disk", "ejected": "1"}),
        ("junk", {"device-type": "disk"}),
        ("99999999999999", {"device-type": "disk"}),
        (str(2 << 28), {"device-type": "disk"}),
    ],
)
def test_what_is_no_disk_gets_no_target(name: str, keys: dict[str, str]) -> None:
    with scene(start=False) as on:
        xs, home = on.xen.toolstack.xs, f"/local/domain/{on.guest.domid}/device/vbd/{name}"
        for key, value in ({"state": "1"} | keys).items():
            xs.write(f"{home}/{key}", value)
        on.guest.start()
        assert list(on.adapter.targets) == [0]


def test_a_disk_that_is_added_later_is_found() -> None:
    with Platform() as xen:
        guest = xen.create(name="grows", disks=disks("xvda")).start()
        from xenpv.host import device
        from xenpv.host.diskspec import DiskSpec

        xen.images.register("late", MemoryImage(bytearray(b"\x07" * 8192)))
        late = device.vbd(DiskSpec(target="late", vdev="xvdb"), guest.domid)
        late.add(xen.toolstack.xs)
        xen.run()
        xen.toolstack.xs.write(f"{late.backend_path}/hotplug-status", "connected")
        xen.run()
        assert [disk.read(0, 1) for disk in guest.disks] == [bytes(512), b"\x07" * 512]


def test_the_guests_disks_are_the_same_objects_each_time() -> None:
    with Platform() as xen:
        guest = xen.create(name="same", disks=disks("xvda", "xvdb")).start()
        first, second = guest.disks
        assert guest.disks[0] is first
        assert guest.disks[1] is second
