"""What xl prints of domains and devices."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from xenpv import Disk, Guest, MemoryImage, Platform, Vif
from xenpv.abi.sched import SHUTDOWN

MAC = "00:16:3e:12:34:56"
NOBODY = "00000000-0000-0000-0000-000000000000"


@pytest.fixture
def xen() -> Iterator[Platform]:
    with Platform(seed=1) as platform:
        yield platform


def make(xen: Platform, personality: str = "windows") -> Guest:
    image = MemoryImage(bytearray(1 << 20))
    return xen.create(
        name="web", memory_mib=128, disks=[Disk(image)], vifs=[Vif(mac=MAC)],
        personality=personality,
    )  # fmt: skip


def test_list_is_as_xl_prints_it(xen: Platform) -> None:
    uuid = make(xen).start().created.uuid
    assert xen.list() == (
        "Name                                        ID   Mem VCPUs\tState\tTime(s)\n"
        "Domain-0                                     0    64     1     r-----       0.0\n"
        "web                                          1   128     1     r-----       0.0\n"
    )
    assert xen.list(long=True) == (
        "Name                                        ID   Mem VCPUs\tState\tTime(s)"
        "   UUID                            Reason-Code\tSecurity Label\n"
        "Domain-0                                     0    64     1     r-----       0.0"
        f" {NOBODY}        -                -\n"
        "web                                          1   128     1     r-----       0.0"
        f" {uuid}        -                -\n"
    )


def test_vm_list_is_as_xl_prints_it(xen: Platform) -> None:
    uuid = make(xen).created.uuid
    assert xen.vm_list() == (
        "UUID                                  ID    name\n"
        f"{NOBODY}  0    Domain-0                      \n"
        f"{uuid}  1    web                           \n"
    )


# A guest after what was done to it, and the columns that say so: state, and the reason with -v.
STATES = [
    ("created",                lambda guest: None,                                       "--p---", "       -"),
    ("running",                lambda guest: guest.start(),                              "r-----", "       -"),
    ("paused",                 lambda guest: guest.start().created.domain.pause(),       "--p---", "       -"),
    ("shut down: poweroff",    lambda guest: down(guest, SHUTDOWN.poweroff),             "---s--", "       0"),
    ("shut down: reboot",      lambda guest: down(guest, SHUTDOWN.reboot),               "---sr-", "       1"),
    ("shut down: suspend",     lambda guest: down(guest, SHUTDOWN.suspend),              "---ss-", "       2"),
    ("shut down: crash",       lambda guest: down(guest, SHUTDOWN.crash),                "---sc-", "       3"),
    ("shut down: watchdog",    lambda guest: down(guest, SHUTDOWN.watchdog),             "---sw-", "       4"),
    ("shut down: soft reset",  lambda guest: down(guest, SHUTDOWN.soft_reset),           "---sS-", "       5"),
    ("shut down: a seventh",   lambda guest: down(guest, 10),                            "---s?-", "       a"),
]  # fmt: skip


def down(guest: Guest, reason: int) -> None:
    guest.start().created.domain.shutdown(reason)
    guest.platform.run()


@pytest.mark.parametrize(
    ("do", "flags", "reason"), [row[1:] for row in STATES], ids=[row[0] for row in STATES]
)
def test_state_letters(xen: Platform, do, flags: str, reason: str) -> None:
    guest = make(xen)
    do(guest)
    row = next(line for line in xen.list(long=True).splitlines() if line.startswith("web "))
    assert row[63:69] == flags
    assert row.removesuffix(" " * 16 + "-")[-9:] == f" {reason}"


def test_a_dead_domain_that_is_held_has_no_name(xen: Platform) -> None:
    guest = make(xen)
    pfn = xen.dom0.holes.alloc()
    handle = xen.dom0.gnttab.map(guest.domid, 0, pfn)
    guest.destroy()
    row = xen.list().splitlines()[-1]
    assert row == f"{'(null)':40}     1     0     1     --p--d       0.0"
    xen.dom0.gnttab.unmap(handle, pfn)
    assert len(xen.list().splitlines()) == 2


def test_cpu_time_is_in_seconds(xen: Platform) -> None:
    make(xen).start()
    xen.advance(12.34)
    assert xen.list().splitlines()[-1].endswith("r-----      12.3")


def test_devices_are_listed_as_xl_does(xen: Platform) -> None:
    guest = make(xen, "linux").start()
    read = xen.toolstack.xs.read
    vbd, vif = "/local/domain/1/device/vbd/51712", "/local/domain/1/device/vif/0"
    port, ring = read(f"{vbd}/event-channel"), read(f"{vbd}/ring-ref")
    tx, rx = read(f"{vif}/tx-ring-ref"), read(f"{vif}/rx-ring-ref")
    assert port and ring and tx and rx
    assert guest.block_list() == (
        "Vdev  BE  handle state evt-ch ring-ref BE-path                       \n"
        f"51712 0   1      4     {port:6} {ring:8} /local/domain/0/backend/vbd/1/51712\n"
    )
    assert guest.network_list() == (
        "Idx BE Mac Addr.         handle state evt-ch   tx-/rx-ring-ref BE-path                       \n"
        f"0   0  {MAC}     0     4     -1 {tx:>5}/{rx:11} /local/domain/0/backend/vif/1/0\n"
    )


def test_keys_that_are_not_there_are_minus_one(xen: Platform) -> None:
    guest = make(xen)  # nobody in it wrote anything yet
    xen.toolstack.xs.rm("/local/domain/1/device/vif/0/state")
    assert guest.block_list().splitlines()[1].split() == [
        "51712", "0", "1", "1", "-1", "-1", "/local/domain/0/backend/vbd/1/51712",
    ]  # fmt: skip
    assert guest.network_list().splitlines()[1].split() == [
        "0", "0", MAC, "0", "-1", "-1", "-1/-1", "/local/domain/0/backend/vif/1/0",
    ]  # fmt: skip


# What a guest may write into a key of its own, and what strtoul and an int make of it.
NUMBERS = [
    ("4", 4), ("", 0), ("x", 0), (" 7", 7), ("+7", 7), ("-1", -1), ("12ab", 12), ("0x10", 0),
    ("2147483648", -2147483648), ("4294967295", -1), ("4294967297", 1), ("9" * 4000, -1), ("\n3", 3),
]  # fmt: skip


@pytest.mark.parametrize(("text", "shown"), NUMBERS)
def test_a_guests_own_keys_are_read_as_c_does(xen: Platform, text: str, shown: int) -> None:
    guest = make(xen)
    xen.xenstored.connect_local("guest").write(
        b"/local/domain/1/device/vbd/51712/ring-ref", text[:2000].encode()
    )
    assert guest.block_list().splitlines()[1].split()[5] == str(shown)


def test_what_a_guest_makes_of_its_links_is_not_shown(xen: Platform) -> None:
    guest = make(xen).start()
    before = guest.block_list(), guest.network_list()
    assert guest.bus is not None
    for path in ("device/vbd/51712", "device/vif/0"):
        guest.bus.store.write(f"{path}/backend", "/local/domain/7/backend/vbd/1/1")
        guest.bus.store.write(f"{path}/backend-id", "7")
    guest.bus.store.write("device/vif/0/mac", "00:00:00:00:00:01")
    assert (guest.block_list(), guest.network_list()) == before


def test_a_guest_that_is_gone_has_no_devices(xen: Platform) -> None:
    guest = make(xen).start()
    guest.shutdown()
    assert guest.block_list().count("\n") == guest.network_list().count("\n") == 1
