"""Emulated devices across boots: what Windows sees of them, and who has them unplugged."""

from __future__ import annotations

import pytest

from xenpv import Disk, Guest, Platform, Vif
from xenpv.bus import inf
from xenpv.bus.devicetree import NodeState
from xenpv.bus.ntstatus import NTSTATUS
from xenpv.bus.registry import Registry
from xenpv.bus.unplug import UnplugType
from xenpv.bus.xenfilt import EmulatedInterface, FilterState
from xenpv.host import hardware
from xenpv.host.hardware import Hardware
from xenpv.host.image import MemoryImage
from xenpv.host.toolstack import ToolstackError


def fresh(**options: str) -> Registry:
    """Drivers that were installed and never ran."""
    registry = Registry(inf.INF)
    for name, value in options.items():
        registry.set("Control", name, value)
    return registry


def create(
    xen: Platform,
    registry: Registry | None = None,
    devices: tuple[Hardware, ...] | None = None,
    vifs: int = 1,
) -> Guest:
    return xen.create(
        name="w",
        disks=[Disk(MemoryImage(bytearray(1 << 20)))],
        vifs=[Vif() for _ in range(vifs)],
        registry=registry,
        hardware=devices,
    )


def seen(guest: Guest) -> list[str]:
    """The emulated devices that Windows has."""
    tree = guest.device_tree
    assert tree is not None
    names = {
        "GenDisk": "disk",
        "GenCdRom": "cdrom",
        "PCI\\CC_0200": "nic",
        "PCI\\CC_0100": "scsi",
        "PCI\\CC_010802": "nvme",
    }
    found = []
    for node in tree.walk():
        found += [names[one] for one in (*node.hardware_ids, *node.compatible_ids) if one in names]
    return found


def masks(guest: Guest) -> list[int]:
    assert guest.device_model is not None
    return [int(mask) for mask in guest.device_model.unplugged]


def emulated(guest: Guest) -> EmulatedInterface:
    assert guest.windows is not None
    assert guest.windows.xenfilt is not None
    return guest.windows.xenfilt.emulated


@pytest.mark.parametrize("seed", range(4))
def test_first_boot_sees_emulated_devices_and_the_second_only_pv(seed: int) -> None:
    with Platform(seed=seed) as xen:
        guest = create(xen, fresh(), vifs=2).start()
        assert seen(guest) == ["disk", "nic", "nic"]
        assert guest.windows.xenfilt is None
        assert masks(guest) == []
        assert guest.bus.unplug.is_requested(UnplugType.DISKS) is False
        assert guest.registry.values(inf.UNPLUG) == {"DISKS": 1, "NICS": 2}, "the drivers asked"
        assert guest.registry.string(inf.XENFILT_PARAMETERS, "ActiveInstanceID") == "10"

        guest.reboot()
        assert seen(guest) == []
        assert guest.windows.xenfilt.state is FilterState.DISABLED
        assert masks(guest) == [0x0009, 0x0002]
        assert guest.bus.unplug.is_requested(UnplugType.DISKS)
        assert guest.bus.unplug.is_requested(UnplugType.NICS)
        assert guest.registry.values(inf.UNPLUG) == {"DISKS": 1, "NICS": 2}, "and ask again"
        assert not emulated(guest).is_disk_present(0)
        guest.disks[0].write(0, bytes(4096))
        assert len(guest.nets) == 2

        guest.reboot()
        assert (seen(guest), masks(guest)) == ([], [0x0009, 0x0002])


def test_a_guest_is_one_whose_drivers_ran_before_unless_told_otherwise() -> None:
    with Platform() as xen:
        guest = create(xen).start()
        assert (seen(guest), masks(guest)) == ([], [0x0009, 0x0002])
        assert guest.device_tree.lines() == [
            "HTREE\\ROOT\\0 PnpManager started",
            "  ACPI\\PNP0A03\\0 pci started",
            "    PCI\\VEN_8086&DEV_7010&SUBSYS_00000000&REV_00\\09 pciide started",
            "    PCI\\VEN_5853&DEV_0001&SUBSYS_00015853&REV_01\\10 XENBUS started",
            "      XENBUS\\VEN_XP&DEV_VBD\\_ XENVBD started",
            "      XENBUS\\VEN_XP&DEV_VIF\\_ XENVIF started",
            "      XENBUS\\VEN_XP&DEV_IFACE\\_ XENIFACE started",
            "      XENBUS\\VEN_XP&DEV_CONS\\_ - initialized code 28 FAILED_INSTALL",
        ]
        assert guest.registry.find("Enum\\PCI\\VEN_10EC&DEV_8139&SUBSYS_11001AF4&REV_20") is None


