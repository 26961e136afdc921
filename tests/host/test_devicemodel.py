"""Emulated devices of a domain, the unplug ports, the blacklist and the guest's log."""

from __future__ import annotations

import attrs
import pytest

from xenpv.abi.pci import IdeDrive, PciFunction
from xenpv.abi.unplug import Unplug
from xenpv.errors import ConfigError, LocalProtocolError
from xenpv.host import hardware
from xenpv.host.devicemodel import BUCKET_BYTES, LINE_MAX, DeviceModel
from xenpv.host.diskspec import DiskSpec
from xenpv.host.domainconfig import DomainConfig, DomainType, Personality
from xenpv.host.vifspec import NicType, VifSpec
from xenpv.host.xs import XsHandle
from xenpv.store.server import Xenstored

HOST_NVME = PciFunction(0x144D, 0xA808, 0x010802, passed_through=True)
HOST_NIC = PciFunction(0x8086, 0x10FB, 0x020000, passed_through=True)
ALL = (
    hardware.platform_device(), hardware.ide_disk(0), hardware.ide_disk(1), hardware.ide_disk(2),
    hardware.cdrom(3), hardware.scsi_controller(), hardware.nvme(), hardware.nic(), hardware.nic("e1000"),
    HOST_NVME, HOST_NIC,
)  # fmt: skip


@attrs.define
class Clock:
    now: int = 0


def model(*devices: hardware.Hardware, version: int = 1, clock: Clock | None = None) -> DeviceModel:
    xs = XsHandle(Xenstored().connect_local("qemu"))
    config = DomainConfig(name="x", hardware=devices or ALL)
    return DeviceModel(config, xs, clock or Clock(), version=version)


def found(made: DeviceModel) -> list[str]:
    """What is left, by its ids or its place."""
    names = {0x5853: "platform", 0x7010: "ide", 0x0012: "scsi", 0x0010: "nvme", 0x8139: "rtl8139",
             0x100E: "e1000", 0xA808: "host nvme", 0x10FB: "host nic"}  # fmt: skip
    functions = [names.get(one.vendor_id) or names[one.device_id] for one in made.functions()]
    drives = [f"{'cd' if one.is_cdrom else 'hd'}{one.index}" for one in made.drives()]
    return functions + drives


EVERYTHING = ["ide", "platform", "scsi", "nvme", "rtl8139", "e1000", "host nvme", "host nic",
              "hd0", "hd1", "hd2", "cd3"]  # fmt: skip
# mask, what goes
MASKS = [
    (0x0000, []),
    (0x0001, ["hd0", "hd1", "hd2", "scsi"]),
    (0x0002, ["rtl8139", "e1000"]),
    (0x0003, ["hd0", "hd1", "hd2", "scsi", "rtl8139", "e1000"]),
    (0x0004, ["hd1", "hd2"]),
    (0x0005, ["hd0", "hd1", "hd2", "scsi"]),
    (0x0006, ["hd1", "hd2", "rtl8139", "e1000"]),
    (0x0008, ["nvme"]),
    (0x0009, ["hd0", "hd1", "hd2", "scsi", "nvme"]),
    (0x000C, ["hd1", "hd2", "nvme"]),
    (0x000F, ["hd0", "hd1", "hd2", "scsi", "nvme", "rtl8139", "e1000"]),
    (0xFFF0, []),
    (0xFFFF, ["hd0", "hd1", "hd2", "scsi", "nvme", "rtl8139", "e1000"]),
]


@pytest.mark.parametrize(("mask", "gone"), MASKS, ids=[f"{mask:#06x}" for mask, _ in MASKS])
def test_mask_takes_away_what_its_bits_name(mask: int, gone: list[str]) -> None:
    made = model()
    assert found(made) == EVERYTHING
    made.io_write(0x10, 2, mask)
    assert found(made) == [one for one in EVERYTHING if one not in gone]


def test_masks_add_up_and_are_remembered() -> None:
    made = model()
    made.io_write(0x10, 2, 0x0009)
    made.io_write(0x10, 2, 0x0002)
    assert found(made) == ["ide", "platform", "host nvme", "host nic", "cd3"]
    assert made.unplugged == [Unplug.ALL_DISKS | Unplug.NVME_DISKS, Unplug.ALL_NICS]


# access, version 1, version 0
READS = [
    ((0x10, 2), 0x49D2, 0x49D2),
    ((0x12, 1), 1, 0),
    ((0x10, 1), -1, -1),
    ((0x10, 4), -1, -1),
    ((0x12, 2), -1, -1),
    ((0x11, 1), -1, -1),
    ((0x1F, 1), -1, -1),
]


@pytest.mark.parametrize(("access", "one", "zero"), READS)
def test_reads(access: tuple[int, int], one: int, zero: int) -> None:
    assert model().io_read(*access) == one
    assert model(version=0).io_read(*access) == zero


