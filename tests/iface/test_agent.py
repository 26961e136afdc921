"""Who answers control/shutdown, and how: acknowledge first, and only what is understood."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from xenpv import Disk, Guest, Platform, Vif
from xenpv.abi.xs import XS
from xenpv.bus.ntstatus import NTSTATUS
from xenpv.host.image import MemoryImage
from xenpv.iface.agent import Agent
from xenpv.iface.xenagent import EventId

HOME = "/local/domain/1"
KEY = f"{HOME}/control/shutdown"


@pytest.fixture
def xen() -> Iterator[Platform]:
    with Platform(seed=2) as platform:
        yield platform


def boot(xen: Platform, personality: str) -> Guest:
    return xen.create(name="g", personality=personality).start()


@pytest.mark.parametrize(
    ("personality", "value", "code"),
    [
        ("windows", "poweroff", 0),
        ("windows", "reboot", 1),
        ("linux", "poweroff", 0),
        ("linux", "halt", 0),
        ("linux", "reboot", 1),
    ],
)
def test_an_understood_request_is_acknowledged_before_it_is_done(
    xen: Platform, personality: str, value: str, code: int
) -> None:
    guest = boot(xen, personality)
    domain = guest.created.domain
    seen: list[bool] = []

    class Sink:
        def store_op(
            self, conn_domid: int, op: int, tx_id: int, payload: bytes, error: bytes | None
        ) -> None:
            if conn_domid == 1 and op == XS.WRITE and payload == b"control/shutdown\0":
                seen.append(domain.is_shutdown)
                assert bool(tx_id) == (personality == "linux")
                assert error is None

    xen.xenstored.trace = Sink()
    xen.toolstack.xs.write(KEY, value)
    xen.run()
    assert seen == [False]
    assert domain.shutdown_code == code


@pytest.mark.parametrize(
    ("personality", "value"),
    [
        ("windows", "halt"),
        ("windows", "crash"),
        ("linux", "crash"),
        ("linux", "s3"),
        ("windows", "POWEROFF"),
        ("linux", "poweroff "),
        ("linux", "s4"),
        ("linux", "hibernate"),
    ],
)
def test_what_is_not_understood_is_left_in_place(
    xen: Platform, personality: str, value: str
) -> None:
    guest = boot(xen, personality)
    xen.toolstack.xs.write(KEY, value)
    xen.run()
    assert xen.toolstack.xs.read(KEY) == value
    assert guest.running


def states(xen: Platform, guest: Guest) -> list[str | None]:
    """Of the frontends and their backends."""
    paths = [
        path for one in guest.created.devices for path in (one.frontend_path, one.backend_path)
    ]
    return [xen.toolstack.xs.read(f"{path}/state") for path in paths]


def boot_devices(xen: Platform) -> Guest:
    disk = Disk(MemoryImage(bytearray(range(256)) * 256))
    return xen.create(name="g", disks=[disk], vifs=[Vif()]).start()


def test_s3_is_acknowledged_and_all_is_asleep_until_it_wakes(xen: Platform) -> None:
    guest = boot_devices(xen)
    bus = guest.bus
    assert bus is not None
    for _ in range(2):
        assert states(xen, guest) == ["4"] * 4
        xen.toolstack.xs.write(KEY, "s3")
        xen.run()
        assert xen.toolstack.xs.read(KEY) == ""
        assert states(xen, guest) == ["6"] * 4
        assert (bus.is_asleep, bus.power.is_d0, bus.store.watches()) == (True, False, [])
        assert xen.toolstack.xs.directory(f"{HOME}/drivers") == []
        assert guest.running
        xen.toolstack.xs.write(KEY, "poweroff")  # nobody hears it
        xen.run()
        assert guest.running
        xen.toolstack.xs.write(KEY, "")
        assert bus.wake() is NTSTATUS.SUCCESS
        xen.run()
        assert xen.toolstack.xs.read(f"{HOME}/control/feature-s3") == "1"
        assert len(xen.toolstack.xs.directory(f"{HOME}/drivers")) == 5
        assert guest.disks[0].read(0, 1) == bytes(range(256)) * 2
        assert guest.nets[0].link_up
    assert guest.shutdown() == 0


def test_a_sleep_between_two_suspends_makes_no_agent_deaf(xen: Platform) -> None:
    guest = boot(xen, "windows")
    domain, bus = guest.created.domain, guest.bus
    assert bus is not None
    for value in ("suspend", "s3", "suspend"):
        xen.toolstack.xs.write(KEY, value)
        xen.run()
        assert xen.toolstack.xs.read(KEY) == ""
        if value == "s3":
            bus.wake()
        else:
            domain.suspend_result = 0
            domain.resume()
        xen.run()
        assert bus.problem == ""
        assert guest.iface.agent.xenagent.log[-1].event is (
            EventId.S3 if value == "s3" else EventId.UNSUSPENDED
        )
    assert guest.shutdown() == 0


@pytest.mark.parametrize("value", ["s4", "hibernate"])
def test_s4_is_acknowledged_and_the_domain_powers_off(xen: Platform, value: str) -> None:
    guest = boot_devices(xen)
    bus = guest.bus
    assert bus is not None
    xen.toolstack.xs.write(KEY, value)
    xen.run()
    assert xen.toolstack.xs.read(KEY) == ""
    assert guest.created.domain.shutdown_code == 0
    assert bus.is_hibernated
    assert states(xen, guest) == ["6"] * 4


def test_a_second_request_while_going_down_changes_nothing(xen: Platform) -> None:
    guest = boot(xen, "windows")
    xen.toolstack.xs.write(KEY, "reboot")
    xen.toolstack.xs.write(KEY, "poweroff")
    xen.run()
    assert guest.created.domain.shutdown_code == 0
    xen.toolstack.xs.write(KEY, "reboot")
    xen.run()
    assert guest.created.domain.shutdown_code == 0


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_features_are_advertised_while_it_runs(xen: Platform, personality: str) -> None:
    guest = boot(xen, personality)
    read = xen.toolstack.xs.read
    keys = [f"{HOME}/control/feature-{name}" for name in ("poweroff", "reboot")]
    assert [read(key) for key in keys] == ["1", "1"]
    # XENBUS' key in Windows, the kernel's in Linux.
    assert read(f"{HOME}/control/feature-suspend") == "1"
    assert guest.bus is not None
    driver = guest.bus.pdos["IFACE"].driver
    agent = driver if personality == "linux" else driver.agent
    assert isinstance(agent, Agent)
    agent.stop()
    agent.stop()
    assert [read(key) for key in keys] == ["", ""]
    assert agent.stopped
    left = [watch.path for watch in guest.bus.store.watches() if "shutdown" in watch.path]
    # XENBUS has its own, for `suspend`.
    assert left == (["control/shutdown"] if personality == "windows" else [])


def test_windows_names_its_drivers_in_the_first_free_keys(xen: Platform) -> None:
    boot(xen, "windows")
    drivers = f"{HOME}/drivers"
    names = [xen.toolstack.xs.read(f"{drivers}/{n}") for n in xen.toolstack.xs.directory(drivers)]
    assert names == ["Xen_Project XENBUS 9.1.0.0 ", "Xen_Project XENIFACE 9.1.0.0 "]


def test_linux_has_no_drivers_keys(xen: Platform) -> None:
    boot(xen, "linux")
    assert xen.toolstack.xs.directory(f"{HOME}/drivers") == []


def test_a_key_that_may_not_be_written_is_logged_and_ignored(xen: Platform) -> None:
    guest = xen.create(name="g")
    xs = xen.toolstack.xs
    xs.set_permissions(f"{HOME}/control/feature-reboot", ["n0", "r1"])
    guest.start()
    assert guest.console is not None
    assert "agent: control/feature-reboot: EACCES" in guest.console.text
    xs.write(KEY, "poweroff")
    xen.run()
    assert guest.created.domain.shutdown_code == 0