EVERYTHING = (
    hardware.platform_device(), hardware.ide_disk(0), hardware.ide_disk(1), hardware.cdrom(3),
    hardware.scsi_controller(), hardware.nvme(), hardware.nic("e1000"),
)  # fmt: skip
ALL = ["disk", "disk", "cdrom", "scsi", "nvme", "nic"]
# situation, changes to the registry of an installed guest, devices left, masks
BOOTS = [
    ("as always", {}, ["cdrom"], [0x0009, 0x0002]),
    ("boot disk emulated", {("Control", "SystemStartOptions"): "XEN:BOOT_EMULATED=TRUE"}, ["disk", "cdrom", "scsi", "nvme"], [0x0004, 0x0002]),
    ("safe mode", {("Control", "SystemStartOptions"): "SAFEBOOT:MINIMAL"}, ALL, []),
    ("nobody asked for disks", {(inf.UNPLUG, "DISKS"): 0}, ["disk", "disk", "cdrom", "scsi", "nvme"], [0x0002]),
    ("nobody asked", {(inf.UNPLUG, "DISKS"): 0, (inf.UNPLUG, "NICS"): 0}, ALL, []),
    ("forced", {(inf.UNPLUG, "DISKS"): 0, (inf.UNPLUG, "NICS"): 0, (inf.FORCE_UNPLUG, "DISKS"): 1}, ["cdrom", "nic"], [0x0009]),
    ("another device is active", {(inf.XENFILT_PARAMETERS, "ActiveDeviceID"): "PCI\\VEN_5853&DEV_0002&SUBSYS_00025853&REV_01"}, ALL, []),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "changes", "left", "written"), BOOTS, ids=[row[0] for row in BOOTS]
)
def test_boot(case: str, changes, left: list[str], written: list[int]) -> None:
    with Platform() as xen:
        registry = inf.installed()
        for (path, name), value in changes.items():
            registry.set(path, name, value)
        guest = create(xen, registry, EVERYTHING)
        if "another device" in case:
            with pytest.raises(ToolstackError, match="not connected: vbd 51712, vif 0"):
                guest.start()
        else:
            guest.start()
        assert sorted(seen(guest)) == sorted(left)
        assert masks(guest) == written


def test_a_disk_that_stays_is_seen_by_emulated_and_one_that_went_is_not() -> None:
    with Platform() as xen:
        registry = inf.installed()
        registry.set("Control", "SystemStartOptions", "XEN:BOOT_EMULATED=TRUE")
        devices = (hardware.platform_device(), *map(hardware.ide_disk, range(4)))
        guest = create(xen, registry, devices).start()
        assert [emulated(guest).is_disk_present(index) for index in range(4)] == [
            True,
            False,
            False,
            False,
        ]
        assert guest.bus.unplug.boot_emulated()


@pytest.mark.parametrize("seed", range(4))
def test_blacklisted_drivers_are_told_and_unplug_all_the_same(seed: int) -> None:
    with Platform(seed=seed) as xen:
        xen.toolstack.xs.write("/mh/driver-blacklist/experimental/590080", "")
        guest = create(xen).start()
        assert (seen(guest), masks(guest)) == ([], [0x0009, 0x0002])
        assert "xen|UNPLUG: PRE-AMBLE (DRIVERS BLACKLISTED)" in guest.device_model.log.lines
        assert guest.windows.system.unplug.blacklisted


def test_a_class_that_is_disabled_withdraws_its_requests() -> None:
    with Platform() as xen:
        guest = create(xen, vifs=2).start()
        tree = guest.device_tree
        node = tree.find("XENBUS\\VEN_XP&DEV_VIF")
        assert tree.remove(node) is NTSTATUS.SUCCESS
        xen.run()
        assert node.state is NodeState.INITIALIZED
        assert guest.registry.values(inf.UNPLUG) == {"DISKS": 1, "NICS": 0}


