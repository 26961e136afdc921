"""What a user does with dumps and hibernation: settings, reboots, moves, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vbd.crash.dumps import FILE_SIZE, MEMORY_MIB, PAGES, DumpReader, differing
from xenpv import Disk, Guest, MemoryImage, Platform, Vif
from xenpv.errors import LocalProtocolError
from xenpv.host.libxl import ToolstackError
from xenpv.vbd.crash.stack import Stage

CRASH, POWEROFF = 3, 0


def guest_of(xen: Platform, *images: MemoryImage, personality: str = "windows") -> Guest:
    disks = [Disk(image) for image in images]
    return xen.create(name="web", memory_mib=MEMORY_MIB, disks=disks, personality=personality)


def key(xen: Platform, guest: Guest, target: int, name: str) -> str | None:
    path = f"/local/domain/{guest.domid}/data/scsi/target/{target}/{name}"
    return xen.toolstack.ctx.xs.read(path)


def blank(mib: int = 12) -> MemoryImage:
    return MemoryImage(bytearray(mib << 20))


def test_a_dump_goes_to_the_disk_and_the_sector_that_were_named() -> None:
    with Platform(seed=5) as xen:
        first, second = blank(1), blank()
        guest = guest_of(xen, first, second).start()
        guest.set_crash_dump(guest.disks[1], lba=24)
        assert [key(xen, guest, n, "dump") for n in (0, 1)] == ["0", "1"]
        assert guest.crash(0xD1, 5, "a text") == CRASH
        stack = guest.crash_dump
        assert stack is not None
        assert (stack.stage, stack.failure) == (Stage.DONE, "")
        assert not any(first.buffer)
        assert not any(second.buffer[: 24 * 512])
        assert not any(second.buffer[24 * 512 + FILE_SIZE :])
        data = bytes(second.buffer[24 * 512 :][:FILE_SIZE])
        assert not differing(stack, data)
        assert DumpReader(data).field("I4Q", 0x38)[0] == 0xD1
        assert DumpReader(data).field("4Q", 0x40) == (5, 0, 0, 0)


def test_the_setting_is_there_after_a_reboot_and_gone_when_taken_back() -> None:
    with Platform(seed=5) as xen:
        image = blank()
        guest = guest_of(xen, image)
        guest.set_crash_dump(0)
        guest.start()
        assert key(xen, guest, 0, "dump") == "1"
        guest.reboot()
        assert key(xen, guest, 0, "dump") == "1"
        assert guest.crash_dump is not None
        free = guest.created.domain.pages.free_pages
        guest.set_crash_dump(None)
        assert key(xen, guest, 0, "dump") == "0"
        assert guest.crash_dump is None
        assert guest.created.domain.pages.free_pages == free + 25
        assert guest.crash() == CRASH
        assert not any(image.buffer)


def test_a_dump_that_moves_to_another_disk() -> None:
    with Platform(seed=5) as xen:
        guest = guest_of(xen, blank(), blank()).start()
        guest.set_crash_dump(0)
        guest.set_crash_dump(1)
        assert [key(xen, guest, n, "dump") for n in (0, 1)] == ["0", "1"]
        guest.crash()
        assert guest.crash_dump is not None
        assert guest.crash_dump.driver.frontend is not None
        assert guest.crash_dump.driver.frontend.path == "device/vbd/51728"


def test_a_hibernation_file_has_every_page_and_the_guest_is_off() -> None:
    with Platform(seed=5) as xen:
        image = blank()
        guest = guest_of(xen, image).start()
        domain = guest.created.domain
        pfn = domain.pages.alloc()
        domain.write(pfn, 0, b"unsaved work")
        guest.set_hibernation(guest.disks[0], lba=16)
        assert key(xen, guest, 0, "hibernation") == "1"
        assert guest.hibernate() == POWEROFF
        stack = guest.hibernation
        assert stack is not None
        data = bytes(image.buffer[16 * 512 :][:FILE_SIZE])
        file = DumpReader(data)
        assert file.signature == b"HIBRPV64"
        assert file.runs == [(0x100, PAGES)]
        assert file.pages()[pfn].startswith(b"unsaved work")
        assert not differing(stack, data)


def test_its_agent_hibernates_it_too() -> None:
    with Platform(seed=5) as xen:
        image = blank()
        guest = guest_of(xen, image).start()
        guest.set_hibernation(0)
        xen.toolstack.ctx.xs.write(f"/local/domain/{guest.domid}/control/shutdown", "s4")
        xen.run()
        assert DumpReader(bytes(image.buffer)).signature == b"HIBRPV64"
        assert guest.created.domain.shutdown_code == POWEROFF


def test_a_guest_whose_hibernation_file_does_not_fit_has_crashed() -> None:
    with Platform(seed=5) as xen:
        guest = guest_of(xen, blank(1)).start()
        guest.set_hibernation(0)
        with pytest.raises(ToolstackError, match=r"^guest 'web' did not hibernate: the disk has "):
            guest.hibernate()
        assert guest.created.domain.shutdown_code == CRASH


def test_without_a_file_it_is_off_and_nothing_is_written() -> None:
    with Platform(seed=5) as xen:
        image = blank()
        guest = guest_of(xen, image).start()
        assert guest.hibernate() == POWEROFF
        assert not any(image.buffer)


def test_a_guest_that_was_saved_restored_or_moved_still_writes_its_dump(tmp_path: Path) -> None:
    with Platform(seed=5) as xen:
        guest = guest_of(xen, blank()).start()
        guest.set_crash_dump(0)
        guest.save(tmp_path / "web.save")
        restored = xen.restore(tmp_path / "web.save")
        restored.crash()
        stack = restored.crash_dump
        assert stack is not None
        assert (stack.stage, stack.failure) == (Stage.DONE, "")
    with Platform(seed=5) as xen, Platform(loop=xen.loop) as other:
        guest = guest_of(xen, blank()).start()
        guest.set_crash_dump(0)
        moved = guest.migrate(other)
        moved.crash()
        stack = moved.crash_dump
        assert stack is not None
        assert (stack.stage, stack.failure) == (Stage.DONE, "")


def test_other_guests_go_on_meanwhile() -> None:
    with Platform(seed=5) as xen:
        image = blank()
        guest = guest_of(xen, image).start()
        guest.set_crash_dump(0)
        other = xen.create(name="db", disks=[Disk(blank(1))], vifs=[Vif()]).start()
        assert guest.bus is not None
        guest.bus.crash.bugcheck(0xE2)
        other.disks[0].write(0, b"x" * 512)
        assert other.disks[0].read(0, 1) == b"x" * 512
        xen.run()
        assert guest.crash_dump is not None
        assert not differing(guest.crash_dump, bytes(image.buffer[:FILE_SIZE]))


def test_a_watchdog_does_not_cut_a_dump_short() -> None:
    with Platform(seed=5) as xen:
        image = blank()
        guest = guest_of(xen, image)
        guest.registry.set("Control", "SystemStartOptions", "XEN:WATCHDOG=10")
        guest.set_crash_dump(0)
        guest.start()
        assert guest.bus is not None
        assert guest.bus.watchdog.id
        home, xs = f"/local/domain/{guest.domid}", xen.toolstack.ctx.xs
        xs.write(f"{home}/data/nobody/state", "1")
        xs.write(f"{home}/device/vbd/77/backend", f"{home}/data/nobody")
        assert guest.crash() == CRASH
        assert xen.loop.now > 30_000_000_000
        assert guest.crash_dump is not None
        assert (guest.crash_dump.stage, guest.crash_dump.failure) == (Stage.DONE, "")


@pytest.mark.parametrize("personality", ["linux"])
def test_a_guest_that_is_not_windows_has_neither(personality: str) -> None:
    with Platform(seed=5) as xen:
        guest = guest_of(xen, blank(), personality=personality).start()
        for call in (lambda: guest.set_crash_dump(0), lambda: guest.set_hibernation(0)):
            with pytest.raises(LocalProtocolError, match="does not run Windows"):
                call()
        with pytest.raises(LocalProtocolError, match="does not run Windows"):
            guest.hibernate()


@pytest.mark.parametrize(("target", "lba"), [(128, 0), (-1, 0), (0, -1), (0, 1 << 64)])
def test_a_place_that_no_disk_has_is_refused(target: int, lba: int) -> None:
    with Platform(seed=5) as xen:
        guest = guest_of(xen, blank())
        with pytest.raises(LocalProtocolError, match="expected a target below 128"):
            guest.set_crash_dump(target, lba=lba)


def test_a_guest_without_memory_for_the_driver_is_told() -> None:
    with Platform(seed=5) as xen:
        guest = guest_of(xen, blank()).start()
        pages = guest.created.domain.pages
        pages.alloc(pages.free_pages - 30)
        pages.alloc(10)
        with pytest.raises(LocalProtocolError, match="no memory for a dump"):
            guest.set_crash_dump(0)


def test_crash_control_of_windows_alone_asks_for_nothing() -> None:
    with Platform(seed=5) as xen:
        guest = guest_of(xen, blank())
        guest.registry.set("Control\\CrashControl", "CrashDumpEnabled", 1)
        guest.start()
        assert guest.crash_dump is None
