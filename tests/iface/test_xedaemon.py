"""xe-daemon: what it reports, when, what it stops reporting, and what it does in another domain."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from xenpv import Guest, Platform
from xenpv.iface.agent import Agent
from xenpv.iface.operatingsystem import Addresses, Volume
from xenpv.iface.systemclock import filetime_of
from xenpv.iface.xedaemon import XeDaemon, timestamp

HOME = "/local/domain/1"


@pytest.fixture
def xen() -> Iterator[Platform]:
    with Platform(seed=2) as platform:
        yield platform


def boot(xen: Platform, *, domain_id: str | None = "first") -> tuple[Guest, XeDaemon]:
    guest = xen.create(name="g", memory_mib=64, personality="linux")
    if domain_id is not None:
        xen.toolstack.xs.write(f"{HOME}/unique-domain-id", domain_id)
    guest.start()
    assert guest.bus is not None
    agent = guest.bus.pdos["IFACE"].driver
    assert isinstance(agent, Agent)
    assert agent.daemon is not None
    return guest, agent.daemon


def tree(xen: Platform, path: str) -> dict[str, str]:
    """The values below a node, by their paths under the guest's home."""
    xs = xen.toolstack.xs
    found: dict[str, str] = {}
    for name in xs.directory(f"{HOME}/{path}"):
        below = f"{path}/{name}"
        value = xs.read(f"{HOME}/{below}")
        if value:
            found[below] = value
        found |= tree(xen, below)
    return found


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (datetime(2006, 1, 2, 15, 4, 5, tzinfo=UTC), "Mon Jan  2 15:04:05 2006"),
        (datetime(2026, 11, 27, 0, 0, 59, tzinfo=UTC), "Fri Nov 27 00:00:59 2026"),
    ],
)
def test_the_timestamp_is_gos(moment: datetime, text: str) -> None:
    assert timestamp(filetime_of(moment)) == text


def test_libxl_gives_no_unique_domain_id_so_it_exits(xen: Platform) -> None:
    _guest, daemon = boot(xen, domain_id=None)
    xen.advance(200)
    assert (daemon.running, daemon.cycles) == (False, 0)
    assert tree(xen, "data") == {}


def test_the_first_report(xen: Platform) -> None:
    _guest, daemon = boot(xen)
    assert daemon.cycles == 1
    pages = daemon.bus.domain.tot_pages
    assert tree(xen, "data") == {
        "data/os_name": "Debian GNU/Linux 12 (bookworm)",
        "data/os_distro": "debian",
        "data/os_majorver": "12",
        "data/os_minorver": "0",
        "data/os_uname": "6.1.0",
        "data/meminfo_total": str(4 * pages),
        "data/meminfo_free": str(4 * pages - 16_384),
        "data/updated": "Thu Jan  1 00:00:00 2026",
    }
    assert tree(xen, "attr") == {
        "attr/PVAddons/Installed": "1",
        "attr/PVAddons/MajorVersion": "8",
        "attr/PVAddons/MinorVersion": "4",
        "attr/PVAddons/MicroVersion": "0",
        "attr/PVAddons/BuildVersion": "1",
    }


def test_volumes_and_addresses_come_and_go(xen: Platform) -> None:
    _guest, daemon = boot(xen)
    system = daemon.system
    system.volumes.append(
        Volume(
            name="xvda1",
            size=1 << 30,
            free=1 << 20,
            filesystem="ext4",
            mount_point="/",
            extents=("xvda",),
        )
    )
    system.addresses[3] = Addresses(ipv4=("192.0.2.7",), ipv6=("2001:db8::7", "fe80::1"))
    xen.advance(60)
    data, attr = tree(xen, "data"), tree(xen, "attr/vif")
    assert {key: data[key] for key in data if "volumes" in key} == {
        "data/volumes/0/name": "xvda1",
        "data/volumes/0/size": "1073741824",
        "data/volumes/0/free": "1048576",
        "data/volumes/0/filesystem": "ext4",
        "data/volumes/0/mount_points/0": "/",
        "data/volumes/0/extents/0": "xvda",
    }
    assert attr == {
        "attr/vif/3/ipv4/0": "192.0.2.7",
        "attr/vif/3/ipv6/0": "2001:db8::7",
        "attr/vif/3/ipv6/1": "fe80::1",
    }
    assert data["data/updated"] == "Thu Jan  1 00:01:00 2026"
    system.volumes.clear()
    system.addresses[3] = Addresses(ipv4=("192.0.2.8",))
    xen.advance(60)  # written since the flush of the second cycle
    assert tree(xen, "attr/vif")["attr/vif/3/ipv4/0"] == "192.0.2.8"
    xen.advance(120)
    assert tree(xen, "attr/vif") == {"attr/vif/3/ipv4/0": "192.0.2.8"}
    assert "data/volumes/0/name" not in tree(xen, "data")


