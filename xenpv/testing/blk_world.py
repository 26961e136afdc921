"""A raw world whose disk has the kit's Linux frontend, on any blkback."""

from __future__ import annotations

from xenpv.abi.xenbus import XenbusState as State
from xenpv.errors import LocalProtocolError
from xenpv.host.image import Image, MemoryImage
from xenpv.platform import Platform
from xenpv.testing.linux_blk import INDIRECT_MAX, LinuxBlk
from xenpv.testing.raw_world import DEVID_XVDA, RawWorld
from xenpv.xen.loop import Chooser


class BlkWorld(RawWorld):
    """A raw world whose disk has this frontend: `disk`. world_blk's has no interface."""

    disk: LinuxBlk

    def attach(self, disk: LinuxBlk) -> None:
        """LocalProtocolError if the backend refuses."""
        self.disk = disk
        self.platform.run()
        state = self.vbd.backend_state
        if state is not State.CONNECTED or disk.state is not State.CONNECTED:
            broken = "" if self.vbd.backend is None else self.vbd.backend.broken
            why = broken or disk.broken or "no reason"
            raise LocalProtocolError(f"{disk.backend} is {state.name.lower()}: {why}")


def world_blk(
    seed: int = 0,
    *,
    image: Image | None = None,
    blkback: str = "linux",
    dom0_vcpus: int = 4,
    protocol: str = "x86_64-abi",
    order: int = 0,
    queues: int = 1,
    persistent: bool = True,
    indirect: int = INDIRECT_MAX,
    chooser: Chooser | None = None,
) -> BlkWorld:
    """A platform, a raw guest and its disk, connected to that blkback.

    `image` None: 1 MiB of zeros. Use it as a context manager, or `close` it.
    """
    platform = Platform(seed=seed, chooser=chooser, blkback=blkback, dom0_vcpus=dom0_vcpus)
    try:
        image = MemoryImage(bytearray(1 << 20)) if image is None else image
        world = BlkWorld(platform, image, "xenbr0", kinds=("vbd",))
        disk = LinuxBlk(
            world.guest,
            DEVID_XVDA,
            protocol=protocol,
            order=order,
            queues=queues,
            persistent=persistent,
            indirect=indirect,
        )
        world.attach(disk)
    except BaseException:
        platform.close()
        raise
    return world
