"""A guest that crashes before each step of its boot, of its I/O and of its hibernation, and one
whose disk goes before each step of the dump.

Files are short here: the first 64 pages of memory. test_dump.py has them whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.flows.stepping import At
from tests.vbd.crash.conftest import SHORT
from tests.vbd.crash.dumps import Crashing, DumpReader, differing, load
from xenpv import Disk, Guest, MemoryImage, Platform
from xenpv.host.libxl import ToolstackError
from xenpv.vbd.crash.driver import Mode
from xenpv.vbd.crash.stack import DumpStack, Stage
from xenpv.vbd.parameters import Parameters

NEVER = 1 << 30
# A walk to Closed, one to InitWait or Connected, and one more to Closed; then 60 s for an answer.
LONGEST_NS = (3 * 30 + 60 + 2) * 1_000_000_000
NO_DISK = "device/vbd/768: there is no such device"
KERNEL_INIT_FAILED = 0x7B


pytestmark = pytest.mark.usefixtures("short_files")


def crash(guest: Guest) -> None:
    """Its kernel stops here, whatever runs."""
    if guest.bus is not None:
        guest.bus.crash.bugcheck(0xE2)
    elif guest.windows is not None and guest.windows.dumper is not None:
        guest.created.domain.sched.shutdown_code(3)
        guest.windows.dumper.begin(KERNEL_INIT_FAILED, (), 1)


def verdict(guest: Guest, stack: DumpStack, image: MemoryImage) -> str:
    """Nothing if the file is whole, else why there is none."""
    assert stack.is_over
    assert guest.created.domain.is_shutdown
    assert guest.created.domain.shutdown_code == 3
    if stack.stage is Stage.FAILED:
        return stack.failure
    data = bytes(image.buffer)
    assert len(DumpReader(data).pages()) == SHORT
    assert differing(stack, data) == []
    return ""


def booted(step: int, vdev: str) -> tuple[int, str | None]:
    """Steps of the boot, and what became of a dump at one of them; None: nothing had begun."""
    with Platform(seed=5) as xen:
        image = MemoryImage(bytearray(1 << 20))
        disk = Disk(image, vdev=vdev)
        guest = xen.create(name="web", memory_mib=9, disks=[disk], vcpus=2)
        guest.set_crash_dump(0)
        at = At(step, lambda: crash(guest))
        xen.loop.scheduler = at
        try:
            guest.start()
        except ToolstackError:
            assert step < NEVER
        stack = guest.crash_dump
        if stack is None and guest.windows is not None:
            stack = guest.windows.dumper  # type: ignore[assignment]
        if stack is None or stack.stage is Stage.LOADED:
            return at.steps, None
        return at.steps, verdict(guest, stack, image)


@pytest.mark.parametrize("vdev", ["hda", "xvda"])
def test_a_crash_before_each_step_of_the_boot(vdev: str) -> None:
    steps, nothing = booted(NEVER, vdev)
    assert nothing is None
    assert steps > 100
    found = [booted(step, vdev)[1] for step in range(steps)]
    # Its kernel has nothing to say before it runs.
    assert found[0] is None
    if vdev == "hda":
        # The driver falls back to it: no key has to be in the store.
        assert set(found[1:]) == {""}
    else:
        # From the moment on at which XenVbd has said that the dump goes there.
        first = found.index("")
        assert set(found[1:first]) == {NO_DISK}
        assert set(found[first:]) == {""}
        assert steps - first > 40


# with I/O in flight

SETTINGS = {
    "linux": ({}, None),
    "four queues of sixteen pages": ({}, Parameters(ring_page_order=4, queues=4)),
    "persistent grants": ({}, Parameters(persistent=True)),
    "qemu": ({"profile": "qemu"}, None),
    "tapdisk": ({"profile": "tapdisk"}, None),
    "I/O takes time": ({"latency_ns": 3_000_000}, None),
}


@contextmanager
def busy(setting: str) -> Iterator[Crashing]:
    """A guest whose disk has reads, writes and a flush to do."""
    disk, parameters = SETTINGS[setting]
    with Platform(seed=6, dom0_vcpus=4) as xen:
        image = MemoryImage(bytearray(4 << 20))
        guest = xen.create(
            name="web",
            memory_mib=9,
            disks=[Disk(image, **disk)],  # type: ignore[arg-type]
            vcpus=4,
            vbd=parameters,
        )
        guest.set_crash_dump(0)
        guest.start()
        assert guest.crash_dump is not None
        (one,) = guest.disks
        for number in range(3):
            one.start_write(4096 + 64 * number, bytes([number + 1]) * 20480)
            one.start_read(3000 + 100 * number, 70)
        one.start_flush()
        yield Crashing(xen, guest, image, guest.crash_dump)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_crash_before_each_step_of_its_io(setting: str) -> None:
    with busy(setting) as scene:
        at = scene.xen.loop.scheduler = At(NEVER, lambda: None)
        scene.xen.run()
        steps = at.steps
    assert steps > 2
    for step in range(steps + 1):
        with busy(setting) as scene:
            guest = scene.guest
            scene.xen.loop.scheduler = At(step, lambda: crash(guest))  # noqa: B023
            scene.xen.run()
            if step == steps:
                crash(guest)
                scene.xen.run()
            assert verdict(guest, scene.stack, scene.image) == "", f"step {step}"


def test_a_crash_on_the_way_to_hibernation_is_a_dump_or_a_file() -> None:
    def asleep(step: int) -> tuple[int, Stage, Stage]:
        with Platform(seed=6, dom0_vcpus=4) as xen:
            image = MemoryImage(bytearray(1 << 20))
            guest = xen.create(name="web", memory_mib=9, disks=[Disk(image, vdev="hda")])
            guest.set_crash_dump(0)
            guest.set_hibernation(0, lba=1024)
            guest.start()
            dump, hibernation = guest.crash_dump, guest.hibernation
            assert dump is not None
            assert hibernation is not None
            at = xen.loop.scheduler = At(step, lambda: crash(guest))
            with suppress(ToolstackError):
                guest.hibernate()
            assert guest.created.domain.is_shutdown
            return at.steps, dump.stage, hibernation.stage

    steps, dump, hibernation = asleep(NEVER)
    assert (dump, hibernation) == (Stage.LOADED, Stage.DONE)
    # Before the file is begun, while it is written, and when it is there.
    allowed = [
        (Stage.DONE, Stage.LOADED),
        (Stage.DONE, Stage.FAILED),
        (Stage.LOADED, Stage.DONE),
    ]
    found = [asleep(step)[1:] for step in range(steps)]
    assert [one for step, one in enumerate(found) if one not in allowed] == []
    assert set(found[:10]) == {allowed[0]}
    assert allowed[1] in found


# the disk goes during the dump


def disturbed(step: int, happens: Callable[[Platform, Guest], object]) -> tuple[int, str]:
    with Platform(seed=5) as xen:
        image = MemoryImage(bytearray(1 << 20))
        guest = xen.create(name="web", memory_mib=9, disks=[Disk(image, vdev="hda")]).start()
        stack = load(guest, Mode.DUMP)
        crash(guest)
        at = At(step, lambda: happens(xen, guest))
        xen.loop.scheduler = at
        before = xen.loop.now
        xen.run()
        assert xen.loop.now - before < LONGEST_NS
        return at.steps, verdict(guest, stack, image)


def pull(xen: Platform, guest: Guest) -> None:
    """The toolstack takes the backend's directory away."""
    xen.toolstack.ctx.xs.rm(f"/local/domain/0/backend/vbd/{guest.domid}/768")


def eject(xen: Platform, guest: Guest) -> None:
    """xl block-detach: online 0, and the backend is to close."""
    home = f"/local/domain/0/backend/vbd/{guest.domid}/768"
    xen.toolstack.ctx.xs.write(f"{home}/online", "0")
    xen.toolstack.ctx.xs.write(f"{home}/state", "5")


def vanish(xen: Platform, guest: Guest) -> None:
    """The guest's own directory goes."""
    xen.toolstack.ctx.xs.rm(f"/local/domain/{guest.domid}/device/vbd/768")


@pytest.mark.parametrize("happens", [pull, eject, vanish])
def test_the_disk_goes_before_each_step_of_the_dump(
    happens: Callable[[Platform, Guest], object],
) -> None:
    steps, whole = disturbed(NEVER, happens)
    assert whole == ""
    found = [disturbed(step, happens)[1] for step in range(steps)]
    assert any(found), "it matters"
