"""What Windows is told of an interface, and where an emulated card is in its way."""

from __future__ import annotations

import hashlib
from uuid import UUID

import pytest

from tests.vif.rawback import MAC, scene
from xenpv import Guest, Platform, ToolstackError, Vif
from xenpv.bus import inf
from xenpv.bus.ntstatus import NTSTATUS
from xenpv.bus.registry import Registry, Value
from xenpv.host import hardware
from xenpv.vif import identity
from xenpv.vif.stack import configuration_key

ADDRESS = bytes.fromhex(MAC.replace(":", ""))


def test_ids_name_the_vendor_and_every_revision() -> None:
    with scene() as s:
        pdo = s.pdo
        assert pdo.device_id == "XENVIF\\VEN_XP0001&DEV_NET"
        assert pdo.hardware_ids == [
            "XENVIF\\VEN_XP0001&DEV_NET&REV_09000005",
            "XENVIF\\VEN_XP0001&DEV_NET&REV_09000004",
            "XENVIF\\VEN_XP0001&DEV_NET&REV_09000003",
            "XENVIF\\VEN_XP0001&DEV_NET&REV_09000002",
            "XENVIF\\VEN_XP0001&DEV_NET&REV_09000001",
            "XENDEVICE",
        ]
        assert pdo.instance_id == "0"


def test_a_revision_promises_versions_of_vif_and_unplug() -> None:
    assert dict(identity.REVISIONS) == {
        0x09000001: (8, 1), 0x09000002: (9, 1), 0x09000003: (10, 1), 0x09000004: (10, 2),
        0x09000005: (10, 3),
    }  # fmt: skip


def test_the_container_is_a_name_of_the_mac() -> None:
    text = identity.container_id(ADDRESS)
    found = UUID(text)
    assert text == f"{{{str(found).upper()}}}"
    assert (found.version, found.variant) == (5, "specified in RFC 4122")
    # The name space as it lies in memory: three little-endian fields, then eight bytes.
    space = bytes.fromhex("5e7d592a 6488 2844 a110f568f316d4e4")
    digest = hashlib.sha1(space + ADDRESS).digest()  # noqa: S324 - RFC 4122's
    assert found.bytes_le[:6] == digest[:6]
    assert found.bytes[9:] == digest[9:16]
    assert identity.container_id(bytes(6)) != text
    with scene() as s:
        assert s.pdo.container_id == text


def test_the_registry_has_the_address_while_the_device_is_there() -> None:
    with scene() as s:
        registry = s.guest.registry
        assert registry.values("Services\\XENVIF\\Addresses") == {"0": MAC}
        found = registry.find("Services\\XENVIF\\Addresses")
        assert found is not None
        assert found.volatile
        s.pdo.eject()
        s.run()
        assert registry.values("Services\\XENVIF\\Addresses") == {}


# NetworkAddress, the current address; None: the device does not start
OVERRIDES = [
    (None, MAC),
    ("021122334455", "02:11:22:33:44:55"),
    ("02-11-22-33-44-55", "02:11:22:33:44:55"),
    ("02:11:22:33:44:55 junk", "02:11:22:33:44:55"),
    ("011122334455", MAC),
    ("", None),
    ("junk", None),
    ("0211223344", None),
    ("02112233445566", None),
]


@pytest.mark.parametrize(("text", "current"), OVERRIDES)
def test_network_address_overrides_the_current_one(text: str | None, current: str | None) -> None:
    registry = inf.installed()
    if text is not None:
        registry.set(configuration_key(0), "NetworkAddress", text)
    with Platform() as xen:
        guest = xen.create(name="w", vifs=[Vif(mac=MAC)], registry=registry)
        if current is None:
            with pytest.raises(ToolstackError, match="not connected: vif 0"):
                guest.start()
            assert guest._vif is not None
            assert guest._vif.refused == {0: NTSTATUS.INVALID_PARAMETER}
            return
        guest.start()
        nic = guest.nets[0]
        assert nic.mac.hex(":") == current
        assert nic.query(0x1010101).hex(":") == MAC
        home = f"/local/domain/{guest.domid}"
        assert xen.toolstack.xs.read(f"{home}/attr/vif/0/mac/0") == current


STATIC = "{AAAAAAAA-0000-0000-0000-000000000000}"


def start(xen: Platform, registry: Registry, vifs: int = 1) -> Guest:
    macs = [f"00:16:3e:00:00:{number + 1:02x}" for number in range(vifs)]
    return xen.create(name="w", vifs=[Vif(mac=mac) for mac in macs], registry=registry).start()


def refusals(guest: Guest) -> dict[int, NTSTATUS]:
    assert guest._vif is not None
    return guest._vif.refused


