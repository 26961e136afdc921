"""What the toolstack leaves in the store, against libxl's own lists."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from xenpv import Disk, Guest, MemoryImage, Platform, ToolstackError, Vif

MIB = 1 << 20


@pytest.fixture
def xen() -> Iterator[Platform]:
    with Platform(seed=1) as platform:
        yield platform


@pytest.fixture
def guest(xen: Platform) -> Guest:
    """Created, not started: nothing but the toolstack and the backends has written."""
    return xen.create(
        name="g",
        memory_mib=256,
        disks=[Disk(MemoryImage(bytearray(MIB)))],
        vifs=[Vif(mac="00:16:3e:12:34:56")],
    )


def tree(xen: Platform, root: str) -> dict[str, tuple[str, str]]:
    """{path below root: (value, permissions)}"""
    listed = {}
    for line in xen.xenstored.ls_fp(root.encode()).splitlines():
        path, _, rest = line.partition(' = "')
        value, _, permissions = rest.rpartition('"   ')
        listed[path.removeprefix(root + "/")] = (value, permissions.strip("()"))
    return listed


def test_guest_home_is_as_libxl_writes_it(xen: Platform, guest: Guest) -> None:
    home = tree(xen, "/local/domain/1")
    uuid = guest.created.uuid
    expected = {
        "vm": (f"/vm/{uuid}", "n0,r1"),
        "name": ("g", "n0,r1"),
        "domid": ("1", "n0,r1"),
        "memory/static-max": ("262144", "n0,r1"),
        "memory/target": ("253952", "n0,r1"),
        "memory/videoram": ("8192", "n0,r1"),
        "store/port": ("1", "n0,r1"),
        "store/ring-ref": ("1044476", "n0,r1"),
        "cpu/0/availability": ("online", "n0,r1"),
        "control": ("", "n0,r1"),
        "control/shutdown": ("", "n1"),
        "control/feature-poweroff": ("", "n1"),
        "control/feature-s4": ("", "n1"),
        "control/platform-feature-xs_reset_watches": ("1", "n0,r1"),
        "data": ("", "n1"),
        "drivers": ("", "n1"),
        "feature": ("", "n1"),
        "attr": ("", "n1"),
        "error": ("", "n1"),
        "device": ("", "n0,r1"),
        "device/suspend/event-channel": ("", "n1"),
        "device/vbd": ("", "n0,r1"),
        "device/vif": ("", "n0,r1"),
        "console/type": ("xenconsoled", "n0,r1"),
        "console/limit": ("1048576", "n0,r1"),
        "console/backend-id": ("0", "n1,r0"),
        "console/port": ("2", "n0,r1"),
    }
    assert {path: home.get(path) for path in expected} == expected
    assert tree(xen, f"/vm/{uuid}")["name"] == ("g", "n0,r1")
    assert tree(xen, "/libxl/1")["type"] == ("hvm", "n0")


def test_vbd_directories_are_as_libxl_writes_them(xen: Platform, guest: Guest) -> None:
    del guest
    front = tree(xen, "/local/domain/1/device/vbd/51712")
    assert front == {
        "backend": ("/local/domain/0/backend/vbd/1/51712", "n1,r0"),
        "backend-id": ("0", "n1,r0"),
        "state": ("1", "n1,r0"),
        "virtual-device": ("51712", "n1,r0"),
        "device-type": ("disk", "n1,r0"),
        "trusted": ("1", "n1,r0"),
    }
    back = tree(xen, "/local/domain/0/backend/vbd/1/51712")
    expected = {
        "frontend": "/local/domain/1/device/vbd/51712",
        "frontend-id": "1",
        "online": "1",
        "removable": "0",
        "bootable": "1",
        "dev": "xvda",
        "type": "phy",
        "mode": "w",
        "device-type": "disk",
        "discard-enable": "1",
        "specification": "xen",
        "state": "2",
        "hotplug-status": "connected",
    }
    assert {key: back[key][0] for key in expected} == expected
    assert {permissions for _, permissions in back.values()} == {"n0,r1"}


def test_vif_directories_are_as_libxl_writes_them(xen: Platform, guest: Guest) -> None:
    del guest
    front = tree(xen, "/local/domain/1/device/vif/0")
    assert front["mac"] == ("00:16:3e:12:34:56", "n1,r0")
    assert front["mtu"] == ("1500", "n0,r1")
    assert front["handle"] == ("0", "n1,r0")
    back = tree(xen, "/local/domain/0/backend/vif/1/0")
    expected = {
        "mac": "00:16:3e:12:34:56",
        "bridge": "xenbr0",
        "handle": "0",
        "type": "vif_ioemu",
        "hotplug-status": "connected",
        "state": "2",
    }
    assert {key: back[key][0] for key in expected} == expected


def test_the_toolstacks_own_copy_is_closed_to_guests(xen: Platform, guest: Guest) -> None:
    del guest
    copy = tree(xen, "/libxl/1/device/vbd/51712")
    assert copy["backend"] == ("/local/domain/0/backend/vbd/1/51712", "n0")
    assert copy["params"][1] == "n0"
    assert {permissions for _, permissions in copy.values()} == {"n0"}


def test_a_guest_may_not_touch_what_is_not_its_own(xen: Platform, guest: Guest) -> None:
    from xenpv.errors import StoreError

    guest.start()
    assert guest.bus is not None
    store = guest.bus.store
    for path in (
        "name",
        "memory/target",
        "control/new",
        "/local/domain/0/backend/vbd/1/51712/mode",
    ):
        with pytest.raises(StoreError, match="^EACCES"):
            store.write(path, "x")
    store.remove("device/vbd/51712")
    guest.destroy()
    assert "/backend/vbd" not in xen.xenstored.ls_fp()


def test_destroy_leaves_no_node(xen: Platform, guest: Guest) -> None:
    with Platform() as empty:
        fresh = empty.xenstored.ls_fp().splitlines()
    guest.destroy()
    left = [line for line in xen.xenstored.ls_fp().splitlines() if line not in fresh]
    assert [line.split(" = ")[0] for line in left] == [
        "/local",
        "/local/domain",
        "/local/domain/0",
        "/local/domain/0/backend",
        "/vm",
        "/libxl",
    ]
    guest.destroy()


def test_names_are_unique(xen: Platform, guest: Guest) -> None:
    del guest
    with pytest.raises(ToolstackError, match="^a domain named 'g' exists$") as caught:
        xen.create(name="g")
    assert caught.value.code == -6  # ERROR_INVAL


def test_a_missing_image_undoes_the_creation(xen: Platform) -> None:
    with pytest.raises(ToolstackError, match=r"^vbd 51712: .*nowhere\.img"):
        xen.create(name="x", disks=[Disk("nowhere.img")])
    assert list(xen.hypervisor.domains) == [0]
    assert "51712" not in xen.xenstored.ls_fp()
    assert xen.guests == []


def test_one_seed_makes_the_same_uuid_and_mac() -> None:
    def made(seed: int) -> tuple[str, str]:
        with Platform(seed=seed) as xen:
            guest = xen.create(name="g", vifs=[Vif()])
            return guest.created.uuid, guest.created.devices[-1].back["mac"]

    assert made(4) == made(4)
    assert made(4) != made(5)
    assert made(4)[1].startswith("00:16:3e:")


def test_a_guest_that_never_acknowledges_times_out_and_lives(xen: Platform, guest: Guest) -> None:
    guest.start()
    assert guest.bus is not None
    guest.bus.pdos["IFACE"].driver.stop()
    with pytest.raises(ToolstackError, match="^waited 60 s for domain 1 to acknowledge poweroff$"):
        guest.shutdown()
    assert guest.running
    path = "/local/domain/1/control/shutdown"
    assert xen.toolstack.xs.read(path) == "poweroff"  # not withdrawn


@pytest.mark.parametrize("value", ["halt", "crash", "s5", "nonsense"])
def test_windows_leaves_an_unknown_request_where_it_is(
    xen: Platform, guest: Guest, value: str
) -> None:
    guest.start()
    path = "/local/domain/1/control/shutdown"
    xen.toolstack.xs.write(path, value)
    xen.run()
    assert xen.toolstack.xs.read(path) == value
    assert guest.running


def test_linux_takes_halt_as_poweroff(xen: Platform) -> None:
    guest = xen.create(name="l", personality="linux").start()
    xen.toolstack.xs.write("/local/domain/1/control/shutdown", "halt")
    xen.run()
    assert guest.created.domain.shutdown_code == 0


def test_pages_run_out_as_an_error_and_nothing_stays(xen: Platform) -> None:
    from xenpv.errors import HypercallError

    with pytest.raises(HypercallError, match="^ENOMEM"):
        xen.create(name="huge", memory_mib=1 << 15)
    assert list(xen.hypervisor.domains) == [0]