# situation, node in the store, product, build, version, magic afterwards
BLACKLISTS = [
    ("no node", None, 0xFFFF, 0x90100, 1, 0x49D2),
    ("its node", "experimental/590080", 0xFFFF, 590080, 1, 0xD249),
    ("its node, empty", "experimental/590080", 0xFFFF, 590080, 1, 0xD249),
    ("another build", "experimental/590081", 0xFFFF, 590080, 1, 0x49D2),
    ("the product's node alone", "experimental", 0xFFFF, 590080, 1, 0x49D2),
    ("hexadecimal is no build", "experimental/0x90100", 0xFFFF, 590080, 1, 0x49D2),
    ("another product", "linux/590080", 0xFFFF, 590080, 1, 0x49D2),
    ("xensource", "xensource-windows/3", 1, 3, 1, 0xD249),
    ("gplpv", "gplpv-windows/4294967295", 2, 0xFFFF_FFFF, 1, 0xD249),
    ("linux", "linux/255", 3, 255, 1, 0xD249),
    ("an unknown product", "6/1", 6, 1, 1, 0x49D2),
    ("protocol 0 knows no build", "experimental/590080", 0xFFFF, 590080, 0, 0x49D2),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "node", "product", "build", "version", "magic"),
    BLACKLISTS,
    ids=[row[0] for row in BLACKLISTS],
)
def test_blacklist(
    case: str, node: str | None, product: int, build: int, version: int, magic: int
) -> None:
    made = model(version=version)
    if node is not None:
        value = "" if "empty" in case else "1"
        made._xs.write(f"/mh/driver-blacklist/{node}", value)
    made.io_write(0x12, 2, product)
    made.io_write(0x10, 4, build)
    assert made.io_read(0x10, 2) == magic
    assert made.blacklisted is (magic == 0xD249)


@pytest.mark.parametrize("product", [4, 5])
def test_a_name_that_is_no_path_of_the_store_condemns_nobody(product: int) -> None:
    """`.` and `+` of "xenserver-windows-v7.0+" are no characters of a path."""
    made = model()
    made.io_write(0x12, 2, product)
    made.io_write(0x10, 4, 1)
    assert made.io_read(0x10, 2) == 0x49D2


def test_a_build_before_its_product_is_not_looked_up() -> None:
    made = model()
    made._xs.write("/mh/driver-blacklist/experimental/1", "")
    made.io_write(0x10, 4, 1)
    assert not made.blacklisted


def test_blacklisted_stays_blacklisted_and_may_unplug_and_log() -> None:
    made = model()
    made._xs.write("/mh/driver-blacklist/experimental/1", "")
    made.io_write(0x12, 2, 0xFFFF)
    made.io_write(0x10, 4, 1)
    made.io_write(0x10, 4, 2)
    assert made.io_read(0x10, 2) == 0xD249
    made.io_write(0x10, 2, 0x0002)
    made.io_write_string(0x12, b"still here\n")
    assert "rtl8139" not in found(made)
    assert list(made.log.lines) == ["still here"]


def test_the_store_is_read_only_when_a_build_is_written() -> None:
    made = model()
    calls: list[str] = []

    class Spy:
        def read(self, path: str) -> None:
            calls.append(path)

    made._xs = Spy()
    made.io_read(0x10, 2)
    made.io_write(0x12, 2, 3)
    made.io_write(0x10, 2, 0x000F)
    assert calls == []
    made.io_write(0x10, 4, 7)
    assert calls == ["/mh/driver-blacklist/linux/7"]


# writes, lines, what is begun
LOGS = [
    ("a line", [b"hello\n"], ["hello"], b""),
    ("byte by byte", [b"h", b"i", b"\n"], ["hi"], b""),
    ("no newline yet", [b"hello"], [], b"hello"),
    ("two lines and a half", [b"a\nb\nc"], ["a", "b"], b"c"),
    ("an empty line", [b"\n\n"], ["", ""], b""),
    ("not ASCII", [b"\xff\x00\n"], ["\xff\x00"], b""),
    ("longer than the buffer", [b"x" * 4096 + b"\n"], ["x" * 4095, "x"], b""),
]


@pytest.mark.parametrize(("_case", "writes", "lines", "begun"), LOGS, ids=[row[0] for row in LOGS])
def test_log_lines_end_at_newlines(
    _case: str, writes: list[bytes], lines: list[str], begun: bytes
) -> None:
    made = model()
    for data in writes:
        if len(data) == 1:
            made.io_write(0x12, 1, data[0])
        else:
            made.io_write_string(0x12, data)
    assert (list(made.log.lines), bytes(made.log._begun)) == (lines, begun)
    assert LINE_MAX == 4095


def test_log_text_at_another_port_is_lost() -> None:
    made = model()
    made.io_write_string(0x10, b"lost\n")
    made.io_write(0x13, 1, 0x41)
    assert (list(made.log.lines), bytes(made.log._begun)) == ([], b"")


def test_log_is_rate_limited_and_recovers_at_256_bytes_a_second() -> None:
    clock = Clock()
    made = model(clock=clock)
    made.io_write_string(0x12, b"a\n" * (64 << 10))
    assert (len(made.log.lines), made.log.dropped) == (16384, 0)
    made.io_write_string(0x12, b"b\n")
    assert (made.log.lines[-1], made.log.dropped) == ("a", 2)
    clock.now += 1_000_000_000 // 128
    made.io_write_string(0x12, b"b\n")
    assert (made.log.lines[-1], made.log.dropped) == ("b", 2)
    clock.now += 1_000_000_000
    made.io_write_string(0x12, b"c\n" * 200)
    assert made.log.dropped == 2 + 400 - 256
    assert BUCKET_BYTES == 131072


