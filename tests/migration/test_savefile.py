"""Guests through save files: what they have afterwards, what is new, what is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.migration.guests import IMAGE, made, pings, trees, works
from xenpv import Disk, Guest, MemoryImage, Platform, ToolstackError, Vif
from xenpv.errors import LocalProtocolError, XenpvError
from xenpv.host.libxl import LIBXL
from xenpv.iface.agent import Agent
from xenpv.migration import save as saving
from xenpv.xen.gnttab import GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE

KERNELS = [
    ("windows", True, 1),
    ("windows", False, 3),
    ("linux", False, 1),
    ("linux", True, 2),
]
FEATURES = {
    "windows": ("poweroff", "reboot", "suspend", "s3", "s4"),
    "linux": ("poweroff", "reboot", "suspend"),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "web.save"


def agent_of(guest: Guest) -> Agent:
    assert guest.bus is not None
    driver = guest.bus.pdos["IFACE"].driver
    agent = driver if isinstance(driver, Agent) else guest.iface.agent
    assert isinstance(agent, Agent)
    return agent


@pytest.mark.parametrize(("personality", "fifo", "vcpus"), KERNELS)
def test_a_guest_goes_on_in_another_platform(
    path: Path, personality: str, fifo: bool, vcpus: int
) -> None:
    with Platform(seed=3) as xen:
        guest = made(xen, personality, fifo, vcpus)
        guest.disks[0].write(8, b"\x5a" * 4096)
        uuid, mac = guest.created.uuid, guest.nets[0].mac
        guest.save(path)
        assert guest.created.domain.dead
        assert list(path.parent.iterdir()) == [path]
        assert not xen.toolstack.xs.directory("/libxl")
    with Platform(seed=4) as xen:
        xen.create(name="other")
        guest = xen.restore(path)
        assert (guest.name, guest.domid, guest.created.uuid) == ("web", 2, uuid)
        assert guest.nets[0].mac == mac
        assert guest.disks[0].read(8, 8) == b"\x5a" * 4096
        works(xen, guest)
        assert xen.guests[1] is guest
        guest.reboot()
        works(xen, guest)
        assert guest.shutdown() == 0


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_a_restored_guest_finds_the_trees_of_a_new_domain(path: Path, personality: str) -> None:
    """Everything that it wrote is gone; once it runs its agent has written its keys again."""
    with Platform(seed=3) as xen:
        guest = made(xen, personality)
        config = guest.created.config
        xen.toolstack.xs.write(f"/local/domain/{guest.domid}/data/mine", "1")
        used = trees(xen)
        guest.save(path)
    with Platform(seed=4) as xen:
        assert xen.register_image(MemoryImage(IMAGE)) == config.disks[0].target
        xen.create_from(config)
        fresh = trees(xen)
    with Platform(seed=4) as xen:
        guest = xen.restore(path, paused=True)
        assert not guest.running
        assert trees(xen) == fresh
        assert "/local/domain/1/data/mine" in used.keys() - fresh.keys()
        guest.start()
        again = trees(xen)
        for name in FEATURES[personality]:
            assert again[f"/local/domain/1/control/feature-{name}"] == "1"
        assert used.keys() - again.keys() == {"/local/domain/1/data/mine"}
        assert not again.keys() - used.keys()


def test_ports_and_grants_are_new_but_for_the_reserved(path: Path) -> None:
    with Platform(seed=3) as xen:
        made(xen).save(path)
        domain = xen.restore(path, paused=True).created.domain
        ports = [(port.number, port.state.name) for port in domain.evtchn._table.once_bound()]
        assert ports == [(0, "RESERVED"), (1, "INTERDOMAIN"), (2, "INTERDOMAIN")]
        assert (GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE) == (0, 1)
        assert not domain.evtchn.fifo
        assert domain.gnttab.version == 1
        assert domain.read(0xFEFFC, 0, 2060)[:2048] == bytes(2048)  # the store's page


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_a_restored_guest_sets_its_clock(path: Path, personality: str) -> None:
    with Platform(seed=3) as xen:
        guest = made(xen, personality)
        xen.advance(100)
        guest.save(path)
    with Platform(seed=3) as xen:
        xen.hypervisor.settime64(2_000_000_000, 0, 0)
        guest = xen.restore(path)
        xen.advance(61)
        agent = agent_of(guest)
        clock = agent.xenagent.clock if agent.xenagent is not None else agent.manage.clock
        unix_s = clock.now() / 10_000_000 - 11_644_473_600
        assert unix_s == pytest.approx(2_000_000_000 + xen.loop.now / 1e9, abs=0.01)


def test_a_checkpoint_goes_on_and_can_be_restored_beside_it(path: Path) -> None:
    with Platform(seed=3) as xen:
        guest = made(xen)
        domid = guest.domid
        guest.save(path, checkpoint=True)
        assert (guest.domid, guest.running) == (domid, True)
        assert guest.bus is not None
        assert guest.bus.suspend.get_count() == 0  # it was cancelled
        guest.disks[0].write(0, b"\x11" * 512)
        with pytest.raises(ToolstackError, match="a domain named 'web' exists"):
            xen.restore(path)
        twin = xen.restore(path, name="twin")
        assert (twin.name, twin.disks[0].read(0, 1)) == ("twin", IMAGE[:512])
        assert guest.disks[0].read(0, 1) == b"\x11" * 512
        assert twin.created.uuid != guest.created.uuid
        pings(xen, twin)
        third = xen.restore(path, name="third", domid=77)
        assert third.domid == 77
        assert [one.shutdown() for one in (guest, twin, third)] == [0, 0, 0]


def test_a_guest_that_was_saved_with_pause_waits(path: Path) -> None:
    with Platform(seed=3) as xen:
        guest = made(xen)
        guest.save(path, pause=True)
        assert not guest.running
        assert not guest.created.domain.is_shutdown
        guest.created.domain.unpause()
        xen.run()
        works(xen, guest)


def test_a_guest_can_be_saved_again_and_again(path: Path) -> None:
    """Each save replaces the file; each restore is a new domain."""
    with Platform(seed=3) as xen:
        guest = made(xen)
        for turn in range(4):
            guest.disks[0].write(turn, bytes([turn]) * 512)
            guest.save(path)
            guest = xen.restore(path)
            assert guest.bus is not None
            assert guest.bus.suspend.get_count() == turn + 1
        assert guest.disks[0].read(0, 4) == b"".join(bytes([turn]) * 512 for turn in range(4))


def test_equal_guests_give_equal_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with Platform(seed=3) as xen:
            made(xen).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


JOB = textwrap.dedent("""
    import sys
    from tests.migration.guests import works
    from xenpv import Platform

    with Platform(seed=5) as xen:
        guest = xen.restore(sys.argv[1])
        works(xen, guest)
        guest.save(sys.argv[2], checkpoint=True)
        guest.shutdown()
        print(xen.digest)
