"""Disks that come, go, change places and collide; what the scan sees and what it asks the store."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest

from tests.vbd.rawback import OKAY, SYNC10, Scene, read10, scene
from tests.vbd.test_frontend import unplug
from xenpv import Disk, Guest, MemoryImage, Platform
from xenpv.abi.xenbus import XenbusState as State
from xenpv.host import device as devices
from xenpv.host.device import Device
from xenpv.host.diskspec import DiskSpec
from xenpv.testing.census import leaks, take_census
from xenpv.vbd.adapter import Vbd
from xenpv.vbd.alias import Refusal
from xenpv.vbd.frontend import FrontendState
from xenpv.vbd.srb import SrbStatus

both = pytest.mark.parametrize("personality", ["windows", "linux"])


def made(xen: Platform, guest: Guest, vdev: str, fill: int, kind: str = "") -> Device:
    """A device of 16 sectors of that byte, not yet plugged in; `kind` of its backend's path."""
    name = f"{vdev}-{fill}"
    xen.images.register(name, MemoryImage(bytearray([fill]) * 8192))
    device = devices.vbd(DiskSpec(target=name, vdev=vdev), guest.domid)
    return attrs.evolve(device, backend_kind=kind) if kind else device


def plug(xen: Platform, device: Device) -> None:
    """As libxl and the script do, without waiting for the guest."""
    device.add(xen.toolstack.xs)
    xen.run()
    xen.toolstack.xs.write(f"{device.backend_path}/hotplug-status", "connected")
    xen.run()


def pull(xen: Platform, device: Device) -> None:
    """Everything of it is taken away, without asking the guest."""
    for path in (device.frontend_path, device.backend_path, device.libxl_path):
        xen.toolstack.xs.rm(path)
    xen.run()


def started(xen: Platform, personality: str, *vdevs: str) -> Guest:
    disks = [Disk(MemoryImage(bytearray(8192)), vdev=vdev) for vdev in vdevs]
    return xen.create(name="g", disks=disks, personality=personality).start()


def adapter(guest: Guest) -> Vbd:
    assert guest._vbd is not None
    return guest._vbd


# in the same place


