"""A guest's life goes on while its disk works: requests in flight at every turn of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from xenpv import Disk, Guest, MemoryImage, Platform
from xenpv.errors import XenpvError
from xenpv.testing.checkers import check_all
from xenpv.vbd.parameters import Parameters
from xenpv.vbd.pending import Pending
from xenpv.vbd.srb import SrbStatus

LATENCY_NS = 30_000_000
SIZE = 4096
PROFILES = ["linux", "persistent", "qemu", "tapdisk", "mirage"]


def platform(profile: str, seed: int = 5) -> Platform:
    linux = profile in ("linux", "persistent")
    return Platform(seed=seed, blkback="linux" if linux else profile)


def begun(xen: Platform, profile: str, image: MemoryImage) -> tuple[Guest, list[Pending]]:
    """A guest with eight writes, a read and a flush under way, a millisecond after it began."""
    parameters = Parameters(persistent=profile == "persistent")
    guest = xen.create(
        name="web", disks=[Disk(image, latency_ns=LATENCY_NS)], vbd=parameters
    ).start()
    disk = guest.disks[0]
    under_way = [disk.start_write(8 * n, bytes([n + 1]) * SIZE) for n in range(8)]
    under_way += [disk.start_read(128, 8)]
    xen.advance(0.001)
    assert {one.srb_status for one in under_way} == {SrbStatus.PENDING}
    under_way.append(disk.start_flush())  # mirage has none, and it is done
    return guest, under_way


def pause(guest: Guest, _file: Path) -> None:
    guest.pause()
    guest.platform.advance(0.1)
    guest.unpause()


def suspend(guest: Guest, _file: Path) -> None:
    guest.suspend()
    guest.platform.advance(0.1)
    guest.resume()


def detach(guest: Guest, _file: Path) -> None:
    guest.detach(guest.disks[0])


def forced_detach(guest: Guest, _file: Path) -> None:
    guest.detach(guest.disks[0], mode="forced")


def shutdown(guest: Guest, _file: Path) -> None:
    guest.shutdown()


def reboot(guest: Guest, _file: Path) -> None:
    guest.reboot()


def destroy(guest: Guest, _file: Path) -> None:
    guest.destroy()


def crash(guest: Guest, _file: Path) -> None:
    guest.crash()


def save(guest: Guest, file: Path) -> None:
    guest.save(file)


def checkpoint(guest: Guest, file: Path) -> None:
    guest.save(file, checkpoint=True)


def wait(guest: Guest, _file: Path) -> None:
    guest.platform.run()


# and whether its requests come to an end in the guest
EVENTS: dict[str, tuple[Callable[[Guest, Path], None], bool]] = {
    "wait": (wait, True),
    "pause": (pause, True),
    "suspend": (suspend, True),
    "detach": (detach, True),
    "forced detach": (forced_detach, True),
    "shutdown": (shutdown, True),
    "reboot": (reboot, True),
    "destroy": (destroy, False),
    "crash": (crash, False),
    "save": (save, False),
    "checkpoint": (checkpoint, True),
}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("profile", PROFILES)
def test_what_is_under_way_ends_once_and_leaves_nothing_behind(
    profile: str, event: str, tmp_path: Path
) -> None:
    image = MemoryImage(bytearray(1 << 20))
    happen, ends = EVENTS[event]
    with platform(profile) as xen:
        guest, under_way = begun(xen, profile, image)
        try:
            happen(guest, tmp_path / "saved")
        except XenpvError as error:
            assert event == "forced detach", error  # it did not let go, yet the device is gone
        xen.run()
        xen.advance(1)
        check_all(xen)
        if ends:
            assert SrbStatus.PENDING not in [one.srb_status for one in under_way]
        for n, one in enumerate(under_way[:8]):
            found = bytes(image.buffer[n * SIZE : (n + 1) * SIZE])
            assert found in (bytes([n + 1]) * SIZE, bytes(SIZE))
            if one.srb_status is SrbStatus.SUCCESS:
                assert found == bytes([n + 1]) * SIZE
        if event in ("wait", "pause"):
            assert {one.srb_status for one in under_way} == {SrbStatus.SUCCESS}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("seed", range(3))
def test_a_guest_that_moves_finds_what_it_wrote(profile: str, seed: int) -> None:
    """Nothing that the old host's disk was told to do comes after the guest ran on the new one."""
    image = MemoryImage(bytearray(1 << 20))
    with platform(profile, seed) as xen, Platform(seed=seed, loop=xen.loop) as other:
        guest, _ = begun(xen, profile, image)
        moved = guest.migrate(other)
        disk = moved.disks[0]
        for n in range(8):
            disk.write(8 * n, bytes([0x80 + n]) * SIZE)
        other.advance(1)
        for n in range(8):
            assert disk.read(8 * n, 8) == bytes([0x80 + n]) * SIZE
        check_all(xen)
        check_all(other)
