"""The operating system that an agent runs in: what it reports, and what it can be told to do.

The drivers do not need it. It is a model of what a user would change inside a guest: its
name, its volumes and addresses, a tablet's hinge, how long its tasks take to freeze.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from xenpv.iface.systemclock import TimeZone

FREEZE_TIMEOUT_MS: Final = 20_000  # pm_freeze_timeout of Linux


@attrs.define(kw_only=True)
class Volume:
    """A mounted file system: sizes in bytes; `extents` names the disks it lies on."""

    name: str
    size: int
    free: int
    filesystem: str = ""
    mount_point: str = ""
    extents: tuple[str, ...] = ()


@attrs.define(kw_only=True)
class Addresses:
    """What an interface is configured with, in the order in which it is reported."""

    ipv4: tuple[str, ...] = ()
    ipv6: tuple[str, ...] = ()


def addresses_of(text: str) -> Addresses:
    """From a vif's `ip`: addresses with white space between them, a prefix length or none behind
    each. What is no address is left out.
    """
    from ipaddress import ip_interface

    found: dict[int, list[str]] = {4: [], 6: []}
    for one in text.split():
        try:
            address = ip_interface(one).ip
        except ValueError:
            continue
        found[address.version].append(str(address))
    return Addresses(ipv4=tuple(found[4]), ipv6=tuple(found[6]))


@attrs.define(kw_only=True)
class OperatingSystem:
    """One guest's; it outlives reboots.

    `addresses` are by device number of the PV interface, `sriov` by the MAC address (lower
    case, with colons) of a passed-through one. `memory_used_kib` is what its programs take.
    `is_slate` is the position of a convertible laptop's hinge, `slate_stuck` one that does
    not follow what the firmware says.
    """

    name: str
    distro: str
    major: str
    minor: str
    uname: str
    volumes: list[Volume] = attrs.field(factory=list)
    addresses: dict[int, Addresses] = attrs.field(factory=dict)
    sriov: dict[str, Addresses] = attrs.field(factory=dict)
    memory_used_kib: int = 16 * 1024
    time_zone: TimeZone = attrs.field(factory=TimeZone)
    is_slate: bool = False
    slate_stuck: bool = False
    freeze_ms: int = 0  # what it takes to freeze its tasks for a suspend
    freeze_timeout_ms: int = FREEZE_TIMEOUT_MS


# name, distro, major, minor, uname
SYSTEMS: Final[Mapping[str, tuple[str, str, str, str, str]]] = {
    "windows": ("Microsoft Windows Server 2022 Standard", "windows", "10", "0", "10.0.20348"),
    "linux": ("Debian GNU/Linux 12 (bookworm)", "debian", "12", "0", "6.1.0"),
}


def operating_system(personality: str) -> OperatingSystem:
    """One as it is installed: no volumes and no addresses that a user did not give it."""
    name, distro, major, minor, uname = SYSTEMS[personality]
    return OperatingSystem(name=name, distro=distro, major=major, minor=minor, uname=uname)