@both
@pytest.mark.parametrize("asleep", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_disk_that_is_exchanged_is_another_one(personality: str, asleep: bool, seed: int) -> None:
    with Platform(seed=seed) as xen:
        guest = started(xen, personality, "xvda")
        first = made(xen, guest, "xvdb", 1)
        plug(xen, first)
        before = take_census(xen)
        old = guest.disks[1]
        assert old.read(0, 1) == b"\x01" * 512
        if asleep:
            guest.pause()
        pull(xen, first)
        plug(xen, made(xen, guest, "xvdb", 2))
        if asleep:
            guest.unpause()
            xen.run()
        new = guest.disks[1]
        assert new is not old
        assert old.target.missing
        assert new.read(0, 1) == b"\x02" * 512
        assert guest.bus is not None
        deferred = guest.bus.gnttab.deferred  # the backend had them when the guest saw that
        assert len(leaks(before, take_census(xen))) == bool(deferred)
        assert not (asleep and deferred)


@both
def test_what_was_on_the_way_to_the_old_disk_never_reaches_the_new_one(personality: str) -> None:
    with Platform(seed=2) as xen:
        guest = started(xen, personality, "xvda")
        first = made(xen, guest, "xvdb", 1)
        plug(xen, first)
        old = guest.disks[1]
        guest.pause()
        writes = [old.start_write(n, b"\xee" * 512) for n in range(16)]
        pull(xen, first)
        plug(xen, made(xen, guest, "xvdb", 2))
        guest.unpause()
        xen.run()
        assert all(write.is_complete for write in writes)
        assert {write.srb_status for write in writes} == {SrbStatus.ERROR}
        assert guest.disks[1].read(0, 16) == b"\x02" * 8192


@both
@pytest.mark.parametrize("kind", ["vbd", "qdisk"])
def test_an_exchange_in_the_midst_of_connecting_is_noticed(personality: str, kind: str) -> None:
    with Platform(seed=4) as xen:
        guest = started(xen, personality, "xvda")
        first = made(xen, guest, "xvdb", 1)
        first.add(xen.toolstack.xs)
        xen.run()  # both wait for the script
        assert [disk.devid for disk in guest.disks] == [51712, 51728]
        guest.pause()
        pull(xen, first)
        plug(xen, made(xen, guest, "xvdb", 2, kind))
        guest.unpause()
        xen.run()
        assert guest.disks[1].read(0, 1) == b"\x02" * 512


@both
def test_an_exchange_of_what_waits_for_a_backend_that_never_came_is_noticed(
    personality: str,
) -> None:
    with Platform(seed=4) as xen:
        guest = started(xen, personality, "xvda")
        first = made(xen, guest, "xvdb", 1)
        first.add(xen.toolstack.xs)
        xen.toolstack.xs.rm(first.backend_path)
        xen.run()
        guest.pause()
        pull(xen, first)
        plug(xen, made(xen, guest, "xvdb", 2, "qdisk"))
        guest.unpause()
        xen.run()
        assert guest.disks[1].read(0, 1) == b"\x02" * 512


def test_a_toolstack_that_writes_the_state_of_a_live_disk_exchanges_nothing() -> None:
    with scene() as on:
        target = on.target
        home = f"/local/domain/{on.guest.domid}/device/vbd/51712"
        on.xen.toolstack.xs.write(f"{home}/state", "4")
        on.xen.toolstack.xs.write(f"{home}/mode", "w")
        on.xen.run()
        assert on.target is target
        assert target.state is FrontendState.ENABLED


# one target, several devices


@both
@pytest.mark.parametrize(
    ("first", "second"),
    [("xvda", "hda"), ("hda", "sda"), ("sda", "xvda"), ("hdc", "xvdc"), ("xvda", "xvda1")],
)
def test_the_second_device_of_a_target_gets_its_turn(
    personality: str, first: str, second: str
) -> None:
    with Platform(seed=1) as xen:
        guest = started(xen, personality, "xvdz")
        one, two = made(xen, guest, first, 1), made(xen, guest, second, 2)
        plug(xen, one)
        plug(xen, two)
        assert [disk.devid for disk in guest.disks] == [one.devid, guest.disks[1].devid]
        assert guest.disks[0].read(0, 1) == b"\x01" * 512
        assert adapter(guest).scan.refused == {two.devid: Refusal.TAKEN}
        assert guest.console is not None
        assert guest.console.text.count(f"device {two.devid} is ignored") == 1
        pull(xen, one)
        assert guest.disks[0].devid == two.devid
        assert guest.disks[0].read(0, 1) == b"\x02" * 512
        assert adapter(guest).scan.refused == {}


@both
def test_the_turn_comes_when_the_first_has_closed(personality: str) -> None:
    """Its directory is gone, and its backend takes its time."""
    with scene(personality) as on:
        xs, home = on.xen.toolstack.xs, f"/local/domain/{on.guest.domid}/device/vbd"
        other = made(on.xen, on.guest, "sda", 2)
        other.add(xs)
        on.xen.run()
        assert on.adapter.scan.refused == {2048: Refusal.TAKEN}
        on.submit(SYNC10)
        xs.rm(f"{home}/51712")
        on.xen.run()
        assert [target.devid for target in on.adapter.targets.values()] == [2048]


def test_a_refused_device_that_goes_is_forgotten() -> None:
    with Platform(seed=1) as xen:
        guest = started(xen, "windows", "xvda")
        other = made(xen, guest, "sda", 2)
        plug(xen, other)
        assert adapter(guest).scan.refused == {2048: Refusal.TAKEN}
        pull(xen, other)
        assert adapter(guest).scan.refused == {}
        plug(xen, made(xen, guest, "xvdb", 3))
        assert [disk.devid for disk in guest.disks] == [51712, 51728]


# hidden


@pytest.mark.parametrize(
    ("keys", "hidden"),
    [
        ({"device-type": "disk"}, False),
        ({"device-type": "disk", "ejected": "0"}, False),
        ({"device-type": "disk", "ejected": ""}, False),
        ({"device-type": "disk", "ejected": "2"}, False),
        ({"device-type": "disk", "ejected": "x1"}, False),
        ({"device-type": "disk", "ejected": " 1"}, True),
        ({"device-type": "disk", "ejected": "10"}, True),
        ({"device-type": "disk", "ejected": "012"}, True),
        ({"device-type": "Disk"}, True),
        ({"device-type": "disk "}, True),
        ({"device-type": "cdrom"}, True),
        ({}, True),
    ],
    ids=str,
)
def test_what_is_hidden(keys: dict[str, str], hidden: bool) -> None:
    with scene(start=False) as on:
        home = f"/local/domain/{on.guest.domid}/device/vbd/51728"
        for key, text in ({"state": "1"} | keys).items():
            on.xen.toolstack.xs.write(f"{home}/{key}", text)
        on.guest.start()
        assert list(on.adapter.targets) == ([0] if hidden else [0, 1])


def test_a_device_whose_type_comes_later_is_made_then() -> None:
    with Platform(seed=1) as xen:
        guest = started(xen, "windows", "xvda")
        late = made(xen, guest, "xvdb", 2)
        late.add(xen.toolstack.xs)
        xen.toolstack.xs.rm(f"{late.frontend_path}/device-type")
        xen.run()
        assert len(guest.disks) == 1
        xen.toolstack.xs.write(f"{late.frontend_path}/device-type", "disk")
        xen.toolstack.xs.write(f"{late.backend_path}/hotplug-status", "connected")
        xen.run()
        assert guest.disks[1].read(0, 1) == b"\x02" * 512


def test_an_ejected_disk_is_hidden_from_the_next_boot_of_the_driver() -> None:
    with scene() as on:
        unplug(on)
        on.adapter.stop()
        on.xen.run()
        on.adapter.remove()
        assert on.adapter.targets == {}
        fresh = Vbd(on.adapter.bus)
        fresh.start()
        on.xen.run()
        assert fresh.targets == {}


# what it costs


class Requests:
    """Counts a guest's store requests by the path that they name."""

    def __init__(self, on: Platform, domid: int) -> None:
        self.domid = domid
        self.paths: list[str] = []
        on.xenstored.trace = self

    def store_op(
        self, conn_domid: int, op: int, tx_id: int, payload: bytes, error: bytes | None
    ) -> None:
        del op, tx_id, error
        if conn_domid == self.domid:
            self.paths.append(payload.split(b"\0", 1)[0].decode())


def test_a_scan_asks_nothing_about_disks_that_are_there() -> None:
    with Platform(seed=1) as xen:
        guest = started(xen, "windows", "xvda", "xvdb", "xvdc")
        late = made(xen, guest, "xvdd", 4)
        requests = Requests(xen, guest.domid)
        plug(xen, late)
        assert len(guest.disks) == 4
        assert not [path for path in requests.paths if "/5171" in path or "/5172" in path]


@both
@pytest.mark.parametrize("seed", range(4))
def test_a_disk_is_read_once_when_it_connects(personality: str, seed: int) -> None:
    """What its backend wrote before is no news then."""
    with Platform(seed=seed) as xen:
        disks = [Disk(MemoryImage(bytearray(8192)))]
        guest = xen.create(name="g", disks=disks, personality=personality)
        requests = Requests(xen, guest.domid)
        guest.start()
        assert len([path for path in requests.paths if path.endswith("/sectors")]) == 1


def test_a_flood_of_writes_is_a_handful_of_reads() -> None:
    """XSA-349: what is written while the guest does not run costs it no memory and one look."""
    with scene() as on:
        on.guest.pause()
        for number in range(3000):
            on.back.device.write("sectors", str(1024 + number))
            on.back.device.write(f"junk-{number % 7}", "x" * 200)
        requests = Requests(on.xen, on.guest.domid)
        on.guest.unpause()
        on.xen.run()
        assert on.target.sectors == 1024 + 2999
        assert len(requests.paths) < 400, "some for what fits into the ring at a time"


def test_a_flood_in_device_vbd_costs_a_scan_at_a_time() -> None:
    with scene() as on:
        home = f"/local/domain/{on.guest.domid}/device/vbd"
        on.guest.pause()
        for number in range(2000):
            on.xen.toolstack.xs.write(f"{home}/51712/noise", str(number))
            on.xen.toolstack.xs.write(f"{home}/junk{number % 5}/x", str(number))
        requests = Requests(on.xen, on.guest.domid)
        on.guest.unpause()
        on.xen.run()
        assert on.target.state is FrontendState.ENABLED
        assert len(requests.paths) < 400
        assert len(on.adapter.scan._again) <= 1


# a resize


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Capacities that targets were told of."""
    from xenpv.vbd.target import Target

    seen: list[int] = []
    monkeypatch.setattr(Target, "capacity_changed", lambda self: seen.append(self.sectors))
    yield seen


def resize(on: Scene, **keys: str) -> None:
    for key, text in keys.items():
        on.back.device.write(key.replace("_", "-"), text)
    on.back.device.write("state", "4")
    on.xen.run()


def test_a_target_hears_of_a_new_size_and_of_nothing_else(told: list[int]) -> None:
    with scene() as on:
        assert told == []
        resize(on, sectors="4096")
        assert told == [4096]
        resize(on)
        resize(on, info="4")
        resize(on, junk="1")
        assert told == [4096]
        resize(on, sector_size="4096")
        assert told == [4096, 512]
        resize(on, sectors="8")
        assert told == [4096, 512, 1]


def test_a_new_connection_hears_of_a_size_that_changed_in_between(told: list[int]) -> None:
    with scene() as on:
        on.target.stop()
        on.xen.run()
        on.back.keys = on.back.keys | {"sectors": "99"}
        on.target.start()
        on.xen.run()
        assert (told, on.target.sectors) == ([99], 99)
        on.target.stop()
        on.xen.run()
        on.target.start()
        on.xen.run()
        assert told == [99]


def test_a_resize_in_one_transaction_or_in_two_writes_is_the_same() -> None:
    with scene() as on:
        xs, back = on.xen.toolstack.xs, on.back.device.path

        def at_once(t: int) -> None:
            xs.write(f"{back}/sectors", "2048", t)
            xs.write(f"{back}/state", "4", t)

        xs.transaction(at_once)
        on.xen.run()
        assert on.target.sectors == 2048
        xs.write(f"{back}/sectors", "4096")
        on.xen.run()
        xs.write(f"{back}/state", "4")
        on.xen.run()
        assert on.target.sectors == 4096
        srb = on.submit(read10(4095, 1), [(on.page(), 0, 512)])
        (slot,) = on.back.taken()
        on.back.answer((slot.id, OKAY))
        assert srb.srb_status is SrbStatus.SUCCESS
        resize(on, sectors="4095")
        late = on.submit(read10(4095, 1), [(on.page(), 0, 512)])
        assert late.srb_status is SrbStatus.ERROR, "it shrank"


def test_features_that_change_while_connected_wait_for_the_next_connection() -> None:
    with scene(keys={"feature-flush-cache": "1"}) as on:
        resize(on, feature_flush_cache="0", feature_max_indirect_segments="256", removable="1")
        backend = on.frontend.backend
        assert (backend.flush_cache, backend.indirect_segments, backend.removable) == (
            True, 0, False,
        )  # fmt: skip
        assert on.submit(SYNC10).is_complete is False
        assert on.back.states[-1] is State.CONNECTED