def test_log_gains_no_more_than_a_full_bucket() -> None:
    clock = Clock()
    made = model(clock=clock)
    clock.now += 10**15
    made.io_write_string(0x12, b"x" * (BUCKET_BYTES + 1))
    assert made.log.dropped == 1


# what libxl gives: disks, vifs, drives, other functions
DEFAULTS = [
    ("nothing", [], [], [], []),
    ("xvda", ["xvda"], [], [IdeDrive(0)], []),
    ("hda to hdd", ["hda", "hdb", "hdc", "hdd"], [], [IdeDrive(n) for n in range(4)], []),
    ("xvdd and xvde", ["xvdd", "xvde"], [], [IdeDrive(3)], []),
    ("sda", ["sda"], [], [], [(0x1000, 0x12)]),
    ("two of sd are one controller", ["sda", "sdb"], [], [], [(0x1000, 0x12)]),
    ("a partition counts as its disk", ["xvdb1"], [], [IdeDrive(1)], []),
    ("an extended name", ["xvdq"], [], [], []),
    ("two vifs", [], [None, NicType.VIF_IOEMU], [], [(0x10EC, 0x8139)] * 2),
    ("a PV-only vif", [], [NicType.VIF], [], []),
]


@pytest.mark.parametrize(
    ("_case", "disks", "vifs", "drives", "others"), DEFAULTS, ids=[row[0] for row in DEFAULTS]
)
def test_default_hardware_is_what_libxl_asks_for(_case, disks, vifs, drives, others) -> None:
    config = DomainConfig(
        name="x",
        disks=[DiskSpec(target="i", vdev=name) for name in disks],
        vifs=[VifSpec(type=kind) for kind in vifs],
    )
    made = hardware.default(config)
    assert made[0] == hardware.platform_device()
    assert [one for one in made if isinstance(one, IdeDrive)] == drives
    ids = [(one.vendor_id, one.device_id) for one in made[1:] if isinstance(one, PciFunction)]
    assert ids == others


def test_default_hardware_knows_cdroms_and_models() -> None:
    config = DomainConfig(
        name="x",
        disks=[DiskSpec(vdev="hdc", is_cdrom=True)],
        vifs=[VifSpec(model="e1000"), VifSpec(model="virtio-net")],
    )
    _platform, drive, *nics = hardware.default(config)
    assert drive == IdeDrive(2, is_cdrom=True)
    assert [one.device_id for one in nics] == [0x100E, 0x8139]


def test_two_names_of_one_place_are_one_drive() -> None:
    config = DomainConfig(
        name="x",
        personality=Personality.LINUX,
        disks=[DiskSpec(target="i", vdev="hda"), DiskSpec(target="j", vdev="xvda")],
    )
    assert [one for one in hardware.default(config) if isinstance(one, IdeDrive)] == [IdeDrive(0)]


def test_only_hvm_domains_have_hardware() -> None:
    assert hardware.default(DomainConfig(name="x", type=DomainType.PVH)) == ()
    with pytest.raises(ConfigError, match="a pv domain has no emulated devices"):
        DomainConfig(name="x", type=DomainType.PV, hardware=(hardware.nic(),))


def test_two_drives_cannot_have_one_place() -> None:
    with pytest.raises(ConfigError, match="two IDE drives have the index 1"):
        DomainConfig(name="x", hardware=(hardware.ide_disk(1), hardware.cdrom(1)))


@pytest.mark.parametrize(
    ("make", "number"),
    [(hardware.platform_device, 3), (hardware.vendor_device, 0xBFFF), (hardware.vendor_device, 0xC300),
     (hardware.ide_disk, 4), (hardware.ide_disk, -1), (hardware.cdrom, 4)],
)  # fmt: skip
def test_hardware_that_does_not_exist(make, number: int) -> None:
    with pytest.raises(LocalProtocolError, match="expected"):
        make(number)


# devices, which of them has the ports, and where
PORTS = [
    (None, (1, 0x10)),
    ((hardware.platform_device(1),), (1, 0x10)),
    ((hardware.platform_device(2),), (2, 0x10)),
    ((hardware.vendor_device(),), None),
    ((hardware.vendor_device(), hardware.platform_device(1)), (1, 0x18)),
    ((), None),
    ((hardware.ide_disk(0), hardware.nic()), None),
]


@pytest.mark.parametrize(("devices", "device"), PORTS)
def test_ports_belong_to_the_platform_device(devices, device: tuple[int, int] | None) -> None:
    config = DomainConfig(name="x", hardware=devices)
    assert DeviceModel(config, None, Clock()).platform_device == device


def test_functions_have_places_of_their_own() -> None:
    places = [one.devfn for one in model().functions()]
    assert places[:2] == [0x09, 0x10]
    assert len(set(places)) == len(places)
