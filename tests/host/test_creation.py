"""What a new domain is made of (libxl_create.c, libxl_dom.c, libxl_console.c)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from xenpv import MemoryImage, Platform, ToolstackError
from xenpv.errors import StoreError
from xenpv.host.diskspec import DiskSpec
from xenpv.host.domainconfig import DomainConfig, DomainType, Personality
from xenpv.host.libxl import Created
from xenpv.host.vifspec import VifSpec
from xenpv.xen.domain import CONSOLE_PFN, PAGE_SIZE, RAM_FIRST_PFN, XENSTORE_PFN

UUID = "00112233-4455-6677-8899-aabbccddeeff"
VM = f"/vm/{UUID}"


@pytest.fixture
def xen() -> Iterator[Platform]:
    with Platform(seed=1) as platform:
        yield platform


def test_populate_fills_memory_and_loses_what_store_and_console_said(xen: Platform) -> None:
    seen = []

    def populate(made: Created) -> None:
        domain = made.domain
        seen.append((domain.vcpus, domain.tot_pages, xen.toolstack.xs.read("/local/domain/1/name")))
        domain.populate(100)
        domain.populate_special()
        for pfn in (CONSOLE_PFN, XENSTORE_PFN, RAM_FIRST_PFN):
            domain.write(pfn, 0, b"\xaa" * PAGE_SIZE)

    made = xen.toolstack.create(DomainConfig(name="r", memory_mib=64), populate=populate)
    assert seen == [(1, 0, "r")]
    domain = made.domain
    assert domain.read(CONSOLE_PFN, 0, PAGE_SIZE) == bytes(PAGE_SIZE)
    assert b"\xaa" not in domain.read(XENSTORE_PFN, 0, PAGE_SIZE)
    assert domain.read(RAM_FIRST_PFN, 0, 4) == b"\xaa" * 4
    # Both daemons came by the reserved grants.
    assert xen.toolstack.xs.read("/local/domain/1/console/tty") == "/dev/pts/1"
    assert xen.store_daemon.rings[1].port


def tree(xen: Platform, root: str) -> dict[str, tuple[str, str]]:
    """{path below root, "" the root: (value, permissions)}"""
    listed = {}
    for line in xen.xenstored.ls_fp().splitlines():
        path, _, rest = line.partition(' = "')
        if not f"{path}/".startswith(f"{root}/"):
            continue
        value, _, permissions = rest.rpartition('"   ')
        listed[path.removeprefix(root).removeprefix("/")] = (value, permissions.strip("()"))
    return listed


def table(text: str) -> dict[str, tuple[str, str]]:
    """Rows `path = value  permissions`."""
    rows = {}
    for line in text.splitlines()[1:]:
        found = re.match(r" *(\S*) += *(.*?) +(\S+)\Z", line)
        assert found is not None, line
        rows[found[1]] = (found[2], found[3])
    return rows


def make(xen: Platform, domid: int | None = 5, **fields: Any) -> Created:
    given = {"name": "g", "uuid": UUID, "memory_mib": 256, "type": DomainType.PV}
    return xen.toolstack.create(DomainConfig(**{**given, **fields}), domid=domid)


def worked_example(xen: Platform) -> Created:
    """A PV domain 5 with one disk and one interface."""
    target = xen.register_image(MemoryImage(bytearray(1 << 20)))
    return make(
        xen,
        disks=[DiskSpec(target=target, vdev="xvda")],
        vifs=[VifSpec(mac=bytes.fromhex("00163e123456"))],
        kernel="/boot/vmlinuz",
        cmdline="root=/dev/xvda1",
    )


HOME_OF_PV = """
     =                                                                n0,r5
    vm = /vm/00112233-4455-6677-8899-aabbccddeeff                     n0,r5
    name = g                                                          n0,r5
    domid = 5                                                         n0,r5
    memory =                                                          n0,r5
    memory/static-max = 262144                                        n0,r5
    memory/target = 262144                                            n0,r5
    memory/videoram = 0                                               n0,r5
    store =                                                           n0,r5
    store/port = 1                                                    n0,r5
    store/ring-ref = 1044476                                          n0,r5
    cpu =                                                             n0,r5
    cpu/0 =                                                           n0,r5
    cpu/0/availability = online                                       n0,r5
    control =                                                         n0,r5
    control/shutdown =                                                n5
    control/feature-poweroff =                                        n5
    control/feature-reboot =                                          n5
    control/feature-suspend =                                         n5
    control/sysrq =                                                   n5
    control/platform-feature-multiprocessor-suspend = 1               n0,r5
    control/platform-feature-xs_reset_watches = 1                     n0,r5
    data =                                                            n5
    drivers =                                                         n5
    feature =                                                         n5
    attr =                                                            n5
    error =                                                           n5
    console =                                                         n0,r5
    console/backend = /local/domain/0/backend/console/5/0             n0,r5
    console/backend-id = 0                                            n5,r0
    console/limit = 1048576                                           n0,r5
    console/type = xenconsoled                                        n0,r5
    console/output = pty                                              n0,r5
    console/tty = /dev/pts/5                                          n0,r5
    console/port = 2                                                  n0,r5
    console/ring-ref = 1044479                                        n0,r5
    device =                                                          n0,r5
    device/suspend =                                                  n0,r5
    device/suspend/event-channel =                                    n5
    device/vbd =                                                      n0,r5
    device/vbd/51712 =                                                n5,r0
    device/vbd/51712/backend = /local/domain/0/backend/vbd/5/51712    n5,r0
    device/vbd/51712/backend-id = 0                                   n5,r0
    device/vbd/51712/state = 1                                        n5,r0
    device/vbd/51712/virtual-device = 51712                           n5,r0
    device/vbd/51712/device-type = disk                               n5,r0
    device/vbd/51712/trusted = 1                                      n5,r0
    device/vbd/51712/protocol = x86_64-abi                            n5,r0
    device/vif =                                                      n0,r5
    device/vif/0 =                                                    n5,r0
    device/vif/0/backend = /local/domain/0/backend/vif/5/0            n5,r0
    device/vif/0/backend-id = 0                                       n5,r0
    device/vif/0/state = 1                                            n5,r0
    device/vif/0/handle = 0                                           n5,r0
    device/vif/0/mac = 00:16:3e:12:34:56                              n5,r0
    device/vif/0/trusted = 1                                          n5,r0
    device/vif/0/mtu = 1500                                           n0,r5
