"""Who serves a disk: what libxl__device_disk_set_backend chooses, and the directory that comes of it."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from xenpv import Disk, MemoryImage, Platform, ToolstackError
from xenpv.back.blkback import Blkback
from xenpv.back.blkprofile import PROFILES, profile_of
from xenpv.errors import ConfigError, LocalProtocolError
from xenpv.host import device, diskbackend
from xenpv.host.diskspec import DiskSpec

# xl's disk, the platform's profile: directory, `type`, `params`, whether it has a script.
XL = [
    ("/d.img,raw,xvda,rw", "linux", "vbd", "phy", "/d.img", True),
    ("/d.img,raw,xvda,rw", "mirage", "vbd", "phy", "/d.img", False),
    ("/d.img,raw,xvda,rw", "qemu", "qdisk", "qdisk", "aio:/d.img", False),
    ("/d.img,raw,xvda,rw", "tapdisk", "vbd3", "tap", "aio:/d.img", True),
    ("/d.img,qcow2,xvda,rw", "linux", "qdisk", "qdisk", "qcow2:/d.img", False),
    ("/d.img,qcow2,xvda,rw", "tapdisk", "qdisk", "qdisk", "qcow2:/d.img", False),
    ("/d.img,qcow2,xvda,rw", "mirage", "qdisk", "qdisk", "qcow2:/d.img", False),
    ("/d.img,qcow,xvda,rw", "linux", "qdisk", "qdisk", "qcow:/d.img", False),
    ("/d.img,qed,xvda,rw", "linux", "qdisk", "qdisk", "qed:/d.img", False),
    ("/d.img,vhd,xvda,rw", "linux", "qdisk", "qdisk", "vhd:/d.img", False),
    ("/d.img,vhd,xvda,rw", "tapdisk", "vbd3", "tap", "vhd:/d.img", True),
    ("format=raw,vdev=xvda,backendtype=phy,target=/d.img", "qemu", "vbd", "phy", "/d.img", True),
    ("format=raw,vdev=xvda,backendtype=qdisk,target=/d.img", "linux", "qdisk", "qdisk", "aio:/d.img", False),
    ("format=vhd,vdev=xvda,backendtype=tap,target=/d.img", "linux", "vbd3", "tap", "vhd:/d.img", True),
    ("script=block-iscsi,vdev=xvda,target=iqn", "qemu", "vbd", "phy", "iqn", True),
    (",empty,hdc:cdrom", "linux", "vbd", "phy", "", True),
    (",empty,hdc:cdrom", "tapdisk", "vbd", "phy", "", True),
]  # fmt: skip


@pytest.mark.parametrize(("text", "default", "directory", "kind", "params", "script"), XL)
def test_what_the_toolstack_makes_of_a_disk(
    text: str, default: str, directory: str, kind: str, params: str, script: bool
) -> None:
    made = device.vbd(DiskSpec.parse(text), 5, blkback=default)
    assert made.kind == "vbd"
    assert made.backend_path == f"/local/domain/0/backend/{directory}/5/{made.devid}"
    assert made.frontend_path == f"/local/domain/5/device/vbd/{made.devid}"
    assert (made.back["type"], made.back["params"]) == (kind, params)
    assert ("script" in made.back) == script


# xl's disk: what is wrong with it
REFUSED = [
    ("format=qcow2,vdev=xvda,backendtype=phy,target=/d", "backendtype=phy: unsuitable due to format qcow2; suitable: qdisk"),
    ("format=qcow2,vdev=xvda,backendtype=tap,target=/d", "backendtype=tap: unsuitable due to format qcow2; suitable: qdisk"),
    ("format=vhd,vdev=xvda,backendtype=phy,target=/d", "suitable: qdisk, tap"),
    ("vdev=xvda,script=block-x,backendtype=qdisk,target=/d", "unsuitable due to script=block-x; suitable: phy"),
    ("vdev=xvda,backendtype=standalone,target=/d", "nothing here serves it"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "why"), REFUSED)
def test_what_no_backend_can_serve_as_it_was_asked_for(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        device.vbd(DiskSpec.parse(text), 5)


def test_a_profile_and_a_backendtype_must_agree() -> None:
    spec = DiskSpec.parse("vdev=xvda,backendtype=phy,target=/d")
    for profile, fits in (("linux", True), ("mirage", True), ("qemu", False), ("tapdisk", False)):
        one = attrs.evolve(spec, profile=profile)
        if fits:
            assert diskbackend.chosen(one) == (diskbackend.DiskBackend.PHY, profile)
        else:
            with pytest.raises(ConfigError, match=f"profile {profile} is no backendtype=phy"):
                diskbackend.chosen(one)


def test_a_profile_that_is_none_is_a_configurations_error() -> None:
    with pytest.raises(ConfigError, match="profile vhost: expected one of linux, mirage, qemu"):
        diskbackend.chosen(DiskSpec(vdev="xvda", target="/d", profile="vhost"))


def test_both_tables_name_one_directory_for_each_profile() -> None:
    ours = {name: diskbackend.DIRECTORIES[one] for name, one in diskbackend.OF_PROFILE.items()}
    assert ours == {name: one.directory for name, one in PROFILES.items()}


# directory, the profile that is asked for: who serves it
SERVES = [
    ("vbd", "linux", "linux"),
    ("vbd", "mirage", "mirage"),
    ("vbd", "qemu", "linux"),
    ("vbd", "tapdisk", "linux"),
    ("qdisk", "linux", "qemu"),
    ("qdisk", "qemu", "qemu"),
    ("vbd3", "linux", "tapdisk"),
]


@pytest.mark.parametrize(("directory", "asked", "serves"), SERVES)
def test_who_serves_a_directory(directory: str, asked: str, serves: str) -> None:
    assert profile_of(directory, PROFILES[asked]).name == serves


def driver(xen: Platform, domid: int, directory: str, devid: int = 51712) -> Blkback:
    found = xen.backends.device(directory, domid, devid)
    assert found is not None
    assert isinstance(found.driver, Blkback)
    return found.driver


def test_a_disk_has_the_platforms_profile_unless_it_names_one() -> None:
    with Platform(blkback="qemu") as xen:
        images = [MemoryImage(bytes(4096)) for _ in range(5)]
        names = (None, "linux", "tapdisk", "mirage", "qemu")
        disks = [Disk(one, profile=name) for one, name in zip(images, names, strict=True)]
        guest = xen.create(name="a", disks=disks)
        directories = ("qdisk", "vbd", "vbd3", "vbd", "qdisk")
        found = [
            driver(xen, guest.domid, one, 51712 + 16 * at).profile.name
            for at, one in enumerate(directories)
        ]
        assert found == ["qemu", "linux", "tapdisk", "mirage", "qemu"]
        guest.start()
        assert len(guest.disks) == 5


def test_a_disk_that_is_attached_later_has_its_profile_units_and_latency() -> None:
    with Platform() as xen:
        guest = xen.create(name="a").start()
        disk = Disk(MemoryImage(bytes(4096)), profile="qemu", units="ss2019", latency_ns=7)
        guest.attach(disk)
        settings = driver(xen, guest.domid, "qdisk").settings
        assert (settings.profile.name, settings.units.name, settings.latency_ns) == (
            "qemu", "ss2019", 7,
        )  # fmt: skip
        guest.detach("vbd", 51712)
        assert xen.backends.device("qdisk", guest.domid, 51712) is None
        assert "51712" not in guest.block_list()


def test_a_profile_that_is_none_is_refused_before_anything_is_made() -> None:
    with pytest.raises(LocalProtocolError, match="expected one of linux, qemu, tapdisk, mirage"):
        Platform(blkback="windows")
    with Platform() as xen:
        with pytest.raises(LocalProtocolError, match="'vhost'"):
            xen.create(name="a", disks=[Disk(MemoryImage(bytes(512)), profile="vhost")])
        with pytest.raises(LocalProtocolError, match="sector units 'bytes'"):
            xen.create(name="a", disks=[Disk(MemoryImage(bytes(512)), units="bytes")])
        assert xen.guests == []


@pytest.mark.parametrize("profile", ["linux", "qemu", "tapdisk"])
def test_a_disk_that_is_not_there_fails_the_creation(profile: str, tmp_path: Path) -> None:
    with Platform() as xen:
        disk = Disk(tmp_path / "none.img", profile=profile)
        with pytest.raises(ToolstackError, match=r"none\.img does not exist"):
            xen.create(name="a", disks=[disk])
        assert xen.toolstack.xs.directory("/local/domain/0/backend") == []
        good = tmp_path / "good.img"
        good.write_bytes(bytes(1 << 20))
        guest = xen.create(name="a", disks=[Disk(good, profile=profile)]).start()
        with pytest.raises(ToolstackError, match=r"none\.img does not exist"):
            guest.attach(disk)


@pytest.mark.parametrize("profile", list(PROFILES))
def test_a_guest_with_a_disk_reboots_is_saved_and_goes(profile: str, tmp_path: Path) -> None:
    image = MemoryImage(bytes(1 << 20))
    with Platform(seed=5) as xen:
        guest = xen.create(name="a", disks=[Disk(image, profile=profile)]).start()
        guest.disks[0].write(3, b"3" * 512)
        guest.reboot()
        assert guest.disks[0].read(3, 1) == b"3" * 512
        guest.save(tmp_path / "a.save")
        guest = xen.restore(tmp_path / "a.save", images={"xvda": image})
        assert guest.disks[0].read(3, 1) == b"3" * 512
        back = guest.created.devices[0].backend_kind
        assert back == PROFILES[profile].directory
        guest.destroy()
        assert len(xen.dom0.gnttab.maptrack) == 0
        assert xen.toolstack.xs.directory("/local/domain/0/backend") == []


@pytest.mark.parametrize("profile", list(PROFILES))
def test_a_driver_domain_serves_each_profile(profile: str) -> None:
    with Platform(seed=5) as xen:
        dd = xen.create(name="dd", personality="linux", driver_domain=True).start()
        disk = Disk(MemoryImage(bytes(1 << 20)), profile=profile, backend="dd")
        guest = xen.create(name="a", disks=[disk]).start()
        guest.disks[0].write(0, b"d" * 512)
        assert guest.disks[0].read(0, 1) == b"d" * 512
        back = guest.created.devices[0].backend_path
        assert back.startswith(f"/local/domain/{dd.domid}/backend/{PROFILES[profile].directory}/")
        guest.detach("vbd", 51712)
        assert guest.disks == []
        assert dd.driver_domain.serves == []
        assert xen.toolstack.xs.read(back) is None