""")


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_one_file_restored_in_two_processes_gives_one_digest(path: Path, personality: str) -> None:
    with Platform(seed=3) as xen:
        made(xen, personality).save(path)
    digests = []
    for hash_seed in ("0", "4711"):
        out = path.with_suffix(f".{hash_seed}")
        done = subprocess.run(
            [sys.executable, "-c", JOB, str(path), str(out)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        digests.append((done.stdout, out.read_bytes()))
    assert digests[0] == digests[1]
    with Platform(seed=5) as xen:
        guest = xen.restore(path)
        works(xen, guest)
        guest.save(path.with_suffix(".0"), checkpoint=True)
        guest.shutdown()
        assert xen.digest + "\n" == digests[0][0]


# disks


def test_devices_that_were_plugged_in_and_out_are_as_they_were_left(path: Path) -> None:
    with Platform(seed=3) as xen:
        guest = made(xen)
        guest.attach(Disk(MemoryImage(bytearray(b"p" * 4096))))
        guest.attach(Vif(bridge="xenbr1"))
        guest.detach("vif", 0)
        assert [disk.devid for disk in guest.disks] == [51712, 51728]
        guest.save(path)
    with Platform(seed=4) as xen:
        guest = xen.restore(path)
        assert [disk.devid for disk in guest.disks] == [51712, 51728]
        assert guest.disks[1].read(0, 1) == b"p" * 512
        assert [net.number for net in guest.nets] == [1]
        assert "vif1.1" in xen.bridge("xenbr1").ports
        guest.detach("vbd", 51728)
        guest.reboot()
        assert [disk.devid for disk in guest.disks] == [51712]


def test_a_disk_that_is_a_file_is_opened_by_its_path(path: Path) -> None:
    image = path.with_suffix(".img")
    image.write_bytes(IMAGE)
    with Platform(seed=3) as xen:
        guest = xen.create(name="web", disks=[Disk(image)], vifs=[Vif()]).start()
        guest.disks[0].write(0, b"\x42" * 512)
        guest.save(path)
    assert path.stat().st_size < 1 << 20
    with Platform(seed=3) as xen:
        guest = xen.restore(path)
        assert guest.disks[0].read(0, 1) == b"\x42" * 512
        with pytest.raises(ToolstackError, match=f"{image} is in use"):
            xen.restore(path, name="twin")
        guest.disks[0].write(1, b"\x43" * 512)
        guest.shutdown()
    assert image.read_bytes()[:1024] == b"\x42" * 512 + b"\x43" * 512
    image.unlink()
    with Platform(seed=3) as xen:
        with pytest.raises(ToolstackError, match=f"disk image {image} does not exist"):
            xen.restore(path)
        assert xen.toolstack.created == {}


def test_disks_in_memory_are_in_the_file_each_of_them_once(path: Path) -> None:
    shared = MemoryImage(bytearray(b"s" * 512 + bytes(8 << 20)), writable=False)
    own = MemoryImage(bytearray(b"o" * 4096), sector_size=4096)
    with Platform(seed=3) as xen:
        disks = [Disk(shared, readonly=True), Disk(own), Disk(shared, readonly=True)]
        guest = xen.create(name="web", disks=disks).start()
        guest.save(path)
        assert path.stat().st_size < 2 << 20  # without most of the zeros
        guest = xen.restore(path)
        first, second, third = guest.disks
        assert first.read(0, 2) == third.read(0, 2) == b"s" * 512 + bytes(512)
        assert first.capacity == third.capacity == 1 + (8 << 11)
        assert (second.sector_size, second.read(0, 1)) == (4096, b"o" * 4096)
        targets = [disk.target for disk in guest.created.config.disks]
        assert targets[0] == targets[2] != targets[1]
        second.write(0, b"n" * 4096)
        assert own.buffer[:1] == b"o"  # the original is another disk
        with pytest.raises(XenpvError, match="write at sector 0"):
            first.write(0, bytes(512))


def test_who_restores_can_give_a_disk_of_its_own(path: Path) -> None:
    mine = MemoryImage(bytearray(b"m" * 65536))
    with Platform(seed=3) as xen:
        made(xen).save(path)
        with pytest.raises(ToolstackError, match="has no disk hda: expected xvda"):
            xen.restore(path, images={"hda": mine})
        guest = xen.restore(path, images={"xvda": mine})
        assert guest.disks[0].read(0, 1) == b"m" * 512
        guest.disks[0].write(1, b"w" * 512)
        assert mine.buffer[512:1024] == b"w" * 512


def test_a_disk_that_is_too_large_for_a_file_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xenpv.migration import disks

    monkeypatch.setattr(disks, "DISK_BYTES_MAX", 32768)
    with Platform(seed=3) as xen:
        guest = made(xen)
        with pytest.raises(ToolstackError, match="disk image:1 has 65536 bytes in memory"):
            guest.save(path)
        assert not list(path.parent.iterdir())
        works(xen, guest)


# saves that fail


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


FAILURES: list[tuple[str, Callable[..., object]]] = [
    ("write_head", full),
    ("capture_domain", full),
    ("write_pages", full),
    ("capture", lambda *_, **__: (_ for _ in ()).throw(ToolstackError("disk 51712: a lambda"))),
    ("write_disk", full),
    ("replace", full),
]


@pytest.mark.parametrize(("step", "fault"), FAILURES, ids=[name for name, _ in FAILURES])
def test_a_save_that_fails_leaves_no_file_and_the_guest_running(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str, fault: Callable[..., object]
) -> None:
    path.write_bytes(b"what was there before")
    with Platform(seed=3) as xen:
        guest = made(xen)
        domid = guest.domid
        with monkeypatch.context() as patch:
            patch.setattr(Path if step == "replace" else saving, step, fault)
            with pytest.raises(ToolstackError, match=f"save of 'web' to {path}: ") as caught:
                guest.save(path)
        assert caught.value.code is LIBXL.FAIL
        assert list(path.parent.iterdir()) == [path]
        assert path.read_bytes() == b"what was there before"
        assert (guest.domid, guest.running) == (domid, True)
        assert guest.bus is not None
        assert guest.bus.suspend.get_count() == 0
        works(xen, guest)
        guest.save(path)
        works(xen, xen.restore(path))


@pytest.mark.parametrize(
    ("name", "text"),
    [("no/such/web.save", "No such file or directory"), (".", "it is a directory")],
)
def test_a_file_that_cannot_be_is_known_before_the_guest_is_asked(
    tmp_path: Path, name: str, text: str
) -> None:
    with Platform(seed=3) as xen:
        guest = made(xen)
        asked = xen.digest
        with pytest.raises(ToolstackError, match=f"cannot save to .*: {text}"):
            guest.save(tmp_path / name)
        assert xen.digest == asked
        assert not list(tmp_path.iterdir())


def test_a_guest_that_does_not_answer_is_not_saved(path: Path) -> None:
    with Platform(seed=3) as xen:
        guest = made(xen)
        guest.created.domain.pause()
        with pytest.raises(ToolstackError, match="waited 60 s") as caught:
            guest.save(path)
        assert caught.value.code is LIBXL.GUEST_TIMEDOUT
        assert not list(path.parent.iterdir())
        guest.created.domain.unpause()
        xen.run()
        works(xen, guest)


def test_a_guest_that_is_suspended_already_is_resumed_when_its_save_times_out(path: Path) -> None:
    """As xl: nobody acknowledges, and resume is called anyway."""
    with Platform(seed=3) as xen:
        guest = made(xen)
        guest.suspend()
        with pytest.raises(ToolstackError, match="waited 60 s") as caught:
            guest.save(path)
        assert caught.value.code is LIBXL.GUEST_TIMEDOUT
        assert guest.running
        works(xen, guest)


def test_a_guest_without_pv_drivers_is_stopped_by_the_hypervisor(path: Path) -> None:
    with Platform(seed=3) as xen:
        guest = xen.create(name="plain", hardware=[])
        guest.created.domain.unpause()
        xen.run()
        assert guest.bus is None
        guest.created.domain.write(0x200, 0, b"what is in its memory")
        guest.save(path, checkpoint=True)
        assert guest.running
        twin = xen.restore(path, name="twin").created.domain
        assert twin.read(0x200, 0, 21) == b"what is in its memory"
        assert not twin.is_shutdown


def test_a_guest_that_is_gone_is_not_saved(path: Path) -> None:
    with Platform(seed=3) as xen:
        guest = made(xen)
        guest.destroy()
        with pytest.raises(ToolstackError, match="is gone"):
            guest.save(path)
        assert not list(path.parent.iterdir())


def test_a_closed_platform_restores_nothing(path: Path) -> None:
    with Platform(seed=3) as xen:
        made(xen).save(path)
    with pytest.raises(LocalProtocolError, match="this platform is closed"):
        xen.restore(path)