def test_a_shutdown_withdraws_nothing() -> None:
    with Platform() as xen:
        guest = create(xen, vifs=2).start()
        guest.shutdown()
        assert guest.registry.values(inf.UNPLUG) == {"DISKS": 1, "NICS": 2}


def test_a_guest_without_platform_device_has_no_xenbus() -> None:
    with Platform() as xen:
        guest = create(xen, devices=(hardware.ide_disk(0), hardware.nic()))
        with pytest.raises(ToolstackError, match="not connected: vbd 51712, vif 0"):
            guest.start()
        assert guest.bus is None
        assert (seen(guest), masks(guest)) == (["disk", "nic"], [])
        assert guest.windows.xenfilt.state is FilterState.DISABLED


@pytest.mark.parametrize("number", [1, 2])
def test_either_platform_device_will_do(number: int) -> None:
    with Platform() as xen:
        devices = (hardware.nic(), hardware.platform_device(number))
        guest = create(xen, devices=devices).start()
        assert guest.bus.name == f"XP000{number} XENBUS"
        assert (seen(guest), masks(guest)) == ([], [0x0009, 0x0002])
        assert guest.registry.string(inf.XENFILT_PARAMETERS, "ActiveInstanceID") == "18"


def test_a_device_that_was_plugged_elsewhere_keeps_its_instance() -> None:
    with Platform() as xen:
        devices = (hardware.nic(), hardware.platform_device())
        guest = create(xen, inf.installed(), devices).start()
        assert guest.device_tree.find("PCI\\VEN_5853&DEV_0001").instance_id == "10"


def test_linux_has_no_device_tree_and_its_ports_are_left_alone() -> None:
    with Platform() as xen:
        guest = xen.create(name="l", personality="linux", vifs=[Vif()]).start()
        assert guest.device_tree is None
        assert masks(guest) == []
        assert guest.bus is not None


def test_the_registry_outlives_reboots_and_its_volatile_keys_do_not() -> None:
    with Platform() as xen:
        guest = create(xen).start()
        guest.registry.set("Services\\mine", "value", 7)
        guest.windows.bus.unplug.reboot("XENVIF")
        assert guest.reboot_requests == ["XENVIF"]
        guest.reboot()
        assert guest.reboot_requests == []
        assert guest.registry.get("Services\\mine", "value") == 7


def test_guests_do_not_share_a_registry() -> None:
    with Platform() as xen:
        one, two = (xen.create(name=name).start() for name in ("a", "b"))
        one.registry.set("Services\\mine", "value", 7)
        assert two.registry.get("Services\\mine", "value") is None


def test_after_hibernation_devices_are_unplugged_again() -> None:
    with Platform() as xen:
        guest = create(xen).start()
        bus = guest.bus
        bus.sleep()
        xen.run()
        bus.wake()
        xen.run()
        assert masks(guest) == [0x0009, 0x0002], "S3 unplugs nothing"
        bus.sleep(s4=True)
        xen.run()
        domain = guest.created.domain
        assert (domain.shutdown_code, masks(guest)) == (0, [0x0009, 0x0002])
        domain.resume()  # stands for a new domain with the memory that was on disk
        bus.wake()
        xen.run()
        assert masks(guest) == [0x0009, 0x0002, 0x0009, 0x0002]
        assert all(up for _, _, up in guest._connections())


def test_equal_seeds_boot_alike() -> None:
    digests = []
    for _ in range(2):
        with Platform(seed=11) as xen:
            create(xen, fresh()).start().reboot()
            digests.append(xen.digest)
    assert digests[0] == digests[1]


@pytest.mark.parametrize(("cancelled", "again"), [(False, True), (True, False)])
def test_a_resume_in_a_new_domain_unplugs_again(cancelled: bool, again: bool) -> None:
    with Platform() as xen:
        guest = create(xen).start()
        guest.bus.suspend.trigger()
        xen.run()
        domain = guest.created.domain
        assert domain.is_shutdown
        domain.suspend_result = int(cancelled)
        domain.resume()
        xen.run()
        assert masks(guest) == [0x0009, 0x0002] * (1 + again)