"""

VM_OF_PV = """
     =                                                 n0,r5
    name = g                                           n0,r5
    uuid = 00112233-4455-6677-8899-aabbccddeeff        n0,r5
    start_time = 1767225600.00                         n0,r5
    image =                                            n0,r5
    image/ostype = linux                               n0,r5
    image/kernel = /boot/vmlinuz                       n0,r5
    image/cmdline = root=/dev/xvda1                    n0,r5
"""

LIBXL_OF_PV = """
     =                                                                n0
    type = pv                                                         n0
    dm-version = qemu_xen                                             n0
    device =                                                          n0
    device/console =                                                  n0
    device/console/0 =                                                n0
    device/console/0/frontend = /local/domain/5/console               n0
    device/console/0/backend = /local/domain/0/backend/console/5/0    n0
    device/console/0/frontend-id = 5                                  n0
    device/console/0/online = 1                                       n0
    device/console/0/state = 1                                        n0
    device/console/0/protocol = vt100                                 n0
    device/vbd =                                                      n0
    device/vbd/51712 =                                                n0
    device/vbd/51712/frontend = /local/domain/5/device/vbd/51712      n0
    device/vbd/51712/backend = /local/domain/0/backend/vbd/5/51712    n0
    device/vbd/51712/params = image:1                                 n0
    device/vbd/51712/script = /etc/xen/scripts/block                  n0
    device/vbd/51712/frontend-id = 5                                  n0
    device/vbd/51712/online = 1                                       n0
    device/vbd/51712/removable = 0                                    n0
    device/vbd/51712/bootable = 1                                     n0
    device/vbd/51712/state = 1                                        n0
    device/vbd/51712/dev = xvda                                       n0
    device/vbd/51712/type = phy                                       n0
    device/vbd/51712/mode = w                                         n0
    device/vbd/51712/device-type = disk                               n0
    device/vbd/51712/discard-enable = 1                               n0
    device/vbd/51712/specification = xen                              n0
    device/vif =                                                      n0
    device/vif/0 =                                                    n0
    device/vif/0/frontend = /local/domain/5/device/vif/0              n0
    device/vif/0/backend = /local/domain/0/backend/vif/5/0            n0
    device/vif/0/script = /etc/xen/scripts/vif-bridge                 n0
    device/vif/0/mac = 00:16:3e:12:34:56                              n0
    device/vif/0/bridge = xenbr0                                      n0
    device/vif/0/handle = 0                                           n0
    device/vif/0/type = vif                                           n0
    device/vif/0/hotplug-status =                                     n0
    device/vif/0/frontend-id = 5                                      n0
    device/vif/0/online = 1                                           n0
    device/vif/0/state = 1                                            n0