def test_a_first_boot_leaves_the_network_to_the_emulated_cards_and_asks_for_another() -> None:
    with Platform() as xen:
        guest = start(xen, Registry(inf.INF), vifs=2)
        assert guest.nets == []
        assert refusals(guest) == dict.fromkeys((0, 1), NTSTATUS.PNP_REBOOT_REQUIRED)
        assert guest.reboot_requests == ["XENVIF"]
        assert guest.registry.dword(inf.UNPLUG, "NICS", 0) == 2
        guest.reboot()
        assert [nic.link_up for nic in guest.nets] == [True, True]
        assert refusals(guest) == {}
        assert guest.reboot_requests == []
        assert guest.registry.dword(inf.UNPLUG, "NICS", 0) == 2


def test_cards_that_nobody_asked_to_unplug_are_in_the_way() -> None:
    registry = inf.installed()
    registry.set(inf.UNPLUG, "NICS", 0)
    with Platform() as xen:
        guest = start(xen, registry)
        assert refusals(guest) == {0: NTSTATUS.PNP_REBOOT_REQUIRED}
        assert guest.registry.dword(inf.UNPLUG, "NICS", 0) == 1


def test_safe_mode_starts_nothing_and_asks_for_nothing() -> None:
    registry = inf.installed()
    registry.set("Control", "SystemStartOptions", "SAFEBOOT:NETWORK")
    with Platform() as xen:
        guest = start(xen, registry)
        assert refusals(guest) == {0: NTSTATUS.UNSUCCESSFUL}
        assert guest.reboot_requests == []


def test_a_refused_interface_is_forgotten_with_its_directory() -> None:
    with Platform() as xen:
        guest = start(xen, Registry(inf.INF))
        xen.toolstack.xs.rm(f"/local/domain/{guest.domid}/device/vif/0")
        xen.run()
        assert refusals(guest) == {}


def saved(guest: Guest) -> dict[str, Value]:
    return guest.registry.values("Services\\XENVIF\\Settings\\0")


def test_settings_of_the_card_are_those_of_the_interface_after_the_reboot() -> None:
    with Platform() as xen:
        guest = start(xen, Registry(inf.INF))
        registry = guest.registry
        key = saved(guest)
        old = key["NetCfgInstanceId"]
        luid = key["NetLuid"]
        assert isinstance(luid, int)
        assert luid >> 48 == 6, "Ethernet"
        # What a user configured meanwhile, statically.
        tcpip = "Services\\Tcpip\\Parameters\\Interfaces"
        netbt = "Services\\NetBT\\Parameters\\Interfaces"
        nsi = "Control\\Nsi\\{eb004a00-9b1a-11d4-9123-0050047759bc}\\10"
        registry.set(f"{tcpip}\\{old}", "EnableDHCP", 0)
        registry.set(f"{tcpip}\\{old}", "IPAddress", ("192.0.2.7",))
        registry.set(f"{netbt}\\Tcpip_{old}", "NameServerList", ("192.0.2.1",))
        prefix = luid.to_bytes(8, "little").hex()
        registry.set(nsi, f"{prefix}c0000207", b"\1\2\3")
        registry.set(nsi, "ffffffffffffffffc0000208", b"\4")
        guest.reboot()
        registry = guest.registry
        own = configuration_key(0)
        new = registry.string(own, "NetCfgInstanceId")
        assert new not in (None, old)
        assert registry.values(f"{tcpip}\\{new}") == {"EnableDHCP": 0, "IPAddress": ("192.0.2.7",)}
        assert registry.values(f"{netbt}\\Tcpip_{new}") == {"NameServerList": ("192.0.2.1",)}
        assert registry.dword(own, "HasSettings", 0) == 1
        copied = {name: value for name, value in registry.values(nsi).items() if value == b"\1\2\3"}
        # The LUID of interface 0 here is 0x0006000100000000, written from its lowest byte on.
        assert list(copied) == [f"{prefix}c0000207", "0000000001000600c0000207"]
        # Later changes of the old one do not come again.
        registry.set(f"{tcpip}\\{old}", "EnableDHCP", 1)
        guest.reboot()
        assert guest.registry.dword(f"{tcpip}\\{new}", "EnableDHCP", 9) == 0


def test_nothing_is_restored_where_nothing_was_saved() -> None:
    with Platform() as xen:
        guest = start(xen, inf.installed())
        assert saved(guest) == {}
        assert guest.registry.dword(configuration_key(0), "HasSettings", 7) == 7


def test_where_no_card_is_on_the_bus_none_has_to_be_unplugged() -> None:
    registry = inf.installed()
    registry.set(inf.UNPLUG, "NICS", 0)
    with Platform() as xen:
        guest = xen.create(
            name="w", vifs=[Vif()], registry=registry, hardware=(hardware.platform_device(),)
        ).start()
        assert guest.nets[0].link_up
