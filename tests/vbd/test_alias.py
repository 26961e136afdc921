"""Disks beside emulated ones: which get no target, what they ask for, and what the next boot has."""

from __future__ import annotations

import pytest

from tests.flows.test_unplug import emulated, fresh, masks, seen
from xenpv import Disk, Guest, MemoryImage, Platform
from xenpv.bus import inf
from xenpv.bus.registry import Registry
from xenpv.host import hardware
from xenpv.host.hardware import Hardware
from xenpv.vbd.alias import Refusal

VDEVS = ("xvda", "xvdb", "xvdc", "xvdd", "xvde")
DEVIDS = {"xvda": 51712, "xvdb": 51728, "xvdc": 51744, "xvdd": 51760, "xvde": 51776}
A, B, NONE = Refusal.ALIASED, Refusal.BOOT_EMULATED, None
BOOT_EMULATED = {("Control", "SystemStartOptions"): "XEN:BOOT_EMULATED=TRUE"}
STAYS = {(inf.UNPLUG, "DISKS"): 0}  # nobody asked for an unplug
SAFE = {("Control", "SystemStartOptions"): "SAFEBOOT:MINIMAL"}


def create(
    xen: Platform, registry: Registry, devices: tuple[Hardware, ...] | None, vdevs: tuple[str, ...]
) -> Guest:
    disks = [Disk(MemoryImage(bytearray(1 << 20)), vdev=vdev) for vdev in vdevs]
    return xen.create(name="w", disks=disks, registry=registry, hardware=devices)


def refused(guest: Guest) -> list[Refusal | None]:
    assert guest._vbd is not None
    return [guest._vbd.scan.refused.get(devid) for devid in DEVIDS.values()]


def wants_reboot(guest: Guest) -> bool:
    return "XENVBD" in guest.reboot_requests


PLATFORM = hardware.platform_device()
# situation; registry; emulated devices besides the platform device; why xvda to xvde are refused;
# whether a reboot is asked for
GUARDS = [
    ("nothing is emulated", {}, (), (NONE, NONE, NONE, NONE, NONE), False),
    ("all is unplugged", {}, tuple(map(hardware.ide_disk, range(4))), (NONE, NONE, NONE, NONE, NONE), False),
    ("one stays", STAYS, (hardware.ide_disk(0),), (A, NONE, NONE, NONE, NONE), True),
    ("another stays", STAYS, (hardware.ide_disk(2),), (NONE, NONE, A, NONE, NONE), True),
    ("all stay", STAYS, tuple(map(hardware.ide_disk, range(4))), (A, A, A, A, NONE), True),
    ("an NVMe stays", STAYS, (hardware.nvme(),), (A, A, A, A, NONE), True),
    ("an older NVMe stays", STAYS, (hardware.nvme("intel"),), (A, A, A, A, NONE), True),
    ("it boots emulated", BOOT_EMULATED, (hardware.ide_disk(0), hardware.ide_disk(1)), (B, NONE, NONE, NONE, NONE), False),
    ("it boots emulated from NVMe", BOOT_EMULATED, (hardware.nvme(),), (B, A, A, A, NONE), True),
    ("it boots emulated and nothing is", BOOT_EMULATED, (), (B, NONE, NONE, NONE, NONE), False),
    ("safe mode", SAFE, (hardware.ide_disk(1),), (NONE, A, NONE, NONE, NONE), True),
    ("forced", {**STAYS, (inf.FORCE_UNPLUG, "DISKS"): 1}, (hardware.ide_disk(0), hardware.nvme()), (NONE, NONE, NONE, NONE, NONE), False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "devices", "whys", "reboot"),
    [row[1:] for row in GUARDS],
    ids=[row[0] for row in GUARDS],
)
def test_a_disk_beside_an_emulated_one(
    changes: dict[tuple[str, str], object],
    devices: tuple[Hardware, ...],
    whys: tuple[Refusal | None, ...],
    reboot: bool,
) -> None:
    with Platform() as xen:
        registry = inf.installed()
        for (path, name), value in changes.items():
            registry.set(path, name, value)  # type: ignore[arg-type]  # rows of the table
        guest = create(xen, registry, (PLATFORM, *devices), VDEVS).start()
        assert refused(guest) == list(whys)
        assert wants_reboot(guest) is reboot
        made = [vdev for vdev, why in zip(VDEVS, whys, strict=True) if why is None]
        assert [disk.devid for disk in guest.disks] == [DEVIDS[vdev] for vdev in made]
        for disk in guest.disks:
            disk.write(0, bytes(512))