"""

CONSOLE_BACKEND = """
     =                                     n0,r5
    frontend = /local/domain/5/console     n0,r5
    frontend-id = 5                        n0,r5
    online = 1                             n0,r5
    state = 1                              n0,r5
    protocol = vt100                       n0,r5
"""


@pytest.mark.parametrize(
    ("root", "rows"),
    [
        ("/local/domain/5", HOME_OF_PV),
        (VM, VM_OF_PV),
        ("/libxl/5", LIBXL_OF_PV),
        ("/local/domain/0/backend/console/5/0", CONSOLE_BACKEND),
    ],
)
def test_the_worked_example_node_by_node(xen: Platform, root: str, rows: str) -> None:
    worked_example(xen)
    assert tree(xen, root) == table(rows)


def test_what_an_hvm_domain_has_beyond_that(xen: Platform) -> None:
    pv = set(tree(xen, f"/local/domain/{make(xen, name='p', uuid=None).domid}"))
    make(xen, 6, type=DomainType.HVM, acpi_s4=False, acpi_laptop_slate=True)
    home = tree(xen, "/local/domain/6")
    assert {path: home[path] for path in home if path not in pv} == {
        "hvmloader": ("", "n0,r6"),
        "control/feature-s3": ("", "n6"),
        "control/feature-s4": ("", "n6"),
        "platform": ("", "n0,r6"),
        "platform/acpi": ("1", "n0,r6"),
        "platform/acpi_s3": ("1", "n0,r6"),
        "platform/acpi_s4": ("0", "n0,r6"),
        "platform/acpi_laptop_slate": ("1", "n0,r6"),
        "platform/device-model": ("qemu_xen", "n0,r6"),
    }
    assert pv <= set(home)
    assert tree(xen, VM) == {
        "": ("", "n0,r6"),
        "name": ("g", "n0,r6"),
        "uuid": (UUID, "n0,r6"),
        "start_time": ("1767225600.00", "n0,r6"),
        "image": ("", "n0,r6"),
        "image/ostype": ("hvm", "n0,r6"),
        "rtc": ("", "n0,r6"),
        "rtc/timeoffset": ("", "n0,r6"),
    }
    assert tree(xen, "/libxl/6")["type"] == ("hvm", "n0")


def test_a_pvh_domain_has_a_start_time_and_no_image(xen: Platform) -> None:
    make(xen, type=DomainType.PVH, kernel="/boot/vmlinuz")
    assert set(tree(xen, VM)) == {"", "name", "uuid", "start_time"}
    assert "hvmloader" not in tree(xen, "/local/domain/5")
    assert tree(xen, "/libxl/5")["type"] == ("pvh", "n0")


def test_a_driver_domain_owns_two_directories_more(xen: Platform) -> None:
    make(xen, 6, name="p", uuid=None)
    make(xen, driver_domain=True)
    home = tree(xen, "/local/domain/5")
    assert set(home) - set(tree(xen, "/local/domain/6")) == {"libxl", "device-model"}
    assert home["libxl"] == home["device-model"] == ("", "n5")


def test_with_xends_suspend_channel_all_of_device_is_the_guests(xen: Platform) -> None:
    make(xen, xend_suspend_evtchn_compat=True)
    home = tree(xen, "/local/domain/5")
    assert home["device"] == ("", "n5")
    assert "device/suspend" not in home


# type, memory, maxmem, videoram in KiB: target, static-max in KiB
TARGETS = [
    (DomainType.PV, 256, 256, 0, 262144, 262144),
    (DomainType.PV, 128, 256, 0, 131072, 262144),
    (DomainType.HVM, 256, 256, 8192, 253952, 262144),
    (DomainType.HVM, 256, 256, 16384, 245760, 262144),
    (DomainType.HVM, 128, 256, 8192, 121856, 262144),  # 1 MiB less
    (DomainType.PVH, 128, 256, 0, 131072, 262144),
]


@pytest.mark.parametrize(("kind", "memory", "maxmem", "videoram", "target", "most"), TARGETS)
def test_the_balloons_target(
    xen: Platform, kind: DomainType, memory: int, maxmem: int, videoram: int, target: int, most: int
) -> None:
    make(xen, type=kind, memory_mib=memory, maxmem_mib=maxmem, videoram_kib=videoram)
    home = tree(xen, "/local/domain/5")
    keys = ("memory/target", "memory/static-max", "memory/videoram")
    assert [home[key][0] for key in keys] == [str(target), str(most), str(videoram)]


def test_the_start_time_is_the_hosts_wall_clock_in_hundredths(xen: Platform) -> None:
    xen.hypervisor.settime64(1_700_000_000, 990_000_000, 0)
    xen.loop.advance(1_059_000_000)
    make(xen)
    # The creation itself takes no time.
    assert tree(xen, VM)["start_time"][0] == "1700000002.04"


@pytest.mark.parametrize("offset", [0, 3600, -7200])
def test_the_wall_clock_of_a_domain_is_off_by_rtc_timeoffset(xen: Platform, offset: int) -> None:
    assert make(xen, rtc_timeoffset=offset).domain.time_offset_seconds == offset


def test_vcpus_beyond_vcpus_are_offline(xen: Platform) -> None:
    made = make(xen, vcpus=2, maxvcpus=4)
    home = tree(xen, "/local/domain/5")
    states = [home[f"cpu/{number}/availability"][0] for number in range(4)]
    assert states == ["online", "online", "offline", "offline"]
    assert made.domain.vcpus == 4


def test_what_was_there_before_is_gone(xen: Platform) -> None:
    xs = xen.toolstack.xs
    backend = "/local/domain/0/backend/console/5/0"
    old = (
        "/local/domain/5/data/old",
        f"{VM}/old",
        "/libxl/5/device/vbd/1/backend",
        f"{backend}/old",
    )
    for path in old:
        xs.write(path, "x")
    make(xen)
    assert tree(xen, backend) == table(CONSOLE_BACKEND)
    assert "old" not in tree(xen, VM)
    assert "data/old" not in tree(xen, "/local/domain/5")
    assert "device/vbd" not in tree(xen, "/libxl/5")


def test_channels_and_the_console_are_for_the_daemons_domains(
    xen: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(xen, 7, name="daemons", uuid=None)
    for key, value in (("xenstored", "nonsense"), ("xenconsoled", "7")):
        xen.toolstack.xs.write(f"/tool/{key}/domid", value)
    # There is no console daemon in 7.
    monkeypatch.setattr(xen.toolstack.creation, "wait_console", lambda _made: None)
    domain = make(xen).domain
    assert domain.evtchn.status(1).remote_domid == 0  # what is no number: the default
    assert domain.evtchn.status(2).remote_domid == 7
    assert tree(xen, "/local/domain/7/backend/console/5/0")[""] == ("", "n7,r5")
    home = tree(xen, "/local/domain/5")
    assert home["console/backend-id"] == ("7", "n5,r7")
    assert home["console"] == ("", "n7,r5")


def test_a_console_that_nobody_serves_undoes_the_creation_after_10_s(xen: Platform) -> None:
    xen.toolstack.xs.write("/tool/xenconsoled/domid", "0")
    xen.console_daemon._adopt = lambda _path: None  # type: ignore[method-assign]  # it is stuck
    with pytest.raises(ToolstackError, match=r"^waited 10 s for /local/domain/5/console/tty$") as e:
        make(xen)
    assert e.value.code == -9  # ERROR_TIMEDOUT
    assert xen.loop.now == 10_000_000_000
    assert list(xen.hypervisor.domains) == [0]
    left = xen.xenstored.ls_fp()
    assert "/5" not in left
    assert UUID not in left


def test_disks_come_before_the_console_and_interfaces_after_it(xen: Platform) -> None:
    writes: list[str] = []
    transaction = xen.toolstack.xs.transaction

    def listening(body: Any) -> None:
        before = (
            set(tree(xen, "/libxl/5")) if xen.toolstack.xs.read("/libxl/5") is not None else set()
        )
        transaction(body)
        after = set(tree(xen, "/libxl/5"))
        writes.extend(sorted(one for one in after - before if one.count("/") == 2))

    xen.toolstack.xs.transaction = listening  # type: ignore[method-assign]  # to see each step
    target = xen.register_image(MemoryImage(bytearray(1 << 20)))
    other = xen.register_image(MemoryImage(bytearray(1 << 20)))
    make(
        xen,
        disks=[DiskSpec(target=target, vdev="xvda"), DiskSpec(target=other, vdev="xvdb")],
        vifs=[VifSpec(), VifSpec()],
    )
    assert writes == [
        "device/vbd/51712",
        "device/vbd/51728",
        "device/console/0",
        "device/vif/0",
        "device/vif/1",
    ]


def test_devices_of_a_kind_come_up_side_by_side(xen: Platform) -> None:
    """Two backends that never come take the 10 s of one."""
    xen.backends.close()
    with pytest.raises(ToolstackError, match="^waited 10 s for /local/domain/0/backend/vif/5/0 "):
        make(xen, vifs=[VifSpec(), VifSpec(), VifSpec()])
    # 10 s to wait for state 2; forced removal waits as long for state 6.
    assert xen.loop.now == 20_000_000_000
    assert list(xen.hypervisor.domains) == [0]
    assert "/vif" not in xen.xenstored.ls_fp()


WRITABLE = [
    "control/shutdown",
    "control/feature-poweroff",
    "control/feature-reboot",
    "control/feature-suspend",
    "control/sysrq",
    "data/x",
    "drivers/0",
    "feature/hotplug/vif",
    "attr/vif/0/name",
    "error/device",
    "device/suspend/event-channel",
    "device/vif/0/state",
    "device/vif/0/anything",
    "console/backend-id",
]
READ_ONLY = [
    "name",
    "domid",
    "vm",
    "memory/target",
    "memory/new",
    "store/port",
    "cpu/0/availability",
    "control/new",
    "control/platform-feature-xs_reset_watches",
    "console/tty",
    "console/port",
    "device/vif/0/mtu",
    "device/vif/1",
    "device/new",
    "new",
    "platform/acpi",
]


READABLE = [VM, f"{VM}/name", "name", "control/shutdown", "memory/target"]
HIDDEN = ["/libxl/1/type", "/libxl/1/device/vif/0/backend", "/libxl"]


def test_what_a_guest_may_do_in_its_tree(xen: Platform) -> None:
    config = DomainConfig(
        name="l", uuid=UUID, memory_mib=64, personality=Personality.LINUX, vifs=[VifSpec()]
    )
    guest = xen.create_from(config).start()
    assert guest.bus is not None
    store = guest.bus.store

    def answer(call: Any, *arguments: str) -> str:
        try:
            call(*arguments)
        except StoreError as error:
            return error.name
        return ""

    done = {path: answer(store.write, path, "x") for path in WRITABLE}
    assert done == dict.fromkeys(WRITABLE, "")
    for path in WRITABLE:
        assert xen.toolstack.xs.read(f"/local/domain/1/{path}") == "x", path
    closed = [*READ_ONLY, "/libxl/1/type", f"{VM}/name", "/tool/x"]
    assert {path: answer(store.write, path, "x") for path in closed} == dict.fromkeys(
        closed, "EACCES"
    )
    assert {path: answer(store.read, path) for path in READABLE} == dict.fromkeys(READABLE, "")
    assert {path: answer(store.read, path) for path in HIDDEN} == dict.fromkeys(HIDDEN, "EACCES")
