"""A dump in the midst of what else befalls a guest: pauses, its end, its backends' and its return."""

from __future__ import annotations

import pytest

from tests.flows.stepping import At
from tests.flows.test_driver_domain_death import kill
from tests.vbd.crash.dumps import FILE_SIZE, MEMORY_MIB, DumpReader, differing
from xenpv import Disk, Guest, MemoryImage, Platform, Vif
from xenpv.errors import XenpvError
from xenpv.host.domainconfig import Action, DomainConfig
from xenpv.store import profile
from xenpv.testing.census import leaks, take_census
from xenpv.vbd.crash.stack import DumpStack, Stage

S = 1_000_000_000
STRIDE = 7


def blank() -> MemoryImage:
    return MemoryImage(bytearray(12 << 20))


def whole(guest: Guest, image: MemoryImage) -> None:
    stack = guest.crash_dump
    assert stack is not None
    assert (stack.stage, stack.failure) == (Stage.DONE, "")
    assert differing(stack, bytes(image.buffer[:FILE_SIZE])) == []


def begun(xen: Platform, image: MemoryImage) -> tuple[Guest, DumpStack]:
    """A guest that has just crashed; nothing of its dump has run."""
    disks, vifs = [Disk(image)], [Vif()]
    guest = xen.create(name="web", memory_mib=MEMORY_MIB, disks=disks, vifs=vifs).start()
    guest.set_crash_dump(0)
    assert guest.bus is not None
    guest.bus.crash.bugcheck(0xE2)
    assert guest.crash_dump is not None
    return guest, guest.crash_dump


@pytest.mark.parametrize("name", ["C", "OX", "LEGACY"])
def test_every_xenstored_lets_its_ring_be_taken_over(name: str) -> None:
    with Platform(seed=5) as xen:
        xen.xenstored.profile = getattr(profile, name)
        image = blank()
        guest, _stack = begun(xen, image)
        xen.run()
        whole(guest, image)


def test_a_pause_of_hours_does_not_end_a_dump() -> None:
    for moment in range(0, 600, 40):
        with Platform(seed=5) as xen:
            image = blank()
            guest, stack = begun(xen, image)
            xen.loop.advance(moment * 1_000_000)
            over = stack.is_over
            guest.pause()
            xen.loop.advance(3 * 3600 * S)
            assert stack.is_over is over
            guest.unpause()
            xen.run()
            whole(guest, image)


@pytest.mark.usefixtures("short_files")
@pytest.mark.parametrize("moment", [*range(0, 430, 30), 1000])
def test_a_guest_that_is_destroyed_in_its_dump_leaves_nothing(moment: int) -> None:
    with Platform(seed=5) as xen:
        # What a guest that does not crash leaves.
        xen.create(name="web", memory_mib=9, disks=[Disk(blank())], vifs=[Vif()]).start().destroy()
        xen.run()
        before = take_census(xen)
        guest, stack = begun(xen, blank())
        xen.loop.advance(moment * 1_000_000)
        guest.destroy()
        xen.run()
        assert stack.is_over is (moment > 400)
        assert leaks(before, take_census(xen)) == []


def served(xen: Platform, image: MemoryImage) -> tuple[Guest, Guest]:
    backend = xen.create(name="b", personality="linux", driver_domain=True).start()
    disk = Disk(image, backend="b")
    guest = xen.create(name="web", memory_mib=MEMORY_MIB, disks=[disk]).start()
    guest.set_crash_dump(0)
    return backend, guest


def test_a_driver_domain_writes_the_dump() -> None:
    with Platform(seed=5) as xen:
        image = blank()
        _backend, guest = served(xen, image)
        assert guest.crash() == 3
        whole(guest, image)


@pytest.mark.usefixtures("short_files")
def test_a_driver_domain_that_died_before_or_during_it_ends_the_dump() -> None:
    def died(step: int) -> tuple[int, DumpStack]:
        with Platform(seed=5) as xen:
            backend, guest = served(xen, blank())
            if step < 0:
                kill(xen, backend)
            at = xen.loop.scheduler = At(step, lambda: kill(xen, backend))
            began = xen.loop.now
            assert guest.crash() == 3
            assert xen.loop.now - began < 200 * S
            assert guest.crash_dump is not None
            return at.steps, guest.crash_dump

    steps, stack = died(1 << 30)
    assert stack.stage is Stage.DONE
    found = [died(step)[1] for step in (-1, *range(0, steps, STRIDE))]
    assert all(one.is_over for one in found)
    assert [one.stage for one in found[:5]] == [Stage.FAILED] * 5


@pytest.mark.parametrize("action", [Action.RESTART, Action.SOFT_RESET, Action.COREDUMP_RESTART])
def test_a_guest_comes_back_after_its_dump_and_can_crash_again(action: Action) -> None:
    with Platform(seed=5) as xen:
        image = blank()
        spec = xen.disk_spec(Disk(image), "xvda")
        config = DomainConfig(name="web", memory_mib=MEMORY_MIB, disks=(spec,), on_crash=action)
        guest = xen.create_from(config, monitor=True)
        guest.set_crash_dump(0)
        guest.start()
        for code in (0xE2, 0x9F):
            first = guest.crash_dump
            assert first is not None
            assert guest.bus is not None
            guest.bus.crash.bugcheck(code)
            xen.run()
            assert (first.stage, first.failure) == (Stage.DONE, "")
            assert DumpReader(bytes(image.buffer)).field("I", 0x38) == (code,)
            assert guest.running
            assert guest.crash_dump is not first
            assert guest.disks[0].read(0, 1)[:8] == b"PAGEDU64"


def test_what_looks_at_a_guest_after_its_dump_finds_what_it_can() -> None:
    with Platform(seed=5) as xen:
        image = blank()
        guest, _stack = begun(xen, image)
        xen.run()
        whole(guest, image)
        assert "xenbus|" in guest.dump()
        with pytest.raises(XenpvError):
            guest.disks[0].read(0, 1)
        with pytest.raises(XenpvError):
            guest.crash()
        with pytest.raises(XenpvError):
            guest.hibernate()
        with pytest.raises(XenpvError):
            guest.suspend()
