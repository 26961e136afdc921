"""A disk that moves with its guest: to which backend, with what keys, and what was on the way."""

from __future__ import annotations

import attrs
import pytest

from tests.migration import copy
from tests.vbd.test_frontend import FRONT
from xenpv import Disk, Guest, MemoryImage, Platform
from xenpv.bus.devicetree import Irp
from xenpv.vbd.frontend import FrontendState
from xenpv.vbd.parameters import Parameters
from xenpv.vbd.srb import SrbStatus
from xenpv.vbd.usage import UsageType

both = pytest.mark.parametrize("personality", ["windows", "linux"])
IMAGE = bytes(range(256)) * 8192
PAGES = 512


def made(xen: Platform, personality: str = "windows", profile: str | None = None) -> Guest:
    wanted = Parameters(ring_page_order=4, queues=4)
    return xen.create(
        name="g",
        vcpus=4,
        disks=[Disk(MemoryImage(bytearray(IMAGE)), profile=profile)],
        personality=personality,
        vbd=wanted,
    ).start()


def moved(xen: Platform, guest: Guest, profile: str) -> Guest:
    """To a host whose backends are others."""
    guest.suspend()
    saved = copy.save(guest)
    guest.destroy()
    config = guest.created.config
    disks = [attrs.evolve(disk, profile=profile, backendtype=None) for disk in config.disks]
    new = copy.load(xen, attrs.evolve(config, disks=disks), saved)
    new.start()
    new.counterparts = copy.Counterparts(guest, new)
    return new


def keys(xen: Platform, guest: Guest) -> dict[str, str | None]:
    xs, home = xen.toolstack.xs, f"/local/domain/{guest.domid}/{FRONT}"
    names = ("state", "multi-queue-num-queues", "ring-page-order", "target-id", "event-channel")
    return {name: xs.read(f"{home}/{name}") for name in names}


# from, to; queues, order and indirect segments there
MOVES = [
    ("linux", "linux", 4, 4, 256),
    ("linux", "qemu", 1, 4, 0),
    ("linux", "tapdisk", 1, 3, 0),
    ("linux", "mirage", 1, 0, 256),
    ("tapdisk", "linux", 4, 4, 256),
    ("qemu", "tapdisk", 1, 3, 0),
    ("mirage", "qemu", 1, 4, 0),
]


@both
@pytest.mark.parametrize(("source", "target", "queues", "order", "indirect"), MOVES)
def test_a_disk_takes_what_the_new_host_offers(
    personality: str, source: str, target: str, queues: int, order: int, indirect: int
) -> None:
    with Platform(seed=3, dom0_vcpus=4) as xen:
        guest = made(xen, personality, source)
        old = guest.disks[0]
        old.write(0, b"\x77" * 4096)
        guest.pause()
        writes = [old.start_write(8 * n, bytes([n]) * 4096) for n in range(1, 20)]
        reads = [old.start_read(1024 + 8 * n, 8) for n in range(20)]
        large = old.start_write(2048, b"\x55" * 262144)
        guest.unpause()
        new = moved(xen, guest, target)
        disk = new.disks[0]
        frontend = disk.target.frontend
        assert frontend.state is FrontendState.ENABLED
        assert [len(ring.grefs) for ring in frontend.rings] == [1 << order] * queues
        assert frontend.backend.indirect_segments == indirect
        found = keys(xen, new)
        assert found["state"] == "4"
        assert found["ring-page-order"] == (str(order) if order else None)
        for number, command in enumerate(writes, 1):
            there = new.counterpart(command)
            assert there.completions == len(there.srbs)
            if there.srb_status is SrbStatus.SUCCESS:
                assert disk.read(8 * number, 8) == bytes([number]) * 4096
            else:
                assert personality == "windows", "a Linux frontend does it all again"
                assert there.srb_status is SrbStatus.ERROR
        for number, command in enumerate(reads):
            there = new.counterpart(command)
            assert there.completions == len(there.srbs)
            if there.srb_status is SrbStatus.SUCCESS:
                at = 512 * (1024 + 8 * number)
                assert there.result() == IMAGE[at : at + 4096]
        assert new.counterpart(large).is_complete
        disk.write(2048, b"\x66" * 262144)
        assert disk.read(2048, 512) == b"\x66" * 262144


def test_what_tells_of_the_disk_is_told_again_in_the_new_domain() -> None:
    with Platform(seed=1) as xen:
        guest = made(xen)
        guest.disks[0].target.frontend.usage.notify(UsageType.DUMP, True)
        new = copy.moved(xen, guest)
        xs, home = xen.toolstack.xs, f"/local/domain/{new.domid}"
        path = f"{home}/data/scsi/target/0"
        assert {key: xs.read(f"{path}/{key}") for key in xs.directory(path)} == {
            "paging": "0",
            "hibernation": "0",
            "dump": "1",
            "frontend": FRONT,
            "device": "51712",
        }
        assert xs.read(f"{home}/feature/hotplug/vbd") == "1"
        drivers = [xs.read(f"{home}/drivers/{n}") or "" for n in range(4)]
        assert sum(" XENVBD " in text for text in drivers) == 1


@both
def test_a_disk_can_be_pulled_and_plugged_after_a_move(personality: str) -> None:
    """The watches are the new domain's."""
    with Platform(seed=1) as xen:
        guest = made(xen, personality)
        new = copy.moved(xen, guest)
        devid = new.attach(Disk(MemoryImage(bytearray(b"\x09" * 8192))))
        assert new.disks[1].read(0, 1) == b"\x09" * 512
        new.detach("vbd", devid)
        assert len(new.disks) == 1
        back = f"/local/domain/0/backend/vbd/{new.domid}/51712"
        xen.toolstack.xs.write(f"{back}/sectors", "777")
        xen.run()
        assert new.disks[0].capacity == 777


def test_a_veto_of_before_the_move_binds_nobody_after_it() -> None:
    with Platform(seed=1) as xen:
        guest = made(xen)
        target = guest.disks[0].target
        target.handles += 1
        back = f"/local/domain/0/backend/vbd/{guest.domid}/51712"
        xen.toolstack.xs.write(f"{back}/online", "0")
        xen.toolstack.xs.write(f"{back}/state", "5")
        xen.run()
        assert not target.missing
        new = copy.moved(xen, guest)
        home = f"/local/domain/{new.domid}/{FRONT}"
        assert xen.toolstack.xs.read(f"{home}/ejected") is None
        back = f"/local/domain/0/backend/vbd/{new.domid}/51712"
        xen.toolstack.xs.write(f"{back}/online", "0")
        xen.toolstack.xs.write(f"{back}/state", "5")
        xen.run()
        assert xen.toolstack.xs.read(f"{home}/ejected") == "1", "it is another directory"
        new.disks[0].target.handles -= 1
        new.detach("vbd", 51712)
        assert new.disks == []
        assert new.created.devices == [] or all(one.kind != "vbd" for one in new.created.devices)


def test_a_stopped_disk_is_not_started_by_a_move() -> None:
    with Platform(seed=1) as xen:
        guest = made(xen)
        pnp = guest.disks[0].target.pnp
        pnp.request(Irp.STOP_DEVICE)
        xen.run()
        guest.suspend()
        saved = copy.save(guest)
        guest.destroy()
        new = copy.load(xen, guest.created.config, saved)
        xen.toolstack.unpause(new.created)
        xen.run()
        target = new.disks[0].target
        assert target.state is FrontendState.CLOSED
        target.pnp.request(Irp.START_DEVICE)
        xen.run()
        assert new.disks[0].read(0, 1) == IMAGE[:512]