@pytest.mark.parametrize("seed", range(3))
def test_before_xenfilt_is_loaded_nobody_can_say_and_the_second_boot_is_pv(seed: int) -> None:
    with Platform(seed=seed) as xen:
        guest = create(xen, fresh(), None, VDEVS).start()
        assert guest.windows is not None
        assert guest.windows.xenfilt is None
        assert refused(guest) == [A, A, A, A, NONE]
        assert [disk.devid for disk in guest.disks] == [DEVIDS["xvde"]]
        assert seen(guest) == ["disk"] * 4
        assert wants_reboot(guest)

        guest.reboot()
        assert refused(guest) == [NONE] * 5
        assert [disk.devid for disk in guest.disks] == list(DEVIDS.values())
        assert (seen(guest), masks(guest)[:1], wants_reboot(guest)) == ([], [0x0009], False)


# situation; registry; whether the controller is there; why sda, sdb and sdf are refused
SCSI = [
    ("unplugged", {}, True, (NONE, NONE, NONE)),
    ("stays", STAYS, True, (A, A, A)),
    ("is not there", STAYS, False, (NONE, NONE, NONE)),
    ("boots emulated", BOOT_EMULATED, True, (B, B, B)),
    ("boots emulated without it", BOOT_EMULATED, False, (B, NONE, NONE)),
]


@pytest.mark.parametrize(
    ("changes", "there", "whys"), [row[1:] for row in SCSI], ids=[row[0] for row in SCSI]
)
def test_a_disk_on_the_emulated_scsi_controller(
    changes: dict[tuple[str, str], object], there: bool, whys: tuple[Refusal | None, ...]
) -> None:
    with Platform() as xen:
        registry = inf.installed()
        for (path, name), value in changes.items():
            registry.set(path, name, value)  # type: ignore[arg-type]  # rows of the table
        devices = (PLATFORM, *((hardware.scsi_controller(),) if there else ()))
        guest = create(xen, registry, devices, ("sda", "sdb", "sdf")).start()
        assert guest._vbd is not None
        refusals = guest._vbd.scan.refused
        assert [refusals.get(devid) for devid in (2048, 2064, 2128)] == list(whys)
        assert len(guest.disks) == whys.count(None)
        assert wants_reboot(guest) is (A in whys)


def test_a_disk_that_is_plugged_in_where_an_emulated_one_is_stays_away() -> None:
    with Platform() as xen:
        registry = inf.installed()
        registry.set(inf.UNPLUG, "DISKS", 0)
        guest = create(xen, registry, (PLATFORM, hardware.ide_disk(1)), ("xvda",)).start()
        assert emulated(guest).is_disk_present(1)
        guest.attach(Disk(MemoryImage(bytearray(4096)), vdev="xvdb"))
        assert refused(guest)[1] is A
        assert [disk.devid for disk in guest.disks] == [DEVIDS["xvda"]]
        assert wants_reboot(guest)
        guest.attach(Disk(MemoryImage(bytearray(4096)), vdev="xvdf"))
        assert [disk.devid for disk in guest.disks] == [DEVIDS["xvda"], 51792]


@pytest.mark.parametrize(
    ("vdev", "why"), [("d254p0", None), ("d255p0", Refusal.NO_TARGET), ("d4100p1", None)]
)
def test_a_disk_whose_number_is_no_targets_asks_for_a_reboot(vdev: str, why: object) -> None:
    with Platform() as xen:
        guest = create(xen, inf.installed(), (PLATFORM,), ("xvda",)).start()
        guest.attach(Disk(MemoryImage(bytearray(4096)), vdev=vdev))
        assert guest._vbd is not None
        assert list(guest._vbd.scan.refused.values()) == ([] if why is None else [why])
        assert wants_reboot(guest) is (why is not None)
        assert guest._vbd.emulated == []


def test_a_kernel_without_the_platforms_bus_minds_no_emulated_disks() -> None:
    with Platform() as xen:
        disks = [Disk(MemoryImage(bytearray(4096)), vdev="xvda")]
        devices = (PLATFORM, hardware.ide_disk(0))
        guest = xen.create(name="l", disks=disks, personality="linux", hardware=devices).start()
        assert [disk.devid for disk in guest.disks] == [51712]


@pytest.mark.parametrize("removed", [False, True])
def test_the_request_to_unplug_is_one_of_the_adapter_and_goes_with_it(removed: bool) -> None:
    with Platform() as xen:
        guest = create(xen, inf.installed(), None, VDEVS).start()
        assert guest.registry.values(inf.UNPLUG)["DISKS"] == 1, "however many disks there are"
        tree = guest.device_tree
        assert tree is not None
        if removed:
            node = tree.find("XENBUS\\VEN_XP&DEV_VBD")
            assert node is not None
            tree.remove(node)
            xen.run()
        assert guest.registry.values(inf.UNPLUG)["DISKS"] == int(not removed)