def test_addresses_of_passed_through_functions_are_found_by_their_mac(xen: Platform) -> None:
    _guest, daemon = boot(xen)
    xen.toolstack.xs.write(f"{HOME}/xenserver", "")
    xen.toolstack.xs.set_permissions(f"{HOME}/xenserver", ["n1"])
    for number, mac in (("0", "AA:BB:CC:00:00:01"), ("1", "aa:bb:cc:00:00:02")):
        xen.toolstack.xs.write(f"{HOME}/xenserver/device/net-sriov-vf/{number}/mac", mac)
    daemon.system.sriov["aa:bb:cc:00:00:01"] = Addresses(ipv4=("198.51.100.1",))
    xen.advance(60)
    assert tree(xen, "xenserver/attr") == {"xenserver/attr/net-sriov-vf/0/ipv4/0": "198.51.100.1"}


def test_only_what_changed_is_written_and_updated_always(xen: Platform) -> None:
    guest, _daemon = boot(xen)
    assert guest.bus is not None
    before = guest.bus.store.requests
    xen.advance(60)
    # unique-domain-id, control/feature-balloon, which libxl did not make, and data/updated.
    assert guest.bus.store.requests - before == 3
    assert guest.console is not None
    assert guest.console.text.count("xe-daemon: control/feature-balloon") == 1


def test_in_another_domain_everything_is_written_again(xen: Platform) -> None:
    _guest, daemon = boot(xen)
    xs = xen.toolstack.xs
    xs.rm(f"{HOME}/data/os_name")
    xen.advance(60)
    assert xs.read(f"{HOME}/data/os_name") is None
    xs.write(f"{HOME}/unique-domain-id", "second")
    xen.advance(60)
    assert xs.read(f"{HOME}/data/os_name") == "Debian GNU/Linux 12 (bookworm)"
    assert daemon.cycles == 1


def test_a_clock_that_was_set_wakes_it_a_second_later(xen: Platform) -> None:
    _guest, daemon = boot(xen)
    xen.advance(10)
    daemon.clock.set_system_time(filetime_of(datetime(2027, 2, 3, 4, 5, 6, tzinfo=UTC)))
    xen.run()
    assert daemon.cycles == 2
    assert tree(xen, "data")["data/updated"] == "Wed Feb  3 04:05:07 2027"


def test_a_full_quota_is_logged_and_tried_again(xen: Platform) -> None:
    guest, daemon = boot(xen)
    daemon.system.volumes.extend(
        Volume(name=f"disk{n}", size=n, free=n, extents=("a", "b")) for n in range(200)
    )
    xen.advance(60)
    assert guest.console is not None
    assert "ENOSPC" in guest.console.text
    assert guest.running
    del daemon.system.volumes[3:]
    xen.advance(240)
    names = [key for key in tree(xen, "data/volumes") if key.endswith("/name")]
    assert names == [f"data/volumes/{n}/name" for n in range(3)]


def test_a_value_that_no_request_holds_is_logged(xen: Platform) -> None:
    guest, daemon = boot(xen)
    daemon.system.name = "x" * 2000
    xen.advance(60)
    assert guest.console is not None
    assert "xe-daemon: data/os_name: 2000 bytes of text" in guest.console.text
    assert tree(xen, "data")["data/updated"] == "Thu Jan  1 00:01:00 2026"
