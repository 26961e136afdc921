"""Worlds of every kind that a tape has to hear all of: each yields its platforms, used and open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.flows.test_two_machines import busy, start
from xenpv import Disk, Guest, MemoryImage, Platform, Vif
from xenpv.testing.raw_world import world_raw

Worlds = Callable[[], Iterator[list[Platform]]]

KIB = 1024


def used(xen: Platform, personality: str) -> Guest:
    """A guest with a disk and an interface, both at work."""
    guest = xen.create(
        name=f"g{len(xen.guests)}",
        personality=personality,
        disks=[Disk(MemoryImage(bytearray(256 * KIB)))],
        vifs=[Vif()],
    ).start()
    work(xen, guest)
    return guest


def work(xen: Platform, guest: Guest) -> None:
    for number in range(4):
        guest.disks[0].write(8 * number, bytes([number + 1]) * 8192)
        guest.disks[0].read(0, 64)
        guest.nets[0].send(b"\xff" * 6 + guest.nets[0].mac + b"\x08\x06" + bytes(46))
        xen.run()


def windows() -> Iterator[list[Platform]]:
    with Platform(seed=7) as xen:
        xen.respond("xenbr0")
        used(xen, "windows")
        used(xen, "windows").shutdown()
        yield [xen]


def linux() -> Iterator[list[Platform]]:
    with Platform(seed=8, dom0_vcpus=2) as xen:
        xen.respond("xenbr0")
        used(xen, "linux")
        used(xen, "linux").destroy()
        yield [xen]


def driver_domain() -> Iterator[list[Platform]]:
    with Platform(seed=9) as xen:
        server = xen.create(name="b", personality="linux", driver_domain=True).start()
        guest = xen.create(
            name="app",
            disks=[Disk(MemoryImage(bytearray(256 * KIB)), backend="b")],
            vifs=[Vif("br0", backend="b"), Vif("br0", backend=server.domid)],
        ).start()
        work(xen, guest)
        yield [xen]


def migration() -> Iterator[list[Platform]]:
    with ExitStack() as stack:
        here = stack.enter_context(Platform(seed=10))
        there = stack.enter_context(Platform(seed=10, loop=here.loop))
        start(here, 1)
        busy(here, 2)
        moved = here.guests[0].migrate(there)
        busy(there, 2)
        assert moved.name == "web"
        yield [here, there]


def resumed() -> Iterator[list[Platform]]:
    with Platform(seed=11) as xen:
        guest = used(xen, "windows")
        for fast in (True, False):
            guest.suspend()
            guest.resume(fast=fast)
            work(xen, guest)
        yield [xen]


def restored() -> Iterator[list[Platform]]:
    with TemporaryDirectory() as directory, Platform(seed=13) as xen:
        guest = used(xen, "windows")
        path = Path(directory) / "guest.save"
        guest.save(path)
        work(xen, xen.restore(path))
        yield [xen]


def raw() -> Iterator[list[Platform]]:
    """Raw frontends, whose indices are written by the library and by hand."""
    with world_raw(seed=12) as world:
        vbd, vif = world.vbd, world.vif
        sring = vbd.sring
        sring.push(READ, 1)
        sring.write_slot(1, READ)
        sring.req_prod = 2
        sring.ring.seek(2)
        vbd.notify()
        vif.tx.push(bytes(12), 1)
        vif.notify()
        world.platform.run()
        yield [world.platform]


# A blkif_request to read nothing: it is answered with an error.
READ = bytes(112)

WORLDS: dict[str, Worlds] = {
    one.__name__: one for one in (windows, linux, driver_domain, migration, resumed, restored, raw)
}
