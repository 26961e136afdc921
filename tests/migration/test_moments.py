"""A guest is suspended at any moment, of its boot or with traffic, and goes on in a new domain."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.migration import copy
from xenpv import Disk, Guest, Platform, Vif
from xenpv.errors import Livelock
from xenpv.host.image import MemoryImage
from xenpv.xen.domain import PAGE_SIZE

IMAGE = bytes(range(256)) * 4096
KERNELS = st.tuples(st.sampled_from(["windows", "linux"]), st.booleans(), st.integers(1, 3))


def made(xen: Platform, kernel: tuple[str, bool, int]) -> Guest:
    personality, fifo, vcpus = kernel
    disks = [Disk(MemoryImage(bytearray(IMAGE)))]
    return xen.create(
        name="web", personality=personality, fifo=fifo, vcpus=vcpus, disks=disks, vifs=[Vif()]
    )


def moved_now(xen: Platform, guest: Guest, steps: int) -> Guest:
    """After so many tasks its kernel suspends it by itself, without a request."""
    with suppress(Livelock):
        xen.loop.run(limit=steps)
    if guest.bus is not None and guest.bus.suspend.references:
        guest.bus.suspend.trigger()
    else:
        guest.created.domain.shutdown(2)  # nobody in it can
    xen.run()
    saved = copy.save(guest)
    guest.destroy()
    new = copy.load(xen, guest.created.config, saved)
    new.start()
    new.counterparts = copy.Counterparts(guest, new)
    return new


def works(xen: Platform, guest: Guest) -> None:
    net, bridge = guest.nets[0], xen.bridge("xenbr0")
    before = len(bridge.frames)
    net.send(b"\xff" * 6 + net.mac + b"\x88\xb5" + bytes(60))
    xen.run()
    assert len(bridge.frames) > before
    assert guest.bus is not None
    assert guest.bus.store.transactions() == []
    assert guest.shutdown() == 0


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), kernel=KERNELS, steps=st.integers(1, 130))
@example(seed=19, kernel=("windows", True, 1), steps=60)
def test_in_its_boot(seed: int, kernel: tuple[str, bool, int], steps: int) -> None:
    with Platform(seed=seed) as xen:
        guest = made(xen, kernel)
        guest.created.domain.unpause()
        new = moved_now(xen, guest, steps)
        if not (new.nets and new.disks):
            # The new device model has emulated devices again that were unplugged before the move.
            assert new.reboot_requests
            new.reboot()
        assert new.disks[0].read(0, 8) == IMAGE[:PAGE_SIZE]
        works(xen, new)


@settings(max_examples=12)
@given(seed=st.integers(0, 1000), kernel=KERNELS, steps=st.integers(1, 150))
def test_with_traffic(seed: int, kernel: tuple[str, bool, int], steps: int) -> None:
    with Platform(seed=seed) as xen:
        guest = made(xen, kernel).start()
        disk = guest.disks[0]
        writes = [disk.start_write(8 * n, bytes([n]) * PAGE_SIZE) for n in range(8)]
        reads = [disk.start_read(64 + 8 * n, 8) for n in range(8)]
        for size in (60, 600, 1500):
            guest.nets[0].send(b"\xff" * 6 + guest.nets[0].mac + b"\x88\xb5" + bytes(size - 14))
        new = moved_now(xen, guest, steps)
        for number, command in enumerate(writes):
            there = new.counterpart(command)
            assert there.completions == len(there.srbs)
            if there.srb_status.name == "SUCCESS":
                assert new.disks[0].read(8 * number, 8) == bytes([number]) * PAGE_SIZE
        for command in reads:
            there = new.counterpart(command)
            assert there.completions == len(there.srbs)
            if there.srb_status.name == "SUCCESS":
                assert there.result() == IMAGE[:PAGE_SIZE]
        works(xen, new)
